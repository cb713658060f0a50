"""Paths among the settings: wherever one names a file or a folder, `~` is the home folder.

`Annotated[str, PLACE]` is a path. Settings expand it when they are made, so whoever reads it need
not.
"""

import os
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """The marker of a setting that is a path."""

    home: str = "~"

    def __repr__(self) -> str:  # in help(), where it stands among the types
        return "a path"


PLACE = Place()
PACKAGE = Path(__file__).resolve().parents[1]


def expand(path: str) -> str:
    """Returns a path with the home folder in place of a leading `~` or `~name`.

    A home that is not known stays as it is, and is then a file that does not exist.
    """
    return os.path.expanduser(path)


def shipped_folder(name: str) -> Path:
    """Returns a folder of the project: inside the package where it is installed, else beside it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
