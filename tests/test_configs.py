"""Every file of configs/ loads, is valid, trains two steps and inverts one tiny batch, offline."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config.check import validate
from jaxpmi.config.load import load_config
from jaxpmi.continual.learners import find_method
from jaxpmi.continual.loop import task_plan
from jaxpmi.continual.segmentation import begin_segmentation
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.data import digit_scenes
from jaxpmi.models import MODELS

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "configs").glob("*.py"))
# Those of CLIP run in tests/continual/clip/test_clip_loop.py, those of jobs in tests/jobs.
JOBS = [path for path in PATHS if load_config(path).job != "continual"]
SEGMENTERS = [path for path in PATHS if load_config(path).data.source in SCENE_KINDS]
OTHERS = [*JOBS, *SEGMENTERS]
CLASSIFIERS = [path for path in PATHS if not path.stem.startswith("clip_") and path not in OTHERS]
RECORDERS = [path for path in CLASSIFIERS if find_method(load_config(path).method).keeps_records]
INVERTERS = [path for path in CLASSIFIERS if path not in RECORDERS]

# What each config's data looks like: classes, then H, W, C of an image.
SHAPES = {
    "mnist": (10, 28, 28, 1),
    "mnist_published": (10, 28, 28, 1),
    "vdfd_mnist": (10, 28, 28, 1),
    "stickers": (10, 32, 32, 3),
    "cifar100": (100, 32, 32, 3),
    "vdfd_cifar100": (20, 32, 32, 3),  # the first classes of those of VDFD
    "vdfd_cifar100_20": (20, 32, 32, 3),
    "vdfd_cifar100_class_incremental": (20, 32, 32, 3),
    "tiny_imagenet": (200, 64, 64, 3),
    "vdfd_tiny_imagenet": (20, 64, 64, 3),
    "imagenet100": (20, 224, 224, 3),  # the config leaves the number of classes open
}

# Only sizes; what kind of losses, starts and schedules a config chooses stays. Tasks of five
# classes with two images each, so two steps.
CLASSES, BATCH = 5, 5
SMALL = f"""--data.source npz --model.width 2 --train.epochs 1 --train.batch-size {BATCH}
  --train.replay-batch-size {BATCH} --cfs.num-epochs 1 --inversion.base-images 0
  --inversion.images-per-task {BATCH} --inversion.batch-size {BATCH}
  --inversion.per-layer.num-steps 2
  --inversion.full-model.num-steps 2""".split()


def write_data(path, num_classes, *image_shape):
    """Two training images and one test image per class, of noise."""
    random = np.random.default_rng(0)
    labels = np.arange(num_classes).repeat(2)
    arrays = {"y_train": labels, "y_test": labels[::2]}
    for name, y in (("x_train", labels), ("x_test", labels[::2])):
        arrays[name] = random.integers(0, 256, (len(y), *image_shape), np.uint8)
    np.savez(path, **arrays)


def run_first_phases(run, state, num_phases=2):
    """The last state of a run, and the scalars of each phase, without anything being written.

    Of the second task these are the first `num_phases` phases.
    """
    scalars = {}
    for task, count in ((0, None), (1, num_phases)):
        run.stream.begin(task)
        for index, (name, phase) in enumerate(task_plan(run, task)[:count]):
            if name == "evaluate":  # in batches of 256 images, whatever the config
                continue
            place = {"task": task, "phase": index, "step": 0}
            state = state.replace(**{k: jnp.asarray(v, jnp.int32) for k, v in place.items()})
            for tick in phase(run, state):
                state, scalars[name] = tick.state, {**tick.scalars, "steps": tick.total}
    return state, scalars


def begin(config):
    """The run and its first state."""
    run, order = open_run(config)
    return run, initial_state(run, order)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_file_is_valid_and_names_its_command(path):
    needs_path = load_config(path).data.source in ("voc", "cityscapes")
    config = load_config(path, ["--data.path", "DATA"] if needs_path else [])
    for num_devices in (1, 4, 8):
        validate(config, num_devices)
    assert config.model.name in (*MODELS, "clip")
    assert config.workdir == f"runs/{path.stem}"
    text = path.read_text()
    assert f"configs/{path.name}" in text or path.stem == "mnist"
    options = re.findall(r"(--[a-z.]+[a-z-]+) ([\d.]+|[a-z]+(?= |\)|`))", text.split('"""')[1])
    options = [pair for pair in options if "." in pair[0] and pair[0] != "--data.path"]
    load_config(path, [part for pair in options for part in pair])


