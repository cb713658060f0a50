"""PASCAL VOC as a SceneSource: 20 classes of objects and their background."""

from pathlib import Path

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.class_names import TEXT
from jaxpmi.data.scene_files import AS_STORED
from jaxpmi.data.scene_files import SceneFile
from jaxpmi.data.scene_files import check_files
from jaxpmi.data.scene_files import open_scene_files
from jaxpmi.data.scene_source import SceneSource

CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
LABELS = "SegmentationClass"  # the folder of the label maps that came with the photographs


def open_voc(config: DataConfig) -> SceneSource:
    """Opens `config.path`, the folder of JPEGImages/, SegmentationClass/ and ImageSets/.

    Training scenes are those of train.txt or, where there are both trainaug.txt and
    SegmentationClassAug/, of those; test scenes those of val.txt. A palette's index is the label.
    """
    if config.path is None:
        raise ValueError("data.source='voc' needs data.path, the folder of JPEGImages/.")
    root = Path(config.path)
    lists = root / "ImageSets" / "Segmentation"
    if not lists.is_dir():
        raise FileNotFoundError(
            f"{lists} is not a folder; data.path must be the one of JPEGImages/, "
            "SegmentationClass/ and ImageSets/, VOCdevkit/VOC2012 of the published archive."
        )
    augmented = (lists / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir()
    train = ("trainaug.txt", "SegmentationClassAug") if augmented else ("train.txt", LABELS)
    splits = {"train": train, "test": ("val.txt", LABELS)}
    files = {
        split: _list_files(root, lists / file, labels) for split, (file, labels) in splits.items()
    }
    return open_scene_files(
        name="voc",
        files=files,
        scene_size=config.scene_size,
        class_names=CLASS_NAMES,
        has_background=True,
        domains={split: np.zeros(len(each), np.int32) for split, each in files.items()},
        domain_names=("photographs",),
    )


def _list_files(root: Path, names: Path, labels: str) -> list[SceneFile]:
    """The scenes that a text file names, one per line."""
    if not names.is_file():
        raise FileNotFoundError(f"{names} does not exist; it must name one image per line.")
    files = [
        SceneFile(root / "JPEGImages" / f"{name}.jpg", root / labels / f"{name}.png", AS_STORED)
        for name in names.read_text(TEXT).split()
    ]
    if not files:
        raise ValueError(f"{names} names no image; it must name one per line.")
    check_files(files, f"{names} names them, so add them, or remove their names from it.")
    return files
