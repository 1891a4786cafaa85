"""The DAG: which tasks it has, how it is run, checked and drawn."""

import asyncio
import gc
import threading
import types
import warnings
import weakref

import pytest

from flowkit import (
    DAG,
    BindingError,
    DAGCycleError,
    DefinitionError,
    DuplicateTaskError,
    FlowkitError,
    OptionError,
    Task,
    TaskNotFoundError,
    chain,
    task,
)


def one():
    return 1


def add(*given):
    return 1 + sum(value for value in given if value is not None)


def names(dag):
    """Return the names of the tasks that a run of *dag* has."""
    return sorted(name for wave in dag.waves() for name in wave)


def etl(**options):
    """extract ─► clean, count ─► load"""
    with DAG("etl", **options) as dag:
        extract, clean, count, load = (Task(name, add) for name in ("extract", "clean", "count", "load"))
        extract >> [clean, count] >> load
    return dag


# ---------------------------------------------------------------- making one


def test_a_dag_is_named_workflow_and_has_no_workers_chosen():
    assert DAG().name == "workflow"
    assert DAG().max_workers is None
    assert DAG("etl", max_workers=3).max_workers == 3


@pytest.mark.parametrize("name", ["", "a\nb", 3, None])
def test_a_name_is_a_string_of_printable_characters(name):
    with pytest.raises(OptionError, match="must be a string of printable characters"):
        DAG(name)


def test_repr_shows_the_name_and_the_tasks_it_was_given():
    assert repr(DAG("etl")) == "<DAG 'etl'>"
    assert repr(etl()) == "<DAG 'etl' tasks=4>"


@pytest.mark.parametrize("options", [
    {"executor": "threads"}, {"max_workers": 0}, {"max_workers": True}, {"timeout": 0}, {"timeout": -1},
    {"fail_fast": 1}, {"raise_on_failure": "no"}, {"limits": {"api": 0}}, {"observers": [3]},
    {"state": "file.json"}, {"resume": "yes"}, {"progress": True},
])  # fmt: skip
def test_defaults_and_arguments_are_checked_alike(options):
    (name,) = options
    with pytest.raises(OptionError, match=name.removesuffix("s")):
        DAG("etl", **options)
    with pytest.raises(OptionError, match=name.removesuffix("s")):
        DAG("etl", tasks=[]).run(**options)


def test_an_unknown_executor_is_an_error_that_lists_the_known_ones():
    with pytest.raises(OptionError, match="executor='fiber' must be one of 'thread', 'process', 'async', 'sequential'"):
        etl().run(executor="fiber")


def test_an_unknown_argument_is_a_type_error_that_lists_all():
    with pytest.raises(TypeError, match=r"no argument 'worker'; there are inputs, executor, .*max_workers"):
        etl().run(worker=3)
    with pytest.raises(TypeError, match="no argument 'worker'"):
        DAG("etl", worker=3)


# ---------------------------------------------------------------- which tasks: named


def test_tasks_names_exactly_those_and_all_they_depend_on():
    """extract ─► clean ─► load; extract ─► other"""
    extract, clean, load, other = (Task(name, add) for name in ("extract", "clean", "load", "other"))
    extract >> clean >> load
    extract >> other
    assert names(DAG("etl", tasks=[clean])) == ["clean", "extract"]
    assert names(DAG("etl", tasks=(load, other))) == ["clean", "extract", "load", "other"]
    assert names(DAG("etl", tasks=[])) == []


def test_tasks_may_be_any_iterable_and_may_repeat():
    made = Task("a", one)
    assert DAG("etl", tasks=iter([made, made])).run() == {"a": 1}


def test_a_named_task_counts_even_if_copies_were_made_of_it():
    load = Task("load", one)
    copy = load.with_options(name="load_eu")
    assert DAG("etl", tasks=[load, copy]).run() == {"load": 1, "load_eu": 1}


