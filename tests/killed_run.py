"""A tiny run in a process of its own, which may kill itself at a chosen moment.

  python tests/killed_run.py FOLDER METHOD [EVENT PATTERN]

The moment is the first of Python's audit events named EVENT whose first argument PATTERN matches:
files made, opened, renamed, removed, and "metrics" for every line of metrics.jsonl once it is
written. So the moment is exact, also inside a save that goes on in the background.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: E402, F401  the tests' devices and flags, so that their programs are found
import jax  # noqa: E402
import pytest  # noqa: E402
from tiny_run import set_up  # noqa: E402
from tiny_run import tiny_config  # noqa: E402

from jaxpmi import experiment  # noqa: E402
from jaxpmi.continual import chunks  # noqa: E402
from jaxpmi.runs import session  # noqa: E402


def run_in_small_chunks(patch, folder, method="pmi"):
    """A run with a step of progress, and so a moment to be killed, for every training step.

    Steps are numbered over the whole run: task 0 has 1 (begin), 2-5 (train), 6 (remember) and
    7 (evaluate); task 1 has 8, 9-10 (making images), 11-14 (train), 15 (calibrate), 16, 17, 18
    (judge); task 2 has 19, 20-23 (making images), 24-27 (train), 28, 29, 30, 31. Phases are saved
    at their end and every two steps.
    """
    set_up(patch)
    patch.setattr(chunks, "CHUNK_STEPS", 1)
    config = tiny_config(folder, method, train__epochs=2, checkpoint_every=2)
    return config, experiment.run(config)


def kill_at(event, pattern):
    """Kills this process, as the kernel does when memory runs out, at the first such event."""

    def hook(name, arguments):
        if name == event and re.search(pattern, str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def announce_metrics(patch):
    """Raises the audit event "metrics" with the step of every line written."""
    write = session.MetricsWriter.write

    def announced(self, step, scalars):
        write(self, step, scalars)
        sys.audit("metrics", json.dumps(step))

    patch.setattr(session.MetricsWriter, "write", announced)


def main(folder, method, *moment):
    # Programs are read, not kept: a process killed while it writes one would leave it damaged.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    with pytest.MonkeyPatch.context() as patch:
        announce_metrics(patch)
        if moment:
            kill_at(*moment)
        run_in_small_chunks(patch, Path(folder), method)


if __name__ == "__main__":
    main(*sys.argv[1:])
