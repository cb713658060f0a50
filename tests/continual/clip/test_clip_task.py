"""What a CLIP run remembers of a task, and how it aims at names, in small and without training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_clip_loop import config_of

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.continual.clip import start as clip_start
from jaxpmi.continual.clip import task as clip_task
from jaxpmi.continual.clip.task import invert_names_phase
from jaxpmi.continual.clip.task import remember_phase
from jaxpmi.continual.clip.variants import ClipVariant
from jaxpmi.continual.state import Replay
from jaxpmi.features.gaussian import fit_class_stats
from jaxpmi.inversion import synthesis
from jaxpmi.sharding import make_mesh

GAUSSIAN = ["--inversion.per-layer.start", "gaussian", "--inversion.per-layer.num-steps", "1"]
FEATURES_ALONE = """--inversion.per-layer.start noise
  --inversion.full-model.pixel-statistics-weight 0
  --inversion.full-model.total-variation-weight 0""".split()
STACK, HEAD = 2, 3  # among the blocks of the image tower


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(clip_start, "make_mesh", lambda: make_mesh(1))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Keeps the small CLIP, so that it is pretrained once per kind of moments."""
    return tmp_path_factory.mktemp("clip")


def open_task(workdir, task, *options, **traits):
    """A run and its state when a task has been trained: other adapters than before it."""
    config = config_of(workdir, *GAUSSIAN, *options)
    variant = ClipVariant(**{"name_match": "features"} | traits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_start, "make_mesh", lambda: make_mesh(1))
        patch.setattr(clip_start, "CLIP_VARIANTS", {config.clip.variant: variant})
        run, order = clip_start.open_clip_run(config)
    state = clip_start.initial_clip_state(run, order)
    state = state.replace(
        teacher=noisy(state.teacher, task), adapters=noisy(state.teacher, 1 + task)
    )
    run.stream.begin(task)
    return run, state.replace(task=jnp.asarray(task, jnp.int32))


def noisy(adapters, seed):
    leaves, treedef = jax.tree.flatten(adapters)
    rng = np.random.default_rng(seed)
    leaves = [leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, leaves)


def remembered(run, state):
    (tick,) = remember_phase(run, state)
    return tick.state


def next_task(run, state):
    """The state after another task, trained without a step but with other adapters."""
    task = int(state.task) + 1
    run.stream.begin(task)
    fresh = run.fresh_adapters(jax.random.key(0))
    state = state.replace(teacher=state.adapters, adapters=noisy(fresh, 1 + task))
    return state.replace(task=jnp.asarray(task, jnp.int32))


def looked(run, state, adapters, images):
    """One pass of all images through the tower with these adapters."""
    network = run.network(adapters, state.memory)
    return jax.jit(functools.partial(forward, network.model))(
        network.variables, normalise(jnp.asarray(images), run.mean, run.std)
    )


def assert_close(got, want, tolerance=1e-3):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-3), got, want
    )


