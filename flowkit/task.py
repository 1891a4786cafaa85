"""Define tasks: ``@task``, ``Task``, ``>>``.

Knows a function, its options and its neighbours. Does not know running: a task holds no state of any run, and the
only thing it can execute is itself, in the caller's thread, when it is called like a function.
"""

from __future__ import annotations

import functools
import sys
import time
from contextvars import ContextVar
from importlib import import_module
from itertools import pairwise
from types import FunctionType
from weakref import WeakValueDictionary

from . import registry, wiring
from .engine.condition import ask_condition, condition_arguments
from .engine.mapping import item_parameter, read_items
from .engine.signature import is_coroutine_function, read_signature
from .exceptions import OptionError, Skip, close_matches, listing, shown
from .options import TaskOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

    from .options import TaskKeywords
    from .registry import Site

    P = ParamSpec("P")
    Q = ParamSpec("Q")
    R_co = TypeVar("R_co", covariant=True)
    S = TypeVar("S")
    T = TypeVar("T")

    class _Typed(Generic[P, R_co]): ...
else:
    from types import GenericAlias

    class _Typed:
        """Stands for Generic at run time, where importing typing would cost up to 14 ms."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    def overload(signature):
        """Keep a signature for type checkers only."""
        return signature


is_main_elsewhere: ContextVar[bool] = ContextVar("flowkit_is_main_elsewhere", default=False)
"""Whether something is pickled for a process whose ``__main__`` module is another one."""
_LONGEST_NAME = 200
_MISSING: Any = object()
_PLAIN = TaskOptions("task")
"""The options of every task that was given none."""


class _Docstring:
    """Gives ``Task.__doc__`` for the class and the function's own docstring for a task."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __get__(self, task: Task[..., Any] | None, owner: type | None = None) -> str | None:
        return self.text if task is None else task.func.__doc__


