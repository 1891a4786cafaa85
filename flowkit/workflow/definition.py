"""Describe work by names: ``Workflow``.

Knows tasks and the names that they depend on. Does not know how an execution works.
"""

from __future__ import annotations

from .. import wiring
from ..context import current_context
from ..engine.program import compile_program, freeze_tasks, raise_problems
from ..exceptions import (
    DuplicateTaskError,
    FlowkitError,
    OptionError,
    TaskNotFoundError,
    close_matches,
    shown,
)
from ..statuses import TaskStatus, WorkflowStatus
from ..task import Task
from .callbacks import check_callbacks
from .tasks import WorkflowTask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from ..engine.graph import Graph
    from ..engine.program import Program
    from .execution import Execution

_STR = frozenset({str})
_LONGEST = 200
"""Characters of the name of a task."""


class Workflow:
    """A graph of tasks that depend on each other by name.

    An executor runs it; each execution has its own results, and this object tells of the latest one. Results reach
    parameters by name alone: a parameter that is named like a task in ``depends_on`` gets its result, ``**kwargs`` the
    others, and what no parameter takes only orders.

    Args:
        name: For logs, errors, and what stores keep: two workflows of one name share it.
        description: For people.

    Raises:
        OptionError: *name* is no string of printable characters.

    >>> from flowkit import SequentialExecutor, Workflow, task
    >>> @task
    ... def fetch():
    ...     return [3, 1, 2]
    >>> @task
    ... def total(fetch):
    ...     return sum(fetch)
    >>> workflow = Workflow("sums")
    >>> workflow.add_task(fetch)
    <WorkflowTask 'fetch' PENDING depends_on=[]>
    >>> workflow.add_task(total, depends_on=["fetch"])
    <WorkflowTask 'total' PENDING depends_on=['fetch']>
    >>> SequentialExecutor().execute(workflow)["total"]
    6
    """

    def __init__(self, name: str = "Workflow", description: str | None = None) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise OptionError(f"Workflow name {shown(name)} must be a string of printable characters.")
        self.name = name
        self.description = description
        self._tasks: dict[str, WorkflowTask] = {}
        self._program: Program | None = None
        self._version = -1
        """That of all wiring when the program was made."""
        self._latest: Execution | None = None
        self._running: dict[str, Execution] = {}
        """The executions that go on, by the id of their run."""
        self._find_execution = self._execution
        """What every task asks; one bound method for all of them."""

    # ------------------------------------------------------------ describing

    def add_task(self, task: Task[..., Any], depends_on: Iterable[str] | None = ()) -> WorkflowTask:
        """Add *task*; what it depends on may be added later.

        Args:
            task: A decorated function, or ``Task("name", function, ...)``.
            depends_on: Names of the tasks that have to succeed before; None is none.

        Returns:
            What :meth:`get_task` gives for its name.

        Raises:
            TypeError: *task* is no task.
            DuplicateTaskError: There is a task of that name.
            DefinitionError: It is wired with ``>>``, or *depends_on* is no list of names.
        """
        if not isinstance(task, Task):
            raise TypeError(f"{self._where('add_task')} takes a task, not {shown(task)}.{_how_to_make(task)}")
        name = task.name
        if name in self._tasks:
            raise DuplicateTaskError(name, str(self._tasks[name].definition.site), str(task.site))
        if depends_on is None:
            depends_on = ()
        elif type(depends_on) not in (list, tuple) or not _STR.issuperset(map(type, depends_on)):
            depends_on = self._check_names(name, depends_on)
        if wiring.is_wired(task):
            raise self._wired(task)
        if task.options.has_callbacks:
            check_callbacks(f"{self._where('add_task')}: task {name!r}", task)
        self._tasks[name] = WorkflowTask(task, tuple(dict.fromkeys(depends_on)), self._find_execution)
        return self._tasks[name]

    def _check_names(self, name: str, depends_on: Iterable[str]) -> list[str]:
        where = f"{self._where('add_task')}: task {name!r}"
        if isinstance(depends_on, (str, Task)) or not hasattr(depends_on, "__iter__"):
            only = depends_on.name if isinstance(depends_on, Task) else depends_on
            raise OptionError(f"{where}: depends_on={shown(depends_on)} must be a list of names: [{shown(only)}].")
        names = list(depends_on)
        for before in names:
            if not isinstance(before, str):
                hint = f" Write {before.name!r}." if isinstance(before, (Task, WorkflowTask)) else ""
                raise OptionError(f"{where}: depends_on must hold names of tasks, not {shown(before)}.{hint}")
        return names

    def _wired(self, task: Task[..., Any]) -> OptionError:
        return OptionError(
            f"{self._where('add_task')}: task {task.name!r} is wired with >>, which is for a DAG. Here say "
            f"depends_on=[...]; {task.name}.with_options() is a copy that is not wired."
        )

    # ------------------------------------------------------------ looking

    @property
    def tasks(self) -> list[WorkflowTask]:
        """The tasks, in the order in which they were added."""
        return list(self._tasks.values())

    @property
    def status(self) -> WorkflowStatus:
        """How the latest execution stands; IDLE if there was none."""
        execution = self._execution()
        return WorkflowStatus.IDLE if execution is None else execution.status

    def get_task(self, name: str) -> WorkflowTask | None:
        """Return the task *name*, None if there is none."""
        return self._tasks.get(name)

    def get_task_status(self, name: str) -> TaskStatus:
        """Return how the task *name* stands.

        Raises:
            KeyError: There is none.
        """
        return self._task(name).status

    def get_task_result(self, name: str) -> Any:
        """Return what the task *name* returned; None unless it is COMPLETED.

        Raises:
            KeyError: There is no such task.
        """
        return self._task(name).result

    def get_dependencies(self, name: str) -> list[str]:
        """Return the names of the tasks that the task *name* depends on, in the order given.

        Raises:
            KeyError: There is no such task.
        """
        return list(self._task(name).depends_on)

    def get_execution_plan(self) -> list[list[WorkflowTask]]:
        """Return the topological generations: all tasks of one may run side by side when the earlier ones are done.

        Raises:
            DefinitionError: A dependency is missing, or there is a cycle.
        """
        graph, order = self.frozen_shape()
        tasks = self.tasks
        return [[tasks[order[i]] for i in ids] for ids in graph.generations()]

    def get_workflow_stats(self) -> dict[str, Any]:
        """Return how many tasks there are, and how many ended how in the latest execution.

        Returns:
            ``total_tasks``, ``completed``, ``failed``, ``skipped``, ``pending``, ``running`` (retrying included) and
            ``total_time_seconds``. What was cancelled after it had started is in the total alone.
        """
        return self.stats_of(self._execution())

    def stats_of(self, execution: Execution | None) -> dict[str, Any]:
        """Return the same for *execution*."""
        statuses = [task.status_in(execution) for task in list(self._tasks.values())]
        never_started = statuses.count(TaskStatus.PENDING) + statuses.count(TaskStatus.UPSTREAM_FAILED)
        return {
            "total_tasks": len(statuses),
            "completed": statuses.count(TaskStatus.COMPLETED),
            "failed": statuses.count(TaskStatus.FAILED),
            "skipped": statuses.count(TaskStatus.SKIPPED),
            "pending": never_started,
            "running": statuses.count(TaskStatus.RUNNING) + statuses.count(TaskStatus.RETRYING),
            "total_time_seconds": 0.0 if execution is None else execution.seconds,
        }

    def clear_results(self) -> None:
        """Forget how the latest execution went; one that goes on goes on."""
        self._latest = None

    def validate(self) -> None:
        """Check the graph and how every task is called; nothing runs.

        Raises:
            TaskNotFoundError: A task depends on one that does not exist.
            DAGCycleError: Tasks depend on each other in a circle.
            BindingError: A required parameter has no value.
            DefinitionError: There are several problems; it lists all of them.
        """
        self.program()

    # ------------------------------------------------------------ for executors and pictures

    def program(self) -> Program:
        """Return the frozen graph; it is made again only if something has changed.

        Raises:
            DefinitionError: As :meth:`validate`.
        """
        version = wiring.version.number
        known = self._program
        if known is None or len(known) != len(self._tasks) or self._version != version:
            added = dict(self._tasks)  # as they are now: another thread may add some meanwhile
            tasks = [task.definition for task in added.values()]
            for task in filter(wiring.is_wired, tasks):
                raise self._wired(task)
            not_found = self._not_found(added)
            if not_found:  # something stands for what a parameter may be named like, so that what else is wrong is seen
                names = dict.fromkeys(name for task in added.values() for name in task.depends_on if name not in added)
                tasks += [Task(name, _stand_in) for name in names if name.isidentifier() and len(name) <= _LONGEST]
            upstream = _positions(added, [task.name for task in tasks])
            known, problems = compile_program(self.name, tasks, upstream, (), names_only=True)
            raise_problems(self._where(), [*not_found, *problems])
            self._program, self._version = known, version
        return known

    def frozen_shape(self) -> tuple[Graph, list[int]]:
        """Return the graph without looking at how tasks are called, and the position of the task of each id."""
        added = dict(self._tasks)
        raise_problems(self._where(), self._not_found(added))
        return freeze_tasks([task.definition for task in added.values()], _positions(added, list(added)))

    def begin(self, execution: Execution) -> None:
        """Let *execution* be the latest one, which goes on."""
        self._running[execution.run_id] = self._latest = execution

    def end(self, execution: Execution) -> None:
        """Note that *execution* is over."""
        self._running.pop(execution.run_id, None)

    def _not_found(self, added: Mapping[str, WorkflowTask]) -> list[TaskNotFoundError]:
        """Return a problem for each name that one of the tasks *added* depends on, and that none has."""
        return [
            TaskNotFoundError(
                f"{self._where()}: task {task.name!r} depends on {name!r}, which does not exist"
                f"{close_matches(name, added)}."
            )
            for task in added.values()
            for name in task.depends_on
            if name not in added
        ]

    def _execution(self) -> Execution | None:
        """Return the execution whose task asks, else the latest one."""
        if self._running:
            try:
                own = self._running.get(current_context().run_id)
            except FlowkitError:  # no task asks
                own = None
            if own is not None:
                return own
        return self._latest

    def _task(self, name: str) -> WorkflowTask:
        try:
            return self._tasks[name]
        except KeyError:
            hint = close_matches(name, self._tasks)
            raise KeyError(f"{self._where()}: no task is named {name!r}{hint}") from None

    def _where(self, method: str = "") -> str:
        return f"Workflow({self.name!r}).{method}()" if method else f"Workflow({self.name!r})"

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r} {self.status} tasks={len(self._tasks)}>"


def _stand_in() -> None:
    """Be what a task that does not exist would run."""


def _positions(added: Mapping[str, WorkflowTask], names: Sequence[str]) -> list[list[int]]:
    """Return for each of *names* the positions among them of what it depends on; a name that was not added has none."""
    position = {name: i for i, name in enumerate(names)}
    return [
        [position[before] for before in added[name].depends_on if before in position] if name in added else []
        for name in names
    ]


def _how_to_make(func: object) -> str:
    if isinstance(func, WorkflowTask):
        return f" It belongs to another workflow; add its definition: add_task({func.name}.definition)."
    if not callable(func):
        return ' Write @task above a function, or Task("name", function).'
    name = getattr(func, "__name__", "function")
    return f" Write @task above def {name}, or Task({name})."
