"""The explicit door: a graph described by names, what executors promise of it, and who is told.

What is kept in stores stands elsewhere; here is only that executors take one. The tasks are in ``workflow_tasks.py``,
where other processes find them.
"""

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import types
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
import workflow_tasks as tasks
from workflow_tasks import (
    HOOKS,
    NAMES,
    PATIENCE,
    Gate,
    Held,
    broken,
    build,
    drawn,
    execute_both,
    execute_in_vain,
    in_threads,
    run_soon,
    statuses,
)

import flowkit.workflow
from flowkit import (
    DAG,
    AsyncExecutor,
    BindingError,
    DAGCycleError,
    DefinitionError,
    DuplicateTaskError,
    JSONStateStore,
    OptionError,
    ProcessExecutor,
    RunResult,
    SequentialExecutor,
    SQLiteStateStore,
    Task,
    TaskExecutionError,
    TaskNotFoundError,
    TaskStatus,
    TaskTimeoutError,
    ThreadedExecutor,
    Workflow,
    WorkflowExecutionError,
    WorkflowStatus,
    export_mermaid,
    save_mermaid,
    task,
)
from flowkit.testing import VirtualClock

LOCAL = [SequentialExecutor, ThreadedExecutor, AsyncExecutor]
EXECUTORS = [*LOCAL, ProcessExecutor]
PENDING, RUNNING, RETRYING, COMPLETED, FAILED, SKIPPED, UPSTREAM_FAILED, CANCELLED = TaskStatus
number = contextvars.ContextVar("number", default=0)


@pytest.fixture(params=EXECUTORS, ids=lambda kind: kind.__name__)
def make(request):
    """A class of executors."""
    return request.param


@pytest.fixture(params=LOCAL, ids=lambda kind: kind.__name__)
def local(request):
    """A class of executors whose tasks can see the test."""
    return request.param


@pytest.fixture
def gates(tmp_path):
    """Two gates, which are open when the test is over."""
    made = [Gate(tmp_path / name) for name in ("first", "second")]
    yield made
    for gate in made:
        gate.open()
        gate.close()


# ---------------------------------------------------------------- the first screen


def test_the_first_example_does_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("first_screen")
    exec(tasks.FIRST_SCREEN, module.__dict__)
    assert module.workflow.get_task("join_data").status is TaskStatus.COMPLETED
    assert module.workflow.get_task("join_data").result == [("Alice", 100)]


@pytest.mark.parametrize("name", flowkit.workflow.__all__)
def test_every_name_of_the_door_is_importable_from_flowkit_too(name):
    assert getattr(flowkit, name) is getattr(flowkit.workflow, name)


def test_importing_a_workflow_loads_nothing_heavy():
    checkout = str(Path(flowkit.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {checkout!r})\nfrom flowkit import Workflow\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "sqlite3", "json", "multiprocessing", "concurrent.futures"}
    assert sorted(heavy.intersection(done.stdout.split())) == []


# ---------------------------------------------------------------- making one, and adding tasks


def test_a_workflow_is_named_workflow_and_has_no_description_unless_told():
    assert (Workflow().name, Workflow().description) == ("Workflow", None)
    assert (Workflow("etl", "nightly").name, Workflow("etl", description="nightly").description) == ("etl", "nightly")


def test_tasks_are_decorated_functions_or_have_a_name_and_options():
    @task
    def bare():
        return 1

    @task(retries=2)
    def configured():
        return 2

    told = Mock()
    workflow = build(bare, configured, Task("named", tasks.one, retries=3, timeout=30, callbacks=[told]))
    assert SequentialExecutor().execute(workflow) == {"bare": 1, "configured": 2, "named": 1}
    named = workflow.get_task("named")
    assert (named.retries, named.timeout, told.call_count) == (3, 30, 1)


def test_adding_returns_what_get_task_will_return():
    workflow = Workflow()
    assert workflow.add_task(Task("a", tasks.one)) is workflow.get_task("a")


@pytest.mark.parametrize("kind", [list, tuple, iter, dict.fromkeys, lambda names: names * 2],
                         ids=["list", "tuple", "iterator", "dict", "each twice"])  # fmt: skip
def test_dependencies_are_any_iterable_of_names(kind):
    workflow = build(Task("a", tasks.one), Task("b", tasks.one))
    workflow.add_task(Task("c", tasks.one), depends_on=kind(["b", "a"]))
    assert workflow.get_dependencies("c") == ["b", "a"]


@pytest.mark.parametrize("names", [(), None])
def test_a_task_may_depend_on_nothing(names):
    workflow = Workflow()
    workflow.add_task(Task("a", tasks.one), depends_on=names)
    assert workflow.get_dependencies("a") == []


def test_a_bare_string_is_an_error_and_never_its_characters():
    """a, b: the characters of 'ab'"""
    workflow = build(Task("a", tasks.one), Task("b", tasks.one))
    with pytest.raises(OptionError, match=r"depends_on='ab' must be a list of names: \['ab'\]"):
        workflow.add_task(Task("c", tasks.one), depends_on="ab")
    assert workflow.get_task("c") is None


@pytest.mark.parametrize("names", [3, Task("a", tasks.one), [Task("a", tasks.one)], [3], b"ab"])
def test_dependencies_that_are_no_names_are_refused(names):
    with pytest.raises(OptionError, match="depends_on"):
        Workflow().add_task(Task("b", tasks.one), depends_on=names)


