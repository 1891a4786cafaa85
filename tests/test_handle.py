"""Runs in the background: the handle that dag.start() gives."""

import threading

import pytest

from flowkit import (
    DAG,
    BindingError,
    DAGExecutionError,
    FlowkitError,
    OptionError,
    RunCancelledError,
    RunHandle,
    RunResult,
    Task,
    TaskExecutionError,
)


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


class Gate:
    """A task that waits: *reached* says that it runs, *open* lets it go on."""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *_):
        self.reached.set()
        return self.open.wait(5)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open.set()


def etl(gate):
    """before ─► gate ─► after"""
    with DAG("etl") as dag:
        Task("before", lambda: "b") >> Task("gate", gate) >> Task("after", lambda gate: "a")
    return dag


def test_start_returns_while_the_run_goes_on(gate, executor):
    """before ─► gate ─► after"""
    handle = etl(gate).start(executor=executor)
    assert isinstance(handle, RunHandle)
    assert gate.reached.wait(5)
    assert not handle.done()
    gate.open.set()
    result = handle.result(5)
    assert handle.done()
    assert result == {"before": "b", "gate": True, "after": "a"}
    assert result.run_id == handle.run_id


def test_start_takes_the_arguments_of_run():
    seen = []
    dag = DAG("etl", tasks=[Task("a", lambda date: date), Task("b", lambda: 1)], inputs={"date": "today"})
    handle = dag.start({"date": "tomorrow"}, targets=["a"], observers=[seen.append], max_workers=1)
    assert handle.result(5) == {"a": "tomorrow"}
    assert len(seen) == 4


def test_result_can_be_asked_for_again_and_is_the_same():
    handle = DAG("etl", tasks=[Task("a", lambda: [1])]).start()
    assert handle.result(5) == handle.result() == {"a": [1]}


def test_a_result_that_is_not_there_in_time_is_a_timeout_error_and_the_run_goes_on(gate, executor):
    handle = etl(gate).start(executor=executor)
    assert gate.reached.wait(5)
    with pytest.raises(TimeoutError, match=f"run {handle.run_id} of 'etl' is not over after 0.01 s"):
        handle.result(0.01)
    gate.open.set()
    assert handle.result(5)["after"] == "a"


def test_a_snapshot_shows_what_has_succeeded_and_the_state_of_every_task(gate, executor):
    """before ─► gate ─► after; the run stands at the gate"""
    handle = etl(gate).start(executor=executor)
    assert gate.reached.wait(5)
    snapshot = handle.snapshot()
    gate.open.set()
    handle.result(5)
    assert isinstance(snapshot, RunResult)
    assert snapshot == {"before": "b"}
    assert (snapshot.state, snapshot.ok) == ("running", False)
    assert {name: run.state for name, run in snapshot.tasks.items()} == {
        "before": "succeeded", "gate": "running", "after": "pending",
    }  # fmt: skip
    assert snapshot.tasks["gate"].started_at is not None
    assert snapshot.tasks["gate"].ended_at is None
    assert snapshot.duration > 0
    assert "1 pending, 1 running, 1 succeeded" in snapshot.summary()
    for name, said in (("gate", "'gate' is running"), ("after", "'after' has not started")):
        with pytest.raises(KeyError) as caught:
            snapshot[name]
        assert str(caught.value) == said


def test_a_snapshot_does_not_change_when_the_run_goes_on(gate):
    handle = etl(gate).start()
    assert gate.reached.wait(5)
    snapshot = handle.snapshot()
    before = snapshot.to_dict()
    gate.open.set()
    handle.result(5)
    assert snapshot.to_dict() == before


def test_a_snapshot_of_a_finished_run_is_its_result(executor):
    handle = DAG("etl", tasks=[Task("a", lambda: 1)]).start(executor=executor)
    result = handle.result(5)
    assert handle.snapshot() == result
    assert handle.snapshot().duration == result.duration
    assert handle.snapshot().state == "succeeded"


def test_a_failure_is_raised_by_result_each_time(executor):
    handle = DAG("etl", tasks=[Task("a", lambda: 1 / 0)]).start(executor=executor)
    for _ in range(2):
        with pytest.raises(TaskExecutionError) as caught:
            handle.result(5)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert handle.done()


