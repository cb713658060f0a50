"""Class orders, tasks, and who may see which images when."""

import numpy as np
import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import PastDataError
from jaxpmi.data import TaskStream
from jaxpmi.data import class_order
from jaxpmi.data import open_source
from jaxpmi.data import split_tasks

NAMES = tuple(map(str, range(100)))


@pytest.fixture(scope="module")
def source():
    return open_source(DataConfig())


@pytest.fixture
def stream(source):
    return TaskStream(source, split_tasks(class_order(DataConfig(), NAMES[:10], seed=3), 5))


def test_class_order_1993_and_seeds():
    order = class_order(DataConfig(), NAMES, 1993)
    assert order[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    assert sorted(order) == list(range(100)) and all(type(label) is int for label in order)
    assert class_order(DataConfig(), NAMES[:10], 0) == tuple(
        np.random.RandomState(0).permutation(10)
    )


def test_explicit_class_order():
    assert class_order(DataConfig(class_order=(2, 0, 1)), NAMES[:3], seed=0) == (2, 0, 1)


@pytest.mark.parametrize(
    ("order", "labels"),
    [
        (("Owl", "cat", "sea_cow"), (2, 0, 1)),  # as it is shown, or as its folder is called
        (("sea cow", 2, "cat"), (1, 2, 0)),
    ],
)
def test_class_order_by_name(order, labels):
    names = ("cat", "sea cow", "owl")
    assert class_order(DataConfig(class_order=order), names, seed=0) == labels


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1, 1), "class_order repeats 1 and lacks 2; it must hold each of 0..2 once"),
        ((0, 1), "class_order lacks 2;"),
        ((0, 1, 2, 7), r"has the unknown class\(es\) 7;"),
        (("cat", "cow", "owl"), "names 'cow', which is none of the 3 classes .*; did you mean"),
        (("Cat", 0, "dog"), "class_order repeats 0 and lacks 2; it must"),
        ((0, 1, "zebra"), r"none of the 3 classes \('cat', 'dog', 'owl'\); give a class of it"),
    ],
)
def test_class_order_errors(order, message):
    with pytest.raises(ValueError, match=message):
        class_order(DataConfig(class_order=order), ("cat", "dog", "owl"), seed=0)


def test_numbers_are_labels_where_names_are_numbers_too():
    with pytest.raises(ValueError, match="unknown class.* 9; .*, of which 0 is the class '7'"):
        class_order(DataConfig(class_order=(0, 1, 9)), ("7", "8", "9"), seed=0)


def test_two_classes_of_one_name_need_numbers():
    config = DataConfig(class_order=("crane", 0, 2))
    with pytest.raises(ValueError, match="'crane', which classes 0, 1 are called; give them by"):
        class_order(config, ("crane", "Crane", "owl"), seed=0)


@pytest.mark.parametrize(
    ("num_classes", "tasks", "sizes"),
    [
        (100, 5, [20] * 5),
        (100, 20, [5] * 20),
        (10, 1, [10]),
        (100, (50, 10, 10, 10, 10, 10), [50] + [10] * 5),
        (10, (3, 2, 5), [3, 2, 5]),
        (10, (10,), [10]),
    ],
)
def test_split_tasks(num_classes, tasks, sizes):
    order = class_order(DataConfig(), NAMES[:num_classes], 0)
    tasks = split_tasks(order, tasks)
    assert [len(task) for task in tasks] == sizes
    assert tuple(label for task in tasks for label in task) == order


@pytest.mark.parametrize(("tasks", "sizes"), [((2, 1, 1), [2, 1, 1]), (2, [2, 2])])
def test_a_later_task_may_be_of_one_class(tasks, sizes):
    assert [len(task) for task in split_tasks(range(4), tasks, least_later=1)] == sizes
    with pytest.raises(ValueError, match="4 tasks .* choose data.tasks from .1, 2.*[^0-9]$"):
        split_tasks(range(4), 4, least_later=1)  # the first would be of one class as well


@pytest.mark.parametrize(
    ("num_classes", "tasks", "message"),
    [
        (
            10,
            3,
            r"10 classes .* 3 tasks .* from \[1, 2, 5\], or give the size of each, such as 4 3",
        ),
        (10, 10, r"at least 2; choose data.tasks from \[1, 2, 5\].$"),
        (10, 0, "into 0 tasks"),
        (10, (5, 4), r"data.tasks=\(5, 4\) is of 9 classes, but there are 10; give sizes that"),
        (10, (1, 9), "gives task 1 1 of the classes; expected 2 or more, as one class alone"),
        (10, (8, 1, 1), "gives task 2 1 of the classes; .* use a method that replays"),
    ],
)
def test_split_tasks_errors(num_classes, tasks, message):
    with pytest.raises(ValueError, match=message):
        split_tasks(range(num_classes), tasks)


