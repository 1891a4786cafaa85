"""Mapped tasks: one attempt for each item, and one result for all."""

import asyncio
import gc
import multiprocessing
import threading
import time
import tracemalloc
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import map_tasks
import process_tasks
import pytest
from strategies import most_at_once

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    BindingError,
    ConditionError,
    DAGExecutionError,
    DefinitionError,
    RetryAfter,
    RunCancelledError,
    RunFinished,
    RunStarted,
    RunTimeoutError,
    Skip,
    Task,
    TaskCancelled,
    TaskExecutionError,
    TaskFailed,
    TaskResultError,
    TaskSkipped,
    TaskSucceeded,
    TaskTimeoutError,
    TaskUpstreamFailed,
    WorkerDiedError,
    chain,
    current_context,
    task,
)
from flowkit.engine.mapping import read_items
from flowkit.engine.program import compile_program
from flowkit.testing import VirtualClock, run_fuzzed

EXECUTORS = ["sequential", "thread", "process", "async", "foreign", "fuzzed"]
FINAL = (TaskSucceeded, TaskFailed, TaskSkipped, TaskUpstreamFailed, TaskCancelled)
PATIENCE = 20


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


@pytest.fixture(params=["sequential", "thread", "fuzzed"])
def quick_executor(request):
    return request.param


def run(dag, executor, inputs=None, **options):
    """Run *dag* on one of EXECUTORS; failures stand in the result unless they are asked for."""
    options = {"raise_on_failure": False, **options}
    if executor == "fuzzed":
        return run_fuzzed(dag, 7, inputs, **options)
    if executor == "foreign":
        with ThreadPoolExecutor(3) as pool:
            return dag.run(inputs, executor=pool, **options)
    return dag.run(inputs, executor=executor, max_workers=3, **options)


def three(func=map_tasks.behave, over=None, **options):
    """source ─► process (mapped) ─► collect; source gives the input "rows"."""
    source, collect = Task("source", map_tasks.echo), Task("collect", map_tasks.keep)
    source >> Task("process", func, delay=0, **options).map(over) >> collect
    return DAG("three", tasks=[collect])


def run_three(executor, rows, *, events=None, **options):
    """Run three() over *rows* with behave(), as a coroutine on "async"; options of the run begin with "run_"."""
    of_run = {name.removeprefix("run_"): options.pop(name) for name in list(options) if name.startswith("run_")}
    func = map_tasks.behave_soon if executor == "async" else map_tasks.behave
    observers = [] if events is None else [events.append]
    return run(three(func, **options), executor, {"rows": rows}, observers=observers, **{"fail_fast": False, **of_run})


def over(rows, func, name="process", **options):
    """Return a DAG in which *func* is mapped over the result *rows* of "source"."""
    mapped = Task(name, func, **options).map()
    Task("source", lambda: rows) >> mapped
    return DAG("over", tasks=[mapped])


def states(result, name="process"):
    return [item.state for item in result.tasks[name].items]


def names_of(events, kind):
    return [event.task_name for event in events if isinstance(event, kind)]


# ---------------------------------------------------------------- what a mapped task gives, on every executor


def test_the_result_is_the_list_of_results_in_the_order_of_the_items(executor):
    result = run_three(executor, [("ok", n) for n in range(7)])
    assert result == {
        "source": [("ok", n) for n in range(7)],
        "process": [10 * n for n in range(7)],
        "collect": [10 * n for n in range(7)],
    }


def test_an_empty_input_gives_an_empty_list(executor):
    result = run_three(executor, [])
    assert (result["process"], result["collect"]) == ([], [])
    assert (result.tasks["process"].state, result.tasks["process"].items) == ("succeeded", ())


def test_one_item_is_a_list_of_one(executor):
    assert run_three(executor, [("ok", 4)])["collect"] == [40]


def test_a_skipped_item_is_none_in_the_result_and_skips_nothing_else(executor):
    result = run_three(executor, [("ok", 1), ("skip", 2), ("ok", 3)])
    assert result["collect"] == result["process"] == [10, None, 30]
    assert states(result) == ["succeeded", "skipped", "succeeded"]
    assert result.tasks["process[1]"].reason == "no 2"
    assert result.skipped == []


def test_a_task_all_of_whose_items_are_skipped_has_succeeded(executor):
    result = run_three(executor, [("skip", 1), ("skip", 2)])
    assert result["collect"] == [None, None]
    assert result.tasks["process"].state == "succeeded"


def test_the_condition_is_asked_about_each_item(executor):
    result = run_three(executor, [("ok", 1), ("off", 2), ("unclear", 3), ("ok", 4)], when=map_tasks.is_wanted)
    assert states(result) == ["succeeded", "skipped", "failed", "succeeded"]
    assert [item.attempts for item in result.tasks["process"].items] == [1, 0, 0, 1]
    assert result.tasks["process[1]"].reason == "when() was false"
    assert isinstance(result.tasks["process[2]"].error, ConditionError)


def test_failed_items_fail_the_task_with_all_their_errors(executor):
    result = run_three(executor, [("ok", 0), ("fail", 1), ("skip", 2), ("fail", 3)])
    assert states(result) == ["succeeded", "failed", "skipped", "failed"]
    failed = result.tasks["process"]
    assert (failed.state, failed.value) == ("failed", None)
    assert failed.reason == "2 of 4 items failed: 'process[1]': ValueError: refused 1, and 1 more"
    assert isinstance(failed.error, ExceptionGroup)
    assert [type(error) for error in failed.error.exceptions] == [TaskExecutionError] * 2
    assert [error.task_name for error in failed.error.exceptions] == ["process[1]", "process[3]"]
    assert [str(error.__cause__) for error in failed.error.exceptions] == ["refused 1", "refused 3"]
    assert result.tasks["process[0]"].value == 0
    assert result.tasks["collect"].state == "upstream_failed"
    assert result.failed == ["process"]
    assert set(result.errors) == {"process"}


def test_without_fail_fast_the_failed_items_are_raised_as_one_task(executor):
    with pytest.raises(DAGExecutionError) as caught:
        run_three(executor, [("fail", 1), ("ok", 2), ("fail", 3)], run_raise_on_failure=True)
    (failure,) = caught.value.exceptions
    assert failure.task_name == "process"
    assert len(failure.__cause__.exceptions) == 2


def test_with_fail_fast_the_task_is_raised_with_the_group_as_its_cause(executor):
    with pytest.raises(TaskExecutionError) as caught:
        run_three(executor, [("fail", 1)] * 3, run_fail_fast=True, run_raise_on_failure=True)
    assert caught.value.task_name == "process"
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    result = caught.value.result
    assert "failed" in states(result)
    assert set(states(result)) <= {"failed", "cancelled"}
    assert (result.state, result.failed) == ("failed", ["process"])


def test_each_item_has_its_own_attempts(executor):
    rows = [("flaky", 0), ("ok", 1), ("give_up", 2), ("fail", 3), ("retry_after", 4)]
    result = run_three(executor, rows, retries=2)
    assert [item.attempts for item in result.tasks["process"].items] == [2, 1, 1, 3, 2]
    assert states(result) == ["succeeded", "succeeded", "failed", "failed", "succeeded"]
    assert [item.value for item in result.tasks["process"].items] == [0, 10, None, None, 40]
    assert result.tasks["process"].attempts == 1


def test_each_item_has_a_record_of_its_own(executor):
    result = run_three(executor, [("ok", n) for n in range(4)])
    parent = result.tasks["process"]
    for n, item in enumerate(parent.items):
        by_name = result.tasks[f"process[{n}]"]
        assert (by_name.name, by_name.state, by_name.value) == (f"process[{n}]", "succeeded", 10 * n)
        assert (item.name, item.value, item.items) == (by_name.name, by_name.value, ())
        assert parent.started_at <= item.started_at <= item.ended_at <= parent.ended_at
        assert item.worker
        assert item.duration <= parent.duration


