"""CLIP: pretraining, prompts, adapters, classes with only a name."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ClipTrainConfig:
    """Training of CLIP's adapters on one task; defaults are the published ones for CIFAR-100."""

    epochs: int = 3  # passes over the task's real images
    batch_size: int = 64  # real images per step
    replay_batch_size: int = 64  # synthetic images per step, beside the real ones
    learning_rate: float = 1e-3  # AdamW, peak
    weight_decay: float = 0.0  # AdamW
    warmup_steps: int = 30  # linear, before the schedule
    schedule: Literal["cosine", "quarter_cosine"] = "cosine"  # to 0, or as published in a later
    # copy to 1.6 % of the peak, cos(99 pi t / 200)
    schedule_epochs: int | None = None  # its length, of name-only training as well; None: all
    # epochs. Published: 3, after which a cosine rises again and a quarter cosine is negative
    ce_weight: float = 1.0  # lambda_ce: cross-entropy on new classes only
    hkd_weight: float = 0.1  # lambda_hkd: L1 between old and new logits of synthetic images
    tkd_weight: float = 0.2  # lambda_tkd: L1 between old and new text features of old classes
    ft_weight: float = 0.001  # lambda_ft, not scaled: cross-entropy over all classes, texts only
    joint_weight: float = 0.0  # the same for the image tower alone; not published
    teacher_texts: Literal["frozen", "live"] = "frozen"  # text features in the teacher's logits:
    # its own, or (as published) the student's, through which gradients then flow


@dataclasses.dataclass(frozen=True)
class ClipPretrainingConfig:
    """Contrastive training of a small CLIP on images and captions, before the first task."""

    num_steps: int = 2500  # AdamW steps
    batch_size: int = 64  # pairs of an image and a caption per step
    learning_rate: float = 2e-3  # AdamW, peak
    warmup_steps: int = 40  # linear warm-up; then cosine to 0
    weight_decay: float = 1.0  # AdamW, of matrices; much of it helps unseen classes
    crop_padding: int = 1  # black pixels around an image before a random crop; 0: no crop


@dataclasses.dataclass(frozen=True)
class NameOnlyConfig:
    """Classes of which only the name is known, learnt last (docs/methods/clip.md)."""

    images_per_class: int = 20  # synthetic images; those of all names are inverted as one batch
    num_neighbours: int = 5  # seen classes whose features are rotated
    average: bool = True  # mean of one draw from each, as published; else single draws, which are
    # more varied but lie farther from the class
    pivot: Literal["text", "image_mean"] = "text"  # what is rotated to the new name: a neighbour's
    # text feature, or the mean of its image features (the published alternative)
    text_share: float = 0.1  # of the class's own text feature in its image features
    match: Literal["features", "directions"] = "features"  # what inversion aims at: features as
    # long as those of seen classes, or (as published) unit features, whatever their length
    epochs: int = 10  # passes over these images
    learning_rate: float = 5e-4  # AdamW, peak


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """CLIP, with model.name='clip': its weights, its prompts and its adapters."""

    weights: str | None = None  # folder or .safetensors file; None: a small CLIP, made in the run
    pretraining: ClipPretrainingConfig = ClipPretrainingConfig()  # without weights
    pretraining_classes: int = 20  # without weights: classes that it is pretrained on
    templates: tuple[str, ...] = ("a photo of a {}.",)  # prompts; {} stands for the class name
    num_experts: int = 2  # per block of both towers
    adapter_rank: int = 64  # channels of an expert's bottleneck
    statistics_axis: Literal["channel", "token"] = "channel"  # per what moments of layer inputs
    # are kept; token: per position in the sequence, as published
    layer_statistics: Literal["trained", "previous"] = "trained"  # network in which they are
    # measured: the one just trained, or (as published) the one before the task
    merge_head_statistics: bool = True  # over tasks; False: as published, the moments of the last
    # block's input stay those of the first task
    refresh_old_classes: bool = False  # describe old classes anew by their synthetic images after
    # every task, as for ResNets; False: as published, as they were when their images were there
    train: ClipTrainConfig = ClipTrainConfig()
    name_only: NameOnlyConfig = NameOnlyConfig()
