"""Signatures: what parameters a callable has, read from its code or, where it has none, from inspect."""

import functools
import inspect
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit import TaskContext
from flowkit.engine.signature import describe_signature, is_coroutine_function, read_signature


def parts(func):
    """Return the parameters as plain data."""
    read = read_signature(func)
    return (read.positional, dict(read.defaults), read.keyword_only, read.has_varargs, read.has_varkw)


class Loader:
    rows = 3

    def __init__(self, path, *, mode="r"):
        self.path = path

    def method(self, a, b=2):
        return a + b

    @classmethod
    def made(cls, a):
        return cls(a)

    @staticmethod
    def plain(a, b):
        return a + b

    def loose(*args, c=1):
        return args

    def __call__(self, x, y=0):
        return x + y


def everything(a, b=2, /, c=3, *args, d, e=5, **kwargs):
    return a, b, c, args, d, e, kwargs


LOADER = Loader("x")


@pytest.mark.parametrize(("func", "expected"), [
    (lambda: 0, ((), {}, (), False, False)),
    (lambda a, b: 0, (("a", "b"), {}, (), False, False)),
    (lambda a, b=2: 0, (("a", "b"), {"b": 2}, (), False, False)),
    (lambda *a: 0, ((), {}, (), True, False)),
    (lambda **k: 0, ((), {}, (), False, True)),
    (lambda *, k, m=1: 0, ((), {"m": 1}, ("k", "m"), False, False)),
    (everything, (("a", "b", "c"), {"b": 2, "c": 3, "e": 5}, ("d", "e"), True, True)),
    (LOADER.method, (("a", "b"), {"b": 2}, (), False, False)),
    (Loader.method, (("self", "a", "b"), {"b": 2}, (), False, False)),
    (Loader.made, (("a",), {}, (), False, False)),
    (Loader.plain, (("a", "b"), {}, (), False, False)),
    (LOADER.loose, ((), {"c": 1}, ("c",), True, False)),
    (LOADER, (("x", "y"), {"y": 0}, (), False, False)),
    (Loader, (("path",), {"mode": "r"}, ("mode",), False, False)),
    (functools.partial(everything, 1, d=4),
     (("b", "c"), {"b": 2, "c": 3, "d": 4, "e": 5}, ("d", "e"), True, True)),
    (functools.partial(LOADER.method, b=5), (("a",), {"b": 5}, ("b",), False, False)),
    (len, (("obj",), {}, (), False, False)),
])  # fmt: skip
def test_every_kind_of_callable_is_read(func, expected):
    assert parts(func) == expected


@pytest.mark.parametrize("func", [dict, max, type])
def test_a_builtin_that_does_not_tell_has_no_signature(func):
    if sys.version_info >= (3, 13) and func is type:
        pytest.skip("tells since 3.13")
    assert read_signature(func) is None


def test_what_is_no_function_at_all_has_none():
    class Lying:
        __signature__ = "nonsense"

        def __call__(self): ...

    assert read_signature(Lying()) is None


def test_local_variables_are_no_parameters():
    def func(a, *rest, key):
        local = other = a
        return local, other, rest, key

    assert parts(func) == (("a",), {}, ("key",), True, False)


def test_a_wrapped_function_shows_the_signature_of_what_it_wraps():
    def inner(rows, limit=10): ...

    @functools.wraps(inner)
    def outer(*args, **kwargs): ...

    assert parts(outer) == (("rows", "limit"), {"limit": 10}, (), False, False)


def test_a_function_with_a_signature_of_its_own_shows_that():
    def func(*args): ...

    func.__signature__ = inspect.signature(lambda a, b: 0)
    assert parts(func) == (("a", "b"), {}, (), False, False)


def test_other_attributes_of_a_function_change_nothing():
    def func(a): ...

    func.note = "mine"
    assert parts(func) == (("a",), {}, (), False, False)


names = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@settings(deadline=None)
@given(names, st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.booleans(), st.booleans())
def test_reading_the_code_gives_what_inspect_gives(parameters, only, with_default, keyword, varargs, varkw):
    """A random signature, compiled."""
    positional, keyword_only = parameters[:keyword], parameters[keyword:]
    first_default = max(0, len(positional) - with_default)
    shown = [f"{p}={i}" if i >= first_default else p for i, p in enumerate(positional)]
    if only and len(shown) >= only:
        shown.insert(only, "/")
    if varargs or keyword_only:
        shown.append("*rest" if varargs else "*")
    shown += [f"{p}={i}" if i % 2 else p for i, p in enumerate(keyword_only)]
    if varkw:
        shown.append("**more")
    func = eval(f"lambda {', '.join(shown)}: 0")
    expected = inspect.signature(func).parameters.values()
    by_kind = {kind.name: [p for p in expected if p.kind is kind] for kind in inspect._ParameterKind}
    assert parts(func) == (
        tuple(p.name for p in by_kind["POSITIONAL_ONLY"] + by_kind["POSITIONAL_OR_KEYWORD"]),
        {p.name: p.default for p in expected if p.default is not p.empty},
        tuple(p.name for p in by_kind["KEYWORD_ONLY"]),
        bool(by_kind["VAR_POSITIONAL"]),
        bool(by_kind["VAR_KEYWORD"]),
    )


