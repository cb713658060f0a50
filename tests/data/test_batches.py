"""Batches of indices, and pixel statistics."""

import numpy as np
import pytest

from jaxpmi.data import channel_moments
from jaxpmi.data import epoch_batches


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 1), (5, 5)])
def test_epochs_cover_everything(num_examples, batch_size):
    steps = -(-num_examples // batch_size)
    batches = epoch_batches(num_examples, batch_size, 3 * steps, seed=0)
    assert batches.shape == (3 * steps, batch_size) and batches.dtype == np.int32
    for epoch in np.split(batches, 3):
        assert set(epoch.ravel()) == set(range(num_examples))
        counts = np.bincount(epoch.ravel(), minlength=num_examples)
        assert counts.max() - counts.min() <= 1
    for batch in batches:
        assert len(set(batch)) == min(num_examples, batch_size)


def test_epochs_differ_and_seeds_differ():
    first, second = np.split(epoch_batches(64, 64, 2, seed=(3, 1)), 2)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epoch_batches(64, 64, 1, seed=(3, 2)))
    np.testing.assert_array_equal(epoch_batches(9, 4, 5, seed=7), epoch_batches(9, 4, 5, seed=[7]))


@pytest.mark.parametrize("start", range(12))
def test_restart_anywhere(start):
    whole = epoch_batches(10, 4, 12, seed=5)
    np.testing.assert_array_equal(epoch_batches(10, 4, 12 - start, 5, start), whole[start:])


@pytest.mark.parametrize(("num_examples", "batch_size"), [(0, 4), (4, 0)])
def test_no_batch(num_examples, batch_size):
    with pytest.raises(ValueError, match="give no batch; both must be 1 or more"):
        epoch_batches(num_examples, batch_size, 1, seed=0)


def test_channel_moments():
    images = np.random.RandomState(0).randint(0, 256, (7, 5, 4, 3), np.uint8)
    mean, std = channel_moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    assert all(type(value) is float for value in (*mean, *std))


def test_constant_channel_has_std_one():
    assert channel_moments(np.full((2, 3, 3, 1), 51, np.uint8)) == ((0.2,), (1.0,))


@pytest.mark.parametrize(
    "images", [np.zeros((1, 2, 2, 1)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 2, 1), np.uint8)]
)
def test_channel_moments_errors(images):
    with pytest.raises(ValueError, match="expected uint8"):
        channel_moments(images)
