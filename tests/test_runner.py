"""One run: when tasks start, what failures, retries, timeouts and cancelling do, and the races between them.

Backoff and timeouts pass in virtual time. What must not depend on where tasks run is asked of both executors.
"""

import asyncio
import io
import os
import threading
import traceback
import warnings
from itertools import pairwise

import pytest

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    DAGExecutionError,
    FlowkitError,
    GiveUp,
    RetryAfter,
    RunCancelledError,
    RunStarted,
    RunTimeoutError,
    Skip,
    Task,
    TaskCancelled,
    TaskExecutionError,
    TaskResultError,
    TaskSucceeded,
    TaskTimeoutError,
    task,
)
from flowkit.engine.runner import Run
from flowkit.engine.workers.inline import InlinePool
from flowkit.engine.workers.threads import ThreadPool
from flowkit.testing import VirtualClock, run_fuzzed

EXECUTORS = ["thread", "sequential"]


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


@pytest.fixture
def clock():
    return VirtualClock()


def fail(*_):
    raise ValueError("no")


def skip(*_):
    raise Skip("nothing to do")


def states(result):
    return {name: run.state for name, run in result.tasks.items()}


class Script:
    """Raises each of *errors* in turn, then returns how often it was called."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= len(self.errors):
            raise self.errors[self.calls - 1]
        return self.calls


# ---------------------------------------------------------------- what starts when


def test_a_task_starts_the_moment_its_own_upstream_is_done():
    """fast ─► below; slow, of the same wave as fast, ends only after below has run"""
    below_ran = threading.Event()
    with DAG("etl") as dag:
        slow = Task("slow", lambda: below_ran.wait(5))
        fast = Task("fast", lambda: 1)
        fast >> Task("below", lambda fast: below_ran.set())
    assert dag.waves() == [["slow", "fast"], ["below"]]
    assert dag.run(max_workers=2)[slow.name] is True


def test_tasks_that_do_not_depend_on_each_other_run_side_by_side():
    """src ─► three that wait for each other ─► join"""
    together = threading.Barrier(3)
    with DAG("etl") as dag:
        three = [Task(f"t{i}", lambda src: together.wait(5)) for i in range(3)]
        Task("src", lambda: 1) >> three >> Task("join", lambda *all: len(all))
    assert dag.run(max_workers=3)["join"] == 3


def test_one_worker_runs_everything_one_at_a_time():
    """src ─► 20 tasks ─► join"""
    inside, most = [], []

    def work(*_):
        inside.append(None)
        most.append(len(inside))
        inside.pop()

    with DAG("etl") as dag:
        Task("src", work) >> [Task(f"t{i}", work) for i in range(20)] >> Task("join", work)
    dag.run(max_workers=1)
    assert most == [1] * 22


def test_sequential_runs_in_the_callers_thread_in_the_order_of_the_waves():
    """b, a ─► c; d"""
    ran = []

    def note(name):
        return Task(name, lambda *_: ran.append((name, threading.current_thread())))

    with DAG("etl") as dag:
        c, b, a = note("c"), note("b"), note("a")
        [b, a] >> c
        note("d")
    dag.run(executor="sequential")
    assert [name for name, _ in ran] == ["b", "a", "d", "c"]
    assert dag.waves() == [["b", "a", "d"], ["c"]]
    assert {thread for _, thread in ran} == {threading.current_thread()}


def test_a_chain_far_deeper_than_the_recursion_limit_runs(executor):
    """3,000 tasks one after the other"""
    with DAG("deep") as dag:
        above = Task("t0", lambda: 0)
        for i in range(1, 3_000):
            above = above >> Task(f"t{i}", lambda x: x + 1)
    assert dag.run(executor=executor)["t2999"] == 2_999


def test_a_run_in_a_task_of_another_has_workers_of_its_own():
    """Five runs inside each other, each with one worker"""

    def nested(depth):
        inner = Task("inner", lambda: depth if depth == 5 else nested(depth + 1))
        return DAG(f"depth {depth}", tasks=[inner]).run(max_workers=1)["inner"]

    assert nested(1) == 5


def test_one_dag_runs_many_times_at_once():
    """a ─► b ─► c, in 8 threads, 5 times each"""
    with DAG("etl") as dag:
        Task("a", lambda seed: seed) >> Task("b", lambda a: a * 10) >> Task("c", lambda b: b + 1)
    found, ids = [], []

    def many(seed):
        for n in range(5):
            result = dag.run({"seed": 100 * seed + n}, max_workers=2)
            ids.append(result.run_id)
            found.append(result["c"] == (100 * seed + n) * 10 + 1)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40
    assert len(set(ids)) == 40


def test_a_run_goes_on_with_the_graph_as_it_was_when_it_started(executor):
    """a ─► b; while a runs, b is wired to c as well and a gets a new neighbour"""
    with DAG("etl") as dag:
        c = Task("c", lambda *_: "c")

        @task
        def a():
            c >> b
            Task("late", lambda: 1) >> a
            return "a"

        b = Task("b", lambda *given: given)
        a >> b
    assert dag.run(executor=executor)["b"] == ("a",)
    assert dag.run(executor=executor)["b"] == ("a", "c")


# ---------------------------------------------------------------- trigger rules and what is missing


@pytest.mark.parametrize(("rule", "expected"), {
    "none_failed": {"s": "succeeded", "k": "skipped", "f": "upstream_failed", "sk": "succeeded",
                    "sf": "upstream_failed", "kf": "upstream_failed"},
    "all_success": {"s": "succeeded", "k": "skipped", "f": "upstream_failed", "sk": "skipped",
                    "sf": "upstream_failed", "kf": "upstream_failed"},
    "one_success": {"s": "succeeded", "k": "skipped", "f": "upstream_failed", "sk": "succeeded",
                    "sf": "succeeded", "kf": "upstream_failed"},
    "all_done": dict.fromkeys(["s", "k", "f", "sk", "sf", "kf"], "succeeded"),
    "one_failed": {"s": "skipped", "k": "skipped", "f": "succeeded", "sk": "skipped", "sf": "succeeded",
                   "kf": "succeeded"},
    "all_failed": {"s": "skipped", "k": "skipped", "f": "succeeded", "sk": "skipped", "sf": "upstream_failed",
                   "kf": "upstream_failed"},
}.items())  # fmt: skip
def test_every_rule_looks_at_all_upstream_states(rule, expected, executor):
    """s(ucceeds), f(ails), (s)k(ips) ─► one task for each set of them"""
    with DAG("etl") as dag:
        ups = {"s": Task("s!", lambda: 1), "f": Task("f!", fail), "k": Task("k!", skip)}
        for name in expected:
            [ups[letter] for letter in name] >> Task(name, lambda *given: given, trigger=rule)
    result = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)
    assert {name: state for name, state in states(result).items() if not name.endswith("!")} == expected


def test_a_skipped_branch_does_not_skip_the_join(executor):
    """extract ─► manual (off), auto ─► load"""
    with DAG("etl") as dag:
        extract = Task("extract", lambda: [1])
        manual = Task("manual", lambda rows: "manual", when=lambda: False)
        auto, load = Task("auto", lambda rows: "auto"), Task("load", lambda manual, auto: (manual, auto))
        extract >> [manual, auto] >> load
    result = dag.run(executor=executor)
    assert result["load"] == (None, "auto")
    assert "manual" not in result


def test_what_hangs_under_skipped_tasks_alone_is_skipped(executor):
    """off ─► below ─► last"""
    with DAG("etl") as dag:
        Task("off", lambda: 1, when=lambda: False) >> Task("below", lambda x: x) >> Task("last", lambda x: x)
    assert states(dag.run(executor=executor)) == dict.fromkeys(["off", "below", "last"], "skipped")


def test_an_upstream_that_gave_nothing_gives_the_default_or_none_or_is_absent(executor):
    """off, bad, good ─► four tasks that take them in four ways (all_done)"""

    def by_default(off="no rows", bad=7, good=None):
        return off, bad, good

    def by_position(x, y, z):
        return x, y, z

    def by_rest(*all):
        return all

    def by_name(**all):
        return all

    with DAG("etl") as dag:
        ups = [Task("off", skip), Task("bad", fail), Task("good", lambda: 1)]
        for func in (by_default, by_position, by_rest, by_name):
            ups >> Task(func, trigger="all_done")
    result = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)
    assert result == {
        "good": 1, "by_default": ("no rows", 7, 1), "by_position": (None, None, 1),
        "by_rest": (None, None, 1), "by_name": {"good": 1},
    }  # fmt: skip


# ---------------------------------------------------------------- failures


def test_the_original_exception_is_the_cause_with_its_own_traceback(executor):
    """a ─► bad"""
    error = ConnectionError("refused")

    def connect():
        raise error

    def bad(a):
        connect()

    with DAG("etl") as dag:
        Task("a", lambda: 1) >> Task("bad", bad)
    with pytest.raises(TaskExecutionError) as caught:
        dag.run(executor=executor)
    failure = caught.value
    assert failure.__cause__ is error
    assert (failure.task_name, failure.attempts) == ("bad", 1)
    assert dict(failure.result) == {"a": 1}
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["bad", "connect"]
    assert str(failure).startswith("task 'bad' failed after 1 attempt in ")
    assert str(failure).endswith(" s: ConnectionError: refused")


def test_an_error_raised_by_calling_a_task_wrongly_keeps_its_text(executor):
    """A builtin that does not tell its parameters is checked by the call itself."""
    with DAG("etl") as dag:
        Task("rows", lambda: 3) >> Task("most", max)
    with pytest.raises(TaskExecutionError, match="'int' object is not iterable"):
        dag.run(executor=executor)


def test_fail_fast_lets_alerts_and_teardowns_start_and_nothing_else():
    """setup ─► bad ─► below, alert (one_failed); setup ─► slow ─► after ─► teardown (all_done)"""
    ran, bad_failed = [], threading.Event()

    def note(name, *ups, **options):
        made = Task(name, lambda *_: ran.append(name), **options)
        list(ups) >> made
        return made

    with DAG("etl") as dag:
        setup = note("setup")
        bad = setup >> Task("bad", fail, on_failure=lambda event: bad_failed.set())
        slow = setup >> Task("slow", lambda setup: bad_failed.wait(5))
        below, after = note("below", bad), note("after", slow)
        note("alert", bad, trigger="one_failed")
        note("teardown", below, after, trigger="all_done")
        note("cheer", bad, trigger="one_success")
    result = dag.run(raise_on_failure=False)
    assert states(result) == {
        "setup": "succeeded", "bad": "failed", "slow": "succeeded", "below": "upstream_failed",
        "after": "cancelled", "alert": "succeeded", "teardown": "succeeded", "cheer": "upstream_failed",
    }  # fmt: skip
    assert ran[0] == "setup"
    assert sorted(ran[1:]) == ["alert", "teardown"]
    assert (result.state, result.failed) == ("failed", ["bad"])


def test_a_task_that_accepts_a_failure_and_has_no_upstream_still_starts(executor):
    """bad, teardown (all_done), other"""
    with DAG("etl") as dag:
        Task("bad", fail)
        Task("teardown", lambda: "done", trigger="all_done")
        Task("other", lambda: 1)
    result = dag.run(executor=executor, max_workers=1, raise_on_failure=False)
    assert states(result) == {"bad": "failed", "teardown": "succeeded", "other": "cancelled"}


def test_a_fail_fast_run_raises_the_first_failure_even_if_more_follow(executor):
    """bad ─► alert, which fails too"""

    def alert(bad):
        raise KeyError("mail")

    with DAG("etl") as dag:
        Task("bad", fail) >> Task("alert", alert, trigger="one_failed")
    with pytest.raises(TaskExecutionError) as caught:
        dag.run(executor=executor)
    assert caught.value.task_name == "bad"
    assert caught.value.result.failed == ["bad", "alert"]
    assert list(caught.value.result.errors) == ["bad", "alert"]


def test_with_fail_fast_off_independent_branches_go_on_and_all_failures_are_raised_together(executor):
    """bad ─► below; worse; good ─► last"""

    def worse():
        raise KeyError("worse")

    with DAG("etl") as dag:
        Task("bad", fail) >> Task("below", lambda x: x)
        Task("worse", worse)
        Task("good", lambda: 1) >> Task("last", lambda x: x + 1)
    with pytest.raises(DAGExecutionError) as caught:
        dag.run(executor=executor, fail_fast=False)
    group = caught.value
    assert sorted(error.task_name for error in group.exceptions) == ["bad", "worse"]
    assert sorted(type(error.__cause__).__name__ for error in group.exceptions) == ["KeyError", "ValueError"]
    assert "2 tasks of 'etl' failed" in str(group)
    assert dict(group.result) == {"good": 1, "last": 2}
    assert states(group.result)["below"] == "upstream_failed"


def test_one_failure_with_fail_fast_off_is_a_group_of_one(executor):
    with pytest.raises(DAGExecutionError, match="1 task of 'etl' failed: 'bad'") as caught:
        DAG("etl", tasks=[Task("bad", fail)]).run(executor=executor, fail_fast=False)
    assert len(caught.value.exceptions) == 1


def test_the_group_can_be_split_by_except_star(executor):
    seen = []
    try:
        DAG("etl", tasks=[Task("bad", fail), Task("worse", fail)]).run(executor=executor, fail_fast=False)
    except* TaskExecutionError as group:
        seen = [error.task_name for error in group.exceptions]
    assert sorted(seen) == ["bad", "worse"]


def test_raise_on_failure_off_returns_the_result(executor):
    for fail_fast in (True, False):
        dag = DAG("etl", tasks=[Task("bad", fail)])
        result = dag.run(executor=executor, raise_on_failure=False, fail_fast=fail_fast)
        assert (result.state, result.failed) == ("failed", ["bad"])


class _StandIn(BaseException):
    """Looks like asyncio's own, without importing it."""


