"""The states of tasks by name: what stores for workflows keep, and how executions go on from it."""

import contextlib
import dataclasses
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import task_state_tasks as tasks
from resume_tasks import world
from task_state_tasks import (
    build,
    damage,
    entries,
    execute,
    fail,
    in_a_process,
    mix,
    mix_anew,
    quietly,
    same,
    sql,
    wait_for_cancel,
)

from flowkit import (
    DAG,
    AsyncExecutor,
    JSONStateStore,
    OptionError,
    SequentialExecutor,
    Skip,
    SQLiteStateStore,
    StateError,
    StateLockedError,
    StateSerializationError,
    Task,
    TaskStatus,
    TaskSucceeded,
    ThreadedExecutor,
    Workflow,
    WorkflowExecutionError,
)

PATIENCE = 10
A_DAY = 86_400.0
CHAIN = {"a": "", "b": "a", "c": "b"}
PAIR = {"a": "", "b": "a"}
EXECUTORS = [SequentialExecutor, ThreadedExecutor, AsyncExecutor]
FALSY = [None, 0, False, "", [], {}, (), 0.0, b"", set()]
VALUES = [
    *FALSY, 7, 1.5, "text", True, (1, (2,)), {1, 2}, frozenset({3}), b"\0\xff", datetime(2024, 2, 29, 12, tzinfo=UTC),
    datetime(2024, 2, 29, 12), date(2024, 2, 29), timedelta(days=1), {1: "a", 2: ("b",)}, [{"x": (1, {2})}],
    2**80, float("inf"), "\ud800", '"quoted"\n',
]  # fmt: skip

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="looks into /proc")
by_name_alone = pytest.mark.filterwarnings("ignore:.*by the names of tasks alone:RuntimeWarning")


@pytest.fixture(autouse=True)
def _fresh_world():
    world.reset()
    yield
    world.reset()


@pytest.fixture(params=["json", "sqlite"])
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def opens(kind, path):
    """Return a function that gives a store, each as of another process; all are closed in the end."""
    made = {"json": JSONStateStore, "sqlite": SQLiteStateStore}[kind]
    with contextlib.ExitStack() as stack:

        def open_one(**options):
            store = made(path, **options)
            stack.callback(getattr(store, "close", int))
            return store

        yield open_one


@pytest.fixture
def store(opens):
    return opens()


@pytest.fixture
def sqlite(path):
    with SQLiteStateStore(path) as store:
        yield store


OWN = [tasks.OwnStore, tasks.Duck, tasks.InStatuses, tasks.InWords, tasks.Scoped]


@pytest.fixture(params=OWN, ids=lambda made: made.__name__)
def own(request):
    return request.param()


# ---------------------------------------------------------------- saving and loading


def test_what_was_saved_is_loaded(store):
    store.save_task_state("a", "COMPLETED", result=[1])
    state = store.load_task_state("a")
    del state["timestamp"]
    assert state == {"status": "COMPLETED", "result": [1], "error": None, "metadata": {}}


def test_arguments_can_be_given_by_position(store):
    store.save_task_state("a", "FAILED", 1, "no", "yesterday", {"by": "me"})
    assert store.load_task_state("a") == {
        "status": "FAILED", "result": 1, "error": "no", "timestamp": "yesterday", "metadata": {"by": "me"},
    }  # fmt: skip


def test_a_task_of_which_nothing_is_kept_has_no_state(store):
    store.save_task_state("a", "COMPLETED")
    assert store.load_task_state("b") is None


def test_nothing_is_written_by_looking(store, path):
    assert (store.load_task_state("a"), store.list_all_tasks(), store.list_task_states()) == (None, [], {})
    store.delete_task_state("a")
    store.clear_all_states()
    assert os.listdir(path.parent) == []


def test_a_state_takes_the_place_of_the_one_before(store):
    store.save_task_state("a", "FAILED", error="no")
    store.save_task_state("a", "COMPLETED", 2)
    state = store.load_task_state("a")
    assert (state["status"], state["result"], state["error"]) == ("COMPLETED", 2, None)


@pytest.mark.parametrize("status", list(TaskStatus))
def test_a_status_can_be_given_as_such_or_as_its_name(store, status):
    store.save_task_state("such", status)
    store.save_task_state("name", status.value)
    assert {state["status"] for state in store.list_task_states().values()} == {status.value}
    assert type(store.load_task_state("such")["status"]) is str


@pytest.mark.parametrize("status", ["late", 'say "no"', "back\\slash", "two\nlines", "ünknown", "\ud800"], ids=ascii)
def test_a_status_can_be_any_text(store, status):
    store.save_task_state("a", status, 1)
    assert store.load_task_state("a")["status"] == status


