import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rows import block_of
from rows import model_of
from rows import sized

from jaxpmi.blocks import blockwise
from jaxpmi.blocks import convolutions
from jaxpmi.models import MODELS
from jaxpmi.models import layers
from jaxpmi.models import resnet
from jaxpmi.models.init_network import init_backbone
from jaxpmi.types import Moments

RNGS = nnx.Rngs(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("block", "train"))
def apply(params, batch_stats, x, *, block, train):
    return block.apply(params, batch_stats, x, train=train)


@functools.cache
def initial(name, width, image_shape):
    return init_backbone(sized(MODELS[name], width=width), jax.random.key(0), image_shape)


def num_batch_norms(variables):
    is_moments = lambda node: isinstance(node, Moments)  # noqa: E731
    return len(jax.tree.leaves(variables.batch_stats, is_leaf=is_moments))


@pytest.mark.parametrize(
    ("name", "units", "batch_norms", "feature_width"),
    [
        ("resnet32", 16, 31, 4),
        ("resnet_small", 5, 9, 4),
        ("resnet18", 9, 20, 8),  # 17 convolutions and 3 projections
        ("resnet34", 17, 36, 8),
        ("preact_resnet18", 9, 17, 8),  # 2 per block and a last one
        ("preact_resnet34", 17, 33, 8),
    ],
)
def test_unit_and_batch_norm_counts_and_feature_width(name, units, batch_norms, feature_width):
    model, variables = initial(name, 4, (16, 16, 3))
    assert len(model.blocks) == units
    assert num_batch_norms(variables) == batch_norms
    shapes = blockwise.block_input_shapes(model, variables, (16, 16, 3))
    assert shapes[-1] == (4 * feature_width,)


@pytest.mark.parametrize("size", [32, 64])
def test_resnet32_has_the_block_shapes_of_the_paper(size):
    """Shapes of the published network; Tiny-ImageNet doubles every spatial size."""
    model, variables = initial("resnet32", 16, (32, 32, 3))
    shapes = blockwise.block_input_shapes(model, variables, (size, size, 3))
    half, quarter = size // 2, size // 4
    want = [(size, size, 3)] + [(size, size, 16)] * 6 + [(half, half, 32)] * 5
    want += [(quarter, quarter, 64)] * 4 + [(64,)]
    assert list(shapes) == want
    # Seven distinct programs.
    assert len(set(model.blocks)) == 7
    num_params = sum(x.size for x in jax.tree.leaves(variables.params))
    assert num_params == 463_504  # ResNet-32 without its classifier


