"""The engine against the reference model: random graphs x random outcomes, in every executor.

Time is virtual, so backoff and timeouts take none. What the model says of a graph it says for every order of starts;
where order or timing decides (fail-fast, cancelling) the tests check what must hold in each case.
"""

import threading
import time
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import BAD, RULES, predict, value_of
from strategies import MOST_TIMEOUTS, TaskPlan, build, graphs, most_at_once

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    RunCancelledError,
    RunFinished,
    RunStarted,
    Task,
    TaskCancelled,
    TaskFailed,
    TaskSkipped,
    TaskSucceeded,
    TaskTimeoutError,
    TaskUpstreamFailed,
)
from flowkit.testing import VirtualClock, run_fuzzed

FINAL = {
    TaskSucceeded: "succeeded",
    TaskFailed: "failed",
    TaskSkipped: "skipped",
    TaskUpstreamFailed: "upstream_failed",
    TaskCancelled: "cancelled",
}
ACCEPT_FAILURE = {"all_done", "one_failed", "all_failed"}
MANY_WORKERS = 12 + MOST_TIMEOUTS
EXECUTORS = ["sequential", "thread", "fuzzed"]


def examples(most):
    """Say how often a test is tried; a loaded machine is no failure."""
    return settings(max_examples=most, deadline=None)


def soak(test):
    """Make *test* 20 soak tests of 500 examples each, so that none takes so long that it looks like a hang."""
    test = examples(500)(test)
    return pytest.mark.soak(pytest.mark.parametrize("part", range(20))(test))


def run(plans, executor, seed=0, *, max_workers=MANY_WORKERS, is_watched=True, **options):
    """Run *plans* and return the result, all events if *is_watched*, and every call of a task or condition."""
    clock, events, calls = VirtualClock(), [], []
    order = sorted(range(len(plans)), key=lambda position: hash((seed, position)))
    dag = build(plans, clock, calls, order)
    options = {"raise_on_failure": False, "observers": [events.append] * is_watched, "_clock": clock, **options}
    if executor == "fuzzed":
        result = run_fuzzed(dag, seed, **options)
    else:
        result = dag.run(executor=executor, max_workers=max_workers, **options)
    return SimpleNamespace(result=result, events=events, calls=calls, is_watched=is_watched)


def check_against_model(plans, done):
    """Check that states, attempts and values are those of the reference model."""
    state, attempts, value = predict(plans)
    tasks = done.result.tasks
    assert {name: task.state for name, task in tasks.items()} == state
    assert {name: task.attempts for name, task in tasks.items()} == attempts
    assert done.result == {name: value[name] for name in state if state[name] == "succeeded"}
    for plan in plans:
        ups = [state[before] for before in plan.upstream]
        may_start = not ups or RULES[plan.rule](ups)
        assert done.calls.count((plan.name, "when")) == (may_start and plan.when is not None)


def check_run(plans, done, *, has_spare_workers=False):
    """Check what holds in every run, whatever ended it."""
    tasks = done.result.tasks
    place = {name: n for n, name in enumerate(tasks)}
    for plan in plans:
        assert all(place[before] < place[plan.name] for before in plan.upstream)
        made = [call for name, call in done.calls if name == plan.name and call != "when"]
        assert made == list(range(1, tasks[plan.name].attempts + 1))
        given_values = tuple(done.result.get(before) for before in plan.upstream)
        if tasks[plan.name].state == "succeeded":
            assert done.result[plan.name] == value_of(plan.name, len(made), given_values)
    if done.is_watched:
        check_events(plans, done.result, done.events, has_spare_workers=has_spare_workers)


