"""One process at a time in a workdir; nobody is kept out by one that has ended."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpmi.runs import claim as claims
from jaxpmi.runs.claim import LOCK_FILE
from jaxpmi.runs.claim import claim

ROOT = Path(__file__).parents[2]
HOLD = "import sys; from jaxpmi.runs.claim import claim\nwith claim(sys.argv[1]): print(); input()"
HERE = socket.gethostname()


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to `tmp_path / "run"` until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.readline()  # only now it holds the folder
        yield process
        process.kill()


def left_behind(folder, host, pid):
    """The lock of a process that was killed, or of one that cannot be seen from here."""
    folder.mkdir()
    (folder / LOCK_FILE).write_text(json.dumps({"host": host, "pid": pid}))


def no_locks(descriptor, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_the_second_is_told_who_is_there_and_a_killed_one_stops_nobody(tmp_path, holder):
    with pytest.raises(OSError) as caught, claim(tmp_path / "run"):
        pass
    assert str(caught.value) == (
        f"process {holder.pid} on host {HERE} is writing to workdir {tmp_path / 'run'}; wait for "
        "it, or choose another --workdir."
    )
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with claim(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_the_same_folder_by_another_name_is_the_same(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(OSError, match=f"process {holder.pid} on host"), claim(tmp_path / "link"):
        pass


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path):
    with claim(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError), claim(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
        raise ValueError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]
    with claim(tmp_path / "a"), pytest.raises(OSError, match=f"process {os.getpid()} on host"):
        with claim(tmp_path / "a"):  # a notebook's other thread
            pass


def test_a_folder_removed_meanwhile_does_no_harm(tmp_path):
    with claim(tmp_path / "run"):
        (tmp_path / "run" / LOCK_FILE).unlink()
        (tmp_path / "run").rmdir()


@pytest.mark.parametrize("content", ["", "{", "[3]", '{"pid": "x"}', "\xff"])
def test_a_torn_lock_of_nobody_stops_nobody(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with claim(tmp_path):
        pass


def test_another_host_is_believed_dead_where_locks_reach_it(tmp_path, monkeypatch):
    left_behind(tmp_path / "run", "elsewhere", 17)
    monkeypatch.setattr(claims, "_locks_of_one_machine", lambda path: False)
    with claim(tmp_path / "run"):
        pass


@pytest.mark.parametrize("locks", ["none", "of one machine"])
def test_another_host_that_cannot_be_checked_is_told_with_what_to_do(tmp_path, monkeypatch, locks):
    left_behind(tmp_path / "run", "elsewhere", 17)
    if locks == "none":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    else:
        monkeypatch.setattr(claims, "_locks_of_one_machine", lambda path: True)
    with pytest.raises(OSError) as caught, claim(tmp_path / "run"):
        pass
    file = tmp_path / "run" / LOCK_FILE
    assert str(caught.value).startswith("process 17 on host elsewhere is writing to workdir")
    assert str(caught.value).endswith(f"so if that process has ended, remove {file}.")
    file.unlink()  # what the sentence advises
    with claim(tmp_path / "run"):
        pass


def test_without_locks_this_host_is_asked_for_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    left_behind(tmp_path / "run", HERE, os.getppid())
    with pytest.raises(OSError, match=f"process {os.getppid()} on host"), claim(tmp_path / "run"):
        pass
    (tmp_path / "run" / LOCK_FILE).write_text(json.dumps({"host": HERE, "pid": 2**22 + 1}))
    with claim(tmp_path / "run"):
        pass


MOUNTS = """/dev/sda / ext4 rw 0 0
nas:/a /nas nfs4 rw,vers=4.2 0 0
nas:/b /nas/local nfs rw,nolock 0 0
drive /content/my\\040drive fuse.drive rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/runs/a", False),
        ("/nas/a", False),
        ("/nas/local/a", True),
        ("/content/my drive/a", True),
        ("/content/other/a", False),
    ],
)
def test_whose_locks_reach_one_machine_only(monkeypatch, path, expected):
    monkeypatch.setattr(Path, "read_text", lambda self: MOUNTS)
    assert claims._locks_of_one_machine(Path(path)) == expected


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="nothing can be written to workdir .*; choose another"):
        with claim(tmp_path / "file" / "run"):
            pass

    def read_only(*unused):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match="nothing can be written .*Read-only file system"):
        with claim(tmp_path):
            pass