def test_equal_blocks_are_equal_and_hash_equal():
    """A block is a static argument: equal ones must share one compiled program."""
    first, second = (model_of(sized(resnet.resnet32, width=4), (16, 16, 3)) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert first.blocks[1] == first.blocks[5] and hash(first.blocks[1]) == hash(first.blocks[5])
    assert first.blocks[6] != first.blocks[7]  # down and plain
    assert first.blocks[14] != first.blocks[15]  # plain and pooled
    wider, small, shallow = (
        model_of(architecture, (16, 16, 3))
        for architecture in (
            sized(resnet.resnet32, width=8),
            sized(resnet.resnet_small, width=4),
            sized(resnet.resnet32, width=4, depth=1),
        )
    )
    assert first != wider and small == shallow


@pytest.mark.parametrize("size", [{"depth": 0}, {"width": 0}])
def test_an_empty_network_is_an_error(size):
    with pytest.raises(ValueError, match="needs depth >= 1 and width >= 1"):
        resnet.resnet32((16, 16, 3), **size, rngs=RNGS)


def test_convolutions_start_he_normal_by_fan_out():
    kernel = np.asarray(layers.conv(jax.random.key(1), 64, 96).kernel[...])
    assert kernel.shape == (3, 3, 64, 96) and kernel.dtype == np.float32
    want = (2.0 / (9 * 96)) ** 0.5
    np.testing.assert_allclose(kernel.std(), want, rtol=0.02)
    assert abs(kernel.mean()) < 0.02 * want
    np.testing.assert_allclose((np.abs(kernel) < want).mean(), 0.6827, atol=0.01)


def test_residual_blocks_start_as_their_shortcut():
    """The last gamma of every block is 0 at the start; the shortcut has no parameters."""
    x = normal(0, 2, 7, 7, 4)
    make = functools.partial(resnet.ResidualBlock, 4, 8, stride=2, rngs=RNGS)
    block, params, batch_stats = block_of(make())
    np.testing.assert_array_equal(params["bn2/scale"], 0.0)
    np.testing.assert_array_equal(params["bn1/scale"], 1.0)
    assert {name.split("/")[0] for name in params} == {"conv1", "conv2", "bn1", "bn2"}
    y, _ = apply(params, batch_stats, x, block=block, train=True)
    want = np.zeros((2, 4, 4, 8), np.float32)
    want[..., :4] = x[:, ::2, ::2]
    np.testing.assert_allclose(y, want, atol=1e-6)
    assert np.asarray(y).min() < 0  # no ReLU after the sum
    relu, _, _ = block_of(make(final_relu=True))
    np.testing.assert_allclose(
        apply(params, batch_stats, x, block=relu, train=True)[0], np.maximum(want, 0.0), atol=1e-6
    )
    pooled, _, _ = block_of(make(pool=True))
    np.testing.assert_allclose(
        apply(params, batch_stats, x, block=pooled, train=True)[0], want.mean((1, 2)), atol=1e-6
    )


def test_a_residual_block_written_out():
    x = normal(1, 3, 6, 6, 4)
    block, params, _ = block_of(resnet.ResidualBlock(4, 4, rngs=RNGS))
    params["bn2/scale"] = jnp.linspace(0.5, 2.0, 4)
    params["bn1/bias"] = jnp.linspace(-0.5, 0.5, 4)
    running = {
        "bn1": Moments(normal(2, 4), np.full(4, 2.0)),
        "bn2": Moments(normal(3, 4), np.ones(4)),
    }
    y, moments = apply(params, running, x, block=block, train=False)

    def affine(name, x):
        mean, var = running[name]
        scale, bias = (np.asarray(params[f"{name}/{part}"]) for part in ("scale", "bias"))
        return scale * (x - mean) / np.sqrt(var + 1e-5) + bias

    first = np.asarray(plain_conv(x, params["conv1/kernel"], 1))
    second = np.maximum(affine("bn1", first), 0.0)
    second = np.asarray(plain_conv(second, params["conv2/kernel"], 1))
    np.testing.assert_allclose(y, affine("bn2", second) + x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments["bn1"].mean, first.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(moments["bn2"].var, second.var((0, 1, 2)), rtol=1e-4)


def test_projection_shortcuts_stand_only_where_the_shape_changes():
    _, params, _ = block_of(resnet.ResidualBlock(4, 4, projection=True, rngs=RNGS))
    assert "conv3/kernel" not in params
    wider, params, batch_stats = block_of(resnet.ResidualBlock(4, 6, projection=True, rngs=RNGS))
    x = normal(0, 2, 6, 6, 4)
    assert params["conv3/kernel"].shape == (1, 1, 4, 6)
    y, moments = apply(params, batch_stats, x, block=wider, train=False)
    want = np.asarray(x) @ np.asarray(params["conv3/kernel"][0, 0]) / np.sqrt(1.0 + 1e-5)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert set(moments) == {"bn1", "bn2", "bn3"}


def test_pre_activation_normalises_the_input_first():
    x = 3.0 * normal(0, 4, 6, 6, 4) + 2.0
    block, params, batch_stats = block_of(resnet.PreActivationBlock(4, 8, stride=2, rngs=RNGS))
    y, moments = apply(params, batch_stats, x, block=block, train=True)
    np.testing.assert_allclose(moments["bn1"].mean, x.mean((0, 1, 2)), rtol=1e-5)
    activated = np.maximum((x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), 0.0)
    middle = np.asarray(plain_conv(activated, params["conv1/kernel"], 2))
    np.testing.assert_allclose(moments["bn2"].var, middle.var((0, 1, 2)), rtol=1e-3)
    standard = (middle - middle.mean((0, 1, 2))) / np.sqrt(middle.var((0, 1, 2)) + 1e-5)
    shortcut = activated[:, ::2, ::2] @ np.asarray(params["conv3/kernel"][0, 0])
    want = plain_conv(np.maximum(standard, 0.0), params["conv2/kernel"], 1) + shortcut
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-3)
    # Without a change of shape the shortcut is the raw input, not the activated one.
    block, params, batch_stats = block_of(resnet.PreActivationBlock(4, 4, rngs=RNGS))
    params["conv2/kernel"] = jnp.zeros_like(params["conv2/kernel"])
    np.testing.assert_array_equal(apply(params, batch_stats, x, block=block, train=True)[0], x)
    _, params, batch_stats = block_of(resnet.Stem(4, 4, activation=False, rngs=RNGS))
    assert batch_stats == {} and set(params) == {"conv/kernel"}


# Layers.


def plain_conv(x, kernel, stride):
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (3, 3), (5, 2)])
@pytest.mark.parametrize("image", [(8, 8), (7, 7), (6, 9)])
def test_convolution_and_its_own_gradient_are_those_of_jax(size, stride, image):
    x, kernel = normal(0, 3, *image, 2), normal(1, size, size, 2, 4)

    def value_and_gradients(conv):
        def loss(x, kernel):
            y = conv(x, kernel, stride)
            return (y * normal(2, *y.shape)).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)

    (_, got), got_grads = value_and_gradients(convolutions.conv)
    (_, want), want_grads = value_and_gradients(plain_conv)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("image", [(4, 4), (3, 5), (1, 2)])
