"""One pass over the images of the task just learnt, for its record; see `gradient_records`."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import VdfdConfig
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import evenly_spaced
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.vdfd.drift_penalty import PENALTY_VARIANTS
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.continual.vdfd.gradient_records import Tensors
from jaxpmi.continual.vdfd.gradient_records import add_record
from jaxpmi.continual.vdfd.gradient_records import logit_gradients
from jaxpmi.continual.vdfd.gradient_records import regularised_tensors
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch
from jaxpmi.types import IGNORED_LABEL


def record_task(
    records: GradientRecords,
    network: Network,
    images: LabelledSamples,
    task: int,
    classes: Sequence[int],
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    config: VdfdConfig,
    label_maps: bool = False,
) -> GradientRecords:
    """Adds the record of a task: gradients of its mean logits, over its images as they are.

    Of scenes the mean is over all pixels that count (docs/segmentation.md). Ours is
    `config.mean_logits` "own_class" (docs/methods/vdfd.md, eq. 5): the logit of class c, less the
    mean over the task's classes, averaged over the images or pixels of c alone. A class that has
    none leaves a record of zeros.

    Args:
      records: of the tasks before.
      network: just trained on the task; run in evaluation mode.
      images: the task's; their labels are used by "own_class" alone.
      task: its row.
      classes: its columns of the head.
      mesh: devices that batches are split over.
      batch_size: a multiple of their number; the last batch is padded with images of weight 0.
      config: of VDFD: which tensors, and mean over what.
      label_maps: images are scenes, with their label map as the last channel.

    Returns:
      The new records.
    """
    room = records.class_mask.shape[1]
    columns = np.zeros(room, np.int32)
    columns[: len(classes)] = classes
    mask = (np.arange(room) < len(classes)).astype(np.float32)
    network, columns, mask = replicate((network, columns, mask), mesh)
    total = None
    rows = evenly_spaced(len(images.labels), config.record_images)
    some = images._replace(read=lambda i: images.read(rows[i]), labels=images.labels[rows])
    for padded in padded_batches(some, batch_size):
        batch = shard_batch(padded, mesh)
        part = _batch_gradients(
            network, *batch, columns, mask, label_maps=label_maps, config=config
        )
        total = part if total is None else _add(total, part)
    rest = (columns, mask, jnp.asarray(task, jnp.int32))
    return _finish(records, *total, network, *rest, config=config)


@functools.partial(jax.jit, static_argnames=("config", "label_maps"))
def _batch_gradients(
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    columns: jax.Array,
    mask: jax.Array,
    *,
    config: VdfdConfig,
    label_maps: bool,
) -> tuple[Tensors, jax.Array]:
    """Gradients of the logits summed over a padded batch, and of how many rows each, f32[C]."""
    own_class = config.mean_logits == "own_class"
    if label_maps:
        images, labels = images[..., :-1], images[..., -1].astype(jnp.int32)
        weights = weights[:, None, None] * (labels != IGNORED_LABEL)
    rows = tuple(range(labels.ndim))
    own = labels[..., None] == jnp.expand_dims(columns, rows)
    weights = weights[..., None] * (own if own_class else jnp.ones_like(own))
    x = normalise(images, network.mean, network.std)

    def sum_logits(params):
        backbone, head = params
        variables = Variables(backbone, network.variables.batch_stats)
        bias = None if head.bias is None else head.bias[columns]
        wanted = Head(head.kernel[:, columns], bias)
        logits = wanted(forward(network.model, variables, x).features)
        if own_class:
            share = mask / mask.sum()
            centre = jnp.dot(logits, share, precision=jax.lax.Precision.HIGHEST)
            logits = logits - centre[..., None]
        return (weights * logits).sum(rows)

    params = network.variables.params, network.head
    named = functools.partial(_tensors, model=network.model, config=config)
    whole = PENALTY_VARIANTS[config.variant].whole_gradients
    return logit_gradients(sum_logits, params, named=named, whole=whole), weights.sum(rows)


@functools.partial(jax.jit, static_argnames="config")
def _finish(records, gradients, count, network, columns, mask, task, *, config):
    count = jnp.maximum(count, 1.0)
    gradients = {
        name: gradient / jnp.expand_dims(count, range(gradient.ndim - 1))
        for name, gradient in gradients.items()
    }
    params = network.variables.params, network.head
    tensors = _tensors(params, model=network.model, config=config)
    return add_record(records, task, gradients, tensors, columns, mask)


def _tensors(params, *, model, config):
    return regularised_tensors(model, *params, with_head=config.regularised_head)


_add = jax.jit(functools.partial(jax.tree.map, jnp.add))
