"""The one view of a network that inversion has: a chain of blocks ending in a feature vector.

A backbone is any hashable object with a tuple of `blocks`. A block maps its input to the next
block's input and *returns* the moments of the layer inputs whose stored moments the network keeps
(for BatchNorm: the running statistics), so nothing is ever hooked. Equal blocks share one compiled
program, because a block is a static argument and its parameters are data.
"""

import functools
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey


class Block(Protocol):
    """One inversion unit (a stem, a residual block, ...); must be hashable and immutable."""

    def init(self, key: PRNGKey, input_shape: tuple[int, ...]) -> tuple[Params, Any]:
        """Returns `(params, batch_stats)` for inputs of `input_shape` (without the batch axis).

        `batch_stats` is a pytree of `Moments`, one per layer whose input moments are kept.
        """

    def apply(
        self, params: Params, batch_stats: Any, x: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """Returns the output and the batch's own moments, in the structure of `batch_stats`.

        With `train` the layers normalise by the batch, otherwise by `batch_stats`.
        """


class BlockwiseModel(Protocol):
    """A backbone: `blocks` from the stem to the one whose output is the feature f32[B, D]."""

    blocks: tuple[Block, ...]


class Variables(NamedTuple):
    """What a backbone has learned: two dicts keyed by `block_name(i)`."""

    params: dict[str, Params]
    batch_stats: dict[str, Any]


class Forward(NamedTuple):
    """Everything one pass through a backbone shows."""

    features: jax.Array  # f32[B, D]
    moments: dict[str, Any]  # batch moments, in the structure of `Variables.batch_stats`
    block_inputs: tuple[Moments, ...]  # per-channel moments of every block's input


def block_name(index: int) -> str:
    """The key of block `index` in `Variables`."""
    return f"block{index:02d}"


def channel_moments(x: jax.Array) -> Moments:
    """Mean and population variance of f32[..., C] over all axes but the last.

    The sums are products with a row of ones: XLA:CPU reduces leading axes slowly, and this
    halves the cost of a train step of a small network.
    """
    rows = x.reshape(-1, x.shape[-1])
    ones = jnp.full((1, rows.shape[0]), 1.0 / rows.shape[0], x.dtype)
    average = functools.partial(jnp.dot, ones, precision=jax.lax.Precision.HIGHEST)
    mean = average(rows)
    return Moments(mean[0], average(jnp.square(rows - mean))[0])


def init_variables(
    model: BlockwiseModel, key: PRNGKey, image_shape: tuple[int, int, int]
) -> Variables:
    """Initialises every block for images of `image_shape` (H, W, C)."""
    shape, params, batch_stats = tuple(image_shape), {}, {}
    for i, block in enumerate(model.blocks):
        name = block_name(i)
        params[name], batch_stats[name] = block.init(jax.random.fold_in(key, i), shape)
        shape = _output_shape(block, params[name], batch_stats[name], shape)
    if len(shape) != 1:
        raise ValueError(
            f"the last block of {type(model).__name__} returns {shape} per image, but a feature "
            "vector (D,) is expected; pool inside the last block."
        )
    return Variables(params, batch_stats)


def block_input_shapes(
    model: BlockwiseModel, variables: Variables, image_shape: tuple[int, int, int]
) -> tuple[tuple[int, ...], ...]:
    """Per-image shapes of every block's input, and last the feature shape (D,)."""
    shapes = [tuple(image_shape)]
    for i, block in enumerate(model.blocks):
        name = block_name(i)
        params, batch_stats = variables.params[name], variables.batch_stats[name]
        shapes.append(_output_shape(block, params, batch_stats, shapes[-1]))
    return tuple(shapes)


def forward(
    model: BlockwiseModel,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool | tuple[bool, ...] = False,
) -> Forward:
    """Runs all blocks on normalised images f32[B, H, W, C].

    `train` may be given per block, so that frozen blocks stay in evaluation mode.
    """
    modes = (train,) * len(model.blocks) if isinstance(train, bool) else train
    x, moments, block_inputs = images, {}, []
    for i, (block, mode) in enumerate(zip(model.blocks, modes, strict=True)):
        name = block_name(i)
        block_inputs.append(channel_moments(x))
        x, moments[name] = block.apply(
            variables.params[name], variables.batch_stats[name], x, train=mode
        )
    return Forward(x, moments, tuple(block_inputs))


def update_batch_stats(batch_stats: Any, moments: Any, momentum: float = 0.1) -> Any:
    """Moves running moments towards the batch's by `momentum` (PyTorch's convention)."""
    return jax.tree.map(lambda old, new: old + momentum * (new - old), batch_stats, moments)


def _output_shape(block, params, batch_stats, input_shape):
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    out, _ = jax.eval_shape(lambda x: block.apply(params, batch_stats, x, train=False), x)
    return out.shape[1:]