def check_events(plans, result, events, *, has_spare_workers):
    """Check that the events tell of each task once, in an order that could have been, and of nothing else."""
    tasks = result.tasks
    assert [type(e) for e in events if isinstance(e, RunStarted | RunFinished)] == [RunStarted, RunFinished]
    assert (type(events[0]), type(events[-1])) == (RunStarted, RunFinished)
    assert {e.run_id for e in events} == {result.run_id}
    assert all(a.time <= b.time for a, b in pairwise(events))
    ended = {}
    for n, event in enumerate(events):
        if type(event) in FINAL:
            assert event.task_name not in ended, "a second final event"
            assert FINAL[type(event)] == tasks[event.task_name].state
            ended[event.task_name] = n
    assert ended.keys() == {plan.name for plan in plans}
    for plan in plans:
        own = [(n, e) for n, e in enumerate(events) if getattr(e, "task_name", None) == plan.name]
        started = [(n, e) for n, e in own if isinstance(e, AttemptStarted)]
        assert own[-1][0] == ended[plan.name]
        assert [e.attempt for _, e in started] == list(range(1, len(started) + 1))
        assert all(n > ended[before] for n, _ in started for before in plan.upstream)
        assert len(started) == tasks[plan.name].attempts
        check_attempts(plan, [e for _, e in own], has_spare_workers=has_spare_workers)


def check_attempts(plan, own, *, has_spare_workers):
    """Check that a failed attempt is followed by the next one after a wait that the policy allows, or by the end."""
    for event, following in pairwise(own):
        if isinstance(event, AttemptFailed):
            assert event.attempt <= event.max_attempts == plan.retries + 1
            if event.retry_in is None:
                assert isinstance(following, TaskFailed)
                continue
            least, most = plan.wait_bounds(event.attempt)
            assert least <= event.retry_in <= most
            if isinstance(following, AttemptStarted):
                waited = following.time - event.time
                assert waited >= event.retry_in - 1e-9
                assert not has_spare_workers or waited <= event.retry_in + 1e-9
            else:
                assert isinstance(following, TaskCancelled)  # the run ended during the wait
        elif isinstance(event, AttemptStarted):
            assert isinstance(following, AttemptFailed | TaskSucceeded | TaskSkipped | TaskCancelled)
        else:
            assert isinstance(event, TaskEnd)


TaskEnd = tuple(FINAL)


def below(plans, names):
    """Return the names of all tasks that depend on one of *names*, over any number of edges."""
    found = set()
    for plan in plans:
        if any(before in found or before in names for before in plan.upstream):
            found.add(plan.name)
    return found


# ---------------------------------------------------------------- states, attempts and values are the model's


def run_and_compare(executor, plans, seed, max_workers, is_watched):
    done = run(plans, executor, seed, max_workers=max_workers, is_watched=is_watched, fail_fast=False)
    check_against_model(plans, done)
    check_run(plans, done, has_spare_workers=executor == "thread" and max_workers == MANY_WORKERS)
    assert most_at_once(done.events) <= (max_workers if executor == "thread" else 1)


any_graph = {
    "plans": graphs(),
    "seed": st.integers(0, 2**32),
    "max_workers": st.sampled_from([1, 2, MANY_WORKERS]),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph, is_watched=st.booleans())
@examples(300)
def test_a_run_gives_what_the_model_says(executor, plans, seed, max_workers, is_watched):
    run_and_compare(executor, plans, seed, max_workers, is_watched)


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph, is_watched=st.booleans())
@soak
def test_a_run_gives_what_the_model_says_ten_thousand_times(executor, plans, seed, max_workers, is_watched, part):
    run_and_compare(executor, plans, seed, max_workers, is_watched)


# ---------------------------------------------------------------- fail-fast: whatever the timing


def check_stopped_run(plans, done, *, has_cancel):
    """Check the states of a run that stopped before its end.

    Args:
        has_cancel: Whether a cancel stopped it, which stops tasks that accept a failure too.
    """
    state = {name: task.state for name, task in done.result.tasks.items()}
    under_failed = below(plans, {name for name in state if state[name] == "failed"})
    began = {name for name, _ in done.calls}
    for plan in plans:
        if plan.name in began:
            assert state[plan.name] != "upstream_failed"
            continue
        ups = [state[before] for before in plan.upstream]
        is_met = not ups or RULES[plan.rule](ups)
        assert has_cancel or not is_met or plan.rule not in ACCEPT_FAILURE, "a teardown that did not run"
        possible = {"upstream_failed" if plan.name in under_failed else "cancelled"}
        if not is_met and not BAD & set(ups):  # nothing but skips kept it from starting
            if has_cancel:
                possible.add("skipped")
            elif plan.name not in under_failed:
                possible = {"skipped"}
        assert state[plan.name] in possible


