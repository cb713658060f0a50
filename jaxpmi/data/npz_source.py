"""A .npz file of images and labels, or any such arrays in memory, as an ImageSource."""

import dataclasses
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data import decoding
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import PassedOver
from jaxpmi.data.image_source import digest_arrays
from jaxpmi.data.image_source import shorten

SPLITS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
ALL = {"train": ("x", "y")}

# Whatever NumPy raises of an archive that is damaged.
DAMAGE = (OSError, ValueError, EOFError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)
DAMAGE += (tokenize.TokenError, NotImplementedError)


class LacksArraysError(ValueError):
    """A .npz file has not the arrays that are needed."""


def open_npz(config: DataConfig) -> ImageSource:
    """Opens a .npz file of uint8 images [N, H, W(, C)] and labels 0..C-1.

    The arrays are `x_train, y_train, x_test, y_test`, or `x, y`, which are then split per class
    by `config.test_fraction`.
    """
    path = config.path
    if path is None:
        raise ValueError("data.source='npz' needs data.path, the .npz file.")
    arrays, unread = _load_npz(Path(path))
    names = SPLITS if "x_train" in arrays else ALL
    splits = {
        split: (_check_images(arrays[x], x, path), _check_labels(arrays[y], y, path))
        for split, (x, y) in names.items()
    }
    for split, (images, labels) in splits.items():
        if len(images) != len(labels):
            raise ValueError(
                f"{path} has {len(images)} images in {names[split][0]} but {len(labels)} labels "
                f"in {names[split][1]}; the two must be of one length."
            )
    shapes = [images.shape[1:] for images, _ in splits.values()]
    if shapes[0] != shapes[-1]:
        raise ValueError(
            f"{path} has training images of shape {shapes[0]} but test images of shape "
            f"{shapes[-1]}; the two must be equal."
        )
    _check_contiguous(np.concatenate([labels for _, labels in splits.values()]), path)
    source = array_source(Path(path).stem, splits, config.image_size)
    passed_over = (PassedOver.of("arrays", unread),) if unread else ()
    return dataclasses.replace(source, passed_over=passed_over)


def array_source(
    name: str,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    image_size: int | None,
    class_names: tuple[str, ...] | None = None,
) -> ImageSource:
    """Wraps in-memory (images, labels) per split; images are resized when they are read."""
    height, width, channels = splits["train"][0].shape[1:]
    num_classes = 1 + max(int(labels.max()) for _, labels in splits.values())

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        return decoding.resize_images(splits[split][0][indices], image_size)

    return ImageSource(
        name=name,
        class_names=class_names or tuple(str(label) for label in range(num_classes)),
        image_shape=(image_size or height, image_size or width, channels),
        labels={split: labels for split, (_, labels) in splits.items()},
        reader=reader,
        digest=digest_arrays(images for images, _ in splits.values()),
    )


def _load_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the arrays that are needed, and names the others; nothing is ever unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; data.path must be a .npz.")
    reading = None
    try:
        # Opened by us: np.load leaks the handle of a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            needed, arrays = _needed(path, stored.files), {}
            for reading in needed:
                arrays[reading] = stored[reading]
            return arrays, [name for name in stored.files if name not in needed]
    except (AttributeError, TypeError) as error:  # a bare .npy array is no context manager
        raise ValueError(f"{path} is not a .npz file; write it with np.savez.") from error
    except DAMAGE as error:
        if isinstance(error, LacksArraysError):
            raise
        if reading is not None and "allow_pickle" in str(error):
            raise ValueError(
                f"{reading} in {path} is an array of Python objects, which are never unpickled; "
                "write it again as numbers."
            ) from error
        reason = str(error).rstrip(".").splitlines()[0] if str(error) else "truncated"
        what = f"{path} cannot" if reading is None else f"{path} (its array {reading}) cannot"
        raise ValueError(
            f"{what} be read as a .npz of plain arrays ({reason}); write it again with np.savez."
        ) from error


def _needed(path: Path, names: list[str]) -> list[str]:
    """Returns the names of the arrays to read, or raises if there are not all of them."""
    splits = SPLITS if {"x_train", "x_test"} & set(names) else ALL
    needed = [name for pair in splits.values() for name in pair]
    missing = [name for name in needed if name not in names]
    if missing:
        raise LacksArraysError(
            f"{path} lacks the array(s) {', '.join(missing)} (it holds {shorten(sorted(names))}); "
            "expected x_train, y_train, x_test, y_test, or x, y."
        )
    return needed


def _check_images(images: np.ndarray, name: str, path: str) -> np.ndarray:
    """Returns u8[N, H, W, C] from u8[N, H, W] or u8[N, H, W, C], or raises."""
    if images.dtype != np.uint8:
        has_nan = np.issubdtype(images.dtype, np.inexact) and np.isnan(images).any()
        raise ValueError(
            f"{name} in {path} is {images.dtype}{' with NaN values' if has_nan else ''}; "
            "expected uint8 pixels 0..255."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} in {path} has shape {images.shape}; expected [N, H, W], [N, H, W, 1] "
            "or [N, H, W, 3]."
        )
    if images.size == 0:
        raise ValueError(f"{name} in {path} has shape {images.shape}, so it holds no pixel.")
    return images


def _check_labels(labels: np.ndarray, name: str, path: str) -> np.ndarray:
    """Returns i32[N], or raises if the labels are not whole numbers of 0 or more."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} in {path} is {labels.dtype} of shape {labels.shape}; "
            "expected integer labels of shape [N]."
        )
    if labels.size and int(labels.min()) < 0:
        raise ValueError(f"{name} in {path} has the label {labels.min()}; labels start at 0.")
    if labels.size and int(labels.max()) > np.iinfo(np.int32).max:
        raise ValueError(f"{name} in {path} has the label {labels.max()}; labels are 0..C-1.")
    return labels.astype(np.int32)


def _check_contiguous(labels: np.ndarray, path: str) -> None:
    """Raises unless the labels are 0..C-1 without a gap."""
    present = np.unique(labels)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if gaps.size:
        raise ValueError(
            f"{path} has {len(present)} different labels up to {present[-1]} but no label "
            f"{gaps[0]}; renumber them 0..{len(present) - 1} without gaps."
        )
