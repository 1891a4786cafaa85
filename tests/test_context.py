"""What a running task can ask of its run, and which context variables it sees."""

import asyncio
import contextvars
import logging
import threading

import pytest

from flowkit import (
    DAG,
    FlowkitError,
    RunCancelledError,
    Skip,
    Task,
    TaskContext,
    TaskExecutionError,
    current_context,
    task,
)
from flowkit.testing import VirtualClock

EXECUTORS = ["thread", "sequential"]
request_id = contextvars.ContextVar("request_id", default="none")


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


# ---------------------------------------------------------------- getting it


def test_a_parameter_named_context_gets_the_context_and_never_a_result(executor):
    """rows ─► load"""
    with DAG("etl") as dag:

        @task
        def rows():
            return [1, 2]

        @task
        def load(context, rows):
            return context, rows

        rows >> load
    result = dag.run(executor=executor)
    context, given = result["load"]
    assert given == [1, 2]
    assert isinstance(context, TaskContext)
    assert (context.task_name, context.run_id, context.attempt) == ("load", result.run_id, 1)


def by_class(rows, where: TaskContext):
    return where, rows


def by_text(rows, where: "TaskContext"):
    return where, rows


def by_quoted_text(rows, where: "'TaskContext'"):
    return where, rows


def by_dotted_text(rows, *, where: "flowkit.TaskContext"):  # noqa: F821 - never evaluated
    return where, rows


@pytest.mark.parametrize("func", [by_class, by_text, by_quoted_text, by_dotted_text])
def test_a_parameter_annotated_with_the_class_gets_it_under_any_name(func, executor):
    """rows ─► load"""
    with DAG("etl") as dag:
        Task("rows", lambda: [1]) >> Task("load", func)
    context, rows = dag.run(executor=executor)["load"]
    assert (context.task_name, rows) == ("load", [1])


def test_a_parameter_annotated_otherwise_gets_the_result(executor):
    """rows ─► load"""

    def load(where: "list[TaskContext]"):
        return where

    with DAG("etl") as dag:
        Task("rows", lambda: [1]) >> Task("load", load)
    assert dag.run(executor=executor)["load"] == [1]


def test_current_context_finds_it_anywhere_in_the_task(executor):
    """a ─► b"""

    def helper():
        return current_context().task_name

    with DAG("etl") as dag:
        Task("a", helper) >> Task("b", lambda a: (a, helper()))
    assert dag.run(executor=executor)["b"] == ("a", "b")


def test_current_context_finds_it_in_a_condition_too(executor):
    names = []
    made = Task("a", lambda: 1, when=lambda: names.append(current_context().task_name) or True)
    DAG("etl", tasks=[made]).run(executor=executor)
    assert names == ["a"]


def test_outside_of_a_task_there_is_no_context():
    with pytest.raises(FlowkitError, match="no task of a run is running here"):
        current_context()
    DAG("etl", tasks=[Task("a", lambda: 1)]).run(executor="sequential")
    with pytest.raises(FlowkitError, match="no task of a run is running here"):
        current_context()


def test_a_direct_call_has_no_context():
    with pytest.raises(FlowkitError, match="Call it inside a task"):
        Task("a", current_context)()


def test_an_observer_has_no_context(executor):
    found = []

    def observe(event):
        try:
            found.append(current_context())
        except FlowkitError:
            found.append(None)

    DAG("etl", tasks=[Task("a", lambda: 1)]).run(executor=executor, observers=[observe])
    assert found == [None] * 4


def test_a_thread_started_with_a_copy_of_the_context_finds_it(executor):
    found = []

    def work():
        copied = contextvars.copy_context()
        thread = threading.Thread(target=lambda: found.append(copied.run(current_context).task_name))
        thread.start()
        thread.join()

    DAG("etl", tasks=[Task("a", work)]).run(executor=executor)
    assert found == ["a"]


