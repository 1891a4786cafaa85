"""Ctrl-C, cancel and timeouts: a run that is stopped ends soon, in order, and every task has one final state."""

import asyncio
import random
import signal
import sys
import threading
import time
from collections import Counter

import pytest

from flowkit import (
    DAG,
    RunCancelledError,
    RunTimeoutError,
    Task,
    TaskExecutionError,
    TaskTimeoutError,
    current_context,
)
from flowkit.events import AttemptStarted, TaskEvent
from flowkit.testing import VirtualClock

SOON = 3.0
"""Seconds within which a stopped run must be over: the promise is 0.5, the rest is for a loaded machine."""

needs_sigint = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C on Windows")


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


@pytest.fixture
def gate():
    """An event that tasks may wait for; it is set when the test is over, so that no thread outlives it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def sigint():
    """Python's default handler for the time of the test, whatever started pytest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class Finals:
    """An observer that keeps the final events, and counts them by task."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        if isinstance(event, TaskEvent):
            self.events.append(event)

    def check(self, result):
        """Assert that every task of *result* has one final event, and that it says what the result says."""
        assert Counter(event.task_name for event in self.events) == dict.fromkeys(result.tasks, 1)
        words = {"TaskUpstreamFailed": "upstream_failed"}
        for event in self.events:
            kind = type(event).__name__
            assert words.get(kind, kind.removeprefix("Task").lower()) == result.tasks[event.task_name].state


# ---------------------------------------------------------------- Ctrl-C

IMPORTS = """
import os, random, signal, sys, threading, time
from flowkit import DAG, Task, chain, current_context
def say(text):
    os.write(1, f"{text}\\n".encode())   # whole lines, from any thread
def interrupt_us():
    os.kill(os.getpid(), signal.SIGINT)   # as a terminal does: to the process, not to the calling thread
"""


def is_interrupted(process):
    """Whether *process* ended as one does that a Ctrl-C ends: by SIGINT, which a shell reports as exit code 130."""
    return process.returncode in (-signal.SIGINT, 130)


@needs_sigint
def test_ctrl_c_ends_a_run_whose_tasks_take_a_minute(script, executor):
    """started ─► hold_1 .. hold_4, each a minute long"""
    running = script(
        IMPORTS
        + f"""
started = Task("started", lambda: "quick")
def hold(_):
    say("holding")
    time.sleep(60)
started >> [Task(f"hold_{{n}}", hold) for n in range(1, 5)]
tasks = started.downstream
DAG("slow", tasks=tasks).run(executor={executor!r})
"""
    )
    for _ in range(4 if executor == "thread" else 1):
        running.wait_for("holding")
    running.interrupt()
    running.finish()
    print(f"Ctrl-C to exit, {executor}: {running.seconds:.3f} s")
    assert running.seconds < SOON
    assert is_interrupted(running), running.err
    lines = running.err.splitlines()
    assert "KeyboardInterrupt" in lines
    summary = "\n".join(lines[lines.index("KeyboardInterrupt") :])
    assert "slow: cancelled in" in summary
    assert "1 succeeded, 4 cancelled" in summary
    assert "interrupted by Ctrl-C" in summary
    assert ("4 threads abandoned" in summary) == (executor == "thread")


@needs_sigint
def test_a_second_ctrl_c_does_not_wait_for_cleanup(script, executor):
    running = script(
        IMPORTS
        + f"""
def clean():
    say("cleaning")
    time.sleep(60)
def hold(context):
    context.add_cleanup_handler(clean)
    say("holding")
    time.sleep(60)
DAG("slow", tasks=[Task("hold", hold)]).run(executor={executor!r})
"""
    )
    running.wait_for("holding")
    running.interrupt()
    running.wait_for("cleaning")
    running.interrupt()
    running.finish()
    print(f"second Ctrl-C to exit, {executor}: {running.seconds:.3f} s")
    assert running.seconds < SOON
    assert is_interrupted(running), running.err


@needs_sigint
@pytest.mark.parametrize("pause", [0, 0.001, 0.05, 0.2])
def test_two_ctrl_c_in_a_row_end_the_process(script, executor, pause):
    """However long after the first one: before the run has noted it, or while it waits for its threads."""
    running = script(
        IMPORTS
        + f"""
def hold():
    say("holding")
    time.sleep(60)
