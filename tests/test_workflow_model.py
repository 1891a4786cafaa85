"""The explicit door against reference models: what it tells of an execution, and which argument gets which result.

Graphs, outcomes and virtual time are those of :mod:`test_model`. This door always stops at the first failure. So what
the engine's model says is the whole answer where nothing fails. Where something does, there is a model for tasks that
run one at a time and once; for all others the tests check what must hold in each case.
"""

import asyncio
import functools
import inspect
import os
import random
import re
import signal
import tempfile
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import permutations, product
from types import SimpleNamespace

import model_tasks
import pytest
import story_tasks
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model import BAD, FAILED, GOOD, RULES, SKIP, predict, value_of
from resume_tasks import world
from strategies import TIMEOUT, WIRINGS, graphs
from test_model import ACCEPT_FAILURE, MANY_WORKERS, below, examples, soak
from test_model_process import GRAPHS, QUICKLY, union

from flowkit import (
    AsyncExecutor,
    AttemptStarted,
    BindingError,
    ConditionError,
    DefinitionError,
    GiveUp,
    JSONStateStore,
    ProcessExecutor,
    RetryAfter,
    SequentialExecutor,
    Skip,
    SQLiteStateStore,
    Task,
    TaskContext,
    TaskExecutionError,
    TaskFailed,
    TaskTimeoutError,
    ThreadedExecutor,
    WorkerDiedError,
    Workflow,
    WorkflowExecutionError,
    WorkflowStatus,
    current_context,
)
from flowkit.testing import VirtualClock

STATUS = {GOOD: "COMPLETED", SKIP: "SKIPPED", FAILED: "FAILED"}
"""Of a task that came to its end; all others have not started, and are PENDING."""
EXECUTORS = ["sequential", "fuzzed", "thread", "async", "awaited"]
RETRIED = {"fail", "timeout", "retry_after"}
RAISED = {
    "fail": lambda: ConnectionError("refused"),
    "skip": lambda: Skip("nothing to do"),
    "give_up": lambda: GiveUp("no use"),
    "exit": lambda: SystemExit(3),
    "retry_after": lambda: RetryAfter(7),
}
CAUSES = {  # what an execution's error is raised from
    "fail": ConnectionError, "give_up": GiveUp, "exit": SystemExit, "retry_after": RetryAfter,
    "timeout": TaskTimeoutError,
}  # fmt: skip
posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="its tasks kill themselves as POSIX does")


# ---------------------------------------------------------------- workflows that behave as plans say


def shuffled(plans, seed):
    """Return the positions of *plans* in an order that *seed* chooses."""
    return sorted(range(len(plans)), key=lambda position: hash((seed, position)))


class Watched:
    """A workflow of tasks that behave as *plans* say.

    Args:
        plans: In topological order.
        seed: Shuffles the order in which tasks are added.
        coroutines: The positions of those that are coroutines.
        has_callbacks: Whether every task has callbacks.

    Attributes:
        calls: The name and the attempt of each call, and the name and "when" of each condition.
        told: What the callbacks of each task were told, by its name.
        complaints: What was not right when a task looked at its own workflow.
    """

    def __init__(self, plans, clock, seed=0, coroutines=(), *, has_callbacks=True):
        self._clock = clock
        self.calls, self.told, self.complaints = [], defaultdict(list), []
        self.workflow = Workflow("random")
        for position in shuffled(plans, seed):
            plan = plans[position]
            body = self._coroutine(plan) if position in coroutines else self._function(plan)
            condition = None if plan.when is None else self._condition(plan)
            timeout = TIMEOUT if "timeout" in plan.script else None
            told = callbacks_into(self.told) if has_callbacks else {}
            task = Task(plan.name, body, when=condition, timeout=timeout, **options_of(plan), **told)
            self.workflow.add_task(task, depends_on=plan.upstream)

    def _function(self, plan):
        def function(**given):
            outcome, seconds = self._begin(plan, given)
            self._clock.sleep(seconds)
            return self._end(plan, outcome, given)

        return function

    def _coroutine(self, plan):
        async def coroutine(**given):
            outcome, seconds = self._begin(plan, given)
            if seconds:
                await self._clock.sleep_async(seconds)
            return self._end(plan, outcome, given)

        return coroutine

    def _begin(self, plan, given):
        attempt = current_context().attempt
        self.calls.append((plan.name, attempt))
        own = self.workflow.get_task(plan.name)
        if (own.status, own.attempts, own.result, own.error) != ("RUNNING", attempt, None, None):
            self.complaints.append(f"{plan.name} finds itself {own.status} in attempt {own.attempts}, not {attempt}")
        for name in plan.upstream:
            before = self.workflow.get_task(name)
            if before.status in ("RUNNING", "RETRYING") or before.result != given.get(name):
                self.complaints.append(f"{plan.name} finds {name} {before.status}: {before.result}")
        outcome = plan.script[min(attempt, len(plan.script)) - 1]
        return outcome, 2 * TIMEOUT if outcome == "timeout" else plan.length

    def _end(self, plan, outcome, given):
        if outcome in RAISED:
            raise RAISED[outcome]()
        return value_of(plan.name, current_context().attempt, tuple(given.get(name) for name in plan.upstream))

    def _condition(self, plan):
        def condition():
            self.calls.append((plan.name, "when"))
            return model_tasks.answer(plan.name, plan.when)

        return condition


