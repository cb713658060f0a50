"""Mixture-of-experts adapters: two small bottlenecks and a router beside the MLP of every block.

They are all that is trained of a pretrained CLIP (MoE-Adapters as the PMI code uses them,
docs/methods/clip.md, eqs. 1, 2). Fresh adapters add exactly 0, so the model starts as the
pretrained one.
"""

import math

import jax
import jax.numpy as jnp

from jaxpmi.models.blockwise import stack_layers
from jaxpmi.models.layers import draw_normal
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

SCALE = 0.1  # of an expert's output
DROPOUT = 0.1  # of the bottleneck, in training
NOISE_FLOOR = 0.01  # least standard deviation of the gate's noise in training


def init_adapters(
    key: PRNGKey, depth: int, dim: int, *, num_experts: int = 2, rank: int = 64
) -> Params:
    """Adapters for a stack of `depth` blocks of width `dim`, leaves [L, ...].

    Down-projections are uniform within 1 / sqrt(dim) on average; up-projections, biases and both
    maps of the router are 0.
    """

    def one(key):
        # A uniform draw on (-1 / sqrt(dim), 1 / sqrt(dim)) has this standard deviation.
        down = draw_normal(key, (num_experts, dim, rank), 1.0 / math.sqrt(3 * dim))
        return {
            "down": down,
            "down_bias": jnp.zeros((num_experts, rank)),
            "up": jnp.zeros((num_experts, rank, dim)),
            "up_bias": jnp.zeros((num_experts, dim)),
            "gate": jnp.zeros((dim, num_experts)),
            "noise": jnp.zeros((dim, num_experts)),
        }

    return stack_layers([one(jax.random.fold_in(key, i)) for i in range(depth)])


def apply_adapters(params: Params, x: jax.Array, key: PRNGKey | None = None) -> jax.Array:
    """What the experts of one block add to f32[B, N, D]: their mixture, gated per example.

    The gate reads the first token. With a key (in training) its logits are noisy and the
    bottlenecks have dropout; without one the result is deterministic.
    """
    logits = x[:, 0] @ params["gate"]
    if key is not None:
        key_gate, key_dropout = jax.random.split(key)
        std = jax.nn.softplus(x[:, 0] @ params["noise"]) + NOISE_FLOOR
        logits = logits + std * jax.random.normal(key_gate, logits.shape)
    gates = jax.nn.softmax(logits)  # f32[B, E]: with k = E experts, top-k gating is a softmax
    hidden = jnp.einsum("bnd,edr->benr", x, params["down"])
    hidden = jax.nn.relu(hidden + params["down_bias"][None, :, None])
    if key is not None:
        kept = jax.random.bernoulli(key_dropout, 1.0 - DROPOUT, hidden.shape)
        hidden = jnp.where(kept, hidden / (1.0 - DROPOUT), 0.0)
    outputs = jnp.einsum("benr,erd->bend", hidden, params["up"]) + params["up_bias"][None, :, None]
    return SCALE * jnp.einsum("be,bend->bnd", gates, outputs)


def with_adapters(stack_params: Params, adapters: Params | None) -> Params:
    """A stack's parameters with adapters beside them; nothing is copied. None: without."""
    base = {name: part for name, part in stack_params.items() if name != "adapters"}
    return base if adapters is None else {**base, "adapters": adapters}
