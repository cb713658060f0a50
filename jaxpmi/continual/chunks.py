"""Feeds raw batches to training, many steps per compiled call."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpmi.config import TrainConfig
from jaxpmi.continual.run import Run
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import Chunk
from jaxpmi.continual.train import ChunkMetrics
from jaxpmi.data.batches import epoch_batches
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

CHUNK_STEPS = 32  # most training steps per compiled call
CHUNK_BYTES = 2**28  # most bytes of real and synthetic samples per compiled call


def train_in_chunks(
    run: Run,
    state: Any,
    train: TrainConfig,
    real: LabelledSamples,
    replay: Replay | None,
    rates: np.ndarray,
    steps: Callable[[Any, Chunk], tuple[Any, ChunkMetrics]],
) -> Iterator[Tick]:
    """Trains from `state.step` on, many steps per compiled call.

    Args:
      run: what stays the same.
      state: whose fields the learner has.
      train: batch sizes.
      real: what the task trains on.
      replay: synthetic samples, on the host; None: the steps need none.
      rates: the learning rate of every step, f32[S].
      steps: makes a state and a chunk into the next learner and the metrics of the chunk.
    """
    total, size = len(rates), chunk_steps(run, train, replay)
    seed = (run.config.seed, int(state.task), int(state.phase))
    images = train.batch_size + (train.replay_batch_size if replay is not None else 0)
    for first in range(int(state.step), total, size):
        count = min(size, total - first)
        chunk = make_chunk(run, train, real, replay, rates, seed, first, count, size)
        learner, metrics = steps(state, chunk)
        state = state.replace(**learner._asdict(), step=jnp.asarray(first + count, jnp.int32))
        loss = sum(metrics.terms.values())
        totals = {**metrics.terms, **metrics.monitored, "loss": loss}
        scalars = {name: value / count for name, value in totals.items()}
        yield Tick(state, first + count, total, scalars, metrics.bad_step, count * images)


def chunk_steps(run, train, replay):
    """Training steps per compiled call."""
    per_step = train.batch_size * int(np.prod(run.stream.image_shape))
    if replay is not None:
        per_step += train.replay_batch_size * replay.samples[0].nbytes
    return int(np.clip(CHUNK_BYTES // per_step, 1, CHUNK_STEPS))


def make_chunk(run, train, real, replay, rates, seed, first, count, size):
    """Raw batches of `count` steps, padded to `size` steps."""
    rows = epoch_batches(len(real.labels), train.batch_size, count, seed, first)
    rows = np.concatenate([rows, np.zeros((size - count, train.batch_size), rows.dtype)])
    images = real.read(rows.reshape(-1))
    steps, like = (1, images) if replay is None else (size, replay.samples)
    replay_images = np.zeros((steps, train.replay_batch_size, *like.shape[1:]), like.dtype)
    replay_labels = np.zeros((steps, train.replay_batch_size), np.int32)
    if replay is not None:
        picks = epoch_batches(int(replay.count), train.replay_batch_size, count, (*seed, 1), first)
        replay_images[:count] = replay.samples[picks]
        replay_labels[:count] = replay.labels[picks]
    images = images.reshape(size, train.batch_size, *images.shape[1:])
    batches = (images, real.labels[rows], replay_images, replay_labels)
    batches = shard_batch(batches, run.mesh, axis=1)
    padded = np.zeros(size, np.float32)
    padded[:count] = rates[first : first + count]
    rest = (padded, np.int32(first), np.int32(count))
    return Chunk(*batches, *replicate(rest, run.mesh))
