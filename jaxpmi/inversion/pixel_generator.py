"""The generator of CMI and FastDFKD: latents to pixels in [0, 1], always on batch moments.

It is not a model of the data but a way to move pixels together: CMI draws a new one for every
batch of images. Beside ABD's (`generator.py`, whose layers it shares) it has a biased linear map,
ends in a sigmoid without a BatchNorm, and keeps no running moments.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.blocks.blockwise import channel_moments
from jaxpmi.blocks.blockwise import normalise_channels
from jaxpmi.inversion.generator import BATCH_NORM_EPSILON
from jaxpmi.inversion.generator import check_image_size
from jaxpmi.inversion.generator import decode
from jaxpmi.inversion.variants import CmiVariant
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

INIT_STD = 0.02  # of weights around 0, and of BatchNorm's scales around 1


def init_pixel_generator(
    key: PRNGKey,
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int = 256,
    channels: tuple[int, int, int] = (128, 128, 64),
    mean: jax.Array | None = None,
) -> Params:
    """Draws the weights of a generator of images (H, W, C), H and W divisible by 4.

    linear - BN - 2x - conv - BN - leaky ReLU - 2x - conv - BN - leaky ReLU - conv - sigmoid
    (docs/methods/cmi.md); `channels` are those after the linear map and the first two convolutions.

    Images begin nearly flat, at the pixels f32[C] of `mean`, in (0, 1): far from it, most steps
    would go into the way there. None: at 1/2, as published, which is about CIFAR's mean.
    """
    check_image_size(image_shape)
    height, width, image_channels = image_shape
    sizes = (*channels, image_channels)
    grid = (height // 4, width // 4, sizes[0])
    shapes = {"linear": (latent_dim, *grid)}
    shapes |= {f"conv{i}": (3, 3, sizes[i], sizes[i + 1]) for i in range(3)}
    shapes |= {f"bn{i}": (sizes[i],) for i in range(3)}
    params = _draw_weights(key, shapes)
    for i in range(3):
        scale = 1.0 + params[f"bn{i}"]
        params[f"bn{i}"] = {"scale": scale, "bias": jnp.zeros_like(scale)}
    bias = jnp.zeros(image_channels) if mean is None else jax.scipy.special.logit(mean)
    return {**params, "linear_bias": jnp.zeros(grid), "bias": bias}


def generator_of(
    variant: CmiVariant,
    key: PRNGKey,
    image_shape: tuple[int, int, int],
    mean: jax.Array,
) -> Params:
    """`init_pixel_generator` of the sizes of a variant of CMI or FastDFKD."""
    return init_pixel_generator(
        key, image_shape, latent_dim=variant.latent_dim, channels=variant.channels, mean=mean
    )


def redraw_first_layer(params: Params, key: PRNGKey) -> Params:
    """Draws the linear map and its BatchNorm anew, both weights from N(0, 0.02^2), biases 0."""
    shapes = {"linear": params["linear"].shape, "scale": params["bn0"]["scale"].shape}
    drawn = _draw_weights(key, shapes)
    return {
        **params,
        "linear": drawn["linear"],
        "linear_bias": jnp.zeros_like(params["linear_bias"]),
        "bn0": {"scale": drawn["scale"], "bias": jnp.zeros_like(params["bn0"]["bias"])},
    }


def generate_pixels(params: Params, latents: jax.Array) -> jax.Array:
    """Maps latents f32[B, latent] to images f32[B, H, W, C] in [0, 1].

    Every BatchNorm normalises by the moments of this batch.
    """

    def batch_norm(i, x):
        norm = params[f"bn{i}"]
        moments = channel_moments(x)
        return normalise_channels(
            x, moments, norm["scale"], norm["bias"], epsilon=BATCH_NORM_EPSILON
        )

    return jax.nn.sigmoid(decode(params, latents, batch_norm))


def _draw_weights(key, shapes):
    """Arrays from N(0, 0.02^2) by name, cut out of one draw: each draw takes long to compile."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    pieces = jnp.split(
        INIT_STD * jax.random.normal(key, (sum(sizes),), jnp.float32), np.cumsum(sizes)[:-1]
    )
    return {name: x.reshape(shapes[name]) for name, x in zip(shapes, pieces, strict=True)}
