"""What lies in a run's folder, read for its page: of a finished run, or one stopped halfway."""

import itertools
import json
import re
from pathlib import Path
from typing import Any
from typing import NamedTuple

from jaxpmi.runs.writers.files import read_json
from jaxpmi.runs.writers.html_report.numbers import is_number

METRIC = re.compile(r"task(\d+)/(.+)/([^/]+)")  # task from 0, phase, name


class Scalar(NamedTuple):
    """A number of metrics.jsonl, with its line's step."""

    step: int
    task: int
    phase: str
    name: str
    value: float


class RunFiles(NamedTuple):
    """A run as its files tell of it.

    Attributes:
      folder: its workdir.
      config: every setting, nested.
      data: by name, what was read of every data set; {} of runs of older versions.
      metrics: the numbers of metrics.jsonl by phase, in order.
      summary: the content of summary.json; {} of a run that has not finished.
    """

    folder: Path
    config: dict[str, Any]
    data: dict[str, dict[str, Any]]
    metrics: dict[str, list[Scalar]]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self.summary)

    def setting(self, path: str, default: Any = None) -> Any:
        """A setting by its path, such as `data.tasks`; the default where there is none."""
        value = self.config
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    def scalars(self, phase: str) -> list[Scalar]:
        """The numbers of all phases that a pattern matches as a whole, in order."""
        found = [of for name, of in self.metrics.items() if re.fullmatch(phase, name)]
        return sorted(itertools.chain.from_iterable(found), key=lambda scalar: scalar.step)

    def pictures(self) -> list[Path]:
        """The PNGs of `images/`, in the order of their numbers."""
        found = (self.folder / "images").glob("*.png")
        return sorted(found, key=lambda path: [*map(int, re.findall(r"\d+", path.name)), 0])


def read_run(folder: Path) -> RunFiles:
    """Reads what there is of a run.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: a file of it is damaged.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: it has no config.json; give a --workdir.")
    optional = {
        name: read_json(path) if (path := folder / f"{name}.json").is_file() else {}
        for name in ("data", "summary")
    }
    config = read_json(folder / "config.json")
    data = {name: facts for name, facts in optional["data"].items() if isinstance(facts, dict)}
    metrics = _read_metrics(folder / "metrics.jsonl")
    return RunFiles(folder, config, data, metrics, optional["summary"])


def _read_metrics(path: Path) -> dict[str, list[Scalar]]:
    """Its numbers by phase, without those of a last line that is being written."""
    phases: dict[str, list[Scalar]] = {}
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            continue
        for name, value in line.items():
            if (found := METRIC.fullmatch(name)) and is_number(value):
                scalar = Scalar(line["step"], int(found[1]), found[2], found[3], value)
                phases.setdefault(found[2], []).append(scalar)
    return phases
