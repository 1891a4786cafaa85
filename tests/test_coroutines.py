"""Coroutines as tasks: on the event loop of a run, beside threads, and in a sequential run.

The pool itself is asked by the contract suite in ``test_workers.py``; here is what only an event loop can get wrong.
What must not depend on where a coroutine runs is asked of every executor.
"""

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import types
import warnings
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import predict, value_of
from strategies import TIMEOUT, graphs
from test_workers import FakeRun

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    ConditionError,
    DAGExecutionError,
    FlowkitError,
    GiveUp,
    RetryAfter,
    RunCancelledError,
    RunTimeoutError,
    Skip,
    Task,
    TaskContext,
    TaskExecutionError,
    TaskFailed,
    TaskResultError,
    TaskSucceeded,
    TaskTimeoutError,
    current_context,
    task,
)
from flowkit.engine.workers.coroutines import CoroutinePool
from flowkit.events import TaskEvent
from flowkit.testing import VirtualClock

SOON = 3.0
"""Seconds within which a stopped run must be over: the promise is one, the rest is for a loaded machine."""

request_id = contextvars.ContextVar("request_id", default="none")


@pytest.fixture(params=["thread", "async", "sequential"])
def executor(request):
    return request.param


@pytest.fixture(params=["thread", "async"])
def concurrent(request):
    """An executor under which coroutines run side by side."""
    return request.param


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def gate():
    """An event that a loop or a thread may be blocked by; it is set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def no_warnings():
    """Fail if anything warned, as of a coroutine that was never awaited, which Python cannot raise."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


def states(result):
    return {name: run.state for name, run in result.tasks.items()}


def alone(func, **options):
    """Return a DAG of the one task t."""
    return DAG("etl", tasks=[Task("t", func, **options)])


def finished(dag, **options):
    return dag.run(raise_on_failure=False, **options)


def raising(error):
    """Return a coroutine function that raises *error* after it has waited."""

    async def bad(*_):
        await asyncio.sleep(0)
        raise error

    return bad


async def one(*_):
    await asyncio.sleep(0)
    return 1


async def until(holds):
    """Wait until *holds()*, which is the doing of another thread, while the loop goes on."""
    while not holds():  # noqa: ASYNC110 - no thread but the loop's own could set an asyncio.Event
        await asyncio.sleep(0.001)


async def forever(*_):
    await asyncio.Event().wait()


class Hanging:
    """A coroutine function that waits until it is cancelled.

    Attributes:
        has_begun: Set when it waits.
        ends: What it was woken with.
    """

    def __init__(self):
        self.has_begun = threading.Event()
        self.ends = []

    async def __call__(self, *_):
        try:
            self.has_begun.set()
            await forever()
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise


class Finals:
    """An observer that keeps the final events."""

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


class Meeting:
    """Where coroutines of one loop wait until *count* of them are there.

    Attributes:
        most: The most that were inside at once.
    """

    def __init__(self, count):
        self._count = count
        self._inside = 0
        self._open = None
        self.most = 0

    async def __call__(self, *_):
        if self._open is None:
            self._open = asyncio.Event()
        self._inside += 1
        self.most = max(self.most, self._inside)
        if self._inside == self._count:
            self._open.set()
        await self._open.wait()
        self._inside -= 1
        return self._count


class Crowd:
    """A coroutine function that stays for some turns of the loop.

    Attributes:
        most: The most that were inside at once.
    """

    def __init__(self):
        self._inside = 0
        self.most = 0

    async def __call__(self, *_):
        self._inside += 1
        self.most = max(self.most, self._inside)
        for _ in range(5):
            await asyncio.sleep(0)
        self._inside -= 1


def virtually(clock, dag, **options):
    """Return the result of a run in virtual time, which hangs if the clock stands still for ever."""
    handle = dag.start(_clock=clock, raise_on_failure=False, **options)
    try:
        return handle.result(10)
    except TimeoutError:
        pytest.fail(f"the clock stands still at {clock.now()}: {states(handle.snapshot())}")
    finally:
        handle.cancel()
        for *_, wake in clock._sleepers:  # or a thread that nobody wakes would outlive the test
            with contextlib.suppress(RuntimeError):
                wake()


def wait_for_loops():
    """Wait for the end of loops that were left behind, and may end by now."""
    for thread in threading.enumerate():
        if thread.name == "flowkit-loop":
            thread.join(5)


def cancelled(handle, seconds=10):
    """Return the result of a run that must end as cancelled."""
    with pytest.raises(RunCancelledError) as caught:
        handle.result(seconds)
    return caught.value.result


# ---------------------------------------------------------------- a coroutine is a task like any other


def test_what_a_coroutine_returns_is_the_result_and_reaches_whoever_is_below(executor, no_warnings):
    """fetch (async) ─► clean ─► load (async); fetch ─► count (async) ─► load"""

    async def fetch():
        await asyncio.sleep(0)
        return [3, 1, 2]

    async def count(rows):
        return len(rows)

    async def load(clean, count):
        await asyncio.sleep(0)
        return clean, count

    with DAG("etl") as dag:
        fetched = Task(fetch)
        fetched >> [Task("clean", sorted), Task(count)] >> Task(load)
    result = dag.run(executor=executor)
    assert result == {"fetch": [3, 1, 2], "clean": [1, 2, 3], "count": 3, "load": ([1, 2, 3], 3)}
    assert result.state == "succeeded"


class Methods:
    async def method(self, x):
        return x

    @classmethod
    async def of_class(cls, x):
        return x

    @staticmethod
    async def static(x):
        return x


class Callable:
    async def __call__(self, x):
        return x


async def identity(x):
    return x


@functools.wraps(identity)
async def wrapper(*args, **kwargs):
    return await identity(*args, **kwargs)


@types.coroutine
def of_generator(x):
    yield from asyncio.sleep(0).__await__()
    return x


@pytest.mark.parametrize("func", [
    identity, wrapper, of_generator, Methods().method, Methods.of_class, Methods.static, Callable(),
    functools.partial(identity), functools.partial(functools.partial(Methods().method)),
], ids=lambda func: getattr(func, "__qualname__", type(func).__name__))  # fmt: skip
def test_whatever_gives_a_coroutine_when_it_is_called_is_awaited(func, executor, no_warnings):
    """a ─► t"""
    with DAG("etl") as dag:
        Task("a", lambda: 7) >> Task("t", func)
    result = dag.run(executor=executor)
    assert result["t"] == 7
    assert result.tasks["t"].worker == ("main" if executor == "sequential" else "loop")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("options", [{}, {"timeout": 60, "retries": 1}], ids=str)
def test_every_shape_of_call_gets_its_results(count, options, executor):
    """*count* tasks ─► last"""

    async def last(*given):
        return given

    with DAG("etl") as dag:
        [Task(f"u{n}", lambda n=n: n) for n in range(count)] >> Task(last, **options)
    assert dag.run(executor=executor)["last"] == tuple(range(count))


def test_names_defaults_inputs_and_keywords_are_bound_as_for_any_task(executor):
    """fetch, audit ─► load; audit gives nothing"""

    async def load(fetch, date, audit=None, *, limit=10, context, **rest):
        return fetch, date, audit, limit, context.task_name, rest

    async def audit():
        raise Skip

    with DAG("etl") as dag:
        [Task("fetch", one), Task(audit), Task("more", one)] >> Task(load)
    assert dag.run({"date": "today"}, executor=executor)["load"] == (1, "today", None, 10, "load", {"more": 1})


def test_none_is_a_result_too(executor):
    async def nothing(): ...

    assert alone(nothing).run(executor=executor) == {"t": None}


def test_a_coroutine_of_a_bare_decorator_is_a_task(executor):
    with DAG("etl") as dag:

        @task
        async def fetch():
            return 1

        @task(retries=2, timeout=60)
        async def load(fetch):
            return fetch + 1

        fetch >> load
    assert dag.run(executor=executor)["load"] == 2


def test_a_long_chain_of_coroutines_and_functions_by_turns_runs(executor):
    """t0 ─► t1 ─► ... ─► t999, every second one a coroutine"""

    async def add(x):
        return x + 1

    with DAG("deep") as dag:
        above = Task("t0", lambda: 0)
        for n in range(1, 1000):
            above = above >> Task(f"t{n}", add if n % 2 else lambda x: x + 1)
    assert dag.run(executor=executor)["t999"] == 999


# ---------------------------------------------------------------- where they run


def where(*_):
    return threading.current_thread().name


async def where_async(*_):
    asyncio.get_running_loop()
    return threading.current_thread().name


@pytest.mark.parametrize("own", [None, "thread", "async"])
def test_coroutines_are_on_the_loop_and_plain_functions_are_not(concurrent, own):
    """plain; coroutine: whatever the task itself asks for of these two"""
    dag = DAG("etl", tasks=[Task("plain", where, executor=own), Task("coroutine", where_async, executor=own)])
    result = dag.run(executor=concurrent)
    assert result["coroutine"] == "flowkit-loop"
    assert result["plain"].startswith("flowkit-thread-")
    assert result.tasks["coroutine"].worker == "loop"
    assert result.tasks["plain"].worker.startswith("thread-")


def test_in_a_sequential_run_coroutines_run_in_the_calling_thread_one_at_a_time():
    """a (async), b, c (async)"""
    ran = []

    def note(name):
        async def coroutine():
            ran.append((name, "in", threading.current_thread()))
            for _ in range(3):
                await asyncio.sleep(0)
            ran.append((name, "out", threading.current_thread()))

        return coroutine

    dag = DAG("etl", tasks=[Task("a", note("a")), Task("b", where), Task("c", note("c"))])
    result = dag.run(executor="sequential")
    assert [entry[:2] for entry in ran] == [("a", "in"), ("a", "out"), ("c", "in"), ("c", "out")]
    assert {thread for _, _, thread in ran} == {threading.current_thread()}
    assert result["b"] == threading.current_thread().name


@pytest.mark.parametrize("executor", ["thread", "async", "sequential"])
def test_all_coroutines_of_a_run_share_one_loop(executor):
    """three coroutines ─► last"""

    async def loop(*_):
        return id(asyncio.get_running_loop())

    with DAG("etl") as dag:
        [Task(f"t{n}", loop) for n in range(3)] >> Task("last", loop)
    assert len(set(dag.run(executor=executor).values())) == 1


