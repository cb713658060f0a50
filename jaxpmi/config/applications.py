"""The jobs beside continual learning."""

import dataclasses
from typing import Literal

from jaxpmi.config.data import AugmentConfig
from jaxpmi.config.training import ModelConfig


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Data-free knowledge transfer: a student learns a teacher's outputs on synthetic images."""

    student: ModelConfig = ModelConfig(width=4)
    initial_batches: int = 0  # of images, made before the student's first step
    rounds: int = 40  # in each, one more batch is made (with method noise or deep_inversion all are
    # made at the beginning), then the student learns on all there are
    steps_per_round: int = 100  # of the student
    batch_size: int = 128  # synthetic images per step
    learning_rate: float = 0.1  # SGD, peak, cosine to 0 over all steps
    warmup_steps: int = 0  # linear, at the beginning
    momentum: float = 0.9
    weight_decay: float = 1e-4
    temperature: float = 20.0  # tau: of both softmaxes, and tau^2 on their divergence
    augment: AugmentConfig = AugmentConfig()  # random views of them


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Data-free pruning of filters, by first-order Taylor importance."""

    share: float = 0.5  # of all filters
    num_removals: int = 10  # removals in equal parts, with importance measured before each
    importance_batches: int = 20  # batches of synthetic images per measurement
    importance: Literal["gate", "filter"] = "gate"  # (gamma dL/dgamma + beta dL/dbeta)^2 of
    # BatchNorm, or (sum of w dL/dw)^2 of the convolution before it
    min_filters: int = 1  # least filters left in a layer
    num_images: int = 2048  # synthetic images, rounded up to whole batches of the method
    tuning_steps: int = 50  # of distillation after every removal
    final_steps: int = 1000  # of distillation at the end
    batch_size: int = 64
    learning_rate: float = 0.01  # SGD, cosine to 0 over the final steps
    momentum: float = 0.9
    weight_decay: float = 1e-4
    temperature: float = 3.0  # of distillation


@dataclasses.dataclass(frozen=True)
class InvertConfig:
    """Pictures of a network's classes; and, with them as replay, learning of new ones."""

    classes: tuple[str, ...] = ()  # names, or numbers as texts, of the classes to draw; (): all
    images_per_class: int = 4  # rounded up so that batches are full
    learn_data: bool = False  # then learn the classes of `data`, which a network with
    # model.weights does not know, with these images as replay of its own
    test_name: str | None = None  # TFDS name of real images of the network's own classes, such as
    # imagenet2012 or imagenette, to measure what it keeps; None: agreement on synthetic images
    test_path: str | None = None  # their TFDS data directory
    trainable: Literal["all", "last_block", "head"] = "all"  # of a network with model.weights, when
    # it learns the new classes
    held_out_share: float = 0.25  # of the synthetic images, to measure agreement on; never learnt
