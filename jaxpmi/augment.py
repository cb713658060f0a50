"""Normalisation and random views of a batch of images, on device and inside jit.

Views are differentiable in the pixels, so training and inversion share them. Two pixel ranges
exist: *raw* pixels are 0..255, *normalised* ones are (raw / 255 - mean) / std.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxpmi.config import AugmentConfig
from jaxpmi.types import IGNORED_LABEL
from jaxpmi.types import PRNGKey

Interpolation = Literal["cubic", "linear"]
CROP_RATIO = 4 / 3  # of a resized crop's longer to its shorter side, at most
CROP_TRIES = 10  # boxes drawn for a resized crop before the whole image is taken


@jax.jit
def normalise(
    images: jax.Array, mean: Sequence[float] | jax.Array, std: Sequence[float] | jax.Array
) -> jax.Array:
    """Turns raw pixels, u8 or f32[B, H, W, C] in 0..255, into f32[B, H, W, C], normalised."""
    mean = _per_channel(mean, images, "mean")
    std = _per_channel(std, images, "std")
    return (images.astype(jnp.float32) / 255 - mean) / std


@jax.jit
def denormalise(
    images: jax.Array, mean: Sequence[float] | jax.Array, std: Sequence[float] | jax.Array
) -> jax.Array:
    """Turns normalised f32[B, H, W, C] into raw u8[B, H, W, C], rounded and clipped to 0..255."""
    mean = _per_channel(mean, images, "mean")
    std = _per_channel(std, images, "std")
    return jnp.clip(jnp.round((images * std + mean) * 255), 0, 255).astype(jnp.uint8)


def pixel_range(mean: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Black and white in normalised units, f32[channels] each, of f32[channels] moments."""
    low = -mean / std
    return low, low + 1.0 / std


def augment(
    images: jax.Array,
    key: PRNGKey,
    config: AugmentConfig,
    pad_value: float | Sequence[float] | jax.Array = 0.0,
    *,
    interpolation: Interpolation = "cubic",
) -> jax.Array:
    """Draws one random view of every image: resized crop, crop of the padded image, flip, noise.

    Every image has a key of its own, so the views do not depend on the number of devices. A resized
    crop is a view of the image as it is given, which for photographs is their resized centre: what
    lies outside of it, and detail finer than its pixels, is not in the view.

    Args:
      images: f32[B, H, W, C], normalised.
      key: key[], consumed; or key[B], one per image.
      config: static; the defaults change nothing.
      pad_value: normalised value of the border, one number or one per channel: 0.0 is the mean
        colour, the first of `pixel_range(mean, std)` is black.
      interpolation: of resized crops; a linear one stays within the range of the image.

    Returns:
      f32[B, H, W, C].
    """
    if config == AugmentConfig():
        return images
    border = pad_value
    if np.ndim(border) == 0:
        border = jnp.full(images.shape[-1], border)
    border = _per_channel(border, images, "pad_value")[0]
    one = functools.partial(_augment_one, border=border, config=config, interpolation=interpolation)
    return jax.vmap(one)(images, _image_keys(key, images))


