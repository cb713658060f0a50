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
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_input_shapes
from jaxpmi.models.blockwise import forward
from jaxpmi.models.blockwise import init_variables
from jaxpmi.types import PRNGKey


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
    head: Head
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
    moments = [_pixel_moment(name, x, shape[2]) for name, x in (("mean", mean), ("std", std))]
    *_, dim = block_input_shapes(model, variables, shape)[-1]
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


def init_network(
    model: BlockwiseModel,
    key: PRNGKey,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    *,
    mean: Sequence[float] | jax.Array,
    std: Sequence[float] | jax.Array,
    head_std: float | None = None,
) -> Network:
    """A network with random weights; its head, without bias, has weights of N(0, head_std^2).

    `head_std` None: 1 / sqrt(3 D), the deviation of PyTorch's default.
    """
    key_body, key_head = jax.random.split(key)
    variables = init_variables(model, key_body, image_shape)
    *_, dim = block_input_shapes(model, variables, image_shape)[-1]
    head_std = (3 * dim) ** -0.5 if head_std is None else head_std
    kernel = head_std * jax.random.normal(key_head, (dim, len(class_names)))
    return from_blocks(
        model, variables, kernel, mean=mean, std=std, image_shape=image_shape,
        class_names=class_names,
    )  # fmt: skip


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
def _logits(network, images):
    x = normalise(images, network.mean, network.std)
    return network.head(forward(network.model, network.variables, x).features)


def check_images(network: Network, images: jax.Array | np.ndarray) -> None:
    """Raises if `images` are not stored as the network takes them, u8[B, H, W, channels]."""
    shape, dtype = np.shape(images), getattr(images, "dtype", None)
    height, width, channels = network.image_shape
    wanted = f"u8[B, {height}, {width}, {channels}]"
    if len(shape) == 4 and shape[-1] != channels and shape[1] == channels:
        raise ValueError(
            f"images have shape {shape}, channels first (NCHW); expected {wanted}: "
            "move the channels last, images.transpose(0, 2, 3, 1)."
        )
    if len(shape) != 4 or shape[-1] != channels:
        raise ValueError(f"images have shape {shape}; expected {wanted}, channels last.")
    if shape[0] == 0:
        raise ValueError(f"images have shape {shape}, which is an empty batch; give at least one.")
    if dtype != jnp.uint8:
        raise TypeError(
            f"images have the type {dtype}; expected {wanted} with pixels 0..255 as they are "
            "stored: the network normalises them itself."
        )


def check_labels(network: Network, labels: jax.Array | np.ndarray) -> None:
    """Raises if `labels` are not integers i32[B] in [0, C); those of a tracer are not looked at."""
    dtype = labels.dtype if hasattr(labels, "dtype") else np.asarray(labels).dtype
    if np.ndim(labels) != 1 or not jnp.issubdtype(dtype, jnp.integer) or np.shape(labels)[0] == 0:
        raise ValueError(
            f"labels have shape {np.shape(labels)} and type {dtype}; expected i32[B], an integer "
            "for each image, at least one."
        )
    if isinstance(labels, jax.core.Tracer):
        return
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= network.num_classes:
        raise ValueError(
            f"labels range from {low} to {high}, but the network has {network.num_classes} "
            f"classes, 0 to {network.num_classes - 1}."
        )


def _pixel_moment(name, value, channels):
    """Mean or standard deviation as f32[channels], checked where its values are known."""
    if isinstance(value, jax.core.Tracer):
        return value
    value = np.asarray(value, np.float32)  # known under a trace too
    if value.shape != (channels,):
        raise ValueError(
            f"{name} has shape {value.shape}, but the images have {channels} channel(s); give one "
            "value per channel."
        )
    least = np.min(value)
    if not (np.all(np.isfinite(value)) and least >= 0.0 and np.max(value) <= 1.0):
        raise ValueError(
            f"{name}={np.round(value, 3).tolist()} is outside [0, 1]; give it of pixels in [0, 1], "
            "not 0..255: divide by 255."
        )
    if name == "std" and least == 0.0:
        raise ValueError(f"std={np.round(value, 3).tolist()} has a 0; every one must be above 0.")
    return jnp.asarray(value)
