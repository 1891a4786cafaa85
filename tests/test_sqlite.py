"""SQLiteStateStore: values and records in one database, among threads and processes, whatever happens to the file."""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest

import flowkit
from flowkit import (
    DAG,
    OptionError,
    SQLiteStateStore,
    StateCorruptError,
    StateError,
    StateLockedError,
    StateManager,
    StateSerializationError,
    StateVersionError,
    StateWriteError,
    Task,
    TaskCache,
)
from flowkit.state import database, rows, sqlite
from flowkit.state.store import Record

CHECKOUT = Path(flowkit.__file__).parent.parent
PATIENCE = 20
A_DAY = 86_400.0
NOW = time.time()

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@dataclasses.dataclass
class Unregistered:
    x: int


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def opens(path):
    """Return a function that opens a store on the path; all are closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(SQLiteStateStore(path, **options))


@pytest.fixture
def store(opens):
    return opens()


def record(number, value="1", state="COMPLETED", *, ago=0.0, **changes):
    """Return a record that ended *ago* seconds ago."""
    known = {
        "code": "c0de", "upstream": [number - 1, "skipped", None], "run_id": "r1", "ended_at": round(NOW - ago, 3),
        "duration": 0.25, "attempts": 2, "value": value, "error": "",
    }  # fmt: skip
    return Record(number, state, **{**known, **changes})


@contextlib.contextmanager
def scope_of(store, name="etl", run_id="r1", state="succeeded"):
    """Have the scope *name* for a while."""
    scope = store.open_scope(name, run_id)
    try:
        yield scope
    finally:
        scope.close(state, NOW, 1.5)


def fill(store, *records, name="etl", run_id="r1"):
    """Append pairs of task and record."""
    with scope_of(store, name, run_id) as scope:
        for task, added in records:
            scope.append(task, added)


def sql(path, statement, *values):
    """Do what a person does with the file by another tool."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def iso(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def beside(path):
    """Return the names of what stands in the folder of *path*."""
    return sorted(os.listdir(path.parent))


def damaged(path):
    """Return the names under which files were set aside."""
    return [name for name in beside(path) if ".corrupt-" in name]


# ---------------------------------------------------------------- making one


def test_path_and_default_ttl_can_be_given_by_position(path):
    with SQLiteStateStore(str(path), 5) as store:
        assert (store.path, store.default_ttl) == (path, 5)


def test_the_path_does_not_change_with_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SQLiteStateStore("state.db") as store:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        store.set("a", 1)
    assert sorted(os.listdir(tmp_path)) == ["other", "state.db"]


@pytest.mark.parametrize("where", ["state.db", "new/folder/state.db"])
def test_nothing_is_made_before_the_first_write(where, tmp_path):
    with SQLiteStateStore(tmp_path / where) as store:
        assert store.get("a", "none") == "none"
        assert (store.has("a"), store.delete("a"), store.invalidate_expired()) == (False, False, [])
        assert (store.get_all(), store.query_runs(), store.query_task_history("a")) == ({}, [], [])
        view = store.read_scope("etl")
        assert (view.tasks, view.items, view.codes) == ({}, {}, {})
        store.clear()
        store.clear_runs()
        assert os.listdir(tmp_path) == []
        store.set("a", 1)
    assert (tmp_path / where).is_file()


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_files_and_folder_are_for_their_owner_alone(tmp_path):
    path = tmp_path / "new" / "state.db"
    with SQLiteStateStore(path) as store:
        store.set("a", 1)
        modes = {name: stat.S_IMODE(os.stat(path.parent / name).st_mode) for name in beside(path)}
    assert modes == dict.fromkeys(["state.db", "state.db-shm", "state.db-wal"], 0o600)
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def test_only_the_file_is_left_when_it_is_closed(path, store):
    fill(store, ("a", record(1)))
    store.close()
    assert beside(path) == ["state.db"]


@pytest.mark.parametrize("memory", [":memory:", Path(":memory:")])
def test_in_memory_is_a_state_manager(memory):
    with pytest.raises(OptionError, match=r"write StateManager\(\)"):
        SQLiteStateStore(memory)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"gc_days": 0}, "gc_days=0"), ({"gc_days": -1}, "gc_days"), ({"gc_days": float("nan")}, "gc_days"),
        ({"gc_days": float("inf")}, "gc_days"), ({"gc_days": True}, "gc_days"), ({"gc_days": "30"}, "gc_days='30'"),
        ({"durability": "disk"}, "durability='disk'"), ({"serializer": "yaml"}, "serializer='yaml'"),
        ({"strict": 1}, "strict=1"), ({"lock_timeout": -1}, "lock_timeout"), ({"default_ttl": "1"}, "default_ttl"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(options, name, path):
    with pytest.raises(OptionError, match=name):
        SQLiteStateStore(path, **options)


@pytest.mark.parametrize("wrong", ["", 7, None, b"state.db", "a\0b"])
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(OptionError, match="path"):
        SQLiteStateStore(wrong)


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_durability_is_that_of_the_commits(durability, level, opens):
    store = opens(durability=durability)
    store.set("a", 1)
    for name, setting in (("synchronous", level), ("journal_mode", "wal")):
        assert store._database.read(lambda c, name=name: c.execute(f"PRAGMA {name}").fetchone()) == (setting,)


def test_a_closed_store_says_so(path, store):
    store.set("a", 1)
    store.close()
    store.close()
    for use in (lambda: store.get("a"), lambda: store.set("a", 2), lambda: store.open_scope("etl", "r1")):
        with pytest.raises(StateError, match=r"state\.db is closed"):
            use()
    assert beside(path) == ["state.db"]


def test_the_repr_names_the_file(store):
    assert repr(store) == "<SQLiteStateStore 'state.db'>"


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    "value", [None, 0, False, "", [], (1, (2,)), {1: {2}}, b"\0\xff", -0.0, 10**700, "\ud800", datetime(2026, 1, 2)]
)
def test_a_value_comes_back_with_its_type(value, path, store):
    store.set("a", value)
    store.close()
    with SQLiteStateStore(path) as again:
        found = again.get("a", "none")
    assert (found, type(found), str(found)) == (value, type(value), str(value))


@pytest.mark.parametrize("key", ["", "a", "ä", "\0", "a\0b", "\ud800", "' OR 1=1", "x" * 100_000])
def test_any_string_is_a_key(key, store):
    store.set("other", 0)
    store.set(key, 1)
    assert (store.get(key), store.has(key), store.get_all()) == (1, True, {"other": 0, key: 1})
    assert store.delete(key)
    assert store.get_all() == {"other": 0}


