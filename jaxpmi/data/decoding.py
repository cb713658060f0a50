"""Encoded images to uint8 arrays with Pillow: what a decoded picture is, for every source.

- It stands upright, as viewers show it: turned and mirrored as its EXIF orientation says.
- Where it is transparent, fully or in part, it is laid over one ground, a grey value.
- Palettes, CMYK and other colour spaces become RGB; 1-bit and grey pictures, with or without alpha,
  are grey.
- More than 8 bits per channel are refused where they would be clipped. (Of 16-bit colour Pillow
  itself gives the upper 8 bits.)
- Of several frames it is the first.
"""

import concurrent.futures
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

GREY_MODES = ("1", "L", "LA", "La")  # Pillow modes that are one channel, transparency aside
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATION = 0x0112  # the EXIF tag; 1: upright
SIDEWAYS = (5, 6, 7, 8)  # its values for which width and height change places
WHITE = 255


class Header(NamedTuple):
    """What is known of a picture before its pixels are decoded."""

    channels: int  # 1 if it is grey, else 3
    size: tuple[int, int]  # (height, width) as it stands upright


def open_image(data: bytes | BinaryIO, where: str) -> "Image.Image":
    """Opens an encoded image (bytes or an open file) and reads its header.

    Args:
      data: a whole png, jpeg, ... file.
      where: names it in errors.

    Raises:
      ValueError: it is no image that Pillow knows.
    """
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Exception as error:  # Pillow's decoders raise some ten unrelated types
        raise ValueError(_unreadable(where, error)) from error


def read_header(image: "Image.Image", where: str) -> Header:
    """Returns the header of an opened image, or raises if its pixels could not be decoded right."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{where} has more than 8 bits per pixel (mode {image.mode}); "
            "convert it to an 8-bit grey or RGB image."
        )
    turned = orientation(image, where)
    if turned in SIDEWAYS and image.format == "TIFF":  # Pillow turns it itself, some versions late
        image = convert(image, image.mode, where, upright=True)
        turned = 1
    width, height = image.size[::-1] if turned in SIDEWAYS else image.size
    return Header(1 if image.mode in GREY_MODES else 3, (height, width))


def orientation(image: "Image.Image", where: str) -> int:
    """Returns how a camera was held, as EXIF tells it: 1 (upright, or not told) to 8."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all of it, to look for EXIF after the pixels
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # a damaged EXIF block, of some five types
        raise ValueError(_unreadable(where, error)) from error
    return found if found in range(1, 9) else 1


def is_transparent(image: "Image.Image") -> bool:
    """Whether an opened image has transparent pixels, or could have."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def decode_image(
    data: bytes, channels: int, image_size: int | None, where: str, ground: int = WHITE
) -> np.ndarray:
    """Decodes one image.

    Args:
      data: a whole png, jpeg, ... file.
      channels: 1 for grey, 3 for RGB.
      image_size: the short side is resized to it (bicubic) and the centre cropped; None: as stored.
      where: names the image in errors.
      ground: 0..255, the grey value that transparent pixels are laid over.

    Returns:
      u8[H, W, C].
    """
    image = open_image(data, where)
    read_header(image, where)
    image = convert(image, "L" if channels == 1 else "RGB", where, ground=ground, upright=True)
    if image_size is not None:
        image = resize_and_crop(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, channels)


def convert(
    image: "Image.Image", mode: str, where: str, *, ground: int = WHITE, upright: bool = False
) -> "Image.Image":
    """Decodes the pixels of an opened image.

    Args:
      image: as `open_image` returns it.
      mode: L or RGB.
      where: names the image in errors.
      ground: 0..255, the grey value that transparent pixels are laid over.
      upright: whether to turn it as its EXIF orientation says; not where a label map of the same
        pixels belongs to it.
    """
    from PIL import ImageOps

    try:
        if upright and orientation(image, where) != 1:
            image = ImageOps.exif_transpose(image)
        if is_transparent(image):
            image = _lay_over(image, ground)
        return image.convert(mode)
    except Exception as error:  # as above; the pixels are decoded only here
        raise ValueError(_unreadable(where, error)) from error


def decode_numbers(image: "Image.Image", where: str) -> "Image.Image":
    """Decodes the pixels of an opened label map, whose numbers stay as they are stored."""
    try:
        image.load()
    except Exception as error:  # as above
        raise ValueError(_unreadable(where, error)) from error
    return image


def _lay_over(image, ground):
    """An RGB image whose pixels are those of a transparent one over a ground of one grey."""
    from PIL import Image

    if image.mode == "La":  # premultiplied, which Pillow converts in this way only
        image = image.convert("LA")
    image = image.convert("RGBA")
    plain = Image.new("RGBA", image.size, (ground, ground, ground, 255))
    return Image.alpha_composite(plain, image).convert("RGB")


def decode_images(
    encoded: Sequence[bytes],
    shape: tuple[int, int, int],
    resize: bool,
    wheres: Sequence[str],
    ground: int = WHITE,
) -> np.ndarray:
    """Decodes many images in threads (Pillow frees the interpreter lock while it decodes).

    Args:
      encoded: n encoded images.
      shape: H, W, C of every result.
      resize: bring every image to H = W; otherwise one of another size is an error.
      wheres: n names for errors.
      ground: 0..255, the grey value that transparent pixels are laid over.

    Returns:
      u8[n, H, W, C].
    """
    size = shape[0] if resize else None
    images = np.empty((len(encoded), *shape), np.uint8)

    def decode(i: int) -> None:
        image = decode_image(encoded[i], shape[2], size, wheres[i], ground)
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
