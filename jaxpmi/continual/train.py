"""Supervised training of one phase: many steps as one compiled program.

The host only feeds raw pixels. Augmentation, teacher and student passes, losses and the update are
one program per phase of a method; class masks, learning rates and the number of steps are data, so
nothing is compiled again for another task.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpmi.augment import augment
from jaxpmi.augment import augment_scenes
from jaxpmi.augment import normalise
from jaxpmi.augment import quarter_turns
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import forward
from jaxpmi.blocks.blockwise import update_batch_stats
from jaxpmi.config import AugmentConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual.apr.push import draw_targets
from jaxpmi.continual.apr.push import push_images
from jaxpmi.continual.losses import inverse_count_weights
from jaxpmi.continual.training_phase import Phase
from jaxpmi.continual.training_phase import Views
from jaxpmi.continual.vdfd.gradient_records import GradientRecords
from jaxpmi.continual.vdfd.gradient_records import regularised_tensors
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.inversion.generator import GeneratorState
from jaxpmi.inversion.generator import label_images
from jaxpmi.inversion.generator import sample_images
from jaxpmi.network import Network
from jaxpmi.optimise import schedules
from jaxpmi.optimise.descend import Descent
from jaxpmi.optimise.descend import descend
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

MOMENTUM = 0.9  # of SGD
POLYNOMIAL_POWER = 0.9  # as DeepLab and the continual learners of segmentation have it

# In place of the number of a step, for the key of what a generator draws.
DRAWN = 2**32 - 1

# Parameters without weight decay. By name: stacked layers give gains and biases a second axis.
NOT_DECAYED = ("scale", "bias", "class_token", "positions", "tokens", "logit_scale")


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """Everything static about the steps of a phase; equal programs compile once."""

    phase: Phase
    train: TrainConfig
    losses: MethodConfig
    augment: AugmentConfig
    label_maps: bool = False  # images are scenes, with their label map as the last channel


class Learner(NamedTuple):
    """What the steps change."""

    network: Network
    auxiliary: Any
    opt_state: Any
    class_counts: jax.Array  # f32[C]


class Chunk(NamedTuple):
    """Up to S steps' worth of raw batches; steps from `num_steps` on are padding.

    Synthetic images of CLIP may be patch embeddings f32[..., h, w, D] instead.
    """

    images: jax.Array  # u8[S, B, H, W, C], real images of this task; scenes have C + 1 channels
    labels: jax.Array  # i32[S, B]; of scenes without meaning
    replay_images: jax.Array  # u8[S, R, H, W, C]; of zero steps where the phase has no replay
    replay_labels: jax.Array  # i32[S, R]
    learning_rates: jax.Array  # f32[S]
    first_step: jax.Array  # i32[], number of the chunk's first step in the phase
    num_steps: jax.Array  # i32[]


class TaskData(NamedTuple):
    """What differs from task to task."""

    teacher: Network
    new_mask: jax.Array  # f32[C]
    old_mask: jax.Array  # f32[C]
    records: GradientRecords | tuple[()] = ()
    class_stats: ClassStats | tuple[()] = ()  # for the teacher, where a phase pushes images
    generator: GeneratorState | tuple[()] = ()  # that images of old classes are drawn from


class ChunkMetrics(NamedTuple):
    """Sums over the chunk's steps."""

    terms: dict[str, jax.Array]  # weighted loss terms
    bad_step: dict[str, jax.Array]  # i32[], first step at which a term was not finite, or -1
    monitored: dict[str, jax.Array]  # values that are no terms of the loss


def no_terms(names: Iterable[str], monitored: Iterable[str] = ()) -> ChunkMetrics:
    """Metrics of no step, for terms and monitored values of these names."""
    names = tuple(names)
    return ChunkMetrics(
        dict.fromkeys(names, jnp.zeros(())),
        dict.fromkeys(names, jnp.asarray(-1, jnp.int32)),
        dict.fromkeys(monitored, jnp.zeros(())),
    )


def add_terms(
    metrics: ChunkMetrics,
    terms: dict[str, jax.Array],
    step: jax.Array,
    monitored: dict[str, jax.Array] | None = None,
) -> ChunkMetrics:
    """Adds the terms of one step, and notes the step of those that are the first not finite."""
    bad = {
        name: jnp.where(
            (metrics.bad_step[name] < 0) & ~jnp.isfinite(term), step, metrics.bad_step[name]
        )
        for name, term in terms.items()
    }
    add = functools.partial(jax.tree.map, jnp.add)
    return ChunkMetrics(add(metrics.terms, terms), bad, add(metrics.monitored, monitored or {}))


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """The direction of a step, which scales it by the learning rate.

    SGD's is L2 added to the gradient, then momentum; Adam's the same with Adam's moments, but not
    of the classifier, as VDFD is published; AdamW's is Adam's, then L2 of matrices.
    """
    if config.optimiser == "adamw":
        decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
        return optax.chain(optax.scale_by_adam(), decay)
    weights = {
        "backbone": config.weight_decay,
        "head": 0.0 if config.optimiser == "adam" else None,
        "class_graph": config.graph_weight_decay,
    }

    def add_l2(updates, params):
        def decayed(path, update, param):
            weight = weights[_group(path)]
            return update + (config.weight_decay if weight is None else weight) * param

        return jax.tree.map_with_path(decayed, updates, params)

    adam = config.optimiser == "adam"
    direction = optax.scale_by_adam() if adam else optax.trace(MOMENTUM)
    return optax.chain(optax.stateless(add_l2), direction)


