"""What every test leaves behind: nothing."""

import gc
import os
import threading
import time

import pytest

from flowkit import Task

_FDS = "/proc/self/fd"
_PATIENCE = 1.0
"""Seconds that a thread gets to end after its test: one that was let go a moment ago is no leak."""


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
    if _open_fds() - fds:
        gc.collect()  # what only a reference cycle holds open is no leak
        left = {fd: _target(fd) for fd in sorted(_open_fds() - fds)}
        assert not left, f"file descriptors left open: {left}"


def _target(fd):
    try:
        return os.readlink(f"{_FDS}/{fd}")
    except OSError:  # closed since it was listed
        return "closed"
