"""Runs that keep their results, and go on where an earlier one stopped: what is restored, and what runs again."""

import asyncio
import functools
import sys
import threading
import time

import pytest
from resume_tasks import (
    Colour,
    FullDisk,
    Painter,
    Pair,
    Point,
    Stores,
    build,
    describe_upstream,
    is_wanted,
    items_restored,
    load,
    mix,
    mix_soon,
    note,
    paint,
    restored,
    run,
    states,
    world,
)

from flowkit import (
    DAG,
    AttemptStarted,
    DAGExecutionError,
    GiveUp,
    RunCancelledError,
    Skip,
    StateLockedError,
    StateManager,
    StateSerializationError,
    StateWriteError,
    Task,
    TaskExecutionError,
    TaskFailed,
    TaskRestored,
    TaskSucceeded,
    current_context,
)

EXECUTORS = ["sequential", "thread", "async", "process"]
CHAIN = {"a": "", "b": "a", "c": "b"}
DIAMOND = {"a": "", "b": "a", "c": "a", "d": "b c"}
ERROR = ConnectionError("refused")
PATIENCE = 10


@pytest.fixture(autouse=True)
def _fresh_world():
    world.reset()
    yield
    world.reset()


@pytest.fixture(params=["memory", "json", "sqlite"])
def store(request, tmp_path):
    """Return what gives a store; the next one is as of another process, but for memory."""
    stores = Stores(request.param, tmp_path)
    yield stores
    stores.close()


@pytest.fixture
def memory(tmp_path):
    """The same in memory alone, for what has nothing to do with where it is kept."""
    return Stores("memory", tmp_path)


@pytest.fixture(params=["json", "sqlite"])
def files(request, tmp_path):
    """The same for stores that outlive the process."""
    stores = Stores(request.param, tmp_path)
    yield stores
    stores.close()


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


def func_of(executor):
    return mix_soon if executor == "async" else mix


def again(graph, store, *, inputs=None, options=None, **keywords):
    """Run *graph* once to its end, and again with resume; return the second result."""
    run(build(graph, **keywords), store(), inputs, resume=False, **(options or {}))
    return run(build(graph, **keywords), store(), inputs, **(options or {}))


class Barrier:
    """Holds up a task: *reached* says that it is there, *open* lets it go on."""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self):
        self.reached.set()
        assert self.open.wait(PATIENCE)
        return ""


@pytest.fixture
def barrier():
    made = Barrier()
    yield made
    made.open.set()


# ---------------------------------------------------------------- stored, and only then announced


def test_a_success_is_announced_only_after_it_is_stored(store, executor):
    """a ─► b ─► c"""
    found = {}

    def look(event):
        if isinstance(event, TaskSucceeded):
            other = store()
            record = other.read_scope("graph").tasks[event.task_name]
            found[event.task_name] = other.codec([]).decode(record.value) == event.value

    run(build(CHAIN, func=func_of(executor)), store(), executor=executor, on_event=look)
    assert found == {"a": True, "b": True, "c": True}


def test_a_mapped_task_and_its_items_are_announced_only_after_they_are_stored(store):
    """rows ─► each (mapped)"""
    found = {}

    def look(event):
        if isinstance(event, TaskSucceeded):
            view = store().read_scope("graph")
            task, _, number = event.task_name.partition("[")
            found[event.task_name] = (int(number[:-1]) in view.items[task]) if number else task in view.tasks

    run(build({"rows": "", "each": "rows"}, rows={"func": lambda: [1, 2]}, mapped=["each"]), store(), on_event=look)
    assert found == {"rows": True, "each[0]": True, "each[1]": True, "each": True}


def test_what_is_below_starts_only_after_the_success_is_stored(files):
    """a ─► b"""
    def look():
        return " saw " + ", ".join(files().read_scope("graph").tasks)

    world.does["b"] = look
    assert run(build({"a": "", "b": "a"}), files())["b"] == "b(a()) saw a"


def test_what_is_stored_is_the_result_at_completion(store):
    """rows ─► grow, which changes its input in place"""
    def rows():
        return [1]

    def grow(rows):
        rows.append(2)
        return len(rows)

    def make(**options):
        return build({"rows": "", "grow": "rows"}, rows={"func": rows}, grow={"func": grow, **options})

    assert run(make(), store()) == {"rows": [1, 2], "grow": 2}  # they share the list
    result = run(make(version="2"), store())
    assert restored(result) == ["rows"]
    assert result["grow"] == 2  # of [1], not of [1, 2]


def test_a_restored_result_is_a_copy(store):
    """rows"""
    dag = build({"rows": ""}, rows={"func": lambda: [1]})
    run(dag, store())
    run(dag, store())["rows"].append(2)
    assert run(dag, store())["rows"] == [1]


# ---------------------------------------------------------------- resume=False


def test_without_resume_everything_runs(store):
    """a ─► b ─► c"""
    run(build(CHAIN), store())
    result = run(build(CHAIN), store(), resume=False)
    assert world.calls == ["a", "b", "c"]
    assert restored(result) == []


def test_without_resume_what_was_kept_is_replaced(store):
    """a ─► b ─► c"""
    run(build(CHAIN), store())
    world.does["a"] = lambda: " of Monday"
    run(build(CHAIN), store(), resume=False)
    result = run(build(CHAIN), store())
    assert result == {"a": "a() of Monday", "b": "b(a() of Monday)", "c": "c(b(a() of Monday))"}
    assert world.calls == []


def test_without_resume_what_was_kept_of_tasks_that_do_not_run_is_still_there(store):
    """a ─► b ─► c"""
    run(build(CHAIN), store())
    run(build(CHAIN), store(), resume=False, targets=["a"])
    assert restored(run(build({"c": ""}, name="other"), store())) == []
    assert "c" in store().read_scope("graph").tasks


# ---------------------------------------------------------------- what is restored


def test_a_run_that_ended_well_is_restored_as_a_whole(store, executor):
    """a ─► b ─► d,  a ─► c ─► d"""
    graph = build(DIAMOND, func=func_of(executor))
    first = run(graph, store(), executor=executor)
    result = run(build(DIAMOND, func=func_of(executor)), store(), executor=executor)
    assert restored(result) == ["a", "b", "c", "d"]
    assert world.calls == []
    assert result == first
    assert result.ok
    assert {own.reason for own in result.tasks.values()} == {f"restored from run {first.run_id}"}


@pytest.mark.parametrize("first", EXECUTORS)
def test_what_one_executor_has_kept_another_restores(files, first):
    """a ─► b ─► c"""
    run(build(CHAIN), files(), executor=first)
    for executor in EXECUTORS:
        assert restored(run(build(CHAIN), files(), executor=executor)) == ["a", "b", "c"]


def test_a_resume_with_nothing_kept_runs_everything(store):
    """a ─► b ─► c"""
    result = run(build(CHAIN), store())
    assert world.calls == ["a", "b", "c"]
    assert restored(result) == []


def test_each_restored_task_has_one_event_with_its_value(store):
    """a ─► b"""
    graph = build({"a": "", "b": "a"})
    first = run(graph, store())
    events = []
    run(graph, store(), on_event=events.append)
    assert [(e.task_name, e.value, e.reason) for e in events if isinstance(e, TaskRestored)] == [
        ("a", "a()", f"restored from run {first.run_id}"),
        ("b", "b(a())", f"restored from run {first.run_id}"),
    ]
    assert not [event for event in events if isinstance(event, TaskSucceeded | AttemptStarted)]


def test_a_restored_task_is_told_before_what_is_below_it_starts(memory, executor):
    """a ─► b, which failed"""
    graph = {"a": "", "b": "a"}
    run(build(graph, func=func_of(executor), b={"func": refuse}), memory(), executor=executor)
    told = []
    run(build(graph, func=func_of(executor)), memory(), executor=executor, on_event=told.append)
    kinds = [type(event) for event in told]
    assert kinds.index(TaskRestored) < kinds.index(AttemptStarted)


def refuse(*_):
    raise ERROR


def test_the_summary_says_what_was_restored(store):
    """a ─► b ─► c"""
    run(build(CHAIN), store(), targets=["b"])
    summary = run(build(CHAIN), store()).summary()
    assert "3 succeeded, 2 of them restored" in summary
    assert summary.count("restored from run") == 2


def test_the_success_callback_is_not_called_for_a_restored_task(store):
    """a ─► b"""
    called = []
    options = {"on_success": lambda event: called.append(event.task_name)}
    again({"a": "", "b": "a"}, store, a=options, b=options)
    assert called == ["a", "b"]


def test_a_resume_looks_back_over_all_runs_before(store):
    """a ─► b ─► c ─► d; each run gets one task further"""
    graph = {**CHAIN, "d": "c"}
    runs = {}
    for name in graph:
        world.does = {below: ERROR for below in graph if below > name}
        result = run(build(graph), store())
        assert [call for call in world.calls if call == name] == [name]
        runs[name] = result.run_id
    world.does = {}
    result = run(build(graph), store())
    assert world.calls == []
    assert {name: own.reason for name, own in result.tasks.items()} == {
        name: f"restored from run {run_id}" for name, run_id in runs.items()
    }


