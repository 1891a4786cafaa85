"""Runs on executors of others: pools in this process, pools of processes, and pools that misbehave.

The functions are in ``foreign_tasks.py``, where workers find them.
"""

import concurrent.futures
import contextvars
import functools
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import forkserver, resource_tracker

import foreign_tasks as tasks
import pytest
from hypothesis import given, settings
from model import predict
from strategies import MOST_TIMEOUTS, build, graphs, most_at_once

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    ConditionError,
    DAGExecutionError,
    FlowkitError,
    GiveUp,
    NotPicklableError,
    OptionError,
    RemoteError,
    RunCancelledError,
    RunFinished,
    RunStarted,
    RunTimeoutError,
    Task,
    TaskExecutionError,
    TaskResultError,
    TaskTimeoutError,
    current_context,
)
from flowkit.events import TaskEvent
from flowkit.testing import VirtualClock

SOON = 5.0
"""Seconds within which whatever is stopped must be over; on an idle machine it takes a few hundredths."""
PATIENCE = 20.0
"""Seconds after which a wait inside of a test gives up."""
request_id = contextvars.ContextVar("request_id", default="none")


# ---------------------------------------------------------------- executors


class Borrowed(Executor):
    """An executor that must not be shut down."""

    def shutdown(self, wait=True, *, cancel_futures=False):
        raise AssertionError("shut down by somebody to whom it does not belong")


class Inline(Borrowed):
    """Makes each call inside of submit()."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Shuffled(Borrowed):
    """Takes what waits in random order, and answers from *count* threads."""

    def __init__(self, count, seed=0):
        self._random = random.Random(seed)
        self._waiting = []
        self._changed = threading.Condition()
        self._is_over = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        with self._changed:
            self._waiting.append((future, functools.partial(fn, *args, **kwargs)))
            self._changed.notify()
        return future

    def _work(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_over)
                if not self._waiting:
                    return
                future, call = self._waiting.pop(self._random.randrange(len(self._waiting)))
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

    def end(self):
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(PATIENCE)


class Away(Borrowed):
    """Pickles calls and answers, as workers elsewhere make it necessary."""

    def __init__(self, pool):
        self._pool = pool
        self._max_workers = 2

    def submit(self, fn, /, *args, **kwargs):
        return self._pool.submit(_call_pickled, pickle.dumps((fn, args, kwargs)))


def _call_pickled(call):
    fn, args, kwargs = pickle.loads(call)
    return pickle.loads(pickle.dumps(fn(*args, **kwargs)))


class Counting(Borrowed):
    """Counts the calls that *pool* has been given and has not answered.

    Attributes:
        now: How many these are.
        most: The most that there have been.
        is_reached: Set when there are *wanted*.
    """

    def __init__(self, pool, wanted, workers=None):
        self._pool = pool
        self._wanted = wanted
        self._lock = threading.Lock()
        self.now = self.most = 0
        self.is_reached = threading.Event()
        if workers is not None:
            self._max_workers = workers

    def submit(self, fn, /, *args, **kwargs):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self._wanted:
                self.is_reached.set()
        future = self._pool.submit(fn, *args, **kwargs)
        future.add_done_callback(self._note_end)
        return future

    def _note_end(self, _):
        with self._lock:
            self.now -= 1


class Idle(Borrowed):
    """Never makes a call after the first *answered*, until it is told to.

    Attributes:
        has_got: Set when it has got one that it does not make.
    """

    def __init__(self, answered):
        self._answered = answered
        self._kept = []
        self.has_got = threading.Event()

    def submit(self, fn, /, *args, **kwargs):
        if self._answered:
            self._answered -= 1
            return Inline().submit(fn, *args, **kwargs)
        future = Future()
        self._kept.append((future, functools.partial(fn, *args, **kwargs)))
        self.has_got.set()
        return future

    def wake_up(self):
        """Make all calls that nobody has cancelled."""
        for future, call in self._kept:
            if not future.cancelled() and future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)


@pytest.fixture
def make_idle():
    """Return a function that makes an :class:`Idle`; none keeps a run waiting after the test."""
    made = []

    def make(answered):
        made.append(Idle(answered))
        return made[-1]

    yield make
    for idle in made:
        idle.wake_up()


# ---------------------------------------------------------------- places


class Place:
    """Where the tasks of a test run.

    Attributes:
        executor: What ``run()`` gets.
        is_away: Whether everything travels to the workers.
        is_process: Whether the workers are other processes.
        is_inline: Whether tasks run one at a time.
    """

    def __init__(self, name, executor):
        self.name = name
        self.executor = executor
        self.is_process = name in ("forkserver", "spawn", "loky")
        self.is_away = self.is_process or name == "away"
        self.is_inline = name == "inline"

    def run(self, *wanted, inputs=None, **options):
        """Run *wanted*, and all they depend on, and return the result whatever came of it."""
        options = {"fail_fast": False, "raise_on_failure": False} | options
        return DAG("etl", tasks=wanted).run(inputs, executor=self.executor, **options)

    def start(self, *wanted, **options):
        return DAG("etl", tasks=wanted).start(executor=self.executor, **options)


@pytest.fixture(scope="module", params=["threads", "inline", "shuffled", "away", "forkserver", "spawn", "loky"])
def borrowed(request):
    """Someone's executor, with all its workers and files there before any test."""
    name = request.param
    if name == "threads":
        executor, end = (pool := ThreadPoolExecutor(3)), pool.shutdown
    elif name == "inline":
        executor, end = Inline(), int
    elif name == "shuffled":
        executor, end = (pool := Shuffled(3)), pool.end
    elif name == "away":
        pool = ThreadPoolExecutor(3)
        executor, end = Away(pool), pool.shutdown
    elif name == "loky":
        loky = pytest.importorskip("loky")
        executor = loky.get_reusable_executor(max_workers=2, timeout=600)
        end = functools.partial(executor.shutdown, kill_workers=True)
    else:
        forkserver.ensure_running()
        resource_tracker.ensure_running()
        executor, end = (pool := ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(name))), pool.shutdown
    for future in [executor.submit(tasks.double, number) for number in range(8)]:
        future.result(PATIENCE)
    with pytest.MonkeyPatch.context() as patch:
        # Each test is asked whether it left children behind; starting these anew for every test would take minutes.
        children, lent = multiprocessing.active_children, getattr(executor, "_processes", {})
        patch.setattr(
            multiprocessing, "active_children", lambda: [one for one in children() if one not in lent.values()]
        )
        yield Place(name, executor)
    end()


@pytest.fixture
def place(borrowed):
    """Where the tasks run; it can still be used after the test."""
    yield borrowed
    assert borrowed.executor.submit(tasks.double, 21).result(PATIENCE) == 42


@pytest.fixture
def release(tmp_path):
    """The path of a file that lets tasks end which nobody can tell to stop; it is made with the test's end at last."""
    path = tmp_path / "release"
    yield path
    path.touch()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def processes():
    """A pool of processes that a test may break."""
    forkserver.ensure_running()
    resource_tracker.ensure_running()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        yield pool


def run_on(executor, *wanted, **options):
    options = {"fail_fast": False, "raise_on_failure": False} | options
    return DAG("etl", tasks=wanted).run(executor=executor, **options)


