"""Where images come from, and random views of them."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random views of real (and, where switched on, synthetic) images, made on device."""

    crop_scale: tuple[float, float] | None = None  # least and largest area of a random crop, as
    # shares of the image's, resized to the image's size (photographs); None: no such crop
    crop_padding: int = 0  # pixels of zero padding before a random crop; 0: no crop
    flip: bool = False  # random left-right flip; keep off where it changes the class (digits)
    noise_std: float = 0.0  # of Gaussian noise added to pixels, in normalised units


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how the classes are split into tasks."""

    source: Literal["embedded", "coloured_digits", "tfds", "folder", "npz"] = "embedded"  # kind of
    # data set; coloured_digits: the embedded ones in four colours, 40 classes with names
    name: str = "mnist5k"  # tfds only: data-set name, e.g. cifar100
    path: str | None = None  # npz: the file; folder: the folder; tfds: the data directory
    image_size: int | None = None  # resize to image_size x image_size pixels; None: as stored
    image_padding: int = 0  # black pixels added to every side, after any resize
    rgb: bool = False  # three equal channels instead of one, where images are grey
    num_classes: int | None = None  # use only the first num_classes labels; None: all
    num_tasks: int = 5  # tasks the classes are split into
    first_task_classes: int | None = None  # size of a larger first task; None: equal tasks
    class_names: str | None = None  # text file of one name per line, or of lines such as
    # "n01443537 goldfish"; None: the data set's own names, with spaces for underscores
    class_order: tuple[int, ...] | None = None  # explicit class order; None: drawn from the seed
    test_fraction: float = 0.2  # held out per class where the source has no test split
    mean: tuple[float, ...] | None = None  # per channel, of pixels in [0, 1]; None: of task 0
    std: tuple[float, ...] | None = None  # per channel, of pixels in [0, 1]; None: of task 0
    augment: AugmentConfig = AugmentConfig()
