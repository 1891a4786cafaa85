"""Every bad input, and the error that it gets: what is wrong, where, and what to write instead.

One row of parameters is one bad input. Whatever is wrong with a definition is said before anything runs; whatever goes
wrong in a run ends that task, and never the run's own machinery, the process or the next run.
"""

import asyncio
import dataclasses
import gc
import itertools
import logging
import os
import re
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowkit import (
    DAG,
    ConditionError,
    DAGCycleError,
    DAGExecutionError,
    DefinitionError,
    DuplicateTaskError,
    FlowkitError,
    GiveUp,
    OptionError,
    RetryAfter,
    Skip,
    Task,
    TaskExecutionError,
    TaskNotFoundError,
    TaskResultError,
    chain,
    current_context,
    task,
)
from flowkit.retry import RetryPolicy

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


@pytest.fixture
def log(caplog):
    """The messages of the logger "flowkit"."""
    caplog.set_level(logging.DEBUG, "flowkit")
    return caplog


def nothing(): ...


def one():
    return 1


def raising(error):
    """Return a function that raises *error*."""

    def fail():
        raise error

    return fail


def alone(func, **options):
    """Return a DAG of one task, named "t"."""
    return DAG("etl", tasks=[Task("t", func, **options)])


def finished(dag, **options):
    """Return the result of a run that must end, whatever happens in it: a hang is a failure after three seconds."""
    handle = dag.start(fail_fast=False, raise_on_failure=False, **options)
    try:
        return handle.result(timeout=3)
    finally:
        handle.cancel("the test is over")


def line_after(marker):
    """Return ``file:line`` of the line of this file that follows the one with *marker*."""
    lines = Path(__file__).read_text("utf-8").splitlines()
    (found,) = (n for n, text in enumerate(lines, 1) if text.strip() == f"# {marker}")
    return f"{__file__}:{found + 1}"


# ---------------------------------------------------------------- names


NO_NAMES = ["", "x" * 201, "two\nlines", "\x00", "tab\t", "\ud800", 3, b"load", ["load"], True]
GOOD_NAMES = ["a/b", "<script>", "end", "x" * 200, "größe", "两", "a b", "../../etc/passwd", "%s", "{0}", "None"]


@pytest.mark.parametrize("name", NO_NAMES, ids=repr)
@pytest.mark.parametrize(
    "define",
    [
        lambda name: Task(nothing, name=name),
        lambda name: Task(name, nothing),
        lambda name: task(name=name)(nothing),
        lambda name: Task(nothing).with_options(name=name),
    ],
    ids=["Task", "Task by position", "@task", "with_options"],
)
def test_a_name_that_is_none_is_refused(define, name):
    with pytest.raises(OptionError) as caught:
        define(name)
    text = str(caught.value)
    assert repr(name)[:70] in text
    assert "must be a string of 1 to 200 printable characters" in text
    assert f"{__file__}:" in text
    assert len(text) < 400


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_every_other_name_is_a_good_one(name, executor):
    assert DAG("etl", tasks=[Task(name, one)]).run(executor=executor) == {name: 1}


@pytest.mark.parametrize("name", ["", 3, None, "two\nlines", b"etl"], ids=repr)
def test_a_dag_has_a_name_too(name):
    with pytest.raises(OptionError, match=r"DAG name .* must be a string of printable characters"):
        DAG(name)


# ---------------------------------------------------------------- what is no function


