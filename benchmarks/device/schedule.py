"""Runs the cases of a benchmark within a time, and keeps what there is after every one of them."""

import os
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

Row = dict[str, Any]


class Job(NamedTuple):
    """A case of a section."""

    section: str
    name: str
    rows: Callable[[float], Iterable[Row]]  # given the seconds until its section has to end
    takes_time: bool = True  # if not, it is run even where no time is left


class Clock(NamedTuple):
    """A budget, of which every section has its share."""

    seconds: float
    shares: Mapping[str, float]  # by section, in order; their sum is 1 at most
    now: Callable[[], float] = time.monotonic

    def left(self, section: str, begin: float) -> float:
        """Seconds until a section has to end; what earlier ones have left over is its own too."""
        names = list(self.shares)
        until = sum(self.shares[name] for name in names[: names.index(section) + 1])
        return begin + until * self.seconds - self.now()


def run_jobs(
    jobs: Sequence[Job],
    clock: Clock,
    *,
    begin: float,
    write: Callable[[list[Row]], None],
    say: Callable[[Row], None],
) -> list[Row]:
    """Runs jobs in order; returns their rows.

    A job whose section has no time left is skipped; an error is its row's, and the next job runs.

    Args:
      jobs: in order of their sections.
      clock: the budget.
      begin: when it began, by the clock.
      write: is given all rows so far, after every new one.
      say: is given every new row.
    """
    rows: list[Row] = []

    def add(job, row):
        rows.append({"section": job.section, "case": job.name, **row})
        write(rows)
        say(rows[-1])

    for job in jobs:
        since, left = clock.now(), clock.left(job.section, begin)
        if left <= 0 and job.takes_time:
            add(job, {"skipped": "no time was left"})
            continue
        try:
            for row in job.rows(left):
                add(job, {**row, "wall_seconds": round(clock.now() - since, 2)})
                since = clock.now()
        except Exception as error:  # noqa: BLE001  whatever it is, the other cases are wanted
            lines = str(error).splitlines() or [""]
            add(job, {"error": f"{type(error).__name__}: {lines[0][:500]}"})
    return rows


def has_failed(rows: Iterable[Row]) -> bool:
    """Whether a case ended with an error or was found wrong."""
    return any("error" in row or row.get("passed") is False for row in rows)


def end_process_after(seconds: float, last_words: Callable[[], None]) -> threading.Timer:
    """Ends this process with code 1 then, whatever it is doing; `cancel` the timer before.

    A compiler that hangs can be stopped by nothing else, and a borrowed device waits for nobody.
    """

    def end():
        last_words()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
