"""An NNX module as the chain of blocks that inversion sees."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import stack_layers
from jaxpmi.flax_networks.containers import iter_modules
from jaxpmi.flax_networks.nnx_block import NnxBlock
from jaxpmi.flax_networks.nnx_block import name
from jaxpmi.flax_networks.nnx_parts import Blocks
from jaxpmi.flax_networks.nnx_parts import check_train_argument
from jaxpmi.flax_networks.nnx_parts import join_functions
from jaxpmi.flax_networks.nnx_parts import make_block
from jaxpmi.flax_networks.nnx_parts import with_shapes
from jaxpmi.flax_networks.paths import Path
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.types import Moments
from jaxpmi.types import Params

KEPT = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm)


@dataclasses.dataclass(frozen=True)
class NnxModel:
    """The blocks of a module, and where they are in it.

    Attributes:
      blocks: in order.
      places: of every block the path of its module, or the paths of a stack's modules.
      head: the path of the classifier in the module; None: it has none of its own.
    """

    blocks: tuple[NnxBlock | Stack, ...]
    places: tuple[tuple[Path, ...], ...]
    head: Path | None = None


def as_model(
    module: nnx.Module,
    *,
    blocks: Blocks | None = None,
    head: nnx.Linear | None = None,
    train_argument: TrainArgument = None,
    image_shape: tuple[int, int, int],
    statistics_of: tuple[type, ...] = KEPT,
    statistics_axis: StatisticsAxis = "channel",
) -> tuple[NnxModel, Variables, int]:
    """Takes a module apart; the arguments are those of `from_nnx`.

    Returns:
      The blocks, their variables, and the size of the feature that the last one gives.

    Raises:
      ValueError: see `from_nnx`.
    """
    places = _places(module)
    head_place = None if head is None else _place_of(head, places, "head")
    parts = join_functions([module] if blocks is None else list(blocks))
    for part in parts:
        for each in part.modules:
            _place_of(each, places, f"blocks[{part.index}]")
    check_train_argument(train_argument, parts)
    options = {
        "head": head_place if blocks is None else None,
        "statistics_of": tuple(statistics_of),
        "statistics_axis": statistics_axis,
        "train_argument": train_argument,
    }
    made, params, batch_stats, x = [], {}, {}, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    for i, part in enumerate(parts):
        what = "the module" if blocks is None else f"blocks[{part.index}]"
        own = [make_block(each, part, **options) for each in part.modules]
        x, own = with_shapes(own, x, what)
        block, params[block_name(i)], batch_stats[block_name(i)] = _joined(own, part)
        made.append(block)
    _check_complete(module, parts, head if blocks is not None else None)
    own_places = tuple(tuple(places[id(each)] for each in part.modules) for part in parts)
    model = NnxModel(tuple(made), own_places, head_place)
    return model, Variables(params, batch_stats), x.shape[-1]


def as_block(
    part: nnx.Module | Sequence[nnx.Module],
    input_shape: tuple[int, ...] | None = None,
    *,
    statistics_of: tuple[type, ...] = (),
    statistics_axis: StatisticsAxis = "channel",
) -> tuple[NnxBlock | Stack, Params, dict[str, Moments]]:
    """A module as a block, or several as a stack, with its parameters and moments.

    `input_shape`, without the batch axis, is needed where it keeps moments; the rest is as in
    `from_nnx`.
    """
    (part,) = join_functions([part])
    options = {"statistics_of": statistics_of, "statistics_axis": statistics_axis}
    own = [make_block(each, part, **options) for each in part.modules]
    if input_shape is not None:
        x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        _, own = with_shapes(own, x, type(part.modules[0]).__name__)
    return _joined(own, part)


def _joined(own, part):
    """The block of a part, or of a stack of several; with its parameters and moments."""
    if not part.is_stack:
        return own[0]
    blocks, *values = zip(*own, strict=True)
    return Stack(blocks[0], len(blocks)), *map(stack_layers, values)


def _places(module):
    """Paths of the parts of a module by identity."""
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"from_nnx got a {type(module).__name__}; give an nnx.Module, or use from_linen or "
            "from_blocks."
        )
    return {id(part): path for path, part in iter_modules(module)}


def _place_of(part, places, what):
    if id(part) not in places:
        raise ValueError(
            f"{what} is a {type(part).__name__} that is no part of the module; give parts of the "
            "module itself, such as module.stem."
        )
    return places[id(part)]


def _check_complete(module, parts, head):
    """Raises where parameters of the module are in no part, or in two."""
    owners = {}
    owned = [(f"blocks[{part.index}]", each) for part in parts for each in part.modules]
    for what, part in [*owned, *([] if head is None else [("head", head)])]:
        for variable in _variables(part).values():
            if owners.setdefault(id(variable), what) != what:
                raise ValueError(
                    f"{owners[id(variable)]} and {what} share the parameters of a "
                    f"{type(part).__name__}; put what shares parameters into one block, and the "
                    "classifier into none."
                )
    left = [name(path) for path, v in _variables(module).items() if id(v) not in owners]
    if left:
        raise ValueError(
            f"blocks leave out {', '.join(left[:5])} of the module; give every part that an image "
            "passes through, and the classifier as head."
        )


def _variables(module):
    """Parameters and BatchNorm moments of a module by path; shared ones are the same object."""
    return {
        path: node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Param | nnx.BatchStat)
    }
