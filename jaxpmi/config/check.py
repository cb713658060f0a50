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
from jaxpmi.continual.learners import HEAD_EPOCHS
from jaxpmi.continual.learners import LAST_BLOCK_EPOCHS
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.learners import find_method
from jaxpmi.inversion.variants import INVERSION_VARIANTS
from jaxpmi.jobs.methods import find_synthesiser
from jaxpmi.lookup import find
from jaxpmi.models import MODELS

# Where the pictures of job="invert" start.
INVERT_METHODS = ("deep_inversion", "pmi", "bootstrapped_pmi")


def validate(config: Config, num_devices: int = 1) -> None:
    """Raises a ValueError for the first setting that cannot work on `num_devices` devices."""
    if config.model.name != "clip":
        find(config.model.name, MODELS, "model.name")
    if config.job == "continual":
        find_method(config.method)
    elif config.job == "invert":
        _check_one_of(config, INVERT_METHODS, "job='invert'")
    else:
        find_synthesiser(config.method)
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


def _check_continual(config: Config) -> None:
    method = find_method(config.method)
    if config.data.source in SCENE_KINDS:
        _check_segmentation(config)
    else:
        _check_learns(config, "images", f"data.source='{config.data.source}'")
    _check_clip(config)
    if method.replay not in ("none", "pushed"):
        _check_replay(config)
    if method.replay == "inversion":
        _check_inversion(config)


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


def _check_clip(config: Config) -> None:
    unseen = config.clip.name_only.classes
    if config.model.name != "clip":
        if unseen:
            raise ValueError(
                f"model.name='{config.model.name}' knows no class by its name alone; drop "
                "clip.name_only.classes, or set model.name='clip'."
            )
        if config.inversion.variant == "published_clip":
            raise ValueError(
                "inversion.variant='published_clip' is for CLIP only, whose patch embedding is "
                f"frozen; model.name='{config.model.name}' needs 'standard' or 'resnet'."
            )
        return
    _check_learns(config, "clip", "model.name='clip'")
    if config.inversion.targets == "label":
        raise ValueError(
            "inversion.targets='label' is not made for model.name='clip'; use 'cfs' or 'gaussian'."
        )
    if config.train.optimiser != "adamw":
        raise ValueError(
            f"train.optimiser='{config.train.optimiser}' is not made for model.name='clip'; use "
            "'adamw' and a small learning rate, such as 0.001."
        )
    linear = config.method == "pmi" and config.inversion.per_layer.is_linear
    if config.clip.variant != "standard" and linear and unseen:
        start = config.inversion.per_layer.start
        raise ValueError(
            f"clip.variant='{config.clip.variant}' with inversion.per_layer.start='{start}' would "
            "give unit features of unseen classes to a linear inverse that was fitted to features "
            "of any length; set start to 'gaussian' with num_steps of 1 or more, or to 'noise'."
        )
    for template in config.clip.templates or ("",):
        # Checked as it will be used: other braces than {} and {{ }} are fields that have no value.
        try:
            named = template.format("a name") != template.format("another")
        except (LookupError, ValueError):
            named = False
        if not named:
            raise ValueError(
                f"clip.templates={config.clip.templates} needs one or more texts, each with {{}} "
                f"where the class name goes and no other braces; {template!r} is none."
            )


def _check_training(config: Config) -> None:
    milestones = config.train.milestones
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"train.milestones={milestones} must ascend without repeats; sort them.")
    share, stages = config.losses.tuning_epochs, HEAD_EPOCHS + LAST_BLOCK_EPOCHS
    staged = config.method in ("pmi", "pixel_gaussian") and config.losses.recipe != "detached"
    if staged and share + stages >= 1:
        raise ValueError(
            f"losses.tuning_epochs={share:g} and {stages:g} of the epochs for head and last block "
            f"leave none for the other layers; give less than {1 - stages:g}."
        )


def _check_replay(config: Config) -> None:
    if config.inversion.base_images + config.inversion.images_per_task == 0:
        raise ValueError(
            "inversion.base_images and inversion.images_per_task are both 0, so nothing would be "
            "synthesised; raise one of them, or use method='finetune'."
        )


def _check_inversion(config: Config) -> None:
    inversion, full = config.inversion, config.inversion.full_model
    if inversion.targets == "label" and full.cross_entropy_weight == 0:
        raise ValueError(
            "inversion.targets='label' has no target features; set "
            "inversion.full_model.cross_entropy_weight above 0."
        )
    longest = INVERSION_VARIANTS[inversion.variant].schedule_steps
    if longest is not None and longest < full.num_steps:
        raise ValueError(
            f"inversion.full_model.num_steps={full.num_steps} is longer than the schedule of "
            f"inversion.variant='{inversion.variant}', so the last steps would do nothing; give "
            f"{longest} or fewer."
        )
    if inversion.variant == "published_clip":
        _check_no_pixel_terms(full)
    _check_per_layer(config)


def _check_no_pixel_terms(full: FullModelConfig) -> None:
    """Patch embeddings have no pixel values; their neighbours may still be smooth."""
    allowed = {"pixel_statistics_weight": 0.0, "views": "still"}
    for name, value in allowed.items():
        if getattr(full, name) != value:
            raise ValueError(
                "inversion.variant='published_clip' makes no pixels for inversion.full_model."
                f"{name}={getattr(full, name)!r} to act on; set it to {value!r}."
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


def _check_devices(config: Config, num_devices: int) -> None:
    sizes = {"train.batch_size": config.train.batch_size}
    if config.job != "continual":
        sizes |= job_batch_sizes(config)
    elif (replay := find_method(config.method).replay) != "none":
        sizes["train.replay_batch_size"] = config.train.replay_batch_size
        if replay != "pushed":
            maker = "generator" if replay == "generator" else "inversion"
            sizes[f"{maker}.batch_size"] = getattr(config, maker).batch_size
    for path, size in sizes.items():
        if size % num_devices:
            raise ValueError(
                f"{path}={size} is not divisible by {num_devices} devices; use "
                f"{nearest_multiples(size, num_devices)}."
            )
