"""Scenes of several real digits: the embedded data set for semantic segmentation.

Training scenes hold only training digits of MNIST-5k, test scenes only test digits. A pixel's class
is that of the digit whose stroke it is; all others are background. In the domains, the same kind
of scenes stands on another ground.
"""

from typing import NamedTuple

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.coloured_digits import DIGITS
from jaxpmi.data.image_source import digest_arrays
from jaxpmi.data.image_source import keep_first_classes
from jaxpmi.data.scene_source import SceneSource
from jaxpmi.data.sources import open_embedded

NUM_TEST = 400  # scenes for testing
NUM_DIGITS = 3  # of random classes in every scene, nowhere overlapping
DIGIT_SIZE = 14  # pixels of a digit's side; they are stored with 28
STROKE = 64  # least grey value of a pixel that has the digit's class
GROUND = 100  # greatest grey value of the noise and of the stripes
STRIPE = 4  # pixels of a stripe, along a row
SEEDS = {"train": 0, "test": 1}  # of the digits, their places and the grounds


class Layout(NamedTuple):
    """Which digits of a split stand where in n scenes of d digits."""

    digits: np.ndarray  # i64[n, d], rows of the split
    tops: np.ndarray  # i64[n, d], pixels above a digit
    lefts: np.ndarray  # i64[n, d], pixels left of a digit


def open_digit_scenes(config: DataConfig) -> SceneSource:
    """Makes scenes of several digits, grey, the same ones whenever it is called."""
    height, width = config.scene_size
    check_room(config.scene_size)
    grounds = GROUNDS if config.scene_tasks == "domains" else {"black": GROUNDS["black"]}
    source = open_embedded(DataConfig(image_size=DIGIT_SIZE))
    source = keep_first_classes(source, config.num_classes)
    scenes, domains = {}, {}
    for split, size in (("train", config.num_scenes), ("test", NUM_TEST)):
        random = np.random.RandomState(SEEDS[split])
        layout = lay_out(
            source.labels[split],
            size,
            config.scene_size,
            random,
            num_digits=NUM_DIGITS,
            side=DIGIT_SIZE,
        )
        digits = source.read(split, np.arange(len(source.labels[split])))[..., 0]
        strokes, labels = draw(layout, digits, source.labels[split], config.scene_size)
        domains[split] = (np.arange(size) % len(grounds)).astype(np.int32)
        for domain, ground in enumerate(grounds.values()):
            members = domains[split] == domain
            strokes[members] = ground(strokes[members], random)
        scenes[split] = np.stack([strokes, labels], axis=-1)
    return SceneSource(
        name="digit_scenes",
        class_names=("background", *DIGITS[: config.num_classes]),
        has_background=True,
        image_shape=(height, width, 1),
        domain_names=tuple(grounds),
        domains=domains,
        reader=lambda split, indices: scenes[split][indices],
        label_reader=lambda split, indices: scenes[split][indices, ..., -1],
        digest=digest_arrays(scenes.values()),
    )


