"""Checks of a `Config`, field against field, that need no data and no compiler.

Every error is one sentence: what was got, what was expected, what to do.
"""

from collections.abc import Iterable

from jaxpmi.config.check_data import check_data
from jaxpmi.config.check_jobs import check_job
from jaxpmi.config.check_jobs import job_batch_sizes
from jaxpmi.config.check_jobs import nearest_multiples
from jaxpmi.config.data import SCENE_KINDS
from jaxpmi.config.experiment import Config
from jaxpmi.config.inversion import FullModelConfig
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.learners import find_method
from jaxpmi.jobs.methods import find_synthesiser
from jaxpmi.lookup import find
from jaxpmi.models import MODELS

INVERT_METHODS = ("deep_inversion", "pmi")  # starts of the pictures of job="invert"


def validate(config: Config, num_devices: int = 1) -> None:
    """Raises a ValueError for the first setting that cannot work on `num_devices` devices."""
    if config.model.name != "clip":
        find(config.model.name, MODELS, "model.name")
    _check_model(config)
    if config.job == "continual":
        find_method(config.method)
    elif config.job == "invert":
        _check_one_of(config, INVERT_METHODS, "job='invert'")
    else:
        find_synthesiser(config.method)
    _check_weights(config)
    check_data(config.data)
    _check_training(config)
    if config.job == "continual":
        _check_continual(config)
    else:
        check_job(config)
    _check_devices(config, num_devices)


def _check_one_of(config: Config, methods: Iterable[str], place: str) -> None:
    if config.method not in methods:
        raise ValueError(
            f"method='{config.method}' is not made for {place}; use one of {', '.join(methods)}."
        )


def _check_learns(config: Config, kind: str, place: str) -> None:
    """Raises if the method, one's own too, does not learn from that kind of samples."""
    if kind not in find_method(config.method).learns:
        able = [name for name, method in METHODS.items() if kind in method.learns]
        _check_one_of(config, able, place)


def _check_model(config: Config) -> None:
    model = config.model
    if model.factory is not None and (model.weights is not None or model.name == "clip"):
        raise ValueError(
            f"model.factory='{model.factory}' makes the network, but model.name='{model.name}' "
            f"with weights={model.weights} asks for another; give one of them."
        )


def _check_continual(config: Config) -> None:
    method = find_method(config.method)
    _check_clip(config)
    if config.data.source in SCENE_KINDS:
        _check_segmentation(config)
    else:
        _check_learns(config, "images", f"data.source='{config.data.source}'")
    if method.replay != "none":
        _check_replay(config)
    if method.replay == "inversion":
        _check_inversion(config)
    if "class_graph" in method.auxiliary:
        _check_class_graph(config)


def _check_segmentation(config: Config) -> None:
    place = f"data.source='{config.data.source}', whose pixels have labels"
    _check_learns(config, "scenes", place)
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
    _check_learns(config, "clip", "model.name='clip'")
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
    elif (replay := find_method(config.method).replay) != "none":
        sizes["train.replay_batch_size"] = config.train.replay_batch_size
        sizes[f"{replay}.batch_size"] = getattr(config, replay).batch_size
    for path, size in sizes.items():
        if size % num_devices:
            raise ValueError(
                f"{path}={size} is not divisible by {num_devices} devices; use "
                f"{nearest_multiples(size, num_devices)}."
            )
