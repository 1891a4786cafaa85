"""TaskCache: keep what a plain function returns."""

import asyncio
import contextvars
import dataclasses
import enum
import functools
import gc
import inspect
import io
import itertools
import math
import os
import re
import sys
import textwrap
import threading
import types
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import DAG, OptionError, StateManager, StateSerializationError, TaskCache, TaskContext, task
from flowkit.state import cache as cache_module

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Shop:
    name: str

    def price(self, item):
        return f"{item} of {self.name}"


class Kind(enum.Enum):
    SMALL = 1


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path):
    """Return what makes a state with some options, in memory or in a file."""
    path = None if request.param == "memory" else tmp_path / "state.json"
    return lambda **options: StateManager(path, **options)


@pytest.fixture
def state(make):
    return make()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


class Counted:
    """Counts its calls, and is no part of what a function closes over: it is found by a name at module level."""

    def __init__(self):
        self.count = 0

    def __call__(self, value=None):
        self.count += 1
        return value


called = Counted()


@pytest.fixture(autouse=True)
def from_zero():
    called.count = 0


@pytest.fixture(autouse=True)
def nobody_is_left_in_a_call():
    """Fail a test after which a call still leads, for which others would wait for ever."""
    yield
    assert cache_module._turns.leading == {}
    assert cache_module._current.get() is None


class Clock:
    """What ``time.time()`` gives; it stands still."""

    now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(mocker):
    stopped = Clock()
    mocker.patch("time.time", stopped)
    return stopped


@pytest.fixture
def waiting(mocker):
    """Return a semaphore that is released when a thread begins to wait for another call."""
    begun = threading.Semaphore(0)

    class Told(threading.Event):
        def wait(self, timeout=None):
            begun.release()
            return super().wait(timeout)

    told = types.SimpleNamespace(Event=Told, RLock=threading.RLock, get_ident=threading.get_ident)
    mocker.patch.object(cache_module, "threading", told)
    return begun


class Threads:
    """Calls that run at the same time, each in a thread.

    Attributes:
        results: What they have returned.
        errors: What they have raised.
    """

    def __init__(self):
        self.results = []
        self.errors = []
        self._started = []

    def start(self, call, *args):
        def work():
            try:
                self.results.append(call(*args))
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._started.append(thread)

    def join(self):
        for thread in self._started:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._started), "a call hangs"


def wait_until(event):
    assert event.wait(10)


def take(semaphore, count=1):
    for _ in range(count):
        assert semaphore.acquire(timeout=10)