def test_a_task_may_be_added_before_what_it_depends_on(make):
    """a ─► b, added the other way round"""
    workflow = build((Task("b", tasks.take), ["a"]), Task("a", tasks.one))
    assert make().execute(workflow)["b"] == ("got", 1)


def test_a_duplicate_name_is_refused_at_once():
    workflow = build(Task("a", tasks.one))
    first = workflow.get_task("a")
    with pytest.raises(DuplicateTaskError, match="'a' already exists"):
        workflow.add_task(Task("a", tasks.tell_process))
    assert workflow.tasks == [first]


asking = pytest.mark.parametrize("ask", [
    Workflow.validate, Workflow.get_execution_plan, export_mermaid, *(make().execute for make in EXECUTORS),
], ids=lambda ask: ask.__qualname__)  # fmt: skip


@asking
def test_an_unknown_dependency_does_not_exist_and_names_the_close_matches(ask):
    workflow = build(Task("fetch", tasks.one), (Task("load", tasks.one), ["fetsh"]))
    with pytest.raises(TaskNotFoundError, match=r"'load'.*'fetsh', which does not exist \(did you mean 'fetch'\?\)"):
        ask(workflow)
    assert statuses(workflow) == {"fetch": PENDING, "load": PENDING}


@asking
def test_a_cycle_is_shown_and_nothing_runs(ask):
    """a ─► b ─► c ─► a; start"""
    before = {"start": [], "a": ["c"], "b": ["a"], "c": ["b"]}
    workflow = build(*((Task(name, tasks.one), names) for name, names in before.items()))
    with pytest.raises(DAGCycleError) as caught:
        ask(workflow)
    assert sorted(pairwise(caught.value.cycle)) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert set(statuses(workflow).values()) == {PENDING}


def test_a_task_that_depends_on_itself_is_a_cycle():
    with pytest.raises(DAGCycleError, match="'a' >> 'a'"):
        build((Task("a", tasks.one), ["a"])).validate()


@pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])
def test_adding_takes_the_same_time_however_many_there_are(direction):
    """t0 ─► t1 ─► ... ─► t99999: a look at all tasks for each one would take minutes, not a third of a second"""
    chain = [(Task(f"t{i}", tasks.one), [f"t{i - 1}"] if i else []) for i in range(100_000)]
    workflow, since = Workflow(), time.perf_counter()
    for made, names in chain[::direction]:
        workflow.add_task(made, names)
    assert time.perf_counter() - since < 5
    assert len(workflow) == 100_000


@pytest.mark.parametrize("wrong", [tasks.one, functools.partial(tasks.one), print, Workflow, 3, None, "a"])
def test_what_is_no_task_is_a_type_error_that_shows_the_decorator(wrong):
    with pytest.raises(TypeError, match="@task"):
        Workflow().add_task(wrong)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_task_that_is_wired_is_refused(name):
    """a ─► b, by operator"""
    wired = {each: Task(each, tasks.take) for each in "ab"}
    wired["a"] >> wired["b"]
    with pytest.raises(DefinitionError, match=r"'.' is wired with >>.*depends_on=\[\.\.\.\]"):
        Workflow().add_task(wired[name])


def test_a_task_that_is_wired_after_it_was_added_is_refused_when_executed(make):
    a = Task("a", tasks.one)
    workflow = build(a)
    assert make().execute(workflow) == {"a": 1}
    a >> Task("b", tasks.take)
    with pytest.raises(DefinitionError, match="'a' is wired with >>"):
        make().execute(workflow)


def test_a_task_in_two_workflows_keeps_its_runs_apart(make):
    """a ─► take in each of three workflows, each with an a of its own; the last is not executed"""
    take = Task("take", tasks.take)
    made = [build(Task("a", functools.partial(tasks.give, n)), (take, ["a"])) for n in range(3)]
    for workflow in made[:2]:
        make().execute(workflow)
    views = [workflow.get_task("take") for workflow in made]
    found = [(view.status, view.result) for view in views]
    assert found == [(COMPLETED, ("got", 0)), (COMPLETED, ("got", 1)), (PENDING, None)]


# ---------------------------------------------------------------- looking


def test_a_task_that_never_ran_shows_its_definition_and_nothing_else():
    view = build(Task("a", tasks.one, retries=3, timeout=9)).get_task("a")
    assert (view.name, view.status, view.retries, view.timeout) == ("a", PENDING, 3, 9)
    assert (view.result, view.error, view.duration, view.attempts) == (None, None, 0, 0)
    assert (view.started_at, view.completed_at) == (None, None)


def test_a_task_that_ran_shows_how_it_went(make):
    workflow = build(Task("a", tasks.succeed_at_third, retries=3, delay=0))
    make().execute(workflow)
    view = workflow.get_task("a")
    assert (view.status, view.result, view.error, view.attempts) == (COMPLETED, 3, None, 3)
    assert view.duration > 0
    assert view.started_at < view.completed_at


def test_a_task_that_failed_shows_its_exception(make):
    view = broken(make).get_task("bad")
    assert (view.status, repr(view.error), view.result) == (FAILED, "ValueError('no')", None)


def test_an_unknown_task_is_none():
    assert build(Task("a", tasks.one)).get_task("b") is None