def test_what_coroutines_share_on_the_loop_can_be_shared(executor):
    """open ─► five that use the same asyncio queue"""

    async def opened():
        return asyncio.Queue()

    async def use(queue):
        queue.put_nowait(1)
        return await asyncio.wait_for(queue.get(), 5)

    with DAG("etl") as dag:
        Task("opened", opened) >> [Task(f"t{n}", use) for n in range(5)]
    assert sum(value for name, value in dag.run(executor=executor).items() if name != "opened") == 5


def test_two_thousand_coroutines_wait_at_once(concurrent):
    meeting = Meeting(2000)
    result = DAG("etl", tasks=[Task(f"t{n}", meeting) for n in range(2000)]).run(executor=concurrent)
    assert len(result) == meeting.most == 2000


def test_ten_thousand_coroutines_that_never_wait_do_not_pile_up():
    """root ─► t0 .. t9999 ─► last"""

    async def never_waits(*given):
        return len(given)

    with DAG("etl") as dag:
        Task("root", one) >> [Task(f"t{n}", never_waits) for n in range(10_000)] >> Task("last", never_waits)
    assert dag.run(executor="async")["last"] == 10_000


def test_coroutines_and_threads_of_one_run_wait_for_each_other(concurrent):
    """a coroutine and a thread, each of which needs the other to have begun"""
    began, answered = threading.Event(), threading.Event()

    async def coroutine():
        began.set()
        await until(answered.is_set)

    def function():
        assert began.wait(5)
        answered.set()

    dag = DAG("etl", tasks=[Task(coroutine), Task(function)])
    assert set(states(dag.run(executor=concurrent)).values()) == {"succeeded"}


def test_the_loop_goes_on_while_threads_are_busy(gate):
    """blocked waits on the only thread until the coroutines first ─► second have run"""

    async def second(first):
        gate.set()

    with DAG("etl") as dag:
        Task("blocked", lambda: gate.wait(10))
        Task("first", one) >> Task(second)
    assert dag.run(max_workers=1)["blocked"] is True


@pytest.mark.parametrize("seed", range(5))
def test_a_mixed_graph_gives_the_same_whatever_runs_where(seed):
    """40 tasks with up to four upstreams each, half of them coroutines"""
    rng = random.Random(seed)

    def plain(name):
        return lambda *given: value_of(name, 1, given)

    def coroutine(name):
        async def body(*given):
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            return value_of(name, 1, given)

        return body

    tasks = []
    for n in range(40):
        kind, own = rng.choice([plain, coroutine]), rng.choice([None, None, "thread", "async"])
        tasks.append(Task(f"t{n}", kind(f"t{n}"), executor=own))
        if n:
            rng.sample(tasks[:-1], min(n, rng.randrange(5))) >> tasks[-1]
    dag = DAG("mixed", tasks=tasks)
    expected = dag.run(executor="sequential")
    for executor, max_workers in itertools.product(["thread", "async"], [1, 3, None]):
        assert dag.run(executor=executor, max_workers=max_workers) == expected


# ---------------------------------------------------------------- results that cannot be handed on


async def gives_coroutine():
    return one()


async def gives_generator():
    return (n for n in range(3))


async def gives_future():
    return asyncio.get_running_loop().create_future()


async def gives_async_generator():
    async def numbers():
        yield 1

    return numbers()


@pytest.mark.parametrize(("func", "words"), [
    (gives_coroutine, "returned a coroutine: make it async def, or await it inside"),
    (gives_generator, "returned a generator.*return a list"),
    (gives_future, "returned an? Future: make it async def, or await it inside"),
    (gives_async_generator, "returned an async_generator: return a list"),
])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"retries": 3, "delay": 0}], ids=str)
def test_what_only_one_reader_could_use_is_no_result(func, words, options, executor, no_warnings):
    with pytest.raises(TaskExecutionError, match=f"task 't' {words}") as caught:
        alone(func, **options).run(executor=executor)
    assert type(caught.value.__cause__) is TaskResultError
    assert caught.value.attempts == 1


# ---------------------------------------------------------------- whatever it raises


HOSTILE = [
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt("mine"), "KeyboardInterrupt: mine"),
    (asyncio.CancelledError(), "raised CancelledError but was not cancelled"),
    (GeneratorExit(), "raised GeneratorExit but was not cancelled"),
    (StopAsyncIteration("stop"), "StopAsyncIteration: stop"),
    (MemoryError("all of it"), "MemoryError: all of it"),
    (BaseException("base"), "BaseException: base"),
    (TimeoutError("mine"), "TimeoutError: mine"),
    (ExceptionGroup("many", [ValueError("a")]), "ExceptionGroup: many (1 sub-exception)"),
]


@pytest.mark.parametrize(("error", "reason"), HOSTILE, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=str)
def test_whatever_a_coroutine_raises_is_its_failure_and_nothing_more(error, reason, options, executor):
    """bad; good, which needs many turns of the loop ─► below"""

    async def good():
        for _ in range(10):
            await asyncio.sleep(0)
        return 1

    with DAG("etl") as dag:
        Task("bad", raising(error), **options)
        Task("good", good) >> Task("below", one)
    result = finished(dag, executor=executor, fail_fast=False)
    assert states(result) == {"bad": "failed", "good": "succeeded", "below": "succeeded"}
    assert result.tasks["bad"].error is error
    assert result.tasks["bad"].reason == reason
    assert alone(one).run(executor=executor) == {"t": 1}


def test_stop_iteration_is_the_cause_of_the_error_that_python_makes_of_it(executor):
    result = finished(alone(raising(StopIteration("stop"))), executor=executor)
    error = result.tasks["t"].error
    assert type(error) is RuntimeError
    assert str(error.__cause__) == "stop"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, BaseException])
def test_what_is_no_exception_is_not_retried_by_default_and_is_on_request(kind, executor):
    bad = raising(kind())
    assert finished(alone(bad, retries=2, delay=0), executor=executor).tasks["t"].attempts == 1
    again = finished(alone(bad, retries=2, delay=0, retry_on=kind), executor=executor)
    assert (again.tasks["t"].attempts, again.tasks["t"].state) == (3, "failed")


def test_a_coroutine_that_cancels_itself_has_failed(executor):
    async def suicidal():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with pytest.raises(TaskExecutionError, match="raised CancelledError but was not cancelled") as caught:
        alone(suicidal).run(executor=executor)
    assert states(caught.value.result) == {"t": "failed"}


def test_a_cancellation_that_a_coroutine_made_up_does_not_stick_to_the_next_one(concurrent):
    """bad cancels itself and ends well; good waits"""

    async def bad():
        asyncio.current_task().cancel()
        return "well"

    with DAG("etl") as dag:
        Task(bad) >> Task("good", one)
    assert dag.run(executor=concurrent) == {"bad": "well", "good": 1}


def test_the_cause_is_the_original_with_its_own_traceback(executor):
    async def outer():
        await inner()

    async def inner():
        raise ValueError("no")

    with pytest.raises(TaskExecutionError) as caught:
        alone(outer).run(executor=executor)
    traceback, names = caught.value.__cause__.__traceback__, []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names == ["outer", "inner"]


def test_several_failures_of_coroutines_are_raised_together(executor):
    dag = DAG("etl", tasks=[Task("a", raising(ValueError("a"))), Task("b", raising(KeyError("b"))), Task("c", one)])
    with pytest.raises(DAGExecutionError) as caught:
        dag.run(executor=executor, fail_fast=False)
    assert sorted(error.task_name for error in caught.value.exceptions) == ["a", "b"]
    assert caught.value.result == {"c": 1}


def test_the_timeouts_and_groups_of_asyncio_work_inside_of_a_coroutine(executor):
    async def impatient():
        async with asyncio.timeout(0.001):
            await forever()

    async def patient():
        try:
            await asyncio.wait_for(forever(), 0.001)
        except TimeoutError:
            return "gave up"

    async def grouped():
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
            group.create_task(raising(ValueError("no"))())

    dag = DAG("etl", tasks=[Task(impatient), Task(patient), Task(grouped)])
    result = finished(dag, executor=executor, fail_fast=False)
    assert result == {"patient": "gave up"}
    assert type(result.tasks["impatient"].error) is TimeoutError
    assert isinstance(result.tasks["grouped"].error, ExceptionGroup)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_a_background_task_that_tears_the_loop_down_does_not_hang_the_run(error, concurrent):
    """bad starts a task of its own that ends the loop, as asyncio lets it
    bad ─► below; other, on the loop; function, which ends when the loop was torn ─► late, which needs it again
    """
    torn = threading.Event()

    async def bad():
        background = asyncio.create_task(raising(error)())
        torn.set()
        await until(background.done)

    async def other():
        await until(torn.is_set)

    def function():
        assert torn.wait(5)
        for thread in threading.enumerate():
            if thread.name == "flowkit-loop":
                thread.join(0.3)

    with DAG("etl") as dag:
        Task(bad) >> Task("below", one)
        Task("other", other)
        Task(function) >> Task("late", one)
    handle = dag.start(executor=concurrent, fail_fast=False, raise_on_failure=False)
    try:
        ends = states(handle.result(SOON))
        assert not {"pending", "running"} & set(ends.values())
    except TimeoutError:
        pytest.fail(f"the run hangs: {states(handle.snapshot())}")
    except FlowkitError:
        pass  # to say that the loop is gone is an answer too
    finally:
        handle.cancel()


# ---------------------------------------------------------------- skip, retries, when


def test_a_coroutine_can_skip_give_up_and_ask_for_another_attempt(clock, executor):
    """skipped ─► under; given_up; again"""
    attempts = []

    async def again(context):
        attempts.append(clock.now())
        if context.attempt == 1:
            raise RetryAfter(50)
        return context.attempt

    async def skipped():
        raise Skip("no rows")

    async def given_up():
        raise GiveUp("card declined")

    with DAG("etl") as dag:
        Task(skipped) >> Task("under", one)
        Task(given_up, retries=5)
        Task(again, retries=1)
    result = clock.run(dag, executor=executor, fail_fast=False, raise_on_failure=False)
    expected = {"skipped": "skipped", "given_up": "failed", "again": "succeeded", "under": "skipped"}
    assert states(result) == expected
    assert (result.tasks["skipped"].reason, result.tasks["given_up"].attempts) == ("no rows", 1)
    assert (result["again"], attempts[1] - attempts[0]) == (2, 50.0)


