"""``SQLiteStateStore``: a cache and the checkpoints of runs, in one SQLite database.

Knows SQLite, the tables and the codec. Does not know tasks or runs.

Four parts: the store; what it keeps of one DAG; :class:`Database`, which has the connections and is careful with the
file; the tables. What SQLite does not do by itself is to notice that the file has changed on the disk, so:

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
import hashlib
import json
import math
import os
import re
import socket
import sqlite3
import struct
import threading
import time
import warnings
import weakref
from datetime import UTC, datetime
from functools import cached_property
from marshal import dumps
from pathlib import Path
from zlib import crc32

from ..engine import forks
from ..exceptions import (
    OptionError,
    StateCorruptError,
    StateError,
    StateLockedError,
    StateVersionError,
    StateWriteError,
    plural,
    shown,
)
from .codec import Codec
from .disk import Disk, attempt, make_folder, remove
from .face import Cache, Entry
from .locks import FileLock
from .manager import absolute, check_private
from .store import SUCCEEDED, Record, check_options, iso
from .taskstates import TaskStates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from sqlite3 import Connection
    from typing import Any, Self, TypeVar

    from .store import Scope, View

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
_DAY = 86_400.0
_PAGE, _LOG_PAGES = 1024, 4000
"""Bytes of a page, of which a record changes three, and how many of them the log holds before they go into the file."""


class SQLiteStateStore(TaskStates, Cache):
    """Values by key, and the results of runs, in one SQLite database: for many processes and large histories.

    It does what ``StateManager(path)`` does. A value costs the same however many there are, every record of a task is
    kept as history for *gc_days*, and any SQLite tool can read it. The tables (times are ISO 8601 in UTC, durations
    seconds; whatever changes a row by other means than this class makes its ``checksum`` wrong, and it is left out):

    =============== ==============================================================================================
    ``runs``        one row for each run: ``id, workflow, run_id, status, started_at, ended_at, duration, pid, host``;
                    *workflow* is the name of the DAG or workflow; *status* is ``RUNNING`` until the run ends, and
                    ``KILLED`` if a later one finds that it never did
    ``task_states`` one row for each record of a task: ``id, workflow, task, item, number, status, code, upstream,
                    run_id, ended_at, duration, attempts, result, error, metadata``; *status* is ``COMPLETED``,
                    ``FAILED`` or ``SKIPPED``, *item* NULL for a task as a whole, *code* its fingerprint, *upstream*
                    the numbers of the records that it was made from, *result* and *metadata* are JSON
    ``latest``      the ``id`` of the row that counts, by ``workflow, task, item``; *item* is -1 for a task as a whole
    ``codes``       what a fingerprint is made of, by ``workflow, code``: *parts* is JSON
    ``workflows``   ``workflow``, the ``last_number`` of its records, and when the ``oldest`` of them can have ended
    ``cache``       ``key, value, timestamp, ttl, metadata``; *timestamp* is in seconds since 1970
    =============== ==============================================================================================

    Each thread has a connection of its own, which is closed with the thread or the store. So close it, or write ``with
    SQLiteStateStore("state.db") as store:``. A damaged file is set aside under another name, what of it can be trusted
    is kept, and a warning says so.

    Args:
        path: The file; it and its folder are made with the first write. Two more stand beside it while it is in use.
        default_ttl: For how many seconds values are valid if :meth:`set` does not say; None for ever.
        gc_days: Records, runs and fingerprints that are older go when a run ends; None to keep them for ever.
        durability: "process": what is stored survives the end of the process, whatever ends it. "power": also a power
            cut, which costs a sync of the disk for each result.
        serializer: "json", or "pickle" to keep by pickle what JSON cannot hold. Whoever can write to a file with
            pickles can run code in the process that reads it; its folder must belong to you alone.
        strict: Whether a result that cannot be stored is an error, rather than a warning and run again on resume.
        lock_timeout: How many seconds a run waits for another one of the same name on the same file.

    Attributes:
        path: The file, absolute.
        is_strict: Whether a result that cannot be stored is an error.
        lock_timeout: How many seconds a run waits for another one of the same name.

    Raises:
        OptionError: An argument is out of range.
        StateVersionError: The file is another program's database, or a newer flowkit's.
        StateCorruptError: It is no database, or nothing of it can be read any more.
        StateWriteError: It cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        default_ttl: float | None = None,
        *,
        gc_days: float | None = 30,
        durability: str = "process",
        serializer: str = "json",
        strict: bool = False,
        lock_timeout: float = 0.0,
    ) -> None:
        super().__init__(default_ttl)
        where = type(self).__name__
        check_options(where, durability, serializer, strict=strict, lock_timeout=lock_timeout)
        _check_days(where, gc_days)
        if isinstance(path, (str, os.PathLike)) and os.fspath(path) == ":memory:":
            raise OptionError(f"{where}: ':memory:' is no file. To keep everything in memory write StateManager().")
        self.path = absolute(where, path)
        self.is_strict = strict
        self._gc_days = gc_days
        self.lock_timeout = lock_timeout
        self._pickles = serializer == "pickle"
        self._trusted: set[str] = set()
        self._codec = Codec(pickles=self._pickles)
        if self._pickles:
            check_private(where, self.path)
        self._database = Database(str(self.path), syncs=durability == "power")
        self._closed = weakref.finalize(self, self._database.close)
        self._database.open()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path.name!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; the store cannot be used any more. Once more does nothing."""
        self._closed()

    # ------------------------------------------------------------ the cache

    def trust(self, module: str) -> None:
        """Let dataclasses, named tuples and enums of *module* be kept, as if each were registered."""
        self._trusted.add(module)
        self._codec = Codec(modules=set(self._trusted), pickles=self._pickles)

    def _find(self, key: str) -> Entry | None:
        query = "SELECT * FROM cache WHERE id = ?"
        rows = self._database.read(lambda connection: connection.execute(query, (_id_of(key),)).fetchall())
        return self._entries(rows).get(key)

    def _find_all(self) -> dict[str, Entry]:
        entries = self._entries(self._database.read(lambda c: c.execute("SELECT * FROM cache").fetchall()))
        return dict(sorted(entries.items(), key=lambda pair: pair[1].timestamp))

    def _entries(self, rows: list[Row] | None) -> dict[str, Entry]:
        decode = self._codec.decode
        whole = self._database.whole("cache", rows or ())
        return {_told(key): Entry(decode(value), at, ttl, decode(more)) for _, key, value, at, ttl, more, _ in whole}

    def _put(self, key: str, entry: Entry) -> None:
        value, metadata = self._codec.encode(entry.value), self._codec.encode(dict(entry.metadata))
        ttl = None if entry.ttl is None else float(max(-1e300, min(entry.ttl, 1e300))) + 0.0
        columns = (_stored(key), value, float(entry.timestamp), ttl, metadata)
        self._database.write(lambda connection: _put(connection, "cache", *columns, row_id=_id_of(key)))

    def _remove(self, keys: list[str] | None, expired_at: float | None = None) -> list[str]:
        def remove_rows(connection: Connection) -> list[str]:
            if keys is not None:
                delete = "DELETE FROM cache WHERE id = ?"
                return [key for key in keys if connection.execute(delete, (_id_of(key),)).rowcount]
            where, values = "", []
            if expired_at is not None:
                where, values = "WHERE ttl < 0 OR ? - timestamp > ttl", [expired_at]
            gone = connection.execute(f"SELECT key FROM cache {where} ORDER BY timestamp", values).fetchall()  # noqa: S608
            connection.execute(f"DELETE FROM cache {where}", values)  # noqa: S608 - one of the two texts above
            return [_told(key) for (key,) in gone]

        return self._database.write(remove_rows) if self._database.exists else []

    # ------------------------------------------------------------ what runs have stored

    def clear_runs(self, name: str | None = None) -> None:
        """Forget the results and the history of the DAG *name*, or of all; the values by key stay.

        Raises:
            StateLockedError: Such a run goes on.
            StateWriteError: The disk refused it.
        """
        if not self._database.exists:
            return
        for workflow in self.scopes() if name is None else [name]:
            lock = self._lock(workflow)
            try:
                self._database.write(lambda c, workflow=workflow: _forget(c, workflow))  # type: ignore[misc]
            finally:
                lock.release()

    def scopes(self) -> list[str]:
        """Return the names of the DAGs and workflows of which something is kept."""
        query = "SELECT workflow FROM workflows UNION SELECT workflow FROM runs UNION SELECT workflow FROM task_states"
        return [_told(workflow) for (workflow,) in self._database.read(lambda c: c.execute(query).fetchall()) or ()]

    def find_record(self, workflow: str, task: str) -> Record | None:
        """Return the latest record of *task* of *workflow*; None if there is none."""
        query, key = f"{_SELECT_LATEST} AND latest.task = ? AND latest.item = -1", (_stored(workflow), _stored(task))
        rows = self._database.read(lambda c: c.execute(query, key).fetchall()) or ()
        return next((found for row in rows if (found := _record_of(row)) is not None), None)

    def save_record(self, workflow: str, task: str, record: Record) -> None:
        """Keep *record*, which somebody has made by hand."""
        columns = _columns_of(workflow, task, record, -1)

        def save(connection: Connection) -> None:
            own = columns[0]
            row_id = _put(connection, "task_states", *columns)
            _put(connection, "latest", own, columns[1], -1, record.number, row_id)
            last, oldest = _read_workflow(connection, own)
            _put(connection, "workflows", own, last, min(oldest, iso(record.ended_at)))

        self._database.write(save)

    def forget_record(self, workflow: str, task: str) -> None:
        """Forget everything of *task* of *workflow*, its history too."""
        if self.find_record(workflow, task) is None:
            return
        lock = self._lock(workflow)
        try:
            self._database.write(lambda connection: _forget(connection, workflow, task))
        finally:
            lock.release()

    def codec(self, modules: Collection[str]) -> Codec:
        """Return what turns values into text, for tasks of *modules*."""
        return Codec(modules=modules, pickles=self._pickles)

    def open_scope(self, name: str, run_id: str) -> Scope:
        """Return what is kept of the DAG *name*, for one run alone.

        Raises:
            StateLockedError: Another run has it.
            StateWriteError: The disk refused it.
        """
        make_folder(str(self.path))
        lock = self._lock(name)
        try:
            return SQLiteScope(self, self._database, name, run_id, lock, self._gc_days)
        except BaseException:
            lock.release()
            raise

    def _lock(self, name: str) -> FileLock:
        """Let nobody else have what is kept of the DAG *name*."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        return FileLock(f"{self.path}.{digest}.lock", name, str(self.path), 0)

    def read_scope(self, name: str) -> View:
        """Return what is kept of the DAG *name* without having it."""
        view = SQLiteView(self._database, name)
        view.load()
        return view

    # ------------------------------------------------------------ queries

    def query_task_history(self, name: str, limit: int = 100, *, workflow: str | None = None) -> list[dict[str, Any]]:
        """Return the records of the task *name*, the newest first.

        Args:
            name: The task, in whatever DAG.
            limit: How many there are at most.
            workflow: The name of the DAG or workflow; None for all.

        Returns:
            For each: ``workflow``, ``task``, ``item`` (None for a task as a whole), ``run_id``, ``status``,
            ``ended_at`` (ISO 8601, UTC), ``duration`` (seconds), ``attempts``, and ``error`` ("" if there is none).
        """
        # The index begins with the workflow, so all of them are named.
        among = "SELECT workflow FROM workflows" if workflow is None else "?"
        query = f"SELECT * FROM task_states WHERE workflow IN ({among}) AND task = ? ORDER BY ended_at DESC, id DESC LIMIT ?"  # noqa: E501, S608
        own = [] if workflow is None else [_stored(workflow)]
        values = (*own, _stored(name), _check_limit("query_task_history", limit))
        rows = self._database.read(lambda connection: connection.execute(query, values).fetchall())
        return [
            {
                "workflow": _told(row[1]), "task": _told(row[2]), "item": row[3], "run_id": row[8], "status": row[5],
                "ended_at": row[9], "duration": row[10], "attempts": row[11], "error": _told(row[13] or ""),
            }
            for row in self._database.whole("task_states", rows or ())
        ]  # fmt: skip

    def query_runs(self, workflow: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return the runs of the DAG or workflow *workflow*, or of all, the newest first.

        Args:
            workflow: Its name; None for all.
            limit: How many there are at most.

        Returns:
            For each: ``workflow``, ``run_id``, ``status``, ``started_at``, ``ended_at`` (None while it is running),
            ``duration`` (seconds, or None), ``pid`` and ``host``.
        """
        where, values = ("", ()) if workflow is None else ("WHERE workflow = ?", (_stored(workflow),))
        query, values = f"SELECT * FROM runs {where} ORDER BY id DESC LIMIT ?", (*values, _check_limit("query_runs", limit))  # noqa: E501, S608
        rows = self._database.read(lambda connection: connection.execute(query, values).fetchall())
        names = ("workflow", "run_id", "status", "started_at", "ended_at", "duration", "pid", "host")
        return [
            {**dict(zip(names, row[1:-1], strict=True)), "workflow": _told(row[1])}
            for row in self._database.whole("runs", rows or ())
        ]


def _check_days(where: str, days: float | None) -> None:
    if days is None:
        return
    if isinstance(days, bool) or not isinstance(days, (int, float)) or not 0 < days < math.inf:
        raise OptionError(f"{where}: gc_days={shown(days)} must be a number of days above 0, or None.")


def _check_limit(where: str, limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 1 << 63:
        raise OptionError(f"{where}: limit={shown(limit)} must be a whole number from 0 on.")
    return limit


# ---------------------------------------------------------------- what is kept of one DAG


class SQLiteView:
    """What *database* keeps of the DAG *name*. It is read with the first look, or by :meth:`load`."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    def load(self) -> None:
        """Read everything now."""
        self._records = self._read_records()
        self.codes = self._read_codes()

    @cached_property
    def tasks(self) -> Mapping[str, Record]:
        """The latest record of each task."""
        return {task: record for (task, item), record in self._records.items() if item < 0}

    @cached_property
    def items(self) -> Mapping[str, Mapping[int, Record]]:
        """The latest record of each item of a mapped task."""
        items: dict[str, dict[int, Record]] = {}
        for (task, item), record in self._records.items():
            if item >= 0:
                items.setdefault(task, {})[item] = record
        return items

    @cached_property
    def codes(self) -> Mapping[str, Mapping[str, str]]:
        """What each fingerprint is made of."""
        return self._read_codes()

    @cached_property
    def _records(self) -> dict[tuple[str, int], Record]:
        return self._read_records()

    def _read_records(self) -> dict[tuple[str, int], Record]:
        own = self._read_latest(self._name)
        return {**self._read_latest(""), **own} if self._name else own  # what belongs to no DAG is there for all

    def _read_latest(self, name: str) -> dict[tuple[str, int], Record]:
        rows = self._database.read(lambda c: c.execute(_SELECT_LATEST, (_stored(name),)).fetchall()) or ()
        records = {}
        for row in rows:
            found = _record_of(row)
            if found is not None:
                records[_told(row[1]), row[2]] = found
        self._database.report(len(rows) - len(records), "Tasks whose results are lost run again.")
        return records

    def _read_codes(self) -> dict[str, Mapping[str, str]]:
        query = "SELECT * FROM codes WHERE workflow = ?"
        rows = self._database.read(lambda c: c.execute(query, (_stored(self._name),)).fetchall())
        return {code: json.loads(parts) for _, code, parts, _ in self._database.whole("codes", rows or ())}


class SQLiteScope(SQLiteView):
    """The same while one run has it, which is until *lock* is released."""

    def __init__(
        self, store: SQLiteStateStore, database: Database, name: str, run_id: str, lock: FileLock, gc_days: float | None
    ) -> None:
        super().__init__(database, name)
        self._store = store
        """Without it the connections would be closed once nobody else has the store."""
        self._lock = lock
        self._gc_days = gc_days
        self._opened_at = time.time()
        self._mutex = threading.Lock()
        self._failure: StateError | None = None
        """Why nothing is appended any more."""
        self._numbers: dict[tuple[str, int], int] = {}
        """The number of the latest record of each key that this run has appended."""
        self._new_codes: dict[str, str] = {}
        """What is written together with the next record."""
        self._oldest = self._opened_at
        self._run = (name, run_id, os.getpid(), socket.gethostname())
        self.last_number = database.write(self._begin)

    def _begin(self, connection: Connection) -> int:
        """Note that the run goes on; return the last number of a record."""
        name, run_id, pid, host = self._run
        workflow = _stored(name)
        running = "SELECT * FROM runs WHERE workflow = ? AND status = 'RUNNING'"
        for row in connection.execute(running, (workflow,)).fetchall():
            if _is_whole("runs", row):
                _put(connection, "runs", *row[1:3], "KILLED", *row[4:-1], row_id=row[0])
        _put(connection, "runs", workflow, run_id, "RUNNING", iso(self._opened_at), None, None, pid, host)
        last, oldest = _read_workflow(connection, workflow)
        _put(connection, "workflows", workflow, last, min(oldest, iso(self._opened_at)))
        return last

    def append(self, task: str, record: Record, item: int = -1) -> None:
        """Keep *record*; on return it survives the end of the process."""
        columns = _columns_of(self._name, task, record, item)
        with self._mutex:
            if self._failure is not None:
                raise self._failure
            # A record of an attempt that was given up meanwhile comes late, with a number from before.
            is_latest = record.number >= self._numbers.get((task, item), 0)
            try:
                self._database.write(lambda connection: self._add(connection, columns, item, is_latest=is_latest))
            except StateWriteError as failure:
                self._failure = failure
                raise
            self._new_codes.clear()
            if is_latest:
                self._numbers[task, item] = record.number
            self.last_number = max(self.last_number, record.number)
            self._oldest = min(self._oldest, record.ended_at)

    def _add(self, connection: Connection, columns: Row, item: int, *, is_latest: bool) -> None:
        self._add_codes(connection)
        row_id = _put(connection, "task_states", *columns)
        if is_latest:
            workflow, task, _, number = columns[:4]
            _put(connection, "latest", workflow, task, item, number, row_id)

    def add_code(self, code: str, parts: Mapping[str, str]) -> None:
        """Keep what the fingerprint *code* is made of; it is written together with the next record."""
        with self._mutex:
            self._new_codes[code] = json.dumps(parts)

    def _add_codes(self, connection: Connection) -> None:
        for code, parts in self._new_codes.items():
            row = _seal(_stored(self._name), code, parts)
            same = "SELECT 1 FROM codes WHERE workflow = ? AND code = ? AND parts = ? AND checksum = ?"
            if connection.execute(same, row).fetchone() is None:
                _put(connection, "codes", *row[:-1])

    def close(self, state: str, started_at: float, duration: float) -> None:
        """End the run, forget what is too old, and let others have the scope."""
        try:
            with self._mutex:
                told = f"the run {self._run[1]!r} of {self._name!r} is over: nothing is added to what it has stored."
                self._failure = self._failure or StateError(told)
                self._database.write(lambda c: self._end(c, state, started_at or self._opened_at, duration))
        finally:
            self._lock.release()

    def _end(self, connection: Connection, state: str, started_at: float, duration: float) -> None:
        name, run_id, pid, host = self._run
        workflow = _stored(name)
        times = (iso(started_at), iso(started_at + duration), float(duration) + 0.0)
        self._add_codes(connection)
        own = "SELECT id FROM runs WHERE workflow = ? AND status = 'RUNNING' AND run_id = ?"
        (row_id,) = connection.execute(own, (workflow, run_id)).fetchone() or (None,)
        status = SUCCEEDED if state == "succeeded" else state.upper()
        _put(connection, "runs", workflow, run_id, status, *times, pid, host, row_id=row_id)
        last, oldest = _read_workflow(connection, workflow)
        _put(connection, "workflows", workflow, max(last, self.last_number), min(oldest, iso(self._oldest)))
        if self._gc_days is not None:
            _sweep(connection, workflow, iso(time.time() - self._gc_days * _DAY))


# ---------------------------------------------------------------- the file


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
                if (application, version) != (_APPLICATION, _VERSION) and (application or version or found):
                    known = application == _APPLICATION
                    raise StateVersionError(self.path, str(version) if known else "none", str(_VERSION))
                if any(found.get(name) != text for name, text in _SCHEMA.items()):
                    return "its tables are not there, or not as they were made"
                if size > _SMALL:
                    return ""
                ((said,), *_) = connection.execute("PRAGMA quick_check(1)")
                if said != "ok":
                    return str(said).replace("*** in database main ***\n", "")
                if size > _TINY:
                    return ""
                connection.text_factory = str  # faster, and what is no good text is damage as well
                count = sum(not _is_whole(table, row) for table in _KEYS for row in _rows(connection, table))
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
                for text in _SCHEMA.values():
                    connection.execute(text)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
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
        found = [row for row in rows if _is_whole(table, row)]
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
                tables = [table for table in _KEYS if not is_of_log or table not in {"cache", "latest"}]
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


# ---------------------------------------------------------------- tables and rows

_APPLICATION = 0x666C6F77
"""The number in the file's header that says whose it is: "flow"."""
_VERSION = 1
_SCHEMA = {
    # Its id is made of the key, so there is no index that the table could disagree with.
    "cache": """CREATE TABLE cache (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, timestamp REAL NOT NULL, ttl REAL,
    metadata TEXT NOT NULL, checksum INTEGER NOT NULL)""",
    "runs": """CREATE TABLE runs (
    id INTEGER PRIMARY KEY, workflow TEXT NOT NULL, run_id TEXT NOT NULL, status TEXT NOT NULL,
    started_at TEXT NOT NULL, ended_at TEXT, duration REAL, pid INTEGER NOT NULL, host TEXT NOT NULL,
    checksum INTEGER NOT NULL)""",
    "task_states": """CREATE TABLE task_states (
    id INTEGER PRIMARY KEY, workflow TEXT NOT NULL, task TEXT NOT NULL, item INTEGER, number INTEGER NOT NULL,
    status TEXT NOT NULL, code TEXT NOT NULL, upstream TEXT NOT NULL, run_id TEXT NOT NULL, ended_at TEXT NOT NULL,
    duration REAL NOT NULL, attempts INTEGER NOT NULL, result TEXT, error TEXT, metadata TEXT,
    checksum INTEGER NOT NULL)""",
    "latest": """CREATE TABLE latest (
    workflow TEXT NOT NULL, task TEXT NOT NULL, item INTEGER NOT NULL, number INTEGER NOT NULL, id INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (workflow, task, item)) WITHOUT ROWID""",
    "codes": """CREATE TABLE codes (
    workflow TEXT NOT NULL, code TEXT NOT NULL, parts TEXT NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (workflow, code)) WITHOUT ROWID""",
    "workflows": """CREATE TABLE workflows (
    workflow TEXT PRIMARY KEY NOT NULL, last_number INTEGER NOT NULL, oldest TEXT NOT NULL, checksum INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "runs_by_workflow": "CREATE INDEX runs_by_workflow ON runs (workflow, status, started_at)",
    "task_states_by_task": "CREATE INDEX task_states_by_task ON task_states (workflow, task, status, ended_at)",
}
_KEYS = {
    "cache": ("id",),
    "runs": ("id",),
    "task_states": ("id",),
    "latest": ("workflow", "task", "item"),
    "codes": ("workflow", "code"),
    "workflows": ("workflow",),
}
_NEVER = "9999"
"""After every time."""
_HAVE_ID = frozenset({"cache", "runs", "task_states"})
"""Tables whose first column is an id, over which the checksum does not go: ``latest`` or the key tells that it fits."""
_WIDTH = {"cache": 7, "runs": 10, "task_states": 16, "latest": 6, "codes": 4, "workflows": 4}
_INSERT = {table: f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * width)})" for table, width in _WIDTH.items()}  # noqa: E501, S608
_SELECT_LATEST = "SELECT * FROM latest LEFT JOIN task_states ON task_states.id = latest.id WHERE latest.workflow = ?"


_MARSHAL = 2
"""The last version of marshal's format that says the same whatever else refers to the value."""


def _seal(*columns: Any) -> Row:
    """Return *columns* with their checksum. They must come back from SQLite as they are: no -0.0, no NaN."""
    return (*columns, crc32(dumps(columns, _MARSHAL)))


def _is_whole(table: str, row: Row) -> bool:
    first = table in _HAVE_ID
    if row[-1] != crc32(dumps(row[first:-1], _MARSHAL)):
        return False
    return table != "cache" or bool(row[0] == _id_of(_told(row[1])))


def _put(connection: Connection, table: str, *columns: object, row_id: int | None = None) -> int:
    """Insert a row, or replace the one of the same key or id; return its id."""
    row = _seal(*columns)
    cursor = connection.execute(_INSERT[table], (row_id, *row) if table in _HAVE_ID else row)
    return cursor.lastrowid or 0


def _stored(text: str) -> str | bytes:
    """Return *text* as it stands in a column: as bytes if it is no good Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _told(stored: str | bytes) -> str:
    """Return the text that *stored* stands for."""
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def _id_of(key: str) -> int:
    """Return the id of the row of *key* in the cache; two keys with one id are not to be expected."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_compact = json.JSONEncoder(separators=(",", ":")).encode


def _columns_of(workflow: str, task: str, record: Record, item: int) -> Row:
    """Return *record* as columns of task_states."""
    return (
        _stored(workflow), _stored(task), None if item < 0 else item, record.number, record.state, record.code,
        _compact(record.upstream) if record.upstream else "[]", record.run_id, iso(record.ended_at),
        float(record.duration) + 0.0, record.attempts, record.value or None, _stored(record.error) or None,
        record.metadata or None,
    )  # fmt: skip


def _record_of(row: Row) -> Record | None:
    """Return the record in *row*, of latest and task_states; None if one of the two is damaged, or it is not there."""
    width = _WIDTH["latest"]
    head, body = row[:width], row[width:]
    if not _is_whole("latest", head) or not _is_whole("task_states", body):
        return None
    workflow, task, item, number, *_ = head
    if body[1:5] != (workflow, task, None if item < 0 else item, number):
        return None
    _, _, _, _, number, state, code, upstream, run_id, ended_at, duration, attempts, value, error, metadata, _ = body
    return Record(
        number, state, code, json.loads(upstream), run_id, datetime.fromisoformat(ended_at).timestamp(), duration,
        attempts, value or "", _told(error or ""), metadata or "",
    )  # fmt: skip


def _read_workflow(connection: Connection, workflow: str | bytes) -> tuple[int, str]:
    """Return the last number of *workflow*, and since when there can be records of it."""
    row = connection.execute("SELECT * FROM workflows WHERE workflow = ?", (workflow,)).fetchone()
    last, oldest = (row[1], row[2]) if row is not None and _is_whole("workflows", row) else (0, "" if row else _NEVER)
    # What a run that was killed has appended. A number that is damaged may be of any size.
    query = "SELECT max(number) FROM latest WHERE workflow = ? AND typeof(number) = 'integer' AND number < 1 << 53"
    ((found,),) = connection.execute(query, (workflow,))
    return max(last, found or 0), oldest


def _forget(connection: Connection, name: str, task: str = "") -> None:
    """Delete everything of the DAG *name*, or of one of its tasks."""
    if task:
        for table in ("task_states", "latest"):
            own = (_stored(name), _stored(task))
            connection.execute(f"DELETE FROM {table} WHERE workflow = ? AND task = ?", own)  # noqa: S608 - as below
        return
    for table in ("runs", "task_states", "latest", "codes", "workflows"):
        connection.execute(f"DELETE FROM {table} WHERE workflow = ?", (_stored(name),))  # noqa: S608 - one of the names above


def _sweep(connection: Connection, own: str | bytes, before: str) -> None:
    """Delete what has ended *before*, of the DAG *own* and of all others."""
    execute = connection.execute
    for row in execute("SELECT * FROM workflows WHERE oldest < ?", (before,)).fetchall():
        workflow = row[0]
        execute("DELETE FROM task_states WHERE workflow = ? AND ended_at < ?", (workflow, before))
        execute("DELETE FROM latest WHERE workflow = ? AND id NOT IN (SELECT id FROM task_states)", (workflow,))
        ((oldest,),) = execute("SELECT min(ended_at) FROM task_states WHERE workflow = ?", (workflow,))
        _put(connection, "workflows", workflow, _read_workflow(connection, workflow)[0], oldest or _NEVER)
        running = "SELECT 1 FROM runs WHERE workflow = ? AND status = 'RUNNING'"
        if workflow == own or not execute(running, (workflow,)).fetchone():  # else a record may come that names one
            used = "SELECT code FROM task_states WHERE workflow = ?"
            execute(f"DELETE FROM codes WHERE workflow = ? AND code NOT IN ({used})", (workflow, workflow))  # noqa: S608
    execute("DELETE FROM runs WHERE status != 'RUNNING' AND coalesce(ended_at, started_at) < ?", (before,))


def _salvage(old: Connection, new: Connection, tables: Collection[str]) -> int:
    """Copy what can be trusted of *tables*; return how many values and results that is, -1 if nothing can be read."""
    try:
        old.execute("SELECT name FROM sqlite_master").fetchall()
    except _FAILURES:
        return -1
    for table in sorted(_HAVE_ID.intersection(tables)):
        _copy(_walk(old, table), new, table)
    for table, query in _NAMED.items():
        if table in tables:
            where = " AND ".join(f"{column} = ?" for column in _KEYS[table])
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
        if len(row) == _WIDTH[table] and _is_whole(table, row):
            new.execute(_INSERT[table], row)


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
    order = ", ".join(_KEYS[table])
    yield from connection.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY {order}")  # noqa: S608 - names of ours
