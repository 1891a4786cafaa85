"""What every test leaves behind: nothing."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import flowkit
from flowkit import Task

_CHECKOUT = Path(flowkit.__file__).parent.parent
_FDS = "/proc/self/fd"
_PATIENCE = 1.0
"""Seconds that a thread gets to end after its test: one that was let go a moment ago is no leak."""


def pytest_collection_finish():
    """Keep what was imported and collected out of later garbage collections, of which there is one after many tests."""
    gc.collect()
    gc.freeze()


def _flowkit_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("flowkit-")}


def _open_fds():
    return set(os.listdir(_FDS)) if os.path.isdir(_FDS) else set()


@pytest.fixture
def may_abandon():
    """Ask for it in a test whose abandoned threads outlive it."""


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request):
    """Fail a test that leaves threads or file descriptors behind; forget the tasks that it made."""
    threads, fds = _flowkit_threads(), _open_fds()
    yield
    Task.clear_registry()
    if "may_abandon" not in request.fixturenames:
        deadline = time.monotonic() + _PATIENCE
        for thread in _flowkit_threads() - threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = sorted(thread.name for thread in _flowkit_threads() - threads)
        assert not left, f"threads left behind: {left}"
    processes = sys.modules.get("multiprocessing")
    children = processes.active_children() if processes is not None else []
    assert not children, f"processes left behind: {children}"
    if _open_fds() - fds - _of_servers():
        gc.collect()  # what only a reference cycle holds open is no leak
        left = {fd: _target(fd) for fd in sorted(_open_fds() - fds - _of_servers())}
        assert not left, f"file descriptors left open: {left}"


def _of_servers():
    """Return the descriptors of the fork server and the resource tracker, which stay once they were needed."""
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    return {str(getattr(server, "_forkserver_alive_fd", None)), str(getattr(tracker, "_fd", None))}


def _target(fd):
    try:
        return os.readlink(f"{_FDS}/{fd}")
    except OSError:  # closed since it was listed
        return "closed"


class Script:
    """A process of its own that runs Python code. After *limit* seconds it ends with all stacks on its stderr.

    Attributes:
        returncode: How it ended; minus the number of the signal that did it.
        out: What it printed after the lines that were waited for.
        err: What it wrote to stderr.
        seconds: From the latest interrupt, or the start, to its end.
    """

    def __init__(self, code, limit=10):
        head = (
            "import faulthandler, signal\n"
            f"faulthandler.dump_traceback_later({limit}, exit=True)\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits SIG_IGN
        )
        self._limit = limit + 5
        self._process = subprocess.Popen(
            [sys.executable, "-c", head + textwrap.dedent(code)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(_CHECKOUT), "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        self._since = time.monotonic()

    def wait_for(self, line):
        """Read its next line, which must be *line*."""
        read = self._process.stdout.readline().rstrip("\n")
        if read != line:
            self.close()
            pytest.fail(f"the script printed {read!r} instead of {line!r}:\n{self.err}")

    def interrupt(self):
        """Send it a Ctrl-C."""
        self._since = time.monotonic()
        self._process.send_signal(signal.SIGINT)

    def finish(self):
        """Wait for its end and return it."""
        self.out, self.err = self._process.communicate(timeout=self._limit)
        self.seconds = time.monotonic() - self._since
        self.returncode = self._process.returncode
        return self

    def close(self):
        """End it and its children if they still run, and close its pipes."""
        if not self._process.stdout.closed:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
            self.finish()


@pytest.fixture
def script():
    """Return a function that starts a :class:`Script`; none outlives the test."""
    started = []

    def start(code, **options):
        started.append(Script(code, **options))
        return started[-1]

    yield start
    for running in started:
        running.close()