@pytest.mark.parametrize("tasks", ["load", Task("load", one)])
def test_tasks_must_be_a_list(tasks):
    with pytest.raises(OptionError, match=r"must be a list of tasks. Write tasks=\[...\]"):
        DAG("etl", tasks=tasks)


def test_tasks_must_hold_tasks():
    with pytest.raises(TypeError, match="tasks must hold tasks, not 3 of type int"):
        DAG("etl", tasks=[Task("a", one), 3])


def test_wiring_after_the_dag_was_made_counts():
    """a ─► b ─► c"""
    a, b, c = (Task(name, add) for name in "abc")
    dag = DAG("etl", tasks=[c])
    assert dag.run() == {"c": 1}
    a >> b >> c
    assert dag.run() == {"a": 1, "b": 2, "c": 3}


# ---------------------------------------------------------------- which tasks: with


def test_a_with_block_collects_the_tasks_made_in_it():
    with DAG("etl") as dag:
        Task("a", one)

        @task
        def b():
            return 2

    Task("c", one)
    assert dag.run() == {"a": 1, "b": 2}


def test_a_with_block_collects_the_tasks_wired_in_it_and_all_they_depend_on():
    """far ─► near ─► last, all made outside; only near ─► last is wired inside"""
    far, near, last, other = (Task(name, add) for name in ("far", "near", "last", "other"))
    far >> near
    with DAG("etl") as dag:
        near >> last
    assert dag.run() == {"far": 1, "near": 2, "last": 3}
    assert other.upstream == []


@pytest.mark.parametrize("wire", [
    lambda a, b: a >> b, lambda a, b: b << a, lambda a, b: [a] >> b, lambda a, b: a >> [b],
    lambda a, b: b.after(a), lambda a, b: chain(a, b),
])  # fmt: skip
def test_every_spelling_of_an_edge_counts_as_wired_inside(wire):
    """a ─► b, made outside"""
    a, b = Task("a", one), Task("b", add)
    with DAG("etl") as dag:
        wire(a, b)
    assert names(dag) == ["a", "b"]


def test_an_edge_that_was_there_before_counts_as_wired_inside():
    """a ─► b, wired outside and again inside"""
    a, b = Task("a", one), Task("b", add)
    a >> b
    with DAG("etl") as dag:
        a >> b
    assert dag.run() == {"a": 1, "b": 2}


def test_an_edge_that_was_there_before_counts_in_a_block_opened_later_too():
    """a ─► b, wired outside and again in the second block of a DAG that has run"""
    a, b = Task("a", one), Task("b", add)
    a >> b
    with DAG("etl") as dag:
        Task("c", one)
    assert dag.run() == {"c": 1}
    with dag:
        a >> b
    assert dag.run() == {"a": 1, "b": 2, "c": 1}


def test_what_hangs_below_a_collected_task_stays_out():
    """a ─► b, where only a is made inside"""
    with DAG("etl") as dag:
        a = Task("a", one)
    a >> Task("b", add)
    assert dag.run() == {"a": 1}


def test_a_copied_task_is_a_template_unless_it_is_wired():
    """load is copied twice; rows ─► load_eu, load_us; in the second DAG rows ─► load too"""
    with DAG("etl") as dag:
        rows, load = Task("rows", one), Task("load", add)
        rows >> [load.with_options(name="load_eu"), load.with_options(name="load_us")]
    assert dag.run() == {"rows": 1, "load_eu": 2, "load_us": 2}
    with dag:
        rows >> load
    assert names(dag) == ["load", "load_eu", "load_us", "rows"]


def test_nested_blocks_collect_their_own():
    """outer: a, c; inner: b"""
    with DAG("outer") as outer:
        Task("a", one)
        with DAG("inner") as inner:
            Task("b", one)
        Task("c", one)
    assert (names(outer), names(inner)) == (["a", "c"], ["b"])


