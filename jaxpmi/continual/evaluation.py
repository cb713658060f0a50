"""Accuracy on test images, and every metric that is made of it.

All metrics are functions of A[t, i]: the accuracy on the test images of task i after learning
task t, predicting over all classes seen so far (no task id). Entries with i > t are ignored.
Formulas: docs/concepts.md, eqs. 1 to 5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import padded_batches
from jaxpmi.network import Network
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch


class Accuracies(NamedTuple):
    """Shares of one set of test images that are predicted rightly."""

    seen: float  # predicting over all classes seen so far
    within_task: float  # predicting over the classes of the own task only


def incremental_accuracies(accuracy: np.ndarray, task_sizes: Sequence[int]) -> list[float]:
    """Accuracy per test image of all seen tasks, after every task.

    A_t = sum_{i <= t} n_i A[t, i] / sum_{i <= t} n_i, with n_i test images of task i.

    Args:
      accuracy: f[T, T], as in the module's first lines.
      task_sizes: n_i, T of them.
    """
    accuracy, sizes = _check(accuracy, task_sizes)
    return [
        float(np.average(accuracy[t, : t + 1], weights=sizes[: t + 1]))
        for t in range(len(accuracy))
    ]


def last_accuracy(accuracy: np.ndarray, task_sizes: Sequence[int]) -> float:
    """A_{T-1}: accuracy per test image of all tasks after the last one."""
    return incremental_accuracies(accuracy, task_sizes)[-1]


def average_incremental_accuracy(accuracy: np.ndarray, task_sizes: Sequence[int]) -> float:
    """Mean over t of A_t, the first task included."""
    return float(np.mean(incremental_accuracies(accuracy, task_sizes)))


def forgetting(accuracy: np.ndarray) -> float:
    """Mean over i < T-1 of (max_{i <= t < T-1} A[t, i]) - A[T-1, i]; 0 for a single task."""
    accuracy, _ = _check(accuracy)
    last = len(accuracy) - 1
    drops = [accuracy[i:last, i].max() - accuracy[last, i] for i in range(last)]
    return float(np.mean(drops)) if drops else 0.0


def backward_transfer(accuracy: np.ndarray) -> float:
    """Mean over i < T-1 of A[T-1, i] - A[i, i], usually negative; 0 for a single task."""
    accuracy, _ = _check(accuracy)
    last = len(accuracy) - 1
    changes = [accuracy[last, i] - accuracy[i, i] for i in range(last)]
    return float(np.mean(changes)) if changes else 0.0


def summarise(accuracy: np.ndarray, task_sizes: Sequence[int]) -> dict[str, float | list[float]]:
    """All metrics of a finished accuracy matrix f[T, T], by their names in summary.json."""
    return {
        "last_accuracy": last_accuracy(accuracy, task_sizes),
        "average_incremental_accuracy": average_incremental_accuracy(accuracy, task_sizes),
        "incremental_accuracies": incremental_accuracies(accuracy, task_sizes),
        "forgetting": forgetting(accuracy),
        "backward_transfer": backward_transfer(accuracy),
    }


@jax.jit
def count_correct(
    network: Network, batch: dict[str, jax.Array], seen_mask: jax.Array, task_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Counts right predictions among all seen classes, and among those of the task.

    Args:
      network: run in evaluation mode.
      batch: `images` u8[B, H, W, C], `labels` i32[B], `weights` f32[B] (0 for padding).
      seen_mask: f32[C] or bool[C], nonzero for classes learned so far.
      task_mask: the same for the classes of the images' own task.

    Returns:
      Two f32[]: sums of `weights` over the images predicted rightly.
    """
    images = normalise(batch["images"], network.mean, network.std)
    logits = network.head(forward(network.model, network.variables, images).features)

    def count(mask):
        predicted = jnp.where(mask[None] > 0, logits, -jnp.inf).argmax(1)
        return jnp.sum(batch["weights"] * (predicted == batch["labels"]))

    return count(seen_mask), count(task_mask)


def evaluate(
    network: Network,
    samples: LabelledSamples,
    seen_mask: np.ndarray,
    task_mask: np.ndarray,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int = 256,
) -> Accuracies:
    """Measures the accuracy on test images of one task, read in batches and padded to one shape.

    `samples` are images u8[n, H, W, C], of which no more than two batches are in memory;
    `batch_size` is rounded up to a multiple of the number of devices; the rest is as in
    `count_correct`.
    """
    num_images = len(samples.labels)
    if num_images == 0:
        raise ValueError("got no test images; expected at least one.")
    batch_size = -(-batch_size // mesh.size) * mesh.size
    masks = replicate((jnp.asarray(seen_mask), jnp.asarray(task_mask)), mesh)
    counts = []
    for images, labels, weights in padded_batches(samples, batch_size):
        batch = shard_batch({"images": images, "labels": labels, "weights": weights}, mesh)
        counts.append(count_correct(network, batch, *masks))
        jax.block_until_ready(counts[-2:-1])  # the batch before: reading may be the faster
    seen, within_task = np.sum(jax.device_get(counts), axis=0) / num_images
    return Accuracies(float(seen), float(within_task))


def _check(
    accuracy: np.ndarray, task_sizes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64, or raises if shapes or values make no sense."""
    accuracy = np.asarray(accuracy, np.float64)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or accuracy.size == 0:
        raise ValueError(f"the accuracy matrix has shape {accuracy.shape}; expected [T, T].")
    learned = accuracy[np.tril_indices(len(accuracy))]
    if not np.all((learned >= 0) & (learned <= 1)):
        raise ValueError("the accuracy matrix has entries outside [0, 1] on or below its diagonal.")
    sizes = np.ones(len(accuracy)) if task_sizes is None else np.asarray(task_sizes, np.float64)
    if sizes.shape != accuracy.shape[:1] or not np.all(sizes > 0):
        raise ValueError(
            f"task_sizes={task_sizes} does not fit {len(accuracy)} tasks; give one positive number "
            "of test images per task."
        )
    return accuracy, sizes
