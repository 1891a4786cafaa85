"""A digest is the same for the same value in any process, and for no other."""

import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import itertools
import math
import os
import re
import subprocess
import sys
import threading
import typing
import uuid
import zoneinfo
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_codec import raw_float, shape, values

import flowkit
from flowkit.exceptions import StateSerializationError
from flowkit.state.digest import digest


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Paint(enum.Enum):
    RED = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Order:
    number: int
    rows: object = ()


@dataclasses.dataclass
class Bill:
    number: int
    rows: object = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: object


class Point(typing.NamedTuple):
    x: object
    y: object = 0


class Place(typing.NamedTuple):
    x: object
    y: object = 0


class Rows(list):
    pass


class Number(int):
    pass


class Text(str):
    __slots__ = ("note",)


class Bag(set):
    pass


class Table(dict):
    pass


class Ordered(collections.OrderedDict):
    pass


class Client:
    pass


class Other:
    pass


def refusal(value, most=None):
    """Return the path and the reason with which *value* is refused."""
    with pytest.raises(StateSerializationError) as caught:
        digest(value, most)
    return caught.value.path, caught.value.reason


def with_attributes(value, **attributes):
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


def moved_to_end(value, key):
    value.move_to_end(key)
    return value


# ---------------------------------------------------------------- what differs

ROME, BERLIN = zoneinfo.ZoneInfo("Europe/Rome"), zoneinfo.ZoneInfo("Europe/Berlin")
NOON = dt.datetime(2024, 1, 1, 12)

DIFFERENT = [
    None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, "1", b"1", bytearray(b"1"), memoryview(b"1"), 1 + 0j, 1j,
    complex(-0.0, 1),
    2**31, 2**64, -(2**64), 10**5000, 10**5000 + 1, math.inf, -math.inf, math.nan, -math.nan,
    raw_float(0x7FF8000000000001),
    "", b"", "a", "b", "ä", "\x00", "\ud83d\ude00", "\U0001f600", "\ud800", "\udc00", "None", "[]", ...,
    [], (), {}, set(), frozenset(), [[]], [()], ([],), [{}], [None], [[], []], [[[]]], [[], [[]]], [[[]], []],
    [1], (1,), {1}, frozenset({1}), {1: 1}, {"1": 1}, {1.0: 1}, {True: 1}, {1: 1.0}, {b"1": 1}, {(1,): 1}, {None: 1},
    [1, 2], [2, 1], [[1, 2]], [[1], [2]], [[1], 2], [1, [2]], (1, (2,)), ((1,), 2), [(1, 2)], [1, 2, []], [1, 2, ()],
    {1, 2}, {1, (2,)}, {(1, 2)}, {frozenset({1}), 2}, frozenset({frozenset({1, 2})}),
    {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": {"b": 1}}, {"a": ["b", 1]}, {"a": [1]}, {"a": [[1]]}, {"a": (1,)},
    {"ab": 1},
    {"a": [], "b": []}, {"a": [[], []]}, {"a": 1, 2: 3}, {"a": "b", "c": "d"}, ["a", "b", "c", "d"],
    [["a", "c"], ["b", "d"]],
    {1: [], 2: ()}, {1: (), 2: []}, {1: [2]}, {2: [1]}, {(): [1]}, {math.nan: 1}, {math.nan: 1, float("nan"): 2},
    {math.nan: 1, float("nan"): 1}, {math.nan: [1], float("nan"): 2},
    ["ab", "c"], ["a", "bc"], ["abc"], [b"ab", b"c"], "x" * (2 << 20), b"x" * (2 << 20), ["x" * (2 << 20)],
    collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), collections.Counter(a=1, b=2),
    moved_to_end(collections.OrderedDict(c=1, d=2), "c"), moved_to_end(Ordered(c=1, d=2), "c"), Ordered(c=1, d=2),
    collections.defaultdict(list), collections.defaultdict(set), collections.defaultdict(None), collections.Counter(),
    collections.deque([1]), collections.deque([1], 1), collections.deque([1], 2), collections.deque(),
    NOON, NOON.replace(fold=1), NOON.replace(tzinfo=dt.UTC), NOON.replace(tzinfo=ROME), NOON.replace(tzinfo=BERLIN),
    NOON.replace(tzinfo=dt.timezone(dt.timedelta(0), "Z")), NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
    NOON.replace(microsecond=1), NOON.date(), NOON.time(), NOON.time().replace(fold=1),
    NOON.time().replace(tzinfo=dt.UTC),
    dt.timedelta(1), dt.timedelta(seconds=1), dt.timedelta(microseconds=1), dt.UTC,
    dt.timezone(dt.timedelta(hours=1)), ROME,
    decimal.Decimal("1"), decimal.Decimal("1.0"), decimal.Decimal("1E+1"), decimal.Decimal("10"), decimal.Decimal("-0"),
    decimal.Decimal("0"), decimal.Decimal("NaN"), decimal.Decimal("sNaN"), decimal.Decimal("NaN1"),
    decimal.Decimal("Infinity"),
    fractions.Fraction(1), fractions.Fraction(1, 2), uuid.UUID(int=1), uuid.UUID(int=2), range(1), range(1, 1),
    range(0, 1, 2),
    Path("a"), PurePosixPath("a"), PureWindowsPath("a"), PurePosixPath("a/b"), PureWindowsPath("A"),
    PureWindowsPath("c:x"), PureWindowsPath(".", "./c:x"), re.compile("a"),
    re.compile("a", re.ASCII), re.compile(b"a"),
    Color.RED, Color.BLUE, Paint.RED, Access.READ, Access.READ | Access.WRITE, Access(0),
    Order(1), Order(2), Order(1, []), Bill(1), Frozen(1), Frozen((1,)), Point(1), Place(1), Point(1, []), (1, 0),
    Rows([1]), with_attributes(Rows([1]), note=1), with_attributes(Rows([1]), note=2), Number(1), Text("1"),
    with_attributes(Text("1"), note=1), Bag({1}), Table(a=1), Table(a=[]), Rows([Rows([1])]), Rows([[1]]),
    len, print, os.getcwd, refusal, with_attributes, int, str, Order, Color, typing.NamedTuple, collections.OrderedDict,
]  # fmt: skip


