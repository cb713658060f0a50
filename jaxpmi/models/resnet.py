"""CIFAR-style ResNets as chains of blocks: ResNet-32 (iCaRL family), ResNet-18/34, pre-activation.

ResNet-32 follows the PMI paper's code: no ReLU after a residual sum, parameter-free shortcuts
(every second row and column, channels doubled by zeros), global average pooling in the last block.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpmi.models import layers
from jaxpmi.models.channels import ChannelAxes
from jaxpmi.types import Moments


@dataclasses.dataclass(frozen=True)
class Stem:
    """conv3x3 - BN - ReLU; with `activation=False` the convolution alone (pre-activation nets)."""

    channels: int
    activation: bool = True

    def init(self, key, input_shape):
        """See `Block.init`."""
        params = {"conv": layers.init_conv(key, 3, input_shape[-1], self.channels)}
        if not self.activation:
            return params, {}
        params["bn"], running = layers.init_batch_norm(self.channels)
        return params, {"bn": running}

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        x = layers.conv(x, params["conv"])
        if not self.activation:
            return x, {}
        x, moments = layers.batch_norm(params["bn"], batch_stats["bn"], x, train=train)
        return jax.nn.relu(x), {"bn": moments}

    def channel_axes(self, params):
        """See `PrunableBlock.channel_axes`."""
        axes = {"conv": ("in", "out"), "bn": ("out",)}
        return ChannelAxes({name: axes[name] for name in params}, tied=False)

    def narrow(self, widths):
        """See `PrunableBlock.narrow`."""
        return dataclasses.replace(self, channels=widths["out"])

    def propagate(self, params, moments):
        """Output moments without data: of a rectified Gaussian (`None`: before the ReLU)."""
        normalised = Moments(params["bn"]["bias"], jnp.square(params["bn"]["scale"]))
        return normalised if moments is None else layers.clipped_moments(normalised)


@dataclasses.dataclass(frozen=True)
class ResidualBlock:
    """conv3x3 - BN - ReLU - conv3x3 - BN + shortcut."""

    channels: int
    stride: int = 1
    projection: bool = False  # 1x1 conv + BN on the shortcut where the shape changes
    final_relu: bool = False  # ReLU after the sum
    pool: bool = False  # global average pooling after the block: f32[B, channels]
    hidden_channels: int | None = None  # between the convolutions; None: as many as `channels`

    def init(self, key, input_shape):
        """See `Block.init`."""
        key1, key2, key3 = jax.random.split(key, 3)
        in_channels, hidden = input_shape[-1], self.hidden_channels or self.channels
        params = {
            "conv1": layers.init_conv(key1, 3, in_channels, hidden),
            "conv2": layers.init_conv(key2, 3, hidden, self.channels),
        }
        batch_stats = {}
        params["bn1"], batch_stats["bn1"] = layers.init_batch_norm(hidden)
        params["bn2"], batch_stats["bn2"] = layers.init_batch_norm(self.channels, scale=0.0)
        if self.projection and (self.stride != 1 or in_channels != self.channels):
            params["conv3"] = layers.init_conv(key3, 1, in_channels, self.channels)
            params["bn3"], batch_stats["bn3"] = layers.init_batch_norm(self.channels)
        return params, batch_stats

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        moments = {}

        def batch_norm(name, x):
            x, moments[name] = layers.batch_norm(params[name], batch_stats[name], x, train=train)
            return x

        y = jax.nn.relu(batch_norm("bn1", layers.conv(x, params["conv1"], self.stride)))
        y = batch_norm("bn2", layers.conv(y, params["conv2"]))
        if "conv3" in params:
            x = batch_norm("bn3", layers.conv(x, params["conv3"], self.stride))
        y = y + _identity_shortcut(x, y.shape)
        if self.final_relu:
            y = jax.nn.relu(y)
        return (y.mean((1, 2)) if self.pool else y), moments

    def channel_axes(self, params):
        """See `PrunableBlock.channel_axes`."""
        return _residual_axes(params, bn1="hidden", bn2="out", bn3="out")

    def narrow(self, widths):
        """See `PrunableBlock.narrow`."""
        return _narrow(self, widths)

    def propagate(self, params, moments):
        """Output moments without data: shortcut plus last BatchNorm (`None`: the latter alone)."""
        mean, var = params["bn2"]["bias"], jnp.square(params["bn2"]["scale"])
        if moments is None:
            return Moments(mean, var)
        if "bn3" in params:
            return Moments(mean + params["bn3"]["bias"], var + jnp.square(params["bn3"]["scale"]))
        padding = (0, self.channels - moments.mean.shape[0])  # the appended zero channels
        return Moments(mean + jnp.pad(moments.mean, padding), var + jnp.pad(moments.var, padding))


@dataclasses.dataclass(frozen=True)
class PreActivationBlock:
    """BN - ReLU - conv3x3 - BN - ReLU - conv3x3 + shortcut (1x1 conv of the activated input)."""

    channels: int
    stride: int = 1
    pool: bool = False  # final BN - ReLU - global average pooling: f32[B, channels]
    hidden_channels: int | None = None  # between the convolutions; None: as many as `channels`

    def init(self, key, input_shape):
        """See `Block.init`."""
        key1, key2, key3 = jax.random.split(key, 3)
        in_channels, hidden = input_shape[-1], self.hidden_channels or self.channels
        params = {
            "conv1": layers.init_conv(key1, 3, in_channels, hidden),
            "conv2": layers.init_conv(key2, 3, hidden, self.channels),
        }
        batch_stats = {}
        params["bn1"], batch_stats["bn1"] = layers.init_batch_norm(in_channels)
        params["bn2"], batch_stats["bn2"] = layers.init_batch_norm(hidden)
        if self.stride != 1 or in_channels != self.channels:
            params["conv3"] = layers.init_conv(key3, 1, in_channels, self.channels)
        if self.pool:
            params["bn3"], batch_stats["bn3"] = layers.init_batch_norm(self.channels)
        return params, batch_stats

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        moments = {}

        def activate(name, x):
            x, moments[name] = layers.batch_norm(params[name], batch_stats[name], x, train=train)
            return jax.nn.relu(x)

        activated = activate("bn1", x)
        y = layers.conv(activated, params["conv1"], self.stride)
        y = layers.conv(activate("bn2", y), params["conv2"])
        y = y + (layers.conv(activated, params["conv3"], self.stride) if "conv3" in params else x)
        return (activate("bn3", y).mean((1, 2)) if self.pool else y), moments

    def channel_axes(self, params):
        """See `PrunableBlock.channel_axes`."""
        return _residual_axes(params, bn1="in", bn2="hidden", bn3="out")

    def narrow(self, widths):
        """See `PrunableBlock.narrow`."""
        return _narrow(self, widths)


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A stem and residual blocks; see the constructors below."""

    blocks: tuple