def test_a_restored_result_is_still_there_after_many_resumes(store):
    """a ─► b ─► c"""
    first = run(build(CHAIN), store())
    for _ in range(10):
        result = run(build(CHAIN), store())
        assert world.calls == []
    assert result == first
    assert result.tasks["a"].reason == f"restored from run {first.run_id}"


def test_long_chains_are_restored(memory):
    """t0 ─► t1 ─► ... ─► t2999"""
    names = [f"t{n}" for n in range(3000)]
    graph = dict(zip(names, ["", *names], strict=False))
    result = again(graph, memory, func=keep)
    assert len(restored(result)) == 3000


def keep(*values):
    return values[0] if values else 0


# ---------------------------------------------------------------- what changed runs again, with what is below it


PROGRAM = """
from flowkit import DAG, Task

LIMIT = 10

def strip(row):
    text = tidy(row)
    return text

def tidy(row):
    return row

def scale(factor):
    def count(fetch):
        note("count")
        return factor * len(fetch)
    return count

def fetch():
    note("fetch")
    return [3, 1, 2]

def clean(fetch, reverse=False):
    note("clean")
    return sorted(map(strip, fetch))[:LIMIT]

def is_good(clean):
    return clean is not None

def load(clean, count, table, date="today"):
    note("load")
    return [table, *clean, count]

def audit(fetch):
    note("audit")
    return "fine"

def make():
    f, c, n = Task("fetch", fetch), Task("clean", clean), Task("count", scale(2), version=None)
    l, a = Task("load", load, when=is_good), Task("audit", audit)
    f >> [c, n] >> l
    f >> a
    return DAG("program", tasks=[l, a])
"""
CHANGES = {
    "code": ('return "fine"', 'return "good"', ["audit"], "its code changed"),
    "code at the top": ("[3, 1, 2]", "[3, 1]", ["fetch", "clean", "count", "audit", "load"], "its code changed"),
    "helper": ("return text", "return text + 0", ["clean", "load"], "code of helper strip() changed"),
    "helper of a helper": ("return row\n", "return row + 0\n", ["clean", "load"], "code of helper tidy() changed"),
    "default": ("reverse=False", "reverse=True", ["clean", "load"], "default 'reverse' changed"),
    "global": ("LIMIT = 10", "LIMIT = 2", ["clean", "load"], "global 'LIMIT' changed"),
    "closure": ("scale(2)", "scale(3)", ["count", "load"], "closure 'factor' changed"),
    "condition": ("clean is not None", "clean != []", ["load"], "its condition changed"),
    "no condition": (", when=is_good", "", ["load"], "its condition is gone"),
    "version": ("version=None", "version='2'", ["count", "load"], "version '2' instead of its code"),
    "default of an input": ('date="today"', 'date="now"', ["load"], "default 'date' changed"),
}


@pytest.fixture
def program(monkeypatch):
    """Return a function that gives the DAG of a source, as the next process would import it."""
    def make(source=PROGRAM):
        monkeypatch.setitem(sys.modules, "nightly", None)
        return load(source).make()

    return make


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_exactly_the_task_and_what_is_below_it_run_again(memory, program, change):
    """fetch ─► clean, count ─► load,  fetch ─► audit"""
    before, after, changed, reason = CHANGES[change]
    assert PROGRAM.count(before) == 1
    run(program(), memory(), {"table": "t"})
    dag = program(PROGRAM.replace(before, after))
    plan = dag.plan({"table": "t"}, state=memory(), resume=True)
    result = run(dag, memory(), {"table": "t"})
    assert sorted(world.calls) == sorted(changed)
    assert sorted(restored(result)) == sorted({"fetch", "clean", "count", "audit", "load"} - {*changed})
    assert plan[changed[0]].reason == reason
    for below in changed[1:]:
        assert plan[below].reason.endswith("runs again")


def test_a_changed_run_is_kept_in_its_turn(memory, program):
    run(program(), memory(), {"table": "t"})
    changed = PROGRAM.replace("LIMIT = 10", "LIMIT = 2")
    run(program(changed), memory(), {"table": "t"})
    run(program(changed), memory(), {"table": "t"})
    assert world.calls == []


def test_a_change_that_is_taken_back_runs_again(memory, program):
    """Of each task the latest result is kept."""
    run(program(), memory(), {"table": "t"})
    run(program(PROGRAM.replace("LIMIT = 10", "LIMIT = 2")), memory(), {"table": "t"})
    run(program(), memory(), {"table": "t"})
    assert world.calls == ["clean", "load"]


COSMETICS = {
    "comment": ("def fetch():", "# a comment\ndef fetch():  # another"),
    "docstring": ("def fetch():", 'def fetch():\n    """Fetch."""'),
    "empty lines": ("    note('fetch')\n".replace("'", '"'), '\n\n    note("fetch")\n\n'),
    "name of a local": ("text = tidy(row)\n    return text", "line = tidy(row)\n    return line"),
    "line breaks": ("return [table, *clean, count]", "return [\n        table,\n        *clean, count,\n    ]"),
    "order of definitions": ("LIMIT = 10", "def first(): return 1\n\nLIMIT = 10"),
    "annotation": ("def audit(fetch):", "def audit(fetch: list) -> str:"),
    "global that nobody names": ("LIMIT = 10", "LIMIT = 10\nMOST = 5"),
    "retries": ('Task("audit", audit)', 'Task("audit", audit, retries=3, timeout=60, executor="thread")'),
}


@pytest.mark.parametrize("change", COSMETICS)
def test_a_change_of_how_it_looks_runs_nothing(memory, program, change):
    before, after = COSMETICS[change]
    assert PROGRAM.count(before) == 1
    run(program(), memory(), {"table": "t"})
    run(program(PROGRAM.replace(before, after)), memory(), {"table": "t"})
    assert world.calls == []


def test_another_minor_version_of_python_runs_everything_again(memory, monkeypatch):
    """a ─► b ─► c"""
    run(build(CHAIN), memory())
    monkeypatch.setattr("flowkit.state.fingerprint._PYTHON", "3.99")
    plan = build(CHAIN).plan(state=memory(), resume=True)
    assert plan["a"].reason.startswith("Python 3.99 instead of 3.")
    run(build(CHAIN), memory())
    assert world.calls == ["a", "b", "c"]


def test_another_version_runs_again_and_the_reason_names_both(memory):
    """a ─► b"""
    run(build({"a": "", "b": "a"}, a={"version": "1"}), memory())
    dag = build({"a": "", "b": "a"}, a={"version": "2"})
    assert dag.plan(state=memory(), resume=True)["a"].reason == "version changed from '1' to '2'"
    run(dag, memory())
    assert world.calls == ["a", "b"]


def test_a_version_stands_for_the_code(memory):
    """a"""
    run(build({"a": ""}, a={"version": "1"}), memory())
    result = run(build({"a": ""}, a={"version": "1", "func": lambda: "other"}), memory())
    assert (world.calls, result) == ([], {"a": "a()"})


def test_another_input_runs_what_takes_it_again(memory):
    """rows ─► b,  a ─► c"""
    graph = {"rows": "", "b": "rows", "a": "", "c": "a"}
    dag = build(graph, rows={"func": lambda source: note("rows") or source})
    run(dag, memory(), {"source": "x"})
    assert dag.plan({"source": "y"}, state=memory(), resume=True)["rows"].reason == "input 'source' changed"
    result = run(dag, memory(), {"source": "y"})
    assert world.calls == ["rows", "b"]
    assert restored(result) == ["a", "c"]
    assert result["b"] == "b(y)"


def test_the_same_input_in_another_object_is_the_same(memory):
    """rows"""
    dag = build({"rows": ""}, rows={"func": lambda source: note("rows")})
    run(dag, memory(), {"source": {"a": [1, (2, 3)], "b": {4, 5}}})
    run(dag, memory(), {"source": {"b": {5, 4}, "a": [1, (2, 3)]}})
    assert world.calls == []


def test_an_input_of_another_type_is_another(memory):
    """rows"""
    dag = build({"rows": ""}, rows={"func": lambda source: note("rows")})
    run(dag, memory(), {"source": 1})
    run(dag, memory(), {"source": 1.0})
    assert world.calls == ["rows"]


def test_an_input_that_is_not_given_any_more_runs_again(memory):
    """rows"""
    dag = build({"rows": ""}, rows={"func": lambda source="x": note("rows") or source})
    run(dag, memory(), {"source": "y"})
    result = run(dag, memory())
    assert (world.calls, result) == (["rows"], {"rows": "x"})


