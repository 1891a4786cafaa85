"""The explicit door: a graph described by names, executors that run it, and stores that keep its results.

>>> from flowkit import task
>>> from flowkit.workflow import ThreadedExecutor, Workflow
>>> @task
... def fetch():
...     return [3, 1, 2]
>>> @task
... def total(fetch):
...     return sum(fetch)
>>> workflow = Workflow("sums")
>>> _ = workflow.add_task(fetch)
>>> _ = workflow.add_task(total, depends_on=["fetch"])
>>> ThreadedExecutor(max_workers=8).execute(workflow)["total"]
6
>>> workflow.get_task("total").status
<TaskStatus.COMPLETED: 'COMPLETED'>
"""

from __future__ import annotations

from ..exceptions import WorkflowExecutionError
from ..statuses import TaskStatus, WorkflowStatus
from .definition import Workflow
from .executors import AsyncExecutor, BaseExecutor, ProcessExecutor, SequentialExecutor, ThreadedExecutor
from .pictures import export_mermaid, save_mermaid
from .tasks import WorkflowTask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..state.jsonstore import JSONStateStore
    from ..state.sqlite import SQLiteStateStore
    from ..state.taskstates import BaseStateStore

__all__ = [
    "AsyncExecutor",
    "BaseExecutor",
    "BaseStateStore",
    "JSONStateStore",
    "ProcessExecutor",
    "SQLiteStateStore",
    "SequentialExecutor",
    "TaskStatus",
    "ThreadedExecutor",
    "Workflow",
    "WorkflowExecutionError",
    "WorkflowStatus",
    "WorkflowTask",
    "export_mermaid",
    "save_mermaid",
]

_LAZY = {"BaseStateStore": "taskstates", "JSONStateStore": "jsonstore", "SQLiteStateStore": "sqlite"}
"""Stores, whose modules are imported only when one of them is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flowkit.workflow' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f"..state.{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
