"""One value of a network: how it is put together, what it computes, and that it is a pytree."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import model_of
from rows import sized
from tiny_run import tiny_model

import jaxpmi
from jaxpmi.blocks import blockwise
from jaxpmi.doors import check_images
from jaxpmi.doors import check_labels
from jaxpmi.models.init_network import init_network
from jaxpmi.network import CosineHead
from jaxpmi.network import Head
from jaxpmi.network import from_blocks
from jaxpmi.network import logits
from jaxpmi.sharding import make_mesh
from jaxpmi.sharding import replicate
from jaxpmi.sharding import shard_batch

SHAPE, DIM, NAMES = (8, 8, 2), 8, ("nul", "een", "twee")
PIXELS = {"mean": (0.4, 0.1), "std": (0.3, 0.2)}
BIAS = np.asarray([0.5, -1.0, 2.0], np.float32)


def fresh(seed=0, names=NAMES, **options):
    return init_network(
        sized(tiny_model, width=4), jax.random.key(seed), SHAPE, names, **PIXELS, **options
    )


@functools.cache
def network():
    """With a bias, and random everywhere: no gamma of 0 hides a path."""
    whole, rng = fresh(head_std=1.0), np.random.default_rng(7)
    scatter = lambda x: x + jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(scatter, whole.variables.params)
    return whole.replace(
        variables=whole.variables._replace(params=params),
        head=whole.head._replace(bias=jnp.asarray(BIAS)),
    )


def images(count=5, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


@functools.cache
def features_of(seed=0):
    """Of `images(5, seed)`, in numpy but for the blocks."""
    x = (images(5, seed) / 255 - np.asarray(PIXELS["mean"])) / np.asarray(PIXELS["std"])
    net = network()
    forward = jax.jit(functools.partial(blockwise.forward, net.model))
    return np.asarray(forward(net.variables, x.astype(np.float32)).features)


# The head.


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4)])  # of a segmentation: per pixel
def test_a_head_is_a_linear_map_of_the_last_axis(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(*shape, DIM)).astype(np.float32)
    kernel = rng.normal(size=(DIM, 3)).astype(np.float32)
    got = Head(jnp.asarray(kernel))(jnp.asarray(features))
    np.testing.assert_allclose(got, features @ kernel, rtol=1e-5, atol=1e-5)
    got = Head(jnp.asarray(kernel), jnp.asarray(BIAS))(jnp.asarray(features))
    np.testing.assert_allclose(got, features @ kernel + BIAS, rtol=1e-5, atol=1e-5)


def test_a_head_without_bias_has_none_to_train():
    assert len(jax.tree.leaves(fresh().head)) == 1 and len(jax.tree.leaves(network().head)) == 2


# Putting together.


def parts(**changes):
    net = network()
    whole = {
        "model": net.model, "variables": net.variables, "head": net.head, "image_shape": SHAPE,
        **PIXELS,
    }  # fmt: skip
    return whole | changes


def test_parts_make_a_network():
    net, kernel = network(), network().head.kernel
    got = from_blocks(**parts(class_names=list(NAMES), image_shape=list(SHAPE)))
    chex.assert_trees_all_equal(got, net)  # static parts are compared too
    assert (got.num_classes, got.feature_dim) == (3, DIM)
    assert got.mean.dtype == got.std.dtype == jnp.float32
    assert got.image_shape == SHAPE and got.class_names == NAMES
    plain = from_blocks(**parts(head=np.asarray(kernel)))
    assert plain.head.bias is None and plain.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(plain.head.kernel, kernel)
    assert from_blocks(**parts(class_names=range(3))).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (8, 8)}, "image_shape=(8, 8) must be (height, width, channels)."),
        (
            {"head": np.zeros((7, 3), np.float32)},
            "the head's kernel has shape (7, 3), but the last block gives 8 features per image; "
            "give one of shape (8, number of classes).",
        ),
        ({"head": np.zeros(8, np.float32)}, "the head's kernel has shape (8,), but"),
        (
            {"head": Head(jnp.zeros((8, 3)), jnp.zeros(4))},
            "the head's bias has shape (4,); expected (3,), one value per class.",
        ),
        (
            {"class_names": ("a", "b")},
            "got 2 class_names for a head of 3 classes; give one per class.",
        ),
        (
            {"mean": (0.4,)},
            "mean has shape (1,), but the images have 2 channel(s); give one value per channel.",
        ),
        ({"std": 0.3}, "std has shape (), but the images have 2 channel(s)"),
        (
            {"mean": (102.0, 25.5)},
            "mean=[102.0, 25.5] is outside [0, 1]; give it of pixels in [0, 1], not 0..255: "
            "divide by 255.",
        ),
        ({"mean": (0.4, -0.1)}, "mean=[0.4000000059604645, -0.1"),
        ({"std": (0.3, float("nan"))}, "is outside [0, 1]"),
        ({"std": (0.5, 0.0)}, "std=[0.5, 0.0] has a 0; every one must be above 0."),
    ],
)
def test_parts_that_do_not_fit_are_errors(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_blocks(**parts(**changes))


def test_a_mean_of_0_is_no_error():
    assert from_blocks(**parts(mean=(0.0, 0.0))).mean.tolist() == [0.0, 0.0]


def test_a_fresh_network_depends_on_its_key_and_nothing_else():
    first, again, other = fresh(3), fresh(3), fresh(4)
    chex.assert_trees_all_equal(first, again)
    assert np.abs(first.head.kernel - other.head.kernel).max() > 0.1
    conv = [net.variables.params["block00"]["conv/kernel"] for net in (first, other)]
    assert np.abs(conv[0] - conv[1]).max() > 0.1
    assert first.head.bias is None and first.class_names == NAMES


@pytest.mark.parametrize(("given", "wanted"), [(None, 1 / np.sqrt(3 * DIM)), (0.02, 0.02)])
def test_weights_of_a_fresh_head_have_the_deviation_asked_for(given, wanted):
    kernel = np.asarray(fresh(names=range(2000), head_std=given).head.kernel)
    np.testing.assert_allclose(kernel.std(), wanted, rtol=0.03)
    assert abs(kernel.mean()) < 0.03 * wanted


def test_networks_can_be_made_inside_a_trace():
    """Weights are other draws there; an ensemble is its members one by one."""
    make = functools.partial(init_network, sized(tiny_model, width=4), **PIXELS)
    build = jax.jit(lambda key: make(key, SHAPE, NAMES))
    shapes, real = jax.eval_shape(build, jax.random.key(0)), fresh()
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, real)
    keys = [jax.random.key(0), jax.random.key(5)]
    ensemble = jax.vmap(build)(jnp.stack(keys))
    for i, key in enumerate(keys):
        member = jax.tree.map(lambda leaf: leaf[i], ensemble)  # noqa: B023
        for got, want in zip(jax.tree.leaves(member), jax.tree.leaves(build(key)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(member.mean, PIXELS["mean"], rtol=1e-6)


# What it computes.


def test_logits_are_those_of_the_normalised_images():
    net = network()
    got = jaxpmi.logits(net, images())
    assert got.shape == (5, 3) and got.dtype == jnp.float32
    wanted = features_of() @ np.asarray(net.head.kernel) + BIAS
    assert np.ptp(wanted, axis=0).min() > 1e-2  # images make a difference
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    without = net.replace(head=Head(net.head.kernel))
    np.testing.assert_allclose(logits(without, images()), wanted - BIAS, rtol=1e-4, atol=1e-4)


def test_logits_follow_the_order_of_images_and_of_classes():
    net, order = network(), np.asarray([2, 0, 1])
    whole = np.asarray(logits(net, images()))
    np.testing.assert_allclose(logits(net, images()[::-1]), whole[::-1], rtol=1e-4, atol=1e-4)
    turned = net.replace(head=Head(net.head.kernel[:, order], net.head.bias[order]))
    np.testing.assert_allclose(logits(turned, images()), whole[:, order], rtol=1e-4, atol=1e-4)


def test_images_of_another_size_are_taken_where_the_blocks_take_them():
    assert logits(network(), images(shape=(12, 10, 2))).shape == (5, 3)


def test_black_and_white_are_the_ends_of_the_range():
    low, high = network().pixel_range
    for level, bound in ((0, low), (255, high)):
        pixel = jaxpmi.normalise(
            jnp.full((1, 1, 1, 2), level, jnp.uint8), network().mean, network().std
        )
        np.testing.assert_allclose(pixel.ravel(), bound, rtol=1e-5)


# What it refuses.


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (5, 2, 8, 8),
            "images have shape (5, 2, 8, 8), channels first (NCHW); expected u8[B, 8, 8, 2]: move "
            "the channels last, images.transpose(0, 2, 3, 1).",
        ),
        ((5, 8, 8, 3), "images have shape (5, 8, 8, 3); expected u8[B, 8, 8, 2], channels last."),
        ((8, 8, 2), "images have shape (8, 8, 2); expected u8[B, 8, 8, 2], channels last."),
        ((5, 8, 8), "images have shape (5, 8, 8); expected u8[B, 8, 8, 2], channels last."),
        (
            (0, 8, 8, 2),
            "images have shape (0, 8, 8, 2), which is an empty batch; give at least one.",
        ),
    ],
)
@pytest.mark.parametrize("door", [check_images, logits])
def test_images_of_another_layout_are_errors(door, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        door(network(), np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
@pytest.mark.parametrize("door", [check_images, logits, jax.jit(logits)])
def test_images_of_another_type_are_errors(door, dtype):
    message = (
        f"images have the type {np.dtype(dtype)}; expected u8[B, 8, 8, 2] with pixels 0..255 as "
        "they are stored: the network normalises them itself."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        door(network(), np.zeros((5, *SHAPE), dtype))


def test_what_has_no_type_is_an_error():
    with pytest.raises(TypeError, match="images have the type None; expected u8"):
        check_images(network(), images().tolist())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.float32), "labels have shape (3,) and type float32; expected i32[B]"),
        (np.zeros((3, 1), np.int32), "labels have shape (3, 1) and type int32; expected i32[B]"),
        (np.zeros(0, np.int32), "labels have shape (0,) and type int32; expected i32[B]"),
        (np.zeros(3, bool), "labels have shape (3,) and type bool; expected i32[B]"),
        (1, "labels have shape () and type int64; expected i32[B]"),
        (
            [0, 3],
            "labels range from 0 to 3, but the network has 3 classes, 0 to 2.",
        ),
        (
            jnp.asarray([1, -1]),
            "labels range from -1 to 1, but the network has 3 classes, 0 to 2.",
        ),
    ],
)
def test_labels_that_are_none_are_errors(labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_labels(network(), labels)


def test_labels_of_a_trace_are_checked_for_what_is_known_of_them():
    check = jax.jit(lambda net, labels: check_labels(net, labels))
    check(network(), jnp.asarray([0, 7]))  # values are not known there
    with pytest.raises(ValueError, match="type float32"):
        check(network(), jnp.zeros(3))
    for labels in ([0, 2], np.asarray([0, 2], np.uint8), jnp.asarray([2, 0])):
        check_labels(network(), labels)


# A pytree.


def test_its_arrays_are_its_leaves_and_the_rest_is_structure():
    net = network()
    leaves, structure = jax.tree.flatten(net)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert (again.model, again.image_shape, again.class_names) == (
        model_of(sized(tiny_model, width=4), SHAPE),
        SHAPE,
        NAMES,
    )
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(net)
    ]
    assert {"head/kernel", "head/bias", "mean", "std"} < set(paths)
    assert all(path.split("/")[0] in ("variables", "head", "mean", "std") for path in paths)


def test_a_field_is_changed_in_a_copy():
    net = network()
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.mean = jnp.zeros(2)
    changed = net.replace(mean=jnp.zeros(2), class_names=("a", "b", "c"))
    assert changed.variables is net.variables and changed.class_names == ("a", "b", "c")
    assert net.mean.any() and net.class_names == NAMES
    with pytest.raises(TypeError, match="colour"):
        net.replace(colour=True)


def test_jit_takes_and_returns_it():
    net = network()
    got = jax.jit(lambda net: net.replace(head=jax.tree.map(jnp.negative, net.head)))(net)
    assert (got.model, got.image_shape, got.class_names) == (net.model, SHAPE, NAMES)
    wanted = -np.asarray(logits(net, images()))
    np.testing.assert_allclose(logits(got, images()), wanted, rtol=1e-5, atol=1e-5)
    inside = jax.jit(logits)(net, images())
    np.testing.assert_allclose(inside, -wanted, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_network_is_a_network():
    """Of the sum of logits: of the bias B, of the kernel the summed features."""
    net = network()
    grads = jax.grad(lambda net: logits(net, images()).sum())(net)
    assert jax.tree.structure(grads) == jax.tree.structure(net)
    np.testing.assert_allclose(grads.head.bias, 5.0)
    wanted = np.broadcast_to(features_of().sum(0)[:, None], (DIM, 3))
    np.testing.assert_allclose(grads.head.kernel, wanted, rtol=1e-4, atol=1e-4)
    for leaf in jax.tree.leaves((grads.variables.params, grads.mean, grads.std)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    without = jax.grad(lambda net: logits(net, images()).sum())(net.replace(head=fresh().head))
    assert without.head.bias is None


def test_vmap_over_networks_is_one_after_the_other():
    nets = [network(), jax.tree.map(lambda leaf: 1.1 * leaf, network())]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    got = jax.vmap(logits, in_axes=(0, None))(stacked, images())
    for one, net in zip(got, nets, strict=True):
        np.testing.assert_allclose(one, logits(net, images()), rtol=1e-4, atol=1e-4)
    assert np.abs(got[0] - got[1]).max() > 0.1


def test_on_eight_devices_logits_are_those_of_one():
    mesh = make_mesh()
    assert mesh.size == 8
    sharded = logits(replicate(network(), mesh), shard_batch(images(16), mesh))
    assert sharded.sharding.spec[0] == "data" and len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, logits(network(), images(16)), rtol=1e-4, atol=1e-4)


def test_equal_networks_share_a_program_and_others_do_not():
    traced = []

    @jax.jit
    def count(net):
        traced.append(net.class_names)
        return net.head.kernel.sum()

    for seed in (0, 1, 2):  # blocks that are equal, not the same
        count(fresh(seed))
    assert len(traced) == 1
    count(jax.tree.map(jnp.zeros_like, fresh()))
    assert len(traced) == 1
    net = fresh()
    for other in (
        net.replace(class_names=("a", "b", "c")),
        net.replace(image_shape=(12, 12, 2)),
        net.replace(head=network().head),  # a bias is another structure
        init_network(sized(tiny_model, width=6), jax.random.key(0), SHAPE, NAMES, **PIXELS),
    ):
        before = len(traced)
        count(other)
        count(other)
        assert len(traced) == before + 1


def test_a_head_by_cosines_does_not_see_lengths():
    kernel = jnp.asarray([[3.0, 0.0], [4.0, 2.0]])
    head = CosineHead(kernel, jnp.asarray(5.0))
    features = jnp.asarray([[1.0, 0.0], [0.0, 7.0]])
    np.testing.assert_allclose(head(features), 5.0 * np.array([[0.6, 0.0], [0.8, 1.0]]), rtol=1e-6)
    longer = CosineHead(kernel * jnp.asarray([[2.0, 30.0]]), jnp.asarray(5.0))
    np.testing.assert_allclose(longer(0.1 * features), head(features), rtol=1e-6)
    gradient = jax.grad(lambda x: head(x).sum())(jnp.zeros((1, 2)))
    assert np.isfinite(gradient).all()