def test_a_helper_that_changed_while_a_run_goes_on_counts_from_the_next_run_on(memory, program, barrier):
    """The fingerprint is that of the start of the run."""
    dag = program()
    module = sys.modules["nightly"]
    world.does["audit"] = barrier
    handle = dag.start({"table": "t"}, state=memory())
    assert barrier.reached.wait(PATIENCE)
    module.LIMIT = 1
    barrier.open.set()
    handle.result()
    run(dag, memory(), {"table": "t"})
    assert world.calls == ["clean", "load"]


# ---------------------------------------------------------------- a graph that changed


def test_a_new_task_runs_and_nothing_else(memory):
    """a ─► b ─► c,  a ─► new"""
    run(build(CHAIN), memory())
    result = run(build({**CHAIN, "new": "a"}), memory())
    assert world.calls == ["new"]
    assert result["new"] == "new(a())"


def test_a_task_put_in_between_runs_with_what_is_below_it(memory):
    """a ─► (new ─►) b ─► c"""
    run(build(CHAIN), memory())
    result = run(build({"a": "", "new": "a", "b": "new", "c": "b"}), memory())
    assert world.calls == ["new", "b", "c"]
    assert result["c"] == "c(b(new(a())))"


def test_what_was_below_a_removed_task_runs_again(memory):
    """a ─► (b ─►) c"""
    run(build(CHAIN), memory())
    result = run(build({"a": "", "c": "a"}), memory())
    assert world.calls == ["c"]
    assert result["c"] == "c(a())"


def test_what_was_beside_a_removed_task_is_restored(memory):
    """a ─► b,  (x)"""
    run(build({"a": "", "b": "a", "x": ""}), memory())
    run(build({"a": "", "b": "a"}), memory())
    assert world.calls == []


def test_a_task_that_was_removed_for_one_run_is_restored_in_the_next(memory):
    """a,  x"""
    run(build({"a": "", "x": ""}), memory())
    run(build({"a": ""}), memory())
    run(build({"a": "", "x": ""}), memory())
    assert world.calls == []


def test_a_renamed_task_runs_with_what_is_below_it(memory):
    """a ─► b ─► c"""
    run(build(CHAIN), memory())
    dag = build({"a": "", "b2": "a", "c": "b2"})
    assert dag.plan(state=memory(), resume=True)["b2"].reason == "never finished"
    result = run(dag, memory())
    assert world.calls == ["b2", "c"]
    assert result["c"] == "c(b2(a()))"


def test_a_task_wired_to_another_runs_again(memory):
    """a or b ─► c"""
    run(build({"a": "", "b": "", "c": "a"}), memory())
    result = run(build({"a": "", "b": "", "c": "b"}), memory())
    assert world.calls == ["c"]
    assert result["c"] == "c(b())"


def test_the_reason_for_another_wiring_is_not_that_something_runs_again(memory):
    """a or b ─► c"""
    run(build({"a": "", "b": "", "c": "a"}), memory())
    plan = build({"a": "", "b": "", "c": "b"}).plan(state=memory(), resume=True)
    assert plan.named("run") == ["c"]
    assert "runs again" not in plan["c"].reason


def test_a_task_whose_upstream_changed_places_runs_again(memory):
    """a, b ─► c"""
    run(build({"a": "", "b": "", "c": "a b"}), memory())
    result = run(build({"a": "", "b": "", "c": "b a"}), memory())
    assert world.calls == ["c"]
    assert result["c"] == "c(b(), a())"


def test_an_edge_that_only_orders_now_runs_what_is_below_it_again(memory):
    """a ─► b, or a before b"""
    run(build({"a": "", "b": "a"}), memory())
    a, b = Task("a", mix), Task("b", mix)
    b.after(a)
    result = run(DAG("graph", tasks=[b]), memory())
    assert world.calls == ["b"]
    assert result["b"] == "b()"


def test_a_task_that_is_mapped_now_runs_again(memory):
    """rows ─► b"""
    rows = {"func": lambda: [1, 2]}
    run(build({"rows": "", "b": "rows"}, rows=rows), memory())
    result = run(build({"rows": "", "b": "rows"}, rows=rows, mapped=["b"]), memory())
    assert result["b"] == ["b[0](1)", "b[1](2)"]


def test_a_task_that_is_not_mapped_any_more_runs_again(memory):
    """rows ─► b"""
    rows = {"func": lambda: [1, 2]}
    run(build({"rows": "", "b": "rows"}, rows=rows, mapped=["b"]), memory())
    result = run(build({"rows": "", "b": "rows"}, rows=rows), memory())
    assert result["b"] == "b([1, 2])"


# ---------------------------------------------------------------- failed, and killed


@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_failed_task_runs_again_and_nothing_that_succeeded(memory, executor, fail_fast):
    """a ─► bad ─► c,  a ─► d"""
    graph = {"a": "", "bad": "a", "c": "bad", "d": "a"}
    func = func_of(executor)
    run(build(graph, func=func, bad={"func": refuse_or_mix}), memory(), executor=executor, fail_fast=False)
    if executor != "process":  # where the world is another one
        world.does["bad"] = None
    result = run(build(graph, func=func), memory(), executor=executor, fail_fast=fail_fast)
    assert restored(result) == ["a", "d"]
    assert states(result) == dict.fromkeys(graph, "succeeded")


def refuse_or_mix(*values):
    raise ERROR


def test_a_task_that_failed_with_the_same_code_runs_again(store):
    """a ─► bad ─► c"""
    graph = {"a": "", "bad": "a", "c": "bad"}
    world.does["bad"] = ERROR
    assert states(run(build(graph), store())) == {"a": "succeeded", "bad": "failed", "c": "upstream_failed"}
    world.does = {}
    plan = build(graph).plan(state=store(), resume=True)
    assert plan["bad"].reason == "failed before: ConnectionError: refused"
    result = run(build(graph), store())
    assert world.calls == ["bad", "c"]
    assert result["c"] == "c(bad(a()))"


def test_a_task_that_fails_again_fails_the_resumed_run(store):
    """a ─► bad"""
    graph = {"a": "", "bad": "a"}
    world.does["bad"] = ERROR
    run(build(graph), store())
    with pytest.raises(TaskExecutionError) as caught:
        build(graph).run(state=store(), resume=True)
    assert caught.value.result.tasks["a"].restored


def test_a_resumed_run_without_fail_fast_raises_all_failures(store):
    """a ─► bad, worse"""
    graph = {"a": "", "bad": "a", "worse": "a"}
    world.does = {"bad": ERROR, "worse": ERROR}
    run(build(graph), store(), fail_fast=False)
    with pytest.raises(DAGExecutionError) as caught:
        build(graph).run(state=store(), resume=True, fail_fast=False)
    assert len(caught.value.exceptions) == 2
    assert caught.value.result.tasks["a"].restored


def test_a_task_that_succeeded_before_fails_after_a_change_and_is_not_restored_then(store):
    """a ─► b: what failed last is not done, though there was a success before"""
    run(build({"a": "", "b": "a"}), store())
    world.does["b"] = ERROR
    run(build({"a": "", "b": "a"}), store(), resume=False)
    world.does = {}
    run(build({"a": "", "b": "a"}), store())
    assert world.calls == ["b"]


def test_what_was_cancelled_runs(store):
    """bad,  a ─► b ─► c in one thread, where bad is first"""
    graph = {"bad": "", **CHAIN}
    world.does["bad"] = ERROR
    assert states(run(build(graph), store(), executor="sequential"))["c"] == "cancelled"
    world.does = {}
    run(build(graph), store(), executor="sequential")
    assert world.calls == ["bad", "a", "b", "c"]


@pytest.mark.parametrize("executor", ["sequential", "thread", "async"])
def test_a_task_that_was_running_when_the_process_was_killed_is_not_done(files, tmp_path, executor):
    """a ─► b ─► c; the process dies in b"""
    left = []
    (tmp_path / "left").mkdir()
    world.does["b"] = lambda: left.append(files.crash(tmp_path / "left")) or ""
    run(build(CHAIN, func=func_of(executor)), files(), executor=executor)
    world.does = {}
    result = run(build(CHAIN, func=func_of(executor)), left[0](), executor=executor)
    assert world.calls == ["b", "c"]
    assert restored(result) == ["a"]


def test_a_task_that_was_waiting_for_its_next_attempt_when_the_process_was_killed_is_not_done(files, tmp_path):
    """a ─► b, which fails once"""
    left = []

    def fail_once():
        del world.does["b"]
        raise ERROR

    def crash(event):
        if getattr(event, "retry_in", None) is not None:
            left.append(files.crash(tmp_path / "left"))

    (tmp_path / "left").mkdir()
    world.does["b"] = fail_once
    graph = build({"a": "", "b": "a"}, b={"retries": 1})
    assert run(graph, files(), on_event=crash).tasks["b"].attempts == 2
    result = run(graph, left[0]())
    assert (world.calls, result.tasks["b"].attempts) == (["b"], 1)


