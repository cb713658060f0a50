"""Tensors in the files that other libraries write, by name: safetensors, shards, PyTorch's own.

Nothing that a file holds is executed, see `read_torch_checkpoint`.
"""

import contextlib
import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpmi.weights.torch_checkpoint import read_torch_checkpoint

# Files of a folder that hold its weights, the first that is there counts.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_INDEX = ".safetensors.index.json"


class StoredTensors(NamedTuple):
    """What a file, or shards together, hold.

    Attributes:
      path: of the file that was opened; of shards, their index.
      shapes: of every tensor, by its name without `prefix`.
      get: reads one tensor, of any type, by that name.
      prefix: what all names began with, such as "module."; "" where they have nothing in common.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], np.ndarray]
    prefix: str


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[StoredTensors]:
    """Opens a file of weights, the index of shards, or a folder that has either.

    Raises:
      FileNotFoundError: it does not exist, or shards are missing.
      ValueError: a folder without weights, or a file that is damaged or something else.
    """
    path = weights_file(path)
    with contextlib.ExitStack() as stack:
        if path.name.endswith(_INDEX):
            files = [stack.enter_context(_open_safetensors(shard)) for shard in _shards(path)]
        elif path.suffix == ".safetensors":
            files = [stack.enter_context(_open_safetensors(path))]
        else:
            files = [_TensorsInMemory(read_torch_checkpoint(path))]
        owners = {name: file for file in files for name in file.keys()}
        if not owners:
            raise ValueError(f"{path} holds no tensor; give a file of a network's weights.")
        prefix = common_prefix(owners)
        shapes = {
            name.removeprefix(prefix): tuple(file.get_slice(name).get_shape())
            for name, file in owners.items()
        }
        yield StoredTensors(
            path, shapes, lambda name: owners[prefix + name].get_tensor(prefix + name), prefix
        )


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file or folder of weights, by name and as they are stored.

    Args:
      path: a `.safetensors` file, the index of its shards, a PyTorch state dict (`.pth`, `.pt`,
        `.bin`), or a folder that has one of them under its usual name.

    Returns:
      Arrays by name; a prefix that all names have, such as `module.`, is taken off. bfloat16 is
      that of ml_dtypes.

    Raises:
      FileNotFoundError: it does not exist.
      ValueError: it is damaged, something else, or names anything that could be run.
    """
    with open_tensors(Path(path).expanduser()) as stored:
        return {name: stored.get(name) for name in stored.shapes}


def weights_file(path: Path) -> Path:
    """The file of a folder's weights, or the path itself where it is a file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a file of weights (.safetensors, .pth), or a folder of "
            "Hugging Face, timm or open_clip."
        )
    if path.is_file():
        return path
    found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{path} holds none of {', '.join(WEIGHT_FILES[:3])}; give a folder that has its "
            "weights, or the file of weights itself."
        )
    return found


def common_prefix(names: Iterable[str]) -> str:
    """What all names begin with, up to a dot, such as "module." or "model.backbone.".

    >>> common_prefix(["module.conv.weight", "module.fc.bias"])
    'module.'
    """
    first, *others = (name.split(".")[:-1] for name in names)
    length = len(first)
    for other in others:
        length = next(
            (i for i in range(min(length, len(other))) if other[i] != first[i]),
            min(length, len(other)),
        )
    # A number is a layer's own, as is the last word before "weight" where there are no others.
    words = first[:length] if others else []
    words = words[: next((i for i, word in enumerate(words) if word.isdecimal()), len(words))]
    return "".join(f"{word}." for word in words)


def _shards(index):
    """The files that an index names, which lie beside it."""
    try:
        files = sorted(set(json.loads(index.read_text("utf-8-sig"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no index of safetensors files ({type(error).__name__}); fetch it again."
        ) from error
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise ValueError(f"{index} names files outside of its folder; fetch it once more.")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {missing[0]}, which is not beside it; fetch all {len(files)} shards."
        )
    return [index.parent / file for file in files]


def _open_safetensors(path):
    """The file, opened for reading single tensors; it must be whole."""
    import safetensors

    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); fetch it once more."
        ) from error


class _TensorsInMemory(dict):
    """Arrays by name, with the methods of an open safetensors file that are used here."""

    def get_tensor(self, name):
        return self[name]

    def get_slice(self, name):
        return _Slice(self[name])


class _Slice(NamedTuple):
    tensor: np.ndarray

    def get_shape(self):
        return self.tensor.shape
