"""Say which tasks may start now.

Knows the graph, the trigger rules and the state of every task. Does not know functions, workers, clocks or threads:
it is called under the runner's lock and decides from what it was told.

::

    start()        ─► ids that are ready from the beginning
    finish(i, s)   ─► ids that became ready because i ended in state s
    extend(n)      n more ids, for the items of a mapped task
    retire(i, s)   the same for a caller that walks the ids in order; it asks decide() itself
    stop(...)      from now on only tasks that accept a failure start, or none at all
    decided        ids that got a final state without running; the caller empties it

Invariants: a task is ready exactly once, when all its upstream tasks are final and its rule is met. A task whose rule
is not met is final at that moment, and what is below it is judged at once, without recursion.
"""

from __future__ import annotations

from ..states import (
    ACCEPT_FAILURE,
    ALL_DONE,
    ALL_FAILED,
    ALL_SUCCESS,
    CANCELLED,
    FAILED,
    NEED_FAILURE,
    NONE_FAILED,
    ONE_FAILED,
    ONE_SUCCESS,
    PENDING,
    SKIPPED,
    SUCCEEDED,
    UPSTREAM_FAILED,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .graph import Graph

START = PENDING
"""What :meth:`Scheduler.decide` answers when the task may start."""

_BAD = frozenset({FAILED, UPSTREAM_FAILED, CANCELLED})
_FAILURES = frozenset({FAILED, UPSTREAM_FAILED})

# Each rule gets the set of final states of the upstream tasks, never empty.
_IS_MET: dict[int, Callable[[set[int]], bool]] = {
    NONE_FAILED: lambda seen: SUCCEEDED in seen and not seen & _BAD,
    ALL_SUCCESS: lambda seen: seen == {SUCCEEDED},
    ONE_SUCCESS: lambda seen: SUCCEEDED in seen,
    ALL_DONE: lambda seen: True,
    ONE_FAILED: lambda seen: bool(seen & _FAILURES),
    ALL_FAILED: lambda seen: seen <= _FAILURES,
}


class Scheduler:
    """The states of one run's tasks, and what follows from them.

    Args:
        graph: What depends on what.
        rules: The trigger rule of each id, None if all are ``none_failed``.

    Attributes:
        state: The state of each id.
        remaining: How many tasks are not final yet.
        decided: Ids that became final without running, oldest first.
        is_calm: True while whatever has its upstream done may start without a look at its rule: everything final has
            succeeded, no rule waits for a failure, and nobody has stopped the run. Anybody may set it to False.
    """

    __slots__ = (
        "_downstream", "_missing", "_rules", "_size", "_stopped", "_tainted", "_takes_none", "_upstream",
        "decided", "is_calm", "remaining", "state",
    )  # fmt: skip

    def __init__(self, graph: Graph, rules: bytes | bytearray | None) -> None:
        self._upstream = graph.upstream
        self._downstream = graph.downstream
        self._rules = rules
        self._size = len(graph)
        self._missing = list(map(len, graph.upstream))
        self.state = bytearray(len(graph))
        self.remaining = len(graph)
        self.decided: list[int] = []
        self.is_calm = not rules or not NEED_FAILURE.intersection(rules)
        self._stopped = False
        self._takes_none = False
        """After a stop: whether not even tasks that accept a failure start."""
        self._tainted = bytearray()
        """After a stop: 1 for every id below a failed task."""

    def start(self) -> list[int]:
        """Return the ids without upstream, ascending."""
        return [i for i, before in enumerate(self._upstream) if not before]

    def extend(self, count: int, rule: int) -> None:
        """Add *count* ids with trigger rule *rule*, and nothing upstream or downstream."""
        if len(self._upstream) == self._size:  # the graph has these too
            self._upstream, self._downstream = [*self._upstream], [*self._downstream]
            self._rules = self._rules and bytearray(self._rules)
        self._upstream += [()] * count
        self._downstream += [()] * count
        self._missing += [0] * count
        if isinstance(self._rules, bytearray):
            self._rules += bytes([rule]) * count
        if self._stopped:
            self._tainted += bytes(count)
        self.state += bytes(count)
        self.remaining += count

    def finish(self, i: int, state: int) -> list[int]:
        """Record that *i* ended in *state*; return what became ready, ascending but for what skips brought."""
        self.state[i] = state
        self.remaining -= 1
        if state != SUCCEEDED:
            self._note_not_good(i, state)
        ready = []
        missing = self._missing
        for j in self._downstream[i]:
            left = missing[j] - 1
            missing[j] = left
            if not left:
                if self.is_calm or self.decide(j) == START:
                    ready.append(j)
                else:
                    self._conclude(j, ready)
        return ready

    def retire(self, i: int, state: int) -> None:
        """Record that *i* ended in *state*, for a caller that walks the ids in order and asks :meth:`decide` for each.

        That caller may also write SUCCEEDED into ``state`` itself.
        """
        self.state[i] = state
        self.remaining -= 1
        if state != SUCCEEDED:
            self._note_not_good(i, state)

    def decide(self, i: int) -> int:
        """Return START if *i*, whose upstream is final, may start; else the state it ends in."""
        rule = self._rules[i] if self._rules else NONE_FAILED
        if self._takes_none:
            return UPSTREAM_FAILED if self._tainted[i] else CANCELLED
        before = self._upstream[i]
        if not before:
            return CANCELLED if self._stopped and rule not in ACCEPT_FAILURE else START
        seen = set(map(self.state.__getitem__, before))
        is_met = _IS_MET[rule](seen)
        if not self._stopped:
            if is_met:
                return START
            return UPSTREAM_FAILED if seen & _BAD else SKIPPED
        if is_met and rule in ACCEPT_FAILURE:
            return START
        if self._tainted[i]:
            return UPSTREAM_FAILED
        return CANCELLED if is_met or seen & _BAD else SKIPPED

    def stop(self, waiting: Iterable[int], *, takes_none: bool) -> list[int]:
        """Let nothing start any more but tasks that accept a failure, and not even those if *takes_none*.

        Args:
            waiting: Ids that were ready and have not started.
            takes_none: Whether tasks that accept a failure are stopped too.

        Returns:
            Which ids of *waiting* may still start, and what became ready because others are final now.
        """
        if not self._stopped:
            self._tainted = bytearray(len(self.state))
        self._stopped = True
        self._takes_none = self._takes_none or takes_none
        self.is_calm = False
        for i, state in enumerate(self.state):
            if state == FAILED:
                self._taint(i)
        ready: list[int] = []
        for i in waiting:
            if self.decide(i) == START:
                ready.append(i)
            else:
                self._conclude(i, ready)
        return ready

    def cancel_rest(self) -> None:
        """Make final whatever is not, running tasks included: the run is over."""
        for i, state in enumerate(self.state):
            if state < SUCCEEDED:
                # What nothing is missing for was running; the others never got that far.
                is_below_failure = self._missing[i] and self._tainted and self._tainted[i]
                self.state[i] = UPSTREAM_FAILED if is_below_failure else CANCELLED
                self.decided.append(i)
        self.remaining = 0

    def _conclude(self, i: int, ready: list[int]) -> None:
        """Make *i*, which may not start, final, and everything that follows from it."""
        pending = [i]
        for k in pending:  # grows while it is walked
            self.state[k] = self.decide(k)
            self.remaining -= 1
            self.is_calm = False
            self.decided.append(k)
            for j in self._downstream[k]:
                self._missing[j] -= 1
                if not self._missing[j]:
                    if self.decide(j) == START:
                        ready.append(j)
                    else:
                        pending.append(j)

    def _note_not_good(self, i: int, state: int) -> None:
        self.is_calm = False
        if state == FAILED and self._stopped:
            self._taint(i)

    def _taint(self, i: int) -> None:
        """Mark everything below *i*."""
        stack = [i]
        while stack:
            for j in self._downstream[stack.pop()]:
                if not self._tainted[j]:
                    self._tainted[j] = 1
                    stack.append(j)
