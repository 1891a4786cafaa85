"""``dag.plan()``: what a run would do and why, and that it does."""

import threading
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import resume_sketches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resume_tasks import FullDisk, Stores, build, is_wanted, mix, run, world

from flowkit import DAG, BindingError, OptionError, Skip, StateManager, StateWriteError, Task
from flowkit.engine.plan import Plan, PlanStep
from flowkit.state.store import Record

CHAIN = {"a": "", "b": "a", "c": "b"}
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


def plan(dag, store, inputs=None, **options):
    """Return the plan of a resumed run; check that nothing was called for it."""
    world.calls = []
    made = dag.plan(inputs, state=store(), resume=True, **options)
    assert world.calls == []
    return made


def actions(made):
    return {name: step.action for name, step in made.items()}


def reasons(made):
    return {name: step.reason for name, step in made.items()}


# ---------------------------------------------------------------- what it says


def test_of_a_first_run_everything_is_to_run(store):
    """a ─► b ─► c"""
    made = plan(build(CHAIN), store)
    assert made.named("run") == ["a", "b", "c"]
    assert reasons(made) == dict.fromkeys(CHAIN, "never finished")


def test_of_a_run_that_ended_well_everything_is_to_be_restored(store):
    """a ─► b ─► c"""
    first = run(build(CHAIN), store())
    made = plan(build(CHAIN), store)
    assert made.named("restore") == ["a", "b", "c"]
    assert reasons(made) == dict.fromkeys(CHAIN, f"from run {first.run_id}")


def test_what_changed_and_what_is_below_it_is_to_run(store):
    """a ─► b ─► c,  a ─► d"""
    graph = {**CHAIN, "d": "a"}
    run(build(graph), store())
    made = plan(build(graph, b={"version": "2"}), store)
    assert actions(made) == {"a": "restore", "d": "restore", "b": "run", "c": "run"}
    assert made["b"].reason == "version '2' instead of its code"
    assert made["c"].reason == "upstream 'b' runs again"


def test_what_failed_is_to_run_and_the_reason_has_its_error(store):
    """a ─► b ─► c"""
    world.does["b"] = ERROR
    run(build(CHAIN), store())
    made = plan(build(CHAIN), store)
    assert actions(made) == {"a": "restore", "b": "run", "c": "run"}
    assert made["b"].reason == "failed before: ConnectionError: refused"


def test_what_was_skipped_is_to_be_asked_again(store):
    """a ─► b (when) ─► d,  a ─► c ─► d"""
    graph = {"a": "", "b": "a", "c": "a", "d": "b c"}
    world.answers["b"] = False
    run(build(graph, b={"when": is_wanted}), store())
    made = plan(build(graph, b={"when": is_wanted}), store)
    assert actions(made) == {"a": "restore", "b": "skip", "c": "restore", "d": "restore"}
    assert made["b"].reason == "skipped before, and asked again: when() was false"


def test_what_raised_skip_is_to_be_asked_again_with_its_reason(store):
    """a"""
    world.does["a"] = Skip("no rows")
    run(build({"a": ""}), store())
    assert "no rows" in plan(build({"a": ""}), store)["a"].reason


def test_what_is_below_nothing_but_skips_is_to_be_skipped(memory):
    """a (when) ─► b ─► c"""
    world.answers["a"] = False
    run(build(CHAIN, a={"when": is_wanted}), memory())
    assert actions(plan(build(CHAIN, a={"when": is_wanted}), memory)) == dict.fromkeys(CHAIN, "skip")


def test_what_waits_for_a_failure_is_to_be_skipped_and_not_because_of_skips(memory):
    """a ─► alert (one_failed)"""
    dag = build({"a": "", "alert": "a"}, alert={"trigger": "one_failed"})
    made = plan(dag, memory)
    assert actions(made) == {"a": "run", "alert": "skip"}
    assert "skipped" not in made["alert"].reason


def test_what_is_not_kept_is_to_run_and_what_is_below_is_restored(store):
    """a ─► open (persist=False) ─► c"""
    dag = build({"a": "", "open": "a", "c": "open"}, open={"persist": False})
    run(dag, store())
    made = plan(dag, store)
    assert actions(made) == {"a": "restore", "open": "run", "c": "restore"}
    assert made["open"].reason == "persist=False"


def test_a_changed_input_is_named(store):
    """a ─► b"""
    dag = build({"a": "", "b": "a"}, a={"func": lambda date: date})
    run(dag, store(), {"date": 1})
    assert reasons(plan(dag, store, {"date": 2})) == {"a": "input 'date' changed", "b": "upstream 'a' runs again"}


