"""Classification and distillation losses of the continual learners.

There is one joint head over all C classes of the stream, logits f32[B, C]. Which classes are new,
old or seen is a mask, bool[C] or f32[C] of zeros and ones, so one compiled step serves every task.
Losses over an empty set of classes are 0, except the cross-entropies, which need their labels.
"""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.network import Head
from jaxpmi.types import IGNORED_LABEL
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey


class DistillationFactors(NamedTuple):
    """Weights of the four terms of PMI's and R-DFCIL's training loss."""

    ce: jax.Array  # local cross-entropy on real images
    hkd: jax.Array  # hard distillation on synthetic images
    rkd: jax.Array  # relational (angle) distillation on real images
    ft: jax.Array  # cross-entropy of the head alone, on real and synthetic images


def cross_entropies(logits: jax.Array, labels: jax.Array, class_mask: jax.Array) -> jax.Array:
    """Cross-entropy f32[B] of each label i32[B] among the masked classes' logits f32[B, C].

    Other classes get no gradient. A label outside the mask costs about 1e9, to be noticed.
    """
    log_probabilities = _masked_log_softmax(logits, class_mask)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]


def masked_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    class_mask: jax.Array,
    *,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy among a subset of classes; "local" with the mask of the new classes.

    Args:
      logits: f32[B, C].
      labels: i32[B], each in the mask.
      class_mask: bool[C] or f32[C], the classes that compete.
      class_weights: f32[C]; the mean is then sum_b w_b l_b / sum_b w_b with w_b the label's weight.

    Returns:
      f32[].
    """
    losses = cross_entropies(logits, labels, class_mask)
    if class_weights is None:
        return losses.mean()
    weights = class_weights[labels]
    return (weights * losses).sum() / jnp.maximum(weights.sum(), 1e-12)


def pixel_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    seen_mask: jax.Array,
    old_mask: jax.Array,
    *,
    background: Literal["unbiased", "plain"],
) -> jax.Array:
    """Mean cross-entropy over the pixels of label maps, for segmentation.

    In the scenes of a task, pixels of old classes are labelled 0, background. "unbiased" takes the
    label at its word: such a pixel is background or of any old class, so that their probabilities
    add up (Cermelli et al., "Modeling the Background", CVPR 2020, eq. 5; docs/segmentation.md,
    eq. 1). Without old classes that is the plain cross-entropy.

    Args:
      logits: f32[B, H, W, C].
      labels: i32[B, H, W]; pixels of `IGNORED_LABEL` do not count.
      seen_mask: [C], the classes that compete.
      old_mask: [C], classes of earlier tasks.
      background: "plain" to take old classes' pixels for background.

    Returns:
      f32[]; 0 if no pixel counts.
    """
    labels = labels.reshape(-1)
    log_probabilities = _masked_log_softmax(logits.reshape(-1, logits.shape[-1]), seen_mask)
    # A sum over classes: XLA:CPU gathers slowly, and the gradient would scatter.
    chosen = labels[:, None] == jnp.arange(logits.shape[-1])[None]
    own = jnp.where(chosen, log_probabilities, 0.0).sum(1)
    if background == "unbiased":
        either = (jnp.asarray(old_mask) > 0).at[0].set(True)
        either = jax.nn.logsumexp(jnp.where(either[None], log_probabilities, -1e9), axis=1)
        own = jnp.where(labels == 0, either, own)
    counted = labels != IGNORED_LABEL
    return -jnp.where(counted, own, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def head_cross_entropy(
    head: Head,
    features: jax.Array,
    labels: jax.Array,
    class_mask: jax.Array,
    *,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """`masked_cross_entropy` that trains the head only: features are detached (L_ft)."""
    logits = head(jax.lax.stop_gradient(features))
    return masked_cross_entropy(logits, labels, class_mask, class_weights=class_weights)


def rotation_cross_entropy(
    features: jax.Array,
    head: Head,
    turned: jax.Array,
    labels: jax.Array,
    class_mask: jax.Array,
) -> jax.Array:
    """Mean cross-entropy of joint classification of class c and quarter turns k, label 4 c + k.

    Args:
      features: f32[4B, D] of `augment.quarter_turns`, the four of an image adjacent.
      head: the classifier of upright images.
      turned: f32[3, D, C], those of the other rotations.
      labels: i32[B], classes, each in the mask.
      class_mask: [C], the classes that compete.

    Returns:
      f32[].
    """
    kernels = jnp.concatenate([head.kernel[None], turned])
    turns = jnp.arange(len(kernels))
    logits = jnp.einsum("bd,kdc->bck", features, kernels)
    if head.bias is not None:
        logits = logits.at[:, :, 0].add(head.bias[None])
    joint = (len(kernels) * labels[:, None] + turns[None]).reshape(-1)
    mask = jnp.repeat(class_mask, len(kernels))
    return masked_cross_entropy(logits.reshape(len(features), -1), joint, mask)


def inverse_count_weights(counts: jax.Array) -> jax.Array:
    """Class weights max(counts) / counts of head tuning; counts f32[C] start at 1.

    R-DFCIL's (total / count) / min of the same is this very rule (docs/methods/pmi.md, eq. 19).
    """
    return counts.max() / jnp.maximum(counts, 1.0)


def hard_distillation(
    logits: jax.Array, teacher_logits: jax.Array, old_mask: jax.Array, *, detach: bool = True
) -> jax.Array:
    """Mean absolute difference of f32[B, C] logits over batch and old classes (L_hkd).

    With `detach` no gradient reaches the teacher's logits.
    """
    mask = jnp.asarray(old_mask, logits.dtype)
    wanted = jax.lax.stop_gradient(teacher_logits) if detach else teacher_logits
    distance = jnp.abs(logits - wanted) * mask[None]
    return distance.sum(1).mean() / jnp.maximum(mask.sum(), 1.0)


def soft_distillation(
    logits: jax.Array,
    teacher_logits: jax.Array,
    old_mask: jax.Array,
    *,
    class_mask: jax.Array | None = None,
    temperature: float = 2.0,
) -> jax.Array:
    """LwF's soft cross-entropy H(softmax(z_old / T), softmax(z / T)), mean over batch, no T^2.

    Args:
      logits: z, f32[B, C].
      teacher_logits: z_old, f32[B, C].
      old_mask: [C], the classes of the teacher's softmax.
      class_mask: [C], the classes of the student's softmax; None: `old_mask` (LwF). With the seen
        classes, the target is zero on the new ones (DeepInversion on synthetic images).
      temperature: T.

    Returns:
      f32[].
    """
    class_mask = old_mask if class_mask is None else class_mask
    teacher = _masked_log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature, old_mask)
    target = jnp.exp(teacher) * jnp.asarray(old_mask, logits.dtype)[None]
    log_probabilities = _masked_log_softmax(logits / temperature, class_mask)
    return -(target * log_probabilities).sum(1).mean()


def sigmoid_distillation(
    logits: jax.Array,
    labels: jax.Array,
    teacher_logits: jax.Array,
    new_mask: jax.Array,
    old_mask: jax.Array,
) -> jax.Array:
    """LwF.MC: binary cross-entropy summed over seen classes, mean over the batch.

    Targets are one-hot labels i32[B] on the new classes and sigmoid(z_old) on the old ones.
    """
    new = jnp.asarray(new_mask, logits.dtype)[None]
    old = jnp.asarray(old_mask, logits.dtype)[None]
    one_hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    target = new * one_hot + old * jax.nn.sigmoid(jax.lax.stop_gradient(teacher_logits))
    # -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)) = softplus(z) - t z
    return ((new + old) * (jax.nn.softplus(logits) - target * logits)).sum(1).mean()


def init_angle_projections(
    key: PRNGKey, feature_dim: int, teacher_dim: int, *, width: int = 128
) -> Params:
    """The two trainable linear maps of `angle_distillation`, uniform within 1 / sqrt(fan-in)."""
    params = {}
    for name, dim in (("student", feature_dim), ("teacher", teacher_dim)):
        key, key_weight, key_bias = jax.random.split(key, 3)
        bound = dim**-0.5
        params[name] = {
            "weight": jax.random.uniform(key_weight, (dim, width), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(key_bias, (width,), minval=-bound, maxval=bound),
        }
    return params


def angle_distillation(
    projections: Params, features: jax.Array, teacher_features: jax.Array
) -> jax.Array:
    """R-DFCIL's relational loss, the mean over triples of |cos_student - cos_teacher| (i, j, k).

    cos(i, j, k) is the angle at i between p_j - p_i and p_k - p_i, p being the projected features.

    Args:
      projections: from `init_angle_projections`; both maps are trained.
      features: f32[B, D] of the network in training.
      teacher_features: f32[B, D'] of the same images from the previous network, detached.

    Returns:
      f32[], over all B^3 triples (those with equal points count as 0).
    """
    student = projected_angles(projections["student"], features)
    teacher = projected_angles(projections["teacher"], jax.lax.stop_gradient(teacher_features))
    return jnp.abs(student - teacher).mean()


def projected_angles(projection: Params, features: jax.Array) -> jax.Array:
    """Cosines f32[B, B, B] at point i between points j and k of the projected f32[B, D].

    Inner products of differences come from one Gram matrix G of the centred points,
    <p_j - p_i, p_k - p_i> = G_jk - G_ij - G_ik + G_ii: no product over the projected width per
    triple. Points closer than a thousandth of their norm count as equal: cosine 0, no gradient.
    """
    points = features @ projection["weight"] + projection["bias"][None]
    points = points - points.mean(0, keepdims=True)
    gram = jnp.dot(points, points.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.diagonal(gram)
    norms = square[None, :] + square[:, None]
    distance = norms - 2.0 * gram  # squared
    apart = distance > 1e-6 * norms
    # The inner `where` keeps the gradient finite at equal points.
    inverse = jnp.where(apart, jax.lax.rsqrt(jnp.where(apart, distance, 1.0)), 0.0)
    inner = gram[None] - gram[:, :, None] - gram[:, None, :] + square[:, None, None]
    return inner * inverse[:, :, None] * inverse[:, None, :]


def adaptive_scales(
    num_new: jax.Array | float, num_old: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """R-DFCIL's alpha = log2(num_new / 2 + 1) and beta = sqrt(num_old / num_new)."""
    num_new, num_old = jnp.asarray(num_new, jnp.float32), jnp.asarray(num_old, jnp.float32)
    return jnp.log2(0.5 * num_new + 1.0), jnp.sqrt(num_old / num_new)


def distillation_factors(
    num_new: jax.Array | float,
    num_old: jax.Array | float,
    *,
    ce: float,
    hkd: float,
    rkd: float,
    ft: float = 0.0,
) -> DistillationFactors:
    """Scales the base weights lambda by the numbers of new and old classes, which may be traced.

    ce and ft: lambda (1 + 1 / alpha) / beta; hkd and rkd: lambda alpha beta (docs/methods/pmi.md,
    eqs. 16, 17; R-DFCIL is ce .5, hkd .15, rkd .5). In the first task (num_old = 0) ce is 1 and the
    rest 0.
    """
    alpha, beta = adaptive_scales(num_new, num_old)
    first = beta == 0.0
    plastic = (1.0 + 1.0 / alpha) / jnp.where(first, 1.0, beta)
    return DistillationFactors(
        ce=jnp.where(first, 1.0, ce * plastic),
        hkd=hkd * alpha * beta,
        rkd=rkd * alpha * beta,
        ft=jnp.where(first, 0.0, ft * plastic),
    )


def combine_terms(
    terms: DistillationFactors,
    factors: DistillationFactors,
    *,
    combine: Literal["sum", "product"] = "sum",
) -> jax.Array:
    """Weighted sum of the four loss terms, given in the same container as their factors.

    "product" multiplies the weighted rkd and ft terms, as PMI's released code does.
    """
    weighted = jax.tree.map(jnp.multiply, terms, factors)
    if combine == "sum":
        return weighted.ce + weighted.hkd + weighted.rkd + weighted.ft
    if combine == "product":
        return weighted.ce + weighted.hkd + weighted.rkd * weighted.ft
    raise ValueError(f"unknown combination {combine!r}; use 'sum' or 'product'.")


def abd_class_weights(new_mask: jax.Array, old_mask: jax.Array) -> jax.Array:
    """ABD's class weights f32[C]: old classes num_old / num_seen, new ones num_new / num_seen.

    In the first task every seen class has weight 1. Unseen classes have weight 0.
    """
    new, old = jnp.asarray(new_mask, jnp.float32), jnp.asarray(old_mask, jnp.float32)
    num_new, num_old = new.sum(), old.sum()
    return (new * num_new + old * num_old) / jnp.maximum(num_new + num_old, 1.0)


def abd_local_loss(
    logits: jax.Array, labels: jax.Array, new_mask: jax.Array, class_weights: jax.Array
) -> jax.Array:
    """ABD's L1, mean_b w_b CE_b on real images among the new classes only.

    Unlike `masked_cross_entropy`, ABD divides by the batch size, not by the sum of weights.
    """
    return (class_weights[labels] * cross_entropies(logits, labels, new_mask)).mean()


def abd_head_loss(
    head: Head,
    features: jax.Array,
    labels: jax.Array,
    seen_mask: jax.Array,
    class_weights: jax.Array,
) -> jax.Array:
    """ABD's L2, mean_b w_b CE_b on real and synthetic images; detached features.

    The released code lets unseen classes compete: pass a mask of ones for that.
    """
    logits = head(jax.lax.stop_gradient(features))
    return (class_weights[labels] * cross_entropies(logits, labels, seen_mask)).mean()


def abd_feature_loss(
    features: jax.Array, teacher_features: jax.Array, teacher_head: Head, old_mask: jax.Array
) -> jax.Array:
    """ABD's L3, mean_b ||W_old (phi_b - phi_old_b)||^2 / num_old (weight mu = .1 not included).

    The feature change f32[B, D] is seen through the frozen old head's kernel: directions that
    the old classifier ignores are free.
    """
    mask = jnp.asarray(old_mask, features.dtype)
    kernel = jax.lax.stop_gradient(teacher_head.kernel) * mask[None]
    change = (features - jax.lax.stop_gradient(teacher_features)) @ kernel
    return jnp.square(change).sum(1).mean() / jnp.maximum(mask.sum(), 1.0)


def _masked_log_softmax(logits, class_mask):
    # A large negative number, not -inf, keeps values and gradients finite for every mask.
    mask = jnp.asarray(class_mask) > 0
    return jax.nn.log_softmax(jnp.where(mask[None], logits, -1e9), axis=1)
