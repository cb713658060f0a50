"""The base of all dataclasses of settings: each checks the type and range of its own fields."""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated
from typing import Any
from typing import Literal
from typing import NamedTuple

from jaxpmi.config.places import Place
from jaxpmi.config.places import expand
from jaxpmi.config.ranges import Range

_unfinished = contextvars.ContextVar("unfinished", default=False)


class Settings:
    """Base of a frozen dataclass whose fields are checked whenever one is made.

    A subclass describes its fields in a section `Attributes:` of its docstring, and gives numbers
    a marker of `jaxpmi.config.ranges`; the docstring is completed with these ranges. Fields with
    the marker of `jaxpmi.config.places` are paths, in which `~` is expanded.
    """

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        if cls.__doc__:  # python -OO has none
            cls.__doc__ = _with_ranges(cls)

    def __post_init__(self):
        for name in _places(type(self)):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, expand(value))  # frozen, but only now made
        if not _unfinished.get():
            check_fields(self, f"{type(self).__name__}.")


class Leaf(NamedTuple):
    """One setting.

    Attributes:
      path: its name with those of its groups, e.g. inversion.per_layer.num_steps.
      kind: its type annotation, without a range.
      range: of its number or numbers; None where it has none.
      value: what it is set to.
    """

    path: str
    kind: Any
    range: Range | None
    value: Any


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yields every setting of a nested dataclass with its path."""
    for name, (kind, allowed) in annotations(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(kind) and isinstance(value, kind):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield Leaf(prefix + name, kind, allowed, value)


@functools.cache
def annotations(owner: type) -> dict[str, tuple[Any, Range | None]]:
    """Returns the type and the range, or None, of every field of a dataclass by its name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    found = {}
    for name, hint in hints.items():
        marked = typing.get_origin(hint) is Annotated
        markers = [m for m in hint.__metadata__ if isinstance(m, Range)] if marked else []
        found[name] = (hint.__origin__ if marked else hint, markers[0] if markers else None)
    return found


def meaning(owner: type, name: str) -> str:
    """Returns what the docstring of a dataclass says of a field, on one line; "" without one."""
    found = re.search(_said_of(name), owner.__doc__ or "", re.M)
    return " ".join(found[0].split()).removeprefix(f"{name}: ") if found else ""


@functools.cache
def _places(owner: type) -> tuple[str, ...]:
    """Returns the fields that are paths."""
    hints = typing.get_type_hints(owner, include_extras=True)
    markers = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return tuple(name for name, of in markers.items() if any(isinstance(m, Place) for m in of))


@contextlib.contextmanager
def unfinished() -> Iterator[None]:
    """Lets settings be made unchecked, for a caller that checks the whole they become part of.

    A part does not know its place in the whole, so only then can an error name the full path.
    """
    token = _unfinished.set(True)
    try:
        yield
    finally:
        _unfinished.reset(token)


def check_fields(config: Any, prefix: str = "") -> None:
    """Raises a ValueError for the first setting of a wrong type or out of its range."""
    for leaf in leaves(config, prefix):
        if not _is_of_type(leaf.value, leaf.kind):
            raise ValueError(
                f"{leaf.path}={leaf.value!r} is of type {type(leaf.value).__name__}; "
                f"expected {describe(leaf.kind)}."
            )
        _check_range(leaf)


def _check_range(leaf: Leaf) -> None:
    if leaf.value == "":
        raise ValueError(f"{leaf.path} is empty; give a text.")
    if leaf.range is None:
        return
    for value in leaf.value if isinstance(leaf.value, tuple) else (leaf.value,):
        if value is None or isinstance(value, str) or value in leaf.range:
            continue
        if not math.isfinite(value):
            raise ValueError(f"{leaf.path}={leaf.value} is not a finite number; give one.")
        raise ValueError(f"{leaf.path}={leaf.value} is out of range; expected {leaf.range}.")


def _is_of_type(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, option) for option in typing.get_args(kind))
    if origin is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            return all(_is_of_type(entry, kinds[0]) for entry in value)
        return len(value) == len(kinds) and all(map(_is_of_type, value, kinds))
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def describe(kind: Any) -> str:
    """Names a type in words: `one of 'sum', 'product'`, `whole numbers or None`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, options))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, options))
    if origin is tuple:
        number = "" if options[-1] is Ellipsis else f"{len(options)} "
        return f"{number}{describe(options[0]).split(' ', 1)[1]}s in a tuple"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    return "None" if kind is type(None) else words.get(kind, f"a {kind.__name__}")


def _with_ranges(owner: type) -> str:
    """Returns the docstring with every number's range at the end of what is said of its field."""
    text = inspect.cleandoc(owner.__doc__)
    for name, (kind, allowed) in annotations(owner).items():
        if allowed is not None:
            numbers = "tuple[int" in str(kind) or "tuple[float" in str(kind)
            words = f"each {allowed}" if numbers else str(allowed)
            said = rf"\g<0> {words[0].upper()}{words[1:]}."
            text = re.sub(_said_of(name), said, text, flags=re.M)
    return text


def _said_of(name: str) -> str:
    """A pattern of what a docstring says of a field: its line, and those indented further."""
    return rf"^  {name}: .*(?:\n {{4}}.*)*"
