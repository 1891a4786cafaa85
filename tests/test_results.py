"""What a run gives: the mapping of values, the record of each task, the texts, the errors."""

import copy
import json
import pickle
import threading
from datetime import UTC, datetime, timedelta

import pytest

from flowkit import DAG, DAGExecutionError, RunResult, Skip, Task, TaskExecutionError, TaskRun
from flowkit.testing import VirtualClock

EXECUTORS = ["thread", "sequential"]


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


def fail():
    raise ConnectionError("refused")


def skip():
    raise Skip("no rows")


def ends():
    """good ─► join, bad ─► below, idle ─► alone; off; join needs good and idle"""
    with DAG("etl") as dag:
        good, bad, idle = Task("good", lambda: 7), Task("bad", fail), Task("idle", skip)
        Task("off", lambda: 1, when=lambda: False)
        [good, idle] >> Task("join", lambda *given: given)
        bad >> Task("below", lambda x: x)
        idle >> Task("alone", lambda x: x)
    return dag


@pytest.fixture
def result(executor):
    """The result of ends(), with everything that can happen to a task but a cancel."""
    return VirtualClock().run(ends(), executor=executor, fail_fast=False, raise_on_failure=False)


# ---------------------------------------------------------------- the mapping


def test_the_result_is_equal_to_a_dict_with_the_same_items(result):
    assert result == {"good": 7, "join": (7, None)}
    expected = {"good": 7, "join": (7, None)}
    assert expected == result
    assert dict(result) == {"good": 7, "join": (7, None)}
    assert result != {"good": 7}
    assert result != 3


def test_it_is_read_like_a_dict(result):
    assert result["good"] == 7
    assert "good" in result
    assert len(result) == 2
    assert list(result) == list(result.keys()) == ["good", "join"]
    assert list(result.items()) == [("good", 7), ("join", (7, None))]
    assert list(result.values()) == [7, (7, None)]
    assert result.get("bad", "none") == "none"
    assert {**result} == {"good": 7, "join": (7, None)}


def test_it_cannot_be_written(result):
    with pytest.raises(TypeError):
        result["good"] = 8
    with pytest.raises(TypeError):
        del result["good"]
    with pytest.raises(AttributeError):
        result.state = "failed"


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, ()])
def test_an_empty_result_is_a_result(value, executor):
    """a ─► b"""
    with DAG("etl") as dag:
        Task("a", lambda: value) >> Task("b", lambda a: (a,))
    result = dag.run(executor=executor)
    assert result["a"] == value
    assert "a" in result
    assert dict(result) == {"a": value, "b": (value,)}


def test_only_what_succeeded_is_in_the_mapping(result):
    for name in ("bad", "below", "idle", "alone", "off", "unknown", 3, None, ("good",)):
        assert name not in result


@pytest.mark.parametrize(("name", "said"), [
    ("idle", "'idle' was skipped: no rows"),
    ("off", "'off' was skipped: when() was false"),
    ("alone", "'alone' was skipped: everything upstream was skipped: 'idle'"),
    ("bad", "'bad' failed: ConnectionError: refused"),
    ("below", "'below' did not run: upstream 'bad' failed: ConnectionError: refused"),
    ("godo", "no task of 'etl' is named 'godo' (did you mean 'good'?)"),
    ("xyz", "no task of 'etl' is named 'xyz'"),
    (3, "no task of 'etl' is named 3"),
])  # fmt: skip
def test_the_key_error_says_why_there_is_no_value(result, name, said):
    with pytest.raises(KeyError) as caught:
        result[name]
    assert str(caught.value).startswith(said)


def test_values_come_in_generation_order_whatever_finishes_first(executor):
    """z ─► y ─► x, b; every name earlier in the alphabet is defined later"""
    with DAG("order") as dag:
        z = Task("z", lambda: 1)
        y = z >> Task("y", lambda z: z)
        y >> [Task("x", lambda y: y), Task("b", lambda y: y)]
        Task("a", lambda: 0)
    result = dag.run(executor=executor)
    assert list(result) == list(result.tasks) == ["z", "a", "y", "x", "b"]
    assert [name for wave in dag.waves() for name in wave] == list(result)


