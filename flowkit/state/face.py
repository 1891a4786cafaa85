"""The cache that every store offers: values by key, with a time to live and metadata.

Knows when an entry is valid. Does not know where entries are.
"""

from __future__ import annotations

import math
import time

from ..exceptions import OptionError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Entry:
    """One value of a cache.

    Attributes:
        value: The value.
        timestamp: When it was set, in seconds since the epoch.
        ttl: For how many seconds it is valid; None for ever.
        metadata: What was set with it.
    """

    __slots__ = ("metadata", "timestamp", "ttl", "value")

    def __init__(self, value: Any, timestamp: float, ttl: float | None, metadata: Mapping[str, Any]) -> None:
        self.value = value
        self.timestamp = timestamp
        self.ttl = ttl
        self.metadata = metadata

    def is_valid(self, now: float) -> bool:
        """Return whether its age is within its time to live; a negative one never holds."""
        return self.ttl is None or (self.ttl >= 0 and now - self.timestamp <= self.ttl)


class Cache:
    """Values by key. Thread-safe; what keeps the entries is a subclass's business.

    Args:
        default_ttl: For how many seconds values are valid if :meth:`set` does not say; None for ever.
    """

    def __init__(self, default_ttl: float | None) -> None:
        self.default_ttl = _check_ttl("default_ttl", default_ttl)

    # What a subclass knows. An Entry may be of another process, so its value is a copy.

    def _find(self, key: str) -> Entry | None:
        raise NotImplementedError

    def _find_all(self) -> dict[str, Entry]:
        raise NotImplementedError

    def _put(self, key: str, entry: Entry) -> None:
        raise NotImplementedError

    def _remove(self, keys: list[str] | None, expired_at: float | None = None) -> list[str]:
        """Remove *keys*, or all; with *expired_at* only those that are not valid then. Return which were there."""
        raise NotImplementedError

    def trust(self, module: str) -> None:
        """Let dataclasses, named tuples and enums of *module* be kept, as if each were registered."""

    # What users call.

    def set(
        self, key: str, value: Any, ttl: float | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Keep *value*.

        Args:
            key: Any string.
            value: Anything that the store can keep.
            ttl: For how many seconds it is valid; None for the default. 0 is over with the clock's next tick, and
                less than that at once.
            metadata: What :meth:`get_metadata` is to give back.

        Raises:
            StateSerializationError: The store cannot keep it as it is.
            StateWriteError: The disk refused it.
        """
        ttl = _check_ttl("ttl", ttl)
        if metadata is not None and not hasattr(metadata, "keys"):
            raise OptionError(f"metadata={shown(metadata)} must be a mapping.")
        ttl = self.default_ttl if ttl is None else ttl
        ttl = None if ttl == math.inf else ttl
        self._put(_check_key(key), Entry(value, time.time(), ttl, dict(metadata or {})))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, *default* if there is none or it has expired."""
        entry = self._valid(key)
        return default if entry is None else entry.value

    def has(self, key: str) -> bool:
        """Return whether *key* has a value that is valid, None included."""
        return self._valid(key) is not None

    def delete(self, key: str) -> bool:
        """Forget *key*; return whether it was there."""
        return bool(self._remove([_check_key(key)]))

    def clear(self) -> None:
        """Forget every value; what runs have stored stays."""
        self._remove(None)

    def get_all(self) -> dict[str, Any]:
        """Return every valid value by its key."""
        now = time.time()
        return {key: entry.value for key, entry in self._find_all().items() if entry.is_valid(now)}

    def get_metadata(self, key: str) -> dict[str, Any] | None:
        """Return ``timestamp``, ``ttl`` and ``age`` of *key*, and the metadata set with it; None if it has no value."""
        entry = self._valid(key)
        if entry is None:
            return None
        real = {"timestamp": entry.timestamp, "ttl": entry.ttl, "age": time.time() - entry.timestamp}
        return {**entry.metadata, **real}

    def invalidate_expired(self) -> list[str]:
        """Forget what has expired; return its keys."""
        return self._remove(None, expired_at=time.time())

    def _valid(self, key: str) -> Entry | None:
        entry = self._find(_check_key(key))
        return entry if entry is not None and entry.is_valid(time.time()) else None


def _check_key(key: str) -> str:
    if not isinstance(key, str):
        raise OptionError(f"key {shown(key)} must be a string, not {type(key).__name__}.")
    return key


def _check_ttl(name: str, ttl: float | None) -> float | None:
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or math.isnan(ttl):
        raise OptionError(f"{name}={shown(ttl)} must be a number of seconds, or None.")
    return ttl
