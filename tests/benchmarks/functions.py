"""What the measured tasks do: nothing, sleep, or compute with and without the GIL; as functions and coroutines.

Knows: functions of upstream values. Does not know: graphs' names, engines.
"""

from __future__ import annotations

import os
import time
from hashlib import pbkdf2_hmac
from pickle import PickleBuffer
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every process that a row starts imports this module
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .measure import Functions
    from .shapes import Graph

MINUTE = 60


def _take_nothing() -> int:
    return 0


def _take_one(a: int) -> int:
    return 1


def _take_two(a: int, b: int) -> int:
    return 2


def _take_three(a: int, b: int, c: int) -> int:
    return 3


def _take_any(*values: int) -> int:
    return len(values)


_BY_COUNT = (_take_nothing, _take_one, _take_two, _take_three)


def noops(graph: Graph) -> Functions:
    """Return for each task a function that takes its upstream values and returns how many they are."""
    return [_BY_COUNT[len(upstream)] if len(upstream) < len(_BY_COUNT) else _take_any for upstream in graph]


def sleeper(seconds: float) -> Callable[..., int]:
    """Return a function that takes anything and sleeps; for 0 seconds it does not call sleep at all."""

    def nap(*values: object) -> int:
        if seconds:
            time.sleep(seconds)
        return 0

    return nap


def kernel(iterations: int) -> Callable[..., int]:
    """Return a function that takes anything and computes *iterations* rounds of SHA-256 without the GIL."""

    def derive(*values: object) -> int:
        pbkdf2_hmac("sha256", b"flowkit", b"salt", iterations)
        return 0

    return derive


# ---------------------------------------------------------------- for processes: found by their names


def nothing() -> int:
    """Take nothing and return 0."""
    return 0


def echo(value: object) -> object:
    """Return what was given."""
    return value


def count_down(steps: int) -> int:
    """Compute so many steps in pure Python, without letting go of the GIL."""
    while steps:
        steps -= 1
    return steps


class Block:
    """Bytes that pickle hands over apart from the rest, as it does with arrays."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (PickleBuffer(self.content) if protocol >= 5 else bytes(self.content),)


def announce_and_sleep() -> None:
    """Write a line to stdout, from whichever process this is, and sleep for a minute."""
    os.write(1, b"asleep\n")
    time.sleep(MINUTE)


# ---------------------------------------------------------------- coroutines


async def _await_nothing() -> int:
    return 0


async def _await_one(a: int) -> int:
    return 1


def soft_noops(graph: Graph) -> Functions:
    """Return for each task without or with one upstream task a coroutine function that returns how many there are."""
    return [(_await_nothing, _await_one)[len(upstream)] for upstream in graph]


def soft_sleeper(seconds: float) -> Callable[..., Coroutine[object, object, int]]:
    """Return a coroutine function that takes nothing and sleeps."""
    from asyncio import sleep

    async def nap() -> int:
        await sleep(seconds)
        return 0

    return nap


async def announce_and_sleep_softly() -> None:
    """Write a line to stdout, and sleep for a minute without holding a thread."""
    from asyncio import sleep

    os.write(1, b"asleep\n")
    await sleep(MINUTE)
