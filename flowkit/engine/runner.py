"""One run: the scheduler, the workers, the timers and the events, put together.

Knows everything that happens between "run" and "result". Does not know how the graph was described.

::

    thread that called run()            workers                          scheduler (under the run's lock)
    ─────────────────────────           ─────────────────────            ────────────────────────────────
    begin: ids without upstream ──add─► attempt: call the function
    supervise: sleep until a wake-up    succeeded / failed ────────────► finish(i, state)
      or a deadline; retries, timeouts,   ◄── ids that became ready ────
      cancel, Ctrl-C                    go on with the first,
    end: cleanup, result, error         share the rest

What guards what: the record, the scheduler, the timers and the limits change under ``_lock`` only. Code of
the user (tasks, conditions, predicates, observers, cleanup handlers) never runs under it. A worker whose attempt was
given up (timed out, cancelled) has ``is_abandoned`` set under the lock; what it says afterwards changes nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from queue import SimpleQueue

from ..exceptions import (
    FlowkitError,
    RunCancelledError,
    StateError,
    StateLockedError,
    StateSerializationError,
    TaskTimeoutError,
    describe,
)
from ..results import RunRecord, RunResult
from ..states import (
    ACCEPT_FAILURE,
    CANCELLED,
    FAILED,
    NONE_FAILED,
    PENDING,
    SKIPPED,
    SUCCEEDED,
)
from . import forks
from .announcer import Announcer
from .attempt import Outcome, judge_error
from .calls import Calls
from .cleanup import Cleanup
from .clock import RealClock, Timers
from .interrupt import Interrupts
from .items import Items
from .limits import Limits
from .mapping import read_items
from .pools import Pools
from .scheduler import START, Scheduler
from .workers import NotStartedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from contextvars import Context
    from typing import Any

    from .checkpoint import Checkpoint
    from .clock import Clock
    from .program import Program
    from .settings import Settings
    from .workers import Worker

GRACE = 0.25
"""Seconds that running threads get to end after a cancel, before they are left behind."""
_BETWEEN_TRIES = 0.01
"""Seconds between two tries to get the state that another run has."""
_MOMENT = 20e-6
"""Seconds between two tries to get the lock; the thread that has it wants the interpreter meanwhile."""
MOST_ABANDONED = 8
"""A run that has left this many threads behind fails rather than pile up more."""


class Run:
    """One run of *program*. Make it, call :meth:`execute` once, read :meth:`result`.

    Attributes:
        run_id: Twelve hexadecimal digits.
        record: The columns that the run fills.
    """

    def __init__(self, program: Program, settings: Settings, context: Context) -> None:
        has_limits = bool(program.uses)
        if program.mapped:
            program = program.copy_for_run()
        self.program = program
        self.run_id = os.urandom(6).hex() if settings.rng is None else f"{settings.rng.getrandbits(48):012x}"
        self._settings = settings
        self.context = context
        self._clock: Clock = RealClock() if settings.clock is None else settings.clock
        self.now = self._clock.now
        self._rng = settings.rng
        self._lock = threading.Lock()
        self.scheduler = Scheduler(program.graph, program.rules)
        self.record = RunRecord(
            program.name, self.run_id, program.names, program.index, program.graph.upstream, self.scheduler.state,
            is_fail_fast=settings.fail_fast,
        )  # fmt: skip
        self._timers = Timers()
        self.timers = self._timers.heap
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._announcer = Announcer(self.record, self.now, settings.observers)
        self._limits = Limits(program.uses, settings.limits) if has_limits else None
        self._items = Items(program, self.record, self.scheduler) if program.mapped else None
        self._armed: dict[int, int] = {}
        """The attempt of an id that a timer watches; gone when that attempt has failed."""
        self._backing_off: set[int] = set()
        self._taken_back: set[int] = set()
        """Ids whose next attempt was told of already."""
        self._cleanup = Cleanup()
        self._is_failing = False
        """Whether the first failure of a fail-fast run has happened."""
        self._is_cancelled = False
        self.is_stopped = False
        """Whether it is failing or cancelled: workers look before each attempt."""
        self._is_forked = False
        self._interrupts = 0
        self._is_over = False
        self._broken: FlowkitError | None = None
        """Why the run cannot go on: there is no thread to be had, say."""
        self.calls = Calls(
            self, settings.inputs, context, is_watched=self._announcer.is_watched,
            is_sequential=settings.kind == "sequential", is_real_time=isinstance(self._clock, RealClock),
        )  # fmt: skip
        self.call_of, self.task_context = self.calls.call_of, self.calls.task_context
        self.start_coroutine, self.check_value = self.calls.start_coroutine, self.calls.check_value
        self.arguments_for, self.is_batchable = self.calls.arguments_for, self.calls.is_batchable
        self.task_of = self.calls.task_of
        self._checkpoint: Checkpoint | None = None
        keeps = settings.state is not None
        self.task_of_item: Callable[[int], int] | None = None
        if self._items is not None:
            self.task_of_item = self._items.task_of
        elif keeps:
            self.task_of_item = _itself
        on_idle = None if isinstance(self._clock, RealClock) else self._wake
        self._pools = Pools(self, program.kinds(settings.kind), settings, on_idle)
        self._inline = self._pools.inline
        self._walks = self._inline is not None and settings.pick is None and self.task_of_item is None
        """Whether ids are taken in order, so that nothing has to be counted."""
        if self._inline is not None:
            self._limits = None  # one at a time is within any limit
        is_uniform = self._limits is None and self._items is None and not (self._pools.is_mixed or keeps)
        self.is_plain = is_uniform and not self._announcer.is_watched
        self.succeeded = self._succeeded_plainly if self.is_plain and not self._walks else self._succeeded
        if keeps:
            self.succeeded = self._succeeded_durably

    # ------------------------------------------------------------ the whole run, in the controlling thread

    def execute(self) -> None:
        """Run everything; return when every task is final and nothing of the run goes on.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice.
            FlowkitError: No thread could be started, the process was forked, or results cannot be stored.
        """
        forks.watch(self)
        with Interrupts(self._interrupted):
            self._open_state()
            try:
                self._begin()
                self._go_on()
            except BaseException as error:
                self.cancel(f"interrupted by {describe(error)}")
                self._abandon()
                self._tell_end()
                raise
            finally:
                self.record.abandoned_threads += self._pools.close()
                self._is_over = True
                self._close_state()
            self._end()
            if self._broken is not None:  # the state could not be closed
                raise self._broken

    def _open_state(self) -> None:
        """Have what earlier runs have stored, if this run has a state, and let nobody else have it meanwhile."""
        settings = self._settings
        if settings.state is not None:
            from .checkpoint import Checkpoint  # noqa: PLC0415 - few runs have a state, and it imports json

            deadline = time.monotonic() + getattr(settings.state, "lock_timeout", 0.0)
            while not (self._is_cancelled or self._interrupts):
                try:
                    self._checkpoint = Checkpoint(
                        settings.state, self.program, settings.inputs, self.record, self.now, resumes=settings.resume
                    )
                except StateLockedError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(_BETWEEN_TRIES)
                else:
                    return

    def _close_state(self) -> None:
        """Let others have the state; an error is kept for later, because the run itself has ended."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None or self._is_forked:
            return
        try:
            try:
                checkpoint.write_notes()
            finally:
                checkpoint.close(RunResult(self.record).state)
        except StateError as error:
            self._broken = self._broken or error

    def _begin(self) -> None:
        record = self.record
        record.epoch = self._clock.epoch()
        record.started_at = self.now()
        self._announcer.run_started()
        self._announcer.deliver()
        self._heed_interrupt()
        with self._lock:
            if self._settings.timeout is not None:
                self._timers.add(record.started_at + self._settings.timeout, self._run_timed_out)
            ready = self.scheduler.start()
            if self._is_cancelled:  # before it began; the inline pool has taken back what it can see already
                self._stop([i for i in ready if record.state[i] == PENDING], takes_none=True)
                self._tell_decided()
                ready = []
            ready = self._admit(ready)
        self._tell()
        self._add(ready)

    def _go_on(self) -> None:
        self._supervise_heedfully()
        if self._broken is not None:
            raise self._broken

    def _supervise_heedfully(self) -> None:
        try:
            self._supervise()
        except KeyboardInterrupt:
            if self._interrupts:
                raise
            self._interrupts = 1  # it came from a handler of the application's own
            self._heed_interrupt()
            self._supervise()

    def _supervise(self) -> None:
        """Wait until every task is final; meanwhile do what is due."""
        if self._inline is not None:
            if self.scheduler.remaining:
                self._inline.work()
            self.check_process()
            self._heed_interrupt()
            return
        while True:
            with self._lock:
                if not self.scheduler.remaining:
                    return
                deadline = self._timers.next_deadline()
            self._clock.wait(self._wake_ups, deadline, self._pools.is_quiet)
            self.check_process()
            self._heed_interrupt()
            self.run_timers()

    def _end(self) -> None:
        record = self.record
        if record.failures or record.is_cancelled:
            self._cleanup.run(is_urgent=lambda: self._interrupts > 1)
        self._tell_end()

    def _tell_end(self) -> None:
        record = self.record
        record.finished_at = self.now()
        self._announcer.run_finished(RunResult(record).state)
        self._announcer.deliver()

    def result(self, *, raise_on_failure: bool) -> RunResult:
        """Return what the run gave.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the run; the summary is its note.
            RunCancelledError: Somebody cancelled it.
            TaskExecutionError, DAGExecutionError: Tasks failed, and *raise_on_failure* is true.
        """
        result = RunResult(self.record)
        if self._interrupts:
            interrupt = KeyboardInterrupt()
            interrupt.add_note(result.summary())
            raise interrupt
        if raise_on_failure or self.record.is_cancelled:
            result.raise_for_failure()
        return result

    def close_in_child(self) -> None:
        """Let the run end in a process that was forked off, where its threads do not exist."""
        self._is_forked = True
        self.scheduler.is_calm = False
        self._lock = threading.Lock()  # another thread may have held the old one
        for worker in self._pools.working():
            worker.is_abandoned = True

    def check_process(self) -> None:
        """Raise FlowkitError if this process was forked off the one in which the run goes on."""
        if self._is_forked:
            raise FlowkitError("this process was forked from one in which the run goes on; only that one has it.")

    def snapshot(self) -> RunResult:
        """Return how the run stands now."""
        with self._lock:
            return RunResult(self.record.snapshot(self.now()))

    # ------------------------------------------------------------ attempts, in the workers

    def check_may_start(self, i: int) -> None:
        """Raise NotStartedError if *i* may not start any more."""
        with self._lock:
            if not self.admits(i):
                raise NotStartedError

    def start_attempt(self, worker: Worker, i: int) -> None:
        """Note that an attempt of a SPECIAL id starts."""
        timeout = self.program.timed.get(i, 0.0)
        with self._lock:
            if not self.admits(i):
                raise NotStartedError
            attempt = self.record.attempts.get(i, 0) + 1
            self.record.attempts[i] = attempt
            if timeout and not worker.is_inline:
                self._armed[i] = attempt
                if self._timers.add(self.now() + timeout, self._timed_out, worker, i, attempt):
                    self._wake()
            if i in self._taken_back:
                self._taken_back.discard(i)
            else:
                self._announcer.attempt_started(i, attempt)
        self._announcer.deliver()
        if worker.is_inline:
            self.check_interrupt()  # it came while observers were told

    def take_back(self, i: int) -> None:
        """Note that the attempt of *i* has not begun after all, and is given to a worker again."""
        with self._lock:
            self._armed.pop(i, None)
            if i in self.record.attempts:
                self._taken_back.add(i)
                self.record.attempts[i] -= 1
                if not self.record.attempts[i]:
                    del self.record.attempts[i]

    def is_unwanted(self, worker: Worker, i: int) -> bool:
        """Return whether nobody waits for the attempt of *i* on *worker* any more."""
        return worker.is_abandoned or not self.admits(i)

    def add_cleanup(self, handler: Callable[[], object]) -> None:
        """Have *handler* run if the run does not end well."""
        self._cleanup.add(handler)

    def is_needed_elsewhere_only(self, i: int) -> bool:
        """Return whether the result of *i* is used, and only by attempts on a foreign executor."""
        after = self.program.graph.downstream[i if self._items is None else self._items.task_of(i)]
        return bool(after) and all(
            self._pools.kind_of(j) == "foreign" and j not in self.program.mapped for j in after
        )

    # ------------------------------------------------------------ handing on, in whatever thread

    def _add(self, ids: Sequence[int]) -> None:
        """Give *ids* to the pools that they belong to. Not under the lock."""
        if self._items is not None:
            ids = self._expand(ids)
        try:
            self._pools.add(ids)
        except FlowkitError as error:
            self._break(error)

    def _break(self, error: FlowkitError) -> None:
        """End the run, whose workers cannot go on; :meth:`execute` raises *error*."""
        self._broken = error
        self.cancel(str(error))

    def _keep(self, worker: Worker, ready: list[int]) -> list[int]:
        """Return those of *ready* that belong to the pool of *worker*; the others are handed on. Not under the lock."""
        if self._items is not None and ready:
            ready = self._expand(ready, worker)
        try:
            return self._pools.keep(worker, ready)
        except FlowkitError as error:
            self._break(error)
            return []

    def _expand(self, ready: Sequence[int], worker: Worker | None = None) -> list[int]:
        """Return *ready* with the items of mapped tasks in the place of these. Not under the lock."""
        expanded = []
        waiting = deque(ready)
        while waiting:
            i = waiting.popleft()
            if i in self.program.mapped:
                waiting.extend(self._start_mapped(worker, i))
            else:
                expanded.append(i)
        return expanded

    def _start_mapped(self, worker: Worker | None, i: int) -> list[int]:
        """Make ids of the items of *i*, in the thread of *worker* if there is one; return what may start now."""
        items, record = self._items, self.record
        assert items is not None  # noqa: S101 - for the type checker: there is a mapped task
        if record.state[i] != PENDING or i in record.items:  # the inline pool gives what is ready again after a stop
            return []
        refused: Outcome | None = None
        values: list[Any] = []
        if worker is not None:
            worker.current = i  # so that it can be left behind
        try:
            values = read_items(record.names[i], self.calls.everything(i))
        except BaseException as error:  # noqa: BLE001 - what is iterated is the user's
            refused = Outcome(FAILED, error, has_started=False)
        if worker is not None:
            worker.current = -1
        with self._lock:
            ready: list[int] = []
            if record.state[i] != PENDING:
                pass
            elif not self.admits(i):
                ready = self._conclude(i, self.scheduler.decide(i))
            else:
                record.started[i] = self.now()
                if refused is not None:
                    ready = self._take_outcome(i, refused)
                elif not values:
                    record.items[i] = range(0)
                    ready = self._conclude_mapped(i)
                    if not self.scheduler.remaining:
                        self._wake()
                else:
                    ids = items.add(i, values)
                    self.calls.add_items(i, len(ids))
                    self._pools.add_items(i, len(ids))
                    ready = self._admit(list(ids))
        self._tell()
        return ready

    def _conclude_item(self, i: int) -> list[int]:
        """Do what :meth:`_conclude` does for an item that has succeeded, unwatched and without a limit."""
        assert self._items is not None  # noqa: S101 - for the type checker: there is a mapped task
        self.scheduler.finish(i, SUCCEEDED)
        parent = self._items.note_end(i)
        return self._conclude_mapped(parent) if parent >= 0 else []

    def _conclude_mapped(self, i: int) -> list[int]:
        """End the mapped task *i*, whose items are final; return what became ready. Under the lock."""
        assert self._items is not None  # noqa: S101 - for the type checker: there is a mapped task
        record = self.record
        state, values, error = self._items.outcome(i)
        record.ended[i] = self.now()
        if error is not None:
            record.errors[i] = error
        if state == SUCCEEDED:
            record.values[i] = values
            if self._checkpoint is not None:
                state = self._keep_mapped(self._checkpoint, i)
        return self._conclude(i, state)

    def _keep_mapped(self, checkpoint: Checkpoint, i: int) -> int:
        """Have the mapped task *i*, which has succeeded, kept; return the state in which it ends. Under the lock."""
        record = self.record
        try:
            found = checkpoint.keep_mapped(i)
            if found is not None:
                record.restored[i] = record.reasons[i] = f"restored from {found.origin}"
                record.forget_start(i)
        except StateError as error:
            self._break_soon(error)
            return CANCELLED
        return SUCCEEDED

    def _break_soon(self, error: FlowkitError) -> None:
        """Do what :meth:`_break` does, from under the lock."""
        self._broken = error
        if self._timers.add(self.now(), self._halt_broken):
            self._wake()

    def break_down(self, error: BaseException) -> None:
        """End the run: *error* came out of what calls tasks, and not of a task. In a worker, which is lost."""
        if not isinstance(error, FlowkitError):
            told = FlowkitError(f"flowkit itself has failed, and with it the run: {describe(error)}")
            told.__cause__ = error
            error = told
        self._break(error)

    def _halt_broken(self) -> None:
        self.cancel(str(self._broken))

    def _rule(self, i: int) -> int:
        return self.program.rules[i] if self.program.rules else NONE_FAILED

    # ------------------------------------------------------------ ends of attempts, in the workers

    def _succeeded_plainly(self, worker: Worker, i: int, value: Any) -> list[int] | None:
        """Take the value of *i*, in a run that nobody watches and nothing limits."""
        lock = self._lock
        if not lock.acquire(False):
            _acquire_without_queueing(lock)
        try:
            if worker.is_abandoned:
                return None
            record = self.record
            if record.state[i]:  # somebody cancelled the run just before a sequential attempt
                return []
            record.ended[i] = self.now()
            record.values[i] = value
            ready = self.scheduler.finish(i, SUCCEEDED)
            if not self.scheduler.remaining:
                self._wake_ups.put(None)
            return ready
        finally:
            lock.release()

    def _succeeded_durably(self, worker: Worker, i: int, value: Any) -> list[int] | None:
        """Store *value*, and only then take it."""
        checkpoint = self._checkpoint
        if checkpoint is not None:
            try:
                checkpoint.keep(i, value, lambda: worker.is_abandoned or self.record.state[i] != PENDING)
            except StateSerializationError as error:  # the store is strict; the value is good all the same
                self._break(error)
            except (StateError, RuntimeWarning) as error:
                if isinstance(error, StateError):
                    self._break(error)
                return self.failed(worker, i, error, may_retry=False)
        return self._succeeded(worker, i, value)

    def _succeeded(self, worker: Worker, i: int, value: Any) -> list[int] | None:
        with self._lock:
            if worker.is_abandoned:
                return None
            ready = []
            record = self.record
            if record.state[i] == PENDING:
                record.ended[i] = self.now()
                record.values[i] = value
                if i >= record.count and self._limits is None and not self._announcer.is_watched:
                    ready = self._conclude_item(i)
                else:
                    ready = self._conclude(i, SUCCEEDED)
        self._tell()
        return self._keep(worker, ready)

    def failed(
        self,
        worker: Worker,
        i: int,
        error: BaseException,
        *,
        may_retry: bool | None = None,
        has_started: bool = True,
    ) -> list[int] | None:
        """Take *error*, which came out of an attempt of *i*.

        Args:
            may_retry: What the retry policy says, if it was asked already where the attempt was made.
            has_started: Whether the attempt got as far as the function.
        """
        if isinstance(error, NotStartedError):
            return self._withdrawn(worker, i)
        if worker.is_inline and self._interrupts and isinstance(error, KeyboardInterrupt):
            error = RunCancelledError(self.program.name, "interrupted")
            self._heed_interrupt()
        is_unwanted = self.is_unwanted(worker, i)
        outcome = judge_error(error, self.program, i, is_unwanted=is_unwanted, may_retry=may_retry)
        outcome.has_started = outcome.has_started and has_started
        with self._lock:
            if worker.is_abandoned:
                return None
            ready = self._take_outcome(i, outcome) if self.record.state[i] == PENDING else []
        self._tell()
        return self._keep(worker, ready)

    def _withdrawn(self, worker: Worker, i: int) -> list[int] | None:
        """Take back *i*, which was given to *worker* before the run was stopped."""
        with self._lock:
            if worker.is_abandoned:
                return None
            ready = []
            if self.record.state[i] == PENDING:
                has_tried = i in self.record.attempts
                if not has_tried:
                    self.record.forget_start(i)
                ready = self._conclude(i, CANCELLED if has_tried else self.scheduler.decide(i))
        self._tell()
        return self._keep(worker, ready)

    def _take_outcome(self, i: int, outcome: Outcome) -> list[int]:
        """Note that the attempt of *i* ended without a value; return what became ready. Under the lock."""
        record = self.record
        self._armed.pop(i, None)
        if outcome.has_started:
            record.ended[i] = self.now()
        else:
            record.forget_start(i)
        if outcome.error is not None:
            record.errors[i] = outcome.error
            record.texts[i] = outcome.text
        if outcome.reason is not None:
            record.reasons[i] = outcome.reason
        if outcome.state != FAILED:
            return self._conclude(i, outcome.state)
        assert outcome.error is not None  # noqa: S101 - for the type checker: FAILED has an error
        policy = self.program.tasks[i].options.retry
        attempt = record.attempts_of(i)
        stops_here = record.abandoned_threads >= MOST_ABANDONED or not self.admits(i)
        if outcome.may_retry and 0 < attempt <= policy.retries and not stops_here:
            return self._back_off(i, attempt, policy.wait_after(attempt, outcome.error, self._random()))
        if outcome.has_started:
            self._announcer.attempt_failed(i, attempt, policy.retries + 1, None)
        return self._conclude(i, FAILED)

    def _back_off(self, i: int, attempt: int, wait: float) -> list[int]:
        """Have the next attempt of *i* start in *wait* seconds; meanwhile it holds no worker and no limit."""
        record = self.record
        record.first_started.setdefault(i, record.started[i])
        self._backing_off.add(i)
        self._announcer.attempt_failed(i, attempt, self.program.tasks[i].options.retry.retries + 1, wait)
        if self._timers.add(self.now() + wait, self._retry, i):
            self._wake()
        return self._limits.release(i) if self._limits else []

    def _conclude(self, i: int, state: int) -> list[int]:
        """Make *state* the final one of *i*; return what became ready. Under the lock."""
        scheduler, record = self.scheduler, self.record
        if state == FAILED and i < record.count:
            record.failures.append(i)
        ready = self._finish(i, state)
        if self._checkpoint is not None and state in (FAILED, SKIPPED):
            self._checkpoint.note_end(i, state)
        self._announcer.task_ended(i)
        if state == FAILED and self._settings.fail_fast and not (self._is_failing or self._is_cancelled):
            self._is_failing = self.is_stopped = True
            record.stop_reason = f"task {record.names[i]!r} failed"
            ready = self._stop(ready, takes_none=False)
        freed = self._limits.release(i) if self._limits else []
        ready = freed + self._admit(ready) + self._tell_decided(i)
        if not scheduler.remaining:
            self._wake_ups.put(None)
        return ready

    def _tell_decided(self, i: int = 0) -> list[int]:
        """Announce what the scheduler has decided; return what became ready because mapped tasks ended with it.

        Args:
            i: An id that is final too.
        """
        decided = self.scheduler.decided
        if self._items is None:
            self._announcer.tasks_decided(decided)
            return []
        ended = [i, *decided]
        self._announcer.tasks_decided(decided)
        ready = []
        for k in ended:
            parent = self._items.note_end(k)
            if parent >= 0 and self.record.state[parent] == PENDING:
                ready += self._conclude_mapped(parent)
        return ready

    def _stop(self, ready: list[int], *, takes_none: bool) -> list[int]:
        """Take back everything that has not started; return what may start all the same. Under the lock."""
        scheduler, attempts = self.scheduler, self.record.attempts
        queued = self._limits.withdraw() if self._limits else []
        unstarted = self._pools.withdraw()
        if self._limits:
            for i in unstarted:
                self._limits.release(i)
        waiting = dict.fromkeys([*ready, *queued, *unstarted, *self._backing_off])
        allowed = scheduler.stop([i for i in waiting if i not in attempts], takes_none=takes_none)
        for i in waiting:
            if i not in attempts:
                continue
            if self.admits(i):
                allowed += [] if i in self._backing_off else [i]
            else:
                self._backing_off.discard(i)
                allowed += self._give_up_retry(i)
        self._pools.stop(lambda i: not self.admits(i), kills=takes_none)
        return allowed

    def _give_up_retry(self, i: int) -> list[int]:
        """End *i*, which has made an attempt and is not to make the next; return what became ready."""
        ready = self._finish(i, CANCELLED)
        self.scheduler.decided.append(i)
        return ready

    def _finish(self, i: int, state: int) -> list[int]:
        if self._walks:
            self.scheduler.retire(i, state)
            return []
        return self.scheduler.finish(i, state)

    def starts_now(self, i: int) -> bool:
        """Return whether *i*, whose upstream is final, may start; if not, it is final now. For the inline pool."""
        self.check_process()
        self._heed_interrupt()
        with self._lock:
            if self.record.state[i] != PENDING:  # the run was cancelled before it began
                return False
            verdict = self.scheduler.decide(i)
            if verdict != START:
                self._conclude(i, verdict)
        self._tell()
        return verdict == START

    def admits(self, i: int) -> bool:
        """Return whether *i* may start although the run is stopped."""
        return not self._is_cancelled and (not self._is_failing or self._rule(i) in ACCEPT_FAILURE)

    def _admit(self, ready: list[int]) -> list[int]:
        """Return which of *ready* may start: not what a store has the result of, nor what a limit holds. Locked."""
        restored: list[int] = []
        if self._checkpoint is not None:
            ready, restored = self._restore(self._checkpoint, ready)
        return restored + (self._limits.admit(ready) if self._limits else ready)

    def _restore(self, checkpoint: Checkpoint, ready: Sequence[int]) -> tuple[list[int], list[int]]:
        """End those of *ready* whose result is stored, and what follows.

        Returns:
            What has to run, and what became ready because mapped tasks ended, which was admitted already.
        """
        record = self.record
        waiting = deque(ready)
        left: list[int] = []
        admitted: list[int] = []
        while waiting:
            i = waiting.popleft()
            found = None
            try:
                if not (i in self.program.mapped or i in record.attempts):
                    found = checkpoint.find(i)
            except StateError as error:  # somebody else's store
                self._break_soon(error)
                waiting += self._finish(i, CANCELLED)
                self._announcer.task_ended(i)
                continue
            if found is not None:
                try:
                    value = checkpoint.decode(found)
                except StateError:  # it was stored where more could be read than here: then it runs
                    found = None
            if found is None:
                left.append(i)
                continue
            checkpoint.take(i, found)
            record.values[i] = value
            record.restored[i] = record.reasons[i] = f"restored from {found.origin}"
            waiting += self._finish(i, SUCCEEDED)
            self._announcer.task_ended(i)
            admitted += self._tell_decided(i)
        if not self.scheduler.remaining:
            self._wake()
        return left, admitted

    def _tell(self) -> None:
        """Write down how tasks ended, and tell the observers. Not under the lock."""
        if self._checkpoint is not None:
            try:
                self._checkpoint.write_notes()
            except StateError as error:
                self._break(error)
        self._announcer.deliver()

    # ------------------------------------------------------------ what is due, in the controlling thread

    def is_backing_off(self, i: int | None = None) -> bool:
        """Return whether *i*, or any id, waits for its next attempt."""
        return bool(self._backing_off) if i is None else i in self._backing_off

    def wait_for_timer(self) -> None:
        """Sleep until the next thing is due, and do it; a wake-up ends the sleep. For the inline pool."""
        self._clock.wait(self._wake_ups, self._timers.next_deadline(), self._pools.is_quiet)
        self._heed_interrupt()
        self.run_timers()

    def run_timers(self) -> None:
        """Do what is due."""
        while True:
            with self._lock:
                action = self._timers.pop_due(self.now())
            if action is None:
                return
            action()

    def _retry(self, i: int) -> None:
        with self._lock:
            if i not in self._backing_off:
                return
            self._backing_off.discard(i)
            ready = self._admit([i])
        self._add(ready)

    def _timed_out(self, worker: Worker, i: int, attempt: int) -> None:
        """Give up *attempt* of *i*, if it still goes on, and let another worker take the place."""
        record = self.record
        with self._lock:
            if worker.is_abandoned or record.state[i] != PENDING or self._armed.get(i) != attempt:
                return
            worker.is_abandoned = True
            record.abandoned_threads += self._pools.of(i).abandon(worker)
        error = TaskTimeoutError(record.names[i], attempt, self.program.timed[i])
        outcome = judge_error(error, self.program, i, is_unwanted=False)
        with self._lock:
            ready = self._take_outcome(i, outcome)
            if record.abandoned_threads >= MOST_ABANDONED:
                count = record.abandoned_threads
                self._halt(f"{count} threads were abandoned in attempts that timed out", ready)
                ready = []
        self._tell()
        self._add(ready)

    def _run_timed_out(self) -> None:
        self.record.is_timed_out = True
        self.cancel(f"it took longer than its timeout of {self._settings.timeout:g} s")

    # ------------------------------------------------------------ cancelling

    def cancel(self, reason: str) -> None:
        """Stop: nothing new starts, and running threads are left behind after the grace. From any thread."""
        with self._lock:
            if self._is_over or self._is_cancelled or PENDING not in self.record.state:
                return
            self.record.is_cancelled = True
            self._halt(reason, [])
        self._tell()

    def _halt(self, reason: str, ready: list[int]) -> None:
        """Let nothing start any more, *ready* included, and leave behind what still runs after the grace. Locked."""
        self._is_cancelled = self.is_stopped = True
        self.record.stop_reason = reason
        self._stop(ready, takes_none=True)
        self._tell_decided()
        self._timers.add(self.now() + GRACE, self._abandon)
        self._wake()

    def _abandon(self) -> None:
        """Leave every worker behind that is still in an attempt, and make final what is not."""
        with self._lock:
            state = self.record.state
            for worker in self._pools.working():
                i = worker.current
                if i >= 0 and state[i] == PENDING and not worker.is_inline:
                    worker.is_abandoned = True
                    self.record.abandoned_threads += self._pools.of(i).abandon(worker)
                    self.record.ended[i] = self.now()
            if self._items is not None:  # a mapped task ends as its items did
                for i in self._items.unfinished():
                    self.scheduler.finish(i, CANCELLED)
                    self.scheduler.decided.append(i)
                self._tell_decided()
            self.scheduler.cancel_rest()
            self._tell_decided()
            self._wake()
        self._tell()

    def _interrupted(self) -> None:
        """Heed a Ctrl-C; runs as a signal handler, so it only leaves a note, unless the user's own code runs."""
        self._interrupts += 1
        self.scheduler.is_calm = False  # so that the inline pool looks up, even if the task swallows the exception
        self._wake_ups.put(None)
        is_in_attempt = self._inline is not None and self._inline.worker.current >= 0
        is_in_task = is_in_attempt and not self._announcer.is_delivering
        if is_in_task or self._cleanup.is_running:
            raise KeyboardInterrupt

    def check_interrupt(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._interrupts:
            raise KeyboardInterrupt

    def _heed_interrupt(self) -> None:
        """Cancel the run after a first Ctrl-C; leave it at once after a second."""
        if self._interrupts:
            self.cancel("interrupted by Ctrl-C")
        if self._interrupts > 1:
            raise KeyboardInterrupt

    def _wake(self) -> None:
        self._wake_ups.put(None)

    def _random(self) -> random.Random:
        if self._rng is None:
            import random  # noqa: PLC0415 - costs 2 ms, and most runs have no retry

            self._rng = random.Random()  # noqa: S311 - jitter is no secret
        return self._rng


def _itself(i: int) -> int:
    return i


def _acquire_without_queueing(lock: threading.Lock) -> None:
    """Acquire *lock*, never while another thread has the interpreter.

    A thread that blocks in ``acquire`` is given the lock as soon as it is free, and then waits for the interpreter with
    the lock in its hands; the thread that runs needs the lock next, blocks, and so on: with tiny tasks every task costs
    two switches between threads. Here the lock is only ever taken by a thread that runs.
    """
    while not lock.acquire(False):
        time.sleep(_MOMENT)