@pytest.mark.parametrize("ask", [Workflow.get_task_status, Workflow.get_task_result, Workflow.get_dependencies])
def test_asking_for_the_state_of_an_unknown_task_is_a_key_error_with_the_close_matches(ask):
    with pytest.raises(KeyError, match=r"'fetsh' \(did you mean 'fetch'\?\)"):
        ask(build(Task("fetch", tasks.one)), "fetsh")


def test_a_running_task_can_ask_for_a_finished_one(local):
    """a ─► plain, coroutine"""

    def plain():
        return workflow.get_task_status("a"), workflow.get_task_result("a")

    async def coroutine():
        await asyncio.sleep(0)
        return plain()

    workflow = build(Task("a", tasks.one), (Task(plain), ["a"]), (Task(coroutine), ["a"]))
    assert local().execute(workflow) == {"a": 1, "plain": (COMPLETED, 1), "coroutine": (COMPLETED, 1)}


def test_tasks_are_listed_as_they_were_added():
    workflow = build((Task("b", tasks.take), ["a"]), Task("a", tasks.one), Task("c", tasks.one))
    assert isinstance(workflow.tasks, list)
    assert [each.name for each in workflow.tasks] == ["b", "a", "c"]


def test_dependencies_are_a_copy():
    workflow = build(Task("a", tasks.one), (Task("b", tasks.take), ["a"]))
    workflow.get_dependencies("b").append("c")
    assert workflow.get_dependencies("b") == ["a"]


def test_the_plan_has_generations_of_tasks_in_insertion_order():
    """b ─► z, y; a ─► y ─► x"""
    before = {"x": ["y"], "z": ["b"], "b": [], "y": ["a", "b"], "a": []}
    workflow = build(*((Task(name, tasks.one), names) for name, names in before.items()))
    plan = workflow.get_execution_plan()
    assert [[each.name for each in generation] for generation in plan] == [["b", "a"], ["z", "y"], ["x"]]
    assert plan[0][0] is workflow.get_task("b")


def test_the_stats_count_how_tasks_ended(make):
    """good, skipped ─► bad ─► below"""
    workflow = build(
        Task("good", tasks.one), Task("skipped", tasks.one, when=tasks.never),
        (Task("bad", tasks.refuse), ["good", "skipped"]), (Task("below", tasks.one), ["bad"]),
    )  # fmt: skip
    execute_in_vain(make(), workflow)
    stats = workflow.get_workflow_stats()
    assert stats.pop("total_time_seconds") > 0
    assert stats == {"total_tasks": 4, "completed": 1, "failed": 1, "skipped": 1, "pending": 1, "running": 0}


def test_a_workflow_stands_as_its_latest_execution(make):
    workflow = build(Task("a", tasks.one))
    assert workflow.status is WorkflowStatus.IDLE
    make().execute(workflow)
    assert workflow.status is WorkflowStatus.COMPLETED
    workflow.add_task(Task("bad", tasks.refuse))
    execute_in_vain(make(), workflow)
    assert workflow.status is WorkflowStatus.FAILED


def test_cleared_results_are_forgotten():
    workflow = broken()
    workflow.clear_results()
    assert statuses(workflow) == {"good": PENDING, "bad": PENDING, "below": PENDING}
    assert (workflow.get_task_result("good"), workflow.get_task("bad").error) == (None, None)
    assert (workflow.status, workflow.get_workflow_stats()["pending"]) == (WorkflowStatus.IDLE, 3)


def test_validating_runs_nothing():
    call = Mock(return_value=1)
    workflow = build(Task("a", lambda: call()))
    assert workflow.validate() is None
    assert (call.call_count, workflow.status) == (0, WorkflowStatus.IDLE)


@pytest.mark.parametrize("name", ["", "no such task", "x" * 300, "two\nlines"])
def test_a_dependency_whose_name_no_task_can_have_does_not_exist(name):
    workflow = Workflow("etl")
    workflow.add_task(Task("a", tasks.one), [name])
    with pytest.raises(TaskNotFoundError, match="does not exist"):
        workflow.validate()


def test_validating_lists_every_problem():
    """a and b each need a value; c depends on a task that does not exist"""
    workflow = build(*(Task(name, tasks.take_required) for name in "bd"), (Task("c", tasks.one), ["nothing"]))
    with pytest.raises(DefinitionError) as caught:
        workflow.validate()
    kinds = sorted(type(problem).__name__ for problem in caught.value.problems)
    assert kinds == ["BindingError", "BindingError", "TaskNotFoundError"]


@pytest.mark.parametrize(("kind", "names"), [
    (TaskStatus, "PENDING RUNNING RETRYING COMPLETED FAILED SKIPPED UPSTREAM_FAILED CANCELLED"),
    (WorkflowStatus, "IDLE RUNNING COMPLETED FAILED CANCELLED"),
])  # fmt: skip
def test_the_values_of_statuses_are_their_names(kind, names):
    assert [(status.name, status.value) for status in kind] == [(name, name) for name in names.split()]


# ---------------------------------------------------------------- passing data


def test_a_result_reaches_the_parameter_of_its_name_wherever_that_stands(make):
    """a ─► take(a="default"), take_required(a), take_keyword_only(*, a), take_positional_only(a, /)"""
    takers = [tasks.take, tasks.take_required, tasks.take_keyword_only, tasks.take_positional_only]
    result = make().execute(build(Task("a", tasks.one), *((Task(func), ["a"]) for func in takers)))
    assert [result[func.__name__] for func in takers] == [("got", 1)] * 4