@pytest.mark.parametrize("name", ["end", "a/b", "a\nb", "ü ", "\ud800", "a[0]", '"', "x" * 200], ids=ascii)
def test_a_task_can_have_any_name(opens, name):
    opens().save_task_state(name, "COMPLETED", 1)
    store = opens()
    assert store.load_task_state(name)["result"] == 1
    assert store.list_all_tasks() == [name]
    store.delete_task_state(name)
    assert store.list_all_tasks() == []


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_a_result_comes_back_with_the_type_that_it_had(opens, value):
    opens().save_task_state("a", "COMPLETED", value)
    found = opens().load_task_state("a")["result"]
    assert same(found, value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("refused", ["result", "timestamp", "metadata"])
def test_what_cannot_come_back_is_refused_by_its_name(store, refused):
    value = {"rows": [1, threading.Lock()]}
    with pytest.raises(StateSerializationError, match=r"\['rows'\]\[1\]: a lock.* cannot be stored"):
        store.save_task_state("a", "COMPLETED", **{refused: value})


def test_a_refusal_leaves_what_was_kept(store):
    store.save_task_state("a", "COMPLETED", 1)
    with pytest.raises(StateSerializationError):
        store.save_task_state("a", "COMPLETED", threading.Lock())
    assert store.load_task_state("a")["result"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"task_name": 3}, {"task_name": ""}, {"task_name": None}, {"status": None}, {"status": ""}, {"status": 1},
        {"metadata": [1]}, {"metadata": "text"}, {"error": 42}, {"error": ValueError}, {"error": b"no"},
    ],
    ids=repr,
)  # fmt: skip
def test_an_argument_of_the_wrong_kind_is_refused_by_name(store, bad):
    (name,) = bad
    with pytest.raises(OptionError, match=rf"save_task_state\(\): {name}="):
        store.save_task_state(**{"task_name": "a", "status": "FAILED", **bad})
    assert store.list_all_tasks() == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no"), "ValueError: no"), (ValueError(), "ValueError"), (KeyError("k"), "KeyError: 'k'"),
        ("went wrong", "went wrong"), ('"', '"'), ("\ud800", "\ud800"), (None, None),
    ],
    ids=repr,
)  # fmt: skip
def test_an_error_is_an_exception_or_text(store, error, told):
    store.save_task_state("a", "FAILED", error=error)
    assert store.load_task_state("a")["error"] == told


def test_without_a_timestamp_it_is_now(store):
    before = datetime.now(UTC)
    store.save_task_state("a", "COMPLETED")
    told = datetime.fromisoformat(store.load_task_state("a")["timestamp"])
    assert before - timedelta(milliseconds=1) <= told <= datetime.now(UTC) + timedelta(milliseconds=1)
    assert told.utcoffset() == timedelta(0)


@pytest.mark.parametrize("timestamp", [0, 1.5, "yesterday", datetime(2024, 1, 1), {"at": 1, "result": 2}], ids=repr)
def test_a_timestamp_comes_back_as_it_was(store, timestamp):
    store.save_task_state("a", "COMPLETED", 5, timestamp=timestamp)
    assert same(store.load_task_state("a")["timestamp"], timestamp)
    assert store.load_task_state("a")["result"] == 5


@pytest.mark.parametrize(
    "metadata", [{}, {"by": "me", "result": (1,)}, {"result": 2}, {1: b"x"}, {"a": ',"result":'}], ids=repr
)
def test_metadata_comes_back_as_it_was(store, metadata):
    store.save_task_state("a", "COMPLETED", 5, metadata=metadata)
    assert same(store.load_task_state("a")["metadata"], metadata)
    assert store.load_task_state("a")["result"] == 5


# ---------------------------------------------------------------- forgetting and listing


@pytest.mark.parametrize("method", ["delete_task_state", "clear_task_state"])
def test_one_task_is_forgotten_by_either_name(opens, method):
    store = opens()
    store.save_task_state("a", "COMPLETED", 1)
    store.save_task_state("b", "COMPLETED", 2)
    getattr(store, method)("a")
    assert store.load_task_state("a") is None
    assert opens().list_all_tasks() == ["b"]


def test_clear_all_states_forgets_everything(opens):
    store = opens()
    execute(PAIR, store)
    store.save_task_state("x", "COMPLETED", 1)
    store.clear_all_states()
    assert (opens().list_all_tasks(), opens().load_task_state("a")) == ([], None)


def test_the_names_of_all_tasks_are_listed_once(store):
    execute(PAIR, store)
    for name in ("x", "a"):
        store.save_task_state(name, "COMPLETED", 1)
    assert sorted(store.list_all_tasks()) == ["a", "b", "x"]


def test_the_states_of_all_tasks_are_what_is_loaded_of_each(store):
    execute(PAIR, store)
    store.save_task_state("x", "FAILED", error="no")
    assert store.list_task_states() == {name: store.load_task_state(name) for name in ("a", "b", "x")}


# ---------------------------------------------------------------- workflows


def test_two_workflows_on_one_store_do_not_meet(store):
    one, two = store.for_workflow("one"), store.for_workflow("two")
    one.save_task_state("a", "COMPLETED", 1)
    two.save_task_state("a", "FAILED", error="no")
    assert one.load_task_state("a")["result"] == 1
    assert two.load_task_state("a")["error"] == "no"
    assert store.for_workflow("three").load_task_state("a") is None


