"""Compressed gradients of mean logits: against oracles in float64, and as runs make them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_network
from rows import chain
from rows import model_of
from rows import piece
from rows import sized
from small_network import MEAN
from small_network import SHAPE
from small_network import STD
from small_network import blobs
from small_network import fresh_network

from jaxpmi.augment import normalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import VdfdConfig
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.summary import record_floats
from jaxpmi.continual.vdfd import gradient_records as gr
from jaxpmi.continual.vdfd.recording import record_task
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.models.init_network import abstract_backbone
from jaxpmi.network import Head
from jaxpmi.runs.machine import enable_x64
from jaxpmi.sharding import make_mesh

NUM_CLASSES, NUM_IMAGES = 3, 7


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def weights(seed=0):
    """A convolution, a gain, a bias and a dense layer."""
    arrays = {
        "conv": 0.5 * normal(seed, 3, 3, 2, 4),
        "scale": 1 + 0.1 * normal(seed + 1, 4),
        "bias": normal(seed + 2, 4),
        "dense": normal(seed + 3, 4, 5),
    }
    return jax.tree.map(jnp.asarray, arrays)


def logits(params, x):
    """f[B, C] of a smooth network with a fixed classifier."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(x * params["scale"].reshape(1, 1, 1, -1) + params["bias"].reshape(1, 1, 1, -1))
    return jnp.tanh(x.mean((1, 2)) @ params["dense"]) @ jnp.asarray(normal(9, 5, NUM_CLASSES))


def images():
    return jnp.asarray(normal(10, NUM_IMAGES, 6, 6, 2))


def mean_logits(params, x=None):
    return logits(params, images() if x is None else x).mean(0)


def mean_gradients(params, x=None, whole=False):
    x = images() if x is None else x
    gradients = gr.logit_gradients(lambda p: logits(p, x).sum(0), params, whole=whole)
    return {name: g / len(x) for name, g in gradients.items()}


def records_of(gradients, params, rank=NUM_CLASSES, num_tasks=1, whole=False):
    empty = gr.empty_records(
        params, num_tasks=num_tasks, num_classes=NUM_CLASSES, rank=rank, whole=whole
    )
    return gr.add_record(
        empty, 0, gradients, params, np.arange(NUM_CLASSES, dtype=np.int32), jnp.ones(NUM_CLASSES)
    )


def moved(params, size, seed=20):
    return {name: p + size * normal(seed, *p.shape) for name, p in params.items()}


def assert_close(a, b, **tolerance):
    chex.assert_trees_all_close(a, b, **tolerance)


# Gradients (docs/methods/vdfd.md, eq. 1).


def test_gradients_are_those_of_jacrev_averaged_over_the_weights_of_a_channel(float64):
    params = weights()
    jacobian = jax.jacrev(mean_logits)(params)  # f[C, ...]
    want = {
        "conv": jacobian["conv"].mean((1, 2, 3)).T,
        "scale": jacobian["scale"].T,
        "bias": jacobian["bias"].T,
        "dense": jacobian["dense"].mean(1).T,
    }
    assert_close(mean_gradients(params), want, rtol=1e-12, atol=1e-14)


def test_gradients_are_those_of_an_offset_per_channel(float64):
    """Another derivation: a number added to all weights of a channel, over their number."""
    params = weights()
    sizes = {"conv": 18, "scale": 1, "bias": 1, "dense": 4}

    def with_offsets(offsets):
        return mean_logits({n: p + offsets[n].reshape((1,) * (p.ndim - 1) + (-1,))
                            for n, p in params.items()})  # fmt: skip

    offsets = {name: jnp.zeros(p.shape[-1]) for name, p in params.items()}
    jacobian = jax.jacrev(with_offsets)(offsets)
    want = {name: jacobian[name].T / sizes[name] for name in params}
    assert_close(mean_gradients(params), want, rtol=1e-12, atol=1e-14)