def test_an_edge_across_nested_blocks_belongs_to_the_inner_one():
    """outer: a; inner: a ─► b"""
    with DAG("outer") as outer:
        a = Task("a", one)
        with DAG("inner") as inner:
            a >> Task("b", add)
    assert (names(outer), names(inner)) == (["a"], ["a", "b"])


def test_a_dag_may_be_entered_inside_of_itself():
    with DAG("etl") as dag:
        Task("a", one)
        with dag:
            Task("b", one)
        Task("c", one)
    assert names(dag) == ["a", "b", "c"]


def test_a_block_that_raises_is_closed_all_the_same():
    def broken():
        with dag:
            Task("a", one)
            raise KeyError

    dag = DAG("etl")
    with pytest.raises(KeyError):
        broken()
    Task("b", one)
    assert names(dag) == ["a"]


def test_a_block_collects_only_in_its_own_thread():
    with DAG("etl") as dag:
        Task("a", one)
        thread = threading.Thread(target=lambda: Task("b", one))
        thread.start()
        thread.join()
    assert names(dag) == ["a"]


def test_with_adds_to_the_tasks_that_were_named():
    with DAG("etl", tasks=[Task("a", one)]) as dag:
        Task("b", one)
    assert names(dag) == ["a", "b"]


def in_module(source):
    """Run *source* as the body of a module of its own and return it."""
    module = types.ModuleType("synthetic_for_dag")
    exec("from flowkit import DAG, Task, task", module.__dict__)
    exec(source, module.__dict__)
    return module


def test_tasks_of_a_block_do_not_belong_to_the_bare_dag_of_the_module():
    module = in_module("""
with DAG("inner") as inner:
    Task("a", lambda: 1)
Task("b", lambda: 2)
bare = DAG()
""")
    assert module.bare.run() == {"b": 2}
    assert module.inner.run() == {"a": 1}


def test_a_template_does_not_belong_to_the_bare_dag_of_the_module():
    module = in_module("""
load = Task("load", lambda: 1)
copy = load.with_options(name="copy")
bare = DAG()
""")
    assert module.bare.run() == {"copy": 1}


# ---------------------------------------------------------------- empty


def test_an_empty_dag_runs_to_an_empty_result():
    for dag in (DAG("etl", tasks=[]), DAG("etl", tasks=[], executor="sequential")):
        assert dag.run() == {}
        assert dag.waves() == []
        dag.validate()


def test_a_bare_dag_without_tasks_warns_where_it_is_run_and_says_how_to_name_them():
    for run in (lambda dag: dag.run(), lambda dag: dag.waves(), lambda dag: dag.start().result(5)):
        with pytest.warns(UserWarning, match="finds no task made by module 'test_dag'") as caught:
            assert len(run(DAG("etl"))) == 0
        assert {warning.filename for warning in caught} == {__file__}
        assert "tasks=[...]" in str(caught[0].message)
        assert "with DAG('etl') as dag:" in str(caught[0].message)


def test_an_empty_block_or_list_does_not_warn():
    with DAG("etl") as dag:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dag.run() == DAG("etl", tasks=[]).run() == {}


def test_isolated_tasks_run():
    assert DAG("etl", tasks=[Task("a", one), Task("b", one)]).run() == {"a": 1, "b": 1}


# ---------------------------------------------------------------- defaults and arguments


def test_inputs_of_the_dag_and_of_the_run_are_merged():
    dag = DAG("etl", tasks=[Task("a", lambda date, rows: (date, rows))], inputs={"date": "today", "rows": 10})
    assert dag.run()["a"] == ("today", 10)
    assert dag.run({"rows": 5})["a"] == ("today", 5)
    assert dag.run(inputs={"rows": 5, "date": "tomorrow"})["a"] == ("tomorrow", 5)
    assert dag.run()["a"] == ("today", 10)


def test_changing_the_mapping_afterwards_does_not_change_the_inputs():
    inputs = {"date": "today"}
    dag = DAG("etl", tasks=[Task("a", lambda date: date)], inputs=inputs)
    inputs["date"] = "tomorrow"
    assert dag.run()["a"] == "today"


