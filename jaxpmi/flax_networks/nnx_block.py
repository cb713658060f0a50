"""Flax NNX modules as blocks: pure functions of their parameters that return layers' moments.

A block's graph is static and hashable, so blocks of equal modules are equal and share one compiled
program. The module itself is merged from it, inside the trace, whenever the block is applied; the
layers whose moments are kept get a subclass that notes what it sees. The user's own module is never
touched.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.flax_networks.constants import Constant
from jaxpmi.flax_networks.convolution import conv_general_dilated
from jaxpmi.flax_networks.kept_moments import add_call
from jaxpmi.flax_networks.kept_moments import as_moments
from jaxpmi.flax_networks.kept_moments import check_channels_last
from jaxpmi.flax_networks.kept_moments import never_called
from jaxpmi.flax_networks.paths import Path
from jaxpmi.flax_networks.paths import nested
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.flax_networks.train_argument import mode_arguments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

SEEN = "jaxpmi_seen"  # the attribute under which a layer notes its input's moments


class Seen(nnx.Variable):
    """Moments of what a layer has just seen; a variable, so that remat and scan hand it on."""


@functools.cache
def noting(kind: type) -> type:
    """A subclass of a layer that notes the moments of its input.

    A BatchNorm's mode is the block's, whatever its call says.
    """
    positional = kind.__call__ is nnx.BatchNorm.__call__

    def call(self, x, *args, **kwargs):
        if isinstance(self, nnx.BatchNorm):
            check_channels_last(self.axis, x.ndim)
            kwargs.pop("use_running_average", None)
            args = args[1:] if positional else args
        setattr(self, SEEN, Seen(add_call(seen_by(self), x)))
        return kind.__call__(self, x, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


@functools.cache
def passing(kind: type) -> type:
    """A subclass of a classifier that notes its input itself, and whose logits are zeros."""

    def call(self, x, *args, **kwargs):
        del args, kwargs
        setattr(self, SEEN, Seen(x))
        return jnp.zeros((*x.shape[:-1], self.kernel.shape[-1]), x.dtype)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


@functools.cache
def deterministic(kind: type) -> type:
    """A subclass of a layer that drops nothing, whatever its call says."""

    def call(self, *args, **kwargs):
        if "deterministic" in kwargs:
            kwargs["deterministic"] = True
        return kind.__call__(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


@dataclasses.dataclass(frozen=True)
class NnxBlock:
    """One NNX module, with plain functions before and after it; follows the protocol `Block`.

    Attributes:
      graph: structure of the module.
      params: paths of its parameters; their names in `Variables` are these, joined by "/".
      kept: paths of the layers whose input's moments are kept, and whether they normalise by them.
      random: paths of the states of random layers, which are never drawn from here, whether each
        is a key (or a count), and its shape.
      before: functions of the input, first to last.
      after: functions of the output, first to last.
      head: path of a classifier inside whose input is the block's output; None: there is none.
      absent: paths and shapes of that classifier's parameters, which are the network's head.
      constants: paths and values of arrays that are neither parameters nor moments.
      train_argument: how the module is told whether it trains; None: by its layers alone.
    """

    graph: nnx.GraphDef
    params: tuple[Path, ...]
    kept: tuple[tuple[Path, bool], ...]
    random: tuple[tuple[Path, bool, tuple[int, ...]], ...]
    before: tuple[Callable[[jax.Array], jax.Array], ...] = ()
    after: tuple[Callable[[jax.Array], jax.Array], ...] = ()
    head: Path | None = None
    absent: tuple[tuple[Path, tuple[int, ...]], ...] = ()
    constants: tuple[tuple[Path, Constant], ...] = ()
    train_argument: TrainArgument = None

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Names of the layers that keep no moments of their own; see `remember`."""
        return tuple(name(path) for path, running in self.kept if not running)

    def init(self, key: PRNGKey, input_shape: tuple[int, ...]) -> tuple[Params, Any]:
        """See `Block.init`: random weights come from the module's own initialisers."""
        del key, input_shape
        raise ValueError(
            "a block of a Flax module has no random weights of its own; make the module anew with "
            "nnx.Rngs and give it to from_nnx."
        )

    def apply(
        self, params: Params, batch_stats: Any, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """See `Block.apply`. Random layers are off, in training too."""
        module = self.merge(params, batch_stats)
        for path, running in self.kept:
            layer = find(module, path)
            layer.__class__ = noting(type(layer))
            if hasattr(layer, "use_running_average"):
                layer.use_running_average = not train
            elif running and train and self.train_argument is None:
                raise ValueError(
                    f"the layer {name(path)} has running moments and no use_running_average by "
                    "which to train; say by train_argument how its call is told."
                )
            if isinstance(layer, nnx.BatchNorm):
                layer.use_fast_variance = False  # as `channel_moments` computes it
                layer.axis_name = None  # the batch is whole, on however many devices
        if self.head is not None:
            head = find(module, self.head)
            head.__class__ = passing(type(head))
        for function in self.before:
            x = function(x)
        told = mode_arguments(self.train_argument, train)
        y = module(x, **{key: value for key, value in told.items() if takes(module, key)})
        if self.head is not None:
            y = seen_by(find(module, self.head))
        for function in self.after:
            y = function(y)
        return y, {name(path): self._moments(module, path) for path, _ in self.kept}

    def merge(self, params: Params, batch_stats: Any) -> nnx.Module:
        """The module with these parameters and moments, random layers off, convolutions ours."""
        values = {path: params[name(path)] for path in self.params}
        for path, running in self.kept:
            if running:
                moments = batch_stats[name(path)]
                values |= {(*path, "mean"): moments.mean, (*path, "var"): moments.var}
        for path, is_key, shape in self.random:
            key = jax.random.key(0)
            keys = jax.random.split(key, shape) if shape else key
            values[path] = keys if is_key else jnp.zeros(shape, jnp.uint32)
        values |= {path: jnp.zeros(shape) for path, shape in self.absent}
        values |= {path: constant.array() for path, constant in self.constants}
        module = nnx.merge(self.graph, nested(values))
        for _, layer in nnx.iter_modules(module):
            if hasattr(layer, "deterministic"):
                layer.deterministic = True
            if isinstance(layer, nnx.Dropout | nnx.MultiHeadAttention):
                layer.__class__ = deterministic(type(layer))
            plain = getattr(layer, "conv_general_dilated", None) is jax.lax.conv_general_dilated
            if plain:
                layer.conv_general_dilated = conv_general_dilated
        return module

    def _moments(self, module, path):
        seen = seen_by(find(module, path))
        if seen is None:
            raise never_called(name(path))
        return as_moments(seen)


def name(path: Path) -> str:
    """A path as one text, such as "layers/0/conv/kernel"."""
    return "/".join(map(str, path))


def find(module: nnx.Module, path: Path) -> Any:
    """What is at a path of a module."""
    for part in path:
        by_key = isinstance(part, int) or isinstance(module, dict)
        module = module[part] if by_key else getattr(module, part)
    return module


def takes(module: nnx.Module, argument: str) -> bool:
    """Whether a module's call has an argument of this name."""
    return argument in inspect.signature(type(module).__call__).parameters


def seen_by(layer: nnx.Module) -> Any:
    """What a layer of `noting` or `passing` has noted; None: nothing yet."""
    return nnx.to_pure_dict(nnx.state(layer, Seen)).get(SEEN)
