"""Tasks for processes that are killed, interrupted or late. Children import this module, so it imports little itself.

Tasks and tests talk through files, named pipes and the standard output: whatever dies in between leaves nothing locked.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time

from flowkit import DAG, Task, current_context

A_MINUTE = 60.0


# ---------------------------------------------------------------- talking


def say(text):
    """Print one whole line, whatever else goes on in this process."""
    os.write(1, f"{text}\n".encode())


def note(path, *words):
    """Append one whole line to the file at *path*."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


def wait_at(gate):
    """Return when somebody has written a byte for us into the named pipe *gate*."""
    fd = os.open(gate, os.O_RDONLY)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)


def sleep_until_cancelled(context):
    """Return True as soon as nobody waits for the attempt, False after a while."""
    deadline = time.monotonic() + 10
    while not context.is_cancelled():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


# ---------------------------------------------------------------- little tasks


def pid(*_):
    return os.getpid()


def path_of(file):
    return file


def value_of(value):
    return value


def plus_one(value):
    return value + 1


def fail(*_):
    raise ValueError("no")


def fail_at(gate):
    wait_at(gate)
    raise ValueError("no")


def pass_at(gate):
    wait_at(gate)
    return os.getpid()


def nap(path):
    """Note who runs where, and take some milliseconds."""
    note(path, current_context().task_name, os.getpid())
    time.sleep(0.003)
    return current_context().task_name


def dot(path):
    """Note who runs where, in microseconds."""
    name = current_context().task_name
    note(path, name, os.getpid())
    return name


def wide(*values):
    return len([value for value in values if value is not None])


def span(path, seconds=0.02):
    """Note when it ran, and where; the clock is the machine's."""
    started = time.monotonic()
    time.sleep(seconds)
    note(path, current_context().task_name, os.getpid(), started, time.monotonic())


def meet(path, gate):
    """Say that we are here, and wait for the others."""
    note(path, current_context().task_name, os.getpid())
    return pass_at(gate)


def always(*_):
    return True


def takes_its_time(*_):
    time.sleep(0.15)
    return True


def pid_at_the_third(context):
    """Fail twice; return the processes of the three attempts."""
    _seen.append(os.getpid())
    if context.attempt < 3:
        raise ConnectionError("refused")
    return _seen


_seen = []


# ---------------------------------------------------------------- long tasks


def hold(*_):
    """Say so, and take a minute."""
    say(f"holding {os.getpid()}")
    time.sleep(A_MINUTE)


async def hold_async(*_):
    say(f"holding {os.getpid()}")
    await asyncio.sleep(A_MINUTE)


def hold_quietly(*_):
    time.sleep(A_MINUTE)


def note_and_hold(path):
    note(path, os.getpid())
    time.sleep(A_MINUTE)


def note_and_hold_after(_, path):
    note_and_hold(path)


def hold_at_first(context):
    if context.attempt == 1:
        time.sleep(A_MINUTE)
    return context.attempt


def be_deaf():
    hold_deaf()


def be_busy():
    hold_the_interpreter()


def check_forever(path, context):
    note(path, context.task_name)
    while True:
        context.check_cancelled()
        time.sleep(0.001)


def note_late(path, reached=None, gate=None):
    note(path, os.getpid())


async def hold_async_quietly(*_):
    await asyncio.sleep(A_MINUTE)


async def block_loop(*_):
    """Keep the whole loop waiting, as no coroutine should."""
    say(f"holding {os.getpid()}")
    time.sleep(A_MINUTE)  # noqa: ASYNC251 - that is the point


async def swallow_cancel(*_):
    """Take no cancel for an answer."""
    say(f"holding {os.getpid()}")
    deadline = time.monotonic() + A_MINUTE
    while time.monotonic() < deadline:
        try:
            await asyncio.sleep(A_MINUTE)
        except asyncio.CancelledError:
            say("swallowed")


def hold_the_interpreter(*_):
    """Run in C for about ten seconds without letting another thread of the process run."""
    say(f"holding {os.getpid()}")
    size = 2_000_000
    started = time.perf_counter()
    sum(range(size))
    return sum(range(int(size * 10 / (time.perf_counter() - started))))


