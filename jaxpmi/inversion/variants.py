"""What a variant of an inversion means: one name in a config, one row of a table here.

A row says how a method proceeds beside its numbers of steps, learning rates and weights, which are
settings. Code that needs another combination passes a row of its own.
"""

import dataclasses
from types import MappingProxyType
from typing import Literal

from jaxpmi.config import InversionConfig


@dataclasses.dataclass(frozen=True)
class InversionVariant:
    """How PMI and the refinement after it proceed (docs/methods/pmi.md, docs/methods/clip.md).

    Attributes:
      first_block: the block whose inputs are synthesised and replayed; those before it are not
        inverted. 0: images; 1: the output of a transformer's patch embedding.
      covariance: of the class Gaussians.
      inverse_rank: of linear block inverses: directions of what the pooled features lose.
      residual_scale: of the draw along these directions.
      noise_scale: of the white noise added for what neither explains.
      boost_weights: double a term's weight while it exceeds its first value.
      iterate: that refinement, and every grid of coarse to fine, ends with.
      warmup_steps: of refinement, linear.
      schedule: of refinement, after warm-up; step: halved at 1/2 and 3/4.
      schedule_steps: its length; None: as many steps as are taken.
      total_variation_norm: l1: mean absolute difference; l2: root of the sum of squares per image.
      clip_pixels: keep pixels in the valid range.
    """

    first_block: int = 0
    covariance: Literal["diagonal", "full"] = "full"
    inverse_rank: int = 32
    residual_scale: float = 0.5
    noise_scale: float = 0.0
    boost_weights: bool = True
    iterate: Literal["best", "last"] = "best"
    warmup_steps: int = 5
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_steps: int | None = None
    total_variation_norm: Literal["l1", "l2"] = "l1"
    clip_pixels: bool = True


_RESNET = InversionVariant(covariance="diagonal", schedule="step")
INVERSION_VARIANTS = MappingProxyType(
    {
        "standard": InversionVariant(),
        "resnet": _RESNET,
        "published_resnet": dataclasses.replace(_RESNET, clip_pixels=False),
        "published_clip": InversionVariant(
            first_block=1,
            covariance="diagonal",
            boost_weights=False,
            iterate="last",
            warmup_steps=0,
            schedule_steps=2000,  # of which 600 are taken, so that it ends at 79 % of the peak
            total_variation_norm="l2",
            clip_pixels=False,
        ),
    }
)
"""As `InversionConfig.variant` names them; "published" is the code of Tong et al., NeurIPS 2025."""


def inversion_variant(config: InversionConfig) -> InversionVariant:
    """The row that a config names."""
    return INVERSION_VARIANTS[config.variant]


def uses_layouts(config: InversionConfig, variant: InversionVariant) -> bool:
    """Whether per-layer inversion ends with images that are given a layout of their class."""
    return config.per_layer.start == "layout" and variant.first_block == 0


@dataclasses.dataclass(frozen=True)
class DeepInversionVariant:
    """How DeepInversion proceeds (docs/methods/deep_inversion.md).

    Attributes:
      parameters: what Adam moves: pixels, or Fourier coefficients weighted as in photographs, whose
        images keep to valid pixels without being clipped.
      adam_betas: decay rates of Adam's first and second moments.
      warmup_steps: linear, at the start of every stage.
      schedule: after warm-up.
      first_statistics_factor: on the first BatchNorm's share of the statistics.
      statistics_scope: batch whose moments are compared: the whole one, or each device's share.
      total_variation_norm: l1: mean absolute difference; l2: mean over images and channels of the
        Euclidean norm; batch_l2: the norm over the whole batch, which grows with the root of its
        size.
      total_variation_view: images it is taken of: the random views, or the images themselves.
      pixel_norm: Euclidean norm: mean over images, or of the whole batch.
      pixel_norm_weight: of that norm, in normalised pixel units.
      competition: paper: 1 - JS divergence; reference: 1 minus the code's, clamped; negative: minus
        the code's.
      crop_scale: area of a random part of every view that is resized to a whole one; None: all.
      clip_pixels: keep pixels in the valid range.
      iterate: of a stage; goes on to the next one.
      compare_stages: keep the best iterate of all stages; stages differ in loss.
      forward_precision: of both networks; statistics are always float32.
    """

    parameters: Literal["pixels", "spectrum"] = "pixels"
    adam_betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    first_statistics_factor: float = 1.0
    statistics_scope: Literal["global", "device"] = "global"
    total_variation_norm: Literal["l1", "l2", "batch_l2"] = "batch_l2"
    total_variation_view: Literal["augmented", "plain"] = "augmented"
    pixel_norm: Literal["image", "batch"] = "image"
    pixel_norm_weight: float = 0.0
    competition: Literal["paper", "reference", "negative"] = "paper"
    crop_scale: tuple[float, float] | None = None
    clip_pixels: bool = True
    iterate: Literal["best", "last"] = "best"
    compare_stages: bool = False
    forward_precision: Literal["float32", "bfloat16"] = "float32"


