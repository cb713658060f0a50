"""Replay from Gaussians of pixels: what is drawn, and what it takes to keep."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.continual import pixel_replay
from jaxpmi.runs.accounting import num_bytes


def test_ten_classes_of_digits_take_131_kilobytes():
    empty = pixel_replay.empty_pixel_gaussians((28, 28, 1), 10)
    assert num_bytes(empty) == 4 * (10 + 10 * 784 + 32 * 784) == 131_752


def test_images_are_of_their_class_and_valid():
    """The mean of what is drawn is the class's; what leaves the range of pixels is clipped."""
    stats = pixel_replay.empty_pixel_gaussians((2, 2, 3), 2)
    mean = jnp.stack([jnp.linspace(0.3, 0.7, 12), jnp.full(12, 2.0)])
    stats = stats._replace(mean=mean, factor=0.02 * jnp.eye(12))
    labels = jnp.tile(jnp.asarray([0, 1]), 2_000)
    images = pixel_replay.draw_images(stats, labels, jax.random.key(0), image_shape=(2, 2, 3))
    assert images.dtype == jnp.uint8 and images.shape == (4_000, 2, 2, 3)
    drawn = np.asarray(images).reshape(-1, 12) / 255
    np.testing.assert_allclose(drawn[0::2].mean(0), mean[0], atol=2e-3)
    np.testing.assert_allclose(drawn[0::2].std(0), 0.02, atol=2e-3)
    np.testing.assert_array_equal(drawn[1::2], 1.0)
