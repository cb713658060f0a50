"""Benchmarks: `python launch/bench.py pmi [--seeds 0,1] [--json FILE] [--quick]`.

`pmi` asks whether per-layer inversion saves time over full-model inversion from noise; what is
compared stands in launch/bench_pmi.py, results in benchmarks/pmi.md.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# A bare clone works without `pip install`: the checkout root goes on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parse(arguments)
    import bench_pmi  # imports JAX, so --help need not wait for it

    begin = time.monotonic()

    def say(text):
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    rows, details = [], []
    for seed in options.seeds:
        more, detail = bench_pmi.run_seed(seed, quick=options.quick, say=say)
        rows, details = rows + more, [*details, detail]
        if options.json:  # after every seed, so that a run that is stopped leaves something
            report = {
                "command": " ".join(["python launch/bench.py", *arguments]),
                "date": time.strftime("%Y-%m-%d"),
                **environment(),
                "seconds": round(time.monotonic() - begin, 1),
                "rows": rows,
                "details": details,
            }
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(bench_pmi.table(rows))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; a wrong one exits with code 2 and one line."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pmi = commands.add_parser("pmi", help="a per-layer start against noise, its cost included")
    pmi.add_argument("--seeds", type=_seeds, default=(0,), help="comma-separated (default 0)")
    pmi.add_argument("--json", type=Path, help="write the rows and all that was measured here")
    pmi.add_argument("--quick", action="store_true", help="a minute, only to see that it works")
    options = parser.parse_args(arguments)
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"{options.json.resolve().parent} is not a folder")
    return options


def environment() -> dict:
    """Device and versions."""
    import jax

    from jaxpmi.continual.accounting import versions

    device = jax.devices()[0]
    return {
        "device": f"{len(jax.devices())} x {device.device_kind}, {_processor()}, "
        f"{os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "versions": versions(),
    }


def _processor():
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _seeds(text):
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0,1,2") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