_StandIn.__name__ = "CancelledError"


@pytest.mark.parametrize(("error", "reason"), [
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt("mine"), "KeyboardInterrupt: mine"),
    (StopIteration("stop"), "StopIteration: stop"),
    (_StandIn(), "raised CancelledError but was not cancelled"),
    (asyncio.CancelledError(), "raised CancelledError but was not cancelled"),
    (GeneratorExit(), "raised GeneratorExit but was not cancelled"),
    (MemoryError("all of it"), "MemoryError: all of it"),
])  # fmt: skip
def test_whatever_a_task_raises_is_its_failure_and_nothing_more(error, reason, executor):
    """bad; good"""

    def bad():
        raise error

    with DAG("etl") as dag:
        Task("bad", bad)
        Task("good", lambda: 1)
    result = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)
    assert states(result) == {"bad": "failed", "good": "succeeded"}
    assert result.tasks["bad"].error is error
    assert result.tasks["bad"].reason == reason


def test_what_ends_the_program_is_not_retried_by_default(executor):
    for kind in (SystemExit, KeyboardInterrupt):
        script = Script(kind("out"))
        dag = DAG("etl", tasks=[Task("a", script, retries=3)])
        assert dag.run(executor=executor, raise_on_failure=False).failed == ["a"]
        assert script.calls == 1


