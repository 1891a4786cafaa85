"""One execution of a workflow.

Knows a workflow, its run, and the hooks of an executor. Does not know how the run was made.
"""

from __future__ import annotations

from ..exceptions import RunCancelledError, TaskExecutionError, WorkflowExecutionError
from ..hooks import log_broken_hook
from ..statuses import WorkflowStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..engine.runner import Run
    from ..results import RunRecord, RunResult

class Execution:
    """One execution of a workflow.

    Args:
        workflow_name: Its name.
        run: What is to be run.
        hooks: Has ``on_workflow_start``, ``on_workflow_success`` and ``on_workflow_failure``, or None in their place.
        on_end: Is told when it is over.
        stats: Gives what the hook of a success is told.

    Attributes:
        run_id: The run.
        record: Its columns.
        status: How it stands.
    """

    __slots__ = ("_hooks", "_name", "_on_end", "_run", "_stats", "record", "run_id", "status")

    def __init__(
        self,
        workflow_name: str,
        run: Run,
        hooks: Any,
        on_end: Callable[[Execution], None],
        stats: Callable[[Execution], dict[str, Any]],
    ) -> None:
        self._name = workflow_name
        self._run: Run | None = run
        self._hooks = hooks
        self._on_end = on_end
        self._stats = stats
        self.run_id = run.run_id
        self.record: RunRecord = run.record
        self.status = WorkflowStatus.RUNNING

    @property
    def seconds(self) -> float:
        """How long it took; while it goes on, up to now."""
        record, run = self.record, self._run
        return (record.finished_at if run is None else run.now()) - record.started_at if record.started_at else 0.0

    def is_backing_off(self, i: int) -> bool:
        """Return whether the task of id *i* waits for its next attempt."""
        return self._run is not None and self._run.is_backing_off(i)

    def control(self, run: Run) -> None:
        """Do *run*, to the end, and tell the hooks of the executor.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice.
            FlowkitError: It could not be run, or results could not be stored.
        """
        try:
            self._tell("on_workflow_start", self._name)
            run.execute()
            self.conclude(run)
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, (WorkflowExecutionError, RunCancelledError)):
                raise
        else:
            self._end(WorkflowStatus.COMPLETED)
            if getattr(self._hooks, "on_workflow_success", None) is not None:  # counting looks at every task
                self._tell("on_workflow_success", self._name, self._stats(self))

    def fail(self, error: BaseException) -> None:
        """End the execution with *error*, and tell the hook."""
        is_cancelled = self.record.is_cancelled or not isinstance(error, Exception)
        self._end(WorkflowStatus.CANCELLED if is_cancelled else WorkflowStatus.FAILED)
        self._tell("on_workflow_failure", self._name, error)

    def conclude(self, run: Run) -> RunResult:
        """Return what *run*, which is over, gave.

        Raises:
            WorkflowExecutionError: A task failed.
            RunCancelledError: It was cancelled, or took too long.
            KeyboardInterrupt: Ctrl-C ended it.
        """
        try:
            return run.result(raise_on_failure=True)
        except TaskExecutionError as error:
            failure = WorkflowExecutionError(self._name, *error.args)
            failure.result = error.result
            for note in getattr(error, "__notes__", ()):
                failure.add_note(note)
            raise failure from error.__cause__

    def _end(self, status: WorkflowStatus) -> None:
        self._run, self.status = None, status
        self._on_end(self)

    def _tell(self, hook: str, *args: Any) -> None:
        """Call a hook of the executor, if it has it; one that raises is logged."""
        call = getattr(self._hooks, hook, None)
        if call is not None:
            try:
                call(*args)
            except Exception:  # noqa: BLE001 - whatever a watcher raises must not reach the run
                log_broken_hook(f"{hook} of workflow {self._name!r}", "The execution goes on unchanged.")
