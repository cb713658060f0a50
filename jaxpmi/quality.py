"""How good synthetic images are: how much they differ, and what a classifier learns from them.

No network takes part in `measure_quality`, so that none is pleased by its own images
(docs/concepts.md).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.network import Network
from jaxpmi.network import raw_features

MAX_PER_CLASS = 100  # images of a class that are compared
BATCH_SIZE = 200
MAX_IMAGES = 2000  # that a classifier is trained on or tested with
SIDE = 32  # pixels, at most, of the images' longer side as that classifier sees them
NUM_FILTERS, FILTER_SIZE, GRID = 192, 5, 3  # its random filters, and the places they are pooled to
RIDGE = 1.0  # of its regression, over the trace of the regressors' covariance


class Quality(NamedTuple):
    """What `measure_quality` finds.

    Attributes:
      trained_on_synthetic: share of real test images of these classes that a classifier names
        rightly that was trained on the synthetic ones alone.
      spread: mean Euclidean distance of two images of a class, over that of real ones; 1 is ideal.
    """

    trained_on_synthetic: float
    spread: float


def mean_pairwise_distance(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance of two features of one class, averaged over the classes.

    docs/distillation_and_pruning.md, eq. 2.

    Args:
      features: f32[N, D].
      labels: i32[N]; classes of which there is one feature alone do not count.

    >>> mean_pairwise_distance(np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]]), np.array([0, 0, 1]))
    5.0
    """
    means = []
    for label in np.unique(labels):
        own = np.asarray(features, np.float64)[labels == label]
        if len(own) > 1:
            squares = np.square(own).sum(1)
            square = squares[:, None] + squares[None] - 2.0 * own @ own.T
            distances = np.sqrt(np.maximum(square, 0.0))
            means.append(distances[np.triu_indices(len(own), 1)].mean())
    return float(np.mean(means)) if means else float("nan")


def measure_diversity(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
) -> float:
    """`mean_pairwise_distance` of a network's features of images u8[N, H, W, C], labels i32[N].

    Of every class `MAX_PER_CLASS` images at most, evenly spread over those given.
    """
    rows = _some_of_each(labels)
    features = _in_batches(functools.partial(raw_features, network), images[rows])
    return mean_pairwise_distance(features, labels[rows])


def measure_quality(
    images: np.ndarray, labels: np.ndarray, real_images: np.ndarray, real_labels: np.ndarray
) -> Quality:
    """How good synthetic images are, by real test images of the same classes.

    The classifier, "trained on synthetic, tested on real" (Ravuri and Vinyals, NeurIPS 2019,
    classification accuracy score), has a closed form and nothing to tune: ridge regression of the
    classes on rectified random convolutions, pooled to 3 x 3 places. Trained on 960 real digits
    that the project brings it knows 95 % of the others.

    Args:
      images: u8[N, H, W, C], synthetic.
      labels: i32[N].
      real_images: u8[M, H, W, C]; those of other classes are not looked at.
      real_labels: i32[M].

    Raises:
      ValueError: no real image of any of the classes.
    """
    same = np.isin(real_labels, np.unique(labels))
    if not same.any():
        raise ValueError("there is no real image of any of the labels; give some of each class.")
    real_images, real_labels = real_images[same], real_labels[same]
    distances = [
        mean_pairwise_distance(x[rows].reshape(len(rows), -1), y[rows])
        for x, y, rows in (
            (images, labels, _some_of_each(labels)),
            (real_images, real_labels, _some_of_each(real_labels)),
        )
    ]
    accuracy = classifier_accuracy(images, labels, real_images, real_labels)
    return Quality(accuracy, distances[0] / distances[1])


def classifier_accuracy(
    images: np.ndarray, labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray
) -> float:
    """Share of test images u8[M, H, W, C] that `measure_quality`'s classifier names rightly.

    It is trained on images u8[N, H, W, C] with labels i32[N], real or synthetic.
    """
    train, test = (_evenly_spaced(len(y), MAX_IMAGES) for y in (labels, test_labels))
    x, z = _in_batches(_convolve, images[train]), _in_batches(_convolve, test_images[test])
    mean, std = x.mean(0), x.std(0) + 1e-3
    x, z = (x - mean) / std, (z - mean) / std
    classes, wanted = np.unique(labels[train], return_inverse=True)
    centred = np.eye(len(classes))[wanted] - 1.0 / len(classes)
    gram = x.T @ x
    ridge = RIDGE * np.trace(gram) / len(x) * np.eye(len(gram))
    scores = z @ np.linalg.solve(gram + ridge, x.T @ centred)
    return float((classes[scores.argmax(1)] == test_labels[test]).mean())


def _some_of_each(labels):
    """Indices of `MAX_PER_CLASS` images of every class at most, evenly spread over them."""
    rows = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rows.append(members[_evenly_spaced(len(members), MAX_PER_CLASS)])
    return np.concatenate(rows)


def _evenly_spaced(count, most):
    """Indices of `count` things, `most` of them at most, from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _in_batches(function, images):
    """A function's rows f32[N, ...] of images u8[N, H, W, C], in batches of one shape."""
    rows = np.resize(np.arange(len(images)), math.ceil(len(images) / BATCH_SIZE) * BATCH_SIZE)
    parts = [function(jnp.asarray(images[some])) for some in rows.reshape(-1, BATCH_SIZE)]
    return np.concatenate(jax.device_get(parts))[: len(images)]


@jax.jit
def _convolve(images):
    """Rectified random convolutions of images u8[B, H, W, C], pooled, f32[B, P]."""
    height, width, channels = images.shape[1:]
    scale = min(1.0, SIDE / max(height, width))
    shape = (len(images), math.ceil(scale * height), math.ceil(scale * width), channels)
    x = jax.image.resize(images.astype(jnp.float32) / 255.0, shape, "linear")
    key_filters, key_offsets = jax.random.split(jax.random.key(0))
    size = (FILTER_SIZE, FILTER_SIZE, channels, NUM_FILTERS)
    filters = jax.random.normal(key_filters, size)
    filters = filters - filters.mean((0, 1), keepdims=True)  # blind to how bright a place is
    filters = filters / jnp.sqrt(jnp.square(filters).sum((0, 1, 2), keepdims=True))
    offsets = jax.random.uniform(key_offsets, (1, 1, 1, NUM_FILTERS), minval=-0.5, maxval=0.5)
    layout = ("NHWC", "HWIO", "NHWC")
    seen = jax.lax.conv_general_dilated(x, filters, (2, 2), "SAME", dimension_numbers=layout)
    pooled = (len(images), GRID, GRID, NUM_FILTERS)
    return jax.image.resize(jax.nn.relu(seen - offsets), pooled, "linear").reshape(len(x), -1)