@pytest.mark.parametrize("names", [[], ["a"]], ids=["no dependency", "an indirect one"])
def test_a_parameter_named_like_a_task_that_is_no_direct_dependency_keeps_its_default(names, make):
    """b ─► take(a="default"), and a ─► b or not"""
    workflow = build(Task("a", tasks.one), (Task("b", tasks.one), names), (Task("take", tasks.take), ["b"]))
    assert make().execute(workflow)["take"] == ("got", "default")


@pytest.mark.parametrize("names", [[], ["b"], ["c"]])
def test_a_required_parameter_without_a_value_is_an_error_before_anything_runs(names, make):
    """a ─► c; b; take(a) depends on nothing, on b, or on c"""
    started = Mock()
    workflow = build(Task("a", tasks.one), Task("b", tasks.one), (Task("c", tasks.one), ["a"]))
    workflow.add_task(Task("take", tasks.take_required), names)
    with pytest.raises(BindingError, match=r"'take\(a\)'.*nothing gives 'a'"):
        make(on_workflow_start=started).execute(workflow)
    assert (started.call_count, workflow.status) == (0, WorkflowStatus.IDLE)
    assert set(statuses(workflow).values()) == {PENDING}


def test_the_error_of_a_missing_value_says_what_to_write_in_a_workflow():
    with pytest.raises(BindingError, match="depends_on"):
        build(Task("take", tasks.take_required)).validate()


def test_keyword_arguments_take_the_remaining_dependencies_by_name(make):
    """a, b, c ─► take_rest(a, **rest); d"""
    given = [Task(name, functools.partial(tasks.give, name)) for name in "abcd"]
    workflow = build(*given, (Task("take", tasks.take_rest), ["c", "a", "b"]))
    assert make().execute(workflow)["take"] == ("a", {"b": "b", "c": "c"})


def test_other_dependencies_only_order(make):
    """first ─► one(), take_any(*args), take(a="default")"""
    after = [tasks.one, tasks.take_any, tasks.take]
    workflow = build(*((Task(func), ["first"]) for func in after), Task("first", tasks.one))
    result = make().execute(workflow)
    assert [result[func.__name__] for func in after] == [1, (), ("got", "default")]
    first, *later = (workflow.get_task(name) for name in result)
    assert all(first.completed_at <= each.started_at for each in later)


def test_none_and_falsy_results_are_passed_as_they_are(make):
    values = {"none": None, "zero": 0, "false": False, "text": "", "rows": []}
    given = [Task(name, functools.partial(tasks.give, value)) for name, value in values.items()]
    taken = make().execute(build(*given, (Task("take", tasks.take_falsy), values)))["take"]
    assert repr(taken) == repr((None, 0, False, "", []))


def test_a_dependency_that_is_skipped_leaves_the_default(make):
    """a (skipped), b ─► take(a="default")"""
    workflow = build(Task("a", tasks.one, when=tasks.never), Task("b", tasks.one), (Task(tasks.take), ["a", "b"]))
    assert make().execute(workflow) == {"b": 1, "take": ("got", "default")}


# ---------------------------------------------------------------- pictures


def test_whatever_tasks_are_named_each_is_drawn_once_with_its_name_and_its_edges():
    """Each of NAMES ─► the next"""
    workflow = build(*((Task(name, tasks.one), NAMES[i - 1 : i]) for i, name in enumerate(NAMES)))
    labels, edges, _ = drawn(export_mermaid(workflow))
    assert sorted(labels.values()) == sorted(NAMES)
    assert sorted(edges) == sorted(pairwise(NAMES))
    assert not set(labels) & set(NAMES)


def test_tasks_are_coloured_by_their_status():
    """rest (skipped); good ─► bad ─► below; look, which runs"""
    workflow = build(Task("rest", tasks.one, when=tasks.never), Task("look", lambda: export_mermaid(workflow)))
    during = drawn(SequentialExecutor().execute(workflow)["look"])[2]
    after = drawn(export_mermaid(broken()))[2]
    assert (during, after) == ({"rest": "skipped", "look": "running"}, {"good": "succeeded", "bad": "failed"})


@pytest.mark.parametrize("orientation", ["TD", "TB", "LR", "RL", "BT"])
def test_the_orientation_is_that_of_the_flowchart(orientation):
    workflow = build(Task("a", tasks.one))
    assert f"\nflowchart {orientation}\n" in export_mermaid(workflow, orientation)
    assert "\nflowchart TD\n" in export_mermaid(workflow)


def test_an_unknown_orientation_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="orientation='down' must be one of 'TD', 'TB', 'LR', 'RL', 'BT'"):
        export_mermaid(Workflow(), "down")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_picture_is_the_one_that_is_exported_and_replaces_the_file(kind, tmp_path):
    workflow = build(Task('say "é"', tasks.one))
    path = tmp_path / "flow.mmd"
    path.write_text("old " * 100)
    save_mermaid(workflow, kind(path))
    assert path.read_text("utf-8").rstrip("\n") == export_mermaid(workflow)


# ---------------------------------------------------------------- executors: their arguments


def test_the_arguments_have_their_defaults():
    assert [make().state_store for make in EXECUTORS] == [None] * 4
    assert (ThreadedExecutor().max_workers, ProcessExecutor().max_workers) == (4, None)
    assert AsyncExecutor().max_concurrent == 50


