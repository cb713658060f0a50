"""A network with random weights, of a built-in architecture or of one's own."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpmi.blocks.blockwise import BlockwiseModel
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_input_shapes
from jaxpmi.blocks.blockwise import init_variables
from jaxpmi.flax_networks.nnx_model import KEPT
from jaxpmi.flax_networks.nnx_model import as_model
from jaxpmi.network import Network
from jaxpmi.network import from_blocks
from jaxpmi.types import PRNGKey

# Called as `(image_shape, *, rngs)` it returns an `nnx.Module` whose `blocks` are those of
# `from_nnx`, such as a `Backbone`, drawn from an `nnx.Rngs`; or a `BlockwiseModel` of own blocks.
Architecture = Callable[..., nnx.Module | BlockwiseModel]


def init_network(
    architecture: Architecture | BlockwiseModel,
    key: PRNGKey,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    *,
    mean: Sequence[float] | jax.Array,
    std: Sequence[float] | jax.Array,
    head_std: float | None = None,
    variables: Variables | None = None,
) -> Network:
    """A network with random weights; its head, without bias, has weights of N(0, head_std^2).

    Args:
      architecture: makes the blocks, such as `functools.partial(jaxpmi.MODELS["resnet_small"],
        width=8)`; called as `(image_shape, *, rngs)`. Or a `BlockwiseModel`, such as your own
        blocks.
      key: of which all weights are drawn.
      image_shape: (H, W, channels).
      class_names: C names.
      mean: per channel, of pixels in [0, 1].
      std: the same.
      head_std: of the head's weights; None: 1 / sqrt(3 D), the deviation of PyTorch's default.
      variables: of a `BlockwiseModel`, which then has these instead of random ones.
    """
    key_body, key_head = jax.random.split(key)
    model = architecture
    if variables is None:
        model, variables = init_backbone(architecture, key_body, image_shape)
    *_, dim = block_input_shapes(model, variables, image_shape)[-1]
    head_std = (3 * dim) ** -0.5 if head_std is None else head_std
    kernel = head_std * jax.random.normal(key_head, (dim, len(class_names)), jnp.float32)
    return from_blocks(
        model, variables, kernel, mean=mean, std=std, image_shape=image_shape,
        class_names=class_names,
    )  # fmt: skip


def init_backbone(
    architecture: Architecture | BlockwiseModel, key: PRNGKey, image_shape: tuple[int, int, int]
) -> tuple[BlockwiseModel, Variables]:
    """The blocks of an architecture for images of a shape, and their initial variables."""
    made = architecture
    if isinstance(architecture, type) or not hasattr(architecture, "blocks"):
        made = architecture(image_shape, rngs=nnx.Rngs(params=key))
    if not hasattr(made, "blocks"):
        raise ValueError(
            f"the architecture returns a {type(made).__name__} without blocks; return an "
            "nnx.Module that has them, such as a jaxpmi.Backbone, or a BlockwiseModel."
        )
    if not isinstance(made, nnx.Module):
        return made, init_variables(made, key, image_shape)
    model, variables, _ = as_model(
        made,
        blocks=made.blocks,
        image_shape=image_shape,
        statistics_of=getattr(made, "statistics_of", KEPT),
        statistics_axis=getattr(made, "statistics_axis", "channel"),
    )
    return model, variables


def abstract_backbone(
    architecture: Architecture | BlockwiseModel, image_shape: tuple[int, int, int]
) -> tuple[BlockwiseModel, Any]:
    """As `init_backbone`, but with shapes in place of arrays; nothing is computed.

    A module with constant arrays, which are a part of its blocks, is made nevertheless.
    """
    models = []

    def variables(key):
        model, variables = init_backbone(architecture, key, image_shape)
        models.append(model)
        return variables

    key = jax.random.key(0)
    try:
        shapes = jax.eval_shape(variables, key)
    except jax.errors.TracerArrayConversionError:
        shapes = jax.eval_shape(lambda x: x, variables(key))
    return models[0], shapes
