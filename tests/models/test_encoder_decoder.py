import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.models import blockwise
from jaxpmi.models.encoder_decoder import encoder_decoder


def variables_of(model, shape):
    variables = blockwise.init_variables(model, jax.random.key(0), shape)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.3 * random.normal(size=p.shape), jnp.float32), variables.params
    )
    return variables._replace(params=params)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_written_out(size):
    """Against `jax.lax.conv_general_dilated`, in the order in which a U-Net is drawn."""
    model = encoder_decoder(2)
    variables = variables_of(model, (*size, 3))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *size, 3)), jnp.float32)
    out = blockwise.forward(model, variables, x)

    def conv(x, part, stride=1):
        y = jax.lax.conv_general_dilated(
            x, part["kernel"], (stride, stride), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        return jax.nn.relu(y + part["bias"].reshape(1, 1, 1, -1))

    def up(x, like):
        big = np.kron(x, np.ones((1, 2, 2, 1), np.float32))[:, : like.shape[1], : like.shape[2]]
        return np.concatenate([like, big], axis=-1)

    stem, (down, (deep, deeper, middle), top) = (
        variables.params[name] for name in ("block00", "block01")
    )
    full = conv(x, stem)
    half = conv(full, down, 2)
    quarter = conv(conv(half, deep, 2), deeper)
    want = conv(up(conv(up(quarter, half), middle), full), top)
    assert out.features.shape == (2, *size, 2)
    np.testing.assert_allclose(out.features, want, rtol=1e-4, atol=1e-5)


def test_every_weight_counts():
    model = encoder_decoder(2)
    variables = variables_of(model, (8, 8, 1))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32)

    def loss(params):
        out = blockwise.forward(model, variables._replace(params=params), x)
        return jnp.square(out.features).sum()

    gradients = blockwise.named_tensors(model, jax.grad(loss)(variables.params))
    assert len(gradients) == 12 and "block01/1/2/kernel" in gradients
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


def test_training_and_evaluation_are_the_same_and_moments_are_of_what_goes_into_every_relu():
    model = encoder_decoder(2)
    variables = variables_of(model, (8, 8, 1))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32)
    out, trained = (blockwise.forward(model, variables, x, train=mode) for mode in (False, True))
    np.testing.assert_array_equal(out.features, trained.features)
    assert jax.tree.structure(out.moments) == jax.tree.structure(variables.batch_stats)
    shapes = [m.shape for m in jax.tree.leaves(out.moments)]
    assert shapes == [m.shape for m in jax.tree.leaves(variables.batch_stats)]
