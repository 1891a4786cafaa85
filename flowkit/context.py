"""What a running task can ask of its run.

Knows the task's own attempt. Does not know the runner: it is given a few callables.

``current_context()`` costs a task nothing that does not call it: a worker puts *itself* into a context variable once,
and makes the :class:`TaskContext` of its current attempt when it is asked for.
"""

from __future__ import annotations

from contextvars import ContextVar

from .exceptions import FlowkitError, RunCancelledError
from .hooks import quiet_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    class Holder(Protocol):
        """Whoever runs attempts in the current thread or coroutine."""

        def task_context(self) -> TaskContext | None:
            """Return the context of the attempt running now, None between attempts."""


holder: ContextVar[Holder | None] = ContextVar("flowkit_holder", default=None)
"""The worker whose attempt the current code belongs to."""


class TaskContext:
    """The running task's view of its run.

    A parameter named ``context`` or annotated ``TaskContext`` gets it; :func:`current_context` finds it anywhere.

    Attributes:
        task_name: The task.
        run_id: The run.
        attempt: Which attempt this is, counted from 1.
        upstream: Name to ``TaskRun`` of each task directly upstream, whatever its final state.
    """

    __slots__ = ("_add_cleanup", "_is_cancelled", "attempt", "run_id", "task_name", "upstream")

    def __init__(
        self,
        task_name: str,
        run_id: str,
        attempt: int,
        upstream: Mapping[str, Any],
        is_cancelled: Callable[[], bool],
        add_cleanup: Callable[[Callable[[], object]], None],
    ) -> None:
        self.task_name = task_name
        self.run_id = run_id
        self.attempt = attempt
        self.upstream = upstream
        self._is_cancelled = is_cancelled
        self._add_cleanup = add_cleanup

    def is_cancelled(self) -> bool:
        """Return whether nobody waits for this attempt any more: cancelled, timed out, or the run failed."""
        return self._is_cancelled()

    def check_cancelled(self) -> None:
        """Raise RunCancelledError if nobody waits for this attempt any more. Call it in long loops."""
        if self._is_cancelled():
            raise RunCancelledError(self.task_name, "this attempt is not waited for any more")

    def add_cleanup_handler(self, handler: Callable[[], object]) -> None:
        """Have *handler* called when the run is cancelled or fails, last added first.

        Raises:
            TypeError: *handler* cannot be called.
        """
        if not callable(handler):
            raise TypeError(f"a cleanup handler must be callable without arguments, not {type(handler).__name__}.")
        self._add_cleanup(handler)

    @property
    def log(self) -> Any:
        """A stdlib logger (``flowkit.task``) whose records carry task_name, run_id and attempt."""
        import logging  # noqa: PLC0415 - costs 6 ms, and most tasks log nothing

        extra = {"task_name": self.task_name, "run_id": self.run_id, "attempt": self.attempt}
        return logging.LoggerAdapter(quiet_logger().getChild("task"), extra)

    def __repr__(self) -> str:
        return f"<TaskContext task={self.task_name!r} attempt={self.attempt} run={self.run_id}>"


def current_context() -> TaskContext:
    """Return the context of the task that is running here.

    It is found in the task's own thread, and in threads started with a copy of its ``contextvars`` context
    (``asyncio.to_thread`` does so) for as long as the task runs; a thread that outlives it is told of whatever its
    worker does next.

    Raises:
        FlowkitError: No task of a run is running here.
    """
    worker = holder.get()
    context = worker.task_context() if worker is not None else None
    if context is None:
        raise FlowkitError("current_context(): no task of a run is running here. Call it inside a task.")
    return context
