"""Threads for ``asyncio.to_thread`` that keep neither a run nor the interpreter from ending.

Knows threads. Does not know what they do. The executor that asyncio would make itself has threads that the interpreter
waits for at its end (gh-111358), so a single call that hangs would hang the program.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOST = 32


class DaemonExecutor(ThreadPoolExecutor):
    """Up to 32 daemon threads. It is a ThreadPoolExecutor by name alone, because asyncio asks for one."""

    def __init__(self) -> None:
        super().__init__(1)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads_left = _MOST
        self._idle = 0
        self._busy = 0
        self._changing = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have *fn* called soon."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                answer = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the future is for whatever it raises
                future.set_exception(error)
            else:
                future.set_result(answer)

        self._jobs.put(work)
        with self._changing:
            needs_thread = not self._idle and self._threads_left > 0
            if needs_thread:
                self._threads_left -= 1
            elif self._idle:
                self._idle -= 1
        if needs_thread:
            threading.Thread(target=self._work, name="flowkit-to-thread", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end that have nothing to do; the loop that is closed calls this."""
        self.close()

    def close(self) -> int:
        """Let the threads end; return how many are still busy and left behind."""
        for _ in range(_MOST):
            self._jobs.put(None)
        return self._busy

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._changing:
                self._busy += 1
            job()
            with self._changing:
                self._busy -= 1
                self._idle += 1
