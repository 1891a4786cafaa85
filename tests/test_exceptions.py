"""The errors: their tree, their texts, and that they survive pickling."""

import copy
import pickle
import re
import traceback

import pytest

from flowkit import DAG, Skip, Task, exceptions, task
from flowkit.exceptions import (
    BindingError,
    ConditionError,
    DAGCycleError,
    DAGExecutionError,
    DefinitionError,
    DuplicateTaskError,
    FlowkitError,
    GiveUp,
    NotPicklableError,
    OptionError,
    RemoteError,
    RetryAfter,
    RunCancelledError,
    RunTimeoutError,
    StateCorruptError,
    StateError,
    StateLockedError,
    StateSerializationError,
    StateVersionError,
    StateWriteError,
    TaskExecutionError,
    TaskNotFoundError,
    TaskResultError,
    TaskTimeoutError,
    WorkerDiedError,
    WorkflowExecutionError,
)

SAMPLES = [
    FlowkitError("this process was forked"),
    DefinitionError("one problem"),
    DefinitionError("DAG 'etl' has 2 problems:", [OptionError("retries=-1"), DAGCycleError(["a", "b", "a"])]),
    DAGCycleError(["a", "b", "c", "a"]),
    DAGCycleError(["a", "a"]),
    DuplicateTaskError("load", "etl.py:3", "etl.py:9"),
    BindingError("task 'score(rows, model)' is wired to 1 task ('rows')"),
    TaskNotFoundError("no task is named 'laod'"),
    OptionError("retries=-1 must be an integer"),
    TaskExecutionError("fetch", 3, 4.2, "ConnectionError: refused"),
    TaskTimeoutError("fetch", 2, 30.0),
    ConditionError("fetch", "the condition (when) of task 'fetch' raised ValueError"),
    TaskResultError("fetch", "task 'fetch' returned a generator: return a list"),
    NotPicklableError("fetch", "task 'fetch': its function <lambda> cannot be sent to a process"),
    WorkerDiedError("fetch", 4711, -9),
    WorkerDiedError("fetch", 4711, 3),
    RemoteError("fetch", "Refused", "no", "Traceback: ..."),
    WorkflowExecutionError("etl", "fetch", 3, 1.5, "ValueError: no"),
    DAGExecutionError("1 task of 'etl' failed: 'fetch'", [TaskExecutionError("fetch", 1, 0.1, "ValueError: no")]),
    RunCancelledError("etl", "deployment"),
    RunTimeoutError("etl", "it took longer than its timeout of 5 s"),
    StateError("an SQLite database cannot be in memory"),
    StateWriteError("/var/state.json", 28, "write", "No space left on device"),
    StateCorruptError("/var/state.db", "it is no database", 3),
    StateLockedError("etl", "/var/state.json", 4711, "host", "2026-01-31T23:59:59+00:00"),
    StateVersionError("/var/state.json", "7", "1"),
    StateSerializationError("['x'][3]", "a lock of _thread cannot be stored"),
    StateSerializationError("", "a lock of _thread cannot be stored", "task 'fetch': result"),
    Skip("no rows"),
    GiveUp("card declined"),
    RetryAfter(12),
    RetryAfter(0.5, "rate limited"),
]

TREE = {
    FlowkitError: Exception,
    DefinitionError: (FlowkitError, ValueError),
    DAGCycleError: DefinitionError,
    DuplicateTaskError: DefinitionError,
    BindingError: (DefinitionError, TypeError),
    TaskNotFoundError: (DefinitionError, LookupError),
    OptionError: DefinitionError,
    TaskExecutionError: FlowkitError,
    TaskTimeoutError: (TaskExecutionError, TimeoutError),
    ConditionError: TaskExecutionError,
    TaskResultError: TaskExecutionError,
    NotPicklableError: TaskExecutionError,
    WorkerDiedError: TaskExecutionError,
    RemoteError: TaskExecutionError,
    WorkflowExecutionError: (TaskExecutionError, RuntimeError),
    DAGExecutionError: (FlowkitError, ExceptionGroup),
    RunCancelledError: FlowkitError,
    RunTimeoutError: (RunCancelledError, TimeoutError),
    StateError: FlowkitError,
    StateWriteError: (StateError, OSError),
    StateCorruptError: StateError,
    StateLockedError: StateError,
    StateVersionError: StateError,
    StateSerializationError: (StateError, TypeError),
}