@pytest.mark.parametrize("room", range(4))
def test_a_run_on_a_full_disk_fails_and_goes_on_from_what_was_stored(store, room):
    """a ─► b ─► c ─► d"""
    graph = {**CHAIN, "d": "c"}
    with pytest.raises(StateWriteError, match="no space left"):
        run(build(graph), FullDisk(store(), room))
    assert world.calls == list(graph)[: room + 1]
    result = run(build(graph), store())
    assert restored(result) == list(graph)[:room]


def test_a_cancelled_run_goes_on(store, barrier):
    """a ─► b ─► c; cancelled in b"""
    world.does["b"] = barrier
    handle = build(CHAIN).start(state=store())
    assert barrier.reached.wait(PATIENCE)
    handle.cancel("enough")
    barrier.open.set()
    with pytest.raises(RunCancelledError):
        handle.result()
    world.does = {}
    result = run(build(CHAIN), store())
    assert result["c"] == "c(b(a()))"
    assert "a" in restored(result)
    assert "a" not in world.calls


def test_the_state_is_free_after_each_kind_of_end(store):
    """a"""
    graph = build({"a": ""}, a={"retries": 0})
    for deed in (None, ERROR, Skip("no"), GiveUp("no"), SystemExit(3)):
        world.does["a"] = deed
        run(graph, store(), resume=False)
    world.does = {}
    assert run(graph, store()).ok


# ---------------------------------------------------------------- skipped


def test_a_skipped_task_is_asked_again(memory):
    """a ─► b (when) ─► c"""
    world.answers["b"] = False
    result = again(CHAIN, memory, b={"when": is_wanted})
    assert world.calls == ["b?"]
    assert states(result) == {"a": "succeeded", "b": "skipped", "c": "skipped"}


def test_a_skipped_task_whose_condition_is_true_now_runs_with_what_is_below_it(memory):
    """a ─► b (when) ─► d,  a ─► c ─► d"""
    world.answers["b"] = False
    run(build(DIAMOND, b={"when": is_wanted}), memory())
    assert world.calls.count("d") == 1
    world.answers["b"] = True
    result = run(build(DIAMOND, b={"when": is_wanted}), memory())
    assert world.calls == ["b?", "b", "d"]
    assert result["d"] == "d(b(a()), c(a()))"


def test_what_is_below_a_task_that_is_skipped_again_is_restored(memory):
    """a ─► b (when) ─► d,  a ─► c ─► d"""
    world.answers["b"] = False
    result = again(DIAMOND, memory, b={"when": is_wanted})
    assert world.calls == ["b?"]
    assert restored(result) == ["a", "c", "d"]


def test_what_is_below_a_task_that_is_skipped_now_runs_again(memory):
    """a ─► b (when) ─► d,  a ─► c ─► d"""
    run(build(DIAMOND, b={"when": is_wanted}), memory())
    world.answers["b"] = False
    result = run(build(DIAMOND, b={"when": is_wanted, "version": "2"}), memory())
    assert world.calls == ["b?", "d"]
    assert result["d"] == "d(None, c(a()))"


def test_the_condition_of_a_restored_task_is_not_asked(memory):
    """a ─► b (when) ─► c"""
    world.answers["b"] = True
    run(build(CHAIN, b={"when": is_wanted}), memory())
    world.answers["b"] = False
    assert restored(run(build(CHAIN, b={"when": is_wanted}), memory())) == ["a", "b", "c"]
    assert world.calls == []


def test_a_task_that_raised_skip_is_called_again(memory):
    """a ─► b ─► d,  a ─► c ─► d"""
    world.does["b"] = Skip("no rows")
    result = again(DIAMOND, memory)
    assert world.calls == ["b"]
    assert restored(result) == ["a", "c", "d"]
    world.does = {}
    run(build(DIAMOND), memory())
    assert world.calls == ["b", "d"]


def test_what_was_skipped_with_everything_upstream_is_skipped_again(memory):
    """a (when) ─► b ─► c"""
    world.answers["a"] = False
    result = again(CHAIN, memory, a={"when": is_wanted})
    assert states(result) == dict.fromkeys(CHAIN, "skipped")
    assert world.calls == ["a?"]


# ---------------------------------------------------------------- trigger rules are judged first


def test_an_alert_is_not_restored_if_nothing_failed(memory):
    """a ─► alert (one_failed)"""
    options = {"alert": {"trigger": "one_failed"}}
    graph = {"a": "", "alert": "a"}
    world.does["a"] = ERROR
    assert states(run(build(graph, **options), memory(), fail_fast=False))["alert"] == "succeeded"
    world.does = {}
    result = run(build(graph, **options), memory())
    assert states(result) == {"a": "succeeded", "alert": "skipped"}


def test_what_is_kept_of_a_task_is_not_restored_if_its_upstream_fails_now(memory):
    """a ─► b ─► c"""
    run(build(CHAIN), memory())
    world.does["a"] = ERROR
    result = run(build(CHAIN, a={"version": "2"}), memory())
    assert states(result) == {"a": "failed", "b": "upstream_failed", "c": "upstream_failed"}


@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_teardown_runs_again_if_its_upstream_runs_again(memory, fail_fast):
    """a ─► b ─► teardown (all_done)"""
    graph = {"a": "", "b": "a", "teardown": "b"}
    options = {"teardown": {"trigger": "all_done"}}
    world.does["b"] = ERROR
    run(build(graph, **options), memory(), fail_fast=fail_fast)
    assert world.calls == ["a", "b", "teardown"]
    world.does = {}
    run(build(graph, **options), memory(), fail_fast=fail_fast)
    assert world.calls == ["b", "teardown"]


@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_teardown_runs_again_if_its_upstream_fails_again(memory, fail_fast):
    """a ─► b ─► teardown (all_done) ─► end"""
    graph = {"a": "", "b": "a", "teardown": "b", "end": "teardown"}
    options = {"teardown": {"trigger": "all_done"}, "end": {"trigger": "all_done"}}
    world.does["b"] = ERROR
    for called in (["a", "b", "teardown", "end"], ["b", "teardown", "end"], ["b", "teardown", "end"]):
        run(build(graph, **options), memory(), fail_fast=fail_fast)
        assert world.calls == called


def test_a_teardown_of_what_was_restored_is_restored(memory):
    """a ─► teardown (all_done)"""
    result = again({"a": "", "teardown": "a"}, memory, teardown={"trigger": "all_done"})
    assert restored(result) == ["a", "teardown"]


def test_a_join_on_one_success_runs_again_below_a_failure_that_repeats(memory):
    """bad, good ─► join (one_success)"""
    graph = {"bad": "", "good": "", "join": "bad good"}
    world.does["bad"] = ERROR
    result = again(graph, memory, join={"trigger": "one_success"}, options={"fail_fast": False})
    assert restored(result) == ["good"]
    assert world.calls == ["bad", "join"]


def test_a_stopped_run_still_restores_teardowns_that_fit(memory):
    """a ─► teardown (all_done),  a ─► bad"""
    graph = {"a": "", "bad": "a", "teardown": "a"}
    world.does["bad"] = ERROR
    result = again(graph, memory, teardown={"trigger": "all_done"}, options={"executor": "sequential"})
    assert states(result) == {"a": "succeeded", "bad": "failed", "teardown": "succeeded"}
    assert restored(result) == ["a", "teardown"]


# ---------------------------------------------------------------- persist=False


PERSISTS_NOT = {"persist": False}


def test_a_task_that_is_not_kept_runs_in_every_run(memory):
    """a ─► open (persist=False) ─► c"""
    result = again({"a": "", "open": "a", "c": "open"}, memory, open=PERSISTS_NOT)
    assert world.calls == ["open"]
    assert restored(result) == ["a", "c"]


def test_a_task_that_is_not_kept_leaves_nothing_in_the_store(memory):
    """a ─► open (persist=False)"""
    run(build({"a": "", "open": "a"}, open=PERSISTS_NOT), memory())
    assert list(memory().read_scope("graph").tasks) == ["a"]


def test_what_is_not_kept_may_be_anything(memory):
    """lock (persist=False) ─► c"""
    dag = build({"lock": "", "c": "lock"}, lock={**PERSISTS_NOT, "func": threading.Lock}, c={"func": lambda lock: 1})
    run(dag, memory(strict=True))
    assert restored(run(dag, memory(strict=True))) == ["c"]


def test_what_is_below_a_task_that_is_not_kept_runs_again_if_what_is_above_ran_again(memory):
    """a ─► open (persist=False) ─► also (persist=False) ─► d"""
    graph = {"a": "", "open": "a", "also": "open", "d": "also"}
    options = {"open": PERSISTS_NOT, "also": PERSISTS_NOT}
    run(build(graph, **options), memory())
    run(build(graph, **options), memory())
    assert world.calls == ["open", "also"]
    run(build(graph, a={"version": "2"}, **options), memory())
    assert world.calls == ["a", "open", "also", "d"]


