"""What finished runs say together: methods and settings side by side, over the same seeds.

Everything is read off summaries, as `summary.json` holds them. Spread over seeds is the sample
standard deviation (n - 1), as in docs/results.md; differences are paired by seed.
"""

import math
import statistics
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple


class Metric(NamedTuple):
    """A number of every run that has it.

    Attributes:
      name: of the number, as in summary.json.
      title: of its column.
      path: where it stands in a summary; () of what several runs are needed for.
      show: a value, or a difference, as text.
    """

    name: str
    title: str
    path: tuple[str | int, ...]
    show: Callable[[float], str]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(share: float) -> str:
    return f"{share:.3f}"


def _whole(number: float) -> str:
    return f"{number:,.0f}"


_JUDGED = ("inversion", "tasks", -1)  # the images made before the last task
METRICS = (
    Metric("last_accuracy", "last accuracy, %", ("last_accuracy",), _percent),
    Metric(
        "average_incremental_accuracy",
        "average incremental, %",
        ("average_incremental_accuracy",),
        _percent,
    ),
    Metric("last_miou", "last mean IoU, %", ("last_miou",), _percent),
    Metric(
        "average_incremental_miou",
        "average incremental mean IoU, %",
        ("average_incremental_miou",),
        _percent,
    ),
    Metric("forgetting", "forgetting, %", ("forgetting",), _percent),
    Metric("gap_closed", "gap closed", (), _share),
    Metric(
        "trained_on_synthetic",
        "trained on synthetic",
        (*_JUDGED, "trained_on_synthetic"),
        _share,
    ),
    Metric("spread", "spread", (*_JUDGED, "spread"), _share),
    Metric("teacher_accuracy", "teacher, %", ("teacher_accuracy",), _percent),
    Metric("student_accuracy", "student, %", ("student_accuracy",), _percent),
    Metric("student_of_teacher", "of the teacher's", ("student_of_teacher",), _share),
    Metric("diversity", "diversity over real", ("diversity", "share_of_real"), _share),
    Metric("accuracy_before", "before pruning, %", ("accuracy_before",), _percent),
    Metric("accuracy_after", "after pruning, %", ("accuracy_after",), _percent),
    Metric("parameters_after", "parameters left", ("parameters", "after"), _whole),
    Metric("own_accuracy_before", "own classes before, %", ("own_accuracy_before",), _percent),
    Metric("own_accuracy_after", "own classes after, %", ("own_accuracy_after",), _percent),
    Metric("new_accuracy", "new classes, %", ("new_accuracy",), _percent),
    Metric("seconds", "seconds", ("seconds", "total"), _whole),
)
GAP_IS_OF = ("last_accuracy", "last_miou")  # the first of these that a run has


class Finished(NamedTuple):
    """One finished run: its row in the table, and its place in the row.

    Attributes:
      method: as in its config.
      settings: what else tells its row from others, e.g. {"train.epochs": 3}.
      seed: of the run.
      summary: the content of summary.json.
    """

    method: str
    settings: Mapping[str, Any]
    seed: int
    summary: Mapping[str, Any]


class Row(NamedTuple):
    """A method with its settings.

    Attributes:
      method, settings: as of its runs.
      seeds: of its runs, ascending.
      values: metric -> seed -> number, of the metrics and seeds that have one.
      differences: metric -> seed -> number minus that of the first row, of the same seed.
    """

    method: str
    settings: dict[str, Any]
    seeds: list[int]
    values: dict[str, dict[int, float]]
    differences: dict[str, dict[int, float]]


class TextTable(NamedTuple):
    """A table to be written down: what it shows, a title for every column, the rows' cells."""

    caption: str
    titles: list[str]
    cells: list[list[str]]


def compare(runs: Iterable[Finished]) -> list[Row]:
    """Returns a row for every method and settings, in the order in which they come first."""
    groups: dict[tuple, dict[int, Finished]] = {}
    for run in runs:
        groups.setdefault(_key(run), {})[run.seed] = run
    rows = []
    for (method, _), by_seed in groups.items():
        seeds = sorted(by_seed)
        found = {seed: read_metrics(by_seed[seed].summary) for seed in seeds}
        values = {
            m.name: {s: found[s][m.name] for s in seeds if m.name in found[s]} for m in METRICS
        }
        settings = dict(by_seed[seeds[0]].settings)
        rows.append(Row(method, settings, seeds, values, {}))
    for row in rows:
        row.values["gap_closed"] = _gap_closed(row, rows)
    for row in rows[1:]:
        row.differences.update(_differences(row, rows[0]))
    return rows