DAG("slow", tasks=[Task("hold", hold)]).run(executor={executor!r})
"""
    )
    running.wait_for("holding")
    running.interrupt()
    time.sleep(pause)
    running.interrupt()
    running.finish()
    assert running.seconds < SOON
    assert is_interrupted(running), running.err


ROUNDS = """
import flowkit.engine.launch   # now: Python swallows a Ctrl-C that comes while an import clears a weak reference
gate = threading.Event()
# first ─► 200 side by side ─► join ─► a chain of 200 ─► last, which waits for a minute
first, join = Task("first", lambda: 1), Task("join", lambda *args: 1)
first >> [Task(f"wide_{n}", lambda x: x) for n in range(200)] >> join
last = Task("last", lambda x: gate.wait(60))
chain(join, *[Task(f"link_{n}", lambda x: x) for n in range(200)], last)
dag = DAG("rounds", tasks=[last])
dag.validate()
for n in range(rounds):
    try:
        say("go")
        dag.run(executor=executor, max_workers=4, observers=[lambda event: None] if n % 2 else [])
        say("the run was over without a word")
    except KeyboardInterrupt:
        say("interrupted")
    except BaseException as error:
        say(f"{type(error).__name__}: {error}")
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        say("a handler was left behind")
gate.set()
for thread in threading.enumerate():
    if thread.name.startswith("flowkit-"):
        thread.join(5)
        if thread.is_alive():
            say(f"left behind: {thread.name}")
"""


@needs_sigint
@pytest.mark.parametrize("rounds", [12, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(200)])])
def test_ctrl_c_at_any_instant_ends_the_run(script, executor, rounds):
    """At random instants from the start of a run to its last task, which would wait for a minute."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    running = script(IMPORTS + f"executor, rounds = {executor!r}, {rounds}\n" + ROUNDS, limit=10 + rounds // 2)
    slowest = 0.0
    for _ in range(rounds):
        running.wait_for("go")
        time.sleep(0.04 * rng.random() ** 2)  # most of them while the quick tasks run
        running.interrupt()
        sent = time.monotonic()
        running.wait_for("interrupted")
        slowest = max(slowest, time.monotonic() - sent)
    running.finish()
    print(f"slowest of {rounds}, {executor}: {slowest:.3f} s")
    assert (running.returncode, running.out, running.err) == (0, "", "")
    assert slowest < SOON


@needs_sigint
def test_ctrl_c_is_heard_even_if_another_thread_receives_the_signal(script):
    """A system may hand it to any thread; the waiting main one is then not woken by it."""
    done = script(
        IMPORTS
        + """
def hold():
    time.sleep(0.2)   # the main thread waits by now
    signal.raise_signal(signal.SIGINT)   # to the calling thread
    time.sleep(60)
try:
    DAG("slow", tasks=[Task("hold", hold)]).run()
except KeyboardInterrupt as interrupt:
    say(*interrupt.__notes__)
"""
    ).finish()
    assert done.returncode == 0, done.err
    assert "1 cancelled" in done.out
    assert done.seconds < SOON


@needs_sigint
@pytest.mark.parametrize(
    ("event", "ended"),
    [
        (("RunStarted", None), "3 cancelled"),
        (("AttemptStarted", "c"), "2 succeeded, 1 cancelled"),
        (("TaskSucceeded", "a"), "1 succeeded, 2 cancelled"),
    ],
    ids=["before the first task", "before the attempt", "between two tasks"],
)
def test_ctrl_c_while_no_task_runs_lets_no_further_one_start(script, executor, event, ended):
    """It arrives in an observer, which is not to blame for it. a ─► b ─► c, which takes a minute."""
    done = script(
        IMPORTS
        + f"""
def interrupt(event):
    if (type(event).__name__, getattr(event, "task_name", None)) == {event!r}:
        interrupt_us()
        time.sleep(0.1)   # until the main thread has heard it
    if type(event).__name__ == "RunFinished":
        say(event.state)
c = Task("c", lambda x: time.sleep(60))
chain(Task("a", lambda: 1), Task("b", lambda x: 1), c)
try:
    DAG("quick", tasks=[c]).run(executor={executor!r}, observers=[interrupt])
except KeyboardInterrupt as interrupt:
    say(*interrupt.__notes__)
"""
    ).finish()
    assert done.returncode == 0, done.err
    assert done.out.startswith("cancelled\nquick: cancelled in")
    assert ended in done.out
    assert done.seconds < SOON


@needs_sigint
@pytest.mark.parametrize("reading", [1, 2])
def test_ctrl_c_while_the_clock_is_read_between_two_tasks_is_heard(script, reading):
    """Sequentially; the end of a is the first reading after it, the start of b, which takes a minute, the second."""
    done = script(
        IMPORTS
        + f"""
from flowkit.engine.clock import RealClock
class Interrupting(RealClock):
    readings = None
    def now(self):
        if self.readings is not None:
            self.readings += 1
            if self.readings == {reading}:
                signal.raise_signal(signal.SIGINT)
        return time.perf_counter()
clock = Interrupting()
def start_counting():
    clock.readings = 0
a, b = Task("a", start_counting), Task("b", lambda x: time.sleep(60))
a >> b
try:
    DAG("quick", tasks=[b]).run(executor="sequential", _clock=clock)
except KeyboardInterrupt as interrupt:
    say(*interrupt.__notes__)
"""
    ).finish()
    assert done.returncode == 0, done.err
    assert "1 succeeded, 1 cancelled" in done.out
    assert done.seconds < SOON


