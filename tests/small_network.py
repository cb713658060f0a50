"""A small network trained for seconds on made-up digits: what inversion tests invert."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rows import sized

from jaxpmi.augment import normalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import AugmentConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual.methods import classification
from jaxpmi.continual.train import Chunk
from jaxpmi.continual.train import Learner
from jaxpmi.continual.train import TaskData
from jaxpmi.continual.train import TrainProgram
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.training_phase import Phase
from jaxpmi.memory import Memory
from jaxpmi.models import resnet
from jaxpmi.models.init_network import init_backbone
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.remember import remember

NUM_CLASSES, SIZE = 4, 8
SHAPE = (SIZE, SIZE, 1)
MEAN, STD = np.asarray([0.4], np.float32), np.asarray([0.3], np.float32)


def blobs(num_per_class, num_classes=NUM_CLASSES, *, size=SIZE, seed=0):
    """Images u8[N, size, size, 1] of smooth shapes, one per class, shifted and noisy; labels."""
    templates = np.random.default_rng(99).uniform(0, 1, (num_classes, 3, 3))
    templates = (templates > 0.5).astype(np.float32)
    for label in range(num_classes):  # no two classes alike: each has its own corner mark
        templates[label].flat[: min(9, num_classes)] = 0.0
        templates[label].flat[label % 9] = 1.0
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(num_classes, dtype=np.int32), num_per_class)
    images = np.kron(templates, np.ones((1, size // 3 + 1, size // 3 + 1)))[:, :size, :size]
    images = 0.8 * images[labels] * rng.uniform(0.7, 1.0, (len(labels), 1, 1)) + 0.1
    images = images + 0.08 * rng.normal(size=images.shape)
    return (255 * np.clip(images, 0, 1)).astype(np.uint8)[..., None], labels


class Trained(NamedTuple):
    network: Network
    images: jax.Array  # f32[N, H, W, 1], normalised training images
    raw: np.ndarray  # the same as they are stored
    labels: np.ndarray
    features: jax.Array  # f32[N, D]
    memory: Memory


def learner_of(network, train):
    """A learner about to take its first step; its buffers may be donated."""
    network = jax.tree.map(jnp.array, network)
    opt_state = optimiser(train).init(trainable_parts(network, {}))
    return Learner(network, {}, opt_state, jnp.ones(network.num_classes))


def as_network(model, variables, head, *, image_shape=SHAPE, mean=None, std=None):
    """A `Network` of these parts, of the pixel moments `MEAN` and `STD` unless given."""
    channels = image_shape[-1]
    return from_blocks(
        model, variables, head, image_shape=image_shape,
        mean=np.resize(MEAN, channels) if mean is None else mean,
        std=np.resize(STD, channels) if std is None else std,
    )  # fmt: skip


def fresh_network(architecture, *, seed=0, num_classes=NUM_CLASSES, image_shape=SHAPE):
    model, variables = init_backbone(architecture, jax.random.key(seed), image_shape)
    *_, dim = blockwise.block_input_shapes(model, variables, image_shape)[-1]
    kernel = np.random.default_rng(seed).normal(0, 0.001, (dim, num_classes))
    kernel = jnp.asarray(kernel, jnp.float32)
    return as_network(model, variables, kernel, image_shape=image_shape)


@functools.cache
def trained(num_steps=60, batch_size=32):
    """`resnet_small(4)` that tells the blobs apart, with all that is known of its inputs."""
    train = TrainConfig()
    raw, labels = blobs(32)
    network = fresh_network(sized(resnet.resnet_small, width=4))
    rows = np.random.default_rng(1).integers(0, len(labels), (num_steps, batch_size))
    chunk = Chunk(
        raw[rows],
        labels[rows],
        np.zeros((1, 1, *SHAPE), np.uint8),
        np.zeros((1, 1), np.int32),
        np.linspace(0.1, 0.0, num_steps, dtype=np.float32),  # the running moments settle
        np.int32(0),
        np.int32(num_steps),
    )
    ones = np.ones(NUM_CLASSES, np.float32)
    data = TaskData(network, ones, 0 * ones)
    program = TrainProgram(
        Phase("all", classification, 1.0, 0.1), train, MethodConfig(), AugmentConfig()
    )
    learner, _ = train_steps(
        learner_of(network, train), chunk, data, jax.random.key(0), program=program
    )
    network = learner.network
    images = normalise(jnp.asarray(raw), MEAN, STD)
    features = jax.jit(functools.partial(blockwise.forward, network.model))(
        network.variables, images
    ).features
    config = InversionConfig(variant="resnet", targets="gaussian")
    memory = remember(network, [(raw, labels)], config=config)
    return Trained(network, images, raw, labels, features, memory)


@functools.cache
def block_inputs():
    """Inputs of every block on 32 training images, and last their features."""
    net = trained()
    values = [net.images[:32]]
    for i, block in enumerate(net.network.model.blocks):
        params, batch_stats = (part[blockwise.block_name(i)] for part in net.network.variables)
        apply = jax.jit(functools.partial(block.apply, train=False))
        values.append(apply(params, batch_stats, values[-1])[0])
    return values


def agreement(images, labels):
    """Share of normalised images to which the trained network gives the intended label."""
    net = trained()
    logits = net.network.head(_features(net.network.variables, images))
    return float((logits.argmax(1) == labels).mean())


_features = jax.jit(lambda v, x: blockwise.forward(trained().network.model, v, x).features)