def test_what_is_below_a_task_that_is_not_kept_runs_again_if_that_one_changed(memory):
    """open (persist=False) ─► b"""
    run(build({"open": "", "b": "open"}, open=PERSISTS_NOT), memory())
    run(build({"open": "", "b": "open"}, open={**PERSISTS_NOT, "version": "2"}), memory())
    assert world.calls == ["open", "b"]


def test_what_is_below_a_task_that_is_not_kept_runs_again_if_what_is_above_failed_again(memory):
    """bad ─► open (all_done, persist=False) ─► c"""
    graph = {"bad": "", "open": "bad", "c": "open"}
    world.does["bad"] = ERROR
    again(graph, memory, open={**PERSISTS_NOT, "trigger": "all_done"}, options={"fail_fast": False})
    assert world.calls == ["bad", "open", "c"]


def test_two_tasks_of_one_function_that_are_not_kept_are_told_apart(memory):
    """a or b (persist=False) ─► join"""
    def join(a=None, b=None):
        return a, b

    options = {"a": PERSISTS_NOT, "b": PERSISTS_NOT, "join": {"func": join}}
    assert run(build({"a": "", "b": "", "join": "a"}, **options), memory())["join"] == ("a()", None)
    assert run(build({"a": "", "b": "", "join": "b"}, **options), memory())["join"] == (None, "b()")


def test_two_tasks_of_one_function_that_are_not_kept_are_told_apart_by_their_place(memory):
    """a, b (persist=False) ─► c"""
    options = {"a": PERSISTS_NOT, "b": PERSISTS_NOT}
    run(build({"a": "", "b": "", "c": "a b"}, **options), memory())
    assert run(build({"a": "", "b": "", "c": "b a"}, **options), memory())["c"] == "c(b(), a())"


def test_a_task_that_is_not_to_be_kept_any_more_runs(memory):
    """a ─► b"""
    run(build({"a": "", "b": "a"}), memory())
    result = run(build({"a": "", "b": "a"}, a=PERSISTS_NOT), memory())
    assert "a" in world.calls
    assert "a" not in restored(result)


def test_a_task_that_is_to_be_kept_now_runs_once_more(memory):
    """a ─► b"""
    run(build({"a": "", "b": "a"}, a=PERSISTS_NOT), memory())
    again({"a": "", "b": "a"}, memory)
    assert world.calls == []


def test_what_is_below_a_task_that_is_not_kept_and_was_skipped_is_restored_if_it_is_skipped_again(memory):
    """a, open (persist=False, when) ─► c"""
    graph = {"a": "", "open": "", "c": "a open"}
    world.answers["open"] = False
    result = again(graph, memory, open={**PERSISTS_NOT, "when": is_wanted})
    assert restored(result) == ["a", "c"]


# ---------------------------------------------------------------- targets


def test_a_run_with_targets_leaves_the_rest_for_the_next_one(memory):
    """a ─► b ─► c"""
    run(build(CHAIN), memory(), targets=["b"])
    assert world.calls == ["a", "b"]
    result = run(build(CHAIN), memory())
    assert world.calls == ["c"]
    assert restored(result) == ["a", "b"]


def test_a_run_with_targets_does_not_forget_the_others(memory):
    """a ─► b ─► c,  a ─► d"""
    graph = {**CHAIN, "d": "a"}
    run(build(graph), memory())
    run(build(graph), memory(), targets=["d"])
    run(build(graph), memory())
    assert world.calls == []


def test_targets_that_run_again_make_the_rest_run_again_later(memory):
    """a ─► b ─► c"""
    run(build(CHAIN), memory())
    run(build(CHAIN), memory(), targets=["b"], resume=False)
    run(build(CHAIN), memory())
    assert world.calls == ["c"]


# ---------------------------------------------------------------- results that cannot be stored


def make_unstorable():
    note("lock")
    return {"x": [0, threading.Lock()]}


def test_a_result_that_cannot_be_stored_is_warned_of_once_with_task_type_and_path(files):
    """lock ─► b"""
    dag = build({"lock": "", "b": "lock"}, lock={"func": make_unstorable}, b={"func": lambda lock: 1})
    with pytest.warns(RuntimeWarning) as caught:
        result = run(dag, files())
    assert result.ok
    (warning,) = caught
    for part in ("task 'lock'", "['x'][1]", "lock of _thread", "runs again on resume"):
        assert part in str(warning.message)


def test_a_task_whose_result_cannot_be_stored_runs_again_with_what_is_below_it(store):
    """a ─► lock ─► c,  a ─► d"""
    graph = {"a": "", "lock": "a", "c": "lock", "d": "a"}

    def lock(a):
        return make_unstorable()

    def count(lock):
        note("c")
        return len(lock)

    for called in (["a", "c", "d", "lock"], ["c", "lock"], ["c", "lock"]):
        with pytest.warns(RuntimeWarning, match="task 'lock'"):
            result = run(build(graph, lock={"func": lock}, c={"func": count}), store())
        assert sorted(world.calls) == called
        assert result["c"] == 1


def test_an_unstorable_result_replaces_what_was_kept_before(store):
    """a ─► b: what is below an unstored result does not fit the one before that"""
    def unstorable():
        world.does["a"] = None
        return make_unstorable()

    def a():
        note("a")
        return world.made()

    world.made = lambda: 1
    dag = build({"a": "", "b": "a"}, a={"func": a}, b={"func": lambda a: str(type(a))})
    run(dag, store())
    world.made = unstorable
    with pytest.warns(RuntimeWarning, match="task 'a'"):
        assert "dict" in run(dag, store(), resume=False)["b"]
    world.made = lambda: 1
    assert run(dag, store())["b"] == "<class 'int'>"


def test_a_strict_store_makes_an_unstorable_result_an_error(store):
    """a ─► lock ─► c"""
    dag = build({"a": "", "lock": "a", "c": "lock"}, lock={"func": lambda a: make_unstorable()})
    with pytest.raises(StateSerializationError, match=r"task 'lock': result\['x'\]\[1\]: a lock of _thread"):
        run(dag, store(strict=True))
    assert world.calls == ["a", "lock"]


def test_a_strict_store_keeps_the_result_in_memory(store):
    """a ─► lock ─► c"""
    dag = build({"a": "", "lock": "a", "c": "lock"}, lock={"func": lambda a: make_unstorable()})
    handle = dag.start(state=store(strict=True))
    with pytest.raises(StateSerializationError):
        handle.result()
    result = handle.snapshot()
    assert states(result) == {"a": "succeeded", "lock": "succeeded", "c": "cancelled"}
    assert result["lock"]["x"][0] == 0


def test_a_run_that_a_strict_store_has_ended_goes_on_later(store):
    """a ─► lock"""
    store(strict=True)  # memory is this one
    dag = build({"a": "", "lock": "a"}, lock={"func": lambda a: make_unstorable()})
    with pytest.raises(StateSerializationError):
        run(dag, store(strict=True))
    result = run(build({"a": "", "lock": "a"}), store(strict=True))
    assert restored(result) == ["a"]


@pytest.mark.parametrize("func", [paint, functools.partial(paint), Painter(), Painter().paint], ids=repr)
def test_classes_of_the_tasks_own_module_need_no_registration(files, func):
    """paint gives a dataclass, a named tuple and a member of an enum"""
    result = again({"paint": ""}, files, paint={"func": func})
    assert world.calls == []
    first, second = result["paint"]
    assert (type(first), first.x) == (Point, 1)
    assert (type(second), type(second.left), second.right) == (Pair, Point, Colour.RED)


def test_values_come_back_with_their_types(store):
    """a"""
    value = {1: (2, {3}), "b": [b"4", None, float("inf"), frozenset([5])], (6, "c"): -0.0}
    result = again({"a": ""}, store, a={"func": lambda: note("a") or value})
    assert world.calls == []
    assert repr(result["a"]) == repr(value)


def test_none_is_a_result(store):
    """a ─► b"""
    result = again({"a": "", "b": "a"}, store, a={"func": lambda: note("a")})
    assert world.calls == []
    assert result == {"a": None, "b": "b(None)"}


def test_what_is_stored_where_more_could_be_read_runs_again(files):
    """a; its class cannot be read any more"""
    run(build({"a": ""}, a={"func": paint, "version": "1"}), files())

    def plain():
        note("plain")
        return 1

    plain.__module__ = "somewhere_else"
    result = run(build({"a": ""}, a={"func": plain, "version": "1"}), files())
    assert result == {"a": 1}
    assert world.calls == ["plain"]


# ---------------------------------------------------------------- mapped tasks


MAPPED = {"rows": "", "each": "rows", "total": "each"}


def rows_of(*rows):
    return lambda: list(rows)


def mapped(*rows, **options):
    """rows ─► each (mapped) ─► total"""
    rows = {"func": rows_of(*rows), **options.pop("rows", {})}
    return build(MAPPED, rows=rows, mapped=["each"], **options)


