"""The first and the last part of CLIP's text tower, around its transformer blocks."""

import jax
from flax import nnx

from jaxpmi.models import layers
from jaxpmi.types import PRNGKey


class TextEmbedding(nnx.Module):
    """A vector per token and one per position."""

    def __init__(
        self, key: PRNGKey, key_positions: PRNGKey, vocabulary: int, context: int, width: int
    ):
        self.tokens = nnx.Param(layers.draw_normal(key, (vocabulary, width), 0.02))
        self.positions = nnx.Param(layers.draw_normal(key_positions, (context, width), 0.01))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """i32[B, T] -> f32[B, T, width], T at most the context."""
        return self.tokens[...][tokens] + self.positions[...][None, : tokens.shape[1]]


class EndTokenHead(nnx.Module):
    """LayerNorm of one token, and a projection."""

    def __init__(self, width: int, features: int, *, rngs: nnx.Rngs):
        self.norm = layers.layer_norm(width)
        self.projection = layers.linear(rngs.params(), width, features, width**-0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B, width] -> f32[B, features]."""
        return self.projection(self.norm(x))
