"""Batches of synthetic images from a frozen network, by any of the methods, into one pool."""

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.samples import put_samples
from jaxpmi.continual.state import Replay
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_metrics
from jaxpmi.jobs.state import JobState
from jaxpmi.network import Network
from jaxpmi.runs.phases import Tick
from jaxpmi.runs.writers import write_image_grid
from jaxpmi.runs.writers import write_samples_npz
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey


class Synthesiser(NamedTuple):
    """A method to make images; `Config` is its settings, what it carries is its own.

    Attributes:
      batch_size: images per call.
      begin: what it carries from batch to batch, at first, for a teacher.
      make: the next of that, and a batch of images of i32[B] labels; the student, or None, is the
        network that they are to be hard for.
      adapts: whether images depend on the student, or on the images before them.
    """

    batch_size: Callable[[Config], int]
    begin: Callable[[Config, Network, PRNGKey], Any]
    make: Callable[
        [Config, Any, Network, jax.Array, PRNGKey, Network | None], tuple[Any, Synthetic]
    ]
    adapts: bool


def balanced_labels(run: Run, step: int, batch_size: int) -> np.ndarray:
    """Labels i32[B] of a batch, every class as often as any other, in random order."""
    rng = np.random.default_rng((run.config.seed, step))
    num_classes = run.stream.num_classes
    first = rng.permutation(num_classes)  # which classes get the rest, where B is no multiple
    return rng.permutation(np.resize(first, batch_size)).astype(np.int32)


def fill_pool(
    run: Run, state: JobState, synthesiser: Synthesiser, num_batches: int
) -> Iterator[Tick]:
    """Makes batches for no student in particular, one a step."""
    key, batch_size = phase_key(state), synthesiser.batch_size(run.config)
    for index in range(int(state.step), num_batches):
        state, scalars, finite = add_batch(run, state, synthesiser, jax.random.fold_in(key, index))
        state = state.replace(step=jnp.asarray(index + 1, jnp.int32))
        bad = {"synthesis": jnp.where(finite, -1, index)}
        yield Tick(state, index + 1, num_batches, scalars, bad, batch_size)


def add_batch(
    run: Run,
    state: JobState,
    synthesiser: Synthesiser,
    key: PRNGKey,
    *,
    against: Network | None = None,
) -> tuple[JobState, dict[str, jax.Array], jax.Array]:
    """Makes the next batch and puts it into the pool.

    Returns:
      The state, what is told of the batch, and whether all of its losses were finite.
    """
    count = int(state.pool.count)
    labels = balanced_labels(run, count, synthesiser.batch_size(run.config))
    labels = shard_batch(labels, run.mesh)
    carried, made = synthesiser.make(
        run.config, state.synthesiser, state.network, labels, key, against
    )
    total = count + len(labels)
    pool = put_samples(state.pool, made.images, labels, count, count=total, mesh=run.mesh)
    return state.replace(pool=pool, synthesiser=carried), as_metrics(made), made.finite


def empty_pool(run: Run, num_images: int) -> Replay:
    """Room for that many images, u8[N, H, W, C]."""
    shape = (num_images, *run.stream.image_shape)
    return Replay(
        jnp.zeros(shape, jnp.uint8), jnp.zeros(num_images, jnp.int32), jnp.zeros((), jnp.int32)
    )


def pool_images(state: JobState) -> tuple[np.ndarray, np.ndarray]:
    """The images made so far, u8[N, H, W, C], and their labels i32[N]."""
    count = int(state.pool.count)
    samples, labels = jax.device_get((state.pool.samples, state.pool.labels))
    return samples[:count], labels[:count]


def draw_pool(run: Run, state: JobState, phase: str, folder: Path) -> str:
    """Writes images of every class beside real ones, after the phases that make images."""
    if phase in ("invert", "distill"):
        images, labels = pool_images(state)
        real = run.stream.test_images(0), run.stream.test_labels(0)
        # The newest: methods that learn make better ones as they go.
        names = run.stream.class_names
        write_image_grid(folder / "synthetic.png", images[::-1], labels[::-1], *real, names)
        if run.config.save_images:
            write_samples_npz(folder / "synthetic.npz", images, labels)
    return ""
