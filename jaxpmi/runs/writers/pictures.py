"""Pictures of a run: synthetic beside real images, and the accuracy of every task over time."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import NamedTuple

import numpy as np

from jaxpmi.runs.writers.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_PIXELS = 56  # least size of an image in the grid; smaller ones are enlarged by whole factors
MARGIN = 4  # pixels between images
GAP = 24  # pixels between synthetic and real images
HEADER = 24  # pixels of the line above the images
FONT_SIZE = 14
BACKGROUND, INK = 255, 0
LAYOUT = "layout"  # the PNG's text, JSON, that says where its images are


class ImageGrid(NamedTuple):
    """The images of a picture by `write_image_grid`.

    Attributes:
      class_names: of the rows.
      panels: title -> for every row its images u8[n, H, W, 3], n up to the picture's `per_class`.
    """

    class_names: list[str]
    panels: dict[str, list[np.ndarray]]


def write_image_grid(
    path: str | os.PathLike,
    synthetic: np.ndarray,
    labels: np.ndarray,
    real: np.ndarray | None,
    real_labels: np.ndarray | None,
    class_names: Sequence[str],
    per_class: int = 8,
) -> None:
    """Writes a PNG with one row per class of `labels`: name, synthetic images, real images.

    `read_image_grid` finds the images in it again.

    Args:
      path: the file.
      synthetic: u8[N, H, W, C], C 1 or 3.
      labels: i32[N], the intended classes.
      real: u8[M, H, W, C], test images; None: there are none beside.
      real_labels: i32[M] or None.
      class_names: one per label value.
      per_class: most images of each kind in a row.
    """
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont
    from PIL.PngImagePlugin import PngInfo

    font = ImageFont.load_default(FONT_SIZE)
    classes = np.unique(labels)
    names = [str(class_names[label]) for label in classes]
    left = 2 * MARGIN + round(max((font.getlength(name) for name in names), default=0))
    scale = -(-IMAGE_PIXELS // max(synthetic.shape[1:3]))
    height, width = (side * scale + MARGIN for side in synthetic.shape[1:3])
    panels = [("synthetic", left, synthetic, labels)]
    if real is not None:
        panels.append(("real test images", left + per_class * width + GAP, real, real_labels))
    size = (HEADER + len(classes) * height, panels[-1][1] + per_class * width, 3)
    canvas = np.full(size, BACKGROUND, np.uint8)
    counts = {title: [] for title, *_ in panels}
    for row, label in enumerate(classes):
        top = HEADER + row * height
        for title, start, every, own in panels:
            images = every[own == label][:per_class]
            counts[title].append(len(images))
            for column, image in enumerate(images):
                pixels = np.repeat(np.repeat(image, scale, 0), scale, 1)
                x = start + column * width
                canvas[top : top + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for title, start, _, _ in panels:
        draw.text((start, MARGIN), title, fill=(INK,) * 3, font=font)
    for row, name in enumerate(names):
        middle = HEADER + row * height + (height - MARGIN) // 2
        draw.text((MARGIN, middle), name, fill=(INK,) * 3, font=font, anchor="lm")
    layout = {
        "class_names": names, "image": synthetic.shape[1:3], "scale": scale,
        "top": HEADER, "height": height, "width": width,
        "panels": [[title, start, counts[title]] for title, start, *_ in panels],
    }  # fmt: skip
    text = PngInfo()
    text.add_itxt(LAYOUT, json.dumps(layout))
    with replace_file(path) as file:
        picture.save(file, "PNG", pnginfo=text)


def read_image_grid(path: str | os.PathLike) -> ImageGrid | None:
    """Reads the images of what `write_image_grid` wrote; None of another picture."""
    from PIL import Image

    with Image.open(path) as picture:
        text, pixels = getattr(picture, "text", {}).get(LAYOUT), np.asarray(picture.convert("RGB"))
    if text is None:
        return None
    layout = json.loads(text)
    scale, (rows, columns) = layout["scale"], layout["image"]
    panels = {}
    for title, start, counts in layout["panels"]:
        panels[title] = []
        for row, count in enumerate(counts):
            top = layout["top"] + row * layout["height"]
            lefts = [start + column * layout["width"] for column in range(count)]
            images = [
                pixels[top : top + rows * scale : scale, left : left + columns * scale : scale]
                for left in lefts
            ]
            panels[title].append(np.stack(images) if images else np.zeros((0, rows, columns, 3)))
    return ImageGrid(layout["class_names"], panels)


def write_image_folders(
    folder: str | os.PathLike, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes every image as a PNG into the folder of its class, `<label>_<name>/NNN.png`.

    Args:
      folder: which gets one folder per class that there is an image of.
      images: u8[N, H, W, C], C 1 or 3.
      labels: i32[N].
      class_names: one per label value; what is neither letter nor digit becomes an underscore.
    """
    from PIL import Image

    digits = len(str(len(class_names) - 1))
    for label in np.unique(labels):
        name = re.sub(r"[^a-z0-9]+", "_", str(class_names[label]).lower()).strip("_")
        for number, image in enumerate(images[labels == label]):
            path = Path(folder) / f"{label:0{digits}}_{name}" / f"{number:03}.png"
            with replace_file(path) as file:
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")


