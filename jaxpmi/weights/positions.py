"""Positions of a vision transformer for images of another size than it was trained with."""

import math
from collections.abc import Callable

import jax
import numpy as np

from jaxpmi.weights.stored_tensors import StoredTensors


def resample_positions(
    stored: StoredTensors, name: str, side: int, say: Callable[[str], None]
) -> StoredTensors:
    """Stored tensors in which the positions are those of `side` x `side` patches.

    They are interpolated bicubically, with antialiasing where there are fewer, as timm does. That
    of the class token, which comes first, stays.

    Args:
      stored: the tensors of a file.
      name: of the positions, f32[(1,) N + 1, D] with N of a square.
      side: patches in a row.
      say: is told of a change.
    """
    shape = stored.shapes.get(name, ())
    if len(shape) < 2 or shape[-2] == side**2 + 1:
        return stored
    old = math.isqrt(shape[-2] - 1)
    if old**2 + 1 != shape[-2]:
        raise ValueError(
            f"{stored.path} has {shape[-2]} positions, which are no class token and a square of "
            f"patches, so they cannot be brought to {side} x {side} patches."
        )
    say(f"positions of {old} x {old} patches are interpolated to {side} x {side}")

    def get(wanted):
        tensor = stored.get(wanted)
        return tensor if wanted != name else _resampled(np.asarray(tensor, np.float32), old, side)

    shapes = {**stored.shapes, name: (*shape[:-2], side**2 + 1, shape[-1])}
    return stored._replace(shapes=shapes, get=get)


def _resampled(positions, old, side):
    """f32[..., old^2 + 1, D] -> f32[..., side^2 + 1, D]."""
    first, rest = positions[..., :1, :], positions[..., 1:, :]
    lead, dim = rest.shape[:-2], rest.shape[-1]
    grid = rest.reshape(-1, old, old, dim)
    grid = jax.image.resize(grid, (len(grid), side, side, dim), "cubic", antialias=True)
    return np.concatenate([first, np.asarray(grid).reshape(*lead, side**2, dim)], -2)
