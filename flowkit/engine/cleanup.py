"""Run what tasks have left to be done if their run does not end well.

Knows cleanup handlers. Does not know runs.
"""

from __future__ import annotations

from ..exceptions import shown
from ..hooks import log_broken_hook
from .loops import PrivateLoop

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
        loop = PrivateLoop()
        while self._handlers:
            handler = self._handlers.pop()
            self.is_running = True
            try:
                answer: Any = handler()
                if hasattr(answer, "__await__"):
                    loop.run(answer)
            except BaseException:
                if is_urgent():
                    raise
                log_broken_hook(f"cleanup handler {shown(handler)}", "The other handlers run all the same.")
            finally:
                self.is_running = False
        loop.close()
