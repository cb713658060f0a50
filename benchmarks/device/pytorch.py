"""DeepInversion's step against PyTorch's, eager and compiled, in turns on the same device."""

import contextlib
import importlib.util
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.device import cases
from benchmarks.device.cases import Case
from benchmarks.device.speed import CIFAR
from benchmarks.device.speed import Size
from benchmarks.device.speed import cifar_resnet
from benchmarks.device.timing import compile_case
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.config import DeepInversionConfig

SCRIPT = Path(__file__).with_name("torch_step.py")
AGREEMENT = 1e-3  # relative, of the first losses in float32
CHECKED_STEPS = 3


class Torch:
    """A process that runs torch_step.py and answers its requests."""

    def __init__(self, python: str, seconds: float):
        """Starts it; it is ended after so many seconds, so that no answer is waited for longer."""
        self._process = subprocess.Popen(
            [python, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Read all along: a full pipe would stop the process.
        self._said: list[str] = []
        self._reader = threading.Thread(
            target=lambda: self._said.extend(self._process.stderr), daemon=True
        )
        self._reader.start()
        self._late = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.start()

    def _end(self):
        self._late = True
        self._process.kill()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request of torch_step.py.

        Raises:
          RuntimeError: it is an error, or the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._reader.join(timeout=5)
            if self._late:
                raise RuntimeError("PyTorch's process was stopped when its time was over")
            last = "".join(self._said).strip().splitlines()[-1:] or ["nothing was said"]
            code = self._process.returncode
            raise RuntimeError(f"PyTorch's process ended with {code}: {last[0]}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"PyTorch: {reply['error']}")
        return reply

    def close(self) -> None:
        """Ends the process."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what a dead process has not read
            self._process.stdin.close()
        self._process.stdout.close()
        self._reader.join()
        self._process.stderr.close()


def has_torch(python: str | None) -> bool:
    """Whether PyTorch is there: in a given Python it is taken for granted."""
    return python is not None or importlib.util.find_spec("torch") is not None


def measure(left: float, *, size: Size, python: str | None) -> Iterator[dict[str, Any]]:
    """Rows: do the losses agree, then seconds of a step in turns with eager and compiled PyTorch.

    Args:
      left: seconds until all has to end.
      size: how large it is.
      python: the Python that has PyTorch; None: this one.
    """
    model = cifar_resnet("resnet34", size)
    case = make_case(model, size)
    torch = Torch(python or sys.executable, left)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "problem"
            write_problem(file, case)
            loaded = torch.ask(load=str(file))
        yield {
            "version": loaded["version"],
            "torch_device": loaded["device"],
            **_check(torch, case),
        }
        program = compile_case(case)
        jax.block_until_ready(program.run())
        for kind in ("eager", "compiled"):
            yield {"version": loaded["version"], "mode": kind, **_race(torch, program, kind, size)}
    finally:
        torch.close()


def _stride(block, network, index):
    """Of a block's first convolution."""
    name = block_name(index)
    module = block.merge(*(tree[name] for tree in network.variables))
    return module.conv1.strides if hasattr(module, "conv1") else module.conv.strides


def make_case(model: Any, size: Size) -> Case:
    """Without random views, so that both see the same images."""
    return cases.deep_inversion(
        model, CIFAR, batch=size.batch, num_steps=size.num_steps, jitter_pixels=0, flip=False
    )


def write_problem(file: Path, case: Case) -> None:
    """Parameters, stored moments and images, as `torch_step.read_tensors` takes them."""
    network, config = case.inputs["variables"], DeepInversionConfig()
    model, variables = network.model, network.variables
    low, high = (float(x[0]) for x in network.pixel_range)
    start = np.clip(case.inputs["start"], low, high)  # as DeepInversion begins
    tensors = {"head": network.head.kernel, "labels": case.inputs["labels"], "start": start}
    for i in range(len(model.blocks)):
        name = block_name(i)
        for layer, value in variables.params[name].items():
            tensors[f"{name}/{layer.removesuffix('/kernel')}"] = value
        for layer, moments in variables.batch_stats[name].items():
            tensors |= {f"{name}/{layer}/{k}": v for k, v in moments._asdict().items()}
    entries, blob = [], b""
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        kind = "i4" if array.dtype == np.int32 else "f4"
        entries.append((name, kind, array.shape, len(blob)))
        blob += array.astype(f"<{kind}").tobytes()
    settings = {
        "strides": [_stride(block, network, i) for i, block in enumerate(model.blocks)],
        "statistics_weight": config.statistics_weight,
        # Ours is the mean of one norm, the norm itself: the batch is one.
        "total_variation_weight": config.total_variation_weight,
        "learning_rate": config.learning_rate,
        "low": low,
        "high": high,
    }
    header = json.dumps({"tensors": entries, "settings": settings}).encode()
    file.write_bytes(struct.pack("<q", len(header)) + header + blob)


def _check(torch, case):
    """Whether the losses of the first steps agree."""
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(case.run)(case.inputs)["losses"][:CHECKED_STEPS])
    theirs = np.asarray(torch.ask(losses=len(ours))["losses"])
    difference = float(np.abs(ours / theirs - 1.0).max())
    return {"difference": difference, "tolerance": AGREEMENT, "passed": difference <= AGREEMENT}


def _race(torch, program, kind, size):
    """Median seconds of a step of ours and theirs, taken in turns."""
    since = time.monotonic()
    for _ in range(2):  # compiles, and chooses algorithms
        torch.ask(time=kind, steps=size.num_steps)
    warm = time.monotonic() - since
    ours, theirs = [], []
    for _ in range(size.repeats):
        since = time.perf_counter()
        jax.block_until_ready(program.run())
        ours.append((time.perf_counter() - since) / size.num_steps)
        theirs.append(torch.ask(time=kind, steps=size.num_steps)["seconds"] / size.num_steps)
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    return {
        "step_seconds": ours,
        "torch_step_seconds": theirs,
        "torch_over_ours": theirs / ours,
        "torch_compile_seconds": warm,
    }
