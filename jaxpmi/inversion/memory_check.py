"""Whether a memory is one of the network that is inverted by it."""

import functools

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import InversionConfig
from jaxpmi.inversion.block_inverse import init_block_inverses
from jaxpmi.inversion.colour import mixtures
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.inversion.variants import uses_layouts
from jaxpmi.memory import Memory
from jaxpmi.memory import has_layouts
from jaxpmi.network import Network


def with_layer_moments(network: Network, memory: Memory | None) -> Network:
    """A network that inversion aims at what a memory has measured of its layers' inputs.

    BatchNorms keep their own moments; without any that were measured it is the network itself.
    """
    if memory is None or not memory.layer_moments:
        return network
    moments = memory.layer_moments
    return network.replace(variables=network.variables._replace(batch_stats=moments))


def check_memory(
    network: Network, memory: Memory, config: InversionConfig, variant: InversionVariant
) -> None:
    """Raises if a memory is not one of this network, as far as shapes and settings tell.

    Blocks before the variant's first one are not inverted.
    """
    first_block = variant.first_block
    counts = network.num_classes, memory.class_stats.count.shape[0]
    if counts[0] != counts[1]:
        raise ValueError(
            f"the memory is of {counts[1]} classes, but the network has {counts[0]}; remember the "
            "data with this network."
        )
    block_inputs, inverses = _block_shapes(_Shapes(network))
    seen = tuple(jax.tree.map(jnp.shape, moments) for moments in memory.block_inputs)
    height, width, channels = network.image_shape
    spectrum = (height, width // 2 + 1, mixtures(channels).shape[1])
    if seen[first_block:] != block_inputs[first_block:] or memory.spectrum.shape != spectrum:
        raise ValueError(
            f"the memory is of another network: it has moments of {len(seen)} blocks' inputs and a "
            f"spectrum of {memory.spectrum.shape}, this one {len(block_inputs)} blocks and "
            f"{spectrum}, or other channels; remember the data with this network."
        )
    if not config.per_layer.is_linear:
        return
    found = tuple(inverse and inverse.weight.shape for inverse in memory.inverses)
    if found[first_block:] != inverses[first_block:]:
        raise ValueError(
            f"the memory has block inverses of shapes {found}, but this network needs {inverses}; "
            f"remember the data with this network and per_layer.start='{config.per_layer.start}'."
        )
    if uses_layouts(config, variant) and not has_layouts(memory, network.image_shape):
        raise ValueError(
            "the memory has no layouts of this network's images; remember the data with this "
            "network and per_layer.start='layout', or set start to 'inverse'."
        )


class _Shapes:
    """A network of which only the shapes count: equal ones are asked for theirs once."""

    def __init__(self, network):
        self.network = jax.eval_shape(lambda x: x, network)
        leaves, treedef = jax.tree.flatten(self.network)
        self._compared = treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    def __hash__(self):
        return hash(self._compared)

    def __eq__(self, other):
        return self._compared == other._compared


@functools.lru_cache(maxsize=16)
def _block_shapes(shapes):
    """Shapes of the moments of every block's input, and of the weights of its inverse."""
    network = shapes.network
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    seen = jax.eval_shape(functools.partial(forward, network.model), network.variables, image)
    inverses = jax.eval_shape(init_block_inverses, network)
    return (
        tuple(jax.tree.map(jnp.shape, moments) for moments in seen.block_inputs),
        tuple(inverse.weight.shape for inverse in inverses),
    )