def hold_deaf(*_):
    """Take a minute, with every signal ignored that can be."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    say(f"holding {os.getpid()}")
    deadline = time.monotonic() + A_MINUTE
    while time.monotonic() < deadline:
        time.sleep(1)


def hold_with_cleanup(context):
    context.add_cleanup_handler(say_cleaned)
    say("holding")
    time.sleep(A_MINUTE)


def say_cleaned():
    say("cleaned")


def hold_cleanup(context):
    context.add_cleanup_handler(clean_for_a_minute)
    say("holding")
    time.sleep(A_MINUTE)


def clean_for_a_minute():
    say("cleaning")
    time.sleep(A_MINUTE)


def nested(method="forkserver"):
    """Run two tasks of a minute in processes of this process."""
    return dict(inner(method).run(executor="process", max_workers=2, _start_method=method))


def nested_in_background(method="forkserver"):
    inner(method).start(executor="process", max_workers=2, _start_method=method)
    time.sleep(A_MINUTE)


def inner(method):
    return DAG("inner", tasks=[Task(f"inner_{n}", hold) for n in range(2)])


# ---------------------------------------------------------------- deaths


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path):
    """Die the first time."""
    if not os.path.exists(path):
        note(path, os.getpid())
        die()
    return "survived"


def exit_with(code):
    os._exit(code)


def fork_and_die(path):
    """Leave a child behind that keeps all that is open here, and die."""
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    note(path, child)
    os._exit(3)


def fork_and_both_return(path):
    """Have two processes come back from one call."""
    if os.fork() == 0:
        note(path, os.getpid())
        return "child"
    return "parent"


def close_everything(seconds=0.0):
    """Close every file but the standard ones, ours included."""
    os.closerange(3, 4096)
    time.sleep(seconds)
    return "closed"


def close_standard_files():
    for fd in (0, 1, 2):
        os.close(fd)
    return "closed"


def reuse_everything(path):
    """Close every file, and open others in their places."""
    os.closerange(3, 4096)
    for _ in range(50):
        os.open(path, os.O_RDWR | os.O_CREAT)
    return "reused"


def is_killer(*_):
    """A condition that kills the worker."""
    die()


def wait_and_agree(reached, gate):
    """A condition that is judged for as long as the test wants."""
    note(reached, "reached")
    wait_at(gate)
    return True


def leave_a_thread_behind():
    """Return while a thread, no daemon, goes on for a minute."""
    import threading

    threading.Thread(target=time.sleep, args=(A_MINUTE,)).start()
    return os.getpid()


# ---------------------------------------------------------------- batches

_calls = 0


def nth(path):
    """Be quick, but for the 40th call in this process, which waits for a while.

    It notes ``slow`` when it begins and whether it was asked to stop.
    """
    global _calls
    _calls += 1
    if _calls == 40:
        note(path, "slow", current_context().task_name)
        note(path, "asked" if sleep_until_told(path) else "not asked")
    return _calls


def sleep_until_told(path):
    """Return whether the attempt was asked to stop before somebody made a file beside *path*."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not os.path.exists(f"{path}.go"):
        if current_context().is_cancelled():
            return True
        time.sleep(0.001)
    return False


def nth_fails(path):
    """Be quick, but for the 40th call in this process, which fails, and the 41st, which waits to be asked to stop."""
    global _calls
    _calls += 1
    if _calls == 40:
        raise ValueError("the 40th")
    if _calls == 41:
        note(path, "asked" if sleep_until_told(path) else "not asked")
    return _calls


def nth_fails_quickly(*_):
    """Be quick, but for the 40th call in this process, which fails."""
    global _calls
    _calls += 1
    if _calls == 40:
        raise ValueError("the 40th")
    return _calls


# ---------------------------------------------------------------- races


def end_after(context, seconds, value, fails, refused=0, again=0.0):
    """Take *seconds* in the first attempt and *again* in the others; fail, or only in as many as are *refused*."""
    time.sleep(seconds if context.attempt == 1 else again)
    if fails or context.attempt <= refused:
        raise ConnectionError(f"refused {context.attempt}")
    return value, context.attempt


async def end_after_async(context, seconds, value, fails, refused=0, again=0.0):
    await asyncio.sleep(seconds if context.attempt == 1 else again)
    if fails or context.attempt <= refused:
        raise ConnectionError(f"refused {context.attempt}")
    return value, context.attempt


# ---------------------------------------------------------------- what a process can do


def log(context):
    context.log.warning("from %s", "a process")
    logging.getLogger("flowkit.task").error("plainly")
    return os.getpid()


def add_cleanup_and_fail(path):
    current_context().add_cleanup_handler(Noting(path, "first"))
    current_context().add_cleanup_handler(Noting(path, "last"))
    raise ValueError("no")


def add_cleanup_and_die(path):
    current_context().add_cleanup_handler(Noting(path, "cleaned"))
    die()


def dive(depth, method):
    """Return the processes of *depth* runs, each inside of a task of the one before, and of this task."""
    if not depth:
        return [os.getpid()]
    dag = DAG("inner", tasks=[Task("dive", dive)])
    inner = dag.run({"depth": depth - 1, "method": method}, executor="process", max_workers=1, _start_method=method)
    return [os.getpid(), *inner["dive"]]


class Noting:
    """A cleanup handler that can be sent."""

    def __init__(self, path, text):
        self.path = path
        self.text = text

    def __call__(self):
        note(self.path, self.text, os.getpid())


def about_context(context):
    found = current_context()
    return {
        "same": found is context,
        "name": context.task_name,
        "run": context.run_id,
        "attempt": context.attempt,
        "pid": os.getpid(),
    }


def inner_pids():
    """Return our own process, and those of a run of our own."""
    dag = DAG("inner", tasks=[Task(f"inner_{n}", pid) for n in range(2)])
    return os.getpid(), sorted(set(dag.run(executor="process", max_workers=2).values()))


def is_asked(path, context):
    """Say where we are, and whether we were asked to stop."""
    note(path, context.task_name)
    return sleep_until_cancelled(context)


def is_asked_until(path, second, context):
    """Wait at the gate *second*, and return whether we were asked to stop meanwhile."""
    note(path, context.task_name)
    wait_at(second)
    return context.is_cancelled()


def run_in_a_daemon(connection):
    """Run in a daemon process of multiprocessing, which may have no processes of its own; send what came out."""
    try:
        connection.send(("value", DAG("inner", tasks=[Task("pid", pid)]).run(executor="process")["pid"]))
    except BaseException as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))


def call_program(code):
    """Return how a Python program of its own ends."""
    return subprocess.call([sys.executable, "-c", code])


def print_much(n):
    """Print as users do; the buffer of a pipe holds it back."""
    print(f"line {n} from a task")
    return n
