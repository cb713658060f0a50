"""The one view of a network that inversion has: a chain of blocks ending in a feature vector.

A backbone is any hashable object with a tuple of `blocks`. A block maps its input to the next
block's input and *returns* the moments of the layer inputs whose stored moments the network keeps
(for BatchNorm: the running statistics), so nothing is ever hooked. Equal blocks share one compiled
program, because a block is a static argument and its parameters are data. Many equal blocks in a
row are a `Stack`, whose forward pass and whose inversion are one scan.
"""

import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

StatisticsAxis = Literal["channel", "token"]


class Block(Protocol):
    """One inversion unit (a stem, a residual block, ...); must be hashable and immutable.

    A block on tokens may have a field `statistics_axis` that says per what the moments of its
    input are kept; others keep them per channel. A block may name in `unmeasured` the entries of
    its `batch_stats`, then a dict, that no training keeps: `remember` measures them.
    """

    def init(self, key: PRNGKey, input_shape: tuple[int, ...]) -> tuple[Params, Any]:
        """Returns `(params, batch_stats)` for inputs of `input_shape` (without the batch axis).

        `batch_stats` is a pytree of `Moments`, one per layer whose input moments are kept.
        """

    def apply(
        self, params: Params, batch_stats: Any, x: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """Returns the output and the batch's own moments, in the structure of `batch_stats`.

        With `train` the layers normalise by the batch, otherwise by `batch_stats`. A network
        without BatchNorm ignores `train`: its `batch_stats` only store what inversion aims at.
        """


@dataclasses.dataclass(frozen=True)
class Stack:
    """`depth` equal blocks in a row, whose output has the shape of their input.

    Parameters and stored moments have a leading axis L, so one program serves all blocks.

    Attributes:
      block: that every one is equal to.
      depth: L, how many there are.
    """

    block: Block
    depth: int

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """See `Block`."""
        return getattr(self.block, "unmeasured", ())

    def init(self, key: PRNGKey, input_shape: tuple[int, ...]) -> tuple[Params, Any]:
        """See `Block.init`; every leaf is stacked, [L, ...]."""
        keys = [jax.random.fold_in(key, i) for i in range(self.depth)]
        return stack_layers([self.block.init(key, input_shape) for key in keys])

    def apply(
        self, params: Params, batch_stats: Any, x: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """See `Block.apply`; the moments are stacked."""
        x, moments, _ = self.trace(params, batch_stats, x, train=train)
        return x, moments

    def trace(
        self,
        params: Params,
        batch_stats: Any,
        x: jax.Array,
        *,
        train: bool,
        weights: jax.Array | None = None,
        key: PRNGKey | None = None,
    ) -> tuple[jax.Array, Any, Moments]:
        """As `apply`; also returns the moments of every block's input, stacked.

        `weights` are those of `channel_moments`; a key is for blocks with random layers, each of
        which gets one of its own as `apply(..., key=...)`.
        """
        random = {} if key is None else {"key": jax.random.split(key, self.depth)}

        def step(x, layer):
            params, batch_stats, random = layer
            seen = input_moments(self.block, x, weights)
            x, moments = self.block.apply(params, batch_stats, x, train=train, **random)
            return x, (moments, seen)

        x, (moments, seen) = jax.lax.scan(step, x, (params, batch_stats, random))
        return x, moments, seen


class BlockwiseModel(Protocol):
    """A backbone: `blocks` from the stem to the one whose output is the feature f32[B, D].

    That of a network for segmentation is a feature per pixel, f32[B, H, W, D].
    """

    blocks: tuple[Block, ...]


class Variables(NamedTuple):
    """What a backbone has learned: two dicts keyed by `block_name(i)`.

    Attributes:
      params: trainable, by block.
      batch_stats: of every layer whose input moments are kept, its `Moments`, by block.
    """

    params: dict[str, Params]
    batch_stats: dict[str, Any]


class Forward(NamedTuple):
    """Everything one pass through a backbone shows.

    Attributes:
      features: f32[B, D], or f32[B, H, W, D] of a network for segmentation.
      moments: of the batch, in the structure of `Variables.batch_stats`.
      block_inputs: moments of every block's input; of a stack, [L, ...].
    """

    features: jax.Array
    moments: dict[str, Any]
    block_inputs: tuple[Moments, ...]


def block_name(index: int) -> str:
    """The key of block `index` in `Variables`."""
    return f"block{index:02d}"


def block_kind(block: Block) -> str:
    """What a block is called: the class of it, or of the Flax module that it is made of."""
    return getattr(block, "kind", type(block).__name__)


def named_tensors(model: BlockwiseModel, params: dict[str, Params]) -> dict[str, jax.Array]:
    """Every weight tensor of a backbone by name, such as "block03/conv1"; stacks layer by layer.

    `params` is a tree like `Variables.params`, of weights or of their gradients.
    """
    tensors = {}
    for i, block in enumerate(model.blocks):
        layers = [(block_name(i), params[block_name(i)])]
        if isinstance(block, Stack):
            layers = [
                (
                    f"{block_name(i)}/{layer:03d}",
                    jax.tree.map(lambda x, n=layer: x[n], layers[0][1]),
                )
                for layer in range(block.depth)
            ]
        for prefix, layer in layers:
            for path, tensor in jax.tree_util.tree_leaves_with_path(layer):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                tensors[f"{prefix}/{name}"] = tensor
    return tensors


def stack_layers(layers: list[Any]) -> Any:
    """Stacks pytrees of one structure, so that every leaf gets a leading axis L."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def channel_moments(x: jax.Array, weights: jax.Array | None = None) -> Moments:
    """Mean and population variance of f32[B, ..., C] over all axes but the last.

    `weights` f32[B] say how much each row of the batch counts (0: padding); None: all the same.
    The sums are products with a row of ones: XLA:CPU reduces leading axes slowly, and this
    halves the cost of a train step of a small network. Moments of bfloat16 are float32.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
    if weights is None:
        share = jnp.full((1, rows.shape[0]), 1.0 / rows.shape[0], rows.dtype)
    else:
        positions = rows.shape[0] // x.shape[0]
        share = jnp.repeat(weights / (weights.sum() * positions), positions)[None]
    average = functools.partial(jnp.dot, share, precision=jax.lax.Precision.HIGHEST)
    mean = average(rows)
    return Moments(mean[0], average(jnp.square(rows - mean))[0])


def normalise_channels(
    x: jax.Array,
    moments: Moments,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float,
) -> jax.Array:
    """BatchNorm of f32[..., C] by moments f32[C]: one affine map per channel.

    With `x` in bfloat16 the output is too if scale and bias are, but nothing is computed in it.
    """
    factor = jax.lax.rsqrt(moments.var + epsilon)
    factor = factor if scale is None else scale * factor
    shape = (1,) * (x.ndim - 1) + (-1,)
    y = (x - moments.mean.reshape(shape)) * factor.reshape(shape)
    if bias is not None:
        y = y + bias.reshape(shape)
    return y.astype(jnp.result_type(x, *(p for p in (scale, bias) if p is not None)))


def token_moments(x: jax.Array, weights: jax.Array | None = None) -> Moments:
    """Moments f32[N, 1] of f32[B, N, D] per token position (the published CLIP statistics)."""
    moments = channel_moments(x.swapaxes(1, 2), weights)
    return Moments(moments.mean[:, None], moments.var[:, None])


def axis_moments(x: jax.Array, axis: StatisticsAxis, weights: jax.Array | None = None) -> Moments:
    """`token_moments` if asked for and if `x` has tokens, f32[B, N, D]; else `channel_moments`."""
    of_tokens = axis == "token" and x.ndim == 3
    return (token_moments if of_tokens else channel_moments)(x, weights)


def input_moments(block: Block, x: jax.Array, weights: jax.Array | None = None) -> Moments:
    """Moments of a block's input f32[B, ...] as they are kept; they broadcast against one input."""
    return axis_moments(x, getattr(block, "statistics_axis", "channel"), weights)


def init_variables(
    model: BlockwiseModel, key: PRNGKey, image_shape: tuple[int, int, int]
) -> Variables:
    """Initialises every block for images of `image_shape` (H, W, C)."""
    shape, params, batch_stats = tuple(image_shape), {}, {}
    for i, block in enumerate(model.blocks):
        name = block_name(i)
        params[name], batch_stats[name] = block.init(jax.random.fold_in(key, i), shape)
        shape = output_shape(block, params[name], batch_stats[name], shape)
    if len(shape) != 1 and shape[:-1] != tuple(image_shape)[:2]:
        raise ValueError(
            f"the last block of {type(model).__name__} returns {shape} per image, but a feature "
            "vector (D,) is expected, or one per pixel (H, W, D); pool inside the last block."
        )
    return Variables(params, batch_stats)


def block_input_shapes(
    model: BlockwiseModel, variables: Variables, image_shape: tuple[int, int, int]
) -> tuple[tuple[int, ...], ...]:
    """Per-image shapes of every block's input, and last the feature shape (D,) or (H, W, D)."""
    shapes = [tuple(image_shape)]
    for i, block in enumerate(model.blocks):
        name = block_name(i)
        params, batch_stats = variables.params[name], variables.batch_stats[name]
        shapes.append(output_shape(block, params, batch_stats, shapes[-1]))
    return tuple(shapes)


def forward(
    model: BlockwiseModel,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool | tuple[bool, ...] = False,
    weights: jax.Array | None = None,
    key: PRNGKey | None = None,
    first_block: int = 0,
) -> Forward:
    """Runs all blocks on normalised images f32[B, H, W, C].

    `train` may be given per block, so that frozen blocks stay in evaluation mode. `weights`
    f32[B] are those of `channel_moments`, for `block_inputs`. With a `key`, stacks with random
    layers draw from it (training). `images` are the inputs of block `first_block`, and blocks
    before it are left out: of `moments` by not being there, of `block_inputs` as ().
    """
    modes = (train,) * len(model.blocks) if isinstance(train, bool) else train
    x, moments, block_inputs = images, {}, []
    for i, (block, mode) in enumerate(zip(model.blocks, modes, strict=True)):
        if i < first_block:
            block_inputs.append(())
            continue
        name = block_name(i)
        own = variables.params[name], variables.batch_stats[name]
        if isinstance(block, Stack):
            x, moments[name], seen = block.trace(*own, x, train=mode, weights=weights, key=key)
        else:
            seen = input_moments(block, x, weights)
            x, moments[name] = block.apply(*own, x, train=mode)
        block_inputs.append(seen)
    return Forward(x, moments, tuple(block_inputs))


def block_input(
    model: BlockwiseModel, variables: Variables, x: jax.Array, block: int, *, first_block: int = 0
) -> jax.Array:
    """Runs inputs `x` of `first_block` up to `block`, in evaluation mode: the inputs of that."""
    for i in range(first_block, block):
        name = block_name(i)
        own = variables.params[name], variables.batch_stats[name]
        x, _ = model.blocks[i].apply(*own, x, train=False)
    return x


def update_batch_stats(batch_stats: Any, moments: Any, momentum: float = 0.1) -> Any:
    """Moves running moments towards the batch's by `momentum` (PyTorch's convention)."""
    return jax.tree.map(lambda old, new: old + momentum * (new - old), batch_stats, moments)


def output_shape(
    block: Block, params: Params, batch_stats: Any, input_shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Per-image shape of a block's output for inputs of `input_shape`; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    apply = functools.partial(block.apply, train=False)
    out, _ = jax.eval_shape(apply, params, batch_stats, x)
    return out.shape[1:]
