"""What arrays of `network.npz` were called in earlier versions of the format."""

import re
from typing import Any

import numpy as np

# Names of version 2, before the built-in networks were Flax modules: a pattern, and what it became.
_RENAMED = (
    (r"(params/block\d\d)/(expand|depthwise|project)/conv$", r"\1/\2/kernel"),
    (r"(params/block\d\d)/(expand|depthwise|project)/bn/", r"\1/\2_bn/"),
    (r"(batch_stats/block\d\d)/(expand|depthwise|project)/", r"\1/\2_bn/"),
    (r"(params/block\d\d/conv\d?)$", r"\1/kernel"),
    (r"/attention/in/", "/attention/qkv/"),
    (r"/projection$", "/projection/kernel"),
)
# The same of one kind of network alone, by how its name begins.
_RENAMED_OF = {
    "vit_small": ((r"(params/block00)/kernel$", r"\1/linear/kernel"),),
    "plain_cnn": (
        (r"(params/block0[01])/(kernel|bias)$", r"\1/conv/\2"),
        (r"(params/block02)/(kernel|bias)$", r"\1/dense/\2"),
        (r"(batch_stats/block\d\d)/(mean|var)$", r"\1/relu/\2"),
    ),
}


def from_version_1(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, np.ndarray]:
    """As version 2 names them: the head had no bias, or had it as its last row."""
    arrays = dict(arrays)
    head = arrays.pop("head", None)
    if head is None:
        return arrays
    if head.ndim and isinstance(about.get("model"), dict) and about["model"].get("weights"):
        return {**arrays, "head/kernel": head[:-1], "head/bias": head[-1]}
    return {**arrays, "head/kernel": head}


def from_version_2(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, np.ndarray]:
    """As version 3 names them, of a built-in network; other names stay as they are."""
    model = about.get("model")
    name = str(model.get("name")) if isinstance(model, dict) else ""
    own = (rules for kind, rules in _RENAMED_OF.items() if name.startswith(kind))
    rules = (*_RENAMED, *next(own, ()))
    return {_renamed(key, rules): _with_depth(key, array) for key, array in arrays.items()}


def _renamed(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _with_depth(name, array):
    """Depthwise kernels f32[size, size, C] are f32[size, size, 1, C] now, as other convolutions."""
    return array[:, :, None] if name.endswith("/depthwise/conv") and array.ndim == 3 else array
