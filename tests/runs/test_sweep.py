"""Sweeps: cells as processes, one failing, all killed; the same command ends in the same table."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxpmi.runs import sweep
from jaxpmi.runs.cells import plan_cells
from jaxpmi.runs.claim import claim

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "mnist.py")
METHODS = ["finetune", "joint"]

# Stands for launch/run.py: seed 1 fails, seed 2 is killed, seed 3 ends without a word.
FAKE = """
import json, os, pathlib, signal, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed = pathlib.Path(options["--workdir"]), int(options["--seed"])
print("reading", flush=True)
if seed == 1:
    sys.exit("error: the data are gone.")
if seed == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 3:
    sys.exit(5)
time.sleep(float(os.environ.get("NAP", 0)))
device = os.environ.get("CUDA_VISIBLE_DEVICES")
summary = {"last_accuracy": 0.5 + seed / 100, "seconds": {"total": 60.0}, "device": device}
(folder / "summary.json").write_text(json.dumps(summary))
"""

TINY = """
import dataclasses, pathlib
from tiny_run import tiny_config
from jaxpmi.config import ModelConfig

def get_config():
    config = tiny_config(pathlib.Path(__file__).parent, "finetune")
    return dataclasses.replace(config, model=ModelConfig("tiny_run:tiny_model", width=4))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Plans cells of the digits in tmp_path, and runs them by the fake program on one device."""
    program = tmp_path / "fake_run.py"
    program.write_text(FAKE)
    monkeypatch.setattr(sweep, "find_devices", lambda: [{}])

    def plan(seeds, **axes):
        return plan_cells(DIGITS, seeds=seeds, workdir=str(tmp_path / "s"), **axes)

    def run(cells):
        return sweep.run_cells(cells, tmp_path / "s", [sys.executable, str(program)])

    return plan, run


def test_each_cell_is_told_and_finished_ones_are_not_run_again(fake, tmp_path, capsys):
    plan, run = fake
    assert run(plan([0])) == {}
    first = (tmp_path / "s/pmi-seed0/summary.json").stat().st_mtime_ns
    assert run(plan([0, 4, 5])) == {}
    assert (tmp_path / "s/pmi-seed0/summary.json").stat().st_mtime_ns == first
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 cells, 0 finished before; one at a time"
    assert lines[1] == "[1/1] pmi-seed0 started"
    assert lines[2].startswith("[1/1] pmi-seed0 finished: last accuracy 50.0 %, ")
    assert lines[3:5] == [
        "3 cells, 1 finished before; one at a time", "[2/3] pmi-seed4 started",
    ]  # fmt: skip
    assert lines[5].startswith("[2/3] pmi-seed4 finished: last accuracy 54.0 %, ")
    assert lines[5].endswith("; about 1.0 min for the 1 left")  # a minute each, the fake says
    assert lines[7].startswith("[3/3] pmi-seed5 finished") and "left" not in lines[7]
    assert (tmp_path / "s/pmi-seed4/console.log").read_text() == "reading\n"


def test_failed_cells_are_named_with_error_and_log_and_the_others_go_on(fake, tmp_path, capsys):
    plan, run = fake
    cells = plan([1, 2, 3, 4])
    failures = run(cells)
    logs = {seed: tmp_path / f"s/pmi-seed{seed}/console.log" for seed in (1, 2, 3)}
    assert failures == {
        "pmi-seed1": f"the data are gone; see {logs[1]}",
        "pmi-seed2": f"killed by SIGKILL; see {logs[2]}",
        "pmi-seed3": f"reading; see {logs[3]}",
    }
    out = capsys.readouterr().out
    assert f"[1/4] pmi-seed1 failed: the data are gone; see {logs[1]}\n" in out
    assert "[4/4] pmi-seed4 finished" in out
    text = sweep.write_table(cells, tmp_path / "s")
    assert "| `pmi` | 4 | 54.0 |" in text and text.endswith(
        "\nNot finished: pmi-seed1, pmi-seed2, pmi-seed3.\n"
    )
    assert (tmp_path / "s/table.md").read_text() == text
    told = json.loads((tmp_path / "s/table.json").read_text())
    assert told["not_finished"] == ["pmi-seed1", "pmi-seed2", "pmi-seed3"]
    assert told["rows"][0]["metrics"]["last_accuracy"]["by_seed"] == {"4": 0.54}
    assert "Nothing has finished yet." in sweep.write_table(plan([1]), tmp_path / "s")


def test_the_log_of_a_cell_goes_on_and_its_error_is_the_last_one(fake, tmp_path):
    plan, run = fake
    run(plan([1]))
    (tmp_path / "fake_run.py").write_text(FAKE.replace("data are gone", "disk is full"))
    assert run(plan([1]))["pmi-seed1"].startswith("the disk is full; see ")
    text = (tmp_path / "s/pmi-seed1/console.log").read_text()
    assert text.count("reading") == 2 and "the data are gone" in text


def test_every_gpu_has_a_cell_of_its_own(fake, tmp_path, monkeypatch):
    plan, run = fake
    devices = [{"CUDA_VISIBLE_DEVICES": name} for name in ("4", "7")]
    monkeypatch.setattr(sweep, "find_devices", lambda: devices)
    monkeypatch.setenv("NAP", "0.5")
    cells = plan([0, 4, 5, 6])
    started = time.monotonic()
    assert run(cells) == {}
    assert time.monotonic() - started < 4 * 0.5 + 1.0
    used = [run.summary["device"] for run in sweep.finished(cells)]
    assert sorted(used[:2]) == ["4", "7"] and set(used) == {"4", "7"}


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        ("0", None, [{}]),  # CPU, TPU
        ("1", None, [{}]),
        ("3", None, ["0", "1", "2"]),
        ("2", "5, GPU-a", ["5", "GPU-a"]),
    ],
)
def test_devices(monkeypatch, count, visible, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(sweep, "COUNT_GPUS", f"print({count})")
    wanted = [one if one == {} else {"CUDA_VISIBLE_DEVICES": one} for one in expected]
    assert sweep.find_devices() == wanted


def test_the_program_lists_runs_and_tells_what_failed(fake, tmp_path, monkeypatch, capsys):
    program = importlib.import_module("sweep")
    monkeypatch.setattr(program, "RUN", [sys.executable, str(tmp_path / "fake_run.py")])
    monkeypatch.setattr(program.signal, "signal", lambda *unused: None)
    words = ["--config", DIGITS, "--workdir", str(tmp_path / "s"), "--seeds", "1", "4"]
    assert program.main([*words, "--list"]) == 0
    command = f"{sys.executable} {tmp_path}/fake_run.py --config {DIGITS} --method pmi --seed"
    out = capsys.readouterr().out
    assert out.startswith(f"# pmi-seed1\n{command} 1 --workdir ") and f"\n{command} 4" in out
    assert not (tmp_path / "s").exists()
    assert program.main(words) == 1
    found = capsys.readouterr()
    log = tmp_path / "s/pmi-seed1/console.log"
    assert found.err == f"error: pmi-seed1: the data are gone; see {log}\n"
    text = (tmp_path / "s/table.md").read_text()
    assert found.out.endswith(f"\n{text}\n{tmp_path}/s/table.md\n{tmp_path}/s/table.json\n")
    assert program.main([*words, "--table-only"]) == 0
    assert capsys.readouterr().out.startswith(f"\n{text}")
    assert program.main([*words, "--list"]) == 0
    assert "# pmi-seed4, finished\n" in capsys.readouterr().out
    assert program.main([*words, "--set", "train.epochs"]) == 2
    assert capsys.readouterr().err.startswith("error: every --set takes another field, and")


def test_a_second_sweep_is_told_who_is_there(fake, tmp_path):
    plan, run = fake
    with claim(tmp_path / "s"), pytest.raises(OSError, match=f"process {os.getpid()} on host"):
        run(plan([0]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Starts the real program on a tiny run; returns how, and where its undisturbed end is."""
    folder = tmp_path_factory.mktemp("tiny")
    config = folder / "tiny.py"
    config.write_text(TINY)
    options = ["--train.epochs", "2", "--checkpoint-every", "1"]

    def start(workdir, *more):
        program = [sys.executable, str(ROOT / "launch/sweep.py"), "--config", str(config)]
        words = ["--methods", *METHODS, *options, "--workdir", str(folder / workdir), *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*program, *words], **pipes)

    with pytest.MonkeyPatch.context() as patch:
        cache = jax.config.jax_compilation_cache_dir or str(folder / "cache")
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setattr(sweep, "find_devices", lambda: [{}])
        alone = folder / "alone"
        cells = plan_cells(str(config), options, methods=METHODS, workdir=str(alone))
        assert sweep.run_cells(cells, alone, [sys.executable, str(ROOT / "launch/run.py")]) == {}
        sweep.write_table(cells, alone)
        # From here on runs are killed, and one that is keeping a program would leave it damaged.
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1e9")
        yield start, folder