def small_config(path, folder, *options):
    """A config in small, on data of noise."""
    num_classes, *image_shape = SHAPES[path.stem]
    write_data(folder / "data.npz", num_classes, *image_shape)
    tasks = ["--data.tasks", str(num_classes // CLASSES)]
    config = load_config(path, [*SMALL, "--data.path", str(folder / "data.npz"), *tasks, *options])
    validate(config)
    return config, tuple(image_shape)


@pytest.mark.parametrize("path", RECORDERS, ids=lambda path: path.stem)
def test_two_steps_and_one_record(path, tmp_path, monkeypatch):
    tiny_run.set_up(monkeypatch)
    config, _ = small_config(path, tmp_path, "--data.class-order=None")
    state, scalars = run_first_phases(*begin(config))
    terms = scalars["train:all"]
    assert terms["steps"] == 2 and np.isfinite(list(terms.values())).all()
    assert {"cross_entropy", "drift", "log_determinant", "squared_drift"} <= set(terms)
    recorded = state.records.class_mask.sum(1)
    assert recorded[0] == CLASSES and not recorded[1:].any()


@pytest.mark.parametrize("path", SEGMENTERS, ids=lambda path: path.stem)
def test_two_steps_and_one_record_of_scenes(path, monkeypatch):
    """On small scenes of digits, whatever the config's are; their files are read in tests/data."""
    tiny_run.set_up(monkeypatch)
    for name, value in {"NUM_TEST": 8, "NUM_DIGITS": 4, "DIGIT_SIZE": 8}.items():
        monkeypatch.setattr(digit_scenes, name, value)
    small = """--data.source digit_scenes --data.path None --data.mean None --data.std None
      --data.scene-size 16 16 --data.num-scenes 8 --data.num-classes 10 --data.class-order None
      --data.tasks 2 --model.width 2 --train.epochs 2
      --train.batch-size 8"""
    config = load_config(path, small.split())
    validate(config)
    state, scalars = run_first_phases(*begin_segmentation(config))
    terms = scalars["train:all"]
    assert terms["steps"] == 2 and np.isfinite(list(terms.values())).all()
    assert {"cross_entropy", "drift", "log_determinant", "squared_drift"} <= set(terms)
    recorded = state.records.class_mask.sum(1)
    assert recorded[0] == (11 if config.data.scene_tasks == "domains" else 6) and not recorded[1]


@pytest.mark.parametrize("path", INVERTERS, ids=lambda path: path.stem)
def test_two_steps_and_one_inversion(path, tmp_path, monkeypatch):
    tiny_run.set_up(monkeypatch)  # on one device
    config, image_shape = small_config(path, tmp_path)
    state, scalars = run_first_phases(*begin(config))
    assert scalars["train:all"]["steps"] == 2
    assert np.isfinite(list(scalars["train:all"].values())).all()
    assert scalars["invert"]["final_loss"] <= scalars["invert"]["initial_loss"]
    images, labels, count = state.replay
    assert int(count) == BATCH
    assert images.shape[1:] == image_shape and np.ptp(images[:BATCH]) > 0
    assert set(np.asarray(labels[:BATCH])) <= set(range(CLASSES))


@pytest.mark.parametrize("name", ["cifar100", "tiny_imagenet"])
def test_published_class_orders(name):
    """The released code's orders are Python's own shuffle after seed 0."""
    import random

    order = list(range(SHAPES[name][0]))
    random.Random(0).shuffle(order)
    assert load_config(ROOT / f"configs/{name}.py").data.class_order == tuple(order)
