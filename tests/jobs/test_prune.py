"""Pruning, small: what goes, what is left, what it costs, how it resumes."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_page import read_page
from tiny_run import set_up
from tiny_run import tiny_config

import jaxpmi
from jaxpmi import experiment
from jaxpmi.blocks.blockwise import forward
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import PruneConfig
from jaxpmi.jobs import prune
from jaxpmi.runs import session

BATCH = 8


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def prune_config(folder, method="deep_inversion", **changes):
    """Half of the filters in two removals, on two batches of images."""
    settings = PruneConfig(
        num_removals=2, num_images=2 * BATCH, tuning_steps=2,
        final_steps=3, batch_size=BATCH,
    )  # fmt: skip
    return tiny_config(
        folder,
        method,
        job="prune",
        data__tasks=1,
        deep_inversion=DeepInversionConfig(
            batch_size=BATCH, stage_steps=(2,), competition_weight=1.0, jitter_pixels=1
        ),
        prune=settings,
        **changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config, summary and last state of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch)
        states, summarise = [], prune.PRUNE.summarise

        def keep(run, state, accounts):
            states.append((run, state))
            return summarise(run, state, accounts)

        patch.setitem(experiment.JOBS, "prune", prune.PRUNE._replace(summarise=keep))
        config = prune_config(tmp_path_factory.mktemp("prune"))
        return config, experiment.run(config), states[-1]


def test_the_summary_tells_accuracy_size_and_speed(finished):
    config, summary, _ = finished
    assert json.loads((Path(config.workdir) / "summary.json").read_text()) == summary
    assert (summary["job"], summary["method"]) == ("prune", "deep_inversion")
    assert len(summary["data"]["fingerprint"]) == 32
    for name in ("accuracy_before", "accuracy_after"):
        assert 0.0 <= summary[name] <= 1.0
    for name in ("filters", "parameters", "flops"):
        assert 0 < summary[name]["after"] < summary[name]["before"], name
    assert summary["measured_speed_up"] > 0.0
    page = read_page(Path(config.workdir) / "report.html")
    assert {summary["accuracy_after"], summary["measured_speed_up"]} < set(page.numbers["numbers"])
    assert "filters left" in page.sections["numbers"] and "pictures" in page.sections
    assert summary["num_synthesized"] == 2 * BATCH


def test_half_of_the_filters_are_gone(finished):
    _, summary, _ = finished
    before, after = (summary["filters"][k] for k in ("before", "after"))
    # A channel of the residual stream is as many filters as write it.
    assert before - after - round(0.5 * before) in range(3)


def test_the_small_network_is_the_masked_one(finished):
    _, _, (run, state) = finished
    small, student = prune.pruned_network(state), state.student
    images = jax.random.normal(jax.random.key(0), (4, *run.stream.image_shape))
    masked = student.head(forward(student.model, student.variables, images).features)
    features = forward(small.model, small.variables, images).features
    assert features.shape[1] < student.feature_dim
    np.testing.assert_allclose(small.head(features), masked, rtol=1e-4, atol=1e-5)


def test_the_small_network_can_be_loaded_bit_by_bit(finished):
    config, summary, (run, state) = finished
    found = jaxpmi.load_network(Path(config.workdir) / summary["network_file"])
    small = prune.pruned_network(state)
    assert found.class_names == run.stream.class_names
    chex.assert_trees_all_equal(found, small)  # its model and names too
    images = run.stream.test_images(0)
    np.testing.assert_array_equal(jaxpmi.logits(found, images), jaxpmi.logits(small, images))


def test_the_network_itself_stays_as_it_was(finished):
    _, summary, (run, state) = finished
    accuracy = prune.measure_accuracy(run, state.network)
    assert accuracy == pytest.approx(summary["accuracy_before"])
    gone = [not bool(mask.all()) for mask in state.kept.values()]
    assert any(gone)


def test_channels_that_are_gone_never_come_back(tmp_path, monkeypatch):
    seen, tune = [], prune._tune

    def record(run, state, *rest):
        seen.append(jax.device_get(state.kept))
        return tune(run, state, *rest)

    monkeypatch.setattr(prune, "_tune", record)
    experiment.run(prune_config(tmp_path))
    first, second = seen[:2]
    assert all(np.all(second[name] <= first[name]) for name in first)
    assert sum(m.sum() for m in second.values()) < sum(m.sum() for m in first.values())


def test_adaptive_images_are_made_between_removals(tmp_path, monkeypatch):
    against, add = [], prune.add_batch

    def record(*arguments, **options):
        against.append(options["against"] is not None)
        return add(*arguments, **options)

    monkeypatch.setattr(prune, "add_batch", record)
    summary = experiment.run(prune_config(tmp_path, "adaptive_deep_inversion"))
    assert against == [True] and summary["num_synthesized"] == 2 * BATCH


def test_a_stopped_run_goes_on_to_the_same_network(finished, tmp_path, monkeypatch):
    config, summary, (run, state) = finished
    again = dataclasses.replace(prune_config(tmp_path), data=config.data, checkpoint_every=1)
    log, seen = session.Session._log, []

    def stop(self, task, name, tick, number):
        log(self, task, name, tick, number)
        seen.append(name)
        if name == "prune":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.Session, "_log", stop)
        experiment.run(again)
    resumed = experiment.run(again)
    for name in ("accuracy_before", "accuracy_after", "filters", "parameters"):
        assert resumed[name] == summary[name], name


def test_a_run_killed_before_its_summary_writes_the_same_network_again(tmp_path, monkeypatch):
    config = prune_config(tmp_path)
    file, write = Path(config.workdir) / "network.npz", session.write_json

    def stop(path, obj):
        if path.name == "summary.json":
            raise KeyboardInterrupt
        write(path, obj)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, "write_json", stop)
        experiment.run(config)
    first = jaxpmi.load_network(file)
    file.unlink()
    experiment.run(config)
    chex.assert_trees_all_equal(jaxpmi.load_network(file), first)


def test_labels_rank_the_filters_of_the_network_itself(finished):
    """Where distillation from itself has no gradient (docs/distillation_and_pruning.md)."""
    _, _, (run, state) = finished
    scores = prune.measure_importance(
        state.network, state.pool, jax.random.key(0), settings=run.config.prune
    )
    assert max(float(jnp.max(s)) for s in scores.values()) > 0.0
