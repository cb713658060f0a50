"""The embedded digits and .npz files, and what every source checks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import image_source
from jaxpmi.data import open_source

ROOT = Path(__file__).parents[2]


def npz(path, **arrays):
    np.savez(path, **arrays)
    return DataConfig(source="npz", path=str(path))


def arrays(num_images=6, num_classes=3, shape=(4, 4)):
    x = np.random.RandomState(0).randint(0, 256, (num_images, *shape), np.uint8)
    return x, np.arange(num_images) % num_classes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.npz"


def test_import_is_light():
    code = """
import sys
import jaxpmi.data
heavy = {"PIL", "tensorflow", "tensorflow_datasets"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_embedded_split_is_the_measured_one():
    source = open_source(DataConfig())
    with np.load(ROOT / "jaxpmi" / "data" / "mnist5k.npz") as file:
        x, y = file["x"], file["y"]
    random = np.random.RandomState(0)
    train, test = [], []
    for label in range(10):
        order = np.flatnonzero(y == label)[random.permutation(500)]
        train += list(order[:400])
        test += list(order[400:])
    assert source.image_shape == (28, 28, 1) and source.class_names == tuple("0123456789")
    for split, rows in (("train", train), ("test", test)):
        np.testing.assert_array_equal(source.labels[split], y[rows])
        assert source.labels[split].dtype == np.int32
        images = source.read(split, np.arange(len(rows)))
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, x[rows].reshape(-1, 28, 28, 1))


def test_embedded_split_ignores_test_fraction():
    sizes = {
        split: len(labels)
        for split, labels in open_source(DataConfig(test_fraction=0.5)).labels.items()
    }
    assert sizes == {"train": 4000, "test": 1000}


def test_num_classes_and_size():
    config = DataConfig(num_classes=3, image_size=14)
    source = open_source(config)
    assert source.num_classes == 3 and set(source.labels["train"]) == {0, 1, 2}
    images = source.read("test", np.array([299, 0]))
    assert images.shape == (2, 14, 14, 1) == (2, *source.image_shape)
    whole = open_source(DataConfig(image_size=14)).read("test", np.array([299]))
    np.testing.assert_array_equal(images[0], whole[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(num_classes=11), "num_classes=11 does not fit .* choose 2 to 10"),
        (DataConfig(source="npz"), "needs data.path, the .npz file"),
        (DataConfig(source="folder"), "needs data.path, a folder"),
    ],
)
def test_config_errors(config, message):
    with pytest.raises(ValueError, match=message):
        open_source(config)


@pytest.mark.parametrize(
    ("split", "indices", "message"),
    [
        ("val", [0], "has no split 'val'; use one of"),
        ("test", [1000], "image index 1000 is outside split 'test' of 'mnist5k', which has 1000"),
        ("test", [-1], "image index -1 is outside"),
        ("test", [[0]], "expected a 1-D array of integers"),
        ("test", [0.5], "indices are float64"),
    ],
)
def test_read_errors(split, indices, message):
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig()).read(split, indices)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_npz_with_both_splits(path, shape):
    x, y = arrays(shape=shape)
    source = open_source(npz(path, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3]))
    channels = shape[2] if len(shape) == 3 else 1
    assert source.image_shape == (4, 5, channels) and source.name == "set"
    assert {split: len(labels) for split, labels in source.labels.items()} == {
        "train": 6,
        "test": 3,
    }
    read = source.read("train", np.array([5, 2]))
    np.testing.assert_array_equal(read, x[[5, 2]].reshape(2, 4, 5, channels))
    assert source.read("train", np.array([], int)).shape == (0, 4, 5, channels)


def test_npz_stratified_split(path):
    x, y = arrays(num_images=40, num_classes=4)
    source = open_source(npz(path, x=x, y=y))
    assert np.bincount(source.labels["train"]).tolist() == [8] * 4
    assert np.bincount(source.labels["test"]).tolist() == [2] * 4
    both = [source.read(split, np.arange(len(source.labels[split]))) for split in ("train", "test")]
    assert {image.tobytes() for image in np.concatenate(both)} == {image.tobytes() for image in x}


