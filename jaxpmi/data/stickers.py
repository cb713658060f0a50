"""The embedded stickers: colour pictures of ten kinds of things, cut out, on white.

Emoji of eight sets, and cut-out photographs and drawings of Tux Paint, 32 x 32 pixels. An object,
such as the banana, is in the training or in the test split with every picture of it: those of all
sets, skin tones and genders. STICKERS_LICENSE.md says where every set comes from.
"""

from pathlib import Path

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.npz_source import array_source

PATH = Path(__file__).with_name("stickers.npz")
CLASSES = ("animal", "building", "face", "flag", "food")
CLASSES += ("produce", "hand", "heart", "person", "vehicle")


def open_stickers(config: DataConfig) -> ImageSource:
    """Opens the stickers, u8[32, 32, 3], with the split that is stored."""
    with np.load(PATH, allow_pickle=False) as arrays:
        splits = {
            split: (arrays[f"x_{split}"], arrays[f"y_{split}"].astype(np.int32))
            for split in ("train", "test")
        }
    return array_source("stickers", splits, config.image_size, CLASSES)
