"""Properties of resumed runs: random graphs, random outcomes, random changes, and a crash at any record or event.

A *crash* is either a disk that is full from some record on, or a copy of the files at some event, from which the next
run goes on as if the process had died there. Whatever was announced before is *acknowledged*.
"""

import signal
import threading
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import resume_sketches
import resume_tasks
import test_map_model
import test_model_process
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from model import RULES, predict
from resume_sketches import Sketch
from resume_tasks import FullDisk, Stores
from strategies import TaskPlan, _make_task, graphs

from flowkit import (
    DAG,
    StateWriteError,
    TaskCancelled,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
)
from flowkit.testing import VirtualClock, run_fuzzed

MANY_WORKERS = 19
EXECUTORS = ["sequential", "thread", "fuzzed"]
KINDS = ["memory", "json", "sqlite"]


def examples(most):
    """Say how often a test is tried; a loaded machine is no failure."""
    return settings(max_examples=most, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def soak(test):
    """Make *test* 20 soak tests of 100 examples each, so that none takes so long that it looks like a hang."""
    return pytest.mark.soak(pytest.mark.parametrize("part", range(20))(examples(100)(test)))


class Log:
    """A list of calls. Its lock lets it count by its type in fingerprints, whatever is in it."""

    def __init__(self):
        self._lock = threading.Lock()
        self.entries = []

    def append(self, entry):
        with self._lock:
            self.entries.append(entry)

    __call__ = append


# ---------------------------------------------------------------- whatever changed: the results of a fresh run


def check_history(history, rooms, kind="memory", executor="sequential"):
    """Run each graph of *history* on one store, crashing where *rooms* says so, and compare with a fresh run."""
    with TemporaryDirectory() as folder, closing(Stores(kind, Path(folder))) as stores:
        for n, (sketches, inputs) in enumerate(history):
            fresh = resume_sketches.build(sketches).run(inputs, executor="sequential")
            dag = resume_sketches.build(sketches)
            room = rooms[n % len(rooms)]
            if room is not None:
                with suppress(StateWriteError):
                    dag.run(inputs, state=FullDisk(stores(), room), resume=True, executor=executor)
            result = dag.run(inputs, state=stores(), resume=True, executor=executor)
            assert dict(result) == dict(fresh)
            assert {name: own.state for name, own in result.tasks.items()} == {
                name: own.state for name, own in fresh.tasks.items()
            }


ROOMS = st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=4)
NOTHING = Sketch("t0", size=0)
UNKEPT = [Sketch(name, persists=False) for name in ("t0", "t1")]


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@given(history=resume_sketches.histories(), rooms=ROOMS)
@example([([*UNKEPT, Sketch("t2", ("t0", "t1"))], None), ([*UNKEPT, Sketch("t2", ("t1", "t0"))], None)], [None])
@example([([Sketch("t0", is_mapped=True)], {"row": (1, 2)}), ([Sketch("t0", is_mapped=True)], {"row": (1, 3)})], [None])
@examples(60)
def test_a_resumed_run_gives_what_a_fresh_run_gives_whatever_changed(executor, history, rooms):
    check_history(history, rooms, executor=executor)


@pytest.mark.parametrize("kind", ["json", "sqlite"])
@given(history=resume_sketches.histories(), rooms=ROOMS)
@examples(10)
def test_a_resumed_run_gives_what_a_fresh_run_gives_in_every_store(kind, history, rooms):
    check_history(history, rooms, kind)


@pytest.mark.parametrize("kind", KINDS)
@given(history=resume_sketches.histories(most=9), rooms=ROOMS)
@soak
def test_a_resumed_run_gives_what_a_fresh_run_gives_two_thousand_times(kind, history, rooms, part):
    check_history(history, rooms, kind, "thread")


def check_tides(tides, rooms, kind="memory", executor="sequential"):
    """Run rows (not kept) ─► each (mapped, when odd) ─► then (mapped) ─► total for each of *tides* on one store."""
    tide = Log()  # counts by its type: where the rows come from nobody watches

    def rows():
        return tide.entries[-1]

    def make():
        graph = {"rows": "", "each": "rows", "then": "each", "total": "then"}
        options = {"rows": {"func": rows, "persist": False}, "each": {"func": keep_one, "when": is_odd}}
        return resume_tasks.build(graph, mapped=["each", "then"], func=keep_one, **options)

    with TemporaryDirectory() as folder, closing(Stores(kind, Path(folder))) as stores:
        for n, found in enumerate(tides):
            tide.append(found)
            room = rooms[n % len(rooms)]
            if room is not None:
                with suppress(StateWriteError):
                    make().run(state=FullDisk(stores(), room), resume=True, executor=executor)
            result = make().run(state=stores(), resume=True, executor=executor)
            kept = [row if row % 2 else None for row in found]
            assert dict(result) == {"rows": found, "each": kept, "then": kept, "total": kept}


