"""Full-model inversion: images optimised through the whole frozen network, from any start.

The loss is docs/methods/pmi.md, eq. 7.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpmi.config import FullModelConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion.per_layer import MAX_BOOST
from jaxpmi.inversion.solver import Solution
from jaxpmi.inversion.solver import minimise
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.targets import target_terms
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Stack
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_name
from jaxpmi.models.blockwise import forward
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

HISTOGRAM_STRIDE = 16  # every 16th pixel, another 16th each step: sorting all costs a step's time


class PixelStats(NamedTuple):
    """What is known of images as such, in normalised pixel units."""

    low: jax.Array  # f32[C], black
    high: jax.Array  # f32[C], white
    moments: Moments  # f32[H, W, C] each, of real images
    histogram: jax.Array  # f32[256, C], how often real pixels have the values 0..255
    spectrum: jax.Array  # f32[H, W//2+1, C], mean power spectrum of real images


def measure_pixels(images: np.ndarray, mean: jax.Array, std: jax.Array) -> PixelStats:
    """Describes real images u8[N, H, W, C]; `mean` and `std` f32[C] are of pixels in [0, 1]."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    shape = (1, 1, 1, -1)
    x = (jnp.asarray(images, jnp.float32) / 255.0 - mean.reshape(shape)) / std.reshape(shape)
    return PixelStats(
        -mean / std,
        (1.0 - mean) / std,
        Moments(x.mean(0), x.var(0)),
        jnp.asarray(priors.pixel_histogram(images)),
        priors.power_spectrum(x).mean(0),
    )


def learning_rates(config: FullModelConfig) -> jax.Array:
    """The learning rate of every step, f32[S].

    Linear warm-up from 1/warmup_steps of the peak, which step 0 and 1 share as in the published
    code (0.08, 0.08, 0.16, 0.24, 0.32, 0.4 for a peak of 0.4 after 5 steps), then a cosine to 0
    or, for `schedule="step"`, halvings at 1/2 and 3/4 of the steps counted after warm-up. With
    `schedule_steps` these are the first `num_steps` rates of a run of that length.
    """
    length, warmup = config.schedule_steps or config.num_steps, config.warmup_steps
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(1.0, max(length - warmup, 1))
    else:
        decay = optax.piecewise_constant_schedule(1.0, {length // 2: 0.5, length * 3 // 4: 0.5})
    index = jnp.arange(config.num_steps)
    ramp = jnp.minimum(jnp.maximum(index, 1) / max(warmup, 1), 1.0)
    after = jnp.maximum(index - warmup, 0)
    return config.learning_rate * jnp.where(index < warmup, ramp, jax.vmap(decay)(after))


def network_statistics(
    model: BlockwiseModel, moments: dict[str, Any], stored: dict[str, Any]
) -> jax.Array:
    """Sum of `objectives.statistics_loss` over all blocks, f32[]; each of a stack's counts.

    Args:
      model: the network.
      moments: `Forward.moments` of a batch, of all blocks or, from a later one on, of the others.
      stored: running moments, `Variables.batch_stats`.
    """
    total = jnp.zeros(())
    for i, block in enumerate(model.blocks):
        name, loss = block_name(i), objectives.statistics_loss
        if name in moments:
            loss = jax.vmap(loss) if isinstance(block, Stack) else loss
            total += loss(moments[name], stored[name]).sum()
    return total


@functools.partial(
    jax.jit, static_argnames=("model", "config", "first_block"), donate_argnames="start"
)
def refine_images(
    variables: Variables,
    start: jax.Array,
    targets: Targets,
    pixels: PixelStats,
    key: PRNGKey,
    *,
    model: BlockwiseModel,
    config: FullModelConfig,
    first_block: int = 0,
) -> Solution:
    """Optimises images f32[B, H, W, C] end to end; every term of weight 0 is left out.

    `start` is donated. The statistics couple the whole batch, so the batch is never split; on
    several devices they are those of the global batch. With a `first_block` above 0 the images are
    inputs of that block, such as patch embeddings: they have no valid range to be clipped to, and
    `config` must not ask for terms of pixels.
    """
    low, high = pixels.low.reshape(1, 1, 1, -1), pixels.high.reshape(1, 1, 1, -1)
    clip = None
    if config.clip_pixels and first_block == 0:
        clip = lambda x: jnp.clip(x, low, high)  # noqa: E731

    def terms(x, key):
        views = priors.jitter(x, key, config.jitter_pixels) if config.jitter_pixels else x
        outputs = forward(model, variables, views, first_block=first_block)
        named = target_terms(
            outputs.features,
            targets,
            feature_weight=config.feature_weight,
            cross_entropy_weight=config.cross_entropy_weight,
        )
        if config.statistics_weight > 0:
            named["statistics"] = network_statistics(model, outputs.moments, variables.batch_stats)
        if config.pixel_statistics_weight > 0:
            batch = Moments(x.mean(0), x.var(0))
            named["pixel_statistics"] = objectives.moment_kl(batch, pixels.moments)
        if config.total_variation_weight > 0:
            named["total_variation"] = priors.total_variation(x, norm=config.total_variation_norm)
        if config.spectrum_weight > 0:
            named["spectrum"] = priors.spectrum_distance(x, pixels.spectrum)
        if config.histogram_weight > 0:
            some = _some_pixels((x - low) / (high - low), key)
            named["histogram"] = priors.histogram_distance(some, pixels.histogram)
        return named

    weights = {
        "feature_match": config.feature_weight,
        "cross_entropy": config.cross_entropy_weight,
        "statistics": config.statistics_weight,
        "pixel_statistics": config.pixel_statistics_weight,
        "total_variation": config.total_variation_weight,
        "spectrum": config.spectrum_weight,
        "histogram": config.histogram_weight,
    }
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    return minimise(
        terms,
        start if clip is None else clip(start),
        key,
        weights=weights,
        learning_rates=learning_rates(config),
        max_boost={k: v for k, v in MAX_BOOST.items() if k in weights}
        if config.boost_weights
        else None,
        project=clip,
        iterate=config.iterate,
    )


def _some_pixels(images, key):
    """Every 16th pixel of f32[B, H, W, C] from a random offset, f32[n, C]."""
    flat = images.reshape(-1, images.shape[-1])
    rows = flat.shape[0] // HISTOGRAM_STRIDE
    grouped = flat[: rows * HISTOGRAM_STRIDE].reshape(rows, HISTOGRAM_STRIDE, -1)
    offset = jax.random.randint(key, (), 0, HISTOGRAM_STRIDE)
    return jax.lax.dynamic_index_in_dim(grouped, offset, 1, keepdims=False)
