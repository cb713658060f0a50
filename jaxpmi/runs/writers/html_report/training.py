"""What a page tells of training: losses over the run, and their terms in the end."""

from jaxpmi.runs.writers.html_report import figures
from jaxpmi.runs.writers.html_report.numbers import plain
from jaxpmi.runs.writers.html_report.parts import Details
from jaxpmi.runs.writers.html_report.parts import Figure
from jaxpmi.runs.writers.html_report.parts import Section
from jaxpmi.runs.writers.html_report.parts import Table
from jaxpmi.runs.writers.html_report.run_files import RunFiles
from jaxpmi.runs.writers.words import TERMS

# Phases of which a loss is drawn, by the first word of their names, and what is told of each.
KINDS = {
    "train": "Loss on training images, replay included",
    "distill": "Loss of the student on synthetic images",
    "prune": "Loss of the network that is pruned, on synthetic images",
}
NO_TERMS = ("initial_loss", "agreement", "accuracy", "student_accuracy", "filters")
MOST_COLUMNS = 6  # tasks in the table of terms


def training(run: RunFiles) -> Section | None:
    """The losses over the run, by kind of phase."""
    parts = [part for kind in KINDS for part in _of_kind(run, kind)]
    return Section("training", "Training", parts) if parts else None


def _of_kind(run, kind):
    """The curve of a kind of phase's loss, and its terms; [] where there is none."""
    curves, terms = _read(run, kind)
    if not curves:
        return []
    caption = f"{KINDS[kind]}: mean since the point before, over the logged steps."
    if len({curve.task for curve in curves}) > 1:
        caption += " It begins anew with every task, and where there is replay it has more terms."
    svg = figures.draw_losses(curves, f"losses-{kind}")
    tasks = sorted({curve.task for curve in curves})[-MOST_COLUMNS:]
    rows = [
        [name.replace("_", " "), *(plain(of.get(task)) for task in tasks), TERMS.get(name, "")]
        for name, of in terms.items()
    ]
    columns = [f"task {task + 1}" for task in tasks] if len(tasks) > 1 else ["value"]
    table = Table("The last values, with their weights.", ["term", *columns, "what it is"], rows)
    return [Figure(caption, svg), Details("Terms of the loss", [table])]


def _read(run, kind):
    """The losses, a curve for each phase of each task, and by term the last values of tasks."""
    curves: list[figures.Steps] = []
    terms: dict[str, dict[int, float]] = {}
    for step, task, phase, name, value in run.scalars(rf"{kind}(/\w+)?"):
        if name in NO_TERMS or name.startswith("final_"):
            continue
        terms.setdefault(name, {})[task] = value
        if name == "loss":
            if not curves or (curves[-1].task, curves[-1].phase) != (task, phase):
                curves.append(figures.Steps(task, phase, [], []))
            curves[-1].steps.append(step)
            curves[-1].losses.append(value)
    return curves, terms
