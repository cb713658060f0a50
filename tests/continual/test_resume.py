"""A run killed again and again ends as one that was left alone, bit by bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from killed_run import run_in_small_chunks

from jaxpmi.continual.start import initial_state
from jaxpmi.continual.start import open_run
from jaxpmi.runs.checkpoint import Checkpointer

SCRIPT = Path(__file__).parents[1] / "killed_run.py"

# Where a process kills itself (see killed_run.py), and what it must leave behind.
KILLS = {
    "before the first checkpoint": ("os.mkdir", r"/1\.orbax[^/]*$", "config.json"),
    "written but not committed": ("os.rename", r"/1\.orbax[^/]*$", "checkpoints/1.*tmp/state"),
    "while a save is written": ("open", r"/10\..*/progress.*/metadata", "checkpoints/10.*tmp"),
    "right after a save": ("shutil.rmtree", "/checkpoints/12$", "checkpoints/15"),
    "in inversion": ("metrics", "^22$", "images/task1.png"),
    "in training with replay": ("metrics", "^26$", "images/task2.png"),
    "after images are judged": ("metrics", "^31$", "images/task2.png"),
    "before the summary": ("os.rename", r"\.summary\.json", "checkpoints/31"),
}


def start_again(folder, *moment, method="pmi"):
    """Runs the same command in a new process, which finds the programs compiled here."""
    cache = jax.config.jax_compilation_cache_dir
    kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_ENABLE_COMPILATION_CACHE": "true"}
    environment = {**os.environ, **(kept if cache else {})}
    command = [sys.executable, str(SCRIPT), str(folder), method, *moment]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def last_state(config):
    """The arrays of the last checkpoint, by name."""
    checkpoints = Checkpointer(Path(config.workdir) / "checkpoints")
    state, _ = checkpoints.restore(initial_state(*open_run(config)))
    checkpoints.close()
    state = state.replace(key=jax.random.key_data(state.key))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def without_cost(summary):
    """The summary without what depends on the day, and on where the data set lies."""
    costs = ("seconds", "peak_memory_bytes", "memory_rise_bytes", "dataset")
    return {k: v for k, v in summary.items() if k not in costs}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(config, summary) of an undisturbed run, and of one killed at each of the moments."""
    with pytest.MonkeyPatch.context() as patch:
        undisturbed = run_in_small_chunks(patch, tmp_path_factory.mktemp("undisturbed"))
        folder = tmp_path_factory.mktemp("killed")
        for name, (event, pattern, left) in KILLS.items():
            process = start_again(folder, event, pattern)
            assert process.returncode == -signal.SIGKILL, f"{name}: {process.stderr}"
            assert list((folder / "run").glob(left)), f"{name}: no {left}"
            assert not (folder / "run" / "summary.json").exists()
        process = start_again(folder)
        assert process.returncode == 0, process.stderr
        assert "resuming at task 4, phase 1, step 0" in process.stdout
        yield undisturbed, run_in_small_chunks(patch, folder)  # finished: its summary again


def test_every_array_is_bit_equal(runs):
    (undisturbed, _), (killed, _) = runs
    wanted, found = last_state(undisturbed), last_state(killed)
    assert wanted.keys() == found.keys() and len(wanted) > 50
    assert any("replay.samples" in name for name in wanted)
    different = [n for n, array in wanted.items() if array.tobytes() != found[n].tobytes()]
    assert different == []


def test_the_summary_is_equal(runs):
    (_, wanted), (_, found) = runs
    assert without_cost(found) == without_cost(wanted)
    assert found["seconds"].keys() == wanted["seconds"].keys()


def test_no_line_of_metrics_is_lost_or_written_twice(runs):
    wanted, found = (
        (Path(config.workdir) / "metrics.jsonl").read_text().splitlines() for config, _ in runs
    )
    assert found == wanted
    steps = [json.loads(line)["step"] for line in found]
    assert steps == sorted(set(steps)) and steps[-1] == 31


def test_images_are_equal(runs):
    for task in (1, 2):
        files = [Path(config.workdir) / f"images/task{task}.npz" for config, _ in runs]
        wanted, found = (np.load(file) for file in files)
        np.testing.assert_array_equal(found["x"], wanted["x"])
        np.testing.assert_array_equal(found["y"], wanted["y"])


def test_nothing_half_written_is_taken_for_a_result(runs):
    """What the kills left are hidden or temporary names; a later save removes its own."""
    (undisturbed, _), (killed, _) = runs

    def results(config):
        files = (p.relative_to(config.workdir) for p in Path(config.workdir).glob("**/*"))
        return {str(f) for f in files if "tmp" not in str(f) and "checkpoints/" not in str(f)}

    assert results(killed) == results(undisturbed)


@pytest.mark.parametrize(("method", "step"), [("pixel_gaussian", 24), ("apr", 20)])
def test_other_kinds_of_replay_resume_too(method, step, tmp_path, monkeypatch):
    """Killed in the middle of the last task's training, when all that they keep is in use."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder in (alone, killed):
        folder.mkdir()
    process = start_again(killed, "metrics", f"^{step}$", method=method)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (killed / "run" / "checkpoints").is_dir()
    assert not (killed / "run" / "summary.json").exists()
    runs = [run_in_small_chunks(monkeypatch, folder, method) for folder in (alone, killed)]
    (config, wanted), (again, found) = runs
    assert without_cost(found) == without_cost(wanted)
    wanted, found = last_state(config), last_state(again)
    assert [n for n, array in wanted.items() if array.tobytes() != found[n].tobytes()] == []
