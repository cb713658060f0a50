"""Scenes from files: tiny trees in the layouts of PASCAL VOC and Cityscapes."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import DataConfig
from jaxpmi.data import open_scenes
from jaxpmi.data import open_source
from jaxpmi.data.scene_sources import SCENE_SOURCES


def save(path, pixels, palette=None):
    """Writes pixels; with a palette (label -> colour) they are its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


# Label 1 is drawn in the colour whose grey value is 2, so whoever reads colours reads wrong labels.
PALETTE = [channel for label in range(256) for channel in 3 * [(2 * label) % 256]]


def voc_scene(root, name, label, folder="SegmentationClass"):
    """A photograph, grey 10 x label, and its map: label on the left, void 255 on the right."""
    labels = np.full((8, 8), label, np.uint8)
    labels[:, 4:] = 255
    save(root / folder / f"{name}.png", labels, PALETTE)
    image = root / "JPEGImages" / f"{name}.jpg"
    save(image, np.full((8, 8, 3), 10 * label, np.uint8))


def voc_tree(root):
    for label, name in enumerate(("a", "b", "c"), start=1):
        voc_scene(root, name, label)
    names(root, "train", "a\nb\n")
    names(root, "val", "c\n")


def names(root, split, text):
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def voc(root, scene_size=(8, 8)):
    return open_scenes(DataConfig(source="voc", path=str(root), scene_size=scene_size))


def test_voc_reads_palette_indices_and_void(tmp_path):
    voc_tree(tmp_path)
    source = voc(tmp_path)
    assert source.num_classes == 21 and source.class_names[15] == "person"
    assert source.has_background and source.image_shape == (8, 8, 3)
    assert (source.size("train"), source.size("test")) == (2, 1)
    assert source.domain_names == ("photographs",) and source.domains["train"].tolist() == [0, 0]
    scenes = source.read("train", np.array([1, 0]))
    assert scenes.shape == (2, 8, 8, 4) and scenes.dtype == np.uint8
    assert scenes[:, 0, :, 3].tolist() == [[2] * 4 + [255] * 4, [1] * 4 + [255] * 4]
    assert np.abs(scenes[0, ..., :3].astype(int) - 20).max() <= 2  # jpeg
    assert [np.flatnonzero(row).tolist() for row in source.shows("train")] == [[1], [2]]
    assert [np.flatnonzero(row).tolist() for row in source.shows("test")] == [[3]]


def test_voc_prefers_the_augmented_labels(tmp_path):
    voc_tree(tmp_path)
    names(tmp_path, "trainaug", "a\nb\nd\n")
    assert voc(tmp_path).size("train") == 2  # a list without its folder is not used
    for name in ("a", "b", "d"):
        voc_scene(tmp_path, name, 7, "SegmentationClassAug")
    source = voc(tmp_path)
    assert source.size("train") == 3
    assert np.flatnonzero(source.shows("train").all(axis=0)).tolist() == [7]
    assert np.flatnonzero(source.shows("test")[0]).tolist() == [3]


def test_photographs_and_labels_are_cropped_and_resized_together(tmp_path):
    """16 x 40 pixels to 4 x 6: of 40 columns the middle 24 stay, one column of squares a pixel."""
    voc_tree(tmp_path)
    columns = np.repeat(np.arange(10), 4)
    pixels = np.broadcast_to(20 * columns, (16, 40)).astype(np.uint8)
    save(tmp_path / "JPEGImages" / "c.jpg", np.stack([pixels] * 3, -1))
    labels = np.broadcast_to(columns, (16, 40)).astype(np.uint8)
    save(tmp_path / "SegmentationClass" / "c.png", labels, PALETTE)
    scene = voc(tmp_path, (4, 6)).read("test", np.array([0]))[0]
    assert scene[..., 3].tolist() == [[2, 3, 4, 5, 6, 7]] * 4
    assert np.abs(scene[:, 1:-1, 0].astype(int) - [60, 80, 100, 120]).max() <= 3
    shown = voc(tmp_path, (4, 6)).shows("test")[0]
    assert np.flatnonzero(shown).tolist() == [2, 3, 4, 5, 6, 7]


def test_pixels_are_antialiased(tmp_path):
    voc_tree(tmp_path)
    checks = np.indices((8, 8)).sum(0) % 2
    Image.fromarray((255 * checks).astype(np.uint8)).convert("RGB").save(
        tmp_path / "JPEGImages" / "c.jpg", quality=100, subsampling=0
    )
    pixels = voc(tmp_path, (2, 2)).read("test", np.array([0]))[0, ..., :3]
    assert np.abs(pixels.astype(int) - 127).max() < 20


