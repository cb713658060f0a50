"""Random views of images: shifted, mirrored, cropped ones show the same."""

import jax
import jax.numpy as jnp

from jaxpmi.augment import draw_crop
from jaxpmi.augment import resized_crop
from jaxpmi.types import PRNGKey


def jitter(images: jax.Array, key: PRNGKey, pixels: int) -> jax.Array:
    """Shifts the whole batch f32[B, H, W, C] cyclically by up to `pixels` in each direction."""
    shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
    return jnp.roll(images, shift, axis=(1, 2))


def random_view(
    images: jax.Array,
    key: PRNGKey,
    *,
    scale: int = 1,
    jitter_pixels: int = 0,
    flip: bool = False,
    crop_scale: tuple[float, float] | None = None,
) -> jax.Array:
    """Averages images down by `scale`, shifts them cyclically and mirrors them; then crops them.

    Args:
      images: f32[B, H, W, C].
      key: key[], consumed; one shift and one coin toss serve the whole batch.
      scale: side of the squares of pixels that are averaged; H and W are divisible by it.
      jitter_pixels: greatest shift at full resolution, `jitter_pixels // scale` at this one.
      flip: mirror with a probability of 1/2.
      crop_scale: least and largest area of the part that is resized to the whole; every image has
        its own. None: all of it.

    Returns:
      f32[B, H / scale, W / scale, C].
    """
    key_shift, key_flip, key_crop = jax.random.split(key, 3)
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // scale, scale, width // scale, scale, channels).mean((2, 4))
    if jitter_pixels // scale > 0:
        x = jitter(x, key_shift, jitter_pixels // scale)
    x = jnp.where(jax.random.bernoulli(key_flip), x[:, :, ::-1], x) if flip else x
    if crop_scale is None:
        return x

    def crop(image, key):
        return resized_crop(image, draw_crop(key, image.shape[:2], crop_scale))

    return jax.vmap(crop)(x, jax.random.split(key_crop, batch))
