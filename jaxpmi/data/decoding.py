"""Encoded images to uint8 arrays with Pillow: colour mode, size and centre crop."""

import concurrent.futures
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

GREY_MODES = ("1", "L")  # Pillow modes that stay one channel


def open_image(data: bytes | Path, where: str) -> "Image.Image":
    """Opens an encoded image (bytes or a file) and reads its header; `where` names it in errors."""
    from PIL import Image

    try:
        if isinstance(data, Path):  # opened by us: Pillow leaks the handle of a broken file
            with data.open("rb") as file, Image.open(file) as image:
                return image
        return Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's decoders raise some ten unrelated types
        raise ValueError(_unreadable(where, error)) from error


def decode_image(data: bytes, channels: int, image_size: int | None, where: str) -> np.ndarray:
    """Decodes one image.

    Args:
      data: a whole png, jpeg, ... file.
      channels: 1 for grey, 3 for RGB.
      image_size: the short side is resized to it (bicubic) and the centre cropped; None: as stored.
      where: names the image in errors.

    Returns:
      u8[H, W, C].
    """
    image = open_image(data, where)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{where} has more than 8 bits per pixel (mode {image.mode}); "
            "convert it to an 8-bit grey or RGB image."
        )
    image = convert(image, "L" if channels == 1 else "RGB", where)
    if image_size is not None:
        image = resize_and_crop(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, channels)


def convert(image: "Image.Image", mode: str, where: str) -> "Image.Image":
    """Decodes the pixels of an opened image in another, or its own, Pillow mode."""
    try:
        if "transparency" in image.info and image.mode != mode:  # a palette's needs this step;
            image = image.convert("RGBA")  # alpha is dropped
        return image.convert(mode)
    except Exception as error:  # as above; the pixels are decoded only here
        raise ValueError(_unreadable(where, error)) from error


def decode_images(
    encoded: Sequence[bytes], shape: tuple[int, int, int], resize: bool, wheres: Sequence[str]
) -> np.ndarray:
    """Decodes many images in threads (Pillow frees the interpreter lock while it decodes).

    Args:
      encoded: n encoded images.
      shape: H, W, C of every result.
      resize: bring every image to H = W; otherwise one of another size is an error.
      wheres: n names for errors.

    Returns:
      u8[n, H, W, C].
    """
    size = shape[0] if resize else None
    images = np.empty((len(encoded), *shape), np.uint8)

    def decode(i: int) -> None:
        image = decode_image(encoded[i], shape[2], size, wheres[i])
        if image.shape != shape:
            raise ValueError(
                f"{wheres[i]} is {image.shape[1]}x{image.shape[0]} pixels but {shape[1]}x{shape[0]}"
                " was expected; set data.image_size to bring all images to one size."
            )
        images[i] = image

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(len(encoded))))  # list: re-raises the first error
    return images


def resize_images(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Resizes u8[n, H, W, C] to u8[n, S, S, C] as `decode_image` would; None: as they are."""
    from PIL import Image

    if image_size is None or images.shape[1:3] == (image_size, image_size):
        return images
    channels = images.shape[-1]
    resized = np.empty((len(images), image_size, image_size, channels), np.uint8)
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        image = np.asarray(resize_and_crop(image, image_size))
        resized[i] = image.reshape(resized.shape[1:])
    return resized


def resize_and_crop(image: "Image.Image", size: int) -> "Image.Image":
    """Resizes the short side to `size` pixels (bicubic, antialiased) and crops the centre."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _unreadable(where: str, error: Exception) -> str:
    reason = type(error).__name__  # Pillow's own text often repeats a memory address
    return f"{where} is not a readable image ({reason}); replace or remove it."