class Task(_Typed["P", "R_co"]):
    __slots__ = (
        "__weakref__", "_copies", "_downstream", "_inherited", "_order_only", "_successor", "_upstream", "func",
        "is_template", "mapped_over", "name", "options", "serial", "site",
    )  # fmt: skip

    __doc__ = _Docstring(
        """One node of one graph: a function, its name, its options, its neighbours.

        Write ``Task(func, **options)`` or ``Task("name", func, **options)``; ``@task`` is the same as a decorator.
        Everything about a task but its wiring is fixed once it is made.

        Args:
            func: What to run.
            name: 1 to 200 printable characters; the function's ``__name__`` if not given.
            **options: See :func:`task`.

        Attributes:
            func: The bare function.
            name: The task's name, unique within a DAG.
            options: All options, checked (:class:`flowkit.options.TaskOptions`).
            upstream: The tasks it depends on, in wiring order.
            downstream: The tasks that depend on it.
            mapped_over: The parameter that gets one item at a time in a mapped task, "" for the first one; None for a
                task that is not mapped.

        Raises:
            TypeError: *func* cannot be called.
            OptionError: The name or an option is outside of its range.
        """
    )

    @overload
    def __init__(
        self, func: Callable[P, R_co], /, *, name: str | None = None, **options: Unpack[TaskKeywords]
    ) -> None: ...
    @overload
    def __init__(self, name: str, func: Callable[P, R_co], /, **options: Unpack[TaskKeywords]) -> None: ...
    def __init__(self, *args: Any, name: str | None = None, **options: Any) -> None:
        if len(args) == 2:
            if name is not None:
                raise TypeError(f"Task({shown(args[0])}, ..., name={shown(name)}): it is named twice.")
            name, func = args
        elif len(args) == 1:
            (func,) = args
        else:
            raise TypeError(f"Task() takes a function, or a name and a function, not {len(args)} arguments.")
        self._define(func, name, options, sys._getframe(1))

    def _define(self, func: Any, name: str | None, options: Any, frame: Any) -> None:
        self.func: Callable[P, R_co] = func
        self.site = registry.site_of(frame)
        default_name = _check_function(func, self.site)
        self.name = _check_name(default_name if name is None else name, self.site)
        if type(options) is not TaskOptions:
            options = TaskOptions(f"task {self.name!r} ({self.site})", **options) if options else _PLAIN
        self.options: TaskOptions = options
        self._upstream: wiring.Neighbours | None = None
        self._downstream: wiring.Neighbours | None = None
        self._order_only: set[Task[..., Any]] | None = None
        self._successor: Task[..., Any] | None = None
        self._copies: WeakValueDictionary[Any, Task[..., Any]] | None = None
        """Copies that the module's body has made of this task, by name and what they are mapped over."""
        self._inherited: WeakValueDictionary[Any, Task[..., Any]] | None = None
        """The copies of the task that this one has replaced."""
        self.is_template = False
        self.mapped_over: str | None = None
        self.serial = next(registry.serials)
        registry.add(self, self.site)
        wiring.version.number += 1

    # ------------------------------------------------------------ reading

    @property
    def upstream(self) -> wiring.Neighbours:
        """The tasks this one depends on, in wiring order."""
        if self._upstream is None:
            self._upstream = wiring.Neighbours()
        return self._upstream

    @property
    def downstream(self) -> wiring.Neighbours:
        """The tasks that depend on this one."""
        if self._downstream is None:
            self._downstream = wiring.Neighbours()
        return self._downstream

    @property
    def order_only(self) -> set[Task[..., Any]] | None:
        """The upstream tasks whose result is not passed on (``.after()``)."""
        return self._order_only

    @property
    def retries(self) -> int:
        """Extra attempts after the first."""
        return self.options.retry.retries

    @property
    def delay(self) -> float:
        """Seconds before the second attempt."""
        return self.options.retry.delay

    @property
    def backoff(self) -> float:
        """Factor on the wait for each further attempt."""
        return self.options.retry.backoff

    @property
    def timeout(self) -> float | None:
        """Seconds per attempt."""
        return self.options.timeout

    @property
    def when(self) -> Callable[..., object] | None:
        """The condition."""
        return self.options.when

    @property
    def trigger(self) -> str:
        """The trigger rule."""
        return self.options.trigger

    @property
    def __name__(self) -> str:
        return getattr(self.func, "__name__", self.name)

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        return self.func

    def latest(self) -> Task[..., Any]:
        """Return this task, or the one that took its place when its function was defined again."""
        task: Task[..., Any] = self
        while task._successor is not None:
            task = task._successor
        return task

    def __reduce__(self) -> tuple[Any, ...]:
        # By name where another process finds it so; else an unwired copy.
        base = find_task(self.func)
        if base is self:
            return _task_at, (self.func.__module__, self.func.__qualname__)
        return _unwired, (self.func if base is None else base, self.name, self.options, self.mapped_over)

    def __repr__(self) -> str:
        before, after = len(self._upstream or ()), len(self._downstream or ())
        return f"<Task {self.name!r} upstream={before}, downstream={after}>"

    # ------------------------------------------------------------ wiring

    @overload
    def __rshift__(
        self: Task[Q, Coroutine[Any, Any, T]], other: Callable[Concatenate[T, ...], S]
    ) -> Task[..., S]: ...
    @overload
    def __rshift__(self: Task[Q, T], other: Callable[Concatenate[T, ...], S]) -> Task[..., S]: ...
    @overload
    def __rshift__(self: Task[Q, T], other: Callable[Concatenate[Any, T, ...], S]) -> Task[..., S]: ...
    @overload
    def __rshift__(self: Task[Q, T], other: Callable[Concatenate[Any, Any, T, ...], S]) -> Task[..., S]: ...
    @overload
    def __rshift__(self, other: Callable[[], S]) -> Task[[], S]: ...
    @overload
    def __rshift__(self, other: Sequence[Task[..., Any]]) -> list[Task[..., Any]]: ...
    def __rshift__(self, other: Any) -> Any:
        if type(other) is Task:  # the same as below, for the most frequent case
            _wire(self, other)
            return other
        for task in _tasks(other, self, ">>", is_right=True):
            _wire(self, task)
        return other

    def __rrshift__(self, other: Sequence[object]) -> Self:
        for task in _tasks(other, self, ">>", is_right=False):
            _wire(task, self)
        return self

    @overload
    def __lshift__(self, other: Task[Q, T]) -> Task[Q, T]: ...
    @overload
    def __lshift__(self, other: Sequence[Task[..., Any]]) -> list[Task[..., Any]]: ...
    def __lshift__(self, other: Any) -> Any:
        """Wire the other way round: ``load << clean`` is ``clean >> load``; returns *other*."""
        for task in _tasks(other, self, "<<", is_right=True):
            _wire(task, self)
        return other

    def __rlshift__(self, other: Sequence[object]) -> Self:
        for task in _tasks(other, self, "<<", is_right=False):
            _wire(self, task)
        return self

    def after(self, *tasks: Task[..., Any] | Sequence[Task[..., Any]]) -> Self:
        """Start only when *tasks* are done, without taking their results.

        An edge that ``>>`` has made too goes on carrying its result.

        Returns:
            This task.

        Raises:
            TypeError: One of *tasks* is not a task.
        """
        for before in tasks:
            for task in _tasks(before, self, ".after", is_right=True):
                if wiring.wire(task, self):
                    self._order_only = (self._order_only or set()) | {task}
                _collect(task, self)
        return self

    def with_options(self, *, name: str | None = None, **options: Unpack[TaskKeywords]) -> Task[P, R_co]:
        """Return an unwired copy with another name or other options.

        >>> @task(retries=2)
        ... def load(rows: list[int]) -> int:
        ...     return len(rows)
        >>> load.with_options(name="load_eu", retries=5).retries
        5
        """
        self.is_template = True
        changed: Any = {**self.options.as_keywords(), **options} if options else self.options
        copy: Task[P, R_co] = self._copy(
            self.name if name is None else name, changed, self.mapped_over, sys._getframe(1)
        )
        return copy

    def _copy(self, name: str, options: Any, mapped_over: str | None, frame: Any) -> Any:
        """Return an unwired copy; that of a task defined again takes over the wiring of the copy it replaces."""
        copy = _unwired(self.func, name, options, mapped_over, frame)
        if copy.site.is_body:
            key = copy.name, mapped_over
            old = self._inherited.pop(key, None) if self._inherited else None
            if old is not None:
                _take_over(old, copy)
            if self._copies is None:
                self._copies = WeakValueDictionary()
            self._copies[key] = copy
        return copy

    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, S]], over: None = None
    ) -> Task[Concatenate[Iterable[T], Q], list[S]]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], S], over: None = None
    ) -> Task[Concatenate[Iterable[T], Q], list[S]]: ...
    @overload
    def map(  # type: ignore[misc]
        self: Callable[..., Coroutine[Any, Any, S]], over: str
    ) -> Task[..., list[S]]: ...
    @overload
    def map(self: Callable[..., S], over: str) -> Task[..., list[S]]: ...
    def map(self, over: str | None = None) -> Any:
        """Return an unwired copy that runs once for each item of its upstream's result.

        Its own result is the list of results in order, with None where an item was skipped (which the type of the
        result leaves out, or no list of results would fit where it goes); no items give ``[]``. Each item has its own
        attempts, timeout and record (``process[3]``) and counts for limits. An item that fails, fails the task, with
        the errors of all items that did.

        Args:
            over: The parameter that gets the items one by one; the others get the same for every item. Default: the
                first.

        Raises:
            OptionError: The task is mapped over another parameter already, or has no such parameter.

        >>> @task
        ... def double(x: int) -> int:
        ...     return 2 * x
        >>> double.map()([1, 2, 3])
        [2, 4, 6]
        """
        if self.mapped_over is not None and self.mapped_over == (over or ""):  # a notebook's cell that ran again
            return self
        _check_map(self, over)
        self.is_template = True
        return self._copy(self.name, self.options, over or "", sys._getframe(1))

    # ------------------------------------------------------------ calling

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function here and now, with the task's retry policy and ``when``.

        Timeout, callbacks, state and cache do not apply. A task that is skipped gives None; one that fails raises
        the exception of its last attempt. An ``async def`` task gives a coroutine that does the same.
        """
        if self.mapped_over is not None:
            return self._call_mapped(args, kwargs)  # type: ignore[no-any-return]
        if is_coroutine_function(self.func):
            return self._call_async(args, kwargs)  # type: ignore[return-value]
        return self._call_once(args, kwargs)

    def _call_once(self, args: Any, kwargs: Any) -> R_co:
        if not self._is_wanted(args, kwargs):
            return None  # type: ignore[return-value]
        attempt = 1
        while True:
            try:
                return self.func(*args, **kwargs)
            except Skip:
                return None  # type: ignore[return-value]
            except BaseException as error:
                wait = self._wait_after(attempt, error)
                if wait is None:
                    raise
            time.sleep(wait)
            attempt += 1

    def _call_mapped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function for each item, as a run of the mapped task does."""
        signature = read_signature(self.func)
        name = item_parameter(signature, self.mapped_over or "")
        place = signature.positional.index(name) if signature and name in signature.positional else 0
        if name not in kwargs and place >= len(args):
            raise TypeError(f"{self.name}() is mapped over {name or 'its first argument'!r}: call it with the items.")
        items = read_items(self.name, kwargs[name] if name in kwargs else args[place])
        if name in kwargs:
            calls = [(args, {**kwargs, name: item}) for item in items]
        else:
            calls = [((*args[:place], item, *args[place + 1 :]), kwargs) for item in items]
        if is_coroutine_function(self.func):
            return self._call_each_async(calls)
        return [self._call_once(*call) for call in calls]

    async def _call_each_async(self, calls: list[tuple[Any, Any]]) -> list[Any]:
        return [await self._call_async(*call) for call in calls]

    async def _call_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import asyncio  # noqa: PLC0415 - costs 29 ms

        if not self._is_wanted(args, kwargs):
            return None
        attempt = 1
        while True:
            try:
                return await self.func(*args, **kwargs)  # type: ignore[misc]  # the result is a coroutine
            except Skip:
                return None
            except BaseException as error:
                wait = self._wait_after(attempt, error)
                if wait is None:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    def _is_wanted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        when = self.options.when
        if when is None:
            return True
        try:
            ask_condition(self.name, when, *condition_arguments(when, self.func, args, kwargs))
        except Skip:
            return False
        return True

    def _wait_after(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait after *attempt* failed with *error*, None if it was the last."""
        policy = self.options.retry
        if attempt > policy.retries or not policy.is_retryable(error):
            return None
        import random  # noqa: PLC0415 - costs 2 ms, and most calls succeed

        return policy.wait_after(attempt, error, random.Random())  # noqa: S311 - jitter is no secret

    @staticmethod
    def clear_registry() -> None:
        """Forget every task that a bare ``DAG()`` would find, in every module."""
        registry.clear()
        wiring.version.number += 1


def _wire(upstream: Task[..., Any], downstream: Task[..., Any]) -> None:
    is_new = wiring.wire(upstream, downstream)
    if not is_new and downstream._order_only and upstream in downstream._order_only:
        downstream._order_only.discard(upstream)
        wiring.version.number += 1
    _collect(upstream, downstream)


def _collect(upstream: Task[..., Any], downstream: Task[..., Any]) -> None:
    """Let an open ``with DAG(...)`` block have the tasks of an edge made in it."""
    collected = registry.block.get()
    if collected is not None and not (upstream in collected and downstream in collected):
        collected[upstream] = collected[downstream] = None
        wiring.version.number += 1


def _tasks(other: object, this: Task[..., Any], operator: str, *, is_right: bool) -> Sequence[Task[..., Any]]:
    """Return the tasks that *other*, one operand beside *this*, stands for."""
    if isinstance(other, Task):
        return (other,)
    items = other if isinstance(other, (list, tuple)) else (other,)
    for item in items:
        if not isinstance(item, Task):
            raise TypeError(_cannot_wire(item, this, operator, is_right=is_right))
    return items


def _cannot_wire(item: object, this: Task[..., Any], operator: str, *, is_right: bool) -> str:
    text = shown(item)
    kind = type(item).__name__
    if operator == ".after":
        return f"{this.name!r}.after({text}): it takes tasks, not {kind}."
    left, right = (repr(this.name), text) if is_right else (text, repr(this.name))
    name = getattr(item, "__name__", None)
    if callable(item) and name:
        hint = f"Make it a task: put @task above def {name}, or write Task({name})."
    elif isinstance(item, (list, tuple)):
        hint = "Lists do not nest: write a >> [b, c], and chain(a, [b, c], d) for more."
    else:
        hint = (
            f"Did you call the task? Write {this.name} {operator} load, not {this.name} {operator} load()."
            if is_right
            else f"Did you call the task? Write load {operator} {this.name}, not load() {operator} {this.name}."
        )
    side = "right" if is_right else "left"
    wanted = f"the {side} side must be a task or a list of tasks, not {kind}"
    return f"cannot wire {left} {operator} {right}: {wanted}. {hint}"


def chain(*links: Task[..., Any] | Sequence[Task[..., Any]]) -> None:
    """Wire each of *links* to the next; a list stands for all of its tasks.

    ``chain(a, [b, c], [d, e], f)`` wires a to b and c, both of them to d and e, and those to f.

    Raises:
        TypeError: A link is neither a task nor a list of tasks.
    """
    for left, right in pairwise(links):
        for before in left if isinstance(left, (list, tuple)) else [left]:
            if not isinstance(before, Task):
                raise TypeError(f"chain({shown(before)}): a link must be a task or a list of tasks.")
            before >> right


@overload
def task(func: Callable[P, R_co], /) -> Task[P, R_co]: ...
@overload
def task(
    *, name: str | None = None, **options: Unpack[TaskKeywords]
) -> Callable[[Callable[P, R_co]], Task[P, R_co]]: ...
def task(func: Any = _MISSING, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a function a task: ``@task``, or ``@task(retries=3, timeout=30)``.

    A module-level function that is defined again (a notebook cell that runs twice) takes over the wiring of the task
    that it replaces.

    Args:
        func: The function.
        name: The task's name, if not the function's.
        retries: Extra attempts after the first. Default 0.
        delay: Seconds before the second attempt. Default 1.
        backoff: Factor on the wait for each further attempt. Default 2.
        jitter: Up to this fraction of the wait is added at random. Default 0.1.
        max_delay: No wait is longer, in seconds. Default 60.
        retry_on: An exception class, a tuple of them, or a predicate; anything else fails at once. Default Exception.
        timeout: Seconds per attempt. Default none.
        when: Condition; a false answer skips the task. It gets the task's arguments.
        trigger: Which upstream states let it start: "none_failed" (default), "all_success", "one_success",
            "all_done", "one_failed" or "all_failed".
        executor: Where it runs, if not where the run says.
        uses: Name of a limit, see ``DAG.run(limits=...)``.
        persist: Whether a state store keeps its result.
        version: Stands for the code, when a stored result is judged.
        on_success: Called with the TaskSucceeded event.
        on_failure: Called with the TaskFailed event.
        on_retry: Called with the AttemptFailed event before each retry; if it takes two arguments, with the task's name
            and the number of the attempt that failed.
        callbacks: In a Workflow: those that take one argument are called with the task after its success, those that
            take two with the task and the exception after its failure.
        on_status_change: In a Workflow: called with the task's name and its new TaskStatus.

    Raises:
        TypeError: *func* cannot be called.
        OptionError: The name or an option is outside of its range.
    """
    if func is not _MISSING:
        return _decorate(func, name, options, sys._getframe(1))

    def decorate(func: Any) -> Any:
        return _decorate(func, name, options, sys._getframe(1))

    return decorate


def _decorate(func: Any, name: str | None, options: Any, frame: Any) -> Task[..., Any]:
    made: Task[..., Any] = Task.__new__(Task)
    made._define(func, name, options, frame)
    old = frame.f_globals.get(getattr(func, "__name__", ""))
    if (
        isinstance(old, Task)
        and func.__qualname__ == func.__name__
        and (old.name, old.site.module) == (made.name, made.site.module)
        and registry.is_of_module(old, old.site)
        and registry.is_of_module(made, made.site)
    ):
        _take_over(old, made)
    return made


def _take_over(old: Task[..., Any], new: Task[..., Any]) -> None:
    """Put *new* into every place where *old* was wired."""
    for before in old.upstream:
        before.downstream.replace(old, new)
        new.upstream.add(before)
    for after in old.downstream:
        after.upstream.replace(old, new)
        new.downstream.add(after)
        if after._order_only and old in after._order_only:
            after._order_only = (after._order_only - {old}) | {new}
    new._order_only = old._order_only
    new.is_template = old.is_template
    new.mapped_over = old.mapped_over
    new._inherited = old._copies
    old._upstream = old._downstream = old._order_only = None
    old._successor = new
    registry.discard(old, old.site)


def _check_map(task: Task[..., Any], over: Any) -> None:
    where = f"task {task.name!r} ({task.site}): map({'' if over is None else f'over={shown(over)}'})"
    if task.mapped_over is not None:
        raise OptionError(f"{where}: it is mapped over another parameter already; map the task that it was made from.")
    signature = read_signature(task.func)
    if over is None or signature is None:
        return
    known = [p for p in signature.positional + signature.keyword_only if p not in signature.contexts]
    if over not in known:
        close = close_matches(over, known)
        raise OptionError(f"{where}: over must name a parameter{close}; there are {listing(known)}.")


def find_task(func: Any) -> Task[..., Any] | None:
    """Return the task that the global name of *func* stands for in every process, None if there is none."""
    if func.__class__ is not FunctionType or (func.__module__ == "__main__" and not is_main_importable()):
        return None
    try:
        task = _task_at(func.__module__, func.__qualname__)
    except (ImportError, AttributeError):
        return None
    return task if isinstance(task, Task) and task.func is func else None


def is_main_importable() -> bool:
    """Return whether the processes for which something is pickled now have the ``__main__`` module of this one.

    Those that this one starts have it, but not in a notebook, with -c, or for the ``__main__`` module of a package.
    """
    return _has_main_file() and not is_main_elsewhere.get()


@functools.cache
def _has_main_file() -> bool:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name: str = spec.name
        return name.rpartition(".")[2] != "__main__"  # multiprocessing does not import that of a package
    return not getattr(main, "__file__", "<").startswith("<")


def _task_at(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), import_module(module))


def _unwired(func: Any, name: str, options: Any, mapped_over: str | None, frame: Any = None) -> Task[..., Any]:
    copy: Task[..., Any] = Task.__new__(Task)
    copy._define(func.func if isinstance(func, Task) else func, name, options, frame or sys._getframe())
    copy.mapped_over = mapped_over
    return copy


def _check_function(func: Any, site: Site) -> str:
    """Return the name of *func*, or raise TypeError if it is not a function."""
    if not callable(func):
        text, kind = shown(func), type(func).__name__
        if kind in ("coroutine", "generator", "async_generator"):
            if kind == "coroutine":
                func.close()  # or Python warns that it was never awaited
            hint = "Pass the function, not the call: task(f), not task(f())."
        else:
            hint = "Did you call the function? Write task(f), not task(f())."
        raise TypeError(f"a task needs a function, not {text} of type {kind} ({site}). {hint}")
    name = getattr(func, "__name__", None) or type(func).__name__
    return name if isinstance(name, str) else type(func).__name__


def _check_name(name: Any, site: Site) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise OptionError(
            f"task name {shown(name)} ({site}) must be a string of 1 to {_LONGEST_NAME} printable characters."
        )
    return name