def keep_one(value):
    return value


def is_odd(row):
    return row % 2 == 1


TIDES = st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=6)


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@given(tides=TIDES, rooms=ROOMS)
@example([[1, 1, 0], [1, 0, 0]], [None])
@examples(40)
def test_items_of_rows_that_are_not_kept_are_those_of_a_fresh_run(executor, tides, rooms):
    check_tides(tides, rooms, executor=executor)


@pytest.mark.parametrize("kind", KINDS)
@given(tides=TIDES, rooms=ROOMS)
@soak
def test_items_of_rows_that_are_not_kept_are_those_of_a_fresh_run_two_thousand_times(kind, tides, rooms, part):
    check_tides(tides, rooms, kind, "thread")


# ---------------------------------------------------------------- the reference model, and crashes


def build(plans, unkept, clock, log):
    """Return the DAG of *plans*, as a new process makes it; tasks whose positions are in *unkept* are not kept."""
    tasks = {}
    for position, plan in enumerate(plans):
        tasks[plan.name] = _make_task(plan, clock, log, {"persist": position not in unkept})
        for name in plan.upstream:
            tasks[name] >> tasks[plan.name]
    return DAG("random", tasks=tasks.values())


TEARDOWNS = ("all_done", "one_failed", "all_failed")
"""Rules of tasks that run again below what is not kept, for they may tear it down."""


class Life:
    """What happened of *plans* in all runs so far, as far as it was announced.

    Attributes:
        tokens: For each run and task what a task below it was made from: the run whose result it is, "skipped", or
            what a task that is not kept was made from; None for what cannot be used again.
    """

    def __init__(self, plans, unkept):
        self.plans = plans
        self.unkept = {plan.name for position, plan in enumerate(plans) if position in unkept}
        self.tokens = {}
        self.acknowledged = set()

    def hear(self, event):
        """Take note of *event*."""
        own = self.tokens.setdefault(event.run_id, {})
        name = getattr(event, "task_name", None)
        if isinstance(event, TaskSkipped):
            own[name] = "skipped"
        elif isinstance(event, TaskRestored):
            own[name] = event.reason.rpartition(" ")[2]
        elif isinstance(event, TaskSucceeded):
            self.acknowledged.add(name)
            own[name] = self._unkept(name, own) if name in self.unkept else event.run_id
        elif isinstance(event, TaskFailed | TaskUpstreamFailed | TaskCancelled):
            own[name] = None

    def _unkept(self, name, tokens):
        """Return the token of *name*, which is not kept, above which there is what *tokens* says."""
        plan = next(plan for plan in self.plans if plan.name == name)
        above = tuple(tokens[before] for before in plan.upstream)
        return None if None in above else (name, above)

    def restorable(self, records):
        """Return which tasks a run must restore that finds *records*, and ends as the reference model says."""
        states, _, _ = predict(self.plans)
        found, tokens = set(), {}
        for plan in self.plans:
            name, above = plan.name, [tokens[before] for before in plan.upstream]
            record = records.get(name)
            may_start = not above or RULES[plan.rule]([states[before] for before in plan.upstream])
            if states[name] == "skipped":
                tokens[name] = "skipped"
            elif states[name] != "succeeded":
                tokens[name] = None
            elif name in self.unkept:
                tokens[name] = self._unkept(name, tokens)
            elif plan.rule in TEARDOWNS and any(b in self.unkept and tokens[b] != "skipped" for b in plan.upstream):
                tokens[name] = "this run"
            elif may_start and record is not None and record.state == "COMPLETED" and None not in above:
                then = [self.tokens[record.run_id][before] for before in plan.upstream]
                tokens[name] = record.run_id if then == above else "this run"
            else:
                tokens[name] = "this run"
            if tokens[name] not in ("skipped", None, "this run") and name not in self.unkept:
                found.add(name)
        return found


def run_once(dag, executor, seed, state, observers, clock, **options):
    options = {"raise_on_failure": False, "state": state, "resume": True, "observers": observers, **options}
    if executor == "fuzzed":
        return run_fuzzed(dag, seed, _clock=clock, **options)
    return dag.run(executor=executor, max_workers=MANY_WORKERS, _clock=clock, **options)


