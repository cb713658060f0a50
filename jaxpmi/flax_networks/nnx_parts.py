"""The parts of an NNX module that an image passes through, each as a block."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.flax_networks.constants import Constant
from jaxpmi.flax_networks.containers import ModuleList
from jaxpmi.flax_networks.containers import iter_modules
from jaxpmi.flax_networks.kept_moments import standard_moments
from jaxpmi.flax_networks.nnx_block import NnxBlock
from jaxpmi.flax_networks.nnx_block import name
from jaxpmi.flax_networks.nnx_block import takes
from jaxpmi.flax_networks.paths import Path
from jaxpmi.flax_networks.paths import flat
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.flax_networks.train_argument import mode_arguments
from jaxpmi.types import Moments
from jaxpmi.types import Params

Function = Callable[[jax.Array], jax.Array]
# What an image passes through: modules, functions of one array, and lists of equal modules.
Blocks = Sequence[nnx.Module | Function | Sequence[nnx.Module]]


class Part(NamedTuple):
    """A module, with the functions before and after it, or a stack of equal modules."""

    modules: tuple[nnx.Module, ...]
    index: int  # of the module or of the stack among what the user listed
    before: tuple[Function, ...] = ()
    after: tuple[Function, ...] = ()
    is_stack: bool = False


@dataclasses.dataclass(frozen=True)
class Partial:
    """A `functools.partial` that equals another one of the same function and arguments."""

    function: Callable[..., jax.Array]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of x, after its own arguments."""
        return self.function(*self.arguments, x, **dict(self.keywords))


def join_functions(listed: Blocks) -> list[Part]:
    """Modules with their functions: one joins the module before it, or if it cannot the next.

    The first ones have none before them, and a stack of modules is no place for a function.

    Raises:
      ValueError: something that is neither, no module at all, or a function without a place.
    """
    parts, waiting = [], []
    for i, item in enumerate(listed):
        if isinstance(item, list | tuple | ModuleList):
            if waiting or not item or not all(isinstance(each, nnx.Module) for each in item):
                raise ValueError(
                    f"blocks[{i}] is a list; it must have modules alone, equal ones that are a "
                    "stack, and no function may stand between it and the list or the start before."
                )
            parts.append(Part(tuple(item), i, is_stack=True))
        elif isinstance(item, nnx.Module):
            parts.append(Part((item,), i, tuple(waiting)))
            waiting = []
        elif not callable(item):
            raise ValueError(
                f"blocks[{i}] is a {type(item).__name__}; give modules and functions of one array."
            )
        elif parts and not parts[-1].is_stack:
            parts[-1] = parts[-1]._replace(after=(*parts[-1].after, _by_value(item)))
        else:
            waiting.append(_by_value(item))
    if not parts:
        raise ValueError("blocks has no module; give the parts that an image passes through.")
    if waiting:
        raise ValueError(
            "blocks ends with a function after a list of modules; put it into a module, or give "
            "the last module of the list by itself."
        )
    return parts


def check_train_argument(train_argument: TrainArgument, parts: list[Part]) -> None:
    """Raises where an argument that says whether to train is one of no part's call."""
    for argument in mode_arguments(train_argument, False):
        if not any(takes(part.modules[0], argument) for part in parts):
            raise ValueError(
                f"train_argument gives '{argument}', which no block's call takes; give the name "
                "that the module has for it, or None."
            )


def make_block(
    module: nnx.Module,
    part: Part,
    *,
    statistics_of: tuple[type, ...],
    statistics_axis: StatisticsAxis = "channel",
    head: Path | None = None,
    train_argument: TrainArgument = None,
) -> tuple[NnxBlock, Params, dict[str, Any]]:
    """The block of a part's module, its parameters, and the moments it keeps, () where unknown.

    Raises:
      ValueError: running moments of a layer that is none of `statistics_of`.
    """
    graph, params, stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = (flat(nnx.to_pure_dict(state)) for state in (params, stats, rest))
    random = {path: value for path, value in rest.items() if _is_random(path, value)}
    kept, own_stats, used = [], {}, set()
    for path, layer in iter_modules(module):
        if isinstance(layer, statistics_of):
            moments = {key: (*path, key) for key in Moments._fields}
            running = set(moments.values()) <= stats.keys()
            kept.append((path, running))
            own_stats[name(path)] = ()
            if running:
                own_stats[name(path)] = Moments(**{k: stats[p] for k, p in moments.items()})
                used |= set(moments.values())
    if stats.keys() - used:
        others = sorted(name(path) for path in stats.keys() - used)
        raise ValueError(
            f"{type(module).__name__} has the running moments {', '.join(others[:5])}, of layers "
            "that are none of statistics_of; add their kind, which must keep a mean and a var."
        )
    absent = {path for path in params if head is not None and path[: len(head)] == head}
    block = NnxBlock(
        graph,
        tuple(sorted(params.keys() - absent, key=name)),
        tuple(kept),
        tuple((path, _is_key(value), value.shape) for path, value in random.items()),
        part.before,
        part.after,
        head,
        tuple((path, params[path].shape) for path in sorted(absent, key=name)),
        tuple((path, Constant.of(rest[path])) for path in rest if path not in random),
        train_argument,
        statistics_axis,
    )
    return block, {name(path): params[path] for path in block.params}, own_stats


def with_shapes(
    own: list[tuple[NnxBlock, Params, dict[str, Any]]], x: jax.ShapeDtypeStruct, what: str
) -> tuple[jax.ShapeDtypeStruct, list[tuple[NnxBlock, Params, dict[str, Moments]]]]:
    """The output of a block, or of a stack of several, for inputs `x`; nothing is computed.

    Also returns what was given, with standard moments where none are known yet.

    Raises:
      ValueError: a block that cannot take `x`, or that returns something else than an array; a
        stack of blocks that are not equal, or whose output has another shape than their input.
    """
    block, params, batch_stats = own[0]
    try:
        y, seen = jax.eval_shape(lambda x: block.apply(params, batch_stats, x), x)
    except (TypeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{what} cannot take inputs of {x.shape[1:]} per image: {reason} Check the order of "
            "the blocks, image_shape and train_argument."
        ) from error
    if not isinstance(y, jax.ShapeDtypeStruct):
        raise ValueError(f"{what} returns a {type(y).__name__}; give parts that return one array.")
    if len(own) > 1 and not (y.shape == x.shape and _are_equal(own)):
        raise ValueError(
            f"{what} is a list of modules that are no stack: they are not equal, or return another "
            "shape than they take; give them one by one."
        )

    def known(batch_stats):
        return {
            key: moments or standard_moments(seen[key].mean.shape)
            for key, moments in batch_stats.items()
        }

    return y, [(block, params, known(stats)) for block, params, stats in own]


def _are_equal(own):
    """Whether blocks are, and their parameters in shape."""
    shapes = [jax.tree.map(jnp.shape, params) for _, params, _ in own]
    return len({block for block, *_ in own}) == 1 and all(each == shapes[0] for each in shapes)


def _by_value(function):
    """A partial as one that is compared by what it holds; other functions as they are."""
    if type(function) is not functools.partial:
        return function
    bound = Partial(function.func, function.args, tuple(sorted(function.keywords.items())))
    try:
        hash(bound)
    except TypeError:  # it holds an array, say
        return function
    return bound


def _is_key(value):
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_random(path, value):
    """Whether a variable is the state of a random layer: a key, or a count of draws."""
    return _is_key(value) or (path[-1] == "count" and value.dtype == jnp.uint32)
