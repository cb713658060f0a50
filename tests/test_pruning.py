import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import chain
from rows import piece
from rows import sized
from small_network import as_network
from small_network import fresh_network

from jaxpmi import pruning
from jaxpmi.blocks import blockwise
from jaxpmi.blocks import channels
from jaxpmi.blocks import convolutions
from jaxpmi.blocks.cost import count_multiply_adds
from jaxpmi.models import MODELS
from jaxpmi.models import imagenet_resnet
from jaxpmi.models import inverted_residual
from jaxpmi.models import resnet
from jaxpmi.models import vgg
from jaxpmi.models.init_network import init_backbone
from jaxpmi.network import Head

SHAPE = (8, 8, 3)
NUM_CLASSES = 5


def small_efficientnet(image_shape, width, *, rngs):
    """Every kind of block of EfficientNet-Lite0 once."""
    block = inverted_residual.InvertedResidual
    return chain(
        piece(inverted_residual.Stem, width),
        piece(block, 6, expansion=1),
        piece(block, 6, expansion=3, residual=True),
        piece(block, 8, size=5, stride=2, expansion=2),
        piece(inverted_residual.PooledConv, 10),
    )(image_shape, rngs=rngs)


def small_bottlenecks(image_shape, width, *, rngs):
    """Every kind of block of ResNet-50 once."""
    block = imagenet_resnet.Bottleneck
    return chain(
        piece(imagenet_resnet.ImageNetStem, width),
        piece(block, 8),
        piece(block, 8),
        piece(block, 12, stride=2, pool=True),
    )(image_shape, rngs=rngs)


def small_vgg(image_shape, width, *, rngs):
    """Every kind of block of VGG once; the last image is smaller than what is read of it."""
    return chain(
        piece(vgg.ConvBlock, width, pool=True),
        piece(vgg.ConvBlock, 6, pool=False),
        piece(vgg.PooledHidden, 24),
        piece(vgg.Hidden, 20),
    )(image_shape, rngs=rngs)


FAMILIES = {name: make for name, make in MODELS.items() if "resnet" in name}
FAMILIES |= {"efficientnet": small_efficientnet, "bottlenecks": small_bottlenecks, "vgg": small_vgg}
# The others are deeper.
KINDS = ["resnet_small", "resnet18", "preact_resnet18", "efficientnet", "bottlenecks", "vgg"]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fresh(architecture):
    return fresh_network(architecture, num_classes=NUM_CLASSES, image_shape=SHAPE)


@functools.cache
def classifier(name, width=4):
    """A network of random variables: no gamma of 0 hides a path. One of the heads has a bias."""
    network = fresh(sized(FAMILIES[name], width=width))
    leaves, structure = jax.tree.flatten(network.variables.params)
    leaves = [x + 0.2 * normal(i, *x.shape) for i, x in enumerate(leaves)]
    scatter = lambda x: np.abs(x + 0.3 * normal(1, *x.shape)) + 0.1  # noqa: E731
    batch_stats = jax.tree.map(scatter, network.variables.batch_stats)
    variables = blockwise.Variables(jax.tree.unflatten(structure, leaves), batch_stats)
    kernel = jnp.asarray(normal(9, network.feature_dim, NUM_CLASSES))
    bias = jnp.asarray(normal(8, NUM_CLASSES)) if name == "efficientnet" else None
    return network.replace(variables=variables, head=Head(kernel, bias))


def with_params(network, params):
    return network.replace(variables=network.variables._replace(params=params))


def count_filters(groups):
    return sum(group.size * group.num_filters for group in groups.values())


