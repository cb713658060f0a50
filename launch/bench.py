"""Benchmarks: `python launch/bench.py {pmi,pictures,stack,vdfd,device} [--json FILE] [--quick]`.

`pmi` asks whether per-layer inversion saves time over full-model inversion from noise, `pictures`
the same of a real ImageNet network, `stack` what it saves to invert equal blocks by one scan,
`vdfd` what its penalty adds to a training step, `device` all that can be asked of the device that
is there. What is compared stands in benchmarks/, a module for each, beside the results.
"""

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

# A bare clone works without `pip install`: the checkout root goes on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODELS = ("resnet_small", "vit_small_patch7")  # the keys of benchmarks.pmi.PLANS


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    options = parse(arguments)
    begin = time.monotonic()

    def say(text):
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    def write(**results):
        if options.json:
            report = {
                "command": " ".join(["python launch/bench.py", *arguments]),
                "date": time.strftime("%Y-%m-%d"),
                **environment(),
                "seconds": round(time.monotonic() - begin, 1),
                **results,
            }
            # A run that is stopped while it writes leaves the report of the row before.
            new = options.json.with_name(options.json.name + ".new")
            new.write_text(json.dumps(report, indent=1) + "\n")
            new.replace(options.json)

    if options.command == "device":
        return run_device(options, say, write)
    commands = {"pmi": run_pmi, "pictures": run_pictures, "stack": run_stack, "vdfd": run_vdfd}
    print(commands[options.command](options, say, write))
    return 0


def run_pmi(options: argparse.Namespace, say: Callable, write: Callable) -> str:
    """Runs `pmi`; returns its table."""
    from benchmarks import pmi  # imports JAX, so --help need not wait for it

    how = {"model": options.model, "clock": options.clock, "quick": options.quick}
    return _run_seeds(functools.partial(pmi.run_seed, **how), options, say, write)


def run_pictures(options: argparse.Namespace, say: Callable, write: Callable) -> str:
    """Runs `pictures`; returns its table."""
    from benchmarks import bootstrapped_pictures
    from benchmarks import pictures

    if options.bootstrapped:
        plan = bootstrapped_pictures.QUICK if options.quick else bootstrapped_pictures.FULL
        run_seed = functools.partial(bootstrapped_pictures.run_seed, plan=plan)
        return _run_seeds(run_seed, options, say, write, bootstrapped_pictures.table)
    plan = pictures.QUICK if options.quick else pictures.FULL
    run_seed = functools.partial(pictures.run_seed, plan=plan)
    return _run_seeds(run_seed, options, say, write)


def _run_seeds(run_seed, options, say, write, table=None):
    """Rows of all seeds as a table."""
    from benchmarks import pmi_ratio

    rows, details = [], []
    for seed in options.seeds:
        more, detail = run_seed(seed, say=say)
        rows, details = rows + more, [*details, detail]
        write(rows=rows, details=details)  # every seed: a run that is stopped leaves something
    return (table or pmi_ratio.table)(rows)


def run_stack(options: argparse.Namespace, say: Callable, write: Callable) -> str:
    """Runs `stack`; returns its table."""
    from benchmarks import stack

    depths, repetitions = ((2,), 1) if options.quick else ((4, 12, 24), 3)
    rows = stack.run_depths(depths, repetitions=repetitions, say=say)
    write(rows=rows)
    return stack.table(rows)


def run_vdfd(options: argparse.Namespace, say: Callable, write: Callable) -> str:
    """Runs `vdfd`; returns its table."""
    from benchmarks import vdfd

    num_old, num_steps, repetitions = ((2,), 2, 1) if options.quick else ((10, 50), 10, 5)
    rows = vdfd.run_cases(num_old, num_steps=num_steps, repetitions=repetitions, say=say)
    write(rows=rows)
    return vdfd.table(rows)


def run_device(options: argparse.Namespace, say: Callable, write: Callable) -> int:
    """Runs `device` and prints its tables; returns the exit code."""
    # PyTorch shares the card, and needs some of its memory. Read when JAX is imported.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from benchmarks.device import main

    return main.run(options, say, write)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; a wrong one exits with code 2 and one line."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pmi = commands.add_parser("pmi", help="a per-layer start against noise, its cost included")
    pmi.add_argument("--model", choices=MODELS, default=MODELS[0], help=f"(default {MODELS[0]})")
    clocks = ("wall", "cpu")
    pmi.add_argument(
        "--clock",
        choices=clocks,
        default=clocks[0],
        help="what seconds are; cpu: of "
        "the process, for a busy machine without accelerator (default wall)",
    )
    pictures = commands.add_parser("pictures", help="the same of a real network of ImageNet")
    pictures.add_argument(
        "--bootstrapped",
        action="store_true",
        help="many pictures, of which later ones start from "
        "earlier ones, against as many from noise",
    )
    for command in (pmi, pictures):
        seeds = "comma-separated (default 0)"
        command.add_argument("--seeds", type=_seeds, default=(0,), help=seeds)
    stack = commands.add_parser("stack", help="blocks inverted by one scan against unrolled ones")
    vdfd = commands.add_parser("vdfd", help="a training step with VDFD's penalty against without")
    device = _device_parser(commands)
    for command in (pmi, pictures, stack, vdfd, device):
        command.add_argument("--json", type=Path, help="write all that was measured here")
        command.add_argument("--quick", action="store_true", help="only to see that it works")
    options = parser.parse_args(arguments)
    if options.json and not options.json.resolve().parent.is_dir():
        parser.error(f"{options.json.resolve().parent} is not a folder")
    return options


def _device_parser(commands):
    """That of `device`, whose help is the package's docstring, which imports nothing."""
    from benchmarks import device

    parser = commands.add_parser(
        "device",
        help="this device: is all right on it, how fast, what holds it back",
        description=device.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, help="in which to end (default 9, quick 4, CPU 20)"
    )
    sections = ", ".join(device.SECTIONS)
    parser.add_argument(
        "--only", nargs="+", choices=device.SECTIONS, metavar="SECTION", help=f"of {sections}"
    )
    parser.add_argument("--torch-python", help="a Python that has PyTorch (default this one)")
    parser.add_argument(
        "--write-expected", action="store_true", help="keep this CPU's results for `parity`"
    )
    return parser


def environment() -> dict:
    """Device and versions."""
    import jax

    from jaxpmi.runs.accounting import versions

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