# ---------------------------------------------------------------- results that cannot be handed on


async def coroutine():
    return 1


async def async_generator():
    yield 1


def generator():
    yield 1


@pytest.mark.parametrize(("func", "said"), [
    (lambda: coroutine(), "returned a coroutine: make it async def, or await it inside"),
    (lambda: async_generator(), "returned an async_generator: return a list"),
    (generator, "returned a generator, which is empty after its first reader: return a list"),
    (lambda: iter([1]), "returned a list_iterator, which is empty after its first reader"),
    (lambda: map(str, [1]), "returned a map, which is empty"),
])  # fmt: skip
def test_a_result_that_only_one_reader_could_use_is_refused(func, said, executor):
    """a ─► b"""
    with DAG("etl") as dag:
        Task("a", func, retries=3) >> Task("b", lambda a: a)
    with pytest.raises(TaskExecutionError) as caught:
        dag.run(executor=executor)
    assert isinstance(caught.value.__cause__, TaskResultError)
    assert f"task 'a' {said}" in str(caught.value.__cause__)
    assert caught.value.attempts == 1  # the next attempt would return the same


def test_an_iterator_whose_name_begins_with_a_vowel_gets_the_right_article():
    class Iterator:
        def __next__(self): ...

    with pytest.raises(TaskExecutionError, match="returned an Iterator, which"):
        DAG("etl", tasks=[Task("a", Iterator)]).run()


def test_an_awaitable_without_close_is_refused_too(executor):
    class Awaitable:
        def __await__(self): ...

    with pytest.raises(TaskExecutionError, match=r"returned an? Awaitable"):
        DAG("etl", tasks=[Task("a", Awaitable)]).run(executor=executor)


def test_files_locks_and_own_types_are_handed_on(executor):
    """four tasks, two of the same type ─► all"""

    class Mine: ...

    with DAG("etl") as dag:
        kinds = {"file": io.StringIO, "lock": threading.Lock, "mine": Mine, "more": Mine}
        ups = [Task(name, kind) for name, kind in kinds.items()]
        ups >> Task("all", lambda *given: [type(value).__name__ for value in given])
    assert dag.run(executor=executor)["all"] == ["StringIO", "lock", "Mine", "Mine"]


# ---------------------------------------------------------------- retries


def attempts(dag, clock, executor, **options):
    """Run *dag* and return the readings at which attempts started, and the result."""
    seen = []

    def observe(event):
        if isinstance(event, AttemptStarted):
            seen.append(event.time)

    result = clock.run(dag, executor=executor, observers=[observe], raise_on_failure=False, **options)
    return seen, result