def test_several_changes_are_all_named(memory):
    """a"""
    def make(factor):
        return build({"a": ""}, a={"func": lambda date, limit=factor: (date, factor)})

    run(make(1), memory(), {"date": 1})
    reason = plan(make(2), memory, {"date": 2})["a"].reason
    for part in ("default 'limit' changed", "closure 'factor' changed", "input 'date' changed"):
        assert part in reason


def test_what_cannot_be_read_here_is_to_run(tmp_path):
    """a, whose result is of a class that only another module knows"""
    def make():
        return DAG("chain", tasks=[Task("a", lambda: 1, version="1")])

    state = StateManager(tmp_path / "state.json")
    make().run(state=state)
    path = tmp_path / "state.json"
    scope = state.open_scope("chain", "by hand")
    old = scope.tasks["a"]
    scope.append("a", Record(9, old.state, old.code, [], "by hand", 1.0, 0.1, 1, '{"$object":["nowhere:D",{"x":1}]}'))
    scope.close("succeeded", 1.0, 1.0)
    step = make().plan(state=StateManager(path), resume=True)["a"]
    assert (step.action, make().run(state=StateManager(path), resume=True).tasks["a"].restored) == ("run", False)
    assert "its result cannot be read here" in step.reason


def test_a_plan_without_resume_runs_everything(store):
    """a ─► b ─► c"""
    run(build(CHAIN), store())
    made = build(CHAIN).plan(state=store())
    assert reasons(made) == dict.fromkeys(CHAIN, "resume=False")
    assert made.named("run") == ["a", "b", "c"]


def test_a_plan_without_a_state_runs_everything():
    """a ─► b ─► c"""
    made = build(CHAIN).plan()
    assert reasons(made) == dict.fromkeys(CHAIN, "there is no state")


def test_a_plan_has_the_targets_and_what_they_need(store):
    """a ─► b ─► c"""
    run(build(CHAIN), store(), targets=["a"])
    assert actions(plan(build(CHAIN), store, targets=["b"])) == {"a": "restore", "b": "run"}


def test_the_defaults_of_the_dag_are_those_of_its_plans(memory):
    """a"""
    dag = DAG("graph", tasks=[Task("a", mix)], state=memory(), resume=True)
    dag.run()
    assert dag.plan().named("restore") == ["a"]
    assert dag.plan(resume=False).named("run") == ["a"]


# ---------------------------------------------------------------- mapped tasks


MAPPED = {"rows": "", "each": "rows", "total": "each"}


def mapped(rows, **options):
    """rows ─► each (mapped) ─► total"""
    return build(MAPPED, rows={"func": lambda: list(rows), "version": "1"}, mapped=["each"], **options)


def test_a_mapped_task_is_to_be_restored(store):
    """rows ─► each (mapped) ─► total"""
    run(mapped([1, 2]), store())
    assert plan(mapped([1, 2]), store).named("restore") == ["rows", "each", "total"]


def test_a_mapped_task_that_is_to_run_says_how_many_items_are_restored(store):
    """rows ─► each (mapped over 3, one fails) ─► total"""
    world.does["each[1]"] = ERROR
    run(mapped([1, 2, 3]), store(), fail_fast=False)
    made = plan(mapped([1, 2, 3]), store)
    assert actions(made) == {"rows": "restore", "each": "run", "total": "run"}
    assert made["each"].reason.endswith("items restored: 2")


def test_a_mapped_task_with_an_item_that_could_not_be_stored_is_to_run(store):
    """rows ─► each (mapped) ─► total; item 1 cannot be stored"""
    def each(row):
        return threading.Lock() if row == 2 else row

    dag = mapped([1, 2, 3], each={"func": each}, total={"func": lambda each: 1})
    with pytest.warns(RuntimeWarning, match="'each'"):
        run(dag, store())
    assert plan(dag, store).named("run") == ["each", "total"]


def test_a_mapped_task_behind_one_that_is_not_kept_is_to_be_restored(store):
    """rows (persist=False) ─► each (mapped) ─► total: nobody knows yet whether the rows are the same"""
    dag = build(MAPPED, rows={"func": lambda: [1, 2], "persist": False}, mapped=["each"])
    run(dag, store())
    assert actions(plan(dag, store)) == {"rows": "run", "each": "restore", "total": "restore"}


def test_a_mapped_task_with_a_skipped_item_is_planned_as_it_is_run(store):
    """rows ─► each (mapped, when) ─► total"""
    world.answers["each[1]"] = False
    dag = mapped([1, 2, 3], each={"when": is_wanted})
    run(dag, store())
    made = plan(dag, store)
    result = run(dag, store())
    assert made.named("restore") == [name for name, own in result.tasks.items() if own.restored]