def test_retries_of_a_coroutine_wait_as_the_policy_says(clock, executor):
    starts = []

    async def flaky():
        starts.append(clock.now())
        await asyncio.sleep(0)
        if len(starts) < 5:
            raise ConnectionError("not yet")
        return "done"

    dag = alone(flaky, retries=10, delay=10, backoff=3, max_delay=200, jitter=0)
    result = clock.run(dag, executor=executor)
    assert [b - a for a, b in itertools.pairwise(starts)] == [10, 30, 90, 200]
    assert (result["t"], result.tasks["t"].attempts) == ("done", 5)


def test_the_error_of_the_last_attempt_is_raised(executor):
    async def bad(context):
        raise ValueError(f"attempt {context.attempt}")

    with pytest.raises(TaskExecutionError, match=r"after 3 attempts.*attempt 3"):
        alone(bad, retries=2, delay=0).run(executor=executor)


def test_a_coroutine_that_waits_for_its_retry_holds_no_place_and_no_limit(clock, concurrent):
    """flaky waits 1000 s for its second attempt; other needs the one place and the limit"""
    ran = []

    async def flaky(context):
        ran.append("flaky")
        if context.attempt == 1:
            raise ConnectionError

    async def other():
        ran.append("other")

    tasks = [Task(flaky, retries=1, delay=1000, max_delay=1e6, jitter=0, uses="api"), Task(other, uses="api")]
    result = clock.run(DAG("etl", tasks=tasks), executor=concurrent, max_workers=1, limits={"api": 1})
    assert ran == ["flaky", "other", "flaky"]
    assert result.tasks["other"].duration < 1000


def test_many_coroutines_back_off_side_by_side(clock, concurrent):
    """50 coroutines that fail once and wait 100 s each"""

    async def flaky(context):
        if context.attempt == 1:
            raise ConnectionError

    tasks = [Task(f"t{n}", flaky, retries=1, delay=100, max_delay=100, jitter=0) for n in range(50)]
    assert clock.run(DAG("etl", tasks=tasks), executor=concurrent).duration == 100.0


@pytest.mark.parametrize(("answer", "state"), [
    (True, "succeeded"), (False, "skipped"), ([], "skipped"), (1, "succeeded"),
])  # fmt: skip
def test_a_condition_decides_before_the_first_attempt(answer, state, executor):
    """a ─► t"""
    asked = []
    with DAG("etl") as dag:
        Task("a", one) >> Task("t", one, when=lambda x: asked.append(x) or answer)
    result = dag.run(executor=executor)
    assert result.tasks["t"].state == state
    assert asked == [1]
    assert result.tasks["t"].attempts == (state == "succeeded")


def test_a_condition_is_asked_once_however_many_attempts_follow(clock, executor):
    asked = []
    bad = Task("t", raising(ConnectionError()), when=lambda: asked.append(1) or True, retries=3)
    assert clock.run(DAG("etl", tasks=[bad]), executor=executor, raise_on_failure=False).tasks["t"].attempts == 4
    assert asked == [1]


def broken_condition():
    raise ZeroDivisionError


async def async_condition():
    return True


@pytest.mark.parametrize(("when", "words"), [
    (broken_condition, "raised ZeroDivisionError"),
    (lambda: next(iter([])), "raised StopIteration"),
    (lambda: sys.exit(3), "raised SystemExit: 3"),
    (async_condition, "returned a coroutine, which is always true"),
])  # fmt: skip
def test_a_condition_that_cannot_be_told_fails_the_task_without_calling_it(when, words, executor, no_warnings):
    """t ─► below"""
    called = []

    async def work():
        called.append(1)

    with DAG("etl") as dag:
        Task("t", work, when=when, retries=3) >> Task("below", one)
    result = finished(dag, executor=executor)
    assert states(result) == {"t": "failed", "below": "upstream_failed"}
    assert type(result.tasks["t"].error) is ConditionError
    assert words in result.tasks["t"].reason
    assert (called, result.tasks["t"].attempts) == ([], 0)


# ---------------------------------------------------------------- the context


@pytest.mark.parametrize("options", [{}, {"retries": 2}], ids=str)
def test_a_coroutine_finds_its_context_by_parameter_by_annotation_and_by_asking(options, executor):
    async def by_name(context):
        return context

    async def by_annotation(here: TaskContext):
        await asyncio.sleep(0)
        return here

    async def by_asking():
        await asyncio.sleep(0)
        return current_context()

    result = DAG("etl", tasks=[Task(f, **options) for f in (by_name, by_annotation, by_asking)]).run(executor=executor)
    for name, context in result.items():
        assert (context.task_name, context.run_id, context.attempt) == (name, result.run_id, 1)


@pytest.mark.parametrize("options", [{}, {"retries": 2}], ids=str)
def test_the_condition_of_a_coroutine_finds_its_context_too(options, executor):
    assert alone(one, when=lambda: current_context().task_name == "t", **options).run(executor=executor) == {"t": 1}


def test_each_of_many_coroutines_finds_its_own_context(concurrent):
    async def work(context):
        for _ in range(3):
            await asyncio.sleep(0)
            assert current_context().task_name == context.task_name
        return context.task_name

    result = DAG("etl", tasks=[Task(f"t{n}", work) for n in range(100)]).run(executor=concurrent)
    assert all(name == value for name, value in result.items())


def test_children_and_threads_of_a_coroutine_find_its_context(executor):
    async def child():
        await asyncio.sleep(0)
        return current_context().task_name

    async def parent():
        return await asyncio.create_task(child()), await asyncio.to_thread(lambda: current_context().task_name)

    assert alone(parent).run(executor=executor)["t"] == ("t", "t")


def test_a_child_that_outlives_its_coroutine_finds_no_context(concurrent):
    """careless ─► other, in which the child of careless looks around"""
    children, seen = [], []

    async def child(go_on):
        await go_on.wait()
        try:
            seen.append(current_context().task_name)
        except FlowkitError:
            seen.append("none")

    async def careless():
        go_on = asyncio.Event()
        children.append((go_on, asyncio.create_task(child(go_on))))

    async def other(careless):
        go_on, running = children.pop()
        go_on.set()
        await running

    with DAG("etl") as dag:
        Task(careless) >> Task(other)
    dag.run(executor=concurrent)
    assert seen == ["none"]


def test_an_observer_of_a_coroutine_has_no_context(executor):
    """What it is told of has ended; it belongs to the run and not to the task."""
    found = []

    def observer(event):
        with contextlib.suppress(FlowkitError):
            found.append((type(event).__name__, current_context().task_name))

    finished(DAG("etl", tasks=[Task("good", one), Task("bad", raising(ValueError()))]), executor=executor,
             fail_fast=False, observers=[observer])  # fmt: skip
    assert found == []


def test_upstream_of_the_context_says_how_the_neighbours_ended(executor):
    """good, bad, skipped ─► last"""

    async def last(context):
        return {name: (run.state, run.value) for name, run in context.upstream.items()}

    with DAG("etl") as dag:
        ups = [Task("good", one), Task("bad", raising(ValueError("no"))), Task("skipped", raising(Skip()))]
        ups >> Task(last, trigger="all_done")
    expected = {"good": ("succeeded", 1), "bad": ("failed", None), "skipped": ("skipped", None)}
    assert finished(dag, executor=executor, fail_fast=False)["last"] == expected


def test_the_callers_context_variables_are_visible_in_coroutines_and_conditions(executor):
    seen = []

    async def ask():
        await asyncio.sleep(0)
        return request_id.get(), await asyncio.create_task(child())

    async def child():
        return request_id.get()

    token = request_id.set("17")
    try:
        dag = alone(ask, when=lambda: seen.append(request_id.get()) or True)
        assert dag.run(executor=executor)["t"] == ("17", "17")
    finally:
        request_id.reset(token)
    assert seen == ["17"]


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=str)
def test_what_a_coroutine_sets_no_other_one_and_no_caller_sees(options, executor):
    """a ─► b ─► c (a plain function); beside, at the same time"""

    async def change(*_):
        before = request_id.get()
        request_id.set("changed")
        await asyncio.sleep(0)
        assert request_id.get() == "changed"
        return before

    with DAG("etl") as dag:
        Task("a", change, **options) >> Task("b", change, **options) >> Task("c", lambda b: request_id.get(), **options)
        Task("beside", change, **options)
    assert set(dag.run(executor=executor).values()) == {"none"}
    assert request_id.get() == "none"


def test_what_an_attempt_of_a_coroutine_sets_the_next_one_does_not_see(clock, executor):
    seen = []

    async def flaky():
        seen.append(request_id.get())
        request_id.set("changed")
        if len(seen) < 3:
            raise ValueError("not yet")

    clock.run(alone(flaky, retries=2), executor=executor)
    assert seen == ["none"] * 3


def test_what_a_condition_sets_its_coroutine_sees(executor):
    async def ask():
        return request_id.get()

    dag = alone(ask, when=lambda: request_id.set("by the condition"))
    assert dag.run(executor=executor)["t"] == "by the condition"


def test_decimal_contexts_of_coroutines_do_not_mix(concurrent):
    import decimal

    async def divide(digits):
        with decimal.localcontext() as own:
            own.prec = digits
            for _ in range(3):
                await asyncio.sleep(0)
            return len(str(decimal.Decimal(1) / decimal.Decimal(3))) - 2

    tasks = [Task(f"t{digits}", functools.partial(divide, digits)) for digits in range(3, 30)]
    result = DAG("etl", tasks=tasks).run(executor=concurrent)
    assert result == {f"t{digits}": digits for digits in range(3, 30)}


# ---------------------------------------------------------------- how many at once