def test_raise_on_failure_and_fail_fast_apply_to_result(executor):
    dag = DAG("etl", tasks=[Task("a", lambda: 1 / 0)])
    assert dag.start(executor=executor, raise_on_failure=False).result(5).failed == ["a"]
    with pytest.raises(DAGExecutionError):
        dag.start(executor=executor, fail_fast=False).result(5)


def test_a_wrong_graph_or_argument_is_raised_by_start():
    with pytest.raises(BindingError):
        DAG("etl", tasks=[Task("a", lambda rows: rows)]).start()
    with pytest.raises(OptionError):
        DAG("etl", tasks=[]).start(max_workers=0)


def test_cancelling_says_why_and_the_result_has_what_was_done(gate):
    """before ─► gate ─► after"""
    handle = etl(gate).start()
    assert gate.reached.wait(5)
    handle.cancel("the user went home")
    gate.open.set()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(5)
    assert caught.value.reason == "the user went home"
    assert str(caught.value) == "run of 'etl' was cancelled: the user went home"
    assert caught.value.result["before"] == "b"
    assert caught.value.result.tasks["after"].reason == "the user went home"


def test_a_cancelled_run_raises_even_with_raise_on_failure_off(gate):
    handle = etl(gate).start(raise_on_failure=False)
    assert gate.reached.wait(5)
    handle.cancel()
    gate.open.set()
    with pytest.raises(RunCancelledError, match="was cancelled: cancelled"):
        handle.result(5)


def test_the_first_cancel_counts(gate):
    handle = etl(gate).start()
    assert gate.reached.wait(5)
    handle.cancel("first")
    handle.cancel("second")
    gate.open.set()
    with pytest.raises(RunCancelledError, match="first"):
        handle.result(5)


def test_cancelling_a_finished_run_does_nothing(executor):
    handle = DAG("etl", tasks=[Task("a", lambda: 1)]).start(executor=executor)
    handle.result(5)
    handle.cancel("too late")
    assert handle.result() == {"a": 1}
    assert handle.snapshot().state == "succeeded"


def test_cancel_returns_at_once_even_if_the_task_does_not_stop(gate):
    handle = etl(gate).start()
    assert gate.reached.wait(5)
    handle.cancel()
    assert not gate.open.is_set()  # it has not waited for the gate
    gate.open.set()
    with pytest.raises(RunCancelledError):
        handle.result(5)


def test_runs_of_one_dag_go_on_side_by_side():
    """Five runs whose tasks wait for each other"""
    together = threading.Barrier(5)
    dag = DAG("etl", tasks=[Task("a", lambda: together.wait(5) >= 0)])
    handles = [dag.start() for _ in range(5)]
    assert [handle.result(5)["a"] for handle in handles] == [True] * 5
    assert len({handle.run_id for handle in handles}) == 5


def test_a_run_goes_on_when_nobody_holds_its_handle(gate):
    done = threading.Event()
    with DAG("etl") as dag:
        Task("gate", gate) >> Task("after", lambda gate: done.set())
    dag.start()
    assert gate.reached.wait(5)
    gate.open.set()
    assert done.wait(5)


def test_the_controlling_thread_is_a_daemon(gate):
    etl(gate).start()
    assert gate.reached.wait(5)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("flowkit-")]
    assert {thread.name for thread in threads} == {"flowkit-run", "flowkit-thread-1"}
    assert all(thread.daemon for thread in threads)


def test_without_a_thread_to_control_it_a_run_does_not_start(mocker):
    mocker.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
    with pytest.raises(FlowkitError, match="to control the run: can't start new thread"):
        DAG("etl", tasks=[Task("a", lambda: 1)]).start()


def test_what_breaks_the_run_itself_is_raised_by_result(mocker):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("flowkit-thread"):
            raise RuntimeError("can't start new thread")
        start(thread)

    mocker.patch.object(threading.Thread, "start", refuse)
    handle = DAG("etl", tasks=[Task("a", lambda: 1)]).start()
    with pytest.raises(FlowkitError, match="cannot start a thread to run tasks on"):
        handle.result(5)
    assert handle.done()


def test_repr_says_whether_it_is_done(gate):
    handle = etl(gate).start()
    assert repr(handle) == f"<RunHandle {handle.run_id} of 'etl' running>"
    gate.open.set()
    handle.result(5)
    assert repr(handle) == f"<RunHandle {handle.run_id} of 'etl' done>"