def _group(path):
    """Whose settings a leaf of `trainable_parts` has: backbone, head or class_graph."""
    names = [getattr(key, "key", None) for key in path[:2]]
    if names[0] == "head" or names == ["auxiliary", "rotated_head"]:
        return "head"
    return "class_graph" if names == ["auxiliary", "class_graph"] else "backbone"


def decayed(params: Params) -> Params:
    """Which parameters of a transformer have weight decay: all but those named `NOT_DECAYED`."""
    return jax.tree.map_with_path(lambda path, _: _last_name(path) not in NOT_DECAYED, params)


def _last_name(path):
    """Of a parameter, such as "bias" of "block02/norm1/bias"."""
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1]


def trainable_parts(network: Network, auxiliary: Any) -> dict[str, Any]:
    """All that an optimiser may see, as one tree."""
    return {
        "backbone": network.variables.params,
        "head": network.head,
        "auxiliary": auxiliary,
    }


def with_parts(network: Network, parts: dict[str, Any], batch_stats: Any) -> Network:
    """A network of these `trainable_parts` and running moments."""
    return network.replace(variables=Variables(parts["backbone"], batch_stats), head=parts["head"])


def phase_learning_rates(phase: Phase, num_steps: int) -> np.ndarray:
    """The learning rate of every step of a phase, f32[S]: cosine or polynomial to 0, or steps.

    A warm-up comes before, of one step less than the phase at most; milestones stay where they are.
    """
    warmup = min(phase.warmup_steps, num_steps - 1)
    if phase.schedule == "cosine":
        decay = schedules.cosine(num_steps - warmup)
    elif phase.schedule == "polynomial":
        decay = schedules.polynomial(num_steps - warmup, POLYNOMIAL_POWER)
    else:
        edges = {round(m * num_steps) - warmup: phase.milestone_factor for m in phase.milestones}
        decay = schedules.falls(edges)
    rates = schedules.learning_rates(num_steps, phase.learning_rate, decay, warmup_steps=warmup)
    return rates


@functools.partial(jax.jit, static_argnames="program", donate_argnames="learner")
def train_steps(
    learner: Learner, chunk: Chunk, task: TaskData, key: PRNGKey, *, program: TrainProgram
) -> tuple[Learner, ChunkMetrics]:
    """Runs `chunk.num_steps` steps of the optimiser."""
    losses = functools.partial(_losses, network=learner.network, task=task, program=program)
    key_drawn = jax.random.fold_in(key, DRAWN)

    def loss_fn(parts, state, index):
        batch_stats, counts, metrics = state
        step = chunk.first_step + index
        batch = _batch(chunk, index, jax.random.fold_in(key_drawn, step), task, program)
        terms, monitored, batch_stats = losses(
            parts, batch_stats, counts, batch, jax.random.fold_in(key, step)
        )
        for labels in (batch[1], batch[3]):
            if labels is not None:
                counts = counts + jax.nn.one_hot(labels, counts.shape[0]).sum(0)
        metrics = add_terms(metrics, terms, step, monitored)
        return sum(terms.values()), ((batch_stats, counts, metrics), None)

    parts = trainable_parts(learner.network, learner.auxiliary)
    first = parts, learner.network.variables.batch_stats, learner.class_counts
    shapes = jax.eval_shape(lambda k: _batch(chunk, 0, k, task, program), key)
    names, monitored, _ = jax.eval_shape(losses, *first, shapes, key)
    state = *first[1:], no_terms(names, monitored)
    end, _ = descend(
        loss_fn,
        Descent(parts, learner.opt_state, state),
        tx=optimiser(program.train),
        learning_rates=chunk.learning_rates,
        scales=_update_scales(parts, task, program),
        num_steps=chunk.num_steps,
    )
    batch_stats, counts, metrics = end.state
    network = with_parts(learner.network, end.params, batch_stats)
    return Learner(network, end.params["auxiliary"], end.opt_state, counts), metrics


def _batch(chunk, index, key, task, program):
    """Images and labels of one step, and those of the replay, None where the phase has none.

    Of a generator they are drawn anew, and are in the range of the network already.
    """
    parts = chunk[:4] if program.phase.replay else (*chunk[:2], None, None)
    images, labels, *replay = jax.tree.map(lambda part: part[index], parts)
    if program.phase.replay and task.generator:
        drawn = sample_images(task.generator, key, len(replay[1]))
        replay = drawn, label_images(task.teacher, task.old_mask, drawn)
    return images, labels, *replay


