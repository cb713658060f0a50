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

from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import axis_moments
from jaxpmi.blocks.blockwise import normalise_channels
from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.flax_networks.constants import Constant
from jaxpmi.flax_networks.containers import iter_modules
from jaxpmi.flax_networks.convolution import conv_general_dilated
from jaxpmi.flax_networks.kept_moments import add_call
from jaxpmi.flax_networks.kept_moments import as_moments
from jaxpmi.flax_networks.kept_moments import check_channels_last
from jaxpmi.flax_networks.kept_moments import never_called
from jaxpmi.flax_networks.paths import Path
from jaxpmi.flax_networks.paths import nested
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.flax_networks.train_argument import mode_arguments
from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

SEEN = "jaxpmi_seen"  # the attribute under which a layer notes its input's moments


class Seen(nnx.Variable):
    """Moments of what a layer has just seen; a variable, so that remat and scan hand it on."""


@functools.cache
def noting(kind: type, axis: StatisticsAxis) -> type:
    """A subclass of a layer that notes the moments of its input, per channel or per token.

    A BatchNorm's mode is the block's, whatever its call says. Flax's own is computed here, so that
    the moments of a batch are computed once, and in half precision as the parameters are.
    """
    flaxs_own = kind.__call__ is nnx.BatchNorm.__call__

    def call(self, x, *args, **kwargs):
        batch = axis_moments(x, axis)
        setattr(self, SEEN, Seen(add_call(seen_by(self), batch)))
        if not isinstance(self, nnx.BatchNorm):
            return kind.__call__(self, x, *args, **kwargs)
        check_channels_last(self.axis, x.ndim)
        kwargs.pop("use_running_average", None)
        if not flaxs_own:
            return kind.__call__(self, x, *args, **kwargs)
        if self.dtype is not None or kwargs.get("mask") is not None:
            return kind.__call__(self, x, *args[1:], **kwargs)
        running = Moments(self.mean[...], self.var[...])
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        by = running if self.use_running_average else batch
        return normalise_channels(x, by, scale, bias, epsilon=self.epsilon)

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
      random: paths of the states of random layers, whether each is a key (or a count), and its
        shape; their values are those of a key that the block is applied with.
      before: functions of the input, first to last.
      after: functions of the output, first to last.
      head: path of a classifier inside whose input is the block's output; None: there is none.
      absent: paths and shapes of that classifier's parameters, which are the network's head.
      constants: paths and values of arrays that are neither parameters nor moments.
      train_argument: how the module is told whether it trains; None: by its layers alone.
      statistics_axis: per what the moments of the layers' inputs and of the block's are kept.
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
    statistics_axis: StatisticsAxis = "channel"

    @property
    def kind(self) -> str:
        """The name of the module's class."""
        return self.graph.nodes[0].type.__name__

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
        self,
        params: Params,
        batch_stats: Any,
        x: jax.Array,
        *,
        train: bool = False,
        key: PRNGKey | None = None,
    ) -> tuple[jax.Array, Any]:
        """See `Block.apply`. Random layers are off without a key, in training too."""
        module = self.merge(params, batch_stats, key)
        _prepare(module, random=key is not None)
        for path, running in self.kept:
            layer = find(module, path)
            layer.__class__ = noting(type(layer), self.statistics_axis)
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

    def merge(self, params: Params, batch_stats: Any, key: PRNGKey | None = None) -> nnx.Module:
        """The module with these arrays; every random state has a part of the key, if any."""
        values = {path: params[name(path)] for path in self.params}
        if len(params) != len(values):
            unknown = sorted(set(params) - set(map(name, self.params)))
            raise ValueError(
                f"the variables have {', '.join(unknown[:5])}, which {self.kind} has no place for; "
                "give the network that they are of."
            )
        for path, running in self.kept:
            if running:
                moments = batch_stats[name(path)]
                values |= {(*path, "mean"): moments.mean, (*path, "var"): moments.var}
        keys = [path for path, is_key, _ in self.random if is_key]
        for path, is_key, shape in self.random:
            own = jax.random.key(0) if key is None else key
            if is_key and len(keys) > 1:
                own = jax.random.fold_in(own, keys.index(path))
            own = jax.random.split(own, shape) if shape else own
            values[path] = own if is_key else jnp.zeros(shape, jnp.uint32)
        values |= {path: jnp.zeros(shape) for path, shape in self.absent}
        values |= {path: constant.array() for path, constant in self.constants}
        return nnx.merge(self.graph, nested(values))

    def propagate(self, params: Params, moments: Moments | None) -> Moments | None:
        """Moments of the output without data, by the module's `propagate`; None: it has none."""
        module = self._without_moments(params)
        return module.propagate(moments) if hasattr(module, "propagate") else None

    def channel_axes(self, params: Params) -> ChannelAxes | None:
        """See `PrunableBlock`, by the module's `channel_axes`; None: it has none."""
        module = self._without_moments(params)
        return module.channel_axes() if hasattr(module, "channel_axes") else None

    def narrow(self, widths: dict[str, int]) -> "NnxBlock":
        """See `PrunableBlock.narrow`: the layers of the module get other numbers of channels."""
        module = self._without_moments(dict.fromkeys(map(name, self.params), jnp.zeros(())))
        layers = {name(path[:-1]): find(module, path[:-1]) for path in self.params}
        for path, names in module.channel_axes().layers.items():
            layer, columns = layers[path], widths[names[-1]]
            if isinstance(layer, nnx.BatchNorm):
                layer.num_features = columns
                continue
            layer.out_features, layer.in_features = columns, widths[names[0]]
            if isinstance(layer, nnx.Conv):
                if len(names) == 1:
                    layer.feature_group_count = columns
                rows = layer.in_features // layer.feature_group_count
                layer.kernel_shape = (*layer.kernel_shape[:-2], rows, columns)
        return dataclasses.replace(self, graph=nnx.split(module)[0])

    def _without_moments(self, params):
        """The module to be asked for what depends on its parameters alone."""
        zero = Moments(jnp.zeros(()), jnp.zeros(()))
        return self.merge(params, {name(path): zero for path, _ in self.kept})

    def _moments(self, module, path):
        seen = seen_by(find(module, path))
        if seen is None:
            raise never_called(name(path))
        return as_moments(seen)


def _prepare(module, *, random):
    """Turns a module's random layers on or off, and makes its convolutions ours."""
    for _, layer in iter_modules(module):
        if hasattr(layer, "deterministic"):
            layer.deterministic = not random
        if not random and isinstance(layer, nnx.Dropout | nnx.MultiHeadAttention):
            layer.__class__ = deterministic(type(layer))
        if getattr(layer, "conv_general_dilated", None) is jax.lax.conv_general_dilated:
            layer.conv_general_dilated = conv_general_dilated


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
