"""The whole main job, as a user starts it: its seconds and its accuracy."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# What a rehearsal makes of it: two tasks of two classes, hardly trained.
QUICK = (
    "--data.num-classes 4 --data.tasks 2 --train.epochs 1 --inversion.images-per-task 16 "
    "--inversion.batch-size 16 --train.batch-size 16 --train.replay-batch-size 16 "
    "--inversion.full-model.num-steps 2 --cfs.num-epochs 1"
).split()


def measure(
    timeout: float, *, overrides: Sequence[str] = (), cache: str | None = None
) -> Iterator[dict[str, Any]]:
    """The row of `launch/run.py --config configs/mnist.py` in a process of its own.

    Args:
      timeout: seconds after which it is stopped.
      overrides: of the config.
      cache: an empty folder where its compiled programs are kept for `idle`.

    Raises:
      RuntimeError: it failed, with the end of what it said, or took too long.
    """
    environment = dict(os.environ)
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "launch/run.py", "--config", "configs/mnist.py"]
        command += ["--workdir", folder + "/run", *overrides]
        since = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=timeout, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"stopped after {timeout:.0f} s, when its time was over") from None
        seconds = time.monotonic() - since
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise RuntimeError(f"the job ended with code {done.returncode}: {' / '.join(said)}")
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    yield {
        "total_seconds": seconds,
        "seconds": summary["seconds"],
        "last_accuracy": summary["last_accuracy"],
        "peak_bytes": summary["peak_memory_bytes"],
        "overrides": list(overrides),
    }