@pytest.mark.parametrize(("max_workers", "most"), [(1, 1), (3, 3), ({"async": 2}, 2), ({"async": 3, "thread": 1}, 3)])
def test_max_workers_bounds_coroutines(max_workers, most, concurrent):
    crowd = Crowd()
    with DAG("etl") as dag:
        Task("root", one) >> [Task(f"t{n}", crowd) for n in range(30)]
    dag.run(executor=concurrent, max_workers=max_workers)
    assert crowd.most == most


def test_max_workers_of_threads_alone_does_not_bound_coroutines(concurrent):
    meeting = Meeting(50)
    dag = DAG("etl", tasks=[Task(f"t{n}", meeting) for n in range(50)])
    dag.run(executor=concurrent, max_workers={"thread": 1})
    assert meeting.most == 50


def test_max_workers_of_coroutines_alone_does_not_bound_threads(concurrent):
    """three functions that wait for each other, and a coroutine"""
    together = threading.Barrier(3)
    dag = DAG("etl", tasks=[*(Task(f"t{n}", lambda: together.wait(5)) for n in range(3)), Task("c", one)])
    assert dag.run(executor=concurrent, max_workers={"async": 1}).ok


def test_a_limit_holds_across_coroutines_and_threads(concurrent):
    """20 coroutines and 20 functions that use the api, at most two at once"""
    lock, inside, most = threading.Lock(), [], []

    def enter():
        with lock:
            inside.append(1)
            most.append(len(inside))

    def leave():
        with lock:
            inside.pop()

    async def coroutine():
        enter()
        await asyncio.sleep(0.001)
        leave()

    def function():
        enter()
        time.sleep(0.001)
        leave()

    tasks = [Task(f"t{n}", [coroutine, function][n % 2], uses="api") for n in range(40)]
    dag = DAG("etl", tasks=tasks)
    dag.run(executor=concurrent, limits={"api": 2})
    assert max(most) == 2
    assert len(most) == 40


@pytest.mark.parametrize("end", ["succeeded", "failed", "skipped"])
def test_a_coroutine_gives_its_limit_back_however_it_ends(end, executor):
    """Ten that end so, one after the other, ─► last"""
    func = {"succeeded": one, "failed": raising(ValueError()), "skipped": raising(Skip())}[end]
    with DAG("etl") as dag:
        ten = [Task(f"t{n}", func, uses="api") for n in range(10)]
        ten >> Task("last", one, trigger="all_done", uses="api")
    result = finished(dag, executor=executor, limits={"api": 1}, fail_fast=False)
    assert result["last"] == 1
    assert {run.state for name, run in result.tasks.items() if name != "last"} == {end}


# ---------------------------------------------------------------- timeouts of attempts


def test_a_coroutine_that_takes_too_long_is_cancelled_and_costs_no_thread(concurrent):
    """slow ─► below"""
    slow = Hanging()
    with DAG("etl") as dag:
        Task("slow", slow, timeout=0.05) >> Task("below", one)
    with pytest.raises(TaskExecutionError, match="attempt 1 of task 'slow' took longer than its timeout") as caught:
        dag.run(executor=concurrent)
    result = caught.value.result
    assert type(caught.value.__cause__) is TaskTimeoutError
    assert states(result) == {"slow": "failed", "below": "upstream_failed"}
    assert slow.ends == ["CancelledError"]
    assert result.abandoned_threads == 0
    assert 0.05 <= result.tasks["slow"].duration < SOON


def test_the_timeout_is_per_attempt(concurrent):
    """Two attempts hang, the third is in time."""

    async def slow(context):
        if context.attempt < 3:
            await forever()
        return context.attempt

    result = alone(slow, timeout=0.03, retries=5, delay=0, jitter=0).run(executor=concurrent)
    assert (result["t"], result.tasks["t"].attempts, result.abandoned_threads) == (3, 3, 0)


def test_timeouts_in_virtual_time_end_at_their_deadline(clock, concurrent):
    """naps of 5, 50 and 500 s; the limit is 20"""

    async def sleeper(seconds):
        await clock.sleep_async(seconds)
        return seconds

    tasks = [Task(f"t{n}", functools.partial(sleeper, n), timeout=20) for n in (5, 50, 500)]
    result = virtually(clock, DAG("etl", tasks=tasks), executor=concurrent, fail_fast=False)
    assert result == {"t5": 5}
    assert {name: run.duration for name, run in result.tasks.items()} == {"t5": 5, "t50": 20, "t500": 20}


def test_coroutines_sleep_in_virtual_time_by_a_thread_side_by_side(clock, concurrent):
    """three coroutines of 10, 20 and 30 s"""

    async def sleeper(seconds):
        await asyncio.to_thread(clock.sleep, seconds)
        return clock.now()

    dag = DAG("etl", tasks=[Task(f"t{n}", functools.partial(sleeper, n)) for n in (10, 20, 30)])
    result = virtually(clock, dag, executor=concurrent)
    assert (result, result.duration) == ({"t10": 11, "t20": 21, "t30": 31}, 30)


def test_a_timeout_of_one_coroutine_leaves_the_others_alone(concurrent):
    """slow times out; steady goes on until it has seen that"""
    slow, steady_ended = Hanging(), []

    async def steady():
        await until(lambda: slow.ends)
        steady_ended.append(1)
        return 1

    dag = DAG("etl", tasks=[Task("slow", slow, timeout=0.03), Task("steady", steady)])
    result = finished(dag, executor=concurrent, fail_fast=False)
    assert (result, steady_ended) == ({"steady": 1}, [1])


def test_a_quick_coroutine_is_not_touched_by_its_timeout(executor):
    assert alone(one, timeout=60).run(executor=executor) == {"t": 1}


def test_a_timeout_is_not_retried_if_the_policy_does_not_name_it(concurrent):
    dag = alone(forever, timeout=0.02, retries=5, delay=0, retry_on=ConnectionError)
    assert finished(dag, executor=concurrent).tasks["t"].attempts == 1


def test_a_sequential_coroutine_that_never_ends_is_cancelled_by_its_timeout():
    dag = alone(forever, timeout=0.02, retries=1, delay=0)
    result = finished(dag, executor="sequential").tasks["t"]
    assert (result.state, result.attempts, type(result.error)) == ("failed", 2, TaskTimeoutError)


def test_a_sequential_coroutine_that_blocks_is_judged_when_it_returns(clock):
    async def slow(context):
        clock.sleep(100 if context.attempt == 1 else 1)
        return context.attempt

    result = clock.run(alone(slow, timeout=10, retries=1, delay=0), executor="sequential")
    assert result["t"] == 2


def test_the_timeouts_of_many_coroutines_do_not_end_the_run(concurrent):
    """20 of them, where eight threads would; after goes on"""
    with DAG("etl") as dag:
        [Task(f"t{n}", forever, timeout=0.02) for n in range(20)] >> Task("after", one, trigger="all_done")
    result = finished(dag, executor=concurrent, fail_fast=False)
    assert (result, result.abandoned_threads) == ({"after": 1}, 0)


def test_a_coroutine_that_swallows_its_timeout_says_nothing_more(concurrent):
    """The first attempt ends well, but late, while the second goes on."""
    late = threading.Event()

    async def deaf(context):
        if context.attempt == 1:
            try:
                await forever()
            except asyncio.CancelledError:
                late.set()
                return "late"
        await until(late.is_set)
        await asyncio.sleep(0.01)
        return "in time"

    finals = Finals()
    result = alone(deaf, timeout=0.5, retries=1, delay=0, jitter=0).run(executor=concurrent, observers=[finals])
    assert (result["t"], result.tasks["t"].attempts) == ("in time", 2)
    finals.check(result)


@pytest.mark.parametrize(("max_workers", "uses"), [(1, None), (None, "api"), (1, "api")])
def test_a_coroutine_that_swallows_its_timeout_gives_back_its_place_and_its_limit(max_workers, uses, concurrent):
    """deaf has the only place, or the only limit, or both; beside gets it while deaf goes on"""
    go_on, deaf_ended = threading.Event(), threading.Event()

    async def deaf():
        while not go_on.is_set():
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                continue
        deaf_ended.set()

    async def beside():
        assert not deaf_ended.is_set()
        go_on.set()
        return "ran"

    with DAG("etl") as dag:
        Task(deaf, timeout=0.03, uses=uses)
        Task(beside, uses=uses)
    result = finished(dag, executor=concurrent, max_workers=max_workers, limits={"api": 1}, fail_fast=False)
    assert result == {"beside": "ran"}


def test_a_timeout_is_recorded_while_another_coroutine_blocks_the_loop(gate, concurrent):
    """blocker blocks the loop until victim, which has begun, was given up"""
    began, given_up = threading.Event(), threading.Event()

    async def victim():
        began.set()
        await forever()

    async def blocker():
        await until(began.is_set)
        return given_up.wait(10)

    with DAG("etl") as dag:
        Task(victim, timeout=0.05, on_failure=lambda event: given_up.set())
        Task(blocker)
    result = finished(dag, executor=concurrent, fail_fast=False)
    assert result == {"blocker": True}
    assert type(result.tasks["victim"].error) is TaskTimeoutError


def test_a_coroutine_that_blocks_the_loop_is_timed_out_all_the_same(gate, concurrent):
    async def blocker():
        gate.wait(10)

    dag = alone(blocker, timeout=0.05, on_failure=lambda event: gate.set())
    result = finished(dag, executor=concurrent)
    assert type(result.tasks["t"].error) is TaskTimeoutError


def test_a_coroutine_that_was_given_up_knows_it(concurrent):
    known = []

    async def slow(context):
        try:
            await forever()
        finally:
            known.append(context.is_cancelled())

    finished(alone(slow, timeout=0.03), executor=concurrent)
    assert known == [True]


