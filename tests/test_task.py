"""Tasks: how they are made, what can be read from them, and what calling one does."""

import asyncio
import functools
import gc
import pickle
import threading
import time

import pytest

from flowkit import (
    DAG,
    ConditionError,
    DefinitionError,
    GiveUp,
    OptionError,
    RetryAfter,
    Skip,
    Task,
    TaskContext,
    TaskResultError,
    task,
)
from flowkit.task import Task as TaskOfModule


@pytest.fixture
def waits(mocker):
    """The seconds of every time.sleep, which takes no time in these tests."""
    sleep = mocker.patch("time.sleep")
    return lambda: [call.args[0] for call in sleep.call_args_list]


def failing(times, error=ValueError):
    """Return a function that raises *error* so many *times*, and then returns how often it was called."""
    calls = []

    def flaky(*_args):
        calls.append(None)
        if len(calls) <= times:
            raise error(f"attempt {len(calls)}")
        return len(calls)

    flaky.calls = calls
    return flaky


# ---------------------------------------------------------------- making


def test_bare_called_and_configured_decorator_all_make_a_task():
    @task
    def bare(): ...

    @task()
    def called(): ...

    @task(retries=3)
    def configured(): ...

    assert all(isinstance(made, Task) for made in (bare, called, configured))
    assert (bare.retries, called.retries, configured.retries) == (0, 0, 3)


def test_the_package_and_the_module_give_the_same_class():
    assert TaskOfModule is Task


def test_options_have_the_documented_defaults():
    @task
    def load(): ...

    assert (load.retries, load.delay, load.backoff, load.when) == (0, 1.0, 2.0, None)
    assert (load.timeout, load.trigger) == (None, "none_failed")
    assert (load.options.retry.jitter, load.options.retry.max_delay) == (0.1, 60.0)
    assert load.options.retry.retry_on is Exception
    assert load.options.persist is True
    assert load.options.uses is None


def test_options_can_be_read_as_they_were_given():
    def condition(rows):
        return rows

    options = {"retries": 3, "delay": 0.5, "backoff": 3, "timeout": 30, "when": condition}
    load = Task(len, name="load", trigger="all_done", **options)
    assert (load.name, load.retries, load.delay, load.backoff, load.timeout) == ("load", 3, 0.5, 3.0, 30.0)
    assert load.when is condition
    assert load.trigger == "all_done"


def test_a_task_keeps_the_name_docstring_and_function_of_what_it_wraps():
    def plain():
        """Fetch the rows."""

    made = task(plain)
    assert made.func is plain
    assert made.__wrapped__ is plain
    assert made.__name__ == "plain"
    assert made.__doc__ == "Fetch the rows."
    assert made.name == "plain"


def test_the_class_has_a_docstring_of_its_own_and_a_function_without_one_gives_none():
    assert "One node of one graph" in Task.__doc__
    assert Task(lambda: None, name="silent").__doc__ is None


def test_the_name_can_be_given_before_the_function_or_by_keyword():
    assert Task("first", len).name == "first"
    assert Task(len, name="second").name == "second"
    assert task(name="third")(len).name == "third"


@pytest.mark.parametrize("arguments", [(), ("load",), (len, len, len), ("load", len, 3)])
def test_wrong_arguments_of_the_class_are_a_type_error(arguments):
    with pytest.raises(TypeError):
        Task(*arguments)


def test_a_name_given_twice_is_a_type_error():
    with pytest.raises(TypeError, match="named twice"):
        Task("load", len, name="other")


@pytest.mark.parametrize("name", ["a/b", "<script>", "end", "x" * 200, "zażółć", "a b", "__class__", "."])
def test_any_printable_name_of_up_to_200_characters_is_a_good_one(name):
    assert Task(lambda: 1, name=name).name == name
    assert dict(DAG("names", tasks=[Task(lambda: 1, name=name)]).run()) == {name: 1}


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0b", 3, b"load"])
def test_any_other_name_is_an_option_error_that_shows_it(name):
    with pytest.raises(OptionError, match="1 to 200 printable characters"):
        Task(lambda: 1, name=name)


