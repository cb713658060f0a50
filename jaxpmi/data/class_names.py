"""Names of classes in words, as prompts need them: read from a file, and made readable."""

import dataclasses
import importlib.resources
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import shorten

TEXT = "utf-8-sig"  # of text files: UTF-8, with or without the mark that some editors put first
HOW = "one name per line in the order of the labels, or lines such as 'n01443537 goldfish'"


def name_classes(source: ImageSource, path: str | None) -> ImageSource:
    """Gives a source readable class names, made of those that a file holds, or of its own."""
    names = source.class_names if path is None else read_class_names(path, source.class_names)
    return dataclasses.replace(source, class_names=tuple(map(readable_name, names)))


def readable_name(name: str) -> str:
    """Takes off a leading number and a dot, and puts spaces in place of underscores.

    >>> readable_name("001.Black_footed_Albatross")
    'Black footed Albatross'
    """
    words = re.sub(r"^\d+\.(?=[^\W\d])", "", name).replace("_", " ")
    return " ".join(words.split()) or name


def read_class_names(path: str, stored: Sequence[str]) -> tuple[str, ...]:
    """Reads one name per class from a text file; empty lines do not count.

    Args:
      path: a UTF-8 file of either one name per line, in the order of the labels, or lines of a name
        of `stored` and the name to be used; lines of other classes are then passed over.
      stored: the names that the data set has, such as WordNet ids or folder names.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no text, or names too few, too many or not all of the classes; or it has a
        name per line where numbers in the stored names are in another order than people count.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist or is no file; data.class_names is {HOW}.")
    try:
        lines = [line for line in file.read_text(TEXT).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text; data.class_names is {HOW}.") from error
    pairs = [line.split(maxsplit=1) for line in lines]
    pairs = [pair for pair in pairs if len(pair) == 2 and pair[0] in stored]
    if not pairs:
        if len(lines) != len(stored):
            raise ValueError(
                f"{file} has {len(lines)} name(s) for {len(stored)} classes; give {HOW}."
            )
        _check_order(file, stored)
        return tuple(line.strip() for line in lines)
    names = dict(pairs)
    missing = [name for name in stored if name not in names]
    if missing or len(names) < len(pairs):
        problem = f"no line for {shorten(missing)}" if missing else "two lines for a class"
        raise ValueError(f"{file} has {problem}; give every class one line.")
    return tuple(names[name].strip() for name in stored)


def _check_order(file: Path, stored: Sequence[str]) -> None:
    """Raises if whoever names the classes line by line may have another order in mind.

    Texts sort as class1, class10, class2; people count.
    """
    by_text = sorted(stored)
    if list(stored) == by_text != sorted(by_text, key=_counting):
        raise ValueError(
            f"{file} has one name per line, but the classes are in the order {shorten(by_text)}, "
            f"not in that of their numbers; give lines such as '{by_text[0]} a name' instead."
        )


def _counting(name: str) -> list[tuple[bool, int | str]]:
    """Sorts numbers within names as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts]


def imagenet_class_names() -> tuple[str, ...]:
    """The names of the 1,000 classes of ImageNet (ILSVRC 2012), in the order of their labels.

    >>> imagenet_class_names()[207]
    'golden retriever'

    The file beside this module also has their WordNet ids, in the form that `read_class_names`
    takes. Its origin: IMAGENET_CLASSES_LICENSE.md.
    """
    return tuple(name for _, name in _imagenet_classes())


def imagenet_labels(names: Sequence[str]) -> np.ndarray:
    """The labels i32[n] of classes of ImageNet, by their WordNet ids or by their names.

    >>> imagenet_labels(["n02099601", "goldfish"])
    array([207,   1], dtype=int32)

    Raises:
      ValueError: a name that is none of ImageNet's.
    """
    positions = {}
    for label, both in reversed(list(enumerate(_imagenet_classes()))):
        for name in both:  # the first of two classes of one name counts
            positions[name.lower()] = label
    unknown = [name for name in names if name.lower() not in positions]
    if unknown:
        raise ValueError(
            f"{shorten(unknown)} is no class of ImageNet; give images of its classes, named by "
            "WordNet ids such as n02099601."
        )
    return np.asarray([positions[name.lower()] for name in names], np.int32)


def _imagenet_classes():
    """WordNet id and name of every class, by label."""
    file = importlib.resources.files("jaxpmi.data") / "imagenet_classes.txt"
    return [line.split(maxsplit=1) for line in file.read_text("utf-8").splitlines()]


def check_names_are_words(names: Sequence[str]) -> None:
    """Raises a `ValueError` if names are WordNet ids or all are numbers: no prompt for CLIP."""
    ids = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    if ids or all(name.isdecimal() for name in names):
        kind = "a WordNet id" if ids else "a number"
        raise ValueError(
            f"the class name {(ids or names)[0]!r} is {kind}, which says nothing to CLIP; give "
            f"data.class_names, a text file of {HOW}."
        )
