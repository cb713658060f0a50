"""Inversion of a network's first block from a coarse grid upwards.

The patch embeddings of a transformer are smooth in space, but the block after them hardly asks for
it. So its input is searched for on a 2 x 2 grid first, then on grids of twice the size (PMI for
CLIP, docs/methods/clip.md).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxpmi.blocks import blockwise
from jaxpmi.blocks.blockwise import Block
from jaxpmi.config import PerLayerConfig
from jaxpmi.inversion import objectives
from jaxpmi.optimise.minimise import Solution
from jaxpmi.optimise.minimise import minimise
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

COARSEST = 2  # rows and columns of the first grid


def grid_schedule(height: int, width: int, num_steps: int) -> tuple[tuple[int, int, int], ...]:
    """When which grid is searched: `(first step, rows, columns)`, each for as many steps.

    Grids double from 2 x 2 up to height x width: for 14 x 14 and 1200 steps they are 2, 4, 8, 14
    at steps 0, 300, 600, 900.
    """
    sizes = [(min(COARSEST, height), min(COARSEST, width))]
    while sizes[-1] != (height, width):
        rows, columns = sizes[-1]
        sizes.append((min(2 * rows, height), min(2 * columns, width)))
    if num_steps < len(sizes):
        raise ValueError(
            f"{num_steps} steps are too few for {len(sizes)} grids up to {height} x {width}; give "
            f"{len(sizes)} or more."
        )
    return tuple((num_steps * i // len(sizes), *size) for i, size in enumerate(sizes))


def resize_grid(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes f32[B, h, w, C] to f32[B, height, width, C], bicubic."""
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "cubic", antialias=False)


@functools.partial(jax.jit, static_argnames=("block", "config", "iterate"))
def invert_coarse_to_fine(
    params,
    batch_stats,
    start: jax.Array,
    target: jax.Array,
    input_moments: Moments,
    key: PRNGKey,
    *,
    block: Block,
    config: PerLayerConfig,
    iterate: Literal["best", "last"] = "best",
) -> Solution:
    """Finds inputs f32[B, h, w, C] of one block whose outputs hit `target`, coarse to fine.

    Args:
      params: the block's parameters.
      batch_stats: its stored moments.
      start: f32[B, h, w, C]; its top left corner is the start on the coarsest grid.
      target: f32[B, ...], the wanted outputs.
      input_moments: stored moments of the block's input.
      key: key[], consumed.
      block: the block.
      config: learning rate and weight, as for every block; `coarse_to_fine_steps`, split evenly
        over the grids, on each of which Adam starts afresh.
      iterate: of a grid; goes on to the next.

    Returns:
      As `invert_block`; `losses` are those of all grids, one after the other.
    """
    height, width = start.shape[1:3]
    num_steps = config.coarse_to_fine_steps
    schedule = grid_schedule(height, width, num_steps)
    ends = [first for first, _, _ in schedule[1:]] + [num_steps]

    def terms(grid, key):
        del key
        x = resize_grid(grid, height, width)
        output, moments = block.apply(params, batch_stats, x, train=False)
        return {
            "feature_match": objectives.feature_match(output, target),
            "statistics": objectives.statistics_loss(moments, batch_stats),
            "input_statistics": objectives.moment_kl(
                blockwise.input_moments(block, x), input_moments
            ),
        }

    weight = config.statistics_weight
    weights = {"feature_match": 1.0, "statistics": weight, "input_statistics": weight}
    x, losses, finite = start[:, : schedule[0][1], : schedule[0][2]], [], jnp.asarray(True)
    for i, ((first, rows, columns), end) in enumerate(zip(schedule, ends, strict=True)):
        solution = minimise(
            terms,
            resize_grid(x, rows, columns),
            jax.random.fold_in(key, i),
            weights=weights,
            learning_rates=jnp.full(end - first, config.learning_rate),
            iterate=iterate,
        )
        x, finite = solution.x, finite & solution.finite
        losses.append(solution.losses)
    return solution._replace(losses=jnp.concatenate(losses), finite=finite)
