"""Config files, command-line overrides, and configs as plain dicts."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import re
import traceback
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpmi.config.experiment import Config
from jaxpmi.config.help_text import help_text
from jaxpmi.config.places import shipped_folder
from jaxpmi.config.settings import annotations
from jaxpmi.config.settings import check_fields
from jaxpmi.config.settings import describe
from jaxpmi.config.settings import leaves
from jaxpmi.config.settings import unfinished

# Fields that may change between two runs in one workdir: none of them changes a result. Where the
# data lie is one: what they are is compared by itself.
MAY_DIFFER = ("workdir", "save_images", "checkpoint_every")
MAY_DIFFER += ("data.path", "data.class_names", "invert.test_path")

ABSENT = "(absent)"  # stands for a field that one of two configs does not have


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a file (None: the defaults) with command-line overrides applied.

    Args:
      path: a Python file that defines `get_config() -> Config`; `jaxpmi:mnist` is one of ours; or a
        run's `config.json`.
      overrides: e.g. `["--inversion.per-layer.num-steps", "50", "--save-images"]`; `--help`
        prints every field and exits.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it cannot be executed or returns no config; an option names no field; a setting is
        of a wrong type or out of its range.
    """
    with unfinished():
        config = Config() if path is None else _read_config_file(find_config(path))
        check_fields(config)
        config = _override(config, list(overrides), path)
    check_fields(config)
    return config


def find_config(path: str | Path) -> Path:
    """Returns the file that `--config` names; `jaxpmi:NAME` is NAME.py of the project's configs/.

    Raises:
      ValueError: there is no such config.
    """
    owner, colon, name = str(path).partition(":")
    if owner != "jaxpmi" or not colon:
        return Path(path)
    folder = shipped_folder("configs")
    file = folder / f"{name}.py"
    if file.parent == folder and file.is_file():
        return file
    names = sorted(other.stem for other in folder.glob("*.py"))
    close = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean 'jaxpmi:{close[0]}'?" if close else f"there are {', '.join(names)}."
    raise ValueError(f"--config {path} is no config of jaxpmi; {advice}")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Returns nested dicts of what JSON can hold; tuples become lists."""
    plain = dataclasses.asdict(config)
    return {key: _listed(value) for key, value in plain.items()}


def config_from_dict(values: Mapping[str, Any], kind: type = Config) -> Any:
    """Returns the config of `config_to_dict`; absent fields take their defaults."""
    with unfinished():
        config = _from_dict(values, kind)
    check_fields(config)
    return config


def differing_fields(
    a: Config | Mapping[str, Any],
    b: Config | Mapping[str, Any],
    exempt: Sequence[str] = MAY_DIFFER,
) -> list[tuple[str, Any, Any]]:
    """Lists (path, value in a, value in b) of the fields that differ, in the order of `a`.

    Either may be the dict of another version, with more or fewer fields: those are `ABSENT`.
    """
    first, second = (
        _flatten(config_to_dict(c) if dataclasses.is_dataclass(c) else c) for c in (a, b)
    )
    pairs = (
        (path, first.get(path, ABSENT), second.get(path, ABSENT)) for path in {**first, **second}
    )
    return [(path, x, y) for path, x, y in pairs if path not in exempt and x != y]


def _read_config_file(path: Path) -> Config:
    """Executes a config file and returns what its `get_config` returns; or reads a run's."""
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist; give a file of configs/.")
    if path.suffix == ".json":
        return _read_config_of_run(path)
    names = {"__file__": str(path), "__name__": path.stem}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), names)
        if not callable(names.get("get_config")):
            raise ValueError(f"{path} defines no function get_config(); it must return a Config.")
        config = names["get_config"]()
    except Exception as error:
        raise ValueError(_config_file_error(path, error)) from error
    if not isinstance(config, Config):
        raise ValueError(
            f"get_config() of {path} returns a {type(config).__name__}; it must return a Config."
        )
    return config


def _read_config_of_run(path: Path) -> Config:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); give the config.json of a run.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings by name; give the config.json of a run.")
    return config_from_dict(values)


def _config_file_error(path: Path, error: Exception) -> str:
    """Says in one sentence what is wrong with a config file."""
    unknown = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    owner = {kind.__name__: kind for kind in _dataclasses(Config)}.get(unknown and unknown[1])
    if owner is not None:
        return _unknown_field(owner, unknown[2])
    if isinstance(error, ValueError) and str(error).startswith(str(path)):
        return str(error)
    if isinstance(error, SyntaxError):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
    where = f"{path}, line {line}" if line else str(path)
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{where}: {type(error).__name__}: {text}; correct the config file."