def table(folder):
    """table.json without seconds, which differ from run to run."""
    told = json.loads((folder / "table.json").read_text())
    for row in told["rows"]:
        for numbers in (row["metrics"], row["difference_from_first"]):
            numbers.pop("seconds", None)
    return told


def wait_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def child_of(sweep_process):
    """The run that a sweep has started."""
    children = Path(f"/proc/{sweep_process.pid}/task/{sweep_process.pid}/children")
    (pid,) = children.read_text().split()
    return int(pid)


def test_killed_sweeps_and_runs_end_in_the_same_table(tiny):
    start, folder = tiny
    first, second = (folder / "killed" / f"{method}-seed0" for method in METHODS)
    # The run is killed: it is named, and the next one goes on; then the sweep is killed as well.
    with start("killed") as process:
        wait_for(first / "checkpoints" / "3")
        os.kill(child_of(process), signal.SIGKILL)
        wait_for(second / "checkpoints" / "1")
        process.kill()
        out = process.stdout.read()  # to its end: the run does not write there
    assert f"[1/2] finetune-seed0 failed: killed by SIGKILL; see {first / 'console.log'}" in out
    assert not (first / "summary.json").exists()
    # What the killed sweep has left behind ends by itself, and is waited for.
    with start("killed") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert (folder / "killed/table.md").read_text() in out
    assert "resuming at" in (first / "console.log").read_text()
    assert "resuming at" not in (second / "console.log").read_text()
    told = table(folder / "killed")
    assert told == table(folder / "alone")
    assert [row["method"] for row in told["rows"]] == METHODS and not told["not_finished"]
    assert told["rows"][1]["metrics"]["gap_closed"]["mean"] == 1.0