def test_a_thread_started_without_one_finds_none():
    """contextvars.Context() is what a thread gets that copies nothing."""
    found = []

    def work():
        with pytest.raises(FlowkitError, match="no task of a run"):
            contextvars.Context().run(current_context)
        found.append(True)

    DAG("etl", tasks=[Task("a", work)]).run()
    assert found == [True]


def test_coroutines_and_asyncio_threads_of_a_task_find_it(executor):
    async def main():
        return current_context().task_name, (await asyncio.to_thread(current_context)).task_name

    made = Task("a", lambda: asyncio.run(main()))
    assert DAG("etl", tasks=[made]).run(executor=executor)["a"] == ("a", "a")


def test_a_run_inside_a_task_has_its_own_context(executor):
    """outer, which runs inner"""
    inner = DAG("inner", tasks=[Task("inner", lambda: current_context().task_name)])

    def outer():
        found = inner.run(executor=executor)["inner"]
        return found, current_context().task_name

    assert DAG("outer", tasks=[Task("outer", outer)]).run(executor=executor)["outer"] == ("inner", "outer")


# ---------------------------------------------------------------- what it says


def test_attempt_counts_from_one(executor):
    seen = []

    def flaky(context):
        seen.append((context.attempt, current_context().attempt))
        if context.attempt < 3:
            raise ValueError("not yet")
        return context.attempt

    dag = DAG("etl", tasks=[Task("a", flaky, retries=5, jitter=0)])
    assert VirtualClock().run(dag, executor=executor)["a"] == 3
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_upstream_holds_the_task_run_of_each_neighbour_whatever_its_end(executor):
    """good, bad, idle ─► report (all_done); far ─► good"""

    def bad():
        raise ConnectionError("refused")

    def idle():
        raise Skip("nothing")

    seen = {}

    def report(context, *values):
        seen.update({name: (run.state, run.value, repr(run.error)) for name, run in context.upstream.items()})
        return values

    with DAG("etl") as dag:
        far = Task("far", lambda: 0)
        ends = [Task("good", lambda far: 7), Task("bad", bad), Task("idle", idle)]
        far >> ends[0]
        ends >> Task("report", report, trigger="all_done")
    result = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)
    assert seen == {
        "good": ("succeeded", 7, "None"),
        "bad": ("failed", None, "ConnectionError('refused')"),
        "idle": ("skipped", None, "None"),
    }
    assert result["report"] == (7, None, None)


def test_upstream_knows_no_other_task():
    """far ─► near ─► load"""

    def load(near, context):
        with pytest.raises(KeyError, match="no task is named 'far' here; there are 'near'"):
            context.upstream["far"]
        return list(context.upstream)

    with DAG("etl") as dag:
        Task("far", lambda: 1) >> Task("near", lambda far: far) >> Task("load", load)
    assert dag.run()["load"] == ["near"]


def test_repr_names_the_attempt():
    result = DAG("etl", tasks=[Task("a", lambda: repr(current_context()))]).run()
    assert result["a"] == f"<TaskContext task='a' attempt=1 run={result.run_id}>"


def test_log_is_a_stdlib_logger_whose_records_say_which_task(executor, caplog):
    def load(context):
        context.log.warning("%d rows are late", 3)

    caplog.set_level(logging.INFO)
    result = DAG("etl", tasks=[Task("load", load)]).run(executor=executor)
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("flowkit.task", "3 rows are late")
    assert (record.task_name, record.run_id, record.attempt) == ("load", result.run_id, 1)


# ---------------------------------------------------------------- being asked to stop


def test_nobody_is_cancelled_in_a_run_that_goes_on(executor):
    def work(context):
        context.check_cancelled()
        return context.is_cancelled()

    assert DAG("etl", tasks=[Task("a", work)]).run(executor=executor)["a"] is False