def test_values_that_differ_have_different_digests():
    seen = {}
    for value in DIFFERENT:
        other = seen.setdefault(digest(value), value)
        assert other is value, f"{shape(other)} and {shape(value)}"


def test_values_that_differ_have_different_digests_inside_of_others():
    """What follows a value in its container is not taken for part of it."""
    seen = {}
    for wrap in (
        lambda value: [value],
        lambda value: {"k": value},
        lambda value: [value, 1],
        lambda value: Order(1, value),
    ):
        for value in DIFFERENT:
            other = seen.setdefault(digest(wrap(value)), value)
            assert other is value, f"{shape(other)} and {shape(value)}"


def test_pairs_of_values_that_differ_have_different_digests():
    few = [
        None,
        1,
        "a",
        [],
        [[]],
        [1],
        [[1]],
        (),
        {},
        {"a": 1},
        {"a": []},
        {1: 2},
        {1: []},
        set(),
        {1},
        Point(1),
        Order(1),
    ]
    seen = {}
    for pair in itertools.product(few, repeat=2):
        for wrapped in (list(pair), [pair], {"a": pair[0], "b": pair[1]}, {1: pair[0], 2: pair[1]}, Order(*pair)):
            known = seen.setdefault(digest(wrapped), wrapped)
            assert known is wrapped, f"{shape(known)} and {shape(wrapped)}"


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(values, values)
def test_two_values_have_the_same_digest_only_if_they_are_the_same(one, two):
    assert (digest(one) == digest(two)) == (unordered(one) == unordered(two))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))
def test_10_000_pairs_of_values_have_the_same_digest_only_if_they_are_the_same(part):
    @settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck), database=None)
    @given(values, values)
    def check(one, two):
        assert (digest(one) == digest(two)) == (unordered(one) == unordered(two))
        assert digest(copy.deepcopy(one)) == digest(one)

    check()


