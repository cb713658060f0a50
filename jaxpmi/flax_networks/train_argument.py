"""How a module is told by an argument of its call whether it trains."""

from collections.abc import Callable
from typing import Any

# The name of an argument, with "!" before it where the argument says that it does not train; a
# function from whether it trains to arguments; or nothing.
TrainArgument = str | Callable[[bool], dict[str, Any]] | None


def mode_arguments(argument: TrainArgument, train: bool) -> dict[str, Any]:
    """The arguments of a call in training or in evaluation mode."""
    if argument is None:
        return {}
    if callable(argument):
        return argument(train)
    name = argument.removeprefix("!")
    return {name: train if name == argument else not train}
