"""Remember which tasks each module has made, so that a bare ``DAG()`` finds them.

Knows where a task was made. Does not know wiring, or what a task is.

Three rooms, by who made the task:

============================  ==========================  =====================================================
made by                       held                        found by
============================  ==========================  =====================================================
a ``with DAG(...)`` block     by the block                that DAG only
a module's body               until it is redefined       a bare DAG of the same module
a function                    weakly                      a bare DAG of the same module, from the same thread
============================  ==========================  =====================================================
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from contextvars import ContextVar
from weakref import WeakSet, ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any

_OPTIMIZED = 0x1
"""CO_OPTIMIZED: set for the code of functions, not for that of modules and class bodies."""
_TRANSPARENT = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})

serials = itertools.count(1)
"""Definition order, over all tasks of the process."""

block: ContextVar[dict[Any, None] | None] = ContextVar("flowkit_block", default=None)
"""The tasks collected by the innermost ``with DAG(...)`` block that is open here."""

_of_modules: dict[str, dict[Any, None]] = {}


class _Room:
    """The tasks that functions of one module have made in one thread; it goes when the thread does."""

    __slots__ = ("__weakref__", "module", "tasks")

    def __init__(self, module: str) -> None:
        self.module = module
        self.tasks: set[ref[Any]] = set()


_mine = threading.local()
"""``rooms``: the calling thread's rooms by module."""
_rooms: WeakSet[_Room] = WeakSet()
_rooms_lock = threading.Lock()


class Site:
    """Where a task was made.

    Attributes:
        module: ``__name__`` of the module whose code made it.
        is_body: Whether the module's body made it, rather than a function.
    """

    __slots__ = ("code", "instruction", "is_body", "module")

    def __init__(self, frame: FrameType) -> None:
        self.code: CodeType = frame.f_code
        self.instruction = frame.f_lasti
        self.module: str = frame.f_globals.get("__name__", "?")
        while frame.f_back is not None and (frame.f_code.co_name in _TRANSPARENT or _is_class_body(frame)):
            frame = frame.f_back
        self.is_body = not frame.f_code.co_flags & _OPTIMIZED

    def __str__(self) -> str:
        lines = (start for start, *_ in itertools.islice(self.code.co_positions(), self.instruction // 2, None))
        return f"{self.code.co_filename}:{next(lines, None) or self.code.co_firstlineno}"


def _is_class_body(frame: FrameType) -> bool:
    return not frame.f_code.co_flags & _OPTIMIZED and frame.f_code.co_name.isidentifier()  # not <module>, <cell ...>


_latest = Site(sys._getframe())


def site_of(frame: FrameType) -> Site:
    """Return where *frame* is now. Tasks that are made in a loop share one Site."""
    global _latest  # noqa: PLW0603 - a cache of one; losing a race only makes another Site
    site = _latest
    if (
        site.code is not frame.f_code
        or site.instruction != frame.f_lasti
        or site.module != frame.f_globals.get("__name__", "?")
    ):
        site = _latest = Site(frame)
    return site


def add(task: Any, site: Site) -> None:
    """Remember *task* in the room that *site* says."""
    collected = block.get()
    if collected is not None:
        collected[task] = None
    elif site.is_body:
        _of_modules.setdefault(site.module, {})[task] = None
    else:
        tasks = _room_of(site.module).tasks
        tasks.add(ref(task, tasks.discard))


def _room_of(module: str) -> _Room:
    try:
        return _mine.rooms[module]  # type: ignore[no-any-return]
    except (AttributeError, KeyError):
        room = _Room(module)
        with _rooms_lock:
            _rooms.add(room)
        if not hasattr(_mine, "rooms"):
            _mine.rooms = {}
        _mine.rooms[module] = room
        return room


def is_of_module(task: Any, site: Site) -> bool:
    """Return whether *task*, made at *site*, is one that a module's body has made outside of any block."""
    return task in _of_modules.get(site.module, ())


def has_tasks_of_functions(module: str) -> bool:
    """Return whether functions of *module* have made tasks, in any thread, that somebody still holds."""
    with _rooms_lock:
        return any(room.module == module and room.tasks for room in _rooms)


def discard(task: Any, site: Site) -> None:
    """Forget *task*, made at *site*; nothing happens if it is not known."""
    _of_modules.get(site.module, {}).pop(task, None)


def made_by(module: str) -> list[Any]:
    """Return the tasks that *module* has made, as far as this thread may find them, in no order.

    Tasks of functions count as long as somebody holds them. Wired tasks hold each other in a circle, which only the
    garbage collector can undo, so it is asked first: what is found does not depend on when it last ran.
    """
    tasks = list(_of_modules.get(module, ()))
    of_functions = _room_of(module).tasks
    if of_functions:
        gc.collect()
        tasks += [task for weak in list(of_functions) if (task := weak()) is not None]
    return tasks


def clear() -> None:
    """Forget every task of every module."""
    _of_modules.clear()
    with _rooms_lock:
        for room in _rooms:
            room.tasks.clear()
