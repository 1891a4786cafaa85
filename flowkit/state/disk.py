"""Change files so that a crash at any instant leaves the old content or the new one.

Knows files. Does not know what is in them. Everything that writes goes through the six functions of :class:`Disk`, so
that a test can fail each of them, or record what would be on the disk after a power cut.

The protocol of :func:`replace_file`: a temporary file in the same folder, written and synced; renamed over the old one;
the folder synced. Without the first sync the new name can hold nothing after a power cut, without the second one the
old content can come back.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ..exceptions import StateWriteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_MODE = 0o600
_NO_INHERIT = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Disk:
    """What is done to files. Each function is one system call."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | _NO_INHERIT, _MODE)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def fsync_dir(self, path: str) -> None:
        if os.name == "nt":  # which cannot open a folder
            return
        fd = os.open(path, os.O_RDONLY | _NO_INHERIT)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def attempt(path: str, during: str, action: Callable[..., T], *args: object) -> T:
    """Return ``action(*args)``.

    Raises:
        StateWriteError: The operating system refused it; *during* and *path* say what.
    """
    try:
        return action(*args)
    except OSError as error:
        raise StateWriteError(path, error.errno, during, error.strerror or str(error)) from error


def make_folder(path: str) -> None:
    """Make the folder that *path* is in, and those above it."""
    attempt(path, "make the folder of", lambda: os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True))


def write_all(disk: Disk, path: str, fd: int, data: bytes) -> None:
    """Write all of *data* to *fd*, the file *path*, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        count = attempt(path, "write", disk.write, fd, rest)
        if not count:
            raise StateWriteError(path, None, "write", "the disk took nothing")
        rest = rest[count:]


def replace_file(disk: Disk, path: str, data: bytes) -> None:
    """Make *data* the content of *path*, which nobody else writes to at the same time; who may read it stays.

    Raises:
        StateWriteError: It could not; the old content is untouched and no other file is left.
    """
    temporary = f"{path}.{os.urandom(6).hex()}.tmp"
    fd = attempt(path, "write", disk.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            write_all(disk, path, fd, data)
            with suppress(OSError):  # there is no old one, or who may read it is not ours to say
                os.fchmod(fd, stat.S_IMODE(os.stat(path).st_mode))
            attempt(path, "sync", disk.fsync, fd)
        finally:
            os.close(fd)
        attempt(path, "replace", disk.replace, temporary, path)
    except BaseException:
        remove(disk, temporary)
        raise
    attempt(path, "sync the folder of", disk.fsync_dir, os.path.dirname(path))


def remove(disk: Disk, path: str) -> None:
    """Unlink *path* if it is there and can be; for files that nobody needs any more."""
    try:
        disk.unlink(path)
    except OSError:  # it is gone, or stays as a file that is ignored
        return
