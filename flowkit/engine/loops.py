"""Run coroutines to their end from a thread that is not a loop's.

Knows asyncio, which is imported with the first coroutine: it costs 29 ms. Does not know tasks or runs.
"""

from __future__ import annotations

import threading
from contextvars import copy_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from contextvars import Context
    from typing import Any


class PrivateLoop:
    """An event loop for one coroutine at a time; it is made when it is first needed."""

    __slots__ = ("_runner", "_task")

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, awaitable: Awaitable[Any], context: Context | None = None) -> Any:
        """Return what *awaitable* gives, or raise what it raises.

        If a loop runs in the calling thread already, this one runs in another thread; the caller waits all the same.

        Args:
            awaitable: A coroutine, or what else can be awaited.
            context: The context variables in which it runs; None for a copy of the caller's.
        """
        import asyncio  # noqa: PLC0415

        runner = self._runner
        if runner is None:
            runner = self._runner = asyncio.Runner()
        coroutine, within = self._wait(awaitable), context or copy_context()
        return _outside_of_loops(lambda: runner.run(coroutine, context=within))

    async def _wait(self, awaitable: Awaitable[Any]) -> Any:
        import asyncio  # noqa: PLC0415

        self._task = asyncio.current_task()
        try:
            return await awaitable
        finally:
            self._task = None

    def cancel(self) -> None:
        """Cancel what runs, if anything does. From any thread."""
        task = self._task
        if task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """End the loop and what its coroutines left running."""
        runner, self._runner = self._runner, None
        if runner is not None:
            _outside_of_loops(runner.close)


def _outside_of_loops(call: Callable[[], Any]) -> Any:
    """Return what *call* gives; it is made in another thread if a loop runs in this one, which allows no second."""
    import asyncio  # noqa: PLC0415

    try:
        asyncio.get_running_loop()
    except RuntimeError:
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
