"""The sizes of a CLIP, as the files of other libraries tell them.

Sizes are the keyword arguments of `clip`. The tables say which field of a config is which size, and
what a library takes where a field is absent: configs are often saved without what is usual.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from jaxpmi.models.clip import Clip
from jaxpmi.weights.preprocessing import read_json_object

# Sizes of ours: the field of `config.json`, and the default of the library transformers.
HUGGING_FACE_SIZES = {
    "image_size": ("vision_config.image_size", 224),
    "patch_size": ("vision_config.patch_size", 32),
    "width": ("vision_config.hidden_size", 768),
    "depth": ("vision_config.num_hidden_layers", 12),
    "num_heads": ("vision_config.num_attention_heads", 12),
    "features": ("projection_dim", 512),
    "vocabulary": ("text_config.vocab_size", 49408),
    "context": ("text_config.max_position_embeddings", 77),
    "text_width": ("text_config.hidden_size", 512),
    "text_depth": ("text_config.num_hidden_layers", 12),
    "text_num_heads": ("text_config.num_attention_heads", 8),
    "end_token": ("text_config.eos_token_id", 49407),
    "mlp_width": ("vision_config.intermediate_size", 3072),
    "text_mlp_width": ("text_config.intermediate_size", 2048),
}
# The end token in configs from before transformers 4.31, whatever it really was. Models saved with
# it read a text at its highest id, and so does transformers to this day where it finds a 2.
OLD_END_TOKEN = 2
HUGGING_FACE_FIXED = {
    "vision_config.num_channels": 3,
    "vision_config.layer_norm_eps": 1e-5,
    "text_config.layer_norm_eps": 1e-5,
}

# The same of `open_clip_config.json`; there, the image tower is given the width of a head.
OPEN_CLIP_SIZES = {
    "image_size": ("model_cfg.vision_cfg.image_size", 224),
    "patch_size": ("model_cfg.vision_cfg.patch_size", 16),
    "width": ("model_cfg.vision_cfg.width", 768),
    "depth": ("model_cfg.vision_cfg.layers", 12),
    "features": ("model_cfg.embed_dim", None),
    "vocabulary": ("model_cfg.text_cfg.vocab_size", 49408),
    "context": ("model_cfg.text_cfg.context_length", 77),
    "text_width": ("model_cfg.text_cfg.width", 512),
    "text_depth": ("model_cfg.text_cfg.layers", 12),
    "text_num_heads": ("model_cfg.text_cfg.heads", 8),
}
# Widths of its MLPs, as multiples of the tower's.
OPEN_CLIP_MLPS = {
    "mlp_width": ("model_cfg.vision_cfg.mlp_ratio", "width"),
    "text_mlp_width": ("model_cfg.text_cfg.mlp_ratio", "text_width"),
}
OPEN_CLIP_HEAD_WIDTH = ("model_cfg.vision_cfg.head_width", 64)
# What would change the features but not the names and shapes of the weights.
OPEN_CLIP_FIXED = {
    "model_cfg.vision_cfg.pool_type": "tok",
    "model_cfg.vision_cfg.act_kwargs": None,
    "model_cfg.vision_cfg.norm_kwargs": None,
    "model_cfg.text_cfg.pool_type": "argmax",
    "model_cfg.text_cfg.no_causal_mask": False,
    "model_cfg.text_cfg.act_kwargs": None,
    "model_cfg.text_cfg.norm_kwargs": None,
}

# Which sizes the shapes of OpenAI's tensors are.
OPENAI_SHAPES = {
    "visual.conv1.weight": ("width", "channels", "patch_size", "patch_size"),
    "visual.positional_embedding": ("positions", "width"),
    "token_embedding.weight": ("vocabulary", "text_width"),
    "positional_embedding": ("context", "text_width"),
    "text_projection": ("text_width", "features"),
}
OPENAI_MLPS = {
    "mlp_width": "visual.transformer.resblocks.0.mlp.c_fc.bias",
    "text_mlp_width": "transformer.resblocks.0.mlp.c_fc.bias",
}
OPENAI_BLOCKS = {"depth": "visual.transformer.resblocks.", "text_depth": "transformer.resblocks."}
OPENAI_HEAD_WIDTH = 64  # of both towers


@dataclasses.dataclass(frozen=True)
class _Config:
    """A JSON file, whose fields are named with dots."""

    path: Path
    values: dict[str, Any]

    def get(self, field, default):
        """The field's value; the default where it is absent or null."""
        value = self.values
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    def sizes(self, table):
        """The sizes of a table, each of which must be a whole number."""
        sizes = {size: self.get(*field) for size, field in table.items()}
        for size, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{self.path} has {table[size][0]} = {value!r}, but a whole number of at least "
                    "1 is expected."
                )
        return sizes

    def require(self, field, default, *supported):
        """The field's value, which must be among the supported ones."""
        value = self.get(field, default)
        if value not in supported:
            raise ValueError(
                f"{self.path} has {field} = {value!r}, but only "
                f"{' or '.join(map(repr, supported))} is supported."
            )
        return value


