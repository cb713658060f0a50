"""Where other libraries keep weights: for every leaf of ours, tensors of a file, as data.

A `Naming` has the structure of `ClipVariables` (without the moments), with a `Source` in place of
every array. Linear maps are stored as f32[out, in] elsewhere and as f32[in, out] here; the three of
an attention are one here, and the blocks of a tower are stacked.
"""

import math
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

from jaxpmi.blocks.blockwise import block_name


class Layout(NamedTuple):
    """How a tensor of a file becomes a leaf of ours."""

    convert: Callable[..., np.ndarray]
    stored_shape: Callable[[tuple[int, ...]], tuple[int, ...]]  # in the file, of a leaf's shape
    sized: bool = False  # convert also takes the leaf's shape


SAME = Layout(lambda tensor: tensor, lambda shape: shape)
TRANSPOSED = Layout(np.transpose, lambda shape: shape[::-1])
# A convolution f32[D, 3, p, p] whose stride is its size, as a linear map f32[p * p * 3, D].
PATCHES = Layout(
    lambda tensor: tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor)),
    lambda shape: (shape[1], 3, *[math.isqrt(shape[0] // 3)] * 2),
)


class Source(NamedTuple):
    """The tensors that make one leaf: joined on its last axis, and stacked over blocks."""

    names: tuple[str, ...]  # in blocks with `{}` for the block's index
    layout: Layout = SAME

    def shapes(self, leaf_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shape in the file of every tensor of a leaf of this shape."""
        num_layers, shape = self._layers(leaf_shape)
        if len(self.names) > 1:
            shape = (*shape[:-1], shape[-1] // len(self.names))
        stored = self.layout.stored_shape(shape)
        return {name.format(i): stored for i in range(num_layers) for name in self.names}

    def read(
        self, leaf_shape: tuple[int, ...], get_tensor: Callable[[str], np.ndarray]
    ) -> np.ndarray:
        """The leaf f32[leaf_shape], of tensors of any float type, read one after the other."""
        num_layers, shape = self._layers(leaf_shape)
        layers = np.empty((num_layers, *shape), np.float32)
        for i in range(num_layers):
            own = (shape,) if self.layout.sized else ()
            parts = [self.layout.convert(get_tensor(name.format(i)), *own) for name in self.names]
            layers[i] = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        return layers.reshape(leaf_shape)

    def _layers(self, leaf_shape):
        """How many blocks the leaf has, and the shape that it has in one of them."""
        stacked = "{}" in self.names[0]
        return (leaf_shape[0], leaf_shape[1:]) if stacked else (1, leaf_shape)


def check_tensors(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    needed: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
) -> None:
    """Raises a `ValueError` that says which names and shapes of a file are not the needed."""
    missing = [name for name in needed if name not in found]
    extra = sorted(found.keys() - needed.keys() - set(ignored))
    other = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in needed.items()
        if found.get(name, shape) != shape
    ]
    problems = [f"it lacks {some(missing)}"] if missing else []
    problems += [f"it also has {some(extra)}"] if extra else []
    problems += [some(other, "; ")] if other else []
    if problems:
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}.")


def some(names: Sequence[str], between: str = ", ", most: int = 4) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - most
    return between.join(names[:most]) + (f" and {more} more" if more > 0 else "")


class Naming(NamedTuple):
    """The names of one library."""

    image: dict[str, Any]  # as `Variables.params` of the image tower
    text: dict[str, Any]  # as `ClipVariables.text`
    logit_scale: Source
    ignored: frozenset[str]  # tensors without anything learned


def _tensor(name, layout=SAME):
    return Source((name,), layout)


def norm_sources(layer: str, name: str) -> dict[str, Source]:
    """Of a normalising layer by its path in a block: gamma and beta, named as in PyTorch."""
    return {f"{layer}/scale": _tensor(f"{name}.weight"), f"{layer}/bias": _tensor(f"{name}.bias")}


def _linear(layer, *names):
    weights, biases = (tuple(f"{name}.{end}" for name in names) for end in ("weight", "bias"))
    return {f"{layer}/kernel": Source(weights, TRANSPOSED), f"{layer}/bias": Source(biases)}


def _image_tower(patches, class_token, positions, first_norm, blocks, last_norm, projection):
    """The four blocks of `vision_transformer`."""
    tower = (
        {"linear/kernel": patches},
        {"class_token": class_token, "positions": positions, **norm_sources("norm", first_norm)},
        blocks,
        {**norm_sources("norm", last_norm), "projection/kernel": projection},
    )
    return {block_name(i): block for i, block in enumerate(tower)}


def _text_tower(tokens, positions, blocks, last_norm, projection):
    """The three parts of a `TextTower`."""
    return {
        "embedding": {"tokens": tokens, "positions": positions},
        "blocks": blocks,
        "head": {**norm_sources("norm", last_norm), "projection/kernel": projection},
    }


def _hugging_face_blocks(tower):
    block = f"{tower}.encoder.layers.{{}}"
    return {
        **norm_sources("norm1", f"{block}.layer_norm1"),
        **_linear("attention/qkv", *(f"{block}.self_attn.{name}_proj" for name in "qkv")),
        **_linear("attention/out", f"{block}.self_attn.out_proj"),
        **norm_sources("norm2", f"{block}.layer_norm2"),
        **_linear("mlp/up", f"{block}.mlp.fc1"),
        **_linear("mlp/down", f"{block}.mlp.fc2"),
    }


def _openai_blocks(tower):
    block = f"{tower}.resblocks.{{}}"
    return {
        **norm_sources("norm1", f"{block}.ln_1"),
        "attention/qkv/kernel": _tensor(f"{block}.attn.in_proj_weight", TRANSPOSED),
        "attention/qkv/bias": _tensor(f"{block}.attn.in_proj_bias"),
        **_linear("attention/out", f"{block}.attn.out_proj"),
        **norm_sources("norm2", f"{block}.ln_2"),
        **_linear("mlp/up", f"{block}.mlp.c_fc"),
        **_linear("mlp/down", f"{block}.mlp.c_proj"),
    }


# `CLIPModel` of the library transformers.
HUGGING_FACE = Naming(
    image=_image_tower(
        patches=_tensor("vision_model.embeddings.patch_embedding.weight", PATCHES),
        class_token=_tensor("vision_model.embeddings.class_embedding"),
        positions=_tensor("vision_model.embeddings.position_embedding.weight"),
        first_norm="vision_model.pre_layrnorm",  # spelt like this there
        blocks=_hugging_face_blocks("vision_model"),
        last_norm="vision_model.post_layernorm",
        projection=_tensor("visual_projection.weight", TRANSPOSED),
    ),
    text=_text_tower(
        tokens=_tensor("text_model.embeddings.token_embedding.weight"),
        positions=_tensor("text_model.embeddings.position_embedding.weight"),
        blocks=_hugging_face_blocks("text_model"),
        last_norm="text_model.final_layer_norm",
        projection=_tensor("text_projection.weight", TRANSPOSED),
    ),
    logit_scale=_tensor("logit_scale"),
    ignored=frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text")),
)

# OpenAI's own code, and `CLIP` of the library open_clip.
OPENAI = Naming(
    image=_image_tower(
        patches=_tensor("visual.conv1.weight", PATCHES),
        class_token=_tensor("visual.class_embedding"),
        positions=_tensor("visual.positional_embedding"),
        first_norm="visual.ln_pre",
        blocks=_openai_blocks("visual.transformer"),
        last_norm="visual.ln_post",
        projection=_tensor("visual.proj"),
    ),
    text=_text_tower(
        tokens=_tensor("token_embedding.weight"),
        positions=_tensor("positional_embedding"),
        blocks=_openai_blocks("transformer"),
        last_norm="ln_final",
        projection=_tensor("text_projection"),
    ),
    logit_scale=_tensor("logit_scale"),
    ignored=frozenset({"attn_mask", "context_length", "input_resolution", "vocab_size"}),
)
