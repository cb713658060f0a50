"""What is known of images as such: smoothness, the values and waves of their pixels."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.inversion import colour
from jaxpmi.inversion.objectives import euclidean_norm


def total_variation(
    images: jax.Array, *, norm: Literal["l1", "l2", "batch_l2"] = "l1"
) -> jax.Array:
    """Differences of f32[B, H, W, C] to the right, lower and two diagonal neighbours, as a scalar.

    docs/methods/pmi.md, eq. 8.

    Args:
      images: x.
      norm: "l1": mean absolute difference of each direction, summed over directions
        (DeepInversion). "l2": the Euclidean norm over space of each direction's differences, mean
        over images and channels, summed over directions (PMI for CLIP); it grows with the image.
    """
    x = images
    right, down = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    diagonal, other = x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]
    over = {"l2": (1, 2), "batch_l2": None}
    size = jnp.abs if norm == "l1" else functools.partial(euclidean_norm, axis=over[norm])
    return sum(size(d).mean() for d in (right, down, diagonal, other))


def pixel_norm(images: jax.Array, *, norm: Literal["image", "batch"] = "image") -> jax.Array:
    """Euclidean norm of f32[B, H, W, C], not squared: mean over images, or of the whole batch."""
    return euclidean_norm(images, (1, 2, 3) if norm == "image" else None).mean()


def pixel_histogram(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in u8[N, H, W, C], per mixture of channels, f32[256, K].

    The 256 values are evenly spaced over the mixture's range (`colour.mixtures`); a channel's are
    0..255.
    """
    numbers = colour.mix_numbers(images.reshape(-1, images.shape[-1]))
    return np.stack([np.bincount(n, minlength=256) for n in numbers.T], 1).astype(np.float32)


def quantiles(histogram: jax.Array, levels: jax.Array) -> jax.Array:
    """Values at f32[n] levels in (0, 1), as shares in [0, 1] of their range, f32[n, K].

    `histogram` f32[256, K] counts 256 evenly spaced values.
    """
    shares = jnp.cumsum(histogram, 0) / jnp.maximum(histogram.sum(0, keepdims=True), 1.0)
    find = jax.vmap(jnp.searchsorted, in_axes=(1, None), out_axes=1)
    return jnp.clip(find(shares, levels), 0, 255).astype(jnp.float32) / 255.0


def histogram_distance(pixels: jax.Array, histogram: jax.Array) -> jax.Array:
    """Squared sliced 2-Wasserstein distance of pixels f32[n, C] in [0, 1] to those of `histogram`.

    Zero exactly where the sorted values of every mixture of channels are the quantiles of
    f32[256, K] `histogram`. Mean over mixtures, each in units in which its real values have the
    mean variance of the channels (docs/methods/pmi.md, eq. 10).
    """
    channels = pixels.shape[-1]
    levels = (jnp.arange(pixels.shape[0]) + 0.5) / pixels.shape[0]
    shares = quantiles(histogram, levels)
    if channels == 1:  # by itself, so that results of grey images keep their last bits
        return jnp.square(jnp.sort(pixels, 0) - shares).mean()
    low, high = (limit[None] for limit in colour.value_ranges(channels))
    real = low + (high - low) * shares
    squares = jnp.square(jnp.sort(colour.mix(pixels), 0) - real).mean(0)
    variances = real.var(0)
    units = jnp.maximum(variances[:channels].mean(), 1e-8) / jnp.maximum(variances, 1e-8)
    return (squares * units).mean()


def match_histogram(images: jax.Array, histogram: jax.Array) -> jax.Array:
    """Gives images f32[B, H, W, C] in [0, 1] the pixel values of `histogram`, per channel.

    A monotone map of the values of the whole batch: the pixel of rank r becomes the histogram's
    quantile at r; equal pixels stay equal.
    """

    def match(values, counts):
        ordered = jnp.sort(values)
        below = jnp.searchsorted(ordered, values, side="left")
        upto = jnp.searchsorted(ordered, values, side="right")
        levels = 0.5 * (below + upto) / values.shape[0]
        return quantiles(counts[:, None], levels)[:, 0]

    flat = images.reshape(-1, images.shape[-1])
    counts = histogram[:, : images.shape[-1]]
    return jax.vmap(match, in_axes=1, out_axes=1)(flat, counts).reshape(images.shape)


def power_spectrum(images: jax.Array) -> jax.Array:
    """Squared amplitudes of the Fourier transform of f32[B, H, W, C], f32[B, H, W//2+1, K].

    Of every mixture of channels (`colour.mixtures`). Its mean over images is the autocorrelation of
    pixels: how thick strokes and edges are, not where they are.
    """
    waves = colour.mix(jnp.fft.rfft2(images, axes=(1, 2)))
    return jnp.square(jnp.abs(waves))


def spectrum_distance(images: jax.Array, spectrum: jax.Array) -> jax.Array:
    """Squared distance of the batch's root-mean-square amplitudes to those of real images.

    `spectrum` f32[H, W//2+1, K] is the mean `power_spectrum` of real images; the distance of a
    mixture of channels is relative to its sum: 0 for equal spectra, 1 for a batch of zeros; mean
    over mixtures (docs/methods/pmi.md, eq. 9).
    """
    amplitudes = jnp.sqrt(power_spectrum(images).mean(0) + 1e-6)  # the root has no slope at 0
    squares = jnp.square(amplitudes - jnp.sqrt(spectrum))
    axes = None if images.shape[-1] == 1 else (0, 1)  # as in `histogram_distance`
    return (squares.sum(axes) / jnp.maximum(spectrum.sum(axes), 1e-6)).mean()


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
    """Mean squared distance of f32[B, H, W, C] to its `blur` (docs/methods/baselines.md, eq. 4)."""
    return jnp.square(images - blur(images)).mean()