def options_of(plan):
    return {
        "trigger": plan.rule, "retries": plan.retries, "delay": plan.delay, "backoff": plan.backoff,
        "jitter": plan.jitter, "max_delay": plan.max_delay,
    }  # fmt: skip


def callbacks_into(told):
    """Return callbacks that note in ``told[name]`` what they are told."""
    return {
        "on_status_change": lambda name, status: told[name].append(status.value),
        "on_retry": lambda name, attempt: told[name].append(attempt),
        "callbacks": [
            lambda task: told[task.name].append((task.status.value, task.result, task.attempts)),
            lambda task, error: told[task.name].append((task.status.value, error, task.error is error)),
        ],
    }


def hooks_into(told):
    """Return the hooks of an executor that note in *told* what they are told."""
    return {
        "on_workflow_start": lambda name: told.append(("start", name)),
        "on_workflow_success": lambda name, stats: told.append(("success", name, stats)),
        "on_workflow_failure": lambda name, error: told.append(("failure", name, str(error), error.__cause__)),
    }


def make_executor(kind, clock, seed, max_workers, **options):
    """Return an executor in virtual time; "fuzzed" takes the next task by chance, "awaited" is asynchronous."""
    rng = random.Random(seed)
    options |= {"_clock": clock, "_rng": rng}
    if kind == "sequential":
        return SequentialExecutor(**options)
    if kind == "fuzzed":
        return SequentialExecutor(_pick=lambda ready: rng.randrange(len(ready)), **options)
    if kind == "thread":
        return ThreadedExecutor(max_workers, **options)
    return AsyncExecutor(max_workers, **options)


def execute(executor, workflow, *, is_awaited=False):
    """Return the result of *workflow*, or None, and its error, or None."""

    async def wait():
        return await executor.execute(workflow)

    try:
        return (asyncio.run(wait()) if is_awaited else executor.execute(workflow)), None
    except WorkflowExecutionError as error:
        return None, error


def run(plans, kind, seed=0, max_workers=MANY_WORKERS, coroutines=(), *, has_callbacks=True, watched=None):
    """Execute a workflow of *plans*, or *watched* once more; return everything that there is to look at."""
    clock, events, hooks = VirtualClock(), [], []
    if watched is None:
        watched = Watched(plans, clock, seed, coroutines, has_callbacks=has_callbacks)
    else:
        watched._clock = clock
        watched.calls.clear()
        watched.told.clear()
    options = {"observers": [events.append], **hooks_into(hooks)} if has_callbacks else {}
    executor = make_executor(kind, clock, seed, max_workers, **options)
    result, error = execute(executor, watched.workflow, is_awaited=kind == "awaited")
    told = watched.told if has_callbacks else None
    return SimpleNamespace(
        workflow=watched.workflow, watched=watched, result=result, error=error, told=told, calls=watched.calls,
        complaints=watched.complaints, events=events if has_callbacks else None, coroutines=coroutines,
        hooks=hooks if has_callbacks else None,
    )  # fmt: skip


def mend(plans, but=()):
    """Return *plans* with other scripts for the tasks that would fail, so that none does, *but* the names given."""
    while True:
        state, _, _ = predict(plans)
        failing = {name for name in state if state[name] == FAILED and name not in but}
        if not failing:
            return plans
        plans = [mended(plan) if plan.name in failing else plan for plan in plans]


def mended(plan):
    failures = [outcome for outcome in plan.script[: plan.retries] if outcome in RETRIED]
    return replace(plan, script=(*failures, "ok"), when=None if plan.when == "raises" else plan.when)


# ---------------------------------------------------------------- what must be


def story_of(status, attempts, value=None):
    """Return what the callbacks of a task are told that ended so."""
    story = []
    for attempt in range(1, attempts + 1):
        story += ["RUNNING"] if attempt == attempts else ["RUNNING", "RETRYING", attempt]
    if status in STATUS.values():
        story.append(status)
    if status == "COMPLETED":
        story.append((status, value, attempts))
    return story


def check_stats(workflow):
    """Check that the statistics are those of the statuses."""
    counted = Counter(task.status.value for task in workflow.tasks)
    stats = workflow.get_workflow_stats()
    assert stats.pop("total_time_seconds") >= 0
    assert stats == {
        "total_tasks": len(workflow.tasks),
        "completed": counted["COMPLETED"],
        "failed": counted["FAILED"],
        "skipped": counted["SKIPPED"],
        "pending": counted["PENDING"],
        "running": 0,
    }


def check_completed(plans, done):
    """Check that the door says of an execution in which nothing failed what the engine's model says."""
    state, attempts, value = predict(plans)
    assert done.error is None
    assert done.workflow.status is WorkflowStatus.COMPLETED
    assert done.complaints == []
    for plan in plans:
        name = plan.name
        task = done.workflow.get_task(name)
        assert (task.status, task.result, task.error) == (STATUS[state[name]], value[name], None)
        assert task.attempts == attempts[name]
        assert (task.started_at is None) == (task.completed_at is None) == (attempts[name] == 0)
        assert done.workflow.get_task_status(name) is task.status
        assert done.workflow.get_task_result(name) == value[name]
        if done.told is not None:
            assert done.told[name] == story_of(STATUS[state[name]], attempts[name], value[name])
    assert done.result == {name: value[name] for name in state if state[name] == GOOD}
    check_stats(done.workflow)
    if done.hooks is not None:
        assert done.hooks == [("start", "random"), ("success", "random", done.workflow.get_workflow_stats())]
    if done.calls is not None:
        assert Counter(call for call in done.calls if call[1] != "when") == Counter(
            (name, attempt) for name in attempts for attempt in range(1, attempts[name] + 1)
        )


