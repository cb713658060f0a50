"""Calibration of a classifier that was trained on real images of new classes beside synthetic ones.

Such a network tells old from new by what is in an image and by how real it looks: of old classes it
has seen synthetic images alone, so that real ones of them look new. How much, the new classes tell.
Their real images are reconstructed as images of old classes are made, through the same frozen
network; what they lose in newness is what being real adds (docs/methods/pmi.md, eq. 21).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.continual.run import Run
from jaxpmi.continual.run import class_masks
from jaxpmi.continual.run import phase_key
from jaxpmi.continual.samples import evenly_spaced
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.task import training_data
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.inversion.variants import uses_layouts
from jaxpmi.network import Network
from jaxpmi.network import raw_features
from jaxpmi.remember import raw_layouts
from jaxpmi.runs.phases import Tick
from jaxpmi.sharding import shard_batch


def has_calibration(run: Run) -> bool:
    """Whether a run's later tasks end with a calibration: of PMI's own recipe, with layouts."""
    inversion = run.config.inversion
    return (
        run.method.calibrates
        and run.config.losses.recipe == "detached"
        and uses_layouts(inversion, inversion_variant(inversion))
    )


def calibrate_phase(run: Run, state: ContinualState) -> Iterator[Tick]:
    """Takes half of what being real adds to newness off the new classes' logits."""
    task, config = int(state.task), run.config.inversion
    data = training_data(run, task)
    rows = np.resize(evenly_spaced(len(data.labels), config.batch_size), config.batch_size)
    images, labels = shard_batch((data.read(rows), data.labels[rows]), run.mesh)
    new, old = class_masks(run.stream, task)
    made = synthesize(
        state.teacher,
        labels,
        phase_key(state),
        memory=state.memory,
        config=config,
        features=raw_features(state.teacher, images),
        layouts=raw_layouts(state.teacher, images),
        class_mask=new + old > 0,
    )
    newness = functools.partial(mean_newness, state.network, new_mask=new, old_mask=old)
    offset = (newness(images) - newness(made.images)) / 2
    head = state.network.head
    network = state.network.replace(head=head._replace(bias=head.bias - offset * new))
    bad = {"calibration": jnp.where(made.finite, -1, 0)}
    yield Tick(state.replace(network=network), 1, 1, {"offset": offset}, bad, len(rows))


@jax.jit
def mean_newness(
    network: Network, images: jax.Array, *, new_mask: jax.Array, old_mask: jax.Array
) -> jax.Array:
    """How much likelier new classes are than old ones, on average: mean log-odds f32[].

    Args:
      network: run in evaluation mode.
      images: u8[B, H, W, channels].
      new_mask: [C], at least one class.
      old_mask: the same.
    """
    logits = network.head(raw_features(network, images))
    of_new, of_old = (jnp.where(mask[None] > 0, logits, -jnp.inf) for mask in (new_mask, old_mask))
    return (jax.nn.logsumexp(of_new, axis=1) - jax.nn.logsumexp(of_old, axis=1)).mean()
