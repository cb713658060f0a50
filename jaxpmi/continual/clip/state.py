"""What a CLIP run carries from step to step, and what stays the same; the base is never in it."""

import dataclasses
from typing import Any

import flax.struct
import jax

from jaxpmi.config import Config
from jaxpmi.continual.clip.train import zero_shot_network
from jaxpmi.continual.clip.variants import ClipVariant
from jaxpmi.continual.run import Run
from jaxpmi.continual.state import Replay
from jaxpmi.data import TaskStream
from jaxpmi.memory import Memory
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipAdapters
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import adapted
from jaxpmi.models.clip import init_clip_adapters
from jaxpmi.models.clip import with_clip_adapters
from jaxpmi.network import Network
from jaxpmi.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class ClipRun(Run):
    """What stays the same during a run on CLIP.

    Classes are those of the tasks; where some have only a name, they are the last task.
    """

    clip: Clip
    base: ClipVariables  # pretrained, frozen, shared by student and teacher
    tokens: jax.Array  # i32[C, P, T], P prompts per class
    mean: jax.Array  # f32[channels], of pixels in [0, 1]
    std: jax.Array  # f32[channels]
    variant: ClipVariant  # how classes are described, taught and named
    named: TaskStream | None  # real images of classes with only a name: to measure, not to learn

    def is_name_only(self, task: int) -> bool:
        """Whether the classes of a task have only a name; then it is the last one."""
        return self.named is not None and task == self.stream.num_tasks - 1

    @property
    def name_classes(self) -> range:
        """The classes with only a name, which `named` counts from 0."""
        return self.stream.task_classes(self.stream.num_tasks - 1)

    @property
    def base_config(self) -> Config:
        """The config, for the memory of the base, whose features are drawn without CFS."""
        inversion = dataclasses.replace(self.config.inversion, targets="gaussian")
        return dataclasses.replace(self.config, inversion=inversion)

    def fresh_adapters(self, key: PRNGKey) -> ClipAdapters:
        """Adapters that change nothing yet."""
        return init_clip_adapters(self.clip, key)

    def network(self, adapters: ClipAdapters | None, memory: Memory | tuple[()]) -> Network:
        """The image tower with its stored moments, and the class names as its classifier."""
        model, variables = self.clip, self.base
        if adapters is not None:
            model, variables = adapted(model), with_clip_adapters(model, variables, adapters)
        if memory:
            image = variables.image._replace(batch_stats=memory.layer_moments)
            variables = variables._replace(image=image)
        names = self.stream.class_names
        return zero_shot_network(model, variables, self.tokens, names, mean=self.mean, std=self.std)


@flax.struct.dataclass
class ClipState:
    """Everything that decides how a run goes on."""

    adapters: ClipAdapters  # in training
    teacher: ClipAdapters  # frozen before this task
    opt_state: Any  # of the phase in progress
    memory: (
        Memory | tuple[()]
    )  # () of methods that do not invert. Gaussians of a class stay as they
    # were when its images were there
    base_memory: Memory | tuple[()]  # the same of the base, where some classes have only a name
    replay: Replay  # synthetic samples of old classes
    name_samples: Replay  # the same of classes with only a name
    accuracy: jax.Array  # f32[T, T], NaN where not yet measured
    task_accuracy: jax.Array  # f32[T, T], the same with the task given
    zero_shot: jax.Array  # f32[T], of the base on every task, among all classes
    name_accuracy: jax.Array  # f32[3], on classes with only a name: `NAME_ACCURACIES`
    class_order: jax.Array  # i32[C]
    key: jax.Array  # key[]; every draw folds in the position
    task: jax.Array  # i32[], position: task, phase of the task, step of the phase
    phase: jax.Array  # i32[]
    step: jax.Array  # i32[]


NAME_ACCURACIES = ("after_tasks", "accuracy", "upper_bound")
