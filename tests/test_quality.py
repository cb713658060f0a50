import numpy as np
import pytest

from jaxpmi import measure_diversity
from jaxpmi.quality import classifier_accuracy
from jaxpmi.quality import mean_pairwise_distance
from jaxpmi.quality import measure_quality

NUM_CLASSES, SHAPE = 4, (16, 16, 1)


def bars(num, seed, noise=40.0, channels=1):
    """Bars at four angles, at random places, with noise: images u8 and labels."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num) % NUM_CLASSES).astype(np.int32)
    y, x = np.mgrid[:16, :16] - 7.5
    angles = labels * np.pi / NUM_CLASSES
    across = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    bar = np.abs(across - rng.uniform(-3, 3, num)[:, None, None]) < 1.5
    images = 60.0 + 120.0 * bar[..., None] + noise * rng.normal(size=(num, 16, 16, channels))
    return np.clip(images, 0, 255).astype(np.uint8), labels


TEST = bars(200, seed=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_as_many_real_images_are_of_the_best_quality(channels):
    found = measure_quality(
        *bars(200, seed=0, channels=channels), *bars(200, seed=1, channels=channels)
    )
    assert found.trained_on_synthetic > 0.95
    assert abs(found.spread - 1.0) < 0.05


def test_images_with_other_labels_teach_nothing():
    images, labels = bars(200, seed=0)
    wrong = measure_quality(images, (labels + 1) % NUM_CLASSES, *TEST)
    assert wrong.trained_on_synthetic < 0.1
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    assert 0.1 < measure_quality(noise, labels, *TEST).trained_on_synthetic < 0.45


def test_one_look_per_class_has_no_spread_and_teaches_less():
    images, labels = bars(200, seed=0)
    collapsed = images[labels]  # the first four images are of classes 0 to 3
    found, best = measure_quality(collapsed, labels, *TEST), measure_quality(images, labels, *TEST)
    assert found.spread == 0.0
    assert found.trained_on_synthetic < best.trained_on_synthetic - 0.1


def test_only_real_images_of_the_same_classes_count():
    images, labels = bars(200, seed=0)
    some = labels < 2
    found = measure_quality(images[some], labels[some], *TEST)
    same = TEST[1] < 2
    assert found == measure_quality(images[some], labels[some], TEST[0][same], TEST[1][same])
    assert found.trained_on_synthetic > 0.95  # were the others counted, it were half
    with pytest.raises(ValueError, match="no real image of any of the labels"):
        measure_quality(images[some], labels[some], TEST[0][~same], TEST[1][~same])


def test_what_is_measured_is_bounded_however_many_and_large_images_are(monkeypatch):
    from jaxpmi import quality

    images, labels = bars(200, seed=0)
    large = images.repeat(4, 1).repeat(4, 2)
    assert quality._convolve(large[:3]).shape == quality._convolve(images[:3]).shape
    monkeypatch.setattr(quality, "MAX_IMAGES", 100)
    assert classifier_accuracy(large, labels, TEST[0].repeat(4, 1).repeat(4, 2), TEST[1]) > 0.8


def test_the_same_images_have_the_same_quality():
    first, again = (measure_quality(*bars(60, seed=0), *TEST) for _ in range(2))
    assert first == again


def test_distances_are_within_classes():
    far = np.array([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 2.0]])
    assert mean_pairwise_distance(far, np.array([0, 0, 1, 1])) == pytest.approx(3.5)
    assert np.isnan(mean_pairwise_distance(far, np.arange(4)))
    assert callable(measure_diversity)
