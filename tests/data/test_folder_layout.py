"""Folders as they are found: which are splits, which files are images, what is passed over."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from jaxpmi.config import DataConfig
from jaxpmi.data import image_files
from jaxpmi.data import open_source

CLASSES = ("cat", "dog", "owl")


def save(path, value=0, size=(8, 8)):
    """An image whose first pixel tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, 9)
    image.putpixel((0, 0), value)
    image.save(path, "JPEG" if path.suffix.lower() in (".jfif", ".jpg") else "PNG")


def save_classes(root, count, names=CLASSES, suffix=".png"):
    for name in names:
        for i in range(count):
            save(root / name / f"{i}{suffix}", i)


def opened(root, **changes):
    return open_source(DataConfig(source="folder", path=str(root), **changes))


def sizes(source):
    return {split: np.bincount(labels).tolist() for split, labels in source.labels.items()}


def passed_over(source):
    return {entry.what: entry.names for entry in source.passed_over}


# V5: names of splits.


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "VAL"),
        ("train", "valid"),
        ("Training", "Validation"),
    ],
)
def test_splits_by_their_usual_names(tmp_path, train, test):
    save_classes(tmp_path / train, 4)
    save_classes(tmp_path / test, 2)
    source = opened(tmp_path)
    assert source.class_names == CLASSES and not source.passed_over
    assert sizes(source) == {"train": [4, 4, 4], "test": [2, 2, 2]}


def test_what_is_beside_the_splits_is_named(tmp_path):
    for split, count in (("train", 4), ("valid", 3), ("test", 2), ("extra", 1)):
        save_classes(tmp_path / split, count)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "train" / "list.csv").write_text("about")
    (tmp_path / ".git").mkdir()
    source = opened(tmp_path)
    assert sizes(source) == {"train": [4, 4, 4], "test": [2, 2, 2]}
    assert passed_over(source) == {
        "folders beside the splits": ("extra", "valid"),
        "files outside the class folders": ("README.md", "train/list.csv"),
    }


def test_a_test_folder_without_labels_gives_way(tmp_path):
    """As Tiny-ImageNet comes: test/images/, without class folders."""
    save_classes(tmp_path / "train", 5)
    save_classes(tmp_path / "test", 2, names=["images"])
    source = opened(tmp_path)
    assert sizes(source) == {"train": [4, 4, 4], "test": [1, 1, 1]}
    assert passed_over(source) == {"folders beside the splits": ("test",)}


def test_a_class_may_be_called_train(tmp_path):
    names = ("bus", "car", "train")
    save_classes(tmp_path, 3, names)
    assert opened(tmp_path).class_names == names


LOOK_LIKE_SPLITS = {
    "no class folders in them": (
        [("train", ()), ("test", ())],
        r"the folder\(s\) 'test', 'train', which look like splits, but no train/ with two or more",
    ),
    "no training split": (
        [("val", CLASSES), ("test", CLASSES)],
        r"the folder\(s\) 'test', 'val', which look like splits, but no train/",
    ),
    "a test split beside the classes": (
        [(".", CLASSES), ("test", CLASSES)],
        r"the folder\(s\) 'test', which look like splits, but no train/",
    ),
    "two training splits": (
        [("train", CLASSES), ("Training", CLASSES)],
        "has the folders 'Training', 'train', which all look like the training split; keep one",
    ),
    "two test splits": (
        [("train", CLASSES), ("test", CLASSES), ("Test", CLASSES)],
        "has the folders 'Test', 'test', which all look like the test split; keep one",
    ),
    "other classes": (
        [("train", CLASSES), ("test", ("Cat", "Dog", "Owl"))],
        r"differ in the class folder\(s\) 'Cat', 'Dog', 'Owl', 'cat', 'dog' and 1 more; both must",
    ),
    "a wrapper": (
        [("archive", CLASSES)],
        "holds only the folder 'archive', which has folders of its own; set data.path to .*archive",
    ),
}


@pytest.mark.parametrize("name", LOOK_LIKE_SPLITS)
def test_what_looks_like_splits_and_is_none(tmp_path, name):
    folders, message = LOOK_LIKE_SPLITS[name]
    for folder, classes in folders:
        save_classes(tmp_path / folder, 2, classes or ["."])
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


# V9: which files are images.


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", "", ".photo"])
def test_images_by_suffix_or_content(tmp_path, suffix):
    save_classes(tmp_path, 3)
    for i in range(3, 10):
        save(tmp_path / "cat" / f"{i}{suffix}", i)
    source = opened(tmp_path)
    assert sizes(source) == {"train": [8, 2, 2], "test": [2, 1, 1]} and not source.passed_over


