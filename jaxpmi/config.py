"""Every setting, as nested frozen dataclasses, and the one function that loads a config file.

A config file defines `get_config() -> Config` and changes only what differs from the defaults
here. Any field can be overridden on the command line (`launch/run.py --help`).
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random views of real (and, where switched on, synthetic) images, made on device."""

    crop_scale: tuple[float, float] | None = None  # least and largest area of a random crop, as
    # shares of the image's, resized to the image's size (photographs); None: no such crop
    crop_padding: int = 0  # pixels of zero padding before a random crop; 0: no crop
    flip: bool = False  # random left-right flip; keep off where it changes the class (digits)
    noise_std: float = 0.0  # of Gaussian noise added to pixels, in normalised units


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how the classes are split into tasks."""

    source: Literal["embedded", "coloured_digits", "tfds", "folder", "npz"] = "embedded"  # kind of
    # data set; coloured_digits: the embedded ones in four colours, 40 classes with names
    name: str = "mnist5k"  # tfds only: data-set name, e.g. cifar100
    path: str | None = None  # npz: the file; folder: the folder; tfds: the data directory
    image_size: int | None = None  # resize to image_size x image_size pixels; None: as stored
    image_padding: int = 0  # black pixels added to every side, after any resize
    num_classes: int | None = None  # use only the first num_classes labels; None: all
    num_tasks: int = 5  # tasks the classes are split into
    first_task_classes: int | None = None  # size of a larger first task; None: equal tasks
    class_names: str | None = None  # text file of one name per line, or of lines such as
    # "n01443537 goldfish"; None: the data set's own names, with spaces for underscores
    class_order: tuple[int, ...] | None = None  # explicit class order; None: drawn from the seed
    test_fraction: float = 0.2  # held out per class where the source has no test split
    mean: tuple[float, ...] | None = None  # per channel, of pixels in [0, 1]; None: of task 0
    std: tuple[float, ...] | None = None  # per channel, of pixels in [0, 1]; None: of task 0
    augment: AugmentConfig = AugmentConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone; see `jaxpmi.models.MODELS`."""

    name: str = "resnet_small"  # a key of MODELS
    width: int = 8  # channels of the first stage
    weights: Literal["imagenet"] | None = None  # pretrained, with name="efficientnet_lite0" alone;
    # None: trained in the run


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Supervised training."""

    batch_size: int = 64  # real images per step
    replay_batch_size: int = 64  # synthetic images per step, beside the real ones
    epochs: int = 20  # passes over the data of a task, all phases of a later task together
    optimiser: Literal["sgd", "adamw"] = "sgd"  # SGD with momentum, or AdamW (transformers)
    learning_rate: float = 0.1  # peak, in the first task
    warmup_steps: int = 0  # linear from 0, before the schedule of a phase of all blocks
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # sgd: L2, added to the gradient; adamw: decoupled from
    # it, and not of gains, biases and embeddings
    schedule: Literal["cosine", "step"] = "cosine"  # of the learning rate in a phase of all blocks
    milestones: tuple[float, ...] = (0.4, 0.6)  # step: x 0.1 at each, as fractions of the phase
    augment_replay: bool = False  # random views of synthetic images as of real ones


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Weights of the continual losses; names as in the papers' tables."""

    recipe: Literal["detached", "stagewise"] = "detached"  # pmi: local losses with a head trained
    # on detached features, or (as published) stage-wise unfreezing and balanced head tuning
    combine: Literal["sum", "product"] = "sum"  # pmi, stagewise: relation and head terms
    ce_weight: float = 0.75  # lambda_ce: cross-entropy on new classes only
    hkd_weight: float = 0.15  # lambda_hkd: L1 between old and new logits of synthetic images
    rkd_weight: float = 0.5  # lambda_rkd: angles between triples of real features
    ft_weight: float = 1.5  # lambda_ft: cross-entropy over all classes on detached features
    adaptive: bool = True  # scale the four by the numbers of new and old classes (R-DFCIL)
    lwf_weight: float = 1.0  # lwf, deep_inversion: soft cross-entropy to the teacher
    lwf_temperature: float = 2.0  # lwf, deep_inversion
    abd_weight: float = 0.1  # abd, pmi detached: feature distillation through the old head
    joint_weight: float = 0.0  # pmi detached: of cross-entropy over all seen classes, backbone only
    head_epochs: float = 0.1  # pmi: share of epochs that train the new head only
    last_block_epochs: float = 0.1  # pmi: share of epochs that also train the last block
    tuning_epochs: float = 0.2  # pmi, r_dfcil: share of epochs that tune all heads at the end
    body_learning_rate: float = 0.05  # pmi: of the phase that trains the backbone
    tuning_learning_rate: float = 0.005  # pmi, r_dfcil: of head tuning


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
    """Classes of which only the name is known, learnt last (PMI, section 7)."""

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