def test_metadata_and_times_come_back(store):
    store.set("a", 1, ttl=60, metadata={"source": ("x",), "ttl": "mine"})
    found = store.get_metadata("a")
    assert (found["source"], found["ttl"]) == (("x",), 60)
    assert 0 <= found["age"] < PATIENCE
    assert abs(found["timestamp"] - time.time()) < PATIENCE


@pytest.mark.parametrize(
    ("ttl", "is_there"),
    [(None, True), (10, True), (9.99, False), (0, False), (-1, False), (1e308, True), (-1e308, False)],
)
def test_a_value_is_valid_for_its_time(ttl, is_there, store, mocker):
    clock = mocker.patch("time.time", return_value=NOW)
    store.set("a", 1, ttl=ttl)
    clock.return_value = NOW + 10
    assert store.has("a") is is_there
    assert store.get_all() == ({"a": 1} if is_there else {})
    assert store.invalidate_expired() == ([] if is_there else ["a"])
    assert store.delete("a") is is_there


def test_values_are_listed_in_the_order_in_which_they_were_set(store):
    for key in "cab":
        store.set(key, key)
    store.set("c", "again")
    assert list(store.get_all()) == ["a", "b", "c"]


def test_clear_forgets_the_values_and_nothing_else(store):
    fill(store, ("a", record(1)))
    store.set("a", 1)
    store.clear()
    assert store.get_all() == {}
    assert store.read_scope("etl").tasks == {"a": record(1)}


def test_two_stores_on_one_path_see_each_others_values(opens):
    one, other = opens(), opens()
    one.set("a", 1)
    assert other.get("a") == 1
    other.set("a", 2)
    assert one.get("a") == 2
    one.delete("a")
    assert not other.has("a")


def test_a_store_that_came_first_finds_the_file_that_another_one_makes(opens):
    early = opens()
    assert not early.has("a")
    opens().set("a", 1)
    assert early.get("a") == 1


def test_what_json_cannot_hold_is_refused(path, store):
    with pytest.raises(StateSerializationError):
        store.set("a", object())
    assert not path.exists()


def test_pickles_are_kept_in_a_folder_of_ones_own(tmp_path):
    tmp_path.chmod(0o700)
    with SQLiteStateStore(tmp_path / "state.db", serializer="pickle") as store:
        store.set("a", Unregistered(3))
        assert store.get("a") == Unregistered(3)
    with SQLiteStateStore(tmp_path / "state.db") as plain, pytest.raises(StateSerializationError, match="pickle"):
        plain.get("a")


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_pickles_in_a_folder_of_everybodys_are_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="chmod 700"):
        SQLiteStateStore(tmp_path / "state.db", serializer="pickle")


def test_a_task_cache_keeps_its_values_in_it(opens):
    calls = []

    @TaskCache(opens())
    def double(x):
        calls.append(x)
        return 2 * x

    assert [double(1), double(2), double(1)] == [2, 4, 2]
    assert calls == [1, 2]


# ---------------------------------------------------------------- records


def test_records_come_back_as_they_were(opens):
    full = record(3, '{"$tuple":[1,"ü"]}', error="", upstream=[])
    failed = record(4, "", "failed", error="ValueError: \ud800\0 'no'", attempts=3, duration=0)
    skipped = record(5, "", "skipped", error="no rows", upstream=["~abc", 2])
    fill(opens(), ("full", full), ("failed", failed), ("skipped", skipped))
    assert opens().read_scope("etl").tasks == {"full": full, "failed": failed, "skipped": skipped}


def test_the_time_of_a_record_is_kept_to_the_microsecond(store):
    ended_at = int(NOW) + 0.123456
    fill(store, ("a", record(1, ended_at=ended_at)))
    assert store.read_scope("etl").tasks["a"].ended_at == ended_at


def test_the_latest_record_of_a_task_counts(store):
    fill(store, ("a", record(1)), ("b", record(2)), ("a", record(3)))
    assert store.read_scope("etl").tasks == {"a": record(3), "b": record(2)}
    with scope_of(store, run_id="r2") as scope:
        scope.append("b", record(4))
    assert store.read_scope("etl").tasks == {"a": record(3), "b": record(4)}


def test_a_record_that_comes_late_does_not_replace_a_later_one(store):
    fill(store, ("a", record(2, "2")), ("a", record(1, "1")))
    assert store.read_scope("etl").tasks == {"a": record(2, "2")}
    assert len(store.query_task_history("a")) == 2


def test_items_stand_apart_from_their_task(store):
    with scope_of(store) as scope:
        scope.append("each", record(1, "10"), 0)
        scope.append("each", record(2, "11"), 1)
        scope.append("each", record(3, "2"))
        scope.append("each", record(4, "12"), 1)
        scope.append("other", record(5), 7)
    view = store.read_scope("etl")
    assert view.tasks == {"each": record(3, "2")}
    assert view.items == {"each": {0: record(1, "10"), 1: record(4, "12")}, "other": {7: record(5)}}


@pytest.mark.parametrize("name", ["etl ", "ETL", "et", "é", "' OR 1=1 --", "\ud800"])
def test_dags_do_not_meet(name, store):
    fill(store, ("a", record(1)))
    fill(store, ("a", record(9, "9")), name=name)
    assert store.read_scope("etl").tasks == {"a": record(1)}
    assert store.read_scope(name).tasks == {"a": record(9, "9")}
    with scope_of(store) as scope:
        assert scope.last_number == 1


def test_a_scope_has_what_earlier_runs_have_left(opens):
    with scope_of(opens()) as scope:
        scope.add_code("c0de", {"load": "1", "helper": "ü"})
        scope.append("a", record(7))
        scope.append("each", record(8), 0)
    with scope_of(opens(), run_id="r2") as scope:
        assert (scope.tasks, scope.items) == ({"a": record(7)}, {"each": {0: record(8)}})
        assert (scope.codes, scope.last_number) == ({"c0de": {"load": "1", "helper": "ü"}}, 8)


def test_what_a_run_has_stored_so_far_can_be_read(opens):
    with scope_of(opens()) as scope:
        scope.add_code("c0de", {"load": "1"})
        scope.append("a", record(1))
        view = opens().read_scope("etl")
        assert (view.tasks, view.codes) == ({"a": record(1)}, {"c0de": {"load": "1"}})
        scope.append("b", record(2))
        assert view.tasks == {"a": record(1)}