def test_batches_count_by_their_size(float64):
    params, x = weights(), images()
    parts = [(x[:4], 4 / 7), (x[4:], 3 / 7)]
    sized = {n: sum(s * mean_gradients(params, b)[n] for b, s in parts) for n in params}
    assert_close(sized, mean_gradients(params), rtol=1e-12, atol=1e-14)
    equal = {n: sum(0.5 * mean_gradients(params, b)[n] for b, _ in parts) for n in params}
    gap = max(np.abs(equal[n] - sized[n]).max() for n in params)
    assert gap > 1e-4, "or the test shows nothing"


def test_taylor_error_is_of_second_order(float64):
    """Each tensor a vector, so nothing is averaged: drift against the true one, and jvp."""
    flat = {name: p.reshape(-1) for name, p in weights().items()}
    shapes = {name: p.shape for name, p in weights().items()}

    def of_flat(params, x=None):
        return mean_logits({n: p.reshape(shapes[n]) for n, p in params.items()}, x)

    gradients = gr.logit_gradients(lambda p: len(images()) * of_flat(p), flat)
    gradients = {name: g / NUM_IMAGES for name, g in gradients.items()}
    records, errors = records_of(gradients, flat), []
    for size in (1e-1, 1e-2, 1e-3):
        there = moved(flat, size)
        step = {name: there[name] - flat[name] for name in flat}
        drift = gr.drift(records, there)[0]
        _, tangent = jax.jvp(of_flat, (flat,), (step,))
        np.testing.assert_allclose(drift, tangent, rtol=1e-9, atol=1e-13)
        errors.append(np.abs(drift - (of_flat(there) - of_flat(flat))).max())
    assert errors[0] > 30 * errors[1] > 30 * 30 * errors[2]


# Drift (items 3, 4 and 6).


def linear_logits(params, x):
    """Linear in both tensors together, for inputs [B, 4]."""
    return x @ params["dense"] @ jnp.asarray(normal(9, 3, NUM_CLASSES)) + params["bias"][None]


def linear_task(count):
    """Weights, and records without compression, of a model that is linear in its bias alone."""
    params = {"bias": jnp.asarray(normal(1, NUM_CLASSES)), "dense": jnp.asarray(normal(2, 4, 3))}
    x = jnp.asarray(normal(3, count, 4))
    gradients = gr.logit_gradients(lambda p: linear_logits(p, x).mean(0), params)
    return params, x, records_of(gradients, params)


def test_drift_is_exact_where_the_logits_are_linear_in_the_weights(float64):
    params, x, records = linear_task(6)
    # Changes alike for all weights of a channel, for it is averaged over them.
    there = {"bias": params["bias"] + normal(4, 3), "dense": params["dense"] + normal(5, 1, 3)}
    want = (linear_logits(there, x) - linear_logits(params, x)).mean(0)
    np.testing.assert_allclose(gr.drift(records, there)[0], want, rtol=1e-10, atol=1e-13)


def test_penalty_is_the_square_of_the_mean_and_not_the_mean_of_the_square(float64):
    """E|D|^2 = |E D|^2 + tr Cov D; with one example there is no difference."""
    for count in (1, 6):
        params, x, records = linear_task(count)
        there = {**params, "dense": params["dense"] + normal(5, 1, 3)}
        change = linear_logits(there, x) - linear_logits(params, x)
        distillation = jnp.square(change).sum(1).mean()
        covariance = jnp.square(change - change.mean(0, keepdims=True)).sum(1).mean()
        penalty = jnp.square(gr.drift(records, there)).sum()
        np.testing.assert_allclose(distillation, penalty + covariance, rtol=1e-10)
        assert (covariance > 0.1 * distillation) == (count > 1)


def test_drift_is_zero_at_the_recorded_weights_and_has_no_squared_gradient_there(float64):
    params = weights()
    records = records_of(mean_gradients(params), params, rank=1)
    np.testing.assert_allclose(gr.drift(records, params), 0.0, atol=1e-14)
    grads = jax.grad(lambda p: jnp.square(gr.drift(records, p)).sum())(params)
    assert_close(grads, jax.tree.map(jnp.zeros_like, params), atol=1e-14)


def test_changes_that_sum_to_zero_in_a_channel_are_not_seen(float64):
    params = weights()
    records = records_of(mean_gradients(params), params)
    change = normal(30, *params["conv"].shape)
    change -= change.mean((0, 1, 2), keepdims=True)
    there = {**params, "conv": params["conv"] + change}
    np.testing.assert_allclose(gr.drift(records, there), 0.0, atol=1e-13)
    assert np.abs(mean_logits(there) - mean_logits(params)).max() > 1e-2


