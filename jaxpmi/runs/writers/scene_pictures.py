"""Pictures of scenes: an image, its label map and the predicted one, side by side."""

import os
from collections.abc import Sequence

import numpy as np

from jaxpmi.runs.writers.files import replace_file
from jaxpmi.runs.writers.pictures import BACKGROUND
from jaxpmi.runs.writers.pictures import FONT_SIZE
from jaxpmi.runs.writers.pictures import HEADER
from jaxpmi.runs.writers.pictures import INK
from jaxpmi.runs.writers.pictures import MARGIN
from jaxpmi.types import IGNORED_LABEL

SCENE_PIXELS = 96  # least size of a scene in the grid; smaller ones are enlarged by whole factors
SWATCH = 14  # pixels of a colour's square in the legend
LINE = 20  # pixels from one name of the legend to the next
IGNORED_COLOUR = (128, 128, 128)
# Of label 0, which is most often background, and of labels 1..20, in an order such that the first
# few differ most: to eyes of full colour vision, and in simulations of protanopia, deuteranopia and
# tritanopia (Machado et al., 2009). Further labels begin again at the second colour.
COLOURS = (
    (0, 0, 0),
    (213, 94, 0),
    (255, 255, 255),
    (51, 187, 238),
    (119, 119, 255),
    (221, 204, 119),
    (170, 68, 153),
    (255, 170, 187),
    (17, 119, 51),
    (230, 159, 0),
    (170, 255, 195),
    (187, 0, 187),
    (238, 51, 119),
    (153, 153, 51),
    (102, 153, 170),
    (187, 204, 51),
    (185, 181, 224),
    (68, 170, 153),
    (51, 34, 136),
    (110, 76, 30),
    (240, 228, 66),
)


def label_colours() -> np.ndarray:
    """Returns u8[256, 3], the colour of every label."""
    foreground = np.asarray(COLOURS[1:], np.uint8)
    table = np.concatenate([np.zeros((1, 3), np.uint8), np.resize(foreground, (255, 3))])
    table[IGNORED_LABEL] = IGNORED_COLOUR
    return table


def write_scene_grid(
    path: str | os.PathLike,
    images: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Writes a PNG with one row per scene: image, truth, prediction; and a legend of the colours.

    Args:
      path: the file.
      images: u8[n, H, W, C], C 1 or 3.
      truth: u8[n, H, W], labels; 255 where pixels are ignored.
      predicted: u8[n, H, W].
      class_names: one per label value; the legend has those that occur.
    """
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont

    font, colours = ImageFont.load_default(FONT_SIZE), label_colours()
    used = [int(label) for label in np.unique([truth, predicted])]
    names = ["ignored" if label == IGNORED_LABEL else str(class_names[label]) for label in used]
    colour_images = np.broadcast_to(images, (*truth.shape, 3))
    grid = _draw_grid([colour_images, colours[truth], colours[predicted]])
    left = grid.shape[1] + 2 * MARGIN
    width = left + SWATCH + 3 * MARGIN + round(max(map(font.getlength, names)))
    height = max(len(grid), HEADER + len(used) * LINE)
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    canvas[: len(grid), : grid.shape[1]] = grid
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    step = grid.shape[1] // 3
    for column, title in enumerate(("image", "truth", "prediction")):
        draw.text((MARGIN + column * step, MARGIN), title, fill=(INK,) * 3, font=font)
    for line, (label, name) in enumerate(zip(used, names, strict=True)):
        top = HEADER + line * LINE
        box = (left, top, left + SWATCH, top + SWATCH)
        draw.rectangle(box, fill=tuple(colours[label].tolist()), outline=(INK,) * 3)
        middle = (left + SWATCH + 2 * MARGIN, top + SWATCH // 2)
        draw.text(middle, name, fill=(INK,) * 3, font=font, anchor="lm")
    with replace_file(path) as file:
        picture.save(file, "PNG")


def _draw_grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns u8[h, w, 3], room for titles above columns of u8[n, H, W, 3] each, enlarged."""
    num_rows, height, width = columns[0].shape[:3]
    scale = -(-SCENE_PIXELS // max(height, width))
    height, width = height * scale + MARGIN, width * scale + MARGIN
    grid = np.full((HEADER + num_rows * height, len(columns) * width, 3), BACKGROUND, np.uint8)
    for column, scenes in enumerate(columns):
        for row, scene in enumerate(scenes):
            pixels = np.repeat(np.repeat(scene, scale, 0), scale, 1)
            top, left = HEADER + row * height, MARGIN + column * width
            grid[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
    return grid