def hugging_face_sizes(path: Path) -> dict[str, Any]:
    """The sizes in a `config.json` of a `CLIPModel`; an error names a field that we cannot follow.

    Fields without influence on the outputs (dropout, initialisation) are not read.
    """
    config = _read_config(path)
    for section in ("vision_config", "text_config"):  # old files have a second one, which counts
        config.values[section] = config.get(section, {}) | config.get(f"{section}_dict", {})
    config.require("model_type", None, "clip")
    for field, value in HUGGING_FACE_FIXED.items():
        config.require(field, value, value)
    sizes = config.sizes(HUGGING_FACE_SIZES)
    activations = ("quick_gelu", "gelu")
    activation = config.require("vision_config.hidden_act", "quick_gelu", *activations)
    config.require("text_config.hidden_act", "quick_gelu", activation)
    if sizes["end_token"] == OLD_END_TOKEN:
        sizes["end_token"] = sizes["vocabulary"] - 1
    if sizes["end_token"] >= sizes["vocabulary"]:
        raise ValueError(
            f"{path} has text_config.eos_token_id = {sizes['end_token']}, but a vocabulary of "
            f"{sizes['vocabulary']}; correct it to the id of the end token in tokenizer.json."
        )
    return {**sizes, "activation": activation}


def open_clip_sizes(path: Path) -> dict[str, Any]:
    """The sizes in an `open_clip_config.json`; an error names a field that we cannot follow."""
    config = _read_config(path)
    for field, value in OPEN_CLIP_FIXED.items():
        config.require(field, value, value)
    sizes = config.sizes(OPEN_CLIP_SIZES)
    head_width = config.sizes({"head_width": OPEN_CLIP_HEAD_WIDTH})["head_width"]
    sizes["num_heads"] = sizes["width"] // head_width
    sizes["end_token"] = sizes["vocabulary"] - 1
    for size, (field, width) in OPEN_CLIP_MLPS.items():
        ratio = config.get(field, 4.0)
        if not isinstance(ratio, int | float) or not 0 < ratio < 100:
            raise ValueError(f"{path} has {field} = {ratio!r}, but a number above 0 is expected.")
        sizes[size] = int(sizes[width] * ratio)
    quick = config.require("model_cfg.quick_gelu", False, False, True)
    return {**sizes, "activation": "quick_gelu" if quick else "gelu"}


def openai_sizes(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The sizes that the shapes of OpenAI's tensors tell: all but those of `openai_conventions`.

    Args:
      path: the file of the weights, for errors.
      shapes: of all tensors, by name.
    """
    told = [name for name, axes in OPENAI_SHAPES.items() if len(shapes.get(name, ())) == len(axes)]
    sizes = {}
    for name in told:
        sizes.update(zip(OPENAI_SHAPES[name], shapes[name], strict=True))
    for size, prefix in OPENAI_BLOCKS.items():
        blocks = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in shapes)
        sizes[size] = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    absent = [name for name in OPENAI_SHAPES if name not in told]
    absent += [f"{prefix}0" for size, prefix in OPENAI_BLOCKS.items() if not sizes[size]]
    if absent:
        raise ValueError(
            f"{path} lacks {', '.join(absent)}, in which OpenAI's weights show their sizes; a "
            "single file must have the names of OpenAI or open_clip, and of a Hugging Face model "
            "the folder is needed."
        )
    grid = round((sizes.pop("positions") - 1) ** 0.5)
    del sizes["channels"]
    sizes |= {size: shapes[name][0] for size, name in OPENAI_MLPS.items() if shapes.get(name)}
    return {**sizes, "image_size": grid * sizes["patch_size"]}


def openai_conventions(path: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """What shapes do not tell, as it is in all of OpenAI's models; `sizes` are what shapes tell."""
    for size in ("width", "text_width"):
        if sizes[size] % OPENAI_HEAD_WIDTH:
            raise ValueError(
                f"{path} has {size} {sizes[size]}, which does not divide into heads of "
                f"{OPENAI_HEAD_WIDTH} as in OpenAI's models; say what its model is."
            )
    return {
        "num_heads": sizes["width"] // OPENAI_HEAD_WIDTH,
        "text_num_heads": sizes["text_width"] // OPENAI_HEAD_WIDTH,
        "end_token": sizes["vocabulary"] - 1,
    }


def model_sizes(model: Clip) -> dict[str, Any]:
    """The sizes that a model was made with."""
    sizes = dataclasses.asdict(model.sizes)
    return {name: sizes[name] for name in sizes if name != "statistics_axis"}


def _read_config(path):
    return _Config(path, read_json_object(path))
