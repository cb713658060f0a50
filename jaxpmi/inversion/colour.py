"""Colours: in which mixtures of channels statistics of pixels are taken.

Statistics of every channel by itself say nothing of how they go together: a batch of which each
channel has its right values can be of any colours, a grey texture among them coloured. Those of
differences of channels do: the values of all mixtures are a sliced view of the joint distribution,
and their power spectra fix the real parts of all cross-spectra.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

MOST_CHANNELS = 4  # of which pairs are taken


def mixtures(channels: int) -> np.ndarray:
    """Weights f32[C, K] of the channels in every mixture; first the C channels themselves.

    Of two to four channels then follow brightness (their mean) and the difference of every pair:
    K = 7 for RGB. Grey has one mixture, and more than four channels stay by themselves.
    """
    columns = [np.eye(channels, dtype=np.float32)]
    if 1 < channels <= MOST_CHANNELS:
        columns.append(np.full((channels, 1), 1.0 / channels, np.float32))
        columns += [
            (columns[0][:, i] - columns[0][:, j])[:, None]
            for i, j in itertools.combinations(range(channels), 2)
        ]
    return np.concatenate(columns, 1)


def value_ranges(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value f32[K] of every mixture of channels in [0, 1]."""
    weights = mixtures(channels)
    return np.minimum(weights, 0.0).sum(0), np.maximum(weights, 0.0).sum(0)


def mix(x: jax.Array) -> jax.Array:
    """Mixtures f[..., K] of channels f[..., C]; one channel as it is."""
    channels = x.shape[-1]
    if channels == 1:
        return x
    return jnp.dot(x, mixtures(channels), precision=jax.lax.Precision.HIGHEST)


def mix_numbers(pixels: np.ndarray) -> np.ndarray:
    """The mixtures of u8[n, C], scaled to whole numbers from 0 to 255 of their range, u8[n, K]."""
    channels = pixels.shape[-1]
    if channels == 1:
        return pixels
    low, high = value_ranges(channels)
    mixed = pixels.astype(np.float32) @ mixtures(channels)
    return np.rint((mixed - 255.0 * low) / (high - low)).astype(np.uint8)
