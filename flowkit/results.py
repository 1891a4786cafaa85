"""What a run gave: values, states, times, errors.

Knows the columns in which a run is recorded. Does not know who ran it.

A run writes lists indexed by task id; the objects that users see (:class:`TaskRun`) are made when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .exceptions import (
    DAGExecutionError,
    RemoteError,
    RunCancelledError,
    RunTimeoutError,
    TaskExecutionError,
    close_matches,
    describe,
    listing,
    plural,
    text_of,
)
from .render import report
from .states import CANCELLED, FAILED, NAMES, PENDING, RUNNING, SKIPPED, SUCCEEDED, UPSTREAM_FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any


class RunRecord:
    """The columns of one run. The runner writes them; results read them.

    Attributes:
        dag_name: Name of the DAG.
        run_id: The run.
        count: How many tasks there are; ids from there on are items of mapped tasks.
        items: The ids of the items of each mapped task.
        names: Name of each id.
        index: Id of each task's name.
        upstream: The ids upstream of each id.
        state: State of each id.
        values: Result of each id that succeeded; of an item that has not, the item itself.
        started: When each id's latest attempt started, in seconds of the run's clock; 0 if never.
        ended: When each id's latest attempt ended.
        workers: Name of the worker of each id's latest attempt.
        first_started: When the first attempt started, for ids with more than one.
        attempts: Number of the latest attempt, for ids with more than one.
        errors: The latest error of each id that had one.
        texts: That error in words.
        reasons: Why ids ended as they did, where the states of others do not say it.
        restored: Where the result of an id came from that did not run, because a store had it.
        failures: Ids that failed, in the order in which they did.
        stop_reason: Why the run stopped early; empty if it did not.
        epoch: What the run's clock's zero is, in seconds since the epoch.
        abandoned_threads: How many threads were left behind in an attempt that nobody waits for.
    """

    __slots__ = (
        "abandoned_threads", "attempts", "count", "dag_name", "ended", "epoch", "errors", "failures", "finished_at",
        "first_started", "index", "is_cancelled", "is_fail_fast", "is_timed_out", "items", "names", "reasons",
        "restored", "run_id", "started", "started_at", "state", "stop_reason", "texts", "upstream", "values", "workers",
    )  # fmt: skip

    def __init__(
        self,
        dag_name: str,
        run_id: str,
        names: Sequence[str],
        index: Mapping[str, int],
        upstream: Sequence[Sequence[int]],
        state: bytearray,
        *,
        is_fail_fast: bool,
    ) -> None:
        self.count = count = len(names)
        self.items: dict[int, range] = {}
        self.dag_name = dag_name
        self.run_id = run_id
        self.names = names
        self.index = index
        self.upstream = upstream
        self.state = state
        self.values: list[Any] = [None] * count
        self.started = [0.0] * count
        self.ended = [0.0] * count
        self.workers: list[str | None] = [None] * count
        self.first_started: dict[int, float] = {}
        self.attempts: dict[int, int] = {}
        self.errors: dict[int, BaseException] = {}
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.restored: dict[int, str] = {}
        self.failures: list[int] = []
        self.stop_reason = ""
        self.is_fail_fast = is_fail_fast
        self.is_cancelled = False
        self.is_timed_out = False
        self.epoch = 0.0
        self.started_at = 0.0
        self.finished_at = 0.0
        self.abandoned_threads = 0

    def add_items(self, i: int, ids: range, values: list[Any]) -> None:
        """Let *ids*, the next ones, be the items of the mapped task *i*; their names are there already."""
        count = len(ids)
        self.items[i] = ids
        self.values += values
        self.started += [0.0] * count
        self.ended += [0.0] * count
        self.workers += [None] * count
        if count:
            if not isinstance(self.upstream, list) or len(self.upstream) == self.count:
                self.upstream = [*self.upstream]  # the graph has this list too
            self.upstream += [self.upstream[i]] * count

    @property
    def task_states(self) -> bytearray:
        """The states of the tasks, without items."""
        return self.state if len(self.state) == self.count else self.state[: self.count]

    @property
    def task_names(self) -> Sequence[str]:
        """The names of the tasks, without items."""
        return self.names if len(self.names) == self.count else self.names[: self.count]

    def attempts_of(self, i: int) -> int:
        """Return how many attempts of *i* were started."""
        return self.attempts.get(i, 1 if self.started[i] else 0)

    def forget_start(self, i: int) -> None:
        """Note that *i* was given to a worker and did not start."""
        self.started[i] = self.ended[i] = 0.0
        self.workers[i] = None

    def duration_of(self, i: int) -> float:
        """Return the seconds from the first attempt's start to the latest one's end; 0 if it did not run."""
        if not self.started[i]:
            return 0.0
        return max(0.0, self.ended[i] - self.first_started.get(i, self.started[i]))

    def reason_of(self, i: int) -> str:
        """Return why *i* ended as it did; empty for a plain success."""
        known = self.reasons.get(i)
        if known is not None:
            return known
        state, before = self.state[i], self.upstream[i]
        if state == FAILED:
            return self.text_of_error(i)
        if state == UPSTREAM_FAILED:
            return self._upstream_reason(i)
        if state == SKIPPED:
            if all(self.state[u] == SKIPPED for u in before):
                root = self._root(i, SKIPPED)
                why = f" ({self.names[root]!r}: {self.reasons[root]})" if root in self.reasons else ""
                return f"everything upstream was skipped: {listing(self.names[u] for u in before)}{why}"
            return "its trigger rule was not met"
        if state == CANCELLED:
            return self.stop_reason or "the run ended first"
        return ""

    def text_of_error(self, i: int) -> str:
        """Return the latest error of *i* in words, without asking the error, which is the user's."""
        return self.texts[i] if i in self.texts else describe(self.errors[i])

    def _upstream_reason(self, i: int) -> str:
        for u in self.upstream[i]:
            if self.state[u] == FAILED:
                return f"upstream {self.names[u]!r} failed: {self.text_of_error(u)}"
        for u in self.upstream[i]:
            if self.state[u] == UPSTREAM_FAILED:
                root = self._root(u, UPSTREAM_FAILED)
                failed = next((f for f in self.upstream[root] if self.state[f] == FAILED), None)
                if failed is None:
                    return f"upstream {self.names[u]!r} did not run"
                because = f"{self.names[failed]!r} failed: {self.text_of_error(failed)}"
                return f"upstream {self.names[u]!r} did not run, because {because}"
        return "something upstream of it did not succeed"

    def _root(self, i: int, state: int) -> int:
        """Return the first task that ended in *state* on the way up from *i*, where each is so because of the next."""
        while True:
            before = next((u for u in self.upstream[i] if self.state[u] == state), None)
            if before is None:
                return i
            i = before

    def excerpt(self, ids: Sequence[int]) -> TaskRuns:
        """Return the runs of *ids*, all final, as a mapping that can be sent to a process."""
        count = len(ids)
        index = {self.names[i]: position for position, i in enumerate(ids)}
        copy = RunRecord(
            self.dag_name, self.run_id, [self.names[i] for i in ids], index, [()] * count, bytearray(count),
            is_fail_fast=self.is_fail_fast,
        )  # fmt: skip
        copy.epoch = self.epoch
        ids = list(ids)
        for position, i in enumerate(ids[:]):
            items = self.items.get(i, range(0))
            copy.names = [*copy.names, *map(self.names.__getitem__, items)]
            copy.add_items(position, range(len(ids), len(ids) + len(items)), [None] * len(items))
            ids += items
        copy.state += bytes(len(ids) - count)
        for position, i in enumerate(ids):
            copy.state[position] = self.state[i]
            copy.values[position] = self.values[i]
            copy.started[position], copy.ended[position] = self.started[i], self.ended[i]
            copy.workers[position] = self.workers[i]
            copy.attempts[position] = self.attempts_of(i)
            copy.reasons[position] = self.reason_of(i)
            if i in self.restored:
                copy.restored[position] = self.restored[i]
            if i in self.first_started:
                copy.first_started[position] = self.first_started[i]
            if i in self.errors:
                copy.errors[position] = _picklable(self.errors[i], self.names[i])
                copy.texts[position] = self.text_of_error(i)
        return TaskRuns(copy)

    def snapshot(self, now: float) -> RunRecord:
        """Return a copy that the run does not change any more; call it under the run's lock."""
        copy = RunRecord.__new__(RunRecord)
        for slot in RunRecord.__slots__:
            value = getattr(self, slot)
            shared = slot == "index" or (slot in ("names", "upstream") and not self.items)
            copied = value if shared or not isinstance(value, (list, dict, bytearray)) else value.copy()
            setattr(copy, slot, copied)
        copy.finished_at = copy.finished_at or now
        for i, state in enumerate(copy.state):
            if state == PENDING and (copy.started[i] or i in copy.items):
                copy.state[i] = RUNNING
        return copy


