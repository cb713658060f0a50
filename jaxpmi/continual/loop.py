"""What runs of the continual methods are made of: their tasks, their phases, their pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual import calibration
from jaxpmi.continual import pixel_replay
from jaxpmi.continual import segmentation
from jaxpmi.continual import task as tasks
from jaxpmi.continual.apr import phases as apr
from jaxpmi.continual.clip import task as clip_task
from jaxpmi.continual.clip.start import initial_clip_state
from jaxpmi.continual.clip.start import open_clip_data
from jaxpmi.continual.clip.start import open_clip_run
from jaxpmi.continual.clip.state import ClipRun
from jaxpmi.continual.clip.state import ClipState
from jaxpmi.continual.result import save_seen
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.samples import evenly_spaced
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import blocks_of
from jaxpmi.continual.start import fresh_auxiliary
from jaxpmi.continual.start import fresh_network
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_images
from jaxpmi.continual.start import open_run
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.summary import summarise_clip_run
from jaxpmi.continual.summary import summarise_run
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.runs.accounting import MAKES_IMAGES
from jaxpmi.runs.phases import PhaseFn
from jaxpmi.runs.phases import System
from jaxpmi.runs.phases import Tick
from jaxpmi.runs.writers import write_accuracy_plot
from jaxpmi.runs.writers import write_image_grid
from jaxpmi.runs.writers import write_samples_npz
from jaxpmi.runs.writers import write_scene_grid

SCENES_DRAWN = 8  # test scenes in a picture

# By where replay comes from: the phase that makes it before a task, and the one after training
# that describes the data it will be made from, if any.
MAKES_REPLAY: dict[str, tuple[str, PhaseFn]] = {
    "inversion": ("invert", tasks.invert_phase),
    "generator": ("generate", tasks.generate_phase),
    "pixels": ("draw", pixel_replay.draw_phase),
    "pushed": ("choose", apr.choose_phase),
}
REMEMBERS: dict[str, PhaseFn] = {
    "inversion": tasks.remember_phase,
    "pixels": pixel_replay.remember_phase,
    "pushed": apr.remember_phase,
}


def task_plan(run: Run, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases of a task, in order, by name."""
    plan: list[tuple[str, PhaseFn]] = [("begin", begin_phase)]
    if task > 0 and run.method.replay != "none":
        plan.append(MAKES_REPLAY[run.method.replay])
    first = task == 0 or run.method.all_data
    make = run.method.first_phases if first else run.method.phases
    phases = make(run.config.train, run.config.losses)
    plan += tasks.train_plan(phase for phase in phases if phase.share > 0)
    if task > 0 and calibration.has_calibration(run):
        plan.append(("calibrate", calibration.calibrate_phase))
    if run.method.replay in REMEMBERS:
        plan.append(("remember", REMEMBERS[run.method.replay]))
    if run.method.keeps_records:
        plan.append(("record", tasks.record_phase))
    evaluate = segmentation.evaluate_phase if run.label_maps else tasks.evaluate_phase
    if run.method.apr is not None:
        evaluate = apr.evaluate_phase
    plan.append(("evaluate", evaluate))
    if tasks.has_judge(run, task):
        plan.append(("judge", tasks.judge_phase))
    return plan


