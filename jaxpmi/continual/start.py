"""From a config to a run about to begin: data, mesh, network and the first state."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import Config
from jaxpmi.config import ModelConfig
from jaxpmi.continual.calibration import has_calibration
from jaxpmi.continual.learners import Method
from jaxpmi.continual.learners import find_method
from jaxpmi.continual.losses import init_angle_projections
from jaxpmi.continual.pixel_replay import empty_pixel_gaussians
from jaxpmi.continual.run import Run
from jaxpmi.continual.run import num_replay_images
from jaxpmi.continual.state import ContinualState
from jaxpmi.continual.state import Replay
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.vdfd.drift_penalty import PENALTY_VARIANTS
from jaxpmi.continual.vdfd.drift_penalty import fresh_class_graph
from jaxpmi.continual.vdfd.gradient_records import empty_records
from jaxpmi.continual.vdfd.gradient_records import regularised_tensors
from jaxpmi.data import SceneStream
from jaxpmi.data import TaskStream
from jaxpmi.data import channel_moments
from jaxpmi.data import class_order
from jaxpmi.data import open_source
from jaxpmi.data import split_tasks
from jaxpmi.features.gaussian import init_class_stats
from jaxpmi.inversion.generator import SIZES
from jaxpmi.inversion.generator import init_generator
from jaxpmi.inversion.variants import inversion_variant
from jaxpmi.models import architecture
from jaxpmi.models.init_network import init_network
from jaxpmi.network import CosineHead
from jaxpmi.network import Network
from jaxpmi.remember import empty_memory
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.weights.given import given_network
from jaxpmi.weights.network_file import SavedNetwork

HEAD_STD = 0.001  # of the classifier's initial weights, as in R-DFCIL and PMI; that of pixels has
# PyTorch's default, for the smaller one leaves the backbone without a gradient, and so has that by
# cosines, which without length would turn too fast


class Inputs(NamedTuple):
    """What a run begins with; of the data sets no pixels are read yet.

    Attributes:
      config: the settings; with a given network `model` says what that is built by, and images are
        as it takes them where nothing else is set: of its size, and in colour if it sees colours.
      sources: the data sets, by what summary.json calls them.
      given: the trained network that `model.weights` names, if any.
    """

    config: Config
    sources: dict[str, Any]
    given: SavedNetwork | None


def open_images(config: Config) -> Inputs:
    """Reads a given network, and opens the data set of a run."""
    config, given = with_given_network(config)
    return Inputs(config, {"data": open_source(config.data)}, given)


def open_run(config: Config, inputs: Inputs | None = None) -> tuple[Run, tuple[int, ...]]:
    """A run on what was read (None: it is read here); also returns the class order."""
    config, sources, given = inputs or open_images(config)
    source = sources["data"]
    order = class_order(config.data, source.class_names, config.seed)
    method = find_method(config.method)
    tasks = split_tasks(order, config.data.tasks, least_later=least_classes(method))
    stream = TaskStream(source, tasks, allow_past=method.all_data)
    return make_run(config, stream, given), order


def with_given_network(config: Config) -> tuple[Config, SavedNetwork | None]:
    """Reads the network that `model.weights` names, if any; see `Inputs`."""
    given = given_network(config.model, config.data, "model")
    if given is None:
        return config, None
    height, width, channels = given.network.image_shape
    data = dataclasses.replace(config.data, rgb=config.data.rgb or channels == 3)
    if data.image_size is None and height == width and data.source not in SCENE_KINDS:
        data = dataclasses.replace(data, image_size=height)
    return dataclasses.replace(config, model=given.config, data=data), given


def least_classes(method: Method) -> int:
    """The fewest classes of a later task: one alone is learnt beside images of older classes."""
    return 1 if method.all_data or method.replay != "none" else 2


def make_run(
    config: Config, stream: TaskStream | SceneStream, given: SavedNetwork | None = None
) -> Run:
    """A run on that stream, which may begin with a trained network."""
    method = find_method(config.method)
    if method.from_noise:
        config = _from_noise(config)
    return Run(config, method, stream, make_mesh(), given=given)


def fresh_network(
    run: Run,
    settings: ModelConfig,
    key: jax.Array,
    mean: Sequence[float] | jax.Array,
    std: Sequence[float] | jax.Array,
    given: Network | None = None,
) -> Network:
    """A network for the run's images and classes, of these pixel moments, about to be trained.

    Its weights are random; with a `given` network's blocks, only those of its head.
    """
    stream = run.stream
    network = init_network(
        architecture(settings.name, settings.width) if given is None else given.model,
        key, stream.image_shape, stream.class_names, mean=mean, std=std,
        head_std=None if run.label_maps or run.method.cosine_head else HEAD_STD,
        variables=None if given is None else given.variables,
    )  # fmt: skip
    if run.method.cosine_head:
        network = network.replace(head=CosineHead(network.head.kernel, jnp.ones(())))
    if has_calibration(run):
        network = network.replace(head=network.head._replace(bias=jnp.zeros(stream.num_classes)))
    features = block_input_shapes(network.model, network.variables, stream.image_shape)[-1]
    found = "pixel" if len(features) == 3 else "image"
    wanted = "pixel" if run.label_maps else "image"
    if found != wanted:
        raise ValueError(
            f"model.name='{settings.name}' gives a feature per {found}, but the data has "
            f"a label per {wanted}; use a model that fits data.source='{run.config.data.source}', "
            f"such as '{'encoder_decoder' if run.label_maps else 'resnet_small'}'."
        )
    return network


def blocks_of(run: Run) -> Network | None:
    """The network whose blocks learning begins with; None: with random ones."""
    return None if run.given is None else run.given.network


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
    if run.given is not None:
        mean = mean or tuple(np.asarray(run.given.network.mean).tolist())
        std = std or tuple(np.asarray(run.given.network.std).tolist())
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
    network = fresh_network(run, config.model, key_network, mean, std, blocks_of(run))
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
    """Room for what the method keeps of data."""
    if run.method.replay == "inversion":
        return empty_memory(network, run.config.inversion, run.config.cfs)
    if run.method.replay == "pixels":
        return empty_pixel_gaussians(run.stream.image_shape, run.stream.num_classes)
    if run.method.replay == "pushed":
        return init_class_stats(network.num_classes, network.feature_dim, full=True)
    return ()


def _empty_records(run, network):
    """Room for a record of every task, if the method keeps any."""
    if not run.method.keeps_records:
        return ()
    settings = run.config.losses.vdfd
    tensors = regularised_tensors(
        network.model, network.variables.params, network.head, with_head=settings.regularised_head
    )
    most, num_tasks = most_classes(run), run.stream.num_tasks
    return empty_records(
        tensors, num_tasks=num_tasks, num_classes=most, rank=settings.rank,
        whole=PENALTY_VARIANTS[settings.variant].whole_gradients,
    )  # fmt: skip


def most_classes(run: Run) -> int:
    """The most classes that the labels of any task tell apart."""
    return max(len(run.stream.labelled_classes(t)) for t in range(run.stream.num_tasks))


def _check_records(run):
    """What VDFD and DFD need of the data and of the network."""
    settings, (height, width, _) = run.config.losses.vdfd, run.stream.image_shape
    whole = PENALTY_VARIANTS[settings.variant].whole_gradients
    if settings.rank > most_classes(run) and not whole:
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
    last = run.stream.num_tasks - 1
    if run.method.replay == "pushed":
        return run.method.apr.replay_images * run.stream.task_classes(last).start
    return num_replay_images(run.config, last)


def empty_replay(run, network, count):
    """Room for that many synthetic samples."""
    first_block = inversion_variant(run.config.inversion).first_block
    shapes = block_input_shapes(network.model, network.variables, network.image_shape)
    return Replay(
        jnp.zeros((count, *shapes[first_block]), jnp.uint8 if first_block == 0 else jnp.float32),
        jnp.zeros(count, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