def test_what_has_no_name_is_named_after_its_type():
    class Loader:
        def __call__(self):
            return 1

    class Odd:
        __name__ = 3

        def __call__(self):
            return 1

    assert task(functools.partial(len, "")).name == "partial"
    assert task(Loader()).name == "Loader"
    assert task(Odd()).name == "Odd"
    assert task(Loader()).__name__ == "Loader"


@pytest.mark.parametrize("value", [3, None, "load", [len]])
def test_what_cannot_be_called_is_a_type_error_with_a_hint(value):
    with pytest.raises(TypeError, match=r"task\(f\), not task\(f\(\)\)"):
        task(value)


def test_a_called_coroutine_function_is_a_type_error_and_leaves_no_warning():
    async def fetch(): ...

    coroutine = fetch()
    with pytest.raises(TypeError, match="Pass the function, not the call"):
        task(coroutine)
    assert coroutine.cr_frame is None  # closed


def test_a_called_generator_function_is_a_type_error_too():
    with pytest.raises(TypeError, match="Pass the function, not the call"):
        task(each for each in [1])


def test_classes_methods_builtins_and_partials_are_tasks_too():
    class Loader:
        def __init__(self, rows=(1, 2)):
            self.rows = rows

        def count(self):
            return len(self.rows)

        def __call__(self):
            return self.rows

    loader = Loader((1, 2, 3))
    tasks = [
        Task("made", Loader), Task("counted", loader.count), Task("called", loader),
        Task("partial", functools.partial(max, 3, 7)), Task("builtin", list),
    ]  # fmt: skip
    results = DAG("callables", tasks=tasks).run()
    assert isinstance(results["made"], Loader)
    assert (results["counted"], results["called"]) == (3, (1, 2, 3))
    assert (results["partial"], results["builtin"]) == (7, [])


def test_a_decorated_function_of_the_user_can_be_a_task():
    """up ─► down, where down is wrapped by a decorator of the user's own."""

    def twice(func):
        @functools.wraps(func)
        def wrapper(*args, **kwargs):
            return 2 * func(*args, **kwargs)

        return wrapper

    with DAG("wrapped") as dag:

        @task
        def up():
            return 4

        @task
        @twice
        def down(up):
            return up + 1

        up >> down
    assert dag.run()["down"] == 10


def test_the_class_can_be_written_with_its_types_at_run_time():
    assert Task[[int], str].__origin__ is Task
    assert Task[..., int].__args__[-1] is int


def test_a_task_has_no_room_for_state():
    made = Task(lambda: 1, name="a")
    with pytest.raises(AttributeError):
        made.result = 3


def test_a_run_leaves_no_trace_on_the_task():
    """a ─► b"""
    with DAG("trace") as dag:
        a, b = Task("a", lambda: 1), Task("b", lambda a: a + 1)
        a >> b

    def seen():
        slots = [name for name in Task.__slots__ if name != "__weakref__"]
        return [[getattr(made, name) for name in slots] for made in (a, b)]

    before = seen()
    dag.run()
    assert seen() == before


def test_repr_shows_the_name_and_how_it_is_wired():
    """a, b ─► c ─► d"""
    a, b, c, d = (Task(name, len) for name in "abcd")
    [a, b] >> c >> d
    assert repr(c) == "<Task 'c' upstream=2, downstream=1>"
    assert "upstream=0, downstream=0" in repr(Task("lonely", len))


# ---------------------------------------------------------------- with_options


def test_with_options_gives_an_unwired_copy_and_leaves_the_task_alone():
    """extract ─► load"""
    extract, load = Task("extract", len), Task("load", len, retries=2, delay=5.0)
    extract >> load
    copy = load.with_options(name="load_eu", retries=7)
    assert (copy.name, copy.retries, copy.delay, copy.func) == ("load_eu", 7, 5.0, load.func)
    assert (load.name, load.retries) == ("load", 2)
    assert (list(copy.upstream), list(copy.downstream)) == ([], [])
    assert list(extract.downstream) == [load]