def test_executions_of_two_workflows_do_not_meet(store):
    execute(PAIR, store, name="one")
    assert execute(PAIR, store, name="two", func=mix_anew)["b"] == "new b(new a())"
    assert world.calls == ["a", "b"]
    assert execute(PAIR, store, name="one")["b"] == "b(a())"
    assert world.calls == []


def test_two_workflows_that_run_at_the_same_time_do_not_meet(store):
    """one: a ─► b    two: a ─► b"""
    barrier = threading.Barrier(2)
    world.does = dict.fromkeys("ab", quietly(lambda: barrier.wait(PATIENCE)))
    made = {"one": mix, "two": mix_anew}

    def run(name):
        return ThreadedExecutor(state_store=store).execute(build(PAIR, name=name, func=made[name]))

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(made, pool.map(run, made), strict=True))
    assert {name: result["b"] for name, result in results.items()} == {"one": "b(a())", "two": "new b(new a())"}
    for name in made:
        assert store.for_workflow(name).load_task_state("b")["result"] == results[name]["b"]
        assert store.for_workflow(name).list_all_tasks() == ["a", "b"]


def test_the_store_itself_sees_the_tasks_of_all_workflows(store):
    execute({"a": ""}, store, name="one")
    execute({"b": ""}, store, name="two")
    store.save_task_state("x", "COMPLETED")
    assert sorted(store.list_all_tasks()) == ["a", "b", "x"]
    assert (store.load_task_state("a")["result"], store.load_task_state("b")["result"]) == ("a()", "b()")


def test_where_two_workflows_have_a_task_of_one_name_the_store_gives_the_newest_state(store):
    execute({"a": ""}, store, name="two", func=mix_anew)
    execute({"a": ""}, store, name="one")
    assert store.load_task_state("a")["result"] == "a()"
    store.for_workflow("two").save_task_state("a", "FAILED")
    assert store.load_task_state("a")["status"] == "FAILED"


def test_the_store_itself_forgets_a_task_in_every_workflow(store):
    for name in ("one", "two"):
        execute(PAIR, store, name=name)
    store.delete_task_state("a")
    assert {name: store.for_workflow(name).list_all_tasks() for name in ("one", "two")} == {"one": ["b"], "two": ["b"]}


@pytest.mark.parametrize("forget", [lambda bound: bound.delete_task_state("a"), lambda bound: bound.clear_all_states()])
def test_what_is_forgotten_of_one_workflow_stays_in_the_others(store, forget):
    for name in ("one", "two"):
        store.for_workflow(name).save_task_state("a", "COMPLETED", name)
    forget(store.for_workflow("one"))
    assert store.for_workflow("one").load_task_state("a") is None
    assert store.for_workflow("two").load_task_state("a")["result"] == "two"


def test_what_is_saved_for_no_workflow_counts_in_each(store):
    execute(PAIR, store, name="one")
    store.save_task_state("a", "COMPLETED", "by hand")
    assert [execute(PAIR, store, name=name)["b"] for name in ("one", "two")] == ["b(by hand)"] * 2


def test_what_is_saved_for_no_workflow_counts_until_a_workflow_has_run_the_task_itself(store):
    store.save_task_state("a", "FAILED", error="by hand")
    execute(PAIR, store, name="one")
    execute(PAIR, store, name="one")
    assert world.calls == []
    assert store.for_workflow("one").load_task_state("a")["result"] == "a()"


def test_a_workflow_lists_no_task_whose_state_it_does_not_have(store):
    store.save_task_state("x", "COMPLETED", 1)
    bound = store.for_workflow("etl")
    bound.save_task_state("a", "COMPLETED", 1)
    assert [name for name in bound.list_all_tasks() if bound.load_task_state(name) is None] == []


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("using", EXECUTORS)
def test_a_completed_task_is_not_called_again_and_its_result_reaches_its_dependents(opens, using):
    """a ─► b, and later a ─► c"""
    execute(PAIR, opens(), using=using)
    assert execute({**PAIR, "c": "a"}, opens(), using=using)["c"] == "c(a())"
    assert world.calls == ["c"]


def test_one_store_serves_both_doors(store):
    """The DAG and the workflow are of one name, and their task of one code."""
    DAG("etl", tasks=[Task("a", mix)]).run(state=store)
    assert store.load_task_state("a")["result"] == "a()"
    execute({"a": ""}, store)
    assert world.calls == []


@pytest.mark.parametrize("using", EXECUTORS)
def test_after_a_failure_only_what_had_not_completed_runs(opens, using):
    """a ─► b ─► c, where b fails at first"""
    fail(CHAIN, opens(), "b", using=using)
    assert world.calls == ["a", "b"]
    assert execute(CHAIN, opens(), using=using)["c"] == "c(b(a()))"
    assert world.calls == ["b", "c"]


