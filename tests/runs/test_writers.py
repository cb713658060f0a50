"""Result files, console progress, pictures and the summary table."""

import io
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxpmi.runs import writers
from jaxpmi.runs.writers import MetricsWriter
from jaxpmi.runs.writers import Progress
from jaxpmi.runs.writers.pictures import HEADER
from jaxpmi.runs.writers.pictures import MARGIN
from jaxpmi.runs.writers.pictures import read_image_grid
from jaxpmi.runs.writers.scene_pictures import label_colours


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class Clock:
    """Time that passes only when told to."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_write_json_takes_arrays_and_makes_nan_null(tmp_path):
    matrix = np.array([[0.5, np.nan], [0.25, 1.0]])
    obj = {
        "matrix": matrix,
        "jax": jnp.int32(3),
        "half": jnp.bfloat16(1.5),
        "flag": np.bool_(True),
        "tuple": (1, "a", None, math.inf),
        "path": tmp_path,
        "text": np.str_("b"),
    }
    writers.write_json(tmp_path / "new" / "summary.json", obj)
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == {
        "matrix": [[0.5, None], [0.25, 1.0]],
        "jax": 3,
        "half": 1.5,
        "flag": True,
        "tuple": [1, "a", None, None],
        "path": str(tmp_path),
        "text": "b",
    }


def test_read_json(tmp_path):
    path = tmp_path / "a.json"
    writers.write_json(path, {"a": [1]})
    assert writers.read_json(path) == {"a": [1]}
    for content, message in (('{"a": [', "is damaged .Expecting"), ("[1]", "holds a list instead")):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"{path} {message}"):
            writers.read_json(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        writers.read_json(path)


def fail_to_encode(path):
    writers.write_json(path, {"bad": object()})


def fail_to_replace(path):
    writers.write_json(path, {"good": 1})


def fail_to_compress(path):
    writers.write_samples_npz(path, np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2))


@pytest.mark.parametrize("write", [fail_to_encode, fail_to_replace, fail_to_compress])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises((OSError, TypeError)):
        write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name, dtype", [("x", np.uint8), ("patch_embeddings", np.float32)])
def test_samples_npz_round_trip(name, dtype, tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(dtype)
    writers.write_samples_npz(tmp_path / "task1.npz", samples, np.arange(5))
    with np.load(tmp_path / "task1.npz") as arrays:
        assert set(arrays) == {name, "y"} and arrays[name].dtype == dtype
        np.testing.assert_array_equal(arrays[name], samples)
        np.testing.assert_array_equal(arrays["y"], np.arange(5))
    for wrong in (samples[:2], samples.astype(np.float64)):
        with pytest.raises(ValueError, match=rf"got samples {wrong.dtype}\[., 4, 4, 3\] and "):
            writers.write_samples_npz(tmp_path / "x.npz", wrong, np.arange(5))


def test_metrics_lines(tmp_path):
    writer = MetricsWriter(tmp_path / "run" / "metrics.jsonl")
    writer.write(0, {"task00/train/loss": jnp.float32(0.5), "task00/agreement": np.nan})
    writer.write(np.int64(10), {"task00/train/loss": 0.25})
    assert read_lines(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 0, "task00/train/loss": 0.5, "task00/agreement": None},
        {"step": 10, "task00/train/loss": 0.25},
    ]
    with pytest.raises(ValueError, match="cannot be named 'step'"):
        writer.write(1, {"step": 2})
    writer.close()


@pytest.mark.parametrize(
    ("resume_from", "kept"), [(0, []), (10, [0]), (11, [0, 10]), (99, [0, 10, 20])]
)
@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', '{"step": 5}', "\x00\x00"])
def test_resume_drops_later_and_torn_lines(tmp_path, resume_from, kept, torn):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (0, 10, 20):
        writer.write(step, {"loss": step})
    writer.close()
    path.write_text(path.read_text() + torn)
    writer = MetricsWriter(path, resume_from=resume_from)
    writer.write(resume_from, {"loss": -1})
    writer.close()
    assert [line["step"] for line in read_lines(path)] == [*kept, resume_from]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_progress_prints_a_line_per_interval_and_the_rate_of_the_phase():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(5.0, num_tasks=5, stream=stream, clock=clock)
    progress.phase(1, "train:all")
    for step in range(1, 130):
        clock.seconds += 0.0625
        progress.update(step, 520, loss=jnp.float32(0.41), images=114)
    clock.seconds += 16.9375  # 20 s after the first line
    progress.update(520, 520, loss=0.3, images=30_000)
    assert stream.getvalue().splitlines() == [
        "task 2/5  train:all  step 80/520  loss 0.41  1820 images/s  ETA 0:28",
        "task 2/5  train:all  step 520/520  loss 0.3  1790 images/s",
    ]


def test_progress_fetches_no_loss_between_lines():
    class Loss:
        def __float__(self):
            raise AssertionError("fetched")

    clock = Clock()
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(5.0, stream=stream, clock=clock)
        progress.phase(0, "train")
        clock.seconds += 1.0
        progress.update(1, 10, loss=Loss(), images=1)
        clock.seconds += 5.0
        with pytest.raises(AssertionError, match="fetched"):
            progress.update(2, 10, loss=Loss())


def test_progress_of_a_resumed_phase_counts_from_there():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(5.0, num_tasks=2, stream=stream, clock=clock)
    progress.phase(0, "invert", done=40)
    clock.seconds += 10.0
    progress.update(50, 100)
    assert stream.getvalue() == "task 1/2  invert  step 50/100  ETA 0:50\n"


def test_bar_only_on_a_terminal():
    outputs = []
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        progress = Progress(5.0, num_tasks=1, stream=stream, clock=clock)
        progress.phase(0, "train")
        for step in range(1, 5):
            clock.seconds += 1.0
            progress.update(step, 4, loss=1.0, images=8)
        progress.close()
        outputs.append(stream.getvalue())
    plain, live = outputs
    assert plain == "task 1/1  train  step 4/4  loss 1  8 images/s\n"
    assert "\r\x1b[K[######------------------] task 1/1  train  step 1/4" in live
    assert live.count("\n") == 1 and live.endswith("\r\x1b[K" + plain)


def test_compiling_is_announced_once_per_program():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    for name in ("train:all", "inversion", "train:all"):
        progress.compiling(name)
    assert stream.getvalue() == "compiling train:all ...\ncompiling inversion ...\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (72, "1:12"), (3599.6, "1:00:00"), (7261, "2:01:01")]
)
def test_eta_format(seconds, text):
    stream, clock = io.StringIO(), Clock()
    progress = Progress(0.0, stream=stream, clock=clock)
    progress.phase(0, "x")
    clock.seconds += seconds
    progress.update(1, 2)
    assert stream.getvalue().endswith(f"ETA {text}\n")


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (8, 3), (64, 3)])
def test_image_grid_shows_every_image_where_it_belongs(tmp_path, size, channels):
    """Every image has a grey of its own, so the picture says which one is where."""
    labels, real_labels = np.array([1, 0, 1, 3]), np.array([0, 3, 1, 1, 1])
    values, real_values = np.array([10, 20, 30, 40]), np.array([110, 120, 130, 140, 150])

    def flat(values):
        return np.broadcast_to(
            values[:, None, None, None], (len(values), size, size, channels)
        ).astype(np.uint8)

    path = tmp_path / "images" / "task1.png"
    names = ["zero", "one", "unused", "three"]
    writers.write_image_grid(path, flat(values), labels, flat(real_values), real_labels, names, 2)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    scaled = size * -(-56 // size)
    found = {}
    for value in (*values, *real_values):
        where = (pixels == value).all(-1)
        rows, columns = (np.flatnonzero(where.sum(axis) >= scaled) for axis in (1, 0))
        if rows.size:  # anti-aliased text has stray greys, but no whole image of one
            assert len(rows) == len(columns) == scaled
            found[int(value)] = (rows[0], columns[0])
    assert set(found) == {10, 20, 30, 40, 110, 120, 130, 140}  # 150 is one too many
    row_of = {value: row for value, (row, _) in found.items()}
    assert row_of[20] == row_of[110] < row_of[10] == row_of[30] == row_of[130] == row_of[140]
    assert row_of[10] < row_of[40] == row_of[120]
    assert found[10][1] < found[30][1] < found[130][1] < found[140][1]
    assert found[10][1] == found[20][1] and found[110][1] == found[130][1]

    grid = read_image_grid(path)
    assert grid.class_names == ["zero", "one", "three"]
    expected = {"synthetic": [[20], [10, 30], [40]], "real test images": [[110], [130, 140], [120]]}
    assert grid.panels.keys() == expected.keys()
    for title, rows in expected.items():
        for images, row in zip(grid.panels[title], rows, strict=True):
            np.testing.assert_array_equal(
                images, np.broadcast_to(flat(np.array(row)), images.shape)
            )
            assert images.shape == (len(row), size, size, 3)


def test_a_picture_of_another_kind_is_no_image_grid(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "other.png")
    assert read_image_grid(tmp_path / "other.png") is None


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 1), ((8, 16), 3), ((100, 60), 3)])
def test_scene_grid_shows_image_truth_and_prediction(tmp_path, size, channels):
    """Every column of every row is one flat colour, so the picture says what is where."""
    values, truth, predicted = np.array([60, 70]), np.array([2, 255]), np.array([1, 2])

    def flat(values, *shape):
        return np.broadcast_to(
            values.reshape(-1, *(1 for _ in shape)), (len(values), *shape)
        ).astype(np.uint8)

    names = ["background", "cat", "dog", "unused"]
    maps = flat(truth, *size), flat(predicted, *size)
    writers.write_scene_grid(tmp_path / "a.png", flat(values, *size, channels), *maps, names)
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    colours = label_colours().astype(int)
    scale = -(-96 // max(size))
    height, width = scale * size[0], scale * size[1]
    rows = [
        [np.full(3, values[row]), colours[truth[row]], colours[predicted[row]]] for row in range(2)
    ]
    for row, expected in enumerate(rows):
        for column, colour in enumerate(expected):
            top, left = HEADER + row * (height + MARGIN), MARGIN + column * (width + MARGIN)
            assert (pixels[top : top + height, left : left + width] == colour).all()
    legend = pixels[HEADER:, 3 * (width + MARGIN) + MARGIN :]
    for label in (1, 255):  # these have a swatch; so has 2, which is as white as the paper
        assert (legend == colours[label]).all(-1).sum() >= 100
    assert not (legend == colours[3]).all(-1).any()


def test_label_colours_tell_21_classes_apart():
    colours = label_colours()
    assert colours[0].tolist() == [0, 0, 0] and colours[255].tolist() == [128, 128, 128]
    assert len({tuple(colour) for colour in colours[[*range(21), 255]].tolist()}) == 22
    np.testing.assert_array_equal(colours[21], colours[1])


@pytest.mark.parametrize("num_tasks", [1, 5, 25])
def test_accuracy_plot(tmp_path, num_tasks):
    matrix = np.tril(np.random.default_rng(0).random((num_tasks, num_tasks)))
    matrix[np.triu_indices(num_tasks, 1)] = np.nan
    writers.write_accuracy_plot(tmp_path / "accuracy.png", matrix, "pmi on mnist5k")
    with Image.open(tmp_path / "accuracy.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) >= 400
    changed = matrix.copy()
    changed[0, 0] = 1.0 - matrix[0, 0]
    writers.write_accuracy_plot(tmp_path / "changed.png", changed, "pmi on mnist5k")
    with Image.open(tmp_path / "changed.png") as image:
        assert not np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_summary_table():
    summary = {
        "method": "pmi",
        "dataset": "mnist5k",
        "seed": 3,
        "last_accuracy": 0.8125,
        "average_incremental_accuracy": 0.9,
        "forgetting": -0.0123,
        "accuracy_matrix": [[0.99, None], [0.5, float("nan")]],
        "seconds": {"total": 12.34, "train": 5.0},
    }
    text = writers.summary_table(summary, ["runs/a/summary.json", "runs/a/accuracy.png"])
    assert text.splitlines() == [
        "pmi on mnist5k, seed 3",
        "",
        "last accuracy                  81.25 %",
        "average incremental accuracy   90.00 %",
        "forgetting                     -1.23 %",
        "",
        "after task    task 1   task 2",
        "         1    99.00%        -",
        "         2    50.00%        -",
        "",
        "seconds: total 12.3, train 5.0",
        "",
        "runs/a/summary.json",
        "runs/a/accuracy.png",
    ]
    assert writers.summary_table({"method": "pmi"}) == "pmi"
