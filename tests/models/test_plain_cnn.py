import jax
import jax.numpy as jnp
import numpy as np
from rows import sized

from jaxpmi.blocks import blockwise
from jaxpmi.models.init_network import init_backbone
from jaxpmi.models.plain_cnn import plain_cnn

SMALL = sized(plain_cnn, width=2)


def test_blocks_written_out():
    model, variables = init_backbone(SMALL, jax.random.key(0), (7, 6, 1))
    shapes = blockwise.block_input_shapes(model, variables, (7, 6, 1))
    assert shapes == ((7, 6, 1), (4, 3, 2), (2, 2, 4), (8,))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32), variables.params
    )
    x = random.normal(size=(3, 7, 6, 1)).astype(np.float32)
    out = blockwise.forward(model, blockwise.Variables(params, variables.batch_stats), x)
    y = x
    for name in ("block00", "block01"):
        kernel, padded = params[name]["conv/kernel"], np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = (-(-n // 2) for n in y.shape[1:3])
        patches = [
            padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2][:, :rows, :columns]
            @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        ]
        y = sum(map(np.asarray, patches)) + np.asarray(params[name]["conv/bias"])
        seen = out.moments[name]["relu"]
        np.testing.assert_allclose(seen.mean, y.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)
        y = np.maximum(y, 0.0)
    dense = params["block02"]
    kernel, bias = (np.asarray(dense[f"dense/{name}"]) for name in ("kernel", "bias"))
    y = np.maximum(y.reshape(3, -1) @ kernel + bias, 0.0)
    np.testing.assert_allclose(out.features, y, rtol=1e-4, atol=1e-4)


def test_training_and_evaluation_are_the_same():
    model, variables = init_backbone(SMALL, jax.random.key(0), (8, 8, 1))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    outs = [blockwise.forward(model, variables, x, train=train).features for train in (True, False)]
    np.testing.assert_array_equal(*outs)
    assert np.abs(outs[0]).max() > 0
