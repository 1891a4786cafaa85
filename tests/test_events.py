"""Events: what a run tells its observers, in which order, and what a broken observer cannot do."""

import threading
import time

import pytest

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    RunFinished,
    RunStarted,
    Skip,
    Task,
    TaskCancelled,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
    events,
)
from flowkit.events import Event, EventStream
from flowkit.testing import VirtualClock

FINAL = (TaskSucceeded, TaskFailed, TaskSkipped, TaskUpstreamFailed, TaskCancelled)
EXECUTORS = ["thread", "sequential"]


def fail():
    raise ValueError("no")


def skip():
    raise Skip("nothing to do")


def told(dag, **options):
    """Return the events of a run."""
    seen = []
    VirtualClock().run(dag, observers=[seen.append], raise_on_failure=False, **options)
    return seen


def lines(seen):
    """Return each event as its type's and its task's name."""
    return [" ".join([type(event).__name__, getattr(event, "task_name", "")]).strip() for event in seen]


# ---------------------------------------------------------------- the events themselves


def test_an_event_does_not_change():
    event = AttemptStarted("17", 1.0, "load", 1)
    with pytest.raises(AttributeError, match="an event is a fact"):
        event.attempt = 2
    with pytest.raises(AttributeError):
        event.note = "new"
    with pytest.raises(AttributeError):
        del event.attempt
    assert (event.run_id, event.time, event.task_name, event.attempt) == ("17", 1.0, "load", 1)


def test_events_compare_by_identity():
    one, two = (AttemptStarted("17", 1.0, "load", 1) for _ in range(2))
    assert one != two
    assert len({one, two}) == 2


def test_repr_shows_the_facts_but_not_the_value():
    assert repr(AttemptStarted("17", 1.0, "load", 2)) == "AttemptStarted(task_name='load', attempt=2)"
    shown = repr(TaskSucceeded("17", 1.0, "load", "", list(range(10_000)), 1, 0.5))
    assert "task_name='load'" in shown
    assert "9999" not in shown


def test_an_event_must_get_all_of_its_facts():
    with pytest.raises(ValueError, match="zip"):
        AttemptStarted("17", 1.0, "load")


@pytest.mark.parametrize("kind", [*FINAL, TaskRestored])
def test_every_final_event_has_a_task_and_a_reason(kind):
    assert issubclass(kind, Event)
    assert {"task_name", "reason"} <= set(kind.__slots__)


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_run_tells_its_start_each_attempt_each_end_and_its_own_end(executor):
    """a ─► b"""
    with DAG("etl") as dag:
        a, b = Task("a", lambda: 1), Task("b", lambda a: a + 1)
        a >> b
    assert lines(told(dag, executor=executor)) == [
        "RunStarted", "AttemptStarted a", "TaskSucceeded a", "AttemptStarted b", "TaskSucceeded b",
        "RunFinished",
    ]  # fmt: skip


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_success_is_told_with_all_that_is_known(executor):
    """a"""
    clock = VirtualClock(start=100)
    seen = []
    dag = DAG("etl", tasks=[Task("a", lambda: clock.sleep(3) or [1, 2])])
    result = clock.run(dag, executor=executor, observers=[seen.append])
    started, attempt, success, finished = seen
    assert {event.run_id for event in seen} == {result.run_id}
    assert (started.dag_name, started.total_tasks, started.time) == ("etl", 1, 100.0)
    assert (attempt.task_name, attempt.attempt, attempt.time) == ("a", 1, 100.0)
    assert (success.value, success.attempts, success.duration, success.reason) == ([1, 2], 1, 3.0, "")
    assert success.time == 103.0
    assert (finished.dag_name, finished.state, finished.total_tasks) == ("etl", "succeeded", 1)
    assert (finished.duration, finished.time) == (3.0, 103.0)