@needs_sigint
def test_a_task_that_swallows_ctrl_c_is_the_last_one_that_runs(script):
    done = script(
        IMPORTS
        + """
def swallow():
    try:
        interrupt_us()
        time.sleep(60)
    except KeyboardInterrupt:
        return "swallowed"
swallowing, after = Task("swallow", swallow), Task("after", lambda *_: time.sleep(60))
beside = Task("beside", lambda: time.sleep(60))
swallowing >> after
try:
    DAG("rude", tasks=[after, beside]).run(executor="sequential")
except KeyboardInterrupt as interrupt:
    say(*interrupt.__notes__)
"""
    ).finish()
    assert done.returncode == 0, done.err
    assert "2 cancelled" in done.out
    assert done.seconds < SOON


@needs_sigint
def test_ctrl_c_ends_a_wait_for_a_retry(script, executor):
    running = script(
        IMPORTS
        + f"""
def fail():
    raise ConnectionError("refused")
flaky = Task("flaky", fail, retries=3, delay=3600, max_delay=1e6, on_retry=lambda event: say("waiting"))
DAG("patient", tasks=[flaky]).run(executor={executor!r})
"""
    )
    running.wait_for("waiting")
    time.sleep(0.1)
    running.interrupt()
    running.finish()
    assert running.seconds < SOON
    assert is_interrupted(running), running.err
    assert "1 cancelled" in running.err


@needs_sigint
def test_ctrl_c_in_a_condition_is_not_its_error(script, executor):
    running = script(
        IMPORTS
        + f"""
def hold():
    say("holding")
    time.sleep(60)
DAG("slow", tasks=[Task("t", lambda: 1, when=hold)]).run(executor={executor!r})
"""
    )
    running.wait_for("holding")
    running.interrupt()
    running.finish()
    assert running.seconds < SOON
    assert is_interrupted(running), running.err
    assert "slow: cancelled in" in running.err
    assert "1 cancelled" in running.err


@needs_sigint
def test_ctrl_c_in_a_run_inside_of_a_task_ends_both(script, executor):
    """outer: nested ─► (inner: hold), and beside, a minute long, which never starts sequentially."""
    running = script(
        IMPORTS
        + f"""
def hold():
    say("holding")
    time.sleep(60)
nested = Task("nested", lambda: DAG("inner", tasks=[Task("hold", hold)]).run(executor={executor!r}))
beside = Task("beside", lambda: time.sleep(60))
DAG("outer", tasks=[nested, beside]).run(executor={executor!r}, fail_fast=False)
"""
    )
    running.wait_for("holding")
    running.interrupt()
    running.finish()
    assert running.seconds < SOON
    assert is_interrupted(running), running.err
    assert "outer: cancelled" in running.err


@needs_sigint
def test_ctrl_c_runs_the_cleanup_handlers(script, executor):
    running = script(
        IMPORTS
        + f"""
def hold(context):
    context.add_cleanup_handler(lambda: say("first"))
    context.add_cleanup_handler(lambda: say("last"))
    say("holding")
    time.sleep(60)
DAG("slow", tasks=[Task("hold", hold)]).run(executor={executor!r})
"""
    )
    running.wait_for("holding")
    running.interrupt()
    running.finish()
    assert running.out.splitlines() == ["last", "first"]


@needs_sigint
def test_a_task_hears_of_ctrl_c_through_its_context(script):
    """It stops by itself, within the grace, so no thread is abandoned."""
    running = script(
        IMPORTS
        + """
def hold(context):
    say("holding")
    while True:
        context.check_cancelled()
        time.sleep(0.005)
DAG("polite", tasks=[Task("hold", hold)]).run()
"""
    )
    running.wait_for("holding")
    running.interrupt()
    running.finish()
    assert is_interrupted(running)
    assert "1 cancelled" in running.err
    assert "abandoned" not in running.err


# ---------------------------------------------------------------- whose handler it is


@needs_sigint
def test_a_handler_of_the_application_stays_in_place(script, executor):
    """It hears every Ctrl-C, and whether the run ends is its own decision."""
    done = script(
        IMPORTS
        + f"""
heard = []
def own(number, frame):
    heard.append(number)
signal.signal(signal.SIGINT, own)
def interrupted(*_):
    interrupt_us()
    time.sleep(0.05)
    return signal.getsignal(signal.SIGINT) is own
a, b = Task("a", interrupted), Task("b", interrupted)
a >> b
say(dict(DAG("etl", tasks=[b]).run(executor={executor!r})))
say((heard == [signal.SIGINT] * 2, signal.getsignal(signal.SIGINT) is own))
"""
    ).finish()
    assert done.out.splitlines() == ["{'a': True, 'b': True}", "(True, True)"], done.err


