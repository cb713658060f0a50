"""Convolutions as pure functions, NHWC throughout: XLA's, or by hand where that is faster."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# Zeros around an image: (size - 1) // 2 on every side, as PyTorch's networks have them, or
# TensorFlow's "SAME", as few as make the output ceil(H / stride), the odd one below and right.
# Or their numbers, (before, after) in height and in width.
Padding = Literal["symmetric", "same"] | tuple[tuple[int, int], tuple[int, int]]

# Which convolutions are written out by hand because that is the faster, by JAX's default backend,
# as `launch/bench.py device` measures it. What is not in the table was not measured yet, or is
# slower by hand: there it is XLA's own convolution, with JAX's own gradient.
HAND_WRITTEN = {
    "cpu": ("gradient", "depthwise"),
    "gpu": (),  # H100: gradients 0.98, depthwise 0.76 of the time by XLA; tpu: not measured yet
}


def _is_hand_written(kind: Literal["gradient", "depthwise"]) -> bool:
    """Whether that kind is faster by hand here; decided when a program is traced.

    `jax.lax.platform_dependent` would trace both versions and put a conditional into programs that
    know no platform yet; this leaves the programs of a CPU as they are. A program for a device
    that is not of the default backend gets the version of the default one: right, maybe slower.
    """
    return kind in HAND_WRITTEN.get(jax.default_backend(), ())


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "symmetric"
) -> jax.Array:
    """Convolves f32[B, H, W, C] with f32[size, size, C, D], padded by zeros.

    With `padding` in numbers the kernel need not be square.
    On CPUs the gradient is written out, and forward-mode differentiation does not pass through it.
    """
    convolve = conv_by_hand if _is_hand_written("gradient") else conv_by_xla
    return convolve(x, kernel, stride, padding)


def conv_by_xla(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """`conv` with JAX's own gradient."""
    return _conv_nhwc(x, kernel, _pads(x, kernel, stride, padding), stride=stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_by_hand(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """`conv` with a gradient that is written out.

    XLA:CPU runs a convolution fast inside a loop only in its canonical NHWC/HWIO form, which JAX's
    own gradient is not: 10 times slower inside `lax.scan`.
    """
    return conv_by_xla(x, kernel, stride, padding)


def _pads(x, kernel, stride, padding):
    """Numbers of zeros (before, after) in height and in width."""
    if not isinstance(padding, str):
        return list(padding)
    size = kernel.shape[0]
    if padding == "symmetric":
        return [((size - 1) // 2,) * 2] * 2
    # What the windows cover beyond the image.
    totals = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
    return [(total // 2, total - total // 2) for total in totals]


def _conv_nhwc(x, kernel, padding, *, stride=1, input_dilation=1, kernel_dilation=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        lhs_dilation=(input_dilation, input_dilation),
        rhs_dilation=(kernel_dilation, kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _conv_forward(x, kernel, stride, padding):
    return conv_by_hand(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, grad):
    """Both gradients as canonical convolutions, of the output gradient and of the input."""
    x, kernel = residuals
    before = [pad for pad, _ in _pads(x, kernel, stride, padding)]
    # Rows of the input from the first to the last window's start, per axis.
    covered = [(n - 1) * stride + 1 for n in grad.shape[1:3]]
    sides = list(zip(kernel.shape[:2], before, covered, x.shape[1:3], strict=True))
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    pads = [(size - 1 - pad, n - c + pad) for size, pad, c, n in sides]
    grad_x = _conv_nhwc(grad, flipped, pads, input_dilation=stride)
    pads = [(pad, size - 1 + c - n - pad) for size, pad, c, n in sides]
    grad_kernel = _conv_nhwc(
        jnp.transpose(x, (3, 1, 2, 0)), grad.transpose(1, 2, 0, 3), pads, kernel_dilation=stride
    )
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


conv_by_hand.defvjp(_conv_forward, _conv_backward)

# Rows of a 3 x 3 kernel that meet the same pixel of the image before it is enlarged: per parity of
# the output's row (or column), what the upper and the lower of two pixels are multiplied by.
_SHARED_TAPS = np.asarray([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def upsampled_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv` by f32[3, 3, C, F] of f32[B, H, W, C] enlarged to nearest neighbours, 2 H x 2 W.

    Four of nine taps at most meet different pixels, so it is one 2 x 2 convolution of the small
    image to four times the channels, one set per parity of row and column: half the time.
    """
    batch, height, width, channels = x.shape
    filters = kernel.shape[-1]
    taps = jnp.einsum("aui,bvj,ijcf->uvcabf", _SHARED_TAPS, _SHARED_TAPS, kernel)
    y = conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), taps.reshape(2, 2, channels, -1))
    y = y.reshape(batch, height + 1, width + 1, 2, 2, filters)
    rows = [
        jnp.stack([y[:, a : a + height, b : b + width, a, b] for b in range(2)], 3)
        for a in range(2)
    ]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, filters)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "same"
) -> jax.Array:
    """Convolves every channel of f32[B, H, W, C] with its own f32[size, size, C], zeros around it.

    The kernel must be square and not smaller than the stride. As with `conv`, forward-mode
    differentiation does not pass through it on CPUs.
    """
    by_hand = _is_hand_written("depthwise")
    convolve = depthwise_conv_by_hand if by_hand else depthwise_conv_by_xla
    return convolve(x, kernel, stride, padding)


def depthwise_conv_by_xla(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`depthwise_conv` as a grouped convolution, with JAX's own gradient."""
    pads = _pads(x, kernel, stride, padding)
    return _conv_nhwc(x, kernel[:, :, None], pads, stride=stride, groups=x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv_by_hand(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """`depthwise_conv` as a sum of shifted images, one per position of the kernel.

    XLA:CPU makes one loop over all of them, many times faster than a grouped convolution inside
    `lax.scan` and than PyTorch's.
    """
    pads, weights = _pads(x, kernel, stride, padding), _position_weights(kernel)
    padded, size = _pad_image(x, pads), kernel.shape[0]
    shape = [(n - size) // stride + 1 for n in padded.shape[1:3]]
    return sum(_window(padded, i, shape, stride) * weights[i] for i in np.ndindex(kernel.shape[:2]))


def _position_weights(kernel):
    """f32[size, size, 1, 1, 1, C]: of every position, weights to multiply images with."""
    return kernel[:, :, None, None, None]


def _pad_image(x, pads):
    """Zeros in height and width, as an array of its own: the loop over windows would redo them."""
    return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))


def _window(x, start, shape, stride=1):
    """Every `stride`-th pixel from `start`, f32[B, *shape, C]."""
    (row, column), (height, width) = start, shape
    rows = slice(row, row + (height - 1) * stride + 1, stride)
    columns = slice(column, column + (width - 1) * stride + 1, stride)
    return x[:, rows, columns]


def _depthwise_forward(x, kernel, stride, padding):
    return depthwise_conv_by_hand(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, grad):
    x, kernel = residuals
    pads = _pads(x, kernel, stride, padding)
    padded = _pad_image(x, pads)
    covered = [(n - 1) * stride + 1 for n in grad.shape[1:3]]

    def of_position(start):
        corner = (0, *start, 0)
        window = jax.lax.dynamic_slice(padded, corner, (x.shape[0], *covered, x.shape[3]))
        rows = (window[:, ::stride, ::stride] * grad).reshape(-1, x.shape[3])
        return jnp.dot(jnp.ones(len(rows)), rows, precision=jax.lax.Precision.HIGHEST)

    # A loop, because a program with every position's sum takes long to compile.
    positions = tuple(jnp.indices(kernel.shape[:2]).reshape(2, -1))
    grad_kernel = jax.lax.map(of_position, positions).reshape(kernel.shape)
    return _depthwise_input_gradient(grad, kernel, stride, x.shape, pads), grad_kernel


def _depthwise_input_gradient(grad, kernel, stride, shape, pads):
    """One sum of windows per remainder of a pixel's padded row and column by the stride.

    They are interleaved at last: to put zeros between the gradient's pixels instead would be
    stride^2 times the work.
    """
    size, before = kernel.shape[0], [pad for pad, _ in pads]
    reach = (size - 1) // stride  # windows before a pixel's own that cover it too
    counts = [-(-(n + pad) // stride) for n, pad in zip(shape[1:3], before, strict=True)]
    behind = [max(n - m, 0) for n, m in zip(counts, grad.shape[1:3], strict=True)]
    padded, weights = _pad_image(grad, [(reach, n) for n in behind]), _position_weights(kernel)

    def with_remainders(row, column):
        positions = [(i, j) for i in range(row, size, stride) for j in range(column, size, stride)]
        starts = [(reach - i // stride, reach - j // stride) for i, j in positions]
        windows = [_window(padded, start, counts) for start in starts]
        return sum(w * weights[i] for w, i in zip(windows, positions, strict=True))

    remainders = range(stride)
    rows = [jnp.stack([with_remainders(i, j) for j in remainders], 3) for i in remainders]
    whole = jnp.stack(rows, 2).reshape(shape[0], *(n * stride for n in counts), shape[-1])
    return _window(whole, before, shape[1:3])


depthwise_conv_by_hand.defvjp(_depthwise_forward, _depthwise_backward)
