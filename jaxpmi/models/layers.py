"""Convolution and BatchNorm as pure functions on small dicts, NHWC throughout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.models.blockwise import channel_moments
from jaxpmi.types import Moments
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

BATCH_NORM_EPSILON = 1e-5


def draw_normal(key: PRNGKey, shape: tuple[int, ...], std: float) -> jax.Array:
    """Initial weights f32[shape] from N(0, std^2).

    Drawn on the host from the key's bits: `jax.random` would compile a program for every shape.
    Inside a trace (`jit`, `eval_shape`) they are other numbers of the same distribution.
    """
    if isinstance(key, jax.core.Tracer):
        return std * jax.random.normal(key, shape)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return jnp.asarray(np.float32(std) * rng.standard_normal(shape, np.float32))


def init_conv(key: PRNGKey, size: int, in_channels: int, out_channels: int) -> jax.Array:
    """He-normal (fan-out) kernel f32[size, size, in, out], as CIFAR ResNets are initialised."""
    scale = (2.0 / (size * size * out_channels)) ** 0.5
    return draw_normal(key, (size, size, in_channels, out_channels), scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves f32[B, H, W, C] with symmetric zero padding of (size - 1) // 2.

    The gradient is written out because XLA:CPU runs a convolution fast inside a loop only in its
    canonical NHWC/HWIO form, which JAX's own gradient is not: 10 times slower inside `lax.scan`.
    """
    pad = (kernel.shape[0] - 1) // 2
    return _conv_nhwc(x, kernel, ((pad, pad), (pad, pad)), stride=stride)


def _conv_nhwc(x, kernel, padding, *, stride=1, input_dilation=1, kernel_dilation=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        lhs_dilation=(input_dilation, input_dilation),
        rhs_dilation=(kernel_dilation, kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _conv_forward(x, kernel, stride):
    return conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride, residuals, grad):
    """Both gradients as canonical convolutions, of the output gradient and of the input."""
    x, kernel = residuals
    size = kernel.shape[0]
    pad = (size - 1) // 2
    # Rows of the input that a strided output of this size covers, per axis.
    covered = [(n - 1) * stride + 1 for n in grad.shape[1:3]]
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    padding = [(size - 1 - pad, n - c + pad) for n, c in zip(x.shape[1:3], covered, strict=True)]
    grad_x = _conv_nhwc(grad, flipped, padding, input_dilation=stride)
    padding = [(pad, size - 1 + c - n - pad) for n, c in zip(x.shape[1:3], covered, strict=True)]
    grad_kernel = _conv_nhwc(
        x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), padding, kernel_dilation=stride
    )
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


conv.defvjp(_conv_forward, _conv_backward)

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


def init_batch_norm(channels: int, scale: float = 1.0) -> tuple[Params, Moments]:
    """Affine parameters, and running moments of a standard Gaussian."""
    # A dtype, so that the scale is not weakly typed: training would be compiled once more for it.
    params = {"scale": jnp.full((channels,), scale, jnp.float32), "bias": jnp.zeros((channels,))}
    return params, Moments(jnp.zeros((channels,)), jnp.ones((channels,)))


def batch_norm(
    params: Params, running: Moments, x: jax.Array, *, train: bool
) -> tuple[jax.Array, Moments]:
    """Normalises f32[..., C]; also returns the batch's moments of `x`.

    In evaluation mode the layer is one affine map, so the moments cost nothing unless used. With
    `x` in bfloat16 the output is too, but not the moments nor what is computed from them.
    """
    batch = channel_moments(x)
    mean, var = batch if train else running
    scale = params["scale"] * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    shape = (1,) * (x.ndim - 1) + (-1,)
    y = (x - mean.reshape(shape)) * scale.reshape(shape) + params["bias"].reshape(shape)
    return y.astype(x.dtype), batch
