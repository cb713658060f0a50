"""Lists of equal modules, random layers with a key, and channels that a module names itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rows import chain
from rows import piece
from rows import sized

import jaxpmi
from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import forward
from jaxpmi.blocks.channels import ChannelAxes
from jaxpmi.flax_networks.containers import ModuleList
from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.models.init_network import init_network
from jaxpmi.pruning import filter_mask

SHAPE, DIM, DEPTH = (8, 8, 3), 6, 4
PIXELS = {"mean": [0.5] * 3, "std": [0.25] * 3}
pool = functools.partial(jnp.mean, axis=(1, 2))


class Layer(nnx.Module):
    """A residual layer with a BatchNorm."""

    def __init__(self, dim, *, rngs):
        self.norm = nnx.BatchNorm(dim, rngs=rngs)
        self.linear = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.linear(self.norm(x)))


class Deep(nnx.Module):
    """What a user may have: equal layers in a list."""

    def __init__(self, *, depth=DEPTH, rngs):
        self.stem = nnx.Conv(3, DIM, (3, 3), 2, rngs=rngs)
        self.layers = ModuleList([Layer(DIM, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(DIM, 5, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(pool(x))


class Last(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return pool(self.linear(x))


class DeepWithLast(Deep):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.last = Last(rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last(x))


def images(count=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def trained(seed=0):
    """With moments of every layer that are its own."""
    module = DeepWithLast(rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for layer in module.layers:
        layer.norm.mean[...] = jnp.asarray(rng.normal(size=DIM), jnp.float32)
        layer.norm.var[...] = jnp.asarray(rng.uniform(0.5, 2.0, DIM), jnp.float32)
    return module


def as_network(module, listed):
    blocks = [module.stem, listed, module.last]
    return jaxpmi.from_nnx(module, blocks=blocks, head=module.head, image_shape=SHAPE, **PIXELS)


def test_a_list_of_equal_modules_is_a_stack_and_gives_their_logits_and_moments():
    module = trained()
    network = as_network(module, list(module.layers))
    (_, stack, _), same = network.model.blocks, as_network(module, tuple(module.layers))
    assert isinstance(stack, Stack) and stack.depth == DEPTH and same.model == network.model
    module.eval()
    x = jaxpmi.normalise(jnp.asarray(images()), *PIXELS.values())
    jaxpmi.check_network(network, images(), module(x))
    seen = forward(network.model, network.variables, x)
    y = module.stem(x)
    for i, layer in enumerate(module.layers):
        moments = seen.moments["block01"]["norm"]
        np.testing.assert_allclose(moments.mean[i], y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.var[i], y.var((0, 1, 2)), rtol=1e-4)
        y = layer(y)


def test_a_stack_goes_back_into_its_modules():
    module, other = trained(), trained(1)
    network = as_network(module, list(module.layers))
    changed = jax.tree.map(lambda leaf: leaf + 0.1, network.variables)
    back = jaxpmi.to_nnx(network.replace(variables=changed), other)
    assert back is other
    for mine, theirs in zip(module.layers, other.layers, strict=True):
        for old, new in zip(*(jax.tree.leaves(nnx.state(m)) for m in (mine, theirs)), strict=True):
            np.testing.assert_allclose(new, old + 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            lambda m: [m.stem, [m.layers[0], m.last], *m.layers[1:]],
            r"blocks\[1\] is a list of modules that",
        ),
        (lambda m: [m.stem, nnx.relu, [*m.layers], m.last], None),
        (lambda m: [m.stem, [*m.layers, nnx.relu], m.last], r"blocks\[1\] is a list; it must have"),
        (lambda m: [m.stem, [], *m.layers, m.last], r"blocks\[1\] is a list; it must have modules"),
        (lambda m: [m.stem, m.last, [*m.layers], pool], "ends with a function after a list"),
        (lambda m: [nnx.relu, [*m.layers], m.stem, m.last], r"blocks\[1\] is a list; .* the start"),
    ],
)
def test_lists_that_are_no_stack(blocks, message):
    module = trained()
    make = functools.partial(jaxpmi.from_nnx, module, head=module.head, image_shape=SHAPE, **PIXELS)
    if message is None:
        assert isinstance(make(blocks=blocks(module)).model.blocks[1], Stack)
        return
    with pytest.raises(ValueError, match=message):
        make(blocks=blocks(module))


def test_a_function_after_a_stack_joins_the_module_behind_it():
    module = trained()
    plain, halved = (
        jaxpmi.from_nnx(
            module,
            blocks=[module.stem, [*module.layers], *between, module.last],
            head=module.head,
            image_shape=SHAPE,
            **PIXELS,
        )
        for between in ([], [lambda x: 0.5 * x])
    )
    bias = module.last.linear.bias[...][None]
    features = [
        forward(net.model, net.variables, jnp.asarray(images(), jnp.float32)).features - bias
        for net in (plain, halved)
    ]
    np.testing.assert_allclose(features[1], 0.5 * features[0], rtol=1e-4, atol=1e-4)


class Noisy(nnx.Module):
    def __init__(self, *, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(x)


def test_random_layers_draw_from_a_key_and_rest_without():
    block, params, _ = as_block(Noisy(rngs=nnx.Rngs(0)))
    x = jnp.ones((4, 1000))
    rest, _ = block.apply(params, {}, x)
    first, again, other = (
        block.apply(params, {}, x, key=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(rest, x)
    np.testing.assert_array_equal(first, again)
    assert 0.4 < float((first == 0).mean()) < 0.6 and (first != other).any()


def test_variables_that_a_block_has_no_place_for_are_refused():
    block, params, _ = as_block(Last(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="the variables have extra, which Last has no place for"):
        block.apply({**params, "extra": jnp.zeros(())}, {}, jnp.ones((2, DIM)))


class Prunable(nnx.Module):
    """A block of a user's own that says what its channels are."""

    def __init__(self, in_channels, channels, *, pool=False, rngs):
        self.depthwise = nnx.Conv(
            in_channels, in_channels, (3, 3), feature_group_count=in_channels, rngs=rngs
        )
        self.conv = nnx.Conv(in_channels, channels, (1, 1), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.pool = pool

    def __call__(self, x):
        y = nnx.relu(self.norm(self.conv(self.depthwise(x))))
        return pool(y) if self.pool else y

    def channel_axes(self):
        layers = {"depthwise": ("in",), "conv": ("in", "out"), "norm": ("out",)}
        return ChannelAxes(layers, tied=False)


def test_modules_of_ones_own_are_pruned_by_their_channel_axes():
    architecture = chain(piece(Prunable, 6), piece(Prunable, 4, pool=True))
    network = init_network(architecture, jax.random.key(0), SHAPE, "abc", **PIXELS)
    groups = jaxpmi.filter_groups(network)
    assert {name: tuple(group) for name, group in groups.items()} == {
        "block00/out": (6, 2),  # one filter writes a channel, and a depthwise one works on it
        "block01/out": (4, 1),
    }
    kept = {"block00/out": (0, 2, 5), "block01/out": (1, 2)}
    small = jaxpmi.remove_filters(network, kept)
    mask = {
        name: jnp.asarray([i in kept[name] for i in range(group.size)])
        for name, group in groups.items()
    }
    masked = jax.tree.map(jnp.multiply, network.variables.params, filter_mask(network, mask))
    silenced = network.replace(variables=network.variables._replace(params=masked))
    np.testing.assert_allclose(
        jaxpmi.logits(small, images()), jaxpmi.logits(silenced, images()), rtol=1e-4, atol=1e-5
    )
    fresh = init_network(sized(_narrow), jax.random.key(0), SHAPE, "abc", **PIXELS)
    assert small.model == fresh.model  # nothing of it remembers that it was pruned


def _narrow(image_shape, *, rngs):
    return chain(piece(Prunable, 3), piece(Prunable, 2, pool=True))(image_shape, rngs=rngs)
