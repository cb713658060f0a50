"""The settings of a nested dataclass one by one, and whether each is of its annotated type."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any
from typing import Literal
from typing import NamedTuple


class Leaf(NamedTuple):
    """One setting."""

    path: str  # e.g. inversion.per_layer.num_steps
    kind: Any  # its type annotation
    value: Any


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yields every setting of a nested dataclass with its path."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(kinds[field.name]) and isinstance(value, kinds[field.name]):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield Leaf(prefix + field.name, kinds[field.name], value)


def check_types(config: Any) -> None:
    """Raises a ValueError for the first setting that is not of its annotated type."""
    for leaf in leaves(config):
        if not _is_of_type(leaf.value, leaf.kind):
            raise ValueError(
                f"{leaf.path}={leaf.value!r} is of type {type(leaf.value).__name__}; "
                f"expected {describe(leaf.kind)}."
            )


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
