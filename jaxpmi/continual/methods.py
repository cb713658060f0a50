"""The continual learners as data: which phases a task has, and what each phase minimises.

A loss is a pure function from `Views`, all that one training step sees, to named weighted terms;
their sum is minimised. A method adds nothing else: no callbacks, no state of its own.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import drift_penalty
from jaxpmi.continual import losses
from jaxpmi.continual.gradient_records import drift
from jaxpmi.continual.training_phase import Phase
from jaxpmi.continual.training_phase import PhasesFn
from jaxpmi.continual.training_phase import Terms
from jaxpmi.continual.training_phase import Views


def first_phases(train: TrainConfig, config: MethodConfig) -> tuple[Phase, ...]:
    """The phases of the first task: plain classification, the same for every method."""
    del config
    return _whole_task(classification, train, train.learning_rate)


@dataclasses.dataclass(frozen=True)
class Method:
    """A continual learner."""

    phases: PhasesFn  # of every later task
    replay: Literal["none", "inversion", "generator"] = "none"  # where old images come from
    from_noise: bool = False  # inversion: of the full model alone, whatever per_layer.start says
    keeps_generator: bool = False  # carries the generator over from task to task
    all_data: bool = False  # sees all data of seen classes, from a fresh network (upper bound)
    keeps_records: bool = False  # of the gradients of every task's mean logits
    first_phases: PhasesFn = first_phases  # of the first task


def classification(views: Views, config: MethodConfig) -> Terms:
    """Cross-entropy over all seen classes on real images, or on all pixels of scenes."""
    logits = views.features @ views.head
    if views.labels.ndim > 1:
        masks = views.seen_mask, views.old_mask
        loss = losses.pixel_cross_entropy(
            logits, views.labels, *masks, background=config.background
        )
    else:
        loss = losses.masked_cross_entropy(logits, views.labels, views.seen_mask)
    return {"cross_entropy": loss}


def lwf(views: Views, config: MethodConfig) -> Terms:
    """LwF: classification, and soft distillation (docs/methods/baselines.md, eq. 1)."""
    logits = views.features @ views.head
    teacher = views.teacher_features @ views.teacher_head
    distillation = losses.soft_distillation(
        logits, teacher, views.old_mask, temperature=config.lwf_temperature
    )
    return {**classification(views, config), "distillation": config.lwf_weight * distillation}


def deep_inversion(views: Views, config: MethodConfig) -> Terms:
    """LwF, and soft distillation on synthetic images (docs/methods/baselines.md, eq. 3)."""
    distillation = losses.soft_distillation(
        views.replay_features @ views.head,
        views.teacher_replay_features @ views.teacher_head,
        views.old_mask,
        class_mask=views.seen_mask,
        temperature=config.lwf_temperature,
    )
    return {**lwf(views, config), "replay_distillation": config.lwf_weight * distillation}


def abd(views: Views, config: MethodConfig) -> Terms:
    """ABD: local, head and feature losses (docs/methods/baselines.md, eqs. 6 to 8)."""
    weights = losses.abd_class_weights(views.new_mask, views.old_mask)
    features, labels = views.all_features(), views.all_labels()
    teacher = jnp.concatenate([views.teacher_features, views.teacher_replay_features])
    logits = views.features @ views.head
    change = losses.abd_feature_loss(features, teacher, views.teacher_head, views.old_mask)
    return {
        "local": losses.abd_local_loss(logits, views.labels, views.new_mask, weights),
        "head": losses.abd_head_loss(views.head, features, labels, views.seen_mask, weights),
        "features": config.abd_weight * change,
    }


def r_dfcil(views: Views, config: MethodConfig) -> Terms:
    """R-DFCIL's first stage (docs/methods/baselines.md, eq. 9)."""
    factors = views.factors(config)
    terms = _pmi_terms(views)
    return {
        "local": factors.ce * terms.ce,
        "hard_distillation": factors.hkd * terms.hkd,
        "angles": factors.rkd * terms.rkd,
    }


