"""``SQLiteStateStore``: a cache and the checkpoints of runs, in one SQLite database.

Knows the tables and the codec. Does not know tasks or runs, or how carefully the file is treated (:mod:`.database`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import threading
import time
import weakref
from functools import cached_property

from ..exceptions import (
    OptionError,
    StateError,
    StateWriteError,
    shown,
)
from .codec import Codec
from .database import Database
from .disk import make_folder
from .face import Cache, Entry
from .locks import FileLock
from .manager import absolute, check_name, check_private
from .rows import (
    SELECT_LATEST,
    columns_of,
    forget,
    id_of,
    is_whole,
    put,
    read_workflow,
    record_of,
    seal,
    stored,
    sweep,
    told,
)
from .store import SUCCEEDED, Record, check_options, iso
from .taskstates import TaskStates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from sqlite3 import Connection
    from typing import Any, Self

    from .store import Scope, View

    Row = tuple[Any, ...]

_DAY = 86_400.0


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
        rows = self._database.read(lambda connection: connection.execute(query, (id_of(key),)).fetchall())
        return self._entries(rows).get(key)

    def _find_all(self) -> dict[str, Entry]:
        entries = self._entries(self._database.read(lambda c: c.execute("SELECT * FROM cache").fetchall()))
        return dict(sorted(entries.items(), key=lambda pair: pair[1].timestamp))

    def _entries(self, rows: list[Row] | None) -> dict[str, Entry]:
        decode = self._codec.decode
        whole = self._database.whole("cache", rows or ())
        return {told(key): Entry(decode(value), at, ttl, decode(more)) for _, key, value, at, ttl, more, _ in whole}

    def _put(self, key: str, entry: Entry) -> None:
        value, metadata = self._codec.encode(entry.value), self._codec.encode(dict(entry.metadata))
        ttl = None if entry.ttl is None else float(max(-1e300, min(entry.ttl, 1e300))) + 0.0
        columns = (stored(key), value, float(entry.timestamp), ttl, metadata)
        self._database.write(lambda connection: put(connection, "cache", *columns, row_id=id_of(key)))

    def _remove(self, keys: list[str] | None, expired_at: float | None = None) -> list[str]:
        def remove_rows(connection: Connection) -> list[str]:
            if keys is not None:
                delete = "DELETE FROM cache WHERE id = ?"
                return [key for key in keys if connection.execute(delete, (id_of(key),)).rowcount]
            where, values = "", []
            if expired_at is not None:
                where, values = "WHERE ttl < 0 OR ? - timestamp > ttl", [expired_at]
            gone = connection.execute(f"SELECT key FROM cache {where} ORDER BY timestamp", values).fetchall()  # noqa: S608
            connection.execute(f"DELETE FROM cache {where}", values)  # noqa: S608 - one of the two texts above
            return [told(key) for (key,) in gone]

        return self._database.write(remove_rows) if self._database.exists else []

    # ------------------------------------------------------------ what runs have stored

    def clear_runs(self, name: str | None = None) -> None:
        """Forget the results and the history of the DAG *name*, or of all; the values by key stay.

        Raises:
            OptionError: *name* is no name.
            StateLockedError: Such a run goes on.
            StateWriteError: The disk refused it.
        """
        check_name("clear_runs", name)
        if not self._database.exists:
            return
        for workflow in self.scopes() if name is None else [name]:
            lock = self._lock(workflow)
            try:
                self._database.write(lambda c, workflow=workflow: forget(c, workflow))  # type: ignore[misc]
            finally:
                lock.release()

    def scopes(self) -> list[str]:
        """Return the names of the DAGs and workflows of which something is kept."""
        query = "SELECT workflow FROM workflows UNION SELECT workflow FROM runs UNION SELECT workflow FROM task_states"
        return [told(workflow) for (workflow,) in self._database.read(lambda c: c.execute(query).fetchall()) or ()]

    def find_record(self, workflow: str, task: str) -> Record | None:
        """Return the latest record of *task* of *workflow*; None if there is none."""
        query, key = f"{SELECT_LATEST} AND latest.task = ? AND latest.item = -1", (stored(workflow), stored(task))
        rows = self._database.read(lambda c: c.execute(query, key).fetchall()) or ()
        return next((found for row in rows if (found := record_of(row)) is not None), None)

    def list_records(self, workflow: str) -> list[str]:
        """Return the names of the tasks of *workflow* that have a record."""
        query = "SELECT task FROM latest WHERE workflow = ? AND item = -1 ORDER BY id"
        rows = self._database.read(lambda c: c.execute(query, (stored(workflow),)).fetchall()) or ()
        return [told(task) for (task,) in rows]

    def save_record(self, workflow: str, task: str, record: Record) -> None:
        """Keep *record*, which somebody has made by hand."""
        columns = columns_of(workflow, task, record, -1)

        def save(connection: Connection) -> None:
            own = columns[0]
            row_id = put(connection, "task_states", *columns)
            put(connection, "latest", own, columns[1], -1, record.number, row_id)
            last, oldest = read_workflow(connection, own)
            put(connection, "workflows", own, last, min(oldest, iso(record.ended_at)))

        self._database.write(save)

    def forget_record(self, workflow: str, task: str) -> None:
        """Forget everything of *task* of *workflow*, its history too."""
        if not self._database.exists:
            return
        lock = self._lock(workflow)
        try:
            self._database.write(lambda connection: forget(connection, workflow, task))
        finally:
            lock.release()

    def codec(self, modules: Collection[str]) -> Codec:
        """Return what turns values into text, for tasks of *modules*."""
        return Codec(modules={*modules, *self._trusted}, pickles=self._pickles)

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
        own = [] if workflow is None else [stored(workflow)]
        values = (*own, stored(name), _check_limit("query_task_history", limit))
        rows = self._database.read(lambda connection: connection.execute(query, values).fetchall())
        return [
            {
                "workflow": told(row[1]), "task": told(row[2]), "item": row[3], "run_id": row[8], "status": row[5],
                "ended_at": row[9], "duration": row[10], "attempts": row[11], "error": told(row[13] or ""),
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
        where, values = ("", ()) if workflow is None else ("WHERE workflow = ?", (stored(workflow),))
        query, values = f"SELECT * FROM runs {where} ORDER BY id DESC LIMIT ?", (*values, _check_limit("query_runs", limit))  # noqa: E501, S608
        rows = self._database.read(lambda connection: connection.execute(query, values).fetchall())
        names = ("workflow", "run_id", "status", "started_at", "ended_at", "duration", "pid", "host")
        return [
            {**dict(zip(names, row[1:-1], strict=True)), "workflow": told(row[1])}
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
        for key, record in (self._read_latest("") if self._name else {}).items():  # belongs to no DAG, so to all
            if key not in own or record.ended_at >= own[key].ended_at:
                own[key] = record
        return own

    def _read_latest(self, name: str) -> dict[tuple[str, int], Record]:
        rows = self._database.read(lambda c: c.execute(SELECT_LATEST, (stored(name),)).fetchall()) or ()
        records = {}
        for row in rows:
            found = record_of(row)
            if found is not None:
                records[told(row[1]), row[2]] = found
        self._database.report(len(rows) - len(records), "Tasks whose results are lost run again.")
        return records

    def _read_codes(self) -> dict[str, Mapping[str, str]]:
        query = "SELECT * FROM codes WHERE workflow = ?"
        rows = self._database.read(lambda c: c.execute(query, (stored(self._name),)).fetchall())
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
        workflow = stored(name)
        running = "SELECT * FROM runs WHERE workflow = ? AND status = 'RUNNING'"
        for row in connection.execute(running, (workflow,)).fetchall():
            if is_whole("runs", row):
                put(connection, "runs", *row[1:3], "KILLED", *row[4:-1], row_id=row[0])
        put(connection, "runs", workflow, run_id, "RUNNING", iso(self._opened_at), None, None, pid, host)
        last, oldest = read_workflow(connection, workflow)
        put(connection, "workflows", workflow, last, min(oldest, iso(self._opened_at)))
        return last

    def append(self, task: str, record: Record, item: int = -1) -> None:
        """Keep *record*; on return it survives the end of the process."""
        columns = columns_of(self._name, task, record, item)
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
        row_id = put(connection, "task_states", *columns)
        if is_latest:
            workflow, task, _, number = columns[:4]
            put(connection, "latest", workflow, task, item, number, row_id)

    def add_code(self, code: str, parts: Mapping[str, str]) -> None:
        """Keep what the fingerprint *code* is made of; it is written together with the next record."""
        with self._mutex:
            self._new_codes[code] = json.dumps(parts)

    def _add_codes(self, connection: Connection) -> None:
        for code, parts in self._new_codes.items():
            row = seal(stored(self._name), code, parts)
            same = "SELECT 1 FROM codes WHERE workflow = ? AND code = ? AND parts = ? AND checksum = ?"
            if connection.execute(same, row).fetchone() is None:
                put(connection, "codes", *row[:-1])

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
        workflow = stored(name)
        times = (iso(started_at), iso(started_at + duration), float(duration) + 0.0)
        self._add_codes(connection)
        own = "SELECT id FROM runs WHERE workflow = ? AND status = 'RUNNING' AND run_id = ?"
        (row_id,) = connection.execute(own, (workflow, run_id)).fetchone() or (None,)
        status = SUCCEEDED if state == "succeeded" else state.upper()
        put(connection, "runs", workflow, run_id, status, *times, pid, host, row_id=row_id)
        last, oldest = read_workflow(connection, workflow)
        put(connection, "workflows", workflow, max(last, self.last_number), min(oldest, iso(self._oldest)))
        if self._gc_days is not None:
            sweep(connection, workflow, iso(time.time() - self._gc_days * _DAY))
