"""What stays the same during a run, and what every phase derives from it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual.learners import Method
from jaxpmi.continual.state import ContinualState
from jaxpmi.data.scene_stream import SceneStream
from jaxpmi.data.stream import TaskStream
from jaxpmi.weights.network_file import SavedNetwork


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same during a run.

    Where it begins with a trained network, `config.model` says what that is built by.
    """

    config: Config
    method: Method
    stream: TaskStream | SceneStream
    mesh: jax.sharding.Mesh
    # The trained network that it begins with.
    given: SavedNetwork | None = dataclasses.field(default=None, kw_only=True)

    @property
    def label_maps(self) -> bool:
        """Whether samples are scenes, with their label map as the last channel."""
        return isinstance(self.stream, SceneStream)


def num_replay_images(config: Config, task: int) -> int:
    """Synthetic images made before `task`, in whole batches (docs/methods/pmi.md, eq. 12)."""
    if task == 0:
        return 0
    settings = config.inversion
    wanted = settings.base_images + settings.images_per_task * task
    return math.ceil(wanted / settings.batch_size) * settings.batch_size


def class_masks(stream: TaskStream | SceneStream, task: int) -> tuple[jax.Array, jax.Array]:
    """Masks f32[C] of the classes of `task` and of those before it."""
    classes = np.arange(stream.num_classes)
    new = stream.task_classes(task)
    new_mask = (classes >= new.start) & (classes < new.stop)
    return jnp.asarray(new_mask, jnp.float32), jnp.asarray(classes < new.start, jnp.float32)


def training_masks(run: Run, task: int) -> tuple[jax.Array, jax.Array]:
    """`class_masks`; to the joint upper bound all seen classes are new."""
    new, old = class_masks(run.stream, task)
    return (new + old, jnp.zeros_like(old)) if run.method.all_data else (new, old)


def phase_key(state: ContinualState) -> jax.Array:
    """The key of the phase in progress."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.task), state.phase)
