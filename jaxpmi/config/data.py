"""Where images come from, and random views of them."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.places import PLACE
from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import Fraction
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import OpenFraction
from jaxpmi.config.ranges import Positive
from jaxpmi.config.ranges import PositiveFraction
from jaxpmi.config.ranges import Range
from jaxpmi.config.settings import Settings

DataSource = Literal[
    "embedded",
    "coloured_digits",
    "stickers",
    "tfds",
    "folder",
    "npz",
    "digit_scenes",
    "voc",
    "cityscapes",
]

SCENE_KINDS = ("digit_scenes", "voc", "cityscapes")  # sources of images with label maps


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Settings):
    """Random views of real (and, where switched on, synthetic) images, made on device.

    Attributes:
      crop_scale: least and largest area of a random crop, as shares of the image's, resized to the
        image's size (photographs); None: no such crop.
      crop_padding: pixels of zero padding before a random crop; 0: no crop.
      flip: random left-right flip; keep off where it changes the class (digits).
    """

    crop_scale: Annotated[tuple[float, float] | None, PositiveFraction] = None
    crop_padding: Annotated[int, NonNegative] = 0
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Where the images come from and how the classes are split into tasks.

    Attributes:
      source: kind of data set: embedded (MNIST-5k, which comes with the package), coloured_digits
        (the same digits in four colours, 40 classes with names), stickers (colour pictures of ten
        kinds of things, which come with the package), tfds (a prepared TensorFlow data set), folder
        (images in one folder per class), npz (arrays), digit_scenes (scenes, which are images with
        a class per pixel, of several embedded digits), voc (PASCAL VOC 2012) or cityscapes (street
        scenes of 21 cities).
      name: tfds only: data-set name, e.g. cifar100.
      features: tfds only: the names of its image and of its label; None: those that it declares, or
        the only ones of their kind.
      path: of the file (npz) or folder (folder, tfds, voc, cityscapes).
      image_size: resize to image_size x image_size pixels; None: as stored.
      rgb: three equal channels instead of one, where images are grey.
      ground: grey value that transparent pixels are laid over; 255: white.
      num_classes: use only the first num_classes labels, of scenes that of digit_scenes alone;
        None: all.
      tasks: how many tasks of equal size; or the number of classes (domains of scenes) of each.
      class_names: text file of one name per line, or of lines such as "n01443537 goldfish"; None:
        the data set's own names, with spaces for underscores.
      class_order: all classes (or domains) in the order of learning, by number or by name; None:
        drawn from the seed, of domains as they come; of scenes' classes 0 is the first after the
        background.
      test_fraction: held out per class (city) where the source has no test split.
      mean: per channel, of pixels in [0, 1]; None: of task 0.
      std: per channel, of pixels in [0, 1]; None: of task 0.
      augment: random views of real images.
      scene_tasks: scenes only: what a task adds.
      scene_size: scenes only: height and width in pixels.
      num_scenes: source digit_scenes only: training scenes.
    """

    source: DataSource = "embedded"
    name: str = "mnist5k"
    features: tuple[str, str] | None = None
    path: Annotated[str | None, PLACE] = None
    image_size: Annotated[int | None, AtLeast(1)] = None
    rgb: bool = False
    ground: Annotated[int, Range(0, 255)] = 255
    num_classes: Annotated[int | None, AtLeast(2)] = None
    tasks: Annotated[int | tuple[int, ...], AtLeast(1)] = 5
    class_names: Annotated[str | None, PLACE] = None
    class_order: Annotated[tuple[int | str, ...] | None, NonNegative] = None
    test_fraction: Annotated[float, OpenFraction] = 0.2
    mean: Annotated[tuple[float, ...] | None, Fraction] = None
    std: Annotated[tuple[float, ...] | None, Positive] = None
    augment: AugmentConfig = AugmentConfig()
    scene_tasks: Literal["classes", "domains"] = "classes"
    scene_size: Annotated[tuple[int, int], AtLeast(1)] = (32, 32)
    num_scenes: Annotated[int, AtLeast(1)] = 2000
