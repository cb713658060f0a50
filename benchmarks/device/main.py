"""The run as a whole: jobs within the time, rows as they come, tables at the end."""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable

from benchmarks.device import SECTIONS
from benchmarks.device import parity
from benchmarks.device import report
from benchmarks.device.schedule import Clock
from benchmarks.device.schedule import end_process_after
from benchmarks.device.schedule import has_failed
from benchmarks.device.schedule import run_jobs
from benchmarks.device.sections import choose_plan
from benchmarks.device.sections import make_jobs

LAST_SECONDS = 10  # of the run, that no case may begin in


def run(options: argparse.Namespace, say: Callable[[str], None], write: Callable) -> int:
    """Runs the command line of `launch/bench.py device`; returns the exit code.

    Args:
      options: `quick`, `minutes`, `only`, `torch_python`, `write_expected`.
      say: is given a line per row.
      write: is given `rows`, all so far, and whether the run was `cut_off`.
    """
    if options.write_expected:
        parity.write_expected()
        return 0
    begin, plan = time.monotonic(), choose_plan(quick=options.quick)
    seconds = 60.0 * (options.minutes or plan.minutes)
    only = options.only or SECTIONS
    shares = dict(zip(SECTIONS, plan.shares, strict=True))
    total = sum(shares[name] for name in only)
    clock = Clock(seconds - LAST_SECONDS, {n: shares[n] / total for n in SECTIONS if n in only})
    kept, lock = [], threading.Lock()

    def keep(rows):
        with lock:
            kept[:] = rows
            write(rows=rows, cut_off=False)

    def last_words():
        lock.acquire()  # for good: nothing may be written after this
        write(rows=kept, cut_off=True)
        print(report.tables(kept) + "\n\nThe time was over; the last case was cut off.", flush=True)

    timer = end_process_after(seconds, last_words)
    try:
        with tempfile.TemporaryDirectory() as cache:
            jobs = make_jobs(plan, only=only, torch_python=options.torch_python, cache=cache)
            tell = lambda row: say(report.line(row))  # noqa: E731
            rows = run_jobs(jobs, clock, begin=begin, write=keep, say=tell)
    finally:
        timer.cancel()
    print(report.tables(rows), flush=True)
    return int(has_failed(rows))
