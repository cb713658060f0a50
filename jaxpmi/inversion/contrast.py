"""What makes images distinguishable: a teacher's own statistics of each, contrasted by InfoNCE.

An image is described by the mean over space of the input of every layer whose moments the teacher
keeps (docs/methods/cmi.md, eq. 1). A transformer has no BatchNorm, but keeps the moments of what
its LayerNorms give to attention and MLP: means over tokens of these describe it, our extension.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import forward
from jaxpmi.network import Network
from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

SMALLEST_NORM = 1e-12  # embeddings shorter than this are not made longer
HIDDEN = -1e9  # logit of a key that is not there


class Observation(NamedTuple):
    """What a frozen network shows of every image of a batch."""

    features: jax.Array  # f32[B, D]
    moments: dict[str, Any]  # of every image, in the structure of `Variables.batch_stats`, [B, ...]


def observe(network: Network, images: jax.Array) -> Observation:
    """Runs a network in evaluation mode on normalised images f32[B, H, W, C], one by one.

    The moments of a batch of one image are its own statistics, so the batched forward pass of
    single images gives them, features and, by `batch_moments`, those of the batch. It takes as
    long as the pass of the batch.
    """

    def one(image):
        outputs = forward(network.model, network.variables, image[None])
        return Observation(outputs.features[0], outputs.moments)

    return jax.vmap(one)(images)


def batch_moments(moments: Any) -> Any:
    """Moments of a batch from those of its images [B, ...]: means of means and of squares."""

    def merge(each: Moments) -> Moments:
        mean = each.mean.mean(0)
        return Moments(mean, (each.var + jnp.square(each.mean - mean[None])).mean(0))

    return jax.tree.map(merge, moments, is_leaf=_is_moments)


def embed(moments: Any) -> jax.Array:
    """All means of `Observation.moments` side by side, f32[B, D]: one row per image."""
    layers = jax.tree.leaves(moments, is_leaf=_is_moments)
    if not layers:
        raise ValueError(
            "the teacher keeps no moments of any layer, so there is nothing to tell its images "
            "apart by; use a network with BatchNorm."
        )
    return jnp.concatenate([layer.mean.reshape(layer.mean.shape[0], -1) for layer in layers], 1)


def init_projection(key: PRNGKey, width: int, output: int) -> Params:
    """The head linear(width) - ReLU - linear(output), uniform within 1 / sqrt(fan-in)."""
    sizes = {"kernel0": width, "bias0": width, "kernel1": output, "bias1": output}
    keys = jax.random.split(key, len(sizes))
    limit = width**-0.5
    return {
        name: jax.random.uniform(
            key, (width, size) if "kernel" in name else (size,), minval=-limit, maxval=limit
        )
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def project(params: Params, embeddings: jax.Array) -> jax.Array:
    """Maps f32[B, D] to points on the unit sphere, f32[B, output]."""
    hidden = jax.nn.relu(embeddings @ params["kernel0"] + params["bias0"][None])
    x = hidden @ params["kernel1"] + params["bias1"][None]
    # The root of a maximum, not the maximum of a root: its gradient is finite at 0.
    square = jnp.maximum(jnp.square(x).sum(1, keepdims=True), SMALLEST_NORM**2)
    return x * jax.lax.rsqrt(square)


def info_nce(
    queries: jax.Array, keys: jax.Array, held: jax.Array, temperature: float | jax.Array
) -> jax.Array:
    """-log softmax(queries keys^T / temperature)[r, r] of every row r, f32[N].

    Queries and keys are f32[N, D]; only keys of `held` bool[N] count, and rows of the others mean
    nothing.
    """
    logits = jnp.where(held[None], queries @ keys.T / temperature, HIDDEN)
    return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)


def contrastive_loss(
    projection: Params,
    local: jax.Array,
    whole: jax.Array,
    remembered: jax.Array,
    held: jax.Array,
    *,
    temperature: float | jax.Array,
) -> jax.Array:
    """Each image's local view has to find its global view among those of all images, f32[].

    The mean over the batch plus the mean over remembered images: one mean over both would leave
    the few new ones, and so the generator, with little of it. Keys carry no gradient, so images
    feel it through local views alone; remembered images train only the head.

    Args:
      projection: of `init_projection`.
      local: embeddings of local views, f32[B, D].
      whole: embeddings of global views, f32[B, D].
      remembered: f32[n, 2 D], rows [local | global] of earlier images.
      held: bool[n], which of these rows there are.
      temperature: of the softmax.
    """
    batch, width = local.shape
    queries = jnp.concatenate([local, remembered[:, :width]])
    keys = jnp.concatenate([whole, remembered[:, width:]])
    keys = jax.lax.stop_gradient(project(projection, keys))
    everywhere = jnp.concatenate([jnp.ones(batch, bool), held])
    losses = info_nce(project(projection, queries), keys, everywhere, temperature)
    old = jnp.where(held, losses[batch:], 0.0).sum() / jnp.maximum(held.sum(), 1)
    return losses[:batch].mean() + old


def _is_moments(node):
    return isinstance(node, Moments)