def test_times_are_seconds_since_the_epoch():
    seen = []
    before = time.time()
    DAG("etl", tasks=[Task("a", lambda: 1)]).run(observers=[seen.append])
    assert all(before - 1 <= event.time <= time.time() + 1 for event in seen)
    assert [event.time for event in seen] == sorted(event.time for event in seen)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_each_failed_attempt_is_told_with_the_wait_before_the_next(executor):
    """a, which fails three times"""
    dag = DAG("etl", tasks=[Task("a", fail, retries=2, delay=1, backoff=10, jitter=0)])
    seen = told(dag, executor=executor)
    assert lines(seen) == [
        "RunStarted", "AttemptStarted a", "AttemptFailed a", "AttemptStarted a", "AttemptFailed a",
        "AttemptStarted a", "AttemptFailed a", "TaskFailed a", "RunFinished",
    ]  # fmt: skip
    failed = [event for event in seen if isinstance(event, AttemptFailed)]
    assert [event.retry_in for event in failed] == [1.0, 10.0, None]
    assert [event.attempt for event in failed] == [1, 2, 3]
    assert {event.max_attempts for event in failed} == {3}
    assert {repr(event.error) for event in failed} == {"ValueError('no')"}
    assert [event.attempt for event in seen if isinstance(event, AttemptStarted)] == [1, 2, 3]
    end = seen[-2]
    assert (end.attempts, end.duration, end.reason) == (3, 11.0, "ValueError: no")
    assert end.error is failed[-1].error
    assert seen[-1].state == "failed"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_other_end_is_told_with_its_reason(executor):
    """bad ─► below, idle ─► alone, off"""
    with DAG("etl") as dag:
        bad, below = Task("bad", fail), Task("below", lambda x: x)
        idle, alone = Task("idle", skip), Task("alone", lambda x: x)
        Task("off", lambda: 1, when=lambda: False)
        bad >> below
        idle >> alone
    seen = told(dag, executor=executor, fail_fast=False)
    ends = {event.task_name: event for event in seen if isinstance(event, FINAL)}
    assert {name: type(event) for name, event in ends.items()} == {
        "bad": TaskFailed, "below": TaskUpstreamFailed, "idle": TaskSkipped, "alone": TaskSkipped,
        "off": TaskSkipped,
    }  # fmt: skip
    assert ends["bad"].reason == "ValueError: no"
    assert ends["below"].reason == "upstream 'bad' failed: ValueError: no"
    assert ends["idle"].reason == "nothing to do"
    assert ends["alone"].reason.startswith("everything upstream was skipped: 'idle'")
    assert ends["off"].reason == "when() was false"


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("fail_fast", [True, False])
def test_every_task_has_exactly_one_final_event(executor, fail_fast):
    """src ─► bad, idle, good ─► join each; tail under the join; alert on failure"""
    with DAG("etl") as dag:
        src, bad, idle = Task("src", lambda: 1), Task("bad", lambda x: fail()), Task("idle", lambda x: skip())
        good, join, tail = Task("good", lambda x: x), Task("join", lambda *a: a), Task("tail", lambda x: x)
        alert = Task("alert", lambda: 1, trigger="one_failed")
        src >> [bad, idle, good] >> join >> tail
        join >> alert
    seen = told(dag, executor=executor, fail_fast=fail_fast)
    names = [event.task_name for event in seen if isinstance(event, FINAL)]
    assert sorted(names) == ["alert", "bad", "good", "idle", "join", "src", "tail"]
    assert isinstance(seen[0], RunStarted)
    assert isinstance(seen[-1], RunFinished)


def test_a_cancelled_run_tells_of_every_task_that_did_not_run():
    """a ─► b, c"""
    running, seen = threading.Event(), []
    with DAG("etl") as dag:
        a = Task("a", lambda context: running.set() or wait_until_cancelled(context))
        a >> [Task("b", lambda a: a), Task("c", lambda a: a)]
    handle = dag.start(observers=[seen.append])
    assert running.wait(5)
    handle.cancel("enough")
    with pytest.raises(Exception, match="enough"):
        handle.result(5)
    cancelled = {event.task_name: event.reason for event in seen if isinstance(event, TaskCancelled)}
    assert cancelled == {"a": "enough", "b": "enough", "c": "enough"}
    assert (type(seen[-1]), seen[-1].state) == (RunFinished, "cancelled")


def wait_until_cancelled(context):
    waiting = threading.Event()
    while not waiting.wait(0.001):
        context.check_cancelled()


@pytest.mark.parametrize("width", [1, 4])
def test_a_success_is_told_before_anything_below_it_starts(width):
    """20 chains of 5 tasks on many threads"""
    with DAG("chains") as dag:
        for k in range(20):
            above = None
            for n in range(5):
                made = Task(f"{k}.{n}", lambda x=None: x)
                if above is not None:
                    above >> made
                above = made
    seen = []
    dag.run(max_workers=width, observers=[seen.append])
    position = {line: n for n, line in enumerate(lines(seen))}
    assert len(position) == len(seen) == 2 + 2 * 100
    for k in range(20):
        for n in range(4):
            assert position[f"TaskSucceeded {k}.{n}"] < position[f"AttemptStarted {k}.{n + 1}"]


