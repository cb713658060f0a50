"""Images of new classes, pushed by a frozen network onto the means of old ones."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from jaxpmi.blocks.blockwise import forward
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.network import Network
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.types import PRNGKey

LEAST_LENGTH = 1e-12  # of a gradient: one of 0 moves nothing


@dataclasses.dataclass(frozen=True)
class Push:
    """How far images go (docs/methods/apr.md, eq. 2).

    Attributes:
      num_steps: against the gradient of the distance to their targets.
      step: how much a pixel moves in one, as a root mean square over pixels and channels, in
        normalised units.
      noise: of targets, in standard deviations of old classes' features.
      clip: to valid pixels after every step.
      together: all images of a batch share one step's length, so that those with a larger
        gradient go further (as published); if not, every image has its own.
    """

    num_steps: int
    step: float
    noise: float = 0.0
    clip: bool = False
    together: bool = False


def feature_deviation(stats: ClassStats, class_mask: jax.Array) -> jax.Array:
    """Root mean variance of a feature over the masked classes, f32[] (eq. 1)."""
    mask = jnp.asarray(class_mask, jnp.float32)
    variances = jnp.trace(stats.cov, axis1=1, axis2=2) / stats.mean.shape[1]
    return jnp.sqrt((mask * variances).sum() / jnp.maximum(mask.sum(), 1.0))


def draw_targets(
    stats: ClassStats, labels: jax.Array, class_mask: jax.Array, key: PRNGKey, *, noise: float
) -> jax.Array:
    """Targets f32[B, D]: the mean of each label's class, plus noise alike in all features (eq. 1).

    Args:
      stats: of full covariances.
      labels: i32[B].
      class_mask: [C], the classes whose features say how large the noise is.
      key: key[], consumed.
      noise: factor; 0: the means themselves.
    """
    means = stats.mean[labels]
    if noise == 0.0:
        return means
    drawn = jax.random.normal(key, means.shape, means.dtype)
    return means + noise * feature_deviation(stats, class_mask) * drawn


def push_images(network: Network, images: jax.Array, targets: jax.Array, push: Push) -> jax.Array:
    """Moves images until the network, in evaluation mode, sees targets in them, or near them.

    Args:
      network: frozen; the gradient is one with respect to the images alone.
      images: f32[B, H, W, channels], normalised.
      targets: f32[B, D], features.
      push: how far; static.

    Returns:
      f32[B, H, W, channels].
    """

    def distance(x, state, index):
        del index
        features = forward(network.model, network.variables, x).features
        return jnp.square(features - targets).mean(), (state, None)

    length = push.step * math.sqrt(math.prod(images.shape[1:]))
    if push.together:
        length *= math.sqrt(len(images))
    project = None
    if push.clip:
        low, high = (edge.reshape(1, 1, 1, -1) for edge in network.pixel_range)
        project = lambda x: jnp.clip(x, low, high)  # noqa: E731
    tx = unit_direction(together=push.together)
    end, _ = descend(
        distance,
        Descent(images, tx.init(images), ()),
        tx=tx,
        learning_rates=jnp.full(push.num_steps, length),
        project=project,
    )
    return end.params


def unit_direction(*, together: bool) -> optax.GradientTransformation:
    """Directions of length 1: of every image, or of the batch as one vector."""

    def normalised(updates, params):
        del params
        axes = None if together else tuple(range(1, updates.ndim))
        length = jnp.sqrt(jnp.square(updates).sum(axes, keepdims=True))
        return updates / jnp.maximum(length, LEAST_LENGTH)

    return optax.stateless(normalised)
