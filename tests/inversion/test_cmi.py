import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_case import Case
from method_case import changed
from rows import chain
from rows import model_of
from rows import piece
from rows import sized
from rows import variables_of
from small_network import MEAN
from small_network import SHAPE
from small_network import STD
from small_network import as_network
from small_network import fresh_network
from small_network import trained

from jaxpmi.augment import denormalise
from jaxpmi.augment import padded_crop
from jaxpmi.blocks import blockwise
from jaxpmi.config import CmiConfig
from jaxpmi.inversion import cmi as cmi_module
from jaxpmi.inversion import contrast
from jaxpmi.inversion import latent_search
from jaxpmi.inversion import objectives
from jaxpmi.inversion.cmi import cmi
from jaxpmi.inversion.cmi import init_cmi
from jaxpmi.inversion.cmi import two_views
from jaxpmi.inversion.synthetic import label_agreement
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.network import Head

CASE = Case(
    CmiConfig(batch_size=8, num_steps=12, learning_rate=5e-3, bank_size=16),
    CmiVariant(
        latent_dim=8, channels=(8, 8, 4), projection_dim=6, num_negatives=12, crop_padding=1
    ),
)
LABELS = np.arange(8, dtype=np.int32) % 4
STUDENT_ARCHITECTURE = chain(
    piece(resnet.Stem, 3), piece(resnet.ResidualBlock, 4, stride=2, pool=True)
)
STUDENT_MODEL = model_of(STUDENT_ARCHITECTURE, SHAPE)


@functools.cache
def student():
    variables = variables_of(STUDENT_ARCHITECTURE, jax.random.key(5), SHAPE)
    head = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    return as_network(STUDENT_MODEL, variables, head)


def fresh(case=CASE, seed=0):
    return init_cmi(trained().network, jax.random.key(seed), **case._asdict())


def call(state, seed, case=CASE, *, labels=LABELS, student=None):
    """Invert the small network once; a state of which parts are to be used again is copied.

    The images of the solution are not yet rounded to what is stored.
    """
    state, network = jax.tree.map(jnp.array, state), trained().network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cmi_module, "as_stored", lambda network, solution, labels: solution)
        return cmi(state, network, labels, jax.random.key(seed), **case._asdict(), student=student)


@functools.cache
def calls():
    """States and solutions of three calls in a row, the bank being full after the second."""
    state, history = fresh(), []
    for seed in range(3):
        state, solution = call(state, seed, student=student())
        history.append((state, solution))
    return history


def embed(images):
    return contrast.embed(contrast.observe(trained().network, images).moments)


def test_images_are_valid_and_the_loss_is_that_of_the_best_step():
    for state, solution in calls():
        assert solution.x.shape == (8, *SHAPE) and bool(solution.finite)
        pixels = np.asarray(solution.x) * STD + MEAN
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6 and pixels.std() > 0.01
        assert solution.losses.shape == (12,)
        assert solution.loss == solution.losses.min() < solution.losses[0]
        terms = {"statistics": 1.0, "cross_entropy": 1.0, "adversarial": 0.5, "contrastive": 0.8}
        assert set(solution.terms) == set(terms)
        total = sum(weight * solution.terms[name] for name, weight in terms.items())
        np.testing.assert_allclose(total, solution.loss, rtol=1e-5)
        assert solution.terms["adversarial"] <= 0.0
        assert jax.tree.structure(state) == jax.tree.structure(fresh())


def test_images_are_returned_as_they_are_stored_with_the_share_that_is_right():
    network, want = trained().network, calls()[0][1]
    state, got = cmi(
        fresh(), network, LABELS, jax.random.key(0), **CASE._asdict(), student=student()
    )
    assert got.images.dtype == np.uint8 and got.images.std() > 1
    np.testing.assert_array_equal(got.images, denormalise(want.x, MEAN, STD))
    np.testing.assert_array_equal(got.losses, want.losses)
    assert got.loss == want.loss and got.terms == want.terms and bool(got.finite)
    assert got.agreement == label_agreement(network, got.images, LABELS)


