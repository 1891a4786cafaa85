"""``await dag.arun()``: a run inside of a running event loop, which goes on meanwhile.

Every test runs a loop of its own by ``asyncio.run``; the caller of ``arun`` is the coroutine given to it.
"""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import os
import signal
import sys
import threading
import time
import warnings

import pytest

from flowkit import (
    DAG,
    AttemptStarted,
    BindingError,
    ConditionError,
    DAGExecutionError,
    FlowkitError,
    OptionError,
    RunCancelledError,
    RunFinished,
    RunTimeoutError,
    Task,
    TaskExecutionError,
    TaskNotFoundError,
    TaskSucceeded,
    TaskTimeoutError,
    current_context,
)
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
def gate():
    """An event that threads may be blocked by; it is set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
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


async def one(*_):
    await asyncio.sleep(0)
    return 1


async def forever(*_):
    await asyncio.Event().wait()


def fail(*_):
    raise ValueError("no")


async def fail_async(*_):
    await asyncio.sleep(0)
    raise ValueError("no")


def mixed():
    """Return a ─► b ─► c and a ─► d, of which a and c are coroutines."""
    with DAG("etl") as dag:
        a = Task("a", one)
        a >> Task("b", lambda a: a + 1) >> Task("c", one)
        a >> Task("d", lambda a: a)
    return dag


class Hanging:
    """A coroutine function that waits until it is cancelled; for coroutines of the same loop.

    Attributes:
        ends: What it was woken with.
    """

    def __init__(self):
        self.has_begun = asyncio.Event()
        self.ends = []

    async def __call__(self, *_):
        try:
            self.has_begun.set()
            await forever()
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise


# ---------------------------------------------------------------- the same as run()


def test_arun_gives_what_run_gives(executor):
    dag = mixed()
    result = asyncio.run(dag.arun(executor=executor))
    assert result == dag.run(executor=executor) == {"a": 1, "b": 2, "c": 1, "d": 1}
    assert result.state == "succeeded"
    assert set(states(result).values()) == {"succeeded"}


def test_a_run_of_plain_functions_alone_and_one_of_nothing_work(executor):
    with DAG("etl") as dag:
        Task("a", lambda: 1) >> Task("b", lambda a: a + 1)
    assert asyncio.run(dag.arun(executor=executor)) == {"a": 1, "b": 2}
    assert asyncio.run(DAG("empty", tasks=[]).arun(executor=executor)) == {}


def test_it_takes_inputs_targets_and_the_defaults_of_the_dag(executor):
    """date ─► load; other, which is no target"""

    async def load(date, limit):
        return date, limit

    events = []
    dag = DAG("etl", tasks=[Task(load), Task("other", fail)], inputs={"limit": 3}, executor=executor)
    result = asyncio.run(dag.arun({"date": "today"}, targets=["load"], observers=[events.append]))
    assert result == {"load": ("today", 3)}
    own = [type(event).__name__ for event in events]
    assert own == ["RunStarted", "AttemptStarted", "TaskSucceeded", "RunFinished"]


def test_nothing_happens_before_it_is_awaited():
    ran = []
    dag = alone(lambda: ran.append(1))

    async def main():
        coroutine = dag.arun()
        for _ in range(5):
            await asyncio.sleep(0)
        assert ran == []
        await coroutine
        assert ran == [1]

    asyncio.run(main())


def test_a_failure_is_raised_as_by_run(executor):
    """good; bad ─► under"""
    with DAG("etl") as dag:
        Task("good", one)
        Task("bad", fail_async) >> Task("under", one)

    async def main():
        with pytest.raises(TaskExecutionError, match="task 'bad' failed after 1 attempt") as caught:
            await dag.arun(executor=executor)
        return caught.value

    error = asyncio.run(main())
    assert (error.task_name, type(error.__cause__)) == ("bad", ValueError)
    assert states(error.result)["under"] == "upstream_failed"


def test_failures_are_raised_together_with_fail_fast_off_and_returned_on_request(executor):
    dag = DAG("etl", tasks=[Task("a", fail_async), Task("b", fail), Task("c", one)])

    async def main():
        with pytest.raises(DAGExecutionError) as caught:
            await dag.arun(executor=executor, fail_fast=False)
        assert sorted(error.task_name for error in caught.value.exceptions) == ["a", "b"]
        return await dag.arun(executor=executor, fail_fast=False, raise_on_failure=False)

    assert asyncio.run(main()) == {"c": 1}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("mine"), asyncio.CancelledError(), GeneratorExit()],
                         ids=lambda e: type(e).__name__)  # fmt: skip
def test_what_would_stop_the_callers_loop_is_the_failure_of_its_task(error, executor):
    """bad; good"""

    async def bad():
        await asyncio.sleep(0)
        raise error

    async def main():
        dag = DAG("etl", tasks=[Task(bad), Task("good", one)])
        result = await dag.arun(executor=executor, fail_fast=False, raise_on_failure=False)
        await asyncio.sleep(0)
        return result

    result = asyncio.run(main())
    assert states(result) == {"bad": "failed", "good": "succeeded"}
    assert result.tasks["bad"].error is error


def test_a_wrong_graph_or_argument_is_raised_and_nothing_runs():
    ran = []

    async def noting(rows):
        ran.append(rows)

    async def main():
        with pytest.raises(BindingError):
            await alone(noting).arun()
        with pytest.raises(OptionError, match=r"DAG\('etl'\)\.arun\(\): max_workers=0"):
            await alone(one).arun(max_workers=0)
        with pytest.raises(OptionError, match="must be one of 'thread', 'process', 'async', 'sequential'"):
            await alone(one).arun(executor="fiber")
        with pytest.raises(TypeError, match="no argument 'worker'"):
            await alone(one).arun(worker=3)
        with pytest.raises(TaskNotFoundError):
            await alone(one).arun(targets=["nobody"])
        with pytest.raises(OptionError, match="there is no such limit"):
            await alone(one, uses="api").arun()

    asyncio.run(main())
    assert ran == []


def test_conditions_retries_and_skips_work_on_the_callers_loop(executor):
    """never, broken; flaky fails twice"""
    attempts = itertools.count(1)

    async def flaky():
        if next(attempts) < 3:
            raise ConnectionError
        return "done"

    with DAG("etl") as dag:
        Task("never", one, when=lambda: False)
        Task("broken", one, when=lambda: 1 / 0)
        Task(flaky, retries=5, delay=3600, max_delay=3600)
    clock = VirtualClock()
    result = asyncio.run(dag.arun(executor=executor, fail_fast=False, raise_on_failure=False, _clock=clock))
    assert states(result) == {"never": "skipped", "broken": "failed", "flaky": "succeeded"}
    assert type(result.tasks["broken"].error) is ConditionError
    assert clock.now() > 7200


def test_the_timeout_of_a_task_cancels_it_and_the_next_attempt_may_be_in_time(concurrent):
    ends = []

    async def slow(context):
        if context.attempt == 1:
            try:
                await forever()
            finally:
                ends.append(asyncio.current_task().cancelling())
        return context.attempt

    result = asyncio.run(alone(slow, timeout=0.05, retries=1, delay=0).arun(executor=concurrent))
    assert (result["t"], result.abandoned_threads, ends) == (2, 0, [1])


def test_a_task_that_takes_too_long_fails_the_run(concurrent):
    with pytest.raises(TaskExecutionError) as caught:
        asyncio.run(alone(forever, timeout=0.05).arun(executor=concurrent))
    assert type(caught.value.__cause__) is TaskTimeoutError


def test_the_timeout_of_the_run_is_raised(concurrent):
    hanging = Hanging()
    since = time.monotonic()
    with pytest.raises(RunTimeoutError) as caught:
        asyncio.run(alone(hanging).arun(executor=concurrent, timeout=0.05))
    assert time.monotonic() - since < SOON
    assert states(caught.value.result) == {"t": "cancelled"}
    assert hanging.ends == ["CancelledError"]


def test_max_workers_and_limits_bound_coroutines_on_the_callers_loop(concurrent):
    inside, most = [], []

    async def work():
        inside.append(1)
        most.append(len(inside))
        for _ in range(3):
            await asyncio.sleep(0)
        inside.pop()

    async def main(**options):
        most.clear()
        dag = DAG("etl", tasks=[Task(f"t{n}", work, uses="api") for n in range(20)])
        await dag.arun(executor=concurrent, **{"limits": {"api": 100}, **options})
        return max(most)

    assert asyncio.run(main(max_workers=3)) == 3
    assert asyncio.run(main(max_workers={"async": 4})) == 4
    assert asyncio.run(main(limits={"api": 2})) == 2
    assert asyncio.run(main()) == 20


# ---------------------------------------------------------------- where things run


def test_coroutines_run_on_the_callers_loop_and_functions_somewhere_else(concurrent):
    """a (async) ─► b ─► c (async)"""

    async def here(*_):
        return asyncio.get_running_loop(), threading.current_thread()

    with DAG("etl") as dag:
        Task("a", here) >> Task("b", lambda a: threading.current_thread()) >> Task("c", here)

    async def main():
        result = await dag.arun(executor=concurrent)
        return result, (asyncio.get_running_loop(), threading.current_thread())

    result, caller = asyncio.run(main())
    assert result["a"] == result["c"] == caller
    assert result["b"].name.startswith("flowkit-thread-")
    assert (result.tasks["a"].worker, result.tasks["b"].worker) == ("loop", "thread-1")


def test_a_coroutine_can_use_what_the_caller_has_opened_on_its_loop(concurrent):
    """As a client of the caller's, here a queue and a future that the caller fills while the run goes on."""

    async def main():
        queue, future = asyncio.Queue(), asyncio.get_running_loop().create_future()

        async def work():
            future.set_result("hello")
            return await queue.get()

        running = asyncio.create_task(alone(work).arun(executor=concurrent))
        assert await future == "hello"
        await queue.put("answer")
        return await running

    assert asyncio.run(main()) == {"t": "answer"}


