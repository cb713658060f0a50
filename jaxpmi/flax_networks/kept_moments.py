"""Layers of which the moments of the input are kept, whatever framework they are of."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpmi.types import Moments

SeenMoments = dict[str, jax.Array]  # mean and var f32[C], and in how many calls, f32[]


def add_call(seen: SeenMoments | None, batch: Moments) -> SeenMoments:
    """What a layer has seen once it is called with an input of these moments.

    A layer that is called more than once in a pass has seen all of its inputs, each call counting
    the same, as they do in the running moments of a BatchNorm.
    """
    mean, var = batch
    if seen is None:
        return {"mean": mean, "var": var, "count": jnp.ones(())}
    share = 1.0 / (seen["count"] + 1.0)
    gap = mean - seen["mean"]
    return {
        "mean": seen["mean"] + share * gap,
        "var": seen["var"] + share * (var - seen["var"]) + share * (1.0 - share) * gap**2,
        "count": seen["count"] + 1.0,
    }


def as_moments(seen: SeenMoments) -> Moments:
    """The moments of what a layer has seen."""
    return Moments(seen["mean"], seen["var"])


def standard_moments(shape: tuple[int, ...]) -> Moments:
    """Mean 0 and variance 1 of a layer that has not been measured, see `remember`."""
    return Moments(jnp.zeros(shape), jnp.ones(shape))


def is_moments(node: Any) -> bool:
    """Whether a node of a tree is a `Moments`."""
    return isinstance(node, Moments)


def never_called(layer: str) -> ValueError:
    """What is raised of a layer that a pass leaves out."""
    return ValueError(
        f"the layer {layer} is not called in a pass, so its input has no moments; leave its kind "
        "out of statistics_of, or the layer out of the network."
    )


def check_channels_last(axis: Any, ndim: int) -> None:
    """Raises where a BatchNorm of an input of `ndim` axes has its channels elsewhere."""
    axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    if axes not in ((-1,), (ndim - 1,)):
        raise ValueError(
            f"a BatchNorm normalises axis {axis} of an input of {ndim} axes; channels must be the "
            "last."
        )
