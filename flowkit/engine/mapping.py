"""Say what a mapped task is mapped over.

Knows parameters and iterables. Does not know tasks or runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized

from ..exceptions import TaskResultError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .signature import Signature


def item_parameter(signature: Signature | None, over: str) -> str:
    """Return the parameter that gets the items: *over*, or the first one if that is empty; empty if none has a name."""
    if over or signature is None:
        return over
    return next((name for name in signature.positional if name not in signature.contexts), "")


def read_items(name: str, value: Any) -> list[Any]:
    """Return what task *name* is mapped over, *value*, as a list.

    Raises:
        TaskResultError: It is no sized iterable, or a string or a mapping.
    """
    if isinstance(value, Sized) and not isinstance(value, (str, bytes, bytearray, Mapping)):
        try:
            items = iter(value)  # type: ignore[call-overload]
        except TypeError:
            items = None
        if items is not None:
            return list(items)
    hint = "Write list(...items()) to map over a mapping." if isinstance(value, Mapping) else "Give it a list."
    raise TaskResultError(
        name, f"task {name!r} is mapped over {shown(value)}, which is of type {type(value).__name__}. {hint}"
    )