def test_the_production_path_is_float32():
    """Within 1e-4 of the same in float64, for weights whose sums are large."""
    with enable_x64(True):
        params = {name: p + 3.0 for name, p in weights().items()}
        there = moved(params, 1e-2)
        want = gr.drift(records_of(mean_gradients(params), params, rank=1), there)
    single = lambda tree: {n: jnp.asarray(a, jnp.float32) for n, a in tree.items()}  # noqa: E731
    records = records_of(mean_gradients(single(params), jnp.float32(images())), single(params), 1)
    got = jax.jit(gr.drift)(records, single(there))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


# Compression (docs/methods/vdfd.md, eq. 2).


def test_full_rank_reproduces_the_gradient_and_error_falls_with_the_rank(float64):
    gradient, errors = jnp.asarray(normal(0, 8, 3)), []
    for rank in (1, 2, 3):
        left, scale, right = gr.compress(gradient, rank)
        assert left.shape == (8, rank) and scale.shape == (rank,) and right.shape == (3, rank)
        errors.append(np.linalg.norm((left * scale[None]) @ right.T - gradient))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-13
    singular = np.linalg.svd(gradient, compute_uv=False)
    np.testing.assert_allclose(errors[:2], [np.hypot(*singular[1:]), singular[2]], rtol=1e-10)


def test_a_rank_beyond_the_matrix_is_filled_with_zeros():
    gradient = jnp.asarray(normal(0, 2, 3), jnp.float32)
    left, scale, right = gr.compress(gradient, 3)
    assert left.shape == (2, 3) and right.shape == (3, 3) and scale[2] == 0
    np.testing.assert_allclose((left * scale[None]) @ right.T, gradient, rtol=1e-5, atol=1e-6)


def test_signs_of_the_factors_do_not_matter(float64):
    params = weights()
    records = records_of(mean_gradients(params), params, rank=2)
    flipped = records._replace(
        left={name: -left for name, left in records.left.items()}, right=-records.right
    )
    there = moved(params, 0.1)
    np.testing.assert_allclose(gr.drift(flipped, there), gr.drift(records, there), rtol=1e-10)


def test_averaging_over_a_channel_is_a_projection(float64):
    """Of the gradient to tensors constant within a channel: what is left out is orthogonal."""
    jacobian = jax.jacrev(mean_logits)(weights())["conv"]  # f[C, 3, 3, 2, 4]
    mean = mean_gradients(weights())["conv"].T[:, None, None, None, :]
    rest = jacobian - mean
    products = jnp.einsum("chwio,dhwio->cd", rest, jnp.broadcast_to(mean, jacobian.shape))
    np.testing.assert_allclose(products, 0.0, atol=1e-14)


# Whole gradients (docs/methods/vdfd.md, eq. 11).


def test_whole_gradients_are_those_of_jacrev(float64):
    jacobian = jax.jacrev(mean_logits)(weights())
    want = {n: j.reshape(NUM_CLASSES, -1, j.shape[-1]) for n, j in jacobian.items()}
    want = {n: np.moveaxis(j, 0, -1) for n, j in want.items()}
    assert_close(mean_gradients(weights(), whole=True), want, rtol=1e-12, atol=1e-14)


