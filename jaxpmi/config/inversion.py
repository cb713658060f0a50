"""What is synthesised from a network, and how."""

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
class CfsConfig(Settings):
    """Class-wise contrastive feature models and the sampler that uses them (CFS).

    Attributes:
      num_blocks: Linear - BatchNorm - LeakyReLU blocks.
      learning_rate: of Adam.
      num_epochs: passes over a class's features.
      batch_size: features per step.
      temperature: tau of the uniformity loss.
      num_rounds: P: rounds in which features are drawn.
      keep_rate: share of a round's candidates that are kept.
      oversampling: features drawn per feature used, which are a random choice of them; published
        for CLIP: 20 or 50, for 5 images per class.
      moment_match: of drawn features to those of their class; published: misses the mean wherever
        the deviation has to be corrected.
    """

    num_blocks: Annotated[int, AtLeast(1)] = 2
    learning_rate: Annotated[float, Positive] = 1e-2
    num_epochs: Annotated[int, AtLeast(1)] = 50
    batch_size: Annotated[int, AtLeast(1)] = 64
    temperature: Annotated[float, Positive] = 1.0
    num_rounds: Annotated[int, AtLeast(1)] = 40
    keep_rate: Annotated[float, PositiveFraction] = 0.5
    oversampling: Annotated[int, AtLeast(1)] = 1
    moment_match: Literal["sound", "published", "none"] = "sound"


@dataclasses.dataclass(frozen=True)
class PerLayerConfig(Settings):
    """Per-layer model inversion: Adam on each block's input, last block first.

    Attributes:
      start: each block's input before Adam: the closed-form linear inverse of the block; Gaussian
        with the block input's moments (as published); or no per-layer phase at all, the full model
        starts from noise, as it always does with method="deep_inversion".
      inverse_rank: directions of what the pooled features lose, for start="inverse".
      residual_scale: of the draw along these directions.
      noise_scale: of the white noise added for what neither explains.
      num_steps: Adam steps per block after the start.
      learning_rate: Adam, in units of the block's input.
      statistics_weight: of layer statistics and of block-input statistics.
      block_statistics: source of the block-input moments: real data of the tasks, a data-free
        estimate, or (as published) the affine parameters of the last BatchNorm before the block.
      boost_weights: double a term's weight while it exceeds its first value.
      coarse_to_fine_steps: Adam steps of the last block to be inverted, from a 2 x 2 grid of its
        input upwards; 0: like every other block.
      coarse_to_fine_iterate: what goes on; last: as published.
      search_learning_rates: multipliers tried for every batch and block.
      search_statistics_weights: multipliers tried with them.
    """

    start: Literal["inverse", "gaussian", "noise"] = "inverse"
    inverse_rank: Annotated[int, AtLeast(1)] = 32
    residual_scale: Annotated[float, NonNegative] = 0.5
    noise_scale: Annotated[float, NonNegative] = 0.0
    num_steps: Annotated[int, NonNegative] = 0
    learning_rate: Annotated[float, Positive] = 0.1
    statistics_weight: Annotated[float, NonNegative] = 25.0
    block_statistics: Literal["measured", "propagated", "affine"] = "measured"
    boost_weights: bool = True
    coarse_to_fine_steps: Annotated[int, NonNegative] = 0
    coarse_to_fine_iterate: Literal["best", "last"] = "best"
    search_learning_rates: Annotated[tuple[float, ...], Positive] = ()
    search_statistics_weights: Annotated[tuple[float, ...], Positive] = ()


