"""open_source: embedded digits, a .npz file, an image folder or a TFDS data set as one type."""

from pathlib import Path

import numpy as np

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import DataConfig
from jaxpmi.data import folder_source
from jaxpmi.data import image_source
from jaxpmi.data import npz_source
from jaxpmi.data import tfds_source
from jaxpmi.data.class_names import name_classes
from jaxpmi.data.coloured_digits import paint_digits
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.npz_source import array_source
from jaxpmi.data.stickers import open_stickers

EMBEDDED_PATH = Path(__file__).with_name("mnist5k.npz")


def open_source(config: DataConfig) -> ImageSource:
    """Opens the data set that `config` names; pixels are read later, by `ImageSource.read`."""
    if config.source in SCENE_KINDS:
        raise ValueError(
            f"data source '{config.source}' has a class per pixel, none per image; open it with "
            f"open_scenes, or use one of {list(SOURCES)}."
        )
    source = SOURCES[config.source](config)
    source = image_source.hold_out_test_images(source, config.test_fraction)
    source = name_classes(source, config.class_names)
    source = image_source.keep_first_classes(source, config.num_classes)
    source = image_source.repeat_channels(source, config.rgb)
    return image_source.check_every_class(source)


def dataset_name(config: DataConfig) -> str:
    """What to call the data set: its name, its kind or its place."""
    if config.source in ("embedded", "tfds"):
        return config.name
    return config.source if config.path is None else config.path


def open_embedded(config: DataConfig) -> ImageSource:
    """Opens MNIST-5k: 28x28 grey digits, per class 400 for training and 100 for testing."""
    with np.load(EMBEDDED_PATH, allow_pickle=False) as arrays:
        images = arrays["x"].reshape(-1, 28, 28, 1)
        labels = arrays["y"].astype(np.int32)
    source = array_source("mnist5k", {"train": (images, labels)}, config.image_size)
    # The split is part of the benchmark, so config.test_fraction does not move it.
    return image_source.hold_out_test_images(source, test_fraction=0.2)


def open_coloured_digits(config: DataConfig) -> ImageSource:
    """Opens MNIST-5k in colours: 40 classes named "red zero" to "yellow nine", RGB."""
    return paint_digits(open_embedded(config))


SOURCES = {
    "embedded": open_embedded,
    "coloured_digits": open_coloured_digits,
    "stickers": open_stickers,
    "npz": npz_source.open_npz,
    "folder": folder_source.open_folder,
    "tfds": tfds_source.open_tfds,
}
