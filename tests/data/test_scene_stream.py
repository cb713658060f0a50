"""Tasks of scenes: background shift, and who may see which scenes when."""

import numpy as np
import pytest

from jaxpmi.config import DataConfig
from jaxpmi.data import PastDataError
from jaxpmi.data import SceneSource
from jaxpmi.data import SceneStream
from jaxpmi.data import scene_tasks

# The labels that each scene shows: labels 0 (background), 1..4, and 255.
SHOWN = {
    "train": [(0, 1), (0, 2), (1, 3), (0, 4, 255), (2, 3, 4), (0,), (3, 255), (4, 1)],
    "test": [(0, 3), (1, 4), (2, 255), (0,)],
}
NAMES = ("background", "ant", "bee", "cat", "dog")
TASKS = ((3, 1), (4,))  # bee (2) is learnt by none


def source_of(has_background=True):
    """Scenes of 1 x 6 pixels, 2 channels: a number of their own, and their labels in turn."""
    scenes = {}
    for split, shown in SHOWN.items():
        labels = np.array([np.resize(each, 6) for each in shown], np.uint8)
        number = np.broadcast_to(np.arange(len(shown), dtype=np.uint8)[:, None], labels.shape)
        scenes[split] = np.stack([number, labels], axis=-1)[:, None]
    return SceneSource(
        name="tiny",
        class_names=NAMES,
        has_background=has_background,
        image_shape=(1, 6, 1),
        domain_names=("north", "south", "west"),
        domains={split: np.arange(len(shown)) % 3 for split, shown in SHOWN.items()},
        reader=lambda split, indices: scenes[split][indices],
        label_reader=lambda split, indices: scenes[split][indices, ..., -1],
    )


def stream_of(by="classes", tasks=TASKS, **options):
    return SceneStream(source_of(), tasks, by=by, **options)


def read(scenes):
    """scene number -> its labels in turn."""
    assert scenes.dtype == np.uint8 and scenes.shape[1:] == (1, 6, 2)
    found = {}
    for scene in scenes:
        period = scene[0, :, 1].tolist()
        found[int(scene[0, 0, 0])] = period
    assert len(found) == len(scenes)  # each once
    return found


def expected(split, numbers, table):
    return {n: [table.get(int(x), 0) for x in np.resize(SHOWN[split][n], 6)] for n in numbers}


def test_classes_are_renumbered_after_the_background():
    stream = stream_of()
    assert stream.class_names == ("background", "cat", "ant", "dog")
    assert stream.num_classes == 4 and stream.num_tasks == 2 and stream.image_shape == (1, 6, 1)
    assert stream.task_classes(0) == range(0, 3) and stream.task_classes(1) == range(3, 4)
    assert stream.labelled_classes(0).tolist() == [0, 1, 2]
    assert stream.labelled_classes(1).tolist() == [0, 3]
    assert stream.labelled_classes(1).dtype == np.int32
    assert stream.seen_classes == 0
    stream.begin(0)
    assert stream.seen_classes == 3
    stream.begin(1)
    assert stream.seen_classes == 4


def test_background_shift():
    """In training, classes of the future and of the past are background; the ignored stay so."""
    stream = stream_of()
    stream.begin(0)
    assert stream.train_size(0) == 5 and stream.train_size(1) == 3
    table = {3: 1, 1: 2, 255: 255}
    assert read(stream.train_images(0)) == expected("train", [0, 2, 4, 6, 7], table)
    stream.begin(1)
    table = {4: 3, 255: 255}
    assert read(stream.train_images(1)) == expected("train", [3, 4, 7], table)


def test_test_scenes_have_all_seen_classes_labelled():
    stream = stream_of()
    assert stream.seen_test_size() == 0 and len(stream.seen_test_images()) == 0
    stream.begin(0)
    early = {3: 1, 1: 2, 255: 255}  # dog (4) is still background
    assert read(stream.test_images(0)) == expected("test", [0, 1], early)
    assert read(stream.seen_test_images()) == expected("test", [0, 1], early)
    stream.begin(1)
    late = early | {4: 3}
    assert read(stream.test_images(0)) == expected("test", [0, 1], late)
    assert read(stream.test_images(1)) == expected("test", [1], late)
    assert read(stream.seen_test_images()) == expected("test", [0, 1], late)
    assert read(stream.seen_test_images(np.array([1]))) == expected("test", [1], late)
    assert (stream.test_size(0), stream.test_size(1), stream.seen_test_size()) == (2, 1, 2)


def test_joint_training_has_all_seen_classes_labelled():
    stream = stream_of(allow_past=True)
    stream.begin(0)
    assert stream.seen_train_size() == 5
    stream.begin(1)
    table = {3: 1, 1: 2, 4: 3, 255: 255}
    numbers = [0, 2, 3, 4, 6, 7]
    assert stream.seen_train_size() == 6
    assert read(stream.seen_train_images()) == expected("train", numbers, table)
    assert read(stream.seen_train_images(np.array([5, 1]))) == expected("train", [7, 2], table)


