"""Networks, supervised training, and the losses of continual learning."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.places import PLACE
from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import FractionBelowOne
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import OpenFraction
from jaxpmi.config.ranges import Positive
from jaxpmi.config.ranges import PositiveFraction
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """A network; see `jaxpmi.models.MODELS`.

    Attributes:
      name: a key of MODELS, or `module:name` of a function of yours that makes such a network.
      width: channels of the first stage.
      weights: a trained network instead of name and width: a file or folder that `load_weights`
        reads; `module:name` of a function without arguments that returns a `Network`, such as one
        of `from_nnx`; or imagenet, for name efficientnet_lite0 alone, which a package brings. A job
        takes it as it is; continual learning goes on with its blocks and a new head. With name
        clip, CLIP's folder or file. None: name and width say what is made.
    """

    name: str = "resnet_small"
    width: Annotated[int, AtLeast(1)] = 8
    weights: Annotated[str | None, PLACE] = None


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Supervised training.

    Attributes:
      batch_size: real images per step.
      replay_batch_size: synthetic images per step, beside the real ones.
      epochs: passes over the data of a task, all phases of a later task together.
      optimiser: SGD with a momentum of 0.9, Adam (VDFD), or AdamW (transformers; CLIP always).
      learning_rate: peak, in the first task.
      later_learning_rate: peak in later tasks, of all methods but r_dfcil and pmi; None: the same,
        with apr a tenth.
      head_learning_rate: of the classifier where learning_rate is that of the backbone; follows the
        same schedule. None: the same.
      graph_learning_rate: likewise, of VDFD's class graph.
      warmup_steps: linear from 0, before the schedule of a phase of all blocks.
      weight_decay: sgd, adam: L2, added to the gradient; adam: not of the classifier; adamw:
        decoupled from it, and not of gains, biases and embeddings.
      graph_weight_decay: sgd, adam: of VDFD's class graph; None: weight_decay.
      schedule: of the learning rate in a phase of all blocks; polynomial: the share of steps left
        to the power of 0.9 (segmentation).
      milestones: step: where the rate falls, as fractions of the phase.
      milestone_factor: step: by what it is multiplied there.
      augment_replay: random views of synthetic images as of real ones; those of apr are views.
    """

    batch_size: Annotated[int, AtLeast(1)] = 64
    replay_batch_size: Annotated[int, AtLeast(1)] = 64
    epochs: Annotated[int, AtLeast(1)] = 20
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Positive] = 0.1
    later_learning_rate: Annotated[float | None, Positive] = None
    head_learning_rate: Annotated[float | None, Positive] = None
    graph_learning_rate: Annotated[float | None, Positive] = None
    warmup_steps: Annotated[int, NonNegative] = 0
    weight_decay: Annotated[float, NonNegative] = 5e-4
    graph_weight_decay: Annotated[float | None, NonNegative] = None
    schedule: Literal["cosine", "step", "polynomial"] = "cosine"
    milestones: Annotated[tuple[float, ...], OpenFraction] = (0.4, 0.6)
    milestone_factor: Annotated[float, PositiveFraction] = 0.1
    augment_replay: bool = False


@dataclasses.dataclass(frozen=True)
class VdfdConfig(Settings):
    """VDFD and DFD: what is kept of an old task, and what its mean logits' drift costs.

    Attributes:
      drift_weight: lambda: of the penalty, a sum over old tasks.
      rank: singular vectors, or products of vectors, kept per tensor of the backbone.
      record_images: of a task, evenly spaced, that gradients are averaged over; each takes a
        backward pass per class. None: all.
      mean_logits: a class's logit is averaged over every image (or pixel) of its task, as
        published; own_class: over those of the class, where it counts from the mean over the task's
        classes. A mean over all pixels is one over background.
      self_supervision: every image in four rotations, and joint classification of class and
        rotation; what is kept and how classes are predicted stays the same.
      regularised_head: the classifier is held as the backbone is and goes on learning as a whole
        (published for segmentation); if not, its columns of old classes rest.
      variant: vdfd: task_given: the paper's penalty, with the class graph that was published for a
        given task; all_classes: with that for prediction among all classes, whose layers are as
        wide as the features; published_task_given and published_all_classes: the penalty, too, as
        in the released code (docs/methods/vdfd.md). All of these keep gradients averaged over the
        weights that feed a channel; whole_gradients, ours: task_given with those of every weight
        (dfd: too).
    """

    drift_weight: Annotated[float, NonNegative] = 10.0
    rank: Annotated[int, AtLeast(1)] = 1
    record_images: Annotated[int | None, AtLeast(1)] = None
    mean_logits: Literal["all", "own_class"] = "all"
    self_supervision: bool = False
    regularised_head: bool = False
    variant: Literal[
        "task_given",
        "all_classes",
        "whole_gradients",
        "published_task_given",
        "published_all_classes",
    ] = "task_given"


@dataclasses.dataclass(frozen=True)
class MethodConfig(Settings):
    """Weights of the continual losses; names as in the papers' tables.

    What is said of pmi holds for pixel_gaussian, which has its losses.

    Attributes:
      recipe: pmi: detached: local losses with a head trained on detached features; stagewise: as
        published, stage-wise unfreezing and balanced head tuning, with the loss terms added;
        published: the same with relation and head terms multiplied, as in the released code.
      ce_weight: lambda_ce: cross-entropy on new classes only. All lambdas but lambda_ft of CLIP are
        scaled by the numbers of new and old classes (R-DFCIL).
      hkd_weight: lambda_hkd: L1 between old and new logits of synthetic images.
      rkd_weight: lambda_rkd: angles between triples of real features.
      tkd_weight: clip: lambda_tkd: L1 between old and new text features of old classes.
      ft_weight: lambda_ft: cross-entropy over all classes on detached features.
      lwf_weight: lwf, deep_inversion: soft cross-entropy to the teacher; apr: ten times as much.
      abd_weight: abd, pmi detached: feature distillation through the old head.
      joint_weight: pmi detached, clip: of cross-entropy over all seen classes, backbone only.
      tuning_epochs: pmi, r_dfcil: share of epochs that tune all heads at the end.
      body_learning_rate: pmi: of the phase that trains the backbone.
      tuning_learning_rate: pmi, r_dfcil: of head tuning.
      background: segmentation: a pixel labelled background is of it or of any old class (MiB), or
        of it alone.
      vdfd: vdfd, dfd: what is kept of old tasks.
    """

    recipe: Literal["detached", "stagewise", "published"] = "detached"
    ce_weight: Annotated[float, NonNegative] = 0.75
    hkd_weight: Annotated[float, NonNegative] = 0.15
    rkd_weight: Annotated[float, NonNegative] = 0.5
    tkd_weight: Annotated[float, NonNegative] = 0.2
    ft_weight: Annotated[float, NonNegative] = 1.5
    lwf_weight: Annotated[float, NonNegative] = 1.0
    abd_weight: Annotated[float, NonNegative] = 0.1
    joint_weight: Annotated[float, NonNegative] = 0.0
    tuning_epochs: Annotated[float, FractionBelowOne] = 0.2
    body_learning_rate: Annotated[float, Positive] = 0.05
    tuning_learning_rate: Annotated[float, Positive] = 0.005
    background: Literal["unbiased", "plain"] = "unbiased"
    vdfd: VdfdConfig = VdfdConfig()