def test_items_are_not_counted_among_the_tasks(executor):
    result = run_three(executor, [("ok", n) for n in range(4)])
    names = ["source", "process", "collect"]
    assert list(result) == list(result.tasks) == list(result.to_dict()["tasks"]) == names
    assert (len(result), len(result.tasks)) == (3, 3)
    assert [name for name, _ in result.items()] == [name for name, _ in result.tasks.items()] == names
    assert "process[0]" not in result
    assert "[0]" not in result.summary()
    assert "[0]" not in result._repr_html_()
    assert "3 succeeded" in result.summary()
    with pytest.raises(KeyError, match="no task of 'three' is named"):
        result["process[0]"]


def test_each_item_has_events_and_exactly_one_final_one(executor):
    events = []
    rows = [("ok", 0), ("flaky", 1), ("skip", 2), ("fail", 3)]
    result = run_three(executor, rows, retries=1, events=events)
    items = [f"process[{n}]" for n in range(4)]
    finals = names_of(events, FINAL)
    assert Counter(finals) == Counter([*items, *result.tasks])
    assert finals.index("process") > max(map(finals.index, items))
    assert Counter(names_of(events, AttemptStarted)) == Counter(
        ["source", "process[0]", "process[1]", "process[1]", "process[2]", "process[3]", "process[3]"]
    )
    assert Counter(names_of(events, AttemptFailed)) == Counter(["process[1]", "process[3]", "process[3]"])
    assert names_of(events, TaskSkipped) == ["process[2]"]
    for item in items:
        own = [event for event in events if getattr(event, "task_name", None) == item]
        assert isinstance(own[-1], FINAL)
        assert isinstance(own[0], AttemptStarted)


def test_both_ends_of_a_run_tell_the_same_number_of_tasks(executor):
    events = []
    run_three(executor, [("ok", n) for n in range(4)], events=events)
    ends = [event.total_tasks for event in events if isinstance(event, RunStarted | RunFinished)]
    assert ends == [3, 3]


def test_the_context_of_an_item_has_the_name_of_the_item(executor):
    func = map_tasks.look_around_soon if executor == "async" else map_tasks.look_around
    result = run(three(func), executor, {"rows": ["abc"] * 2})
    assert result["process"] == [(f"process[{n}]", 1, ["source"]) for n in range(2)]


def test_the_items_of_an_upstream_task_can_be_seen_in_the_context(executor):
    """source ─► process (mapped) ─► look"""
    source, process = Task("source", map_tasks.echo), Task("process", map_tasks.double).map()
    look = Task("look", map_tasks.count_upstream_items)
    source >> process >> look
    assert run(DAG("etl", tasks=[look]), executor, {"rows": [1, 2, 3]})["look"] == [3]


def test_the_other_arguments_go_to_every_item_by_name_and_by_position(executor):
    """xs, ten ─► scale (mapped over its first parameter), with the input "offset" """
    scale = Task("scale", map_tasks.scale).map()
    [Task("xs", map_tasks.echo), Task("ten", map_tasks.ten)] >> scale
    result = run(DAG("etl", tasks=[scale]), executor, {"rows": [1, 2, 3], "offset": 7})
    assert result["scale"] == [17, 27, 37]


def test_a_mapped_task_may_be_mapped_over_an_input(executor):
    process = Task("process", map_tasks.double).map()
    assert run(DAG("etl", tasks=[process]), executor, {"x": [1, 2, 3]}) == {"process": [2, 4, 6]}


def test_mapped_tasks_in_a_chain_each_take_the_list_of_the_one_before(executor):
    """source ─► a (mapped) ─► b (mapped) ─► c (mapped) ─► collect"""
    func = map_tasks.double_soon if executor == "async" else map_tasks.double
    collect = Task("collect", map_tasks.keep)
    chain(Task("source", map_tasks.echo), *(Task(name, func).map() for name in "abc"), collect)
    result = run(DAG("etl", tasks=[collect]), executor, {"rows": [1, 2, 3]})
    assert result["collect"] == [8, 16, 24]
    assert result.tasks["b[2]"].value == 12


def test_empty_lists_run_down_a_chain_of_mapped_tasks(executor):
    collect = Task("collect", map_tasks.keep)
    chain(Task("source", map_tasks.echo), *(Task(name, map_tasks.double).map() for name in "abc"), collect)
    assert run(DAG("etl", tasks=[collect]), executor, {"rows": []})["collect"] == []


def test_two_mapped_tasks_may_take_the_same_result(executor):
    """source ─► a (mapped), b (mapped); both ─► repeat (mapped over b, each item with all of a) ─► collect"""
    source, collect = Task("source", map_tasks.echo), Task("collect", map_tasks.keep)
    a, b = (Task(name, map_tasks.double).map() for name in "ab")
    source >> [a, b] >> Task("repeat", map_tasks.repeat).map(over="times") >> collect
    result = run(DAG("etl", tasks=[collect]), executor, {"rows": [1, 2]})
    assert (result["a"], result["b"]) == ([2, 4], [2, 4])
    assert result["collect"] == [[2, 4] * 2, [2, 4] * 4]


# ---------------------------------------------------------------- what can be mapped over


class Rows:
    """Like an array: sized, iterable, and without a truth value."""

    def __init__(self, *rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, place):
        return self._rows[place]

    def __iter__(self):
        return iter(self._rows)

    def __bool__(self):
        raise ValueError("an array has no truth value")

    __eq__ = __hash__ = None


@pytest.mark.parametrize(
    "value",
    [
        [1, 2], (1, 2), range(1, 3), {1: "a", 2: "b"}.keys(), {"a": 1, "b": 2}.values(), frozenset([1, 2]),
        {1, 2}, deque([1, 2]), Rows(1, 2), memoryview(b"\x01\x02"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_every_sized_iterable_can_be_mapped_over(value):
    assert read_items("process", value) == [1, 2]
    assert over(value, map_tasks.double).run()["process"] == [2, 4]


def test_pairs_of_a_mapping_can_be_mapped_over():
    assert over({"a": 1}.items(), lambda pair: pair).run()["process"] == [("a", 1)]


def test_a_sequence_without_iter_can_be_mapped_over_as_it_can_be_looped_over():
    class Old:
        def __len__(self):
            return 2

        def __getitem__(self, place):
            return (1, 2)[place]

    assert over(Old(), map_tasks.double).run()["process"] == [2, 4]


@pytest.mark.parametrize("items", [[None, None], [[], []], [0, 0], ["", ""]])
def test_items_may_be_anything(items):
    assert over(items, lambda item: [item]).run()["process"] == [[item] for item in items]


def test_a_mapped_task_that_waits_while_another_stops_the_run_is_started_once(quick_executor):
    """source ─► refused (mapped over 3, fails) and source ─► each (mapped, all_done): both become ready at once"""
    called, read = [], []

    class Rows(list):
        def __iter__(self):
            read.append(self)
            return super().__iter__()

    source = Task("source", lambda: Rows([1, 2]))
    refused = source >> Task("refused", lambda source, number: pytest.fail("called")).map("number")
    each = source >> Task("each", lambda row: called.append(row), trigger="all_done").map()
    result = run(DAG("two", tasks=[refused, each]), quick_executor, {"number": 3})
    assert (result.tasks["refused"].state, result.tasks["each"].state) == ("failed", "succeeded")
    assert (sorted(called), len(read)) == ([1, 2], 1)


def test_items_are_read_when_the_task_starts_and_what_happens_to_the_list_then_changes_nothing():
    rows = [1, 2, 3]

    def clear(x):
        rows.clear()
        return x

    assert over(rows, clear).run(max_workers=1)["process"] == [1, 2, 3]


@pytest.mark.parametrize("value", ["abc", b"abc", bytearray(b"abc"), {"a": 1}, 3, None, 1.5, object(), len])
def test_what_is_no_sized_iterable_fails_the_task(value, quick_executor):
    dag = over(value, lambda x: pytest.fail("called"), retries=2)
    result = run(dag, quick_executor, fail_fast=False)
    refused = result.tasks["process"]
    assert (refused.state, refused.items) == ("failed", ())
    assert isinstance(refused.error, TaskResultError)
    assert "task 'process' is mapped over" in str(refused.error)
    assert type(value).__name__ in str(refused.error)


def test_a_mapping_is_refused_with_the_way_out():
    with pytest.raises(TaskResultError, match=r"Write list\(.*items\(\)\)"):
        read_items("process", {"a": 1})


def test_a_generator_given_as_an_input_fails_the_task():
    process = Task("process", map_tasks.double).map()
    result = DAG("etl", tasks=[process]).run({"x": (n for n in range(3))}, raise_on_failure=False)
    assert isinstance(result.tasks["process"].error, TaskResultError)


class Broken:
    """Is sized, and raises when it is read."""

    def __init__(self, error=None, size=3):
        self._error = error
        self._size = size

    def __len__(self):
        return self._size

    def __iter__(self):
        yield 1
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3), Skip("no")])
def test_an_iterable_that_raises_fails_the_task_with_its_error(error, quick_executor):
    result = run(over(Broken(error), map_tasks.double), quick_executor)
    assert result.tasks["process"].state == "failed"
    assert result.tasks["process"].error is error
    assert result.state == "failed"