def test_the_convolution_of_an_enlarged_image(image):
    x, kernel = normal(0, 2, *image, 3), normal(1, 3, 3, 3, 4)

    def enlarge_first(x, kernel):
        return plain_conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel, 1)

    def value_and_gradients(function):
        def loss(x, kernel):
            y = function(x, kernel)
            return (y * normal(2, *y.shape)).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)

    (_, got), got_grads = value_and_gradients(convolutions.upsampled_conv)
    (_, want), want_grads = value_and_gradients(enlarge_first)
    assert got.shape == (2, 2 * image[0], 2 * image[1], 4)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_batch_norm_normalises_by_the_batch_or_by_the_running_moments():
    x = 3.0 * normal(0, 6, 4, 4, 3) + np.arange(3, dtype=np.float32)
    block, params, batch_stats = block_of(layers.batch_norm(3))
    params = {"scale": jnp.asarray([1.0, 2.0, 0.5]), "bias": jnp.asarray([0.0, -1.0, 1.0])}
    running = {"": Moments(jnp.asarray([1.0, 0.0, -1.0]), jnp.asarray([4.0, 1.0, 0.25]))}
    assert batch_stats.keys() == running.keys()
    trained, shown = apply(params, running, x, block=block, train=True)
    np.testing.assert_allclose(trained.mean((0, 1, 2)), params["bias"], atol=1e-5)
    np.testing.assert_allclose(trained.std((0, 1, 2)), params["scale"], rtol=1e-4)
    np.testing.assert_allclose(shown[""].mean, x.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shown[""].var, x.var((0, 1, 2)), rtol=1e-4)
    evaluated, shown_again = apply(params, running, x, block=block, train=False)
    want = (x - [1.0, 0.0, -1.0]) / np.sqrt(np.asarray([4.0, 1.0, 0.25]) + 1e-5)
    want = want * [1.0, 2.0, 0.5] + [0.0, -1.0, 1.0]
    np.testing.assert_allclose(evaluated, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown_again[""].var, shown[""].var, rtol=1e-6)
    features, _ = apply(params, running, x[:, 0, 0], block=block, train=False)  # f32[B, C] too
    np.testing.assert_allclose(features, want[:, 0, 0], rtol=1e-4, atol=1e-5)


def test_batch_norm_starts_at_the_standard_gaussian():
    _, params, batch_stats = block_of(layers.batch_norm(3, scale=0.5))
    np.testing.assert_array_equal(params["scale"], 0.5)
    np.testing.assert_array_equal(params["bias"], 0.0)
    np.testing.assert_array_equal(batch_stats[""].mean, 0.0)
    np.testing.assert_array_equal(batch_stats[""].var, 1.0)


# Moments without data.


def test_the_stem_propagates_rectified_gaussian_moments():
    rng = np.random.default_rng(0)
    bias, scale = np.asarray([-1.0, 0.0, 0.7, 3.0]), np.asarray([0.5, 1.0, -2.0, 0.0])
    block, params, _ = block_of(resnet.Stem(3, 4, rngs=RNGS))
    params |= {"bn/scale": jnp.asarray(scale), "bn/bias": jnp.asarray(bias)}
    draws = np.maximum(bias + scale * rng.normal(size=(400_000, 4)), 0.0)
    got = block.propagate(params, Moments(jnp.zeros(3), jnp.ones(3)))
    np.testing.assert_allclose(got.mean, draws.mean(0), atol=0.01)
    np.testing.assert_allclose(got.var, draws.var(0), atol=0.02)
    before = block.propagate(params, None)  # the published choice ignores the ReLU
    np.testing.assert_allclose(before.mean, bias, rtol=1e-6)
    np.testing.assert_allclose(before.var, scale**2, rtol=1e-6)


def test_residual_blocks_add_moments_and_leave_appended_channels_to_the_batch_norm():
    norm = {"bn2/scale": jnp.asarray([1.0, 2.0, 3.0, 0.5]), "bn2/bias": jnp.arange(4.0)}
    shortcut = Moments(jnp.asarray([5.0, 6.0]), jnp.asarray([0.5, 0.25]))
    block, params, _ = block_of(resnet.ResidualBlock(2, 4, stride=2, rngs=RNGS))
    got = block.propagate(params | norm, shortcut)
    np.testing.assert_allclose(got.mean, [5.0, 7.0, 2.0, 3.0])
    np.testing.assert_allclose(got.var, [1.5, 4.25, 9.0, 0.25])
    published = block.propagate(params | norm, None)
    np.testing.assert_allclose(published.mean, [0.0, 1.0, 2.0, 3.0])
    block, params, _ = block_of(resnet.ResidualBlock(2, 4, stride=2, projection=True, rngs=RNGS))
    norm |= {"bn3/scale": jnp.full(4, 2.0), "bn3/bias": jnp.full(4, -1.0)}
    projected = block.propagate(params | norm, shortcut)
    np.testing.assert_allclose(projected.mean, np.arange(4.0) - 1.0)
    np.testing.assert_allclose(projected.var, np.asarray([1.0, 4.0, 9.0, 0.25]) + 4.0)