def _override(config: Config, overrides: list[str], path: str | Path | None) -> Config:
    """Applies command-line overrides with tyro; its boxed errors become one sentence."""
    prog = f"launch/run.py --config {'FILE' if path is None else path}"
    if {"-h", "--help"} & set(overrides):
        print(help_text(config, prog))
        raise SystemExit(0)
    _check_option_names(overrides)
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(Config, default=config, args=overrides, prog=prog)
    except SystemExit as stop:
        raise ValueError(_override_error(errors.getvalue(), overrides)) from stop


def _check_option_names(overrides: list[str]) -> None:
    """Raises for an option that names no field, with the nearest field names."""
    for option in overrides:
        name = option.partition("=")[0].removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name.startswith("tyro_"):
            continue
        owner, parts = Config, name.split(".")
        for part in parts[:-1]:
            kind = _field_kinds(owner).get(part)
            if kind is not None and not dataclasses.is_dataclass(kind):
                raise ValueError(
                    f"config field '{part}' in {owner.__name__} is no group; set --{part} itself."
                )
            if kind is None:
                raise ValueError(_unknown_field(owner, part))
            owner = kind
        kinds, last = _field_kinds(owner), parts[-1]
        if last not in kinds and kinds.get(last.removeprefix("no_")) is not bool:
            raise ValueError(_unknown_field(owner, last))
        if dataclasses.is_dataclass(kinds.get(last)):
            raise ValueError(
                f"config field '{name}' is a group; set one of its fields, e.g. "
                f"--{name}.{next(iter(_field_kinds(kinds[last])))}."
            )


def _unknown_field(owner: type, name: str) -> str:
    """Says that a field does not exist and which one may be meant."""
    close = difflib.get_close_matches(name, _field_kinds(owner), n=1)
    if not close:  # the same name elsewhere: a user left the group out
        paths = [leaf.path for leaf in leaves(Config())]
        close = [path for path in paths if path.rpartition(".")[2] == name]
    if close:
        advice = f"did you mean {' or '.join(map(repr, close))}?"
    else:
        advice = f"its fields are {', '.join(_field_kinds(owner))}."
    return f"unknown config field '{name}' in {owner.__name__}; {advice}"


def _override_error(box: str, overrides: list[str]) -> str:
    """Says in one sentence which override tyro refused, given the box it drew."""
    text = " ".join(line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:])
    kinds = {leaf.path: leaf.kind for leaf in leaves(Config())}
    for option in re.findall(r"--[\w.-]+", text):
        path = option.removeprefix("--").replace("-", "_")
        if path in kinds:
            got = _values_of(path, overrides)
            return f"{option} got {got or 'no value'}; expected {describe(kinds[path])}."
    stray = re.search(r"Unrecognized options: (.*?)  ", text + "  ")
    what = f"unrecognized arguments: {stray[1]}" if stray else text.strip() or "wrong arguments"
    return f"{what}; --help lists all options (switches such as --save-images take no value)."


def _values_of(path: str, overrides: list[str]) -> str:
    """Returns the values given for a field, as they were typed."""
    for i, option in enumerate(overrides):
        name, _, value = option.partition("=")
        if name.removeprefix("--").replace("-", "_") == path:
            following = itertools.takewhile(lambda o: not o.startswith("--"), overrides[i + 1 :])
            return " ".join(map(repr, [value] if value else following))
    return ""


def _from_dict(values: Mapping[str, Any], kind: type) -> Any:
    kinds, arguments = _field_kinds(kind), {}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(_unknown_field(kind, name))
        if dataclasses.is_dataclass(kinds[name]) and isinstance(value, Mapping):
            value = _from_dict(value, kinds[name])
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def _field_kinds(kind: type) -> dict[str, Any]:
    return {name: field for name, (field, _) in annotations(kind).items()}


def _dataclasses(kind: type) -> list[type]:
    """Lists a dataclass and all that it contains."""
    inner = [k for k in _field_kinds(kind).values() if dataclasses.is_dataclass(k)]
    return [kind, *(found for k in inner for found in _dataclasses(k))]


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, tuple | list) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _listed(value)
    return flat
