"""The other end of a process worker: take calls from a pipe, make them, send back plain data.

Knows how one attempt is made. Does not know runs: what it needs of one travels with the calls.

Frames that arrive: the number of a :class:`~.shipping.Spec`, with its parts, before the first call that needs it; a
list of calls, with the parts of their arguments. Frames that leave: a head that lists answers,
``(id, kind, ..., number of its parts)``; the kinds of :mod:`.remote`, and:

================= ===========================================================
``"ready"``       the process can take calls
``"loaded"``      the spec was received; if it cannot be unpacked, its calls say so
``"holds"``       the condition of the id is true: a frame comes back that says whether its attempt may start
``"stopped"``     the attempt was not made, because nobody waits for it any more
``"cleanup"``     a cleanup handler is in the parts
``"log"``         a log record is in the parts
================= ===========================================================
"""

from __future__ import annotations

import os
import signal
import threading
import time

from ...context import TaskContext, holder
from ...exceptions import NotPicklableError, describe, shown
from ...hooks import quiet_logger
from ..loops import PrivateLoop
from . import remote
from .shipping import decode, encode
from .wire import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from typing import Any

    from .shipping import Spec
    from .wire import Part

_LONGEST_SILENCE = 0.001
"""Seconds that the answers of a batch are held back to go in one frame."""
_LONGEST_FAREWELL = 1.0
"""Seconds that a process gets to end by itself when the other end of its pipes is gone."""


def main(connection: Connection, side: Connection, run_id: str, log_level: int) -> None:
    """Serve calls until the other end is gone.

    Args:
        connection: Where calls come from and answers go.
        side: Where ids come from whose attempts are to stop, and where one byte goes for each call that begins.
        run_id: The run that this process works for.
        log_level: From which level on records of the logger ``flowkit`` are sent back.
    """
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the parent; and a program started here gets its own
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back until here, see processes.py
    channel = Channel(connection)
    child = _Child(channel, Channel(side), run_id)
    for work in (child.listen, child.send_late):
        threading.Thread(target=work, name="flowkit-worker", daemon=True).start()
    _send_logs(child, log_level)
    try:
        child.send(-1, ("ready",))
        while True:
            head, parts = channel.receive(_nothing)
            if isinstance(head, int):
                child.load(head, parts)
            else:
                child.serve(head, parts)
    except (EOFError, OSError):
        return


class _StoppedError(BaseException):
    """The attempt is not to be made."""


