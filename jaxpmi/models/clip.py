"""CLIP: an image tower and a text tower with features in one space (Radford et al., 2021).

The image tower is a `BlockwiseModel`, so whatever inverts a network inverts CLIP. Both towers are
built of the same transformer blocks, stacked.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.models.adapters import init_adapters
from jaxpmi.models.adapters import with_adapters
from jaxpmi.models.blockwise import Stack
from jaxpmi.models.blockwise import StatisticsAxis
from jaxpmi.models.blockwise import Variables
from jaxpmi.models.blockwise import block_name
from jaxpmi.models.blockwise import forward
from jaxpmi.models.blockwise import init_variables
from jaxpmi.models.layers import draw_normal
from jaxpmi.models.vit import VisionTransformer
from jaxpmi.models.vit import init_layer_norm
from jaxpmi.models.vit import layer_norm
from jaxpmi.models.vit import transformer_block
from jaxpmi.models.vit import vision_transformer
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

# Of pixels in [0, 1], per channel: what OpenAI's and most other CLIP weights were trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipAdapters(NamedTuple):
    """All that continual learning trains of a CLIP: adapters of both towers, leaves [L, ...]."""

    image: Params
    text: Params


@dataclasses.dataclass(frozen=True)
class TextTransformer:
    """The text tower: causal blocks on token ids, read at the end-of-text token."""

    vocabulary: int  # token ids are in [0, vocabulary)
    context: int  # tokens of a text, padding included
    width: int
    stack: Stack
    features: int
    end_token: int  # id of the end-of-text token


@dataclasses.dataclass(frozen=True)
class Clip:
    """Both towers, and the images they take.

    Attributes:
      image: the image tower.
      text: the text tower.
      image_size: pixels, of square RGB images.
    """

    image: VisionTransformer
    text: TextTransformer
    image_size: int


class ClipVariables(NamedTuple):
    """What a CLIP model has learned, and the stored moments of its image tower.

    Attributes:
      image: of the image tower.
      text: of the text tower.
      logit_scale: f32[], logarithm of the factor on cosines.
    """

    image: Variables
    text: Params
    logit_scale: jax.Array


def clip(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    features: int,
    vocabulary: int = 49408,
    context: int = 77,
    text_width: int = 512,
    text_depth: int = 12,
    text_num_heads: int = 8,
    end_token: int | None = None,
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
    statistics_axis: StatisticsAxis = "channel",
) -> Clip:
    """A CLIP of these sizes; `end_token` is the last of the vocabulary unless given."""
    image = vision_transformer(
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        features=features,
        activation=activation,
        statistics_axis=statistics_axis,
    )
    block = transformer_block(
        text_width, text_depth, text_num_heads, activation=activation, causal=True
    )
    end_token = vocabulary - 1 if end_token is None else end_token
    stack = Stack(block, text_depth)
    text = TextTransformer(vocabulary, context, text_width, stack, features, end_token)
    return Clip(image, text, image_size)


def clip_vit_b32() -> Clip:
    """ViT-B/32: 151,277,313 parameters."""
    return clip(image_size=224, patch_size=32, width=768, depth=12, num_heads=12, features=512)


def clip_vit_b16() -> Clip:
    """ViT-B/16, of the PMI paper: 149,620,737 parameters."""
    return clip(image_size=224, patch_size=16, width=768, depth=12, num_heads=12, features=512)


def clip_vit_l14() -> Clip:
    """ViT-L/14: 427,616,513 parameters."""
    return clip(
        image_size=224,
        patch_size=14,
        width=1024,
        depth=24,
        num_heads=16,
        features=768,
        text_width=768,
        text_num_heads=12,
    )


def clip_tiny(
    vocabulary: int, context: int, *, statistics_axis: StatisticsAxis = "channel"
) -> Clip:
    """For images of 28 x 28 pixels and captions of few words: about 84,000 parameters."""
    return clip(
        image_size=28,
        patch_size=7,
        width=48,
        depth=2,
        num_heads=3,
        features=64,
        vocabulary=vocabulary,
        context=context,
        text_width=32,
        text_depth=1,
        text_num_heads=2,
        statistics_axis=statistics_axis,
    )


CLIP_MODELS: dict[str, Callable[[], Clip]] = {
    "clip_vit_b32": clip_vit_b32,
    "clip_vit_b16": clip_vit_b16,
    "clip_vit_l14": clip_vit_l14,
}


def init_clip(model: Clip, key: PRNGKey) -> ClipVariables:
    """Random weights, as CLIP was initialised; cosines start with a factor of 1 / 0.07."""
    key_image, key_text = jax.random.split(key)
    image = init_variables(model.image, key_image, (model.image_size, model.image_size, 3))
    tower = model.text
    keys = jax.random.split(key_text, 4)
    blocks, _ = tower.stack.init(keys[2], (tower.context, tower.width))
    text = {
        "tokens": draw_normal(keys[0], (tower.vocabulary, tower.width), 0.02),
        "positions": draw_normal(keys[1], (tower.context, tower.width), 0.01),
        "blocks": blocks,
        "norm": init_layer_norm(tower.width),
        "projection": draw_normal(keys[3], (tower.width, tower.features), tower.width**-0.5),
    }
    return ClipVariables(image, text, jnp.asarray(math.log(1 / 0.07), jnp.float32))


def init_clip_adapters(
    model: Clip, key: PRNGKey, *, num_experts: int = 2, rank: int = 64
) -> ClipAdapters:
    """Adapters for every block of both towers that change nothing yet; see `init_adapters`."""
    key_image, key_text = jax.random.split(key)
    options = {"num_experts": num_experts, "rank": rank}
    stack = model.image.blocks[_image_stack(model)]
    width = model.image.blocks[0].width
    image = init_adapters(key_image, stack.depth, width, **options)
    text = init_adapters(key_text, model.text.stack.depth, model.text.width, **options)
    return ClipAdapters(image, text)


def with_clip_adapters(
    model: Clip, variables: ClipVariables, adapters: ClipAdapters | None
) -> ClipVariables:
    """A CLIP with these adapters instead of any it has; the rest is shared, not copied."""
    image, text = adapters if adapters is not None else (None, None)
    name = block_name(_image_stack(model))
    params = dict(variables.image.params)
    params[name] = with_adapters(params[name], image)
    return variables._replace(
        image=variables.image._replace(params=params),
        text={**variables.text, "blocks": with_adapters(variables.text["blocks"], text)},
    )


def _image_stack(model):
    """The place of the stack among the blocks of the image tower."""
    return next(i for i, block in enumerate(model.image.blocks) if isinstance(block, Stack))


def encode_images(
    model: Clip,
    variables: ClipVariables,
    images: jax.Array,
    *,
    key: PRNGKey | None = None,
    first_block: int = 0,
) -> jax.Array:
    """Image features f32[B, E], not normalised, of normalised images f32[B, H, W, 3].

    With a `first_block`, `images` are the inputs of that block of the image tower.
    """
    return forward(model.image, variables.image, images, key=key, first_block=first_block).features


def encode_text(
    model: Clip, variables: ClipVariables, tokens: jax.Array, *, key: PRNGKey | None = None
) -> jax.Array:
    """Text features f32[B, E], not normalised, of token ids i32[B, T], T at most the context.

    Read at the first end-of-text token, which every row must have.
    """
    text, tower = variables.text, model.text
    if tokens.ndim != 2 or tokens.shape[1] > tower.context:
        raise ValueError(
            f"tokens have shape {tokens.shape}; expected (B, T) with T at most {tower.context}, "
            "the context of this model."
        )
    x = text["tokens"][tokens] + text["positions"][None, : tokens.shape[1]]
    x, _, _ = tower.stack.trace(text["blocks"], (), x, train=False, key=key)
    end = jnp.argmax(tokens == tower.end_token, axis=1)
    last = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return layer_norm(text["norm"], last) @ text["projection"]


def normalise_features(features: jax.Array) -> jax.Array:
    """Features f32[..., E] of unit length."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def similarity_logits(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Scaled cosines f32[B, C] of image features f32[B, E] and text features f32[C, E]."""
    cosines = normalise_features(image_features) @ normalise_features(text_features).T
    return jnp.exp(logit_scale) * cosines
