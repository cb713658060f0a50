"""What is known of images without seeing one: smoothness, valid pixels, shifted views."""

import math

import jax
import jax.numpy as jnp

from jaxpmi.types import PRNGKey


def total_variation(images: jax.Array) -> jax.Array:
    """Mean absolute difference of f32[B, H, W, C] to the right, lower and two diagonal neighbours.

    DeepInversion's l1 form: the mean of each direction's own tensor, summed over directions.
    """
    x = images
    right, down = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    diagonal, other = x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]
    return sum(jnp.abs(d).mean() for d in (right, down, diagonal, other))


def jitter(images: jax.Array, key: PRNGKey, pixels: int) -> jax.Array:
    """Shifts the whole batch f32[B, H, W, C] cyclically by up to `pixels` in each direction."""
    shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
    return jnp.roll(images, shift, axis=(1, 2))


def blur(images: jax.Array) -> jax.Array:
    """Convolves f32[B, H, W, C] with ABD's 5 x 5 Gaussian per channel, borders reflected.

    Per axis exp(-x^2 / 4), normalised: .1117 .2365 .3036 .2365 .1117. As five shifted sums per
    axis, which is faster than a depth-wise convolution on CPU.
    """
    taps = [math.exp(-0.25 * offset**2) for offset in range(-2, 3)]
    x = images
    for axis in (1, 2):
        size = x.shape[axis]
        width = [(2, 2) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x, width, mode="reflect")
        shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5)]
        x = sum(tap / sum(taps) * y for tap, y in zip(taps, shifted, strict=True))
    return x


def blur_distance(images: jax.Array) -> jax.Array:
    """Mean squared difference between f32[B, H, W, C] and its `blur` (baselines 4.1)."""
    return jnp.square(images - blur(images)).mean()