def check_error(done):
    """Check what the error of a failed execution says."""
    assert isinstance(done.error, WorkflowExecutionError)
    assert isinstance(done.error, TaskExecutionError)
    assert isinstance(done.error, RuntimeError)
    assert done.workflow.status is WorkflowStatus.FAILED
    failed = done.workflow.get_task(done.error.failed_task)
    assert failed.status == "FAILED"
    assert done.error.__cause__ is failed.error
    assert repr(failed.name) in str(done.error)
    assert repr(done.workflow.name) in str(done.error)
    assert done.error.attempts == failed.attempts
    completed = {task.name: task.result for task in done.workflow.tasks if task.status == "COMPLETED"}
    assert done.error.result == completed
    if done.hooks is not None:
        assert done.hooks == [("start", "random"), ("failure", "random", str(done.error), failed.error)]


def states_of(plans, workflow):
    """Return how each task stands in the words of the engine, which tells two kinds of PENDING apart."""
    words = {"COMPLETED": GOOD, "SKIPPED": SKIP, "FAILED": FAILED, "CANCELLED": "cancelled"}
    status = {task.name: task.status.value for task in workflow.tasks}
    under_failed = below(plans, {name for name in status if status[name] == "FAILED"})
    pending = {name: "upstream_failed" if name in under_failed else "cancelled" for name in status}
    return {name: words.get(status[name], pending[name]) for name in status}


def check_stopped(plans, done):
    """Check what must hold of an execution that a failure stopped, whatever the timing was."""
    check_error(done)
    check_stats(done.workflow)
    assert done.complaints == []
    state = states_of(plans, done.workflow)
    under_failed = below(plans, {name for name in state if state[name] == FAILED})
    for position, plan in enumerate(plans):
        task = done.workflow.get_task(plan.name)
        ups = [state[before] for before in plan.upstream]
        is_met = not ups or RULES[plan.rule](ups)
        assert (task.started_at is None) == (task.attempts == 0)
        if task.attempts:
            assert is_met
            assert task.status in possible_ends(plan, task.attempts, is_coroutine=position in done.coroutines)
        elif is_met and task.status != "PENDING":  # its condition was asked
            assert task.status == {False: "SKIPPED", "raises": "FAILED"}[plan.when]
        else:
            assert not is_met or plan.rule not in ACCEPT_FAILURE, "a teardown that did not run"
            is_skipped = not (is_met or BAD & set(ups) or plan.name in under_failed)
            assert task.status == ("SKIPPED" if is_skipped else "PENDING")
        given_values = tuple(done.workflow.get_task_result(before) for before in plan.upstream)
        is_completed = task.status == "COMPLETED"
        assert task.result == (value_of(plan.name, task.attempts, given_values) if is_completed else None)
        assert (task.error is None) == (task.status != "FAILED")
        check_story(task, done)


def possible_ends(plan, attempts, *, is_coroutine):
    """Return how a task may stand whose latest attempt was number *attempts*, in an execution that was stopped."""
    outcome = plan.script[min(attempts, len(plan.script)) - 1]
    if is_coroutine:  # may have been cancelled in the middle
        return {STATUS.get({"ok": GOOD, "skip": SKIP}.get(outcome, FAILED)), "CANCELLED"}
    if outcome in RETRIED and attempts <= plan.retries:
        return {"FAILED", "CANCELLED"}  # it failed after the stop, or waited for its next attempt
    return {STATUS.get({"ok": GOOD, "skip": SKIP}.get(outcome, FAILED))}


def check_story(task, done):
    """Check what the callbacks of *task* were told, of an execution that was stopped."""
    if done.told is None:
        return
    story, told = story_of(task.status, task.attempts, task.result), list(done.told[task.name])
    if task.status == "FAILED":
        story.append(("FAILED", task.error, True))
    if task.status == "CANCELLED":
        story += ["RETRYING", task.attempts] * (told[-2:-1] == [task.attempts])  # it waited for its next attempt
        story.append("CANCELLED")
    assert told == story


def check_nothing_starts_after_a_failure(plans, events, failed_task):
    """Check that after the first failure only tasks start that accept one."""
    failures = [n for n, event in enumerate(events) if isinstance(event, TaskFailed)]
    assert events[failures[0]].task_name == failed_task
    late = {event.task_name for event in events[failures[0] :] if isinstance(event, AttemptStarted)}
    assert late <= {plan.name for plan in plans if plan.rule in ACCEPT_FAILURE}


# ---------------------------------------------------------------- statuses


any_execution = {
    "plans": graphs(),
    "seed": st.integers(0, 2**32),
    "max_workers": st.sampled_from([MANY_WORKERS, 1, 2]),
    "coroutines": st.sampled_from([(), range(12), range(0, 12, 2), range(1, 12, 2)]),
    "has_callbacks": st.booleans(),
}


