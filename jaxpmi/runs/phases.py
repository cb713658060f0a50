"""What a run is made of: tasks of phases, each a generator of ticks.

A phase works in steps and yields after every one. It starts at `state.step`, so a resumed run
continues in the middle of it, and draws all its randomness from the state and its position, so it
continues to the same result. A state is a `flax.struct.dataclass` with the position in it: `task`,
`phase` and `step`, i32[] each.
"""

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax

from jaxpmi.config import Config
from jaxpmi.runs.accounting import Accounts


class NonFiniteLossError(ArithmeticError):
    """Raised when a loss term becomes NaN or infinite; names the term, the task and the step."""


class Tick(NamedTuple):
    """Progress of a phase: the state after a step, and what to tell of it."""

    state: Any
    step: int  # steps done
    total: int  # steps of the phase
    scalars: dict[str, jax.Array]  # device scalars, by metric name
    bad_step: dict[str, jax.Array]  # first step with a non-finite term, per term, or -1
    num_images: int  # images worked on since the tick before


PhaseFn = Callable[[Any, Any], Iterator[Tick]]  # of a run and its state


class System(NamedTuple):
    """A kind of run: how it begins, what a task is made of, what is told and drawn.

    A run is what stays the same from the first step to the last: an object with the `mesh`, and
    whatever the phases need.
    """

    open_inputs: Callable[[Config], Any]  # what is read: its `sources` are data sets, by what they
    # are called in summary.json, each as `jaxpmi.data.describe_source` takes it
    begin: Callable[[Config, Any], tuple[Any, Any]]  # the run and its first state, on these inputs
    num_tasks: Callable[[Any], int]
    begin_task: Callable[[Any, int], list[tuple[str, PhaseFn]]]  # its phases, in order, by name
    draw: Callable[[Any, Any, str, Path], str]  # after a phase of that name: writes pictures below
    # a folder; says why not, or ""
    summarise: Callable[[Any, Any, Accounts], dict[str, Any]]  # the content of summary.json
    report: Callable[[dict[str, Any], Path], None] = lambda summary, folder: None  # writes a
    # summary's plots into a folder
    save: Callable[[Any, Any, Path], dict[str, Any]] = lambda run, state, folder: {}  # after
    # a task, the position being the next: writes what the run has made into a folder; returns what
    # summary.json tells of it
