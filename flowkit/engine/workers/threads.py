"""Run attempts on threads.

Knows threads and a shared queue of ids. Does not know why an id is ready.

Every worker runs the same loop. While nothing else waits it goes on at once with what became ready by its own work;
only the surplus is shared, and only a surplus wakes another worker, so that a chain never changes threads. Threads are
started when there is something for them to do; they are daemons, so that a stuck task cannot keep the process alive.

No wake-up is lost, because both sides announce before they look:

1. A worker without work puts itself on ``_idle`` and looks at ``_ready`` again; only then it sleeps on its gate.
2. Whoever shares work puts it on ``_ready`` and then looks at ``_idle``. If a wake-up is in flight it leaves it at
   that: the woken worker takes back the flag *before* it looks at ``_ready``, and wakes the next one if there is more.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque

from ...exceptions import FlowkitError
from . import NotStartedError, Worker, take_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from . import Attempts


class _Thread(Worker):
    """A worker with a thread of its own.

    Attributes:
        gate: Locked while the worker sleeps; releasing it wakes the worker.
        thread: The thread.
    """

    __slots__ = ("gate", "thread")

    def __init__(self, run: Attempts, pool: object, name: str, work: Callable[[_Thread], None]) -> None:
        super().__init__(run, pool, name)
        self.gate = threading.Lock()
        self.gate.acquire()
        self.thread = threading.Thread(target=work, args=(self,), name=f"flowkit-{name}", daemon=True)


class ThreadPool:
    """At most *size* threads, each with one attempt at a time.

    Args:
        run: Who says what an id means.
        size: The most attempts at once.
        on_idle: Called when a worker runs out of work; None if nobody wants to know.
    """

    def __init__(self, run: Attempts, size: int, on_idle: Callable[[], None] | None = None) -> None:
        self._run = run
        self._on_idle = on_idle
        self._ready: deque[int] = deque()
        self._idle: deque[_Thread] = deque()
        self._workers: list[_Thread] = []
        self._missing = size
        """How many threads may still be started. Written under _spawning."""
        self._numbers = itertools.count(1)
        self._spawning = threading.Lock()
        self._is_rousing = False
        """Whether a woken worker has not looked at _ready yet."""
        self._is_closed = False

    def add(self, ids: Sequence[int]) -> None:
        """Have the attempts of *ids* made soon."""
        self._ready.extend(ids)
        if self._ready and not self._is_rousing:
            self._rouse()

    def withdraw(self) -> list[int]:
        """Take back what was added and has not started."""
        return take_all(self._ready)

    def working(self) -> list[Worker]:
        """Return the workers that are in an attempt, or awake and about to look for one."""
        idle = self._idle.copy()
        return [worker for worker in self._workers.copy() if worker not in idle]

    def is_starting(self) -> bool:
        """Return whether an id waits and a worker is free to take it."""
        return bool(self._ready and (self._idle or self._missing))

    def abandon(self, worker: Worker) -> int:
        """Leave the thread of *worker* behind, so that another takes its place; return 1."""
        with self._spawning:
            self._workers.remove(worker)  # type: ignore[arg-type]
            self._missing += 1
        return 1

    def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
        """Do nothing: what runs on a thread asks its context."""

    def close(self) -> int:
        """End every worker that is not in an abandoned attempt, and wait for them; return 0."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().gate.release()
        for worker in self._workers:
            if not worker.is_abandoned and worker.thread is not threading.current_thread():
                worker.thread.join()
        return 0

    def _rouse(self) -> None:
        """Wake a sleeping worker, or start one more."""
        try:
            worker = self._idle.pop()
        except IndexError:
            if self._missing:
                self._spawn()
        else:
            self._is_rousing = True
            worker.gate.release()

    def _spawn(self) -> None:
        with self._spawning:
            if not self._missing or self._is_closed:
                return
            self._missing -= 1
            worker = self._make_worker(next(self._numbers))
            self._workers.append(worker)
            self._is_rousing = True
        try:
            worker.thread.start()
        except RuntimeError as error:
            self._is_rousing = False
            with self._spawning:
                self._workers.remove(worker)
                self._missing = 0  # the machine has no more; go on with those that there are
            if not self._workers:
                raise FlowkitError(f"cannot start a thread to run tasks on: {error}") from error

    def _make_worker(self, number: int) -> _Thread:
        return _Thread(self._run, self, f"thread-{number}", self._work_safely)

    def _work_safely(self, worker: _Thread) -> None:
        """Do what :meth:`_work` does; if that is what fails, and no task, the run ends and does not wait for it."""
        try:
            self._work(worker)
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody else would hear of it
            worker.current = -1
            self._run.break_down(error)

    def _work(self, worker: _Thread) -> None:
        run = self._run
        shared = self._ready
        call, succeeded, failed, now = run.call_of(worker), run.succeeded, run.failed, run.now
        started, workers, name = run.record.started, run.record.workers, worker.name
        self._is_rousing = False
        i = self._next(worker)
        while i is not None:
            if shared and not self._is_rousing and (self._idle or self._missing):
                self._rouse()
            worker.current = i
            workers[i] = name
            started[i] = now()
            try:
                if run.is_stopped and not run.admits(i):
                    raise NotStartedError
                value = call(i)
            except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                ready = failed(worker, i, error)
            else:
                ready = succeeded(worker, i, value)
            if ready and not shared:
                i = ready[0]
                if len(ready) > 1:
                    shared.extend(ready[1:])
            elif ready:  # others have waited longer
                shared.extend(ready)
                i = self._next(worker)
            elif ready is None:
                return
            else:
                i = self._next(worker)

    def _next(self, worker: _Thread) -> int | None:
        """Return the next id to make an attempt of, after a sleep if need be; None when the pool is closed."""
        worker.current = -1
        while True:
            try:
                return self._ready.popleft()
            except IndexError:
                self._idle.append(worker)
            if self._ready or self._is_closed:
                # Off the list first, then to the queue: who sees an empty queue must see this worker awake.
                try:
                    self._idle.remove(worker)
                except ValueError:  # somebody has taken it off to wake it up: let that wake-up not be left over
                    worker.gate.acquire()
                    self._is_rousing = False
            else:
                if self._on_idle is not None:
                    self._on_idle()
                worker.gate.acquire()
                self._is_rousing = False
            if self._is_closed:
                return None
