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
from weakref import ref

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
_of_functions: dict[tuple[str, int], set[ref[Any]]] = {}


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
        while frame.f_code.co_name in _TRANSPARENT and frame.f_back is not None:
            frame = frame.f_back
        self.is_body = not frame.f_code.co_flags & _OPTIMIZED

    def __str__(self) -> str:
        lines = (start for start, *_ in itertools.islice(self.code.co_positions(), self.instruction // 2, None))
        return f"{self.code.co_filename}:{next(lines, None) or self.code.co_firstlineno}"


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
        room = _of_functions.setdefault((site.module, threading.get_ident()), set())
        room.add(ref(task, room.discard))


def discard(task: Any, site: Site) -> None:
    """Forget *task*, made at *site*; nothing happens if it is not known."""
    _of_modules.get(site.module, {}).pop(task, None)


def made_by(module: str) -> list[Any]:
    """Return the tasks that *module* has made, as far as this thread may find them, in no order.

    Tasks of functions count as long as somebody holds them. Wired tasks hold each other in a circle, which only the
    garbage collector can undo, so it is asked first: what is found does not depend on when it last ran.
    """
    tasks = list(_of_modules.get(module, ()))
    room = _of_functions.get((module, threading.get_ident()))
    if room:
        gc.collect()
        tasks += [task for weak in list(room) if (task := weak()) is not None]
    return tasks


def clear() -> None:
    """Forget every task of every module."""
    _of_modules.clear()
    _of_functions.clear()
