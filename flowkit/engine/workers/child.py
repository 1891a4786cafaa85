"""The other end of a process worker: take calls from a pipe, make them, send back plain data.

Knows how one attempt is made. Does not know runs: what it needs of one travels with the calls.

Frames that arrive: a head that lists calls, each with the parts of its arguments and, the first time, of its
:class:`~.shipping.Spec`. Frames that leave: a head that lists answers, each with its parts:

=====================================================  ======================================================
``("ready",)``                                         the process can take calls
``("holds", id)``                                      its condition is true: the attempt starts now
``("value", id, seconds, n)``                          its result, in n parts
``("skip", id, text, is_when_false)``                  it was skipped
``("error", id, type, text, traceback, may_retry, n)`` what it raised, and in n parts the exception and its cause
``("refused", id, text)``                              what arrived could not be unpickled
``("unsent", id, text)``                               its result cannot be pickled
``("cleanup", n)``, ``("log", n)``                     a cleanup handler, a log record, in n parts
=====================================================  ======================================================

Nothing that a user's object does in here breaks the loop: everything is caught, and an exception or a result is
pickled, and the exception unpickled again, before it is sent.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from contextvars import copy_context

from ...context import TaskContext, holder
from ...exceptions import FlowkitError, NotPicklableError, Skip, describe, shown, text_of
from ...hooks import quiet_logger
from ...retry import RetryPolicy
from ..attempt import check_value, without_engine
from ..condition import WhenFalse, ask_condition
from ..loops import PrivateLoop
from ..signature import is_coroutine_function
from . import CONTEXT_PLACE, wire
from .shipping import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from typing import Any

    from .shipping import Spec
    from .wire import Part

_LONGEST_SILENCE = 0.001
"""Seconds that the answers of a batch are held back to go in one frame."""


def main(connection: Connection, side: Connection, run_id: str, log_level: int) -> None:
    """Serve calls until the other end is gone.

    Args:
        connection: Where calls come from and answers go.
        side: Where ids come from whose attempts are to stop, and where one byte goes for each call that starts.
        run_id: The run that this process works for.
        log_level: From which level on records of the logger ``flowkit`` are sent back.
    """
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the parent; and a program started here gets its own
    child = _Child(connection, side, run_id)
    threading.Thread(target=child.listen, name="flowkit-listen", daemon=True).start()
    _send_logs(child, log_level)
    try:
        child.send(("ready",))
        while True:
            child.serve(*wire.receive(connection, lambda: None))
    except (EOFError, OSError):
        return


class _Child:
    """This process as a worker."""

    def __init__(self, connection: Connection, side: Connection, run_id: str) -> None:
        self._connection = connection
        self._side = side
        self._run_id = run_id
        self._specs: dict[int, Spec] = {}
        self._unwanted: set[int] = set()
        self._context: TaskContext | None = None
        self._loop = PrivateLoop()
        self._answers: list[tuple[Any, ...]] = []
        self._parts: list[Part] = []
        self._sending = threading.Lock()
        self._last_sent = 0.0
        holder.set(self)

    def task_context(self) -> TaskContext | None:
        """Return the context of the attempt running now."""
        return self._context

    def listen(self) -> None:
        """Note which attempts are to stop; end the process with its parent, whatever ends that."""
        import multiprocessing  # noqa: PLC0415 - is there already
        from multiprocessing.connection import wait  # noqa: PLC0415

        parent = multiprocessing.parent_process()
        watched: list[Any] = [self._side] if parent is None else [self._side, parent.sentinel]
        while True:
            if self._side not in wait(watched):
                os._exit(1)
            try:
                self._unwanted.add(int.from_bytes(self._side.recv_bytes(), "little"))
            except (EOFError, OSError):
                os._exit(1)

    def send(self, answer: tuple[Any, ...], parts: Sequence[Part] = ()) -> None:
        """Send *answer* now, after those that were held back."""
        with self._sending:
            self._answers.append(answer)
            self._parts.extend(parts)
            self._flush()

    def _hold_back(self, answer: tuple[Any, ...], parts: Sequence[Part]) -> None:
        with self._sending:
            self._answers.append(answer)
            self._parts.extend(parts)
            if time.perf_counter() - self._last_sent > _LONGEST_SILENCE:
                self._flush()

    def _flush(self) -> None:
        answers, parts = self._answers, self._parts
        self._answers, self._parts = [], []
        wire.send(self._connection, answers, parts)
        self._last_sent = time.perf_counter()

    def serve(self, calls: list[tuple[Any, ...]], parts: Sequence[Part]) -> None:
        """Make *calls* one after the other."""
        first = 0
        is_batch = len(calls) > 1
        self._last_sent = time.perf_counter()
        for number, (i, name, attempt, spec_number, spec_size, size, asks) in enumerate(calls, 1):
            if is_batch:
                self._side.send_bytes(b".")
            middle, end = first + spec_size, first + spec_size + size
            answer = self._attempt(i, name, attempt, spec_number, parts[first:middle], parts[middle:end], asks=asks)
            first = end
            if number == len(calls):
                self.send(*answer)
            else:
                self._hold_back(*answer)

    def _attempt(
        self,
        i: int,
        name: str,
        attempt: int,
        spec_number: int,
        spec_parts: Sequence[Part],
        parts: Sequence[Part],
        *,
        asks: bool,
    ) -> tuple[tuple[Any, ...], Sequence[Part]]:
        """Make one attempt and return its answer."""
        try:
            if spec_parts:
                self._specs[spec_number] = decode(spec_parts)
            spec = self._specs[spec_number]
            args, kwargs, when_args, when_kwargs, upstream = decode(parts)
        except BaseException as error:  # noqa: BLE001 - objects raise anything when they are unpickled
            return ("refused", i, describe(error)), ()
        context = self._context = TaskContext(
            name,
            self._run_id,
            attempt,
            _Unsent() if upstream is None else upstream,
            lambda: i in self._unwanted,
            lambda handler: self._add_cleanup(name, handler),
        )
        own = copy_context()
        started = time.perf_counter()
        try:
            if asks and spec.when is not None:
                own.run(ask_condition, name, spec.when, *_with_context(when_args, when_kwargs, context))
                self.send(("holds", i))
            args, kwargs = _with_context(args, kwargs, context)
            if is_coroutine_function(spec.func):
                value = self._loop.run(spec.func(*args, **kwargs), own)
            else:
                value = own.run(spec.func, *args, **kwargs)
            check_value(name, value)
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            return self._failure(i, spec, error)
        finally:
            self._context = None
        seconds = time.perf_counter() - started
        try:
            packed = encode(value)
        except BaseException as error:  # noqa: BLE001 - objects raise anything when they are pickled
            return ("unsent", i, f"{shown(value)} of type {type(value).__name__}: {describe(error)}"), ()
        return ("value", i, seconds, len(packed)), packed

    def _failure(self, i: int, spec: Spec, error: BaseException) -> tuple[tuple[Any, ...], Sequence[Part]]:
        if isinstance(error, Skip):
            return ("skip", i, text_of(error), isinstance(error, WhenFalse)), ()
        may_retry = RetryPolicy(retry_on=spec.retry_on).is_retryable(error)
        try:
            error.__traceback__ = without_engine(error.__traceback__)
            trace = "".join(traceback.format_exception(error))
        except BaseException as broken:  # noqa: BLE001 - a broken __str__ must not hide the error
            trace = f"(its traceback cannot be shown: {type(broken).__name__})"
        packed: list[Part] = []
        for pair in ((error, error.__cause__), (error, None)):
            try:
                packed = encode(pair)
                again, _ = decode(packed)
                if type(again) is type(error):
                    break
            except BaseException:  # noqa: BLE001 - then only its text is sent
                packed = []
        return ("error", i, type(error).__name__, text_of(error), trace, may_retry, len(packed)), packed

    def _add_cleanup(self, name: str, handler: Any) -> None:
        """Send *handler* now: the process may not live to the end of the task."""
        try:
            packed = encode(handler)
        except Exception as error:
            raise NotPicklableError(
                name,
                f"task {name!r}: its cleanup handler {shown(handler)} cannot be sent from its process: "
                f"{describe(error)}. Make it a function at module level, or functools.partial of one.",
            ) from error
        self.send(("cleanup", len(packed)), packed)


def _with_context(
    args: Sequence[Any], kwargs: Mapping[str, Any], context: TaskContext
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with *context* where it belongs."""
    return (
        [context if value is CONTEXT_PLACE else value for value in args],
        {name: context if value is CONTEXT_PLACE else value for name, value in kwargs.items()},
    )


class _Unsent(Mapping[str, "Any"]):
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


def _send_logs(child: _Child, level: int) -> None:
    """Have records of the logger ``flowkit`` sent to the parent, whose handlers they are for."""
    import logging  # noqa: PLC0415

    class Sender(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                record.msg, record.args = record.getMessage(), None
                if record.exc_info:
                    record.exc_text = logging.Formatter().formatException(record.exc_info)
                    record.exc_info = None
                packed = encode(record)
                child.send(("log", len(packed)), packed)
            except Exception:  # noqa: BLE001 - what logging does with handlers that fail
                self.handleError(record)

    logger = quiet_logger()
    logger.handlers.clear()
    logger.addHandler(Sender())
    logger.setLevel(level)
    logger.propagate = False