def complete_and_compare(kind, plans, seed, again=None, **options):
    plans = mend(plans)
    done = run(plans, kind, seed, **options)
    check_completed(plans, done)
    if again is not None:  # with another executor, which knows nothing of the first one
        check_completed(plans, run(plans, again, seed, watched=done.watched, **options))


@pytest.mark.parametrize("kind", EXECUTORS)
@given(**any_execution, again=st.sampled_from([None, *EXECUTORS]))
@examples(150)
def test_where_nothing_fails_the_door_says_what_the_model_says(kind, again, plans, seed, **options):
    complete_and_compare(kind, plans, seed, again, **options)


@pytest.mark.parametrize("kind", EXECUTORS)
@given(**any_execution, again=st.sampled_from([None, *EXECUTORS]))
@soak
def test_where_nothing_fails_the_door_says_what_the_model_says_ten_thousand_times(
    kind, again, plans, seed, part, **options
):
    complete_and_compare(kind, plans, seed, again, **options)


failing = st.one_of(st.sets(st.sampled_from([f"t{n}" for n in range(12)]), min_size=1, max_size=3), st.none())
"""The names of tasks that are left as they are while all others are mended; None for a graph that is as it is.

Most graphs fail in their first generation otherwise.
"""


def fail_and_check(kind, plans, failing, seed, **options):
    plans = plans if failing is None else mend(plans, failing)
    done = run(plans, kind, seed, **options)
    if done.error is None:
        check_completed(plans, done)
        return
    check_stopped(plans, done)
    if done.events is not None:
        check_nothing_starts_after_a_failure(plans, done.events, done.error.failed_task)


@pytest.mark.parametrize("kind", EXECUTORS)
@given(**any_execution, failing=failing)
@examples(180)
def test_a_failure_stops_what_has_not_started_and_the_door_says_so(kind, plans, failing, seed, **options):
    fail_and_check(kind, plans, failing, seed, **options)


@pytest.mark.parametrize("kind", EXECUTORS)
@given(**any_execution, failing=failing)
@soak
def test_a_failure_stops_what_has_not_started_and_the_door_says_so_ten_thousand_times(
    kind, plans, failing, seed, part, **options
):
    fail_and_check(kind, plans, failing, seed, **options)


# ---------------------------------------------------------------- one at a time, each once: a model of all of it


def generations(plans, added):
    """Return the plans *added* by their topological generations, in the order in which they were added."""
    generation = {}
    for plan in plans:
        generation[plan.name] = 1 + max((generation[before] for before in plan.upstream), default=-1)
    count = max(generation.values()) + 1
    return [[plan for plan in added if generation[plan.name] == n] for n in range(count)]


def predict_in_order(plans):
    """Predict an execution of *plans*, which start in this order and have no retries.

    Returns:
        The state of each, the names of those whose function is called, and of those that fail.
    """
    state, called, failed = {}, [], []
    for plan in plans:
        ups = [state[before] for before in plan.upstream]
        is_met = not ups or RULES[plan.rule](ups)
        if is_met and (not failed or plan.rule in ACCEPT_FAILURE):
            outcome = {None: plan.script[0], True: plan.script[0], False: "skip", "raises": "fail"}[plan.when]
            state[plan.name] = {"ok": GOOD, "skip": SKIP}.get(outcome, FAILED)
            called += [plan.name] * (plan.when in (None, True))
            failed += [plan.name] * (state[plan.name] == FAILED)
        elif plan.name in below(plans, set(failed)):
            state[plan.name] = "upstream_failed"
        else:
            state[plan.name] = "cancelled" if is_met or BAD & set(ups) else SKIP
    return state, called, failed


def stop_and_compare(plans, failing, seed, has_callbacks):
    plans = [replace(plan, retries=0) for plan in plans]
    plans = plans if failing is None else mend(plans, failing)
    by_generation = generations(plans, [plans[position] for position in shuffled(plans, seed)])
    in_order = [plan for generation in by_generation for plan in generation]
    state, called, failed = predict_in_order(in_order)
    expected = {}
    for plan in in_order:
        if state[plan.name] == GOOD:
            expected[plan.name] = value_of(plan.name, 1, tuple(expected.get(before) for before in plan.upstream))
    done = run(plans, "sequential", seed, has_callbacks=has_callbacks)
    assert [[task.name for task in each] for each in done.workflow.get_execution_plan()] == [
        [plan.name for plan in each] for each in by_generation
    ]
    status = {task.name: task.status.value for task in done.workflow.tasks}
    assert status == {name: STATUS.get(state[name], "PENDING") for name in state}
    assert [name for name, attempt in done.calls if attempt != "when"] == called
    assert (done.error.result if done.error else done.result) == expected
    assert (done.error.failed_task if done.error else None) == (failed[0] if failed else None)
    if failed:
        first = next(plan for plan in plans if plan.name == failed[0])
        assert type(done.error.__cause__) is (ConditionError if first.when == "raises" else CAUSES[first.script[0]])


