"""A state file keeps what it has acknowledged, whatever the disk does.

Faults, deaths and power cuts are tried at each operation of one session (see ``disk_models``), on a cache that is
written whole and on one with a journal, and on the runs beside them.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from itertools import count
from pathlib import Path

import pytest
from disk_models import (
    ERRORS,
    SIZES,
    Death,
    DyingDisk,
    FailingDisk,
    NoSyncDisk,
    PowerDisk,
    Session,
    ShortDisk,
    after_power_cuts,
    check,
    quick_folder,
    record,
    use_again,
)

import flowkit
from flowkit import DAG, StateLockedError, StateWriteError, Task
from flowkit.state import jsonfile
from flowkit.state.disk import Disk, replace_file
from flowkit.state.manager import StateManager

CHECKOUT = Path(flowkit.__file__).parent.parent
DURABILITIES = ("process", "power")


@pytest.fixture(params=SIZES)
def size(request, monkeypatch):
    """Have caches written whole, or with a journal."""
    monkeypatch.setattr(jsonfile, "_SMALL", SIZES[request.param])
    return request.param


@pytest.fixture
def tmp_path(tmp_path):
    with quick_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
def journals(monkeypatch):
    """Have caches written with a journal."""
    monkeypatch.setattr(jsonfile, "_SMALL", 0)


def files(folder, *but):
    """Return the names of the files in *folder*, but those that end as *but* says."""
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(but or "\0"))


# ---------------------------------------------------------------- operations that fail


def play_with_faults(folder, disk_at, durability="power", *, kind=None):
    """Play a session for each operation that the disk can refuse; yield the disk and the session, at its end.

    Args:
        folder: Where to play.
        disk_at: Returns the disk that refuses the operation of a number.
        durability: That of the session's managers.
        kind: Which operations, if not all.
    """
    known = NoSyncDisk()
    place = folder / "known"
    place.mkdir()
    Session(place / "state.json", known, durability).play()
    numbers = [number for number, (name, _) in enumerate(known.log) if kind in (None, name)]
    assert len(numbers) > (8 if kind else 50), "this was to be about many operations"
    for number in numbers:
        place = folder / f"{number}"
        place.mkdir()
        disk = disk_at(number)
        session = Session(place / "state.json", disk, durability).play()
        assert disk.failed
        yield disk, session


def check_and_use(session):
    """Check the file that *session* has left, and use it again."""
    check(session.path, session.cache, session.tasks)
    use_again(session.path, session.cache, session.tasks)


@pytest.mark.parametrize("lasts", [False, True])
@pytest.mark.parametrize("tears", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_refused_operation_loses_nothing_acknowledged(tmp_path, size, lasts, tears):
    """Each operation of the session is refused, alone or with all after it, with half of a write done or none."""
    codes = [*ERRORS[1:], *ERRORS] if tears else ERRORS
    for disk, session in play_with_faults(
        tmp_path, lambda n: FailingDisk(n, codes[n % len(codes)], lasts=lasts, tears=tears)
    ):
        check_and_use(session)
        unlinked = {file[0] for name, file in disk.failed if name == "unlink"}
        left = {str(path) for path in Path(session.path).parent.glob("*.tmp")}
        assert left <= unlinked, f"temporary files are left behind after {disk.failed}"


@pytest.mark.soak
@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("lasts", [False, True])
def test_a_refused_operation_loses_nothing_whatever_the_reason(tmp_path, size, durability, lasts, code):
    for _, session in play_with_faults(tmp_path, lambda n: FailingDisk(n, code, lasts=lasts), durability):
        check_and_use(session)


def test_one_refused_operation_is_refused_to_one_call_or_run_only(tmp_path, size):
    """The next call works again; a run that could not store one record can store none after it, but can end."""
    for disk, session in play_with_faults(tmp_path, lambda n: FailingDisk(n, errno.ENOSPC)):
        refused = set(session.refused)
        assert len(refused) < 2, f"{disk.failed} was refused to {session.refused}"
        assert len(session.refused) < 2 or refused == {"append"}, f"{disk.failed} was refused to {session.refused}"


def test_a_file_that_nobody_needs_and_that_stays_fails_nothing(tmp_path, journals):
    """A journal is in the snapshot already when it is removed."""
    for disk, session in play_with_faults(tmp_path, lambda n: FailingDisk(n, errno.EIO), kind="unlink"):
        assert not session.refused, disk.failed
        check_and_use(session)


def test_a_file_whose_sync_failed_is_not_used_again(tmp_path, size):
    """The system forgets what it could not write, and the next sync succeeds without it."""
    for disk, _ in play_with_faults(tmp_path, lambda n: FailingDisk(n, errno.EIO), kind="fsync"):
        ((_, file),) = disk.failed
        later = disk.log[disk.at + 1 :]
        assert not [done for done in later if done[0] in ("write", "fsync") and done[1] == file], disk.failed
        assert not [done for done in later if done[0] == "replace" and done[1][:2] == file], disk.failed


@pytest.mark.parametrize("most", [1, 7])
def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(tmp_path, size, most):
    session = Session(tmp_path / "state.json", ShortDisk(most)).play()
    assert not session.refused
    check(session.path, session.cache, session.tasks)


def test_a_disk_that_takes_nothing_is_refused_by_name(tmp_path, size):
    manager = StateManager(tmp_path / "state.json", _disk=ShortDisk(0))
    with pytest.raises(StateWriteError, match="took nothing"):
        manager.set("a", 1)
    assert not files(tmp_path, ".journal")


def test_a_refusal_says_what_where_and_why(tmp_path):
    path = tmp_path / "state.json"
    with pytest.raises(StateWriteError, match=r"cannot sync .*state\.json.*No space left") as caught:
        StateManager(path, _disk=FailingDisk(2, errno.ENOSPC)).set("a", 1)
    assert (caught.value.path, caught.value.errno, caught.value.during) == (str(path), errno.ENOSPC, "sync")
    assert isinstance(caught.value.__cause__, OSError)


def test_an_interrupt_between_two_parts_of_a_line_damages_no_other_line(tmp_path):
    """Ctrl-C arrives when half of a record is written, and the run goes on to store others."""
    path = tmp_path / "state.json"

    class InterruptedDisk(ShortDisk):
        parts = 0

        def write(self, fd, data):
            done = super().write(fd, data)
            self.parts += 1
            if self.parts == 40:
                raise KeyboardInterrupt
            return done

    scope = StateManager(path, _disk=InterruptedDisk(20)).open_scope("etl", "run")
    stored = set()
    for number in range(1, 9):
        with contextlib.suppress(KeyboardInterrupt, StateWriteError):
            scope.append(f"t{number}", record(number))
            stored.add(f"t{number}")
    assert set(StateManager(path).read_scope("etl").tasks) >= stored
    scope.close("failed", 1.0, 1.0)
    assert set(StateManager(path).read_scope("etl").tasks) >= stored


# ---------------------------------------------------------------- processes that die


def die_at_each(folder, durability, share):
    """Play a session that dies, for each operation; yield it."""
    for number in count():
        place = folder / f"{number}"
        place.mkdir()
        disk = DyingDisk(number, share)
        session = Session.__new__(Session)
        with contextlib.suppress(Death):
            session.__init__(place / "state.json", disk, durability)
            session.play()
        session.end()
        yield session
        if not disk.is_dead:
            assert number > 50, "this was to be about each operation of a long session"
            return


@pytest.mark.parametrize("share", [0.0, 0.5, *(pytest.param(share, marks=pytest.mark.soak) for share in (0.01, 0.99))])
def test_a_process_can_die_at_each_operation(tmp_path, size, share):
    """All that it was told is stored is there, and nothing else; of a write the given share was done."""
    for session in die_at_each(tmp_path, "process", share):
        check_and_use(session)


@pytest.mark.soak
def test_a_process_that_syncs_can_die_at_each_operation(tmp_path, size):
    for session in die_at_each(tmp_path, "power", 0.5):
        check_and_use(session)


def test_what_a_dead_process_has_left_goes_away_with_the_next_orderly_one(tmp_path):
    for session in die_at_each(tmp_path, "process", 0.5):
        folder = Path(session.path).parent
        use_again(session.path, session.cache, session.tasks)
        assert files(folder) == ["state.json"]


def test_a_run_that_dies_while_it_takes_over_from_a_dead_one_loses_nothing(tmp_path):
    """A dead run's journal is folded in when the next one opens its scope: it dies at each operation of that."""
    for number in range(12):
        place = tmp_path / str(number)
        place.mkdir()
        path = place / "state.json"
        first = Session(path, NoSyncDisk())
        first._open(first._one, "etl")
        first._scope.add_code("c1", {"the function": "c1c1c1"})
        first._scope.append("fetch", record(1))
        first.end()
        with contextlib.suppress(Death):
            second = Session(path, DyingDisk(number, 0.5))
            second._open(second._one, "etl")
            second.end()
        check(path, {}, {("etl", "fetch", -1): [1]})
        use_again(path, {}, {("etl", "fetch", -1): [1]})