def test_a_mapped_task_over_another_input_is_to_run(store):
    """each (mapped over the input row)"""
    dag = build({"each": ""}, each={"func": lambda row: row}, mapped=["each"])
    run(dag, store(), {"row": [1, 2]})
    assert plan(dag, store, {"row": [1, 2]}).named("restore") == ["each"]
    assert reasons(plan(dag, store, {"row": [1, 3]})) == {"each": "input 'row' changed"}


# ---------------------------------------------------------------- a mapping and a table


def test_a_plan_is_a_mapping_of_steps_in_generation_order(memory):
    """a ─► c,  b ─► c"""
    made = plan(build({"c0": "", "b": "", "c": "c0 b"}), memory)
    assert isinstance(made, Plan)
    assert list(made) == ["c0", "b", "c"]
    assert len(made) == 3
    assert "b" in made
    assert (type(made["b"]), made["b"].name, made["b"].action) == (PlanStep, "b", "run")


def test_a_task_that_is_not_there_is_looked_up_with_a_hint(memory):
    """fetch"""
    with pytest.raises(KeyError, match=r"no task is named 'fetsh'.*'fetch'"):
        plan(build({"fetch": ""}), memory)["fetsh"]


def test_named_gives_the_names_of_each_action(memory):
    """a ─► b,  skipped (when)"""
    graph = {"a": "", "b": "a", "c": ""}
    world.answers["c"] = False
    run(build(graph, c={"when": is_wanted}), memory())
    made = plan(build(graph, c={"when": is_wanted}, b={"version": "2"}), memory)
    assert [made.named(action) for action in ("run", "restore", "skip")] == [["b"], ["a"], ["c"]]


def test_named_refuses_what_is_no_action(memory):
    with pytest.raises(OptionError, match="'restored' must be one of 'run', 'restore', 'skip'"):
        plan(build({"a": ""}), memory).named("restored")


def test_printed_it_is_a_table(memory):
    """a ─► b,  c (when)"""
    graph = {"a": "", "b": "a", "c": ""}
    options = {"func": lambda *given: 1, "c": {"when": lambda: False}}
    first = run(build(graph, **options), memory())
    made = plan(build(graph, b={"version": "2"}, **options), memory)
    assert str(made).splitlines() == [
        "graph: 1 to run, 1 to restore, 1 to skip",
        "",
        "task  plan     reason",
        "----  -------  ------",
        f"a     restore  from run {first.run_id}",
        "c     skip     skipped before, and asked again: when() was false",
        "b     run      version '2' instead of its code",
    ]


def test_what_is_not_watched_is_listed_below_the_table(memory):
    """a"""
    lock = threading.Lock()
    made = plan(build({"a": ""}, a={"func": lambda: lock}), memory)
    (line,) = made.unwatched
    assert "task 'a'" in line
    assert "'lock'" in line
    assert str(made).endswith(f"\n\nNot watched:\n- {line}")


def test_an_input_that_cannot_be_told_from_another_is_not_watched(memory):
    """a"""
    dag = build({"a": ""}, a={"func": lambda source: 1})
    (line,) = plan(dag, memory, {"source": threading.Lock()}).unwatched
    assert "input 'source'" in line
    run(dag, memory(), {"source": threading.Lock()})
    assert plan(dag, memory, {"source": threading.Lock()}).named("restore") == ["a"]
    assert plan(dag, memory, {"source": 1}).named("run") == ["a"]


def test_a_plan_in_which_everything_is_watched_has_no_such_list(memory):
    """a"""
    made = plan(build({"a": ""}, a={"func": lambda: 1}), memory)
    assert made.unwatched == []
    assert "watched" not in str(made)


def test_a_plan_of_no_tasks_says_so(memory):
    made = plan(DAG("empty", tasks=[]), memory)
    assert len(made) == 0
    assert str(made).startswith("empty: no tasks")


def test_repr_is_short(memory):
    """a ─► b ─► c"""
    made = plan(build(CHAIN), memory)
    assert repr(made) == "<Plan graph: 3 to run>"
    assert repr(made["a"]) == "<PlanStep 'a': run (never finished)>"


# ---------------------------------------------------------------- nothing runs, and nothing is written


def test_a_plan_writes_nothing(tmp_path):
    """a ─► b"""
    for kind in ("json", "sqlite"):
        stores = Stores(kind, tmp_path)
        assert plan(build({"a": ""}), stores).named("run") == ["a"]
        stores.close()
    assert list(tmp_path.iterdir()) == []


