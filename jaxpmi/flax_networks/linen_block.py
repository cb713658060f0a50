"""A Flax Linen module as one block: a pure function that returns the moments of layers' inputs.

Calls of layers are intercepted while the module is applied; the module itself stays as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpmi.flax_networks.convolution import conv_general_dilated
from jaxpmi.flax_networks.kept_moments import add_call
from jaxpmi.flax_networks.kept_moments import as_moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

Path = tuple[str, ...]  # of a layer in the module, as its variables have it
SEEN = "jaxpmi_seen"  # the collection in which layers note what they see

# What of the module's call says whether it trains: the name of an argument, with "!" before it
# where the argument says that it does not; a function from that to arguments; or nothing.
TrainArgument = str | Callable[[bool], dict[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class LinenBlock:
    """A whole Linen module; follows the protocol `Block`.

    Attributes:
      module: hashable, as Linen modules are.
      train_argument: how it is told whether it trains.
      kinds: of layers whose input's moments are kept.
      kept: paths of these layers, and whether they normalise by running moments.
      head: path of the classifier whose input is the block's output; None: the output itself is.
    """

    module: nn.Module
    train_argument: TrainArgument
    kinds: tuple[type, ...]
    kept: tuple[tuple[Path, bool], ...] = ()
    head: Path | None = None

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
        y, seen = self.call(variables, x, train=train)
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
            y = at(seen, self.head)["input"]
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
                layer.sow(SEEN, "moments", args[0], reduce_fn=add_call, init_fn=lambda: None)
            if isinstance(layer, nn.Dropout):
                return args[0]
            if isinstance(layer, nn.Conv) and layer.conv_general_dilated is None:
                # Of this bound copy alone, which is gone after the call.
                object.__setattr__(layer, "conv_general_dilated", conv_general_dilated)
            if self.head is not None and layer.path == self.head:
                layer.sow(SEEN, "input", args[0], reduce_fn=lambda _, new: new, init_fn=tuple)
                return jnp.zeros((*args[0].shape[:-1], layer.features), args[0].dtype)
            return call(*args, **kwargs)

        with nn.intercept_methods(tap):
            y, new = self.module.apply(
                variables, x, mutable=[SEEN, "batch_stats"], **self._arguments(train)
            )
        return y, new.get(SEEN, {})

    def _arguments(self, train):
        if self.train_argument is None:
            return {}
        if callable(self.train_argument):
            return self.train_argument(train)
        name = self.train_argument.removeprefix("!")
        return {name: train if name == self.train_argument else not train}


def at(tree: dict[str, Any], path: Path) -> Any:
    """What is at a path of nested dicts; None: nothing."""
    for part in path:
        tree = tree.get(part) if tree is not None else None
    return tree


def nested(values: dict[Path, Any]) -> dict[str, Any]:
    """Nested dicts of values by their paths."""
    tree = {}
    for path, value in values.items():
        *parents, last = path
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
