"""Every setting, as nested frozen dataclasses.

A config file defines `get_config() -> Config` and changes only what differs from the defaults
here. Any field can be overridden on the command line (`launch/run.py --help`).
"""

from jaxpmi.config.clip import ClipConfig
from jaxpmi.config.clip import ClipPretrainingConfig
from jaxpmi.config.clip import NameOnlyConfig
from jaxpmi.config.data import SCENE_KINDS
from jaxpmi.config.data import AugmentConfig
from jaxpmi.config.data import DataConfig
from jaxpmi.config.experiment import Config
from jaxpmi.config.generators import CmiConfig
from jaxpmi.config.generators import GeneratorConfig
from jaxpmi.config.inversion import CfsConfig
from jaxpmi.config.inversion import DeepInversionConfig
from jaxpmi.config.inversion import FullModelConfig
from jaxpmi.config.inversion import InversionConfig
from jaxpmi.config.inversion import PerLayerConfig
from jaxpmi.config.jobs import DistillConfig
from jaxpmi.config.jobs import InvertConfig
from jaxpmi.config.jobs import PruneConfig
from jaxpmi.config.training import MethodConfig
from jaxpmi.config.training import ModelConfig
from jaxpmi.config.training import TrainConfig
from jaxpmi.config.training import VdfdConfig

__all__ = [
    "SCENE_KINDS",
    "AugmentConfig",
    "CfsConfig",
    "ClipConfig",
    "ClipPretrainingConfig",
    "CmiConfig",
    "Config",
    "DataConfig",
    "DeepInversionConfig",
    "DistillConfig",
    "FullModelConfig",
    "GeneratorConfig",
    "InversionConfig",
    "InvertConfig",
    "MethodConfig",
    "ModelConfig",
    "NameOnlyConfig",
    "PerLayerConfig",
    "PruneConfig",
    "TrainConfig",
    "VdfdConfig",
]
