import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import chain
from rows import model_of
from rows import piece
from rows import variables_of
from small_network import as_network

from jaxpmi.blocks import blockwise
from jaxpmi.inversion import generator
from jaxpmi.models import resnet
from jaxpmi.network import Head

SHAPE, NUM_CLASSES = (8, 8, 1), 5
ARCHITECTURE = chain(piece(resnet.Stem, 4), piece(resnet.ResidualBlock, 6, stride=2, pool=True))
MODEL = model_of(ARCHITECTURE, SHAPE)
SEEN = np.asarray([1, 1, 1, 0, 0], np.float32)
SETTINGS = {"num_steps": 40, "batch_size": 16, "learning_rate": 1e-2}
TERMS = {"content", "balance", "statistics", "prior"}

generate = jax.jit(generator.generate, static_argnames="train")


@functools.cache
def fresh():
    init = functools.partial(generator.init_generator, image_shape=SHAPE, latent_dim=8)
    return jax.jit(functools.partial(init, widths=(8, 8, 4)))(jax.random.key(0))


@functools.cache
def teacher():
    variables = variables_of(ARCHITECTURE, jax.random.key(1), SHAPE)
    head = np.random.default_rng(0).normal(size=(6, NUM_CLASSES)).astype(np.float32)
    return as_network(MODEL, variables, 5.0 * head, image_shape=SHAPE)


def train(state, seed, seen=SEEN, **weights):
    weights = dict.fromkeys(TERMS, 1.0) | weights
    return generator.train_generator(
        state, teacher(), seen, jax.random.key(seed), weights=weights, **SETTINGS
    )


@functools.cache
def trained():
    return train(fresh(), 2)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 24, 3)])
@pytest.mark.parametrize(("latent_dim", "widths"), [(1000, (128, 128, 64)), (100, (32, 32, 16))])
def test_images_have_the_size_asked_for(shape, latent_dim, widths):
    def images(key, noise):
        state = generator.init_generator(key, shape, latent_dim=latent_dim, widths=widths)
        return generator.generate(state.params, state.batch_stats, noise, train=True)[0], state

    noise = jax.ShapeDtypeStruct((7, latent_dim), jnp.float32)
    got, state = jax.eval_shape(images, jax.random.key(0), noise)
    assert got.shape == (7, *shape)
    if widths[0] == 128 and shape == (32, 24, 3):
        # Parameters: the linear map, three convolutions, three BatchNorms, the last bias.
        count = 1000 * 128 * 8 * 6 + 9 * (128 * 128 + 128 * 64 + 64 * 3) + 2 * 320 + 3
        assert sum(p.size for p in jax.tree.leaves(state.params)) == count


def test_a_size_not_divisible_by_4_is_an_error():
    with pytest.raises(ValueError, match="30 x 28 is not divisible by 4"):
        generator.init_generator(jax.random.key(0), (30, 28, 1))


def test_training_images_are_standardised_and_evaluation_uses_running_moments():
    state, noise = fresh(), np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    images, moments = generate(state.params, state.batch_stats, noise, train=True)
    np.testing.assert_allclose(images.mean(), 0.0, atol=1e-4)
    np.testing.assert_allclose(images.var(), 1.0, atol=2e-2)
    evaluated, _ = generate(state.params, state.batch_stats, noise, hidden_epsilon=0.8)
    assert np.abs(evaluated).max() <= 1.0  # tanh, and initial running moments of 0 and 1
    # At the moments of this very batch both modes agree.
    again, _ = generate(state.params, moments, noise, hidden_epsilon=0.8)
    np.testing.assert_allclose(again, images, atol=1e-3)
    other, _ = generate(state.params, moments, noise, hidden_epsilon=1e-5)
    assert np.abs(other - images).max() > 1e-2


