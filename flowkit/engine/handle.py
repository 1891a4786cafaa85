"""A run in the background.

Knows a run and the thread that controls it. Does not know how the run was made.
"""

from __future__ import annotations

import threading

from ..exceptions import FlowkitError
from ..retry import check_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..results import RunResult
    from .runner import Run


class RunHandle:
    """A run that goes on in the background; ``dag.start()`` gives it.

    Attributes:
        run_id: The run.
    """

    __slots__ = ("_done", "_error", "_on_done", "_raises_on_failure", "_run", "_thread")

    def __init__(self, run: Run, *, raises_on_failure: bool, on_done: Callable[[], object] | None = None) -> None:
        self._run = run
        self._raises_on_failure = raises_on_failure
        self._on_done = on_done
        self._error: BaseException | None = None
        self._done = threading.Event()
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
        return self._run.result(raise_on_failure=self._raises_on_failure)

    def snapshot(self) -> RunResult:
        """Return how the run stands now: what has succeeded so far, and the state of every task."""
        return self._run.snapshot()

    def _control(self) -> None:
        try:
            self._run.execute()
        except BaseException as error:  # noqa: BLE001 - result() raises it, in the thread that asks
            self._error = error
        finally:
            self._done.set()
            if self._on_done is not None:
                self._on_done()

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id} of {self._run.record.dag_name!r} {'done' if self.done() else 'running'}>"
