"""Folders of images."""

import numpy as np
import pytest
from PIL import Image

from jaxpmi.config import DataConfig
from jaxpmi.data import open_source


def save(path, color, size=(8, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def opened(root, **changes):
    return open_source(DataConfig(source="folder", path=str(root), **changes))


def test_train_and_test_folders(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 0)):
        (tmp_path / split).mkdir()  # an empty test/ (no labels) gives way to val/
        for label, name in enumerate(("dog", "cat")):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png", (100 * label, i, 7))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("ignored")
    (tmp_path / "train" / "cat" / "._0.png").write_text("ignored")
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog") and source.image_shape == (6, 8, 3)
    assert source.labels["train"].tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labels["test"].tolist() == [0, 0, 1, 1]
    images = source.read("train", np.array([4, 0]))
    assert images.shape == (2, 6, 8, 3)
    assert images[:, 0, 0].tolist() == [[0, 1, 7], [100, 0, 7]]


@pytest.mark.parametrize(("last_mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3)])
def test_grey_only_if_all_are(tmp_path, last_mode, channels):
    for name in ("a", "b"):
        save(tmp_path / name / "0.png", 9, mode="L")
        save(tmp_path / name / "1.png", 1, mode=last_mode)
    assert opened(tmp_path).image_shape == (6, 8, channels)
    assert opened(tmp_path, image_size=5).image_shape == (5, 5, channels)
    assert opened(tmp_path).read("train", np.array([0])).shape == (1, 6, 8, channels)


def test_resize_keeps_the_centre(tmp_path):
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255  # only the centre square is white
    for name in ("a", "b"):
        for i in range(2):
            save(tmp_path / name / f"{i}.png", 0)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    images = opened(tmp_path, image_size=10).read("train", np.array([0, 1]))
    assert images.shape == (2, 10, 10, 3) and images.min() == 255
    half = opened(tmp_path, image_size=5).read("train", np.array([0]))
    assert half.shape == (1, 5, 5, 3) and half[:, :, 1:4].min() > 250


def two_classes(root):
    for name in ("a", "b"):
        for i in range(2):
            save(root / name / f"{i}.png", 5)


def test_mixed_sizes(tmp_path):
    two_classes(tmp_path)
    save(tmp_path / "b" / "1.png", 5, size=(9, 9))
    message = r"a/0.png is 8x6 pixels but .*b/1.png is 9x9; set data.image_size"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)
    assert opened(tmp_path, image_size=6).image_shape == (6, 6, 3)


@pytest.mark.parametrize("keep", [0, 20, 45])
def test_corrupt_image(tmp_path, keep):
    two_classes(tmp_path)
    broken = tmp_path / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:keep])
    with pytest.raises(ValueError, match="b/1.png is not a readable image .*; replace or remove"):
        source = opened(tmp_path)
        for split in ("train", "test"):
            source.read(split, np.arange(len(source.labels[split])))


def test_sixteen_bit_image(tmp_path):
    two_classes(tmp_path)
    for name in ("a", "b"):
        Image.fromarray(np.full((6, 8), 40000, np.uint16)).save(tmp_path / name / "0.png")
        Image.fromarray(np.full((6, 8), 40000, np.uint16)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match="more than 8 bits per pixel .mode I;16."):
        opened(tmp_path).read("train", np.array([0]))


def test_layout_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        opened(tmp_path / "none")
    with pytest.raises(ValueError, match="has no sub-folders; expected one folder"):
        opened(tmp_path)
    two_classes(tmp_path)
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="c holds no image; add images to it or remove"):
        opened(tmp_path)


def test_differing_classes(tmp_path):
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "test")
    save(tmp_path / "test" / "c" / "0.png", 5)
    with pytest.raises(ValueError, match=r"differ in the class folder\(s\) 'c'; both must"):
        opened(tmp_path)
