"""A graph made ready to run: names, functions, bindings and rules as columns over its ids.

Knows tasks and how each is called. Does not know runs: many runs share one program.
"""

from __future__ import annotations

from types import FunctionType

from ..exceptions import (
    BindingError,
    DAGCycleError,
    DefinitionError,
    DuplicateTaskError,
    OptionError,
    plural,
)
from ..states import NEED_FAILURE, TRIGGERS
from .binding import OWN, Upstream, bind
from .graph import CycleError, Graph, freeze
from .signature import is_coroutine_function, read_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

    from ..task import Task
    from .binding import Binding, Source

SPECIAL = 255
"""The arity of a task whose call takes more than passing results by position."""
MANY = 4
"""The arity of a task that gets four results or more."""
NAMED = 5
"""The arity of a task that gets results by name, and perhaps by position, and nothing else."""


class ItemName(str):
    """The name of an item of a mapped task, such as ``process[3]``.

    Attributes:
        task_name: The task.
    """

    __slots__ = ("task_name",)
    task_name: str

    def __new__(cls, task_name: str, number: int) -> ItemName:
        name = str.__new__(cls, f"{task_name}[{number}]")
        name.task_name = task_name
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class Program:
    """What a run runs.

    Attributes:
        name: Name of the DAG.
        graph: The frozen graph.
        tasks: The task of each id.
        names: Its name.
        index: The id of each name.
        funcs: Its function.
        arity: How many results its function gets by position, MANY, NAMED, or SPECIAL.
        sources: The ids whose results it gets: None for arity 0, an id for 1, else a tuple; for NAMED one of ids, and
            one of pairs of name and id.
        bindings: How to call those that get more than results by position.
        rules: The trigger rule of each id, None if all are ``none_failed``.
        uses: The limit that an id counts for, for those that do.
        timed: The timeout of an id in seconds, for those that have one.
        executors: The executor that an id asks for itself, for those that do.
        coroutines: The ids of ``async def`` functions.
        mapped: For the ids of mapped tasks, where what they are mapped over comes from. Such an id is never called;
            its columns say how each of its items is, with OWN for the id of the item.
        has_callbacks: Whether any task has a callback.
        inputs: Names of the inputs that are used.
    """

    __slots__ = (
        "arity", "bindings", "coroutines", "executors", "funcs", "graph", "has_callbacks", "index", "inputs", "mapped",
        "name", "names", "rules", "sources", "tasks", "timed", "uses",
    )  # fmt: skip

    def __init__(self, name: str, tasks: Sequence[Task[..., Any]], graph: Graph, order: Sequence[int]) -> None:
        self.name = name
        self.graph = graph
        self.tasks = [tasks[position] for position in order]
        self.names = [task.name for task in self.tasks]
        self.index = {task_name: i for i, task_name in enumerate(self.names)}
        self.funcs = [task.func for task in self.tasks]
        self.arity = bytearray(len(order))
        self.sources: list[Any] = [None] * len(order)
        self.bindings: dict[int, Binding] = {}
        self.inputs: set[str] = set()
        self.uses = {i: task.options.uses for i, task in enumerate(self.tasks) if task.options.uses is not None}
        self.timed = {i: task.options.timeout for i, task in enumerate(self.tasks) if task.options.timeout is not None}
        self.executors = {
            i: task.options.executor for i, task in enumerate(self.tasks) if task.options.executor is not None
        }
        self.coroutines: set[int] = set()
        self.mapped: dict[int, Source] = {}
        self.has_callbacks = any(task.options.has_callbacks for task in self.tasks)
        rules = bytes([TRIGGERS[task.options.trigger] for task in self.tasks])
        self.rules: bytes | bytearray | None = rules if any(rules) else None

    def __len__(self) -> int:
        return len(self.names)

    def copy_for_run(self) -> Program:
        """Return a copy to whose columns :meth:`add_items` may add, with limits and timeouts for items alone."""
        copy = Program.__new__(Program)
        for slot in Program.__slots__:
            value = getattr(self, slot)
            setattr(copy, slot, value.copy() if isinstance(value, (list, dict, set, bytearray)) else value)
        copy.rules = self.rules and bytearray(self.rules)
        for i in self.mapped:
            copy.uses.pop(i, None)
            copy.timed.pop(i, None)
        return copy

    def add_items(self, i: int, ids: range) -> None:
        """Let *ids*, the next ones, be the items of the mapped task *i*."""
        task, count = self.tasks[i], len(ids)
        name, template = self.names[i], self.sources[i]
        self.names += [ItemName(name, number) for number in range(count)]
        self.tasks += [task] * count
        self.funcs += [task.func] * count
        self.arity += self.arity[i : i + 1] * count
        if template == OWN:
            self.sources += ids
        elif isinstance(template, tuple):
            self.sources += [tuple([own if u == OWN else u for u in template]) for own in ids]
        else:
            self.sources += [template] * count
        if isinstance(self.rules, bytearray):
            self.rules += self.rules[i : i + 1] * count
        if i in self.bindings:
            self.bindings.update(dict.fromkeys(ids, self.bindings[i]))
        if task.options.uses is not None:
            self.uses.update(dict.fromkeys(ids, task.options.uses))
        if task.options.timeout is not None:
            self.timed.update(dict.fromkeys(ids, task.options.timeout))
        if i in self.coroutines:
            self.coroutines.update(ids)

    def kinds(self, executor: str) -> str | list[str]:
        """Return the kind of worker for all ids, or for each if they differ, in a run with *executor*.

        An ``async def`` function runs on the event loop, unless its task asks for a process; a plain one never does.
        """
        default = "thread" if executor == "async" else executor
        if executor == "sequential" or not (self.executors or self.coroutines):
            return default
        kinds = [default] * len(self)
        for i, own in self.executors.items():
            kinds[i] = "thread" if own == "async" else own
        for i in self.coroutines:
            if self.executors.get(i) != "process":
                kinds[i] = "async"
        used = set(kinds)
        return kinds if len(used) > 1 else used.pop()

    def ids_on(self, kind: str, executor: str) -> Sequence[int]:
        """Return the ids that run on *kind* of worker in a run with *executor*."""
        kinds = self.kinds(executor)
        if isinstance(kinds, str):
            return range(len(self)) if kinds == kind else ()
        return [i for i, own in enumerate(kinds) if own == kind]


