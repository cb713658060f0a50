"""NNX and Linen modules as networks: the module's own numbers, its moments, and the way back."""

import functools
import types

import chex
import flax.linen as nn
import flax_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_networks import PIXELS
from flax_networks import Cnn
from flax_networks import OwnBatchNorm
from flax_networks import pool

import jaxpmi
from jaxpmi.blocks.blockwise import forward
from jaxpmi.flax_networks.train_argument import mode_arguments

LABELS = jnp.arange(8, dtype=jnp.int32) % flax_networks.CLASSES
GroupNorm = functools.partial(nnx.GroupNorm, num_groups=4)


def rngs():
    return nnx.Rngs(0)


def evaluated(module):
    module.eval()
    return module


def whole(module, **options):
    return jaxpmi.from_nnx(module, head=module.fc, **PIXELS, **options)


def linen(norm):
    module, variables, network = flax_networks.trained_linen(norm)
    return functools.partial(module.apply, variables), network


CASES = {
    "batch norm": lambda: with_network(flax_networks.trained_cnn()),
    "own batch norm": lambda: with_network(evaluated(Cnn(norm=OwnBatchNorm, rngs=rngs()))),
    "group norm": lambda: with_network(evaluated(Cnn(norm=GroupNorm, rngs=rngs()))),
    "layer norm": lambda: with_network(evaluated(Cnn(norm=nnx.LayerNorm, rngs=rngs()))),
    "one block": lambda: (m := flax_networks.trained_cnn(), whole(m)),
    "no head": lambda: (
        m := flax_networks.trained_cnn(),
        jaxpmi.from_nnx(m, **PIXELS),
    ),
    "remat": lambda: (m := evaluated(flax_networks.Rematted(rngs=rngs())), whole(m)),
    "scan": lambda: (m := evaluated(flax_networks.Scanned(rngs=rngs())), whole(m)),
    "called twice": lambda: (m := evaluated(flax_networks.Twice(rngs=rngs())), whole(m)),
    "linen batch norm": lambda: linen("batch"),
    "linen group norm": lambda: linen("group"),
    "linen layer norm": lambda: linen("layer"),
}


def call(graph, state, x):
    return nnx.merge(graph, nnx.to_pure_dict(state))(x)