DEEP_INVERSION_VARIANTS = MappingProxyType(
    {
        "standard": DeepInversionVariant(),
        "few_steps": DeepInversionVariant(
            warmup_steps=5, schedule="cosine", total_variation_norm="l1"
        ),
        "photographs": DeepInversionVariant(
            parameters="spectrum",
            warmup_steps=5,
            schedule="cosine",
            first_statistics_factor=10.0,
            crop_scale=(0.25, 1.0),
        ),
        "published_cifar": DeepInversionVariant(
            statistics_scope="device",
            pixel_norm="batch",
            competition="reference",
            clip_pixels=False,
            iterate="last",
        ),
        "published_imagenet": DeepInversionVariant(
            adam_betas=(0.5, 0.9),
            warmup_steps=100,
            schedule="cosine",
            first_statistics_factor=10.0,
            statistics_scope="device",
            pixel_norm_weight=1e-5,
            competition="reference",
            compare_stages=True,
        ),
        "published_cmi": DeepInversionVariant(
            adam_betas=(0.5, 0.99),
            total_variation_norm="l1",
            total_variation_view="plain",
            competition="negative",
        ),
    }
)
"""As `DeepInversionConfig.variant` names them; "published" are the code of Yin et al., CVPR 2020,
for CIFAR-10 and for ImageNet, and the port in the benchmark of CMI."""


@dataclasses.dataclass(frozen=True)
class CmiVariant:
    """How CMI and FastDFKD make a batch (docs/methods/cmi.md).

    Attributes:
      latent_dim: size of the generator's noise vector.
      channels: of its three stages.
      keeps_generator: cmi: a call goes on with the generator of the one before.
      latent_rate_factor: learning rate of the latents, relative to that of all else.
      projection_dim: of the projection head's output.
      num_negatives: remembered images drawn per step, fewer while fewer are there.
      temperature: of the contrastive loss.
      crop_padding: of the global view.
      local_scale: area of the local view, as a share.
      statistics_momentum: fast_dfkd: share of earlier calls in the statistics.
      adversarial_warmup_calls: fast_dfkd: the first call with the adversarial term.
      reset_call: fast_dfkd: calls later, at which its first layer is drawn anew.
    """

    latent_dim: int = 256
    channels: tuple[int, int, int] = (128, 128, 64)
    keeps_generator: bool = False
    latent_rate_factor: float = 1.0
    projection_dim: int = 256
    num_negatives: int = 4096
    temperature: float = 0.1
    crop_padding: int = 4
    local_scale: tuple[float, float] = (0.25, 1.0)
    statistics_momentum: float = 0.9
    adversarial_warmup_calls: int = 20
    reset_call: int = 120


CMI_VARIANTS = MappingProxyType(
    {
        "published": CmiVariant(),
        "small": CmiVariant(
            latent_dim=64,
            channels=(32, 32, 16),
            keeps_generator=True,
            latent_rate_factor=5.0,
            projection_dim=64,
            num_negatives=256,
        ),
    }
)
"""As `CmiConfig.variant` names them; "published" is CMI's and FastDFKD's code for CIFAR."""
