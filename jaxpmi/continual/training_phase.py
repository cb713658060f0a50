"""What a step of supervised training sees, and what a stretch of such steps is."""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import losses
from jaxpmi.continual.apr.push import Push
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.network import Head

Terms = dict[str, jax.Array]


class Views(NamedTuple):
    """What a loss may look at. Replay fields are of the synthetic images of old classes.

    Teacher fields come from the network frozen before this task and carry no gradient.

    Attributes:
      labels: i32[B], of the real images of the new classes; of scenes i32[B, H, W].
      replay_labels: i32[R].
      features: f32[B, D]; of a phase with rotations [4B, D], an image's four adjacent; of scenes
        f32[B, H, W, D].
      replay_features: f32[R, D].
      teacher_features: f32[B, D].
      teacher_replay_features: f32[R, D].
      head: logits are `head(features)`.
      teacher_head: the same of the teacher.
      auxiliary: what is trained beside the network; see `start.fresh_auxiliary`.
      tensors: the weights that records are of; {} where there are none.
      records: of old tasks.
      new_mask: f32[C], 1 for classes of this task.
      old_mask: f32[C], 1 for classes of the tasks before.
      class_weights: f32[C], largest class count over each class's count.
    """

    labels: jax.Array
    replay_labels: jax.Array
    features: jax.Array
    replay_features: jax.Array
    teacher_features: jax.Array
    teacher_replay_features: jax.Array
    head: Head
    teacher_head: Head
    auxiliary: Any
    tensors: dict[str, jax.Array]
    records: GradientRecords | tuple[()]
    new_mask: jax.Array
    old_mask: jax.Array
    class_weights: jax.Array

    @property
    def seen_mask(self) -> jax.Array:
        """Classes of this task and of those before, f32[C]."""
        return self.new_mask + self.old_mask

    @property
    def factors(self) -> Callable[[MethodConfig], losses.DistillationFactors]:
        """The four weights of PMI and R-DFCIL for this task's class counts."""
        return lambda config: _factors(config, self.new_mask.sum(), self.old_mask.sum())

    def all_labels(self) -> jax.Array:
        """Labels of real, then synthetic images, i32[B + R]."""
        return jnp.concatenate([self.labels, self.replay_labels])

    def all_features(self) -> jax.Array:
        """Features of real, then synthetic images, f32[B + R, D]."""
        return jnp.concatenate([self.features, self.replay_features])

    def all_teacher_features(self) -> jax.Array:
        """The same of the teacher."""
        return jnp.concatenate([self.teacher_features, self.teacher_replay_features])


LossFn = Callable[[Views, MethodConfig], Terms]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of supervised training."""

    name: str
    loss: LossFn
    share: float  # of the task's epochs
    learning_rate: float
    milestones: tuple[float, ...] = ()  # fractions of the phase at which the rate falls
    milestone_factor: float = 0.1  # by what it is multiplied there
    schedule: Literal["cosine", "step", "polynomial"] = "step"
    warmup_steps: int = 0  # in which the rate rises to its peak, before the schedule
    trainable: Literal["all", "body", "last_block", "head"] = "all"  # body: all but the stem
    new_columns_only: bool = False  # freeze the head's columns of old classes
    bias_rests: bool = False  # that of the head is what calibration decides
    replay: bool = False  # uses synthetic images
    joint_batch: bool = False  # real and synthetic images share one BatchNorm batch
    rotations: bool = False  # real images come in four rotations each
    monitor: LossFn | None = None  # values that are logged, but not minimised
    push: Push | None = None  # of replay images, to their class's mean in the teacher (APR)
    weight_decay: float | None = None  # None: that of the config


PhasesFn = Callable[[TrainConfig, MethodConfig], tuple[Phase, ...]]


def _factors(config, num_new, num_old):
    weights = {"ce": config.ce_weight, "hkd": config.hkd_weight, "rkd": config.rkd_weight}
    weights["ft"] = config.ft_weight
    return losses.distillation_factors(num_new, num_old, **weights)
