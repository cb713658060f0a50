"""What the scan over a stack of blocks saves: per-layer inversion in one program, or unrolled.

Both invert the same transformer's blocks for the same targets, as one compiled program from feature
map to feature map; the unrolled one holds every block's descent anew.
"""

import functools
import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.config import PerLayerConfig
from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.per_layer import invert_block
from jaxpmi.models.vit import Attention
from jaxpmi.models.vit import Mlp
from jaxpmi.models.vit import transformer_blocks

TOKENS, WIDTH, BATCH = 50, 64, 40
CONFIG = PerLayerConfig(start="gaussian", num_steps=20, statistics_weight=0.1)


def run_depths(
    depths: Sequence[int], *, repetitions: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row per depth and version: seconds to trace, compile and run, and bytes."""
    rows = []
    for depth in depths:
        problem = _problem(depth)
        for version, invert in (("scan", _scanned), ("unrolled", _unrolled)):
            say(f"depth {depth}: {version}")
            rows.append(
                {"depth": depth, "version": version, **_measure(invert, problem, repetitions)}
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line per row."""
    lines = [
        "| blocks | version | trace, s | compile, s | run, s | working memory, MB |",
        "|" + "---|" * 6,
    ]
    for row in rows:
        lines.append(
            f"| {row['depth']} | {row['version']} | {row['trace_seconds']:.2f} "
            f"| {row['compile_seconds']:.2f} | {row['run_seconds']:.2f} "
            f"| {row['temporary_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def _problem(depth):
    """A random stack, the moments of its inputs on random tokens, and its outputs as targets."""
    blocks = transformer_blocks(WIDTH, depth, WIDTH // 16, rngs=nnx.Rngs(0))
    statistics_of = (Attention, Mlp)
    stack, params, batch_stats = as_block(blocks, (TOKENS, WIDTH), statistics_of=statistics_of)
    tokens = jax.random.normal(jax.random.key(1), (BATCH, TOKENS, WIDTH))
    target, batch_stats, inputs = stack.trace(params, batch_stats, tokens, train=False)
    return stack, (params, batch_stats, inputs, target, jax.random.split(jax.random.key(2), depth))


def _invert_one(target, layer, *, block):
    params, batch_stats, moments, key = layer
    key_start, key_solve = jax.random.split(key)
    start = draw_start(moments, (TOKENS, WIDTH), key_start, target)
    problem = (params, batch_stats, start, target, moments, key_solve)
    return invert_block(*problem, block=block, config=CONFIG).x


def _scanned(stack, params, batch_stats, inputs, target, keys):
    def step(target, layer):
        return _invert_one(target, layer, block=stack.block), None

    return jax.lax.scan(step, target, (params, batch_stats, inputs, keys), reverse=True)[0]


def _unrolled(stack, params, batch_stats, inputs, target, keys):
    layers = (params, batch_stats, inputs, keys)
    for i in reversed(range(stack.depth)):
        layer = jax.tree.map(lambda leaf: leaf[i], layers)  # noqa: B023
        target = _invert_one(target, layer, block=stack.block)
    return target


def _measure(invert, problem, repetitions):
    stack, arguments = problem
    since = time.perf_counter()
    lowered = jax.jit(functools.partial(invert, stack)).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    taken = []
    for repetition in range(repetitions + 1):
        begin = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        if repetition > 0:
            taken.append(time.perf_counter() - begin)
    assert bool(jnp.isfinite(result).all())
    return {
        "trace_seconds": traced - since,
        "compile_seconds": done - traced,
        "run_seconds": statistics.median(taken),
        "temporary_bytes": memory.temp_size_in_bytes,
    }
