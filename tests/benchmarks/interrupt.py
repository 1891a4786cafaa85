"""Row: how soon a process is gone after Ctrl-C while all its threads are in 60-second tasks.

    python -m tests.benchmarks.interrupt ENGINE

is that process. It says when every thread sleeps.
"""

from __future__ import annotations

import faulthandler
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from . import peers, subject
from .children import start_module
from .measure import Engine
from .report import Table, figure, judged
from .shapes import independent

SECONDS = 0.5
TASK_SECONDS = 60
WORKERS = 4
PATIENCE = 2.0
"""Seconds after which a process that is still there is killed."""
ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (subject.thread(WORKERS), peers.graphlib_pool(WORKERS))
}


def run(quick: bool) -> list[Table]:
    """Interrupt flowkit several times, and a ThreadPoolExecutor once."""
    lines = []
    for name in ENGINES:
        is_flowkit = name.startswith("flowkit")
        gone = [_time_interrupt(name) for _ in range((3 if quick else 7) if is_flowkit else 1)]
        seconds = [each for each, _ in gone]
        middle, worst = statistics.median(seconds), max(seconds)
        cells = [figure(middle), judged(worst, at_most=SECONDS) if is_flowkit else figure(worst)]
        codes = ", ".join(sorted({str(code) for _, code in gone}))
        lines.append([name, *cells, codes])
    note = f"Exit code -2: ended by SIGINT. -9: still there after {PATIENCE:g} s and killed."
    title = f"Interrupt: s from Ctrl-C to the end of the process, {WORKERS} threads in {TASK_SECONDS} s tasks"
    return [Table(title, ["", "median", "worst", "exit code"], lines, note)]


def _time_interrupt(name: str) -> tuple[float, int]:
    """Return the seconds from SIGINT until the child was gone, and its exit code."""
    with start_module("interrupt", name) as child:
        if not child.stdout or not child.stdout.readline():
            raise RuntimeError(f"{name} ended before its tasks slept:\n{child.communicate()[1]}")
        time.sleep(0.05)  # the last task has said so just before its sleep
        started = time.perf_counter()
        child.send_signal(signal.SIGINT)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return time.perf_counter() - started, child.returncode


def _sleep_until_interrupted(engine: Engine) -> None:
    """Run tasks that sleep for a minute, one a worker, and say when all of them do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the parent ignores it
    faulthandler.dump_traceback_later(TASK_SECONDS / 2, exit=True)  # a child whose parent died is gone, too
    engine.run(engine.build(independent(WORKERS), [_announcing_sleeper()] * WORKERS))


def _announcing_sleeper() -> Callable[[], None]:
    asleep: list[int] = []

    def sleep() -> None:
        asleep.append(1)
        if len(asleep) == WORKERS:
            print("asleep", flush=True)
        time.sleep(TASK_SECONDS)

    return sleep


if __name__ == "__main__":
    _sleep_until_interrupted(ENGINES[sys.argv[1]])