def over(handle):
    """Return the result of a run that must be over soon; one that is not is cancelled."""
    try:
        return handle.result(SOON)
    except TimeoutError as late:
        if type(late) is TimeoutError:
            handle.cancel("the test is over")
        raise


def states(result):
    return {name: run.state for name, run in result.tasks.items()}


def started(*names):
    """Return an event that is set when the attempts of *names* have started, and the observer that sets it."""
    waiting, event = set(names), threading.Event()

    def observe(fact):
        if isinstance(fact, AttemptStarted):
            waiting.discard(fact.task_name)
            if not waiting:
                event.set()

    return event, observe


# ---------------------------------------------------------------- results


def test_results_reach_the_parameters_they_belong_to(place):
    """one ─► double ─► add ◄─ two"""
    double = Task("one", tasks.one) >> Task("double", tasks.double)
    added = Task("add", tasks.add)
    [double, Task("two", tasks.two)] >> added
    result = place.run(added)
    assert result == {"one": 1, "two": 2, "double": 2, "add": 4}
    assert result.ok
    assert {run.attempts for run in result.tasks.values()} == {1}
    assert {run.worker for run in result.tasks.values()} == {type(place.executor).__name__}


def test_tasks_run_where_the_executor_has_its_workers(place):
    found = place.run(*(Task(f"t{n}", tasks.pid) for n in range(4)))
    assert (os.getpid() in found.values()) is not place.is_process


VALUES = [
    None, 0, -(2**70), 1.5, "text", "\ud800", b"bytes", bytearray(b"b"), (1, (2,)), [1, [2]], {1: {"a": 2}}, {1, 2},
    frozenset({3}), range(3), 1j, int, len, ..., NotImplemented, (sum, [1, 2]), ("value", 1.0), ["raised", 1],
    (tasks.one,), {"value": "holds"},
]  # fmt: skip


def test_values_arrive_with_the_types_they_had(place):
    """make ─► echo"""
    make = Task("make", functools.partial(tasks.echo, VALUES))
    arrived = place.run(make >> Task("echo", tasks.echo))["echo"]
    assert arrived == VALUES
    assert [type(value) for value in arrived] == [type(value) for value in VALUES]


@pytest.mark.parametrize("value", [None, (), [], "holds", ("holds", ()), ("kept", 1), ("raised", ValueError("no"))])
def test_no_value_is_taken_for_an_answer(place, value):
    """make ─► echo"""
    result = place.run(Task("make", functools.partial(tasks.echo, value)) >> Task("echo", tasks.echo))
    assert result.ok
    assert repr(result["echo"]) == repr(value)


def test_many_results_are_collected_in_wiring_order(place):
    """t0 ... t59 ─► collect"""
    many = [Task(f"t{i}", functools.partial(tasks.echo, i)) for i in range(60)]
    collected = Task("collect", tasks.collect)
    many >> collected
    assert place.run(collected)["collect"] == list(range(60))


def test_a_long_chain_runs(place):
    """t0 ─► t1 ─► ... ─► t99"""
    last = Task("t0", tasks.one)
    for n in range(1, 100):
        last = last >> Task(f"t{n}", functools.partial(tasks.add, 1))
    assert place.run(last)["t99"] == 100


def test_an_input_reaches_the_parameter_of_its_name(place):
    assert place.run(Task("double", tasks.double), inputs={"value": 21})["double"] == 42


def test_a_function_in_a_function_runs_everywhere_if_cloudpickle_is_there(place):
    pytest.importorskip("cloudpickle")
    added = 40

    def local():
        return added + 2

    assert place.run(Task("local", local), Task("lambda", lambda: added + 1)) == {"local": 42, "lambda": 41}


def test_a_mapped_task_has_an_attempt_for_each_item(place):
    """numbers ─► double (mapped) ─► collect"""
    mapped = Task("double", tasks.double).map()
    result = place.run(Task("numbers", tasks.numbers) >> mapped >> Task("echo", tasks.echo))
    assert result["echo"] == [0, 2, 4, 6, 8, 10]
    assert {run.worker for run in result.tasks["double"].items} == {type(place.executor).__name__}


def test_items_that_are_skipped_or_fail_are_told_by_their_names(place):
    """numbers ─► [skip_odd (mapped), refuse_odd (mapped)]; nothing ─► double (mapped)"""
    source = Task("numbers", tasks.numbers)
    skips, fails = Task("skips", tasks.skip_odd).map(), Task("fails", tasks.refuse_odd, retries=1, delay=0).map()
    source >> [skips, fails]
    result = place.run(skips, fails, Task("nothing", tasks.nothing) >> Task("double", tasks.double).map())
    assert result["skips"] == [0, None, 2, None, 4, None]
    assert result["double"] == []
    assert [str(error.__cause__) for error in result.errors["fails"].exceptions] == [
        "1 is odd", "3 is odd", "5 is odd"
    ]  # fmt: skip
    assert [run.attempts for run in result.tasks["fails"].items] == [1, 2, 1, 2, 1, 2]


def test_coroutines_and_a_task_with_an_executor_of_its_own_run_beside(place):
    """pid ─► thread; one ─► double_soon ─► add ◄─ two"""
    own = Task("own", lambda: threading.current_thread().name, executor="thread")
    soon = Task("one", tasks.one) >> Task("soon", tasks.double_soon)
    added = Task("add", tasks.add)
    [soon, Task("two", tasks.two)] >> added
    result = place.run(own, added)
    assert result["own"].startswith("flowkit-thread")
    assert result["add"] == 4
    assert result.tasks["add"].worker == type(place.executor).__name__
    assert result.tasks["soon"].worker != type(place.executor).__name__


def test_a_task_may_ask_for_a_process_of_ours_beside_a_foreign_executor(threads):
    """one ─► pid (process) ─► echo"""
    result = run_on(
        threads, Task("one", tasks.one) >> Task("pid", tasks.pid, executor="process") >> Task("echo", tasks.echo)
    )
    assert result["echo"] == result["pid"] != os.getpid()
    assert result.tasks["echo"].worker == "ThreadPoolExecutor"


def test_a_run_in_a_task_of_another_has_workers_of_its_own(place):
    """two ─► run_inside"""
    assert place.run(Task("two", tasks.two) >> Task("inside", tasks.run_inside))["inside"] == 4


def test_a_run_in_a_task_may_use_the_same_executor(threads):
    def inside(value):
        return run_on(threads, Task("inner", functools.partial(tasks.double, value)))["inner"]

    assert run_on(threads, Task("two", tasks.two) >> Task("outer", inside))["outer"] == 4


# ---------------------------------------------------------------- errors


def test_an_error_arrives_with_its_type_arguments_and_cause(place):
    error = place.run(Task("refuse", tasks.refuse_with_cause)).errors["refuse"]
    assert type(error) is tasks.Refused
    assert (error.args, error.code) == ((402, "card declined"), 402)
    assert repr(error.__cause__) == "KeyError('missing')"


