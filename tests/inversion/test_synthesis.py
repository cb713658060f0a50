import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small_network import MEAN
from small_network import NUM_CLASSES
from small_network import SHAPE
from small_network import STD
from small_network import agreement
from small_network import block_inputs
from small_network import trained

from jaxpmi.augment import denormalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.features.gaussian import sample_class_features
from jaxpmi.features.layouts import layouts_of
from jaxpmi.inversion import synthesis
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.synthetic import Synthetic
from jaxpmi.inversion.synthetic import as_metrics
from jaxpmi.inversion.synthetic import as_stored
from jaxpmi.inversion.synthetic import label_agreement
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.optimise.minimise import Solution
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

BATCH = 32
LABELS = np.arange(BATCH, dtype=np.int32) % NUM_CLASSES
KEY = jax.random.key(3)
FULL = FullModelConfig(num_steps=40, learning_rate=0.2)
PER_LAYER = PerLayerConfig(num_steps=0, learning_rate=0.2, statistics_weight=25.0)
VARIANT = InversionVariant(clip_pixels=False, residual_scale=1.0, noise_scale=1.0)


def config(start, *, per_layer_steps=0, full_steps=40, targets="gaussian"):
    per_layer = dataclasses.replace(PER_LAYER, start=start, num_steps=per_layer_steps)
    full_model = dataclasses.replace(FULL, num_steps=full_steps)
    return InversionConfig(targets=targets, per_layer=per_layer, full_model=full_model)


@functools.cache
def drawn_features():
    return sample_class_features(
        trained().memory.class_stats, jnp.asarray(LABELS), jax.random.key(1)
    )


class Run(NamedTuple):
    synthetic: Synthetic
    exact: jax.Array  # f32[B, H, W, 1], its images in normalised units before they are stored


def run(settings, *, key=KEY, num_devices=1, memory=None, layouts=None):
    exact, mesh = [], make_mesh(num_devices)

    def spy(network, solution, *args, **options):
        exact.append(solution.x)
        return as_stored(network, solution, *args, **options)

    batch = {"features": np.asarray(drawn_features()), "labels": LABELS}
    memory = trained().memory if memory is None else memory
    network, memory = replicate((trained().network, memory), mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "as_stored", spy)
        options = shard_batch(batch, mesh)
        labels = options.pop("labels")
        synthetic = synthesize(
            network, labels, key, memory=memory, config=settings, variant=VARIANT, layouts=layouts,
            **options,
        )  # fmt: skip
    return Run(synthetic, *exact)


@functools.cache
def result(start):
    """40 refinement steps from a start: the closed-form inverse, a few PMI steps, or noise."""
    return run(config(start, per_layer_steps=12 if start == "gaussian" else 0))


@pytest.mark.parametrize("start", ["layout", "inverse", "gaussian", "noise"])
def test_the_network_sees_the_intended_labels(start):
    """Features are the only target, and yet the labels come out."""
    synthetic, exact = result(start)
    assert exact.shape == (BATCH, *SHAPE) and bool(synthetic.finite)
    assert synthetic.losses.shape == (40,)
    assert synthetic.loss < 0.3 * synthetic.losses[0]
    assert agreement(exact, LABELS) >= 0.9
    net = trained()
    forward = jax.jit(functools.partial(blockwise.forward, net.network.model))
    features = forward(net.network.variables, exact).features
    distance = np.square(features - drawn_features()).mean()
    assert distance < 0.1 * net.features.var(0).mean()
    np.testing.assert_allclose(synthetic.terms["feature_match"], distance, rtol=1e-2)


def test_images_are_returned_as_they_are_stored_with_the_share_that_is_right():
    synthetic, exact = result("inverse")
    assert synthetic.images.dtype == np.uint8
    np.testing.assert_array_equal(synthetic.images, denormalise(exact, MEAN, STD))
    np.testing.assert_array_equal(
        synthetic.agreement, label_agreement(trained().network, synthetic.images, LABELS)
    )
    assert synthetic.agreement >= 0.9


def test_better_starts_begin_lower():
    """The closed-form inverse starts far below what block-wise noise or noise images give."""
    starts = ("inverse", "gaussian", "noise")
    losses = {start: float(result(start).synthetic.losses[0]) for start in starts}
    assert losses["inverse"] < 0.2 * min(losses["gaussian"], losses["noise"]), losses


