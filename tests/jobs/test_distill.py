"""Knowledge transfer, small: what a student may see, how its pool grows, how it resumes."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_page import read_page
from rows import model_of
from rows import sized
from tiny_run import NUM_CLASSES
from tiny_run import set_up
from tiny_run import tiny_config
from tiny_run import tiny_model

import jaxpmi
from jaxpmi import experiment
from jaxpmi.config import CmiConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import DistillConfig
from jaxpmi.config import ModelConfig
from jaxpmi.continual.run import phase_key
from jaxpmi.data import TaskStream
from jaxpmi.jobs import distill
from jaxpmi.jobs.methods import SYNTHESISERS
from jaxpmi.jobs.student import cosine_rates
from jaxpmi.jobs.synthesis import balanced_labels
from jaxpmi.runs import session

BATCH, ROUNDS = 8, 3


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def distill_config(folder, method="deep_inversion", **changes):
    """Three rounds of one batch and two steps; an initial batch for methods that adapt."""
    return tiny_config(
        folder,
        method,
        job="distill",
        data__tasks=1,
        deep_inversion=DeepInversionConfig(
            batch_size=BATCH, stage_steps=(3,), competition_weight=1.0, jitter_pixels=1
        ),
        cmi=CmiConfig(
            batch_size=BATCH, variant="small", num_steps=2, bank_size=2 * BATCH,
        ),
        distill=DistillConfig(
            student=ModelConfig(name="tiny", width=2), initial_batches=1, rounds=ROUNDS,
            steps_per_round=2, batch_size=BATCH,
        ),
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and summary of a finished run of every method."""
    runs = {}

    def run(method):
        if method not in runs:
            with pytest.MonkeyPatch.context() as patch:
                set_up(patch)
                config = distill_config(tmp_path_factory.mktemp(method), method)
                runs[method] = config, experiment.run(config)
        return runs[method]

    return run


@pytest.mark.parametrize("method", SYNTHESISERS)
def test_the_summary_tells_teacher_student_and_diversity(method, finished):
    config, summary = finished(method)
    workdir = Path(config.workdir)
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert (summary["job"], summary["method"]) == ("distill", method)
    assert json.loads((workdir / "data.json").read_text())["data"] == summary["data"]
    assert 0.0 <= summary["student_accuracy"] <= 1.0 and 0.0 <= summary["teacher_accuracy"] <= 1.0
    ratio = summary["student_accuracy"] / summary["teacher_accuracy"]
    np.testing.assert_allclose(summary["student_of_teacher"], ratio)
    assert summary["parameters"]["student"] < summary["parameters"]["teacher"]
    assert summary["num_synthesized"] == BATCH * (ROUNDS + 1)
    assert summary["diversity"]["synthetic"] > 0.0 and summary["diversity"]["real"] > 0.0
    assert (workdir / "images" / "synthetic.png").is_file()
    assert (workdir / "accuracy.png").is_file()
    page = read_page(workdir / "report.html")
    wanted = [summary[name] for name in ("teacher_accuracy", "student_accuracy")]
    assert page.numbers["numbers"][:2] == wanted
    assert len(page.images) == 2 * NUM_CLASSES and page.tags.count("svg") >= 2


def test_the_student_can_be_loaded(finished):
    """And has the accuracy that the summary tells."""
    config, summary = finished("cmi")
    found = jaxpmi.load_network(Path(config.workdir) / summary["network_file"])
    assert found.model == model_of(sized(tiny_model, width=2), found.image_shape)
    run, _ = distill.begin(config)
    images, labels = run.stream.test_images(0), run.stream.test_labels(0)
    accuracy = float((jaxpmi.logits(found, images).argmax(1) == labels).mean())
    assert accuracy == pytest.approx(summary["student_accuracy"], abs=1e-6)
    assert found.class_names == run.stream.class_names


