"""Numbers as people read them: with their units, and few digits."""

import math
from typing import Any
from typing import NamedTuple

THIN = "\u202f"  # a narrow space that no line is broken at


class Number(NamedTuple):
    """A number to be read, with the exact one.

    Attributes:
      text: with its unit.
      value: exact, in the unit of summary.json.
      share: in [0, 1], to be drawn; None: nothing is.
    """

    text: str
    value: float
    share: float | None = None


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number; NaN is null there."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any) -> Number | None:
    """A share in percent; None of what is no number."""
    if not is_number(value):
        return None
    return Number(f"{_minus(f'{100 * value:.1f}')}{THIN}%", value, min(max(value, 0.0), 1.0))


def in_percent(value: Any) -> Number | None:
    """As `percent`, without the unit, where that stands in the caption."""
    number = percent(value)
    return number and number._replace(text=number.text.removesuffix(f"{THIN}%"))


def plain(value: Any) -> Number | None:
    """Three digits of a number, all of a count; None of what is no number."""
    if not is_number(value):
        return None
    return Number(_three_digits(value), value)


def in_bytes(value: Any, whole: float = 0) -> Number | None:
    """Bytes, in units of a thousand; `whole` is what they are a share of, 0: of nothing."""
    if not is_number(value):
        return None
    units, size = ["B", "kB", "MB", "GB", "TB"], float(value)
    while abs(size) >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    digits = f"{size:.3g}" if units[0] != "B" else f"{size:.0f}"
    return Number(f"{digits}{THIN}{units[0]}", value, value / whole if whole else None)


def in_seconds(value: Any, whole: float = 0) -> Number | None:
    """A time, in minutes or hours if it is that long; `whole` as for bytes."""
    if not is_number(value):
        return None
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        text = f"{hours}{THIN}h {minutes}{THIN}min"
    elif minutes:
        text = f"{minutes}{THIN}min {seconds}{THIN}s"
    else:
        text = f"{value:.2g}{THIN}s" if value < 9.95 else f"{value:.0f}{THIN}s"
    return Number(text, value, value / whole if whole else None)


def listed(items: list[Any], most: int = 12) -> str:
    """Texts in a row, of which some may be counted only."""
    texts = [str(item) for item in items]
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """Such as `1 task` and `4,000 images`."""
    plural = f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _three_digits(value: float) -> str:
    if isinstance(value, int):
        return _minus(f"{value:,}")
    if value and not 1e-4 <= abs(value) < 1e6:
        digits, exponent = f"{value:.2e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return _minus(f"{digits}{THIN}×{THIN}10{raised}")
    text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return _minus(text if value else "0")


def _minus(text: str) -> str:
    """With the sign that is as wide as a digit."""
    return text.replace("-", "\u2212")