def test_a_failure_is_raised_with_the_original_as_its_cause(place):
    with pytest.raises(TaskExecutionError, match="task 'refuse' failed after 1 attempt") as caught:
        place.run(Task("refuse", tasks.refuse), fail_fast=True, raise_on_failure=True)
    assert repr(caught.value.__cause__) == "ValueError('no')"


def test_without_fail_fast_all_failures_are_raised_together(place):
    """refuse; pay; one"""
    wanted = Task("refuse", tasks.refuse), Task("pay", tasks.give_up), Task("one", tasks.one)
    with pytest.raises(DAGExecutionError) as caught:
        place.run(*wanted, raise_on_failure=True)
    assert {error.task_name for error in caught.value.exceptions} == {"refuse", "pay"}
    assert caught.value.result["one"] == 1


@pytest.mark.parametrize(("kind", "args"), tasks.HOSTILE, ids=lambda value: getattr(value, "__name__", ""))
def test_no_exception_of_a_task_breaks_the_executor(place, kind, args):
    """raises; one ◄─ raises"""
    raises = Task("raises", functools.partial(tasks.raise_error, kind, *args))
    after = Task("one", tasks.one, trigger="all_done").after(raises)
    result = place.run(after)
    assert states(result) == {"raises": "failed", "one": "succeeded"}
    error = result.errors["raises"]
    assert type(error) is kind or (type(error) is RemoteError and error.type_name == kind.__name__)
    assert kind.__name__ in result.summary()


def test_a_generator_is_refused(place):
    error = place.run(Task("fetch", tasks.generate, retries=3, delay=0)).errors["fetch"]
    assert type(error) is TaskResultError
    assert "task 'fetch' returned a generator" in str(error)


def test_a_lock_passes_in_this_process_and_is_refused_elsewhere(place):
    """make ─► use"""
    result = place.run(Task("make", tasks.make_lock) >> Task("use", tasks.use_lock))
    if place.is_away:
        assert type(result.errors["make"]) is TaskResultError
        assert "of type lock" in str(result.errors["make"])
        assert result.tasks["use"].state == "upstream_failed"
    else:
        assert result["use"] == "locked"


def test_a_function_that_cannot_travel_is_named(place):
    result = place.run(Task("work", tasks.LockHolder().work, retries=3, delay=0), Task("one", tasks.one))
    assert result["one"] == 1
    if place.is_away:
        assert type(result.errors["work"]) is NotPicklableError
        assert "task 'work': its function" in str(result.errors["work"])
        assert result.tasks["work"].attempts <= 1
    else:
        assert result["work"] == "worked"


def test_an_argument_that_cannot_travel_is_named(place):
    """make (thread) ─► use"""
    use = Task("use", tasks.use_lock, retries=3, delay=0)
    result = place.run(Task("make", tasks.make_lock, executor="thread") >> use)
    if place.is_away:
        assert type(result.errors["use"]) is NotPicklableError
        assert "task 'use': its argument" in str(result.errors["use"])
        assert result.tasks["use"].attempts <= 1
    else:
        assert result["use"] == "locked"


@pytest.mark.parametrize("kind", [tasks.RefusesToLeave, tasks.RefusesToArrive])
def test_a_result_that_breaks_on_its_way_fails_its_task_only(place, kind):
    """make; one"""
    result = place.run(Task("make", functools.partial(tasks.make, kind)), Task("one", tasks.one))
    assert result["one"] == 1
    if place.is_away:
        assert type(result.errors["make"]) is TaskResultError
        assert "task 'make' returned" in str(result.errors["make"])
    else:
        assert type(result["make"]) is kind


# ---------------------------------------------------------------- skips, conditions, trigger rules


def test_skip_ends_the_task_and_what_hangs_under_it_alone(place):
    """skip ─► below; skip, one ─► join"""
    skipped, join = Task("skip", tasks.skip, retries=3), Task("join", tasks.collect)
    below = skipped >> Task("below", tasks.echo)
    [skipped, Task("one", tasks.one)] >> join
    result = place.run(below, join)
    assert states(result) == {"skip": "skipped", "one": "succeeded", "below": "skipped", "join": "succeeded"}
    assert result.tasks["skip"].reason == "no rows"
    assert result["join"] == [None, 1]


def test_a_condition_is_asked_with_the_arguments_of_the_task(place):
    """[one, two] ─► [odd, even], each when its argument is even"""
    odd = Task("one", tasks.one) >> Task("odd", tasks.double, when=tasks.is_even)
    even = Task("two", tasks.two) >> Task("even", tasks.double, when=tasks.is_even)
    result = place.run(odd, even)
    assert result["even"] == 4
    assert (result.tasks["odd"].state, result.tasks["odd"].attempts) == ("skipped", 0)
    assert result.tasks["odd"].reason == "when() was false"


def test_a_condition_is_asked_once_however_often_the_task_is_tried(place, tmp_path):
    log = tmp_path / "log"
    task = Task("third", tasks.succeed_at_third, when=functools.partial(tasks.note_and_agree, log), retries=2, delay=0)
    assert place.run(task)["third"] == 3
    assert log.read_text() == "asked\n"


def test_a_condition_that_raises_fails_the_task_with_the_cause(place):
    result = place.run(Task("broken", tasks.one, when=tasks.broken_condition, retries=3))
    assert type(result.errors["broken"]) is ConditionError
    assert type(result.errors["broken"].__cause__) is LookupError
    assert result.tasks["broken"].attempts == 0


def test_a_condition_may_ask_for_the_context(place):
    assert place.run(Task("named", tasks.attempt, when=tasks.is_named_named))["named"] == 1


RULES = {
    "none_failed": ["succeeded", "upstream_failed", "upstream_failed"],
    "all_success": ["skipped", "upstream_failed", "upstream_failed"],
    "one_success": ["succeeded", "succeeded", "upstream_failed"],
    "all_done": ["succeeded", "succeeded", "succeeded"],
    "one_failed": ["skipped", "succeeded", "succeeded"],
    "all_failed": ["skipped", "upstream_failed", "succeeded"],
}


@pytest.mark.parametrize("rule", RULES)
def test_trigger_rules_count_what_happened_elsewhere(place, rule):
    """skip, good ─► first; bad, good ─► second; bad ─► third"""
    skipped, good, bad = Task("skip", tasks.skip), Task("good", tasks.one), Task("bad", tasks.refuse)
    joins = [Task(name, tasks.collect, trigger=rule) for name in ("first", "second", "third")]
    [skipped, good] >> joins[0]
    [bad, good] >> joins[1]
    bad >> joins[2]
    result = place.run(*joins)
    assert [result.tasks[join.name].state for join in joins] == RULES[rule]


# ---------------------------------------------------------------- retries


def test_a_retry_makes_up_for_a_failure_and_is_told(place):
    events = []
    result = place.run(Task("third", tasks.succeed_at_third, retries=2, delay=0), observers=[events.append])
    assert (result["third"], result.tasks["third"].attempts) == (3, 3)
    failed = [(event.attempt, str(event.error)) for event in events if isinstance(event, AttemptFailed)]
    assert failed == [(1, "refused 1"), (2, "refused 2")]
    assert [event.attempt for event in events if isinstance(event, AttemptStarted)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("retry_on", "attempts"), [(OSError, 3), (ValueError, 1), ((), 1), (tasks.is_refusal, 3), (tasks.use_lock, 1)]
)
def test_retry_on_decides_what_is_tried_again(place, retry_on, attempts):
    result = place.run(Task("third", tasks.succeed_at_third, retries=5, delay=0, retry_on=retry_on))
    assert result.tasks["third"].attempts == attempts