def run_and_check_fail_fast(executor, plans, seed, max_workers, is_watched):
    done = run(plans, executor, seed, max_workers=max_workers, is_watched=is_watched, fail_fast=True)
    check_run(plans, done)
    if not done.result.failed:
        check_against_model(plans, done)
        return
    check_stopped_run(plans, done, has_cancel=False)
    assert done.result.state == "failed"
    if not is_watched:
        return
    failures = [n for n, event in enumerate(done.events) if isinstance(event, TaskFailed)]
    accepting = {plan.name for plan in plans if plan.rule in ACCEPT_FAILURE}
    late = {event.task_name for event in done.events[failures[0] :] if isinstance(event, AttemptStarted)}
    assert late <= accepting
    assert done.result.failed == [done.events[n].task_name for n in failures]


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph, is_watched=st.booleans())
@examples(150)
def test_after_the_first_failure_only_tasks_that_accept_one_start(executor, plans, seed, max_workers, is_watched):
    run_and_check_fail_fast(executor, plans, seed, max_workers, is_watched)


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph, is_watched=st.booleans())
@soak
def test_after_the_first_failure_only_tasks_that_accept_one_start_ten_thousand_times(
    executor, plans, seed, max_workers, is_watched, part
):
    run_and_check_fail_fast(executor, plans, seed, max_workers, is_watched)


# ---------------------------------------------------------------- cancelling at any event


def run_and_cancel(executor, plans, seed, max_workers, at):
    """Cancel the run from an observer, at event number *at* if there are as many."""
    clock, events, calls, has_handle = VirtualClock(), [], [], threading.Event()
    dag = build(plans, clock, calls, sorted(range(len(plans)), key=lambda position: hash((seed, position))))
    calls_at_cancel = []

    def cancel(event):
        events.append(event)
        if len(events) == at + 1:
            has_handle.wait(20)
            calls_at_cancel.extend(calls)
            handle.cancel("enough")

    options = {"executor": executor, "max_workers": max_workers, "fail_fast": False, "raise_on_failure": False}
    handle = dag.start(observers=[cancel], _clock=clock, **options)
    has_handle.set()
    try:
        result = handle.result(20)
    except RunCancelledError as error:
        result = error.result
    done = SimpleNamespace(result=result, events=events, calls=calls, is_watched=True)
    check_run(plans, done)
    if result.state != "cancelled":  # the last task was final before it was cancelled
        check_against_model(plans, done)
        return
    check_stopped_run(plans, done, has_cancel=True)
    kinds = [type(event) for event in events]
    if TaskCancelled in kinds:
        assert AttemptStarted not in kinds[kinds.index(TaskCancelled) :]
    if executor == "sequential":
        assert AttemptStarted not in kinds[at + 1 :]
        if kinds[at] is not AttemptStarted:
            assert calls == calls_at_cancel


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@given(**any_graph, at=st.integers(0, 40))
@examples(150)
def test_a_run_can_be_cancelled_at_any_event(executor, plans, seed, max_workers, at):
    run_and_cancel(executor, plans, seed, max_workers, at)


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@given(**any_graph, at=st.integers(0, 40))
@soak
def test_a_run_can_be_cancelled_at_any_event_ten_thousand_times(executor, plans, seed, max_workers, at, part):
    run_and_cancel(executor, plans, seed, max_workers, at)


# ---------------------------------------------------------------- stopping while tasks become ready


class LyingLock:
    """A lock that holds up the thread that has released it, if that thread has asked for it by ``on_release.hook``."""

    on_release = threading.local()

    def __init__(self):
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire

    def release(self):
        self._lock.release()
        self.on_release.__dict__.pop("hook", lambda: None)()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("stop", ["failure", "cancel"])