def write_accuracy_plot(
    path: str | os.PathLike, accuracy_matrix: np.ndarray, title: str, *, measure: str = "accuracy"
) -> None:
    """Writes a PNG: accuracy of every task over time, and the matrix as a heat map with numbers.

    Args:
      path: the file.
      accuracy_matrix: f[T, T] in [0, 1], row t after learning task t; NaN where not yet learned.
      title: above both.
      measure: what the numbers are.
    """
    matrix = np.asarray(accuracy_matrix, float)
    num_tasks = len(matrix)
    size = min(max(4.0, 0.5 * num_tasks), 10.0)  # inches
    figure = new_figure(2 * size + 1.5, size)
    curves, heat = figure.subplots(1, 2)
    _draw_curves(curves, matrix, measure)
    _draw_matrix(heat, matrix)
    figure.suptitle(title, parse_math=False)  # a name may hold a '$'
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=100)


def write_learning_curve(
    path: str | os.PathLike,
    progress: Sequence[float],
    student: Sequence[float],
    teacher: float,
    title: str,
) -> None:
    """Writes a PNG: the student's accuracy on its way, below the teacher's.

    Args:
      path: the file.
      progress: f[N] in [0, 1], shares of the student's training.
      student: f[N] in [0, 1], its accuracies then.
      teacher: in [0, 1].
      title: above.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot(100 * np.asarray(progress), 100 * np.asarray(student), marker="o", label="student")
    axes.axhline(100 * teacher, color="black", linestyle="--", label="teacher")
    axes.set(xlabel="student's training, %", ylabel="accuracy on test images, %", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title(title, parse_math=False)
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=100)


def new_figure(width: float, height: float, layout: str = "constrained") -> "Figure":
    """An empty figure of these inches, which needs no backend but its own."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def import_matplotlib() -> None:
    """Imports it whatever the environment asks it to show figures by: that may be unknown."""
    if "matplotlib" in sys.modules:
        return
    asked = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if asked is not None:
        os.environ["MPLBACKEND"] = asked
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = asked


def _draw_curves(axes, matrix: np.ndarray, measure: str) -> None:
    """One line per task from the moment it is learned."""
    num_tasks = len(matrix)
    steps = np.arange(1, num_tasks + 1)
    for task in range(num_tasks):
        axes.plot(steps[task:], 100 * matrix[task:, task], marker="o", label=f"task {task + 1}")
    axes.set(xlabel="tasks learned", ylabel=f"{measure} among seen classes, %", ylim=(-3, 103))
    axes.set_xticks(task_ticks(num_tasks) + 1)
    axes.grid(alpha=0.3)
    if num_tasks <= 10:
        axes.legend(loc="lower left", fontsize="small")


def _draw_matrix(axes, matrix: np.ndarray) -> None:
    """Percent per cell, empty where not yet learned."""
    num_tasks = len(matrix)
    axes.imshow(np.ma.masked_invalid(100 * matrix), vmin=0, vmax=100, cmap="viridis")
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value) and num_tasks <= 20:
            ink = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink)
    ticks = task_ticks(num_tasks)
    axes.set_xticks(ticks, ticks + 1)
    axes.set_yticks(ticks, ticks + 1)
    axes.set(xlabel="test images of task", ylabel="after learning task")


def task_ticks(num_tasks: int) -> np.ndarray:
    """At most twelve of 0 .. T-1."""
    return np.arange(0, num_tasks, -(-num_tasks // 12))
