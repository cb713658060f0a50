"""The benchmark of PMI's claim: its arithmetic on made-up curves, and its solver."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_network

from jaxpmi.config import FullModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.inversion.full_model import refine_images
from jaxpmi.inversion.targets import Targets

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))

import bench  # noqa: E402
import bench_pmi  # noqa: E402
import bench_ratios  # noqa: E402

COSTS = bench_ratios.Costs(full_step=0.1, sweep=0.2, start=3.0, linear=0.5, fit=2.0, noise=0.0)
CASE = bench_ratios.Case("ten", PerLayerConfig(num_steps=10))


def halving_curve(num_steps, half_life):
    """A loss that starts at 1 and halves every `half_life` steps."""
    return 2.0 ** (-np.arange(1, num_steps + 1) / half_life)


def setting(num_steps):
    return bench_ratios.Setting(0.4, "cosine", True, 1.0, num_steps)


def test_ratios_of_known_curves():
    pmi, noise = halving_curve(160, 20), halving_curve(640, 80)  # noise needs four times as many
    rows = bench_ratios.ratio_rows(CASE, pmi, {setting(640): noise}, COSTS)
    assert [row["refinement_steps"] for row in rows] == [20, 40, 80, 160]
    row = rows[2]
    assert row["case"] == "ten" and not row["bound"]
    assert row["loss_level"] == pytest.approx(2.0**-4)
    assert row["noise_steps"] == 320
    assert row["step_ratio"] == pytest.approx(4.0)
    per_layer = (10 * 0.2 + 0.5) / 0.1  # sweeps and the linear inverses, in full steps
    assert row["per_layer_cost_in_steps"] == pytest.approx(per_layer)
    assert row["total_cost_ratio"] == pytest.approx(320 / (80 + per_layer))
    assert row["total_cost_ratio_fit_included"] == pytest.approx(320 / (80 + per_layer + 20))
    assert row["wall_clock_ratio"] == pytest.approx(32 / (3 + 8))
    assert row["wall_clock_ratio_fit_included"] == pytest.approx(32 / (3 + 8 + 2))


def test_noise_gets_its_best_run_at_every_level():
    pmi = halving_curve(160, 20)
    short = np.maximum(halving_curve(160, 30), 2.0**-3)  # fast, then stuck
    rows = bench_ratios.ratio_rows(
        CASE, pmi, {setting(160): short, setting(640): halving_curve(640, 60)}, COSTS
    )
    assert [row["noise_steps"] for row in rows] == [30, 60, 240, 480]
    assert "160 steps" in rows[0]["noise_setting"] and "640 steps" in rows[2]["noise_setting"]


def test_a_level_never_reached_is_a_lower_bound():
    noise = {setting(160): np.ones(160), setting(320): np.ones(320)}
    rows = bench_ratios.ratio_rows(CASE, halving_curve(160, 20), noise, COSTS)
    assert all(row["bound"] and row["noise_steps"] == 320 for row in rows)
    assert rows[-1]["step_ratio"] == pytest.approx(2.0)
    text = bench_ratios.table(bench_ratios.mean_rows([{"seed": 0, **row} for row in rows]))
    assert "> 320" in text and "> 2.00" in text


def test_means_over_seeds_are_geometric():
    rows = bench_ratios.ratio_rows(
        CASE, halving_curve(160, 20), {setting(640): np.zeros(640)}, COSTS
    )
    twice = [{**row, "step_ratio": 4 * row["step_ratio"]} for row in rows]
    both = [{"seed": 0, **row} for row in rows] + [{"seed": 1, **row} for row in twice]
    merged = bench_ratios.mean_rows(both)
    assert len(merged) == len(rows)
    assert merged[0]["step_ratio"] == pytest.approx(2 * rows[0]["step_ratio"])
    assert merged[0]["seeds"] == [0, 1]


def test_the_search_finds_the_best_setting_and_lengthens_it():
    def score(s):
        distance = abs(np.log2(s.learning_rate / 0.8)) + (s.statistics_factor == 1.0)
        return halving_curve(s.num_steps, 20 * (1 + distance + (s.schedule == "step")))

    curves = bench_ratios.search_noise(score, lengths=(20, 40), keep=(1,))
    (longer,) = [s for s in curves if s.num_steps == 40]
    assert (longer.learning_rate, longer.statistics_factor, longer.schedule) == (
        0.8,
        10.0,
        "cosine",
    )
    assert {s.learning_rate for s in curves} >= {0.2, 0.4, 0.8}
    assert {s.boost for s in curves} == {True, False}
    assert {s.schedule for s in curves} == {"cosine", "step"}


@pytest.mark.parametrize("clip", [False, True])
def test_descend_is_refine_images(clip):
    net = small_network.trained()
    labels = jnp.arange(8, dtype=jnp.int32) % small_network.NUM_CLASSES
    targets = Targets(net.stats.mean[labels], labels, net.head, jnp.ones(4, bool))
    config = FullModelConfig(num_steps=12, clip_pixels=clip)
    start = jax.random.normal(jax.random.key(1), (8, *small_network.SHAPE))
    pixels = net.knowledge.pixels
    expected = refine_images(
        net.variables,
        jnp.array(start),
        targets,
        pixels,
        jax.random.key(0),
        model=net.model,
        config=config,
    )
    problem = bench_pmi.Problem(
        model=net.model,
        variables=net.variables,
        targets=targets,
        block_inputs=(),
        inverses=(),
        image_shape=small_network.SHAPE,
        limits=(pixels.low, pixels.high),
        refit=lambda: None,
        accuracy=1.0,
    )
    curve = bench_pmi.refine(problem, start, setting(12), clip=clip)
    np.testing.assert_allclose(curve, np.minimum.accumulate(expected.losses), rtol=1e-5)


def test_a_heavier_gradient_leaves_the_score_comparable():
    net = small_network.trained()
    labels = jnp.arange(8, dtype=jnp.int32) % small_network.NUM_CLASSES
    targets = Targets(net.stats.mean[labels], labels, net.head, jnp.ones(4, bool))
    pixels = net.knowledge.pixels
    problem = bench_pmi.Problem(
        net.model, net.variables, targets, (), (), small_network.SHAPE,
        (pixels.low, pixels.high), lambda: None, 1.0,
    )  # fmt: skip
    start = jax.random.normal(jax.random.key(1), (8, *small_network.SHAPE))
    plain = bench_pmi.refine(problem, start, setting(12), clip=False)
    heavy = setting(12)._replace(statistics_factor=10.0)
    heavy = bench_pmi.refine(problem, start, heavy, clip=False)
    assert heavy[0] == pytest.approx(plain[0])
    assert heavy[-1] != plain[-1]


def test_command_line():
    options = bench.parse(["pmi", "--seeds", "3,4", "--quick"])
    assert options.seeds == (3, 4) and options.quick and not options.clip
    for wrong in (["pmi", "--seeds", "x"], ["pmi", "--json", "/no/such/folder/a.json"], []):
        with pytest.raises(SystemExit) as failure:
            bench.parse(wrong)
        assert failure.value.code == 2


@pytest.mark.slow
def test_quick_run_writes_rows(tmp_path):
    file = tmp_path / "pmi.json"
    assert bench.main(["pmi", "--seeds", "0", "--quick", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    wanted = {"case", "loss_level", "step_ratio", "total_cost_ratio", "wall_clock_ratio", "bound"}
    assert rows and all(wanted <= set(row) for row in rows)
    assert all(np.isfinite(row["wall_clock_ratio"]) for row in rows)
    report = json.loads(file.with_suffix(".details.json").read_text())
    assert report["versions"]["jax"] == jax.__version__
