"""The benchmark of PMI's claim: its arithmetic on made-up curves, its descent, a smoke test."""

import dataclasses
import itertools
import json
import math

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_network
from rows import short_lite

from benchmarks import bootstrapped_pictures as bench_bootstrapped
from benchmarks import pictures as bench_pictures
from benchmarks import pmi as bench_pmi
from benchmarks import pmi_ratio
from benchmarks import vdfd as bench_vdfd
from benchmarks.pmi_ratio import Setting
from jaxpmi.config import Config
from jaxpmi.config import FullModelConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config.check import validate
from jaxpmi.config.load import load_config
from jaxpmi.data import imagenet_class_names
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.targets import Targets
from jaxpmi.inversion.variants import InversionVariant
from jaxpmi.models.init_network import init_backbone
from jaxpmi.network import Head
from jaxpmi.network import from_blocks
from jaxpmi.weights import given
from jaxpmi.weights.network_file import SavedNetwork

COSTS = pmi_ratio.Costs(steps={"adam": 0.1, "lbfgs": 0.2}, noise=0.0, start={"a": 2.0}, fit=4.0)


def power_law(lengths, exponent, factor=1.0):
    return {length: factor * length**-exponent for length in lengths}


def runs(losses, **setting):
    return {Setting(length, **setting): loss for length, loss in losses.items()}


def test_steps_to_reach_interpolates_log_loss_in_log_length():
    losses = power_law((20, 40, 80, 160), 2.0)
    assert pmi_ratio.steps_to_reach(losses, 50.0**-2) == pytest.approx(50.0)
    assert pmi_ratio.steps_to_reach(losses, losses[80]) == pytest.approx(80.0)
    assert pmi_ratio.steps_to_reach(losses, 1.0) == 20.0  # the shortest run there is
    assert pmi_ratio.steps_to_reach(losses, 161.0**-2) is None


def test_a_longer_run_never_counts_as_worse():
    losses = {20: 1e-1, 40: 1e-2, 80: 2e-2, 160: 1e-3}
    assert pmi_ratio.steps_to_reach(losses, 1e-2) == pytest.approx(40.0)
    assert 40 < pmi_ratio.steps_to_reach(losses, 5e-3) < 160


def test_ratios_of_known_curves():
    pmi = runs(power_law((20, 40), 2.0))
    noise = runs(power_law((20, 40, 80, 160), 2.0, factor=9.0))
    rows = pmi_ratio.ratio_rows("a", pmi, noise, COSTS, fitted=True)
    assert [row["refinement_steps"] for row in rows] == [20, 40]
    row = rows[1]  # noise needs three times as many steps
    assert row["case"] == "a" and not row["bound"]
    assert row["loss_level"] == pytest.approx(40.0**-2)
    assert row["steps_noise"] == pytest.approx(120.0)
    assert row["step_ratio"] == pytest.approx(3.0)
    assert row["start_cost_in_steps"] == pytest.approx(20.0)
    assert row["total_cost_ratio"] == pytest.approx(120 / (40 + 20))
    assert row["total_cost_ratio_with_fit"] == pytest.approx(120 / (40 + 20 + 40))
    assert row["wall_clock_ratio"] == pytest.approx(12 / (4 + 2))
    assert row["wall_clock_ratio_with_fit"] == pytest.approx(12 / (4 + 2 + 4))
    (free, _) = pmi_ratio.ratio_rows("a", pmi, noise, COSTS, fitted=False)
    assert free["wall_clock_ratio_with_fit"] == free["wall_clock_ratio"]


def test_every_side_has_its_best_run_and_dearer_steps_count_as_such():
    noise = {Setting(40): 0.5, Setting(40, 0.8): 0.1, Setting(10, optimizer="lbfgs"): 0.2}
    assert pmi_ratio.best_by_cost(noise, COSTS.steps) == {20.0: 0.2, 40.0: 0.1}
    pmi = {Setting(10): 0.4, Setting(10, optimizer="lbfgs"): 0.1}
    (row,) = pmi_ratio.ratio_rows("a", pmi, noise, COSTS, fitted=False)
    assert row["refinement_setting"]["optimizer"] == "lbfgs"
    assert row["steps_pmi"] == pytest.approx(20.0)
    assert row["step_ratio"] == pytest.approx(2.0)


