"""What is synthesised from a network, and how."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Class-wise contrastive feature models and the sampler that uses them (CFS)."""

    num_blocks: int = 2  # Linear - BatchNorm - LeakyReLU blocks
    learning_rate: float = 1e-2  # Adam
    num_epochs: int = 50  # passes over a class's features
    batch_size: int = 64  # features per step
    temperature: float = 1.0  # tau of the uniformity loss
    num_rounds: int = 40  # P: rounds in which features are drawn
    keep_rate: float = 0.5  # share of a round's candidates that are kept
    oversampling: int = 1  # features drawn per feature used, which are a random choice of them;
    # published for CLIP: 20 or 50, for 5 images per class
    moment_match: Literal["sound", "published", "none"] = "sound"  # of drawn features to those of
    # their class; published: misses the mean wherever the deviation has to be corrected


@dataclasses.dataclass(frozen=True)
class PerLayerConfig:
    """Per-layer model inversion: Adam on each block's input, last block first."""

    start: Literal["inverse", "gaussian", "noise"] = "inverse"  # each block's input before Adam:
    # the closed-form linear inverse of the block; Gaussian with the block input's moments (as
    # published); or no per-layer phase at all, the full model starts from noise, as it always
    # does with method="deep_inversion"
    inverse_rank: int = 32  # directions of what the pooled features lose, for start="inverse"
    residual_scale: float = 0.5  # of the draw along these directions
    noise_scale: float = 0.0  # of the white noise added for what neither explains
    num_steps: int = 0  # Adam steps per block after the start
    learning_rate: float = 0.1  # Adam, in units of the block's input
    statistics_weight: float = 25.0  # of layer statistics and of block-input statistics
    block_statistics: Literal["measured", "propagated", "affine"] = "measured"  # source of the
    # block-input moments: real data of the tasks, a data-free estimate, or (as published) the
    # affine parameters of the last BatchNorm before the block
    boost_weights: bool = True  # double a term's weight while it exceeds its first value
    coarse_to_fine_steps: int = 0  # Adam steps of the last block to be inverted, from a 2 x 2 grid
    # of its input upwards; 0: like every other block
    coarse_to_fine_iterate: Literal["best", "last"] = "best"  # what goes on; last: as published
    search_learning_rates: tuple[float, ...] = ()  # multipliers tried for every batch and block
    search_statistics_weights: tuple[float, ...] = ()  # multipliers tried with them


@dataclasses.dataclass(frozen=True)
class FullModelConfig:
    """Full-model inversion: Adam on the images through the whole network."""

    num_steps: int = 60  # Adam steps
    learning_rate: float = 0.1  # Adam, peak, in normalised pixel units
    warmup_steps: int = 5  # linear warm-up
    schedule: Literal["cosine", "step"] = "cosine"  # after warm-up; step: halved at 1/2 and 3/4
    schedule_steps: int | None = None  # its length; None: num_steps. Published for CLIP: 2000, of
    # which 600 are run, so that a cosine ends at 79 % of the peak
    iterate: Literal["best", "last"] = "best"  # images that are returned; last: published for CLIP
    feature_weight: float = 1.0  # of the squared error to the sampled target features
    cross_entropy_weight: float = 0.0  # of the intended label under the old network
    statistics_weight: float = 0.25  # of all layers' statistics
    pixel_statistics_weight: float = 0.0  # of per-pixel moments, measured on real data
    total_variation_weight: float = 0.0  # of differences of neighbouring pixels
    total_variation_norm: Literal["l1", "l2"] = "l1"  # l1: their mean absolute value; l2: their
    # root of the sum of squares over an image, as published for CLIP
    spectrum_weight: float = 0.0  # of the distance to the power spectrum of real images
    histogram_weight: float = 0.0  # of the distance to the histogram of real pixel values; if not
    # 0, the images are also given exactly that histogram at the end
    jitter_pixels: int = 0  # random cyclic shift of the batch before every step
    clip_pixels: bool = True  # keep pixels in the valid range; patch embeddings have none
    boost_weights: bool = True  # double a term's weight while it exceeds its first value


