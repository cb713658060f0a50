"""The end of a run on the console."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from jaxpmi.runs.writers.words import SCORES


def summary_table(summary: Mapping[str, Any], paths: Sequence[str] = ()) -> str:
    """Returns plain text: method, accuracies in percent, a row per task, seconds, paths.

    Args:
      summary: the content of summary.json; fields that it lacks are left out.
      paths: of the files written, one line each.
    """
    head = [str(summary[key]) for key in ("method", "dataset") if key in summary]
    if "seed" in summary:
        head.append(f"seed {summary['seed']}")
    blocks = [" on ".join(head[:2]) + "".join(f", {text}" for text in head[2:]), _scores(summary)]
    for name in ("accuracy_matrix", "miou_matrix"):
        if name in summary:
            blocks.append(_matrix(summary[name]))
    seconds = summary.get("seconds", {})
    parts = [f"{name} {_number(value)}" for name, value in seconds.items()]
    blocks += [f"seconds: {', '.join(parts)}"] if parts else []
    blocks += ["\n".join(map(str, paths))] if paths else []
    return "\n\n".join(block for block in blocks if block)


def _scores(summary: Mapping[str, Any]) -> str:
    """One line per number of the whole run."""
    named = ((word.name, summary.get(key)) for key, word in SCORES.items())
    rows = [(name, value) for name, value in named if _is_number(value)]
    width = max((len(text) for text, _ in rows), default=0)
    return "\n".join(f"{text:{width}}  {100 * value:6.2f} %" for text, value in rows)


def _matrix(matrix: Sequence[Sequence[float | None]]) -> str:
    """A row per task learned: accuracy or mean IoU on the test images of every task so far."""
    num_tasks = len(matrix)
    lines = ["after task " + "".join(f"{f'task {i + 1}':>9}" for i in range(num_tasks))]
    for row, values in enumerate(matrix):
        cells = (f"{100 * v:8.2f}%" if _is_number(v) else f"{'-':>9}" for v in values)
        lines.append(f"{row + 1:>10} " + "".join(cells))
    return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