def check_room(scene_size: tuple[int, int]) -> None:
    """Raises if the digits cannot stand side by side in a scene."""
    height, width = scene_size
    room = (height // DIGIT_SIZE) * (width // DIGIT_SIZE)
    if room < NUM_DIGITS:
        raise ValueError(
            f"{NUM_DIGITS} digits of {DIGIT_SIZE}x{DIGIT_SIZE} pixels do not fit a scene of "
            f"{height}x{width}, which has room for {room} without overlap; raise data.scene_size."
        )


def lay_out(
    labels: np.ndarray,
    size: int,
    scene_size: tuple[int, int],
    random: np.random.RandomState,
    *,
    num_digits: int,
    side: int,
) -> Layout:
    """Draws digits of uniform classes for `size` scenes, and places that do not overlap.

    Args:
      labels: i32[N], the classes of the split's digits.
      size: number of scenes n.
      scene_size: height and width of a scene.
      random: advanced.
      num_digits: per scene, d.
      side: of a digit, in pixels.
    """
    shape = size, num_digits
    counts = np.bincount(labels)
    classes = random.randint(len(counts), size=shape)
    turn = (random.uniform(size=shape) * counts[classes]).astype(np.int64)
    digits = np.argsort(labels, kind="stable")[(np.cumsum(counts) - counts)[classes] + turn]
    in_rows = place(shape, side, scene_size, random)
    in_columns = place(shape, side, scene_size[::-1], random)[::-1]
    lying = random.uniform(size=(size, 1)) < 0.5
    tops, lefts = np.where(lying, in_rows, in_columns)
    return Layout(digits, tops, lefts)


def place(
    shape: tuple[int, int], side: int, scene_size: tuple[int, int], random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the tops and lefts, i64[n, d] each, of squares that stand in rows without overlap.

    Every square draws one cell of a grid, which decides its row. The room that the rows leave free
    falls anywhere between them, and within a row anywhere between its squares.
    """
    height, width = scene_size
    columns = width // side
    cells = np.argsort(random.uniform(size=(shape[0], height // side * columns)), axis=1)
    rows = cells[:, : shape[1]] // columns
    same_row = rows[:, :, None] == rows[:, None, :]  # [n, d, d]
    heads = np.argmax(same_row, axis=2)  # the first square of a square's row
    first = heads == np.arange(shape[1])
    tops = spread(np.broadcast_to(first[:, None], same_row.shape), side, height, random)
    lefts = spread(same_row, side, width, random)
    return np.take_along_axis(tops, heads, axis=1), lefts


def spread(beside: np.ndarray, side: int, length: int, random: np.random.RandomState) -> np.ndarray:
    """Draws i64[n, d], the starts of squares in a line of `length` pixels, in any order.

    Args:
      beside: bool[n, d, d], which squares (last axis) share a square's line; itself among them.
      side: pixels of a square.
      length: of the line, enough for its squares.
      random: advanced.
    """
    where = random.uniform(size=beside.shape[:2])
    before = np.sum(beside & (where[:, None, :] < where[:, :, None]), axis=2)
    free = length - side * np.sum(beside, axis=2)
    return before * side + (where * (free + 1)).astype(np.int64)


def draw(
    layout: Layout, digits: np.ndarray, labels: np.ndarray, scene_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns grey digits on black and their label maps, u8[n, H, W] each.

    Args:
      layout: n scenes of d digits.
      digits: u8[N, S, S].
      labels: i32[N].
      scene_size: height H and width W.
    """
    pixel = np.arange(digits.shape[1])
    y = layout.tops[..., None, None] + pixel[:, None]
    x = layout.lefts[..., None, None] + pixel
    scene = np.arange(len(layout.tops))[:, None, None, None]
    grey = digits[layout.digits]  # [n, d, S, S]
    classes = 1 + labels[layout.digits].astype(np.uint8)[..., None, None]
    strokes = np.zeros((len(layout.tops), *scene_size), np.uint8)
    label_maps = np.zeros_like(strokes)
    strokes[scene, y, x] = grey
    label_maps[scene, y, x] = np.where(grey >= STROKE, classes, 0)
    return strokes, label_maps


def black(strokes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """White strokes, u8[n, H, W], as they are."""
    del random
    return strokes


def white(strokes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Black strokes on white."""
    del random
    return 255 - strokes


def noise(strokes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """White strokes on pixels of uniform random grey."""
    return np.maximum(strokes, random.randint(GROUND + 1, size=strokes.shape).astype(np.uint8))


def stripes(strokes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """White strokes on diagonal stripes, black and grey, that begin anywhere."""
    height, width = strokes.shape[1:]
    phase = random.randint(2 * STRIPE, size=(len(strokes), 1, 1))
    diagonal = np.arange(height)[:, None] + np.arange(width) + phase
    return np.maximum(strokes, (GROUND * (diagonal // STRIPE % 2)).astype(np.uint8))


GROUNDS = {"black": black, "white": white, "noise": noise, "stripes": stripes}  # by domain
