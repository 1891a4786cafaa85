"""Tell the callbacks of a workflow's tasks: an observer like any other.

Knows events, and what arguments a callback takes. Does not know runs.
"""

from __future__ import annotations

from ..engine.signature import takes
from ..events import (
    AttemptFailed,
    AttemptStarted,
    TaskCancelled,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
)
from ..exceptions import OptionError, shown
from ..hooks import log_broken_hook
from ..statuses import TaskStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..events import Event
    from ..task import Task
    from .tasks import WorkflowTask

_STATUS_AFTER: dict[type[Event], TaskStatus] = {
    AttemptStarted: TaskStatus.RUNNING,
    AttemptFailed: TaskStatus.RETRYING,
    TaskSucceeded: TaskStatus.COMPLETED,
    TaskRestored: TaskStatus.COMPLETED,
    TaskSkipped: TaskStatus.SKIPPED,
    TaskFailed: TaskStatus.FAILED,
}


def check_callbacks(where: str, task: Task[..., Any]) -> None:
    """Raise OptionError if a callback of *task* takes other arguments than there are."""
    for callback in task.options.callbacks:
        if not (takes(callback, 1) or takes(callback, 2)):
            raise OptionError(
                f"{where}: callback {shown(callback)} must take one argument, the task that has succeeded, or two, the "
                f"task that has failed and its exception."
            )
    retry = task.options.on_retry
    if retry is not None and not (takes(retry, 1) or takes(retry, 2)):
        raise OptionError(
            f"{where}: on_retry={shown(retry)} must take two arguments, a name and the number of the attempt that "
            f"failed, or one, the event."
        )
    change = task.options.on_status_change
    if change is not None and not takes(change, 2):
        raise OptionError(f"{where}: on_status_change={shown(change)} must take two arguments, a name and a status.")


class Callbacks:
    """Calls ``callbacks``, ``on_status_change``, ``on_retry``, ``on_success`` and ``on_failure`` of *tasks*.

    Args:
        tasks: Those that have any of them, by name, as they go in the execution that is watched.
    """

    __slots__ = ("_tasks",)

    def __init__(self, tasks: Mapping[str, WorkflowTask]) -> None:
        self._tasks = tasks

    def __call__(self, event: Event) -> None:
        """Tell the callbacks of the task that *event* is about; those that raise are logged."""
        task = self._tasks.get(getattr(event, "task_name", ""))
        status = _STATUS_AFTER.get(type(event))
        if isinstance(event, (TaskCancelled, TaskUpstreamFailed)) and task is not None:
            status = None if task.status is TaskStatus.PENDING else task.status  # it may never have started
        if task is None or status is None:
            return
        options = task.definition.options
        is_last = isinstance(event, AttemptFailed) and event.retry_in is None
        if options.on_status_change is not None and not is_last:
            _call(task, options.on_status_change, task.name, status)
        if isinstance(event, AttemptFailed):
            if options.on_retry is not None and not is_last:
                by_name = takes(options.on_retry, 2)
                _call(task, options.on_retry, *([task.name, event.attempt] if by_name else [event]))
        elif isinstance(event, TaskSucceeded):
            if options.on_success is not None:
                _call(task, options.on_success, event)
            for callback in options.callbacks:
                if takes(callback, 1):
                    _call(task, callback, task)
        elif isinstance(event, TaskFailed):
            if options.on_failure is not None:
                _call(task, options.on_failure, event)
            for callback in options.callbacks:
                if takes(callback, 2):
                    _call(task, callback, task, event.error)


def _call(task: WorkflowTask, callback: Callable[..., object], *args: object) -> None:
    try:
        callback(*args)
    except BaseException:  # noqa: BLE001 - whatever a watcher raises must not reach the run
        log_broken_hook(f"callback {shown(callback, 200)} of task {task.name!r}", "The run goes on unchanged.")