def test_a_task_gives_up_or_comes_again_as_it_says(place):
    """pay; again"""
    pay, again = Task("pay", tasks.give_up, retries=5), Task("again", tasks.come_again, retries=1, delay=3600)
    result = place.run(pay, again)
    assert type(result.errors["pay"]) is GiveUp
    assert result.tasks["pay"].attempts == 1
    assert result["again"] == 2


def test_a_backoff_of_hours_passes_on_a_virtual_clock(place):
    clock = VirtualClock()
    task = Task("third", tasks.succeed_at_third, retries=2, delay=3600, max_delay=10_000, jitter=0)
    assert place.run(task, _clock=clock)["third"] == 3
    assert clock.now() > 3 * 3600


# ---------------------------------------------------------------- timeouts


def test_an_attempt_that_takes_too_long_has_timed_out(place, release):
    """slow (0.2 s allowed) ─► below; after"""
    if place.is_inline:
        pytest.skip("an executor that calls inside of submit() has no other worker")
    slow = Task("slow", tasks.wait_for, timeout=0.2)
    after = Task("after", tasks.one, trigger="all_done").after(slow)
    result = place.run(
        slow >> Task("below", tasks.echo), after, inputs={"release": release}, max_workers=1, timeout=SOON
    )
    assert type(result.errors["slow"]) is TaskTimeoutError
    assert states(result) == {"slow": "failed", "below": "upstream_failed", "after": "succeeded"}


def test_an_attempt_that_timed_out_is_tried_again_and_its_late_result_is_discarded(place, release):
    if place.is_inline:
        pytest.skip("an executor that calls inside of submit() has no other worker")
    slow = Task("slow", tasks.slow_at_first, timeout=0.3, retries=1, delay=0)
    result = place.run(slow, inputs={"release": release}, max_workers=1, timeout=SOON)
    assert (result["slow"], result.tasks["slow"].attempts) == ("attempt 2", 2)


def test_a_timeout_that_is_kept_changes_nothing(place):
    """one ─► double, each with a minute"""
    double = Task("double", tasks.double, timeout=60, when=bool)
    assert place.run(Task("one", tasks.one, timeout=60) >> double)["double"] == 2


# ---------------------------------------------------------------- how many at once


def test_a_limit_holds_across_the_workers(place, tmp_path):
    alone = [Task(f"t{n}", functools.partial(tasks.be_alone, tmp_path / "x"), uses="x") for n in range(8)]
    assert set(place.run(*alone, limits={"x": 1}).values()) == {"alone"}


@pytest.mark.parametrize("max_workers", [1, 2, {"foreign": 2}])
def test_no_more_than_max_workers_are_submitted_at_once(place, max_workers, release):
    """t0 ... t9, all of them ready"""
    count = max_workers if isinstance(max_workers, int) else max_workers["foreign"]
    counting = Counting(place.executor, count, workers=7)
    waiting = [Task(f"t{n}", functools.partial(tasks.wait_for, str(release))) for n in range(10)]
    if place.is_inline:
        release.touch()
    handle = DAG("etl", tasks=waiting).start(executor=counting, max_workers=max_workers)
    assert place.is_inline or counting.is_reached.wait(PATIENCE)
    release.touch()
    assert handle.result(PATIENCE).ok
    assert counting.most == (1 if place.is_inline else count)


def test_an_executor_that_tells_how_many_workers_it_has_gets_as_many_attempts(threads, release):
    counting = Counting(threads, 3, workers=3)
    waiting = [Task(f"t{n}", functools.partial(tasks.wait_for, str(release))) for n in range(10)]
    handle = DAG("etl", tasks=waiting).start(executor=counting)
    assert counting.is_reached.wait(PATIENCE)
    release.touch()
    assert handle.result(PATIENCE).ok
    assert counting.most == 3


@pytest.mark.parametrize("workers", [None, "many", 0, -1])
def test_an_executor_that_does_not_tell_gets_all_that_is_ready(threads, release, workers):
    counting = Counting(threads, 50, workers=workers)
    waiting = [Task(f"t{n}", functools.partial(tasks.wait_for, str(release))) for n in range(50)]
    handle = DAG("etl", tasks=waiting).start(executor=counting, timeout=SOON)
    assert counting.is_reached.wait(SOON)
    release.touch()
    assert handle.result(PATIENCE).ok
    assert counting.most == 50


def test_max_workers_of_other_kinds_do_not_count(threads, release):
    counting = Counting(threads, 4, workers=4)
    waiting = [Task(f"t{n}", functools.partial(tasks.wait_for, str(release))) for n in range(10)]
    handle = DAG("etl", tasks=waiting).start(executor=counting, max_workers={"thread": 1})
    assert counting.is_reached.wait(PATIENCE)
    release.touch()
    assert handle.result(PATIENCE).ok


# ---------------------------------------------------------------- stopping


def test_fail_fast_starts_nothing_more_but_what_accepts_a_failure(place):
    """refuse ─► below; one; alert ◄─ refuse: one at a time, so that one waits behind refuse"""
    bad = Task("refuse", tasks.refuse)
    alert = Task("alert", tasks.one, trigger="one_failed").after(bad)
    wanted = bad, bad >> Task("below", tasks.echo), Task("one", tasks.one), alert
    result = place.run(*wanted, max_workers=1, fail_fast=True)
    assert states(result) == {
        "refuse": "failed", "below": "upstream_failed", "one": "cancelled", "alert": "succeeded",
    }  # fmt: skip


def test_fail_fast_takes_back_what_the_executor_has_not_started(release):
    """t0, of a worker that is busy till the end; t1 ... t4, behind it; refuse (thread), when all are submitted"""
    is_inside, is_over = threading.Event(), threading.Event()

    def work(context):
        is_inside.set()
        return is_over.wait(PATIENCE) and context.is_cancelled()

    with ThreadPoolExecutor(1) as pool:
        counting = Counting(pool, 5, workers=100)
        refuse = Task("refuse", functools.partial(_wait_and_refuse, counting.is_reached, is_inside), executor="thread")
        busy = Task("t0", work)
        rest = [Task(f"t{n}", tasks.one) for n in range(1, 5)]
        handle = DAG("etl", tasks=[busy, *rest, refuse]).start(
            executor=counting, raise_on_failure=False, observers=[_set_at_end_of("t4", is_over)]
        )
        result = over(handle)
    assert result["t0"] is True
    assert {name: state for name, state in states(result).items() if name != "t0"} == (
        {"refuse": "failed"} | dict.fromkeys([task.name for task in rest], "cancelled")
    )


def _set_at_end_of(name, event):
    def observe(fact):
        if isinstance(fact, TaskEvent) and fact.task_name == name:
            event.set()

    return observe


def _wait_and_refuse(*events):
    assert all(event.wait(PATIENCE) for event in events)
    raise ValueError("no")