def test_with_options_keeps_every_option_that_is_not_given():
    def callback(event): ...

    options = {
        "retries": 2, "delay": 0.5, "backoff": 3.0, "jitter": 0.0, "max_delay": 9.0, "retry_on": KeyError,
        "timeout": 4.0, "when": bool, "trigger": "all_done", "uses": "api", "on_success": callback,
        "on_failure": callback, "on_retry": callback, "executor": "thread",
    }  # fmt: skip
    original = Task("load", len, **options)
    assert original.with_options(name="other").options.as_keywords() == original.options.as_keywords()
    changed = original.with_options(timeout=None, retries=0)
    assert changed.name == "load"
    assert changed.options.as_keywords() == original.options.as_keywords() | {"timeout": None, "retries": 0}


def test_with_options_refuses_what_the_decorator_refuses():
    with pytest.raises(OptionError, match="retries=-1"):
        Task("load", len).with_options(retries=-1)


# ---------------------------------------------------------------- calling


def test_a_call_gives_what_the_function_gives():
    @task
    def add(a, b, *, c=0):
        return a + b + c

    assert add(10, 20) == 30
    assert add(10, b=20, c=5) == 35
    assert add.func(1, 2) == 3


def test_a_call_runs_in_the_callers_thread():
    assert Task("where", threading.current_thread)() is threading.current_thread()


def test_a_failing_call_raises_the_original_exception_after_its_retries(waits):
    error = ValueError("no")

    @task(retries=3, delay=1.0, backoff=2.0, jitter=0)
    def fail():
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        fail()
    assert caught.value is error
    assert waits() == [1.0, 2.0, 4.0]


def test_a_call_waits_by_one_sleep_for_each_retry(waits):
    flaky = failing(2)
    assert Task("flaky", flaky, retries=5, delay=0.5, backoff=3, jitter=0)() == 3
    assert waits() == [0.5, 1.5]


def test_a_call_without_a_failure_never_sleeps(waits):
    assert Task("good", failing(0), retries=5)() == 1
    assert waits() == []


def test_jitter_of_a_call_only_lengthens_the_wait(waits):
    with pytest.raises(ValueError, match="attempt 9"):
        Task("fail", failing(99), retries=8, delay=1, backoff=1, jitter=0.5)()
    assert len(waits()) == 8
    assert all(1 <= wait <= 1.5 for wait in waits())


def test_an_error_that_is_not_retried_leaves_a_call_at_once(waits):
    flaky = failing(9, KeyError)
    with pytest.raises(KeyError):
        Task("fail", flaky, retries=5, retry_on=ValueError)()
    assert len(flaky.calls) == 1
    assert waits() == []


def test_a_call_whose_condition_is_false_gives_none_without_calling():
    calls = []

    @task(when=lambda x: x > 5)
    def load(x, y):
        calls.append((x, y))
        return x + y

    assert load(1, 2) is None
    assert calls == []
    assert load(10, 20) == 30


def test_the_condition_of_a_call_gets_arguments_by_name_and_else_in_order():
    seen = []

    def condition(y, first):
        seen.append((y, first))
        return True

    @task(when=condition)
    def load(x, y):
        return x - y

    assert load(10, 20) == -10
    assert load(x=1, y=2) == -1
    assert seen == [(20, 10), (2, 1)]


def test_the_condition_of_a_call_is_asked_once_however_many_attempts_follow(waits):
    asked = []
    assert Task("flaky", failing(2), retries=2, when=lambda: asked.append(None) or True)() == 3
    assert len(asked) == 1


