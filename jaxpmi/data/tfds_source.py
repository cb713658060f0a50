"""A TFDS image-classification data set, stored as ArrayRecord, read without tensorflow."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.config.places import expand
from jaxpmi.data import decoding
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import PassedOver

SAMPLE = 4096  # bytes at both ends of a file, for the fingerprint

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
    """Opens the prepared data set `config.name` under `config.path`, or at it.

    Its image and its label are the features that `config.features` names, else those that it
    declares, else the only ones of their kind; a label is a class, or a whole number of 0 or more.
    Images whose label is below 0 have none, and are passed over.
    """
    folder = find_prepared(config.name, config.path)
    builder = _open_builder(folder)
    image_key, label_key = find_features(builder, folder, config.features)
    shape = builder.info.features[image_key].shape
    shape = (*_image_size(shape, config, folder), shape[-1])
    splits = _labelled_splits(builder, folder, (image_key, label_key))
    labels = {split: chosen.labels for split, chosen in splits.items()}
    names, labels = _used_classes(builder.info.features[label_key], labels)
    records = {split: _raw_records(builder, chosen.stored) for split, chosen in splits.items()}

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        rows = splits[split].rows[indices]
        wheres = [f"record {i} of split '{splits[split].stored}' in {folder}" for i in rows]
        encoded = [row[image_key] for row in records[split].__getitems__(rows.tolist())]
        resize = config.image_size is not None
        return decoding.decode_images(encoded, shape, resize, wheres, config.ground)

    stored = {split: chosen.stored for split, chosen in splits.items()}
    return ImageSource(
        builder.info.name, names, shape, labels, reader,
        _passed_over(builder, splits), _digest(builder, stored, image_key),
    )  # fmt: skip


def find_prepared(name: str, path: str | None) -> Path:
    """Returns the version folder of a prepared data set, the newest where there are several.

    Args:
      name: as TFDS writes it: `cifar100`, `imagenette/160px-v2` or `cifar100:3.0.2`.
      path: the data directory, a version folder itself, or None for TFDS's own default.
    """
    if path is None:
        import tensorflow_datasets as tfds

        path = tfds.core.constants.DATA_DIR
    root = Path(expand(str(path)))
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


def find_features(builder, folder: Path, wanted: tuple[str, str] | None) -> tuple[str, str]:
    """Returns the names of the image and of the label feature.

    Raises:
      ValueError: there are none such, or several of which none is declared as the one to be learnt.
    """
    import tensorflow_datasets as tfds

    features = dict(sorted(builder.info.features.items()))
    images = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
    classes = [name for name, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    numbers = [n for n, f in features.items() if n not in classes and _is_whole_number(f)]
    labels = classes or numbers
    declared = (*(builder.info.supervised_keys or ("image", "label")),)[:2]
    if wanted is None and declared[0] in images and declared[1] in labels:
        wanted = declared
    if wanted is None and len(images) == len(labels) == 1:
        wanted = images[0], labels[0]
    if wanted is None and images and labels:
        raise ValueError(
            f"{folder} has the image(s) {images} and the label(s) {labels}; name the two to "
            f"be learnt, such as data.features={(images[0], labels[0])}."
        )
    if wanted is None:
        raise ValueError(
            f"{folder} has the features {sorted(features)} but not an image and a class label; "
            "expected an image-classification data set."
        )
    if wanted[0] not in images or wanted[1] not in (*classes, *numbers):
        raise ValueError(
            f"data.features={wanted} must be an image and a label of {folder}; its images are "
            f"{images} and its labels {[*classes, *numbers]}."
        )
    image = features[wanted[0]]
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{folder} has {np.dtype(image.np_dtype)} images of shape {image.shape}; "
            "expected uint8 with 1 or 3 channels."
        )
    return wanted


def _is_whole_number(feature) -> bool:
    """Whether a feature is one whole number per example."""
    kind = getattr(feature, "np_dtype", None)
    whole = isinstance(kind, type | np.dtype) and np.issubdtype(kind, np.integer)
    return whole and getattr(feature, "shape", None) == ()


def _image_size(shape: tuple, config: DataConfig, folder: Path) -> tuple[int, int]:
    """Returns (height, width): config.image_size if set, else the stored size."""
    if config.image_size is not None:
        return config.image_size, config.image_size
    if None in shape[:2]:
        raise ValueError(f"{folder} has images of differing sizes; set data.image_size.")
    return shape[0], shape[1]


class StoredSplit(NamedTuple):
    """The labelled images of a stored split."""

    stored: str  # its name
    size: int  # of all its images, labelled or not
    rows: np.ndarray  # i64[N], which of them are labelled
    labels: np.ndarray  # i32[N]


def _labelled_splits(builder, folder: Path, keys: tuple[str, str]) -> dict[str, StoredSplit]:
    """Chooses the stored splits for 'train' and 'test': of the latter the first with labels."""
    stored = [name for name in builder.info.splits if builder.info.splits[name].num_examples]
    found = {}
    for split, candidates in (("train", ("train",)), ("test", ("test", "validation"))):
        for name in candidates:
            if split not in found and name in stored:
                labels = _read_labels(builder, folder, name, keys)
                rows = np.flatnonzero(labels >= 0)
                if len(rows):  # a test split without labels has -1 (ImageNet's)
                    found[split] = StoredSplit(name, len(labels), rows, labels[rows])
    if "train" in stored and "train" not in found:
        size = builder.info.splits["train"].num_examples
        raise ValueError(
            f"{folder} has {size} images in its split 'train', none of which has a {keys[1]} of "
            "0 or more; choose another label by data.features."
        )
    if "train" not in found and "test" in found:  # test only (ImageNet-R): divided by the caller
        found["train"] = found.pop("test")
    if not found:
        raise ValueError(f"{folder} has the splits {stored}; expected train, test or validation.")
    return found


def _passed_over(builder, splits: dict[str, StoredSplit]) -> tuple[PassedOver, ...]:
    """Splits that are not read, and images without a label in those that are."""
    used = [chosen.stored for chosen in splits.values()]
    unread = [name for name in builder.info.splits if name not in used]
    unlabelled = [
        PassedOver(f"images of {chosen.stored} without a label", chosen.size - len(chosen.rows), ())
        for chosen in splits.values()
        if chosen.size > len(chosen.rows)
    ]
    return (*([PassedOver.of("splits", unread)] if unread else []), *unlabelled)


def _digest(builder, stored: dict[str, str], image_key: str) -> str:
    """Returns a digest of the files of some splits: their sizes, first and last bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for split, name in stored.items():
        for file in builder.info.splits[name].filepaths:
            with Path(file).open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                head = opened.read(SAMPLE)
                opened.seek(max(size - SAMPLE, 0))
                digest.update(f"{split} {image_key} {size}\0".encode() + head + opened.read(SAMPLE))
    return digest.hexdigest()