def test_ctrl_c_stops_the_run_and_the_sweep_with_one_sentence(fake, tmp_path):
    # Tests that run in the background ignore Ctrl-C, and so would their children.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "import sys, sweep; sweep.RUN = sys.argv[1:3]; sys.exit(sweep.main(sys.argv[3:]))"
    run = [sys.executable, str(tmp_path / "fake_run.py")]
    words = ["--config", DIGITS, "--workdir", str(tmp_path / "s")]
    log = tmp_path / "s/pmi-seed0/console.log"
    with subprocess.Popen(
        [sys.executable, "-c", program, *run, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "launch"), "NAP": "100"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (log.exists() and log.read_text() == "reading\n"):
            assert process.poll() is None
            time.sleep(0.02)
        left = child_of(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err == "\nstopped; the same command goes on where this one was.\n"
    assert not Path(f"/proc/{left}").exists()
    assert log.read_text().endswith("KeyboardInterrupt\n")  # the run was asked, not killed


@pytest.mark.slow
def test_a_sweep_killed_at_ten_random_moments_ends_in_the_same_table(tiny):
    """Every other time with the run that it has started, as when a machine goes down."""
    start, folder = tiny
    seeds = ["--seeds", "0", "1", "2", "3"]
    with start("undisturbed", *seeds) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    moments, lines = random.Random(0), ""
    for kill in range(10):
        with start("random", *seeds) as process:
            time.sleep(moments.uniform(2.0, 12.0))
            assert process.poll() is None, "it has ended before it could be killed ten times"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in [process.pid, *(map(int, children) if kill % 2 else [])]:
                os.kill(pid, signal.SIGKILL)
            lines += process.stdout.read()
    with start("random", *seeds) as process:
        out, err = process.communicate()
    print(lines + out)
    assert process.returncode == 0, err
    assert table(folder / "random") == table(folder / "undisturbed")