def test_tasks_that_become_ready_at_the_moment_of_a_stop_do_not_start(monkeypatch, stop, is_watched):
    """root ─► t0 .. t19, bad

    1. root ends; its worker is told that t0 .. t19 are ready, and is held up there.
    2. bad fails, or the run is cancelled.
    3. root's worker goes on with the twenty tasks in its hands.
    """
    root_ended, has_stopped, ran = threading.Event(), threading.Event(), []
    monkeypatch.setattr("flowkit.engine.runner.threading", SimpleNamespace(**vars(threading) | {"Lock": LyingLock}))

    def root():
        LyingLock.on_release.hook = lambda: (root_ended.set(), has_stopped.wait(20))

    def bad():
        if stop == "failure":
            root_ended.wait(20)
            LyingLock.on_release.hook = has_stopped.set
            raise ConnectionError("refused")

    first, tasks = Task(root), [Task(f"t{n}", lambda value, n=n: ran.append(n)) for n in range(20)]
    first >> tasks
    dag = DAG("x", tasks=[*tasks, Task(bad)])
    options = {"observers": [lambda event: None]} if is_watched else {}
    handle = dag.start(max_workers=2, raise_on_failure=False, **options)
    if stop == "cancel":
        root_ended.wait(20)
        handle.cancel()
        has_stopped.set()
        with pytest.raises(RunCancelledError) as caught:
            handle.result(20)
        result = caught.value.result
    else:
        result = handle.result(20)
    assert ran == []
    assert {result.tasks[task.name].state for task in tasks} == {"cancelled"}


def test_a_cancel_ends_while_slow_observers_hear_of_many_cancelled_tasks():
    """root ─► t0 .. t199

    Telling of the cancelled tasks takes longer than the quarter of a second that running threads get to end.
    """
    has_handle, ends = threading.Event(), []

    def slow(event):
        if isinstance(event, TaskSucceeded):
            has_handle.wait(20)
            handle.cancel()
        if isinstance(event, TaskEnd):
            ends.append(event.task_name)
            time.sleep(0.004)

    root, tasks = Task("root", lambda: 0), [Task(f"t{n}", lambda value: value) for n in range(200)]
    root >> tasks
    handle = DAG("x", tasks=tasks).start(observers=[slow], max_workers=4)
    has_handle.set()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(20)
    assert sorted(ends) == sorted(caught.value.result.tasks)
    assert {caught.value.result.tasks[task.name].state for task in tasks} == {"cancelled"}


# ---------------------------------------------------------------- the same seed, the same run


def log_of(plans, seed, **options):
    """Return everything that the events of a fuzzed run tell, as text."""
    return repr([(event.run_id, event.time, event) for event in run(plans, "fuzzed", seed, **options).events])


def run_twice(plans, seed, fail_fast):
    assert log_of(plans, seed, fail_fast=fail_fast) == log_of(plans, seed, fail_fast=fail_fast)


@given(graphs(), st.integers(0, 2**32), st.booleans())
@examples(50)
def test_the_same_seed_gives_the_same_events(plans, seed, fail_fast):
    run_twice(plans, seed, fail_fast)


@pytest.mark.soak
@given(graphs(), st.integers(0, 2**32), st.booleans())
@examples(1000)
def test_the_same_seed_gives_the_same_events_a_thousand_times(plans, seed, fail_fast):
    run_twice(plans, seed, fail_fast)


def test_different_seeds_give_different_events():
    """What the tests above compare is not empty of what could differ."""
    plans = [TaskPlan("a", retries=1, script=("fail", "ok"), length=1.5, jitter=0.5), TaskPlan("b", ("a",))]
    assert len({log_of(plans, seed) for seed in range(20)}) == 20


def test_different_seeds_give_different_orders_and_the_same_results():
    """a, b, c, d ─► join"""
    plans = [*(TaskPlan(name) for name in "abcd"), TaskPlan("join", tuple("abcd"))]
    runs = [run(plans, "fuzzed", seed) for seed in range(50)]
    orders = {tuple(e.task_name for e in done.events if isinstance(e, AttemptStarted)) for done in runs}
    assert len(orders) >= 12  # of 24
    assert {order[-1] for order in orders} == {"join"}
    assert len({done.result["join"] for done in runs}) == 1


def test_a_year_of_backoff_passes_in_an_instant():
    clock = VirtualClock()
    plan = TaskPlan("patient", retries=365, script=("fail",) * 365 + ("ok",), delay=86_400.0, max_delay=86_400.0)
    dag = build([plan], clock, [])
    begin = time.perf_counter()
    result = clock.run(dag)
    assert time.perf_counter() - begin < 1
    assert result.tasks["patient"].attempts == 366
    assert result.duration >= 365 * 86_400


