"""The drawings of a page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpmi.runs.writers.html_report.inline_svg import ACCENT
from jaxpmi.runs.writers.html_report.inline_svg import INK
from jaxpmi.runs.writers.html_report.inline_svg import MUTED
from jaxpmi.runs.writers.html_report.inline_svg import PAPER
from jaxpmi.runs.writers.html_report.inline_svg import RULE
from jaxpmi.runs.writers.html_report.inline_svg import SERIES
from jaxpmi.runs.writers.html_report.inline_svg import inline_svg
from jaxpmi.runs.writers.html_report.inline_svg import style
from jaxpmi.runs.writers.pictures import new_figure
from jaxpmi.runs.writers.pictures import task_ticks

MOST_POINTS = 200  # of a curve of losses
POINTS = 72  # per inch, which are pixels of the page
WIDTH, HEIGHT = 400, 240  # shown on a phone at four fifths of that
MARGINS = (58, 42, 22, 18)  # left, bottom, right, top
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^v*"


class Steps(NamedTuple):
    """Losses of one phase of one task, at the run's logged steps."""

    task: int
    phase: str
    steps: list[int]
    losses: list[float]


class Fall(NamedTuple):
    """A loss before and after a descent."""

    name: str
    first: float
    last: float


def draw_accuracies(
    matrix: np.ndarray, seen: Sequence[float], measure: str, name: str = "accuracies"
) -> str:
    """The value of every task after it was learnt, and that of all classes so far.

    Args:
      matrix: f[T, T] in [0, 1], NaN where not yet learnt.
      seen: f[T], or [] where it is not known.
      measure: what they are.
      name: the figure's, on its page.
    """
    tasks = np.arange(1, len(matrix) + 1)
    with style():
        figure, axes = _axes()
        for task, column in enumerate(matrix.T):
            x, y = tasks[task:], 100 * column[task:]
            axes.plot(x, y, color=MUTED, linewidth=0.9, marker="o", markersize=2.5)
            if np.isfinite(y[0]):
                _mark(axes, task + 1, x[0], y[0], (0, 5), MUTED)
        if len(seen):
            axes.plot(tasks, 100 * np.asarray(seen), color=ACCENT, linewidth=2.4, **_marker("o"))
        _percent_axis(axes, measure, np.nanmin(matrix))
        _task_axis(axes, len(matrix))
        label = f"Curves of {measure} in percent over {len(matrix)} tasks; the tables have them."
        return inline_svg(figure, name, label)


def draw_student(progress: Sequence[float], student: Sequence[float], teacher: float) -> str:
    """The accuracy of a student on its way, all in [0, 1], below its teacher's."""
    with style():
        figure, axes = _axes()
        axes.axhline(100 * teacher, color=INK, linewidth=1, linestyle=DASHES[1])
        _mark(axes, "teacher", 0, 100 * teacher, (2, 4), INK, ha="left")
        x = 100 * np.asarray(progress)
        axes.plot(x, 100 * np.asarray(student), color=ACCENT, linewidth=2, **_marker("o"))
        _percent_axis(axes, "accuracy", min(*student, teacher))
        axes.set_xlabel("of the student's training, %")
        axes.set_xlim(0, 103)
        return inline_svg(figure, "student", "Accuracy of the student over its training.")