def test_functions_do_not_block_the_callers_loop(executor, gate):
    """A ticker goes on while a function waits for it to have ticked often enough."""

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                if ticks == 100:
                    gate.set()
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        result = await alone(lambda: gate.wait(10)).arun(executor=executor)
        ticker.cancel()
        return result

    assert asyncio.run(main()) == {"t": True}


def test_a_backoff_does_not_block_the_callers_loop(executor):
    async def main():
        ticks, attempts = [], []

        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0.001)

        async def flaky():
            attempts.append(len(ticks))
            if len(attempts) == 1:
                raise ConnectionError

        ticker = asyncio.create_task(tick())
        await alone(flaky, retries=1, delay=0.1, jitter=0).arun(executor=executor)
        ticker.cancel()
        return attempts

    first, second = asyncio.run(main())
    assert second - first >= 5  # of the hundred ticks that fit in


def test_a_sequential_run_takes_one_task_at_a_time(gate):
    """three coroutines and a function"""
    inside, most, threads = [], [], set()

    async def work():
        inside.append(1)
        most.append(len(inside))
        threads.add(threading.current_thread())
        for _ in range(3):
            await asyncio.sleep(0)
        inside.pop()

    def function():
        most.append(len(inside) + 1)
        threads.add(threading.current_thread())

    dag = DAG("etl", tasks=[Task("a", work), Task("b", work), Task("c", function), Task("d", work)])
    asyncio.run(dag.arun(executor="sequential"))
    assert set(most) == {1}
    assert len(threads) == 1