@dataclasses.dataclass(frozen=True)
class FullModelConfig(Settings):
    """Full-model inversion: Adam on the images through the whole network.

    Attributes:
      num_steps: Adam steps.
      learning_rate: Adam, peak, in normalised pixel units.
      warmup_steps: linear warm-up.
      schedule: after warm-up; step: halved at 1/2 and 3/4.
      schedule_steps: its length; None: num_steps. Published for CLIP: 2000, of which 600 are run,
        so that a cosine ends at 79 % of the peak.
      iterate: images that are returned; last: published for CLIP.
      feature_weight: of the squared error to the sampled target features.
      cross_entropy_weight: of the intended label under the old network.
      statistics_weight: of all layers' statistics.
      pixel_statistics_weight: of per-pixel moments, measured on real data.
      total_variation_weight: of differences of neighbouring pixels.
      total_variation_norm: l1: their mean absolute value; l2: their root of the sum of squares over
        an image, as published for CLIP.
      spectrum_weight: of the distance to the power spectrum of real images.
      histogram_weight: of the distance to the histogram of real pixel values; if not 0, the images
        are also given exactly that histogram at the end.
      jitter_pixels: random cyclic shift of the batch before every step.
      clip_pixels: keep pixels in the valid range; patch embeddings have none.
      boost_weights: double a term's weight while it exceeds its first value.
      own_terms: more terms of the loss, each `module:function=weight`; see `OwnTerm`.
    """

    num_steps: Annotated[int, AtLeast(1)] = 60
    learning_rate: Annotated[float, Positive] = 0.1
    warmup_steps: Annotated[int, NonNegative] = 5
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_steps: Annotated[int | None, AtLeast(1)] = None
    iterate: Literal["best", "last"] = "best"
    feature_weight: Annotated[float, NonNegative] = 1.0
    cross_entropy_weight: Annotated[float, NonNegative] = 0.0
    statistics_weight: Annotated[float, NonNegative] = 0.25
    pixel_statistics_weight: Annotated[float, NonNegative] = 0.0
    total_variation_weight: Annotated[float, NonNegative] = 0.0
    total_variation_norm: Literal["l1", "l2"] = "l1"
    spectrum_weight: Annotated[float, NonNegative] = 0.0
    histogram_weight: Annotated[float, NonNegative] = 0.0
    jitter_pixels: Annotated[int, NonNegative] = 0
    clip_pixels: bool = True
    boost_weights: bool = True
    own_terms: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class InversionConfig(Settings):
    """What is synthesised before a task, and how.

    Attributes:
      space: what a sample is: an image, or (CLIP only; as published) f32[h, w, D], the output of
        the patch embedding, 0.6 MB with ViT-B/16.
      targets: features drawn by CFS, drawn from the class Gaussians, or no features: the label's
        cross-entropy alone.
      covariance: of the class Gaussians.
      base_images: images for every later task, plus ...
      images_per_task: ... this many per task learned so far.
      batch_size: images inverted together; their statistics are matched as one batch.
      per_layer: the per-layer phase.
      full_model: the full-model phase after it.
    """

    space: Literal["pixels", "patch_embeddings"] = "pixels"
    targets: Literal["cfs", "gaussian", "label"] = "cfs"
    covariance: Literal["diagonal", "full"] = "full"
    base_images: Annotated[int, NonNegative] = 0
    images_per_task: Annotated[int, NonNegative] = 240
    batch_size: Annotated[int, AtLeast(1)] = 240
    per_layer: PerLayerConfig = PerLayerConfig()
    full_model: FullModelConfig = FullModelConfig()

    @property
    def first_block(self) -> int:
        """The block whose inputs are synthesised and replayed; those before it are not inverted."""
        return ("pixels", "patch_embeddings").index(self.space)