def test_cancelling_from_another_thread_ends_the_run(place, release):
    """work ─► below"""
    work = Task("work", functools.partial(tasks.until_told, release=str(release)))
    is_inside, observe = started("work")
    handle = place.start(work >> Task("below", tasks.echo), observers=[observe])
    assert is_inside.wait(PATIENCE)
    since = time.monotonic()
    handle.cancel("enough")
    with pytest.raises(RunCancelledError, match="run of 'etl' was cancelled: enough") as caught:
        handle.result(PATIENCE)
    assert time.monotonic() - since < SOON
    assert caught.value.result.tasks["below"].state == "cancelled"


def test_the_timeout_of_the_run_cancels_it(place, release):
    work = Task("work", functools.partial(tasks.until_told, release=str(release)))
    since = time.monotonic()
    with pytest.raises(RunTimeoutError):
        place.run(work, timeout=0.3)
    assert time.monotonic() - since < SOON


def test_cancelling_before_anything_has_started_starts_nothing(place, tmp_path):
    log = tmp_path / "log"

    def cancel(event):
        if isinstance(event, RunStarted):
            is_ready.wait(PATIENCE)
            handle.cancel("at once")

    is_ready = threading.Event()
    handle = place.start(Task("write", functools.partial(tasks.write_line, log, "ran")), observers=[cancel])
    is_ready.set()
    with pytest.raises(RunCancelledError):
        handle.result(PATIENCE)
    assert not log.exists()


# ---------------------------------------------------------------- events and the context


def test_each_task_has_one_final_event_and_starts_after_its_upstream(place):
    """[a, b] ─► c ─► d, which fails"""
    events = []
    first, last = Task("c", tasks.collect), Task("d", tasks.refuse)
    [Task("a", tasks.one), Task("b", tasks.one)] >> first >> last
    place.run(last, observers=[events.append])
    assert (type(events[0]), type(events[-1])) == (RunStarted, RunFinished)
    final = [event.task_name for event in events if isinstance(event, TaskEvent)]
    assert sorted(final) == ["a", "b", "c", "d"]
    begun = [event.task_name for event in events if isinstance(event, AttemptStarted)]
    assert (set(begun[:2]), begun[2:]) == ({"a", "b"}, ["c", "d"])
    assert most_at_once(events) <= 2


def test_the_context_is_the_same_by_every_way(place):
    """fetch ─► look"""
    result = place.run(Task("fetch", tasks.one) >> Task("look", tasks.look_around))
    assert result["look"] == {
        "task_name": "look", "run_id": result.run_id, "attempt": 1, "is_cancelled": False, "fetch": 1,
        "upstream": {"fetch": ("succeeded", 1)},
    }  # fmt: skip


def test_the_context_tells_how_everything_upstream_ended(place):
    """one, skip, refuse ─► look"""
    look = Task("look", tasks.look_upstream, trigger="all_done")
    look.after(Task("one", tasks.one), Task("skip", tasks.skip), Task("refuse", tasks.refuse))
    assert place.run(look)["look"] == {
        "one": ("succeeded", 1, ""), "skip": ("skipped", None, "no rows"),
        "refuse": ("failed", None, "ValueError: no"),
    }  # fmt: skip


@pytest.fixture(params=["threads", "inline", "shuffled"])
def here(request, threads):
    """An executor whose workers share this process."""
    pool = {"threads": threads, "inline": Inline()}.get(request.param) or Shuffled(3)
    yield pool
    if isinstance(pool, Shuffled):
        pool.end()


def test_in_this_process_each_task_sees_a_copy_of_the_callers_context_variables(here):
    def look():
        seen = request_id.get()
        request_id.set("changed by a task")
        return seen

    token = request_id.set("r1")
    try:
        result = run_on(here, *(Task(f"t{n}", look) for n in range(6)))
    finally:
        request_id.reset(token)
    assert set(result.values()) == {"r1"}


def test_in_this_process_current_context_finds_the_context(here):
    result = run_on(here, Task("look", lambda: current_context().task_name))
    assert result["look"] == "look"
    with pytest.raises(FlowkitError, match="no task of a run is running here"):
        here.submit(current_context).result(PATIENCE)


def test_in_this_process_a_task_is_told_to_stop(threads):
    """work, which asks; refuse"""
    is_inside = threading.Event()
    seen = []

    def work(context):
        is_inside.set()
        until = time.monotonic() + PATIENCE
        while not context.is_cancelled():
            assert time.monotonic() < until
            time.sleep(0.001)
        seen.append("told")
        context.check_cancelled()

    def refuse():
        assert is_inside.wait(PATIENCE)
        raise ValueError("no")

    result = run_on(threads, Task("work", work), Task("refuse", refuse), fail_fast=True)
    assert seen == ["told"]
    assert states(result) == {"work": "cancelled", "refuse": "failed"}


def test_in_this_process_cleanup_handlers_run_last_added_first(here):
    said = []

    def work(context):
        context.add_cleanup_handler(lambda: said.append("first added"))
        current_context().add_cleanup_handler(lambda: said.append("last added"))
        raise ValueError("no")

    run_on(here, Task("work", work))
    assert said == ["last added", "first added"]


def test_elsewhere_a_cleanup_handler_is_refused_with_the_way_out():
    with ThreadPoolExecutor(2) as pool:
        error = run_on(Away(pool), Task("work", _add_cleanup)).errors["work"]
    assert type(error) is FlowkitError
    assert "trigger='all_done'" in str(error)


def _add_cleanup(context):
    context.add_cleanup_handler(tasks.one)


def test_in_this_process_an_error_leads_back_to_the_line_that_raised_it(here):
    error = run_on(here, Task("refuse", tasks.refuse)).errors["refuse"]
    assert error.__traceback__.tb_frame.f_code.co_name == "refuse"


# ---------------------------------------------------------------- against the model


@pytest.fixture(scope="module")
def shuffled():
    pool = Shuffled(12 + MOST_TIMEOUTS)
    yield pool
    pool.end()


@given(plans=graphs())
@settings(max_examples=150, deadline=None)
def test_random_graphs_end_as_the_model_says(shuffled, plans):
    clock, events, calls = VirtualClock(), [], []
    dag = build(plans, clock, calls)
    result = over(
        dag.start(executor=shuffled, fail_fast=False, raise_on_failure=False, observers=[events.append], _clock=clock)
    )
    state, attempts, value = predict(plans)
    assert states(result) == state
    assert {name: run.attempts for name, run in result.tasks.items()} == attempts
    assert result == {name: value[name] for name in state if state[name] == "succeeded"}
    final = [event.task_name for event in events if isinstance(event, TaskEvent)]
    assert sorted(final) == sorted(plan.name for plan in plans)


def test_a_virtual_clock_moves_when_all_that_is_left_sleeps(threads):
    """sleep; end, after sleep has begun to sleep"""
    for _ in range(30):
        clock = VirtualClock()

        def end(clock=clock):
            until = time.monotonic() + PATIENCE
            while not clock._sleepers:
                assert time.monotonic() < until
                time.sleep(0.0005)

        sleep = Task("sleep", functools.partial(clock.sleep, 60))
        assert over(DAG("etl", tasks=[sleep, Task("end", end)]).start(executor=threads, _clock=clock)).ok


