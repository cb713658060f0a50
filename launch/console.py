"""How the commands of this folder begin and end, on whatever console there is.

Importing it puts the package on the path, so that a bare clone works without `pip install`.
"""

import os
import sys
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "jaxpmi").is_dir():  # not where it is installed: there this folder lies in the package
    sys.path.insert(0, str(ROOT))


def run_command(main: Callable[[Sequence[str]], int]) -> int:
    """Calls `main` with the command line's arguments; returns its exit code.

    Letters that the console lacks are replaced, and a reader that has left changes no exit code.
    """
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")
    try:
        return main(sys.argv[1:])
    finally:
        _forget_unread()


def one_sentence(error: Exception) -> str:
    """Says what happened on one line; a system error names its file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _forget_unread() -> None:
    """Writes what is left to nowhere if nobody reads it, or Python would end with an error."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