def test_a_fingerprint_may_come_to_mean_something_else(store):
    for parts in ({"load": "1"}, {"load": "1"}, {"load": "2"}):
        with scope_of(store) as scope:
            scope.add_code("c0de", parts)
            scope.append("a", record(scope.last_number + 1))
    assert store.read_scope("etl").codes == {"c0de": {"load": "2"}}


def test_records_of_many_threads_are_all_there(store):
    with scope_of(store) as scope:
        def add(first):
            for number in range(first, first + 25):
                scope.append(f"t{number}", record(number))

        threads = [threading.Thread(target=add, args=(first,)) for first in range(1, 201, 25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert store.read_scope("etl").tasks == {f"t{number}": record(number) for number in range(1, 201)}


def test_nothing_is_added_to_a_run_that_is_over(store):
    with scope_of(store) as scope:
        scope.append("a", record(1))
    with pytest.raises(StateError, match="'r1' of 'etl' is over"):
        scope.append("a", record(2))
    assert store.read_scope("etl").tasks == {"a": record(1)}


def test_a_scope_keeps_its_store_open(path):
    with scope_of(SQLiteStateStore(path)) as scope:
        gc.collect()
        scope.append("a", record(1))
    assert sql(path, "SELECT task FROM task_states") == [("a",)]


# ---------------------------------------------------------------- one run at a time


def test_another_run_of_the_name_is_told_who_has_it(path, opens):
    with scope_of(opens()), pytest.raises(StateLockedError) as caught:
        opens().open_scope("etl", "r2")
    error = caught.value
    assert (error.scope, error.path, error.pid, error.host) == ("etl", str(path), os.getpid(), socket.gethostname())


def test_runs_of_other_names_go_on_side_by_side(store):
    with scope_of(store, "etl") as one, scope_of(store, "report") as other:
        one.append("a", record(1, "1"))
        other.append("a", record(1, "2"))
        one.append("b", record(2))
    assert store.read_scope("etl").tasks == {"a": record(1, "1"), "b": record(2)}
    assert store.read_scope("report").tasks == {"a": record(1, "2")}


def test_a_scope_that_could_not_be_opened_is_free(store, monkeypatch):
    monkeypatch.setattr(sqlite.SQLiteScope, "_begin", lambda self, connection: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.open_scope("etl", "r1")
    monkeypatch.undo()
    with scope_of(store):
        pass


# ---------------------------------------------------------------- history


def test_the_history_is_the_newest_first(store):
    fill(store, ("a", record(1, ago=30)), ("b", record(2)))
    fill(store, ("a", record(3, "", "FAILED", ago=20, run_id="r2", error="ValueError: no")), run_id="r2")
    with scope_of(store, run_id="r3") as scope:
        scope.append("a", record(4, ago=10, run_id="r3"), 5)
    found = store.query_task_history("a")
    assert [(row["run_id"], row["status"], row["item"], row["error"]) for row in found] == [
        ("r3", "COMPLETED", 5, ""), ("r2", "FAILED", None, "ValueError: no"), ("r1", "COMPLETED", None, ""),
    ]  # fmt: skip
    assert found[2] == {
        "workflow": "etl", "task": "a", "item": None, "run_id": "r1", "status": "COMPLETED", "duration": 0.25,
        "attempts": 2, "error": "", "ended_at": iso(record(1, ago=30).ended_at),
    }  # fmt: skip
    assert store.query_task_history("a", 2) == found[:2]
    assert store.query_task_history("a", limit=0) == []


def test_the_history_is_that_of_one_dag_or_of_all(store):
    fill(store, ("a", record(1, ago=10)))
    fill(store, ("a", record(1)), name="report")
    assert [row["workflow"] for row in store.query_task_history("a")] == ["report", "etl"]
    assert [row["workflow"] for row in store.query_task_history("a", workflow="etl")] == ["etl"]
    assert store.query_task_history("a", workflow="other") == store.query_task_history("b") == []


def test_the_history_is_found_by_its_index(path, store):
    fill(store, ("a", record(1)))
    (*_, plan) = sql(path, "EXPLAIN QUERY PLAN SELECT * FROM task_states WHERE workflow = 'etl' AND task = 'a'")[0]
    assert "INDEX task_states_by_task" in plan


@pytest.mark.parametrize("limit", [-1, 1.5, True, "10", None, 1 << 63])
def test_a_limit_is_a_whole_number(limit, store):
    for query in (lambda: store.query_task_history("a", limit), lambda: store.query_runs(limit=limit)):
        with pytest.raises(OptionError, match="limit"):
            query()


def test_runs_are_listed_with_how_they_ended(store):
    fill(store, run_id="r1")
    with scope_of(store, "report", "r2", "failed"):
        (running, _) = store.query_runs()
        assert (running["status"], running["ended_at"], running["duration"]) == ("RUNNING", None, None)
    found = store.query_runs()
    assert [(run["workflow"], run["run_id"], run["status"]) for run in found] == [
        ("report", "r2", "FAILED"), ("etl", "r1", "COMPLETED"),
    ]  # fmt: skip
    assert (found[0]["pid"], found[0]["host"], found[0]["duration"]) == (os.getpid(), socket.gethostname(), 1.5)
    started, ended = (datetime.fromisoformat(found[0][name]) for name in ("started_at", "ended_at"))
    assert (round((ended - started).total_seconds(), 3), started.utcoffset().total_seconds()) == (1.5, 0)
    assert store.query_runs("etl") == found[1:]
    assert store.query_runs(limit=1) == found[:1]


def test_any_tool_can_read_the_tables(path, store):
    fill(store, ("a", record(1, '{"rows":[1,2]}')), ("b", record(2, "", "FAILED", error="no")))
    store.set("key", (1, "ü"))
    assert sql(path, "SELECT task, status, result, error FROM task_states ORDER BY number") == [
        ("a", "COMPLETED", '{"rows":[1,2]}', None), ("b", "FAILED", None, "no"),
    ]  # fmt: skip
    assert sql(path, "SELECT workflow, run_id, status, duration FROM runs") == [("etl", "r1", "COMPLETED", 1.5)]
    assert sql(path, "SELECT key, value FROM cache") == [("key", '{"$tuple":[1,"ü"]}')]
    recent = "SELECT count(*) FROM task_states WHERE julianday(ended_at) > julianday('now') - 1"
    assert sql(path, recent) == [(2,)]


# ---------------------------------------------------------------- what is old goes


def test_records_that_are_too_old_go_when_a_run_ends(path, opens):
    store = opens(gc_days=10)
    fill(store, ("young", record(1)), ("old", record(2, ago=11 * A_DAY)), ("younger", record(3, ago=9 * A_DAY)))
    assert store.read_scope("etl").tasks == {"young": record(1), "younger": record(3, ago=9 * A_DAY)}
    assert sql(path, "SELECT task FROM task_states ORDER BY number") == [("young",), ("younger",)]


def test_records_of_other_dags_go_as_well(path, opens):
    keeps, store = opens(gc_days=None), opens(gc_days=10)
    fill(keeps, ("a", record(1, ago=11 * A_DAY)), name="left")
    fill(store, ("b", record(1)))
    assert sql(path, "SELECT workflow, task FROM task_states") == [("etl", "b")]
    assert store.read_scope("left").tasks == {}


def test_an_older_record_does_not_come_back_when_a_younger_one_goes(opens):
    """The clock went back between the two."""
    store = opens(gc_days=10)
    fill(store, ("a", record(1, "1")), ("a", record(2, "2", ago=11 * A_DAY)))
    assert store.read_scope("etl").tasks == {}
    assert len(store.query_task_history("a")) == 1


def test_runs_and_fingerprints_that_are_too_old_go(opens):
    keeps, store = opens(gc_days=None), opens(gc_days=10)
    scope = keeps.open_scope("etl", "r1")
    for code in ("old", "both"):
        scope.add_code(code, {"load": "1"})
        scope.append(code, record(scope.last_number + 1, code=code, ago=11 * A_DAY))
    scope.close("succeeded", NOW - 11 * A_DAY, 1.0)
    with scope_of(store, run_id="r2") as scope:
        scope.append("both", record(3, code="both"))
    assert list(store.read_scope("etl").codes) == ["both"]
    assert [run["run_id"] for run in store.query_runs()] == ["r2"]


def test_fingerprints_of_a_run_that_goes_on_stay(opens):
    """report has added two fingerprints with its first record, and has yet to name the second one."""
    keeps, store = opens(gc_days=None), opens(gc_days=10)
    fill(keeps, ("a", record(1, ago=11 * A_DAY)), name="report")
    with scope_of(keeps, "report", "r2") as scope:
        scope.add_code("now", {"load": "1"})
        scope.add_code("soon", {"load": "2"})
        scope.append("b", record(2, code="now"))
        fill(store, ("b", record(1)))
        assert len(store.query_task_history("a")) == 0
        scope.append("c", record(3, code="soon"))
    assert set(store.read_scope("report").codes) == {"now", "soon"}


def test_everything_stays_without_gc_days(opens):
    store = opens(gc_days=None)
    fill(store, ("a", record(1, ago=10_000 * A_DAY)))
    assert len(store.read_scope("etl").tasks) == 1


def test_numbers_are_not_used_again_when_all_records_are_gone(opens):
    fill(opens(gc_days=10), ("a", record(41, ago=11 * A_DAY)))
    with scope_of(opens(), run_id="r2") as scope:
        assert (scope.tasks, scope.last_number) == ({}, 41)


def test_clear_runs_forgets_one_dag_or_all(path, store):
    store.set("a", 1)
    for name in ("one", "two", "three"):
        fill(store, ("a", record(1)), name=name)
    store.clear_runs("two")
    assert [len(store.read_scope(name).tasks) for name in ("one", "two", "three")] == [1, 0, 1]
    store.clear_runs()
    tables = ("runs", "task_states", "latest", "codes", "workflows")
    assert [sql(path, f"SELECT count(*) FROM {table}") for table in tables] == [[(0,)]] * 5
    assert (store.query_runs(), store.get("a")) == ([], 1)


def test_clear_runs_leaves_a_run_alone_that_goes_on(store):
    with scope_of(store) as scope:
        scope.append("a", record(1))
        with pytest.raises(StateLockedError):
            store.clear_runs()
    assert store.read_scope("etl").tasks == {"a": record(1)}


# ---------------------------------------------------------------- threads and processes


def fds_of(path):
    """Return how many descriptors of the database, its log and its index this process has open."""
    found = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return sum(name.startswith(str(path)) for name in found)


def in_thread(action):
    """Do *action* in a thread of its own; return what it returned, and whether the thread has ended."""
    found = []
    thread = threading.Thread(target=lambda: found.append(action()))
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return found[0]


def connection_of(store):
    return store._database.read(id)


def test_each_thread_has_a_connection_of_its_own(store):
    store.set("a", 1)
    own = connection_of(store)
    assert connection_of(store) == own
    assert in_thread(lambda: (connection_of(store), store.get("a"), connection_of(store) == own)) != (own, 1, True)


@needs_proc
def test_a_connection_is_closed_with_its_thread(path, store):
    """But for one descriptor, which SQLite keeps for the next one: to close it would take the others' locks away."""
    store.set("a", 1)
    before = fds_of(path)
    during = [in_thread(lambda: (store.get("a"), fds_of(path))[1]) for _ in range(5)]
    assert min(during) > before + 1
    assert fds_of(path) <= before + 1


@needs_proc
def test_close_closes_the_connections_of_all_threads(path, store):
    store.set("a", 1)
    is_in_use, may_end = threading.Event(), threading.Event()

    def use():
        store.get("a")
        is_in_use.set()
        assert may_end.wait(PATIENCE)

    thread = threading.Thread(target=use)
    thread.start()
    assert is_in_use.wait(PATIENCE)
    store.close()
    assert fds_of(path) == 0
    may_end.set()
    thread.join(PATIENCE)


@needs_proc
def test_a_store_that_nobody_has_any_more_is_closed(path):
    def use():
        store = SQLiteStateStore(path)
        store.set("a", 1)
        in_thread(lambda: store.set("b", 2))

    use()
    gc.collect()
    assert fds_of(path) == 0


def test_values_of_many_threads_are_all_there(store):
    def put(first):
        for number in range(first, first + 20):
            store.set(f"k{number}", number)

    threads = [threading.Thread(target=put, args=(first,)) for first in range(0, 160, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert store.get_all() == {f"k{number}": number for number in range(160)}


def start_python(code, *arguments):
    """Start *code* in a process of its own, with flowkit and this file's folder to import from."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(("processes", "writes"), [(4, 50), pytest.param(8, 300, marks=pytest.mark.soak)])
def test_processes_that_write_at_once_lose_nothing(processes, writes, path):
    code = """
        import sys
        from flowkit import SQLiteStateStore
        path, number, writes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        with SQLiteStateStore(path) as store:
            for n in range(writes):
                store.set(f"{number}/{n}", [number, n])
    """
    started = [start_python(code, path, number, writes) for number in range(processes)]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert said == [""] * processes
    with SQLiteStateStore(path) as store:
        assert store.get_all() == {f"{p}/{n}": [p, n] for p in range(processes) for n in range(writes)}
    assert beside(path) == ["state.db"]


KILLED = """
    from flowkit import SQLiteStateStore
    from flowkit.state.store import Record
    import os, sys, time
    store = SQLiteStateStore({path!r})
    scope = store.open_scope("etl", "r1")
    scope.add_code("c0de", {{"load": "1"}})
    for number in range(1, 10_000):
        store.set(f"k{{number}}", number)
        scope.append(f"t{{number}}", Record(number, "succeeded", "c0de", [], "r1", time.time(), 0.1, 1, str(number)))
        print(number)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("acked", [1, 40, 400])
def test_what_was_acknowledged_survives_kill_9(acked, path):
    process = start_python(KILLED.format(path=str(path)))
    for _ in range(acked):
        process.stdout.readline()
    process.kill()
    told = max(acked, *map(int, process.communicate(timeout=PATIENCE)[0].split()), 0)
    with SQLiteStateStore(path) as store, scope_of(store, run_id="r2") as scope:
        assert all(scope.tasks[f"t{number}"].value == str(number) for number in range(1, told + 1))
        assert all(store.get(f"k{number}") == number for number in range(1, told + 1))
        assert scope.codes == {"c0de": {"load": "1"}}
        assert scope.last_number >= told
        assert [run["status"] for run in store.query_runs()] == ["RUNNING", "KILLED"]
    assert beside(path) == ["state.db"]


@needs_fork
def test_a_process_that_was_forked_off_uses_connections_of_its_own(path):
    code = """
        import os, sys, threading, warnings
        from flowkit import SQLiteStateStore
        from flowkit.state import database

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while there are threads
        store = SQLiteStateStore(sys.argv[1])
        store.set("parent", 1)
        own = store._database.read(id)
        is_in_use, may_end = threading.Event(), threading.Event()

        def use():
            store.get("parent")
            is_in_use.set()
            may_end.wait(10)

        thread = threading.Thread(target=use)
        thread.start()
        is_in_use.wait(10)
        pid = os.fork()
        if pid == 0:
            assert store.get("parent") == 1
            assert store._database.read(id) != own
            store.set("child", 2)
            store.close()
            assert len(database._inherited) == 2  # of this thread, and of the one that is not there
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        assert store._database.read(id) == own
        assert store.get_all() == {"parent": 1, "child": 2}
        store.set("parent", 3)
        may_end.set()
        thread.join()
        store.close()
    """
    process = start_python(code, path)
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 0
    assert beside(path) == ["state.db"]


@needs_fork
@pytest.mark.parametrize("ends", ["sys.exit()", "del store; import gc; gc.collect()", "store.close()"])
def test_a_forked_process_that_ends_leaves_the_log_alone(ends, path):
    """Its parent is killed before. So for SQLite it would be the last one that has the file, and remove the log."""
    code = f"""
        import os, signal, sys
        from flowkit import SQLiteStateStore
        store = SQLiteStateStore(sys.argv[1])
        store.set("a", 1)
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # returns when the parent is dead
            {ends}
        os.close(read)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = start_python(code, path)
    assert process.communicate(timeout=PATIENCE) == ("", "")  # which is when both are dead
    assert process.returncode == -signal.SIGKILL
    assert "state.db-wal" in beside(path)
    with SQLiteStateStore(path) as store:
        assert store.get("a") == 1


# ---------------------------------------------------------------- a disk that refuses


def restrict(store, pages):
    """Let the file of *store* grow by no more than *pages*; for this thread."""

    def limit(connection):
        ((count,),) = connection.execute("PRAGMA page_count")
        connection.execute(f"PRAGMA max_page_count = {count + pages}")

    store._database.read(limit)


def test_a_full_disk_is_told_and_what_was_stored_is_kept(path, store):
    store.set("a", 1)
    restrict(store, 4)
    with pytest.raises(StateWriteError) as caught:
        store.set("b", "x" * 100_000)
    assert (caught.value.path, caught.value.errno, caught.value.during) == (str(path), errno.ENOSPC, "write")
    assert store.get_all() == {"a": 1}
    store.set("b", 2)
    assert store.get_all() == {"a": 1, "b": 2}


def test_after_a_failed_write_a_run_stores_nothing_more(store):
    scope = store.open_scope("etl", "r1")
    scope.append("a", record(1))
    restrict(store, 4)
    with pytest.raises(StateWriteError) as first:
        scope.append("b", record(2, json.dumps("x" * 100_000)))
    with pytest.raises(StateWriteError) as second:
        scope.append("c", record(3))
    assert second.value is first.value
    scope.close("failed", NOW, 1.0)
    assert store.read_scope("etl").tasks == {"a": record(1)}


def test_a_run_that_cannot_be_ended_lets_others_have_the_scope(store, monkeypatch):
    scope = store.open_scope("etl", "r1")
    scope.append("a", record(1))

    def refuse(*args):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    monkeypatch.setattr(scope, "_end", refuse)
    with pytest.raises(StateWriteError) as caught:
        scope.close("succeeded", NOW, 1.0)
    assert caught.value.errno == errno.EIO
    with scope_of(store, run_id="r2") as again:
        assert again.tasks == {"a": record(1)}


def test_a_write_that_is_interrupted_is_undone(store):
    store.set("a", 1)

    def interrupted(connection):
        connection.execute("DELETE FROM cache")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._database.write(interrupted)
    assert in_thread(lambda: store.set("b", 2)) is None
    assert store.get_all() == {"a": 1, "b": 2}


def test_a_writer_that_does_not_end_is_told(path, store, monkeypatch):
    store.set("a", 1)
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other, SQLiteStateStore(path) as waits:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateLockedError):
            waits.set("b", 2)
        other.execute("ROLLBACK")
        waits.set("b", 3)
    assert store.get("b") == 3


# ---------------------------------------------------------------- files that are not ours


def database_with(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


FOREIGN = {
    "text": lambda path: path.write_text("name,price\ntea,3\n"),
    "json": lambda path: path.write_text('{"version": 1, "cache": {}}'),
    "binary": lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    "another program's": lambda path: database_with(path, "CREATE TABLE users (name)", "INSERT INTO users VALUES (1)"),
    "tables like ours": lambda path: database_with(path, *rows.SCHEMA.values()),
    "another application": lambda path: database_with(path, "CREATE TABLE a (b)", "PRAGMA application_id = 7"),
    "newer": lambda path: database_with(
        path, "CREATE TABLE a (b)", f"PRAGMA application_id = {rows.APPLICATION}", "PRAGMA user_version = 2"
    ),
}


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("text", StateCorruptError, "no SQLite database"), ("json", StateCorruptError, "no SQLite database"),
        ("binary", StateCorruptError, "no SQLite database"),
        ("another program's", StateVersionError, "no state that this"),
        ("tables like ours", StateVersionError, "no state that this"), ("newer", StateVersionError, "version 2"),
        ("another application", StateVersionError, "no state that this"),
    ],
)  # fmt: skip
def test_a_file_of_another_program_is_refused_and_not_touched(kind, error, text, path):
    FOREIGN[kind](path)
    before = path.read_bytes()
    with pytest.raises(error, match=text) as caught:
        SQLiteStateStore(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert beside(path) == ["state.db"]


def test_a_folder_is_refused(path):
    path.mkdir()
    with pytest.raises(StateWriteError) as caught:
        SQLiteStateStore(path)
    assert (caught.value.errno, caught.value.path) == (errno.EISDIR, str(path))


def test_a_file_that_may_not_be_read_is_refused(path, store, monkeypatch):
    """Root may read everything, so the answer is faked."""
    store.set("a", 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StateWriteError) as caught:
        SQLiteStateStore(path)
    assert caught.value.errno == errno.EACCES


def test_a_path_below_a_file_is_refused_with_the_first_write(tmp_path):
    (tmp_path / "file").write_text("")
    with SQLiteStateStore(tmp_path / "file" / "state.db") as store, pytest.raises(StateWriteError) as caught:
        store.set("a", 1)
    assert caught.value.errno in {errno.ENOTDIR, errno.EEXIST}


def test_a_file_that_was_replaced_by_another_programs_is_refused(path, store):
    store.set("a", 1)
    FOREIGN["another program's"](path.with_name("other"))
    os.replace(path.with_name("other"), path)
    before = path.read_bytes()
    for use in (lambda: store.set("a", 2), lambda: store.get("a")):
        with pytest.raises(StateVersionError):
            use()
    assert path.read_bytes() == before


# ---------------------------------------------------------------- files that go away


def test_a_file_that_was_removed_is_made_again(path, store):
    store.set("a", 1)
    path.unlink()
    assert store.get("a") is None
    store.set("b", 2)
    assert store.get_all() == {"b": 2}
    store.close()
    with SQLiteStateStore(path) as again:
        assert again.get_all() == {"b": 2}


def test_a_run_goes_on_when_its_file_is_removed(path, opens):
    store = opens()
    with scope_of(store) as scope:
        scope.append("a", record(1))
        path.unlink()
        scope.append("b", record(2))
    assert opens().read_scope("etl").tasks == {"b": record(2)}
    with scope_of(store, run_id="r2") as scope:
        assert scope.last_number == 2


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed there")
def test_the_log_of_a_file_that_was_removed_is_not_taken_for_the_new_ones(path, opens, tmp_path):
    store = opens()
    store.set("a", 1)
    (tmp_path / "kept").write_bytes(Path(f"{path}-wal").read_bytes())
    store.close()
    path.unlink()
    (tmp_path / "kept").rename(f"{path}-wal")
    again = opens()
    again.set("b", 2)
    assert again.get_all() == {"b": 2}
    assert [name[-4:] for name in damaged(path)] == ["-wal"]


def test_a_process_that_was_killed_while_it_made_the_file_leaves_nothing_for_long(path, script):
    for moment in ("_build", "_install"):
        done = script(f"""
            import os, signal
            from flowkit import SQLiteStateStore
            from flowkit.state.database import Database
            done = Database.{moment}
            def die(self, *args):
                done(self, *args)
                os.kill(os.getpid(), signal.SIGKILL)
            Database.{moment} = die
            SQLiteStateStore({str(path)!r}).set("a", 1)
        """).finish()
        assert done.returncode == -signal.SIGKILL
        assert len(beside(path)) == 2
    with SQLiteStateStore(path) as store:
        assert beside(path) == ["state.db", "state.db-shm", "state.db-wal"]
        assert store.get_all() == {}


# ---------------------------------------------------------------- damage


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Small files are read through when they are opened; here large ones are those that are not."""
    if request.param == "large":
        monkeypatch.setattr(database, "_SMALL", 0)
    return request.param


@pytest.mark.usefixtures("size")
def test_a_value_that_was_changed_is_missing(path, opens):
    store = opens()
    store.set("a", [1, 2, 3])
    store.set("b", 2)
    sql(path, "UPDATE cache SET value = '[1,2,4]' WHERE key = 'a'")
    with pytest.warns(RuntimeWarning, match=r"1 row with a checksum that does not fit"):
        assert opens().get("a", "none") == "none"
    with pytest.warns(RuntimeWarning, match=str(path)) if not damaged(path) else contextlib.nullcontext():
        assert store.get_all() == {"b": 2}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE task_states SET result = '9' WHERE number = 3",
        "UPDATE task_states SET number = 9 WHERE number = 3",
        "UPDATE task_states SET upstream = '[]' WHERE number = 3",
        "UPDATE task_states SET duration = 0.26 WHERE number = 3",
        "UPDATE task_states SET result = CAST(result AS BLOB) WHERE number = 3",
        "UPDATE task_states SET id = 99 WHERE number = 3",
        "DELETE FROM task_states WHERE number = 3",
        "UPDATE latest SET id = 1 WHERE task = 'a'",
        "UPDATE latest SET number = 1 WHERE task = 'a'",
    ],
)
@pytest.mark.usefixtures("size")
def test_no_older_record_is_taken_for_one_that_was_lost(change, path, opens):
    fill(opens(), ("a", record(1, "1")), ("b", record(2)), ("a", record(3, "3")))
    sql(path, change)
    with pytest.warns(RuntimeWarning, match="damaged: 1 row with"):
        view = opens().read_scope("etl")
    assert view.tasks == {"b": record(2)}


def test_what_is_damaged_while_it_is_in_use_is_left_out(path, store):
    with scope_of(store) as scope:
        scope.add_code("c0de", {"load": "1"})
        scope.append("a", record(1))
    sql(path, "UPDATE codes SET parts = '{}'")
    sql(path, "UPDATE task_states SET status = 'failed'")
    sql(path, "UPDATE runs SET status = 'failed'")
    for query in (
        lambda: store.read_scope("etl").codes, lambda: store.read_scope("etl").tasks, store.query_runs,
        lambda: store.query_task_history("a"),
    ):  # fmt: skip
        with pytest.warns(RuntimeWarning, match="1 row"):
            assert not query()


def test_a_run_replaces_what_was_damaged(path, opens):
    fill(opens(), ("a", record(1)), ("b", record(2)))
    sql(path, "UPDATE task_states SET result = '9' WHERE number = 1")
    with pytest.warns(RuntimeWarning):
        store = opens()
    fill(store, ("a", record(3)), run_id="r2")
    assert opens().read_scope("etl").tasks == {"a": record(3), "b": record(2)}


def test_numbers_that_records_name_are_not_used_again_after_damage(path, opens):
    fill(opens(), ("a", record(1)), ("b", record(2, upstream=[1])), ("c", record(3)))
    sql(path, "UPDATE latest SET number = 1 << 60 WHERE task = 'a'")
    sql(path, "UPDATE workflows SET last_number = 0")
    with pytest.warns(RuntimeWarning, match="2 rows"):
        store = opens()
    with scope_of(store, run_id="r2") as scope:
        assert scope.last_number == 3


def test_the_damaged_file_is_kept_under_another_name(path, opens):
    store = opens()
    store.set("a", 1)
    store.set("b", 2)
    store.close()
    sql(path, "UPDATE cache SET value = '9' WHERE key = 'a'")
    before = path.read_bytes()
    with pytest.warns(RuntimeWarning, match=r"Entries kept: 1. The damaged file is now .*state\.db\.corrupt-"):
        again = opens()
    (aside,) = damaged(path)
    assert path.with_name(aside).read_bytes() == before
    assert again.get_all() == {"b": 2}


def test_a_damaged_file_is_mended_once(path, opens):
    store = opens()
    store.set("a", 1)
    store.close()
    sql(path, "UPDATE cache SET value = '9'")
    with pytest.warns(RuntimeWarning):
        opens()
    assert opens().get_all() == {}
    assert len(damaged(path)) == 1


def test_an_empty_file_is_set_aside(path, opens):
    path.touch()
    with pytest.warns(RuntimeWarning, match="it is empty"):
        store = opens()
    store.set("a", 1)
    assert store.get("a") == 1
    assert len(damaged(path)) == 1


def test_a_file_whose_beginning_is_lost_is_set_aside(path, store):
    fill(store, ("a", record(1)))
    store.close()
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    before = path.read_bytes()
    with pytest.raises(StateCorruptError) as caught:
        SQLiteStateStore(path)
    (aside,) = damaged(path)
    assert (caught.value.path, caught.value.recovered, aside in caught.value.what) == (str(path), 0, True)
    assert path.with_name(aside).read_bytes() == before
    with SQLiteStateStore(path) as again:
        assert again.read_scope("etl").tasks == {}


def test_a_write_goes_to_the_file_that_has_replaced_a_damaged_one(path, opens):
    """store is open while another one mends the file."""
    store = opens()
    fill(store, ("a", record(1)), ("b", record(2)))
    scope = store.open_scope("etl", "r2")
    sql(path, "UPDATE task_states SET result = '9' WHERE number = 1")
    with pytest.warns(RuntimeWarning):
        other = opens()
    scope.append("c", record(3))
    store.set("key", 1)
    scope.close("succeeded", NOW, 1.0)
    assert other.read_scope("etl").tasks == {"b": record(2), "c": record(3)}
    assert (other.get("key"), other.query_runs()[0]["status"]) == (1, "COMPLETED")


def test_damage_that_is_met_in_use_is_mended_and_the_write_is_done(path, opens):
    """What is in the middle of a large table is overwritten while the store is open."""
    store = opens()
    for number in range(60):
        store.set(f"k{number}", [number, "x" * 1000])
    store.close()
    store = opens()
    with open(path, "r+b") as file:
        size = path.stat().st_size
        file.seek(size // 4096 * 1024)
        file.write(b"\xff" * (size // 2))

    def write_all():
        for number in range(60):
            store.set(f"k{number}", [number, "new"])

    with pytest.warns(RuntimeWarning, match="The damaged file is now"):
        write_all()
    assert opens().get_all() == {f"k{number}": [number, "new"] for number in range(60)}


def filled(path):
    """Fill a database with values and records, many of them more than once; return what is in it."""
    rng = random.Random(3)
    values, tasks, items = {}, {}, {}
    with SQLiteStateStore(path) as store:
        for run in range(3):
            with scope_of(store, run_id=f"r{run}") as scope:
                scope.add_code("c0de", {"load": f"{run}"})
                for n in range(20 - 5 * run):
                    tasks[f"t{n}"] = record(scope.last_number + 1, json.dumps([run, n, "x" * rng.randrange(80)]))
                    scope.append(f"t{n}", tasks[f"t{n}"])
                    items[n] = record(scope.last_number + 1, str(n))
                    scope.append("each", items[n], n)
            for n in range(run, 40, run + 1):
                values[f"k{n}"] = (run, n, "y" * rng.randrange(300))
                store.set(f"k{n}", values[f"k{n}"], metadata={"run": run})
        values["large"] = "z" * 20_000
        store.set("large", values["large"])
        left = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    return path.read_bytes(), left, (values, tasks, {"each": items})


def check(path, known):
    """Check that all of *known* is in the file at *path*, or missing and somebody told so; return whether it was."""
    values, tasks, items = known
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with SQLiteStateStore(path) as store:
                found = {key: store.get(key) for key in values if store.has(key)}
                everything, view = store.get_all(), store.read_scope("etl")
                store.query_runs()
                store.query_task_history("t1")
                with scope_of(store, run_id="next") as scope:
                    assert scope.last_number >= max([r.number for r in view.tasks.values()], default=0)
                    scope.append("t1", record(scope.last_number + 1))
        except StateError:
            return True
    assert found.items() <= values.items()
    assert everything.items() <= values.items()
    assert view.tasks.items() <= tasks.items()
    assert view.items.get("each", {}).items() <= items["each"].items()
    if not told and database._SMALL:  # of a large file something may be missing without a word
        assert (found, view.tasks, view.items) == known
    return bool(told)


def put(path, *, log=None, **contents):
    """Make these the only files beside *path*."""
    for name in os.listdir(path.parent):
        os.unlink(path.with_name(name))
    path.write_bytes(contents["data"])
    if log is not None:
        Path(f"{path}-wal").write_bytes(log)


def flipped(data, rng):
    """Return *data* with one bit changed."""
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


MANY = pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])


@pytest.mark.parametrize("times", [60, MANY])
@pytest.mark.usefixtures("size")
def test_no_bit_of_the_file_that_changes_makes_a_wrong_value(times, path, size):
    data, _, known = filled(path)
    rng = random.Random(times)
    told = 0
    for _ in range(times if size == "small" else times // 2):
        put(path, data=flipped(data, rng))
        told += check(path, known)
    assert 0 < told < times


@pytest.mark.parametrize("times", [30, pytest.param(200, marks=pytest.mark.soak)])
def test_a_file_that_is_cut_off_has_no_wrong_value(times, path):
    data, _, known = filled(path)
    rng = random.Random(times)
    for _ in range(times):
        put(path, data=data[: rng.randrange(len(data))])
        assert check(path, known)


@pytest.mark.parametrize("times", [10, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_no_bit_of_the_log_that_changes_makes_a_wrong_value(times, path):
    """The file and its log are those of a process that was killed."""
    _, left, known = filled(path)
    size = 24 + 4096
    rng = random.Random(times)
    put(path, data=left[""], log=left["-wal"])
    assert not check(path, known)
    for _ in range(times):
        put(path, data=left[""], log=flipped(left["-wal"][: -12 * size], rng) + left["-wal"][-12 * size :])
        assert check(path, known)


def test_a_log_that_ends_within_a_commit_is_that_of_a_process_that_was_killed(path):
    """No warning, and everything that was committed before."""
    _, left, _ = filled(path)
    for cut in range(1, 3 * 4120, 1_100):
        put(path, data=left[""], log=left["-wal"][:-cut])
        with SQLiteStateStore(path) as store:
            assert len(store.get_all()) >= 40
    assert damaged(path) == []


def test_a_damaged_log_is_told_and_nothing_from_before_is_believed(path):
    _, left, _ = filled(path)
    log = left["-wal"]
    put(path, data=left[""], log=log[:50_000] + bytes([log[50_000] ^ 1]) + log[50_001:])
    with pytest.warns(RuntimeWarning, match="write-ahead log"), SQLiteStateStore(path) as store:
        assert (store.get_all(), store.read_scope("etl").tasks) == ({}, {})
    assert [name[-4:] for name in damaged(path) if name.endswith("-wal")] == ["-wal"]


# ---------------------------------------------------------------- runs


def double(a):
    return 2 * a


def one():
    return 1


def total(one, double):
    return (one, double)


def small_dag(**changes):
    """one ─► double ─► total, and one ─► total"""
    tasks = {func.__name__: Task(changes.get(func.__name__, func), name=func.__name__) for func in (one, double, total)}
    tasks["one"] >> [tasks["double"], tasks["total"]]
    tasks["double"] >> tasks["total"]
    return DAG("small", tasks=tasks.values())


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_a_run_goes_on_where_an_earlier_one_failed(executor, path):
    def fails(a):
        raise ValueError("no")

    first = small_dag(double=fails).run(state=SQLiteStateStore(path), executor=executor, raise_on_failure=False)
    assert first.state == "failed"
    with SQLiteStateStore(path) as store:
        second = small_dag().run(state=store, resume=True, executor=executor)
        assert second == {"one": 1, "double": 2, "total": (1, 2)}
        assert [name for name, task in second.tasks.items() if task.restored] == ["one"]
        assert [(row["status"], row["run_id"], row["error"]) for row in store.query_task_history("double")] == [
            ("COMPLETED", second.run_id, ""), ("FAILED", first.run_id, "ValueError: no"),
        ]  # fmt: skip
        assert [run["status"] for run in store.query_runs("small")] == ["COMPLETED", "FAILED"]
    third = small_dag().run(state=SQLiteStateStore(path), resume=True, executor=executor)
    assert all(task.restored for task in third.tasks.values())


def test_runs_of_many_threads_store_side_by_side(path):
    """Eight DAGs at once on one store, each of which is restored afterwards."""
    def run(store, number):
        first = Task(lambda: number, name="first", version="1")
        second = Task(lambda value: value + 1, name="second", version="1")
        first >> second
        return DAG(f"dag {number}", tasks=[second]).run(state=store, resume=True)

    with SQLiteStateStore(path) as store:
        results = {}
        threads = [
            threading.Thread(target=lambda n=n: results.setdefault(n, run(store, n))) for n in range(8)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert results == {n: {"first": n, "second": n + 1} for n in range(8)}
        for n in range(8):
            assert all(task.restored for task in run(store, n).tasks.values())


def test_a_full_disk_fails_the_run(path):
    """one ─► double ─► total, and there is no room for what double returns."""
    dag = small_dag(double=lambda a: "x" * 200_000)
    with SQLiteStateStore(path) as store:
        store.set("a", 1)
        restrict(store, 5)
        with pytest.raises(StateWriteError) as caught:
            dag.run(state=store, executor="sequential")
        assert caught.value.errno == errno.ENOSPC
        assert list(store.read_scope("small").tasks) == ["one"]
        assert store.query_runs()[0]["ended_at"] is not None


@pytest.mark.soak
def test_a_record_costs_as_much_however_many_there_are(opens):
    """What it costs is printed, and judged with much room."""
    store = opens()
    seconds = []
    with scope_of(store) as scope:
        for first in range(1, 30_001, 10_000):
            since = time.perf_counter()
            for number in range(first, first + 10_000):
                scope.append(f"task_{number}", record(number, '{"rows":[1,2,3,4,5,6,7,8,9,10]}'))
            seconds.append(time.perf_counter() - since)
    print([f"{1e2 * one:.1f} µs" for one in seconds])
    assert max(seconds) < 5 * min(seconds)


def test_it_offers_what_a_state_manager_offers(store):
    """But for the path, which has another name."""
    known = {name for name in dir(StateManager()) if not name.startswith("_")} - {"storage_path"}
    assert known <= set(dir(store))
