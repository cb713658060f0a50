"""DeepInversion and, against a student, Adaptive DeepInversion: images from a network alone.

Noise, or any other start, becomes images of given classes whose layer inputs have the moments that
the network's BatchNorms remember. (Yin et al., Dreaming to Distill, CVPR 2020;
docs/methods/deep_inversion.md, eq. 1.)
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import DeepInversionConfig
from jaxpmi.doors import check_inversion
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion import spectrum
from jaxpmi.inversion.memory_check import with_layer_moments
from jaxpmi.inversion.own_terms import OwnTerm
from jaxpmi.inversion.own_terms import add_own_terms
from jaxpmi.inversion.own_terms import find_own_terms
from jaxpmi.inversion.own_terms import own_weights
from jaxpmi.inversion.per_layer import batch_sharding
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.inversion.variants import DeepInversionVariant
from jaxpmi.inversion.views import random_view
from jaxpmi.memory import Memory
from jaxpmi.network import Network
from jaxpmi.optimise import schedules
from jaxpmi.optimise.minimise import Solution
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

COMPETITION_TEMPERATURE = 3.0  # of both softmaxes, as published


class _Problem(NamedTuple):
    """Everything that is the same for all images."""

    teacher: Network
    student: Network | None
    class_mask: jax.Array  # bool[C]
    rates: tuple[jax.Array, ...]  # per stage, f32[S]: the learning rate of every step


def noise_start(labels: jax.Array, key: PRNGKey, *, image_shape: tuple[int, int, int]) -> jax.Array:
    """Standard-normal images f32[B, H, W, C], on the devices on which i32[B] `labels` are."""
    channels = image_shape[-1]
    standard = Moments(jnp.zeros(channels), jnp.ones(channels))
    return draw_start(standard, tuple(image_shape), key, labels)


def first_images(
    network: Network, labels: jax.Array, key: PRNGKey, *, variant: DeepInversionVariant
) -> jax.Array:
    """The start from nothing that suits `variant.parameters`, normalised f32[B, H, W, channels]."""
    if variant.parameters == "pixels":
        return noise_start(labels, key, image_shape=network.image_shape)
    limits = (limit.reshape(1, 1, 1, -1) for limit in network.pixel_range)
    return spectrum.spectral_start(labels, key, *limits, image_shape=network.image_shape)


def learning_rates(peak: float, num_steps: int, *, variant: DeepInversionVariant) -> jax.Array:
    """The learning rate of every step of a stage, f32[S].

    Linear warm-up from 1/warmup_steps of the peak, which its last step has; then the peak or, for
    `schedule="cosine"`, peak * (1 + cos(pi (e - warmup) / (S - warmup))) / 2 at step e
    (docs/methods/deep_inversion.md, eq. 7).
    """
    decay = schedules.constant()
    if variant.schedule == "cosine":
        decay = schedules.cosine_to_zero(num_steps - variant.warmup_steps)
    return schedules.learning_rates(
        num_steps, peak, decay, warmup_steps=variant.warmup_steps, warmup="to_peak"
    )


def stage_scales(config: DeepInversionConfig) -> tuple[int, ...]:
    """Per stage by how much views are averaged down: 1 in the last, twice as much before."""
    return tuple(2**i for i in reversed(range(len(config.stage_steps))))


def competition(student: jax.Array, teacher: jax.Array, *, variant: DeepInversionVariant):
    """The term by which images make f32[B, C] logits of student and teacher differ, f32[]."""
    if variant.competition == "paper":
        return 1.0 - objectives.jensen_shannon(student, teacher, COMPETITION_TEMPERATURE)
    divergence = objectives.reference_divergence(student, teacher, COMPETITION_TEMPERATURE)
    if variant.competition == "negative":
        return -divergence
    return 1.0 - jnp.clip(divergence, 0.0, 1.0)


def deep_inversion(
    network: Network,
    labels: jax.Array,
    key: PRNGKey,
    *,
    config: DeepInversionConfig | None = None,
    start: jax.Array | None = None,
    memory: Memory | None = None,
    class_mask: jax.Array | None = None,
    student: Network | None = None,
    own_terms: tuple[OwnTerm, ...] = (),
    variant: DeepInversionVariant | None = None,
) -> Synthetic:
    """Optimises images until the network sees the labels in them, and its own data's statistics.

    Every stage has a fresh Adam and its own best iterate. The published code compares stages, of
    which those of low resolution have the lower loss (`compare_stages`), and keeps the iterate
    after the step whose loss it is, which is not offered: here images and loss belong together.

    With a `statistics_scope` of "device" every device inverts its share of the batch on its own,
    with shifts and flips of its own; losses and terms are then means over devices.

    Args:
      network: frozen; its BatchNorms use the running moments.
      labels: i32[B], each in [0, C).
      key: key[], consumed.
      config: stages, terms and their weights; terms of weight 0 are left out. None: the defaults.
      start: f32[B, H, W, channels] in normalised units; None: `first_images`.
      memory: whose `layer_moments`, if it has any, are aimed at instead of those that the network
        keeps: for networks without BatchNorm. None: the network's own.
      class_mask: bool[C], the classes that the head knows; None: all.
      student: the competitor in Adaptive DeepInversion, frozen and in evaluation mode.
      own_terms: more terms of the loss, of the random views.
      variant: a procedure of one's own; None: that of `config.variant`.

    Returns:
      The images, with the losses of all stages one after the other.

    Raises:
      ValueError: a label without a class, settings that contradict each other or the images, a
        competition without a student, or a network that keeps no moments.
    """
    config = DeepInversionConfig() if config is None else config
    variant = DEEP_INVERSION_VARIANTS[config.variant] if variant is None else variant
    network = with_layer_moments(network, memory)
    check_inversion(network, labels, key, statistics_weight=config.statistics_weight)
    labels = jnp.asarray(labels)
    if start is None:
        key_start, key = jax.random.split(key)
        start = first_images(network, labels, key_start, variant=variant)
    mask = jnp.ones(network.num_classes, bool) if class_mask is None else class_mask
    own_terms += find_own_terms(config.own_terms, "deep_inversion.own_terms")
    _check_settings(config, variant, start, student, own_terms)
    _check_labels(labels, mask)
    # Rates are data: another learning rate needs no other program.
    peak = config.learning_rate
    rates = tuple(learning_rates(peak, steps, variant=variant) for steps in config.stage_steps)
    solution = _solve(
        _Problem(network, student, mask, rates),
        labels,
        start,
        key,
        config=dataclasses.replace(config, learning_rate=1.0),
        variant=variant,
        own_terms=own_terms,
        sharding=batch_sharding(start) if variant.statistics_scope == "device" else None,
    )
    return as_stored(network, solution, labels, class_mask=class_mask)


@functools.partial(jax.jit, static_argnames=("config", "variant", "own_terms", "sharding"))
def _solve(
    problem, labels, start, key, *, config, variant, own_terms, sharding: NamedSharding | None
):
    """`_invert` of the whole batch or, with a sharding, of every device's share by itself."""
    invert = functools.partial(_invert, config=config, variant=variant, own_terms=own_terms)
    if sharding is None:
        return invert(problem, labels, start, key)
    (axis,) = sharding.spec

    def invert_share(problem, labels, start, key):
        share = invert(problem, labels, start, jax.random.fold_in(key, jax.lax.axis_index(axis)))
        means = jax.lax.pmean((share.loss, share.losses, share.terms), axis)
        finite = jax.lax.pmin(share.finite.astype(jnp.int32), axis) > 0
        return Solution(share.x, *means, finite)

    whole, split = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(
        invert_share,
        mesh=sharding.mesh,
        in_specs=(whole, split, split, whole),
        out_specs=Solution(split, whole, whole, whole, whole),
        check_vma=False,
    )(problem, labels, start, key)