def test_the_first_failure_is_kept_with_its_error(opens):
    fail(CHAIN, opens(), "b")
    state = opens().load_task_state("b")
    assert (state["status"], state["result"], state["error"]) == ("FAILED", None, "ConnectionError: refused")


def test_of_a_task_that_never_started_nothing_is_kept(opens):
    fail(CHAIN, opens(), "b")
    assert opens().load_task_state("c") is None


def test_a_skipped_task_is_kept_as_such_and_asked_again(opens):
    world.does["a"] = Skip("no rows")
    execute({"a": ""}, opens())
    state = opens().load_task_state("a")
    assert (state["status"], state["error"]) == ("SKIPPED", "no rows")
    del world.does["a"]
    assert execute({"a": ""}, opens())["a"] == "a()"


@pytest.mark.parametrize("status", [*(each for each in TaskStatus if each != "COMPLETED"), "whatever"], ids=str)
def test_whatever_is_not_completed_runs_again(store, status):
    execute(PAIR, store)
    store.for_workflow("etl").save_task_state("a", status, 7)
    assert execute(PAIR, store)["b"] == "b(a())"
    assert world.calls == ["a", "b"]


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_a_falsy_result_reaches_dependents_as_it_was(opens, value):
    """a, and later a ─► b"""
    execute({"a": ""}, opens(), a=lambda: value)
    found = execute(PAIR, opens(), a=lambda: value, b=lambda a: [a])
    assert found.tasks["a"].restored
    assert same(found["b"][0], value)


def test_changed_code_is_noticed(opens):
    """a ─► b ─► c, where b changes"""
    execute(CHAIN, opens())
    assert execute(CHAIN, opens(), b=mix_anew)["c"] == "c(new b(a()))"
    assert world.calls == ["b", "c"]


@pytest.mark.parametrize("depends_on", ["", "x", "a x"])
def test_a_changed_depends_on_is_noticed(opens, depends_on):
    """a ─► b ─► c, where b depends on something else later"""
    execute({"a": "", "x": "", "b": "a", "c": "b"}, opens())
    execute({"a": "", "x": "", "b": depends_on, "c": "b"}, opens())
    assert world.calls == ["b", "c"]


def test_after_clear_all_states_everything_runs(opens):
    execute(CHAIN, opens())
    opens().clear_all_states()
    execute(CHAIN, opens())
    assert world.calls == ["a", "b", "c"]


def test_after_delete_task_state_it_and_what_is_below_run(opens):
    """a ─► b ─► c"""
    execute(CHAIN, opens())
    opens().delete_task_state("b")
    execute(CHAIN, opens())
    assert world.calls == ["b", "c"]


def test_all_items_of_a_mapped_task_run_again_once_it_is_deleted(opens):
    """rows ─► each (mapped), whose second item is cancelled because fail fails once the first one is done"""
    is_kept = threading.Event()

    def observe(event):
        if isinstance(event, TaskSucceeded) and event.task_name == "each[0]":
            is_kept.set()

    def run():
        workflow = build({"rows": "", "fail": ""}, rows=lambda: [1, 2])
        workflow.add_task(Task("each", lambda rows: world.act(f"each {rows}")).map(), depends_on=["rows"])
        ThreadedExecutor(3, opens(), observers=[observe]).execute(workflow)

    world.does = {"each 2": wait_for_cancel, "fail": lambda: is_kept.wait(PATIENCE) and 1 // 0}
    with pytest.raises(WorkflowExecutionError):
        run()
    world.reset()
    opens().delete_task_state("each")
    run()
    assert sorted(world.calls) == ["each 1", "each 2", "fail"]


def test_the_state_of_a_mapped_task_has_what_it_returned(store):
    """rows ─► each (mapped)"""
    workflow = Workflow("etl")
    workflow.add_task(Task("rows", lambda: [1, 2]))
    workflow.add_task(Task("each", lambda rows: rows * 10).map(), depends_on=["rows"])
    SequentialExecutor(store).execute(workflow)
    assert store.load_task_state("each")["result"] == [10, 20]


@dataclasses.dataclass
class Point:
    x: int


def test_a_dataclass_of_the_tasks_module_is_loaded_by_a_store_that_trusts_it(store):
    execute({"a": ""}, store, a=lambda: Point(1))
    store.trust(__name__)
    assert store.load_task_state("a")["result"] == Point(1)


def test_the_metadata_of_a_run_tells_fingerprint_run_and_duration(store):
    result = execute({"a": ""}, store)
    metadata = store.load_task_state("a")["metadata"]
    assert metadata["run_id"] == result.run_id
    assert 0 <= metadata["duration"] <= result.duration
    assert metadata["fingerprint"]


def test_the_timestamp_of_a_run_is_when_the_task_ended(store):
    before = datetime.now(UTC)
    execute({"a": ""}, store)
    told = datetime.fromisoformat(store.load_task_state("a")["timestamp"])
    assert before - timedelta(milliseconds=1) <= told <= datetime.now(UTC) + timedelta(milliseconds=1)


# ---------------------------------------------------------------- saved by hand, and by runs


def test_what_is_saved_by_hand_is_used(opens):
    """a ─► b"""
    opens().save_task_state("a", TaskStatus.COMPLETED, ("mine",))
    assert execute(PAIR, opens())["b"] == "b(('mine',))"
    assert world.calls == ["b"]


def test_what_is_saved_by_hand_fits_whatever_the_code_is(store):
    store.for_workflow("etl").save_task_state("a", "COMPLETED", 1)
    for func in (mix, mix_anew):
        assert execute({"a": ""}, store, func=func)["a"] == 1


def test_what_is_saved_after_a_run_counts_and_what_is_below_runs_again(opens):
    execute(CHAIN, opens())
    opens().for_workflow("etl").save_task_state("b", "COMPLETED", "mine")
    assert execute(CHAIN, opens())["c"] == "c(mine)"
    assert world.calls == ["c"]
    execute(CHAIN, opens())
    assert world.calls == []


def test_what_a_run_has_kept_after_it_was_saved_counts(opens):
    opens().for_workflow("etl").save_task_state("a", "FAILED", 7, "by hand")
    execute({"a": ""}, opens())
    state = opens().for_workflow("etl").load_task_state("a")
    assert (state["status"], state["result"], state["error"]) == ("COMPLETED", "a()", None)
    execute({"a": ""}, opens())
    assert world.calls == []


def test_what_is_saved_last_counts_even_if_the_clock_was_set_back(store, monkeypatch):
    execute(PAIR, store)
    an_hour_ago = time.time_ns() - 3_600 * 10**9
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: an_hour_ago)
        store.for_workflow("etl").save_task_state("a", "COMPLETED", "mine")
    assert store.for_workflow("etl").load_task_state("a")["result"] == "mine"
    assert execute(PAIR, store)["b"] == "b(mine)"


