"""Tell the time, and keep what is to happen later.

Knows seconds. Does not know what is timed. A run gets its clock as an argument, so that tests can pass a virtual one.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import threading
import time
from queue import Empty, SimpleQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, Protocol

    class Clock(Protocol):
        """What a run asks of its clock."""

        def now(self) -> float:
            """Return the reading in seconds; never 0, never going back."""

        def epoch(self) -> float:
            """Return what the reading 0 stands for, in seconds since 1970."""

        def sleep(self, seconds: float) -> None:
            """Block the calling thread."""

        def wait(self, wake_ups: SimpleQueue[None], deadline: float | None, is_quiet: IsQuiet) -> None:
            """Block until there is a wake-up or *deadline* has passed, and take that wake-up.

            *is_quiet* says whether nothing goes on but workers that sleep on this clock; then a virtual one moves on.
            """

    IsQuiet = Callable[[Collection[object]], bool]


_LONGEST_WAIT = 86_400.0
"""Waits are cut to a day, which every platform's clock can hold; the caller looks again and goes on waiting."""
_BETWEEN_SIGNALS = 0.1
"""In the main thread they are cut to this: a Ctrl-C that another thread received, or one on Windows, ends no wait."""


class RealClock:
    """The monotonic clock of the machine: stepping the wall clock does not touch it."""

    __slots__ = ()

    now = staticmethod(time.perf_counter)

    def epoch(self) -> float:
        """Return what the reading 0 stands for, in seconds since 1970."""
        return time.time() - time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)

    def wait(self, wake_ups: SimpleQueue[None], deadline: float | None, is_quiet: IsQuiet) -> None:
        """Block until there is a wake-up or *deadline* has passed, and take that wake-up."""
        longest = _BETWEEN_SIGNALS if threading.current_thread() is threading.main_thread() else _LONGEST_WAIT
        left = longest if deadline is None else min(deadline - self.now(), longest)
        if left > 0:
            try:
                wake_ups.get(timeout=left)
            except Empty:
                return


class Timers:
    """Actions to be done at their deadlines, earliest first.

    An action that has become pointless stays in here and must see so itself when it is called.

    Attributes:
        heap: The entries; empty if nothing is to happen.
    """

    __slots__ = ("_number", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = itertools.count()

    def add(self, deadline: float, action: Callable[..., None], *args: Any) -> bool:
        """Have *action* called with *args* at *deadline*; return whether it is the earliest now."""
        entry = (deadline, next(self._number), action, args)
        heapq.heappush(self.heap, entry)
        return self.heap[0] is entry

    def next_deadline(self) -> float | None:
        """Return the earliest deadline, None if there is nothing to do."""
        return self.heap[0][0] if self.heap else None

    def pop_due(self, now: float) -> Callable[[], None] | None:
        """Take out and return the earliest action if its deadline is not after *now*, else None."""
        if not self.heap or self.heap[0][0] > now:
            return None
        _, _, action, args = heapq.heappop(self.heap)
        return functools.partial(action, *args)