def test_labels_are_the_position_in_the_order(source, stream):
    order = [label for task in stream.tasks for label in task]
    assert stream.class_names == tuple(source.class_names[label] for label in order)
    shown = 0
    for task in range(5):
        stream.begin(task)
        assert stream.seen_classes == 2 * task + 2 == stream.task_classes(task).stop
        for labels, images, split in (
            (stream.train_labels(task), stream.train_images(task), "train"),
            (stream.test_labels(task), stream.test_images(task), "test"),
        ):
            assert labels.dtype == np.int32 and set(labels) == set(stream.task_classes(task))
            for label in stream.task_classes(task):
                rows = np.flatnonzero(source.labels[split] == order[label])
                np.testing.assert_array_equal(images[labels == label], source.read(split, rows))
                shown += len(rows)
        assert stream.train_size(task) == len(stream.train_labels(task))
    assert shown == 5000  # every image once: tasks are disjoint and cover the data set


def test_indices_and_cache_agree(source, stream):
    plain = TaskStream(source, stream.tasks, cache_bytes=0)
    for each in (stream, plain):
        each.begin(2)
    rows = np.array([5, 700, 5])
    np.testing.assert_array_equal(stream.train_images(2, rows), plain.train_images(2, rows))
    np.testing.assert_array_equal(stream.train_images(2), plain.train_images(2))
    assert stream._cache is not None and plain._cache is None
    stream.begin(3)
    assert stream._cache is None  # the old task's pixels leave memory
    for each in (stream, plain):
        with pytest.raises(ValueError, match="image index 800 is outside the task's 800 images"):
            each.begin(3)
            each.train_images(3, np.array([800]))


def test_past_and_future_are_out_of_reach(stream):
    for read in (stream.train_labels, stream.train_images, stream.test_labels, stream.test_images):
        with pytest.raises(PastDataError, match="task 0 were asked for during task -1"):
            read(0)
    stream.begin(1)  # a resumed run skips ahead
    for task in (0, 2):
        for read in (stream.train_labels, stream.train_images):
            with pytest.raises(PastDataError, match=f"training images of task {task} .* task 1;"):
                read(task)
    assert len(stream.test_labels(0)) == 200
    for read in (stream.test_labels, stream.test_images):
        with pytest.raises(PastDataError, match="test images of task 2 .* future tasks"):
            read(2)
    for read in (stream.seen_train_labels, stream.seen_train_images):
        with pytest.raises(PastDataError, match="only the joint upper bound may read"):
            read()
    with pytest.raises(PastDataError, match="task 0 was asked for during task 1"):
        stream.begin(0)
    for call in (stream.begin, stream.train_labels, stream.test_images, stream.task_classes):
        with pytest.raises(ValueError, match="task 5 does not exist; tasks are 0..4"):
            call(5)
    assert stream.task == 1


@pytest.mark.parametrize("allow_past", [False, True])
def test_classes_with_only_a_name_have_no_training_images(source, allow_past):
    stream = TaskStream(source, split_tasks(range(10), 5), allow_past=allow_past, name_only=True)
    stream.begin(3)
    assert len(stream.train_labels(3)) == 800
    stream.begin(4)
    for read in (stream.train_labels, stream.train_images):
        with pytest.raises(
            PastDataError, match="of task 4 were asked for, whose classes have only"
        ):
            read(4)
    assert len(stream.test_images(4)) == 200
    if allow_past:
        assert set(stream.seen_train_labels()) == set(range(8))


def test_joint_training_sees_all_tasks_so_far(source):
    stream = TaskStream(source, split_tasks(range(10), 5), allow_past=True)
    stream.begin(2)
    labels = stream.seen_train_labels()
    assert np.bincount(labels).tolist() == [400] * 6
    rows = np.array([0, 2399])
    images = stream.seen_train_images(rows)
    expected = source.read("train", np.flatnonzero(source.labels["train"] < 6)[rows])
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("tasks", [((0, 1), (1, 2)), ((0, 10),)])
def test_bad_tasks(source, tasks):
    with pytest.raises(ValueError, match="tasks name classes twice or outside 0..9"):
        TaskStream(source, tasks)
