"""Runs on machines as they are: JAX's settings, platforms, consoles."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import set_up
from tiny_run import tiny_config

import jaxpmi
from jaxpmi import experiment
from jaxpmi.runs.machine import check_platform
from jaxpmi.runs.machine import cpu_kind
from jaxpmi.runs.machine import enable_x64
from jaxpmi.runs.machine import own_settings

ROOT = Path(__file__).parents[2]
ODD_SETTINGS = {
    "64 bits": lambda: enable_x64(True),
    "NaNs stop": lambda: jax.debug_nans(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no transfers": lambda: jax.transfer_guard("disallow"),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


@contextlib.contextmanager
def odd_settings():
    """All of them at once."""
    with contextlib.ExitStack() as stack:
        for setting in ODD_SETTINGS.values():
            stack.enter_context(setting())
        yield


def metrics_of(config):
    return (Path(config.workdir) / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("method", ["pmi", "abd", "r_dfcil", "deep_inversion"])
def test_a_run_is_the_same_whatever_is_set_of_jax(tmp_path, method):
    odd, usual = (tiny_config(tmp_path, method, workdir=str(tmp_path / n)) for n in ("a", "b"))
    with odd_settings():
        experiment.run(odd)
        assert jax.config.jax_enable_x64 and jax.config.jax_debug_nans  # as they were
    if method == "pmi":
        experiment.run(usual)
        assert metrics_of(odd) == metrics_of(usual)


def test_jobs_too(tmp_path):
    with odd_settings():
        config = tiny_config(
            tmp_path, "noise", job="distill", data__tasks=1, distill__rounds=1,
            distill__steps_per_round=1, distill__batch_size=8, distill__student__name="tiny",
            distill__student__width=2, deep_inversion__batch_size=8,
        )  # fmt: skip
        assert experiment.run(config)["network_file"] == "network.npz"
    with np.load(Path(config.workdir) / "network.npz") as file:
        kinds = {file[name].dtype.name for name in file.files}
    assert "float64" not in kinds


def test_a_loss_that_is_no_number_still_stops_the_run(tmp_path):
    config = tiny_config(tmp_path, "finetune", train__learning_rate=1e30)
    with jax.debug_nans(True), pytest.raises(ArithmeticError, match="became NaN or infinite"):
        experiment.run(config)


@pytest.mark.parametrize("name", ODD_SETTINGS)
def test_settings_are_put_aside_and_come_back(name):
    with ODD_SETTINGS[name]():
        with own_settings():
            assert jnp.arange(3).dtype == jnp.int32
            assert (jnp.int32(1) + jnp.zeros(2) / 0).dtype == jnp.float32  # promoted, moved, NaN
        inside = jax.config.jax_enable_x64, jax.config.jax_debug_nans
        assert inside == (name == "64 bits", name == "NaNs stop")


def test_functions_of_the_library_work_in_64_bits_too():
    """They answer in 32: a network's arrays have no more."""
    with enable_x64(True):
        network = jaxpmi.init_network(
            jaxpmi.MODELS["resnet_small"], jax.random.key(0), (8, 8, 1), "01", mean=[0.5], std=[0.5]
        )
        config = jaxpmi.DeepInversionConfig(stage_steps=(2,))
        made = jaxpmi.deep_inversion(network, jnp.arange(4) % 2, jax.random.key(1), config=config)
        logits = jaxpmi.logits(network, made.images)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(network)} == {"float32"}
    assert made.loss.dtype == logits.dtype == jnp.float32


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize 'tpu'")])
def test_a_platform_that_is_not_there(monkeypatch, error):
    """As JAX does it: the one of CUDA without its plugin, the other of all else."""
    there = jax.devices()

    wanted = ["cuda"]

    class Settings:
        """Of JAX, with no more than the one."""

        jax_platforms = property(lambda self: wanted[-1])
        update = staticmethod(lambda name, value: wanted.append(value))

    def devices():
        if wanted[-1]:
            raise error
        return there

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr("jax.extend.backend.clear_backends", lambda: None)
    monkeypatch.setattr(jax, "config", Settings())
    with pytest.raises(ValueError) as caught:
        check_platform()
    assert str(caught.value) == (
        "JAX_PLATFORMS='cuda' asks for devices that JAX does not find here; set it to 'cpu', or "
        "unset it and JAX takes the best."
    )
    assert wanted == ["cuda", "", "cuda"]  # left as it was