@dataclasses.dataclass(frozen=True)
class InversionConfig:
    """What is synthesised before a task, and how."""

    space: Literal["pixels", "patch_embeddings"] = "pixels"  # what a sample is: an image, or (CLIP
    # only; as published) f32[h, w, D], the output of the patch embedding, 0.6 MB with ViT-B/16
    targets: Literal["cfs", "gaussian", "label"] = "cfs"  # features drawn by CFS, drawn from the
    # class Gaussians, or no features: the label's cross-entropy alone
    covariance: Literal["diagonal", "full"] = "full"  # of the class Gaussians
    base_images: int = 0  # images for every later task, plus ...
    images_per_task: int = 240  # ... this many per task learned so far
    batch_size: int = 240  # images inverted together; their statistics are matched as one batch
    per_layer: PerLayerConfig = PerLayerConfig()
    full_model: FullModelConfig = FullModelConfig()

    @property
    def first_block(self) -> int:
        """The block whose inputs are synthesised and replayed; those before it are not inverted."""
        return ("pixels", "patch_embeddings").index(self.space)


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The image generator of ABD and R-DFCIL."""

    latent_dim: int = 100  # size of the noise vector
    channels: tuple[int, int, int] = (32, 32, 16)  # of its three convolution stages
    num_steps: int = 600  # Adam steps per task
    batch_size: int = 64  # images per step
    learning_rate: float = 1e-3  # Adam


@dataclasses.dataclass(frozen=True)
class DeepInversionConfig:
    """DeepInversion and, against a student, Adaptive DeepInversion; `competition_weight` tells."""

    batch_size: int = 256  # images inverted together; statistics and several terms depend on it
    stage_scales: tuple[int, ...] = (1,)  # per stage, by how much the views are averaged down; 2
    # before 1: first at half the resolution. The images themselves keep theirs
    stage_steps: tuple[int, ...] = (2000,)  # Adam steps per stage; each starts Adam afresh
    parameters: Literal["pixels", "spectrum"] = "pixels"  # what Adam moves: pixels, as published;
    # or Fourier coefficients weighted as in photographs, which needs far fewer steps, and whose
    # images keep to valid pixels without clip_pixels
    learning_rate: float = 0.1  # Adam, peak, in normalised pixel units, or of coefficients
    adam_betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0  # linear, at the start of every stage
    schedule: Literal["constant", "cosine"] = "constant"  # after warm-up
    cross_entropy_weight: float = 1.0  # of the intended label
    statistics_weight: float = 10.0  # of the distance to BatchNorm's running moments
    first_statistics_factor: float = 1.0  # on the first BatchNorm's share of it
    statistics_distance: Literal["absolute", "relative"] = "absolute"  # in the units of layer
    # inputs, as published; or in stored deviations, so that all layers and channels count alike
    statistics_scope: Literal["global", "device"] = "global"  # batch whose moments are compared:
    # the whole one, or (as published) the share of each device
    total_variation_weight: float = 2.5e-5
    total_variation_norm: Literal["l1", "l2", "batch_l2"] = "batch_l2"  # l1: mean absolute
    # difference; l2: mean over images and channels of the Euclidean norm; batch_l2: the norm over
    # the whole batch, as published, which grows with the root of its size
    total_variation_view: Literal["augmented", "plain"] = "augmented"  # images it is taken of
    pixel_norm_weight: float = 0.0
    pixel_norm: Literal["image", "batch"] = "image"  # Euclidean norm: mean over images (published
    # for ImageNet), or of the whole batch (for CIFAR)
    competition_weight: float = 0.0  # of disagreement with the student (ADI)
    competition: Literal["paper", "reference", "negative"] = "paper"  # 1 - JS divergence; 1 minus
    # the published code's, clamped; or minus the code's, unclamped (the port in CMI's benchmark)
    competition_temperature: float = 3.0
    detach_student: bool = False  # no gradient through the student
    jitter_pixels: int = 2  # cyclic shift of the batch before every step, at full resolution
    flip: bool = False  # mirror the batch in every other step; keep off for digits
    crop_scale: tuple[float, float] | None = None  # area of a random part of every view that is
    # resized to a whole one, by itself for every image; None: all of it, as published
    clip_pixels: bool = True  # keep pixels in the valid range
    iterate: Literal["best", "last"] = "best"  # of a stage; goes on to the next one
    compare_stages: bool = False  # the best iterate of all stages, as published; stages differ in
    # loss, so that may be one of low resolution
    forward_precision: Literal["float32", "bfloat16"] = "float32"  # statistics are always float32


@dataclasses.dataclass(frozen=True)
class ContrastiveInversionConfig:
    """Contrastive model inversion (CMI), and FastDFKD, which learns to start it."""

    batch_size: int = 256  # images per call
    num_steps: int = 200  # steps of generator, latents and projection head per call
    latent_dim: int = 256
    channels: tuple[int, int, int] = (128, 128, 64)  # of the generator's three stages
    generator_start: Literal["fresh", "last"] = "fresh"  # cmi: in every call drawn anew, as
    # published, or as the call before ended, which needs far fewer steps for the same loss
    learning_rate: float = 1e-3  # Adam: generator, latents, projection head
    latent_learning_rate: float | None = None  # of latents; None: learning_rate
    projection_dim: int = 256  # of the head's output
    bank_size: int = 40_960  # images whose statistics are remembered; a multiple of batch_size
    num_negatives: int = 4096  # of them drawn per step, fewer while fewer are there
    temperature: float = 0.1  # of the contrastive loss
    statistics_weight: float = 1.0  # of the distance to BatchNorm's running moments
    cross_entropy_weight: float = 1.0  # of the intended label
    adversarial_weight: float = 0.5  # of disagreement with the student
    contrastive_weight: float = 0.8
    crop_padding: int = 4  # of the global view
    local_scale: tuple[float, float] = (0.25, 1.0)  # area of the local view, as a share
    flip: bool = False  # mirror views at random; keep off for digits
    meta_learning: Literal["fomaml", "reptile"] = "fomaml"  # fast_dfkd: how the generator's start
    # is learned, by the gradients of all steps of a call or by where they led
    statistics_momentum: float = 0.9  # fast_dfkd: share of earlier calls in the statistics
    adversarial_warmup_calls: int = 20  # fast_dfkd: the first call with the adversarial term
    reset_call: int = 120  # fast_dfkd: calls later, at which its first layer is drawn anew
