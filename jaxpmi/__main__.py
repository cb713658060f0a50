"""`jaxpmi run ...` is `python launch/run.py ...`, for those who have the package alone.

So are its other programs; `python -m jaxpmi` is the same.
"""

import importlib
import sys

from jaxpmi.config.places import shipped_folder

PROGRAMS = ("run", "sweep", "report", "predict", "prepare")
USAGE = f"usage: jaxpmi {{{','.join(PROGRAMS)}}} ...; --help after one of them tells of it"


def main() -> None:
    """Runs the program that the first word names, with the words after it."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in PROGRAMS:
        helped = name in ("-h", "--help")
        print(USAGE, file=sys.stdout if helped else sys.stderr)
        sys.exit(0 if helped else 2)
    folder = shipped_folder("launch")
    sys.path.insert(0, str(folder))  # as Python does for a program
    sys.argv = [f"jaxpmi {name}", *arguments]
    program, console = map(importlib.import_module, (name, "console"))
    sys.exit(console.run_command(program.main))


if __name__ == "__main__":
    main()
