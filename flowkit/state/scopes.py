"""What is kept of one DAG, in memory and in a JSON file.

Knows records and the entries that hold them. Does not know what a record means for a run.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from datetime import UTC, datetime
from functools import cached_property

from ..exceptions import StateLockedError
from . import records
from .jsonfile import parts_of
from .store import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .journal import Journal
    from .jsonfile import JSONFile
    from .locks import FileLock
    from .records import Sections

_NUMBER = re.compile(rb'\{"id":(\d+)')


class FileView:
    """What *file* keeps of the DAG *name*, whose *sections* of entries are known."""

    def __init__(self, file: JSONFile, name: str, sections: Sections) -> None:
        self._sections = sections
        self._saved = file.saved(name)
        self._saved_for_all = file.saved("") if name else {}
        self._names = dict(zip(("tasks", "items", "codes"), parts_of(name), strict=True))

    def _bodies(self, part: str) -> dict[str, Any]:
        section = self._names[part]
        found = (records.unseal(section, entry) for entry in self._sections.get(section, {}).values())
        return dict(pair for pair in found if pair is not None)

    @cached_property
    def tasks(self) -> Mapping[str, Record]:
        """The latest record of each task; one that belongs to no DAG counts for all."""
        read = {name: Record.from_json(body) for name, body in self._bodies("tasks").items()}
        found = {name: record for name, record in read.items() if record is not None}
        for task, entry in (*self._saved.items(), *self._saved_for_all.items()):
            newest(found, task, saved_record(entry))
        return found

    @cached_property
    def items(self) -> Mapping[str, Mapping[int, Record]]:
        """The latest record of each item of a mapped task."""
        items: dict[str, dict[int, Record]] = {}
        for key, body in self._bodies("items").items():
            name, _, number = key.rpartition("[")
            record = Record.from_json(body)
            if record is not None:
                items.setdefault(name, {})[int(number[:-1])] = record
        return items

    @cached_property
    def codes(self) -> Mapping[str, Mapping[str, str]]:
        """What each fingerprint is made of."""
        return {code: json.loads(body) for code, body in self._bodies("codes").items()}


class FileScope(FileView):
    """The same while one run has it, with a journal that it is written to."""

    def __init__(self, file: JSONFile, name: str) -> None:
        self._file = file
        self._name = name
        self._lock: FileLock
        self._journal: Journal
        self._lock, self._journal, known = file.open_scope(name)
        super().__init__(file, name, {section: dict(entries) for section, entries in known.items()})
        self._is_closed = False
        self._new: Sections = {section: {} for section in self._names.values()}

    @cached_property
    def last_number(self) -> int:
        """The largest number of a record."""
        entries = [e for part in ("tasks", "items") for e in self._sections.get(self._names[part], {}).values()]
        return max((int(found[1]) for entry in entries if (found := _NUMBER.search(entry))), default=0)

    def append(self, task: str, record: Record, item: int = -1) -> None:
        """Keep *record*; on return it survives the end of the process."""
        section, key = (self._names["tasks"], task) if item < 0 else (self._names["items"], f"{task}[{item}]")
        entry = records.seal(section, key, record.to_json())
        self._journal.append(entry)
        self._new[section][key] = entry

    def add_code(self, code: str, parts: Mapping[str, str]) -> None:
        """Keep what the fingerprint *code* is made of."""
        section = self._names["codes"]
        if code not in self._sections.get(section, {}) and code not in self._new[section]:
            entry = records.seal(section, code, json.dumps(parts))
            self._journal.append(entry)
            self._new[section][code] = entry

    def close(self, state: str, started_at: float, duration: float) -> None:
        """Fold the journal into the file, and let others have the scope; nothing if that was done."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._journal.close()
            known = {name: self._sections.get(name, {}) | self._new[name] for name in self._names.values()}
            used = {_code_of(entry) for part in ("tasks", "items") for entry in known[self._names[part]].values()}
            codes = self._names["codes"]
            known[codes] = {code: entry for code, entry in known[codes].items() if code in used}
            self._file.fold(self._name, known)
        finally:
            self._lock.release()


def saved_record(entry: bytes) -> Record | None:
    """Return the record in *entry* of SAVED; None if it is damaged."""
    found = records.unseal(records.SAVED, entry)
    return None if found is None else Record.from_json(found[1])


def newest(among: dict[str, Record], task: str, record: Record | None) -> None:
    """Put *record* of *task* in the place of what is *among*, unless that is newer."""
    if record is not None and (task not in among or record.ended_at >= among[task].ended_at):
        among[task] = record


_CODE = re.compile(rb'"code":"([^"]*)"')


def _code_of(entry: bytes) -> str:
    found = _CODE.search(entry, entry.find(b'{"id":'))
    return found[1].decode() if found else ""


class MemoryScope:
    """What is kept of one DAG as long as the process lives."""

    def __init__(self) -> None:
        self.tasks: dict[str, Record] = {}
        self.items: dict[str, dict[int, Record]] = {}
        self.codes: dict[str, Mapping[str, str]] = {}
        self.last_number = 0
        self._free = threading.Semaphore()
        self._since = ""

    def acquire(self, name: str) -> None:
        """Have it alone.

        Raises:
            StateLockedError: Another run has it.
        """
        if not self._free.acquire(blocking=False):
            raise StateLockedError(name, "memory", os.getpid(), socket.gethostname(), self._since)
        self._since = datetime.now(UTC).isoformat(timespec="seconds")

    def append(self, task: str, record: Record, item: int = -1) -> None:
        """Keep *record*."""
        self.last_number = max(self.last_number, record.number)
        if item < 0:
            self.tasks[task] = record
        else:
            self.items.setdefault(task, {})[item] = record

    def add_code(self, code: str, parts: Mapping[str, str]) -> None:
        """Keep what the fingerprint *code* is made of."""
        self.codes[code] = parts

    def release(self) -> None:
        """Let others have it."""
        self._free.release()


class MemoryRun:
    """The same while one run has it, as it was when that began; what it appends is in *scope* at once."""

    def __init__(self, scope: MemoryScope) -> None:
        self._scope = scope
        self.tasks: Mapping[str, Record] = dict(scope.tasks)
        self.items: Mapping[str, Mapping[int, Record]] = {name: dict(each) for name, each in scope.items.items()}
        self.codes: Mapping[str, Mapping[str, str]] = dict(scope.codes)
        self.last_number = scope.last_number
        self.append = scope.append
        self.add_code = scope.add_code

    def close(self, state: str, started_at: float, duration: float) -> None:
        """Let others have it."""
        self._scope.release()
