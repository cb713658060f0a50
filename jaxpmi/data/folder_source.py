"""A folder of images, one sub-folder per class, as an ImageSource."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data import decoding
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import shorten

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FOLDERS = ("test", "val", "validation")  # in order of preference


class ImageTree(NamedTuple):
    """The image files of a folder, by split; classes are in sorted order."""

    class_names: tuple[str, ...]
    files: dict[str, list[Path]]  # 'train' and, where there is one, 'test'
    labels: dict[str, np.ndarray]  # i32[N] each


class ImageFacts(NamedTuple):
    """What the headers of all images say together."""

    channels: int  # 1 if every image is grey, else 3
    size: tuple[int, int] | None  # (height, width); None if they differ or were not compared
    clash: str  # names two files of differing sizes


def open_folder(config: DataConfig) -> ImageSource:
    """Opens `config.path`: a folder of class folders, or one of train/ and test/ (or val/)."""
    if config.path is None:
        raise ValueError("data.source='folder' needs data.path, a folder of class folders.")
    root = Path(config.path).expanduser()
    tree = list_images(root)
    facts = inspect_images(tree, first_only=config.image_size is not None)
    if facts.size is None and config.image_size is None:
        raise ValueError(f"{facts.clash}; set data.image_size to bring all images to one size.")
    height, width = facts.size if config.image_size is None else (config.image_size,) * 2
    shape = (height, width, facts.channels)

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        files = [tree.files[split][i] for i in indices]
        encoded = [file.read_bytes() for file in files]
        return decoding.decode_images(
            encoded, shape, config.image_size is not None, [*map(str, files)]
        )

    return ImageSource(root.name, tree.class_names, shape, tree.labels, reader)


def list_images(root: Path) -> ImageTree:
    """Lists the images of every class folder under `root` (or `root`/train and `root`/test)."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder; data.path must hold one folder per class."
        )
    if not (root / "train").is_dir():
        names, files, labels = _list_split(root)
        return ImageTree(names, {"train": files}, {"train": labels})
    names, files, labels = _list_split(root / "train")
    tree = ImageTree(names, {"train": files}, {"train": labels})
    # A test folder without class folders is unlabelled (ImageNet's is): the next one is tried.
    candidates = (root / name for name in TEST_FOLDERS)
    test = next((path for path in candidates if path.is_dir() and _sub_folders(path)), None)
    if test is not None:
        test_names, tree.files["test"], tree.labels["test"] = _list_split(test)
        differing = sorted(set(names) ^ set(test_names))
        if differing:
            raise ValueError(
                f"{root / 'train'} and {test} differ in the class folder(s) {shorten(differing)}; "
                "both must have the same class folders."
            )
    return tree


def inspect_images(tree: ImageTree, first_only: bool) -> ImageFacts:
    """Reads the image headers; `first_only` stops at the first colour image, sizes aside."""
    channels, first, clash = 1, None, ""
    for file, mode, size in _headers(file for split in tree.files.values() for file in split):
        first = first or (file, size)
        if mode not in decoding.GREY_MODES:
            channels = 3
        if size != first[1] and not clash:
            clash = f"{first[0]} is {first[1][0]}x{first[1][1]} pixels but {file} is "
            clash += f"{size[0]}x{size[1]}"
        if channels == 3 and first_only:
            break  # nothing more to learn, and the headers of a large folder take minutes
    width, height = first[1]
    return ImageFacts(channels, None if clash or first_only else (height, width), clash)


def _headers(files: Iterable[Path]) -> Iterable[tuple[Path, str, tuple[int, int]]]:
    for file in files:
        image = decoding.open_image(file, str(file))
        yield file, image.mode, image.size


def _sub_folders(path: Path) -> list[Path]:
    folders = (entry for entry in path.iterdir() if entry.is_dir())
    return sorted(entry for entry in folders if not entry.name.startswith("."))


def _list_split(root: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Lists (class names, image files, i32[N] labels) of a folder of class folders."""
    folders = _sub_folders(root)
    if not folders:
        raise ValueError(f"{root} has no sub-folders; expected one folder of images per class.")
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not found:
            raise ValueError(f"{folder} holds no image; add images to it or remove the folder.")
        files += found
        labels += [label] * len(found)
    return tuple(folder.name for folder in folders), files, np.asarray(labels, np.int32)
