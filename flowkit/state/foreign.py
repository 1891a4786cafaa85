"""Resume from a store that somebody else has written, by the names of tasks alone.

Knows the methods of ``BaseStateStore``. Does not know what is behind them.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping

from ..engine.signature import read_signature
from ..exceptions import StateError, describe, shown
from .store import FAILED, SUCCEEDED, Record
from .taskstates import WorkflowStates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

    from .codec import Codec
    from .store import Scope, Store, View

_has_told: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Stores of which was said that they are resumed from by name alone, by their ids."""
_has_told_of: set[type] = set()
"""The same for classes whose objects cannot be referred to weakly."""


def _is_new(store: Any) -> bool:
    """Return whether nothing was said of *store* yet, and note that it is now."""
    try:
        if _has_told.get(id(store)) is store:
            return False
        _has_told[id(store)] = store
    except TypeError:
        if type(store) in _has_told_of:
            return False
        _has_told_of.add(type(store))
    return True


def as_store(where: str, store: Any) -> Store:
    """Return *store* as what a run keeps its results in.

    Raises:
        TypeError: It is no store.
    """
    if not isinstance(store, type) and callable(getattr(store, "open_scope", None)):
        kept: Store = store
        return kept
    if isinstance(store, WorkflowStates):  # each workflow has its own
        return as_store(where, store.keeper)
    missing = [name for name in _ASKED if not callable(getattr(store, name, None))]
    if isinstance(store, type) or missing:
        hint = f" Write JSONStateStore({str(store)!r})." if isinstance(store, str) else ""
        raise TypeError(
            f"{where}: state_store={shown(store)} must be a JSONStateStore, an SQLiteStateStore, or have the methods "
            f"of BaseStateStore; it has no {', '.join(missing or _ASKED)}.{hint}"
        )
    return ForeignStore(store)


_ASKED = ("save_task_state", "load_task_state")


class ForeignStore:
    """A store with the methods of :class:`BaseStateStore` as one that runs keep their results in."""

    is_strict = False
    lock_timeout = 0.0

    def __init__(self, store: Any) -> None:
        self._store = store

    def codec(self, modules: Collection[str]) -> Codec:
        """Return what leaves values as they are: how they are written is the store's own business."""
        return _AsIs()  # type: ignore[return-value]

    def open_scope(self, name: str, run_id: str) -> Scope:
        """Return what is kept of the workflow *name*; nobody is kept from it meanwhile."""
        if _is_new(self._store):
            warnings.warn(
                f"{type(self._store).__name__} is a store of your own: workflows resume from it by the names of tasks "
                f"alone, so a task whose code has changed is not run again.",
                RuntimeWarning,
                stacklevel=2,
            )
        return ForeignScope(self._bound(name))

    def read_scope(self, name: str) -> View:
        """Return what is kept of the workflow *name*."""
        return ForeignScope(self._bound(name))

    def _bound(self, name: str) -> Any:
        bind = getattr(self._store, "for_workflow", None)
        return self._store if bind is None else bind(name)


class _Held:
    """A value in the place of its text."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _AsIs:
    """Takes values for their own text."""

    def encode(self, value: Any) -> Any:
        return _Held(value)

    def decode(self, held: Any) -> Any:
        return held.value


class ForeignScope:
    """What *store* keeps of one workflow."""

    last_number = 0

    def __init__(self, store: Any) -> None:
        self._store = store
        signature = read_signature(store.save_task_state)
        self._takes_metadata = signature is None or signature.has_varkw or "metadata" in (
            *signature.positional, *signature.keyword_only,
        )  # fmt: skip
        self.tasks: Mapping[str, Record] = _ForeignRecords(store)
        self.items: Mapping[str, Mapping[int, Record]] = {}
        self.codes: Mapping[str, Mapping[str, str]] = {}

    def append(self, task: str, record: Record, item: int = -1) -> None:
        """Keep *record* of a task; those of mapped tasks are not kept, because there is no place for items."""
        held: Any = record.value
        if item >= 0 or (record.state == SUCCEEDED and not isinstance(held, _Held)):
            return
        known: dict[str, Any] = {"result": held.value} if record.state == SUCCEEDED else {}
        if record.state == FAILED:
            known["error"] = record.error
        if self._takes_metadata:
            known["metadata"] = {
                "fingerprint": record.code, "run_id": record.run_id, "duration": record.duration,
            }  # fmt: skip
        try:
            self._store.save_task_state(task, record.state, **known)
        except BaseException as error:
            raise StateError(f"{type(self._store).__name__} did not keep task {task!r}: {describe(error)}") from error

    def add_code(self, code: str, parts: Mapping[str, str]) -> None:
        """Do nothing: there is no place for it."""

    def close(self, state: str, started_at: float, duration: float) -> None:
        """Do nothing: nothing is open."""


class _ForeignRecords(Mapping[str, Record]):
    """What *store* has of each task, as records that fit whatever the code is."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getitem__(self, name: str) -> Record:
        try:
            found = self._store.load_task_state(name)
        except BaseException as error:
            told = f"{type(self._store).__name__} cannot say how task {name!r} stands: {describe(error)}"
            raise StateError(told) from error
        if found is None:
            raise KeyError(name)
        if not hasattr(found, "get"):
            where = f"{type(self._store).__name__}.load_task_state({name!r})"
            raise StateError(f"{where} gave {shown(found)}: it must give a dict, or None.")
        status = found.get("status")
        state = str(getattr(status, "value", status)).upper()
        told = found.get("error")
        value: Any = _Held(found.get("result")) if state == SUCCEEDED else ""
        return Record(0, state, "", [], "", 0.0, 0.0, 0, value, "" if told is None else str(told))

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.list_all_tasks())

    def __len__(self) -> int:
        return len(self._store.list_all_tasks())