@needs_sigint
def test_an_applications_handler_that_raises_ends_the_run_in_order(script):
    running = script(
        IMPORTS
        + """
def own(number, frame):
    raise KeyboardInterrupt("own")
signal.signal(signal.SIGINT, own)
def hold(context):
    context.add_cleanup_handler(lambda: say("cleaned"))
    say("holding")
    time.sleep(60)
DAG("slow", tasks=[Task("hold", hold)]).run()
"""
    )
    running.wait_for("holding")
    time.sleep(0.2)  # the main thread waits by now; anywhere else such a handler raises where it likes
    running.interrupt()
    running.finish()
    assert running.seconds < SOON
    assert is_interrupted(running), running.err
    assert "1 cancelled" in running.err
    assert running.out.splitlines() == ["cleaned"]


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda number, frame: None], ids=["SIG_IGN", "a function"])
def test_no_handler_is_installed_over_another_one(own, executor, sigint):
    signal.signal(signal.SIGINT, own)
    result = DAG("etl", tasks=[Task("t", lambda: signal.getsignal(signal.SIGINT))]).run(executor=executor)
    assert result["t"] is own
    assert signal.getsignal(signal.SIGINT) is own


def fails():
    raise ValueError("no")


@pytest.mark.parametrize(
    ("func", "options", "error"),
    [
        (lambda: 1, {}, None),
        (fails, {}, TaskExecutionError),
        (fails, {"raise_on_failure": False}, None),
        (lambda missing: 1, {}, TypeError),
    ],
    ids=["success", "failure", "failure returned", "definition error"],
)
def test_the_default_handler_is_back_after_a_run(func, options, error, executor, sigint):
    dag = DAG("etl", tasks=[Task("t", func)])
    if error is None:
        dag.run(executor=executor, **options)
    else:
        with pytest.raises(error):
            dag.run(executor=executor, **options)
    assert signal.getsignal(signal.SIGINT) is sigint


def test_a_run_in_the_main_thread_takes_the_default_handlers_place(executor, sigint):
    """Or a Ctrl-C would raise in the middle of the run's own bookkeeping."""
    result = DAG("etl", tasks=[Task("t", lambda: signal.getsignal(signal.SIGINT))]).run(executor=executor)
    assert result["t"] is not sigint
    assert signal.getsignal(signal.SIGINT) is sigint


def test_the_default_handler_is_back_after_nested_runs(executor, sigint):
    def nested():
        inner = DAG("inner", tasks=[Task("t", lambda: 1)])
        before = signal.getsignal(signal.SIGINT)
        inner.run(executor=executor)
        return before is signal.getsignal(signal.SIGINT)

    assert DAG("outer", tasks=[Task("t", nested)]).run(executor=executor)["t"] is True
    assert signal.getsignal(signal.SIGINT) is sigint


def test_a_run_off_the_main_thread_installs_nothing(executor, sigint):
    seen = []
    dag = DAG("etl", tasks=[Task("t", lambda: seen.append(signal.getsignal(signal.SIGINT)))])
    thread = threading.Thread(target=dag.run, kwargs={"executor": executor})
    thread.start()
    thread.join(10)
    assert seen == [sigint]
    assert signal.getsignal(signal.SIGINT) is sigint


def test_a_run_in_the_background_installs_nothing(sigint, gate):
    started = threading.Event()
    handle = DAG("etl", tasks=[Task("t", lambda: started.set() or gate.wait(10))]).start()
    assert started.wait(10)
    assert signal.getsignal(signal.SIGINT) is sigint
    gate.set()
    assert handle.result(timeout=10)["t"] is True


# ---------------------------------------------------------------- cancel


def test_cancel_ends_the_run_with_its_reason(gate):
    """quick ─► hold ─► below"""
    started, finals = threading.Event(), Finals()
    quick, below = Task("quick", lambda: 1), Task("below", lambda x: x)
    hold = Task("hold", lambda x: started.set() or gate.wait(60))
    quick >> hold >> below
    handle = DAG("etl", tasks=[below]).start(observers=[finals])
    assert started.wait(10)
    asked = time.monotonic()
    assert handle.cancel("deployment") is None
    with pytest.raises(RunCancelledError, match="run of 'etl' was cancelled: deployment") as caught:
        handle.result(timeout=10)
    assert time.monotonic() - asked < SOON
    assert handle.done()
    error = caught.value
    assert error.reason == "deployment"
    assert {name: run.state for name, run in error.result.tasks.items()} == {
        "quick": "succeeded", "hold": "cancelled", "below": "cancelled",
    }  # fmt: skip
    assert error.result.state == "cancelled"
    assert error.result.tasks["below"].reason == "deployment"
    assert error.result.abandoned_threads == 1
    finals.check(error.result)