def test_a_plan_changes_nothing_of_what_is_kept(store, tmp_path):
    """a ─► b ─► c"""
    run(build(CHAIN), store(), targets=["b"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".json"}
    records = [record.to_json() for record in store().read_scope("graph").tasks.values()]
    plan(build(CHAIN, b={"version": "2"}), store)
    assert [record.to_json() for record in store().read_scope("graph").tasks.values()] == records
    assert {path: path.read_bytes() for path in before} == before
    run(build(CHAIN), store())
    assert world.calls == ["c"]


def test_no_condition_is_asked_for_a_plan(memory):
    """a (when)"""
    assert plan(build({"a": ""}, a={"when": is_wanted}), memory).named("run") == ["a"]


def test_a_plan_can_be_made_while_the_run_goes_on(store):
    """a ─► b ─► c; b goes on"""
    reached, go_on = threading.Event(), threading.Event()

    def wait():
        reached.set()
        assert go_on.wait(PATIENCE)
        return ""

    world.does["b"] = wait
    handle = build(CHAIN).start(state=store())
    try:
        assert reached.wait(PATIENCE)
        made = build(CHAIN).plan(state=store(), resume=True)
    finally:
        go_on.set()
        handle.result()
    assert actions(made) == {"a": "restore", "b": "run", "c": "run"}


def test_a_plan_of_a_wrong_graph_says_what_is_wrong(memory):
    """a ─► b(x, y)"""
    dag = build({"a": "", "b": "a"}, b={"func": lambda x, y: 1})
    with pytest.raises(BindingError, match="needs 2 values"):
        dag.plan(state=memory())


def test_a_plan_takes_the_arguments_of_a_run(memory):
    dag = build({"a": ""})
    assert dag.plan(state=memory(), resume=True, executor="process", max_workers=2, fail_fast=False, timeout=3)
    with pytest.raises(TypeError, match="no argument 'resumes'"):
        dag.plan(resumes=True)
    with pytest.raises(OptionError, match="resume=True needs a state"):
        dag.plan(resume=True)


def test_a_plan_in_a_task_sees_what_its_run_has_kept(store):
    """a ─► look"""
    def look(a):
        return str(dag.plan(state=store(), resume=True))

    dag = build({"a": "", "look": "a"}, look={"func": look, "version": "1"})
    assert "a     restore" in dag.run(state=store())["look"]


# ---------------------------------------------------------------- what it says is what the run does


def check_plans(history, rooms, kind="memory"):
    """Run each graph of *history* on one store, sometimes interrupted, and compare each run with its plan."""
    with TemporaryDirectory() as folder, closing(Stores(kind, Path(folder))) as stores:
        for n, (sketches, inputs) in enumerate(history):
            dag = resume_sketches.build(sketches)
            room = rooms[n % len(rooms)]
            if room is not None:
                with suppress(StateWriteError):
                    dag.run(inputs, state=FullDisk(stores(), room), resume=True, executor="sequential")
            made = dag.plan(inputs, state=stores(), resume=True)
            result = dag.run(inputs, state=stores(), resume=True, executor="sequential")
            done = {
                name: "restore" if own.restored else {"succeeded": "run"}.get(own.state, "skip")
                for name, own in result.tasks.items()
            }
            assert actions(made) == done
            for name in made.named("restore"):
                assert result.tasks[name].reason == f"restored {made[name].reason}"


ROOMS = st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=4)


def examples(most):
    """Say how often a test is tried; a loaded machine is no failure."""
    return settings(max_examples=most, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(history=resume_sketches.histories(may_skip=False), rooms=ROOMS)
@examples(80)
def test_a_run_does_what_its_plan_said_if_all_tasks_succeed(history, rooms):
    check_plans(history, rooms)


@pytest.mark.parametrize("kind", ["json", "sqlite"])
@given(history=resume_sketches.histories(may_skip=False), rooms=ROOMS)
@examples(8)
def test_a_run_does_what_its_plan_said_in_every_store(kind, history, rooms):
    check_plans(history, rooms, kind)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))
@given(history=resume_sketches.histories(may_skip=False, most=9), rooms=ROOMS)
@examples(250)
def test_a_run_does_what_its_plan_said_five_thousand_times(history, rooms, part):
    check_plans(history, rooms)


# ---------------------------------------------------------------- the reason names the change


@given(history=resume_sketches.histories(may_skip=False, most=2))
@examples(40)
def test_each_reason_to_run_again_is_there(history):
    """A task that is to run has a reason of its own, or names a task upstream that is to run."""
    with TemporaryDirectory() as folder:
        stores = Stores("memory", Path(folder))
        for sketches, inputs in history:
            dag = resume_sketches.build(sketches)
            made = dag.plan(inputs, state=stores(), resume=True)
            for name in made.named("run"):
                reason = made[name].reason
                assert reason
                if reason.endswith("runs again"):
                    upstream = next(each.upstream for each in sketches if each.name == name)
                    named = reason.split("'", 1)[1].rpartition("'")[0]
                    assert named in upstream
                    assert made[named].action == "run"
            dag.run(inputs, state=stores(), resume=True, executor="sequential")
