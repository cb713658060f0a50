"""A trained network as one value: its blocks, what they learned, its classifier, and its pixels.

`Network` is a pytree, so it may be jitted over, differentiated, donated, sharded and checkpointed
as it is. What is static in it (blocks, image shape, class names) is compared when programs are
looked up: networks of equal blocks share every compiled program.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.augment import pixel_range
from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward
from jaxpmi.doors import check_images
from jaxpmi.doors import feature_shape
from jaxpmi.doors import pixel_moment


class Head(NamedTuple):
    """A linear classifier of features.

    Attributes:
      kernel: f32[D, C].
      bias: f32[C]; None: there is none, and training makes none.
    """

    kernel: jax.Array
    bias: jax.Array | None = None

    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits f32[..., C] of features f32[..., D]."""
        logits = features @ self.kernel
        if self.bias is None:
            return logits
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))


class CosineHead(NamedTuple):
    """A classifier by the cosine between a feature and a vector per class, times a learnt scale.

    Attributes:
      kernel: f32[D, C], of any length.
      scale: f32[].
    """

    kernel: jax.Array
    scale: jax.Array

    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits f32[..., C] of features f32[..., D]."""
        return self.scale * (_unit(features, -1) @ _unit(self.kernel, 0))


def _unit(x, axis):
    """Vectors of length 1; the gradient is 0, not NaN, at 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis, keepdims=True), 1e-24))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier with everything that is needed to use and to invert it.

    Images go in as they are stored, u8[B, H, W, channels]; inside, pixels are normalised by `mean`
    and `std`. The last block's output is the feature f32[B, D] that the head classifies, or
    f32[B, H, W, D] of a network for segmentation.

    Attributes:
      variables: what the blocks have learned, `params` and `batch_stats` by block.
      head: the classifier.
      mean: f32[channels], of pixels in [0, 1], as the network was trained with.
      std: f32[channels], the same, above 0.
      model: the blocks; static.
      image_shape: (H, W, channels) of the images it was trained on; static.
      class_names: C names, in the order of the logits; static.
    """

    variables: Variables
    head: Head | CosineHead
    mean: jax.Array
    std: jax.Array
    model: BlockwiseModel = dataclasses.field(metadata={"static": True})
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    class_names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_classes(self) -> int:
        """C, columns of the head."""
        return self.head.kernel.shape[1]

    @property
    def feature_dim(self) -> int:
        """D, rows of the head."""
        return self.head.kernel.shape[0]

    @property
    def pixel_range(self) -> tuple[jax.Array, jax.Array]:
        """Black and white, f32[channels] each, in normalised units."""
        return pixel_range(self.mean, self.std)

    def replace(self, **changes: Any) -> "Network":
        """A network with some fields changed."""
        return dataclasses.replace(self, **changes)


def from_blocks(
    model: BlockwiseModel,
    variables: Variables,
    head: Head | jax.Array,
    *,
    mean: Sequence[float] | jax.Array,
    std: Sequence[float] | jax.Array,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None = None,
) -> Network:
    """Puts together a network whose blocks follow the protocol `Block`.

    Args:
      model: a hashable object with a tuple of `blocks`.
      variables: of these blocks, as `init_variables` arranges them.
      head: the classifier, or its kernel f32[D, C].
      mean: per channel, of pixels in [0, 1].
      std: the same.
      image_shape: (H, W, channels).
      class_names: C names; None: "0", "1", ...

    Raises:
      ValueError: parts that do not fit each other; pixel moments outside [0, 1].
    """
    head = head if isinstance(head, Head) else Head(jnp.asarray(head))
    shape = tuple(int(size) for size in image_shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape={image_shape} must be (height, width, channels).")
    moments = [pixel_moment(name, x, shape[2]) for name, x in (("mean", mean), ("std", std))]
    *_, dim = feature_shape(model, variables, shape)
    if head.kernel.ndim != 2 or head.kernel.shape[0] != dim:
        raise ValueError(
            f"the head's kernel has shape {head.kernel.shape}, but the last block gives {dim} "
            f"features per image; give one of shape ({dim}, number of classes)."
        )
    num_classes = head.kernel.shape[1]
    if head.bias is not None and head.bias.shape != (num_classes,):
        raise ValueError(
            f"the head's bias has shape {head.bias.shape}; expected ({num_classes},), one value "
            "per class."
        )
    names = range(num_classes) if class_names is None else class_names
    names = tuple(str(name) for name in names)
    if len(names) != num_classes:
        raise ValueError(
            f"got {len(names)} class_names for a head of {num_classes} classes; give one per class."
        )
    return Network(variables, head, *moments, model, shape, names)


def logits(network: Network, images: jax.Array | np.ndarray) -> jax.Array:
    """Logits f32[B, C] of images u8[B, H, W, channels] as they are stored.

    H and W may differ from those of `image_shape` where the network itself allows it.

    Raises:
      TypeError: images that are not uint8.
      ValueError: images of another layout or of another number of channels.
    """
    check_images(network, images)
    return _logits(network, images)


@jax.jit
def raw_features(network: Network, images: jax.Array) -> jax.Array:
    """Features f32[B, D] of images u8[B, H, W, channels] as they are stored, not checked."""
    x = normalise(images, network.mean, network.std)
    return forward(network.model, network.variables, x).features


@jax.jit
def _logits(network, images):
    return network.head(raw_features(network, images))
