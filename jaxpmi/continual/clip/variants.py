"""What a variant of continual learning with CLIP means: one name in the config, one row here."""

import dataclasses
from types import MappingProxyType
from typing import Literal

from jaxpmi.features.projection import Pivot


@dataclasses.dataclass(frozen=True)
class ClipVariant:
    """How a CLIP run describes, teaches and names its classes (docs/methods/clip.md).

    Attributes:
      statistics_axis: per what moments of layer inputs are kept; token: per position in the
        sequence.
      layer_statistics: network in which they are measured: the one just trained, or the one before
        the task.
      merge_head_statistics: over tasks; if not, the moments of the last block's input stay those of
        the first task.
      refresh_old_classes: describe old classes anew by their synthetic images after every task; if
        not, they stay as they were when their images were there.
      teacher_texts: text features in the teacher's logits: its own, or the student's, through which
        gradients then flow.
      schedule: to 0, or to 1.6 % of the peak, cos(99 pi t / 200).
      schedule_epochs: its length; None: all epochs. Beyond it a cosine rises again, and a quarter
        cosine is negative.
      name_average: a feature of a class known by its name is the mean of one draw from each
        neighbour; if not, single draws, which are more varied but lie farther from the class.
      name_pivot: what is rotated to the new name: a neighbour's text feature, or the mean of its
        image features.
      name_match: what inversion aims at: features as long as those of seen classes, or unit
        features, whatever their length.
    """

    statistics_axis: Literal["channel", "token"] = "channel"
    layer_statistics: Literal["trained", "previous"] = "trained"
    merge_head_statistics: bool = True
    refresh_old_classes: bool = False
    teacher_texts: Literal["frozen", "live"] = "frozen"
    schedule: Literal["cosine", "quarter_cosine"] = "cosine"
    schedule_epochs: int | None = None
    name_average: bool = True
    name_pivot: Pivot = "text"
    name_match: Literal["features", "directions"] = "directions"


CLIP_VARIANTS = MappingProxyType(
    {
        "standard": ClipVariant(
            refresh_old_classes=True,
            name_average=False,
            name_pivot="image_mean",
            name_match="features",
        ),
        "corrected": ClipVariant(),
        "published": ClipVariant(
            statistics_axis="token",
            layer_statistics="previous",
            merge_head_statistics=False,
            teacher_texts="live",
            schedule="quarter_cosine",
            schedule_epochs=3,
        ),
    }
)
"""As `ClipConfig.variant` names them; "published" is the code of Tong et al., NeurIPS 2025, and
"corrected" that without what we take for its mistakes."""
