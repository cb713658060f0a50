"""How much images of one class differ, as a network sees them: the measure of mode collapse."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.network import Network
from jaxpmi.network import raw_features

MAX_PER_CLASS = 100  # images of a class that are compared
BATCH_SIZE = 200


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
    rows = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places = np.linspace(0, len(members) - 1, min(len(members), MAX_PER_CLASS)).round()
        rows.append(members[places.astype(int)])
    rows = np.concatenate(rows)
    padded = np.resize(rows, -(-len(rows) // BATCH_SIZE) * BATCH_SIZE)
    features = [
        raw_features(network, jnp.asarray(images[some])) for some in padded.reshape(-1, BATCH_SIZE)
    ]
    features = np.concatenate(jax.device_get(features))[: len(rows)]
    return mean_pairwise_distance(features, labels[rows])
