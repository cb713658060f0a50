import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import chain
from rows import model_of
from rows import piece
from rows import variables_of
from small_network import NUM_CLASSES
from small_network import SHAPE
from small_network import as_network
from small_network import block_inputs
from small_network import fresh_network
from small_network import trained

from jaxpmi.blocks import blockwise
from jaxpmi.config import PerLayerConfig
from jaxpmi.inversion import objectives
from jaxpmi.inversion import per_layer
from jaxpmi.inversion.block_inverse import invert_linearly
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.per_layer import invert_block
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.per_layer import propagated_block_inputs
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.models import resnet
from jaxpmi.network import Head
from jaxpmi.types import Moments

KEY = jax.random.key(0)
PUBLISHED = PerLayerConfig(
    start="gaussian", num_steps=50, learning_rate=0.8, statistics_weight=25.0
)
STANDARD = Moments(jnp.zeros(1), jnp.ones(1))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def targets(features, labels):
    net = trained()
    mask = jnp.ones(NUM_CLASSES, bool)
    return Targets(jnp.asarray(features), jnp.asarray(labels), net.network.head, mask)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A block without statistics: f32[B, D] -> f32[B, D']."""

    def apply(self, params, batch_stats, x, *, train):
        return x @ params, {}


@pytest.mark.parametrize("shape", [(6, 4), (5, 5)])
def test_a_linear_block_is_solved(shape):
    """The residual alone: Adam's limit is another preimage than gradient descent's."""
    left, _, right = np.linalg.svd(normal(0, *shape), full_matrices=False)
    weight = left * np.linspace(0.5, 2.0, shape[1], dtype=np.float32) @ right
    wanted = normal(1, 8, shape[1])
    config = PerLayerConfig(num_steps=500, learning_rate=0.03, statistics_weight=0.0)
    start = normal(2, 8, shape[0])
    moments = Moments(jnp.zeros(shape[0]), jnp.ones(shape[0]))
    solution = invert_block(
        weight, {}, start, wanted, moments, KEY, block=Linear(), config=config, match_input=False
    )
    assert solution.losses[0] > 1.0 and solution.loss < 1e-4
    np.testing.assert_allclose(solution.x @ weight, wanted, atol=0.02)
    if shape[0] == shape[1]:  # then the preimage is one
        np.testing.assert_allclose(solution.x, wanted @ np.linalg.inv(weight), atol=0.05)


@pytest.mark.parametrize("index", range(5))
def test_a_realisable_target_is_approached_at_every_block(index):
    """By the published start and weight, and the rate of its grid that suits this network."""
    net, values = trained(), block_inputs()
    name = blockwise.block_name(index)
    moments = net.memory.block_inputs[index]
    start = draw_start(moments, values[index].shape[1:], KEY, values[index])
    params, batch_stats = (part[name] for part in net.network.variables)
    block = net.network.model.blocks[index]
    solution = invert_block(
        params,
        batch_stats,
        start,
        values[index + 1],
        moments,
        KEY,
        block=block,
        config=dataclasses.replace(PUBLISHED, learning_rate=0.25 * PUBLISHED.learning_rate),
    )
    assert bool(solution.finite)
    assert solution.loss < 0.5 * solution.losses[0]

    # The loss of the start is what it says to be: distance, statistics, and those of the input.
    @jax.jit
    def loss(x):
        output, shown = block.apply(params, batch_stats, x, train=False)
        statistics = objectives.statistics_loss(shown, batch_stats)
        statistics += objectives.moment_kl(blockwise.channel_moments(x), moments)
        return objectives.feature_match(output, values[index + 1]) + 25.0 * statistics

    np.testing.assert_allclose(solution.losses[0], loss(start), rtol=1e-3)
    np.testing.assert_allclose(solution.loss, loss(solution.x), rtol=1e-3)
    assert set(solution.terms) == {"feature_match", "statistics", "input_statistics"}


def test_the_input_term_may_be_left_out():
    net, values = trained(), block_inputs()
    params, batch_stats = (part["block00"] for part in net.network.variables)
    config = dataclasses.replace(PUBLISHED, num_steps=1)
    solution = invert_block(
        params,
        batch_stats,
        values[0],
        values[1],
        STANDARD,
        KEY,
        block=net.network.model.blocks[0],
        config=config,
        match_input=False,
    )
    assert set(solution.terms) == {"feature_match", "statistics"}
    np.testing.assert_allclose(solution.terms["feature_match"], 0.0, atol=1e-6)


def test_labels_alone_can_be_the_target_of_the_last_block():
    net, values = trained(), block_inputs()
    params, batch_stats = (part["block04"] for part in net.network.variables)
    labels = jnp.arange(32) % NUM_CLASSES
    goal = targets(jnp.zeros_like(values[5]), labels)
    moments = net.memory.block_inputs[4]
    start = draw_start(moments, values[4].shape[1:], KEY, values[4])
    solution = invert_block(
        params,
        batch_stats,
        start,
        goal,
        moments,
        KEY,
        block=net.network.model.blocks[4],
        config=dataclasses.replace(PUBLISHED, statistics_weight=0.1),
    )
    assert set(solution.terms) == {"cross_entropy", "statistics", "input_statistics"}
    features, _ = net.network.model.blocks[4].apply(params, batch_stats, solution.x, train=False)
    np.testing.assert_array_equal((features @ net.network.head.kernel).argmax(1), labels)


# Starts.


def test_noise_starts_have_the_moments_asked_for():
    moments = Moments(jnp.asarray([0.0, 5.0, -2.0]), jnp.asarray([1.0, 0.25, 9.0]))
    like = jnp.zeros((64, 1))
    x = np.asarray(draw_start(moments, (16, 16, 3), KEY, like))
    assert x.shape == (64, 16, 16, 3)
    np.testing.assert_allclose(x.mean((0, 1, 2)), moments.mean, atol=0.1)
    np.testing.assert_allclose(x.var((0, 1, 2)), moments.var, rtol=0.05)
    np.testing.assert_array_equal(x, draw_start(moments, (16, 16, 3), KEY, like))
    assert np.abs(x - draw_start(moments, (16, 16, 3), jax.random.key(1), like)).max() > 1.0


def test_without_steps_the_starts_are_chained():
    """num_steps=0: every block's input is its linear inverse, applied to the one after."""
    net, values = trained(), block_inputs()
    goal = targets(values[5], jnp.asarray(net.labels[:32]))
    config = PerLayerConfig(start="inverse", num_steps=0)
    images, solutions = invert_blocks(
        net.network,
        goal,
        net.memory.block_inputs,
        KEY,
        config=config,
        inverses=net.memory.inverses,
        variant=InversionVariant(residual_scale=0.5, noise_scale=0.2),
    )
    assert solutions == []
    x = values[5]
    for i in range(4, -1, -1):
        key, _ = jax.random.split(jax.random.fold_in(KEY, i))
        x = invert_linearly(
            net.memory.inverses[i],
            x,
            goal.labels,
            key,
            input_shape=values[i].shape[1:],
            residual_scale=0.5,
            noise_scale=0.2,
        )
    np.testing.assert_allclose(images, x, rtol=1e-3, atol=1e-3)
    # And they lead back near the features: nearer than other images do.
    forward = jax.jit(functools.partial(blockwise.forward, net.network.model))
    features = forward(net.network.variables, images).features
    shuffled = np.square(np.roll(values[5], 1, 0) - values[5]).mean()
    assert np.square(features - values[5]).mean() < shuffled


# All blocks.

ARCHITECTURE = chain(
    piece(resnet.Stem, 4),
    *[piece(resnet.ResidualBlock, 4)] * 3,
    piece(resnet.ResidualBlock, 4, pool=True),
)
MODEL = model_of(ARCHITECTURE, SHAPE)


def test_equal_blocks_share_one_compiled_program():
    invert_block.clear_cache()
    config = PerLayerConfig(start="gaussian", num_steps=2)
    for seed in (0, 1):  # another network, other targets: nothing is compiled again
        variables = variables_of(ARCHITECTURE, jax.random.key(seed), SHAPE)
        shapes = blockwise.block_input_shapes(MODEL, variables, SHAPE)
        moments = [Moments(jnp.zeros(s[-1]), jnp.ones(s[-1])) for s in shapes[:-1]]
        goal = Targets(
            jnp.asarray(normal(seed, 8, 4)),
            jnp.zeros(8, jnp.int32),
            Head(jnp.asarray(normal(seed, 4, 2))),
            jnp.ones(2, bool),
        )
        images, solutions = invert_blocks(
            as_network(model_of(ARCHITECTURE, SHAPE), variables, goal.head),
            goal,
            moments,
            jax.random.key(seed),
            config=config,
        )
        assert images.shape == (8, *SHAPE) and len(solutions) == 5
        assert invert_block._cache_size() == 3  # the stem, the plain block, the pooled one
    # Last to first; the target of a block is what was found for the one after.
    np.testing.assert_array_equal(solutions[-1].x, images)
    output, _ = MODEL.blocks[0].apply(
        variables.params["block00"], variables.batch_stats["block00"], images, train=False
    )
    np.testing.assert_allclose(
        solutions[-1].terms["feature_match"],
        np.square(output - solutions[-2].x).mean(),
        rtol=1e-3,
    )
    # The published recipe does not match the moments of the images themselves.
    assert "input_statistics" not in solutions[-1].terms
    assert "input_statistics" in solutions[-2].terms


# Moments without data.


def test_propagated_moments_go_from_block_to_block():
    net = trained()
    got = propagated_block_inputs(net.network)
    assert len(got) == 5
    np.testing.assert_array_equal(got[0].mean, [0.0])
    np.testing.assert_array_equal(got[0].var, [1.0])
    for i in range(4):
        params = net.network.variables.params[blockwise.block_name(i)]
        want = net.network.model.blocks[i].propagate(params, got[i])
        np.testing.assert_array_equal(got[i + 1].mean, want.mean)
        np.testing.assert_array_equal(got[i + 1].var, want.var)
        assert got[i + 1].mean.shape == net.memory.block_inputs[i + 1].mean.shape


def test_published_moments_are_the_affine_parameters_of_the_batch_norm_before():
    net = trained()
    got = propagated_block_inputs(net.network, published=True)
    for i, name in enumerate(["bn", "bn2", "bn2", "bn2"]):
        params = net.network.variables.params[blockwise.block_name(i)]
        np.testing.assert_allclose(got[i + 1].mean, params[f"{name}/bias"], rtol=1e-6)
        np.testing.assert_allclose(got[i + 1].var, np.square(params[f"{name}/scale"]), rtol=1e-6)


def test_propagated_moments_are_nearer_to_measured_ones_than_the_published_choice():
    """The residual sum is in one and not in the other."""
    net = trained()

    def distance(moments):
        pairs = zip(moments[1:], net.memory.block_inputs[1:], strict=True)
        return sum(float(objectives.moment_kl(m, p)) for m, p in pairs)

    propagated = distance(propagated_block_inputs(net.network))
    published = distance(propagated_block_inputs(net.network, published=True))
    assert propagated < 0.5 * published


def test_a_network_that_cannot_propagate_moments_is_an_error():
    model = chain(
        piece(resnet.Stem, 4, activation=False),
        piece(resnet.PreActivationBlock, 4),
        piece(resnet.PreActivationBlock, 4, pool=True),
    )
    with pytest.raises(ValueError, match="per_layer.block_statistics='measured'"):
        propagated_block_inputs(fresh_network(model))


def test_boosting_limits_hold_the_input_term_lower():
    assert per_layer.MAX_INPUT_BOOST["input_statistics"] == 5.0
    assert set(per_layer.MAX_BOOST.values()) == {10.0}
