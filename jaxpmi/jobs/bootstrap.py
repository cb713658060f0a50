"""Pictures that start from those before them: method "bootstrapped_pmi" of job "invert"."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual.run import Run
from jaxpmi.continual.state import Replay
from jaxpmi.inversion.bootstrap import PictureMemory
from jaxpmi.inversion.bootstrap import remember_pictures
from jaxpmi.inversion.bootstrap import start_from_pictures
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.network import Network
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey

FIRST_PER_CLASS = 3  # pictures of every class, at least, that are made from noise


class Remembered(NamedTuple):
    """A memory of the first pictures of a run, `num_batches` of them."""

    num_batches: int
    memory: PictureMemory


def batches_from_noise(config: Config, num_classes: int) -> int:
    """Batches that are made before there is anything to remember."""
    return -(-FIRST_PER_CLASS * num_classes // config.deep_inversion.batch_size)


def remembered_batches(index: int, first: int) -> int:
    """Of how many batches the memory for batch `index` is: of `first` times 1, 4, 16 ..."""
    return first * 4 ** (((index // first).bit_length() - 1) // 2)


def check_is_bootstrapped(config: Config, num_pictures: int, num_classes: int) -> None:
    """Raises if the method is this one, but all pictures would be made from noise."""
    first = batches_from_noise(config, num_classes) * config.deep_inversion.batch_size
    if config.method == "bootstrapped_pmi" and first >= num_pictures:
        raise ValueError(
            f"method='bootstrapped_pmi' makes {first} pictures from noise, {FIRST_PER_CLASS} or "
            f"more of each of {num_classes} classes, before any from these, but only "
            f"{num_pictures} are wanted; raise invert.images_per_class, or use "
            "method='deep_inversion'."
        )


def remember_batches(
    run: Run,
    network: Network,
    replay: Replay,
    index: int,
    key: PRNGKey,
    *,
    first: int,
    before: Remembered | None,
) -> Remembered:
    """The memory that batch `index` starts from.

    It follows from the pictures of these alone, so a resumed run fits the same, and `before` (None:
    nothing) only saves to do it again.
    """
    num_batches = remembered_batches(index, first)
    if before is not None and before.num_batches == num_batches:
        return before
    count = num_batches * run.config.deep_inversion.batch_size
    memory = remember_pictures(
        network,
        replay.samples[:count],
        np.asarray(replay.labels)[:count],
        jax.random.fold_in(key, num_batches),
        config=run.config.deep_inversion,
    )
    return Remembered(num_batches, memory)


def make_batch(
    run: Run,
    network: Network,
    replay: Replay,
    remembered: Remembered,
    labels: jax.Array,
    index: int,
    key: PRNGKey,
    *,
    class_mask: jax.Array,
) -> Synthetic:
    """Pictures of batch `index`, refined by the steps of `inversion.full_model` alone."""
    config, full = run.config.deep_inversion, run.config.inversion.full_model
    key_start, key_refine = jax.random.split(key)
    # Labels of -1 are what makes all batches one program, whatever there is already.
    row = np.arange(len(replay.labels))
    made = np.where(row < index * config.batch_size, np.asarray(replay.labels), -1)
    start = start_from_pictures(
        network,
        remembered.memory,
        replay.samples,
        made,
        np.asarray(labels),
        key_start,
        config=config,
    )
    # The descent goes on where others ended, so there is nothing to warm up.
    variant = dataclasses.replace(DEEP_INVERSION_VARIANTS[config.variant], warmup_steps=0)
    return deep_inversion(
        network,
        labels,
        key_refine,
        config=dataclasses.replace(
            config, stage_steps=(full.num_steps,), learning_rate=full.learning_rate
        ),
        start=shard_batch(start, run.mesh),
        class_mask=class_mask,
        variant=variant,
    )
