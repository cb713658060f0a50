"""The continual learners as data: which phases a task has, and what each phase minimises.

A method adds nothing else to the loop: no callbacks, no state of its own. What its phases minimise
stands in `jaxpmi.continual.methods`.
"""

import dataclasses
import functools
from typing import Literal

from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import methods
from jaxpmi.continual.apr.variants import APR_VARIANTS
from jaxpmi.continual.apr.variants import AprVariant
from jaxpmi.continual.training_phase import LossFn
from jaxpmi.continual.training_phase import Phase
from jaxpmi.continual.training_phase import PhasesFn
from jaxpmi.lookup import find_kind

# Shares of the epochs that train the new head, and then the last block too (PMI, as published).
HEAD_EPOCHS = LAST_BLOCK_EPOCHS = 0.1

# APR: of the learning rate in later tasks, if the config gives none of its own, and weight decay.
LATER_RATE, LATER_DECAY = 0.1, 2e-4

# Where images of old classes are from.
ReplaySource = Literal["none", "inversion", "generator", "pixels", "pushed"]


def first_phases(train: TrainConfig, config: MethodConfig) -> tuple[Phase, ...]:
    """The phases of the first task: plain methods.classification, the same for every method."""
    del config
    return _whole_task(methods.classification, train, train.learning_rate)


@dataclasses.dataclass(frozen=True)
class Method:
    """A continual learner.

    Attributes:
      phases: of every later task.
      replay: where old images come from.
      from_noise: inversion: of the full model alone, whatever per_layer.start says.
      keeps_generator: carries the generator over from task to task.
      all_data: sees all data of seen classes, from a fresh network (upper bound).
      keeps_records: of the gradients of every task's mean logits.
      first_phases: of the first task.
      auxiliary: what is trained beside the network, anew in every task: names that
        `start.fresh_auxiliary` knows.
      apr: how images of new classes are pushed to old ones, and old statistics moved along; it goes
        with replay "pushed", and classes are then told apart by these statistics.
      cosine_head: the classifier of training is one by cosines.
      calibrates: after training new classes are calibrated against old ones, see `calibration`.
      learns: from what it can learn: images with a class each, scenes with one per pixel, or
        images by the adapters of CLIP.
    """

    phases: PhasesFn
    replay: ReplaySource = "none"
    from_noise: bool = False
    keeps_generator: bool = False
    all_data: bool = False
    keeps_records: bool = False
    first_phases: PhasesFn = first_phases
    auxiliary: tuple[Literal["angle_maps", "class_graph"], ...] = ()
    apr: AprVariant | None = None
    cosine_head: bool = False
    calibrates: bool = False
    learns: tuple[Literal["images", "scenes", "clip"], ...] = ("images",)

    def __post_init__(self):
        if (self.replay == "pushed") != (self.apr is not None):
            raise ValueError(
                f"replay='{self.replay}' with apr={self.apr}: images are pushed as a row of "
                "constants says; make such a learner with apr_learner(variant)."
            )


def learner(
    loss: LossFn,
    *,
    replay: ReplaySource = "none",
    joint_batch: bool = False,
) -> Method:
    """A continual learner of one's own: in every later task it minimises one loss.

    The first task is plain classification. A config names it as `method="module:name"`.

    Args:
      loss: maps `Views`, all that a training step sees, and the `losses` of the config to named
        weighted terms f32[], whose sum is minimised. A pure function of a module, not a lambda.
      replay: where images of old classes come from, for the replay fields of `Views`: "inversion"
        as the config's `inversion` says, "generator" as its `generator`, "pixels" from Gaussians
        of every class's pixels, as many as `inversion` says; or "none".
      joint_batch: real and synthetic images share one BatchNorm batch.
    """
    uses_replay = replay != "none"
    phases = _one_phase(loss, replay=uses_replay, joint_batch=joint_batch and uses_replay)
    return Method(phases, replay=replay)


def find_method(name: str) -> Method:
    """The continual learner of a config's `method`: of `METHODS`, or `module:name` of one's own."""
    return find_kind(name, METHODS, "method", Method, remedy="make it with jaxpmi.learner(loss)")


def _whole_task(loss, train, learning_rate, *, share=1.0, **options):
    schedule = train.milestones, train.milestone_factor, train.schedule, train.warmup_steps
    return (Phase("all", loss, share, learning_rate, *schedule, **options),)