def test_a_level_never_reached_gives_lower_bounds():
    pmi, noise = runs({20: 1e-3}), runs({20: 1.0, 80: 0.5})
    (row,) = pmi_ratio.ratio_rows("a", pmi, noise, COSTS, fitted=False)
    assert row["bound"] and row["steps_noise"] == 80
    assert row["step_ratio"] == pytest.approx(4.0)
    assert "> 4.00" in pmi_ratio.table([{"seed": 0, "optimizers": "adam", **row}])


def score_with_best_at(rate, boost):
    """A made-up score: the loss falls with the length and grows with the distance to the best."""

    def score(setting):
        distance = abs(math.log2(setting.learning_rate / rate)) + abs(
            pmi_ratio.BOOSTS.index(setting.boost) - pmi_ratio.BOOSTS.index(boost)
        )
        return (1.0 + distance + (setting.schedule == "step")) / setting.num_steps

    return score


def test_search_finds_the_best_setting_of_every_length():
    scores = pmi_ratio.search(score_with_best_at(3.2, 10.0), (20, 40), searched=40)
    losses = {setting: loss for setting, loss in scores.items() if setting.num_steps == 40}
    assert min(losses, key=losses.get) == Setting(40, 3.2, 10.0)
    assert Setting(40, 6.4, 10.0) in scores  # a longer run is searched anew
    assert Setting(20, 3.2, 10.0, "step") in scores


def test_search_may_be_for_the_learning_rate_alone():
    neighbours = pmi_ratio.rate_neighbours
    scores = pmi_ratio.search(
        score_with_best_at(0.2, 1.0), (10, 20), searched=20, first=Setting(0, 0.1),
        neighbours=neighbours,
    )  # fmt: skip
    assert min(scores, key=scores.get) == Setting(20, 0.2)
    assert {s.boost for s in scores} == {1.0} and {s.schedule for s in scores} == {"cosine"}
    assert {s.num_steps for s in scores} == {10, 20}


def test_search_inherits_beyond_its_limit_and_ends_at_the_goal():
    scores = pmi_ratio.search(score_with_best_at(0.8, 1.0), (20, 40, 80, 160), searched=20)
    assert [s for s in scores if s.num_steps > 20] == [Setting(n, 0.8, 1.0) for n in (40, 80, 160)]
    scores = pmi_ratio.search(score_with_best_at(0.8, 1.0), (20, 40, 80), searched=20, goal=0.03)
    assert max(s.num_steps for s in scores) == 40


@pytest.fixture(scope="module")
def problem():
    net = small_network.trained()
    labels = jnp.arange(8, dtype=jnp.int32) % small_network.NUM_CLASSES
    features = net.memory.class_stats.mean[labels]
    targets = Targets(features, labels, net.network.head, jnp.ones(4, bool))
    return bench_pmi.Problem(net.network, targets, net.memory, [], Config(), accuracy=1.0)


def test_a_score_is_the_loss_of_refine_images(problem):
    start = bench_pmi.noise_start(problem, jax.random.key(3))
    got = bench_pmi.refine(problem, start, Setting(6, 0.2))
    expected = refine_images(
        problem.network,
        start,
        problem.targets,
        problem.memory,
        jax.random.key(3),
        config=FullModelConfig(num_steps=6, learning_rate=0.2),
        variant=InversionVariant(clip_pixels=False, boost_weights=False),
    )
    assert got == pytest.approx(float(expected.loss), rel=1e-4)


@pytest.mark.parametrize("setting", [Setting(12, 0.2, 10.0), Setting(12, optimizer="lbfgs")])
def test_descents_descend_and_boost_does_not_count(problem, setting):
    start = bench_pmi.noise_start(problem, jax.random.key(3))
    first = bench_pmi.refine(problem, start, Setting(1))
    assert bench_pmi.refine(problem, start, setting._replace(num_steps=1)) == pytest.approx(first)
    assert bench_pmi.refine(problem, start, setting) < 0.5 * first


