"""Say what happens in a run, as events.

Knows the run's record and its observers. Does not know why things happen. Everything but :meth:`Announcer.deliver` is
called under the run's lock, at the moment of the change it tells of.
"""

from __future__ import annotations

from ..events import (
    AttemptFailed,
    AttemptStarted,
    EventStream,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
)
from ..states import CANCELLED, FAILED, SKIPPED, SUCCEEDED, UPSTREAM_FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..events import Event, Observer
    from ..results import RunRecord

_WITHOUT_ATTEMPT: dict[int, type[Event]] = {
    SKIPPED: TaskSkipped,
    UPSTREAM_FAILED: TaskUpstreamFailed,
    CANCELLED: TaskCancelled,
}


class Announcer:
    """Makes the events of one run; does nothing if nobody listens.

    Args:
        record: What is told of.
        now: The run's clock.
        observers: Who is told.

    Attributes:
        is_watched: Whether anybody listens.
    """

    __slots__ = ("_now", "_record", "_stream", "is_watched")

    def __init__(self, record: RunRecord, now: Callable[[], float], observers: Sequence[Observer]) -> None:
        self._record = record
        self._now = now
        self._stream = EventStream(observers)
        self.is_watched = bool(observers)

    @property
    def is_delivering(self) -> bool:
        """Whether an observer is being told of something right now."""
        return self._stream.is_delivering

    def deliver(self) -> None:
        """Tell everything announced so far. Not under the run's lock."""
        if self.is_watched:
            self._stream.deliver()

    def run_started(self) -> None:
        self._publish(RunStarted, self._record.dag_name, self._record.count)

    def run_finished(self, state: str) -> None:
        record = self._record
        self._publish(
            RunFinished, record.dag_name, state, record.count, record.finished_at - record.started_at
        )  # fmt: skip

    def attempt_started(self, i: int, attempt: int) -> None:
        self._publish(AttemptStarted, self._record.names[i], attempt)

    def attempt_failed(self, i: int, attempt: int, max_attempts: int, retry_in: float | None) -> None:
        record = self._record
        self._publish(AttemptFailed, record.names[i], attempt, max_attempts, record.errors[i], retry_in)

    def task_ended(self, i: int) -> None:
        """Announce the final state of *i*."""
        if not self.is_watched:
            return
        record = self._record
        state, name, reason = record.state[i], record.names[i], record.reason_of(i)
        if state == SUCCEEDED:
            value = record.values[i]
            if i in record.restored:
                self._publish(TaskRestored, name, reason, value)
                return
            self._publish(TaskSucceeded, name, reason, value, record.attempts_of(i), record.duration_of(i))
        elif state == FAILED:
            self._publish(TaskFailed, name, reason, record.errors[i], record.attempts_of(i), record.duration_of(i))
        else:
            self._publish(_WITHOUT_ATTEMPT[state], name, reason)

    def tasks_decided(self, decided: list[int]) -> None:
        """Announce the final states of *decided*, and empty it."""
        for i in decided:
            self.task_ended(i)
        decided.clear()

    def _publish(self, kind: type[Event], *values: Any) -> None:
        if self.is_watched:
            self._stream.publish(kind(self._record.run_id, self._record.epoch + self._now(), *values))
