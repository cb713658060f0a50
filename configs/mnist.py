"""Ten digits in five tasks without keeping an image: the embedded data, on any CPU.

  python launch/run.py --config configs/mnist.py

Results over seeds: docs/results.md.
"""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        workdir="runs/mnist",
        data=DataConfig(augment=AugmentConfig(crop_padding=4)),
        train=TrainConfig(epochs=15, augment_replay=True),
        losses=MethodConfig(joint_weight=1.0),
        inversion=InversionConfig(
            full_model=FullModelConfig(total_variation_weight=0.06, pixel_statistics_weight=3.0)
        ),
    )
