"""ResNets for ImageNet as Flax modules, as torchvision has them (He et al., 2016).

A convolution of 7 x 7 and a maximum over 3 x 3 pixels first; ResNet-50 and deeper have bottlenecks
whose 3 x 3 convolution is the one that takes every second pixel ("ResNet v1.5").
"""

import jax
from flax import nnx

from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.models import layers
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.rectified_conv import RectifiedConv
from jaxpmi.models.resnet import ResidualBlock
from jaxpmi.types import Moments

# Blocks of each stage, by depth.
BASIC_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4  # channels of a bottleneck's output, as a multiple of the inner ones


class ImageNetStem(RectifiedConv):
    """conv7x7 of stride 2 - BN - ReLU - maximum over 3 x 3 of stride 2."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = layers.conv(rngs.params(), in_channels, channels, size=7, stride=2)
        self.bn = layers.batch_norm(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / 4, W / 4, channels]."""
        return nnx.max_pool(self.rectified(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Bottleneck(nnx.Module):
    """conv1x1 - BN - ReLU - conv3x3 - BN - ReLU - conv1x1 - BN + shortcut - ReLU.

    The shortcut is a 1x1 convolution and BN where the shape changes. A 1x1 convolution of stride 1
    is a linear map of every pixel. With `pool`, global average pooling follows.
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
        key1, key2, key3, key4 = jax.random.split(rngs.params(), 4)
        inner = channels // EXPANSION
        self.conv1 = layers.pointwise(key1, in_channels, inner)
        self.bn1 = layers.batch_norm(inner)
        self.conv2 = layers.conv(key2, inner, inner, stride=stride)
        self.bn2 = layers.batch_norm(inner)
        self.conv3 = layers.pointwise(key3, inner, channels)
        self.bn3 = layers.batch_norm(channels, scale=0.0)
        changes = stride != 1 or in_channels != channels
        shortcut = {"size": 1, "stride": stride}
        self.shortcut = layers.conv(key4, in_channels, channels, **shortcut) if changes else None
        self.shortcut_bn = layers.batch_norm(channels) if changes else None
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H / stride, W / stride, channels], or f32[B, channels]."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.shortcut is not None:
            x = self.shortcut_bn(self.shortcut(x))
        y = nnx.relu(y + x)
        return y.mean((1, 2)) if self.pool else y

    def channel_axes(self) -> ChannelAxes:
        """See `PrunableModule`."""
        axes = {"conv1": ("in", "first"), "bn1": ("first",)}
        axes |= {"conv2": ("first", "second"), "bn2": ("second",)}
        axes |= {"conv3": ("second", "out"), "bn3": ("out",)}
        if self.shortcut is not None:
            axes |= {"shortcut": ("in", "out"), "shortcut_bn": ("out",)}
        return ChannelAxes(axes, tied=self.shortcut is None)

    def propagate(self, moments: Moments | None) -> Moments:
        """Output moments without data: of the rectified sum (`None`: the last BatchNorm alone)."""
        mean, var = layers.normalised_moments(self.bn3)
        if moments is None:
            return Moments(mean, var)
        if self.shortcut is not None:
            moments = layers.normalised_moments(self.shortcut_bn)
        return layers.clipped_moments(Moments(mean + moments.mean, var + moments.var))


def imagenet_resnet(
    image_shape: tuple[int, int, int], width: int = 64, *, depth: int, rngs: nnx.Rngs
) -> Backbone:
    """ResNet of a depth of 18, 34, 50, 101 or 152; feature 8 x `width`, from 50 on 32 x `width`.

    Args:
      image_shape: (H, W, channels), usually (224, 224, 3).
      width: channels of the stem.
      depth: layers, as in its name.
      rngs: for the initial weights.
    """
    if width < 1:
        raise ValueError(f"imagenet_resnet{depth} needs width >= 1, got {width=}.")
    blocks, in_channels = [ImageNetStem(image_shape[-1], width, rngs=rngs)], width
    counts = (BASIC_STAGES | BOTTLENECK_STAGES)[depth]
    for stage, count in enumerate(counts):
        for i in range(count):
            options = {
                "stride": 2 if stage > 0 and i == 0 else 1,
                "pool": stage == len(counts) - 1 and i == count - 1,
                "rngs": rngs,
            }
            if depth in BASIC_STAGES:
                channels = width * 2**stage
                options |= {"projection": True, "final_relu": True}
                blocks.append(ResidualBlock(in_channels, channels, **options))
            else:
                channels = EXPANSION * width * 2**stage
                blocks.append(Bottleneck(in_channels, channels, **options))
            in_channels = channels
    return Backbone(*blocks)
