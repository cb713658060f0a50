"""A bootstrapped memory: pictures that a network has given are the data that later ones start from.

PMI's linear block inverses need data, and from labels alone there is none, until the first pictures
have been made (`deep_inversion`, from noise). `remember_pictures` fits the inverses to random views
of them. `start_from_pictures` begins new ones: a feature is drawn for every label and decoded block
by block, and blended with a view of an earlier picture of the class, which brings the detail that
linear maps lose. Refinement needs fewer steps from there (docs/pictures.md).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.doors import check_images
from jaxpmi.doors import check_key
from jaxpmi.doors import check_labels
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.per_layer import standard_block_inputs
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.inversion.views import random_view
from jaxpmi.memory import BlockInverse
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.types import PRNGKey

NUM_VIEWS = 240  # that a memory is fitted to, about; 24 of every class where there are ten
BATCH_SIZE = 30  # of them at a time
# Of what is decoded; the rest is of the view. Chosen on ten classes of ImageNet that no reported
# figure is of.
DECODED_SHARE = 0.3
_MARGIN = 1e-3  # from black and white, which have no finite logits
_LINEAR = PerLayerConfig(start="inverse", num_steps=0)


class PictureMemory(NamedTuple):
    """What is known of a network's pictures.

    Attributes:
      classes: i32[K], the labels of which there are pictures, ascending.
      features: f32[V, D] of views of these.
      places: i32[V], the class of each, as a place among `classes`.
      inverses: of all blocks, whose class offsets are those of `classes`.
    """

    classes: jax.Array
    features: jax.Array
    places: jax.Array
    inverses: tuple[BlockInverse, ...]


def remember_pictures(
    network: Network,
    pictures: jax.Array | np.ndarray,
    picture_labels: jax.Array | np.ndarray,
    key: PRNGKey,
    *,
    config: DeepInversionConfig | None = None,
) -> PictureMemory:
    """Fits the inverse of every block to random views of pictures, as many of every class.

    Args:
      network: that they were made from, in evaluation mode.
      pictures: u8[N, H, W, channels] as they are stored.
      picture_labels: i32[N].
      key: key[], consumed.
      config: by which they were made: a view is one that its loss may see, so no class is changed
        by it; None: the defaults.

    Raises:
      ValueError: images or labels that do not fit the network or each other.
    """
    _check_pictures(network, pictures, picture_labels)
    check_key(key)
    classes, places = np.unique(np.asarray(picture_labels), return_inverse=True)
    num_batches = -(-max(NUM_VIEWS, 2 * len(classes)) // BATCH_SIZE)
    # A head of the classes at hand: offsets of all 1,000 of ImageNet would be fitted to nothing.
    own = network.replace(
        head=Head(network.head.kernel[:, classes], None),
        class_names=tuple(network.class_names[label] for label in classes),
    )
    wanted = np.resize(np.arange(len(classes)), num_batches * BATCH_SIZE)
    views = functools.partial(
        _earlier_views,
        own,
        jnp.asarray(pictures),
        jnp.asarray(places, jnp.int32),
        **_view_settings(config),
    )
    parts, features = wanted.reshape(num_batches, BATCH_SIZE), []

    def batches():
        for i, part in enumerate(jnp.asarray(parts, jnp.int32)):
            x = views(part, jax.random.fold_in(key, i))
            features.append(_features(own, x))
            yield x, part, jnp.ones(BATCH_SIZE)

    inverses = fit_block_inverses(own, batches())
    return PictureMemory(
        jnp.asarray(classes, jnp.int32),
        jnp.concatenate(features),
        jnp.asarray(wanted, jnp.int32),
        inverses,
    )


def start_from_pictures(
    network: Network,
    memory: PictureMemory,
    pictures: jax.Array | np.ndarray,
    picture_labels: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    key: PRNGKey,
    *,
    config: DeepInversionConfig | None = None,
) -> jax.Array:
    """Draws where refinement of new pictures begins, f32[B, H, W, channels] in normalised units.

    Args:
      network: that the pictures were made from, in evaluation mode.
      memory: `remember_pictures` of these pictures, or of earlier ones.
      pictures: u8[N, H, W, channels] as they are stored.
      picture_labels: i32[N]; those below 0 mark rows that are not pictures yet.
      labels: i32[B], of classes that both the memory and the pictures know.
      key: key[], consumed.
      config: as in `remember_pictures`.

    Raises:
      ValueError: a label of which there is no picture; images or labels that do not fit.
    """
    check_images(network, pictures)
    check_labels(network, labels)
    check_key(key)
    known = np.intersect1d(np.asarray(memory.classes), np.asarray(picture_labels))
    unknown = np.setdiff1d(np.asarray(labels), known)
    if unknown.size:
        raise ValueError(
            f"there is no picture of class {unknown[0]} yet; make the first of every class with "
            "deep_inversion."
        )
    key_view, key_features, key_decode = jax.random.split(key, 3)
    labels = jnp.asarray(labels, jnp.int32)
    view = _earlier_views(
        network,
        jnp.asarray(pictures),
        jnp.asarray(picture_labels),
        labels,
        key_view,
        **_view_settings(config),
    )
    decoded = _decode(network, memory, labels, key_features, key_decode)
    return _blend(network, decoded, view)


@jax.jit
def draw_combined_features(
    features: jax.Array, places: jax.Array, wanted: jax.Array, key: PRNGKey
) -> jax.Array:
    """Draws features f32[B, D] from Gaussians whose moments are those of each class's features.

    A class's few features span what the draw can give, so no covariance f32[D, D] is needed: it is
    the class's mean plus a combination, with random weights, of the deviations from it.

    Args:
      features: f32[V, D].
      places: i32[V], their classes.
      wanted: i32[B], classes of which there are two features or more.
      key: key[], consumed.
    """
    members = (wanted[:, None] == places[None]).astype(features.dtype)
    count = members.sum(1, keepdims=True)
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    mean = dot(members / count, features)
    weights = members * jax.random.normal(key, members.shape) / jnp.sqrt(count - 1.0)
    return mean + dot(weights, features) - weights.sum(1, keepdims=True) * mean


def _decode(network, memory, labels, key_features, key):
    """Pictures f32[B, H, W, channels] of features drawn for labels, by linear maps alone."""
    places = jnp.searchsorted(memory.classes, labels)
    drawn = draw_combined_features(memory.features, memory.places, places, key_features)
    targets = Targets(drawn, places, network.head, jnp.ones(network.num_classes, bool))
    images, _ = invert_blocks(
        network,
        targets,
        standard_block_inputs(network),  # not looked at: every start is linear
        key,
        config=_LINEAR,
        inverses=memory.inverses,
    )
    return images


def _view_settings(config):
    """Views that the loss may see as well, but of crops the larger ones: detail is kept."""
    config = DeepInversionConfig() if config is None else config
    crop = DEEP_INVERSION_VARIANTS[config.variant].crop_scale
    return {
        "jitter_pixels": config.jitter_pixels,
        "flip": config.flip,
        "crop_scale": None if crop is None else (0.5 * sum(crop), crop[1]),
    }


@functools.partial(jax.jit, static_argnames=("jitter_pixels", "flip", "crop_scale"))
def _earlier_views(network, pictures, picture_labels, labels, key, **settings):
    """A view f32[B, H, W, channels] of a random picture of every label."""
    key_pick, key_view = jax.random.split(key)
    own = jnp.where(labels[:, None] == picture_labels[None], 0.0, -jnp.inf)
    chosen = pictures[jax.random.categorical(key_pick, own)]

    def view(image, key):
        return random_view(image[None], key, **settings)[0]

    images = normalise(chosen, network.mean, network.std)
    return jax.vmap(view)(images, jax.random.split(key_view, len(labels)))


@jax.jit
def _blend(network, decoded, view):
    """A mean of logits with the contrast of the view, which would grow from batch to batch."""
    low, high = (limit.reshape(1, 1, 1, -1) for limit in network.pixel_range)

    def as_logits(x):
        share = jnp.clip((x - low) / (high - low), _MARGIN, 1.0 - _MARGIN)
        return jax.scipy.special.logit(share)

    mixed = DECODED_SHARE * as_logits(decoded) + (1.0 - DECODED_SHARE) * as_logits(view)
    mean = mixed.mean((1, 2, 3), keepdims=True)
    contrast = [x.std((1, 2, 3), keepdims=True) for x in (as_logits(view), mixed)]
    mixed = mean + (mixed - mean) * contrast[0] / jnp.maximum(contrast[1], _MARGIN)
    return low + (high - low) * jax.nn.sigmoid(mixed)


@jax.jit
def _features(network, x):
    return forward(network.model, network.variables, x).features


def _check_pictures(network, pictures, picture_labels):
    check_images(network, pictures)
    check_labels(network, picture_labels)
    if len(pictures) != len(picture_labels):
        raise ValueError(
            f"there are {len(pictures)} pictures and {len(picture_labels)} labels; give one each."
        )
