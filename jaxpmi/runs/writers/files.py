"""Result files: each is either complete or as it was before."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from typing import Any

import numpy as np


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file to write whose content takes the place of `path` only if nothing fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes nested dicts and lists of numbers, arrays and text; NaN and infinity become null."""
    text = json.dumps(to_plain(obj), indent=1, allow_nan=False) + "\n"
    with replace_file(path) as file:
        file.write(text.encode())


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_json` wrote of a dict, or raises a ValueError that names the file."""
    try:
        obj = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it, or move its folder away to start anew."
        ) from error
    if not isinstance(obj, dict):
        raise ValueError(
            f"{path} holds a {type(obj).__name__} instead of named fields; restore it, or move its "
            "folder away to start anew."
        )
    return obj


def write_samples_npz(path: str | os.PathLike, samples: np.ndarray, y: np.ndarray) -> None:
    """Writes synthetic samples and their intended labels [N], the latter as `y`.

    Images u8[N, H, W, C] are written as `x`, patch embeddings f32[N, h, w, D] as
    `patch_embeddings`.
    """
    samples, y = np.asarray(samples), np.asarray(y)
    name = {"uint8": "x", "float32": "patch_embeddings"}.get(samples.dtype.name)
    if name is None or samples.ndim != 4 or y.shape != samples.shape[:1]:
        raise ValueError(
            f"got samples {samples.dtype}{list(samples.shape)} and labels {list(y.shape)}; "
            "expected uint8[N, H, W, C] or float32[N, h, w, D], and [N]."
        )
    with replace_file(path) as file:
        np.savez_compressed(file, **{name: samples}, y=y)


class MetricsWriter:
    """Appends one JSON line per `write` to a file; a resumed run leaves no line twice."""

    def __init__(self, path: str | os.PathLike, resume_from: int = 0):
        """Opens the file for steps from `resume_from` on; lines of those steps are dropped first.

        So is a last line torn by a kill in the middle of writing it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            old = path.read_bytes()
            kept = b"".join(_lines_before(old, resume_from))
            if kept != old:
                with replace_file(path) as file:
                    file.write(kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes `{"step": step, **scalars}`; names are paths such as `task03/train/loss`."""
        if "step" in scalars:
            raise ValueError("a metric cannot be named 'step'; that is the line's own number.")
        line = json.dumps(to_plain({"step": int(step), **scalars}), allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def to_plain(obj: Any) -> Any:
    """Turns numpy and JAX values into what JSON has; NaN and infinity become None."""
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, Mapping):
        return {str(key): to_plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_plain(value) for value in obj]
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    return to_plain(np.asarray(obj, dtype=_wide(obj)).tolist())


def _wide(obj: Any) -> Any:
    """The dtype to write an array in: bfloat16 and its kin are no numbers to JSON."""
    dtype = np.asarray(obj).dtype
    if dtype.kind in "biufU":
        return dtype
    if dtype.kind == "V":  # bfloat16
        return np.float32
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON; give numbers or text.")


def _lines_before(content: bytes, step: int) -> Iterator[bytes]:
    for line in content.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] < step:
                yield line
        except (ValueError, KeyError, TypeError):
            continue  # torn or foreign: not ours to resume from
