"""Run attempts as coroutines on one event loop.

Knows asyncio and the loop: the caller's under ``arun``, else one of its own in a daemon thread. Does not know why an id
is ready.

Everything that touches an asyncio task happens on the loop; other threads leave ids in ``_ready`` and a call on the
loop. A coroutine is cancelled only once it has begun: asyncio would throw away one that has not, and its end would
never be told.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from ...context import holder
from ...exceptions import FlowkitError
from ...hooks import log_broken_hook
from ..daemons import DaemonExecutor
from ..loops import GRACE, end_loop
from . import NotStartedError, Worker, take_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextvars import Context
    from typing import Any, Protocol

    from . import Attempts

    class AsyncAttempts(Attempts, Protocol):
        """What a pool of coroutines asks of its run beside the end of an attempt."""

        context: Context

        def start_coroutine(self, worker: Worker, i: int, enter: Callable[..., Any]) -> Awaitable[Any]:
            """Call the coroutine function of *i*, as one attempt on *worker*; *enter* calls the condition."""

        def check_value(self, i: int, value: Any) -> None:
            """Raise TaskResultError if *value* cannot be handed on."""

        def check_process(self) -> None:
            """Raise FlowkitError if this process was forked off the one in which the run goes on."""


class _Coroutine(Worker):
    """One attempt on the loop.

    Attributes:
        task: The asyncio task.
        has_begun: Whether its first step was made, so that a cancel reaches it.
    """

    __slots__ = ("has_begun", "task")

    def __init__(self, run: Attempts, pool: object) -> None:
        super().__init__(run, pool, "loop")
        self.has_begun = False
        self.task: asyncio.Task[None] | None = None

    def enter(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call *function* as a part of the attempt."""
        token = holder.set(self)
        try:
            return function(*args, **kwargs)
        finally:
            holder.reset(token)