# ---------------------------------------------------------------- power cuts


def cut_power(folder, session, *, keeps, since=0):
    """Check what each power cut can leave of a *session*; return how many different cases there were.

    Args:
        folder: Where to lay it out.
        session: What was played on a PowerDisk.
        keeps: Whether what was acknowledged must be there.
        since: How many effects there must have been.
    """
    known = set()
    moments = iter([*session.moments, (len(session.disk.effects) + 1, {}, {})])
    at = (0, {}, {})
    then = next(moments)
    for done, left in after_power_cuts(session.disk.effects, all_of=8 if keeps else 6):
        while then[0] <= done:
            at, then = then, next(moments)
        if done < since:
            continue
        left = {name: data for name, data in left.items() if not name.endswith(".tmp")}
        case = (frozenset(left.items()), at[0] if keeps else 0)
        if case in known:
            continue
        known.add(case)
        place = folder / str(len(known))
        place.mkdir()
        for name, data in left.items():
            (place / name).write_bytes(data)
        path = place / "state.json"
        try:
            if keeps:
                check(path, at[1], at[2])
                use_again(path, at[1], at[2])
            else:
                check(path, *session.ever, may_lack=True)
                use_again_after_damage(path)
        except BaseException:
            print(f"{place}: a power cut after {done} of {session.disk.effects}")
            raise
    return len(known)


