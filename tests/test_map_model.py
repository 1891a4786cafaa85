"""Mapped tasks against a reference model: random graphs x random items x random outcomes of each item.

Every task returns a list, so every task can be mapped over the result of any other.
"""

import threading
from collections import Counter
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import BAD, FAILED, GOOD, RULES, SKIP, value_of
from strategies import OPTIONS, ROOT_OPTIONS, WIRINGS, most_at_once
from test_model import ACCEPT_FAILURE, FINAL, below

from flowkit import (
    DAG,
    AttemptStarted,
    GiveUp,
    RunCancelledError,
    RunFinished,
    RunStarted,
    Skip,
    Task,
    TaskCancelled,
    TaskContext,
    TaskFailed,
)
from flowkit.testing import VirtualClock, run_fuzzed

EXECUTORS = ["sequential", "thread", "fuzzed"]
ROWS = [3, 1, 4, 1]
OUTCOMES = ["ok", "fail", "skip", "give_up"]


@dataclass(frozen=True)
class Plan:
    """What a task is wired to and how it behaves.

    Attributes:
        is_mapped: Whether it is mapped over what its first upstream gives, or over ROWS if it has none.
        size: How many values a task that is not mapped returns.
        scripts: What the attempts of each item do; item k has script k, over again if there are more items. The last
            outcome of a script repeats.
        picks: Whether a condition lets only items through that are odd, which None is not.
    """

    name: str
    upstream: tuple = ()
    rule: str = "none_failed"
    is_mapped: bool = False
    size: int = 0
    scripts: tuple = (("ok",),)
    retries: int = 0
    length: float = 0.0
    picks: bool = False

    def script_of(self, item):
        return self.scripts[(item or 0) % len(self.scripts)]


# ---------------------------------------------------------------- the model


def predict(plans):
    """Return state, attempts and value of each of *plans*, which are in topological order, and of their items.

    A mapped task makes no attempts itself.
    """
    ends, values = {}, {}
    for plan in plans:
        ups = [ends[before][0] for before in plan.upstream]
        given = tuple(values[before] for before in plan.upstream) or (ROWS,) * plan.is_mapped
        if ups and not RULES[plan.rule](ups):
            end = ("upstream_failed" if BAD & set(ups) else SKIP, 0, None)
        elif not plan.is_mapped:
            end = attempt_all(plan, plan.name, None, given)
        elif given[0] is None:  # nothing to be mapped over
            end = (FAILED, 0, None)
        else:
            items = [
                attempt_all(plan, f"{plan.name}[{k}]", k, (item, *given[1:])) for k, item in enumerate(given[0])
            ]
            ends |= {f"{plan.name}[{k}]": item for k, item in enumerate(items)}
            has_failed = any(state == FAILED for state, _, _ in items)
            end = (FAILED, 0, None) if has_failed else (GOOD, 0, [value for _, _, value in items])
        ends[plan.name], values[plan.name] = end, end[2]
    return ends


def attempt_all(plan, name, item, given):
    """Return the state, the attempts made and the value of one call with its retries."""
    if plan.picks and not is_odd(given[0] if given else None):
        return SKIP, 0, None
    script = plan.script_of(item)
    for attempt in range(1, plan.retries + 2):
        outcome = script[min(attempt, len(script)) - 1]
        if outcome == "ok":
            return GOOD, attempt, made(plan, name, attempt, given)
        if outcome != "fail":
            break
    return SKIP if outcome == "skip" else FAILED, attempt, None


def made(plan, name, attempt, given):
    value = value_of(name, attempt, given)
    return value if plan.is_mapped else [value + k for k in range(plan.size)]


def is_odd(value):
    return isinstance(value, int) and value % 2 == 1


# ---------------------------------------------------------------- the same for the engine

SCRIPTS = [script for size in (1, 2) for script in product(OUTCOMES, repeat=size)]
SOME_SCRIPTS = st.one_of(
    st.sampled_from([(("ok",),), (("ok",), ("skip",)), (("fail", "ok"), ("ok",)), (("fail", "fail", "ok"),)]),
    st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=3).map(tuple),
)
KINDS = st.sampled_from(list(product([False, True, True], [0, 1, 2, 5], [False, False, False, True])))


@st.composite
def graphs(draw):
    """Plans of 1 to 8 tasks in topological order."""
    plans = []
    for n in range(draw(st.integers(1, 8))):
        upstream = draw(WIRINGS[n])
        rule, _, retries, length, _ = draw(OPTIONS if upstream else ROOT_OPTIONS)
        is_mapped, size, picks = draw(KINDS)
        names = tuple(f"t{before}" for before in upstream)
        scripts = draw(SOME_SCRIPTS)
        plans.append(Plan(f"t{n}", names, rule, is_mapped, size, scripts, retries, length, picks and is_mapped))
    return plans


def build(plans, clock, calls):
    tasks = {}
    for plan in plans:
        tasks[plan.name] = _make_task(plan, clock, calls)
        for before in plan.upstream:
            tasks[before] >> tasks[plan.name]
    needs_rows = any(plan.is_mapped and not plan.upstream for plan in plans)
    return DAG("random", tasks=list(tasks.values()), inputs={"rows": ROWS} if needs_rows else None)


