"""Benchmarks: `python launch/bench.py pmi [--seeds 0,1] [--json FILE] [--quick]`.

`pmi` asks whether per-layer inversion saves time over full-model inversion from noise; see
`launch/bench_pmi.py` for what is compared and `benchmarks/README.md` for results.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

# A bare clone works without `pip install`: the checkout root goes on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bench_ratios  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parse(arguments)
    import bench_pmi  # imports JAX, so --help need not wait for it

    begin = time.monotonic()

    def say(text):
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    rows, details = [], []
    for seed in options.seeds:
        seed_rows, seed_details = bench_pmi.run_seed(
            seed, quick=options.quick, clip=options.clip, say=say
        )
        rows += seed_rows
        details.append(seed_details)
        if options.json:  # after every seed, so that a run that is stopped leaves something
            write_report(options, rows, details, time.monotonic() - begin)
    print(bench_ratios.table(bench_ratios.mean_rows(rows)))
    if options.json:
        print(f"\nrows: {options.json}; means, curves, seconds, versions: {_side(options.json)}")
    return 0


def write_report(options: argparse.Namespace, rows: list, details: list, seconds: float) -> None:
    """Writes the rows, and beside them all that was measured."""
    facts = environment()
    here = {"device": facts["device"]["kind"], "jax": facts["versions"]["jax"]}
    report = {
        "benchmark": options.command,
        "seeds": [entry["seed"] for entry in details],
        "quick": options.quick,
        "clip_pixels": options.clip,
        "seconds": round(seconds, 1),
        "load_average": os.getloadavg(),
        **facts,
        "means": bench_ratios.mean_rows(rows),
        "details": details,
    }
    options.json.write_text(json.dumps([{**row, **here} for row in rows], indent=1) + "\n")
    _side(options.json).write_text(json.dumps(report, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; a wrong one exits with code 2 and one line."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pmi = commands.add_parser("pmi", help="per-layer start against noise, its cost included")
    pmi.add_argument("--seeds", type=_seeds, default=(0, 1), help="comma-separated (default 0,1)")
    pmi.add_argument("--json", type=Path, help="write the rows here, the rest beside it")
    pmi.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    pmi.add_argument("--clip", action="store_true", help="keep pixels valid, on both sides")
    options = parser.parse_args(arguments)
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"{options.json.resolve().parent} is not a folder")
    return options


def environment() -> dict:
    """Device and versions."""
    import jax

    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": len(jax.devices()),
            "host": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }


def _side(path):
    return path.with_suffix(".details.json")


def _seeds(text):
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0,1,2") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
