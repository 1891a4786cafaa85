"""Send plain data and blocks of bytes through a pipe.

Knows connections of multiprocessing. Does not know what the data mean.

A frame is a head (plain data, by marshal: both ends are the same Python) and parts. Small frames are one message. The
parts of a large one follow as messages of their own, so that no large block is put together or copied to be sent, and
each arrives in the memory in which it is used.
"""

from __future__ import annotations

import marshal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from typing import Any

    Part = bytes | bytearray | memoryview

_LARGEST_MESSAGE = 32_768
"""Bytes up to which a frame is one message."""


def send(connection: Connection, head: Any, parts: Sequence[Part] = ()) -> None:
    """Send one frame.

    Raises:
        OSError: The other end is gone.
    """
    sizes = [len(part) for part in parts]
    is_small = sum(sizes) <= _LARGEST_MESSAGE
    start = marshal.dumps((is_small, sizes, head))
    if is_small:
        connection.send_bytes(b"".join([len(start).to_bytes(4, "little"), start, *parts]))
        return
    connection.send_bytes(len(start).to_bytes(4, "little") + start)
    for part in parts:
        connection.send_bytes(part)


def receive(connection: Connection, wait: Callable[[], object]) -> tuple[Any, list[Part]]:
    """Return the head and the parts of the next frame.

    Args:
        connection: Where it comes from.
        wait: Called before each message; it returns when there is one, and raises EOFError if none can come.

    Raises:
        EOFError, OSError: The other end is gone.
    """
    wait()
    message = connection.recv_bytes()
    end = 4 + int.from_bytes(message[:4], "little")
    is_small, sizes, head = marshal.loads(message[4:end])  # noqa: S302 - from our own process
    parts: list[Part] = []
    if is_small:
        view = memoryview(message)
        for size in sizes:
            parts.append(view[end : end + size])
            end += size
        return head, parts
    for size in sizes:
        wait()
        block = bytearray(size)
        connection.recv_bytes_into(block)
        parts.append(block)
    return head, parts
