"""Where images come from, and random views of them."""

import dataclasses
from typing import Literal

DataSource = Literal[
    "embedded",  # MNIST-5k, which comes with the package
    "coloured_digits",  # the same digits in four colours, 40 classes with names
    "tfds",  # a prepared TensorFlow data set
    "folder",  # images in one folder per class
    "npz",  # arrays
    "digit_scenes",  # scenes (images with a class per pixel) of several embedded digits
    "voc",  # PASCAL VOC 2012
    "cityscapes",  # street scenes of 21 cities
]

SCENE_KINDS = ("digit_scenes", "voc", "cityscapes")  # sources of images with label maps


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random views of real (and, where switched on, synthetic) images, made on device."""

    crop_scale: tuple[float, float] | None = None  # least and largest area of a random crop, as
    # shares of the image's, resized to the image's size (photographs); None: no such crop
    crop_padding: int = 0  # pixels of zero padding before a random crop; 0: no crop
    flip: bool = False  # random left-right flip; keep off where it changes the class (digits)
    noise_std: float = 0.0  # of Gaussian noise added to pixels, in normalised units


@dataclasses.dataclass(frozen=True)
class DigitScenesConfig:
    """Scenes of several embedded digits, made when they are opened."""

    num_train: int = 2000  # training scenes, of training digits
    num_test: int = 400  # test scenes, of test digits
    digit_classes: int = 10  # digits 0, 1, ... that are drawn from
    num_digits: int = 3  # digits of random classes in every scene, nowhere overlapping
    digit_size: int = 14  # pixels of a digit's side; the digits are stored with 28


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how the classes are split into tasks."""

    source: DataSource = "embedded"  # kind of data set; see DataSource
    name: str = "mnist5k"  # tfds only: data-set name, e.g. cifar100
    path: str | None = None  # of the file (npz) or folder (folder, tfds, voc, cityscapes)
    image_size: int | None = None  # resize to image_size x image_size pixels; None: as stored
    image_padding: int = 0  # black pixels added to every side, after any resize
    rgb: bool = False  # three equal channels instead of one, where images are grey
    num_classes: int | None = None  # use only the first num_classes labels; None: all
    num_tasks: int = 5  # tasks the classes (or the domains of scenes) are split into
    first_task_classes: int | None = None  # classes (or domains) of a larger first task; None:
    # equal tasks
    class_names: str | None = None  # text file of one name per line, or of lines such as
    # "n01443537 goldfish"; None: the data set's own names, with spaces for underscores
    class_order: tuple[int, ...] | None = None  # explicit class (or domain) order; None: drawn from
    # the seed, of domains as they come; of scenes' classes 0 is the first after the background
    test_fraction: float = 0.2  # held out per class (city) where the source has no test split
    mean: tuple[float, ...] | None = None  # per channel, of pixels in [0, 1]; None: of task 0
    std: tuple[float, ...] | None = None  # per channel, of pixels in [0, 1]; None: of task 0
    augment: AugmentConfig = AugmentConfig()
    scene_tasks: Literal["classes", "domains"] = "classes"  # scenes only: what a task adds
    scene_size: tuple[int, int] = (32, 32)  # scenes only: height and width in pixels
    digit_scenes: DigitScenesConfig = DigitScenesConfig()