def use_again_after_damage(path):
    """Change the state at *path*, from which anything may be missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        manager = StateManager(path, _disk=NoSyncDisk())
        manager.open_scope("etl", "run").close("succeeded", 1.0, 1.0)
    manager.set("again", 1)
    check(path, {key: [manager.get(key)] for key in manager.get_all()}, {})


def test_a_power_cut_loses_nothing_acknowledged_with_durability_power(tmp_path, size):
    session = Session(tmp_path / "state.json", PowerDisk(), "power").play()
    assert cut_power(tmp_path, session, keeps=True) > 50


def test_a_power_cut_tears_nothing_by_default(tmp_path, size):
    """Each value is one that was there at some time, or is missing."""
    session = Session(tmp_path / "state.json", PowerDisk(), "process").play()
    assert cut_power(tmp_path, session, keeps=False) > 50


@pytest.mark.parametrize("number", [0, 1, 3, *(pytest.param(n, marks=pytest.mark.soak) for n in range(4, 60))])
def test_a_power_cut_after_a_failed_sync_loses_nothing_acknowledged(tmp_path, size, number):
    """What a failed sync has not written stays unwritten, whatever is synced later."""
    session = Session(tmp_path / "state.json", PowerDisk(number), "power").play()
    if session.disk.has_failed:
        cut_power(tmp_path, session, keeps=True)


def test_a_journal_that_was_folded_in_does_not_come_back_with_a_power_cut(tmp_path, journals):
    """The sync of the next journal's first line fails; the removal of the last one may not be on the disk yet."""
    session = Session(tmp_path / "state.json", PowerDisk(), "power")
    for key in "abc":
        session.set(session._one, key, "value")
    assert files(tmp_path) == ["state.json", "state.json.journal"]
    session.clear(session._one)
    session.disk.fail_next_sync()
    session.set(session._one, "d", "value")
    cut_power(tmp_path, session, keeps=True)


def test_a_power_cut_loses_nothing_acknowledged_after_a_process_has_died(tmp_path, journals):
    """The process that made the journal died before it could sync the folder; the next one adds to that journal."""

    class Both(PowerDisk):
        is_dead = False

        def fsync_dir(self, path):
            if self.is_dead:
                raise Death
            super().fsync_dir(path)

    session = Session(tmp_path / "state.json", Both(), "power")
    session.disk.is_dead = True
    with contextlib.suppress(Death):
        session.set(session._one, "a", 1)
    session.disk.is_dead = False
    session.set(session._two, "b", 2)
    cut_power(tmp_path, session, keeps=True)