def test_training_lowers_the_loss_and_moves_all_of_the_state():
    state, metrics = trained()
    assert set(metrics) == TERMS | {"loss"}
    assert all(m.shape == (40,) and np.isfinite(m).all() for m in metrics.values())
    np.testing.assert_allclose(
        metrics["loss"], sum(np.asarray(metrics[k]) for k in TERMS), rtol=1e-4
    )
    assert metrics["loss"][-5:].mean() < 0.6 * metrics["loss"][0]
    assert metrics["statistics"][-5:].mean() < 0.6 * metrics["statistics"][0]
    assert state.opt_state.count == 40
    for new, old in zip(
        jax.tree.leaves(state.batch_stats), jax.tree.leaves(fresh().batch_stats), strict=True
    ):
        assert np.abs(new - old).max() > 0


def test_training_continues_from_a_state():
    state, metrics = train(trained()[0], 3)
    assert state.opt_state.count == 80
    assert metrics["loss"][0] < 0.7 * trained()[1]["loss"][0]


def test_the_balance_term_spreads_the_classes():
    off = dict.fromkeys(TERMS, 0.0)
    _, alone = train(fresh(), 4, **off | {"balance": 1.0})
    assert alone["balance"][0] > 0.1
    assert alone["balance"][-5:].mean() < 0.5 * alone["balance"][0]
    np.testing.assert_allclose(alone["loss"], alone["balance"], rtol=1e-5)


def test_another_set_of_seen_classes_does_not_retrace(monkeypatch):
    traces, terms = [], generator.generator_terms
    count = lambda *args, **kwargs: (traces.append(0), terms(*args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr(generator, "generator_terms", count)
    num_traces = []
    for task in (1, 2):
        seen = (np.arange(NUM_CLASSES) < 2 * task).astype(np.float32)
        settings = SETTINGS | {"num_steps": 3, "learning_rate": 1e-3 * task}
        generator.train_generator.eval_shape(
            fresh(), teacher(), seen, jax.random.key(task), **settings
        )
        num_traces.append(len(traces))
    assert num_traces[0] > 0 and num_traces[1] == num_traces[0]


def test_unseen_classes_have_no_say():
    images = np.random.default_rng(2).normal(size=(16, *SHAPE)).astype(np.float32)
    terms = jax.jit(generator.generator_terms)
    kernel = teacher().head.kernel
    loud = teacher().replace(head=Head(kernel.at[:, 3:].add(100.0)))
    want, got = (terms(network, SEEN, images) for network in (teacher(), loud))
    for name in TERMS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    assert terms(loud, np.ones(5, np.float32), images)["balance"] != want["balance"]
    features = blockwise.forward(MODEL, teacher().variables, images).features
    labels = generator.label_images(loud, SEEN, images)
    np.testing.assert_array_equal(labels, np.argmax(features @ kernel[:, :3], axis=1))
    assert (np.argmax(features @ loud.head.kernel, axis=1) >= 3).all()


def test_terms_vanish_on_data_that_has_them_right():
    """Constant images whose moments the teacher stores: no statistics and no prior loss."""
    variables = teacher().variables
    images = np.tile(np.linspace(-1.0, 1.0, 16, dtype=np.float32)[:, None, None, None], (1, *SHAPE))
    moments = blockwise.forward(MODEL, variables, images).moments
    # Deeper layers see moments that depend on the running ones before them, so settle in order.
    for _ in range(4):
        variables = variables._replace(batch_stats=moments)
        moments = blockwise.forward(MODEL, variables, images).moments
    network = teacher().replace(variables=variables)
    terms = generator.generator_terms(network, SEEN, images)
    np.testing.assert_allclose(terms["statistics"], 0.0, atol=1e-5)
    np.testing.assert_allclose(terms["prior"], 0.0, atol=1e-10)


def test_an_unknown_term_is_an_error():
    with pytest.raises(ValueError, match=r"unknown terms \['balanse'\]"):
        train(fresh(), 0, balanse=1.0)


def test_samples_are_drawn_in_evaluation_mode():
    state, _ = trained()
    key = jax.random.key(5)
    images = generator.sample_images(state, key, 16)
    assert images.shape == (16, *SHAPE)
    noise = jax.random.normal(key, (16, 8))
    want, _ = generate(state.params, state.batch_stats, noise, hidden_epsilon=0.8)
    np.testing.assert_allclose(images, want, atol=1e-4)
    assert np.unique(np.asarray(images), axis=0).shape == images.shape
