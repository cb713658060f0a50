"""What a run cost: seconds, compilation, memory, bytes kept between tasks; and its summary."""

import functools
import platform
import resource
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxpmi.continual import evaluation
from jaxpmi.continual.clip_state import NAME_ACCURACIES
from jaxpmi.continual.clip_state import ClipRun
from jaxpmi.continual.clip_state import ClipState
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Memory
from jaxpmi.continual.task import Run
from jaxpmi.continual.task import Tick

# Phase name (up to a colon) -> key of summary["seconds"].
CATEGORIES = {
    "start": "start",  # of every process: data, weights, the first state; pretraining of a CLIP
    "begin": "train",
    "train": "train",
    "invert": "inversion",
    "generate": "inversion",
    "remember": "statistics",
    "evaluate": "evaluation",
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Accounts:
    """Sums over the whole run, carried through checkpoints as JSON."""

    def __init__(self, book: dict[str, Any]):
        """Continues from a checkpoint's book; {} for a new run."""
        self.ticks = book.get("ticks", 0)
        self.seconds = dict.fromkeys(CATEGORIES.values(), 0.0) | book.get("seconds", {})
        self.inversion = [dict(entry) for entry in book.get("inversion", [])]
        self._compiled_before = book.get("compile_seconds", 0.0)
        self._compiled_here = _compile_clock()

    @property
    def compile_seconds(self) -> float:
        """Seconds spent tracing and compiling, in this and earlier processes of the run."""
        return self._compiled_before + _compile_clock() - self._compiled_here

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Books time under the phase's category."""
        self.seconds[CATEGORIES[phase.split(":")[0]]] += seconds

    def add_tick(self, task: int, phase: str, tick: Tick, scalars: dict[str, Any]) -> None:
        """Books the losses of synthetic images, averaged over a task's batches."""
        if phase not in ("invert", "generate"):
            return
        if not self.inversion or self.inversion[-1]["task"] != task:
            self.inversion.append({"task": task, "num_images": 0, "num_batches": 0})
        entry = self.inversion[-1]
        entry["num_images"] += tick.num_images
        entry["num_batches"] += 1
        for name, value in scalars.items():
            mean = entry.get(name, 0.0)
            entry[name] = mean + (float(value) - mean) / entry["num_batches"]

    def to_dict(self) -> dict[str, Any]:
        """The book, as JSON can hold it."""
        return {
            "ticks": self.ticks,
            "seconds": self.seconds,
            "inversion": self.inversion,
            "compile_seconds": self.compile_seconds,
        }


def summarise_run(run: Run, state: ContinualState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json."""
    return _summary(run, state, accounts, run.stream.num_tasks, bytes_kept(state))


def summarise_clip_run(run: ClipRun, state: ClipState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json of a CLIP run; the metrics are those of classes with images."""
    num_tasks = run.stream.num_tasks - (run.named is not None)
    kept = {
        "adapters": _num_bytes(state.adapters),
        **memory_kept(state.memory),
        "base_memory": _num_bytes(state.base_memory),
    }
    summary = _summary(run, state, accounts, num_tasks, kept)
    zero_shot = np.asarray(state.zero_shot)
    summary["zero_shot_accuracy"] = zero_shot[:num_tasks].tolist()
    if run.named is not None:
        found = dict(zip(NAME_ACCURACIES, np.asarray(state.name_accuracy).tolist(), strict=True))
        after = np.asarray(state.accuracy)[num_tasks, :num_tasks].tolist()
        summary["unseen_classes"] = {
            "names": list(run.stream.class_names[run.stream.task_classes(num_tasks).start :]),
            "zero_shot": float(zero_shot[num_tasks]),
            **found,
            "accuracy_of_tasks_after": after,
        }
    return summary


def _summary(run, state, accounts, num_tasks, kept):
    config, stream = run.config, run.stream
    accuracy = np.asarray(state.accuracy)[:num_tasks, :num_tasks]
    sizes = [len(stream.test_labels(t)) for t in range(num_tasks)]
    given = np.asarray(state.task_accuracy)[num_tasks - 1, :num_tasks]
    seconds = accounts.seconds
    settings = config.inversion
    return {
        "method": config.method,
        "dataset": _dataset(config.data),
        "seed": config.seed,
        "class_order": np.asarray(state.class_order).tolist(),
        "num_tasks": num_tasks,
        "accuracy_matrix": accuracy.tolist(),
        **evaluation.summarise(accuracy, sizes),
        "task_accuracy": float(np.average(given, weights=sizes)),
        "num_synthesized": sum(entry["num_images"] for entry in accounts.inversion),
        "seconds": {
            "total": sum(seconds.values()),
            **seconds,
            "compile": accounts.compile_seconds,
        },
        "inversion": {
            "space": settings.space,
            "per_layer_start": settings.per_layer.start,
            "per_layer_steps": settings.per_layer.num_steps,
            "full_model_steps": settings.full_model.num_steps,
            "tasks": accounts.inversion,
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "bytes_kept_between_tasks": kept,
        "versions": versions(),
        "device": {
            "platform": jax.devices()[0].platform,
            "kind": jax.devices()[0].device_kind,
            "count": run.mesh.size,
        },
    }


def _dataset(data):
    """What to call the data set: its name, its kind or its place."""
    if data.source in ("embedded", "tfds"):
        return data.name
    return data.source if data.path is None else data.path


def bytes_kept(state: ContinualState) -> dict[str, int]:
    """Bytes of everything that a method carries from one task to the next; never an image."""
    return {
        "model": _num_bytes((state.network.variables, state.network.head)),
        **memory_kept(state.memory),
        "generator": _num_bytes(state.generator[:2]) if state.generator else 0,
    }


def memory_kept(memory: Memory) -> dict[str, int]:
    """Bytes of what is remembered of the data, part by part."""
    return {
        "class_stats": _num_bytes(memory.class_stats),
        "feature_models": _num_bytes(memory.feature_models),
        "layer_stats": _num_bytes(
            (
                memory.block_inputs,
                memory.pixels,
                memory.histogram,
                memory.spectrum,
                memory.layer_moments,
            )
        )
        if memory.block_inputs
        else 0,
        "block_inverses": _num_bytes(memory.inverses),
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


def _num_bytes(tree):
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
