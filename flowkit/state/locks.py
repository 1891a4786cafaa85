"""Let one run at a time have something, among all processes of this machine.

Knows ``flock`` on a file beside what it guards. Does not know what that is. The operating system frees the lock with
the process that holds it, whatever ends that; the file then stays behind and is taken over by the next one.

The file goes away with an orderly release, which is safe because whoever gets a lock looks whether the file that it
has locked is still the one of that name:

1. A releases: it unlinks the file while it holds the lock.
2. B, which had opened the same file, gets the lock of a file without a name, sees that, and opens again.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime

from ..engine import forks
from ..exceptions import StateLockedError, StateWriteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TO_SAY_WHO = 0.05
"""Seconds that who has the lock gets to write down who that is."""
_FIRST_WAIT, _LONGEST_WAIT = 0.0005, 0.01
"""Seconds between two tries to get a lock, which grow."""


class FileLock:
    """The lock of *what* on the file *path*; hold it as long as the object is not released.

    Args:
        path: The lock's own file.
        what: The name of what is locked, for the error.
        guarded: The file that it guards, for the error.
        timeout: Seconds to wait for it.

    Raises:
        StateLockedError: Somebody else has it.
        StateWriteError: The file cannot be made.
    """

    def __init__(self, path: str, what: str, guarded: str, timeout: float) -> None:
        self._path = path
        deadline = time.monotonic() + timeout
        told_by = time.monotonic() + _TO_SAY_WHO
        wait = _FIRST_WAIT
        told = None
        while True:
            fd = _open(path)
            if _lock(fd):
                if _is_named(fd, path):
                    break
                os.close(fd)
                continue
            owner = _read_owner(fd)
            os.close(fd)
            now = time.monotonic()
            # Who has had the lock for a moment only has not said so yet, and the file may name one that was killed.
            is_sure = (owner == told and owner[0]) or now >= told_by
            if now >= deadline and is_sure:
                raise StateLockedError(what, guarded, *owner)
            told = owner
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        self._fd: int | None = fd
        _write_owner(fd)
        forks.watch(self)

    def release(self) -> None:
        """Let the next one have it."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            os.unlink(self._path)
        except OSError:  # somebody has removed it, or it cannot be: an unlocked file means nothing
            pass
        finally:
            os.close(fd)

    def close_in_child(self) -> None:
        """Let go of the file in a process that was forked off, or that would hold the lock as long as it lives."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise StateWriteError(path, error.errno, "lock", error.strerror or str(error)) from error


def _lock(fd: int) -> bool:
    """Lock *fd* and return True, or return False at once if somebody else has it."""
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt  # noqa: PLC0415 - on Windows only

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True


def _is_named(fd: int, path: str) -> bool:
    try:
        named = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _write_owner(fd: int) -> None:
    """Say in the file who has the lock, for whoever does not get it; what matters is the lock alone."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    try:
        os.ftruncate(fd, 0)
        os.write(fd, json.dumps(owner).encode())
    except OSError:  # a full disk
        return


def _read_owner(fd: int) -> tuple[int, str, str]:
    """Return pid, host and since when; zeros if the owner has not written them yet."""
    try:
        owner = json.loads(os.pread(fd, 4096, 0) if hasattr(os, "pread") else os.read(fd, 4096))
        return int(owner["pid"]), str(owner["host"]), str(owner["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, "", ""
