"""Run coroutines to their end from a thread that is not a loop's, and end event loops.

Knows asyncio, which is imported with the first coroutine: it costs 29 ms. Does not know tasks or runs. The current
event loop of the calling thread stays what it was: ``asyncio.run`` would set it, and take it away.
"""

from __future__ import annotations

import threading
from contextvars import copy_context
from types import CoroutineType

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from contextvars import Context
    from typing import Any

GRACE = 0.1
"""Seconds that cancelled coroutines get to end before their loop is given up."""


class LateError(Exception):
    """A coroutine took longer than its timeout."""


class PrivateLoop:
    """An event loop for one coroutine at a time; it is made when it is first needed."""

    __slots__ = ("_loop", "_task")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(
        self,
        awaitable: Awaitable[Any],
        context: Context | None = None,
        is_unwanted: Callable[[], bool] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return what *awaitable* gives, or raise what it raises.

        If a loop runs in the calling thread already, this one runs in another thread; the caller waits all the same.

        Args:
            awaitable: A coroutine, or what else can be awaited.
            context: The context variables in which it runs; None for a copy of the caller's.
            is_unwanted: Asked once when :meth:`cancel` is heard from then on: whether it came before.
            timeout: Seconds after which it is cancelled.

        Raises:
            LateError: It was cancelled because of its timeout.
        """
        import asyncio  # noqa: PLC0415

        from .daemons import DaemonExecutor  # noqa: PLC0415 - imports concurrent.futures

        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.new_event_loop()
            loop.set_default_executor(DaemonExecutor())
        task = loop.create_task(_wait(awaitable), context=copy_context() if context is None else context)
        self._task = task
        if is_unwanted is not None and is_unwanted():
            task.cancel()
        late = None if timeout is None else loop.call_later(timeout, task.cancel)
        try:
            return _outside_of_loops(lambda: loop.run_until_complete(task))
        except asyncio.CancelledError:
            if late is None or late.when() > loop.time() or (is_unwanted is not None and is_unwanted()):
                raise
            raise LateError from None
        finally:
            if late is not None:
                late.cancel()
            self._task = None
            if isinstance(awaitable, CoroutineType):
                awaitable.close()  # or Python would warn, if the cancel came before its first step

    def cancel(self) -> None:
        """Cancel what runs, if anything does. From any thread."""
        task, loop = self._task, self._loop
        if task is not None and loop is not None:
            loop.call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """End the loop and what its coroutines left running."""
        loop, self._loop = self._loop, None
        if loop is not None:
            _outside_of_loops(lambda: end_loop(loop))


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def end_loop(loop: asyncio.AbstractEventLoop) -> int:
    """Cancel what is left on *loop*, which does not run, and close it; return how many threads had to be left behind.

    A task that does not heed the cancel cannot be thrown away: Python would call it again to end it, and if it did not
    heed that either, never come back. So it goes on, in a daemon thread.
    """
    import asyncio  # noqa: PLC0415

    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _run_quietly(loop, asyncio.wait(left, timeout=GRACE))
        left = asyncio.all_tasks(loop)
    if not left:
        _close(loop)
        return 0

    def go_on() -> None:
        _run_quietly(loop, asyncio.wait(left))
        _close(loop)

    threading.Thread(target=go_on, name="flowkit-loop", daemon=True).start()
    return 1


def _close(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio  # noqa: PLC0415

    _run_quietly(loop, asyncio.wait_for(loop.shutdown_asyncgens(), GRACE))
    loop.close()


def _run_quietly(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[object]) -> None:
    """Run *awaitable* on *loop*; what tasks that nobody waits for raise there ends nothing."""
    try:
        loop.run_until_complete(awaitable)
    except BaseException as error:  # noqa: BLE001 - an exit that such a task raised: see gh-102572
        del error


def _outside_of_loops(call: Callable[[], Any]) -> Any:
    """Return what *call* gives; it is made in another thread if a loop runs in this one, which allows no second."""
    if not _has_running_loop():
        return call()
    answers: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=work, name="flowkit-loop", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


def _has_running_loop() -> bool:
    import asyncio  # noqa: PLC0415

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
