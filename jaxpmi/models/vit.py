"""Vision transformers as Flax modules: patches, tokens, a stack of equal blocks, a head.

The pre-LN transformer of CLIP; its blocks serve the text tower as well. Inversion units are the
patch embedding, the token embedding, every transformer block and the head: 15 for ViT-B/16
(docs/methods/clip.md).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.models import layers
from jaxpmi.models.adapters import Adapters
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.layers import OneKey
from jaxpmi.types import PRNGKey

Activation = Literal["quick_gelu", "gelu"]

DEPTH, EPSILON = 12, 1e-6  # of `vit`: its blocks, and that of its LayerNorms


class PatchEmbedding(nnx.Module):
    """Linear map of every patch of `patch_size` x `patch_size` pixels."""

    def __init__(
        self,
        patch_size: int,
        channels: int,
        width: int,
        *,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        size = patch_size**2 * channels
        self.patch_size = patch_size
        self.linear = layers.linear(rngs.params(), size, width, size**-0.5, use_bias=use_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, H, W, C] -> f32[B, H/patch, W/patch, width]."""
        batch, height, width, channels = x.shape
        p = self.patch_size
        x = x.reshape(batch, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return self.linear(x.reshape(batch, height // p, width // p, p * p * channels))


class TokenEmbedding(nnx.Module):
    """Flatten, class token first, positions, and in CLIP a LayerNorm.

    `position_std` is that of the initial positions; None: D^-0.5, as in CLIP.
    """

    def __init__(
        self,
        num_patches: int,
        dim: int,
        *,
        position_std: float | None = None,
        with_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        key_class, key_positions = jax.random.split(rngs.params())
        std = dim**-0.5 if position_std is None else position_std
        self.class_token = nnx.Param(layers.draw_normal(key_class, (dim,), dim**-0.5))
        self.positions = nnx.Param(layers.draw_normal(key_positions, (num_patches + 1, dim), std))
        self.norm = layers.layer_norm(dim) if with_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, h, w, D] with h w patches -> f32[B, N, D], N one more."""
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x.reshape(x.shape[0], -1, x.shape[-1])], 1)
        x = x + self.positions[...][None]
        return x if self.norm is None else self.norm(x)


class Attention(nnx.Module):
    """Self-attention; `causal`: a token sees only those before it (text).

    `out_std` is that of the initial weights of the map onto the residual stream.
    """

    def __init__(
        self,
        key: PRNGKey,
        key_out: PRNGKey,
        dim: int,
        num_heads: int,
        *,
        causal: bool,
        out_std: float,
    ):
        if dim % num_heads:
            raise ValueError(
                f"a width of {dim} does not divide into {num_heads} heads; use a width divisible "
                f"by {num_heads}."
            )
        self.qkv = layers.linear(key, dim, 3 * dim, dim**-0.5, use_bias=True)
        self.out = layers.linear(key_out, dim, dim, out_std, use_bias=True)
        self.num_heads, self.causal = num_heads, causal

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, N, D] -> f32[B, N, D]."""
        batch, tokens, dim = x.shape
        split = (batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = jnp.moveaxis(self.qkv(x).reshape(split), 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.reshape(batch, tokens, dim))


class Mlp(nnx.Module):
    """Linear - activation - linear, of every token."""

    def __init__(
        self,
        key: PRNGKey,
        key_down: PRNGKey,
        dim: int,
        hidden: int,
        *,
        activation: Activation,
        out_std: float,
    ):
        self.up = layers.linear(key, dim, hidden, (2 * dim) ** -0.5, use_bias=True)
        self.down = layers.linear(key_down, hidden, dim, out_std, use_bias=True)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, N, D] -> f32[B, N, D]."""
        x = self.up(x)
        quick = self.activation == "quick_gelu"
        return self.down(x * jax.nn.sigmoid(1.702 * x) if quick else jax.nn.gelu(x, False))


class TransformerBlock(nnx.Module):
    """LayerNorm - attention - sum - LayerNorm - MLP (+ adapters) - sum, on f32[B, N, D].

    Kept moments are those of the inputs of attention and MLP, after their LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        activation: Activation = "quick_gelu",
        causal: bool = False,
        mlp_width: int | None = None,
        epsilon: float = layers.LAYER_NORM_EPSILON,
        residual_std: float = 0.02,
        with_adapters: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes a block whose MLP has `mlp_width` hidden channels; None: 4 x `dim`."""
        keys = jax.random.split(rngs.params(), 4)
        hidden = 4 * dim if mlp_width is None else mlp_width
        self.norm1 = layers.layer_norm(dim, epsilon=epsilon)
        self.attention = Attention(
            keys[0], keys[1], dim, num_heads, causal=causal, out_std=residual_std
        )
        self.norm2 = layers.layer_norm(dim, epsilon=epsilon)
        self.mlp = Mlp(keys[2], keys[3], dim, hidden, activation=activation, out_std=residual_std)
        self.adapters = Adapters(dim, rngs=rngs) if with_adapters else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, N, D] -> f32[B, N, D]."""
        x = x + self.attention(self.norm1(x))
        y = self.mlp(self.norm2(x))
        if self.adapters is not None:
            y = y + self.adapters(x)
        return x + y


class ClassTokenHead(nnx.Module):
    """LayerNorm of the class token, and in CLIP a projection; `features` None: there is none."""

    def __init__(
        self,
        dim: int,
        features: int | None,
        *,
        epsilon: float = layers.LAYER_NORM_EPSILON,
        rngs: nnx.Rngs,
    ):
        self.norm = layers.layer_norm(dim, epsilon=epsilon)
        self.projection = _projection(dim, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, N, D] -> f32[B, features], or f32[B, D]."""
        x = self.norm(x[:, 0])
        return x if self.projection is None else self.projection(x)


def _projection(dim, features, *, rngs):
    """Onto so many features; None: none."""
    return None if features is None else layers.linear(rngs.params(), dim, features, dim**-0.5)


def vision_transformer(
    image_shape: tuple[int, int, int],
    *,
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    features: int,
    activation: Activation = "quick_gelu",
    mlp_width: int | None = None,
    statistics_axis: StatisticsAxis = "channel",
    position_std: float | None = None,
    with_adapters: bool = False,
    rngs: nnx.Rngs,
) -> Backbone:
    """CLIP's image tower: `depth` blocks of `width` channels.

    `position_std` is that of `TokenEmbedding`, `mlp_width` that of `TransformerBlock`.
    """
    num_patches, channels = _num_patches(image_shape, patch_size), image_shape[-1]
    return Backbone(
        PatchEmbedding(patch_size, channels, width, rngs=rngs),
        TokenEmbedding(num_patches, width, position_std=position_std, rngs=rngs),
        transformer_blocks(
            width,
            depth,
            num_heads,
            activation=activation,
            mlp_width=mlp_width,
            with_adapters=with_adapters,
            rngs=rngs,
        ),
        ClassTokenHead(width, features, rngs=rngs),
        statistics_of=(Attention, Mlp),
        statistics_axis=statistics_axis,
    )


def transformer_blocks(
    width: int, depth: int, num_heads: int, *, rngs: nnx.Rngs, **options
) -> list[TransformerBlock]:
    """The blocks of a tower, initialised as in CLIP; options are those of the block."""
    key, std = rngs.params(), (2 * depth * width) ** -0.5
    return [
        TransformerBlock(
            width, num_heads, residual_std=std, rngs=OneKey(jax.random.fold_in(key, i)), **options
        )
        for i in range(depth)
    ]


def vit(
    image_shape: tuple[int, int, int], width: int = 768, *, patch_size: int, rngs: nnx.Rngs
) -> Backbone:
    """ViT and DeiT for ImageNet (Dosovitskiy et al., 2021; Touvron et al., 2021), as timm has them.

    12 blocks, heads of 64 channels; no LayerNorm before the blocks; the feature is the class token
    after the last LayerNorm.

    Args:
      image_shape: (H, W, channels), usually (224, 224, 3).
      width: channels, of the feature too: 192 in "tiny", 384 in "small", 768 in "base" ones.
      patch_size: pixels.
      rngs: for the initial weights.
    """
    num_patches = _num_patches(image_shape, patch_size)
    return Backbone(
        PatchEmbedding(patch_size, image_shape[-1], width, use_bias=True, rngs=rngs),
        TokenEmbedding(num_patches, width, position_std=0.02, with_norm=False, rngs=rngs),
        transformer_blocks(
            width, DEPTH, max(width // 64, 1), activation="gelu", epsilon=EPSILON, rngs=rngs
        ),
        ClassTokenHead(width, None, epsilon=EPSILON, rngs=rngs),
        statistics_of=(Attention, Mlp),
    )


def _num_patches(image_shape, patch_size):
    """Of an image, which they must fill."""
    rows, columns, _ = image_shape
    if rows % patch_size or columns % patch_size:
        raise ValueError(
            f"images of {rows} x {columns} pixels do not divide into patches of {patch_size}; "
            "resize the images or choose another patch size."
        )
    return (rows // patch_size) * (columns // patch_size)


def vit_small(
    image_shape: tuple[int, int, int], width: int = 64, *, patch_size: int = 4, rngs: nnx.Rngs
) -> Backbone:
    """A small transformer for images of about 28 x 28 pixels: 4 blocks, heads of 16 channels.

    Its positions begin as large as its patch embeddings, or it learns slowly where things are: few
    images train it, and CLIP's are a seventh of that at 48 channels.
    """
    return vision_transformer(
        image_shape,
        patch_size=patch_size,
        width=width,
        depth=4,
        num_heads=max(width // 16, 1),
        features=width,
        position_std=1.0,
        rngs=rngs,
    )