def unordered(value):
    """Return the shape of *value* without the order of the keys of dicts, and without what a digest leaves out."""
    if type(value) is uuid.UUID:
        return "UUID", value.int
    if isinstance(value, dict):
        pairs = [repr((unordered(key), unordered(inner))) for key, inner in value.items()]
        is_ordered = isinstance(value, collections.OrderedDict)
        return type(value), getattr(value, "default_factory", None), pairs if is_ordered else sorted(pairs)
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(unordered(inner)) for inner in value)
    if isinstance(value, list | tuple | collections.deque):
        return type(value), getattr(value, "maxlen", None), [unordered(inner) for inner in value]
    if dataclasses.is_dataclass(value):
        return type(value), [unordered(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return shape(value)


# ---------------------------------------------------------------- what is the same


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(values)
def test_a_copy_has_the_same_digest(value):
    assert digest(copy.deepcopy(value)) == digest(value)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.one_of(st.text(), st.integers(), st.floats()), values, max_size=6), st.randoms())
def test_the_order_of_a_dict_does_not_count(value, rng):
    pairs = list(value.items())
    rng.shuffle(pairs)
    assert digest(dict(pairs)) == digest(value)


def test_the_order_in_which_a_set_was_filled_does_not_count():
    names = [f"n{n}" for n in range(100)]
    backwards = names[::-1]
    assert digest(set(names)) == digest(set(backwards))
    assert digest(frozenset((name, 1) for name in names)) == digest(frozenset((name, 1) for name in backwards))


def test_the_order_of_keys_that_are_nans_does_not_count():
    one, two = float("nan"), float("nan")
    assert digest({one: [1], two: [2]}) == digest({two: [2], one: [1]})
    assert digest({one, two}) == digest({two, one})
    assert digest({one}) != digest({one, two})


def test_shared_values_are_the_same_as_copies():
    row, name = [1, 2], "".join(["a", "b"])
    assert digest([row, row]) == digest([[1, 2], [1, 2]])
    assert digest([name, name]) == digest(["ab", "".join(["a", "b"])])


def test_attributes_that_are_no_fields_do_not_count():
    """A cached property has not changed the value."""
    assert digest(with_attributes(Order(1), cached=3)) == digest(Order(1))


CATALOGUE = """
import collections, dataclasses, datetime, decimal, enum, fractions, math, uuid, zoneinfo
from pathlib import PurePosixPath
@dataclasses.dataclass
class Order:
    number: int
    rows: object
class Color(enum.Enum):
    RED = 1
VALUE = {
    "set": {"a", "b", "c", 1, (2, "x"), frozenset({"p", "q", "r"})},
    "dict": {("a", 1): {"z", "y"}, None: 1.5, "k": b"x"},
    "order": Order(1, [Color.RED, len, Order]),
    "when": datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Rome")),
    "numbers": [decimal.Decimal("1.0"), fractions.Fraction(1, 3), math.nan, 10**5000, *range(1_000)],
    "other": [uuid.UUID(int=5), PurePosixPath("a/b"), collections.Counter("hello"), "y" * (3 << 20)],
}
"""


def test_the_digest_is_the_same_in_any_process():
    code = f"{CATALOGUE}\nfrom flowkit.state.digest import digest\nprint(digest(VALUE))"
    found = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(flowkit.__file__).parent.parent)},
        )  # fmt: skip
        found.add(done.stdout.strip())
    assert len(found) == 1