@pytest.mark.parametrize("size", [0, 1, 3, 1_000_000])
def test_items_are_those_that_come_whatever_the_size_says(size, quick_executor):
    assert run(over(Broken(size=size), map_tasks.double), quick_executor)["process"] == [2]


def test_a_refused_task_has_no_event_of_an_attempt_that_never_started(quick_executor):
    events = []
    run(over(None, map_tasks.double), quick_executor, observers=[events.append])
    of_task = [event for event in events if getattr(event, "task_name", None) == "process"]
    assert [type(event) for event in of_task] == [TaskFailed]


# ---------------------------------------------------------------- how it is called


def test_over_names_the_parameter_that_gets_the_items():
    @task
    def tag(label, row, *, sign="-"):
        return f"{label}{sign}{row}"

    @task
    def label():
        return "x"

    @task
    def row():
        return [1, 2]

    [label, row] >> (mapped := tag.map(over="row"))
    assert DAG("etl", tasks=[mapped]).run({"sign": "+"})["tag"] == ["x+1", "x+2"]


def test_a_keyword_only_parameter_may_get_the_items():
    rows, mapped = Task("rows", lambda: [1, 2]), Task("process", lambda *, rows: -rows).map(over="rows")
    rows >> mapped
    assert DAG("etl", tasks=[mapped]).run()["process"] == [-1, -2]


def test_the_context_is_not_the_first_parameter():
    def process(context, x):
        return context.task_name, x

    assert over([5, 6], process).run()["process"] == [("process[0]", 5), ("process[1]", 6)]


def test_an_item_and_the_whole_list_do_not_reach_the_same_call_twice():
    """The condition takes the item by the name of the parameter, and the other upstream task by its name."""
    asked = []
    rows, limit = Task("rows", lambda: [1, 5, 9]), Task("limit", lambda: 4)
    process = Task(
        "process", lambda rows, limit: rows, when=lambda limit, rows: asked.append((rows, limit)) or rows > limit
    ).map()
    [rows, limit] >> process
    result = DAG("etl", tasks=[process]).run(executor="sequential")
    assert result["process"] == [None, 5, 9]
    assert asked == [(1, 4), (5, 4), (9, 4)]


def test_star_args_get_the_item_first():
    process = Task("process", lambda *given: given).map()
    [Task("a", lambda: [1, 2]), Task("b", lambda: "b")] >> process
    assert DAG("etl", tasks=[process]).run()["process"] == [(1, "b"), (2, "b")]


def test_five_arguments_arrive_in_order():
    process = Task("process", lambda a, b, c, d, e: (a, b, c, d, e)).map()
    [Task("first", lambda: [1, 2]), *(Task(name, lambda name=name: name) for name in "wxyz")] >> process
    assert DAG("etl", tasks=[process]).run()["process"] == [(1, *"wxyz"), (2, *"wxyz")]


def test_what_orders_only_is_not_passed():
    process = Task("process", lambda x: x).map()
    Task("source", lambda: [1]) >> process
    process.after(Task("before", lambda: 0))
    assert DAG("etl", tasks=[process]).run()["process"] == [1]


def test_a_skipped_other_upstream_is_none_for_every_item():
    @task
    def idle():
        raise Skip("no")

    process = Task("process", lambda x, idle: (x, idle)).map()
    [Task("source", lambda: [1, 2]), idle] >> process
    assert DAG("etl", tasks=[process]).run()["process"] == [(1, None), (2, None)]


@pytest.mark.parametrize("func", [lambda: 1, lambda context: 1])
def test_a_function_that_takes_no_result_cannot_be_mapped(func):
    with pytest.raises(BindingError, match="is mapped, and nothing gives"):
        over([1], func).validate()


def test_a_mapped_task_without_upstream_and_input_is_refused_before_anything_runs():
    ran = []
    process = Task("process", lambda x=None: ran.append(x)).map()
    dag = DAG("etl", tasks=[Task("other", lambda: ran.append(0)), process])
    for call in (dag.validate, dag.run):
        with pytest.raises(BindingError, match=r"process.*nothing gives its first parameter the items"):
            call()
    assert ran == []


def test_a_setting_that_is_named_but_not_given_is_refused():
    process = Task("process", lambda x, limit=10: x).map(over="limit")
    Task("source", lambda: [1]) >> process
    with pytest.raises(BindingError, match="parameter 'limit'"):
        DAG("etl", tasks=[process]).validate()


def test_validate_lists_a_mapped_task_among_the_problems():
    first, second = Task("first", lambda: 1).map(), Task("second", lambda x: x)
    with pytest.raises(DefinitionError) as caught:
        DAG("etl", tasks=[first, second]).validate()
    assert "2 problems" in str(caught.value)


def test_a_builtin_may_be_mapped(executor):
    source, process = Task("source", map_tasks.echo), Task("process", abs).map()
    source >> process
    assert run(DAG("etl", tasks=[process]), executor, {"rows": [-1, 2]})["process"] == [1, 2]


@pytest.mark.parametrize("builtin", [int, min])
def test_a_builtin_without_a_signature_that_refuses_an_item_fails_it(builtin, executor):
    """min(3) is a TypeError, and so is int(None)."""
    rows = [None, 3] if builtin is int else [3, [3]]
    source, process = Task("source", map_tasks.echo), Task("process", builtin).map()
    source >> process
    if executor == "foreign":
        handle = DAG("etl", tasks=[process]).start({"rows": rows}, executor=(pool := ThreadPoolExecutor(1)))
    else:
        handle = DAG("etl", tasks=[process]).start({"rows": rows}, executor=executor.replace("fuzzed", "thread"))
        pool = None
    try:
        with pytest.raises(TaskExecutionError):
            handle.result(5)
    finally:
        handle.cancel()
        if pool is not None:
            pool.shutdown()


# ---------------------------------------------------------------- names