# ---------------------------------------------------------------- while a run goes on


def test_a_state_can_be_saved_while_a_run_goes_on(opens):
    """a ─► b, meanwhile x is saved"""
    other = opens().for_workflow("etl")
    world.does["b"] = quietly(lambda: other.save_task_state("x", "COMPLETED", "mine"))
    execute(PAIR, opens())
    assert sorted(opens().for_workflow("etl").list_all_tasks()) == ["a", "b", "x"]
    assert execute({**PAIR, "x": ""}, opens())["x"] == "mine"


def test_the_result_of_a_task_counts_that_ends_after_a_state_of_it_was_saved(opens):
    world.does["b"] = quietly(lambda: opens().for_workflow("etl").save_task_state("b", "FAILED", error="mine"))
    execute(PAIR, opens())
    assert opens().for_workflow("etl").load_task_state("b")["result"] == "b(a())"
    execute(PAIR, opens())
    assert world.calls == []


def test_a_state_counts_that_is_saved_after_the_task_ended_in_the_run_that_goes_on(opens):
    world.does["b"] = quietly(lambda: opens().for_workflow("etl").save_task_state("a", "COMPLETED", "mine"))
    execute(PAIR, opens())
    del world.does["b"]
    assert execute(PAIR, opens())["b"] == "b(mine)"


@pytest.mark.parametrize(
    "forget",
    [
        lambda store: store.delete_task_state("a"), lambda store: store.for_workflow("etl").delete_task_state("a"),
        lambda store: store.clear_all_states(), lambda store: store.for_workflow("etl").clear_all_states(),
    ],
    ids=["delete", "delete of the workflow", "clear", "clear of the workflow"],
)  # fmt: skip
def test_nothing_is_forgotten_of_a_workflow_while_it_runs(opens, forget):
    """a ─► b, which tries to forget a"""
    def try_to():
        with pytest.raises(StateLockedError, match="etl"):
            forget(opens())

    world.does["b"] = quietly(try_to)
    execute(PAIR, opens())
    assert opens().load_task_state("a")["result"] == "a()"


def test_two_threads_can_save_at_the_same_time(store):
    barrier = threading.Barrier(2)

    def save(prefix):
        barrier.wait(PATIENCE)
        for number in range(50):
            store.save_task_state(f"{prefix}{number}", "COMPLETED", number)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(save, "xy"))
    found = {name: state["result"] for name, state in store.list_task_states().items()}
    assert found == {f"{prefix}{number}": number for prefix in "xy" for number in range(50)}


def test_two_processes_can_save_at_the_same_time(kind, opens, path, tmp_path, monkeypatch, script):
    monkeypatch.setenv(tasks.GATE, str(tmp_path / "gate"))
    running = [script(in_a_process(f"save_many({kind!r}, {str(path)!r}, {prefix!r}, 60)")) for prefix in "xy"]
    for each in running:
        each.wait_for("ready")
    (tmp_path / "gate").touch()
    assert [each.finish().returncode for each in running] == [0, 0], running[0].err + running[1].err
    found = {name: state["result"] for name, state in opens().list_task_states().items()}
    assert found == {f"{prefix}{number}": number for prefix in "xy" for number in range(60)}


