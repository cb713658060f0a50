"""Samples to train on and to remember: a sample is the input of some block of the network.

Real samples are images, the inputs of block 0, and are kept as raw pixels. Synthetic ones are
those, or inputs of a later block (`InversionVariant`), which stay as they are.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.continual.state import Replay
from jaxpmi.sharding import replicate


class LabelledSamples(NamedTuple):
    """Samples on the host, read in batches: a task of ImageNet does not fit into memory."""

    read: Callable[[np.ndarray], np.ndarray]  # indices i64[n] below N to samples [n, ...]
    labels: np.ndarray  # i32[N]
    first_block: int = 0  # whose inputs they are


def scene_samples(read: Callable[[np.ndarray], np.ndarray], count: int) -> LabelledSamples:
    """Scenes, whose labels are in their last channel; `labels` are zeros and only count them."""
    return LabelledSamples(read, np.zeros(count, np.int32))


def evenly_spaced(count: int, most: int | None) -> np.ndarray:
    """At most that many of `count` rows, i64[n], from the first to the last; None: all."""
    return np.linspace(0, count - 1, min(most or count, count)).astype(np.int64)


def padded_batches(
    samples: LabelledSamples, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All samples in order, in batches of one shape, each read when it is its turn.

    Yields samples [B, ...], labels i32[B] and weights f32[B]; what fills up the last batch is 0,
    its weight too, else 1.
    """
    for start in range(0, len(samples.labels), batch_size):
        labels = np.asarray(samples.labels[start : start + batch_size], np.int32)
        count = len(labels)
        batch = samples.read(np.arange(start, start + count)), labels, np.ones(count, np.float32)
        yield tuple(np.pad(x, [(0, batch_size - count)] + [(0, 0)] * (x.ndim - 1)) for x in batch)


def from_samples(
    samples: jax.Array, mean: jax.Array, std: jax.Array, *, first_block: int
) -> jax.Array:
    """The inputs f32[B, ...] of the block that samples are of: images are normalised."""
    return normalise(samples, mean, std) if first_block == 0 else samples


def put_samples(
    replay: Replay,
    samples: jax.Array,
    labels: jax.Array,
    first: int,
    *,
    count: int,
    mesh: jax.sharding.Mesh,
) -> Replay:
    """Replaces the samples from row `first` on; of all, `count` are then ready for use."""
    samples, labels = replicate((samples, labels), mesh)
    return Replay(
        jax.lax.dynamic_update_slice_in_dim(replay.samples, samples, first, 0),
        jax.lax.dynamic_update_slice_in_dim(replay.labels, labels, first, 0),
        jnp.asarray(count, jnp.int32),
    )
