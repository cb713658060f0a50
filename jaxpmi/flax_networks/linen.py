"""Any trained Flax Linen module as a `Network`, and a network's variables back."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.flax_networks.classifier import check_identity
from jaxpmi.flax_networks.classifier import identity
from jaxpmi.flax_networks.classifier import layer_arrays
from jaxpmi.flax_networks.constants import Constant
from jaxpmi.flax_networks.kept_moments import standard_moments
from jaxpmi.flax_networks.linen_block import LinenBlock
from jaxpmi.flax_networks.paths import at
from jaxpmi.flax_networks.paths import flat
from jaxpmi.flax_networks.paths import nested
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.types import Moments

KEPT = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Linen module as a backbone of one block.

    Attributes:
      blocks: that one.
      head_has_bias: whether the module's classifier has one.
    """

    blocks: tuple[LinenBlock]
    head_has_bias: bool = False


def from_linen(
    module: nn.Module,
    variables: Any,
    *,
    head: str | None = None,
    train_argument: TrainArgument = None,
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None = None,
    statistics_of: tuple[type, ...] = KEPT,
) -> Network:
    """Takes a trained Linen module as it is, as one block.

    DeepInversion, CMI and distillation ask for no more. PMI then has but one block to invert, and
    its start is no better than that block's linear inverse; a module that is to be inverted block
    by block goes in by `from_nnx`, or by `from_blocks`.

    Args:
      module: the whole network.
      variables: `params` and, with BatchNorm, `batch_stats`; or a TrainState that has these.
        Other collections are constants of the network, never trained.
      head: name of the classifier in `params`, an nn.Dense such as "Dense_0" or "classifier/out".
        None: the outputs are the features, and the head is the identity.
      train_argument: the name of the argument by which the module is told that it trains, such as
        "train", or "!deterministic" for one that says that it does not; or a function from bool to
        arguments. None: it has none, or needs none: BatchNorms and Dropouts are told in any case.
      mean: per channel, of pixels in [0, 1], as the network was trained with.
      std: the same.
      image_shape: (H, W, channels).
      class_names: in the order of the logits; None: "0", "1", ...
      statistics_of: kinds of layers, their subclasses too, whose input's moments are kept. Those of
        BatchNorms are its running ones; others have none of their own, so inversion aims at what
        `remember` has measured.

    Returns:
      A network in evaluation mode; Dropout is off.

    Raises:
      ValueError: a head that is not there, variables of another module, or running moments of a
        layer whose kind is not in `statistics_of`.
    """
    params, batch_stats, constants = _collections(variables)
    path = None if head is None else tuple(head.split("/"))
    classifier = None if path is None else _take_head(params, path)
    block = LinenBlock(module, train_argument, tuple(statistics_of), (), path, constants)
    kept, stats = _kept(block, params, batch_stats, image_shape)
    block = dataclasses.replace(block, kept=kept)
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    y, seen = jax.eval_shape(lambda x: block.apply(params, stats, x), x)
    stats = {name: old or standard_moments(seen[name].mean.shape) for name, old in stats.items()}
    return from_blocks(
        LinenModel((block,), classifier is not None and classifier.bias is not None),
        Variables({block_name(0): params}, {block_name(0): stats}),
        identity(y.shape[-1]) if classifier is None else classifier,
        mean=mean,
        std=std,
        image_shape=image_shape,
        class_names=class_names,
    )


def to_linen_variables(network: Network) -> dict[str, Any]:
    """The variables of a network of `from_linen`, as its module takes them.

    Returns:
      `params`, the head in its place, `batch_stats` where the module has BatchNorms, and the
      other collections as they came.

    Raises:
      ValueError: the network is of no Linen module; a trained head for which it has no place.
    """
    if not isinstance(network.model, LinenModel):
        raise ValueError(
            f"the network is made of {type(network.model).__name__}, not of a Linen module; use a "
            "network of from_linen."
        )
    (block,), params = network.model.blocks, network.variables.params[block_name(0)]
    stats = network.variables.batch_stats[block_name(0)]
    params = jax.tree.map(lambda leaf: leaf, params)  # new dicts: the head is put into them
    if block.head is None:
        check_identity(network.head)
    else:
        *parents, last = block.head
        node = params
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = layer_arrays(network.head, network.model.head_has_bias, "/".join(block.head))
    running = {
        path: stats["/".join(path)]._asdict() for path, is_running in block.kept if is_running
    }
    variables = {"params": params, **({"batch_stats": nested(running)} if running else {})}
    return variables | nested({path: constant.array() for path, constant in block.constants})


def _collections(variables):
    """`params` and `batch_stats` as plain dicts of arrays, and what else there is."""
    if not isinstance(variables, Mapping):
        if not hasattr(variables, "params"):
            raise ValueError(
                f"variables is a {type(variables).__name__}; give a dict with 'params' and, with "
                "BatchNorm, 'batch_stats', or a TrainState."
            )
        variables = {
            "params": variables.params,
            "batch_stats": getattr(variables, "batch_stats", None) or {},
        }
    if "params" not in variables:
        raise ValueError(
            f"variables has {sorted(variables)} and no 'params'; give {{'params': ...}}."
        )
    plain = flax.core.meta.unbox(flax.core.unfreeze(dict(variables)))
    params, batch_stats = plain.pop("params"), plain.pop("batch_stats", {})
    return params, batch_stats, tuple((path, Constant.of(x)) for path, x in flat(plain).items())


def _take_head(params, path):
    """The classifier at a path, which is taken out of `params`."""
    layer = at(params, path)
    if not isinstance(layer, dict) or getattr(layer.get("kernel"), "ndim", 0) != 2:
        raise ValueError(
            f"head='{'/'.join(path)}' names no nn.Dense of the parameters, which are "
            f"{', '.join(sorted(params)[:8])}; give its name."
        )
    *parents, last = path
    del at(params, parents)[last]
    return Head(layer["kernel"], layer.get("bias"))


def _kept(probe, params, batch_stats, image_shape):
    """Paths of the layers whose moments are kept, and their running moments, () of others."""
    met = {}
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = {"params": params, "batch_stats": batch_stats}
    try:
        jax.eval_shape(lambda x: probe.call(variables, x, train=False, met=met), x)
    except (flax.errors.FlaxError, TypeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(probe.module).__name__} cannot be called with these variables and images of "
            f"{image_shape}: {reason} Check train_argument, and whose variables they are."
        ) from error
    kept, stats, used = [], {}, set()
    for path, layer in met.items():
        own = at(batch_stats, path)
        if own is None and isinstance(layer, nn.BatchNorm):
            raise ValueError(
                f"variables has no batch_stats of {'/'.join(path)}; give the module's "
                "'batch_stats' beside its 'params'."
            )
        running = isinstance(own, dict) and set(Moments._fields) <= own.keys()
        kept.append((path, running))
        stats["/".join(path)] = Moments(own["mean"], own["var"]) if running else ()
        used |= {(*path, key) for key in Moments._fields} if running else set()
    others = sorted("/".join(path) for path in flat(batch_stats).keys() - used)
    if others:
        raise ValueError(
            f"batch_stats has {', '.join(others[:5])}, of layers that {type(probe.module).__name__}"
            " does not call or that are none of statistics_of; leave them out, or add their kind, "
            "which must keep a mean and a var."
        )
    return tuple(kept), stats
