"""What a job of one network carries, and how it begins: its data, its network, its first state."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.config import ModelConfig
from jaxpmi.continual import task as tasks
from jaxpmi.continual.methods import METHODS
from jaxpmi.continual.methods import first_phases
from jaxpmi.continual.run import Run
from jaxpmi.continual.start import fresh_network
from jaxpmi.continual.start import pixel_moments
from jaxpmi.continual.state import Network
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.data import TaskStream
from jaxpmi.data import open_source
from jaxpmi.models import MODELS
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.pruning import Kept
from jaxpmi.phases import PhaseFn
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.weights.network_file import SavedNetwork
from jaxpmi.weights.network_file import save_network

NETWORK_FILE = "network.npz"  # in the workdir
EVERYTHING = METHODS["joint"]  # a network is trained on all classes at once


@dataclasses.dataclass(frozen=True)
class JobRun(Run):
    """What stays the same during a job."""

    student_model: BlockwiseModel | None  # None: there is no student


@flax.struct.dataclass
class JobState:
    """Everything that decides how a job goes on."""

    network: Network  # trained on real images, then frozen
    opt_state: Any  # of its training
    class_counts: jax.Array  # f32[C], labels seen in its training, from 1
    mean: jax.Array  # f32[channels], of pixels in [0, 1]
    std: jax.Array  # f32[channels]
    key: jax.Array  # key[]; every draw folds in the position
    task: jax.Array  # i32[], position: task (one), phase, step of the phase
    phase: jax.Array  # i32[]
    step: jax.Array  # i32[]
    pool: Replay  # synthetic images, f32 where the config keeps them so
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


def open_data(config: Config, student_model: BlockwiseModel | None) -> JobRun:
    """Opens the data set, all classes as one task in their own order, and builds the model."""
    source = open_source(config.data)
    stream = TaskStream(source, (tuple(range(source.num_classes)),), allow_past=True)
    stream.begin(0)
    model = MODELS[config.model.name](config.model.width)
    return JobRun(config, EVERYTHING, model, stream, make_mesh(), student_model)


def first_state(run: Run, **fields: Any) -> JobState:
    """The state before the network is trained; `fields` are those of the job."""
    config, zero = run.config, jnp.zeros((), jnp.int32)
    mean, std = pixel_moments(run)
    key_network, key_run = jax.random.split(jax.random.key(config.seed))
    network = fresh_network(run, key_network)
    state = JobState(
        network=network,
        opt_state=optimiser(config.train).init(trainable_parts(network, {})),
        class_counts=jnp.ones(run.stream.num_classes),
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        key=key_run,
        task=zero,
        phase=zero,
        step=zero,
        **fields,
    )
    return replicate(state, run.mesh)


def teacher_phases(run: JobRun) -> list[tuple[str, PhaseFn]]:
    """Training of the network on real images: what there has to be before a job can begin."""
    return tasks.train_plan(first_phases(run.config.train, run.config.losses))


def measure_accuracy(
    run: JobRun, state: JobState, network: Network, model: BlockwiseModel
) -> float:
    """Share of the test images that a network, of `model`, predicts rightly."""
    everything = np.ones(run.stream.num_classes, np.float32)
    run = dataclasses.replace(run, model=model)
    samples = tasks.read_test(run.stream, 0)
    return tasks.measure(run, state, network, samples, everything, everything).seen


def save_result(
    run: Run,
    state: Any,
    folder: Path,
    network: Network,
    model: BlockwiseModel,
    config: ModelConfig,
    kept: Kept | None = None,
) -> dict[str, str]:
    """Writes the network that a job ends with, see `save_network`; names its file.

    `state` is of any job: its moments of pixels are the network's.
    """
    stream = run.stream
    result = SavedNetwork(
        model, *network, state.mean, state.std, stream.image_shape, stream.class_names
    )
    save_network(folder / NETWORK_FILE, result, config, kept)
    return {"network_file": NETWORK_FILE}
