"""Per-layer inversion of a stack is that of its blocks one by one, in one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import sized
from small_network import as_network

from jaxpmi.blocks import blockwise
from jaxpmi.config import FullModelConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion import per_layer
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.full_model import network_statistics
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.synthesis import synthesize
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.models import vit
from jaxpmi.models.init_network import init_backbone
from jaxpmi.remember import empty_memory
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

SHAPE, NUM_CLASSES, KEY = (8, 8, 1), 3, jax.random.key(5)
GAUSSIAN = PerLayerConfig(start="gaussian", num_steps=6, statistics_weight=0.1)
LINEAR = PerLayerConfig(start="inverse", num_steps=0)
REFINED = PerLayerConfig(start="inverse", num_steps=6, statistics_weight=0.1)
CONFIGS = {"gaussian": GAUSSIAN, "linear": LINEAR, "refined": REFINED}
MAPS = InversionVariant(first_block=1, clip_pixels=False)  # else as images


@dataclasses.dataclass(frozen=True)
class Net:
    blocks: tuple


@functools.cache
def problem(axis="channel", depth=3):
    """A transformer with random weights and a batch of 16 images that its targets come from."""
    architecture = sized(
        vit.vision_transformer,
        patch_size=4,
        width=8,
        depth=depth,
        num_heads=2,
        features=6,
        statistics_axis=axis,
    )
    rng = np.random.default_rng(0)
    model, variables = init_backbone(architecture, jax.random.key(0), SHAPE)
    images = jnp.asarray(rng.standard_normal((16, *SHAPE), np.float32))
    seen = blockwise.forward(model, variables, images)
    variables = variables._replace(batch_stats=seen.moments)
    network = as_network(model, variables, jnp.zeros((6, NUM_CLASSES)), image_shape=SHAPE)
    labels = jnp.asarray(rng.integers(0, NUM_CLASSES, 16), jnp.int32)
    batch = (images, labels, jnp.ones(16))
    return network, seen, labels, fit_block_inverses(network, [batch], rank=4)


def targets_of(features, labels):
    return Targets(features, labels, problem()[0].head, jnp.ones(NUM_CLASSES, bool))


def invert(config, axis="channel", depth=3):
    network, seen, labels, inverses = problem(axis, depth)
    return per_layer.invert_blocks(
        network,
        targets_of(seen.features, labels),
        seen.block_inputs,
        KEY,
        config=config,
        inverses=inverses,
    )


@pytest.mark.parametrize("config", [GAUSSIAN, REFINED], ids=["gaussian", "refined"])
def test_inversion_can_stop_at_the_patch_embeddings(config):
    """They are those that the pixels are then made of, and refinement goes on from them."""
    network, seen, labels, inverses = problem()
    config = dataclasses.replace(config, coarse_to_fine_steps=8)
    targets = targets_of(seen.features, labels)
    stop = functools.partial(
        per_layer.invert_blocks,
        network,
        targets,
        seen.block_inputs,
        KEY,
        config=config,
        inverses=inverses,
        variant=MAPS,
    )
    maps, solutions = stop()
    assert maps.shape == (16, 2, 2, 8) and len(solutions) == 3
    assert solutions[-1].losses.shape == (8,)
    features = blockwise.forward(network.model, network.variables, maps, first_block=1).features
    error = float(objectives.feature_match(features, seen.features))
    unbounded = FullModelConfig(num_steps=30)
    memory = empty_memory(network, InversionConfig())
    refined = refine_images(network, maps, targets, memory, KEY, config=unbounded, variant=MAPS)
    assert refined.x.shape == (16, 2, 2, 8)
    assert float(refined.terms["feature_match"]) < 0.5 * error


def synthesise_maps(per_layer_config, num_steps, num_devices=1):
    network, seen, labels, inverses = problem()
    config = InversionConfig(
        variant="published_clip",
        per_layer=per_layer_config,
        full_model=FullModelConfig(num_steps=num_steps, total_variation_weight=1e-3),
    )
    mesh = make_mesh(num_devices)
    memory = empty_memory(network, config)._replace(
        block_inputs=((), *seen.block_inputs[1:]), inverses=((), *inverses[1:])
    )
    network, memory = replicate((network, memory), mesh)
    features, labels = shard_batch((seen.features, labels), mesh)
    return synthesize(network, labels, KEY, memory=memory, config=config, features=features)


STARTS = {
    "noise": dataclasses.replace(LINEAR, start="noise"),
    "linear": LINEAR,
    "coarse": dataclasses.replace(GAUSSIAN, coarse_to_fine_steps=8),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_patch_embeddings_are_synthesised(start):
    """They hit the targets far better than where they start, which the first step returns."""
    network, seen, _, _ = problem()

    def error(maps):
        assert maps.shape == (16, 2, 2, 8)
        features = blockwise.forward(network.model, network.variables, maps, first_block=1).features
        return float(objectives.feature_match(features, seen.features))

    first, last = (synthesise_maps(start, num_steps) for num_steps in (1, 40))
    assert error(last.images) < 0.5 * error(first.images)
    np.testing.assert_allclose(last.terms["feature_match"], error(last.images), rtol=1e-3)
    assert set(last.terms) == {"feature_match", "statistics", "total_variation"}
    assert np.abs(last.images).max() > 1  # whatever the valid range of pixels is


def test_noise_in_place_of_patch_embeddings_has_their_moments():
    _, seen, _, _ = problem()
    maps = np.asarray(synthesise_maps(STARTS["noise"], 1).images)
    spread = np.sqrt(np.asarray(seen.block_inputs[1].var))
    assert np.abs(maps.mean((0, 1, 2)) - seen.block_inputs[1].mean).max() < 0.5 * spread.max()
    np.testing.assert_allclose(maps.std((0, 1, 2)), spread, rtol=0.4)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_eight_devices_give_the_patch_embeddings_of_one(start):
    one, eight = (synthesise_maps(start, 3, num_devices) for num_devices in (1, 8))
    assert eight.images.addressable_shards[0].data.shape == (2, 2, 2, 8)
    np.testing.assert_allclose(eight.images, one.images, rtol=2e-3, atol=2e-3)


def unit(tree, layer):
    return jax.tree.map(lambda leaf: leaf[layer], tree)


@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_stack_is_inverted_as_its_blocks_one_by_one(config, axis):
    network, seen, labels, inverses = problem(axis)
    model, variables = network.model, network.variables
    images, solutions = invert(config, axis)
    target, losses = seen.features, {}
    for i in reversed(range(4)):
        name, block = blockwise.block_name(i), model.blocks[i]
        shapes = blockwise.block_input_shapes(model, variables, SHAPE)
        static = {"config": config, "input_shape": shapes[i], "sharding": None}
        static["variant"] = InversionVariant()
        static["match_input"] = i > 0 or config.start == "inverse"
        inverse = inverses[i] if config.start == "inverse" else None
        own = (variables.params[name], variables.batch_stats[name], seen.block_inputs[i], inverse)
        key = jax.random.fold_in(KEY, i)
        layers = [(block, own, key)]
        if isinstance(block, blockwise.Stack):
            keys = jax.random.split(key, block.depth)
            layers = [(block.block, unit(own, n), keys[n]) for n in range(block.depth)]
        for n, (one, (params, stats, moments, inverse), key) in reversed(list(enumerate(layers))):
            target, solution = per_layer._invert_unit(
                params, stats, target, moments, inverse, labels, key, block=one, **static
            )
            losses[i, n] = solution and solution.losses
    np.testing.assert_allclose(images, target, rtol=2e-3, atol=2e-3)
    if config.num_steps == 0:
        assert solutions == []
        return
    assert [s.losses.shape for s in solutions] == [(6,), (3, 6), (6,), (6,)]
    assert solutions[1].x == ()
    for n in range(3):
        np.testing.assert_allclose(solutions[1].losses[n], losses[2, n], rtol=1e-3)


@dataclasses.dataclass(frozen=True)
class Counted:
    """Counts how often Python runs through a block."""

    block: blockwise.Block

    def apply(self, params, batch_stats, x, **options):
        CALLS.append(x.shape)
        return self.block.apply(params, batch_stats, x, **options)


CALLS = []


@pytest.mark.parametrize("config", [GAUSSIAN, REFINED], ids=["gaussian", "refined"])
def test_one_program_whatever_the_depth(config):
    traced = []
    for depth in (2, 12):
        network, seen, labels, inverses = problem(depth=depth)
        blocks = network.model.blocks
        block = Counted(blocks[2].block)
        counted = Net((*blocks[:2], blockwise.Stack(block, depth), blocks[3]))
        CALLS.clear()
        for seed in (0, 1):
            per_layer.invert_blocks(
                network.replace(model=counted),
                targets_of(seen.features, labels),
                seen.block_inputs,
                jax.random.key(seed),
                config=config,
                inverses=inverses,
            )
            traced.append(len(CALLS))
    # Every call asks for the block's output shape; only the very first one traces its inversion,
    # once: blocks of a deeper stack are equal to these. (Older JAX traces it once more for them.)
    assert traced in ([2, 3, 1, 2], [2, 3, 2, 3])


def test_every_block_comes_nearer_to_its_target():
    """Each block's loss falls within the steps."""
    _, solutions = invert(dataclasses.replace(GAUSSIAN, num_steps=40))
    for solution in solutions:
        losses = np.atleast_2d(solution.losses)
        assert (losses.min(1) < 0.7 * losses[:, 0]).all()


