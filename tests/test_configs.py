"""Every file of configs/ loads, is valid, trains two steps and inverts one tiny batch, offline."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.config_check import validate
from jaxpmi.config_file import load_config
from jaxpmi.continual.loop import task_plan
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.models import MODELS

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "configs").glob("*.py"))

# What each config's data looks like: classes, then H, W, C of an image.
SHAPES = {
    "mnist": (10, 28, 28, 1),
    "cifar100": (100, 32, 32, 3),
    "tiny_imagenet": (200, 64, 64, 3),
    "imagenet_subset": (20, 224, 224, 3),  # the config leaves the number of classes open
}

# Only sizes; what kind of losses, starts and schedules a config chooses stays.
SMALL = """--data.source npz --data.num-tasks 2 --model.width 2 --train.epochs 1
  --train.replay-batch-size 8 --contrastive.num-epochs 1 --inversion.base-images 0
  --inversion.images-per-task 8 --inversion.batch-size 8 --inversion.per-layer.num-steps 2
  --inversion.per-layer.inverse-rank 4 --inversion.full-model.num-steps 2""".split()


@pytest.fixture
def quick_compile():
    """Spares most of the compiler's optimisations: these tests compile much and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def write_data(path, num_classes, *image_shape):
    """Two training images and one test image per class, of noise."""
    random = np.random.default_rng(0)
    labels = np.arange(num_classes).repeat(2)
    arrays = {"y_train": labels, "y_test": labels[::2]}
    for name, y in (("x_train", labels), ("x_test", labels[::2])):
        arrays[name] = random.integers(0, 256, (len(y), *image_shape), np.uint8)
    np.savez(path, **arrays)


def run_until_first_inversion(config):
    """The last state of a run, and the scalars of each phase, without anything being written."""
    run, order = open_run(config)
    state, scalars = initial_state(run, order), {}
    for task, num_phases in ((0, None), (1, 2)):
        run.stream.begin(task)
        for index, (name, phase) in enumerate(task_plan(run, task)[:num_phases]):
            place = {"task": task, "phase": index, "step": 0}
            state = state.replace(**{k: jnp.asarray(v, jnp.int32) for k, v in place.items()})
            for tick in phase(run, state):
                state, scalars[name] = tick.state, {**tick.scalars, "steps": tick.total}
    return state, scalars


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_file_is_valid_and_names_its_command(path):
    config = load_config(path)
    for num_devices in (1, 4, 8):
        validate(config, num_devices)
    assert config.model.name in MODELS
    assert config.workdir == f"runs/{path.stem}"
    text = path.read_text()
    assert f"configs/{path.name}" in text or path.stem == "mnist"
    options = re.findall(r"(--[a-z.]+[a-z-]+) ([\d.]+|[a-z]+(?= |\)|`))", text.split('"""')[1])
    options = [pair for pair in options if "." in pair[0] and pair[0] != "--data.path"]
    load_config(path, [part for pair in options for part in pair])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("quick_compile")
def test_two_steps_and_one_inversion(path, tmp_path):
    num_classes, *image_shape = SHAPES[path.stem]
    write_data(tmp_path / "data.npz", num_classes, *image_shape)
    # Half of the classes with two images each, in two batches divisible by eight devices.
    batch_size = max(num_classes // 2 // 8, 1) * 8
    options = ["--data.path", str(tmp_path / "data.npz"), "--train.batch-size", str(batch_size)]
    config = load_config(path, SMALL + options)
    validate(config, jax.device_count())
    state, scalars = run_until_first_inversion(config)
    assert scalars["train:all"]["steps"] >= 2
    assert np.isfinite(list(scalars["train:all"].values())).all()
    assert scalars["invert"]["final_loss"] <= scalars["invert"]["initial_loss"]
    assert int(state.replay.count) == 8
    assert state.replay.images.shape == (8, *image_shape) and np.ptp(state.replay.images) > 0
    assert set(np.asarray(state.replay.labels)) <= set(range(num_classes // 2))


@pytest.mark.parametrize("name", ["cifar100", "tiny_imagenet"])
def test_published_class_orders(name):
    """The released code's orders are Python's own shuffle after seed 0."""
    import random

    order = list(range(SHAPES[name][0]))
    random.Random(0).shuffle(order)
    assert load_config(ROOT / f"configs/{name}.py").data.class_order == tuple(order)
