"""What the tests run on executors of others: functions that a worker anywhere can import, and values that misbehave.

No test in here.
"""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

from flowkit import DAG, GiveUp, RetryAfter, Skip, Task, current_context

HERE = str(Path(__file__).parent)
_LONGEST = 20.0
"""Seconds after which a task that waits for a file gives up."""


# ---------------------------------------------------------------- plain work


def one(*_):
    return 1


def two():
    return 2


def echo(value):
    return value


def give(given):
    return given


def double(value):
    return 2 * value


def add(left, right):
    return left + right


def collect(*values):
    return list(values)


def pid(*_):
    return os.getpid()


def numbers():
    return list(range(6))


def nothing():
    return []


async def double_soon(value):
    await asyncio.sleep(0)
    return 2 * value


# ---------------------------------------------------------------- errors, skips, conditions


class Refused(Exception):
    """An error with two arguments and an attribute."""

    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


def refuse(*_):
    raise ValueError("no")


def refuse_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        raise Refused(402, "card declined") from error


def refuse_odd(value):
    if value % 2:
        raise ValueError(f"{value} is odd")
    return value


def skip(*_):
    raise Skip("no rows")


def skip_odd(value):
    if value % 2:
        raise Skip("odd")
    return value


def give_up():
    raise GiveUp("card declined") from ValueError("no money")


def come_again(context):
    if context.attempt == 1:
        raise RetryAfter(0, "come again")
    return context.attempt


def succeed_at_third(context):
    if context.attempt < 3:
        raise ConnectionError(f"refused {context.attempt}")
    return context.attempt


def is_refusal(error):
    return "refused" in str(error)


def is_even(value):
    return value % 2 == 0


def broken_condition(*_):
    raise LookupError("the condition itself")


def note_and_agree(path, *_):
    write_line(path, "asked")
    return True


def write_line(path, line):
    with open(path, "a") as file:
        file.write(f"{line}\n")


# ---------------------------------------------------------------- time


def until_told(context, release):
    """Work until the attempt is not wanted any more, or the file *release* is there."""
    until = time.monotonic() + _LONGEST
    while not (context.is_cancelled() or os.path.exists(release)):
        assert time.monotonic() < until
        time.sleep(0.002)
    return "told to stop" if context.is_cancelled() else "released"


def slow_at_first(context, release):
    return until_told(context, release) if context.attempt == 1 else f"attempt {context.attempt}"


def wait_for(release, *_):
    """Wait until the file *release* is there."""
    until = time.monotonic() + _LONGEST
    while not os.path.exists(release):
        assert time.monotonic() < until
        time.sleep(0.002)
    return "released"


def be_alone(path, *_):
    """Fail if another call with the same *path* goes on."""
    with open(path, "x"):
        time.sleep(0.005)
    os.unlink(path)
    return "alone"


# ---------------------------------------------------------------- the context


def look_around(context, fetch):
    """Return all that the context says; current_context() finds the same one."""
    found = current_context()
    assert (found.task_name, found.run_id, found.attempt) == (context.task_name, context.run_id, context.attempt)
    return {
        "task_name": context.task_name, "run_id": context.run_id, "attempt": context.attempt, "fetch": fetch,
        "is_cancelled": context.is_cancelled(),
        "upstream": {name: (run.state, run.value) for name, run in context.upstream.items()},
    }  # fmt: skip


def look_upstream(context):
    """Return how everything upstream ended."""
    return {name: (run.state, run.value, run.reason) for name, run in context.upstream.items()}


def attempt(context):
    return context.attempt


def is_named_named(context):
    return context.task_name == current_context().task_name == "named"


# ---------------------------------------------------------------- runs in runs


def run_inside(value):
    """Run one ─► double in here, on threads."""
    inner = Task("inner_one", one) >> Task("inner_double", double)
    return DAG("inner", tasks=[inner]).run(max_workers=2)["inner_double"] + value


# ---------------------------------------------------------------- ends


def kill_worker(*_):
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(_LONGEST)  # the signal is on its way


def kill_worker_once(path, *_):
    """End this process if there is no file at *path* yet."""
    try:
        open(path, "x").close()
    except FileExistsError:
        return "survived"
    return kill_worker()


def note_pid_and_wait(path, release):
    """Write the pid of this process to *path*, at once, and wait for the file *release*."""
    Path(f"{path}.new").write_text(str(os.getpid()))
    os.rename(f"{path}.new", path)
    return wait_for(release)


# ---------------------------------------------------------------- what cannot travel


def make_lock():
    return threading.Lock()


def use_lock(lock):
    with lock:
        return "locked"


class LockHolder:
    """Has a method that cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def work(self):
        with self.lock:
            return "worked"


def generate():
    yield 1


class RefusesToLeave:
    """Raises when it is pickled."""

    def __reduce__(self):
        raise LookupError("not to be pickled")


class RefusesToArrive:
    """Raises when it is unpickled."""

    def __reduce__(self):
        return broken_condition, ()


def make(kind, *args):
    return kind(*args)


class StaysAway:
    """A value that cannot be unpickled in the process *home*, and tells elsewhere that it arrived."""

    def __init__(self, home, text):
        self.home = home
        self.text = text

    def __reduce__(self):
        return arrive, (self.home, self.text)


def arrive(home, text):
    if os.getpid() == home:
        raise LookupError(f"{text!r} has come to the process that must not see it")
    return StaysAway(home, text)


def append(value, text):
    """Return another value that stays away, with *text* at the end of its own."""
    return StaysAway(value.home, f"{value.text} {text}")


def join(*values):
    """Return the texts of values that stay away, as plain data."""
    return " + ".join(value.text for value in values)


def text_upstream(context):
    """Return the texts of the values upstream, as the context has them."""
    return {name: run.value.text for name, run in context.upstream.items()}


def stay_apart(home, value):
    return StaysAway(home, f"item {value}")


def where(value):
    """Return the text of a value that stays away, and whether this is the process that must not see it."""
    return value.text, os.getpid() == value.home


def is_long(value):
    return len(value.text) > 1


def key_like(context):
    """Return what might be the name of another result of this run."""
    return f"make-{context.run_id}-1"


# ---------------------------------------------------------------- what a task may raise


def raise_error(kind, *args):
    raise kind(*args)


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


class NoAttributes(Exception):
    """Refuses every attribute, notes and traceback included."""

    def __setattr__(self, name, value):
        raise LookupError("from __setattr__")


class BreaksWhenUnpickled(Exception):
    def __reduce__(self):
        return broken_condition, ()


class EndsWhenPickled(Exception):
    def __reduce__(self):
        raise SystemExit(3)


class BecomesAnother(Exception):
    def __reduce__(self):
        return dict, ()


class NotAnException(BaseException):
    """What is not meant to be caught."""


HOSTILE = [
    (TwoArguments, (1, "x")), (Unpicklable, ("x",)), (BrokenStr, ("x",)), (BrokenRepr, ("x",)), (NoAttributes, ("x",)),
    (BreaksWhenUnpickled, ("x",)), (EndsWhenPickled, ("x",)), (BecomesAnother, ("x",)), (NotAnException, ("x",)),
    (SystemExit, (3,)), (KeyboardInterrupt, ()), (GeneratorExit, ()), (StopIteration, (1,)), (MemoryError, ()),
    (asyncio.CancelledError, ()), (TimeoutError, ()), (RecursionError, ("x",)), (BrokenPipeError, (32, "x")),
]  # fmt: skip
"""Exceptions that break something on their way, or would end the worker that lets them out."""