def differs(a, b):
    return any(
        np.abs(x - y).max() > 0.01 for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.mark.parametrize(
    ("network", "axis"), [("trained", "channel"), ("previous", "channel"), ("trained", "token")]
)
def test_moments_are_those_of_the_network_asked_for(workdir, network, axis):
    run, state = open_task(workdir, 0, layer_statistics=network, statistics_axis=axis)
    after, images = remembered(run, state), run.stream.train_images(0)
    of = {"trained": state.adapters, "previous": state.teacher}
    seen = {name: looked(run, state, adapters, images) for name, adapters in of.items()}
    assert_close(after.memory.layer_moments, seen[network].moments)
    assert_close(after.memory.block_inputs, seen[network].block_inputs)
    assert_close(after.base_memory.layer_moments, looked(run, state, None, images).moments)
    other = seen["previous" if network == "trained" else "trained"]
    if axis == "channel":  # per token, the outputs of a fresh LayerNorm are all alike
        assert differs(after.memory.layer_moments, other.moments)
    assert differs(after.memory.block_inputs, other.block_inputs)
    stats = after.memory.class_stats
    own = fit_class_stats(
        seen["trained"].features, jnp.asarray(run.stream.train_labels(0)), len(stats.count),
        full=True,
    )  # fmt: skip
    assert_close(stats.mean, own.mean)  # class Gaussians are always of the network just trained
    width, tokens, depth = 48, 17, 2
    shape = {"channel": (width,), "token": (tokens, 1)}[axis]
    assert after.memory.layer_moments["block02"]["attention"].mean.shape == (depth, *shape)
    assert after.memory.block_inputs[STACK].var.shape == (depth, *shape)
    assert after.memory.block_inputs[HEAD].var.shape == shape
    assert after.memory.block_inputs[1].var.shape == (width,)  # of patch embeddings in any case


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("network", ["trained", "previous"])
def test_moments_of_the_last_block_may_stay_those_of_the_first_task(workdir, network, merge):
    run, state = open_task(workdir, 0, layer_statistics=network, merge_head_statistics=merge)
    first = remembered(run, state)
    both = remembered(run, next_task(run, first))
    *others, head = zip(first.memory.block_inputs, both.memory.block_inputs, strict=True)
    assert all(differs(a, b) for a, b in others)
    assert differs(*head) == merge


@pytest.mark.parametrize("refresh", [False, True])
def test_old_classes_are_described_anew_only_if_asked(workdir, refresh):
    run, state = open_task(workdir, 0, refresh_old_classes=refresh)
    first = remembered(run, state)
    old = run.stream.task_classes(0)
    # Replay that lacks a class: it stays as it was.
    labels = np.resize(np.asarray(old)[:-1], len(first.replay.labels)).astype(np.int32)
    images = np.random.default_rng(0).integers(0, 256, first.replay.samples.shape, np.uint8)
    replay = Replay(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(len(labels), jnp.int32))
    state = next_task(run, first.replace(replay=replay))
    both = remembered(run, state)
    features = looked(run, state, state.adapters, images).features
    before, stats = first.memory.class_stats, both.memory.class_stats
    anew = fit_class_stats(features, jnp.asarray(labels), len(before.count), full=True)
    weights = [s.memory.feature_models.params["weight"] for s in (first, both)]
    for label in old:
        changed = refresh and label != old[-1]
        assert_close(stats.mean[label], (anew if changed else before).mean[label])
        assert differs(weights[0][label], weights[1][label]) == changed
    assert stats.count[: run.stream.task_classes(1).stop].min() > 0
    raw = [s.base_memory.class_stats.mean[: old.stop] for s in (first, both)]
    np.testing.assert_array_equal(*raw)


@pytest.fixture(scope="module")
def aims(workdir):
    """Runs the inversion of names; also returns its targets and the images before rounding."""
    base, state = open_task(workdir, 0, *FEATURES_ALONE)
    state = remembered(base, state)

    def aim(**options):
        given, solved, synthesize, as_stored = [], [], clip_task.synthesize, synthesis.as_stored

        def asked(*args, **options):
            given.append(options["features"])
            return synthesize(*args, **options)

        def stored(network, solution, *args, **options):
            solved.append(solution)
            return as_stored(network, solution, *args, **options)

        run = dataclasses.replace(base, variant=dataclasses.replace(base.variant, **options))
        last = state.replace(task=jnp.asarray(run.stream.num_tasks - 1, jnp.int32))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clip_task, "synthesize", asked)
            patch.setattr(synthesis, "as_stored", stored)
            patch.setattr(run.stream, "task_classes", classes)
            list(invert_names_phase(run, last))
        (features,), (solution,) = given, solved
        return run, state, np.asarray(features), solution

    def classes(task):
        """As if the names came after the first task, all that is remembered here."""
        return own[0] if task == 0 else range(own[0].stop, own[-1].stop)

    own = [base.stream.task_classes(task) for task in range(base.stream.num_tasks)]

    return aim


def test_directions_are_matched_at_length_1(aims):
    run, state, features, solution = aims(name_match="directions")
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    variables = run.network(None, state.base_memory).variables
    reached = np.asarray(forward(run.clip.image, variables, solution.x).features)
    reached = reached / np.linalg.norm(reached, axis=1, keepdims=True)
    np.testing.assert_allclose(
        solution.terms["feature_match"], np.square(reached - features).mean(), rtol=1e-3
    )


def test_features_are_as_long_as_those_of_seen_classes(aims):
    run, state, features, solution = aims()
    seen = state.base_memory.class_stats.mean[: run.stream.task_classes(0).stop]
    length = float(jnp.linalg.norm(seen, axis=1).mean())
    assert abs(length - 1.0) > 0.1
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), length, rtol=1e-4)
    variables = run.network(None, state.base_memory).variables
    reached = np.asarray(forward(run.clip.image, variables, solution.x).features)
    np.testing.assert_allclose(
        solution.terms["feature_match"], np.square(reached - features).mean(), rtol=1e-3
    )


def test_the_pivot_may_be_the_mean_of_images(aims, monkeypatch):
    pivots, project = [], clip_task.project_features
    monkeypatch.setattr(
        clip_task,
        "project_features",
        lambda *args, **options: pivots.append(options["pivot"]) or project(*args, **options),
    )
    aimed = [aims(name_pivot=pivot)[2] for pivot in ("text", "image_mean")]
    assert set(pivots) == {"text", "image_mean"}
    assert np.abs(aimed[0] - aimed[1]).max() > 0.1