def test_an_empty_run_is_equal_to_an_empty_dict(executor):
    result = DAG("none", tasks=[]).run(executor=executor)
    assert result == {}
    assert (len(result), result.state, result.ok) == (0, "succeeded", True)
    assert dict(result.tasks) == {}
    assert "no tasks" in result.summary()


# ---------------------------------------------------------------- how it went


def test_a_run_has_an_id_a_state_and_a_duration(result):
    assert len(result.run_id) == 12
    assert int(result.run_id, 16) >= 0
    assert (result.dag_name, result.state, result.ok) == ("etl", "failed", False)
    assert result.duration == 0.0
    assert result.abandoned_threads == 0


def test_two_runs_have_different_ids():
    dag = DAG("etl", tasks=[Task("a", lambda: 1)])
    assert dag.run().run_id != dag.run().run_id


def test_a_run_of_successes_and_skips_is_ok(executor):
    dag = DAG("etl", tasks=[Task("a", lambda: 1), Task("b", skip)])
    result = dag.run(executor=executor)
    assert (result.state, result.ok) == ("succeeded", True)
    assert (result.skipped, result.failed, result.errors) == (["b"], [], {})
    result.raise_for_failure()


def test_failed_skipped_and_errors_name_the_tasks(result):
    assert result.failed == ["bad"]
    assert result.skipped == ["idle", "off", "alone"]
    assert list(result.errors) == ["bad"]
    assert isinstance(result.errors["bad"], ConnectionError)


def test_tasks_holds_the_record_of_every_task(result):
    assert {name: run.state for name, run in result.tasks.items()} == {
        "good": "succeeded", "bad": "failed", "idle": "skipped", "off": "skipped", "join": "succeeded",
        "below": "upstream_failed", "alone": "skipped",
    }  # fmt: skip
    assert len(result.tasks) == 7
    assert "below" in result.tasks
    with pytest.raises(KeyError, match=r"no task is named 'x' here; there are 'good', 'bad'"):
        result.tasks["x"]
    assert repr(result.tasks).startswith("<TaskRuns 'good', 'bad'")


def test_a_succeeded_task_is_recorded_with_all_that_is_known(executor):
    """a: two failing attempts of 2 s, waits of 1 s and 2 s, then a good one of 2 s"""
    clock = VirtualClock(start=100.0)

    def work(context):
        clock.sleep(2)
        if context.attempt < 3:
            raise ValueError(f"attempt {context.attempt}")
        return "rows"

    dag = DAG("etl", tasks=[Task("a", work, retries=5, delay=1, jitter=0)])
    run = clock.run(dag, executor=executor).tasks["a"]
    assert isinstance(run, TaskRun)
    assert (run.name, run.state, run.value, run.error, run.reason) == ("a", "succeeded", "rows", None, "")
    assert (run.attempts, run.duration, run.restored) == (3, 9.0, False)
    assert run.started_at == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=100)
    assert run.ended_at - run.started_at == timedelta(seconds=9)
    assert run.worker == ("main" if executor == "sequential" else "thread-1")


def test_a_failed_task_is_recorded_with_its_last_error(executor):
    def work(context):
        raise ValueError(f"attempt {context.attempt}")

    dag = DAG("etl", tasks=[Task("a", work, retries=2)])
    run = VirtualClock().run(dag, executor=executor, raise_on_failure=False).tasks["a"]
    assert (run.state, run.value, run.attempts, run.reason) == ("failed", None, 3, "ValueError: attempt 3")
    assert str(run.error) == "attempt 3"


def test_a_task_that_never_started_has_no_times_and_no_worker(result):
    run = result.tasks["below"]
    assert (run.started_at, run.ended_at, run.worker) == (None, None, None)
    assert (run.duration, run.attempts, run.error, run.value) == (0.0, 0, None, None)


def test_a_task_whose_condition_was_false_made_no_attempt(result):
    run = result.tasks["off"]
    assert (run.state, run.reason, run.error) == ("skipped", "when() was false", None)
    assert (run.attempts, run.duration) == (0, 0.0)
    assert (run.started_at, run.ended_at, run.worker) == (None, None, None)