def draw_losses(curves: Sequence[Steps], name: str) -> str:
    """A loss over the logged steps, phase by phase, with a rule where a task begins."""
    with style():
        figure, axes = _axes()
        starts = {}
        for curve in map(_thinned, curves):
            starts.setdefault(curve.task, curve.steps[0])
            few = {"marker": "o", "markersize": 2.5} if len(curve.steps) < 3 else {}
            axes.plot(curve.steps, curve.losses, color=ACCENT, linewidth=1.4, **few)
        _log_axis(axes, [loss for curve in curves for loss in curve.losses])
        axes.set(xlabel="logged steps of the run", ylabel="loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        if len(starts) > 1:
            named = task_ticks(len(starts))
            for index, (task, step) in enumerate(starts.items()):
                axes.axvline(step - 0.5, color=RULE, linewidth=0.8)
                if index in named:
                    text = f"task {task + 1}" if index == 0 else f"{task + 1}"
                    axes.annotate(
                        text, (step, 1), (1, 2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", color=MUTED,
                    )  # fmt: skip
        return inline_svg(figure, name, "The loss over the logged steps, task by task.")


def draw_falls(falls: Sequence[Fall], name: str, xlabel: str) -> str:
    """Losses before (open) and after (filled) a descent, side by side, on a logarithmic axis."""
    with style():
        figure, axes = _axes()
        places = np.arange(len(falls))
        for place, fall in zip(places, falls, strict=True):
            axes.plot([place] * 2, [fall.first, fall.last], color=MUTED, linewidth=1)
        first, last = ([getattr(fall, of) for fall in falls] for of in ("first", "last"))
        axes.plot(places, first, "o", color=ACCENT, markerfacecolor=PAPER, markersize=6)
        axes.plot(places, last, "o", color=ACCENT, markersize=6)
        _log_axis(axes, [*first, *last])
        shown = task_ticks(len(falls))
        axes.set_xticks(shown, [falls[place].name for place in shown])
        axes.set(xlabel=xlabel, ylabel="loss", xlim=(-0.6, len(falls) - 0.4))
        axes.grid(axis="y")
        return inline_svg(figure, name, "Losses before and after; the table has them.")


def draw_comparison(curves: Sequence[tuple[str, Sequence[float]]], measure: str, name: str) -> str:
    """One curve per run, over its tasks, with its mark at the end.

    Args:
      curves: mark of a run, such as a letter, and its values in [0, 1] after every task.
      measure: what they are.
      name: the figure's, on its page.
    """
    values = [np.asarray(of_run, float) for _, of_run in curves]
    num_tasks = max(map(len, values))
    with style():
        figure, axes = _axes()
        for index, of_run in enumerate(values):
            y = 100 * of_run
            axes.plot(
                np.arange(1, len(y) + 1), y, linewidth=1.6, color=SERIES[index % len(SERIES)],
                linestyle=DASHES[index // len(SERIES) % len(DASHES)],
                **_marker(MARKERS[index % len(MARKERS)]),
            )  # fmt: skip
        ends = [(len(of_run), 100 * of_run[-1], i) for i, of_run in enumerate(values)]
        ends = [end for end in ends if np.isfinite(end[1])]
        for x, y, index, lifted in _apart(ends, 6.0):
            colour = SERIES[index % len(SERIES)]
            _mark(axes, curves[index][0], x, y, (7, lifted * 1.7 - 4), colour, ha="left")
        _percent_axis(axes, f"{measure}, all so far", min(np.nanmin(y) for y in values))
        _task_axis(axes, num_tasks)
        return inline_svg(figure, f"curves-{name}", f"Curves of {measure} of {len(curves)} runs.")


def _thinned(curve: Steps) -> Steps:
    """The same with fewer points, each the mean of those since the one before."""
    times = -(-len(curve.steps) // MOST_POINTS)
    if times == 1:
        return curve
    ends = np.arange(times, len(curve.steps) + 1, times)
    means = np.reshape(curve.losses[: ends[-1]], (-1, times)).mean(1)
    return curve._replace(steps=np.asarray(curve.steps)[ends - 1].tolist(), losses=means.tolist())


def _axes():
    """Axes at the same place in all figures, which takes less time than to fit them."""
    figure = new_figure(WIDTH / POINTS, HEIGHT / POINTS, layout="none")
    left, bottom, right, top = MARGINS
    figure.subplots_adjust(left / WIDTH, bottom / HEIGHT, 1 - right / WIDTH, 1 - top / HEIGHT)
    return figure, figure.subplots()


def _marker(shape):
    return {"marker": shape, "markersize": 5, "markerfacecolor": PAPER, "markeredgewidth": 1.6}


def _mark(axes, text, x, y, offset, colour, ha="center"):
    axes.annotate(
        str(text), (x, y), offset, textcoords="offset points", ha=ha, color=colour,
        annotation_clip=False,
    )  # fmt: skip


def _percent_axis(axes, measure, lowest):
    """Up to 100, from the next lower fifth that leaves some room below the lowest value."""
    bottom = 20 * max(0, int((100 * lowest - 5) // 20))
    axes.set(ylabel=f"{measure}, %", ylim=(bottom, 100 + 0.06 * (100 - bottom)))
    axes.set_yticks(np.arange(bottom, 101, 20 if bottom < 60 else 10))
    axes.grid(axis="y")


def _task_axis(axes, num_tasks):
    axes.set_xticks(task_ticks(num_tasks) + 1)
    axes.set(xlabel="tasks learnt", xlim=(0.8, num_tasks + 0.3))


def _log_axis(axes, values):
    """Logarithmic, unless a value has no logarithm; ticks at 1, 2 and 5 with plain numbers."""
    from matplotlib.ticker import FuncFormatter
    from matplotlib.ticker import LogLocator
    from matplotlib.ticker import NullLocator

    if min(values) <= 0:
        return
    axes.set_yscale("log")
    subs = (1, 2, 5) if max(values) < 300 * min(values) else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(ends, gap):
    """Yields x, y, index and by how much its mark is lifted, so that no two are closer."""
    last = {}
    for x, y, index in sorted(ends):
        last[x] = max(y, last.get(x, -np.inf) + gap)
        yield x, y, index, last[x] - y
