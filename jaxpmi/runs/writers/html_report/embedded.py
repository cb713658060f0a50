"""Pictures of a run inside its page: no file beside it, and not too many bytes."""

import base64
import io
from pathlib import Path

import numpy as np

from jaxpmi.runs.writers.html_report.parts import Picture
from jaxpmi.runs.writers.html_report.parts import Pictures
from jaxpmi.runs.writers.html_report.parts import WholePicture
from jaxpmi.runs.writers.pictures import ImageGrid

MOST_ROWS = 100  # classes in one picture
MOST_SIDE = 112  # pixels of an image; larger ones are made smaller
SMALL_SIDE = 64  # up to which pixels are shown as squares, and kept exactly
MOST_BYTES = 2_000_000  # of a picture that is taken as it is


def embed_grid(grid: ImageGrid, caption: str, most_pixels: int) -> Pictures:
    """The images of a grid, as strips with as many of each class as the pixels allow."""
    names = grid.class_names[:MOST_ROWS]
    images = sum(len(row) for rows in grid.panels.values() for row in rows[: len(names)])
    sides = next(rows[0].shape[1:3] for rows in grid.panels.values())
    pixels = images * min(sides[0], MOST_SIDE) * min(sides[1], MOST_SIDE)
    longest = max(len(row) for rows in grid.panels.values() for row in rows)
    per_class = max(1, int(longest * min(1.0, most_pixels / max(pixels, 1))))
    rows = [
        (
            name,
            [
                (title, _strip(of[index][:per_class], f"{_images(title)} of class {name}"))
                for title, of in grid.panels.items()
                if len(of[index])
            ],
        )
        for index, name in enumerate(names)
    ]
    more = len(grid.class_names) - len(names)
    caption += f" The first {len(names)} of {len(grid.class_names)} classes." if more else ""
    return Pictures(caption, rows)


def _images(title):
    return title if title.endswith("images") else f"{title} images"


def num_pixels(path: Path) -> int:
    """Those of a PNG, by its header."""
    with path.open("rb") as file:
        header = file.read(24)
    return int.from_bytes(header[16:20]) * int.from_bytes(header[20:])


def embed_file(path: Path, caption: str, alt: str) -> WholePicture | None:
    """A PNG as it is; None of one that is too large."""
    from PIL import Image

    content = path.read_bytes()
    if len(content) > MOST_BYTES:
        return None
    with Image.open(path) as image:
        width, height = image.size
    return WholePicture(caption, Picture(_uri(content, "png"), alt, width, height, False))


def _strip(images: np.ndarray, alt: str) -> Picture:
    """Images u8[n, H, W, 3] side by side, with a clear gap between them."""
    images = _smaller(images)
    count, height, width, _ = images.shape
    gap = max(1, width // 16)
    pixels = np.zeros((height, count * (width + gap) - gap, 4), np.uint8)
    for index, image in enumerate(images):
        left = index * (width + gap)
        pixels[:, left : left + width, :3] = image
        pixels[:, left : left + width, 3] = 255
    small = max(height, width) <= SMALL_SIDE
    uri = _encode(pixels, exact=small)
    return Picture(uri, f"{count} {alt}", pixels.shape[1], height, small)


def _smaller(images):
    """The same, with no side longer than is shown."""
    from PIL import Image

    height, width = images.shape[1:3]
    scale = MOST_SIDE / max(height, width)
    if scale >= 1:
        return images
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [Image.fromarray(x).resize(size, Image.Resampling.LANCZOS) for x in images]
    return np.stack([np.asarray(image) for image in small])


def _encode(pixels, *, exact):
    from PIL import Image

    picture, written = Image.fromarray(pixels), io.BytesIO()
    if not exact:
        picture.save(written, "WEBP", quality=80)
        return _uri(written.getvalue(), "webp")
    if (pixels[..., :1] == pixels[..., :3]).all():
        picture = picture.convert("LA")
    picture.save(written, "PNG")
    return _uri(written.getvalue(), "png")


def _uri(content, kind):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