def test_every_model_has_a_plan_that_can_be_run():
    assert set(bench.MODELS) == set(bench_pmi.PLANS)
    for model, plan in bench_pmi.PLANS.items():
        config = load_config(str(bench_pmi.CONFIG), plan.training.split())
        assert config.model.name == model
        assert set(plan.pmi_lengths) < set(plan.noise_lengths)  # noise may take longer, never less
        assert bench_pmi.TIMED_STEPS in plan.pmi_lengths  # that program is there already


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_costs_are_seconds_of_the_clock(problem, clock, monkeypatch):
    """By a clock that moves on by 3 seconds whenever it is read; the other stands still."""
    ticks = itertools.count(step=3)
    clocks = {"wall": lambda: 0, "cpu": lambda: 0, clock: lambda: next(ticks)}
    monkeypatch.setattr(bench_pmi, "CLOCKS", clocks)
    monkeypatch.setattr(bench_pmi, "fit_block_inverses", lambda *_, **__: ())
    monkeypatch.setattr(bench_pmi, "refine", lambda *_: 0.0)
    cases = {"a": bench_pmi.LINEAR}
    costs = bench_pmi.measure_costs(problem, cases, jax.random.key(0), repetitions=1, clock=clock)
    per_step = 3 / bench_pmi.TIMED_STEPS
    assert costs == pmi_ratio.Costs({"adam": per_step, "lbfgs": per_step}, 3, {"a": 3}, 3)


def test_command_line():
    options = bench.parse(["pmi", "--seeds", "3,4", "--quick"])
    assert options.seeds == (3, 4) and options.quick
    for wrong in (["pmi", "--seeds", "x"], ["pmi", "--json", "/no/such/folder/a.json"], []):
        with pytest.raises(SystemExit) as failure:
            bench.parse(wrong)
        assert failure.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", bench.MODELS)
