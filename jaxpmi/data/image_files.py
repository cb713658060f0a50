"""Files of images: which files are some, and what their headers say, read before anything else."""

import concurrent.futures
import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import NamedTuple
from typing import TypeVar

from jaxpmi.data import decoding
from jaxpmi.runs.writers.console import tell

if TYPE_CHECKING:
    from PIL import Image

Item, Result = TypeVar("Item"), TypeVar("Result")

# A file with such a suffix is meant to be an image, so a broken one is an error. Any other file is
# an image if its content is one of these formats.
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "GIF": b";"}
HEAD, TAIL = 4096, 16  # bytes of a file that are looked at for its fingerprint and its end
THREADS, CHUNK = 16, 256  # files per piece of work
SECONDS_BEFORE_A_WORD = 2.0  # then the console is told, and again after ten times as long


class ImageHeaders(NamedTuple):
    """What the headers of all images say together."""

    channels: int  # 1 if every image is grey, else 3
    size: tuple[int, int] | None  # (height, width); None if they differ
    clash: str  # names two files of differing sizes
    digest: str  # of names, sizes in bytes, headers and first bytes of all files


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Lists the images below a folder, at any depth and in order, and the files that are none.

    What begins with a dot is hidden, and belongs to neither. A linked folder is not entered, and
    is listed with the latter.
    """
    images, others = [], []
    for place, folders, files in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            if not is_hidden(name):
                path = Path(place, name)
                (images if is_image(path) else others).append(path)
        others += [Path(place, name) for name in linked if not is_hidden(name)]
    return sorted(images), sorted(others)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that programs leave behind, and nobody looks at."""
    return name.startswith((".", "__MACOSX")) or name.lower() in ("thumbs.db", "desktop.ini")


def is_image(file: Path) -> bool:
    """Whether a file is an image, by its suffix in any case, or else by its content."""
    if file.suffix.lower() in SUFFIXES:
        return True
    from PIL import Image

    try:
        with file.open("rb") as opened, Image.open(opened, formats=FORMATS):
            return True
    except Exception:  # whatever Pillow makes of other files
        return False


def read_headers(files: Sequence[tuple[str, Path]]) -> ImageHeaders:
    """Reads the headers of all images in threads; says so where it takes more than a moment.

    A file whose last bytes are not the end of an image is decoded as well.

    Args:
      files: one or more, each with its name in the data set, wherever that lies.

    Raises:
      ValueError: a file is no image, or is one that cannot be decoded right.
    """
    digest, channels, first, clash = hashlib.blake2b(digest_size=16), 1, None, ""
    found = read_all(read_header, [file for _, file in files])
    for (name, file), (header, sample) in zip(files, found, strict=True):
        channels = max(channels, header.channels)
        first = first or (file, header.size)
        if header.size != first[1] and not clash:
            (height, width), (other_height, other_width) = first[1], header.size
            clash = f"{first[0]} is {width}x{height} pixels but {file} is "
            clash += f"{other_width}x{other_height}"
        digest.update(f"{name}\0{header}\0".encode(errors="surrogateescape") + sample)
    return ImageHeaders(channels, None if clash else first[1], clash, digest.hexdigest())


def read_all(read: Callable[[Item], Result], files: Sequence[Item]) -> Iterator[Result]:
    """Yields `read(file)` of every file in order, from threads; says so if it takes its time."""
    since, due, done = time.monotonic(), SECONDS_BEFORE_A_WORD, 0
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, len(chunks) or 1)) as pool:
        jobs = [pool.submit(lambda some: [*map(read, some)], chunk) for chunk in chunks]
        try:
            for job in jobs:
                found = job.result()
                done += len(found)
                if time.monotonic() - since > due:
                    tell(f"read the headers of {done} of {len(files)} images ...")
                    due *= 10
                yield from found
        finally:
            for job in jobs:  # after an error the rest need not be read
                job.cancel()


def read_header(file: Path) -> tuple[decoding.Header, bytes]:
    """Returns what the header of one image says, and a short digest of its size and first bytes."""
    with open_file(file) as (image, sample):
        return decoding.read_header(image, str(file)), sample


@contextlib.contextmanager
def open_file(file: Path) -> Iterator[tuple["Image.Image", bytes]]:
    """Opens an image file; also gives a short digest of its size, its first and its last bytes.

    If these last ones are not the end of an image, all of it is decoded, which raises where it is
    cut short.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD)
        size = os.fstat(opened.fileno()).st_size
        opened.seek(max(size - TAIL, 0))
        tail = opened.read(TAIL)
        opened.seek(0)
        image = decoding.open_image(opened, str(file))
        if not tail.rstrip(b"\0\r\n").endswith(ENDS.get(image.format, b"")):
            decoding.decode_numbers(image, str(file))
            opened.seek(0)
            image = decoding.open_image(opened, str(file))
        what = head + size.to_bytes(8, "big") + tail
        yield image, hashlib.blake2b(what, digest_size=16).digest()
