"""Vision transformers as chains of blocks: patches, tokens, a stack of equal blocks, a head.

The pre-LN transformer of CLIP; its blocks serve the text tower as well. Inversion units are the
patch embedding, the token embedding, every transformer block and the head: 15 for ViT-B/16
(docs/methods/clip.md).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxpmi.models.adapters import apply_adapters
from jaxpmi.models.blockwise import Stack
from jaxpmi.models.blockwise import StatisticsAxis
from jaxpmi.models.blockwise import axis_moments
from jaxpmi.models.layers import draw_normal
from jaxpmi.types import Moments

LAYER_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class PatchEmbedding:
    """Linear map of every patch: f32[B, H, W, C] -> f32[B, H/patch, W/patch, width]."""

    patch_size: int
    width: int

    def init(self, key, input_shape):
        """See `Block.init`."""
        height, width, channels = input_shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {height} x {width} pixels do not divide into patches of "
                f"{self.patch_size}; resize the images or choose another patch size."
            )
        size = self.patch_size**2 * channels
        return {"kernel": draw_normal(key, (size, self.width), size**-0.5)}, {}

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        del batch_stats, train
        batch, height, width, channels = x.shape
        p = self.patch_size
        x = x.reshape(batch, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height // p, width // p, p * p * channels) @ params["kernel"], {}


@dataclasses.dataclass(frozen=True)
class TokenEmbedding:
    """Flatten, class token first, positions, LayerNorm: f32[B, h, w, D] -> f32[B, N, D]."""

    position_std: float | None = None  # of the initial positions; None: D^-0.5, as in CLIP

    def init(self, key, input_shape):
        """See `Block.init`."""
        height, width, dim = input_shape
        key_class, key_positions = jax.random.split(key)
        std = dim**-0.5 if self.position_std is None else self.position_std
        params = {
            "class_token": draw_normal(key_class, (dim,), dim**-0.5),
            "positions": draw_normal(key_positions, (height * width + 1, dim), std),
            "norm": init_layer_norm(dim),
        }
        return params, {}

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        del batch_stats, train
        first = jnp.broadcast_to(params["class_token"], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x.reshape(x.shape[0], -1, x.shape[-1])], 1)
        return layer_norm(params["norm"], x + params["positions"][None]), {}


@dataclasses.dataclass(frozen=True)
class TransformerBlock:
    """LayerNorm - attention - sum - LayerNorm - MLP - sum, on f32[B, N, D].

    Kept moments are those of the inputs of attention and MLP, after their LayerNorms.
    """

    num_heads: int
    mlp_width: int
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    causal: bool = False  # a token sees only those before it (text)
    statistics_axis: StatisticsAxis = "channel"  # token: as published
    residual_std: float = 0.02  # of the initial weights of the two maps onto the residual stream

    def init(self, key, input_shape):
        """See `Block.init`."""
        tokens, dim = input_shape
        if dim % self.num_heads:
            raise ValueError(
                f"a width of {dim} does not divide into {self.num_heads} heads; use a width "
                f"divisible by {self.num_heads}."
            )
        keys = jax.random.split(key, 4)
        params = {
            "norm1": init_layer_norm(dim),
            "attention": {
                "in": _init_linear(keys[0], dim, 3 * dim, dim**-0.5),
                "out": _init_linear(keys[1], dim, dim, self.residual_std),
            },
            "norm2": init_layer_norm(dim),
            "mlp": {
                "up": _init_linear(keys[2], dim, self.mlp_width, (2 * dim) ** -0.5),
                "down": _init_linear(keys[3], self.mlp_width, dim, self.residual_std),
            },
        }
        shape = (tokens, 1) if self.statistics_axis == "token" else (dim,)
        standard = Moments(jnp.zeros(shape), jnp.ones(shape))
        return params, {"attention": standard, "mlp": standard}

    def apply(self, params, batch_stats, x, *, train=False, key=None):
        """See `Block.apply`; a key makes adapters random, as they are in training."""
        del batch_stats, train
        moments = {}
        y = layer_norm(params["norm1"], x)
        moments["attention"] = axis_moments(y, self.statistics_axis)
        x = x + self._attend(params["attention"], y)
        y = layer_norm(params["norm2"], x)
        moments["mlp"] = axis_moments(y, self.statistics_axis)
        hidden = _activate(_linear(params["mlp"]["up"], y), self.activation)
        y = _linear(params["mlp"]["down"], hidden)
        if "adapters" in params:
            y = y + apply_adapters(params["adapters"], x, key)
        return x + y, moments

    def _attend(self, params, x):
        batch, tokens, dim = x.shape
        split = (batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = jnp.moveaxis(_linear(params["in"], x).reshape(split), 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return _linear(params["out"], mixed.reshape(batch, tokens, dim))


@dataclasses.dataclass(frozen=True)
class ClassTokenHead:
    """LayerNorm of the class token, and a projection: f32[B, N, D] -> f32[B, features]."""

    features: int
    statistics_axis: StatisticsAxis = "channel"  # of its input
    unit_norm: bool = False  # features of length 1

    def init(self, key, input_shape):
        """See `Block.init`."""
        dim = input_shape[-1]
        projection = draw_normal(key, (dim, self.features), dim**-0.5)
        return {"norm": init_layer_norm(dim), "projection": projection}, {}

    def apply(self, params, batch_stats, x, *, train=False):
        """See `Block.apply`."""
        del batch_stats, train
        features = layer_norm(params["norm"], x[:, 0]) @ params["projection"]
        if self.unit_norm:
            features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        return features, {}


@dataclasses.dataclass(frozen=True)
class VisionTransformer:
    """Four blocks, the third of which is a stack; see `vision_transformer`."""

    blocks: tuple


def vision_transformer(
    *,
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    features: int,
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
    statistics_axis: StatisticsAxis = "channel",
    position_std: float | None = None,
) -> VisionTransformer:
    """CLIP's image tower: `depth` blocks of `width` channels, MLPs of four times that.

    `position_std` is that of `TokenEmbedding`.
    """
    block = transformer_block(
        width, depth, num_heads, activation=activation, statistics_axis=statistics_axis
    )
    return VisionTransformer(
        (
            PatchEmbedding(patch_size, width),
            TokenEmbedding(position_std),
            Stack(block, depth),
            ClassTokenHead(features, statistics_axis),
        )
    )


def with_unit_features(model: VisionTransformer) -> VisionTransformer:
    """The same tower, whose features have length 1; it takes the same variables."""
    *blocks, head = model.blocks
    return VisionTransformer((*blocks, dataclasses.replace(head, unit_norm=True)))


def transformer_block(width: int, depth: int, num_heads: int, **options) -> TransformerBlock:
    """One block of a tower of `depth`, initialised as in CLIP; options are the block's fields."""
    std = (2 * depth * width) ** -0.5
    return TransformerBlock(num_heads, 4 * width, residual_std=std, **options)


