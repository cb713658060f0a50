"""Pictures of what a trained network knows; and, with them as replay, learning of new classes.

The network is trained in the run, or is given (`model.weights`). In the latter case the classes of
`data` can be learnt on top of it as DeepInversion does (docs/pictures.md): with real images of the
new classes, and synthetic ones of the old.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual import task as tasks
from jaxpmi.continual.evaluation import evaluate
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.learners import first_phases
from jaxpmi.continual.result import save_result
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import put_samples
from jaxpmi.continual.start import HEAD_STD
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import with_given_network
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.data import ImageSource
from jaxpmi.data import TaskStream
from jaxpmi.data import append_classes
from jaxpmi.data import dataset_name
from jaxpmi.data import imagenet_class_names
from jaxpmi.data import imagenet_labels
from jaxpmi.data import open_source
from jaxpmi.data import relabel
from jaxpmi.data import without_images
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.deep_inversion import first_images
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.per_layer import propagated_block_inputs
from jaxpmi.inversion.synthetic import as_metrics
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.jobs.bootstrap import batches_from_noise
from jaxpmi.jobs.bootstrap import check_is_bootstrapped
from jaxpmi.jobs.bootstrap import make_batch
from jaxpmi.jobs.bootstrap import remember_batches
from jaxpmi.jobs.state import given_or_fresh
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.runs.accounting import Accounts
from jaxpmi.runs.phases import PhaseFn
from jaxpmi.runs.phases import System
from jaxpmi.runs.phases import Tick
from jaxpmi.runs.writers import write_image_folders
from jaxpmi.runs.writers import write_image_grid
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey

PER_ROW = 8  # images of a class in the grid
HELD_OUT_SHARE = 0.25  # of the pictures, to measure agreement on; never learnt
REAL_IMAGES = "real images"
HELD_OUT = "synthetic images held out of training; no real ones were given"


@dataclasses.dataclass(frozen=True)
class InvertRun(Run):
    """What stays the same during a job."""

    classes: tuple[int, ...]  # whose pictures are made
    real: ImageSource | None  # test images of the network's own classes, labelled as these


def open_inputs(config: Config) -> Inputs:
    """Reads a given network; opens the data to learn, and test images of its own classes."""
    config, given = with_given_network(config)
    settings, sources = config.invert, {}
    if given is None or settings.learn_data:
        sources["data"] = open_source(config.data)
    if given is not None and settings.test_name is not None:
        data = dataclasses.replace(
            config.data, source="tfds", name=settings.test_name, path=settings.test_path
        )
        sources["test_data"] = open_source(data)
    return Inputs(config, sources, given)


def begin(config: Config, inputs: Inputs | None = None) -> tuple[InvertRun, ContinualState]:
    """Makes or takes the network, and room for all pictures, on what was read (None: read here)."""
    inputs = inputs or open_inputs(config)
    run, state = _begin_fresh(inputs) if inputs.given is None else _begin_given(inputs)
    check_is_bootstrapped(run.config, num_pictures(run), len(run.classes))
    return run, state


def begin_task(run: InvertRun, task: int) -> list[tuple[str, PhaseFn]]:
    """The phases of making pictures (the first task) and of learning with them (the second)."""
    run.stream.begin(task)
    if task == 0:
        plan = [] if run.given else _training(first_phases, run)
        return [*plan, ("invert", invert_phase), ("evaluate", evaluate_phase)]
    training = _training(METHODS["deep_inversion"].phases, run)
    return [("begin", begin_phase), *training, ("evaluate", evaluate_phase)]


def invert_phase(run: InvertRun, state: ContinualState) -> Iterator[Tick]:
    """Pictures, batch by batch: a start (noise, PMI, earlier pictures), refined through all."""
    config = run.config.deep_inversion
    total, key = num_pictures(run) // config.batch_size, phase_key(state)
    first, remembered = num_first_batches(run), None
    for index in range(int(state.step), total):
        key_batch = jax.random.fold_in(key, index)
        places = np.arange(index * config.batch_size, (index + 1) * config.batch_size)
        labels = shard_batch(np.resize(run.classes, places[-1] + 1)[places], run.mesh)
        if index < first:
            key_start, key_refine = jax.random.split(key_batch)
            made = deep_inversion(
                state.network,
                labels,
                key_refine,
                config=config,
                start=start_images(run, state.network, labels, key_start),
                class_mask=_known(run),
            )
        else:
            seen = run, state.network, state.replay
            key_fit = jax.random.fold_in(key, total)
            remembered = remember_batches(*seen, index, key_fit, first=first, before=remembered)
            made = make_batch(*seen, remembered, labels, index, key_batch, class_mask=_known(run))
        replay = put_samples(
            state.replay, made.images, labels, places[0], count=_num_learnt(run), mesh=run.mesh
        )
        state = state.replace(replay=replay, step=jnp.asarray(index + 1, jnp.int32))
        bad = {"inversion": jnp.where(made.finite, -1, index)}
        yield Tick(state, index + 1, total, as_metrics(made), bad, config.batch_size)


def start_images(run: InvertRun, network: Network, labels: jax.Array, key: PRNGKey) -> jax.Array:
    """Where refinement starts, f32[B, H, W, C]: noise, or per-layer inversion from the labels.

    No data was seen, so the moments of block inputs are those that BatchNorms imply.
    """
    config = run.config
    if config.method in ("deep_inversion", "bootstrapped_pmi"):
        return first_images(
            network, labels, key, variant=DEEP_INVERSION_VARIANTS[config.deep_inversion.variant]
        )
    settings = config.inversion.per_layer
    features = jnp.zeros((labels.shape[0], network.feature_dim))
    images, _ = invert_blocks(
        network,
        Targets(features, labels, network.head, _known(run)),
        propagated_block_inputs(network, published=settings.block_statistics == "affine"),
        key,
        config=settings,
        labels_only=True,
        variant=inversion_variant(config.inversion),
    )
    return images


def begin_phase(run: InvertRun, state: ContinualState) -> Iterator[Tick]:
    """Freezes the network as the teacher of the new classes."""
    yield Tick(tasks.begin_task(state, {}), 1, 1, {}, {}, 0)


def evaluate_phase(run: InvertRun, state: ContinualState) -> Iterator[Tick]:
    """Accuracy on the network's own classes, real or held out, and on those learnt since."""
    task, everything = int(state.task), np.ones(run.stream.num_classes, np.float32)
    seen = np.asarray(sum(class_masks(run.stream, task)))
    found = {0: _own_samples(run, state)} | {
        i: tasks.read_test(run.stream, i) for i in range(1, task + 1)
    }
    accuracy = state.accuracy
    for i, samples in found.items():
        if len(samples.labels):
            own = evaluate(state.network, samples, seen, everything, mesh=run.mesh)
            accuracy = accuracy.at[task, i].set(own.seen)
    scalars = {f"accuracy/task{i}": accuracy[task, i] for i in found}
    count = sum(len(samples.labels) for samples in found.values())
    yield Tick(state.replace(accuracy=accuracy), 1, 1, scalars, {}, count)