class TaskRun:
    """How one task went in one run.

    Attributes:
        name: The task.
        state: "succeeded", "failed", "skipped", "upstream_failed" or "cancelled"; in a snapshot of a run that goes on
            also "pending" and "running".
        value: Its result; None unless it succeeded.
        error: The exception of its last attempt; None if there was none.
        attempts: How many attempts were started.
        started_at: When the first attempt started, an aware UTC datetime; None if it never did.
        ended_at: When the last attempt ended; None if it never did.
        duration: Seconds in between, waits for retries included.
        worker: Name of the worker that ran the last attempt, such as "thread-1"; None if none did.
        restored: Whether the result came from a store.
        reason: Why it ended so, in words; empty for a plain success.
        items: How each item of a mapped task went, in order, as a ``TaskRun``; empty for other tasks.
    """

    __slots__ = ("_record", "_task")

    def __init__(self, record: RunRecord, task: int) -> None:
        self._record = record
        self._task = task

    @property
    def name(self) -> str:
        return self._record.names[self._task]

    @property
    def state(self) -> str:
        return NAMES[self._record.state[self._task]]

    @property
    def value(self) -> Any:
        return self._record.values[self._task] if self._record.state[self._task] == SUCCEEDED else None

    @property
    def error(self) -> BaseException | None:
        is_fine = self._record.state[self._task] in (SUCCEEDED, SKIPPED)  # then it is that of an attempt before
        return None if is_fine else self._record.errors.get(self._task)

    @property
    def attempts(self) -> int:
        return self._record.attempts_of(self._task)

    @property
    def started_at(self) -> datetime | None:
        record, i = self._record, self._task
        return _datetime(record, record.first_started.get(i, record.started[i]))

    @property
    def ended_at(self) -> datetime | None:
        return _datetime(self._record, self._record.ended[self._task])

    @property
    def duration(self) -> float:
        return self._record.duration_of(self._task)

    @property
    def worker(self) -> str | None:
        return self._record.workers[self._task]

    @property
    def restored(self) -> bool:
        return self._task in self._record.restored

    @property
    def reason(self) -> str:
        return self._record.reason_of(self._task)

    @property
    def items(self) -> tuple[TaskRun, ...]:
        return tuple([TaskRun(self._record, i) for i in self._record.items.get(self._task, ())])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data: times as ISO 8601 text, the error as text."""
        started, ended, error = self.started_at, self.ended_at, self.error
        return {
            "state": self.state,
            "value": self.value,
            "error": None if error is None else describe(error),
            "attempts": self.attempts,
            "started_at": started and started.isoformat(),
            "ended_at": ended and ended.isoformat(),
            "duration": self.duration,
            "worker": self.worker,
            "restored": self.restored,
            "reason": self.reason,
        }

    def __repr__(self) -> str:
        why = f", reason={self.reason!r}" if self.reason else ""
        return f"<TaskRun {self.name!r} {self.state} attempts={self.attempts} duration={self.duration:.3g}s{why}>"


class TaskRuns(Mapping[str, TaskRun]):
    """A read-only mapping from task name to :class:`TaskRun`.

    The items of a mapped task are found by their names too (``runs["process[3]"]``), but are not among its keys.

    Args:
        record: The run.
        ids: Which tasks it shows; None for all, in generation order.
    """

    __slots__ = ("_ids", "_record")

    def __init__(self, record: RunRecord, ids: Sequence[int] | None = None) -> None:
        self._record = record
        self._ids = ids

    def __getitem__(self, name: str) -> TaskRun:
        i = self._record.index.get(name)
        if i is None and isinstance(name, str):
            i = self._item(name)
        elif self._ids is not None and i not in self._ids:
            i = None
        if i is None:
            raise _AbsentError(f"no task is named {name!r} here; there are {listing(self)}")
        return TaskRun(self._record, i)

    def _item(self, name: str) -> int | None:
        """Return the id of an item by a name such as ``process[3]``."""
        task, bracket, number = name.rpartition("[")
        i = self._record.index.get(task)
        ids = self._record.items.get(i) if i is not None and (self._ids is None or i in self._ids) else None
        digits = number[:-1]
        if not (bracket and ids and number.endswith("]") and digits.isdecimal() and len(digits) < 19):
            return None
        place = int(digits)
        return ids[place] if place < len(ids) and str(place) == digits else None

    def __iter__(self) -> Iterator[str]:
        if self._ids is None:
            return iter(self._record.task_names)
        return iter([self._record.names[i] for i in self._ids])

    def __len__(self) -> int:
        return self._record.count if self._ids is None else len(self._ids)

    def take_values(self) -> list[Any]:
        """Take the results out, to send them apart; for an excerpt, which nobody else has."""
        values, self._record.values = self._record.values, []
        return values

    def put_values(self, values: list[Any]) -> None:
        """Put in what :meth:`take_values` gave."""
        self._record.values = values

    def __repr__(self) -> str:
        return f"<TaskRuns {listing(self)}>"


class _AbsentError(KeyError):
    """A KeyError whose text is shown as it is, and which calls itself so in a traceback."""

    def __str__(self) -> str:
        return str(self.args[0])


_AbsentError.__name__ = _AbsentError.__qualname__ = "KeyError"
_AbsentError.__module__ = "builtins"


class RunResult(Mapping[str, "Any"]):
    """The results of a run: a read-only mapping from task name to value, in generation order.

    It holds what succeeded, None included; other tasks are absent, and the KeyError says why. It is equal to a dict
    with the same items. It keeps every value of the run alive as long as it lives.

    Attributes:
        run_id: The run.
        dag_name: Name of the DAG.
        state: "succeeded", "failed" or "cancelled".
        ok: Whether every task succeeded or was skipped.
        duration: Seconds from start to end.
        tasks: Task name to :class:`TaskRun`, for every task.
        abandoned_threads: How many threads were left behind in attempts that timed out or were cancelled.
    """

    __slots__ = ("_record",)

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    # ------------------------------------------------------------ the mapping

    def __getitem__(self, name: str) -> Any:
        record = self._record
        i = record.index.get(name)
        if i is not None and record.state[i] == SUCCEEDED:
            return record.values[i]
        if i is None:
            close = close_matches(name, record.task_names)
            raise _AbsentError(f"no task of {record.dag_name!r} is named {name!r}{close}")
        reason = record.reason_of(i)
        raise _AbsentError(f"{name!r} {_VERBS[record.state[i]]}{': ' if reason else ''}{reason}")

    def __iter__(self) -> Iterator[str]:
        record = self._record
        if record.task_states.count(SUCCEEDED) == record.count:
            return iter(record.task_names)
        return iter([name for name, state in self._states() if state == SUCCEEDED])

    def __len__(self) -> int:
        return self._record.task_states.count(SUCCEEDED)

    def _states(self) -> Iterator[tuple[str, int]]:
        return zip(self._record.task_names, self._record.task_states, strict=True)

    def __contains__(self, name: object) -> bool:
        i = self._record.index.get(name) if isinstance(name, str) else None
        return i is not None and self._record.state[i] == SUCCEEDED

    # ------------------------------------------------------------ how it went

    @property
    def run_id(self) -> str:
        return self._record.run_id

    @property
    def dag_name(self) -> str:
        return self._record.dag_name

    @property
    def state(self) -> str:
        record = self._record
        if record.is_cancelled:
            return "cancelled"
        if record.failures:
            return "failed"
        return "running" if PENDING in record.state or RUNNING in record.state else "succeeded"

    @property
    def ok(self) -> bool:
        return self.state == "succeeded"

    @property
    def duration(self) -> float:
        return self._record.finished_at - self._record.started_at

    @property
    def tasks(self) -> TaskRuns:
        return TaskRuns(self._record)

    @property
    def abandoned_threads(self) -> int:
        return self._record.abandoned_threads

    @property
    def failed(self) -> list[str]:
        """Names of the tasks that failed, in the order in which they did."""
        return [self._record.names[i] for i in self._record.failures]

    @property
    def skipped(self) -> list[str]:
        """Names of the tasks that were skipped."""
        return [name for name, state in self._states() if state == SKIPPED]

    @property
    def errors(self) -> dict[str, BaseException]:
        """Name to exception of each task that failed."""
        return {self._record.names[i]: self._record.errors[i] for i in self._record.failures}

    def raise_for_failure(self) -> None:
        """Raise what the run would have raised; nothing if no task failed and nobody cancelled it.

        Raises:
            TaskExecutionError: A task failed, in a run with ``fail_fast=True``.
            DAGExecutionError: Tasks failed, in a run with ``fail_fast=False``.
            RunCancelledError: The run was cancelled; RunTimeoutError if by its own timeout.
        """
        record = self._record
        error: RunCancelledError | TaskExecutionError | DAGExecutionError
        if record.is_cancelled:
            kind = RunTimeoutError if record.is_timed_out else RunCancelledError
            error = kind(record.dag_name, record.stop_reason)
        elif not record.failures:
            return
        elif record.is_fail_fast:
            error = self._failure(record.failures[0])
        else:
            failures = [self._failure(i) for i in record.failures]
            count = plural(len(failures), "task")
            error = DAGExecutionError(f"{count} of {record.dag_name!r} failed: {listing(self.failed)}", failures)
        if record.abandoned_threads and record.stop_reason and not record.is_cancelled:
            error.add_note(f"The run was stopped: {record.stop_reason}.")
        error.result = self
        raise error from error.__cause__

    def _failure(self, i: int) -> TaskExecutionError:
        record = self._record
        cause = record.errors[i]
        failure = TaskExecutionError(
            record.names[i], record.attempts_of(i), record.duration_of(i), record.reason_of(i)
        )
        failure.__cause__ = cause
        return failure

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data; values stay the objects they are."""
        return {
            "dag": self.dag_name,
            "run_id": self.run_id,
            "state": self.state,
            "duration": self.duration,
            "tasks": {name: run.to_dict() for name, run in self.tasks.items()},
        }

    # ------------------------------------------------------------ for people

    def summary(self) -> str:
        """Return a table of all tasks: state, time, attempts, and why."""
        return report.as_text(self._headline(), _COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        return report.as_html(self._headline(), _COLUMNS, self._rows())

    def _headline(self) -> str:
        state = self._record.task_states
        counts = [f"{state.count(code)} {NAMES[code]}" for code in range(len(NAMES)) if state.count(code)]
        restored = sum(i < self._record.count for i in self._record.restored)
        counts += [f"{restored} of them restored"] if restored else []
        counted = ", ".join(counts) or "no tasks"
        left = self.abandoned_threads
        also = f"; {plural(left, 'thread')} abandoned" if left else ""
        return f"{self.dag_name}: {self.state} in {report.seconds(self.duration)} ({counted}{also})"

    def _rows(self) -> list[tuple[str, ...]]:
        record = self._record
        return [
            (
                name,
                "restored" if i in record.restored else NAMES[record.state[i]],
                report.seconds(record.duration_of(i)) if record.started[i] else "",
                str(record.attempts_of(i) or ""),
                record.reason_of(i) or self._items_of(i),
            )
            for i, name in enumerate(record.task_names)
        ]

    def _items_of(self, i: int) -> str:
        """Return what became of the items of *i*; empty for a task that is not mapped."""
        record = self._record
        ids = record.items.get(i)
        if ids is None:
            return ""
        skipped = record.state[ids.start : ids.stop].count(SKIPPED)
        retried = sum(k in record.first_started for k in ids) if record.first_started else 0
        counts = [plural(len(ids), "item")]
        counts += [f"{skipped} skipped"] if skipped else []
        counts += [f"{retried} retried"] if retried else []
        return ", ".join(counts)

    def __repr__(self) -> str:
        return f"<RunResult {self._headline()}>"


_VERBS = {
    PENDING: "has not started",
    RUNNING: "is running",
    FAILED: "failed",
    SKIPPED: "was skipped",
    UPSTREAM_FAILED: "did not run",
    CANCELLED: "was cancelled",
}
_COLUMNS = ("task", "state", "time", "attempts", "reason")


def _picklable(error: BaseException, name: str) -> BaseException:
    """Return *error* of task *name* if it survives pickling, else one that stands for it."""
    import pickle  # noqa: PLC0415 - costs 2 ms, and only runs on processes need it

    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:  # noqa: BLE001 - objects raise anything
        return RemoteError(name, type(error).__name__, text_of(error), "")
    return error


def _datetime(record: RunRecord, reading: float) -> datetime | None:
    if not reading:
        return None
    from datetime import UTC, datetime  # noqa: PLC0415 - only when somebody looks at the time

    return datetime.fromtimestamp(record.epoch + reading, UTC)
