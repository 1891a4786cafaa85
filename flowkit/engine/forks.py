"""Notice that the process was forked while runs go on.

Knows which runs are alive. Does not know what they do: a child process has none of their threads, so they are closed
there, and say so to whoever asks.
"""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Closable(Protocol):
        """A run."""

        def close_in_child(self) -> None:
            """Let it end in a process that was forked off."""


_live: weakref.WeakSet[Closable] = weakref.WeakSet()
_hooks: list[bool] = []
"""Not empty once the hook is there; Python has no way to take it back, so it is made with the first run."""


def watch(run: Closable) -> None:
    """Have a fork of this process close *run* in the child."""
    if not _hooks and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_in_child)
        _hooks.append(True)
    _live.add(run)


def _close_in_child() -> None:
    for run in list(_live):
        run.close_in_child()
