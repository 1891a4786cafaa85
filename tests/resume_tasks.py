"""What the tests of resumed runs share: tasks whose results say what they were made from, and stores that can crash.

Tasks note that they are called in :data:`world`, which counts in fingerprints by its type alone. So what a task is told
to do can change between two runs without a change of its code, as the world does.
"""

import errno
import shutil
import sqlite3
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from flowkit import (
    DAG,
    AttemptStarted,
    RunFinished,
    RunStarted,
    StateManager,
    StateWriteError,
    Task,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
    current_context,
)

FINAL = {
    TaskSucceeded: "succeeded",
    TaskRestored: "succeeded",
    TaskFailed: "failed",
    TaskSkipped: "skipped",
    TaskUpstreamFailed: "upstream_failed",
    TaskCancelled: "cancelled",
}


# ---------------------------------------------------------------- the world


class World:
    """What tasks find outside of them.

    Attributes:
        calls: The names of the tasks that were called, in order.
        does: What a task does when it is called, by name: an exception to raise, or a function to call, whose result is
            added to its own.
        answers: What a condition says, by the name of its task.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.reset()

    def reset(self):
        self.calls, self.does, self.answers = [], {}, {}

    def act(self, name):
        """Note that the task *name* is called, and do what it was told to; return what to add to its result."""
        with self._lock:
            self.calls.append(name)
        deed = self.does.get(name)
        if isinstance(deed, BaseException):
            raise deed
        return "" if deed is None else str(deed())

    def ask(self, name):
        """Note that the condition of the task *name* is asked, and answer."""
        with self._lock:
            self.calls.append(f"{name}?")
        return self.answers.get(name, True)


world = World()


def note(name):
    """Note that the task *name* is called."""
    world.act(name)


# ---------------------------------------------------------------- tasks


def mix(*values):
    """Say who made this, and from what: ``c(a(), b())``."""
    name = current_context().task_name
    return f"{name}({', '.join(map(str, values))}){world.act(name)}"


async def mix_soon(*values):
    return mix(*values)


def is_wanted(context: TaskContext):
    return world.ask(context.task_name)


def describe_upstream(context: TaskContext):
    """Return what the task sees of each task upstream."""
    return [(run.name, run.state, run.value, run.restored, run.attempts) for run in context.upstream.values()]


@dataclass
class Point:
    x: int


class Pair(NamedTuple):
    left: object
    right: object


class Colour(Enum):
    RED = 1


def paint():
    note("paint")
    return [Point(1), Pair(Point(2), Colour.RED)]


class Painter:
    def __call__(self):
        return paint()

    def paint(self):
        return paint()


def build(graph, *, func=mix, mapped=(), name="graph", **options):
    """Return the DAG of *graph*.

    Args:
        graph: By the name of each task the names of those upstream of it, ``{"a": "", "b": "", "c": "a b"}``.
        func: What every task calls.
        mapped: Names of tasks that are mapped.
        name: The DAG's.
        **options: The options of a task, by its name; also its ``func``.
    """
    tasks = {}
    for each, upstream in graph.items():
        own = {"delay": 0, **options.get(each, {})}
        made = Task(each, own.pop("func", func), **own)
        tasks[each] = made.map() if each in mapped else made
        for before in upstream.split():
            tasks[before] >> tasks[each]
    return DAG(name, tasks=tasks.values())


# ---------------------------------------------------------------- running, and what holds of every run


def run(dag, state, inputs=None, *, resume=True, on_event=None, **options):
    """Run *dag*, failures in the result; ``world.calls`` is then what it called. Check what holds of every run."""
    events = []
    observers = [events.append] + ([] if on_event is None else [on_event])
    world.calls = []
    result = dag.run(inputs, state=state, resume=resume, raise_on_failure=False, observers=observers, **options)
    check_run(result, events)
    return result


def check_run(result, events):
    """Check that *events* tell each end once, and that what was restored looks so and never began."""
    runs = {}
    for name, own in result.tasks.items():
        runs[name] = own
        runs |= {item.name: item for item in own.items}
    assert (type(events[0]), type(events[-1])) == (RunStarted, RunFinished)
    ends = [(event.task_name, FINAL[type(event)]) for event in events if type(event) in FINAL]
    assert sorted(ends) == sorted((name, own.state) for name, own in runs.items()), "not one final event each"
    told = {event.task_name: event for event in events if isinstance(event, TaskRestored)}
    assert told.keys() == {name for name, own in runs.items() if own.restored}
    began = {event.task_name for event in events if isinstance(event, AttemptStarted)}
    for name, event in told.items():
        own = runs[name]
        assert name not in began
        assert (own.state, own.attempts, own.error, own.worker) == ("succeeded", 0, None, None)
        assert (own.started_at, own.duration) == (None, 0)
        assert own.reason.startswith("restored")
        assert (event.value, event.reason) == (own.value, own.reason)


def restored(result):
    """Return the names of the tasks that were restored."""
    return [name for name, own in result.tasks.items() if own.restored]


def states(result):
    return {name: own.state for name, own in result.tasks.items()}


def items_restored(result, name):
    """Return for each item of the mapped task *name* whether it was restored."""
    return [item.restored for item in result.tasks[name].items]


# ---------------------------------------------------------------- stores


class Stores:
    """Makes stores that share one place, as programs do that run one after the other; memory is one store.

    Args:
        kind: "memory", "json" or "sqlite".
        folder: Where files go.
    """

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self._path = folder / f"state.{kind}"
        self._made = []
        self._left = []

    def __call__(self, **options):
        """Return a store; in memory the first one, whatever *options* are."""
        if self.kind == "memory":
            store = self._made[0] if self._made else StateManager(**options)
        elif self.kind == "json":
            store = StateManager(self._path, **options)
        else:
            from flowkit.state import SQLiteStateStore

            store = SQLiteStateStore(self._path, **options)
        self._made.append(store)
        return store

    def crash(self, folder):
        """Return the stores of *folder*, which have what a process that dies at this moment leaves on the disk."""
        left = Stores(self.kind, Path(folder))
        if self.kind == "json":
            for path in self.folder.glob(f"{self._path.name}*"):
                if path.suffix != ".lock":
                    shutil.copy(path, folder)
        elif self._path.exists():
            with closing(sqlite3.connect(self._path)) as old, closing(sqlite3.connect(left._path)) as new:
                old.backup(new)
        self._left.append(left)
        return left

    def close(self):
        """Close every store that was made here, and what crashes have left."""
        for store in (*self._made, *self._left):
            getattr(store, "close", lambda: None)()


class FullDisk:
    """A store like *store*, on a disk that is full after *room* more records."""

    def __init__(self, store, room):
        self._store = store
        self._room = room
        self._lock = threading.Lock()
        self.is_strict = store.is_strict
        self.codec, self.read_scope = store.codec, store.read_scope

    def open_scope(self, name, run_id):
        return _FullScope(self._store.open_scope(name, run_id), self)

    def take_room(self):
        with self._lock:
            self._room -= 1
            if self._room < 0:
                raise StateWriteError("/full/state", errno.ENOSPC, "write", "no space left on device")


class _FullScope:
    def __init__(self, scope, disk):
        self._scope = scope
        self._disk = disk

    def __getattr__(self, name):
        return getattr(self._scope, name)

    def append(self, *record):
        self._disk.take_room()
        self._scope.append(*record)


# ---------------------------------------------------------------- programs that change


def load(source, name="nightly"):
    """Return the module of *source*, as the next process would import it; it can :func:`note`."""
    module = ModuleType(name)
    module.note = note
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return module