def _invert(problem, labels, start, key, *, config, variant, own_terms):
    """All stages, one after the other, on one batch."""
    low, high = (limit.reshape(1, 1, 1, -1) for limit in problem.teacher.pixel_range)
    clip = (lambda x: jnp.clip(x, low, high)) if variant.clip_pixels else None
    as_images = lambda x: x  # noqa: E731
    if variant.parameters == "spectrum":
        as_images = functools.partial(
            spectrum.images_of, low=low, high=high, image_shape=start.shape[1:]
        )
        start, clip = spectrum.coefficients_of(start, low, high), None
    problem = problem._replace(
        teacher=_in_precision(problem.teacher, variant.forward_precision),
        student=_in_precision(problem.student, variant.forward_precision),
    )
    x, solutions = start if clip is None else clip(start), []
    for i, (scale, rates) in enumerate(zip(stage_scales(config), problem.rates, strict=True)):
        terms = functools.partial(
            _terms,
            problem,
            labels,
            scale=scale,
            config=config,
            variant=variant,
            own_terms=own_terms,
        )
        solution = minimise(
            lambda x, key, terms=terms: terms(as_images(x), key),
            x,
            jax.random.fold_in(key, i),
            weights=_weights(config, variant) | own_weights(own_terms),
            learning_rates=rates,
            project=clip,
            iterate=variant.iterate,
            tx=optax.scale_by_adam(*variant.adam_betas),
        )
        x = solution.x
        solutions.append(solution)
    kept = functools.reduce(_better, solutions) if variant.compare_stages else solutions[-1]
    return Solution(
        as_images(kept.x),
        kept.loss,
        jnp.concatenate([solution.losses for solution in solutions]),
        kept.terms,
        jnp.stack([solution.finite for solution in solutions]).all(),
    )


