"""Learners, terms, backbones, networks and ways to make images that only a config names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import own_code
import pytest
import small_network
import tiny_run

from jaxpmi import experiment
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import DistillConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import ModelConfig
from jaxpmi.inversion.deep_inversion import deep_inversion
from jaxpmi.inversion.own_terms import OwnTerm
from jaxpmi.inversion.own_terms import find_own_terms
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.weights.network_file import load_network

LABELS = jnp.arange(8, dtype=jnp.int32) % small_network.NUM_CLASSES
DARKNESS = OwnTerm("darkness", own_code.darkness, 500.0)


@pytest.fixture
def tiny(monkeypatch):
    tiny_run.set_up(monkeypatch)


def test_a_learner_of_ones_own_runs_in_the_loop(tiny, tmp_path):
    config = tiny_run.tiny_config(tmp_path, "own_code:feature_matching")
    summary = experiment.run(config)
    assert summary["method"] == "own_code:feature_matching"
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "task02/train/all/own_match" in text and "task00/train/all/cross_entropy" in text
    assert summary["num_synthesized"] == 6 * tiny_run.BATCH
    assert np.isfinite(summary["last_accuracy"])


def test_a_backbone_of_ones_own_is_the_one_it_names(tiny, tmp_path):
    one, other = (
        experiment.run(
            tiny_run.tiny_config(tmp_path, "finetune", model__name=name, workdir=f"{tmp_path}/{i}")
        )
        for i, name in enumerate(("tiny", "own_code:two_blocks"))
    )
    assert one["accuracy_matrix"] == other["accuracy_matrix"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_code:darkness", "cannot be called as it will be, with image_shape, width and rngs"),
        ("math:tau", "cannot be called as it will be, .*: 6.28.* is not a callable object; give"),
        ("own_code:no_blocks", "the architecture returns a NoneType without blocks; return an"),
    ],
)
def test_names_that_make_no_backbone(tiny, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(tiny_run.tiny_config(tmp_path, "finetune", model__name=name))


def test_terms_of_ones_own_are_minimised():
    network = small_network.trained().network
    config = DeepInversionConfig(stage_steps=(12,), learning_rate=0.1)
    key = jax.random.key(0)
    plain = deep_inversion(network, LABELS, key, config=config)
    darker = deep_inversion(network, LABELS, key, config=config, own_terms=(DARKNESS,))
    named = dataclasses.replace(config, own_terms=("own_code:darkness=500",))
    assert "darkness" not in plain.terms and set(darker.terms) == {*plain.terms, "darkness"}
    assert darker.images.mean() < plain.images.mean() - 5
    by_name = deep_inversion(network, LABELS, key, config=named)
    np.testing.assert_array_equal(by_name.images, darker.images)


def test_terms_of_ones_own_refine_images():
    net, key = small_network.trained(), jax.random.key(0)
    config = InversionConfig(targets="gaussian")
    config = dataclasses.replace(
        config, full_model=dataclasses.replace(config.full_model, num_steps=12)
    )
    plain, darker = (
        synthesize(net.network, LABELS, key, memory=net.memory, config=config, own_terms=terms)
        for terms in ((), (DARKNESS,))
    )
    assert darker.images.mean() < plain.images.mean() - 1
    assert darker.terms["darkness"].shape == ()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ((OwnTerm("statistics", own_code.darkness, 1.0),), "a term is called 'statistics' already"),
        (
            (OwnTerm("row", own_code.row, 1.0),),
            r"the term 'row' has shape \(8,\); expected a scalar",
        ),
    ],
)
def test_terms_that_cannot_be(terms, message):
    network = small_network.trained().network
    with pytest.raises(ValueError, match=message):
        deep_inversion(network, LABELS, jax.random.key(0), own_terms=terms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_code:darkness", "has 'own_code:darkness'; expected 'module:function=weight'."),
        ("darkness=1", "has 'darkness=1'; expected 'module:function=weight'."),
        ("own_code:light=1", "field='own_code:light': own_code has no 'light'."),
    ],
)
def test_texts_that_name_no_term(text, message):
    with pytest.raises(ValueError, match=message):
        find_own_terms([text], "field")


def test_ways_to_make_images_of_ones_own_teach_a_student(tiny, tmp_path):
    config = tiny_run.tiny_config(
        tmp_path,
        "own_code:grey",
        job="distill",
        data__tasks=1,
        deep_inversion=DeepInversionConfig(batch_size=tiny_run.BATCH),
        distill=DistillConfig(
            student=ModelConfig(name="tiny", width=2), rounds=2, steps_per_round=2,
            batch_size=tiny_run.BATCH,
        ),
    )  # fmt: skip
    summary = experiment.run(config)
    assert summary["num_synthesized"] == 2 * tiny_run.BATCH
    with np.load(tmp_path / "run" / "images" / "synthetic.npz") as made:
        assert len(np.unique(made["x"])) == 1


def test_a_job_takes_a_network_as_it_is_and_its_file_is_read(tiny, tmp_path):
    config = tiny_run.tiny_config(
        tmp_path,
        "deep_inversion",
        job="invert",
        data__tasks=1,
        model=ModelConfig(weights="own_code:six_classes"),
        deep_inversion=DeepInversionConfig(batch_size=tiny_run.BATCH, stage_steps=(2,)),
    )
    experiment.run(config)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "train" not in text
    given, read = own_code.six_classes(), load_network(tmp_path / "run" / "network.npz")
    assert read.model == given.model
    np.testing.assert_array_equal(read.head.kernel, given.head.kernel)
    np.testing.assert_array_equal(read.mean, given.mean)


def test_learning_goes_on_from_a_network_that_is_given(tiny, tmp_path):
    config = tiny_run.tiny_config(
        tmp_path, "finetune", model=ModelConfig(weights="own_code:six_classes")
    )
    summary = experiment.run(config)
    assert np.isfinite(summary["last_accuracy"])


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "own_code:nothing",
            "returns a NoneType; return a Network, such as one of jaxpmi.from_nnx",
        ),
        ("small_network:trained", "returns a Trained; return a Network"),
    ],
)
def test_factories_that_return_no_network(tiny, tmp_path, factory, message):
    config = tiny_run.tiny_config(
        tmp_path, "deep_inversion", job="invert", model=ModelConfig(weights=factory)
    )
    with pytest.raises(ValueError, match=message):
        experiment.run(config)


def test_a_network_of_other_classes_is_refused(tiny, tmp_path):
    config = tiny_run.tiny_config(
        tmp_path, "deep_inversion", job="prune", data__tasks=1,
        data__num_classes=4, model=ModelConfig(weights="own_code:six_classes"),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"model.weights is a network of .* and 6 classes, but"):
        experiment.run(config)