def test_kill_9_in_the_middle_of_a_layer_keeps_what_had_finished(kind, opens, path, tmp_path, monkeypatch, script):
    """t0 .. t19 ─► collect: killed when t0, t2 .. t18 are done and the others wait"""
    monkeypatch.setenv(tasks.GATE, str(tmp_path / "gate"))
    monkeypatch.setenv(tasks.CALLS, str(tmp_path / "killed"))
    running = script(in_a_process(f"run_layer({kind!r}, {str(path)!r})"))
    running.wait_for("ten are done")
    running.close()
    finished = {f"t{n}" for n in range(0, 20, 2)}
    assert {name for name, state in opens().list_task_states().items() if state["status"] == "COMPLETED"} == finished
    (tmp_path / "gate").touch()
    monkeypatch.setenv(tasks.CALLS, str(tmp_path / "resumed"))
    result = ThreadedExecutor(20, state_store=opens()).execute(tasks.layer_of_twenty())
    assert result["collect"] == sorted((f"t{n}", 0) for n in range(20))
    called = (tmp_path / "resumed").read_text().split()
    assert sorted(called) == sorted(f"t{n}" for n in range(1, 20, 2))
    if kind == "sqlite":
        assert [run["status"] for run in opens().query_runs("layer")] == ["COMPLETED", "KILLED"]


# ---------------------------------------------------------------- what it costs


def saves(count):
    def save(store):
        for number in range(count):
            store.save_task_state(f"task{number:05}", "COMPLETED", number)

    return save


def executes(count):
    graph = {f"task{number:05}": "" for number in range(count)}
    return lambda store: SequentialExecutor(store).execute(build(graph))


@pytest.mark.parametrize("work", [saves, executes])
def test_a_state_costs_the_same_however_many_there_are_in_json(tmp_path, work):
    each = {}
    for count in (100, 1000):
        disk = tasks.Counting()
        work(count)(JSONStateStore(tmp_path / f"{count}.json", _disk=disk))
        each[count] = disk.bytes / count
    assert each[1000] < 2 * each[100]


@needs_proc
@pytest.mark.parametrize("work", [saves, executes])
def test_a_state_costs_the_same_however_many_there_are_in_sqlite(tmp_path, work):
    def written():
        return int(Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])

    each = {}
    for count in (100, 2000):
        with SQLiteStateStore(tmp_path / f"{count}.db") as store:
            before = written()
            work(count)(store)
            each[count] = (written() - before) / count
    assert each[2000] < 3 * each[100]


# ---------------------------------------------------------------- JSON


def test_an_entry_of_the_json_file_can_be_read_by_a_person(path):
    """a ─► b, which fails; x is saved by hand"""
    store = JSONStateStore(path)
    fail(PAIR, store, "b")
    store.save_task_state("x", "COMPLETED", {"rows": 3})
    found = [[entry["status"], entry["result"], entry["error"]] for entry in entries(path)]
    assert sorted(found, key=str) == [
        ["COMPLETED", "a()", None], ["COMPLETED", {"rows": 3}, None], ["FAILED", None, "ConnectionError: refused"],
    ]  # fmt: skip
    assert all(datetime.fromisoformat(entry["timestamp"]).tzinfo for entry in entries(path))


def test_the_json_file_stays_json_whatever_is_saved(path):
    JSONStateStore(path).save_task_state('a "task"\n', 'a "status"', '"\n', 'an "error"', "\ud800", {'"': '"'})
    json.loads(path.read_bytes())


def test_a_json_store_is_called_by_its_own_name(path):
    assert repr(JSONStateStore(path)).startswith("<JSONStateStore")
    with pytest.raises(OptionError, match=r"^JSONStateStore: "):
        JSONStateStore(3)


# ---------------------------------------------------------------- SQLite


def test_the_tables_have_the_documented_columns(sqlite, path):
    execute(PAIR, sqlite)
    for table in ("runs", "task_states"):
        said = " ".join(SQLiteStateStore.__doc__.partition(f"``{table}``")[2].split())
        documented = said.partition("``")[2].partition("``")[0].split(", ")
        assert [row[1] for row in sql(path, f"PRAGMA table_info({table})")] == [*documented, "checksum"]
        assert {"workflow", "run_id", "status"} <= set(documented)


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("task_states WHERE workflow = 'etl' AND task = 'a' AND status = 'FAILED' AND ended_at > '2'", "task_states"),
        ("task_states WHERE workflow = 'etl' AND task = 'a'", "task_states"),
        ("runs WHERE workflow = 'etl' AND status = 'FAILED' AND started_at > '2'", "runs"),
    ],
)
def test_the_tables_are_indexed_by_workflow_task_status_and_time(sqlite, path, where, index):
    execute(PAIR, sqlite)
    ((*_, plan),) = sql(path, f"EXPLAIN QUERY PLAN SELECT * FROM {where}")
    assert f"USING INDEX {index}_by" in plan
    assert plan.count("=?") + plan.count(">?") == where.count(" = ") + where.count(" > ")