@dataclasses.dataclass(frozen=True)
class DeepInversionConfig:
    """DeepInversion and, against a student, Adaptive DeepInversion; `competition_weight` tells."""

    batch_size: int = 256  # images inverted together; statistics and several terms depend on it
    stage_scales: tuple[int, ...] = (1,)  # per stage, by how much the views are averaged down; 2
    # before 1: first at half the resolution. The images themselves keep theirs
    stage_steps: tuple[int, ...] = (2000,)  # Adam steps per stage; each starts Adam afresh
    learning_rate: float = 0.1  # Adam, peak, in normalised pixel units
    adam_betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0  # linear, at the start of every stage
    schedule: Literal["constant", "cosine"] = "constant"  # after warm-up
    cross_entropy_weight: float = 1.0  # of the intended label
    statistics_weight: float = 10.0  # of the distance to BatchNorm's running moments
    first_statistics_factor: float = 1.0  # on the first BatchNorm's share of it
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
    learning_rate: float = 1e-3  # Adam: generator, latents, head
    latent_learning_rate: float | None = None  # of latents; None: learning_rate
    projection_dim: int = 256  # of the head's output
    bank_size: int = 40_960  # images whose statistics are remembered
    num_negatives: int = 4096  # of them drawn per step
    temperature: float = 0.1  # of the contrastive loss
    statistics_weight: float = 1.0  # of the distance to BatchNorm's running moments
    cross_entropy_weight: float = 1.0  # of the intended label
    adversarial_weight: float = 0.5  # of disagreement with the student
    contrastive_weight: float = 0.8
    crop_padding: int = 4  # of the global view
    local_scale: tuple[float, float] = (0.25, 1.0)  # area of the local view, as a share
    flip: bool = False  # mirror views at random; keep off for digits
    meta_learning: Literal["fomaml", "reptile"] = "fomaml"  # fast_dfkd: of the generator
    statistics_momentum: float = 0.9  # fast_dfkd: share of earlier calls in the statistics
    adversarial_warmup_calls: int = 20  # fast_dfkd: calls before the adversarial term
    reset_call: int = 120  # fast_dfkd: calls after them at which its first layer is drawn anew


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Data-free knowledge transfer: a student learns a teacher's outputs on synthetic images."""

    student: ModelConfig = ModelConfig(width=4)
    initial_batches: int = 0  # of images, made before the student's first step
    rounds: int = 40  # in each, one more batch is made (with method noise or deep_inversion all are
    # made at the beginning), then the student learns on all there are
    steps_per_round: int = 100  # of the student
    batch_size: int = 128  # synthetic images per step
    learning_rate: float = 0.1  # SGD, cosine to 0 over all steps
    momentum: float = 0.9
    weight_decay: float = 1e-4
    temperature: float = 20.0  # tau: of both softmaxes, and tau^2 on their divergence
    pool_format: Literal["uint8", "float32"] = "uint8"  # of the images that are kept, as published
    # rounded to 8 bits, or as they are
    augment: AugmentConfig = AugmentConfig()  # random views of them


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Data-free pruning of filters, by first-order Taylor importance."""

    share: float = 0.5  # of all filters that can be removed
    num_removals: int = 10  # removals in equal parts, with importance measured before each
    importance_batches: int = 20  # batches of synthetic images per measurement
    importance: Literal["gate", "filter"] = "gate"  # (gamma dL/dgamma + beta dL/dbeta)^2 of
    # BatchNorm, or (sum of w dL/dw)^2 of the convolution before it
    min_filters: int = 1  # least filters left in a layer
    num_images: int = 2048  # synthetic images, rounded up to whole batches of the method
    tuning_steps: int = 50  # of distillation after every removal
    final_steps: int = 1000  # of distillation at the end
    batch_size: int = 64
    learning_rate: float = 0.01  # SGD, cosine to 0 over the final steps
    momentum: float = 0.9
    weight_decay: float = 1e-4
    temperature: float = 3.0  # of distillation


@dataclasses.dataclass(frozen=True)
class ContinualConfig:
    """What the tasks are made of, beside `data`; CLIP only."""

    unseen_classes: tuple[str, ...] = ()  # names of classes without any image, learnt last
    num_unseen_classes: int = 0  # drawn from the seed, where none is named


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    job: Literal["continual", "distill", "prune", "invert"] = "continual"  # learn tasks one after
    # another; or make synthetic images and teach a student by them, prune filters, draw them
    method: Literal[
        "joint",
        "finetune",
        "lwf",
        "abd",
        "r_dfcil",
        "deep_inversion",
        "pmi",
        "noise",
        "adaptive_deep_inversion",
        "cmi",
        "fast_dfkd",
    ] = "pmi"  # continual: the first seven; distill, prune: the last four or deep_inversion;
    # invert: deep_inversion (from noise) or pmi
    seed: int = 0  # class order, initialisation, batches, noise
    workdir: str = "runs/default"  # everything a run writes
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    losses: MethodConfig = MethodConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    inversion: InversionConfig = InversionConfig()
    generator: GeneratorConfig = GeneratorConfig()
    deep_inversion: DeepInversionConfig = DeepInversionConfig()
    contrastive_inversion: ContrastiveInversionConfig = ContrastiveInversionConfig()
    distill: DistillConfig = DistillConfig()
    prune: PruneConfig = PruneConfig()
    clip: ClipConfig = ClipConfig()
    continual: ContinualConfig = ContinualConfig()
    save_images: bool = False  # also write the synthetic samples, as images/task{t}.npz
    checkpoint_every: int = 500  # training steps or inverted batches between checkpoints
    log_every_seconds: float = 5.0  # between progress lines