def test_the_store_is_the_first_argument_after_the_number_of_workers(tmp_path):
    store = JSONStateStore(tmp_path / "state.json")
    made = [SequentialExecutor(store), ThreadedExecutor(1, store), AsyncExecutor(1, store), ProcessExecutor(1, store)]
    assert [executor.state_store for executor in made] == [store] * 4


@pytest.mark.parametrize(("make", "name"), [
    (SequentialExecutor, "max_workers"), (ThreadedExecutor, "max_concurrent"), (AsyncExecutor, "max_workers"),
    (ProcessExecutor, "max_concurrent"), (ThreadedExecutor, "executor"), (ThreadedExecutor, "fail_fast"),
])  # fmt: skip
def test_an_unknown_argument_is_a_type_error_that_lists_the_known_ones(make, name):
    with pytest.raises(TypeError, match=rf"{make.__name__}: there is no argument '{name}'; there are .*state_store"):
        make(**{name: 2})


@pytest.mark.parametrize("count", [0, -1, True, 2.5, "4"])
@pytest.mark.parametrize("make", [ThreadedExecutor, AsyncExecutor, ProcessExecutor])
def test_the_number_of_workers_is_a_positive_integer(make, count):
    with pytest.raises(OptionError, match=r"max_(workers|concurrent)"):
        make(count)


@pytest.mark.parametrize(("store", "spelling"), [(JSONStateStore, "storage"), (SQLiteStateStore, "state_store")])
def test_an_executor_with_a_store_always_resumes(store, spelling, make, tmp_path):
    kept = store(tmp_path / "state")
    executor = make(**{spelling: kept})
    assert executor.state_store is kept
    first, second = (executor.execute(build(Task("run", tasks.tell_run))) for _ in range(2))
    assert first["run"] == first.run_id == second["run"] != second.run_id


def test_a_store_may_be_given_by_one_of_its_two_names_only(make, tmp_path):
    store = JSONStateStore(tmp_path / "state.json")
    with pytest.raises(TypeError, match=r"state_store= and storage= are the same"):
        make(state_store=store, storage=store)


@pytest.mark.parametrize("wrong", ["state.json", 3, JSONStateStore])
def test_what_is_no_store_is_a_type_error(wrong, make):
    with pytest.raises(TypeError, match="must be a JSONStateStore, an SQLiteStateStore, or have the methods"):
        make(state_store=wrong)


# ---------------------------------------------------------------- executing


def test_executing_returns_the_result_of_the_run(make):
    result = make().execute(build(Task("a", tasks.one)))
    assert isinstance(result, RunResult)
    assert (result, result.ok) == ({"a": 1}, True)


def test_an_empty_workflow_completes(make):
    workflow = Workflow()
    assert make().execute(workflow) == {}
    assert workflow.status is WorkflowStatus.COMPLETED


@pytest.mark.parametrize("wrong", ["etl", None, DAG("etl", tasks=[])])
def test_only_workflows_can_be_executed(wrong, make):
    with pytest.raises(TypeError, match=r"execute\(\) takes a Workflow, not"):
        make().execute(wrong)


@pytest.mark.parametrize("make", [ThreadedExecutor, AsyncExecutor, ProcessExecutor])
def test_a_task_starts_when_its_own_dependencies_are_done(make, gates):
    """fast ─► opens; slow, which goes on when opens has run: a barrier between the generations would never end"""
    path = gates[0].path
    workflow = build(Task("fast", tasks.one), Task("slow", functools.partial(tasks.wait_at, path)))
    workflow.add_task(Task("opens", functools.partial(tasks.open_gate, path)), ["fast"])
    assert make(2).execute(workflow)["slow"] == "passed"


def test_coroutines_and_plain_functions_run_alike(make):
    """one, one_soon (async) ─► double_soon (async) ─► add"""
    workflow = build(
        Task(tasks.one), Task(tasks.one_soon), (Task(tasks.double_soon), ["one_soon"]),
        (Task(tasks.add), ["one", "double_soon"]),
    )  # fmt: skip
    assert make().execute(workflow) == {"one": 1, "one_soon": 1, "double_soon": 2, "add": 3}


def test_retries_are_honoured(make):
    assert make().execute(build(Task("a", tasks.succeed_at_third, retries=2, delay=0))) == {"a": 3}


def test_a_timeout_is_honoured(make):
    workflow = build(Task("late", tasks.be_late, timeout=0.02))
    assert isinstance(execute_in_vain(make(), workflow).__cause__, TaskTimeoutError)
    assert workflow.get_task_status("late") is FAILED


def test_processes_are_other_ones_and_no_more_than_asked_for():
    workflow = build(*(Task(f"t{i}", tasks.tell_process) for i in range(20)))
    (only,) = set(ProcessExecutor(max_workers=1).execute(workflow).values())
    assert only != os.getpid()


@pytest.mark.parametrize(("executor", "most"), [
    (ThreadedExecutor(), 4), (ThreadedExecutor(max_workers=7), 7), (AsyncExecutor(max_concurrent=3), 3),
])  # fmt: skip
def test_as_many_plain_functions_run_at_once_as_were_asked_for_and_no_more(executor, most):
    """Groups of *most* meet at a barrier"""
    together, lock, inside, peaks = threading.Barrier(most), threading.Lock(), set(), []

    def work(context):
        with lock:
            inside.add(context.task_name)
            peaks.append(len(inside))
        together.wait(PATIENCE)
        with lock:
            inside.discard(context.task_name)

    executor.execute(build(*(Task(f"t{i}", work) for i in range(3 * most))))
    assert max(peaks) == most


