import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import sized
from small_network import fresh_network

from jaxpmi.blocks import blockwise
from jaxpmi.inversion import block_inverse
from jaxpmi.inversion.block_inverse import fit_block_inverses
from jaxpmi.inversion.block_inverse import init_block_inverses
from jaxpmi.inversion.block_inverse import invert_linearly
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.network import Head
from jaxpmi.network import Network

VIT = sized(vit.vision_transformer, patch_size=4, width=8, depth=3, num_heads=2, features=6)


@dataclasses.dataclass(frozen=True)
class Mix:
    """A linear map of the channels: f32[B, H, W, C] -> f32[B, H, W, C']."""

    def init(self, key, input_shape):
        raise NotImplementedError

    def apply(self, params, batch_stats, x, *, train):
        return x @ params, {}


class Flatten(Mix):
    """A linear map of the whole input: f32[B, H, W, C] -> f32[B, D]."""

    def apply(self, params, batch_stats, x, *, train):
        return x.reshape(len(x), -1) @ params, {}


class Pool(Mix):
    """The average over positions: f32[B, H, W, C] -> f32[B, C]."""

    def apply(self, params, batch_stats, x, *, train):
        return x.mean((1, 2)), {}


class Tokens(Mix):
    """A linear map of every token of a sequence: f32[B, N, D] -> f32[B, N, D']."""


class Volume(Mix):
    """Five axes, which no linear inverse is made for."""

    def apply(self, params, batch_stats, x, *, train):
        return x[..., None], {}


@dataclasses.dataclass(frozen=True)
class Chain:
    blocks: tuple


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def orthonormal(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0].astype(np.float32)


def network_of(blocks, *params, num_classes=1):
    """A network of linear blocks; of the rest, inverses want to know the number of classes only."""
    names = [blockwise.block_name(i) for i in range(len(params))]
    variables = blockwise.Variables(dict(zip(names, params, strict=True)), dict.fromkeys(names, {}))
    head, ones = Head(jnp.zeros((1, num_classes))), jnp.ones(1)
    class_names = tuple(map(str, range(num_classes)))
    return Network(variables, head, ones, ones, Chain(blocks), (1, 1, 1), class_names)


def batch_of(x, labels=None, weights=None):
    labels = np.zeros(len(x), np.int32) if labels is None else labels
    weights = np.ones(len(x), np.float32) if weights is None else weights
    return jnp.asarray(x), jnp.asarray(labels), jnp.asarray(weights, jnp.float32)


def assert_same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


KEY = jax.random.key(0)


@functools.cache
def linear_chain():
    """An orthonormal channel mix, then an orthonormal map of everything, and their inverses."""
    params = orthonormal(0, 3), orthonormal(1, 48)
    batches = [batch_of(normal(seed, 64, 4, 4, 3)) for seed in range(4)]
    network = network_of((Mix(), Flatten()), *params)
    inverses = fit_block_inverses(network, batches, rank=2, ridge=1e-7)
    return params, inverses


def test_orthonormal_blocks_are_inverted_exactly():
    (mix, flat), (inner, last) = linear_chain()
    x = normal(9, 5, 4, 4, 3)  # images that were not fitted
    labels = np.zeros(5, np.int32)
    y = x @ mix
    z = y.reshape(5, -1) @ flat
    np.testing.assert_allclose(
        invert_linearly(inner, y, labels, KEY, input_shape=(4, 4, 3)), x, atol=5e-3
    )
    got = invert_linearly(last, z, labels, KEY, input_shape=(4, 4, 3))
    np.testing.assert_allclose(got, y, atol=2e-2)
    assert inner.residual_std.max() < 2e-3 and last.residual_std.max() < 1e-2
    # Of the 3 x 3 neighbourhood only the centre tells: the transpose of the mix stands there.
    weight = np.asarray(inner.weight)
    rows = np.abs(weight).max(1) > 1e-2
    assert rows.sum() == 3
    np.testing.assert_allclose(weight[rows], mix.T, atol=1e-3)


