"""One process at a time writes to a workdir; a second one is told at once who that is.

The claim is a lock that the kernel frees when a process ends, however it ends, on a file that says
for people who holds it. Only where a file system cannot lock, or its locks reach one machine only,
does the file itself decide; a line of it that cannot be checked is told, never overruled.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK_FILE = "writing.json"  # in the workdir, while a process writes there
# File systems whose locks may be of one machine only, though others write there too.
ONE_MACHINE_LOCKS = ("fuse", "9p", "virtiofs", "cifs", "smb3", "vboxsf")
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def claim(workdir: str | os.PathLike) -> Iterator[int]:
    """Keeps other processes out of a folder, which is made if there is none; frees it at the end.

    Nothing is left behind of a run that wrote nothing. Yields the descriptor of the lock, which a
    child that inherits it holds for as long as it lives, even after its parent.

    Raises:
      OSError: another process writes there, perhaps on another machine; or nothing can be written.
    """
    workdir = Path(workdir).absolute()
    made = _make_folders(workdir)
    try:
        with _held(workdir / LOCK_FILE) as descriptor:
            yield descriptor
    finally:
        with contextlib.suppress(OSError):  # not empty: a run is in it
            for folder in made:
                folder.rmdir()


def owner_has_ended(workdir: str | os.PathLike) -> bool:
    """Whether who claimed a folder was a process of this machine that is no longer there."""
    owner = _owner(Path(workdir) / LOCK_FILE)
    return owner.get("host") == socket.gethostname() and not _is_alive(owner.get("pid"))


def _make_folders(workdir: Path) -> list[Path]:
    """Makes a folder and those above it; returns the new ones, innermost first."""
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(workdir, error) from error
    return missing


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    descriptor = _take(path)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # gone with its folder: nothing is left to free
            path.unlink()  # while it is held, so it is nobody else's
        os.close(descriptor)


def _take(path: Path) -> int:
    """Opens and locks the file, and writes who holds it; returns its descriptor."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _not_writable(path.parent, error) from error
        try:
            locked = _lock(descriptor, path)
            if _is_there(descriptor, path):
                _check_last_owner(path, locked)
                owner = {"host": socket.gethostname(), "pid": os.getpid()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(owner).encode() + b"\n", 0)
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it in between: what is there now is another


def _lock(descriptor: int, path: Path) -> bool:
    """Locks an open file; False: its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(path, _owner(path), "wait for it, or choose another --workdir") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise _not_writable(path.parent, error) from error
        return False
    return True


def _is_there(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _check_last_owner(path: Path, locked: bool) -> None:
    """Raises if who is named in the file, though it holds no lock, may still write."""
    owner = _owner(path)
    here = owner.get("host") == socket.gethostname()
    if not owner or (locked and (here or not _locks_of_one_machine(path))):
        return
    if here and not (owner.get("pid") != os.getpid() and _is_alive(owner.get("pid"))):
        return
    raise _in_use(
        path,
        owner,
        f"this cannot be checked from here, so if that process has ended, remove {path}",
    )


def _owner(path: Path) -> dict[str, Any]:
    """Who holds the file, as it says itself; {} where it says nothing, or nothing whole."""
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_alive(pid: Any) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _locks_of_one_machine(path: Path) -> bool:
    """Whether the mount that a file lies on may keep its locks from other machines."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    resolved = path.resolve()
    over = [m for m in mounts if resolved.is_relative_to(m[1].replace("\\040", " "))]
    if not over:
        return False
    _, _, kind, options, *_ = max(over, key=lambda mount: len(mount[1]))
    if kind.startswith("nfs"):
        words = options.split(",")
        return "nolock" in words or "local_lock=all" in words or "local_lock=flock" in words
    return kind.startswith(ONE_MACHINE_LOCKS)


def _in_use(path: Path, owner: dict[str, Any], advice: str) -> OSError:
    who = "another process"
    if owner:
        who = f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}"
    return OSError(f"{who} is writing to workdir {path.parent}; {advice}.")


def _not_writable(workdir: Path, error: OSError) -> OSError:
    return OSError(
        f"nothing can be written to workdir {workdir} ({error.strerror or error}); choose another "
        "--workdir, or make room or give yourself the rights there."
    )
