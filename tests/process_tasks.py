"""What the tests run in other processes: functions that a child can import, and objects that misbehave on the way.

No test in here. The functions stand at module level because processes find them by name.
"""

import asyncio
import contextvars
import functools
import logging
import os
import pickle
import select
import signal
import sys
import threading
import time
from pathlib import Path

from flowkit import DAG, GiveUp, RetryAfter, Skip, Task, TaskContext, current_context, task

HERE = Path(__file__).parent

# ---------------------------------------------------------------- processes


def descendants(known=()):
    """Return the pids of all processes below this one, but for those in *known* and what they have started.

    The two helpers of multiprocessing do not count. Without /proc there is nothing to see.
    """
    found, waiting = set(), [os.getpid()]
    while waiting:
        parent = waiting.pop()
        for pid in _children_of(parent) - set(known):
            line = _read(f"/proc/{pid}/cmdline")
            # Workers of the fork server have its command line too, but are no children of ours.
            is_helper = "resource_tracker" in line or ("forkserver" in line and parent == os.getpid())
            if not is_helper and is_alive(pid):
                found.add(pid)
            waiting.append(pid)
    return found


def is_alive(pid):
    """Return whether there is a process *pid* that has not ended."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])


def _children_of(pid):
    """Return the pids of what *pid* has started, in any of its threads."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended meanwhile
        return set()
    return {int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()}


def _read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


# ---------------------------------------------------------------- plain work


def one():
    return 1


def two():
    return 2


def one_row():
    return [1]


def echo(value):
    return value


def double(value):
    return 2 * value


def add(left, right):
    return left + right


def collect(*values):
    return list(values)


def pid(*_):
    return os.getpid()


def refuse(*_):
    raise ValueError("no")


def is_above_ten(value):
    return value > 10


def is_even(value):
    return value % 2 == 0


async def double_soon(value):
    await asyncio.sleep(0)
    return 2 * value


async def refuse_soon():
    await asyncio.sleep(0)
    raise ValueError("no")


def skip():
    raise Skip("no rows")


def give_up():
    raise GiveUp("card declined") from ValueError("no money")


def retry_after_an_hour(context):
    if context.attempt == 1:
        raise RetryAfter(3600, "come again")
    return context.attempt


def succeed_at_third(context):
    if context.attempt < 3:
        raise ConnectionError(f"refused {context.attempt}")
    return context.attempt


def is_refusal(error):
    return "refused" in str(error)


def broken_predicate(error):
    raise LookupError("the predicate itself")


def broken_condition(*_):
    raise LookupError("the condition itself")


def say_no(*_):
    return False


def yes(*_):
    return True


def nothing(*_):
    return None


def note_and_agree(log):
    write_line(log, "asked")
    return True


def is_named_one():
    return current_context().task_name == "one"


def be_slow_at_first(context):
    return work_for(context, 0.6) if context.attempt == 1 else f"attempt {context.attempt}"


def work_until(context, release, inside=None):
    """Make the file *inside*, and work until the attempt is not wanted any more, or the file *release* is there."""
    if inside is not None:
        inside.touch()
    while not (context.is_cancelled() or os.path.exists(release)):
        time.sleep(0.002)
    return "told to stop" if context.is_cancelled() else "released"


def refuse_after(path):
    """Fail as soon as there is a file at *path*."""
    while not os.path.exists(path):
        time.sleep(0.002)
    refuse()


