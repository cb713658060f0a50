import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small_network import NUM_CLASSES
from small_network import SHAPE
from small_network import agreement
from small_network import block_inputs
from small_network import trained

from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.targets import Targets
from jaxpmi.models import blockwise
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

BATCH = 32
LABELS = np.arange(BATCH, dtype=np.int32) % NUM_CLASSES
KEY = jax.random.key(3)
FULL = FullModelConfig(num_steps=40, learning_rate=0.2, clip_pixels=False)
PER_LAYER = PerLayerConfig(
    num_steps=0, learning_rate=0.2, statistics_weight=25.0, residual_scale=1.0, noise_scale=1.0
)


def config(start, *, per_layer_steps=0, full_steps=40, targets="gaussian"):
    per_layer = dataclasses.replace(PER_LAYER, start=start, num_steps=per_layer_steps)
    full_model = dataclasses.replace(FULL, num_steps=full_steps)
    return InversionConfig(targets=targets, per_layer=per_layer, full_model=full_model)


@functools.cache
def drawn_features():
    return sample_class_features(trained().stats, jnp.asarray(LABELS), jax.random.key(1))


def run(settings, *, key=KEY, num_devices=1):
    net, mesh = trained(), make_mesh(num_devices)
    batch = {"features": np.asarray(drawn_features()), "labels": LABELS}
    rest = (net.head, np.ones(NUM_CLASSES, bool), net.variables, net.knowledge)
    head, mask, variables, knowledge = replicate(rest, mesh)
    targets = Targets(**shard_batch(batch, mesh), head=head, class_mask=mask)
    return synthesize(net.model, variables, targets, knowledge, key, config=settings)


@functools.cache
def result(start):
    """40 refinement steps from a start: the closed-form inverse, a few PMI steps, or noise."""
    return run(config(start, per_layer_steps=12 if start == "gaussian" else 0))


@pytest.mark.parametrize("start", ["inverse", "gaussian", "noise"])
def test_the_network_sees_the_intended_labels(start):
    """Features are the only target, and yet the labels come out."""
    synthesis = result(start)
    assert synthesis.images.shape == (BATCH, *SHAPE) and bool(synthesis.finite)
    assert synthesis.final_loss < 0.3 * synthesis.initial_loss
    assert agreement(synthesis.images, LABELS) >= 0.9
    net = trained()
    forward = jax.jit(functools.partial(blockwise.forward, net.model))
    features = forward(net.variables, synthesis.images).features
    distance = np.square(features - drawn_features()).mean()
    assert distance < 0.1 * net.features.var(0).mean()
    np.testing.assert_allclose(synthesis.terms["feature_match"], distance, rtol=1e-2)


def test_better_starts_begin_lower():
    """The closed-form inverse starts far below what block-wise noise or noise images give."""
    losses = {
        start: float(result(start).initial_loss) for start in ("inverse", "gaussian", "noise")
    }
    assert losses["inverse"] < 0.2 * min(losses["gaussian"], losses["noise"]), losses


def test_noise_is_the_standard_gaussian_whatever_the_per_layer_settings_are():
    """The full model's loss at its start is that of N(0, 1) images."""
    first, second = (run(config("noise", per_layer_steps=steps, full_steps=1)) for steps in (0, 9))
    np.testing.assert_array_equal(first.images, second.images)
    pixels = np.asarray(first.images)  # one step: the best iterate is the start itself
    assert abs(pixels.mean()) < 0.1 and abs(pixels.std() - 1.0) < 0.05
    np.testing.assert_array_equal(first.initial_loss, first.final_loss)


def test_the_key_decides_everything():
    settings = config("inverse", full_steps=2)
    first, again, other = run(settings), run(settings), run(settings, key=jax.random.key(4))
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(first.images - other.images).max() > 0.1


def test_labels_alone_may_be_the_target():
    settings = config("inverse", per_layer_steps=12, targets="label")
    full_model = dataclasses.replace(
        settings.full_model, feature_weight=0.0, cross_entropy_weight=1.0
    )
    synthesis = run(dataclasses.replace(settings, full_model=full_model))
    assert set(synthesis.terms) == {"cross_entropy", "statistics"}
    assert agreement(synthesis.images, LABELS) == 1.0


@pytest.mark.parametrize("start", ["inverse", "gaussian", "noise"])
def test_eight_devices_give_the_images_of_one(start):
    """Few steps: rounding differences grow with them, a wrong reduction shows at once."""
    settings = config(start, per_layer_steps=2 if start == "gaussian" else 0, full_steps=3)
    one, eight = (run(settings, num_devices=n) for n in (1, 8))
    assert len(eight.images.sharding.device_set) == 8
    assert eight.images.sharding.spec[0] == "data"
    assert eight.images.addressable_shards[0].data.shape == (BATCH // 8, *SHAPE)
    np.testing.assert_allclose(one.images, eight.images, atol=1e-4)
    np.testing.assert_allclose(one.initial_loss, eight.initial_loss, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(one.terms), jax.tree.leaves(eight.terms), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_noise_of_eight_devices_is_born_on_eight():
    """No device does the work of all: what is optimised is split from its first value on."""
    from jaxpmi.inversion.per_layer import draw_start
    from jaxpmi.types import Moments

    like = shard_batch(np.zeros((BATCH, 3), np.float32), make_mesh(8))
    noise = draw_start(Moments(jnp.zeros(1), jnp.ones(1)), SHAPE, KEY, like)
    assert noise.sharding.spec == PartitionSpec("data") or noise.sharding.spec[0] == "data"
    single = draw_start(Moments(jnp.zeros(1), jnp.ones(1)), SHAPE, KEY, jnp.zeros((BATCH, 3)))
    np.testing.assert_allclose(noise, single, atol=1e-6)


def test_a_batch_that_the_devices_cannot_share_is_an_error():
    with pytest.raises(
        ValueError, match="a batch of 30 is not divisible by 8 devices; use 24 or 32"
    ):
        shard_batch(np.zeros((30, 2)), make_mesh(8))


def test_real_images_have_their_own_labels():
    """What agreement means: on the images that the network was trained on it is 1."""
    net = trained()
    assert agreement(net.images, net.labels) > 0.95
    assert agreement(block_inputs()[0], np.roll(net.labels[:32], 1)) < 0.5
