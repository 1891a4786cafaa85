"""Run what tasks have left to be done if their run does not end well.

Knows cleanup handlers. Does not know runs.
"""

from __future__ import annotations

import threading

from ..exceptions import shown
from ..hooks import log_broken_hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Cleanup:
    """The cleanup handlers of one run.

    Attributes:
        is_running: Whether a handler runs right now.
    """

    __slots__ = ("_handlers", "is_running")

    def __init__(self) -> None:
        self._handlers: list[Callable[[], object]] = []
        self.is_running = False

    def add(self, handler: Callable[[], object]) -> None:
        """Have *handler* run before those that were added earlier."""
        self._handlers.append(handler)

    def run(self, is_urgent: Callable[[], bool]) -> None:
        """Run all handlers, last added first; one that raises is logged, unless *is_urgent* says to leave at once."""
        while self._handlers:
            handler = self._handlers.pop()
            self.is_running = True
            try:
                answer = handler()
                if hasattr(answer, "__await__"):
                    _run_awaitable(answer)
            except BaseException:
                if is_urgent():
                    raise
                log_broken_hook(f"cleanup handler {shown(handler)}", "The other handlers run all the same.")
            finally:
                self.is_running = False


def _run_awaitable(awaitable: Any) -> None:
    """Run *awaitable* to its end on an event loop of its own."""
    import asyncio  # noqa: PLC0415 - costs 29 ms

    async def wait() -> None:
        await awaitable

    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(wait())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failures.append(error)

    # On a thread of its own, because the caller may be inside of a running loop.
    thread = threading.Thread(target=run, name="flowkit-cleanup", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
