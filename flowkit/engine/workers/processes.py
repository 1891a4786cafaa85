"""Run attempts in processes that can be killed.

Knows processes, pipes and how they end. Does not know why an id is ready.

Each worker is a thread here that owns one process and one pipe: it sends a call, waits for the answer, and tells the
run; everything else it has from :class:`~.threads.ThreadPool`. A process that dies fails only what it was doing, and is
replaced when there is work again. Nothing is shared between processes, so nothing is left locked by one that dies.

::

    worker thread                               process (child.py)
    ─────────────                               ──────────────────
    a function ───────── connection ──────────► find it, which may import its module
          ◄─────────────────────────────────── "loaded"
    calls ────────────────────────────────────► make them
          ◄─────────────────────────────────── answers
    "stop ids" ───────────── side ────────────► listen: what is not wanted any more; the parent's end
          ◄─────────────────────────────────── one byte for each call that begins

Small tasks travel in batches, as many as were measured to take about a millisecond together; never tasks with a
condition, a timeout, retries or a limit.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager
from multiprocessing import resource_tracker

from ...exceptions import (
    FlowkitError,
    NotPicklableError,
    RunCancelledError,
    WorkerDiedError,
    describe,
)
from ...hooks import log_broken_hook, quiet_logger
from .. import forks
from . import NotStartedError, Worker, child
from .remote import read_answer
from .shipping import Spec, decode, encode_arguments, encode_spec
from .threads import ThreadPool, _Thread
from .wire import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from typing import Any, Protocol

    from ...task import Task
    from . import Attempts
    from .wire import Part

    class ProcessAttempts(Attempts, Protocol):
        """What a pool of processes asks of its run beside the end of an attempt."""

        run_id: str

        def task_of(self, i: int) -> Task[..., Any]:
            """Return the task of *i*."""

        def is_batchable(self, i: int) -> bool:
            """Return whether an attempt of *i* takes nothing but results by position, and nothing watches its time."""

        def arguments_for(self, worker: Worker, i: int) -> tuple[tuple[Any, ...], bool]:
            """Return what an attempt of *i* takes, and whether its condition is asked first.

            Without a condition the attempt counts as started.
            """

        def start_attempt(self, worker: Worker, i: int) -> None:
            """Note that an attempt of *i* starts."""

        def failed(
            self,
            worker: Worker,
            i: int,
            error: BaseException,
            *,
            may_retry: bool | None = None,
            has_started: bool = True,
        ) -> list[int] | None:
            """Take what came out of *i* instead of a value."""

        def take_back(self, i: int) -> None:
            """Note that the attempt of *i* has not begun after all, and is given to a worker again."""

        def add_cleanup(self, handler: Callable[[], object]) -> None:
            """Have *handler* run if the run does not end well."""


MOST_DEATHS = 3
"""A task that has killed this many workers is given up."""
_ENDING = 2.0
"""Seconds that a process gets to end by itself when it is not needed any more."""
_MOST_LAUNCHES = 3
_BEFORE_RELAUNCH = 0.02
"""Seconds that a fork server that has died gets to be seen as dead."""
_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at whether a process that says nothing lives."""
_BATCH_SECONDS = 0.001
_LARGEST_BATCH = 64
_MOST_UNREAD = 128
"""Marks that are left in the pipe. On Linux it holds 278: each byte that is written alone takes much more room."""
_UNGUARDED = 77
"""Exit code of a worker whose script would start workers again."""

_starting = threading.Lock()
"""Starting and reaping one process at a time: multiprocessing's own list of children is not safe for threads."""
_live: set[BaseProcess] = set()


_pid = os.getpid()
"""Where multiprocessing's fork server belongs; a process that was forked off cannot use it."""
_exiting: list[bool] = []
"""Not empty once the interpreter ends; then nothing is started, and multiprocessing does the reaping."""