def _later_task(loss, train, **options):
    rate = train.later_learning_rate or train.learning_rate
    return _whole_task(loss, train, rate, **options)


def _one_phase(loss, **options):
    def phases(train, config):
        del config
        return _later_task(loss, train, **options)

    return phases


def _record_phases(loss):
    def phases(train, config):
        options = {
            "new_columns_only": not config.vdfd.regularised_head,
            "rotations": config.vdfd.self_supervision,
            "monitor": methods.squared_drift,
        }
        return _later_task(loss, train, **options)

    return phases


def _record_first_phases(train, config):
    if not config.vdfd.self_supervision:
        return first_phases(train, config)
    return _whole_task(methods.new_classification, train, train.learning_rate, rotations=True)


def _r_dfcil_phases(train, config):
    rest = 1.0 - config.tuning_epochs
    return (
        *_whole_task(methods.r_dfcil, train, train.learning_rate, share=rest, replay=True),
        _tuning_phase(config),
    )


def _pmi_first_phases(train, config):
    del config
    return _whole_task(methods.classification, train, train.learning_rate, bias_rests=True)


def _pmi_phases(train, config):
    if config.recipe == "detached":
        options = {"replay": True, "joint_batch": True, "bias_rests": True}
        return _whole_task(methods.detached_replay, train, config.body_learning_rate, **options)
    rest = 1.0 - HEAD_EPOCHS - LAST_BLOCK_EPOCHS - config.tuning_epochs
    new = {"new_columns_only": True, "replay": True}
    rate = train.learning_rate
    return (
        Phase("head", methods.pmi_head, HEAD_EPOCHS, rate, trainable="head", **new),
        Phase(
            "last_block",
            methods.pmi,
            LAST_BLOCK_EPOCHS,
            rate / 2,
            (0.5, 0.75),
            trainable="last_block",
            **new,
        ),
        Phase(
            "body",
            methods.pmi,
            rest,
            config.body_learning_rate,
            (0.5, 0.75),
            trainable="body",
            **new,
        ),
        _tuning_phase(config),
    )


def _tuning_phase(config):
    rate = config.tuning_learning_rate
    return Phase(
        "tuning", methods.tune_head, config.tuning_epochs, rate, trainable="head", replay=True
    )


def apr_learner(variant: AprVariant) -> Method:
    """APR by a row of constants (docs/methods/apr.md)."""
    phases = functools.partial(_apr_phases, variant=variant)
    return Method(phases, replay="pushed", apr=variant, cosine_head=True)


def _apr_phases(train, config, *, variant):
    del config
    rate = train.later_learning_rate or LATER_RATE * train.learning_rate
    options = {"replay": True, "joint_batch": True, "push": variant.replay}
    return _whole_task(methods.apr, train, rate, weight_decay=LATER_DECAY, **options)


_EVERYTHING = ("images", "scenes", "clip")
METHODS = {
    "joint": Method(_one_phase(methods.classification), all_data=True, learns=_EVERYTHING),
    "finetune": Method(_one_phase(methods.classification), learns=_EVERYTHING),
    "lwf": Method(_one_phase(methods.lwf)),
    "abd": Method(
        _one_phase(methods.abd, replay=True, joint_batch=True),
        replay="generator",
        keeps_generator=True,
    ),
    "r_dfcil": Method(_r_dfcil_phases, replay="generator", auxiliary=("angle_maps",)),
    "deep_inversion": Method(
        _one_phase(methods.deep_inversion, replay=True, joint_batch=True),
        replay="inversion",
        from_noise=True,
    ),
    "pmi": Method(
        _pmi_phases,
        replay="inversion",
        auxiliary=("angle_maps",),
        first_phases=_pmi_first_phases,
        calibrates=True,
        learns=("images", "clip"),
    ),
    "pixel_gaussian": Method(_pmi_phases, replay="pixels", auxiliary=("angle_maps",)),
    "apr": apr_learner(APR_VARIANTS["standard"]),
    "dfd": Method(
        _record_phases(methods.dfd),
        keeps_records=True,
        first_phases=_record_first_phases,
        learns=("images", "scenes"),
    ),
    "vdfd": Method(
        _record_phases(methods.vdfd),
        keeps_records=True,
        first_phases=_record_first_phases,
        auxiliary=("class_graph",),
        learns=("images", "scenes"),
    ),
}

# As a config's method: `jaxpmi.continual.learners:apr_published`.
apr_published = apr_learner(APR_VARIANTS["published"])
