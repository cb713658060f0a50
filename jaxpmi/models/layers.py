"""Flax layers as the built-in networks have them, and what their inputs' moments become.

A block draws one key from its `nnx.Rngs` and gives each of its layers a part of it, so that a block
starts the same wherever it stands among the network's draws.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

BATCH_NORM_EPSILON = 1e-5
LAYER_NORM_EPSILON = 1e-5


class OneKey(NamedTuple):
    """Stands for the `nnx.Rngs` of one layer or block: whatever it draws, it is this key.

    Attributes:
      key: None for a layer that begins with constants.
    """

    key: PRNGKey | None

    def params(self) -> PRNGKey | None:
        """The key."""
        return self.key


def draw_normal(key: PRNGKey, shape: tuple[int, ...], std: float) -> jax.Array:
    """Initial weights f32[shape] from N(0, std^2).

    Drawn on the host from the key's bits: `jax.random` would compile a program for every shape.
    Inside a trace (`jit`, `eval_shape`) they are other numbers of the same distribution.
    """
    if isinstance(key, jax.core.Tracer):
        return std * jax.random.normal(key, shape)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return jnp.asarray(np.float32(std) * rng.standard_normal(shape, np.float32))


def conv(
    key: PRNGKey,
    in_channels: int,
    channels: int,
    *,
    size: int = 3,
    stride: int = 1,
    padding: str | int | None = None,
    use_bias: bool = False,
    std: float | None = None,
) -> nnx.Conv:
    """A convolution of `size` x `size` whose kernel is He-normal by fan-out, or of N(0, std^2).

    `padding` None: (size - 1) // 2 zeros on every side, as PyTorch's networks have them.
    """
    std = (2.0 / (size * size * channels)) ** 0.5 if std is None else std
    return nnx.Conv(
        in_channels,
        channels,
        (size, size),
        stride,
        padding=(size - 1) // 2 if padding is None else padding,
        use_bias=use_bias,
        kernel_init=normal(std),
        rngs=OneKey(key),
    )


def depthwise_conv(
    key: PRNGKey, channels: int, *, size: int, stride: int, padding: str | None = "SAME"
) -> nnx.Conv:
    """A filter per channel, He-normal by fan-out; `padding` None: as of `conv`."""
    std = (2.0 / (size * size)) ** 0.5
    return nnx.Conv(
        channels,
        channels,
        (size, size),
        stride,
        padding=(size - 1) // 2 if padding is None else padding,
        feature_group_count=channels,
        use_bias=False,
        kernel_init=normal(std),
        rngs=OneKey(key),
    )


def linear(
    key: PRNGKey, rows: int, columns: int, std: float, *, use_bias: bool = False
) -> nnx.Linear:
    """A linear map with a kernel f32[rows, columns] of N(0, std^2), and a bias of zeros if any."""
    return nnx.Linear(
        rows,
        columns,
        use_bias=use_bias,
        kernel_init=normal(std),
        rngs=OneKey(key),
    )


def pointwise(key: PRNGKey, in_channels: int, channels: int) -> nnx.Linear:
    """A 1x1 convolution as a linear map of every pixel, He-normal by fan-out."""
    return linear(key, in_channels, channels, (2.0 / channels) ** 0.5)


def batch_norm(
    channels: int, *, scale: float = 1.0, epsilon: float = BATCH_NORM_EPSILON
) -> nnx.BatchNorm:
    """A BatchNorm whose gamma starts at `scale`; running moments move by a tenth, as PyTorch's."""
    return nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=epsilon,
        scale_init=_full(scale),
        use_fast_variance=False,
        rngs=OneKey(None),
    )


def layer_norm(channels: int, *, epsilon: float = LAYER_NORM_EPSILON) -> nnx.LayerNorm:
    """A LayerNorm over the last axis."""
    return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, rngs=OneKey(None))


# Flax before 0.12 keeps initialisers, by which layers are equal or not: one for each value.
@functools.cache
def normal(std: float) -> nnx.Initializer:
    """An initialiser of N(0, std^2), as Flax takes them."""
    return lambda key, shape, dtype: draw_normal(key, shape, std)


@functools.cache
def _full(value):
    """The same, of one value."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def normalised_moments(norm: nnx.BatchNorm) -> Moments:
    """Moments f32[C] of what a BatchNorm returns."""
    return Moments(norm.bias[...], jnp.square(norm.scale[...]))


def clipped_moments(moments: Moments, ceiling: float | None = None) -> Moments:
    """Moments of Gaussians f32[C] after a ReLU, or after a clip to [0, ceiling]."""
    mean, square = _excess_moments(moments, 0.0)
    if ceiling is not None:
        # clip(x) = relu(x) - relu(x - ceiling), of which the second is only where the first
        # is the second plus the ceiling.
        mean_above, square_above = _excess_moments(moments, ceiling)
        mean = mean - mean_above
        square = square - square_above - 2.0 * ceiling * mean_above
    return Moments(mean, jnp.maximum(square - jnp.square(mean), 0.0))


def _excess_moments(moments, threshold):
    """First and second moment of relu(x - threshold) of Gaussians."""
    mean, std = moments.mean - threshold, jnp.sqrt(moments.var) + 1e-6
    density, mass = jax.scipy.stats.norm.pdf(mean / std), jax.scipy.stats.norm.cdf(mean / std)
    square = (jnp.square(mean) + moments.var) * mass + mean * std * density
    return mean * mass + std * density, square
