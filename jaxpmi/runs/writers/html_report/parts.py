"""What a page is made of; the templates say how each looks."""

from typing import NamedTuple

from jaxpmi.runs.writers.html_report.numbers import Number

Cell = Number | str | None  # None: there is no such number


class Text(NamedTuple):
    """A paragraph."""

    text: str
    kind = "text"


class Code(NamedTuple):
    """Lines to be copied."""

    text: str
    kind = "code"


class Score(NamedTuple):
    """A number with its name and its meaning."""

    name: str
    number: Number
    meaning: str


class Scores(NamedTuple):
    """The numbers that count."""

    scores: list[Score]
    kind = "scores"


class Table(NamedTuple):
    """Rows below a caption; the first cell of each is its heading.

    Attributes:
      caption: what it shows.
      columns: a title for every cell of a row; [] where none is needed.
      rows: their cells.
      drawn: how shares of numbers are drawn: "shades" behind them, "bars" beside, or "".
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    drawn: str = ""
    kind = "table"


class Entry(NamedTuple):
    """A thing with a name and a value as text."""

    name: str
    value: str
    default: str | None  # None: it is not said
    meaning: str


class Entries(NamedTuple):
    """Many of these, below a caption."""

    caption: str
    entries: list[Entry]
    kind = "entries"


class Figure(NamedTuple):
    """A drawing, as SVG to be written as it is."""

    caption: str
    svg: str
    kind = "figure"


class Picture(NamedTuple):
    """Pixels, as the URI that holds them."""

    uri: str
    alt: str
    width: int
    height: int
    enlarged: bool  # each pixel a square


class Pictures(NamedTuple):
    """Pictures by row: its name, and pictures with a title each."""

    caption: str
    rows: list[tuple[str, list[tuple[str, Picture]]]]
    kind = "pictures"


class WholePicture(NamedTuple):
    """One picture that has its own text in it."""

    caption: str
    picture: Picture
    kind = "whole_picture"


class Details(NamedTuple):
    """Parts that are folded away."""

    title: str
    parts: list
    kind = "details"


class Section(NamedTuple):
    """A chapter of the page."""

    id: str
    title: str
    parts: list
