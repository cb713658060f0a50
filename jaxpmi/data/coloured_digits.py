"""The embedded digits in colours: classes that are named by two words, such as "red three".

Every image of MNIST-5k is painted in one colour, so 40 classes of 100 training and 25 test images
come out of the 5,000 real digits, and no image is there twice. A class is a digit and a colour;
whoever knows both words can name a class that he has never seen.
"""

import dataclasses

import numpy as np

from jaxpmi.data.image_source import ImageSource

COLOURS = {
    "red": (230, 60, 50),
    "green": (70, 200, 80),
    "blue": (80, 110, 255),
    "yellow": (240, 210, 60),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def paint_digits(digits: ImageSource) -> ImageSource:
    """Paints grey digits: class `10 * colour + digit`, u8[H, W, 3], black stays black.

    In every split the images of a digit take turns at the colours, so classes are equally large
    where digits are.
    """
    colours = {split: _colour_of(labels) for split, labels in digits.labels.items()}
    palette = np.asarray(list(COLOURS.values()), np.float32) / 255.0

    def reader(split: str, indices: np.ndarray) -> np.ndarray:
        grey = digits.reader(split, indices).astype(np.float32)
        paint = palette[colours[split][indices]][:, None, None, :]
        return np.rint(grey * paint).astype(np.uint8)

    return dataclasses.replace(
        digits,
        name="coloured_digits",
        class_names=tuple(f"{colour} {digit}" for colour in COLOURS for digit in DIGITS),
        image_shape=(*digits.image_shape[:2], 3),
        labels={
            split: (10 * colours[split] + labels).astype(np.int32)
            for split, labels in digits.labels.items()
        },
        reader=reader,
    )


def _colour_of(labels: np.ndarray) -> np.ndarray:
    """The colour i64[N] of every image: the n-th of a digit has colour n modulo their number."""
    turn = np.zeros(len(labels), np.int64)
    for digit in np.unique(labels):
        members = np.flatnonzero(labels == digit)
        turn[members] = np.arange(len(members))
    return turn % len(COLOURS)
