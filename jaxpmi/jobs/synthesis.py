"""Batches of synthetic images from a frozen network, by any of the methods, into one pool."""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import denormalise
from jaxpmi.config import Config
from jaxpmi.continual.evaluation import label_agreement
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.samples import put_samples
from jaxpmi.continual.state import Network
from jaxpmi.continual.state import Replay
from jaxpmi.jobs.state import JobState
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.phases import Tick
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey
from jaxpmi.writers import write_image_grid
from jaxpmi.writers import write_samples_npz


class Request(NamedTuple):
    """What one batch of images is to be."""

    teacher: Network
    student: Network | None  # that the images are to be hard for; None: for no one
    labels: jax.Array  # i32[B]
    mean: jax.Array  # f32[channels], of pixels in [0, 1]
    std: jax.Array  # f32[channels]
    key: PRNGKey


class Batch(NamedTuple):
    """Images, and what is told of them."""

    images: jax.Array  # f32[B, H, W, C], normalised
    loss: jax.Array  # f32[]
    terms: dict[str, jax.Array]  # unweighted
    finite: jax.Array  # bool[]


class Synthesiser(NamedTuple):
    """A method to make images; `Config` is its settings, what it carries is its own."""

    batch_size: Callable[[Config], int]
    begin: Callable[[Run, JobState, PRNGKey], Any]  # what it carries from batch to batch
    make: Callable[[Any, Request, Run, BlockwiseModel | None], tuple[Any, Batch]]
    adapts: bool  # whether images depend on the student, or on the images before them


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
    student_model: BlockwiseModel | None = None,
) -> tuple[JobState, dict[str, jax.Array], jax.Array]:
    """Makes the next batch and puts it into the pool.

    Returns:
      The state, what is told of the batch, and whether all of its losses were finite.
    """
    count = int(state.pool.count)
    labels = balanced_labels(run, count, synthesiser.batch_size(run.config))
    labels = shard_batch(labels, run.mesh)
    request = Request(state.network, against, labels, state.mean, state.std, key)
    carried, batch = synthesiser.make(state.synthesiser, request, run, student_model)
    samples = _as_kept(batch.images, state.mean, state.std, state.pool.samples.dtype)
    agreement = label_agreement(
        state.network, samples, labels, state.mean, state.std, model=run.model
    )
    total = count + len(labels)
    pool = put_samples(state.pool, samples, labels, count, count=total, mesh=run.mesh)
    terms = {f"final_{name}": term for name, term in batch.terms.items()}
    scalars = {"final_loss": batch.loss, "agreement": agreement, **terms}
    return state.replace(pool=pool, synthesiser=carried), scalars, batch.finite


def empty_pool(run: Run, num_images: int, pool_format: str = "uint8") -> Replay:
    """Room for that many images, u8 or f32 of pixels 0..255."""
    shape = (num_images, *run.stream.image_shape)
    return Replay(
        jnp.zeros(shape, pool_format), jnp.zeros(num_images, jnp.int32), jnp.zeros((), jnp.int32)
    )


def pool_images(state: JobState) -> tuple[np.ndarray, np.ndarray]:
    """The images made so far, u8[N, H, W, C], and their labels i32[N]."""
    count = int(state.pool.count)
    samples, labels = jax.device_get((state.pool.samples, state.pool.labels))
    return np.round(samples[:count]).astype(np.uint8), labels[:count]


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


@functools.partial(jax.jit, static_argnames="dtype")
def _as_kept(images, mean, std, dtype):
    """Pixels 0..255 of normalised images, rounded to 8 bits or not."""
    if dtype == jnp.uint8:
        return denormalise(images, mean, std)
    return 255.0 * jnp.clip(images * std[None, None, None] + mean[None, None, None], 0.0, 1.0)