def test_stratified_split_always_gives_each_class_both():
    labels = np.array([0, 0, 1, 1, 1])
    for fraction in (0.01, 0.99):
        train, test = image_source.stratified_split(labels, fraction)
        assert set(labels[train]) == set(labels[test]) == {0, 1}
        assert sorted([*train, *test]) == list(range(5))


X, Y = arrays()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": X}, r"lacks the array\(s\) y .* expected x_train, y_train, x_test, y_test, or x, y"),
        ({"x_train": X, "y_train": Y}, r"lacks the array\(s\) x_test, y_test"),
        ({"x": X / 255, "y": Y}, "x in .* is float64; expected uint8 pixels 0..255"),
        ({"x": X * np.nan, "y": Y}, "is float64 with NaN values; expected uint8"),
        ({"x": X, "y": Y[:4]}, "has 6 images in x but 4 labels in y"),
        ({"x": X, "y": Y - 1}, "has the label -1; labels start at 0"),
        ({"x": X, "y": Y / 2}, "y in .* is float64 of shape .*; expected integer labels"),
        ({"x": X, "y": Y[:, None]}, r"of shape \(6, 1\); expected integer labels of shape \[N\]"),
        ({"x": X, "y": Y * 2}, "3 different labels up to 4 but no label 1; renumber them 0..2"),
        ({"x": X.reshape(6, 16), "y": Y}, r"has shape \(6, 16\); expected \[N, H, W\]"),
        ({"x": np.zeros((6, 4, 4, 2), np.uint8), "y": Y}, r"has shape \(6, 4, 4, 2\)"),
        ({"x": X[:, :0], "y": Y}, "holds no pixel"),
        ({"x": X[:0], "y": Y[:0]}, "holds no pixel"),
        ({"x": X, "y": Y.astype(object)}, "y in .* is an array of Python objects, which are never"),
        ({"x": X, "y": np.zeros(6, int)}, r"has 1 class\(es\); at least 2 are needed"),
        ({"x": X[:4], "y": Y[:4]}, r"no test images of class\(es\) '1', '2'; every class needs"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]},
            r"no test images of class\(es\) '2'",
        ),
        (
            {"x_train": X[:2], "y_train": Y[:2], "x_test": X, "y_test": Y},
            r"no training images of class\(es\) '2'",
        ),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, 1:], "y_test": Y},
            r"training images of shape \(4, 4, 1\) but test images of shape \(3, 4, 1\)",
        ),
    ],
)
def test_npz_errors(path, content, message):
    config = npz(path, **content)
    with pytest.raises(ValueError, match=message) as error:
        open_source(config)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_only_the_needed_arrays_are_read(path):
    """V18: what is beside them may be of objects, or damaged."""
    source = open_source(npz(path, x=X, y=Y, meta=np.array([None]), info=np.array("text")))
    assert len(source.labels["train"]) + len(source.labels["test"]) == 6
    (entry,) = source.passed_over
    assert entry == ("arrays", 2, ("meta", "info")) and str(entry) == "arrays (2): 'meta', 'info'"
    both = npz(path, x_train=X, y_train=Y, x_test=X, y_test=Y, x=X, y=Y)
    assert open_source(both).passed_over == (("arrays", 2, ("x", "y")),)
    with pytest.raises(ValueError, match="^x_test in .* is an array of Python objects"):
        open_source(npz(path, x_train=X, y_train=Y, x_test=X.astype(object), y_test=Y))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_test_fraction_error(fraction):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        image_source.stratified_split(Y, fraction)


def test_missing_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist or is no file"):
        open_source(DataConfig(source="npz", path=str(tmp_path / "no.npz")))


def test_corrupt_npz(path):
    np.savez(path, x=X, y=Y)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 4] ^= 255
    for content in (b"", b"no archive", whole[: len(whole) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a .npz"):
            open_source(DataConfig(source="npz", path=str(path)))
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(ValueError, match="is not a .npz file; write it with np.savez"):
        open_source(DataConfig(source="npz", path=str(path)))
