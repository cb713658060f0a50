import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_network
from rows import chain
from rows import model_of
from rows import piece
from small_network import MEAN
from small_network import NUM_CLASSES
from small_network import STD
from small_network import blobs
from small_network import fresh_network
from small_network import learner_of

from jaxpmi.augment import normalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import AugmentConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import TrainConfig
from jaxpmi.continual import losses
from jaxpmi.continual.apr.push import Push
from jaxpmi.continual.learners import first_phases
from jaxpmi.continual.methods import classification
from jaxpmi.continual.train import DRAWN
from jaxpmi.continual.train import Chunk
from jaxpmi.continual.train import Learner
from jaxpmi.continual.train import TaskData
from jaxpmi.continual.train import TrainProgram
from jaxpmi.continual.train import optimiser
from jaxpmi.continual.train import phase_learning_rates
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.training_phase import Phase
from jaxpmi.features.gaussian import init_class_stats
from jaxpmi.inversion.generator import init_generator
from jaxpmi.inversion.generator import sample_images
from jaxpmi.models import resnet
from jaxpmi.network import CosineHead
from jaxpmi.network import Head
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

ARCHITECTURE = chain(
    piece(resnet.Stem, 4),
    piece(resnet.ResidualBlock, 8, stride=2),
    piece(resnet.ResidualBlock, 8, pool=True),
)
MODEL = model_of(ARCHITECTURE, small_network.SHAPE)
TRAIN = TrainConfig(batch_size=8, replay_batch_size=8, weight_decay=0.01)
STEPS, BATCH = 4, 8
OLD = np.asarray([1, 1, 0, 0], np.float32)
NEW = np.asarray([0, 0, 1, 0], np.float32)  # the last class is not seen yet
KEY = jax.random.key(0)


def both(views, config):
    """Classification of real and of synthetic images."""
    replay = losses.masked_cross_entropy(
        views.head(views.replay_features), views.replay_labels, views.seen_mask
    )
    return {**classification(views, config), "replay": replay}


NO_VIEWS = AugmentConfig()


def program(loss=classification, *, augment=NO_VIEWS, train=TRAIN, **options):
    phase = Phase("test", loss, 1.0, 0.1, **options)
    return TrainProgram(phase, train, MethodConfig(), augment)


def network(seed=0):
    """A network whose zero-initialised gammas are alive, or most gradients were 0."""
    fresh = fresh_network(ARCHITECTURE, seed=seed)
    alive = jax.tree.map(lambda x: x + 0.1, fresh.variables.params)
    shape = fresh.head.kernel.shape
    head = Head(jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32))
    return fresh.replace(variables=fresh.variables._replace(params=alive), head=head)


def batches(seed=0):
    rng = np.random.default_rng(seed)
    images, labels = blobs(16, seed=seed)
    new, old = np.flatnonzero(labels == 2), np.flatnonzero(labels < 2)
    real, replay = rng.choice(new, (STEPS, BATCH)), rng.choice(old, (STEPS, BATCH))
    return images[real], labels[real], images[replay], labels[replay]


def chunk_of(batches, *, rates=(0.1, 0.05, 0.2, 0.1), first=0, count=STEPS):
    rates = np.asarray(rates, np.float32)
    return Chunk(*batches, rates, np.int32(first), np.int32(count))


def task_of(teacher=None, new=NEW, old=OLD):
    return TaskData(network(1) if teacher is None else teacher, new, old)


def run(static, chunk, *, task=None, learner=None, key=KEY):
    learner = learner_of(network(), static.train) if learner is None else learner
    return train_steps(learner, chunk, task or task_of(), key, program=static)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def assert_equal(a, b):
    chex.assert_trees_all_equal(a, b)


def assert_close(a, b, **tolerance):
    chex.assert_trees_all_close(a, b, **tolerance)


