"""What is kept of data: class Gaussians, feature models, moments, block inverses; never an image.

`remember` describes data for a network, once. In the continual loop `update_memory` does it after
every task: new classes are described by their real images while they are there, old ones again by
their synthetic images through the new network, because features of a network that goes on learning
drift (docs/methods/pmi.md).
"""

import functools
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import block_input
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import CfsConfig
from jaxpmi.config import InversionConfig
from jaxpmi.doors import check_images
from jaxpmi.doors import check_key
from jaxpmi.doors import check_labels
from jaxpmi.features import cfs
from jaxpmi.features import gaussian
from jaxpmi.features.gaussian import init_class_stats
from jaxpmi.features.layouts import add_layouts
from jaxpmi.features.layouts import init_layouts
from jaxpmi.features.layouts import layouts_of
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.block_inverse import init_block_inverses
from jaxpmi.inversion.colour import mixtures
from jaxpmi.inversion.per_layer import standard_block_inputs
from jaxpmi.inversion.priors import pixel_histogram
from jaxpmi.inversion.priors import power_spectrum
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.inversion.variants import uses_layouts
from jaxpmi.memory import Memory
from jaxpmi.memory import merge_moments
from jaxpmi.network import Network
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey

# Samples [B, ...], labels i32[B], weights f32[B]: 0 for what fills up a batch, else 1.
PaddedBatch = tuple[np.ndarray, np.ndarray, np.ndarray]


class Samples(NamedTuple):
    """A set of labelled samples that is read twice, in batches of one shape.

    Attributes:
      read: begins anew at each call.
      count: how many samples there are.
      is_real: real images, whose moments are merged into what is known of layers.
      first_block: whose inputs the samples are; 0: images u8[B, H, W, channels].
    """

    read: Callable[[], Iterable[PaddedBatch]]
    count: int
    is_real: bool = True
    first_block: int = 0


class _LayerStats(NamedTuple):
    """Of real images; the fields of `Memory` with these names, moments weighted."""

    block_inputs: tuple[Moments, ...]
    spectrum: jax.Array
    layer_moments: dict[str, Any]
    num_images: jax.Array


def remember(
    network: Network,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    key: PRNGKey | None = None,
    *,
    config: InversionConfig | None = None,
    settings: CfsConfig | None = None,
) -> Memory:
    """Describes data for a network, so that it can be inverted when the data is gone.

    Args:
      network: trained, run in evaluation mode.
      batches: images u8[B, H, W, channels] as they are stored, and labels i32[B]. They are read
        twice: a list, or anything that begins anew whenever it is iterated over.
      key: key[], of the feature models; None: key 0.
      config: what inversion will need: the kind of Gaussians, of targets, block inverses. None: the
        defaults.
      settings: of CFS, for `config.targets` "cfs"; None: the defaults.

    Returns:
      A memory of the classes that occur.

    Raises:
      ValueError: no image at all, an iterator that can be read only once, or images or labels that
        do not fit the network.
    """
    if iter(batches) is batches:
        raise ValueError(
            "batches can be read only once, but remember reads them twice; give a list, or an "
            "object whose __iter__ begins anew."
        )
    config = InversionConfig() if config is None else config
    key = jax.random.key(0) if key is None else key
    check_key(key)
    labels = [np.asarray(labels) for _, labels in batches]
    if not labels:
        raise ValueError("remember got no batch of images; give at least one.")
    size = max(len(part) for part in labels)
    counts = np.bincount(np.concatenate(labels), minlength=network.num_classes)

    def read():
        for images, labels in batches:
            check_images(network, images)
            check_labels(network, labels)
            if len(images) != len(labels):
                raise ValueError(
                    f"a batch has {len(images)} images and {len(labels)} labels; give one each."
                )
            padding = size - len(labels)
            images = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
            weights = np.pad(np.ones(len(labels), np.float32), (0, padding))
            yield images, np.pad(np.asarray(labels, np.int32), (0, padding)), weights

    measured = any(getattr(block, "unmeasured", ()) for block in network.model.blocks)
    own = network.variables.batch_stats
    memory = update_memory(
        empty_memory(network, config, settings, layer_moments=own if measured else None),
        network,
        [Samples(read, int(counts.sum()))],
        key,
        config=config,
        settings=settings,
        capacity=int(counts.max()),
        max_images=int(counts.sum()),
    )
    return memory._replace(layer_moments=_keep_own(network, memory.layer_moments))


