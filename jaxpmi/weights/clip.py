"""Pretrained CLIP weights from disk, as Hugging Face, open_clip and OpenAI name them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpmi.blocks.blockwise import StatisticsAxis
from jaxpmi.blocks.blockwise import Variables
from jaxpmi.models.clip import CLIP_MEAN
from jaxpmi.models.clip import CLIP_STD
from jaxpmi.models.clip import Clip
from jaxpmi.models.clip import ClipVariables
from jaxpmi.models.clip import clip
from jaxpmi.models.clip import init_clip
from jaxpmi.models.tokenizer import Tokenizer
from jaxpmi.models.tokenizer import read_merges
from jaxpmi.models.tokenizer import read_tokenizer
from jaxpmi.models.vit import Activation
from jaxpmi.runs.writers.console import tell
from jaxpmi.weights.clip_sizes import hugging_face_sizes
from jaxpmi.weights.clip_sizes import model_sizes
from jaxpmi.weights.clip_sizes import open_clip_sizes
from jaxpmi.weights.clip_sizes import openai_conventions
from jaxpmi.weights.clip_sizes import openai_sizes
from jaxpmi.weights.positions import resample_positions
from jaxpmi.weights.preprocessing import Preprocessing
from jaxpmi.weights.preprocessing import read_preprocessing
from jaxpmi.weights.stored_tensors import open_tensors
from jaxpmi.weights.stored_tensors import weights_file
from jaxpmi.weights.weight_names import HUGGING_FACE
from jaxpmi.weights.weight_names import OPENAI
from jaxpmi.weights.weight_names import Naming
from jaxpmi.weights.weight_names import Source
from jaxpmi.weights.weight_names import check_tensors


class PretrainedClip(NamedTuple):
    """A CLIP with its weights, its images and the tokenizer of its texts.

    Attributes:
      model: both towers.
      variables: theirs.
      tokenizer: of the text tower's token ids.
      mean: per channel, of pixels in [0, 1], as its folder says, or else `CLIP_MEAN`.
      std: the same, or else `CLIP_STD`.
    """

    model: Clip
    variables: ClipVariables
    tokenizer: Tokenizer
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


class _Kind(NamedTuple):
    """A kind of folder: its config, what its weights are called, and what is in them."""

    config: str
    weights: str
    read_sizes: Callable[[Path], dict[str, Any]]
    naming: Naming


# The first kind of which a folder has both files counts: many have the files of several libraries.
_KINDS = (
    _Kind("open_clip_config.json", "open_clip_model.safetensors", open_clip_sizes, OPENAI),
    _Kind("open_clip_config.json", "open_clip_pytorch_model.bin", open_clip_sizes, OPENAI),
    _Kind("config.json", "model.safetensors", hugging_face_sizes, HUGGING_FACE),
    _Kind("config.json", "pytorch_model.bin", hugging_face_sizes, HUGGING_FACE),
    _Kind("open_clip_config.json", "model.safetensors", open_clip_sizes, OPENAI),
)


def load_clip(
    path: str | Path,
    *,
    model: Clip | None = None,
    statistics_axis: StatisticsAxis = "channel",
    activation: Activation | None = None,
    image_size: int | None = None,
    say: Callable[[str], None] = tell,
) -> PretrainedClip:
    """Reads a CLIP with two transformers, its weights and its tokenizer; executes nothing of it.

    Args:
      path: with a `tokenizer.json`, or `vocab.json` and `merges.txt`, beside the weights, one of
        - a folder of a Hugging Face `CLIPModel`: `config.json`, `model.safetensors`;
        - a folder of open_clip: `open_clip_config.json`, and `open_clip_model.safetensors` or
          `model.safetensors`;
        - a file with OpenAI's names. Shapes do not tell everything: unless `model` does, heads have
          64 channels, as in OpenAI's models, and `activation` has to be given.
        Weights may be in shards, with their index, or in a PyTorch state dict. Those of a folder of
        the first kinds stand for that folder. A prefix that all names have is taken off.
      model: what the weights must be of, for instance `clip_vit_b16()`; None: whatever they are.
      statistics_axis: per what the image tower keeps moments, "token" as published; a given
        `model` has its own.
      activation: of the MLPs, for a file without a config: quick_gelu in OpenAI's models, gelu in
        most of open_clip's.
      image_size: pixels; the positions of a model of another size are interpolated. None: its own.
      say: is told in one line what was read, and what was changed.

    Returns:
      The model, its variables in f32 whatever the file's float type, the tokenizer, and the moments
      of pixels. Stored moments of layers are those of a fresh model: nobody publishes them.

    Raises:
      FileNotFoundError: the path or the tokenizer does not exist.
      ValueError: something else does not fit, of tensors with some of their names.
    """
    weights, kind = _find_weights(Path(path).expanduser())
    naming = kind.naming if kind else OPENAI
    with open_tensors(weights) as stored:
        if kind:
            sizes = kind.read_sizes(weights.with_name(kind.config))
        else:
            sizes = openai_sizes(weights, stored.shapes)
            if model is None:
                sizes |= openai_conventions(weights, sizes)
                sizes["activation"] = _given_activation(weights, activation)
        if image_size is not None and image_size != sizes["image_size"]:
            positions = naming.image["block01"]["positions"].names[0]
            side = image_size // sizes["patch_size"]
            stored = resample_positions(stored, positions, side, say)
            sizes["image_size"] = image_size
        kept = {"statistics_axis": statistics_axis}
        model = clip(**sizes, **kept) if model is None else _agreed(weights, sizes, model)
        fresh = jax.eval_shape(lambda: init_clip(model, jax.random.key(0)))
        _check_tensors(weights, naming, stored.shapes, fresh)
        tokenizer = _matching_tokenizer(weights.parent, model)
        variables = _read_variables(stored, naming, model, fresh)
    images = read_preprocessing(weights.parent) if kind else Preprocessing()
    mean, std = images.mean or CLIP_MEAN, images.std or CLIP_STD
    source = images.source if images.mean else "CLIP's own, nothing else is said"
    say(
        f"read {weights}: a CLIP for images of {model.sizes.image_size} pixels, "
        f"{model.sizes.activation}, mean {[round(x, 4) for x in mean]}, "
        f"std {[round(x, 4) for x in std]} ({source})"
    )
    return PretrainedClip(model, variables, tokenizer, mean, std)


def _find_weights(path):
    """The file of the weights, and the kind of its folder, or None for a lone file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder of Hugging Face or open_clip, or a "
            ".safetensors file."
        )
    folder = path if path.is_dir() else path.parent
    for kind in _KINDS:
        for name in (kind.weights, f"{kind.weights}.index.json"):
            if path in (folder, folder / name) and (folder / name).is_file():
                if (folder / kind.config).is_file():
                    return folder / name, kind
    if path.is_dir():
        pairs = "open_clip_config.json and open_clip_model.safetensors or config.json and "
        raise ValueError(f"{path} is no folder of a CLIP, which has {pairs}model.safetensors.")
    return weights_file(path), None


