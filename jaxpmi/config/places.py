"""Paths among the settings: wherever one names a file or a folder, `~` is the home folder.

`Annotated[str, PLACE]` is a path. Settings expand it when they are made, so whoever reads it need
not.
"""

import os
from typing import NamedTuple


class Place(NamedTuple):
    """The marker of a setting that is a path."""

    home: str = "~"

    def __repr__(self) -> str:  # in help(), where it stands among the types
        return "a path"


PLACE = Place()


def expand(path: str) -> str:
    """Returns a path with the home folder in place of a leading `~` or `~name`.

    A home that is not known stays as it is, and is then a file that does not exist.
    """
    return os.path.expanduser(path)
