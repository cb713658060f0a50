"""What a run was, and what it reached."""

import os
from datetime import UTC
from datetime import datetime
from typing import Any

import numpy as np

from jaxpmi.runs.writers.html_report import figures
from jaxpmi.runs.writers.html_report.numbers import Number
from jaxpmi.runs.writers.html_report.numbers import counted
from jaxpmi.runs.writers.html_report.numbers import in_percent
from jaxpmi.runs.writers.html_report.numbers import is_number
from jaxpmi.runs.writers.html_report.numbers import listed
from jaxpmi.runs.writers.html_report.numbers import percent
from jaxpmi.runs.writers.html_report.numbers import plain
from jaxpmi.runs.writers.html_report.parts import Details
from jaxpmi.runs.writers.html_report.parts import Figure
from jaxpmi.runs.writers.html_report.parts import Score
from jaxpmi.runs.writers.html_report.parts import Scores
from jaxpmi.runs.writers.html_report.parts import Section
from jaxpmi.runs.writers.html_report.parts import Table
from jaxpmi.runs.writers.html_report.parts import Text
from jaxpmi.runs.writers.html_report.run_files import RunFiles
from jaxpmi.runs.writers.words import JOBS
from jaxpmi.runs.writers.words import METHODS
from jaxpmi.runs.writers.words import SCORES
from jaxpmi.runs.writers.words import WAYS

SCENE_MEASURE = "mean IoU"
NO_BREAK = "\u00a0"


def dataset_name(run: RunFiles) -> str:
    """The data set by its name or its kind, or by the last part of its path."""
    source = run.setting("data.source")
    name = run.setting("data.name") if source in ("embedded", "tfds") else None
    name = run.summary.get("dataset") or name or run.setting("data.path") or source
    return os.path.basename(str(name).rstrip("/")) or str(name)


def title(run: RunFiles) -> str:
    """Job, method, data and seed."""
    job, method = run.setting("job", "continual"), run.setting("method")
    learnt_from = f"on {dataset_name(run)}"
    if job == "invert" and not run.setting("invert.learn_data"):
        learnt_from = f"of {run.setting('model.name')}"
    named = method if job == "continual" else f"{job}: {method}"
    return f"{named} {learnt_from}, seed {run.setting('seed')}"


def describe(run: RunFiles) -> str:
    """What the run was, in a few sentences."""
    job, method = run.setting("job", "continual"), run.setting("method")
    does = (METHODS if job == "continual" else WAYS).get(method)
    network = f"The network is {run.setting('model.name')}"
    if run.setting("model.weights"):
        network += f", with the weights of {run.setting('model.weights')}"
    sentences = [f"{JOBS.get(job, job)}{_tasks(run)}.", f"{method} {does}." if does else ""]
    sentences += [f"{network}.", *map(_images, run.data.values())]
    return " ".join(sentence for sentence in sentences if sentence)


def _tasks(run):
    """How many classes in how many tasks, where there are tasks."""
    if run.setting("job", "continual") != "continual":
        return ""
    number, facts = num_tasks(run), run.data.get("data", {})
    if not number or "classes" not in facts:
        return ""
    named = len(run.summary.get("unseen_classes", {}).get("names", ()))
    classes = (len(run.summary.get("class_order", ())) or len(facts["classes"])) - named
    more = f", then {named} of which only the name is known" if named else ""
    return f": {counted(classes, 'class')} in {counted(number, 'task')}{more}"


def _images(facts):
    """Those of a data set, in a sentence."""
    images, size = facts.get("images", {}), facts.get("image_size")
    if not size or not images:
        return ""
    colour = "grey" if facts.get("channels") == 1 else "colour"
    counts = " and ".join(f"{count:,} for {split}ing" for split, count in images.items())
    return (
        f"Images are {colour}, {size[1]}{NO_BREAK}×{NO_BREAK}{size[0]}{NO_BREAK}pixels: {counts}."
    )


def num_tasks(run: RunFiles) -> int:
    """Tasks in all; 0 where that is not known."""
    tasks = run.setting("data.tasks")
    planned = len(tasks) if isinstance(tasks, list) else tasks
    return run.summary.get("num_tasks") or planned or 0


