"""Semantic segmentation in tasks: how a run begins, how its scenes are judged, what is told of it.

Training, records and resuming are those of classification, with features and labels per pixel.
Predictions are measured by the IoU of a class: of the pixels that are of it or are taken for it,
the share that is both.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import Config
from jaxpmi.continual import evaluation
from jaxpmi.continual.learners import find_method
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.samples import scene_samples
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import make_run
from jaxpmi.continual.start import with_given_network
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Network
from jaxpmi.continual.summary import bytes_kept
from jaxpmi.continual.summary import describe_run
from jaxpmi.continual.summary import record_size
from jaxpmi.data import SceneStream
from jaxpmi.data import open_scenes
from jaxpmi.data import scene_tasks
from jaxpmi.runs.accounting import Accounts
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch
from jaxpmi.types import IGNORED_LABEL


def begin_segmentation(config: Config, inputs: Inputs | None = None) -> tuple[Run, ContinualState]:
    """Builds the model and fills the first state, on what was read (None: it is read here)."""
    config, sources, given = inputs or open_scene_data(config)
    source = sources["data"]
    tasks = scene_tasks(config.data, source, config.seed)
    order = tuple(entry for task in tasks for entry in task)
    allow_past = find_method(config.method).all_data
    run = make_run(
        config,
        SceneStream(source, tasks, by=config.data.scene_tasks, allow_past=allow_past),
        given,
    )
    stream = run.stream
    unmeasured = jnp.full((stream.num_tasks, stream.num_classes), jnp.nan)
    state = initial_state(run, order)
    return run, state.replace(class_iou=replicate(unmeasured, run.mesh))


def open_scene_data(config: Config) -> Inputs:
    """Reads a given network, and opens the scenes of a run."""
    config, given = with_given_network(config)
    return Inputs(config, {"data": open_scenes(config.data)}, given)


@jax.jit
def predict_labels(network: Network, images: jax.Array, seen_mask: jax.Array) -> jax.Array:
    """The class of every pixel, among those seen so far.

    Args:
      network: run in evaluation mode.
      images: u8[B, H, W, channels], raw pixels without a label map.
      seen_mask: [C], nonzero for classes learned so far.

    Returns:
      i32[B, H, W].
    """
    x = normalise(images, network.mean, network.std)
    logits = network.head(forward(network.model, network.variables, x).features)
    return jnp.where(seen_mask[None, None, None] > 0, logits, -jnp.inf).argmax(-1)


@jax.jit
def _count_pixels(network, scenes, weights, seen_mask):
    """`confusion_counts` of a batch with weights f32[B], 0 for padding: i32[C, C]."""
    labels = scenes[..., -1].astype(jnp.int32)
    predicted = predict_labels(network, scenes[..., :-1], seen_mask)
    counted = (labels != IGNORED_LABEL) & (weights > 0)[:, None, None]
    num_classes = seen_mask.shape[0]
    cells = jnp.where(counted, num_classes * labels + predicted, num_classes**2)
    # The last cell is of what does not count.
    return jnp.bincount(cells.reshape(-1), length=num_classes**2 + 1)[:-1].reshape(
        num_classes, num_classes
    )


def confusion_counts(
    network: Network,
    scenes: LabelledSamples,
    seen_mask: jax.Array,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> np.ndarray:
    """Counts the pixels of scenes by true and by predicted class.

    Args:
      network: run in evaluation mode.
      scenes: read in batches, u8[n, H, W, channels + 1], the label map last.
      seen_mask: [C], nonzero for classes learned so far.
      mesh: devices that batches are split over.
      batch_size: a multiple of their number; the last batch is padded.

    Returns:
      i64[C, C], truth by prediction; pixels of `IGNORED_LABEL` do not count.
    """
    seen_mask = replicate(seen_mask, mesh)
    total = np.zeros((len(seen_mask),) * 2, np.int64)
    for samples, _, weights in padded_batches(scenes, batch_size):
        batch = shard_batch((samples, weights), mesh)
        total += np.asarray(_count_pixels(network, *batch, seen_mask))
    return total


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """IoU f64[C] of i64[C, C], truth by prediction; NaN of classes that no pixel has to do with."""
    both = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - both
    return np.divide(both, union, out=np.full(len(both), np.nan), where=union > 0)


def evaluate_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Measures the IoUs on the test scenes of everything seen so far."""
    task, stream = int(state.task), run.stream
    measure = functools.partial(
        confusion_counts, state.network, seen_mask=sum(class_masks(stream, task)),
        mesh=run.mesh, batch_size=run.config.train.batch_size,
    )  # fmt: skip
    if stream.by == "domains":
        parts = [measure(_scenes_of(stream, i)) for i in range(task + 1)]
        ious = class_ious(sum(parts))
        of_tasks = [np.nanmean(class_ious(part)) for part in parts]
    else:
        ious = class_ious(measure(_seen_scenes(stream)))
        of_tasks = [np.nanmean(ious[own_classes(stream, i)]) for i in range(task + 1)]
    row = jnp.asarray(of_tasks, jnp.float32)
    state = state.replace(
        accuracy=state.accuracy.at[task, : task + 1].set(row),
        class_iou=state.class_iou.at[task].set(jnp.asarray(ious, jnp.float32)),
    )
    scalars = {f"miou/task{i}": row[i] for i in range(task + 1)}
    yield Tick(state, 1, 1, scalars, {}, stream.seen_test_size())


def own_classes(stream: SceneStream, task: int) -> np.ndarray:
    """The classes that a task is judged by: its own, background aside."""
    classes = np.asarray(stream.task_classes(task))
    return classes[classes > 0] if stream.by == "classes" else classes


def summarise_segmentation(run: Run, state: ContinualState, accounts: Accounts) -> dict[str, Any]:
    """The content of summary.json; a mean over classes has background in it, if there is one."""
    stream = run.stream
    matrix = np.asarray(state.accuracy)
    ious = np.asarray(state.class_iou)
    mious = [float(np.nanmean(row)) for row in ious]
    return {
        **describe_run(run, state, stream.num_tasks),
        "miou_matrix": matrix.tolist(),
        "last_miou": mious[-1],
        "average_incremental_miou": float(np.mean(mious)),
        "incremental_mious": mious,
        "forgetting": evaluation.forgetting(matrix),
        "backward_transfer": evaluation.backward_transfer(matrix),
        "class_iou": dict(zip(stream.class_names, ious[-1].tolist(), strict=True)),
        "bytes_kept_between_tasks": bytes_kept(state),
        **accounts.cost(run.mesh.size),
        **record_size(state),
    }


def _scenes_of(stream, task):
    """The test scenes of a task, to be read in batches."""
    read = functools.partial(stream.test_images, task)
    return scene_samples(read, stream.test_size(task))


def _seen_scenes(stream):
    """The test scenes of everything seen so far, each once."""
    return scene_samples(stream.seen_test_images, stream.seen_test_size())
