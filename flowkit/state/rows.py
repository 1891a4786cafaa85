"""The tables of a state in SQLite, and their rows, each with a checksum over its columns.

Knows what a row stands for. Does not know the file, or who reads it.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from marshal import dumps
from zlib import crc32

from .store import Record, iso

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    Row = tuple[Any, ...]

APPLICATION = 0x666C6F77
"""The number in the file's header that says whose it is: "flow"."""
VERSION = 1
SCHEMA = {
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
KEYS = {
    "cache": ("id",),
    "runs": ("id",),
    "task_states": ("id",),
    "latest": ("workflow", "task", "item"),
    "codes": ("workflow", "code"),
    "workflows": ("workflow",),
}
_NEVER = "9999"
"""After every time."""
HAVE_ID = frozenset({"cache", "runs", "task_states"})
"""Tables whose first column is an id, over which the checksum does not go: ``latest`` or the key tells that it fits."""
WIDTH = {"cache": 7, "runs": 10, "task_states": 16, "latest": 6, "codes": 4, "workflows": 4}
INSERT = {table: f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * width)})" for table, width in WIDTH.items()}  # noqa: S608
SELECT_LATEST = "SELECT * FROM latest LEFT JOIN task_states ON task_states.id = latest.id WHERE latest.workflow = ?"


_MARSHAL = 2
"""The last version of marshal's format that says the same whatever else refers to the value."""


def seal(*columns: Any) -> Row:
    """Return *columns* with their checksum. They must come back from SQLite as they are: no -0.0, no NaN."""
    return (*columns, crc32(dumps(columns, _MARSHAL)))


def is_whole(table: str, row: Row) -> bool:
    first = table in HAVE_ID
    if row[-1] != crc32(dumps(row[first:-1], _MARSHAL)):
        return False
    return table != "cache" or bool(row[0] == id_of(told(row[1])))


def put(connection: Connection, table: str, *columns: object, row_id: int | None = None) -> int:
    """Insert a row, or replace the one of the same key or id; return its id."""
    row = seal(*columns)
    cursor = connection.execute(INSERT[table], (row_id, *row) if table in HAVE_ID else row)
    return cursor.lastrowid or 0


def stored(text: str) -> str | bytes:
    """Return *text* as it stands in a column: as bytes if it is no good Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def told(stored: str | bytes) -> str:
    """Return the text that *stored* stands for."""
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def id_of(key: str) -> int:
    """Return the id of the row of *key* in the cache; two keys with one id are not to be expected."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_compact = json.JSONEncoder(separators=(",", ":")).encode


def columns_of(workflow: str, task: str, record: Record, item: int) -> Row:
    """Return *record* as columns of task_states."""
    return (
        stored(workflow), stored(task), None if item < 0 else item, record.number, stored(record.state), record.code,
        _compact(record.upstream) if record.upstream else "[]", record.run_id, iso(record.ended_at),
        float(record.duration) + 0.0, record.attempts, record.value or None, stored(record.error) or None,
        record.metadata or None,
    )  # fmt: skip


def record_of(row: Row) -> Record | None:
    """Return the record in *row*, of latest and task_states; None if one of the two is damaged, or it is not there."""
    width = WIDTH["latest"]
    head, body = row[:width], row[width:]
    if not is_whole("latest", head) or not is_whole("task_states", body):
        return None
    workflow, task, item, number, *_ = head
    if body[1:5] != (workflow, task, None if item < 0 else item, number):
        return None
    _, _, _, _, number, state, code, upstream, run_id, ended_at, duration, attempts, value, error, metadata, _ = body
    return Record(
        number, told(state), code, json.loads(upstream), run_id, datetime.fromisoformat(ended_at).timestamp(), duration,
        attempts, value or "", told(error or ""), metadata or "",
    )  # fmt: skip


def read_workflow(connection: Connection, workflow: str | bytes) -> tuple[int, str]:
    """Return the last number of *workflow*, and since when there can be records of it."""
    row = connection.execute("SELECT * FROM workflows WHERE workflow = ?", (workflow,)).fetchone()
    last, oldest = (row[1], row[2]) if row is not None and is_whole("workflows", row) else (0, "" if row else _NEVER)
    # What a run that was killed has appended. A number that is damaged may be of any size.
    query = "SELECT max(number) FROM latest WHERE workflow = ? AND typeof(number) = 'integer' AND number < 1 << 53"
    ((found,),) = connection.execute(query, (workflow,))
    return max(last, found or 0), oldest


def forget(connection: Connection, name: str, task: str = "") -> None:
    """Delete everything of the DAG *name*, or of one of its tasks."""
    if task:
        for table in ("task_states", "latest"):
            own = (stored(name), stored(task))
            connection.execute(f"DELETE FROM {table} WHERE workflow = ? AND task = ?", own)  # noqa: S608 - as below
        return
    for table in ("runs", "task_states", "latest", "codes", "workflows"):
        connection.execute(f"DELETE FROM {table} WHERE workflow = ?", (stored(name),))  # noqa: S608 - one of the names above


def sweep(connection: Connection, own: str | bytes, before: str) -> None:
    """Delete what has ended *before*, of the DAG *own* and of all others."""
    execute = connection.execute
    for row in execute("SELECT * FROM workflows WHERE oldest < ?", (before,)).fetchall():
        workflow = row[0]
        execute("DELETE FROM task_states WHERE workflow = ? AND ended_at < ?", (workflow, before))
        execute("DELETE FROM latest WHERE workflow = ? AND id NOT IN (SELECT id FROM task_states)", (workflow,))
        ((oldest,),) = execute("SELECT min(ended_at) FROM task_states WHERE workflow = ?", (workflow,))
        put(connection, "workflows", workflow, read_workflow(connection, workflow)[0], oldest or _NEVER)
        running = "SELECT 1 FROM runs WHERE workflow = ? AND status = 'RUNNING'"
        if workflow == own or not execute(running, (workflow,)).fetchone():  # else a record may come that names one
            used = "SELECT code FROM task_states WHERE workflow = ?"
            execute(f"DELETE FROM codes WHERE workflow = ? AND code NOT IN ({used})", (workflow, workflow))  # noqa: S608
    execute("DELETE FROM runs WHERE status != 'RUNNING' AND coalesce(ended_at, started_at) < ?", (before,))