def test_the_callers_context_variables_are_visible_and_stay_what_they_are(executor):
    """a ─► b"""

    async def change(*_):
        before = request_id.get()
        request_id.set("changed")
        await asyncio.sleep(0)
        return before

    with DAG("etl") as dag:
        Task("a", change) >> Task("b", lambda a: request_id.get()) >> Task("c", change)

    async def main():
        request_id.set("17")
        result = await dag.arun(executor=executor)
        assert request_id.get() == "17"
        return set(result.values())

    assert asyncio.run(main()) == {"17"}


def test_two_calls_at_once_see_each_its_own_context_variables(executor):
    async def ask():
        await asyncio.sleep(0)
        return request_id.get()

    async def call(value):
        request_id.set(value)
        return (await alone(ask).arun(executor=executor))["t"]

    async def main():
        return await asyncio.gather(*(asyncio.create_task(call(str(n))) for n in range(10)))

    assert asyncio.run(main()) == [str(n) for n in range(10)]


def test_the_caller_itself_has_no_task_context(executor):
    """Not while the run goes on, and not after it."""

    async def main():
        running = asyncio.create_task(mixed().arun(executor=executor))
        while not running.done():
            with pytest.raises(FlowkitError, match="no task of a run is running here"):
                current_context()
            await asyncio.sleep(0)
        await running
        with pytest.raises(FlowkitError, match="no task of a run is running here"):
            current_context()

    asyncio.run(main())