@given(plans=graphs(), failing=failing, seed=st.integers(0, 2**32), has_callbacks=st.booleans())
@examples(350)
def test_one_at_a_time_the_door_says_what_the_model_says_of_failures_too(plans, failing, seed, has_callbacks):
    stop_and_compare(plans, failing, seed, has_callbacks)


@given(plans=graphs(), failing=failing, seed=st.integers(0, 2**32), has_callbacks=st.booleans())
@soak
def test_one_at_a_time_the_door_says_what_the_model_says_of_failures_too_ten_thousand_times(
    plans, failing, seed, has_callbacks, part
):
    stop_and_compare(plans, failing, seed, has_callbacks)


# ---------------------------------------------------------------- processes


def run_in_processes(plans):
    """Execute *plans*, which take no time, in processes."""
    told, events, hooks = defaultdict(list), [], []
    workflow = Workflow("random")
    for plan in reversed(plans):
        body = functools.partial(story_tasks.act_by_name, plan.name, plan.script, plan.upstream)
        answer = functools.partial(model_tasks.answer, plan.name, plan.when)
        options = options_of(plan) | {"delay": 0, "when": None if plan.when is None else answer}
        workflow.add_task(Task(plan.name, body, **options, **callbacks_into(told)), depends_on=plan.upstream)
    result, error = execute(ProcessExecutor(2, observers=[events.append], **hooks_into(hooks)), workflow)
    return SimpleNamespace(
        workflow=workflow, result=result, error=error, told=told, calls=None, complaints=[], events=events,
        coroutines=(), hooks=hooks,
    )  # fmt: skip


def complete_in_processes(several):
    plans = mend(union(several))
    check_completed(plans, run_in_processes(plans))


def fail_in_processes(several, failing):
    plans = union(several)
    plans = mend(plans, {f"g{number}_{name}" for number in range(2) for name in failing or ()})
    done = run_in_processes(plans)
    if done.error is None:
        check_completed(plans, done)
        return
    check_stopped(plans, done)
    check_nothing_starts_after_a_failure(plans, done.events, done.error.failed_task)


several_graphs = st.lists(graphs(), min_size=GRAPHS, max_size=GRAPHS)
some_graphs = st.lists(graphs(), min_size=4, max_size=8)


@posix
@given(several_graphs)
@settings(max_examples=3, **QUICKLY)
def test_processes_do_what_the_model_says(several):
    complete_in_processes(several)


@posix
@given(some_graphs, failing)
@settings(max_examples=8, **QUICKLY)
def test_a_failure_stops_processes_too(several, failing):
    fail_in_processes(several, failing)


@posix
@pytest.mark.soak
@pytest.mark.parametrize("part", range(7))
@given(several=several_graphs)
@settings(max_examples=25, **QUICKLY)
def test_processes_do_what_the_model_says_five_thousand_times(several, part):
    complete_in_processes(several)


@posix
@pytest.mark.soak
@pytest.mark.parametrize("part", range(7))
@given(several=some_graphs, failing=failing)
@settings(max_examples=50, **QUICKLY)
def test_a_failure_stops_processes_too_three_hundred_times(several, failing, part):
    fail_in_processes(several, failing)


@posix
def test_the_death_of_a_process_is_the_cause_of_the_error():
    """fine ─► dies ─► never"""
    workflow = Workflow("deadly")
    for name, script, upstream in [("fine", ("ok",), ()), ("dies", ("timeout",), ("fine",)), ("never", (), ("dies",))]:
        body = functools.partial(story_tasks.act_by_name, name, script, upstream)
        workflow.add_task(Task(name, body), depends_on=upstream)
    _, error = execute(ProcessExecutor(1), workflow)
    assert error.failed_task == "dies"
    assert type(error.__cause__) is WorkerDiedError
    assert [task.status for task in workflow.tasks] == ["COMPLETED", "FAILED", "PENDING"]
    assert workflow.get_task_result("fine") == value_of("fine", 1, ())


# ---------------------------------------------------------------- what the door says in between


@pytest.mark.parametrize("kind", ["sequential", "thread", "async"])
def test_the_door_follows_a_task_through_its_retries(kind):
    """flaky fails twice; watcher, an observer, looks at it at each event."""
    clock, seen = VirtualClock(), []
    workflow = Workflow("followed")

    def flaky(context):
        seen.append(("called", str(workflow.get_task_status("flaky")), workflow.get_task("flaky").attempts))
        if context.attempt < 3:
            raise ConnectionError("refused")

    def look(event):
        task = workflow.get_task("flaky")
        seen.append((type(event).__name__, str(task.status), task.attempts))

    workflow.add_task(Task("flaky", flaky, retries=2, delay=10, jitter=0))
    assert workflow.get_task_status("flaky") == "PENDING"
    make_executor(kind, clock, 0, 2, observers=[look]).execute(workflow)
    attempts = [
        [("AttemptStarted", "RUNNING", n), ("called", "RUNNING", n), ("AttemptFailed", "RETRYING", n)]
        for n in (1, 2, 3)
    ]
    last = [*attempts[2][:2], ("TaskSucceeded", "COMPLETED", 3), ("RunFinished", "COMPLETED", 3)]
    assert seen == [("RunStarted", "PENDING", 0), *attempts[0], *attempts[1], *last]