def test_a_gradient_is_cut_to_its_largest_orthogonal_products(float64):
    """What is lost is the sum of squares of the products left out; all of them give it back."""
    gradient, most = jnp.asarray(normal(0, 6, 4, 3)), 4 * 3
    _, _, scales, _ = gr.factorise(gradient, most)
    np.testing.assert_array_equal(scales, np.sort(scales)[::-1])
    for rank in (1, 3, most, most + 2):
        fan_in, left, scale, right = gr.factorise(gradient, rank)
        assert fan_in.shape == (6, rank) and left.shape == (4, rank) and right.shape == (3, rank)
        got = jnp.einsum("ar,nr,r,cr->anc", fan_in, left, scale, right)
        lost = np.linalg.norm(scales[rank:])
        np.testing.assert_allclose(np.linalg.norm(got - gradient), lost, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(jnp.square(scales).sum(), jnp.square(gradient).sum(), rtol=1e-12)


def test_without_a_fan_in_the_products_are_those_of_averages(float64):
    gradient = jnp.asarray(normal(0, 8, 3))
    fan_in, left, scale, right = gr.factorise(gradient[None], 2)
    got = jnp.einsum("ar,nr,r,cr->anc", fan_in, left, scale, right)[0]
    left, scale, right = gr.compress(gradient, 2)
    np.testing.assert_allclose(got, (left * scale[None]) @ right.T, rtol=1e-10, atol=1e-13)


def test_whole_gradients_see_what_averages_do_not(float64):
    """Changes that sum to zero in a channel: the drift is the derivative along them."""
    params, change = weights(), normal(30, *weights()["conv"].shape)
    change -= change.mean((0, 1, 2), keepdims=True)
    zeros = {name: jnp.zeros_like(p) for name, p in params.items()}
    step = {**zeros, "conv": jnp.asarray(change)}
    _, want = jax.jvp(mean_logits, (params,), (step,))
    there = {name: p + step[name] for name, p in params.items()}
    averages = records_of(mean_gradients(params), params)
    whole = records_of(mean_gradients(params, whole=True), params, rank=12, whole=True)
    np.testing.assert_allclose(gr.drift(averages, there), 0.0, atol=1e-13)
    np.testing.assert_allclose(gr.drift(whole, there)[0], want, rtol=1e-9)
    assert np.abs(want).max() > 1e-2
    np.testing.assert_allclose(gr.drift(whole, params), 0.0, atol=1e-13)


def test_floats_kept_of_whole_gradients_are_their_numbers():
    """Those of averages, and of every product the weights that feed a channel."""
    tensors, channels = channels_of(resnet.preact_resnet18, (32, 32, 3))
    records = jax.eval_shape(
        lambda t: gr.empty_records(t, num_tasks=1, num_classes=10, rank=2, whole=True), tensors
    )
    floats = [leaf for leaf in jax.tree.leaves(records) if leaf.dtype == jnp.float32]
    assert sum(int(np.prod(leaf.shape)) for leaf in floats) == record_floats(records) + 10
    fan_in = sum(int(np.prod(t.shape[:-1])) for t in tensors.values())
    assert record_floats(records) == gr.floats_per_task(channels, 10, 2) + 2 * fan_in


# Rows.


def test_rows_are_independent_and_those_to_come_are_empty():
    params = jax.tree.map(jnp.float32, weights())
    first = records_of(mean_gradients(params), params, rank=1, num_tasks=3)
    later = jax.tree.map(jnp.float32, moved(params, 0.3))
    both = gr.add_record(
        first,
        1,
        mean_gradients(later),
        later,
        np.arange(3, 6, dtype=np.int32),
        jnp.ones(NUM_CLASSES),
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), first, both)
    assert all(not np.any(np.asarray(leaf)[2]) for leaf in jax.tree.leaves(both))
    np.testing.assert_array_equal(gr.is_recorded(both), [1, 1, 0])
    np.testing.assert_array_equal(gr.drift(both, later)[2], 0.0)
    np.testing.assert_allclose(gr.drift(both, later)[1], 0.0, atol=1e-5)
    assert np.abs(gr.drift(both, later)[0]).max() > 1e-2


def test_a_task_of_fewer_classes_is_padded(float64):
    """Its drifts are those of a record without room, the padding has none, whatever is in it."""
    params, there = weights(), moved(weights(), 0.1)
    gradients = mean_gradients(params)
    two = {name: g[:, :2] for name, g in gradients.items()}
    small = gr.empty_records(params, num_tasks=1, num_classes=2, rank=1)
    small = gr.add_record(small, 0, two, params, np.arange(2, dtype=np.int32), jnp.ones(2))
    room = gr.empty_records(params, num_tasks=1, num_classes=3, rank=1)
    mask = jnp.asarray([1.0, 1.0, 0.0])
    padded = gr.add_record(room, 0, gradients, params, jnp.asarray([0, 1, 0], jnp.int32), mask)
    got = gr.drift(padded, there)[0]
    np.testing.assert_allclose(got[:2], gr.drift(small, there)[0], rtol=1e-10)
    assert got[2] == 0.0


