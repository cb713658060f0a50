"""Mixture-of-experts adapters: two small bottlenecks and a router beside the MLP of every block.

They are all that is trained of a pretrained CLIP (MoE-Adapters as the PMI code uses them,
docs/methods/clip.md, eqs. 1, 2). Fresh adapters add exactly 0, so the model starts as the
pretrained one.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.blockwise import stack_layers
from jaxpmi.models.layers import OneKey
from jaxpmi.models.layers import draw_normal
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

SCALE = 0.1  # of an expert's output
DROPOUT = 0.1  # of the bottleneck, in training
NOISE_FLOOR = 0.01  # least standard deviation of the gate's noise in training


class Adapters(nnx.Module):
    """The experts of one block, and their router.

    Down-projections are uniform within 1 / sqrt(dim) on average; up-projections, biases and both
    maps of the router are 0.

    Attributes:
      deterministic: if not, the gate's logits are noisy and the bottlenecks have dropout; static.
    """

    def __init__(self, dim: int, *, num_experts: int = 2, rank: int = 64, rngs: nnx.Rngs):
        # A uniform draw on (-1 / sqrt(dim), 1 / sqrt(dim)) has this standard deviation.
        std = 1.0 / math.sqrt(3 * dim)
        self.down = nnx.Param(draw_normal(rngs.params(), (num_experts, dim, rank), std))
        self.down_bias = nnx.Param(jnp.zeros((num_experts, rank)))
        self.up = nnx.Param(jnp.zeros((num_experts, rank, dim)))
        self.up_bias = nnx.Param(jnp.zeros((num_experts, dim)))
        self.gate = nnx.Param(jnp.zeros((dim, num_experts)))
        self.noise = nnx.Param(jnp.zeros((dim, num_experts)))
        self.key = nnx.RngKey(jax.random.key(0), tag="adapters")
        self.deterministic = True

    def __call__(self, x: jax.Array) -> jax.Array:
        """What the experts add to f32[B, N, D]: their mixture, gated per example.

        The gate reads the first token.
        """
        logits = x[:, 0] @ self.gate[...]
        if not self.deterministic:
            key_gate, key_dropout = jax.random.split(self.key[...])
            std = jax.nn.softplus(x[:, 0] @ self.noise[...]) + NOISE_FLOOR
            logits = logits + std * jax.random.normal(key_gate, logits.shape)
        gates = jax.nn.softmax(logits)  # f32[B, E]: with k = E experts, top-k gating is a softmax
        hidden = jnp.einsum("bnd,edr->benr", x, self.down[...])
        hidden = jax.nn.relu(hidden + self.down_bias[...][None, :, None])
        if not self.deterministic:
            kept = jax.random.bernoulli(key_dropout, 1.0 - DROPOUT, hidden.shape)
            hidden = jnp.where(kept, hidden / (1.0 - DROPOUT), 0.0)
        outputs = jnp.einsum("benr,erd->bend", hidden, self.up[...])
        outputs = outputs + self.up_bias[...][None, :, None]
        return SCALE * jnp.einsum("be,bend->bnd", gates, outputs)


def init_adapters(
    key: PRNGKey, depth: int, dim: int, *, num_experts: int = 2, rank: int = 64
) -> Params:
    """The parameters of `Adapters` for a stack of `depth` blocks of width `dim`, leaves [L, ...].

    They are named as in a block that has its adapters as `adapters`.
    """

    def one(key):
        module = Adapters(dim, num_experts=num_experts, rank=rank, rngs=OneKey(key))
        own = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        return {f"adapters/{name}": value for name, value in own.items()}

    return stack_layers([one(jax.random.fold_in(key, i)) for i in range(depth)])