def test_a_task_with_the_name_of_an_item_is_found_first():
    dag = DAG("etl", tasks=[*over([1, 2], lambda x: x)._tasks, Task("process[1]", lambda: "mine")])
    result = dag.run()
    assert result.tasks["process[1]"].value == "mine"
    assert result.tasks["process[0]"].value == 1
    assert result.tasks["process"].items[1].value == 2
    assert result["process[1]"] == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "process[2]", "process[-1]", "process[]", "process[x]", "process[1", "process 1]", "process[1]x", "[0]",
        "source[0]", "process[0][0]", "process[1.0]", "process[²]", "process[" + "9" * 5000 + "]",
    ],
)  # fmt: skip
def test_there_is_no_other_item_by_name(name):
    result = over([1, 2], lambda x: x).run()
    assert name not in result.tasks
    assert result.tasks.get(name) is None
    with pytest.raises(KeyError, match="no task is named"):
        result.tasks[name]


@pytest.mark.parametrize("key", [3, None, ("process", 0), b"process[0]"])
def test_a_key_that_is_no_name_is_not_found(key):
    result = over([1, 2], lambda x: x).run()
    assert key not in result.tasks
    assert result.tasks.get(key) is None


def test_the_name_of_a_mapped_task_may_have_brackets():
    result = over([[1, 2], [3]], sum, name="a[b]").run()
    assert result.tasks["a[b][1]"].value == 3


# ---------------------------------------------------------------- timeouts


def slow(clock, lengths):
    """Return a function that takes lengths[x] virtual seconds for the item x."""

    def work(x):
        clock.sleep(lengths[x])
        return x

    return work


def test_each_item_on_a_thread_has_its_own_timeout(may_abandon):
    clock = VirtualClock()
    dag = over(range(3), slow(clock, [0, 9, 1]), timeout=5)
    result = clock.run(dag, max_workers=1, fail_fast=False, raise_on_failure=False)
    assert states(result) == ["succeeded", "failed", "succeeded"]
    assert isinstance(result.tasks["process[1]"].error, TaskTimeoutError)
    assert "process[1]" in str(result.tasks["process[1]"].error)
    assert (result.tasks["process"].state, result.abandoned_threads) == ("failed", 1)


def test_the_timeout_of_a_mapped_task_is_not_one_for_all_items():
    clock = VirtualClock()
    result = clock.run(over(range(4), slow(clock, [4] * 4), timeout=5), max_workers=1)
    assert result["process"] == [0, 1, 2, 3]
    assert result.duration >= 16


def test_an_item_that_timed_out_is_retried_alone(may_abandon):
    clock, calls = VirtualClock(), []

    def work(x, context):
        calls.append(x)
        clock.sleep(9 if (x, context.attempt) == (1, 1) else 0)
        return x

    result = clock.run(over(range(3), work, timeout=5, retries=1, delay=1), max_workers=2)
    assert result["process"] == [0, 1, 2]
    assert sorted(calls) == [0, 1, 1, 2]


def test_eight_items_left_behind_fail_the_run(may_abandon):
    clock = VirtualClock()
    dag = over(range(20), slow(clock, [99] * 20), timeout=5)
    result = clock.run(dag, max_workers=1, fail_fast=False, raise_on_failure=False)
    assert result.abandoned_threads == 8
    assert states(result) == ["failed"] * 8 + ["cancelled"] * 12
    assert (result.state, result.failed) == ("failed", ["process"])


def test_eight_items_left_behind_fail_the_run_although_another_item_runs_longer(may_abandon):
    """Eight items time out at 1 s; the ninth worker is in the last item then, and does not end in the grace."""
    clock, events = VirtualClock(), []
    dag = over(range(10), slow(clock, [99] * 8 + [0.9, 99]), timeout=1)
    result = clock.run(dag, max_workers=9, fail_fast=False, raise_on_failure=False, observers=[events.append])
    assert states(result) == ["failed"] * 8 + ["succeeded", "cancelled"]
    assert result.tasks["process"].state == "failed"
    assert (result.state, result.ok) == ("failed", False)
    with pytest.raises(DAGExecutionError):
        result.raise_for_failure()
    assert names_of(events, FINAL)[-1] == "process"


def test_an_item_in_a_process_that_times_out_is_killed_alone():
    result = run(three(map_tasks.hang, timeout=1), "process", {"rows": [0, 1, 2]}, fail_fast=False)
    assert states(result) == ["succeeded", "failed", "succeeded"]
    assert isinstance(result.tasks["process[1]"].error, TaskTimeoutError)
    assert result.abandoned_threads == 0


def test_an_item_that_kills_its_process_fails_alone():
    source, mapped = Task("source", lambda: ["nothing", "os._exit", "nothing"]), Task("process", process_tasks.end)
    mapped = mapped.with_options(executor="process").map()
    source >> mapped
    result = run(DAG("etl", tasks=[mapped]), "thread", fail_fast=False)
    assert states(result) == ["succeeded", "failed", "succeeded"]
    assert isinstance(result.tasks["process[1]"].error, WorkerDiedError)


def test_many_items_in_processes_come_back_in_order():
    result = over(range(1_000), map_tasks.double, executor="process").run(max_workers=2)
    assert result["process"] == [2 * x for x in range(1_000)]
    assert {item.attempts for item in result.tasks["process"].items} == {1}


def test_items_run_on_an_executor_of_processes():
    rows = [("ok", 1), ("flaky", 2), ("off", 3), ("skip", 4), ("fail", 5)]
    dag = three(map_tasks.behave, retries=1, when=map_tasks.is_wanted)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        result = dag.run({"rows": rows}, executor=pool, fail_fast=False, raise_on_failure=False)
    assert states(result) == ["succeeded", "succeeded", "skipped", "skipped", "failed"]
    assert [item.attempts for item in result.tasks["process"].items] == [1, 2, 0, 1, 2]


def test_a_coroutine_item_that_times_out_is_cancelled_alone():
    result = run(three(map_tasks.hang_soon, timeout=0.3), "async", {"rows": [0, 1, 2]}, fail_fast=False)
    assert states(result) == ["succeeded", "failed", "succeeded"]
    assert isinstance(result.tasks["process[1]"].error, TaskTimeoutError)
    assert result.abandoned_threads == 0


@pytest.mark.parametrize("executor", ["sequential", "fuzzed"])
def test_sequentially_the_timeout_of_an_item_is_judged_when_it_returns(executor):
    clock = VirtualClock()
    dag = over(range(3), slow(clock, [0, 9, 1]), timeout=5)
    result = run(dag, executor, fail_fast=False, _clock=clock)
    assert states(result) == ["succeeded", "failed", "succeeded"]


def test_waits_of_items_pass_side_by_side():
    clock = VirtualClock()

    def flaky(x, context):
        if context.attempt == 1:
            raise ConnectionError("refused")
        return x

    result = clock.run(over(range(50), flaky, retries=1, delay=3600, max_delay=3600, jitter=0), max_workers=2)
    assert result["process"] == list(range(50))
    assert result.duration == pytest.approx(3600)


def test_retry_after_counts_for_its_item():
    clock, events = VirtualClock(), []

    def busy(x, context):
        if x == 1 and context.attempt == 1:
            raise RetryAfter(12)
        return x

    clock.run(over(range(3), busy, retries=1), observers=[events.append], max_workers=1)
    (failed,) = [event for event in events if isinstance(event, AttemptFailed)]
    assert (failed.task_name, failed.retry_in, failed.max_attempts) == ("process[1]", 12, 2)


# ---------------------------------------------------------------- limits and workers


def count_at_once(dag, **options):
    events = []
    dag.run(observers=[events.append], **options)
    return most_at_once([event for event in events if getattr(event, "task_name", "").startswith("process[")])


def meet(size):
    """Return a function whose calls wait a moment for each other, so that as many meet as may."""
    gate = threading.Barrier(size)

    def work(x):
        try:
            gate.wait(0.1)
        except threading.BrokenBarrierError:
            gate.reset()
        return x

    return work


