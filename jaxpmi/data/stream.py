"""Class order and tasks: what a learner may see of a data set, and when."""

import abc
import difflib
import itertools
from collections.abc import Sequence

import numpy as np

from jaxpmi.config import DataConfig
from jaxpmi.data.class_names import readable_name
from jaxpmi.data.image_source import ImageSource
from jaxpmi.data.image_source import shorten

Tasks = tuple[tuple[int, ...], ...]  # per task, its classes as labels of the source


class PastDataError(PermissionError):
    """Raised when images are asked for that the learner may not see at this task."""


def class_order(config: DataConfig, names: Sequence[str], seed: int) -> tuple[int, ...]:
    """Returns the order in which classes (or domains) are learnt, as their labels.

    It is `config.class_order`, whose texts are names of classes and whose numbers are labels; or
    drawn, `np.random.RandomState(seed).permutation(C)`: seed 1993 with 100 classes is the order of
    iCaRL, PASS and ImageNet-100.
    """
    num_classes = len(names)
    if config.class_order is None:
        return tuple(int(label) for label in np.random.RandomState(seed).permutation(num_classes))
    order = tuple(find_label(names, entry) for entry in config.class_order)
    duplicates = sorted({label for label in order if order.count(label) > 1})
    missing = sorted(set(range(num_classes)) - set(order))
    unknown = sorted(set(order) - set(range(num_classes)))
    problems = (("repeats", duplicates), ("lacks", missing), ("has the unknown class(es)", unknown))
    found = [f"{word} {shorten(labels)}" for word, labels in problems if labels]
    if found:
        named = any(str(label) in names for label in unknown)
        hint = f" (numbers are labels, of which 0 is the class '{names[0]}')" if named else ""
        raise ValueError(
            f"class_order {' and '.join(found)}; it must hold each of 0..{num_classes - 1} "
            f"once{hint}."
        )
    return order


def find_label(names: Sequence[str], wanted: int | str) -> int:
    """Returns the label of a class that is given by its label or by its name, whatever its case.

    Raises:
      ValueError: no class, or more than one, is called so.
    """
    if not isinstance(wanted, str):
        return wanted
    lowered = [name.lower() for name in names]
    places = [label for label, name in enumerate(lowered) if name == readable_name(wanted).lower()]
    if len(places) == 1:
        return places[0]
    if places:
        raise ValueError(
            f"data.class_order names '{wanted}', which classes {shorten(places)} are called; give "
            "them by their numbers."
        )
    close = difflib.get_close_matches(wanted.lower(), lowered, n=1)
    advice = f"did you mean '{names[lowered.index(close[0])]}'?" if close else "give a class of it."
    raise ValueError(
        f"data.class_order names '{wanted}', which is none of the {len(names)} classes "
        f"({shorten(list(names), 3)}); {advice}"
    )


def split_tasks(
    order: Sequence[int],
    tasks: int | Sequence[int],
    *,
    least: int = 2,
    least_later: int | None = None,
    unit: str = "classes",
) -> Tasks:
    """Cuts an order of classes (or domains) into tasks.

    A first task of one class has nothing to tell it from, unless that is the background of its
    scenes; a later one has the images of older classes, where a method replays them.

    Args:
      order: what the tasks are made of.
      tasks: how many, of equal size; or the size of each.
      least: entries that the first task needs.
      least_later: entries that each of the others needs; None: as many.
      unit: what an entry is called in an error, as a plural.

    Raises:
      ValueError: these tasks do not use up the order, or some are too small.
    """
    later = least if least_later is None else least_later
    if isinstance(tasks, int | np.integer):
        sizes = _equal_sizes(len(order), int(tasks), least, later, unit)
    else:
        sizes = tuple(int(size) for size in tasks)
        _check_sizes(sizes, len(order), least, later, unit)
    edges = np.cumsum([0, *sizes]).tolist()
    return tuple(tuple(order[start:end]) for start, end in itertools.pairwise(edges))


def _equal_sizes(total, num_tasks, least, later, unit):
    """The sizes of that many tasks of equal size."""
    valid = [
        n
        for n in range(1, total + 1)
        if total % n == 0 and total // n >= (least if n == 1 else max(least, later))
    ]
    if num_tasks in valid:
        return (total // num_tasks,) * num_tasks
    small = min(least, later)
    text = f"{total} {unit} cannot be split into {num_tasks} tasks of equal size"
    text += f" and at least {max(least, later)}" if num_tasks > 1 and least + later > 2 else ""
    advice = f"choose data.tasks from {valid}"
    size, rest = divmod(total, max(num_tasks, 1))
    sizes = [size + (task < rest) for task in range(num_tasks)]
    if sizes and sizes[0] >= least and size >= small and min(sizes[1:], default=later) >= later:
        advice += f", or give the size of each, such as {' '.join(map(str, sizes))}"
    raise ValueError(f"{text}; {advice}.")


def _check_sizes(sizes, total, least, later, unit):
    """Raises unless tasks of these sizes use up `total` entries and are large enough."""
    if sum(sizes) != total:
        raise ValueError(
            f"data.tasks={sizes} is of {sum(sizes)} {unit}, but there are {total}; give sizes that "
            f"sum to {total}."
        )
    wanted = [least if task == 0 else later for task in range(len(sizes))]
    small = [task for task, (size, low) in enumerate(zip(sizes, wanted, strict=True)) if size < low]
    if small:
        task = small[0]
        raise ValueError(
            f"data.tasks={sizes} gives task {task + 1} {sizes[task]} of the {unit}; expected "
            f"{wanted[task]} or more, as one class alone cannot be told from anything: enlarge it, "
            "or for a later task use a method that replays older classes."
        )


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
