"""Any trained Flax NNX module as a `Network`, and a network's parameters back into a module."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.flax_networks.classifier import check_identity
from jaxpmi.flax_networks.classifier import identity
from jaxpmi.flax_networks.classifier import layer_arrays
from jaxpmi.flax_networks.nnx_block import find
from jaxpmi.flax_networks.nnx_block import name
from jaxpmi.flax_networks.nnx_model import KEPT
from jaxpmi.flax_networks.nnx_model import NnxModel
from jaxpmi.flax_networks.nnx_model import as_model
from jaxpmi.flax_networks.nnx_parts import Blocks
from jaxpmi.flax_networks.paths import flat
from jaxpmi.flax_networks.train_argument import TrainArgument
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.network import from_blocks


def from_nnx(
    module: nnx.Module,
    *,
    blocks: Blocks | None = None,
    head: nnx.Linear | None = None,
    train_argument: TrainArgument = None,
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None = None,
    statistics_of: tuple[type, ...] = KEPT,
    statistics_axis: StatisticsAxis = "channel",
) -> Network:
    """Takes a trained NNX module as it is; it is neither rewritten nor changed.

    Args:
      module: the whole network; its arrays are shared, not copied.
      blocks: what an image passes through, first to last, up to the feature that `head` reads:
        parts of `module`, plain functions such as a mean over space, which join the part before
        them, and lists of equal parts in a row, such as the layers of a transformer, which run as
        one scan. Each maps one array to one. None: the whole module is one block. That will do
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
      statistics_axis: per what moments are kept, of layers and of the blocks' inputs: "channel",
        or "token" for f32[B, tokens, D], per position.

    Returns:
      A network in evaluation mode, whose random layers are off. Arrays of the module that are
      neither parameters nor a BatchNorm's moments are constants of it, never trained.

    Raises:
      ValueError: blocks that do not fit each other, leave parameters of the module out or share
        some; running moments of a layer whose kind is not in `statistics_of`.
    """
    classifier = None if head is None else _classifier(head)
    model, variables, dim = as_model(
        module,
        blocks=blocks,
        head=head,
        train_argument=train_argument,
        image_shape=image_shape,
        statistics_of=statistics_of,
        statistics_axis=statistics_axis,
    )
    return from_blocks(
        model,
        variables,
        identity(dim) if classifier is None else classifier,
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
        find(module, path)[...] = value
    return module


def _values(network, found):
    """The network's arrays by their paths in a module that has the paths `found`."""
    model, values = network.model, {}
    for i, (block, places) in enumerate(zip(model.blocks, model.places, strict=True)):
        own = [tree[block_name(i)] for tree in network.variables]
        if isinstance(block, Stack):
            layers = [jax.tree.map(lambda x, n=n: x[n], own) for n in range(block.depth)]
            block = block.block
        else:
            layers = [own]
        for place, (params, stats) in zip(places, layers, strict=True):
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


def _classifier(head):
    """A linear layer as the network has its classifier."""
    arrays = nnx.to_pure_dict(nnx.state(head, nnx.Param))
    if getattr(arrays.get("kernel"), "ndim", 0) != 2 or arrays.keys() - {"kernel", "bias"}:
        raise ValueError(
            f"head is a {type(head).__name__} with the parameters {sorted(arrays)}; give an "
            "nnx.Linear, or leave it to the blocks and pass head=None."
        )
    return Head(arrays["kernel"], arrays.get("bias"))