def test_a_condition_of_a_call_that_cannot_be_told_is_a_condition_error():
    with pytest.raises(ConditionError, match="raised ZeroDivisionError") as caught:
        Task("load", lambda x: x, when=lambda x: 1 / x)(0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_skip_in_a_call_gives_none():
    def load(rows):
        if not rows:
            raise Skip("no rows")
        return len(rows)

    assert task(load)([]) is None
    assert task(load)([1]) == 1


def test_retry_after_in_a_call_sets_the_wait(waits):
    calls = []

    @task(retries=1, delay=99)
    def fetch():
        calls.append(None)
        if len(calls) == 1:
            raise RetryAfter(12)
        return "rows"

    assert fetch() == "rows"
    assert waits() == [12.0]


def test_give_up_in_a_call_ends_the_attempts(waits):
    @task(retries=5)
    def pay():
        raise GiveUp("card declined") from OSError("402")

    with pytest.raises(GiveUp, match="card declined") as caught:
        pay()
    assert isinstance(caught.value.__cause__, OSError)
    assert waits() == []


def test_timeout_callbacks_and_limits_do_not_apply_to_a_call(mocker):
    called = mocker.Mock()
    now = mocker.patch("time.perf_counter", side_effect=time.perf_counter)
    made = Task("load", lambda: 1, timeout=1e-9, uses="nothing", on_success=called, on_failure=called)
    assert made() == 1
    called.assert_not_called()
    now.assert_not_called()


def test_keyboard_interrupt_and_system_exit_leave_a_call_at_once(waits):
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind):
            Task("stop", failing(1, kind), retries=3)()
    assert waits() == []


def test_a_task_called_inside_another_task_is_a_plain_call():
    """outer"""
    inner = Task("inner", lambda x: x + 1)
    outer = Task("outer", lambda: inner(1))
    assert dict(DAG("nested", tasks=[outer]).run()) == {"outer": 2}


# ---------------------------------------------------------------- calling async def


@pytest.fixture
def async_waits(mocker):
    """The seconds of every asyncio.sleep, which takes no time in these tests."""

    async def sleep(seconds):
        waited.append(seconds)

    waited = []
    mocker.patch("asyncio.sleep", sleep)
    return waited


def test_a_call_of_an_async_task_returns_a_coroutine_that_retries(async_waits):
    calls = []

    @task(retries=3, delay=1, jitter=0)
    async def fetch(base):
        calls.append(None)
        if len(calls) < 3:
            raise ConnectionError("refused")
        return base + len(calls)

    coroutine = fetch(10)
    assert asyncio.iscoroutine(coroutine)
    assert calls == []
    assert asyncio.run(coroutine) == 13
    assert async_waits == [1.0, 2.0]


def test_an_async_call_raises_the_original_exception_after_its_retries(async_waits):
    error = ConnectionError("refused")

    @task(retries=1, jitter=0)
    async def fetch():
        raise error

    with pytest.raises(ConnectionError) as caught:
        asyncio.run(fetch())
    assert caught.value is error
    assert async_waits == [1.0]


def test_a_skipped_async_call_gives_none():
    @task(when=lambda rows: rows)
    async def load(rows):
        if rows == [0]:
            raise Skip("only zero")
        return len(rows)

    assert asyncio.run(load([])) is None
    assert asyncio.run(load([0])) is None
    assert asyncio.run(load([1, 2])) == 2


