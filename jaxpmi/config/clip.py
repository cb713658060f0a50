"""CLIP: pretraining, prompts, classes with only a name."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.places import PLACE
from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import Positive
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class ClipPretrainingConfig(Settings):
    """Contrastive training of a small CLIP on images and captions, before the first task.

    Attributes:
      num_steps: AdamW steps.
      learning_rate: AdamW, peak; cosine to 0.
    """

    num_steps: Annotated[int, AtLeast(1)] = 2500
    learning_rate: Annotated[float, Positive] = 2e-3


@dataclasses.dataclass(frozen=True)
class NameOnlyConfig(Settings):
    """Classes of which only the name is known, learnt last (docs/methods/clip.md).

    Attributes:
      classes: their names; or how many of the data's are drawn from the seed.
      images_per_class: synthetic images; those of all names are inverted as one batch.
      epochs: passes over these images.
      learning_rate: AdamW, peak.
    """

    classes: Annotated[int | tuple[str, ...], NonNegative] = 0
    images_per_class: Annotated[int, AtLeast(1)] = 20
    epochs: Annotated[int, AtLeast(1)] = 10
    learning_rate: Annotated[float, Positive] = 5e-4


@dataclasses.dataclass(frozen=True)
class ClipConfig(Settings):
    """CLIP, with model.name='clip': its weights and prompts; `train` and `losses` hold for it too.

    Attributes:
      weights: folder or .safetensors file; None: a small CLIP, made in the run.
      variant: standard: ours, best for the small CLIP made in the run: old classes are described
        anew after every task; corrected: as published, without what we take for mistakes;
        published: the released code (docs/methods/clip.md has all three).
      pretraining: without weights: how the small CLIP is made.
      pretraining_classes: without weights: classes that it is pretrained on.
      templates: prompts; {} stands for the class name.
      name_only: classes of which only the name is known.
    """

    weights: Annotated[str | None, PLACE] = None
    variant: Literal["standard", "corrected", "published"] = "standard"
    pretraining: ClipPretrainingConfig = ClipPretrainingConfig()
    pretraining_classes: Annotated[int, AtLeast(1)] = 20
    templates: tuple[str, ...] = ("a photo of a {}.",)
    name_only: NameOnlyConfig = NameOnlyConfig()
