"""Removal of filters: how much each matters, which ones go, and the smaller network that is left.

Importance is the first-order Taylor estimate of Molchanov et al. (2019), as DeepInversion prunes
with it (docs/distillation_and_pruning.md, eqs. 3, 4).
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.channels import IMAGES
from jaxpmi.blocks.channels import channel_layout
from jaxpmi.blocks.channels import layer_of
from jaxpmi.blocks.channels import split_layer
from jaxpmi.network import Network
from jaxpmi.types import Params

Kept = dict[str, tuple[int, ...]]  # of every group the channels that stay, ascending: plain numbers


class FilterGroup(NamedTuple):
    """Channels of which each is removed as a whole.

    Attributes:
      size: channels.
      num_filters: that write each of them: one channel removed is this many filters removed.
    """

    size: int
    num_filters: int


def kept_of_both(first: Kept, second: Kept) -> Kept:
    """What is left of a network of which `first` was kept, and of that `second`."""
    return {
        name: tuple(channels[i] for i in second[name]) if name in second else channels
        for name, channels in first.items()
    }


def filter_groups(network: Network) -> dict[str, FilterGroup]:
    """Everything that can be removed from a network, by names that removal does not change.

    Args:
      network: of prunable blocks; of its parameters only the shapes matter.

    Returns:
      Groups in the order of the blocks. The sum of `size * num_filters` counts every filter once.

    Raises:
      ValueError: a block is not a `PrunableBlock`.
    """
    layout = channel_layout(network.model, network.variables)
    counts = dict.fromkeys(layout.sizes, 0)
    for block in layout.blocks:
        for layer in block.layers.values():
            for name in layer.axes[-1] if layer.has_filters else ():
                counts[name] += 1
    del counts[IMAGES]  # a depthwise convolution of them would count
    return {name: FilterGroup(layout.sizes[name], count) for name, count in counts.items() if count}


def filter_importance(
    network: Network,
    grads: dict[str, Params],
    *,
    kind: Literal["gate", "filter"] | None = None,
) -> dict[str, jax.Array]:
    """Squared first-order change of the loss if a channel were 0, from one batch's gradient.

    Of a layer it is (sum_w w dL/dw)^2 over the layer's parameters of that channel, and of a channel
    the sum over the layers: with "gate" all BatchNorms of the channel, (gamma dL/dgamma + beta
    dL/dbeta)^2, and with "filter" all convolutions that write it. In a network that normalises
    before its convolutions, the BatchNorms of the residual stream are those that read it.

    Average it over batches. At the minimum of a loss all is 0, so distillation from the network
    itself cannot rank its filters; cross-entropy can. "filter" needs gradients of the network in
    evaluation mode: normalised by the batch, no filter's scale matters, and all is 0.

    Args:
      network: whose filters they are.
      grads: gradient of the loss, in the structure of `network.variables.params`.
      kind: which layers count; None: "gate" if there is a BatchNorm for every group, else "filter".

    Returns:
      f32[size] per group of `filter_groups`.

    Raises:
      ValueError: "gate", but a group of channels has no BatchNorm.
    """
    groups = filter_groups(network)
    scores = _scores(network, grads, "gate" if kind is None else kind)
    if kind is None and not groups.keys() <= scores.keys():
        scores = _scores(network, grads, "filter")
    for name in groups:
        if name not in scores:
            raise ValueError(
                f"no BatchNorm shows the importance of the channels {name}; measure it with "
                "kind='filter'."
            )
    return {name: scores[name] for name in groups}


def _scores(network, grads, kind):
    """Importance by group, of the groups that layers of this kind show."""
    variables = network.variables
    layout, scores = channel_layout(network.model, variables), {}
    which = ("filter", "gate").index(kind)
    for i, block in enumerate(layout.blocks):
        own, slopes = variables.params[block_name(i)], grads[block_name(i)]
        for name, layer in block.layers.items():
            weights, gradient = (split_layer(tree, name)[which] for tree in (own, slopes))
            if weights:
                sizes = [layout.sizes[group] for group in layer.axes[-1]]
                parts = jnp.split(_squared_effect(weights, gradient), np.cumsum(sizes)[:-1])
                for group, part in zip(layer.axes[-1], parts, strict=True):
                    scores[group] = scores.get(group, 0.0) + part
    return scores


def choose_filters(
    groups: Mapping[str, FilterGroup],
    importance: Mapping[str, Any],
    *,
    num_removed: int,
    min_filters: int = 1,
) -> Kept:
    """Keeps all but the least important channels, ranked over the whole network.

    Args:
      groups: of the network.
      importance: f32[size] per group; of equal ones, those of early blocks and channels go first.
      num_removed: filters to be removed. A channel of several filters counts as so many, so up to
        its `num_filters` - 1 more may go.
      min_filters: channels that stay in every group, at least 1.

    Returns:
      The channels that stay.

    Raises:
      ValueError: so many cannot be removed, or importance is not finite.
    """
    if min_filters < 1:
        raise ValueError(f"min_filters={min_filters}, but a layer needs at least 1 filter.")
    spare = {name: max(group.size - min_filters, 0) for name, group in groups.items()}
    available = sum(spare[name] * group.num_filters for name, group in groups.items())
    if num_removed > available:
        raise ValueError(
            f"{num_removed} filters cannot be removed: with min_filters={min_filters} only "
            f"{available} of {sum(g.size * g.num_filters for g in groups.values())} can; remove "
            "fewer."
        )
    scores = {name: np.asarray(importance[name], np.float64) for name in groups}
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise ValueError("importance is not finite; check the loss and the images it is of.")
    ranking = sorted(
        (scores[name][channel], position, channel, name)
        for position, (name, group) in enumerate(groups.items())
        for channel in range(group.size)
    )
    removed = {name: set() for name in groups}
    for _, _, channel, name in ranking:
        if num_removed <= 0:
            break
        if len(removed[name]) < spare[name]:
            removed[name].add(channel)
            num_removed -= groups[name].num_filters
    return {
        name: tuple(c for c in range(group.size) if c not in removed[name])
        for name, group in groups.items()
    }


def remove_filters(network: Network, kept: Mapping[str, Sequence[int]]) -> Network:
    """The network without the channels that are not kept; it computes what it did with them at 0.

    Traceable in the arrays, so `jax.eval_shape` gives the shapes of a pruned network, from which a
    checkpoint is restored. Any pytree in the structure of the parameters, such as momentum, can
    take their place.

    Args:
      network: of prunable blocks.
      kept: the channels that stay, per group of `filter_groups`.

    Returns:
      The smaller network.

    Raises:
      ValueError: `kept` does not fit the network.
    """
    model, variables, head = network.model, network.variables, network.head
    layout = channel_layout(model, variables)
    _check_kept(filter_groups(network), kept)

    def indices(groups):
        """Positions of what is kept along an axis on which these groups follow one another."""
        starts = np.cumsum([0, *(layout.sizes[name] for name in groups)])
        parts = [kept.get(name, range(layout.sizes[name])) for name in groups]
        return np.concatenate(
            [np.asarray(part) + start for part, start in zip(parts, starts, strict=False)]
        )

    blocks, params, batch_stats = [], {}, {}
    for i, (block, shape) in enumerate(zip(model.blocks, layout.blocks, strict=True)):
        name = block_name(i)
        axes = {key: [indices(g) for g in layer.axes] for key, layer in shape.layers.items()}
        params[name] = _take(variables.params[name], axes)
        batch_stats[name] = _take(variables.batch_stats[name], axes)
        blocks.append(block.narrow({key: len(indices(g)) for key, g in shape.groups.items()}))
    rows = indices(layout.blocks[-1].groups["out"])
    return network.replace(
        variables=Variables(params, batch_stats),
        head=head._replace(kernel=jnp.take(head.kernel, rows, axis=0)),
        model=dataclasses.replace(model, blocks=tuple(blocks)),
    )


def filter_mask(network: Network, kept: Mapping[str, jax.Array]) -> dict[str, Params]:
    """What multiplies a network's parameters so that channels are 0 everywhere, but still there.

    Masked so, the network computes what `remove_filters` leaves of it, at its old size: one
    program for any choice of channels.

    Args:
      network: of whose parameters only the shapes matter.
      kept: bool[size] per group of `filter_groups`, true for channels that stay; may be traced.

    Returns:
      0 or 1 for every parameter, in the structure of `network.variables.params`; 0 for the filters,
      scales and biases of channels that do not stay.
    """
    layout, masks = channel_layout(network.model, network.variables), {}
    fixed = layout.sizes.keys() - filter_groups(network).keys()
    kept = {**kept, **{name: jnp.ones(layout.sizes[name], bool) for name in fixed}}
    for i, block in enumerate(layout.blocks):
        params = network.variables.params[block_name(i)]
        of_layer = {
            name: jnp.concatenate([kept[group] for group in layer.axes[-1]])
            for name, layer in block.layers.items()
        }
        masks[block_name(i)] = _mask_last_axis(params, of_layer)
    return masks


def _squared_effect(params, grads):
    """(sum_w w dL/dw)^2 per channel of a layer, over arrays whose last axis is that."""
    products = jax.tree.map(lambda w, g: (w * g).reshape(-1, w.shape[-1]).sum(0), params, grads)
    return jnp.square(sum(jax.tree.leaves(products)))


def _mask_last_axis(params, masks):
    def mask(path, leaf):
        return jnp.broadcast_to(masks[layer_of(path, masks)].astype(leaf.dtype), leaf.shape)

    return jax.tree_util.tree_map_with_path(mask, params)


def _take(tree, indices):
    """Selects along the last axes of a layer's arrays; one with fewer axes has only the last."""

    def select(path, leaf):
        own = indices[layer_of(path, indices)]
        for axis, index in enumerate(reversed(own[-leaf.ndim :]), start=1):
            leaf = jnp.take(leaf, index, axis=-axis)
        return leaf

    return jax.tree_util.tree_map_with_path(select, tree)


def _check_kept(groups, kept):
    if set(kept) != set(groups):
        raise ValueError(
            f"kept has the groups {sorted(kept)}, but the network has {sorted(groups)}; give "
            "the channels of every group."
        )
    for name, group in groups.items():
        channels = list(kept[name])
        ascending = channels == sorted(set(channels))
        if not channels or not ascending or channels[0] < 0 or channels[-1] >= group.size:
            raise ValueError(
                f"kept channels of {name} are {channels}; give at least one, ascending, each "
                f"once, from 0 to {group.size - 1}."
            )
