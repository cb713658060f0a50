"""Runs a config with several methods, settings and seeds, and compares them in a table.

  python launch/sweep.py --config configs/mnist.py --methods pmi r_dfcil --seeds 0 1 2 \\
      --set train.epochs 15 40 --workdir runs/sweep

Every combination is a run of its own, in a folder of `--workdir` that is named after it. Other
options are those of launch/run.py, for all of them. The same command goes on where it was stopped
or killed. With JAXPMI_TRACEBACK=1 errors show their traceback.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from console import one_sentence
from console import run_command

RUN = [sys.executable, str(Path(__file__).with_name("run.py"))]


def parse_args(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the sweep's own options, and those of all its runs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--methods", nargs="+", default=[], help="those of the config, if left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="the same")
    parser.add_argument(
        "--set",
        nargs="+",
        action="append",
        default=[],
        metavar=("FIELD", "VALUE"),
        help="a field of the config and its values; quotes around a value of several words",
    )
    parser.add_argument("--workdir", help="of the sweep; the config's and _sweep, if left out")
    parser.add_argument("--list", action="store_true", help="only print the cells' commands")
    parser.add_argument(
        "--table-only", action="store_true", help="only print the table of what has finished"
    )
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns 0, 1 if a cell failed, 2 for anything wrong with the input."""
    own, overrides = parse_args(arguments)
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is signal.SIG_DFL:
            signal.signal(name, signal.default_int_handler)
    try:
        return sweep(own, overrides)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one was.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("JAXPMI_TRACEBACK"):
            raise
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return 2


def sweep(own: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Lists or runs the cells and prints their table; returns the exit code.

    Raises:
      ValueError, OSError: a cell cannot work, or the workdir is another's.
    """
    from jaxpmi.runs.cells import plan_cells  # imports JAX, so --help need not wait for it
    from jaxpmi.runs.sweep import run_cells
    from jaxpmi.runs.sweep import write_table
    from jaxpmi.runs.writers import tell

    settings = {name: values for name, *values in own.set}
    if len(settings) < len(own.set) or not all(settings.values()):
        raise ValueError("every --set takes another field, and one or more values.")
    cells = plan_cells(
        own.config,
        overrides,
        methods=own.methods,
        seeds=own.seeds,
        settings=settings,
        workdir=own.workdir,
    )
    workdir = Path(cells[0].config.workdir).parent
    if own.list:
        for cell in cells:
            tell(f"# {cell.name}{', finished' if cell.is_finished else ''}")
            tell(shlex.join([*RUN, *cell.arguments]))
        return 0
    failures = {} if own.table_only else run_cells(cells, workdir, RUN)
    tell(f"\n{write_table(cells, workdir)}\n{workdir / 'table.md'}\n{workdir / 'table.json'}")
    for name, error in failures.items():
        print(f"error: {name}: {error}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
