"""Ten digits in five tasks without keeping an image: the embedded data, on any CPU."""

from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import TrainConfig


def get_config() -> Config:
    """See the module's first lines."""
    return Config(
        workdir="runs/mnist",
        data=DataConfig(augment=AugmentConfig(crop_padding=2)),
        train=TrainConfig(epochs=15, augment_replay=True),
    )