def test_background_tasks_that_a_coroutine_leaves_go_on_on_the_callers_loop(concurrent):
    """The loop is the caller's, and so is what runs on it."""
    kept = []

    async def careless():
        kept.append(asyncio.create_task(one()))

    async def main():
        await alone(careless).arun(executor=concurrent)
        return await kept[0]

    assert asyncio.run(main()) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are never eager before 3.12")
@pytest.mark.parametrize("count", [1, 2000])
def test_a_loop_whose_tasks_begin_at_once_works_too(count, concurrent):
    """root ─► *count* coroutines that never wait ─► last; and one that waits"""

    async def never_waits(*given):
        return len(given)

    with DAG("etl") as dag:
        Task("root", never_waits) >> [Task(f"t{n}", never_waits) for n in range(count)] >> Task("last", never_waits)
        Task("waits", one)

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await asyncio.wait_for(dag.arun(executor=concurrent), 10)

    result = asyncio.run(main())
    assert (result["last"], result["waits"]) == (count, 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are never eager before 3.12")
def test_on_a_loop_whose_tasks_begin_at_once_coroutines_are_cancelled_too(concurrent):
    hanging = Hanging()

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        with pytest.raises(TaskExecutionError):
            await alone(hanging, timeout=0.05).arun(executor=concurrent)
        return hanging.ends

    assert asyncio.run(main()) == ["CancelledError"]


# ---------------------------------------------------------------- cancelling


async def start_and_cancel(dag, has_begun, **options):
    """Start *dag*, cancel ``arun`` when *has_begun* is set, and return the seconds that it took to end."""
    running = asyncio.create_task(dag.arun(**options))
    await asyncio.wait_for(has_begun.wait(), 5)
    since = time.monotonic()
    running.cancel("by the caller")
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    assert caught.value.args == ("by the caller",)
    return time.monotonic() - since


def test_cancelling_it_cancels_the_run_and_is_raised_again(concurrent):
    """slow ─► below"""
    events = []

    async def main():
        slow = Hanging()
        with DAG("etl") as dag:
            Task("slow", slow) >> Task("below", one)
        seconds = await start_and_cancel(dag, slow.has_begun, executor=concurrent, observers=[events.append])
        assert seconds < SOON
        assert slow.ends == ["CancelledError"]

    asyncio.run(main())
    kinds = [type(event).__name__ for event in events]
    assert kinds[-1] == "RunFinished"
    assert kinds.count("TaskCancelled") == 2
    assert events[-1].state == "cancelled"
    assert {event.reason for event in events if hasattr(event, "reason")} == {"what awaited it was cancelled"}


def test_cancelling_it_cancels_a_sequential_run_too():
    """Its coroutines run on a loop in another thread."""
    ends = []

    async def main():
        loop, has_begun = asyncio.get_running_loop(), asyncio.Event()

        async def slow():
            loop.call_soon_threadsafe(has_begun.set)
            try:
                await asyncio.sleep(SOON + 1)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        assert await start_and_cancel(alone(slow), has_begun, executor="sequential") < SOON

    asyncio.run(main())
    assert ends == ["cancelled"]


def test_cancelling_it_asks_threads_to_stop_and_does_not_block_the_loop_meanwhile(concurrent, gate):
    """deaf does not listen, and is left behind after the grace; a ticker goes on"""

    async def main():
        loop, has_begun, ticks = asyncio.get_running_loop(), asyncio.Event(), []

        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0.001)

        def deaf():
            loop.call_soon_threadsafe(has_begun.set)
            gate.wait(60)

        ticker = asyncio.create_task(tick())
        assert await start_and_cancel(alone(deaf), has_begun, executor=concurrent) < SOON
        ticker.cancel()
        return len(ticks)

    assert asyncio.run(main()) > 10


