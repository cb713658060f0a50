"""Allowed values of numbers, as markers in the annotations of settings.

`Annotated[float, Positive]` is a number above 0. A marker holds for every number of its field, so
`Annotated[tuple[float, ...] | None, Positive]` is None or numbers above 0; none may be infinite
or NaN. `Range()` asks for no more than that.
"""

import math
from typing import NamedTuple


class Range(NamedTuple):
    """Allowed values of a number, and of every number of a tuple.

    Attributes:
      low: the least.
      high: the greatest.
      open_low: whether `low` itself is not allowed.
      open_high: whether `high` itself is not allowed.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if (self.low, self.high) == (-math.inf, math.inf):
            return "any finite number"
        if self.high == math.inf:
            return f"more than {self.low:.10g}" if self.open_low else f"{self.low:.10g} or more"
        if self.low == -math.inf:
            return f"less than {self.high:.10g}" if self.open_high else f"{self.high:.10g} or less"
        brackets = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {brackets[0]}{self.low:.10g}, {self.high:.10g}{brackets[1]}"

    def __repr__(self) -> str:  # in help(), where it stands among the types
        return str(self)


def AtLeast(low: int) -> Range:  # noqa: N802 (it stands among the markers)
    """Returns the marker of numbers of `low` or more."""
    return Range(low=low)


NonNegative = Range(low=0)
Positive = Range(low=0, open_low=True)
Fraction = Range(0, 1)
OpenFraction = Range(0, 1, open_low=True, open_high=True)  # neither 0 nor 1
PositiveFraction = Range(0, 1, open_low=True)  # 1, but not 0
FractionBelowOne = Range(0, 1, open_high=True)  # 0, but not 1
