"""A Flax Linen module as one block: a pure function that returns the moments of layers' inputs.

Calls of layers are intercepted while the module is applied; the module itself stays as it is.
"""

import dataclasses
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import channel_moments
from jaxpmi.flax_networks.constants import Constant
from jaxpmi.flax_networks.convolution import conv_general_dilated
from jaxpmi.flax_networks.kept_moments import add_call
from jaxpmi.flax_networks.kept_moments import as_moments
from jaxpmi.flax_networks.kept_moments import check_channels_last
from jaxpmi.flax_networks.paths import Path
from jaxpmi.flax_networks.paths import at
from jaxpmi.flax_networks.paths import nested
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.flax_networks.train_argument import mode_arguments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

SEEN = "jaxpmi_seen"  # the collection in which layers note what they see


@dataclasses.dataclass(frozen=True)
class LinenBlock:
    """A whole Linen module; follows the protocol `Block`.

    Attributes:
      module: hashable, as Linen modules are.
      train_argument: how it is told whether it trains.
      kinds: of layers whose input's moments are kept.
      kept: paths of these layers, and whether they normalise by running moments.
      head: path of the classifier whose input is the block's output; None: the output itself is.
      constants: paths, from their collections on, and values of variables that are neither
        parameters nor moments.
    """

    module: nn.Module
    train_argument: TrainArgument
    kinds: tuple[type, ...]
    kept: tuple[tuple[Path, bool], ...] = ()
    head: Path | None = None
    constants: tuple[tuple[Path, Constant], ...] = ()

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Names of the layers that keep no moments of their own; see `remember`."""
        return tuple("/".join(path) for path, running in self.kept if not running)

    def init(self, key: PRNGKey, input_shape: tuple[int, ...]) -> tuple[Params, Any]:
        """See `Block.init`: random weights come from the module's own `init`."""
        del key, input_shape
        raise ValueError(
            "a block of a Linen module has no random weights of its own; give from_linen the "
            "variables of module.init."
        )

    def apply(
        self, params: Params, batch_stats: Any, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """See `Block.apply`. Dropout is off, in training too."""
        running = {
            path: batch_stats["/".join(path)]._asdict() for path, running in self.kept if running
        }
        variables = {"params": params, "batch_stats": nested(running)}
        try:
            y, seen = self.call(variables, x, train=train)
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                f"{type(self.module).__name__} draws random numbers of its own when it is told "
                f"train={train}, and has none to draw; give train_argument a function to arguments "
                "under which it does not: BatchNorms and Dropouts are told of the mode in any case."
            ) from error
        moments = {}
        for path, _ in self.kept:
            own = at(seen, path)
            if own is None:
                raise ValueError(
                    f"nothing is known of the input of {'/'.join(path)}: it is inside an nn.scan, "
                    f"whose variable_axes lack a line; add '{SEEN}': 0 to them."
                )
            moments["/".join(path)] = as_moments(own["moments"])
        if self.head is not None:
            own = at(seen, self.head)
            if own is None:
                raise ValueError(
                    f"head='{'/'.join(self.head)}' is not called in a pass; give the name of the "
                    "layer that gives the logits."
                )
            y = own["input"]
        return y, moments

    def call(
        self, variables: dict[str, Any], x: jax.Array, *, train: bool, met: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """The module's output and the collection `SEEN`.

        `met`, a dict, is told of the layers that are called: their modules by their paths.
        """

        def tap(call, args, kwargs, context):
            layer = context.module
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if isinstance(layer, self.kinds):
                if met is not None:
                    met[layer.path] = layer
                batch = channel_moments(args[0])
                layer.sow(SEEN, "moments", batch, reduce_fn=add_call, init_fn=lambda: None)
            if isinstance(layer, nn.Dropout):
                return args[0]
            if self.head is not None and layer.path == self.head:
                layer.sow(SEEN, "input", args[0], reduce_fn=lambda _, new: new, init_fn=tuple)
                return jnp.zeros((*args[0].shape[:-1], layer.features), args[0].dtype)
            args, kwargs = _prepare(layer, args, kwargs, train)
            return call(*args, **kwargs)

        variables = variables | nested({path: c.array() for path, c in self.constants})
        with nn.intercept_methods(tap):
            y, new = self.module.apply(
                variables,
                x,
                mutable=[SEEN, "batch_stats"],
                **mode_arguments(self.train_argument, train),
            )
        return y, new.get(SEEN, {})


def _prepare(layer, args, kwargs, train):
    """Tells a bound layer, which is gone after the call, what a block asks of it.

    The mode of a BatchNorm is the block's, whatever its call says, and nothing is ever dropped.
    Returns the arguments of the call.
    """
    told = {}
    if isinstance(layer, nn.BatchNorm):
        check_channels_last(layer.axis, args[0].ndim)
        # The variance as `channel_moments` computes it, of a batch that is whole.
        told = {"use_running_average": not train, "use_fast_variance": False, "axis_name": None}
        kwargs = {key: kwargs[key] for key in kwargs.keys() - {"use_running_average"}}
        args = args[:1] if type(layer).__call__ is nn.BatchNorm.__call__ else args
    elif isinstance(layer, nn.MultiHeadDotProductAttention):
        told = {"deterministic": True}
        kwargs = {key: kwargs[key] for key in kwargs.keys() - {"deterministic"}}
    elif isinstance(layer, nn.Conv) and layer.conv_general_dilated is None:
        told = {"conv_general_dilated": conv_general_dilated}
    for attribute, value in told.items():
        object.__setattr__(layer, attribute, value)
    return args, kwargs