def _terms(problem, labels, x, key, *, scale, config, variant, own_terms):
    """The unweighted terms of images `x`, all but one of them on a random view."""
    views = random_view(
        x,
        key,
        scale=scale,
        jitter_pixels=config.jitter_pixels,
        flip=config.flip,
        crop_scale=variant.crop_scale,
    )
    seen = views.astype(variant.forward_precision)
    predict = functools.partial(_predict, images=seen, class_mask=problem.class_mask)
    logits, moments = predict(problem.teacher)
    terms = {}
    if config.cross_entropy_weight > 0:
        terms["cross_entropy"] = objectives.class_cross_entropy(logits, labels)
    if config.statistics_weight > 0:
        terms["statistics"] = objectives.batch_norm_distance(
            problem.teacher.model,
            moments,
            problem.teacher.variables.batch_stats,
            first_factor=variant.first_statistics_factor,
            relative=config.statistics_distance == "relative",
        )
    if config.total_variation_weight > 0:
        images = x if variant.total_variation_view == "plain" else views
        terms["total_variation"] = priors.total_variation(images, norm=variant.total_variation_norm)
    if variant.pixel_norm_weight > 0:
        terms["pixel_norm"] = priors.pixel_norm(views, norm=variant.pixel_norm)
    if config.competition_weight > 0:
        others, _ = predict(problem.student)
        terms["competition"] = competition(others, logits, variant=variant)
    return add_own_terms(terms, views, own_terms)


def _weights(config, variant):
    weights = {
        "cross_entropy": config.cross_entropy_weight,
        "statistics": config.statistics_weight,
        "total_variation": config.total_variation_weight,
        "pixel_norm": variant.pixel_norm_weight,
        "competition": config.competition_weight,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


def _in_precision(network, precision):
    """Casts the blocks' parameters; the stored moments, like those of a batch, stay f32."""
    if network is None:
        return None
    params = jax.tree.map(lambda p: p.astype(precision), network.variables.params)
    return network.replace(variables=network.variables._replace(params=params))


def _predict(network, *, images, class_mask):
    """Logits f32[B, C] of the classes that the head knows, and the moments of layer inputs."""
    outputs = forward(network.model, network.variables, images)
    logits = network.head(outputs.features.astype(network.head.kernel.dtype))
    return jnp.where(class_mask[None], logits, -1e9), outputs.moments


def _better(one: Solution, other: Solution) -> Solution:
    """The solution of less loss; `losses` are those of the first."""
    keep = lambda a, b: jnp.where(other.loss < one.loss, b, a)  # noqa: E731
    return one._replace(
        x=keep(one.x, other.x),
        loss=keep(one.loss, other.loss),
        terms=jax.tree.map(keep, one.terms, other.terms),
    )


def _check_settings(config, variant, start, student, own_terms):
    shape, steps = start.shape, config.stage_steps
    if not steps:
        raise ValueError("stage_steps=() has no stage; give the steps of one or more.")
    coarsest = stage_scales(config)[0]
    if shape[1] % coarsest or shape[2] % coarsest:
        raise ValueError(
            f"images of {shape[1]} x {shape[2]} pixels cannot be averaged down by {coarsest} in "
            f"the first of {len(steps)} stages; use fewer stages, or images of a multiple of it."
        )
    if not _weights(config, variant) and not own_terms:
        raise ValueError("every weight of DeepInversionConfig is 0; raise one of them.")
    if variant.statistics_scope == "device" and isinstance(start, jax.core.Tracer):
        raise ValueError(
            f"variant='{config.variant}' needs to know on which devices the images lie; call "
            "deep_inversion outside jit, or set it to 'standard'."
        )
    if config.competition_weight > 0 and student is None:
        raise ValueError(
            f"competition_weight={config.competition_weight:g} needs a network to compete with; "
            "give student, or set it to 0."
        )


def _check_labels(labels, class_mask):
    """Raises for a label without a class; inside a trace nothing is known of labels."""
    if isinstance(labels, jax.core.Tracer) or isinstance(class_mask, jax.core.Tracer):
        return
    labels, known = np.asarray(labels), np.flatnonzero(class_mask)
    wrong = labels[~np.isin(labels, known)]
    if wrong.size:
        raise ValueError(
            f"labels contain {wrong[0]}, but the head knows {known.size} classes in "
            f"[0, {len(class_mask)}); draw labels from these."
        )