def test_retries_wait_as_the_policy_says(clock, executor):
    script = Script(*[ValueError("no")] * 3)
    dag = DAG("etl", tasks=[Task("a", script, retries=5, delay=2, backoff=3, max_delay=10, jitter=0)])
    starts, result = attempts(dag, clock, executor)
    assert starts == [1.0, 3.0, 9.0, 19.0]
    assert result["a"] == 4
    assert result.tasks["a"].attempts == 4


def test_jitter_in_a_run_only_lengthens_the_wait(clock, executor):
    script = Script(*[ValueError("no")] * 20)
    dag = DAG("etl", tasks=[Task("a", script, retries=20, delay=10, backoff=1, jitter=0.5)])
    starts, _ = attempts(dag, clock, executor)
    waits = [after - before for before, after in pairwise(starts)]
    assert len(waits) == 20
    assert all(10 <= wait <= 15 for wait in waits)
    assert len(set(waits)) > 1


def test_retry_after_sets_the_wait_and_needs_an_attempt_that_is_left(clock, executor):
    script = Script(RetryAfter(120), RetryAfter(0), RetryAfter(5))
    dag = DAG("etl", tasks=[Task("a", script, retries=2, delay=1, retry_on=KeyError)])
    starts, result = attempts(dag, clock, executor)
    assert starts == [1.0, 121.0, 121.0]
    assert isinstance(result.errors["a"], RetryAfter)


def test_give_up_fails_without_further_attempts(executor):
    def pay():
        try:
            raise OSError("402")
        except OSError as error:
            raise GiveUp("card declined") from error

    with pytest.raises(TaskExecutionError, match="GiveUp: card declined") as caught:
        DAG("etl", tasks=[Task("pay", pay, retries=5, retry_on=lambda error: True)]).run(executor=executor)
    assert caught.value.attempts == 1
    assert isinstance(caught.value.__cause__, GiveUp)
    assert isinstance(caught.value.__cause__.__cause__, OSError)


@pytest.mark.parametrize(("retry_on", "errors", "calls"), [
    (OSError, [ConnectionError(), OSError(), ValueError()], 3),
    ((KeyError, OSError), [KeyError(), OSError(), TypeError()], 3),
    (lambda error: "again" in str(error), [ValueError("again"), ValueError("no")], 2),
    (lambda error: 1 / 0, [ValueError("no")], 1),
    (BaseException, [SystemExit(1), KeyboardInterrupt(), ValueError()], 4),
])  # fmt: skip
def test_only_what_retry_on_names_is_tried_again(retry_on, errors, calls, clock, executor):
    script = Script(*errors)
    dag = DAG("etl", tasks=[Task("a", script, retries=9, retry_on=retry_on)])
    result = clock.run(dag, executor=executor, raise_on_failure=False)
    assert script.calls == calls
    assert ("a" in result) is (calls > len(errors))


def test_a_predicate_that_would_end_the_program_counts_as_no(executor, may_abandon):
    def predicate(error):
        raise SystemExit(3)

    dag = DAG("etl", tasks=[Task("a", fail, retries=3, retry_on=predicate)])
    result = dag.start(executor=executor, raise_on_failure=False).result(2)
    assert isinstance(result.errors["a"], ValueError)


def test_skip_ends_the_attempts(clock, executor):
    script = Script(ValueError("first"), Skip("nothing left"))
    result = clock.run(DAG("etl", tasks=[Task("a", script, retries=5)]), executor=executor)
    assert (result.skipped, script.calls, result.tasks["a"].reason) == (["a"], 2, "nothing left")
    assert DAG("etl", tasks=[Task("b", Script(Skip()))]).run().tasks["b"].reason == "the task raised Skip"


def test_a_waiting_task_holds_no_worker(clock):
    """flaky; then three others, all on one worker: they run while flaky waits"""
    order = []

    def flaky():
        order.append("flaky")
        if len(order) == 1:
            raise ValueError("not yet")

    with DAG("etl") as dag:
        Task("flaky", flaky, retries=1, delay=50, jitter=0)
        for i in range(3):
            Task(f"t{i}", lambda i=i: order.append(f"t{i}"))
    result = clock.run(dag, max_workers=1)
    assert order == ["flaky", "t0", "t1", "t2", "flaky"]
    assert result.duration == 50.0


def test_many_tasks_back_off_side_by_side(clock):
    """20 tasks that wait 30 s each, on two workers"""
    with DAG("etl") as dag:
        for i in range(20):
            Task(f"t{i}", Script(ValueError("no")), retries=1, delay=30, jitter=0)
    result = clock.run(dag, max_workers=2)
    assert set(result.values()) == {2}
    assert result.duration == 30.0


def test_a_task_that_waits_for_its_retry_when_another_fails_is_cancelled_after_one_attempt(clock):
    """flaky waits; bad fails once flaky does"""
    flaky_failed = threading.Event()

    def bad():
        assert flaky_failed.wait(5)
        raise KeyError("bad")

    def observe(event):
        if isinstance(event, AttemptFailed) and event.task_name == "flaky":
            flaky_failed.set()

    dag = DAG("etl", tasks=[Task("flaky", fail, retries=3, delay=1000, max_delay=1000), Task("bad", bad)])
    result = clock.run(dag, observers=[observe], raise_on_failure=False)
    assert states(result) == {"flaky": "cancelled", "bad": "failed"}
    assert result.tasks["flaky"].attempts == 1
    assert result.duration == 0.0


def test_a_task_that_fails_after_another_did_is_not_tried_again():
    """bad; slow fails when bad has failed"""
    bad_failed = threading.Event()

    def slow():
        assert bad_failed.wait(5)
        raise KeyError("slow")

    bad = Task("bad", fail, on_failure=lambda event: bad_failed.set())
    result = DAG("etl", tasks=[bad, Task("slow", slow, retries=9)]).run(raise_on_failure=False)
    assert result.failed == ["bad", "slow"]
    assert result.tasks["slow"].attempts == 1


