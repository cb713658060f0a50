"""What `--help` prints: the settings that matter first, then all others by group."""

import dataclasses
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxpmi.config.settings import annotations
from jaxpmi.config.settings import meaning

FIRST = (
    "job",
    "method",
    "seed",
    "workdir",
    "data.source",
    "data.path",
    "data.tasks",
    "model.name",
    "train.epochs",
    "save_images",
)
MAX_WIDTH = 100


class _Group(typing.NamedTuple):
    """A dataclass of settings: its path, what is said of it, and its options by their paths."""

    path: str
    said: str
    options: dict[str, str]


def help_text(config: Any, prog: str) -> str:
    """Returns the help on every setting of a config, with what it is set to.

    Args:
      config: a nested dataclass.
      prog: the words of the command before its options.
    """
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    groups = list(_groups(config, width))
    options = {path: text for group in groups for path, text in group.options.items()}
    parts = [
        f"usage: {prog} [--OPTION VALUE ...]",
        "\nOptions with what they are set to; first those that matter most:",
        *(options[path] for path in FIRST),
    ]
    for group in groups:
        others = [text for path, text in group.options.items() if path not in FIRST]
        if others:
            title = f"{group.path}: {group.said}" if group.path else "Of every run, besides:"
            parts += ["", textwrap.fill(title, width), *others]
    return "\n".join(parts)


def _groups(config: Any, width: int, path: str = "", said: str = "") -> Iterator[_Group]:
    """The settings of a dataclass, then those inside of it."""
    owner, inner, options = type(config), [], {}
    for name, (kind, _) in annotations(owner).items():
        value, place = getattr(config, name), f"{path}.{name}".lstrip(".")
        if dataclasses.is_dataclass(kind):
            inner.append((value, width, place, meaning(owner, name)))
        else:
            options[place] = _option(place, kind, value, meaning(owner, name), width)
    yield _Group(path, said, options)
    for group in inner:
        yield from _groups(*group)


def _option(path: str, kind: Any, value: Any, said: str, width: int) -> str:
    """The lines of one setting: its option, its type, what it is, what it means."""
    group, dot, name = path.replace("_", "-").rpartition(".")
    option = f"--{group}{dot}{name}"
    if kind is bool:
        head = f"{option}, --{group}{dot}no-{name}"
    else:
        head = f"{option} {_words(kind)}"
    indents = {"initial_indent": "      ", "subsequent_indent": "      "}
    head = textwrap.fill(
        f"{head} = {_shown(value)}", width, initial_indent="  ", subsequent_indent="      "
    )
    return f"{head}\n{textwrap.fill(said, width, **indents)}"


def _words(kind: Any) -> str:
    """What is typed for a type: `{a,b}`, `NUMBER NUMBER`, `INT ... | None`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "{" + ",".join(map(str, options)) + "}"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_words, options))
    if origin is tuple:
        if options[-1] is Ellipsis:
            return f"{_words(options[0])} ..."
        return " ".join(map(_words, options))
    names = {int: "INT", float: "NUMBER", str: "TEXT", type(None): "None"}
    return names[kind]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "()"
    return str(value)
