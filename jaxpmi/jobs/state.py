"""What a job of one network carries, and how it begins: its data, its network, its first state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import ModelConfig
from jaxpmi.continual import task as tasks
from jaxpmi.continual.evaluation import evaluate
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.learners import first_phases
from jaxpmi.continual.run import Run
from jaxpmi.continual.start import Inputs
from jaxpmi.continual.start import fresh_network
from jaxpmi.continual.start import pixel_moments
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.data import TaskStream
from jaxpmi.network import Network
from jaxpmi.runs.phases import PhaseFn
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.types import PRNGKey
from jaxpmi.weights.network_file import SavedNetwork

EVERYTHING = METHODS["joint"]  # a network is trained on all classes at once


@flax.struct.dataclass
class JobState:
    """Everything that decides how a job goes on."""

    network: Network  # trained on real images, then frozen
    opt_state: Any  # of its training
    class_counts: jax.Array  # f32[C], labels seen in its training, from 1
    key: jax.Array  # key[]; every draw folds in the position
    task: jax.Array  # i32[], position: task (one), phase, step of the phase
    phase: jax.Array  # i32[]
    step: jax.Array  # i32[]
    pool: Replay  # synthetic images
    student: Any = ()  # Network that learns from it
    student_opt_state: Any = ()
    synthesiser: Any = ()  # what its method carries from batch to batch
    kept: dict[str, jax.Array] = flax.struct.field(default_factory=dict)  # pruning: bool[size],
    # which channels are left, per group
    results: dict[str, jax.Array] = flax.struct.field(default_factory=dict)  # of the job, by name;
    # NaN where not yet measured
    auxiliary: Any = flax.struct.field(default_factory=dict)  # nothing is trained beside it
    records: tuple[()] = ()  # nor is anything of older tasks kept

    @property
    def teacher(self) -> Network:
        """A copy of the network, which its training donates."""
        return jax.tree.map(jnp.copy, self.network)


def one_task_run(inputs: Inputs) -> Run:
    """A run on a data set, all of whose classes are one task in their own order."""
    config, sources, given = inputs
    source = sources["data"]
    stream = TaskStream(source, (tuple(range(source.num_classes)),), allow_past=True)
    stream.begin(0)
    return Run(config, EVERYTHING, stream, make_mesh(), given=given)


def first_state(run: Run, **fields: Any) -> JobState:
    """The state before the network is trained; `fields` are those of the job."""
    config, zero = run.config, jnp.zeros((), jnp.int32)
    key_network, key_run = jax.random.split(jax.random.key(config.seed))
    network = given_or_fresh(run, config.model, run.given, key_network)
    state = JobState(
        network=network,
        opt_state=optimiser(config.train).init(trainable_parts(network, {})),
        class_counts=jnp.ones(run.stream.num_classes),
        key=key_run,
        task=zero,
        phase=zero,
        step=zero,
        **fields,
    )
    return replicate(state, run.mesh)


def given_or_fresh(
    run: Run, model: ModelConfig, given: SavedNetwork | None, key: PRNGKey
) -> Network:
    """A given network as it is, or a new one of these settings with random weights.

    Raises:
      ValueError: the network that is given is not one of the data's images and classes.
    """
    if given is None:
        return fresh_network(run, model, key, *pixel_moments(run))
    network, stream = given.network, run.stream
    if network.image_shape != stream.image_shape or network.num_classes != stream.num_classes:
        raise ValueError(
            f"model.weights is a network of images {network.image_shape} and "
            f"{network.num_classes} classes, but the data has {stream.image_shape} and "
            f"{stream.num_classes}; give data.image_size or other data."
        )
    # A copy: training donates its arrays, and the run keeps the given ones.
    return jax.tree.map(jnp.copy, network)


def teacher_phases(run: Run) -> list[tuple[str, PhaseFn]]:
    """Training of the network on real images, if it is not given: what a job begins with."""
    if run.given is not None:
        return []
    return tasks.train_plan(first_phases(run.config.train, run.config.losses))


def measure_accuracy(run: Run, network: Network) -> float:
    """Share of the test images that a network predicts rightly."""
    everything = np.ones(run.stream.num_classes, np.float32)
    samples = tasks.read_test(run.stream, 0)
    return evaluate(network, samples, everything, everything, mesh=run.mesh).seen