CONFIG = """
from jaxpmi.config import *
def get_config():
    return Config(
        method="finetune", workdir={workdir!r},
        data=DataConfig(source="npz", path={data!r}, tasks=2),
        model=ModelConfig("plain_cnn", width=4),
        train=TrainConfig(batch_size=8, replay_batch_size=8, epochs=1),
    )
"""


@pytest.fixture
def command(tmp_path):
    """Of a tiny run in a folder with an odd name, for a process of its own."""
    data, config = tmp_path / "a$^$.npz", tmp_path / "tiny.py"
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    np.savez(data, x=images, y=np.arange(32) % 4)
    text = CONFIG.format(workdir=str(tmp_path / "läufe [1] 50%#?"), data=str(data))
    config.write_text(text, encoding="utf-8")
    return [sys.executable, str(ROOT / "launch/run.py"), "--config", str(config)]


def environment(**changes):
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    cache |= {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    return {**os.environ, **cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **changes}


HOSTILE = {
    "PYTHONIOENCODING": "ascii",
    "TERM": "dumb",
    "COLUMNS": "0",
    "NO_COLOR": "1",
    "HOME": "/proc/nowhere",
    "MPLBACKEND": "of another world",
    "JAX_ENABLE_X64": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}


def test_a_hostile_environment_stops_no_run(tmp_path, command):
    """Letters are replaced; then the same again, resumed, where nobody reads."""
    done = subprocess.run(command, env=environment(**HOSTILE), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"l?ufe" in done.stdout and not done.stderr.count(b"Traceback")
    workdir = tmp_path / "läufe [1] 50%#?"
    names = {path.name for path in workdir.iterdir()}
    assert {"summary.json", "accuracy.png", "metrics.jsonl", "checkpoints"} <= names
    summary = workdir / "summary.json"
    before = json.loads(summary.read_text())["accuracy_matrix"]
    summary.unlink()
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    done = subprocess.run(command, env=environment(), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(summary.read_text())["accuracy_matrix"] == before


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "JAX_PLATFORMS",
            "cuda,tpu",
            "JAX_PLATFORMS='cuda,tpu' asks for devices that JAX does not",
        ),
        ("JAX_ENABLE_X64", "maybe", "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_an_environment_that_cannot_be_met_is_told(tmp_path, command, name, value, sentence):
    done = subprocess.run(command, env=environment(**{name: value}), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a$^$.npz", "tiny.py"}


def test_programs_are_kept_between_runs(tmp_path, command):
    """In the user's cache folder, unless JAX is told otherwise; the first run says where."""
    kept = tmp_path / "cache"
    own = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(kept)}
    seconds = []
    for seed, said in ((0, True), (0, False)):
        done = subprocess.run(
            [*command, "--workdir", str(tmp_path / f"run{said}"), "--seed", str(seed)],
            env=environment(**own), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (str(kept) in done.stdout) == said
        summary = json.loads((tmp_path / f"run{said}" / "summary.json").read_text())
        seconds.append(summary["seconds"]["compile"])
    assert any(kept.glob(f"jaxpmi/programs-{cpu_kind()}/*-cache"))
    assert seconds[1] < seconds[0] / 2


@pytest.mark.parametrize(
    "told", [{"JAX_ENABLE_COMPILATION_CACHE": "false"}, {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}]
)
def test_where_jax_is_told_of_a_cache_nothing_is_kept_elsewhere(tmp_path, told):
    code = "from jaxpmi.runs.machine import keep_programs; print(keep_programs())"
    own = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(**own) | told,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
    assert not (tmp_path / "cache").exists()
