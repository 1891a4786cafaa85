"""Disks that fail, die or lose their power, and a session on a state file that knows what must be in it afterwards.

A disk here does what :class:`flowkit.state.disk.Disk` does, except for a sync, which is only noted. What a session has
been told is stored is *acknowledged*; a call that failed leaves its key with either value until the next one that
succeeds.
"""

import contextlib
import errno
import itertools
import json
import os
import tempfile
import warnings
from pathlib import Path

from flowkit import StateWriteError
from flowkit.state.disk import Disk
from flowkit.state.manager import StateManager
from flowkit.state.store import Record

IN_MEMORY = "/dev/shm"
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)
SIZES = {"whole": 65_536, "journal": 0}
"""``jsonfile._SMALL`` for a cache that is written whole for each change, and for one with a journal."""


@contextlib.contextmanager
def quick_folder(folder):
    """Give a folder where thousands of files cost little, in memory if the system has such folders; else *folder*."""
    if os.path.isdir(IN_MEMORY):
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as name:
            yield Path(name)
    else:
        yield folder


class NoSyncDisk(Disk):
    """A disk without syncs. It counts what it is asked to do.

    Attributes:
        log: The name and file of each operation so far; a file is its path and the how-manieth of that path it is, and
            for a replacement the new path.
    """

    def __init__(self):
        self.log = []
        self._files = {}
        self._made = {}

    def open(self, path, flags):
        def action():
            fd = super(NoSyncDisk, self).open(path, flags)
            if flags & os.O_EXCL:
                self._made[path] = self._made.get(path, -1) + 1
            self._files[fd] = (path, self._made.get(path, 0))
            return fd

        return self._do("open", (path, self._made.get(path, 0)), action)

    def write(self, fd, data):
        return self._do("write", self._files[fd], lambda: super(NoSyncDisk, self).write(fd, data), fd, data)

    def fsync(self, fd):
        self._do("fsync", self._files[fd], lambda: None)

    def replace(self, source, target):
        file = (source, self._made.get(source, 0), target)
        self._do("replace", file, lambda: super(NoSyncDisk, self).replace(source, target))

    def unlink(self, path):
        self._do("unlink", (path, self._made.get(path, 0)), lambda: super(NoSyncDisk, self).unlink(path))

    def fsync_dir(self, path):
        self._do("fsync_dir", (path, 0), lambda: None)

    def _do(self, name, file, action, fd=-1, data=b""):
        """Run *action*, the operation *name* on *file*; a write has *fd* and *data* too."""
        self.log.append((name, file))
        return action()


