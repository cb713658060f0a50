"""CLIP: an image tower and a text tower with features in one space (Radford et al., 2021).

The image tower is a `BlockwiseModel`, so whatever inverts a network inverts CLIP. Both towers are
built of the same transformer blocks, stacked.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import Stack
from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.blocks.blockwise import block_name
from jaxpmi.blocks.blockwise import forward
from jaxpmi.flax_networks.nnx_block import NnxBlock
from jaxpmi.flax_networks.nnx_model import NnxModel
from jaxpmi.flax_networks.nnx_model import as_block
from jaxpmi.models.adapters import init_adapters
from jaxpmi.models.init_network import init_backbone
from jaxpmi.models.layers import OneKey
from jaxpmi.models.text_parts import EndTokenHead
from jaxpmi.models.text_parts import TextEmbedding
from jaxpmi.models.vit import Activation
from jaxpmi.models.vit import transformer_blocks
from jaxpmi.models.vit import vision_transformer
from jaxpmi.types import Params
from jaxpmi.types import PRNGKey

# Of pixels in [0, 1], per channel: what OpenAI's and most other CLIP weights were trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipSizes:
    """All that a CLIP is made with.

    Attributes:
      image_size: pixels, of square RGB images.
      patch_size: pixels, of square patches.
      width: channels of the image tower.
      depth: its blocks.
      num_heads: of each of them.
      features: of both towers, E.
      vocabulary: token ids are in [0, vocabulary).
      context: tokens of a text, padding included.
      text_width: channels of the text tower.
      text_depth: its blocks.
      text_num_heads: of each of them.
      end_token: id of the end-of-text token.
      mlp_width: hidden channels of the image tower's MLPs.
      text_mlp_width: of the text tower's.
      activation: of both towers' MLPs.
      statistics_axis: per what the image tower keeps moments; token: as published.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    features: int
    vocabulary: int
    context: int
    text_width: int
    text_depth: int
    text_num_heads: int
    end_token: int
    mlp_width: int
    text_mlp_width: int
    activation: Activation
    statistics_axis: StatisticsAxis

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of its images."""
        return (self.image_size, self.image_size, 3)


class TextTower(NamedTuple):
    """The text tower: causal blocks on token ids, read at the end-of-text token; static.

    Attributes:
      embedding: token ids to vectors.
      stack: the transformer blocks.
      head: of the end-of-text token.
    """

    embedding: NnxBlock
    stack: Stack
    head: NnxBlock


@dataclasses.dataclass(frozen=True)
class Clip:
    """Both towers, and what they were made with.

    Attributes:
      sizes: of both towers and of their inputs.
      image: the image tower.
      text: the text tower.
    """

    sizes: ClipSizes
    image: NnxModel
    text: TextTower

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of its images."""
        return self.sizes.image_shape


class ClipVariables(NamedTuple):
    """What a CLIP model has learned, and the stored moments of its image tower.

    Attributes:
      image: of the image tower.
      text: of the text tower, "embedding", "blocks" and "head".
      logit_scale: f32[], logarithm of the factor on cosines.
    """

    image: Variables
    text: Params
    logit_scale: jax.Array


class ClipAdapters(NamedTuple):
    """All that continual learning trains of a CLIP: adapters of both towers, leaves [L, ...]."""

    image: Params
    text: Params


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
    mlp_width: int | None = None,
    text_mlp_width: int | None = None,
    activation: Activation = "quick_gelu",
    statistics_axis: StatisticsAxis = "channel",
) -> Clip:
    """A CLIP of these sizes.

    Unless given, `end_token` is the last of the vocabulary, and MLPs have four times their tower's
    width.
    """
    end_token = vocabulary - 1 if end_token is None else end_token
    mlp_width = 4 * width if mlp_width is None else mlp_width
    text_mlp_width = 4 * text_width if text_mlp_width is None else text_mlp_width
    return _model(
        ClipSizes(
            image_size, patch_size, width, depth, num_heads, features, vocabulary, context,
            text_width, text_depth, text_num_heads, end_token, mlp_width, text_mlp_width,
            activation, statistics_axis,
        )
    )  # fmt: skip


def adapted(model: Clip) -> Clip:
    """The same CLIP with adapters in every block of both towers; see `with_clip_adapters`."""
    return _model(model.sizes, with_adapters=True)


