"""Checks of a `DataConfig` that need no data; every error is one sentence."""

from jaxpmi.config.data import SCENE_KINDS
from jaxpmi.config.data import DataConfig

PLACES = {
    "npz": "the .npz file",
    "folder": "a folder of class folders",
    "voc": "the folder of JPEGImages/ (VOC2012)",
    "cityscapes": "the folder of leftImg8bit/ and gtFine/",
}
# What comes with the package.
MADE_HERE = ("embedded", "coloured_digits", "stickers", "digit_scenes")

NOT_FOR_SCENES = {  # field -> the value that asks for nothing
    "image_size": None,
    "rgb": False,
    "num_classes": None,
    "class_names": None,
    "ground": 255,
}
ONLY_FOR = {  # field -> the value that asks for nothing, and the sources that read it
    "features": (None, ("tfds",)),
    "ground": (255, ("folder", "tfds")),
}


def check_data(data: DataConfig) -> None:
    """Raises a ValueError for the first setting that cannot work."""
    if data.source in PLACES and data.path is None:
        raise ValueError(
            f"data.source='{data.source}' needs data.path, {PLACES[data.source]}; set it."
        )
    if data.source in MADE_HERE and data.path is not None:
        others = "voc or cityscapes" if data.source in SCENE_KINDS else "npz, folder or tfds"
        raise ValueError(
            f"data.path='{data.path}' is not read by data.source='{data.source}'; set data.source "
            f"to {others}."
        )
    if data.source in SCENE_KINDS:
        _check_scenes(data)
    for name, (default, sources) in ONLY_FOR.items():
        if getattr(data, name) != default and data.source not in sources:
            raise ValueError(
                f"data.{name}={getattr(data, name)!r} is not read by data.source='{data.source}', "
                f"but by {' and '.join(map(repr, sources))}; set it to {default}."
            )
    if data.source not in SCENE_KINDS and isinstance(data.tasks, tuple) and data.tasks[:1] == (1,):
        raise ValueError(
            f"data.tasks={data.tasks} begins with 1 class, which alone cannot be told from "
            "anything; give the first task 2 or more."
        )
    if data.tasks == ():
        raise ValueError(
            "data.tasks=() has no task; give the number of tasks, or of the classes of each."
        )
    order = data.class_order or ()
    twice = [label for label in order if order.count(label) > 1]
    if twice:
        raise ValueError(
            f"data.class_order names class {twice[0]!r} more than once; every class may come once."
        )
    check_areas("data.augment.crop_scale", data.augment.crop_scale)
    if (data.mean is None) != (data.std is None):
        raise ValueError(
            f"data.mean={data.mean} and data.std={data.std} must be given together; set both or "
            "neither."
        )
    if data.mean is not None and (len(data.mean) != len(data.std) or len(data.mean) not in (1, 3)):
        raise ValueError(
            f"data.mean has {len(data.mean)} and data.std {len(data.std)} value(s); give one per "
            "channel in both, 1 for grey or 3 for RGB images."
        )


def _check_scenes(data: DataConfig) -> None:
    """Images with a class per pixel: what is not for them, and what a task may add."""
    for name, default in NOT_FOR_SCENES.items():
        if (data.source, name) == ("digit_scenes", "num_classes"):
            continue
        if getattr(data, name) != default:
            raise ValueError(
                f"data.{name}={getattr(data, name)!r} is not read by data.source='{data.source}'; "
                f"set it to {default} (data.scene_size is the size of scenes)."
            )
    if data.augment.crop_scale is not None:
        raise ValueError(
            f"data.augment.crop_scale={data.augment.crop_scale} would blend the labels of "
            f"neighbouring pixels of data.source='{data.source}'; set it to None, and crop_padding "
            "for shifts."
        )
    if (data.source, data.scene_tasks) == ("voc", "domains"):
        raise ValueError(
            "data.source='voc' has one domain, so data.scene_tasks='domains' makes no tasks; use "
            "'classes'."
        )
    if (data.source, data.scene_tasks) == ("cityscapes", "classes"):
        raise ValueError(
            "data.source='cityscapes' has no background that future classes could be, so "
            "data.scene_tasks='classes' makes no tasks; use 'domains'."
        )


def check_areas(path: str, areas: tuple[float, float] | None) -> None:
    """Raises a ValueError unless the least area of a random crop comes first."""
    if areas is not None and areas[0] > areas[1]:
        raise ValueError(f"{path}={areas} must ascend; give the smallest area first.")
