"""CIFAR-style ResNets as Flax modules: ResNet-32 (iCaRL family), ResNet-18/34, pre-activation.

ResNet-32 follows the PMI paper's code: no ReLU after a residual sum, parameter-free shortcuts
(every second row and column, channels doubled by zeros), global average pooling in the last block.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.models import layers
from jaxpmi.models.backbone import Backbone
from jaxpmi.types import Moments


class Stem(nnx.Module):
    """conv3x3 - BN - ReLU; with `activation=False` the convolution alone (pre-activation nets)."""

    def __init__(self, in_channels: int, channels: int, *, activation: bool = True, rngs: nnx.Rngs):
        self.conv = layers.conv(rngs.params(), in_channels, channels)
        self.bn = layers.batch_norm(channels) if activation else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H, W, channels]."""
        x = self.conv(x)
        return x if self.bn is None else nnx.relu(self.bn(x))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        norm = {} if self.bn is None else {"bn": ("out",)}
        return ChannelAxes({"conv": ("in", "out"), **norm}, tied=False)

    def propagate(self, moments: Moments | None) -> Moments | None:
        """Output moments without data: of a rectified Gaussian (`None`: before the ReLU).

        Of the convolution alone nothing is known, None.
        """
        if self.bn is None:
            return None
        normalised = layers.normalised_moments(self.bn)
        return normalised if moments is None else layers.clipped_moments(normalised)


class ResidualBlock(nnx.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN + shortcut.

    With `projection`, the shortcut is a 1x1 convolution and BN where the shape changes; with
    `final_relu`, a ReLU follows the sum; with `pool`, then global average pooling.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        projection: bool = False,
        final_relu: bool = False,
        pool: bool = False,
        rngs: nnx.Rngs,
    ):
        key1, key2, key3 = jax.random.split(rngs.params(), 3)
        self.conv1 = layers.conv(key1, in_channels, channels, stride=stride)
        self.bn1 = layers.batch_norm(channels)
        self.conv2 = layers.conv(key2, channels, channels)
        self.bn2 = layers.batch_norm(channels, scale=0.0)
        projection = projection and (stride != 1 or in_channels != channels)
        self.conv3 = _shortcut(key3, in_channels, channels, stride) if projection else None
        self.bn3 = layers.batch_norm(channels) if projection else None
        self.final_relu, self.pool = final_relu, pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / stride, W / stride, channels], or f32[B, channels]."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None:
            x = self.bn3(self.conv3(x))
        y = y + _identity_shortcut(x, y.shape)
        if self.final_relu:
            y = nnx.relu(y)
        return y.mean((1, 2)) if self.pool else y

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return _residual_axes(self, bn1="hidden", bn2="out", bn3="out")

    def propagate(self, moments: Moments | None) -> Moments:
        """Output moments without data: shortcut plus last BatchNorm (`None`: the latter alone)."""
        mean, var = layers.normalised_moments(self.bn2)
        if moments is None:
            return Moments(mean, var)
        if self.bn3 is not None:
            shortcut = layers.normalised_moments(self.bn3)
            return Moments(mean + shortcut.mean, var + shortcut.var)
        padding = (0, mean.shape[0] - moments.mean.shape[0])  # the appended zero channels
        return Moments(mean + jnp.pad(moments.mean, padding), var + jnp.pad(moments.var, padding))


class PreActivationBlock(nnx.Module):
    """BN - ReLU - conv3x3 - BN - ReLU - conv3x3 + shortcut (1x1 conv of the activated input).

    With `pool`, a final BN - ReLU - global average pooling: f32[B, channels].
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        pool: bool = False,
        rngs: nnx.Rngs,
    ):
        key1, key2, key3 = jax.random.split(rngs.params(), 3)
        self.bn1 = layers.batch_norm(in_channels)
        self.conv1 = layers.conv(key1, in_channels, channels, stride=stride)
        self.bn2 = layers.batch_norm(channels)
        self.conv2 = layers.conv(key2, channels, channels)
        projection = stride != 1 or in_channels != channels
        self.conv3 = _shortcut(key3, in_channels, channels, stride) if projection else None
        self.bn3 = layers.batch_norm(channels) if pool else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / stride, W / stride, channels], or f32[B, channels]."""
        activated = nnx.relu(self.bn1(x))
        y = nnx.relu(self.bn2(self.conv1(activated)))
        y = self.conv2(y) + (x if self.conv3 is None else self.conv3(activated))
        return y if self.bn3 is None else nnx.relu(self.bn3(y)).mean((1, 2))

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        return _residual_axes(self, bn1="in", bn2="hidden", bn3="out")


