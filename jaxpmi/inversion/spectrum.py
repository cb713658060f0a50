"""Images as weighted Fourier coefficients, in which Adam descends faster than in pixels.

Photographs have amplitudes of about 1 / frequency and channels that rise and fall together. Adam
gives every coordinate steps of equal size: in pixels that is white noise of all colours, here it is
what photographs are made of. (Olah et al., Feature Visualization, 2017; Mordvintsev et al.,
Differentiable Image Parameterizations, 2018.)
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

# Deviations of photographs along brightness, red - blue and green - (red + blue), brightness = 1.
_COLOUR_DEVIATIONS = (1.0, 0.28, 0.13)
_COLOUR_AXES = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
_MARGIN = 1e-3  # from black and white, where an image has no finite coefficients
_START_DEVIATION = 0.01  # of the coefficients of `spectral_start`


def images_of(
    coefficients: jax.Array, low: jax.Array, high: jax.Array, *, image_shape: tuple[int, int, int]
) -> jax.Array:
    """The images f32[B, H, W, C] that f32[B, H, W//2+1, C, 2] coefficients stand for.

    A sigmoid keeps their pixels between `low` and `high`; zeros are the grey in between.

    Args:
      coefficients: real and imaginary parts, in units of the typical amplitude.
      low: black, in the units of the images, f32[1, 1, 1, C].
      high: white.
      image_shape: (H, W, C).
    """
    height, width, channels = image_shape
    amplitudes = jax.lax.complex(coefficients[..., 0], coefficients[..., 1])
    amplitudes = amplitudes * _typical_amplitudes(height, width)
    waves = jnp.fft.irfft2(amplitudes, s=(height, width), axes=(1, 2), norm="ortho")
    return low + (high - low) * jax.nn.sigmoid(waves @ _colours(channels))


def coefficients_of(images: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The inverse of `images_of`, f32[B, H, W//2+1, C, 2], but for black and white pixels.

    These are moved inwards by a thousandth of the range.
    """
    _, height, width, channels = images.shape
    shares = jnp.clip((images - low) / (high - low), _MARGIN, 1.0 - _MARGIN)
    waves = jax.scipy.special.logit(shares) @ np.linalg.inv(_colours(channels))
    amplitudes = jnp.fft.rfft2(waves, axes=(1, 2), norm="ortho")
    amplitudes = amplitudes / _typical_amplitudes(height, width)
    return jnp.stack([amplitudes.real, amplitudes.imag], -1)


def spectral_start(
    labels: jax.Array,
    key: PRNGKey,
    low: jax.Array,
    high: jax.Array,
    *,
    image_shape: tuple[int, int, int],
) -> jax.Array:
    """Grey images f32[B, H, W, C] with a trace of noise that has the spectrum of photographs.

    They are on the devices on which i32[B] `labels` are; `low` and `high` as for `images_of`.
    """
    height, width, channels = image_shape
    moments = Moments(jnp.zeros(()), jnp.asarray(_START_DEVIATION**2))
    noise = draw_start(moments, (height, width // 2 + 1, channels, 2), key, labels)
    return images_of(noise, low, high, image_shape=image_shape)


def _typical_amplitudes(height, width):
    """1 / (4 f), f in cycles per pixel and at least one per image, f32[1, H, W//2+1, 1]."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequencies = np.maximum(np.hypot(rows, columns), 1.0 / max(height, width))
    return (0.25 / frequencies).astype(np.float32)[None, :, :, None]


def _colours(channels):
    """From uncorrelated to actual channels, f32[C, C]; only those of RGB are correlated."""
    if channels != 3:
        return np.eye(channels, dtype=np.float32)
    axes = np.asarray(_COLOUR_AXES, np.float32)
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    return axes * np.asarray(_COLOUR_DEVIATIONS, np.float32)[:, None]
