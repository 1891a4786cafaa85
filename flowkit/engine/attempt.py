"""Make one attempt: function in, value or exception out; and say what an exception means.

Knows how a task is called and judged. Does not know scheduling: whether there is a next attempt is the runner's.

Everything of the user's that belongs to an attempt (the condition, the function, the retry predicate) runs in here,
in the worker, in a copy of the caller's context variables.
"""

from __future__ import annotations

from ..exceptions import (
    BindingError,
    ConditionError,
    NotPicklableError,
    RunCancelledError,
    Skip,
    TaskResultError,
    describe,
    listing,
    shown,
    text_of,
)
from ..states import CANCELLED, FAILED, SKIPPED, SUCCEEDED
from .binding import ABSENT, CONTEXT, INPUT, ITEM, RESULT
from .condition import WhenFalse, close_awaitable
from .program import MANY, NAMED
from .signature import read_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Context
    from types import TracebackType
    from typing import Any

    from ..context import TaskContext
    from .binding import Source
    from .program import Program

HANDED_ON = frozenset({int, str, float, bool, type(None), list, dict, tuple, set, bytes})
"""Types that need no look at whether they can be handed on."""


class Outcome:
    """What an exception that came out of an attempt means.

    Attributes:
        state: FAILED, SKIPPED or CANCELLED.
        error: The exception to keep; None for a skip.
        reason: Why, where the error does not say it.
        has_started: Whether the function was called at all, and not only the condition.
        text: The error in words; made here, because a ``__str__`` is the user's and must not run under a lock.
        may_retry: Whether the retry policy allows another attempt after this error.
    """

    __slots__ = ("error", "has_started", "may_retry", "reason", "state", "text")

    def __init__(
        self,
        state: int,
        error: BaseException | None = None,
        reason: str | None = None,
        *,
        may_retry: bool = False,
        has_started: bool = True,
    ) -> None:
        self.state = state
        self.error = error
        self.reason = reason
        self.may_retry = may_retry
        self.has_started = has_started
        self.text = "" if error is None else describe(error)


def make_call(
    program: Program,
    arity: bytes | bytearray,
    values: list[Any],
    state: bytearray,
    context: Context,
    special: Callable[[int], Any],
) -> Callable[[int], Any]:
    """Return the function that makes an attempt of an id and returns the task's value, or raises.

    Args:
        program: What to call.
        arity: The arity of each id; SPECIAL hands it to *special*.
        values: The results so far.
        state: The state of each id.
        context: The context variables that every attempt gets a copy of.
        special: Makes the attempts that need more than results.
    """
    funcs, sources = program.funcs, program.sources
    copy, value_of = context.copy, values.__getitem__
    handed_on = set(HANDED_ON)

    def call(i: int) -> Any:
        kind = arity[i]
        if kind == 1:
            value = copy().run(funcs[i], values[sources[i]])
        elif kind == 0:
            value = copy().run(funcs[i])
        elif kind == 2:
            a, b = sources[i]
            value = copy().run(funcs[i], values[a], values[b])
        elif kind <= MANY:
            value = copy().run(funcs[i], *map(value_of, sources[i]))
        elif kind == NAMED:
            ids, named = sources[i]
            kwargs = {name: values[u] for name, u in named if state[u] == SUCCEEDED}
            value = copy().run(funcs[i], *map(value_of, ids), **kwargs)
        else:
            value = special(i)
        if type(value) not in handed_on:
            check_value(program.names[i], value)
            handed_on.add(type(value))
        return value

    return call


