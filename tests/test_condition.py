"""Conditions (``when``): which arguments they get, and what their answers mean."""

import itertools

import pytest

from flowkit import DAG, BindingError, ConditionError, Task, TaskExecutionError
from flowkit.engine.condition import choose, condition_arguments
from flowkit.testing import VirtualClock

A, B, C, D = (object() for _ in range(4))


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


# ---------------------------------------------------------------- choosing arguments


@pytest.mark.parametrize(("when", "expected"), [
    (lambda: 0, ([], {})),
    (lambda x: 0, ([A], {})),
    (lambda x, y: 0, ([A, B], {})),
    (lambda x, y, z, w: 0, ([A, B, C], {})),
    (lambda b: 0, ([B], {})),
    (lambda c, x: 0, ([C, A], {})),
    (lambda x, b: 0, ([A, B], {})),
    (lambda x, y, b: 0, ([A, C, B], {})),
    (lambda *rest: 0, ([A, B, C], {})),
    (lambda b, *rest: 0, ([B, A, C], {})),
    (lambda *, c: 0, ([], {"c": C})),
    (lambda x, *, c: 0, ([A], {"c": C})),
    (lambda **rest: 0, ([], {"a": A, "b": B, "c": C})),
    (lambda b, **rest: 0, ([B], {"a": A, "c": C})),
    (lambda x, *, a, **rest: 0, ([B], {"a": A, "b": B, "c": C})),
    (bool, ([A], {})),
    (max, ([A], {})),
])  # fmt: skip
def test_a_condition_gets_what_it_names_and_the_rest_in_order(when, expected):
    """The task has a, b and c."""
    assert choose(when, {"a": A, "b": B, "c": C}, [A, B, C]) == expected


def test_what_follows_a_parameter_without_a_value_goes_by_name():
    assert choose(lambda x, y, z, b: 0, {"b": B}, [A]) == ([A], {"b": B})


def test_a_name_that_is_not_in_the_order_can_still_be_asked_for():
    assert choose(lambda x, d: 0, {"d": D}, [A]) == ([A, D], {})


def test_without_arguments_a_condition_gets_none():
    assert choose(lambda x: 0, {}, []) == ([], {})
    assert choose(bool, {}, []) == ([], {})


@pytest.mark.parametrize(("args", "kwargs", "expected"), [
    ((1, 2), {}, ([2, 1], {})),
    ((1,), {"b": 2}, ([2, 1], {})),
    ((), {"a": 1, "b": 2}, ([2, 1], {})),
    ((1, 1), {}, ([1, 1], {})),
])  # fmt: skip
def test_a_direct_call_gives_the_condition_the_same_as_a_run(args, kwargs, expected):
    def func(a, b): ...

    assert condition_arguments(lambda b, x: 0, func, args, kwargs) == expected


def test_a_direct_call_of_a_builtin_gives_the_condition_its_arguments_in_order():
    assert condition_arguments(lambda x: 0, max, (3, 4), {}) == ([3], {})


# ---------------------------------------------------------------- in a run


def asked(when, func, executor="thread", **options):
    """Run extract (5), audit (6), third (7) ─► load under *when*; return the result and what *when* got."""
    with DAG("etl") as dag:
        ups = [Task("extract", lambda: 5), Task("audit", lambda: 6), Task("third", lambda: 7)]
        ups >> Task("load", func, when=when, **options)
    return dag.run(executor=executor)


def test_a_condition_of_one_parameter_gets_the_first_result(executor):
    """extract, audit, third ─► load"""
    assert asked(lambda x: x > 4, lambda a, b, c: (a, b, c), executor)["load"] == (5, 6, 7)
    assert asked(lambda x: x > 5, lambda a, b, c: (a, b, c), executor).skipped == ["load"]


@pytest.mark.parametrize("when", [
    lambda c: c == 7, lambda c, a: (a, c) == (5, 7), lambda x, b: (x, b) == (5, 6),
    lambda *all: all == (5, 6, 7), lambda audit: audit == 6, lambda x, third: (x, third) == (5, 7),
    lambda *, b: b == 6, lambda: True,
    lambda x, missing=3: (x, missing) == (5, 6), lambda x, y, z, w=9: w == 9, bool,
    lambda **named: named["c"] == 7,
])  # fmt: skip
def test_a_condition_names_parameters_of_the_task_or_its_upstream_or_takes_them_in_order(when, executor):
    """extract, audit, third ─► load(a, b, c)"""
    assert asked(when, lambda a, b, c: "ran", executor)["load"] == "ran"


def test_a_condition_that_names_a_parameter_at_its_default_gets_the_default(executor):
    """rows (1) ─► load(rows, limit=5)"""
    seen = []
    load = Task("load", lambda rows, limit=5: rows, when=lambda limit: seen.append(limit) or True)
    Task("rows", lambda: 1) >> load
    DAG("etl", tasks=[load]).run(executor=executor)
    assert seen == [5]


def test_a_condition_in_a_direct_call_that_names_a_parameter_at_its_default_gets_the_default():
    seen = []
    Task("load", lambda rows, limit=5: rows, when=lambda limit: seen.append(limit) or True)(1)
    assert seen == [5]