# ---------------------------------------------------------------- the context parameter


def annotated(**annotations):
    def func(a, b, *, c=None): ...

    func.__annotations__ = annotations
    return func


@pytest.mark.parametrize(("func", "names"), [
    (lambda context: 0, {"context"}),
    (lambda a, *, context: 0, {"context"}),
    (lambda a: 0, set()),
    (annotated(b=TaskContext), {"b"}),
    (annotated(b="TaskContext"), {"b"}),
    (annotated(b="'TaskContext'"), {"b"}),
    (annotated(c="flowkit.TaskContext"), {"c"}),
    (annotated(b="flowkit.context.TaskContext", a="int"), {"b"}),
    (annotated(a=TaskContext, b="TaskContext"), {"a", "b"}),
    (annotated(b="MyTaskContext", a=int), set()),
    (annotated(b="list[TaskContext]"), set()),
    (annotated(b=3, a=None), set()),
    (functools.partial(annotated(b=TaskContext), 1), {"b"}),
])  # fmt: skip
def test_the_parameters_for_the_context_are_known_by_name_or_annotation(func, names):
    assert set(read_signature(func).contexts) == names


def test_a_parameter_named_context_and_an_annotated_one_both_get_it():
    def func(where: TaskContext, context): ...

    assert set(read_signature(func).contexts) == {"where", "context"}


@pytest.mark.parametrize(("func", "nothing"), [
    (lambda: 0, True), (lambda context: 0, True), (lambda *, context: 0, True),
    (lambda a: 0, False), (lambda a=1: 0, False), (lambda *a: 0, False), (lambda **k: 0, False),
    (lambda context, a: 0, False),
])  # fmt: skip
def test_a_function_takes_nothing_if_all_it_can_get_is_the_context(func, nothing):
    assert read_signature(func).takes_nothing is nothing


# ---------------------------------------------------------------- coroutine functions


async def coroutine(a): ...


async def agen():
    yield 1


def generator():
    yield 1


class AsyncCall:
    async def __call__(self): ...

    async def method(self): ...


def nested_partial(func):
    return functools.partial(functools.partial(func, 1))


@pytest.mark.parametrize(("func", "expected"), [
    (coroutine, True), (functools.partial(coroutine, 1), True), (nested_partial(coroutine), True),
    (AsyncCall(), True), (AsyncCall().method, True), (functools.partial(AsyncCall()), True),
    (agen, False), (generator, False), (LOADER, False), (lambda: 0, False), (len, False), (Loader, False),
    (functools.partial(len, ""), False), (LOADER.method, False),
])  # fmt: skip
def test_a_coroutine_function_is_known_however_it_is_wrapped(func, expected):
    assert is_coroutine_function(func) is expected


def test_an_object_that_is_its_own_func_ends_the_search():
    class Circular:
        def __init__(self):
            self.func = self

        def __call__(self): ...

    assert is_coroutine_function(Circular()) is False


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(("func", "text"), [
    (lambda: 0, "f()"),
    (lambda rows, limit=10: 0, "f(rows, limit=10)"),
    (lambda a, *rest, k, m="x", **more: 0, "f(a, *rest, k, m='x', **more)"),
    (lambda a, *, k=None: 0, "f(a, *, k=None)"),
    (lambda a="x" * 100: 0, "f(a=...)"),
    (dict, "f(...)"),
])  # fmt: skip
def test_a_signature_is_shown_as_it_is_written(func, text):
    assert describe_signature(func, "f") == text.replace("*rest", "*args").replace("**more", "**kwargs")


def test_a_default_whose_repr_raises_is_shown_as_dots():
    class Broken:
        def __repr__(self):
            raise RuntimeError("no")

    def func(a): ...

    func.__defaults__ = (Broken(),)
    assert describe_signature(func, "f") == "f(a=...)"


def test_a_long_signature_is_cut():
    func = eval(f"lambda {', '.join(f'parameter_{i}' for i in range(100))}: 0")
    text = describe_signature(func, "f")
    assert len(text) < 220
    assert text.endswith("...)")
