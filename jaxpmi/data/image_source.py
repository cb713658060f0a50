"""ImageSource: what every kind of data set looks like to the rest of the project."""

import dataclasses
import hashlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_NAMES = 100  # of what was passed over, to be told one by one


class PassedOver(NamedTuple):
    """What was found beside the data and not read."""

    what: str  # a plural, such as "files that are no images"
    count: int
    names: tuple[str, ...]  # of the first of them

    @classmethod
    def of(cls, what: str, names: Sequence[str]) -> "PassedOver":
        """Counts them, and keeps the first names."""
        return cls(what, len(names), tuple(names[:MOST_NAMES]))

    def __str__(self) -> str:
        shown, more = self.names[:3], ", ..." if self.count > len(self.names[:3]) else ""
        names = ", ".join(map(repr, shown)) + more if shown else ""
        return f"{self.what} ({self.count})" + (f": {names}" if names else "")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """Labelled images of two splits, 'train' and 'test', whose pixels are read on request.

    Labels are the data set's own, 0..C-1; no pixel is decoded before `read` asks for it.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # H, W, C; C is 1 (grey) or 3 (RGB)
    labels: Mapping[str, np.ndarray]  # split -> i32[N]
    reader: Callable[[str, np.ndarray], np.ndarray]  # (split, i64[n]) -> u8[n, H, W, C]
    passed_over: tuple[PassedOver, ...] = ()
    digest: str = ""  # of the pixels as they are stored, or of what stands for them

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    def read(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Returns u8[n, H, W, C], the images at `indices` (i32[n]) of a split, pixels 0..255."""
        return self.reader(split, check_rows(self.name, self.labels, split, indices))


def digest_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Returns a digest of the shapes and the bytes of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_rows(
    name: str, columns: Mapping[str, np.ndarray], split: str, indices: np.ndarray
) -> np.ndarray:
    """Returns i64[n], rows of a split of the data set `name`, or raises if there are no such rows.

    Args:
      name: of the data set, for errors.
      columns: split -> something of every image, [N].
      split: one of them.
      indices: i32[n], each in [0, N).
    """
    if split not in columns:
        raise ValueError(f"data set '{name}' has no split '{split}'; use one of {sorted(columns)}.")
    indices = np.asarray(indices)
    if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
        raise ValueError(
            f"image indices are {indices.dtype} of shape {indices.shape}; "
            "expected a 1-D array of integers."
        )
    size = len(columns[split])
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.size:
        raise ValueError(
            f"image index {outside[0]} is outside split '{split}' of '{name}', "
            f"which has {size} images."
        )
    return indices.astype(np.int64)


def stratified_split(labels: np.ndarray, test_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices per class into (train, test), class after class, with a fixed permutation.

    One `RandomState(0)` permutes the images of class 0, then of class 1, and so on; the first
    part of each permutation is for training, the next `test_fraction` of it for testing.

    Args:
      labels: i32[N].
      test_fraction: in (0, 1); every class of two or more images gets at least one of each.

    Returns:
      i64[N_train] and i64[N_test].
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction} must lie between 0 and 1; 0.2 is usual.")
    random = np.random.RandomState(0)
    train, test = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[random.permutation(len(members))]
        num_test = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        num_train = len(members) - num_test
        train.append(members[:num_train])
        test.append(members[num_train:])
    return np.concatenate(train), np.concatenate(test)


def select_images(
    source: ImageSource, chosen: Mapping[str, tuple[str, np.ndarray]], num_classes: int
) -> ImageSource:
    """Returns a source of the first `num_classes` classes and of some of the images.

    Args:
      source: where the pixels stay.
      chosen: new split -> (split of `source`, i64[n] indices into it).
      num_classes: classes kept; every chosen label must be smaller.
    """
    labels = {new: source.labels[old][indices] for new, (old, indices) in chosen.items()}

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        old, members = chosen[split]
        return source.reader(old, members[indices])

    names = source.class_names[:num_classes]
    return dataclasses.replace(source, labels=labels, class_names=names, reader=reader)


def keep_first_classes(source: ImageSource, num_classes: int | None) -> ImageSource:
    """Keeps only the labels below `num_classes`; None keeps all."""
    if num_classes is None:
        return source
    if not 2 <= num_classes <= source.num_classes:
        raise ValueError(
            f"num_classes={num_classes} does not fit data set '{source.name}'; "
            f"choose 2 to {source.num_classes}, or None for all."
        )
    chosen = {
        split: (split, np.flatnonzero(labels < num_classes))
        for split, labels in source.labels.items()
    }
    return select_images(source, chosen, num_classes)


def hold_out_test_images(source: ImageSource, test_fraction: float) -> ImageSource:
    """Splits a source of one split into 'train' and 'test'; one that has both is returned as is."""
    if "test" in source.labels:
        return source
    train, test = stratified_split(source.labels["train"], test_fraction)
    chosen = {"train": ("train", train), "test": ("train", test)}
    return select_images(source, chosen, source.num_classes)


def repeat_channels(source: ImageSource, rgb: bool) -> ImageSource:
    """Gives grey images three equal channels, if `rgb`; others stay as they are."""
    height, width, channels = source.image_shape
    if not rgb or channels == 3:
        return source

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        return np.repeat(source.reader(split, indices), 3, axis=-1)

    return dataclasses.replace(source, image_shape=(height, width, 3), reader=reader)


def without_images(
    name: str, class_names: tuple[str, ...], image_shape: tuple[int, int, int]
) -> ImageSource:
    """Classes of which there is no image, as of the data that a pretrained network once saw."""

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        del split, indices  # there is none to ask for
        return np.zeros((0, *image_shape), np.uint8)

    labels = {split: np.zeros(0, np.int32) for split in ("train", "test")}
    return ImageSource(name, class_names, image_shape, labels, reader)


def append_classes(known: ImageSource, source: ImageSource) -> ImageSource:
    """The classes of `known`, which has no image, and after them those of another source."""
    if known.image_shape != source.image_shape:
        raise ValueError(
            f"images of '{source.name}' are {source.image_shape}, those of '{known.name}' "
            f"{known.image_shape}; set data.image_size and data.rgb so that they are equal."
        )
    labels = {split: part + np.int32(known.num_classes) for split, part in source.labels.items()}
    names = known.class_names + source.class_names
    return dataclasses.replace(source, class_names=names, labels=labels)


def relabel(source: ImageSource, labels: np.ndarray, class_names: tuple[str, ...]) -> ImageSource:
    """Names the classes anew: that of label i becomes `labels[i]`, i32, among `class_names`."""
    moved = {split: labels[part] for split, part in source.labels.items()}
    return dataclasses.replace(source, class_names=class_names, labels=moved)


def check_every_class(source: ImageSource) -> ImageSource:
    """Returns the source, or raises naming the classes that lack training or test images."""
    if source.num_classes < 2:
        raise ValueError(
            f"data set '{source.name}' has {source.num_classes} class(es); at least 2 are needed."
        )
    for split, word in (("train", "training"), ("test", "test")):
        counts = np.bincount(source.labels[split], minlength=source.num_classes)
        empty = [source.class_names[label] for label in np.flatnonzero(counts == 0)]
        if empty:
            raise ValueError(
                f"data set '{source.name}' has no {word} images of class(es) {shorten(empty)}; "
                "every class needs at least one training and one test image."
            )
    return source


def shorten(names: list, limit: int = 5) -> str:
    """Returns the first names joined by commas, and how many more there are."""
    text = ", ".join(repr(name) if isinstance(name, str) else str(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
