"""What the penalty of VDFD costs: seconds of a training step with records, over those without.

Both take the same number of steps on the same images, in turns, so that a busy machine slows both.
"""

import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import named_tensors
from jaxpmi.config import AugmentConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.train import Chunk
from jaxpmi.continual.train import Learner
from jaxpmi.continual.train import TaskData
from jaxpmi.continual.train import TrainProgram
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.vdfd.drift_penalty import fresh_class_graph
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.continual.vdfd.gradient_records import empty_records
from jaxpmi.models import architecture
from jaxpmi.models.init_network import init_network

# Network, width, image, classes per task: of configs/vdfd_mnist.py, and of CIFAR-100 in ten tasks.
CASES = {
    "plain_cnn": (16, (28, 28, 1), 2),
    "preact_resnet18": (16, (32, 32, 3), 10),
}
# A method, and how its records are of old tasks.
WHOLE = "vdfd, whole gradients"
METHODS_COMPARED = ("finetune", "dfd", "vdfd", WHOLE)
TRAIN = TrainConfig(batch_size=32, optimiser="adam", learning_rate=1e-4)
SETTINGS = MethodConfig()


def run_cases(
    num_old: Sequence[int], *, num_steps: int, repetitions: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row per network, number of old tasks and method: seconds a step, and their ratio."""
    rows = []
    for name in CASES:
        for count in num_old:
            say(f"{name}, {count} old tasks")
            takes = {
                method: _steps_of(method, name, count, num_steps) for method in METHODS_COMPARED
            }
            seconds: dict[str, list[float]] = {method: [] for method in METHODS_COMPARED}
            for repetition in range(repetitions + 1):
                for method, take in takes.items():
                    begin = time.perf_counter()
                    take()
                    if repetition > 0:  # the first compiles
                        seconds[method].append((time.perf_counter() - begin) / num_steps)
            for method in METHODS_COMPARED:
                pairs = zip(seconds[method], seconds["finetune"], strict=True)
                rows.append(
                    {
                        "model": name,
                        "num_old_tasks": count,
                        "method": method,
                        "step_seconds": statistics.median(seconds[method]),
                        "ratio": statistics.median(ours / plain for ours, plain in pairs),
                    }
                )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line per row."""
    lines = ["| network | old tasks | method | step, ms | over plain training |", "|" + "---|" * 5]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['num_old_tasks']} | {row['method']} "
            f"| {1000 * row['step_seconds']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def _steps_of(method, name, num_old, num_steps):
    """A function that trains for some steps with records of random numbers, and waits for them."""
    width, shape, num_classes = CASES[name]
    total = (num_old + 1) * num_classes
    names, zeros, ones = [str(i) for i in range(total)], np.zeros(shape[-1]), np.ones(shape[-1])
    network = init_network(
        architecture(name, width),
        jax.random.key(0),
        shape,
        names,
        mean=zeros,
        std=ones,
        head_std=0.001,
    )
    class_graph = fresh_class_graph(jax.random.key(2), network.feature_dim, SETTINGS.vdfd)
    auxiliary = {"class_graph": class_graph}
    (phase,) = METHODS[method.split(",")[0]].phases(TRAIN, SETTINGS)
    opt_state = optimiser(TRAIN).init(trainable_parts(network, auxiliary))
    learner = Learner(network, auxiliary, opt_state, jnp.ones(total))
    new = (np.arange(total) >= total - num_classes).astype(np.float32)
    records = random_records(
        named_tensors(network.model, network.variables.params), num_old, num_classes,
        whole=method == WHOLE,
    )  # fmt: skip
    data = TaskData(network, new, 1 - new, records)
    chunk = _random_chunk(shape, total, num_classes, num_steps)
    program = TrainProgram(phase, TRAIN, SETTINGS, AugmentConfig())
    keep = [jax.tree.map(jnp.copy, learner)]

    def take():
        learner, metrics = train_steps(keep[0], chunk, data, jax.random.key(3), program=program)
        jax.block_until_ready(learner)
        assert all(jnp.isfinite(term) for term in metrics.terms.values())
        keep[0] = learner

    return take


def random_records(
    tensors: Mapping[str, jax.Array], num_old: int, num_classes: int, *, whole: bool = False
) -> GradientRecords:
    """Small gradients of every old task, so that the penalty is finite, and no row to come."""
    random = np.random.default_rng(0)
    room = empty_records(tensors, num_tasks=num_old, num_classes=num_classes, rank=1, whole=whole)
    draw = lambda a: jnp.asarray(1e-3 * random.standard_normal(a.shape), jnp.float32)  # noqa: E731
    filled = jax.tree.map(draw, room)
    classes = np.arange(num_old * num_classes, dtype=np.int32).reshape(num_old, num_classes)
    return filled._replace(classes=classes, class_mask=jnp.ones_like(room.class_mask))


def _random_chunk(shape, total, num_classes, num_steps):
    random = np.random.default_rng(1)
    size = (num_steps, TRAIN.batch_size)
    labels = random.integers(total - num_classes, total, size, np.int32)
    nothing = np.zeros((1, 1, *shape), np.uint8), np.zeros((1, 1), np.int32)
    rates = np.full(num_steps, TRAIN.learning_rate, np.float32)
    images = random.integers(0, 256, (*size, *shape), np.uint8)
    return Chunk(images, labels, *nothing, rates, np.int32(0), np.int32(num_steps))
