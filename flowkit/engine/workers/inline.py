"""Run attempts one at a time, in the thread that called ``run()``.

Knows the order of ids. Does not know why an id is ready: its state says so. Ids are in generation order, so when the
loop gets to one, everything upstream of it is final and the scheduler has decided about it.
"""

from __future__ import annotations

import heapq

from ...exceptions import TaskTimeoutError
from ...states import PENDING, SUCCEEDED
from . import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol

    from ..loops import PrivateLoop
    from ..scheduler import Scheduler
    from . import Attempts

    class InlineAttempts(Attempts, Protocol):
        """What an inline pool asks of its run beside the end of an attempt."""

        timers: list[Any]
        scheduler: Scheduler
        is_plain: bool

        def check_interrupt(self) -> None:
            """Raise KeyboardInterrupt if Ctrl-C was pressed."""

        def starts_now(self, i: int) -> bool:
            """Return whether *i*, whose upstream is final, may start; if not, it is final now."""

        def run_timers(self) -> None:
            """Do what is due."""

        def wait_for_timer(self) -> None:
            """Sleep until the next thing is due, and do it."""

        def is_backing_off(self, i: int | None = None) -> bool:
            """Return whether *i*, or any id, waits for its next attempt."""

        def check_process(self) -> None:
            """Raise FlowkitError if this process was forked off the one in which the run goes on."""


class InlinePool:
    """The calling thread as the only worker.

    In generation order nothing is counted: when the loop gets to an id, everything upstream of it is final.

    Args:
        run: Who says what an id means.
        timeouts: The timeout of an id in seconds; judged when the attempt returns.
        loop: Where coroutines run.
        pick: Chooses which of the ready ids is next, as a position in the list; None for generation order.
        task_of: Gives the task of an item, in a run with mapped tasks; None in one without.
    """

    def __init__(
        self,
        run: InlineAttempts,
        timeouts: Mapping[int, float],
        loop: PrivateLoop,
        pick: Callable[[Sequence[int]], int] | None = None,
        task_of: Callable[[int], int] | None = None,
    ) -> None:
        self._run = run
        self._timeouts = timeouts
        self._loop = loop
        self._pick = pick
        self._task_of = task_of
        self._ready: list[int] = []
        self.worker = Worker(run, self, "main", is_inline=True)

    def add(self, ids: Sequence[int]) -> None:
        """Note *ids* as ready."""
        self._ready += ids

    def withdraw(self) -> list[int]:
        """Take back what is ready and has not started; nothing where every id is looked at in order."""
        if self._pick is None and self._task_of is None:
            return []
        record, current = self._run.record, self.worker.current
        state, upstream, items = record.state, record.upstream, record.items
        self._ready.clear()
        return [
            i
            for i, own in enumerate(state)
            if own == PENDING and i != current and i not in items and all(state[u] >= SUCCEEDED for u in upstream[i])
        ]

    def working(self) -> list[Worker]:
        """Return the worker if it is in an attempt."""
        return [self.worker] if self.worker.current >= 0 else []

    def is_starting(self) -> bool:
        """Return False: nobody but the loop itself takes ids."""
        return False

    def abandon(self, worker: Worker) -> int:
        """Do nothing and return 0: the calling thread cannot be left behind."""
        return 0

    def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
        """Cancel the coroutine that runs, if there is one; a plain function finds out by its context."""
        if self.worker.current >= 0 and is_unwanted(self.worker.current):
            self._loop.cancel()

    def close(self) -> int:
        """Close the event loop, if there was one; the calling thread goes its own way."""
        self._loop.close()
        return 0

    def work(self) -> None:
        """Make all attempts; return when no task can start any more."""
        call = self._run.call_of(self.worker)
        if self._pick is not None:
            self._work_in_any_order(call, self._pick)
        elif self._task_of is not None:
            self._work_with_items(call, self._task_of)
        else:
            self._work_in_order(call)

    def _work_in_order(self, call: Callable[[int], Any]) -> None:
        run, worker, record, scheduler = self._run, self.worker, self._run.record, self._run.scheduler
        state, values, started, ended, workers = (
            record.state, record.values, record.started, record.ended, record.workers,
        )  # fmt: skip
        now, timers, name = run.now, run.timers, worker.name
        takes_plainly = run.is_plain and not self._timeouts
        for i in range(len(state)):
            if not scheduler.is_calm and not run.starts_now(i):
                continue
            while state[i] == PENDING:
                if takes_plainly:  # the same as _attempt, without the calls that this run does not need
                    workers[i] = name
                    started[i] = now()
                    try:
                        worker.current = i
                        if not scheduler.is_calm:
                            run.check_interrupt()
                        values[i] = call(i)
                        worker.current = -1
                    except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                        worker.current = -1
                        run.failed(worker, i, error)
                    else:
                        ended[i] = now()
                        state[i] = SUCCEEDED
                else:
                    self._attempt(call, i)
                if timers:
                    run.run_timers()
                    while run.is_backing_off(i):
                        run.wait_for_timer()

    def _work_in_any_order(self, call: Callable[[int], Any], pick: Callable[[Sequence[int]], int]) -> None:
        run, state = self._run, self._run.record.state
        while self._ready or run.is_backing_off():
            if not self._ready:
                run.wait_for_timer()
                continue
            i = self._ready.pop(pick(self._ready))
            if state[i] == PENDING:
                self._ready += self._attempt(call, i) or ()
            run.run_timers()

    def _work_with_items(self, call: Callable[[int], Any], task_of: Callable[[int], int]) -> None:
        """Make attempts in generation order, items in the place of their task."""
        run, state = self._run, self._run.record.state
        heap: list[tuple[int, int]] = []
        while True:
            for i in self._ready:
                heapq.heappush(heap, (task_of(i), i))
            self._ready.clear()
            if heap:
                _, i = heapq.heappop(heap)
                if state[i] == PENDING:
                    self._ready += self._attempt(call, i) or ()
                if run.timers:
                    run.run_timers()
                    while run.is_backing_off(i):
                        run.wait_for_timer()
            elif run.is_backing_off():
                run.wait_for_timer()
            else:
                return

    def _attempt(self, call: Callable[[int], Any], i: int) -> list[int] | None:
        run, worker, record = self._run, self.worker, self._run.record
        record.workers[i] = worker.name
        started = record.started[i] = run.now()
        try:
            worker.current = i
            run.check_interrupt()  # one that came before this line has raised nothing
            value = call(i)
            # Back to -1 in here: a Ctrl-C raises while a task is current, and must not reach the bookkeeping below.
            worker.current = -1
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            worker.current = -1
            ready = run.failed(worker, i, error)
        else:
            if i in self._timeouts and run.now() - started > self._timeouts[i]:
                late = TaskTimeoutError(record.names[i], record.attempts_of(i), self._timeouts[i])
                ready = run.failed(worker, i, late)
            else:
                ready = run.succeeded(worker, i, value)
        if ready is None:  # given up, which happens to the calling thread only in a forked child
            run.check_process()
        return ready