def resnet32(
    image_shape: tuple[int, int, int], width: int = 16, *, depth: int = 5, rngs: nnx.Rngs
) -> Backbone:
    """The PMI paper's ResNet: 16 units and 31 BatchNorms at `depth` 5, feature 4 x `width`.

    Stages: `depth` blocks at width, one down block and depth - 1 at 2 x width, one down block and
    depth - 2 at 4 x width, and one last block with pooling. `depth` 1 is the small CPU variant
    with 5 units: one plain, two down, one last block.
    """
    if depth < 1 or width < 1:
        raise ValueError(f"resnet32 needs depth >= 1 and width >= 1, got {depth=} and {width=}.")
    counts = (depth, depth, max(depth - 2, 0) + 2)
    stem = Stem(image_shape[-1], width, rngs=rngs)
    return Backbone(stem, *_stages(ResidualBlock, width, counts, rngs=rngs))


def resnet_small(image_shape: tuple[int, int, int], width: int = 8, *, rngs: nnx.Rngs) -> Backbone:
    """The small CPU variant of ResNet-32: 5 units, 9 BatchNorms, feature 4 x `width`."""
    return resnet32(image_shape, width, depth=1, rngs=rngs)


def _stages(block, width, counts, *, rngs, **options):
    """Stages of so many blocks, each of twice the channels at half the size; the last one pools."""
    blocks, channels = [], width
    for stage, count in enumerate(counts):
        for i in range(count):
            down = stage > 0 and i == 0
            last = stage == len(counts) - 1 and i == count - 1
            out = width * 2**stage
            stride = 2 if down else 1
            blocks.append(block(channels, out, stride=stride, pool=last, rngs=rngs, **options))
            channels = out
    return blocks


def resnet18(image_shape: tuple[int, int, int], width: int = 64, *, rngs: nnx.Rngs) -> Backbone:
    """Post-activation CIFAR ResNet-18: 3x3 stem, projection shortcuts, feature 8 x `width`."""
    return _post_activation(image_shape, width, (2, 2, 2, 2), rngs)


def resnet34(image_shape: tuple[int, int, int], width: int = 64, *, rngs: nnx.Rngs) -> Backbone:
    """Post-activation CIFAR ResNet-34 (DeepInversion's teacher), feature 8 x `width`."""
    return _post_activation(image_shape, width, (3, 4, 6, 3), rngs)


def preact_resnet18(
    image_shape: tuple[int, int, int], width: int = 64, *, rngs: nnx.Rngs
) -> Backbone:
    """Pre-activation CIFAR ResNet-18 (VDFD's backbone), feature 8 x `width`."""
    return _pre_activation(image_shape, width, (2, 2, 2, 2), rngs)


def preact_resnet34(
    image_shape: tuple[int, int, int], width: int = 64, *, rngs: nnx.Rngs
) -> Backbone:
    """Pre-activation CIFAR ResNet-34, feature 8 x `width`."""
    return _pre_activation(image_shape, width, (3, 4, 6, 3), rngs)


def _post_activation(image_shape, width, counts, rngs):
    stem = Stem(image_shape[-1], width, rngs=rngs)
    options = {"projection": True, "final_relu": True}
    return Backbone(stem, *_stages(ResidualBlock, width, counts, rngs=rngs, **options))


def _pre_activation(image_shape, width, counts, rngs):
    stem = Stem(image_shape[-1], width, activation=False, rngs=rngs)
    return Backbone(stem, *_stages(PreActivationBlock, width, counts, rngs=rngs))


def _shortcut(key, in_channels, channels, stride):
    return layers.conv(key, in_channels, channels, size=1, stride=stride)


def _residual_axes(block, **batch_norms):
    """Channels of a residual block of either kind; a shortcut without conv3 ties in and out."""
    axes = {"conv1": ("in", "hidden"), "conv2": ("hidden", "out"), "conv3": ("in", "out")}
    axes |= {name: (channels,) for name, channels in batch_norms.items()}
    axes = {name: names for name, names in axes.items() if getattr(block, name) is not None}
    return ChannelAxes(axes, tied=block.conv3 is None)


def _identity_shortcut(x, shape):
    """Subsamples to the output's size and appends zero channels (no parameters)."""
    stride = -(-x.shape[1] // shape[1])
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, shape[-1] - x.shape[-1])))
