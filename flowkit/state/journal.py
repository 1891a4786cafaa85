"""Add entries to a file one at a time, at a cost that does not grow with what is there.

Knows one journal file. Does not know the snapshot that it belongs to, but by the journal's id: a snapshot that names it
holds everything in it already.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading

from ..exceptions import StateWriteError
from . import records
from .disk import attempt, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .disk import Disk
    from .records import Section, Sections

HEADS: Section = ("journals",)
"""The section of journals' first lines; in a snapshot, of what tells the journals that it holds already."""


class Journal:
    """A journal file that is written to.

    Args:
        disk: What writes.
        path: Its file.
        name: What it is the journal of; None if the file is there already.
        syncs: Whether each entry is to survive a power cut.

    Raises:
        StateWriteError: It cannot be made or opened.
    """

    def __init__(self, disk: Disk, path: str, name: str | None, *, syncs: bool) -> None:
        self._disk = disk
        self._path = path
        self._syncs = syncs
        self._lock = threading.Lock()
        self._failure: StateWriteError | None = None
        """Why nothing can be added any more: what is at the file's end after a failed write is not known."""
        flags = os.O_WRONLY | os.O_APPEND | (0 if name is None else os.O_CREAT | os.O_EXCL)
        self._fd = attempt(path, "open", disk.open, path, flags)
        if name is None:
            return
        try:
            self.append(head_of(name, os.urandom(6).hex()))
            if syncs:
                attempt(path, "sync the folder of", disk.fsync_dir, os.path.dirname(path))
        except BaseException:
            self.close()
            raise

    def append(self, entry: bytes) -> None:
        """Add *entry*; on return it survives the end of the process, and with syncs a power cut.

        Raises:
            StateWriteError: The disk refused it, or something before it.
        """
        line = records.journal_line(entry)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                write_all(self._disk, self._path, self._fd, line)
                if self._syncs:
                    attempt(self._path, "sync", self._disk.fsync, self._fd)
            except BaseException as error:
                if isinstance(error, StateWriteError):
                    self._failure = error
                else:
                    self._failure = StateWriteError(self._path, None, "write", "interrupted in the middle")
                raise

    def sync(self) -> None:
        """Let what others have added, and the file's name, survive a power cut: what is added must not outlive that.

        Raises:
            StateWriteError: The disk refused it.
        """
        attempt(self._path, "sync", self._disk.fsync, self._fd)
        attempt(self._path, "sync the folder of", self._disk.fsync_dir, os.path.dirname(self._path))

    def close(self) -> None:
        """Close the file."""
        with self._lock:  # nobody writes to a number that may be another file's by then
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def head_of(name: str, journal_id: str) -> bytes:
    """Return the first entry of the journal of *name*."""
    return records.seal(HEADS, name, f'{{"id":"{journal_id}"}}')


def replay(data: bytes, name: str, names: Sequence[Section], sections: Sections, *, replaces: bool) -> str:
    """Change *sections*, those of a snapshot, as the journal *data* of *name* says; return what is wrong with it.

    A damaged line may have held the newer value of any key. So nothing older is believed.

    Args:
        data: The content of the journal.
        name: What it is the journal of.
        names: The sections that it has entries of.
        sections: What the snapshot holds.
        replaces: Whether a key may be in the journal more than once.
    """
    _, end, rest = data.partition(b"\n")
    if not end or is_folded(data, name, sections):  # without an end it was never more than begun
        return ""
    damaged = 0 if read_head(data, name) is not None else 1
    if damaged:
        _forget(sections, names)
    fresh: Sections = {}
    for found in records.read_journal(rest, names):
        if found is None:
            damaged += 1
            _forget(sections, names)
            if replaces:
                fresh.clear()
            continue
        section, key, entry = found
        fresh.setdefault(section, {})[key] = entry
    for section, entries in fresh.items():
        known = sections.setdefault(section, {})
        for key, entry in entries.items():
            if is_deletion(section, entry):
                known.pop(key, None)
            else:
                known[key] = entry
    return f"{damaged} of its lines are damaged" if damaged else ""


def read_head(data: bytes, name: str) -> bytes | None:
    """Return the first entry of the journal *data* of *name*; None if it is damaged, or was never written whole."""
    line, end, _ = data.partition(b"\n")
    found = records.unseal(HEADS, line[1:-1]) if end else None
    return line[1:-1] if found is not None and found[0] == name else None


def is_folded(data: bytes, name: str, sections: Sections) -> bool:
    """Return whether *sections*, those of a snapshot, hold all of the journal *data* of *name* already."""
    known = sections.get(HEADS, {}).get(name)
    if known is None:
        return False
    found, head = records.unseal(HEADS, known), read_head(data, name)
    body = json.loads(found[1]) if found is not None else {}
    is_head = head is not None and body.get("id") == _id_of(head)
    return is_head or body.get("content") == _hash(data)


def note_of(data: bytes, name: str) -> bytes:
    """Return the entry of a snapshot that says that it holds all of the journal *data* of *name*."""
    head = read_head(data, name)
    return records.seal(HEADS, name, json.dumps({"id": "" if head is None else _id_of(head), "content": _hash(data)}))


def _id_of(head: bytes) -> str:
    found = records.unseal(HEADS, head)
    return str(json.loads(found[1])["id"]) if found is not None else ""


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


_DELETED = '{"deleted":true}'


def deletion(section: Section, key: str) -> bytes:
    """Return the entry that says that *key* is gone."""
    return records.seal(section, key, _DELETED)


def is_deletion(section: Section, entry: bytes) -> bool:
    """Return whether *entry* says that its key is gone."""
    if b': {"deleted":true,"crc"' not in entry:
        return False
    found = records.unseal(section, entry)
    return found is not None and found[1] == _DELETED


def _forget(sections: Sections, names: Sequence[Section]) -> None:
    for section in names:
        sections.pop(section, None)