def test_cancelling_it_runs_the_cleanup_handlers_before_it_ends(executor):
    cleaned = []

    async def tidy():
        await asyncio.sleep(0.01)
        cleaned.append("async")

    async def main():
        loop, has_begun = asyncio.get_running_loop(), asyncio.Event()

        async def slow(context):
            context.add_cleanup_handler(lambda: cleaned.append("sync"))
            context.add_cleanup_handler(tidy)
            loop.call_soon_threadsafe(has_begun.set)
            await forever()

        await start_and_cancel(alone(slow), has_begun, executor=executor)
        return list(cleaned)

    assert asyncio.run(main()) == ["async", "sync"]


def test_cancelling_it_waits_for_coroutines_that_tidy_up(concurrent):
    async def main():
        has_begun, tidied = asyncio.Event(), []

        async def slow():
            try:
                has_begun.set()
                await forever()
            finally:
                for _ in range(5):
                    await asyncio.sleep(0.001)
                tidied.append(1)

        await start_and_cancel(alone(slow), has_begun, executor=concurrent)
        return tidied

    assert asyncio.run(main()) == [1]


def test_a_coroutine_that_swallows_cancellation_does_not_hold_the_caller(concurrent):
    async def main():
        has_begun, may_end = asyncio.Event(), asyncio.Event()
        left = []

        async def deaf():
            has_begun.set()
            left.append(asyncio.current_task())
            while not may_end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await may_end.wait()

        seconds = await start_and_cancel(alone(deaf), has_begun, executor=concurrent)
        may_end.set()
        await asyncio.wait(left, timeout=5)
        return seconds

    assert asyncio.run(main()) < SOON


def test_a_coroutine_that_blocks_the_callers_loop_does_not_keep_the_run_from_ending(concurrent, gate):
    """It is blocked until an observer is told of the end, which another thread brings about."""
    ends = []

    async def blocker():
        gate.wait(2 * SOON)

    def end(event):
        if isinstance(event, RunFinished):
            ends.append(event.state)
            gate.set()

    since = time.monotonic()
    with pytest.raises(RunTimeoutError):
        asyncio.run(alone(blocker).arun(executor=concurrent, timeout=0.05, observers=[end]))
    assert time.monotonic() - since < SOON
    assert ends == ["cancelled"]


def test_cancelling_it_before_it_has_begun_starts_nothing():
    ran = []

    async def main():
        running = asyncio.create_task(alone(lambda: ran.append(1)).arun())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert ran == []


def test_cancelling_it_twice_ends_it_at_once_and_the_run_soon(concurrent, gate):
    """The second cancel comes while the run waits for a thread that does not listen."""

    async def main():
        loop, has_begun = asyncio.get_running_loop(), asyncio.Event()

        def deaf():
            loop.call_soon_threadsafe(has_begun.set)
            gate.wait(60)

        running = asyncio.create_task(alone(deaf).arun(executor=concurrent))
        await has_begun.wait()
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    since = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - since < SOON
    for thread in threading.enumerate():  # the loop is closed before the run is over, which nobody hears of
        if thread.name == "flowkit-run":
            thread.join(5)
            assert not thread.is_alive()