def named(samples):
    return [pytest.param(sample, id=f"{type(sample).__name__}-{n}") for n, sample in enumerate(samples)]


def public_classes():
    return {
        value
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, BaseException) and not name.startswith("_")
    }


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


# ---------------------------------------------------------------- travelling


def test_every_class_has_a_sample_here():
    assert {type(sample) for sample in SAMPLES} == public_classes()


@pytest.mark.parametrize("error", named(SAMPLES))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_survives_pickling_with_equal_text(error, protocol):
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert repr(back) == repr(error)


@pytest.mark.parametrize("error", named(SAMPLES))
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_it_survives_copying_with_equal_text(error, duplicate):
    back = duplicate(error)
    assert back is not error
    assert type(back) is type(error)
    assert str(back) == str(error)


@pytest.mark.parametrize("error", named(SAMPLES))
def test_its_fields_survive_pickling(error):
    plain = {name: value for name, value in vars(error).items() if isinstance(value, (str, int, float))}
    back = pickle.loads(pickle.dumps(error))
    assert {name: getattr(back, name) for name in plain} == plain


def test_the_problems_of_a_definition_error_survive_pickling():
    error = next(e for e in SAMPLES if type(e) is DefinitionError and e.problems)
    back = pickle.loads(pickle.dumps(error))
    assert [(type(p), str(p)) for p in back.problems] == [(type(p), str(p)) for p in error.problems]


def test_the_errors_of_a_group_survive_pickling():
    error = next(e for e in SAMPLES if type(e) is DAGExecutionError)
    back = pickle.loads(pickle.dumps(error))
    assert [(type(e), str(e)) for e in back.exceptions] == [(type(e), str(e)) for e in error.exceptions]


def test_an_error_travels_without_the_values_of_the_run(executor):
    """A result may hold what no pickle can; the error must get through all the same."""

    @task
    def lock():
        import threading

        return threading.Lock()

    @task
    def fail(lock):
        raise ValueError("no")

    lock >> fail
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[fail]).run(executor=executor)
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value)
    assert back.result is None


# ---------------------------------------------------------------- the tree


@pytest.mark.parametrize("error", [pytest.param(error, id=error.__name__) for error in TREE])
def test_it_has_its_place_in_the_tree(error):
    bases = TREE[error] if isinstance(TREE[error], tuple) else (TREE[error],)
    assert error.__bases__ == bases or (
        # a private class may stand in between
        all(issubclass(error, base) for base in bases) and error.__bases__[0].__name__.startswith("_")
    )


def test_the_tree_is_complete():
    assert set(TREE) | {Skip, GiveUp, RetryAfter} == public_classes()


@pytest.mark.parametrize("order", [Skip, GiveUp, RetryAfter])
def test_what_a_task_raises_to_say_how_it_ended_is_no_error_of_flowkit(order):
    assert order.__bases__ == (Exception,)


def test_the_tree_in_the_docstring_names_every_error():
    for error in TREE:
        assert error.__name__ in exceptions.__doc__


def test_all_lists_every_class():
    assert sorted(exceptions.__all__) == sorted(error.__name__ for error in public_classes())


# ---------------------------------------------------------------- a task failed