def augment_scenes(
    scenes: jax.Array, key: PRNGKey, config: AugmentConfig, mean: jax.Array, std: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Normalises scenes and draws one random view of each; its label map moves along.

    Args:
      scenes: u8[B, H, W, C + 1], raw pixels and, as the last channel, labels.
      key: key[], consumed.
      config: static; without resized crops, which would blend labels.
      mean: f32[C], of pixels in [0, 1].
      std: f32[C].

    Returns:
      Images f32[B, H, W, C], and labels i32[B, H, W], `IGNORED_LABEL` beyond the scene's border.
    """
    if config.crop_scale is not None:
        raise ValueError(
            f"crop_scale={config.crop_scale} would blend the labels of scenes; set it to None."
        )
    key_place, _ = jax.random.split(key)
    black, _ = pixel_range(mean, std)
    labels = scenes[..., -1:].astype(jnp.float32)
    both = jnp.concatenate([normalise(scenes[..., :-1], mean, std), labels], axis=-1)
    both = augment(both, key_place, config, jnp.append(black, IGNORED_LABEL))
    return both[..., :-1], both[..., -1].astype(jnp.int32)


def quarter_turns(images: jax.Array) -> jax.Array:
    """Square images in four rotations, counter-clockwise, those of one adjacent: [4B, H, W, C]."""
    turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)], axis=1)
    return turned.reshape(-1, *images.shape[1:])


def draw_crop(key: PRNGKey, size: tuple[int, int], scale: tuple[float, float]) -> jax.Array:
    """Draws a box in an image: i32[4], its top, left, height and width in pixels.

    As torchvision's `RandomResizedCrop`: the share of the area is uniform in `scale`, the logarithm
    of width / height uniform up to that of `CROP_RATIO`, both ways. Of `CROP_TRIES` boxes the first
    that fits into the image is taken; if none does, the largest in the centre of such a ratio.
    """
    height, width = size
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    low, high = scale
    area = jax.random.uniform(key_area, (CROP_TRIES,), minval=low, maxval=high) * height * width
    limit = math.log(CROP_RATIO)
    ratio = jnp.exp(jax.random.uniform(key_ratio, (CROP_TRIES,), minval=-limit, maxval=limit))
    boxes = jnp.sqrt(jnp.stack([area / ratio, area * ratio], 1))
    boxes = jnp.maximum(jnp.round(boxes).astype(jnp.int32), 1)
    fits = (boxes[:, 0] <= height) & (boxes[:, 1] <= width)
    box = boxes[fits.argmax()]
    room = jnp.maximum(jnp.asarray(size) - box, 0)
    drawn = jnp.concatenate([jax.random.randint(key_place, (2,), 0, room + 1), box])
    rows = min(height, round(width * CROP_RATIO))
    columns = min(width, round(height * CROP_RATIO))
    centre = jnp.asarray([(height - rows) // 2, (width - columns) // 2, rows, columns])
    return jnp.where(fits.any(), drawn, centre)


def resized_crop(
    image: jax.Array, box: jax.Array, interpolation: Interpolation = "cubic"
) -> jax.Array:
    """Resizes a box i32[4] (top, left, height, width) of f32[H, W, C] to f32[H, W, C].

    Equal to `Image.resize(..., BICUBIC, box)` of Pillow (or BILINEAR), up to its rounding to whole
    levels: antialiased, and at the border of the box the pixels beside it count, if there are any.
    """
    scale = jnp.asarray(image.shape[:2]) / box[2:]
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -box[:2] * scale, interpolation, antialias=True
    )


def padded_crop(
    image: jax.Array, corner: jax.Array, padding: int, border: jax.Array | float = 0.0
) -> jax.Array:
    """Cuts f32[H, W, C] at `corner` i32[2] out of the image with `padding` pixels all around it.

    The padding has the value `border`, a number or f32[1, 1, C]; the corner (padding, padding)
    gives the image back.
    """
    sides = ((padding, padding), (padding, padding), (0, 0))
    inside = jnp.pad(jnp.ones((*image.shape[:2], 1), bool), sides)
    padded = jnp.where(inside, jnp.pad(image, sides), border)
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def _augment_one(
    image: jax.Array,
    key: PRNGKey,
    *,
    border: jax.Array,
    config: AugmentConfig,
    interpolation: Interpolation,
) -> jax.Array:
    """Augments one image f32[H, W, C] whose border is filled with f32[1, 1, C]."""
    key_crop, key_flip, _, key_box = jax.random.split(key, 4)
    if config.crop_scale is not None:
        box = draw_crop(key_box, image.shape[:2], config.crop_scale)
        image = resized_crop(image, box, interpolation)
    if config.crop_padding:
        corner = jax.random.randint(key_crop, (2,), 0, 2 * config.crop_padding + 1)
        image = padded_crop(image, corner, config.crop_padding, border)
    if config.flip:
        image = jnp.where(jax.random.bernoulli(key_flip), image[:, ::-1], image)
    return image


def _image_keys(key: PRNGKey, images: jax.Array) -> jax.Array:
    """Returns key[B], laid out over the devices as the batch is."""
    keys = jax.random.split(key, images.shape[0]) if key.ndim == 0 else key
    sharding = jax.typeof(images).sharding
    # On explicit mesh axes an array born inside jit is replicated, and vmap refuses to mix.
    if AxisType.Explicit in sharding.mesh.axis_types:
        keys = jax.sharding.reshard(
            keys, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))
        )
    return keys


def _per_channel(values: Sequence[float], images: jax.Array, name: str) -> jax.Array:
    """Returns f32[1, 1, 1, C], or raises where the number of channels differs."""
    if len(values) != images.shape[-1]:
        raise ValueError(
            f"{name} has {len(values)} value(s) but the images have {images.shape[-1]} channel(s); "
            "give one value per channel."
        )
    return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