def clip_task_plan(run: ClipRun, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases of a task of a CLIP run; the last task may be of classes with only a name."""
    plan: list[tuple[str, PhaseFn]] = [("begin", clip_task.begin_phase)]
    name_only = run.is_name_only(task)
    replay = run.method.replay == "inversion"
    if task > 0 and replay:
        plan.append(("invert", clip_task.invert_phase))
    if name_only and replay:
        plan.append(("invert:names", clip_task.invert_names_phase))
        plan.append(("train:names", clip_task.train_names_phase))
        plan.append(("train:upper_bound", clip_task.upper_bound_phase))
    elif not name_only:
        plan.append(("train:adapters", clip_task.train_phase))
        if replay:
            plan.append(("remember", clip_task.remember_phase))
    plan.append(("evaluate", clip_task.evaluate_phase))
    if not name_only and tasks.has_judge(run, task):
        plan.append(("judge", tasks.judge_phase))
    return plan


def begin_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Freezes the network as the teacher; the joint upper bound starts a fresh network."""
    key_network, key_auxiliary = jax.random.split(phase_key(state))
    if int(state.task) > 0:
        dim, old = state.network.feature_dim, state.network
        state = tasks.begin_task(state, fresh_auxiliary(run, key_auxiliary, dim))
        if run.method.all_data:
            state = state.replace(
                network=fresh_network(
                    run, run.config.model, key_network, old.mean, old.std, blocks_of(run)
                )
            )
    yield Tick(state, 1, 1, {}, {}, 0)


def draw_replay(run: Run, state: ContinualState | ClipState, phase: str, folder: Path) -> str:
    """Writes the synthetic samples of old classes that a phase has made, beside real images."""
    if phase not in MAKES_IMAGES:
        return ""
    task, stream, count = int(state.task), run.stream, int(state.replay.count)
    samples, labels = jax.device_get((state.replay.samples, state.replay.labels))
    samples, labels = samples[:count], labels[:count]
    if run.config.save_images:
        order = np.asarray(state.class_order)
        write_samples_npz(folder / f"task{task}.npz", samples, order[labels])
    if inversion_variant(run.config.inversion).first_block > 0:
        return f"no images/task{task}.png: patch embeddings cannot be drawn"
    real = [(stream.test_images(t), stream.test_labels(t)) for t in range(task)]
    write_image_grid(
        folder / f"task{task}.png",
        samples,
        labels,
        np.concatenate([x for x, _ in real]),
        np.concatenate([y for _, y in real]),
        stream.class_names,
    )
    return ""


def draw_scenes(run: Run, state: ContinualState, phase: str, folder: Path) -> str:
    """Writes some test scenes of what is seen so far, with their true and predicted labels."""
    if phase != "evaluate":
        return ""
    task, stream = int(state.task), run.stream
    scenes = stream.seen_test_images(evenly_spaced(stream.seen_test_size(), SCENES_DRAWN))
    images, truth = scenes[..., :-1], scenes[..., -1]
    seen = sum(class_masks(stream, task))
    predicted = segmentation.predict_labels(state.network, images, seen)
    predicted = np.asarray(predicted, np.uint8)
    write_scene_grid(folder / f"task{task}.png", images, truth, predicted, stream.class_names)
    return ""


def plot_mious(summary: dict[str, Any], folder: Path) -> None:
    """Writes miou.png."""
    _plot(summary, "miou_matrix", folder / "miou.png", measure="mean IoU")


def plot_accuracy(summary: dict[str, Any], folder: Path) -> None:
    """Writes accuracy.png."""
    _plot(summary, "accuracy_matrix", folder / "accuracy.png", measure="accuracy")


def _plot(summary, name, path, *, measure):
    matrix = np.asarray(summary[name], float)
    title = f"{summary['method']} on {summary['dataset']}, seed {summary['seed']}"
    write_accuracy_plot(path, matrix, title, measure=measure)


def _begin_run(config: Config, inputs: Inputs) -> tuple[Run, ContinualState]:
    run, order = open_run(config, inputs)
    return run, initial_state(run, order)


def _begin_clip_run(config: Config, inputs: Inputs) -> tuple[ClipRun, ClipState]:
    run, order = open_clip_run(config, inputs)
    return run, initial_clip_state(run, order)


def _begin_task(run: Run, task: int) -> list[tuple[str, PhaseFn]]:
    run.stream.begin(task)
    return task_plan(run, task)


def _begin_clip_task(run: ClipRun, task: int) -> list[tuple[str, PhaseFn]]:
    run.stream.begin(task)
    return clip_task_plan(run, task)


def _num_tasks(run: Run) -> int:
    return run.stream.num_tasks


CLASS_INCREMENTAL = System(
    open_images, _begin_run, _num_tasks, _begin_task,
    draw_replay, summarise_run, plot_accuracy, save_seen,
)  # fmt: skip
SEGMENTATION = System(
    segmentation.open_scene_data, segmentation.begin_segmentation, _num_tasks, _begin_task,
    draw_scenes, segmentation.summarise_segmentation, plot_mious, save_seen,
)  # fmt: skip
CLIP = System(
    open_clip_data, _begin_clip_run, _num_tasks, _begin_clip_task,
    draw_replay, summarise_clip_run, plot_accuracy,
)  # fmt: skip