def test_the_bank_remembers_the_best_images_and_the_head_goes_on():
    (one, _), (two, _), (three, _) = calls()
    assert [int(state.bank.count) for state in (one, two, three)] == [8, 16, 16]
    assert [int(state.bank.position) for state in (one, two, three)] == [8, 0, 8]
    np.testing.assert_array_equal(two.bank.rows[:8], one.bank.rows[:8])
    np.testing.assert_array_equal(three.bank.rows[8:], two.bank.rows[8:])
    assert np.abs(three.bank.rows[:8] - two.bank.rows[:8]).max() > 1e-3
    counts = [int(state.opt_state.count) for state in (one, two, three)]
    assert counts == [12, 24, 36]
    assert np.abs(three.projection["kernel1"] - two.projection["kernel1"]).max() > 1e-4


def test_the_generator_goes_on_only_where_it_is_asked_to():
    assert fresh().generator == () and calls()[0][0].generator == ()
    config = changed(CASE, keeps_generator=True, num_steps=40)
    begin = fresh(config)
    one, first = call(begin, 0, config)
    two, second = call(one, 1, config)
    assert second.losses[0] < 0.9 * first.losses[0]
    still = changed(config, learning_rate=0.0)
    unmoved, _ = call(one, 2, still)
    changes = [
        np.abs(a["linear"] - b["linear"]).max()
        for a, b in ((begin.generator, one.generator), (one.generator, two.generator))
    ]
    assert min(changes) > 1e-3
    chex.assert_trees_all_equal(unmoved.generator, one.generator)


def test_rows_of_the_bank_are_statistics_of_a_local_and_of_the_global_view():
    """With a global view that is the image itself, the second half of a row is the image's own."""
    config = changed(CASE, crop_padding=0, local_scale=(0.2, 0.4), num_steps=3)
    state, solution = call(fresh(config), 1, config)
    want = np.asarray(embed(solution.x))
    local, whole = np.split(np.asarray(state.bank.rows[:8]), 2, axis=1)
    np.testing.assert_allclose(whole, want, rtol=1e-3, atol=1e-4)
    assert (np.abs(local - want).max(1) > 1e-2).all()
    # And so are the terms: those of the images, beside an empty bank.
    net = trained().network
    outputs = blockwise.forward(net.model, net.variables, solution.x)
    distance = objectives.batch_norm_distance(net.model, outputs.moments, net.variables.batch_stats)
    np.testing.assert_allclose(solution.terms["statistics"], distance, rtol=1e-4)
    error = objectives.class_cross_entropy(outputs.features @ net.head.kernel, LABELS)
    np.testing.assert_allclose(solution.terms["cross_entropy"], error, rtol=1e-3)


def test_a_full_bank_counts_on_the_very_next_call():
    (_, empty), (_, half), (_, full) = calls()
    # Of 8 + 12 keys, or 8 + 8, or 8: uniform guesses cost the logarithm of their number, twice.
    assert empty.terms["contrastive"] < 1.1 * np.log(8)
    for solution in (half, full):
        assert np.log(8) < solution.terms["contrastive"] and bool(solution.finite)


def test_every_call_starts_afresh_and_the_key_decides():
    state, solution = call(fresh(), 0, student=student())
    want_state, want = calls()[0]
    np.testing.assert_array_equal(solution.x, want.x)
    chex.assert_trees_all_equal(state, want_state)
    assert np.abs(calls()[1][1].x - want.x).max() > 1e-2


def test_longer_runs_find_the_labels_without_a_student():
    config = changed(CASE, num_steps=150, learning_rate=2e-2)
    net = trained().network
    _, solution = call(fresh(config), 3, config)
    assert set(solution.terms) == {"statistics", "cross_entropy", "contrastive"}
    features = blockwise.forward(net.model, net.variables, solution.x).features
    assert (net.head(features).argmax(1) == LABELS).mean() >= 0.75
    assert solution.terms["statistics"] < 0.7 * solution.losses[0]


