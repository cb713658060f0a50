"""Where the leaves of a network are among stored tensors, by the names of its layers.

PyTorch keeps a layer's arrays as `weight` and `bias`, and of a BatchNorm also `running_mean` and
`running_var`, whoever the author. So a table of layers is enough: what a layer is called there.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.network import Head
from jaxpmi.types import Moments
from jaxpmi.weights.weight_names import SAME
from jaxpmi.weights.weight_names import TRANSPOSED
from jaxpmi.weights.weight_names import Layout
from jaxpmi.weights.weight_names import Source

# What a layer, or a single array, of a block is called in a file. In a stack of blocks "{}" is the
# block's number; several names are joined, as queries, keys and values are.
Layers = Mapping[str, str | tuple[str, ...]]

_SUFFIXES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def network_sources(
    model: BlockwiseModel,
    variables: Variables,
    blocks: Sequence[Layers],
    head: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[Variables, Head]:
    """A `Source` in place of every array of a network.

    Args:
      model: its blocks.
      variables: theirs; only shapes matter.
      blocks: the names of their layers.
      head: that of the classifier.
      shapes: of the stored tensors, by which linear maps are told from convolutions.
    """
    params, batch_stats = {}, {}
    for i, (block, layers) in enumerate(zip(model.blocks, blocks, strict=True)):
        key, stacked = block_name(i), isinstance(block, Stack)
        params[key] = {
            path: array_source(path, leaf.shape[1:] if stacked else leaf.shape, layers, shapes)
            for path, leaf in variables.params[key].items()
        }
        batch_stats[key] = {
            path: _moments(path, leaf, layers) for path, leaf in variables.batch_stats[key].items()
        }
    weight = Source((f"{head}.weight",), _kernel_layout((0, 0), shapes.get(f"{head}.weight", ())))
    return Variables(params, batch_stats), Head(weight, Source((f"{head}.bias",)))


def array_source(
    path: str, shape: tuple[int, ...], layers: Layers, shapes: Mapping[str, Any]
) -> Source:
    """Of one parameter: named itself, or by its layer.

    Args:
      path: of the parameter, such as "conv1/kernel".
      shape: its own, in one block of a stack.
      layers: the names of layers and of single arrays.
      shapes: of the stored tensors.
    """
    layer, _, kind = path.rpartition("/")
    names = layers[path] if path in layers else layers[layer]
    names = (names,) if isinstance(names, str) else names
    if path not in layers:
        ends = _SUFFIXES.get(kind, kind)
        names = tuple(f"{name}.{ends}" if name else ends for name in names)
    found = shapes.get(names[0].format(0), ())
    if kind == "kernel":
        return Source(names, _kernel_layout(shape, found))
    return Source(names, _padded(len(found) - len(shape)) if len(names) == 1 else SAME)


def _moments(path: str, leaf: Moments, layers: Layers) -> Moments | None:
    """Of a BatchNorm; None: a file has none of that layer, whose input alone is looked at."""
    name = layers.get(path)
    if not isinstance(name, str) or len(leaf.mean.shape) != 1 or "{}" in name:
        return None
    return Moments(*(moment_source(name, kind) for kind in Moments._fields))


def moment_source(name: str, kind: str) -> Source:
    """Of a BatchNorm's running "mean" or "var"."""
    return Source((f"{name}.running_{kind}" if name else f"running_{kind}",))


def _kernel_layout(shape, found):
    """Of a convolution f32[h, w, in, out] or a linear map f32[rows, out], by the stored rank."""
    if len(shape) == 4:
        return _CONV_OF_LINEAR if len(found) == 2 else _CONV
    return _linear_of_conv(found) if len(found) == 4 else TRANSPOSED


def _padded(count):
    """With so many axes of length 1 before the leaf's own, as tokens and positions have."""
    count = max(count, 0)
    return Layout(lambda tensor: tensor[(0,) * count], lambda shape: (*(1,) * count, *shape))


def _linear_of_conv(found):
    """A linear map that is stored as a convolution: of every pixel, or of whole patches."""
    height, width = found[2:]
    return Layout(
        lambda tensor: tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor)),
        lambda shape: (shape[1], shape[0] // (height * width), height, width),
    )


# PyTorch keeps convolutions as f32[out, in, h, w]; depthwise ones have in = 1.
_CONV = Layout(
    lambda tensor: tensor.transpose(2, 3, 1, 0),
    lambda shape: (shape[3], shape[2], *shape[:2]),
)


def _from_flat(tensor, shape):
    out, channels, height, width = shape[3], shape[2], *shape[:2]
    return tensor.reshape(out, channels, height, width).transpose(2, 3, 1, 0)


# A convolution as large as its image that is stored as a linear map of channels, rows, columns.
_CONV_OF_LINEAR = Layout(_from_flat, lambda shape: (shape[3], math.prod(shape[:3])), sized=True)
