"""Values in nested dicts by their paths."""

from typing import Any

Path = tuple[Any, ...]  # of an attribute or a variable in a module: names and places in lists


def at(tree: dict[str, Any], path: Path) -> Any:
    """What is at a path of nested dicts; None: nothing."""
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def nested(values: dict[Path, Any]) -> dict[str, Any]:
    """Nested dicts of values by their paths."""
    tree = {}
    for path, value in values.items():
        *parents, last = path
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def flat(tree: dict[Any, Any], prefix: Path = ()) -> dict[Path, Any]:
    """Leaves of nested dicts by their paths."""
    leaves = {}
    for key, value in tree.items():
        path = (*prefix, key)
        leaves |= flat(value, path) if isinstance(value, dict) else {path: value}
    return leaves
