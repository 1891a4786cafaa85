"""Large graphs, many runs, many threads: nothing recurses, leaks, mixes up or waits without need."""

import copy
import gc
import itertools
import os
import sys
import threading
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import predict
from strategies import build, graphs, most_at_once

from flowkit import DAG, AttemptStarted, Task, TaskSucceeded, registry
from flowkit.testing import VirtualClock

BOTH = pytest.mark.parametrize("executor", ["thread", "sequential"])
PROC = Path("/proc/self")


def zero():
    return 0


def one_more(value):
    return value + 1


def total(*values):
    return sum(values)


# ---------------------------------------------------------------- large graphs


def chain_of(count):
    tasks = [Task("t0", zero), *(Task(f"t{i}", one_more) for i in range(1, count))]
    for before, after in itertools.pairwise(tasks):
        before >> after
    return tasks, {f"t{i}": i for i in range(count)}


def fan_out_of(count):
    root = Task("root", zero)
    tasks = [Task(f"t{i}", one_more) for i in range(count)]
    root >> tasks
    return [root, *tasks], {"root": 0} | {task.name: 1 for task in tasks}


def fan_in_of(count):
    tasks = [Task(f"t{i}", lambda: 1) for i in range(count)]
    end = Task("end", total)
    tasks >> end
    return [*tasks, end], {task.name: 1 for task in tasks} | {"end": count}


def independent(count):
    tasks = [Task(f"t{i}", zero) for i in range(count)]
    return tasks, {task.name: 0 for task in tasks}


def check_large(shape, count):
    tasks, expected = shape(count)
    dag = DAG("large", tasks=tasks)
    for executor in ("thread", "sequential"):
        result = dag.run(executor=executor)
        assert result.ok
        assert result == expected
    for thing in (dag, tasks[0], tasks[-1], result, result.tasks, result.tasks["t7"]):
        assert len(repr(thing)) < 1000
        copy.copy(thing)
    assert repr(tasks[0].downstream).count("<Task ") == len(tasks[0].downstream)
    assert copy.copy(tasks[0]).name == tasks[0].name
    assert copy.copy(result) == expected
    assert copy.copy(dag).run() == expected
    last = weakref.ref(tasks[-1])
    del tasks, dag, result, thing
    gc.collect()
    assert last() is None


@pytest.mark.parametrize("shape", [chain_of, fan_out_of, fan_in_of])
def test_a_hundred_thousand_tasks_run(shape):
    check_large(shape, 100_000)


def test_two_hundred_thousand_tasks_without_edges_run():
    check_large(independent, 200_000)


@pytest.mark.soak
@pytest.mark.timeout(55)
def test_a_million_tasks_without_edges_run():
    tasks, expected = independent(1_000_000)
    result = DAG("large", tasks=tasks).run()
    assert result == expected


# ---------------------------------------------------------------- many runs


def diamond():
    """start ─► [twice, square] ─► join, with the input ``n``"""
    start = Task("start", lambda n: n)
    twice, square = Task("twice", lambda start: 2 * start), Task("square", lambda start: start * start)
    join = Task("join", total)
    start >> [twice, square] >> join
    return DAG("diamond", tasks=[join])


def test_one_dag_runs_in_twenty_threads_at_once():
    dag, barrier = diamond(), threading.Barrier(20)
    runs = []

    def run_often(k):
        barrier.wait(20)
        for n in range(k * 50, k * 50 + 50):
            runs.append((n, dag.run({"n": n}, max_workers=2)))

    threads = [threading.Thread(target=run_often, args=(k,)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n, _ in runs) == list(range(1000))
    assert all(result == {"start": n, "twice": 2 * n, "square": n * n, "join": 2 * n + n * n} for n, result in runs)
    assert len({result.run_id for _, result in runs}) == 1000


def resident_bytes():
    return int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not (PROC / "statm").exists(), reason="needs /proc")
def test_a_thousand_runs_leave_nothing_behind():
    def fails(value):
        raise ConnectionError("refused")

    good, bad = diamond(), DAG("bad", tasks=[Task("first", zero) >> Task("fails", fails, retries=1, delay=0)])

    def run_all(count):
        for n in range(count):
            good.run({"n": n})
            good.run({"n": n}, executor="sequential")
            good.run({"n": n}, observers=[lambda event: None])
            bad.run(raise_on_failure=False)
        gc.collect()
        return threading.active_count(), len(os.listdir(PROC / "fd")), resident_bytes()

    threads, files, memory = run_all(50)
    threads_after, files_after, memory_after = run_all(250)
    assert threads_after == threads
    assert files_after == files
    assert memory_after - memory < 5e6


@BOTH
def test_runs_nest_five_deep_with_one_worker_each(executor):
    def nest(depth):
        if not depth:
            return 0
        inner = DAG(f"depth{depth}", tasks=[Task("inner", lambda: nest(depth - 1))])
        return inner.run(max_workers=1, executor=executor)["inner"] + 1

    assert nest(5) == 5


def test_tasks_that_nobody_holds_leave_the_registry():
    """a ─► b, made fifty thousand times."""
    held = Task("held", zero)
    for _ in range(50):
        for _ in range(1000):
            Task("a", zero) >> Task("b", one_more)
        gc.collect()
    assert registry.made_by(__name__) == [held]
    del held
    assert registry.made_by(__name__) == []