@pytest.mark.parametrize("value", [3, None, "load", [1], object(), NotImplemented], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("define", [task, Task, task(retries=1)], ids=["@task", "Task", "@task(...)"])
def test_what_cannot_be_called_is_no_task(define, value):
    with pytest.raises(TypeError) as caught:
        define(value)
    text = str(caught.value)
    assert f"a task needs a function, not {value!r:.40}" in text
    assert f"of type {type(value).__name__}" in text
    assert f"{__file__}:" in text
    assert "Did you call the function? Write task(f), not task(f())." in text


def test_a_task_needs_a_function_and_at_most_a_name():
    with pytest.raises(TypeError, match=r"Task\(\) takes a function, or a name and a function, not 3 arguments"):
        Task("a", nothing, 3)
    with pytest.raises(TypeError, match=r"Task\(\) takes a function.*not 0"):
        Task()


async def coroutine_function(): ...


def generator_function():
    yield 1


async def async_generator_function():
    yield 1


@pytest.mark.parametrize("function", [coroutine_function, generator_function, async_generator_function])
@pytest.mark.parametrize("define", [task, Task], ids=["@task", "Task"])
def test_the_result_of_a_call_is_no_task(define, function):
    """The coroutine is closed, so that Python does not warn that nobody awaited it."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(TypeError, match=re.escape("Pass the function, not the call: task(f), not task(f()).")):
            define(function())
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


# ---------------------------------------------------------------- options of a task

NO_COUNT = [-1, 1.5, NAN, INF, "3", True, None, 2e9, [1]]
NO_SECONDS = [-1, -0.001, NAN, INF, -INF, "3", True, None, 2e9, 10**400, [1], 1j]


@pytest.mark.parametrize("value", NO_COUNT, ids=repr)
def test_retries_is_a_count(value):
    with pytest.raises(OptionError) as caught:
        # the line of the option
        Task("load", nothing, retries=value)
    text = str(caught.value)
    assert f"retries={value!r} must be an integer from 0" in text
    assert "task 'load'" in text
    assert line_after("the line of the option") in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(option, value, id=f"{option}={value!r:.12}")
        for option in ("delay", "backoff", "jitter", "max_delay", "timeout")
        for value in NO_SECONDS
        if (option, value) != ("timeout", None)  # which means that there is none
    ],
)
def test_a_duration_is_a_finite_number(option, value):
    with pytest.raises(OptionError) as caught:
        Task("load", nothing, **{option: value})
    text = str(caught.value)
    assert f"{option}={value!r:.12}" in text
    assert "must be a finite number" in text
    assert "task 'load'" in text
    assert len(text) < 1000


def test_a_timeout_of_zero_is_refused():
    with pytest.raises(OptionError, match=r"timeout=0 must be a finite number above 0"):
        Task("load", nothing, timeout=0)


@pytest.mark.parametrize("value", ["Exception", 3, None, [ValueError], (ValueError, "x"), int, (), object()], ids=repr)
def test_retry_on_is_made_of_exception_classes(value):
    if value == ():
        Task("load", nothing, retry_on=value)  # no exception is retried
        return
    with pytest.raises(OptionError, match=r"retry_on=.*must be an exception class, a tuple.*or a function"):
        Task("load", nothing, retry_on=value)


@pytest.mark.parametrize("value", ["none_faild", "", None, 3, ["all_done"], {}], ids=repr)
def test_an_unknown_trigger_lists_the_known_ones(value):
    with pytest.raises(OptionError) as caught:
        Task("load", nothing, trigger=value)
    text = str(caught.value)
    assert f"trigger={value!r} must be one of" in text
    for known in ("none_failed", "all_success", "one_success", "all_done", "one_failed", "all_failed"):
        assert repr(known) in text


@pytest.mark.parametrize("option", ["when", "on_success", "on_failure", "on_retry"])
@pytest.mark.parametrize("value", [3, "x", True, []], ids=repr)
def test_a_hook_is_callable(option, value):
    with pytest.raises(OptionError, match=rf"task 'load' .*: {option}=.* must be callable, not {type(value).__name__}"):
        Task("load", nothing, **{option: value})


@pytest.mark.parametrize("value", ["", 3, True, ["api"], b"api"], ids=repr)
def test_uses_is_the_name_of_a_limit(value):
    with pytest.raises(OptionError, match=r"uses=.* must name a limit, as in run\(limits="):
        Task("load", nothing, uses=value)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="retrys"):
        task(retrys=3)(nothing)


# ---------------------------------------------------------------- arguments of a run


@pytest.fixture(params=["run", "start", "DAG"])
def give(request):
    """Return a function that gives arguments to a run by one of the three doors."""

    def giving(**arguments):
        if request.param == "DAG":
            return DAG("etl", tasks=[Task(one, name="t")], **arguments).run()
        dag = alone(one)
        return dag.run(**arguments) if request.param == "run" else dag.start(**arguments).result(timeout=10)

    return giving


@pytest.mark.parametrize("value", [0, -1, True, 10**6, 1.5, "3", NAN], ids=repr)
def test_max_workers_is_a_count(give, value):
    with pytest.raises(OptionError, match=rf"DAG\('etl'\).*max_workers={value!r} must be an integer from 1 to 10,000"):
        give(max_workers=value)


@pytest.mark.parametrize("value", [0, -1, True, 10**6, 1.5, "3", None], ids=repr)
@pytest.mark.parametrize("kind", ["thread", "process", "async"])
def test_max_workers_of_one_kind_is_a_count(give, kind, value):
    with pytest.raises(OptionError, match=rf"max_workers\['{kind}'\]={value!r} must be an integer from 1 to 10,000"):
        give(max_workers={kind: value})


@pytest.mark.parametrize("kind", ["threads", "sequential", "", None, 3], ids=repr)
def test_max_workers_of_an_unknown_kind_lists_the_known_ones(give, kind):
    with pytest.raises(OptionError, match=rf"max_workers={{{kind!r}: 2}}: {kind!r} must be one of 'thread', 'process'"):
        give(max_workers={kind: 2})


@pytest.mark.parametrize("option", ["max_workers", "limits"])
def test_a_mapping_that_is_changed_after_it_was_checked_changes_nothing(option):
    """Four tasks that need each other, and could not all run if the change counted"""
    given = {"max_workers": {"thread": 4}, "limits": {"api": 4}}
    together = threading.Barrier(4)
    dag = DAG("etl", tasks=[Task(f"t{n}", lambda: together.wait(5), uses="api") for n in range(4)], **given)
    given[option].update(dict.fromkeys(given[option], 1))
    assert len(dag.run()) == 4


@pytest.mark.parametrize("value", ["threads", "", None, 3, ["thread"], {}], ids=repr)
def test_an_unknown_executor_lists_the_known_ones(give, value):
    with pytest.raises(OptionError) as caught:
        give(executor=value)
    assert f"executor={value!r} must be one of 'thread', 'process', 'async', 'sequential'" in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, NAN, INF, "3", True, 2e9, 10**400], ids=lambda v: repr(v)[:12])
def test_the_timeout_of_a_run_is_a_finite_number_above_zero(give, value):
    with pytest.raises(OptionError, match=r"DAG\('etl'\).*timeout=.* must be a finite number above 0"):
        give(timeout=value)


@pytest.mark.parametrize("flag", ["fail_fast", "raise_on_failure"])
@pytest.mark.parametrize("value", [0, 1, "no", None], ids=repr)
def test_a_flag_is_true_or_false(give, flag, value):
    with pytest.raises(OptionError, match=rf"{flag}={value!r} must be True or False"):
        give(**{flag: value})


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "4", None], ids=repr)
def test_a_limit_is_a_count(give, most):
    with pytest.raises(OptionError, match=rf"limits\['api'\]={most!r} must be an integer from 1"):
        give(limits={"api": most})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("limits", 3), ("limits", ["api"]), ("limits", "api"), ("observers", 3), ("observers", print),
        ("observers", None), ("targets", 3), ("targets", [["t"]]), ("targets", [3]),
    ],
    ids=repr,
)  # fmt: skip
def test_an_argument_of_the_wrong_kind_is_named(give, argument, value):
    with pytest.raises(DefinitionError) as caught:
        give(**{argument: value})
    assert argument in str(caught.value)
    assert "DAG('etl')" in str(caught.value)


def test_an_observer_is_callable(give):
    with pytest.raises(OptionError, match="observer 'log' must be callable with one event"):
        give(observers=["log"])


def test_observers_may_come_from_a_generator(give):
    """Checking them must not use them up."""
    events = []
    give(observers=(observer for observer in [events.append]))
    assert events


def test_an_unknown_argument_lists_the_known_ones(give):
    with pytest.raises(TypeError, match=r"there is no argument 'max_worker'; there are inputs, .*max_workers"):
        give(max_worker=3)


@pytest.mark.parametrize("targets", ["load", "t"])
def test_a_bare_string_is_no_list_of_targets(give, targets):
    """Its characters are never taken for names, not even where there is a task of that name."""
    words = re.escape(f"targets='{targets}' must be a list. Write targets=['{targets}'].")
    with pytest.raises(OptionError, match=words):
        give(targets=targets)


def test_an_unknown_target_is_named_with_close_matches():
    dag = DAG("etl", tasks=[Task(name, one) for name in ("load", "load_eu", "load_us", "load_all", "extract")])
    with pytest.raises(TaskNotFoundError) as caught:
        dag.run(targets=["lod"])
    text = str(caught.value)
    assert "no task is named 'lod'" in text
    assert "did you mean 'load'" in text
    assert "'load_eu', 'load_us'" in text
    assert text.count(" or ") <= 2
    assert isinstance(caught.value, LookupError)


def test_every_unknown_target_is_named():
    with pytest.raises(DefinitionError) as caught:
        alone(one).run(targets=["x", "y"])
    assert "'x'" in str(caught.value)
    assert "'y'" in str(caught.value)


def test_the_tasks_of_a_large_dag_are_cut_to_ten():
    dag = DAG("etl", tasks=[Task(f"task_{n}", one) for n in range(1000)])
    with pytest.raises(TaskNotFoundError, match=r"\.\.\. 990 more") as caught:
        dag.run(targets=["zzz"])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("tasks", ["load", Task("load", nothing)], ids=["str", "Task"])
def test_tasks_is_a_list(tasks):
    with pytest.raises(OptionError, match=r"DAG\('etl'\): tasks=.* must be a list of tasks\. Write tasks=\[\.\.\.\]"):
        DAG("etl", tasks=tasks)


@pytest.mark.parametrize("item", ["load", nothing, None, [Task("load", nothing)]], ids=lambda v: type(v).__name__)
def test_tasks_holds_tasks(item):
    with pytest.raises(TypeError, match=rf"DAG\('etl'\): tasks must hold tasks, not .* of type {type(item).__name__}"):
        DAG("etl", tasks=[item])


def test_tasks_that_are_no_list_at_all_are_refused():
    with pytest.raises((OptionError, TypeError), match=r"DAG\('etl'\): tasks=3"):
        DAG("etl", tasks=3)


@pytest.mark.parametrize("timeout", [NAN, INF, "3", 1e10], ids=repr)
def test_the_wait_for_a_result_is_a_finite_number(timeout):
    gate = threading.Event()
    handle = alone(gate.wait).start()
    try:
        with pytest.raises(OptionError, match="timeout"):
            handle.result(timeout=timeout)
    finally:
        gate.set()
    assert handle.result(timeout=10) == {"t": True}


# ---------------------------------------------------------------- wiring


@pytest.mark.parametrize(
    ("wire", "shown"),
    [
        (lambda a: a >> 42, "cannot wire 'a' >> 42: the right side must be a task or a list of tasks, not int"),
        (lambda a: 42 >> a, "cannot wire 42 >> 'a': the left side must be"),
        (lambda a: a << 42, "cannot wire 'a' << 42"),
        (lambda a: 42 << a, "cannot wire 42 << 'a'"),
        (lambda a: a >> None, "cannot wire 'a' >> None"),
        (lambda a: a >> [42], "cannot wire 'a' >> 42"),
        (lambda a: [42] >> a, "cannot wire 42 >> 'a'"),
        (lambda a: a >> "load", "cannot wire 'a' >> 'load'"),
        (lambda a: a >> {a}, "cannot wire 'a' >> {"),
        (lambda a: a.after(42), "'a'.after(42): it takes tasks, not int"),
        (lambda a: chain(a, 42), "cannot wire 'a' >> 42"),
        (lambda a: chain(42, a), "chain(42): a link must be a task or a list of tasks"),
        (lambda a: chain([42], a), "chain(42): a link must be a task or a list of tasks"),
        (lambda a: a.upstream.append("load"), "'load'"),
    ],
    ids=["a >> 42", "42 >> a", "a << 42", "42 << a", "a >> None", "a >> [42]", "[42] >> a", "a >> 'load'", "a >> {a}",
         "a.after(42)", "chain(a, 42)", "chain(42, a)", "chain([42], a)", "by hand"],
)  # fmt: skip
def test_what_is_no_task_cannot_be_wired(wire, shown):
    a = Task("a", nothing)

    def wire_and_validate():
        wire(a)
        DAG("etl", tasks=[a]).validate()

    with pytest.raises(TypeError) as caught:
        wire_and_validate()
    assert shown in str(caught.value)


def test_wiring_the_result_of_a_call_says_so():
    a, load = Task("a", one), Task("load", one)
    with pytest.raises(TypeError, match=re.escape("Did you call the task? Write a >> load, not a >> load().")):
        a >> load()


def test_wiring_a_plain_function_says_how_to_make_it_a_task():
    with pytest.raises(TypeError, match=r"put @task above def nothing, or write Task\(nothing\)"):
        Task("a", one) >> nothing


def test_wiring_lists_in_lists_says_what_to_write():
    a, b = Task("a", one), Task("b", one)
    with pytest.raises(TypeError, match=r"Lists do not nest: write a >> \[b, c\], and chain\(a, \[b, c\], d\)"):
        a >> [[b]]


def test_a_refused_list_wires_nothing():
    a, b = Task("a", one), Task("b", one)
    with pytest.raises(TypeError):
        a >> [b, 42]
    assert (len(a.downstream), len(b.upstream)) == (0, 0)


def by_arrows(a, b, c):
    a >> b >> c >> a


def by_hand_upstream(a, b, c):
    a.upstream.append(c)
    b.upstream.append(a)
    c.upstream.append(b)


def by_hand_downstream(a, b, c):
    a.downstream.append(b)
    b.downstream.append(c)
    c.downstream.append(a)


def by_both_hands(a, b, c):
    a.downstream.append(b)
    c.upstream.append(b)
    a.upstream.extend([c])


def by_after(a, b, c):
    a >> b >> c
    a.after(c)


@pytest.mark.parametrize("wire", [by_arrows, by_hand_upstream, by_hand_downstream, by_both_hands, by_after])
@pytest.mark.parametrize("look", [DAG.validate, DAG.run, DAG.start, DAG.waves, DAG.visualize], ids=lambda f: f.__name__)
def test_a_cycle_is_found_whatever_way_it_was_wired(wire, look):
    ran = []
    a, b, c = tasks = [Task(name, lambda *_: ran.append(1)) for name in "abc"]
    wire(a, b, c)
    with pytest.raises(DAGCycleError) as caught:
        look(DAG("etl", tasks=tasks))
    assert "'a' >> 'b' >> 'c' >> 'a'" in str(caught.value)
    assert "nothing has run" in str(caught.value)
    assert ran == []


def test_the_shortest_cycle_is_shown():
    """a ─► b ─► c ─► d ─► a, and c ─► b"""
    a, b, c, d = (Task(name, lambda *_: None) for name in "abcd")
    a >> b >> c >> d >> a
    c >> b
    with pytest.raises(DAGCycleError, match="'b' >> 'c' >> 'b'") as caught:
        DAG("etl", tasks=[a]).validate()
    assert caught.value.cycle == ("b", "c", "b")


def test_a_cycle_beside_the_targets_is_no_problem_of_theirs():
    """a ⇄ b, and c, d alone"""
    a, b, c = (Task(name, lambda *_: 1) for name in "abc")
    a >> b >> a
    assert DAG("etl", tasks=[c]).run() == {"c": 1}


@pytest.mark.parametrize(
    "wire",
    [
        lambda a: a >> a,
        lambda a: a << a,
        lambda a: a >> [a],
        lambda a: [a] >> a,
        lambda a: a.after(a),
        lambda a: a.upstream.append(a),
        lambda a: a.downstream.append(a),
    ],
    ids=["a >> a", "a << a", "a >> [a]", "[a] >> a", "a.after(a)", "upstream by hand", "downstream by hand"],
)
def test_a_task_does_not_depend_on_itself(wire):
    a = Task("a", lambda *_: None)

    def wire_and_validate():
        wire(a)
        DAG("etl", tasks=[a]).validate()

    with pytest.raises(DAGCycleError, match=r"'a' >> 'a'\. Remove this edge"):
        wire_and_validate()


def test_a_cycle_of_a_thousand_tasks_is_cut():
    tasks = [Task(f"task_{n}", lambda *_: None) for n in range(1000)]
    chain(*tasks, tasks[0])
    with pytest.raises(DAGCycleError, match=r"\.\.\. 991 more") as caught:
        DAG("etl", tasks=tasks).validate()
    assert len(str(caught.value)) < 500


# ---------------------------------------------------------------- a DAG as a whole


def test_two_tasks_of_one_name_are_shown_with_both_places():
    # the first load
    first = Task("load", one)
    # the second load
    second = Task("load", nothing)
    with pytest.raises(DuplicateTaskError) as caught:
        DAG("etl", tasks=[first, second]).validate()
    text = str(caught.value)
    assert "'load'" in text
    assert line_after("the first load") in text
    assert line_after("the second load") in text
    assert "@task(name=...) or .with_options(name=...)" in text


def test_a_decorated_function_is_shown_where_its_decorator_stands():
    with DAG("etl") as dag:
        # the decorator
        @task
        def load(): ...

        Task("load", one)
    with pytest.raises(DuplicateTaskError) as caught:
        dag.validate()
    assert line_after("the decorator") in str(caught.value)


def test_a_limit_that_is_not_there_is_named_with_close_matches(executor):
    dag = alone(one, uses="apis")
    with pytest.raises(OptionError, match="task 't' has uses='apis', and there is no such limit") as caught:
        dag.run(executor=executor)
    assert "Write limits={'apis': 4}" in str(caught.value)
    with pytest.raises(OptionError, match="did you mean 'api'"):
        dag.run(executor=executor, limits={"api": 2})
    assert dag.run(executor=executor, limits={"apis": 2}) == {"t": 1}


@pytest.mark.parametrize("trigger", ["one_failed", "all_failed"])
def test_a_trigger_that_can_never_be_met_is_refused(trigger):
    with pytest.raises(OptionError) as caught:
        # the trigger
        alone(one, trigger=trigger).validate()
    text = str(caught.value)
    assert f"task 't' ({__file__}:" in text
    assert f"trigger={trigger!r} and nothing upstream, so it could never start" in text
    assert "Wire it behind the tasks whose failure it waits for" in text


@pytest.mark.parametrize("trigger", ["none_failed", "all_success", "one_success", "all_done"])
def test_every_other_trigger_starts_a_task_without_upstream(trigger, executor):
    assert alone(one, trigger=trigger).run(executor=executor) == {"t": 1}


def test_all_problems_come_in_one_error():
    """x ─► score(model missing), y, x ─► full(no place for y), two named "twin", one trigger never met."""
    x, y = Task("x", one), Task("y", one)
    score, full = Task("score", lambda rows, model: None), Task("full", lambda x: None)
    x >> [score, full]
    y >> full
    twins = [Task("twin", one), Task("twin", nothing)]
    never = Task("never", one, trigger="all_failed")
    with pytest.raises(DefinitionError) as caught:
        DAG("etl", tasks=[score, full, *twins, never]).validate()
    assert type(caught.value) is DefinitionError
    assert len(caught.value.problems) == 4
    text = str(caught.value)
    assert "DAG 'etl' has 4 problems; nothing has run:" in text
    for word in ("'model'", "result of 'y'", "'twin'", "all_failed"):
        assert word in text


def test_a_cycle_does_not_hide_the_other_problems():
    """a ⇄ b, score(model missing), two named "twin", one trigger never met."""
    a, b = Task("a", lambda *_: None), Task("b", lambda *_: None)
    a >> b >> a
    score, never = Task("score", lambda model: None), Task("never", one, trigger="one_failed")
    with pytest.raises(DefinitionError) as caught:
        DAG("etl", tasks=[a, score, never, Task("twin", one), Task("twin", nothing)]).validate()
    kinds = sorted(type(problem).__name__ for problem in caught.value.problems)
    assert kinds == ["BindingError", "DAGCycleError", "DuplicateTaskError", "OptionError"]


def test_an_unused_input_does_not_hide_the_other_problems():
    with pytest.raises(DefinitionError) as caught:
        alone(lambda model: None).validate({"date": 1})
    assert "'model'" in str(caught.value)
    assert "'date'" in str(caught.value)


def test_more_than_ten_problems_are_cut():
    with pytest.raises(DefinitionError, match=r"has 25 problems") as caught:
        DAG("etl", tasks=[Task(f"task_{n}", lambda model: None) for n in range(25)]).validate()
    assert str(caught.value).endswith("... 15 more")
    assert len(caught.value.problems) == 25


def test_a_bare_dag_without_tasks_warns_and_says_how_to_name_them():
    with pytest.warns(UserWarning, match=r"finds no task.*tasks=\[\.\.\.\].*with DAG") as warned:
        result = DAG("lonely").run()
    assert result == {}
    assert warned[0].filename == __file__


# ---------------------------------------------------------------- odd but right


def test_an_empty_dag_gives_an_empty_result(executor):
    result = DAG("empty", tasks=[]).run(executor=executor)
    assert (result, result.state, result.ok, result.tasks) == ({}, "succeeded", True, {})


def test_one_task_is_a_dag(executor):
    assert alone(one).run(executor=executor) == {"t": 1}


def test_an_edge_wired_many_times_is_one_edge(executor):
    a, b = Task("a", one), Task("b", lambda *args: args)
    for _ in range(3):
        a >> b
        b << a
        b.after(a)
        a.downstream.append(b)
        b.upstream.append(a)
    assert DAG("etl", tasks=[b]).run(executor=executor) == {"a": 1, "b": (1,)}


def test_ten_thousand_edges_lead_to_one_task(executor):
    last = Task("last", lambda *args: sum(args))
    [Task(f"task_{n}", one) for n in range(10_000)] >> last
    assert DAG("etl", tasks=[last]).run(executor=executor)["last"] == 10_000


def test_a_chain_deeper_than_the_recursion_limit_runs(executor):
    assert sys.getrecursionlimit() < 20_000
    tasks = [Task(f"task_{n}", lambda *args: sum(args) + 1) for n in range(20_000)]
    chain(*tasks)
    dag = DAG("etl", tasks=[tasks[-1]])
    dag.validate()
    assert dag.run(executor=executor)["task_19999"] == 20_000


@pytest.mark.parametrize("attempt", [2, 10, 1_102, 10**6, 10**12])
@pytest.mark.parametrize(("delay", "backoff"), [(1.0, 2.0), (1e9, 1e9), (0, 1e9), (1, 1), (1, 0)])
def test_backoff_never_grows_past_the_longest_wait(attempt, delay, backoff):
    import random

    policy = RetryPolicy(retries=3, delay=delay, backoff=backoff, jitter=0, max_delay=60)
    assert 0 <= policy.delay_before(attempt, random.Random(0)) <= 60


# ---------------------------------------------------------------- conditions


class Ambiguous:
    """Like a numpy array: its truth value is an error."""

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")


class Awaitable:
    def __await__(self):
        return iter(())


async def async_condition():
    return False


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (raising(KeyError("country")), "raised KeyError: 'country'"),
        (raising(StopIteration("empty")), "raised StopIteration: empty"),
        (raising(Skip("not today")), "raised Skip: not today"),
        (raising(SystemExit(3)), "raised SystemExit: 3"),
        (raising(asyncio.CancelledError()), "raised CancelledError"),
        (async_condition, "returned a coroutine, which is always true: write it as a plain function"),
        (Awaitable, "returned a Awaitable, which is always true: write it as a plain function"),
        (Ambiguous, "raised ValueError: the truth value is ambiguous"),
    ],
    ids=["KeyError", "StopIteration", "Skip", "SystemExit", "CancelledError", "coroutine", "awaitable", "ambiguous"],
)
def test_a_condition_that_does_not_answer_fails_its_task(when, words, executor):
    """t ─► below: t has not run, and is not skipped."""
    ran = []
    t, below = Task("t", lambda: ran.append(1), when=when, retries=3, delay=0), Task("below", lambda x: None)
    t >> below
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = finished(DAG("etl", tasks=[below]), executor=executor)
        gc.collect()
    error = result.errors["t"]
    assert type(error) is ConditionError
    assert f"the condition (when) of task 't' {words}" in str(error)
    assert (result.tasks["t"].state, result.tasks["below"].state) == ("failed", "upstream_failed")
    assert (ran, result.tasks["t"].attempts) == ([], 0)
    assert [str(warning.message) for warning in warned] == []


def test_the_error_of_a_condition_has_its_cause(executor):
    with pytest.raises(TaskExecutionError) as caught:
        alone(one, when=raising(KeyError("country"))).run(executor=executor)
    assert type(caught.value.__cause__) is ConditionError
    assert type(caught.value.__cause__.__cause__) is KeyError


@pytest.mark.parametrize("when", [async_condition, Awaitable, Ambiguous], ids=["coroutine", "awaitable", "ambiguous"])
def test_a_condition_that_does_not_answer_fails_a_direct_call_too(when):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises((ConditionError, ValueError)):
            Task("t", one, when=when)()
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


# ---------------------------------------------------------------- exceptions that tasks raise


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Unshowable(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


class NotText(Exception):
    def __str__(self):
        return 3  # noqa: PLE0307 - that is what is tried here


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.lock = threading.Lock()

    def __reduce__(self):
        raise TypeError("cannot pickle")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses that anything, a traceback included, is set on it."""

    code: int


class NoAttributes(Exception):
    def __setattr__(self, name, value):
        raise RuntimeError(f"cannot set {name}")


class Long(Exception):
    def __str__(self):
        return "x" * 1_000_000


HOSTILE = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "StopIteration": StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration(),
    "CancelledError": asyncio.CancelledError(),
    "GeneratorExit": GeneratorExit(),
    "BaseException": BaseException("bare"),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError("too deep"),
    "raising __str__": Unprintable(),
    "raising __repr__": Unshowable(),
    "__str__ gives no text": NotText(),
    "unpicklable": Unpicklable(1, 2),
    "frozen": Frozen(3),
    "no attributes": NoAttributes("x"),
    "a million characters": Long(),
    "a group": ExceptionGroup("two", [ValueError(1), TypeError(2)]),
}