def compile_program(
    name: str,
    tasks: Sequence[Task[..., Any]],
    upstream: Sequence[Sequence[int]],
    inputs: Collection[str],
    *,
    names_only: bool = False,
) -> tuple[Program, list[DefinitionError]]:
    """Freeze *tasks* and work out how each is called.

    Args:
        name: Name of the DAG.
        tasks: The tasks in definition order.
        upstream: For each task the positions of those it depends on, each once.
        inputs: Names of the run's inputs.
        names_only: Whether results reach parameters by name alone.

    Returns:
        The program, and everything that is wrong with it; it can run only if nothing is.
    """
    problems: list[DefinitionError] = _duplicates(tasks)
    try:
        graph, order = freeze_tasks(tasks, upstream)
    except DAGCycleError as cycle:
        problems.append(cycle)
        order = list(range(len(tasks)))  # in no order that could run, but good enough to look at every call
        graph = Graph([tuple(before) for before in upstream], [() for _ in upstream], [0, len(upstream)])
    program = Program(name, tasks, graph, order)
    return program, problems + _compile_calls(program, inputs, names_only=names_only)


def freeze_tasks(tasks: Sequence[Task[..., Any]], upstream: Sequence[Sequence[int]]) -> tuple[Graph, list[int]]:
    """Return the graph of *tasks*, and the position in *tasks* that each of its ids stands for.

    Raises:
        DAGCycleError: There is a cycle.
    """
    try:
        return freeze(upstream)
    except CycleError as cycle:
        raise DAGCycleError([tasks[position].name for position in cycle.args[0]]) from None


