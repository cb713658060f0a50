"""Any trained Flax NNX module as a `Network`, and a network's parameters back into a module."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpmi.flax_networks.kept_moments import standard_moments
from jaxpmi.flax_networks.nnx_block import NnxBlock
from jaxpmi.flax_networks.nnx_block import Path
from jaxpmi.flax_networks.nnx_block import find
from jaxpmi.flax_networks.nnx_block import name
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_name
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.types import Moments

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
      mean: per channel, of pixels in [0, 1], as the network was trained with.
      std: the same.
      image_shape: (H, W, channels).
      class_names: in the order of the logits; None: "0", "1", ...
      statistics_of: kinds of layers, their subclasses too, whose input's moments are kept. Those of
        BatchNorms are its running ones; others have none of their own, so inversion aims at what
        `remember` has measured. A GroupNorm or a LayerNorm counts per channel, over all else.

    Returns:
      A network in evaluation mode, whose random layers are off.

    Raises:
      ValueError: blocks that do not fit each other or leave parameters of the module out, or
        variables that are neither parameters nor a BatchNorm's.
    """
    places = _places(module)
    head_place = None if head is None else _place_of(head, places, "head")
    parts = _chain([module] if blocks is None else list(blocks), places)
    inner = head_place if blocks is None else None
    made, params, batch_stats, x = [], {}, {}, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    for i, (part, before, after) in enumerate(parts):
        block, own_params, own_stats = _block(part, before, after, inner, statistics_of)
        x, own_stats = _with_shapes(block, own_params, own_stats, x, i)
        made.append(block)
        params[block_name(i)], batch_stats[block_name(i)] = own_params, own_stats
    _check_complete(module, [part for part, _, _ in parts], head)
    model = NnxModel(tuple(made), tuple(places[id(part)] for part, _, _ in parts), head_place)
    return from_blocks(
        model,
        Variables(params, batch_stats),
        _head(head, x),
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
      ValueError: the network is of no NNX module, or of one of another structure.
    """
    model = network.model
    if not isinstance(model, NnxModel):
        raise ValueError(
            f"the network is made of {type(model).__name__}, not of an NNX module; use a network "
            "of from_nnx."
        )
    values = {}
    for i, (block, place) in enumerate(zip(model.blocks, model.places, strict=True)):
        params, stats = (tree[block_name(i)] for tree in network.variables)
        values |= {(*place, *path): params[name(path)] for path in block.params}
        for path, running in block.kept:
            if running:
                moments = stats[name(path)]._asdict()
                values |= {(*place, *path, key): value for key, value in moments.items()}
    if model.head is not None:
        values |= {
            (*model.head, key): value
            for key, value in network.head._asdict().items()
            if value is not None
        }
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    found = {path: np.shape(value) for path, value in _flat(nnx.to_pure_dict(state)).items()}
    for path, value in values.items():
        if found.get(path) != value.shape:
            raise ValueError(
                f"the network has {name(path)} of shape {value.shape}, but the module has "
                f"{found.get(path, 'none')}; give a module of the structure that it came from."
            )
    for path, value in values.items():
        _set(find(module, path), value)
    return module


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


def _chain(parts, places):
    """Modules with the functions before and after them: a function joins the module before it."""
    chain, first = [], []
    for i, part in enumerate(parts):
        if isinstance(part, nnx.Module):
            _place_of(part, places, f"blocks[{i}]")
            chain.append((part, tuple(first), ()))
            first = []
        elif not callable(part):
            raise ValueError(
                f"blocks[{i}] is a {type(part).__name__}; give modules and functions of one array."
            )
        elif chain:
            module, before, after = chain[-1]
            chain[-1] = module, before, (*after, part)
        else:
            first.append(part)
    if not chain:
        raise ValueError("blocks has no module; give the parts that an image passes through.")
    return chain


def _block(part, before, after, head, kinds):
    """The block of a module, its parameters and what it keeps of moments, () where unknown."""
    graph, params, stats, rest = nnx.split(part, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = (_flat(nnx.to_pure_dict(state)) for state in (params, stats, rest))
    random = {path: value for path, value in rest.items() if _is_random(path, value)}
    others = sorted(name(path) for path in rest.keys() - random.keys())
    kept, own_stats, used = [], {}, set()
    for path, layer in nnx.iter_modules(part):
        if not isinstance(layer, kinds):
            continue
        running = (*path, "mean") in stats
        kept.append((path, running))
        own_stats[name(path)] = ()
        if running:
            _check_batch_norm(layer, path)
            mean, var = ((*path, key) for key in ("mean", "var"))
            own_stats[name(path)] = Moments(stats[mean], stats[var])
            used |= {mean, var}
    others += sorted(name(path) for path in stats.keys() - used)
    if others:
        raise ValueError(
            f"{type(part).__name__} has the variables {', '.join(others[:5])}, which are neither "
            "parameters nor moments of a kept BatchNorm; make them nnx.Param, or constants."
        )
    absent = {path for path in params if head is not None and path[: len(head)] == head}
    shapes = tuple((path, params.pop(path).shape) for path in sorted(absent, key=name))
    block = NnxBlock(
        graph,
        tuple(sorted(params, key=name)),
        tuple(kept),
        tuple((path, _is_key(value)) for path, value in random.items()),
        before,
        after,
        head,
        shapes,
    )
    return block, {name(path): value for path, value in params.items()}, own_stats


def _with_shapes(block, params, batch_stats, x, index):
    """The block's output, and its moments with standard ones where none are known yet."""
    try:
        y, seen = jax.eval_shape(lambda x: block.apply(params, batch_stats, x), x)
    except (TypeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"blocks[{index}] cannot take inputs of {x.shape[1:]} per image: {reason} Check the "
            "order of the blocks and image_shape."
        ) from error
    if not isinstance(y, jax.ShapeDtypeStruct):
        raise ValueError(
            f"blocks[{index}] returns a {type(y).__name__}; give parts that return one array."
        )
    known = {
        key: moments or standard_moments(seen[key].mean.shape)
        for key, moments in batch_stats.items()
    }
    return y, known


def _head(head, features):
    """The classifier as the network has it; without one, the features are the logits."""
    if head is None:
        return Head(jnp.eye(features.shape[-1]))
    arrays = nnx.to_pure_dict(nnx.state(head, nnx.Param))
    if getattr(arrays.get("kernel"), "ndim", 0) != 2 or arrays.keys() - {"kernel", "bias"}:
        raise ValueError(
            f"head is a {type(head).__name__} with the parameters {sorted(arrays)}; give an "
            "nnx.Linear, or leave it to the blocks and pass head=None."
        )
    return Head(arrays["kernel"], arrays.get("bias"))


def _check_complete(module, parts, head):
    """Raises where parameters of the module are in no part, or in two."""
    owners = {}
    for i, part in enumerate([*parts, *([] if head is None or len(parts) == 1 else [head])]):
        for variable in _variables(part).values():
            if owners.setdefault(id(variable), i) != i:
                raise ValueError(
                    f"blocks[{owners[id(variable)]}] and blocks[{i}] share the parameters of a "
                    f"{type(part).__name__}; put what shares parameters into one block."
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


def _check_batch_norm(layer, path):
    if layer.axis not in (-1,):
        raise ValueError(
            f"the BatchNorm {name(path)} normalises axis {layer.axis}; channels must be the last."
        )


def _is_key(value):
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_random(path, value):
    """Whether a variable is the state of a random layer: a key, or a count of draws."""
    return _is_key(value) or (path[-1] == "count" and value.dtype == jnp.uint32)


def _flat(tree, prefix=()):
    """Leaves of nested dicts by their paths."""
    flat = {}
    for key, value in tree.items():
        path = (*prefix, key)
        flat |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return flat
