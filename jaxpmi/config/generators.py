"""Image generators: of ABD and R-DFCIL, of CMI and FastDFKD."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import Positive
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(Settings):
    """The image generator of ABD and R-DFCIL.

    Attributes:
      size: small: 100 latents and (32, 32, 16) channels, for small images; published: 1000 and
        (128, 128, 64).
      num_steps: Adam steps per task.
      batch_size: images per step.
      learning_rate: of Adam.
    """

    size: Literal["small", "published"] = "small"
    num_steps: Annotated[int, AtLeast(1)] = 600
    batch_size: Annotated[int, AtLeast(1)] = 64
    learning_rate: Annotated[float, Positive] = 1e-3


@dataclasses.dataclass(frozen=True)
class CmiConfig(Settings):
    """Contrastive model inversion (CMI), and FastDFKD, which learns to start it.

    Attributes:
      batch_size: images per call.
      variant: published: the generator of the papers, drawn anew in every call of CMI; small: one
        for small images, with which a call goes on where the one before ended, and whose latents
        move five times as fast: far fewer steps for the same loss.
      num_steps: steps of generator, latents and projection head per call.
      learning_rate: Adam: generator, latents, projection head; 0: they stay as they start.
      bank_size: images whose statistics are remembered; a multiple of batch_size.
      statistics_weight: of the distance to BatchNorm's running moments.
      cross_entropy_weight: of the intended label.
      adversarial_weight: of disagreement with the student.
      contrastive_weight: of the contrastive loss.
      flip: mirror views at random; keep off for digits.
    """

    batch_size: Annotated[int, AtLeast(1)] = 256
    variant: Literal["published", "small"] = "published"
    num_steps: Annotated[int, AtLeast(1)] = 200
    learning_rate: Annotated[float, NonNegative] = 1e-3
    bank_size: Annotated[int, AtLeast(1)] = 40_960
    statistics_weight: Annotated[float, NonNegative] = 1.0
    cross_entropy_weight: Annotated[float, NonNegative] = 1.0
    adversarial_weight: Annotated[float, NonNegative] = 0.5
    contrastive_weight: Annotated[float, NonNegative] = 0.8
    flip: bool = False
