"""Runs one experiment: `python launch/run.py --config configs/mnist.py [--method lwf ...]`.

Any field of the config can be overridden; `--help` lists them all. The same command resumes a run
that was stopped. With JAXPMI_TRACEBACK=1 errors show their traceback.
"""

import os
import sys
from collections.abc import Sequence

from console import one_sentence
from console import run_command


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code, 2 for anything wrong with the input."""
    try:
        path, overrides = split_arguments(arguments)
        # Here, so that a setting of JAX that it cannot read is told as any wrong input is.
        from jaxpmi.config.load import load_config

        config = load_config(path, overrides)
        from jaxpmi import experiment  # imports JAX, so --help and typos need not wait for it

        experiment.keep_programs()
        experiment.run(config)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last checkpoint.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("JAXPMI_TRACEBACK"):
            raise
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of `--config` (None only beside `--help`) and the other arguments."""
    rest, path = list(arguments), None
    for i, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == "--config":
            path = value if equals else "".join(rest[i + 1 : i + 2])
            del rest[i : i + (1 if equals else 2)]
            break
    if (not path or path.startswith("--")) and not {"-h", "--help"} & set(rest):
        raise ValueError("--config FILE is missing; give a config file, e.g. configs/mnist.py.")
    return path or None, rest


if __name__ == "__main__":
    sys.exit(run_command(main))