def work_for(context, seconds):
    """Work for *seconds*, or until the attempt is not wanted any more."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not context.is_cancelled():
        time.sleep(0.002)
    return "done"


def write_line(path, line):
    with open(path, "a") as file:
        file.write(f"{line}\n")


def with_cleanup(context, log):
    """Leave two things to be done if the run does not end well, and see to it that it does not."""
    context.add_cleanup_handler(functools.partial(write_line, log, "first added"))
    current_context().add_cleanup_handler(functools.partial(write_line, log, "last added"))
    raise ValueError("no")


def with_local_cleanup(context):
    lock = threading.Lock()
    context.add_cleanup_handler(lambda: lock)


def log_a_line():
    current_context().log.warning("read %d rows", 3)
    logging.getLogger("flowkit.mine").error("a logger below flowkit's")


def log_an_error():
    try:
        raise ValueError("inner")
    except ValueError:
        current_context().log.exception("could not read")


def log_beside_a_handler(path):
    logging.basicConfig(filename=path)
    current_context().log.warning("once")


def log_what_cannot_travel():
    current_context().log.warning("a lock: %s", threading.Lock())
    return "logged"


def look_around(context, fetch, *, where: TaskContext):
    """Return all that the context says; it says the same by both parameters and by current_context()."""
    for other in (where, current_context()):
        assert (other.task_name, other.run_id, other.attempt) == (context.task_name, context.run_id, context.attempt)
    return {
        "task_name": context.task_name, "run_id": context.run_id, "attempt": context.attempt,
        "is_cancelled": context.is_cancelled(),
        "upstream": {name: (run.state, run.value, run.attempts) for name, run in context.upstream.items()},
        "fetch": fetch,
    }  # fmt: skip


def look_upstream(context):
    """Return how everything upstream ended, with the errors."""
    return {name: (run.state, run.value, run.reason, repr(run.error)) for name, run in context.upstream.items()}


def look_around_in_a_thread():
    """Ask in a thread that has a copy of the context variables."""
    found = []
    copied = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(copied.run(current_context).task_name))
    thread.start()
    thread.join()
    return found[0]


def look_upstream_unasked(fetch):
    return current_context().upstream["fetch"].value


async def look_around_soon():
    await asyncio.sleep(0)
    return current_context().task_name


def descend(depth, executor):
    """Return the pids of this process and of *depth* more, each a run below the one before."""
    if not depth:
        return [os.getpid()]
    inner = DAG("inner", tasks=[Task("descend", descend)])
    below = inner.run({"depth": depth - 1, "executor": executor}, executor=executor, max_workers=1)
    return [os.getpid(), *below["descend"]]


def hang_below(path):
    """Run a graph whose only task notes its process at *path* and does not end."""
    DAG("inner", tasks=[Task("hang", functools.partial(note_and_hang, path))]).run(executor="process")


def note_and_hang(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def add_cleanup_and_die(log, context):
    context.add_cleanup_handler(functools.partial(write_line, log, "cleaned up"))
    end("SIGKILL")


# ---------------------------------------------------------------- results that cannot be handed on


def generate():
    yield 1


async def generate_soon():
    yield 1


def return_generator():
    return (number for number in range(3))


def return_iterator():
    return map(str, range(3))


def return_coroutine():
    return double_soon(1)


def return_async_generator():
    return generate_soon()


# ---------------------------------------------------------------- what a task may raise


class Refused(Exception):
    """An error with two arguments and an attribute."""

    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


def refuse_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        refused = Refused(402, "card declined")
        refused.add_note("first note")
        refused.add_note("second note")
        raise refused from error


def raise_from_each_other():
    try:
        try:
            raise OSError("root")
        except OSError as root:
            raise KeyError("middle") from root
    except KeyError as middle:
        raise ValueError("top") from middle


def raise_group():
    raise ExceptionGroup("several", [ValueError("one"), Refused(1, "two")])


class TwoArguments(Exception):
    """pickle calls it with the one argument that its base was given."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class Unpicklable(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class BrokenStr(Exception):
    def __str__(self):
        raise LookupError("from __str__")


class BrokenRepr(Exception):
    def __repr__(self):
        raise LookupError("from __repr__")


class StrIsNoText(Exception):
    def __str__(self):
        return 3  # noqa: PLE0307 - on purpose


class BrokenInit(Exception):
    """Raises when it is made a second time, as pickle does."""

    made = 0

    def __init__(self, *args):
        type(self).made += 1
        if type(self).made > 1:
            raise LookupError("from __init__")


class NoAttributes(Exception):
    """Refuses every attribute, notes and traceback included."""

    def __setattr__(self, name, value):
        raise LookupError("from __setattr__")


class BecomesAnother(Exception):
    def __reduce__(self):
        return dict, ()


class BecomesAnotherError(Exception):
    def __reduce__(self):
        return KeyError, ("another",)


class Hollow(Exception):
    """Has args that cannot be pickled."""

    def __init__(self):
        super().__init__(threading.Lock(), lambda: 1)


class NotAnException(BaseException):
    """What is not meant to be caught."""


class Ends(Exception):
    """Ends the process in its way, when it is pickled."""

    def __reduce__(self):
        return end, (end(self.args[0]),)


class EndsWhenUnpickled(Exception):
    def __reduce__(self):
        return end, self.args


class EndsInStr(Exception):
    def __str__(self):
        return end(self.args[0])


class OnlyHere(Exception):
    """Can be unpickled in the process that made it, and nowhere else."""

    def __init__(self, text):
        super().__init__(text)
        self.home = os.getpid()

    def __reduce__(self):
        return _only_at, (self.home, self.args[0])


def _only_at(home, text):
    if os.getpid() != home:
        raise LookupError("unpickled elsewhere")
    return OnlyHere(text)


class NeedsTwo(RetryAfter):
    """Cannot be unpickled: it takes one argument more than its base keeps."""

    def __init__(self, seconds, text, more):
        super().__init__(seconds, text)


def raise_needs_two(context):
    if context.attempt == 1:
        raise NeedsTwo(3600, "come again", "more")
    return context.attempt


def raise_huge(_):
    raise ValueError("x" * (50 << 20))


def raise_error(kind, *args):
    raise kind(*args)


# ---------------------------------------------------------------- what ends a process


def end(how):
    """End this process, or only this call, in the way that *how* names."""
    sys.stdout.flush()
    _WAYS[how]()


def _error():
    raise ZeroDivisionError("on purpose")


def _exit():
    sys.exit(3)


def _interrupt():
    raise KeyboardInterrupt


def _signal(number):
    _no_core()
    os.kill(os.getpid(), number)
    time.sleep(60)  # the signal is on its way


