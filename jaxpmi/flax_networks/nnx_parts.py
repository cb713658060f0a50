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

from jaxpmi.flax_networks.constants import Constant
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


class Part(NamedTuple):
    """A module with the functions before and after it."""

    module: nnx.Module
    index: int  # of the module among what the user listed
    before: tuple[Function, ...] = ()
    after: tuple[Function, ...] = ()


@dataclasses.dataclass(frozen=True)
class Partial:
    """A `functools.partial` that equals another one of the same function and arguments."""

    function: Callable[..., jax.Array]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function of x, after its own arguments."""
        return self.function(*self.arguments, x, **dict(self.keywords))


def join_functions(listed: Sequence[nnx.Module | Function]) -> list[Part]:
    """Modules with their functions: a function joins the module before it, the first ones the next.

    Raises:
      ValueError: something that is neither, or no module at all.
    """
    parts, first = [], []
    for i, item in enumerate(listed):
        if isinstance(item, nnx.Module):
            parts.append(Part(item, i, tuple(first)))
            first = []
        elif not callable(item):
            raise ValueError(
                f"blocks[{i}] is a {type(item).__name__}; give modules and functions of one array."
            )
        elif parts:
            parts[-1] = parts[-1]._replace(after=(*parts[-1].after, _by_value(item)))
        else:
            first.append(_by_value(item))
    if not parts:
        raise ValueError("blocks has no module; give the parts that an image passes through.")
    return parts


def check_train_argument(train_argument: TrainArgument, parts: list[Part]) -> None:
    """Raises where an argument that says whether to train is one of no part's call."""
    for argument in mode_arguments(train_argument, False):
        if not any(takes(part.module, argument) for part in parts):
            raise ValueError(
                f"train_argument gives '{argument}', which no block's call takes; give the name "
                "that the module has for it, or None."
            )


def make_block(
    part: Part, head: Path | None, kinds: tuple[type, ...], train_argument: TrainArgument
) -> tuple[NnxBlock, Params, dict[str, Any]]:
    """The block of a part, its parameters, and what it keeps of moments, () where unknown.

    Raises:
      ValueError: running moments of a layer that is none of `kinds`.
    """
    module = part.module
    graph, params, stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = (flat(nnx.to_pure_dict(state)) for state in (params, stats, rest))
    random = {path: value for path, value in rest.items() if _is_random(path, value)}
    kept, own_stats, used = [], {}, set()
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, kinds):
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
    )
    return block, {name(path): params[path] for path in block.params}, own_stats


def with_shapes(
    block: NnxBlock, params: Params, batch_stats: dict[str, Any], x: jax.Array, what: str
) -> tuple[jax.ShapeDtypeStruct, dict[str, Moments]]:
    """The block's output, and its moments with standard ones where none are known yet.

    Raises:
      ValueError: a block that cannot take `x`, or that returns something else than an array.
    """
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
    known = {
        key: moments or standard_moments(seen[key].mean.shape)
        for key, moments in batch_stats.items()
    }
    return y, known


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