def test_a_task_that_accepts_a_failure_is_tried_again_after_it(clock, executor):
    """bad ─► alert (one_failed), which fails once"""
    sent = Script(ConnectionError("mail"))
    with DAG("etl") as dag:
        alert = Task("alert", lambda bad: sent(), trigger="one_failed", retries=2, delay=7, jitter=0)
        Task("bad", fail) >> alert
    result = clock.run(dag, executor=executor, raise_on_failure=False)
    assert result["alert"] == 2
    assert result.duration == 7.0


def test_a_task_that_accepts_a_failure_and_waits_for_its_retry_goes_on_waiting(clock):
    """teardown (all_done) waits for its second attempt when bad fails"""
    script = Script(ConnectionError("not yet"))
    with DAG("etl") as dag:
        Task("teardown", script, trigger="all_done", retries=1, delay=50, jitter=0)
        Task("bad", lambda: clock.sleep(10) or fail())
    result = clock.run(dag, max_workers=2, raise_on_failure=False)
    assert states(result) == {"teardown": "succeeded", "bad": "failed"}
    assert result.duration == 50.0


def test_a_task_that_accepts_a_failure_and_waits_for_a_worker_gets_it(clock):
    """teardown's (all_done) second attempt is due while bad has the only worker; other waits for it too"""
    script = Script(ConnectionError("not yet"))
    with DAG("etl") as dag:
        Task("teardown", script, trigger="all_done", retries=1, delay=5, jitter=0)
        Task("bad", lambda: clock.sleep(10) or fail())
        Task("other", lambda: 1)
    result = clock.run(dag, max_workers=1, raise_on_failure=False)
    assert states(result) == {"teardown": "succeeded", "bad": "failed", "other": "cancelled"}
    assert result.duration == 10.0


# ---------------------------------------------------------------- timeouts


def test_an_attempt_that_takes_too_long_is_recorded_at_the_deadline(clock):
    dag = DAG("etl", tasks=[Task("slow", lambda: clock.sleep(100), timeout=30)])
    with pytest.raises(TaskExecutionError) as caught:
        clock.run(dag)
    assert isinstance(caught.value.__cause__, TaskTimeoutError)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert str(caught.value.__cause__) == "attempt 1 of task 'slow' took longer than its timeout of 30 s"
    assert caught.value.result.duration == 30.0
    assert caught.value.result.abandoned_threads == 1


def test_a_quick_attempt_is_not_touched_by_its_timeout(clock, executor):
    """a ─► b, each within its timeout, the second attempt of b too"""
    script = Script(ValueError("once"))
    with DAG("etl") as dag:
        a = Task("a", lambda: clock.sleep(20) or 1, timeout=30)
        a >> Task("b", lambda a: clock.sleep(29) or script(), timeout=30, retries=1, delay=50, jitter=0)
    result = clock.run(dag, executor=executor)
    assert result == {"a": 1, "b": 2}
    assert result.duration == 20 + 29 + 50 + 29
    assert result.abandoned_threads == 0


def test_the_timeout_is_per_attempt_and_a_timed_out_attempt_is_tried_again(clock):
    def slow(context):
        clock.sleep(100 if context.attempt < 3 else 1)
        return context.attempt

    dag = DAG("etl", tasks=[Task("slow", slow, timeout=10, retries=5, delay=1, backoff=1, jitter=0)])
    result = clock.run(dag, max_workers=1)
    assert result["slow"] == 3
    assert result.duration == 10 + 1 + 10 + 1 + 1
    assert result.abandoned_threads == 2


def test_retry_on_decides_about_a_timeout_too(clock):
    dag = DAG("etl", tasks=[Task("slow", lambda: clock.sleep(100), timeout=10, retries=5, retry_on=KeyError)])
    result = clock.run(dag, raise_on_failure=False)
    assert result.tasks["slow"].attempts == 1


def test_the_late_result_of_an_abandoned_attempt_is_discarded():
    """slow is let go after its second attempt has succeeded; what the first says then changes nothing"""
    release, ended = threading.Event(), threading.Event()
    seen = []

    def slow(context):
        if context.attempt == 1:
            release.wait(5)
            ended.set()
            return "late"
        return "in time"

    dag = DAG("etl", tasks=[Task("slow", slow, timeout=0.02, retries=1, delay=0)])
    result = dag.run(observers=[seen.append])
    assert result["slow"] == "in time"
    release.set()
    assert ended.wait(5)
    assert result["slow"] == "in time"
    assert [type(event).__name__ for event in seen] == [
        "RunStarted", "AttemptStarted", "AttemptFailed", "AttemptStarted", "TaskSucceeded", "RunFinished",
    ]  # fmt: skip


@pytest.mark.parametrize("late", ["value", "error"])
def test_an_abandoned_attempt_that_ends_while_the_run_goes_on_says_nothing(late):
    """slow ─► below; after its timeout slow ends before its second attempt does"""
    timed_out, spoken = threading.Event(), threading.Event()

    def slow(context):
        if context.attempt == 2:
            assert spoken.wait(5)
            return "in time"
        assert timed_out.wait(5)
        threading.current_thread().after = spoken
        if late == "error":
            raise KeyError("late")
        return "late"

    original = {name: getattr(Run, name) for name in ("_succeeded", "failed")}

    def telling(name):
        def told(run, worker, i, outcome):
            answer = original[name](run, worker, i, outcome)
            if worker.is_abandoned:
                assert answer is None
                spoken.set()
            return answer

        return told

    with pytest.MonkeyPatch.context() as patch:
        for name in original:
            patch.setattr(Run, name, telling(name))
        with DAG("etl") as dag:
            options = {"timeout": 0.02, "retries": 1, "delay": 0, "on_retry": lambda event: timed_out.set()}
            Task("slow", slow, **options) >> Task("below", lambda slow: slow)
        assert dag.run()["below"] == "in time"


