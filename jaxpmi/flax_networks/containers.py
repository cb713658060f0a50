"""What a module has below it, in the Flax that is there."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

# Flax before 0.12 has a plain list in their place.
ModuleList = getattr(nnx, "List", list)


def iter_modules(module: nnx.Module) -> Iterator[tuple[tuple[Any, ...], nnx.Module]]:
    """Paths and modules of a module, itself among them; what is shared comes once."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module):
            yield path, node
