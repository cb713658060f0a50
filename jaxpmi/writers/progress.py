"""Progress on the console: a line per interval, and a live bar where there is a terminal."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any
from typing import TextIO

BAR_WIDTH = 24
BAR_SECONDS = 0.2  # between two drawings of the bar


class Progress:
    """Tells where a run is.

    `task 2/5  train:all  step 120/520  loss 0.41  1830 images/s  ETA 0:12`

    A line is printed every `every_seconds` and at the end of a phase. On a terminal a bar below
    it is redrawn in place.
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
        self._live = self._stream.isatty()
        self._announced: set[str] = set()
        self._bar_drawn, self._bar_time, self._bar_loss = False, -math.inf, ""
        self.phase(0, "", 0)

    def phase(self, task: int, name: str, total: int, done: int = 0) -> None:
        """Begins a phase of `total` steps, `done` of them before (a resumed run); tasks from 0."""
        self._task, self._name, self._total = task, name, total
        self._images = 0
        self._line_step, self._line_time = done, self._clock()

    def update(self, step: int, loss: Any = None, images: int = 0) -> None:
        """Tells that `step` steps of the phase are done.

        Args:
          step: counted from 1.
          loss: a number or a device scalar, which is fetched only when a line is due.
          images: worked on since the last update.
        """
        self._images += images
        now = self._clock()
        if step >= self._total or now - self._line_time >= self._every:
            self._bar_loss = "" if loss is None else f"loss {float(loss):.4g}"
            now = self._clock()  # fetching the loss waits for the device
            self._print(self._describe(step, now))
            self._images, self._line_step, self._line_time = 0, step, now
        if self._live and step < self._total and now - self._bar_time >= BAR_SECONDS:
            self._draw_bar(step, now)

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
        self._stream.flush()

    def _describe(self, step: int, now: float) -> str:
        seconds, steps = max(now - self._line_time, 1e-9), step - self._line_step
        parts = [f"task {self._task + 1}/{self._num_tasks}", self._name]
        parts += [f"step {step}/{self._total}", self._bar_loss]
        if self._images:
            parts.append(f"{_three_digits(self._images / seconds)} images/s")
        if steps > 0 and step < self._total:
            parts.append(f"ETA {_minutes((self._total - step) * seconds / steps)}")
        return "  ".join(part for part in parts if part)

    def _draw_bar(self, step: int, now: float) -> None:
        filled = round(BAR_WIDTH * min(step / max(self._total, 1), 1.0))
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        self._stream.write(f"\r\x1b[K[{bar}] {self._describe(step, now)}")
        self._stream.flush()
        self._bar_drawn, self._bar_time = True, now

    def _clear_bar(self) -> None:
        if self._bar_drawn:
            self._stream.write("\r\x1b[K")
            self._bar_drawn = False

    def _print(self, text: str) -> None:
        self._clear_bar()
        self._stream.write(text + "\n")
        self._stream.flush()


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
