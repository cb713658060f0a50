"""Statistics of colours: which mixtures there are, and what they see that channels do not."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.inversion import colour
from jaxpmi.inversion import priors


def grey_in_rgb(seed=0):
    """Grey textures with a little colour, u8[40, 8, 8, 3]."""
    rng = np.random.default_rng(seed)
    images = rng.random((40, 8, 8, 1)) + rng.normal(0.0, 0.02, (40, 8, 8, 3))
    return (255 * np.clip(images, 0, 1)).astype(np.uint8)


def unit(images):
    return jnp.asarray(images / np.float32(255))


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (2, 4), (3, 7), (4, 11), (5, 5)])
def test_mixtures_are_channels_brightness_and_differences(channels, count):
    weights = colour.mixtures(channels)
    assert weights.shape == (channels, count)
    np.testing.assert_array_equal(weights[:, :channels], np.eye(channels))
    ramp = np.arange(channels, dtype=np.float32)[None]
    mixed = np.asarray(colour.mix(jnp.asarray(ramp)))[0, channels:]
    if channels == 3:
        np.testing.assert_allclose(mixed, [1.0, -1.0, -2.0, -1.0], atol=1e-6)


def test_numbers_cover_the_range_of_every_mixture():
    corners = np.asarray(np.meshgrid(*[[0, 255]] * 3)).reshape(3, -1).T.astype(np.uint8)
    numbers = colour.mix_numbers(corners)
    assert numbers.min(0).tolist() == [0] * 7 and numbers.max(0).tolist() == [255] * 7
    grey = colour.mix_numbers(np.full((1, 3), 77, np.uint8))[0]
    assert grey[:4].tolist() == [77] * 4 and set(grey[4:].tolist()) == {128}
    pixels = np.arange(256, dtype=np.uint8)[:, None]
    np.testing.assert_array_equal(colour.mix_numbers(pixels), pixels)


def test_the_power_of_mixtures_fixes_the_cross_spectra_of_channels():
    """|F_i - F_j|^2 = |F_i|^2 + |F_j|^2 - 2 Re F_i conj(F_j)."""
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype(np.float32)
    waves, power = np.fft.rfft2(x, axes=(1, 2)), np.asarray(priors.power_spectrum(jnp.asarray(x)))
    for k, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        real = 0.5 * (power[..., i] + power[..., j] - power[..., 4 + k])
        np.testing.assert_allclose(
            real, (waves[..., i] * waves[..., j].conj()).real, rtol=1e-3, atol=1e-3
        )


def test_colours_that_every_channel_has_may_still_be_wrong():
    """Channels shuffled against one another keep their own histograms, and are far off."""
    images = grey_in_rgb()
    histogram, pixels = priors.pixel_histogram(images), unit(images).reshape(-1, 3)
    rng = np.random.default_rng(2)
    wrong = np.stack([rng.permutation(np.asarray(pixels)[:, c]) for c in range(3)], 1)
    np.testing.assert_array_equal(np.sort(wrong, 0), np.sort(pixels, 0))
    right, far = (float(priors.histogram_distance(x, histogram)) for x in (pixels, wrong))
    assert right < 1e-3 < 1e-1 < far


def test_waves_that_every_channel_has_may_still_be_wrong():
    """Channels shifted against one another keep their own spectra, and are far off."""
    x = unit(grey_in_rgb())
    spectrum = priors.power_spectrum(x).mean(0)
    wrong = jnp.stack([jnp.roll(x[..., c], 2 * c, axis=1) for c in range(3)], -1)
    np.testing.assert_allclose(
        priors.power_spectrum(wrong).mean(0)[..., :3], spectrum[..., :3], rtol=1e-3, atol=1e-3
    )
    assert priors.spectrum_distance(x, spectrum) < 1e-6
    assert priors.spectrum_distance(wrong, spectrum) > 1.0
