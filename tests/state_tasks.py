"""Tasks that can tell where they ran, graphs of them, and processes that run these and are killed meanwhile.

Children import this module. They and the tests talk through files and pipes, where what was written outlives whoever
has written it. Nothing here may change from one process to the next, or what is stored does not fit any more: where to
write to is in the environment.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import sys
import time
import warnings
import zlib

from flowkit import (
    DAG,
    Skip,
    StateLockedError,
    StateWriteError,
    Task,
    TaskRestored,
    TaskSucceeded,
    chain,
    current_context,
)
from flowkit import state as stores

STARTS = "FLOWKIT_TEST_STARTS"
"""The variable with the file to which a task adds its name when its function is called."""
GATE = "FLOWKIT_TEST_GATE"
"""The variable with a file; a task that waits for it ends when there is one."""
A_MINUTE = 60.0
INTERRUPTED, LOCKED, REFUSED = 130, 3, 4
"""How a process ends that is interrupted, finds the state locked, or cannot write to it."""


def say(text):
    """Print one whole line, whatever else goes on in this process."""
    os.write(1, f"{text}\n".encode())


def note_start(name):
    """Note that the function of the task *name* is called."""
    fd = os.open(os.environ[STARTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{name}\n".encode())
    finally:
        os.close(fd)


def read_lines(path):
    """Return the lines of the file at *path*, which may not be there."""
    try:
        with open(path) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


# ---------------------------------------------------------------- a random graph


def value_of(name, values):
    """Return what the task *name* makes of *values*: another value if any of these is another."""
    text = f"{name}: {', '.join(map(text_of, values))}"
    number = zlib.crc32(text.encode())
    kinds = (
        number, (name, number), {number: name}, text[-40:].encode(), number / 7, [None, float("inf"), number],
        frozenset([number, -number]), f"{name} ü\ud800 {number}",
    )  # fmt: skip
    return kinds[number % len(kinds)]


def text_of(value):
    """Return what tells *value* from every other."""
    return repr(sorted(value)) + "set" if isinstance(value, frozenset) else repr(value)


def mix(*values):
    """Make a value of the values of everything upstream."""
    name = current_context().task_name
    note_start(name)
    return value_of(name, values)


async def mix_async(*values):
    name = current_context().task_name
    note_start(name)
    await asyncio.sleep(0)
    return value_of(name, values)


def draw_graph(seed, count):
    """Return the names upstream of each of *count* tasks, by name in topological order."""
    rng = random.Random(seed)
    upstream, before, above = {}, [], []
    while len(upstream) < count:
        layer = [f"t{n}" for n in range(len(upstream), min(count, len(upstream) + rng.randint(1, 25)))]
        for name in layer:
            near = rng.sample(above, min(len(above), rng.randint(1, 3)))
            far = rng.sample(before, min(len(before), rng.randint(0, 2)))
            upstream[name] = list(dict.fromkeys(near + far))
        before += layer
        above = layer
    return upstream


def layered(job):
    """Return a random graph of ``size`` tasks, each of which depends on up to five others."""
    func = mix_async if job["executor"] == "async" else mix
    upstream = draw_graph(job["seed"], job["size"])
    tasks = {name: Task(name, func) for name in upstream}
    for name, above in upstream.items():
        if above:
            [tasks[other] for other in above] >> tasks[name]
    return list(tasks.values())


def mix_or_skip(*values):
    """The same, but skip one time out of five."""
    value = mix(*values)
    if zlib.crc32(repr(text_of(value)).encode()) % 5 == 0:
        raise Skip("by chance")
    return value


def is_kept(job, name):
    """Return whether the result of the task *name* is to be kept."""
    return job["shape"] != "patchy" or zlib.crc32(name.encode()) % 10 > 0


def patchy(job):
    """Return a random graph in which tasks are skipped, run all the same, or are not kept; without teardowns."""
    rng = random.Random(job["seed"])
    tasks = {}
    for name, above in draw_graph(job["seed"], job["size"]).items():
        rule = rng.choice(["none_failed", "one_success", "all_success"]) if above else "none_failed"
        tasks[name] = Task(name, mix_or_skip, trigger=rule, persist=is_kept(job, name))
        if above:
            [tasks[other] for other in above] >> tasks[name]
    return list(tasks.values())


# ---------------------------------------------------------------- other graphs


def numbers():
    note_start("numbers")
    return list(range(200))


def square(number):
    note_start(current_context().task_name)
    return {number: number * number}


async def square_async(number):
    return square(number)


def mapped(job):
    """numbers ─► square, 200 items ─► total"""
    each = Task("square", square_async if job["executor"] == "async" else square).map()
    return [Task("numbers", numbers) >> each >> Task("total", mix)]


def is_open():
    return os.path.exists(os.environ[GATE])


def hold(*values):
    """Wait for the gate, for up to a minute."""
    note_start("hold")
    say("holding")
    deadline = time.monotonic() + A_MINUTE
    while not is_open() and time.monotonic() < deadline:
        time.sleep(0.002)
    return len(values)


async def hold_async(*values):
    note_start("hold")
    say("holding")
    deadline = time.monotonic() + A_MINUTE
    while not is_open() and time.monotonic() < deadline:  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.002)
    return len(values)


def held(job):
    """t0 .. t9 ─► hold ─► after"""
    is_async = job["executor"] == "async"
    quick = [Task(f"t{n}", mix_async if is_async else mix) for n in range(10)]
    return [quick >> Task("hold", hold_async if is_async else hold) >> Task("after", mix)]


def fork(*values):
    """Leave a child behind that outlives us by far."""
    note_start("fork")
    if os.fork() == 0:
        time.sleep(A_MINUTE)
        os._exit(0)
    return len(values)


def forked(job):
    """t0 .. t9 ─► fork ─► hold ─► after"""
    quick = [Task(f"t{n}", mix) for n in range(10)]
    return [quick >> Task("fork", fork) >> Task("hold", hold) >> Task("after", mix)]


def exit_at_once(*values):
    """Take the whole process away, unless the gate is open."""
    note_start("die")
    if not is_open():
        os._exit(7)
    return len(values)


def crash_in_c(*values):
    note_start("die")
    if not is_open():
        ctypes.string_at(0)
    return len(values)


def dying(job):
    """t0 .. t9 ─► die ─► after"""
    quick = [Task(f"t{n}", mix) for n in range(10)]
    return [quick >> Task("die", {"exit": exit_at_once, "segfault": crash_in_c}[job["how"]]) >> Task("after", mix)]


def bulk(*values):
    """Make a value of two kilobytes."""
    return f"{mix(*values)!r}".ljust(2000, ".")


def bulky(job):
    """t0 ─► t1 ─► .. ─► t59"""
    tasks = [Task(f"t{n}", bulk) for n in range(60)]
    chain(*tasks)
    return tasks


# ---------------------------------------------------------------- tasks that are told by an input where to write to


def note(path):
    """Add the name of the task that calls this to the file at *path*."""
    with open(path, "a") as file:
        file.write(f"{current_context().task_name}\n")
    return current_context().task_name


def begin(calls):
    return [note(calls)]


def step(before, calls):
    return [*before, note(calls)]


def fail_at_gate(before, calls, gate):
    """Fail unless the gate is open."""
    name = note(calls)
    if not os.path.exists(gate):
        raise ValueError("closed")
    return [*before, name]


def wait_at_gate(before, calls, gate, context):
    """Wait for the gate, as long as somebody waits for us."""
    name = note(calls)
    while not os.path.exists(gate):
        context.check_cancelled()
        time.sleep(0.001)
    return [*before, name]


def zero():
    return 0


def one_more(*values):
    return sum(values) + 1


# ---------------------------------------------------------------- processes to be killed


class Acks:
    """An observer that adds the name of each task that has succeeded to the file at *path*, in one system call.

    It says ``first`` after the first one.

    Attributes:
        restored: The names of the tasks that were restored.
    """

    def __init__(self, path):
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._is_first = True
        self.restored = []

    def __call__(self, event):
        if isinstance(event, TaskRestored):
            self.restored.append(event.task_name)
        elif isinstance(event, TaskSucceeded):
            os.write(self._fd, f"{event.task_name}\n".encode())
            if self._is_first:
                self._is_first = False
                say("first")


def open_store(job):
    """Return the store of *job*."""
    made = stores.StateManager if job["store"] == "json" else stores.SQLiteStateStore
    return made(job["path"], **job.get("options", {}))


def make_dag(job):
    """Return the DAG of *job*."""
    return DAG(job["shape"], tasks=globals()[job["shape"]](job))


def run_job(job):
    """Run a graph on a store, and write down what came out of it."""
    os.environ[STARTS], os.environ[GATE] = job["starts"], job["gate"]
    warnings.simplefilter("error")  # that something is damaged, for one
    dag = make_dag(job)
    acks = Acks(job["acks"])
    workers = {"process": 2, "thread": 4}.get(job["executor"])
    say("ready")
    if "most_bytes" in job:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], resource.RLIM_INFINITY))
    state = open_store(job)
    try:
        result = dag.run(
            executor=job["executor"], max_workers=workers, state=state, resume=True, observers=[acks]
        )  # fmt: skip
    finally:
        if job["store"] == "sqlite":
            state.close()
    found = {name: text_of(value) for name, value in result.items()}
    with open(job["results"], "w") as file:
        json.dump({"values": found, "restored": acks.restored}, file)


def serve():
    """Run the job of each line of the standard input in a process of its own, forked off a warm one.

    The process says ``pid N``, ``ready`` and ``first``; when it is over this says ``ended STATUS``. The process is
    there, as a zombie at least, until the next line: so it can be killed at any time.
    """
    import sqlite3
    from importlib import import_module

    modules = ("checkpoint", "runner", "workers.coroutines", "workers.processes")
    assert [sqlite3, *(import_module(f"flowkit.engine.{name}") for name in modules)]  # now, and not in each process
    pid = 0
    for line in sys.stdin:
        if pid:
            os.waitpid(pid, 0)  # nobody will send it a signal any more
        pid = os.fork()
        if pid == 0:
            be_job(json.loads(line))
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        say(f"ended {ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status}")


def be_job(job):
    """Run *job*, and end this process."""
    import faulthandler
    import traceback

    say(f"pid {os.getpid()}")
    code = 1
    try:
        os.dup2(os.open(job["errors"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
        faulthandler.dump_traceback_later(30, exit=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits SIG_IGN
        run_job(job)
        code = 0
    except StateLockedError as error:
        say(f"locked {error.pid} {error.host}")
        code = LOCKED
    except StateWriteError:
        traceback.print_exc()
        code = REFUSED
    except KeyboardInterrupt:
        traceback.print_exc()
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run is over
        finally:  # a Ctrl-C may have come just before
            sys.stderr.flush()
            os._exit(code)
