"""The facts of a run, and telling them to observers.

Knows what may happen in a run. Does not know who listens: an observer is any callable that takes one event.

Order is the promise: within one run every observer sees one sequence, and it is the order in which the run's state
changed. Two threads finish tasks at the same time, so the stream works in two steps:

1. :meth:`EventStream.publish` queues events; the runner calls it under its lock, at the moment of the change.
2. :meth:`EventStream.deliver` hands queued events to the observers, one thread at a time, without the runner's lock.
   A thread that returns from it knows that everything published before its call has been told; only then does it
   start what its change made ready. So "a succeeded" is always told before "b started" when b needs a.

An observer that raises is logged, dropped, and cannot change the run.
"""

from __future__ import annotations

import threading
from collections import deque

from .exceptions import shown
from .hooks import log_broken_hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Observer = Callable[["Event"], object]

default_observers: list[Observer] = []
"""Observers of every run that starts after they were added. ``configure_logging`` adds the logger here."""


class Event:
    """A fact about a run. Immutable; compares by identity.

    Attributes:
        run_id: The run.
        time: When it happened, in seconds since the epoch.
    """

    __slots__ = ("run_id", "time")
    run_id: str
    time: float

    def __init__(self, run_id: str, time: float, *values: object) -> None:
        put = object.__setattr__
        put(self, "run_id", run_id)
        put(self, "time", time)
        for name, value in zip(type(self).__slots__, values, strict=True):
            put(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot set {name!r}: an event is a fact and does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name!r}: an event is a fact and does not change")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={shown(getattr(self, name))}" for name in type(self).__slots__ if name != "value")
        return f"{type(self).__name__}({fields})"


class RunStarted(Event):
    """A run began; ``total_tasks`` is how many tasks it has."""

    __slots__ = ("dag_name", "total_tasks")
    dag_name: str
    total_tasks: int


class AttemptStarted(Event):
    """A task's attempt (counted from 1) is about to be made."""

    __slots__ = ("task_name", "attempt")  # noqa: RUF023 - in the order of the arguments
    task_name: str
    attempt: int


class AttemptFailed(Event):
    """An attempt failed. ``retry_in`` is the wait in seconds before the next one, None if there is none."""

    __slots__ = ("task_name", "attempt", "max_attempts", "error", "retry_in")  # noqa: RUF023 - as the arguments
    task_name: str
    attempt: int
    max_attempts: int
    error: BaseException
    retry_in: float | None


class TaskEvent(Event):
    """The final event of a task; every task of a finished run has exactly one.

    Attributes:
        task_name: The task.
        reason: Why it ended so; empty for a plain success.
    """

    __slots__ = ()
    task_name: str
    reason: str


class TaskSucceeded(TaskEvent):
    """A task succeeded; ``duration`` in seconds, over all attempts and the waits between them."""

    __slots__ = ("task_name", "reason", "value", "attempts", "duration")  # noqa: RUF023 - as the arguments
    value: Any
    attempts: int
    duration: float


class TaskRestored(TaskEvent):
    """A task's result came from a store; it did not run."""

    __slots__ = ("task_name", "reason", "value")  # noqa: RUF023 - in the order of the arguments
    value: Any


class TaskSkipped(TaskEvent):
    """A task was skipped."""

    __slots__ = ("task_name", "reason")  # noqa: RUF023 - in the order of the arguments


class TaskFailed(TaskEvent):
    """A task failed for good."""

    __slots__ = ("task_name", "reason", "error", "attempts", "duration")  # noqa: RUF023 - as the arguments
    error: BaseException
    attempts: int
    duration: float


class TaskUpstreamFailed(TaskEvent):
    """A task did not run because something upstream failed."""

    __slots__ = ("task_name", "reason")  # noqa: RUF023 - in the order of the arguments


class TaskCancelled(TaskEvent):
    """A task did not run, or did not end, because the run ended first."""

    __slots__ = ("task_name", "reason")  # noqa: RUF023 - in the order of the arguments


class RunFinished(Event):
    """A run ended; ``state`` is succeeded, failed or cancelled, ``duration`` is in seconds."""

    __slots__ = ("dag_name", "state", "total_tasks", "duration")  # noqa: RUF023 - as the arguments
    dag_name: str
    state: str
    total_tasks: int
    duration: float


class EventStream:
    """Tell the events of one run to its observers, in one order.

    Args:
        observers: Who listens. Each is called with one event at a time.
    """

    __slots__ = ("_deliverer", "_lock", "_observers", "_queue")

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = list(observers)
        self._queue: deque[Event] = deque()
        self._lock = threading.Lock()
        self._deliverer = 0
        """Ident of the thread that is delivering; 0 if none is."""

    @property
    def is_delivering(self) -> bool:
        """Whether an observer is being told of something right now."""
        return self._deliverer != 0

    def publish(self, event: Event) -> None:
        """Queue *event*. Call it under the lock that guards the change it tells of."""
        self._queue.append(event)

    def deliver(self) -> None:
        """Tell everything queued so far; on return it has been told, by this thread or by another.

        An observer that gets here again (it cancelled the run, say) returns at once: the delivery that called it
        goes on with what it added, so that no observer sees two events at a time.
        """
        me = threading.get_ident()
        if self._deliverer == me or not (self._queue or self._deliverer):
            return
        with self._lock:
            self._deliverer = me
            try:
                while self._queue:
                    self._tell(self._queue.popleft())
            finally:
                self._deliverer = 0

    def _tell(self, event: Event) -> None:
        for observer in list(self._observers):
            try:
                observer(event)
            except BaseException:  # noqa: BLE001 - whatever a watcher raises must not reach the run
                self._observers.remove(observer)
                log_broken_hook(f"observer {shown(observer, 200)}", "It is dropped for the rest of this run.")
