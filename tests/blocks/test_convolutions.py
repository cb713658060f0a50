"""Which gradient a convolution has, by platform, and that either is the right one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.blocks import convolutions


def draws(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def convolution(kind, size, stride):
    """A function of image and kernel, and both."""
    image = draws((2, 7, 9, 3), 0)
    if kind == "depthwise":
        return (
            lambda x, k: convolutions.depthwise_conv(x, k, stride),
            image,
            draws((size, size, 3), 1),
        )
    convolve = functools.partial(convolutions.conv, stride=stride, padding="same")
    return convolve, image, draws((size, size, 3, 4), 1)


@pytest.mark.parametrize("kind", ["gradient", "depthwise"])
@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (5, 2)])
def test_off_the_table_xlas_own_gives_the_same_and_has_forward_mode(
    kind, size, stride, monkeypatch
):
    function, image, kernel = convolution(kind, size, stride)
    results = []
    for table in (convolutions.HAND_WRITTEN, {}):
        monkeypatch.setattr(convolutions, "HAND_WRITTEN", table)
        value, pull = jax.vjp(function, image, kernel)
        results.append((value, *pull(jnp.cos(value))))
        # JAX remembers what a function was traced to, so this is a new one.
        traced = jax.make_jaxpr(lambda *inputs: function(*inputs))(image, kernel)
        assert ("custom_vjp_call" in str(traced)) == bool(table)
    for ours, xlas in zip(*results, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=1e-4, atol=1e-5)
    change = draws(image.shape, 2)
    _, tangent = jax.jvp(lambda x: function(x, kernel), (image,), (change,))
    np.testing.assert_allclose(tangent, function(change, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gradient", "depthwise"])
def test_on_cpus_it_is_written_by_hand_and_refuses_forward_mode(kind):
    assert jax.default_backend() != "cpu" or kind in convolutions.HAND_WRITTEN["cpu"]
    function, image, kernel = convolution(kind, 3, 1)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: function(x, kernel), (image,), (image,))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_are_asked_for_when_a_program_is_traced(platform, monkeypatch):
    function, image, kernel = convolution("gradient", 3, 1)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert "custom_vjp_call" not in str(jax.make_jaxpr(function)(image, kernel))
