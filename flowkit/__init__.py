"""Run Python functions that depend on each other, inside your own process.

>>> from flowkit import DAG, task
>>> with DAG("hello") as dag:
...     @task
...     def extract() -> list[int]:
...         return [3, 1, 2]
...
...     @task
...     def total(rows: list[int]) -> int:
...         return sum(rows)
...
...     _ = extract >> total
>>> dag.run()["total"]
6
"""

from __future__ import annotations

from .context import TaskContext, current_context
from .dag import DAG
from .engine.handle import RunHandle
from .events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
)
from .exceptions import (
    BindingError,
    ConditionError,
    DAGCycleError,
    DAGExecutionError,
    DefinitionError,
    DuplicateTaskError,
    FlowkitError,
    GiveUp,
    NotPicklableError,
    OptionError,
    RemoteError,
    RetryAfter,
    RunCancelledError,
    RunTimeoutError,
    Skip,
    StateCorruptError,
    StateError,
    StateLockedError,
    StateSerializationError,
    StateVersionError,
    StateWriteError,
    TaskExecutionError,
    TaskNotFoundError,
    TaskResultError,
    TaskTimeoutError,
    WorkerDiedError,
    WorkflowExecutionError,
)
from .results import RunResult, TaskRun
from .task import Task, chain, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .logging import FlowkitLogger, LogLevel, configure_logging, get_logger
    from .state import SQLiteStateStore, StateManager, TaskCache
    from .workflow import (
        AsyncExecutor,
        BaseExecutor,
        BaseStateStore,
        JSONStateStore,
        ProcessExecutor,
        SequentialExecutor,
        TaskStatus,
        ThreadedExecutor,
        Workflow,
        WorkflowStatus,
        WorkflowTask,
        export_mermaid,
        save_mermaid,
    )

__version__ = "0.1.0"

__all__ = [
    "DAG",
    "AsyncExecutor",
    "AttemptFailed",
    "AttemptStarted",
    "BaseExecutor",
    "BaseStateStore",
    "BindingError",
    "ConditionError",
    "DAGCycleError",
    "DAGExecutionError",
    "DefinitionError",
    "DuplicateTaskError",
    "Event",
    "FlowkitError",
    "FlowkitLogger",
    "GiveUp",
    "JSONStateStore",
    "LogLevel",
    "NotPicklableError",
    "OptionError",
    "ProcessExecutor",
    "RemoteError",
    "RetryAfter",
    "RunCancelledError",
    "RunFinished",
    "RunHandle",
    "RunResult",
    "RunStarted",
    "RunTimeoutError",
    "SQLiteStateStore",
    "SequentialExecutor",
    "Skip",
    "StateCorruptError",
    "StateError",
    "StateLockedError",
    "StateManager",
    "StateSerializationError",
    "StateVersionError",
    "StateWriteError",
    "Task",
    "TaskCache",
    "TaskCancelled",
    "TaskContext",
    "TaskExecutionError",
    "TaskFailed",
    "TaskNotFoundError",
    "TaskRestored",
    "TaskResultError",
    "TaskRun",
    "TaskSkipped",
    "TaskStatus",
    "TaskSucceeded",
    "TaskTimeoutError",
    "TaskUpstreamFailed",
    "ThreadedExecutor",
    "WorkerDiedError",
    "Workflow",
    "WorkflowExecutionError",
    "WorkflowStatus",
    "WorkflowTask",
    "chain",
    "configure_logging",
    "current_context",
    "export_mermaid",
    "get_logger",
    "save_mermaid",
    "task",
]

_LAZY = {
    **dict.fromkeys(("FlowkitLogger", "LogLevel", "configure_logging", "get_logger"), "logging"),
    **dict.fromkeys(("SQLiteStateStore", "StateManager", "TaskCache"), "state"),
    **dict.fromkeys(("AsyncExecutor", "BaseExecutor", "ProcessExecutor", "SequentialExecutor"), "workflow"),
    **dict.fromkeys(("ThreadedExecutor", "BaseStateStore", "JSONStateStore", "TaskStatus"), "workflow"),
    **dict.fromkeys(("Workflow", "WorkflowStatus", "WorkflowTask", "export_mermaid", "save_mermaid"), "workflow"),
}
"""Names that come from a module which is imported only when one of them is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flowkit' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