@functools.cache
def _model(sizes, *, with_adapters=False):
    """Its towers as blocks; nothing is computed."""
    models = []

    def towers(key):
        image, text, variables = _towers(sizes, key, with_adapters=with_adapters)
        models.append(Clip(sizes, image, text))
        return variables

    jax.eval_shape(towers, jax.random.key(0))
    return models[0]


def _towers(sizes, key, *, with_adapters=False):
    """Both towers as blocks, and their initial variables."""
    key_image, key_text = jax.random.split(key)
    make = functools.partial(
        vision_transformer,
        patch_size=sizes.patch_size,
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        features=sizes.features,
        activation=sizes.activation,
        mlp_width=sizes.mlp_width,
        statistics_axis=sizes.statistics_axis,
        with_adapters=with_adapters,
    )
    image, variables = init_backbone(make, key_image, sizes.image_shape)
    text, params = _text_tower(sizes, key_text, with_adapters)
    logit_scale = jnp.asarray(math.log(1 / 0.07), jnp.float32)
    return image, text, ClipVariables(variables, params, logit_scale)


def _text_tower(sizes, key, with_adapters):
    """Its blocks and their parameters; it keeps no moments, for no text is inverted."""
    keys = jax.random.split(key, 4)
    width = sizes.text_width
    blocks = transformer_blocks(
        width,
        sizes.text_depth,
        sizes.text_num_heads,
        activation=sizes.activation,
        mlp_width=sizes.text_mlp_width,
        causal=True,
        with_adapters=with_adapters,
        rngs=OneKey(keys[2]),
    )
    parts = {
        "embedding": TextEmbedding(keys[0], keys[1], sizes.vocabulary, sizes.context, width),
        "blocks": blocks,
        "head": EndTokenHead(width, sizes.features, rngs=OneKey(keys[3])),
    }
    made = {name: as_block(part) for name, part in parts.items()}
    tower = TextTower(*(block for block, _, _ in made.values()))
    return tower, {name: params for name, (_, params, _) in made.items()}


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
    *_, variables = _towers(model.sizes, key)
    return variables


def init_clip_adapters(
    model: Clip, key: PRNGKey, *, num_experts: int = 2, rank: int = 64
) -> ClipAdapters:
    """Adapters for every block of both towers that change nothing yet; see `init_adapters`."""
    key_image, key_text = jax.random.split(key)
    options, sizes = {"num_experts": num_experts, "rank": rank}, model.sizes
    return ClipAdapters(
        init_adapters(key_image, sizes.depth, sizes.width, **options),
        init_adapters(key_text, sizes.text_depth, sizes.text_width, **options),
    )


def with_clip_adapters(
    model: Clip, variables: ClipVariables, adapters: ClipAdapters
) -> ClipVariables:
    """The variables of `adapted(model)`: these adapters beside the rest, which is not copied."""
    name = block_name(_image_stack(model))
    params = dict(variables.image.params)
    params[name] = {**params[name], **adapters.image}
    return variables._replace(
        image=variables.image._replace(params=params),
        text={**variables.text, "blocks": {**variables.text["blocks"], **adapters.text}},
    )


def with_unit_features(model: NnxModel) -> NnxModel:
    """The same blocks, whose features have length 1; they take the same variables."""
    *blocks, head = model.blocks
    head = dataclasses.replace(head, after=(*head.after, normalise_features))
    return dataclasses.replace(model, blocks=(*blocks, head))


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
    text, tower, context = variables.text, model.text, model.sizes.context
    if tokens.ndim != 2 or tokens.shape[1] > context:
        raise ValueError(
            f"tokens have shape {tokens.shape}; expected (B, T) with T at most {context}, the "
            "context of this model."
        )
    x, _ = tower.embedding.apply(text["embedding"], {}, tokens)
    x, _, _ = tower.stack.trace(text["blocks"], {}, x, train=False, key=key)
    end = jnp.argmax(tokens == model.sizes.end_token, axis=1)
    last = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return tower.head.apply(text["head"], {}, last)[0]


def normalise_features(features: jax.Array) -> jax.Array:
    """Features f32[..., E] of unit length."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def similarity_logits(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Scaled cosines f32[B, C] of image features f32[B, E] and text features f32[C, E]."""
    cosines = normalise_features(image_features) @ normalise_features(text_features).T
    return jnp.exp(logit_scale) * cosines