def half_at_random(network, seed=0):
    groups = pruning.filter_groups(network)
    rng = np.random.default_rng(seed)
    importance = {name: rng.uniform(size=group.size) for name, group in groups.items()}
    return pruning.choose_filters(groups, importance, num_removed=count_filters(groups) // 2)


@functools.partial(jax.jit, static_argnames="train")
def logits(network, images, *, train=False):
    """Of normalised images."""
    out = blockwise.forward(network.model, network.variables, images, train=train)
    return network.head(out.features)


def loss_gradient(network, loss, *, train=False):
    """Gradient of the mean of `loss` of logits with respect to the backbone's parameters."""
    images = jnp.asarray(normal(3, 6, *SHAPE))

    def objective(params):
        return loss(logits(with_params(network, params), images, train=train)).mean()

    return jax.jit(jax.grad(objective))(network.variables.params)


def cross_entropy(out):
    return -jax.nn.log_softmax(out)[jnp.arange(len(out)), jnp.arange(len(out)) % NUM_CLASSES]


# Groups.


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # The stem and the second convolution of every block write the stream; shortcuts append.
        ("resnet_small", {"block00/out": (4, 5), "block02/out": (4, 3), "block03/out": (8, 2)}),
        # Every stage has a stream of its own: two blocks, and the stem or the 1 x 1 convolution.
        (
            "preact_resnet18",
            {f"block{i:02d}/out": (4 * 2**stage, 3) for stage, i in enumerate((0, 3, 5, 7))},
        ),
        # The first depthwise convolution works on the stem's channels; an inverted residual sums.
        (
            "efficientnet",
            {
                "block00/out": (4, 2),
                "block01/out": (6, 2),
                "block03/out": (8, 1),
                "block04/out": (10, 1),
            },
        ),
    ],
)
def test_channels_that_are_summed_are_one_group(name, want):
    network = classifier(name)
    groups = pruning.filter_groups(network)
    assert {k: tuple(group) for k, group in groups.items() if k.endswith("/out")} == want
    hidden = {k: group.num_filters for k, group in groups.items() if k not in want}
    if name == "efficientnet":  # one writes them, one works on them
        assert hidden == {"block02/hidden": 2, "block03/hidden": 2}
    else:
        assert hidden == {f"block{i:02d}/hidden": 1 for i in range(1, len(network.model.blocks))}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_filter_is_counted_once(name):
    network = classifier(name)
    kernels = [leaf for leaf in jax.tree.leaves(network.variables.params) if leaf.ndim > 1]
    groups = pruning.filter_groups(network)
    assert count_filters(groups) == sum(kernel.shape[-1] for kernel in kernels)


def test_image_channels_are_never_removed():
    block = piece(inverted_residual.InvertedResidual, 4, expansion=1)
    network = fresh(chain(block, piece(inverted_residual.PooledConv, 5)))
    groups = pruning.filter_groups(network)
    assert list(groups) == ["block00/out", "block01/out"]
    kept = {"block00/out": (1, 2), "block01/out": (0, 3)}
    small = pruning.remove_filters(network, kept)
    assert small.variables.params["block00"]["depthwise/kernel"].shape == (3, 3, 1, 3)
    assert small.head.kernel.shape == (2, NUM_CLASSES)
    flags = {"block00/out": jnp.zeros(4, bool), "block01/out": jnp.zeros(5, bool)}
    mask = pruning.filter_mask(network, flags)
    own = mask["block00"]
    assert own["depthwise/kernel"].all() and not own["project/kernel"].any()


def test_a_block_that_does_not_say_what_its_channels_are_is_an_error():
    network = fresh(sized(MODELS["vit_small"], width=16))
    with pytest.raises(ValueError, match="block00 is a PatchEmbedding, .*PrunableBlock"):
        pruning.filter_groups(network)

    class Forgetful(resnet.Stem):
        def channel_axes(self):
            return channels.ChannelAxes({"conv": ("in", "out")}, tied=False)

    network = fresh(chain(piece(Forgetful, 4), piece(resnet.ResidualBlock, 4, pool=True)))
    with pytest.raises(ValueError, match=r"names \['conv'\], but .* \['bn/bias', 'bn/sc"):
        pruning.filter_groups(network)


# Importance.