def test_nothing_is_drawn_where_the_fit_leaves_nothing():
    """Of inputs that are all alike, the residual covariance is zero and has no Cholesky factor."""
    network = network_of((Flatten(),), orthonormal(1, 48))
    batches = [batch_of(np.zeros((64, 4, 4, 3), np.float32))]
    (inverse,) = fit_block_inverses(network, batches, rank=2)
    np.testing.assert_array_equal(inverse.residual_factor, np.zeros((2, 48)))
    np.testing.assert_allclose(inverse.residual_std, 0.0, atol=1e-6)
    drawn = invert_linearly(
        inverse, jnp.zeros((3, 48)), jnp.zeros(3, jnp.int32), KEY, input_shape=(4, 4, 3)
    )
    np.testing.assert_allclose(drawn, 0.0, atol=1e-5)


@pytest.mark.parametrize("split", [1, 3])
def test_padding_is_ignored_and_batches_add_up(split):
    network = network_of((Mix(), Pool()), normal(0, 3, 2), (), num_classes=2)
    x, labels = normal(1, 12, 4, 4, 3), np.arange(12, dtype=np.int32) % 2
    want = fit_block_inverses(network, [batch_of(x, labels)], rank=2)
    batches = []
    for part in np.split(np.arange(12), split):
        junk = 100.0 * normal(2, 4, 4, 4, 3)
        weights = np.r_[np.ones(len(part)), np.zeros(4)]
        padded = np.r_[labels[part], 1, 1, 0, 0].astype(np.int32)
        batches.append(batch_of(np.r_[x[part], junk], padded, weights))
    got = fit_block_inverses(network, iter(batches), rank=2)
    assert_same(got, want, rtol=1e-3, atol=1e-3)


def test_a_weight_of_2_is_an_image_shown_twice():
    network = network_of((Mix(), Pool()), normal(0, 3, 2), ())
    x, weights = normal(1, 8, 4, 4, 3), np.asarray([2.0, 1, 1, 2, 1, 1, 1, 2])
    weighted = fit_block_inverses(network, [batch_of(x, None, weights)])
    twice = batch_of(np.repeat(x, weights.astype(int), 0))
    assert_same(weighted, fit_block_inverses(network, [twice]), rtol=1e-3, atol=1e-3)
    once = fit_block_inverses(network, [batch_of(x)])
    assert np.abs(weighted[0].weight - once[0].weight).max() > 1e-2


