"""What is kept of data once the data is gone: one pytree, of which no field is per image."""

import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import CfsConfig
from jaxpmi.features import cfs
from jaxpmi.features.cfs import CfsModel
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.features.layouts import Layouts
from jaxpmi.features.layouts import layout_shape
from jaxpmi.features.layouts import sample_layouts
from jaxpmi.features.layouts import with_layouts
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey


class BlockInverse(NamedTuple):
    """Linear map from a block's output to its input, and what the map leaves unexplained.

    A feature map f32[B, h, w, C'] is read in 3 x 3 patches (P = 9 C' + 1, the last entry a one)
    and gives s x s input pixels per output pixel (Q = s s C). Tokens f32[B, N, D] give their own
    inputs, with an offset per position (P = D + N, Q = D); a class token that the block adds is
    dropped. A feature vector f32[B, D] gives the whole input (Q = H W C or N D), with an offset
    per class (P = D + C). The inverse of a stack has a leading axis L.

    Attributes:
      weight: f32[P, Q].
      residual_factor: f32[R, Q]; residual covariance = factor^T factor + diag(std^2).
      residual_std: f32[Q].
    """

    weight: jax.Array
    residual_factor: jax.Array
    residual_std: jax.Array


class Memory(NamedTuple):
    """What inversion may know of the data that a network was trained on.

    Attributes:
      class_stats: a Gaussian of every class's features.
      feature_models: the networks of CFS, one per class; of no class where CFS is not used.
      block_inputs: moments of every block's input, f32[C] each; of a stack [L, C].
      histogram: f32[256, K], how many pixels had each value of every mixture of channels
        (`inversion.colour.mixtures`; grey has K = 1).
      spectrum: f32[H, W//2+1, K], mean power spectrum of these, of the normalised images.
      layer_moments: of layer inputs, in the structure of `Network.variables.batch_stats`; {} where
        the network keeps its own, as BatchNorms do.
      num_images: f32[], images behind the four fields before.
      layouts: a Gaussian of every class's images at few pixels, of real images alone; None where
        they are not used.
      inverses: linear inverses of the blocks; () where they are not used.
    """

    class_stats: ClassStats
    feature_models: CfsModel
    block_inputs: tuple[Moments, ...]
    histogram: jax.Array
    spectrum: jax.Array
    layer_moments: dict[str, Any]
    num_images: jax.Array
    layouts: Layouts | None
    inverses: tuple[BlockInverse, ...]


def merge_moments(a: Moments, num_a: jax.Array, b: Moments, num_b: jax.Array) -> Moments:
    """Moments of the union of two sets of images of sizes num_a and num_b (f32[])."""
    share = num_b / jnp.maximum(num_a + num_b, 1.0)
    gap = b.mean - a.mean
    spread = share * (1.0 - share) * jnp.square(gap)
    return Moments(a.mean + share * gap, a.var + share * (b.var - a.var) + spread)


def draw_features(
    memory: Memory,
    labels: jax.Array,
    key: PRNGKey,
    *,
    targets: str = "gaussian",
    settings: CfsConfig | None = None,
) -> jax.Array:
    """Draws a feature f32[B, D] per label, as the class's real ones are distributed.

    Args:
      memory: whose classes they are of.
      labels: i32[B], of classes that the memory has seen; known, not traced, for "cfs".
      key: key[], consumed.
      targets: "cfs": by the feature models, if the memory has any; else from the Gaussians alone.
      settings: of CFS; None: the defaults.

    Raises:
      ValueError: a class of which the memory has seen nothing, where labels and memory are known,
        not traced.
    """
    if not any(isinstance(x, jax.core.Tracer) for x in (labels, memory.class_stats.count)):
        _check_seen(memory, labels)
    if targets != "cfs" or memory.feature_models.running.mean.shape[0] == 0:
        return sample_class_features(memory.class_stats, labels, key)
    counts = np.bincount(labels, minlength=memory.class_stats.count.shape[0])
    drawn = sample_by_cfs(memory, key, num_per_class=int(counts.max()), settings=settings)
    # The n-th image of a class gets its n-th feature.
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), np.int32)
    place[order] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[np.asarray(labels)[order]]
    return drawn[jnp.asarray(labels), place]


def sample_by_cfs(
    memory: Memory, key: PRNGKey, *, num_per_class: int, settings: CfsConfig | None = None
) -> jax.Array:
    """Features f32[C, num_per_class, D] of all classes, see `cfs.sample_features`."""
    settings = CfsConfig() if settings is None else settings
    return cfs.sample_features(
        memory.feature_models,
        memory.class_stats,
        key,
        num_per_class=num_per_class,
        num_rounds=settings.num_rounds,
        keep_rate=settings.keep_rate,
        oversampling=settings.oversampling,
    )


def has_layouts(memory: Memory, image_shape: tuple[int, int, int]) -> bool:
    """Whether a memory has layouts of such images (H, W, C)."""
    layouts = memory.layouts
    return layouts is not None and layouts.mean.shape[1] == math.prod(layout_shape(image_shape))


@jax.jit
def give_layouts(images: jax.Array, layouts: Layouts, labels: jax.Array, key: PRNGKey) -> jax.Array:
    """Images f32[B, H, W, C] with layouts drawn of their classes (docs/methods/pmi.md, eq. 6c).

    Those of a class without layouts stay as they are.
    """
    drawn = with_layouts(images, sample_layouts(layouts, labels, key))
    return jnp.where((layouts.count[labels] > 0)[:, None, None, None], drawn, images)


set_layouts = jax.jit(with_layouts)


def _check_seen(memory, labels):
    seen = np.asarray(memory.class_stats.count) > 0
    unseen = np.setdiff1d(np.asarray(labels), np.flatnonzero(seen))
    if unseen.size:
        raise ValueError(
            f"the memory has seen no image of class {unseen[0]}; ask for classes that were "
            "remembered, or give features."
        )