def _read_labels(builder, folder: Path, split: str, keys: tuple[str, str]) -> np.ndarray:
    """Returns all labels [N] of a stored split; one scan, then a cache file beside the data.

    The scan looks at the headers of the images as well, so that none fails in a later task.
    """
    info = builder.info.splits[split]
    files = [[Path(file).name, Path(file).stat().st_size] for file in info.filepaths]
    fingerprint = json.dumps([str(builder.info.version), info.num_examples, keys, files])
    cache = folder / f"jaxpmi_labels_{split}.npz"
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if (
                str(arrays["fingerprint"]) == fingerprint
                and len(arrays["labels"]) == info.num_examples
            ):
                return arrays["labels"]
    except Exception:  # no cache, or a damaged one, of which NumPy raises nearly anything: scan
        pass
    labels = np.empty(info.num_examples, np.int64)
    for i, record in enumerate(_raw_records(builder, split)):
        where = f"record {i} of split '{split}' in {folder}"
        decoding.read_header(decoding.open_image(record[keys[0]], where), where)
        labels[i] = record[keys[1]]
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

    features = builder.info.features.items()
    images = [name for name, feature in features if isinstance(feature, tfds.features.Image)]
    decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
    return builder.as_data_source(split, decoders=decoders)


def _used_classes(
    feature, labels: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names the classes that have images, and renumbers them 0..C-1.

    ImageNet-R, for instance, has images of 200 of its 1000 labels.
    """
    present = np.unique(np.concatenate(list(labels.values())))
    renumbered = {
        split: np.searchsorted(present, values).astype(np.int32) for split, values in labels.items()
    }
    known = getattr(feature, "names", None)  # a plain number has none
    names = tuple(str(label) if known is None else known[label] for label in present.tolist())
    return names, renumbered
