"""Send plain data and blocks of bytes through a pipe.

Knows connections of multiprocessing. Does not know what the data mean.

A frame is a head (plain data, by marshal: both ends are the same Python) and parts. A small frame is written in one go.
The parts of a large one follow one by one, so that no large block is put together or copied to be sent, and each
arrives in the memory in which it is used. Where a connection is a file, it is read and written as one: a frame costs
one call of the system at each end, where ``Connection`` makes two and several of Python.
"""

from __future__ import annotations

import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from typing import Any

    Part = bytes | bytearray | memoryview

_LARGEST_WRITE = 32_768
"""Bytes of parts up to which a frame is written in one go."""
_READ = 65_536
_IS_FILE = os.name == "posix"


class Channel:
    """One end of a pipe for frames, and for single bytes that are only counted.

    Args:
        connection: The end of the pipe; this object owns it from now on.
    """

    __slots__ = ("_number", "_rest", "connection")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._number = connection.fileno()
        self._rest = b""
        """What was read of the frames to come."""

    def send(self, head: Any, parts: Sequence[Part] = ()) -> None:
        """Send one frame.

        Raises:
            OSError: The other end is gone.
        """
        sizes = [len(part) for part in parts]
        is_small = sum(sizes) <= _LARGEST_WRITE
        start = marshal.dumps((is_small, sizes, head))
        size = len(start).to_bytes(4, "little")
        if is_small:
            self._write(b"".join([size, start, *parts]))
            return
        self._write(size + start)
        for part in parts:
            self._write(part)

    def receive(self, wait: Callable[[], object]) -> tuple[Any, list[Part]]:
        """Return the head and the parts of the next frame.

        Args:
            wait: Called before each read; it returns when there is something, and raises EOFError if nothing can come.

        Raises:
            EOFError, OSError: The other end is gone.
        """
        data = self._read_up_to(4, wait)
        end = 4 + int.from_bytes(data[:4], "little")
        if len(data) < end:
            data = self._read_up_to(end, wait)
        is_small, sizes, head = marshal.loads(data[4:end])  # noqa: S302 - from our own process
        if is_small:
            total = end + sum(sizes)
            if len(data) < total:
                data = self._read_up_to(total, wait)
            view = memoryview(data)
            parts: list[Part] = []
            for size in sizes:
                parts.append(view[end : end + size])
                end += size
            self._rest = data[end:]
            return head, parts
        self._rest = data[end:]
        return head, [self._read_block(size, wait) for size in sizes]

    @property
    def has_rest(self) -> bool:
        """Whether something of the next frame was read already."""
        return bool(self._rest)

    def mark(self) -> None:
        """Send one byte that is only counted."""
        self._write(b".")

    def count_marks(self) -> int:
        """Return how many bytes of :meth:`mark` have come since the last look."""
        count = 0
        try:
            while self.connection.poll(0):
                count += len(self._read())
        except (EOFError, OSError):
            return count
        return count

    def close(self) -> None:
        """Close this end; what is sent then is an OSError, and goes to no file that gets the same number."""
        self._number = -1
        self.connection.close()

    def _read_up_to(self, size: int, wait: Callable[[], object]) -> bytes:
        """Return what comes next, at least *size* bytes."""
        data = self._rest
        while len(data) < size:
            wait()
            data += self._read()
        self._rest = data
        return data

    def _read_block(self, size: int, wait: Callable[[], object]) -> bytearray:
        block = bytearray(size)
        done = min(size, len(self._rest))
        block[:done] = self._rest[:done]
        self._rest = self._rest[done:]
        view = memoryview(block)
        while done < size:
            wait()
            if _IS_FILE:
                count = os.readv(self._number, [view[done:]])
                if not count:
                    raise EOFError
            else:
                data = self._read()
                count = len(data)
                view[done : done + count] = data
            done += count
        return block

    def _read(self) -> bytes:
        if not _IS_FILE:
            return self.connection.recv_bytes()
        data = os.read(self._number, _READ)
        if not data:
            raise EOFError
        return data

    def _write(self, data: Part) -> None:
        if not _IS_FILE:
            self.connection.send_bytes(data)
            return
        done = os.write(self._number, data)
        if done < len(data):
            view = memoryview(data)
            while done < len(data):
                done += os.write(self._number, view[done:])