def pooled_data(rank, num_images=400):
    """Images whose deviation from their class mean lives in `rank` directions; 3 x 3 pixels."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, num_images).astype(np.int32)
    directions, classes = rng.normal(size=(rank, 18)), rng.normal(size=(2, 18))
    x = classes[labels] + rng.normal(size=(num_images, rank)) @ directions
    return x.reshape(-1, 3, 3, 2).astype(np.float32), labels


def numpy_residuals(x, labels):
    """What is left of the images after ridgeless regression on pooled features and class."""
    rows = x.reshape(len(x), -1).astype(np.float64)
    regressors = np.c_[x.mean((1, 2)), np.eye(2)[labels]]
    weight, *_ = np.linalg.lstsq(regressors, rows, rcond=None)
    return rows - regressors @ weight, weight


def test_residual_factor_and_std_give_the_covariance_of_the_residuals():
    x, labels = pooled_data(rank=4)
    (inverse,) = fit_block_inverses(
        network_of((Pool(),), (), num_classes=2), [batch_of(x, labels)], rank=10, ridge=1e-6
    )
    residuals, weight = numpy_residuals(x, labels)
    np.testing.assert_allclose(inverse.weight, weight, atol=5e-3)
    covariance = residuals.T @ residuals / len(x)
    scale = np.diag(covariance).max()
    factor, std = np.asarray(inverse.residual_factor), np.asarray(inverse.residual_std)
    assert factor.shape == (10, 18)
    # Both the low-rank part and the diagonal are right; the rest is 0 as 4 directions are all.
    np.testing.assert_allclose(factor.T @ factor + np.diag(std**2), covariance, atol=5e-3 * scale)
    assert (std**2).max() < 0.02 * scale


def test_rank_0_keeps_the_variances_and_too_small_a_rank_the_leading_directions():
    x, labels = pooled_data(rank=9)
    network = network_of((Pool(),), (), num_classes=2)
    fit = functools.partial(fit_block_inverses, network, ridge=1e-6)
    residuals, _ = numpy_residuals(x, labels)
    covariance = residuals.T @ residuals / len(x)
    (plain,) = fit([batch_of(x, labels)], rank=0)
    assert plain.residual_factor.shape == (0, 18)
    np.testing.assert_allclose(np.square(plain.residual_std), np.diag(covariance), rtol=2e-2)
    (some,) = fit([batch_of(x, labels)], rank=5)
    kept = np.asarray(some.residual_factor)
    np.testing.assert_allclose(
        np.square(kept).sum(0) + np.square(some.residual_std), np.diag(covariance), rtol=2e-2
    )
    error = lambda part: np.linalg.norm(covariance - part)  # noqa: E731
    assert error(kept.T @ kept) < 0.5 * np.linalg.norm(covariance)
    # A Nystrom factor never exceeds the covariance.
    assert np.linalg.eigvalsh(covariance - kept.T @ kept).min() > -1e-3 * np.trace(covariance)


def test_draws_have_the_covariance_of_the_residuals():
    x, labels = pooled_data(rank=4)
    (inverse,) = fit_block_inverses(
        network_of((Pool(),), (), num_classes=2), [batch_of(x, labels)], rank=10, ridge=1e-6
    )
    residuals, weight = numpy_residuals(x, labels)
    output = jnp.broadcast_to(jnp.asarray(x[:1].mean((1, 2))), (20_000, 2))
    ones = np.ones(20_000, np.int32)
    draw = functools.partial(invert_linearly, input_shape=(3, 3, 2))
    draws = np.asarray(draw(inverse, output, ones, KEY)).reshape(-1, 18)
    np.testing.assert_allclose(
        draws.mean(0), np.r_[x[0].mean((0, 1)), 0, 1] @ weight, atol=0.05 * residuals.std()
    )
    covariance = residuals.T @ residuals / len(x)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.05 * np.diag(covariance).max())
    calm = draw(inverse, output[:2], ones[:2], KEY, residual_scale=0.0, noise_scale=0.0)
    np.testing.assert_allclose(calm[0], calm[1], atol=1e-5)  # the regression alone
    np.testing.assert_allclose(calm[0].ravel(), draws.mean(0), atol=0.05 * residuals.std())
    factor = draw(inverse, output, ones, KEY, residual_scale=0.5, noise_scale=0.0)
    spread = np.asarray(factor).reshape(-1, 18).std(0)
    want = 0.5 * np.linalg.norm(inverse.residual_factor, axis=0)
    np.testing.assert_allclose(spread, want, rtol=0.05)


def test_each_class_has_an_offset_of_its_own():
    """Images of two classes with the same feature: only the label tells them apart."""
    pattern = np.asarray([1.0, -1.0, 0.0, 0.0], np.float32).reshape(1, 2, 2, 1)
    labels = np.arange(20, dtype=np.int32) % 2
    x = np.where(labels == 0, 1.0, -1.0).reshape(-1, 1, 1, 1).astype(np.float32) * pattern
    network = network_of((Pool(),), (), num_classes=3)
    (inverse,) = fit_block_inverses(network, [batch_of(x, labels)])
    feature = np.zeros((2, 1), np.float32)
    got = invert_linearly(inverse, feature, np.asarray([0, 1]), KEY, input_shape=(2, 2, 1))
    np.testing.assert_allclose(got, np.concatenate([pattern, -pattern]), atol=2e-2)


def test_offsets_can_be_shared_with_a_class_that_has_no_images():
    """Class 2 gets the mean of the offsets of 0 and 1; all else stays."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(4 + 3, 5)), jnp.float32)  # 4 features, 3 classes
    inverse = block_inverse.BlockInverse(weight, jnp.zeros((0, 5)), jnp.ones(5))
    shares = jnp.asarray([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], jnp.float32)
    first, last = block_inverse.share_class_offsets((inverse, inverse), shares)
    assert_same(first, inverse)
    np.testing.assert_array_equal(last.weight[:6], weight[:6])
    np.testing.assert_allclose(last.weight[6], weight[4:6].mean(0), rtol=1e-6)
    assert block_inverse.share_class_offsets((), shares) == ()