@pytest.mark.parametrize("error", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
def test_whatever_a_task_raises_fails_that_task_and_nothing_else(error, watched, executor):
    """bad ─► below     other"""
    events = []
    bad, below, other = Task("bad", raising(error)), Task("below", lambda x: None), Task("other", one)
    bad >> below
    dag = DAG("etl", tasks=[below, other])
    result = finished(dag, executor=executor, observers=[events.append] if watched else [])
    assert {name: run.state for name, run in result.tasks.items()} == {
        "bad": "failed", "below": "upstream_failed", "other": "succeeded",
    }  # fmt: skip
    assert result.errors["bad"] is error
    assert result.tasks["bad"].attempts == 1
    with pytest.raises(DAGExecutionError) as caught:
        result.raise_for_failure()
    (failure,) = caught.value.exceptions
    assert failure.__cause__ is error
    assert type(error).__name__ in str(failure)
    assert len(str(failure)) < 1000
    assert type(error).__name__ in result.summary()
    assert len([event for event in events if getattr(event, "task_name", "") == "bad"]) == (3 if watched else 0)
    assert finished(dag, executor=executor)["other"] == 1


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "CancelledError", "BaseException"])
def test_what_is_no_exception_is_not_retried_by_default(name, executor):
    result = finished(alone(raising(HOSTILE[name]), retries=3, delay=0), executor=executor)
    assert result.tasks["t"].attempts == 1


