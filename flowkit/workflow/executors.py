"""Run workflows: the executors.

Knows how a run is to go, and where results are kept. Does not know how a run works.
"""

from __future__ import annotations

import sys
from functools import partial

from ..engine.handle import RunHandle
from ..engine.launch import make_run
from ..engine.settings import MOST_WORKERS, check_keywords, default_workers, merge
from ..exceptions import FlowkitError, OptionError, close_matches, shown
from ..retry import check_count
from .callbacks import Callbacks
from .definition import Workflow
from .execution import Execution

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from typing import Any

    from ..engine.plan import Plan
    from ..engine.program import Program
    from ..engine.runner import Run
    from ..results import RunResult
    from ..state.store import Store
    from .tasks import WorkflowTask

_OPTIONS = frozenset({"limits", "timeout", "observers", "_clock", "_rng", "_pick", "_start_method"})


class BaseExecutor:
    """Runs workflows. Each task starts the moment the tasks that it depends on are done.

    ``async def`` tasks run on an event loop, whatever runs the others. The first failure stops everything that has not
    started. One executor may run many workflows at once.

    Args:
        state_store: Where every result is kept as it comes. What is kept there and still fits is not run again.
        storage: Another name for *state_store*.
        on_workflow_start: Called with the name of the workflow.
        on_workflow_success: Called with the name and ``get_workflow_stats()``.
        on_workflow_failure: Called with the name and the exception. A hook that raises is logged.
        **options: ``limits``, ``timeout`` and ``observers``, as ``DAG.run`` takes them.

    Attributes:
        state_store: Where results are kept, None for nowhere.

    Raises:
        OptionError: An argument is outside of its range.
        TypeError: There is no such argument, or *state_store* is no store.
    """

    _own_arguments: tuple[str, ...] = ()
    """What a subclass takes besides."""
    on_workflow_start: Callable[[str], object] | None = None
    on_workflow_success: Callable[[str, dict[str, Any]], object] | None = None
    on_workflow_failure: Callable[[str, BaseException], object] | None = None

    def __init__(
        self,
        state_store: Any = None,
        *,
        storage: Any = None,
        on_workflow_start: Callable[[str], object] | None = None,
        on_workflow_success: Callable[[str, dict[str, Any]], object] | None = None,
        on_workflow_failure: Callable[[str, BaseException], object] | None = None,
        **options: Any,
    ) -> None:
        where = type(self).__name__
        if state_store is not None and storage is not None:
            raise TypeError(f"{where}: state_store= and storage= are the same; give one of them.")
        self.state_store = storage if state_store is None else state_store
        self._store: Store | None = None
        if self.state_store is not None:
            from ..state.foreign import as_store  # noqa: PLC0415 - imports json

            self._store = as_store(where, self.state_store)
        hooks = {
            "on_workflow_start": on_workflow_start,
            "on_workflow_success": on_workflow_success,
            "on_workflow_failure": on_workflow_failure,
        }
        for name, hook in hooks.items():
            if hook is None:
                continue
            if not callable(hook):
                raise OptionError(f"{where}: {name}={shown(hook)} must be callable.")
            setattr(self, name, hook)  # without one, that of the class counts: somebody may have written it there
        for name in options.keys() - _OPTIONS:
            known = [*self._own_arguments, "state_store", *sorted({*hooks, *(n for n in _OPTIONS if n[0] != "_")})]
            hint = close_matches(name, known)
            raise TypeError(f"{where}: there is no argument {name!r}{hint}; there are {', '.join(known)}.")
        kept = {} if self._store is None else {"state": self._store, "resume": True}
        self._keywords = merge({}, check_keywords(where, {**options, **self._workers(), **kept}))

    def _workers(self) -> dict[str, Any]:
        """Return the arguments of a run that say where tasks run."""
        raise NotImplementedError(f"{type(self).__name__} does not say where tasks run; use one of its subclasses.")

    def execute(self, workflow: Workflow) -> RunResult:
        """Run *workflow*, and return its result.

        Raises:
            DefinitionError: The graph is wrong; nothing has run.
            WorkflowExecutionError: A task failed; its own exception is the cause, ``.failed_task`` its name.
            StateLockedError: Somebody else executes a workflow of that name with this store.
            StateWriteError: A result could not be stored; what was stored before is kept.
            RunTimeoutError: The timeout passed.
            KeyboardInterrupt: Ctrl-C.
        """
        run, execution = self._begin(workflow, None)
        execution.control(run)
        return execution.conclude(run)

    def plan(self, workflow: Workflow) -> Plan:
        """Return what :meth:`execute` would run, restore and skip, and why; nothing runs.

        Printed, it is a table, and lists what could change without being noticed.

        Raises:
            DefinitionError: The graph is wrong.
            StateError: The store cannot be read.
        """
        from ..engine.plan import make_plan  # noqa: PLC0415 - imports json and hashlib

        return make_plan(self._program_of(workflow, "plan"), {}, self._store, resumes=self._store is not None)

    def _program_of(self, workflow: Workflow, method: str) -> Program:
        if not isinstance(workflow, Workflow):
            raise TypeError(f"{type(self).__name__}.{method}() takes a Workflow, not {shown(workflow)}.")
        return workflow.program()

    def _begin(self, workflow: Workflow, loop: AbstractEventLoop | None) -> tuple[Run, Execution]:
        where = f"{type(self).__name__}.execute()"
        if sys.is_finalizing():
            raise FlowkitError(f"{where}: the interpreter is shutting down, and nothing new can run.")
        program = self._program_of(workflow, "execute")
        keywords = self._keywords
        watched: dict[str, WorkflowTask] = {}
        if program.has_callbacks:
            keywords = {**keywords, "observers": [Callbacks(watched), *keywords["observers"]]}
        run = make_run(where, program, keywords, {}, loop)
        execution = Execution(workflow.name, run, self, workflow.end, workflow.stats_of)
        if program.has_callbacks:
            told = [task for task in workflow.tasks if task.definition.options.has_callbacks]
            watched.update({task.name: task.pinned_to(execution) for task in told})
        workflow.begin(execution)
        return run, execution

    def __repr__(self) -> str:
        return f"{type(self).__name__}(state_store={self.state_store!r})"


