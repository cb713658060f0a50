"""From a config to a run about to begin: data, mesh, network and the first state."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.config import Config
from jaxpmi.config import ModelConfig
from jaxpmi.continual.learners import Method
from jaxpmi.continual.learners import find_method
from jaxpmi.continual.losses import init_angle_projections
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import num_replay_images
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.vdfd.drift_penalty import fresh_class_graph
from jaxpmi.continual.vdfd.gradient_records import empty_records
from jaxpmi.continual.vdfd.gradient_records import regularised_tensors
from jaxpmi.data import ImageSource
from jaxpmi.data import SceneStream
from jaxpmi.data import TaskStream
from jaxpmi.data import channel_moments
from jaxpmi.data import class_order
from jaxpmi.data import open_source
from jaxpmi.data import split_tasks
from jaxpmi.inversion.generator import SIZES
from jaxpmi.inversion.generator import init_generator
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.models import architecture
from jaxpmi.models.init_network import init_network
from jaxpmi.network import Network
from jaxpmi.remember import empty_memory
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.weights.network_file import given_network

HEAD_STD = 0.001  # of the classifier's initial weights, as in R-DFCIL and PMI; that of pixels has
# PyTorch's default, for the smaller one leaves the backbone without a gradient


def open_images(config: Config) -> dict[str, ImageSource]:
    """Opens the data set of a run, under the name that summary.json calls it by."""
    return {"data": open_source(config.data)}


def open_run(config: Config, source: ImageSource | None = None) -> tuple[Run, tuple[int, ...]]:
    """A run on a data set (None: the config's); also returns the class order."""
    source = open_source(config.data) if source is None else source
    order = class_order(config.data, source.class_names, config.seed)
    method = find_method(config.method)
    tasks = split_tasks(order, config.data.tasks, least_later=least_classes(method))
    stream = TaskStream(source, tasks, allow_past=method.all_data)
    return make_run(config, stream), order


def least_classes(method: Method) -> int:
    """The fewest classes of a later task: one alone is learnt beside images of older classes."""
    return 1 if method.all_data or method.replay != "none" else 2


def make_run(config: Config, stream: TaskStream | SceneStream) -> Run:
    """A run on that stream."""
    method = find_method(config.method)
    if method.from_noise:
        config = _from_noise(config)
    return Run(config, method, stream, make_mesh())


def fresh_network(
    run: Run,
    settings: ModelConfig,
    key: jax.Array,
    mean: Sequence[float] | jax.Array,
    std: Sequence[float] | jax.Array,
) -> Network:
    """A network for the run's images and classes, of these pixel moments, about to be trained.

    Its weights are random; where the settings name a network, only those of its head.
    """
    stream, given = run.stream, given_network(settings)
    network = init_network(
        architecture(settings.name, settings.width) if given is None else given.model,
        key, stream.image_shape, stream.class_names, mean=mean, std=std,
        head_std=None if run.label_maps else HEAD_STD,
        variables=None if given is None else given.variables,
    )  # fmt: skip
    features = block_input_shapes(network.model, network.variables, stream.image_shape)[-1]
    given = "pixel" if len(features) == 3 else "image"
    wanted = "pixel" if run.label_maps else "image"
    if given != wanted:
        raise ValueError(
            f"model.name='{settings.name}' gives a feature per {given}, but the data has "
            f"a label per {wanted}; use a model that fits data.source='{run.config.data.source}', "
            f"such as '{'encoder_decoder' if run.label_maps else 'resnet_small'}'."
        )
    return network


def fresh_auxiliary(run: Run, key: jax.Array, feature_dim: int) -> dict[str, Any]:
    """What is trained beside the network and anew in every task, only what the method uses.

    `angle_maps` of the angle loss, VDFD's `class_graph`, and for self-supervision `rotated_head`
    f32[3, D, C]: the classifiers of turned images.
    """
    auxiliary, settings = {}, run.config.losses.vdfd
    if "angle_maps" in run.method.auxiliary:
        auxiliary["angle_maps"] = init_angle_projections(key, feature_dim, feature_dim)
    key_graph, key_head = jax.random.split(key)
    if "class_graph" in run.method.auxiliary:
        auxiliary["class_graph"] = fresh_class_graph(key_graph, feature_dim, settings)
    if run.method.keeps_records and settings.self_supervision:
        shape = (3, feature_dim, run.stream.num_classes)
        auxiliary["rotated_head"] = HEAD_STD * jax.random.normal(key_head, shape)
    return auxiliary


def pixel_moments(run: Run) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1]: given, or of the first task."""
    config, stream = run.config, run.stream
    mean, std = config.data.mean, config.data.std
    given = given_network(config.model)
    if given is not None:
        mean = mean or tuple(np.asarray(given.mean).tolist())
        std = std or tuple(np.asarray(given.std).tolist())
    if mean is None or std is None:
        stream.begin(0)
        measured = channel_moments(stream.train_images(0)[..., : stream.image_shape[-1]])
        mean, std = mean or measured[0], std or measured[1]
    channels = stream.image_shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"data.mean has {len(mean)} and data.std {len(std)} value(s), but the images have "
            f"{channels} channel(s); give one value per channel."
        )
    return mean, std


def initial_state(run: Run, order: tuple[int, ...]) -> ContinualState:
    """The state before the first task; reads the first task's images for their pixel moments."""
    config = run.config
    mean, std = pixel_moments(run)
    key_network, *keys = jax.random.split(jax.random.key(config.seed), 4)
    network = fresh_network(run, config.model, key_network, mean, std)
    if run.method.keeps_records:
        _check_records(run)
    # One program: made one by one, the many small arrays would take seconds to compile.
    fill = jax.jit(functools.partial(_first_state, run))
    state = fill(network, jnp.asarray(order, jnp.int32), keys)
    return replicate(state, run.mesh)


