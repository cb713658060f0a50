"""Random views of a task's images that can be drawn again: an image's row decides its view."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxpmi.augment import augment
from jaxpmi.augment import denormalise
from jaxpmi.augment import normalise
from jaxpmi.config import AugmentConfig
from jaxpmi.continual.run import Run
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.task import training_data
from jaxpmi.network import Network
from jaxpmi.network import raw_features
from jaxpmi.sharding import shard_batch
from jaxpmi.types import PRNGKey


class RandomViews(NamedTuple):
    """One random view of every image of a task, each drawn when it is read.

    Attributes:
      images: the task's.
      key: key[]; with the row of an image it decides the view.
      config: of the views.
      network: for whose pixel moments they are made.
      batch_size: of reading, a multiple of the number of devices.
      mesh: devices that batches are split over.
    """

    images: LabelledSamples
    key: PRNGKey
    config: AugmentConfig
    network: Network
    batch_size: int
    mesh: jax.sharding.Mesh

    def read(self, rows: np.ndarray) -> Iterator[tuple[jax.Array, int]]:
        """Views u8[B, H, W, channels] of these rows in order, in batches of one shape.

        With each comes how many of its images are asked for; the rest repeats the first.
        """
        for start in range(0, len(rows), self.batch_size):
            part = np.asarray(rows[start : start + self.batch_size], np.int32)
            padded = np.concatenate([part, np.full(self.batch_size - len(part), part[0])])
            batch = shard_batch((self.images.read(padded), padded.astype(np.int32)), self.mesh)
            yield draw_views(self.network, *batch, self.key, config=self.config), len(part)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The same as one array u8[len(rows), H, W, channels] on the host."""
        return np.concatenate([np.asarray(views)[:count] for views, count in self.read(rows)])

    def features(self) -> np.ndarray:
        """Features f32[N, D] of all views, in evaluation mode."""
        batches = self.read(np.arange(len(self.images.labels)))
        return np.concatenate([np.asarray(raw_features(self.network, v))[:n] for v, n in batches])


@functools.partial(jax.jit, static_argnames="config")
def draw_views(
    network: Network, images: jax.Array, rows: jax.Array, key: PRNGKey, *, config: AugmentConfig
) -> jax.Array:
    """Views u8[B, H, W, channels] of images u8[B, H, W, channels], by row i32[B] and key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    black, _ = network.pixel_range
    views = augment(normalise(images, network.mean, network.std), keys, config, black)
    return denormalise(views, network.mean, network.std)


def task_views(run: Run, state: ContinualState, key: PRNGKey) -> RandomViews:
    """Random views of the task's images, as the old network sees them."""
    images, augmentation = training_data(run, int(state.task)), run.config.data.augment
    size = run.config.train.replay_batch_size
    return RandomViews(images, key, augmentation, state.teacher, size, run.mesh)


def nearest_rows(features: np.ndarray, mean: np.ndarray, most: int) -> np.ndarray:
    """Rows of the features f32[N, D] nearest to a mean f32[D], the nearest first, `most` of them.

    All N where there are no more.
    """
    distances = np.square(features - np.asarray(mean)[None]).sum(1)
    return np.argsort(distances, kind="stable")[:most]