def test_a_failed_task_says_which_how_often_and_why(executor):
    """The error carries the name, the attempts, what the others gave, and the task's own exception."""

    @task
    def rows():
        return [1, 2]

    @task(retries=2, delay=0)
    def fetch(rows):
        raise ConnectionError("refused")

    rows >> fetch
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[fetch]).run(executor=executor)
    error = caught.value
    assert re.fullmatch(r"task 'fetch' failed after 3 attempts in [\d.e-]+ s: ConnectionError: refused", str(error))
    assert type(error) is TaskExecutionError
    assert (error.task_name, error.attempts) == ("fetch", 3)
    assert dict(error.result) == {"rows": [1, 2]}
    assert error.result.tasks["fetch"].error is error.__cause__
    assert type(error.__cause__) is ConnectionError


def plain():
    raise ValueError("no")


def deeper():
    plain()


CALLS = {
    "plain": {},
    "with retries": {"retries": 1, "delay": 0},
    "with a condition": {"when": lambda: True},
    "with a timeout": {"timeout": 60},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_the_cause_has_the_users_own_traceback_first(executor, options):
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("t", deeper, **options)]).run(executor=executor)
    frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
    assert [frame.name for frame in frames] == ["deeper", "plain"]
    assert {frame.filename for frame in frames} == {__file__}


@pytest.mark.parametrize("observers", [[], [lambda event: None]], ids=["unwatched", "watched"])
def test_the_users_traceback_comes_first_whoever_watches(executor, observers):
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("t", deeper)]).run(executor=executor, observers=observers)
    assert traceback.extract_tb(caught.value.__cause__.__traceback__)[0].name == "deeper"


def test_the_cause_keeps_its_own_cause(executor):
    @task
    def pay():
        try:
            raise KeyError("token")
        except KeyError as error:
            raise GiveUp("card declined") from error

    with pytest.raises(TaskExecutionError, match="card declined") as caught:
        DAG("pay", tasks=[pay]).run(executor=executor)
    assert type(caught.value.__cause__) is GiveUp
    assert type(caught.value.__cause__.__cause__) is KeyError


def test_the_printed_traceback_shows_the_users_line(executor):
    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("t", deeper)]).run(executor=executor)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise ValueError("no")' in text
    assert "The above exception was the direct cause" in text


# ---------------------------------------------------------------- several failed


def failing_dag():
    with DAG("two") as dag:

        @task
        def network():
            raise ConnectionError("refused")

        @task
        def disk():
            raise OSError("full")

        @task
        def fine():
            return 1

    return dag


def test_several_failures_come_as_one_group(executor):
    with pytest.raises(DAGExecutionError, match="2 tasks of 'two' failed") as caught:
        failing_dag().run(executor=executor, fail_fast=False)
    group = caught.value
    assert isinstance(group, ExceptionGroup)
    assert {error.task_name for error in group.exceptions} == {"network", "disk"}
    assert {type(error.__cause__) for error in group.exceptions} == {ConnectionError, OSError}
    assert dict(group.result) == {"fine": 1}


def test_one_failure_without_fail_fast_is_a_group_too(executor):
    with pytest.raises(DAGExecutionError) as caught:
        DAG("one", tasks=[Task("t", plain)]).run(executor=executor, fail_fast=False)
    assert [error.task_name for error in caught.value.exceptions] == ["t"]


def test_the_group_works_with_except_star(executor):
    caught = None
    try:
        failing_dag().run(executor=executor, fail_fast=False)
    except* TaskExecutionError as part:
        caught = part
    assert type(caught) is DAGExecutionError
    assert {error.task_name for error in caught.exceptions} == {"network", "disk"}
    assert dict(caught.result) == {"fine": 1}


def test_the_group_splits_by_what_the_tasks_raised(executor):
    with pytest.raises(DAGExecutionError) as caught:
        failing_dag().run(executor=executor, fail_fast=False)
    network, rest = caught.value.split(lambda error: isinstance(error.__cause__, ConnectionError))
    assert type(network) is type(rest) is DAGExecutionError
    assert [error.task_name for error in network.exceptions] == ["network"]
    assert network.result is rest.result is caught.value.result


