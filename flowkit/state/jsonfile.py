"""Keep sections of entries in one JSON file, with journals beside it.

Knows the snapshot, its journals, and the lock of the file. Does not know what an entry means.

::

    state.json              the snapshot: everything, as it was at some moment
    state.json.journal      changes of the cache since then, while the snapshot is too large to be written for each
    state.json.HASH.journal what the run of one DAG has stored so far
    state.json.lock         held while the snapshot or the cache's journal changes
    state.json.HASH.lock    held by the run of one DAG

A journal is folded in by three steps, under the lock: read the snapshot and the journal; replace the snapshot by one
that has both, and the journal's id; unlink the journal. A crash after the second step leaves a journal whose id is in
the snapshot, which is then ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from ..engine import forks
from ..exceptions import StateError, StateWriteError
from . import records
from .disk import attempt, make_folder, remove, replace_file
from .journal import HEADS, Journal, deletion, is_folded, note_of, replay
from .locks import FileLock
from .records import CACHE, SAVED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .disk import Disk
    from .records import Section, Sections

_SMALL = 65_536
"""A snapshot of up to this many bytes is written whole for each change of the cache."""
_PATIENCE = 60.0
"""Seconds to wait for the file's lock, which nobody holds for longer than one write."""
_IS_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp")
_LONGEST_HEAD = 256
"""Bytes at the start of a snapshot that tell it from another one."""
_COARSEST_CLOCK = 3_000_000_000
"""Nanoseconds between two times that a file system can tell apart, at the most."""
PARTS = ("tasks", "items", "codes")
"""The sections of a DAG."""


def parts_of(scope: str) -> list[Section]:
    """Return the sections of the DAG *scope*."""
    return [("runs", scope, part) for part in PARTS]


