"""Hold back tasks that share something scarce.

Knows named limits. Does not know what is limited, or why an id is ready.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Limits:
    """How many tasks may use each named limit at once. Called under the run's lock."""

    __slots__ = ("_free", "_held", "_queues", "_uses")

    def __init__(self, uses: Mapping[int, str], limits: Mapping[str, int]) -> None:
        self._uses = uses
        self._free = dict(limits)
        self._queues: dict[str, deque[int]] = {name: deque() for name in limits}
        self._held: set[int] = set()

    def admit(self, ready: Iterable[int]) -> list[int]:
        """Return those of *ready* that may start; the others wait for a place."""
        admitted = []
        for i in ready:
            name = self._uses.get(i)
            if name is None or self._free[name]:
                if name is not None:
                    self._free[name] -= 1
                    self._held.add(i)
                admitted.append(i)
            else:
                self._queues[name].append(i)
        return admitted

    def release(self, i: int) -> list[int]:
        """Give back the place of *i*, if it has one; return who gets it."""
        if i not in self._held:
            return []
        self._held.discard(i)
        name = self._uses[i]
        self._free[name] += 1
        return self.admit([self._queues[name].popleft()]) if self._queues[name] else []

    def withdraw(self) -> list[int]:
        """Take back all that wait for a place."""
        waiting = [i for queue in self._queues.values() for i in queue]
        for queue in self._queues.values():
            queue.clear()
        return waiting