# Memory (docs/methods/vdfd.md, eq. 4).


def channels_of(architecture, shape):
    model, variables = abstract_backbone(architecture, shape)
    tensors = jax.eval_shape(functools.partial(blockwise.named_tensors, model), variables.params)
    return tensors, [t.shape[-1] for t in tensors.values()]


def test_floats_kept_of_a_task_are_the_published_ones():
    """Without the C floats of the origin, which the published logs do not count."""
    tensors, channels = channels_of(resnet.preact_resnet18, (32, 32, 3))
    assert (len(channels), sum(channels)) == (54, 12_608)
    assert sum(int(np.prod(t.shape)) for t in tensors.values()) == 11_167_040
    for num_classes, want in ((5, 12_932), (8, 13_094), (10, 13_202), (20, 13_742)):
        assert gr.floats_per_task(channels, num_classes, 1) - num_classes == want
    records = jax.eval_shape(
        lambda t: gr.empty_records(t, num_tasks=1, num_classes=10, rank=1), tensors
    )
    floats = [leaf for leaf in jax.tree.leaves(records) if leaf.dtype == jnp.float32]
    assert sum(int(np.prod(leaf.shape)) for leaf in floats) == 13_202 + 10 + 10  # with the mask
    assert record_floats(records) == 13_202 + 10


def test_floats_kept_with_a_bottleneck_resnet_50():
    """From shapes alone: three BatchNorms and convolutions a block, shortcuts, a last BatchNorm."""
    channels, inputs = [64], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        hidden = 64 * 2**stage
        for block in range(blocks):
            channels += [inputs] * 2 + [hidden] * 6 + [4 * hidden] * (2 if block == 0 else 1)
            inputs = 4 * hidden
    channels += [inputs] * 2
    assert (len(channels), sum(channels)) == (151, 72_000)
    assert gr.floats_per_task(channels, 10, 1) - 10 == 73_661


def test_stacked_layers_are_tensors_of_their_own():
    architecture = sized(
        vit.vision_transformer, patch_size=4, width=8, depth=3, num_heads=2, features=8
    )
    tensors, _ = channels_of(architecture, (8, 8, 1))
    layers = {name.split("/")[1] for name in tensors if name.split("/")[1].isdigit()}
    assert layers == {"000", "001", "002"}
    per_layer = [sum(f"/{layer}/" in name for name in tensors) for layer in sorted(layers)]
    assert len(set(per_layer)) == 1 and per_layer[0] > 5


# As a run makes them.

ARCHITECTURE = chain(piece(resnet.Stem, 4), piece(resnet.ResidualBlock, 8, stride=2, pool=True))
MODEL = model_of(ARCHITECTURE, small_network.SHAPE)


@functools.cache
def network():
    """Weights and running statistics that are not those of the start."""
    fresh = fresh_network(ARCHITECTURE)
    params = jax.tree.map(lambda p: p + 0.1, fresh.variables.params)
    stats = jax.tree.map(lambda s: 1.3 * s + 0.2, fresh.variables.batch_stats)
    kernel = jnp.asarray(normal(3, *fresh.head.kernel.shape), jnp.float32)
    return fresh.replace(variables=blockwise.Variables(params, stats), head=Head(kernel))


def recorded(batch_size, num_devices=1, task=1, rows=slice(7), **settings):
    raw, labels = blobs(5, 2)[0][rows], np.repeat([2, 3], 5)[rows]
    tensors = blockwise.named_tensors(MODEL, network().variables.params)
    empty = gr.empty_records(tensors, num_tasks=2, num_classes=3, rank=2)
    images = LabelledSamples(raw.__getitem__, labels)
    return raw, record_task(
        empty, network(), images, task, range(2, 4),
        mesh=make_mesh(num_devices), batch_size=batch_size, config=VdfdConfig(**settings),
    )  # fmt: skip


