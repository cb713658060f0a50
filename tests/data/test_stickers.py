"""The embedded stickers: ten kinds of things in colour, split by object."""

import numpy as np
import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import open_source
from jaxpmi.data.stickers import CLASSES
from jaxpmi.data.stickers import PATH

TRAIN = (275, 148, 265, 265, 266, 234, 252, 130, 265, 215)
TEST = (65, 35, 75, 75, 74, 72, 88, 38, 75, 68)


@pytest.fixture(scope="module")
def stored():
    with np.load(PATH, allow_pickle=False) as arrays:
        return dict(arrays)


def test_ten_classes_have_names_and_some_hundred_pictures_each():
    source = open_source(DataConfig(source="stickers"))
    assert source.class_names == CLASSES and len(set(CLASSES)) == 10
    assert source.name == "stickers" and source.image_shape == (32, 32, 3)
    assert tuple(np.bincount(source.labels["train"])) == TRAIN
    assert tuple(np.bincount(source.labels["test"])) == TEST


def test_pictures_are_in_colour_and_on_white():
    source = open_source(DataConfig(source="stickers"))
    images = source.read("train", np.arange(0, sum(TRAIN), 7))
    assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3)
    assert (images[:, 0] == 255).all() and (images[:, :, 0] == 255).all()
    coloured = np.ptp(images.astype(int), axis=-1).max((1, 2)) > 60
    assert coloured.mean() > 0.9 and images.std((1, 2, 3)).min() > 5


def test_no_object_is_on_both_sides_and_no_picture_comes_twice(stored):
    assert not set(stored["object_train"]) & set(stored["object_test"])
    pictures = np.concatenate([stored["x_train"], stored["x_test"]])
    files = np.concatenate([stored["file_train"], stored["file_test"]])
    assert len(np.unique(pictures, axis=0)) == len(np.unique(files)) == len(pictures)
    for split in ("train", "test"):  # one class to an object
        pairs = set(zip(stored[f"object_{split}"], stored[f"y_{split}"], strict=True))
        assert len(pairs) == len(set(stored[f"object_{split}"]))


def test_every_set_is_in_the_licence_note(stored):
    note = PATH.with_name("STICKERS_LICENSE.md").read_text()
    files = np.concatenate([stored["file_train"], stored["file_test"]])
    assert all(f"| `{name}` |" in note for name in {str(file).split("/")[0] for file in files})
    assert PATH.stat().st_size <= 3_000_000


def test_the_split_is_fixed_and_pictures_can_be_resized():
    source = open_source(DataConfig(source="stickers", test_fraction=0.5, image_size=16))
    assert len(source.labels["test"]) == sum(TEST)
    assert source.read("test", np.arange(2)).shape == (2, 16, 16, 3)
