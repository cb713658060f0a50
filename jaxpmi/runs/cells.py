"""The cells of a sweep: every method with every setting and seed, each a run of its own."""

import dataclasses
import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

from jaxpmi.config import Config
from jaxpmi.config.check import validate
from jaxpmi.config.load import load_config
from jaxpmi.config.settings import leaves
from jaxpmi.runs.session import check_workdir

MAX_NAME = 150  # letters of a cell's folder; file systems allow 255 bytes


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder, e.g. pmi-train.epochs=3-seed0.
      config: its settings, the folder among them.
      settings: those that the sweep varies, besides method and seed, by path.
      arguments: of `launch/run.py`.
    """

    name: str
    config: Config
    settings: dict[str, Any]
    arguments: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether its run has come to its end."""
        return (Path(self.config.workdir) / "summary.json").is_file()


def plan_cells(
    path: str,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    settings: Mapping[str, Sequence[str]] | None = None,
    workdir: str | None = None,
) -> list[Cell]:
    """Returns every cell of the product, all methods with one seed before those with the next.

    Args:
      path: of the config file.
      overrides: as `load_config` takes them, for all cells.
      methods: names for `config.method`; (): the config's own.
      seeds: for `config.seed`; (): the config's own.
      settings: path of a field -> its values as they are typed, several words for a tuple.
      workdir: for the folders of all cells; None: the config's, followed by "_sweep".

    Raises:
      ValueError, OSError: a config cannot be read or cannot work, a field is given twice, or a
        folder holds a run with another config.
    """
    settings = dict(settings or {})
    _check_given_once(overrides, methods, seeds, settings)
    cells = []
    for values in itertools.product(*settings.values()):
        chosen = [word for pair in zip(settings, values, strict=True) for word in _option(*pair)]
        options = [*overrides, *chosen]
        base = load_config(path, options)
        folder = Path(workdir or f"{base.workdir}_sweep").expanduser()
        fields = {leaf.path: leaf.value for leaf in leaves(base)}
        varied = {_field(name): fields[_field(name)] for name in settings}
        for method, seed in itertools.product(methods or [base.method], seeds or [base.seed]):
            name = _name(method, varied, seed)
            config = dataclasses.replace(base, method=method, seed=seed, workdir=str(folder / name))
            own = ("--method", method, "--seed", str(seed), "--workdir", config.workdir)
            cells.append(Cell(name, config, varied, ("--config", path, *options, *own)))
    cells = _in_order(cells)
    _check(cells)
    return cells


def _in_order(cells):
    """Seed by seed in the order given, so that what is compared is there early."""
    seeds = list(dict.fromkeys(cell.config.seed for cell in cells))
    methods = list(dict.fromkeys(cell.config.method for cell in cells))
    return sorted(cells, key=lambda c: (seeds.index(c.config.seed), methods.index(c.config.method)))


def _check(cells):
    """Raises for the first cell that is there twice, cannot work, or whose folder is taken."""
    names = [cell.name for cell in cells]
    for cell in cells:
        if names.count(cell.name) > 1:
            raise ValueError(f"the cell {cell.name} is there twice; give every value once.")
        validate(cell.config)
        check_workdir(cell.config)


def _check_given_once(overrides, methods, seeds, settings):
    """Raises if a field is set for all cells and varied too."""
    for name in settings:
        if _field(name) in ("method", "seed", "workdir"):
            plural = "" if name == "workdir" else "s"
            raise ValueError(f"--set {name} is not for this; use --{name}{plural}.")
    varied = [*["method"][: len(methods)], *["seed"][: len(seeds)], *map(_field, settings)]
    options = [word.partition("=")[0] for word in overrides if word.startswith("--")]
    fixed = {_field(option.removeprefix("--")) for option in options}
    for name in varied:
        group, dot, last = name.rpartition(".")
        if {name, f"{group}{dot}no_{last}"} & fixed:
            raise ValueError(
                f"{name} is given for all cells and varied too; leave one of the two out."
            )


def _option(name: str, value: str) -> list[str]:
    """The words that set a field on the command line of a run."""
    kinds = {leaf.path: leaf.kind for leaf in leaves(Config())}
    group, dot, last = name.replace("_", "-").rpartition(".")
    if kinds.get(_field(name)) is not bool:
        return [f"--{group}{dot}{last}", *shlex.split(value)]
    if value not in ("True", "False"):
        raise ValueError(f"--set {name} got {value!r}; expected True or False.")
    return [f"--{group}{dot}{'' if value == 'True' else 'no-'}{last}"]


def _field(name: str) -> str:
    return name.replace("-", "_")


def _name(method: str, settings: Mapping[str, Any], seed: int) -> str:
    """A folder's name that says what is in it; of odd letters or many, with a hash of all."""
    parts = [method.replace(":", "."), *(f"{k}={_text(v)}" for k, v in settings.items())]
    exact = "-".join(parts)
    plain = re.sub(r"[^\w.,=+@-]", "_", exact)[:MAX_NAME]
    if plain != exact:
        plain += "-" + hashlib.sha256(exact.encode()).hexdigest()[:8]
    return f"{plain}-seed{seed}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
