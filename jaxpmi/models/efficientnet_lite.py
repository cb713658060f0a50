"""EfficientNet-Lite0 as a Flax module: the EfficientNet without attention, and with ReLU6.

Reference: the EfficientNet-lite README and `efficientnet_lite_builder.py` of tensorflow/tpu, and
EfficientNet (Tan and Le, 2019). Convolutions are padded as TensorFlow's "SAME".
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.models import layers
from jaxpmi.models.backbone import Backbone
from jaxpmi.types import Moments

BATCH_NORM_EPSILON = 1e-3

# (blocks, kernel size, first stride, expansion, channels) of each stage at width 32.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_WIDTH, _FEATURES = 32, 1280


class Stem(nnx.Module):
    """conv3x3 of stride 2 - BN - ReLU6."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = layers.conv(rngs.params(), in_channels, channels, stride=2, padding="SAME")
        self.bn = _batch_norm(channels)

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
        rngs: nnx.Rngs,
    ):
        """Takes the channels, size and stride of the depthwise kernel, and its expansion."""
        key1, key2, key3 = jax.random.split(rngs.params(), 3)
        hidden = expansion * in_channels
        self.expand = _pointwise(key1, in_channels, hidden) if expansion > 1 else None
        self.expand_bn = _batch_norm(hidden) if expansion > 1 else None
        self.depthwise = layers.depthwise_conv(key2, hidden, size=size, stride=stride)
        self.depthwise_bn = _batch_norm(hidden)
        self.project = _pointwise(key3, hidden, channels)
        self.project_bn = _batch_norm(channels)
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

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = _pointwise(rngs.params(), in_channels, channels)
        self.bn = _batch_norm(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, channels]."""
        return _relu6(self.bn(self.conv(x))).mean((1, 2))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return ChannelAxes({"conv": ("in", "out"), "bn": ("out",)}, tied=False)


def efficientnet_lite0(
    image_shape: tuple[int, int, int], width: int = 32, *, rngs: nnx.Rngs
) -> Backbone:
    """EfficientNet-Lite0: 18 blocks, 49 BatchNorms, feature 40 x `width`.

    Args:
      image_shape: (H, W, channels).
      width: channels of the stem. The others are scaled with it, to multiples of 8 as by the
        width multiplier of EfficientNet.
      rngs: for the initial weights.
    """
    if width < 1:
        raise ValueError(f"efficientnet_lite0 needs width >= 1, got {width=}.")
    multiplier = width / _WIDTH
    blocks, in_channels = [Stem(image_shape[-1], width, rngs=rngs)], width
    for count, size, first_stride, expansion, channels in _STAGES:
        channels = _round_channels(multiplier * channels)
        for i in range(count):
            stride = first_stride if i == 0 else 1
            blocks.append(
                InvertedResidual(
                    in_channels,
                    channels,
                    size=size,
                    stride=stride,
                    expansion=expansion,
                    residual=stride == 1 and channels == in_channels,
                    rngs=rngs,
                )
            )
            in_channels = channels
    features = _round_channels(multiplier * _FEATURES)
    return Backbone(*blocks, PooledConv(in_channels, features, rngs=rngs))


def _round_channels(channels):
    """The next multiple of 8, but at least 8, and not below 90 % of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _pointwise(key, in_channels, channels):
    """He-normal by fan-out."""
    return layers.linear(key, in_channels, channels, (2.0 / channels) ** 0.5)


def _batch_norm(channels):
    return layers.batch_norm(channels, epsilon=BATCH_NORM_EPSILON)


def _relu6(x):
    return jnp.clip(x, 0.0, 6.0)
