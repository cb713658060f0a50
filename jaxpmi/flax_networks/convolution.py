"""The library's convolution gradient for Flax's layers, through the argument that they have."""

from typing import Any

import jax

from jaxpmi.blocks import convolutions


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
    """`jax.lax.conv_general_dilated`, by the library's own wherever that computes the same.

    That is for a convolution of f32[B, H, W, C] with f32[h, w, C, D], or of every channel with its
    own filter of f32[size, size, 1, C]: one stride, zeros around the image, no dilation. They are
    several times faster inside a loop on a CPU; all else is left to XLA.
    """
    plain = lhs.ndim == 4 and len(set(window_strides)) == 1
    plain = plain and _all_one(lhs_dilation) and _all_one(rhs_dilation)
    plain = plain and lhs.dtype == rhs.dtype and not any(v is not None for v in options.values())
    depthwise = plain and _is_depthwise(lhs, rhs, feature_group_count, window_strides)
    if depthwise or (plain and feature_group_count == 1):
        if isinstance(padding, str):
            sizes = lhs.shape[1:3], rhs.shape[:2]
            padding = jax.lax.padtype_to_pads(*sizes, window_strides, padding)
        rows, columns = ((int(before), int(after)) for before, after in padding)
        stride = int(window_strides[0])
        if depthwise:
            return convolutions.depthwise_conv(lhs, rhs[:, :, 0], stride, (rows, columns))
        return convolutions.conv(lhs, rhs, stride, (rows, columns))
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


def _is_depthwise(lhs, rhs, groups, strides):
    """Whether every channel has one square filter, which skips no pixel."""
    height, width, depth, channels = rhs.shape
    one_each = 1 < groups == lhs.shape[-1] == channels and depth == 1
    return one_each and height == width >= strides[0]


def _all_one(dilation):
    return dilation is None or all(factor == 1 for factor in jax.tree.leaves(dilation))
