"""What is synthesised from a network, and how."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import Positive
from jaxpmi.config.ranges import PositiveFraction
from jaxpmi.config.settings import Settings


@dataclasses.dataclass(frozen=True)
class CfsConfig(Settings):
    """Class-wise contrastive feature models and the sampler that uses them (CFS).

    Attributes:
      learning_rate: of Adam.
      num_epochs: passes over a class's features.
      num_rounds: P: rounds in which features are drawn.
      keep_rate: share of a round's candidates that are kept.
      oversampling: features drawn per feature used, which are a random choice of them; published
        for CLIP: 20 or 50, for 5 images per class.
    """

    learning_rate: Annotated[float, Positive] = 1e-2
    num_epochs: Annotated[int, AtLeast(1)] = 50
    num_rounds: Annotated[int, AtLeast(1)] = 40
    keep_rate: Annotated[float, PositiveFraction] = 0.5
    oversampling: Annotated[int, AtLeast(1)] = 1


@dataclasses.dataclass(frozen=True)
class PerLayerConfig(Settings):
    """Per-layer model inversion: Adam on each block's input, last block first.

    Attributes:
      start: each block's input before Adam: the closed-form linear inverse of the block, and at the
        end a layout drawn for the class in place of the image's own at few pixels (layout); the
        inverse alone; Gaussian with the block input's moments (as published); or no per-layer phase
        at all, the full model starts from noise, as it always does with method="deep_inversion".
      num_steps: Adam steps per block after the start.
      learning_rate: Adam, in units of the block's input.
      statistics_weight: of layer statistics and of block-input statistics.
      block_statistics: source of the block-input moments: real data of the tasks, a data-free
        estimate, or (as published) the affine parameters of the last BatchNorm before the block.
      coarse_to_fine_steps: Adam steps of the last block to be inverted, from a 2 x 2 grid of its
        input upwards; 0: like every other block.
    """

    start: Literal["layout", "inverse", "gaussian", "noise"] = "layout"
    num_steps: Annotated[int, NonNegative] = 0
    learning_rate: Annotated[float, Positive] = 0.1
    statistics_weight: Annotated[float, NonNegative] = 25.0
    block_statistics: Literal["measured", "propagated", "affine"] = "measured"
    coarse_to_fine_steps: Annotated[int, NonNegative] = 0

    @property
    def is_linear(self) -> bool:
        """Whether blocks are inverted by linear inverses, fitted to data."""
        return self.start in ("layout", "inverse")


@dataclasses.dataclass(frozen=True)
class FullModelConfig(Settings):
    """Full-model inversion: Adam on the images through the whole network.

    Attributes:
      num_steps: Adam steps.
      learning_rate: Adam, peak, in normalised pixel units.
      cross_entropy_weight: of the intended label under the old network.
      statistics_weight: of all layers' statistics.
      total_variation_weight: of differences of neighbouring pixels.
      pixel_statistics_weight: of the distances to two statistics of real images: the power spectrum
        and the histogram of values, of every channel and, in colour, of brightness and differences
        of channels; if not 0, the images are also given the channels' histograms at the end.
      views: what the network sees in every step: the images as they are (still); all shifted by up
        to 2 pixels, cyclically (shifted); these, mirrored in every other step (flipped; keep off
        where it changes the class, as of digits).
      own_terms: more terms of the loss, each `module:function=weight`; see `OwnTerm`.
    """

    num_steps: Annotated[int, AtLeast(1)] = 60
    learning_rate: Annotated[float, Positive] = 0.1
    cross_entropy_weight: Annotated[float, NonNegative] = 0.0
    statistics_weight: Annotated[float, NonNegative] = 0.25
    total_variation_weight: Annotated[float, NonNegative] = 0.0
    pixel_statistics_weight: Annotated[float, NonNegative] = 0.0
    views: Literal["still", "shifted", "flipped"] = "still"
    own_terms: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class InversionConfig(Settings):
    """What is synthesised before a task, and how.

    Attributes:
      variant: standard: ours, of images whose pixels are clipped, with full class Gaussians;
        resnet: as published for ResNets, with diagonal Gaussians, the learning rate of refinement
        halved at 1/2 and 3/4; published_resnet: the same with pixels not clipped;
        published_clip: as published for CLIP: samples are f32[h, w, D], the outputs of the patch
        embedding, 0.6 MB with ViT-B/16; last iterates, no boosted weights.
      targets: features drawn by CFS, drawn from the class Gaussians, or no features: the label's
        cross-entropy alone. Features are matched with a weight of 1, to which all others relate.
      base_images: images for every later task, plus ...
      images_per_task: ... this many per task learned so far.
      batch_size: images inverted together; their statistics are matched as one batch.
      per_layer: the per-layer phase.
      full_model: the full-model phase after it. With method="bootstrapped_pmi" its steps and
        learning rate are those of all batches but the first; the loss is DeepInversion's.
    """

    variant: Literal["standard", "resnet", "published_resnet", "published_clip"] = "standard"
    targets: Literal["cfs", "gaussian", "label"] = "cfs"
    base_images: Annotated[int, NonNegative] = 0
    images_per_task: Annotated[int, NonNegative] = 240
    batch_size: Annotated[int, AtLeast(1)] = 240
    per_layer: PerLayerConfig = PerLayerConfig()
    full_model: FullModelConfig = FullModelConfig()


@dataclasses.dataclass(frozen=True)
class DeepInversionConfig(Settings):
    """DeepInversion and, against a student, Adaptive DeepInversion; `competition_weight` tells.

    Attributes:
      batch_size: images inverted together; statistics and several terms depend on it.
      variant: standard: the published constants for CIFAR, with the paper's terms and the best
        iterate; few_steps: for about a hundred steps, with a warm-up of 5 and a cosine, and
        differences of neighbours as their mean absolute value; photographs: Fourier coefficients in
        place of pixels, and every view cropped, for a few hundred; published_cifar and
        published_imagenet: the released code; published_cmi: the port in CMI's benchmark.
      stage_steps: Adam steps per stage; each starts Adam afresh. Views are averaged down by a
        factor of 1 in the last stage, of 2 in the one before, and so on; images keep their size.
      learning_rate: Adam, peak, in normalised pixel units, or of coefficients; 0: nothing
        moves, and the losses are those of the start.
      cross_entropy_weight: of the intended label.
      statistics_weight: of the distance to BatchNorm's running moments.
      statistics_distance: in the units of layer inputs, as published; or in stored deviations, so
        that all layers and channels count alike.
      total_variation_weight: of differences of neighbouring pixels.
      competition_weight: of disagreement with the student (ADI).
      jitter_pixels: cyclic shift of the batch before every step, at full resolution.
      flip: mirror the batch in every other step; keep off for digits.
      own_terms: more terms of the loss, each `module:function=weight`; see `OwnTerm`.
    """

    batch_size: Annotated[int, AtLeast(1)] = 256
    variant: Literal[
        "standard",
        "few_steps",
        "photographs",
        "published_cifar",
        "published_imagenet",
        "published_cmi",
    ] = "standard"
    stage_steps: Annotated[tuple[int, ...], AtLeast(1)] = (2000,)
    learning_rate: Annotated[float, NonNegative] = 0.1
    cross_entropy_weight: Annotated[float, NonNegative] = 1.0
    statistics_weight: Annotated[float, NonNegative] = 10.0
    statistics_distance: Literal["absolute", "relative"] = "absolute"
    total_variation_weight: Annotated[float, NonNegative] = 2.5e-5
    competition_weight: Annotated[float, NonNegative] = 0.0
    jitter_pixels: Annotated[int, NonNegative] = 2
    flip: bool = False
    own_terms: tuple[str, ...] = ()