def draw(run: InvertRun, state: ContinualState, phase: str, folder: Path) -> str:
    """Writes the pictures: all in one grid, and each into a folder of its class."""
    if phase != "invert":
        return ""
    images, labels = jax.device_get((state.replay.samples, state.replay.labels))
    names = run.stream.class_names[: run.stream.task_classes(0).stop]
    write_image_grid(folder / "grid.png", images, labels, None, None, names, PER_ROW)
    write_image_folders(folder, images, labels, names)
    return ""


def summarise(run: InvertRun, state: ContinualState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json."""
    config, accuracy = run.config, np.asarray(state.accuracy)
    summary = {
        "job": config.job,
        "method": config.method,
        "network": config.model.name,
        "dataset": dataset_name(config.data),
        "seed": config.seed,
        "classes": {str(label): run.stream.class_names[label] for label in run.classes},
        "num_synthesized": num_pictures(run),
        "num_from_earlier_pictures": num_pictures(run)
        - num_first_batches(run) * config.deep_inversion.batch_size,
        "own_accuracy_measured_on": REAL_IMAGES if _has_real(run) else HELD_OUT,
        "own_accuracy_before": float(accuracy[0, 0]),
        "inversion": accounts.inversion,
        **accounts.cost(run.mesh.size),
    }
    if len(accuracy) > 1:
        summary["own_accuracy_after"] = float(accuracy[1, 0])
        summary["new_accuracy"] = float(accuracy[1, 1])
        first = run.stream.task_classes(1).start
        summary["new_classes"] = list(run.stream.class_names[first:])
    return summary


def save(run: InvertRun, state: ContinualState, folder: Path) -> dict[str, str]:
    """Writes the network, with the classes that it has learnt."""
    kept = None if run.given is None else run.given.kept
    return save_result(folder, state.network, run.config.model, kept)


def num_pictures(run: InvertRun) -> int:
    """Pictures in all, rounded up to whole batches."""
    wanted = len(run.classes) * run.config.invert.images_per_class
    size = run.config.deep_inversion.batch_size
    return -(-wanted // size) * size


def num_first_batches(run: InvertRun) -> int:
    """Batches that start from nothing; all, unless the method has a bootstrapped memory."""
    if run.config.method == "bootstrapped_pmi":
        return batches_from_noise(run.config, len(run.classes))
    return num_pictures(run) // run.config.deep_inversion.batch_size


def find_classes(wanted: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    """Labels of classes given by name or by number; () stands for all.

    Raises:
      ValueError: a class that the network does not know, or one given twice.
    """
    positions = {}
    for label, name in reversed(list(enumerate(names))):  # the first of equal names counts
        positions[name.lower()] = label
    found = []
    for text in wanted or map(str, range(len(names))):
        label = int(text) if text.isdecimal() else positions.get(text.lower())
        if label is None or label >= len(names):
            raise ValueError(
                f"invert.classes names {text!r}, which is none of the {len(names)} classes "
                f"({names[0]}, {names[1]}, ...); give a name or a number from 0 to "
                f"{len(names) - 1}."
            )
        if label in found:
            raise ValueError(f"invert.classes names class {label} twice; give every class once.")
        found.append(label)
    return tuple(found)


def labels_among(wanted: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """The labels i32[n] of classes among the network's, by name; ImageNet's by WordNet id too.

    Raises:
      ValueError: a class that the network does not know.
    """
    if names == imagenet_class_names():
        return imagenet_labels(wanted)
    return np.asarray(find_classes(wanted, names), np.int32)


def _begin_fresh(inputs):
    """A network to be trained on all classes of the data."""
    config, source = inputs.config, inputs.sources["data"]
    everything = tuple(range(source.num_classes))
    stream = TaskStream(source, (everything,), allow_past=True)
    stream.begin(0)
    classes = find_classes(config.invert.classes, source.class_names)
    run = InvertRun(config, METHODS["joint"], stream, make_mesh(), classes, None)
    network = given_or_fresh(run, config.model, None, jax.random.key(config.seed))
    return run, _first_state(run, network)


def _begin_given(inputs):
    """A given network; the classes of the data, where they are to be learnt, follow its own."""
    config, sources, given = inputs
    settings, network = config.invert, given.network
    names = network.class_names
    height, width, channels = network.image_shape
    size = config.data.image_size
    shape = network.image_shape if size is None else (size, size, channels)
    known = without_images("pictures", names, shape)
    tasks_of = [tuple(range(len(names)))]
    source = known
    if settings.learn_data:
        source = append_classes(known, sources["data"])
        tasks_of.append(tuple(range(len(names), source.num_classes)))
    real = sources.get("test_data")
    if real is not None:
        real = relabel(real, labels_among(real.class_names, names), names)
    stream = TaskStream(source, tuple(tasks_of))
    classes = find_classes(settings.classes, names)
    run = InvertRun(
        config, METHODS["deep_inversion"], stream, make_mesh(), classes, real, given=given
    )
    new = stream.num_classes - len(names)
    columns = HEAD_STD * jax.random.normal(jax.random.key(config.seed), (network.feature_dim, new))
    kernel, bias = network.head
    if bias is not None:
        bias = jnp.concatenate([bias, jnp.zeros(new)])
    network = network.replace(
        head=Head(jnp.concatenate([kernel, columns], 1), bias),
        image_shape=stream.image_shape,
        class_names=stream.class_names,
    )
    return run, _first_state(run, network)


def _first_state(run, network):
    num_tasks, zero = run.stream.num_tasks, jnp.zeros((), jnp.int32)
    shape, count = run.stream.image_shape, num_pictures(run)
    unmeasured = jnp.full((num_tasks, num_tasks), jnp.nan)
    state = ContinualState(
        network=network,
        teacher=jax.tree.map(jnp.copy, network),
        auxiliary={},
        opt_state=optimiser(run.config.train).init(trainable_parts(network, {})),
        memory=(),
        generator=(),
        replay=Replay(jnp.zeros((count, *shape), jnp.uint8), jnp.zeros(count, jnp.int32), zero),
        class_counts=jnp.ones(run.stream.num_classes),
        accuracy=unmeasured,
        task_accuracy=unmeasured,
        class_order=jnp.arange(run.stream.num_classes, dtype=jnp.int32),
        key=jax.random.key(run.config.seed + 1),
        task=zero,
        phase=zero,
        step=zero,
    )
    return replicate(state, run.mesh)


def _training(make, run):
    """Phases of supervised training, by name."""
    phases = make(run.config.train, run.config.losses)
    if run.given is not None:
        phases = [dataclasses.replace(p, trainable=run.config.invert.trainable) for p in phases]
    return tasks.train_plan(phases)


def _known(run):
    """bool[C], the classes that the network knows before it learns any."""
    return jnp.arange(run.stream.num_classes) < run.stream.task_classes(0).stop


def _num_learnt(run):
    """Pictures that serve as replay; those after them are held out."""
    held_out = HELD_OUT_SHARE if run.stream.num_tasks > 1 else 0.0
    return num_pictures(run) - round(held_out * num_pictures(run))


def _has_real(run):
    return run.real is not None or run.given is None


def _own_samples(run, state):
    """Images of the network's own classes to measure on."""
    if run.real is not None:
        return LabelledSamples(functools.partial(run.real.read, "test"), run.real.labels["test"])
    if run.given is None:
        return tasks.read_test(run.stream, 0)
    first = _num_learnt(run)
    images, labels = jax.device_get((state.replay.samples[first:], state.replay.labels[first:]))
    return LabelledSamples(images.__getitem__, labels)


INVERT = System(
    open_inputs, begin, lambda run: run.stream.num_tasks, begin_task, draw, summarise, save=save
)
