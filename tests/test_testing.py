"""The tools for tests: virtual time, and every order that a graph allows."""

import asyncio
import functools
import itertools
import random
import threading
from queue import SimpleQueue

import pytest

from flowkit import DAG, RunTimeoutError, Task, TaskExecutionError
from flowkit.testing import VirtualClock, run_fuzzed


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


def fail(*_):
    raise ValueError("no")


# ---------------------------------------------------------------- VirtualClock


def test_a_clock_starts_where_it_is_told_to():
    assert VirtualClock().now() == 1.0
    assert VirtualClock(start=100).now() == 100


@pytest.mark.parametrize("start", [0, -1, float("nan")])
def test_a_reading_must_be_above_zero(start):
    with pytest.raises(ValueError, match="must be above 0"):
        VirtualClock(start=start)


def test_outside_of_a_run_sleeping_moves_the_clock(clock):
    clock.sleep(3600)
    assert clock.now() == 3601.0


def test_a_year_of_backoff_takes_no_time(clock, executor):
    year = 365 * 24 * 3600

    def flaky():
        if clock.now() < year:
            raise ConnectionError("not yet")
        return clock.now()

    task = Task("flaky", flaky, retries=100, delay=3600, backoff=2, max_delay=30 * 24 * 3600, jitter=0)
    assert clock.run(DAG("slow", tasks=[task]), executor=executor)["flaky"] >= year


def test_both_spellings_of_a_run_are_the_same(clock):
    dag = DAG("etl", tasks=[Task("a", lambda date: clock.sleep(5) or date)])
    assert clock.run(dag, {"date": 1}) == dag.run({"date": 1}, _clock=clock) == {"a": 1}
    assert clock.now() == 11.0


def test_tasks_sleep_side_by_side_on_threads_and_one_after_the_other_inline(clock):
    """three tasks of 10, 20 and 30 s"""
    dag = DAG("etl", tasks=[Task(f"t{n}", lambda n=n: clock.sleep(n)) for n in (10, 20, 30)])
    assert clock.run(dag, max_workers=3).duration == 30.0
    assert clock.run(dag, max_workers=1).duration == 60.0
    assert clock.run(dag, executor="sequential").duration == 60.0


def test_sleepers_wake_in_the_order_of_their_deadlines(clock):
    woken = []

    def sleep(n):
        clock.sleep(n)
        woken.append((n, clock.now()))

    clock.run(DAG("etl", tasks=[Task(f"t{n}", lambda n=n: sleep(n)) for n in (30, 10, 20)]), max_workers=3)
    assert woken == [(10, 11.0), (20, 21.0), (30, 31.0)]


def test_time_stands_still_while_a_task_works(clock):
    """sleeper sleeps for 10 s; worker looks at the clock for a while"""
    about_to_sleep = threading.Event()
    readings = []

    def sleeper():
        about_to_sleep.set()
        clock.sleep(10)

    def worker():
        assert about_to_sleep.wait(5)
        pause = threading.Event()
        for _ in range(20):
            readings.append(clock.now())
            pause.wait(0.001)

    result = clock.run(DAG("etl", tasks=[Task("sleeper", sleeper), Task("worker", worker)]), max_workers=2)
    assert set(readings) == {1.0}
    assert result.duration == 10.0


def test_a_timeout_comes_before_a_longer_sleep_and_after_a_shorter_one(clock):
    """short sleeps 5 s, long 50 s, both with a timeout of 20 s"""
    with DAG("etl") as dag:
        for n in (5, 50):
            Task(f"t{n}", lambda n=n: clock.sleep(n) or n, timeout=20)
    result = clock.run(dag, max_workers=2, fail_fast=False, raise_on_failure=False)
    assert (result["t5"], result.failed, result.duration) == (5, ["t50"], 20.0)


def test_a_sleeper_that_was_given_up_does_not_hold_the_clock(clock):
    """slow is given up after 10 s; below goes on to 110 s, and slow's own end at 1000 s never comes"""
    with DAG("etl") as dag:
        slow = Task("slow", lambda: clock.sleep(1000), timeout=10)
        slow >> Task("below", lambda slow: clock.sleep(100), trigger="all_done")
    assert clock.run(dag, fail_fast=False, raise_on_failure=False).duration == 110.0


def test_sleeping_in_a_thread_of_ones_own_moves_the_clock(clock):
    """A thread that no run knows of is nobody's worker."""
    thread = threading.Thread(target=clock.sleep, args=(5,))
    thread.start()
    thread.join(5)
    assert clock.now() == 6.0


def test_a_run_timeout_is_virtual_too(clock, executor):
    dag = DAG("etl", tasks=[Task("a", fail, retries=10**6, delay=60, backoff=1, jitter=0)])
    with pytest.raises(RunTimeoutError):
        clock.run(dag, executor=executor, timeout=24 * 3600)
    assert clock.now() >= 24 * 3600