def test_a_task_that_is_no_failure_has_no_error():
    """flaky waits for its next attempt when bad fails

    As the attribute is documented: "None unless it FAILED".
    """
    clock = VirtualClock()

    def flaky():
        raise ConnectionError("refused")

    def bad():
        clock.sleep(1)
        raise LookupError("no such row")

    workflow = Workflow("stopped")
    workflow.add_task(Task("flaky", flaky, retries=1, delay=60))
    workflow.add_task(Task("bad", bad))
    _, error = execute(ThreadedExecutor(_clock=clock), workflow)
    assert error.failed_task == "bad"
    assert workflow.get_task_status("flaky") == "CANCELLED"
    assert workflow.get_task("flaky").error is None


def test_a_task_that_is_added_during_an_execution_waits_for_the_next_one():
    """first ─► second, which is added by first"""
    workflow = Workflow("growing")
    second = Task("second", lambda first: first + 1)

    def first():
        if "second" not in workflow:
            workflow.add_task(second, depends_on=["first"])
        return 1

    workflow.add_task(Task("first", first))
    assert SequentialExecutor().execute(workflow) == {"first": 1}
    assert workflow.get_task_status("second") == "PENDING"
    assert SequentialExecutor().execute(workflow) == {"first": 1, "second": 2}


def test_a_task_that_is_added_while_the_graph_is_checked_is_in_the_next_execution():
    """late is added by another thread at the moment when the parameters of early are read."""
    workflow, late = Workflow("growing"), Task("late", lambda: "late")

    class Early:
        has_added = False

        @property
        def __signature__(self):
            if not self.has_added:
                self.has_added = True
                adding = threading.Thread(target=workflow.add_task, args=[late])
                adding.start()
                adding.join(20)
            return inspect.Signature([])

        def __call__(self):
            return "early"

    workflow.add_task(Task("early", Early()))
    SequentialExecutor().execute(workflow)
    assert SequentialExecutor().execute(workflow) == {"early": "early", "late": "late"}


# ---------------------------------------------------------------- binding by names


NOTHING = story_tasks.NOTHING
TASK_NAMES = ["a", "b", "c", "d", "context"]
NAMES = [*TASK_NAMES, "x", "y"]
"""Of parameters: some are like those of dependencies, some like those of other tasks, some like nobody's."""
DEFAULTS = [NOTHING, NOTHING, None, 0, "default"]
PARAMETERS = st.lists(
    st.sampled_from(list(product(NAMES, ["", "", "/", "*"], DEFAULTS))), max_size=4, unique_by=lambda each: each[0]
)
SHAPES = st.sampled_from(list(product(
    [False, False, True],  # *others
    [False, True],  # **rest
    ["call", "call", "call", "none", "zero", "skip"],
    ["none_failed", "none_failed", "all_done", "one_success"],
    ["function", "function", "coroutine", "object"],
)))  # fmt: skip


@dataclass(frozen=True)
class CallPlan:
    """A task and its parameters.

    Attributes:
        parameters: Tuples of a name, "/" for positional-only, "*" for keyword-only or "" for neither, and a default.
        gives: "call" for a text that tells how it was called, "none", "zero", or "skip" to be skipped.
        shape: Whether it is a "function", a "coroutine", or an "object" that can be called.
    """

    name: str
    depends_on: tuple
    parameters: tuple = ()
    has_varargs: bool = False
    has_varkw: bool = False
    gives: str = "call"
    rule: str = "none_failed"
    shape: str = "function"

    def leaves(self, name):
        """Return whether the result of *name* is left for ``**rest``: no parameter takes it or has its name."""
        kinds = [kind for parameter, kind, _ in self.parameters if parameter == name]
        return not kinds or (name == "context" and kinds == ["/"])

    def make(self):
        """Return what can be called so."""
        if self.shape == "object":
            return story_tasks.Echo(self.name, self.gives, self.parameters, self.has_varargs, self.has_varkw)
        space = {"answer": story_tasks.answer} | {f"default_{name}": each for name, _, each in self.parameters}
        exec(self._source(), space)
        return space["made"]

    def _source(self):
        written = {kind: [] for kind in ("/", "", "*")}
        for name, kind, default in self.parameters:
            written[kind].append(name if default is NOTHING else f"{name}=default_{name}")
        parts = [*written["/"], *["/"][: len(written["/"])], *written[""]]
        parts += ["*others"] if self.has_varargs else ["*"][: len(written["*"])]
        parts += [*written["*"], *["**rest"][: self.has_varkw]]
        arguments = ", ".join(f"{name!r}: {name}" for name, _, _ in self.parameters)
        others, rest = "others" if self.has_varargs else "()", "rest" if self.has_varkw else "{}"
        head = "async def" if self.shape == "coroutine" else "def"
        return (
            f"{head} made({', '.join(parts)}):\n"
            f"    return answer({self.name!r}, {self.gives!r}, {{{arguments}}}, {others}, {rest})"
        )


def ordered(parameters):
    """Return *parameters* as Python allows them: by kind, and behind a default only ones with a default."""
    found, needs_default = [], False
    for name, kind, default in sorted(parameters, key=lambda each: "/ *".index(each[1] or " ")):
        needs_default = kind != "*" and (needs_default or default is not NOTHING)
        found.append((name, kind, None if needs_default and default is NOTHING else default))
    return tuple(found)


