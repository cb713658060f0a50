"""Checks of a `Config`, field against field, that need no data and no compiler.

Every error is one sentence: what was got, what was expected, what to do.
"""

from jaxpmi.config.check_data import check_data
from jaxpmi.config.check_jobs import check_job
from jaxpmi.config.check_jobs import job_batch_sizes
from jaxpmi.config.check_jobs import nearest_multiples
from jaxpmi.config.data import SCENE_KINDS
from jaxpmi.config.experiment import Config
from jaxpmi.config.inversion import FullModelConfig
from jaxpmi.models import MODELS

INVERSION_METHODS = ("deep_inversion", "pmi")  # these synthesise images by inversion
GENERATOR_METHODS = ("abd", "r_dfcil")  # these train an image generator
RECORD_METHODS = ("dfd", "vdfd")  # these keep gradients of old tasks' mean logits
SCENE_METHODS = ("joint", "finetune", *RECORD_METHODS)  # these learn segmentation
CLIP_METHODS = ("joint", "finetune", "pmi")  # these can train CLIP's adapters
SYNTHESIS_METHODS = ("noise", "deep_inversion", "adaptive_deep_inversion", "cmi", "fast_dfkd")
JOB_METHODS = {
    "continual": ("joint", "finetune", "lwf", *GENERATOR_METHODS, *INVERSION_METHODS)
    + RECORD_METHODS,
    "distill": SYNTHESIS_METHODS,
    "prune": SYNTHESIS_METHODS,
    "invert": INVERSION_METHODS,
}


def validate(config: Config, num_devices: int = 1) -> None:
    """Raises a ValueError for the first setting that cannot work on `num_devices` devices."""
    if config.model.name not in (*MODELS, "clip"):
        raise ValueError(
            f"model.name='{config.model.name}' is unknown; use one of {', '.join(MODELS)}, clip."
        )
    _check_method(config, JOB_METHODS[config.job], f"job='{config.job}'")
    _check_weights(config)
    check_data(config.data)
    _check_training(config)
    if config.job == "continual":
        _check_continual(config)
    else:
        check_job(config)
    _check_devices(config, num_devices)


def _check_method(config: Config, methods: tuple[str, ...], place: str) -> None:
    if config.method not in methods:
        raise ValueError(
            f"method='{config.method}' is not made for {place}; use one of {', '.join(methods)}."
        )


def _check_continual(config: Config) -> None:
    _check_clip(config)
    if config.data.source in SCENE_KINDS:
        _check_segmentation(config)
    if config.method in INVERSION_METHODS + GENERATOR_METHODS:
        _check_replay(config)
    if config.method in INVERSION_METHODS:
        _check_inversion(config)
    if config.method == "vdfd":
        _check_class_graph(config)


def _check_segmentation(config: Config) -> None:
    place = f"data.source='{config.data.source}', whose pixels have labels"
    _check_method(config, SCENE_METHODS, place)
    if config.model.name == "clip":
        raise ValueError(
            f"model.name='clip' gives no feature per pixel, which data.source="
            f"'{config.data.source}' needs; use 'encoder_decoder'."
        )
    if config.losses.vdfd.self_supervision:
        raise ValueError(
            "losses.vdfd.self_supervision=True turns images, which is not made for scenes "
            f"(data.source='{config.data.source}'); set it to False."
        )


def _check_weights(config: Config) -> None:
    if config.model.weights is None:
        return
    if config.model.name != "efficientnet_lite0" or config.job != "invert":
        raise ValueError(
            f"model.weights='{config.model.weights}' with model.name='{config.model.name}' and "
            f"job='{config.job}' is not there; they are of efficientnet_lite0, for job='invert'."
        )


def _check_clip(config: Config) -> None:
    unseen, count = config.continual.unseen_classes, config.continual.num_unseen_classes
    if config.model.name != "clip":
        if unseen or count:
            raise ValueError(
                f"model.name='{config.model.name}' knows no class by its name alone; drop "
                "continual.unseen_classes and num_unseen_classes, or set model.name='clip'."
            )
        if config.inversion.space != "pixels":
            raise ValueError(
                f"inversion.space='{config.inversion.space}' is for CLIP only, whose patch "
                f"embedding is frozen; model.name='{config.model.name}' needs 'pixels'."
            )
        return
    _check_method(config, CLIP_METHODS, "model.name='clip'")
    if config.inversion.targets == "label":
        raise ValueError(
            "inversion.targets='label' is not made for model.name='clip'; use 'cfs' or 'gaussian'."
        )
    linear = config.method == "pmi" and config.inversion.per_layer.start == "inverse"
    if config.clip.name_only.match == "directions" and linear:
        raise ValueError(
            "clip.name_only.match='directions' with inversion.per_layer.start='inverse' would give "
            "unit features to a linear inverse that was fitted to features of any length; set "
            "start to 'gaussian' with num_steps of 1 or more, or to 'noise'."
        )
    wrong = [template for template in config.clip.templates if "{}" not in template]
    if wrong or not config.clip.templates:
        raise ValueError(
            f"clip.templates={config.clip.templates} needs one or more texts, each with {{}} where "
            "the class name goes."
        )