def test_gates_after_a_layer_and_its_parameters_show_the_same_importance():
    """A gate on the raw convolution is the "filter" form, one on BatchNorm the "gate" form."""
    architecture = chain(piece(resnet.Stem, 4))
    model, variables = init_backbone(architecture, jax.random.key(0), SHAPE)
    params, running = variables.params["block00"], variables.batch_stats["block00"]["bn"]
    params |= {"bn/scale": jnp.asarray(normal(1, 4)), "bn/bias": jnp.asarray(normal(2, 4))}
    images, weights = normal(3, 6, *SHAPE), normal(4, 6, *SHAPE[:2], 4)

    def loss(params, after_conv, after_norm):
        x = convolutions.conv(images, params["conv/kernel"]) * after_conv
        affine = params["bn/scale"], params["bn/bias"]
        x = blockwise.normalise_channels(x, running, *affine, epsilon=1e-5)
        return (jax.nn.relu(x * after_norm) * weights).mean()

    gates = jnp.ones((1, 1, 1, 4))
    grads, *gate_grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, gates, gates)
    kernel = jnp.ones((4, NUM_CLASSES))
    network = as_network(model, variables, kernel, image_shape=SHAPE)
    for kind, grad in zip(("filter", "gate"), gate_grads, strict=True):
        got = pruning.filter_importance(network, {"block00": grads}, kind=kind)
        want = np.square(grad).ravel()
        assert want.min() > 0
        np.testing.assert_allclose(got["block00/out"], want, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gate", "filter"])
def test_distillation_from_the_network_itself_ranks_nothing(kind):
    """At student = teacher the divergence is at its minimum. Cross-entropy is not."""
    network = classifier("resnet_small")
    teacher = jax.nn.softmax(logits(network, normal(3, 6, *SHAPE)))

    def divergence(out):
        return (teacher * (jnp.log(teacher) - jax.nn.log_softmax(out))).sum(1)

    def largest(loss):
        grads = loss_gradient(network, loss)
        found = pruning.filter_importance(network, grads, kind=kind)
        return {name: float(values.max()) for name, values in found.items()}

    zero, ranked = largest(divergence), largest(cross_entropy)
    for name in ranked:
        assert ranked[name] > 1e-6 and zero[name] < 1e-7 * ranked[name], name


def test_importance_of_a_summed_channel_is_summed_over_the_layers():
    network = classifier("resnet_small")
    params = network.variables.params
    grads = jax.tree.map(lambda x: normal(x.size, *x.shape), params)

    def of(block, name):
        w, g = (tree[f"block{block:02d}"] for tree in (params, grads))
        parts = (f"{name}/scale", f"{name}/bias")
        return np.square(sum(w[part] * g[part] for part in parts))

    got = pruning.filter_importance(network, grads)
    stream = of(0, "bn") + of(1, "bn2")
    later = [of(2, "bn2"), of(3, "bn2"), of(4, "bn2")]
    want = stream + sum(part[:4] for part in later)  # the shortcut keeps the first channels
    np.testing.assert_allclose(got["block00/out"], want, rtol=1e-5)
    want = sum(part[4:8] for part in later)
    np.testing.assert_allclose(got["block02/out"], want, rtol=1e-5)
    np.testing.assert_allclose(got["block03/out"], later[1][8:] + later[2][8:], rtol=1e-5)
    np.testing.assert_allclose(got["block03/hidden"], of(3, "bn1"), rtol=1e-5)
    kernel = [tree["block02"]["conv1/kernel"] for tree in (params, grads)]
    want = np.square((kernel[0] * kernel[1]).sum((0, 1, 2)))
    got = pruning.filter_importance(network, grads, kind="filter")
    np.testing.assert_allclose(got["block02/hidden"], want, rtol=1e-4)


def test_before_a_convolution_batch_norms_gate_the_stream_they_read():
    network = classifier("preact_resnet18")
    params = network.variables.params
    grads = jax.tree.map(jnp.zeros_like, params)
    for block, name in ((7, "bn1"), (8, "bn3")):  # of the third stage's stream, of the features
        own = grads[f"block{block:02d}"]
        own[f"{name}/bias"] = jnp.ones_like(own[f"{name}/bias"])
    got = pruning.filter_importance(network, grads)
    assert {name for name, values in got.items() if values.any()} == {"block05/out", "block07/out"}
    want = np.square(params["block07"]["bn1/bias"])
    np.testing.assert_allclose(got["block05/out"], want, rtol=1e-6)


def test_filters_normalised_by_the_batch_show_no_importance():
    """Why "filter" wants gradients in evaluation mode: BatchNorm undoes any scale."""
    network = classifier("resnet_small")
    of = {}
    for train in (True, False):
        grads = loss_gradient(network, cross_entropy, train=train)
        found = pruning.filter_importance(network, grads, kind="filter")
        of[train] = float(found["block02/hidden"].max())
    assert of[True] < 1e-5 * of[False]


def test_channels_without_batch_norm_have_no_gate():
    block = piece(resnet.ResidualBlock, 6, stride=2, projection=True, pool=True)
    network = fresh(chain(piece(resnet.Stem, 4, activation=False), block))
    params = network.variables.params
    with pytest.raises(ValueError, match="no BatchNorm .* block00/out; .* kind='filter'"):
        pruning.filter_importance(network, params, kind="gate")
    found = pruning.filter_importance(network, params)
    filters = pruning.filter_importance(network, params, kind="filter")
    chex.assert_trees_all_equal(found, filters)
    assert {name: x.shape for name, x in found.items()} == {
        "block00/out": (4,), "block01/hidden": (6,), "block01/out": (6,)
    }  # fmt: skip


# Choice.

GROUPS = {"a": pruning.FilterGroup(4, 3), "b": pruning.FilterGroup(3, 1)}
SCORES = {"a": np.asarray([0.4, 0.1, 0.6, 0.3]), "b": np.asarray([0.2, 0.5, 0.05])}


@pytest.mark.parametrize(
    ("num_removed", "a", "b"),
    [
        (0, (0, 1, 2, 3), (0, 1, 2)),
        (1, (0, 1, 2, 3), (0, 1)),
        (2, (0, 2, 3), (0, 1)),  # a channel of three filters: four are gone
        (4, (0, 2, 3), (0, 1)),
        (5, (0, 2, 3), (1,)),
        (6, (0, 2), (1,)),
        (9, (2,), (1,)),  # b keeps its last one
        (11, (2,), (1,)),
    ],
)
def test_the_least_important_channels_of_the_whole_network_go(num_removed, a, b):
    got = pruning.choose_filters(GROUPS, SCORES, num_removed=num_removed)
    assert got == {"a": a, "b": b}


def test_a_least_number_of_filters_stays():
    got = pruning.choose_filters(GROUPS, SCORES, num_removed=7, min_filters=2)
    assert got == {"a": (0, 2), "b": (0, 1)}
    got = pruning.choose_filters(GROUPS, SCORES, num_removed=3, min_filters=3)
    assert got == {"a": (0, 2, 3), "b": (0, 1, 2)}


def test_equally_important_channels_go_in_order():
    same = {"a": np.ones(4), "b": np.ones(3)}
    got = pruning.choose_filters(GROUPS, same, num_removed=4)
    assert got == {"a": (2, 3), "b": (0, 1, 2)}
    late = {"a": np.asarray([2.0, 1.0, 1.0, 2.0]), "b": np.ones(3)}
    got = pruning.choose_filters(GROUPS, late, num_removed=7)
    assert got == {"a": (0, 3), "b": (1, 2)}


def test_what_cannot_be_chosen_is_an_error():
    with pytest.raises(ValueError, match="12 filters .* min_filters=1 only 11 of 15 can; remove"):
        pruning.choose_filters(GROUPS, SCORES, num_removed=12)
    with pytest.raises(ValueError, match="min_filters=0, but a layer needs at least 1"):
        pruning.choose_filters(GROUPS, SCORES, num_removed=1, min_filters=0)
    broken = {**SCORES, "b": np.asarray([0.0, np.nan, 1.0])}
    with pytest.raises(ValueError, match="not finite"):
        pruning.choose_filters(GROUPS, broken, num_removed=1)


# Removal.


# A shortcut is as wide as what it is added to.
LAST_KERNELS = ("project", "conv3", "conv2", "conv", "linear")


def layers_of(block, hidden, incoming, stream):
    """Masks of what each layer of a block writes or normalises."""
    if block.kind == "PreActivationBlock":
        masks = {"bn1": incoming, "conv1": hidden, "bn2": hidden, "conv2": stream}
        return {**masks, "conv3": stream, "bn3": stream}
    if block.kind == "ResidualBlock":
        masks = {"conv1": hidden, "bn1": hidden, "conv2": stream, "bn2": stream}
        return {**masks, "conv3": stream, "bn3": stream}
    if block.kind == "InvertedResidual":
        masks = {"expand": hidden, "depthwise": hidden, "project": stream}
        return masks | {f"{name}_bn": mask for name, mask in masks.items()}
    if block.kind == "Bottleneck":
        first, second = hidden
        masks = {"conv1": first, "bn1": first, "conv2": second, "bn2": second}
        return {**masks, **dict.fromkeys(("conv3", "bn3", "shortcut", "shortcut_bn"), stream)}
    return {"conv": stream, "bn": stream, "linear": stream}


def silence(network, kept):
    """Zeroes what is not kept in a network of full size: every filter and BatchNorm of it.

    Written without the package's own idea of which channels are one.
    """

    def mask(name, size):
        return np.isin(np.arange(size), kept.get(name, ())).astype(np.float32)

    params, incoming = {}, np.ones(0)
    for i, block in enumerate(network.model.blocks):
        name = blockwise.block_name(i)
        own = network.variables.params[name]
        last = next(own[f"{key}/kernel"] for key in LAST_KERNELS if f"{key}/kernel" in own)
        module = block.merge(own, network.variables.batch_stats[name])
        width, new = last.shape[-1], not getattr(module, "residual", False)
        if block.kind in ("ResidualBlock", "PreActivationBlock", "Bottleneck"):
            projection = "shortcut" if block.kind == "Bottleneck" else "conv3"
            new = f"{projection}/kernel" in own
        if new:
            stream = mask(f"{name}/out", width)
        else:
            stream = np.concatenate([incoming, mask(f"{name}/out", width - len(incoming))])
        hidden = mask(f"{name}/hidden", own.get("expand/kernel", last).shape[-1])
        if block.kind == "InvertedResidual" and "expand/kernel" not in own:
            hidden = incoming
        if block.kind == "Bottleneck":
            hidden = [mask(f"{name}/{part}", len(own["bn1/bias"])) for part in ("first", "second")]
        masks = layers_of(block, hidden, incoming, stream)
        params[name] = {
            key: x * np.broadcast_to(masks[key.split("/")[0]], x.shape) for key, x in own.items()
        }
        incoming = stream
    return with_params(network, params)


@pytest.mark.parametrize("name", KINDS)
def test_masked_parameters_are_those_of_channels_that_are_kept(name):
    network = classifier(name)
    kept, groups = half_at_random(network), pruning.filter_groups(network)
    flags = {name: np.isin(np.arange(g.size), kept[name]) for name, g in groups.items()}
    mask = jax.jit(pruning.filter_mask)(network, flags)
    got = jax.tree.map(jnp.multiply, network.variables.params, mask)
    want = silence(network, kept).variables.params
    chex.assert_trees_all_equal(got, want)
    assert any(not leaf.all() for leaf in jax.tree.leaves(mask))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_the_small_network_computes_what_the_silenced_one_did(name, train):
    network = classifier(name)
    kept = half_at_random(network)
    images = normal(5, 4, *SHAPE)
    want = logits(silence(network, kept), images, train=train)
    got = logits(pruning.remove_filters(network, kept), images, train=train)
    scale = float(np.abs(want).max())
    whole = logits(network, images, train=train)
    assert float(np.abs(whole - want).max()) > 0.1 * scale > 0.01  # silence changes something
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_small_network_is_small(name):
    network = classifier(name)
    groups = pruning.filter_groups(network)
    kept = half_at_random(network)
    small = pruning.remove_filters(network, kept)
    left = pruning.filter_groups(small)
    assert {name: group.size for name, group in left.items()} == {
        k: len(v) for k, v in kept.items()
    }
    half, most = count_filters(groups) // 2, max(group.num_filters for group in groups.values())
    assert half <= count_filters(groups) - count_filters(left) < half + most
    before = count_multiply_adds(network.model, network.variables, SHAPE)
    assert 0 < count_multiply_adds(small.model, small.variables, SHAPE) < 0.5 * before
    # It is a model like any other.
    shapes = blockwise.block_input_shapes(small.model, small.variables, SHAPE)
    assert shapes[-1] == (small.feature_dim,) and small.feature_dim < network.feature_dim
    assert small.num_classes == NUM_CLASSES
    kept_as_they_are = ("mean", "std", "image_shape", "class_names")
    assert all(getattr(small, name) is getattr(network, name) for name in kept_as_they_are)
    assert small.head.bias is network.head.bias


@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_all_changes_nothing(name):
    network = classifier(name)
    groups = pruning.filter_groups(network)
    kept = {name: range(group.size) for name, group in groups.items()}
    same = pruning.remove_filters(network, kept)
    assert same.model == network.model and hash(same.model) == hash(network.model)
    chex.assert_trees_all_equal(same, network)


def test_kept_channels_are_plain_numbers_from_which_the_network_is_rebuilt():
    network = classifier("resnet_small")
    kept = half_at_random(network)
    small = pruning.remove_filters(network, kept)
    read = json.loads(json.dumps(kept))
    shapes = jax.eval_shape(lambda network: pruning.remove_filters(network, read), network)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, small)
    assert jax.tree.structure(shapes) == jax.tree.structure(small)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), network)
    rebuilt = pruning.remove_filters(zeros, read)
    assert rebuilt.model == small.model and hash(rebuilt.model) == hash(small.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block01/hidden": ()}, r"block01/hidden are \[\]; give at least one"),
        ({"block01/hidden": (1, 0)}, r"are \[1, 0\]; .* ascending"),
        ({"block01/hidden": (1, 1)}, "each once"),
        ({"block01/hidden": (0, 4)}, "from 0 to 3"),
        ({"block01/hidden": (-1, 2)}, "from 0 to 3"),
        ({"block09/hidden": (0,)}, r"groups .*'block09/hidden'.*, but the network has"),
    ],
)
def test_kept_channels_that_do_not_fit_are_an_error(change, message):
    network = classifier("resnet_small")
    kept = {**half_at_random(network), **change}
    with pytest.raises(ValueError, match=message):
        pruning.remove_filters(network, kept)


def test_a_pruned_network_can_be_trained():
    network = classifier("resnet_small")
    network = pruning.remove_filters(network, half_at_random(network))
    images = normal(3, 6, *SHAPE)

    @jax.jit
    def step(params, head):
        def objective(params, head):
            changed = with_params(network, params).replace(head=head)
            return cross_entropy(logits(changed, images, train=True)).mean()

        loss, grads = jax.value_and_grad(objective, argnums=(0, 1))(params, head)
        return loss, jax.tree.map(lambda w, g: w - 1e-3 * g, (params, head), grads), grads

    first, updated, grads = step(network.variables.params, network.head)
    second, _, _ = step(*updated)
    assert np.isfinite(first) and second < first
    assert all(bool(jnp.abs(leaf).max() > 0) for leaf in jax.tree.leaves(grads))
