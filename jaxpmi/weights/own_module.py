"""Weights of other libraries in a module of one's own, by a table of its layers' names."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpmi.weights.layer_sources import array_source
from jaxpmi.weights.layer_sources import moment_source
from jaxpmi.weights.weight_names import check_tensors


def set_tensors(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str | tuple[str, ...]] | None = None,
) -> nnx.Module:
    """Puts PyTorch's arrays into a module's parameters and BatchNorms, in place.

    Kernels are turned round as their layers need: those of convolutions f32[out, in, h, w] and of
    linear maps f32[out, in], also where one is stored as the other.

    Args:
      module: such as a network with which `from_nnx` goes on.
      tensors: by name, as `read_tensors` returns them; every one has to be used, but for counts of
        batches.
      names: of the module's layers, or single arrays, by their paths such as "stem/conv" or
        "layers/0/norm": what each is called among `tensors`, without "weight" and "bias". Several
        names are joined along the last axis, as queries, keys and values are. Those that are not
        here have dots in place of the slashes.

    Returns:
      The module.

    Raises:
      ValueError: names or shapes that do not fit, with some of them.

    >>> from flax import nnx
    >>> layer = set_tensors(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), {
    ...     "fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}, {"": "fc"})
    >>> layer.kernel[...].sum().item()
    6.0
    """
    names = {} if names is None else names
    shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    sources, needed = {}, {}
    for parts, variable in nnx.to_flat_state(state):
        path = "/".join(map(str, parts))
        source = _source(path, variable, names, shapes)
        sources[path] = source, variable
        needed |= source.shapes(variable.shape)
    counts = {name for name in shapes if name.endswith("num_batches_tracked")}
    check_tensors(Path(type(module).__name__), shapes, needed, counts)
    for source, variable in sources.values():
        value = source.read(variable.shape, lambda name: np.asarray(tensors[name]))
        variable[...] = jnp.asarray(value, variable.dtype)
    nnx.update(module, state)
    return module


def _source(path, variable, names, shapes):
    """Where an array of the module is; a layer that the table lacks has its own path as name."""
    layer, _, kind = path.rpartition("/")
    known = {layer: layer.replace("/", "."), **names}
    if isinstance(variable, nnx.BatchStat):
        return moment_source(known[layer], kind)
    return array_source(path, variable.shape, known, shapes)