# ---------------------------------------------------------------- observers


def test_observers_of_the_dag_of_the_run_and_of_every_run_are_all_told(monkeypatch):
    everywhere, always, once = [], [], []
    monkeypatch.setattr(events, "default_observers", events.default_observers)
    events.default_observers.append(everywhere.append)
    try:
        dag = DAG("etl", tasks=[Task("a", lambda: 1)], observers=[always.append])
        dag.run(observers=[once.append])
        dag.run()
    finally:
        events.default_observers.remove(everywhere.append)
    assert len(once) == 4
    assert len(everywhere) == len(always) == 8
    assert everywhere[:4] == always[:4] == once


def test_observers_are_called_one_at_a_time_whatever_thread_a_task_is_on():
    """src ─► 60 tasks on 8 threads"""
    busy = threading.Lock()
    seen, overlaps = [], []

    def observe(event):
        if not busy.acquire(blocking=False):
            overlaps.append(event)
            return
        try:
            seen.append(event)
        finally:
            busy.release()

    with DAG("fan") as dag:
        Task("src", lambda: 1) >> [Task(f"t{i}", lambda x: x) for i in range(60)]
    dag.run(max_workers=8, observers=[observe])
    assert overlaps == []
    assert len(seen) == 2 + 2 * 61


def test_all_observers_see_the_same_order():
    """src ─► 40 tasks on 8 threads"""
    one, two = [], []
    with DAG("fan") as dag:
        Task("src", lambda: 1) >> [Task(f"t{i}", lambda x: x) for i in range(40)]
    dag.run(max_workers=8, observers=[one.append, two.append])
    assert one == two


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_broken_observer_is_logged_dropped_and_changes_nothing(error, caplog, may_abandon):
    """a ─► b"""
    calls, seen = [], []

    def broken(event):
        calls.append(event)
        if isinstance(event, TaskSucceeded):
            raise error("the observer itself")

    with DAG("etl") as dag:
        Task("a", lambda: 1) >> Task("b", lambda a: a + 1)
    result = dag.start(observers=[broken, seen.append]).result(2)
    assert dict(result) == {"a": 1, "b": 2}
    assert lines(calls) == ["RunStarted", "AttemptStarted a", "TaskSucceeded a"]
    assert len(seen) == 6
    (record,) = caplog.records
    assert record.name == "flowkit"
    assert "broken" in record.getMessage()
    assert "dropped" in record.getMessage()
    assert "the observer itself" in record.exc_text


