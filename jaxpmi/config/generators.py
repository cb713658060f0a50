"""Image generators: of ABD and R-DFCIL, of CMI and FastDFKD."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import FractionBelowOne
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import Positive
from jaxpmi.config.ranges import PositiveFraction
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(Settings):
    """The image generator of ABD and R-DFCIL.

    Attributes:
      latent_dim: size of the noise vector.
      channels: of its three convolution stages.
      num_steps: Adam steps per task.
      batch_size: images per step.
      learning_rate: of Adam.
    """

    latent_dim: Annotated[int, AtLeast(1)] = 100
    channels: Annotated[tuple[int, int, int], AtLeast(1)] = (32, 32, 16)
    num_steps: Annotated[int, AtLeast(1)] = 600
    batch_size: Annotated[int, AtLeast(1)] = 64
    learning_rate: Annotated[float, Positive] = 1e-3


@dataclasses.dataclass(frozen=True)
class CmiConfig(Settings):
    """Contrastive model inversion (CMI), and FastDFKD, which learns to start it.

    Attributes:
      batch_size: images per call.
      num_steps: steps of generator, latents and projection head per call.
      latent_dim: size of the generator's noise vector.
      channels: of the generator's three stages.
      generator_start: cmi: in every call drawn anew, as published, or as the call before ended,
        which needs far fewer steps for the same loss.
      learning_rate: Adam: generator, latents, projection head; 0: they stay as they start.
      latent_learning_rate: of latents; None: learning_rate.
      projection_dim: of the head's output.
      bank_size: images whose statistics are remembered; a multiple of batch_size.
      num_negatives: of them drawn per step, fewer while fewer are there.
      temperature: of the contrastive loss.
      statistics_weight: of the distance to BatchNorm's running moments.
      cross_entropy_weight: of the intended label.
      adversarial_weight: of disagreement with the student.
      contrastive_weight: of the contrastive loss.
      crop_padding: of the global view.
      local_scale: area of the local view, as a share.
      flip: mirror views at random; keep off for digits.
      meta_learning: fast_dfkd: how the generator's start is learned, by the gradients of all steps
        of a call or by where they led.
      statistics_momentum: fast_dfkd: share of earlier calls in the statistics.
      adversarial_warmup_calls: fast_dfkd: the first call with the adversarial term.
      reset_call: fast_dfkd: calls later, at which its first layer is drawn anew.
    """

    batch_size: Annotated[int, AtLeast(1)] = 256
    num_steps: Annotated[int, AtLeast(1)] = 200
    latent_dim: Annotated[int, AtLeast(1)] = 256
    channels: Annotated[tuple[int, int, int], AtLeast(1)] = (128, 128, 64)
    generator_start: Literal["fresh", "last"] = "fresh"
    learning_rate: Annotated[float, NonNegative] = 1e-3
    latent_learning_rate: Annotated[float | None, NonNegative] = None
    projection_dim: Annotated[int, AtLeast(1)] = 256
    bank_size: Annotated[int, AtLeast(1)] = 40_960
    num_negatives: Annotated[int, AtLeast(1)] = 4096
    temperature: Annotated[float, Positive] = 0.1
    statistics_weight: Annotated[float, NonNegative] = 1.0
    cross_entropy_weight: Annotated[float, NonNegative] = 1.0
    adversarial_weight: Annotated[float, NonNegative] = 0.5
    contrastive_weight: Annotated[float, NonNegative] = 0.8
    crop_padding: Annotated[int, NonNegative] = 4
    local_scale: Annotated[tuple[float, float], PositiveFraction] = (0.25, 1.0)
    flip: bool = False
    meta_learning: Literal["fomaml", "reptile"] = "fomaml"
    statistics_momentum: Annotated[float, FractionBelowOne] = 0.9
    adversarial_warmup_calls: Annotated[int, NonNegative] = 20
    reset_call: Annotated[int, NonNegative] = 120
