"""Pretrained CLIP weights from disk, as Hugging Face, open_clip and OpenAI name them.

Only safetensors files are read. A pickle (`.bin`, `.pt`, `.pth`) runs whatever is in it when it is
read, so it never is: convert it where it is trusted, with
`safetensors.torch.save_file(model.state_dict(), "clip.safetensors")`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import clip
from jaxpmi.models.clip import init_clip
from jaxpmi.models.tokenizer import Tokenizer
from jaxpmi.models.tokenizer import read_tokenizer
from jaxpmi.weights.clip_sizes import hugging_face_sizes
from jaxpmi.weights.clip_sizes import model_sizes
from jaxpmi.weights.clip_sizes import open_clip_sizes
from jaxpmi.weights.clip_sizes import openai_conventions
from jaxpmi.weights.clip_sizes import openai_sizes
from jaxpmi.weights.weight_names import HUGGING_FACE
from jaxpmi.weights.weight_names import OPENAI
from jaxpmi.weights.weight_names import Naming
from jaxpmi.weights.weight_names import Source
from jaxpmi.weights.weight_names import check_tensors


class PretrainedClip(NamedTuple):
    """A CLIP with its weights, and the tokenizer of its texts.

    It takes images normalised by `CLIP_MEAN` and `CLIP_STD`, as nearly all do; what the folder says
    of preprocessing is not read.

    Attributes:
      model: both towers.
      variables: theirs.
      tokenizer: of the text tower's token ids.
    """

    model: Clip
    variables: ClipVariables
    tokenizer: Tokenizer


class _Kind(NamedTuple):
    """A kind of folder: the two files that it must have, and what is in them."""

    config: str
    weights: str
    read_sizes: Callable[[Path], dict[str, Any]]
    naming: Naming


# The first kind of which a folder has both files counts: many have the files of several libraries.
_KINDS = (
    _Kind("open_clip_config.json", "open_clip_model.safetensors", open_clip_sizes, OPENAI),
    _Kind("config.json", "model.safetensors", hugging_face_sizes, HUGGING_FACE),
    _Kind("open_clip_config.json", "model.safetensors", open_clip_sizes, OPENAI),
)
_NO_PICKLE = (
    "pickles (.bin, .pt, .pth) are not read, because reading one runs whatever is in it: convert "
    "them to safetensors."
)


def load_clip(
    path: str | Path, *, model: Clip | None = None, statistics_axis: StatisticsAxis = "channel"
) -> PretrainedClip:
    """Reads a CLIP with two transformers, its weights and its tokenizer.

    Args:
      path: with a `tokenizer.json` beside the weights, one of
        - a folder of a Hugging Face `CLIPModel`: `config.json`, `model.safetensors`;
        - a folder of open_clip: `open_clip_config.json`, and `open_clip_model.safetensors` or
          `model.safetensors`;
        - a `.safetensors` file with OpenAI's names. Shapes do not tell everything: unless `model`
          does, heads have 64 channels and the activation is `quick_gelu`, as in OpenAI's models.
          The weights of a folder of the other kinds stand for that folder.
      model: what the weights must be of, for instance `clip_vit_b16()`; None: whatever they are.
      statistics_axis: per what the image tower keeps moments, "token" as published; a given
        `model` has its own.

    Returns:
      The model, its variables in f32 whatever the file's float type, and the tokenizer. Stored
      moments are those of a fresh model: nobody publishes them.

    Raises:
      FileNotFoundError: the path or the tokenizer does not exist.
      ValueError: something else does not fit; of tensors, all that do not are listed.
    """
    weights, kind = _find_weights(Path(path))
    naming = kind.naming if kind else OPENAI
    with _open_safetensors(weights) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        if kind:
            sizes = kind.read_sizes(weights.with_name(kind.config))
        else:
            sizes = openai_sizes(weights, shapes)
            sizes |= openai_conventions(weights, sizes) if model is None else {}
        kept = {"statistics_axis": statistics_axis}
        model = clip(**sizes, **kept) if model is None else _agreed(weights, sizes, model)
        fresh = jax.eval_shape(lambda: init_clip(model, jax.random.key(0)))
        _check_tensors(weights, naming, shapes, fresh)
        tokenizer = _matching_tokenizer(weights.with_name("tokenizer.json"), model)
        variables = _read_variables(file, naming, model, fresh)
    return PretrainedClip(model, variables, tokenizer)


def _find_weights(path):
    """The file of the weights, and the kind of its folder, or None for a lone file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder of Hugging Face or open_clip, or a "
            ".safetensors file."
        )
    folder = path if path.is_dir() else path.parent
    for kind in _KINDS:
        config, weights = folder / kind.config, folder / kind.weights
        if path in (folder, weights) and config.is_file() and weights.is_file():
            return weights, kind
    if path.is_dir():
        pairs = " or ".join(f"{kind.config} and {kind.weights}" for kind in _KINDS[:2])
        raise ValueError(f"{path} is no folder of a CLIP, which has {pairs}; {_NO_PICKLE}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no .safetensors file; {_NO_PICKLE}")
    return path, None


def _open_safetensors(path):
    """The file, opened for reading single tensors; it must be whole."""
    import safetensors

    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); fetch it once more."
        ) from error


def _agreed(path, sizes, model):
    """The given model, unless the sizes that files tell are others."""
    given = model_sizes(model)
    other = [f"{k} {sizes[k]}, not {given[k]}" for k in given if sizes.get(k, given[k]) != given[k]]
    if other:
        raise ValueError(f"{path} is of another CLIP than the one given: {'; '.join(other)}.")
    return model


def _check_tensors(path, naming, shapes, fresh):
    """Compares the file's tensors with those that the leaves of a fresh model are made of."""
    needed = {}
    _map_sources(lambda source, leaf: needed.update(source.shapes(leaf.shape)), naming, fresh)
    check_tensors(path, shapes, needed, naming.ignored)


def _read_variables(file, naming, model, fresh):
    """Tensors one after the other, so that there is never a second copy of the whole."""

    def read(source, leaf):
        return jnp.asarray(source.read(leaf.shape, file.get_tensor))

    image, text, logit_scale = _map_sources(read, naming, fresh)
    # Compiled, so that nothing of a fresh model is made but its moments.
    batch_stats = jax.jit(lambda: init_clip(model, jax.random.key(0)).image.batch_stats)()
    return ClipVariables(Variables(image, batch_stats), text, logit_scale)


def _map_sources(function, naming, variables):
    """A tree of `function(source, leaf)` per leaf of image parameters, text and logit scale."""
    return jax.tree.map(
        function,
        (naming.image, naming.text, naming.logit_scale),
        (variables.image.params, variables.text, variables.logit_scale),
        is_leaf=lambda node: isinstance(node, Source),
    )


def _matching_tokenizer(path, model):
    """The tokenizer of a file, which must have the ids of the model."""
    sizes = model.sizes
    tokenizer = read_tokenizer(path, sizes.context)
    if tokenizer.vocabulary > sizes.vocabulary or tokenizer.end_token != sizes.end_token:
        raise ValueError(
            f"{path} has {tokenizer.vocabulary} tokens and ends a text with {tokenizer.end_token}, "
            f"but the text tower has {sizes.vocabulary} and reads a text at {sizes.end_token}; put "
            "there the tokenizer.json that the model was published with."
        )
    return tokenizer