def test_images_of_a_class_begin_with_layouts_of_that_class():
    """And those of a class whose layouts are not known with what the inverse makes of them."""
    known = trained().memory.layouts
    # Layouts that nobody would take for the inverse's: one value each, hardly any spread.
    levels = jnp.asarray([0.0, 9.0, 0.5, 1.0])
    flat = known._replace(
        mean=jnp.broadcast_to(levels[:, None], known.mean.shape),
        cov=1e-6 * known.cov,
        count=known.count.at[1].set(0.0),
    )
    memory = trained().memory._replace(layouts=flat)
    starts = {
        start: np.asarray(
            run(config(start, full_steps=1), memory=memory).exact  # one step: the start itself
        )
        for start in ("layout", "inverse")
    }
    np.testing.assert_array_equal(*(images[LABELS == 1] for images in starts.values()))
    for label in (0, 2, 3):
        seen = layouts_of(starts["layout"][LABELS == label])
        np.testing.assert_allclose(seen.mean(), levels[label], atol=0.05)
        assert np.abs(starts["layout"] - starts["inverse"])[LABELS == label].max() > 0.1


def test_layouts_that_were_not_remembered_are_an_error():
    memory = trained().memory._replace(layouts=None)
    with pytest.raises(ValueError, match="has no layouts of this network's images; remember"):
        synthesize(trained().network, LABELS, KEY, memory=memory, config=config("layout"))


def test_given_layouts_stand_for_those_that_would_be_drawn():
    small = jnp.linspace(-1.0, 2.0, BATCH * trained().memory.layouts.mean.shape[1])
    small = small.reshape(BATCH, -1)
    made = run(config("layout", full_steps=1), layouts=small).exact
    np.testing.assert_allclose(layouts_of(made), small, atol=0.05)
    with pytest.raises(ValueError, match="layouts are given, but per_layer.start='inverse'"):
        run(config("inverse"), layouts=small)


def test_noise_is_the_standard_gaussian_whatever_the_per_layer_settings_are():
    """The full model's loss at its start is that of N(0, 1) images."""
    first, second = (run(config("noise", per_layer_steps=steps, full_steps=1)) for steps in (0, 9))
    np.testing.assert_array_equal(first.exact, second.exact)
    pixels = np.asarray(first.exact)  # one step: the best iterate is the start itself
    assert abs(pixels.mean()) < 0.1 and abs(pixels.std() - 1.0) < 0.05
    np.testing.assert_array_equal(first.synthetic.losses, [first.synthetic.loss])


def test_the_key_decides_everything():
    settings = config("inverse", full_steps=2)
    first, again, other = run(settings), run(settings), run(settings, key=jax.random.key(4))
    np.testing.assert_array_equal(first.exact, again.exact)
    assert np.abs(first.exact - other.exact).max() > 0.1


def test_labels_alone_may_be_the_target():
    settings = config("inverse", per_layer_steps=12, targets="label")
    full_model = dataclasses.replace(settings.full_model, cross_entropy_weight=1.0)
    synthetic, exact = run(dataclasses.replace(settings, full_model=full_model))
    assert set(synthetic.terms) == {"cross_entropy", "statistics"}
    assert agreement(exact, LABELS) == 1.0