def test_eight_abandoned_threads_end_the_run(clock):
    """stuck times out again and again; other waits for its second attempt"""
    with DAG("etl") as dag:
        Task("stuck", lambda: clock.sleep(1e6), timeout=1, retries=100, delay=0)
        Task("other", fail, retries=1, delay=1e6, max_delay=1e6)
    result = clock.run(dag, raise_on_failure=False, fail_fast=False)
    assert result.abandoned_threads == 8
    assert result.tasks["stuck"].attempts == 8
    assert result.state == "failed"
    assert result.tasks["other"].reason == "8 threads were abandoned in attempts that timed out"


def test_sequentially_a_timeout_is_judged_when_the_attempt_returns(clock):
    """slow ─► below"""

    def slow(context):
        clock.sleep(100 if context.attempt == 1 else 10)
        return context.attempt

    with DAG("etl") as dag:
        Task("slow", slow, timeout=30, retries=1, delay=5, jitter=0) >> Task("below", lambda slow: slow)
    result = clock.run(dag, executor="sequential")
    assert result["below"] == 2
    assert result.duration == 100 + 5 + 10
    assert result.abandoned_threads == 0


def test_the_condition_is_not_part_of_the_timed_attempt(clock):
    dag = DAG("etl", tasks=[Task("a", lambda: 1, when=lambda: clock.sleep(100) or True, timeout=30)])
    assert clock.run(dag)["a"] == 1


def test_a_run_that_takes_too_long_is_cancelled(clock, executor):
    """a ─► b ─► c, 20 s each"""
    with DAG("etl") as dag:
        a, b, c = (Task(name, lambda *_: clock.sleep(20)) for name in "abc")
        a >> b >> c
    with pytest.raises(RunTimeoutError) as caught:
        clock.run(dag, executor=executor, timeout=30)
    assert isinstance(caught.value, (RunCancelledError, TimeoutError))
    assert str(caught.value) == "run of 'etl' was cancelled: it took longer than its timeout of 30 s"
    result = caught.value.result
    assert result.state == "cancelled"
    assert result.tasks["c"].state == "cancelled"
    assert "a" in result


def test_a_run_within_its_timeout_is_not_touched(clock, executor):
    dag = DAG("etl", tasks=[Task("a", lambda: clock.sleep(20) or 1)])
    result = clock.run(dag, executor=executor, timeout=30)
    assert result["a"] == 1
    assert result.duration == 20.0


def test_a_run_timeout_ends_a_backoff(clock, executor):
    dag = DAG("etl", tasks=[Task("a", fail, retries=5, delay=1000, max_delay=1000)])
    with pytest.raises(RunTimeoutError) as caught:
        clock.run(dag, executor=executor, timeout=30)
    assert caught.value.result.tasks["a"].state == "cancelled"
    assert caught.value.result.tasks["a"].attempts == 1


# ---------------------------------------------------------------- cancelling


def until_cancelled(context):
    waiting = threading.Event()
    while not (context.is_cancelled() or waiting.wait(0.001)):
        pass


def started_handle(dag, event, **options):
    """Start *dag* and return the handle when *event* is set."""
    handle = dag.start(**options)
    assert event.wait(5)
    return handle


def cancelled(handle):
    """Return the result of a run that was cancelled."""
    with pytest.raises(RunCancelledError) as caught:
        handle.result(5)
    return caught.value.result


@pytest.mark.parametrize("executor", EXECUTORS)
def test_cancelling_starts_nothing_new_and_keeps_what_was_done(executor):
    """a ─► b ─► c; cancelled while b runs"""
    running = threading.Event()

    def b(a, context):
        running.set()
        until_cancelled(context)
        context.check_cancelled()

    with DAG("etl") as dag:
        Task("a", lambda: 1) >> Task("b", b) >> Task("c", lambda b: b)
    handle = started_handle(dag, running, executor=executor)
    handle.cancel("enough")
    result = cancelled(handle)
    assert states(result) == {"a": "succeeded", "b": "cancelled", "c": "cancelled"}
    assert dict(result) == {"a": 1}
    assert result.tasks["c"].reason == "enough"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_task_that_ends_in_spite_of_a_cancel_keeps_its_result(executor):
    """a ─► b; cancelled while a runs, which then succeeds"""
    running = threading.Event()

    def a(context):
        running.set()
        until_cancelled(context)
        return "done all the same"

    with DAG("etl") as dag:
        Task("a", a) >> Task("b", lambda a: a)
    handle = started_handle(dag, running, executor=executor)
    handle.cancel()
    assert dict(cancelled(handle)) == {"a": "done all the same"}


def test_a_task_that_does_not_stop_is_left_behind_after_the_grace():
    """stuck ─► below"""
    running, release, ended = threading.Event(), threading.Event(), threading.Event()

    def stuck():
        running.set()
        release.wait(5)
        ended.set()

    seen = []
    with DAG("etl") as dag:
        Task("stuck", stuck) >> Task("below", lambda x: x)
    handle = started_handle(dag, running, observers=[seen.append])
    handle.cancel()
    result = cancelled(handle)
    assert states(result) == {"stuck": "cancelled", "below": "cancelled"}
    assert result.abandoned_threads == 1
    assert 0.2 < result.duration < 3
    release.set()
    assert ended.wait(5)
    assert sorted(event.task_name for event in seen if isinstance(event, TaskCancelled)) == ["below", "stuck"]


def test_cancelling_ends_a_backoff_after_one_attempt():
    waiting = threading.Event()
    observers = [lambda event: waiting.set() if isinstance(event, AttemptFailed) else None]
    dag = DAG("etl", tasks=[Task("a", fail, retries=5, delay=1000, max_delay=1000)])
    handle = started_handle(dag, waiting, observers=observers)
    snapshot = handle.snapshot()
    handle.cancel()
    assert cancelled(handle).tasks["a"].attempts == 1
    assert snapshot.tasks["a"].attempts == 1