def test_a_loop_that_ends_while_it_runs_ends_it_too(concurrent):
    """The caller goes home without waiting; asyncio.run cancels what is left."""
    hanging = []

    async def main():
        hanging.append(Hanging())
        kept.append(asyncio.create_task(alone(hanging[0]).arun(executor=concurrent)))
        await hanging[0].has_begun.wait()

    kept = []
    since = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - since < SOON
    assert kept[0].cancelled()
    assert hanging[0].ends[0] == "CancelledError"


def test_a_loop_that_is_closed_without_a_word_does_not_keep_the_run(concurrent, gate):
    """function, which goes on when the loop is gone ─► coroutine, which needs it"""
    began, kept = threading.Event(), []

    def function():
        began.set()
        gate.wait(10)

    with DAG("etl") as dag:
        Task(function) >> Task("coroutine", one)

    async def main():
        kept.append(asyncio.create_task(dag.arun(executor=concurrent)))
        while not began.is_set():  # noqa: ASYNC110 - set by a thread
            await asyncio.sleep(0.001)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    kept.pop()._log_destroy_pending = False  # that it was forgotten is the caller's doing, and here on purpose
    loop.close()
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("flowkit-"):
            thread.join(5)
            assert not thread.is_alive()


def test_under_asyncio_timeout_the_timeout_is_raised(concurrent):
    async def main():
        hanging = Hanging()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await alone(hanging).arun(executor=concurrent)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        return hanging.ends

    assert asyncio.run(main()) == ["CancelledError"]


def test_under_wait_for_the_timeout_is_raised(concurrent):
    async def main():
        hanging = Hanging()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alone(hanging).arun(executor=concurrent), 0.05)
        return hanging.ends

    assert asyncio.run(main()) == ["CancelledError"]


def test_under_asyncio_timeout_a_run_in_time_is_not_touched(executor):
    async def main():
        async with asyncio.timeout(30):
            return await mixed().arun(executor=executor)

    assert asyncio.run(main())["c"] == 1


def test_in_a_task_group_a_neighbours_failure_cancels_the_run(concurrent):
    async def main():
        hanging = Hanging()

        async def neighbour():
            await hanging.has_begun.wait()
            raise KeyError("neighbour")

        async def both():
            async with asyncio.TaskGroup() as group:
                group.create_task(alone(hanging).arun(executor=concurrent))
                group.create_task(neighbour())

        with pytest.raises(ExceptionGroup) as caught:
            await both()
        assert [type(error) for error in caught.value.exceptions] == [KeyError]
        return hanging.ends

    assert asyncio.run(main()) == ["CancelledError"]


def test_in_a_task_group_the_failure_of_a_run_cancels_the_neighbours(executor):
    async def main():
        hanging = Hanging()

        async def both():
            async with asyncio.TaskGroup() as group:
                group.create_task(hanging())
                await hanging.has_begun.wait()
                group.create_task(alone(fail_async).arun(executor=executor))

        with pytest.raises(ExceptionGroup) as caught:
            await both()
        assert [type(error) for error in caught.value.exceptions] == [TaskExecutionError]
        return hanging.ends

    assert asyncio.run(main()) == ["CancelledError"]


@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_cancel_against_the_end_gives_one_answer(rounds, executor):
    """Either the result, or CancelledError; and the loop goes on."""

    async def main():
        answers = set()
        dag = mixed()
        for n in range(rounds):
            running = asyncio.create_task(dag.arun(executor=executor))
            await asyncio.sleep(0.0002 * (n % 15))
            running.cancel()
            try:
                answers.add(len(await running))
            except asyncio.CancelledError:
                answers.add("cancelled")
        return answers

    assert asyncio.run(main()) <= {4, "cancelled"}


