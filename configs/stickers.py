"""Ten kinds of things in colour, in five tasks, without keeping an image: embedded, on any CPU.

  python launch/run.py --config configs/stickers.py

Results: docs/results.md.
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
        workdir="runs/stickers",
        data=DataConfig(
            source="stickers",
            # A shift on a black border, as of digits, would frame what is white.
            augment=AugmentConfig(crop_scale=(0.7, 1.0), flip=True),
        ),
        train=TrainConfig(epochs=40, augment_replay=True),
        losses=MethodConfig(joint_weight=1.0),
        inversion=InversionConfig(
            full_model=FullModelConfig(
                num_steps=120,
                total_variation_weight=0.06,
                pixel_statistics_weight=3.0,
                views="flipped",
            )
        ),
    )
