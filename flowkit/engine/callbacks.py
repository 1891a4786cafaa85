"""Tell a task's own callbacks: an observer like any other.

Knows events and which task has which callback. Does not know runs.
"""

from __future__ import annotations

from ..events import AttemptFailed, TaskFailed, TaskSucceeded
from ..exceptions import shown
from ..hooks import log_broken_hook
from .program import ItemName
from .signature import takes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ..events import Event
    from ..task import Task


class Callbacks:
    """Calls ``on_success``, ``on_failure`` and ``on_retry`` of the tasks that have them."""

    __slots__ = ("_options",)

    def __init__(self, tasks: Iterable[Task[..., Any]]) -> None:
        self._options = {task.name: task.options for task in tasks if task.options.has_callbacks}

    def __call__(self, event: Event) -> None:
        """Tell the callback that *event* is for, if there is one; one that raises is logged."""
        name = getattr(event, "task_name", None)
        if isinstance(name, ItemName):  # its task has an end of its own
            name = name.task_name if isinstance(event, AttemptFailed) else None
        options = self._options.get(name) if name is not None else None
        if options is None:
            return
        callback = None
        if isinstance(event, TaskSucceeded):
            callback = options.on_success
        elif isinstance(event, TaskFailed):
            callback = options.on_failure
        elif isinstance(event, AttemptFailed) and event.retry_in is not None:
            callback = options.on_retry
        if callback is not None:
            try:
                if isinstance(event, AttemptFailed) and not takes(callback, 1):
                    callback(name, event.attempt)
                else:
                    callback(event)
            except BaseException:  # noqa: BLE001 - whatever a watcher raises must not reach the run
                log_broken_hook(f"callback {shown(callback, 200)} of task {name!r}", "The run goes on unchanged.")
