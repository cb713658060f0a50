"""Names of classes: made readable, read from files, refused where they are no words."""

from pathlib import Path

import numpy as np
import pytest

import jaxpmi.data.class_names
from jaxpmi.config import DataConfig
from jaxpmi.data import open_source
from jaxpmi.data.class_names import check_names_are_words
from jaxpmi.data.class_names import imagenet_class_names
from jaxpmi.data.class_names import read_class_names
from jaxpmi.data.class_names import readable_name

WORDNET = ("n01443537", "n01484850")


@pytest.mark.parametrize(
    ("stored", "readable"),
    [
        ("aquarium_fish", "aquarium fish"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("great  white_ shark", "great white shark"),
        ("Chuck-will's-widow", "Chuck-will's-widow"),
        ("3.5_inch", "3.5 inch"),  # a number, not a prefix
        ("7", "7"),
        ("7.", "7."),
        ("_", "_"),
        ("n01443537", "n01443537"),
    ],
)
def test_readable_name(stored, readable):
    assert readable_name(stored) == readable


@pytest.fixture
def named(tmp_path):
    """Writes a file of names and returns its path."""

    def write(content):
        path = tmp_path / "names.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("goldfish\ngreat white shark\n", ("goldfish", "great white shark")),
        ("\n goldfish \r\n\r\n shark", ("goldfish", "shark")),
        # In any order, with lines of other classes.
        ("n01484850 white shark\nn01443537\tgoldfish\nn09 tench", ("goldfish", "white shark")),
        ("naïve\nfür", ("naïve", "für")),
        ("\ufeffred fox\ncat", ("red fox", "cat")),  # V11: the mark that some editors put first
        ("\ufeffn01484850 white shark\nn01443537 goldfish", ("goldfish", "white shark")),
    ],
)
def test_names_of_a_file(named, content, names):
    assert read_class_names(named(content), WORDNET) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("goldfish\n", r"names.txt has 1 name\(s\) for 2 classes; give one name per line in the"),
        ("a\nb\nc\n", r"names.txt has 3 name\(s\) for 2 classes; give one name per line in the"),
        ("", r"has 0 name\(s\) for 2 classes"),
        ("n01443537 goldfish\nn01443538 shark", "has no line for 'n01484850'; give every class"),
        ("n01443537 a\nn01484850 b\nn01443537 c", "has two lines for a class; give every class"),
        (b"\xff\xfe", "is no UTF-8 text; data.class_names is one name per line"),
    ],
)
def test_wrong_file(named, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_class_names(named(content), WORDNET)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("stored", "clear"),
    [
        (("class1", "class10", "class2"), False),  # as texts sort; people count
        (("class1", "class2", "class10"), True),  # the data set has an order of its own
        (("c01", "c02", "c10"), True),
        (("10", "9", "x"), False),
    ],
)
def test_one_name_per_line_where_the_order_is_not_clear(named, stored, clear):
    """V10's kind: names in the order of numbers for folders in that of texts."""
    path = named("one\ntwo\nthree")
    if clear:
        assert read_class_names(path, stored) == ("one", "two", "three")
        return
    with pytest.raises(ValueError, match=f"in the order '{stored[0]}', .*; give lines such as"):
        read_class_names(path, stored)
    lines = "".join(f"{name} word{name}\n" for name in stored)
    assert read_class_names(named(lines), stored) == tuple(f"word{name}" for name in stored)


def test_missing_file(tmp_path):
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist or is no file; data.class_na"):
            read_class_names(str(path), WORDNET)


def test_a_source_has_the_names_of_the_file(tmp_path, named):
    x = np.zeros((6, 4, 4), np.uint8)
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(6) % 3)
    config = DataConfig(
        source="npz",
        path=str(tmp_path / "set.npz"),
        class_names=named("dog\ncat\nsea_cow\n"),
        num_classes=2,  # the file names all classes, also those that are not used
    )
    assert open_source(config).class_names == ("dog", "cat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tench", "n01443537"), "the class name 'n01443537' is a WordNet id, which says nothing"),
        (("0", "1", "2"), "the class name '0' is a number, which says nothing to CLIP; give data."),
    ],
)
def test_names_that_are_no_words(names, message):
    with pytest.raises(ValueError, match=message):
        check_names_are_words(names)


def test_words_are_names():
    check_names_are_words(("7", "seven"))
    check_names_are_words(("n014435371", "nothing"))


def test_the_names_of_imagenet_are_in_the_order_of_its_labels():
    names = imagenet_class_names()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[652], names[999]) == ("tench", "military uniform", "toilet tissue")
    path = Path(jaxpmi.data.class_names.__file__).with_name("imagenet_classes.txt")
    ids = [line.split()[0] for line in path.read_text().splitlines()]
    assert ids == sorted(set(ids))  # labels are numbered so
    assert read_class_names(str(path), ids[5:7]) == names[5:7]
