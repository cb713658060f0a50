"""A folder of images, one sub-folder per class, as an ImageSource."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data import decoding
from jaxpmi.data import image_files
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import PassedOver
from jaxpmi.data.image_source import shorten

TRAIN_FOLDERS = ("train", "training")  # in any case
TEST_FOLDERS = (("test", "testing"), ("val", "valid", "validation"))  # in order of preference
SPLIT_FOLDERS = (*TRAIN_FOLDERS, *(name for names in TEST_FOLDERS for name in names))


class ImageTree(NamedTuple):
    """The image files of a folder, by split."""

    class_names: tuple[str, ...]
    folders: dict[str, Path]  # 'train' and, where there is one, 'test'
    files: dict[str, list[Path]]  # of these splits
    labels: dict[str, np.ndarray]  # i32[N] each
    passed_over: tuple[PassedOver, ...]


def open_folder(config: DataConfig) -> ImageSource:
    """Opens `config.path`: a folder of class folders, or one of train/ and test/ (or val/)."""
    if config.path is None:
        raise ValueError("data.source='folder' needs data.path, a folder of class folders.")
    root = Path(config.path)
    tree = list_images(root)
    headers = inspect_images(tree)
    if headers.size is None and config.image_size is None:
        raise ValueError(f"{headers.clash}; set data.image_size to bring all images to one size.")
    height, width = headers.size if config.image_size is None else (config.image_size,) * 2
    shape = (height, width, headers.channels)

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        files = [tree.files[split][i] for i in indices]
        encoded = [file.read_bytes() for file in files]
        resize, wheres = config.image_size is not None, [*map(str, files)]
        return decoding.decode_images(encoded, shape, resize, wheres, config.ground)

    return ImageSource(
        root.name, tree.class_names, shape, tree.labels, reader, tree.passed_over, headers.digest
    )


def list_images(root: Path) -> ImageTree:
    """Lists the images of every class folder under `root`, or under its splits.

    Splits are folders named train or training, and test, testing, val, valid or validation, in any
    case, which hold class folders. Of several that are no training split, test comes before val;
    the others are passed over. Classes are in the order of their names: as texts, or as numbers
    where all names are numbers, so that 10 comes after 9.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it has no class folders, a class folder without an image, splits of different
        classes, or folders named as splits that cannot be read as some.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder; data.path must hold one folder per class."
        )
    folders = find_splits(root)
    names = tuple(folder.name for folder in _class_folders(folders["train"]))
    files, labels, others = {}, {}, []
    for split, folder in folders.items():
        files[split], labels[split], none = _list_split(folder, names)
        others += [path.relative_to(root).as_posix() for path in none]
    outside = {root, *folders.values()}
    loose = [
        entry.relative_to(root).as_posix()
        for place in sorted(outside)
        for entry in sorted(place.iterdir())
        if entry.is_file() and not image_files.is_hidden(entry.name)
    ]
    unread = [] if folders["train"] == root else _sub_folders(root)
    unread = [folder.name for folder in unread if folder not in outside]
    passed_over = (
        PassedOver.of("folders beside the splits", unread),
        PassedOver.of("files outside the class folders", loose),
        PassedOver.of("files that are no images", others),
    )
    return ImageTree(names, folders, files, labels, tuple(p for p in passed_over if p.count))


def find_splits(root: Path) -> dict[str, Path]:
    """Returns the folders of 'train' and 'test'; of 'train' alone, `root`, if it has no splits."""
    folders = _sub_folders(root)
    named = [folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS]
    classes = {folder: {entry.name for entry in _sub_folders(folder)} for folder in named}
    train = [f for f in named if f.name.lower() in TRAIN_FOLDERS and len(classes[f]) > 1]
    if not train:
        _check_no_splits(root, folders, classes)
        return {"train": root}
    found = {"train": _only(root, train, "training")}
    own = classes[found["train"]]
    for names in TEST_FOLDERS:
        # One without class folders has no labels (ImageNet's test images): the next is tried.
        test = [f for f in named if f.name.lower() in names and classes[f]]
        test = [f for f in test if classes[f] & own or len(classes[f]) > 1]
        if test:
            found["test"] = _only(root, test, "test")
            _check_same_classes(found, own, classes[found["test"]])
            return found
    return found


def inspect_images(tree: ImageTree) -> image_files.ImageHeaders:
    """Reads the headers of all images, whose names are those below their split's folder."""
    files = [
        (f"{split}/{file.relative_to(tree.folders[split]).as_posix()}", file)
        for split, some in tree.files.items()
        for file in some
    ]
    return image_files.read_headers(files)


def _check_no_splits(root: Path, folders: list[Path], named: dict[Path, set[str]]) -> None:
    """Raises if folders are named as splits that would be taken for classes."""
    others = {folder.name for folder in folders} - {folder.name for folder in named}
    nested = [folder for folder, classes in named.items() if classes & others]
    looks = [folder.name for folder in nested or (named if not others else ())]
    if looks:
        raise ValueError(
            f"{root} has the folder(s) {shorten(looks)}, which look like splits, but no train/ "
            "with two or more class folders; put one folder per class into train/ (and into test/)."
        )
    if len(folders) == 1 and len(_sub_folders(folders[0])) > 1:
        raise ValueError(
            f"{root} holds only the folder '{folders[0].name}', which has folders of its own; set "
            f"data.path to {folders[0]}."
        )


def _only(root: Path, folders: Sequence[Path], word: str) -> Path:
    if len(folders) > 1:
        names = shorten([folder.name for folder in folders])
        raise ValueError(
            f"{root} has the folders {names}, which all look like the {word} split; keep one there."
        )
    return folders[0]


def _check_same_classes(splits: dict[str, Path], train: set[str], test: set[str]) -> None:
    differing = sorted(train ^ test)
    if differing:
        raise ValueError(
            f"{splits['train']} and {splits['test']} differ in the class folder(s) "
            f"{shorten(differing)}; both must have the same class folders."
        )


def _sub_folders(path: Path) -> list[Path]:
    """The folders in a folder; numbers in the order of numbers, if all of them are."""
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    folders = sorted(entry for entry in folders if not image_files.is_hidden(entry.name))
    if all(folder.name.isascii() and folder.name.isdecimal() for folder in folders):
        return sorted(folders, key=lambda folder: int(folder.name))
    return folders


def _class_folders(root: Path) -> list[Path]:
    folders = _sub_folders(root)
    if not folders:
        raise ValueError(f"{root} has no sub-folders; expected one folder of images per class.")
    return folders


def _list_split(
    root: Path, class_names: Sequence[str]
) -> tuple[list[Path], np.ndarray, list[Path]]:
    """Lists the images of class folders, their labels i32[N], and the files that are no images."""
    files, labels, others = [], [], []
    for label, name in enumerate(class_names):
        images, none = image_files.find_images(root / name)
        if not images:
            what = f" (of {len(none)} files, such as '{none[0].name}')" if none else ""
            raise ValueError(
                f"{root / name} holds no image{what}; add images to it or remove the folder."
            )
        files += images
        labels += [label] * len(images)
        others += none
    return files, np.asarray(labels, np.int32), others
