"""From loss curves and seconds to ratios: what noise needs over what a per-layer start needs."""

import statistics
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from jaxpmi.config import PerLayerConfig

REFINEMENT_STEPS = (20, 40, 80, 160)  # loss levels are those PMI's refinement has reached then


class Setting(NamedTuple):
    """How full-model inversion is run; the score is the same for all."""

    learning_rate: float
    schedule: str  # "cosine" or "step"
    boost: bool  # double a term's weight while it exceeds its first value
    statistics_factor: float  # on the statistics' gradient, not on the score
    num_steps: int

    def name(self) -> str:
        """Short, for tables."""
        boost = ", boosted" if self.boost else ""
        heavy = f", statistics x {self.statistics_factor:g}" if self.statistics_factor != 1 else ""
        return f"{self.schedule} {self.learning_rate:g}, {self.num_steps} steps{boost}{heavy}"


class Case(NamedTuple):
    """A per-layer start."""

    name: str
    per_layer: PerLayerConfig


def search_noise(
    score: Callable[[Setting], np.ndarray],
    *,
    lengths: Sequence[int],
    keep: Sequence[int],
    goal: float = 0.0,
) -> dict[Setting, np.ndarray]:
    """Noise's curves: a grid at the shortest length, then the `keep` best, each time longer.

    The grid is learning rates x weight on the statistics, cosine, boosting allowed. The best of it
    is also run without boosting, with step decay and, if its rate is the largest, with rates beyond
    the grid. Lengthening ends early once a run has come down to `goal`.
    """
    rates = (0.2, 0.4, 0.8)
    grid = [Setting(r, "cosine", True, f, lengths[0]) for r in rates for f in (1.0, 10.0)]
    curves = {setting: score(setting) for setting in grid}
    last = lambda setting: curves[setting][-1]  # noqa: E731
    best = min(grid, key=last)
    while best.learning_rate >= rates[-1] and min(curves, key=last) == best:
        best = best._replace(learning_rate=2.0 * best.learning_rate)
        curves[best] = score(best)
    best = min(curves, key=last)
    for setting in (best._replace(boost=False), best._replace(schedule="step")):
        curves[setting] = score(setting)
    previous = lengths[0]
    for length, count in zip(lengths[1:], keep, strict=True):
        if min(curve[-1] for curve in curves.values()) <= goal:
            break
        # Boosting that never acts gives the same curve twice; it is lengthened once.
        distinct = {last(s): s for s in curves if s.num_steps == previous}
        for _, setting in sorted(distinct.items())[:count]:
            longer = setting._replace(num_steps=length)
            curves[longer] = score(longer)
        previous = length
    return curves


def steps_to_reach(curve: np.ndarray, level: float) -> int | None:
    """Steps after which a best-so-far curve is at or below `level`; None if it never is."""
    reached = np.flatnonzero(np.asarray(curve) <= level)
    return int(reached[0]) + 1 if len(reached) else None


class Costs(NamedTuple):
    """Measured seconds."""

    full_step: float  # one step of full-model inversion
    sweep: float  # one step on every block
    start: float  # the whole per-layer phase of a case, as called
    linear: float  # its linear inverses alone, 0 for other starts
    fit: float  # fit of the block inverses, once per task
    noise: float  # drawing noise images


def ratio_rows(
    case: Case, curve: np.ndarray, noise: dict[Setting, np.ndarray], costs: Costs
) -> list[dict[str, Any]]:
    """One row per refinement length: what noise needs over what PMI needs for the same loss.

    A row with `bound` true gives lower bounds: noise ran out of steps.
    """
    rows = []
    per_layer = (case.per_layer.num_steps * costs.sweep + costs.linear) / costs.full_step
    for steps in REFINEMENT_STEPS:
        if steps > len(curve):
            continue
        level = float(curve[steps - 1])
        needed = {s: n for s, c in noise.items() if (n := steps_to_reach(c, level)) is not None}
        bound = not needed
        best = max(noise, key=lambda s: s.num_steps) if bound else min(needed, key=needed.get)
        noise_steps = best.num_steps if bound else needed[best]
        noise_seconds = costs.noise + noise_steps * costs.full_step
        seconds = costs.start + steps * costs.full_step
        with_fit = steps + per_layer + costs.fit / costs.full_step
        rows.append(
            {
                "case": case.name,
                "refinement_steps": steps,
                "loss_level": level,
                "noise_steps": noise_steps,
                "noise_setting": best.name(),
                "bound": bound,
                "per_layer_cost_in_steps": per_layer,
                "step_ratio": noise_steps / steps,
                "total_cost_ratio": noise_steps / (steps + per_layer),
                "total_cost_ratio_fit_included": noise_steps / with_fit,
                "wall_clock_ratio": noise_seconds / seconds,
                "wall_clock_ratio_fit_included": noise_seconds / (seconds + costs.fit),
            }
        )
    return rows


def mean_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over seeds, with the least and the largest wall-clock ratio."""
    groups = {}
    for row in rows:
        groups.setdefault((row["case"], row["refinement_steps"]), []).append(row)
    merged = []
    for (case, steps), group in groups.items():
        mean = {
            name: statistics.geometric_mean(row[name] for row in group)
            for name in group[0]
            if name.endswith(("_ratio", "_included")) or name in ("loss_level", "noise_steps")
        }
        wall = [row["wall_clock_ratio"] for row in group]
        merged.append(
            {
                "case": case,
                "refinement_steps": steps,
                "seeds": [row["seed"] for row in group],
                "bound": any(row["bound"] for row in group),
                **mean,
                "wall_clock_ratio_range": [min(wall), max(wall)],
            }
        )
    return merged


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `mean_rows` as Markdown; > marks lower bounds."""
    names = ("step_ratio", "total_cost_ratio", "wall_clock_ratio", "wall_clock_ratio_fit_included")
    lines = [
        "| per-layer start | refinement steps | loss | noise steps | step ratio "
        "| total cost ratio | wall-clock ratio | with the fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "> " if row["bound"] else ""
        ratios = " | ".join(f"{mark}{row[name]:.2f}" for name in names)
        lines.append(
            f"| {row['case']} | {row['refinement_steps']} | {row['loss_level']:.3g} "
            f"| {mark}{row['noise_steps']:.0f} | {ratios} |"
        )
    return "\n".join(lines)
