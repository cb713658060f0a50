"""Inverted residuals as Flax modules: what EfficientNet-Lite and MobileNetV2 are made of.

References: MobileNetV2 (Sandler et al., 2018), EfficientNet (Tan and Le, 2019). Convolutions are
padded as TensorFlow's "SAME", or with equal zeros on all sides, as PyTorch's networks are.
"""

from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.models import layers
from jaxpmi.types import Moments

Padding = Literal["SAME", "symmetric"]
EPSILON = 1e-3  # of BatchNorms in TensorFlow's networks


class Stage(NamedTuple):
    """Inverted residuals in a row.

    Attributes:
      num_blocks: of them.
      size: of the depthwise kernel.
      stride: of the first block; the others have 1.
      expansion: hidden channels as a multiple of the input's.
      channels: of their outputs, at the network's usual width.
    """

    num_blocks: int
    size: int
    stride: int
    expansion: int
    channels: int


class Stem(nnx.Module):
    """conv3x3 of stride 2 - BN - ReLU6."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        padding: Padding = "SAME",
        epsilon: float = EPSILON,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.conv(
            rngs.params(), in_channels, channels, stride=2, padding=_as_argument(padding)
        )
        self.bn = layers.batch_norm(channels, epsilon=epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / 2, W / 2, channels]."""
        return _relu6(self.bn(self.conv(x)))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return ChannelAxes({"conv": ("in", "out"), "bn": ("out",)}, tied=False)

    def propagate(self, moments: Moments | None) -> Moments:
        """Output moments without data: of a clipped Gaussian (`None`: before the ReLU6)."""
        normalised = layers.normalised_moments(self.bn)
        return normalised if moments is None else layers.clipped_moments(normalised, 6.0)


class InvertedResidual(nnx.Module):
    """conv1x1 - BN - ReLU6 - depthwise conv - BN - ReLU6 - conv1x1 - BN (+ input): MBConv.

    A 1x1 convolution is a linear map of every pixel. Without an expansion there is no first one;
    with `residual` the input is added, which has the output's shape.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        size: int = 3,
        stride: int = 1,
        expansion: int = 6,
        residual: bool = False,
        padding: Padding = "SAME",
        epsilon: float = EPSILON,
        rngs: nnx.Rngs,
    ):
        """Takes the channels, size and stride of the depthwise kernel, and its expansion."""
        key1, key2, key3 = jax.random.split(rngs.params(), 3)
        hidden = expansion * in_channels
        self.expand = layers.pointwise(key1, in_channels, hidden) if expansion > 1 else None
        self.expand_bn = layers.batch_norm(hidden, epsilon=epsilon) if expansion > 1 else None
        self.depthwise = layers.depthwise_conv(
            key2, hidden, size=size, stride=stride, padding=_as_argument(padding)
        )
        self.depthwise_bn = layers.batch_norm(hidden, epsilon=epsilon)
        self.project = layers.pointwise(key3, hidden, channels)
        self.project_bn = layers.batch_norm(channels, epsilon=epsilon)
        self.residual = residual

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / stride, W / stride, channels]."""
        y = x
        if self.expand is not None:
            y = _relu6(self.expand_bn(self.expand(y)))
        y = _relu6(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y))
        return x + y if self.residual else y

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`; without a first conv1x1 the input is the hidden one."""
        hidden, axes = "in", {}
        if self.expand is not None:
            hidden, axes = "hidden", {"expand": ("in", "hidden"), "expand_bn": ("hidden",)}
        axes |= {"depthwise": (hidden,), "depthwise_bn": (hidden,)}
        axes |= {"project": (hidden, "out"), "project_bn": ("out",)}
        return ChannelAxes(axes, tied=self.residual)

    def propagate(self, moments: Moments | None) -> Moments:
        """Output moments without data: last BatchNorm plus input (`None`: the former alone)."""
        last = layers.normalised_moments(self.project_bn)
        if moments is None or not self.residual:
            return last
        return Moments(last.mean + moments.mean, last.var + moments.var)


class PooledConv(nnx.Module):
    """conv1x1 - BN - ReLU6 - global average pooling."""

    def __init__(
        self, in_channels: int, channels: int, *, epsilon: float = EPSILON, rngs: nnx.Rngs
    ):
        self.conv = layers.pointwise(rngs.params(), in_channels, channels)
        self.bn = layers.batch_norm(channels, epsilon=epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, channels]."""
        return _relu6(self.bn(self.conv(x))).mean((1, 2))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return ChannelAxes({"conv": ("in", "out"), "bn": ("out",)}, tied=False)


def inverted_residuals(
    in_channels: int,
    stages: Sequence[Stage],
    *,
    multiplier: float,
    padding: Padding = "SAME",
    epsilon: float = EPSILON,
    rngs: nnx.Rngs,
) -> list[InvertedResidual]:
    """The blocks of all stages, whose channels are multiplied and made multiples of 8."""
    blocks = []
    for stage in stages:
        channels = round_channels(multiplier * stage.channels)
        for i in range(stage.num_blocks):
            stride = stage.stride if i == 0 else 1
            blocks.append(
                InvertedResidual(
                    in_channels,
                    channels,
                    size=stage.size,
                    stride=stride,
                    expansion=stage.expansion,
                    residual=stride == 1 and channels == in_channels,
                    padding=padding,
                    epsilon=epsilon,
                    rngs=rngs,
                )
            )
            in_channels = channels
    return blocks


def round_channels(channels: float) -> int:
    """The next multiple of 8, but at least 8, and not below 90 % of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _as_argument(padding):
    """As `layers.conv` takes it."""
    return None if padding == "symmetric" else padding


def _relu6(x):
    return jnp.clip(x, 0.0, 6.0)