def test_a_running_task_sees_that_the_run_was_cancelled():
    running, seen = threading.Event(), []

    def work(context):
        running.set()
        until_cancelled(context)
        seen.append(context.is_cancelled())
        context.check_cancelled()

    handle = DAG("etl", tasks=[Task("a", work)]).start()
    assert running.wait(5)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough") as caught:
        handle.result(5)
    assert seen == [True]
    assert caught.value.result.tasks["a"].state == "cancelled"


def until_cancelled(context):
    waiting = threading.Event()
    while not (context.is_cancelled() or waiting.wait(0.001)):
        pass


def test_after_a_failure_only_tasks_that_accept_one_are_not_asked_to_stop():
    """bad; worker; boss ─► alert (one_failed): alert starts after the failure and is wanted"""
    started, asked = threading.Event(), []

    def bad():
        assert started.wait(5)
        raise ValueError("no")

    def worker(context):
        started.set()
        until_cancelled(context)
        asked.append("worker")
        context.check_cancelled()

    with DAG("etl") as dag:
        Task("worker", worker)
        Task("bad", bad) >> Task("alert", lambda context, bad: context.is_cancelled(), trigger="one_failed")
    result = dag.run(raise_on_failure=False)
    assert asked == ["worker"]
    assert result["alert"] is False
    assert result.tasks["worker"].state == "cancelled"


def test_an_attempt_that_timed_out_sees_that_nobody_waits_for_it():
    timed_out = threading.Event()
    seen = []

    def work(context):
        if context.attempt == 1:
            timed_out.wait(5)
            until_cancelled(context)
            seen.append((context.attempt, context.is_cancelled()))
            done.set()
        return context.attempt

    done = threading.Event()
    made = Task("a", work, timeout=0.02, retries=1, delay=0, on_retry=lambda event: timed_out.set())
    result = DAG("etl", tasks=[made]).run()
    assert result["a"] == 2
    assert done.wait(5)
    assert seen == [(1, True)]


def test_raising_the_cancellation_without_being_cancelled_is_a_failure(executor):
    def work():
        raise RunCancelledError("etl", "I made this up")

    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("a", work)]).run(executor=executor)
    assert isinstance(caught.value.__cause__, RunCancelledError)
    assert caught.value.result.tasks["a"].state == "failed"


# ---------------------------------------------------------------- cleanup handlers


def cleaning(calls, *, ending=None):
    """Return tasks a ─► b that add the handlers a, b1 and b2, and of which b ends by raising *ending*."""

    async def handler_b1():
        await asyncio.sleep(0)
        calls.append("b1")

    def a(context):
        context.add_cleanup_handler(lambda: calls.append("a"))

    def b(a, context):
        context.add_cleanup_handler(handler_b1)
        context.add_cleanup_handler(lambda: calls.append("b2"))
        if ending is not None:
            raise ending

    with DAG("etl") as dag:
        Task("a", a) >> Task("b", b)
    return dag


def test_cleanup_handlers_run_after_a_failure_last_added_first(executor):
    calls = []
    cleaning(calls, ending=ValueError("no")).run(executor=executor, raise_on_failure=False)
    assert calls == ["b2", "b1", "a"]


def test_cleanup_handlers_run_after_a_failure_that_did_not_stop_the_run(executor):
    calls = []
    cleaning(calls, ending=ValueError("no")).run(executor=executor, raise_on_failure=False, fail_fast=False)
    assert calls == ["b2", "b1", "a"]


def test_cleanup_handlers_do_not_run_after_a_success(executor):
    calls = []
    cleaning(calls).run(executor=executor)
    assert calls == []