@pytest.mark.parametrize("races", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_timeout_against_the_end_of_a_coroutine_gives_one_outcome(races, concurrent):
    """Attempts end 5 ms before to 5 ms after their deadline; half of them with an error."""
    rng = random.Random(races)

    async def sleep_and_end(seconds, n):
        await asyncio.sleep(seconds)
        if n % 2:
            raise ConnectionError("refused")
        return n

    ends = [0.02 + rng.uniform(-0.005, 0.005) for _ in range(races)]
    tasks = [Task(f"t{n}", functools.partial(sleep_and_end, end, n), timeout=0.02) for n, end in enumerate(ends)]
    finals = Finals()
    result = finished(DAG("race", tasks=tasks), executor=concurrent, fail_fast=False, observers=[finals])
    finals.check(result)
    for n, run in enumerate(result.tasks.values()):
        if run.state == "succeeded":
            assert (run.value, run.error) == (n, None)
        else:
            assert type(run.error) in (TaskTimeoutError, ConnectionError)
    assert result.abandoned_threads == 0


# ---------------------------------------------------------------- the first failure


def test_the_first_failure_cancels_running_coroutines_but_those_that_accept_one(concurrent):
    """bad fails when all others run
    doomed; first ─► keeper (all_done), which goes on; never ─► below start too late; bad ─► under, alert (one_failed)
    """
    doomed, keeping = Hanging(), threading.Event()

    async def keeper(first):
        keeping.set()
        await until(lambda: doomed.ends)
        return "kept"

    async def bad():
        await until(lambda: keeping.is_set() and doomed.has_begun.is_set())
        raise ValueError("no")

    with DAG("etl") as dag:
        failing = Task(bad)
        failing >> Task("under", one)
        failing >> Task("alert", one, trigger="one_failed")
        held = Task("doomed", doomed)
        held >> Task("never", one) >> Task("below", one)
        Task("first", one) >> Task(keeper, trigger="all_done")
    finals = Finals()
    with pytest.raises(TaskExecutionError) as caught:
        dag.run(executor=concurrent, observers=[finals])
    result = caught.value.result
    assert states(result) == {
        "bad": "failed", "under": "upstream_failed", "alert": "succeeded", "doomed": "cancelled",
        "never": "cancelled", "below": "cancelled", "first": "succeeded", "keeper": "succeeded",
    }  # fmt: skip
    assert result["keeper"] == "kept"
    assert doomed.ends == ["CancelledError"]
    assert result.tasks["doomed"].reason == "task 'bad' failed"
    assert result.abandoned_threads == 0
    finals.check(result)


def test_a_failure_on_a_thread_cancels_coroutines(concurrent):
    doomed = Hanging()

    def bad():
        assert doomed.has_begun.wait(5)
        raise ValueError("no")

    result = finished(DAG("etl", tasks=[Task("doomed", doomed), Task(bad)]), executor=concurrent)
    assert states(result) == {"doomed": "cancelled", "bad": "failed"}


def test_a_failure_of_a_coroutine_is_heard_by_threads(concurrent):
    began = threading.Event()

    def listener(context):
        began.set()
        while not context.is_cancelled():
            time.sleep(0.001)
        context.check_cancelled()

    async def bad():
        await until(began.is_set)
        raise ValueError("no")

    result = finished(DAG("etl", tasks=[Task(listener), Task(bad)]), executor=concurrent)
    assert states(result) == {"listener": "cancelled", "bad": "failed"}


def failing_beside(*tasks):
    """Return a DAG of *tasks* and of one that fails when the first of them, which must be Hanging, has begun."""

    async def bad():
        await until(tasks[0].func.has_begun.is_set)
        raise ValueError("no")

    return DAG("etl", tasks=[*tasks, Task(bad)])


def test_a_cancelled_coroutine_has_the_time_to_tidy_up(concurrent):
    tidied = []

    class Tidy(Hanging):
        async def __call__(self):
            try:
                await super().__call__()
            finally:
                for _ in range(5):
                    await asyncio.sleep(0.001)
                tidied.append(1)

    result = finished(failing_beside(Task("tidy", Tidy())), executor=concurrent)
    assert (result.tasks["tidy"].state, tidied) == ("cancelled", [1])


def test_a_coroutine_that_ends_well_in_spite_of_a_cancel_keeps_its_result(concurrent):
    class Stubborn(Hanging):
        async def __call__(self):
            try:
                await super().__call__()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                return "done after all"

    result = finished(failing_beside(Task("stubborn", Stubborn())), executor=concurrent)
    assert result == {"stubborn": "done after all"}


def test_a_coroutine_that_fails_while_it_is_cancelled_has_failed(concurrent):
    class Clumsy(Hanging):
        async def __call__(self):
            try:
                await super().__call__()
            finally:
                raise OSError("while tidying up")

    result = finished(failing_beside(Task("clumsy", Clumsy(), retries=3)), executor=concurrent)
    assert states(result) == {"clumsy": "failed", "bad": "failed"}
    assert result.failed == ["bad", "clumsy"]
    assert result.tasks["clumsy"].attempts == 1


def test_after_a_failure_waiting_coroutines_do_not_start(concurrent):
    """bad and 20 others, one at a time; of these none starts"""
    ran = []

    async def other():
        ran.append(1)

    with DAG("etl") as dag:
        Task("bad", raising(ValueError("no")))
        for n in range(20):
            Task(f"t{n}", other)
    result = finished(dag, executor=concurrent, max_workers=1)
    assert ran == []
    assert Counter(states(result).values()) == {"failed": 1, "cancelled": 20}


def test_with_fail_fast_off_nobody_is_cancelled(concurrent):
    """bad; patient, which ends only after bad has"""
    failed = threading.Event()

    async def patient():
        await until(failed.is_set)
        return 1

    bad = Task("bad", raising(ValueError("no")), on_failure=lambda event: failed.set())
    assert finished(DAG("etl", tasks=[Task(patient), bad]), executor=concurrent, fail_fast=False) == {"patient": 1}


# ---------------------------------------------------------------- cancelling the run


def test_cancel_ends_coroutines_at_once(executor):
    """slow ─► below"""
    slow, finals = Hanging(), Finals()
    with DAG("etl") as dag:
        Task("slow", slow) >> Task("below", one)
    handle = dag.start(executor=executor, observers=[finals])
    assert slow.has_begun.wait(5)
    since = time.monotonic()
    handle.cancel("enough")
    result = cancelled(handle)
    assert time.monotonic() - since < SOON
    assert states(result) == {"slow": "cancelled", "below": "cancelled"}
    assert slow.ends == ["CancelledError"]
    assert result.abandoned_threads == 0
    assert result.tasks["slow"].reason == "enough"
    finals.check(result)


def test_cancel_ends_two_thousand_coroutines():
    meeting = threading.Barrier(2)
    count = itertools.count(1)

    async def wait():
        if next(count) == 2000:
            await asyncio.to_thread(meeting.wait, 5)
        await forever()

    handle = DAG("etl", tasks=[Task(f"t{n}", wait) for n in range(2000)]).start(executor="async")
    meeting.wait(10)
    handle.cancel()
    result = cancelled(handle)
    assert Counter(states(result).values()) == {"cancelled": 2000}
    assert result.abandoned_threads == 0


def test_cancel_stops_coroutines_that_accept_a_failure_too(executor):
    """first ─► slow (all_done)"""
    slow = Hanging()
    with DAG("etl") as dag:
        Task("first", one) >> Task("slow", slow, trigger="all_done")
    handle = dag.start(executor=executor)
    assert slow.has_begun.wait(5)
    handle.cancel()
    assert states(cancelled(handle)) == {"first": "succeeded", "slow": "cancelled"}


@pytest.mark.parametrize("event", [AttemptStarted, TaskSucceeded])
def test_cancel_from_an_observer_reaches_the_coroutine_that_is_about_to_begin(event, executor):
    """first ─► slow; the run is cancelled the moment that slow is announced, or that first has ended"""
    has_handle = threading.Event()

    async def slow(first):
        await asyncio.sleep(SOON + 1)

    def cancel(seen):
        if type(seen) is event and seen.task_name == ("slow" if event is AttemptStarted else "first"):
            has_handle.wait(5)
            handle.cancel("enough")

    with DAG("etl") as dag:
        Task("first", one) >> Task(slow)
    handle = dag.start(executor=executor, observers=[cancel])
    has_handle.set()
    since = time.monotonic()
    assert states(cancelled(handle)) == {"first": "succeeded", "slow": "cancelled"}
    assert time.monotonic() - since < SOON


def test_a_cancel_that_comes_while_the_loop_of_a_sequential_run_is_made_is_not_lost(mocker):
    """The first coroutine of a process has to wait for the import of asyncio, which is time enough."""
    has_handle, make = threading.Event(), asyncio.new_event_loop

    async def slow():
        await asyncio.sleep(SOON + 1)

    def make_late():
        has_handle.wait(5)
        handle.cancel("enough")
        return make()

    mocker.patch("asyncio.new_event_loop", make_late)
    handle = alone(slow).start(executor="sequential")
    since = time.monotonic()
    has_handle.set()
    assert states(cancelled(handle)) == {"t": "cancelled"}
    assert time.monotonic() - since < SOON


def test_a_coroutine_can_cancel_its_own_run(concurrent):
    """The cancel reaches it at its next await."""
    has_handle = threading.Event()

    async def wait():
        has_handle.wait(5)
        handle.cancel("from inside")
        await forever()

    handle = alone(wait).start(executor=concurrent)
    has_handle.set()
    assert states(cancelled(handle)) == {"t": "cancelled"}


def test_a_coroutine_that_swallows_cancellation_is_left_behind_and_counted(gate, concurrent):
    """deaf; beside, which listens"""
    deaf_began, beside = threading.Event(), Hanging()

    async def deaf():
        deaf_began.set()
        while not gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except BaseException:
                continue
        return "too late"

    finals = Finals()
    handle = DAG("etl", tasks=[Task(deaf), Task("beside", beside)]).start(executor=concurrent, observers=[finals])
    assert deaf_began.wait(5)
    assert beside.has_begun.wait(5)
    since = time.monotonic()
    handle.cancel("enough")
    result = cancelled(handle)
    assert time.monotonic() - since < SOON
    assert states(result) == {"deaf": "cancelled", "beside": "cancelled"}
    assert result.abandoned_threads == 1
    before = result.to_dict()
    gate.set()
    wait_for_loops()
    assert result.to_dict() == before
    finals.check(result)


def test_a_coroutine_that_blocks_the_loop_is_left_behind_and_counted(gate, concurrent):
    """blocker, and a coroutine that waits beside it and cannot hear of the cancel"""
    blocking, waiting = threading.Event(), Hanging()

    async def blocker():
        await until(waiting.has_begun.is_set)
        blocking.set()
        gate.wait(60)

    finals = Finals()
    handle = DAG("etl", tasks=[Task(blocker), Task("waiting", waiting)]).start(executor=concurrent, observers=[finals])
    assert blocking.wait(5)
    since = time.monotonic()
    handle.cancel("enough")
    result = cancelled(handle)
    assert time.monotonic() - since < SOON
    assert states(result) == {"blocker": "cancelled", "waiting": "cancelled"}
    assert result.abandoned_threads == 1
    finals.check(result)


def test_a_coroutine_whose_thread_does_not_end_does_not_hold_the_run(gate, concurrent):
    """It waits for asyncio.to_thread, and cancelling ends the wait but not the thread."""
    began = threading.Event()

    def stuck():
        began.set()
        gate.wait(60)

    async def wait():
        await asyncio.to_thread(stuck)

    handle = alone(wait).start(executor=concurrent)
    assert began.wait(5)
    since = time.monotonic()
    handle.cancel()
    assert states(cancelled(handle)) == {"t": "cancelled"}
    assert time.monotonic() - since < SOON


def test_cancel_ends_a_coroutines_wait_for_its_retry(executor):
    failed = threading.Event()
    dag = alone(raising(ConnectionError()), retries=1, delay=1000, max_delay=1e6, on_retry=lambda event: failed.set())
    handle = dag.start(executor=executor)
    assert failed.wait(5)
    handle.cancel()
    assert states(cancelled(handle)) == {"t": "cancelled"}


def test_cancel_ends_a_coroutines_wait_for_a_place_and_for_a_limit(concurrent):
    """slow has the only place of one kind, and the only limit"""
    slow = Hanging()
    with DAG("etl") as dag:
        Task("slow", slow, uses="api")
        Task("for_place", one)
        Task("for_limit", lambda: 1, uses="api")
    handle = dag.start(executor=concurrent, max_workers={"async": 1}, limits={"api": 1})
    assert slow.has_begun.wait(5)
    handle.cancel()
    result = cancelled(handle)
    assert set(states(result).values()) == {"cancelled"}
    assert [run.attempts for run in result.tasks.values()] == [1, 0, 0]


def test_the_timeout_of_a_run_cancels_its_coroutines(concurrent):
    slow, since = Hanging(), time.monotonic()
    with pytest.raises(RunTimeoutError) as caught:
        alone(slow).run(executor=concurrent, timeout=0.1)
    assert time.monotonic() - since < SOON
    assert states(caught.value.result) == {"t": "cancelled"}
    assert slow.ends == ["CancelledError"]


def test_the_timeout_of_a_run_counts_the_backoff_of_coroutines(clock, executor):
    dag = alone(raising(ConnectionError()), retries=10**6, delay=60, backoff=1, jitter=0)
    with pytest.raises(RunTimeoutError):
        clock.run(dag, executor=executor, timeout=3600)
    assert 3600 <= clock.now() < 3700


@pytest.mark.parametrize("rounds", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_cancel_against_the_end_of_a_run_gives_one_answer(rounds, concurrent):
    """a (async) ─► b ─► c (async): whoever is first, and never both"""
    with DAG("etl") as dag:
        Task("a", one) >> Task("b", lambda a: a) >> Task("c", one)
    for n in range(rounds):
        finals = Finals()
        handle = dag.start(executor=concurrent, observers=[finals])
        time.sleep(0.0003 * (n % 10))
        handle.cancel("race")
        try:
            result = handle.result(10)
        except RunCancelledError as error:
            result = error.result
            assert result.state == "cancelled"
        else:
            assert result == {"a": 1, "b": 1, "c": 1}
        finals.check(result)
        assert result.abandoned_threads == 0


# ---------------------------------------------------------------- what is left over


def test_background_tasks_that_a_coroutine_leaves_are_cancelled_at_the_end(executor, no_warnings):
    """careless ─► after, during which the background task goes on"""
    ended = []

    async def background():
        try:
            await forever()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def careless():
        kept.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    async def after(careless):
        await asyncio.sleep(0)
        return not ended

    kept = []
    with DAG("etl") as dag:
        Task(careless) >> Task(after)
    assert dag.run(executor=executor)["after"] is True
    assert ended == ["cancelled"]


def test_an_async_generator_that_a_coroutine_leaves_half_read_is_closed(executor, no_warnings):
    closed = []

    async def numbers():
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(1)

    async def careless():
        kept.append(numbers())
        return await anext(kept[0])

    kept = []
    assert alone(careless).run(executor=executor) == {"t": 1}
    assert closed == [1]


def test_a_coroutine_can_start_a_process_of_its_own(executor, no_warnings):
    async def work():
        child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "print(7)", stdout=-1)
        said, _ = await child.communicate()
        return int(said), child.returncode

    assert alone(work).run(executor=executor) == {"t": (7, 0)}


def test_a_thread_that_a_coroutine_leaves_behind_does_not_hold_the_run(gate, executor):
    """It goes on with something that nobody waits for."""
    began = threading.Event()

    async def careless():
        asyncio.get_running_loop().run_in_executor(None, lambda: began.set() or gate.wait(60))
        await until(began.is_set)
        return 1

    since = time.monotonic()
    assert alone(careless).run(executor=executor) == {"t": 1}
    assert time.monotonic() - since < SOON


def test_a_background_task_that_swallows_its_cancellation_does_not_hold_the_run(gate, executor):
    async def deaf():
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)

    async def careless():
        kept.append(asyncio.create_task(deaf()))
        await asyncio.sleep(0)
        return 1

    kept, since = [], time.monotonic()
    assert alone(careless).run(executor=executor) == {"t": 1}
    assert time.monotonic() - since < SOON
    gate.set()
    wait_for_loops()


