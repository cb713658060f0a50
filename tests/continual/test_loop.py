"""Whole runs, small: what they write, what they refuse, what they compile, what they keep."""

import contextlib
import dataclasses
import functools
import io
import json
import math
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_page import read_page
from PIL import Image
from tiny_run import NUM_CLASSES
from tiny_run import NUM_TASKS
from tiny_run import set_up
from tiny_run import tiny_config

from jaxpmi import experiment
from jaxpmi.config import Config
from jaxpmi.continual import loop
from jaxpmi.continual import methods
from jaxpmi.continual import task as tasks
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.start import open_run
from jaxpmi.data import PastDataError
from jaxpmi.runs import session
from jaxpmi.runs.phases import NonFiniteLossError

INVERSION, GENERATOR = ("pmi", "deep_inversion"), ("abd", "r_dfcil")
SYNTHETIC = (*INVERSION, *GENERATOR, "pixel_gaussian")  # make images before each task
NUM_IMAGES = {1: 16, 2: 32}  # synthetic images before each task


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


class Finished(NamedTuple):
    """A run that came to its end."""

    config: Config
    summary: dict[str, Any]
    printed: str
    num_compiled: list[int]  # programs compiled, or found compiled on disk, in each task

    @property
    def workdir(self):
        return Path(self.config.workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A function that runs a method, once for all tests of this module; not to be changed."""

    @functools.cache
    def run(method, num_devices=1):
        with pytest.MonkeyPatch.context() as patch, compile_events() as events:
            set_up(patch, num_devices)
            num_compiled, work = [], session.Session._task

            def counted(self, task):
                before = len(events)
                work(self, task)
                num_compiled.append(len(events) - before)

            patch.setattr(session.Session, "_task", counted)
            config = tiny_config(tmp_path_factory.mktemp(method), method)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                summary = experiment.run(config)
        return Finished(config, summary, printed.getvalue(), num_compiled)

    return run


@contextlib.contextmanager
def compile_events():
    """Collects JAX's events of a program being compiled, or found compiled on disk."""
    seconds, listening = [], True

    def listen(event, duration, **unused):
        del unused
        if listening and event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    # Older versions of JAX cannot take a listener back.
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        listening = False


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints_of(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What every method writes.


@pytest.mark.parametrize("method", METHODS)
def test_the_summary_names_the_run_and_its_accuracies(method, finished):
    summary = finished(method).summary
    assert json.loads((finished(method).workdir / "summary.json").read_text()) == summary
    assert (summary["method"], summary["seed"], summary["num_tasks"]) == (method, 0, NUM_TASKS)
    assert summary["dataset"].endswith("blobs.npz")
    assert sorted(summary["class_order"]) == list(range(NUM_CLASSES))
    matrix = summary["accuracy_matrix"]
    assert [[x is None for x in row] for row in matrix] == [
        [i > t for i in range(NUM_TASKS)] for t in range(NUM_TASKS)
    ]
    means = [np.mean(matrix[t][: t + 1]) for t in range(NUM_TASKS)]  # tasks are of one size
    np.testing.assert_allclose(summary["last_accuracy"], means[-1], rtol=1e-6)
    np.testing.assert_allclose(summary["average_incremental_accuracy"], np.mean(means), rtol=1e-6)
    assert -1.0 <= summary["forgetting"] <= 1.0
    assert summary["last_accuracy"] <= summary["task_accuracy"] <= 1.0


@pytest.mark.parametrize("method", METHODS)
def test_the_summary_names_the_cost(method, finished):
    summary = finished(method).summary
    seconds = summary["seconds"]
    assert {"total", "train", "inversion", "evaluation", "compile"} <= set(seconds)
    assert seconds["train"] > 0 and seconds["evaluation"] > 0
    assert (seconds["inversion"] > 0) == (method in SYNTHETIC)
    parts = [value for name, value in seconds.items() if name not in ("total", "compile")]
    np.testing.assert_allclose(seconds["total"], sum(parts))
    kept = summary["bytes_kept_between_tasks"]
    assert kept["model"] > 1000
    for name in ("class_stats", "feature_models", "layer_stats"):
        assert (kept[name] > 0) == (
            method in INVERSION or (method, name) == ("apr", "class_stats")
        ), name
    assert (kept["block_inverses"] > 0) == (method == "pmi")
    assert (kept["generator"] > 0) == (method in GENERATOR)
    assert (kept["pixel_gaussians"] > 0) == (method == "pixel_gaussian")
    assert (kept["gradient_records"] > 0) == METHODS[method].keeps_records
    rises = summary["memory_rise_bytes"]
    assert rises["start"] > 1e6 and min(rises.values()) >= 0
    assert sum(rises.values()) <= summary["peak_memory_bytes"]
    assert {"python", "jax", "numpy"} <= set(summary["versions"])
    assert summary["device"]["platform"] == "cpu" and summary["device"]["count"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_summary_names_what_was_synthesised(method, finished):
    summary = finished(method).summary
    inversion = summary["inversion"]
    assert (inversion["per_layer_steps"], inversion["full_model_steps"]) == (2, 2)
    entries = {entry["task"]: entry for entry in inversion["tasks"]}
    assert set(entries) == (set(NUM_IMAGES) if method in SYNTHETIC else set())
    assert summary["num_synthesized"] == sum(entry["num_images"] for entry in entries.values())
    if method in INVERSION:
        for task, entry in entries.items():
            assert entry["num_images"] == NUM_IMAGES[task]
            assert math.isfinite(entry["initial_loss"]) and math.isfinite(entry["final_loss"])
            assert entry["final_loss"] <= entry["initial_loss"]
            assert 0.0 <= entry["agreement"] <= 1.0
    for entry in entries.values():
        assert 0.0 <= entry["trained_on_synthetic"] <= 1.0 and entry["spread"] > 0.0


@pytest.mark.parametrize("method", METHODS)
def test_files_are_written_and_named(method, finished):
    run = finished(method)
    assert json.loads((run.workdir / "config.json").read_text())["method"] == method
    Image.open(run.workdir / "accuracy.png").verify()
    for name in ("summary.json", "metrics.jsonl", "report.html", "accuracy.png", "checkpoints"):
        assert str(run.workdir / name) in run.printed
    assert "compiling train:all" in run.printed and "last accuracy" in run.printed
    lines = lines_of(run.workdir)
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    names = {name for line in lines for name in line if name != "step"}
    phases = {task: {n.split("/")[1] for n in names if n.startswith(f"task{task:02}/")}
              for task in range(NUM_TASKS)}  # fmt: skip
    extra = {"invert"} if method in INVERSION else {"generate"} if method in GENERATOR else set()
    extra |= {"choose", "remember"} if method == "apr" else set()
    extra |= {"judge"} if method in SYNTHETIC else set()
    extra |= {"calibrate"} if method == "pmi" else set()
    assert phases[0] == {"train", "evaluate"}
    assert phases[1] == phases[2] == {"train", "evaluate"} | extra


@pytest.mark.parametrize("method", METHODS)
def test_the_report_has_what_the_method_has(method, finished):
    run = finished(method)
    page = read_page(run.workdir / "report.html")
    wanted = {"numbers", "accuracy", "training", "cost", "kept", "data", "settings", "again"}
    wanted |= {"pictures", "inversion"} if method in SYNTHETIC else set()
    assert set(page.sections) == wanted
    names = ("last_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
    assert page.numbers["numbers"][:4] == [run.summary[name] for name in names]
    learnt = [x for row in run.summary["accuracy_matrix"] for x in row if x is not None]
    assert set(learnt) <= set(page.numbers["accuracy"])
    captions = [table["caption"].strip() for table in page.tables]
    assert ("Loss by block." in captions) == (method == "pmi")
    assert bool(page.images) == (method in SYNTHETIC)
    if method in INVERSION:
        assert len(page.images) == 12  # two strips for each of 2 + 4 old classes


def test_a_report_that_cannot_be_written_costs_no_result(tmp_path, monkeypatch, capsys):
    written = []

    def fail(workdir):
        written.append((Path(workdir) / "summary.json").is_file())
        raise RuntimeError("no ink")

    monkeypatch.setattr(session, "write_report", fail)
    config = tiny_config(tmp_path, "finetune")
    summary = experiment.run(config)
    assert written == [True] and not (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert "no report.html: RuntimeError: no ink" in capsys.readouterr().out


def test_a_long_run_has_a_report_after_its_tasks(tmp_path, monkeypatch):
    """After those that took a hundred times as long as writing it does."""
    written = []

    def note(workdir):
        written.append(len(lines_of(Path(workdir))))

    monkeypatch.setattr(session, "write_report", note)
    monkeypatch.setattr(session, "FIRST_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(session, "REPORT_SHARE", 1e6)
    experiment.run(tiny_config(tmp_path, "finetune"))
    assert len(written) == NUM_TASKS and written == sorted(set(written))


@pytest.mark.parametrize("method", METHODS)
def test_synthetic_images_are_written(method, finished):
    run = finished(method)
    if method not in SYNTHETIC:
        assert not (run.workdir / "images").exists()
        return
    order = run.summary["class_order"]
    for task, count in NUM_IMAGES.items():
        Image.open(run.workdir / "images" / f"task{task}.png").verify()
        with np.load(run.workdir / "images" / f"task{task}.npz") as saved:
            assert set(saved) == {"x", "y"}
            x, y = saved["x"], saved["y"]
        assert x.dtype == np.uint8 and x.shape == (count, 8, 8, 1)
        assert np.unique(x, axis=0).shape[0] > count // 2
        assert set(y) <= set(order[: 2 * task])  # ids of the data set, of old classes only
        if method not in GENERATOR:
            assert np.bincount(y, minlength=NUM_CLASSES).max() == count // (2 * task)


# What a run costs.


@pytest.mark.parametrize("method", METHODS)
def test_another_task_compiles_nothing(method, finished):
    """Which classes are old, how many there are, and how many images: all of it is data."""
    assert finished("joint").num_compiled[0] > 0  # else nothing is counted
    _, second, third = finished(method).num_compiled
    single_operations = 20  # joint: of drawing a fresh network and listing more learning rates
    assert third <= (single_operations if method == "joint" else 0)
    if method in ("joint", "finetune"):  # no phase that the first task had not, but a teacher
        assert second <= single_operations


@pytest.mark.parametrize("method", ["pmi", "apr"])
def test_eight_devices_give_the_run_of_one(method, finished):
    """Few steps: rounding differences grow with them, a wrong reduction shows at once."""
    one, eight = finished(method), finished(method, 8)
    assert eight.summary["device"]["count"] == 8
    for ours, theirs in zip(lines_of(one.workdir), lines_of(eight.workdir), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-2, atol=1e-3, err_msg=name)
    for task in NUM_IMAGES if method == "pmi" else ():
        ours, theirs = (np.load(run.workdir / f"images/task{task}.npz") for run in (one, eight))
        np.testing.assert_array_equal(theirs["y"], ours["y"])
        assert np.abs(theirs["x"].astype(int) - ours["x"]).mean() < 0.5


def test_the_seed_decides_class_order_and_every_number(finished, tmp_path):
    first = finished("finetune")
    again, other = (
        tiny_config(tmp_path, "finetune", seed=seed, workdir=str(tmp_path / f"run{seed}"))
        for seed in (0, 1)
    )
    assert experiment.run(again)["class_order"] == first.summary["class_order"]
    assert lines_of(tmp_path / "run0") == lines_of(first.workdir)
    assert experiment.run(other)["class_order"] != first.summary["class_order"]
    assert lines_of(tmp_path / "run1") != lines_of(first.workdir)


# The switches of PMI.

SWITCHES = {
    "published": dict(
        losses__recipe="stagewise",
        inversion__variant="resnet",
        inversion__per_layer__start="gaussian",
        inversion__per_layer__block_statistics="affine",
    ),
    "labels": dict(
        losses__recipe="published",
        losses__tuning_epochs=0.0,
        inversion__variant="published_resnet",
        inversion__targets="label",
        inversion__per_layer__start="gaussian",
        inversion__per_layer__block_statistics="propagated",
        inversion__full_model__cross_entropy_weight=1.0,
    ),
    "noise": dict(
        losses__recipe="detached",
        inversion__targets="gaussian",
        inversion__per_layer__start="noise",
        inversion__full_model__total_variation_weight=0.1,
    ),
    "augmented": dict(
        train__augment_replay=True,
        data__augment__crop_padding=1,
        inversion__per_layer__start="inverse",
        inversion__per_layer__block_statistics="measured",
    ),
    "transformer": dict(
        model__name="tiny_vit", train__optimiser="adamw", losses__recipe="detached"
    ),
    "transformer, published": dict(
        model__name="tiny_vit",
        losses__recipe="stagewise",
        inversion__per_layer__start="gaussian",
    ),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_pmi(name, tmp_path):
    """Every value of every switch comes to its end in one of these runs, or in those above."""
    config = tiny_config(tmp_path, data__tasks=2, train__epochs=4, **SWITCHES[name])
    summary = experiment.run(config)
    (entry,) = summary["inversion"]["tasks"]
    assert entry["final_loss"] <= entry["initial_loss"] and entry["num_images"] == 16
    inversion, kept = config.inversion, summary["bytes_kept_between_tasks"]
    assert ("final_cross_entropy" in entry) == (inversion.targets == "label")
    assert ("final_feature_match" in entry) == (inversion.targets != "label")
    assert (kept["feature_models"] > 0) == (inversion.targets == "cfs")
    assert (kept["block_inverses"] > 0) == inversion.per_layer.is_linear
    assert (kept["layouts"] > 0) == (inversion.per_layer.start == "layout")
    terms = {
        n.split("/", 2)[2] for line in lines_of(tmp_path / "run") for n in line if "01/tr" in n
    }
    wanted = "all/replay_local"
    if config.losses.recipe != "detached":
        wanted = "body/product" if config.losses.recipe == "published" else "body/angles"
    assert wanted in terms


@pytest.mark.parametrize("method", METHODS)
def test_a_later_task_of_one_class_needs_replay(method, tmp_path):
    config = tiny_config(tmp_path, method, data__tasks=(2, 1, 3))
    if method in (*SYNTHETIC, "apr", "joint"):
        assert open_run(config)[0].stream.task_classes(1) == range(2, 3)
        return
    with pytest.raises(ValueError, match="gives task 2 1 of the classes; expected 2 or more"):
        open_run(config)


def test_tasks_of_any_sizes_and_named_classes(tmp_path):
    """A task of one class, between larger ones, is learnt beside images of older classes."""
    names = tmp_path / "names.txt"
    names.write_text("cat\nowl\ndog\nfox\nelk\njay\n")
    order = ("jay", "cat", "owl", 2, "fox", "elk")
    changes = dict(data__tasks=(2, 1, 3), data__class_order=order, data__class_names=str(names))
    summary = experiment.run(tiny_config(tmp_path, "deep_inversion", **changes))
    assert summary["class_order"] == [5, 0, 1, 2, 3, 4] and summary["num_tasks"] == 3
    assert np.isfinite(np.array(summary["accuracy_matrix"], float)[np.tril_indices(3)]).all()


@pytest.mark.parametrize(
    ("share", "wanted"),
    [(0.2, "head last_block body tuning"), (0.0, "head last_block body")],
)
def test_stages_run_in_order_and_those_without_a_share_do_not(share, wanted, tmp_path):
    changes = {"losses__tuning_epochs": share, "losses__recipe": "stagewise"}
    run, _ = open_run(tiny_config(tmp_path, **changes))
    plan = [name for name, _ in loop.task_plan(run, 1)]
    stages = [f"train:{name}" for name in wanted.split()]
    assert plan == ["begin", "invert", *stages, "remember", "evaluate", "judge"]
    plan = [name for name, _ in loop.task_plan(run, 0)]
    assert plan == ["begin", "train:all", "remember", "evaluate"]


# Checkpoints, and what stops a run.


def test_checkpoints_come_at_every_phase_end_and_every_so_many_steps(tmp_path, monkeypatch):
    saved = []

    def record(self, step, state, progress):
        saved.append((int(state.task), int(state.phase), int(state.step)))
        assert progress["ticks"] == step

    monkeypatch.setattr(session.Checkpointer, "save", record)
    experiment.run(tiny_config(tmp_path, "pmi", checkpoint_every=1))
    inside = [place for place in saved if place[2] > 0]
    # Two batches of images before task 1 and four before task 2: one save after all but the last.
    assert inside == [(1, 1, 1), (2, 1, 1), (2, 1, 2), (2, 1, 3)]
    ends = [place for place in saved if place[2] == 0]
    assert ends[:4] == [(0, 1, 0), (0, 2, 0), (0, 3, 0), (1, 0, 0)]
    assert ends[-1] == (NUM_TASKS, 0, 0) and len(ends) == 4 + 2 * 7


def broken(views, config):
    """Fine in the first task, not a number as soon as there are old classes."""
    terms = methods.classification(views, config)
    return {**terms, "oops": jnp.where(views.old_mask.sum() > 0, jnp.nan, 0.0)}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    config, workdir = tiny_config(tmp_path, "finetune"), tmp_path / "run"
    whole = METHODS["finetune"]

    def phases(train, losses):
        return [dataclasses.replace(phase, loss=broken) for phase in whole.phases(train, losses)]

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "finetune", dataclasses.replace(whole, phases=phases))
        with pytest.raises(NonFiniteLossError) as error:
            experiment.run(config)
    assert str(error.value).startswith(
        "the oops term became NaN or infinite in task 2, phase train:all, step 1; the last good "
        "checkpoint is kept"
    )
    assert not (workdir / "summary.json").exists() and checkpoints_of(workdir) == [3, 4]
    text = (workdir / "metrics.jsonl").read_text()
    assert "task01/train" not in text and "NaN" not in text
    # The same command, the cause removed, goes on from there.
    begun, work = [], session.Session._phase

    def record(self, task, name, phase):
        begun.append((task, name))
        work(self, task, name, phase)

    monkeypatch.setattr(session.Session, "_phase", record)
    assert experiment.run(config)["num_tasks"] == NUM_TASKS
    assert begun[0] == (1, "train:all"), "not trained again from the start"


def test_images_of_past_tasks_cannot_be_read(tmp_path, monkeypatch):
    """A learner that asks for an old image stops the run."""
    honest = tasks.training_data

    def greedy(run, task):
        if task == 0:
            return honest(run, task)
        return honest(run, task)._replace(read=lambda _: run.stream.train_images(task - 1))

    monkeypatch.setattr(tasks, "training_data", greedy)
    with pytest.raises(PastDataError, match="images of task 0 were asked for during task 1"):
        experiment.run(tiny_config(tmp_path, "finetune"))


def test_a_finished_run_tells_its_summary_again_and_computes_nothing(finished, capsys):
    run = finished("pmi")
    before = content_of(run.workdir)
    with compile_events() as events:
        assert experiment.run(run.config) == run.summary
    assert events == [] and content_of(run.workdir) == before
    assert "this run has finished; its summary again" in capsys.readouterr().out


def test_another_config_does_not_touch_a_workdir(finished):
    config = finished("finetune").config
    before = content_of(Path(config.workdir))
    train = dataclasses.replace(config.train, learning_rate=0.2)
    message = r"another config: seed \(0 there, 1 now\), train.learning_rate \(0.1 there, 0.2 now\)"
    with pytest.raises(ValueError, match=message):
        experiment.run(dataclasses.replace(config, seed=1, train=train))
    assert content_of(Path(config.workdir)) == before


def test_batches_must_fit_the_devices(tmp_path, monkeypatch):
    set_up(monkeypatch, num_devices=8)
    with pytest.raises(ValueError, match="train.batch_size=9 is not divisible by 8 devices"):
        experiment.run(tiny_config(tmp_path, "finetune", train__batch_size=9))
    assert not (tmp_path / "run").exists()
