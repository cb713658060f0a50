"""Several runs on one page: their curves over each other, a row for each, and what differs."""

import string
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from jaxpmi.config.load import MAY_DIFFER
from jaxpmi.config.load import differing_fields
from jaxpmi.runs import comparison
from jaxpmi.runs.writers.html_report import figures
from jaxpmi.runs.writers.html_report import results
from jaxpmi.runs.writers.html_report.numbers import counted
from jaxpmi.runs.writers.html_report.numbers import in_bytes
from jaxpmi.runs.writers.html_report.numbers import in_seconds
from jaxpmi.runs.writers.html_report.numbers import is_number
from jaxpmi.runs.writers.html_report.numbers import percent
from jaxpmi.runs.writers.html_report.parts import Figure
from jaxpmi.runs.writers.html_report.parts import Section
from jaxpmi.runs.writers.html_report.parts import Table
from jaxpmi.runs.writers.html_report.parts import Text
from jaxpmi.runs.writers.html_report.record import said
from jaxpmi.runs.writers.html_report.run_files import RunFiles
from jaxpmi.runs.writers.words import SCORES


def compare(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """The content of the page."""
    marks = [_mark(index) for index in range(len(runs))]
    names = sorted({results.dataset_name(run) for run in runs})
    finished = sum(run.finished for run in runs)
    return {
        "title": f"{counted(len(runs), 'run')} on {', '.join(names)}",
        "lead": f"Every run has a letter, {marks[0]} to {marks[-1]}.",
        "status": f"{finished} of {len(runs)} have finished.",
        "sections": [
            *_curves(runs, marks),
            *_over_seeds(runs),
            _results(runs, marks),
            *_differences(runs, marks),
        ],
    }


def _mark(index):
    """A, B, .. Z, AA, AB, .."""
    more, letter = divmod(index, 26)
    return (_mark(more - 1) if more else "") + string.ascii_uppercase[letter]


def _curves(runs: Sequence[RunFiles], marks: Sequence[str]) -> Iterator[Section]:
    """A figure for every measure of which there are curves."""
    for measure in ("accuracy", results.SCENE_MEASURE):
        curves = [
            (mark, seen)
            for mark, run in zip(marks, runs, strict=True)
            if results.measure_of(run) == measure
            and any(map(is_number, seen := results.seen_of(run)))
        ]
        if curves:
            caption = f"After every task, {measure} of all classes so far; letters as below."
            name = measure.replace(" ", "-").lower()
            figure = Figure(caption, figures.draw_comparison(curves, measure, name))
            yield Section(name, f"{measure[0].upper()}{measure[1:]}", [figure])


def _results(runs, marks):
    """A row per run; only columns of which there is a number."""
    shown = [key for key in SCORES if any(is_number(run.summary.get(key)) for run in runs)]
    rows = []
    for mark, run in zip(marks, runs, strict=True):
        kept = run.summary.get("bytes_kept_between_tasks")
        rows.append(
            [
                mark,
                str(run.folder),
                f"{run.setting('method')}",
                f"{run.setting('seed')}",
                *(percent(run.summary.get(key)) for key in shown),
                in_seconds(run.summary.get("seconds", {}).get("total")),
                in_bytes(sum(kept.values())) if kept else None,
                "" if run.finished else "not finished",
            ]
        )
    columns = ["", "folder", "method", "seed", *(SCORES[key].name for key in shown)]
    table = Table("The runs.", [*columns, "time", "kept between tasks", ""], rows)
    meanings = [f"{SCORES[key].name}: {SCORES[key].meaning}." for key in shown]
    meanings = [text[0].upper() + text[1:] for text in meanings]
    return Section("runs", "Results", [table, Text(" ".join(meanings))])


def _over_seeds(runs: Sequence[RunFiles]) -> Iterator[Section]:
    """Means and spreads, where a method with its settings has run with several seeds."""
    runs = [run for run in runs if run.finished]
    paths = _differing(runs, exempt=(*MAY_DIFFER, "method", "seed"))
    finished = [
        comparison.Finished(
            run.setting("method"),
            {path: said(run.setting(path, "")) for path in paths},
            run.setting("seed"),
            run.summary,
        )
        for run in runs
    ]
    rows = comparison.compare(finished)
    if any(len(row.seeds) > 1 for row in rows):
        tables = [
            Table(of.caption.replace("`", ""), of.titles, list(map(_written, of.cells)))
            for of in comparison.tables(rows)
        ]
        yield Section("seeds", "Over seeds", tables)


def _written(row):
    """A row without Markdown, in which no line ends before or after its ±."""
    name, *cells = row
    return [name.replace("`", ""), *(cell.replace(" ", results.NO_BREAK) for cell in cells)]


def _differing(runs, exempt):
    """The settings in which any run differs from the first, by path."""
    pairs = [differing_fields(runs[0].config, run.config, exempt=exempt) for run in runs]
    return list(dict.fromkeys(path for of in pairs for path, _, _ in of))


def _differences(runs: Sequence[RunFiles], marks: Sequence[str]) -> Iterator[Section]:
    """The settings in which the runs differ."""
    paths = _differing(runs, exempt=("workdir",))
    if paths:
        rows = [[path, *(said(run.setting(path, "")) for run in runs)] for path in paths]
        table = Table("Settings that differ between the runs.", ["setting", *marks], rows)
        yield Section("settings", "Settings", [table])
