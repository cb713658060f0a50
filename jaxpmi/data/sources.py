"""open_source: embedded digits, a .npz file, an image folder or a TFDS data set as one type."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import DataConfig
from jaxpmi.data import decoding
from jaxpmi.data import folder_source
from jaxpmi.data import image_source
from jaxpmi.data import tfds_source
from jaxpmi.data.class_names import name_classes
from jaxpmi.data.coloured_digits import paint_digits
from jaxpmi.data.image_source import ImageSource

EMBEDDED_PATH = Path(__file__).with_name("mnist5k.npz")


def open_source(config: DataConfig) -> ImageSource:
    """Opens the data set that `config` names; pixels are read later, by `ImageSource.read`."""
    if config.source in SCENE_KINDS:
        raise ValueError(
            f"data source '{config.source}' has a class per pixel, none per image; open it with "
            f"open_scenes, or use one of {list(SOURCES)}."
        )
    source = SOURCES[config.source](config)
    source = image_source.hold_out_test_images(source, config.test_fraction)
    source = name_classes(source, config.class_names)
    source = image_source.keep_first_classes(source, config.num_classes)
    source = image_source.repeat_channels(source, config.rgb)
    return image_source.check_every_class(source)


def dataset_name(config: DataConfig) -> str:
    """What to call the data set: its name, its kind or its place."""
    if config.source in ("embedded", "tfds"):
        return config.name
    return config.source if config.path is None else config.path


def open_embedded(config: DataConfig) -> ImageSource:
    """Opens MNIST-5k: 28x28 grey digits, per class 400 for training and 100 for testing."""
    with np.load(EMBEDDED_PATH, allow_pickle=False) as arrays:
        images = arrays["x"].reshape(-1, 28, 28, 1)
        labels = arrays["y"].astype(np.int32)
    source = _array_source("mnist5k", {"train": (images, labels)}, config.image_size)
    # The split is part of the benchmark, so config.test_fraction does not move it.
    return image_source.hold_out_test_images(source, test_fraction=0.2)


def open_coloured_digits(config: DataConfig) -> ImageSource:
    """Opens MNIST-5k in colours: 40 classes named "red zero" to "yellow nine", RGB."""
    return paint_digits(open_embedded(config))


def open_npz(config: DataConfig) -> ImageSource:
    """Opens a .npz file of uint8 images [N, H, W(, C)] and labels 0..C-1.

    The arrays are `x_train, y_train, x_test, y_test`, or `x, y`, which are then split per class
    by `config.test_fraction`.
    """
    path = config.path
    if path is None:
        raise ValueError("data.source='npz' needs data.path, the .npz file.")
    arrays = _load_npz(Path(path))
    if "x_train" in arrays or "x_test" in arrays:
        names = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    else:
        names = {"train": ("x", "y")}
    missing = [name for pair in names.values() for name in pair if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks the array(s) {', '.join(missing)} (it holds {sorted(arrays)}); "
            "expected x_train, y_train, x_test, y_test, or x, y."
        )
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
    return _array_source(Path(path).stem, splits, config.image_size)


SOURCES = {
    "embedded": open_embedded,
    "coloured_digits": open_coloured_digits,
    "npz": open_npz,
    "folder": folder_source.open_folder,
    "tfds": tfds_source.open_tfds,
}


def _array_source(
    name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]], image_size: int | None
) -> ImageSource:
    """Wraps in-memory (images, labels) per split; images are resized when they are read."""
    height, width, channels = splits["train"][0].shape[1:]
    num_classes = 1 + max(int(labels.max()) for _, labels in splits.values())

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        return decoding.resize_images(splits[split][0][indices], image_size)

    return ImageSource(
        name=name,
        class_names=tuple(str(label) for label in range(num_classes)),
        image_shape=(image_size or height, image_size or width, channels),
        labels={split: labels for split, (_, labels) in splits.items()},
        reader=reader,
    )


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads every array of a .npz file; nothing in it is ever unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; data.path must be a .npz.")
    try:
        # Opened by us: np.load leaks the handle of a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (AttributeError, TypeError) as error:  # a bare .npy array is no context manager
        raise ValueError(f"{path} is not a .npz file; write it with np.savez.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).rstrip(".").splitlines()[0] if str(error) else "truncated"
        raise ValueError(
            f"{path} cannot be read as a .npz of plain arrays ({reason}); "
            "write it again with np.savez."
        ) from error


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
