"""A linear inverse of every block in closed form: the start of per-layer inversion.

A residual block is close to the identity, so most of its input is a linear function of a 3 x 3
neighbourhood of its output. `fit_block_inverses` finds that function by ridge regression on images
(two matrix products per block, no gradient steps); `invert_linearly` applies it. What the output
does not tell is drawn from a Gaussian: at a pooled block, where most is lost, with the leading
directions of the regression's residual covariance; elsewhere with its variances
(docs/methods/pmi.md, eqs. 5, 6).
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.blocks import convolutions
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.memory import BlockInverse
from jaxpmi.network import Network
from jaxpmi.types import PRNGKey


class _NormalEquations(NamedTuple):
    count: jax.Array  # f32[], number of rows
    gram: jax.Array  # f32[P, P], of the regressors
    cross: jax.Array  # f32[P, Q], regressors by targets
    square: jax.Array  # f32[Q], of the targets
    sketch: jax.Array  # f32[Q, R], second moments of the targets times a random matrix


def init_block_inverses(
    network: Network,
    *,
    rank: int = 0,
    first_block: int = 0,
) -> tuple[BlockInverse, ...]:
    """Inverses of zeros, for checkpoints and counting.

    Args:
      network: of which only the shapes matter.
      rank: as in `fit_block_inverses`.
      first_block: as there.

    Returns:
      One `BlockInverse` per block, () for those before `first_block`.
    """
    model, num_classes, inverses = network.model, network.num_classes, [()] * first_block
    shapes = block_input_shapes(model, network.variables, network.image_shape)
    for i in range(first_block, len(model.blocks)):
        block, inputs, outputs, kept = model.blocks[i], shapes[i], shapes[i + 1], 0
        if len(outputs) == 3:
            scale = -(-inputs[0] // outputs[0])
            rows, columns = 9 * outputs[-1] + 1, scale * scale * inputs[-1]
        elif len(outputs) == 2:
            rows, columns = sum(outputs), inputs[-1]
        else:
            rows, columns, kept = outputs[-1] + num_classes, math.prod(inputs), rank
        depth = (block.depth,) if isinstance(block, Stack) else ()
        weight, factor = jnp.zeros((*depth, rows, columns)), jnp.zeros((*depth, kept, columns))
        inverses.append(BlockInverse(weight, factor, jnp.zeros((*depth, columns))))
    return tuple(inverses)


def fit_block_inverses(
    network: Network,
    batches: Iterable[tuple[jax.Array, jax.Array, jax.Array]],
    *,
    rank: int = 0,
    ridge: float = 1e-4,
    first_block: int = 0,
) -> tuple[BlockInverse, ...]:
    """Fits the linear inverse of every block by ridge regression.

    Args:
      network: run in evaluation mode.
      batches: normalised images f32[B, H, W, C] (or inputs of `first_block`), labels i32[B],
        weights f32[B] (0 for padding).
      rank: directions of the residual covariance kept at a pooled block, by a Nystrom sketch.
      ridge: added to the diagonal of the regressors' second moments, relative to their mean.
      first_block: the first to be inverted.

    Returns:
      One `BlockInverse` per block, () for those before `first_block`.
    """
    total = None
    for images, labels, weights in batches:
        part = _normal_equations(
            network.variables, images, labels, weights, model=network.model,
            num_classes=network.num_classes, rank=rank, first_block=first_block,
        )  # fmt: skip
        total = part if total is None else _add(total, part)
    if total is None:
        raise ValueError("fit_block_inverses got no batch of images; give at least one.")
    inverses = (
        _solve_stack(equations, ridge) if isinstance(block, Stack) else _solve(equations, ridge)
        for block, equations in zip(network.model.blocks[first_block:], total, strict=True)
    )
    return ((),) * first_block + tuple(inverses)


@jax.jit
def share_class_offsets(
    inverses: tuple[BlockInverse, ...], shares: jax.Array
) -> tuple[BlockInverse, ...]:
    """Gives classes that the fit has not seen the offsets of others.

    Args:
      inverses: of all blocks; only the last one, whose output is a feature vector, has offsets
        per class.
      shares: f32[C, C]; the new offset of class c is the sum of shares[c, k] times that of k.

    Returns:
      The inverses with these offsets; () stays ().
    """
    if not inverses:
        return inverses
    *others, last = inverses
    weight, first = last.weight, last.weight.shape[0] - shares.shape[0]
    offsets = jnp.dot(shares, weight[first:], precision=jax.lax.Precision.HIGHEST)
    return (*others, last._replace(weight=jnp.concatenate([weight[:first], offsets])))


@functools.partial(jax.jit, static_argnames=("input_shape", "residual_scale", "noise_scale"))
def invert_linearly(
    inverse: BlockInverse,
    output: jax.Array,
    labels: jax.Array,
    key: PRNGKey,
    *,
    input_shape: tuple[int, ...],
    residual_scale: float = 1.0,
    noise_scale: float = 1.0,
) -> jax.Array:
    """Draws a block's input given its output, by the linear inverse.

    Args:
      inverse: of the block.
      output: f32[B, h, w, C'], f32[B, N, D] or f32[B, D].
      labels: i32[B]; they matter where the output is a feature vector.
      key: key[], consumed.
      input_shape: of one input, (H, W, C) or (N, D).
      residual_scale: of the draw along the residual's leading directions; 1 has their full
        variance, less keeps to typical inputs; 0: no draw.
      noise_scale: of the white noise with the variance that is left; 0: none.

    Returns:
      f32[B, *input_shape].
    """
    key_factor, key_rest = jax.random.split(key)
    if output.ndim == 4:
        rows = _map_patches(output, inverse.weight)
    else:
        offsets = inverse.weight.shape[0] - output.shape[-1]
        one_hot = jax.nn.one_hot(labels, offsets)
        rows = _regressors(output, one_hot) @ inverse.weight
        if output.ndim == 3:
            rows = rows[:, -math.prod(input_shape[:-1]) :]
    # A scale of 0 draws nothing: a draw is most of this program, and of its compilation.
    if noise_scale:
        std = noise_scale * inverse.residual_std.reshape((1,) * (rows.ndim - 1) + (-1,))
        rows = rows + std * jax.random.normal(key_rest, rows.shape, rows.dtype)
    if output.ndim == 4:
        return _depth_to_space(rows, input_shape)
    rank = inverse.residual_factor.shape[0]
    if residual_scale and rank and output.ndim == 2:
        noise = jax.random.normal(key_factor, (rows.shape[0], rank), rows.dtype)
        rows = rows + residual_scale * noise @ inverse.residual_factor
    return rows.reshape(-1, *input_shape)


@functools.partial(jax.jit, static_argnames=("model", "num_classes", "rank", "first_block"))
def _normal_equations(variables, x, labels, weights, *, model, num_classes, rank, first_block):
    equations, one_hot = [], jax.nn.one_hot(labels, num_classes)
    for i, block in enumerate(model.blocks[first_block:], first_block):
        own = variables.params[block_name(i)], variables.batch_stats[block_name(i)]
        step = functools.partial(_equations_of, one_hot=one_hot, weights=weights, rank=rank)
        if isinstance(block, Stack):
            x, part = jax.lax.scan(functools.partial(step, block.block), x, own)
        else:
            x, part = step(block, x, own)
        equations.append(part)
    return tuple(equations)


def _equations_of(block, x, own, *, one_hot, weights, rank):
    """One block's output on `x`, and the normal equations of its inverse."""
    y, _ = block.apply(*own, x, train=False)
    scale = jnp.sqrt(weights).reshape((-1,) + (1,) * (y.ndim - 1))
    regressors, targets = _regressors(y, one_hot), _targets(x, y)
    regressors = regressors[:, -targets.shape[1] :] if y.ndim == 3 else regressors
    a = (regressors * scale).reshape(-1, regressors.shape[-1])
    b = (targets * scale).reshape(-1, targets.shape[-1])
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    probe = _probe(b.shape[1], rank if y.ndim == 2 else 0)
    sketch = dot(b.T, dot(b, probe))
    count = weights.sum() * (len(a) // len(weights))
    return y, _NormalEquations(count, dot(a.T, a), dot(a.T, b), jnp.square(b).sum(0), sketch)


@jax.jit
def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


@jax.jit
def _solve(equations, ridge):
    count, gram, cross, square, sketch = equations
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    size = gram.shape[0]
    damped = gram + ridge * jnp.trace(gram) / size * jnp.eye(size)
    weight = jax.scipy.linalg.solve(damped, cross, assume_a="pos")
    explained = 2.0 * (weight * cross).sum(0) - (weight * dot(gram, weight)).sum(0)
    variance = jnp.maximum(square - explained, 0.0) / count
    factor = jnp.zeros((0, weight.shape[1]))
    rank = sketch.shape[1]
    if rank:
        # The residual covariance times the probe, from the sketch of the targets alone.
        probe = _probe(*sketch.shape)
        fitted = dot(weight.T, dot(cross, probe) - dot(gram, dot(weight, probe)))
        sketch = (sketch - dot(cross.T, dot(weight, probe)) - fitted) / count
        core = dot(probe.T, sketch)
        core = 0.5 * (core + core.T) + 1e-4 * jnp.trace(core) / rank * jnp.eye(rank)
        lower = jnp.linalg.cholesky(core)
        factor = jax.scipy.linalg.solve_triangular(lower, sketch.T, lower=True)
        # What a fit leaves may be rounding errors alone, which have no root: nothing to keep.
        factor = jnp.where(jnp.isfinite(factor).all(), factor, 0.0)
        variance = jnp.maximum(variance - jnp.square(factor).sum(0), 0.0)
    return BlockInverse(weight, factor, jnp.sqrt(variance))


_solve_stack = jax.jit(jax.vmap(_solve, in_axes=(0, None)))


def _probe(size, rank):
    """The fixed random matrix f32[size, rank] of the Nystrom sketch."""
    return jax.random.normal(jax.random.key(0), (size, rank))


def _regressors(output, one_hot):
    """What the input is read from, a last axis of P; see `BlockInverse`."""
    if output.ndim == 2:
        return jnp.concatenate([output, one_hot], -1)
    if output.ndim == 3:
        tokens = output.shape[1]
        positions = jnp.broadcast_to(jnp.eye(tokens), (len(output), tokens, tokens))
        return jnp.concatenate([output, positions], -1)
    if output.ndim != 4:
        raise ValueError(
            "a linear block inverse needs a block output of shape (B, h, w, C), (B, N, D) or "
            f"(B, D), got {output.shape}; use per_layer.start='gaussian' for this network."
        )
    height, width = output.shape[1:3]
    padded = jnp.pad(output, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate([*shifts, jnp.ones((*output.shape[:-1], 1), output.dtype)], -1)


def _map_patches(output, weight):
    """`_regressors(output) @ weight` of a feature map, as the convolution that it is."""
    kernel = weight[:-1].reshape(3, 3, output.shape[-1], -1)
    return convolutions.conv(output, kernel) + weight[-1].reshape(1, 1, 1, -1)


def _targets(x, output):
    """The input, with the rows that the output's regressors have and a last axis of Q."""
    if output.ndim == 4:
        return _space_to_depth(x, output.shape)
    return x.reshape(len(x), -1, x.shape[-1]) if output.ndim == 3 else x.reshape(len(x), -1)


def _space_to_depth(x, output_shape):
    """f32[B, H, W, C] -> f32[B, h, w, s s C], edge pixels repeated where s does not divide H."""
    batch, height, width, channels = x.shape
    h, w = output_shape[1:3]
    s = -(-height // h)
    x = jnp.pad(x, ((0, 0), (0, s * h - height), (0, s * w - width), (0, 0)), mode="edge")
    x = x.reshape(batch, h, s, w, s, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, h, w, s * s * channels)


def _depth_to_space(rows, input_shape):
    """Inverse of `_space_to_depth`."""
    batch, h, w, _ = rows.shape
    height, width, channels = input_shape
    s = -(-height // h)
    x = rows.reshape(batch, h, w, s, s, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, h * s, w * s, channels)[:, :height, :width]