def test_a_mapped_task_is_restored_with_all_of_its_items(store, executor):
    """rows ─► each (mapped) ─► total"""
    func = func_of(executor)
    dag = build(MAPPED, rows={"func": three_rows}, mapped=["each"], func=func)
    first = run(dag, store(), executor=executor)
    result = run(dag, store(), executor=executor)
    assert restored(result) == ["rows", "each", "total"]
    assert items_restored(result, "each") == [True] * 3
    assert result == first
    assert world.calls == []


def three_rows():
    return [10, 20, 30]


def test_a_restored_mapped_task_names_the_run(store):
    """rows ─► each (mapped)"""
    first = run(mapped(1, 2), store())
    result = run(mapped(1, 2), store())
    assert result.tasks["each"].reason == f"restored from run {first.run_id}"


def test_only_the_item_that_failed_runs_again(memory, executor):
    """rows ─► each (mapped) ─► total; item 1 fails"""
    func = func_of(executor)
    graph = {"rows": {"func": three_rows}, "mapped": ["each"], "func": func}
    failing = {"each": {"func": fail_at_twenty, "version": "1"}}
    first = run(build(MAPPED, **graph, **failing), memory(), executor=executor, fail_fast=False)
    assert [item.state for item in first.tasks["each"].items] == ["succeeded", "failed", "succeeded"]
    result = run(build(MAPPED, **graph, each={"version": "1"}), memory(), executor=executor)
    assert items_restored(result, "each") == [True, False, True]
    assert restored(result) == ["rows"]
    assert result["each"] == [10, "each[1](20)", 30]


def fail_at_twenty(row):
    if row == 20:
        raise ERROR
    return row


def test_an_item_that_was_running_when_the_process_was_killed_is_not_done(files, tmp_path):
    """rows ─► each (mapped) ─► total; the process dies in item 1"""
    left = []
    (tmp_path / "left").mkdir()
    world.does["each[1]"] = lambda: left.append(files.crash(tmp_path / "left")) or ""
    run(mapped(1, 2, 3), files(), executor="sequential")
    world.does = {}
    result = run(mapped(1, 2, 3), left[0](), executor="sequential")
    assert world.calls == ["each[1]", "each[2]", "total"]
    assert items_restored(result, "each") == [True, False, False]


@pytest.mark.parametrize("room", range(1, 6))
def test_items_are_stored_one_by_one(store, room):
    """rows ─► each (mapped over 3) ─► total, on a disk with room for some records"""
    with pytest.raises(StateWriteError):
        run(mapped(1, 2, 3), FullDisk(store(), room), executor="sequential")
    result = run(mapped(1, 2, 3), store(), executor="sequential")
    assert items_restored(result, "each") == [n + 1 < room for n in range(3)]
    assert restored(result) == (["rows", "each"] if room > 4 else ["rows"])
    assert result["total"] == "total(['each[0](1)', 'each[1](2)', 'each[2](3)'])"


def test_items_run_again_if_what_made_them_did(store):
    """rows ─► each (mapped) ─► total"""
    run(mapped(1, 2), store())
    run(mapped(1, 2, rows={"version": "2"}), store())
    assert sorted(world.calls) == ["each[0]", "each[1]", "total"]


def test_behind_a_task_that_is_not_kept_only_items_that_changed_run_again(store):
    """rows (persist=False) ─► each (mapped) ─► total"""
    def make(*rows):
        return mapped(rows={"persist": False, "version": "1", "func": rows_of(*rows)})

    run(make(1, 2, 3), store())
    run(make(1, 2, 3), store())
    assert world.calls == []
    result = run(make(1, 5, 3), store())
    assert world.calls == ["each[1]", "total"]
    assert items_restored(result, "each") == [True, False, True]
    assert result["each"] == ["each[0](1)", "each[1](5)", "each[2](3)"]


@pytest.mark.parametrize("rows", [(1, 2), (1, 2, 3, 4), ()], ids=["fewer", "more", "none"])
def test_another_number_of_items_runs_what_is_new_and_what_is_below(store, rows):
    """rows (persist=False) ─► each (mapped) ─► total"""
    def make(*rows):
        return mapped(rows={"persist": False, "version": "1", "func": rows_of(*rows)})

    run(make(1, 2, 3), store())
    result = run(make(*rows), store())
    assert sorted(world.calls) == ["each[3]", "total"][not rows[3:] :]
    assert len(result["each"]) == len(rows)
    run(make(*rows), store())
    assert world.calls == []


def test_items_that_are_there_again_are_restored(store):
    """rows (persist=False) ─► each (mapped) ─► total: 3 items, 1 item, 3 items"""
    def make(*rows):
        return mapped(rows={"persist": False, "version": "1", "func": rows_of(*rows)})

    run(make(1, 2, 3), store())
    run(make(1), store())
    result = run(make(1, 2, 3), store())
    assert world.calls == ["total"]
    assert result["total"] == "total(['each[0](1)', 'each[1](2)', 'each[2](3)'])"


def test_a_mapped_task_over_nothing_is_restored(store):
    """rows ─► each (mapped) ─► total"""
    run(mapped(), store())
    result = run(mapped(), store())
    assert restored(result) == ["rows", "each", "total"]
    assert result["each"] == []


def test_a_mapped_task_over_another_input_runs_again(store):
    """each (mapped over the input rows) ─► total"""
    def each(row):
        return mix(row)

    dag = build({"each": "", "total": "each"}, each={"func": each}, mapped=["each"])
    run(dag, store(), {"row": [1, 2]})
    run(dag, store(), {"row": [1, 2]})
    assert world.calls == []
    result = run(dag, store(), {"row": [1, 3]})
    assert result["each"] == ["each[0](1)", "each[1](3)"]
    assert "each[1]" in world.calls


def test_a_mapped_task_with_a_skipped_item_keeps_nothing_from_being_restored(store):
    """rows ─► each (mapped, when) ─► total"""
    options = {"each": {"when": is_wanted}}
    world.answers["each[1]"] = False
    run(mapped(1, 2, 3, **options), store())
    result = run(mapped(1, 2, 3, **options), store())
    assert world.calls == ["each[1]?"]
    assert restored(result) == ["rows", "each", "total"]


def test_a_skipped_item_that_is_wanted_now_runs_what_is_below_again(store):
    """rows ─► each (mapped, when) ─► total"""
    options = {"each": {"when": is_wanted}}
    world.answers["each[1]"] = False
    run(mapped(1, 2, 3, **options), store())
    world.answers["each[1]"] = True
    result = run(mapped(1, 2, 3, **options), store())
    assert world.calls == ["each[1]?", "each[1]", "total"]
    assert result["total"] == "total(['each[0](1)', 'each[1](2)', 'each[2](3)'])"


def test_an_item_that_is_skipped_now_runs_what_is_below_again(store):
    """rows (persist=False) ─► each (mapped, when odd) ─► total; item 2 is skipped as before, item 1 was not"""
    def make(*rows):
        return mapped(rows={"persist": False, "version": "1", "func": rows_of(*rows)}, each={"when": is_odd})

    run(make(1, 5, 2), store(), executor="sequential")
    result = run(make(1, 4, 2), store(), executor="sequential")
    assert result["each"] == ["each[0](1)", None, None]
    assert result["total"] == "total(['each[0](1)', None, None])"


def is_odd(row):
    return row % 2 == 1


@pytest.mark.parametrize("before", [5, 4], ids=["was there", "was skipped"])
@pytest.mark.parametrize("now", [7, 6], ids=["is there", "is skipped"])
def test_a_crash_after_an_item_that_changed_does_not_hide_the_change(store, before, now):
    """rows (persist=False) ─► each (mapped, when odd) ─► total; item 1 changes, and its record is the last there is"""
    def make(row):
        return mapped(rows={"persist": False, "version": "1", "func": rows_of(1, row, 2)}, each={"when": is_odd})

    run(make(before), store(), executor="sequential")
    with pytest.raises(StateWriteError):
        run(make(now), FullDisk(store(), 1), executor="sequential")
    result = run(make(now), store(), executor="sequential")
    assert result["each"] == ["each[0](1)", f"each[1]({now})" if now % 2 else None, None]
    assert result["total"] == f"total({result['each']})"


def test_a_teardown_of_what_is_not_kept_runs_again(store):
    """connect (persist=False) ─► work,  [connect, work] ─► close (all_done)"""
    graph = {"connect": "", "work": "connect", "close": "connect work"}
    dag = build(graph, connect={"persist": False}, close={"trigger": "all_done"})
    run(dag, store())
    result = run(dag, store())
    assert restored(result) == ["work"]
    assert world.calls.count("close") == 1


def test_a_mapped_task_that_is_not_kept_runs_in_every_run(store):
    """rows ─► each (mapped, persist=False) ─► total"""
    run(mapped(1, 2, each={"persist": False}), store())
    result = run(mapped(1, 2, each={"persist": False}), store())
    assert sorted(world.calls) == ["each[0]", "each[1]"]
    assert restored(result) == ["rows", "total"]


