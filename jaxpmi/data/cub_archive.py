"""CUB-200-2011, the birds of Caltech and UCSD, from its original archive, with its own split."""

import functools
import tarfile
from pathlib import Path

from jaxpmi.data.archive import Examples
from jaxpmi.data.archive import Recipe
from jaxpmi.data.archive import corrupt_archive_errors
from jaxpmi.data.archive import require_members
from jaxpmi.data.archive import rgb_jpeg
from jaxpmi.data.archive import single_archive
from jaxpmi.data.class_names import TEXT

ROOT = "CUB_200_2011"
ARCHIVE = "CUB_200_2011.tgz of https://www.vision.caltech.edu/datasets/cub_200_2011"
LISTS = (f"{ROOT}/images.txt", f"{ROOT}/train_test_split.txt")


def cub_recipe(archives: list[Path]) -> Recipe:
    """Reads the file list and the split; a class is a folder such as 001.Black_footed_Albatross."""
    path = single_archive(archives, ARCHIVE)
    with corrupt_archive_errors(path), tarfile.open(path) as tar:
        members = {member.name: member for member in tar if member.isfile()}
        require_members(path, set(members), list(LISTS), ARCHIVE)
        images, split = (_two_columns(path, tar, members[name]) for name in LISTS)
    if images.keys() != split.keys():
        raise ValueError(
            f"{path} lists {len(images)} images but splits others; expected the archive {ARCHIVE}."
        )
    files = {"train": {}, "test": {}}
    for number, file in images.items():
        files["train" if split[number] == "1" else "test"][f"{ROOT}/images/{file}"] = file
    require_members(path, set(members), [*files["train"], *files["test"]], ARCHIVE)
    return Recipe(
        name="cub200_2011",
        version="1.0.0",
        description="Caltech-UCSD Birds 200-2011: photographs of 200 kinds of birds.",
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011",
        image_shape=(None, None, 3),
        encoding="jpeg",
        labels={"label": tuple(sorted({_folder(file) for file in images.values()}))},
        text="file_name",
        splits={
            name: functools.partial(_examples, path, of_split) for name, of_split in files.items()
        },
    )


def _two_columns(path, tar, member):
    """Returns image number -> the rest of its line."""
    text = tar.extractfile(member).read().decode(TEXT, "replace")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError(
            f"{member.name} in {path} is no list of two columns; expected the archive {ARCHIVE}."
        )
    return dict(rows)


def _folder(file):
    return file.split("/")[0]


def _examples(path: Path, files: dict[str, str]) -> Examples:
    with corrupt_archive_errors(path), tarfile.open(path) as tar:
        for member in tar:
            if member.name in files:
                file = files[member.name]
                image = rgb_jpeg(tar.extractfile(member).read(), f"{member.name} in {path}")
                yield file, {"image": image, "label": _folder(file), "file_name": file}
