"""VGG with BatchNorm as Flax modules, as torchvision has it (Simonyan and Zisserman, 2015).

The two hidden layers of its classifier are blocks, without the dropout that it is trained with.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.models import layers
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.rectified_conv import RectifiedConv

# Convolutions of each stage, by depth, and their channels as multiples of the first's.
STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
_MULTIPLES = (1, 2, 4, 8, 8)
_POOLED = 7  # rows and columns that the hidden layers read
_HIDDEN = 64  # their channels, as a multiple of the first's


class ConvBlock(RectifiedConv):
    """conv3x3 with bias - BN - ReLU; with `pool` then the maximum over 2 x 2."""

    def __init__(self, in_channels: int, channels: int, *, pool: bool, rngs: nnx.Rngs):
        self.conv = layers.conv(rngs.params(), in_channels, channels, use_bias=True)
        self.bn = layers.batch_norm(channels)
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H, W, channels], or of half the size."""
        x = self.rectified(x)
        return nnx.max_pool(x, (2, 2), strides=(2, 2)) if self.pool else x


class WholeImageConv(nnx.Conv):
    """A convolution whose kernel is as large as the image, as one product of matrices."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, C] -> f32[B, D]."""
        return jnp.einsum("bhwc,hwcd->bd", x, self.kernel[...]) + self.bias[...][None]


class PooledHidden(nnx.Module):
    """Averages over 7 x 7 windows - a linear map of all of them - ReLU."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        std = (2.0 / (_POOLED**2 * in_channels)) ** 0.5
        self.conv = WholeImageConv(
            in_channels,
            channels,
            (_POOLED, _POOLED),
            padding="VALID",
            kernel_init=layers.normal(std),
            rngs=layers.OneKey(rngs.params()),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, channels]."""
        if x.shape[1:3] != (_POOLED, _POOLED):
            rows, columns = (_window_means(size) for size in x.shape[1:3])
            x = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)
        return nnx.relu(self.conv(x))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return ChannelAxes({"conv": ("in", "out")}, tied=False)


class Hidden(nnx.Module):
    """Linear map - ReLU."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        std = (2.0 / in_channels) ** 0.5
        self.linear = layers.linear(rngs.params(), in_channels, channels, std, use_bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, in] -> f32[B, channels]."""
        return nnx.relu(self.linear(x))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return ChannelAxes({"linear": ("in", "out")}, tied=False)


def vgg(
    image_shape: tuple[int, int, int], width: int = 64, *, depth: int, rngs: nnx.Rngs
) -> Backbone:
    """VGG of a depth of 11 or 16 with BatchNorm; feature 64 x `width`.

    Args:
      image_shape: (H, W, channels), usually (224, 224, 3), at least 32 x 32.
      width: channels of the first convolution.
      depth: layers, as in its name.
      rngs: for the initial weights.
    """
    if width < 1:
        raise ValueError(f"vgg{depth} needs width >= 1, got {width=}.")
    if min(image_shape[:2]) < 32:
        raise ValueError(
            f"vgg{depth} halves its images five times, so {image_shape[0]} x {image_shape[1]} "
            "pixels are too few; give images of 32 x 32 or more."
        )
    blocks, in_channels = [], image_shape[-1]
    for count, multiple in zip(STAGES[depth], _MULTIPLES, strict=True):
        for i in range(count):
            channels = multiple * width
            blocks.append(ConvBlock(in_channels, channels, pool=i == count - 1, rngs=rngs))
            in_channels = channels
    hidden = _HIDDEN * width
    blocks.append(PooledHidden(in_channels, hidden, rngs=rngs))
    return Backbone(*blocks, Hidden(hidden, hidden, rngs=rngs))


def _window_means(size):
    """f32[7, size]: means over windows, which may overlap: PyTorch's adaptive average pooling."""
    means = np.zeros((_POOLED, size), np.float32)
    for i in range(_POOLED):
        first, last = i * size // _POOLED, -(-(i + 1) * size // _POOLED)
        means[i, first:last] = 1.0 / (last - first)
    return means
