"""Checks of the jobs beside continual learning, field against field.

Every error is one sentence: what was got, what was expected, what to do.
"""

from jaxpmi.config.data import SCENE_KINDS
from jaxpmi.config.experiment import Config
from jaxpmi.models import MODELS

PIXEL_MODELS = ("encoder_decoder",)  # these give features per pixel, for scenes


def check_job(config: Config) -> None:
    """Raises a ValueError for the first setting that cannot work in a job of synthetic images."""
    if config.data.source in SCENE_KINDS:
        raise ValueError(
            f"data.source='{config.data.source}' has a label per pixel, which job='{config.job}' "
            "cannot use; choose a source of labelled images, or job='continual'."
        )
    student = config.distill.student.name
    usable = [name for name in MODELS if name not in PIXEL_MODELS]
    for path, name in (("model.name", config.model.name), ("distill.student.name", student)):
        if name not in usable and ":" not in name:
            raise ValueError(
                f"{path}='{name}' is not made for job='{config.job}'; use one of "
                f"{', '.join(usable)}."
            )
    settings = config.deep_inversion
    if not settings.stage_steps:
        raise ValueError(
            "deep_inversion.stage_steps=() has no stage; give the steps of one or more."
        )
    if config.method == "adaptive_deep_inversion" and settings.competition_weight == 0:
        raise ValueError(
            "method='adaptive_deep_inversion' needs deep_inversion.competition_weight above 0; "
            "raise it, or use method='deep_inversion'."
        )
    if config.method in ("cmi", "fast_dfkd"):
        _check_cmi(config)
    if config.job == "distill":
        _check_student(config)
    if config.job == "invert":
        _check_pictures(config)


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


def _check_cmi(config: Config) -> None:
    settings = config.cmi
    if settings.statistics_weight == settings.cross_entropy_weight == 0:
        raise ValueError(
            f"method='{config.method}' with cmi.statistics_weight and "
            "cross_entropy_weight of 0 would make any images; raise one of them."
        )
    if config.method == "fast_dfkd":
        return  # it has neither a memory nor local views
    if settings.bank_size % settings.batch_size:
        raise ValueError(
            f"cmi.bank_size={settings.bank_size} is not a multiple of "
            f"batch_size={settings.batch_size}; use "
            f"{nearest_multiples(settings.bank_size, settings.batch_size)}."
        )


def _check_student(config: Config) -> None:
    settings = config.distill
    total = settings.rounds * settings.steps_per_round
    if settings.warmup_steps >= total:
        raise ValueError(
            f"distill.warmup_steps={settings.warmup_steps} leaves none of the student's "
            f"rounds * steps_per_round = {total} steps for the cosine; use fewer."
        )


def job_batch_sizes(config: Config) -> dict[str, int]:
    """Returns the sizes of the batches of a job that are split over devices, by their paths."""
    name = "cmi" if config.method in ("cmi", "fast_dfkd") else "deep_inversion"
    sizes = {f"{name}.batch_size": getattr(config, name).batch_size}
    if config.job in ("distill", "prune"):
        sizes[f"{config.job}.batch_size"] = getattr(config, config.job).batch_size
    elif config.invert.learn_data:
        sizes["train.replay_batch_size"] = config.train.replay_batch_size
    return sizes


def nearest_multiples(count: int, divisor: int) -> str:
    """Names the multiples of `divisor` around `count`: `96 or 104`."""
    below = count // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
