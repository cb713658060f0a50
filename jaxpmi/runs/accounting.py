"""What a run cost: seconds, compilation, memory."""

import functools
import platform
import resource
from importlib import metadata
from typing import Any

import jax

# Phase name (up to a colon) -> key of summary["seconds"].
CATEGORIES = {
    "start": "start",  # of every process: data, weights, the first state; pretraining of a CLIP
    "begin": "train",
    "train": "train",
    "invert": "inversion",
    "generate": "inversion",
    "calibrate": "inversion",
    "draw": "inversion",  # from Gaussians of pixels
    "distill": "distillation",  # with the synthesis between its rounds
    "prune": "pruning",
    "judge": "evaluation",  # of synthetic images
    "choose": "statistics",
    "remember": "statistics",
    "record": "statistics",
    "evaluate": "evaluation",
}
MAKES_IMAGES = ("invert", "generate", "draw")  # phases of which synthetic images are counted
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Accounts:
    """Sums over the whole run, carried through checkpoints as JSON."""

    def __init__(self, book: dict[str, Any]):
        """Continues from a checkpoint's book; {} for a new run."""
        self.ticks = book.get("ticks", 0)
        self.seconds = dict.fromkeys(CATEGORIES.values(), 0.0) | book.get("seconds", {})
        self.inversion = [dict(entry) for entry in book.get("inversion", [])]
        self.memory_rise = dict.fromkeys(self.seconds, 0)  # of this process alone, as the peak is
        self._compiled_before = book.get("compile_seconds", 0.0)
        self._compiled_here = _compile_clock()

    @property
    def compile_seconds(self) -> float:
        """Seconds spent tracing and compiling, in this and earlier processes of the run."""
        return self._compiled_before + _compile_clock() - self._compiled_here

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Books time under the phase's category, and by how much memory has reached higher."""
        category = CATEGORIES[phase.split(":")[0]]
        self.seconds[category] += seconds
        self.memory_rise[category] += peak_memory_bytes() - sum(self.memory_rise.values())

    def add_images(self, task: int, num_images: int, scalars: dict[str, Any]) -> None:
        """Books a batch of synthetic images; their losses are averaged over a task's batches."""
        if not self.inversion or self.inversion[-1]["task"] != task:
            self.inversion.append({"task": task, "num_images": 0, "num_batches": 0})
        entry = self.inversion[-1]
        entry["num_images"] += num_images
        entry["num_batches"] += 1
        for name, value in scalars.items():
            mean = entry.get(name, 0.0)
            entry[name] = mean + (float(value) - mean) / entry["num_batches"]

    def describe_images(self, scalars: dict[str, Any]) -> None:
        """Books what was found of the last task's synthetic images, all of which are booked."""
        self.inversion[-1].update({name: float(value) for name, value in scalars.items()})

    def cost(self, num_devices: int) -> dict[str, Any]:
        """What summary.json tells of every run: seconds, memory, versions, device."""
        return {
            "seconds": {
                "total": sum(self.seconds.values()),
                **self.seconds,
                "compile": self.compile_seconds,
            },
            "peak_memory_bytes": peak_memory_bytes(),
            "memory_rise_bytes": self.memory_rise,
            "versions": versions(),
            "device": {
                "platform": jax.devices()[0].platform,
                "kind": jax.devices()[0].device_kind,
                "count": num_devices,
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """The book, as JSON can hold it."""
        return {
            "ticks": self.ticks,
            "seconds": self.seconds,
            "inversion": self.inversion,
            "compile_seconds": self.compile_seconds,
        }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a run's numbers and speed."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def peak_memory_bytes() -> int:
    """Peak of device memory; on CPU, of the process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@functools.cache
def _compile_durations():
    """Starts to listen to JAX's own compile events; returns the list they go to."""
    durations = []

    def listen(event, duration, **unused):
        del unused
        if event.startswith("/jax/core/compile/"):
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations


def _compile_clock():
    return sum(_compile_durations())
