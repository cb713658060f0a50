"""Which channels of a network are one: what must be removed together when filters are removed.

Channels that a network adds to each other can only be removed together, from every convolution that
writes them and every layer that reads them. A *group* is a set of such channels: those between the
convolutions of one block, or those of the residual stream. Where a shortcut without parameters
appends channels, the stream goes on with the old ones, and the appended ones are a new group.
"""

from typing import NamedTuple
from typing import Protocol

import jax

from jaxpmi.models.blockwise import Block
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_name
from jaxpmi.types import Params

IMAGES = "images"  # the group of the network's input channels, of which none is removed


class ChannelAxes(NamedTuple):
    """Which channels the layers of a block read and write."""

    # Per entry of the block's params, which holds a convolution, a BatchNorm or one of each, the
    # channels along the last axes of its arrays, by name: "in" and "out" are the block's input and
    # output, other names its own. A convolution has two, first what it reads; what has only numbers
    # per channel (BatchNorm, depthwise convolution) has one.
    layers: dict[str, tuple[str, ...]]
    tied: bool  # input channel c is added to output channel c; outputs without an input are new


class PrunableBlock(Protocol):
    """What a block needs besides `Block` so that its filters can be removed."""

    def channel_axes(self, params: Params) -> ChannelAxes:
        """Names the channels of every layer."""

    def narrow(self, widths: dict[str, int]) -> Block:
        """The same block with other numbers of channels, given for every name."""


class Layer(NamedTuple):
    """The channels of one layer in terms of the whole network."""

    axes: tuple[tuple[str, ...], ...]  # per one of its last axes the groups along it, in order
    has_filters: bool  # is or holds a convolution


class BlockLayout(NamedTuple):
    """The channels of one block in terms of the whole network."""

    groups: dict[str, tuple[str, ...]]  # behind every name that the block has for channels
    layers: dict[str, Layer]


class Layout(NamedTuple):
    """All groups and where they are."""

    sizes: dict[str, int]  # channels, also of groups that cannot be removed from
    blocks: list[BlockLayout]


def channel_layout(model: BlockwiseModel, variables: Variables) -> Layout:
    """Follows the channels through a network; of `variables` only the shapes matter.

    Raises:
      ValueError: a block is not a `PrunableBlock`.
    """
    sizes, blocks, stream = {}, [], ()
    for i, block in enumerate(model.blocks):
        prefix = block_name(i)
        params = variables.params[prefix]
        axes, tied = _channel_axes(block, prefix, params)
        widths = _widths(axes, params)
        if not stream:
            stream, sizes[IMAGES] = (IMAGES,), widths["in"]
        new = {name: width for name, width in widths.items() if name != "in"}
        if tied:
            new["out"] -= widths["in"]
        groups = {name: (f"{prefix}/{name}",) if size else () for name, size in new.items()}
        groups["in"] = stream
        stream = groups["out"] = stream + groups["out"] if tied else groups["out"]
        sizes |= {f"{prefix}/{name}": size for name, size in new.items() if size}
        layers = {
            key: Layer(tuple(groups[name] for name in names), bool(split_layer(params[key])[0]))
            for key, names in axes.items()
        }
        blocks.append(BlockLayout(groups, layers))
    return Layout(sizes, blocks)


def split_layer(params: Params) -> tuple[list[jax.Array], list[dict[str, jax.Array]]]:
    """The convolution's arrays in an entry of a block's params, and its BatchNorms."""

    def is_batch_norm(node):
        return isinstance(node, dict) and set(node) == {"scale", "bias"}

    parts = jax.tree.leaves(params, is_leaf=is_batch_norm)
    batch_norms = [part for part in parts if is_batch_norm(part)]
    return [part for part in parts if not is_batch_norm(part)], batch_norms


def _channel_axes(block, name, params):
    if not (hasattr(block, "channel_axes") and hasattr(block, "narrow")):
        raise ValueError(
            f"{name} is a {type(block).__name__}, from which no filters can be removed; choose "
            "a convolutional network, or give the block the methods of "
            "jaxpmi.models.channels.PrunableBlock."
        )
    axes = block.channel_axes(params)
    if set(axes.layers) != set(params):
        raise ValueError(
            f"{type(block).__name__}.channel_axes names {sorted(axes.layers)}, but the "
            f"parameters of {name} are {sorted(params)}; name every one."
        )
    return axes


def _widths(axes, params):
    """Numbers of channels behind a block's names, read off its parameters."""
    widths = {}
    for key, names in axes.items():
        for leaf in jax.tree.leaves(params[key]):
            widths |= dict(zip(reversed(names), reversed(leaf.shape), strict=False))
    return widths
