"""A plain encoder-decoder: features per pixel, at the size of the image.

Convolutions halve the image twice, two more see it as a whole, and on the way back every level is
joined by what went down at its size, as in a U-Net. There is no normalisation, so that all that
the network does is in its parameters; see `plain_cnn`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.flax_networks.containers import ModuleList
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.layers import OneKey
from jaxpmi.models.plain_cnn import ConvBlock
from jaxpmi.models.plain_cnn import Relu


def pixel_conv(in_channels: int, channels: int, *, stride: int = 1, rngs: nnx.Rngs) -> ConvBlock:
    """A `ConvBlock`, He-normal by fan-in, which a join has more of than outputs."""
    std = (2.0 / (9 * in_channels)) ** 0.5
    return ConvBlock(in_channels, channels, stride=stride, std=std, rngs=rngs)


class SkipBlock(nnx.Module):
    """`inner` modules, enlarged to the input's size and joined with it - conv3x3 - ReLU."""

    def __init__(
        self,
        in_channels: int,
        inner: tuple[Callable[..., nnx.Module], ...],
        inner_channels: int,
        channels: int,
        *,
        rngs: nnx.Rngs,
    ):
        """Makes every inner module by `make(rngs=...)`; the last has `inner_channels`."""
        key_join, *keys = jax.random.split(rngs.params(), len(inner) + 1)
        self.inner = ModuleList(
            [make(rngs=OneKey(key)) for make, key in zip(inner, keys, strict=True)]
        )
        self.join = pixel_conv(in_channels + inner_channels, channels, rngs=OneKey(key_join))

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, in] -> f32[B, H, W, channels]."""
        inner = x
        for module in self.inner:
            inner = module(inner)
        return self.join(jnp.concatenate([x, _enlarge(inner, x.shape[1:3])], axis=-1))


def encoder_decoder(
    image_shape: tuple[int, int, int], width: int = 16, *, rngs: nnx.Rngs
) -> Backbone:
    """Channels `width`, 2 x `width` at half the size, 4 x `width` at a quarter; D = `width`."""

    def deep(*, rngs):
        parts = (
            lambda rngs: pixel_conv(2 * width, 4 * width, stride=2, rngs=rngs),
            lambda rngs: pixel_conv(4 * width, 4 * width, rngs=rngs),
        )
        return SkipBlock(2 * width, parts, 4 * width, 2 * width, rngs=rngs)

    parts = (lambda rngs: pixel_conv(width, 2 * width, stride=2, rngs=rngs), deep)
    return Backbone(
        pixel_conv(image_shape[-1], width, rngs=rngs),
        SkipBlock(width, parts, 2 * width, width, rngs=rngs),
        statistics_of=(Relu,),
    )


def _enlarge(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Repeats every pixel of f32[B, h, w, C] in a square of four, cut to `size`."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]
