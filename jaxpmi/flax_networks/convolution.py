"""The library's convolution gradient for Flax's layers, through the argument that they have."""

from typing import Any

import jax

from jaxpmi.models import layers


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, by `layers.conv` wherever that computes the same.

    That is for a plain convolution of f32[B, H, W, C] with f32[h, w, C, D]: one stride, zeros
    around the image, neither dilation nor groups. Its gradient is several times faster inside a
    loop on a CPU; all else is left to XLA.
    """
    plain = feature_group_count == 1 and lhs.ndim == 4 and len(set(window_strides)) == 1
    plain = plain and _all_one(lhs_dilation) and _all_one(rhs_dilation)
    plain = plain and lhs.dtype == rhs.dtype and not any(v is not None for v in options.values())
    if plain:
        if isinstance(padding, str):
            sizes = lhs.shape[1:3], rhs.shape[:2]
            padding = jax.lax.padtype_to_pads(*sizes, window_strides, padding)
        rows, columns = ((int(before), int(after)) for before, after in padding)
        return layers.conv(lhs, rhs, int(window_strides[0]), (rows, columns))
    given = {name: value for name, value in options.items() if value is not None}
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        **given,
    )


def _all_one(dilation):
    return dilation is None or all(factor == 1 for factor in jax.tree.leaves(dilation))
