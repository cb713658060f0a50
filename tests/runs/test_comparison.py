"""Tables of several runs, against numbers computed by hand."""

import json
import math

import pytest

from jaxpmi.runs.comparison import Finished
from jaxpmi.runs.comparison import compare
from jaxpmi.runs.comparison import markdown
from jaxpmi.runs.comparison import read_metrics
from jaxpmi.runs.comparison import standard_error
from jaxpmi.runs.comparison import to_json


def run(method, seed, last, settings=None, **more):
    summary = {"last_accuracy": last, "seconds": {"total": 10.0 + seed, "train": 3.0}, **more}
    return Finished(method, settings or {}, seed, summary)


DIGITS = [
    run("pmi", 0, 0.8), run("finetune", 0, 0.2), run("joint", 0, 1.0),
    run("pmi", 1, 0.9), run("finetune", 1, 0.4), run("joint", 1, 0.9),
    run("pmi", 2, 0.7), run("finetune", 2, 0.3),
]  # fmt: skip


def test_rows_are_in_the_order_in_which_they_come_with_their_seeds():
    rows = compare(DIGITS)
    assert [(row.method, row.seeds) for row in rows] == [
        ("pmi", [0, 1, 2]), ("finetune", [0, 1, 2]), ("joint", [0, 1]),
    ]  # fmt: skip
    assert rows[0].values["last_accuracy"] == {0: 0.8, 1: 0.9, 2: 0.7}
    assert rows[0].values["seconds"] == {0: 10.0, 1: 11.0, 2: 12.0}
    assert rows[0].values["last_miou"] == {}


def test_mean_and_sample_standard_deviation():
    first = to_json(compare(DIGITS))[0]["metrics"]["last_accuracy"]
    assert first["mean"] == pytest.approx(0.8)
    # The squares of -0.1, 0, 0.1 sum to 0.02, over n - 1 = 2.
    assert first["standard_deviation"] == pytest.approx(0.1)
    one = to_json(compare(DIGITS[:3]))[0]["metrics"]["last_accuracy"]
    assert one == {"mean": 0.8, "standard_deviation": None, "by_seed": {0: 0.8}}


def test_the_gap_is_closed_seed_by_seed_where_both_ends_are_there():
    rows = compare(DIGITS)
    assert rows[0].values["gap_closed"] == pytest.approx({0: 0.75, 1: 1.0})
    assert rows[1].values["gap_closed"] == {0: 0.0, 1: 0.0}
    assert compare(DIGITS[::3])[0].values["gap_closed"] == {}  # without joint


def test_the_gap_is_between_runs_with_the_same_settings():
    few, many = {"train.epochs": 1}, {"train.epochs": 9}
    ends = [("finetune", few, 0.1), ("joint", few, 0.5), ("pmi", few, 0.4), ("pmi", many, 0.4)]
    rows = compare(run(method, 0, last, settings) for method, settings, last in ends)
    gaps = [row.values["gap_closed"].get(0) for row in rows]
    assert gaps[:3] == pytest.approx([0.0, 1.0, 0.75]) and gaps[3] is None


def test_differences_are_paired_by_seed_with_their_standard_error():
    rows = compare(DIGITS)
    assert rows[0].differences == {}
    by_seed = rows[2].differences["last_accuracy"]
    assert by_seed == pytest.approx({0: 0.2, 1: 0.0})  # seed 2 has no partner
    mean, error = standard_error(by_seed.values())
    # Deviations of 0.1 from the mean: s = sqrt(0.02), over the root of 2.
    assert (mean, error) == pytest.approx((0.1, 0.1))
    told = to_json(rows)[2]["difference_from_first"]["last_accuracy"]
    assert (told["mean"], told["standard_error"]) == (mean, error)
    assert standard_error([0.5]) == (0.5, None)


def test_what_a_summary_holds_is_found_and_what_is_no_number_is_not():
    tasks = [{"spread": 0.9}, {"spread": 0.8, "trained_on_synthetic": 0.7}]
    summary = {
        "last_accuracy": None, "forgetting": 0, "inversion": {"tasks": tasks},
        "seconds": {"total": 3.0},
    }  # fmt: skip
    assert read_metrics(summary) == {
        "forgetting": 0.0, "spread": 0.8, "trained_on_synthetic": 0.7, "seconds": 3.0,
    }  # fmt: skip
    assert read_metrics({"inversion": {"tasks": []}, "last_accuracy": math.nan}) == {}
    distilled = {
        "student_accuracy": 0.5, "diversity": {"share_of_real": 1.2}, "inversion": [{"task": 0}],
    }  # fmt: skip
    assert read_metrics(distilled) == {"student_accuracy": 0.5, "diversity": 1.2}


def test_the_table_for_people():
    text = markdown(compare([*DIGITS, run("pmi", 5, 0.5, {"train.epochs": 3})]))
    assert "| `pmi` | 0-2 | 80.0 ± 10.0 | 0.875 ± 0.177 | 11 ± 1 |\n" in text
    assert "| `pmi`, train.epochs=3 | 5 | 50.0 |  | 15 |\n" in text
    assert "| `joint` | 0-1 | +10.0 ± 10.0 | +0.125 ± 0.125 | 0 ± 0 |\n" in text
    assert "| `finetune` | 0-2 | -50.0 ± 5.8 | -0.875 ± 0.125 | 0 ± 0 |\n" in text
    # Nothing to pair: no row below.
    assert text.count("train.epochs=3") == 1 and "mean IoU" not in text


def test_the_table_for_programs_is_json():
    rows = json.loads(json.dumps(to_json(compare(DIGITS))))
    assert rows[0]["metrics"]["last_accuracy"]["by_seed"] == {"0": 0.8, "1": 0.9, "2": 0.7}
    assert rows[1]["difference_from_first"]["seconds"]["mean"] == 0.0