def test_many_calls_of_threads_by_coroutines_are_all_made(executor):
    """200 of them, some at once: more than there are threads for them"""

    async def work(n):
        return sum(await asyncio.gather(*(asyncio.to_thread(lambda k: k, n + k) for k in range(10))))

    result = DAG("etl", tasks=[Task(f"t{n}", functools.partial(work, n)) for n in range(20)]).run(executor=executor)
    assert result == {f"t{n}": 10 * n + 45 for n in range(20)}


def test_two_hundred_runs_leave_no_thread_and_no_file_descriptor(executor):
    """a (async) ─► b ─► c (async)"""
    with DAG("etl") as dag:
        Task("a", one) >> Task("b", lambda a: a) >> Task("c", one)
    dag.run(executor=executor)
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(200):
        assert dag.run(executor=executor)["c"] == 1
    assert threading.active_count() == threads
    assert not fds or len(os.listdir("/proc/self/fd")) == fds


def test_runs_that_fail_and_runs_that_time_out_leave_nothing(executor):
    threads = threading.active_count()
    for _ in range(20):
        finished(alone(raising(ValueError("no"))), executor=executor)
        if executor != "sequential":
            finished(alone(forever, timeout=0.005), executor=executor)
    assert threading.active_count() == threads


@pytest.mark.parametrize("has_handler", [False, True])
def test_the_current_event_loop_of_the_caller_stays_what_it_was(executor, has_handler):
    """A program from before ``asyncio.run`` has set a loop that it will run later."""
    found = []

    async def work(context):
        if has_handler:
            context.add_cleanup_handler(one)
            raise ValueError("no")

    def main():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            finished(alone(work), executor=executor)
            try:
                found.append(asyncio.get_event_loop() is loop)
            except RuntimeError as error:
                found.append(str(error))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(10)
    assert found == [True]


# ---------------------------------------------------------------- cleanup handlers


def cleaning(calls, ending):
    """Return the coroutines a ─► b, which add the handlers a, b1 (async) and b2, and of which b ends by *ending*."""

    async def handler():
        await asyncio.sleep(0)
        calls.append("b1")

    async def a(context):
        context.add_cleanup_handler(lambda: calls.append("a"))

    async def b(a, context):
        context.add_cleanup_handler(handler)
        context.add_cleanup_handler(lambda: calls.append("b2"))
        await ending()

    with DAG("etl") as dag:
        Task(a) >> Task(b)
    return dag


def test_cleanup_handlers_of_coroutines_run_after_a_failure_last_added_first(executor, no_warnings):
    calls = []
    finished(cleaning(calls, raising(ValueError("no"))), executor=executor)
    assert calls == ["b2", "b1", "a"]


def test_cleanup_handlers_of_coroutines_run_after_a_cancel(executor, no_warnings):
    calls, hanging = [], Hanging()
    handle = cleaning(calls, hanging).start(executor=executor)
    assert hanging.has_begun.wait(5)
    handle.cancel()
    cancelled(handle)
    assert calls == ["b2", "b1", "a"]


def test_cleanup_handlers_of_coroutines_do_not_run_after_a_success(executor):
    calls = []
    cleaning(calls, one).run(executor=executor)
    assert calls == []


def test_cleanup_handlers_run_after_the_coroutines_have_ended(executor):
    calls = []

    async def work(context):
        context.add_cleanup_handler(lambda: calls.append("handler"))
        try:
            began.set()
            await forever()
        finally:
            await asyncio.sleep(0)
            calls.append("coroutine")

    began = threading.Event()
    handle = alone(work).start(executor=executor)
    assert began.wait(5)
    handle.cancel()
    cancelled(handle)
    assert calls == ["coroutine", "handler"]


def test_cleanup_handlers_run_after_a_coroutine_was_left_behind(gate, concurrent):
    calls, began = [], threading.Event()

    async def blocker(context):
        context.add_cleanup_handler(lambda: calls.append("handler"))
        began.set()
        gate.wait(60)

    handle = alone(blocker).start(executor=concurrent)
    assert began.wait(5)
    handle.cancel()
    cancelled(handle)
    assert calls == ["handler"]


# ---------------------------------------------------------------- events and callbacks