def test_a_coroutine_of_the_run_can_cancel_the_call(concurrent):
    async def main():
        async def treacherous():
            running.cancel()
            await forever()

        running = asyncio.create_task(alone(treacherous).arun(executor=concurrent))
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())


# ---------------------------------------------------------------- many, nested, side by side


def test_many_calls_at_once_on_one_loop(executor):
    """20 runs of one DAG whose coroutines and functions get different inputs"""

    async def double(x):
        await asyncio.sleep(0)
        return 2 * x

    with DAG("etl") as dag:
        Task(double) >> Task("after", lambda double: double + 1)

    async def main():
        return await asyncio.gather(*(dag.arun({"x": n}, executor=executor) for n in range(20)))

    results = asyncio.run(main())
    assert [result["after"] for result in results] == [2 * n + 1 for n in range(20)]
    assert len({result.run_id for result in results}) == 20


def test_two_runs_on_one_loop_can_wait_for_each_other(concurrent):
    async def main():
        first, second = asyncio.Event(), asyncio.Event()

        async def one_way():
            first.set()
            await second.wait()

        async def the_other():
            await first.wait()
            second.set()

        both = asyncio.gather(alone(one_way).arun(executor=concurrent), alone(the_other).arun(executor=concurrent))
        return await asyncio.wait_for(both, 5)

    assert [result.ok for result in asyncio.run(main())] == [True, True]


def test_one_dag_runs_on_the_loops_of_many_threads_at_once(executor):
    dag, found = mixed(), []

    def work():
        async def main():
            for _ in range(5):
                found.append((await dag.arun(executor=executor))["b"])

        asyncio.run(main())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [2] * 30


def test_one_run_fails_and_the_other_goes_on(executor):
    async def main():
        return await asyncio.gather(
            alone(fail_async).arun(executor=executor), mixed().arun(executor=executor), return_exceptions=True
        )

    error, result = asyncio.run(main())
    assert type(error) is TaskExecutionError
    assert result["c"] == 1


def test_a_run_inside_of_a_coroutine_of_a_run(executor):
    """Five runs inside each other, each with one worker of each kind, and all on the caller's loop if they can be"""

    async def nested(depth):
        async def inner():
            await asyncio.sleep(0)
            return (depth, current_context().run_id) if depth == 5 else await nested(depth + 1)

        result = await alone(inner).arun(executor=executor, max_workers=1)
        assert result.tasks["t"].state == "succeeded"
        return result["t"]

    assert asyncio.run(nested(1))[0] == 5


def test_arun_inside_of_a_coroutine_of_run(executor):
    async def outer():
        return await mixed().arun(executor=executor), current_context().task_name

    inner, name = alone(outer).run(executor=executor)["t"]
    assert (inner["c"], name) == (1, "t")


def test_cancelling_the_outer_run_cancels_the_inner_one(concurrent):
    async def main():
        hanging = Hanging()

        async def outer():
            await alone(hanging).arun(executor=concurrent)

        await start_and_cancel(alone(outer), hanging.has_begun, executor=concurrent)
        return hanging.ends

    assert asyncio.run(main()) == ["CancelledError"]


def test_arun_inside_of_run_inside_of_arun(concurrent):
    """A coroutine runs a graph whose function, on a thread, has a loop of its own for a third one."""

    async def middle():
        inner = DAG("inner", tasks=[Task("i", lambda: asyncio.run(mixed().arun(executor=concurrent))["c"])])
        return inner.run(executor=concurrent)["i"]

    async def main():
        return (await alone(middle).arun(executor=concurrent))["t"]

    assert asyncio.run(main()) == 1


def test_a_handle_can_be_used_beside_it(concurrent):
    """start() in the background of the same loop, with workers and a loop of its own"""

    async def loop():
        return asyncio.get_running_loop()

    async def main():
        handle = alone(loop).start(executor=concurrent)
        here = await alone(loop).arun(executor=concurrent)
        return handle.result(5)["t"] is not asyncio.get_running_loop(), here["t"] is asyncio.get_running_loop()

    assert asyncio.run(main()) == (True, True)


