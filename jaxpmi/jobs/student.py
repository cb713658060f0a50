"""A student learns a frozen teacher's outputs on a pool of synthetic images, all on device."""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import augment
from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import forward
from jaxpmi.blocks.blockwise import update_batch_stats
from jaxpmi.config import AugmentConfig
from jaxpmi.config import DistillConfig
from jaxpmi.config import PruneConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import ChunkMetrics
from jaxpmi.continual.train import add_terms
from jaxpmi.continual.train import no_terms
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.train import with_parts
from jaxpmi.doors import check_images
from jaxpmi.doors import check_key
from jaxpmi.inversion.objectives import distillation_kl
from jaxpmi.network import Network
from jaxpmi.optimise import schedules
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.sharding import constrain_batch
from jaxpmi.sharding import make_mesh
from jaxpmi.types import PRNGKey

WEIGHT_DECAY = 1e-4  # L2, added to the gradient, as CMI and FastDFKD train their students


@dataclasses.dataclass(frozen=True)
class StudentProgram:
    """Everything static about a student's steps; equal programs compile once.

    Attributes:
      train: batch size, weight decay.
      temperature: above 0, of both softmaxes.
      augment: random views of the images.
      mesh: devices that a batch is split over.
    """

    train: TrainConfig
    temperature: float
    augment: AugmentConfig
    mesh: jax.sharding.Mesh


class Student(NamedTuple):
    """What the steps change.

    Attributes:
      network: the student's.
      opt_state: of `optimiser`.
    """

    network: Network
    opt_state: Any


def init_student(network: Network, train: TrainConfig) -> Student:
    """A student before its first step."""
    return Student(network, optimiser(train).init(trainable_parts(network, {})))


def sgd(settings: DistillConfig | PruneConfig) -> TrainConfig:
    """The student's SGD, as a `TrainConfig`, of which the program reads no more than this."""
    return TrainConfig(
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=WEIGHT_DECAY,
    )


def cosine_rates(learning_rate: float, num_steps: int, warmup_steps: int = 0) -> np.ndarray:
    """The learning rate of every step, f32[S]: a linear warm-up, then a cosine to 0."""
    decay = schedules.cosine(num_steps - warmup_steps)
    rates = schedules.learning_rates(
        num_steps, learning_rate, decay, warmup_steps=warmup_steps, warmup="below_peak"
    )
    return rates


def distill(
    teacher: Network,
    student: Network,
    images: jax.Array | np.ndarray,
    key: PRNGKey,
    *,
    config: DistillConfig | None = None,
) -> Network:
    """Teaches a student a teacher's outputs on synthetic images; no label, no real image.

    Args:
      teacher: frozen, in evaluation mode.
      student: of the same images, pixel moments and number of classes; any blocks.
      images: u8[N, H, W, channels] as they are stored, such as `Synthetic.images`.
      key: key[], consumed.
      config: `rounds` x `steps_per_round` steps of SGD, and what they look at. None: the defaults.

    Returns:
      The student after the last step.

    Raises:
      ValueError: networks or images that do not fit each other.
      ArithmeticError: the loss became NaN or infinite.
    """
    config = DistillConfig() if config is None else config
    _check_pair(teacher, student)
    check_images(teacher, images)
    check_key(key)
    count = len(images)
    pool = Replay(jnp.asarray(images), jnp.zeros(count, jnp.int32), jnp.asarray(count, jnp.int32))
    train = sgd(config)
    program = StudentProgram(train, config.temperature, config.augment, make_mesh(1))
    rates = cosine_rates(
        config.learning_rate, config.rounds * config.steps_per_round, config.warmup_steps
    )
    learner = init_student(jax.tree.map(jnp.array, student), train)  # its buffers are donated
    for first in range(0, len(rates), config.steps_per_round):
        some = rates[first : first + config.steps_per_round]
        key_steps = jax.random.fold_in(key, first)
        learner, metrics = distill_steps(learner, teacher, pool, some, key_steps, program=program)
        bad = int(metrics.bad_step["distillation"])
        if bad >= 0:
            raise ArithmeticError(
                f"the loss became NaN or infinite at step {first + bad}; lower "
                f"learning_rate={config.learning_rate:g}."
            )
    return learner.network


def _check_pair(teacher, student):
    """Raises if a student cannot learn from that teacher."""
    if teacher.num_classes != student.num_classes:
        raise ValueError(
            f"the student has {student.num_classes} classes and the teacher "
            f"{teacher.num_classes}; give the student a head of as many."
        )
    if teacher.image_shape != student.image_shape:
        raise ValueError(
            f"the student takes images of {student.image_shape} and the teacher of "
            f"{teacher.image_shape}; give both the same."
        )
    for name in ("mean", "std"):
        one, other = (np.asarray(getattr(network, name)) for network in (teacher, student))
        if not np.array_equal(one, other):
            raise ValueError(
                f"the student normalises pixels by {name}={other.tolist()} and the teacher by "
                f"{one.tolist()}; use student.replace(mean=teacher.mean, std=teacher.std)."
            )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="student")
def distill_steps(
    student: Student,
    teacher: Network,
    pool: Replay,
    rates: jax.Array,
    key: PRNGKey,
    mask: Any = None,
    *,
    program: StudentProgram,
) -> tuple[Student, ChunkMetrics]:
    """SGD on tau^2 KL(teacher || student), a step for every learning rate f32[S].

    Args:
      student: its network, in training mode, and optimiser state; donated. Of pixels it has the
        teacher's moments.
      teacher: in evaluation mode, on the same view of an image.
      pool: of whose first `count` images every step draws a batch, uniformly.
      rates: f32[S], learning rates.
      key: key[], consumed.
      mask: what the student's parameters are multiplied by after every step, a tree like
        `trainable_parts(student.network, {})`; None: nothing.
      program: the rest.
    """
    black, _ = teacher.pixel_range
    model = student.network.model

    def loss_fn(parts, state, step):
        batch_stats, metrics = state
        key_batch, key_views = jax.random.split(jax.random.fold_in(key, step))
        rows = jax.random.randint(key_batch, (program.train.batch_size,), 0, pool.count)
        images = constrain_batch(
            normalise(pool.samples[rows], teacher.mean, teacher.std), program.mesh
        )
        images = augment(images, key_views, program.augment, black)
        out = forward(model, Variables(parts["backbone"], batch_stats), images, train=True)
        wanted = teacher.head(forward(teacher.model, teacher.variables, images).features)
        loss = distillation_kl(parts["head"](out.features), wanted, program.temperature)
        metrics = add_terms(metrics, {"distillation": loss}, step)
        return loss, ((update_batch_stats(batch_stats, out.moments), metrics), None)

    state = student.network.variables.batch_stats, no_terms(["distillation"])
    end, _ = descend(
        loss_fn,
        Descent(trainable_parts(student.network, {}), student.opt_state, state),
        tx=optimiser(program.train),
        learning_rates=rates,
        project=None if mask is None else lambda parts: jax.tree.map(jnp.multiply, parts, mask),
    )
    batch_stats, metrics = end.state
    network = with_parts(student.network, end.params, batch_stats)
    return Student(network, end.opt_state), metrics
