"""Networks, supervised training, and the losses of continual learning."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone; see `jaxpmi.models.MODELS`."""

    name: str = "resnet_small"  # a key of MODELS
    width: int = 8  # channels of the first stage
    weights: Literal["imagenet"] | None = None  # pretrained, with name="efficientnet_lite0" alone;
    # None: trained in the run


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Supervised training."""

    batch_size: int = 64  # real images per step
    replay_batch_size: int = 64  # synthetic images per step, beside the real ones
    epochs: int = 20  # passes over the data of a task, all phases of a later task together
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"  # SGD with momentum, Adam (VDFD), or AdamW
    # (transformers)
    learning_rate: float = 0.1  # peak, in the first task
    later_learning_rate: float | None = None  # peak in later tasks, of all methods but r_dfcil and
    # pmi; None: the same
    head_learning_rate: float | None = None  # of the classifier where learning_rate is that of the
    # backbone; follows the same schedule. None: the same
    graph_learning_rate: float | None = None  # likewise, of VDFD's class graph
    warmup_steps: int = 0  # linear from 0, before the schedule of a phase of all blocks
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # sgd, adam: L2, added to the gradient; adamw: decoupled from
    # it, and not of gains, biases and embeddings
    head_weight_decay: float | None = None  # sgd, adam: of the classifier; None: weight_decay
    graph_weight_decay: float | None = None  # sgd, adam: of VDFD's class graph; None: weight_decay
    schedule: Literal["cosine", "step", "polynomial"] = "cosine"  # of the learning rate in a phase
    # of all blocks; polynomial: the share of steps left to the power of 0.9 (segmentation)
    milestones: tuple[float, ...] = (0.4, 0.6)  # step: where the rate falls, as fractions of the
    # phase
    milestone_factor: float = 0.1  # step: by what it is multiplied there
    augment_replay: bool = False  # random views of synthetic images as of real ones


@dataclasses.dataclass(frozen=True)
class VdfdConfig:
    """VDFD and DFD: what is kept of an old task, and what its mean logits' drift costs."""

    drift_weight: float = 10.0  # lambda: of the penalty, a sum over old tasks
    rank: int = 1  # singular vectors kept per tensor of the backbone
    record_images: int | None = None  # of a task, evenly spaced, that gradients are averaged over;
    # each takes a backward pass per class. None: all
    mean_logits: Literal["all", "own_class"] = "all"  # a class's logit is averaged over every image
    # (or pixel) of its task, as published; own_class: over those of the class, where it counts from
    # the mean over the task's classes. A mean over all pixels is one over background
    gradient_noise: float = 0.0  # variance of the Gaussian noise added to what is kept, before its
    # compression, as a share of the variance of a tensor's entries
    self_supervision: bool = False  # every image in four rotations, and joint classification of
    # class and rotation; what is kept and how classes are predicted stays the same
    regularised_head: bool = False  # the classifier is held as the backbone is and goes on learning
    # as a whole (published for segmentation); if not, its columns of old classes rest
    epsilon: float = 1e-3  # vdfd: on the diagonal of the precision matrices
    class_graph: Literal["bottleneck", "residual"] = "bottleneck"  # vdfd: layers of hidden_dim and
    # output_dim (published where the task is given), or two as wide as the features, which are
    # added to the output (published for prediction over all classes)
    hidden_dim: int | None = None  # vdfd, bottleneck; None: a sixteenth of the features
    output_dim: int | None = None  # vdfd, bottleneck; None: an eighth of the features
    quadratic_form: Literal["regularised", "published"] = "regularised"  # vdfd: with epsilon, or
    # (as published) without it
    old_tasks: Literal["all", "published"] = "all"  # vdfd: summed over; published (one head for all
    # classes): the last one alone, its quadratic form times the square of their number


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Weights of the continual losses; names as in the papers' tables."""

    recipe: Literal["detached", "stagewise"] = "detached"  # pmi: local losses with a head trained
    # on detached features, or (as published) stage-wise unfreezing and balanced head tuning
    combine: Literal["sum", "product"] = "sum"  # pmi, stagewise: relation and head terms
    ce_weight: float = 0.75  # lambda_ce: cross-entropy on new classes only
    hkd_weight: float = 0.15  # lambda_hkd: L1 between old and new logits of synthetic images
    rkd_weight: float = 0.5  # lambda_rkd: angles between triples of real features
    ft_weight: float = 1.5  # lambda_ft: cross-entropy over all classes on detached features
    adaptive: bool = True  # scale the four by the numbers of new and old classes (R-DFCIL)
    lwf_weight: float = 1.0  # lwf, deep_inversion: soft cross-entropy to the teacher
    lwf_temperature: float = 2.0  # lwf, deep_inversion
    abd_weight: float = 0.1  # abd, pmi detached: feature distillation through the old head
    joint_weight: float = 0.0  # pmi detached: of cross-entropy over all seen classes, backbone only
    head_epochs: float = 0.1  # pmi: share of epochs that train the new head only
    last_block_epochs: float = 0.1  # pmi: share of epochs that also train the last block
    tuning_epochs: float = 0.2  # pmi, r_dfcil: share of epochs that tune all heads at the end
    body_learning_rate: float = 0.05  # pmi: of the phase that trains the backbone
    tuning_learning_rate: float = 0.005  # pmi, r_dfcil: of head tuning
    background: Literal["unbiased", "plain"] = "unbiased"  # segmentation: a pixel labelled
    # background is of it or of any old class (MiB), or of it alone
    vdfd: VdfdConfig = VdfdConfig()