def test_everything_else_that_the_run_is_given_replaces_the_default():
    def fail():
        raise ValueError("no")

    dag = DAG("etl", tasks=[Task("a", fail), Task("b", threading.current_thread)], raise_on_failure=False,
              executor="sequential", fail_fast=False, targets=["b"])  # fmt: skip
    assert dag.run()["b"] is threading.current_thread()
    assert dag.run(executor="thread")["b"] is not threading.current_thread()
    assert dag.run(targets=["a"]).failed == ["a"]
    assert list(dag.run(targets=None)) == ["b"]
    with pytest.raises(FlowkitError):
        dag.run(targets=None, raise_on_failure=True)


def test_the_number_of_workers_is_the_most_attempts_at_once():
    inside, most = [], []
    lock = threading.Lock()

    def work():
        with lock:
            inside.append(1)
            most.append(len(inside))
        with lock:
            inside.pop()

    dag = DAG("etl", tasks=[Task(f"t{i}", work) for i in range(30)], max_workers=1)
    dag.run()
    assert max(most) == 1
    together = threading.Barrier(4)
    dag = DAG("etl", tasks=[Task(f"t{i}", lambda: together.wait(5)) for i in range(4)], max_workers=1)
    assert len(dag.run(max_workers=4)) == 4


@pytest.mark.parametrize("inputs", [3, ["date"], "date", [("date", 1)]])
def test_inputs_must_be_a_mapping(inputs):
    with pytest.raises(OptionError, match="must be a mapping of names to values"):
        DAG("etl", tasks=[]).run(inputs)


def test_names_of_inputs_must_be_strings():
    with pytest.raises(OptionError, match="the input name 3 must be a string, not int"):
        DAG("etl", tasks=[]).run({3: 1})


def test_an_input_that_no_task_takes_is_an_error_with_the_close_matches():
    dag = DAG("etl", tasks=[Task("a", lambda date=None: date)])
    expected = r"input 'dates' is not used: no task has a parameter of that name \(did you mean 'date'\?\)"
    with pytest.raises(DefinitionError, match=expected):
        dag.run({"dates": 1})
    with pytest.raises(DefinitionError, match=r"'zzz' is not used: no task has a parameter of that name\."):
        dag.validate({"zzz": 1})


def test_an_input_named_like_a_task_is_an_error():
    """rows ─► load(rows)"""
    rows, load = Task("rows", one), Task("load", lambda rows: rows)
    rows >> load
    with pytest.raises(DefinitionError, match="input 'rows' is not used: a task has that name"):
        DAG("etl", tasks=[load]).run({"rows": 3})


def test_several_unused_inputs_are_listed_together():
    with pytest.raises(DefinitionError) as caught:
        DAG("etl", tasks=[Task("a", one)]).run({"x": 1, "y": 2})
    assert len(caught.value.problems) == 2


# ---------------------------------------------------------------- targets


def test_targets_run_with_all_they_depend_on_and_nothing_else():
    """extract ─► clean, count ─► load"""
    dag = etl()
    assert dag.run(targets=["clean"]) == {"extract": 1, "clean": 2}
    assert dag.run(targets=["clean", "count"]) == {"extract": 1, "clean": 2, "count": 2}
    assert dag.run(targets=["extract", "load"]) == {"extract": 1, "clean": 2, "count": 2, "load": 5}
    assert dag.run(targets=[]) == {}


def test_targets_may_be_any_iterable_and_count_for_every_run():
    dag = etl(targets=(name for name in ["clean"]))
    assert [list(dag.run()) for _ in range(2)] == [["extract", "clean"]] * 2
    assert list(dag.run(targets=iter(["count"]))) == ["extract", "count"]


def test_targets_may_be_tasks():
    made = Task("a", one)
    assert DAG("etl", tasks=[made, Task("b", one)]).run(targets=[made]) == {"a": 1}