def test_cancel_raises_even_if_failures_are_returned(gate):
    started = threading.Event()
    handle = DAG("etl", tasks=[Task("t", lambda: started.set() or gate.wait(60))]).start(raise_on_failure=False)
    assert started.wait(10)
    handle.cancel("deployment")
    with pytest.raises(RunCancelledError):
        handle.result(timeout=10)
    with pytest.raises(RunCancelledError):  # and again
        handle.result(timeout=10)


def test_the_first_reason_counts(gate):
    started = threading.Event()
    handle = DAG("etl", tasks=[Task("t", lambda: started.set() or gate.wait(60))]).start()
    assert started.wait(10)
    handle.cancel("first")
    handle.cancel("second")
    with pytest.raises(RunCancelledError, match="first"):
        handle.result(timeout=10)


def test_cancel_after_the_end_changes_nothing(executor):
    handle = DAG("etl", tasks=[Task("t", lambda: 1)]).start(executor=executor)
    assert handle.result(timeout=10) == {"t": 1}
    handle.cancel("too late")
    assert handle.result(timeout=10) == {"t": 1}
    assert handle.result(timeout=10).state == "succeeded"


def test_cancel_lets_nothing_new_start(executor):
    """a ─► b, c ─► d; a cancels its own run and returns."""
    handle, ready, finals = [], threading.Event(), Finals()

    def cancel():
        assert ready.wait(10)
        handle[0].cancel("enough")
        return 1

    ran = []
    a, b = Task("a", cancel), Task("b", lambda x: ran.append("b"))
    a >> b
    dag = DAG("etl", tasks=[b])
    handle.append(dag.start(executor=executor, observers=[finals]))
    ready.set()
    with pytest.raises(RunCancelledError, match="enough") as caught:
        handle[0].result(timeout=10)
    assert ran == []
    assert caught.value.result.tasks["a"].state in ("succeeded", "cancelled")
    assert caught.value.result.tasks["b"].state == "cancelled"
    finals.check(caught.value.result)


def test_cancel_from_an_observer_ends_the_run(executor):
    handle, ready, finals = [], threading.Event(), Finals()

    def watch(event):
        if isinstance(event, AttemptStarted):
            assert ready.wait(10)
            handle[0].cancel("seen enough")

    a, b = Task("a", lambda: 1), Task("b", lambda x: x)
    a >> b
    handle.append(DAG("etl", tasks=[b]).start(executor=executor, observers=[watch, finals]))
    ready.set()
    with pytest.raises(RunCancelledError, match="seen enough") as caught:
        handle[0].result(timeout=10)
    assert caught.value.result.tasks["b"].state == "cancelled"
    finals.check(caught.value.result)


def test_cancel_starts_no_teardown_either(gate):
    """hold ─► teardown(all_done): a cancelled run starts nothing, cleanup handlers are for that."""
    started, ran = threading.Event(), []
    hold = Task("hold", lambda: started.set() or gate.wait(60))
    teardown = Task("teardown", lambda x: ran.append(1), trigger="all_done")
    hold >> teardown
    handle = DAG("etl", tasks=[teardown]).start()
    assert started.wait(10)
    handle.cancel()
    with pytest.raises(RunCancelledError):
        handle.result(timeout=10)
    assert ran == []


def test_cancel_ends_a_wait_for_a_retry(executor):
    waiting, finals = threading.Event(), Finals()
    flaky = Task("t", fails, retries=3, delay=3600, max_delay=1e6, on_retry=lambda event: waiting.set())
    handle = DAG("etl", tasks=[flaky]).start(executor=executor, observers=[finals])
    assert waiting.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=10)
    assert caught.value.result.tasks["t"].state == "cancelled"
    finals.check(caught.value.result)


def test_cancel_ends_a_wait_for_a_limit(gate):
    started, finals = threading.Event(), Finals()
    tasks = [Task(f"t{n}", lambda: started.set() or gate.wait(60), uses="api") for n in range(3)]
    handle = DAG("etl", tasks=tasks).start(limits={"api": 1}, observers=[finals])
    assert started.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=10)
    assert [run.state for run in caught.value.result.tasks.values()] == ["cancelled"] * 3
    assert caught.value.result.abandoned_threads == 1
    finals.check(caught.value.result)


def test_a_task_that_listens_is_not_abandoned(executor):
    started = threading.Event()

    def polite(context):
        started.set()
        while not context.is_cancelled():
            time.sleep(0.001)
        context.check_cancelled()

    handle = DAG("etl", tasks=[Task("t", polite)]).start(executor=executor)
    assert started.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=10)
    assert caught.value.result.tasks["t"].state == "cancelled"
    assert caught.value.result.abandoned_threads == 0