class CoroutinePool:
    """At most *size* coroutines at once.

    Args:
        run: Who says what an id means.
        size: The most attempts at once; None for no limit.
        loop: A loop that runs in another thread than the one that controls the run; None for one of its own.
        on_idle: Called when an attempt has ended; None if nobody wants to know.
    """

    def __init__(
        self,
        run: AsyncAttempts,
        size: int | None,
        loop: asyncio.AbstractEventLoop | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._run = run
        self._free = size if size is not None else 1 << 62
        self._loop = loop
        self._on_idle = on_idle
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._executor = DaemonExecutor()
        """What ``asyncio.to_thread`` uses on a loop of our own."""
        self._ready: deque[int] = deque()
        self._working: dict[_Coroutine, None] = {}
        """Changed on the loop only."""
        self._is_called = False
        """Whether _start_ready is due on the loop already."""
        self._is_empty = threading.Event()
        """Set while the pool closes and no coroutine is left."""
        self._is_filling = False
        """Whether _start_ready goes on."""
        self._is_closing = False
        self._is_forked = False
        self._left = 0
        """How many threads run coroutines that did not heed their cancel."""

    # ------------------------------------------------------------ from any thread

    def add(self, ids: Sequence[int]) -> None:
        """Have the attempts of *ids* made soon."""
        if not ids:
            return
        self._ready.extend(ids)
        if not self._is_called:
            self._is_called = True
            if not self._call_soon(self._start_ready):
                raise FlowkitError("the event loop was closed while a run goes on that has coroutines on it.")

    def withdraw(self) -> list[int]:
        """Take back what was added and has not started."""
        return take_all(self._ready)

    def is_starting(self) -> bool:
        """Return whether an id waits and may start."""
        return bool(self._ready and self._free)

    def working(self) -> list[Worker]:
        """Return the coroutines that have not ended."""
        return list(self._working.copy())

    def abandon(self, worker: Worker) -> int:
        """Cancel *worker*, whose attempt nobody waits for; return 0."""
        assert isinstance(worker, _Coroutine)  # noqa: S101 - for the type checker
        self._call_soon(self._give_up, worker)
        return 0

    def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
        """Cancel the coroutines of the ids that *is_unwanted* names."""
        if self._working or self._ready:
            self._call_soon(self._cancel_unwanted, is_unwanted)

    def close(self) -> int:
        """End a loop of our own, or wait for our coroutines on the caller's; return how many threads do not end."""
        with self._starting:  # a loop that is being started has started then, and another one is not
            self._is_closing = True
            loop = self._loop
        if loop is None:
            return 0
        if self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(2 * GRACE)
            return int(self._thread.is_alive()) + self._left + self._executor.close()
        if self._call_soon(self._tell_if_empty):
            self._is_empty.wait(GRACE)
        return 0

    def _call_soon(self, call: Callable[..., None], *args: Any) -> bool:
        """Have *call* made on the loop; return False if that is closed."""
        try:
            self._running_loop().call_soon_threadsafe(call, *args)
        except RuntimeError:  # the caller's own loop, which has ended without cancelling us; or the run is over
            return False
        return True

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                if self._is_closing:
                    raise RuntimeError("the pool is closed")
                is_running = threading.Event()
                self._thread = threading.Thread(
                    target=self._run_loop, args=(is_running,), name="flowkit-loop", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError as error:
                    raise FlowkitError(f"cannot start a thread for the event loop: {error}") from error
                is_running.wait()
            assert self._loop is not None  # noqa: S101 - for the type checker: set before is_running
            return self._loop

    def _run_loop(self, is_running: threading.Event) -> None:
        """Run a loop of our own, until :meth:`close`."""

        loop = self._loop = asyncio.new_event_loop()
        loop.set_default_executor(self._executor)
        loop.call_soon(is_running.set)
        while not self._is_closing:
            try:
                loop.run_forever()
            except BaseException:  # noqa: BLE001 - a task that a coroutine left behind raised an exit: see gh-102572
                log_broken_hook("a task that a coroutine started and did not wait for", "The run goes on unchanged.")
        if not self._is_forked:  # else what the loop watches is the parent's, and must not be touched
            self._left = end_loop(loop)

    # ------------------------------------------------------------ on the loop

    def _start_ready(self) -> None:
        self._is_called = False
        ready, working, run, loop = self._ready, self._working, self._run, self._loop
        assert loop is not None  # noqa: S101 - for the type checker: we are on it
        if self._is_filling:  # a coroutine of an eager loop has ended below us
            return
        self._is_filling = True
        while ready and self._free:
            worker = _Coroutine(run, self)
            working[worker] = None  # first, or the id would be out of sight for a moment
            self._free -= 1
            try:
                i = worker.current = ready.popleft()
            except IndexError:  # taken back
                self._discard(worker)
                break
            worker.task = loop.create_task(self._work(worker, i), context=run.context.copy())
        self._is_filling = False

    async def _work(self, worker: _Coroutine, i: int) -> None:
        run = self._run
        worker.has_begun = True
        run.record.workers[i] = worker.name
        run.record.started[i] = run.now()
        try:
            if worker.is_abandoned or (run.is_stopped and not run.admits(i)):
                raise NotStartedError
            awaitable = run.start_coroutine(worker, i, worker.enter)
            holder.set(worker)
            value = await awaitable
            holder.set(None)  # observers are told below, and are no part of the task
            run.check_value(i, value)
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            holder.set(None)
            ready = run.failed(worker, i, error)
        else:
            ready = run.succeeded(worker, i, value)
        worker.current = -1
        if ready:
            self._ready.extend(ready)  # first, or they would be out of sight for a moment
        self._discard(worker)
        if ready is None and self._thread is not None:
            self._leave_if_forked()
        if self._ready:
            self._start_ready()
        if self._on_idle is not None:
            self._on_idle()

    def _leave_if_forked(self) -> None:
        """End the loop in a process that a coroutine has forked off: nothing there waits for it."""
        try:
            self._run.check_process()
        except FlowkitError:
            self._is_closing = self._is_forked = True
            assert self._loop is not None  # noqa: S101 - for the type checker: we are on it
            self._loop.stop()

    def _discard(self, worker: _Coroutine) -> None:
        if worker in self._working:
            del self._working[worker]
            self._free += 1
            self._tell_if_empty()

    def _give_up(self, worker: _Coroutine) -> None:
        self._discard(worker)
        _cancel(worker)
        self._start_ready()

    def _cancel_unwanted(self, is_unwanted: Callable[[int], bool]) -> None:
        for worker in self._working:
            if is_unwanted(worker.current):
                _cancel(worker)

    def _tell_if_empty(self) -> None:
        if self._is_closing and not self._working:
            self._is_empty.set()


def _cancel(worker: _Coroutine) -> None:
    if worker.has_begun and worker.task is not None:
        worker.task.cancel()