def _check_training(config: Config) -> None:
    milestones = config.train.milestones
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"train.milestones={milestones} must ascend without repeats; sort them.")
    shares = [config.losses.head_epochs, config.losses.last_block_epochs]
    shares.append(config.losses.tuning_epochs)
    if config.method == "pmi" and config.losses.recipe == "stagewise" and sum(shares) >= 1:
        raise ValueError(
            "losses.head_epochs, losses.last_block_epochs and losses.tuning_epochs sum to "
            f"{sum(shares):g}; they must leave a share below 1 for the other layers."
        )


def _check_replay(config: Config) -> None:
    if config.inversion.base_images + config.inversion.images_per_task == 0:
        raise ValueError(
            "inversion.base_images and inversion.images_per_task are both 0, so nothing would be "
            "synthesised; raise one of them, or use method='finetune'."
        )


def _check_class_graph(config: Config) -> None:
    settings = config.losses.vdfd
    dims = settings.hidden_dim, settings.output_dim
    if settings.class_graph == "residual" and dims != (None, None):
        raise ValueError(
            f"losses.vdfd.hidden_dim={dims[0]} and output_dim={dims[1]} are not those of "
            "class_graph='residual', whose layers are as wide as the features; set both to None or "
            "class_graph='bottleneck'."
        )


def _check_inversion(config: Config) -> None:
    inversion, full = config.inversion, config.inversion.full_model
    if inversion.targets == "label":
        if full.cross_entropy_weight == 0 or full.feature_weight > 0:
            raise ValueError(
                "inversion.targets='label' has no target features; set "
                "inversion.full_model.feature_weight to 0 (got "
                f"{full.feature_weight:g}) and cross_entropy_weight above 0 (got "
                f"{full.cross_entropy_weight:g})."
            )
    elif full.feature_weight == 0:
        raise ValueError(
            f"inversion.targets='{inversion.targets}' draws target features that "
            "inversion.full_model.feature_weight=0 ignores; raise the weight or set "
            "targets='label'."
        )
    if full.schedule_steps is not None and full.schedule_steps < full.num_steps:
        raise ValueError(
            f"inversion.full_model.schedule_steps={full.schedule_steps} ends before "
            f"num_steps={full.num_steps}, so the last steps would do nothing; give at least as "
            "many, or None."
        )
    if inversion.space == "patch_embeddings":
        _check_no_pixel_terms(full)
    _check_per_layer(config)


def _check_no_pixel_terms(full: FullModelConfig) -> None:
    """Patch embeddings have no pixel values; their neighbours may still be smooth."""
    names = ("pixel_statistics_weight", "spectrum_weight", "histogram_weight", "jitter_pixels")
    wrong = [f"{name}={getattr(full, name):g}" for name in names if getattr(full, name)]
    if wrong:
        raise ValueError(
            f"inversion.space='patch_embeddings' makes no pixels for inversion.full_model."
            f"{', '.join(wrong)} to act on; set to 0 each of {', '.join(names)}."
        )


def _check_per_layer(config: Config) -> None:
    per_layer = config.inversion.per_layer
    if per_layer.start == "gaussian" and per_layer.num_steps == 0:
        raise ValueError(
            "inversion.per_layer.num_steps=0 with start='gaussian' would leave every block's input "
            "random; give 1 or more steps, or set start='noise' for no per-layer phase."
        )
    if per_layer.start == "noise" and per_layer.coarse_to_fine_steps > 0:
        raise ValueError(
            f"inversion.per_layer.coarse_to_fine_steps={per_layer.coarse_to_fine_steps} with "
            "start='noise' has no per-layer phase to belong to; set it to 0 or another start."
        )
    searched = per_layer.search_learning_rates or per_layer.search_statistics_weights
    if searched and (per_layer.start == "noise" or per_layer.num_steps == 0):
        raise ValueError(
            f"inversion.per_layer has search multipliers but start='{per_layer.start}' and "
            f"num_steps={per_layer.num_steps}, so there is nothing to search; remove them."
        )


def _check_devices(config: Config, num_devices: int) -> None:
    sizes = {"train.batch_size": config.train.batch_size}
    if config.job != "continual":
        sizes |= job_batch_sizes(config)
    elif config.method in INVERSION_METHODS + GENERATOR_METHODS:
        sizes["train.replay_batch_size"] = config.train.replay_batch_size
        batches = config.inversion if config.method in INVERSION_METHODS else config.generator
        name = "inversion" if config.method in INVERSION_METHODS else "generator"
        sizes[f"{name}.batch_size"] = batches.batch_size
    for path, size in sizes.items():
        if size % num_devices:
            raise ValueError(
                f"{path}={size} is not divisible by {num_devices} devices; use "
                f"{nearest_multiples(size, num_devices)}."
            )