ONE_OF_EACH = [
    None, True, 1, 10**30, 1.5, 2j, "x", "ä\ud800", b"x", ..., bytearray(b"x"), memoryview(b"x"), [1], [[1]], (1,),
    ((1,),),
    {"a": 1}, {"a": [1]}, {1: 2}, {(1,): [2]}, {math.nan: 1, float("nan"): 2}, {1, "x"}, frozenset({(1,)}),
    range(1, 9, 2),
    "y" * (2 << 20), b"y" * (2 << 20), collections.OrderedDict(a=1), collections.deque([1], 2),
    collections.Counter("a"),
    collections.defaultdict(list, a=1), NOON, NOON.replace(tzinfo=ROME), NOON.replace(tzinfo=dt.UTC, fold=1),
    NOON.date(),
    NOON.time(), dt.timedelta(1, 2, 3), dt.UTC, ROME, decimal.Decimal("1.0"), fractions.Fraction(1, 3),
    uuid.UUID(int=1),
    re.compile("a", re.ASCII), PurePosixPath("a/b"), PureWindowsPath("a/b"), Color.RED, Access.READ | Access.WRITE,
    Order(1, (1,)), Order(1, [[]]), Point(1, 2), Rows([1]), Number(1), len, refusal, int, Order,
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "738096e476d3c5447c3cb95c39bfc964"),
        ({"a": 1, "b": [1.5, None, "x"]}, "4d815e96ca11de30634bd72f1f6e74df"),
        (ONE_OF_EACH, "e8656f72318f297f06de1c8c7802ca94"),
    ],
    ids=["none", "plain", "one of each"],
)
def test_the_digest_is_the_same_as_in_earlier_versions(value, expected):
    """A change of one makes everything run again that is stored anywhere; change it only on purpose."""
    assert digest(value) == expected


def test_a_digest_is_32_hexadecimal_digits():
    assert re.fullmatch("[0-9a-f]{32}", digest([1]))


# ---------------------------------------------------------------- depth and circles


def test_any_depth_has_a_digest():
    def nested(depth, value):
        for n in range(depth):
            value = [value] if n % 2 else {"a": (value,)}
        return value

    assert digest(nested(100_000, 1)) != digest(nested(100_000, 2))


def test_any_number_of_sets_beside_each_other_has_a_digest():
    assert digest({frozenset({(n, ())}) for n in range(200)})


def test_sets_in_sets_are_refused_before_python_refuses_them():
    value = frozenset()
    for _ in range(500):
        value = frozenset([value])
    path, reason = refusal(value)
    assert reason == "sets or keys are nested deeper than 50 levels here; make it flatter"
    assert path == "{...}{...}{...}{...}{...}{...}...{...}{...}{...}{...}{...}{...}"


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda inner: [1, inner], "[1]"),
        (lambda inner: {"a": inner}, "['a']"),
        (lambda inner: {1: inner}, "[1]"),
        (lambda inner: ((inner,),), "[0][0]"),
        (lambda inner: Order(1, inner), ".rows"),
        (lambda inner: Point(1, inner), ".y"),
        (lambda inner: Rows([inner]), "[0]"),
        (lambda inner: collections.deque([inner]), "[0]"),
        (lambda inner: collections.OrderedDict(a=inner), "['a']"),
    ],
)
def test_a_value_that_contains_itself_is_refused(make, path):
    value = [None]
    value[0] = make(value)
    assert refusal(value) == (f"[0]{path}", "the list that it stands in: what contains itself cannot be digested")


def test_a_value_that_contains_itself_through_a_set_or_a_key_is_refused():
    @dataclasses.dataclass(eq=False)
    class Node:
        inner: object = None

    node = Node()
    node.inner = {node}
    assert refusal(node)[0] == ".inner{...}"
    node.inner = {(node, 1): 2}
    assert refusal(node)[0] == ".inner.keys()[0]"
    node.inner = members = set()
    members.add(node)
    assert refusal(members) == ("{...}.inner", "the set that it stands in: what contains itself cannot be digested")


