import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import sized

from jaxpmi.blocks import blockwise
from jaxpmi.models.encoder_decoder import encoder_decoder
from jaxpmi.models.init_network import init_backbone


def small(shape):
    model, variables = init_backbone(sized(encoder_decoder, width=2), jax.random.key(0), shape)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.3 * random.normal(size=p.shape), jnp.float32), variables.params
    )
    return model, variables._replace(params=params)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_written_out(size):
    """Against `jax.lax.conv_general_dilated`, in the order in which a U-Net is drawn."""
    model, variables = small((*size, 3))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *size, 3)), jnp.float32)
    out = blockwise.forward(model, variables, x)

    params = {**variables.params["block00"], **variables.params["block01"]}

    def conv(x, layer, stride=1):
        y = jax.lax.conv_general_dilated(
            x, params[f"{layer}conv/kernel"], (stride, stride), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        return jax.nn.relu(y + params[f"{layer}conv/bias"].reshape(1, 1, 1, -1))

    def up(x, like):
        big = np.kron(x, np.ones((1, 2, 2, 1), np.float32))[:, : like.shape[1], : like.shape[2]]
        return np.concatenate([like, big], axis=-1)

    full = conv(x, "")
    half = conv(full, "inner/0/", 2)
    quarter = conv(conv(half, "inner/1/inner/0/", 2), "inner/1/inner/1/")
    want = conv(up(conv(up(quarter, half), "inner/1/join/"), full), "join/")
    assert out.features.shape == (2, *size, 2)
    np.testing.assert_allclose(out.features, want, rtol=1e-4, atol=1e-5)


def test_every_weight_counts():
    model, variables = small((8, 8, 1))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32)

    def loss(params):
        out = blockwise.forward(model, variables._replace(params=params), x)
        return jnp.square(out.features).sum()

    gradients = blockwise.named_tensors(model, jax.grad(loss)(variables.params))
    assert len(gradients) == 12 and "block01/inner/1/join/conv/kernel" in gradients
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


def test_training_and_evaluation_are_the_same_and_moments_are_of_what_goes_into_every_relu():
    model, variables = small((8, 8, 1))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32)
    out, trained = (blockwise.forward(model, variables, x, train=mode) for mode in (False, True))
    np.testing.assert_array_equal(out.features, trained.features)
    assert jax.tree.structure(out.moments) == jax.tree.structure(variables.batch_stats)
    shapes = [m.shape for m in jax.tree.leaves(out.moments)]
    assert shapes == [m.shape for m in jax.tree.leaves(variables.batch_stats)]