def test_what_is_no_exception_is_retried_on_request(executor):
    result = finished(alone(raising(SystemExit(3)), retries=2, delay=0, retry_on=SystemExit), executor=executor)
    assert result.tasks["t"].attempts == 3


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()], ids=lambda e: type(e).__name__)
def test_a_cancellation_that_nobody_asked_for_is_a_failure(error, executor):
    with pytest.raises(TaskExecutionError, match=f"raised {type(error).__name__} but was not cancelled") as caught:
        alone(raising(error)).run(executor=executor)
    assert caught.value.result.tasks["t"].state == "failed"


def test_sys_exit_in_a_task_does_not_end_the_process(executor):
    with pytest.raises(TaskExecutionError, match="SystemExit: 3"):
        alone(lambda: sys.exit(3)).run(executor=executor)


def test_keyboard_interrupt_raised_by_a_task_is_no_ctrl_c(executor):
    """other goes on: only a real SIGINT interrupts a run."""
    dag = DAG("etl", tasks=[Task("t", raising(KeyboardInterrupt())), Task("other", one)])
    with pytest.raises(DAGExecutionError) as caught:
        dag.run(executor=executor, fail_fast=False)
    assert caught.value.result == {"other": 1}


@pytest.mark.parametrize("order", [Skip, GiveUp], ids=lambda c: c.__name__)
def test_an_order_with_a_broken_text_is_obeyed(order, executor):
    class Broken(order):
        def __str__(self):
            raise RuntimeError("no text")

    result = finished(alone(raising(Broken()), retries=3, delay=0), executor=executor)
    assert result.tasks["t"].state == {Skip: "skipped", GiveUp: "failed"}[order]
    assert result.tasks["t"].attempts == 1


