"""The library's convolution through Flax's own argument: XLA's numbers, whatever is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpmi.blocks import convolutions
from jaxpmi.flax_networks import convolution


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


OURS = {
    "3 x 3": {"kernel_size": (3, 3)},
    "1 x 1": {"kernel_size": (1, 1)},
    "stride 2": {"kernel_size": (3, 3), "strides": 2},
    "7 x 7, stride 2": {"kernel_size": (7, 7), "strides": (2, 2)},
    "as PyTorch": {"kernel_size": (3, 3), "strides": 2, "padding": [(1, 1), (1, 1)]},
    "valid": {"kernel_size": (3, 3), "padding": "VALID"},
    "valid, stride 3": {"kernel_size": (2, 2), "strides": 3, "padding": "VALID"},
    "one side": {"kernel_size": (3, 3), "strides": 2, "padding": [(2, 0), (0, 1)]},
    "not square": {"kernel_size": (3, 1)},
    "depthwise": {"kernel_size": (3, 3), "feature_group_count": 4},
    "depthwise, stride 2": {"kernel_size": (5, 5), "strides": 2, "feature_group_count": 4},
    "depthwise, as PyTorch": {
        "kernel_size": (3, 3),
        "strides": 2,
        "feature_group_count": 4,
        "padding": [(1, 1), (1, 1)],
    },
    "depthwise, valid": {
        "kernel_size": (3, 3),
        "strides": 2,
        "feature_group_count": 4,
        "padding": "VALID",
    },
    "depthwise, one side": {
        "kernel_size": (3, 3),
        "feature_group_count": 4,
        "padding": [(2, 0), (0, 4)],
    },
    "circular": {"kernel_size": (3, 3), "padding": "CIRCULAR"},  # Flax pads before it convolves
}
XLAS = {
    "two strides": {"kernel_size": (3, 3), "strides": (1, 2)},
    "dilated": {"kernel_size": (3, 3), "kernel_dilation": 2},
    "upsampling": {"kernel_size": (3, 3), "input_dilation": 2, "padding": 1},
    "groups": {"kernel_size": (3, 3), "feature_group_count": 2},
    "depthwise, not square": {"kernel_size": (3, 1), "feature_group_count": 4},
    "depthwise, pixels skipped": {"kernel_size": (1, 1), "strides": 2, "feature_group_count": 4},
    "one dimension": {"kernel_size": (3,)},
}


@pytest.mark.parametrize("case", [*OURS, *XLAS])
@pytest.mark.parametrize("size", [8, 9])
def test_outputs_and_gradients_are_xlas(case, size, monkeypatch):
    options, calls = {**OURS, **XLAS}[case], []
    name = "depthwise_conv" if case.startswith("depthwise") else "conv"
    ours = getattr(convolutions, name)
    monkeypatch.setattr(convolutions, name, lambda *a: (calls.append(0), ours(*a))[1])
    channels = 4 if case.startswith("depthwise") else 6
    plain = nnx.Conv(4, channels, **options, rngs=nnx.Rngs(0))
    hooked = nnx.Conv(4, channels, **options, rngs=nnx.Rngs(0))
    hooked.conv_general_dilated = convolution.conv_general_dilated
    shape = (2, size, 4) if case == "one dimension" else (2, size, size, 4)
    x = draw(shape, 1)

    def loss(kernel, x, conv):
        conv = nnx.merge(*split(conv, kernel))
        return jnp.square(conv(x)).sum()

    kernel = nnx.to_pure_dict(nnx.state(plain))["kernel"]
    want = jax.value_and_grad(loss, (0, 1))(kernel, x, plain)
    got = jax.value_and_grad(loss, (0, 1))(kernel, x, hooked)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    assert bool(calls) == (case in OURS)


def split(conv, kernel):
    graph, state = nnx.split(conv)
    return graph, {**nnx.to_pure_dict(state), "kernel": kernel}
