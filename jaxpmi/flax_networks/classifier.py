"""The classifier of a module as the network's head, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpmi.network import Head


def identity(dim: int) -> Head:
    """The head of a module that has none of its own: its outputs are the logits."""
    return Head(jnp.eye(dim))


def check_identity(head: Head) -> None:
    """Raises where such a head has been trained: the module has no place for it."""
    bias = 0.0 if head.bias is None else head.bias
    if not np.array_equal(head.kernel, np.eye(*head.kernel.shape)) or np.any(bias):
        raise ValueError(
            "the network's head is no longer the identity, and the module has no classifier of "
            "its own to hold it; name the module's last linear layer as head when it goes in."
        )


def layer_arrays(head: Head, has_bias: bool, layer: str) -> dict[str, jax.Array]:
    """`kernel` and, where the layer has one, `bias`: zeros if the head has none.

    Raises:
      ValueError: a bias for a layer without.
    """
    if not has_bias and head.bias is not None:
        raise ValueError(
            f"the network's head has a bias, but the module's {layer} has none; give a module "
            "whose classifier has one."
        )
    arrays = {"kernel": head.kernel}
    if has_bias:
        zeros = jnp.zeros(head.kernel.shape[1], head.kernel.dtype)
        arrays["bias"] = zeros if head.bias is None else head.bias
    return arrays
