import numpy as np
import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import open_source
from jaxpmi.data.coloured_digits import COLOURS


def sources():
    return open_source(DataConfig(source="coloured_digits")), open_source(DataConfig())


def test_forty_classes_of_equal_size_are_named_by_colour_and_digit():
    painted, grey = sources()
    assert painted.num_classes == 40 and painted.image_shape == (28, 28, 3)
    assert painted.class_names[0] == "red zero" and painted.class_names[39] == "yellow nine"
    assert painted.class_names[13] == "green three"
    for split, count in (("train", 100), ("test", 25)):
        assert (np.bincount(painted.labels[split]) == count).all()
        np.testing.assert_array_equal(painted.labels[split] % 10, grey.labels[split])


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_image_is_a_real_digit_in_the_colour_of_its_class(split):
    painted, grey = sources()
    rows = np.arange(0, len(grey.labels[split]), 37)
    images, originals = painted.read(split, rows), grey.read(split, rows)
    palette = np.asarray(list(COLOURS.values()), float)
    paint = palette[painted.labels[split][rows] // 10]
    assert images.dtype == np.uint8 and images.shape == (len(rows), 28, 28, 3)
    np.testing.assert_allclose(images, originals * paint[:, None, None] / 255, atol=0.51)
    assert images.max() > 200


def test_digits_can_be_resized():
    source = open_source(DataConfig(source="coloured_digits", image_size=32))
    assert source.read("train", np.arange(2)).shape == (2, 32, 32, 3)
