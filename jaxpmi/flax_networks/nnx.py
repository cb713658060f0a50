"""Any trained Flax NNX module as a `Network`, and a network's parameters back into a module."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpmi.flax_networks.classifier import check_identity
from jaxpmi.flax_networks.classifier import identity
from jaxpmi.flax_networks.classifier import layer_arrays
from jaxpmi.flax_networks.nnx_block import NnxBlock
from jaxpmi.flax_networks.nnx_block import find
from jaxpmi.flax_networks.nnx_block import name
from jaxpmi.flax_networks.nnx_parts import check_train_argument
from jaxpmi.flax_networks.nnx_parts import join_functions
from jaxpmi.flax_networks.nnx_parts import make_block
from jaxpmi.flax_networks.nnx_parts import with_shapes
from jaxpmi.flax_networks.paths import Path
from jaxpmi.flax_networks.paths import flat
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_name
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks

KEPT = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm)


@dataclasses.dataclass(frozen=True)
class NnxModel:
    """The blocks of a module, and where they are in it.

    Attributes:
      blocks: in order.
      places: the path of every block in the module.
      head: the path of the classifier in the module; None: it has none of its own.
    """

    blocks: tuple[NnxBlock, ...]
    places: tuple[Path, ...]
    head: Path | None


def from_nnx(
    module: nnx.Module,
    *,
    blocks: Sequence[nnx.Module | Callable[[jax.Array], jax.Array]] | None = None,
    head: nnx.Linear | None = None,
    train_argument: TrainArgument = None,
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None = None,
    statistics_of: tuple[type, ...] = KEPT,
) -> Network:
    """Takes a trained NNX module as it is; it is neither rewritten nor changed.

    Args:
      module: the whole network; its arrays are shared, not copied.
      blocks: what an image passes through, first to last, up to the feature that `head` reads:
        parts of `module`, and plain functions such as a mean over space, which join the part
        before them. Each maps one array to one. None: the whole module is one block. That will do
        for DeepInversion, CMI and distillation; PMI then has but one block to invert, and its start
        is no better than that block's linear inverse.
      head: the classifier, a linear layer of `module`. None: the outputs are the features, and the
        head is the identity.
      train_argument: the name of an argument by which the parts that have one are told that they
        train, such as "train", or "!deterministic" for one that says that they do not; or a
        function from bool to arguments. None: BatchNorms and random layers are told by their
        attributes, as by `module.train()` and `module.eval()`.
      mean: per channel, of pixels in [0, 1], as the network was trained with.
      std: the same.
      image_shape: (H, W, channels).
      class_names: in the order of the logits; None: "0", "1", ...
      statistics_of: kinds of layers, their subclasses too, whose input's moments are kept. Those of
        BatchNorms are its running ones; others have none of their own, so inversion aims at what
        `remember` has measured. A GroupNorm or a LayerNorm counts per channel, over all else.

    Returns:
      A network in evaluation mode, whose random layers are off. Arrays of the module that are
      neither parameters nor a BatchNorm's moments are constants of it, never trained.

    Raises:
      ValueError: blocks that do not fit each other, leave parameters of the module out or share
        some; running moments of a layer whose kind is not in `statistics_of`.
    """
    places = _places(module)
    head_place = None if head is None else _place_of(head, places, "head")
    classifier = None if head is None else _classifier(head)
    parts = join_functions([module] if blocks is None else list(blocks))
    for part in parts:
        _place_of(part.module, places, f"blocks[{part.index}]")
    check_train_argument(train_argument, parts)
    inner = head_place if blocks is None else None
    whats = ["the module" if blocks is None else f"blocks[{part.index}]" for part in parts]
    made, params, batch_stats, x = [], {}, {}, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    for i, part in enumerate(parts):
        block, own_params, own_stats = make_block(part, inner, statistics_of, train_argument)
        x, own_stats = with_shapes(block, own_params, own_stats, x, whats[i])
        made.append(block)
        params[block_name(i)], batch_stats[block_name(i)] = own_params, own_stats
    _check_complete(module, parts, head if blocks is not None else None)
    own_places = tuple(places[id(part.module)] for part in parts)
    return from_blocks(
        NnxModel(tuple(made), own_places, head_place),
        Variables(params, batch_stats),
        identity(x.shape[-1]) if classifier is None else classifier,
        mean=mean,
        std=std,
        image_shape=image_shape,
        class_names=class_names,
    )


def to_nnx(network: Network, module: nnx.Module) -> nnx.Module:
    """Writes a network's parameters, BatchNorm moments and head back into a module, in place.

    Args:
      network: of `from_nnx`, from a module of the same structure.
      module: whose variables are set.

    Returns:
      The module.

    Raises:
      ValueError: the network is of no NNX module, or of one of another structure; a trained head
        for which the module has no place.
    """
    model = network.model
    if not isinstance(model, NnxModel):
        raise ValueError(
            f"the network is made of {type(model).__name__}, not of an NNX module; use a network "
            "of from_nnx."
        )
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    found = {path: np.shape(value) for path, value in flat(nnx.to_pure_dict(state)).items()}
    values = _values(network, found)
    for path, value in values.items():
        if found.get(path) != value.shape:
            raise ValueError(
                f"the network has {name(path)} of shape {value.shape}, but the module has "
                f"{found.get(path, 'none')}; give a module of the structure that it came from."
            )
    for path, value in values.items():
        _set(find(module, path), value)
    return module


def _values(network, found):
    """The network's arrays by their paths in a module that has the paths `found`."""
    model, values = network.model, {}
    for i, (block, place) in enumerate(zip(model.blocks, model.places, strict=True)):
        params, stats = (tree[block_name(i)] for tree in network.variables)
        values |= {(*place, *path): params[name(path)] for path in block.params}
        for path, running in block.kept:
            if running:
                moments = stats[name(path)]._asdict()
                values |= {(*place, *path, key): value for key, value in moments.items()}
    if model.head is None:
        check_identity(network.head)
        return values
    has_bias = (*model.head, "bias") in found
    arrays = layer_arrays(network.head, has_bias, name(model.head))
    return values | {(*model.head, key): value for key, value in arrays.items()}


def _set(variable, value):
    """Sets a variable's array, by the way that this Flax has for it."""
    if hasattr(variable, "set_value"):
        variable.set_value(value)
    else:
        variable.value = value


def _places(module):
    """Paths of the parts of a module by identity."""
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"from_nnx got a {type(module).__name__}; give an nnx.Module, or use from_linen or "
            "from_blocks."
        )
    return {id(part): path for path, part in nnx.iter_modules(module)}


def _place_of(part, places, what):
    if id(part) not in places:
        raise ValueError(
            f"{what} is a {type(part).__name__} that is no part of the module; give parts of the "
            "module itself, such as module.stem."
        )
    return places[id(part)]


def _classifier(head):
    """A linear layer as the network has its classifier."""
    arrays = nnx.to_pure_dict(nnx.state(head, nnx.Param))
    if getattr(arrays.get("kernel"), "ndim", 0) != 2 or arrays.keys() - {"kernel", "bias"}:
        raise ValueError(
            f"head is a {type(head).__name__} with the parameters {sorted(arrays)}; give an "
            "nnx.Linear, or leave it to the blocks and pass head=None."
        )
    return Head(arrays["kernel"], arrays.get("bias"))


def _check_complete(module, parts, head):
    """Raises where parameters of the module are in no part, or in two."""
    owners, owned = {}, [(f"blocks[{part.index}]", part.module) for part in parts]
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