def test_events_of_a_coroutine_come_once_and_in_order(clock, executor):
    """flaky (async) fails once ─► after"""
    events = []

    async def flaky(context):
        await asyncio.sleep(0)
        if context.attempt == 1:
            raise ConnectionError
        return 1

    with DAG("etl") as dag:
        Task(flaky, retries=1, delay=5, jitter=0) >> Task("after", lambda flaky: flaky)
    clock.run(dag, executor=executor, observers=[events.append])
    own = [type(event).__name__ for event in events]
    assert own == [
        "RunStarted", "AttemptStarted", "AttemptFailed", "AttemptStarted", "TaskSucceeded",
        "AttemptStarted", "TaskSucceeded", "RunFinished",
    ]  # fmt: skip
    failed = next(event for event in events if isinstance(event, AttemptFailed))
    assert (failed.task_name, failed.attempt, failed.max_attempts, failed.retry_in) == ("flaky", 1, 2, 5.0)
    assert all(a.time <= b.time for a, b in itertools.pairwise(events))


def test_every_kind_of_end_of_a_coroutine_is_told_once(executor):
    """good, bad ─► under, skipped"""
    finals = Finals()
    with DAG("etl") as dag:
        Task("good", one)
        Task("bad", raising(ValueError("no"))) >> Task("under", one)
        Task("skipped", raising(Skip()))
    result = finished(dag, executor=executor, fail_fast=False, observers=[finals])
    finals.check(result)
    assert Counter(states(result).values()) == {"succeeded": 1, "failed": 1, "upstream_failed": 1, "skipped": 1}


def test_observers_are_called_one_at_a_time_from_loop_and_threads(concurrent):
    """50 coroutines and 50 functions"""
    inside, most, events = [], [], []

    def observer(event):
        inside.append(1)
        most.append(len(inside))
        events.append(event)
        time.sleep(0)
        inside.pop()

    tasks = [Task(f"t{n}", one if n % 2 else lambda: 1) for n in range(100)]
    DAG("etl", tasks=tasks).run(executor=concurrent, observers=[observer])
    assert set(most) == {1}
    assert sum(isinstance(event, TaskSucceeded) for event in events) == 100


def test_callbacks_of_coroutines_are_called(executor):
    heard = []

    async def flaky(context):
        if context.attempt == 1:
            raise ConnectionError
        return 1

    note = dict.fromkeys(("on_success", "on_failure", "on_retry"), heard.append)
    tasks = [Task(flaky, retries=1, delay=0, **note), Task("bad", raising(ValueError()), **note)]
    finished(DAG("etl", tasks=tasks), executor=executor, fail_fast=False)
    found = {(event.task_name, type(event)) for event in heard}
    assert found == {("flaky", AttemptFailed), ("flaky", TaskSucceeded), ("bad", TaskFailed)}
    assert len(heard) == 3


def test_a_broken_observer_does_not_disturb_coroutines(executor, caplog):
    def broken(event):
        raise SystemExit("from the observer")

    assert DAG("etl", tasks=[Task(f"t{n}", one) for n in range(5)]).run(executor=executor, observers=[broken]).ok
    assert len(caplog.records) == 1


def test_a_snapshot_shows_a_coroutine_that_runs(concurrent):
    """slow ─► below"""
    slow = Hanging()
    with DAG("etl") as dag:
        Task("slow", slow) >> Task("below", one)
    handle = dag.start(executor=concurrent)
    assert slow.has_begun.wait(5)
    snapshot = handle.snapshot()
    assert states(snapshot) == {"slow": "running", "below": "pending"}
    assert snapshot.tasks["slow"].worker == "loop"
    handle.cancel()
    cancelled(handle)


# ---------------------------------------------------------------- runs inside of each other and side by side


def test_a_run_inside_of_a_coroutine_has_workers_of_its_own(executor):
    """Five runs inside each other, each with one worker of each kind"""

    def nested(depth):
        async def inner():
            await asyncio.sleep(0)
            return depth if depth == 5 else nested(depth + 1)

        return alone(inner).run(executor=executor, max_workers=1)["t"]

    assert nested(1) == 5


def test_a_run_inside_of_a_coroutine_has_a_context_of_its_own(executor):
    async def inner():
        return current_context().run_id

    async def outer():
        before = current_context().run_id
        found = alone(inner).run(executor=executor)["t"]
        return before == current_context().run_id != found

    assert alone(outer).run(executor=executor)["t"] is True


def test_runs_of_one_dag_with_coroutines_go_on_side_by_side(executor):
    async def ask(seed):
        await asyncio.sleep(0)
        return seed, current_context().run_id

    with DAG("etl") as dag:
        Task(ask) >> Task("after", lambda ask: ask[0])
    found = []

    def many(seed):
        for n in range(5):
            result = dag.run({"seed": 100 * seed + n}, executor=executor)
            found.append(result["ask"] == (100 * seed + n, result.run_id) and result["after"] == 100 * seed + n)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [True] * 40


def test_a_run_inside_of_a_running_loop_works_and_leaves_nothing_unawaited(executor, no_warnings):
    """It blocks that loop. a (async) ─► b ─► c (async); bad (async) fails, with an async handler"""

    async def bad(context):
        context.add_cleanup_handler(one)
        raise ValueError("no")

    with DAG("etl") as dag:
        Task("a", one) >> Task("b", lambda a: a) >> Task("c", one)
        Task(bad)

    async def notebook():
        here = asyncio.get_running_loop()
        result = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)
        assert asyncio.get_running_loop() is here
        await asyncio.sleep(0)
        return result

    assert asyncio.run(notebook()) == {"a": 1, "b": 1, "c": 1}


def test_a_run_in_the_background_of_a_running_loop_works(executor):
    async def notebook():
        handle = alone(one).start(executor=executor)
        await until(handle.done)
        return handle.result()

    assert asyncio.run(notebook()) == {"t": 1}


# ---------------------------------------------------------------- no thread to be had


def refuse(mocker, name, times):
    """Let the first *times* starts of a thread called *name* fail, as on a machine that has no more."""
    start, left = threading.Thread.start, [times]

    def start_or_refuse(thread):
        if thread.name.startswith(name) and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    mocker.patch.object(threading.Thread, "start", start_or_refuse)


@pytest.mark.parametrize("refused", ["flowkit-loop", "flowkit-thread"])
@pytest.mark.parametrize("order", ["function first", "coroutine first", "side by side"])
def test_a_run_that_gets_no_thread_of_one_kind_fails_and_does_not_hang(mocker, refused, order):
    """function ─► coroutine, coroutine ─► function, or both at once"""
    with DAG("etl") as dag:
        function, coroutine = Task("function", lambda *_: 1), Task("coroutine", one)
        if order == "function first":
            function >> coroutine
        elif order == "coroutine first":
            coroutine >> function
    refuse(mocker, refused, 99)
    handle = dag.start()
    try:
        with pytest.raises(FlowkitError, match=r"cannot start a thread .*can't start new thread"):
            handle.result(SOON)
    except TimeoutError:
        pytest.fail(f"the run hangs: {states(handle.snapshot())}")
    finally:
        handle.cancel()


# ---------------------------------------------------------------- processes of their own


def is_interrupted(process):
    """Whether *process* ended as one does that a Ctrl-C ends: by SIGINT, which a shell reports as exit code 130."""
    return process.returncode in (-signal.SIGINT, 130)


STUCK = {
    "waits": "await asyncio.sleep(say_ready() or 60)",
    "blocks": "time.sleep(say_ready() or 60)",
    "swallows": "while True:\n        try: await asyncio.sleep(say_ready() or 60)\n        except BaseException: pass",
    "waits for a thread": "await asyncio.to_thread(lambda: time.sleep(say_ready() or 60))",
}


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C on Windows")
@pytest.mark.parametrize("how", STUCK)
def test_ctrl_c_ends_a_process_whose_coroutine_takes_a_minute(script, how, concurrent):
    process = script(f"""
import asyncio, time
from flowkit import DAG, Task
def say_ready():
    print("ready", flush=True)
async def slow():
    {STUCK[how]}
DAG("etl", tasks=[Task(slow)]).run(executor={concurrent!r})
""")
    process.wait_for("ready")
    process.interrupt()
    done = process.finish()
    assert is_interrupted(done), done.err
    assert done.seconds < SOON
    assert "KeyboardInterrupt" in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C on Windows")
@pytest.mark.parametrize("how", ["waits", "blocks", "waits for a thread"])
def test_ctrl_c_ends_a_sequential_coroutine(script, how):
    """and its cleanup handlers run"""
    process = script(f"""
import asyncio, time
from flowkit import DAG, Task
def say_ready():
    print("ready", flush=True)
async def tidy():
    await asyncio.sleep(0)
    print("tidied", flush=True)
async def slow(context):
    context.add_cleanup_handler(tidy)
    {STUCK[how]}
DAG("etl", tasks=[Task(slow)]).run(executor="sequential")
""")
    process.wait_for("ready")
    process.interrupt()
    process.wait_for("tidied")
    done = process.finish()
    assert is_interrupted(done), done.err
    assert done.seconds < SOON
    assert "Task was destroyed" not in done.err
    assert "never awaited" not in done.err


def test_a_coroutine_that_is_stuck_in_the_background_does_not_keep_the_process(script, concurrent):
    done = script(f"""
import threading, time
from flowkit import DAG, Task
ready = threading.Event()
async def stuck():
    ready.set()
    time.sleep(60)
DAG("etl", tasks=[Task(stuck)]).start(executor={concurrent!r})
ready.wait()
""").finish()
    assert done.returncode == 0, done.err
    assert done.seconds < SOON


@pytest.mark.parametrize("executor", ["thread", "async", "sequential"])
def test_a_run_of_plain_functions_does_not_import_asyncio(script, executor):
    """Its retries, timeouts, conditions and cleanup handlers included."""
    done = script(f"""
import sys
from flowkit import DAG, Task
def flaky(context):
    context.add_cleanup_handler(lambda: print("cleaned"))
    if context.attempt == 1:
        raise ValueError("no")
def bad(t):
    raise ValueError("no")
with DAG("etl") as dag:
    Task("t", flaky, retries=1, delay=0, timeout=60, when=lambda: True) >> Task(bad)
assert "asyncio" not in sys.modules
dag.run(executor={executor!r}, raise_on_failure=False, max_workers={{"thread": 2}})
dag.start(executor={executor!r}, raise_on_failure=False).result()
print("asyncio" in sys.modules)
""").finish()
    assert done.returncode == 0, done.err
    assert done.out.split() == ["cleaned"] * 4 + ["False"]