def test_domains_label_everything_in_every_task():
    stream = stream_of("domains", ((2,), (0, 1)), allow_past=True)
    assert stream.class_names == NAMES and stream.num_classes == 5
    same = {label: label for label in (*range(5), 255)}
    for task, train, test in ((0, [2, 5], [2]), (1, [0, 1, 3, 4, 6, 7], [0, 1, 3])):
        stream.begin(task)
        assert stream.task_classes(task) == range(5) and stream.seen_classes == 5
        assert stream.labelled_classes(task).tolist() == [0, 1, 2, 3, 4]
        assert stream.train_size(task) == len(train) and stream.test_size(task) == len(test)
        assert read(stream.train_images(task)) == expected("train", train, same)
        assert read(stream.test_images(task)) == expected("test", test, same)
    assert read(stream.seen_train_images()) == expected("train", range(8), same)
    assert read(stream.seen_test_images()) == expected("test", range(4), same)


def test_cached_scenes_are_those_read_anew():
    cached, plain = stream_of(), stream_of(cache_bytes=5 * 12 - 1)  # 5 scenes of 6 pixels, 2 bytes
    rows = np.array([4, 0, 4])
    for task in (0, 1):
        for stream in (cached, plain):
            stream.begin(task)
            stream.train_images(task)
        assert cached._cache is not None
        assert (plain._cache is None) == (task == 0)  # task 1 has 3 scenes only
        own = rows % cached.train_size(task)
        np.testing.assert_array_equal(cached.train_images(task, own), plain.train_images(task, own))
    with pytest.raises(ValueError, match="image index 3 is outside the task's 3 images"):
        cached.train_images(1, np.array([3]))


def test_past_and_future_are_out_of_reach():
    stream = stream_of()
    with pytest.raises(PastDataError, match="training images of task 0 were asked for during task"):
        stream.train_images(0)
    stream.begin(0)
    with pytest.raises(PastDataError, match="task 1 were asked for during task 0; only those of"):
        stream.train_images(1)
    with pytest.raises(PastDataError, match="test images of task 1 .* future tasks cannot be read"):
        stream.test_images(1)
    stream.begin(1)
    with pytest.raises(PastDataError, match="task 0 were asked for during task 1; only those of"):
        stream.train_images(0)
    with pytest.raises(
        PastDataError, match="task 0 was asked for during task 1; a stream only mov"
    ):
        stream.begin(0)
    for forbidden in (stream.seen_train_images, stream.seen_train_size):
        with pytest.raises(PastDataError, match=r"with SceneStream\(..., allow_past=True\)"):
            forbidden()
    sizes = (stream.train_size, stream.test_size, stream.task_classes, stream.labelled_classes)
    for call in (*sizes, stream.begin, stream.train_images, stream.test_images):
        for task in (-1, 2):
            with pytest.raises(ValueError, match=f"task {task} does not exist; tasks are 0..1"):
                call(task)


@pytest.mark.parametrize(
    ("by", "tasks", "message"),
    [
        ("classes", ((1, 2), (2,)), "tasks name classes twice or outside 1..4"),
        ("classes", ((0, 1),), "tasks name classes twice or outside 1..4"),
        ("classes", ((5,),), "tasks name classes twice or outside 1..4"),
        ("domains", ((0,), (3,)), "tasks name domains twice or outside 0..2"),
    ],
)
def test_bad_tasks(by, tasks, message):
    with pytest.raises(ValueError, match=message):
        stream_of(by, tasks)


def test_tasks_without_scenes_or_background_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="'tiny' have no background, .* learn them by domains"):
        SceneStream(source_of(has_background=False), TASKS, by="classes")
    monkeypatch.setitem(SHOWN, "test", [(0, 3), (0, 1), (2,)])  # no dog
    with pytest.raises(ValueError, match=r"'tiny' has no scenes in split 'test' for task\(s\) 1"):
        stream_of()


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        (dict(tasks=4, class_order=(2, 3, 0, 1)), ((3,), (4,), (1,), (2,))),
        (dict(tasks=2, class_order=(0, 1, 2, 3)), ((1, 2), (3, 4))),
        (dict(tasks=(2, 1, 1), class_order=(0, 1, 2, 3)), ((1, 2), (3,), (4,))),
        (
            dict(tasks=(1, 1, 1, 1), class_order=(0, 1, 2, 3)),
            ((1,), (2,), (3,), (4,)),
        ),
        (dict(scene_tasks="domains", tasks=3), ((0,), (1,), (2,))),
        (dict(scene_tasks="domains", tasks=(2, 1)), ((0, 1), (2,))),
        (dict(scene_tasks="domains", tasks=3, class_order=(2, 0, 1)), ((2,), (0,), (1,))),
        (
            dict(scene_tasks="domains", tasks=3, class_order=("west", "North", 1)),
            ((2,), (0,), (1,)),
        ),
    ],
)
def test_scene_tasks(changes, tasks):
    config = DataConfig(source="digit_scenes", **changes)
    assert scene_tasks(config, source_of(), seed=0) == tasks


def test_the_order_of_classes_is_drawn_from_the_seed():
    config = DataConfig(source="digit_scenes", tasks=1)
    for seed in (0, 1):
        drawn = np.random.RandomState(seed).permutation(4) + 1
        assert scene_tasks(config, source_of(), seed) == (tuple(drawn.tolist()),)
    with pytest.raises(ValueError, match="be split into 3 tasks of equal size; choose"):
        scene_tasks(DataConfig(source="digit_scenes", tasks=3), source_of(), 0)
    config = DataConfig(source="digit_scenes", scene_tasks="domains", tasks=2)
    with pytest.raises(ValueError, match="3 domains cannot be split into 2 tasks"):
        scene_tasks(config, source_of(), 0)