def break_voc(root, kind):
    if kind == "no lists":
        (root / "ImageSets" / "Segmentation").rename(root / "elsewhere")
    elif kind == "no list":
        (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    elif kind == "empty list":
        names(root, "val", "\n")
    elif kind == "no file":
        (root / "SegmentationClass" / "b.png").unlink()
    elif kind == "colours":
        save(root / "SegmentationClass" / "a.png", np.zeros((8, 8, 3), np.uint8))
    elif kind == "size":
        save(root / "SegmentationClass" / "a.png", np.zeros((8, 9), np.uint8))
    elif kind == "label":
        save(root / "SegmentationClass" / "a.png", np.full((8, 8), 33, np.uint8))
    elif kind == "damaged":
        (root / "SegmentationClass" / "a.png").write_bytes(b"no png")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("no lists", FileNotFoundError, "Segmentation is not a folder; data.path must be the one"),
        ("no list", FileNotFoundError, "val.txt does not exist; it must name one image per line"),
        ("empty list", ValueError, "val.txt names no image"),
        ("no file", FileNotFoundError, "b.png' cannot be found; .*train.txt names them"),
        ("colours", ValueError, r"a.png is no label map \(mode RGB\); expected a palette"),
        ("size", ValueError, "a.jpg is 8x8 pixels but its label map .*a.png is 9x8; the two must"),
        (
            "label",
            ValueError,
            "scene 0 of split 'train' of 'voc' has the label 33; labels are 0..20",
        ),
        ("damaged", ValueError, "a.png is not a readable image"),
    ],
)
def test_voc_errors(tmp_path, kind, error, message):
    voc_tree(tmp_path)
    break_voc(tmp_path, kind)
    with pytest.raises(error, match=message):
        source = voc(tmp_path)
        source.read("train", np.arange(2))
        source.shows("train")


def city_scene(root, folder, city, number, value, kind="labelTrainIds"):
    stem = f"{city}_{number:06}_000019"
    save(
        root / "leftImg8bit" / folder / city / f"{stem}_leftImg8bit.png",
        np.full((4, 8, 3), 50 + number, np.uint8),
    )
    labels = root / "gtFine" / folder / city / f"{stem}_gtFine_{kind}.png"
    save(labels, np.broadcast_to(np.uint8(value), (4, 8)))


def cities(root, scene_size=(4, 8), **changes):
    config = DataConfig(
        source="cityscapes",
        path=str(root),
        scene_size=scene_size,
        scene_tasks="domains",
        **changes,
    )
    return open_scenes(config)


def cities_tree(root):
    for number in range(5):
        city_scene(root, "val", "munster", number, 18)
        city_scene(root, "train", "bochum", number, 3)
        city_scene(root, "train", "aachen", number, 255)


def test_cityscapes_pools_the_folders_and_splits_every_city(tmp_path):
    cities_tree(tmp_path)
    city_scene(tmp_path, "test", "berlin", 0, 0)  # without labels in the real one; not looked at
    source = cities(tmp_path)
    assert source.domain_names == ("aachen", "bochum", "munster")
    assert source.num_classes == 19 and not source.has_background
    assert source.class_names[0] == "road" and source.class_names[18] == "bicycle"
    for split, count in (("train", 4), ("test", 1)):
        assert np.bincount(source.domains[split]).tolist() == [count] * 3
        labels = source.read(split, np.arange(3 * count))[:, 0, 0, 3]
        np.testing.assert_array_equal(labels, np.array([255, 3, 18])[source.domains[split]])
    pixels = [source.read(split, np.arange(source.size(split)))[..., 0] for split in source.domains]
    shown = np.concatenate([each[:, 0, 0] for each in pixels])
    assert sorted(shown.tolist()) == sorted(3 * [50, 51, 52, 53, 54])  # every scene is in one split
    assert not source.shows("train")[source.domains["train"] == 0].any()  # ignored throughout
    half = cities(tmp_path, test_fraction=0.4)
    assert np.bincount(half.domains["test"]).tolist() == [2] * 3


