"""What is kept after a task: class Gaussians, feature models, layer knowledge; never an image.

New classes are described by their real images while they are there. Old classes are described
again by their synthetic images through the new network, because features of a network trained
from scratch drift (docs/methods/pmi.md).
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.samples import from_samples
from jaxpmi.continual.samples import padded_batches
from jaxpmi.continual.state import Memory
from jaxpmi.continual.state import merge_moments
from jaxpmi.features import contrastive
from jaxpmi.features import gaussian
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.priors import pixel_histogram
from jaxpmi.inversion.priors import power_spectrum
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_input
from jaxpmi.models.blockwise import forward
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey


class _LayerStats(NamedTuple):
    """Of real images; the fields of `Memory` with these names, moments weighted."""

    block_inputs: tuple[Moments, ...]
    pixels: Moments
    spectrum: jax.Array
    layer_moments: dict[str, Any]
    num_images: jax.Array


def update_memory(
    memory: Memory,
    model: BlockwiseModel,
    variables: Variables,
    real: LabelledSamples,
    replay: LabelledSamples,
    mean: jax.Array,
    std: jax.Array,
    key: PRNGKey,
    *,
    config: Config,
    capacity: int,
    max_images: int,
    layer_variables: Variables | None = None,
) -> Memory:
    """Describes the classes seen so far for the new network.

    Args:
      memory: what was kept so far.
      model: the backbone, just trained, in evaluation mode.
      variables: its parameters and running statistics.
      real: the real images of the new classes; their moments are merged into the layer knowledge.
      replay: the synthetic samples of the old classes; empty in the first task.
      mean: f32[C], of pixels in [0, 1].
      std: f32[C].
      key: key[], consumed.
      config: of the run.
      capacity: most images any class can have; static shape of the feature models' data.
      max_images: most samples any task can have, synthetic ones included; static shape.
      layer_variables: those of the network whose layer inputs are measured; None: `variables`.

    Returns:
      The new memory.
    """
    num_classes = memory.class_stats.count.shape[0]
    features, labels, histogram = [], [], memory.histogram
    stats = _LayerStats(*(getattr(memory, name) for name in _LayerStats._fields))
    keep_layers = bool(memory.layer_moments)
    batch_size = config.inversion.batch_size
    for part, is_real in ((real, True), (replay, False)):
        for samples, part_labels, weights in padded_batches(part, batch_size):
            valid = np.count_nonzero(weights)
            if keep_layers:  # blocks count what is padding as well
                samples, weights = samples[:valid], weights[:valid]
            measure = functools.partial(
                _measure, samples=samples, weights=weights, mean=mean, std=std, model=model,
                first_block=part.first_block, keep_layers=keep_layers,
            )  # fmt: skip
            batch_features, measured = measure(variables)
            features.append(np.asarray(batch_features)[:valid])
            labels.append(part_labels[:valid])
            if is_real:
                if layer_variables is not None:
                    _, measured = measure(layer_variables)
                stats = _merge(stats, measured)
                histogram = histogram + pixel_histogram(samples[:valid])
    features, labels = np.concatenate(features), np.concatenate(labels)
    class_stats, feature_models = _describe_classes(
        features, labels, key, config=config, capacity=capacity, max_images=max_images,
        num_classes=num_classes,
    )  # fmt: skip
    inverses = memory.inverses
    if config.inversion.per_layer.start == "inverse":
        share = 1.0 / np.maximum(np.bincount(labels, minlength=num_classes), 1.0)
        share = share * len(labels) / share[labels].sum()  # every class counts the same
        inverses = fit_block_inverses(
            model,
            variables,
            _weighted_batches((real, replay), share, mean, std, model, variables, config.inversion),
            num_classes=num_classes,
            rank=config.inversion.per_layer.inverse_rank,
            first_block=config.inversion.first_block,
        )
    if feature_models is None:
        feature_models = memory.feature_models
    return Memory(
        class_stats, feature_models, histogram=histogram, inverses=inverses, **stats._asdict()
    )


def _describe_classes(features, labels, key, *, config, capacity, max_images, num_classes):
    """Class Gaussians, and feature models if CFS is used (else None)."""
    padding = max_images - len(labels)
    features = jnp.asarray(np.pad(features, ((0, padding), (0, 0))))
    labels = jnp.asarray(np.pad(labels, (0, padding), constant_values=-1))
    full = config.inversion.covariance == "full"
    class_stats = _fit_class_stats(features, labels, num_classes, full=full)
    if config.inversion.targets != "cfs":
        return class_stats, None
    settings = config.contrastive
    key_init, key_fit = jax.random.split(key)
    grouped, mask = contrastive.group_by_class(features, labels, num_classes, capacity)
    start = contrastive.init(
        key_init, num_classes, features.shape[1], num_blocks=settings.num_blocks
    )
    models, _ = contrastive.fit(
        start,
        grouped,
        mask,
        key_fit,
        learning_rate=settings.learning_rate,
        num_epochs=settings.num_epochs,
        batch_size=settings.batch_size,
        temperature=settings.temperature,
    )
    return class_stats, models


def _weighted_batches(parts, share, mean, std, model, variables, config):
    """Inputs of the first inverted block, labels and weights `share[label]`, padded."""
    for part in parts:
        blocks = {"block": config.first_block, "first_block": part.first_block}
        for samples, labels, weights in padded_batches(part, config.batch_size):
            weights = weights * share[labels].astype(np.float32)
            x = from_samples(jnp.asarray(samples), mean, std, first_block=part.first_block)
            yield _block_input(model, variables, x, **blocks), jnp.asarray(labels), weights


_block_input = jax.jit(block_input, static_argnames=("model", "block", "first_block"))
_fit_class_stats = jax.jit(gaussian.fit_class_stats, static_argnames=("num_classes", "full"))


@functools.partial(jax.jit, static_argnames=("model", "first_block", "keep_layers"))
def _measure(variables, samples, weights, mean, std, *, model, first_block, keep_layers):
    """Features f32[B, D] of a padded batch, and its `_LayerStats` if it is one of images."""
    x = from_samples(samples, mean, std, first_block=first_block)
    seen = forward(model, variables, x, weights=weights, first_block=first_block)
    if first_block > 0:
        return seen.features, None
    count = weights.sum()
    pixel_share = (weights / count)[:, None, None, None]
    pixel_mean = (pixel_share * x).sum(0)
    pixels = Moments(pixel_mean, (pixel_share * jnp.square(x - pixel_mean[None])).sum(0))
    spectrum = (pixel_share * power_spectrum(x)).sum(0)
    layers = seen.moments if keep_layers else {}
    return seen.features, _LayerStats(seen.block_inputs, pixels, spectrum, layers, count)


@jax.jit
def _merge(a, b):
    """Statistics of the union of the images behind `a` and `b`."""
    num_images = a.num_images + b.num_images

    def merge(old, new):
        if isinstance(old, Moments):
            return merge_moments(old, a.num_images, new, b.num_images)
        return old + (b.num_images / num_images) * (new - old)

    merged = jax.tree.map(merge, a, b, is_leaf=lambda node: isinstance(node, Moments))
    return merged._replace(num_images=num_images)