def test_a_task_that_skips_after_a_failed_attempt_has_no_error(executor):
    def work(context):
        raise ValueError("first") if context.attempt == 1 else Skip("nothing left")

    dag = DAG("etl", tasks=[Task("a", work, retries=1)])
    run = VirtualClock().run(dag, executor=executor).tasks["a"]
    assert (run.state, run.reason, run.attempts, run.error) == ("skipped", "nothing left", 2, None)


def test_times_are_aware_and_lie_within_the_run():
    before = datetime.now(UTC) - timedelta(seconds=1)
    run = DAG("etl", tasks=[Task("a", lambda: 1)]).run().tasks["a"]
    assert before < run.started_at <= run.ended_at < datetime.now(UTC) + timedelta(seconds=1)
    assert run.started_at.tzinfo is UTC


def test_repr_of_a_record_says_how_it_went(result):
    assert repr(result.tasks["good"]) == "<TaskRun 'good' succeeded attempts=1 duration=0s>"
    assert repr(result.tasks["bad"]) == (
        "<TaskRun 'bad' failed attempts=1 duration=0s, reason='ConnectionError: refused'>"
    )


@pytest.mark.parametrize(("rule", "said"), [
    ("all_success", "upstream 'bad' failed: ConnectionError: refused"),
    ("one_success", "upstream 'bad' failed: ConnectionError: refused"),
    ("one_failed", None), ("all_failed", None), ("all_done", None),
])  # fmt: skip
def test_the_reason_under_other_rules(rule, said, executor):
    """bad ─► last"""
    with DAG("etl") as dag:
        Task("bad", fail) >> Task("last", lambda x: x, trigger=rule)
    run = dag.run(executor=executor, fail_fast=False, raise_on_failure=False).tasks["last"]
    assert run.reason == (said or "")
    assert run.state == ("upstream_failed" if said else "succeeded")


def test_a_rule_that_waits_for_a_failure_is_not_met_by_success(executor):
    """good ─► alert"""
    with DAG("etl") as dag:
        Task("good", lambda: 1) >> Task("alert", lambda x: x, trigger="one_failed")
    run = dag.run(executor=executor).tasks["alert"]
    assert (run.state, run.reason) == ("skipped", "its trigger rule was not met")


def test_the_reason_below_an_upstream_failed_task_names_it_and_the_failure(executor):
    """bad ─► middle ─► last"""
    with DAG("etl") as dag:
        Task("bad", fail) >> Task("middle", lambda x: x) >> Task("last", lambda x: x)
    tasks = dag.run(executor=executor, fail_fast=False, raise_on_failure=False).tasks
    assert tasks["last"].reason.startswith("upstream 'middle' did not run")
    assert tasks["last"].reason.endswith("'bad' failed: ConnectionError: refused")


def test_the_reason_below_a_task_that_ran_after_the_failure_is_further_up(executor):
    """bad ─► alert (one_failed) ─► note ─► last: note does not start after a failure"""
    with DAG("etl") as dag:
        alert = Task("bad", fail) >> Task("alert", lambda bad: "sent", trigger="one_failed")
        alert >> Task("note", lambda alert: alert) >> Task("last", lambda note: note)
    result = dag.run(executor=executor, raise_on_failure=False)
    assert result == {"alert": "sent"}
    assert result.tasks["note"].state == "upstream_failed"
    assert "upstream" in result.tasks["note"].reason
    assert result.tasks["last"].reason == "upstream 'note' did not run"


def test_the_reason_of_a_cancelled_task_is_the_failure_that_stopped_the_run(executor):
    """bad, good ─► last: last is not below bad"""
    release = threading.Event()
    with DAG("etl") as dag:
        Task("bad", fail, on_failure=lambda event: release.set())
        good = Task("good", lambda: executor == "sequential" or release.wait(5))
        good >> Task("last", lambda x: x)
    result = dag.run(executor=executor, raise_on_failure=False)
    assert result.tasks["last"].state == "cancelled"
    assert result.tasks["last"].reason == "task 'bad' failed"
    assert result.state == "failed"


# ---------------------------------------------------------------- raising