def pmi(views: Views, config: MethodConfig) -> Terms:
    """PMI: R-DFCIL's three terms and one that trains the head (docs/methods/pmi.md, eq. 18)."""
    factors = views.factors(config)
    terms = _pmi_terms(views)
    if config.combine == "product":
        return {"product": losses.combine_terms(terms, factors, combine="product")}
    return {
        "local": factors.ce * terms.ce,
        "hard_distillation": factors.hkd * terms.hkd,
        "angles": factors.rkd * terms.rkd,
        "head": factors.ft * terms.ft,
    }


def detached_replay(views: Views, config: MethodConfig) -> Terms:
    """Local losses on real and on synthetic images; only the head tells the two apart.

    A network asked to separate real new from synthetic old images learns to see which image is
    synthetic. So the backbone gets cross-entropy among the new classes on real images, and among
    the old classes on synthetic ones, hard distillation on synthetic images, and ABD's feature
    distillation on real ones; the head alone gets cross-entropy over all seen classes. Of that one
    the backbone gets a part, `joint_weight`: none where synthetic images look unlike real ones,
    more the closer they are. Parts are weighted by their share of the seen classes
    (docs/methods/pmi.md, eq. 20).
    """
    new, old = views.new_mask.sum(), views.old_mask.sum()
    share_new, share_old = new / (new + old), old / (new + old)
    logits, replay_logits = views.features @ views.head, views.replay_features @ views.head
    real = (views.head, views.features, views.labels, views.seen_mask)
    replay = (views.head, views.replay_features, views.replay_labels, views.seen_mask)
    terms = {
        "local": share_new * losses.masked_cross_entropy(logits, views.labels, views.new_mask),
        "replay_local": share_old
        * losses.masked_cross_entropy(replay_logits, views.replay_labels, views.old_mask),
        "head": share_new * losses.head_cross_entropy(*real)
        + share_old * losses.head_cross_entropy(*replay),
        "hard_distillation": config.hkd_weight
        * losses.hard_distillation(
            replay_logits, views.teacher_replay_features @ views.teacher_head, views.old_mask
        ),
        "features": config.abd_weight
        * losses.abd_feature_loss(
            views.features, views.teacher_features, views.teacher_head, views.old_mask
        ),
    }
    if config.joint_weight > 0:
        frozen = jax.lax.stop_gradient(views.head)
        joint = share_new * losses.masked_cross_entropy(
            views.features @ frozen, views.labels, views.seen_mask
        ) + share_old * losses.masked_cross_entropy(
            views.replay_features @ frozen, views.replay_labels, views.seen_mask
        )
        terms["joint"] = config.joint_weight * joint
    return terms


def pmi_head(views: Views, config: MethodConfig) -> Terms:
    """PMI's losses while only the new head trains: no relational term."""
    terms = pmi(views._replace(teacher_features=views.features), config)
    return {name: term for name, term in terms.items() if name != "angles"}


def tune_head(views: Views, config: MethodConfig) -> Terms:
    """Balanced head tuning, and hard distillation (docs/methods/pmi.md, eq. 19)."""
    logits = views.all_features() @ views.head
    hard = losses.hard_distillation(
        views.replay_features @ views.head,
        views.teacher_replay_features @ views.teacher_head,
        views.old_mask,
    )
    balanced = losses.masked_cross_entropy(
        logits, views.all_labels(), views.seen_mask, class_weights=views.class_weights
    )
    return {
        "balanced": config.ce_weight * balanced,
        "hard_distillation": views.factors(config).hkd * hard,
    }


def new_classification(views: Views, config: MethodConfig) -> Terms:
    """Cross-entropy over the new classes alone; with rotations, over pairs of class and turn.

    Of scenes it is over all seen classes, for their background is old classes too.
    """
    if views.labels.ndim > 1:
        return classification(views, config)
    if config.vdfd.self_supervision:
        heads = jnp.concatenate([views.head[None], views.auxiliary["rotated_head"]])
        loss = losses.rotation_cross_entropy(views.features, heads, views.labels, views.new_mask)
    else:
        logits = views.features @ views.head
        loss = losses.masked_cross_entropy(logits, views.labels, views.new_mask)
    return {"cross_entropy": loss}


