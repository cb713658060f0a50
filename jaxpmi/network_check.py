"""Whether a network is the one that it was made of: the same logits, or why not."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.augment import normalise
from jaxpmi.blocks.blockwise import forward
from jaxpmi.doors import check_images
from jaxpmi.network import Network

# What else the original may have been given, and what to do then.
_PIXELS = {
    "pixels in [0, 1] that were not normalised": (0.0, 1.0, "give mean=0 and std=1"),
    "pixels in [-1, 1]": (0.5, 0.5, "give mean=0.5 and std=0.5"),
    "pixels in 0..255": (0.0, 1.0 / 255.0, "give mean=0 and std=1/255"),
}


def check_network(
    network: Network,
    images: jax.Array | np.ndarray,
    expected: jax.Array | np.ndarray,
    *,
    tolerance: float = 1e-3,
) -> None:
    """Raises unless a network gives images the logits that its original gives them.

    Args:
      network: of `from_nnx`, `from_linen` or `from_blocks`.
      images: u8[B, H, W, channels] as they are stored; some real ones.
      expected: f32[B, C], what the original gives the same images after its own preprocessing, in
        evaluation mode.
      tolerance: largest difference that is allowed, over the largest expected logit.

    Raises:
      ValueError: other logits; the error says how far off they are, and the cause if one of the
        usual ones explains them: softmax outputs, other pixels, swapped channels, training mode,
        a lost bias.
    """
    check_images(network, images)
    expected = np.asarray(expected, np.float32)
    found = _logits(network, images)
    if expected.shape != found.shape:
        raise ValueError(
            f"expected has shape {expected.shape}, but the network gives {found.shape}; give the "
            "logits of the same images, and the classifier as head."
        )
    off = _distance(found, expected)
    if off <= tolerance:
        return
    row, column = np.unravel_index(np.argmax(np.abs(found - expected)), found.shape)
    raise ValueError(
        f"the network is not its original: the logit of class {column} of image {row} is "
        f"{found[row, column]:.4g} instead of {expected[row, column]:.4g}, off by {off:.2g} of the "
        f"largest; {_cause(network, images, expected, tolerance)}"
    )


def _cause(network, images, expected, tolerance):
    """The usual mistake that explains the expected logits, if one does."""
    if np.all(expected >= 0) and np.allclose(expected.sum(1), 1.0, atol=1e-3):
        return "its rows sum to 1, so they are probabilities: give logits, before the softmax."
    if np.all(expected <= 0) and np.allclose(np.exp(expected).sum(1), 1.0, atol=1e-3):
        return (
            "its rows are logarithms of probabilities that sum to 1: give logits, before the "
            "log_softmax."
        )

    def fits(other, pictures=images, train=False):
        return _distance(_logits(other, pictures, train=train), expected) <= tolerance

    for what, (mean, std, remedy) in _PIXELS.items():
        moments = {"mean": network.mean * 0 + mean, "std": network.std * 0 + std}
        if fits(network.replace(**moments)):
            return f"they agree for {what}: {remedy}."
    if images.shape[-1] == 3 and fits(network, images[..., ::-1]):
        return "they agree for images whose red and blue are swapped: give both the same order."
    if _trains(network, images) and fits(network, train=True):
        return (
            "they agree in training mode, where BatchNorms normalise by the batch: put the "
            "original into evaluation mode first, by module.eval() or its argument."
        )
    without = network.replace(head=network.head._replace(bias=None))
    if network.head.bias is not None and fits(without):
        return "they agree without the head's bias: give the same classifier."
    constant = np.ptp(expected - _logits(network, images), axis=0)
    if np.max(constant) <= tolerance * max(np.abs(expected).max(), 1e-6):
        return "they differ by a constant per class: the head's bias is another."
    return (
        "check mean and std, the order of the blocks and of the channels, padding, and whether the "
        "original was in evaluation mode."
    )


def _trains(network, images):
    """Whether the network can be called in training mode; one that draws random numbers cannot."""
    try:
        jax.eval_shape(
            lambda x: forward(network.model, network.variables, x, train=True).features,
            jax.ShapeDtypeStruct(images.shape, jnp.float32),
        )
    except ValueError:
        return False
    return True


def _logits(network, images, *, train=False):
    x = normalise(jnp.asarray(images), network.mean, network.std)
    seen = forward(network.model, network.variables, x, train=train)
    return np.asarray(network.head(seen.features), np.float32)


def _distance(found, expected):
    """The largest difference, over the largest expected logit."""
    return float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-6))
