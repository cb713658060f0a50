import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_case import Case
from method_case import changed
from small_network import MEAN
from small_network import STD
from small_network import trained

from jaxpmi.augment import denormalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import CmiConfig
from jaxpmi.inversion import fast_dfkd as fast
from jaxpmi.inversion import objectives
from jaxpmi.inversion.latent_search import to_normalised
from jaxpmi.inversion.pixel_generator import generate_pixels
from jaxpmi.inversion.synthetic import label_agreement
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.network import Head

CASE = Case(
    CmiConfig(num_steps=1, learning_rate=1e-2),
    CmiVariant(
        latent_dim=8,
        channels=(8, 8, 4),
        latent_rate_factor=3.0,
        crop_padding=0,  # views are the images
        adversarial_warmup_calls=2,
        reset_call=50,
    ),
)
LABELS = np.arange(8, dtype=np.int32) % 4


@functools.cache
def fresh():
    """Before any call; copied before it is used, which donates it."""
    return fast.init_fast_dfkd(trained().network, jax.random.key(0), **CASE._asdict())


def call(state, seed, case=CASE, student=None):
    """The next state, and the solution, whose images are not yet rounded to what is stored."""
    state, network, key = jax.tree.map(jnp.array, state), trained().network, jax.random.key(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "as_stored", lambda network, solution, labels: solution)
        return fast.fast_dfkd(state, network, LABELS, key, **case._asdict(), student=student)


def latents(seed):
    """As `fast_dfkd` draws them."""
    return jax.random.normal(jax.random.split(jax.random.key(seed), 3)[0], (8, 8))


def images_of(generator, seed):
    return to_normalised(generate_pixels(generator, latents(seed)), MEAN, STD)


def moments_of(images):
    net = trained().network
    return blockwise.forward(net.model, net.variables, images).moments


def plain_loss(generator, seed):
    """What a first call minimises, in one line per term."""
    net = trained().network
    outputs = blockwise.forward(net.model, net.variables, images_of(generator, seed))
    distance = objectives.batch_norm_distance(net.model, outputs.moments, net.variables.batch_stats)
    return distance + objectives.class_cross_entropy(outputs.features @ net.head.kernel, LABELS)


def assert_trees_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_the_first_call_has_the_plain_loss():
    """The moving average is not there yet, so its share counts for nothing."""
    state, solution = call(fresh(), 1)
    np.testing.assert_allclose(solution.losses, [plain_loss(fresh().generator, 1)], rtol=1e-4)
    np.testing.assert_allclose(solution.x, images_of(fresh().generator, 1), atol=1e-5)
    assert state.num_calls == 1 and bool(solution.finite)


def test_images_are_returned_as_they_are_stored_with_the_share_that_is_right():
    network, (_, want) = trained().network, call(fresh(), 1)
    start = jax.tree.map(jnp.array, fresh())
    _, got = fast.fast_dfkd(start, network, LABELS, jax.random.key(1), **CASE._asdict())
    assert got.images.dtype == np.uint8 and got.images.std() > 1
    np.testing.assert_array_equal(got.images, denormalise(want.x, MEAN, STD))
    np.testing.assert_array_equal(got.losses, want.losses)
    assert got.loss == want.loss and got.terms == want.terms and bool(got.finite)
    assert got.agreement == label_agreement(network, got.images, LABELS)


def test_statistics_are_a_moving_average_over_calls():
    one, _ = call(fresh(), 1)
    first = moments_of(images_of(fresh().generator, 1))
    assert_trees_close(one.statistics, first, rtol=1e-3, atol=1e-4)
    two, solution = call(one, 2)
    second = moments_of(images_of(one.generator, 2))
    want = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, first, second)
    assert_trees_close(two.statistics, want, rtol=1e-3, atol=1e-4)
    # The second call compares what that average would become.
    net = trained().network
    distance = objectives.batch_norm_distance(net.model, want, net.variables.batch_stats)
    np.testing.assert_allclose(solution.terms["statistics"], distance, rtol=1e-3)
    # A momentum of 0 is the plain loss, whatever was before.
    config = changed(CASE, statistics_momentum=0.0)
    _, solution = call(one, 2, config)
    np.testing.assert_allclose(solution.losses, [plain_loss(one.generator, 2)], rtol=1e-4)


