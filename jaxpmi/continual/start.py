"""From a config to a run about to begin: data, model, mesh and the first state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.config import Config
from jaxpmi.continual.losses import init_angle_projections
from jaxpmi.continual.methods import METHODS
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Memory
from jaxpmi.continual.state import Network
from jaxpmi.continual.state import Replay
from jaxpmi.continual.task import Run
from jaxpmi.continual.task import num_replay_images
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.data import TaskStream
from jaxpmi.data import channel_moments
from jaxpmi.data import class_order
from jaxpmi.data import open_source
from jaxpmi.data import split_tasks
from jaxpmi.features import contrastive
from jaxpmi.features.gaussian import init_class_stats
from jaxpmi.inversion.block_inverse import init_block_inverses
from jaxpmi.inversion.generator import init_generator
from jaxpmi.models import MODELS
from jaxpmi.models.blockwise import block_input_shapes
from jaxpmi.models.blockwise import init_variables
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.types import Moments

HEAD_STD = 0.001  # of the classifier's initial weights, as in R-DFCIL and PMI


def open_run(config: Config) -> tuple[Run, tuple[int, ...]]:
    """Opens the data set and builds the model; also returns the class order."""
    source = open_source(config.data)
    order = class_order(config.data, source.num_classes, config.seed)
    tasks = split_tasks(order, config.data.num_tasks, config.data.first_task_classes)
    method = METHODS[config.method]
    if method.from_noise:
        config = _from_noise(config)
    stream = TaskStream(source, tasks, allow_past=method.all_data)
    model = MODELS[config.model.name](config.model.width)
    return Run(config, method, model, stream, make_mesh()), order


def fresh_network(run: Run, key: jax.Array) -> Network:
    """A network with random weights for the run's images and classes."""
    key_body, key_head = jax.random.split(key)
    variables = init_variables(run.model, key_body, run.stream.image_shape)
    (dim,) = block_input_shapes(run.model, variables, run.stream.image_shape)[-1]
    head = HEAD_STD * jax.random.normal(key_head, (dim, run.stream.num_classes))
    return Network(variables, head)


def fresh_projections(run: Run, key: jax.Array, feature_dim: int) -> object:
    """New linear maps of the angle loss, as every task gets; {} for methods without it."""
    if run.config.method not in ("pmi", "r_dfcil"):
        return {}
    return init_angle_projections(key, feature_dim, feature_dim)


def initial_state(run: Run, order: tuple[int, ...]) -> ContinualState:
    """The state before the first task; reads the first task's images for their pixel moments."""
    config, stream = run.config, run.stream
    mean, std = config.data.mean, config.data.std
    if mean is None or std is None:
        stream.begin(0)
        measured = channel_moments(stream.train_images(0))
        mean, std = mean or measured[0], std or measured[1]
    channels = stream.image_shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"data.mean has {len(mean)} and data.std {len(std)} value(s), but the images have "
            f"{channels} channel(s); give one value per channel."
        )
    key = jax.random.key(config.seed)
    key_network, key_projections, key_generator, key_run = jax.random.split(key, 4)
    network = fresh_network(run, key_network)
    generator = ()
    if run.method.replay == "generator":
        settings = config.generator
        generator = init_generator(
            key_generator,
            stream.image_shape,
            latent_dim=settings.latent_dim,
            widths=settings.channels,
        )
    projections = fresh_projections(run, key_projections, network.head.shape[0])
    unmeasured = jnp.full((stream.num_tasks, stream.num_tasks), jnp.nan)
    zero = jnp.zeros((), jnp.int32)
    state = ContinualState(
        network=network,
        teacher=jax.tree.map(jnp.copy, network),
        projections=projections,
        opt_state=optimiser(config.train).init(trainable_parts(network, projections)),
        memory=_empty_memory(run, network),
        generator=generator,
        replay=_empty_replay(run),
        class_counts=jnp.ones(stream.num_classes),
        accuracy=unmeasured,
        task_accuracy=jnp.copy(unmeasured),
        class_order=jnp.asarray(order, jnp.int32),
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        key=key_run,
        task=zero,
        phase=jnp.copy(zero),
        step=jnp.copy(zero),
    )
    return replicate(state, run.mesh)


def _from_noise(config):
    per_layer = dataclasses.replace(config.inversion.per_layer, start="noise")
    inversion = dataclasses.replace(config.inversion, per_layer=per_layer)
    return dataclasses.replace(config, inversion=inversion)


def _empty_memory(run, network):
    """Memory of no data; only what the method uses takes space."""
    config, stream = run.config, run.stream
    dim, num_classes = network.head.shape
    if run.method.replay != "inversion":
        dim = num_classes = 0
    shapes = block_input_shapes(run.model, network.variables, stream.image_shape)
    height, width, channels = stream.image_shape
    inverses = ()
    uses_inversion = run.method.replay == "inversion"
    if uses_inversion and config.inversion.per_layer.start == "inverse":
        inverses = init_block_inverses(
            shapes, num_classes=num_classes, rank=config.inversion.per_layer.inverse_rank
        )
    cfs = config.inversion.targets == "cfs"
    return Memory(
        class_stats=init_class_stats(num_classes, dim, full=config.inversion.covariance == "full"),
        feature_models=contrastive.init(
            jax.random.key(0),
            num_classes if cfs else 0,
            max(dim, 1),
            num_blocks=config.contrastive.num_blocks,
        ),
        block_inputs=tuple(
            Moments(jnp.zeros(shape[-1]), jnp.ones(shape[-1])) for shape in shapes[:-1]
        )
        if uses_inversion
        else (),
        pixels=Moments(jnp.zeros(stream.image_shape), jnp.ones(stream.image_shape)),
        histogram=jnp.zeros((256, channels)),
        spectrum=jnp.zeros((height, width // 2 + 1, channels)),
        num_images=jnp.zeros(()),
        inverses=inverses,
    )


def _empty_replay(run):
    """Room for the most synthetic images that any task needs."""
    count = 0
    if run.method.replay != "none":
        count = num_replay_images(run.config, run.stream.num_tasks - 1)
    return Replay(
        jnp.asarray(np.zeros((count, *run.stream.image_shape), np.uint8)),
        jnp.zeros(count, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