def test_files_that_are_no_images_are_named(tmp_path):
    save_classes(tmp_path, 3)
    (tmp_path / "cat" / "notes.txt").write_text("about")
    (tmp_path / "dog" / "deep").mkdir()
    (tmp_path / "dog" / "deep" / "film.mp4").write_bytes(bytes(100))
    save(tmp_path / "dog" / "deep" / "3.png")
    for hidden in ("cat/._0.png", "cat/.cache/0.png", "cat/Thumbs.db"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"hidden")
    (tmp_path / "owl" / "folder.png").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    source = opened(tmp_path)
    assert sum(map(len, source.labels.values())) == 10
    assert passed_over(source) == {
        "files that are no images": ("cat/notes.txt", "dog/deep/film.mp4")
    }


def test_a_class_of_other_files_is_refused(tmp_path):
    save_classes(tmp_path, 2)
    (tmp_path / "zebra").mkdir()
    (tmp_path / "zebra" / "0.heic").write_bytes(b"of a format that Pillow does not read")
    with pytest.raises(ValueError, match=r"zebra holds no image \(of 1 files, such as '0.heic'\)"):
        opened(tmp_path)


def test_only_some_names_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpmi.data.image_source.MOST_NAMES", 2)
    save_classes(tmp_path, 2)
    for i in range(5):
        (tmp_path / "cat" / f"{i}.txt").write_text("a caption")
    (entry,) = opened(tmp_path).passed_over
    assert entry.count == 5 and entry.names == ("cat/0.txt", "cat/1.txt")


# V10: numbers as names.


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([*map(str, range(12))], [*map(str, range(12))]),
        (["007", "10", "9", "1993"], ["007", "9", "10", "1993"]),
        (["10", "9", "x"], ["10", "9", "x"]),  # not all are numbers
        (["10.5", "9.5"], ["10.5", "9.5"]),
    ],
)
def test_numbers_sort_as_numbers(tmp_path, names, order):
    save_classes(tmp_path, 2, names)
    assert list(opened(tmp_path).class_names) == order


def test_a_names_file_goes_with_numbered_folders(tmp_path):
    words = "zero one two three four five six seven eight nine ten eleven".split()
    for number in range(12):
        for i in range(2):
            save(tmp_path / "set" / str(number) / f"{i}.png", number)
    (tmp_path / "names.txt").write_text("\n".join(words))
    source = opened(tmp_path / "set", class_names=str(tmp_path / "names.txt"))
    first = source.read("train", np.arange(12))[:, 0, 0, 0]
    assert [source.class_names[label] for label in source.labels["train"]] == [
        words[value] for value in first
    ]


# V17: what is broken is found at the start.


def broken(path):
    path.write_text("no")


def truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def sixteen_bit(path):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken, "zebra/9.png is not a readable image"),
        (truncated, "zebra/9.png is not a readable image"),
        (sixteen_bit, "zebra/9.png has more than 8 bits per pixel"),
    ],
)
def test_every_file_is_looked_at_when_the_data_are_opened(tmp_path, damage, message):
    save_classes(tmp_path, 6, (*CLASSES, "zebra"))
    damage(tmp_path / "zebra" / "9.png")
    for size in (None, 8):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, image_size=size)


def test_a_whole_file_with_bytes_after_its_end_is_read(tmp_path):
    save_classes(tmp_path, 2)
    file = tmp_path / "cat" / "0.png"
    file.write_bytes(file.read_bytes() + b"a trailer of some camera")
    assert opened(tmp_path).image_shape == (8, 8, 1)


def test_much_reading_is_said(tmp_path, capsys, monkeypatch):
    save_classes(tmp_path, 2)
    opened(tmp_path)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(image_files, "SECONDS_BEFORE_A_WORD", 0.0)
    opened(tmp_path)
    assert capsys.readouterr().out == "read the headers of 6 of 6 images ...\n"


def test_headers_are_read_fast(tmp_path):
    """Three thousand in a second or so; a hundred times that would not be waited for."""
    save(tmp_path / "a" / "0.png")
    for i in range(1, 1000):
        os.link(tmp_path / "a" / "0.png", tmp_path / "a" / f"{i}.png")
    files = [(file.name, file) for file in sorted((tmp_path / "a").iterdir())]
    since = time.monotonic()
    assert image_files.read_headers(files).size == (8, 8)
    assert time.monotonic() - since < 10
