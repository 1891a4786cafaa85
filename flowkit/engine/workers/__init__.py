"""Where attempts run. One module for each kind of worker, one contract for all.

Does not know graphs: an attempt is the id of a task, and what to do with it is said by the run.

A pool is given ids by :meth:`Pool.add`, makes their attempts, and tells the run how each ended:
``run.succeeded(worker, id, value)`` or ``run.failed(worker, id, error)``. The answer lists the ids that became ready;
the pool goes on inline with the first of them and shares the rest. What belongs to another kind of worker is not in
the answer: the run hands it on. The answer None means that nobody waits for this worker any more: it ends.
"""

from __future__ import annotations

from ...context import holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence
    from contextvars import Context
    from typing import Any, Protocol

    from ...context import TaskContext
    from ...results import RunRecord

    class Attempts(Protocol):
        """What a pool asks of its run."""

        record: RunRecord
        is_stopped: bool

        def admits(self, i: int) -> bool:
            """Return whether *i* may start although the run is stopped."""

        def now(self) -> float:
            """Return the reading of the run's clock."""

        def call_of(self, worker: Worker) -> Callable[[int], Any]:
            """Return the function that makes an attempt on *worker*."""

        def succeeded(self, worker: Worker, i: int, value: Any) -> list[int] | None:
            """Take the value of *i*."""

        def failed(self, worker: Worker, i: int, error: BaseException) -> list[int] | None:
            """Take what came out of *i* instead of a value."""

        def break_down(self, error: BaseException) -> None:
            """End the run: *error* came out of what calls tasks, and not of a task."""

        def task_context(self, worker: Worker, i: int) -> TaskContext:
            """Make the context of the attempt of *i*."""

    class Pool(Protocol):
        """What a run asks of its workers."""

        def add(self, ids: Sequence[int]) -> None:
            """Have the attempts of *ids* made soon. Not under the run's lock."""

        def is_starting(self) -> bool:
            """Return whether an id waits and a worker is free to take it."""

        def withdraw(self) -> list[int]:
            """Take back what was added and has not started."""

        def working(self) -> list[Worker]:
            """Return the workers that are in an attempt."""

        def abandon(self, worker: Worker) -> int:
            """Give up the attempt of *worker* so that another may take its place; return how many threads that costs.

            A process is killed and a coroutine cancelled, which costs none. Under the run's lock.
            """

        def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
            """Ask the attempts of the ids that *is_unwanted* names to stop; returns at once. Under the run's lock.

            Coroutines are cancelled; processes are told, or killed if *kills*; threads find out by their context.
            """

        def close(self) -> int:
            """End every worker, wait for those that end, and return how many threads had to be left behind.

            Not counted are those that were abandoned before.
            """


class _ContextPlace:
    """Stands in arguments for the TaskContext, which is made where the attempt is."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "CONTEXT_PLACE"


CONTEXT_PLACE = _ContextPlace()


class NotStartedError(Exception):
    """The run was stopped between making an id ready and starting it."""


class Worker:
    """One place where attempts run, one at a time.

    Attributes:
        pool: The pool it belongs to.
        name: Its name, as ``TaskRun.worker`` shows it.
        current: The id of the attempt it is in, -1 between attempts.
        is_abandoned: Whether nobody waits for its attempt any more. Written under the run's lock; a worker whose
            flag is set changes nothing in the run, which is what makes late results harmless.
        is_inline: Whether it is the thread that called ``run()``, which cannot be abandoned.
    """

    __slots__ = ("_run", "current", "is_abandoned", "is_inline", "name", "pool")

    def __init__(self, run: Attempts, pool: object, name: str, *, is_inline: bool = False) -> None:
        self._run = run
        self.pool = pool
        self.name = name
        self.current = -1
        self.is_abandoned = False
        self.is_inline = is_inline

    def task_context(self) -> TaskContext | None:
        """Return the context of the attempt running now, None between attempts."""
        return self._run.task_context(self, self.current) if self.current >= 0 else None


def take_all(ready: deque[int]) -> list[int]:
    """Return what is in *ready* and take it out, while others take from it too."""
    taken = []
    while ready:
        try:
            taken.append(ready.popleft())
        except IndexError:  # somebody was faster
            break
    return taken


def context_for(worker: Worker, context: Context) -> Context:
    """Return a copy of *context* in which ``current_context()`` finds *worker*."""
    own = context.copy()
    own.run(holder.set, worker)
    return own
