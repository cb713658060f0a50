"""The benchmark of a device: its schedule, its arithmetic, and that its comparison is sharp."""

import argparse
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.device import SECTIONS
from benchmarks.device import cases
from benchmarks.device import convolutions
from benchmarks.device import idle
from benchmarks.device import main
from benchmarks.device import parity
from benchmarks.device import pytorch
from benchmarks.device import report
from benchmarks.device import sections
from benchmarks.device import speed
from benchmarks.device import timing
from benchmarks.device.schedule import Clock
from benchmarks.device.schedule import Job
from benchmarks.device.schedule import has_failed
from benchmarks.device.schedule import run_jobs
from jaxpmi.blocks.cost import count_program

ROOT = Path(__file__).resolve().parents[2]


class Time:
    """A clock that goes on by itself only when it is told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def job(self, section, name, seconds):
        def rows(left):
            self.seconds += seconds
            yield {"left": left}

        return Job(section, name, rows)


def run(jobs, time, shares, seconds=100.0):
    written = []
    clock = Clock(seconds, shares, time)
    rows = run_jobs(
        jobs, clock, begin=0.0, write=lambda rows: written.append(len(rows)), say=lambda row: None
    )
    assert written == list(range(1, len(rows) + 1))  # all rows so far, after every one
    return rows


def test_a_section_ends_with_its_share_and_leaves_the_rest_to_the_next():
    time = Time()
    jobs = [time.job("a", "1", 10), time.job("a", "2", 35), time.job("a", "3", 1)]
    jobs += [time.job("b", "4", 5), time.job("b", "5", 1)]
    rows = run(jobs, time, {"a": 0.4, "b": 0.6})
    assert [row.get("left") for row in rows] == [40.0, 30.0, None, 55.0, 50.0]
    assert rows[2]["skipped"] and not has_failed(rows)


def test_what_takes_no_time_is_run_though_none_is_left():
    time = Time()
    late = time.job("a", "2", 0)._replace(takes_time=False)
    rows = run([time.job("a", "1", 200), late], time, {"a": 1.0})
    assert rows[1]["left"] == -100.0


def test_an_error_is_its_rows_and_the_run_goes_on():
    time = Time()

    def broken(left):
        yield {"fine": 1}
        raise ValueError("no such thing\nand more")

    rows = run([Job("a", "1", broken), time.job("a", "2", 1)], time, {"a": 1.0})
    assert rows[0]["fine"] == 1 and rows[1]["error"] == "ValueError: no such thing"
    assert rows[2]["case"] == "2" and has_failed(rows)
    assert has_failed([{"passed": False}]) and not has_failed([{"passed": True}, {}])
    assert "ERROR: ValueError" in report.line({**rows[1], "section": "parity"})


def test_tables_show_rows_of_their_section_and_why_others_have_none():
    rows = [
        {"section": "machine", "case": "device", "platform": "cpu", "kind": "K", "jax": "1.2"},
        {"section": "speed", "case": "a", "step_seconds": 0.25, "share_of_peak": 0.5},
        {"section": "speed", "case": "b", "skipped": "no time was left"},
    ]
    machine, table = report.tables(rows).split("\n\n", 1)
    assert machine == "platform cpu, kind K, jax 1.2"
    lines = table.splitlines()
    assert lines[0] == "## speed" and len({line.count("|") for line in lines[2:]}) == 1
    assert "| 250 |" in lines[4] and "| 50.0 % |" in lines[4]
    assert "skipped: no time was left" in lines[5]


def test_the_share_of_idle_time_is_what_no_interval_covers():
    assert idle.idle_share([(0, 4), (2, 5), (3, 4), (8, 10)]) == pytest.approx(0.3)
    assert idle.idle_share([(5, 10)]) == 0.0


def plane(name, lines):
    line = lambda name, events: SimpleNamespace(  # noqa: E731
        name=name,
        events=[SimpleNamespace(name=n, start_ns=a, end_ns=b) for n, a, b in events],
    )
    return SimpleNamespace(name=name, lines=[line(*item) for item in lines.items()])


def test_a_device_tells_when_it_worked_and_a_cpu_through_its_programs():
    host = plane("/host:CPU", {"python": [("f", 0, 9), ("ThunkExecutor::Execute", 1, 3)]})
    stream = {"Stream #1": [("kernel", 2, 4)], "Steps": [("0", 0, 100)]}
    card = plane("/device:GPU:0", stream)
    name, spans = idle.work_intervals(SimpleNamespace(planes=[host, card]))
    assert (name, spans) == ("/device:GPU:0", [(2, 4)])
    name, spans = idle.work_intervals(SimpleNamespace(planes=[host]))
    assert (name, spans) == ("/host:CPU", [(1, 3)])
    with pytest.raises(RuntimeError, match="no events of a device"):
        idle.work_intervals(SimpleNamespace(planes=[]))


def test_operations_are_xlas_where_it_sees_them_all():
    assert timing.choose_flops(900.0, 1000.0) == (900.0, "XLA")
    assert timing.choose_flops(100.0, 1000.0) == (1000.0, "jaxpr")  # a loop in a loop
    assert timing.choose_flops(0.0, 1000.0) == (1000.0, "jaxpr")  # a library's convolution
    assert timing.choose_flops(7.0, 0.0) == (7.0, "XLA")  # nothing to count


def test_a_program_is_counted_with_its_loops():
    def loop(x):
        return jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=5)[0]

    assert count_program(loop, jnp.ones((3, 3))) == 5 * 27


def test_functions_take_turns_and_the_first_turn_does_not_count():
    order = []
    call = lambda name: order.append(name) or jnp.zeros(())  # noqa: E731
    functions = {name: functools.partial(call, name) for name in "ab"}
    seconds = timing.median_seconds(functions, repeats=2)
    assert order == list("ababab") and set(seconds) == {"a", "b"}


def test_the_verdict_is_the_geometric_mean_in_loops():
    rows = [
        {"kind": "gradient", "in_loop": True, "xla_over_hand": ratio} for ratio in (8.0, 0.5)
    ] + [{"kind": "gradient", "in_loop": False, "xla_over_hand": 1e-6}]
    (row,) = convolutions.verdict(rows, "cpu")
    assert row["xla_over_hand"] == pytest.approx(2.0) and row["num_compared"] == 2
    assert row["faster"] == row["used"] == "hand"
    (row,) = convolutions.verdict(rows, "gpu")
    assert (row["faster"], row["used"]) == ("hand", "xla")


def test_a_layer_is_measured_in_all_its_directions():
    layer = convolutions.small(convolutions.LAYERS["Lite0, depthwise stride 2"])
    rows = list(convolutions.measure(layer, repeats=1))
    assert [(row["what"], row["in_loop"]) for row in rows] == [
        (what, loop)
        for what in ("forward", "input gradient", "kernel gradient")
        for loop in (False, True)
    ]
    assert all(row["hand_seconds"] > 0 and row["xla_seconds"] > 0 for row in rows)


def test_comparison_finds_the_array_that_differs_most():
    expected = {"a": np.ones(4), "b": np.zeros(2), "c": np.ones(2)}
    assert parity.compare(expected, expected) == (0.0, "")
    found = parity.compare(expected, {**expected, "a": np.asarray([1, 1, 1, 1.2])})
    assert found.array == "a" and found.difference == pytest.approx(0.1)
    for other in (
        {**expected, "b": np.asarray([0, 1e-9])},
        {**expected, "c": np.asarray([1, np.nan])},
        {"a": expected["a"]},
    ):
        assert parity.compare(expected, other).difference == np.inf


@functools.cache
def case_of(name):
    """A case and its compiled program, which all tests of it share."""
    case = parity.CASES[name][1]()
    return case._replace(run=jax.jit(case.run))


def difference(name, inputs):
    with jax.default_matmul_precision("highest"):
        got = parity.results(case_of(name)._replace(inputs=inputs))
    return parity.compare(parity.expected_of(name), got).difference


@pytest.mark.parametrize("name", parity.CASES)
def test_a_cpu_gets_the_kept_values(name):
    """With all of XLA's optimisations left out, as tests have them: a device by itself."""
    tolerance = parity.TOLERANCES[parity.CASES[name][0]]
    assert difference(name, case_of(name).inputs) < 0.1 * tolerance