@atexit.register
def _kill_all() -> None:
    """Let no worker of a run in the background keep the interpreter from ending: multiprocessing waits for them."""
    with _starting:
        _exiting.append(True)
        for process in list(_live):
            process.kill()


class _Process(_Thread):
    """A worker thread and its process.

    Attributes:
        asking: The ids whose condition is asked there.
        process: The process; None until there is work, and after a death.
        channel: Where calls go and answers come from.
        side: Where ids go whose attempts are to stop.
        known: Numbers of the specs that the process has.
        is_killed: Whether we have killed the process.
        unread: How many calls were answered whose marks were not read.
        waiting: The ids of the calls that are not answered.
        watch: Tells whether the process lives.
    """

    __slots__ = ("asking", "channel", "is_killed", "known", "process", "side", "unread", "waiting", "watch")

    def __init__(self, run: Attempts, pool: object, name: str, work: Callable[[Any], None]) -> None:
        super().__init__(run, pool, name, work)
        self.process: BaseProcess | None = None
        self.channel: Any = None
        self.side: Any = None
        self.known: set[int] = set()
        self.is_killed = False
        self.unread = 0
        self.asking: set[int] = set()
        self.waiting: list[int] = []
        self.watch: Any = None

    def kill(self) -> None:
        """Kill the process, if there is one."""
        self.is_killed = True
        process = self.process
        if process is not None:
            try:
                process.kill()
            except ValueError:  # it has ended, and was reaped in this moment
                return

    def ask_to_stop(self, ids: list[int]) -> None:
        """Let the attempts of *ids* know that nobody waits for them."""
        try:
            self.side.send(ids)
        except (OSError, AttributeError):  # it has ended, or not begun
            return


