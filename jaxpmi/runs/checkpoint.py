"""Orbax checkpoints of a whole run: atomic, written in the background, checked when read."""

import contextlib
import errno
import functools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

CHECKPOINT_VERSION = 2  # raised whenever the meaning of the saved state changes
MAX_TO_KEEP = 2
# Orbax and tensorstore read patterns, escapes and addresses of stores out of other names.
PLAIN_PATH = re.compile(r"[\w/ .,+=@~-]+")
ADVICE = "move this folder away to start the run anew, or choose another workdir"


class Checkpointer:
    """Saves and restores (state, progress) under numbered steps of one folder.

    A save is either complete or invisible, so the process may be killed at any moment. The last
    two are kept. What cannot be read is reported, never deleted.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens the folder, which is created if it does not exist."""
        import orbax.checkpoint as ocp

        _quiet_orbax()
        self.directory = Path(directory).absolute()
        self._path, self._remove_link = _plain_path(self.directory)
        with _write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            options = ocp.CheckpointManagerOptions(max_to_keep=MAX_TO_KEEP)
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            }
            self._manager = ocp.CheckpointManager(
                self._path, options=options, item_handlers=handlers
            )

    @property
    def latest_step(self) -> int | None:
        """The newest complete step; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts to save; returns as soon as `state` is copied and may be donated.

        Args:
          step: larger than every step saved before.
          state: any pytree of arrays.
          progress: what JSON can hold; restored as it is.
        """
        import orbax.checkpoint as ocp

        latest = self.latest_step
        if latest is not None and step <= latest:
            raise ValueError(f"checkpoint step {step} must be larger than the last, {latest}.")
        self._check_free_space(state)
        document = {"version": CHECKPOINT_VERSION, "progress": progress}
        with _write_errors(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.tree.map(_without_empty, state)),
                    progress=ocp.args.JsonSave(document),
                ),
            )

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest (state, progress), or None if nothing was saved yet.

        Args:
          abstract_state: a state of the same structure, whose values do not matter: it says the
            shapes, dtypes and shardings wanted. numpy leaves come back as numpy.
        """
        import orbax.checkpoint as ocp

        self.wait()
        step = self.latest_step
        if step is None:
            return None
        folder = self.directory / str(step)
        document = _read_progress(folder)
        filled = jax.tree.map(_without_empty, abstract_state)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, filled)
        with _read_errors(folder):
            _read_every_byte(self._path / str(step) / "state")
            saved = self._manager.item_metadata(step).state.tree
        wanted = ocp.tree.to_flat_dict(ocp.tree.serialize_tree(abstract, True))
        _check_structure(folder, wanted, ocp.tree.to_flat_dict(saved))
        with _read_errors(folder):
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=arguments).state
        return jax.tree.map(_with_empty, abstract_state, state), document["progress"]

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what went wrong with it."""
        with _write_errors(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the background threads."""
        with _write_errors(self.directory):
            self._manager.close()
            self._remove_link()

    def _check_free_space(self, state: Any) -> None:
        needed = sum(np.dtype(x.dtype).itemsize * x.size for x in _plain_arrays(state))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(
                f"a checkpoint of {needed / 1e6:.1f} MB does not fit into the {free / 1e6:.1f} MB "
                f"left for {self.directory}; free some space, then the same command resumes."
            )


def _plain_path(directory: Path) -> tuple[Path, Callable[[], None]]:
    """A path to a folder that has no letter with a meaning of its own, and what undoes it.

    Raises:
      OSError: such a path is neither there nor can be made.
    """
    if PLAIN_PATH.fullmatch(str(directory)):
        return directory, lambda: None
    try:
        home = tempfile.TemporaryDirectory(prefix="jaxpmi-", ignore_cleanup_errors=True)
        link = Path(home.name).absolute() / "checkpoints"
        if not PLAIN_PATH.fullmatch(str(link)):
            home.cleanup()
            raise OSError(f"{home.name!a} is no better")
        link.symlink_to(directory, target_is_directory=True)
    except OSError as error:
        raise OSError(
            f"checkpoints cannot be written under the name {str(directory)!a}, nor through a link "
            f"among the temporary files ({error.strerror or error}); choose a --workdir of "
            "letters, digits, '-' and '_', or set TMPDIR to such a folder."
        ) from error
    return link, home.cleanup


def _without_empty(x: Any) -> Any:
    """Stands in for an array without elements, which Orbax refuses: its shape tells the shape."""
    if 0 not in np.shape(x):
        return x
    return np.zeros([n + 1 for n in np.shape(x)], x.dtype)


def _with_empty(wanted: Any, found: Any) -> Any:
    """Undoes `_without_empty` on the restored array of one that was `wanted`."""
    if 0 not in np.shape(wanted):
        return found
    empty = np.zeros(wanted.shape, wanted.dtype)
    sharding = getattr(wanted, "sharding", None)
    return empty if sharding is None else jax.device_put(empty, sharding)


def _plain_arrays(state: Any) -> list[Any]:
    """Lists the arrays of a state, typed keys as their numbers."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    arrays = (x if hasattr(x, "dtype") else np.asarray(x) for x in jax.tree.leaves(state))
    return [jax.random.key_data(x) if is_key(x) else x for x in arrays]


@contextlib.contextmanager
def _write_errors(directory: Path):
    """Turns whatever a failed write raises into one OSError sentence."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if not code and isinstance(error, ValueError):
            raise
        reason = os.strerror(int(code[1])) if code else error.strerror or error
        raise OSError(
            f"no checkpoint can be written to {directory} ({reason}); make room for it or choose "
            "another workdir, older checkpoints are untouched."
        ) from error


@contextlib.contextmanager
def _read_errors(folder: Path):
    """Turns whatever a damaged checkpoint raises into one ValueError sentence."""
    try:
        yield
    except Exception as error:  # Orbax raises nearly anything, of metadata that are damaged
        text = (str(error).splitlines() or [""])[0]
        reason = re.split(r" \[|: Error ", text)[0][:160]
        raise ValueError(
            f"checkpoint {folder} is damaged ({type(error).__name__}: {reason}); remove it to "
            f"resume from the one before it, if any, or {ADVICE}."
        ) from error


def _read_progress(folder: Path) -> dict[str, Any]:
    with _read_errors(folder):
        document = json.loads((folder / "progress" / "metadata").read_bytes())
        version, _ = document["version"], document["progress"]
    if version != CHECKPOINT_VERSION:
        raise ValueError(
            f"checkpoint {folder} has format version {version} but this jaxpmi reads version "
            f"{CHECKPOINT_VERSION}; resume with the jaxpmi that wrote it, or {ADVICE}."
        )
    return document


def _read_every_byte(state_folder: Path) -> None:
    """Reads all of a saved state once: Orbax itself reports damage with stray threads and text."""
    import tensorstore as ts

    for file in (state_folder / "_METADATA", *state_folder.glob("array_metadatas/*")):
        json.loads(file.read_bytes())
    with contextlib.suppress(FileNotFoundError):  # absent where no array has a sharding
        json.loads((state_folder / "_sharding").read_bytes())
    store = ts.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state_folder}/"}}
    ).result()
    names = store.list().result()
    if not names:
        raise ValueError("no array was found")
    for name in names:
        if not store.read(name).result().value:  # so does a missing file read
            raise ValueError(f"'{name.decode()}' is missing")


def _check_structure(folder: Path, wanted: dict, saved: dict) -> None:
    """Raises if the arrays on disk are not those wanted, naming the first that differs."""

    def facts(leaf):
        return None if leaf is None else (tuple(leaf.shape), str(np.dtype(leaf.dtype)))

    for path in {**wanted, **saved}:
        found, expected = facts(saved.get(path)), facts(wanted.get(path))
        if found != expected:
            raise ValueError(
                f"checkpoint {folder} holds {found or 'nothing'} for '{'.'.join(map(str, path))}' "
                f"but this run needs {expected or 'nothing'}; it is of another network, data set "
                f"or version, so {ADVICE}."
            )


@functools.cache
def _quiet_orbax() -> None:
    """Keeps Orbax's own log lines off the console; what fails is raised and told once."""

    def keep(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "orbax" not in record.getMessage()

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(keep)
