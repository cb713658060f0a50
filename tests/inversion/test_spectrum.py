"""Images as weighted Fourier coefficients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.inversion import spectrum

KEY = jax.random.key(0)
LOW = jnp.asarray([-1.0, -0.5, -2.0]).reshape(1, 1, 1, 3)
HIGH = jnp.asarray([1.5, 2.0, 0.0]).reshape(1, 1, 1, 3)


def random_images(*shape):
    shares = np.random.default_rng(0).uniform(0.05, 0.95, shape).astype(np.float32)
    low, high = limits(shape[-1])
    return low + (high - low) * shares


def limits(channels):
    return LOW[..., :channels], HIGH[..., :channels]


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 9, 3), (6, 5, 1)])
def test_coefficients_stand_for_the_images_they_are_of(shape):
    images, low_and_high = random_images(2, *shape), limits(shape[-1])
    coefficients = spectrum.coefficients_of(images, *low_and_high)
    assert coefficients.shape == (2, shape[0], shape[1] // 2 + 1, shape[2], 2)
    again = spectrum.images_of(coefficients, *low_and_high, image_shape=shape)
    np.testing.assert_allclose(again, images, atol=1e-4)


def test_images_keep_to_valid_pixels_and_those_at_the_limits_stay_finite():
    large = 100.0 * jax.random.normal(KEY, (2, 8, 5, 3, 2))
    images = spectrum.images_of(large, LOW, HIGH, image_shape=(8, 8, 3))
    assert (images >= LOW).all() and (images <= HIGH).all()
    black_and_white = jnp.concatenate([jnp.broadcast_to(x, (1, 8, 8, 3)) for x in (LOW, HIGH)])
    coefficients = spectrum.coefficients_of(black_and_white, LOW, HIGH)
    again = spectrum.images_of(coefficients, LOW, HIGH, image_shape=(8, 8, 3))
    np.testing.assert_allclose(again, black_and_white, atol=2.6e-3)  # a thousandth of the range


def test_coefficients_of_equal_size_have_amplitudes_of_one_over_frequency():
    """A wave at frequency f is, per coefficient, 1 / (4 f) times the orthonormal one."""
    low_and_high = (
        -2.0 * jnp.ones((1, 1, 1, 1)),
        2.0 * jnp.ones((1, 1, 1, 1)),
    )  # where the sigmoid has slope 1

    def size(row, column, height=16, width=16):
        small = jnp.zeros((1, height, width // 2 + 1, 1, 2)).at[0, row, column, 0, 0].set(1e-3)
        wave = spectrum.images_of(small, *low_and_high, image_shape=(height, width, 1))
        return 1e3 * np.linalg.norm(wave)

    # A real wave of interior frequency is two of the complex ones: factor sqrt(2).
    np.testing.assert_allclose(size(2, 1), np.sqrt(2) / (4 * np.hypot(2, 1) / 16), rtol=1e-3)
    np.testing.assert_allclose(size(-2, 1), size(2, 1), rtol=1e-3)
    np.testing.assert_allclose(size(0, 0), 16 / 4, rtol=1e-3)  # the mean: as one wave per image
    np.testing.assert_allclose(size(0, 4), size(0, 4, height=32), rtol=1e-3)


def test_brightness_varies_more_than_colour():
    white = jnp.ones((1, 1, 1, 3))
    images = spectrum.spectral_start(
        jnp.zeros(64, jnp.int32), KEY, -white, white, image_shape=(16, 16, 3)
    )
    assert jnp.abs(images).max() < 0.2  # grey, with a trace of noise
    deviation = lambda *axis: float((images @ jnp.asarray(axis) / np.linalg.norm(axis)).std())  # noqa: E731
    grey = deviation(1.0, 1.0, 1.0)
    np.testing.assert_allclose(deviation(1.0, 0.0, -1.0) / grey, 0.28, rtol=0.1)
    np.testing.assert_allclose(deviation(1.0, -2.0, 1.0) / grey, 0.13, rtol=0.1)


def test_starts_follow_their_key():
    start = functools.partial(
        spectrum.spectral_start, jnp.zeros(2, jnp.int32), low=LOW, high=HIGH, image_shape=(8, 8, 3)
    )
    np.testing.assert_array_equal(start(KEY), start(KEY))
    assert (start(KEY) != start(jax.random.key(1))).any()
