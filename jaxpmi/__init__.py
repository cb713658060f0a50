"""jaxpmi: data-free continual learning by model inversion, in JAX.

The names below work on a user's own network, parameters and images; `run` is the whole experiment.
"""

import importlib

from jaxpmi.applications.network_file import SavedNetwork
from jaxpmi.applications.network_file import load_network
from jaxpmi.applications.network_file import save_network
from jaxpmi.augment import denormalise
from jaxpmi.augment import normalise
from jaxpmi.config import AugmentConfig
from jaxpmi.config import CfsConfig
from jaxpmi.config import CmiConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import DistillConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import GeneratorConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import InvertConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import PruneConfig
from jaxpmi.config import TrainConfig
from jaxpmi.config import VdfdConfig
from jaxpmi.config.load import load_config
from jaxpmi.data import imagenet_class_names
from jaxpmi.data import open_source
from jaxpmi.features.contrastive import ContrastiveModel
from jaxpmi.features.contrastive import fit as fit_contrastive
from jaxpmi.features.contrastive import group_by_class
from jaxpmi.features.contrastive import init as init_contrastive
from jaxpmi.features.contrastive import sample_features as sample_contrastive
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import fit_class_stats
from jaxpmi.features.gaussian import merge_class_stats
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.features.projection import project_features
from jaxpmi.features.projection import text_prototypes
from jaxpmi.inversion.block_inverse import BlockInverse
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.contrastive_inversion import contrastive_inversion
from jaxpmi.inversion.contrastive_inversion import init_contrastive_inversion
from jaxpmi.inversion.deep_inversion import Classifier
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.deep_inversion import noise_start
from jaxpmi.inversion.fast_inversion import fast_inversion
from jaxpmi.inversion.fast_inversion import init_fast_inversion
from jaxpmi.inversion.full_model import PixelStats
from jaxpmi.inversion.full_model import measure_pixels
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.per_layer import invert_block
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.synthesis import LayerKnowledge
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.targets import Targets
from jaxpmi.models import MODELS
from jaxpmi.models.blockwise import Block
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Stack
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import forward
from jaxpmi.models.blockwise import init_variables
from jaxpmi.models.blockwise import update_batch_stats
from jaxpmi.models.channels import filter_groups
from jaxpmi.models.clip import CLIP_MEAN
from jaxpmi.models.clip import CLIP_MODELS
from jaxpmi.models.clip import CLIP_STD
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import encode_images
from jaxpmi.models.clip import encode_text
from jaxpmi.models.clip import init_clip
from jaxpmi.models.clip import similarity_logits
from jaxpmi.models.cost import count_multiply_adds
from jaxpmi.models.imagenet import PretrainedClassifier
from jaxpmi.models.imagenet import load_efficientnet_lite0
from jaxpmi.models.pretrained import PretrainedClip
from jaxpmi.models.pretrained import load_clip
from jaxpmi.models.pruning import choose_filters
from jaxpmi.models.pruning import filter_importance
from jaxpmi.models.pruning import remove_filters
from jaxpmi.sharding import make_mesh
from jaxpmi.types import Moments

__version__ = "0.1.0"

__all__ = [
    "AugmentConfig",
    "Block",
    "BlockInverse",
    "BlockwiseModel",
    "CLIP_MEAN",
    "CLIP_MODELS",
    "CLIP_STD",
    "CfsConfig",
    "ClassStats",
    "Classifier",
    "Clip",
    "ClipVariables",
    "CmiConfig",
    "Config",
    "ContrastiveModel",
    "DataConfig",
    "DeepInversionConfig",
    "DistillConfig",
    "FullModelConfig",
    "GeneratorConfig",
    "InversionConfig",
    "InvertConfig",
    "LayerKnowledge",
    "MODELS",
    "MethodConfig",
    "ModelConfig",
    "Moments",
    "Network",
    "PerLayerConfig",
    "PixelStats",
    "PretrainedClassifier",
    "PretrainedClip",
    "PruneConfig",
    "Replay",
    "SavedNetwork",
    "Stack",
    "Student",
    "StudentProgram",
    "Targets",
    "TrainConfig",
    "Variables",
    "VdfdConfig",
    "choose_filters",
    "contrastive_inversion",
    "cosine_rates",
    "count_multiply_adds",
    "deep_inversion",
    "denormalise",
    "distill_steps",
    "encode_images",
    "encode_text",
    "fast_inversion",
    "filter_groups",
    "filter_importance",
    "fit_block_inverses",
    "fit_class_stats",
    "fit_contrastive",
    "forward",
    "group_by_class",
    "imagenet_class_names",
    "init_clip",
    "init_contrastive",
    "init_contrastive_inversion",
    "init_fast_inversion",
    "init_student",
    "init_variables",
    "invert_block",
    "invert_blocks",
    "load_clip",
    "load_config",
    "load_efficientnet_lite0",
    "load_network",
    "make_mesh",
    "measure_diversity",
    "measure_pixels",
    "merge_class_stats",
    "noise_start",
    "normalise",
    "open_source",
    "project_features",
    "refine_images",
    "remove_filters",
    "run",
    "sample_class_features",
    "sample_contrastive",
    "save_network",
    "similarity_logits",
    "synthesize",
    "text_prototypes",
    "update_batch_stats",
]


# Imported when they are first used: training needs Flax, which imports slowly.
_LATER = {
    "Network": "jaxpmi.continual.state",
    "Replay": "jaxpmi.continual.state",
    "Student": "jaxpmi.applications.student",
    "StudentProgram": "jaxpmi.applications.student",
    "cosine_rates": "jaxpmi.applications.student",
    "distill_steps": "jaxpmi.applications.student",
    "init_student": "jaxpmi.applications.student",
    "measure_diversity": "jaxpmi.applications.diversity",
    "run": "jaxpmi.experiment",
}


def __getattr__(name: str):
    """Finds the names of `_LATER`."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