def test_people_can_query_states_by_another_tool(sqlite, path):
    fail(PAIR, sqlite, "b")
    sqlite.save_task_state("x", "COMPLETED", [1])
    rows = sql(path, "SELECT workflow, task, status, result, error FROM task_states ORDER BY task")
    assert rows == [
        ("etl", "a", "COMPLETED", '"a()"', None), ("etl", "b", "FAILED", None, "ConnectionError: refused"),
        ("", "x", "COMPLETED", "[1]", None),
    ]  # fmt: skip


def test_the_table_of_runs_has_one_row_for_each_execution(sqlite, path):
    fail(PAIR, sqlite, "b")
    last = execute(PAIR, sqlite)
    rows = sql(path, "SELECT workflow, status, run_id, pid FROM runs ORDER BY id")
    assert [row[:2] for row in rows] == [("etl", "FAILED"), ("etl", "COMPLETED")]
    assert rows[1][2:] == (last.run_id, os.getpid())


def test_the_database_has_a_write_ahead_log(sqlite, path):
    sqlite.save_task_state("a", "COMPLETED")
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]


def test_the_history_of_a_task_is_the_newest_first(sqlite):
    fail(PAIR, sqlite, "b")
    execute(PAIR, sqlite)
    sqlite.for_workflow("etl").save_task_state("b", "RUNNING")
    found = sqlite.query_task_history("b")
    assert [row["status"] for row in found] == ["RUNNING", "COMPLETED", "FAILED"]
    assert [row["error"] for row in found] == ["", "", "ConnectionError: refused"]
    assert sqlite.query_task_history("b", 1) == sqlite.query_task_history("b", limit=1) == found[:1]


@pytest.mark.parametrize(("options", "days", "stays"), [({}, 31, False), ({}, 29, True), ({"gc_days": 40}, 31, True)])
def test_records_older_than_gc_days_go_when_a_run_ends(path, monkeypatch, options, days, stays):
    with SQLiteStateStore(path, **options) as store:
        then = time.time_ns() - int(days * A_DAY * 1e9)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: then)
            store.for_workflow("etl").save_task_state("x", "COMPLETED", 1)
        assert store.load_task_state("x") is not None
        execute(PAIR, store)
        assert (store.load_task_state("x") is not None) is stays
        assert (store.query_task_history("x") != []) is stays
        assert sorted(store.list_all_tasks()) == ["a", "b", *["x"] * stays]


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.save_task_state("a", "COMPLETED"), lambda store: store.load_task_state("a"),
        lambda store: store.delete_task_state("a"), lambda store: store.list_all_tasks(),
        lambda store: store.for_workflow("etl").load_task_state("a"), lambda store: execute(PAIR, store),
    ],
    ids=["save", "load", "delete", "list", "load of a workflow", "execute"],
)  # fmt: skip
def test_a_store_that_was_closed_cannot_be_used(path, use):
    with SQLiteStateStore(path) as store:
        store.save_task_state("a", "COMPLETED", 1)
    with pytest.raises(StateError, match="closed"):
        use(store)
    assert world.calls == []
    store.close()


# ---------------------------------------------------------------- damage


def test_a_damaged_entry_is_left_out_and_the_others_stay(kind, opens, path):
    store = opens()
    store.save_task_state("a", "COMPLETED", "good")
    store.save_task_state("b", "COMPLETED", "fine")
    getattr(store, "close", int)()
    damage(kind, path)
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert opens().load_task_state("a") is None
    assert opens().load_task_state("b")["result"] == "fine"


def test_a_task_whose_entry_is_damaged_runs_again(kind, opens, path):
    store = opens()
    execute(PAIR, store, a=lambda: "good")
    getattr(store, "close", int)()
    damage(kind, path)
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert execute(PAIR, opens(), a=lambda: "good")["b"] == "b(good)"
    assert world.calls == ["b"]


# ---------------------------------------------------------------- stores of one's own


@by_name_alone
@pytest.mark.parametrize("using", EXECUTORS)
def test_a_store_of_one_s_own_is_resumed_from(own, using):
    """a ─► b ─► c, where b fails at first"""
    fail(CHAIN, own, "b", using=using)
    assert execute(CHAIN, own, using=using)["c"] == "c(b(a()))"
    assert world.calls == ["b", "c"]
    assert execute(CHAIN, own, using=using)["c"] == "c(b(a()))"
    assert world.calls == []


@by_name_alone
@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_a_falsy_result_comes_out_of_a_store_of_one_s_own_as_it_was(value):
    store = tasks.Duck()
    execute({"a": ""}, store, a=lambda: value)
    found = execute(PAIR, store, a=lambda: None, b=lambda a: [a])
    assert found.tasks["a"].restored
    assert found["b"][0] is value