def with_network(module):
    return module, module.as_network()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_input_gradients_are_the_modules_own(case):
    original, network = CASES[case]()
    raw, _, x = (part[:16] for part in flax_networks.data())
    np.testing.assert_allclose(jaxpmi.logits(network, raw), original(x), atol=1e-5)
    jaxpmi.check_network(network, raw, original(x), tolerance=1e-5)

    def ours(x):
        seen = forward(network.model, network.variables, x)
        return jnp.square(network.head(seen.features)).sum()

    if isinstance(original, nnx.Module):  # as NNX wants to be differentiated by JAX
        original = functools.partial(call, *nnx.split(original))
    theirs = lambda x: jnp.square(original(x)).sum()  # noqa: E731
    want = jax.grad(theirs)(x)
    np.testing.assert_allclose(jax.jit(jax.grad(ours))(x), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("train", [False, True])
def test_moments_are_those_of_every_norms_input(train):
    module = flax_networks.trained_cnn()
    network, x = module.as_network(), flax_networks.data()[2][:32]
    seen = forward(network.model, network.variables, x, train=train)
    for i, unit in enumerate((module.stem, module.one, module.two, module.down)):
        inputs = np.asarray(unit.conv(x), np.float64)
        got = seen.moments[f"block{i:02d}"]["norm"]
        np.testing.assert_allclose(got.mean, inputs.mean((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(got.var, inputs.var((0, 1, 2)), rtol=1e-4)
        stored = network.variables.batch_stats[f"block{i:02d}"]["norm"]
        np.testing.assert_array_equal(
            stored.mean, nnx.to_pure_dict(nnx.state(unit))["norm"]["mean"]
        )
        if not train:
            x = unit(x)
        else:
            mean, var = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
            state = jax.device_get(nnx.to_pure_dict(nnx.state(unit))["norm"])
            x = (inputs - mean) / np.sqrt(var + 1e-5) * state["scale"] + state["bias"]
            x = jnp.asarray(np.maximum(x, 0.0), jnp.float32)
    np.testing.assert_allclose(seen.features, pool(x), rtol=1e-3, atol=1e-4)


def test_moments_in_a_scan_have_the_layers_axis_and_of_two_calls_are_those_of_both():
    x = flax_networks.data()[2][:16]
    scanned = whole(evaluated(flax_networks.Scanned(rngs=rngs())))
    moments = forward(scanned.model, scanned.variables, x).moments["block00"]["units/norm"]
    assert moments.mean.shape == (3, 8)
    module = evaluated(flax_networks.Twice(rngs=rngs()))
    twice = whole(module)
    moments = forward(twice.model, twice.variables, x).moments["block00"]["unit/norm"]
    first = module.stem(x)
    inputs = np.concatenate([module.unit.conv(y) for y in (first, module.unit(first))])
    np.testing.assert_allclose(moments.mean, inputs.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(moments.var, inputs.var((0, 1, 2)), rtol=1e-4)


def test_equal_blocks_share_one_program():
    network = flax_networks.trained_cnn().as_network()
    blocks, (params, stats) = network.model.blocks, network.variables
    assert blocks[1] == blocks[2] and blocks[1] != blocks[0]
    x = jnp.zeros((2, 8, 8, 8))

    @functools.partial(jax.jit, static_argnames="block")
    @chex.assert_max_traces(n=1)
    def run(params, stats, x, *, block):
        return block.apply(params, stats, x)[0]

    for i in (1, 2):
        run(params[f"block{i:02d}"], stats[f"block{i:02d}"], x, block=blocks[i])
    assert flax_networks.trained_cnn().as_network().model == network.model


def test_the_way_back_into_a_module():
    network = flax_networks.trained_cnn().as_network()
    module = evaluated(Cnn(rngs=nnx.Rngs(1)))
    x = flax_networks.data()[2][:4]
    before = module(x)
    assert jaxpmi.to_nnx(network, module) is module
    assert not np.allclose(module(x), before)
    np.testing.assert_array_equal(module(x), flax_networks.trained_cnn()(x))
    one_block = whole(flax_networks.trained_cnn())
    again = jaxpmi.to_nnx(one_block, evaluated(Cnn(rngs=nnx.Rngs(2))))
    np.testing.assert_array_equal(again(x), module(x))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_way_back_into_variables(norm):
    module, variables, network = flax_networks.trained_linen(norm)
    chex.assert_trees_all_equal(jaxpmi.to_linen_variables(network), variables)
    state = types.SimpleNamespace(**variables)  # as a TrainState has them
    network = jaxpmi.from_linen(module, state, head="Dense_0", train_argument="train", **PIXELS)
    chex.assert_trees_all_equal(jaxpmi.to_linen_variables(network), variables)


def test_her_own_module_and_variables_stay_as_they_are():
    module = evaluated(Cnn(rngs=rngs()))
    own = lambda: nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))  # noqa: E731
    before = jax.tree.map(jnp.copy, own())
    network = module.as_network()
    config = jaxpmi.DeepInversionConfig(stage_steps=(2,))
    jaxpmi.deep_inversion(network, LABELS, jax.random.key(0), config=config)
    chex.assert_trees_all_equal(before, own())
    assert type(module.stem.norm) is nnx.BatchNorm and not hasattr(module.stem.norm, "jaxpmi_seen")
    assert module.stem.conv.conv_general_dilated is jax.lax.conv_general_dilated


@pytest.mark.parametrize("case", ["batch norm", "linen batch norm"])
def test_deep_inversion_makes_images_that_the_network_knows(case):
    _, network = CASES[case]()
    config = jaxpmi.DeepInversionConfig(
        stage_steps=(150,), learning_rate=0.1, statistics_weight=1.0, jitter_pixels=0
    )
    labels = jnp.arange(32) % flax_networks.CLASSES
    made = jaxpmi.deep_inversion(network, labels, jax.random.key(0), config=config)
    assert made.agreement >= 0.95 and made.images.dtype == jnp.uint8


@pytest.mark.parametrize("case", ["batch norm", "linen group norm", "linen layer norm"])
def test_pmi_makes_images_that_the_network_knows(case):
    _, network = CASES[case]()
    raw, labels, _ = flax_networks.data()
    config = jaxpmi.InversionConfig(targets="gaussian")
    memory = jaxpmi.remember(
        network, [(raw[:64], labels[:64]), (raw[64:], labels[64:])], config=config
    )
    wanted = jnp.arange(32) % flax_networks.CLASSES
    made = jaxpmi.synthesize(network, wanted, jax.random.key(0), memory=memory, config=config)
    assert made.agreement >= 0.95 and bool(made.finite)


def test_what_layers_without_moments_have_seen_is_measured_and_aimed_at():
    _, _, network = flax_networks.trained_linen("layer")
    with pytest.raises(ValueError, match="LayerNorm_0 of block00 keeps no moments of its input"):
        jaxpmi.deep_inversion(network, LABELS, jax.random.key(0))
    raw, labels, x = flax_networks.data()
    memory = jaxpmi.remember(network, [(raw, labels)])
    seen = forward(network.model, network.variables, x).moments
    chex.assert_trees_all_close(memory.layer_moments, seen, rtol=1e-4, atol=1e-5)
    config = jaxpmi.DeepInversionConfig(stage_steps=(60,), learning_rate=0.1, jitter_pixels=0)
    made = jaxpmi.deep_inversion(network, LABELS, jax.random.key(0), config=config, memory=memory)
    assert made.losses[-1] < 0.5 * made.losses[0]
    aimed = jaxpmi.with_layer_moments(network, memory)
    again = jaxpmi.deep_inversion(aimed, LABELS, jax.random.key(0), config=config)
    np.testing.assert_array_equal(again.images, made.images)


def test_batch_norms_keep_their_own_moments_beside_layers_that_are_measured():
    class Mixed(nnx.Module):
        def __init__(self, *, rngs):
            self.conv, self.one = nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.two, self.fc = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.fc(pool(self.two(self.one(self.conv(x)))))

    network = whole(evaluated(Mixed(rngs=rngs())))
    raw, labels, _ = flax_networks.data()
    moments = jaxpmi.remember(network, [(raw, labels)]).layer_moments["block00"]
    own = network.variables.batch_stats["block00"]
    chex.assert_trees_all_equal(moments["one"], own["one"])
    assert not np.allclose(moments["two"].var, own["two"].var)


def test_distillation_into_another_module_and_back():
    class Small(nnx.Module):
        def __init__(self, *, rngs):
            self.conv, self.norm = nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.fc = nnx.Linear(8, flax_networks.CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.fc(pool(nnx.relu(self.norm(self.conv(x)))))

    raw, labels, x = flax_networks.data()
    teacher = flax_networks.trained_cnn().as_network()
    small = evaluated(Small(rngs=rngs()))
    config = jaxpmi.DistillConfig(rounds=4, steps_per_round=40, batch_size=32, temperature=4.0)
    student = jaxpmi.distill(teacher, whole(small), raw, jax.random.key(0), config=config)
    jaxpmi.to_nnx(student, small)
    right = np.mean(small(x).argmax(1) == labels)
    assert right >= 0.8
    np.testing.assert_allclose(small(x), jaxpmi.logits(student, raw), atol=1e-4)


def test_half_precision_and_double_precision(float64):
    module = evaluated(Cnn(rngs=rngs()))
    network, x = module.as_network(), flax_networks.data()[2][:4]
    cast = lambda tree, dtype: jax.tree.map(lambda p: p.astype(dtype), tree)  # noqa: E731
    params = cast(network.variables.params, jnp.bfloat16)
    halved = network.variables._replace(params=params)
    seen = forward(network.model, halved, x.astype(jnp.bfloat16))
    assert seen.moments["block00"]["norm"].mean.dtype == jnp.float32
    whole_params = cast(network.variables, jnp.float64)
    seen = forward(network.model, whole_params, x.astype(jnp.float64))
    assert seen.features.dtype == jnp.float64


class Forgetful(Cnn):
    """With a layer that its call leaves out."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.extra = nnx.Linear(3, 3, rngs=rngs)


class OwnMoments(nnx.Module):
    """With running moments of its own, of no kind that is known."""

    def __init__(self, *, rngs):
        self.mean, self.var = nnx.BatchStat(jnp.zeros(64)), nnx.BatchStat(jnp.ones(64))
        self.fc = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        return self.fc((x.reshape(len(x), -1) - self.mean[None]) / jnp.sqrt(self.var)[None])


def cnn_parts(make):
    module = evaluated(Cnn(rngs=rngs()))
    return lambda: jaxpmi.from_nnx(module, **make(module), **PIXELS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            cnn_parts(lambda m: {"blocks": [m.stem, m.down, m.one, m.two, pool], "head": m.fc}),
            r"blocks\[2\] cannot take inputs of \(4, 4, 16\) per image: .* Check the order",
        ),
        (
            cnn_parts(lambda m: {"blocks": [m.stem, m.one, m.down, pool], "head": m.fc}),
            "blocks leave out two/conv/bias, two/conv/kernel, .* of the module; give every part",
        ),
        (
            cnn_parts(lambda m: {"blocks": [m.stem, m.one, m.one, m.two, m.down], "head": m.fc}),
            r"blocks\[1\] and blocks\[2\] share the parameters of a Unit; put what shares",
        ),
        (
            cnn_parts(lambda m: {"blocks": [m.stem, Cnn(rngs=rngs()).one], "head": m.fc}),
            r"blocks\[1\] is a Unit that is no part of the module; give parts of the module itself",
        ),
        (
            cnn_parts(lambda m: {"blocks": [m.stem, 3], "head": m.fc}),
            r"blocks\[1\] is a int; give modules and functions of one array.",
        ),
        (cnn_parts(lambda m: {"blocks": [pool]}), "blocks has no module; give the parts that"),
        (
            cnn_parts(lambda m: {"head": m.stem}),
            r"head is a Unit with the parameters \['conv', 'norm'\]; give an nnx.Linear",
        ),
        (
            cnn_parts(lambda m: {"head": nnx.Linear(16, 4, rngs=rngs())}),
            "head is a Linear that is no part of the module",
        ),
        (
            lambda: Forgetful(rngs=rngs()).as_network(),
            "blocks leave out extra/bias, extra/kernel of the module",
        ),
        (
            lambda: whole(OwnMoments(rngs=rngs())),
            "OwnMoments has the running moments mean, var, of layers that are none of statistics",
        ),
        (
            cnn_parts(lambda m: {"blocks": [m.stem, nnx.relu, m.down, m.one], "head": m.fc}),
            r"blocks\[3\] cannot take inputs of \(4, 4, 16\)",  # counted as they are listed
        ),
        (
            cnn_parts(lambda m: {"train_argument": "training", "head": m.fc}),
            "train_argument gives 'training', which no block's call takes; give the name",
        ),
        (
            cnn_parts(lambda m: {"blocks": [m], "head": m.fc}),
            r"blocks\[0\] and head share the parameters of a Linear; put .* classifier into none",
        ),
        (lambda: jaxpmi.from_nnx(pool, **PIXELS), "from_nnx got a function; give an nnx.Module"),
        (
            lambda: jaxpmi.to_nnx(flax_networks.trained_linen()[2], Cnn(rngs=rngs())),
            "the network is made of LinenModel, not of an NNX module",
        ),
        (
            lambda: jaxpmi.to_nnx(
                flax_networks.trained_cnn().as_network(), flax_networks.Twice(rngs=rngs())
            ),
            "but the module has none; give a module of the structure that it came from",
        ),
        (
            lambda: jaxpmi.to_linen_variables(flax_networks.trained_cnn().as_network()),
            "the network is made of NnxModel, not of a Linen module",
        ),
    ],
)
def test_what_makes_no_network(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "Dense_7"}, r"head='Dense_7' names no nn.Dense of the parameters, which are"),
        ({"variables": {"weights": {}}}, r"variables has \['weights'\] and no 'params'"),
        ({"variables": 3}, "variables is a int; give a dict with 'params'"),
        ({"head": "Dense_0/kernel"}, "head='Dense_0/kernel' names no nn.Dense of the parameters"),
        (
            {"image_shape": (8, 8, 3)},
            "LinenCnn cannot be called with these variables and ima",
        ),
        (
            {"train_argument": "training"},
            "LinenCnn cannot be called .* unexpected keyword argument 'training' Check train_argu",
        ),
    ],
)
def test_linen_modules_that_cannot_be_called(change, message):
    module, variables, _ = flax_networks.trained_linen()
    options = {"variables": variables, "head": "Dense_0", "train_argument": "train", **PIXELS}
    with pytest.raises(ValueError, match=message):
        jaxpmi.from_linen(module, **(options | change))


class LinenScan(nn.Module):
    axes: tuple[tuple[str, int], ...] = ()

    @nn.compact
    def __call__(self, x):
        class Unit(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)), None

        axes = {"params": 0, "batch_stats": 0, **dict(self.axes)}
        scan = nn.scan(Unit, variable_axes=axes, split_rngs={"params": True}, length=3)
        return pool(scan()(nn.Conv(4, (3, 3))(x), None)[0])


def test_a_linen_scan_has_to_carry_what_its_layers_see():
    x = flax_networks.data()[2][:2]
    module = LinenScan()
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="inside an nn.scan, .* add 'jaxpmi_seen': 0 to them"):
        jaxpmi.from_linen(module, variables, **PIXELS)
    module = LinenScan((("jaxpmi_seen", 0),))
    network = jaxpmi.from_linen(module, variables, **PIXELS)
    (moments,) = forward(network.model, network.variables, x).moments["block00"].values()
    assert moments.mean.shape == (3, 4)


@pytest.mark.parametrize(
    ("argument", "train", "wanted"),
    [
        ("train", True, {"train": True}),
        ("!deterministic", True, {"deterministic": False}),
        (lambda train: {"mode": str(train)}, False, {"mode": "False"}),
        (None, True, {}),
    ],
)
def test_how_a_module_is_told_that_it_trains(argument, train, wanted):
    assert mode_arguments(argument, train) == wanted


def test_blocks_of_flax_have_no_random_weights():
    for network in (flax_networks.trained_cnn().as_network(), flax_networks.trained_linen()[2]):
        with pytest.raises(ValueError, match="has no random weights of its own"):
            network.model.blocks[0].init(jax.random.key(0), (8, 8, 1))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (lambda m, x, raw: jax.nn.softmax(m(x)), "its rows sum to 1, so they are probabilities"),
        (lambda m, x, raw: jax.nn.log_softmax(m(x)), "logarithms of probabilities .* log_softmax"),
        (lambda m, x, raw: m(raw / 255.0), r"they agree for pixels in \[0, 1\] that were not norm"),
        (
            lambda m, x, raw: m(raw.astype(np.float32)),
            "they agree for pixels in 0..255: give mean",
        ),
        (
            lambda m, x, raw: training(m)(x),
            "they agree in training mode, where BatchNorms norm",
        ),
        (
            lambda m, x, raw: m(x) + jnp.arange(4.0)[None],
            "they differ by a constant per class: the head",
        ),
        (lambda m, x, raw: m(x[::-1]), "check mean and std, the order of the blocks and of the"),
        (lambda m, x, raw: m(x)[:, :2], r"expected has shape \(16, 2\), but the network gives"),
        (lambda m, x, raw: biasless(m)(x), "they agree without the head's bias: give the same"),
    ],
)
def test_other_logits_are_told_of_and_why(expected, message):
    module = nnx.clone(flax_networks.trained_cnn())
    network = module.as_network()
    raw, _, x = (part[:16] for part in flax_networks.data())
    with pytest.raises(ValueError, match=message):
        jaxpmi.check_network(network, raw, expected(module, x, raw))


def training(module):
    module.train()
    for unit in (module.stem, module.one, module.two, module.down):
        unit.drop.deterministic, unit.norm.use_fast_variance = True, False
    return module


def biasless(module):
    module.fc.bias = nnx.Param(jnp.zeros(flax_networks.CLASSES))
    return module
