"""Turn Ctrl-C into a call while a run goes on.

Knows SIGINT. Does not know runs.

Python's own handler raises KeyboardInterrupt wherever the main thread happens to be, which may be between taking a lock
and noting that it was taken. So while a run waits in the main thread, the handler only tells the run.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Interrupts:
    """Within the ``with`` block Ctrl-C calls *tell*.

    Nothing is installed off the main thread, or where the application has a handler of its own.
    """

    __slots__ = ("_is_installed", "_tell")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._is_installed = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        import signal  # noqa: PLC0415 - costs 2 ms, and is no part of defining tasks

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._is_installed = True
            signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_: object) -> None:
        if self._is_installed:
            import signal  # noqa: PLC0415

            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._is_installed = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._tell()