def test_a_value_that_is_there_twice_does_not_contain_itself():
    row = [[1]]
    assert digest([row, row, {"a": row}])


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    "value",
    [
        1, "a" * 100, b"a" * 100, bytearray(100), memoryview(bytes(100)), 1 << 800, list(range(100)), ["ab"] * 50,
        {"a": 1},
        {1: [2], 3: (4,)}, {"k": [[]] * 20}, {(1, "x"), (2, "y")}, frozenset(range(50)), Order(1, ["x"]),
        "y" * (2 << 20),
        decimal.Decimal(1), NOON, {math.nan: 1, float("nan"): 2}, Color.RED, [["abc", 1, None]] * 10,
        collections.Counter("abc"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_limit_is_exact_and_changes_nothing(value):
    low, high = 0, 1 << 23
    while low < high:
        middle = (low + high) // 2
        if fits(value, middle):
            high = middle
        else:
            low = middle + 1
    assert digest(value, low) == digest(value)
    assert refusal(value, low - 1) == ("", f"larger than {low - 1:,} bytes in the form that is digested")


def fits(value, most):
    try:
        digest(value, most)
    except StateSerializationError:
        return False
    return True


MEGABYTE = "x" * 1_000_000


@pytest.mark.parametrize(
    "value",
    [
        [MEGABYTE] * 1_000_000,
        [[MEGABYTE]] * 1_000_000,
        dict.fromkeys(range(100_000), MEGABYTE),
        dict.fromkeys(map(str, range(100_000)), MEGABYTE),
        {"a": (MEGABYTE.encode(),) * 1_000_000},
        (["x"] * 1_000,) * 10_000_000,
    ],
    ids=["list", "lists", "dict", "named", "inner", "tuple"],
)
def test_what_is_too_large_is_refused_before_it_is_serialised(value):
    """Up to a terabyte each, because every row is the same object."""
    assert refusal(value, 1_000_000) == ("", "larger than 1,000,000 bytes in the form that is digested")


def test_rows_that_are_shared_without_end_are_refused():
    value = []
    for _ in range(200):
        value = [value, value]
    assert "larger than 1,000,000 bytes" in refusal(value, 1_000_000)[1]


# ---------------------------------------------------------------- refusals


def generator():
    yield 1


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"client": Client()}, "['client']", "a Client of test_digest cannot be digested"),
        (threading.Lock(), "", "a lock of _thread cannot be digested"),
        (generator(), "", "a generator cannot be digested"),
        ([1, [Client()]], "[1][0]", "a Client"),
        ({1: (2, Client())}, "[1][1]", "a Client"),
        ({(1, Client()): 2}, ".keys()[1]", "a Client"),
        ({Client()}, "{...}", "a Client"),
        (Order(1, {"a": Client()}), ".rows['a']", "a Client"),
        (Point(1, Client()), ".y", "a Client"),
        (Rows([Client()]), "[0]", "a Client"),
        (with_attributes(Rows(), note=Client()), ".__dict__['note']", "a Client"),
        (collections.OrderedDict(a=Client()), "['a']", "a Client"),
        (collections.OrderedDict({Client(): 1}), ".keys()", "a Client"),
        (collections.defaultdict(lambda: 1), ".default_factory", "test_digest"),
        ({math.nan: Client(), float("nan"): 2}, ".values()", "a Client"),
        (lambda: 1, "", "<lambda> of test_digest cannot be digested: others have that name too"),
        ([[].append], "[0]", "the method append of a list cannot be digested"),
        (os, "", "a module cannot be digested"),
        (Order(1).__eq__, "", "a method cannot be digested"),
        (
            dt.datetime(1, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {})()),
            ".tzinfo",
            "a Zone of test_digest cannot be digested",
        ),
        ({"a" * 100: Client()}, f"['{'a' * 36}...]", "a Client"),
    ],
    ids=lambda each: None if isinstance(each, str) else type(each).__name__,
)
def test_what_cannot_be_told_apart_is_refused_where_it_is(value, path, reason):
    found_path, found_reason = refusal(value)
    assert found_path == path
    assert found_reason.startswith(reason) or reason == "test_digest"


def test_a_refusal_reads_well():
    with pytest.raises(StateSerializationError) as caught:
        digest({"client": Client()})
    assert str(caught.value) == (
        "value['client']: a Client of test_digest cannot be digested: two of them cannot be told apart by what is in "
        "them. Use plain data, a dataclass, an enum or a numpy array."
    )
    assert caught.value.__suppress_context__


def test_a_long_path_is_shortened():
    value = Client()
    for n in range(100):
        value = [value] if n else {"x": value}
    assert refusal(value)[0] == "[0][0][0][0][0][0]...[0][0][0][0][0]['x']"