@pytest.mark.parametrize(("executor", "most"), [(AsyncExecutor(), 50), (AsyncExecutor(max_concurrent=3), 3)])
def test_as_many_coroutines_run_at_once_as_were_asked_for_and_no_more(executor, most):
    """All wait until *most* are there"""
    inside, peaks, are_there = set(), [], asyncio.Event()

    async def work(context):
        inside.add(context.task_name)
        peaks.append(len(inside))
        if len(inside) == most:
            are_there.set()
        async with asyncio.timeout(PATIENCE):
            await are_there.wait()
        await asyncio.sleep(0)  # time for more, if there may be more
        inside.discard(context.task_name)

    executor.execute(build(*(Task(f"t{i}", work) for i in range(2 * most))))
    assert max(peaks) == most


def test_executing_again_runs_again(make):
    workflow = build(Task("run", tasks.tell_run))
    first, second = make().execute(workflow), make().execute(workflow)
    assert first["run"] != second["run"] == workflow.get_task_result("run")


def test_executions_at_the_same_time_each_have_their_own_results(make):
    """tell_run ─► compare_run, executed by four threads"""
    workflow = build(Task(tasks.tell_run), (Task(tasks.compare_run), ["tell_run"]))
    start, results = threading.Barrier(4), []

    def execute(executor):
        start.wait(PATIENCE)
        results.append(executor.execute(workflow))

    with in_threads(execute, *[make()] * 4):
        pass
    assert [result["compare_run"] for result in results] == [True] * 4
    assert len({result.run_id for result in results}) == 4
    assert all(result["tell_run"] == result.run_id for result in results)


def test_a_task_sees_its_own_execution_among_others(local):
    """first ─► look; four executions whose first tasks meet"""
    together, seen = threading.Barrier(4), []

    def first():
        together.wait(PATIENCE)
        return number.get()

    def execute(n):
        number.set(n)
        seen.append((n, local().execute(workflow)["look"]))

    workflow = build(Task(first), (Task("look", lambda: workflow.get_task_result("first")), ["first"]))
    with in_threads(execute, 1, 2, 3, 4):
        pass
    assert sorted(seen) == [(n, n) for n in (1, 2, 3, 4)]


# ---------------------------------------------------------------- statuses, live


def test_a_task_that_runs_is_seen_to_run(make, gates):
    """held ─► below"""
    started, wait = threading.Event(), functools.partial(tasks.wait_at, gates[0].path)
    held = Task("held", wait, on_status_change=lambda *_: started.set())
    workflow = build(held, (Task("below", tasks.one), ["held"]))
    with in_threads(make().execute, workflow):
        assert started.wait(PATIENCE)
        assert statuses(workflow) == {"held": RUNNING, "below": PENDING}
        assert workflow.status is WorkflowStatus.RUNNING
        stats = workflow.get_workflow_stats()
        assert (stats["running"], stats["pending"], stats["total_time_seconds"] > 0) == (1, 1, True)
        gates[0].open()
    assert statuses(workflow) == {"held": COMPLETED, "below": COMPLETED}


def test_a_task_between_two_attempts_is_seen_to_be_retrying(local):
    seen = []

    def look(name, status):
        seen.append((status, workflow.get_task_status(name), workflow.get_workflow_stats()["running"]))

    workflow = build(Task("a", tasks.succeed_at_third, retries=2, on_status_change=look))
    local(_clock=VirtualClock()).execute(workflow)
    again = [(RUNNING, RUNNING, 1), (RETRYING, RETRYING, 1)]
    assert seen == [*again, *again, (RUNNING, RUNNING, 1), (COMPLETED, COMPLETED, 0)]


# ---------------------------------------------------------------- failures


def test_a_failure_is_a_workflow_execution_error_that_names_the_task(make):
    error = execute_in_vain(make(), build(Task("bad", tasks.refuse)))
    assert isinstance(error, TaskExecutionError)
    assert isinstance(error, RuntimeError)
    assert error.failed_task == "bad"
    assert re.match(r"workflow 'etl': task 'bad' failed after 1 attempt .*: ValueError: no$", str(error))


def test_the_cause_of_the_error_is_the_original_exception(make):
    assert repr(execute_in_vain(make(), build(Task("bad", tasks.refuse))).__cause__) == "ValueError('no')"


def test_the_error_survives_pickling(make):
    error = execute_in_vain(make(), build(Task("bad", tasks.refuse_in_a_special_way)))
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is WorkflowExecutionError
    assert (str(copied), copied.failed_task, copied.attempts) == (str(error), "bad", 1)


def test_what_never_started_stays_pending_and_what_finished_keeps_its_result(make):
    """good ─► bad ─► below"""
    workflow = broken(make)
    assert statuses(workflow) == {"good": COMPLETED, "bad": FAILED, "below": PENDING}
    assert [workflow.get_task_status(name) for name in ("good", "bad", "below")] == [COMPLETED, FAILED, PENDING]
    assert [workflow.get_task_result(name) for name in ("good", "bad", "below")] == [1, None, None]
    assert (workflow.get_task("below").attempts, workflow.get_task("below").started_at) == (0, None)


def test_after_the_first_failure_one_at_a_time_nothing_starts():
    """bad; other"""
    workflow = build(Task("bad", tasks.refuse), Task("other", tasks.one))
    execute_in_vain(SequentialExecutor(), workflow)
    assert statuses(workflow) == {"bad": FAILED, "other": PENDING}