def read_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that a summary has; one that is not a finite number is left out."""
    found = {m.name: _look_up(summary, m.path) for m in METRICS if m.path}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def spread(values: Iterable[float]) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation; of one value there is none.

    >>> spread([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def standard_error(values: Iterable[float]) -> tuple[float, float | None]:
    """Returns the mean and its standard error: the standard deviation over the root of n."""
    values = list(values)
    mean, deviation = spread(values)
    return mean, None if deviation is None else deviation / math.sqrt(len(values))


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows as JSON holds them: every number by seed, and what they give together."""
    return [
        {
            "method": row.method,
            "settings": row.settings,
            "seeds": row.seeds,
            "metrics": {
                name: {"mean": mean, "standard_deviation": deviation, "by_seed": by_seed}
                for name, by_seed in row.values.items()
                if by_seed
                for mean, deviation in [spread(by_seed.values())]
            },
            "difference_from_first": {
                name: {"mean": mean, "standard_error": error, "by_seed": by_seed}
                for name, by_seed in row.differences.items()
                for mean, error in [standard_error(by_seed.values())]
            },
        }
        for row in rows
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the rows as a table, and below it their differences from the first row."""
    return "\n".join(f"{of.caption}\n\n{_table(of.titles, of.cells)}" for of in tables(rows))


def tables(rows: Sequence[Row]) -> list[TextTable]:
    """Returns the rows as text, and their differences from the first row, if there are any."""
    metrics = [m for m in METRICS if any(row.values[m.name] for row in rows)]
    titles = ["method", "seeds", *(m.title for m in metrics)]
    cells = [
        [name_row(row), _seeds(row.seeds), *(_shown(m, row.values[m.name]) for m in metrics)]
        for row in rows
    ]
    found = [TextTable("Mean ± sample standard deviation over seeds.", titles, cells)]
    compared = [row for row in rows if row.differences]
    if compared:
        pairs = [[name_row(row), *_difference(row, metrics)] for row in compared]
        caption = (
            f"Differences from {name_row(rows[0])}, seed by seed: mean ± standard error over the "
            "seeds that both have."
        )
        found.append(TextTable(caption, titles, pairs))
    return found


def name_row(row: Row | Finished) -> str:
    """Returns such as `pmi`, train.epochs=3."""
    return ", ".join([f"`{row.method}`", *(f"{k}={v}" for k, v in row.settings.items())])


def _key(run: Finished | Row) -> tuple:
    return run.method, tuple((name, str(value)) for name, value in run.settings.items())


def _gap_closed(row: Row, rows: Sequence[Row]) -> dict[int, float]:
    """(value - finetune) / (joint - finetune) by seed, of rows with the same settings."""
    alike = {other.method: other for other in rows if _key(other)[1] == _key(row)[1]}
    if not {"finetune", "joint"} <= alike.keys():
        return {}
    name = next((name for name in GAP_IS_OF if row.values[name]), GAP_IS_OF[0])
    low, high = alike["finetune"].values[name], alike["joint"].values[name]
    return {
        seed: (value - low[seed]) / (high[seed] - low[seed])
        for seed, value in row.values[name].items()
        if seed in low and seed in high and high[seed] != low[seed]
    }


def _differences(row: Row, first: Row) -> dict[str, dict[int, float]]:
    pairs = {
        name: {
            s: value - first.values[name][s] for s, value in of.items() if s in first.values[name]
        }
        for name, of in row.values.items()
    }
    return {name: by_seed for name, by_seed in pairs.items() if by_seed}


def _look_up(summary: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            summary = summary[part]
        except (KeyError, IndexError, TypeError):
            return None
    return summary


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown(metric: Metric, by_seed: Mapping[int, float]) -> str:
    mean, deviation = spread(by_seed.values()) if by_seed else (None, None)
    return _with_error(metric, mean, deviation)


def _difference(row: Row, metrics: Sequence[Metric]) -> list[str]:
    """The seeds that are compared, and a cell for every metric."""
    cells = []
    for metric in metrics:
        by_seed = row.differences.get(metric.name)
        mean, error = standard_error(by_seed.values()) if by_seed else (None, None)
        cells.append(("+" if mean and mean > 0 else "") + _with_error(metric, mean, error))
    return [_seeds(sorted(set().union(*row.differences.values()))), *cells]


def _with_error(metric: Metric, mean: float | None, error: float | None) -> str:
    if mean is None:
        return ""
    return metric.show(mean) + ("" if error is None else f" ± {metric.show(error)}")


def _seeds(seeds: Sequence[int]) -> str:
    """Such as 0-2, where none in between is missing."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head, *lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return "\n".join([head, "|---" * len(titles) + "|", *lines, ""])