def test_a_virtual_clock_never_moves_while_an_attempt_is_on_its_way(shuffled):
    """t0 ─► t1 ─► ... ─► t19, within an hour of virtual time; no task takes any"""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            last = Task("t0", tasks.one)
            for n in range(1, 20):
                last = last >> Task(f"t{n}", tasks.one)
            assert run_on(shuffled, last, timeout=3600, _clock=VirtualClock()).ok
    finally:
        sys.setswitchinterval(interval)


# ---------------------------------------------------------------- many runs


def test_twenty_runs_share_one_executor_at_once(place):
    """numbers ─► double (mapped) ─► echo; retries, skips and failures beside"""
    last = Task("numbers", tasks.numbers) >> Task("double", tasks.double).map() >> Task("echo", tasks.echo)
    third = Task("third", tasks.succeed_at_third, retries=2, delay=0)
    wanted = [last, third, Task("skip", tasks.skip), Task("refuse", tasks.refuse)]
    dag = DAG("shared", tasks=wanted)
    is_open = threading.Barrier(20)
    results = []

    def run():
        is_open.wait(PATIENCE)
        results.append(dag.run(executor=place.executor, fail_fast=False, raise_on_failure=False))

    runners = [threading.Thread(target=run) for _ in range(20)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(PATIENCE)
    assert len({result.run_id for result in results}) == 20
    for result in results:
        assert result["echo"] == [0, 2, 4, 6, 8, 10]
        assert result["third"] == 3
        assert (result.skipped, result.failed) == (["skip"], ["refuse"])


def test_a_run_that_is_cancelled_does_not_disturb_another_on_the_same_executor(place, release):
    if place.is_inline:
        pytest.skip("each run calls in a thread of its own")
    is_inside, observe = started("work")
    work = Task("work", functools.partial(tasks.until_told, release=str(release)))
    handle = place.start(work, *(Task(f"t{n}", tasks.one) for n in range(20)), observers=[observe], max_workers=1)
    assert is_inside.wait(PATIENCE)
    other = place.start(Task("one", tasks.one) >> Task("double", tasks.double), max_workers=1)
    handle.cancel("enough")
    assert other.result(PATIENCE)["double"] == 2
    with pytest.raises(RunCancelledError):
        handle.result(PATIENCE)


def test_arun_runs_on_an_executor_too(place):
    import asyncio

    async def main():
        last = Task("one", tasks.one) >> Task("soon", tasks.double_soon) >> Task("double", tasks.double)
        return await DAG("etl", tasks=[last]).arun(executor=place.executor)

    assert asyncio.run(main())["double"] == 4


def test_the_executor_may_be_a_default_of_the_dag(threads):
    dag = DAG("etl", tasks=[Task("one", tasks.one)], executor=threads)
    assert dag.run().tasks["one"].worker == "ThreadPoolExecutor"
    assert dag.run(executor="sequential").tasks["one"].worker != "ThreadPoolExecutor"


# ---------------------------------------------------------------- what is no executor


def test_validate_checks_the_graph_and_submits_nothing():
    class Unused(Borrowed):
        def submit(self, fn, /, *args, **kwargs):
            raise AssertionError("validate() runs nothing")

    DAG("etl", tasks=[Task("work", tasks.LockHolder().work)], executor=Unused()).validate()


class NotCallable:
    submit = "submit"


@pytest.mark.parametrize(
    "wrong",
    [
        ThreadPoolExecutor, ProcessPoolExecutor, Executor, Shuffled, object(), None, 3, [], "foreign", "threads",
        NotCallable(), concurrent.futures, tasks.one, threading.Thread(), b"thread", lambda: ThreadPoolExecutor(1),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)  # fmt: skip
def test_what_is_no_executor_is_an_option_error(wrong):
    dag = DAG("etl", tasks=[Task("one", tasks.one)])
    with pytest.raises(OptionError, match=r"executor=.* must be one of .*concurrent\.futures\.Executor"):
        dag.run(executor=wrong)
    with pytest.raises(OptionError, match=r"executor="):
        DAG("etl", tasks=[], executor=wrong)


@pytest.mark.parametrize("most", [{"foreign": 0}, {"foreign": -1}, {"foreign": 1.5}, {"ThreadPoolExecutor": 1}, 0])
def test_a_number_of_foreign_workers_below_one_is_an_option_error(threads, most):
    with pytest.raises(OptionError, match="max_workers"):
        run_on(threads, Task("one", tasks.one), max_workers=most)


def test_an_executor_that_is_no_subclass_will_do(threads):
    class Own:
        def submit(self, fn, *args):
            return threads.submit(fn, *args)

    assert run_on(Own(), Task("one", tasks.one))["one"] == 1


# ---------------------------------------------------------------- executors that refuse


class Refusing(Borrowed):
    """Takes the first *taken* calls, and then no more."""

    def __init__(self, taken, error):
        self._taken = taken
        self._error = error
        self.refused = 0

    def submit(self, fn, /, *args, **kwargs):
        if self._taken:
            self._taken -= 1
            return Inline().submit(fn, *args, **kwargs)
        self.refused += 1
        raise self._error


class WhoseReprRaises(Refusing):
    def __repr__(self):
        raise LookupError("from __repr__")


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_refusal_fails_the_task_and_names_both(taken):
    """one ─► below; after; own (thread)"""
    pool = Refusing(taken, MemoryError("full"))
    one = Task("one", tasks.one)
    after = Task("after", tasks.one, trigger="all_done").after(one)
    result = run_on(pool, one >> Task("below", tasks.echo), after, Task("own", tasks.one, executor="thread"))
    assert result["own"] == 1
    assert not result.ok
    for name, error in result.errors.items():
        assert type(error) is FlowkitError
        assert "Refusing" in str(error)
        assert f"task {name!r}" in str(error)
        assert "MemoryError: full" in str(error)
        assert type(error.__cause__) is MemoryError


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("observers", [[], [bool]], ids=["unwatched", "watched"])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_refusal_does_not_go_on_for_ever(taken, observers, retries):
    pool = Refusing(taken, RuntimeError("cannot schedule new futures after shutdown"))
    task = Task("one", tasks.one, retries=retries, delay=0.001)
    result = run_on(pool, task, observers=observers, timeout=SOON)
    assert result.tasks["one"].state == "failed"
    assert pool.refused <= 1 + retries
    assert result.tasks["one"].attempts <= 1 + retries


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, tasks.NotAnException])
def test_a_refusal_that_would_end_a_program_fails_the_task(kind):
    result = run_on(Refusing(0, kind("no")), Task("one", tasks.one), timeout=SOON)
    assert result.tasks["one"].state == "failed"


def test_an_executor_that_cannot_be_shown_is_named_by_its_type():
    error = run_on(WhoseReprRaises(0, ValueError("no")), Task("one", tasks.one)).errors["one"]
    assert "WhoseReprRaises" in str(error)


def test_an_executor_that_was_shut_down_is_a_clear_error():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(TaskExecutionError, match=r"ThreadPoolExecutor.* did not take task 'one'.*shut down"):
        DAG("etl", tasks=[Task("one", tasks.one)]).run(executor=pool)