def check_no_wake_up_is_lost(runs):
    """Eight layers of eight tasks, each below all of the layer before: all workers fall asleep and wake up again."""
    layers = [[Task(f"t{depth}_{n}", total if depth else lambda: 1) for n in range(8)] for depth in range(8)]
    for before, after in itertools.pairwise(layers):
        for task in after:
            before >> task
    dag = DAG("layers", tasks=layers[-1])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(runs):
            assert dag.start(max_workers=8).result(20)["t7_7"] == 8**7
    finally:
        sys.setswitchinterval(interval)


def test_no_wake_up_is_lost():
    check_no_wake_up_is_lost(100)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_no_wake_up_is_lost_in_ten_thousand_runs(part):
    check_no_wake_up_is_lost(1000)


# ---------------------------------------------------------------- limits


@given(graphs(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_a_limit_holds_in_every_graph_and_changes_no_result(plans, most):
    clock, events, calls = VirtualClock(), [], []
    dag = build(plans, clock, calls, uses="api")
    options = {"max_workers": 20, "fail_fast": False, "raise_on_failure": False, "observers": [events.append]}
    result = clock.run(dag, limits={"api": most}, **options)
    assert most_at_once(events) <= most
    state, _, value = predict(plans)
    assert {name: task.state for name, task in result.tasks.items()} == state
    assert result == {name: value[name] for name in state if state[name] == "succeeded"}


def test_a_limit_is_used_up():
    """Twelve tasks of a second each, three at a time."""
    clock, events = VirtualClock(), []
    tasks = [Task(f"t{n}", lambda: clock.sleep(1), uses="api") for n in range(12)]
    result = clock.run(DAG("x", tasks=tasks), limits={"api": 3}, max_workers=12, observers=[events.append])
    assert most_at_once(events) == 3
    assert result.duration == 4


def starts(events):
    return {(e.task_name, e.attempt): e.time for e in events if isinstance(e, AttemptStarted)}


def run_flaky_beside_other(*, delay, length):
    """Run two tasks that share one place: *flaky* fails once and waits *delay*, *other* takes *length*."""
    clock, events, attempts = VirtualClock(0.5), [], itertools.count(1)

    def flaky():
        if next(attempts) == 1:
            raise ConnectionError("refused")

    tasks = [
        Task("flaky", flaky, retries=1, delay=delay, jitter=0, uses="api"),
        Task("other", lambda: clock.sleep(length), uses="api"),
    ]
    clock.run(DAG("x", tasks=tasks), limits={"api": 1}, max_workers=4, observers=[events.append])
    return {key: time - 0.5 for key, time in starts(events).items()}


def test_a_task_that_waits_for_its_retry_holds_no_limit():
    assert run_flaky_beside_other(delay=10, length=1) == {("flaky", 1): 0, ("other", 1): 0, ("flaky", 2): 10}


def test_a_retry_waits_for_its_limit_like_a_first_attempt():
    assert run_flaky_beside_other(delay=1, length=10) == {("flaky", 1): 0, ("other", 1): 0, ("flaky", 2): 10}


def test_a_task_that_waits_for_its_retry_holds_no_worker():
    """flaky and other share one worker."""
    clock, events, attempts = VirtualClock(), [], itertools.count(1)

    def flaky():
        if next(attempts) == 1:
            raise ConnectionError("refused")

    tasks = [Task("flaky", flaky, retries=1, delay=10, jitter=0), Task("other", lambda: clock.sleep(1))]
    result = clock.run(DAG("x", tasks=tasks), max_workers=1, observers=[events.append])
    assert result.duration == 10
    order = [(e.task_name, e.attempt) for e in events if isinstance(e, AttemptStarted)]
    assert order == [("flaky", 1), ("other", 1), ("flaky", 2)]


def test_an_attempt_that_timed_out_gives_its_limit_back():
    clock = VirtualClock()
    stuck = Task("stuck", lambda: clock.sleep(1000), timeout=2, uses="api")
    other = Task("other", lambda: clock.now(), uses="api")
    options = {"fail_fast": False, "raise_on_failure": False, "max_workers": 1}
    result = clock.run(DAG("x", tasks=[stuck, other]), limits={"api": 1}, **options)
    assert result.tasks["stuck"].state == "failed"
    assert result == {"other": 3.0}


# ---------------------------------------------------------------- no waves


def test_a_straggler_holds_up_nobody_but_its_own_downstream():
    """straggler ─► end; fast0 ─► fast1 ─► fast2 ─► fast3 ─► end

    The straggler is of the first generation and ends only when the fourth has run.
    """
    is_last_done, events = threading.Event(), []
    straggler = Task("straggler", lambda: is_last_done.wait(20))
    fast = [Task("fast0", zero), Task("fast1", one_more), Task("fast2", one_more)]
    fast.append(Task("fast3", lambda value: is_last_done.set()))
    for before, after in itertools.pairwise(fast):
        before >> after
    end = Task("end", lambda straggler, fast3: straggler)
    [straggler, fast[3]] >> end
    result = DAG("x", tasks=[end]).run(max_workers=2, observers=[events.append])
    assert result["end"] is True
    ended = [e.task_name for e in events if isinstance(e, TaskSucceeded)]
    assert ended.index("fast3") < ended.index("straggler") < ended.index("end")