@pytest.mark.parametrize("seconds", [-1, NAN, INF, "3", True], ids=repr)
def test_a_bad_wait_in_retry_after_fails_the_task(seconds, executor):
    def limited():
        raise RetryAfter(seconds)

    result = finished(alone(limited), executor=executor)
    assert type(result.errors["t"]) is OptionError


@pytest.mark.parametrize("seconds", ["120", None, NAN, INF, -5], ids=repr)
def test_a_retry_after_of_ones_own_with_a_bad_wait_does_not_stop_the_run(seconds, executor):
    """A subclass that copies a header of the response as it came."""

    class Limited(RetryAfter):
        def __init__(self):
            self.seconds = seconds

    def limited():
        raise Limited

    result = finished(alone(limited, retries=1, delay=0), executor=executor)
    assert result.failed == ["t"]


# ---------------------------------------------------------------- code that only watches


class Rude:
    """A hook that raises, and whose repr raises too."""

    def __call__(self, *_):
        raise RuntimeError("broken hook")

    def __repr__(self):
        raise RuntimeError("no repr")


def broken(*_):
    raise RuntimeError("broken hook")


def exiting(*_):
    raise SystemExit("broken hook")


HOOKS = {"raises": broken, "raises SystemExit": exiting, "raises in its repr too": Rude()}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_broken_retry_predicate_means_no(hook, executor, log):
    result = finished(alone(raising(ConnectionError("refused")), retries=3, delay=0, retry_on=hook), executor=executor)
    assert (result.tasks["t"].state, result.tasks["t"].attempts) == ("failed", 1)
    assert str(result.errors["t"]) == "refused"
    assert "retry_on" in log.text
    assert "broken hook" in log.text


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("option", ["on_success", "on_failure", "on_retry"])
def test_a_broken_callback_changes_nothing(option, hook, executor, log):
    """good ─► below      bad, tried twice"""
    good, below = Task("good", one, **{option: hook}), Task("below", lambda x: x)
    bad = Task("bad", raising(ConnectionError("refused")), retries=1, delay=0, **{option: hook})
    good >> below
    result = finished(DAG("etl", tasks=[below, bad]), executor=executor)
    assert result == {"good": 1, "below": 1}
    assert (result.failed, result.tasks["bad"].attempts) == (["bad"], 2)
    assert "callback" in log.text
    assert ("'good'" if option == "on_success" else "'bad'") in log.text
    assert "broken hook" in log.text


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_broken_observer_is_dropped_and_changes_nothing(hook, executor, log):
    a, b = Task("a", one), Task("b", lambda x: x)
    a >> b
    events = []
    result = finished(DAG("etl", tasks=[b]), executor=executor, observers=[hook, events.append])
    assert result == {"a": 1, "b": 1}
    assert [type(event).__name__ for event in events] == [
        "RunStarted", "AttemptStarted", "TaskSucceeded", "AttemptStarted", "TaskSucceeded", "RunFinished",
    ]  # fmt: skip
    assert log.text.count("observer") >= 1
    assert len([record for record in log.records if "observer" in record.message]) == 1
    assert "broken hook" in log.text


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_broken_cleanup_handler_does_not_keep_the_others_from_running(hook, executor, log):
    cleaned = []

    def fail(context):
        context.add_cleanup_handler(lambda: cleaned.append("first"))
        context.add_cleanup_handler(lambda: hook())
        context.add_cleanup_handler(hook)
        context.add_cleanup_handler(lambda: cleaned.append("last"))
        raise ValueError("no")

    result = finished(alone(fail), executor=executor)
    assert (result.failed, cleaned) == (["t"], ["last", "first"])
    assert "cleanup handler" in log.text
    assert "broken hook" in log.text