def dfd(views: Views, config: MethodConfig) -> Terms:
    """DFD: classification of the new classes, and the squared drift of old tasks' mean logits."""
    penalty = drift_penalty.squared_drift(drift(views.records, views.tensors))
    return {**new_classification(views, config), "drift": config.vdfd.drift_weight * penalty}


def vdfd(views: Views, config: MethodConfig) -> Terms:
    """VDFD: the same, with drifts weighed by learnt precisions (docs/methods/vdfd.md, eq. 6).

    Nodes are columns of the teacher's head, those of the network when the task began.
    """
    settings = config.vdfd
    precisions = drift_penalty.class_precisions(
        views.auxiliary["class_graph"], views.teacher_head, views.records, settings
    )
    drifts = drift(views.records, views.tensors)
    quadratic, log_determinant = drift_penalty.learned_penalty(
        drifts, precisions, views.records, settings
    )
    return {
        **new_classification(views, config),
        "drift": settings.drift_weight * quadratic,
        "log_determinant": settings.drift_weight * log_determinant,
    }


def squared_drift(views: Views, config: MethodConfig) -> Terms:
    """What VDFD's penalty may hide: how far old tasks' mean logits have moved, to first order."""
    del config
    return {"squared_drift": drift_penalty.squared_drift(drift(views.records, views.tensors))}


def _pmi_terms(views):
    logits = views.features @ views.head
    return losses.DistillationFactors(
        ce=losses.masked_cross_entropy(logits, views.labels, views.new_mask),
        hkd=losses.hard_distillation(
            views.replay_features @ views.head,
            views.teacher_replay_features @ views.teacher_head,
            views.old_mask,
        ),
        rkd=losses.angle_distillation(
            views.auxiliary["angle_maps"], views.features, views.teacher_features
        ),
        ft=losses.head_cross_entropy(
            views.head, views.all_features(), views.all_labels(), views.seen_mask
        ),
    )


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
            "monitor": squared_drift,
        }
        return _later_task(loss, train, **options)

    return phases


def _record_first_phases(train, config):
    if not config.vdfd.self_supervision:
        return first_phases(train, config)
    return _whole_task(new_classification, train, train.learning_rate, rotations=True)


def _r_dfcil_phases(train, config):
    rest = 1.0 - config.tuning_epochs
    return (
        *_whole_task(r_dfcil, train, train.learning_rate, share=rest, replay=True),
        _tuning_phase(config),
    )


def _pmi_phases(train, config):
    if config.recipe == "detached":
        options = {"replay": True, "joint_batch": True}
        return _whole_task(detached_replay, train, config.body_learning_rate, **options)
    rest = 1.0 - config.head_epochs - config.last_block_epochs - config.tuning_epochs
    new = {"new_columns_only": True, "replay": True}
    rate = train.learning_rate
    return (
        Phase("head", pmi_head, config.head_epochs, rate, trainable="head", **new),
        Phase(
            "last_block",
            pmi,
            config.last_block_epochs,
            rate / 2,
            (0.5, 0.75),
            trainable="last_block",
            **new,
        ),
        Phase("body", pmi, rest, config.body_learning_rate, (0.5, 0.75), trainable="body", **new),
        _tuning_phase(config),
    )


def _tuning_phase(config):
    rate = config.tuning_learning_rate
    return Phase("tuning", tune_head, config.tuning_epochs, rate, trainable="head", replay=True)


METHODS = {
    "joint": Method(_one_phase(classification), all_data=True),
    "finetune": Method(_one_phase(classification)),
    "lwf": Method(_one_phase(lwf)),
    "abd": Method(
        _one_phase(abd, replay=True, joint_batch=True), replay="generator", keeps_generator=True
    ),
    "r_dfcil": Method(_r_dfcil_phases, replay="generator"),
    "deep_inversion": Method(
        _one_phase(deep_inversion, replay=True, joint_batch=True),
        replay="inversion",
        from_noise=True,
    ),
    "pmi": Method(_pmi_phases, replay="inversion"),
    "dfd": Method(_record_phases(dfd), keeps_records=True, first_phases=_record_first_phases),
    "vdfd": Method(_record_phases(vdfd), keeps_records=True, first_phases=_record_first_phases),
}