@pytest.mark.parametrize("most", [1, 2])
def test_items_count_for_their_limit(most):
    dag = over(range(4), meet(3), uses="api")
    assert count_at_once(dag, limits={"api": most}, max_workers=4) == most


def test_coroutine_items_count_for_their_limit():
    async def work(x):
        await asyncio.sleep(0.01)

    dag = over(range(6), work, uses="api")
    assert count_at_once(dag, limits={"api": 2}) == 2


def test_items_in_processes_count_for_their_limit():
    dag = over(range(4), map_tasks.double, uses="api", executor="process")
    assert count_at_once(dag, limits={"api": 1}, max_workers=2) == 1


def test_items_and_tasks_share_a_limit():
    at_once, most, lock = 0, 0, threading.Lock()

    def work(*_):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1

    others = [Task(f"t{n}", work, uses="api") for n in range(4)]
    mapped = over(range(6), work, uses="api")._tasks
    DAG("etl", tasks=[*mapped, *others]).run(limits={"api": 2}, max_workers=8)
    assert most <= 2


def test_the_mapped_task_itself_takes_no_place_of_its_limit():
    """With one place, a parent that held it while its items wait would wait for ever."""
    dag = over(range(3), lambda x: x, uses="api")
    dag = DAG("etl", tasks=[*dag._tasks, Task("other", lambda: 0, uses="api")])
    assert dag.start(limits={"api": 1}).result(PATIENCE)["process"] == [0, 1, 2]


def test_an_item_that_waits_for_its_retry_gives_its_place_back():
    clock = VirtualClock()

    def flaky(x, context):
        if context.attempt == 1:
            raise ConnectionError("refused")
        return clock.now()

    dag = over(range(3), flaky, uses="api", retries=1, delay=100, max_delay=100, jitter=0)
    dag = DAG("etl", tasks=[*dag._tasks, Task("other", lambda: 0, uses="api")])
    assert max(clock.run(dag, limits={"api": 1})["process"]) < 150


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_items_run_at_once_than_there_are_workers(most):
    assert count_at_once(over(range(6), meet(3)), max_workers=most) <= most


def test_items_run_side_by_side():
    gate = threading.Barrier(4)
    assert over(range(4), lambda x: gate.wait(PATIENCE) >= 0).run(max_workers=4)["process"] == [True] * 4


def test_results_are_in_order_whichever_item_ends_first():
    """Each item waits for the one after it."""
    ended = [threading.Event() for _ in range(4)]
    ended[3].set()

    def work(x):
        assert ended[x].wait(PATIENCE)
        if x:
            ended[x - 1].set()
        return x

    assert over(range(4), work).run(max_workers=4)["process"] == [0, 1, 2, 3]


@pytest.mark.parametrize("own", ["process", "async", "thread"])
def test_items_run_where_their_task_wants_to(own):
    func = map_tasks.double_soon if own == "async" else map_tasks.double
    result = over([1, 2], func, executor=own).run()
    assert result["process"] == [2, 4]
    workers = {item.worker.partition("-")[0] for item in result.tasks["process"].items}
    assert workers == {"loop" if own == "async" else own}


# ---------------------------------------------------------------- callbacks and watching


def test_callbacks_hear_of_retries_of_items_and_of_the_end_of_the_task(quick_executor):
    heard = []
    options = {
        name: lambda event, name=name: heard.append((name, event.task_name))
        for name in ("on_success", "on_failure", "on_retry")
    }
    dag = over([("flaky", 1), ("ok", 2), ("flaky", 3)], map_tasks.behave, retries=1, delay=0, **options)
    run(dag, quick_executor)
    assert heard[-1] == ("on_success", "process")
    assert sorted(heard[:-1]) == [("on_retry", "process[0]"), ("on_retry", "process[2]")]
    heard.clear()
    run(over([("fail", 1), ("fail", 2)], map_tasks.behave, **options), quick_executor, fail_fast=False)
    assert heard == [("on_failure", "process")]


def test_a_task_with_brackets_in_its_name_does_not_call_back_another():
    """load, load[eu]: two tasks that have nothing to do with each other."""
    heard = []

    def flaky(context):
        if context.attempt == 1:
            raise ConnectionError("refused")

    load = Task("load", lambda: 1, on_retry=heard.append)
    DAG("etl", tasks=[load, Task("load[eu]", flaky, retries=1, delay=0)]).run()
    assert heard == []


def test_an_item_does_not_call_back_a_task_that_has_its_name():
    heard = []
    other = Task("process[1]", lambda: "mine", on_success=lambda event: heard.append(event.value))
    DAG("etl", tasks=[*over([1, 2], lambda x: x)._tasks, other]).run()
    assert heard == ["mine"]


def test_a_broken_observer_changes_nothing(caplog):
    def broken(event):
        raise LookupError("broken")

    assert over(range(3), lambda x: x).run(observers=[broken])["process"] == [0, 1, 2]


def test_a_snapshot_shows_the_items_as_they_are():
    started, released = threading.Event(), threading.Event()

    def work(x):
        if x == 1:
            started.set()
            released.wait(PATIENCE)
        return x

    dag = over([0, 1, 2], work)
    handle = dag.start(max_workers=1)
    assert started.wait(PATIENCE)
    snapshot = handle.snapshot()
    assert states(snapshot) == ["succeeded", "running", "pending"]
    assert [item.value for item in snapshot.tasks["process"].items] == [0, None, None]
    assert (snapshot.tasks["process"].state, snapshot.state) == ("running", "running")
    assert list(snapshot) == ["source"]
    assert list(snapshot.tasks) == ["source", "process"]
    released.set()
    assert handle.result(PATIENCE)["process"] == [0, 1, 2]
    assert states(snapshot) == ["succeeded", "running", "pending"]


def test_a_snapshot_from_before_the_items_does_not_get_them_later():
    started, released = threading.Event(), threading.Event()

    def source():
        started.set()
        released.wait(PATIENCE)
        return [1, 2]

    mapped = Task("process", lambda x: x).map()
    Task(source) >> mapped
    handle = DAG("etl", tasks=[mapped]).start()
    assert started.wait(PATIENCE)
    snapshot = handle.snapshot()
    released.set()
    handle.result(PATIENCE)
    assert list(snapshot.tasks) == ["source", "process"]
    assert snapshot.tasks["process"].items == ()
    assert snapshot.tasks["process"].state == "pending"
    assert "process[0]" not in snapshot.tasks
    assert snapshot.summary()


def test_a_picture_of_a_mapped_run_shows_tasks_only():
    dag = over(range(3), lambda x: x)
    result = dag.run()
    for format in ("text", "mermaid", "dot"):
        assert "process[" not in dag.visualize(format, result=result).replace("process[\"", "")
        assert dag.visualize(format) != dag.visualize(format, result=result)


# ---------------------------------------------------------------- stopping


class Gate:
    """Items that say that they have begun and wait to be let go."""

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()
        self.calls = []

    def __call__(self, x, context):
        self.calls.append(x)
        self.begun.release()
        while not self.release.wait(0.001):
            context.check_cancelled()
        return x

    def wait_for(self, count):
        for _ in range(count):
            assert self.begun.acquire(timeout=PATIENCE)


def check_ended_once(result, events):
    """Check that each task and item has one final event, the last of it, and a mapped task after its items."""
    finals = names_of(events, FINAL)
    everything = {name: run.items for name, run in result.tasks.items()}
    assert Counter(finals) == Counter([*everything, *(item.name for items in everything.values() for item in items)])
    for name, items in everything.items():
        for item in items:
            assert finals.index(item.name) < finals.index(name), f"{item.name} ended after {name}"
        assert result.tasks[name].ended_at is None or result.tasks[name].started_at is not None
    for n, event in enumerate(events):
        if isinstance(event, AttemptStarted):
            assert not any(isinstance(e, FINAL) and e.task_name == event.task_name for e in events[:n])