def test_runs_are_clean_under_the_debug_mode_of_asyncio(script, monkeypatch, executor):
    """Warnings are errors, and slow callbacks or calls from the wrong thread would be told."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    done = script(f"""
import asyncio
from flowkit import DAG, Task
async def one(*_):
    await asyncio.sleep(0)
    return 1
async def slow():
    await asyncio.sleep(60)
with DAG("etl") as dag:
    Task("a", one) >> Task("b", lambda a: a) >> [Task(f"t{{n}}", one) for n in range(50)] >> Task("last", one)
for _ in range(3):
    assert dag.run(executor={executor!r}).ok
if {executor!r} != "sequential":
    assert DAG("slow", tasks=[Task(slow, timeout=0.01)]).run(executor={executor!r}, raise_on_failure=False).failed
print("done")
""").finish()
    assert (done.returncode, done.out, done.err) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_that_a_coroutine_forks_ends(script, concurrent):
    """The child has no part in the run, and does not stay behind as a process that waits for ever."""
    done = script(f"""
import os, time, warnings
from flowkit import DAG, Task
warnings.simplefilter("ignore")
parent = os.getpid()
async def work():
    return os.fork()
result = DAG("etl", tasks=[Task("t", work)]).run(executor={concurrent!r})
if os.getpid() != parent:
    os._exit(7)
deadline = time.monotonic() + 3
while time.monotonic() < deadline:
    if os.waitpid(result["t"], os.WNOHANG)[0]:
        print("ended")
        break
    time.sleep(0.01)
else:
    os.kill(result["t"], 9)
    print("stays")
""").finish()
    assert done.returncode == 0, done.err
    assert done.out == "ended\n"


# ---------------------------------------------------------------- against the reference model


def build_mixed(plans, clock, calls, is_coroutine):
    """Return a DAG of tasks that behave as *plans* say, those at the positions in *is_coroutine* as coroutines."""
    raised = {
        "fail": lambda: ConnectionError("refused"),
        "skip": lambda: Skip("nothing to do"),
        "give_up": lambda: GiveUp("no use"),
        "exit": lambda: SystemExit(3),
        "retry_after": lambda: RetryAfter(7),
    }

    def begin(plan, numbers):
        attempt = next(numbers)
        assert current_context().attempt == attempt
        calls.append((plan.name, attempt))
        outcome = plan.script[min(attempt, len(plan.script)) - 1]
        return attempt, outcome, 2 * TIMEOUT if outcome == "timeout" else plan.length

    def end(plan, attempt, outcome, given):
        if outcome in raised:
            raise raised[outcome]()
        return value_of(plan.name, attempt, given)

    def make(plan, is_async):
        numbers = itertools.count(1)

        def function(*given):
            attempt, outcome, seconds = begin(plan, numbers)
            clock.sleep(seconds)
            return end(plan, attempt, outcome, given)

        async def coroutine(*given):
            attempt, outcome, seconds = begin(plan, numbers)
            if seconds:
                await clock.sleep_async(seconds)
            return end(plan, attempt, outcome, given)

        def condition():
            if plan.when == "raises":
                raise LookupError(plan.name)
            return plan.when

        return Task(
            plan.name, coroutine if is_async else function, trigger=plan.rule, retries=plan.retries,
            when=None if plan.when is None else condition, delay=plan.delay, backoff=plan.backoff, jitter=plan.jitter,
            max_delay=plan.max_delay, timeout=TIMEOUT if "timeout" in plan.script else None,
        )  # fmt: skip

    tasks = {plan.name: make(plan, n in is_coroutine) for n, plan in enumerate(plans)}
    for plan in plans:
        for name in plan.upstream:
            tasks[name] >> tasks[plan.name]
    return DAG("random", tasks=list(tasks.values()))


def compare_with_model(plans, is_coroutine, executor, max_workers, is_watched):
    clock, calls, finals = VirtualClock(), [], Finals()
    dag = build_mixed(plans, clock, calls, is_coroutine)
    observers = [finals] * is_watched
    result = virtually(clock, dag, executor=executor, max_workers=max_workers, fail_fast=False, observers=observers)
    state, attempts, value = predict(plans)
    assert states(result) == state
    assert {name: run.attempts for name, run in result.tasks.items()} == attempts
    assert result == {name: value[name] for name in state if state[name] == "succeeded"}
    assert Counter(calls) == {(name, n): 1 for name in attempts for n in range(1, attempts[name] + 1)}
    if is_watched:
        finals.check(result)


mixed_graph = {
    "plans": graphs(),
    "is_coroutine": st.sampled_from([set(range(12)), set(range(0, 12, 2)), set(range(1, 12, 2)), {0, 1, 2, 3}]),
    "executor": st.sampled_from(["thread", "async"]),
    "max_workers": st.sampled_from([None, 1, 2]),
    "is_watched": st.booleans(),
}


@given(**mixed_graph)
@settings(max_examples=150, deadline=None)
def test_a_mixed_run_gives_what_the_model_says(plans, is_coroutine, executor, max_workers, is_watched):
    compare_with_model(plans, is_coroutine, executor, max_workers, is_watched)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))
@given(**mixed_graph)
@settings(max_examples=500, deadline=None)
def test_a_mixed_run_gives_what_the_model_says_ten_thousand_times(
    plans, is_coroutine, executor, max_workers, is_watched, part
):
    compare_with_model(plans, is_coroutine, executor, max_workers, is_watched)


# ---------------------------------------------------------------- the pool, with a fake run


def is_out_of_sight(pool):
    """Return whether *pool* looks quiet from another thread: nothing works in it, nothing is about to start."""
    seen = []
    look = threading.Thread(target=lambda: seen.append(bool(pool.working()) or pool.is_starting()))
    look.start()
    look.join(0.5)  # one that has to wait has not seen a quiet pool
    return seen == [False]


def test_an_id_that_is_taken_from_the_queue_is_never_out_of_sight():
    """A virtual clock that looks just then would jump past whatever the attempt arms."""
    looks = []

    class Lying(deque):
        def popleft(self):
            i = super().popleft()
            looks.append(is_out_of_sight(pool))
            return i

    run = FakeRun([[], [0]])
    pool = CoroutinePool(run, None)
    pool._ready = Lying()
    pool.add([0])
    assert run.finished.wait(5)
    pool.close()
    assert looks
    assert not any(looks)


def test_an_id_that_became_ready_on_the_loop_is_never_out_of_sight():
    """0 ─► 1: when 0 is put away, 1 must be seen already."""
    looks = []

    class Lying(dict):
        def __delitem__(self, worker):
            super().__delitem__(worker)
            looks.append(is_out_of_sight(pool))

        def pop(self, worker, *default):
            answer = super().pop(worker, *default)
            looks.append(is_out_of_sight(pool))
            return answer

    run = FakeRun([[], [0]])
    pool = CoroutinePool(run, None)
    pool._working = Lying()
    pool.add([0])
    assert run.finished.wait(5)
    pool.close()
    assert len(looks) == 2
    assert not looks[0]


def test_adding_nothing_starts_no_loop():
    before = threading.enumerate()
    pool = CoroutinePool(FakeRun([[]]), None)
    pool.add([])
    assert threading.enumerate() == before
    assert pool.close() == 0


def test_closing_a_pool_that_was_never_used_makes_no_loop():
    before = threading.enumerate()
    pool = CoroutinePool(FakeRun([[]]), None)
    pool.stop(lambda i: True, kills=True)
    assert pool.close() == 0
    assert threading.enumerate() == before


def test_what_waits_for_a_place_can_be_withdrawn(gate):
    """One place, taken by 0; 1, 2 and 3 wait"""
    inside = threading.Event()
    run = FakeRun([[]] * 4, {0: lambda: inside.set() or gate.wait(5)})
    pool = CoroutinePool(run, 1)
    pool.add([0, 1, 2, 3])
    assert inside.wait(5)
    assert pool.withdraw() == [1, 2, 3]
    assert pool.withdraw() == []
    gate.set()
    assert pool.close() == 0
    assert run.done == [0]


def test_in_a_stopped_run_only_what_the_run_admits_is_started():
    """0, 1, 2, of which the run admits 1 when it is stopped"""
    run = FakeRun([[], [], []])
    run.is_stopped, run.admitted = True, {1}
    pool = CoroutinePool(run, None)
    pool.add([0, 1, 2])
    assert run.finished.wait(5)
    pool.close()
    assert set(run.threads) == {1}
    assert {type(error).__name__ for error in run.errors.values()} == {"NotStartedError"}


def test_an_attempt_that_is_cancelled_before_it_has_begun_is_told_all_the_same(gate):
    """0 blocks the loop; meanwhile 1 is added and cancelled, so that both reach the loop in one turn of it."""
    inside = threading.Event()
    run = FakeRun([[], []], {0: lambda: inside.set() or gate.wait(5)})
    pool = CoroutinePool(run, None)
    pool.add([0])
    assert inside.wait(5)
    pool.add([1])
    pool.stop(lambda i: i == 1, kills=True)
    gate.set()
    assert run.finished.wait(5)
    pool.close()
    assert run.done == [0, 1]


def test_whoever_wants_to_know_is_told_that_nothing_is_left():
    told = threading.Event()
    pool = CoroutinePool(FakeRun([[]]), None, on_idle=told.set)
    pool.add([0])
    assert told.wait(5)
    assert pool.working() == []
    pool.close()


def test_ids_added_from_many_threads_are_all_made():
    run = FakeRun([[]] * 800)
    pool = CoroutinePool(run, 7)
    threads = [threading.Thread(target=lambda k=k: [pool.add([i]) for i in range(k, 800, 8)]) for k in range(8)]
    for thread in threads:
        thread.start()
    assert run.finished.wait(10)
    for thread in threads:
        thread.join()
    pool.close()
    assert sorted(run.done) == list(range(800))
