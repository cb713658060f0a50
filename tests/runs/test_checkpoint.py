"""Checkpoints: bit-exact round trips, damage told in one sentence, nothing lost."""

import errno
import json
import os
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxpmi.runs import checkpoint
from jaxpmi.runs.checkpoint import Checkpointer


class Pair(NamedTuple):
    a: Any
    b: Any


@flax.struct.dataclass
class State:
    params: dict
    pair: Pair
    several: tuple
    pixels: np.ndarray
    opt_state: Any
    key: jax.Array
    name: str = flax.struct.field(pytree_node=False, default="static")


def make_state(seed=0, size=5):
    random = np.random.default_rng(seed)
    params = {"w": jnp.asarray(random.normal(size=(3, size)), jnp.float32), "empty": {}}
    return State(
        params=params,
        pair=Pair(jnp.asarray([jnp.nan, -0.0, jnp.inf, 1e-42]), None),
        several=(
            jnp.int32(seed),
            jnp.zeros((0, 3)),
            np.zeros((2, 0), np.int16),
            (),
            None,
            jnp.asarray([True, False]),
            jnp.bfloat16(1.5),
        ),
        pixels=random.integers(0, 256, (40, 10, 10, 1), np.uint8),
        opt_state=optax.adam(1e-3).init(params),
        key=jax.random.fold_in(jax.random.key(1), seed),
    )


