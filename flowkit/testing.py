"""Test code that uses flowkit: virtual time, and every order that a graph allows.

Knows the private arguments of ``run()``. Does not know the tests.

>>> from flowkit import DAG, task
>>> from flowkit.testing import VirtualClock
>>> clock = VirtualClock()
>>> with DAG("slow") as dag:
...     @task(retries=2, delay=6 * 3600, max_delay=1e9, jitter=0)
...     def flaky() -> str:
...         if clock.now() < 10_000:
...             raise ConnectionError("not yet")
...         return "done"
>>> clock.run(dag)["flaky"], clock.now() > 6 * 3600
('done', True)
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from queue import SimpleQueue

from .context import holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from .dag import DAG
    from .engine.clock import IsQuiet
    from .results import RunResult

    _Sleeper = tuple[float, int, Any, Callable[[], object]]

__all__ = ["VirtualClock", "run_fuzzed"]

_LOOK_AGAIN = 0.02
"""Real seconds between two looks of a sleeping attempt at whether it was given up."""


class VirtualClock:
    """A clock that jumps to the next thing that happens, as soon as everything waits for it.

    Backoff, timeouts and :meth:`sleep` take no real time. Time stands still while a task works, so tasks under test
    call ``clock.sleep`` where they would call ``time.sleep``, and ``await clock.sleep_async(...)`` where they would
    await ``asyncio.sleep``. Tasks in processes have no virtual time.

    Args:
        start: The first reading, in seconds; above 0.
    """

    def __init__(self, start: float = 1.0) -> None:
        if not start > 0:
            raise ValueError(f"start={start!r}: a clock's reading must be above 0.")
        self._now = start
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._sleepers: list[_Sleeper] = []
        self._wake_ups: list[SimpleQueue[None]] = []
        """One for each run that waits on this clock."""

    def run(self, dag: DAG, inputs: Any = None, **options: Any) -> RunResult:
        """Return ``dag.run(inputs, **options)`` in virtual time."""
        return dag.run(inputs, _clock=self, **options)

    def now(self) -> float:
        """Return the reading in seconds."""
        return self._now

    def epoch(self) -> float:
        """Return 0: timestamps are readings, so that two runs give the same ones."""
        return 0.0

    def sleep(self, seconds: float) -> None:
        """Let *seconds* of virtual time pass for the calling task."""
        worker: Any = holder.get()
        if worker is None or worker.is_inline:
            with self._lock:
                self._now += seconds
            return
        gate = threading.Lock()
        gate.acquire()
        self._wake_in(seconds, worker, gate.release)
        while not gate.acquire(timeout=_LOOK_AGAIN):
            if worker.is_abandoned:
                return

    async def sleep_async(self, seconds: float) -> None:
        """Let *seconds* of virtual time pass for the calling ``async def`` task."""
        import asyncio  # noqa: PLC0415 - whoever calls this has it

        worker: Any = holder.get()
        if worker is None or worker.is_inline:
            self.sleep(seconds)
            return
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        entry = self._wake_in(seconds, worker, lambda: loop.call_soon_threadsafe(woken.set))
        try:
            await woken.wait()
        finally:
            with self._lock:
                if entry in self._sleepers:  # cancelled: nobody sleeps here any more
                    self._sleepers.remove(entry)
                    heapq.heapify(self._sleepers)

    def _wake_in(self, seconds: float, worker: Any, wake: Callable[[], object]) -> _Sleeper:
        with self._lock:
            entry = self._now + seconds, next(self._order), worker, wake
            heapq.heappush(self._sleepers, entry)
            for wake_ups in self._wake_ups:
                wake_ups.put(None)
        return entry

    def wait(self, wake_ups: SimpleQueue[None], deadline: float | None, is_quiet: IsQuiet) -> None:
        """Block until there is a wake-up, or until nothing is left to wait for but *deadline*."""
        with self._lock:
            self._wake_ups.append(wake_ups)
        try:
            # In this order: a worker that goes idle has left its wake-up before.
            if self._move_on(deadline, lambda asleep: is_quiet(asleep) and wake_ups.empty()):
                return
            wake_ups.get()
        finally:
            with self._lock:
                self._wake_ups.remove(wake_ups)

    def _move_on(self, deadline: float | None, is_quiet: IsQuiet) -> bool:
        """Jump to whatever is next, if everything waits for it; return whether that is *deadline*."""
        with self._lock:
            if deadline is not None and deadline <= self._now:
                return True
            self._sleepers = [sleeper for sleeper in self._sleepers if not sleeper[2].is_abandoned]
            heapq.heapify(self._sleepers)
            asleep = {worker for _, _, worker, _ in self._sleepers}
            if not is_quiet(asleep):
                return False
            if self._sleepers and (deadline is None or self._sleepers[0][0] <= deadline):
                until, _, _, wake = heapq.heappop(self._sleepers)
                self._now = max(self._now, until)
                wake()
                return False
            if deadline is not None:
                self._now = deadline
            return deadline is not None


def run_fuzzed(dag: DAG, seed: int, inputs: Any = None, **options: Any) -> RunResult:
    """Run *dag* one task at a time, in an order that the graph allows and *seed* chooses.

    A missing edge shows as a result that depends on the seed. The same seed gives the same order, the same jitter and
    the same events, in virtual time.

    Args:
        dag: What to run.
        seed: Chooses the order.
        inputs: As for ``dag.run()``.
        **options: As for ``dag.run()``, but for ``executor``.
    """
    rng = random.Random(seed)  # noqa: S311 - chooses an order

    def pick(ready: Collection[int]) -> int:
        return rng.randrange(len(ready))

    clock = options.pop("_clock", None) or VirtualClock()
    return dag.run(inputs, executor="sequential", _clock=clock, _rng=rng, _pick=pick, **options)
