"""The one pytree that a run carries from step to step and that a checkpoint holds."""

from typing import Any
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxpmi.continual.gradient_records import GradientRecords
from jaxpmi.features.cfs import CfsModel
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.inversion.block_inverse import BlockInverse
from jaxpmi.models.blockwise import Variables
from jaxpmi.types import Moments
from jaxpmi.types import Params


class Network(NamedTuple):
    """A backbone with its classifier."""

    variables: Variables
    head: jax.Array  # f32[D, C], no bias, one column per class of the whole stream


class Memory(NamedTuple):
    """What is kept between tasks for inversion. No field is per image."""

    class_stats: ClassStats
    feature_models: CfsModel
    block_inputs: tuple[Moments, ...]  # merged over tasks by image count
    pixels: Moments  # f32[H, W, C] each, merged over tasks by image count
    histogram: jax.Array  # f32[256, C], of the pixel values 0..255, summed over tasks
    spectrum: jax.Array  # f32[H, W//2+1, C], mean power spectrum of the images of all tasks
    layer_moments: dict[str, Any]  # of layer inputs, merged over tasks by image count; {} where
    # the network itself keeps running ones, as BatchNorms do
    num_images: jax.Array  # f32[], behind the five before
    inverses: tuple[BlockInverse, ...]  # of the newest network


class Replay(NamedTuple):
    """Synthetic samples of old classes, rebuilt before every task."""

    samples: jax.Array  # u8[N, H, W, C] or patch embeddings f32[N, h, w, D]; zeros from `count` on
    labels: jax.Array  # i32[N]
    count: jax.Array  # i32[]


@flax.struct.dataclass
class ContinualState:
    """Everything that decides how a run goes on."""

    network: Network  # in training
    teacher: Network  # frozen before this task
    auxiliary: Params  # what is trained beside it, anew in every task
    opt_state: Any  # of the phase in progress
    memory: Memory
    generator: Any  # GeneratorState of ABD and R-DFCIL, else ()
    replay: Replay
    class_counts: jax.Array  # f32[C], labels seen in training, from 1
    accuracy: jax.Array  # f32[T, T], NaN where not yet measured
    task_accuracy: jax.Array  # f32[T, T], the same with the task given
    class_order: jax.Array  # i32[C]
    mean: jax.Array  # f32[channels], of pixels in [0, 1]
    std: jax.Array  # f32[channels]
    key: jax.Array  # key[]; every draw folds in the position
    task: jax.Array  # i32[], position: task, phase of the task, step of the phase
    phase: jax.Array  # i32[]
    step: jax.Array  # i32[]
    records: GradientRecords | tuple[()] = ()  # of the tasks learnt, with VDFD and DFD
    class_iou: jax.Array | tuple[()] = ()  # f32[T, C] of segmentation, NaN where not measured


def merge_moments(a: Moments, num_a: jax.Array, b: Moments, num_b: jax.Array) -> Moments:
    """Moments of the union of two sets of images of sizes num_a and num_b (f32[])."""
    share = num_b / jnp.maximum(num_a + num_b, 1.0)
    gap = b.mean - a.mean
    spread = share * (1.0 - share) * jnp.square(gap)
    return Moments(a.mean + share * gap, a.var + share * (b.var - a.var) + spread)