@pytest.mark.parametrize("handler", [None, 3, "close", coroutine_function.__name__], ids=repr)
def test_a_cleanup_handler_is_callable(handler, executor):
    with pytest.raises(TaskExecutionError) as caught:
        alone(lambda context: context.add_cleanup_handler(handler)).run(executor=executor)
    assert type(caught.value.__cause__) is TypeError
    assert "a cleanup handler must be callable without arguments" in str(caught.value)


def test_a_broken_log_handler_changes_nothing(executor, monkeypatch):
    """The application's handler raises while flowkit reports a broken observer."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise OSError("the disk is full")

    handler = Broken()
    logger = logging.getLogger("flowkit")
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "propagate", False)
    try:
        result = finished(alone(one), executor=executor, observers=[broken])
    finally:
        logger.removeHandler(handler)
    assert result == {"t": 1}


# ---------------------------------------------------------------- results that cannot be handed on


class Once:
    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


class AsyncOnce:
    def __aiter__(self):
        return self

    async def __anext__(self):
        raise StopAsyncIteration


CANNOT_BE_HANDED_ON = {
    "generator": (generator_function, "returned a generator.*return a list"),
    "iterator": (lambda: iter([1]), "returned a list_iterator.*return a list"),
    "map": (lambda: map(str, [1]), "returned a map.*return a list"),
    "count": (itertools.count, "returned a count.*return a list"),
    "own iterator": (Once, "returned an? Once.*return a list"),
    "async generator": (async_generator_function, "returned an async_generator.*return a list"),
    "own async iterator": (AsyncOnce, "returned an? AsyncOnce.*return a list"),
    "coroutine": (lambda: coroutine_function(), "returned a coroutine: make it async def"),
    "awaitable": (Awaitable, "returned an? Awaitable: make it async def"),
}


@pytest.mark.parametrize(("func", "words"), CANNOT_BE_HANDED_ON.values(), ids=CANNOT_BE_HANDED_ON)
@pytest.mark.parametrize("options", [{}, {"retries": 3, "delay": 0}, {"timeout": 60}], ids=str)
def test_what_is_empty_after_its_first_reader_is_no_result(func, words, options, executor):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(TaskExecutionError, match=f"task 't' {words}") as caught:
            alone(func, **options).run(executor=executor)
        gc.collect()
    assert type(caught.value.__cause__) is TaskResultError
    assert caught.value.attempts == 1
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.parametrize(
    "value",
    [
        range(3),
        {}.keys(),
        b"",
        1j,
        NAN,
        threading.Lock(),
        Ambiguous(),
        one,
        Exception,
        NotImplemented,
        ...,
        memoryview(b"x"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_other_value_is_a_result(value, executor):
    assert alone(lambda: value).run(executor=executor)["t"] is value


def test_an_open_file_is_a_result(executor, tmp_path):
    """A file is an iterator too, but has more to give; it passes between threads."""
    path = tmp_path / "rows"
    path.write_text("a\nb\n")
    opened, read = Task("opened", path.open), Task("read", lambda file: file.read())
    opened >> read
    result = DAG("etl", tasks=[read]).run(executor=executor)
    result["opened"].close()
    assert result["read"] == "a\nb\n"


# ---------------------------------------------------------------- runs inside of runs, loops, and one another


def test_runs_may_be_nested(executor):
    """Depth five, one worker each: every run has its own."""

    def nested(depth):
        inner = Task("t", lambda: nested(depth - 1) if depth else current_context().run_id)
        result = DAG("nested", tasks=[inner]).run(executor=executor, max_workers=1)
        assert result["t"] != result.run_id or not depth
        return result["t"]

    assert len(nested(5)) == 12


def test_a_dag_may_run_itself_in_one_of_its_tasks(executor):
    depth = itertools.count()

    def again():
        return dag.run(executor=executor, max_workers=1)["t"] + 1 if next(depth) < 5 else 0

    dag = alone(again)
    assert dag.run(executor=executor, max_workers=1)["t"] == 5


def test_the_context_of_the_outer_run_is_back_after_an_inner_one(executor):
    def outer():
        inner = DAG("inner", tasks=[Task("in", lambda: current_context().task_name)]).run(executor=executor)["in"]
        return inner, current_context().task_name

    assert alone(outer).run(executor=executor)["t"] == ("in", "t")


def test_one_dag_runs_many_times_at_once():
    a, b = Task("a", lambda x: x), Task("b", lambda a: a + 1)
    a >> b
    dag = DAG("etl", tasks=[b])
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: dag.run({"x": x}), range(200)))
    assert [result["b"] for result in results] == list(range(1, 201))
    assert len({result.run_id for result in results}) == 200


def test_a_run_inside_of_an_event_loop_works(executor):
    """It blocks that loop, and leaves nothing that was never awaited."""

    async def notebook():
        return alone(one).run(executor=executor)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert asyncio.run(notebook()) == {"t": 1}
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


def test_wiring_that_changes_during_a_run_is_for_later_runs(executor):
    """a ─► b; while a runs, late ─► b is wired and b ─► more."""
    late, more = Task("late", lambda: "late"), Task("more", lambda *_: "more")

    def rewire():
        late >> b
        b >> more
        return "a"

    a, b = Task("a", rewire), Task("b", lambda *args: args)
    a >> b
    dag = DAG("etl", tasks=[b])
    assert dag.run(executor=executor) == {"a": "a", "b": ("a",)}
    assert dag.run(executor=executor) == {"a": "a", "b": ("a", "late"), "late": "late"}
    assert DAG("all", tasks=[more]).run(executor=executor)["more"] == "more"


def test_lists_changed_by_hand_during_a_run_are_for_later_runs(executor):
    def rewire():
        b.upstream.clear()
        a.downstream.clear()
        return "a"

    a, b = Task("a", rewire), Task("b", lambda *args: args)
    a >> b
    dag = DAG("etl", tasks=[a, b])
    assert dag.run(executor=executor)["b"] == ("a",)
    assert dag.run(executor=executor)["b"] == ()


@pytest.mark.parametrize("step", [-3600, 3600])
def test_stepping_the_wall_clock_changes_neither_waits_nor_timeouts(step, executor, monkeypatch):
    """Every reading of the wall clock is an hour further; the run goes by the monotonic one."""
    readings = itertools.count(time.time(), step)
    tries = []

    def flaky():
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError
        return "done"

    monkeypatch.setattr(time, "time", lambda: next(readings))
    result = alone(flaky, retries=5, delay=0.01, timeout=20).run(executor=executor, timeout=20)
    assert (result["t"], result.tasks["t"].attempts) == ("done", 3)
    assert 0.02 < result.duration < 10
    assert 0.02 < result.tasks["t"].duration < 10


# ---------------------------------------------------------------- the end of the process


TRY_TO_RUN = """
from flowkit import DAG, FlowkitError, Task
dag = DAG("late", tasks=[Task("t", lambda: "ran")])
def attempt():
    try:
        print(dag.run(executor={executor!r})["t"], flush=True)
    except FlowkitError as error:
        print(type(error).__name__, error, flush=True)