def test_cancelling_an_async_call_is_not_taken_for_a_failure(async_waits):
    @task(retries=3)
    async def wait():
        await asyncio.Event().wait()

    async def main():
        waiting = asyncio.create_task(wait())
        await asyncio.wait([waiting], timeout=0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert async_waits == []


# ---------------------------------------------------------------- mapping


@task(retries=1, delay=0)
def triple(x):
    return 3 * x


mapped_triple = triple.map()


def plain_square(x):
    return x * x


def test_map_gives_an_unwired_copy_and_leaves_the_task_alone():
    @task(retries=2, timeout=5)
    def process(row): ...

    @task
    def source(): ...

    source >> process
    mapped = process.map()
    assert (mapped.name, mapped.func, mapped.options) == ("process", process.func, process.options)
    assert (mapped.mapped_over, process.mapped_over) == ("", None)
    assert (list(mapped.upstream), list(process.upstream)) == ([], [source])
    assert process.map(over="row").mapped_over == "row"


def test_a_task_that_map_was_called_on_is_a_template():
    """source ─► process (mapped); the unmapped process is no part of it"""

    @task
    def process(row):
        return -row

    with DAG("etl") as dag:
        source = Task("source", lambda: [1, 2])
        unused = process.map()
        source >> (mapped := process.map())
    assert process.is_template
    assert not mapped.is_template
    assert unused is not mapped
    with DAG("other") as other:
        inside = Task("inside", lambda x: x)
        source >> inside.map()
    assert other.waves() == [["source"], ["inside"]]
    with pytest.raises(DefinitionError):  # made in the block, mapped, and not wired
        dag.validate()


def test_with_options_keeps_the_mapping():
    mapped = Task("process", plain_square).map(over="x")
    copy = mapped.with_options(name="again", retries=2)
    assert (copy.name, copy.mapped_over, copy.retries) == ("again", "x", 2)
    assert mapped.is_template
    Task("source", lambda: [2, 3]) >> copy
    assert DAG("etl", tasks=[copy]).run()["again"] == [4, 9]


def test_with_options_before_map_is_the_same():
    assert Task("process", plain_square).with_options(name="again").map().mapped_over == ""


def test_a_mapped_task_is_mapped_once():
    """The same way again, it is itself: a notebook's cell runs twice."""
    assert mapped_triple.map() is mapped_triple
    with pytest.raises(OptionError, match="it is mapped over another parameter already"):
        mapped_triple.map(over="x")


@pytest.mark.parametrize("name", ["rwo", "", 3, ["row"], "context", "where", "given", "named", "self"])
def test_over_must_name_a_parameter(name):
    def process(context, row, *given, where: TaskContext, limit=3, **named): ...

    with pytest.raises(OptionError, match="over must name a parameter") as caught:
        Task(process).map(over=name)
    assert str(caught.value).endswith("; there are 'row', 'limit'.")
    assert name != "rwo" or "did you mean 'row'?" in str(caught.value)


@pytest.mark.parametrize("build", [lambda t, rest: t >> rest, lambda t, rest: rest << t])
def test_a_mapped_task_is_wired_like_any_other(build):
    source, mapped = Task("source", lambda: [1]), Task("process", plain_square).map()
    build(source, mapped)
    assert list(mapped.upstream) == [source]
    assert source >> [mapped] == [mapped]
    assert [source] >> mapped is mapped
    assert mapped.after(source) is mapped


def test_a_chain_may_be_written_with_map_inside():
    """source ─► triple (mapped) ─► square (mapped) ─► total"""
    square, total = Task("square", plain_square), Task("total", sum)
    Task("source", lambda: [1, 2]) >> triple.map() >> square.map() >> total
    assert DAG("etl", tasks=[total]).run()["total"] == 45


def test_two_mapped_copies_need_two_names():
    source = Task("source", lambda: [1])
    source >> [triple.map(), triple.with_options(name="again").map()]
    assert len(DAG("etl", tasks=[source, *source.downstream]).run()) == 3
    source >> triple.map()
    with pytest.raises(DefinitionError, match="a task named 'triple' already exists"):
        DAG("etl", tasks=[source, *source.downstream]).validate()


def test_a_mapped_task_survives_a_pickle():
    copied = pickle.loads(pickle.dumps(Task("process", plain_square, retries=2).map(over="x")))
    assert (copied.name, copied.mapped_over, copied.retries) == ("process", "x", 2)
    assert copied([1, 2]) == [1, 4]


def test_a_mapped_task_of_a_module_is_pickled_as_itself_and_not_as_the_task_it_was_made_from():
    copied = pickle.loads(pickle.dumps(mapped_triple))
    assert (copied.mapped_over, copied([1])) == ("", [3])


def test_a_call_of_a_mapped_task_calls_the_function_for_each_item(waits):
    calls = []

    @task(retries=1, jitter=0, when=lambda x: x != 5)
    def process(x, factor=2, *, offset=0):
        calls.append(x)
        if x == 3 and calls.count(3) == 1:
            raise ConnectionError("refused")
        if x == 4:
            raise Skip("no fours")
        return factor * x + offset

    mapped = process.map()
    assert mapped([1, 3, 4, 5]) == [2, 6, None, None]
    assert calls == [1, 3, 3, 4]
    assert waits() == [1.0]
    assert mapped(range(2), 10, offset=1) == [1, 11]
    assert mapped(x=[1], factor=3) == [3]
    assert mapped(()) == []


def test_a_call_gives_the_items_to_the_parameter_that_over_names():
    assert Task("tag", lambda sign, row: sign + row).map(over="row")("-", ["a", "b"]) == ["-a", "-b"]
    assert Task("tag", lambda sign, row: sign + row).map(over="row")("-", row=["a"]) == ["-a"]
    assert Task("tag", lambda sign, *, row: sign + row).map(over="row")("-", row=["a"]) == ["-a"]
    assert Task("tag", lambda *rows: rows).map()([1, 2], 3) == [(1, 3), (2, 3)]


def test_a_call_of_a_mapped_task_raises_the_error_of_the_first_item_that_fails():
    with pytest.raises(ZeroDivisionError):
        Task("process", lambda x: 1 // x).map()([1, 0, "a"])


def test_a_call_of_a_mapped_task_without_its_items_is_a_type_error():
    for call in (lambda mapped: mapped(), lambda mapped: mapped(y=[1])):
        with pytest.raises(TypeError):
            call(triple.map())


def test_a_call_never_takes_another_argument_for_the_items():
    def process(sign, *, row):
        pytest.fail("called")

    with pytest.raises(TypeError):
        Task(process).map(over="row")(["a", "b"])


def test_the_context_is_not_the_first_parameter_of_a_call_either():
    def process(context, x):
        return context, x

    assert Task(process).map()(None, [1, 2]) == [(None, 1), (None, 2)]


@pytest.mark.parametrize("value", ["ab", {"a": 1}, b"ab"])
def test_a_call_refuses_what_a_run_refuses(value):
    with pytest.raises((TypeError, TaskResultError), match="process"):
        Task("process", lambda x: x).map()(value)


def test_a_call_inside_a_block_adds_no_task_to_it():
    """source ─► process (mapped); the call makes nothing that the block could collect"""
    mapped = Task("process", plain_square).map()
    with DAG("etl") as dag:
        Task("source", lambda: [1]) >> mapped
        assert mapped([3]) == [9]
    assert dag.waves() == [["source"], ["process"]]


def test_a_call_leaves_nothing_in_the_registry_of_this_module():
    def discover():
        Task("source", lambda: [1]) >> (mapped := Task("process", plain_square).map())
        for _ in range(3):
            mapped([3])
        return DAG("etl").waves()

    assert discover() == [["source"], ["process"]]


def test_a_call_of_a_mapped_async_task_is_one_coroutine(async_waits):
    @task(retries=1, jitter=0, when=lambda x: x)
    async def fetch(x):
        if x == 2 and not async_waits:
            raise ConnectionError("refused")
        return -x

    coroutine = fetch.map()([1, 2, 0])
    assert asyncio.iscoroutine(coroutine)
    assert asyncio.run(coroutine) == [-1, -2, None]
    assert async_waits == [1.0]


def test_a_failed_call_of_a_mapped_async_task_leaves_no_coroutine_behind(recwarn):
    @task
    async def fetch(x):
        if x == 1:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(fetch.map()([0, 1, 2, 3]))
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_a_cell_that_maps_a_task_may_be_run_again():
    """extract ─► process (mapped) ─► collect, all of one cell"""
    cell = """
from flowkit import DAG, task

@task
def extract():
    return [1, 2]

@task
def process(x):
    return 2 * x

@task
def collect(values):
    return values

extract >> process.map() >> collect
result = DAG("cell").run()
"""
    namespace = {"__name__": "cell_that_maps"}
    for _ in range(2):
        exec(compile(cell, "cell", "exec"), namespace)
        assert namespace["result"]["collect"] == [2, 4]


def test_a_cell_that_gives_the_mapped_task_the_name_of_the_function_may_be_run_again():
    cell = """
from flowkit import DAG, task

@task
def extract():
    return [1, 2]

@task
def process(x):
    return 2 * x

process = process.map()
extract >> process
result = DAG("cell").run()
"""
    namespace = {"__name__": "cell_that_renames"}
    for _ in range(2):
        exec(compile(cell, "cell", "exec"), namespace)
        assert namespace["result"]["process"] == [2, 4]