def test_waiting_for_a_deadline_that_has_passed_ends_at_once(clock):
    clock.sleep(10)
    clock.wait(SimpleQueue(), 5.0, lambda asleep: pytest.fail("nobody has to be asked"))
    assert clock.now() == 11.0


def test_a_timer_that_was_armed_a_moment_ago_is_not_jumped_past(clock):
    """While it is asked whether all is quiet somebody leaves a wake-up: something nearer may be due."""
    wake_ups = SimpleQueue()
    clock.wait(wake_ups, 10.0, lambda asleep: wake_ups.put(None) or True)
    assert clock.now() == 1.0
    assert wake_ups.empty()


def test_waiting_without_a_deadline_waits_for_a_wake_up_even_if_nothing_goes_on(clock):
    wake_ups = SimpleQueue()
    waiter = threading.Thread(target=clock.wait, args=(wake_ups, None, lambda asleep: True))
    waiter.start()
    wake_ups.put(None)
    waiter.join(5)
    assert not waiter.is_alive()
    assert clock.now() == 1.0


def test_the_same_clock_goes_on_in_the_next_run(clock, executor):
    dag = DAG("etl", tasks=[Task("a", lambda: clock.sleep(5))])
    first, second = (clock.run(dag, executor=executor).tasks["a"] for _ in range(2))
    assert first.ended_at == second.started_at


# ---------------------------------------------------------------- VirtualClock, for coroutines


def virtually(clock, dag, **options):
    """Return ``clock.run(dag, **options)``, or fail if the clock stands still for ever."""
    handle = dag.start(_clock=clock, **options)
    try:
        return handle.result(5)
    except TimeoutError:
        pytest.fail(f"the clock stands still at {clock.now()}")
    finally:
        handle.cancel()


def test_coroutines_sleep_side_by_side_and_one_after_the_other_inline(clock):
    """three coroutines of 10, 20 and 30 s"""
    dag = DAG("etl", tasks=[Task(f"t{n}", functools.partial(clock.sleep_async, n)) for n in (10, 20, 30)])
    assert virtually(clock, dag).duration == 30.0
    assert virtually(clock, dag, max_workers=1).duration == 60.0
    assert virtually(clock, dag, executor="sequential").duration == 60.0


def test_coroutines_and_threads_sleep_side_by_side(clock):
    """fast (async, 10 s) ─► slow (60 s); slow_too (30 s) ─► fast_too (async, 50 s)"""

    async def sleep(seconds, *_):
        await clock.sleep_async(seconds)

    with DAG("etl") as dag:
        Task("fast", functools.partial(sleep, 10)) >> Task("slow", lambda fast: clock.sleep(60))
        Task("slow_too", lambda: clock.sleep(30)) >> Task("fast_too", functools.partial(sleep, 50))
    assert virtually(clock, dag).duration == 80.0


def test_time_stands_still_while_a_coroutine_works(clock):
    """sleeper sleeps for 10 s; worker looks at the clock for a while"""
    readings = []

    async def worker():
        for _ in range(20):
            readings.append(clock.now())
            await asyncio.sleep(0.001)

    dag = DAG("etl", tasks=[Task("sleeper", functools.partial(clock.sleep_async, 10)), Task(worker)])
    assert virtually(clock, dag).duration == 10.0
    assert set(readings) == {1.0}


def test_a_coroutine_that_stops_sleeping_before_its_time_is_awake(clock):
    """It sleeps for 1000 s, is interrupted, and works on; nobody jumps to the end of that sleep."""
    readings = []

    async def restless():
        sleeping = asyncio.create_task(clock.sleep_async(1000))
        await asyncio.sleep(0)
        sleeping.cancel()
        await asyncio.wait([sleeping])
        for _ in range(20):
            readings.append(clock.now())
            await asyncio.sleep(0.001)

    dag = DAG("etl", tasks=[Task(restless), Task("beside", functools.partial(clock.sleep_async, 10))])
    assert virtually(clock, dag).duration == 10.0
    assert max(readings) <= 11.0


def test_a_sleep_that_a_failure_has_cancelled_is_forgotten(clock):
    """slow sleeps for 1000 s and is cancelled when bad fails after 5 s ─► teardown, of 2000 s; then another run"""

    async def bad():
        await clock.sleep_async(5)
        raise ValueError("no")

    with DAG("etl") as dag:
        Task("slow", functools.partial(clock.sleep_async, 1000))
        Task(bad) >> Task("teardown", lambda bad: clock.sleep(2000), trigger="all_done")
    assert virtually(clock, dag, raise_on_failure=False).duration == 2005.0
    again = DAG("etl", tasks=[Task("t", functools.partial(clock.sleep_async, 5))])
    assert virtually(clock, again).duration == 5.0


