"""Data sets as uint8 images by class, streams of tasks, batches and on-device augmentation."""

from jaxpmi.data.augment import augment
from jaxpmi.data.augment import black_level
from jaxpmi.data.augment import denormalise
from jaxpmi.data.augment import normalise
from jaxpmi.data.batches import channel_moments
from jaxpmi.data.batches import epoch_batches
from jaxpmi.data.class_names import imagenet_class_names
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.sources import open_source
from jaxpmi.data.stream import PastDataError
from jaxpmi.data.stream import TaskStream
from jaxpmi.data.stream import class_order
from jaxpmi.data.stream import split_tasks

__all__ = [
    "ImageSource",
    "PastDataError",
    "TaskStream",
    "augment",
    "black_level",
    "channel_moments",
    "class_order",
    "denormalise",
    "epoch_batches",
    "imagenet_class_names",
    "normalise",
    "open_source",
    "split_tasks",
]