def open_store(stores):
    """Return a store of *stores* that keeps what has ended in virtual time, which is long ago."""
    return stores(gc_days=None) if stores.kind == "sqlite" else stores()


def crash_and_resume(kind, executor, plans, unkept, seed, crashes):
    """Run *plans* with a crash for each of *crashes*, then to the end; check everything that a crash must not change.

    Args:
        crashes: For each run before the last how ("disk" or "copy") and where it ends, as a number of records or
            events, and whether it is fail-fast.
    """
    life = Life(plans, unkept)

    def run(state, observer, n, fail_fast):
        clock = VirtualClock()
        dag = build(plans, unkept, clock, Log())
        run_once(dag, executor, seed + n, state, [observer], clock, fail_fast=fail_fast)

    with TemporaryDirectory() as folder, closing(Stores(kind, Path(folder))) as first:
        stores = crash_again_and_again(first, crashes, run, life.hear)
        records = open_store(stores).read_scope("random").tasks
        assert life.acknowledged - life.unkept <= records.keys()
        check_last_run(open_store(stores), executor, plans, unkept, seed, life)


def crash_again_and_again(stores, crashes, run, hear):
    """Call *run* with a state, an observer, a number and whether to be fail-fast, for each of *crashes*.

    Args:
        stores: Where it begins.
        hear: Gets every event that came before its crash.

    Returns:
        The stores that the last crash has left.
    """
    for n, (how, where, fail_fast) in enumerate(crashes):
        if how == "disk" or stores.kind == "memory":
            with suppress(StateWriteError):
                run(FullDisk(open_store(stores), where), hear, n, fail_fast)
            continue
        crash = Copy(stores, where, hear)
        run(open_store(stores), crash, n, fail_fast)
        stores = crash.left or stores
    return stores


class Copy:
    """An observer that copies what is on the disk at event number *where*, and hears no more from then on."""

    def __init__(self, stores, where, hear):
        self._stores, self._where, self._hear = stores, where, hear
        self.left = None

    def __call__(self, event):
        if self.left is None:
            self._hear(event)
            self._where -= 1
            if self._where < 0:
                self.left = self._stores.crash(mkdtemp(dir=self._stores.folder))


def check_last_run(state, executor, plans, unkept, seed, life):
    """Check that the run that ends it all gives what one does that nothing disturbs, and calls nothing once more."""
    records = state.read_scope("random").tasks
    expected = life.restorable(records)
    clock, log = VirtualClock(), Log()
    result = run_once(build(plans, unkept, clock, log), executor, seed, state, [life.hear], clock, fail_fast=False)
    found = {name for name, own in result.tasks.items() if own.restored}
    states, attempts, values = predict(plans)
    assert {name: own.state for name, own in result.tasks.items()} == states
    assert dict(result) == {name: values[name] for name in states if states[name] == "succeeded"}
    assert found == expected
    called = {name for name, _ in log.entries}
    assert not called & found
    assert {name: own.attempts for name, own in result.tasks.items()} == {
        name: 0 if name in found else attempts[name] for name in attempts
    }


CRASHES = st.lists(
    st.tuples(st.sampled_from(["copy", "disk"]), st.integers(0, 30), st.booleans()), min_size=1, max_size=3
)
any_life = {
    "plans": graphs(),
    "unkept": st.one_of(st.just(frozenset()), st.frozensets(st.integers(0, 11), max_size=4)),
    "seed": st.integers(0, 2**32),
    "crashes": CRASHES,
}
TEARDOWN = [
    TaskPlan("t0", script=("fail",)),
    TaskPlan("t1", ("t0",), "all_done"),
    TaskPlan("t2", ("t1",)),
]


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_life)
@example(plans=TEARDOWN, unkept=frozenset([1]), seed=0, crashes=[("disk", 30, False)])
@examples(50)
def test_a_run_that_crashed_ends_as_if_it_had_not(executor, plans, unkept, seed, crashes):
    crash_and_resume("memory", executor, plans, unkept, seed, crashes)


@pytest.mark.parametrize(("kind", "executor"), [("json", "thread"), ("json", "fuzzed"), ("sqlite", "thread")])
@given(**any_life)
@examples(8)
def test_a_run_that_crashed_ends_as_if_it_had_not_in_every_store(kind, executor, plans, unkept, seed, crashes):
    crash_and_resume(kind, executor, plans, unkept, seed, crashes)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", KINDS)
