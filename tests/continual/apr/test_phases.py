"""APR in the loop: which images it chooses, what it keeps, what it leaves alone."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import set_up
from tiny_run import tiny_config

from jaxpmi import experiment
from jaxpmi import load_network
from jaxpmi.continual.apr import phases
from jaxpmi.continual.apr.statistics import new_class_stats
from jaxpmi.continual.apr.variants import APR_VARIANTS
from jaxpmi.continual.apr.views import task_views
from jaxpmi.continual.learners import apr_learner
from jaxpmi.continual.loop import task_plan
from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.features.gaussian import fit_class_stats
from jaxpmi.features.gaussian import init_class_stats
from jaxpmi.network import raw_features
from jaxpmi.runs import session


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def begin_second_task(tmp_path, variant=APR_VARIANTS["standard"]):
    """A run about to choose images, and its state, as if the first task had been learnt."""
    run, order = open_run(tiny_config(tmp_path, "apr", data__augment__crop_padding=2))
    run = dataclasses.replace(run, method=apr_learner(variant))
    state = initial_state(run, order)
    dim = state.network.feature_dim
    run.stream.begin(0)
    images, labels = run.stream.train_images(0, np.arange(16)), run.stream.train_labels(0)
    features = raw_features(state.network, jnp.asarray(images))
    new = fit_class_stats(features, jnp.asarray(labels), 6, full=True)
    empty = init_class_stats(6, dim, full=True)
    seen = np.arange(6) < 2
    stats = empty._replace(
        count=np.where(seen, new.count, 0.0),
        mean=np.where(seen[:, None], new.mean, empty.mean),
        cov=np.where(seen[:, None, None], new.cov, empty.cov),
    )
    run.stream.begin(1)
    one = jnp.asarray(1, jnp.int32)
    return run, state.replace(memory=jax.tree.map(jnp.asarray, stats), task=one, phase=one)


def test_chosen_images_are_the_nearest_views_and_are_drawn_the_same_again(tmp_path):
    few = dataclasses.replace(APR_VARIANTS["standard"], replay_images=5)
    run, state = begin_second_task(tmp_path, few)
    (tick,) = phases.choose_phase(run, state)
    replay = jax.device_get(tick.state.replay)
    assert replay.count == 10 and list(replay.labels[:10]) == [0] * 5 + [1] * 5
    views = task_views(run, state, jax.random.split(phases.phase_key(state))[0])
    features = views.features()
    for label in (0, 1):
        distances = np.linalg.norm(features - np.asarray(state.memory.mean[label]), axis=1)
        chosen = raw_features(state.teacher, replay.samples[5 * label : 5 * label + 5])
        found = np.linalg.norm(np.asarray(chosen) - np.asarray(state.memory.mean[label]), axis=1)
        np.testing.assert_allclose(found, np.sort(distances)[:5], rtol=1e-5)
    again = views.gather(np.arange(16))
    np.testing.assert_array_equal(again, views.gather(np.arange(16)))
    images = run.stream.train_images(1, np.arange(16))
    assert (again != images).any()  # views, not the images themselves
    assert 0.0 <= tick.scalars["reached_before"] <= tick.scalars["reached_after"] <= 1.0


def test_fewer_images_than_asked_for_keep_their_labels(tmp_path):
    """A task of 16 images, of which the nearest 100 to each of two classes are wanted."""
    run, state = begin_second_task(tmp_path)
    (tick,) = phases.choose_phase(run, state)
    replay = jax.device_get(tick.state.replay)
    assert replay.count == 32 and replay.labels.shape == (100 * 4,)
    np.testing.assert_array_equal(replay.labels[:32], np.repeat([0, 1], 16))
    assert not replay.samples[32:].any() and not replay.labels[32:].any()


def test_new_classes_have_their_mean_and_unbiased_covariance(tmp_path):
    run, state = begin_second_task(tmp_path)
    stats = new_class_stats(run, state, capacity=20)
    images, labels = run.stream.train_images(1, np.arange(16)), run.stream.train_labels(1)
    features = np.asarray(raw_features(state.network, jnp.asarray(images)))
    np.testing.assert_array_equal(stats.count, [0, 0, 8, 8, 0, 0])
    for label in (2, 3):
        own = features[labels == label]
        np.testing.assert_allclose(stats.mean[label], own.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats.cov[label], np.cov(own.T), rtol=1e-3, atol=1e-5)


def test_old_classes_stay_where_the_network_does(tmp_path):
    """The network is still the teacher: old statistics do not move, new ones come beside them."""
    run, state = begin_second_task(tmp_path)
    (tick,) = phases.remember_phase(run, state)
    stats, before = tick.state.memory, state.memory
    np.testing.assert_allclose(stats.mean[:2], before.mean[:2], atol=1e-5)
    np.testing.assert_allclose(stats.cov[:2], before.cov[:2], rtol=1e-2, atol=1e-5)
    np.testing.assert_array_equal(stats.count, [8, 8, 8, 8, 0, 0])
    assert np.abs(stats.mean[2:4]).max() > 0 and not stats.mean[4:].any()
    assert tick.scalars["reached_mean"] > 0


def test_a_task_begins_with_choosing_and_ends_with_statistics(tmp_path):
    run, _ = open_run(tiny_config(tmp_path, "apr"))
    plan = [name for name, _ in task_plan(run, 1)]
    assert plan == ["begin", "choose", "train:all", "remember", "evaluate"]
    assert [name for name, _ in task_plan(run, 0)] == ["begin", "train:all", "remember", "evaluate"]


def test_the_old_network_rests_and_classes_are_told_apart_by_statistics(tmp_path, monkeypatch):
    """A whole run: the teacher is bit-equal to the network that the first task ended with."""
    ends, work = [], session.Session._task

    def kept(self, task):
        work(self, task)
        ends.append(jax.device_get(self.state))

    monkeypatch.setattr(session.Session, "_task", kept)
    config = tiny_config(tmp_path, "apr", data__tasks=2, train__epochs=3)
    summary = experiment.run(config)
    first, last = ends
    for ours, theirs in zip(
        jax.tree.leaves(first.network), jax.tree.leaves(last.teacher), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert float(last.network.head.scale) != 1.0  # learnt, and carried over
    stats = last.memory
    assert summary["bytes_kept_between_tasks"]["class_stats"] == sum(x.nbytes for x in stats)
    head = phases.classifier(stats, APR_VARIANTS["standard"])
    stream = open_run(config)[0].stream
    stream.begin(0)
    stream.begin(1)
    tests = [
        (jnp.asarray(stream.test_images(t, np.arange(12))), stream.test_labels(t)) for t in (0, 1)
    ]

    def accuracies(network, head):
        return [(head(raw_features(network, x)).argmax(1) == y).mean() for x, y in tests]

    correct = accuracies(last.network, head)
    np.testing.assert_allclose(summary["accuracy_matrix"][1], correct, rtol=1e-6)
    # What is written for use elsewhere takes the nearest mean.
    saved = load_network(Path(config.workdir) / "network.npz")
    lines = [json.loads(t) for t in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    told = [
        line["task01/evaluate/nearest_mean"] for line in lines if "task01/evaluate/linear" in line
    ]
    np.testing.assert_allclose(told, [np.mean(accuracies(saved, saved.head))], rtol=1e-6)
