"""What the measured tasks do: nothing, sleep, or compute without the GIL.

Knows: functions of upstream values. Does not know: graphs' names, engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import pbkdf2_hmac

from .measure import Functions
from .shapes import Graph


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
