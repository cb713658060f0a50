"""The generator of CMI and FastDFKD: latents to pixels in [0, 1], always on batch moments.

It is not a model of the data but a way to move pixels together: CMI draws a new one for every
batch of images. Beside ABD's (`generator.py`, whose layers it shares) it has a biased linear map,
ends in a sigmoid without a BatchNorm, and keeps no running moments.
"""

import jax
import jax.numpy as jnp

from jaxpmi.inversion.generator import check_image_size
from jaxpmi.inversion.generator import decode
from jaxpmi.models import layers
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

INIT_STD = 0.02  # of weights around 0, and of BatchNorm's scales around 1


def init_pixel_generator(
    key: PRNGKey,
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int = 256,
    channels: tuple[int, int, int] = (128, 128, 64),
) -> Params:
    """Draws the weights of a generator of images (H, W, C), H and W divisible by 4.

    linear - BN - 2x - conv - BN - leaky ReLU - 2x - conv - BN - leaky ReLU - conv - sigmoid (CMI,
    section 2.1); `channels` are those after the linear map and the first two convolutions.
    """
    check_image_size(image_shape)
    height, width, image_channels = image_shape
    sizes = (*channels, image_channels)
    grid = (height // 4, width // 4, sizes[0])
    keys = jax.random.split(key, 7)

    def normal(key, shape):
        return INIT_STD * jax.random.normal(key, shape)

    params = {
        "linear": normal(keys[0], (latent_dim, *grid)),
        "linear_bias": jnp.zeros(grid),
        "bias": jnp.zeros(image_channels),
    }
    for i in range(3):
        params[f"conv{i}"] = normal(keys[1 + i], (3, 3, sizes[i], sizes[i + 1]))
        scale = 1.0 + normal(keys[4 + i], (sizes[i],))
        params[f"bn{i}"] = {"scale": scale, "bias": jnp.zeros(sizes[i])}
    return params


def redraw_first_layer(params: Params, key: PRNGKey) -> Params:
    """Draws the linear map and its BatchNorm anew, both weights from N(0, 0.02^2), biases 0."""
    keys = jax.random.split(key)
    linear = INIT_STD * jax.random.normal(keys[0], params["linear"].shape)
    scale = INIT_STD * jax.random.normal(keys[1], params["bn0"]["scale"].shape)
    zeros = jax.tree.map(jnp.zeros_like, params)
    first = {"linear": linear, "linear_bias": zeros["linear_bias"]}
    return {**params, **first, "bn0": {"scale": scale, "bias": zeros["bn0"]["bias"]}}


def generate_pixels(params: Params, latents: jax.Array) -> jax.Array:
    """Maps latents f32[B, latent] to images f32[B, H, W, C] in [0, 1].

    Every BatchNorm normalises by the moments of this batch.
    """

    def batch_norm(i, x):
        return layers.batch_norm(params[f"bn{i}"], None, x, train=True)[0]

    return jax.nn.sigmoid(decode(params, latents, batch_norm))