def test_views():
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.uniform(0.2, 1.0, (64, *SHAPE)), jnp.float32)
    views = np.asarray(two_views(pixels, jax.random.key(0), *CASE))
    assert views.shape == (128, *SHAPE) and views.min() >= 0.0 and views.max() <= 1.0
    whole, local = views[:64], views[64:]
    corners = [(i, j) for i in range(3) for j in range(3)]
    cut = jax.vmap(padded_crop, in_axes=(0, None, None))
    windows = [cut(pixels, jnp.asarray(corner), 1) for corner in corners]
    matches = np.stack([(np.asarray(w) == whole).all((1, 2, 3)) for w in windows])
    assert (matches.sum(0) == 1).all() and matches.any(1).all()  # one corner each, all are drawn
    assert (local > 0.19).all()  # no border in what is cut out of the image
    assert len({image.tobytes() for image in local}) == 64
    # A border is black: -mean / std in normalised units.
    black = latent_search.to_normalised(jnp.asarray(whole), MEAN, STD)[whole == 0.0]
    np.testing.assert_allclose(black, -MEAN[0] / STD[0], rtol=1e-5)
    same = changed(CASE, crop_padding=0, local_scale=(1.0, 1.0))
    views = two_views(pixels, jax.random.key(0), *same)
    np.testing.assert_allclose(views, jnp.concatenate([pixels, pixels]), atol=1e-6)
    mirrored = two_views(pixels, jax.random.key(0), *changed(same, flip=True))
    flipped = np.abs(mirrored - jnp.concatenate([pixels, pixels])[:, :, ::-1]).max((1, 2, 3)) < 1e-5
    assert 40 < flipped.sum() < 88 and (flipped[:64] != flipped[64:]).any()


def test_terms_of_the_networks():
    net, images = trained().network, trained().images[:8]
    outputs = blockwise.forward(net.model, net.variables, images)
    names = ("statistics", "cross_entropy", "adversarial")
    terms = functools.partial(
        latent_search.network_terms, images, outputs.features, outputs.moments, LABELS, net,
        student(),
    )  # fmt: skip
    got = terms(names=names)
    assert tuple(got) == names
    shown = blockwise.forward(STUDENT_MODEL, student().variables, images).features
    guesses = shown @ student().head.kernel
    logits = outputs.features @ net.head.kernel
    np.testing.assert_allclose(
        got["adversarial"], -objectives.agreed_divergence(logits, guesses), rtol=1e-5
    )
    assert terms(names=()) == {}


def test_weights_of_0_and_no_student_leave_terms_out():
    assert latent_search.term_weights(CASE.config, None) == {
        "statistics": 1.0,
        "cross_entropy": 1.0,
    }
    config = dataclasses.replace(CASE.config, statistics_weight=0.0, adversarial_weight=0.7)
    weights = latent_search.term_weights(config, student())
    assert weights == {"cross_entropy": 1.0, "adversarial": 0.7}


def test_a_transformer_is_inverted_too():
    sizes = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "features": 5}
    kernel = jnp.ones((5, 4)) * jnp.arange(4.0)[None]
    network = fresh_network(sized(vit.vision_transformer, **sizes)).replace(head=Head(kernel))
    shown = blockwise.forward(network.model, network.variables, trained().images[:16]).moments
    network = network.replace(variables=network.variables._replace(batch_stats=shown))
    config = changed(CASE, num_steps=3)
    state = init_cmi(network, jax.random.key(0), **config._asdict())
    assert state.bank.rows.shape == (16, 2 * 2 * 2 * 8)  # two layers of two blocks
    state, synthetic = cmi(state, network, LABELS, jax.random.key(0), **config._asdict())
    assert bool(synthetic.finite) and synthetic.terms["statistics"] > 0.0


def test_a_batch_that_does_not_fill_the_bank_is_an_error():
    with pytest.raises(ValueError, match="bank of 16 rows is not filled by pushes of 6"):
        call(fresh(), 0, labels=LABELS[:6])


def test_every_part_has_an_adam_and_a_rate_of_its_own():
    """Moments decay by 0.5 but in the projection head; a first step is as long as its rate."""
    names = ("generator", "latents", "projection")
    case = changed(CASE, learning_rate=0.1, latent_rate_factor=3.0)
    rates = latent_search.part_rates(*case, names)
    np.testing.assert_allclose([rates[name] for name in names], [0.1, 0.3, 0.1])
    assert latent_search.part_rates(*CASE, names) == dict.fromkeys(names, 5e-3)
    tx, parts = latent_search.by_part(latent_search.adams(names)), dict.fromkeys(names, jnp.ones(2))
    updates, state = tx.update(parts, tx.init(parts))
    for name, decay in zip(names, (0.5, 0.5, 0.9), strict=True):
        np.testing.assert_allclose(updates[name], 1.0, rtol=1e-5)
        np.testing.assert_allclose(state[name].mu, 1.0 - decay, rtol=1e-5)
        assert state[name].count == 1
