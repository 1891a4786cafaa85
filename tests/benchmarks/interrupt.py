"""Row: how soon a program is gone after Ctrl-C while all its workers are in 60-second tasks.

    python -m tests.benchmarks.interrupt ENGINE

is that program. It has a process group of its own, as at a terminal, where Ctrl-C reaches each of its processes. It is
gone when the last of them is.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import NamedTuple

from . import peers, subject
from .children import start_module
from .functions import MINUTE, announce_and_sleep, announce_and_sleep_softly
from .measure import Engine, Functions
from .process import processes
from .report import Table, figure, judged
from .shapes import independent

SECONDS = 0.5
WORKERS = 4
PATIENCE = 2.0
"""Seconds after which a program that is still there is killed."""


class Sleeper(NamedTuple):
    """An engine and the tasks that it sleeps in."""

    engine: Engine
    functions: Functions


SLEEPERS = {
    each.engine.name: each
    for each in (
        Sleeper(subject.thread(WORKERS), [announce_and_sleep] * WORKERS),
        Sleeper(processes(WORKERS), [announce_and_sleep] * WORKERS),
        Sleeper(replace(subject.thread(WORKERS), name="flowkit async"), [announce_and_sleep_softly] * WORKERS),
        Sleeper(peers.graphlib_pool(WORKERS), [announce_and_sleep] * WORKERS),
    )
}


def run(quick: bool) -> list[Table]:
    """Interrupt flowkit several times, and a ThreadPoolExecutor once."""
    lines = []
    for name in SLEEPERS:
        is_flowkit = name.startswith("flowkit")
        gone = [_time_interrupt(name) for _ in range((3 if quick else 7) if is_flowkit else 1)]
        seconds = [each for each, _ in gone]
        middle, worst = statistics.median(seconds), max(seconds)
        cells = [figure(middle), judged(worst, at_most=SECONDS) if is_flowkit else figure(worst)]
        codes = ", ".join(sorted({str(code) for _, code in gone}))
        lines.append([name, *cells, codes])
    note = f"Exit code -2: ended by SIGINT. -9: still there after {PATIENCE:g} s and killed."
    title = f"Interrupt: s from Ctrl-C to the end of the last process, {WORKERS} workers in {MINUTE} s tasks"
    return [Table(title, ["", "median", "worst", "exit code"], lines, note)]


def _time_interrupt(name: str) -> tuple[float, int]:
    """Return the seconds from SIGINT until all processes of the child were gone, and its exit code."""
    with start_module("interrupt", name) as child:
        if not child.stdout or not all(child.stdout.readline() for _ in range(WORKERS)):
            raise RuntimeError(f"{name} ended before its tasks slept:\n{child.communicate()[1]}")
        time.sleep(0.05)  # the last task has said so just before its sleep
        started = time.perf_counter()
        os.killpg(child.pid, signal.SIGINT)
        try:
            child.communicate(timeout=PATIENCE)  # until nobody holds its output any more
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        return time.perf_counter() - started, child.returncode


def _sleep_until_interrupted(sleeper: Sleeper) -> None:
    """Run the tasks, one a worker."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the parent ignores it
    faulthandler.dump_traceback_later(MINUTE / 2, exit=True)  # a child whose parent died is gone, too
    sleeper.engine.run(sleeper.engine.build(independent(WORKERS), sleeper.functions))


if __name__ == "__main__":
    _sleep_until_interrupted(SLEEPERS[sys.argv[1]])
