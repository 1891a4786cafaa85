"""Make one attempt away from its run, and answer in plain data.

Knows how a task is called, and what can be sent. Does not know how answers travel: a process of our own sends them
through its pipe, a foreign executor as the result of a future.

An answer is a tuple of plain data, and blocks of bytes:

================================================= ========================================================
``("value", seconds)``                            its result is in the blocks
``("skip", text, is_when_false)``                 it was skipped
``("error", type, text, traceback, may_retry)``   what it raised; in the blocks the exception and its cause, if
                                                  they survive pickling
``("refused", text)``                             what arrived could not be unpickled
``("unsent", text)``                              its result cannot be pickled
================================================= ========================================================

Nothing that a user's object does breaks the worker: everything is caught, and exceptions are unpickled once, here,
before they are sent.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from contextvars import copy_context

from ...exceptions import (
    FlowkitError,
    NotPicklableError,
    RemoteError,
    RetryAfter,
    Skip,
    TaskResultError,
    describe,
    shown,
    text_of,
)
from ...retry import RetryPolicy, is_duration
from ..attempt import HANDED_ON, check_value, without_engine
from ..condition import WhenFalse, ask_condition
from . import CONTEXT_PLACE
from .shipping import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ...context import TaskContext
    from ..loops import PrivateLoop
    from .shipping import Spec
    from .wire import Part

    Answer = tuple[tuple[Any, ...], Sequence[Part]]


_LONGEST_TRACE = 50_000
"""Characters of a traceback that are sent."""


def attempt(
    name: str,
    spec: Spec,
    arguments: Sequence[Any],
    context: TaskContext | None,
    loop: PrivateLoop,
    on_condition: Callable[[], object] | None,
) -> tuple[Any, float]:
    """Return the result of one attempt and the seconds that it took.

    Args:
        name: The task.
        spec: What to call.
        arguments: The arguments of the function and of the condition, each by position and by name.
        context: Goes where the arguments have a place for it; None if they have none.
        loop: Where an ``async def`` function runs.
        on_condition: Called when the condition holds; None if it is not asked.

    Raises:
        BaseException: What the task raised.
    """
    args, kwargs, when_args, when_kwargs = arguments
    own = copy_context()
    started = time.perf_counter()
    if on_condition is not None and spec.when is not None:
        if context is not None:
            when_args, when_kwargs = _with_context(when_args, when_kwargs, context)
        own.run(ask_condition, name, spec.when, when_args, when_kwargs)
        on_condition()
    if context is not None:
        args, kwargs = _with_context(args, kwargs, context)
    if spec.is_coroutine:
        value = loop.run(spec.func(*args, **kwargs), own)
    else:
        value = own.run(spec.func, *args, **kwargs)
    seconds = time.perf_counter() - started
    if type(value) not in HANDED_ON:
        check_value(name, value)
    return value, seconds


def answer_value(value: object, seconds: float) -> Answer:
    """Return the answer of an attempt that gave *value*."""
    try:
        return ("value", seconds), encode(value)
    except BaseException as error:  # noqa: BLE001 - objects raise anything when they are pickled
        return ("unsent", f"{shown(value)} of type {type(value).__name__}: {describe(error)}"), ()


def answer_error(spec: Spec, error: BaseException) -> Answer:
    """Return the answer of an attempt that raised *error*."""
    if isinstance(error, Skip):
        return ("skip", text_of(error), isinstance(error, WhenFalse)), ()
    may_retry = RetryPolicy(retry_on=spec.retry_on).is_retryable(error)
    try:
        error.__traceback__ = without_engine(error.__traceback__)
        trace = "".join(traceback.format_exception(error))
        if len(trace) > _LONGEST_TRACE:
            trace = f"... ({len(trace)} characters)\n{trace[-_LONGEST_TRACE:]}"
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ must not hide the error
        trace = f"(its traceback cannot be shown: {type(broken).__name__})"
    pairs: list[tuple[BaseException, BaseException | None]] = [(error, error.__cause__), (error, None)]
    if isinstance(error, RetryAfter) and is_duration(error.seconds):  # a class of the user's that may not travel
        pairs.append((RetryAfter(error.seconds, text_of(error)), None))
    packed = next(filter(None, map(_pack_error, pairs)), [])
    return ("error", type(error).__name__, text_of(error), trace, may_retry), packed


def _pack_error(pair: tuple[BaseException, BaseException | None]) -> list[Part]:
    """Return an exception and its cause as bytes if they come back as what they are, else nothing."""
    try:
        packed = encode(pair)
        again, _ = decode(packed)
    except BaseException:  # noqa: BLE001 - objects raise anything; then only its text is sent
        return []
    return packed if type(again) is type(pair[0]) else []


class Ended(Exception):  # noqa: N818 - no error: how an attempt answers whose result is to stay where it is
    """Carries the answer of an attempt that gave no value.

    Attributes:
        answer: The answer.
        parts: Its blocks.
    """

    def __init__(self, answer: tuple[Any, ...], parts: Sequence[Part]) -> None:
        super().__init__(answer, parts)
        self.answer = answer
        self.parts = parts


def answer_refused(error: BaseException) -> Answer:
    """Return the answer to a call that could not be unpickled."""
    return ("refused", describe(error)), ()


def read_answer(
    name: str, answer: Sequence[Any], parts: Sequence[Part]
) -> tuple[Any, BaseException | None, bool | None]:
    """Return the value of task *name*, or what came out of it instead and whether that may be tried again.

    The last is None where the retry policy is still to be asked.
    """
    kind = answer[0]
    if kind == "value":
        try:
            return decode(parts), None, None
        except BaseException as error:  # noqa: BLE001 - objects raise anything when they are unpickled
            problem = f"task {name!r} returned a value that cannot be unpickled here: {describe(error)}."
            return None, TaskResultError(name, f"{problem} Return plain data."), None
    if kind == "skip":
        return None, (WhenFalse if answer[2] else Skip)(answer[1]), None
    if kind == "refused":
        problem = (
            f"task {name!r}: its function or arguments cannot be used in a process: {answer[1]}. They must be "
            f"importable there, from a module or a script with `if __name__ == '__main__':`; or use executor='thread'."
        )
        return None, NotPicklableError(name, problem), None
    if kind == "unsent":
        problem = f"task {name!r} returned what cannot be sent back from a process: {answer[1]}. Return plain data."
        return None, TaskResultError(name, problem), None
    _, type_name, text, trace, may_retry = answer
    raised = _unpack_error(parts) or RemoteError(name, type_name, text, trace)
    try:
        raised.add_note(f"In the worker process:\n{trace}")
    except Exception as refused:  # noqa: BLE001 - an exception may refuse to be changed
        del refused
    return None, raised, may_retry


def _unpack_error(parts: Sequence[Part]) -> BaseException | None:
    """Return the exception in *parts* with its cause, None if there is none or it cannot be unpickled here."""
    if not parts:
        return None
    try:
        error, cause = decode(parts)
        if cause is not None:
            error.__cause__ = cause
    except BaseException:  # noqa: BLE001 - objects raise anything; what stands for it says all that is known
        return None
    return error if isinstance(error, BaseException) else None


def _with_context(
    args: Sequence[Any], kwargs: Mapping[str, Any], context: TaskContext
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with *context* where it belongs."""
    return (
        [context if value is CONTEXT_PLACE else value for value in args],
        {name: context if value is CONTEXT_PLACE else value for name, value in kwargs.items()},
    )


class Unsent(Mapping[str, "Any"]):
    """``.upstream`` of a context that nobody asked for when the call was sent."""

    __slots__ = ()

    def _refuse(self) -> FlowkitError:
        return FlowkitError(
            "in a process, .upstream is sent only to tasks that take the context as a parameter: def f(..., context)."
        )

    def __getitem__(self, name: str) -> Any:
        raise self._refuse()

    def __iter__(self) -> Iterator[str]:
        raise self._refuse()

    def __len__(self) -> int:
        raise self._refuse()