@pytest.mark.parametrize("make", [ThreadedExecutor, AsyncExecutor, ProcessExecutor])
def test_after_the_first_failure_nothing_starts_and_what_runs_may_end(make, gates):
    """held ─► below; bad, which fails when held runs, which ends when bad has failed"""
    runs, has_failed = gates
    workflow = build(
        Task("held", functools.partial(tasks.wait_at, has_failed.path), on_status_change=lambda *_: runs.open()),
        Task("bad", functools.partial(tasks.refuse_after, runs.path),
             on_status_change=lambda _, status: status is FAILED and has_failed.open()),
        (Task("below", tasks.one), ["held"]),
    )  # fmt: skip
    execute_in_vain(make(2), workflow)
    found = statuses(workflow)
    assert found.items() >= {"bad": FAILED, "below": PENDING}.items()
    if make is ProcessExecutor and found["held"] is CANCELLED:  # its process had it and had not called it yet
        return
    assert (found["held"], workflow.get_task_result("held")) == (COMPLETED, "passed")


@pytest.mark.parametrize("name", ["SequentialExecutor", "ThreadedExecutor", "AsyncExecutor"])
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent a Ctrl-C on Windows")
def test_ctrl_c_cancels_the_execution(name, script):
    running = script(f"""
        import threading
        from flowkit import Task, Workflow, {name}
        def work():
            print("working")
            threading.Event().wait(60)
        workflow = Workflow("etl")
        workflow.add_task(Task(work))
        try:
            {name}().execute(workflow)
        except KeyboardInterrupt:
            print(workflow.status, workflow.get_task_status("work"))
    """)
    running.wait_for("working")
    running.interrupt()
    running.wait_for("CANCELLED CANCELLED")
    assert running.finish().returncode == 0


# ---------------------------------------------------------------- inside an event loop


def test_an_execution_in_a_running_loop_has_started_before_it_is_awaited():
    async def main():
        held = Held()
        workflow = build(Task("held", held))
        handle = AsyncExecutor().execute(workflow)
        await held.started.wait()
        assert workflow.get_task_status("held") is RUNNING
        held.release.set()
        return await handle

    assert run_soon(main) == {"held": "released"}


@pytest.mark.parametrize(("func", "status"), [(tasks.one, COMPLETED), (tasks.refuse, FAILED)])
def test_nothing_is_lost_of_an_execution_that_is_not_awaited(func, status):
    """Neither how it went, nor is there a warning when the handle is collected"""

    async def main():
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def tell(*_):
            loop.call_soon_threadsafe(over.set)

        AsyncExecutor(on_workflow_success=tell, on_workflow_failure=tell).execute(workflow)
        gc.collect()
        await over.wait()

    workflow = build(Task("a", func))
    run_soon(main)
    assert (workflow.get_task_status("a"), workflow.status.value) == (status, status.value)


def test_a_failure_in_a_running_loop_is_raised_where_it_is_awaited():
    async def main():
        handle = AsyncExecutor().execute(build(Task("bad", tasks.refuse)))
        with pytest.raises(WorkflowExecutionError, match="'bad'") as caught:
            await handle
        return caught.value

    assert repr(run_soon(main).__cause__) == "ValueError('no')"


def test_cancelling_what_awaits_an_execution_cancels_it():
    async def main():
        held = Held()
        workflow = build(Task("held", held))

        async def wait():
            await AsyncExecutor().execute(workflow)

        waiting = asyncio.ensure_future(wait())
        await held.started.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return workflow.status, workflow.get_task_status("held"), held.was_cancelled

    assert run_soon(main) == (WorkflowStatus.CANCELLED, CANCELLED, True)


# ---------------------------------------------------------------- hooks


@pytest.fixture(params=[tasks.by_arguments, tasks.by_attributes, tasks.by_subclass])
def hooked(request):
    """A function that makes an executor with hooks."""
    return request.param


def test_hooks_are_told_of_the_start_and_the_success(hooked, make):
    hooks, workflow = tasks.Hooks(), build(Task("a", tasks.one))
    hooked(make, hooks).execute(workflow)
    assert hooks.told == [("start", "etl"), ("success", "etl", workflow.get_workflow_stats())]


def test_hooks_are_told_of_the_start_and_the_failure(hooked, make):
    hooks = tasks.Hooks()
    execute_in_vain(hooked(make, hooks), build(Task("bad", tasks.refuse)))
    start, (kind, name, error) = hooks.told
    assert (start, kind, name) == (("start", "etl"), "failure", "etl")
    assert isinstance(error, WorkflowExecutionError)
    assert (error.failed_task, repr(error.__cause__)) == ("bad", "ValueError('no')")


def test_the_stats_of_a_success_are_those_of_its_own_execution(local):
    told = []
    tasks.execute_while_another_goes_on(local(on_workflow_success=lambda _, stats: told.append(stats["completed"])))
    assert told == [1]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_is_logged_and_changes_nothing(hook, make, caplog):
    status = FAILED if hook == "on_workflow_failure" else COMPLETED
    workflow = build(Task("a", tasks.refuse if status is FAILED else tasks.one))
    executor = make(**{hook: Mock(side_effect=LookupError("broken"))})
    if status is FAILED:
        execute_in_vain(executor, workflow)
    else:
        assert executor.execute(workflow) == {"a": 1}
    assert workflow.get_task_status("a") is status
    (record,) = caplog.records
    assert (record.name, record.exc_info[0], hook in record.getMessage()) == ("flowkit", LookupError, True)


