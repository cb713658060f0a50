"""One batch of synthetic images: targets -> per-layer inversion -> full-model refinement.

Or, where inversion stops before the first block, of that block's inputs (`InversionConfig.space`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.config import InversionConfig
from jaxpmi.inversion import priors
from jaxpmi.inversion.block_inverse import BlockInverse
from jaxpmi.inversion.full_model import PixelStats
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.per_layer import draw_start
from jaxpmi.inversion.per_layer import invert_blocks
from jaxpmi.inversion.targets import Targets
from jaxpmi.models.blockwise import BlockwiseModel
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_input_shapes
from jaxpmi.types import Moments
from jaxpmi.types import PRNGKey


class LayerKnowledge(NamedTuple):
    """What is stored of the data's way through the network; no field is per image."""

    block_inputs: tuple[Moments, ...]  # per-channel moments of every block's input
    inverses: tuple[BlockInverse, ...]  # linear block inverses; () where not used
    pixels: PixelStats  # black, white and per-pixel moments


class Synthesis(NamedTuple):
    """Synthetic images with the losses of the full-model phase."""

    images: jax.Array  # f32[B, H, W, C], normalised pixels; or patch embeddings f32[B, h, w, D]
    initial_loss: jax.Array  # f32[], of the start
    final_loss: jax.Array  # f32[], of the returned images
    terms: dict[str, jax.Array]  # unweighted terms of the returned images
    finite: jax.Array  # bool[], False if any loss was NaN or infinite


def synthesize(
    model: BlockwiseModel,
    variables: Variables,
    targets: Targets,
    knowledge: LayerKnowledge,
    key: PRNGKey,
    *,
    config: InversionConfig,
    scales: Sequence[tuple[jax.Array, jax.Array]] | None = None,
) -> Synthesis:
    """Synthesises one batch of images for `targets` by PMI and full-model refinement.

    With `config.per_layer.start == "noise"` the full model starts from noise (the
    DeepInversion-style baseline): standard-normal images, or patch embeddings with their moments.
    """
    key_start, key_refine = jax.random.split(key)
    first_block, image_shape = config.first_block, knowledge.pixels.moments.mean.shape
    finite = jnp.asarray(True)
    if config.per_layer.start == "noise":
        moments = Moments(jnp.zeros(image_shape[-1]), jnp.ones(image_shape[-1]))
        if first_block > 0:
            moments = knowledge.block_inputs[first_block]
        shape = block_input_shapes(model, variables, image_shape)[first_block]
        start = draw_start(moments, shape, key_start, targets.features)
    else:
        start, solutions = invert_blocks(
            model,
            variables,
            targets,
            knowledge.block_inputs,
            key_start,
            config=config.per_layer,
            image_shape=image_shape,
            inverses=knowledge.inverses,
            scales=scales,
            labels_only=config.targets == "label",
            first_block=first_block,
        )
        for solution in solutions:
            finite = finite & solution.finite.all()
    solution = refine_images(
        variables,
        start,
        targets,
        knowledge.pixels,
        key_refine,
        model=model,
        config=config.full_model,
        first_block=first_block,
    )
    images = solution.x
    if config.full_model.histogram_weight > 0:
        images = _match_histogram(images, knowledge.pixels)
    return Synthesis(
        images, solution.losses[0], solution.loss, solution.terms, finite & solution.finite
    )


@jax.jit
def _match_histogram(images, pixels):
    low, high = pixels.low.reshape(1, 1, 1, -1), pixels.high.reshape(1, 1, 1, -1)
    span = high - low
    matched = priors.match_histogram((images - low) / span, pixels.histogram)
    return low + span * matched