def _abort():
    _no_core()
    os.abort()


def _segfault():
    import ctypes

    _no_core()
    ctypes.string_at(0)


def _no_core():
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


_WAYS = {
    "error": _error,
    "exit": _exit,
    "interrupt": _interrupt,
    "os._exit": functools.partial(os._exit, 7),
    "os._exit(0)": functools.partial(os._exit, 0),
    "segfault": _segfault,
    "abort": _abort,
    "SIGSEGV": functools.partial(_signal, signal.SIGSEGV),
    "SIGKILL": functools.partial(_signal, getattr(signal, "SIGKILL", signal.SIGTERM)),
    "SIGTERM": functools.partial(_signal, signal.SIGTERM),
    "nothing": int,
}

DEATHS = {
    "os._exit": (7, "ended with exit code 7"),
    "os._exit(0)": (0, "ended with exit code 0"),
    "segfault": (-11, "was killed by SIGSEGV"),
    "abort": (-6, "was killed by SIGABRT"),
    "SIGSEGV": (-11, "was killed by SIGSEGV"),
    "SIGKILL": (-9, "was killed by SIGKILL"),
    "SIGTERM": (-15, "was killed by SIGTERM"),
}
"""The exit code that each way leaves, and what a message says of it."""


class PickleEnds:
    """Ends whoever pickles it."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        end(self.how)
        return PickleEnds, ("nothing",)

    def __call__(self):
        return 1


class UnpickleEnds:
    """Ends whoever unpickles it."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return end, (self.how,)

    def __call__(self):
        return 1


def end_first_time(path, how):
    """End this process if there is no file at *path* yet."""
    try:
        open(path, "x").close()
    except FileExistsError:
        return "survived"
    return end(how)


def take_part(gate, how):
    """End this process in the way that *how* names."""
    return end(how) if how != "nothing" else "done"


def kill(pid):
    """Kill the process *pid* and return when it has ended, with all of its threads and files."""
    if not hasattr(os, "pidfd_open"):
        os.kill(pid, signal.SIGKILL)
        while is_alive(pid):
            time.sleep(0.001)
        return
    end = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([end], [], [])
    os.close(end)


def kill_noted(path):
    """Kill the process whose id stands in the file *path*, as soon as it does."""
    while not (os.path.exists(path) and os.path.getsize(path)):
        time.sleep(0.002)
    kill(int(Path(path).read_text()))


def end_for(how, error):
    """Be asked whether *error* is worth another try, and end this process in the way that *how* names."""
    end(how)


def ignore_signals_and_hang():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


class HangsWhenPickled:
    def __reduce__(self):
        time.sleep(600)


class HangsWhenUnpickled:
    def __reduce__(self):
        return time.sleep, (600,)


def leave_thread_behind():
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()


def leave_process_behind(path):
    """Fork a process that lives on until there is a file at *path*, and die."""
    child = os.fork()
    if child:
        os._exit(9)
    while not os.path.exists(path):
        time.sleep(0.01)
    os._exit(0)


def close_all_files():
    os.closerange(3, 256)
    return "closed"


# ---------------------------------------------------------------- values


class Block:
    """Bytes that pickle hands over without a copy, as it does with arrays."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Block, (pickle.PickleBuffer(self.data) if protocol >= 5 else self.data,)

    def __eq__(self, other):
        return isinstance(other, Block) and bytes(self.data) == bytes(other.data)

    __hash__ = None


def make_deep():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep


def write_into(block):
    """Change *block* where it lies."""
    with memoryview(block.data) as view:
        view[0] = 7
    return block


def is_writable(block):
    with memoryview(block.data) as view:
        return not view.readonly


def make_block(size):
    return Block(bytearray(size))


def peak_memory(*_):
    """Return the most bytes of memory that this process has ever had."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def make_lock(*_):
    return threading.Lock()


def use_lock(lock):
    with lock:
        return "locked"


class LockHolder:
    """Has a method whose owner cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def work(self):
        with self.lock:
            return "worked"


class Counter:
    """A plain object with a method and a way to be called."""

    def __init__(self, start):
        self.start = start

    def up(self, by=1):
        return self.start + by

    def __call__(self):
        return self.start

    @classmethod
    def at_ten(cls):
        return cls(10).start

    @staticmethod
    def at_five():
        return 5

    def __eq__(self, other):
        return isinstance(other, Counter) and self.start == other.start

    __hash__ = None


# ---------------------------------------------------------------- tasks under a decorator


@task
def decorated():
    return "decorated"


@task(retries=2, delay=0, retry_on=lambda error: True, when=lambda: True, on_success=lambda event: None)
def decorated_with_lambdas():
    return "decorated"


@task
def takes_rows(rows):
    return len(rows)


@task
def of_itself():
    """Return the task that stands for this function here."""
    return of_itself


class Space:
    """A namespace: tasks may stand in a class."""

    @task
    def inside():
        return "inside"


def original():
    return "original"


replaced = Task("replaced", original)
"""The name of the function is not that of the task."""