# ---------------------------------------------------------------- attempts that outlive their deadline


def race(lengths, timeout, sleep, clock=None):
    """Run one task for each of *lengths*, all with the same timeout; return the result and the events."""
    events = []
    tasks = [Task(f"t{n}", lambda length=length: sleep(length), timeout=timeout) for n, length in enumerate(lengths)]
    options = {"fail_fast": False, "raise_on_failure": False, "observers": [events.append], "max_workers": 8}
    return DAG("race", tasks=tasks).run(_clock=clock, **options), events


def check_race(result, events):
    ends = [event for event in events if type(event) in FINAL]
    assert sorted(event.task_name for event in ends) == sorted(result.tasks)
    for event in ends:
        if isinstance(event, TaskFailed):
            assert isinstance(event.error, TaskTimeoutError)
            assert event.task_name not in result
        else:
            assert isinstance(event, TaskSucceeded)
            assert event.task_name in result
    assert result.abandoned_threads == len(result.failed)


@given(st.lists(st.sampled_from([0.995, 0.999, 1.0, 1.001, 1.005]), min_size=1, max_size=7))
@examples(200)
def test_an_attempt_that_ends_around_its_deadline_has_one_outcome(lengths):
    clock = VirtualClock()
    result, events = race(lengths, 1.0, clock.sleep, clock)
    check_race(result, events)
    for n, length in enumerate(lengths):
        if length != 1.0:
            assert (f"t{n}" in result) == (length < 1.0)


def test_a_deadline_that_was_met_does_not_hit_what_the_worker_does_next():
    """flaky and long share one worker.

    flaky fails at 0 and is to be tried again at 1, but long has the worker until 20; the deadline of flaky's first
    attempt passes at 5.
    """
    clock, attempts = VirtualClock(), count(1)

    def flaky():
        if next(attempts) == 1:
            raise ConnectionError("refused")

    tasks = [
        Task("flaky", flaky, retries=1, delay=1, jitter=0, timeout=5),
        Task("long", lambda: clock.sleep(20)),
    ]
    result = DAG("x", tasks=tasks).start(max_workers=1, _clock=clock).result(20)
    assert result.tasks["flaky"].attempts == 2
    assert result.duration == 20
    assert result.abandoned_threads == 0


@pytest.mark.soak
def test_a_thousand_attempts_that_end_around_their_deadline_have_one_outcome_in_real_time():
    outcomes = set()
    for n in range(250):
        lengths = [0.02 + (((n * 4 + k) * 7) % 11 - 5) / 1000 for k in range(4)]
        result, events = race(lengths, 0.02, time.sleep)
        check_race(result, events)
        outcomes |= {task.state for task in result.tasks.values()}
    assert outcomes == {"succeeded", "failed"}


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize(("stuck", "goes_on"), [(7, True), (8, False)])
def test_a_run_fails_at_eight_abandoned_threads(stuck, goes_on, is_watched):
    """stuck0 .. stuck7 ─► teardown (all_done) ─► last

    With seven of them the run goes on, with eight nothing starts any more.
    """
    clock, ran = VirtualClock(), []
    jam = [Task(f"stuck{n}", lambda: clock.sleep(60), timeout=1) for n in range(stuck)]
    teardown = Task("teardown", lambda: ran.append("teardown"), trigger="all_done").after(*jam)
    last = Task("last", lambda: ran.append("last")).after(teardown)
    options = {"observers": [lambda event: None]} if is_watched else {}
    options |= {"fail_fast": False, "raise_on_failure": False, "max_workers": 20}
    result = clock.run(DAG("jam", tasks=[last]), **options)
    assert result.state == "failed"
    assert result.abandoned_threads == stuck
    assert ran == (["teardown", "last"] if goes_on else [])
    assert {result.tasks[task.name].state for task in jam} == {"failed"}
    if not goes_on:
        assert {result.tasks["teardown"].state, result.tasks["last"].state} <= {"upstream_failed", "cancelled"}