def with_noise(inputs, precision):
    """All numbers changed at random: in float32 by 16 times its rounding, in bfloat16 by that."""
    size, random = {"float32": 1e-6, "bfloat16": 2e-3}[precision], np.random.default_rng(0)

    def noisy(leaf):
        if getattr(leaf, "dtype", None) != np.float32:
            return leaf
        return leaf * (1 + size * random.standard_normal(leaf.shape).astype(np.float32))

    return jax.tree.map(noisy, inputs)


@pytest.mark.parametrize("name", parity.CASES)
def test_rounding_is_no_error(name):
    precision, _ = parity.CASES[name]
    found = difference(name, with_noise(case_of(name).inputs, precision))
    assert 0.0 < found < 0.5 * parity.TOLERANCES[precision]


def with_another_label(inputs, precision):
    """One label (or target) of another image."""
    name = "labels" if "labels" in inputs else "target"
    wrong = np.array(inputs[name])
    flat = wrong.reshape(-1) if name == "labels" else wrong
    flat[0] = next(value for value in flat if np.any(value != flat[0]))
    return {**inputs, name: wrong}


def with_another_weight(inputs, precision):
    """The largest tensor of the first network 5 % off, in bfloat16 20 %."""
    leaves, treedef = jax.tree.flatten(inputs["variables"])
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    leaves[largest] = leaves[largest] * {"float32": 1.05, "bfloat16": 1.2}[precision]
    return {**inputs, "variables": jax.tree.unflatten(treedef, leaves)}


