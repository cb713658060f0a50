"""The jobs beside continual learning."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.data import AugmentConfig
from jaxpmi.config.places import PLACE
from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import OpenFraction
from jaxpmi.config.ranges import Positive
from jaxpmi.config.settings import Settings
from jaxpmi.config.training import ModelConfig


@dataclasses.dataclass(frozen=True)
class DistillConfig(Settings):
    """Data-free knowledge transfer: a student learns a teacher's outputs on synthetic images.

    Attributes:
      student: its network.
      initial_batches: of images, made before the student's first step.
      rounds: in each, one more batch is made (with method noise or deep_inversion all are made at
        the beginning), then the student learns on all there are.
      steps_per_round: of the student.
      batch_size: synthetic images per step.
      learning_rate: SGD, peak, cosine to 0 over all steps.
      warmup_steps: linear, at the beginning.
      temperature: tau: of both softmaxes, and tau^2 on their divergence.
      augment: random views of the images that are kept, for the student.
    """

    student: ModelConfig = ModelConfig(width=4)
    initial_batches: Annotated[int, NonNegative] = 0
    rounds: Annotated[int, AtLeast(1)] = 40
    steps_per_round: Annotated[int, AtLeast(1)] = 100
    batch_size: Annotated[int, AtLeast(1)] = 128
    learning_rate: Annotated[float, Positive] = 0.1
    warmup_steps: Annotated[int, NonNegative] = 0
    temperature: Annotated[float, Positive] = 20.0
    augment: AugmentConfig = AugmentConfig()


@dataclasses.dataclass(frozen=True)
class PruneConfig(Settings):
    """Data-free pruning of filters, by first-order Taylor importance.

    Attributes:
      share: of all filters.
      num_removals: removals in equal parts, with importance measured before each.
      num_images: synthetic images, rounded up to whole batches of the method.
      tuning_steps: of distillation after every removal.
      final_steps: of distillation at the end.
      batch_size: synthetic images per step of distillation.
      learning_rate: SGD, cosine to 0 over the final steps.
    """

    share: Annotated[float, OpenFraction] = 0.5
    num_removals: Annotated[int, AtLeast(1)] = 10
    num_images: Annotated[int, AtLeast(1)] = 2048
    tuning_steps: Annotated[int, NonNegative] = 50
    final_steps: Annotated[int, NonNegative] = 1000
    batch_size: Annotated[int, AtLeast(1)] = 64
    learning_rate: Annotated[float, Positive] = 0.01


@dataclasses.dataclass(frozen=True)
class InvertConfig(Settings):
    """Pictures of a network's classes; and, with them as replay, learning of new ones.

    Attributes:
      classes: names, or numbers as texts, of the classes to draw; (): all.
      images_per_class: rounded up so that batches are full.
      learn_data: then learn the classes of `data`, which a network with weights does not
        know, with these images as replay of its own.
      test_name: TFDS name of real images of the network's own classes, such as imagenet2012 or
        imagenette, to measure what it keeps; None: agreement on synthetic images.
      test_path: their TFDS data directory.
      trainable: of a network with weights, when it learns the new classes.
    """

    classes: tuple[str, ...] = ()
    images_per_class: Annotated[int, AtLeast(1)] = 4
    learn_data: bool = False
    test_name: str | None = None
    test_path: Annotated[str | None, PLACE] = None
    trainable: Literal["all", "last_block", "head"] = "all"