def test_a_cancel_ends_running_and_waiting_items():
    gate, events = Gate(), []
    handle = over(range(6), gate).start(max_workers=2, observers=[events.append])
    gate.wait_for(2)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    result = caught.value.result
    assert states(result) == ["cancelled"] * 6
    assert (result.tasks["process"].state, result.tasks["process"].reason) == ("cancelled", "enough")
    assert len(gate.calls) == 2
    check_ended_once(result, events)


def test_a_cancel_keeps_what_items_have_given():
    gate, events = Gate(), []
    gate.release.set()
    done = threading.Event()

    def work(x, context):
        if x == 0:
            return "first"
        done.set()
        gate.release.clear()
        return gate(x, context)

    handle = over(range(3), work).start(max_workers=1, observers=[events.append])
    assert done.wait(PATIENCE)
    gate.wait_for(1)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    result = caught.value.result
    assert states(result) == ["succeeded", "cancelled", "cancelled"]
    assert result.tasks["process[0]"].value == "first"
    assert "process" not in result
    check_ended_once(result, events)


def test_items_that_do_not_listen_are_left_behind_and_end_before_their_task(may_abandon):
    begun, release, events = threading.Semaphore(0), threading.Event(), []

    def deaf(x):
        begun.release()
        release.wait(PATIENCE)

    handle = over(range(3), deaf).start(max_workers=2, observers=[events.append])
    for _ in range(2):
        assert begun.acquire(timeout=PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    release.set()
    result = caught.value.result
    assert states(result) == ["cancelled"] * 3
    assert result.abandoned_threads == 2
    check_ended_once(result, events)
    assert result.tasks["process"].ended_at is not None


def test_a_task_with_a_failed_item_has_failed_although_a_cancel_came_then(may_abandon):
    """As it is when the other items end in time."""
    begun, release = threading.Event(), threading.Event()

    def work(x):
        if x == 0:
            raise ValueError("no")
        begun.set()
        release.wait(PATIENCE)

    handle = over(range(2), work).start(max_workers=1, fail_fast=False)
    assert begun.wait(PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    release.set()
    assert states(caught.value.result) == ["failed", "cancelled"]
    assert caught.value.result.tasks["process"].state == "failed"


def test_a_cancel_ends_coroutine_items():
    begun, events = threading.Semaphore(0), []

    async def work(x):
        begun.release()
        await asyncio.sleep(PATIENCE)

    handle = over(range(6), work).start(max_workers=2, observers=[events.append])
    for _ in range(2):
        assert begun.acquire(timeout=PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    assert states(caught.value.result) == ["cancelled"] * 6
    assert len(names_of(events, AttemptStarted)) == 3
    check_ended_once(caught.value.result, events)


def test_a_cancel_ends_items_in_processes(tmp_path):
    events = []
    process = Task("process", map_tasks.hang_all, executor="process").map()
    handle = DAG("etl", tasks=[process]).start(
        {"x": list(range(5)), "path": str(tmp_path)}, max_workers=2, observers=[events.append]
    )
    deadline = time.monotonic() + PATIENCE
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    assert states(caught.value.result) == ["cancelled"] * 5
    assert len(list(tmp_path.iterdir())) == 2
    check_ended_once(caught.value.result, events)


def test_a_cancel_ends_a_sequential_run_after_the_item_that_runs():
    gate, events = Gate(), []
    handle = over(range(4), gate).start(executor="sequential", observers=[events.append])
    gate.wait_for(1)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    assert states(caught.value.result) == ["cancelled"] * 4
    assert gate.calls == [0]
    check_ended_once(caught.value.result, events)


@pytest.mark.parametrize("executor", ["thread", "sequential"])
def test_a_cancel_while_an_item_waits_for_its_retry_ends_it(executor):
    waiting, events = threading.Event(), []

    def observe(event):
        events.append(event)
        if isinstance(event, AttemptFailed):
            waiting.set()

    def work(x):
        if x == 0:
            raise ConnectionError("refused")

    dag = over(range(3), work, retries=1, delay=50, jitter=0)
    handle = dag.start(executor=executor, observers=[observe])
    assert waiting.wait(PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    assert states(caught.value.result)[0] == "cancelled"
    assert caught.value.result.tasks["process"].state == "cancelled"
    check_ended_once(caught.value.result, events)


def test_a_cancel_while_items_wait_for_a_limit_ends_them():
    gate, events = Gate(), []
    dag = over(range(5), gate, uses="api")
    handle = dag.start(limits={"api": 1}, observers=[events.append])
    gate.wait_for(1)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    assert states(caught.value.result) == ["cancelled"] * 5
    check_ended_once(caught.value.result, events)


def test_a_cancel_by_an_observer_at_the_first_item_lets_no_other_start(executor):
    """The observer hears of the item before it starts."""
    events = []
    has_handle = threading.Event()

    def observe(event):
        events.append(event)
        if isinstance(event, AttemptStarted) and event.task_name.startswith("process["):
            assert has_handle.wait(PATIENCE)
            handle.cancel()

    func = map_tasks.behave_soon if executor == "async" else map_tasks.behave
    options = {"executor": executor, "max_workers": 1}
    pool = None
    if executor == "foreign":
        pool = options["executor"] = ThreadPoolExecutor(1)
    if executor == "fuzzed":
        options = {"executor": "sequential", "_pick": lambda ready: len(ready) - 1}
    handle = three(func).start({"rows": [("ok", n) for n in range(4)]}, observers=[observe], **options)
    has_handle.set()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    if pool is not None:
        pool.shutdown()
    assert len([name for name in names_of(events, AttemptStarted) if "[" in name]) == 1
    assert states(caught.value.result).count("cancelled") >= 3
    check_ended_once(caught.value.result, events)


def test_a_cancel_while_the_items_are_read_starts_none():
    reading, go_on, ran = threading.Event(), threading.Event(), []

    class Slow(list):
        def __iter__(self):
            reading.set()
            go_on.wait(PATIENCE)
            return super().__iter__()

    events = []
    handle = over(Slow([1, 2]), ran.append).start(observers=[events.append])
    assert reading.wait(PATIENCE)
    handle.cancel()
    go_on.set()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(PATIENCE)
    assert ran == []
    assert caught.value.result.tasks["process"].state == "cancelled"
    check_ended_once(caught.value.result, events)


def test_the_timeout_of_the_run_ends_items(may_abandon):
    clock, events = VirtualClock(), []
    dag = over(range(4), slow(clock, [1, 99, 99, 99]))
    with pytest.raises(RunTimeoutError) as caught:
        clock.run(dag, timeout=10, max_workers=2, observers=[events.append])
    assert states(caught.value.result) == ["succeeded", "cancelled", "cancelled", "cancelled"]
    check_ended_once(caught.value.result, events)


@pytest.mark.parametrize("executor", ["thread", "sequential", "async"])
def test_ctrl_c_ends_a_run_in_the_middle_of_items(script, executor):
    running = script(
        f"""
        import asyncio, time
        from flowkit import DAG, Task

        def work(x):
            if x == 1:
                print("running")
                time.sleep(60)
            return x

        async def work_soon(x):
            if x == 1:
                print("running")
                await asyncio.sleep(60)
            return x

        mapped = Task("process", work_soon if {executor!r} == "async" else work).map()
        Task("source", lambda: [0, 1, 2]) >> mapped
        try:
            DAG("etl", tasks=[mapped]).run(executor={executor!r}, max_workers=1)
        except KeyboardInterrupt as error:
            assert "process" in error.__notes__[0]
            print("interrupted")
            raise
        """
    )
    running.wait_for("running")
    running.interrupt()
    running.wait_for("interrupted")
    running.finish()
    assert running.returncode in (-2, 130)
    assert running.seconds < 5


# ---------------------------------------------------------------- fail-fast


def test_a_failed_item_lets_no_other_item_start():
    events = []
    result = run(over(range(4), lambda x: 1 // (1 - x)), "sequential", observers=[events.append])
    assert states(result) == ["succeeded", "failed", "cancelled", "cancelled"]
    assert names_of(events, AttemptStarted) == ["source", "process[0]", "process[1]"]
    assert result.tasks["process"].reason == "1 of 4 items failed: 'process[1]': ZeroDivisionError: " + str(
        result.tasks["process[1]"].error
    )
    check_ended_once(result, events)


def test_items_that_run_when_another_fails_are_waited_for():
    """Item 1 fails while item 0 runs; item 0 ends then, by itself."""
    begun, failed, events = threading.Event(), threading.Event(), []

    def work(x):
        if x == 1:
            assert begun.wait(PATIENCE)
            raise ValueError("no")
        begun.set()
        assert failed.wait(PATIENCE)
        return x

    def observe(event):
        events.append(event)
        if isinstance(event, TaskFailed):
            failed.set()

    result = over(range(2), work).run(max_workers=2, observers=[observe], raise_on_failure=False)
    assert states(result) == ["succeeded", "failed"]
    assert (result.tasks["process"].state, result.state) == ("failed", "failed")
    check_ended_once(result, events)


def test_a_failure_elsewhere_stops_waiting_items_and_waits_for_running_ones():
    """bad; source ─► process (mapped) ─► below"""
    gate, events = Gate(), []
    mapped = Task("process", lambda x, context: gate.calls.append(x) or gate.begun.release() or stopped.wait(PATIENCE))
    mapped = mapped.map()
    stopped = threading.Event()

    def bad():
        gate.wait_for(2)
        raise ValueError("no")

    def observe(event):
        events.append(event)
        if isinstance(event, TaskFailed):
            stopped.set()

    source, below = Task("source", lambda: range(6)), Task("below", lambda x: x)
    source >> mapped >> below
    result = DAG("etl", tasks=[below, Task(bad)]).run(max_workers=3, observers=[observe], raise_on_failure=False)
    assert Counter(states(result)) == {"succeeded": 2, "cancelled": 4}
    assert result.tasks["process"].state == "cancelled"
    assert result.tasks["process"].reason == "task 'bad' failed"
    assert result.tasks["below"].state == "cancelled"
    assert result.failed == ["bad"]
    check_ended_once(result, events)


def test_a_failure_elsewhere_lets_a_mapped_task_succeed_whose_items_all_run():
    started, failed = threading.Semaphore(0), threading.Event()

    def work(x):
        started.release()
        assert failed.wait(PATIENCE)
        return x

    def bad():
        for _ in range(2):
            assert started.acquire(timeout=PATIENCE)
        raise ValueError("no")

    def observe(event):
        if isinstance(event, TaskFailed):
            failed.set()

    dag = DAG("etl", tasks=[*over(range(2), work)._tasks, Task(bad)])
    result = dag.run(max_workers=3, observers=[observe], raise_on_failure=False)
    assert result["process"] == [0, 1]


@pytest.mark.parametrize("executor", ["sequential", "thread", "async", "fuzzed"])
def test_a_mapped_teardown_runs_all_its_items_after_a_failure(executor):
    """bad ─► teardown (mapped over an input, all_done)"""
    bad, events = Task("bad", lambda: 1 // 0), []
    func = map_tasks.double_soon if executor == "async" else map_tasks.double
    teardown = Task("teardown", func, trigger="all_done").map().after(bad)
    result = run(DAG("etl", tasks=[teardown]), executor, {"x": [1, 2, 3, 4]}, observers=[events.append])
    assert result["teardown"] == [2, 4, 6, 8]
    assert result.failed == ["bad"]
    check_ended_once(result, events)


@pytest.mark.parametrize("executor", ["sequential", "thread", "fuzzed"])
def test_items_of_a_teardown_that_wait_when_one_of_them_fails_still_start(executor):
    """bad ─► teardown (mapped over an input, all_done), whose first item fails too"""
    bad, events = Task("bad", lambda: 1 // 0), []
    teardown = Task("teardown", lambda x: 1 // x, trigger="all_done").map().after(bad)
    result = run(DAG("etl", tasks=[teardown]), executor, {"x": [0, 1, 1, 0, 1]}, observers=[events.append])
    assert states(result, "teardown") == ["failed", "succeeded", "succeeded", "failed", "succeeded"]
    assert result.failed == ["bad", "teardown"]
    check_ended_once(result, events)


@pytest.mark.parametrize("executor", ["sequential", "thread", "fuzzed"])
def test_items_of_a_task_that_accepts_failures_go_on_when_the_first_failure_is_their_own(executor):
    events = []
    dag = over([0, 1, 0, 1], lambda x: 1 // x, trigger="all_done")
    result = run(dag, executor, observers=[events.append])
    assert sorted(states(result)) == ["failed", "failed", "succeeded", "succeeded"]
    check_ended_once(result, events)


# ---------------------------------------------------------------- trigger rules


def below_failed(rule, executor="thread"):
    """source ─► process (mapped, one item fails) ─► below, with *rule*"""
    mapped, below = Task("process", lambda x: 1 // x).map(), Task("below", lambda x=None: ("ran", x), trigger=rule)
    Task("source", lambda: [1, 0]) >> mapped >> below
    return run(DAG("etl", tasks=[below]), executor).tasks["below"]


@pytest.mark.parametrize("rule", ["all_done", "one_failed", "all_failed"])
def test_a_task_that_waits_for_a_failure_runs_below_a_failed_item(rule, quick_executor):
    below = below_failed(rule, quick_executor)
    assert (below.state, below.value) == ("succeeded", ("ran", None))


@pytest.mark.parametrize("rule", ["none_failed", "all_success", "one_success"])
def test_other_tasks_do_not_run_below_a_failed_item(rule, quick_executor):
    below = below_failed(rule, quick_executor)
    assert below.state == "upstream_failed"
    assert "1 of 2 items failed" in below.reason


def test_a_task_that_reports_a_failure_sees_the_errors_of_all_items():
    seen = []
    mapped = Task("process", lambda x: 1 // x).map()

    def report():
        run = current_context().upstream["process"]
        seen.extend(item.state for item in run.items)
        seen.append(len(run.error.exceptions))

    Task("source", lambda: [0, 1, 0]) >> mapped
    alert = Task(report, trigger="one_failed").after(mapped)
    DAG("etl", tasks=[alert]).run(fail_fast=False, raise_on_failure=False)
    assert seen == ["failed", "succeeded", "failed", 2]


def test_a_mapped_task_below_a_skipped_one_is_skipped(quick_executor):
    def source():
        raise Skip("no rows")

    mapped = Task("process", lambda x: x).map()
    Task(source) >> mapped
    result = run(DAG("etl", tasks=[mapped]), quick_executor)
    assert (result.tasks["process"].state, result.tasks["process"].items) == ("skipped", ())


def test_a_mapped_task_below_a_failed_one_is_upstream_failed(quick_executor):
    mapped = Task("process", lambda x: x).map()
    Task("source", lambda: 1 // 0) >> mapped
    result = run(DAG("etl", tasks=[mapped]), quick_executor, fail_fast=False)
    assert (result.tasks["process"].state, result.tasks["process"].items) == ("upstream_failed", ())


def test_a_mapped_task_that_runs_without_its_items_fails(quick_executor):
    """source is skipped; process runs all the same, and has nothing to be mapped over."""

    def source():
        raise Skip("no rows")

    mapped = Task("process", lambda x: x, trigger="all_done").map()
    Task(source) >> mapped
    result = run(DAG("etl", tasks=[mapped]), quick_executor)
    assert result.tasks["process"].state == "failed"
    assert "mapped over None" in result.tasks["process"].reason


def test_the_default_of_the_mapped_parameter_stands_for_a_skipped_upstream(quick_executor):
    def rows():
        raise Skip("no rows")

    mapped = Task("process", lambda rows=(1, 2): -rows, trigger="all_done").map()
    Task(rows) >> mapped
    assert run(DAG("etl", tasks=[mapped]), quick_executor)["process"] == [-1, -2]


# ---------------------------------------------------------------- one definition, many runs


def test_a_target_may_be_a_mapped_task():
    dag = three(map_tasks.double)
    assert list(dag.run({"rows": [1]}, targets=["process"])) == ["source", "process"]


def test_items_do_not_stand_in_the_description_of_the_graph():
    dag = over(range(3), lambda x: x)
    dag.run()
    assert dag.waves() == [["source"], ["process"]]
    assert dag.run().keys() == {"source", "process"}


def test_a_dag_runs_again_with_another_number_of_items():
    dag = three(map_tasks.double, uses="api", timeout=50, retries=1, when=lambda x: True, trigger="all_success")
    for count in (3, 0, 5, 1):
        result = dag.run({"rows": [7] * count}, limits={"api": 2})
        assert result["collect"] == [14] * count
        assert len(result.tasks["process"].items) == count


def columns(program):
    return {
        slot: len(value)
        for slot in type(program).__slots__
        if hasattr(value := getattr(program, slot), "__len__") and slot != "name"
    } | {"upstream": len(program.graph.upstream), "downstream": len(program.graph.downstream)}


def test_the_columns_of_a_program_do_not_grow():
    """source ─► process, and one of each other column's kind"""

    async def soon(x):
        return x

    tasks = [
        Task("source", lambda: range(9)),
        Task("process", soon, uses="api", timeout=9, trigger="all_done", executor="thread", when=lambda x: 1).map(),
    ]
    program, problems = compile_program("etl", tasks, [[], [0]], ())
    assert problems == []
    before = columns(program)
    for _ in range(3):
        copy = program.copy_for_run()
        copy.add_items(1, range(2, 11))
        assert len(copy.names) == len(copy.tasks) == len(copy.funcs) == len(copy.arity) == len(copy.sources) == 11
        assert set(copy.uses) == set(copy.timed) == set(range(2, 11))
        assert copy.names[2:4] == ["process[0]", "process[1]"]
        assert copy.coroutines == set(range(1, 11))
    assert columns(program) == before
    assert (program.uses, program.timed) == ({1: "api"}, {1: 9})


def test_runs_of_one_dag_do_not_see_each_others_items():
    dag = three(map_tasks.double)
    errors = []

    def work(number):
        try:
            for repetition in range(10):
                rows = list(range(number + repetition))
                assert dag.run({"rows": rows}, max_workers=2)["collect"] == [2 * x for x in rows]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_run_inside_an_item_has_items_of_its_own():
    def inner(x):
        return over(range(x), lambda y: (x, y)).run(max_workers=1)["process"]

    result = over([0, 1, 2], inner).run(max_workers=2)
    assert result["process"] == [[], [(1, 0)], [(2, 0), (2, 1)]]
    assert [len(result.tasks["process"].items)] == [3]


def test_items_run_under_arun():
    async def main():
        return await over([1, 2], map_tasks.double_soon).arun()

    assert asyncio.run(main())["process"] == [2, 4]


def test_the_same_seed_gives_the_same_order_of_items_and_another_seed_another():
    def order(seed):
        seen = []
        run_fuzzed(over(range(8), seen.append), seed)
        return seen

    assert order(3) == order(3)
    assert sorted(order(3)) == list(range(8))
    assert len({tuple(order(seed)) for seed in range(10)}) > 5


def test_sequentially_items_run_in_order_and_in_the_place_of_their_task():
    """a ─► process (mapped); b"""
    seen = []
    a, b = Task("a", lambda: [0, 1, 2]), Task("b", lambda: seen.append("b"))
    process = Task("process", seen.append).map()
    later = Task("later", lambda x: seen.append("later"))
    a >> process >> later
    DAG("etl", tasks=[b, later]).run(executor="sequential")
    assert seen == ["b", 0, 1, 2, "later"]


def test_sequentially_an_item_is_retried_before_the_next_one_starts():
    seen = []

    def flaky(x, context):
        seen.append((x, context.attempt))
        if context.attempt < 3:
            raise ConnectionError("refused")

    VirtualClock().run(over(range(3), flaky, retries=2), executor="sequential")
    assert seen == [(x, attempt) for x in range(3) for attempt in (1, 2, 3)]


def test_no_code_of_the_user_runs_under_the_lock_of_the_run():
    """The text of an item's error asks for a snapshot, which takes that lock."""
    texts = []

    class Curious(Exception):
        def __str__(self):
            handle = found.get("handle")
            if handle is not None and threading.current_thread() is not threading.main_thread():
                texts.append(handle.snapshot().state)
            return "curious"

    found, has_handle = {}, threading.Event()

    def work(x):
        assert has_handle.wait(PATIENCE)
        raise Curious

    handle = over([1, 2], work).start(fail_fast=False, raise_on_failure=False)
    found["handle"] = handle
    has_handle.set()
    handle.result(5)


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("executor", ["thread", "sequential"])
def test_a_hundred_thousand_items_run(executor):
    began = time.perf_counter()
    result = over(range(100_000), lambda x: x + 1).run(executor=executor, max_workers=2)
    assert result["process"] == list(range(1, 100_001))
    assert result.tasks["process[99999]"].value == 100_000
    assert time.perf_counter() - began < 30


def test_time_for_items_grows_with_their_number_alone():
    def seconds(count):
        dag = over(range(count), lambda x: x, when=lambda x: x % 2)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            dag.run(executor="sequential")
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(20_000) < 10 * 4 * max(seconds(5_000), 0.01)


def test_an_item_costs_less_than_two_kilobytes():
    dag = over(range(20_000), lambda x: None)
    dag.run()
    gc.collect()
    tracemalloc.start()
    try:
        result = dag.run(max_workers=1)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 20_000 * 2_000
    assert len(result.tasks["process"].items) == 20_000


def test_twenty_thousand_items_may_fail():
    result = over(range(20_000), lambda x: 1 // 0).run(max_workers=2, fail_fast=False, raise_on_failure=False)
    assert len(result.tasks["process"].error.exceptions) == 20_000
    assert len(result.tasks["process"].reason) < 300


def test_a_failure_among_twenty_thousand_items_stops_the_others_at_once():
    began = time.perf_counter()
    result = over(range(20_000), lambda x: 1 // x).run(max_workers=2, raise_on_failure=False)
    assert result.tasks["process"].state == "failed"
    assert time.perf_counter() - began < 10


def test_a_thousand_mapped_tasks_without_items_are_no_recursion():
    tasks = [Task("source", list), *(Task(f"t{n}", lambda x: x).map() for n in range(3_000))]
    chain(*tasks)
    assert DAG("etl", tasks=tasks).run()["t2999"] == []


def test_a_mapped_task_per_item_of_a_wide_fan_out():
    """source ─► 300 mapped tasks of 20 items each ─► collect"""
    mapped = [Task(f"m{n}", lambda x, n=n: n * x).map() for n in range(300)]
    collect = Task("collect", lambda *lists: [sum(given) for given in lists])
    Task("source", lambda: range(20)) >> mapped >> collect
    assert DAG("etl", tasks=[collect]).run(max_workers=4)["collect"] == [n * 190 for n in range(300)]