@pytest.mark.parametrize(
    ("number", "label"),
    [(0, 255), (3, 255), (7, 0), (8, 1), (11, 2), (17, 5), (23, 10), (26, 13), (29, 255), (33, 18)],
)
def test_cityscapes_maps_label_ids(tmp_path, number, label):
    for i in range(2):
        city_scene(tmp_path, "train", "ulm", i, number, "labelIds")
    assert (cities(tmp_path).read("train", np.array([0]))[..., 3] == label).all()
    for i in range(2):
        city_scene(tmp_path, "train", "ulm", i, 4)  # *_labelTrainIds.png go first
    assert (cities(tmp_path).read("train", np.array([0]))[..., 3] == 4).all()


def test_label_numbers_are_never_blended(tmp_path):
    stripes = np.tile(np.uint8([0, 18]), (4, 4))
    for number in range(2):
        city_scene(tmp_path, "train", "ulm", number, stripes)
    labels = cities(tmp_path, (3, 5)).read("train", np.array([0]))[..., 3]
    assert set(np.unique(labels)) == {0, 18}


def test_cityscapes_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither .*train nor .*val is a folder; data.path"):
        cities(tmp_path)
    cities_tree(tmp_path)
    city_scene(tmp_path, "train", "jena", 0, 1)
    with pytest.raises(ValueError, match="folder.s. 'jena' .* hold fewer than 2 images"):
        cities(tmp_path)
    city_scene(tmp_path, "train", "jena", 1, 1)
    next((tmp_path / "gtFine" / "train" / "jena").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="jena.*labelIds.png' cannot be found; unpack"):
        cities(tmp_path)
    city_scene(tmp_path, "train", "atlantis", 0, 1)
    with pytest.raises(ValueError, match=r"unknown city folder\(s\) 'atlantis'; move them away"):
        cities(tmp_path)


@pytest.mark.parametrize("kind", ["voc", "cityscapes"])
def test_path_is_needed(kind):
    with pytest.raises(ValueError, match=f"data.source='{kind}' needs data.path"):
        open_scenes(DataConfig(source=kind))


@pytest.mark.parametrize("kind", ["colours", "size", "damaged"])
def test_every_scene_is_looked_at_when_the_data_are_opened(tmp_path, kind):
    """V17: not when its turn comes, in some later task."""
    voc_tree(tmp_path)
    break_voc(tmp_path, kind)
    with pytest.raises(ValueError, match="label map|readable"):
        voc(tmp_path)


def test_lists_may_begin_with_a_mark(tmp_path):
    """V11: as some editors write UTF-8."""
    voc_tree(tmp_path)
    names(tmp_path, "train", "\ufeffa\nb\n")
    assert voc(tmp_path).size("train") == 2


def test_photographs_of_scenes_lie_as_their_label_maps_do(tmp_path):
    voc_tree(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.repeat(np.uint8([[0] * 8] * 4 + [[200] * 8] * 4)[..., None], 3, -1)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "c.jpg", exif=exif)
    scene = voc(tmp_path).read("test", np.array([0]))[0]
    assert scene[0, :, 0].max() < 50 and scene[-1, :, 0].min() > 150


def test_reading_what_is_not_there():
    source = open_scenes(DataConfig(source="digit_scenes"))
    with pytest.raises(ValueError, match="no split 'val'; use one of"):
        source.read("val", np.arange(1))
    with pytest.raises(ValueError, match="image index 400 is outside split 'test' of 'digit_scene"):
        source.read("test", np.array([400]))


def test_shows_finds_every_label_in_batches_and_once(monkeypatch):
    monkeypatch.setattr("jaxpmi.data.scene_source.BATCH", 7)
    source = open_scenes(DataConfig(source="digit_scenes"))
    calls = []

    def count(split, indices):
        calls.append(len(indices))
        return source.label_reader(split, indices)

    counted = dataclasses.replace(source, label_reader=count)
    shown = counted.shows("test")
    assert counted.shows("test") is shown and sum(calls) == 400 and max(calls) == 7
    labels = source.read("test", np.arange(400))[..., -1]
    for row, own in zip(shown, labels, strict=True):
        assert np.flatnonzero(row).tolist() == np.unique(own).tolist()


def test_the_two_kinds_of_sources_are_told_apart():
    assert tuple(SCENE_SOURCES) == SCENE_KINDS
    for kind in SCENE_KINDS:
        with pytest.raises(ValueError, match=f"'{kind}' has a class per pixel, none per image"):
            open_source(DataConfig(source=kind))
    with pytest.raises(ValueError, match="data source 'embedded' has no label maps; use one of"):
        open_scenes(DataConfig())