def _first_state(run, network, order, keys):
    config, stream = run.config, run.stream
    key_auxiliary, key_generator, key_run = keys
    generator = ()
    if run.method.replay == "generator":
        settings = config.generator
        generator = init_generator(
            key_generator,
            stream.image_shape,
            **SIZES[settings.size],
        )
    auxiliary = fresh_auxiliary(run, key_auxiliary, network.feature_dim)
    unmeasured = jnp.full((stream.num_tasks, stream.num_tasks), jnp.nan)
    zero = jnp.zeros((), jnp.int32)
    return ContinualState(
        network=network,
        teacher=network,
        auxiliary=auxiliary,
        opt_state=optimiser(config.train).init(trainable_parts(network, auxiliary)),
        memory=_first_memory(run, network),
        generator=generator,
        replay=empty_replay(run, network, most_replay_samples(run)),
        class_counts=jnp.ones(stream.num_classes),
        accuracy=unmeasured,
        task_accuracy=unmeasured,
        class_order=order,
        key=key_run,
        task=zero,
        phase=zero,
        step=zero,
        records=_empty_records(run, network),
    )


def _first_memory(run, network):
    """Room for what is kept for inversion, if the method inverts."""
    if run.method.replay != "inversion":
        return ()
    return empty_memory(network, run.config.inversion, run.config.cfs)


def _empty_records(run, network):
    """Room for a record of every task, if the method keeps any."""
    if not run.method.keeps_records:
        return ()
    settings = run.config.losses.vdfd
    tensors = regularised_tensors(
        network.model, network.variables.params, network.head, with_head=settings.regularised_head
    )
    most, num_tasks = most_classes(run), run.stream.num_tasks
    return empty_records(tensors, num_tasks=num_tasks, num_classes=most, rank=settings.rank)


def most_classes(run: Run) -> int:
    """The most classes that the labels of any task tell apart."""
    return max(len(run.stream.labelled_classes(t)) for t in range(run.stream.num_tasks))


def _check_records(run):
    """What VDFD and DFD need of the data and of the network."""
    settings, (height, width, _) = run.config.losses.vdfd, run.stream.image_shape
    if settings.rank > most_classes(run):
        raise ValueError(
            f"losses.vdfd.rank={settings.rank} is more than the {most_classes(run)} classes of a "
            "task, which are described exactly by as many; lower it."
        )
    if settings.self_supervision and height != width:
        raise ValueError(
            f"losses.vdfd.self_supervision=True turns images, but these have {height} x {width} "
            "pixels; give square ones or set it to False."
        )


def _from_noise(config):
    per_layer = dataclasses.replace(config.inversion.per_layer, start="noise")
    inversion = dataclasses.replace(config.inversion, per_layer=per_layer)
    return dataclasses.replace(config, inversion=inversion)


def most_replay_samples(run):
    """The most synthetic samples that any task needs."""
    if run.method.replay == "none":
        return 0
    return num_replay_images(run.config, run.stream.num_tasks - 1)


def empty_replay(run, network, count):
    """Room for that many synthetic samples."""
    first_block = inversion_variant(run.config.inversion).first_block
    shapes = block_input_shapes(network.model, network.variables, network.image_shape)
    return Replay(
        jnp.zeros((count, *shapes[first_block]), jnp.uint8 if first_block == 0 else jnp.float32),
        jnp.zeros(count, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