@pytest.mark.parametrize("method", ["deep_inversion", "cmi"])
def test_the_pool_grows_by_one_batch_a_call(method, tmp_path, monkeypatch):
    counts, add = [], distill.add_batch

    def counted(run, state, *rest, **options):
        before = int(state.pool.count)
        result = add(run, state, *rest, **options)
        counts.append(int(result[0].pool.count) - before)
        return result

    for module in (distill, "jaxpmi.jobs.synthesis"):
        target = module if module is distill else __import__(module, fromlist=["x"])
        monkeypatch.setattr(target, "add_batch", counted)
    experiment.run(distill_config(tmp_path, method))
    assert counts == [BATCH] * (ROUNDS + 1)


def test_no_real_image_is_read_after_the_teacher_is_trained(tmp_path, monkeypatch):
    phases, work = [], session.Session._phase

    def begun(self, task, name, phase):
        phases.append(name)
        work(self, task, name, phase)

    def forbid(read):
        def guarded(self, *arguments, **options):
            assert phases[-1].startswith("train"), f"real training images in {phases[-1]}"
            return read(self, *arguments, **options)

        return guarded

    config = distill_config(tmp_path)  # its moments of pixels are read before the first phase
    run, _ = distill.begin(config)
    moments = {"data__mean": (0.4,) * run.stream.image_shape[-1], "data__std": (0.3,)}
    monkeypatch.setattr(session.Session, "_phase", begun)
    for name in ("train_images", "seen_train_images"):
        monkeypatch.setattr(TaskStream, name, forbid(getattr(TaskStream, name)))
    experiment.run(distill_config(tmp_path, **moments))
    assert "distill" in phases


@pytest.mark.parametrize("method", ["adaptive_deep_inversion", "cmi"])
def test_a_stopped_run_goes_on_to_the_same_numbers(method, finished, tmp_path, monkeypatch):
    config, summary = finished(method)
    again = dataclasses.replace(
        distill_config(tmp_path, method), data=config.data, checkpoint_every=1
    )
    log, seen = session.Session._log, []

    def stop(self, task, name, tick, number):
        log(self, task, name, tick, number)
        seen.append(name)
        if seen.count("distill") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.Session, "_log", stop)
        experiment.run(again)
    resumed = experiment.run(again)
    for name in ("teacher_accuracy", "student_accuracy_curve", "diversity"):
        np.testing.assert_equal(resumed[name], summary[name])


def test_the_pool_keeps_images_rounded_to_8_bits(tmp_path):
    run, state = distill.begin(distill_config(tmp_path, "noise"))
    key, labels = jax.random.fold_in(phase_key(state), 0), balanced_labels(run, 0, BATCH)
    noise = jaxpmi.noise_start(jnp.asarray(labels), key, image_shape=run.stream.image_shape)
    mean, std = np.asarray(state.network.mean), np.asarray(state.network.std)
    exact = 255 * np.clip(np.asarray(noise) * std + mean, 0, 1)
    assert np.abs(exact - exact.round()).max() > 0.1
    (tick, *_) = distill.invert_phase(run, state)
    kept = np.asarray(tick.state.pool.samples[:BATCH])
    assert kept.dtype == np.uint8 and np.ptp(kept) > 100
    assert np.abs(kept - exact).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(tick.state.pool.labels[:BATCH], labels)


def test_the_students_learning_rate_rises_and_falls():
    rates = cosine_rates(0.4, 13, warmup_steps=3)
    expected = [0.1, 0.2, 0.3, *(0.2 * (1 + np.cos(np.pi * np.arange(10) / 10)))]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert cosine_rates(0.4, 1).tolist() == [np.float32(0.4)]


def test_labels_are_balanced(tmp_path):
    run, _ = distill.begin(distill_config(tmp_path))
    counts = np.bincount(balanced_labels(run, 0, 20), minlength=run.stream.num_classes)
    assert counts.sum() == 20 and counts.max() - counts.min() <= 1
