"""Images pushed to old means: how far a step goes, and whether it arrives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import NUM_CLASSES
from small_network import trained

from jaxpmi.blocks.blockwise import forward
from jaxpmi.continual.apr.drift import nearest_class
from jaxpmi.continual.apr.push import Push
from jaxpmi.continual.apr.push import draw_targets
from jaxpmi.continual.apr.push import feature_deviation
from jaxpmi.continual.apr.push import push_images
from jaxpmi.continual.apr.push import unit_direction
from jaxpmi.features.gaussian import ClassStats
from jaxpmi.features.gaussian import fit_class_stats

ALL = np.ones(NUM_CLASSES, np.float32)


def moves(together, gradients):
    tx = unit_direction(together=together)
    directions, _ = tx.update(gradients, tx.init(gradients))
    return directions


@pytest.mark.parametrize(("together", "wanted"), [(True, [3.5777, 7.1554]), (False, [8.0, 8.0])])
def test_a_step_has_one_length_per_image_or_per_batch(together, wanted):
    """Two images whose gradients have the lengths 1 and 2, a step of 8."""
    gradients = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    length = np.sqrt(np.square(gradients).sum((1, 2, 3), keepdims=True))
    gradients = gradients / length * np.asarray([1.0, 2.0]).reshape(2, 1, 1, 1)
    moved = 8.0 * moves(together, jnp.asarray(gradients, jnp.float32))
    np.testing.assert_allclose(np.sqrt(np.square(moved).sum((1, 2, 3))), wanted, rtol=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_no_gradient_moves_nothing(together):
    np.testing.assert_array_equal(moves(together, jnp.zeros((2, 4, 4, 1))), 0.0)


def test_the_noise_is_as_large_as_old_features_spread():
    cov = jnp.broadcast_to(4.0 * jnp.eye(5), (3, 5, 5)).at[2].multiply(100.0)
    stats = ClassStats(jnp.ones(3), jnp.arange(15.0).reshape(3, 5), cov)
    old = jnp.asarray([1.0, 1.0, 0.0])  # the class with the large covariance is new
    np.testing.assert_allclose(feature_deviation(stats, old), 2.0, rtol=1e-6)
    labels = jnp.tile(jnp.asarray([1, 0]), 5_000)
    bare = draw_targets(stats, labels, old, jax.random.key(0), noise=0.0)
    np.testing.assert_array_equal(bare, stats.mean[labels])
    noise = draw_targets(stats, labels, old, jax.random.key(0), noise=1.5) - bare
    np.testing.assert_allclose(noise.std(0), 3.0, rtol=0.05)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.1)


def class_stats():
    net = trained()
    return fit_class_stats(net.features, net.labels, NUM_CLASSES, full=True)


@pytest.mark.parametrize("together", [True, False])
def test_pushed_images_move_as_far_as_said_and_reach_their_class(together):
    net, stats = trained(), class_stats()
    images = net.images[:16]
    wanted = (jnp.asarray(net.labels[:16]) + 1) % NUM_CLASSES  # not their own
    one = Push(num_steps=1, step=0.2, together=together)
    pushed = push_images(net.network, images, stats.mean[wanted], one)
    moved = np.square(pushed - images)
    np.testing.assert_allclose(np.sqrt(moved.mean()), 0.2, rtol=1e-4)
    if not together:
        np.testing.assert_allclose(np.sqrt(moved.mean((1, 2, 3))), 0.2, rtol=1e-4)
    many = Push(num_steps=12, step=0.2, together=together)
    pushed = push_images(net.network, images, stats.mean[wanted], many)

    def reached(x):
        features = forward(net.network.model, net.network.variables, x).features
        return float((nearest_class(features, stats, ALL) == wanted).mean())

    assert reached(images) < 0.2 and reached(pushed) > 0.8


def test_an_image_of_its_own_length_does_not_depend_on_its_neighbours():
    net, stats = trained(), class_stats()
    targets = jnp.broadcast_to(stats.mean[2][None], (8, stats.mean.shape[1]))
    push = Push(num_steps=3, step=0.1)
    all_at_once = push_images(net.network, net.images[:8], targets, push)
    alone = push_images(net.network, net.images[:1], targets[:1], push)
    np.testing.assert_allclose(all_at_once[:1], alone, atol=1e-4)


def test_clipped_images_are_valid():
    net, stats = trained(), class_stats()
    low, high = (float(edge[0]) for edge in net.network.pixel_range)
    free, clipped = (
        push_images(
            net.network, net.images[:4], stats.mean[:1].repeat(4, 0),
            Push(num_steps=3, step=1.0, clip=clip),
        )
        for clip in (False, True)
    )  # fmt: skip
    assert free.min() < low and free.max() > high
    assert clipped.min() >= low and clipped.max() <= high
