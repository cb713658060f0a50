"""open_scenes: digit scenes, PASCAL VOC or Cityscapes as one type."""

from jaxpmi.config import DataConfig
from jaxpmi.data.cityscapes import open_cityscapes
from jaxpmi.data.digit_scenes import open_digit_scenes
from jaxpmi.data.scene_source import SceneSource
from jaxpmi.data.voc import open_voc

SCENE_SOURCES = {
    "digit_scenes": open_digit_scenes,
    "voc": open_voc,
    "cityscapes": open_cityscapes,
}


def open_scenes(config: DataConfig) -> SceneSource:
    """Opens the scenes that `config` names; files are read later, by `SceneSource.read`."""
    if config.source not in SCENE_SOURCES:
        raise ValueError(
            f"data source '{config.source}' has no label maps; use one of {list(SCENE_SOURCES)}."
        )
    return SCENE_SOURCES[config.source](config)