def test_quick_run_writes_rows(model, tmp_path, capsys):
    file = tmp_path / "pmi.json"
    assert bench.main(["pmi", "--quick", "--model", model, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    wanted = {"case", "loss_level", "step_ratio", "total_cost_ratio", "wall_clock_ratio", "seed"}
    assert report["rows"] and all(wanted <= set(row) for row in report["rows"])
    assert all(np.isfinite(row["wall_clock_ratio"]) for row in report["rows"])
    assert report["versions"]["jax"] == jax.__version__
    assert capsys.readouterr().out.count("\n| 0 |") == len(report["rows"])


@pytest.fixture
def small_imagenet(monkeypatch):
    """Three blocks with random weights in place of the real network."""
    model, variables = init_backbone(short_lite, jax.random.key(0), (32, 32, 3))
    key_kernel, key_bias = jax.random.split(jax.random.key(1))
    kernel = jax.random.normal(key_kernel, (320, 1000))
    network = from_blocks(
        model, variables, Head(kernel, jax.random.normal(key_bias, (1000,))),
        mean=(0.5,) * 3, std=(0.5,) * 3, image_shape=(32, 32, 3),
        class_names=imagenet_class_names(),
    )  # fmt: skip
    saved = SavedNetwork(network, ModelConfig("efficientnet_lite0"), None)
    monkeypatch.setattr(given, "read_efficientnet_lite0", lambda: saved)


@pytest.fixture
def pictures(small_imagenet):
    return bench_pictures.open_problem(bench_pictures.QUICK)


def test_a_loss_of_pictures_is_that_of_the_job_and_falls(pictures):
    """Averaged over views; one descent from every kind of start."""
    key, settings = jax.random.key(0), pictures.config
    for kind in (None, 0.2, *bench_pictures.QUICK.cases.values()):
        start = bench_pictures.start_images(pictures, kind, key)
        assert start.shape == (10, 32, 32, 3) and bool(jnp.isfinite(start).all())
        first, terms = bench_pictures.measure_loss(pictures, start)
        weights = settings.cross_entropy_weight, settings.statistics_weight
        one_view = np.dot(weights, [terms["cross_entropy"], terms["statistics"]])
        assert first == pytest.approx(one_view, rel=0.2)
        setting = Setting(bench_pictures.NUM_VIEWS, 0.4)
        images = bench_pictures.refine(pictures, start, setting, key)
        last, _ = bench_pictures.measure_loss(pictures, images)
        assert last < 0.99 * first and last == bench_pictures.measure_loss(pictures, images)[0]


@pytest.mark.slow
def test_quick_run_of_the_pictures(small_imagenet, tmp_path, capsys):
    file = tmp_path / "pictures.json"
    assert bench.main(["pictures", "--quick", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    rows, (details,) = report["rows"], report["details"]
    plan = bench_pictures.QUICK
    assert [(r["case"], r["refinement_steps"]) for r in rows] == [
        (name, length) for name in plan.cases for length in plan.pmi_lengths
    ]
    assert all(row["start_cost_in_steps"] > 0.0 for row in rows)
    assert set(details["runs"]) == set(details["starts"]) == {"noise", *plan.cases}
    assert capsys.readouterr().out.count("\n| 0 |") == len(rows)


@pytest.mark.slow
def test_quick_run_of_the_bootstrapped_pictures(small_imagenet, tmp_path, capsys):
    file = tmp_path / "pictures.json"
    assert bench.main(["pictures", "--bootstrapped", "--quick", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    (row,), (details,) = report["rows"], report["details"]
    plan = bench_bootstrapped.QUICK
    assert len(details["noise"]) == 2 and len(details["later"]) == plan.num_batches
    assert len(details["fits"]) == 1 and row["seconds_of_fit"] > 0.0
    assert row["spread_features"] > 0.0 and row["nearest_pixels"] > 0.0
    assert capsys.readouterr().out.count("\n| 0 |") == 1


def test_a_thousand_pictures_cost_what_their_batches_and_fits_do():
    told = bench_bootstrapped.extrapolate(1000, batch_size=30, noise=10.0, later=2.0, fit=5.0)
    assert told["num_fits"] == 3  # at 1, 4 and 16 batches
    assert told["seconds_all_from_noise"] == 340.0
    assert told["seconds_bootstrapped"] == 10.0 + 15.0 + 66.0
    assert told["wall_clock_ratio"] == pytest.approx(340 / 91)


def test_the_nearest_is_of_the_same_class():
    one, others = np.asarray([[0.0], [5.0]]), np.asarray([[1.0], [5.0], [8.0]])
    same = np.asarray([[True, False, False], [False, False, True]])
    assert bench_bootstrapped.nearest_distance(one, others, same) == 2.0


def test_every_plan_of_the_pictures_can_be_run():
    for plan in (bench_pictures.FULL, bench_pictures.QUICK):
        assert set(plan.pmi_lengths) < set(plan.noise_lengths)  # noise may take longer
        for per_layer in (c for c in plan.cases.values() if not isinstance(c, float)):
            config = load_config(str(bench_pictures.CONFIG), ["--method", "pmi"])
            inversion = dataclasses.replace(config.inversion, per_layer=per_layer)
            validate(dataclasses.replace(config, inversion=inversion))


def test_quick_run_of_the_stack(tmp_path, capsys):
    file = tmp_path / "stack.json"
    assert bench.main(["stack", "--quick", "--json", str(file)]) == 0
    scan, unrolled = json.loads(file.read_text())["rows"]
    assert (scan["version"], unrolled["version"]) == ("scan", "unrolled")
    assert 0 < scan["temporary_bytes"] <= unrolled["temporary_bytes"]
    assert capsys.readouterr().out.count("\n| 2 |") == 2


def test_quick_run_of_vdfd(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_vdfd, "CASES", {"plain_cnn": (2, (8, 8, 1), 2)})
    file = tmp_path / "vdfd.json"
    assert bench.main(["vdfd", "--quick", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["method"] for row in rows] == ["finetune", "dfd", "vdfd", "vdfd, whole gradients"]
    assert rows[0]["ratio"] == 1.0 and all(row["step_seconds"] > 0 for row in rows)
