import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import chain
from rows import piece
from rows import sized
from small_network import as_network

from jaxpmi.blocks import blockwise
from jaxpmi.blocks import convolutions
from jaxpmi.inversion import contrast
from jaxpmi.models import resnet
from jaxpmi.models import vit
from jaxpmi.models.backbone import Backbone
from jaxpmi.models.init_network import init_backbone
from jaxpmi.network import Head
from jaxpmi.network import Network
from jaxpmi.types import Moments

SHAPE = (8, 8, 3)
MODELS = {
    "resnet": chain(
        piece(resnet.Stem, 4), piece(resnet.ResidualBlock, 6, stride=2, projection=True, pool=True)
    ),
    "pre-activation": chain(
        piece(resnet.Stem, 4, activation=False), piece(resnet.PreActivationBlock, 6, pool=True)
    ),
    "transformer": sized(
        vit.vision_transformer, patch_size=4, width=8, depth=2, num_heads=2, features=5
    ),
}
WIDTH = {"resnet": 4 + 3 * 6, "pre-activation": 4 + 6 + 6, "transformer": 2 * 2 * 8}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def network(name):
    """One whose running moments are not the initial ones, of which much is 0."""
    model, variables = init_backbone(MODELS[name], jax.random.key(0), SHAPE)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda a: a + rng.uniform(0.1, 0.5, a.shape).astype(np.float32), variables
    )
    *_, dim = blockwise.block_input_shapes(model, variables, SHAPE)[-1]
    return as_network(model, variables, jnp.zeros((dim, 2)), image_shape=SHAPE)


@functools.cache
def projection(width=16, output=6):
    return contrast.init_projection(jax.random.key(3), width, output)


def embeddings(number=8, width=16, bank=5):
    return normal(0, number, width), normal(1, number, width), normal(2, bank, 2 * width)


def loss(params, local, whole, remembered, held, temperature=0.3):
    return contrast.contrastive_loss(
        params, local, whole, remembered, held, temperature=temperature
    )


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_of_single_images_shows_all_that_one_of_the_batch_does(name):
    net, images = network(name), normal(0, 6, *SHAPE)
    shown = jax.jit(contrast.observe)(net, images)
    whole = jax.jit(functools.partial(blockwise.forward, net.model))(net.variables, images)
    np.testing.assert_allclose(shown.features, whole.features, rtol=1e-4, atol=1e-5)
    merged = contrast.batch_moments(shown.moments)
    assert jax.tree.structure(merged) == jax.tree.structure(whole.moments)
    for got, want in zip(jax.tree.leaves(merged), jax.tree.leaves(whole.moments), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_is_the_means_over_space_of_all_layer_inputs(name):
    net, images = network(name), normal(0, 3, *SHAPE)
    got = contrast.embed(contrast.observe(net, images).moments)
    assert got.shape == (3, WIDTH[name])
    for i, image in enumerate(images):
        moments = blockwise.forward(net.model, net.variables, image[None]).moments
        layers = jax.tree.leaves(moments, is_leaf=lambda node: isinstance(node, Moments))
        want = np.concatenate([np.ravel(layer.mean) for layer in layers])
        np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)
    # Of the first layer, from the convolution itself.
    if name == "resnet":
        params = net.variables.params["block00"]
        want = np.asarray(convolutions.conv(images, params["conv/kernel"])).mean((1, 2))
        assert any(np.allclose(got[:, j : j + 4], want, atol=1e-5) for j in range(WIDTH[name] - 3))


def test_a_network_that_keeps_no_moments_is_an_error():
    model, variables = init_backbone(
        lambda image_shape, *, rngs: Backbone(vit.PatchEmbedding(8, 3, 4, rngs=rngs)),
        jax.random.key(0),
        SHAPE,
    )
    moments = jnp.zeros(1), jnp.ones(1)
    net = Network(variables, Head(jnp.zeros((4, 2))), *moments, model, SHAPE, ("a", "b"))
    shown = contrast.observe(net, normal(0, 2, *SHAPE))
    with pytest.raises(ValueError, match="the teacher keeps no moments of any layer"):
        contrast.embed(shown.moments)