class _Child:
    """This process as a worker."""

    def __init__(self, channel: Channel, side: Channel, run_id: str) -> None:
        self._channel = channel
        self._side = side
        self._run_id = run_id
        self._specs: dict[int, Spec | BaseException] = {}
        self._unwanted: set[int] = set()
        self._now: tuple[int, str, int, Any] | None = None
        """Id, name, attempt and upstream runs of what is called now."""
        self._loop = PrivateLoop()
        self._answers: list[tuple[Any, ...]] = []
        self._parts: list[Part] = []
        self._sending = threading.Lock()
        self._last_sent = 0.0
        self._is_holding = threading.Lock()
        """Released when answers are held back; then they are sent soon, even if the next call takes long."""
        self._is_holding.acquire()
        self._pid = os.getpid()
        holder.set(self)

    def task_context(self) -> TaskContext | None:
        """Return the context of the attempt running now."""
        if self._now is None:
            return None
        i, name, attempt, upstream = self._now
        return TaskContext(
            name,
            self._run_id,
            attempt,
            remote.Unsent() if upstream is None else upstream,
            lambda: i in self._unwanted,
            lambda handler: self._add_cleanup(name, handler),
        )

    def listen(self) -> None:
        """Note which attempts are to stop; end the process with its parent, whatever ends that."""
        import multiprocessing  # noqa: PLC0415 - is there already
        from multiprocessing.connection import wait  # noqa: PLC0415

        parent = multiprocessing.parent_process()
        if parent is not None:
            _die_with(parent.sentinel)
        side = self._side.connection
        watched: list[Any] = [side] if parent is None else [side, parent.sentinel]
        while True:
            if side not in wait(watched):
                os._exit(1)
            try:
                self._unwanted.update(self._side.receive(_nothing)[0])
                while self._side.has_rest:
                    self._unwanted.update(self._side.receive(_nothing)[0])
            except (EOFError, OSError):  # this worker is not needed any more, and between calls knows so itself
                wait(watched[1:], _LONGEST_FAREWELL)
                os._exit(1)

    def send(self, i: int, answer: Sequence[Any], parts: Sequence[Part] = ()) -> None:
        """Send *answer* about *i* now, after those that were held back."""
        with self._sending:
            self._append(i, answer, parts)
            self._flush()

    def send_late(self) -> None:
        """Send answers that were held back for too long. In a thread of its own."""
        while True:
            self._is_holding.acquire()
            time.sleep(2 * _LONGEST_SILENCE)
            try:
                with self._sending:
                    if self._answers:
                        self._flush()
            except OSError:  # the other end is gone, which whoever sends or receives next finds out too
                return

    def _hold_back(self, i: int, answer: Sequence[Any], parts: Sequence[Part]) -> None:
        with self._sending:
            self._append(i, answer, parts)
            if time.perf_counter() - self._last_sent > _LONGEST_SILENCE:
                self._flush()
            elif self._is_holding.locked():
                self._is_holding.release()

    def _append(self, i: int, answer: Sequence[Any], parts: Sequence[Part]) -> None:
        self._answers.append((i, *answer, len(parts)))
        self._parts.extend(parts)

    def _flush(self) -> None:
        answers, parts = self._answers, self._parts
        self._answers, self._parts = [], []
        self._channel.send(answers, parts)
        self._last_sent = time.perf_counter()

    def load(self, number: int, parts: Sequence[Part]) -> None:
        """Keep the spec *number*, or why it cannot be unpacked."""
        try:
            self._specs[number] = decode(parts)
        except BaseException as error:  # noqa: BLE001 - modules raise anything when they are imported
            self._specs[number] = error
        self.send(-1, ("loaded",))

    def serve(self, calls: list[tuple[Any, ...]], parts: Sequence[Part]) -> None:
        """Make *calls* one after the other."""
        first = 0
        self._last_sent = time.perf_counter()
        for number, (i, name, attempt, spec_number, size, asks) in enumerate(calls, 1):
            self._side.mark()
            end = first + size
            answer: tuple[Any, ...]
            packed: Sequence[Part]
            try:
                spec = self._spec(spec_number)
                arguments = decode(parts[first:end])
            except BaseException as error:  # noqa: BLE001 - objects raise anything when they are unpickled
                answer, packed = remote.answer_refused(error)
            else:
                if i in self._unwanted:
                    answer, packed = ("stopped",), ()
                else:
                    answer, packed = self._attempt(i, name, attempt, spec, arguments, asks=asks)
            if os.getpid() != self._pid:  # the task has forked, and this is the other one, which nobody waits for
                os._exit(0)
            first = end
            if number == len(calls):
                self.send(i, answer, packed)
            else:
                self._hold_back(i, answer, packed)

    def _spec(self, number: int) -> Spec:
        spec = self._specs[number]
        if isinstance(spec, BaseException):
            raise spec
        return spec

    def _attempt(
        self, i: int, name: str, attempt: int, spec: Spec, arguments: Sequence[Any], *, asks: bool
    ) -> remote.Answer:
        *arguments, upstream = arguments
        self._now = i, name, attempt, upstream
        context = None if upstream is None else self.task_context()
        on_condition = (lambda: self._ask_to_start(i)) if asks else None
        try:
            value, seconds = remote.attempt(name, spec, arguments, context, self._loop, on_condition)
        except _StoppedError:
            return ("stopped",), ()
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            return remote.answer_error(spec, error)
        finally:
            self._now = None
        return remote.answer_value(value, seconds)

    def _ask_to_start(self, i: int) -> None:
        """Tell that the condition of *i* holds; raise if the run was stopped meanwhile."""
        self.send(i, ("holds",))
        may_start, _ = self._channel.receive(_nothing)
        if not may_start:
            raise _StoppedError

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
        self.send(-1, ("cleanup",), packed)


def _die_with(sentinel: int) -> None:
    """Have the system kill this process when *sentinel* becomes readable, even if a task never lets Python run.

    Linux alone can do that; elsewhere, and beside it, the thread that listens does it.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on every platform

        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError):
        return


def _nothing() -> None: ...


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
                child.send(-1, ("log",), packed)
            except Exception:  # noqa: BLE001 - what logging does with handlers that fail
                self.handleError(record)

    logger = quiet_logger()
    logger.handlers.clear()
    logger.addHandler(Sender())
    logger.setLevel(level)
    logger.propagate = False