def _losses(parts, batch_stats, counts, batch, key, *, network, task, program):
    """The weighted terms, what is only monitored, and the running statistics after the step."""
    parts = _held(parts, network.model, program)
    images, labels, replay_images, replay_labels = batch
    key_real, key_replay = jax.random.split(key)
    moments = task.teacher.mean, task.teacher.std
    black, _ = task.teacher.pixel_range
    if program.label_maps:
        real, labels = augment_scenes(images, key_real, program.augment, *moments)
    else:
        real = normalise(images, *moments)
        real = augment(real, key_real, program.augment, black)
    if program.phase.rotations:
        real = quarter_turns(real)
    replay = None
    if replay_images is not None:
        replay = replay_images if task.generator else normalise(replay_images, *moments)
        if (push := program.phase.push) is not None:
            stats = task.class_stats, replay_labels, task.old_mask
            targets = draw_targets(*stats, key_replay, noise=push.noise)
            replay = jax.lax.stop_gradient(push_images(task.teacher, replay, targets, push))
        elif program.train.augment_replay:
            replay = augment(replay, key_replay, program.augment, black)
    student = with_parts(network, parts, batch_stats)
    features, replay_features, batch_stats = _student(student, real, replay, program)
    teacher = lambda x: jax.lax.stop_gradient(  # noqa: E731
        forward(task.teacher.model, task.teacher.variables, x).features
    )
    none = jnp.zeros((0, features.shape[-1]))
    tensors = {}
    if task.records:
        tensors = regularised_tensors(
            network.model, parts["backbone"], parts["head"],
            with_head=program.losses.vdfd.regularised_head,
        )  # fmt: skip
    views = Views(
        labels=labels,
        replay_labels=jnp.zeros((0,), jnp.int32) if replay is None else replay_labels,
        features=features,
        replay_features=none if replay is None else replay_features,
        teacher_features=teacher(real),
        teacher_replay_features=none if replay is None else teacher(replay),
        head=parts["head"],
        teacher_head=task.teacher.head,
        auxiliary=parts["auxiliary"],
        tensors=tensors,
        records=task.records,
        new_mask=task.new_mask,
        old_mask=task.old_mask,
        class_weights=inverse_count_weights(counts),
    )
    terms = program.phase.loss(views, program.losses)
    monitor = program.phase.monitor
    monitored = {} if monitor is None else jax.lax.stop_gradient(monitor(views, program.losses))
    return terms, monitored, batch_stats


def _student(network, real, replay, program):
    """Features of both batches in training mode, and the running statistics after them."""
    model, variables = network.model, network.variables
    names = [block_name(i) for i in range(len(model.blocks))]
    modes = tuple(name in _trainable_blocks(model, program) for name in names)
    run = functools.partial(forward, model, train=modes)

    def running(batch_stats, moments):
        new = update_batch_stats(batch_stats, moments)
        return {n: new[n] if mode else batch_stats[n] for n, mode in zip(names, modes, strict=True)}

    if replay is not None and program.phase.joint_batch:
        out = run(variables, jnp.concatenate([real, replay]))
        split = len(real)
        batch_stats = running(variables.batch_stats, out.moments)
        return out.features[:split], out.features[split:], batch_stats
    out = run(variables, real)
    batch_stats = running(variables.batch_stats, out.moments)
    if replay is None:
        return out.features, None, batch_stats
    replay_out = run(variables, replay)
    return out.features, replay_out.features, running(batch_stats, replay_out.moments)


def _trainable_blocks(model, program):
    names = [block_name(i) for i in range(len(model.blocks))]
    start = {"all": 0, "body": 1, "last_block": len(names) - 1, "head": len(names)}
    return names[start[program.phase.trainable] :]


def _held(parts, model, program):
    """The parts, of which the blocks that are not trained get no gradient."""
    blocks, backbone = _trainable_blocks(model, program), parts["backbone"]
    held = {k: v if k in blocks else jax.lax.stop_gradient(v) for k, v in backbone.items()}
    return parts | {"backbone": held}


def _update_scales(parts, task, program):
    """0 where no update (weight decay included) may act, else learning rates over the backbone's.

    Per leaf a scalar or a row.
    """
    train, blocks = program.train, set(_trainable_blocks(task.teacher.model, program))
    rates = {"head": train.head_learning_rate, "class_graph": train.graph_learning_rate}
    rate_of = lambda path: rates.get(_group(path)) or train.learning_rate  # noqa: E731
    scales = jax.tree.map_with_path(lambda path, _: rate_of(path) / train.learning_rate, parts)
    for name in parts["backbone"]:
        if name not in blocks:
            scales["backbone"][name] = jax.tree.map(lambda _: 0.0, parts["backbone"][name])
    columns = task.new_mask if program.phase.new_columns_only else task.new_mask + task.old_mask

    def of_classes(scale, p):
        # The last axis of kernel and bias is that of the classes; a number is of all.
        return scale * columns.reshape((1,) * (p.ndim - 1) + (-1,)) if p.ndim else scale

    scales["head"] = jax.tree.map(of_classes, scales["head"], parts["head"])
    if program.phase.bias_rests and parts["head"].bias is not None:
        scales["head"] = scales["head"]._replace(bias=0.0)
    return scales
