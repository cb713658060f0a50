"""A plain encoder-decoder: features per pixel, at the size of the image.

Convolutions halve the image twice, two more see it as a whole, and on the way back every level is
joined by what went down at its size, as in a U-Net. There is no normalisation, so that all that
the network does is in its parameters; see `plain_cnn`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxpmi.models import layers
from jaxpmi.models.blockwise import Block
from jaxpmi.models.blockwise import output_shape
from jaxpmi.models.plain_cnn import ConvBlock
from jaxpmi.models.plain_cnn import with_bias


@dataclasses.dataclass(frozen=True)
class PixelConv(ConvBlock):
    """`ConvBlock` with He-normal weights for its fan-in, which a join has more of than outputs."""

    def init(self, key, input_shape):
        """See `Block.init`."""
        shape = (3, 3, input_shape[-1], self.channels)
        return with_bias(layers.draw_normal(key, shape, (2.0 / math.prod(shape[:-1])) ** 0.5))


@dataclasses.dataclass(frozen=True)
class SkipBlock:
    """`inner` blocks, enlarged to the input's size and joined with it - conv3x3 - ReLU."""

    inner: tuple[Block, ...]
    channels: int

    def init(self, key, input_shape):
        """See `Block.init`; parameters and moments are lists, those of the join at the end."""
        keys = jax.random.split(key, len(self.inner) + 1)
        shape, parts = tuple(input_shape), []
        for block, key_block in zip(self.inner, keys[1:], strict=True):
            parts.append(block.init(key_block, shape))
            shape = output_shape(block, *parts[-1], shape)
        joined = (*input_shape[:2], input_shape[2] + shape[-1])
        parts.append(self._join.init(keys[0], joined))
        params, moments = zip(*parts, strict=True)
        return list(params), list(moments)

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        inner, moments = x, []
        for block, own, kept in zip(self.inner, params, batch_stats, strict=False):
            inner, seen = block.apply(own, kept, inner, train=train)
            moments.append(seen)
        joined = jnp.concatenate([x, _enlarge(inner, x.shape[1:3])], axis=-1)
        out, seen = self._join.apply(params[-1], batch_stats[-1], joined, train=train)
        return out, [*moments, seen]

    @property
    def _join(self):
        return PixelConv(self.channels, stride=1)


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """A `PixelConv` and a `SkipBlock` around another one; the last output is f32[B, H, W, D]."""

    blocks: tuple[Block, ...]


def encoder_decoder(width: int = 16) -> EncoderDecoder:
    """Channels `width`, 2 x `width` at half the size, 4 x `width` at a quarter; D = `width`."""
    deep = (PixelConv(4 * width), PixelConv(4 * width, stride=1))
    middle = (PixelConv(2 * width), SkipBlock(deep, 2 * width))
    return EncoderDecoder((PixelConv(width, stride=1), SkipBlock(middle, width)))


def _enlarge(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Repeats every pixel of f32[B, h, w, C] in a square of four, cut to `size`."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]