@pytest.mark.parametrize("executor", EXECUTORS)
def test_cancelling_before_anything_has_started_starts_nothing(executor):
    """An observer cancels when it is told of the run's start."""
    handles, made = [], threading.Event()

    def observe(event):
        if isinstance(event, RunStarted) and made.wait(5):
            handles[0].cancel("at once")

    dag = DAG("etl", tasks=[Task("a", fail), Task("b", fail, trigger="all_done")])
    handles.append(dag.start(executor=executor, observers=[observe]))
    made.set()
    result = cancelled(handles[0])
    assert states(result) == {"a": "cancelled", "b": "cancelled"}
    assert result.tasks["a"].attempts == 0


def test_cancelling_stops_alerts_and_teardowns_too():
    """a ─► teardown (all_done); a fails after the cancel"""
    running = threading.Event()

    def a(context):
        running.set()
        until_cancelled(context)
        raise KeyError("a failure after the cancel")

    with DAG("etl") as dag:
        Task("a", a) >> Task("teardown", lambda a: 1, trigger="all_done")
    handle = started_handle(dag, running)
    handle.cancel()
    result = cancelled(handle)
    assert states(result) == {"a": "failed", "teardown": "upstream_failed"}
    assert result.state == "cancelled"


# ---------------------------------------------------------------- forced interleavings


def test_what_a_worker_was_handed_before_a_failure_does_not_start_after_it(monkeypatch):
    """src ─► b, c; bad fails after src's worker was told of b and c, and before it goes on with them"""
    told, failed = threading.Event(), threading.Event()
    succeeded, fail_ = Run._succeeded_plainly, Run.failed

    def succeeded_slowly(run, worker, i, value):
        ready = succeeded(run, worker, i, value)
        if run.record.names[i] == "src":
            told.set()
            assert failed.wait(5)
        return ready

    def failed_loudly(run, worker, i, error):
        ready = fail_(run, worker, i, error)
        failed.set()
        return ready

    monkeypatch.setattr(Run, "_succeeded_plainly", succeeded_slowly)
    monkeypatch.setattr(Run, "failed", failed_loudly)
    ran = []
    with DAG("etl") as dag:
        Task("bad", lambda: told.wait(5) and fail())
        Task("src", lambda: 1) >> [Task(name, lambda src, name=name: ran.append(name)) for name in "bc"]
    result = dag.run(max_workers=2, raise_on_failure=False)
    assert ran == []
    assert states(result) == {"bad": "failed", "src": "succeeded", "b": "cancelled", "c": "cancelled"}


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("has_queue", [False, True])
def test_a_retry_that_a_worker_has_taken_when_the_run_fails_is_cancelled(
    monkeypatch, may_abandon, is_watched, has_queue
):
    """flaky ─► below; bad fails when flaky's second attempt has been taken and has not started

    With a queue: bad ─► queued (all_done), which waits for the limit that flaky holds.
    """
    taken, failed = threading.Event(), threading.Event()
    next_id, fail_ = ThreadPool._next, Run.failed
    seen, script = [], Script(KeyError("flaky"))

    def next_slowly(pool, worker):
        i = next_id(pool, worker)
        if i is not None and script.calls == 1 and pool._run.record.names[i] == "flaky":
            taken.set()
            assert failed.wait(5)
        return i

    def failed_loudly(run, worker, i, error):
        ready = fail_(run, worker, i, error)
        if run.record.names[i] == "bad":
            failed.set()
        return ready

    monkeypatch.setattr(ThreadPool, "_next", next_slowly)
    monkeypatch.setattr(Run, "failed", failed_loudly)
    with DAG("etl") as dag:
        Task("flaky", script, retries=1, delay=0, uses="api") >> Task("below", lambda flaky: flaky)
        bad = Task("bad", lambda: taken.wait(5) and fail())
        if has_queue:
            bad >> Task("queued", lambda bad: "ran", trigger="all_done", uses="api")
    observers = [seen.append] * is_watched
    handle = dag.start(max_workers=2, raise_on_failure=False, limits={"api": 1}, observers=observers)
    result = handle.result(2)
    expected = {"flaky": "cancelled", "bad": "failed", "below": "cancelled", "queued": "succeeded"}
    assert states(result) == {name: expected[name] for name in result.tasks}
    assert (script.calls, result.tasks["flaky"].attempts) == (1, 1)
    if is_watched:
        final = [event.task_name for event in seen if hasattr(event, "reason")]
        assert sorted(final) == sorted(result.tasks)


@pytest.mark.parametrize("options", [{}, {"_pick": lambda ready: 0}], ids=["in order", "in any order"])
@pytest.mark.parametrize("when", [None, lambda: True], ids=["without", "with a condition"])
@pytest.mark.parametrize("moment", ["before the attempt", "after the attempt", "after its end"])
def test_a_cancel_beside_a_sequential_attempt_ends_each_task_once(monkeypatch, moment, when, options):
    """a ─► b; the cancel comes when the worker is not in a's attempt, though a is chosen or has returned"""
    handles, made, seen = [], threading.Event(), []

    def cancel_at(record, i):
        if record.names[i] == "a":
            assert made.wait(5)
            handles[0].cancel("just now")

    attempt, succeeded = InlinePool._attempt, Run._succeeded

    def attempt_late(pool, call, i):
        if moment == "before the attempt":
            cancel_at(pool._run.record, i)
        return attempt(pool, call, i)

    def succeeded_late(run, worker, i, value):
        if moment == "after the attempt":
            cancel_at(run.record, i)
        ready = succeeded(run, worker, i, value)
        if moment == "after its end":
            cancel_at(run.record, i)
        return ready

    monkeypatch.setattr(InlinePool, "_attempt", attempt_late)
    monkeypatch.setattr(Run, "_succeeded", succeeded_late)
    with DAG("etl") as dag:
        Task("a", lambda: 1, when=when) >> Task("b", lambda a: a, when=when)
    handles.append(dag.start(executor="sequential", observers=[seen.append], **options))
    made.set()
    result = cancelled(handles[0])
    final = [event for event in seen if isinstance(event, (TaskSucceeded, TaskCancelled))]
    assert sorted(event.task_name for event in final) == ["a", "b"]
    assert ("a" in result) is any(isinstance(event, TaskSucceeded) for event in final)
    assert result.tasks["b"].state == "cancelled"
    if moment != "after the attempt":  # there it may be either
        assert result.tasks["a"].state == ("cancelled" if moment == "before the attempt" else "succeeded")


