"""Steps of every method on made-up data. Every call of the library's methods is made here.

The same functions serve small networks, whose results are compared with committed ones, and large
ones, which are timed. What is random comes from NumPy, so that all devices get the same; keys alone
are JAX's, whose bits are the same everywhere.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.vdfd import random_records
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.blocks.blockwise import named_tensors
from jaxpmi.config import AugmentConfig
from jaxpmi.config import CmiConfig
from jaxpmi.config import Config
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.continual.clip.train import ClipLearner
from jaxpmi.continual.clip.train import ClipProgram
from jaxpmi.continual.clip.train import ClipTask
from jaxpmi.continual.clip.train import clip_optimiser
from jaxpmi.continual.clip.train import clip_train_steps
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.losses import init_angle_projections
from jaxpmi.continual.train import Chunk
from jaxpmi.continual.train import Learner
from jaxpmi.continual.train import TaskData
from jaxpmi.continual.train import TrainProgram
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.train import trainable_parts
from jaxpmi.continual.training_phase import Phase
from jaxpmi.continual.vdfd.class_graph import init_class_graph
from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.inversion import deep_inversion as deep_inversions
from jaxpmi.inversion.cmi import cmi
from jaxpmi.inversion.cmi import init_cmi
from jaxpmi.inversion.fast_dfkd import fast_dfkd
from jaxpmi.inversion.fast_dfkd import init_fast_dfkd
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.per_layer import invert_block
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.inversion.variants import DeepInversionVariant
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.memory import Memory
from jaxpmi.models import clip as clips
from jaxpmi.models.init_network import init_backbone
from jaxpmi.models.layers import OneKey
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.remember import empty_memory
from jaxpmi.types import Moments

MEAN, STD = 0.5, 0.25  # of pixels: valid ones reach from -2 to 2, in normalised units

Inputs = dict[str, Any]
Shape = tuple[int, int, int]  # (H, W, C) of an image


class Case(NamedTuple):
    """Some steps of a method."""

    inputs: Inputs  # pytrees of arrays: "variables" of a network, "labels" or "target", a "key"
    run: Callable[[Inputs], dict[str, Any]]  # traceable; pytrees of what comes out, by name
    num_steps: int
    num_images: int  # per step
    hidden_steps: int = 1  # by which what a program's text shows is multiplied: its loop over the
    # steps does not tell their number


def draws(shape: tuple[int, ...], seed: int, *, std: float = 1.0) -> np.ndarray:
    """f32[shape] from N(0, std^2)."""
    return np.float32(std) * np.random.default_rng(seed).standard_normal(shape, np.float32)


def drawn_labels(count: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """i32[count] in [0, num_classes)."""
    return np.random.default_rng(seed).integers(0, num_classes, count, np.int32)


def enlivened(tree: Any, seed: int, std: float = 0.1) -> Any:
    """Noise on gains and biases, which begin at 0 and 1: nothing may be hidden behind a zero."""
    leaves, treedef = jax.tree.flatten(jax.device_get(tree))
    noise = lambda i, leaf: draws(leaf.shape, seed + i, std=std)  # noqa: E731
    leaves = [leaf + noise(i, leaf) if leaf.ndim == 1 else leaf for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, leaves)


def as_numbers(images: jax.Array) -> jax.Array:
    """Images u8 as f32 in [0, 1]: differences of bytes would wrap around."""
    return images.astype(jnp.float32) / 255.0


def classifier(architecture: Any, shape: Shape, num_classes: int, seed: int = 0) -> Network:
    """A network with a random head; stored variances stay positive."""
    model, fresh = init_backbone(architecture, jax.random.key(seed), shape)
    (dim,) = block_input_shapes(model, fresh, shape)[-1]
    running = jax.tree.map(
        lambda leaf: np.abs(leaf + np.float32(0.05)), enlivened(fresh.batch_stats, 7, 0.02)
    )
    variables = Variables(enlivened(fresh.params, 100), running)
    kernel = draws((dim, num_classes), seed + 1, std=dim**-0.5)
    moments = {"mean": [MEAN] * shape[-1], "std": [STD] * shape[-1]}
    return from_blocks(model, variables, kernel, image_shape=shape, **moments)


def nothing_known(network: Network) -> Memory:
    """A memory of images that nobody has seen."""
    config = InversionConfig(targets="gaussian", per_layer=PerLayerConfig(start="noise"))
    return empty_memory(network, config)


def block_solve(
    make: Callable[..., nnx.Module],
    shape: tuple[int, ...],
    *,
    statistics_of: tuple[type, ...] = (nnx.BatchNorm,),
    batch: int,
    num_steps: int,
) -> Case:
    """PMI: inputs of one block, a module of `make(rngs=...)`, whose outputs are given."""
    module = make(rngs=OneKey(jax.random.key(0)))
    block, params, batch_stats = as_block(module, shape, statistics_of=statistics_of)
    axis = shape[-1]
    out = jax.eval_shape(
        lambda x: block.apply(params, batch_stats, x, train=False)[0],
        jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
    )
    inputs = {
        "variables": (enlivened(params, 100), batch_stats),
        "start": draws((batch, *shape), 1),
        "target": draws(out.shape, 2),
        "moments": Moments(np.zeros(axis, np.float32), np.ones(axis, np.float32)),
        "key": jax.random.key(3),
    }
    config = PerLayerConfig(start="gaussian", num_steps=num_steps, statistics_weight=0.25)

    def run(inputs):
        found = invert_block(
            *inputs["variables"], inputs["start"], inputs["target"], inputs["moments"],
            inputs["key"], block=block, config=config,
        )  # fmt: skip
        return {"losses": found.losses, "terms": found.terms, "x": found.x}

    return Case(inputs, run, num_steps, batch)


def refinement(
    architecture: Any, shape: Shape, *, batch: int, num_steps: int, num_classes: int = 10
) -> Case:
    """PMI: images optimised through the whole network."""
    network = classifier(architecture, shape, num_classes)
    inputs = {
        "variables": network,
        "target": draws((batch, network.feature_dim), 2),
        "labels": drawn_labels(batch, num_classes),
        "start": draws((batch, *shape), 3),
        "key": jax.random.key(4),
    }
    config = FullModelConfig(
        num_steps=num_steps, cross_entropy_weight=1.0, total_variation_weight=0.1
    )
    variant = InversionVariant(warmup_steps=1)

    def run(inputs):
        network = inputs["variables"]
        everything = jnp.ones(num_classes, bool)
        targets = Targets(inputs["target"], inputs["labels"], network.head, everything)
        found = refine_images(
            network, inputs["start"], targets, nothing_known(network), inputs["key"],
            config=config, variant=variant,
        )  # fmt: skip
        return {"losses": found.losses, "terms": found.terms, "images": found.x}

    return Case(inputs, run, num_steps, batch)


def deep_inversion(
    architecture: Any,
    shape: Shape,
    *,
    batch: int,
    num_steps: int,
    num_classes: int = 10,
    precision: str = "float32",
    flip: bool = True,
    jitter_pixels: int = 2,
    learning_rate: float = 0.1,
    **traits: Any,
) -> Case:
    """DeepInversion from noise; `traits` are those of its variant."""
    inputs = {
        "variables": classifier(architecture, shape, num_classes),
        "labels": drawn_labels(batch, num_classes),
        "start": draws((batch, *shape), 3),
        "key": jax.random.key(4),
    }
    config = DeepInversionConfig(
        stage_steps=(num_steps,),
        flip=flip,
        jitter_pixels=jitter_pixels,
        learning_rate=learning_rate,
    )
    variant = DeepInversionVariant(forward_precision=precision, **traits)

    def run(inputs):
        found = deep_inversions.deep_inversion(
            inputs["variables"], inputs["labels"], inputs["key"], config=config, variant=variant,
            start=inputs["start"],
        )  # fmt: skip
        return {"losses": found.losses, "terms": found.terms, "images": as_numbers(found.images)}

    return Case(inputs, run, num_steps, batch)


def generator_call(
    architecture: Any,
    student_architecture: Any,
    shape: Shape,
    *,
    config: CmiConfig,
    variant: CmiVariant,
    num_classes: int = 10,
    fast: bool = False,
) -> Case:
    """A call of CMI or, with `fast`, of FastDFKD."""
    teacher = classifier(architecture, shape, num_classes)
    settings = {"config": config, "variant": variant}
    state = (init_fast_dfkd if fast else init_cmi)(teacher, jax.random.key(5), **settings)
    if fast:
        # As after some calls: the student counts, and so does what earlier images have shown.
        state = state._replace(num_calls=np.int32(variant.adversarial_warmup_calls))
    else:
        bank = state.bank._replace(
            rows=draws(state.bank.rows.shape, 6, std=0.1),
            count=np.int32(len(state.bank.rows)),
        )
        state = state._replace(bank=bank)
    inputs = {
        "variables": teacher,
        "labels": drawn_labels(config.batch_size, num_classes),
        "student": classifier(student_architecture, shape, num_classes, seed=8),
        "state": state,
        "key": jax.random.key(9),
    }

    def run(inputs):
        names = ("state", "variables", "labels", "key")
        state, found = (fast_dfkd if fast else cmi)(
            *(inputs[n] for n in names), student=inputs["student"], **settings
        )
        opt_state = state.opt_state[0] if fast else state.opt_state
        return {
            "losses": found.losses,
            "terms": found.terms,
            "images": as_numbers(found.images),
            "mean_gradients": opt_state.mu,
        }

    return Case(inputs, run, config.num_steps, config.batch_size)


def later_phase(method: str, config: Config, name: str) -> Phase:
    """A phase of a method's later tasks, by its name."""
    phases = METHODS[method].phases(config.train, config.losses)
    return next(phase for phase in phases if phase.name == name)


