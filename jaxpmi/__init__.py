"""jaxpmi: data-free continual learning by model inversion, in JAX.

The names below work on a user's own network, parameters and images; `run` is the whole experiment.
"""

import importlib

from jaxpmi.augment import denormalise
from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import Block
from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward
from jaxpmi.blocks.blockwise import init_variables
from jaxpmi.blocks.blockwise import update_batch_stats
from jaxpmi.blocks.cost import count_multiply_adds
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
from jaxpmi.data import DataFacts
from jaxpmi.data import describe_source
from jaxpmi.data import imagenet_class_names
from jaxpmi.data import open_source
from jaxpmi.features.cfs import CfsModel
from jaxpmi.features.cfs import fit as fit_cfs
from jaxpmi.features.cfs import group_by_class
from jaxpmi.features.cfs import init as init_cfs
from jaxpmi.features.cfs import sample_features as sample_cfs
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import fit_class_stats
from jaxpmi.features.gaussian import merge_class_stats
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.features.projection import project_features
from jaxpmi.features.projection import text_prototypes
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.bootstrap import PictureMemory
from jaxpmi.inversion.bootstrap import remember_pictures
from jaxpmi.inversion.bootstrap import start_from_pictures
from jaxpmi.inversion.cmi import cmi
from jaxpmi.inversion.cmi import init_cmi
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.deep_inversion import noise_start
from jaxpmi.inversion.fast_dfkd import fast_dfkd
from jaxpmi.inversion.fast_dfkd import init_fast_dfkd
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.memory_check import with_layer_moments
from jaxpmi.inversion.own_terms import OwnTerm
from jaxpmi.inversion.per_layer import invert_block
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.targets import Targets
from jaxpmi.memory import BlockInverse
from jaxpmi.memory import Memory
from jaxpmi.memory import draw_features
from jaxpmi.models import MODELS
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.clip import CLIP_MEAN
from jaxpmi.models.clip import CLIP_MODELS
from jaxpmi.models.clip import CLIP_STD
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import encode_images
from jaxpmi.models.clip import encode_text
from jaxpmi.models.clip import init_clip
from jaxpmi.models.clip import similarity_logits
from jaxpmi.models.init_network import init_network
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.network import logits
from jaxpmi.pruning import choose_filters
from jaxpmi.pruning import filter_groups
from jaxpmi.pruning import filter_importance
from jaxpmi.pruning import remove_filters
from jaxpmi.remember import remember
from jaxpmi.sharding import make_mesh
from jaxpmi.types import Moments
from jaxpmi.weights.clip import PretrainedClip
from jaxpmi.weights.clip import load_clip
from jaxpmi.weights.imagenet import load_efficientnet_lite0
from jaxpmi.weights.network_file import load_network
from jaxpmi.weights.network_file import network_labels
from jaxpmi.weights.network_file import save_network
from jaxpmi.weights.own_module import set_tensors
from jaxpmi.weights.preprocessing import IMAGENET_MEAN
from jaxpmi.weights.preprocessing import IMAGENET_STD
from jaxpmi.weights.safetensors_file import export_safetensors
from jaxpmi.weights.stored_tensors import read_tensors
from jaxpmi.weights.zoo import load_weights

__version__ = "0.1.0"

__all__ = [
    "AugmentConfig",
    "Block",
    "Backbone",
    "BlockInverse",
    "BlockwiseModel",
    "CLIP_MEAN",
    "CLIP_MODELS",
    "CLIP_STD",
    "CfsConfig",
    "CfsModel",
    "ClassStats",
    "Clip",
    "ClipVariables",
    "CmiConfig",
    "Config",
    "DataConfig",
    "DataFacts",
    "DeepInversionConfig",
    "DistillConfig",
    "FullModelConfig",
    "GeneratorConfig",
    "Head",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "InversionConfig",
    "InvertConfig",
    "MODELS",
    "Memory",
    "Method",
    "MethodConfig",
    "ModelConfig",
    "Moments",
    "Network",
    "OwnTerm",
    "PerLayerConfig",
    "PictureMemory",
    "PretrainedClip",
    "PruneConfig",
    "Replay",
    "Stack",
    "Student",
    "StudentProgram",
    "Synthesiser",
    "Synthetic",
    "Targets",
    "TrainConfig",
    "Variables",
    "VdfdConfig",
    "Views",
    "check_network",
    "choose_filters",
    "cmi",
    "cosine_rates",
    "count_multiply_adds",
    "deep_inversion",
    "denormalise",
    "describe_source",
    "distill",
    "distill_steps",
    "draw_features",
    "encode_images",
    "encode_text",
    "export_safetensors",
    "fast_dfkd",
    "filter_groups",
    "filter_importance",
    "fit_block_inverses",
    "fit_cfs",
    "fit_class_stats",
    "forward",
    "from_blocks",
    "from_linen",
    "from_nnx",
    "group_by_class",
    "imagenet_class_names",
    "init_cfs",
    "init_clip",
    "init_cmi",
    "init_fast_dfkd",
    "init_network",
    "init_student",
    "init_variables",
    "invert_block",
    "invert_blocks",
    "learner",
    "load_clip",
    "load_config",
    "load_efficientnet_lite0",
    "load_network",
    "load_weights",
    "logits",
    "make_mesh",
    "measure_diversity",
    "measure_quality",
    "merge_class_stats",
    "network_labels",
    "noise_start",
    "normalise",
    "open_source",
    "project_features",
    "read_tensors",
    "refine_images",
    "remember",
    "remember_pictures",
    "remove_filters",
    "run",
    "sample_cfs",
    "sample_class_features",
    "save_network",
    "set_tensors",
    "similarity_logits",
    "start_from_pictures",
    "synthesize",
    "text_prototypes",
    "to_linen_variables",
    "to_nnx",
    "update_batch_stats",
    "with_layer_moments",
]


# Imported when they are first used: training needs Flax, which imports slowly.
_LATER = {
    "check_network": "jaxpmi.network_check",
    "from_linen": "jaxpmi.flax_networks.linen",
    "from_nnx": "jaxpmi.flax_networks.nnx",
    "to_linen_variables": "jaxpmi.flax_networks.linen",
    "to_nnx": "jaxpmi.flax_networks.nnx",
    "Method": "jaxpmi.continual.learners",
    "Replay": "jaxpmi.continual.state",
    "Student": "jaxpmi.jobs.student",
    "StudentProgram": "jaxpmi.jobs.student",
    "Synthesiser": "jaxpmi.jobs.synthesis",
    "Views": "jaxpmi.continual.training_phase",
    "cosine_rates": "jaxpmi.jobs.student",
    "distill": "jaxpmi.jobs.student",
    "distill_steps": "jaxpmi.jobs.student",
    "init_student": "jaxpmi.jobs.student",
    "learner": "jaxpmi.continual.learners",
    "measure_diversity": "jaxpmi.quality",
    "measure_quality": "jaxpmi.quality",
    "run": "jaxpmi.experiment",
}


def __getattr__(name: str):
    """Finds the names of `_LATER`."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