def test_the_average_carries_no_gradient():
    state, _ = call(fresh(), 1)
    moments = state.statistics

    def total(statistics, moments):
        blended = fast.blend_statistics(state._replace(statistics=statistics), moments, 0.9)
        return sum(leaf.sum() for leaf in jax.tree.leaves(blended))

    of_average, of_batch = jax.grad(total, argnums=(0, 1))(state.statistics, moments)
    for leaf in jax.tree.leaves(of_average):
        np.testing.assert_array_equal(leaf, 0.0)
    for leaf in jax.tree.leaves(of_batch):
        np.testing.assert_allclose(leaf, 0.1, rtol=1e-5)


def first_moments(state):
    """Adam's average of the meta gradient, (1 - 0.5) times it after the first call."""
    return jax.tree.map(lambda m: 2.0 * m, state.opt_state[0].mu)


def test_fomaml_of_one_step_has_the_gradient_at_the_start():
    want = jax.jit(jax.grad(lambda generator: plain_loss(generator, 1)))(fresh().generator)
    state, _ = call(fresh(), 1)
    assert_trees_close(first_moments(state), want, rtol=1e-2, atol=1e-3)
    # One meta step of Adam, whose first is the sign of the gradient times K lr, from the start.
    move = np.asarray(state.generator["conv1"] - fresh().generator["conv1"])
    sure = np.abs(want["conv1"]) > 1e-2
    assert sure.mean() > 0.5
    np.testing.assert_allclose(move[sure], -1e-2 * np.sign(want["conv1"])[sure], rtol=1e-2)


def test_without_a_learning_rate_a_call_returns_the_start():
    config = changed(CASE, num_steps=3, learning_rate=0.0)
    state, solution = call(fresh(), 4, config)
    assert_trees_close(state.generator, fresh().generator, rtol=0, atol=0)
    np.testing.assert_allclose(solution.x, images_of(fresh().generator, 4), atol=1e-5)
    np.testing.assert_allclose(solution.losses, np.full(3, solution.losses[0]), rtol=1e-5)


def test_fomaml_sums_the_gradients_of_all_steps():
    config = changed(CASE, num_steps=3, learning_rate=0.0)
    state, _ = call(fresh(), 1, config)
    one = jax.jit(jax.grad(lambda generator: plain_loss(generator, 1)))(fresh().generator)
    want = jax.tree.map(lambda gradient: 3.0 * gradient, one)
    assert_trees_close(first_moments(state), want, rtol=1e-2, atol=3e-3)


def test_the_first_layer_is_drawn_anew_at_its_call():
    config = changed(CASE, reset_call=5, learning_rate=0.0)
    for calls_before, redrawn in ((5, False), (6, True), (7, False)):
        state, _ = call(fresh()._replace(num_calls=jnp.asarray(calls_before)), 1, config)
        assert state.num_calls == calls_before + 1
        moved = np.abs(state.generator["linear"] - fresh().generator["linear"]).max() > 1e-3
        assert moved == redrawn
        np.testing.assert_array_equal(state.generator["conv1"], fresh().generator["conv1"])


def test_the_student_counts_from_its_call_on():
    """A student that is sure of less than the teacher, of whose classes it names every one."""
    network = trained().network
    student = network.replace(head=Head(0.5 * network.head.kernel))
    config = changed(CASE, adversarial_weight=10.0)
    for calls_before, weight in ((0, 0.0), (1, 10.0), (5, 10.0)):
        state = fresh()._replace(num_calls=jnp.asarray(calls_before))
        _, solution = call(state, 1, config, student)
        terms = {name: float(term) for name, term in solution.terms.items()}
        assert terms["adversarial"] < -1e-3
        total = terms["statistics"] + terms["cross_entropy"] + weight * terms["adversarial"]
        np.testing.assert_allclose(solution.loss, total, rtol=1e-4)


def test_a_learned_start_is_better_than_a_fresh_one():
    config = changed(CASE, num_steps=2)
    state, losses = fresh(), []
    for seed in range(25):
        state, solution = call(state, seed, config)
        losses.append(float(solution.losses[0]))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