def status(run: RunFiles) -> str:
    """Whether the run has finished, and of when its files are."""
    name = "summary.json" if run.finished else "metrics.jsonl"
    path, when = run.folder / name, ""
    if path.is_file():
        time = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        when = f"{time.day} {time:%B %Y, %H:%M} UTC"
    if run.finished:
        return f"Finished {when}."
    sentences = ["Not finished: it is still going, or was stopped."]
    if run.setting("job", "continual") == "continual":
        done = 1 + max((of.task for of in run.scalars(r"evaluate(/\w+)?")), default=-1)
        sentences.append(f"Evaluated so far: {done} of {counted(num_tasks(run), 'task')}.")
    if when:
        sentences.append(f"Its last line of metrics is of {when}.")
    return " ".join(sentences)


def numbers(run: RunFiles) -> Section | None:
    """The headline."""
    measure = measure_of(run)
    scores = [
        Score(word.name, number, word.meaning)
        for key, word in SCORES.items()
        if (number := percent(run.summary.get(key))) is not None
    ]
    scores += [Score(*score) for score in _of_jobs(run.summary)]
    if not scores:
        return None
    parts: list = [Scores(scores)]
    if measure == SCENE_MEASURE:
        parts.append(Text("Values of tasks are mean IoUs; those leave the background out."))
    if "own_accuracy_measured_on" in run.summary:
        own = run.summary["own_accuracy_measured_on"]
        parts.append(Text(f"Accuracy on the network's own classes is measured on {own}."))
    if "new_classes" in run.summary:
        parts.append(Text(f"New classes: {listed(run.summary['new_classes'], 40)}."))
    return Section("numbers", "Results", parts)


def _of_jobs(summary):
    """Yields name, number and meaning of what only jobs measure."""
    if (share := percent(summary.get("student_of_teacher"))) is not None:
        yield "student of teacher", share, "the student's accuracy over the teacher's"
    for key, name in (("filters", "filters"), ("parameters", "parameters"), ("flops", "FLOPs")):
        of = summary.get(key)
        if isinstance(of, dict) and len(of) == 2:
            (one, before), (other, after) = of.items()
            text = f"of the network {one}: {before:,}; {other}: {after:,}"
            if one == "teacher":
                text = f"as a share of the teacher's: {after:,} of {before:,}"
            if name == "FLOPs":
                text += "; two for every multiplication of the convolutions, per image"
            name = f"{name} left" if one != "teacher" else f"{name} of the student"
            yield name, percent(after / before), text
    if is_number(summary.get("measured_speed_up")):
        number = plain(summary["measured_speed_up"])
        yield "measured speed-up", number, "seconds per batch before over those after, this device"
    diversity = summary.get("diversity", {})
    if (share := percent(diversity.get("share_of_real"))) is not None:
        text = "mean distance of two synthetic images of a class, over that of two real ones"
        yield "diversity", share, text
    if is_number(summary.get("num_synthesized")):
        yield "synthetic images", plain(summary["num_synthesized"]), "made in the whole run"


def measure_of(run: RunFiles) -> str:
    """What is measured of tasks."""
    scenes = "miou_matrix" in run.summary or "evaluate/miou" in run.metrics
    return SCENE_MEASURE if scenes else "accuracy"


def matrix_of(run: RunFiles) -> np.ndarray:
    """f[T, T] with NaN where not yet learnt; empty where tasks are not measured."""
    for name in ("accuracy_matrix", "miou_matrix"):
        if name in run.summary:
            return np.array(run.summary[name], float)
    if run.setting("job", "continual") != "continual":
        return np.zeros((0, 0))
    found = [
        (task, int(name.removeprefix("task")), value)
        for _, task, _, name, value in run.scalars("evaluate/(accuracy|miou)")
    ]
    size = 1 + max((task for task, *_ in found), default=-1)
    matrix = np.full((size, size), np.nan)
    for task, of, value in found:
        matrix[task, of] = value
    return matrix


def seen_of(run: RunFiles) -> list[float]:
    """What all classes so far reached after every task; [] of a run that has not finished."""
    for name in ("incremental_accuracies", "incremental_mious"):
        if name in run.summary:
            return run.summary[name]
    return []


