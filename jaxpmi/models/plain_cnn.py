"""A plain CNN without normalisation: two strided convolutions and a dense layer, ReLU after each.

Nothing in it adapts to the batch but its weights, so that all that it does is in its parameters.
The moments that it keeps are those of what goes into every ReLU.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpmi.models import layers
from jaxpmi.models.blockwise import channel_moments
from jaxpmi.types import Moments
from jaxpmi.types import Params


@dataclasses.dataclass(frozen=True)
class ConvBlock:
    """conv3x3 with bias - ReLU."""

    channels: int
    stride: int = 2

    def init(self, key, input_shape):
        """See `Block.init`."""
        kernel = layers.init_conv(key, 3, input_shape[-1], self.channels)
        return with_bias(kernel)

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        del batch_stats, train
        return _activate(params, layers.conv(x, params["kernel"], self.stride))


@dataclasses.dataclass(frozen=True)
class DenseBlock:
    """Flatten - dense with bias - ReLU: f32[B, H, W, C] -> f32[B, features]."""

    features: int

    def init(self, key, input_shape):
        """See `Block.init`."""
        height, width, channels = input_shape
        size = height * width * channels
        return with_bias(layers.draw_normal(key, (size, self.features), (2.0 / size) ** 0.5))

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        del batch_stats, train
        return _activate(params, x.reshape(x.shape[0], -1) @ params["kernel"])


@dataclasses.dataclass(frozen=True)
class PlainCnn:
    """Two `ConvBlock`s and a `DenseBlock`."""

    blocks: tuple


def plain_cnn(width: int = 16) -> PlainCnn:
    """Channels `width` and 2 x `width`, feature 4 x `width`."""
    return PlainCnn((ConvBlock(width), ConvBlock(2 * width), DenseBlock(4 * width)))


def with_bias(kernel: jax.Array) -> tuple[Params, Moments]:
    """A kernel f32[..., C] with a bias of zeros, and the moments of a standard Gaussian."""
    channels = kernel.shape[-1]
    standard = Moments(jnp.zeros(channels), jnp.ones(channels))
    return {"kernel": kernel, "bias": jnp.zeros(channels)}, standard


def _activate(params, x):
    x = x + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return jax.nn.relu(x), channel_moments(x)