class JSONFile:
    """One state file.

    Args:
        path: The snapshot, absolute.
        disk: What writes.
        syncs: Whether each change is to survive a power cut.

    Attributes:
        sections: What the snapshot and the cache's journal hold, as far as this object has looked.
    """

    def __init__(self, path: str, disk: Disk, *, syncs: bool) -> None:
        self.path = path
        self.disk = disk
        self.syncs = syncs
        self.sections: Sections = {}
        self._mutex = threading.RLock()
        self._head = b""
        """The first line of the snapshot that ``sections`` is from."""
        self._size = 0
        self._stamps: list[tuple[int, int, int] | None] = [(0, 0, 0)]
        self._journal_size = -1
        """Bytes in the journal of the cache; -1 if there is none."""
        self._takes_more = False
        """Whether the journal of the cache ends with a whole line, and is not in the snapshot."""
        self._is_locked = False
        self._is_young = False
        """Whether a file was written to so shortly before it was read that its stamp may not tell the next write."""
        self._is_swept = False
        """Whether temporary files of processes that died were looked for."""
        self._is_synced = False
        """Whether all of the cache's journal would survive a power cut, if this object adds with syncs."""
        self._has_failed = False
        """Whether a write to the cache's journal has failed, so that nothing may be added to it."""
        forks.watch(self)
        self.refresh()

    def close_in_child(self) -> None:
        """Forget in a process that was forked off what another thread of the parent may have been doing."""
        self._mutex = threading.RLock()
        self._is_locked = False
        self._head, self._stamps = b"?", []

    # ------------------------------------------------------------ reading

    def refresh(self) -> Sections:
        """Take over what others have written since the last look, if anything; return the sections."""
        if self._stamps != [_stamp(self.path), _stamp(self._cache_journal)] or (self._is_young and self._has_changed()):
            with self._mutex:
                self._load()
        return self.sections

    def _has_changed(self) -> bool:
        """Return whether a young snapshot is another one now; look at its content, until it is old."""
        self._is_young = _is_young(self._stamps[0])
        return self._read_head() != self._head

    def _load(self) -> None:
        """Read the snapshot and the cache's journal; again if somebody replaces them meanwhile."""
        while True:
            stamps = [_stamp(self.path), _stamp(self._cache_journal)]
            data = self._read(self.path) or b""
            snapshot = records.Snapshot({}, "")
            if stamps[0] is not None:
                snapshot = records.parse(data, self.path)
            found = self._read(self._cache_journal)
            if _stamp(self.path) == stamps[0]:
                break
        journal = found or b""
        self._is_synced = False
        is_stale = is_folded(journal, "", snapshot.sections)
        damage = replay(journal, "", [CACHE, SAVED], snapshot.sections, replaces=True)
        self.sections = snapshot.sections
        self._head = _head(data)
        self._size = len(data)
        self._journal_size = -1 if found is None else len(found)
        self._takes_more = journal.endswith(b"\n") and not is_stale
        self._stamps, self._is_young = stamps, _is_young(stamps[0])
        if snapshot.damage or damage:
            self._mend(snapshot.damage, damage)

    def _read(self, path: str, most: int = -1) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read(most)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateWriteError(path, error.errno, "read", error.strerror or str(error)) from error

    def scope(self, scope: str) -> Sections:
        """Return the sections of the DAG *scope*, with what a run that goes on, or was killed, has stored."""
        names = parts_of(scope)
        while True:
            self.refresh()
            with self._mutex:
                head = self._head
                known: Sections = {name: dict(self.sections.get(name, {})) for name in names}
                known[HEADS] = dict(self.sections.get(HEADS, {}))
            journal = self._read(self.journal_of(scope)) or b""
            if self._read_head() == head:  # or it was folded in between
                break
        damage = replay(journal, scope, names, known, replaces=False)
        if damage:
            _warn(self.journal_of(scope), damage, "Tasks whose results are lost run again.")
        del known[HEADS]
        return known

    def entry_of(self, scope: str, task: str) -> bytes | None:
        """Return the entry of *task* of the DAG *scope*; None if there is none."""
        if os.path.exists(self.journal_of(scope)):
            return self.scope(scope).get(parts_of(scope)[0], {}).get(task)
        return self.refresh().get(parts_of(scope)[0], {}).get(task)

    def saved(self, scope: str) -> dict[str, bytes]:
        """Return the entries of SAVED of the DAG *scope*, by task."""
        found = self.refresh().get(SAVED, {}).items()
        return {key.partition("\n")[2]: entry for key, entry in list(found) if key.partition("\n")[0] == scope}

    def scopes(self) -> list[str]:
        """Return the names of the DAGs of which something is kept, in the snapshot or by a run that was killed."""
        sections = self.refresh()
        names = dict.fromkeys(section[1] for section in list(sections) if section[0] == "runs")
        names.update(dict.fromkeys(key.partition("\n")[0] for key in list(sections.get(SAVED, {}))))
        for path in self._beside(".journal"):
            head = (self._read(path) or b"").partition(b"\n")[0]
            found = records.unseal(HEADS, head[1:-1])
            if found is not None and found[0] and path == self.journal_of(found[0]):
                names[found[0]] = None
        return list(names)

    def _beside(self, ending: str) -> list[str]:
        """Return the files beside the snapshot whose name is longer by something with *ending*."""
        folder, name = os.path.split(self.path)
        try:
            found = os.listdir(folder)
        except OSError:  # there is no folder yet
            return []
        return [os.path.join(folder, each) for each in found if each.startswith(f"{name}.") and each.endswith(ending)]

    # ------------------------------------------------------------ writing

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the file, among threads and processes, with everything up to date.

        Raises:
            StateLockedError: Somebody has held it for a minute.
            StateWriteError: The lock's file cannot be made.
        """
        with self._mutex:
            make_folder(self.path)
            lock = FileLock(f"{self.path}.lock", os.path.basename(self.path), self.path, _PATIENCE)
            self._is_locked = True
            try:
                if not self._is_swept:
                    self._is_swept = True
                    for left in self._beside(".tmp"):  # only who has the lock makes such files
                        if _IS_TEMPORARY.fullmatch(left, len(self.path)):
                            remove(self.disk, left)
                if self._read_head() != self._head or _size(self._cache_journal) != self._journal_size:
                    self._load()
                yield
            except BaseException:
                self._head, self._stamps = b"?", []  # what is in memory may not be in the file
                raise
            finally:
                self._is_locked = False
                lock.release()

    def put(self, section: Section, key: str, entry: bytes | None) -> None:
        """Store *entry* of CACHE or SAVED, or delete what is there if it is None. Under the lock.

        Raises:
            StateWriteError: The disk refused it.
        """
        entries = self.sections.setdefault(section, {})
        before = entries.get(key)
        if entry is None:
            entries.pop(key, None)
        else:
            entries[key] = entry
        size = self._size + len(entry or b"")
        is_cut = self._journal_size >= 0 and not self._takes_more
        if size <= _SMALL or self._journal_size > size or is_cut or self._has_failed:
            self.save()
        else:
            try:
                self._append(deletion(section, key) if entry is None else entry)
            except StateWriteError:
                entries.pop(key, None)
                if before is not None:
                    entries[key] = before
                self._journal_size = _size(self._cache_journal)
                with suppress(StateWriteError):  # the first error is told; a journal that is in doubt must not stay
                    self.save()
                raise

    def save(self) -> None:
        """Write everything into the snapshot. Under the lock.

        Raises:
            StateWriteError: The disk refused it.
        """
        has_journal = self._journal_size >= 0
        if has_journal:
            self._note_head("", self._read(self._cache_journal) or b"")
            if self.syncs and not self._is_synced and not self._has_failed:
                with suppress(StateWriteError):  # nobody adds to it any more, and all of it is in what is written now
                    self._sync_journal()
        data = records.render(self.sections)
        replace_file(self.disk, self.path, data)
        if has_journal:
            remove(self.disk, self._cache_journal)
            if self.syncs:  # or it could come back beside a snapshot that has forgotten it
                attempt(self.path, "sync the folder of", self.disk.fsync_dir, os.path.dirname(self.path))
        self._head, self._size, self._journal_size = _head(data), len(data), -1
        self._has_failed = False
        self._stamps, self._is_young = [_stamp(self.path), _stamp(self._cache_journal)], True

    def _note_head(self, name: str, journal: bytes) -> None:
        """Note that the snapshot will hold *journal*, that of *name*, so that it is ignored if it cannot be removed."""
        self.sections.setdefault(HEADS, {})[name] = note_of(journal, name)

    def _sync_journal(self) -> None:
        """Let the cache's journal survive a power cut, or what is left of it could not be told from a newer one."""
        journal = Journal(self.disk, self._cache_journal, None, syncs=True)
        try:
            journal.sync()
        finally:
            journal.close()

    def _append(self, entry: bytes) -> None:
        """Add *entry* to the journal of the cache."""
        path = self._cache_journal
        is_new = self._journal_size < 0
        self._has_failed = True  # what is at its end, and on the disk, is not known if this fails
        journal = Journal(self.disk, path, "" if is_new else None, syncs=self.syncs)
        try:
            if self.syncs and not (is_new or self._is_synced):
                journal.sync()
            journal.append(entry)
        finally:
            journal.close()
        self._has_failed, self._is_synced = False, True
        self._journal_size = _size(path)
        self._takes_more = True
        self._stamps = [_stamp(self.path), _stamp(path)]

    def open_scope(self, scope: str) -> tuple[FileLock, Journal, Sections]:
        """Take the lock of the DAG *scope*, fold in what a killed run has left, and begin a journal.

        Raises:
            StateLockedError: Another run has it.
            StateWriteError: The disk refused it.
        """
        make_folder(self.path)
        lock = FileLock(f"{self.path}.{_hash(scope)}.lock", scope, self.path, 0)
        try:
            known = self.scope(scope)
            if os.path.exists(self.journal_of(scope)):
                self.fold(scope, known)
            return lock, Journal(self.disk, self.journal_of(scope), scope, syncs=self.syncs), known
        except BaseException:
            lock.release()
            raise

    def fold(self, scope: str, known: Sections) -> None:
        """Write *known*, the sections of the DAG *scope*, into the snapshot, and end its journal.

        Raises:
            StateWriteError: The disk refused it; the journal is still there.
        """
        path = self.journal_of(scope)
        with self.locked():
            journal = self._read(path) or b""
            for name, entries in known.items():
                self.sections[name] = entries
                if not entries:
                    del self.sections[name]
            heads: Sections = {HEADS: dict(self.sections.get(HEADS, {}))}
            is_damaged = bool(replay(journal, scope, parts_of(scope), heads, replaces=False))
            self._note_head(scope, journal)
            if is_damaged:
                self._copy_aside(path)
            self.save()
            remove(self.disk, path)

    # ------------------------------------------------------------ damage

    def _mend(self, damage: str, journal_damage: str) -> None:
        """Set aside what is damaged, and go on with what of it can be trusted, which is in ``sections``."""
        told = damage or f"its journal: {journal_damage}"
        known = self._head, self._stamps
        try:
            if not self._is_locked:
                self._head = b"?"
                with self.locked():  # looks again, and comes here again if nobody else has mended it
                    return
            asides = [self._copy_aside(path) for path, what in self._damaged(damage, journal_damage) if what]
            self.save()
        except StateError as error:
            self._head, self._stamps = known
            _warn(self.path, told, f"It stays as it is: {error}")
            return
        kept = sum(len(entries) for section, entries in self.sections.items() if section != HEADS)
        _warn(self.path, told, f"Entries kept: {kept}. The damaged file is now {', '.join(asides)}.")

    def _damaged(self, damage: str, journal_damage: str) -> list[tuple[str, str]]:
        return [(self.path, damage), (self._cache_journal, journal_damage)]

    def _copy_aside(self, path: str) -> str:
        """Write what is in *path* to another file, and return its name; the next save takes the place of *path*."""
        aside = _aside(path)
        replace_file(self.disk, aside, self._read(path) or b"")
        return aside

    # ------------------------------------------------------------ names

    @property
    def exists(self) -> bool:
        """Whether there is anything to read."""
        return self._size > 0 or self._journal_size >= 0

    @property
    def _cache_journal(self) -> str:
        return f"{self.path}.journal"

    def journal_of(self, scope: str) -> str:
        """Return the file of the journal of the DAG *scope*, whose name may be no name for a file."""
        return f"{self.path}.{_hash(scope)}.journal"

    def _read_head(self) -> bytes:
        return _head(self._read(self.path, _LONGEST_HEAD) or b"")


def _hash(scope: str) -> str:
    return hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _head(data: bytes) -> bytes:
    """Return the first line of a snapshot or journal; two of them with the same one are the same."""
    return data[:_LONGEST_HEAD].partition(b"\n")[0]


def _size(path: str) -> int:
    """Return the bytes in *path*, -1 if there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Return what changes when *path* is written to; None if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _is_young(stamp: tuple[int, int, int] | None) -> bool:
    """Return whether files that are written to now may get the stamp of one that has *stamp*."""
    return stamp is not None and abs(time.time_ns() - stamp[0]) < _COARSEST_CLOCK


def _aside(path: str) -> str:
    return f"{path}.corrupt-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}"


def _warn(path: str, damage: str, consequence: str) -> None:
    warnings.warn(f"{path} is damaged: {damage}. {consequence}", RuntimeWarning, stacklevel=2)