# ---------------------------------------------------------------- a run ended early


def test_a_cancelled_run_names_the_dag_and_the_reason():
    error = RunCancelledError("etl", "deployment")
    assert str(error) == "run of 'etl' was cancelled: deployment"
    assert error.reason == "deployment"


def test_a_run_timeout_is_a_timeout_and_a_cancellation():
    with pytest.raises(TimeoutError):
        raise RunTimeoutError("etl", "it took longer than 5 s")
    with pytest.raises(RunCancelledError):
        raise RunTimeoutError("etl", "it took longer than 5 s")


# ---------------------------------------------------------------- results say why they are not there


def test_the_key_error_of_a_result_says_why_it_is_absent(executor):
    """ok ─► skipped        bad ─► below"""
    with DAG("etl") as dag:

        @task
        def ok():
            return 1

        @task(when=lambda ok: ok > 1)
        def big(ok): ...

        @task
        def empty():
            raise Skip("no rows")

        @task
        def bad():
            raise ConnectionError("refused")

        @task
        def below(bad): ...

        ok >> big
        bad >> below
    result = dag.run(executor=executor, fail_fast=False, raise_on_failure=False)
    texts = {}
    for name in ("big", "empty", "bad", "below", "beloww"):
        with pytest.raises(KeyError) as caught:
            result[name]
        texts[name] = str(caught.value)
    assert texts == {
        "big": "'big' was skipped: when() was false",
        "empty": "'empty' was skipped: no rows",
        "bad": "'bad' failed: ConnectionError: refused",
        "below": "'below' did not run: upstream 'bad' failed: ConnectionError: refused",
        "beloww": "no task of 'etl' is named 'beloww' (did you mean 'below'?)",
    }


def test_the_key_error_of_task_runs_lists_what_there_is(executor):
    result = DAG("etl", tasks=[Task("t", int)]).run(executor=executor)
    with pytest.raises(KeyError, match="no task is named 'u' here; there are 't'"):
        result.tasks["u"]


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            DAGCycleError(["load", "clean", "join", "load"]),
            "tasks form a cycle: 'load' >> 'clean' >> 'join' >> 'load'. Remove one of these edges; nothing has run.",
        ),
        (DAGCycleError(["a", "a"]), "tasks form a cycle: 'a' >> 'a'. Remove this edge; nothing has run."),
        (
            TaskExecutionError("fetch", 3, 4.2, "ConnectionError: refused"),
            "task 'fetch' failed after 3 attempts in 4.2 s: ConnectionError: refused",
        ),
        (
            TaskExecutionError("fetch", 1, 4.2, "ConnectionError: refused"),
            "task 'fetch' failed after 1 attempt in 4.2 s: ConnectionError: refused",
        ),
        (TaskTimeoutError("fetch", 2, 30.0), "attempt 2 of task 'fetch' took longer than its timeout of 30 s"),
    ],
)
def test_text(error, text):
    assert str(error) == text


def test_a_cycle_of_a_hundred_thousand_tasks_is_cut_to_ten_names():
    names = [f"task_{n}" for n in range(100_000)]
    text = str(DAGCycleError([*names, names[0]]))
    assert "'task_0' >> 'task_1'" in text
    assert "'task_9' >> ... 99991 more" in text
    assert len(text) < 500


def test_many_problems_are_cut_to_ten():
    text = str(DefinitionError("DAG 'etl' has 30 problems:", [OptionError(f"problem {n}") for n in range(30)]))
    assert "problem 9" in text
    assert "problem 10" not in text
    assert text.endswith("... 20 more")


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "3", True, None, 2e9, 10**400])
def test_retry_after_refuses_what_is_no_wait(wait):
    with pytest.raises(OptionError, match=r"RetryAfter.*must be a number of seconds from 0 to 1e9"):
        RetryAfter(wait)