def test_the_linear_start_is_nearer_than_noise():
    network, seen, _, _ = problem()

    def error(images):
        features = blockwise.forward(network.model, network.variables, images).features
        return float(objectives.feature_match(features, seen.features))

    noise = error(jnp.asarray(np.random.default_rng(1).standard_normal((16, *SHAPE), np.float32)))
    assert error(invert(LINEAR)[0]) < 0.1 * noise


@pytest.mark.parametrize("config", [GAUSSIAN, REFINED], ids=["gaussian", "refined"])
def test_eight_devices_give_the_images_of_one(config):
    network, seen, labels, inverses = problem()
    results = []
    for num_devices in (1, 8):
        mesh = make_mesh(num_devices)
        features, labels_here = shard_batch((seen.features, labels), mesh)
        known = replicate((network, seen.block_inputs, inverses), mesh)
        images, _ = per_layer.invert_blocks(
            known[0],
            targets_of(features, labels_here),
            known[1],
            KEY,
            config=config,
            inverses=known[2],
        )
        results.append(images)
    assert len(results[1].sharding.device_set) == 8
    assert not results[1].sharding.is_fully_replicated
    np.testing.assert_allclose(*results, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_every_block_of_a_stack_counts_in_the_statistics_of_the_network(axis):
    network, *_ = problem(axis)
    model, variables = network.model, network.variables
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
    shown = blockwise.forward(model, variables, x).moments
    stored = jax.tree.map(lambda leaf: 2.0 * leaf + 0.1, variables.batch_stats)
    wanted = 0.0
    for i in range(3):
        ours, theirs = (
            jax.tree.map(lambda leaf, i=i: leaf[i], tree["block02"]) for tree in (shown, stored)
        )
        wanted += objectives.statistics_loss(ours, theirs)
    assert wanted > 0.1
    got = network_statistics(model, shown, stored)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    later = {name: shown[name] for name in shown if name != "block00"}
    np.testing.assert_allclose(network_statistics(model, later, stored), wanted, rtol=1e-5)