def test_an_executor_that_is_shut_down_in_the_middle_ends_the_run():
    """one ─► close ─► below"""
    pool = ThreadPoolExecutor(1)

    def close(value):
        pool.shutdown(wait=False)
        return value

    last = Task("one", tasks.one) >> Task("close", close) >> Task("below", tasks.echo)
    result = run_on(pool, last, timeout=SOON)
    assert states(result) == {"one": "succeeded", "close": "succeeded", "below": "failed"}
    assert "neither broken nor shut down" in str(result.errors["below"])


class Odd(Borrowed):
    """Makes the first *taken* calls, and answers what it likes then."""

    def __init__(self, taken, make_answer):
        self._taken = taken
        self._make_answer = make_answer

    def submit(self, fn, /, *args, **kwargs):
        if self._taken:
            self._taken -= 1
            return Inline().submit(fn, *args, **kwargs)
        return self._make_answer()


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("answer", [None, 3])
def test_an_executor_that_returns_no_future_is_a_clear_error(answer, taken):
    error = run_on(Odd(taken, lambda: answer), Task("one", tasks.one), timeout=SOON).errors["one"]
    assert isinstance(error, FlowkitError)
    assert "Odd" in str(error)
    assert "task 'one'" in str(error)


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("answer", [None, "ab", ("value",), ("nothing", ())], ids=repr)
def test_an_executor_whose_futures_hold_something_else_is_a_clear_error(answer, taken):
    """Such as one that makes the calls and forgets their results."""
    handle = DAG("etl", tasks=[Task("one", tasks.one)]).start(
        executor=Odd(taken, functools.partial(_answered, answer)), raise_on_failure=False
    )
    error = over(handle).errors["one"]
    assert isinstance(error, FlowkitError)
    assert "Odd" in str(error)
    assert "task 'one'" in str(error)


def _answered(answer):
    future = Future()
    future.set_result(answer)
    return future


# ---------------------------------------------------------------- executors that cancel, or never answer


class Cancelling(Borrowed):
    """Takes the first *taken* calls, and cancels what comes then."""

    def __init__(self, taken):
        self._taken = taken

    def submit(self, fn, /, *args, **kwargs):
        if self._taken:
            self._taken -= 1
            return Inline().submit(fn, *args, **kwargs)
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_call_that_the_executor_cancels_by_itself_fails_its_task(taken):
    """one ─► below; own (thread)"""
    wanted = Task("one", tasks.one) >> Task("below", tasks.echo), Task("own", tasks.one, executor="thread")
    result = run_on(Cancelling(taken), *wanted, timeout=SOON)
    assert result["own"] == 1
    (name,) = result.failed
    assert name == ("below" if taken == 2 else "one")
    assert type(result.errors[name]) is FlowkitError
    assert f"task {name!r}" in str(result.errors[name])
    assert "Cancelling" in str(result.errors[name])
    assert "cancel" in str(result.errors[name]).lower()


def test_futures_that_are_cancelled_by_a_shutdown_elsewhere_end_the_run():
    """wait; t0 ... t4, submitted to one worker"""
    pool = ThreadPoolExecutor(1)
    counting = Counting(pool, 6, workers=100)

    def close():
        assert counting.is_reached.wait(PATIENCE)
        pool.shutdown(wait=False, cancel_futures=True)

    result = run_on(counting, Task("close", close), *(Task(f"t{n}", tasks.one) for n in range(5)), timeout=SOON)
    assert states(result) == {"close": "succeeded"} | {f"t{n}": "failed" for n in range(5)}


@pytest.mark.parametrize("answered", [0, 1])
def test_cancelling_ends_a_run_whose_executor_never_answers(make_idle, answered):
    idle = make_idle(answered)
    handle = DAG("etl", tasks=[Task("one", tasks.one) >> Task("below", tasks.echo)]).start(executor=idle)
    assert idle.has_got.wait(PATIENCE)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        over(handle)
    assert set(states(caught.value.result).values()) == {"cancelled"}


@pytest.mark.parametrize("answered", [0, 1])
def test_the_timeout_of_the_run_ends_one_whose_executor_never_answers(make_idle, answered):
    handle = DAG("etl", tasks=[Task("one", tasks.one)]).start(executor=make_idle(answered), timeout=0.2)
    with pytest.raises(RunTimeoutError):
        over(handle)


@pytest.mark.parametrize("answered", [0, 1])
def test_fail_fast_ends_a_run_whose_executor_never_answers(make_idle, answered):
    """one; refuse (thread), when one has been submitted"""
    idle = make_idle(answered)
    refuse = Task("refuse", functools.partial(_wait_and_refuse, idle.has_got), executor="thread")
    handle = DAG("etl", tasks=[Task("one", tasks.one), refuse]).start(executor=idle)
    with pytest.raises(TaskExecutionError, match="task 'refuse' failed"):
        over(handle)


def test_elsewhere_an_attempt_that_is_never_answered_times_out_and_is_tried_again():
    class Lazy(Borrowed):
        """Forgets the second call, the first attempt; what it is given is pickled, so that it counts as elsewhere."""

        calls = 0

        def submit(self, fn, /, *args, **kwargs):
            self.calls += 1
            call = pickle.dumps((fn, args, kwargs))
            return Future() if self.calls == 2 else Inline().submit(_call_pickled, call)

    task = Task("one", tasks.one, timeout=0.2, retries=1, delay=0)
    result = run_on(Lazy(), task, timeout=SOON)
    assert (result["one"], result.tasks["one"].attempts) == (1, 2)


def test_an_answer_after_the_end_of_the_run_changes_nothing(make_idle):
    idle = make_idle(1)
    handle = DAG("etl", tasks=[Task("one", tasks.one)]).start(executor=idle, timeout=0.2)
    with pytest.raises(RunTimeoutError):
        over(handle)
    before = handle.snapshot().to_dict()
    idle.wake_up()
    assert handle.snapshot().to_dict() == before


def test_a_submit_that_blocks_does_not_keep_a_cancelled_run(may_abandon):
    """Such as that of an executor with a bounded queue."""
    is_blocked, is_open = threading.Event(), threading.Event()

    class Full(Borrowed):
        left = 1

        def submit(self, fn, /, *args, **kwargs):
            if self.left:
                self.left -= 1
            else:
                is_blocked.set()
                is_open.wait(PATIENCE)
            return Inline().submit(fn, *args, **kwargs)

    handle = DAG("etl", tasks=[Task("one", tasks.one)]).start(executor=Full())
    try:
        assert is_blocked.wait(PATIENCE)
        handle.cancel("enough")
        with pytest.raises(RunCancelledError):
            over(handle)
    finally:
        is_open.set()


def test_futures_whose_cancel_raises_do_not_keep_a_cancelled_run():
    class Stubborn(Future):
        def cancel(self):
            raise NotImplementedError("this executor cannot cancel")

    def answer():
        has_got.set()
        return stubborn

    has_got, stubborn = threading.Event(), Stubborn()
    handle = DAG("etl", tasks=[Task("one", tasks.one)]).start(executor=Odd(1, answer))
    assert has_got.wait(PATIENCE)
    try:
        handle.cancel("enough")
        with pytest.raises(RunCancelledError):
            over(handle)
    finally:
        stubborn.set_result(("value", 1))