@st.composite
def call_graphs(draw):
    """Plans of 1 to 5 tasks in topological order; most of the graphs can be bound."""
    names = draw(st.sampled_from(list(permutations(TASK_NAMES))))
    is_lenient = draw(st.sampled_from([True, True, True, False]))
    plans = []
    for n in range(draw(st.integers(1, len(names)))):
        depends_on = tuple(names[before] for before in draw(WIRINGS[n]))
        has_varargs, has_varkw, gives, rule, shape = draw(SHAPES)
        parameters = draw(PARAMETERS)
        if is_lenient:
            parameters = [
                (name, kind, None if default is NOTHING and name not in (*depends_on, "context") else default)
                for name, kind, default in parameters
            ]
        plans.append(CallPlan(names[n], depends_on, ordered(parameters), has_varargs, has_varkw, gives, rule, shape))
    return plans


def predict_calls(plans):
    """Return which parameters of each task get nothing, by its name; and the state and the result of each task."""
    missing, state, results = {}, {}, {}
    for plan in plans:
        nothing = [
            name
            for name, _, default in plan.parameters
            if name != "context" and name not in plan.depends_on and default is NOTHING
        ]
        if nothing:
            missing[plan.name] = nothing
        ups = [state[before] for before in plan.depends_on]
        state[plan.name] = SKIP if plan.gives == "skip" or (ups and not RULES[plan.rule](ups)) else GOOD
        results[plan.name] = {"none": None, "zero": 0}.get(plan.gives) if state[plan.name] == GOOD else None
        if state[plan.name] == GOOD and plan.gives == "call":
            results[plan.name] = call_of(plan, state, results)
    return missing, state, results


def call_of(plan, state, results):
    """Return the call of *plan* as text: what each of its parameters gets."""
    arguments, rest = {}, {}
    for name, _, default in plan.parameters:
        if name == "context":
            arguments[name] = TaskContext
        elif name in plan.depends_on and state[name] == GOOD:
            arguments[name] = results[name]
        else:
            arguments[name] = None if default is NOTHING else default
    for name in plan.depends_on:
        if plan.has_varkw and state[name] == GOOD and plan.leaves(name):
            rest[name] = results[name]
    text = story_tasks.described(plan.name, arguments, (), rest)
    return text.replace(repr(TaskContext), "...")


def build_calls(plans, seed=0):
    workflow = Workflow("bound")
    for position in shuffled(plans, seed):
        plan = plans[position]
        workflow.add_task(Task(plan.name, plan.make(), trigger=plan.rule), depends_on=plan.depends_on)
    return workflow


def bind_and_compare(plans, seed, kind):
    missing, state, results = predict_calls(plans)
    workflow = build_calls(plans, seed)
    executor = make_executor(kind, None, seed, 2)
    if missing:
        for attempt in (workflow.validate, lambda: execute(executor, workflow)):
            with pytest.raises(DefinitionError) as caught:
                attempt()
            check_problems(caught.value, missing)
        assert {task.status for task in workflow.tasks} == {"PENDING"}
        assert workflow.status is WorkflowStatus.IDLE
        return
    workflow.validate()
    result, error = execute(executor, workflow, is_awaited=kind == "awaited")
    assert error is None
    assert {task.name: task.result for task in workflow.tasks} == results
    assert result == {name: results[name] for name in state if state[name] == GOOD}


def check_problems(error, missing):
    """Check that *error* names each task of *missing*, and what it gets nothing for."""
    problems = error.problems or (error,)
    assert len(problems) == len(missing)
    assert all(type(problem) is BindingError for problem in problems)
    for name, parameters in missing.items():
        told = [str(problem) for problem in problems if str(problem).startswith(f"task '{name}(")]
        assert len(told) == 1
        nothing = re.escape(f"nothing gives {', '.join(map(repr, parameters))}")
        assert re.search(rf"{nothing}(\.| \()", told[0])  # all of them, and maybe a hint


@pytest.mark.parametrize("kind", EXECUTORS)
@given(plans=call_graphs(), seed=st.integers(0, 2**32))
@examples(150)
def test_names_alone_decide_which_argument_gets_which_result(kind, plans, seed):
    bind_and_compare(plans, seed, kind)


@pytest.mark.parametrize("kind", EXECUTORS)
@given(plans=call_graphs(), seed=st.integers(0, 2**32))
@soak
def test_names_alone_decide_which_argument_gets_which_result_ten_thousand_times(kind, plans, seed, part):
    bind_and_compare(plans, seed, kind)


def in_batch(several):
    """Return the plans of *several* graphs that can be bound as those of one, for processes."""
    plans = []
    for number, graph in enumerate(several):
        rename = {name: f"g{number}_{name}" for name in TASK_NAMES}
        graph = [
            replace(
                plan,
                name=rename[plan.name],
                shape="object",
                depends_on=tuple(rename[name] for name in plan.depends_on),
                parameters=tuple(
                    (name if name == "context" else rename.get(name, name), kind, default)
                    for name, kind, default in plan.parameters
                ),
            )
            for plan in graph
        ]
        if not predict_calls(graph)[0]:
            plans += graph
    return plans