class Arguments:
    """Gets the arguments of SPECIAL ids.

    Args:
        program: What is called.
        values: The results so far.
        state: The state of each id; a result counts only if its task succeeded.
        inputs: The run's inputs.
    """

    __slots__ = ("_inputs", "_program", "_state", "_values")

    def __init__(self, program: Program, values: list[Any], state: bytearray, inputs: Mapping[str, Any]) -> None:
        self._program = program
        self._values = values
        self._state = state
        self._inputs = inputs

    def of_function(self, i: int, task_context: Callable[[], TaskContext]) -> tuple[list[Any], dict[str, Any]]:
        """Return what the function of *i* gets, by position and by name."""
        binding = self._program.bindings.get(i)
        if binding is None:
            ids = self._program.sources[i]
            ids = () if ids is None else (ids,) if isinstance(ids, int) else ids
            return [self._values[u] for u in ids], {}
        return self._get(i, binding.args, binding.kwargs, task_context)

    def of_condition(self, i: int, task_context: Callable[[], TaskContext]) -> tuple[list[Any], dict[str, Any]]:
        """Return what the condition of *i* gets."""
        binding = self._program.bindings[i]
        return self._get(i, binding.when_args, binding.when_kwargs, task_context)

    def everything(self, source: Source) -> Any:
        """Return what a mapped task is mapped over."""
        return self._get(-1, [source], {}, None)[0][0]

    def _get(
        self,
        i: int,
        args: list[Source],
        kwargs: Mapping[str, Source],
        task_context: Callable[[], TaskContext] | None,
    ) -> tuple[list[Any], dict[str, Any]]:
        def value_of(source: Source) -> Any:
            kind = source.kind
            if kind == RESULT:
                return self._values[source.key] if self._state[source.key] == SUCCEEDED else source.default
            if kind == INPUT:
                return self._inputs[source.key]
            if kind == ITEM:
                return self._values[i]
            return task_context() if kind == CONTEXT and task_context is not None else source.key

        named = {name: value_of(source) for name, source in kwargs.items()}
        return list(map(value_of, args)), {name: value for name, value in named.items() if value is not ABSENT}


def check_value(name: str, value: object) -> None:
    """Raise TaskResultError if *value*, returned by task *name*, cannot be handed on.

    A generator or iterator is empty after its first reader, and an awaitable was never awaited. Files are iterators
    too, but have more to give.
    """
    kind = type(value)
    if hasattr(kind, "__await__"):
        close_awaitable(value)
        raise TaskResultError(name, f"task {name!r} returned a {kind.__name__}: make it async def, or await it inside.")
    if hasattr(kind, "__aiter__") and hasattr(kind, "__anext__"):
        raise TaskResultError(name, f"task {name!r} returned an {kind.__name__}: return a list.")
    if hasattr(kind, "__next__") and not hasattr(kind, "readline"):
        article = "an" if kind.__name__[0] in "aeiouAEIOU" else "a"
        raise TaskResultError(
            name,
            f"task {name!r} returned {article} {kind.__name__}, which is empty after its first reader: return a list.",
        )


def judge_error(
    error: BaseException, program: Program, i: int, *, is_unwanted: bool, may_retry: bool | None = None
) -> Outcome:
    """Say what *error*, raised by an attempt of *i*, means.

    Args:
        is_unwanted: Whether the run has asked the attempt to stop: only then may it end as cancelled.
        may_retry: What the retry policy says, if it was asked already where the attempt was made.
    """
    if isinstance(error, Skip):
        why = text_of(error) or "the task raised Skip"
        return Outcome(SKIPPED, reason=why, has_started=not isinstance(error, WhenFalse))
    is_cancelled_error = type(error).__name__ == "CancelledError" and not isinstance(error, Exception)
    if is_unwanted and (is_cancelled_error or isinstance(error, RunCancelledError)):
        return Outcome(CANCELLED)
    try:
        error.__traceback__ = without_engine(error.__traceback__)
    except Exception as refused:  # noqa: BLE001 - an exception may refuse to be changed; its traceback stays longer
        del refused
    if isinstance(error, ConditionError):
        return Outcome(FAILED, error, has_started=False)
    reason: str | None = None
    if is_cancelled_error or isinstance(error, GeneratorExit):
        reason = f"raised {type(error).__name__} but was not cancelled"
    if isinstance(error, TypeError) and read_signature(program.funcs[i]) is None:
        error = _unfit_call(error, program, i)
    is_final = isinstance(error, (TaskResultError, BindingError, NotPicklableError))
    if may_retry is None:
        may_retry = program.tasks[i].options.retry.is_retryable(error)
    return Outcome(FAILED, error, reason, may_retry=may_retry and not is_final)


def _unfit_call(error: TypeError, program: Program, i: int) -> BindingError:
    """Return the error of a builtin that does not tell its parameters, and was called with the wrong ones."""
    given = listing(task.name for task in program.tasks[i].upstream)
    problem = BindingError(
        f"task {program.names[i]!r} calls {shown(program.funcs[i])} with the results of [{given}]: {text_of(error)}. "
        f"Wrap it in a function that takes them."
    )
    problem.__cause__ = error
    return problem


def without_engine(traceback: TracebackType | None) -> TracebackType | None:
    """Return *traceback* from the first frame that is the user's."""
    inner = traceback
    while inner is not None and inner.tb_frame.f_globals.get("__name__", "").startswith(_ENGINE):
        inner = inner.tb_next
    return inner or traceback


_ENGINE = (__name__.rpartition(".")[0], "asyncio.")
