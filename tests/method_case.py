"""A method's settings and its variant together, so that a test may change either by name."""

import dataclasses
from typing import Any
from typing import NamedTuple


class Case(NamedTuple):
    """Keywords of a method; `**case._asdict()` passes them."""

    config: Any
    variant: Any


def changed(case, **options):
    """The case with some fields changed, of its config or of its variant."""
    return Case(
        *(
            dataclasses.replace(
                part,
                **{k: v for k, v in options.items() if k in type(part).__dataclass_fields__},
            )
            for part in case
        )
    )