def with_another_key(inputs, precision):
    return {**inputs, "key": jax.random.key(1000)}


WRONG = [with_another_label, with_another_weight, with_another_key]
NO_CHANCE = ("PMI block solve", "PMI refinement")  # in which nothing is random
PLANTED = [
    (name, wrong)
    for name in parity.CASES
    for wrong in WRONG
    if wrong is not with_another_key or name not in NO_CHANCE
]


@pytest.mark.parametrize(("name", "wrong"), PLANTED)
def test_a_planted_error_is_found(name, wrong):
    precision, _ = parity.CASES[name]
    inputs = wrong(case_of(name).inputs, precision)
    assert difference(name, inputs) > parity.TOLERANCES[precision]


def test_a_row_passes_a_judgement_at_the_highest_precision_alone():
    name = "PMI block solve"
    (row,) = parity.check(name)
    assert row["passed"] and row["tolerance"] == 1e-3
    highest, default = parity.check(name, default_too=True)
    assert highest == row
    assert "passed" not in default and default["matmul_precision"] == "default"


def test_kept_values_are_a_cpus(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(RuntimeError, match="are a CPU's, and this is a gpu"):
        parity.write_expected()


def test_every_plan_has_a_share_per_section():
    for plan in (sections.FULL, sections.CPU, sections.QUICK):
        assert len(plan.shares) == len(SECTIONS) and sum(plan.shares) <= 1.0 + 1e-9
    assert sections.FULL.minutes <= 9 and sections.QUICK.minutes <= 4


def test_without_pytorch_it_is_left_out_and_that_is_said(monkeypatch):
    monkeypatch.setattr(pytorch, "has_torch", lambda python: False)
    (job,) = sections.make_jobs(sections.QUICK, only=["pytorch"], torch_python=None, cache="")
    (row,) = job.rows(1.0)
    assert "no PyTorch" in row["skipped"]


def test_a_python_without_pytorch_is_an_error_in_words():
    with pytest.raises(RuntimeError, match=r"PyTorch's process ended with 1: .*No module"):
        list(pytorch.measure(60.0, size=speed.QUICK, python=sys.executable))


def test_help_needs_no_jax():
    code = "import bench, sys; bench.parse(['device']); assert 'jax' not in sys.modules"
    path = f"{ROOT}:{ROOT / 'launch'}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})


def test_a_run_cut_off_leaves_what_it_has(tmp_path, monkeypatch):
    """By its own watchdog, which has to end the process, so that it is one of its own."""
    code = (
        "import time, bench; from benchmarks.device import sections; "
        "from benchmarks.device.schedule import Job\n"
        "def hang(left): yield {'seconds': 1.0}; time.sleep(60)\n"
        "sections._machine = lambda plan, peaks: [Job('machine', 'hanging', hang)]\n"
        "bench.main(['device', '--quick', '--only', 'machine', '--minutes', '0.2', "
        "'--json', 'report.json'])"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "| hanging |" in done.stdout and "the last case was cut off" in done.stdout
    cut = json.loads((tmp_path / "report.json").read_text())
    assert cut["cut_off"] and [row["case"] for row in cut["rows"]] == ["hanging"]


def test_a_wrong_result_ends_with_code_1(monkeypatch, capsys):
    rows = lambda left: iter([{"difference": 1.0, "passed": False}])  # noqa: E731
    monkeypatch.setattr(main, "make_jobs", lambda *_, **__: [Job("parity", "a", rows)])
    options = argparse.Namespace(
        quick=True, minutes=None, only=["parity"], torch_python=None, write_expected=False
    )
    assert main.run(options, say=lambda text: None, write=lambda **_: None) == 1
    assert "| NO |" in capsys.readouterr().out


def test_late_and_broken_programs_spoil_no_other(monkeypatch):
    """A compiler cannot be stopped: what it has begun is waited for, what it has not is skipped."""

    def small(size):
        time.sleep(1.0)  # longer than all have
        step = lambda inputs: {"losses": inputs["x"] @ inputs["x"]}  # noqa: E731
        return cases.Case({"x": jnp.ones((8, 8))}, step, 1, 8)

    def broken(size):
        raise ValueError("no such network")

    names = ("wrong", "begun", "late")
    work = {(name, "float32"): small for name in names} | {("wrong", "float32"): broken}
    monkeypatch.setattr(speed, "WORK", work)
    plan = sections.QUICK._replace(compilers=1)
    jobs = sections.make_jobs(plan, only=["speed"], torch_python=None, cache="")
    rows = {}
    for job in jobs:
        try:
            (rows[job.name],) = job.rows(0.5)
        except ValueError as error:
            rows[job.name] = str(error)
    assert rows["all, compiled side by side"]["num_compiled"] == 2
    assert rows["all, in turns"]["num_programs"] == 1
    assert rows["wrong"] == "no such network" and rows["begun"]["step_seconds"] > 0
    assert rows["late"]["skipped"] == "no time was left to compile it"


@pytest.mark.slow
def test_quick_run_rehearses_every_row(tmp_path):
    command = [sys.executable, "launch/bench.py", "device", "--quick", "--minutes", "12"]
    file = tmp_path / "device.json"
    done = subprocess.run([*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    rows = found["rows"]
    assert not found["cut_off"] and found["versions"]["jax"] == jax.__version__
    of = lambda section: [row for row in rows if row["section"] == section]  # noqa: E731
    assert all(of(section) for section in SECTIONS)
    assert {row["case"] for row in of("parity")} == set(parity.CASES)
    together, in_turns, *each = of("speed")
    assert together["num_compiled"] == in_turns["num_programs"] == len(each)
    assert {(row["case"], row["precision"]) for row in each} == set(speed.WORK)
    assert all(row["finite"] and row["share_of_peak"] > 0 for row in each)
    assert {row["case"] for row in of("convolutions")} == {*convolutions.LAYERS, "verdict"}
    assert 0 < of("job")[0]["last_accuracy"] <= 1 and len(of("idle")) == 2
    assert not any("skipped" in row for row in rows if row["section"] != "pytorch")
    assert bench.parse(["device", "--quick"]).only is None