def test_events_are_told_one_at_a_time_and_in_order(concurrent):
    """50 coroutines and 50 functions"""
    inside, most, events = [], [], []

    def observer(event):
        inside.append(1)
        most.append(len(inside))
        events.append(event)
        inside.pop()

    tasks = [Task(f"t{n}", one if n % 2 else lambda: 1) for n in range(100)]
    asyncio.run(DAG("etl", tasks=tasks).arun(executor=concurrent, observers=[observer]))
    assert set(most) == {1}
    for kind in (AttemptStarted, TaskSucceeded):
        assert sum(type(event) is kind for event in events) == 100


def test_two_thousand_coroutines_wait_at_once_on_the_callers_loop(concurrent):
    async def main():
        everybody, count = asyncio.Event(), itertools.count(1)

        async def meet():
            if next(count) == 2000:
                everybody.set()
            await everybody.wait()

        return await DAG("etl", tasks=[Task(f"t{n}", meet) for n in range(2000)]).arun(executor=concurrent)

    assert len(asyncio.run(main())) == 2000


def test_two_hundred_runs_leave_no_thread_and_no_file_descriptor(executor):
    def fds():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("flowkit-")}

    async def main():
        dag, others = mixed(), threads()
        await dag.arun(executor=executor)
        before, tasks = fds(), asyncio.all_tasks()
        for _ in range(200):
            await dag.arun(executor=executor)
        assert fds() == before
        assert asyncio.all_tasks() == tasks
        deadline = time.monotonic() + 5
        while threads() - others:  # the last one may linger
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_without_a_thread_to_control_it_a_run_does_not_start(mocker):
    async def main():
        mocker.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
        with pytest.raises(FlowkitError, match="to control the run: can't start new thread"):
            await alone(one).arun()
        mocker.stopall()

    asyncio.run(main())


def test_without_a_running_loop_it_says_so():
    coroutine = alone(one).arun()
    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)


# ---------------------------------------------------------------- processes of their own


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
async def main():
    for _ in range(3):
        assert (await dag.arun(executor={executor!r})).ok
    running = asyncio.create_task(DAG("slow", tasks=[Task(slow)]).arun(executor={executor!r}))
    await asyncio.sleep(0.1)
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        print("cancelled")
asyncio.run(main())
""").finish()
    assert (done.returncode, done.out, done.err) == (0, "cancelled\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C on Windows")
@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_ctrl_c_ends_the_run_in_order(script, kind, executor):
    """asyncio.run cancels its main task, which cancels the run, whose cleanup handlers are run."""
    slow = "async def slow" if kind == "coroutine" else "def slow"
    wait = "await asyncio.sleep(60)" if kind == "coroutine" else "wait(context)"
    process = script(f"""
import asyncio, time
from flowkit import DAG, Task
def wait(context):
    while not context.is_cancelled():
        time.sleep(0.001)
{slow}(context):
    context.add_cleanup_handler(lambda: print("tidied", flush=True))
    print("ready", flush=True)
    {wait}
async def main():
    await DAG("etl", tasks=[Task(slow)]).arun(executor={executor!r})
asyncio.run(main())
""")
    process.wait_for("ready")
    process.interrupt()
    process.wait_for("tidied")
    done = process.finish()
    assert done.returncode in (-signal.SIGINT, 130), done.err
    assert done.seconds < SOON
    assert "KeyboardInterrupt" in done.err
    assert "never awaited" not in done.err
    assert "Exception in thread" not in done.err


def test_a_cancelled_call_is_no_run_cancelled_error(concurrent):
    """Whoever catches the errors of runs does not swallow the cancellation of the caller."""

    async def main():
        hanging = Hanging()

        async def call():
            with contextlib.suppress(RunCancelledError, Exception):
                await alone(hanging).arun(executor=concurrent)
            return "swallowed"

        running = asyncio.create_task(call())
        await hanging.has_begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
