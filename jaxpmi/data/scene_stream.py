"""SceneStream: tasks of scenes, which add classes to tell apart or domains to do it in.

By classes, the protocol is the overlapped one of class-incremental segmentation: a scene comes in
every task of whose classes it shows one, and there whatever is of another task, old or future, is
labelled background ("background shift"). By domains, all classes are labelled in every task.

Source: Cermelli et al. (2020), "Modeling the Background for Incremental Learning in Semantic
Segmentation"; Douillard et al. (2021), "PLOP: Learning without Forgetting for Continual Semantic
Segmentation".
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.image_source import shorten
from jaxpmi.data.scene_source import SceneSource
from jaxpmi.data.stream import Stream
from jaxpmi.data.stream import Tasks
from jaxpmi.data.stream import class_order
from jaxpmi.data.stream import learning_order
from jaxpmi.data.stream import pick
from jaxpmi.data.stream import split_tasks
from jaxpmi.types import IGNORED_LABEL


def scene_tasks(config: DataConfig, source: SceneSource, seed: int) -> Tasks:
    """Returns the tasks of a `SceneStream`, as `config.scene_tasks` asks: classes or domains.

    Classes are label values without the background, in `config.class_order` (whose 0 is the first
    class after the background) or in an order drawn from the seed; domains are in
    `config.class_order` or as they come. A task may be of one class or domain.
    """
    if config.scene_tasks == "classes":
        names = source.class_names[1:]
        order = [1 + label for label in class_order(config, names, seed)]
    elif config.class_order is not None:
        order = class_order(config, source.domain_names, seed)
    else:
        order = range(len(source.domain_names))
    return split_tasks(order, config.tasks, least=1, unit=config.scene_tasks)


class SceneStream(Stream):
    """Gives out the scenes of one task at a time, u8[n, H, W, C+1], labels in order of learning.

    By classes, the background keeps label 0, the class learnt first has label 1, and so on; by
    domains, labels are those of the source. Pixels to be ignored stay 255. Training scenes are
    those of the current task only; test scenes those of every task seen so far. Anything else
    raises `PastDataError`.
    """

    def __init__(
        self,
        source: SceneSource,
        tasks: Tasks,
        *,
        by: Literal["classes", "domains"],
        allow_past: bool = False,
        cache_bytes: int = 2**30,
    ):
        """Sets the stream before its first task.

        Args:
          source: the data set.
          tasks: disjoint; by classes, the labels of each task, without the background's; by
            domains, the domains of each task.
          by: what a task adds.
          allow_past: lets all seen training scenes be read; only for the joint upper bound.
          cache_bytes: the current task's training scenes are kept in memory if they fit.
        """
        classes, names = by == "classes", source.class_names
        if classes and not source.has_background:
            raise ValueError(
                f"scenes of '{source.name}' have no background, as which classes of other tasks "
                "could be labelled; learn them by domains (data.scene_tasks='domains')."
            )
        known = range(1, source.num_classes) if classes else range(len(source.domain_names))
        order = learning_order(tasks, known, by)
        if classes:
            names = (names[0], *(names[label] for label in order))
        super().__init__(tasks, names, source.image_shape, allow_past, cache_bytes)
        self.by = by
        self._source = source
        self._order = order
        self._belongs = {split: self._find_tasks(split) for split in ("train", "test")}

    def task_classes(self, task: int) -> range:
        """Returns the labels that a task is about: its own, by domains all; task 0 has label 0."""
        self._check_exists(task)
        if self.by == "domains":
            return range(self.num_classes)
        start = 1 + sum(len(classes) for classes in self.tasks[:task])
        return range(start if task else 0, start + len(self.tasks[task]))

    def labelled_classes(self, task: int) -> np.ndarray:
        """Returns i32[n], ascending, what the task's training scenes tell apart: 0 is among it."""
        return np.union1d([0], self.task_classes(task)).astype(np.int32)

    def seen_train_size(self) -> int:
        """Returns the number of training scenes of all tasks so far; needs `allow_past`."""
        return len(self._seen_train())

    def seen_train_images(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns u8[n, H, W, C+1], training scenes of all tasks so far; needs `allow_past`.

        Every scene is there once, with all classes seen so far labelled.
        """
        return self._read_seen("train", pick(self._seen_train(), indices))

    def test_size(self, task: int) -> int:
        """Returns the number of test scenes of any task, past or future."""
        self._check_exists(task)
        return len(self._rows("test", [task]))

    def test_images(self, task: int, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns u8[n, H, W, C+1], the test scenes of a task seen so far; None: all.

        All classes seen so far are labelled; future ones are background.
        """
        self._check_seen(task)
        return self._read_seen("test", pick(self._rows("test", [task]), indices))

    def seen_test_size(self) -> int:
        """Returns the number of test scenes of all tasks so far."""
        return len(self._rows("test", range(self.task + 1)))

    def seen_test_images(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns u8[n, H, W, C+1], test scenes of all tasks so far, each once; None: all."""
        return self._read_seen("test", pick(self._rows("test", range(self.task + 1)), indices))

    @property
    def _image_bytes(self) -> int:
        height, width, channels = self.image_shape
        return height * width * (channels + 1)

    def _find_tasks(self, split: str) -> np.ndarray:
        """Returns bool[N, T], which tasks a scene belongs to; raises if a task has none."""
        if self.by == "classes":
            shown = self._source.shows(split)
            columns = [shown[:, list(task)].any(axis=1) for task in self.tasks]
        else:
            columns = [np.isin(self._source.domains[split], task) for task in self.tasks]
        empty = [task for task, members in enumerate(columns) if not members.any()]
        if empty:
            raise ValueError(
                f"data set '{self._source.name}' has no scenes in split '{split}' for task(s) "
                f"{shorten(empty)}; every task needs at least one training and one test scene."
            )
        return np.stack(columns, axis=1)

    def _rows(self, split: str, tasks: Sequence[int]) -> np.ndarray:
        """Returns i64[n], the scenes of any of some tasks."""
        return np.flatnonzero(self._belongs[split][:, list(tasks)].any(axis=1))

    def _train_rows(self, task: int) -> np.ndarray:
        return self._rows("train", [task])

    def _seen_train(self) -> np.ndarray:
        self._check_past()
        return self._rows("train", range(self.task + 1))

    def _read_current(self, rows: np.ndarray) -> np.ndarray:
        return self._read("train", rows, self.task_classes(self.task))

    def _read_seen(self, split: str, rows: np.ndarray) -> np.ndarray:
        return self._read(split, rows, range(self.seen_classes))

    def _read(self, split: str, rows: np.ndarray, classes: range) -> np.ndarray:
        """Returns u8[n, H, W, C+1] in which all but some (renumbered) classes are background."""
        scenes = self._source.read(split, rows)
        if self.by == "domains":
            return scenes
        table = np.zeros(256, np.uint8)
        table[IGNORED_LABEL] = IGNORED_LABEL
        for new, label in enumerate(self._order, start=1):
            table[label] = new if new in classes else 0
        return np.concatenate([scenes[..., :-1], table[scenes[..., -1:]]], axis=-1)