"""


def test_a_run_from_atexit_ends_or_says_that_the_interpreter_shuts_down(script, executor):
    """Whether threads may still start then depends on Python's version."""
    done = script(TRY_TO_RUN.format(executor=executor) + "import atexit; atexit.register(attempt)").finish()
    assert done.returncode == 0, done.err
    assert re.fullmatch("ran|FlowkitError .*interpreter.* shut.*", done.out.strip()), done.out
    assert executor != "sequential" or done.out.strip() == "ran"
    assert "Traceback" not in done.err


def test_a_run_from_a_finalizer_says_that_the_interpreter_shuts_down(script, executor):
    code = TRY_TO_RUN.format(executor=executor) + textwrap.dedent("""
        class Late:
            def __del__(self):
                attempt()
        _late = Late()   # names with an underscore go first, when all that it needs is still there
    """)
    done = script(code).finish()
    assert (done.returncode, done.err) == (0, "")
    assert re.fullmatch("FlowkitError .*the interpreter is shutting down.*", done.out.strip()), done.out


def test_a_run_in_a_daemon_thread_does_not_keep_the_process(script, executor):
    code = (
        TRY_TO_RUN.format(executor=executor)
        + textwrap.dedent("""
        import threading, time
        def forever():
            while True:
                dag.run(executor=%r)
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.1)
        print("end of main", flush=True)
    """)
        % executor
    )
    done = script(code).finish()
    assert (done.returncode, done.out.strip()) == (0, "end of main"), done.err


