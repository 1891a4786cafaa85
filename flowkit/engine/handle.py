"""A run in the background.

Knows a run and the thread that controls it. Does not know how the run was made.
"""

from __future__ import annotations

import threading

from ..exceptions import FlowkitError
from ..retry import check_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from ..results import RunResult
    from .runner import Run


class RunHandle:
    """A run that goes on in the background; ``dag.start()`` gives it.

    In a coroutine it can be awaited: ``result = await handle``. Cancelling what awaits it cancels the run.

    Args:
        run: What to run.
        execute: Runs it, in a thread of the handle.
        conclude: Then gives its result, or raises.

    Attributes:
        run_id: The run.
    """

    __slots__ = ("_conclude", "_done", "_error", "_execute", "_lock", "_run", "_thread", "_waiting")

    def __init__(self, run: Run, execute: Callable[[], object], conclude: Callable[[], RunResult]) -> None:
        self._run = run
        self._execute = execute
        self._conclude = conclude
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []
        """What is called when the run is over."""
        self._thread = threading.Thread(target=self._control, name="flowkit-run", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise FlowkitError(f"cannot start a thread to control the run: {error}") from error

    @property
    def run_id(self) -> str:
        return self._run.run_id

    def done(self) -> bool:
        """Return whether the run is over."""
        return self._done.is_set()

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop the run: nothing new starts, and running threads are left behind after a quarter of a second.

        Returns at once; :meth:`result` then raises RunCancelledError. Nothing happens if the run is over.
        """
        self._run.cancel(reason)

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the run and return its result.

        Args:
            timeout: The most seconds to wait, None for no limit.

        Raises:
            OptionError: *timeout* is no number of seconds.
            TimeoutError: The run is not over yet; it goes on.
            TaskExecutionError, DAGExecutionError, RunCancelledError: As ``dag.run()``.
        """
        if timeout is not None:
            check_seconds("RunHandle.result()", "timeout", timeout)
        self._run.check_process()
        if not self._done.wait(timeout):
            raise TimeoutError(f"run {self.run_id} of {self._run.record.dag_name!r} is not over after {timeout:g} s.")
        if self._error is not None:
            raise self._error
        return self._conclude()

    def __await__(self) -> Generator[Any, None, RunResult]:
        return self._wait().__await__()

    async def _wait(self) -> RunResult:
        """Do what :meth:`result` does, without blocking the event loop."""
        import asyncio  # noqa: PLC0415 - costs 29 ms, and whoever awaits has it
        from contextlib import suppress  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(done.set)

        with self._lock:
            if self._done.is_set():
                done.set()
            self._waiting.append(tell)
        try:
            await done.wait()
        except asyncio.CancelledError:
            self.cancel("what awaited it was cancelled")
            await done.wait()
            raise
        return self.result()

    def snapshot(self) -> RunResult:
        """Return how the run stands now: what has succeeded so far, and the state of every task."""
        return self._run.snapshot()

    def _control(self) -> None:
        try:
            self._execute()
        except BaseException as error:  # noqa: BLE001 - result() raises it, in the thread that asks
            self._error = error
        finally:
            with self._lock:
                self._done.set()
            for tell in self._waiting:
                tell()

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id} of {self._run.record.dag_name!r} {'done' if self.done() else 'running'}>"
