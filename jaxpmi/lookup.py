"""Names in a config: of what the library has, or of the user's own code as `module:name`."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


def find_kind(name: str, table: Mapping[str, Any], field: str, kind: type, *, remedy: str) -> Any:
    """As `find`, of one kind; what else is found is refused with a remedy."""
    found = find(name, table, field)
    if not isinstance(found, kind):
        raise ValueError(f"{field}='{name}' is a {type(found).__name__}; {remedy}.")
    return found


def find(name: str, table: Mapping[str, Any], field: str) -> Any:
    """What a field of the config names: an entry of a table, or an object of one's own.

    Args:
      name: a key of `table`, or `module:name`, of which the module is imported as Python finds it.
      table: what the library has.
      field: of the config, for errors.

    Raises:
      ValueError: neither is there, or the module cannot be imported.

    >>> find("pi", {"pi": 3}, "number"), find("math:tau", {}, "number") > 6
    (3, True)
    """
    if name in table:
        return table[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(table)},"
        raise ValueError(f"{field}='{name}' is unknown; {hint} or name your own as 'module:name'.")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{field}='{name}': there is no module {error.name!r}; run where Python finds it, or "
            "put its folder on PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise ValueError(f"{field}='{name}': {module} has no {attribute!r}.") from error
