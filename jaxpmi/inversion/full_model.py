"""Full-model inversion: images optimised through the whole frozen network, from any start.

The loss is docs/methods/pmi.md, eq. 7.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import FullModelConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion import priors
from jaxpmi.inversion.own_terms import OwnTerm
from jaxpmi.inversion.own_terms import add_own_terms
from jaxpmi.inversion.own_terms import own_weights
from jaxpmi.inversion.per_layer import MAX_BOOST
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.targets import target_terms
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.inversion.views import random_view
from jaxpmi.memory import Memory
from jaxpmi.network import Network
from jaxpmi.optimise import schedules
from jaxpmi.optimise.minimise import Solution
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import PRNGKey

VIEW_PIXELS = 2  # by which a view is shifted, at most, as DeepInversion's are
HISTOGRAM_STRIDE = 16  # every 16th pixel, another 16th each step: sorting all costs a step's time


def learning_rates(config: FullModelConfig, variant: InversionVariant) -> jax.Array:
    """The learning rate of every step, f32[S].

    Linear warm-up from 1/warmup_steps of the peak, which step 0 and 1 share as in the published
    code (0.08, 0.08, 0.16, 0.24, 0.32, 0.4 for a peak of 0.4 after 5 steps), then a cosine to 0
    or, for `schedule="step"`, halvings at 1/2 and 3/4 of the steps counted after warm-up. With
    `schedule_steps` these are the first `num_steps` rates of a run of that length.
    """
    length, warmup = variant.schedule_steps or config.num_steps, variant.warmup_steps
    decay = schedules.falls({length // 2: 0.5, length * 3 // 4: 0.5})
    if variant.schedule == "cosine":
        decay = schedules.cosine(length - warmup)
    return schedules.learning_rates(
        config.num_steps,
        config.learning_rate,
        decay,
        warmup_steps=warmup,
        warmup="first_twice",
        in_program=True,
    )


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
    jax.jit,
    static_argnames=("config", "labels_only", "variant", "own_terms"),
    donate_argnames="start",
)
def refine_images(
    network: Network,
    start: jax.Array,
    targets: Targets,
    memory: Memory,
    key: PRNGKey,
    *,
    config: FullModelConfig,
    labels_only: bool = False,
    variant: InversionVariant = InversionVariant(),  # noqa: B008 (frozen)
    own_terms: tuple[OwnTerm, ...] = (),
) -> Solution:
    """Optimises images f32[B, H, W, C] end to end; every term of weight 0 is left out.

    `start`, in normalised units, is donated. The statistics couple the whole batch, so the batch is
    never split; on several devices they are those of the global batch. With a first block of the
    variant above 0 the images are inputs of that block, such as patch embeddings: they have no
    valid range to be clipped to, and `config` must not ask for terms of pixels, nor for views. Of
    `memory` the spectrum and the histogram are read, where the weight of their terms is above 0.
    `own_terms` see the images themselves. With `labels_only` no features are matched.
    """
    low, high = (limit.reshape(1, 1, 1, -1) for limit in network.pixel_range)
    clip, feature_weight = None, 0.0 if labels_only else 1.0
    if variant.clip_pixels:
        clip = lambda x: jnp.clip(x, low, high)  # noqa: E731

    def terms(x, key):
        seen = _view(x, key, config.views)
        outputs = forward(network.model, network.variables, seen, first_block=variant.first_block)
        named = target_terms(
            outputs.features,
            targets,
            feature_weight=feature_weight,
            cross_entropy_weight=config.cross_entropy_weight,
        )
        if config.statistics_weight > 0:
            named["statistics"] = network_statistics(
                network.model, outputs.moments, network.variables.batch_stats
            )
        if config.total_variation_weight > 0:
            named["total_variation"] = priors.total_variation(x, norm=variant.total_variation_norm)
        if config.pixel_statistics_weight > 0:
            named["spectrum"] = priors.spectrum_distance(x, memory.spectrum)
            some = _some_pixels((x - low) / (high - low), key)
            named["histogram"] = priors.histogram_distance(some, memory.histogram)
        return add_own_terms(named, x, own_terms)

    weights = {
        "feature_match": feature_weight,
        "cross_entropy": config.cross_entropy_weight,
        "statistics": config.statistics_weight,
        "total_variation": config.total_variation_weight,
        "spectrum": config.pixel_statistics_weight,
        "histogram": config.pixel_statistics_weight,
    }
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    weights |= own_weights(own_terms)
    return minimise(
        terms,
        start if clip is None else clip(start),
        key,
        weights=weights,
        learning_rates=learning_rates(config, variant),
        max_boost={k: v for k, v in MAX_BOOST.items() if k in weights}
        if variant.boost_weights
        else None,
        project=clip,
        iterate=variant.iterate,
    )


def _view(x, key, views):
    """What the network sees of images in one step, see `FullModelConfig.views`."""
    if views == "still":
        return x
    shifted = {"jitter_pixels": VIEW_PIXELS, "flip": views == "flipped"}
    return random_view(x, jax.random.fold_in(key, 1), **shifted)


def _some_pixels(images, key):
    """Every 16th pixel of f32[B, H, W, C] from a random offset, f32[n, C]."""
    flat = images.reshape(-1, images.shape[-1])
    rows = flat.shape[0] // HISTOGRAM_STRIDE
    grouped = flat[: rows * HISTOGRAM_STRIDE].reshape(rows, HISTOGRAM_STRIDE, -1)
    offset = jax.random.randint(key, (), 0, HISTOGRAM_STRIDE)
    return jax.lax.dynamic_index_in_dim(grouped, offset, 1, keepdims=False)