class ProcessPool(ThreadPool):
    """At most *size* processes, each with one attempt at a time.

    Args:
        run: Who says what an id means.
        size: The most processes at once.
        on_idle: Called when a worker runs out of work; None if nobody wants to know.
        start_method: "forkserver" or "spawn"; None for the better one of the two that this platform has.
    """

    _run: ProcessAttempts

    def __init__(
        self,
        run: ProcessAttempts,
        size: int,
        on_idle: Callable[[], None] | None = None,
        start_method: str | None = None,
    ) -> None:
        super().__init__(run, size, on_idle)
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            _refuse_to_start_in_startup()
        if os.getpid() != _pid or "forkserver" not in multiprocessing.get_all_start_methods():
            start_method = "spawn"
        start_method = start_method or "forkserver"
        self._start_method = start_method
        self._multiprocessing: Any = multiprocessing.get_context(start_method)
        self._specs: dict[Any, tuple[int, list[Part]]] = {}
        self._spec_numbers = itertools.count()
        self._seconds: dict[int, float] = {}
        """How long the function of each id() takes, a moving average."""
        self._deaths: dict[int, int] = {}
        """How many workers each id has killed."""
        self._early_deaths = 0
        """How many workers were killed by somebody while they started."""
        self._leaving: list[_Thread] = []
        """Workers whose process was killed for its timeout."""
        self._is_killing = False
        self._broken: Callable[[str], FlowkitError] | None = None
        """Says of a task why no process can be started."""
        forks.watch(self)

    # ------------------------------------------------------------ what a run asks

    def abandon(self, worker: Worker) -> int:
        """Kill the process of *worker*, so that another takes its place; return 0."""
        super().abandon(worker)
        assert isinstance(worker, _Process)  # noqa: S101 - for the type checker
        self._leaving.append(worker)
        worker.kill()
        return 0

    def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
        """Kill the processes, or tell them which attempt is not waited for."""
        self._is_killing = self._is_killing or kills
        for worker in self._workers.copy():
            assert isinstance(worker, _Process)  # noqa: S101 - for the type checker
            current = worker.current
            unwanted = [i for i in worker.waiting.copy() or [current] if i >= 0 and is_unwanted(i)]
            if kills and current in unwanted:
                worker.kill()
            elif unwanted and not kills:
                worker.ask_to_stop(unwanted)

    def close(self) -> int:
        """End every process and wait for them; return 0."""
        super().close()
        for worker in self._leaving:
            worker.thread.join()
        return 0

    def close_in_child(self) -> None:
        """Let go of the pipes in a process that was forked off: workers are to notice the end of the parent."""
        for worker in self._workers:
            assert isinstance(worker, _Process)  # noqa: S101 - for the type checker
            for end in (worker.channel, worker.side):
                if end is not None:
                    end.close()

    # ------------------------------------------------------------ the thread of a worker

    def _make_worker(self, number: int) -> _Thread:
        return _Process(self._run, self, f"process-{number}", self._work)

    def _work(self, worker: Any) -> None:
        shared = self._ready
        self._is_rousing = False
        try:
            i = self._next(worker)
            while i is not None:
                if shared and not self._is_rousing and (self._idle or self._missing):
                    self._rouse()
                ready = self._attempt(worker, self._batch(i))
                if ready is None:
                    return
                if ready and not shared:
                    i = ready[0]
                    self._ready.extend(ready[1:])
                else:
                    shared.extend(ready)
                    i = self._next(worker)
        finally:
            self._end_process(worker)

    def _batch(self, i: int) -> list[int]:
        """Return *i*, and what of the queue can travel with it."""
        ids = [i]
        left = _BATCH_SECONDS - self._usual_seconds(i)
        if left <= 0 or not self._ready:
            return ids
        most = min(_LARGEST_BATCH, len(self._ready) // max(1, len(self._workers)))
        while len(ids) < most:
            try:
                j = self._ready.popleft()
            except IndexError:  # other workers were faster
                break
            left -= self._usual_seconds(j)
            if left <= 0:
                self._ready.appendleft(j)
                break
            ids.append(j)
        return ids

    def _usual_seconds(self, i: int) -> float:
        """Return how long *i* is likely to take, in seconds; a batch has no room for what is not known."""
        if not self._run.is_batchable(i):
            return _BATCH_SECONDS
        return self._seconds.get(id(self._run.task_of(i).func), _BATCH_SECONDS)

    def _attempt(self, worker: _Process, ids: Sequence[int]) -> list[int] | None:
        """Make attempts of *ids*; return what became ready, None if nobody waits for *worker* any more."""
        run, record = self._run, self._run.record
        calls: list[tuple[Any, ...]] = []
        parts: list[Part] = []
        ready: list[int] = []
        for position, i in enumerate(ids):
            worker.current = i
            try:
                if run.is_stopped and not run.admits(i):
                    raise NotStartedError
                if not calls:
                    self._start_process(worker, i)
                    self._load(worker, i)
                elif self._spec_of(i)[0] not in worker.known:  # nobody is to wait for an import of another task
                    self._ready.extendleft(reversed(ids[position:]))
                    break
                if run.is_stopped and not run.admits(i):  # while it started
                    raise NotStartedError
                record.workers[i] = worker.name
                record.started[i] = run.now()
                self._add_call(worker, i, calls, parts)
            except BaseException as error:  # noqa: BLE001 - whatever is wrong with a task is its outcome
                became_ready = run.failed(worker, i, error, may_retry=False)
                if became_ready is None:
                    return None
                ready += became_ready
        if not calls:
            return ready
        waiting = worker.waiting = [call[0] for call in calls]
        worker.current = waiting[0]
        try:
            worker.channel.send(calls, parts)
            while waiting:
                answers, parts = worker.channel.receive(worker.watch.wait)
                first = 0
                for i, *answer, size in answers:
                    packed = parts[first : first + size]
                    became_ready = self._take(worker, i, answer, packed, waiting, is_batch=len(calls) > 1)
                    if became_ready is None:
                        return None
                    first += size
                    ready += became_ready
                worker.current = waiting[0] if waiting else -1
        except (EOFError, OSError):
            became_ready = self._take_death(worker, waiting, [call[0] for call in calls])
            return None if became_ready is None else ready + became_ready
        worker.unread += len(calls)
        if worker.unread > _MOST_UNREAD:
            worker.side.count_marks()
            worker.unread = 0
        return ready

    def _add_call(self, worker: _Process, i: int, calls: list[tuple[Any, ...]], parts: list[Part]) -> None:
        run = self._run
        name = run.record.names[i]
        arguments, asks = run.arguments_for(worker, i)
        packed = encode_arguments(name, arguments, run.task_of(i).func)
        attempt = run.record.attempts_of(i) or 1
        if asks:
            worker.asking.add(i)
        calls.append((i, str(name), attempt, self._spec_of(i)[0], len(packed), asks))
        parts += packed

    def _spec_of(self, i: int) -> tuple[int, list[Part]]:
        task = self._run.task_of(i)
        spec = Spec.of(task)
        known = self._specs.get(spec.key)
        if known is None:
            known = self._specs[spec.key] = next(self._spec_numbers), encode_spec(task.name, spec)
        return known

    def _take(
        self,
        worker: _Process,
        i: int,
        answer: Sequence[Any],
        parts: Sequence[Part],
        waiting: list[int],
        *,
        is_batch: bool,
    ) -> list[int] | None:
        """Tell the run of one answer about *i*; return what became ready."""
        run = self._run
        kind = answer[0]
        if kind == "holds":
            worker.asking.discard(i)
            try:
                run.start_attempt(worker, i)
            except NotStartedError:
                worker.channel.send(False)
            else:
                worker.channel.send(True)
            return []
        if kind == "cleanup":
            run.add_cleanup(decode(parts))
            return []
        if kind == "log":
            _log(parts)
            return []
        if i not in waiting:
            return []
        waiting.remove(i)
        worker.asking.discard(i)
        if kind == "stopped":
            return run.failed(worker, i, NotStartedError())
        if kind == "value":
            if is_batch:
                run.record.started[i] = run.now() - answer[1]
            self._learn(i, answer[1])
        elif kind == "refused":
            worker.known.clear()  # if its function was not found, another attempt may find it
        value, error, may_retry = read_answer(run.record.names[i], answer, parts)
        if error is None:
            return run.succeeded(worker, i, value)
        return run.failed(worker, i, error, may_retry=may_retry)

    def _learn(self, i: int, seconds: float) -> None:
        func = id(self._run.task_of(i).func)
        known = self._seconds.get(func)
        self._seconds[func] = seconds if known is None else known + (seconds - known) / 4

    # ------------------------------------------------------------ processes

    def _start_process(self, worker: _Process, i: int) -> None:
        """Start the process of *worker*, if it has none, and wait until it can take calls."""
        if worker.process is not None:
            if not worker.watch.has_ended():
                return
            self._end_process(worker)  # killed between two calls
        if self._broken is not None:
            raise self._broken(self._run.record.names[i])
        name = self._run.record.names[i]
        for left in reversed(range(_MOST_LAUNCHES)):
            try:
                process = self._launch(worker)
            except Exception as error:
                is_server_gone = isinstance(error, (EOFError, ConnectionError))  # the next launch starts another one
                if not (is_server_gone and left):
                    raise FlowkitError(f"cannot start a worker process: {describe(error)}") from error
                time.sleep(_BEFORE_RELAUNCH)
            else:
                break
        worker.process = process
        worker.known.clear()
        worker.unread = 0
        worker.watch = _Watch(worker.channel.connection, process)
        worker.is_killed = False
        if self._is_killing or worker.is_abandoned:
            worker.kill()
        try:
            worker.channel.receive(worker.watch.wait)
        except (EOFError, OSError):
            try:
                self._take_early_death(worker, i)
            except WorkerDiedError as death:
                if death.exitcode < 0:
                    raise
                self._broken = functools.partial(_startup_error, death.exitcode)
                raise self._broken(name) from None
            self._start_process(worker, i)

    def _load(self, worker: _Process, i: int) -> None:
        """Have the process of *worker* find what *i* calls, unless it has; importing it is no part of the attempt."""
        number, parts = self._spec_of(i)
        if number in worker.known:
            return
        try:
            worker.channel.send(number, parts)
            while number not in worker.known:
                answers, parts = worker.channel.receive(worker.watch.wait)
                first = 0
                for j, *answer, size in answers:
                    if answer[0] == "loaded":
                        worker.known.add(number)
                    else:  # what the module logs
                        self._take(worker, j, answer, parts[first : first + size], [], is_batch=False)
                    first += size
        except (EOFError, OSError):
            self._take_early_death(worker, i)
            self._start_process(worker, i)
            self._load(worker, i)

    def _take_early_death(self, worker: _Process, i: int) -> None:
        """Raise what a death before the first call means for *i*; return if another process may do better."""
        assert worker.process is not None  # noqa: S101 - for the type checker: it has died just now
        was_killed, pid = worker.is_killed, worker.process.pid or 0
        exitcode = self._end_process(worker)
        if was_killed:
            raise NotStartedError from None
        if exitcode >= 0 or self._early_deaths >= MOST_DEATHS:
            raise WorkerDiedError(self._run.record.names[i], pid, exitcode) from None
        self._early_deaths += 1  # somebody kills workers, and it is not the script

    def _launch(self, worker: _Process) -> BaseProcess:
        """Start a process with pipes to *worker*.

        Raises:
            Exception: Whatever multiprocessing raises when it cannot.
        """
        ours, theirs = self._multiprocessing.Pipe()
        worker.channel = Channel(ours)
        try:
            our_side, their_side = self._multiprocessing.Pipe()
            worker.side = Channel(our_side)
            try:
                process: BaseProcess = self._multiprocessing.Process(
                    target=child.main,
                    args=(theirs, their_side, self._run.run_id, quiet_logger().getEffectiveLevel()),
                    name=f"flowkit-{worker.name}",
                )
                process.daemon = False  # a daemon may not start processes of its own
                with _starting:
                    if _exiting:
                        raise RuntimeError("the interpreter is shutting down")
                    with _hold_back_interrupts(self._start_method):
                        process.start()
                    _live.add(process)
            finally:
                their_side.close()
        except BaseException:
            self._end_process(worker)
            raise
        finally:
            theirs.close()
        return process

    def _take_death(self, worker: _Process, waiting: list[int], calls: list[int]) -> list[int] | None:
        """Find out which of *calls* killed the process of *worker*, and have the others of *waiting* made again."""
        run = self._run
        begun = worker.side.count_marks() - worker.unread
        culprit = calls[begun - 1] if begun > 0 else -1
        assert worker.process is not None  # noqa: S101 - for the type checker: it has died just now
        pid = worker.process.pid or 0
        was_killed = worker.is_killed
        exitcode = self._end_process(worker)
        ready: list[int] = []
        for i in waiting:
            worker.current = i
            name = run.record.names[i]
            error: BaseException
            may_retry = None
            if was_killed:
                error = RunCancelledError(name, "its worker process was killed")
            elif i != culprit:
                run.take_back(i)
                ready.append(i)
                continue
            else:
                error = WorkerDiedError(name, pid, exitcode)
                self._deaths[i] = self._deaths.get(i, 0) + 1
                if self._deaths[i] >= MOST_DEATHS:
                    may_retry = False
                    error.add_note(f"It has killed {MOST_DEATHS} workers and is not tried again.")
            became_ready = run.failed(worker, i, error, may_retry=may_retry, has_started=i not in worker.asking)
            if became_ready is None:
                return None
            ready += became_ready
        worker.asking.clear()
        return ready

    def _end_process(self, worker: _Process) -> int:
        """End the process of *worker* and return its exit code; killed if it does not end by itself."""
        process = worker.process
        for end in (worker.channel, worker.side):
            if end is not None:
                end.close()
        worker.process = worker.channel = worker.side = None
        if process is None:
            return 0
        if worker.is_killed or not _ends_within(process, _ENDING):
            process.kill()
            _ends_within(process, math.inf)
        with _starting:
            process.join()
            _live.discard(process)
            exitcode = process.exitcode
            if not _exiting:
                process.close()
        return exitcode if exitcode is not None else -1


def default_processes() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Watch:
    """Waits for messages of *process*, and notices its end, of which the pipe alone does not tell.

    A program that it has started may hold its end of the pipe, and even what multiprocessing watches.
    """

    __slots__ = ("_connection", "_ends", "_messages", "_number", "_process")

    def __init__(self, connection: Connection, process: BaseProcess) -> None:
        self._connection = connection
        self._number = connection.fileno()
        self._process = process
        self._messages: Any = None
        if hasattr(select, "poll"):
            self._messages, self._ends = select.poll(), select.poll()
            self._messages.register(connection, select.POLLIN)
            for poll in (self._messages, self._ends):
                poll.register(process.sentinel, select.POLLIN)

    def wait(self) -> None:
        """Return when there is a message; raise EOFError if the process has ended without one."""
        while not (ready := self._look()):
            with _starting:
                if not self._process.is_alive():
                    raise EOFError
        if self._number not in ready:
            raise EOFError

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        if self._messages is None:
            return bool(multiprocessing.connection.wait([self._process.sentinel], 0))
        return bool(self._ends.poll(0))

    def _look(self) -> list[int]:
        """Wait up to a second; return the number of the connection for a message, another one for an end."""
        if self._messages is None:
            ready = multiprocessing.connection.wait([self._connection, self._process.sentinel], _BETWEEN_LOOKS)
            return [self._number if found is self._connection else -1 for found in ready]
        return [number for number, _ in self._messages.poll(_BETWEEN_LOOKS * 1000)]


@contextmanager
def _hold_back_interrupts(start_method: str) -> Iterator[None]:
    """Let a process that is spawned in here keep a Ctrl-C of the terminal until it can ignore it.

    What it inherits is the mask of this thread. The fork server must not inherit it: it hands it on to the processes of
    everybody who uses it.
    """
    if start_method != "spawn" or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or starting a process would start it, and take the mask off again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ends_within(process: BaseProcess, seconds: float) -> bool:
    """Wait until *process* has ended, at most *seconds*; return whether it has."""
    deadline = time.monotonic() + seconds
    while True:
        with _starting:
            if not process.is_alive():
                return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        # Not longer: a program that it has started may hold what is watched here.
        multiprocessing.connection.wait([process.sentinel], min(left, 0.1))


def _refuse_to_start_in_startup() -> None:
    """Leave a process that is importing its script, and got to a run of processes in it."""
    if multiprocessing.current_process().name.startswith("flowkit-process-"):
        os._exit(_UNGUARDED)
    raise FlowkitError(
        "a run on processes was started while this process imports its script. "
        "Put it below `if __name__ == '__main__':`."
    )


def _startup_error(exitcode: int, name: str) -> FlowkitError:
    script = getattr(sys.modules["__main__"], "__file__", "the script")
    if exitcode == _UNGUARDED:
        return NotPicklableError(
            name,
            f"task {name!r} cannot run in a process: worker processes import {script} to find its functions, and it "
            f"starts the run again. Put what starts it below `if __name__ == '__main__':`.",
        )
    return NotPicklableError(
        name,
        f"task {name!r} cannot run in a process: a worker process ended with exit code {exitcode} while it imported "
        f"{script}; its own traceback stands above. Mend that, or use executor='thread'.",
    )


def _log(parts: Sequence[Part]) -> None:
    """Handle a log record of a process as if it had been made here."""
    import logging  # noqa: PLC0415 - it was imported there

    try:
        record = decode(parts)
        logging.getLogger(record.name).handle(record)
    except Exception:  # noqa: BLE001 - logging must not fail a task
        log_broken_hook("a log record of a worker process", "It is dropped.")
