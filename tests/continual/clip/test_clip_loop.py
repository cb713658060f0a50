"""Whole CLIP runs in small: coloured digits, a CLIP pretrained for a few steps."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from html_page import read_page

from jaxpmi import experiment
from jaxpmi.config.load import load_config
from jaxpmi.continual.chunks import CHUNK_STEPS
from jaxpmi.continual.chunks import chunk_steps
from jaxpmi.continual.clip import start as clip_start
from jaxpmi.continual.state import Replay
from jaxpmi.runs.checkpoint import Checkpointer
from jaxpmi.sharding import make_mesh

ROOT = Path(__file__).parents[3]
EMBEDDINGS = """--inversion.variant published_clip --inversion.full-model.pixel-statistics-weight 0
  --inversion.per-layer.coarse-to-fine-steps 4""".split()
SPACES = {"standard": [], "published_clip": EMBEDDINGS}
NAMES = {"standard": "x", "published_clip": "patch_embeddings"}  # of the samples in a .npz
# Only sizes; what kind of losses and starts the config chooses stays.
SMALL = """--clip.pretraining.num-steps 4
  --clip.pretraining-classes 34 --clip.name-only.classes 2 --data.tasks 2
  --train.epochs 1 --train.replay-batch-size 8 --clip.name-only.epochs 1
  --clip.name-only.images-per-class 8
  --cfs.num-epochs 1 --cfs.num-rounds 4 --inversion.images-per-task 16
  --inversion.batch-size 16
  --inversion.full-model.num-steps 2 --checkpoint-every 2""".split()


def config_of(workdir, *options):
    path = ROOT / "configs/clip_tiny.py"
    return load_config(path, [*SMALL, "--workdir", str(workdir), *options])


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    for module in (experiment, clip_start):
        monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(1))


@pytest.fixture(scope="module", params=SPACES)
def finished(request, tmp_path_factory):
    """The variant of inversion, which decides the space of samples, the workdir and the summary."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (experiment, clip_start):
            patch.setattr(module, "make_mesh", lambda: make_mesh(1))
        workdir = tmp_path_factory.mktemp("clip") / "run"
        config = config_of(workdir, "--save-images", *SPACES[request.param])
        return request.param, workdir, experiment.run(config)


def test_the_summary_tells_of_tasks_and_of_names(finished):
    space, workdir, summary = finished
    assert summary["num_tasks"] == 2 and len(summary["accuracy_matrix"]) == 2
    assert summary["dataset"] == "coloured_digits" and len(summary["class_order"]) == 6
    assert len(summary["zero_shot_accuracy"]) == 2
    assert len(summary["data"]["classes"]) == 40 and len(summary["data"]["mean"]) == 3
    unseen = summary["unseen_classes"]
    assert len(unseen["names"]) == 2 and len(unseen["accuracy_of_tasks_after"]) == 2
    for name in ("zero_shot", "after_tasks", "accuracy", "upper_bound"):
        assert 0 <= unseen[name] <= 1
    kept = summary["bytes_kept_between_tasks"]
    assert kept["adapters"] > 0 and kept["base_memory"] > 0 and kept["block_inverses"] > 0
    assert [entry["num_images"] for entry in summary["inversion"]["tasks"]] == [16, 32]
    assert summary["inversion"]["variant"] == space
    assert json.loads((workdir / "summary.json").read_text()) == summary


def test_the_files_are_those_of_every_run(finished):
    space, workdir, _ = finished
    names = {path.name for path in workdir.iterdir()}
    wanted = {"config.json", "metrics.jsonl", "summary.json", "accuracy.png", "pretrained.npz"}
    assert wanted <= names
    page = read_page(workdir / "report.html")
    assert ("pictures" in page.sections) == (space == "standard")
    assert "Classes of which only the name is known" in page.sections["accuracy"]
    drawn = {path.name for path in workdir.glob("images/*.png")}
    assert drawn == ({"task1.png", "task2.png"} if space == "standard" else set())
    with np.load(workdir / "images/task2.npz") as arrays:
        samples, labels = arrays[NAMES[space]], arrays["y"]
    shapes = {"standard": ((28, 28, 3), np.uint8), "published_clip": ((4, 4, 48), np.float32)}
    assert (samples.shape[1:], samples.dtype) == shapes[space]
    assert len(samples) == len(labels) == 32 and np.isfinite(samples).all()
    assert np.ptp(samples, (1, 2)).min() > 0, "some sample was never made"


