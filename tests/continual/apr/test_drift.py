"""Old statistics that follow the features: what is exact in cases where it can be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import NUM_CLASSES
from small_network import trained

from jaxpmi.continual.apr import drift
from jaxpmi.continual.apr.push import Push
from jaxpmi.continual.apr.variants import APR_VARIANTS
from jaxpmi.features.gaussian import fit_class_stats

DIM, NUM = 5, 200
STANDARD = APR_VARIANTS["standard"]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spd(seed):
    root = normal(seed, DIM, DIM)
    return jnp.asarray(root @ root.T + 0.1 * np.eye(DIM, dtype=np.float32))


def rotation(seed):
    return np.linalg.qr(normal(seed, DIM, DIM))[0]


WEIGHTS = np.asarray(np.arange(NUM) % 3 > 0, np.float32)


def test_a_shift_of_all_features_moves_the_mean_by_it():
    before, shift = normal(0, NUM, DIM), normal(1, DIM)
    after = before + shift[None] + (1 - WEIGHTS[:, None]) * 100.0  # rows that do not count
    np.testing.assert_allclose(drift.mean_shift(before, after, WEIGHTS), shift, atol=1e-5)
    np.testing.assert_array_equal(drift.mean_shift(before, after, 0 * WEIGHTS), 0.0)


def test_a_rotation_of_all_features_rotates_the_covariance():
    before, turn, cov = normal(0, NUM, DIM) + 3.0, rotation(2), spd(3)
    after = before @ turn.T + 7.0 + (1 - WEIGHTS[:, None]) * normal(4, NUM, DIM)
    matrix = drift.fit_by_ridge(before, after, WEIGHTS, ridge=0.0)
    np.testing.assert_allclose(matrix, turn, atol=1e-4)
    moved = np.asarray(drift.carry_covariance(cov, matrix))
    np.testing.assert_allclose(moved, turn @ cov @ turn.T, atol=1e-3)
    np.testing.assert_array_equal(moved, moved.T)
    assert np.linalg.eigvalsh(moved).min() > 0.0


def test_a_ridge_solves_its_normal_equations_and_pulls_to_the_identity():
    before, after = normal(0, NUM, DIM), normal(1, NUM, DIM)
    ones = np.ones(NUM, np.float32)

    def objective(matrix, ridge):
        x, y = before - before.mean(0), after - after.mean(0)
        variance = np.square(x).mean()
        pull = ridge * variance * np.square(matrix - np.eye(DIM)).sum()
        return np.square(x @ matrix.T - y).sum(1).mean() + pull

    matrix = np.asarray(drift.fit_by_ridge(before, after, ones, ridge=0.5))
    least = objective(matrix, 0.5)
    for seed in range(5):
        assert objective(matrix + 1e-2 * normal(seed, DIM, DIM), 0.5) > least
    np.testing.assert_allclose(
        drift.fit_by_ridge(before, after, ones, ridge=1e6), np.eye(DIM), atol=1e-4
    )


def test_features_that_stay_leave_the_covariance():
    before, cov = normal(0, NUM, DIM), spd(3)
    for matrix in (
        drift.fit_by_ridge(before, before, WEIGHTS),
        drift.fit_by_adam(*map(jnp.asarray, (before, before, WEIGHTS)), key=jax.random.key(0)),
    ):
        np.testing.assert_allclose(drift.carry_covariance(cov, matrix), cov, rtol=1e-3, atol=1e-3)


def test_adam_goes_from_the_identity_towards_the_map():
    before, turn = normal(0, NUM, DIM), np.eye(DIM, dtype=np.float32) + 0.1 * rotation(2)
    after = before @ turn.T + (1 - WEIGHTS[:, None]) * 50.0
    matrix = drift.fit_by_adam(*map(jnp.asarray, (before, after, WEIGHTS)), key=jax.random.key(0))
    assert np.abs(matrix - turn).max() < 0.3 * np.abs(turn - np.eye(DIM)).max()


@pytest.fixture(scope="module")
def setting():
    net = trained()
    stats = fit_class_stats(net.features, net.labels, NUM_CLASSES, full=True)
    student = net.network.replace(
        variables=net.network.variables._replace(
            params=jax.tree.map(lambda p: 1.05 * p, net.network.variables.params)
        )
    )
    return net, stats, student


def moved(setting, *, student, variant=STANDARD, valid=None, old=None, images=None):
    net, stats, _ = setting
    images = net.raw[: drift.BATCH] if images is None else images
    valid = np.ones(len(images), bool) if valid is None else valid
    old = np.ones(NUM_CLASSES, np.float32) if old is None else old
    return drift.move_class(
        net.network, student, stats, np.int32(1), images, valid, old, jax.random.key(0),
        variant=variant,
    )  # fmt: skip


@pytest.mark.parametrize("variant", APR_VARIANTS)
def test_a_network_that_has_not_changed_moves_nothing(variant, setting):
    net, stats, _ = setting
    found = moved(setting, student=net.network, variant=APR_VARIANTS[variant])
    assert found.reached > 0
    np.testing.assert_allclose(found.mean, stats.mean[1], atol=1e-6)
    np.testing.assert_allclose(found.cov, stats.cov[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", APR_VARIANTS)
def test_a_network_that_has_changed_moves_both(variant, setting):
    net, stats, student = setting
    found = moved(setting, student=student, variant=APR_VARIANTS[variant])
    assert 0 < found.reached <= drift.BATCH
    own = net.images[net.labels == 1]
    after = drift._features(student, own)
    shift = np.linalg.norm(after.mean(0) - stats.mean[1])
    assert np.linalg.norm(after.mean(0) - found.mean) < 0.7 * shift  # of real images of the class
    assert not np.allclose(found.cov, stats.cov[1], rtol=1e-3)
    assert np.linalg.eigvalsh(found.cov).min() > -1e-5


def test_without_a_success_within_the_steps_nothing_moves(setting):
    """Two steps too small to matter, of images that are no digit."""
    net, stats, student = setting
    still = dataclasses.replace(
        STANDARD, drift=Push(num_steps=1, step=1e-6, clip=True), most_drift_steps=2
    )
    others = net.raw[net.labels == 0]
    others = np.resize(others, (drift.BATCH, *others.shape[1:]))
    found = moved(setting, student=student, variant=still, images=others)
    assert found.reached == 0
    np.testing.assert_array_equal(found.mean, stats.mean[1])
    np.testing.assert_array_equal(found.cov, stats.cov[1])


def test_padding_takes_no_part(setting):
    net, _, student = setting
    valid = np.arange(drift.BATCH) < 40
    spoilt = net.raw[: drift.BATCH].copy()
    spoilt[40:] = 255
    found, want = (
        moved(setting, student=student, valid=valid, images=images)
        for images in (spoilt, net.raw[: drift.BATCH])
    )
    assert found.reached == want.reached <= 40
    np.testing.assert_allclose(found.mean, want.mean, atol=1e-5)
    np.testing.assert_allclose(found.cov, want.cov, rtol=1e-3, atol=1e-5)


def test_only_old_classes_compete():
    stats = fit_class_stats(np.eye(3, dtype=np.float32), np.arange(3), 3, full=True)
    features = jnp.asarray([[1.0, 0.2, 0.0], [0.0, 0.3, 1.0]])
    np.testing.assert_array_equal(drift.nearest_class(features, stats, jnp.ones(3)), [0, 2])
    old = jnp.asarray([0.0, 1.0, 1.0])
    np.testing.assert_array_equal(drift.nearest_class(features, stats, old), [1, 2])
