"""Data sets as uint8 images by class, streams of tasks, and batches."""

from jaxpmi.data.batches import channel_moments
from jaxpmi.data.batches import epoch_batches
from jaxpmi.data.class_names import imagenet_class_names
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.sources import dataset_name
from jaxpmi.data.sources import open_source
from jaxpmi.data.stream import PastDataError
from jaxpmi.data.stream import TaskStream
from jaxpmi.data.stream import class_order
from jaxpmi.data.stream import split_tasks

__all__ = [
    "ImageSource",
    "PastDataError",
    "TaskStream",
    "channel_moments",
    "class_order",
    "dataset_name",
    "epoch_batches",
    "imagenet_class_names",
    "open_source",
    "split_tasks",
]
