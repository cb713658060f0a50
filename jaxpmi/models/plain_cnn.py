"""A plain CNN without normalisation: two strided convolutions and a dense layer, ReLU after each.

Nothing in it adapts to the batch but its weights, so that all that it does is in its parameters.
The moments that it keeps are those of what goes into every ReLU.
"""

import jax
from flax import nnx

from jaxpmi.models import layers
from jaxpmi.models.backbone import Backbone


class Relu(nnx.Module):
    """max(x, 0), as a layer, so that the moments of its input can be kept."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[...] -> f32[...]."""
        return nnx.relu(x)


class ConvBlock(nnx.Module):
    """conv3x3 with bias - ReLU; `std` is that of the kernel, He-normal by fan-out unless given."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 2,
        std: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.conv(
            rngs.params(), in_channels, channels, stride=stride, use_bias=True, std=std
        )
        self.relu = Relu()

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / stride, W / stride, channels]."""
        return self.relu(self.conv(x))


class DenseBlock(nnx.Module):
    """Flatten - dense with bias - ReLU."""

    def __init__(self, size: int, features: int, *, rngs: nnx.Rngs):
        self.dense = layers.linear(
            rngs.params(), size, features, (2.0 / size) ** 0.5, use_bias=True
        )
        self.relu = Relu()

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, C] with H W C = size -> f32[B, features]."""
        return self.relu(self.dense(x.reshape(x.shape[0], -1)))


def plain_cnn(image_shape: tuple[int, int, int], width: int = 16, *, rngs: nnx.Rngs) -> Backbone:
    """Channels `width` and 2 x `width`, feature 4 x `width`."""
    height, width_pixels, channels = image_shape
    size = 2 * width * -(-height // 4) * -(-width_pixels // 4)
    return Backbone(
        ConvBlock(channels, width, rngs=rngs),
        ConvBlock(width, 2 * width, rngs=rngs),
        DenseBlock(size, 4 * width, rngs=rngs),
        statistics_of=(Relu,),
    )