def test_an_unknown_target_is_an_error_with_the_close_matches():
    with pytest.raises(TaskNotFoundError, match=r"no task is named 'laod' \(did you mean 'load'\?\)"):
        etl().run(targets=["laod"])
    with pytest.raises(TaskNotFoundError, match="no task is named 'a'"):
        DAG("etl", tasks=[]).run(targets=["a"])


@pytest.mark.parametrize("targets", ["load", Task("load", one)])
def test_targets_must_be_a_list(targets):
    with pytest.raises(OptionError, match="must be a list"):
        etl().run(targets=targets)


def test_targets_of_the_dag_count_for_its_runs_but_not_for_its_picture():
    dag = etl(targets=["extract"])
    assert dag.run() == {"extract": 1}
    assert len(names(dag)) == 4


def test_an_input_of_a_task_that_is_no_target_is_not_an_error():
    dag = DAG("etl", tasks=[Task("a", one), Task("b", lambda date: date)])
    assert dag.run({"date": 1}, targets=["a"]) == {"a": 1}


def test_a_target_whose_name_two_tasks_have_is_an_error_and_not_one_of_them():
    """two tasks named a"""
    dag = DAG("etl", tasks=[Task("a", one), Task("a", lambda: 2)])
    with pytest.raises(DuplicateTaskError):
        dag.run(targets=["a"])


# ---------------------------------------------------------------- validate


def test_validate_runs_nothing():
    calls = []
    dag = DAG("etl", tasks=[Task("a", lambda: calls.append(1), when=lambda: calls.append(2))])
    assert dag.validate() is None
    assert calls == []


def test_validate_takes_the_inputs_and_limits_that_the_run_will_be_given():
    dag = DAG("etl", tasks=[Task("a", lambda date: date, uses="api")])
    with pytest.raises(BindingError, match="nothing gives 'date'"):
        dag.validate()
    dag.validate({"date": 1})
    dag.validate({"date": 1}, limits={"api": 1})
    with pytest.raises(OptionError, match="there is no such limit"):
        dag.validate({"date": 1}, limits={"disk": 1})


def test_validate_lists_every_problem_in_one_error():
    """load takes nothing of audit; two tasks named extract; a cycle would hide the rest"""
    extract, audit, load = Task("extract", one), Task("audit", one), Task("load", lambda rows, limit=10: rows)
    [extract, audit] >> load
    dag = DAG("etl", tasks=[load, Task("extract", one), Task("bad", lambda x: x)])
    with pytest.raises(DefinitionError) as caught:
        dag.validate()
    kinds = [type(problem) for problem in caught.value.problems]
    assert kinds == [DuplicateTaskError, BindingError, BindingError]
    assert str(caught.value).splitlines()[0] == "DAG 'etl' has 3 problems; nothing has run:"


def test_a_cycle_is_found_by_everything_that_looks_at_the_graph():
    """a ─► b ─► c ─► a"""
    a, b, c = (Task(name, add) for name in "abc")
    a >> b >> c >> a
    dag = DAG("etl", tasks=[a])
    for look in (dag.validate, dag.run, dag.start, dag.waves, dag.visualize):
        with pytest.raises(DAGCycleError, match="'a' >> 'b' >> 'c' >> 'a'"):
            look()


# ---------------------------------------------------------------- frozen graphs


def test_a_frozen_graph_is_kept_until_the_wiring_changes(mocker):
    """extract ─► clean, count ─► load"""
    dag = etl()
    compiled = mocker.spy(DAG, "_freeze")
    dag.run()
    dag.run()
    assert compiled.call_count == 1
    dag.run(targets=["clean"])
    assert compiled.call_count == 2
    Task("elsewhere", one)
    assert dag.run() == {"extract": 1, "clean": 2, "count": 2, "load": 5}
    assert compiled.call_count == 3


