"""EfficientNet-Lite0 as a chain of blocks: the EfficientNet without attention, and with ReLU6.

Reference: the EfficientNet-lite README and `efficientnet_lite_builder.py` of tensorflow/tpu, and
EfficientNet (Tan and Le, 2019). Convolutions are padded as TensorFlow's "SAME".
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpmi.models import layers
from jaxpmi.models.channels import ChannelAxes
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


@dataclasses.dataclass(frozen=True)
class Stem:
    """conv3x3 of stride 2 - BN - ReLU6."""

    channels: int

    def init(self, key, input_shape):
        """See `Block.init`."""
        kernel = layers.init_conv(key, 3, input_shape[-1], self.channels)
        params, running = layers.init_batch_norm(self.channels)
        return {"conv": kernel, "bn": params}, {"bn": running}

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        x = layers.conv(x, params["conv"], 2, "same")
        x, moments = _batch_norm(params["bn"], batch_stats["bn"], x, train)
        return _relu6(x), {"bn": moments}

    def channel_axes(self, params):
        """See `PrunableBlock.channel_axes`."""
        del params
        return ChannelAxes({"conv": ("in", "out"), "bn": ("out",)}, tied=False)

    def narrow(self, widths):
        """See `PrunableBlock.narrow`."""
        return dataclasses.replace(self, channels=widths["out"])

    def propagate(self, params, moments):
        """Output moments without data: of a clipped Gaussian (`None`: before the ReLU6)."""
        normalised = _normalised_moments(params["bn"])
        return normalised if moments is None else layers.clipped_moments(normalised, 6.0)


@dataclasses.dataclass(frozen=True)
class InvertedResidual:
    """conv1x1 - BN - ReLU6 - depthwise conv - BN - ReLU6 - conv1x1 - BN (+ input): MBConv.

    Parameters and moments are those of three layers, "expand", "depthwise" and "project", each
    with a "conv" and a "bn".
    """

    hidden: int  # channels of the depthwise convolution
    channels: int  # of the output
    size: int = 3  # of the depthwise kernel
    stride: int = 1
    expand: bool = True  # False: no first conv1x1, the input has the hidden channels
    residual: bool = False  # the input is added; it has the output's shape

    def init(self, key, input_shape):
        """See `Block.init`."""
        key1, key2, key3 = jax.random.split(key, 3)
        kernels = {
            "expand": layers.init_pointwise_conv(key1, input_shape[-1], self.hidden),
            "depthwise": layers.init_depthwise_conv(key2, self.size, self.hidden),
            "project": layers.init_pointwise_conv(key3, self.hidden, self.channels),
        }
        if not self.expand:
            del kernels["expand"]
        params, batch_stats = {}, {}
        for name, kernel in kernels.items():
            norm, batch_stats[name] = layers.init_batch_norm(kernel.shape[-1])
            params[name] = {"conv": kernel, "bn": norm}
        return params, batch_stats

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        moments = {}

        def batch_norm(name, x):
            norm = params[name]["bn"]
            x, moments[name] = _batch_norm(norm, batch_stats[name], x, train)
            return x

        y = x
        if self.expand:
            y = _relu6(batch_norm("expand", y @ params["expand"]["conv"]))
        y = layers.depthwise_conv(y, params["depthwise"]["conv"], self.stride)
        y = _relu6(batch_norm("depthwise", y))
        y = batch_norm("project", y @ params["project"]["conv"])
        return (x + y if self.residual else y), moments

    def channel_axes(self, params):
        """See `PrunableBlock.channel_axes`; without a first conv1x1 the input is the hidden one."""
        hidden = "hidden" if self.expand else "in"
        axes = {"expand": ("in", hidden), "depthwise": (hidden,), "project": (hidden, "out")}
        return ChannelAxes({name: axes[name] for name in params}, tied=self.residual)

    def narrow(self, widths):
        """See `PrunableBlock.narrow`."""
        hidden = widths["hidden" if self.expand else "in"]
        return dataclasses.replace(self, hidden=hidden, channels=widths["out"])

    def propagate(self, params, moments):
        """Output moments without data: last BatchNorm plus input (`None`: the former alone)."""
        last = _normalised_moments(params["project"]["bn"])
        if moments is None or not self.residual:
            return last
        return Moments(last.mean + moments.mean, last.var + moments.var)


@dataclasses.dataclass(frozen=True)
class PooledConv:
    """conv1x1 - BN - ReLU6 - global average pooling: f32[B, channels]."""

    channels: int

    def init(self, key, input_shape):
        """See `Block.init`."""
        kernel = layers.init_pointwise_conv(key, input_shape[-1], self.channels)
        params, running = layers.init_batch_norm(self.channels)
        return {"conv": kernel, "bn": params}, {"bn": running}

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        x, moments = _batch_norm(params["bn"], batch_stats["bn"], x @ params["conv"], train)
        return _relu6(x).mean((1, 2)), {"bn": moments}

    def channel_axes(self, params):
        """See `PrunableBlock.channel_axes`."""
        del params
        return ChannelAxes({"conv": ("in", "out"), "bn": ("out",)}, tied=False)

    def narrow(self, widths):
        """See `PrunableBlock.narrow`."""
        return dataclasses.replace(self, channels=widths["out"])


@dataclasses.dataclass(frozen=True)
class EfficientNetLite:
    """A stem, inverted residuals and a pooled convolution; see `efficientnet_lite0`."""

    blocks: tuple


def efficientnet_lite0(width: int = 32) -> EfficientNetLite:
    """EfficientNet-Lite0: 18 blocks, 49 BatchNorms, feature 40 x `width`.

    Args:
      width: channels of the stem. The others are scaled with it, to multiples of 8 as by the
        width multiplier of EfficientNet.
    """
    if width < 1:
        raise ValueError(f"efficientnet_lite0 needs width >= 1, got {width=}.")
    multiplier = width / _WIDTH
    blocks, in_channels = [Stem(width)], width
    for count, size, first_stride, expansion, channels in _STAGES:
        channels = _round_channels(multiplier * channels)
        for i in range(count):
            stride = first_stride if i == 0 else 1
            blocks.append(
                InvertedResidual(
                    hidden=expansion * in_channels,
                    channels=channels,
                    size=size,
                    stride=stride,
                    expand=expansion > 1,
                    residual=stride == 1 and channels == in_channels,
                )
            )
            in_channels = channels
    return EfficientNetLite((*blocks, PooledConv(_round_channels(multiplier * _FEATURES))))


def _round_channels(channels):
    """The next multiple of 8, but at least 8, and not below 90 % of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _batch_norm(params, running, x, train):
    return layers.batch_norm(params, running, x, train=train, epsilon=BATCH_NORM_EPSILON)


def _relu6(x):
    return jnp.clip(x, 0.0, 6.0)


def _normalised_moments(params):
    """Moments after a BatchNorm."""
    return Moments(params["bias"], jnp.square(params["scale"]))