def test_a_stuck_task_does_not_keep_the_process(script):
    done = script("""
        import time
        from flowkit import DAG, Task
        handle = DAG("stuck", tasks=[Task("t", lambda: time.sleep(60))]).start()
        print(handle.done(), flush=True)
    """).finish()
    assert (done.returncode, done.out.strip()) == (0, "False"), done.err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_sees_a_closed_run_and_the_parent_its_own(script):
    done = script("""
        import os, threading, warnings
        from flowkit import DAG, FlowkitError, Task
        warnings.simplefilter("ignore")   # 3.12 on warns of forks with threads: that is what is tried here
        gate, started = threading.Event(), threading.Event()
        def work():
            started.set()
            return gate.wait(30)
        handle = DAG("forked", tasks=[Task("t", work)]).start()
        started.wait(10)
        child = os.fork()
        if child == 0:
            try:
                handle.result(timeout=5)
            except FlowkitError as error:
                print("child:", type(error).__name__, error, flush=True)
            os._exit(7)
        print("child exited with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        gate.set()
        print("parent:", dict(handle.result(timeout=5)), flush=True)
    """).finish()
    assert done.returncode == 0, done.err
    child, exited, parent = done.out.splitlines()
    assert re.match("child: FlowkitError .*forked", child)
    assert (exited, parent) == ("child exited with 7", "parent: {'t': True}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_inside_of_a_task_leaves_the_run_to_the_parent(script, executor):
    """The child goes on in the middle of the task, and must neither report back nor run anything again."""
    done = script(f"""
        import os, warnings
        from flowkit import DAG, FlowkitError, Task
        warnings.simplefilter("ignore")
        parent = os.getpid()
        def work():
            if os.getpid() != parent:
                print("child: ran again", flush=True)
                os._exit(9)
            child = os.fork()
            if child:
                os.waitpid(child, 0)
            return "parent" if child else "child"
        try:
            said = dict(DAG("forked", tasks=[Task("t", work)]).run(executor={executor!r}))
        except FlowkitError as error:
            said = error
        if os.getpid() != parent:
            print("child:", said, flush=True)
            os._exit(7)
        print("parent:", said, flush=True)
    """).finish()
    assert done.returncode == 0, done.err
    *child, parent = done.out.splitlines()
    assert parent == "parent: {'t': 'parent'}"
    # A worker thread is all that there is of the run in a child, and ends without a word.
    assert [line for line in child if not re.match("child: .*forked", line)] == []
    assert len(child) == (executor == "sequential")


# ---------------------------------------------------------------- what this version does not have

NOT_YET_RUN = {"progress": True}


def refusal(name, refuse):
    return pytest.param(refuse, id=name)


@pytest.mark.parametrize(
    "refuse",
    [
        *[refusal(f"run({k}={v!r})", lambda k=k, v=v: alone(one).run(**{k: v})) for k, v in NOT_YET_RUN.items()],
        *[refusal(f"DAG({k}={v!r})", lambda k=k, v=v: DAG("etl", **{k: v})) for k, v in NOT_YET_RUN.items()],
    ],
)
def test_what_is_not_built_yet_is_refused_rather_than_ignored(refuse):
    with pytest.raises(OptionError, match=r"this version|must be one of"):
        refuse()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"state": "state.json"}, r"state='state.json' must be a StateManager or .* Write state=StateManager\('state"),
        ({"state": Path("state.json")}, r"Write state=StateManager\('state.json'\)"),
        ({"state": 3}, "state=3 must be a StateManager"),
        ({"resume": "yes"}, "resume='yes' must be True or False"),
        ({"resume": True}, r"resume=True needs a state"),
    ],
)
def test_a_run_with_no_good_state_is_refused(options, text):
    with pytest.raises(OptionError, match=text):
        alone(one).run(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"persist": None}, "persist=None must be True or False"), ({"version": 2}, "version=2 must be a string")],
)
def test_an_option_about_kept_results_is_checked(options, text):
    with pytest.raises(OptionError, match=text):
        Task("t", one, **options)


def test_flowkit_errors_are_the_only_ones_of_a_definition():
    """Whoever catches FlowkitError catches every refused definition but a wrong type, which is a TypeError."""
    assert issubclass(DefinitionError, FlowkitError)
    assert issubclass(DefinitionError, ValueError)