def test_a_cancel_beside_an_attempt_that_nobody_watches_ends_each_task_once(monkeypatch):
    """a ─► b, in any order; the cancel comes when a has returned"""
    handles, made = [], threading.Event()
    succeeded = Run._succeeded_plainly

    def succeeded_late(run, worker, i, value):
        if made.wait(5):
            handles[0].cancel("just now")
        return succeeded(run, worker, i, value)

    monkeypatch.setattr(Run, "_succeeded_plainly", succeeded_late)
    with DAG("etl") as dag:
        Task("a", lambda: 1) >> Task("b", lambda a: a)
    handles.append(dag.start(executor="sequential", _pick=lambda ready: 0))
    made.set()
    result = cancelled(handles[0])
    assert result.tasks["b"].state == "cancelled"
    assert ("a" in result) is (result.tasks["a"].state == "succeeded")


def test_a_sequential_task_that_outlasts_the_grace_is_waited_for_and_the_rest_is_cancelled_once(clock):
    """a ─► b ─► c; the grace passes while a goes on after the cancel"""
    running, seen = threading.Event(), []

    def a(context):
        running.set()
        until_cancelled(context)
        clock.sleep(10)
        return "done"

    with DAG("etl") as dag:
        Task("a", a) >> Task("b", lambda a: a) >> Task("c", lambda b: b)
    handle = started_handle(dag, running, executor="sequential", observers=[seen.append], _clock=clock)
    handle.cancel()
    result = cancelled(handle)
    assert states(result) == {"a": "succeeded", "b": "cancelled", "c": "cancelled"}
    assert [event.task_name for event in seen if isinstance(event, TaskCancelled)] == ["b", "c"]
    assert result.abandoned_threads == 0


@pytest.mark.parametrize("seed", range(40))
def test_a_timeout_and_a_result_at_the_same_moment_give_one_outcome(seed):
    """The attempt ends when its deadline comes; whichever is first counts, and only that."""
    seen = []
    waiting = threading.Event()
    length = 0.002 + (seed % 5) * 1e-4
    dag = DAG("etl", tasks=[Task("a", lambda: waiting.wait(length) or "value", timeout=0.0021)])
    result = dag.run(observers=[seen.append], raise_on_failure=False)
    kinds = [type(event).__name__ for event in seen]
    assert kinds in (
        ["RunStarted", "AttemptStarted", "TaskSucceeded", "RunFinished"],
        ["RunStarted", "AttemptStarted", "AttemptFailed", "TaskFailed", "RunFinished"],
    )
    assert result.tasks["a"].state == ("succeeded" if "TaskSucceeded" in kinds else "failed")
    assert ("a" in result) is ("TaskSucceeded" in kinds)


# ---------------------------------------------------------------- the machine


def test_a_run_that_gets_no_thread_fails_and_leaves_nothing(mocker):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("flowkit-thread"):
            raise RuntimeError("can't start new thread")
        start(thread)

    mocker.patch.object(threading.Thread, "start", refuse)
    dag = DAG("etl", tasks=[Task("a", lambda: 1)])
    with pytest.raises(FlowkitError, match="cannot start a thread to run tasks on"):
        dag.run()
    mocker.stopall()
    assert dag.run() == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_has_no_run(executor):
    """The child of a process in which a run goes on is told so; the parent's run is untouched."""
    running, release = threading.Event(), threading.Event()
    dag = DAG("etl", tasks=[Task("a", lambda: running.set() or release.wait(5))])
    handle = started_handle(dag, running, executor=executor)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12: forking with threads
            child = os.fork()
        if child == 0:
            try:
                handle.result(timeout=1)
            except FlowkitError as error:
                os._exit(0 if "forked" in str(error) else 2)
            except BaseException:
                os._exit(3)
            os._exit(4)
        _, status = os.waitpid(child, 0)
    finally:
        release.set()
    assert os.waitstatus_to_exitcode(status) == 0
    assert handle.result(5)["a"] is True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.parametrize("observers", [[], [lambda event: None]], ids=["plain", "watched"])
def test_a_child_that_a_task_forks_does_not_go_on_with_the_run(executor, observers):
    """a ─► b; a forks, and the child comes out of a like the parent does"""
    parent, statuses = os.getpid(), []

    def a():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12: forking with threads
            child = os.fork()
        if child:
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def b(a):
        if os.getpid() != parent:
            os._exit(9)
        return "in the parent"

    with DAG("etl") as dag:
        Task("a", a) >> Task("b", b)
    try:
        result = dag.run(executor=executor, observers=observers)
    except BaseException as error:
        if os.getpid() != parent:
            os._exit(0 if isinstance(error, FlowkitError) and "forked" in str(error) else 8)
        raise
    if os.getpid() != parent:
        os._exit(7)
    assert result["b"] == "in the parent"
    assert statuses == [0]


def test_a_wall_clock_that_is_stepped_changes_nothing(mocker):
    dag = DAG("etl", tasks=[Task("a", Script(ValueError("once")), retries=1, delay=0.001, timeout=50)])
    mocker.patch("time.time", side_effect=[1e9, 0.0, 2e9, 1e9, 1e9])
    assert dag.run(timeout=60)["a"] == 2


def test_fuzzed_runs_keep_every_rule(clock):
    """bad ─► alert; flaky; good ─► last, in 20 orders"""
    with DAG("etl") as dag:
        Task("bad", fail) >> Task("alert", lambda bad: "sent", trigger="one_failed")
        Task("good", lambda: 1) >> Task("last", lambda good: good)
        flaky = Task("flaky", lambda context: context.attempt if context.attempt > 1 else fail(), retries=1)
    for seed in range(20):
        result = run_fuzzed(dag, seed, fail_fast=False, raise_on_failure=False)
        assert dict(result) == {"good": 1, flaky.name: 2, "alert": "sent", "last": 1}