def test_a_hook_that_exits_leaves_no_execution_that_runs_for_ever(make):
    workflow = build(Task("a", tasks.one))
    with contextlib.suppress(SystemExit):
        make(on_workflow_start=Mock(side_effect=SystemExit(3))).execute(workflow)
    assert workflow.status is not WorkflowStatus.RUNNING


# ---------------------------------------------------------------- callbacks


def test_a_callback_of_one_argument_gets_the_finished_task_after_success(make, caplog):
    told = []

    def finished(task):
        told.append((task.name, task.status, task.result, task.duration, task.completed_at))

    (good, _) = execute_both(make, finished)
    view = good.get_task("one")
    assert view.duration > 0
    assert told == [("one", COMPLETED, 1, view.duration, view.completed_at)]
    assert not caplog.records


def test_a_callback_of_two_arguments_gets_the_task_and_the_exception_after_the_final_failure(make, caplog):
    told = []

    def failed(task, error):
        told.append((task.name, task.status, task.attempts, error))

    (_, bad) = execute_both(make, failed, retries=2, delay=0)
    assert told == [("refuse", FAILED, 3, bad.get_task("refuse").error)]
    assert not caplog.records


def test_a_callback_gets_the_task_as_it_went_in_its_own_execution(local):
    told = []
    tasks.execute_while_another_goes_on(local(), callbacks=[lambda task: told.append(task.status)])
    assert told == [COMPLETED] * 2


def test_a_callback_of_any_number_of_arguments_gets_both(make):
    told = Mock()
    execute_both(make, told)
    (success, failure) = told.call_args_list
    assert [each.name for each in success.args] == ["one"]
    assert (failure.args[0].name, repr(failure.args[1])) == ("refuse", "ValueError('no')")


@pytest.mark.parametrize("options", [
    {"callbacks": [lambda: None]}, {"callbacks": [lambda a, b, c: None]}, {"callbacks": [lambda a, *, b: None]},
    {"on_status_change": lambda a: None}, {"on_status_change": lambda a, b, c: None},
    {"on_retry": lambda: None}, {"on_retry": lambda a, b, c: None},
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_a_callback_of_another_number_of_arguments_is_refused(options):
    with pytest.raises(OptionError, match=rf"{next(iter(options)).removesuffix('s')}.* must take"):
        Workflow().add_task(Task("a", tasks.one, **options))


@pytest.mark.parametrize("error", [LookupError("broken"), SystemExit(3)], ids=["LookupError", "SystemExit"])
def test_a_callback_that_raises_is_logged_and_changes_nothing(error, make, caplog):
    good, bad = execute_both(make, Mock(side_effect=error))
    assert (statuses(good), statuses(bad)) == ({"one": COMPLETED}, {"refuse": FAILED})
    assert [(record.name, record.exc_info[1]) for record in caplog.records] == [("flowkit", error)] * 2
    assert all(record.getMessage().startswith("callback ") for record in caplog.records)


@pytest.mark.parametrize(("func", "options", "expected"), [
    (tasks.succeed_at_third, {"retries": 2, "delay": 0}, [RUNNING, RETRYING, RUNNING, RETRYING, RUNNING, COMPLETED]),
    (tasks.refuse, {"retries": 1, "delay": 0}, [RUNNING, RETRYING, RUNNING, FAILED]),
    (tasks.one, {"when": tasks.never}, [SKIPPED]),
], ids=["completed", "failed", "skipped"])  # fmt: skip
def test_status_changes_are_told_in_order(func, options, expected, make):
    told = Mock()
    with contextlib.suppress(WorkflowExecutionError):
        make().execute(build(Task("a", func, on_status_change=told, **options)))
    assert [call.args for call in told.call_args_list] == [("a", status) for status in expected]


def test_a_coroutine_that_the_failure_of_another_task_cancels_is_told_as_a_status_change():
    """bad fails when held runs"""
    told, started = [], threading.Event()

    async def held():
        started.set()
        await asyncio.Event().wait()

    def bad():
        assert started.wait(PATIENCE)
        raise ValueError("no")

    workflow = build(Task(held, on_status_change=lambda _, status: told.append(status)), Task(bad))
    execute_in_vain(AsyncExecutor(), workflow)
    assert workflow.get_task_status("held") is CANCELLED
    assert told == [RUNNING, CANCELLED]


def test_retries_are_told_with_the_name_and_the_number_of_the_attempt_that_failed(make):
    """The third attempt fails too, and is followed by none"""
    told = Mock()
    execute_in_vain(make(), build(Task("bad", tasks.refuse, retries=2, delay=0, on_retry=told)))
    assert [call.args for call in told.call_args_list] == [("bad", 1), ("bad", 2)]


@pytest.mark.parametrize("option", ["on_status_change", "on_retry"])
def test_a_watcher_that_raises_is_logged_and_changes_nothing(option, make, caplog):
    watcher = Mock(side_effect=LookupError("broken"))
    workflow = build(Task("a", tasks.succeed_at_third, retries=2, delay=0, **{option: watcher}))
    assert make().execute(workflow) == {"a": 3}
    assert watcher.call_count == len(caplog.records) > 1