async def settle():
    """Let every coroutine that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def module(source, name=None):
    """Return a module whose body is *source*."""
    made = types.ModuleType(name or f"synthetic_{next(_numbers)}")
    made.__dict__.update(TaskContext=TaskContext, called=called, functools=functools)
    exec(compile(textwrap.dedent(source), f"<{made.__name__}>", "exec"), made.__dict__)
    return made


# ---------------------------------------------------------------- the key


def test_the_key_of_a_function_without_parameters_is_its_name(state):
    @TaskCache(state)
    def answer():
        return 42

    answer()
    assert state.get_all() == {"answer": 42}


def test_the_key_with_arguments_is_the_name_and_their_digest(state):
    @TaskCache(state)
    def double(x):
        return 2 * x

    double(2)
    (key,) = state.get_all()
    assert re.fullmatch(r"double\([0-9a-f]{32}\)", key)


def test_cache_key_tells_the_key_of_a_call_without_making_it(state):
    @TaskCache(state)
    def double(x):
        return called(2 * x)

    key = double.cache_key(2)
    assert called.count == 0
    double(2)
    assert state.get(key) == 4


def test_the_key_is_the_same_in_every_process(state, script):
    @TaskCache(state)
    def f(x):
        return x

    running = script("""
        from flowkit import StateManager, TaskCache
        print(TaskCache(StateManager())(lambda x: x).cache_key({"rows": {"a", "b", "c"}}))
    """)
    assert running.finish().out.strip() == f.cache_key({"rows": {"a", "b", "c"}}).replace("f(", "<lambda>(")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1, 2), {}), ((1,), {"b": 2}), ((), {"a": 1, "b": 2}), ((), {"b": 2, "a": 1}), ((1,), {}), ((), {"a": 1})],
)
def test_how_arguments_are_passed_does_not_matter(state, args, kwargs):
    @TaskCache(state)
    def add(a, b=2):
        return called(a + b)

    add(1, 2)
    assert add(*args, **kwargs) == 3
    assert called.count == 1


@pytest.mark.parametrize(
    "other", [{"x": 2}, {"x": 1, "y": 1}, {"x": 1.0}, {"x": True}, {"x": "1"}, {"x": [1]}], ids=repr
)
def test_other_arguments_are_another_entry(state, other):
    @TaskCache(state)
    def show(x, y=0):
        return called(repr((x, y)))

    assert show(1) == "(1, 0)"
    assert show(**other) == repr((other["x"], other.get("y", 0)))
    assert called.count == 2


def test_a_mutable_argument_counts_as_it_is_now(state):
    @TaskCache(state)
    def total(rows):
        return sum(rows)

    rows = [1, 2]
    assert total(rows) == 3
    rows.append(3)
    assert total(rows) == 6


def test_the_order_of_a_dict_or_set_does_not_matter(state):
    @TaskCache(state)
    def f(x):
        return called(1)

    f([{"a": 1, "b": 2}, {"p", "q"}])
    f([{"b": 2, "a": 1}, {"q", "p"}])
    assert called.count == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((1, 2), {}), (((1, 2),), {})),
        (((1,), {}), ((1, 1), {})),
        (((), {"x": 1}), ((), {"y": 1})),
        (((), {"x": 1}), (({"x": 1},), {})),
        (((), {"args": (1,)}), ((1,), {})),
        (((), {}), ((None,), {})),
    ],
)
def test_variable_arguments_are_told_apart(state, first, second):
    @TaskCache(state)
    def f(*args, **kwargs):
        return called(1)

    f(*first[0], **first[1])
    f(*second[0], **second[1])
    assert called.count == 2


def test_a_function_of_variable_arguments_called_without_any_has_its_name_as_the_key(state):
    @TaskCache(state)
    def f(*args, **kwargs):
        return 1

    assert f.cache_key() == "f"


def test_a_positional_only_parameter_is_not_one_of_the_same_name_by_keyword(state):
    @TaskCache(state)
    def f(a, /, **kwargs):
        return a, kwargs

    assert f(1, a=2) == (1, {"a": 2})
    assert f(2, a=1) == (2, {"a": 1})


SIGNATURES = [
    lambda a, b=2, *, c=3: locals(),
    lambda a, /, b, c: locals(),
    lambda a=1, /, **kwargs: locals(),
    lambda *args, a, b=None: locals(),
    lambda a, *args, b=2, **kwargs: locals(),
    lambda: locals(),
]
CALLS = st.tuples(
    st.lists(st.integers(0, 2), max_size=4), st.dictionaries(st.sampled_from("abcx"), st.integers(0, 2), max_size=3)
)


def what_parameters_get(func, args, kwargs):
    """Return what Python gives the parameters of one of SIGNATURES; None if the call does not fit."""
    try:
        return func(*args, **kwargs)
    except TypeError:
        return None


@given(st.sampled_from(SIGNATURES), CALLS, CALLS)
def test_two_calls_have_one_key_exactly_if_the_parameters_get_the_same(func, one, other):
    cached = TaskCache(StateManager())(func)
    got = [what_parameters_get(func, *call) for call in (one, other)]
    keys = []
    for (args, kwargs), fits in zip((one, other), got, strict=True):
        if fits is None:
            for call in (cached, cached.cache_key):
                with pytest.raises(TypeError):
                    call(*args, **kwargs)
        else:
            assert cached(*args, **kwargs) == fits
            keys.append(cached.cache_key(*args, **kwargs))
    if len(keys) == 2:
        assert (keys[0] == keys[1]) == (got[0] == got[1])


def test_a_call_that_does_not_fit_is_pythons_own_error(state):
    @TaskCache(state)
    def add(a, b):
        return a + b

    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'b'"):
        add(1)


def test_cache_key_of_a_call_that_does_not_fit_is_a_type_error(state):
    @TaskCache(state)
    def add(a, b):
        return a + b

    with pytest.raises(TypeError, match=r"cache_key: .*add\(a, b\) cannot be called like this"):
        add.cache_key(1)


def test_a_builtin_can_be_cached(state):
    cached = TaskCache(state)(max)
    assert (cached([1, 5]), cached(1, 5), cached([1, 5], key=None)) == (5, 5, 5)
    assert len(state.get_all()) == 3


# ---------------------------------------------------------------- a key of one's own


def test_cache_key_func_gives_the_key(state):
    @TaskCache(state, cache_key_func=lambda func, user, verbose=False: f"user:{user}")
    def load(user, verbose=False):
        return called(user)

    load("ann", verbose=True)
    load("ann")
    assert called.count == 1
    assert state.get_all() == {"user:ann": "ann"}


def test_cache_key_func_gets_the_function_and_the_arguments_as_they_were_passed(state):
    seen = []

    def key(func, *args, **kwargs):
        seen.append((func.__name__, args, kwargs))
        return "key"

    def f(a, b=2, c=3):
        return 1

    TaskCache(state, cache_key_func=key)(f)(1, c=5)
    assert seen[0] == ("f", (1,), {"c": 5})


def test_cache_key_func_takes_arguments_without_a_digest(state):
    @TaskCache(state, cache_key_func=lambda func, lock: "key")
    def f(lock):
        return called(5)

    assert (f(threading.Lock()), f(threading.Lock()), called.count) == (5, 5, 1)


@pytest.mark.parametrize("key", [5, None, b"key", ("a",)], ids=repr)
def test_cache_key_func_must_return_a_string(state, key):
    def wrong_key(func):
        return key

    @TaskCache(state, cache_key_func=wrong_key)
    def f():
        return called()

    with pytest.raises(TypeError, match=rf"wrong_key.* returned {re.escape(repr(key))} of type .*must return a string"):
        f()
    assert called.count == 0


def test_the_empty_string_is_a_key(state):
    cached = TaskCache(state, cache_key_func=lambda func: "")(called.__call__)
    cached()
    cached()
    assert called.count == 1


def test_what_cache_key_func_raises_is_raised(state):
    @TaskCache(state, cache_key_func=lambda func: 1 / 0)
    def f():
        return 1

    with pytest.raises(ZeroDivisionError):
        f()


# ---------------------------------------------------------------- arguments without a digest


def test_an_argument_without_a_digest_is_refused_by_function_and_parameter(state):
    @TaskCache(state)
    def fetch(url, client):
        return called()

    with pytest.raises(StateSerializationError, match=r"fetch\(\): argument client: a lock .*cache_key_func"):
        fetch("u", threading.Lock())
    assert called.count == 0


def test_the_error_says_where_in_the_argument(state):
    @TaskCache(state)
    def fetch(options):
        return 1

    with pytest.raises(StateSerializationError, match=r"fetch\(\): argument options\['locks'\]\[1\]: a lock"):
        fetch({"locks": [1, threading.Lock()]})


def test_the_error_names_variable_parameters(state):
    @TaskCache(state)
    def f(*rows, **options):
        return 1

    with pytest.raises(StateSerializationError, match=r"f\(\): argument \*rows\[1\]: a lock"):
        f(1, threading.Lock())
    with pytest.raises(StateSerializationError, match=r"f\(\): argument \*\*options\['client'\]: a lock"):
        f(client=threading.Lock())


def test_cache_key_refuses_the_same(state):
    cached = TaskCache(state)(lambda client: 1)
    with pytest.raises(StateSerializationError, match="argument client"):
        cached.cache_key(threading.Lock())


# ---------------------------------------------------------------- the context of a task


def context_of(name="t"):
    return TaskContext(name, "run", 1, {}, lambda: False, lambda handler: None)


@pytest.mark.parametrize("parameter", ["context", "ctx: TaskContext", "ctx: 'TaskContext'"])
def test_the_context_is_no_part_of_the_key(parameter):
    found = module(f"def f(x, {parameter}): return called(x)")
    cached = TaskCache(StateManager())(found.f)
    assert [cached(1, context_of("one")), cached(1, context_of("two")), called.count] == [1, 1, 1]


def test_a_context_that_is_not_given_is_no_part_of_the_key_either(state):
    @TaskCache(state)
    def f(x, context=None):
        return called(x)

    f(1)
    f(1, context_of())
    assert called.count == 1


def test_a_function_of_nothing_but_the_context_has_its_name_as_the_key(state):
    @TaskCache(state)
    def f(context):
        return 1

    assert f.cache_key(context_of()) == "f"


def test_a_parameter_named_context_that_gets_something_else_counts(state):
    @TaskCache(state)
    def render(template, context):
        return template.format(**context)

    assert render("{x}", {"x": 1}) == "1"
    assert render("{x}", {"x": 2}) == "2"


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}], ids=repr)
def test_none_and_other_empty_values_are_kept(state, value):
    @TaskCache(state)
    def f():
        called()
        return value

    assert (f(), f(), called.count) == (value, value, 1)


def test_an_exception_is_not_kept(state):
    @TaskCache(state)
    def f():
        called()
        if called.count == 1:
            raise ValueError("not yet")
        return 5

    with pytest.raises(ValueError, match="not yet"):
        f()
    assert state.get_all() == {}
    assert f() == 5


def test_the_exception_is_the_functions_own(state):
    error = ValueError("no")

    @TaskCache(state)
    def f():
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        f()
    assert caught.value is error
    assert error.__context__ is None


def test_from_memory_comes_the_value_itself():
    cached = TaskCache(StateManager())(lambda: [object()])
    assert cached() is cached()


def test_from_a_file_comes_a_copy(path):
    cached = TaskCache(StateManager(path))(lambda: [1])
    cached().append(2)
    cached().append(3)
    assert cached() == [1]


VALUES = [(1, (2,)), {1, 2}, b"\xff", {1: "a"}, -0.0, datetime(2026, 1, 2, tzinfo=UTC), Shop("a"), [Kind.SMALL]]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_with_their_types(state, value):
    @TaskCache(state)
    def f():
        called()
        return value

    found = [f(), f()]
    assert [(type(each), each, str(each)) for each in found] == [(type(value), value, str(value))] * 2
    assert called.count == 1


def test_classes_of_the_functions_module_are_read_by_another_manager_without_being_registered(path):
    def make():
        @TaskCache(StateManager(path))
        def best():
            return called(Shop("tea"))

        return best

    assert make()() == make()() == Shop("tea")
    assert called.count == 1


def test_a_value_that_cannot_be_read_any_more_is_made_again(path, monkeypatch):
    """Its class was renamed since."""
    cached = TaskCache(StateManager(path))(lambda: called(Shop("tea") if called.count == 0 else "plain"))
    cached()
    monkeypatch.delattr(sys.modules[__name__], "Shop")
    assert (cached(), cached(), called.count) == ("plain", "plain", 2)


def test_the_entry_knows_whose_it_is(state):
    @TaskCache(state)
    def f():
        return 1

    f()
    assert state.get_metadata("f")["function"] == f"{__name__}.test_the_entry_knows_whose_it_is.<locals>.f"


def test_another_process_finds_what_was_kept(path, script):
    code = f"""
        from flowkit import StateManager, TaskCache

        def main(offset):
            @TaskCache(StateManager({str(path)!r}))
            def add(x):
                print("called")
                return x + offset

            return add(1)

        print(main(5))
    """
    assert [script(code).finish().out.split() for _ in range(2)] == [["called", "6"], ["6"]]


# ---------------------------------------------------------------- time to live


def test_a_value_is_kept_for_its_ttl(state, clock):
    cached = TaskCache(state, ttl=10)(lambda: called(1))
    cached()
    clock.now += 10
    cached()
    assert called.count == 1
    clock.now += 1
    cached()
    assert called.count == 2


def test_without_a_ttl_the_states_default_holds(make, clock):
    cached = TaskCache(make(default_ttl=10))(lambda: called(1))
    cached()
    clock.now += 11
    cached()
    assert called.count == 2


def test_the_ttl_overrides_the_states_default(make, clock):
    cached = TaskCache(make(default_ttl=10), ttl=100)(lambda: called(1))
    cached()
    clock.now += 50
    cached()
    assert called.count == 1


def test_an_endless_ttl_overrides_the_states_default(make, clock):
    cached = TaskCache(make(default_ttl=10), ttl=math.inf)(lambda: called(1))
    cached()
    clock.now += 1e9
    cached()
    assert called.count == 1


def test_with_a_negative_ttl_every_call_is_made(state):
    cached = TaskCache(state, ttl=-1)(lambda: called(1))
    assert (cached(), cached(), called.count) == (1, 1, 2)


# ---------------------------------------------------------------- forgetting


def test_invalidate_has_the_next_call_made(state):
    @TaskCache(state)
    def f(x):
        return called(x)

    f(1)
    f.invalidate(1)
    f(1)
    assert called.count == 2


def test_invalidate_leaves_other_calls(state):
    @TaskCache(state)
    def f(x):
        return called(x)

    f(1)
    f(2)
    f.invalidate(x=1)
    f(2)
    assert called.count == 2


def test_invalidate_says_whether_there_was_a_value(state):
    @TaskCache(state)
    def f(x):
        return None

    f(1)
    assert [f.invalidate(1), f.invalidate(1), f.invalidate(2)] == [True, False, False]


def test_invalidate_leaves_what_another_function_has_under_the_key(state):
    state.set("f", "mine")

    @TaskCache(state)
    def f():
        return 1

    assert f.invalidate() is False
    assert state.get("f") == "mine"


def test_clearing_the_state_has_the_next_call_made(state):
    cached = TaskCache(state)(lambda: called(1))
    cached()
    state.clear()
    cached()
    assert called.count == 2


# ---------------------------------------------------------------- whose value it is


def test_functions_of_two_modules_share_nothing(state):
    one = module("def f(x): return 'one'")
    two = module("def f(x): return 'two'")
    first, second = TaskCache(state)(one.f), TaskCache(state)(two.f)
    assert first.cache_key(1) == second.cache_key(1)
    assert [first(1), second(1), first(1), second(1)] == ["one", "two", "one", "two"]


def test_what_the_user_has_set_under_the_key_is_no_value_of_the_function(state):
    state.set("f", 99)

    @TaskCache(state)
    def f():
        return 1

    assert f() == 1


def test_what_the_user_has_set_with_the_functions_name_is_no_value_of_it(state):
    @TaskCache(state)
    def f():
        return 1

    f()
    state.set("f", 99, metadata={"function": state.get_metadata("f")["function"]})
    assert f() == 1


def test_functions_of_two_modules_share_nothing_even_if_they_read_alike(state):
    modules = [module("def f(): return name"), module("def f(): return name")]
    for made in modules:
        made.name = made.__name__
    assert [TaskCache(state)(made.f)() for made in modules] == [made.name for made in modules]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x + 1, lambda x: x - 1),
        (lambda x: min(x, 5), lambda x: max(x, 5)),
        (lambda x: next(filter(lambda y: y > 1, [x]), None), lambda x: next(filter(lambda y: y > 0, [x]), None)),
    ],
    ids=["constant", "operator", "name", "inside"],
)
def test_two_lambdas_share_nothing(state, one, two):
    first, second = TaskCache(state)(one), TaskCache(state)(two)
    assert first.cache_key(1) == second.cache_key(1)
    assert [first(1), second(1), first(1), second(1)] == [one(1), two(1)] * 2


def test_what_a_try_covers_counts(state):
    """The bytecode of both is the same, but for the table that says where an exception leads."""
    covered = module("""
        def f():
            try:
                one()
                two()
            except ValueError:
                return 1
    """, name="tries")  # fmt: skip
    bare = module("""
        def f():
            try:
                one()
            except ValueError:
                return 1
            else:
                two()
    """, name="tries")  # fmt: skip
    for made in (covered, bare):
        made.one, made.two = (lambda: None), (lambda: int("x"))
    assert TaskCache(state)(covered.f)() == 1
    with pytest.raises(ValueError, match="invalid literal"):
        TaskCache(state)(bare.f)()


def made_with(state, value):
    @TaskCache(state)
    def f():
        return value

    return f


@pytest.mark.parametrize(("one", "two"), [(1, 2), (1, 1.0), ([1], [2]), (Shop("a"), Shop("b")), (len, max)], ids=repr)
def test_closures_over_different_values_share_nothing(one, two):
    state = StateManager()
    first, second = made_with(state, one), made_with(state, two)
    assert [(type(f()), f()) for f in (first, second, first)] == [(type(v), v) for v in (one, two, one)]


def test_closures_over_equal_values_share_theirs(state):
    made_with(state, [1])()
    del state
    assert made_with(StateManager(), [1])() == [1]


def test_closures_over_what_has_no_digest_share_nothing():
    state, one, two = StateManager(), threading.Lock(), threading.Lock()
    first, second = made_with(state, one), made_with(state, two)
    assert [first() is one, second() is two, first() is one] == [True] * 3


def test_a_closure_over_what_has_no_digest_keeps_its_own_values(state):
    lock = threading.Lock()

    @TaskCache(state)
    def f():
        with lock:
            return called(1)

    f()
    f()
    assert called.count == 1


def test_with_a_cache_key_func_what_has_no_digest_counts_by_its_type(state):
    def make(lock):
        @TaskCache(state, cache_key_func=lambda func: "key")
        def f():
            return called(type(lock).__name__)

        return f

    assert [make(threading.Lock())(), make(threading.Lock())(), called.count] == ["lock", "lock", 1]
    assert make(threading.Event())() == "Event"


def test_a_variable_that_is_assigned_after_the_function_counts(state):
    def make(value):
        @TaskCache(state)
        def f():
            return late

        late = value
        return f

    assert [make(1)(), make(2)()] == [1, 2]


def test_a_variable_that_is_never_assigned_is_fine(state):
    @TaskCache(state)
    def f(x):
        return called(x) if x else late

    if state is None:
        late = 1
    assert (f(5), f(5), called.count) == (5, 5, 1)


def test_a_closure_over_a_function_counts_by_what_that_does(state):
    def make(number):
        def helper():
            return number

        @TaskCache(state)
        def f():
            return called(helper())

        return f

    assert [make(1)(), make(2)(), make(2)(), called.count] == [1, 2, 2, 2]


def test_a_closure_over_a_function_counts_by_its_defaults(state):
    def make(number):
        def helper(x=number):
            return x

        @TaskCache(state)
        def f():
            return helper()

        return f

    assert [make(1)(), make(2)()] == [1, 2]


def test_one_function_decorated_in_two_ways_shares_nothing(state):
    found = module("""
        def times(factor):
            def decorate(func):
                @functools.wraps(func)
                def scaled(x): return factor * func(x)
                return scaled
            return decorate

        def f(x): return called(x)
    """)
    double, triple = (TaskCache(state)(found.times(factor)(found.f)) for factor in (2, 3))
    assert double.cache_key(1) == triple.cache_key(1)
    assert [double(1), triple(1), double(1)] == [2, 3, 2]


def test_a_cached_function_decorated_in_two_ways_shares_nothing(state):
    """The outer decorator copies what the inner one has put on its wrapper."""
    cache = TaskCache(state)

    def times(factor):
        def decorate(func):
            @functools.wraps(func)
            def scaled(x):
                return factor * func(x)

            return scaled

        return decorate

    @cache
    def f(x):
        return called(x)

    double, triple = cache(times(2)(f)), cache(times(3)(f))
    assert [double(1), triple(1), double(1)] == [2, 3, 2]


def test_whatever_is_closed_over_may_answer_as_it_likes(state):
    class Rude:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __eq__(self, other):
            raise RuntimeError("==")

        __hash__ = None

    rude = Rude()

    @TaskCache(state)
    def f():
        return called(type(rude).__name__)

    assert (f(), f(), called.count) == ("Rude", "Rude", 1)


def test_two_functions_that_call_each_other_are_kept_by_another_manager(path):
    """They close over each other, which must not make them unlike what they were."""
    def make():
        cache = TaskCache(StateManager(path))

        @cache
        def is_even(n):
            return called(n == 0 or is_odd(n - 1))

        @cache
        def is_odd(n):
            return called(n != 0 and is_even(n - 1))

        return is_even

    assert [make()(4), make()(4), called.count] == [True, True, 5]


def test_a_function_that_was_edited_starts_anew(state):
    before = module("def f(): return called('before')", name="edited")
    after = module("def f(): return called('after')", name="edited")
    assert [TaskCache(state)(before.f)(), TaskCache(state)(after.f)()] == ["before", "after"]


def test_comments_lines_and_what_a_docstring_says_are_no_edit(state):
    before = module("""
        def f(x):
            "What it did."
            return called(x)
    """, name="commented")  # fmt: skip
    after = module("""
        # A comment.

        def f(x):
            "What it does."
            # How.
            return called(x)
    """, name="commented")  # fmt: skip
    TaskCache(state)(before.f)(1)
    TaskCache(state)(after.f)(1)
    assert called.count == 1


def test_the_program_is_the_same_in_a_process_that_was_started_for_it(state):
    """There its module has another name."""
    parent, child = (module("def f(): return called(1)", name=name) for name in ("__main__", "__mp_main__"))
    TaskCache(state)(parent.f)()
    TaskCache(state)(child.f)()
    assert called.count == 1


def test_two_caches_of_one_function_share_its_values(state):
    def f():
        return called(1)

    TaskCache(state)(f)()
    TaskCache(state)(f)()
    assert called.count == 1


def test_being_traced_is_no_edit(state):
    def f():
        return called(1)

    TaskCache(state)(f)()
    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: lambda *args: None)
    try:
        TaskCache(state)(f)()
    finally:
        sys.settrace(before)
    assert called.count == 1


def test_caches_can_stand_on_each_other(path):
    """A quick one in memory above a lasting one in a file."""
    def make():
        @TaskCache(StateManager())
        @TaskCache(StateManager(path))
        def f(x):
            return called(x)

        return f

    assert [make()(1), make()(1), called.count] == [1, 1, 1]


# ---------------------------------------------------------------- what cannot be kept


def test_a_generator_is_returned_without_being_kept(state):
    @TaskCache(state)
    def rows():
        yield called(1)

    with pytest.warns(RuntimeWarning, match=r"rows\(\): result: a generator is empty after its first reader") as warned:
        assert list(rows()) == [1]
    assert list(rows()) == [1]
    assert called.count == 2
    assert state.get_all() == {}
    assert warned[0].filename == __file__


def test_there_is_one_warning_for_each_function(state):
    one, two = TaskCache(state)(lambda: iter(())), TaskCache(state)(lambda: iter(()))
    with pytest.warns(RuntimeWarning) as warned:
        [cached() for cached in (one, two, one, two)]
    assert len(warned) == 2


@pytest.mark.parametrize(
    "spent", [lambda: iter([1]), lambda: map(str, [1]), lambda: (x for x in [1])], ids=["iterator", "map", "generator"]
)
def test_what_is_empty_after_its_first_reader_is_not_kept(state, spent):
    cached = TaskCache(state)(lambda: spent())
    with pytest.warns(RuntimeWarning, match="is empty after its first reader; return a list. It is returned, but not"):
        first = cached()
    assert len(list(first)) == len(list(cached())) == 1


def test_a_coroutine_of_a_plain_function_is_not_kept(state):
    async def work():
        return called(5)

    cached = TaskCache(state)(lambda: work())
    with pytest.warns(RuntimeWarning, match="a coroutine can be awaited once; make the function async def"):
        assert asyncio.run(cached()) == 5
    assert asyncio.run(cached()) == 5


def test_an_asynchronous_generator_is_not_kept(state):
    @TaskCache(state)
    async def rows():
        yield called(1)

    async def read():
        return [row async for row in rows()]

    with pytest.warns(RuntimeWarning, match="an async_generator is empty after its first reader"):
        assert asyncio.run(read()) == [1]
    assert asyncio.run(read()) == [1]


def test_in_memory_whatever_can_be_read_again_is_kept():
    made = [threading.Lock(), io.StringIO("text"), object()]
    cached = TaskCache(StateManager())(lambda i: made[i])
    assert all(cached(i) is cached(i) is made[i] for i in range(3))


def test_what_a_file_refuses_is_returned_without_being_kept(path):
    state = StateManager(path)

    @TaskCache(state)
    def f():
        return called({"x": [threading.Lock()]})

    with pytest.warns(RuntimeWarning, match=r"f\(\): result\['x'\]\[0\]: a lock .* It is returned, but not kept"):
        f()
    f()
    assert called.count == 2
    assert state.get_all() == {}


def test_a_strict_state_makes_it_an_error(make):
    @TaskCache(make(strict=True))
    def rows():
        yield 1

    for _ in range(2):
        with pytest.raises(StateSerializationError, match=r"rows\(\): result: a generator"):
            rows()


def test_a_strict_file_makes_it_an_error(path):
    cached = TaskCache(StateManager(path, strict=True))(lambda: [threading.Lock()])
    with pytest.raises(StateSerializationError, match=r"result\[0\]: a lock"):
        cached()


def test_a_coroutine_that_a_strict_state_refuses_was_not_forgotten(make):
    """Nobody gets it, so Python must not warn that it was never awaited."""
    async def work():
        return 1

    cached = TaskCache(make(strict=True))(lambda: work())
    with pytest.raises(StateSerializationError):
        cached()
    gc.collect()


# ---------------------------------------------------------------- how the wrapper looks


def test_the_wrapper_looks_like_the_function(state):
    def f(a: int, *, b: str = "") -> list:
        """What it does."""

    f.extra = 1
    cached = TaskCache(state)(f)
    assert (cached.__name__, cached.__qualname__, cached.__module__) == (f.__name__, f.__qualname__, f.__module__)
    assert (cached.__doc__, cached.__annotations__, cached.__wrapped__) == (f.__doc__, f.__annotations__, f)
    assert (cached.extra, inspect.signature(cached)) == (1, inspect.signature(f))


def test_a_coroutine_function_stays_one(state):
    async def f():
        pass

    assert inspect.iscoroutinefunction(TaskCache(state)(f))
    assert not inspect.iscoroutinefunction(TaskCache(state)(lambda: 1))


def test_one_cache_decorates_many_functions(state):
    cache = TaskCache(state, ttl=5)

    @cache
    def f():
        return 1

    @cache
    def g():
        return 2

    assert (f(), g(), f(), g()) == (1, 2, 1, 2)


# ---------------------------------------------------------------- methods


def test_self_is_part_of_the_key(state):
    class_ = type("Cached", (Shop,), {"__module__": __name__, "__qualname__": "Cached"})
    class_.price = TaskCache(state)(Shop.price)
    assert [class_("a").price("tea"), class_("b").price("tea"), class_("a").price("tea")] == [
        "tea of a", "tea of b", "tea of a"
    ]  # fmt: skip
    assert len(state.get_all()) == 2
    assert class_.price.invalidate(class_("a"), "tea") is True


def test_a_bound_method_is_told_by_what_it_is_bound_to(state):
    first, second = TaskCache(state)(Shop("a").price), TaskCache(state)(Shop("b").price)
    assert [first("tea"), second("tea"), first(item="tea")] == ["tea of a", "tea of b", "tea of a"]
    assert len(state.get_all()) == 2


def test_a_self_without_a_digest_is_refused(state):
    class Client:
        @TaskCache(state)
        def get(self, url):
            return url

    with pytest.raises(StateSerializationError, match=r"Client\.get\(\): argument self: a .*Client.*cache_key_func"):
        Client().get("u")


def test_a_class_method_is_cached_from_below(state):
    class Base:
        @classmethod
        @TaskCache(state, cache_key_func=lambda func, cls: cls.__name__)
        def name(cls):
            return called(cls.__name__)

    class Derived(Base):
        pass

    assert [Base.name(), Derived.name(), Base.name(), called.count] == ["Base", "Derived", "Base", 2]


def test_a_static_method_is_cached_from_below(state):
    class Tools:
        @staticmethod
        @TaskCache(state)
        def double(x):
            return called(2 * x)

    assert [Tools.double(2), Tools().double(2), called.count] == [4, 4, 1]


# ---------------------------------------------------------------- threads


def test_concurrent_first_calls_run_the_function_once(state, waiting):
    threads, begun, go_on = Threads(), threading.Event(), threading.Event()

    @TaskCache(state)
    def f(x):
        begun.set()
        wait_until(go_on)
        return called(2 * x)

    threads.start(f, 2)
    wait_until(begun)
    for _ in range(9):
        threads.start(f, 2)
    take(waiting, 9)
    go_on.set()
    threads.join()
    assert (threads.results, threads.errors, called.count) == ([4] * 10, [], 1)


def test_calls_that_race_from_the_start_run_the_function_once(state):
    for x in range(20):
        threads, begin = Threads(), threading.Barrier(8)
        called.count = 0

        @TaskCache(state)
        def f(x):
            return called(x)

        def race():
            begin.wait(10)  # noqa: B023 - used up in this turn
            return f(x)  # noqa: B023

        for _ in range(8):
            threads.start(race)
        threads.join()
        assert (threads.results, called.count) == ([x] * 8, 1)


def test_different_arguments_never_wait_for_each_other(state):
    threads, both = Threads(), threading.Barrier(2)

    @TaskCache(state)
    def f(x):
        both.wait(10)
        return x

    threads.start(f, 1)
    threads.start(f, 2)
    threads.join()
    assert sorted(threads.results) == [1, 2]


def test_different_functions_under_one_key_never_wait_for_each_other(state):
    threads, both = Threads(), threading.Barrier(2)
    cache = TaskCache(state, cache_key_func=lambda func: "key")
    threads.start(cache(lambda: [both.wait(10), 1][1]))
    threads.start(cache(lambda: [both.wait(10), 2][1]))
    threads.join()
    assert sorted(threads.results) == [1, 2]


def test_one_function_in_different_states_never_waits_for_itself():
    threads, made = Threads(), module("def f(): return [both.wait(10), 1][1]")
    made.both = threading.Barrier(2)
    threads.start(TaskCache(StateManager())(made.f))
    threads.start(TaskCache(StateManager())(made.f))
    threads.join()
    assert threads.results == [1, 1]


def test_two_caches_of_one_function_make_a_value_once(state, waiting):
    threads, begun, go_on = Threads(), threading.Event(), threading.Event()
    key = lambda func: "key"  # noqa: E731

    def f():
        begun.set()
        wait_until(go_on)
        return called(1)

    threads.start(TaskCache(state, cache_key_func=key)(f))
    wait_until(begun)
    threads.start(TaskCache(state, cache_key_func=key)(f))
    take(waiting)
    go_on.set()
    threads.join()
    assert (threads.results, called.count) == ([1, 1], 1)


def test_if_the_call_raises_the_next_one_that_waits_tries_itself(state, waiting):
    """The first call raises, the second one returns, the other three take its value."""
    threads, begun, go_on = Threads(), threading.Event(), threading.Event()

    @TaskCache(state)
    def f():
        called()
        if called.count == 1:
            begun.set()
            wait_until(go_on)
            raise ValueError("not yet")
        return called.count

    threads.start(f)
    wait_until(begun)
    for _ in range(4):
        threads.start(f)
    take(waiting, 4)
    go_on.set()
    threads.join()
    assert (threads.results, [str(error) for error in threads.errors], called.count) == ([2] * 4, ["not yet"], 2)


def test_each_call_that_waits_sees_an_exception_of_its_own(state, waiting):
    threads, begun, go_on = Threads(), threading.Event(), threading.Event()

    @TaskCache(state)
    def f():
        begun.set()
        wait_until(go_on)
        raise ValueError("never")

    threads.start(f)
    wait_until(begun)
    for _ in range(3):
        threads.start(f)
    take(waiting, 3)
    go_on.set()
    threads.join()
    assert len({id(error) for error in threads.errors}) == 4


def test_each_call_that_waits_for_what_cannot_be_kept_makes_its_own_at_once(state, waiting):
    threads, begun, go_on, the_others = Threads(), threading.Event(), threading.Event(), threading.Barrier(3)

    @TaskCache(state)
    def rows():
        if begun.is_set():
            the_others.wait(10)
        else:
            begun.set()
            wait_until(go_on)
        return iter([called(1)])

    threads.start(rows)
    wait_until(begun)
    for _ in range(3):
        threads.start(rows)
    take(waiting, 3)

    def finish():
        go_on.set()
        threads.join()

    with pytest.warns(RuntimeWarning, match="is empty after its first reader"):
        finish()
    assert (threads.errors, sorted(map(list, threads.results))) == ([], [[1]] * 4)


def test_a_value_that_came_between_the_look_and_the_turn_is_taken(state, mocker):
    """
    1. One thread looks, and finds nothing.
    2. Another one looks, makes the value and ends its turn.
    3. The first one gets the turn.
    """
    cached = TaskCache(state)(lambda: called(1))
    cached()
    mocker.patch.object(state, "_valid", side_effect=[None, state._valid("<lambda>")])
    assert (cached(), called.count) == (1, 1)


def test_after_an_exit_out_of_the_function_the_next_call_is_made(state):
    @TaskCache(state)
    def f():
        called()
        if called.count == 1:
            raise KeyboardInterrupt
        return 1

    with pytest.raises(KeyboardInterrupt):
        f()
    assert f() == 1


def test_a_store_that_fails_lets_the_next_call_be_made(state, mocker):
    cached = TaskCache(state)(lambda: called(1))
    mocker.patch.object(state, "set", side_effect=OSError("full"))
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            cached()
    assert called.count == 2


def test_a_store_that_cannot_be_read_lets_the_next_call_be_made(state, mocker):
    """It fails at the second look, when the call has its turn already."""
    @TaskCache(state)
    def f():
        return called(1)

    async def work():
        return called(1)

    for call in (f, lambda: asyncio.run(TaskCache(state)(work)())):
        mocker.patch.object(state, "_valid", side_effect=[None, OSError("gone")])
        with pytest.raises(OSError, match="gone"):
            call()
        assert cache_module._turns.leading == {}
        mocker.stopall()
        assert call() == 1


def test_a_thread_that_is_interrupted_while_it_waits_leaves_the_others(state, mocker):
    """As a Ctrl-C does in the main thread."""
    threads, begun, go_on = Threads(), threading.Event(), threading.Event()

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    told = types.SimpleNamespace(Event=Interrupted, RLock=threading.RLock, get_ident=threading.get_ident)
    mocker.patch.object(cache_module, "threading", told)

    @TaskCache(state)
    def f():
        begun.set()
        wait_until(go_on)
        return called(1)

    threads.start(f)
    wait_until(begun)
    with pytest.raises(KeyboardInterrupt):
        f()
    go_on.set()
    threads.join()
    assert (threads.results, f(), called.count) == ([1], 1, 1)


# ---------------------------------------------------------------- calls from inside of each other


def test_a_function_can_call_itself_with_other_arguments(state):
    @TaskCache(state)
    def fibonacci(n):
        called()
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(30) == 832_040
    assert called.count == 31


def test_recursion_may_be_deep():
    @TaskCache(StateManager())
    def depth(n):
        return n and 1 + depth(n - 1)

    assert depth(350) == 350


def test_endless_recursion_is_a_recursion_error():
    @TaskCache(StateManager())
    def f():
        return f()

    with pytest.raises(RecursionError):
        f()


def test_endless_recursion_of_two_functions_is_a_recursion_error():
    cache = TaskCache(StateManager())

    @cache
    def f():
        return g()

    @cache
    def g():
        return f()

    with pytest.raises(RecursionError):
        f()


def test_a_call_from_inside_of_the_same_call_is_made(state):
    @TaskCache(state)
    def f():
        called()
        return f() + 1 if called.count < 4 else 0

    assert (f(), called.count) == (3, 4)


def test_a_thread_of_the_call_can_make_it_too(state):
    """f waits for a thread of its own, which calls f."""
    @TaskCache(state)
    def f():
        called()
        if called.count == 2:
            return 1
        threads = Threads()
        threads.start(contextvars.copy_context().run, f)
        threads.join()
        return threads.results[0] + 1

    assert (f(), called.count) == (2, 2)


def test_the_same_thread_in_another_context_can_make_it_too(state):
    @TaskCache(state)
    def f():
        called()
        return 1 if called.count == 2 else contextvars.Context().run(f) + 1

    assert (f(), called.count) == (2, 2)


def test_two_threads_that_need_each_others_values_get_them(state, waiting):
    """
    One thread:  f ─► g ─► f          The calls of f and g that both threads begin with go on at the same time,
    the other:   g ─► f ─► g          and neither would end before the other one does.
    """
    threads, both = Threads(), threading.Barrier(2)
    inside = threading.local()

    def enter():
        inside.depth = getattr(inside, "depth", 0) + 1
        if inside.depth == 1:
            both.wait(10)
        return inside.depth

    cache = TaskCache(state)

    @cache
    def f():
        return "f" if enter() > 1 else "f" + g()

    @cache
    def g():
        return "g" if enter() > 1 else "g" + f()

    threads.start(f)
    threads.start(g)
    threads.join()
    assert threads.errors == []
    assert {result[0] for result in threads.results} == {"f", "g"}


def test_three_threads_that_need_each_others_values_in_a_circle_get_them(state, waiting):
    threads, all_three = Threads(), threading.Barrier(3)
    inside = threading.local()

    @TaskCache(state)
    def f(n):
        inside.depth = getattr(inside, "depth", 0) + 1
        if inside.depth > 1:
            return [n]
        all_three.wait(10)
        return [n, *f((n + 1) % 3)]

    for n in range(3):
        threads.start(f, n)
    threads.join()
    assert threads.errors == []
    assert sorted(result[0] for result in threads.results) == [0, 1, 2]


def test_a_call_that_has_waited_waits_no_more(state, waiting):
    """Or what a long call has waited for would never be thrown away."""
    threads, begun, go_on = Threads(), threading.Event(), threading.Event()

    @TaskCache(state)
    def inner():
        begun.set()
        wait_until(go_on)
        return 1

    @TaskCache(state)
    def outer():
        inner()
        return len(cache_module._current.get().waits_for)

    threads.start(inner)
    wait_until(begun)
    threads.start(outer)
    take(waiting)
    go_on.set()
    threads.join()
    assert sorted(threads.results) == [0, 1]


def test_a_call_after_the_one_that_started_its_thread_belongs_to_none(state):
    threads, outer_is_over, depths = Threads(), threading.Event(), []

    @TaskCache(state)
    def inner():
        depths.append(len(list(cache_module._current.get()._outer())))
        return 1

    def later():
        wait_until(outer_is_over)
        return inner()

    @TaskCache(state)
    def outer():
        threads.start(contextvars.copy_context().run, later)
        return 1

    outer()
    outer_is_over.set()
    threads.join()
    assert depths == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_waits_for_no_thread_that_it_has_not(script):
    running = script("""
        import os, threading, warnings
        from flowkit import StateManager, TaskCache
        warnings.simplefilter("ignore", DeprecationWarning)
        begun, go_on = threading.Event(), threading.Event()

        @TaskCache(StateManager())
        def f():
            begun.set()
            go_on.wait()
            return os.getpid()

        leader = threading.Thread(target=f)
        leader.start()
        begun.wait()
        child = os.fork()
        if not child:
            go_on.set()
            os._exit(7 if f() == os.getpid() else 8)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        go_on.set()
        leader.join()
        print(f() == os.getpid())
    """).finish()
    assert (running.out.split(), running.err) == (["7", "True"], "")


# ---------------------------------------------------------------- coroutines


def test_what_a_coroutine_function_returns_is_kept(state):
    @TaskCache(state)
    async def double(x):
        await asyncio.sleep(0)
        return called(2 * x)

    async def main():
        return [await double(2), await double(x=2), await double(3)]

    assert (asyncio.run(main()), called.count) == ([4, 4, 6], 2)


def test_what_was_kept_is_there_for_another_loop(state):
    @TaskCache(state)
    async def f():
        return called(None)

    assert (asyncio.run(f()), asyncio.run(f()), called.count) == (None, None, 1)


def test_concurrent_first_awaits_run_the_function_once(state):
    @TaskCache(state)
    async def f(x):
        await asyncio.sleep(0)
        return called(x)

    async def main():
        return await asyncio.gather(*[f(1) for _ in range(10)])

    assert (asyncio.run(main()), called.count) == ([1] * 10, 1)


def test_coroutines_of_different_arguments_never_wait_for_each_other(state):
    async def main():
        both = asyncio.Barrier(2)

        @TaskCache(state)
        async def f(x):
            await both.wait()
            return x

        return await asyncio.wait_for(asyncio.gather(f(1), f(2)), 10)

    assert asyncio.run(main()) == [1, 2]


def test_different_loops_never_wait_for_each_other(state):
    threads, both = Threads(), threading.Barrier(2)

    @TaskCache(state)
    async def f():
        await asyncio.to_thread(both.wait, 10)
        return called(1)

    for _ in range(2):
        threads.start(lambda: asyncio.run(f()))
    threads.join()
    assert (threads.results, called.count) == ([1, 1], 2)


def test_if_the_coroutine_raises_the_next_one_that_waits_tries_itself(state):
    @TaskCache(state)
    async def f():
        called()
        await settle()
        if called.count == 1:
            raise ValueError("not yet")
        return called.count

    async def main():
        return await asyncio.gather(*[f() for _ in range(4)], return_exceptions=True)

    error, *results = asyncio.run(main())
    assert (str(error), results, called.count) == ("not yet", [2, 2, 2], 2)


def test_if_the_coroutine_is_cancelled_the_next_one_that_waits_makes_the_value(state):
    async def main():
        first_begun = asyncio.Event()

        @TaskCache(state)
        async def f():
            called()
            if called.count == 1:
                first_begun.set()
                await asyncio.Event().wait()
            await settle()
            return 5

        first = asyncio.create_task(f())
        await first_begun.wait()
        others = [asyncio.create_task(f()) for _ in range(3)]
        await settle()
        first.cancel()
        return await asyncio.wait_for(asyncio.gather(first, *others, return_exceptions=True), 10)

    cancelled, *results = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (results, called.count) == ([5, 5, 5], 2)


def test_cancelling_one_that_waits_leaves_the_others(state):
    async def main():
        go_on = asyncio.Event()

        @TaskCache(state)
        async def f():
            await go_on.wait()
            return called(5)

        first, second, third = [asyncio.create_task(f()) for _ in range(3)]
        await settle()
        second.cancel()
        await settle()
        go_on.set()
        return await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 10)

    one, cancelled, three = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (one, three, called.count) == (5, 5, 1)


def test_a_coroutine_that_calls_itself_is_made(state):
    @TaskCache(state)
    async def f():
        called()
        return 1 if called.count == 3 else 1 + await f()

    assert asyncio.run(asyncio.wait_for(f(), 10)) == 3


def test_tasks_of_a_coroutine_can_call_it_too(state):
    @TaskCache(state)
    async def f():
        called()
        if called.count > 1:
            return 1
        async with asyncio.TaskGroup() as group:
            inner = [group.create_task(f()) for _ in range(2)]
        return sum(each.result() for each in inner)

    assert asyncio.run(asyncio.wait_for(f(), 10)) == 2


def test_two_coroutines_that_need_each_others_values_get_them(state):
    """
    One task:  f ─► g ─► f
    the other: g ─► f ─► g
    """
    depth = contextvars.ContextVar("depth", default=0)
    cache = TaskCache(state)

    async def enter():
        depth.set(depth.get() + 1)
        await settle()
        return depth.get()

    @cache
    async def f():
        return "f" if await enter() > 1 else "f" + await g()

    @cache
    async def g():
        return "g" if await enter() > 1 else "g" + await f()

    async def main():
        return await asyncio.wait_for(asyncio.gather(f(), g()), 10)

    assert [result[0] for result in asyncio.run(main())] == ["f", "g"]


def test_a_generator_in_a_coroutine_function_is_not_kept(state):
    @TaskCache(state)
    async def f():
        return iter([called(1)])

    async def main():
        return [list(await f()), list(await f())]

    with pytest.warns(RuntimeWarning, match=r"f\(\): result: a list_iterator is empty after its first reader"):
        assert asyncio.run(main()) == [[1], [1]]


def test_a_coroutine_that_is_thrown_away_lets_the_next_one_go_on(state):
    async def main():
        @TaskCache(state)
        async def f():
            called()
            if called.count == 1:
                await asyncio.Event().wait()
            return 5

        thrown = f()
        thrown.send(None)
        thrown.close()
        return await asyncio.wait_for(f(), 10)

    assert (asyncio.run(main()), called.count) == (5, 2)


def test_a_coroutine_that_is_thrown_away_changes_nothing_where_that_happens(state):
    async def main():
        @TaskCache(state)
        async def f():
            await asyncio.Event().wait()

        @TaskCache(state)
        def g():
            thrown.close()
            return cache_module._current.get() is not None

        thrown = f()
        contextvars.copy_context().run(thrown.send, None)
        return g()

    assert asyncio.run(main()) is True


def test_a_coroutine_may_be_thrown_away_after_its_loop_was_closed(state):
    @TaskCache(state)
    async def f():
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(f()) for _ in range(2)]
    loop.run_until_complete(settle())
    loop.close()
    for each in tasks:
        each._log_destroy_pending = False
        each.get_coro().close()


def test_a_value_that_came_between_a_coroutines_look_and_its_turn_is_taken(state, mocker):
    @TaskCache(state)
    async def f():
        return called(1)

    asyncio.run(f())
    mocker.patch.object(state, "_valid", side_effect=[None, state._valid("f")])
    assert (asyncio.run(f()), called.count) == (1, 1)


def test_coroutines_that_wait_for_what_cannot_be_kept_make_their_own_at_once(state):
    async def main():
        begun, go_on, the_others = asyncio.Event(), asyncio.Event(), asyncio.Barrier(3)

        @TaskCache(state)
        async def f():
            if begun.is_set():
                await the_others.wait()
            else:
                begun.set()
                await go_on.wait()
            return iter([called(1)])

        tasks = [asyncio.create_task(f()) for _ in range(4)]
        await settle()
        go_on.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), 10)

    with pytest.warns(RuntimeWarning, match="is empty after its first reader"):
        assert list(map(list, asyncio.run(main()))) == [[1]] * 4


def test_a_coroutine_without_a_loop_is_run_as_it_is(state):
    """As another library than asyncio drives it."""
    @TaskCache(state)
    async def f():
        return called(5)

    def drive():
        with pytest.raises(StopIteration) as stopped:
            f().send(None)
        return stopped.value.value

    assert (drive(), drive(), called.count) == (5, 5, 1)


def test_a_call_of_a_coroutine_function_that_does_not_fit_is_pythons_own_error(state):
    @TaskCache(state)
    async def f(a):
        return a

    with pytest.raises(TypeError, match=r"f\(\) missing 1 required positional argument: 'a'"):
        asyncio.run(f())


# ---------------------------------------------------------------- under @task


def test_a_task_runs_its_function_once_in_two_runs(state):
    """rows ─► total"""
    with DAG("etl") as dag:
        @task
        def rows():
            return [1, 2]

        @task
        @TaskCache(state)
        def total(rows):
            return called(sum(rows))

        rows >> total

    assert [dag.run()["total"], dag.run()["total"], called.count] == [3, 3, 1]


def test_the_task_has_the_functions_name_and_parameters(state):
    @task
    @TaskCache(state)
    def total(rows, factor=2):
        """Add them up."""

    assert (total.name, total.__doc__) == ("total", "Add them up.")
    with DAG("etl") as dag:
        @task
        def rows():
            return [1, 2]

        @task(name="cached")
        @TaskCache(state)
        def scaled(factor, rows):
            return factor * sum(rows)

        rows >> scaled

    assert dag.run({"factor": 10})["cached"] == 30


def test_a_task_that_fails_is_tried_again_and_then_kept(state):
    with DAG("etl") as dag:
        @task(retries=2, delay=0)
        @TaskCache(state)
        def flaky():
            called()
            if called.count < 3:
                raise ConnectionError("not yet")
            return called.count

    assert [dag.run()["flaky"], dag.run()["flaky"], called.count] == [3, 3, 3]


def test_a_task_gets_its_context_and_is_kept_without_it(state):
    with DAG("etl") as dag:
        @task
        @TaskCache(state)
        def name(context: TaskContext):
            return called(context.task_name)

    assert [dag.run()["name"], dag.run()["name"], called.count] == ["name", "name", 1]
    assert state.has("name")


def test_a_coroutine_task_is_kept(state):
    with DAG("etl") as dag:
        @task
        @TaskCache(state)
        async def fetch():
            await asyncio.sleep(0)
            return called(5)

    assert [dag.run()["fetch"], dag.run()["fetch"], called.count] == [5, 5, 1]


def test_mapped_items_share_what_is_kept(state):
    """items ─► square, three items of which two are the same"""
    with DAG("etl") as dag:
        @task
        def items():
            return [2, 3, 2]

        @task
        @TaskCache(state)
        def square(x):
            return called(x * x)

        items >> square.map()

    assert (dag.run()["square"], called.count) == ([4, 9, 4], 2)


def test_a_run_inside_of_a_cached_function_can_call_it_again(state):
    @TaskCache(state)
    def f():
        called()
        if called.count == 2:
            return 1
        with DAG("inner") as dag:
            task(name="again")(lambda: f())
        return dag.run()["again"] + 1

    assert (f(), called.count) == (2, 2)


def test_tasks_in_processes_share_what_is_kept(tmp_path, script):
    (tmp_path / "flow_of_test.py").write_text(textwrap.dedent(f"""
        from flowkit import DAG, StateManager, TaskCache, task
        from pathlib import Path

        state = StateManager({str(tmp_path / "state.json")!r})

        @task(executor="process")
        @TaskCache(state)
        def double(x):
            with open({str(tmp_path / "calls")!r}, "a") as file:
                file.write("called\\n")
            return 2 * x

        dag = DAG("flow", tasks=[double])
    """), "utf-8")  # fmt: skip
    running = script(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import flow_of_test as flow
        for x in (1, 1, 2):
            print(flow.dag.run({{"x": x}})["double"])
        print(flow.double(1))
    """, limit=30).finish()  # fmt: skip
    assert (running.out.split(), running.err) == (["2", "2", "4", "2"], "")
    assert (tmp_path / "calls").read_text("utf-8").split() == ["called", "called"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [None, "state.json", {}, StateManager, lambda: 1], ids=["None", "str", "dict", "class",
                                                                                      "function"])  # fmt: skip
