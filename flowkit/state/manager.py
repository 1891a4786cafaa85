"""``StateManager``: a cache and the checkpoints of runs, in memory or in one JSON file.

Knows the file and the codec. Does not know tasks or runs.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from ..exceptions import OptionError, StateError, shown
from . import records
from .codec import Codec
from .disk import Disk
from .face import Cache, Entry
from .jsonfile import JSONFile, parts_of
from .records import CACHE
from .scopes import FileScope, FileView, MemoryRun, MemoryScope
from .store import check_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from .store import Scope, View


class StateManager(Cache):
    """Values by key, and the results of runs, in memory or in one JSON file.

    The file is plain JSON that a person can read, and can be shared by threads and processes: a value that one of them
    has set is there for all, and none is lost. A crash at any instant leaves the file whole. Values come back with the
    types that they had, or are refused by name.

    In memory values are kept as they are; the results of runs as copies.

    Args:
        storage_path: The file; it and its folder are made with the first write. None to keep everything in memory.
        default_ttl: For how many seconds values are valid if :meth:`set` does not say; None for ever.
        durability: "process": what is stored survives the end of the process, whatever ends it. "power": also a power
            cut, which costs a sync of the disk for each result.
        serializer: "json", or "pickle" to keep by pickle what JSON cannot hold. Whoever can write to a file with
            pickles can run code in the process that reads it; its folder must belong to you alone.
        strict: Whether a result that cannot be stored is an error, rather than a warning and run again on resume.
        lock_timeout: How many seconds a run waits for another one of the same name on the same file.

    Raises:
        OptionError: An argument is out of range.
        StateVersionError: The file is another program's, or a newer flowkit's.
        StateWriteError: The file cannot be read.
    """

    def __init__(
        self,
        storage_path: str | os.PathLike[str] | None = None,
        default_ttl: float | None = None,
        *,
        durability: str = "process",
        serializer: str = "json",
        strict: bool = False,
        lock_timeout: float = 0.0,
        _disk: Disk | None = None,
    ) -> None:
        super().__init__(default_ttl)
        where = type(self).__name__
        check_options(where, durability, serializer, strict=strict, lock_timeout=lock_timeout)
        self.storage_path = None if storage_path is None else absolute(where, storage_path)
        self.is_strict = strict
        self.lock_timeout = lock_timeout
        self._pickles = serializer == "pickle"
        self._trusted: set[str] = set()
        self._codec = Codec(pickles=self._pickles)
        self._lock = threading.RLock()
        self._scopes: dict[str, MemoryScope] = {}
        self._memory: dict[str, Entry] = {}
        self._file: JSONFile | None = None
        if self.storage_path is not None:
            if self._pickles:
                check_private(where, self.storage_path)
            self._file = JSONFile(os.path.realpath(self.storage_path), _disk or Disk(), syncs=durability == "power")

    def __repr__(self) -> str:
        where = "in-memory" if self.storage_path is None else repr(self.storage_path.name)
        kind = type(self).__name__
        count = len(self._memory if self._file is None else self._file.refresh().get(CACHE, {}))
        return f"<{kind} {where} cached_items={count}>"

    # ------------------------------------------------------------ the cache

    def trust(self, module: str) -> None:
        """Let dataclasses, named tuples and enums of *module* be kept, as if each were registered."""
        with self._lock:
            self._trusted.add(module)
            self._codec = Codec(modules=self._trusted, pickles=self._pickles)

    def _find(self, key: str) -> Entry | None:
        if self._file is None:
            return self._memory.get(key)
        entry = self._file.refresh().get(CACHE, {}).get(key)
        return None if entry is None else self._decode(entry)

    def _find_all(self) -> dict[str, Entry]:
        with self._lock:
            if self._file is None:
                return dict(self._memory)
            found = {key: self._decode(entry) for key, entry in dict(self._file.refresh().get(CACHE, {})).items()}
        return {key: entry for key, entry in found.items() if entry is not None}

    def _decode(self, entry: bytes, *, reads_value: bool = True) -> Entry | None:
        found = records.unseal(CACHE, entry)
        if found is None:
            return None
        read = (self._codec.decode if reads_value else json.loads)(found[1])
        return Entry(read["value"], read["timestamp"], read["ttl"], read["metadata"])

    def _put(self, key: str, entry: Entry) -> None:
        if self._file is None:
            with self._lock:
                self._memory[key] = entry
            return
        value, metadata = self._codec.encode(entry.value), self._codec.encode(dict(entry.metadata))
        numbers = json.dumps({"timestamp": entry.timestamp, "ttl": entry.ttl})
        body = f'{{"value":{value},{numbers[1:-1]},"metadata":{metadata}}}'
        with self._file.locked():
            self._file.put(CACHE, key, records.seal(CACHE, key, body))

    def _remove(self, keys: list[str] | None, expired_at: float | None = None) -> list[str]:
        if self._file is None:
            with self._lock:
                gone = self._chosen(keys, expired_at, self._memory)
                for key in gone:
                    del self._memory[key]
            return gone
        known = self._file.refresh().get(CACHE, {})
        if not self._file.exists or (keys is not None and not any(key in known for key in keys)):
            return []
        with self._file.locked():
            gone = self._chosen(keys, expired_at, self._file.sections.get(CACHE, {}))
            if len(gone) == 1:
                self._file.put(CACHE, gone[0], None)
            elif gone:
                for key in gone:
                    del self._file.sections[CACHE][key]
                self._file.save()
        return gone

    def _chosen(self, keys: list[str] | None, expired_at: float | None, known: Any) -> list[str]:
        chosen = [key for key in (known if keys is None else keys) if key in known]
        if expired_at is None:
            return chosen
        entries = {k: known[k] if self._file is None else self._decode(known[k], reads_value=False) for k in chosen}
        return [key for key, entry in entries.items() if entry is not None and not entry.is_valid(expired_at)]

    # ------------------------------------------------------------ what runs have stored

    def clear_runs(self, name: str | None = None) -> None:
        """Forget the results of the runs of the DAG *name*, or of all; the values by key stay.

        Raises:
            OptionError: *name* is no name.
            StateLockedError: Such a run goes on.
            StateWriteError: The disk refused it.
        """
        check_name("clear_runs", name)
        if self._file is None:
            for known in [name] if name is not None else list(self._scopes):
                with self._lock:
                    scope = self._scopes.get(known)
                if scope is not None:
                    scope.acquire(known)
                    with self._lock:
                        self._scopes.pop(known, None)
            return
        for known in [name] if name is not None else self._file.scopes():
            lock, journal, _ = self._file.open_scope(known)
            try:
                journal.close()
                self._file.fold(known, {section: {} for section in parts_of(known)})
                self._forget_saved(known)
            finally:
                lock.release()

    def _forget_saved(self, workflow: str) -> None:
        """Forget what was saved by hand of the tasks of *workflow*."""
        assert self._file is not None  # noqa: S101 - for the type checker: only there is something saved by hand
        for task in self._file.saved(workflow):
            with self._file.locked():
                self._file.put(records.SAVED, f"{workflow}\n{task}", None)

    def codec(self, modules: Collection[str]) -> Codec:
        """Return what turns values into text, for tasks of *modules*."""
        return Codec(modules={*modules, *self._trusted}, pickles=self._pickles)

    def open_scope(self, name: str, run_id: str) -> Scope:
        """Return what is kept of the DAG *name*, for one run alone."""
        if self._file is not None:
            return FileScope(self._file, name)
        with self._lock:
            scope = self._scopes.setdefault(name, MemoryScope())
        scope.acquire(name)
        return MemoryRun(scope)

    def read_scope(self, name: str) -> View:
        """Return what is kept of the DAG *name* without having it."""
        if self._file is not None:
            return FileView(self._file, name, self._file.scope(name))
        return self._scopes.get(name) or MemoryScope()


def absolute(where: str, path: str | os.PathLike[str]) -> Path:
    """Return *path* as it is from the current folder, now.

    Raises:
        OptionError: It is no path, or that of a device or pipe.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or "\0" in str(path):
        raise OptionError(f"{where}: the path {shown(path)} must be the name of a file.")
    found = os.path.abspath(path)
    if os.path.exists(found) and not (os.path.isfile(found) or os.path.isdir(found)):
        raise OptionError(f"{where}: {shown(path)} is no regular file, but a device, pipe or socket.")
    return Path(found)


def check_name(where: str, name: str | None) -> None:
    """Raise OptionError if *name* is neither the name of a DAG nor None."""
    if name is not None and not isinstance(name, str):
        raise OptionError(f"{where}(): {shown(name)} must be the name of a DAG or workflow, or None for all.")


def check_private(where: str, path: Path) -> None:
    """Raise if others can put a file where *path* is.

    Raises:
        StateError: They can, and a pickle of theirs would be run.
    """
    folder = path.parent
    if os.name == "posix" and folder.exists() and folder.stat().st_mode & 0o022:
        raise StateError(
            f"{where}: serializer='pickle' runs what is in {path}, and others can write to its folder {folder}. "
            f"Use a folder of your own: chmod 700 {folder}."
        )
