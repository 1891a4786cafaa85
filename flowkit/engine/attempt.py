"""Make one attempt: function in, value or exception out; and say what an exception means.

Knows how a task is called and judged. Does not know scheduling: whether there is a next attempt is the runner's.

Everything of the user's that belongs to an attempt (the condition, the function, the retry predicate) runs in here,
in the worker, in a copy of the caller's context variables.
"""

from __future__ import annotations

from ..exceptions import ConditionError, RunCancelledError, Skip, TaskResultError, describe
from ..states import CANCELLED, FAILED, SKIPPED, SUCCEEDED
from .binding import ABSENT, CONTEXT, INPUT, RESULT
from .program import MANY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Context
    from types import TracebackType
    from typing import Any

    from ..context import TaskContext
    from .binding import Source
    from .program import Program

_HANDED_ON = (int, str, float, bool, type(None), list, dict, tuple, set, bytes)
"""Types that need no look at whether they can be handed on."""


class _WhenFalse(Skip):
    """The condition said no."""


class Outcome:
    """What an exception that came out of an attempt means.

    Attributes:
        state: FAILED, SKIPPED or CANCELLED.
        error: The exception to keep; None for a skip.
        reason: Why, where the error does not say it.
        may_retry: Whether the retry policy allows another attempt after this error.
    """

    __slots__ = ("error", "may_retry", "reason", "state")

    def __init__(self, state: int, error: BaseException | None, reason: str | None, *, may_retry: bool) -> None:
        self.state = state
        self.error = error
        self.reason = reason
        self.may_retry = may_retry


def make_call(
    program: Program,
    arity: bytes | bytearray,
    values: list[Any],
    context: Context,
    special: Callable[[int], Any],
) -> Callable[[int], Any]:
    """Return the function that makes an attempt of an id and returns the task's value, or raises.

    Args:
        program: What to call.
        arity: The arity of each id; SPECIAL hands it to *special*.
        values: The results so far.
        context: The context variables that every attempt gets a copy of.
        special: Makes the attempts that need more than results by position.
    """
    funcs, sources = program.funcs, program.sources
    copy, value_of = context.copy, values.__getitem__
    handed_on = set(_HANDED_ON)

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
        else:
            value = special(i)
        if type(value) not in handed_on:
            check_value(program.names[i], value)
            handed_on.add(type(value))
        return value

    return call


def call_bound(
    program: Program,
    i: int,
    attempt: int,
    context: Context,
    values: list[Any],
    state: bytearray,
    inputs: Mapping[str, Any],
    task_context: Callable[[], TaskContext],
) -> Any:
    """Make an attempt of a SPECIAL id; the condition is judged before the first.

    Args:
        context: The context variables of this attempt.
        state: The state of each id; a result counts only if its task succeeded.
        task_context: Makes the task's own context, if it asks for it.
    """
    binding = program.bindings.get(i)
    func = program.funcs[i]
    if binding is None:
        ids = program.sources[i]
        ids = () if ids is None else (ids,) if isinstance(ids, int) else ids
        return context.run(func, *map(values.__getitem__, ids))

    def value_of(source: Source) -> Any:
        kind = source.kind
        if kind == RESULT:
            return values[source.key] if state[source.key] == SUCCEEDED else source.default
        if kind == INPUT:
            return inputs[source.key]
        return task_context() if kind == CONTEXT else source.key

    if binding.when is not None and attempt == 1:
        args = map(value_of, binding.when_args)
        context.run(_judge, program.names[i], binding.when, args, _by_name(binding.when_kwargs, value_of))
    return context.run(func, *map(value_of, binding.args), **_by_name(binding.kwargs, value_of))


def _by_name(sources: Mapping[str, Source], value_of: Callable[[Source], Any]) -> dict[str, Any]:
    given = {name: value_of(source) for name, source in sources.items()}
    return {name: value for name, value in given.items() if value is not ABSENT}


def _judge(name: str, when: Callable[..., object], args: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise unless the condition holds."""
    answer: Any = None
    try:
        answer = when(*args, **kwargs)
        holds = not hasattr(answer, "__await__") and bool(answer)
    except Exception as error:
        raise ConditionError(name, f"the condition (when) of task {name!r} raised {describe(error)}") from error
    if hasattr(answer, "__await__"):
        _close(answer)
        raise ConditionError(
            name,
            f"the condition (when) of task {name!r} returned a {type(answer).__name__}, which is always true: "
            f"write it as a plain function.",
        )
    if not holds:
        raise _WhenFalse("when() was false")


def check_value(name: str, value: object) -> None:
    """Raise TaskResultError if *value*, returned by task *name*, cannot be handed on.

    A generator or iterator is empty after its first reader, and an awaitable was never awaited. Files are iterators
    too, but have more to give.
    """
    kind = type(value)
    if hasattr(kind, "__await__"):
        _close(value)
        raise TaskResultError(name, f"task {name!r} returned a {kind.__name__}: make it async def, or await it inside.")
    if hasattr(kind, "__aiter__") and hasattr(kind, "__anext__"):
        raise TaskResultError(name, f"task {name!r} returned an {kind.__name__}: return a list.")
    if hasattr(kind, "__next__") and not hasattr(kind, "readline"):
        article = "an" if kind.__name__[0] in "aeiou" else "a"
        raise TaskResultError(
            name,
            f"task {name!r} returned {article} {kind.__name__}, which is empty after its first reader: return a list.",
        )


def _close(awaitable: object) -> None:
    """Keep Python from warning that a coroutine was never awaited: the error says so already."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


def judge_error(error: BaseException, program: Program, i: int, *, is_unwanted: bool) -> Outcome:
    """Say what *error*, raised by an attempt of *i*, means.

    Args:
        is_unwanted: Whether the run has asked the attempt to stop: only then may it end as cancelled.
    """
    if isinstance(error, Skip):
        return Outcome(SKIPPED, None, str(error) or "the task raised Skip", may_retry=False)
    if isinstance(error, RunCancelledError) and is_unwanted:
        return Outcome(CANCELLED, None, None, may_retry=False)
    error.__traceback__ = _without_engine(error.__traceback__)
    reason = None
    if type(error).__name__ in ("CancelledError", "GeneratorExit") and not isinstance(error, Exception):
        reason = f"raised {type(error).__name__} but was not cancelled"
    own = isinstance(error, (ConditionError, TaskResultError))
    may_retry = not own and program.tasks[i].options.retry.is_retryable(error)
    return Outcome(FAILED, error, reason, may_retry=may_retry)


def _without_engine(traceback: TracebackType | None) -> TracebackType | None:
    """Return *traceback* from the first frame that is the user's."""
    inner = traceback
    while inner is not None and inner.tb_frame.f_globals.get("__name__", "").startswith(_ENGINE):
        inner = inner.tb_next
    return inner or traceback


_ENGINE = __name__.rpartition(".")[0]