def _make_task(plan, clock, calls):
    def body(*given, where: TaskContext):
        name, attempt = where.task_name, where.attempt
        calls.append(name)
        clock.sleep(plan.length)
        item = int(name.partition("[")[2][:-1]) if "[" in name else None
        script = plan.script_of(item)
        outcome = script[min(attempt, len(script)) - 1]
        if outcome != "ok":
            raise {"fail": ConnectionError, "skip": Skip, "give_up": GiveUp}[outcome](name)
        return made(plan, name, attempt, given)

    def over_input(rows, *, where: TaskContext):
        return body(rows, where=where)

    func = over_input if plan.is_mapped and not plan.upstream else body
    made_task = Task(
        plan.name, func, trigger=plan.rule, retries=plan.retries, when=is_odd if plan.picks else None, jitter=0.0
    )
    return made_task.map() if plan.is_mapped else made_task


def run(plans, executor, seed=0, *, max_workers=4, is_watched=True, **options):
    """Run *plans* and return the result, all events if *is_watched*, and the name at every call."""
    clock, events, calls = VirtualClock(), [], []
    dag = build(plans, clock, calls)
    options = {"raise_on_failure": False, "observers": [events.append] * is_watched, "_clock": clock, **options}
    if executor == "fuzzed":
        result = run_fuzzed(dag, seed, **options)
    else:
        result = dag.run(executor=executor, max_workers=max_workers, **options)
    return SimpleNamespace(result=result, events=events, calls=calls, is_watched=is_watched)


def records(result):
    """Return the record of each task and of each item by name."""
    found = dict(result.tasks)
    for run_of_task in result.tasks.values():
        found |= {item.name: item for item in run_of_task.items}
    return found


def check_against_model(plans, done):
    ends = predict(plans)
    found = records(done.result)
    assert {name: (own.state, own.value) for name, own in found.items()} == {
        name: (state, value) for name, (state, _, value) in ends.items()
    }
    assert done.result == {plan.name: ends[plan.name][2] for plan in plans if ends[plan.name][0] == GOOD}
    mapped = {plan.name for plan in plans if plan.is_mapped}  # never called themselves
    made_by_model = {name: attempts for name, (_, attempts, _) in ends.items() if name not in mapped}
    assert {name: found[name].attempts for name in made_by_model} == made_by_model
    assert Counter(done.calls) == {name: attempts for name, attempts in made_by_model.items() if attempts}


def check_run(plans, done):
    """Check what holds of every run, whenever it was stopped."""
    result, events = done.result, done.events
    found = records(result)
    assert list(result.tasks) == [*result.to_dict()["tasks"]]
    assert len(result.tasks) == len(plans)
    for plan in plans:
        own = result.tasks[plan.name]
        states = [item.state for item in own.items]
        assert set(states) <= {"succeeded", "failed", "skipped", "cancelled"}
        if "failed" in states:
            assert own.state == "failed"
            assert len(own.error.exceptions) == states.count("failed")
        elif "cancelled" in states:
            assert own.state == "cancelled"
        elif states:
            assert own.state == "succeeded"
            assert own.value == [item.value for item in own.items]
        assert own.started_at is not None or not (own.attempts or own.items)
    if not done.is_watched:
        return
    assert [type(e) for e in events if isinstance(e, RunStarted | RunFinished)] == [RunStarted, RunFinished]
    assert (type(events[0]), type(events[-1])) == (RunStarted, RunFinished)
    ended, open_attempts = {}, {}
    for n, event in enumerate(events):
        name = getattr(event, "task_name", None)
        if name is not None:
            assert name not in ended, "an event after the final one"
        if isinstance(event, AttemptStarted):
            open_attempts[name] = open_attempts.get(name, 0) + 1
            assert event.attempt == open_attempts[name]
        if type(event) in FINAL:
            assert FINAL[type(event)] == found[name].state
            ended[name] = n
    assert ended.keys() == found.keys(), "not exactly one final event each"
    for plan in plans:
        own = result.tasks[plan.name]
        assert all(ended[item.name] < ended[plan.name] for item in own.items), "a mapped task before its items"
        starts = [
            n for n, event in enumerate(events)
            if isinstance(event, AttemptStarted) and event.task_name.partition("[")[0] == plan.name
        ]  # fmt: skip
        assert all(n > ended[before] for n in starts for before in plan.upstream)


any_graph = {
    "plans": graphs(),
    "seed": st.integers(0, 2**32),
    "max_workers": st.sampled_from([1, 2, 8]),
    "is_watched": st.booleans(),
}


def examples(most):
    return settings(max_examples=most, deadline=None)


def soak(test):
    """Make *test* 20 soak tests of 500 examples each, so that none takes so long that it looks like a hang."""
    test = examples(500)(test)
    return pytest.mark.soak(pytest.mark.parametrize("part", range(20))(test))


# ---------------------------------------------------------------- states, attempts and values are the model's


