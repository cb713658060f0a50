"""The one pytree that a run carries from step to step and that a checkpoint holds."""

from typing import Any
from typing import NamedTuple

import flax.struct
import jax

from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.shared_gaussian import SharedGaussians
from jaxpmi.memory import Memory
from jaxpmi.network import Network
from jaxpmi.types import Params


class Replay(NamedTuple):
    """Synthetic samples of old classes, rebuilt before every task.

    Attributes:
      samples: u8[N, H, W, C] or patch embeddings f32[N, h, w, D]; zeros from `count` on.
      labels: i32[N].
      count: i32[], how many there are already.
    """

    samples: jax.Array
    labels: jax.Array
    count: jax.Array


@flax.struct.dataclass
class ContinualState:
    """Everything that decides how a run goes on."""

    network: Network  # in training
    teacher: Network  # frozen before this task
    auxiliary: Params  # what is trained beside it, anew in every task
    opt_state: Any  # of the phase in progress
    # Of the data: for inversion; of pixels, with pixel_gaussian; of features, with apr; or nothing.
    memory: Memory | SharedGaussians | ClassStats | tuple[()]
    generator: Any  # GeneratorState of ABD and R-DFCIL, else ()
    replay: Replay
    class_counts: jax.Array  # f32[C], labels seen in training, from 1
    accuracy: jax.Array  # f32[T, T], NaN where not yet measured
    task_accuracy: jax.Array  # f32[T, T], the same with the task given
    class_order: jax.Array  # i32[C]
    key: jax.Array  # key[]; every draw folds in the position
    task: jax.Array  # i32[], position: task, phase of the task, step of the phase
    phase: jax.Array  # i32[]
    step: jax.Array  # i32[]
    records: GradientRecords | tuple[()] = ()  # of the tasks learnt, with VDFD and DFD
    class_iou: jax.Array | tuple[()] = ()  # f32[T, C] of segmentation, NaN where not measured
