"""Connect tasks with edges.

Knows edges. Does not know what a task does, or who runs it.

An edge stands in two lists: the downstream of one task and the upstream of the other. The lists are the user's to
read, and even to change by hand; :func:`edges` takes the union of both sides.
"""

from __future__ import annotations

from operator import attrgetter

from .exceptions import DAGCycleError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from .task import Task

_SMALL = 16
"""Up to this length a scan is faster than a set."""


class _Version:
    """Counts changes to any wiring in the process: a frozen graph is good as long as it stands still.

    Attributes:
        number: Grows with every change.
        is_by_hand: Whether any neighbour list was ever changed other than by :func:`wire`, so that the two sides of an
            edge may differ, or one may list it twice.
    """

    __slots__ = ("is_by_hand", "number")

    def __init__(self) -> None:
        self.number = 0
        self.is_by_hand = False


version = _Version()


class Neighbours(list["Task[..., Any]"]):
    """The tasks on one side of a task: a list in wiring order, whose ``in`` takes the same time at any length."""

    __slots__ = ("_members",)
    _members: set[Task[..., Any]] | None
    """The same tasks as a set; not there before somebody asked a long list."""

    def __contains__(self, task: object) -> bool:
        if len(self) <= _SMALL:
            return list.__contains__(self, task)
        members = getattr(self, "_members", None)
        if members is None:
            members = self._members = set(self)
        return task in members

    def add(self, task: Task[..., Any]) -> None:
        """Add *task*, which is not in here yet, at the end; the caller does the same on the other side."""
        list.append(self, task)
        version.number += 1
        if len(self) > _SMALL:
            members = getattr(self, "_members", None)
            if members is not None:
                members.add(task)

    def replace(self, old: Task[..., Any], new: Task[..., Any]) -> None:
        """Put *new* where *old* stands."""
        self[self.index(old)] = new

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _noting_change(name: str) -> Callable[..., Any]:
    change = getattr(list, name)

    def changed(self: Neighbours, *args: Any, **kwargs: Any) -> Any:
        result = change(self, *args, **kwargs)
        self._members = None
        version.number += 1
        version.is_by_hand = True
        return result

    changed.__name__ = name
    changed.__doc__ = change.__doc__
    return changed


_CHANGES = "append extend insert remove pop clear __setitem__ __delitem__ __iadd__ __imul__"
for _name in _CHANGES.split():
    setattr(Neighbours, _name, _noting_change(_name))


def wire(upstream: Task[..., Any], downstream: Task[..., Any]) -> bool:
    """Make *downstream* depend on *upstream*; return whether the edge is new.

    Raises:
        DAGCycleError: They are the same task.
    """
    if upstream is downstream:
        raise DAGCycleError([upstream.name, upstream.name])
    before, after = downstream.upstream, upstream.downstream
    if (upstream in before) if len(before) <= len(after) else (downstream in after):
        return False
    after.add(downstream)
    before.add(upstream)
    return True


_NOTHING: list[int] = []
"""Stands for every task without upstream, and is never changed."""

# Below, neighbour lists are read without making the empty ones: for a million tasks they would weigh 150 MB.


def is_wired(task: Task[..., Any]) -> bool:
    """Return whether *task* has any neighbour."""
    return bool(task._upstream or task._downstream)


def connected(seeds: Iterable[Task[..., Any]], *, with_downstream: bool) -> list[Task[..., Any]]:
    """Return *seeds* and all they depend on, in definition order.

    Args:
        seeds: Where to start. A task that was defined again stands for its successor.
        with_downstream: Whether what depends on them (and all that depends on in turn) comes along too.
    """
    found = {task.latest(): None for task in seeds}
    frontier = list(found)
    while frontier:
        near: list[Task[..., Any]] = []
        for task in frontier:
            if task._upstream:
                near += task._upstream
            if with_downstream and task._downstream:
                near += task._downstream
        frontier = [task for task in dict.fromkeys(near) if task not in found]
        for task in frontier:
            if not hasattr(task, "_upstream"):
                kind = type(task).__name__
                raise TypeError(f"a neighbour list holds {shown(task)}: it must hold tasks, not {kind}.")
        found.update(dict.fromkeys(frontier))
    return sorted(found, key=attrgetter("serial"))


def edges(tasks: Sequence[Task[..., Any]]) -> list[list[int]]:
    """Return for each of *tasks* which others it depends on, as positions in *tasks*, in wiring order.

    An edge counts if either of its two lists has it. Edges to tasks that are not among *tasks* are left out.
    """
    position = {task: i for i, task in enumerate(tasks)}

    def before(task: Task[..., Any]) -> list[int]:
        return [position[u] for u in task._upstream or () if u in position]

    if not version.is_by_hand:
        return [before(task) if task._upstream else _NOTHING for task in tasks]
    upstream = [list(dict.fromkeys(before(task))) for task in tasks]
    for i, task in enumerate(tasks):
        for after in task._downstream or ():
            if after in position and task not in after.upstream:
                upstream[position[after]].append(i)
    return [list(dict.fromkeys(ids)) for ids in upstream]
