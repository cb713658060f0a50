"""Checks of a `Config` that need no data and no compiler: ranges, fields against fields.

Every error is one sentence: what was got, what was expected, what to do.
"""

import math

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import Config
from jaxpmi.config import FullModelConfig
from jaxpmi.config_check_data import check_areas
from jaxpmi.config_check_data import check_data
from jaxpmi.config_ranges import find_range
from jaxpmi.config_types import Leaf
from jaxpmi.config_types import check_types
from jaxpmi.config_types import leaves
from jaxpmi.models import MODELS

INVERSION_METHODS = ("deep_inversion", "pmi")  # these synthesise images by inversion
GENERATOR_METHODS = ("abd", "r_dfcil")  # these train an image generator
RECORD_METHODS = ("dfd", "vdfd")  # these keep gradients of old tasks' mean logits
PIXEL_MODELS = ("encoder_decoder",)  # these give features per pixel, for scenes
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
    check_types(config)
    for leaf in leaves(config):
        _check_range(leaf)
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
        _check_synthesis(config)
    _check_devices(config, num_devices)


def _check_range(leaf: Leaf) -> None:
    if leaf.value == "":
        raise ValueError(f"{leaf.path} is empty; give a text.")
    allowed = find_range(leaf.path)
    values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{leaf.path}={leaf.value} is not a finite number; give one.")
        if allowed is not None and value is not None and value not in allowed:
            raise ValueError(f"{leaf.path}={leaf.value} is out of range; expected {allowed}.")


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


def _check_synthesis(config: Config) -> None:
    """The jobs of one network, by which images are synthesised."""
    if config.data.source in SCENE_KINDS:
        raise ValueError(
            f"data.source='{config.data.source}' has a label per pixel, which job='{config.job}' "
            "cannot use; choose a source of labelled images, or job='continual'."
        )
    student = config.distill.student.name
    usable = [name for name in MODELS if name not in PIXEL_MODELS]
    for path, name in (("model.name", config.model.name), ("distill.student.name", student)):
        if name not in usable:
            raise ValueError(
                f"{path}='{name}' is not made for job='{config.job}'; use one of "
                f"{', '.join(usable)}."
            )
    settings = config.deep_inversion
    if len(settings.stage_scales) != len(settings.stage_steps) or not settings.stage_steps:
        raise ValueError(
            f"deep_inversion.stage_scales={settings.stage_scales} and stage_steps="
            f"{settings.stage_steps} must be of one length; give a scale and steps per stage."
        )
    if config.method == "adaptive_deep_inversion" and settings.competition_weight == 0:
        raise ValueError(
            "method='adaptive_deep_inversion' needs deep_inversion.competition_weight above 0; "
            "raise it, or use method='deep_inversion'."
        )
    check_areas("deep_inversion.crop_scale", settings.crop_scale)
    if config.method in ("cmi", "fast_dfkd"):
        _check_contrastive_inversion(config)
    if config.job == "distill":
        _check_student(config)
    if config.job == "invert":
        _check_pictures(config)


def _check_weights(config: Config) -> None:
    if config.model.weights is None:
        return
    if config.model.name != "efficientnet_lite0" or config.job != "invert":
        raise ValueError(
            f"model.weights='{config.model.weights}' with model.name='{config.model.name}' and "
            f"job='{config.job}' is not there; they are of efficientnet_lite0, for job='invert'."
        )


def _check_pictures(config: Config) -> None:
    if config.deep_inversion.competition_weight > 0:
        raise ValueError(
            "deep_inversion.competition_weight="
            f"{config.deep_inversion.competition_weight:g} needs a student, which job='invert' has "
            "not; set it to 0."
        )
    if config.invert.learn_data and config.model.weights is None:
        raise ValueError(
            "invert.learn_data=True would teach the network the data that it is trained on; give "
            "it model.weights, or set it to False."
        )
    per_layer = config.inversion.per_layer
    if config.method == "pmi" and (
        (per_layer.start, per_layer.num_steps > 0) != ("gaussian", True)
        or per_layer.block_statistics == "measured"
    ):
        raise ValueError(
            f"method='pmi' with inversion.per_layer.start='{per_layer.start}', num_steps="
            f"{per_layer.num_steps}, block_statistics='{per_layer.block_statistics}' needs data, "
            "which job='invert' does not read; set start='gaussian', some num_steps and "
            "block_statistics='propagated'."
        )


def _check_contrastive_inversion(config: Config) -> None:
    settings = config.contrastive_inversion
    if settings.statistics_weight == settings.cross_entropy_weight == 0:
        raise ValueError(
            f"method='{config.method}' with contrastive_inversion.statistics_weight and "
            "cross_entropy_weight of 0 would make any images; raise one of them."
        )
    if config.method == "fast_dfkd":
        return  # it has neither a memory nor local views
    if settings.bank_size % settings.batch_size:
        raise ValueError(
            f"contrastive_inversion.bank_size={settings.bank_size} is not a multiple of "
            f"batch_size={settings.batch_size}; use "
            f"{_nearest(settings.bank_size, settings.batch_size)}."
        )
    check_areas("contrastive_inversion.local_scale", settings.local_scale)


def _check_student(config: Config) -> None:
    settings = config.distill
    total = settings.rounds * settings.steps_per_round
    if settings.warmup_steps >= total:
        raise ValueError(
            f"distill.warmup_steps={settings.warmup_steps} leaves none of the student's "
            f"rounds * steps_per_round = {total} steps for the cosine; use fewer."
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
        sizes |= _job_batch_sizes(config)
    elif config.method in INVERSION_METHODS + GENERATOR_METHODS:
        sizes["train.replay_batch_size"] = config.train.replay_batch_size
        batches = config.inversion if config.method in INVERSION_METHODS else config.generator
        name = "inversion" if config.method in INVERSION_METHODS else "generator"
        sizes[f"{name}.batch_size"] = batches.batch_size
    for path, size in sizes.items():
        if size % num_devices:
            raise ValueError(
                f"{path}={size} is not divisible by {num_devices} devices; use "
                f"{_nearest(size, num_devices)}."
            )


def _job_batch_sizes(config: Config) -> dict[str, int]:
    """The batches of a job that are split over devices."""
    contrastive = config.method in ("cmi", "fast_dfkd")
    name = "contrastive_inversion" if contrastive else "deep_inversion"
    sizes = {f"{name}.batch_size": getattr(config, name).batch_size}
    if config.job in ("distill", "prune"):
        sizes[f"{config.job}.batch_size"] = getattr(config, config.job).batch_size
    elif config.invert.learn_data:
        sizes["train.replay_batch_size"] = config.train.replay_batch_size
    return sizes


def _nearest(count: int, divisor: int) -> str:
    """Names the multiples of `divisor` around `count`."""
    below = count // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
