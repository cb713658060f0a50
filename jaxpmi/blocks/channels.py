"""Which channels of a network are one: what must be removed together when filters are removed.

Channels that a network adds to each other can only be removed together, from every convolution that
writes them and every layer that reads them. A *group* is a set of such channels: those between the
convolutions of one block, or those of the residual stream. Where a shortcut without parameters
appends channels, the stream goes on with the old ones, and the appended ones are a new group.
"""

from collections.abc import Collection
from typing import NamedTuple
from typing import Protocol

import jax

from jaxpmi.blocks.blockwise import Block
from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_kind
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.types import Params

IMAGES = "images"  # the group of the network's input channels, of which none is removed


class ChannelAxes(NamedTuple):
    """Which channels the layers of a block read and write."""

    # Per layer, by its path in the block's params such as "conv1" or "body/bn", the channels along
    # the last axes of its arrays, by name: "in" and "out" are the block's input and output, other
    # names its own. A convolution has two, first what it reads; what has only numbers per channel
    # (BatchNorm, depthwise convolution) has one.
    layers: dict[str, tuple[str, ...]]
    tied: bool  # input channel c is added to output channel c; outputs without an input are new


class PrunableModule(Protocol):
    """What an NNX module needs so that its filters can be removed once it is a block."""

    def channel_axes(self) -> ChannelAxes:
        """Names the channels of every convolution, linear map and BatchNorm."""


class PrunableBlock(Protocol):
    """What a block needs besides `Block` so that its filters can be removed."""

    def channel_axes(self, params: Params) -> ChannelAxes:
        """Names the channels of every layer."""

    def narrow(self, widths: dict[str, int]) -> Block:
        """The same block with other numbers of channels, given for every name."""


class Layer(NamedTuple):
    """The channels of one layer in terms of the whole network."""

    axes: tuple[tuple[str, ...], ...]  # per one of its last axes the groups along it, in order
    has_filters: bool  # is a convolution


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
            key: Layer(tuple(groups[name] for name in names), bool(split_layer(params, key)[0]))
            for key, names in axes.items()
        }
        blocks.append(BlockLayout(groups, layers))
    return Layout(sizes, blocks)


def layer_of(path: jax.tree_util.KeyPath, layers: Collection[str]) -> str | None:
    """The layer, of those with these paths, that an array of a block belongs to."""
    parts = _parts(path)
    beginnings = ("/".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((name for name in beginnings if name in layers), None)


def split_layer(params: Params, layer: str) -> tuple[list[jax.Array], list[jax.Array]]:
    """A layer's arrays in a block's params: those of a convolution, and those of BatchNorms."""
    arrays = {
        tuple(_parts(path)): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if layer_of(path, {layer})
    }
    norms = {path[:-1] for path in arrays if path[-1] == "scale"}
    is_norm = {path: path[:-1] in norms for path in arrays}
    return (
        [leaf for path, leaf in arrays.items() if not is_norm[path]],
        [leaf for path, leaf in arrays.items() if is_norm[path]],
    )


def _parts(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _channel_axes(block, name, params):
    axes = block.channel_axes(params) if hasattr(block, "channel_axes") else None
    if axes is None or not hasattr(block, "narrow"):
        raise ValueError(
            f"{name} is a {block_kind(block)}, from which no filters can be removed; choose a "
            "convolutional network, or give the module channel_axes(), or a block of your own the "
            "methods of jaxpmi.blocks.channels.PrunableBlock."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {layer_of(path, axes.layers) for path, _ in leaves}
    if found != set(axes.layers):
        paths = sorted("/".join(_parts(path)) for path, _ in leaves)
        raise ValueError(
            f"{block_kind(block)}.channel_axes names {sorted(axes.layers)}, but the parameters of "
            f"{name} are {paths}; name every layer."
        )
    return axes


def _widths(axes, params):
    """Numbers of channels behind a block's names, read off its parameters."""
    widths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = axes[layer_of(path, axes)]
        widths |= dict(zip(reversed(names), reversed(leaf.shape), strict=False))
    return widths
