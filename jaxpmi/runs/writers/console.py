"""Lines on the console; a run is never stopped by the place where they are read."""

import contextlib
import sys
from typing import TextIO


def tell(text: str, stream: TextIO | None = None, *, end: str = "\n") -> None:
    """Writes text to a stream, standard output by default.

    Letters that the stream's encoding lacks are replaced. Nothing is written, and nothing is
    raised, where nobody reads: a closed stream, a pipe whose reader has left, a full disk.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # a process without a console
        return
    with contextlib.suppress(OSError, ValueError):  # the latter of a closed stream
        try:
            stream.write(text + end)
        except UnicodeEncodeError as error:
            replaced = text.encode(error.encoding, "replace").decode(error.encoding)
            stream.write(replaced + end)
        stream.flush()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether what is written can be redrawn in place."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