@by_name_alone
def test_a_store_of_one_s_own_gets_the_first_failure_with_its_error(own):
    fail(PAIR, own, "a")
    state = (own.for_workflow("etl") if isinstance(own, tasks.Scoped) else own).load_task_state("a")
    assert (state["status"].upper(), state["error"]) == ("FAILED", "ConnectionError: refused")


@by_name_alone
def test_a_store_that_takes_metadata_gets_fingerprint_run_and_duration():
    store = tasks.OwnStore()
    result = execute({"a": ""}, store)
    metadata = store.load_task_state("a")["metadata"]
    assert metadata["run_id"] == result.run_id
    assert set(metadata) >= {"fingerprint", "run_id", "duration"}


@by_name_alone
def test_by_name_alone_changed_code_is_not_noticed(own):
    execute(PAIR, own)
    assert execute(PAIR, own, func=mix_anew)["b"] == "b(a())"
    assert world.calls == []


def test_it_is_said_once_for_each_store_that_names_alone_count():
    for store in (tasks.OwnStore(), tasks.Duck()):
        with pytest.warns(RuntimeWarning, match=f"{type(store).__name__} .* by the names of tasks alone") as told:
            execute(PAIR, store, name="one")
        assert len(told) == 1
        for name in ("one", "two"):
            execute(PAIR, store, name=name)


@by_name_alone
@pytest.mark.parametrize("status", ["FAILED", "RUNNING", TaskStatus.RUNNING, "failed", "whatever", "", None], ids=repr)
def test_whatever_a_store_of_one_s_own_does_not_call_completed_runs(status):
    store = tasks.Duck()
    store.save_task_state("a", status, 7)
    assert execute({"a": ""}, store)["a"] == "a()"


@by_name_alone
@pytest.mark.parametrize("status", ["COMPLETED", TaskStatus.COMPLETED, "completed"], ids=repr)
def test_what_a_store_of_one_s_own_calls_completed_is_used(status):
    store = tasks.Duck()
    store.save_task_state("a", status, 7)
    assert execute(PAIR, store)["b"] == "b(7)"


@by_name_alone
@pytest.mark.parametrize(("made", "calls"), [(tasks.OwnStore, []), (tasks.Duck, []), (tasks.Scoped, ["a", "b"])])
def test_workflows_are_kept_apart_by_a_store_that_has_for_workflow(made, calls):
    store = made()
    execute(PAIR, store, name="one")
    execute(PAIR, store, name="two")
    assert world.calls == calls


@by_name_alone
def test_a_mapped_task_runs_again_from_a_store_of_one_s_own():
    store = tasks.Duck()
    for _ in range(2):
        workflow = Workflow("etl")
        workflow.add_task(Task("rows", lambda: [1, 2]))
        workflow.add_task(Task("each", lambda rows: world.act("each") or rows * 10).map(), depends_on=["rows"])
        world.calls = []
        assert SequentialExecutor(store).execute(workflow)["each"] == [10, 20]
        assert world.calls == ["each", "each"]


@by_name_alone
@pytest.mark.parametrize("using", EXECUTORS)
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("method", ["save", "load"])
def test_a_store_of_one_s_own_that_raises_ends_the_run_with_its_name_and_the_task_s(method, name, using):
    """a ─► b ─► c"""
    error = RuntimeError("no such table")
    with pytest.raises(StateError, match=f"Raising .*{name!r}.*: RuntimeError: no such table") as caught:
        using(state_store=tasks.Raising(method, name, error), timeout=4).execute(build(CHAIN))
    assert caught.value.__cause__ is error
    assert "c" not in world.calls


@by_name_alone
@pytest.mark.parametrize("using", EXECUTORS)
@pytest.mark.parametrize("method", ["save", "load"])
def test_a_store_of_one_s_own_that_wants_to_exit_ends_the_run(method, using):
    with pytest.raises((StateError, SystemExit)):
        using(state_store=tasks.Raising(method, "b", SystemExit(3)), timeout=4).execute(build(CHAIN))


@by_name_alone
@pytest.mark.parametrize("given", [("COMPLETED", 7), "COMPLETED", 7], ids=repr)
def test_a_store_of_one_s_own_that_gives_no_dict_ends_the_run_with_its_name(given):
    store = tasks.Duck()
    store.states["a"] = given
    with pytest.raises(StateError, match="Duck"):
        execute(PAIR, store)


@by_name_alone
@pytest.mark.parametrize("made", [tasks.IsADict, tasks.IsADataclass, tasks.WithoutReferences, tasks.Slotted])
def test_a_store_of_one_s_own_can_be_any_object(made):
    store = made()
    execute(PAIR, store)
    assert execute(PAIR, store)["b"] == "b(a())"
    assert world.calls == []


def test_the_base_derives_what_can_be_derived():
    store = tasks.OwnStore()
    for name in ("a", "b"):
        store.save_task_state(name, "COMPLETED", name)
    store.clear_task_state("a")
    assert {name: state["result"] for name, state in store.list_task_states().items()} == {"b": "b"}
    assert store.for_workflow("etl") is store