def resnet32(width: int = 16, depth: int = 5) -> ResNet:
    """The PMI paper's ResNet: 16 units and 31 BatchNorms at `depth` 5, feature 4 x `width`.

    Stages: `depth` blocks at width, one down block and depth - 1 at 2 x width, one down block and
    depth - 2 at 4 x width, and one last block with pooling. `depth` 1 is the small CPU variant
    with 5 units: one plain, two down, one last block.
    """
    if depth < 1 or width < 1:
        raise ValueError(f"resnet32 needs depth >= 1 and width >= 1, got {depth=} and {width=}.")
    plain = ResidualBlock
    blocks = [Stem(width)] + [plain(width)] * depth
    blocks += [plain(2 * width, stride=2)] + [plain(2 * width)] * (depth - 1)
    blocks += [plain(4 * width, stride=2)] + [plain(4 * width)] * max(depth - 2, 0)
    return ResNet((*blocks, plain(4 * width, pool=True)))


def resnet_small(width: int = 8) -> ResNet:
    """The small CPU variant of ResNet-32: 5 units, 9 BatchNorms, feature 4 x `width`."""
    return resnet32(width, depth=1)


def _residual(width, repeats, block, **options):
    blocks = []
    for stage, count in enumerate(repeats):
        channels = width * 2**stage
        for i in range(count):
            last = stage == len(repeats) - 1 and i == count - 1
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(block(channels, stride=stride, pool=last, **options))
    return blocks


def resnet18(width: int = 64) -> ResNet:
    """Post-activation CIFAR ResNet-18: 3x3 stem, projection shortcuts, feature 8 x `width`."""
    options = {"projection": True, "final_relu": True}
    return ResNet((Stem(width), *_residual(width, (2, 2, 2, 2), ResidualBlock, **options)))


def resnet34(width: int = 64) -> ResNet:
    """Post-activation CIFAR ResNet-34 (DeepInversion's teacher), feature 8 x `width`."""
    options = {"projection": True, "final_relu": True}
    return ResNet((Stem(width), *_residual(width, (3, 4, 6, 3), ResidualBlock, **options)))


def preact_resnet18(width: int = 64) -> ResNet:
    """Pre-activation CIFAR ResNet-18 (VDFD's backbone), feature 8 x `width`."""
    stem = Stem(width, activation=False)
    return ResNet((stem, *_residual(width, (2, 2, 2, 2), PreActivationBlock)))


def preact_resnet34(width: int = 64) -> ResNet:
    """Pre-activation CIFAR ResNet-34, feature 8 x `width`."""
    stem = Stem(width, activation=False)
    return ResNet((stem, *_residual(width, (3, 4, 6, 3), PreActivationBlock)))


def _residual_axes(params, **batch_norms):
    """Channels of a residual block of either kind; a shortcut without conv3 ties in and out."""
    axes = {"conv1": ("in", "hidden"), "conv2": ("hidden", "out"), "conv3": ("in", "out")}
    axes |= {name: (channels,) for name, channels in batch_norms.items()}
    return ChannelAxes({name: axes[name] for name in params}, tied="conv3" not in params)


def _narrow(block, widths):
    """A residual block of either kind with other numbers of channels."""
    channels, hidden = widths["out"], widths["hidden"]
    return dataclasses.replace(
        block, channels=channels, hidden_channels=None if hidden == channels else hidden
    )


def _identity_shortcut(x, shape):
    """Subsamples to the output's size and appends zero channels (no parameters)."""
    stride = -(-x.shape[1] // shape[1])
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, shape[-1] - x.shape[-1])))