def test_odd_sizes_are_padded_by_their_edge_and_cut_again():
    x = normal(0, 2, 7, 7, 3)
    rows = block_inverse._space_to_depth(jnp.asarray(x), (2, 4, 4, 5))
    assert rows.shape == (2, 4, 4, 12)
    np.testing.assert_array_equal(rows[:, 1, 2].reshape(2, 2, 2, 3), x[:, 2:4, 4:6])
    np.testing.assert_array_equal(rows[:, 3, 0, 6:9], x[:, 6, 0])  # a repeated edge row
    np.testing.assert_array_equal(block_inverse._depth_to_space(rows, (7, 7, 3)), x)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [(sized(resnet.resnet_small, width=4), 7), (sized(resnet.resnet_small, width=4), 8), (VIT, 8)],
    ids=["odd", "even", "transformer"],
)
def test_initial_inverses_have_the_shapes_of_fitted_ones(architecture, size):
    shape = (size, size, 1)
    network = fresh_network(architecture, num_classes=3, image_shape=shape)
    model = network.model
    zeros = init_block_inverses(network, rank=2)
    fit = functools.partial(fit_block_inverses, network, rank=2)
    fitted = jax.eval_shape(lambda *batch: fit([batch]), *batch_of(normal(0, 4, *shape)))
    assert jax.tree.map(lambda z: (z.shape, z.dtype), zeros) == jax.tree.map(
        lambda f: (f.shape, f.dtype), fitted
    )
    shapes = blockwise.block_input_shapes(model, network.variables, shape)
    for block, inverse, inputs, outputs in zip(
        model.blocks, zeros, shapes, shapes[1:], strict=False
    ):
        if isinstance(block, blockwise.Stack):
            inverse = jax.tree.map(lambda leaf: leaf[0], inverse)
        output, labels = jnp.ones((2, *outputs)), jnp.zeros(2, jnp.int32)
        draw = functools.partial(invert_linearly, input_shape=inputs)
        assert jax.eval_shape(draw, inverse, output, labels, KEY).shape == (2, *inputs)
        assert not inverse.weight.any()


def test_tokens_are_inverted_exactly_where_the_map_is_invertible():
    """Also with an offset that differs from position to position, and for a stack."""
    kernel = normal(5, 3, 6, 6)  # three maps of 6 channels
    x, labels = normal(6, 50, 4, 6), jnp.zeros(50, jnp.int32)
    shift = normal(7, 1, 4, 6)

    class Shifted(Tokens):
        def apply(self, params, batch_stats, x, *, train):
            return x @ params + shift, {}

    network = network_of((Tokens(), blockwise.Stack(Shifted(), 2)), kernel[0], kernel[1:])
    batch = (x, labels, jnp.ones(50))
    first, stack = fit_block_inverses(network, [batch], ridge=1e-8)
    assert stack.weight.shape == (2, 6 + 4, 6)
    inputs = [x, x @ kernel[0]]
    inputs += [inputs[-1] @ kernel[1] + shift]
    outputs = [*inputs[1:], inputs[-1] @ kernel[2] + shift]
    second, third = (jax.tree.map(lambda leaf: leaf[i], stack) for i in range(2))  # noqa: B023
    for inverse, wanted, output in zip((first, second, third), inputs, outputs, strict=True):
        options = {"input_shape": (4, 6), "noise_scale": 0.0}
        got = invert_linearly(inverse, output, labels, KEY, **options)
        np.testing.assert_allclose(got, wanted, atol=2e-2)


def test_a_volume_is_an_error_that_says_what_to_do():
    batch = batch_of(normal(0, 4, 2, 2, 3))
    message = r"got \(4, 2, 2, 3, 1\); use per_layer.start='gaussian' for this network"
    with pytest.raises(ValueError, match=message):
        fit_block_inverses(network_of((Volume(),), ()), [batch])


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="got no batch of images; give at least one"):
        fit_block_inverses(network_of((Pool(),), ()), [])


def test_blocks_before_the_first_have_no_inverse():
    """Fitted to the inputs of a block, the inverses from there on are those fitted to images."""
    rng = np.random.default_rng(0)
    network = fresh_network(VIT, num_classes=3, image_shape=(8, 8, 1))
    images = jnp.asarray(rng.standard_normal((16, 8, 8, 1), np.float32))
    rest = jnp.asarray(np.arange(16) % 3), jnp.ones(16)
    whole = fit_block_inverses(network, [(images, *rest)], rank=4)
    maps = blockwise.block_input(network.model, network.variables, images, 1)
    part = fit_block_inverses(network, [(maps, *rest)], rank=4, first_block=1)
    empty = init_block_inverses(network, rank=4, first_block=1)
    assert part[0] == empty[0] == () and len(part) == len(empty) == len(whole)
    for ours, zeros, wanted in zip(*map(jax.tree.leaves, (part, empty, whole[1:])), strict=True):
        assert ours.shape == zeros.shape
        np.testing.assert_allclose(
            ours, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(initial=1)
        )