def test_answers_that_come_from_inside_of_cancel_do_not_lock_the_run_up():
    """cancel() calls the callbacks of its future at once, in the thread that cancels."""
    idle = Idle(1)
    refuse = Task("refuse", functools.partial(_wait_and_refuse, idle.has_got), executor="thread")
    many = [Task(f"t{n}", tasks.one) for n in range(20)]
    handle = DAG("etl", tasks=[*many, refuse]).start(executor=idle, raise_on_failure=False)
    result = over(handle)
    assert states(result) == {"refuse": "failed"} | {task.name: "cancelled" for task in many}


def test_without_a_thread_to_submit_from_the_run_fails_and_leaves_nothing(threads, mocker):
    mocker.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread"))
    with pytest.raises(FlowkitError, match="cannot start a thread"):
        run_on(threads, Task("one", tasks.one))


# ---------------------------------------------------------------- executors that break


def test_a_worker_that_is_killed_is_a_clear_error_and_ends_the_run(processes):
    """kill ─► below; after ◄─ kill; own (thread) ◄─ kill"""
    kill = Task("kill", tasks.kill_worker, retries=3, delay=0)
    own = Task("own", tasks.one, executor="thread", trigger="all_done").after(kill)
    after = Task("after", tasks.one, trigger="all_done").after(kill)
    result = run_on(processes, kill >> Task("below", tasks.echo), own, after, timeout=PATIENCE)
    assert states(result) == {"kill": "failed", "below": "upstream_failed", "own": "succeeded", "after": "failed"}
    for name in ("kill", "after"):
        error = result.errors[name]
        assert type(error) is FlowkitError
        assert "ProcessPoolExecutor" in str(error)
        assert f"task {name!r}" in str(error)
        assert "BrokenProcessPool" in str(error)
    with pytest.raises(concurrent.futures.BrokenExecutor):
        processes.submit(tasks.one)


def test_a_worker_that_is_killed_from_outside_fails_what_was_under_way_and_keeps_what_was_done(processes, tmp_path):
    """one ─► [wait, whose worker is killed; many more]"""
    noted, release = tmp_path / "pid", tmp_path / "release"
    one = Task("one", tasks.one)
    wait = Task("wait", functools.partial(tasks.note_pid_and_wait, str(noted), str(release)))
    many = [Task(f"t{n}", tasks.one) for n in range(50)]
    wait.after(one)
    for task in many:
        task.after(wait)
    handle = DAG("etl", tasks=[wait, *many]).start(executor=processes, fail_fast=False, raise_on_failure=False)
    os.kill(int(tasks_read(noted)), signal.SIGKILL)
    result = handle.result(PATIENCE)
    assert states(result) == {"one": "succeeded", "wait": "failed"} | {task.name: "upstream_failed" for task in many}
    assert "task 'wait'" in str(result.errors["wait"])


def tasks_read(path):
    """Return what is in the file *path*, when it is there."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.002)
    return path.read_text()


def test_a_pool_that_breaks_at_the_very_first_call_is_a_clear_error():

    def break_down():
        future = Future()
        future.set_exception(concurrent.futures.BrokenExecutor("no worker could be started"))
        return future

    task = Task("one", tasks.one, retries=2, delay=0.001)
    error = run_on(Odd(0, break_down), task, timeout=SOON).errors["one"]
    assert type(error) is FlowkitError
    assert "Odd" in str(error)
    assert "task 'one'" in str(error)
    assert "no worker could be started" in str(error)


def test_a_pool_whose_workers_cannot_start_is_a_clear_error():
    forkserver.ensure_running()
    resource_tracker.ensure_running()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context, initializer=tasks.kill_worker) as pool:
        result = run_on(pool, Task("one", tasks.one), Task("two", tasks.two), timeout=PATIENCE)
    assert result.failed
    for name in ("one", "two"):
        assert type(result.errors[name]) is FlowkitError
        assert "ProcessPoolExecutor" in str(result.errors[name])
        assert f"task {name!r}" in str(result.errors[name])


def test_a_loky_pool_that_breaks_is_a_clear_error_and_the_next_one_works():
    loky = pytest.importorskip("loky")
    pool = loky.ProcessPoolExecutor(1)
    try:
        result = run_on(pool, Task("kill", tasks.kill_worker), timeout=PATIENCE)
        assert type(result.errors["kill"]) is FlowkitError
        assert "TerminatedWorkerError" in str(result.errors["kill"])
        assert "task 'kill'" in str(result.errors["kill"])
    finally:
        pool.shutdown(kill_workers=True)


# ---------------------------------------------------------------- Ctrl-C


INTERRUPTED = """
    import os, sys, threading, time
    sys.path.insert(0, {here!r})
    import foreign_tasks as tasks
    from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
    from flowkit import DAG, AttemptStarted, Task

    class Idle(Executor):
        def submit(self, fn, /, *args, **kwargs):
            print("started")
            return Future()

    def note(event):
        if isinstance(event, AttemptStarted):
            print("started")

    if __name__ == "__main__":
        pool = {pool}
        wait = Task("wait", tasks.wait_for)
        try:
            DAG("etl", tasks=[wait]).run({{"release": "never"}}, executor=pool, observers=[note])
        except KeyboardInterrupt as interrupt:
            print("interrupted", "cancelled" in interrupt.__notes__[0])
        else:
            print("went on")
        if not isinstance(pool, Idle):
            print(pool.submit(tasks.double, 2).result())
        sys.stdout.flush()
        for process in list(getattr(pool, "_processes", None) or {{}}):
            os.kill(process, 9)
        os._exit(130)
"""


@pytest.mark.parametrize("pool", ["ThreadPoolExecutor(2)", "Idle()", "PROCESSES"])
def test_one_ctrl_c_ends_the_run_and_leaves_the_executor(script, pool):
    if pool == "PROCESSES":
        pool = "ProcessPoolExecutor(2, mp_context=__import__('multiprocessing').get_context('forkserver'))"
    running = script(INTERRUPTED.format(here=tasks.HERE, pool=pool))
    running.wait_for("started")
    running.interrupt()
    running.finish()
    assert running.out == "interrupted True\n" + ("" if pool == "Idle()" else "4\n"), running.err
    assert running.returncode == 130
    assert running.seconds < SOON


# ---------------------------------------------------------------- scripts


def test_the_functions_of_a_script_run_on_processes_of_a_pool(tmp_path, script):
    """A program whose functions are under @task, in a file of its own."""
    path = tmp_path / "program.py"
    path.write_text(
        "import multiprocessing, os\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from flowkit import DAG, task\n"
        "@task\n"
        "def fetch():\n    return os.getpid()\n"
        "@task(when=bool, retries=1)\n"
        "def check(fetch):\n    return fetch\n"
        "fetch >> check\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver'):\n"
        "        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:\n"
        "            print(DAG('etl').run(executor=pool)['check'] != os.getpid())\n"
    )
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, {str(path)!r}]).returncode)"
    running = script(code).finish()
    assert (running.out, running.returncode) == ("True\nTrue\n", 0), running.err
