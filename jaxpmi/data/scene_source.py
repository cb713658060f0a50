"""SceneSource: images whose every pixel has a class, as data sets of semantic segmentation are.

A *scene* is an image with its label map as the last channel, u8[H, W, C+1], so whatever moves
pixels (crops, flips, batches, shards) moves their labels with them.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from jaxpmi.data.image_source import PassedOver
from jaxpmi.data.image_source import check_rows
from jaxpmi.types import IGNORED_LABEL

BATCH = 256  # label maps that are in memory at once while a split is searched for its classes


@dataclasses.dataclass(frozen=True, eq=False)
class SceneSource:
    """Scenes of two splits, 'train' and 'test', that are read on request.

    Labels are 0..K-1, or 255 where a pixel is to be ignored. A domain is where, or how, a scene
    was taken: a city, a kind of ground.
    """

    name: str
    class_names: tuple[str, ...]  # of the labels 0..K-1
    has_background: bool  # label 0 stands for whatever is none of the classes
    image_shape: tuple[int, int, int]  # H, W, C of the image alone; C is 1 (grey) or 3 (RGB)
    domain_names: tuple[str, ...]
    domains: Mapping[str, np.ndarray]  # split -> i32[N], each the domain of a scene
    reader: Callable[[str, np.ndarray], np.ndarray]  # (split, i64[n]) -> u8[n, H, W, C+1]
    label_reader: Callable[[str, np.ndarray], np.ndarray]  # (split, i64[n]) -> u8[n, H, W]
    passed_over: tuple[PassedOver, ...] = ()
    digest: str = ""  # of the scenes as they are stored, or of what stands for them
    _shows: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of labels K, background included."""
        return len(self.class_names)

    def size(self, split: str) -> int:
        """Number of scenes N of a split."""
        return len(self.domains[split])

    def read(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Returns u8[n, H, W, C+1], the scenes at `indices` (i32[n]) of a split."""
        return self.reader(split, check_rows(self.name, self.domains, split, indices))

    def shows(self, split: str) -> np.ndarray:
        """Returns bool[N, K]: which labels each scene of a split has; found on the first call."""
        if split not in self._shows:
            batches = np.arange(0, self.size(split), BATCH)
            found = [self._find(split, start) for start in batches]
            self._shows[split] = np.concatenate([np.zeros((0, self.num_classes), bool), *found])
        return self._shows[split]

    def _find(self, split: str, start: int) -> np.ndarray:
        """Returns bool[n, K] of at most BATCH scenes from `start` on."""
        rows = np.arange(start, min(start + BATCH, self.size(split)))
        labels = self.label_reader(split, rows).reshape(len(rows), -1)
        shown = np.zeros((len(rows), 256), bool)
        np.put_along_axis(shown, labels.astype(np.int64), True, axis=1)
        strange = np.argwhere(shown[:, self.num_classes : IGNORED_LABEL])
        if len(strange):
            row, label = strange[0]
            raise ValueError(
                f"scene {rows[row]} of split '{split}' of '{self.name}' has the label "
                f"{label + self.num_classes}; labels are 0..{self.num_classes - 1}, or "
                f"{IGNORED_LABEL} for pixels to ignore."
            )
        return shown[:, : self.num_classes]