def bind_in_processes(several):
    plans = in_batch(several)
    _, state, results = predict_calls(plans)
    result, error = execute(ProcessExecutor(2), build_calls(plans))
    assert error is None
    assert result == {name: results[name] for name in state if state[name] == GOOD}


@given(st.lists(call_graphs(), min_size=GRAPHS, max_size=GRAPHS))
@settings(max_examples=3, **QUICKLY)
def test_names_alone_decide_what_goes_to_processes_too(several):
    bind_in_processes(several)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(7))
@given(several=st.lists(call_graphs(), min_size=GRAPHS, max_size=GRAPHS))
@settings(max_examples=25, **QUICKLY)
def test_names_alone_decide_what_goes_to_processes_too_five_thousand_times(several, part):
    bind_in_processes(several)


@pytest.mark.parametrize("annotation", [None, "TaskContext"])
def test_a_dependency_that_is_named_like_the_context_is_not_passed_twice(annotation):
    """context ─► last(context, **rest), and rows ─► last(rows: TaskContext, **rest)

    The parameter gets the context and never a result. So the result can only order, or the graph is refused.
    """
    name = "context" if annotation is None else "rows"

    def last(rows, **rest):
        return rest

    def last_of_context(context, **rest):
        return rest

    last.__annotations__ = {"rows": "TaskContext"}
    workflow = Workflow("twice")
    workflow.add_task(Task(name, lambda: 1))
    workflow.add_task(Task("last", last if annotation else last_of_context), depends_on=[name])
    try:
        workflow.validate()
    except BindingError:
        return
    assert SequentialExecutor().execute(workflow)["last"] == {}


# ---------------------------------------------------------------- going on from a store


@dataclass(frozen=True)
class ResumePlan:
    name: str
    upstream: tuple
    rule: str = "none_failed"


@st.composite
def failing_graphs(draw):
    """Plans of 1 to 8 tasks in topological order, and the names of those that fail at first."""
    count = draw(st.integers(1, 8))
    plans = [ResumePlan(f"t{n}", tuple(f"t{before}" for before in draw(WIRINGS[n]))) for n in range(count)]
    failing = draw(st.sets(st.sampled_from([plan.name for plan in plans]), max_size=3))
    return plans, failing


def build_resumed(plans):
    workflow = Workflow("resumed")
    for plan in plans:
        workflow.add_task(Task(plan.name, story_tasks.say_by_name), depends_on=plan.upstream)
    return workflow


def fail_and_go_on(kind, store, plans, failing):
    """Execute *plans* with one store until nothing fails: one of *failing* is mended after each execution."""
    expected = {}
    for plan in plans:
        given_values = {before: expected[before] for before in plan.upstream}
        expected[plan.name] = story_tasks.described(plan.name, {}, (), given_values)
    world.reset()
    completed, failing = set(), set(failing)
    while True:
        world.calls, world.does = [], {name: ConnectionError(name) for name in failing}
        workflow = build_resumed(plans)
        executor = {"sequential": SequentialExecutor, "thread": ThreadedExecutor}[kind](state_store=store)
        _, error = execute(executor, workflow)
        by_status = defaultdict(set)
        for task in workflow.tasks:
            by_status[task.status.value].add(task.name)
        assert completed <= by_status["COMPLETED"]
        assert sorted(world.calls) == sorted((by_status["COMPLETED"] - completed) | by_status["FAILED"])
        assert all(workflow.get_task_result(name) == expected[name] for name in by_status["COMPLETED"])
        check_kept(store, workflow)
        completed = by_status["COMPLETED"]
        if error is None:
            assert completed == expected.keys()
            return
        assert by_status["FAILED"] <= failing
        failing.discard(error.failed_task)


def check_kept(store, workflow):
    """Check that the store says of each task what the door says."""
    kept = store.for_workflow(workflow.name)
    for task in workflow.tasks:
        state = kept.load_task_state(task.name)
        if task.status in ("COMPLETED", "FAILED"):
            assert (state["status"], state["result"]) == (task.status, task.result)
            assert (task.status == "COMPLETED") or repr(task.name)[1:-1] in state["error"]
        else:
            assert state is None or state["status"] != "COMPLETED"


def resume_and_compare(kind, store, plans, failing):
    with tempfile.TemporaryDirectory() as folder:
        if store == "json":
            fail_and_go_on(kind, JSONStateStore(os.path.join(folder, "state.json")), plans, failing)
        else:
            with SQLiteStateStore(os.path.join(folder, "state.db")) as opened:
                fail_and_go_on(kind, opened, plans, failing)


WITH_FILES = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate, Phase.shrink]}


@pytest.mark.parametrize("kind", ["sequential", "thread"])
@pytest.mark.parametrize("store", ["json", "sqlite"])
@given(failing_graphs())
@settings(max_examples=20, **WITH_FILES)
def test_with_a_store_exactly_what_is_not_completed_is_called_again(kind, store, drawn):
    resume_and_compare(kind, store, *drawn)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sequential", "thread"])
@pytest.mark.parametrize("store", ["json", "sqlite"])
@given(failing_graphs())
@settings(max_examples=1000, **WITH_FILES)
def test_with_a_store_exactly_what_is_not_completed_is_called_again_a_thousand_times(kind, store, drawn):
    resume_and_compare(kind, store, *drawn)
