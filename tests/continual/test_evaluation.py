"""Metrics against hand-made numbers, and the evaluator against a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import init_variables
from jaxpmi.continual import evaluation
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.network import from_blocks
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate

NAN = float("nan")
MATRIX = [[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.5, 0.6, 0.7]]


def test_metrics_of_a_small_matrix():
    """docs/concepts.md, eqs. 1 to 5."""
    metrics = evaluation.summarise(np.array(MATRIX), [10, 10, 10])
    assert metrics["last_accuracy"] == pytest.approx(0.6)
    assert metrics["average_incremental_accuracy"] == pytest.approx(0.733333, abs=1e-6)
    assert metrics["incremental_accuracies"] == pytest.approx([0.9, 0.7, 0.6])
    assert metrics["forgetting"] == pytest.approx(0.3)
    assert metrics["backward_transfer"] == pytest.approx(-0.3)


def test_task_sizes_weight_the_union():
    matrix = np.array([[1.0, 0.0], [0.4, 1.0]])
    assert evaluation.last_accuracy(matrix, [30, 10]) == pytest.approx(0.55)
    assert evaluation.average_incremental_accuracy(matrix, [30, 10]) == pytest.approx(0.775)
    # Metrics over tasks are not weighted.
    assert evaluation.forgetting(matrix) == pytest.approx(0.6)


def test_forgetting_takes_the_best_before_the_end():
    matrix = np.array([[0.5, NAN, NAN], [0.9, 0.6, NAN], [0.7, 0.8, 1.0]])
    assert evaluation.forgetting(matrix) == pytest.approx(((0.9 - 0.7) + (0.6 - 0.8)) / 2)
    assert evaluation.backward_transfer(matrix) == pytest.approx(((0.7 - 0.5) + (0.8 - 0.6)) / 2)


def test_one_task_forgets_nothing():
    metrics = evaluation.summarise(np.array([[0.9]]), [5])
    assert metrics["forgetting"] == metrics["backward_transfer"] == 0.0
    assert metrics["last_accuracy"] == metrics["average_incremental_accuracy"] == 0.9


def test_entries_above_the_diagonal_are_ignored():
    filled = np.where(np.isnan(MATRIX), 0.123, MATRIX)
    assert evaluation.summarise(filled, [1, 2, 3]) == evaluation.summarise(
        np.array(MATRIX), [1, 2, 3]
    )


@pytest.mark.parametrize(
    ("matrix", "sizes", "message"),
    [
        ([[0.9, 0.1]], [1], r"has shape \(1, 2\); expected \[T, T\]"),
        (np.zeros((0, 0)), [], r"has shape \(0, 0\)"),
        ([[0.9, NAN], [NAN, 0.5]], [1, 1], "entries outside .* on or below its diagonal"),
        ([[90.0]], [1], "entries outside"),
        (MATRIX, [1, 1], "does not fit 3 tasks"),
        (MATRIX, [1, 0, 1], "does not fit 3 tasks"),
    ],
)
def test_wrong_input(matrix, sizes, message):
    with pytest.raises(ValueError, match=message):
        evaluation.summarise(np.array(matrix), sizes)


@dataclasses.dataclass(frozen=True)
class Flatten:
    """A block whose output is the pixels in one row."""

    def init(self, key, input_shape):
        return {}, {}

    def apply(self, params, batch_stats, x, *, train=False):
        return x.reshape(len(x), -1), {}


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A backbone without parameters: the feature is the image itself."""

    blocks: tuple = (Flatten(),)


@pytest.fixture(scope="module")
def setting():
    """A random head on 6 classes, 45 images of the task with classes 2 and 3, and masks."""
    model = Pixels()
    variables = init_variables(model, jax.random.key(0), (4, 4, 1))
    random = np.random.default_rng(0)
    head = random.normal(size=(16, 6))
    head[:, 0] -= 1.0  # black images, as padding has, get class 0, the label of padding
    network = from_blocks(
        model, variables, jnp.asarray(head, jnp.float32),
        mean=[0.3], std=[0.2], image_shape=(4, 4, 1),
    )  # fmt: skip
    images = random.integers(0, 256, (45, 4, 4, 1), np.uint8)
    labels = random.integers(2, 4, 45)
    seen = np.array([1, 1, 1, 1, 0, 0], np.float32)
    task = np.array([0, 0, 1, 1, 0, 0], np.float32)
    return network, images, labels, seen, task


def evaluate(setting, mesh, batch_size):
    network, images, labels, seen, task = setting
    network = replicate(network, mesh)
    return evaluation.evaluate(
        network,
        LabelledSamples(images.__getitem__, labels),
        seen,
        task,
        mesh=mesh,
        batch_size=batch_size,
    )


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 7), (1, 45), (1, 100), (8, 10)])
def test_evaluator_equals_a_plain_loop(setting, num_devices, batch_size):
    network, images, labels, seen, task = setting
    x = normalise(jnp.asarray(images), network.mean, network.std)
    logits = np.asarray(x.reshape(45, 16) @ network.head.kernel)
    right_seen = sum(logits[i, :4].argmax() == labels[i] for i in range(45))
    right_task = sum(2 + logits[i, 2:4].argmax() == labels[i] for i in range(45))
    assert 0 < right_seen < right_task < 45  # else the masks would not be tested
    assert 5 in logits.argmax(1) or 4 in logits.argmax(1)
    result = evaluate(setting, make_mesh(num_devices), batch_size)
    assert result.seen == pytest.approx(right_seen / 45, abs=1e-6)
    assert result.within_task == pytest.approx(right_task / 45, abs=1e-6)


def test_evaluator_compiles_once_for_all_tasks(setting):
    network, images, labels, seen, task = setting
    mesh = make_mesh(1)
    evaluate(setting, mesh, 16)
    size = evaluation.count_correct._cache_size()
    for count, mask in ((3, seen), (40, task), (16, np.ones(6, np.float32))):
        changed = (network, images[:count], labels[:count], mask, mask)
        evaluate(changed, mesh, 16)
    assert evaluation.count_correct._cache_size() == size


def test_evaluator_needs_images(setting):
    network, images, labels, *rest = setting
    with pytest.raises(ValueError, match="got no test images"):
        evaluate((network, images[:0], labels[:0], *rest), make_mesh(1), 8)


def test_evaluator_reads_a_batch_when_the_one_before_is_through(setting, monkeypatch):
    """Every image once, and of earlier batches only the last may still be in work."""
    network, images, labels, seen, task = setting
    events, count, wait = [], evaluation.count_correct, jax.block_until_ready

    def read(rows):
        events.append(("read", rows.tolist()))
        return images[rows]

    def counted(*arguments, **options):
        events.append(("count", None))
        return count(*arguments, **options)

    def waited(counts):
        events.append(("wait", len(counts)))
        return wait(counts)

    monkeypatch.setattr(evaluation, "count_correct", counted)
    monkeypatch.setattr(evaluation.jax, "block_until_ready", waited)
    result = evaluation.evaluate(
        network, LabelledSamples(read, labels), seen, task, mesh=make_mesh(1), batch_size=16
    )
    reads = [rows for name, rows in events if name == "read"]
    assert reads == [list(range(0, 16)), list(range(16, 32)), list(range(32, 45))]
    assert [n for n, _ in events] == ["read", "count", "wait"] * 3
    assert [n for name, n in events if name == "wait"] == [0, 1, 1]
    assert 0.0 < result.seen < 1.0