def vit_small(width: int = 64, *, patch_size: int = 4) -> VisionTransformer:
    """A small transformer for images of about 28 x 28 pixels: 4 blocks, heads of 16 channels.

    Its positions begin as large as its patch embeddings, or it learns slowly where things are: few
    images train it, and CLIP's are a seventh of that at 48 channels.
    """
    return vision_transformer(
        patch_size=patch_size,
        width=width,
        depth=4,
        num_heads=max(width // 16, 1),
        features=width,
        position_std=1.0,
    )


def num_units(model: VisionTransformer) -> int:
    """Inversion units: blocks, with those of a stack counted one by one."""
    return sum(b.depth if isinstance(b, Stack) else 1 for b in model.blocks)


def init_layer_norm(dim: int) -> dict[str, jax.Array]:
    """Scale 1 and bias 0."""
    return {"scale": jnp.ones((dim,)), "bias": jnp.zeros((dim,))}


def layer_norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Normalises f32[..., D] over its last axis."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    shape = (1,) * (x.ndim - 1) + (-1,)
    scale, bias = params["scale"].reshape(shape), params["bias"].reshape(shape)
    return (x - mean) * jax.lax.rsqrt(var + LAYER_NORM_EPSILON) * scale + bias


def _init_linear(key, rows, columns, std):
    return {"kernel": draw_normal(key, (rows, columns), std), "bias": jnp.zeros((columns,))}


def _linear(params, x):
    return x @ params["kernel"] + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _activate(x, name):
    return x * jax.nn.sigmoid(1.702 * x) if name == "quick_gelu" else jax.nn.gelu(x, False)