@pytest.mark.parametrize("over", ["all", "own_class"])
def test_a_record_is_of_mean_logits_in_evaluation_mode(over):
    """Against one batch of all images; the last of three is padded. Five images are of class 2."""
    raw, records = recorded(3, mean_logits=over)
    variables, kernel = network().variables, network().head.kernel
    x = normalise(raw, MEAN, STD)

    @jax.jit
    def mean(params):
        out = blockwise.forward(MODEL, blockwise.Variables(params, variables.batch_stats), x)
        logits = out.features @ kernel[:, 2:4]
        if over == "all":
            return logits.mean(0)
        first = logits[:5, 0] - logits[:5].mean(1)
        return jnp.stack([first.mean(), (logits[5:, 1] - logits[5:].mean(1)).mean()])

    jacobian = blockwise.named_tensors(MODEL, jax.jit(jax.jacrev(mean))(variables.params))
    for index, name in enumerate(sorted(jacobian)):
        want = jacobian[name].reshape(2, -1, jacobian[name].shape[-1]).mean(1).T
        left, scale, right = records.left[name][1], records.scale[1, index], records.right[1, index]
        got = (left * scale[None]) @ right.T
        np.testing.assert_allclose(got[:, :2], want, rtol=1e-3, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(got[:, 2], 0.0)
    np.testing.assert_array_equal(records.classes, [[0, 0, 0], [2, 3, 0]])
    np.testing.assert_array_equal(records.class_mask, [[0, 0, 0], [1, 1, 0]])
    there = blockwise.named_tensors(MODEL, variables.params)
    np.testing.assert_allclose(gr.drift(records, there), 0.0, atol=1e-4)
    assert np.abs(records.origin[1, :2]).min() > 1e-3
    assert SHAPE == raw.shape[1:]


def test_a_record_of_whole_gradients_is_of_the_same_means():
    """Its averages over the weights of a channel are what the other kind keeps, where all fits."""
    tensors = blockwise.named_tensors(MODEL, network().variables.params)
    raw, averages = recorded(3)
    empty = gr.empty_records(tensors, num_tasks=2, num_classes=3, rank=40, whole=True)
    images = LabelledSamples(raw.__getitem__, np.repeat([2, 3], 5)[:7])
    whole = record_task(
        empty, network(), images, 1, range(2, 4),
        mesh=make_mesh(1), batch_size=3, config=VdfdConfig(variant="whole_gradients"),
    )  # fmt: skip
    for index, name in enumerate(sorted(tensors)):
        parts = whole.fan_in[name][1], whole.left[name][1], whole.scale[1, index]
        got = np.einsum("ar,nr,r,cr->anc", *parts, whole.right[1, index]).mean(0)
        left, right = averages.left[name][1], averages.right[1, index]
        want = (left * averages.scale[1, index][None]) @ right.T
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(gr.drift(whole, tensors), 0.0, atol=1e-4)


@pytest.mark.parametrize("over", ["all", "own_class"])
def test_a_record_may_be_of_some_of_the_images_evenly_spaced(over):
    recorded_over = functools.partial(recorded, 3, mean_logits=over)
    _, some = recorded_over(record_images=3)
    (_, few), (_, more) = recorded_over(rows=[0, 3, 6]), recorded_over()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), some, few)
    _, same = recorded_over(record_images=7)
    chex.assert_trees_all_equal(same, more)
    assert np.abs(some.scale - more.scale).max() > 1e-3


def test_a_class_without_an_image_leaves_zeros():
    """So that the others are recorded: of a large task only some images may be asked for."""
    _, records = recorded(3, rows=slice(5), mean_logits="own_class")
    scaled = records.right[1] * records.scale[1][:, None]
    assert np.isfinite(scaled).all() and np.abs(scaled[:, 0]).max() > 1e-3
    np.testing.assert_allclose(scaled[:, 1], 0.0, atol=1e-6)


def test_eight_devices_record_what_one_does():
    (_, one), (_, eight) = recorded(8), recorded(8, num_devices=8)
    tensors = blockwise.named_tensors(MODEL, network().variables.params)
    there = {name: 1.1 * t for name, t in tensors.items()}
    want = gr.drift(one, there)
    np.testing.assert_allclose(gr.drift(eight, there), want, rtol=1e-3, atol=1e-4)