@given(**any_life)
@soak
def test_a_run_that_crashed_ends_as_if_it_had_not_two_thousand_times(
    kind, executor, plans, unkept, seed, crashes, part
):
    crash_and_resume(kind, executor, plans, unkept, seed, crashes)


# ---------------------------------------------------------------- mapped tasks, and crashes


def crash_and_resume_mapped(kind, executor, plans, seed, crashes):
    """The same as crash_and_resume() for plans of mapped tasks, whose items are acknowledged one by one."""
    acknowledged = set()

    def hear(event):
        if isinstance(event, TaskSucceeded):
            acknowledged.add(event.task_name)

    def run(state, observer, n, fail_fast, log=None):
        clock = VirtualClock()
        dag = test_map_model.build(plans, clock, log or Log())
        return run_once(dag, executor, seed + n, state, [observer], clock, fail_fast=fail_fast)

    with TemporaryDirectory() as folder, closing(Stores(kind, Path(folder))) as first:
        stores = crash_again_and_again(first, crashes, run, hear)
        log = Log()
        before = set(acknowledged)
        result = run(open_store(stores), hear, 0, False, log)
    found = test_map_model.records(result)
    assert {name: (own.state, own.value) for name, own in found.items()} == {
        name: (state, value) for name, (state, _, value) in test_map_model.predict(plans).items()
    }
    for plan in plans:
        if all(found[name].restored or found[name].state == "skipped" for name in plan.upstream):
            called = {name for name in log.entries if name.partition("[")[0] == plan.name}
            assert not called & before, "what was acknowledged is called again"


any_mapped_life = {"plans": test_map_model.graphs(), "seed": st.integers(0, 2**32), "crashes": CRASHES}
PICKED = [
    test_map_model.Plan("t0", size=2),
    test_map_model.Plan("t1", ("t0",), is_mapped=True, picks=True),
    test_map_model.Plan("t2", ("t1",)),
]


@pytest.mark.parametrize("executor", EXECUTORS)
@given(**any_mapped_life)
@example(plans=PICKED, seed=0, crashes=[("disk", 30, False)])
@examples(40)
def test_a_run_of_mapped_tasks_that_crashed_ends_as_if_it_had_not(executor, plans, seed, crashes):
    crash_and_resume_mapped("memory", executor, plans, seed, crashes)


@pytest.mark.parametrize("kind", ["json", "sqlite"])
@given(**any_mapped_life)
@examples(7)
def test_a_run_of_mapped_tasks_that_crashed_ends_as_if_it_had_not_in_every_store(kind, plans, seed, crashes):
    crash_and_resume_mapped(kind, "thread", plans, seed, crashes)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", KINDS)
@given(**any_mapped_life)
@soak
def test_a_run_of_mapped_tasks_that_crashed_ends_as_if_it_had_not_two_thousand_times(
    kind, executor, plans, seed, crashes, part
):
    crash_and_resume_mapped(kind, executor, plans, seed, crashes)


# ---------------------------------------------------------------- processes, and crashes


def crash_and_resume_in_processes(several, room):
    """Run many graphs as one DAG in processes until the disk is full, and go on."""
    plans = test_model_process.union(several)
    life = Life(plans, ())
    options = {"executor": "process", "max_workers": 2, "fail_fast": False, "resume": True, "raise_on_failure": False}
    with TemporaryDirectory() as folder, closing(Stores("json", Path(folder))) as stores:
        with suppress(StateWriteError):
            test_model_process.build(plans).run(state=FullDisk(stores(), room), observers=[life.hear], **options)
        expected = life.restorable(stores().read_scope("random").tasks)
        result = test_model_process.build(plans).run(state=stores(), **options)
    states, _, values = predict(plans)
    assert {name: (own.state, own.value) for name, own in result.tasks.items()} == {
        name: (states[name], values[name]) for name in states
    }
    assert {name for name, own in result.tasks.items() if own.restored} == expected


many_graphs = {
    "several": st.lists(graphs(), min_size=test_model_process.GRAPHS, max_size=test_model_process.GRAPHS),
    "room": st.integers(0, 120),
}
in_processes = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="its tasks kill themselves as POSIX does")
QUICKLY = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}


@in_processes
@given(**many_graphs)
@settings(max_examples=2, **QUICKLY)
def test_a_run_in_processes_that_crashed_ends_as_if_it_had_not(several, room):
    crash_and_resume_in_processes(several, room)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
@in_processes
@given(**many_graphs)
@settings(max_examples=15, **QUICKLY)
def test_a_run_in_processes_that_crashed_ends_as_if_it_had_not_many_times(several, room, part):
    crash_and_resume_in_processes(several, room)