class FailingDisk(NoSyncDisk):
    """A disk that refuses its operation number *at*, or all from there on if it *lasts*.

    Attributes:
        at: The same.
        failed: The operations that were refused.
    """

    def __init__(self, at, code, *, lasts=False, tears=False):
        super().__init__()
        self.at = at
        self._code = code
        self._lasts = lasts
        self._tears = tears
        """Whether half of what a refused write is to write is there afterwards."""
        self.failed = []

    def _do(self, name, file, action, fd=-1, data=b""):
        number = len(self.log)
        self.log.append((name, file))
        if number < self.at or (number > self.at and not self._lasts):
            return action()
        self.failed.append((name, file))
        if self._tears and len(data) > 1:
            os.write(fd, data[: len(data) // 2])
        raise OSError(self._code, os.strerror(self._code))


class ShortDisk(NoSyncDisk):
    """A disk that takes *most* bytes at a time."""

    def __init__(self, most):
        super().__init__()
        self._most = most

    def write(self, fd, data):
        return super().write(fd, data[: self._most])


class Death(BaseException):
    """What stands for the end of the process."""


class DyingDisk(NoSyncDisk):
    """A disk whose process ends at operation number *at*, of which it does *share* if it is a write, and else nothing.

    Clean-ups that Python would run then do not reach the disk, as they would not if the process had been killed.
    """

    def __init__(self, at, share=0.0):
        super().__init__()
        self._at = at
        self._share = share
        self.is_dead = False

    def _do(self, name, file, action, fd=-1, data=b""):
        if self.is_dead:
            raise Death
        self.log.append((name, file))
        if len(self.log) <= self._at:
            return action()
        self.is_dead = True
        if self._share and len(data) > 1:
            os.write(fd, data[: min(len(data) - 1, max(1, int(len(data) * self._share)))])
        raise Death


# ---------------------------------------------------------------- power cuts


class PowerDisk(NoSyncDisk):
    """A disk that notes what it is asked, so that :func:`after_power_cuts` can tell what would be left of it.

    Its sync number *unsynced_at* fails, if it has that many; what was written before it and not synced yet is never
    safe any more, whatever syncs come later.
    """

    def __init__(self, unsynced_at=-1):
        super().__init__()
        self.effects = []
        """What each operation did: ``(kind, ...)``; files are numbers, names are without their folder."""
        self.has_failed = False
        self._unsynced_at = unsynced_at
        self._numbers = {}
        self._names = {}
        self._syncs = 0

    def fail_next_sync(self):
        """Let the next sync fail."""
        self._unsynced_at = self._syncs

    def open(self, path, flags):
        is_new = not os.path.exists(path)
        fd = super().open(path, flags)
        if is_new:
            self._names[path] = len(self.effects)
        self._numbers[fd] = self._names[path]
        self.effects.append(("create", os.path.basename(path), self._names[path]) if is_new else ("open",))
        return fd

    def write(self, fd, data):
        count = super().write(fd, data)
        self.effects.append(("write", self._numbers[fd], bytes(data[:count])))
        return count

    def fsync(self, fd):
        self._syncs += 1
        if self._syncs - 1 == self._unsynced_at:
            self.has_failed = True
            self.effects.append(("lose", self._numbers[fd]))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(fd)
        self.effects.append(("fsync", self._numbers[fd]))

    def replace(self, source, target):
        super().replace(source, target)
        self._names[target] = self._names.pop(source)
        self.effects.append(("replace", os.path.basename(source), os.path.basename(target), self._names[target]))

    def unlink(self, path):
        super().unlink(path)
        self._names.pop(path, None)
        self.effects.append(("unlink", os.path.basename(path)))

    def fsync_dir(self, path):
        super().fsync_dir(path)
        self.effects.append(("fsync_dir",))


class _Write:
    """Some bytes of a file, and whether they survive a power cut."""

    def __init__(self, data):
        self.data = data
        self.is_safe = False
        self.is_lost = False
        """Whether a sync of them has failed, so that no later one makes them safe."""


def after_power_cuts(effects, all_of=8):
    """Yield the files that can be there after a power cut: how many *effects* there were, and content by name.

    Data may be missing, cut or zeros until its file is synced, and names as they were until their folder is. Of more
    than *all_of* unsynced effects, not each combination is tried: none, all, each alone, and all but each.
    """
    names, writes, unsynced = {}, {}, []
    for done in range(len(effects) + 1):
        if done:
            _take_effect(effects[done - 1], names, writes, unsynced)
        open_writes = [write for file in writes.values() for write in file if not write.is_safe]
        pending = unsynced + open_writes
        for there in _choices(pending, all_of):
            known = dict(names)
            for change in (change for change in unsynced if id(change) in there):
                _change_names(change, known)
            for mode in ("missing", "zeros", "cut") if open_writes else ("missing",):
                yield done, {name: _content(writes[file], there, mode) for name, file in known.items()}


def _take_effect(effect, names, writes, unsynced):
    kind, *what = effect
    if kind == "write":
        writes[what[0]].append(_Write(what[1]))
    elif kind == "lose":
        for write in writes[what[0]]:
            write.is_lost = not write.is_safe
    elif kind == "fsync":
        for write in writes[what[0]]:
            write.is_safe = not write.is_lost
    elif kind == "fsync_dir":
        for change in unsynced:
            _change_names(change, names)
        unsynced.clear()
    elif kind != "open":
        unsynced.append(effect)
        if kind == "create":
            writes[what[1]] = []


def _change_names(change, names):
    kind, name, *rest = change
    if kind == "create":
        names[name] = rest[0]
    else:
        names.pop(name, None)
        if kind == "replace":
            names[rest[0]] = rest[1]


def _choices(pending, all_of):
    """Yield sets of what is there of *pending*, as ids."""
    ids = [id(one) for one in pending]
    if len(ids) <= all_of:
        for size in range(len(ids) + 1):
            yield from map(set, itertools.combinations(ids, size))
        return
    yield set()
    yield set(ids)
    for one in ids:
        yield {one}
        yield set(ids) - {one}


def _content(writes, there, mode):
    """Return the bytes of a file; those of what was lost are zeros if the file goes on behind them."""
    content, end = b"", 0
    for write in writes:
        if write.is_safe or id(write) in there:
            content = content.ljust(end, b"\0") + write.data
        elif mode == "zeros":
            content = content.ljust(end + len(write.data), b"\0")
        elif mode == "cut":
            content = content.ljust(end, b"\0") + write.data[: len(write.data) // 2]
        end += len(write.data)
    return content


# ---------------------------------------------------------------- a session

SCOPES = ("etl", "zip")
"""The scopes of a session."""
CODES = {code: {"the function": code * 3} for code in ("c1", "c2", "c3")}


def record(number, code="c1", state="COMPLETED"):
    """Return a record of which every field tells its number."""
    return Record(
        number, state, code, [number - 1, "skipped"], f"run{number}", 1000.0 + number, number / 4, 1,
        f'["value",{number}]',
    )  # fmt: skip


class Session:
    """A script that uses one state file, and what may be in the file at each moment.

    Attributes:
        cache: For each key the values that may be there; None stands for no value.
        tasks: For each scope, task and item the numbers of the records that may be there; 0 stands for none.
        ever: The same as ``cache`` and ``tasks``, of all times.
        moments: After each change of these, how long the disk's log of effects was, and copies of them.
        refused: What the disk has refused, by the name of the call.
    """

    def __init__(self, path, disk, durability="process"):
        self.path = str(path)
        self.disk = disk
        self.cache = {}
        self.tasks = {}
        self.ever = ({}, {})
        self.moments = []
        self.refused = []
        self._scope = None
        self._one, self._two = (StateManager(path, durability=durability, _disk=disk) for _ in range(2))

    def play(self):
        """Go through the script to its end; return self."""
        one, two = self._one, self._two
        self.set(one, "a", 1)
        self.set(one, "b", [1, 2])
        self.set(two, "c", "x" * 30)
        self.set(one, "a", 2)
        self.delete(two, "b")
        self.run(one, "etl", "c1", [("fetch", -1), ("load", -1), ("each", 0), ("each", 1), ("end", -1)])
        self.run(two, "etl", "c2", [("fetch", -1), ("each", 1)])
        self.delete(one, "a")
        self.set(one, "b", (3,))
        self.run(one, "zip", "c3", [("all", -1)])
        self.clear_runs(two, "zip")
        self.set(two, "d", 5)
        self.clear(one)
        self.set(two, "a", 6)
        self.set(one, "e", 7)
        return self

    def end(self):
        """Let go of what the process has open, as its end would."""
        if self._scope is not None:
            self._scope._lock.close_in_child()
            self._scope._journal.close()
            self._scope = None

    # The calls. Each leaves what may be there if it does not return, and then what must be there.

    def set(self, manager, key, value):
        self._expect(self.cache, 0, key, value)
        if self._call("set", manager.set, key, value):
            self._acknowledge(self.cache, key, value)

    def delete(self, manager, key):
        self._expect(self.cache, 0, key, None)
        if self._call("delete", manager.delete, key):
            self._acknowledge(self.cache, key, None)

    def clear(self, manager):
        keys = list(self.cache)
        for key in keys:
            self._expect(self.cache, 0, key, None)
        if self._call("clear", manager.clear):
            for key in keys:
                self._acknowledge(self.cache, key, None)

    def run(self, manager, scope, code, tasks):
        """Append a record for each of *tasks*, with a change of the cache in the middle."""
        if not any(self._call("open_scope", self._open, manager, scope) for _ in range(2)):
            return
        if self._call("add_code", self._scope.add_code, code, CODES[code]):
            for place, (task, item) in enumerate(tasks):
                number = 1 + max((max(known) for known in self.tasks.values()), default=0)
                self._expect(self.tasks, 1, (scope, task, item), number)
                if self._call("append", self._scope.append, task, record(number, code), item):
                    self._acknowledge(self.tasks, (scope, task, item), number)
                if place == 1:
                    self.set(manager, "during", number)
        self._call("close", self._scope.close, "succeeded", 1.0, 1.0)
        self._scope = None

    def clear_runs(self, manager, scope):
        tasks = [task for task in self.tasks if task[0] == scope]
        for task in tasks:
            self._expect(self.tasks, 1, task, 0)
        if self._call("clear_runs", manager.clear_runs, scope):
            for task in tasks:
                self._acknowledge(self.tasks, task, 0)

    def _open(self, manager, scope):
        self._scope = manager.open_scope(scope, "run")

    def _call(self, name, function, *args):
        """Return whether ``function(*args)`` returned; it may fail by a StateWriteError that says what and where."""
        refusal = None
        try:
            function(*args)
        except StateWriteError as error:
            refusal = error
            self.refused.append(name)
        assert refusal is None or (refusal.path.startswith(self.path) and refusal.errno in ERRORS)
        return refusal is None

    def _expect(self, known, kind, key, value):
        """Let *key* have *value* too from now on."""
        nothing = [None, 0][kind]
        values = known.get(key, [nothing])
        known[key] = [*values, value]
        self.ever[kind].setdefault(key, [nothing]).append(value)
        self._remember()

    def _acknowledge(self, known, key, value):
        """Let *key* have *value* alone from now on."""
        known[key] = [value]
        self._remember()

    def _remember(self):
        if isinstance(self.disk, PowerDisk):
            self.moments.append((len(self.disk.effects), dict(self.cache), dict(self.tasks)))


def check(path, cache, tasks, *, may_lack=False):
    """Read the state file *path* anew, which must hold what *cache* and *tasks* of a session allow.

    Args:
        may_lack: Whether anything may be missing, with a warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if may_lack else "error", RuntimeWarning)
        manager = StateManager(path, _disk=NoSyncDisk())
        found = manager.get_all()
        views = {scope: manager.read_scope(scope) for scope in {key[0] for key in tasks}}
    assert set(found) <= set(cache)
    for key, allowed in cache.items():
        value = found.get(key)
        assert value in allowed or (may_lack and value is None), f"{key!r} is {value!r} instead of one of {allowed}"
    for (scope, task, item), allowed in tasks.items():
        view = views[scope]
        one = view.tasks.get(task) if item < 0 else view.items.get(task, {}).get(item)
        number = 0 if one is None else one.number
        assert number in allowed or (may_lack and not number), f"{scope, task, item}: record {number}, not of {allowed}"
        if one is not None:
            assert one == record(number, one.code)
            assert may_lack or view.codes[one.code] == CODES[one.code]
    return manager


def use_again(path, cache, tasks):
    """Change something in the state file *path*, which must not change anything else, and leave it plain JSON."""
    cache, tasks = dict(cache), dict(tasks)
    manager = StateManager(path, _disk=NoSyncDisk())
    for scope in SCOPES:
        opened = manager.open_scope(scope, "again")
        opened.add_code("c1", CODES["c1"])
        opened.append("again", record(99))
        opened.close("succeeded", 1.0, 1.0)
        tasks[scope, "again", -1] = [99]
    for value in range(2):
        manager.set("again", value)
    cache["again"] = [1]
    check(path, cache, tasks)
    json.loads(Path(path).read_bytes())
