"""The arithmetic of the benchmarks of PMI: which runs to try, what a loss costs, what is saved."""

import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

BOOSTS = (1.0, 3.0, 10.0)  # factors on the statistics' weight that are tried


class Setting(NamedTuple):
    """One way to run full-model inversion; the score is the same for all."""

    num_steps: int
    learning_rate: float = 0.4  # Adam: peak
    boost: float = 1.0  # Adam: factor on the statistics' weight
    schedule: str = "cosine"  # Adam: stretched to the length
    optimizer: str = "adam"


class Costs(NamedTuple):
    """Measured seconds."""

    steps: Mapping[str, float]  # per optimizer: one step of full-model inversion
    noise: float  # drawing noise images
    start: Mapping[str, float]  # per case: the per-layer phase
    fit: float  # fit of the linear block inverses, once per task


def search(
    score: Callable[[Setting], float],
    lengths: Sequence[int],
    *,
    searched: int,
    goal: float = 0.0,
    first: Setting | None = None,
    neighbours: Callable[[Setting], Iterable[Setting]] | None = None,
) -> dict[Setting, float]:
    """Scores of all settings of Adam tried, shortest runs first.

    At each length up to `searched` the best setting of the length before is improved by steps on
    the grid until none helps. Lengthening ends with the length that reaches `goal`. `first` is the
    setting to begin with, whatever its length, and `neighbours` are the steps on the grid; None:
    the default one, and `rate_neighbours`, next or previous boost, other schedule.
    """
    neighbours = neighbours or _all_neighbours
    scores, best = {}, (first or Setting(lengths[0]))._replace(num_steps=lengths[0])

    def tried(setting):
        if setting not in scores:
            scores[setting] = score(setting)
        return scores[setting]

    for length in lengths:
        best, moved = best._replace(num_steps=length), True
        tried(best)
        while moved and length <= searched:
            candidates = [best, *neighbours(best)]
            better = min(candidates, key=tried)
            best, moved = better, better != best
        if scores[best] <= goal:
            break
    return scores


def rate_neighbours(setting: Setting) -> Iterator[Setting]:
    """Twice and half the learning rate."""
    for factor in (2.0, 0.5):
        yield setting._replace(learning_rate=setting.learning_rate * factor)


def _all_neighbours(setting):
    yield from rate_neighbours(setting)
    place = BOOSTS.index(setting.boost)
    for boost in BOOSTS[max(place - 1, 0) : place + 2]:
        yield setting._replace(boost=boost)
    yield setting._replace(schedule={"cosine": "step", "step": "cosine"}[setting.schedule])


def best_by_cost(
    scores: Mapping[Setting, float], seconds: Mapping[str, float]
) -> dict[float, float]:
    """The least loss for every cost, in steps of Adam, cheapest first."""
    best = {}
    for setting, loss in scores.items():
        cost = setting.num_steps * seconds[setting.optimizer] / seconds["adam"]
        best[cost] = min(loss, best.get(cost, math.inf))
    return dict(sorted(best.items()))


def steps_to_reach(losses: Mapping[float, float], level: float) -> float | None:
    """Cost of the cheapest run that ends at or below `level`; None if no run does.

    Between costs log loss is linear in log cost, as for a power law; a dearer run never counts as
    worse than a cheaper one.
    """
    before = None
    for cost, loss in sorted(losses.items()):
        if loss <= level:
            if before is None:
                return float(cost)
            share = math.log(before[1] / level) / math.log(before[1] / loss)
            return before[0] * (cost / before[0]) ** share
        if before is None or loss <= before[1]:
            before = cost, loss
    return None


def ratio_rows(
    case: str,
    pmi: Mapping[Setting, float],
    noise: Mapping[Setting, float],
    costs: Costs,
    *,
    fitted: bool,
) -> list[dict[str, Any]]:
    """One row per length of PMI's refinement: what noise needs over what PMI needs, for one loss.

    Args:
      case: a key of `costs.start`.
      pmi: the losses that runs from PMI's start end with.
      noise: the same of noise.
      costs: seconds.
      fitted: whether the case uses linear block inverses, whose fit `..._with_fit` charges to this
        one batch although it serves all batches of a task.
    """
    rows, by_cost = [], best_by_cost(noise, costs.steps)
    step = costs.steps["adam"]
    start, fit = costs.start[case] / step, costs.fit / step if fitted else 0.0
    for length in sorted({setting.num_steps for setting in pmi}):
        best = min((s for s in pmi if s.num_steps == length), key=pmi.get)
        steps = length * costs.steps[best.optimizer] / step
        needed = steps_to_reach(by_cost, pmi[best])
        bound = needed is None  # noise ran out of steps: the ratios are lower bounds
        needed = max(by_cost) if bound else needed
        seconds = costs.noise + needed * step
        rows.append(
            {
                "case": case,
                "loss_level": pmi[best],
                "refinement_steps": length,
                "refinement_setting": best._asdict(),
                "steps_pmi": steps,
                "steps_noise": needed,
                "bound": bound,
                "start_cost_in_steps": start,
                "fit_cost_in_steps": fit,
                "step_ratio": needed / steps,
                "total_cost_ratio": needed / (steps + start),
                "total_cost_ratio_with_fit": needed / (steps + start + fit),
                "wall_clock_ratio": seconds / (step * (steps + start)),
                "wall_clock_ratio_with_fit": seconds / (step * (steps + start + fit)),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line per row; > marks lower bounds."""
    lines = [
        "| seed | optimisers | per-layer start | its cost in steps | refinement steps | loss "
        "| noise steps | step ratio | total cost ratio | wall-clock ratio | with the fit |",
        "|" + "---|" * 11,
    ]
    names = ("step_ratio", "total_cost_ratio", "wall_clock_ratio", "wall_clock_ratio_with_fit")
    for row in rows:
        mark = "> " if row["bound"] else ""
        ratios = " | ".join(f"{mark}{row[name]:.2f}" for name in names)
        lines.append(
            f"| {row['seed']} | {row['optimizers']} | {row['case']} "
            f"| {row['start_cost_in_steps']:.1f} | {row['refinement_steps']} "
            f"| {row['loss_level']:.2g} | {mark}{row['steps_noise']:.0f} | {ratios} |"
        )
    return "\n".join(lines)