def raise_problems(where: str, problems: Sequence[DefinitionError]) -> None:
    """Raise the one problem, or one error that lists all those of the graph *where*; nothing without problems."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DefinitionError(f"{where} has {plural(len(problems), 'problem')}; nothing has run:", problems)


def _duplicates(tasks: Sequence[Task[..., Any]]) -> list[DefinitionError]:
    first: dict[str, Task[..., Any]] = {}
    again: dict[str, Task[..., Any]] = {}
    for task in tasks:
        if first.setdefault(task.name, task) is not task:
            again.setdefault(task.name, task)
    return [DuplicateTaskError(name, str(first[name].site), str(task.site)) for name, task in again.items()]


def _compile_calls(program: Program, inputs: Collection[str], *, names_only: bool) -> list[DefinitionError]:
    problems: list[DefinitionError] = []
    names, arity, sources = program.names, program.arity, program.sources
    shapes: dict[Callable[..., Any], _Shape] = {}
    taken_names = program.index.keys() | set(inputs)
    for i, task in enumerate(program.tasks):
        func, options = task.func, task.options
        try:
            shape = shapes.get(func)
        except TypeError:  # an unhashable callable
            shape = _Shape(func, taken_names)
        if shape is None:
            shape = shapes[func] = _Shape(func, taken_names)
        if shape.is_coroutine:
            program.coroutines.add(i)
        ids = program.graph.upstream[i]
        if not ids and program.rules and program.rules[i] in NEED_FAILURE:
            problems.append(_never_met(task))
        if task.order_only:
            silent = {program.index.get(before.name) for before in task.order_only}
            ids = tuple([u for u in ids if u not in silent])
        is_mapped = task.mapped_over is not None
        is_plain = options.when is None and not is_mapped
        if is_plain and (shape.takes_nothing if names_only else shape.fits(len(ids))):
            plain: tuple[int, ...] | None = () if shape.takes_nothing else ids
        else:
            try:
                binding = bind(task.name, func, options.when, Upstream(ids, names, inputs), names_only=names_only)
                if task.mapped_over is not None:
                    program.mapped[i] = binding.map_over(task.name, func, task.mapped_over)
            except BindingError as problem:
                problems.append(problem)
                continue
            program.inputs |= binding.inputs
            plain = binding.plain_ids()
            if plain is None:
                program.bindings[i] = binding
                sources[i] = None if is_mapped else binding.named_ids()
                arity[i] = SPECIAL if sources[i] is None else NAMED
        if plain is not None:
            arity[i] = min(len(plain), MANY)
            sources[i] = (plain[0] if len(plain) == 1 else plain) if plain else None
        if options.timeout is not None or options.retry.retries:
            arity[i] = SPECIAL
    return problems


class _Shape:
    """Whether calls of a function can be compiled without looking at names: the case of most tasks."""

    __slots__ = ("is_coroutine", "least", "most", "takes_nothing")

    def __init__(self, func: Callable[..., Any], taken_names: Collection[str]) -> None:
        self.is_coroutine = is_coroutine_function(func)
        self.least, self.most = 1, 0  # fits nothing
        self.takes_nothing = False
        signature = read_signature(func) if isinstance(func, FunctionType) else None
        if signature is None or signature.keyword_only or signature.has_varkw or signature.contexts:
            return
        named = signature.positional
        if any(p in taken_names or signature.defaults.get(p) is not None for p in named):
            return
        self.takes_nothing = signature.takes_nothing
        self.least = 0 if self.takes_nothing else len(named) - len(signature.defaults)
        self.most = 1 << 62 if signature.has_varargs or self.takes_nothing else len(named)

    def fits(self, count: int) -> bool:
        return self.least <= count <= self.most


def _never_met(task: Task[..., Any]) -> OptionError:
    return OptionError(
        f"task {task.name!r} ({task.site}) has trigger={task.trigger!r} and nothing upstream, so it could never "
        f"start. Wire it behind the tasks whose failure it waits for."
    )
