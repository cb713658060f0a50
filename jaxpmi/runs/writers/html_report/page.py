"""Writes the pages: one of a run into its folder, one of several runs where it is asked for."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from jaxpmi.runs.writers.files import replace_file
from jaxpmi.runs.writers.html_report import cost
from jaxpmi.runs.writers.html_report import record
from jaxpmi.runs.writers.html_report import results
from jaxpmi.runs.writers.html_report import synthetic
from jaxpmi.runs.writers.html_report import training
from jaxpmi.runs.writers.html_report.comparison import compare
from jaxpmi.runs.writers.html_report.run_files import read_run

if TYPE_CHECKING:
    import jinja2

REPORT_FILE = "report.html"  # in the workdir
SECTIONS = (
    results.numbers,
    results.accuracy,
    synthetic.pictures,
    synthetic.inversion,
    training.training,
    cost.cost,
    cost.kept,
    record.data,
    record.settings,
    record.repeat,
)  # in order; each is left out where a run has nothing of it


def write_report(workdir: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Writes the page of a run, whether it has finished or not, from what lies in its folder.

    Args:
      workdir: the run's folder.
      path: of the page; None: report.html in that folder.

    Returns:
      The page's path.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: a file of it is damaged.
    """
    run = read_run(Path(workdir))
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    return _write(
        Path(workdir) / REPORT_FILE if path is None else Path(path),
        title=results.title(run),
        lead=results.describe(run),
        status=results.status(run),
        sections=sections,
    )


def write_comparison(workdirs: Sequence[str | os.PathLike], path: str | os.PathLike) -> Path:
    """Writes a page that lays several runs beside each other; as `write_report` otherwise."""
    runs = [read_run(Path(workdir)) for workdir in workdirs]
    return _write(Path(path), **compare(runs))


def _write(path: Path, **content: Any) -> Path:
    page = _templates().get_template("page.html").render(**content)
    with replace_file(path) as file:
        file.write(page.encode("utf-8", "replace"))
    return path


@functools.cache
def _templates() -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