def test_a_power_cut_loses_nothing_that_was_added_to_a_journal_without_syncs(tmp_path, journals):
    """A manager with the default made the journal; one with durability="power" adds to it."""
    disk = PowerDisk()
    StateManager(tmp_path / "state.json", _disk=disk).set("a", 1)
    session = Session(tmp_path / "state.json", disk, "power")
    session.cache["a"] = [None, 1]
    session.set(session._one, "b", 2)
    cut_power(tmp_path, session, keeps=True, since=len(disk.effects))


def test_the_model_of_power_cuts_finds_the_known_mistakes(tmp_path):
    """Written in place: torn. Renamed without a sync: torn. Without a sync of the folder: lost. With both: fine."""

    def left(*, renames, syncs, syncs_folder):
        """Return what can be in a file after its content "old" was replaced by "new" and that acknowledged."""
        disk = PowerDisk()
        path = str(tmp_path / f"file{len(list(tmp_path.iterdir()))}")
        replace_file(disk, path, b"old")
        start = path if not renames else f"{path}.new"
        fd = disk.open(start, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if not renames:
            disk.effects[-1] = ("create", os.path.basename(path), disk._names[path])
        disk.write(fd, b"new")
        if syncs:
            disk.fsync(fd)
        os.close(fd)
        if renames:
            disk.replace(start, path)
        if syncs_folder:
            disk.fsync_dir(str(tmp_path))
        end = len(disk.effects)
        return {found.get(os.path.basename(path)) for done, found in after_power_cuts(disk.effects) if done == end}

    assert left(renames=False, syncs=False, syncs_folder=True) > {b"new"}
    assert left(renames=True, syncs=False, syncs_folder=False) > {b"new", b"old", b"", b"n", b"\0\0\0"} - {b"\0\0\0"}
    assert left(renames=True, syncs=True, syncs_folder=False) == {b"new", b"old"}
    assert left(renames=True, syncs=True, syncs_folder=True) == {b"new"}


# ---------------------------------------------------------------- what is in the way


def test_the_folder_of_a_state_is_made_with_the_first_write(tmp_path):
    path = tmp_path / "a" / "b" / "state.json"
    manager = StateManager(path)
    assert manager.get("k") is None
    assert not files(tmp_path)
    manager.set("k", 1)
    assert StateManager(path).get("k") == 1


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(StateWriteError, match="directory") as caught:
        StateManager(tmp_path)
    assert (caught.value.path, caught.value.errno) == (str(tmp_path), errno.EISDIR)


def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_lost(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(StateWriteError, match=r"file.state\.json"):
        StateManager(tmp_path / "file" / "state.json").set("k", 1)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_in_place_of_a_journal_is_refused(tmp_path, journals):
    (tmp_path / "state.json.journal").mkdir()
    with pytest.raises(StateWriteError, match=r"state\.json\.journal"):
        StateManager(tmp_path / "state.json").set("k", 1)


@pytest.fixture
def nobody():
    """Be a user without rights; only root can do that."""
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        os.seteuid(0)


def test_a_state_in_a_folder_for_reading_only_can_be_read_and_not_written(nobody):
    path = nobody / "state.json"
    manager = StateManager(path)
    manager.set("k", 1)
    scope = manager.open_scope("etl", "run")
    scope.append("fetch", record(1))
    scope.close("succeeded", 1.0, 1.0)
    nobody.chmod(0o755)
    path.chmod(0o644)
    os.seteuid(65_534)
    manager = StateManager(path)
    assert manager.get("k") == 1
    assert manager.read_scope("etl").tasks == {"fetch": record(1)}
    for write in (lambda: manager.set("k", 2), lambda: manager.delete("k"), lambda: manager.open_scope("etl", "run")):
        with pytest.raises(StateWriteError) as caught:
            write()
        assert caught.value.errno == errno.EACCES
        assert caught.value.path.startswith(str(path))
    assert manager.get("k") == 1


def test_a_damaged_state_in_a_folder_for_reading_only_is_read_as_far_as_it_goes(nobody):
    path = nobody / "state.json"
    manager = StateManager(path)
    manager.set("k", 1)
    manager.set("l", 2)
    path.write_bytes(path.read_bytes().replace(b'"value":2', b'"value":3'))
    nobody.chmod(0o755)
    path.chmod(0o644)
    os.seteuid(65_534)
    with pytest.warns(RuntimeWarning, match="It stays as it is"):
        manager = StateManager(path)
    assert manager.get_all() == {"k": 1}
    assert manager.read_scope("etl").tasks == {}


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_state_that_may_not_be_read_is_not_taken_for_an_empty_one(nobody, what):
    path = nobody / "state.json"
    StateManager(path).set("k", 1)
    nobody.chmod(0o700 if what == "folder" else 0o755)
    os.seteuid(65_534)
    with pytest.raises(StateWriteError) as caught:
        StateManager(path)
    assert caught.value.errno == errno.EACCES


# ---------------------------------------------------------------- many at a time


class Peer:
    """A process that runs *code*, which has ``path`` and ``args``, and waits in ``meet()`` until it may go on."""

    def __init__(self, code, path, *args):
        head = textwrap.dedent("""
            import os, sys
            from flowkit.state import jsonfile
            from flowkit.state.manager import StateManager
            from disk_models import record

            jsonfile._SMALL = int(sys.argv[1])
            path, args = sys.argv[2], sys.argv[3:]

            def meet():
                print("here", flush=True)
                sys.stdin.readline()
        """)
        paths = os.pathsep.join([str(CHECKOUT), str(Path(__file__).parent)])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code), str(jsonfile._SMALL), str(path)]
            + [str(arg) for arg in args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        self.pid = self._process.pid

    def read(self):
        """Return the next line that it prints."""
        return self._process.stdout.readline().rstrip("\n")

    def meet(self):
        """Wait until the process waits."""
        line = self.read()
        assert line == "here", f"{line!r}: {self.kill()}"

    def go(self):
        """Let it go on."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    @property
    def is_running(self):
        return self._process.poll() is None

    def finish(self):
        """Wait for its end, which must be a good one."""
        _, errors = self._process.communicate(timeout=300)
        assert not self._process.returncode, errors

    def kill(self):
        """End it at once; return what it wrote to stderr."""
        self._process.kill()
        return self._process.communicate()[1]


@pytest.fixture
def peer():
    """Return a function that starts a :class:`Peer`; none outlives the test."""
    started = []

    def start(*args):
        started.append(Peer(*args))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def set_in_processes(peer, folder, processes, values):
    """Set *values* values in each of a number of processes, all at the same time, and look for each of them."""
    path = folder / "state.json"
    code = """
        manager = StateManager(path, lock_timeout=60)
        meet()
        for number in range(int(args[1])):
            manager.set(f"{args[0]} {number}", number)
            assert manager.get(f"{args[0]} {number}") == number
            if number % 5 == 4:
                assert manager.delete(f"{args[0]} {number}")
    """
    peers = [peer(code, path, number, values) for number in range(processes)]
    for one in peers:
        one.meet()
    for one in peers:
        one.go()
    for one in peers:
        one.finish()
    expected = {f"{one} {number}": number for one in range(processes) for number in range(values) if number % 5 < 4}
    assert StateManager(path).get_all() == expected
    assert files(folder, ".json", ".journal") == []


def test_processes_lose_none_of_each_others_values(peer, tmp_path, size):
    set_in_processes(peer, tmp_path, 4, 40)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_many_processes_lose_none_of_each_others_values(peer, tmp_path, size):
    set_in_processes(peer, tmp_path, 8, 300)


@pytest.mark.parametrize("shares", [True, False])
def test_threads_lose_none_of_each_others_values(tmp_path, size, shares):
    """Eight threads, with one manager or one each."""
    path = tmp_path / "state.json"
    one = StateManager(path, _disk=NoSyncDisk())
    errors = []
    start = threading.Barrier(8)

    def work(me):
        try:
            manager = one if shares else StateManager(path, _disk=NoSyncDisk())
            start.wait(10)
            for number in range(25):
                manager.set(f"{me} {number}", number)
                assert manager.get(f"{me} {number}") == number
                assert f"{me} 0" in manager.get_all()
                manager.read_scope("etl")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert StateManager(path).get_all() == {f"{me} {number}": number for me in range(8) for number in range(25)}


def test_threads_run_dags_of_different_names_on_one_manager(tmp_path, size):
    """Runs open, append and fold at the same time, while somebody looks through all of them."""
    manager = StateManager(tmp_path / "state.json", _disk=NoSyncDisk())
    errors = []
    start = threading.Barrier(6)

    def work(me):
        try:
            start.wait(10)
            for number in range(1, 13):
                scope = manager.open_scope(f"dag {me}", "run")
                scope.append(f"t{number}", record(number))
                assert f"t{number}" in manager.read_scope(f"dag {me}").tasks
                scope.close("succeeded", 1.0, 1.0)
                manager.set(f"{me}", number)
                if me == 5:
                    manager.clear_runs("dag 5")
                    assert not manager.read_scope("dag 5").tasks
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for me in range(5):
        found = StateManager(tmp_path / "state.json").read_scope(f"dag {me}").tasks
        assert found == {f"t{number}": record(number) for number in range(1, 13)}
    assert files(tmp_path, ".json", "json.journal") == []


HOLDS = """
    scope = StateManager(path).open_scope("etl", "theirs")
    scope.append("fetch", record(1))
    meet()
    scope.close("succeeded", 1.0, 1.0)
    meet()
"""


def test_a_scope_that_another_process_has_is_refused_with_its_owner(peer, tmp_path):
    import socket

    path = tmp_path / "state.json"
    other = peer(HOLDS, path)
    other.meet()
    manager = StateManager(path)
    for use in (lambda: manager.open_scope("etl", "mine"), lambda: manager.clear_runs("etl")):
        with pytest.raises(StateLockedError, match="'etl'") as caught:
            use()
        error = caught.value
        assert (error.scope, error.path, error.pid, error.host) == ("etl", str(path), other.pid, socket.gethostname())
        assert error.since.startswith("20")
    other.go()
    other.meet()
    manager.open_scope("etl", "mine").close("succeeded", 1.0, 1.0)


def test_while_one_scope_is_held_others_and_the_cache_can_be_used(peer, tmp_path, size):
    path = tmp_path / "state.json"
    other = peer(HOLDS, path)
    other.meet()
    manager = StateManager(path)
    manager.set("k", 1)
    scope = manager.open_scope("another", "mine")
    scope.append("load", record(5))
    scope.close("succeeded", 1.0, 1.0)
    assert manager.read_scope("etl").tasks == {"fetch": record(1)}
    other.go()
    other.meet()
    fresh = StateManager(path)
    assert fresh.get("k") == manager.get("k") == 1
    for one in (fresh, manager):
        assert one.read_scope("another").tasks == {"load": record(5)}
        assert one.read_scope("etl").tasks == {"fetch": record(1)}


def test_the_death_of_a_process_frees_its_scope_and_keeps_what_it_stored(peer, tmp_path, size):
    path = tmp_path / "state.json"
    other = peer(HOLDS, path)
    other.meet()
    other.kill()
    scope = StateManager(path).open_scope("etl", "mine")
    assert scope.tasks == {"fetch": record(1)}
    assert scope.last_number == 1
    scope.close("succeeded", 1.0, 1.0)
    assert files(tmp_path) == ["state.json"]


def test_a_run_waits_for_another_one_as_long_as_lock_timeout_says(peer, tmp_path):
    path = tmp_path / "state.json"
    other = peer(HOLDS, path)
    other.meet()
    dag = DAG("etl", tasks=[Task("fetch", lambda: 1)])
    handle = dag.start(state=StateManager(path, lock_timeout=60))
    with pytest.raises(StateLockedError):
        dag.run(state=StateManager(path, lock_timeout=0.05))
    assert not handle.done()
    other.go()
    other.meet()
    assert handle.result(30) == {"fetch": 1}


def test_a_lock_file_without_an_owner_is_no_lock(tmp_path):
    """A killed process, or a copied folder, leaves the file; only the system's lock on it counts."""
    path = tmp_path / "state.json"
    manager = StateManager(path)
    scope = manager.open_scope("etl", "run")
    (lock,) = (file for file in tmp_path.glob("*.lock"))
    content = lock.read_bytes()
    scope.close("succeeded", 1.0, 1.0)
    lock.write_bytes(content)
    (tmp_path / "state.json.lock").write_bytes(b"anything")
    manager.open_scope("etl", "run").close("succeeded", 1.0, 1.0)
    assert files(tmp_path) == ["state.json"]


def test_a_scope_that_is_closed_twice_takes_nothing_from_the_next_run(tmp_path):
    path = tmp_path / "state.json"
    first = StateManager(path).open_scope("etl", "run")
    first.close("succeeded", 1.0, 1.0)
    second = StateManager(path).open_scope("etl", "run")
    second.append("fetch", record(1))
    first.close("succeeded", 1.0, 1.0)
    second.append("load", record(2))
    assert StateManager(path).read_scope("etl").tasks == {"fetch": record(1), "load": record(2)}
    second.close("succeeded", 1.0, 1.0)


def read_while_running(peer, folder, runs):
    """Read a scope again and again while a process makes *runs* runs of it."""
    path, told = folder / "state.json", folder / "acknowledged"
    told.write_text("0".rjust(9))
    code = """
        import os
        fd = os.open(args[0], os.O_WRONLY)
        meet()
        for run in range(int(args[1])):
            scope = StateManager(path).open_scope("etl", "run")
            for number in range(5 * run + 1, 5 * run + 6):
                scope.append(f"t{number % 5}", record(number))
                os.pwrite(fd, str(number).rjust(9).encode(), 0)
            scope.close("succeeded", 1.0, 1.0)
    """
    writer = peer(code, path, told, runs)
    managers = [StateManager(path), StateManager(path)]
    writer.meet()
    writer.go()
    seen = set()
    while writer.is_running:
        for manager in (*managers, StateManager(path)):
            number = int(told.read_text())
            found = {task: record.number for task, record in manager.read_scope("etl").tasks.items()}
            missing = [n for n in range(max(1, number - 4), number + 1) if found.get(f"t{n % 5}", 0) < n]
            assert not missing, f"{missing} of {number}: {found}"
            seen.add(number)
    writer.finish()
    assert len(seen) > 3, "nothing was read meanwhile"


def test_a_reader_misses_nothing_while_a_run_appends_and_folds(peer, tmp_path, size):
    read_while_running(peer, tmp_path, 100)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_reader_misses_nothing_during_many_runs(peer, tmp_path, size):
    read_while_running(peer, tmp_path, 5_000)


def before_opening(monkeypatch, path, action):
    """Run *action* just before the file *path* is opened for the first time from now on."""
    actions = [action]

    def hooked(name, *args):
        if name == str(path) and actions:
            actions.pop()()
        return open(name, *args)

    monkeypatch.setattr(jsonfile, "open", hooked, raising=False)


def test_a_run_that_ends_between_two_looks_of_a_reader_is_not_missed(tmp_path, monkeypatch):
    """The reader has the snapshot of before; the run's journal is folded in and gone when it looks for that."""
    path = tmp_path / "state.json"
    scope = StateManager(path).open_scope("etl", "run")
    scope.append("fetch", record(1))
    reader = StateManager(path)
    (journal,) = tmp_path.glob("*.journal")
    before_opening(monkeypatch, journal, lambda: scope.close("succeeded", 1.0, 1.0))
    assert reader.read_scope("etl").tasks == {"fetch": record(1)}
    assert not journal.exists()


def test_a_snapshot_that_is_replaced_between_two_looks_of_a_reader_is_not_missed(tmp_path, journals, monkeypatch):
    """The reader has the snapshot of before; the cache's journal is folded in and gone when it looks for that."""
    path = tmp_path / "state.json"
    writer = StateManager(path)
    writer.set("a", 1)
    reader = StateManager(path)
    writer.set("a", 2)

    def fold():
        monkeypatch.setattr(jsonfile, "_SMALL", SIZES["whole"])
        writer.set("b", 3)

    before_opening(monkeypatch, f"{path}.journal", fold)
    assert reader.get_all() == {"a": 2, "b": 3}
    assert files(tmp_path) == ["state.json"]


def test_a_reader_sees_the_latest_value_where_the_clock_of_files_is_coarse(tmp_path):
    """Systems stamp files with a clock that ticks 250 times a second, or less; new ones get old ones' numbers."""
    tick = time.time_ns()

    class CoarseDisk(NoSyncDisk):
        def replace(self, source, target):
            os.utime(source, ns=(tick, tick))
            super().replace(source, target)

    with tempfile.TemporaryDirectory() as folder:  # on a disk, where such numbers come back
        path = Path(folder) / "state.json"
        writer, reader = StateManager(path, _disk=CoarseDisk()), StateManager(path)
        for number in range(100, 200):
            writer.set("k", number)
            if number % 2:
                assert reader.get("k") == number


# ---------------------------------------------------------------- forks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@needs_fork
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_child_of_a_fork_does_not_keep_a_scope(peer, tmp_path, is_killed):
    """The parent is killed, or ends its run, while the child lives on."""
    path = tmp_path / "state.json"
    code = """
        import signal
        scope = StateManager(path).open_scope("etl", "run")
        scope.append("fetch", record(1))
        read, write = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(60)
            for fd in (0, 1, 2):
                os.close(fd)
            os.write(write, b"x")
            signal.pause()
        os.read(read, 1)
        print(child, flush=True)
        meet()
        scope.close("succeeded", 1.0, 1.0)
        meet()
    """
    parent = peer(code, path)
    child = int(parent.read())
    try:
        parent.meet()
        with pytest.raises(StateLockedError) as caught:
            StateManager(path).open_scope("etl", "mine")
        assert caught.value.pid == parent.pid
        if is_killed:
            parent.kill()
        else:
            parent.go()
            parent.meet()
        scope = StateManager(path).open_scope("etl", "mine")
        assert scope.tasks == {"fetch": record(1)}
        scope.close("succeeded", 1.0, 1.0)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


@needs_fork
def test_a_child_of_a_fork_during_a_write_can_use_the_state_too(peer, tmp_path):
    """A thread of the parent has the file when the fork happens; the child has no such thread."""
    path = tmp_path / "state.json"
    code = """
        import signal, threading, warnings
        from flowkit.state.disk import Disk
        warnings.simplefilter("ignore", DeprecationWarning)  # the fork of a process with threads
        writing, forked = threading.Event(), threading.Event()

        class SlowDisk(Disk):
            def write(self, fd, data):
                writing.set()
                forked.wait(20)
                return super().write(fd, data)

        manager = StateManager(path, _disk=SlowDisk())
        thread = threading.Thread(target=manager.set, args=("parent", 1))
        thread.start()
        writing.wait()
        child = os.fork()
        if not child:
            signal.alarm(5)
            forked.set()
            manager.set("child", 2)
            assert manager.get("child") == 2
            os._exit(0)
        forked.set()
        thread.join()
        status = os.waitpid(child, 0)[1]
        assert not status, f"the child has ended with {status}"
    """
    peer(code, path).finish()
    assert StateManager(path).get_all() == {"parent": 1, "child": 2}


# ---------------------------------------------------------------- what is left


def test_an_orderly_end_leaves_the_file_alone(tmp_path):
    """No lock, no journal, nothing temporary; the folder belongs to the user."""
    session = Session(tmp_path / "state.json", Disk()).play()
    assert files(tmp_path) == ["state.json"]
    assert not session.refused
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_files_beside_the_state_that_are_not_its_own_are_left_alone(tmp_path, size):
    """Another state may have a longer name, and write at this moment."""
    others = [f"state.json.{rest}" for rest in ("0.tmp", "b.0123456789ab.tmp", "b.journal", "b.lock")]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    Session(tmp_path / "state.json", NoSyncDisk()).play()
    StateManager(tmp_path / "state.json").clear_runs()
    assert all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_many_sessions_leave_no_more_than_one(tmp_path, size):
    for number in range(20):
        Session(tmp_path / "state.json", NoSyncDisk()).play()
        if not number:
            left, fds = files(tmp_path), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert files(tmp_path) == left
    assert not fds or len(os.listdir("/proc/self/fd")) == fds


def test_a_journal_does_not_outgrow_what_is_stored(tmp_path, journals):
    """The same few keys are set over and over."""
    manager = StateManager(tmp_path / "state.json", _disk=NoSyncDisk())
    largest = 0
    for number in range(500):
        manager.set(f"k{number % 5}", number)
        largest = max(largest, sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert largest < 5_000
    assert StateManager(tmp_path / "state.json").get_all() == {f"k{number % 5}": number for number in range(495, 500)}


def test_clear_runs_leaves_the_cache_and_nothing_else(tmp_path, size):
    path = tmp_path / "state.json"
    manager = StateManager(path)
    manager.set("k", 1)
    for name in ("etl", "zip"):
        scope = manager.open_scope(name, "run")
        scope.append("fetch", record(1))
        scope.append("each", record(2), 3)
        scope.close("succeeded", 1.0, 1.0)
    manager.clear_runs("etl")
    assert StateManager(path).read_scope("etl").tasks == StateManager(path).read_scope("etl").items == {}
    assert StateManager(path).read_scope("zip").tasks == {"fetch": record(1)}
    manager.clear_runs()
    assert StateManager(path).read_scope("zip").tasks == {}
    assert StateManager(path).get_all() == {"k": 1}
    assert files(tmp_path) == ["state.json"]


def test_clear_runs_forgets_a_run_that_was_killed(peer, tmp_path):
    """All that there is of it is its journal."""
    path = tmp_path / "state.json"
    other = peer(HOLDS, path)
    other.meet()
    other.kill()
    StateManager(path).clear_runs()
    assert StateManager(path).read_scope("etl").tasks == {}
