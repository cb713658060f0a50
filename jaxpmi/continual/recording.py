"""One pass over the images of the task just learnt, for its record; see `gradient_records`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.continual.gradient_records import GradientRecords
from jaxpmi.continual.gradient_records import Tensors
from jaxpmi.continual.gradient_records import add_gradient_noise
from jaxpmi.continual.gradient_records import add_record
from jaxpmi.continual.gradient_records import logit_gradients
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.state import Network
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import forward
from jaxpmi.models.blockwise import named_tensors
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey


def record_task(
    records: GradientRecords,
    network: Network,
    images: LabelledSamples,
    task: int,
    classes: range,
    mean: jax.Array,
    std: jax.Array,
    key: PRNGKey,
    *,
    model: BlockwiseModel,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    noise: float = 0.0,
) -> GradientRecords:
    """Adds the record of a task: gradients of its logits, averaged over its images as they are.

    Args:
      records: of the tasks before.
      network: just trained on the task; run in evaluation mode.
      images: the task's, whose labels are not used.
      task: its row.
      classes: its columns of the head.
      mean: f32[channels], of pixels in [0, 1].
      std: f32[channels].
      key: key[], consumed; of the noise.
      model: the backbone.
      mesh: devices that batches are split over.
      batch_size: a multiple of their number; the last batch is padded with images of weight 0.
      noise: see `add_gradient_noise`.

    Returns:
      The new records.
    """
    room = records.class_mask.shape[1]
    columns = np.zeros(room, np.int32)
    columns[: len(classes)] = classes
    mask = (np.arange(room) < len(classes)).astype(np.float32)
    network, columns, mask, mean, std = replicate((network, columns, mask, mean, std), mesh)
    count, gradients = len(images.labels), None
    for samples, _, weights in padded_batches(images, batch_size):
        batch = shard_batch((samples, weights / np.float32(count)), mesh)
        part = _batch_gradients(network, *batch, columns, mean, std, model=model)
        gradients = part if gradients is None else _add(gradients, part)
    rest = (columns, mask, jnp.asarray(task, jnp.int32), key)
    return _finish(records, gradients, network.variables.params, *rest, model=model, noise=noise)


@functools.partial(jax.jit, static_argnames="model")
def _batch_gradients(
    network: Network,
    images: jax.Array,
    weights: jax.Array,
    columns: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    *,
    model: BlockwiseModel,
) -> Tensors:
    """The share of a padded batch in the gradients of the mean logits."""
    x = normalise(images, mean, std)

    def sum_logits(params):
        variables = Variables(params, network.variables.batch_stats)
        logits = forward(model, variables, x).features @ network.head[:, columns]
        return jnp.dot(weights, logits, precision=jax.lax.Precision.HIGHEST)

    params = network.variables.params
    return logit_gradients(sum_logits, params, named=functools.partial(named_tensors, model))


@functools.partial(jax.jit, static_argnames=("model", "noise"))
def _finish(records, gradients, params, columns, mask, task, key, *, model, noise):
    gradients = add_gradient_noise(gradients, key, noise)
    return add_record(records, task, gradients, named_tensors(model, params), columns, mask)


_add = jax.jit(functools.partial(jax.tree.map, jnp.add))