@pytest.mark.parametrize("start", ["layout", "inverse", "gaussian", "noise"])
def test_eight_devices_give_the_images_of_one(start):
    """Few steps: rounding differences grow with them, a wrong reduction shows at once."""
    settings = config(start, per_layer_steps=2 if start == "gaussian" else 0, full_steps=3)
    one, eight = (run(settings, num_devices=n) for n in (1, 8))
    for images in (eight.exact, eight.synthetic.images):
        assert len(images.sharding.device_set) == 8
        assert images.sharding.spec[0] == "data"
        assert images.addressable_shards[0].data.shape == (BATCH // 8, *SHAPE)
    np.testing.assert_allclose(one.exact, eight.exact, atol=1e-4)
    one, eight = one.synthetic, eight.synthetic
    np.testing.assert_allclose(one.losses[0], eight.losses[0], rtol=1e-4)
    assert one.terms.keys() == eight.terms.keys()
    for name, term in one.terms.items():
        np.testing.assert_allclose(term, eight.terms[name], rtol=1e-3, atol=1e-5)


def test_noise_of_eight_devices_is_born_on_eight():
    """No device does the work of all: what is optimised is split from its first value on."""
    from jaxpmi.inversion.per_layer import draw_start
    from jaxpmi.types import Moments

    like = shard_batch(np.zeros((BATCH, 3), np.float32), make_mesh(8))
    noise = draw_start(Moments(jnp.zeros(1), jnp.ones(1)), SHAPE, KEY, like)
    assert noise.sharding.spec == PartitionSpec("data") or noise.sharding.spec[0] == "data"
    single = draw_start(Moments(jnp.zeros(1), jnp.ones(1)), SHAPE, KEY, jnp.zeros((BATCH, 3)))
    np.testing.assert_allclose(noise, single, atol=1e-6)


def test_features_are_drawn_of_the_labels_where_none_are_given():
    network, memory = trained().network, trained().memory
    settings = config("inverse", full_steps=1)
    call = functools.partial(synthesize, network, LABELS, memory=memory, config=settings)
    key_features, key = jax.random.split(KEY)
    features = sample_class_features(memory.class_stats, jnp.asarray(LABELS), key_features)
    got, want, other = call(KEY), call(key, features=features), call(key, features=0 * features)
    np.testing.assert_array_equal(got.images, want.images)
    np.testing.assert_array_equal(got.losses, want.losses)
    assert np.abs(got.losses - other.losses).max() > 1e-3


def test_every_block_that_was_descended_on_tells_its_losses():
    """Last to first; a closed-form start has none, coarse-to-fine steps are of the images alone."""
    blocks = [blockwise.block_name(i) for i in range(len(trained().network.model.blocks))]
    losses = result("gaussian").synthetic.block_losses
    assert list(losses) == blocks[::-1] and result("inverse").synthetic.block_losses == {}
    first, best = np.asarray(list(losses.values())).T
    assert (0 < best).all() and (best <= first).all() and (best < first).any()
    told = as_metrics(result("gaussian").synthetic)
    assert told["block00/initial_loss"] == losses["block00"][0]
    assert told["block00/final_loss"] == losses["block00"][1]
    settings = config("inverse", full_steps=1)
    per_layer = dataclasses.replace(settings.per_layer, coarse_to_fine_steps=6)
    coarse = run(dataclasses.replace(settings, per_layer=per_layer)).synthetic
    assert list(coarse.block_losses) == blocks[:1]


def test_the_losses_of_a_stack_are_numbered():
    """Last to first, and counted from the first block that is inverted."""
    one, stack = (
        Solution((), jnp.asarray(best), jnp.asarray(losses), {}, jnp.asarray(True))
        for best, losses in ((1.0, [2.0, 1.5]), ([3.0, 4.0], [[5.0, 3.5], [6.0, 4.5]]))
    )
    found = synthesis._block_losses([one, stack], first_block=1)
    expected = {"block02": [2, 1], "block01.1": [6, 4], "block01.0": [5, 3]}
    assert {name: losses.tolist() for name, losses in found.items()} == expected
    assert list(found) == list(expected)


def test_labels_that_cannot_be_drawn_are_an_error():
    network, memory = trained().network, trained().memory
    call = functools.partial(synthesize, network, key=KEY, config=config("inverse"))
    with pytest.raises(ValueError, match="labels range from 0 to 4, but the network has 4 classes"):
        call(np.asarray([0, 4]), memory=memory)
    stats = memory.class_stats._replace(count=memory.class_stats.count.at[2].set(0.0))
    with pytest.raises(ValueError, match="the memory has seen no image of class 2; ask for"):
        call(np.asarray([0, 2]), memory=memory._replace(class_stats=stats))


def test_agreement_is_among_the_classes_that_count():
    """Images of class 1 go to another class where 1 is not to choose from."""
    net = trained()
    ones = net.raw[net.labels == 1]
    share = functools.partial(label_agreement, net.network, ones)
    labels = np.ones(len(ones), np.int32)
    assert share(labels) > 0.9
    mask = np.asarray([True, False, True, True])
    assert share(labels, class_mask=mask) == 0.0
    others = net.network.head.kernel[:, mask]
    best = np.flatnonzero(mask)[(net.features[net.labels == 1] @ others).argmax(1)]
    assert share(best, class_mask=mask) == 1.0


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
