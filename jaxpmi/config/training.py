"""Networks, supervised training, and the losses of continual learning."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import FractionBelowOne
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import OpenFraction
from jaxpmi.config.ranges import Positive
from jaxpmi.config.ranges import PositiveFraction
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """The backbone; see `jaxpmi.models.MODELS`.

    Attributes:
      name: a key of MODELS, or `module:name` of a function of the width.
      width: channels of the first stage.
      weights: pretrained, with name="efficientnet_lite0" alone; None: trained in the run.
      factory: `module:name` of a function without arguments that returns a trained `Network`, such
        as one of `from_nnx`, instead of name and width. A job takes it as it is; continual learning
        goes on with its blocks and a new head. None: name and width say what is made.
    """

    name: str = "resnet_small"
    width: Annotated[int, AtLeast(1)] = 8
    weights: Literal["imagenet"] | None = None
    factory: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Supervised training.

    Attributes:
      batch_size: real images per step.
      replay_batch_size: synthetic images per step, beside the real ones.
      epochs: passes over the data of a task, all phases of a later task together.
      optimiser: SGD with momentum, Adam (VDFD), or AdamW (transformers).
      learning_rate: peak, in the first task.
      later_learning_rate: peak in later tasks, of all methods but r_dfcil and pmi; None: the same.
      head_learning_rate: of the classifier where learning_rate is that of the backbone; follows the
        same schedule. None: the same.
      graph_learning_rate: likewise, of VDFD's class graph.
      warmup_steps: linear from 0, before the schedule of a phase of all blocks.
      momentum: of SGD.
      weight_decay: sgd, adam: L2, added to the gradient; adamw: decoupled from it, and not of
        gains, biases and embeddings.
      head_weight_decay: sgd, adam: of the classifier; None: weight_decay.
      graph_weight_decay: sgd, adam: of VDFD's class graph; None: weight_decay.
      schedule: of the learning rate in a phase of all blocks; polynomial: the share of steps left
        to the power of 0.9 (segmentation).
      milestones: step: where the rate falls, as fractions of the phase.
      milestone_factor: step: by what it is multiplied there.
      augment_replay: random views of synthetic images as of real ones.
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
    momentum: Annotated[float, FractionBelowOne] = 0.9
    weight_decay: Annotated[float, NonNegative] = 5e-4
    head_weight_decay: Annotated[float | None, NonNegative] = None
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
      rank: singular vectors kept per tensor of the backbone.
      record_images: of a task, evenly spaced, that gradients are averaged over; each takes a
        backward pass per class. None: all.
      mean_logits: a class's logit is averaged over every image (or pixel) of its task, as
        published; own_class: over those of the class, where it counts from the mean over the task's
        classes. A mean over all pixels is one over background.
      gradient_noise: variance of the Gaussian noise added to what is kept, before its compression,
        as a share of the variance of a tensor's entries.
      self_supervision: every image in four rotations, and joint classification of class and
        rotation; what is kept and how classes are predicted stays the same.
      regularised_head: the classifier is held as the backbone is and goes on learning as a whole
        (published for segmentation); if not, its columns of old classes rest.
      epsilon: vdfd: on the diagonal of the precision matrices.
      class_graph: vdfd: layers of hidden_dim and output_dim (published where the task is given), or
        two as wide as the features, which are added to the output (published for prediction over
        all classes).
      hidden_dim: vdfd, bottleneck; None: a sixteenth of the features.
      output_dim: vdfd, bottleneck; None: an eighth of the features.
      quadratic_form: vdfd: with epsilon, or (as published) without it.
      old_tasks: vdfd: summed over; published (one head for all classes): the last one alone, its
        quadratic form times the square of their number.
    """

    drift_weight: Annotated[float, NonNegative] = 10.0
    rank: Annotated[int, AtLeast(1)] = 1
    record_images: Annotated[int | None, AtLeast(1)] = None
    mean_logits: Literal["all", "own_class"] = "all"
    gradient_noise: Annotated[float, NonNegative] = 0.0
    self_supervision: bool = False
    regularised_head: bool = False
    epsilon: Annotated[float, Positive] = 1e-3
    class_graph: Literal["bottleneck", "residual"] = "bottleneck"
    hidden_dim: Annotated[int | None, AtLeast(1)] = None
    output_dim: Annotated[int | None, AtLeast(1)] = None
    quadratic_form: Literal["regularised", "published"] = "regularised"
    old_tasks: Literal["all", "published"] = "all"


@dataclasses.dataclass(frozen=True)
class MethodConfig(Settings):
    """Weights of the continual losses; names as in the papers' tables.

    Attributes:
      recipe: pmi: local losses with a head trained on detached features, or (as published)
        stage-wise unfreezing and balanced head tuning.
      combine: pmi, stagewise: relation and head terms.
      ce_weight: lambda_ce: cross-entropy on new classes only.
      hkd_weight: lambda_hkd: L1 between old and new logits of synthetic images.
      rkd_weight: lambda_rkd: angles between triples of real features.
      ft_weight: lambda_ft: cross-entropy over all classes on detached features.
      adaptive: scale the four by the numbers of new and old classes (R-DFCIL).
      lwf_weight: lwf, deep_inversion: soft cross-entropy to the teacher.
      lwf_temperature: lwf, deep_inversion: of both softmaxes in it.
      abd_weight: abd, pmi detached: feature distillation through the old head.
      joint_weight: pmi detached: of cross-entropy over all seen classes, backbone only.
      head_epochs: pmi: share of epochs that train the new head only.
      last_block_epochs: pmi: share of epochs that also train the last block.
      tuning_epochs: pmi, r_dfcil: share of epochs that tune all heads at the end.
      body_learning_rate: pmi: of the phase that trains the backbone.
      tuning_learning_rate: pmi, r_dfcil: of head tuning.
      background: segmentation: a pixel labelled background is of it or of any old class (MiB), or
        of it alone.
      vdfd: vdfd, dfd: what is kept of old tasks.
    """

    recipe: Literal["detached", "stagewise"] = "detached"
    combine: Literal["sum", "product"] = "sum"
    ce_weight: Annotated[float, NonNegative] = 0.75
    hkd_weight: Annotated[float, NonNegative] = 0.15
    rkd_weight: Annotated[float, NonNegative] = 0.5
    ft_weight: Annotated[float, NonNegative] = 1.5
    adaptive: bool = True
    lwf_weight: Annotated[float, NonNegative] = 1.0
    lwf_temperature: Annotated[float, Positive] = 2.0
    abd_weight: Annotated[float, NonNegative] = 0.1
    joint_weight: Annotated[float, NonNegative] = 0.0
    head_epochs: Annotated[float, FractionBelowOne] = 0.1
    last_block_epochs: Annotated[float, FractionBelowOne] = 0.1
    tuning_epochs: Annotated[float, FractionBelowOne] = 0.2
    body_learning_rate: Annotated[float, Positive] = 0.05
    tuning_learning_rate: Annotated[float, Positive] = 0.005
    background: Literal["unbiased", "plain"] = "unbiased"
    vdfd: VdfdConfig = VdfdConfig()
