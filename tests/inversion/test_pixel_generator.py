import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpmi.inversion import pixel_generator
from jaxpmi.inversion.pixel_generator import init_pixel_generator

SHAPE = (8, 12, 3)
init = jax.jit(
    functools.partial(init_pixel_generator, image_shape=SHAPE, latent_dim=6, channels=(8, 8, 4))
)
generate = jax.jit(pixel_generator.generate_pixels)


def latents(seed=0, number=5):
    return np.random.default_rng(seed).normal(size=(number, 6)).astype(np.float32)


def test_the_published_size():
    params = jax.eval_shape(lambda key: init_pixel_generator(key, (32, 32, 3)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_328_899


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (8, 12, 3)])
def test_images_have_the_size_asked_for(shape):
    params = functools.partial(init_pixel_generator, image_shape=shape)
    images = jax.eval_shape(
        lambda key, z: pixel_generator.generate_pixels(params(key), z),
        jax.random.key(0),
        jax.ShapeDtypeStruct((7, 256), jnp.float32),
    )
    assert images.shape == (7, *shape)


def test_a_size_not_divisible_by_4_is_an_error():
    with pytest.raises(ValueError, match="8 x 10 is not divisible by 4"):
        init_pixel_generator(jax.random.key(0), (8, 10, 3))


def test_pixels_are_between_0_and_1_and_follow_the_latents():
    params = init(jax.random.key(0))
    images = np.asarray(generate(params, latents()))
    assert images.shape == (5, *SHAPE) and 0.0 < images.min() < images.max() < 1.0
    assert (np.abs(images - generate(params, latents(1))).max((1, 2, 3)) > 1e-3).all()
    wide = {**params, "conv2": 1e4 * params["conv2"]}
    np.testing.assert_array_equal(
        np.unique(np.round(generate(wide, latents()), 3)[0])[[0, -1]], [0, 1]
    )


def test_weights_are_small_and_all_drawn_anew():
    one, other = (init(jax.random.key(seed)) for seed in range(2))
    for name in ("linear", "conv0", "conv1", "conv2"):
        assert not np.isclose(one[name], other[name], rtol=0, atol=1e-7).mean() > 0.01
        np.testing.assert_allclose(np.std(one[name]), 0.02, rtol=0.25)
        assert abs(np.mean(one[name])) < 0.005
    for i in range(3):
        scale = np.asarray(one[f"bn{i}"]["scale"])
        assert (scale != other[f"bn{i}"]["scale"]).all()
        np.testing.assert_allclose(scale, 1.0, atol=0.1)
        assert not one[f"bn{i}"]["bias"].any()
    assert not one["bias"].any() and not one["linear_bias"].any()


def test_every_normalisation_is_by_the_batch():
    """A constant added to a channel before BatchNorm, or a factor on it, changes nothing."""
    params = init(jax.random.key(0))
    want = generate(params, latents())
    shifted = {**params, "linear_bias": np.tile(np.arange(8.0, dtype=np.float32), (2, 3, 1))}
    np.testing.assert_allclose(generate(shifted, latents()), want, atol=1e-4)
    for name in ("conv0", "conv1"):
        stretched = {**params, name: 30.0 * params[name]}
        np.testing.assert_allclose(generate(stretched, latents()), want, atol=2e-2)
    one_by_one = [generate(params, z[None])[0] for z in latents()]
    assert np.abs(np.stack(one_by_one) - want).max() > 1e-2


def test_only_the_first_layer_is_drawn_again():
    params = jax.tree.map(lambda leaf: leaf + 1.0, init(jax.random.key(0)))
    again = pixel_generator.redraw_first_layer(params, jax.random.key(1))
    first = {"linear", "linear_bias", "bn0"}
    for name in params.keys() - first:
        chex.assert_trees_all_equal(again[name], params[name])
    assert jax.tree.structure(again) == jax.tree.structure(params)
    np.testing.assert_allclose(np.std(again["linear"]), 0.02, rtol=0.1)
    assert not again["linear_bias"].any() and not again["bn0"]["bias"].any()
    assert 0.0 < np.abs(again["bn0"]["scale"]).max() < 0.1  # around 0, not around 1