def test_a_task_that_ends_within_the_grace_keeps_its_result():
    started = threading.Event()

    def nearly_done(context):
        started.set()
        while not context.is_cancelled():
            time.sleep(0.001)
        return "done after all"

    handle = DAG("etl", tasks=[Task("t", nearly_done)]).start()
    assert started.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=10)
    assert caught.value.result == {"t": "done after all"}


def test_a_task_that_swallows_everything_is_abandoned_and_counted(gate):
    """It is told, over and over, and does not listen."""
    started = threading.Event()

    def deaf(context):
        started.set()
        while not gate.is_set():
            try:
                context.check_cancelled()
                time.sleep(0.001)
            except BaseException:
                continue

    handle = DAG("etl", tasks=[Task(f"deaf_{n}", deaf) for n in range(3)]).start()
    assert started.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=10)
    result = caught.value.result
    abandoned = sum(run.attempts for run in result.tasks.values())
    assert abandoned >= 1
    assert result.abandoned_threads == abandoned
    assert f"{abandoned} thread{'s' * (abandoned > 1)} abandoned" in result.summary()


def test_what_an_abandoned_thread_says_later_is_ignored(gate):
    """Its late result, its late error and its late context change nothing."""
    started, threads = threading.Barrier(3), []

    def slow(context):
        threads.append(threading.current_thread())
        started.wait(10)
        gate.wait(60)
        if context.task_name == "fails":
            raise ValueError("late")
        return "late"

    finals = Finals()
    handle = DAG("etl", tasks=[Task("succeeds", slow), Task("fails", slow)]).start(observers=[finals])
    started.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=10)
    before = caught.value.result.to_dict()
    gate.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert caught.value.result.to_dict() == before
    finals.check(caught.value.result)


@pytest.mark.parametrize("rounds", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_cancel_against_the_end_of_a_run_gives_one_answer(rounds, executor):
    """Whoever is first: either everything succeeded, or the run was cancelled, and never both."""
    a, b = Task("a", lambda: 1), Task("b", lambda x: x)
    a >> b
    dag = DAG("etl", tasks=[b])
    for n in range(rounds):
        finals = Finals()
        handle = dag.start(executor=executor, observers=[finals])
        time.sleep(0.0002 * (n % 10))
        handle.cancel("race")
        try:
            result = handle.result(timeout=10)
        except RunCancelledError as error:
            result = error.result
            assert result.state == "cancelled"
            assert "cancelled" in {run.state for run in result.tasks.values()}
        else:
            assert result == {"a": 1, "b": 1}
        finals.check(result)


# ---------------------------------------------------------------- cleanup handlers


def test_cleanup_handlers_run_last_added_first_sync_and_async(executor):
    done = []

    async def release():
        await asyncio.sleep(0)
        done.append("async")

    def work(context):
        context.add_cleanup_handler(lambda: done.append("first"))
        context.add_cleanup_handler(release)
        context.add_cleanup_handler(lambda: done.append("last"))
        raise ValueError("no")

    with pytest.raises(TaskExecutionError):
        DAG("etl", tasks=[Task("t", work)]).run(executor=executor)
    assert done == ["last", "async", "first"]


def test_cleanup_handlers_of_all_tasks_run_once(executor):
    """a ─► b ─► fails: what a and b added counts too, although they succeeded."""
    done = []

    def adding(name):
        def work(*_):
            current_context().add_cleanup_handler(lambda: done.append(name))

        return Task(name, work)

    a, b, bad = adding("a"), adding("b"), Task("bad", lambda x: fails())
    a >> b >> bad
    DAG("etl", tasks=[bad]).run(executor=executor, raise_on_failure=False)
    assert done == ["b", "a"]


def test_cleanup_handlers_do_not_run_after_a_success(executor):
    done = []
    dag = DAG("etl", tasks=[Task("t", lambda context: context.add_cleanup_handler(lambda: done.append(1)))])
    dag.run(executor=executor)
    assert done == []


def test_cleanup_handlers_run_when_the_run_is_cancelled(gate):
    started, done = threading.Event(), []

    def work(context):
        context.add_cleanup_handler(lambda: done.append(1))
        started.set()
        gate.wait(60)

    handle = DAG("etl", tasks=[Task("t", work)]).start()
    assert started.wait(10)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError):
        handle.result(timeout=10)
    assert done == [1]


def test_cleanup_handlers_run_before_the_run_is_over():
    """An async one too, inside of a running event loop."""
    done = []

    async def release():
        await asyncio.sleep(0.01)
        done.append("released")

    def work(context):
        context.add_cleanup_handler(release)
        raise ValueError("no")

    async def notebook():
        with pytest.raises(TaskExecutionError):
            DAG("etl", tasks=[Task("t", work)]).run()
        return list(done)

    assert asyncio.run(notebook()) == ["released"]


