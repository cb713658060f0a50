"""What is refused at the public edge, before anything is traced: one sentence for each mistake."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_kind
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import output_shape
from jaxpmi.types import PRNGKey


def check_images(network: Any, images: jax.Array | np.ndarray) -> None:
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


def check_labels(network: Any, labels: jax.Array | np.ndarray) -> None:
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


def check_key(key: PRNGKey) -> None:
    """Raises if `key` is no key of `jax.random`, typed or of the old kind, but a number, say."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return
    if getattr(key, "dtype", None) != jnp.uint32 or np.shape(key) != (2,):
        raise TypeError(f"key={key!r} is no random key; give jax.random.key(0), say.")


def check_inversion(
    network: Any, labels: jax.Array | np.ndarray, key: PRNGKey, *, statistics_weight: float
) -> None:
    """Raises if a verb of inversion cannot begin: what it aims at, for which labels, which key.

    Moments of layers have to be known only where `statistics_weight` lets them count.
    """
    if statistics_weight > 0:
        check_measured(network)
    check_labels(network, labels)
    check_key(key)


def feature_shape(
    model: BlockwiseModel, variables: Variables, image_shape: tuple[int, int, int]
) -> tuple[int, ...]:
    """Of the last block's output, (D,) or (H, W, D); raises where the parts do not fit."""
    names = {block_name(i) for i in range(len(model.blocks))}
    for part, tree in zip(("params", "batch_stats"), variables, strict=True):
        if set(tree) != names:
            raise ValueError(
                f"variables.{part} has {len(tree)} blocks ({', '.join(sorted(tree)[:3])}, ...), "
                f"but the model has {len(names)}, block00 to {block_name(len(names) - 1)}; give "
                "those of this model."
            )
    shape = image_shape
    for i, block in enumerate(model.blocks):
        own = [tree[block_name(i)] for tree in variables]
        try:
            shape = output_shape(block, *own, shape)
        except (TypeError, ValueError, LookupError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{block_name(i)} ({block_kind(block)}) cannot take inputs of {shape} per image "
                f"with these variables: {reason}; check the order of the blocks and whose "
                "variables they are."
            ) from error
    if len(shape) != 1 and shape[:-1] != tuple(image_shape)[:2]:
        raise ValueError(
            f"the last block returns {shape} per image, but a feature vector (D,) is expected, or "
            "one per pixel (H, W, D); pool inside the last block."
        )
    return shape


def check_measured(network: Any) -> None:
    """Raises if inversion would aim at moments of layers that nobody has measured."""
    for i, block in enumerate(network.model.blocks):
        own = network.variables.batch_stats[block_name(i)]
        for name in getattr(block, "unmeasured", ()):
            if isinstance(own[name].mean, jax.core.Tracer):
                continue
            mean, var = jax.device_get(own[name])
            if not np.any(mean) and np.all(var == 1.0):
                raise ValueError(
                    f"the layer {name} of {block_name(i)} keeps no moments of its input, so "
                    "inversion has no statistics to aim at; give memory=jaxpmi.remember(network, "
                    "batches), or a statistics_weight of 0."
                )


def pixel_moment(name: str, value: Any, channels: int) -> jax.Array:
    """Mean or standard deviation as f32[channels], checked where its values are known."""
    if isinstance(value, jax.core.Tracer):
        return value
    known = np.asarray(value, np.float32)  # on the host, so known under a trace too
    if known.shape != (channels,):
        raise ValueError(
            f"{name} has shape {known.shape}, but the images have {channels} channel(s); give one "
            "value per channel."
        )
    if not (np.isfinite(known).all() and known.min() >= 0.0 and known.max() <= 1.0):
        raise ValueError(
            f"{name}={known.round(3).tolist()} is outside [0, 1]; give it of pixels in [0, 1], "
            "not 0..255: divide by 255."
        )
    if name == "std" and known.min() == 0.0:
        raise ValueError(f"std={known.round(3).tolist()} has a 0; every one must be above 0.")
    return jnp.asarray(known)
