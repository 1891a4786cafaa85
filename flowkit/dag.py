"""Describe work as wired tasks, and run it: ``DAG``.

Knows tasks, wiring and the arguments of a run. Does not know how a run works.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from importlib import import_module

from . import registry, wiring
from .engine.handle import RunHandle
from .engine.program import compile_program, freeze_tasks, raise_problems
from .engine.settings import check_keywords, kind_of, make_settings, merge
from .engine.signature import read_signature
from .exceptions import DefinitionError, FlowkitError, OptionError, TaskNotFoundError, close_matches, listing, shown
from .render import report
from .results import RunResult
from .task import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Iterable, Mapping
    from contextvars import Token
    from typing import Any, Self, Unpack

    from .engine.graph import Graph
    from .engine.plan import Plan
    from .engine.program import Program
    from .engine.runner import Run
    from .engine.settings import RunKeywords

_PICTURES = ("text", "mermaid", "dot")
_MOST_PROGRAMS = 8
"""How many frozen graphs a DAG keeps, one for each set of inputs and targets that it was run with."""


class DAG:
    """A graph of tasks that runs.

    Three ways to say which tasks it has:

    - ``DAG("etl")``: those that the calling module has made, and whatever they are wired to. For scripts.
    - ``with DAG("etl") as dag:``: those made or wired inside the block, and all they depend on.
    - ``DAG("etl", tasks=[load])``: exactly those, and all they depend on.

    Which tasks those are is looked up when it runs, so wiring after ``DAG(...)`` counts; a run that has started goes on
    with the graph as it was.

    Args:
        name: For pictures, logs and errors.
        tasks: The tasks whose results are wanted.
        inputs: Default inputs of its runs.
        **options: Defaults for the arguments of :meth:`run`.

    Raises:
        OptionError: An argument is outside of its range.
    """

    def __init__(
        self,
        name: str = "workflow",
        *,
        tasks: Iterable[Task[..., Any]] | None = None,
        inputs: Mapping[str, Any] | None = None,
        **options: Unpack[RunKeywords],
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise OptionError(f"DAG name {name!r} must be a string of printable characters.")
        self.name = name
        self._defaults = check_keywords(f"DAG({name!r})", options)
        self._inputs = _check_inputs(self._where("DAG"), inputs)
        self._module: str = sys._getframe(1).f_globals.get("__name__", "?")
        self._tasks = None if tasks is None else dict.fromkeys(self._check_tasks(tasks))
        self._is_explicit = tasks is not None
        self._open_blocks: list[Token[Any]] = []
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._version = -1

    @property
    def max_workers(self) -> int | Mapping[str, int] | None:
        """The most workers of its runs, of each kind or by kind; None until chosen."""
        return self._defaults.get("max_workers")

    # ------------------------------------------------------------ which tasks

    def __enter__(self) -> Self:
        if self._tasks is None:
            self._tasks = {}
        self._open_blocks.append(registry.block.set(self._tasks))
        return self

    def __exit__(self, *_: object) -> None:
        registry.block.reset(self._open_blocks.pop())

    def _check_tasks(self, tasks: Iterable[Task[..., Any]]) -> list[Task[..., Any]]:
        if isinstance(tasks, (str, Task)) or not hasattr(tasks, "__iter__"):
            raise OptionError(f"{self._where('DAG')}: tasks={shown(tasks)} must be a list of tasks. Write tasks=[...].")
        found = list(tasks)
        for task in found:
            if not isinstance(task, Task):
                kind = type(task).__name__
                raise TypeError(f"{self._where('DAG')}: tasks must hold tasks, not {shown(task)} of type {kind}.")
        return found

    def _collect(self) -> list[Task[..., Any]]:
        """Return the tasks, in definition order."""
        if self._tasks is not None:
            seeds = self._tasks if self._is_explicit else [t for t in self._tasks if not _is_template(t.latest())]
            return wiring.connected(seeds, with_downstream=False)
        found = [task for task in registry.made_by(self._module) if not _is_template(task)]
        if not found:
            warnings.warn(
                f"DAG({self.name!r}) finds no task made by module {self._module!r}. Name them: "
                f"DAG({self.name!r}, tasks=[...]), or make them inside of `with DAG({self.name!r}) as dag:`.",
                stacklevel=_outside_level(),
            )
        return wiring.connected(found, with_downstream=True)

    def _program(self, inputs: Iterable[str], targets: Iterable[Any] | None) -> Program:
        """Return the frozen graph; it is made again only if some wiring has changed since."""
        key = (frozenset(inputs), None if targets is None else self._check_targets(targets))
        version = wiring.version.number
        if self._version != version:
            self._programs.clear()
            self._version = version
        known = self._programs.get(key)
        if known is None:
            known = self._freeze(*key)
            # Tasks of functions are found by the thread that made them, as long as somebody else holds them.
            if self._tasks is not None or not registry.has_tasks_of_functions(self._module):
                if len(self._programs) >= _MOST_PROGRAMS:
                    self._programs.clear()
                self._programs[key] = known
        return known

    def _freeze(self, inputs: frozenset[str], targets: tuple[str, ...] | None) -> Program:
        everything = tasks = self._collect()
        upstream = wiring.edges(tasks)
        if targets is not None:
            kept = self._needed_for(targets, tasks, upstream)
            position = {old: new for new, old in enumerate(kept)}
            tasks = [everything[old] for old in kept]
            upstream = [[position[u] for u in upstream[old]] for old in kept]
        program, problems = compile_program(self.name, tasks, upstream, inputs)
        if program.has_callbacks:
            problems += _for_workflows(tasks)
        raise_problems(f"DAG {self.name!r}", problems + self._unused_inputs(inputs, program, everything))
        return program

    def _check_targets(self, targets: Iterable[Any]) -> tuple[str, ...]:
        names = [target.name if isinstance(target, Task) else target for target in targets]
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            raise OptionError(f"{self._where('run')}: targets must hold names of tasks, not {shown(wrong[0])}.")
        return tuple(names)

    def _needed_for(
        self, targets: tuple[str, ...], tasks: list[Task[..., Any]], upstream: list[list[int]]
    ) -> list[int]:
        """Return the positions of *targets* and all they depend on, ascending."""
        names = dict.fromkeys(task.name for task in tasks)
        unknown = [name for name in targets if name not in names]
        if unknown:
            known = listing(names) if names else "none"
            named = ", ".join(f"{name!r}{close_matches(name, names)}" for name in unknown[:10])
            raise TaskNotFoundError(f"{self._where('run')}: targets: no task is named {named}; there are: {known}.")
        wanted = set(targets)
        needed = {i for i, task in enumerate(tasks) if task.name in wanted}
        waiting = list(needed)
        while waiting:
            new = set(upstream[waiting.pop()]) - needed
            needed |= new
            waiting += new
        return sorted(needed)

    def _unused_inputs(
        self, inputs: frozenset[str], program: Program, everything: list[Task[..., Any]]
    ) -> list[DefinitionError]:
        task_names = {task.name for task in everything}
        unused = inputs - program.inputs
        if unused and len(everything) > len(program):  # a task that is no target may take it
            unused -= _parameters(everything)
        problems: list[DefinitionError] = []
        for name in sorted(unused | (inputs & task_names)):
            if name == "context":
                why = "parameters of that name get the TaskContext"
            elif name in task_names:
                why = "a task has that name, and its result is what parameters of that name get"
            else:
                why = f"no task has a parameter of that name{close_matches(name, _parameters(everything))}"
            problems.append(DefinitionError(f"{self._where('run')}: input {name!r} is not used: {why}."))
        return problems

    def _where(self, method: str) -> str:
        return f"DAG({self.name!r})" if method == "DAG" else f"DAG({self.name!r}).{method}()"

    # ------------------------------------------------------------ running

    def run(self, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunKeywords]) -> RunResult:
        """Run the tasks and return their results.

        Each task starts the moment its own upstream tasks are done. What is given here replaces the defaults given to
        ``DAG(...)``, but for inputs and limits, which are merged, and observers, where both count.

        Args:
            inputs: Values by name, for parameters that no task fills.
            executor: Where tasks run that do not say so themselves: "thread" (default), "process", "async" (coroutines
                on an event loop, plain functions on threads), "sequential" (one at a time in this thread, in the order
                of :meth:`waves`, so that a debugger works), or any ``concurrent.futures.Executor``, which is never
                shut down. ``async def`` tasks run on an event loop in any case.
            max_workers: The most workers of each kind at once, or a mapping by kind: "thread", "process", "async" and
                "foreign". Default: CPUs + 4 threads, at most 32; a process for each CPU; no limit for coroutines; as
                many as a foreign executor has workers.
            targets: Names of tasks; only those and what they depend on run.
            limits: How many tasks may use each named limit at once, for tasks with ``uses=``.
            fail_fast: Whether the first failure stops the run (default), or independent branches go on.
            raise_on_failure: Whether failures raise (default), or only stand in the result.
            timeout: Seconds after which the run is cancelled.
            observers: Callables that get every event of the run.
            state: A ``StateManager`` or ``SQLiteStateStore`` that keeps every result as it comes: before a task is told
                to have succeeded, its result survives whatever ends the process.
            resume: Whether results that are kept there are used again where they still fit; :meth:`plan` says which.

        Raises:
            DefinitionError: The graph or an argument is wrong; nothing has run.
            StateLockedError: Another run of this DAG has the state.
            StateWriteError: A result could not be stored; what was stored before is kept.
            NotPicklableError: A task is to run in a process, and its function or an input cannot be sent there;
                nothing has run.
            TaskExecutionError: A task failed, with ``fail_fast=True``. ``.result`` has what the others gave.
            DAGExecutionError: Tasks failed, with ``fail_fast=False``.
            RunTimeoutError: The run's own timeout passed.
            KeyboardInterrupt: Ctrl-C. The summary is its note.
        """
        run, raises = self._make_run("run", inputs, options)
        run.execute()
        return run.result(raise_on_failure=raises)

    def start(self, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunKeywords]) -> RunHandle:
        """Run in the background: the same arguments as :meth:`run`, and a handle at once.

        Raises:
            DefinitionError: The graph or an argument is wrong; nothing has run.
        """
        run, raises = self._make_run("start", inputs, options)
        return RunHandle(run, run.execute, partial(run.result, raise_on_failure=raises))

    async def arun(self, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunKeywords]) -> RunResult:
        """Run inside a running event loop without blocking it: the same arguments and errors as :meth:`run`.

        Coroutines run on that loop, everything else on workers of its own; with ``executor="sequential"`` everything,
        coroutines too, one at a time in one other thread. Cancelling this call cancels the run.
        """
        from asyncio import get_running_loop  # noqa: PLC0415 - costs 29 ms, and whoever calls this has it

        run, raises = self._make_run("arun", inputs, options, get_running_loop())
        return await RunHandle(run, run.execute, partial(run.result, raise_on_failure=raises))

    def _make_run(
        self,
        method: str,
        inputs: Mapping[str, Any] | None,
        options: Any,
        loop: AbstractEventLoop | None = None,
    ) -> tuple[Run, bool]:
        where = self._where(method)
        if sys.is_finalizing():
            raise FlowkitError(f"{where}: the interpreter is shutting down, and nothing new can run.")
        # What runs a graph is a third of flowkit's import time, and no part of describing one.
        from .engine.launch import make_run  # noqa: PLC0415

        merged = merge(self._defaults, check_keywords(where, options))
        values = {**self._inputs, **_check_inputs(where, inputs)}
        program = self._program(values, merged.get("targets"))
        if program.has_callbacks:
            from .engine.callbacks import Callbacks  # noqa: PLC0415

            merged["observers"] = [Callbacks(program.tasks), *merged["observers"]]
        return make_run(where, program, merged, values, loop), merged.get("raise_on_failure", True)

    # ------------------------------------------------------------ looking

    def plan(self, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunKeywords]) -> Plan:
        """Return what :meth:`run` with the same arguments would run, restore and skip, and why; nothing runs.

        It takes it that what runs succeeds. Printed, it is a table, and lists what could change without being noticed.

        Raises:
            DefinitionError: The graph or an argument is wrong.
            StateError: The state cannot be read.
        """
        from .engine.plan import make_plan  # noqa: PLC0415 - imports json and hashlib

        where = self._where("plan")
        merged = merge(self._defaults, check_keywords(where, options))
        values = {**self._inputs, **_check_inputs(where, inputs)}
        settings = make_settings(where, merged, values)
        program = self._program(values, merged.get("targets"))
        return make_plan(program, values, settings.state, resumes=settings.resume)

    def validate(
        self, inputs: Mapping[str, Any] | None = None, *, limits: Mapping[str, int] | None = None
    ) -> None:
        """Check the graph and how every task is called; nothing runs.

        Args:
            inputs: What :meth:`run` will be given; only the names count.
            limits: What :meth:`run` will be given; if there are none here nor as defaults, ``uses=`` is not checked.

        Raises:
            DefinitionError: With one problem its own class, else one that lists all of them.
            NotPicklableError: A task is to run in a process, and its function or an input cannot be sent there.
        """
        from .engine.launch import check_limits, check_processes  # noqa: PLC0415 - what runs a graph is imported late

        where = self._where("validate")
        values = {**self._inputs, **_check_inputs(where, inputs)}
        program = self._program(values, None)
        check_processes(program, kind_of(self._defaults.get("executor", "thread")), values)
        known = merge(self._defaults, {"limits": limits})["limits"]
        if known:
            check_limits(where, program, known)

    def waves(self) -> list[list[str]]:
        """Return the topological generations: all tasks of one may run side by side when the earlier ones are done."""
        tasks, graph = self._frozen_shape()
        return [[tasks[i].name for i in ids] for ids in graph.generations()]

    def visualize(self, format: str = "text", *, result: RunResult | None = None) -> str:
        """Return a picture of the graph.

        Args:
            format: "text" for a terminal, "mermaid" for Markdown pages, "dot" for Graphviz.
            result: A result whose states are shown.

        Raises:
            OptionError: There is no such format.
        """
        if format not in _PICTURES:
            known = ", ".join(map(repr, _PICTURES))
            raise OptionError(f"{self._where('visualize')}: format={format!r} must be one of {known}.")
        tasks, graph = self._frozen_shape()
        names = [task.name for task in tasks]
        states = details = None
        if result is not None:
            runs = {i: result.tasks[name] for i, name in enumerate(names) if name in result.tasks}
            states = {i: "restored" if run.restored else run.state for i, run in runs.items()}
            details = {i: report.seconds(run.duration) for i, run in runs.items() if run.attempts}
        picture = import_module(f".render.{format}", __package__)
        drawn: str = picture.render(self.name, names, graph.upstream, graph.generations(), states, details)
        return drawn

    def _frozen_shape(self) -> tuple[list[Task[..., Any]], Graph]:
        """Return the tasks by id and the graph, without looking at how they are called."""
        tasks = self._collect()
        graph, order = freeze_tasks(tasks, wiring.edges(tasks))
        return [tasks[position] for position in order], graph

    def __repr__(self) -> str:
        known = "" if self._tasks is None else f" tasks={len(self._tasks)}"
        return f"<DAG {self.name!r}{known}>"


def _is_template(task: Task[..., Any]) -> bool:
    return task.is_template and not wiring.is_wired(task)


def _check_inputs(where: str, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    if inputs is None:
        return {}
    if not hasattr(inputs, "keys"):
        raise OptionError(f"{where}: inputs={inputs!r} must be a mapping of names to values, as {{'date': ...}}.")
    for name in inputs:
        if not isinstance(name, str):
            raise OptionError(f"{where}: the input name {name!r} must be a string, not {type(name).__name__}.")
    return dict(inputs)


def _for_workflows(tasks: Iterable[Task[..., Any]]) -> list[DefinitionError]:
    told = {"callbacks": "on_success=, on_failure=", "on_status_change": "an observer: run(observers=[...])"}
    return [
        OptionError(f"task {task.name!r} has {option}=, which is for a Workflow. In a DAG write {instead}.")
        for task in tasks
        if task.options.is_for_workflows
        for option, instead in told.items()
        if getattr(task.options, option)
    ]


def _parameters(tasks: Iterable[Task[..., Any]]) -> set[str]:
    functions = {id(task.func): task.func for task in tasks}
    signatures = map(read_signature, functions.values())
    return {p for found in signatures if found for p in found.positional + found.keyword_only}


def _outside_level() -> int:
    """Return the stacklevel that makes a warning point at the code that uses flowkit."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("flowkit."):
        level, frame = level + 1, frame.f_back
    return level