# ---------------------------------------------------------------- the run's timeout


def test_a_run_that_takes_too_long_is_cancelled():
    """quick ─► slow, which sleeps for 100 s of a 10 s run"""
    clock, finals = VirtualClock(), Finals()
    quick, slow = Task("quick", lambda: 1), Task("slow", lambda x: clock.sleep(100))
    quick >> slow
    with pytest.raises(RunTimeoutError, match="took longer than its timeout of 10 s") as caught:
        DAG("etl", tasks=[slow]).run(timeout=10, _clock=clock, observers=[finals])
    result = caught.value.result
    assert {name: run.state for name, run in result.tasks.items()} == {"quick": "succeeded", "slow": "cancelled"}
    assert result.abandoned_threads == 1
    assert 10 <= result.duration < 11
    finals.check(result)


def test_the_timeout_of_a_run_is_kept_in_real_time(gate):
    started = time.monotonic()
    with pytest.raises(RunTimeoutError):
        DAG("etl", tasks=[Task("t", lambda: gate.wait(60))]).run(timeout=0.05)
    assert time.monotonic() - started < SOON


def test_the_timeout_of_a_run_counts_waits_for_retries(executor):
    clock = VirtualClock()
    flaky = Task("t", fails, retries=1000, delay=60)
    with pytest.raises(RunTimeoutError):
        DAG("etl", tasks=[flaky]).run(executor=executor, timeout=3600, _clock=clock)
    assert 3600 <= clock.now() < 3700


def test_a_sequential_run_is_timed_out_when_the_task_returns():
    clock = VirtualClock()
    slow, after = Task("slow", lambda: clock.sleep(100)), Task("after", lambda x: x)
    slow >> after
    with pytest.raises(RunTimeoutError) as caught:
        DAG("etl", tasks=[after]).run(executor="sequential", timeout=10, _clock=clock)
    assert caught.value.result.tasks["after"].state == "cancelled"


def test_a_run_within_its_timeout_is_not_touched(executor):
    assert DAG("etl", tasks=[Task("t", lambda: 1)]).run(executor=executor, timeout=60) == {"t": 1}


# ---------------------------------------------------------------- a task's timeout


def test_an_attempt_that_takes_too_long_is_abandoned():
    clock, finals = VirtualClock(), Finals()
    slow, below = Task("slow", lambda: clock.sleep(100), timeout=10), Task("below", lambda x: x)
    slow >> below
    words = "attempt 1 of task 'slow' took longer than its timeout of 10 s"
    with pytest.raises(TaskExecutionError, match=words) as caught:
        DAG("etl", tasks=[below]).run(_clock=clock, observers=[finals])
    assert type(caught.value.__cause__) is TaskTimeoutError
    assert isinstance(caught.value.__cause__, TimeoutError)
    result = caught.value.result
    assert {name: run.state for name, run in result.tasks.items()} == {"slow": "failed", "below": "upstream_failed"}
    assert (result.abandoned_threads, result.tasks["slow"].duration) == (1, 10)
    finals.check(result)


def test_every_attempt_has_the_whole_timeout():
    """It sleeps for 100, 100, 1 s: the third attempt is in time."""
    clock, finals = VirtualClock(), Finals()
    naps = iter([100, 100, 1])
    slow = Task("slow", lambda: clock.sleep(next(naps)) or "done", timeout=10, retries=5, delay=0)
    result = DAG("etl", tasks=[slow]).run(_clock=clock, observers=[finals])
    assert result == {"slow": "done"}
    assert (result.tasks["slow"].attempts, result.abandoned_threads) == (3, 2)
    finals.check(result)


def test_an_abandoned_worker_is_replaced():
    """One worker: slow is abandoned, and beside, which waits for that worker, runs all the same."""
    clock = VirtualClock()
    slow, beside = Task("slow", lambda: clock.sleep(100), timeout=10), Task("beside", lambda: "ran")
    result = DAG("etl", tasks=[slow, beside]).run(_clock=clock, max_workers=1, fail_fast=False, raise_on_failure=False)
    assert result == {"beside": "ran"}


def test_an_abandoned_attempt_gives_its_limit_back():
    clock = VirtualClock()
    slow = Task("slow", lambda: clock.sleep(100), timeout=10, uses="api")
    beside = Task("beside", lambda: "ran", uses="api")
    result = DAG("etl", tasks=[slow, beside]).run(
        _clock=clock, limits={"api": 1}, fail_fast=False, raise_on_failure=False
    )
    assert result == {"beside": "ran"}