def _check_most(where: str, name: str, value: Any) -> int:
    """Return *value*, how many tasks may run at once; a store in its place is told where it belongs."""
    if callable(getattr(value, "load_task_state", None)):
        raise OptionError(f"{where}: {name}={shown(value)} must be a number. Write {where}(state_store=...).")
    return check_count(where, name, value, 1, MOST_WORKERS)


class SequentialExecutor(BaseExecutor):
    """Runs one task at a time in the calling thread, so that a debugger works.

    >>> SequentialExecutor().execute(Workflow("empty")) == {}
    True
    """

    def _workers(self) -> dict[str, Any]:
        return {"executor": "sequential"}


class ThreadedExecutor(BaseExecutor):
    """Runs tasks on up to *max_workers* threads, which is for tasks that wait, or that release the GIL."""

    _own_arguments = ("max_workers",)

    def __init__(self, max_workers: int = 4, state_store: Any = None, **options: Any) -> None:
        self.max_workers = _check_most("ThreadedExecutor", "max_workers", max_workers)
        super().__init__(state_store, **options)

    def _workers(self) -> dict[str, Any]:
        return {"executor": "thread", "max_workers": {"thread": self.max_workers}}


class ProcessExecutor(BaseExecutor):
    """Runs tasks on up to *max_workers* processes, one for each CPU by default, which is for tasks that compute.

    Functions and what they take and return are pickled. A task can see only its arguments there: the workflow object
    and the store stay in the process that executes.
    """

    _own_arguments = ("max_workers",)

    def __init__(self, max_workers: int | None = None, state_store: Any = None, **options: Any) -> None:
        is_given = max_workers is not None
        self.max_workers = _check_most("ProcessExecutor", "max_workers", max_workers) if is_given else None
        super().__init__(state_store, **options)

    def _workers(self) -> dict[str, Any]:
        most = {} if self.max_workers is None else {"max_workers": {"process": self.max_workers}}
        return {"executor": "process", **most}


class AsyncExecutor(BaseExecutor):
    """Runs up to *max_concurrent* coroutines at once on an event loop, and plain functions on a few threads."""

    _own_arguments = ("max_concurrent",)

    def __init__(self, max_concurrent: int = 50, state_store: Any = None, **options: Any) -> None:
        self.max_concurrent = _check_most("AsyncExecutor", "max_concurrent", max_concurrent)
        super().__init__(state_store, **options)

    def _workers(self) -> dict[str, Any]:
        most = self.max_concurrent
        return {"executor": "async", "max_workers": {"async": most, "thread": min(most, default_workers())}}

    def execute(self, workflow: Workflow) -> Any:
        """Run *workflow*: to the end if no event loop is running, else return a handle of it that can be awaited.

        In a coroutine write ``result = await executor.execute(workflow)``. The run has started when this returns, and
        goes on if nobody awaits it, as long as the loop runs.

        Returns:
            A :class:`RunResult`; in a coroutine a :class:`RunHandle`.

        Raises:
            DefinitionError: The graph is wrong; nothing has run.
            WorkflowExecutionError: As :meth:`BaseExecutor.execute`, or when it is awaited.
        """
        from asyncio import get_running_loop  # noqa: PLC0415 - costs 29 ms

        try:
            loop = get_running_loop()
        except RuntimeError:
            return super().execute(workflow)
        run, execution = self._begin(workflow, loop)
        try:
            return RunHandle(run, partial(execution.control, run), partial(execution.conclude, run))
        except FlowkitError as error:  # there is no thread for it
            execution.fail(error)
            raise
