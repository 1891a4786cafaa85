"""The engine against the reference model: random graphs x random outcomes, in every executor.

Time is virtual, so backoff and timeouts take none. What the model says of a graph it says for every order of starts;
where order or timing decides (fail-fast, cancelling) the tests check what must hold in each case.
"""

import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model import BAD, RULES, predict, value_of
from strategies import MOST_TIMEOUTS, TaskPlan, build, graphs

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

quick = settings(max_examples=300, deadline=None)
soak = settings(
    max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def run(plans, executor, seed=0, *, max_workers=MANY_WORKERS, **options):
    """Run *plans* and return the result, all events, and every call of a task or condition."""
    clock, events, calls = VirtualClock(), [], []
    order = sorted(range(len(plans)), key=lambda position: hash((seed, position)))
    dag = build(plans, clock, calls, order)
    options = {"raise_on_failure": False, "observers": [events.append], "_clock": clock, **options}
    if executor == "fuzzed":
        result = run_fuzzed(dag, seed, **options)
    else:
        result = dag.run(executor=executor, max_workers=max_workers, **options)
    return SimpleNamespace(result=result, events=events, calls=calls)


def check_against_model(plans, done):
    state, attempts, value = predict(plans)
    tasks = done.result.tasks
    assert {name: task.state for name, task in tasks.items()} == state
    assert done.result == {name: value[name] for name in state if state[name] == "succeeded"}
    for plan in plans:
        asked = [plan.name for name, call in done.calls if (name, call) == (plan.name, "when")]
        made = [call for name, call in done.calls if name == plan.name and call != "when"]
        assert made == list(range(1, attempts[plan.name] + 1))
        assert len(asked) <= 1
        assert asked or plan.when is None or not made
    assert {name: task.attempts for name, task in tasks.items()} == attempts


def check_events(plans, done, *, has_spare_workers=False):
    """Check what holds in every run, whatever ended it."""
    events, tasks = done.events, done.result.tasks
    assert [type(e) for e in events if isinstance(e, RunStarted | RunFinished)] == [RunStarted, RunFinished]
    assert (type(events[0]), type(events[-1])) == (RunStarted, RunFinished)
    assert {e.run_id for e in events} == {done.result.run_id}
    assert all(a.time <= b.time for a, b in zip(events, events[1:], strict=False))
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
        if tasks[plan.name].state == "succeeded":
            given_values = tuple(done.result.get(before) for before in plan.upstream)
            assert done.result[plan.name] == value_of(plan.name, len(started), given_values)


def check_attempts(plan, own, *, has_spare_workers):
    """Check that a failed attempt is followed by the next one after a wait that the policy allows, or by the end."""
    for event, following in zip(own, own[1:], strict=False):
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
                assert isinstance(following, TaskCancelled | TaskUpstreamFailed)  # the run ended during the wait
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


def run_and_compare(executor, plans, seed, max_workers):
    done = run(plans, executor, seed, max_workers=max_workers, fail_fast=False)
    check_against_model(plans, done)
    check_events(plans, done, has_spare_workers=executor == "thread" and max_workers == MANY_WORKERS)


any_graph = {
    "plans": graphs(),
    "seed": st.integers(0, 2**32),
    "max_workers": st.sampled_from([1, 2, MANY_WORKERS]),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph)
@quick
def test_a_run_gives_what_the_model_says(executor, plans, seed, max_workers):
    run_and_compare(executor, plans, seed, max_workers)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph)
@soak
def test_a_run_gives_what_the_model_says_ten_thousand_times(executor, plans, seed, max_workers):
    run_and_compare(executor, plans, seed, max_workers)