def run_and_compare(executor, plans, seed, max_workers, is_watched):
    done = run(plans, executor, seed, max_workers=max_workers, is_watched=is_watched, fail_fast=False)
    check_against_model(plans, done)
    check_run(plans, done)
    assert most_at_once(done.events) <= (max_workers if executor == "thread" else 1)


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph)
@examples(200)
def test_a_run_with_mapped_tasks_gives_what_the_model_says(executor, plans, seed, max_workers, is_watched):
    run_and_compare(executor, plans, seed, max_workers, is_watched)


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph)
@soak
def test_a_run_with_mapped_tasks_gives_what_the_model_says_ten_thousand_times(
    executor, plans, seed, max_workers, is_watched, part
):
    run_and_compare(executor, plans, seed, max_workers, is_watched)


# ---------------------------------------------------------------- fail-fast: whatever the timing


def run_and_check_fail_fast(executor, plans, seed, max_workers, is_watched):
    done = run(plans, executor, seed, max_workers=max_workers, is_watched=is_watched, fail_fast=True)
    check_run(plans, done)
    if not done.result.failed:
        check_against_model(plans, done)
        return
    assert done.result.state == "failed"
    state = {name: own.state for name, own in done.result.tasks.items()}
    under_failed = below(plans, set(done.result.failed))
    began = {name.partition("[")[0] for name in done.calls}
    for plan in plans:
        ups = [state[before] for before in plan.upstream]
        if plan.name in began:
            assert state[plan.name] != "upstream_failed"
        elif ups and not RULES[plan.rule](ups) and plan.name in under_failed:
            assert state[plan.name] == "upstream_failed"
        if plan.rule in ACCEPT_FAILURE and (not ups or RULES[plan.rule](ups)):  # a teardown: it and its items ran
            assert state[plan.name] not in ("cancelled", "upstream_failed")
            assert "cancelled" not in [item.state for item in done.result.tasks[plan.name].items]
    if not is_watched:
        return
    failures = [n for n, event in enumerate(done.events) if isinstance(event, TaskFailed)]
    accepting = {plan.name for plan in plans if plan.rule in ACCEPT_FAILURE}
    late = {event.task_name for event in done.events[failures[0] :] if isinstance(event, AttemptStarted)}
    assert {name.partition("[")[0] for name in late} <= accepting
    tasks_failed = [done.events[n].task_name for n in failures if "[" not in done.events[n].task_name]
    assert done.result.failed == tasks_failed


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph)
@examples(150)
def test_after_the_first_failed_item_only_what_accepts_one_starts(executor, plans, seed, max_workers, is_watched):
    run_and_check_fail_fast(executor, plans, seed, max_workers, is_watched)


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_graph)
@soak
def test_after_the_first_failed_item_only_what_accepts_one_starts_ten_thousand_times(
    executor, plans, seed, max_workers, is_watched, part
):
    run_and_check_fail_fast(executor, plans, seed, max_workers, is_watched)


# ---------------------------------------------------------------- cancelling at any event


def run_and_cancel(executor, plans, max_workers, at, fail_fast):
    """Cancel the run from an observer, at event number *at* if there are as many."""
    clock, events, calls, has_handle = VirtualClock(), [], [], threading.Event()
    dag = build(plans, clock, calls)

    def cancel(event):
        events.append(event)
        if len(events) == at + 1:
            has_handle.wait(20)
            handle.cancel("enough")

    options = {"executor": executor, "max_workers": max_workers, "fail_fast": fail_fast, "raise_on_failure": False}
    handle = dag.start(observers=[cancel], _clock=clock, **options)
    has_handle.set()
    try:
        result = handle.result(20)
    except RunCancelledError as error:
        result = error.result
    check_run(plans, SimpleNamespace(result=result, events=events, calls=calls, is_watched=True))
    if result.state != "cancelled":
        if not result.failed:
            check_against_model(plans, SimpleNamespace(result=result, calls=calls))
        return
    kinds = [type(event) for event in events]
    if executor == "sequential":
        assert AttemptStarted not in kinds[at + 1 :]
    if TaskCancelled in kinds and not fail_fast:
        assert AttemptStarted not in kinds[kinds.index(TaskCancelled) :]


at_any_event = {"plans": graphs(), "max_workers": st.sampled_from([1, 2, 8]), "at": st.integers(0, 60)}


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@given(**at_any_event, fail_fast=st.booleans())
@examples(150)
def test_a_run_with_items_can_be_cancelled_at_any_event(executor, plans, max_workers, at, fail_fast):
    run_and_cancel(executor, plans, max_workers, at, fail_fast)


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@given(**at_any_event, fail_fast=st.booleans())
@soak
def test_a_run_with_items_can_be_cancelled_at_any_event_ten_thousand_times(
    executor, plans, max_workers, at, fail_fast, part
):
    run_and_cancel(executor, plans, max_workers, at, fail_fast)


# ---------------------------------------------------------------- the same seed, the same run


@given(graphs(), st.integers(0, 2**32), st.booleans())
@examples(40)
def test_the_same_seed_gives_the_same_events_of_items(plans, seed, fail_fast):
    def log():
        events = run(plans, "fuzzed", seed, fail_fast=fail_fast).events
        return repr([(event.run_id, event.time, event) for event in events])

    assert log() == log()