class Killed(Exception):
    pass


@pytest.mark.parametrize("num_saves", [2, 7])
def test_a_stopped_run_ends_as_one_that_was_not(num_saves, finished, tmp_path, monkeypatch):
    """The CLIP that was pretrained before is read again; everything else is in the checkpoint."""
    save, saves = Checkpointer.save, []

    def stop(self, *arguments):
        save(self, *arguments)
        saves.append(1)
        if len(saves) == num_saves:
            self.wait()
            raise Killed

    space, undisturbed, wanted = finished
    config = config_of(tmp_path / "run", "--save-images", *SPACES[space])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", stop)
        with pytest.raises(Killed):
            experiment.run(config)
    before = (tmp_path / "run/pretrained.npz").stat().st_mtime_ns
    summary = experiment.run(config)
    assert (tmp_path / "run/pretrained.npz").stat().st_mtime_ns == before
    for name in ("accuracy_matrix", "zero_shot_accuracy", "unseen_classes", "num_synthesized"):
        assert summary[name] == wanted[name], name
    for task in (1, 2):
        ours, theirs = (
            np.load(w / f"images/task{task}.npz") for w in (tmp_path / "run", undisturbed)
        )
        np.testing.assert_array_equal(ours[NAMES[space]], theirs[NAMES[space]])


PUBLISHED = """--inversion.variant published_clip --clip.variant published
  --cfs.oversampling 2 --inversion.per-layer.start gaussian --inversion.per-layer.num-steps 1
  --inversion.per-layer.coarse-to-fine-steps 5
  --inversion.full-model.pixel-statistics-weight 0""".split()


@pytest.mark.slow
def test_everything_as_published_runs_to_its_end(tmp_path):
    summary = experiment.run(config_of(tmp_path / "run", *PUBLISHED))
    made = summary["inversion"]["tasks"]
    assert [entry["num_images"] for entry in made] == [16, 32]
    assert np.isfinite([entry["final_loss"] for entry in made]).all()
    assert 0 <= summary["unseen_classes"]["accuracy"] <= 1
    kept = summary["bytes_kept_between_tasks"]
    assert kept["block_inverses"] == 0 and kept["class_stats"] > 0


@pytest.mark.parametrize("method", ["finetune", "joint"])
def test_the_bounds_run_without_replay(method, tmp_path):
    summary = experiment.run(config_of(tmp_path / "run", "--method", method))
    assert summary["num_synthesized"] == 0 and summary["method"] == method
    kept = summary["bytes_kept_between_tasks"]
    assert kept["adapters"] > 0 and kept["block_inverses"] == kept["class_stats"] == 0
    unseen = summary["unseen_classes"]
    assert unseen["accuracy"] == unseen["after_tasks"] and unseen["upper_bound"] is None


def test_large_samples_make_short_chunks(tmp_path):
    """Of 100 samples of 1 MiB a step, two steps fill a chunk."""
    run, _ = clip_start.open_clip_run(config_of(tmp_path))
    replay = Replay(np.zeros((1, 512, 512), np.float32), np.zeros(1), np.ones(1))
    train = dataclasses.replace(run.config.train, replay_batch_size=100)
    assert chunk_steps(run, train, None) == CHUNK_STEPS
    assert chunk_steps(run, train, replay) == 2


def test_classes_can_be_named(tmp_path):
    config = config_of(tmp_path, "--clip.name-only.classes", "blue five", "Red Zero")
    run, order = clip_start.open_clip_run(config)
    assert run.stream.class_names[-2:] == ("blue five", "red zero") and order[-2:] == (25, 0)
    assert run.stream.num_tasks == 3 and run.named.class_names == ("blue five", "red zero")
    wrong = config_of(tmp_path, "--clip.name-only.classes", "pink one")
    with pytest.raises(ValueError, match="names 'pink one', which is no class of the data set"):
        clip_start.open_clip_run(wrong)


def test_a_small_clip_of_another_recipe_is_trained_anew(tmp_path):
    path = tmp_path / "pretrained.npz"
    times = []
    for steps in ("4", "4", "3"):
        clip_start.open_clip_run(config_of(tmp_path, "--clip.pretraining.num-steps", steps))
        times.append(path.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_images_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"images are \(32, 32, 3\), but this CLIP takes \(28, 28"):
        clip_start.open_clip_run(config_of(tmp_path, "--data.image-size", "32"))
