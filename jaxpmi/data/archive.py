"""Recipe: a data set read from its original archives, ready to be written as ArrayRecord."""

import contextlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from jaxpmi.data import decoding

Examples = Iterator[tuple[int | str, dict[str, Any]]]  # (unique key, feature name -> value)


class Recipe(NamedTuple):
    """What `builders.write_dataset` needs; features and versions are those of the TFDS builders."""

    name: str
    version: str
    description: str
    homepage: str
    image_shape: tuple[int | None, int | None, int]
    encoding: str | None  # 'png' or 'jpeg'; None: as in the archive
    labels: Mapping[str, tuple[str, ...]]  # class-label feature -> class names
    text: str  # the text feature: 'id' or 'file_name'
    splits: Mapping[str, Callable[[], Examples]]


@contextlib.contextmanager
def corrupt_archive_errors(path: Path):
    """Turns what tarfile, zipfile and the decompressors raise into one sentence."""
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        NotImplementedError,  # zipfile: unknown compression or encryption
    ) as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"archive {path} does not exist.") from error
        raise ValueError(
            f"{path} is corrupt, truncated or no archive ({type(error).__name__}); "
            "download it again."
        ) from error


def single_archive(archives: list[Path], expected: str) -> Path:
    """Returns the one archive file given, or raises saying which was expected."""
    if len(archives) != 1:
        raise ValueError(f"got {len(archives)} archives; expected one, {expected}.")
    if archives[0].is_dir():
        raise ValueError(f"{archives[0]} is a folder; expected the archive {expected} itself.")
    return archives[0]


def require_members(path: Path, names: set[str], needed: list[str], expected: str) -> None:
    """Raises naming the first member that an archive lacks."""
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(f"{path} holds no '{missing[0]}'; expected the archive {expected}.")


def rgb_jpeg(data: bytes, where: str) -> bytes:
    """Returns the image as it is if it is a grey or RGB jpeg, else encoded anew as an RGB one.

    ImageNet has one png and some CMYK jpegs, which readers of the stock layout cannot decode.
    """
    image = decoding.open_image(data, where)
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        return data
    pixels = decoding.decode_image(data, 3, None, where)
    return _encode(_as_image(pixels), "JPEG", quality=100, subsampling=0)


def png_or_jpeg(data: bytes, where: str) -> bytes:
    """Returns the image as it is if any reader decodes it alike, else encoded anew as a png.

    That is a png or jpeg of 8 bits that stands upright and has no transparent pixel; these are
    laid over white.
    """
    image = decoding.open_image(data, where)
    plain = image.mode in ("L", "RGB") and not decoding.is_transparent(image)
    if image.format in ("PNG", "JPEG") and plain and decoding.orientation(image, where) == 1:
        return data
    channels = decoding.read_header(image, where).channels
    return png(decoding.decode_image(data, channels, None, where))


def png(pixels) -> bytes:
    """Encodes u8[H, W, C] as a png."""
    return _encode(_as_image(pixels), "PNG")


def _as_image(pixels):
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _encode(image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
