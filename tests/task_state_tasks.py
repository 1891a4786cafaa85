"""What the tests of the states of tasks share: workflows, stores of somebody's own, and what other processes run.

Tasks that run in this process note that they are called in :data:`world`, which counts in fingerprints by its type
alone. Processes that are killed, or save at the same time, and the tests talk through files, whose names are in the
environment, so that nothing of it counts as code.
"""

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
from pathlib import Path

from resume_tasks import world

from flowkit import (
    BaseStateStore,
    JSONStateStore,
    SequentialExecutor,
    SQLiteStateStore,
    Task,
    TaskStatus,
    TaskSucceeded,
    ThreadedExecutor,
    Workflow,
    WorkflowExecutionError,
    current_context,
)
from flowkit.state.disk import Disk

CALLS = "FLOWKIT_TEST_CALLS"
"""The variable with the file to which a task adds its name when it is called."""
GATE = "FLOWKIT_TEST_GATE"
"""The variable with a file; whatever waits goes on when there is one."""
A_MINUTE = 60.0


# ---------------------------------------------------------------- workflows


def mix(**upstream):
    """Say who made this, and from what; do what the world says."""
    name = current_context().task_name
    return f"{name}({', '.join(map(str, upstream.values()))}){world.act(name)}"


def mix_anew(**upstream):
    """Another code than that of mix."""
    name = current_context().task_name
    return f"new {name}({', '.join(map(str, upstream.values()))}){world.act(name)}"


def quietly(deed):
    """Return what does *deed* and adds nothing to the result of the task."""
    return lambda: (deed(), "")[1]


def wait_for_cancel():
    """Wait until the task that calls this is to stop."""
    deadline = time.monotonic() + A_MINUTE
    while time.monotonic() < deadline:
        current_context().check_cancelled()
        time.sleep(0.001)


def build(graph, *, name="etl", func=mix, **funcs):
    """Return the workflow of *graph*: by the name of each task the names of those it depends on, ``{"b": "a"}``."""
    workflow = Workflow(name)
    for each, before in graph.items():
        workflow.add_task(Task(each, funcs.get(each, func)), depends_on=before.split())
    return workflow


def execute(graph, store, *, using=SequentialExecutor, **keywords):
    """Execute *graph*, and return the result; ``world.calls`` is then what it called."""
    world.calls = []
    return using(state_store=store).execute(build(graph, **keywords))


def fail(graph, store, name, **keywords):
    """Execute *graph*, in which the task *name* fails this time."""
    world.does[name] = ConnectionError("refused")
    try:
        execute(graph, store, **keywords)
    except WorkflowExecutionError:
        del world.does[name]
    else:
        raise AssertionError(f"{name!r} did not fail")


def same(found, expected):
    return type(found) is type(expected) and found == expected


# ---------------------------------------------------------------- what is in the files


def entries(path):
    """Return whatever stands in the JSON file at *path* that has a status."""
    found, waiting = [], [json.loads(path.read_bytes())]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found += [value] if "status" in value else []
            waiting += value.values()
    return found


def sql(path, statement, *values):
    """Do what a person does with the file by another tool."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def damage(kind, path):
    """Change what was kept of the task a."""
    if kind == "sqlite":
        sql(path, "UPDATE task_states SET result = '7' WHERE task = 'a'")
    else:
        text = path.read_bytes()
        assert text.count(b'"good"') == 1
        path.write_bytes(text.replace(b'"good"', b'"evil"'))


class Counting(Disk):
    """Counts the bytes that are written; leaves out syncs, which take their time."""

    def __init__(self):
        self.bytes = 0

    def write(self, fd, data):
        self.bytes += len(data)
        return super().write(fd, data)

    def fsync(self, fd):
        pass

    def fsync_dir(self, path):
        pass


# ---------------------------------------------------------------- stores of somebody's own


class OwnStore(BaseStateStore):
    """Somebody's own store on a dict, with all that it is asked for."""

    def __init__(self):
        self.states = {}

    def save_task_state(self, task_name, status, result=None, error=None, timestamp=None, metadata=None):
        given = {"status": status, "result": result, "error": error, "timestamp": timestamp, "metadata": metadata}
        self.states[task_name] = given

    def load_task_state(self, task_name):
        return self.states.get(task_name)

    def delete_task_state(self, task_name):
        self.states.pop(task_name, None)

    def clear_all_states(self):
        self.states.clear()

    def list_all_tasks(self):
        return list(self.states)