def test_a_coroutines_timeout_comes_before_a_longer_sleep_and_after_a_shorter_one(clock):
    """short sleeps 5 s, long 50 s, both with a timeout of 20 s"""
    tasks = [Task(f"t{n}", functools.partial(clock.sleep_async, n), timeout=20) for n in (5, 50)]
    result = virtually(clock, DAG("etl", tasks=tasks), fail_fast=False, raise_on_failure=False)
    assert (list(result), result.failed, result.duration) == (["t5"], ["t50"], 20.0)


def test_outside_of_a_run_sleeping_in_a_loop_moves_the_clock(clock):
    asyncio.run(clock.sleep_async(5))
    assert clock.now() == 6.0


# ---------------------------------------------------------------- run_fuzzed


def orders(dag, seeds, ran, **options):
    """Return the set of the orders in which tasks ran."""
    found = set()
    for seed in range(seeds):
        ran.clear()
        run_fuzzed(dag, seed, **options)
        found.add("".join(ran))
    return found


def noting(names):
    ran = []
    return ran, [Task(name, lambda *_, name=name: ran.append(name)) for name in names]


def test_every_order_of_independent_tasks_turns_up():
    """a, b, c"""
    ran, tasks = noting("abc")
    found = orders(DAG("etl", tasks=tasks), 60, ran)
    assert found == {"".join(order) for order in itertools.permutations("abc")}


def test_only_orders_that_the_graph_allows_turn_up_and_all_of_them():
    """a ─► c, d; b ─► d"""
    ran, (a, b, c, d) = noting("abcd")
    a >> [c, d]
    b >> d
    found = orders(DAG("etl", tasks=[a, b, c, d]), 100, ran)
    assert found == {"abcd", "abdc", "acbd", "bacd", "badc"}


def test_a_missing_edge_shows():
    """write and read share a file and are not wired"""
    file = {}

    def outcome(seed):
        file.clear()
        with DAG("etl") as dag:
            Task("write", lambda: file.update(rows=[1]))
            Task("read", lambda: file.get("rows"))
        return str(run_fuzzed(dag, seed)["read"])

    assert {outcome(seed) for seed in range(20)} == {"[1]", "None"}


def test_the_same_seed_gives_the_same_run_to_the_last_event():
    """flaky ─► join; five others ─► join"""

    def log(seed):
        calls, seen = itertools.count(), []
        with DAG("etl") as dag:
            flaky = Task("flaky", lambda: next(calls) if next(calls) > 3 else fail(), retries=5, jitter=1)
            [flaky, *(Task(f"t{i}", lambda: 1) for i in range(5))] >> Task("join", lambda *all: sum(all))
        run_fuzzed(dag, seed, observers=[seen.append])
        return [(event.run_id, event.time, repr(event)) for event in seen]

    logs = [log(seed) for seed in range(20)]
    assert logs == [log(seed) for seed in range(20)]
    assert len({str(each) for each in logs}) == 20


def test_backoff_of_one_task_lets_the_others_go_on(clock):
    """flaky waits 100 s; three others"""
    ran = []
    flaky = Task("flaky", lambda context: ran.append("f") or (fail() if context.attempt == 1 else "done"),
                 retries=1, delay=100, max_delay=100, jitter=0)  # fmt: skip
    dag = DAG("etl", tasks=[flaky, *(Task(f"t{i}", lambda: ran.append("t")) for i in range(3))])
    for seed in range(10):
        ran.clear()
        result = run_fuzzed(dag, seed)
        assert result["flaky"] == "done"
        assert result.duration == 100.0
        assert ran[-1] == "f"
        assert sorted(ran) == ["f", "f", "t", "t", "t"]


def test_it_takes_inputs_and_the_options_of_a_run(clock):
    dag = DAG("etl", tasks=[Task("a", lambda date: date), Task("b", fail)])
    assert run_fuzzed(dag, 1, {"date": "today"}, targets=["a"]) == {"a": "today"}
    with pytest.raises(TaskExecutionError):
        run_fuzzed(dag, 1, {"date": "today"})
    clock.sleep(9)
    slow = DAG("slow", tasks=[Task("a", lambda: clock.sleep(5))])
    assert run_fuzzed(slow, 1, _clock=clock).duration == 5.0
    assert clock.now() == 15.0


def test_a_timeout_of_the_run_that_is_not_reached_changes_nothing():
    result = run_fuzzed(DAG("etl", tasks=[Task("a", lambda: 1)]), 1, timeout=3600)
    assert result == {"a": 1}
    assert result.duration == 0.0


def test_a_timeout_of_the_run_that_is_reached_ends_it():
    dag = DAG("etl", tasks=[Task("a", fail, retries=99, delay=1000, max_delay=1000)])
    with pytest.raises(RunTimeoutError) as caught:
        run_fuzzed(dag, 1, timeout=3600)
    assert caught.value.result.duration < 3700


def test_the_order_is_not_pythons_global_randomness():
    random.seed(1)
    state = random.getstate()
    run_fuzzed(DAG("etl", tasks=[Task(f"t{i}", lambda: 1) for i in range(5)]), 7)
    assert random.getstate() == state
