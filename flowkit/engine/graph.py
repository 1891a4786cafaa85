"""A frozen directed acyclic graph over the integers.

Knows edges. Does not know tasks or functions: an id is a position in somebody's list.

Ids are given out in topological order, one generation after the other, so ``for i in range(n)`` is a run.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_CYCLE_BUDGET = 2_000_000
"""How many edges the search for a shortest cycle looks at before it is content with the best one so far."""


class CycleError(Exception):
    """The edges form a cycle; ``args[0]`` lists it as positions, the first again at the end."""


class Graph:
    """Which ids depend on which.

    Attributes:
        upstream: The ids that each id depends on, in wiring order.
        downstream: The ids that depend on each id, ascending.
        starts: The first id of each topological generation, and the number of ids at the end.
    """

    __slots__ = ("downstream", "starts", "upstream")

    def __init__(
        self, upstream: list[tuple[int, ...]], downstream: list[tuple[int, ...]], starts: list[int]
    ) -> None:
        self.upstream = upstream
        self.downstream = downstream
        self.starts = starts

    def __len__(self) -> int:
        return len(self.upstream)

    def generations(self) -> list[range]:
        """Return the ids of each topological generation: all that may run when the earlier ones are done."""
        return [range(a, b) for a, b in zip(self.starts, self.starts[1:], strict=False)]


def freeze(upstream: Sequence[Sequence[int]]) -> tuple[Graph, list[int]]:
    """Order *upstream* topologically.

    Args:
        upstream: For each position, the positions it depends on, each once.

    Returns:
        The graph over new ids, and the position that each id stands for. Within a generation ids keep the order of
        the positions.

    Raises:
        CycleError: There is no such order.

    Source: A. B. Kahn, "Topological sorting of large networks", CACM 5 (1962), by generations.
    """
    after: list[Any] = [()] * len(upstream)  # a list only where there is something to list: a million weigh 56 MB
    for i, before in enumerate(upstream):
        for u in before:
            if after[u]:
                after[u].append(i)
            else:
                after[u] = [i]
    missing = [len(before) for before in upstream]
    order: list[int] = []
    starts = [0]
    generation = [i for i, count in enumerate(missing) if not count]
    while generation:
        order += generation
        starts.append(len(order))
        following = []
        for i in generation:
            for j in after[i]:
                missing[j] -= 1
                if not missing[j]:
                    following.append(j)
        following.sort()
        generation = following
    if len(order) < len(upstream):
        raise CycleError(_shortest_cycle(upstream, after))
    new = [0] * len(order)
    for i, position in enumerate(order):
        new[position] = i
    renumbered = [tuple([new[u] for u in upstream[position]]) if upstream[position] else () for position in order]
    downstream = [tuple(sorted([new[d] for d in after[position]])) if after[position] else () for position in order]
    return Graph(renumbered, downstream, starts), order


def _shortest_cycle(upstream: Sequence[Sequence[int]], downstream: Sequence[Sequence[int]]) -> list[int]:
    """Return a shortest cycle, found by a breadth-first search from every position that is on one.

    On graphs with many cycles the search stops at a budget and returns the shortest seen until then.
    """
    left = _without_ends(_without_ends(range(len(upstream)), upstream, downstream), downstream, upstream)
    best: list[int] = []
    budget = _CYCLE_BUDGET
    for start in sorted(left):
        came_from = {start: -1}
        depth = {start: 0}
        queue = deque([start])
        while queue and (not best or depth[queue[0]] + 1 < len(best) - 1):
            i = queue.popleft()
            budget -= len(downstream[i])
            if start in downstream[i]:
                best = [start]
                while i != -1:
                    best.append(i)
                    i = came_from[i]
                best.reverse()
                break
            for j in downstream[i]:
                if j in left and j not in came_from:
                    came_from[j] = i
                    depth[j] = depth[i] + 1
                    queue.append(j)
        if best and (budget < 0 or len(best) == 2):
            break
    return best


def _without_ends(
    among: Sequence[int] | set[int], before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]
) -> set[int]:
    """Return *among* without what no cycle can pass: repeatedly drop what has nothing *before* it."""
    left = set(among)
    missing = {i: sum(u in left for u in before[i]) for i in left}
    ends = [i for i, count in missing.items() if not count]
    while ends:
        i = ends.pop()
        left.discard(i)
        for j in after[i]:
            if j in left:
                missing[j] -= 1
                if not missing[j]:
                    ends.append(j)
    return left