def test_the_head_against_numpy_and_its_gradient_at_0():
    params, x = jax.device_get(projection()), normal(0, 7, 16)
    hidden = np.maximum(x @ params["kernel0"] + params["bias0"], 0)
    want = hidden @ params["kernel1"] + params["bias1"]
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(contrast.project(params, x), want, rtol=1e-4, atol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, params)
    grads = jax.grad(lambda params: contrast.project(params, x).sum())(zero)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(np.abs(leaf).max() <= 0.25 for leaf in jax.tree.leaves(params))  # 16^-0.5


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_the_contrast_of_identical_embeddings(temperature):
    same = np.tile(normal(0, 1, 5), (4, 1))
    losses = contrast.info_nce(same, same, np.ones(4, bool), temperature)
    np.testing.assert_allclose(losses, 1.386294, rtol=1e-5)


def test_the_contrast_of_orthonormal_embeddings():
    losses = contrast.info_nce(np.eye(4), np.eye(4), np.ones(4, bool), 0.1)
    np.testing.assert_allclose(losses, 1.3619e-4, rtol=1e-2, atol=1e-7)
    np.testing.assert_allclose(
        contrast.info_nce(np.eye(4), np.eye(4), np.ones(4, bool), 1.0),
        np.log(1 + 3 * np.exp(-1.0)),
        rtol=1e-5,
    )


def log_softmax_losses(queries, keys, temperature):
    logits = (queries.astype(np.float64) @ keys.T.astype(np.float64)) / temperature
    logits -= logits.max(1, keepdims=True)
    return -np.diagonal(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def test_the_contrast_against_numpy():
    queries, keys = normal(0, 8, 16), normal(1, 8, 16)
    got = contrast.info_nce(queries, keys, np.ones(8, bool), 2.0)
    np.testing.assert_allclose(got, log_softmax_losses(queries, keys, 2.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_held", [0, 3, 5])
def test_the_loss_is_one_mean_over_images_and_one_over_those_remembered(num_held):
    local, whole, remembered = embeddings()
    held = np.arange(5) < num_held
    got = loss(projection(), local, whole, remembered, held)
    rows = remembered[held]
    project = functools.partial(contrast.project, projection())
    queries = np.asarray(project(np.concatenate([local, rows[:, :16]])))
    keys = np.asarray(project(np.concatenate([whole, rows[:, 16:]])))
    losses = log_softmax_losses(queries, keys, 0.3)
    want = losses[:8].mean() + (losses[8:].mean() if num_held else 0.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_loss_ignores_the_order_of_memories_and_a_common_rotation():
    local, whole, remembered = embeddings()
    held = np.ones(5, bool)
    want = loss(projection(), local, whole, remembered, held)
    order = np.random.default_rng(0).permutation(5)
    got = loss(projection(), local, whole, remembered[order], held)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    rotation = np.linalg.qr(normal(5, 16, 16))[0]
    np.testing.assert_allclose(
        contrast.info_nce(local @ rotation, whole @ rotation, np.ones(8, bool), 1.0),
        contrast.info_nce(local, whole, np.ones(8, bool), 1.0),
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_loss_drops_when_a_pair_is_aligned():
    local, whole, remembered = embeddings()
    held = np.ones(5, bool)
    aligned = local.copy()
    aligned[2] = whole[2]
    assert loss(projection(), aligned, whole, remembered, held) < loss(
        projection(), local, whole, remembered, held
    )


def test_gradients_reach_images_through_local_views_and_the_head_through_memories_too():
    local, whole, remembered = embeddings()
    held = np.ones(5, bool)
    grads = jax.grad(loss, argnums=(0, 1, 2))(projection(), local, whole, remembered, held)
    np.testing.assert_array_equal(grads[2], 0.0)

    def first_mean(params, local):
        queries = contrast.project(params, jnp.concatenate([local, remembered[:, :16]]))
        keys = contrast.project(projection(), jnp.concatenate([whole, remembered[:, 16:]]))
        return contrast.info_nce(queries, keys, np.ones(13, bool), 0.3)[:8].mean()

    of_head, of_local = jax.grad(first_mean, argnums=(0, 1))(projection(), local)
    np.testing.assert_allclose(grads[1], of_local, rtol=1e-4, atol=1e-6)
    assert np.abs(of_local).max() > 1e-3
    assert np.abs(grads[0]["kernel1"] - of_head["kernel1"]).max() > 1e-2


def test_memories_that_are_not_there_have_no_say():
    local, whole, remembered = embeddings()
    held = np.asarray([True, True, False, False, False])
    value_and_grad = jax.value_and_grad(loss)
    want, want_grads = value_and_grad(projection(), local, whole, remembered, held)
    other = np.where(held[:, None], remembered, 1e3)
    got, got_grads = value_and_grad(projection(), local, whole, other, held)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
