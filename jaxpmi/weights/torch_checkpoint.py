"""Reads the tensors of a PyTorch state dict without PyTorch, and without running what it holds.

A checkpoint is a pickle, and a pickle may call anything. This reader knows few names:
`OrderedDict`, `argparse.Namespace`, PyTorch's two functions that rebuild tensors and parameters,
and the storage types; to all but the first it gives its own meaning: a description of where the
numbers lie, and for a namespace nothing at all. Whatever else a file names is refused. Both of
PyTorch's formats are read: zip archives, and the older sequence of pickles and raw storages.
"""

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO
from typing import Any
from typing import NamedTuple

import numpy as np

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


MOST_COPIES = 8  # of a storage, as tensors that share it are copied
# Under which names training scripts keep the weights among other things; averaged ones first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


class _Storage(NamedTuple):
    """A run of numbers in the file, which tensors are views of."""

    key: str
    dtype: str
    size: int  # elements


class _View(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unreadable(Exception):
    """Why a file is not read, as the part of a sentence that stands in brackets."""


def read_torch_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of `torch.save(model.state_dict(), path)`.

    Args:
      path: a file of either format, of tensors by name; also a training script's checkpoint, which
        has them under `state_dict`, `model`, `model_ema` or `state_dict_ema` among other things.
        The averaged ones (ema) count where there are both.

    Returns:
      A contiguous array per name, of the stored type (bfloat16 as that of ml_dtypes).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is something else, is damaged, or names anything that could be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; give a PyTorch state dict.")
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START
            file.seek(0)
            return (_read_zip if is_zip else _read_legacy)(file)
    # Bytes that are no pickle make `pickle` raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"{path} is not a whole PyTorch state dict that can be read safely ({error}); fetch it "
            "once more, or save one with torch.save(model.state_dict(), path)."
        ) from error


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, numbers, strings and `_View`s, and nothing else; notes all storages."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        # A new function or class every time: a pickle may set attributes of what it is given.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild_tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("argparse", "Namespace"):
            return type("Settings", (), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise _Unreadable(f"it names {module}.{name}")

    def persistent_load(self, pid):
        match pid:
            case ("storage", str(dtype), str(key), str(), int(size), *view):
                if dtype in _DTYPES.values() and size >= 0 and view in ([], [None]):
                    storage = _Storage(key, dtype, size)
                    if self.storages.setdefault(key, storage) != storage:
                        raise _Unreadable(f"the storage {key} is given two sizes")
                    return storage
        raise _Unreadable(f"it refers to {pid!r} as a storage")


def _rebuild_tensor(storage, offset, shape, strides, *_):
    """Describes a tensor, unless some of it lies outside its storage."""
    numbers = (offset, *shape, *strides)
    valid = isinstance(storage, _Storage) and len(shape) == len(strides)
    valid = valid and all(type(number) is int and number >= 0 for number in numbers)
    if valid and 0 not in shape:
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # No more elements than the storage has: an expanded tensor could be of any size.
        valid = last < storage.size and math.prod(shape) <= storage.size
    if not valid:
        raise _Unreadable(f"a tensor of shape {shape} and strides {strides} is not in its storage")
    return _View(storage, offset, tuple(shape), tuple(strides))


def _read_zip(file):
    """An archive: `data.pkl`, and every storage as an entry of its own."""
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Unreadable(f"it has {len(pickles)} entries data.pkl, not 1")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            _check_byte_order(_read_entry(archive, f"{folder}byteorder") == b"little")
        views = _load(io.BytesIO(_read_entry(archive, pickles[0])))

        def read_storage(storage: _Storage) -> bytes:
            name, size = f"{folder}data/{storage.key}", _num_bytes(storage)
            if name not in archive.namelist():
                raise _Unreadable(f"the entry {name} is missing")
            content = _read_entry(archive, name)
            if len(content) != size:
                raise _Unreadable(f"the entry {name} has {len(content)} bytes, not {size}")
            return content

        return _read_tensors(views, read_storage)


def _read_entry(archive, name):
    """An entry that is stored as it is, as PyTorch does: so it is no larger than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise _Unreadable(f"the entry {name} is packed")
    return archive.read(name)


def _read_legacy(file):
    """Five pickles (what it is, its version, its machine, tensors, keys), then the storages."""
    if _load(file) != _LEGACY_MAGIC or _load(file) != _LEGACY_PROTOCOL:
        raise _Unreadable("it starts with something else")
    _check_byte_order(_load(file)["little_endian"])
    unpickler = _checked_unpickler(file)
    views, keys = unpickler.load(), _load(file)
    needed = {view.storage.key for view in _checked(views).values()}
    contents = {}
    for key in keys:
        if key not in unpickler.storages:
            raise _Unreadable(f"no tensor is of its storage {key}")
        size = _num_bytes(unpickler.storages[key])
        (stored,) = struct.unpack("<q", file.read(8))
        # What an optimiser keeps is passed over, but has to be there.
        content = file.read(size)
        if stored != unpickler.storages[key].size or len(content) != size:
            raise _Unreadable(f"the storage {key} has not {size} bytes")
        if key in needed:
            contents[key] = content
    if needed - contents.keys():
        raise _Unreadable("a storage is missing")
    return _read_tensors(views, lambda storage: contents[storage.key])


def _load(file: IO[bytes]) -> Any:
    return _checked_unpickler(file).load()


def _checked_unpickler(file):
    """One for the pickle at which a file is, whose instructions have been looked at.

    A pickle may put an object at any place of its memo, and Python makes a list as long as that.
    """
    start = file.tell()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > count:
            raise _Unreadable(f"it keeps an object at {argument}, after {count} instructions")
    file.seek(start)
    return _Unpickler(file)


def _check_byte_order(little):
    if little is not True:
        raise _Unreadable("its numbers are not little-endian")


def _num_bytes(storage):
    return storage.size * np.dtype(storage.dtype).itemsize


def _checked(views):
    """The given object, if it is a dict of tensors by name, or the one that it holds as weights."""
    if not isinstance(views, dict):
        raise _Unreadable(f"it holds a {type(views).__name__}, not tensors by name")
    wrapped = next((views[name] for name in _WRAPPERS if isinstance(views.get(name), dict)), None)
    if wrapped is not None:
        views = wrapped
    for name, view in views.items():
        if not (isinstance(name, str) and isinstance(view, _View)):
            raise _Unreadable(f"{name!r} in it is no tensor")
    return views


def _read_tensors(views: Any, read_storage: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """Contiguous copies of the views; storages that several share are read for each."""
    views, tensors = _checked(views), {}
    stored = {view.storage.key: _num_bytes(view.storage) for view in views.values()}
    sizes = (math.prod(v.shape) * np.dtype(v.storage.dtype).itemsize for v in views.values())
    if sum(sizes) > MOST_COPIES * sum(stored.values()):
        raise _Unreadable("its tensors are far larger than what is stored of them")
    for name, view in views.items():
        storage = np.frombuffer(read_storage(view.storage), np.dtype(view.storage.dtype))
        strides = [stride * storage.itemsize for stride in view.strides]
        start = storage[view.offset :]
        tensors[name] = np.lib.stride_tricks.as_strided(start, view.shape, strides).copy()
    return tensors
