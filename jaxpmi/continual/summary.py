"""What summary.json tells of a run: accuracies, seconds, bytes kept between tasks."""

from typing import Any

import numpy as np

from jaxpmi.continual import evaluation
from jaxpmi.continual.clip.state import NAME_ACCURACIES
from jaxpmi.continual.clip.state import ClipRun
from jaxpmi.continual.clip.state import ClipState
from jaxpmi.continual.run import Run
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.continual.vdfd.gradient_records import floats_per_task
from jaxpmi.data import dataset_name
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.shared_gaussian import SharedGaussians
from jaxpmi.memory import Memory
from jaxpmi.runs.accounting import Accounts
from jaxpmi.runs.accounting import num_bytes


def summarise_run(run: Run, state: ContinualState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json."""
    summary = _summary(run, state, accounts, run.stream.num_tasks, bytes_kept(state))
    return {**summary, **record_size(state)}


def describe_run(run: Run | ClipRun, state: ContinualState | ClipState, num_tasks: int) -> dict:
    """What every summary begins with."""
    return {
        "method": run.config.method,
        "dataset": dataset_name(run.config.data),
        "seed": run.config.seed,
        "class_order": np.asarray(state.class_order).tolist(),
        "num_tasks": num_tasks,
    }


def record_size(state: ContinualState) -> dict[str, int]:
    """Floats kept per old task, of methods that keep records; else {}."""
    return {"floats_per_old_task": record_floats(state.records)} if state.records else {}


def record_floats(records: GradientRecords) -> int:
    """Floats that a record takes, for a task of the most classes that any has."""
    channels = [left.shape[1] for left in records.left.values()]
    fan_in = [part.shape[1] for part in records.fan_in.values()] if records.fan_in else []
    return floats_per_task(channels, *records.right.shape[2:], fan_in)


def summarise_clip_run(run: ClipRun, state: ClipState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json of a CLIP run; the metrics are those of classes with images."""
    num_tasks = run.stream.num_tasks - (run.named is not None)
    kept = {
        "adapters": num_bytes(state.adapters),
        **memory_kept(state.memory),
        "base_memory": num_bytes(state.base_memory),
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
    given = np.asarray(state.task_accuracy)[:num_tasks, :num_tasks]
    settings = config.inversion
    return {
        **describe_run(run, state, num_tasks),
        "accuracy_matrix": accuracy.tolist(),
        **evaluation.summarise(accuracy, sizes),
        "task_accuracy": float(np.average(given[-1], weights=sizes)),
        "task_accuracy_matrix": given.tolist(),
        "task_backward_transfer": evaluation.backward_transfer(given),
        "num_synthesized": sum(entry["num_images"] for entry in accounts.inversion),
        "inversion": {
            "variant": settings.variant,
            "per_layer_start": settings.per_layer.start,
            "per_layer_steps": settings.per_layer.num_steps,
            "full_model_steps": settings.full_model.num_steps,
            "tasks": accounts.inversion,
        },
        "bytes_kept_between_tasks": kept,
        **accounts.cost(run.mesh.size),
    }


def bytes_kept(state: ContinualState) -> dict[str, int]:
    """Bytes of everything that a method carries from one task to the next; never an image."""
    return {
        "model": num_bytes((state.network.variables, state.network.head)),
        **memory_kept(state.memory),
        "generator": num_bytes(state.generator[:2]) if state.generator else 0,
        "gradient_records": num_bytes(state.records),
    }


def memory_kept(memory: Memory | SharedGaussians | ClassStats | tuple[()]) -> dict[str, int]:
    """Bytes of what is remembered of the data, part by part."""
    none = dict.fromkeys(
        (
            "class_stats",
            "feature_models",
            "layer_stats",
            "layouts",
            "block_inverses",
            "pixel_gaussians",
        ),
        0,
    )
    if not memory:
        return none
    if isinstance(memory, SharedGaussians):
        return {**none, "pixel_gaussians": num_bytes(memory)}
    if isinstance(memory, ClassStats):
        return {**none, "class_stats": num_bytes(memory)}
    return {
        **none,
        "class_stats": num_bytes(memory.class_stats),
        "feature_models": num_bytes(memory.feature_models),
        "layer_stats": num_bytes(
            (
                memory.block_inputs,
                memory.histogram,
                memory.spectrum,
                memory.layer_moments,
            )
        ),
        "layouts": num_bytes(memory.layouts),
        "block_inverses": num_bytes(memory.inverses),
    }