def changed(before, after):
    """Whether any number of a tree differs."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


# Schedules.


def test_a_constant_rate_falls_at_the_milestones():
    phase = Phase("p", classification, 1.0, 0.1, milestones=(0.4, 0.6))
    rates = phase_learning_rates(phase, 10)
    np.testing.assert_allclose(rates, [0.1] * 4 + [0.01] * 2 + [0.001] * 4, rtol=1e-5)
    plain = dataclasses.replace(phase, milestones=())
    np.testing.assert_allclose(phase_learning_rates(plain, 3), 0.1, rtol=1e-6)


def test_a_cosine_has_the_length_of_the_phase():
    phase = Phase("p", classification, 1.0, 0.1, schedule="cosine", milestones=(0.5,))
    want = 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(phase_learning_rates(phase, 8), want, rtol=1e-5)
    assert phase_learning_rates(phase, 1).shape == (1,)


def test_a_warm_up_comes_before_the_schedule():
    train = dataclasses.replace(TRAIN, schedule="cosine", warmup_steps=4, learning_rate=0.1)
    (phase,) = first_phases(train, MethodConfig())
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8))
    want = [0.0, 0.025, 0.05, 0.075, *cosine]
    np.testing.assert_allclose(phase_learning_rates(phase, 12), want, rtol=1e-5)
    np.testing.assert_allclose(phase_learning_rates(phase, 3), [0, 0.05, 0.1], rtol=1e-5)
    steps = dataclasses.replace(phase, schedule="step", milestones=(0.25, 0.5))
    want = [0.0, 0.025, 0.05, 0.075, 0.01, 0.01, *[0.001] * 6]
    np.testing.assert_allclose(phase_learning_rates(steps, 12), want, rtol=1e-5)


# Steps.


@functools.cache
def plain_result():
    learner, metrics = run(program(), chunk_of(batches()))
    return as_numpy(learner), as_numpy(metrics)


@pytest.mark.parametrize("with_bias", [False, True])
def test_steps_are_sgd_with_momentum_and_weight_decay_written_out(with_bias):
    """Two of them, on every part, the batch statistics included."""
    start = network()
    if with_bias:
        start = start.replace(head=start.head._replace(bias=jnp.asarray([0.3, -0.1, 0.2, 0.4])))
    (params, batch_stats), head = start.variables, start.head
    learner, task = learner_of(start, TRAIN), task_of(start)
    got, _ = run(program(), chunk_of(batches(), count=2), learner=learner, task=task)
    images, labels, _, _ = batches()
    velocity = jax.tree.map(jnp.zeros_like, (params, head))

    @jax.jit
    def gradients(params, head, batch_stats, images, labels):
        def loss(params, head):
            x = normalise(images, MEAN, STD)
            out = blockwise.forward(MODEL, blockwise.Variables(params, batch_stats), x, train=True)
            logits = jnp.where((OLD + NEW > 0)[None], head(out.features), -1e9)
            picked = jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels]
            return -picked.mean(), out.moments

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, head)

    for step, rate in enumerate((0.1, 0.05)):
        grads, moments = gradients(params, head, batch_stats, images[step], labels[step])
        batch_stats = blockwise.update_batch_stats(batch_stats, moments)
        parts = (params, head)
        decayed = jax.tree.map(lambda g, p: g + 0.01 * p, grads, parts)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, decayed)
        params, new_head = jax.tree.map(lambda p, v, r=rate: p - r * v, parts, velocity)
        rest = lambda new, old: jnp.where(np.resize(OLD + NEW > 0, new.shape), new, old)  # noqa: E731
        head = jax.tree.map(rest, new_head, head)  # unseen columns rest
    assert_close(got.network.variables.params, params, rtol=1e-3, atol=2e-5)
    assert_close(got.network.head, head, rtol=1e-3, atol=2e-5)
    assert_close(got.network.variables.batch_stats, batch_stats, rtol=1e-3, atol=2e-5)


def test_adamw_is_that_of_optax_with_gains_and_biases_left_out():
    config = dataclasses.replace(TRAIN, optimiser="adamw")
    rng = np.random.default_rng(0)
    names = ("kernel", "scale", "bias", "positions", "class_token")
    params = {name: jnp.asarray(rng.standard_normal((3, 4), np.float32)) for name in names}
    mask = {name: name == "kernel" for name in names} | {"head": Head(True, False)}
    params["head"] = Head(params["kernel"] + 1.0, params["bias"] + 1.0)
    ours, theirs = optimiser(config), optax.adamw(0.01, weight_decay=0.01, mask=mask)
    got, want = params, params
    ours_state, theirs_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), params)
        updates, ours_state = ours.update(grads, ours_state, got)
        got = jax.tree.map(lambda p, u: p - 0.01 * u, got, updates)
        updates, theirs_state = theirs.update(grads, theirs_state, want)
        want = optax.apply_updates(want, updates)
    assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_padding_steps_do_nothing():
    images, labels, replay_images, replay_labels = batches()
    junk = (images.copy(), labels.copy(), replay_images, replay_labels)
    junk[0][2:], junk[1][2:] = 255, 3
    want, want_metrics = run(program(), chunk_of(batches(), count=2))
    rates = [0.1, 0.05, np.nan, np.inf]
    got, metrics = run(program(), chunk_of(junk, rates=rates, count=2))
    assert_equal(got, want)
    assert_equal(metrics, want_metrics)


def test_chunks_continue_each_other():
    """First two steps, then the others as a chunk of their own, with crops that are per step."""
    static = program(augment=AugmentConfig(crop_padding=2))
    want, want_metrics = run(static, chunk_of(batches()))
    learner, first = run(static, chunk_of(batches(), count=2))
    later = [np.concatenate([part[2:], part[:2]]) for part in batches()]
    got, second = run(
        static, chunk_of(later, rates=(0.2, 0.1, 0, 0), first=2, count=2), learner=learner
    )
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    total = jax.tree.map(np.add, first.terms, second.terms)
    assert_close(total, want_metrics.terms, rtol=1e-4)
    # Without the right number of the first step the crops are others.
    learner, _ = run(static, chunk_of(batches(), count=2))
    other, _ = run(static, chunk_of(later, rates=(0.2, 0.1, 0, 0), count=2), learner=learner)
    assert np.abs(other.network.head.kernel - want.network.head.kernel).max() > 1e-5


def test_metrics_are_sums_over_the_steps():
    _, metrics = plain_result()
    assert list(metrics.terms) == ["cross_entropy"]
    one_by_one, learner = 0.0, None
    for step in range(STEPS):
        rolled = [np.roll(part, -step, axis=0) for part in batches()]
        rates = np.roll([0.1, 0.05, 0.2, 0.1], -step)
        learner, part = run(
            program(), chunk_of(rolled, rates=rates, first=step, count=1), learner=learner
        )
        one_by_one += float(part.terms["cross_entropy"])
    np.testing.assert_allclose(metrics.terms["cross_entropy"], one_by_one, rtol=1e-4)


def test_seen_labels_are_counted():
    """From 1, as the published code does; synthetic ones too where the phase has them."""
    labels, replay_labels = batches()[1], batches()[3]
    learner, _ = plain_result()
    want = 1 + np.bincount(labels.ravel(), minlength=NUM_CLASSES)
    np.testing.assert_array_equal(learner.class_counts, want)
    learner, _ = run(program(both, replay=True), chunk_of(batches()))
    want = want + np.bincount(replay_labels.ravel(), minlength=NUM_CLASSES)
    np.testing.assert_array_equal(learner.class_counts, want)


def test_a_term_that_is_not_finite_is_told_with_its_first_step():
    images, labels, replay_images, replay_labels = batches()
    rates = [0.1, np.inf, 0.1, 0.1]  # step 1 blows the network up, so step 2 shows it
    _, metrics = run(program(both, replay=True), chunk_of(batches(), rates=rates, first=40))
    assert set(metrics.bad_step) == {"cross_entropy", "replay"}
    assert int(metrics.bad_step["cross_entropy"]) == 42 == int(metrics.bad_step["replay"])
    _, metrics = plain_result()
    assert int(metrics.bad_step["cross_entropy"]) == -1


# What rests.


@pytest.mark.parametrize(
    ("trainable", "first"), [("all", 0), ("body", 1), ("last_block", 2), ("head", 3)]
)
def test_frozen_blocks_stay_bit_equal(trainable, first):
    """Their running statistics too, although weight decay and momentum pull at everything."""
    static = program(both, replay=True, trainable=trainable, new_columns_only=True)
    start = network()
    learner = learner_of(start, TRAIN)
    velocity = jax.tree.map(jnp.ones_like, learner.opt_state)  # of a phase before
    before = as_numpy(start)
    after, _ = run(static, chunk_of(batches()), learner=learner._replace(opt_state=velocity))
    for i in range(3):
        name = blockwise.block_name(i)
        for part in ("params", "batch_stats"):
            old = getattr(before.variables, part)[name]
            new = getattr(after.network.variables, part)[name]
            assert changed(old, new) == (i >= first), (name, part)
    resting = NEW == 0
    new, old = after.network.head.kernel, before.head.kernel
    np.testing.assert_array_equal(new[:, resting], old[:, resting])
    assert (np.abs(new - old)[:, ~resting] > 0).all()


def test_columns_of_unseen_classes_always_rest():
    before, (after, _) = as_numpy(network()), plain_result()
    new, old = after.network.head.kernel, before.head.kernel
    np.testing.assert_array_equal(new[:, 3], old[:, 3])
    assert (np.abs(new - old)[:, :3] > 0).all()


def test_the_scale_of_a_head_by_cosines_is_trained_and_unseen_columns_rest():
    start = network()
    start = start.replace(head=CosineHead(start.head.kernel, jnp.ones(())))
    before = as_numpy(start)
    learner = learner_of(start, TRAIN)
    after, _ = run(program(), chunk_of(batches()), task=task_of(start), learner=learner)
    new, old = as_numpy(after.network.head), before.head
    assert new.scale != old.scale
    np.testing.assert_array_equal(new.kernel[:, 3], old.kernel[:, 3])
    assert (np.abs(new.kernel - old.kernel)[:, :3] > 0).all()


# What a batch is.


@pytest.mark.parametrize("joint", [False, True])
def test_real_and_synthetic_images_share_a_batch_norm_batch_only_if_asked(joint):
    static = program(both, replay=True, joint_batch=joint)
    got, _ = run(static, chunk_of(batches(), count=1))
    start = network()
    images, _, replay_images, _ = batches()
    parts = [normalise(part[0], MEAN, STD) for part in (images, replay_images)]
    parts = [np.concatenate(parts)] if joint else parts
    want = start.variables.batch_stats
    forward = jax.jit(functools.partial(blockwise.forward, MODEL, train=True))
    for part in parts:
        want = blockwise.update_batch_stats(want, forward(start.variables, part).moments)
    assert_close(got.network.variables.batch_stats, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("augment_replay", [False, True])
def test_synthetic_images_are_augmented_only_if_asked(augment_replay):
    train = dataclasses.replace(TRAIN, augment_replay=augment_replay)
    only_replay = lambda views, config: {"replay": both(views, config)["replay"]}  # noqa: E731
    static = program(only_replay, replay=True, train=train, augment=AugmentConfig(crop_padding=2))
    values = [
        float(run(static, chunk_of(batches(), count=1), key=jax.random.key(s))[1].terms["replay"])
        for s in (0, 1)
    ]
    assert (values[0] != values[1]) == augment_replay


# Programs and devices.


def test_replay_is_pushed_to_its_class_before_the_step():
    """In the teacher pushed images are nearer to the means of their classes than they were."""
    stats = init_class_stats(4, network().feature_dim, full=True)
    stats = stats._replace(mean=stats.mean + 0.5)
    task = task_of()._replace(class_stats=stats)

    def distance(push):
        def gap(views, config):
            del config
            means = stats.mean[views.replay_labels]
            return {"gap": jnp.square(views.teacher_replay_features - means).mean()
                    + 0.0 * views.features.sum()}  # fmt: skip

        static = program(gap, replay=True, push=push)
        _, metrics = run(static, chunk_of(batches(), count=1), task=task)
        return float(metrics.terms["gap"])

    far, near = distance(None), distance(Push(num_steps=5, step=0.2))
    assert near < 0.8 * far


def of_replay(views, config):
    """Terms that tell what the replay was."""
    old = jax.nn.one_hot(views.replay_labels, NUM_CLASSES) * views.old_mask[None]
    mean = views.teacher_replay_features.mean()
    return {**classification(views, config), "mean": mean, "old": old.sum()}


def test_replay_of_a_generator_is_drawn_anew_in_every_step_as_it_is():
    """Not clipped to pixels, labelled by the teacher; what the chunk holds takes no part."""
    generator = init_generator(
        jax.random.key(5), small_network.SHAPE, latent_dim=4, widths=(4, 4, 2)
    )
    contrast = generator.batch_stats["bn3"]._replace(var=jnp.full(1, 1e-4))
    generator = generator._replace(
        opt_state=(), batch_stats={**generator.batch_stats, "bn3": contrast}
    )
    task = task_of()._replace(generator=generator)
    static = program(of_replay, replay=True)
    real, labels, images, replay_labels = batches()
    chunk = chunk_of((real, labels, images, replay_labels), count=2)
    other = chunk_of((real, labels, 255 - images, replay_labels), count=2)
    learner, metrics = run(static, chunk, task=task)
    teacher, want, drawn = task.teacher, 0.0, []
    for step in range(2):
        key = jax.random.fold_in(jax.random.fold_in(KEY, DRAWN), step)
        drawn.append(sample_images(generator, key, BATCH))
        want += blockwise.forward(teacher.model, teacher.variables, drawn[-1]).features.mean()
    np.testing.assert_allclose(metrics.terms["mean"], want, rtol=1e-4)
    black, white = (jnp.abs(end).max() for end in teacher.pixel_range)
    assert np.abs(drawn[0]).max() > max(black, white)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01
    assert metrics.terms["old"] == 2 * BATCH
    assert learner.class_counts[:2].sum() - 2 == 2 * BATCH and learner.class_counts[2] > 1
    assert_equal(metrics, run(static, other, task=task)[1])


def test_another_task_is_not_compiled_again():
    static = program(both, replay=True)
    run(static, chunk_of(batches()))
    num_programs = train_steps._cache_size()
    run(
        program(both, replay=True),  # equal, not the same
        chunk_of(batches(3), rates=(0.5, 0.4, 0.3, 0.2), first=7, count=3),
        task=task_of(network(2), new=np.asarray([0, 0, 0, 1], np.float32), old=OLD + NEW),
        key=jax.random.key(9),
    )
    assert train_steps._cache_size() == num_programs
    other = dataclasses.replace(static, phase=dataclasses.replace(static.phase, name="other"))
    run(other, chunk_of(batches()))
    assert train_steps._cache_size() == num_programs + 1


def test_the_learner_is_donated():
    learner = learner_of(network(), TRAIN)
    run(program(), chunk_of(batches()), learner=learner)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(learner.network))


def test_eight_devices_train_as_one():
    static = program(both, replay=True, augment=AugmentConfig(crop_padding=2))
    results = []
    for num_devices in (1, 8):
        mesh = make_mesh(num_devices)
        rest = (np.asarray([0.1, 0.05, 0.2, 0.1], np.float32), np.int32(0), np.int32(STEPS))
        chunk = Chunk(*shard_batch(batches(), mesh, axis=1), *replicate(rest, mesh))
        assert chunk.images.sharding.spec[:2] == (None, "data")
        assert len(chunk.images.sharding.device_set) == num_devices
        learner = Learner(*replicate(tuple(learner_of(network(), TRAIN)), mesh))
        results.append(run(static, chunk, task=replicate(task_of(), mesh), learner=learner))
    (one, one_metrics), (eight, eight_metrics) = results
    assert eight.network.head.kernel.sharding.is_fully_replicated
    assert len(eight.network.head.kernel.sharding.device_set) == 8
    assert_close(as_numpy(one), as_numpy(eight), rtol=1e-3, atol=1e-4)
    assert_close(as_numpy(one_metrics.terms), as_numpy(eight_metrics.terms), rtol=1e-4)
