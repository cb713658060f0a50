"""A TFDS image-classification data set, stored as ArrayRecord, read without tensorflow."""

import json
import os
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data import decoding
from jaxpmi.data.image_source import ImageSource

# Data-set name -> the arguments of launch/prepare.py that make it.
PREPARE = {
    "cifar10": "cifar10 --archive cifar-10-python.tar.gz",
    "cifar100": "cifar100 --archive cifar-100-python.tar.gz",
    "tiny_imagenet": "tiny_imagenet --archive tiny-imagenet-200.zip",
    "imagenet2012": (
        "imagenet --archive ILSVRC2012_img_train.tar --archive ILSVRC2012_img_val.tar"
    ),
    "cub200_2011": "cub200 --archive CUB_200_2011.tgz",
    "imagenet_r": "folder --name imagenet_r --archive imagenet-r",
}


def open_tfds(config: DataConfig) -> ImageSource:
    """Opens the prepared data set `config.name` under `config.path`, or at it."""
    folder = find_prepared(config.name, config.path)
    builder = _open_builder(folder)
    image_key, label_key = _supervised_keys(builder, folder)
    channels = builder.info.features[image_key].shape[-1]
    height, width = _image_size(builder.info.features[image_key].shape, config, folder)
    shape = (height, width, channels)
    splits, labels = _labelled_splits(builder, folder, label_key)
    names = tuple(builder.info.features[label_key].names)
    names, labels = _drop_absent_classes(names, labels)
    records = {split: _raw_records(builder, stored) for split, stored in splits.items()}

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        rows = records[split].__getitems__([int(i) for i in indices])
        wheres = [f"record {i} of split '{splits[split]}' in {folder}" for i in indices]
        encoded = [row[image_key] for row in rows]
        return decoding.decode_images(encoded, shape, config.image_size is not None, wheres)

    return ImageSource(builder.info.name, names, shape, labels, reader)


def find_prepared(name: str, path: str | None) -> Path:
    """Returns the version folder of a prepared data set, the newest where there are several.

    Args:
      name: as TFDS writes it: `cifar100`, `imagenette/160px-v2` or `cifar100:3.0.2`.
      path: the data directory, a version folder itself, or None for TFDS's own default.
    """
    if path is None:
        import tensorflow_datasets as tfds

        path = tfds.core.constants.DATA_DIR
    root = Path(path).expanduser()
    if (root / "features.json").is_file():
        return root
    folder, _, version = name.partition(":")
    found = sorted((root / folder).glob("**/features.json")) if folder else []
    found = [file.parent for file in found if version in ("", file.parent.name)]
    found = [entry for entry in found if not entry.name.startswith("incomplete.")]
    if not found:
        arguments = PREPARE.get(folder, f"folder --name {folder} --archive FOLDER_OF_CLASS_FOLDERS")
        raise FileNotFoundError(
            f"data set '{name}' was not found under {root}; prepare it with "
            f"`python launch/prepare.py {arguments} --data-dir {root}`."
        )
    configs = sorted({str(entry.parent.relative_to(root)) for entry in found})
    if len(configs) > 1:
        raise ValueError(
            f"data set '{name}' has several configs; set data.name to one of {configs}."
        )
    return max(found, key=lambda entry: [int(part) for part in re.findall(r"\d+", entry.name)])


def _open_builder(folder: Path):
    """Returns the read-only TFDS builder of a version folder that holds ArrayRecord files."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        file_format = builder.info.file_format.value
    except Exception as error:  # a damaged folder shows as any of JSON, key and protobuf errors
        raise ValueError(
            f"{folder} is not a readable TFDS folder ({type(error).__name__}); prepare it again."
        ) from error
    if file_format != "array_record":
        raise ValueError(
            f"{folder} is stored as {file_format}, which needs tensorflow to be read; "
            "prepare it again with file_format='array_record' (launch/prepare.py does so)."
        )
    return builder


def _supervised_keys(builder, folder: Path) -> tuple[str, str]:
    """Returns the names of the image and the label feature, or raises if there are none such."""
    import tensorflow_datasets as tfds

    image_key, label_key = (builder.info.supervised_keys or ("image", "label"))[:2]
    features = dict(builder.info.features.items())
    image, label = features.get(image_key), features.get(label_key)
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(
            f"{folder} has the features {sorted(features)} but not one image and one class label; "
            "expected an image-classification data set."
        )
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{folder} has {np.dtype(image.np_dtype)} images of shape {image.shape}; "
            "expected uint8 with 1 or 3 channels."
        )
    return image_key, label_key


def _image_size(shape: tuple, config: DataConfig, folder: Path) -> tuple[int, int]:
    """Returns (height, width): config.image_size if set, else the stored size."""
    if config.image_size is not None:
        return config.image_size, config.image_size
    if None in shape[:2]:
        raise ValueError(f"{folder} has images of differing sizes; set data.image_size.")
    return shape[0], shape[1]


def _labelled_splits(
    builder, folder: Path, label_key: str
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Chooses the stored splits for 'train' and 'test', and returns them with their labels."""
    stored = [name for name in builder.info.splits if builder.info.splits[name].num_examples]
    splits, labels = {}, {}
    for split, candidates in (("train", ("train",)), ("test", ("test", "validation"))):
        for name in candidates:
            if split not in splits and name in stored:
                found = _read_labels(builder, folder, name, label_key)
                if found.min() >= 0:  # a test split without labels has -1 (ImageNet's)
                    splits[split], labels[split] = name, found
    if "train" not in splits and "test" in splits:  # test only (ImageNet-R): divided by the caller
        splits["train"], labels["train"] = splits.pop("test"), labels.pop("test")
    if not splits:
        raise ValueError(f"{folder} has the splits {stored}; expected train, test or validation.")
    return splits, labels


def _read_labels(builder, folder: Path, split: str, label_key: str) -> np.ndarray:
    """Returns i32[N], all labels of a stored split; one scan, then a cache file beside the data."""
    info = builder.info.splits[split]
    files = [[Path(file).name, Path(file).stat().st_size] for file in info.filepaths]
    fingerprint = json.dumps([str(builder.info.version), info.num_examples, label_key, files])
    cache = folder / f"jaxpmi_labels_{split}.npz"
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if (
                str(arrays["fingerprint"]) == fingerprint
                and len(arrays["labels"]) == info.num_examples
            ):
                return arrays["labels"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        pass  # no cache, or a damaged one: scan
    records = _raw_records(builder, split)
    labels = np.asarray([record[label_key] for record in records], np.int32)
    _write_cache(cache, labels=labels, fingerprint=np.asarray(fingerprint))
    return labels


def _write_cache(cache: Path, **arrays: np.ndarray) -> None:
    """Writes a .npz that is never seen half-written; a read-only data directory is no error."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)
        os.replace(temporary, cache)
    except OSError:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _raw_records(builder, split: str):
    """Returns the random-access records of a stored split with images left encoded."""
    import tensorflow_datasets as tfds

    image_key = (builder.info.supervised_keys or ("image", "label"))[0]
    decoders = {image_key: tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=decoders)


def _drop_absent_classes(
    names: tuple[str, ...], labels: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Renumbers the classes that have images 0..C-1 (ImageNet-R uses 200 of 1000 labels)."""
    present = np.unique(np.concatenate(list(labels.values())))
    renumbered = {
        split: np.searchsorted(present, values).astype(np.int32) for split, values in labels.items()
    }
    return tuple(names[label] for label in present), renumbered