def classes_of_tasks(run: RunFiles) -> list[list[str]]:
    """The names of every task's classes; [] where they are not known."""
    order, names = run.summary.get("class_order"), run.data.get("data", {}).get("classes")
    tasks = run.setting("data.tasks")
    if not order or not names or max(order) >= len(names) or len(run.data) > 1:
        return []
    if "domains" in run.data["data"] and run.setting("data.scene_tasks") == "domains":
        return []
    only_named = run.setting("clip.name_only.classes", 0) if "unseen_classes" in run.summary else 0
    learnt = order[: len(order) - only_named]
    if isinstance(tasks, int):
        if len(learnt) % tasks:
            return []
        tasks = [len(learnt) // tasks] * tasks
    ends = np.cumsum(tasks)
    if ends[-1] != len(learnt):
        return []
    return [
        [names[c] for c in learnt[end - size : end]] for end, size in zip(ends, tasks, strict=True)
    ]


def accuracy(run: RunFiles) -> Section | None:
    """How every task fared over time."""
    matrix, measure, seen = matrix_of(run), measure_of(run), seen_of(run)
    parts: list[Any] = []
    if np.isfinite(matrix).any():
        thin = (
            f"The test images of each task, from when it was learnt (its number stands there): "
            f"{measure}, prediction being among all classes seen so far."
        )
        bold = f"Bold: {measure} of all classes so far. Thin: " if seen else ""
        caption = bold + (thin[0].lower() if bold else thin[0]) + thin[1:]
        if measure == SCENE_MEASURE and bold:
            caption += " The background counts in the bold one only."
        parts.append(Figure(caption, figures.draw_accuracies(matrix, seen, measure)))
        parts.append(_matrix(run, matrix, seen, measure))
    if (given := run.summary.get("task_accuracy_matrix")) is not None:
        table = _matrix(run, np.array(given, float), [], "accuracy with the task given")
        note = "Here prediction is among the classes of the image's own task."
        parts.append(Details("Accuracy with the task given", [Text(note), table]))
    parts += [table for table in (_zero_shot(run), _unseen(run), _ious(run)) if table]
    parts += _student(run)
    return Section("accuracy", measure[0].upper() + measure[1:], parts) if parts else None


def _matrix(run, matrix, seen, measure):
    """A row per task learnt."""
    classes = classes_of_tasks(run)
    rows = []
    for task, values in enumerate(matrix):
        name = f"{task + 1}"
        if task < len(classes):
            name += f": {listed(classes[task], 4)}"
        cells = [in_percent(v) for v in values[: task + 1]] + [""] * (len(matrix) - task - 1)
        rows.append([name, *cells, *([in_percent(seen[task])] if seen else [])])
    columns = ["after task", *(f"{task + 1}" for task in range(len(matrix)))]
    return Table(
        f"{measure[0].upper()}{measure[1:]} on the test images of every task (column) after each "
        "task (row), in percent.",
        columns + (["all so far"] if seen else []),
        rows,
        drawn="shades",
    )


def _zero_shot(run):
    values = run.summary.get("zero_shot_accuracy")
    if not values:
        return None
    rows = [[f"{task + 1}", percent(value)] for task, value in enumerate(values)]
    caption = "Zero-shot accuracy: of the network as it was given, before any task was learnt."
    return Table(caption, ["task", "accuracy"], rows)


def _unseen(run):
    of = run.summary.get("unseen_classes")
    if not of:
        return None
    meanings = {
        "zero_shot": "by the network as it was given",
        "after_tasks": "after the tasks, before anything was learnt of these classes",
        "accuracy": "after learning from images made of their names",
        "upper_bound": "after learning from real images of them instead",
    }
    rows = [[text, percent(of.get(key))] for key, text in meanings.items()]
    caption = f"Classes of which only the name is known ({listed(of['names'])}): accuracy."
    return Table(caption, ["when", "accuracy"], rows)


def _ious(run):
    of = run.summary.get("class_iou")
    if not of:
        return None
    rows = [[name, percent(value)] for name, value in of.items()]
    return Table("IoU of every class after the last task.", ["class", "IoU"], rows, drawn="bars")


def _student(run):
    curve, teacher = (run.summary.get(k) for k in ("student_accuracy_curve", "teacher_accuracy"))
    if not curve or not is_number(teacher) or not all(map(is_number, curve)):
        return []
    progress = np.arange(1, len(curve) + 1) / len(curve)
    rows = [
        [Number(f"{round(100 * at)} %", at), percent(value)]
        for at, value in zip(progress.tolist(), curve, strict=True)
    ]
    caption = "The student's accuracy on test images over its training; dashed: its teacher's."
    columns = ["of its training", "accuracy of the student"]
    return [
        Figure(caption, figures.draw_student(progress, curve, teacher)),
        Details("The same as numbers", [Table("Accuracy on its way.", columns, rows)]),
    ]
