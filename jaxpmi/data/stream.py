"""Class order and tasks: what a learner may see of a data set, and when."""

import abc
from collections.abc import Sequence

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import shorten

Tasks = tuple[tuple[int, ...], ...]  # per task, its classes as labels of the source


class PastDataError(PermissionError):
    """Raised when images are asked for that the learner may not see at this task."""


def class_order(config: DataConfig, num_classes: int, seed: int) -> tuple[int, ...]:
    """Returns the order in which the classes are learnt: config.class_order, or drawn from seed.

    The drawn order is `np.random.RandomState(seed).permutation(num_classes)`; seed 1993 with 100
    classes is the order of iCaRL, PASS and ImageNet-100.
    """
    if config.class_order is None:
        return tuple(int(label) for label in np.random.RandomState(seed).permutation(num_classes))
    order = tuple(config.class_order)
    duplicates = sorted({label for label in order if order.count(label) > 1})
    missing = sorted(set(range(num_classes)) - set(order))
    unknown = sorted(set(order) - set(range(num_classes)))
    problems = (("repeats", duplicates), ("lacks", missing), ("has the unknown class(es)", unknown))
    found = [f"{word} {shorten(labels)}" for word, labels in problems if labels]
    if found:
        raise ValueError(
            f"class_order {' and '.join(found)}; it must hold each of 0..{num_classes - 1} once."
        )
    return order


def split_tasks(
    order: Sequence[int],
    num_tasks: int,
    first_task_classes: int | None = None,
    least: int = 2,
    unit: str = "classes",
) -> Tasks:
    """Cuts an order of classes (or domains) into tasks of equal size, but for the first one.

    Every task needs `least` classes or more: one class alone cannot be told from anything, unless
    it is from the background of its scenes.

    Args:
      order: what the tasks are made of.
      num_tasks: how many.
      first_task_classes: entries of the first task; None: as many as of the others.
      least: entries that a task needs.
      unit: what an entry is called in an error, as a plural.
    """
    num_classes, first = len(order), first_task_classes
    valid = _task_counts(num_classes, first, least)
    if num_tasks not in valid:
        base = "" if first is None else f" after a first task of {first}"
        advice = f"choose num_tasks from {valid}" if valid else "choose another first_task_classes"
        raise ValueError(
            f"{num_classes} {unit} cannot be split into {num_tasks} tasks of equal size and "
            f"at least {least}{base}; {advice}."
        )
    if first is None:
        first = num_classes // num_tasks
    size = (num_classes - first) // max(num_tasks - 1, 1)
    edges = [0] + [first + i * size for i in range(num_tasks)]
    return tuple(tuple(order[start:end]) for start, end in zip(edges, edges[1:], strict=False))