def test_a_broken_observer_is_back_in_the_next_run(caplog):
    """a"""
    calls = []

    def broken(event):
        calls.append(event)
        raise ValueError("no")

    dag = DAG("etl", tasks=[Task("a", lambda: 1)], observers=[broken])
    dag.run()
    dag.run()
    assert lines(calls) == ["RunStarted", "RunStarted"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_observer_may_cancel_the_run_and_still_sees_one_event_at_a_time(executor):
    """a ─► b ─► c"""
    seen, depth = [], []
    handles, ready = [], threading.Event()

    def observe(event):
        assert not depth
        depth.append(event)
        seen.append(event)
        if isinstance(event, TaskSucceeded):
            assert ready.wait(5)
            handles[0].cancel("seen enough")
        depth.pop()

    with DAG("etl") as dag:
        Task("a", lambda: 1) >> Task("b", lambda a: a) >> Task("c", lambda b: b)
    handles.append(dag.start(observers=[observe], executor=executor))
    ready.set()
    with pytest.raises(Exception, match="seen enough"):
        handles[0].result(5)
    assert lines(seen) == [
        "RunStarted", "AttemptStarted a", "TaskSucceeded a", "TaskCancelled b", "TaskCancelled c",
        "RunFinished",
    ]  # fmt: skip


def test_observers_may_be_any_iterable_and_are_told_of_every_run():
    always, once = [], []
    dag = DAG("etl", tasks=[Task("a", lambda: 1)], observers=iter([always.append]))
    dag.run(observers=iter([once.append]))
    dag.run()
    assert (len(always), len(once)) == (8, 4)


@pytest.mark.parametrize("observers", [[3], ["print"], [None]])
def test_what_cannot_be_called_is_no_observer(observers):
    with pytest.raises(ValueError, match="must be callable with one event"):
        DAG("etl", tasks=[]).run(observers=observers)


# ---------------------------------------------------------------- the stream


def test_a_stream_delivers_nothing_before_it_is_asked_to_and_everything_in_order_then():
    seen = []
    stream = EventStream([seen.append])
    facts = [AttemptStarted("17", 0.0, "load", n) for n in range(3)]
    for fact in facts:
        stream.publish(fact)
    assert seen == []
    stream.deliver()
    assert seen == facts
    stream.deliver()
    assert seen == facts


def test_delivering_returns_only_when_what_another_thread_delivers_has_been_told():
    """Thread 1 is inside of an observer with event 0 when thread 2 publishes event 1 and delivers."""
    inside, go_on = threading.Event(), threading.Event()
    seen = []

    def observe(event):
        if event.attempt == 0:
            inside.set()
            assert go_on.wait(5)
        seen.append(event.attempt)

    stream = EventStream([observe])
    stream.publish(AttemptStarted("17", 0.0, "load", 0))
    first = threading.Thread(target=stream.deliver)
    first.start()
    assert inside.wait(5)
    stream.publish(AttemptStarted("17", 0.0, "load", 1))
    releaser = threading.Timer(0.02, go_on.set)
    releaser.start()
    stream.deliver()
    assert seen == [0, 1]
    first.join()
    releaser.join()


# ---------------------------------------------------------------- callbacks


def callbacks():
    seen = []
    return seen, {name: lambda event, name=name: seen.append((name, event)) for name in ON}


ON = ("on_success", "on_failure", "on_retry")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_callbacks_get_the_event(executor):
    """good; bad, which fails twice"""
    seen, each = callbacks()
    options = {"jitter": 0, "retries": 1, "delay": 3}
    dag = DAG("etl", tasks=[Task("good", lambda: 7, **each), Task("bad", fail, **each, **options)])
    VirtualClock().run(dag, executor=executor, fail_fast=False, raise_on_failure=False)
    ((name, success),) = [(name, event) for name, event in seen if event.task_name == "good"]
    assert (name, type(success), success.value) == ("on_success", TaskSucceeded, 7)
    (retry_name, retry), (failure_name, failure) = [each for each in seen if each[1].task_name == "bad"]
    assert (retry_name, type(retry), retry.attempt, retry.retry_in) == ("on_retry", AttemptFailed, 1, 3.0)
    assert (failure_name, type(failure), failure.attempts) == ("on_failure", TaskFailed, 2)


def test_on_retry_with_two_arguments_gets_the_name_and_the_attempt_that_failed():
    told = []

    def flaky(context):
        if context.attempt < 3:
            raise ConnectionError

    dag = DAG("etl", tasks=[Task(flaky, retries=2, on_retry=lambda name, attempt: told.append((name, attempt)))])
    VirtualClock().run(dag)
    assert told == [("flaky", 1), ("flaky", 2)]


def test_a_skipped_or_cancelled_task_calls_nothing():
    """bad ─► below; idle"""
    seen, each = callbacks()
    with DAG("etl") as dag:
        Task("bad", fail) >> Task("below", lambda x: x, **each)
        Task("idle", skip, **each)
    dag.run(fail_fast=False, raise_on_failure=False)
    assert seen == []


def test_only_the_tasks_own_callbacks_are_called():
    """a with on_success, b without"""
    seen = []
    DAG("etl", tasks=[Task("a", lambda: 1, on_success=seen.append), Task("b", lambda: 2)]).run()
    assert lines(seen) == ["TaskSucceeded a"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_broken_callback_is_logged_and_changes_nothing_and_is_called_again(error, caplog, may_abandon):
    """a ─► b, both with the same broken callback"""
    calls = []

    def broken(event):
        calls.append(event)
        raise error("the callback itself")

    with DAG("etl") as dag:
        Task("a", lambda: 1, on_success=broken) >> Task("b", lambda a: a + 1, on_success=broken)
    assert dict(dag.start().result(2)) == {"a": 1, "b": 2}
    assert lines(calls) == ["TaskSucceeded a", "TaskSucceeded b"]
    assert [record.name for record in caplog.records] == ["flowkit"] * 2
    assert "callback" in caplog.records[0].getMessage()
    assert "of task 'a'" in caplog.records[0].getMessage()