def as_bytes(tree):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return [np.asarray(plain(x)).tobytes() for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]
    assert as_bytes(a) == as_bytes(b)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints 1 and 2."""
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpointer.save(step, make_state(step), {"task": step})
    checkpointer.close()
    return tmp_path / "checkpoints"


def restore(folder, state=None):
    checkpointer = Checkpointer(folder)
    try:
        return checkpointer.restore(make_state() if state is None else state)
    finally:
        checkpointer.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_round_trip_is_bit_exact(tmp_path, abstract):
    checkpointer = Checkpointer(tmp_path / "new" / "checkpoints")
    assert checkpointer.restore(make_state()) is None and checkpointer.latest_step is None
    state, progress = make_state(3), {"task": 1, "seconds": 0.1, "names": ["a"], "none": None}
    checkpointer.save(7, state, progress)
    checkpointer.wait()
    target = make_state(0)
    if abstract:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
    restored, restored_progress = checkpointer.restore(target)
    assert_same(restored, state)
    assert restored_progress == progress
    assert isinstance(restored.pair, Pair) and restored.name == "static"
    checkpointer.close()


def test_state_may_be_donated_and_changed_right_after_save(tmp_path):
    spoil = jax.jit(lambda x: jax.tree.map(lambda v: v * 0 - 1, x), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path)
    for step in range(3):
        x, n = {"w": jnp.full((500, 500), float(step))}, np.full(1000, step, np.uint8)
        checkpointer.save(step, {"x": x, "n": n}, {})
        jax.block_until_ready(spoil(x))
        n[:] = 255
        checkpointer.wait()
        restored, _ = checkpointer.restore({"x": x, "n": n})
        assert np.all(np.asarray(restored["x"]["w"]) == step) and np.all(restored["n"] == step)
    checkpointer.close()


def test_last_two_are_kept_and_the_newest_is_restored(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 5, 9):
        checkpointer.save(step, make_state(step), {"task": step})
    checkpointer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]
    state, progress = restore(tmp_path)
    assert progress == {"task": 9}
    assert_same(state, make_state(9))


def test_sharded_state_comes_back_sharded(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state = {
        "x": jax.device_put(jnp.arange(16.0), sharding),
        "y": jax.device_put(jnp.arange(3.0), NamedSharding(mesh, PartitionSpec())),
    }
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {})
    restored, _ = checkpointer.restore(state)
    checkpointer.close()
    assert restored["x"].sharding == sharding and len(restored["y"].sharding.device_set) == 8
    assert_same(restored, state)


@pytest.mark.parametrize("step", [1, 2])
def test_steps_must_increase(saved, step):
    checkpointer = Checkpointer(saved)
    with pytest.raises(ValueError, match=f"step {step} must be larger than the last, 2"):
        checkpointer.save(step, make_state(), {})
    checkpointer.close()


def test_leftovers_of_a_killed_save_do_no_harm(saved):
    for name in ("3", "2"):
        leftover = saved / f"{name}.orbax-checkpoint-tmp"
        shutil.copytree(saved / "2" / "state", leftover / "state.orbax-checkpoint-tmp")
    assert restore(saved)[1] == {"task": 2}
    checkpointer = Checkpointer(saved)
    checkpointer.save(3, make_state(3), {"task": 3})
    checkpointer.close()
    assert restore(saved)[1] == {"task": 3}


FILES = ("state/_METADATA", "state/manifest.ocdbt", "state/d/*", "state/ocdbt.process_0/d/*")
DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", [*FILES, "progress/metadata"])
def test_damage_is_told_and_nothing_deleted(saved, pattern, damage, capfd):
    folder = saved / "2"
    files = list(folder.glob(pattern))
    assert files
    for file in files:
        DAMAGES[damage](file)
    before = files_of(saved)
    with pytest.raises(ValueError) as caught:
        restore(saved)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {folder} is damaged (") and "\n" not in message
    assert "remove it to resume from the one before it" in message and len(message) < 600
    assert files_of(saved) == before
    assert capfd.readouterr() == ("", "")
    shutil.rmtree(folder)  # what the sentence advises
    assert restore(saved)[1] == {"task": 1}


def test_another_version_is_refused(saved):
    file = saved / "2" / "progress" / "metadata"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "version": 99}))
    before = files_of(saved)
    with pytest.raises(ValueError, match="has format version 99 but this jaxpmi reads version 2; "):
        restore(saved)
    assert files_of(saved) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.replace(params={"w": jnp.zeros((3, 6))}),
            r"holds \(\(3, 5\), 'float32'\) for 'params.w' but this run needs \(\(3, 6\), ",
        ),
        (lambda s: s.replace(pixels=s.pixels.astype(np.int32)), "'uint8'.* for 'pixels'"),
        (lambda s: s.replace(params={"w": s.params["w"]}, pair=Pair(None, None)), "for 'pair.a'"),
        (lambda s: s.replace(pair=Pair(s.pair.a, jnp.zeros(2))), "holds nothing for 'pair.b'"),
        (
            lambda s: s.replace(several=(*s.several[:1], jnp.zeros((0, 4)), *s.several[2:])),
            "several",
        ),
        (lambda s: {"params": s.params}, "needs nothing; it is of another network"),
    ],
)
def test_another_structure_is_refused(saved, change, message):
    before = files_of(saved)
    with pytest.raises(ValueError, match=message):
        restore(saved, change(make_state()))
    assert files_of(saved) == before


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="no checkpoint can be written to .*file.checkpoints .Not a"):
        Checkpointer(tmp_path / "file" / "checkpoints")
    assert (tmp_path / "file").read_text() == "mine"


def test_no_space_left_is_seen_before_writing(saved, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    checkpointer = Checkpointer(saved)
    with pytest.raises(OSError, match="does not fit into the 0.0 MB left for"):
        checkpointer.save(3, make_state(3), {})
    checkpointer.close()
    assert restore(saved)[1] == {"task": 2}


def test_failed_background_write_is_raised_and_loses_nothing(saved, capfd, caplog):
    """A real failure of write(2): files of this process may not grow beyond 100 kB."""
    state = {"w": np.random.default_rng(0).normal(size=100_000)}
    checkpointer = Checkpointer(saved)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError) as caught:
            checkpointer.save(3, state, {})
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    reason = os.strerror(errno.EFBIG)
    assert str(caught.value).startswith(f"no checkpoint can be written to {saved} ({reason}); make")
    assert capfd.readouterr() == ("", "") and caplog.records == []  # told once, by the error
    assert restore(saved)[1] == {"task": 2}


def test_programming_errors_keep_their_type(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpointer.save(1, make_state(), {"bad": object()})
        checkpointer.wait()


def test_version_is_written(saved):
    document = json.loads((saved / "1" / "progress" / "metadata").read_text())
    assert document == {"version": checkpoint.CHECKPOINT_VERSION, "progress": {"task": 1}}


NAMES = ("exp[1]", "keep50%", "run#3", "a|b", "a?b", "x*y", "50%25", "a\\b", "läufe", "two words")
NAMES += ("gs:", "line\nfeed", "\udcff", "~", "{a}", "file:", "e\u0301")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_folder_can_hold_checkpoints(tmp_path, name):
    """Of these Orbax, or tensorstore, read some as patterns, some as escapes, some as stores."""
    folder = tmp_path / name / "checkpoints"
    state = {"w": jnp.arange(300.0)}
    for step in (1, 2):
        checkpointer = Checkpointer(folder)
        checkpointer.save(step, state, {"task": step})
        checkpointer.close()
        restored, progress = restore(folder, state)
        assert progress == {"task": step}
        assert_same(restored, state)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_pattern_takes_nothing_from_its_neighbours(tmp_path):
    for name, value in (("a1b", 1.0), ("a2b", 2.0), ("a?b", 3.0)):
        checkpointer = Checkpointer(tmp_path / name)
        checkpointer.save(1, {"w": jnp.full(300, value)}, {})
        checkpointer.close()
        restored, _ = restore(tmp_path / name, {"w": jnp.zeros(300)})
        assert np.all(restored["w"] == value)


@pytest.mark.parametrize("kind", ["odd", "missing"])
def test_a_name_that_nothing_helps_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, kind
):
    other = tmp_path / {"odd": "[x]", "missing": "gone"}[kind]
    if kind == "odd":
        other.mkdir()
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(other))
    with pytest.raises(OSError, match="cannot be written under the name .*; choose a --workdir of"):
        Checkpointer(tmp_path / "a#b")
    assert not (tmp_path / "a#b").exists()