def _keep_own(network, measured):
    """Moments of layers, the network's own where it keeps any."""
    if not measured:
        return measured
    kept = dict(network.variables.batch_stats)
    for i, block in enumerate(network.model.blocks):
        name, missing = block_name(i), getattr(block, "unmeasured", ())
        if missing:
            kept[name] = {**kept[name], **{key: measured[name][key] for key in missing}}
    return kept


def empty_memory(
    network: Network,
    config: InversionConfig,
    settings: CfsConfig | None = None,
    *,
    layer_moments: dict[str, Any] | None = None,
) -> Memory:
    """Memory of no data; only what `config` and `settings` will use takes space.

    `layer_moments` are given where the network keeps no running ones.
    """
    dim, num_classes = network.feature_dim, network.num_classes
    variant = inversion_variant(config)
    settings = CfsConfig() if settings is None else settings
    height, width, channels = network.image_shape
    num_mixtures = mixtures(channels).shape[1]
    inverses, layouts = (), None
    if uses_layouts(config, variant):
        layouts = init_layouts(num_classes, network.image_shape)
    if config.per_layer.is_linear:
        inverses = init_block_inverses(
            network, rank=variant.inverse_rank, first_block=variant.first_block
        )
    empty_models = jax.eval_shape(
        functools.partial(
            cfs.init,
            num_classes=num_classes if config.targets == "cfs" else 0,
            feature_dim=dim,
        ),
        jax.random.key(0),
    )
    return Memory(
        class_stats=init_class_stats(num_classes, dim, full=variant.covariance == "full"),
        feature_models=jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty_models),
        block_inputs=standard_block_inputs(network),
        histogram=jnp.zeros((256, num_mixtures)),
        spectrum=jnp.zeros((height, width // 2 + 1, num_mixtures)),
        layer_moments=layer_moments or {},
        num_images=jnp.zeros(()),
        layouts=layouts,
        inverses=inverses,
    )


def update_memory(
    memory: Memory,
    network: Network,
    samples: Iterable[Samples],
    key: PRNGKey,
    *,
    config: InversionConfig,
    settings: CfsConfig | None = None,
    capacity: int,
    max_images: int,
    layer_network: Network | None = None,
) -> Memory:
    """Describes the classes seen so far for the new network.

    Args:
      memory: what was kept so far.
      network: just trained, run in evaluation mode.
      samples: real images of the new classes, synthetic ones of the old.
      key: key[], consumed.
      config: of inversion.
      settings: of CFS; None: the defaults.
      capacity: most images any class can have; static shape of the feature models' data.
      max_images: most samples any task can have, synthetic ones included; static shape.
      layer_network: the one whose layer inputs are measured; None: `network`.

    Returns:
      The new memory.
    """
    samples = tuple(samples)
    features, labels, histogram, seen = [], [], memory.histogram, []
    stats = _LayerStats(*(getattr(memory, name) for name in _LayerStats._fields))
    keep_layers = bool(memory.layer_moments)
    for part in samples:
        for batch, part_labels, weights in part.read():
            valid = np.count_nonzero(weights)
            if keep_layers:  # blocks count what is padding as well
                batch, weights = batch[:valid], weights[:valid]
            measure = functools.partial(
                _measure, samples=batch, weights=weights, first_block=part.first_block,
                keep_layers=keep_layers,
            )  # fmt: skip
            batch_features, measured = measure(network)
            features.append(np.asarray(batch_features)[:valid])
            labels.append(part_labels[:valid])
            if part.is_real:
                if layer_network is not None:
                    _, measured = measure(layer_network)
                stats = _merge(stats, measured)
                histogram = histogram + pixel_histogram(batch[:valid])
                if memory.layouts is not None:
                    small = np.asarray(raw_layouts(network, batch))
                    seen.append((small[:valid], part_labels[:valid]))
    features, labels = np.concatenate(features), np.concatenate(labels)
    num_classes = memory.class_stats.count.shape[0]
    class_stats, feature_models = _describe_classes(
        features, labels, key, config=config, settings=settings, capacity=capacity,
        max_images=max_images, num_classes=num_classes,
    )  # fmt: skip
    inverses = memory.inverses
    if config.per_layer.is_linear:
        share = 1.0 / np.maximum(np.bincount(labels, minlength=num_classes), 1.0)
        share = share * len(labels) / share[labels].sum()  # every class counts the same
        inverses = fit_block_inverses(
            network,
            _weighted_batches(network, samples, share, config),
            rank=inversion_variant(config).inverse_rank,
            first_block=inversion_variant(config).first_block,
        )
    if feature_models is None:
        feature_models = memory.feature_models
    return Memory(
        class_stats, feature_models, histogram=histogram, inverses=inverses,
        layouts=_with_seen(memory.layouts, seen, max_images), **stats._asdict(),
    )  # fmt: skip


def _with_seen(layouts, seen, max_images):
    """Layouts, of what was known and of those of real images, padded to one static number."""
    if not seen:
        return layouts
    vectors, labels = map(np.concatenate, zip(*seen, strict=True))
    weights = np.arange(max_images) < len(labels)
    padding = max_images - len(labels)
    vectors, labels = np.pad(vectors, ((0, padding), (0, 0))), np.pad(labels, (0, padding))
    return _add_layouts(layouts, vectors, labels, weights.astype(np.float32))


def _describe_classes(
    features, labels, key, *, config, settings, capacity, max_images, num_classes
):
    """Class Gaussians, and feature models if CFS is used (else None)."""
    padding = max_images - len(labels)
    features = jnp.asarray(np.pad(features, ((0, padding), (0, 0))))
    labels = jnp.asarray(np.pad(labels, (0, padding), constant_values=-1))
    full = inversion_variant(config).covariance == "full"
    class_stats = _fit_class_stats(features, labels, num_classes, full=full)
    if config.targets != "cfs":
        return class_stats, None
    settings = CfsConfig() if settings is None else settings
    key_init, key_fit = jax.random.split(key)
    grouped, mask = cfs.group_by_class(features, labels, num_classes, capacity)
    start = cfs.init(key_init, num_classes, features.shape[1])
    models, _ = cfs.fit(
        start,
        grouped,
        mask,
        key_fit,
        learning_rate=settings.learning_rate,
        num_epochs=settings.num_epochs,
    )
    return class_stats, models


def _weighted_batches(network, samples, share, config):
    """Inputs of the first inverted block, labels and weights `share[label]`, padded."""
    first_block = inversion_variant(config).first_block
    for part in samples:
        blocks = {"block": first_block, "first_block": part.first_block}
        for batch, labels, weights in part.read():
            weights = weights * share[labels].astype(np.float32)
            x = _as_inputs(network, jnp.asarray(batch), part.first_block)
            x = _block_input(network.model, network.variables, x, **blocks)
            yield x, jnp.asarray(labels), weights


_block_input = jax.jit(block_input, static_argnames=("model", "block", "first_block"))
_add_layouts = jax.jit(add_layouts)
_fit_class_stats = jax.jit(gaussian.fit_class_stats, static_argnames=("num_classes", "full"))


def _as_inputs(network, samples, first_block):
    """Inputs f32[B, ...] of the block that samples are of: images are normalised."""
    return normalise(samples, network.mean, network.std) if first_block == 0 else samples


@jax.jit
def raw_layouts(network: Network, images: jax.Array) -> jax.Array:
    """Layouts f32[B, P] of images u8[B, H, W, channels] as they are stored, not checked."""
    return layouts_of(normalise(images, network.mean, network.std))


@functools.partial(jax.jit, static_argnames=("first_block", "keep_layers"))
def _measure(network, samples, weights, *, first_block, keep_layers):
    """Features f32[B, D] of a padded batch, and its `_LayerStats` if it is one of images."""
    x = _as_inputs(network, samples, first_block)
    seen = forward(network.model, network.variables, x, weights=weights, first_block=first_block)
    if first_block > 0:
        return seen.features, None
    count = weights.sum()
    spectrum = ((weights / count)[:, None, None, None] * power_spectrum(x)).sum(0)
    layers = seen.moments if keep_layers else {}
    return seen.features, _LayerStats(seen.block_inputs, spectrum, layers, count)


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
