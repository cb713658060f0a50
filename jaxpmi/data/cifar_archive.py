"""CIFAR-10 and CIFAR-100 from their original archives, in the python or the binary version."""

import functools
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

from jaxpmi.data.archive import Examples
from jaxpmi.data.archive import Recipe
from jaxpmi.data.archive import corrupt_archive_errors
from jaxpmi.data.archive import png
from jaxpmi.data.archive import require_members
from jaxpmi.data.archive import single_archive

HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class Layout(NamedTuple):
    """The member names of one of the two data sets, without folders and suffixes."""

    python_folder: str
    binary_folder: str
    meta: str  # python version: the pickle of the class names
    splits: dict[str, tuple[str, ...]]
    # label feature -> (key in the data pickles, key in the meta pickle, binary version's text file)
    labels: dict[str, tuple[str, str, str]]


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        "batches.meta",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        {"label": ("labels", "label_names", "batches.meta.txt")},
    ),
    "cifar100": Layout(
        "cifar-100-python",
        "cifar-100-binary",
        "meta",
        {"train": ("train",), "test": ("test",)},
        {
            "coarse_label": ("coarse_labels", "coarse_label_names", "coarse_label_names.txt"),
            "label": ("fine_labels", "fine_label_names", "fine_label_names.txt"),
        },
    ),
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles that hold nothing but numpy arrays and Python's own containers.

    A pickle can name any function to be called; this one knows three names and refuses the rest.
    """

    allowed: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Returns the allowed constructor of this name, or raises."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return self.allowed[module, name]


def cifar_recipe(name: str, archives: list[Path]) -> Recipe:
    """Reads the archive of 'cifar10' or 'cifar100' into memory (about 190 MB)."""
    layout = LAYOUTS[name]
    expected = f"{layout.python_folder.removesuffix('-batches-py').removesuffix('-python')}"
    expected = f"{expected}-python.tar.gz or {expected}-binary.tar.gz of {HOMEPAGE}"
    path = single_archive(archives, expected)
    with corrupt_archive_errors(path), tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers() if member.isfile()}
        binary = any(member.startswith(layout.binary_folder) for member in members)
        wanted = _member_names(layout, binary)
        require_members(path, set(members), sum(wanted.values(), []), expected)
        data = {
            group: [tar.extractfile(members[member]).read() for member in names]
            for group, names in wanted.items()
        }
    read = _read_binary if binary else _read_python
    try:
        class_names, splits = read(layout, data)
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError, IndexError, EOFError) as error:
        reason = str(error).rstrip(".").splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} does not hold the CIFAR arrays ({reason}); expected the archive {expected}."
        ) from error
    return Recipe(
        name=name,
        version="3.0.2",
        description=f"{name}: 32x32 colour images, from {path.name}.",
        homepage=HOMEPAGE,
        image_shape=(32, 32, 3),
        encoding="png",
        labels=class_names,
        text="id",
        splits={
            split: functools.partial(_examples, split, images, labels)
            for split, (images, labels) in splits.items()
        },
    )


def _member_names(layout: Layout, binary: bool) -> dict[str, list[str]]:
    """Returns the archive members of the class names ('meta') and of each split."""
    if binary:
        folder, suffix = layout.binary_folder, ".bin"
        meta = [text for _, _, text in layout.labels.values()]
    else:
        folder, suffix, meta = layout.python_folder, "", [layout.meta]
    names = {split: [f"{file}{suffix}" for file in files] for split, files in layout.splits.items()}
    return {group: [f"{folder}/{name}" for name in files] for group, files in names.items()} | {
        "meta": [f"{folder}/{name}" for name in meta]
    }


def _unpickle(data: bytes) -> dict[str, Any]:
    """Reads a pickle written by Python 2, whose strings are bytes."""
    loaded = ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(loaded, dict):
        raise ValueError(f"a pickle holds a {type(loaded).__name__}, not a dict")
    return {key.decode() if isinstance(key, bytes) else key: loaded[key] for key in loaded}


def _read_python(layout: Layout, data: dict[str, list[bytes]]):
    """Returns (label feature -> class names, split -> (u8[N, 32, 32, 3], feature -> i64[N]))."""
    meta = _unpickle(data["meta"][0])
    class_names = {
        feature: tuple(name.decode() if isinstance(name, bytes) else name for name in meta[key])
        for feature, (_, key, _) in layout.labels.items()
    }
    splits = {}
    for split in layout.splits:
        batches = [_unpickle(batch) for batch in data[split]]
        pixels = np.concatenate([batch["data"] for batch in batches])
        labels = {
            feature: np.concatenate([batch[key] for batch in batches])
            for feature, (key, _, _) in layout.labels.items()
        }
        splits[split] = _checked(pixels, labels, class_names)
    return class_names, splits


def _read_binary(layout: Layout, data: dict[str, list[bytes]]):
    """Returns the same as `_read_python`; a record is one byte per label, then the pixels."""
    class_names = {
        feature: tuple(line for line in text.decode().splitlines() if line)
        for feature, text in zip(layout.labels, data["meta"], strict=True)
    }
    splits = {}
    for split in layout.splits:
        flat = np.frombuffer(b"".join(data[split]), np.uint8)
        records = flat.reshape(-1, len(layout.labels) + 3072)
        labels = {feature: records[:, i] for i, feature in enumerate(layout.labels)}
        splits[split] = _checked(records[:, len(labels) :], labels, class_names)
    return class_names, splits


def _checked(pixels: np.ndarray, labels: dict[str, np.ndarray], class_names: dict[str, tuple]):
    """Returns (u8[N, 32, 32, 3], labels), or raises if the arrays do not fit each other."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise ValueError(f"the pixels are {pixels.dtype} of shape {pixels.shape}, not u8[N, 3072]")
    for feature, values in labels.items():
        if values.shape != pixels.shape[:1]:
            raise ValueError(f"{len(pixels)} images have labels of shape {values.shape}")
        if len(values) and not 0 <= values.min() <= values.max() < len(class_names[feature]):
            raise ValueError(f"a {feature} is outside 0..{len(class_names[feature]) - 1}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _examples(split: str, images: np.ndarray, labels: dict[str, np.ndarray]) -> Examples:
    for i, image in enumerate(images):
        example = {feature: int(values[i]) for feature, values in labels.items()}
        yield i, {"image": png(np.ascontiguousarray(image)), "id": f"{split}_{i:05d}", **example}
