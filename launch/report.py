"""Makes the page of a run, or one that compares several.

  python launch/report.py runs/mnist_pmi
  python launch/report.py runs/seed0 runs/seed1 runs/finetune --out comparison.html

Of one run it writes report.html into its folder, whether the run has finished or not; of several
it writes comparison.html, here. Both are single files that need no network.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from console import one_sentence
from console import run_command


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's --workdir")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the page")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Writes the page and says where; returns the exit code, 2 for anything wrong."""
    args = parse_args(arguments)
    try:
        print(make_page([path.expanduser() for path in args.runs], args.out))
    except (ValueError, OSError) as error:
        if os.environ.get("JAXPMI_TRACEBACK"):
            raise
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def make_page(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page of one run, or of several; returns its path."""
    # Imports JAX with the package, so --help and typos need not wait for it.
    from jaxpmi.runs.writers import write_comparison
    from jaxpmi.runs.writers import write_report

    if len(runs) == 1:
        return write_report(runs[0], out and out.expanduser())
    return write_comparison(runs, Path("comparison.html") if out is None else out.expanduser())


if __name__ == "__main__":
    sys.exit(run_command(main))