def test_what_is_no_state_is_refused(bad):
    with pytest.raises(TypeError, match=r"TaskCache needs a state .* Write @TaskCache\(StateManager\(\)\)"):
        TaskCache(bad)


@pytest.mark.parametrize("bad", ["5", True, math.nan, [1]], ids=repr)
def test_a_ttl_that_is_no_number_is_refused_at_once(bad):
    with pytest.raises(OptionError, match=r"ttl=.* must be a number of seconds, or None"):
        TaskCache(StateManager(), ttl=bad)


def test_a_cache_key_func_that_cannot_be_called_is_refused_at_once():
    with pytest.raises(TypeError, match="cache_key_func='key' must be a function, or None"):
        TaskCache(StateManager(), cache_key_func="key")


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        (5, r"of type int\.$"),
        (None, r"of type NoneType\.$"),
        (Shop, r"of type type\. Write a function that calls it\.$"),
        (functools.partial(len), r"of type partial\. Write a function that calls it\.$"),
        (Counted(), r"of type Counted\.$"),
        (classmethod(len), r"Put @classmethod above @TaskCache\(\.\.\.\)\.$"),
        (staticmethod(len), r"Put @staticmethod above @TaskCache\(\.\.\.\)\.$"),
    ],
    ids=["number", "None", "class", "partial", "object", "classmethod", "staticmethod"],
)
def test_what_is_no_function_is_refused(bad, hint):
    with pytest.raises(TypeError, match=rf"TaskCache needs a function, not .*{hint}"):
        TaskCache(StateManager())(bad)


def test_a_task_is_refused_with_the_right_order():
    @task
    def f():
        return 1

    with pytest.raises(TypeError, match=r"of type Task\. Put @task above @TaskCache\(\.\.\.\)\."):
        TaskCache(StateManager())(f)