def test_an_item_that_cannot_be_stored_runs_again_with_what_is_below(store):
    """rows ─► each (mapped) ─► total; items 1 and 2 cannot be stored"""
    def each(row):
        note(f"each {row}")
        return threading.Lock() if row > 1 else row

    dag = mapped(1, 2, 3, each={"func": each}, total={"func": lambda each: note("total")})
    with pytest.warns(RuntimeWarning, match="task 'each'") as caught:
        run(dag, store())
    assert len(caught) == 1, "more than one warning for one task"
    with pytest.warns(RuntimeWarning, match="task 'each'"):
        result = run(dag, store())
    assert sorted(world.calls) == ["each 2", "each 3", "total"]
    assert items_restored(result, "each") == [True, False, False]


def test_items_of_two_mapped_tasks_in_a_row_are_restored_one_by_one(store):
    """rows ─► each (mapped) ─► then (mapped) ─► total"""
    graph = {"rows": "", "each": "rows", "then": "each", "total": "then"}

    def make():
        return build(graph, rows={"func": rows_of(1, 2, 3)}, mapped=["each", "then"])

    world.does["then[2]"] = ERROR
    run(make(), store(), fail_fast=False)
    world.does = {}
    run(make(), store())
    assert world.calls == ["then[2]", "total"]
    run(make(), store())
    assert world.calls == []


def test_ten_thousand_items_are_restored_fast(store):
    """rows ─► each (mapped) ─► total"""
    def make():
        rows, each = {"func": lambda: list(range(10_000))}, {"func": keep}
        return build(MAPPED, rows=rows, each=each, total={"func": len}, mapped=["each"])

    first = make().run(state=store())
    started = time.monotonic()
    result = make().run(state=store(), resume=True)
    took = time.monotonic() - started
    assert result == first
    assert restored(result) == ["rows", "each", "total"]
    assert took < 10, "half a second is usual"


# ---------------------------------------------------------------- retries, timeouts, limits


def test_a_run_that_keeps_results_retries(memory, executor):
    """a ─► flaky ─► c; attempt 3 succeeds"""
    options = {"func": func_of(executor), "flaky": {"func": fail_twice, "retries": 3}}
    graph = {"a": "", "flaky": "a", "c": "flaky"}
    first = run(build(graph, **options), memory(), executor=executor)
    assert first.tasks["flaky"].attempts == 3
    assert restored(run(build(graph, **options), memory(), executor=executor)) == ["a", "flaky", "c"]


def fail_twice(value):
    if current_context().attempt < 3:
        raise ERROR
    return value


def test_retries_of_a_resumed_task_count_from_one(store):
    """bad"""
    world.does["bad"] = ERROR
    dag = build({"bad": ""}, bad={"retries": 2})
    assert run(dag, store()).tasks["bad"].attempts == 3
    assert run(dag, store()).tasks["bad"].attempts == 3


def test_a_task_that_timed_out_runs_again(store, barrier):
    """a ─► slow"""
    slow = {"timeout": 0.05, "version": "1", "func": lambda a: barrier()}
    first = run(build({"a": "", "slow": "a"}, slow=slow), store())
    barrier.open.set()
    assert states(first)["slow"] == "failed"
    result = run(build({"a": "", "slow": "a"}, slow={"version": "1"}), store())
    assert world.calls == ["slow"]
    assert restored(result) == ["a"]


class Slow:
    """A result that takes its time to be stored."""

    def __init__(self, barrier):
        self._barrier = barrier

    def __reduce__(self):
        self._barrier()
        return str, ("of the attempt that timed out",)


@pytest.fixture
def late(barrier):
    """Return a function that gives the result of a task whose first attempt times out while its result is stored."""
    def value():
        is_first = current_context().attempt == 1
        return Slow(barrier) if is_first else "of attempt 2"

    return value


TIMES_OUT = {"timeout": 0.05, "retries": 1}


def let_go(barrier, abandoned):
    """Let *abandoned*, the thread of the attempt that timed out, say what it has to say, and wait for its end."""
    barrier.open.set()
    abandoned.join(PATIENCE)
    assert not abandoned.is_alive()


@pytest.mark.parametrize("place", ["b", "c"])
def test_a_late_result_is_not_kept_in_the_place_of_the_one_that_was_announced(store, late, barrier, place):
    """a ─► b ─► c; the first attempt of a is stored while *place* runs"""
    threads = []

    def a():
        threads.append(threading.current_thread())
        return late()

    world.does[place] = lambda: let_go(barrier, threads[0]) or ""
    dag = build(CHAIN, a={**TIMES_OUT, "func": a, "version": "1"})
    first = run(dag, store(serializer="pickle"))
    assert first["a"] == "of attempt 2"
    world.does = {}
    result = run(dag, store(serializer="pickle"))
    assert dict(result) == dict(first)
    assert world.calls == []


def test_a_late_result_of_a_task_that_failed_is_not_kept(store, late, barrier):
    """a ─► b,  c; the only attempt of a times out, and is stored while c runs"""
    threads = []

    def a():
        threads.append(threading.current_thread())
        return late()

    failed = threading.Event()

    def tell(event):
        if isinstance(event, TaskFailed):
            failed.set()

    def wait_for_the_end_of_a():
        assert failed.wait(PATIENCE)
        let_go(barrier, threads[0])
        return ""

    world.does["c"] = wait_for_the_end_of_a
    dag = build({"a": "", "b": "a", "c": ""}, a={"timeout": 0.05, "func": a, "version": "1"})
    result = run(dag, store(serializer="pickle"), fail_fast=False, on_event=tell)
    assert states(result) == {"a": "failed", "b": "upstream_failed", "c": "succeeded"}
    world.does = {}
    run(build({"a": "", "b": "a", "c": ""}, a={"version": "1"}), store(serializer="pickle"))
    assert world.calls == ["a", "b"]


def test_a_late_result_of_a_run_that_is_over_is_not_kept(store, late, barrier):
    """a"""
    threads = []

    def a():
        threads.append(threading.current_thread())
        return late()

    dag = build({"a": ""}, a={**TIMES_OUT, "func": a, "version": "1"})
    first = run(dag, store(serializer="pickle"))
    let_go(barrier, threads[0])
    result = run(dag, store(serializer="pickle"))
    assert dict(result) == dict(first)
    assert restored(result) == ["a"]


def test_restored_tasks_hold_no_limit(store):
    """a0 .. a9, of which five are kept, one at a time"""
    graph = {f"a{n}": "" for n in range(10)}
    options = {name: {"uses": "api"} for name in graph}
    run(build(graph, **options), store(), limits={"api": 1}, targets=list(graph)[::2])
    result = run(build(graph, **options), store(), limits={"api": 1})
    assert restored(result) == list(graph)[::2]
    assert result.ok


def test_what_waits_for_a_limit_is_restored_at_once(store, barrier):
    """hold, then a ─► b, all of one limit; hold runs, and a and b are kept"""
    graph = {"hold": "", "a": "", "b": "a"}
    options = {name: {"uses": "api"} for name in graph}
    run(build(graph, **options), store(), limits={"api": 1}, targets=["b"])
    world.does["hold"] = barrier
    told = threading.Event()
    handle = build(graph, **options).start(
        state=store(), resume=True, limits={"api": 1},
        observers=[lambda event: told.set() if getattr(event, "task_name", "") == "b" else None],
    )  # fmt: skip
    assert barrier.reached.wait(PATIENCE)
    assert told.wait(PATIENCE), "b waits for a limit that it does not need"
    barrier.open.set()
    assert handle.result().ok


# ---------------------------------------------------------------- what a task sees, and the other ways to run


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_a_task_sees_which_of_its_upstream_was_restored(memory, executor):
    """a, b ─► look"""
    graph = {"a": "", "b": "", "look": "a b"}
    run(build(graph), memory(), executor=executor, targets=["a"])
    look = {"func": describe_upstream}
    edges = build(graph, look=look)
    assert run(edges, memory(), executor=executor)["look"] == [
        ("a", "succeeded", "a()", True, 0),
        ("b", "succeeded", "b()", False, 1),
    ]


def test_arun_keeps_and_restores(store):
    """a ─► b ─► c"""
    async def go():
        await build(CHAIN, func=mix_soon).arun(state=store(), targets=["b"])
        return await build(CHAIN, func=mix_soon).arun(state=store(), resume=True)

    assert restored(asyncio.run(go())) == ["a", "b"]


def test_a_run_in_the_background_keeps_and_restores(store):
    """a ─► b ─► c"""
    build(CHAIN).start(state=store(), targets=["b"]).result()
    assert restored(build(CHAIN).start(state=store(), resume=True).result()) == ["a", "b"]