def _given_activation(path, activation):
    if activation is None:
        raise ValueError(
            f"{path} has no config beside it that tells its activation, and the wrong one makes "
            "features that are nearly right; give activation='quick_gelu' for OpenAI's models, "
            "'gelu' for most of open_clip's. (In a run: clip.activation.)"
        )
    return activation


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


def _read_variables(stored, naming, model, fresh):
    """Tensors one after the other, so that there is never a second copy of the whole."""

    def read(source, leaf):
        return jnp.asarray(source.read(leaf.shape, stored.get))

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


def _matching_tokenizer(folder, model):
    """The tokenizer of a folder, which must have the ids of the model."""
    sizes, path = model.sizes, folder / "tokenizer.json"
    merges = folder / "merges.txt"
    if not path.is_file() and (folder / "vocab.json").is_file() and merges.is_file():
        path = folder / "vocab.json"
        tokenizer = read_merges(path, merges, sizes.context)
    else:
        tokenizer = read_tokenizer(path, sizes.context)
    if tokenizer.vocabulary > sizes.vocabulary or tokenizer.end_token != sizes.end_token:
        raise ValueError(
            f"{path} has {tokenizer.vocabulary} tokens and ends a text with {tokenizer.end_token}, "
            f"but the text tower has {sizes.vocabulary} and reads a text at {sizes.end_token}; put "
            "there the tokenizer.json that the model was published with."
        )
    return tokenizer