@dataclasses.dataclass(frozen=True)
class DeepInversionConfig(Settings):
    """DeepInversion and, against a student, Adaptive DeepInversion; `competition_weight` tells.

    Attributes:
      batch_size: images inverted together; statistics and several terms depend on it.
      stage_scales: per stage, by how much the views are averaged down; 2 before 1: first at half
        the resolution. The images themselves keep theirs.
      stage_steps: Adam steps per stage; each starts Adam afresh.
      parameters: what Adam moves: pixels, as published; or Fourier coefficients weighted as in
        photographs, which needs far fewer steps, and whose images keep to valid pixels without
        clip_pixels.
      learning_rate: Adam, peak, in normalised pixel units, or of coefficients; 0: nothing
        moves, and the losses are those of the start.
      adam_betas: decay rates of Adam's first and second moments.
      warmup_steps: linear, at the start of every stage.
      schedule: after warm-up.
      cross_entropy_weight: of the intended label.
      statistics_weight: of the distance to BatchNorm's running moments.
      first_statistics_factor: on the first BatchNorm's share of it.
      statistics_distance: in the units of layer inputs, as published; or in stored deviations, so
        that all layers and channels count alike.
      statistics_scope: batch whose moments are compared: the whole one, or (as published) the share
        of each device.
      total_variation_weight: of differences of neighbouring pixels.
      total_variation_norm: l1: mean absolute difference; l2: mean over images and channels of the
        Euclidean norm; batch_l2: the norm over the whole batch, as published, which grows with the
        root of its size.
      total_variation_view: images it is taken of.
      pixel_norm_weight: of the images' Euclidean norm, in normalised pixel units.
      pixel_norm: Euclidean norm: mean over images (published for ImageNet), or of the whole batch
        (for CIFAR).
      competition_weight: of disagreement with the student (ADI).
      competition: 1 - JS divergence; 1 minus the published code's, clamped; or minus the code's,
        unclamped (the port in CMI's benchmark).
      competition_temperature: of both softmaxes in that disagreement.
      detach_student: no gradient through the student.
      jitter_pixels: cyclic shift of the batch before every step, at full resolution.
      flip: mirror the batch in every other step; keep off for digits.
      crop_scale: area of a random part of every view that is resized to a whole one, by itself for
        every image; None: all of it, as published.
      clip_pixels: keep pixels in the valid range.
      iterate: of a stage; goes on to the next one.
      compare_stages: the best iterate of all stages, as published; stages differ in loss, so that
        may be one of low resolution.
      forward_precision: statistics are always float32.
      own_terms: more terms of the loss, each `module:function=weight`; see `OwnTerm`.
    """

    batch_size: Annotated[int, AtLeast(1)] = 256
    stage_scales: Annotated[tuple[int, ...], AtLeast(1)] = (1,)
    stage_steps: Annotated[tuple[int, ...], AtLeast(1)] = (2000,)
    parameters: Literal["pixels", "spectrum"] = "pixels"
    learning_rate: Annotated[float, NonNegative] = 0.1
    adam_betas: Annotated[tuple[float, float], FractionBelowOne] = (0.9, 0.999)
    warmup_steps: Annotated[int, NonNegative] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    cross_entropy_weight: Annotated[float, NonNegative] = 1.0
    statistics_weight: Annotated[float, NonNegative] = 10.0
    first_statistics_factor: Annotated[float, NonNegative] = 1.0
    statistics_distance: Literal["absolute", "relative"] = "absolute"
    statistics_scope: Literal["global", "device"] = "global"
    total_variation_weight: Annotated[float, NonNegative] = 2.5e-5
    total_variation_norm: Literal["l1", "l2", "batch_l2"] = "batch_l2"
    total_variation_view: Literal["augmented", "plain"] = "augmented"
    pixel_norm_weight: Annotated[float, NonNegative] = 0.0
    pixel_norm: Literal["image", "batch"] = "image"
    competition_weight: Annotated[float, NonNegative] = 0.0
    competition: Literal["paper", "reference", "negative"] = "paper"
    competition_temperature: Annotated[float, Positive] = 3.0
    detach_student: bool = False
    jitter_pixels: Annotated[int, NonNegative] = 2
    flip: bool = False
    crop_scale: Annotated[tuple[float, float] | None, PositiveFraction] = None
    clip_pixels: bool = True
    iterate: Literal["best", "last"] = "best"
    compare_stages: bool = False
    forward_precision: Literal["float32", "bfloat16"] = "float32"
    own_terms: tuple[str, ...] = ()
