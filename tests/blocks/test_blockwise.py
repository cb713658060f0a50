import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import chain
from rows import piece
from rows import sized
from rows import variables_of

from jaxpmi.blocks import blockwise
from jaxpmi.models import MODELS
from jaxpmi.models import resnet
from jaxpmi.models.init_network import init_backbone
from jaxpmi.models.init_network import init_network
from jaxpmi.types import Moments

SHAPE = (8, 8, 3)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("block", "train"))
def apply(params, batch_stats, x, *, block, train):
    return block.apply(params, batch_stats, x, train=train)


@functools.cache
def randomised(name):
    """A network whose every parameter and running moment is random: no gamma of 0 hides a path."""
    model, variables = init_backbone(sized(MODELS[name], width=4), jax.random.key(0), SHAPE)
    leaves, structure = jax.tree.flatten(variables.params)
    leaves = [x + 0.3 * normal(i, *x.shape) for i, x in enumerate(leaves)]
    params = jax.tree.unflatten(structure, leaves)
    scatter = lambda x: np.abs(x + 0.3 * normal(1, *x.shape)) + 0.1  # noqa: E731
    return model, blockwise.Variables(params, jax.tree.map(scatter, variables.batch_stats))


@pytest.mark.parametrize("name", ["resnet_small", "preact_resnet18"])
def test_blocks_in_sequence_are_the_forward_pass(name):
    """Each block is a program of its own here, and the whole network is one."""
    model, variables = randomised(name)
    images = 2.0 * normal(7, 5, *SHAPE)
    whole = jax.jit(functools.partial(blockwise.forward, model))(variables, images)
    x, shapes = images, blockwise.block_input_shapes(model, variables, SHAPE)
    for i, block in enumerate(model.blocks):
        name = blockwise.block_name(i)
        assert x.shape[1:] == shapes[i]
        half = blockwise.block_input(model, variables, images, i // 2)
        there = blockwise.block_input(model, variables, half, i, first_block=i // 2)
        np.testing.assert_allclose(there, x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            whole.block_inputs[i].mean, np.asarray(x).mean((0, 1, 2)), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            whole.block_inputs[i].var, np.asarray(x).var((0, 1, 2)), rtol=1e-4, atol=1e-6
        )
        params, batch_stats = variables.params[name], variables.batch_stats[name]
        x, moments = apply(params, batch_stats, x, block=block, train=False)
        for got, want in zip(
            jax.tree.leaves(moments), jax.tree.leaves(whole.moments[name]), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    scale = np.abs(whole.features).max()
    assert scale > 0.1
    np.testing.assert_allclose(x, whole.features, atol=1e-5 * max(scale, 1.0))
    assert x.shape[1:] == shapes[-1]


def test_training_mode_is_chosen_per_block():
    model, variables = randomised("resnet_small")
    images = 2.0 * normal(7, 5, *SHAPE)
    run = jax.jit(functools.partial(blockwise.forward, model), static_argnames="train")
    modes = (False, True, False, False, True)
    got = run(variables, images, train=modes)
    x = images
    for i, (block, mode) in enumerate(zip(model.blocks, modes, strict=True)):
        params, batch_stats = (part[blockwise.block_name(i)] for part in variables)
        x, _ = apply(params, batch_stats, x, block=block, train=mode)
    np.testing.assert_allclose(got.features, x, rtol=1e-4, atol=1e-4)
    for other in (False, True):
        assert np.abs(run(variables, images, train=other).features - x).max() > 1e-2
    with pytest.raises(ValueError, match="shorter|longer"):
        blockwise.forward(model, variables, images, train=(True,))


def test_channel_moments_are_those_of_numpy():
    x = 3.0 * normal(1, 4, 5, 6, 7) + np.arange(7, dtype=np.float32)
    mean, var = jax.jit(blockwise.channel_moments)(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=np.float64), rtol=1e-5)
    mean, var = blockwise.channel_moments(x + 1000.0)  # no cancellation far from 0
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=np.float64), rtol=1e-3)


def test_running_moments_move_by_the_momentum():
    running = {"bn": Moments(jnp.zeros(2), jnp.ones(2))}
    shown = {"bn": Moments(jnp.full(2, 10.0), jnp.full(2, 3.0))}
    once = blockwise.update_batch_stats(running, shown)
    np.testing.assert_allclose(once["bn"].mean, 1.0, rtol=1e-6)
    np.testing.assert_allclose(once["bn"].var, 1.2, rtol=1e-6)
    np.testing.assert_allclose(blockwise.update_batch_stats(running, shown, 0.5)["bn"].mean, 5.0)


def test_block_names_keep_their_order_when_sorted():
    names = [blockwise.block_name(i) for i in range(16)]
    assert sorted(names) == names


def test_initial_variables_depend_on_the_key_and_nothing_else():
    small = sized(MODELS["resnet_small"], width=4)
    first, again, other = (variables_of(small, jax.random.key(seed), SHAPE) for seed in (3, 3, 4))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [variables.params["block00"]["conv/kernel"] for variables in (first, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    # Two blocks of one shape do not share their draws.
    plain = sized(resnet.resnet32, width=4, depth=2)
    params = variables_of(plain, jax.random.key(3), SHAPE).params
    assert np.abs(params["block01"]["conv1/kernel"] - params["block02"]["conv1/kernel"]).max() > 0.1


def test_a_model_that_is_not_pooled_is_an_error():
    architecture = chain(piece(resnet.Stem, 4), piece(resnet.ResidualBlock, 8, stride=2))
    with pytest.raises(ValueError, match=r"the last block returns \(4, 4, 8\) per image"):
        init_network(architecture, jax.random.key(0), SHAPE, "ab", mean=[0.5] * 3, std=[0.2] * 3)


@dataclasses.dataclass(frozen=True)
class Affine:
    """A block without BatchNorm, as a user may write one."""

    features: int

    def init(self, key, input_shape):
        return {"w": jax.random.normal(key, (input_shape[-1], self.features))}, {}

    def apply(self, params, batch_stats, x, *, train):
        return x.mean((1, 2)) @ params["w"], {}


@dataclasses.dataclass(frozen=True)
class Own:
    blocks: tuple = (Affine(3),)


def test_a_model_of_ones_own_needs_only_blocks():
    variables = blockwise.init_variables(Own(), jax.random.key(0), SHAPE)
    images = normal(0, 4, *SHAPE)
    out = blockwise.forward(Own(), variables, images, train=True)
    want = images.mean((1, 2)) @ variables.params["block00"]["w"]
    np.testing.assert_allclose(out.features, want, rtol=1e-5, atol=1e-6)
    assert out.moments == {"block00": {}} and len(out.block_inputs) == 1
    assert blockwise.block_input_shapes(Own(), variables, SHAPE) == (SHAPE, (3,))
