"""CLIP: pretraining, prompts, adapters, classes with only a name."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import Fraction
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import Positive
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class ClipTrainConfig(Settings):
    """Training of CLIP's adapters on one task; defaults are the published ones for CIFAR-100.

    Attributes:
      epochs: passes over the task's real images.
      batch_size: real images per step.
      replay_batch_size: synthetic images per step, beside the real ones.
      learning_rate: AdamW, peak.
      weight_decay: AdamW.
      warmup_steps: linear, before the schedule.
      schedule: to 0, or as published in a later copy to 1.6 % of the peak, cos(99 pi t / 200).
      schedule_epochs: its length, of name-only training as well; None: all epochs. Published: 3,
        after which a cosine rises again and a quarter cosine is negative.
      ce_weight: lambda_ce: cross-entropy on new classes only.
      hkd_weight: lambda_hkd: L1 between old and new logits of synthetic images.
      tkd_weight: lambda_tkd: L1 between old and new text features of old classes.
      ft_weight: lambda_ft, not scaled: cross-entropy over all classes, texts only.
      joint_weight: the same for the image tower alone; not published.
      teacher_texts: text features in the teacher's logits: its own, or (as published) the
        student's, through which gradients then flow.
    """

    epochs: Annotated[int, AtLeast(1)] = 3
    batch_size: Annotated[int, AtLeast(1)] = 64
    replay_batch_size: Annotated[int, AtLeast(1)] = 64
    learning_rate: Annotated[float, Positive] = 1e-3
    weight_decay: Annotated[float, NonNegative] = 0.0
    warmup_steps: Annotated[int, NonNegative] = 30
    schedule: Literal["cosine", "quarter_cosine"] = "cosine"
    schedule_epochs: Annotated[int | None, AtLeast(1)] = None
    ce_weight: Annotated[float, NonNegative] = 1.0
    hkd_weight: Annotated[float, NonNegative] = 0.1
    tkd_weight: Annotated[float, NonNegative] = 0.2
    ft_weight: Annotated[float, NonNegative] = 0.001
    joint_weight: Annotated[float, NonNegative] = 0.0
    teacher_texts: Literal["frozen", "live"] = "frozen"


@dataclasses.dataclass(frozen=True)
class ClipPretrainingConfig(Settings):
    """Contrastive training of a small CLIP on images and captions, before the first task.

    Attributes:
      num_steps: AdamW steps.
      batch_size: pairs of an image and a caption per step.
      learning_rate: AdamW, peak.
      warmup_steps: linear warm-up; then cosine to 0.
      weight_decay: AdamW, of matrices; much of it helps unseen classes.
      crop_padding: black pixels around an image before a random crop; 0: no crop.
    """

    num_steps: Annotated[int, AtLeast(1)] = 2500
    batch_size: Annotated[int, AtLeast(1)] = 64
    learning_rate: Annotated[float, Positive] = 2e-3
    warmup_steps: Annotated[int, NonNegative] = 40
    weight_decay: Annotated[float, NonNegative] = 1.0
    crop_padding: Annotated[int, NonNegative] = 1


@dataclasses.dataclass(frozen=True)
class NameOnlyConfig(Settings):
    """Classes of which only the name is known, learnt last (docs/methods/clip.md).

    Attributes:
      images_per_class: synthetic images; those of all names are inverted as one batch.
      num_neighbours: seen classes whose features are rotated.
      average: mean of one draw from each, as published; else single draws, which are more varied
        but lie farther from the class.
      pivot: what is rotated to the new name: a neighbour's text feature, or the mean of its image
        features (the published alternative).
      text_share: of the class's own text feature in its image features.
      match: what inversion aims at: features as long as those of seen classes, or (as published)
        unit features, whatever their length.
      epochs: passes over these images.
      learning_rate: AdamW, peak.
    """

    images_per_class: Annotated[int, AtLeast(1)] = 20
    num_neighbours: Annotated[int, AtLeast(1)] = 5
    average: bool = True
    pivot: Literal["text", "image_mean"] = "text"
    text_share: Annotated[float, Fraction] = 0.1
    match: Literal["features", "directions"] = "features"
    epochs: Annotated[int, AtLeast(1)] = 10
    learning_rate: Annotated[float, Positive] = 5e-4


@dataclasses.dataclass(frozen=True)
class ClipConfig(Settings):
    """CLIP, with model.name='clip': its weights, its prompts and its adapters.

    Attributes:
      weights: folder or .safetensors file; None: a small CLIP, made in the run.
      pretraining: without weights: how the small CLIP is made.
      pretraining_classes: without weights: classes that it is pretrained on.
      templates: prompts; {} stands for the class name.
      num_experts: per block of both towers.
      adapter_rank: channels of an expert's bottleneck.
      statistics_axis: per what moments of layer inputs are kept; token: per position in the
        sequence, as published.
      layer_statistics: network in which they are measured: the one just trained, or (as published)
        the one before the task.
      merge_head_statistics: over tasks; False: as published, the moments of the last block's input
        stay those of the first task.
      refresh_old_classes: describe old classes anew by their synthetic images after every task, as
        for ResNets; False: as published, as they were when their images were there.
      train: training of the adapters on a task.
      name_only: classes of which only the name is known.
    """

    weights: str | None = None
    pretraining: ClipPretrainingConfig = ClipPretrainingConfig()
    pretraining_classes: Annotated[int, AtLeast(1)] = 20
    templates: tuple[str, ...] = ("a photo of a {}.",)
    num_experts: Annotated[int, AtLeast(1)] = 2
    adapter_rank: Annotated[int, AtLeast(1)] = 64
    statistics_axis: Literal["channel", "token"] = "channel"
    layer_statistics: Literal["trained", "previous"] = "trained"
    merge_head_statistics: bool = True
    refresh_old_classes: bool = False
    train: ClipTrainConfig = ClipTrainConfig()
    name_only: NameOnlyConfig = NameOnlyConfig()
