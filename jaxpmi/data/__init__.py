"""Data sets as uint8 images by class, streams of tasks, and batches."""

from jaxpmi.data.batches import channel_moments
from jaxpmi.data.batches import epoch_batches
from jaxpmi.data.class_names import imagenet_class_names
from jaxpmi.data.class_names import imagenet_labels
from jaxpmi.data.facts import DataFacts
from jaxpmi.data.facts import describe_source
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import append_classes
from jaxpmi.data.image_source import relabel
from jaxpmi.data.image_source import without_images
from jaxpmi.data.scene_source import SceneSource
from jaxpmi.data.scene_sources import open_scenes
from jaxpmi.data.scene_stream import SceneStream
from jaxpmi.data.scene_stream import scene_tasks
from jaxpmi.data.sources import dataset_name
from jaxpmi.data.sources import open_source
from jaxpmi.data.stream import PastDataError
from jaxpmi.data.stream import TaskStream
from jaxpmi.data.stream import class_order
from jaxpmi.data.stream import split_tasks

__all__ = [
    "DataFacts",
    "ImageSource",
    "PastDataError",
    "SceneSource",
    "SceneStream",
    "TaskStream",
    "append_classes",
    "channel_moments",
    "class_order",
    "dataset_name",
    "describe_source",
    "epoch_batches",
    "imagenet_class_names",
    "imagenet_labels",
    "open_scenes",
    "open_source",
    "relabel",
    "scene_tasks",
    "split_tasks",
    "without_images",
]
