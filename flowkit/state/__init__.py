"""What is kept between runs: a cache, the results of tasks, and how stale ones are told.

``StateManager`` keeps it in memory or in one JSON file, ``SQLiteStateStore`` in an SQLite database; both are given to
``dag.run(state=...)``. ``TaskCache`` reuses what a plain function returned. ``register`` lets a class of yours be kept.
"""

from __future__ import annotations

from .manager import StateManager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .cache import TaskCache
    from .codec import register
    from .sqlite import SQLiteStateStore

__all__ = ["SQLiteStateStore", "StateManager", "TaskCache", "register"]

_LAZY = {"SQLiteStateStore": "sqlite", "TaskCache": "cache", "register": "codec"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flowkit.state' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