def test_a_condition_of_a_task_that_takes_nothing_can_ask_for_its_upstream(executor):
    """extract (5) ─► notify()"""
    for least, expected in ((4, {"extract": 5, "notify": "sent"}), (5, {"extract": 5})):
        with DAG("etl") as dag:
            extract = Task("extract", lambda: 5)
            extract >> Task("notify", lambda: "sent", when=lambda x, least=least: x > least)
        assert dag.run(executor=executor) == expected


def test_a_condition_gets_inputs_and_the_context_too(executor):
    """load(date, context)"""

    def when(context, date):
        return context.task_name == "load" and date == "today"

    dag = DAG("etl", tasks=[Task("load", lambda date, context: date, when=when)])
    assert dag.run({"date": "today"}, executor=executor) == {"load": "today"}
    assert dag.run({"date": "yesterday"}, executor=executor) == {}


def test_a_condition_gets_the_default_of_an_upstream_that_gave_nothing(executor):
    """idle, good ─► load(idle=3, good=None)"""
    seen = []
    with DAG("etl") as dag:
        ups = [Task("idle", lambda: 1, when=lambda: False), Task("good", lambda: 2)]
        ups >> Task("load", lambda idle=3, good=None: idle, when=lambda *given: seen.append(given) or True)
    assert dag.run(executor=executor)["load"] == 3
    assert seen == [(3, 2)]


def test_a_condition_that_needs_what_nothing_gives_is_a_definition_error():
    """extract ─► load"""
    load = Task("load", lambda extract: extract, when=lambda extract, other: True)
    Task("extract", lambda: 1) >> load
    with pytest.raises(BindingError, match=r"condition 'when\(extract, other\)' gets nothing for 'other'"):
        DAG("etl", tasks=[load]).validate()


def test_a_condition_without_values_is_only_asked_what_it_can_be():
    with pytest.raises(BindingError, match="gets nothing for 'x'"):
        DAG("etl", tasks=[Task("load", lambda: 1, when=lambda x: x)]).validate()


# ---------------------------------------------------------------- the answer


@pytest.mark.parametrize(("answer", "ran"), [
    (True, True), (1, True), ([0], True), ("no", True),
    (False, False), (0, False), (None, False), ([], False), ("", False),
])  # fmt: skip
def test_an_answer_counts_by_its_truth(answer, ran, executor):
    result = DAG("etl", tasks=[Task("load", lambda: 1, when=lambda: answer)]).run(executor=executor)
    assert ("load" in result) is ran
    if not ran:
        assert result.tasks["load"].reason == "when() was false"


def test_the_condition_is_asked_once_however_many_attempts_follow(executor):
    answers = itertools.count(1)
    asked = []

    def flaky(context):
        if context.attempt < 4:
            raise ValueError("not yet")
        return context.attempt

    load = Task("load", flaky, retries=5, when=lambda: asked.append(next(answers)) or True)
    assert VirtualClock().run(DAG("etl", tasks=[load]), executor=executor) == {"load": 4}
    assert asked == [1]


class NoTruth:
    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")


async def always():
    return False


def broken():
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(("when", "said", "cause"), [
    (broken, "the condition (when) of task 'load' raised ZeroDivisionError: div", ZeroDivisionError),
    (NoTruth, "the condition (when) of task 'load' raised ValueError: the truth value", ValueError),
    (always, "the condition (when) of task 'load' returned a coroutine, which is always true", type(None)),
])  # fmt: skip
def test_a_condition_without_an_answer_fails_the_task(when, said, cause, executor):
    """load ─► below: neither runs, and load is not tried again"""
    ran = []
    with DAG("etl") as dag:
        load = Task("load", lambda: ran.append("load"), when=when, retries=3)
        load >> Task("below", lambda x: ran.append("below"))
    result = dag.run(executor=executor, raise_on_failure=False)
    run = result.tasks["load"]
    assert (run.state, result.tasks["below"].state) == ("failed", "upstream_failed")
    assert isinstance(run.error, ConditionError)
    assert str(run.error).startswith(said)
    assert isinstance(run.error.__cause__, cause)
    assert (run.attempts, run.error.task_name) == (0, "load")
    assert ran == []


def test_a_condition_that_would_end_the_program_only_fails_its_task(executor):
    def when():
        raise SystemExit(3)

    with pytest.raises(TaskExecutionError) as caught:
        DAG("etl", tasks=[Task("load", lambda: 1, when=when)]).run(executor=executor)
    assert isinstance(caught.value.__cause__, ConditionError)


def test_a_condition_that_is_interrupted_fails_its_task_like_a_task_that_is(executor):
    def when():
        raise KeyboardInterrupt("mine")

    dag = DAG("etl", tasks=[Task("load", lambda: 1, when=when)])
    result = dag.run(executor=executor, raise_on_failure=False)
    assert result.tasks["load"].state == "failed"
    assert isinstance(result.errors["load"], KeyboardInterrupt)


def test_a_condition_under_a_failed_task_is_not_asked(executor):
    """bad ─► load"""
    calls = []
    with DAG("etl") as dag:
        Task("bad", broken) >> Task("load", lambda x: x, when=lambda x: calls.append(x) or True)
    dag.run(executor=executor, raise_on_failure=False)
    assert calls == []