def test_many_different_runs_do_not_pile_up_frozen_graphs():
    dag = DAG("etl", tasks=[Task(f"t{i}", one) for i in range(40)])
    for i in range(40):
        assert dag.run(targets=[f"t{i}"]) == {f"t{i}": 1}
    assert len(dag._programs) <= 8


def test_a_dag_that_nobody_holds_is_forgotten_with_its_tasks():
    dag = etl()
    dag.run()
    seen = weakref.ref(dag), *map(weakref.ref, dag._tasks)
    del dag
    gc.collect()
    assert [ref() for ref in seen] == [None] * 5


# ---------------------------------------------------------------- looking


def test_waves_are_the_topological_generations_in_definition_order():
    """extract ─► clean, count ─► load; alone"""
    with DAG("etl") as dag:
        load, count, clean, extract = (Task(name, add) for name in ("load", "count", "clean", "extract"))
        extract >> [clean, count] >> load
        Task("alone", one)
    assert dag.waves() == [["extract", "alone"], ["count", "clean"], ["load"]]


def test_waves_look_only_at_the_graph_and_not_at_how_tasks_are_called():
    """a ─► b, where b takes nothing of a and something that nothing gives"""
    a, b = Task("a", one), Task("b", lambda x, y: x)
    a >> b
    dag = DAG("etl", tasks=[b])
    assert dag.waves() == [["a"], ["b"]]
    assert "b" in dag.visualize()
    with pytest.raises(BindingError):
        dag.validate()


def test_the_text_names_the_dag_and_every_task_with_its_neighbours():
    """extract ─► clean, count ─► load"""
    text = etl().visualize()
    assert text == etl().visualize("text")
    assert "etl" in text
    for name in ("extract", "clean", "count", "load"):
        assert name in text
    assert "Upstream:" in text
    assert "Downstream:" in text
    assert "clean" in next(line for line in text.splitlines() if "Upstream:" in line and "count" in line)


def test_the_text_of_none_says_so():
    assert "Empty DAG" in DAG("etl", tasks=[]).visualize()


@pytest.mark.parametrize("format", ["text", "mermaid", "dot"])
def test_every_format_draws_every_edge_state_and_name(format):
    """good ─► last, bad ─► below, off"""

    def bad():
        raise ValueError("no")

    with DAG("my etl") as dag:
        Task("good", one) >> Task("last", add)
        Task("bad", bad) >> Task("below", add)
        Task("off", one, when=lambda: False)
    plain = dag.visualize(format)
    result = dag.run(fail_fast=False, raise_on_failure=False)
    with_states = dag.visualize(format, result=result)
    assert plain != with_states
    for name in ("my etl", "good", "last", "bad", "below", "off"):
        assert name in plain
        assert name in with_states
    for state in ("succeeded", "failed", "skipped", "upstream_failed"):
        assert state.replace("_", " ") in with_states.replace("_", " ").replace("#95;", " ")
        assert state not in plain
    if format != "text":
        assert plain.count("->") == 2


def test_a_result_of_another_dag_only_colours_what_has_the_same_name():
    """extract ─► clean, count ─► load"""
    other = DAG("other", tasks=[Task("extract", one), Task("unknown", one)]).run()
    text = etl().visualize(result=other)
    assert "succeeded" in text
    assert "unknown" not in text


@pytest.mark.parametrize("format", ["svg", "", None, 3])
def test_another_format_is_an_error_that_lists_the_known_ones(format):
    with pytest.raises(OptionError, match="must be one of 'text', 'mermaid', 'dot'"):
        etl().visualize(format)


# ---------------------------------------------------------------- the surroundings


def test_a_run_inside_a_running_event_loop_works():
    async def main():
        return etl().run()["load"]

    assert asyncio.run(main()) == 5


def test_a_run_while_the_interpreter_shuts_down_is_refused(mocker):
    dag = etl()
    mocker.patch("sys.is_finalizing", return_value=True)
    for run in (dag.run, dag.start):
        with pytest.raises(FlowkitError, match=r"DAG\('etl'\).*the interpreter is shutting down"):
            run()
