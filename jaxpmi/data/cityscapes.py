"""Cityscapes as a SceneSource whose domains are cities.

The order of the cities, and that the training and validation folders are pooled and split anew
within every city, are those of Douillard et al. (2021), "PLOP: Learning without Forgetting for
Continual Semantic Segmentation".
"""

from pathlib import Path

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.image_source import shorten
from jaxpmi.data.image_source import stratified_split
from jaxpmi.data.scene_files import AS_STORED
from jaxpmi.data.scene_files import SceneFile
from jaxpmi.data.scene_files import check_files
from jaxpmi.data.scene_files import open_scene_files
from jaxpmi.data.scene_source import SceneSource
from jaxpmi.types import IGNORED_LABEL

CLASSES = {  # name -> its number in *_labelIds.png; its place here is that in *_labelTrainIds.png
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
CITIES = (
    *("aachen", "bremen", "darmstadt", "erfurt", "hanover", "krefeld", "strasbourg", "tubingen"),
    *("weimar", "bochum", "cologne", "dusseldorf", "hamburg", "jena", "monchengladbach"),
    *("stuttgart", "ulm", "zurich", "frankfurt", "lindau", "munster"),
)
FOLDERS = ("train", "val")  # of leftImg8bit/ and gtFine/; test/ has no label maps
IMAGE_END = "_leftImg8bit.png"


def open_cityscapes(config: DataConfig) -> SceneSource:
    """Opens `config.path`, the folder of leftImg8bit/ and gtFine/.

    Every city's scenes are split into training and test ones by `config.test_fraction`.
    """
    if config.path is None:
        raise ValueError("data.source='cityscapes' needs data.path, the folder of leftImg8bit/.")
    root = Path(config.path)
    cities = _list_cities(root)
    files = [scene for scenes in cities.values() for scene in scenes]
    check_files(files, "unpack gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip there.")
    domains = np.repeat(np.arange(len(cities)), [*map(len, cities.values())]).astype(np.int32)
    rows = dict(
        zip(("train", "test"), stratified_split(domains, config.test_fraction), strict=True)
    )
    return open_scene_files(
        name="cityscapes",
        files={split: [files[i] for i in chosen] for split, chosen in rows.items()},
        scene_size=config.scene_size,
        class_names=tuple(CLASSES),
        has_background=False,
        domains={split: domains[chosen] for split, chosen in rows.items()},
        domain_names=tuple(cities),
    )


def _list_cities(root: Path) -> dict[str, list[SceneFile]]:
    """The scenes of every city that there is, in the order of `CITIES`."""
    folders = [root / "leftImg8bit" / name for name in FOLDERS]
    if not any(folder.is_dir() for folder in folders):
        raise FileNotFoundError(
            f"neither {folders[0]} nor {folders[1]} is a folder; data.path must be the one of "
            "leftImg8bit/ and gtFine/, unpacked from the published archives."
        )
    found = {entry for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    found = {entry for entry in found if entry.is_dir() and not entry.name.startswith(".")}
    unknown = sorted({entry.name for entry in found} - set(CITIES))
    if unknown:
        raise ValueError(
            f"{root / 'leftImg8bit'} has the unknown city folder(s) {shorten(unknown)}; move them "
            f"away, as the cities are {', '.join(CITIES)}."
        )
    table = _train_ids()
    scenes = {}
    for city in CITIES:
        places = sorted(entry for entry in found if entry.name == city)
        images = [image for place in places for image in sorted(place.glob(f"*{IMAGE_END}"))]
        if places:
            scenes[city] = [_scene_file(root, image, table) for image in images]
    few = [city for city, files in scenes.items() if len(files) < 2]
    if few:
        raise ValueError(
            f"city folder(s) {shorten(few)} of {root / 'leftImg8bit'} hold fewer than 2 images "
            f"*{IMAGE_END}, to train and to test; add some or remove the folder."
        )
    return scenes


def _scene_file(root: Path, image: Path, table: np.ndarray) -> SceneFile:
    """The scene of an image leftImg8bit/<folder>/<city>/..., with the label map that there is."""
    city = image.parent
    stem = image.name.removesuffix(IMAGE_END)
    labels = root / "gtFine" / city.parent.name / city.name
    ready = labels / f"{stem}_gtFine_labelTrainIds.png"
    if ready.is_file():
        return SceneFile(image, ready, AS_STORED)
    return SceneFile(image, labels / f"{stem}_gtFine_labelIds.png", table)


def _train_ids() -> np.ndarray:
    """Returns u8[256], the class of every number in *_labelIds.png; 255 where there is none."""
    table = np.full(256, IGNORED_LABEL, np.uint8)
    table[list(CLASSES.values())] = np.arange(len(CLASSES))
    return table
