"""What users' modules do beside convolving: constants, modes, norms of their own, many devices."""

import functools

import chex
import flax.linen as nn
import flax_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_networks import CLASSES
from flax_networks import PIXELS
from flax_networks import pool

import jaxpmi
from jaxpmi.blocks.blockwise import forward


def images():
    raw, _, x = (part[:16] for part in flax_networks.data())
    return raw, x


class Body(nnx.Module):
    """conv - norm - ReLU."""

    def __init__(self, *, norm=nnx.BatchNorm, rngs):
        self.conv, self.norm = nnx.Conv(1, 8, (3, 3), rngs=rngs), norm(8, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Plain(nnx.Module):
    def __init__(self, *, norm=nnx.BatchNorm, rngs):
        self.body, self.fc = Body(norm=norm, rngs=rngs), nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.fc(pool(self.body(x)))


class Reshaped(Plain):
    """What comes after the classifier needs the classifier's shape."""

    def __call__(self, x):
        return super().__call__(x).reshape(-1, CLASSES)


class Positions(Plain):
    """Arrays that are no parameters: added to the features, or read as a shape."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.added = 0.1 * jnp.arange(8.0)
        self.order = nnx.Variable(jnp.arange(8)[::-1])
        self.sizes = np.array([-1, CLASSES])

    def __call__(self, x):
        y = self.body(x)[..., self.order[...]].at[...].add(self.added[None, None, None])
        return self.fc(pool(y)).reshape(tuple(int(n) for n in self.sizes))


class Named(nnx.Module):
    """Its parts are in a dict, and a BatchNorm is one over devices, whose axis has its number."""

    def __init__(self, *, rngs):
        norm = functools.partial(nnx.BatchNorm, axis=3, axis_name="devices")
        self.parts = getattr(nnx, "Dict", dict)({"body": Body(norm=norm, rngs=rngs)})
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.fc(pool(self.parts["body"](x)))


class Told(nnx.Module):
    """An argument says whether it trains, and how is not said by the layers."""

    def __init__(self, *, rngs):
        self.body, self.drop = Body(rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x, train):
        x = self.body.norm(self.body.conv(x), use_running_average=not train)
        return self.fc(self.drop(pool(nnx.relu(x)), deterministic=not train))


class Attending(nnx.Module):
    def __init__(self, *, rngs):
        self.patches = nnx.Conv(1, 16, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.places = nnx.Param(jax.random.normal(jax.random.key(0), (1, 4, 16)))
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, dropout_rate=0.5, rngs=rngs)
        self.fc = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(x.shape[0], 4, 16) + self.places[...]
        return self.fc((x + self.attention(self.norm(x))).mean(1))


def make(kind, **options):
    module = kind(rngs=nnx.Rngs(0), **options)
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.BatchStat):  # as if it were trained
            node[...] = node[...] + 0.1 + 0.1 * jnp.arange(8.0)
    module.eval()
    return module


def blockwise(module, body, **options):
    return jaxpmi.from_nnx(module, blocks=[body, pool], head=module.fc, **PIXELS, **options)


@pytest.mark.parametrize(
    "kind", [Plain, Reshaped, Positions, Named, Attending], ids=lambda kind: kind.__name__
)
def test_a_module_gives_its_own_logits(kind):
    module = make(kind)
    network = jaxpmi.from_nnx(module, head=module.fc, **PIXELS)
    raw, x = images()
    jaxpmi.check_network(network, raw, module(x), tolerance=1e-5)
    seen = forward(network.model, network.variables, x, train=True)  # nothing is dropped
    again = forward(network.model, network.variables, x, train=True)
    np.testing.assert_array_equal(seen.features, again.features)
    twin = make(kind)
    assert jaxpmi.from_nnx(twin, head=twin.fc, **PIXELS).model == network.model


def test_one_part_and_a_classifier():
    module, (raw, x) = make(Named), images()
    network = blockwise(module, module.parts["body"])
    assert len(network.model.blocks) == 1
    jaxpmi.check_network(network, raw, module(x), tolerance=1e-5)
    jaxpmi.to_nnx(network, make(Named))


def test_partials_of_one_function_are_one_function():
    module = make(Plain)

    def network(axes, pool=jnp.mean):
        parts = [module.body, functools.partial(pool, axis=axes)]
        return jaxpmi.from_nnx(module, blocks=parts, head=module.fc, **PIXELS)

    raw, x = images()
    jaxpmi.check_network(network((1, 2)), raw, module(x), tolerance=1e-5)
    assert network((1, 2)).model == network((1, 2)).model
    assert network((1, 2)).model != network((2, 1)).model
    weighted = functools.partial(lambda weights, x, axis: x.mean(axis) * weights[None], jnp.ones(8))
    assert network((1, 2), weighted).feature_dim == 8


def test_constants_are_no_parameters_and_tell_blocks_apart():
    module, other = make(Positions), make(Positions)
    network = jaxpmi.from_nnx(module, head=module.fc, **PIXELS)
    assert not any("added" in path for path in network.variables.params["block00"])
    same = jaxpmi.from_nnx(other, head=other.fc, **PIXELS)
    assert network.model == same.model and hash(network.model) == hash(same.model)
    other.added = other.added + 1.0
    assert jaxpmi.from_nnx(other, head=other.fc, **PIXELS).model != network.model


@pytest.mark.parametrize(
    "argument", ["train", lambda train: {"train": train}], ids=["name", "function"]
)
def test_an_argument_says_whether_a_module_trains(argument):
    module, (raw, x) = make(Told), images()
    network = jaxpmi.from_nnx(module, head=module.fc, train_argument=argument, **PIXELS)
    jaxpmi.check_network(network, raw, module(x, False), tolerance=1e-5)
    seen = forward(network.model, network.variables, x, train=True)
    inputs = module.body.conv(x)
    normed = module.body.norm(inputs, use_running_average=False)
    np.testing.assert_allclose(seen.features, pool(nnx.relu(normed)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="missing 1 required .* 'train' .* and train_argument"):
        jaxpmi.from_nnx(module, head=module.fc, **PIXELS)


class OwnNorm(nnx.Module):
    """Keeps moments as a BatchNorm does, and is none."""

    def __init__(self, channels, *, rngs):
        del rngs
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x):
        shape = (1, 1, 1, -1)
        return (x - self.mean[...].reshape(shape)) / jnp.sqrt(self.var[...].reshape(shape))


def test_a_norm_of_ones_own_is_kept_by_its_kind():
    module, (raw, x) = make(Plain, norm=OwnNorm), images()
    network = blockwise(module, module.body, statistics_of=(OwnNorm,))
    jaxpmi.check_network(network, raw, module(x), tolerance=1e-5)
    stored = network.variables.batch_stats["block00"]["norm"]
    np.testing.assert_array_equal(stored.mean, 0.1 + 0.1 * jnp.arange(8.0))
    with pytest.raises(ValueError, match="norm has running moments and no use_running_average"):
        forward(network.model, network.variables, x, train=True)


def test_channels_that_are_not_the_last_are_refused():
    module = make(Plain, norm=functools.partial(nnx.BatchNorm, axis=1))
    with pytest.raises(ValueError, match="normalises axis 1 of an input of 4 axes; channels must"):
        blockwise(module, module.body)


def test_a_head_that_lost_its_bias_leaves_none_in_the_module():
    module, (raw, x) = make(Plain), images()
    module.fc.bias[...] = jnp.ones(CLASSES)
    network = blockwise(module, module.body)
    network = network.replace(head=network.head._replace(bias=None))
    jaxpmi.check_network(network, raw, jaxpmi.to_nnx(network, module)(x), tolerance=1e-5)


def test_a_trained_head_without_a_place_is_not_lost():
    module, (linen, variables) = make(Plain), linen_module()
    raw_head = jaxpmi.from_nnx(module, **PIXELS)
    jaxpmi.to_nnx(raw_head, module)
    trained = raw_head.replace(head=raw_head.head._replace(kernel=2.0 * raw_head.head.kernel))
    with pytest.raises(ValueError, match="head is no longer the identity, and the module has no"):
        jaxpmi.to_nnx(trained, module)
    raw_head = jaxpmi.from_linen(linen, variables, **PIXELS)
    trained = raw_head.replace(head=raw_head.head._replace(bias=jnp.ones(CLASSES)))
    with pytest.raises(ValueError, match="head is no longer the identity, and the module has no"):
        jaxpmi.to_linen_variables(trained)


class Linen(nn.Module):
    """With a BatchNorm, attention, Dropout, a constant; noise of its own if it is told to train."""

    own_noise: bool = False
    use_bias: bool = True
    axis: int = -1

    @nn.compact
    def __call__(self, x, train=False):
        scale = self.variable("constants", "scale", lambda: 1.0 + jnp.arange(16.0))
        x = nn.Conv(16, (4, 4), strides=4)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name="devices", axis=self.axis)(x)
        if self.own_noise and train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        x = x.reshape(x.shape[0], 4, 16) * scale.value[None, None]
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=not train)
        x = nn.Dropout(0.5, deterministic=not train)(x + attention(x)).mean(1)
        return nn.Dense(CLASSES, use_bias=self.use_bias)(x)


def linen_module(**options):
    module = Linen(**options)
    variables = module.init(jax.random.key(0), images()[1])
    shaken = lambda leaf: leaf + 0.1 + 0.1 * jnp.arange(leaf.shape[0])  # noqa: E731
    return module, variables | {"batch_stats": jax.tree.map(shaken, variables["batch_stats"])}


def from_linen(module, variables, **options):
    options = {"head": "Dense_0", "train_argument": "train"} | options
    return jaxpmi.from_linen(module, variables, **options, **PIXELS)


def test_a_linen_module_gives_its_own_logits_and_drops_nothing():
    (module, variables), (raw, x) = linen_module(), images()
    network = from_linen(module, variables)
    jaxpmi.check_network(network, raw, module.apply(variables, x), tolerance=1e-5)
    chex.assert_trees_all_equal(jaxpmi.to_linen_variables(network), variables)
    assert "constants" not in network.variables.params["block00"]
    train = functools.partial(forward, network.model, network.variables, x, train=True)
    (moments,) = train().moments["block00"].values()
    inputs = nn.Conv(16, (4, 4), strides=4).apply({"params": variables["params"]["Conv_0"]}, x)
    np.testing.assert_allclose(moments.mean, inputs.mean((0, 1, 2)), atol=1e-5)
    untold = from_linen(
        module, variables, train_argument=None
    )  # its BatchNorm is told all the same
    features = forward(untold.model, untold.variables, x, train=True).features
    np.testing.assert_array_equal(train().features, features)
    assert not np.allclose(features, forward(untold.model, untold.variables, x).features)


def test_a_linen_module_that_draws_random_numbers_is_told_of():
    (module, variables), (raw, x) = linen_module(own_noise=True), images()
    network = from_linen(module, variables)
    with pytest.raises(
        ValueError, match="Linen draws random numbers of its own when it is told tr"
    ):
        forward(network.model, network.variables, x, train=True)
    with pytest.raises(ValueError, match="check mean and std, the order of the blocks"):
        jaxpmi.check_network(network, raw, module.apply(variables, x[::-1]))
    quiet = from_linen(module, variables, train_argument=lambda train: {"train": False})
    assert forward(quiet.model, quiet.variables, x, train=True).features.shape == (16, 16)


def test_a_lost_bias_is_zeros_in_the_variables_and_a_new_one_is_refused():
    (module, variables), (raw, x) = linen_module(), images()
    network = from_linen(module, variables)
    network = network.replace(head=network.head._replace(bias=None))
    again = module.apply(jaxpmi.to_linen_variables(network), x)
    jaxpmi.check_network(network, raw, again, tolerance=1e-5)
    network = from_linen(*linen_module(use_bias=False))
    network = network.replace(head=network.head._replace(bias=jnp.ones(CLASSES)))
    with pytest.raises(ValueError, match="head has a bias, but the module's Dense_0 has none"):
        jaxpmi.to_linen_variables(network)


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        return (x - mean.value[None, None, None]) / jnp.sqrt(var.value[None, None, None])


class LinenOwn(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(pool(LinenNorm()(nn.Conv(8, (3, 3))(x))))


def test_moments_of_batch_stats_are_all_used_or_refused():
    module, (raw, x) = LinenOwn(), images()
    variables = module.init(jax.random.key(0), x)
    stats = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    variables = {**variables, "batch_stats": stats}
    with pytest.raises(ValueError, match="batch_stats has LinenNorm_0/mean, .* add their kind"):
        from_linen(module, variables, train_argument=None)
    network = from_linen(module, variables, train_argument=None, statistics_of=(LinenNorm,))
    jaxpmi.check_network(network, raw, module.apply(variables, x), tolerance=1e-5)
    module, variables = linen_module()
    with pytest.raises(ValueError, match="variables has no batch_stats of BatchNorm_0; give the"):
        from_linen(module, {key: variables[key] for key in ("params", "constants")})
    with pytest.raises(ValueError, match="axis 1 of an input of 4 axes; channels must be the last"):
        from_linen(Linen(axis=1), variables)


class TwoHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, spare = pool(nn.Conv(8, (3, 3))(x)), nn.Dense(CLASSES, name="spare")
        if self.is_initializing():
            spare(x)
        return nn.Dense(CLASSES)(x)


def test_a_head_that_is_not_called_is_told_of():
    module = TwoHeads()
    variables = module.init(jax.random.key(0), images()[1])
    with pytest.raises(ValueError, match="head='spare' is not called in a pass; give the name of"):
        from_linen(module, variables, head="spare", train_argument=None)
