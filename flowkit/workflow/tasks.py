"""A task of a workflow, as people look at it: ``WorkflowTask``.

Knows a definition and the columns of a run. Does not know how a run works.
"""

from __future__ import annotations

from ..results import TaskRun
from ..states import CANCELLED, FAILED, PENDING, SKIPPED, SUCCEEDED, UPSTREAM_FAILED
from ..statuses import TaskStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    from ..task import Task
    from .execution import Execution

_STATUSES = {
    SUCCEEDED: TaskStatus.COMPLETED,
    FAILED: TaskStatus.FAILED,
    SKIPPED: TaskStatus.SKIPPED,
    UPSTREAM_FAILED: TaskStatus.UPSTREAM_FAILED,
    CANCELLED: TaskStatus.CANCELLED,
}


class WorkflowTask:
    """One task of a workflow: its definition, and how it went in the latest execution.

    Asked from inside a task that an execution runs, it tells of that execution.

    Args:
        definition: The task.
        depends_on: Names of the tasks that it depends on.
        find_execution: Gives the execution to tell of, None if there was none.

    Attributes:
        definition: The :class:`flowkit.Task` that was added.
        depends_on: Names of the tasks that it depends on, in the order given.
    """

    __slots__ = ("_find_execution", "definition", "depends_on")

    def __init__(
        self, definition: Task[..., Any], depends_on: tuple[str, ...], find_execution: Callable[[], Execution | None]
    ) -> None:
        self.definition = definition
        self.depends_on = depends_on
        self._find_execution = find_execution

    @property
    def name(self) -> str:
        """The task's name."""
        return self.definition.name

    @property
    def retries(self) -> int:
        """Extra attempts after the first."""
        return self.definition.retries

    @property
    def timeout(self) -> float | None:
        """Seconds per attempt; None for no limit."""
        return self.definition.timeout

    @property
    def status(self) -> TaskStatus:
        """How it stands; PENDING before it starts, and for good if a failure kept it from starting."""
        return self.status_in(self._find_execution())

    def status_in(self, execution: Execution | None) -> TaskStatus:
        """Return how it stands in *execution*."""
        i = -1 if execution is None else execution.record.index.get(self.name, -1)
        if execution is None or i < 0:  # or it was added later
            return TaskStatus.PENDING
        record = execution.record
        state = record.state[i]
        if state == PENDING:
            if execution.is_backing_off(i):
                return TaskStatus.RETRYING
            return TaskStatus.RUNNING if record.started[i] else TaskStatus.PENDING
        if state in (CANCELLED, UPSTREAM_FAILED) and not (record.is_cancelled or record.attempts_of(i)):
            return TaskStatus.PENDING
        return _STATUSES[state]

    @property
    def result(self) -> Any:
        """What it returned; None unless it is COMPLETED."""
        run = self._run()
        return None if run is None else run.value

    @property
    def error(self) -> BaseException | None:
        """The exception that it failed with; None unless it FAILED."""
        run = self._run()
        return None if run is None or run.state != "failed" else run.error

    @property
    def attempts(self) -> int:
        """How many attempts were started."""
        run = self._run()
        return 0 if run is None else run.attempts

    @property
    def duration(self) -> float:
        """Seconds from the start of its first attempt to its end; 0 before that."""
        run = self._run()
        return 0.0 if run is None else run.duration

    @property
    def started_at(self) -> datetime | None:
        """When its first attempt started, an aware UTC datetime."""
        run = self._run()
        return None if run is None else run.started_at

    @property
    def completed_at(self) -> datetime | None:
        """When its last attempt ended; None as long as there may be another one."""
        run = self._run()
        return None if run is None or run.state == "pending" else run.ended_at

    def pinned_to(self, execution: Execution) -> WorkflowTask:
        """Return the same task as it goes in *execution*, whichever is the latest."""
        return WorkflowTask(self.definition, self.depends_on, lambda: execution)

    def _run(self) -> TaskRun | None:
        execution = self._find_execution()
        i = None if execution is None else execution.record.index.get(self.name)
        return None if execution is None or i is None else TaskRun(execution.record, i)

    def __repr__(self) -> str:
        return f"<WorkflowTask {self.name!r} {self.status} depends_on={list(self.depends_on)}>"