def test_cleanup_handlers_run_after_a_cancel():
    running, calls = threading.Event(), []

    def work(context):
        context.add_cleanup_handler(lambda: calls.append("cleaned"))
        running.set()
        until_cancelled(context)

    handle = DAG("etl", tasks=[Task("a", work)]).start()
    assert running.wait(5)
    handle.cancel()
    with pytest.raises(RunCancelledError):
        handle.result(5)
    assert calls == ["cleaned"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_broken_cleanup_handler_is_logged_and_the_others_run(executor, error, caplog):
    calls = []

    def broken():
        raise error("the handler itself")

    async def broken_too():
        raise error("the coroutine itself")

    def work(context):
        context.add_cleanup_handler(lambda: calls.append("first"))
        context.add_cleanup_handler(broken)
        context.add_cleanup_handler(broken_too)
        raise KeyError("the task's own")

    with pytest.raises(TaskExecutionError, match="the task's own"):
        DAG("etl", tasks=[Task("a", work)]).run(executor=executor)
    assert calls == ["first"]
    logged = [(record.name, str(record.exc_info[1])) for record in caplog.records]
    assert logged == [("flowkit", "the coroutine itself"), ("flowkit", "the handler itself")]


def test_a_cleanup_handler_must_be_callable():
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("a", lambda context: context.add_cleanup_handler(3))]).run()
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_async_cleanup_handler_runs_even_inside_a_running_event_loop():
    calls = []

    async def main():
        cleaning(calls, ending=ValueError("no")).run(raise_on_failure=False)

    asyncio.run(main())
    assert calls == ["b2", "b1", "a"]


# ---------------------------------------------------------------- context variables


def test_the_callers_context_variables_are_visible_in_every_task(executor):
    """a ─► b, both directly and through a condition and a context parameter"""
    seen = []
    with DAG("etl") as dag:
        a = Task("a", request_id.get, when=lambda: seen.append(request_id.get()) or True)
        a >> Task("b", lambda a, context: (a, request_id.get())) >> Task("c", lambda b: request_id.get())
    token = request_id.set("17")
    try:
        result = dag.run(executor=executor)
    finally:
        request_id.reset(token)
    assert result == {"a": "17", "b": ("17", "17"), "c": "17"}
    assert seen == ["17"]


def test_they_are_those_of_the_moment_of_the_run():
    dag = DAG("etl", tasks=[Task("a", request_id.get)])
    assert dag.run()["a"] == "none"
    assert contextvars.Context().run(lambda: request_id.set("18") and dag.run()["a"]) == "18"
    handle = contextvars.Context().run(lambda: request_id.set("19") and dag.start())
    assert handle.result(5)["a"] == "19"


def test_what_a_task_sets_no_other_task_and_no_caller_sees(executor):
    """a ─► b ─► c, all on one worker"""

    def change(given=None):
        before = request_id.get()
        request_id.set("changed")
        return before

    with DAG("etl") as dag:
        Task("a", change) >> Task("b", change) >> Task("c", lambda b, context: change())
    assert dict(dag.run(executor=executor, max_workers=1)) == {"a": "none", "b": "none", "c": "none"}
    assert request_id.get() == "none"


def test_what_an_attempt_sets_the_next_attempt_does_not_see(executor):
    seen = []

    def flaky():
        seen.append(request_id.get())
        request_id.set("changed")
        if len(seen) < 3:
            raise ValueError("not yet")

    VirtualClock().run(DAG("etl", tasks=[Task("a", flaky, retries=2)]), executor=executor)
    assert seen == ["none"] * 3


def test_what_a_condition_sets_its_task_sees(executor):
    made = Task("a", request_id.get, when=lambda: request_id.set("by the condition"))
    assert DAG("etl", tasks=[made]).run(executor=executor)["a"] == "by the condition"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_every_shape_of_call_has_its_own_copy(count, executor):
    """*count* tasks ─► last"""
    with DAG("etl") as dag:
        ups = [Task(f"u{i}", lambda: request_id.set("changed") and 1) for i in range(count)]
        last = Task("last", lambda *given: (request_id.get(), len(given)))
        ups >> last
    assert dag.run(executor=executor, max_workers=1)["last"] == ("none", count)
