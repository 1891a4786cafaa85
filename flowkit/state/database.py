"""A SQLite file that many processes and threads share, and that may be damaged.

Knows SQLite and the tables. Does not know what they are for.

What SQLite does not do by itself is to notice that the file has changed on the disk, so:

==================== ================================================================================================
a row is changed     it has a checksum over its columns, and is left out
a row is gone        if it is the latest record of its key: ``latest`` names it, so no older one is taken for it
a page is changed    ``quick_check`` when a small file is opened, else the error that SQLite raises when it gets there
the log is changed   SQLite leaves out all that comes after; :func:`_has_lost_commits` sees that, and the cache, in
                     which an older value may have come back, is left out, too
==================== ================================================================================================

A damaged file is set aside, and what can be read of it is copied into a new one. Other threads and processes may have
the old one open, and must not lose what they write:

1. Whoever mends holds the old file's write lock until the new one is in its place.
2. Whoever writes looks, once it has the write lock, whether its file still has the name. If not, it opens anew.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import sqlite3
import struct
import threading
import warnings
import weakref
from datetime import UTC, datetime
from pathlib import Path

from ..engine import forks
from ..exceptions import (
    StateCorruptError,
    StateError,
    StateLockedError,
    StateVersionError,
    StateWriteError,
    plural,
)
from .disk import Disk, attempt, make_folder, remove
from .locks import FileLock
from .rows import APPLICATION, HAVE_ID, INSERT, KEYS, SCHEMA, VERSION, WIDTH, is_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from sqlite3 import Connection
    from typing import Any, TypeVar


    T = TypeVar("T")
    Row = tuple[Any, ...]
    Stamp = tuple[int, int]

_BUSY_SECONDS = 30.0
"""How long a write waits for those of other processes, which take less than a millisecond each."""
_PATIENCE = 60.0
"""Seconds to wait for the lock under which the file is made or mended."""
_SMALL, _TINY = 32_000_000, 4_000_000
"""Files of up to so many bytes are checked when they are opened: their pages, which takes up to 1.5 ms for each
megabyte; of the smaller ones also each row, which takes 20 ms for each."""
_PAGE, _LOG_PAGES = 1024, 4000
"""Bytes of a page, of which a record changes three, and how many of them the log holds before they go into the file."""


class _Link:
    """A connection of one thread.

    Attributes:
        connection: None once it is closed.
        stamp: Which file it is a connection to.
        lock: Held while it is used or closed.
    """

    __slots__ = ("__weakref__", "_pid", "connection", "lock", "stamp")

    def __init__(self, connection: Connection, stamp: Stamp) -> None:
        self.connection: Connection | None = connection
        self.stamp = stamp
        self.lock = threading.Lock()
        self._pid = os.getpid()

    def use(self) -> Connection:
        """Return the connection. Under the lock.

        Raises:
            _MovedError: It was closed meanwhile.
        """
        if self.connection is None:
            raise _MovedError
        return self.connection

    def close(self) -> None:
        """Close it; but in a process that was forked off only forget it."""
        if self._pid != os.getpid():
            if self.connection is not None:
                _abandon(self.connection)
                self.connection = None
            return
        with self.lock:
            connection, self.connection = self.connection, None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    __del__ = close


class _MovedError(Exception):
    """A connection is closed, or its file has another name by now."""


class Database:
    """One file, and the connections of this process to it.

    Args:
        path: The file, absolute.
        syncs: Whether each write is to survive a power cut.
    """

    def __init__(self, path: str, *, syncs: bool) -> None:
        self.path = path
        self._syncs = syncs
        self._is_closed = False
        self._checked: Stamp | None = None
        """The file that :meth:`check` has found good."""
        self.close_in_child()
        forks.watch(self)

    def close_in_child(self) -> None:
        """Begin without connections in a process that was forked off: those of its parent must not be used in it."""
        self._local = threading.local()
        """Holds the link of each thread, which goes with the thread."""
        self._links: weakref.WeakSet[_Link] = weakref.WeakSet()
        self._links_lock = threading.Lock()
        self._writing = threading.Lock()
        """Makes threads wait for each other here; SQLite would have them sleep and look again."""

    def close(self) -> None:
        """Close the connections of all threads."""
        self._is_closed = True
        with self._links_lock:
            links = list(self._links)
        for link in links:
            link.close()

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return _stamp(self.path) is not None

    def open(self) -> None:
        """Connect to the file if there is one.

        Raises:
            StateError: It is not one to be used; see :meth:`check`.
        """
        self._own_link(_stamp(self.path))

    # ------------------------------------------------------------ using it

    def read(self, action: Callable[[Connection], T]) -> T | None:
        """Return ``action(connection)``, or None if there is no file.

        Raises:
            StateCorruptError: The file is damaged beyond repair, and was set aside.
            StateWriteError: It cannot be read.
        """
        return self._use(lambda link: action(link.use()), "read", creates=False)

    def write(self, action: Callable[[Connection], T]) -> T:
        """Return ``action(connection)``, which is done as a whole or not at all; on return it is durable.

        Raises:
            StateWriteError: The disk refused it.
            StateLockedError: Other processes have been writing for half a minute.
            StateCorruptError: The file is damaged beyond repair, and was set aside.
        """
        with self._writing:
            return self._use(lambda link: self._transact(link, action), "write", creates=True)  # type: ignore[return-value]

    def _transact(self, link: _Link, action: Callable[[Connection], T]) -> T:
        """Return ``action(connection)``, done in one transaction on the file that has the name now."""
        connection = link.use()
        try:
            if connection.in_transaction:  # a second Ctrl-C has kept the first one from ending it
                connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            if _stamp(self.path) != link.stamp:
                raise _MovedError
            found = action(connection)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        return found

    def _use(self, action: Callable[[_Link], T], during: str, *, creates: bool) -> T | None:
        """Return ``action(link)`` for this thread's connection to the file; None if there is none, and none is made."""
        is_mended = False
        link: _Link | None = getattr(self._local, "link", None) if creates else None  # a write looks by itself
        while True:
            link = link or self._own_link(_stamp(self.path) or (self._create() if creates else None))
            if link is None:
                if creates:  # somebody has removed it at once
                    continue
                return None
            try:
                with link.lock:
                    return action(link)
            except _MovedError:
                link = None
                continue
            except _FAILURES as error:
                self._drop(link)
                if _stamp(self.path) == link.stamp:
                    if is_mended or _reason(error) not in _DAMAGE:
                        raise _refusal(error, self.path, during) from error
                    self._mend(link.stamp, str(error))
                    is_mended = True
                link = None

    def _own_link(self, stamp: Stamp | None) -> _Link | None:
        """Return this thread's connection to the file that has *stamp*; None if that is none, or not any more."""
        if self._is_closed:
            raise StateError(f"the state {self.path} is closed.")
        link: _Link | None = getattr(self._local, "link", None)
        if link is not None:
            if link.stamp == stamp and link.connection is not None:
                return link
            self._drop(link)
        if stamp is not None and stamp != self._checked:
            self.check()
            stamp = self._checked
        if stamp is None:
            return None
        try:
            link = _Link(self._connect(), stamp)
        except _FAILURES as error:
            raise _refusal(error, self.path, "open") from error
        if _stamp(self.path) != stamp:  # so which of the two it is connected to is not known
            link.close()
            return self._own_link(_stamp(self.path))
        self._local.link = link
        with self._links_lock:
            self._links.add(link)
        if self._is_closed:  # since we have looked, so it may not have been seen
            link.close()
        return link

    def _drop(self, link: _Link) -> None:
        link.close()
        self._local.__dict__.pop("link", None)

    def _connect(self) -> Connection:
        connection = _open(self.path, "rw")
        try:
            for setting in (
                "journal_mode = WAL",
                f"synchronous = {'FULL' if self._syncs else 'NORMAL'}",
                f"wal_autocheckpoint = {_LOG_PAGES}",
                "secure_delete = ON",  # so that no page holds what once was true
                "cell_size_check = ON",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    # ------------------------------------------------------------ making it

    def check(self) -> None:
        """Look at the file, if there is one, before anything in it is believed.

        Raises:
            StateVersionError: It is another program's, or a newer flowkit's; it was not touched.
            StateCorruptError: It is no database, and was not touched; or nothing of it could be read.
            StateWriteError: It cannot be opened.
        """
        while True:
            stamp = _stamp(self.path)
            if stamp is None:
                break
            if os.path.isdir(self.path):
                raise StateWriteError(self.path, errno.EISDIR, "open", os.strerror(errno.EISDIR))
            if not os.access(self.path, os.R_OK):
                raise StateWriteError(self.path, errno.EACCES, "open", os.strerror(errno.EACCES))
            if os.path.exists(f"{self.path}.lock"):
                with contextlib.suppress(StateLockedError), self._locked(timeout=0.0):
                    pass  # to clear away
            damage = self._damage()
            if damage:
                self._mend(stamp, damage)
            elif _has_lost_commits(self._read_log()):
                self._mend(stamp, "its write-ahead log is damaged, and what was stored last is lost", is_of_log=True)
            if _stamp(self.path) == stamp:
                break
        self._checked = stamp

    def _damage(self) -> str:
        """Return what is wrong with the file; empty if nothing is. Changes nothing."""
        size = attempt(self.path, "open", os.path.getsize, self.path)
        if not size:
            return "it is empty"
        try:
            with contextlib.closing(_open(self.path, "ro")) as connection:
                ((application,),) = connection.execute("PRAGMA application_id")
                ((version,),) = connection.execute("PRAGMA user_version")
                found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
                if (application, version) != (APPLICATION, VERSION) and (application or version or found):
                    known = application == APPLICATION
                    raise StateVersionError(self.path, str(version) if known else "none", str(VERSION))
                if any(found.get(name) != text for name, text in SCHEMA.items()):
                    return "its tables are not there, or not as they were made"
                if size > _SMALL:
                    return ""
                ((said,), *_) = connection.execute("PRAGMA quick_check(1)")
                if said != "ok":
                    return str(said).replace("*** in database main ***\n", "")
                if size > _TINY:
                    return ""
                connection.text_factory = str  # faster, and what is no good text is damage as well
                count = sum(not is_whole(table, row) for table in KEYS for row in _rows(connection, table))
                return f"{plural(count, 'row')} with a checksum that does not fit" if count else ""
        except _FAILURES as error:
            if _reason(error) in _REFUSALS:
                raise _refusal(error, self.path, "open") from error
            if _reason(error) == sqlite3.SQLITE_NOTADB and not self._was_ours():
                raise StateCorruptError(self.path, "it is no SQLite database, and was not touched", 0) from error
            return str(error) if _reason(error) > 0 else "a row holds what is no text"

    def _was_ours(self) -> bool:
        """Return whether the beginning of a file that is no database any more looks like one of ours."""
        with open(self.path, "rb") as file:  # which nobody can have open as a database, and lose its locks by this
            return b"CREATE TABLE task_states" in file.read(65_536)

    def _read_log(self) -> bytes:
        try:
            with open(f"{self.path}-wal", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def _create(self) -> Stamp | None:
        """Make the file if there is still none."""
        make_folder(self.path)
        with self._locked():
            if not self.exists:
                new = self._build(lambda _: None)
                for suffix in ("-wal", "-shm", "-journal"):  # of a file that is gone; SQLite would take them for ours
                    if os.path.exists(self.path + suffix):
                        attempt(self.path, "rename", os.replace, self.path + suffix, _aside(self.path) + suffix)
                self._install(new)
        return _stamp(self.path)

    def _install(self, new: str) -> None:
        """Give the file at *new* its name."""
        attempt(self.path, "make", os.replace, new, self.path)
        if self._syncs:
            attempt(self.path, "sync the folder of", Disk().fsync_dir, os.path.dirname(self.path))

    @contextlib.contextmanager
    def _locked(self, timeout: float = _PATIENCE) -> Iterator[None]:
        """Hold the lock under which the file is made or mended; clear away what a process left that was killed then."""
        lock = FileLock(f"{self.path}.lock", os.path.basename(self.path), self.path, timeout)
        try:
            left = re.compile(re.escape(os.path.basename(self.path)) + r"\.[0-9a-f]{12}\.tmp(-journal)?")
            folder = os.path.dirname(self.path)
            for name in attempt(self.path, "look beside", os.listdir, folder):
                if left.fullmatch(name):
                    remove(Disk(), os.path.join(folder, name))
            yield
        finally:
            lock.release()

    def _build(self, fill: Callable[[Connection], None]) -> str:
        """Make a database with what *fill* puts into it, beside where it is to be; return its path."""
        path = f"{self.path}.{os.urandom(6).hex()}.tmp"
        os.close(attempt(self.path, "make", Disk().open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        try:
            with contextlib.closing(_open(path, "rw")) as connection:
                connection.execute(f"PRAGMA page_size = {_PAGE}")
                connection.execute("BEGIN")
                for text in SCHEMA.values():
                    connection.execute(text)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
                fill(connection)
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
        except BaseException as error:
            for suffix in ("", "-wal", "-shm", "-journal"):
                remove(Disk(), path + suffix)
            if isinstance(error, sqlite3.Error):
                raise _refusal(error, self.path, "make") from error
            raise
        return path

    # ------------------------------------------------------------ damage

    def whole(self, table: str, rows: Collection[Row]) -> list[Row]:
        """Return the *rows* of *table* that are as they were stored, and say so if others are not."""
        found = [row for row in rows if is_whole(table, row)]
        self.report(len(rows) - len(found), "They are left out.")
        return found

    def report(self, count: int, consequence: str) -> None:
        """Say that *count* rows are damaged, if any."""
        if count:
            self._warn(f"{plural(count, 'row')} with a checksum that does not fit", consequence)

    def _warn(self, damage: str, consequence: str) -> None:
        warnings.warn(f"{self.path} is damaged: {damage}. {consequence}", RuntimeWarning, stacklevel=2)

    def _mend(self, stamp: Stamp, damage: str, *, is_of_log: bool = False) -> None:
        """Set the file with *stamp* aside, and put one in its place that has what can be trusted.

        Raises:
            StateCorruptError: Not even its tables can be read.
        """
        kept: list[int] = []
        with self._locked():
            if _stamp(self.path) != stamp:  # somebody was faster
                return
            with contextlib.closing(_open(self.path, "rw")) as old:
                with contextlib.suppress(sqlite3.Error):
                    old.execute("PRAGMA writable_schema = ON")  # or nothing can be read of a file that is cut off
                    old.execute("BEGIN IMMEDIATE")
                if is_of_log and not _has_lost_commits(self._read_log()):  # somebody was writing it
                    return
                tables = [table for table in KEYS if not is_of_log or table not in {"cache", "latest"}]
                new = self._build(lambda connection: kept.append(_salvage(old, connection, tables)))
                if os.name == "nt":  # where a file that is open cannot be renamed
                    old.close()
                aside = _aside(self.path)
                attempt(self.path, "rename", os.replace, self.path, aside)
                if os.path.exists(f"{self.path}-wal"):
                    attempt(self.path, "rename", os.replace, f"{self.path}-wal", f"{aside}-wal")
                    if not os.path.getsize(f"{aside}-wal"):
                        remove(Disk(), f"{aside}-wal")
                remove(Disk(), f"{self.path}-shm")  # which only says what is in the log
                if kept[0] < 0:
                    remove(Disk(), new)
                    raise StateCorruptError(self.path, f"{damage} (it is now {aside})", 0)
                self._install(new)
        self._warn(damage, f"Entries kept: {kept[0]}. The damaged file is now {aside}.")


def _open(path: str, mode: str) -> Connection:
    """Connect to the database at *path*, which must be there."""
    connection = sqlite3.connect(
        f"{Path(path).as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None,
        check_same_thread=False,
    )  # fmt: skip
    connection.text_factory = lambda text: text.decode("utf-8", "replace")  # a checksum says whether it is right
    return connection


def _stamp(path: str) -> Stamp | None:
    """Return what tells the file at *path* from any other; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _aside(path: str) -> str:
    return f"{path}.corrupt-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}"


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""What SQLite says when it comes across damage in a file that was good before."""
_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_TOOBIG: errno.EFBIG,
}
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_REFUSALS = _BUSY.union(_ERRNO, {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH})
"""What it says when the file may be good. Any other error of a statement of ours means that the tables are not."""


_FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""The second is what the module raises when SQLite tells of damage and quotes it."""


def _reason(error: Exception) -> int:
    """Return SQLite's code without its details; -1 for an error of the module itself."""
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def _refusal(error: Exception, path: str, during: str) -> StateError:
    """Return what to raise for *error*."""
    if _reason(error) in _DAMAGE:
        return StateCorruptError(path, str(error), 0)
    if _reason(error) in _BUSY:
        return StateLockedError(os.path.basename(path), path, 0, "", "")
    return StateWriteError(path, _ERRNO.get(_reason(error)), during, str(error))


_inherited: list[Connection] = []
"""Connections of the process that this one was forked off from."""


def _abandon(connection: Connection) -> None:
    """Have *connection*, of another process, never be closed by this one: SQLite could take away that one's log."""
    if not _inherited:
        atexit.register(_leak)
    _inherited.append(connection)


def _leak() -> None:
    """Keep what was abandoned over the end of the interpreter, which would close it."""
    with contextlib.suppress(ImportError, AttributeError):
        import ctypes  # noqa: PLC0415 - only where a process ends that was forked off

        for connection in _inherited:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


# ---------------------------------------------------------------- the write-ahead log


def _has_lost_commits(log: bytes) -> bool:
    """Return whether a frame of *log* is damaged that comes before a commit.

    SQLite takes such a log for one that ends there. Frames are written in order, so this is not what a process leaves
    that was killed. The last commit may be cut off by that, and is not looked at. See "WAL File Format" of SQLite.
    """
    if len(log) <= 32:
        return False
    magic, _, page_size, _, _, _, *sums = struct.unpack(">8I", log[:32])
    order = ">" if magic & 1 else "<"
    if magic & ~1 != 0x377F0682 or _sums(order, log[:24], [0, 0]) != sums:
        return True
    size = 24 + page_size
    salts = log[16:24]
    starts = range(32, len(log) - size + 1, size)
    commits = [start for start in starts if log[start + 8 : start + 16] == salts and any(log[start + 4 : start + 8])]
    for start in range(32, commits[-1] if commits else 0, size):
        sums = _sums(order, log[start : start + 8] + log[start + 24 : start + size], sums)
        if log[start + 8 : start + 16] != salts or [*struct.unpack(">2I", log[start + 16 : start + 24])] != sums:
            return True
    return False


def _sums(order: str, data: bytes, sums: list[int]) -> list[int]:
    first, second = sums
    for one, other in struct.iter_unpack(f"{order}2I", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return [first, second]


# ---------------------------------------------------------------- what can be read of a damaged file


def _salvage(old: Connection, new: Connection, tables: Collection[str]) -> int:
    """Copy what can be trusted of *tables*; return how many values and results that is, -1 if nothing can be read."""
    try:
        old.execute("SELECT name FROM sqlite_master").fetchall()
    except _FAILURES:
        return -1
    for table in sorted(HAVE_ID.intersection(tables)):
        _copy(_walk(old, table), new, table)
    for table, query in _NAMED.items():
        if table in tables:
            where = " AND ".join(f"{column} = ?" for column in KEYS[table])
            for key in new.execute(query).fetchall():
                with contextlib.suppress(*_FAILURES):
                    _copy(old.execute(f"SELECT * FROM {table} WHERE {where}", key), new, table)  # noqa: S608
    new.execute(
        "DELETE FROM latest WHERE NOT EXISTS (SELECT 1 FROM task_states s WHERE s.id = latest.id "
        "AND s.workflow = latest.workflow AND s.task = latest.task AND s.number = latest.number)"
    )
    ((count,),) = new.execute("SELECT (SELECT count(*) FROM cache) + (SELECT count(*) FROM latest)")
    return int(count)


_NAMED = {
    "latest": "SELECT DISTINCT workflow, task, ifnull(item, -1) FROM task_states",
    "codes": "SELECT DISTINCT workflow, code FROM task_states",
    "workflows": "SELECT workflow FROM task_states UNION SELECT workflow FROM runs",
}
"""What gives the keys of the rows of a table that has no ids."""


def _copy(rows: Iterable[Row], new: Connection, table: str) -> None:
    for row in rows:
        if len(row) == WIDTH[table] and is_whole(table, row):
            new.execute(INSERT[table], row)


def _walk(connection: Connection, table: str) -> Iterator[Row]:
    """Yield the rows of *table*, by their ids, and step over what cannot be read."""
    query = f"SELECT * FROM {table} NOT INDEXED WHERE id > ? ORDER BY id LIMIT 1"  # noqa: S608 - a name of ours

    def look(after: int) -> Row | None:
        """Return the next row; one that is empty if that cannot be read, None if there is none."""
        try:
            row: Row | None = connection.execute(query, (after,)).fetchone()
        except _FAILURES:
            return ()
        return row

    after, last = -(1 << 63), (1 << 63) - 1
    while True:
        row = look(after)
        if row == ():  # look further and further away, and then for the first id from which on there is something
            low, step = after, 1
            while row == ():
                if after + step > last:
                    return
                low, high = max(low, after + step // 2), after + step
                row, step = look(high), 2 * step
            while high - low > 1:
                middle = (low + high) // 2
                found = look(middle)
                if found == ():
                    low = middle
                else:
                    high, row = middle, found
        if not row or row[0] <= after:
            return
        yield row
        after = row[0]


def _rows(connection: Connection, table: str) -> Iterator[Row]:
    """Yield the rows of *table*, by the tree that holds them."""
    order = ", ".join(KEYS[table])
    yield from connection.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY {order}")  # noqa: S608 - names of ours