def test_the_late_result_of_an_attempt_is_discarded(gate):
    """The first attempt returns while the second one goes on."""
    first_returned, attempts = threading.Event(), []

    def work(context):
        attempts.append(context.attempt)
        if context.attempt == 1:
            gate.wait(60)
            first_returned.set()
            return "late"
        gate.set()
        assert first_returned.wait(10)
        time.sleep(0.02)
        return "second"

    finals = Finals()
    slow = Task("t", work, timeout=0.05, retries=1, delay=0, jitter=0)
    result = DAG("etl", tasks=[slow]).run(observers=[finals], raise_on_failure=False)
    assert attempts == [1, 2]
    assert result.get("t") != "late"
    finals.check(result)


def test_the_context_of_an_abandoned_attempt_is_cancelled(gate):
    """That is how it can know that it should stop."""
    heard = threading.Event()

    def work(context):
        while not context.is_cancelled():
            time.sleep(0.001)
        heard.set()

    with pytest.raises(TaskExecutionError):
        DAG("etl", tasks=[Task("t", work, timeout=0.02)]).run()
    assert heard.wait(10)


def test_a_task_is_timed_out_soon_after_its_deadline(gate):
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("t", lambda: gate.wait(60), timeout=0.05)]).run()
    duration = caught.value.result.tasks["t"].duration
    print(f"timed out {duration - 0.05:.4f} s after the deadline")
    assert 0.05 <= duration < 1


def test_a_run_with_eight_abandoned_threads_fails_rather_than_pile_up_more():
    clock, finals = VirtualClock(), Finals()
    slow = Task("slow", lambda: clock.sleep(100), timeout=10, retries=100, delay=0)
    result = DAG("etl", tasks=[slow]).run(_clock=clock, observers=[finals], raise_on_failure=False)
    assert (result.state, result.tasks["slow"].state) == ("failed", "failed")
    assert (result.abandoned_threads, result.tasks["slow"].attempts) == (8, 8)
    finals.check(result)


def test_eight_abandoned_threads_stop_the_other_tasks_too():
    """20 slow tasks, 4 at a time: the ones that wait never start."""
    clock, finals = VirtualClock(), Finals()
    tasks = [Task(f"slow_{n}", lambda: clock.sleep(100), timeout=10) for n in range(20)]
    result = DAG("etl", tasks=tasks).run(
        _clock=clock, max_workers=4, fail_fast=False, raise_on_failure=False, observers=[finals]
    )
    assert result.state == "failed"
    states = Counter(run.state for run in result.tasks.values())
    assert states["failed"] >= 8
    assert states["failed"] + states["cancelled"] == 20
    assert 8 <= result.abandoned_threads <= 11
    assert sum(run.attempts for run in result.tasks.values()) <= 12
    finals.check(result)


def test_a_sequential_attempt_is_judged_when_it_returns():
    clock, finals = VirtualClock(), Finals()
    naps = iter([100, 1])
    slow = Task("slow", lambda: clock.sleep(next(naps)) or "done", timeout=10, retries=1, delay=0)
    result = DAG("etl", tasks=[slow]).run(executor="sequential", _clock=clock, observers=[finals])
    assert (result["slow"], result.tasks["slow"].attempts, result.abandoned_threads) == ("done", 2, 0)
    finals.check(result)


def test_a_timeout_is_not_retried_if_the_policy_does_not_name_it():
    clock = VirtualClock()
    slow = Task("slow", lambda: clock.sleep(100), timeout=10, retries=5, retry_on=ConnectionError)
    result = DAG("etl", tasks=[slow]).run(_clock=clock, raise_on_failure=False)
    assert result.tasks["slow"].attempts == 1


@pytest.mark.parametrize("races", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(200)])])
def test_timeout_against_finish_gives_one_outcome(races):
    """Attempts end 5 ms before to 5 ms after their deadline, five at a time; half of them with an error."""
    rng = random.Random(races)
    timed_out = 0
    for _ in range(races // 5):
        ends = [0.02 + rng.uniform(-0.005, 0.005) for _ in range(5)]
        tasks = [Task(f"t{n}", lambda end=end, n=n: sleep_and_end(end, n), timeout=0.02) for n, end in enumerate(ends)]
        finals = Finals()
        dag = DAG("race", tasks=tasks)
        result = dag.run(max_workers=5, fail_fast=False, raise_on_failure=False, observers=[finals])
        finals.check(result)
        for n, run in enumerate(result.tasks.values()):
            if run.state == "succeeded":
                assert (run.value, run.error) == (n, None)
            else:
                assert run.name not in result
                assert type(run.error) in (TaskTimeoutError, ConnectionError)
                timed_out += type(run.error) is TaskTimeoutError
        assert result.abandoned_threads == sum(type(run.error) is TaskTimeoutError for run in result.tasks.values())
    print(f"{timed_out} of {races} timed out")


def sleep_and_end(seconds, n):
    time.sleep(seconds)
    if n % 2:
        raise ConnectionError("refused")
    return n