def test_a_path_of_twelve_steps_is_shown_whole():
    value = Client()
    for _ in range(12):
        value = [value]
    assert refusal(value)[0] == "[0]" * 12


def test_local_functions_of_the_same_name_are_refused():
    """They may hold different values."""

    def adder(n):
        return lambda m: m + n

    assert "others have that name too. Define it at module level" in refusal(adder(1))[1]


def test_a_field_without_a_value_is_refused():
    order = Order(1)
    del order.number
    assert refusal([order]) == ("[0].number", "has no value")


def test_a_value_that_raises_when_it_is_read_is_refused():
    class Broken:
        def __get__(self, instance, owner=None):
            raise RuntimeError("boom")

    @dataclasses.dataclass
    class Model:
        a: int

    Model.a = Broken()
    assert refusal([object.__new__(Model)]) == ("[0].a", "cannot be read: RuntimeError: boom")


def test_a_released_memoryview_is_refused():
    view = memoryview(b"x")
    view.release()
    assert "ValueError" in refusal(view)[1]


def test_classes_that_are_made_without_end_are_not_kept_alive():
    import gc
    import weakref

    seen = []
    for _ in range(1_200):
        cls = dataclasses.make_dataclass("Row", ["a"])
        seen.append(weakref.ref(cls))
        digest(cls(1))
    del cls
    gc.collect()
    assert seen[0]() is None


# ---------------------------------------------------------------- numpy


def test_numpy_is_not_imported():
    code = (
        "import sys\nfrom flowkit.state.digest import digest\n"
        "digest([1, len, {2: (3,)}])\nprint('numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(flowkit.__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_something_else_named_numpy_does_no_harm(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", object())
    assert "a Client" in refusal(Client())[1]


def test_arrays_differ_by_type_shape_and_content():
    np = pytest.importorskip("numpy")
    three = np.arange(6)
    record = np.zeros(2, [("a", "<i4"), ("b", "<f8")])
    different = [
        three, three.astype("i4"), three.astype("f8"), three.astype(">i8"), three.reshape(2, 3), three.reshape(3, 2),
        three[::-1],
        np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(()), np.float64(0), 0.0, np.float32(0), np.int64(0),
        np.bool_(0),
        np.array([0.0, -0.0]), np.array([0.0, 0.0]), np.array(["a", "b"]), np.array([b"a", b"b"]), np.str_("a"),
        np.bytes_(b"a"),
        np.array(["2024-01-01"], "M8[D]"), np.array(["2024-01-01"], "M8[s]"), np.array([1], "m8[s]"),
        np.datetime64("2024-01-01"),
        record, record.astype([("a", "<i4"), ("c", "<f8")]), record.astype([("a", "<f8"), ("b", "<i4")]), record[0],
        list(range(6)), [np.int64(1)], [1], np.zeros(2, [("a", "<i4", (2,))]), np.zeros(2, [("a", "<i4", (1, 2))]),
    ]  # fmt: skip
    seen = {}
    for value in different:
        assert seen.setdefault(digest(value), value) is value, (seen[digest(value)], value)


def test_arrays_that_lie_differently_in_memory_are_the_same():
    np = pytest.importorskip("numpy")
    table = np.arange(12).reshape(3, 4)
    for view in (table.T, table[:, ::2], table[::-1], np.asfortranarray(table), np.broadcast_to(table[0], (5, 4))):
        assert digest(view) == digest(view.copy(order="C"))


def test_large_arrays_are_digested_piece_by_piece():
    np = pytest.importorskip("numpy")
    large = np.arange(1_000_003, dtype="f8")
    assert digest(large) == digest(large.copy())
    changed = large.copy()
    changed[-1] += 1
    assert digest(changed) != digest(large)
    assert "larger than 1,000 bytes" in refusal(np.broadcast_to(np.float64(1), (10**6, 10**6)), 1_000)[1]


def test_arrays_of_objects_are_refused():
    np = pytest.importorskip("numpy")
    assert "a numpy array of Python objects (object) cannot be digested" in refusal([np.array([1, []], object)])[1]
    assert refusal({"x": np.ma.masked_array([1, 2], [True, False])})[0] == "['x']"