class Duck:
    """It has never heard of BaseStateStore, nor of metadata."""

    def __init__(self):
        self.states = {}

    def save_task_state(self, task_name, status, result=None, error=None, timestamp=None):
        self.states[task_name] = {"status": status, "result": result, "error": error}

    def load_task_state(self, task_name):
        return self.states.get(task_name)


class InStatuses(OwnStore):
    """Gives statuses back as they are written in programs."""

    def load_task_state(self, task_name):
        found = self.states.get(task_name)
        return found and {**found, "status": TaskStatus(found["status"])}


class InWords(OwnStore):
    """Gives statuses back in small letters."""

    def load_task_state(self, task_name):
        found = self.states.get(task_name)
        return found and {**found, "status": found["status"].lower()}


class Scoped(OwnStore):
    """Keeps workflows apart."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def for_workflow(self, name):
        return self.of.setdefault(name, OwnStore())


class Raising(Duck):
    """Raises *error* when something is saved or loaded of the task *name*."""

    def __init__(self, method, name, error):
        super().__init__()
        self._fails, self._error = (method, name), error

    def save_task_state(self, task_name, status, result=None, error=None, timestamp=None):
        if self._fails == ("save", task_name):
            raise self._error
        super().save_task_state(task_name, status, result, error)

    def load_task_state(self, task_name):
        if self._fails == ("load", task_name):
            raise self._error
        return super().load_task_state(task_name)


class IsADict(dict):
    """A store that is a dict, and cannot be hashed."""

    def save_task_state(self, task_name, status, result=None, error=None, timestamp=None):
        self[task_name] = {"status": status, "result": result}

    def load_task_state(self, task_name):
        return self.get(task_name)


@dataclasses.dataclass
class IsADataclass(Duck):
    states: dict = dataclasses.field(default_factory=dict)


class WithoutReferences:
    """A store to which there can be no weak reference."""

    __slots__ = ("states",)
    __init__, save_task_state, load_task_state = Duck.__init__, Duck.save_task_state, Duck.load_task_state


class Slotted(OwnStore):
    __slots__ = ()


# ---------------------------------------------------------------- other processes


def in_a_process(call):
    """Return the code of a program that makes *call* of task_state_tasks."""
    folder = str(Path(__file__).parent)
    return f"import sys; sys.path.insert(0, {folder!r}); import task_state_tasks; task_state_tasks.{call}"


def say(text):
    """Print one whole line."""
    os.write(1, f"{text}\n".encode())


def wait_for_gate():
    deadline = time.monotonic() + A_MINUTE
    while not os.path.exists(os.environ[GATE]) and time.monotonic() < deadline:
        time.sleep(0.002)


def open_store(kind, path):
    return {"json": JSONStateStore, "sqlite": SQLiteStateStore}[kind](path)


def end_or_wait():
    """Note the call; end at once in a task with an even number, else wait for the gate."""
    name = current_context().task_name
    fd = os.open(os.environ[CALLS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{name}\n".encode())
    os.close(fd)
    if int(name[1:]) % 2:
        wait_for_gate()
    return (name, 0)


def collect(**layer):
    return sorted(layer.values())


def layer_of_twenty():
    """t0 .. t19 ─► collect"""
    workflow = Workflow("layer")
    names = [f"t{n}" for n in range(20)]
    for name in names:
        workflow.add_task(Task(name, end_or_wait))
    workflow.add_task(Task("collect", collect), depends_on=names)
    return workflow


def run_layer(kind, path):
    """Execute the layer; say so when the ten tasks that do not wait were announced as done."""
    done = []

    def watch(event):
        if isinstance(event, TaskSucceeded):
            done.append(event.task_name)
            if len(done) == 10:
                say("ten are done")

    store = open_store(kind, path)
    ThreadedExecutor(max_workers=20, state_store=store, observers=[watch]).execute(layer_of_twenty())


def save_many(kind, path, prefix, count):
    """Save *count* states, beginning when the gate opens."""
    store = open_store(kind, path)
    say("ready")
    wait_for_gate()
    for number in range(count):
        store.save_task_state(f"{prefix}{number}", "COMPLETED", number)
    getattr(store, "close", int)()
