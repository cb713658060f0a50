"""Progress on the console: a line per interval, and a live bar where there is a terminal."""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any
from typing import TextIO

from jaxpmi.runs.writers.console import is_terminal
from jaxpmi.runs.writers.console import tell

BAR_WIDTH = 24
BAR_SECONDS = 0.2  # between two drawings of the bar


class Progress:
    """Tells where a run is.

    `task 2/5  train:all  step 120/520  loss 0.41  1830 images/s  ETA 0:12`

    A line is printed every `every_seconds` with the rate since the line before, and at the end of
    a phase with the rate of the whole phase, compilation included. On a terminal a bar below it
    is redrawn in place.
    """

    def __init__(
        self,
        every_seconds: float = 5.0,
        *,
        num_tasks: int = 1,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`stream` is standard output by default; `clock` returns seconds."""
        self._every, self._num_tasks, self._clock = every_seconds, num_tasks, clock
        self._stream = sys.stdout if stream is None else stream
        # A dumb terminal cannot redraw a line.
        self._live = is_terminal(self._stream) and os.environ.get("TERM") != "dumb"
        self._announced: set[str] = set()
        self._bar_drawn, self._bar_time, self._bar_loss = False, -math.inf, ""
        self.phase(0, "")

    def phase(self, task: int, name: str, done: int = 0) -> None:
        """Begins a phase, `done` of its steps made before (a resumed run); tasks count from 0."""
        self._task, self._name = task, name
        self._images = self._line_images = 0
        self._line_step, self._phase_time = done, self._clock()
        self._line_time = self._phase_time

    def update(self, step: int, total: int, loss: Any = None, images: int = 0) -> None:
        """Tells that `step` of the phase's `total` steps are done.

        Args:
          step: counted from 1.
          total: steps of the phase.
          loss: a number or a device scalar, which is fetched only when a line is due.
          images: worked on since the last update.
        """
        self._images += images
        now = self._clock()
        if step >= total or now - self._line_time >= self._every:
            self._bar_loss = "" if loss is None else f"loss {float(loss):.4g}"
            now = self._clock()  # fetching the loss waits for the device
            self._print(self._describe(step, total, now))
            self._line_images, self._line_step, self._line_time = self._images, step, now
        if self._live and step < total and now - self._bar_time >= BAR_SECONDS:
            self._draw_bar(step, total, now)

    def compiling(self, name: str) -> None:
        """Announces, once per program, that nothing will seem to happen for a while."""
        if name not in self._announced:
            self._announced.add(name)
            self.message(f"compiling {name} ...")

    def message(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def close(self) -> None:
        """Removes the bar."""
        self._clear_bar()

    def _describe(self, step: int, total: int, now: float) -> str:
        since, images = self._line_time, self._images - self._line_images
        if step >= total:
            since, images = self._phase_time, self._images
        seconds, steps = max(now - since, 1e-9), step - self._line_step
        parts = [f"task {self._task + 1}/{self._num_tasks}", self._name]
        parts += [f"step {step}/{total}", self._bar_loss]
        if images:
            parts.append(f"{_three_digits(images / seconds)} images/s")
        if steps > 0 and step < total:
            parts.append(f"ETA {_minutes((total - step) * seconds / steps)}")
        return "  ".join(part for part in parts if part)

    def _draw_bar(self, step: int, total: int, now: float) -> None:
        filled = round(BAR_WIDTH * min(step / max(total, 1), 1.0))
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        tell(f"\r\x1b[K[{bar}] {self._describe(step, total, now)}", self._stream, end="")
        self._bar_drawn, self._bar_time = True, now

    def _clear_bar(self) -> None:
        if self._bar_drawn:
            tell("\r\x1b[K", self._stream, end="")
            self._bar_drawn = False

    def _print(self, text: str) -> None:
        self._clear_bar()
        tell(text, self._stream)


def _minutes(seconds: float) -> str:
    """Writes 72 seconds as 1:12, and two hours as 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _three_digits(number: float) -> str:
    """Rounds to three digits without an exponent: 1830, 41.5, 0.302."""
    if number >= 1000:
        digits = math.floor(math.log10(number)) - 2
        return str(round(number / 10**digits) * 10**digits)
    return f"{number:.3g}"
