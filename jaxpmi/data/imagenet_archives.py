"""ImageNet (ILSVRC 2012) and Tiny-ImageNet from their original archives."""

import functools
import io
import tarfile
import zipfile
from pathlib import Path

from jaxpmi.data.archive import Examples
from jaxpmi.data.archive import Recipe
from jaxpmi.data.archive import corrupt_archive_errors
from jaxpmi.data.archive import require_members
from jaxpmi.data.archive import rgb_jpeg
from jaxpmi.data.archive import single_archive
from jaxpmi.data.class_names import TEXT
from jaxpmi.data.image_source import shorten

TINY_ROOT = "tiny-imagenet-200"
TINY_ARCHIVE = "tiny-imagenet-200.zip of http://cs231n.stanford.edu"
IMAGENET_ARCHIVES = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of https://image-net.org"


def tiny_imagenet_recipe(archives: list[Path]) -> Recipe:
    """Reads the class names and the file list of Tiny-ImageNet; classes are the sorted wnids."""
    path = single_archive(archives, TINY_ARCHIVE)
    needed = [f"{TINY_ROOT}/wnids.txt", f"{TINY_ROOT}/val/val_annotations.txt"]
    with corrupt_archive_errors(path), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".JPEG")]
        require_members(path, set(archive.namelist()), needed, TINY_ARCHIVE)
        wnids, annotations = (archive.read(name).decode(TEXT, "replace") for name in needed)
    names = tuple(sorted(wnids.split()))
    labels = {"train": {}, "validation": {}}
    for member in members:
        parts = member.split("/")  # tiny-imagenet-200/train/<wnid>/images/<wnid>_<i>.JPEG
        if len(parts) == 5 and parts[1] == "train":
            labels["train"][member] = parts[2]
    for line in annotations.splitlines():
        file_name, wnid = (line.split("\t") + [""])[:2]
        labels["validation"][f"{TINY_ROOT}/val/images/{file_name}"] = wnid
    unknown = sorted({wnid for split in labels.values() for wnid in split.values()} - set(names))
    if unknown or not all(labels.values()):
        problem = f"lists no class {shorten(unknown)}" if unknown else "has no images in a split"
        raise ValueError(f"{path} {problem}; expected the archive {TINY_ARCHIVE}.")
    require_members(path, set(members), list(labels["validation"]), TINY_ARCHIVE)
    return Recipe(
        name="tiny_imagenet",
        version="1.0.0",
        description="Tiny-ImageNet: 64x64 colour images of 200 ImageNet classes.",
        homepage="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        image_shape=(64, 64, 3),
        encoding="jpeg",
        labels={"label": names},
        text="file_name",
        splits={
            split: functools.partial(_tiny_examples, path, labels_of)
            for split, labels_of in labels.items()
        },
    )


def _tiny_examples(path: Path, labels: dict[str, str]) -> Examples:
    with corrupt_archive_errors(path), zipfile.ZipFile(path) as archive:
        for member, wnid in labels.items():
            image = rgb_jpeg(archive.read(member), f"{member} in {path}")
            file_name = member.rsplit("/", 1)[-1]
            yield file_name, {"image": image, "label": wnid, "file_name": file_name}


def imagenet_recipe(
    archives: list[Path], val_labels: Path | None = None, classes: Path | None = None
) -> Recipe:
    """Reads the lists of ImageNet's train and val archives; classes are the sorted wnids.

    Args:
      archives: the two .tar files, in any order.
      val_labels: text file of one wnid per validation image, in the order of the sorted file names;
        None: the list of all 50,000 that comes with TFDS.
      classes: text file of the wnids to keep (ImageNet-100, -50); None: all in the train archive.
    """
    train, val = _train_and_val(archives)
    tars = {name.removesuffix(".tar") for name in _file_names(train)}
    names = sorted(tars if classes is None else set(_read_words(classes)))
    missing = sorted(set(names) - tars)
    if missing:
        raise ValueError(
            f"{train} lacks the class(es) {shorten(missing)} that {classes} lists; "
            "remove them from the list."
        )
    labels = {
        file_name: wnid
        for file_name, wnid in _validation_labels(val, val_labels).items()
        if wnid in names
    }
    return Recipe(
        name="imagenet2012",
        version="5.1.0",
        description=f"ImageNet (ILSVRC 2012), {len(names)} classes.",
        homepage="https://image-net.org/",
        image_shape=(None, None, 3),
        encoding="jpeg",
        labels={"label": tuple(names)},
        text="file_name",
        splits={
            "train": functools.partial(_train_examples, train, frozenset(names)),
            "validation": functools.partial(_val_examples, val, labels),
        },
    )


def _train_and_val(archives: list[Path]) -> tuple[Path, Path]:
    """Tells the train archive (a tar of one tar per class) from the val archive (images)."""
    found = {}
    for path in archives:
        names = _file_names(path)
        if names and all(name.endswith(".tar") for name in names):
            found["train"] = path
        elif names and all(name.startswith("ILSVRC2012_val_") for name in names):
            found["val"] = path
        else:
            raise ValueError(
                f"{path} is neither a tar of one tar per class nor one of ILSVRC2012_val_*.JPEG; "
                f"expected {IMAGENET_ARCHIVES}."
            )
    if len(archives) != 2 or len(found) != 2:
        raise ValueError(
            f"got {len(archives)} archive(s), of kind {sorted(found)}; expected --archive twice: "
            f"{IMAGENET_ARCHIVES}."
        )
    return found["train"], found["val"]


def _file_names(path: Path) -> list[str]:
    with corrupt_archive_errors(path), tarfile.open(path) as tar:
        return [Path(member.name).name for member in tar.getmembers() if member.isfile()]


def _read_words(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a text file of one wnid per line."
        )
    return path.read_text(TEXT, errors="replace").split()


def _validation_labels(val: Path, val_labels: Path | None) -> dict[str, str]:
    """Returns file name -> wnid of every validation image."""
    if val_labels is None:
        import tensorflow_datasets as tfds

        stock = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
        wnids, origin = stock.read_text().split(), "the list that comes with TFDS"
    else:
        wnids, origin = _read_words(val_labels), str(val_labels)
    file_names = sorted(_file_names(val))
    if len(wnids) != len(file_names):
        raise ValueError(
            f"{val} has {len(file_names)} images but {origin} has {len(wnids)} labels; give one "
            "wnid per image, in the order of the sorted file names, with --val-labels."
        )
    return dict(zip(file_names, wnids, strict=True))


def _train_examples(path: Path, wnids: frozenset[str]) -> Examples:
    with corrupt_archive_errors(path), tarfile.open(path) as tar:
        for member in tar:
            wnid = Path(member.name).name.removesuffix(".tar")
            if member.isfile() and wnid in wnids:
                with tarfile.open(fileobj=tar.extractfile(member)) as class_tar:
                    for file_name, data in _images(class_tar):
                        yield _example(path, file_name, data, wnid)


def _val_examples(path: Path, labels: dict[str, str]) -> Examples:
    with corrupt_archive_errors(path), tarfile.open(path) as tar:
        for file_name, data in _images(tar):
            if file_name in labels:
                yield _example(path, file_name, data, labels[file_name])


def _images(tar: tarfile.TarFile):
    for member in tar:
        if member.isfile():
            yield Path(member.name).name, tar.extractfile(member).read()


def _example(path: Path, file_name: str, data: bytes, wnid: str):
    image = io.BytesIO(rgb_jpeg(data, f"{file_name} in {path}"))
    return file_name, {"image": image, "label": wnid, "file_name": file_name}