def test_a_snapshot_shows_what_is_restored(store, barrier):
    """a ─► b"""
    run(build({"a": "", "b": "a"}), store(), targets=["a"])
    world.does["b"] = barrier
    handle = build({"a": "", "b": "a"}).start(state=store(), resume=True)
    assert barrier.reached.wait(PATIENCE)
    snapshot = handle.snapshot()
    barrier.open.set()
    handle.result()
    assert {name: (own.state, own.restored) for name, own in snapshot.tasks.items()} == {
        "a": ("succeeded", True),
        "b": ("running", False),
    }


def test_state_and_resume_can_be_defaults_of_the_dag(store):
    """a"""
    dag = DAG("graph", tasks=[Task("a", mix)], state=store(), resume=True)
    assert restored(dag.run()) == []
    assert restored(dag.run()) == ["a"]
    assert dag.plan().named("restore") == ["a"]
    assert restored(dag.run(resume=False)) == []


def test_a_default_state_can_be_left_out(store):
    """a"""
    dag = DAG("graph", tasks=[Task("a", mix)], state=store())
    dag.run(state=None)
    assert "a" not in store().read_scope("graph").tasks


def test_the_order_of_a_sequential_run_is_the_same_with_a_state(store):
    """a ─► c ─► e,  b ─► d"""
    graph = {"a": "", "b": "", "c": "a", "d": "b", "e": "c"}
    build(graph).run(executor="sequential")
    without = world.calls
    run(build(graph), store(), executor="sequential")
    assert world.calls == without


# ---------------------------------------------------------------- many runs and one store


def test_two_dags_in_one_store_do_not_meet(store):
    """a ─► b ─► c, under two names"""
    run(build(CHAIN, name="one"), store())
    run(build(CHAIN, name="two"), store())
    assert world.calls == ["a", "b", "c"]
    assert restored(run(build(CHAIN, name="one"), store())) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a/b", "..", "<script>", "ü\u4e2d", "x" * 200, "a\\c", "[1]", "con"])
def test_no_name_of_a_task_or_dag_is_in_the_way(store, name):
    result = again({name: "", "each": name}, store, name=name, mapped=["each"], **{name: {"func": three_rows}})
    assert restored(result) == [name, "each"]


def test_items_of_tasks_whose_names_look_like_items_are_told_apart(store):
    """rows ─► x (mapped), x[0] (mapped), x[0][0]"""
    graph = {"rows": "", "x": "rows", "x[0]": "rows", "x[0][0]": "rows"}
    dag = build(graph, rows={"func": rows_of(1, 2)}, mapped=["x", "x[0]"])
    first = dag.run(state=store())
    result = dag.run(state=store(), resume=True)
    assert (result, restored(result)) == (first, list(graph))


def test_a_run_inside_a_task_may_use_the_same_store_under_another_name(store):
    """outer ─► (inner: a ─► b ─► c)"""
    state = store()

    def outer():
        return run_inner()["c"]

    def run_inner():
        return build(CHAIN, name="inner").run(state=state, resume=True)

    dag = build({"outer": ""}, name="outer", outer={"func": outer, "version": "1"})
    assert dag.run(state=state)["outer"] == "c(b(a()))"
    assert restored(build(CHAIN, name="inner").run(state=store(), resume=True)) == ["a", "b", "c"]
    assert restored(dag.run(state=state, resume=True)) == ["outer"]


def test_a_run_inside_a_task_under_the_same_name_is_refused_and_nothing_hangs(store):
    """outer ─► (a DAG of the same name)"""
    state = store()

    def outer():
        return build({"a": ""}, name="same").run(state=state)["a"]

    with pytest.raises(TaskExecutionError) as caught:
        build({"outer": ""}, name="same", outer={"func": outer}).run(state=state)
    assert isinstance(caught.value.__cause__, StateLockedError)


def test_a_second_run_of_the_same_name_is_refused_before_anything_runs(store, barrier):
    """a"""
    world.does["a"] = barrier
    handle = build({"a": ""}).start(state=store())
    assert barrier.reached.wait(PATIENCE)
    with pytest.raises(StateLockedError, match="'graph'"):
        build({"a": ""}).run(state=store(), resume=True)
    assert world.calls == ["a"]
    barrier.open.set()
    assert handle.result() == {"a": "a()"}
    assert restored(run(build({"a": ""}), store())) == ["a"]


def test_twenty_threads_that_run_one_dag_with_one_state_take_turns(store):
    """a ─► b ─► d,  a ─► c ─► d; each task is called once"""
    dag, state = build(DIAMOND), store(lock_timeout=30)
    results, errors = [], []

    def go():
        try:
            results.append(dag.run(state=state, resume=True))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert len(results) == 20
    assert {result["d"] for result in results} == {"d(b(a()), c(a()))"}
    assert len({result.run_id for result in results}) == 20
    assert sorted(world.calls) == ["a", "b", "c", "d"]


def test_twenty_threads_that_do_not_wait_get_the_result_or_are_refused(store):
    """a ─► b ─► d,  a ─► c ─► d"""
    dag, state = build(DIAMOND), store()
    ends = []
    together = threading.Barrier(20)

    def go():
        together.wait(PATIENCE)
        try:
            ends.append(dag.run(state=state, resume=True)["d"])
        except StateLockedError:
            ends.append("locked")

    threads = [threading.Thread(target=go) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(ends) == 20
    assert set(ends) <= {"d(b(a()), c(a()))", "locked"}
    assert set(ends) != {"locked"}
    assert sorted(world.calls) == ["a", "b", "c", "d"]


def test_a_run_that_waits_for_the_state_can_be_cancelled(store, barrier):
    """a, which holds the state meanwhile"""
    state = store(lock_timeout=PATIENCE)
    world.does["a"] = barrier
    first = build({"a": ""}).start(state=state)
    assert barrier.reached.wait(PATIENCE)
    second = build({"a": ""}).start(state=state)
    second.cancel("enough")
    try:
        with pytest.raises(RunCancelledError):
            second.result(2)
    finally:
        barrier.open.set()
        first.result()
    assert world.calls == ["a"]


WAITS = """
    import threading
    from flowkit import DAG, StateManager, Task
    runs, ended = threading.Event(), threading.Event()
    def hold():
        runs.set()
        ended.wait(30)
    dag, state = DAG("graph", tasks=[Task(hold)]), StateManager({path!r}, lock_timeout=30)
    handle = dag.start(state=state)
    runs.wait(30)
    threading.Timer(0.2, print, ["waiting"]).start()
    dag.run(state=state)
"""


@pytest.mark.parametrize("kind", ["memory", "json"])
def test_a_run_that_waits_for_the_state_can_be_interrupted(script, tmp_path, kind):
    path = None if kind == "memory" else str(tmp_path / "state.json")
    process = script(WAITS.format(path=path), limit=20)
    process.wait_for("waiting")
    process.interrupt()
    process.finish()
    assert "KeyboardInterrupt" in process.err
    assert process.seconds < 3, "Ctrl-C is over within half a second"


# ---------------------------------------------------------------- clear_runs


def test_what_runs_have_kept_can_be_forgotten(store):
    """a ─► b ─► c, under two names"""
    for name in ("one", "two"):
        run(build(CHAIN, name=name), store())
    store().clear_runs("one")
    assert restored(run(build(CHAIN, name="one"), store())) == []
    assert restored(run(build(CHAIN, name="two"), store())) == ["a", "b", "c"]
    store().clear_runs()
    assert restored(run(build(CHAIN, name="two"), store())) == []


def test_forgetting_runs_leaves_the_values_by_key(store):
    """a"""
    run(build({"a": ""}), store())
    store().set("key", 1)
    store().clear_runs()
    assert store().get("key") == 1


def test_clearing_the_cache_leaves_what_runs_have_kept(store):
    """a"""
    run(build({"a": ""}), store())
    state = store()
    state.set("key", 1)
    state.clear()
    assert restored(run(build({"a": ""}), store())) == ["a"]


def test_what_a_run_has_kept_knows_no_time_to_live(store):
    """a"""
    run(build({"a": ""}), store(default_ttl=-1))
    store().invalidate_expired()
    assert restored(run(build({"a": ""}), store())) == ["a"]


def test_what_a_run_has_kept_is_no_value_of_the_cache(store):
    """a"""
    run(build({"a": ""}), store())
    assert store().get_all() == {}


def test_results_of_a_run_that_goes_on_are_not_forgotten(store, barrier):
    """a ─► b"""
    world.does["b"] = barrier
    handle = build({"a": "", "b": "a"}).start(state=store())
    assert barrier.reached.wait(PATIENCE)
    with pytest.raises(StateLockedError):
        store().clear_runs("graph")
    barrier.open.set()
    handle.result()
    assert restored(run(build({"a": "", "b": "a"}), store())) == ["a", "b"]


def test_two_states_in_memory_do_not_meet():
    """a"""
    run(build({"a": ""}), StateManager())
    assert restored(run(build({"a": ""}), StateManager())) == []