def test_raise_for_failure_raises_what_the_run_would_have(executor):
    dag = DAG("etl", tasks=[Task("a", fail, retries=1)])
    result = VirtualClock().run(dag, executor=executor, raise_on_failure=False)
    with pytest.raises(TaskExecutionError) as raised:
        result.raise_for_failure()
    with pytest.raises(TaskExecutionError) as caught:
        VirtualClock().run(dag, executor=executor)
    assert [(error.task_name, error.attempts) for error in (raised.value, caught.value)] == [("a", 2)] * 2
    assert raised.value.result == result
    assert raised.value.__cause__ is result.errors["a"]


def test_raise_for_failure_raises_the_group_of_a_run_that_went_on(result):
    for _ in range(2):
        with pytest.raises(DAGExecutionError) as caught:
            result.raise_for_failure()
    assert [error.task_name for error in caught.value.exceptions] == ["bad"]
    assert caught.value.result == result


# ---------------------------------------------------------------- as data and as text


def test_to_dict_is_plain_data(executor):
    clock = VirtualClock(start=100.0)
    with DAG("etl") as dag:
        Task("a", lambda: clock.sleep(1.5) or [1, 2])
        Task("b", fail)
    result = clock.run(dag, executor=executor, max_workers=1, fail_fast=False, raise_on_failure=False)
    plain = result.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    a, b = plain["tasks"]["a"], plain["tasks"]["b"]
    assert (plain["dag"], plain["state"], plain["duration"]) == ("etl", "failed", 1.5)
    assert len(plain["run_id"]) == 12
    assert a == {
        "state": "succeeded", "value": [1, 2], "error": None, "attempts": 1, "duration": 1.5,
        "started_at": "1970-01-01T00:01:40+00:00", "ended_at": "1970-01-01T00:01:41.500000+00:00",
        "worker": "main" if executor == "sequential" else "thread-1", "restored": False, "reason": "",
    }  # fmt: skip
    assert b["state"] == "failed"
    assert b["error"] == b["reason"] == "ConnectionError: refused"


def test_to_dict_of_a_task_that_never_ran_has_no_times(result):
    plain = result.tasks["below"].to_dict()
    assert (plain["started_at"], plain["ended_at"], plain["worker"]) == (None, None, None)


def test_the_summary_is_a_table_of_every_task(result):
    lines = result.summary().splitlines()
    assert lines[0] == "etl: failed in 0 µs (2 succeeded, 1 failed, 3 skipped, 1 upstream_failed)"
    assert lines[2].split() == ["task", "state", "time", "attempts", "reason"]
    rows = {line.split()[0]: line for line in lines[4:]}
    assert set(rows) == set(result.tasks)
    assert rows["bad"].split(maxsplit=5)[1:] == ["failed", "0", "µs", "1", "ConnectionError: refused"]
    assert rows["below"].endswith("upstream 'bad' failed: ConnectionError: refused")


def test_the_summary_shows_what_was_abandoned():
    release = threading.Event()
    dag = DAG("etl", tasks=[Task("slow", lambda: release.wait(10), timeout=0.02)])
    try:
        result = dag.run(raise_on_failure=False)
        assert result.abandoned_threads == 1
        assert "; 1 thread abandoned)" in result.summary().splitlines()[0]
    finally:
        release.set()


def test_a_notebook_shows_a_table_with_every_text_escaped(executor):
    def hostile():
        raise ValueError("<script>alert('x')</script> & more")

    dag = DAG("<b>etl</b>", tasks=[Task("<img src=x>", hostile), Task("good", lambda: 1)])
    page = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>etl" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more" in page
    assert "&lt;img src=x&gt;" in page
    assert page.count("<tr>") == 3