def _task_counts(num_classes: int, first: int | None, least: int) -> list[int]:
    """Lists every valid number of tasks."""
    if first is None:
        return [n for n in range(1, num_classes // least + 1) if num_classes % n == 0]
    rest = num_classes - first
    if first < least or rest < 0:
        return []
    if rest == 0:
        return [1]
    return [1 + n for n in range(1, rest // least + 1) if rest % n == 0]


def learning_order(tasks: Tasks, known: range, unit: str) -> list[int]:
    """Returns what the tasks are made of, one after another.

    Args:
      tasks: each of some entries.
      known: entries that there are.
      unit: what an entry is called in an error, as a plural.

    Raises:
      ValueError: an entry comes twice, or is not known.
    """
    order = [entry for task in tasks for entry in task]
    if len(set(order)) != len(order) or not set(order) <= set(known):
        raise ValueError(
            f"tasks name {unit} twice or outside {known.start}..{known.stop - 1}: {tasks}; every "
            "one may be in one task only."
        )
    return order


class Stream(abc.ABC):
    """Which task is the current one, and what follows from it for reading, whatever is read.

    `begin` only moves forward, and drops the images of the task before from memory.
    """

    def __init__(
        self,
        tasks: Tasks,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        allow_past: bool,
        cache_bytes: int,
    ):
        """Sets the stream before its first task; `class_names` are in order of learning."""
        self.tasks = tuple(tuple(task) for task in tasks)
        self.class_names = class_names
        self.image_shape = image_shape
        self.allow_past = allow_past
        self.task = -1  # the current task; -1 before the first `begin`
        self._cache_bytes = cache_bytes
        self._cache: np.ndarray | None = None

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.tasks)

    @property
    def num_classes(self) -> int:
        """Number of classes of all tasks together."""
        return len(self.class_names)

    @property
    def seen_classes(self) -> int:
        """Number of classes learnt up to and including the current task: labels 0..seen-1."""
        return self.task_classes(self.task).stop if self.task >= 0 else 0

    @abc.abstractmethod
    def task_classes(self, task: int) -> range:
        """Returns the (renumbered) labels of a task, which are consecutive."""

    @abc.abstractmethod
    def _train_rows(self, task: int) -> np.ndarray:
        """Returns i64[N], where the training images of a task are in the source."""

    @abc.abstractmethod
    def _read_current(self, rows: np.ndarray) -> np.ndarray:
        """Returns u8[n, H, W, ...], training images of the current task."""

    def train_size(self, task: int) -> int:
        """Returns the number of training images of any task, past or future."""
        self._check_exists(task)
        return len(self._train_rows(task))

    def begin(self, task: int) -> None:
        """Makes `task` the current one; a stream never goes back (a resumed run may skip ahead)."""
        self._check_exists(task)
        if task < self.task:
            raise PastDataError(
                f"task {task} was asked for during task {self.task}; a stream only moves forward."
            )
        if task > self.task:
            self._cache = None
        self.task = task

    def train_images(self, task: int, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns u8[n, H, W, C], the current task's training images at `indices`; None: all."""
        self._check_current(task)
        if self._cache is None:
            rows = self._train_rows(task)
            if len(rows) * self._image_bytes > self._cache_bytes:
                return self._read_current(pick(rows, indices))
            self._cache = self._read_current(rows)
        return pick(self._cache, indices)

    @property
    def _image_bytes(self) -> int:
        return int(np.prod(self.image_shape))

    def _check_exists(self, task: int) -> None:
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"task {task} does not exist; tasks are 0..{self.num_tasks - 1}.")

    def _check_current(self, task: int) -> None:
        self._check_exists(task)
        if task != self.task:
            raise PastDataError(
                f"training images of task {task} were asked for during task {self.task}; "
                "only those of the current task can be read."
            )

    def _check_past(self) -> None:
        if not self.allow_past:
            raise PastDataError(
                "training images of past tasks were asked for; only the joint upper bound may read "
                f"them, with {type(self).__name__}(..., allow_past=True)."
            )

    def _check_seen(self, task: int) -> None:
        self._check_exists(task)
        if task > self.task:
            raise PastDataError(
                f"test images of task {task} were asked for during task {self.task}; "
                "future tasks cannot be read."
            )


class TaskStream(Stream):
    """Gives out the images of one task at a time, with labels renumbered in order of learning.

    The class learnt first has label 0, and so on. Training images are those of the current task
    only; test images those of every task seen so far. Anything else raises `PastDataError`.
    """

    def __init__(
        self,
        source: ImageSource,
        tasks: Tasks,
        *,
        allow_past: bool = False,
        name_only: bool = False,
        cache_bytes: int = 2**30,
    ):
        """Sets the stream before its first task.

        Args:
          source: the data set.
          tasks: the classes of each task, disjoint, as labels of `source`.
          allow_past: lets all seen training images be read; only for the joint upper bound.
          name_only: the classes of the last task have only a name: no training image of theirs can
            ever be read.
          cache_bytes: the current task's training images are kept in memory if they fit.
        """
        order = learning_order(tasks, range(source.num_classes), "classes")
        class_names = tuple(source.class_names[label] for label in order)
        super().__init__(tasks, class_names, source.image_shape, allow_past, cache_bytes)
        self.name_only = name_only
        self._source = source
        position = np.full(source.num_classes, -1, np.int32)
        position[order] = np.arange(len(order), dtype=np.int32)
        self._labels = {split: position[labels] for split, labels in source.labels.items()}

    def task_classes(self, task: int) -> range:
        """Returns the (renumbered) labels of a task, which are consecutive."""
        self._check_exists(task)
        start = sum(len(classes) for classes in self.tasks[:task])
        return range(start, start + len(self.tasks[task]))

    def labelled_classes(self, task: int) -> range:
        """Returns the classes that the labels of a task's training images tell apart."""
        return self.task_classes(task)

    def train_labels(self, task: int) -> np.ndarray:
        """Returns i32[N], the labels of the current task's training images."""
        self._check_current(task)
        return self._labels["train"][self._train_rows(task)]

    def seen_train_labels(self) -> np.ndarray:
        """Returns i32[N], the training labels of all tasks so far; needs `allow_past`."""
        return self._labels["train"][self._seen_train()]

    def seen_train_images(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns u8[n, H, W, C], training images of all tasks so far; needs `allow_past`."""
        return self._source.read("train", pick(self._seen_train(), indices))

    def test_labels(self, task: int) -> np.ndarray:
        """Returns i32[N], the labels of the test images of a task seen so far."""
        return self._labels["test"][self._seen_test(task)]

    def test_images(self, task: int, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns u8[n, H, W, C], the test images of a task seen so far; None: all."""
        return self._source.read("test", pick(self._seen_test(task), indices))

    def _members(self, split: str, classes: range) -> np.ndarray:
        labels = self._labels[split]
        return np.flatnonzero((labels >= classes.start) & (labels < classes.stop))

    def _train_rows(self, task: int) -> np.ndarray:
        return self._members("train", self.task_classes(task))

    def _read_current(self, rows: np.ndarray) -> np.ndarray:
        return self._source.read("train", rows)

    def _check_current(self, task: int) -> None:
        self._check_exists(task)
        if self.name_only and task == self.num_tasks - 1:
            raise PastDataError(
                f"training images of task {task} were asked for, whose classes have only a name."
            )
        super()._check_current(task)

    def _seen_train(self) -> np.ndarray:
        self._check_past()
        last = self.num_tasks - 1
        seen = self.task_classes(last).start if self.name_only else self.num_classes
        return self._members("train", range(0, min(self.seen_classes, seen)))

    def _seen_test(self, task: int) -> np.ndarray:
        self._check_seen(task)
        return self._members("test", self.task_classes(task))


def pick(values: np.ndarray, indices: np.ndarray | None) -> np.ndarray:
    """Returns values[indices], or all values; values are one per image of a task."""
    if indices is None:
        return values
    indices = np.asarray(indices)
    outside = indices[(indices < 0) | (indices >= len(values))]
    if outside.size:
        raise ValueError(f"image index {outside[0]} is outside the task's {len(values)} images.")
    return values[indices]
