"""Replay without a network: images drawn from a Gaussian of every class's pixels.

What the bytes that other methods keep would buy by themselves (docs/methods/baselines.md).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import denormalise
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import num_replay_images
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.samples import put_samples
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.task import balanced_labels
from jaxpmi.continual.task import training_data
from jaxpmi.features.shared_gaussian import SharedGaussians
from jaxpmi.features.shared_gaussian import add_vectors
from jaxpmi.features.shared_gaussian import init_shared_gaussians
from jaxpmi.features.shared_gaussian import sample_vectors
from jaxpmi.features.shared_gaussian import sum_by_class
from jaxpmi.features.shared_gaussian import with_means
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

NUM_DIRECTIONS = 32  # in which images of one class differ: on 28 x 28 digits 131 kB in all


def empty_pixel_gaussians(image_shape: tuple[int, int, int], num_classes: int) -> SharedGaussians:
    """Room for the Gaussians of images of that shape."""
    size = int(np.prod(image_shape))
    return init_shared_gaussians(num_classes, size, num_directions=NUM_DIRECTIONS)


def draw_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Draws images of all old classes from their Gaussians, batch by batch."""
    config, task = run.config, int(state.task)
    size = config.inversion.batch_size
    count = num_replay_images(config, task)
    rng = np.random.default_rng((config.seed, task, int(state.phase)))
    labels = balanced_labels(run, task, rng)
    for batch in range(int(state.step), count // size):
        rows = slice(batch * size, (batch + 1) * size)
        wanted = shard_batch(labels[rows], run.mesh)
        key = jax.random.fold_in(phase_key(state), batch)
        images = draw_images(state.memory, wanted, key, image_shape=run.stream.image_shape)
        replay = put_samples(
            state.replay, images, wanted, rows.start, count=rows.stop, mesh=run.mesh
        )
        state = state.replace(replay=replay, step=jnp.asarray(batch + 1, jnp.int32))
        yield Tick(state, batch + 1, count // size, {}, {}, size)


@functools.partial(jax.jit, static_argnames="image_shape")
def draw_images(
    gaussians: SharedGaussians,
    labels: jax.Array,
    key: jax.Array,
    *,
    image_shape: tuple[int, int, int],
) -> jax.Array:
    """Draws an image u8[B, H, W, channels] per label i32[B], clipped to valid pixels."""
    drawn = sample_vectors(gaussians, labels, key).reshape(-1, *image_shape)
    channels = image_shape[-1]
    return denormalise(drawn, jnp.zeros(channels), jnp.ones(channels))


def remember_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Adds the images of the task just learnt: means in one pass, directions in a second."""
    images = training_data(run, int(state.task))
    size, num_classes = run.config.inversion.batch_size, run.stream.num_classes

    def batches():
        for batch in padded_batches(images, size):
            yield shard_batch(batch, run.mesh)

    parts = [_sum_pixels(*batch, num_classes=num_classes) for batch in batches()]
    memory = with_means(state.memory, *jax.tree.map(lambda *of: sum(of), *parts))
    for batch in batches():
        memory = _add_pixels(memory, *batch)
    memory = replicate(memory, run.mesh)
    yield Tick(state.replace(memory=memory), 1, 1, {}, {}, len(images.labels))


@functools.partial(jax.jit, static_argnames="num_classes")
def _sum_pixels(images, labels, weights, *, num_classes):
    return sum_by_class(_as_vectors(images), labels, weights, num_classes)


@jax.jit
def _add_pixels(gaussians, images, labels, weights):
    return add_vectors(gaussians, _as_vectors(images), labels, weights)


def _as_vectors(images):
    """Pixels in [0, 1], f32[B, P], of raw images."""
    return images.reshape(len(images), -1).astype(jnp.float32) / 255