def class_incremental(
    architecture: Any,
    shape: Shape,
    config: Config,
    phase: Phase,
    *,
    num_classes: int,
    num_steps: int,
) -> Case:
    """Training steps of a later task, whose classes are the second half."""
    auxiliary = {}
    if config.losses.recipe == "stagewise":
        dim = classifier(architecture, shape, num_classes).feature_dim
        auxiliary["angle_maps"] = init_angle_projections(jax.random.key(2), dim, dim)
    return _training(architecture, shape, config, phase, (), auxiliary, num_classes, num_steps)


def vdfd(
    architecture: Any, shape: Shape, config: Config, *, num_classes: int, num_steps: int
) -> Case:
    """VDFD's training steps of the second task, with random records of the first."""
    (phase,) = METHODS["vdfd"].phases(config.train, config.losses)
    network = classifier(architecture, shape, num_classes)
    tensors = named_tensors(network.model, network.variables.params)
    records = random_records(tensors, 1, num_classes // 2)
    graph = init_class_graph(jax.random.key(2), network.feature_dim, 4, 4)
    auxiliary = {"class_graph": graph}
    return _training(architecture, shape, config, phase, records, auxiliary, num_classes, num_steps)


def _training(architecture, shape, config, phase, records, auxiliary, num_classes, num_steps):
    train, old = config.train, num_classes // 2
    replay = num_steps, train.replay_batch_size if phase.replay else 1
    real = num_steps, train.batch_size
    pixels = np.random.default_rng(0)
    inputs = {
        "variables": classifier(architecture, shape, num_classes),
        "teacher": classifier(architecture, shape, num_classes, seed=20),
        "auxiliary": auxiliary,
        "records": records,
        "images": pixels.integers(0, 256, (*real, *shape), np.uint8),
        "labels": drawn_labels(real[0] * real[1], num_classes - old).reshape(real) + old,
        "replay_images": pixels.integers(0, 256, (*replay, *shape), np.uint8),
        "replay_labels": drawn_labels(replay[0] * replay[1], old, 1).reshape(replay),
        "key": jax.random.key(3),
    }
    new = (np.arange(num_classes) >= old).astype(np.float32)
    rates = np.full(num_steps, phase.learning_rate, np.float32)
    program = TrainProgram(phase, train, config.losses, config.data.augment)

    def run(inputs):
        network, auxiliary = inputs["variables"], inputs["auxiliary"]
        parts = trainable_parts(network, auxiliary)
        opt_state = optimiser(train).init(parts)
        learner = Learner(network, auxiliary, opt_state, jnp.ones(num_classes))
        names = ("images", "labels", "replay_images", "replay_labels")
        chunk = Chunk(*(inputs[n] for n in names), rates, np.int32(0), np.int32(num_steps))
        data = TaskData(inputs["teacher"], new, 1 - new, inputs["records"])
        end, metrics = train_steps(learner, chunk, data, inputs["key"], program=program)
        ended = trainable_parts(end.network, end.auxiliary)
        return {
            "terms": metrics.terms,
            "change": jax.tree.map(jnp.subtract, ended, parts),
            "moments": end.network.variables.batch_stats,
        }

    images = train.batch_size + train.replay_batch_size * phase.replay
    return Case(inputs, run, num_steps, images, hidden_steps=num_steps)


def clip_training(model: Any, *, batch: int, num_steps: int, rank: int = 4) -> Case:
    """Training steps of CLIP's adapters in a later task of two old and two new classes."""
    size, channels = (num_steps, batch), 3
    shape, sizes = model.image_shape, model.sizes
    base = clips.init_clip(model, jax.random.key(0))
    # Larger than at the start, or all features were nearly the same.
    embedding = dict(base.text["embedding"])
    embedding["tokens"] = 20 * embedding["tokens"]
    base = base._replace(text={**base.text, "embedding": embedding})
    tokens = np.zeros((4, 2, sizes.context), np.int32)
    end = sizes.end_token
    for c in range(4):
        tokens[c, 0, :3], tokens[c, 1, :4] = [end - 1, c, end], [end - 1, 5, c, end]
    losses = MethodConfig(
        ce_weight=1.0, hkd_weight=0.1, tkd_weight=0.2, ft_weight=0.001, joint_weight=0.5
    )
    program = ClipProgram(clips.adapted(model), 0.0, losses, AugmentConfig())
    pixels = np.random.default_rng(0)

    def adapters(seed):
        fresh = clips.init_clip_adapters(model, jax.random.key(seed), rank=rank)
        leaves, treedef = jax.tree.flatten(jax.device_get(fresh))
        noisy = [x + draws(x.shape, seed + i, std=0.3) for i, x in enumerate(leaves)]
        return jax.tree.unflatten(treedef, noisy)

    inputs = {
        "variables": base,
        "adapters": adapters(1),
        "teacher": adapters(50),
        "images": pixels.integers(0, 256, (*size, *shape), np.uint8),
        "labels": drawn_labels(num_steps * batch, 2).reshape(size) + 2,
        "replay_images": pixels.integers(0, 256, (*size, *shape), np.uint8),
        "replay_labels": drawn_labels(num_steps * batch, 2, 1).reshape(size),
        "key": jax.random.key(3),
    }
    new = np.float32([0, 0, 1, 1])
    moments = jnp.full(channels, MEAN), jnp.full(channels, STD)
    rates = np.full(num_steps, 3e-3, np.float32)

    def run(inputs):
        start = inputs["adapters"]
        learner = ClipLearner(start, clip_optimiser(program.weight_decay).init(start))
        names = ("images", "labels", "replay_images", "replay_labels")
        chunk = Chunk(*(inputs[n] for n in names), rates, np.int32(0), np.int32(num_steps))
        task = ClipTask(inputs["variables"], inputs["teacher"], tokens, new, 1 - new, *moments)
        end, metrics = clip_train_steps(learner, chunk, task, inputs["key"], program=program)
        # Not the adapters: Adam makes the sign of a gradient out of nearly nothing.
        return {"terms": metrics.terms, "mean_gradients": end.opt_state[0].mu}

    return Case(inputs, run, num_steps, 2 * batch, hidden_steps=num_steps)
