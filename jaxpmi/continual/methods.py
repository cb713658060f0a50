"""What the continual learners minimise, a function per phase.

A loss is a pure function from `Views`, all that one training step sees, to named weighted terms;
their sum is minimised.
"""

import jax

from jaxpmi.config import MethodConfig
from jaxpmi.continual import losses
from jaxpmi.continual.training_phase import Terms
from jaxpmi.continual.training_phase import Views
from jaxpmi.continual.vdfd import drift_penalty
from jaxpmi.continual.vdfd.gradient_records import drift

LWF_TEMPERATURE = 2.0  # as in LwF's paper and ABD's benchmark
APR_DISTILLATION = 10.0  # over LwF's weight


def classification(views: Views, config: MethodConfig) -> Terms:
    """Cross-entropy over all seen classes on real images, or on all pixels of scenes."""
    logits = views.head(views.features)
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
    logits = views.head(views.features)
    teacher = views.teacher_head(views.teacher_features)
    distillation = losses.soft_distillation(
        logits, teacher, views.old_mask, temperature=LWF_TEMPERATURE
    )
    return {**classification(views, config), "distillation": config.lwf_weight * distillation}


def apr(views: Views, config: MethodConfig) -> Terms:
    """APR: local cross-entropy, and soft distillation on all images (docs/methods/apr.md, eq. 3).

    Replay are new images, pushed: of no class, so that their labels take no part.
    """
    logits, teacher = views.head(views.all_features()), views.all_teacher_features()
    distillation = losses.soft_distillation(
        logits, views.teacher_head(teacher), views.old_mask, temperature=LWF_TEMPERATURE
    )
    real = logits[: len(views.labels)]
    return {
        "local": losses.masked_cross_entropy(real, views.labels, views.new_mask),
        "distillation": APR_DISTILLATION * config.lwf_weight * distillation,
    }


def deep_inversion(views: Views, config: MethodConfig) -> Terms:
    """LwF, and soft distillation on synthetic images (docs/methods/baselines.md, eq. 3)."""
    distillation = losses.soft_distillation(
        views.head(views.replay_features),
        views.teacher_head(views.teacher_replay_features),
        views.old_mask,
        class_mask=views.seen_mask,
        temperature=LWF_TEMPERATURE,
    )
    return {**lwf(views, config), "replay_distillation": config.lwf_weight * distillation}


def abd(views: Views, config: MethodConfig) -> Terms:
    """ABD: local, head and feature losses (docs/methods/baselines.md, eqs. 6 to 8)."""
    weights = losses.abd_class_weights(views.new_mask, views.old_mask)
    features, labels = views.all_features(), views.all_labels()
    teacher = views.all_teacher_features()
    logits = views.head(views.features)
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
    if config.recipe == "published":
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
    logits, replay_logits = views.head(views.features), views.head(views.replay_features)
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
            replay_logits, views.teacher_head(views.teacher_replay_features), views.old_mask
        ),
        "features": config.abd_weight
        * losses.abd_feature_loss(
            views.features, views.teacher_features, views.teacher_head, views.old_mask
        ),
    }
    if config.joint_weight > 0:
        frozen = jax.lax.stop_gradient(views.head)
        joint = share_new * losses.masked_cross_entropy(
            frozen(views.features), views.labels, views.seen_mask
        ) + share_old * losses.masked_cross_entropy(
            frozen(views.replay_features), views.replay_labels, views.seen_mask
        )
        terms["joint"] = config.joint_weight * joint
    return terms


def pmi_head(views: Views, config: MethodConfig) -> Terms:
    """PMI's losses while only the new head trains: no relational term."""
    terms = pmi(views._replace(teacher_features=views.features), config)
    return {name: term for name, term in terms.items() if name != "angles"}


def tune_head(views: Views, config: MethodConfig) -> Terms:
    """Balanced head tuning, and hard distillation (docs/methods/pmi.md, eq. 19)."""
    logits = views.head(views.all_features())
    hard = losses.hard_distillation(
        views.head(views.replay_features),
        views.teacher_head(views.teacher_replay_features),
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
        loss = losses.rotation_cross_entropy(
            views.features,
            views.head,
            views.auxiliary["rotated_head"],
            views.labels,
            views.new_mask,
        )
    else:
        logits = views.head(views.features)
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
        views.auxiliary["class_graph"], views.teacher_head.kernel, views.records, settings
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
    logits = views.head(views.features)
    return losses.DistillationFactors(
        ce=losses.masked_cross_entropy(logits, views.labels, views.new_mask),
        hkd=losses.hard_distillation(
            views.head(views.replay_features),
            views.teacher_head(views.teacher_replay_features),
            views.old_mask,
        ),
        rkd=losses.angle_distillation(
            views.auxiliary["angle_maps"], views.features, views.teacher_features
        ),
        ft=losses.head_cross_entropy(
            views.head, views.all_features(), views.all_labels(), views.seen_mask
        ),
    )