def test_an_error_whose_str_raises_does_not_spoil_the_texts(executor):
    class Hostile(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def work():
        raise Hostile

    dag = DAG("etl", tasks=[Task("a", work)])
    result = dag.run(executor=executor, raise_on_failure=False)
    assert "its __str__ raised RuntimeError" in result.summary()
    assert result.tasks["a"].reason.startswith("Hostile")
    with pytest.raises(TaskExecutionError, match="its __str__ raised RuntimeError"):
        result.raise_for_failure()


def test_repr_is_the_headline(result):
    assert repr(result) == f"<RunResult {result.summary().splitlines()[0]}>"


# ---------------------------------------------------------------- copies


def test_a_result_survives_a_copy_and_a_pickle():
    dag = DAG("etl", tasks=[Task("a", lambda: [1]), Task("b", lambda: None)])
    result = dag.run()
    for copied in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert isinstance(copied, RunResult)
        assert copied == {"a": [1], "b": None}
        assert copied.tasks["a"].state == "succeeded"
        assert copied.run_id == result.run_id


# ---------------------------------------------------------------- items


def halves(executor="thread", **options):
    """source ─► halve (mapped over 4, 0, 3, 6) ─► below; 0 is skipped, 3 fails"""

    def halve(x):
        if not x:
            raise Skip("nothing")
        if x % 2:
            raise ValueError(f"odd: {x}")
        return x // 2

    mapped = Task("halve", halve).map()
    Task("source", lambda: [4, 0, 3, 6]) >> mapped >> Task("below", lambda values: values)
    options = {"fail_fast": False, "raise_on_failure": False, **options}
    return DAG("halves", tasks=[mapped, *mapped.downstream]).run(executor=executor, **options)


def test_items_are_records_like_those_of_tasks(executor):
    items = halves(executor).tasks["halve"].items
    assert isinstance(items, tuple)
    assert all(isinstance(item, TaskRun) for item in items)
    assert [(item.name, item.state, item.value, item.attempts) for item in items] == [
        ("halve[0]", "succeeded", 2, 1),
        ("halve[1]", "skipped", None, 1),
        ("halve[2]", "failed", None, 1),
        ("halve[3]", "succeeded", 3, 1),
    ]
    assert [item.reason for item in items] == ["", "nothing", "ValueError: odd: 3", ""]
    assert [type(item.error) for item in items] == [type(None), type(None), ValueError, type(None)]
    assert all(item.worker and item.started_at <= item.ended_at for item in items)
    assert items[2].to_dict()["error"] == "ValueError: odd: 3"
    assert repr(items[2]).startswith("<TaskRun 'halve[2]' failed")


def test_other_tasks_have_no_items(result):
    assert all(run.items == () for run in result.tasks.values())


def test_an_item_is_found_by_its_name_and_is_no_key(executor):
    tasks = halves(executor).tasks
    assert tasks["halve[3]"].value == 3
    assert tasks.get("halve[2]").state == "failed"
    assert list(tasks) == ["source", "halve", "below"]
    assert len(tasks) == len(list(tasks.values())) == 3
    with pytest.raises(KeyError, match=r"no task is named 'halve\[4\]' here; there are 'source', 'halve', 'below'"):
        tasks["halve[4]"]


def test_the_value_of_an_item_is_no_result_of_the_run(executor):
    result = halves(executor)
    assert result == {"source": [4, 0, 3, 6]}
    assert "halve[0]" not in result
    with pytest.raises(KeyError, match="1 of 4 items failed"):
        result["halve"]


def test_a_failed_mapped_task_is_one_failure(executor):
    result = halves(executor)
    assert (result.failed, list(result.errors)) == (["halve"], ["halve"])
    assert result.summary().startswith("halves: failed in")
    assert "(1 succeeded, 1 failed, 1 upstream_failed)" in result.summary()
    with pytest.raises(DAGExecutionError, match="1 task of 'halves' failed: 'halve'"):
        result.raise_for_failure()


def test_the_reason_below_a_mapped_task_names_the_first_item_that_failed(executor):
    assert "'halve[2]': ValueError: odd: 3" in halves(executor).tasks["below"].reason


def test_a_run_of_a_failed_item_alone_raises_the_group(executor):
    with pytest.raises(TaskExecutionError, match="task 'halve' failed after 1 attempt") as caught:
        halves(executor, fail_fast=True, raise_on_failure=True)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.result.tasks["halve"].items) == 4


def test_items_survive_a_copy_and_a_pickle():
    plain = Task("plain", str).map()
    Task("source", lambda: [1, 2]) >> plain
    result = DAG("etl", tasks=[plain]).run()
    for copied in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert copied == {"source": [1, 2], "plain": ["1", "2"]}
        assert [item.value for item in copied.tasks["plain"].items] == ["1", "2"]
        assert copied.tasks["plain[1]"].name == "plain[1]"
