"""Values become JSON and come back as what they were, or are refused with the place in them that is to blame."""

import ast
import base64
import collections
import contextlib
import copy
import dataclasses
import datetime as dt
import decimal
import dis
import enum
import fractions
import http
import importlib
import io
import json
import math
import os
import pathlib
import pickle
import random
import re
import struct
import sys
import tempfile
import threading
import time
import types
import typing
import uuid
import zoneinfo
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import flowkit.state.codec
from flowkit.exceptions import StateSerializationError
from flowkit.state.codec import Codec, register
from flowkit.state.digest import digest

# ---------------------------------------------------------------- classes that are stored


@register
class Color(enum.Enum):
    RED = 1
    GREEN = ("any", "value")
    CRIMSON = 1  # noqa: PIE796 - an alias


@register
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10


@register
class Word(enum.StrEnum):
    YES = "yes"


@register
class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4
    ALL = 7


@register
class Bits(enum.IntFlag):
    A = 1
    B = 2


@register
@dataclasses.dataclass
class Order:
    number: int
    rows: object = ()


@register
@dataclasses.dataclass
class Paid(Order):
    when: object = None


@register
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: object
    b: object = None


@register
@dataclasses.dataclass
class Counted:
    """Its fields are not all given to __init__, and one is never set but on the class."""

    made: int
    total: int = dataclasses.field(init=False)
    rest: int = dataclasses.field(init=False, default=7)
    limit: typing.ClassVar[int] = 3

    def __post_init__(self):
        self.total = self.made + 1


@register
@dataclasses.dataclass(slots=True)
class WithSlots(Order):
    more: object = None


@register
class Point(typing.NamedTuple):
    x: object
    y: object = 0


class Outer:
    @register
    @dataclasses.dataclass
    class Inner:
        value: object

    @register
    class Kind(enum.Enum):
        ONE = 1


Pair = register(collections.namedtuple("Pair", "left right"))


@dataclasses.dataclass
class Unregistered:
    a: int


class Celsius(float):
    pass


class Rows(list):
    pass


class Plain:
    pass


def raw_float(bits):
    """Return the float of these 64 bits."""
    return struct.unpack(">d", struct.pack(">Q", bits))[0]


# ---------------------------------------------------------------- what is the same


def shape(value):
    """Return *value* with the type of each part of it in words, so that only what is the same is equal."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, enum.Enum):
        return kind, str(value._name_), str(value._value_)
    if type(value) is float:
        return kind, struct.pack(">d", value)
    if type(value) is complex:
        return kind, shape(value.real), shape(value.imag)
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return kind, factory, [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(repr, map(shape, value)))
    if isinstance(value, collections.deque):
        return kind, value.maxlen, [shape(item) for item in value]
    if isinstance(value, (list, tuple)):
        return kind, [shape(item) for item in value]
    if dataclasses.is_dataclass(value):
        return kind, [(field.name, shape(getattr(value, field.name))) for field in dataclasses.fields(value)]
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, shape(value.tzinfo)
    if type(value) is dt.timezone:
        return kind, value.__getinitargs__()
    if isinstance(value, zoneinfo.ZoneInfo):
        return kind, value.key
    if type(value) is decimal.Decimal:
        return kind, value.as_tuple()
    if type(value) is uuid.UUID:
        return kind, value.int, value.is_safe.name
    if isinstance(value, pathlib.PurePath):
        return kind, str(value), value.parts
    if type(value) is range:
        return kind, value.start, value.stop, value.step
    if type(value) is int:
        return kind, hex(value)
    return kind, value


def there_and_back(value, codec=None):
    """Return *value* after it was text, which is one line of strict JSON in UTF-8."""
    codec = codec or Codec()
    before = shape(value)
    text = codec.encode(value)
    assert shape(value) == before
    assert text.splitlines() == [text]
    json.loads(text.encode("utf-8"), parse_constant=pytest.fail)
    return codec.decode(text)


def refusal(value, codec=None):
    """Return the path and the reason with which *value* is refused."""
    with pytest.raises(StateSerializationError) as caught:
        (codec or Codec()).encode(value)
    return caught.value.path, caught.value.reason


def reading_is_refused(text, codec=None):
    """Return the text of the error with which *text* is refused."""
    with pytest.raises(StateSerializationError) as caught:
        (codec or Codec()).decode(text)
    return str(caught.value)


# ---------------------------------------------------------------- any value of the types that are supported

any_text = st.text(st.characters(exclude_categories=()), max_size=8)
around_a_limit = st.builds(
    lambda digits, sign, more: sign * 10**digits + more,
    st.sampled_from([18, 599, 600, 4299, 4300, 5000]), st.sampled_from([1, -1]), st.integers(-1, 1),
)  # fmt: skip
any_int = st.one_of(st.integers(), around_a_limit)
any_float = st.one_of(st.floats(), st.integers(0, 2**64 - 1).map(raw_float), st.just(-0.0))
offsets = st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59))
zones = st.one_of(
    st.none(),
    st.just(dt.UTC),
    offsets.map(dt.timezone),
    st.builds(dt.timezone, offsets, any_text),
    st.sampled_from(["UTC", "Europe/Rome", "America/New_York", "Asia/Kathmandu"]).map(zoneinfo.ZoneInfo),
)
moments = st.builds(lambda at, fold: at.replace(fold=fold), st.datetimes(timezones=zones), st.sampled_from([0, 1]))
times = st.builds(lambda at, fold: at.replace(fold=fold), st.times(timezones=zones), st.sampled_from([0, 1]))
decimals = st.one_of(
    st.decimals(allow_nan=False),
    st.sampled_from(["NaN", "-NaN12", "-0", "0E+7", "1E-400", "-Infinity", "1E+999999999", "0.10", "123456" * 9]).map(
        decimal.Decimal
    ),
)
paths = st.one_of(
    st.builds(lambda kind, text: kind(text), st.sampled_from([PurePosixPath, PureWindowsPath]), any_text),
    any_text.map(Path),
    st.lists(any_text, max_size=3).map(lambda parts: PureWindowsPath(*parts)),
).filter(lambda path: type(path)(str(path)).parts == path.parts)
members = st.sampled_from(
    [
        *Color,
        *Level,
        *Word,
        *Access,
        Outer.Kind.ONE,
        Access(0),
        Access.READ | Access.RUN,
        ~Access.READ,
        Bits.A | Bits.B,
        Bits(9),
    ]
)
unhashable_scalars = st.one_of(st.binary(max_size=6).map(bytearray), st.just(decimal.Decimal("sNaN3")))
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    any_int,
    any_float,
    any_text,
    st.binary(max_size=6),
    st.builds(complex, any_float, any_float),
    moments,
    times,
    st.dates(),
    st.timedeltas(),
    zones,
    decimals,
    st.fractions(),
    st.uuids(),
    st.builds(
        lambda bits, safe: uuid.UUID(int=bits, is_safe=safe), st.integers(0, 2**128 - 1), st.sampled_from(uuid.SafeUUID)
    ),
    paths,
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    members,
)


@st.composite
def scalars(draw):
    """Draw a value without parts; as a function, it has a repr that hypothesis can repeat in that of others."""
    return draw(_scalars)


hashables = st.recursive(
    scalars(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Frozen, inner, inner),
    ),
    max_leaves=4,
)


names = st.one_of(any_text, st.sampled_from(["$tuple", "$", "$dict", "a", "price $"]))
FACTORIES = [None, list, dict, set, int, float, str, tuple, bool, bytes, frozenset]


def containers(inner):
    lists = st.lists(inner, max_size=4)
    by_name, by_any = st.dictionaries(names, inner, max_size=4), st.dictionaries(hashables, inner, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        by_name,
        by_any,
        st.sets(hashables, max_size=3),
        by_any.map(collections.OrderedDict),
        st.builds(lambda factory, items: collections.defaultdict(factory, items), st.sampled_from(FACTORIES), by_any),
        st.dictionaries(hashables, st.integers(-5, 5), max_size=3).map(collections.Counter),
        st.builds(lambda items, room: collections.deque(items, len(items) + room), lists, st.integers(0, 3)),
        lists.map(collections.deque),
        st.builds(Order, any_int, inner),
        st.builds(Paid, any_int, inner, inner),
        st.builds(Frozen, inner, inner),
        st.builds(WithSlots, any_int, inner, inner),
        st.builds(Counted, st.integers()),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(Outer.Inner, inner),
    )


values = st.recursive(st.one_of(scalars(), unhashable_scalars), containers, max_leaves=12)


thoroughly = settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))


@thoroughly
@given(values)
@example({"a": [1, 2.5, None, True, "x", {"b": []}]})
@example([raw_float(0x7FF0000000000001), raw_float(0xFFF8000000000000), math.nan, math.inf, -math.inf, -0.0])
@example({1: "int", "1": "str", None: 3, False: 1.0, (1, 2): (3,)})
@example("\ud83d\ude00 is not \U0001f600, and \\ud83d is neither")
@example({"\ud800": 1, "\\": 2})
@example([dt.time(tzinfo=dt.timezone(dt.timedelta(microseconds=1)))])
@example(["\u2028", "\x85", "\r\n", "\x00"])
def test_any_value_comes_back_as_it_was(value):
    assert shape(there_and_back(value)) == shape(value)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))
def test_10_000_values_come_back_as_they_were(part):
    @settings(thoroughly, database=None)
    @given(values)
    def check(value):
        assert shape(there_and_back(value)) == shape(value)

    check()


@settings(thoroughly, max_examples=50)
@given(st.lists(values, min_size=1, max_size=5))
def test_values_survive_a_file_of_one_line_for_each(several):
    codec = Codec()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.writelines(f"{codec.encode(value)}\n" for value in several)
        file.seek(0)
        assert [shape(codec.decode(line)) for line in file] == [shape(value) for value in several]


@settings(thoroughly, max_examples=100)
@given(values)
def test_the_same_value_is_the_same_text(value):
    assert Codec().encode(copy.deepcopy(value)) == Codec().encode(value)


# ---------------------------------------------------------------- what a person reads


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"rows": [1, -2.5, None, True], "ä": {"b": "x\ny"}}, '{"rows":[1,-2.5,null,true],"ä":{"b":"x\\ny"}}'),
        ("😀", '"😀"'),
        ((1, [2]), '{"$tuple":[1,[2]]}'),
        ({10, 9, 8}, '{"$set":[8,9,10]}'),
        (frozenset({"b", "a"}), '{"$frozenset":["a","b"]}'),
        (b"abc", '{"$bytes":"YWJj"}'),
        ({1: "a"}, '{"$dict":[[1,"a"]]}'),
        ({"$x": 1}, '{"$dict":[["$x",1]]}'),
        ({"x$": 1}, '{"x$":1}'),
        (math.nan, '{"$float":"nan"}'),
        ([-math.inf, 1.5], '[{"$float":"-inf"},1.5]'),
        (-math.nan, '{"$float":"nan:fff8000000000000"}'),
        ("a\ud800\\", '{"$str":"a\\\\ud800\\\\u005c"}'),
        (10**600, '{"$int":"%x"}' % 10**600),
        (dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC), '{"$datetime":"2024-02-29T12:00:00+00:00"}'),
        (
            dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Rome")),
            '{"$datetime":["2024-10-27T02:30:00",{"$ZoneInfo":"Europe/Rome"},1]}',
        ),
        (dt.timedelta(1, 2, 3), '{"$timedelta":[1,2,3]}'),
        (decimal.Decimal("1.10"), '{"$Decimal":"1.10"}'),
        (uuid.UUID(int=1), '{"$UUID":"00000000-0000-0000-0000-000000000001"}'),
        (PurePosixPath("a/b"), '{"$PurePosixPath":"a/b"}'),
        (1j, '{"$complex":[0.0,1.0]}'),
        (range(3), '{"$range":[0,3,1]}'),
        (collections.Counter("aab"), '{"$Counter":[["a",2],["b",1]]}'),
        (collections.defaultdict(list, a=[1]), '{"$defaultdict":["list",[["a",[1]]]]}'),
        (collections.deque([1], 2), '{"$deque":[[1],2]}'),
        (Order(7, [b"x"]), '{"$object":["test_codec:Order",{"number":7,"rows":[{"$bytes":"eA=="}]}]}'),
        (Point(1), '{"$named":["test_codec:Point",{"x":1,"y":0}]}'),
        (Color.CRIMSON, '{"$enum":["test_codec:Color","RED"]}'),
        (Access.READ | Access.RUN, '{"$flag":["test_codec:Access",5]}'),
        (Outer.Inner(None), '{"$object":["test_codec:Outer.Inner",{"value":null}]}'),
    ],
)
def test_the_text_of_each_type(value, text):
    """These are in files of users: a change of one needs a new version of the file."""
    assert Codec().encode(value) == text
    assert shape(Codec().decode(text)) == shape(value)


def test_members_of_enums_come_back_as_themselves():
    for member in (Color.RED, Color.GREEN, Level.HIGH, Word.YES, Access.ALL, Access.READ | Access.WRITE, Bits(8)):
        assert there_and_back(member) is member


def test_shared_values_become_copies():
    row = [1]
    back = there_and_back([row, row, (row,)])
    assert back == [[1], [1], ([1],)]
    assert back[0] is not back[1]


def test_a_value_that_is_there_often_does_not_contain_itself():
    for shared in ([(1,)], ((1,),), {"a": (1,)}, {1: (1,)}, Order(1, (1,)), Point((1,)), collections.deque([(1,)])):
        value = [shared] * 300
        assert there_and_back(value) == value
        assert there_and_back({"a": shared, "b": {"c": shared}}) == {"a": shared, "b": {"c": shared}}


def test_what_is_encoded_is_not_touched():
    value = {"a": [(1, 2), {3: 4}], "b": Order(1, [{5}])}
    kept = copy.deepcopy(value)
    inner = value["a"]
    Codec().encode(value)
    assert value == kept
    assert value["a"] is inner
    assert type(inner[0]) is tuple


def test_many_scalars_come_back():
    for many in ([*range(10_000)], [n / 7 for n in range(10_000)], [str(n) for n in range(10_000)]):
        assert there_and_back(many) == many
        assert shape(there_and_back([*many, math.nan, 10**700, "\udcff"])) == shape(
            [*many, math.nan, 10**700, "\udcff"]
        )


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="this Python reads integers of any length")
@pytest.mark.parametrize(
    "value", [10**600 - 1, 10**600, -(10**639), 10**5000, [10**650, 1], [10**650, "x"], {"a": 10**650}], ids=range(7)
)
def test_integers_come_back_however_few_digits_python_may_read(value):
    text = Codec().encode(value)
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert Codec().decode(text) == value
    finally:
        sys.set_int_max_str_digits(before)


def test_a_fold_and_the_name_of_an_offset_are_kept():
    zone = dt.timezone(dt.timedelta(hours=1), "CET")
    back = there_and_back(dt.time(1, 2, fold=1, tzinfo=zone))
    assert (back.fold, back.tzname()) == (1, "CET")


def test_utc_comes_back_as_utc():
    assert there_and_back(dt.datetime.now(dt.UTC)).tzinfo is dt.UTC


def test_a_counter_of_less_than_nothing_comes_back():
    value = collections.Counter({"a": -1, "b": 0})
    assert there_and_back(value) == {"a": -1, "b": 0}


def test_an_ordered_dict_keeps_an_order_that_was_changed():
    value = collections.OrderedDict.fromkeys("abc", 0)
    value.move_to_end("a")
    assert list(there_and_back(value)) == ["b", "c", "a"]


def test_a_default_dict_still_has_its_default():
    back = there_and_back(collections.defaultdict(set, {1: {2}}))
    assert back["new"] == set()


def test_dicts_keep_their_order():
    for value in ({"b": 1, "a": 2}, {2: "b", 1: "a"}, {"b": (1,), "a": (2,)}):
        assert list(there_and_back(value)) == list(value)


def test_an_alien_nan_in_a_dict_key_stays_beside_the_others():
    value = {math.nan: 1, raw_float(0x7FF8000000000000): 2, 0.5: 3}
    assert shape(there_and_back(value)) == shape(value)


# ---------------------------------------------------------------- dataclasses and named tuples


def test_an_instance_is_made_without_its_init():
    ran = []

    @dataclasses.dataclass
    class Loud:
        value: int

        def __new__(cls, *args):
            ran.append("new")
            return super().__new__(cls)

        def __post_init__(self):
            ran.append("post_init")

        def __setattr__(self, name, value):
            ran.append("setattr")
            super().__setattr__(name, value)

        def __setstate__(self, state):
            ran.append("setstate")

    with as_module_of("loud", Loud=Loud):
        codec = Codec(modules=["loud"])
        text = codec.encode(Loud(1))
        ran.clear()
        assert vars(codec.decode(text)) == {"value": 1}
    assert ran == []


@contextlib.contextmanager
def as_module_of(name, **found):
    """Have a module of this name with these classes."""
    module = types.ModuleType(name)
    for attribute, cls in found.items():
        cls.__module__, cls.__qualname__ = name, attribute
        setattr(module, attribute, cls)
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]


def test_a_frozen_instance_with_slots_comes_back():
    back = there_and_back(Frozen([1], Frozen(2)))
    assert back == Frozen([1], Frozen(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.a = 1


def test_a_field_that_stands_on_the_class_alone_comes_back():
    assert vars(Counted(1)).keys() == {"made", "total"}
    assert there_and_back(Counted(1)) == Counted(1)
    assert there_and_back(Counted(1)).rest == 7


def test_an_attribute_that_is_no_field_is_refused():
    order = Order(1)
    order.note = "by phone"
    path, reason = refusal([order])
    assert path == "[0]"
    assert (
        reason
        == "an Order of test_codec has the attribute 'note', which is no field of it and would be lost: make it a field"
    )


def test_a_slot_that_is_no_field_is_refused():
    class Base:
        __slots__ = ("hidden",)

    @dataclasses.dataclass(slots=True)
    class Sub(Base):
        a: int

    with as_module_of("slotted", Sub=Sub):
        value, codec = Sub(1), Codec(modules=["slotted"])
        assert there_and_back(value, codec) == value
        value.hidden = 2
        assert "has the attribute 'hidden', which is no field" in refusal(value, codec)[1]


def test_a_field_without_a_value_is_refused():
    order = Order(1)
    del order.number
    assert refusal({"o": order}) == ("['o'].number", "has no value")


def test_a_field_that_runs_code_when_it_is_set_is_refused():
    class Checked:
        def __set_name__(self, owner, name):
            self.name = f"_{name}"

        def __get__(self, instance, owner=None):
            return 3 if instance is None else getattr(instance, self.name)

        def __set__(self, instance, value):
            setattr(instance, self.name, value)

    @dataclasses.dataclass
    class Model:
        size: int = Checked()

    with as_module_of("checked", Model=Model):
        path, reason = refusal(Model(), Codec(modules=["checked"]))
    assert path == ".size"
    assert "its field 'size' is more than a value" in reason


@pytest.mark.parametrize("base", [dict, list, ValueError])
def test_a_dataclass_that_has_a_value_besides_its_fields_is_refused(base):
    Mixed = dataclasses.dataclass(type("Mixed", (base,), {"__annotations__": {"a": int}}))
    with as_module_of("mixed", Mixed=Mixed):
        assert "inherits from a type with a value of its own" in refusal(Mixed(1), Codec(modules=["mixed"]))[1]


def test_a_named_tuple_with_an_attribute_is_refused():
    pair = Pair_with_dict(1, 2)
    assert there_and_back(pair) == pair
    pair.note = 1
    assert refusal(pair) == (
        "",
        "a Pair_with_dict of test_codec with an attribute of its own, 'note', cannot be stored",
    )


@register
class Pair_with_dict(Pair):
    pass


def test_a_named_tuple_of_the_wrong_length_is_refused():
    assert "of 1 items cannot be stored: it has 2 fields" in refusal(tuple.__new__(Point, [1]))[1]


def test_fields_of_another_version_of_the_class_are_refused():
    for kind in ("object", "named"):
        name = {"object": "Frozen", "named": "Point"}[kind]
        text = f'{{"${kind}":["test_codec:{name}",{{"a":1,"x":2}}]}}'
        error = reading_is_refused(text)
        assert f"test_codec:{name} with other fields than it has now:" in error
    assert error.endswith("'y' new, 'a' gone.")


# ---------------------------------------------------------------- which classes


def test_a_class_that_is_not_registered_is_refused_with_what_to_do():
    assert refusal([Unregistered(1)]) == (
        "[0]",
        "Unregistered of test_codec is not registered: put @register above it (from flowkit.state import register)",
    )


@pytest.mark.parametrize("member", [http.HTTPStatus.OK, re.ASCII, os.stat_result, sys.version_info])
def test_classes_of_other_modules_are_refused(member):
    assert refusal({"x": member})[0] == "['x']"


def test_a_class_of_the_modules_is_allowed():
    codec = Codec(modules=["test_codec"])
    assert there_and_back(Unregistered(1), codec) == Unregistered(1)


def test_a_registered_class_of_the_standard_library_is_stored():
    ref = "http:HTTPStatus"
    assert register(http.HTTPStatus) is http.HTTPStatus
    try:
        assert there_and_back(http.HTTPStatus.OK) is http.HTTPStatus.OK
    finally:
        del flowkit.state.codec._registered[ref]


@pytest.mark.parametrize(
    ("modules", "module", "is_allowed"),
    [
        (["shop.tasks"], "shop.tasks", True),
        (["shop.tasks"], "shop.models", True),
        (["shop.tasks"], "shop.deep.models", True),
        (["shop.tasks"], "shop", True),
        (["shop.tasks"], "shopping", False),
        (["shop.tasks"], "tasks", False),
        (["shop"], "shop", True),
        (["shop"], "shop.models", False),
        (["shop", "etl"], "etl", True),
        ([], "shop", False),
        (["__main__"], "__main__", True),
        (["__mp_main__"], "__main__", True),
        ([""], "shop", False),
    ],
)
def test_modules_allow_their_own_classes_and_those_of_their_package(modules, module, is_allowed, monkeypatch):
    Row = dataclasses.make_dataclass("Row", ["a"])
    Row.__module__ = module
    fake = types.ModuleType(module)
    fake.Row = Row
    monkeypatch.setitem(sys.modules, module, fake)
    codec = Codec(modules=modules)
    text = f'{{"$object":["{module}:Row",{{"a":1}}]}}'
    if is_allowed:
        assert codec.encode(Row(1)) == text
        assert codec.decode(text) == Row(1)
    else:
        assert "is not registered" in refusal(Row(1), codec)[1]
        assert "is not registered here" in reading_is_refused(text, codec)


def test_the_program_has_one_name_in_every_process(monkeypatch):
    Row = dataclasses.make_dataclass("Row", ["a"])
    Row.__module__ = "__mp_main__"
    monkeypatch.setattr(sys.modules["__main__"], "Row", Row, raising=False)
    assert Codec(modules=["__main__"]).encode(Row(1)) == '{"$object":["__main__:Row",{"a":1}]}'


def test_a_class_that_is_not_what_its_name_stands_for_is_refused():
    """What was stored would come back as an instance of the other class."""
    Old = dataclasses.make_dataclass("Row", ["a"])
    New = dataclasses.make_dataclass("Row", ["a"])
    with as_module_of("rows", Row=Old) as module:
        codec = Codec(modules=["rows"])
        assert codec.decode(codec.encode(Old(1))) == Old(1)
        New.__module__, module.Row = "rows", New
        assert "Row of rows is not what this name stands for in its module" in refusal(Old(1), codec)[1]
        assert type(codec.decode(codec.encode(New(1)))) is New


def test_a_class_in_a_function_is_refused():
    @dataclasses.dataclass
    class Local:
        a: int

    assert (
        "is not what this name stands for in its module; move it to module level"
        in (refusal(Local(1), Codec(modules=["test_codec"]))[1])
    )
    with pytest.raises(TypeError, match="it is defined in a function"):
        register(Local)


@pytest.mark.parametrize("wrong", [int, Plain, Rows, "Order", Order(1), dict, None])
def test_register_takes_only_dataclasses_named_tuples_and_enums(wrong):
    with pytest.raises(TypeError, match=r"register\(\) takes a dataclass, a NamedTuple or an Enum, not "):
        register(wrong)


def test_register_below_dataclass_is_told_so():
    with pytest.raises(TypeError, match="Put @register above @dataclass"):

        @dataclasses.dataclass
        @register
        class Upside:
            a: int


# ---------------------------------------------------------------- what decode must not do


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``evil`` whose modules say so when they are imported."""
    folder = tmp_path / "evil"
    folder.mkdir()
    said = "import builtins\nbuiltins._imported.append(__name__)\n"
    models = "import dataclasses\n@dataclasses.dataclass\nclass Row:\n    a: int\n"
    for name, text in {
        "__init__": "",
        "tasks": "from decimal import *\nfrom types import SimpleNamespace\nfrom dis import Positions\n",
        "models": models,
        "__main__": models,
    }.items():
        (folder / f"{name}.py").write_text(said + text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import builtins

    monkeypatch.setattr(builtins, "_imported", imported := [], raising=False)
    yield imported
    for name in [name for name in sys.modules if name.partition(".")[0] == "evil"]:
        del sys.modules[name]


@pytest.mark.parametrize("codec", [Codec(), Codec(pickles=True), Codec(modules=["test_codec", "evi", "evil2.x"])])
@pytest.mark.parametrize("kind", ["object", "named", "enum", "flag"])
def test_a_class_that_is_not_allowed_is_not_imported(package, codec, kind):
    error = reading_is_refused(f'[{{"${kind}":["evil.models:Row",{{"a":1}}]}}]', codec)
    assert "a Row of evil.models, which is not registered here: put @register above it" in error
    assert package == []


def test_a_module_that_is_allowed_is_imported(package):
    row = Codec(modules=["evil.tasks"]).decode('{"$object":["evil.models:Row",{"a":1}]}')
    assert (type(row).__module__, row.a) == ("evil.models", 1)
    assert package == ["evil", "evil.models"]


def test_a_named_tuple_that_an_allowed_module_has_imported_is_refused(package):
    """evil.tasks has the class dis.Positions, which nobody registered."""
    codec = Codec(modules=["evil.tasks"])
    fields = {"lineno": 1, "end_lineno": 1, "col_offset": 1, "end_col_offset": 1}
    assert "which has no such class" in reading_is_refused(
        json.dumps({"$named": ["evil.tasks:Positions", fields]}), codec
    )
    register(dis.Positions)
    try:
        assert codec.decode(json.dumps({"$named": ["dis:Positions", fields]})) == dis.Positions(1, 1, 1, 1)
    finally:
        del flowkit.state.codec._registered["dis:Positions"]


def test_the_main_program_of_a_package_is_not_run(package):
    reading_is_refused('{"$object":["evil.__main__:Row",{"a":1}]}', Codec(modules=["evil.tasks"]))
    assert package == []


@pytest.mark.parametrize(
    "where",
    [
        "evil.tasks:Decimal",
        "evil.tasks:SimpleNamespace",
        "evil.tasks:Missing",
        "evil.tasks:",
        "evil.tasks:__builtins__.eval",
        "evil.tasks:__name__",
        "evil.missing:Row",
        "evil.tasks",
        "evil.:x",
        ":x",
        "",
    ],
)
def test_a_name_that_an_allowed_module_has_imported_is_refused(package, where):
    reading_is_refused(json.dumps({"$object": [where, {}]}), Codec(modules=["evil.tasks"]))


@pytest.mark.parametrize(("kind", "payload"), [("object", {"a": 1}), ("named", {"a": 1}), ("flag", 1), ("enum", "RED")])
@pytest.mark.parametrize("name", ["Order", "Point", "Color", "Plain", "Rows", "Outer"])
def test_a_class_is_not_read_as_another_kind(kind, payload, name):
    if (kind, name) != ("enum", "Color"):
        reading_is_refused(json.dumps({f"${kind}": [f"test_codec:{name}", payload]}), Codec(modules=["test_codec"]))


def test_a_pickle_is_not_read_unless_it_is_allowed(monkeypatch):
    monkeypatch.setattr(pickle, "loads", lambda data: pytest.fail("it was read"))
    text = json.dumps({"x": {"$pickle": base64.b64encode(pickle.dumps(1)).decode()}})
    assert "holds a pickle, which is read only by a state with serializer='pickle'" in reading_is_refused(text)


# ---------------------------------------------------------------- pickles


def test_pickles_are_used_for_what_json_cannot_keep():
    codec = Codec(pickles=True)
    value = {"x": [Unregistered(1)], "y": Celsius(2.5), "z": re.compile("a")}
    text = codec.encode(value)
    assert json.loads(text).keys() == {"$pickle"}
    back = codec.decode(text)
    assert back == value
    assert type(back["y"]) is Celsius


def test_pickles_are_not_used_for_what_json_can_keep():
    value = {"a": (1, b"x", Order(1))}
    assert Codec(pickles=True).encode(value) == Codec().encode(value)


def test_pickles_keep_a_value_that_contains_itself():
    value = [1]
    value.append(value)
    back = there_and_back_pickled(value)
    assert back[1] is back


def there_and_back_pickled(value):
    codec = Codec(pickles=True)
    return codec.decode(codec.encode(value))


def test_what_pickle_refuses_too_is_refused_where_json_found_it():
    path, reason = refusal({"x": [1, threading.Lock()]}, Codec(pickles=True))
    assert path == "['x'][1]"
    assert reason.startswith("a lock of _thread cannot be stored; ")
    assert "nor can the whole be pickled: TypeError: cannot pickle" in reason


@pytest.mark.parametrize("data", [b"", b"\x80", b"cos\nmissing\n.", pickle.dumps(1)[:-1]])
def test_a_pickle_that_is_damaged_is_refused(data):
    text = json.dumps({"$pickle": base64.b64encode(data).decode()})
    assert "cannot be read" in reading_is_refused(text, Codec(pickles=True))


# ---------------------------------------------------------------- refusals


def generator():
    yield 1


class Zone(dt.tzinfo):
    def utcoffset(self, when):
        return dt.timedelta(hours=1)

    def dst(self, when):
        return None

    def tzname(self, when):
        return "X"


class OwnPath(PurePosixPath):
    pass


class Same:
    """Equal to all others of its kind."""


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"x": [1, 2, 3, threading.Lock()]}, "['x'][3]", "a lock of _thread cannot be stored"),
        (generator(), "", "a generator cannot be stored"),
        (io.StringIO(), "", "a StringIO of _io cannot be stored"),
        ([Plain()], "[0]", "a Plain of test_codec cannot be stored"),
        ((1, (Plain(),)), "[1][0]", "a Plain"),
        ({1: [Plain()]}, "[1][0]", "a Plain"),
        ({(1, 2): Plain()}, "[(1, 2)]", "a Plain"),
        ({(1, Plain()): 2}, ".keys()[1]", "a Plain"),
        ({Plain()}, "{...}", "a Plain"),
        (frozenset([(1, Plain())]), "{...}[1]", "a Plain"),
        (Order(1, {"a": Plain()}), ".rows['a']", "a Plain"),
        (WithSlots(1, 2, Plain()), ".more", "a Plain"),
        ([Point(1, Plain())], "[0].y", "a Plain"),
        (collections.OrderedDict(a=Plain()), "['a']", "a Plain"),
        (collections.deque([1, Plain()]), "[1]", "a Plain"),
        (collections.defaultdict(list, a=[Plain()]), "['a'][0]", "a Plain"),
        (collections.Counter(a=Plain()), "['a']", "a Plain"),
        ([math.nan, "\ud800", Plain()], "[2]", "a Plain"),
        ({"a" * 100: Plain()}, f"['{'a' * 36}...]", "a Plain"),
        (Celsius(1.5), "", "a Celsius of test_codec cannot be stored as what it is; convert it: float(...)"),
        ([Rows()], "[0]", "a Rows of test_codec cannot be stored as what it is; convert it: list(...)"),
        (collections.defaultdict(generator), "", "its default_factory <function generator"),
        (
            dt.datetime(2024, 1, 1, tzinfo=Zone()),
            ".tzinfo",
            "a Zone of test_codec cannot be stored; use datetime.timezone",
        ),
        ([dt.time(1, tzinfo=Zone())], "[0].tzinfo", "a Zone"),
        (OwnPath("a"), "", "an OwnPath of test_codec cannot be stored"),
        (memoryview(b"x"), "", "a memoryview cannot be stored"),
        (len, "", "a builtin_function_or_method cannot be stored"),
        (Plain, "", "a type cannot be stored"),
        (..., "", "an ellipsis cannot be stored"),
        (os, "", "a module cannot be stored"),
        (time.localtime(), "", "a struct_time of time cannot be stored as what it is; convert it: tuple(...)"),
    ],
    ids=lambda each: None if isinstance(each, str) else type(each).__name__,
)
def test_what_cannot_be_stored_is_refused_where_it_is(value, path, reason):
    found_path, found_reason = refusal(value)
    assert found_path == path
    assert found_reason.startswith(reason)


def test_a_refusal_reads_well():
    with pytest.raises(StateSerializationError) as caught:
        Codec().encode({"x": [1, 2, 3, threading.Lock()]})
    assert str(caught.value) == (
        "value['x'][3]: a lock of _thread cannot be stored; keep plain data or a dataclass instead."
    )
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_zone_of_a_file_is_refused_whatever_it_is_called():
    data = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 3600, 0, 0) + b"ABC\0"
    zone = zoneinfo.ZoneInfo.from_file(io.BytesIO(data), key="Europe/Berlin")
    expected = "a ZoneInfo of a file of its own has no name to be found by; use ZoneInfo(key)"
    assert refusal([zone]) == ("[0]", expected)
    assert refusal([dt.datetime(2024, 1, 1, tzinfo=zone)]) == ("[0].tzinfo", expected)
    with pytest.raises(StateSerializationError, match="has no name to be found by"):
        digest(zone)


def test_a_path_whose_text_stands_for_another_is_refused():
    """Python 3.11 writes the file "c:x" of this folder like the file "x" of the folder of drive C:."""
    path = PureWindowsPath("./c:x")
    if PureWindowsPath(str(path)) == path:
        assert there_and_back(path).parts == path.parts
    else:
        assert refusal([path]) == ("[0]", "PureWindowsPath('c:x') cannot be stored: its text stands for another path")


def test_an_ordered_dict_with_an_attribute_is_refused():
    value = collections.OrderedDict()
    value.note = 1
    assert "with an attribute of its own, 'note', cannot be stored" in refusal(value)[1]


def test_a_value_that_raises_when_it_is_read_is_refused():
    class Broken:
        def __get__(self, instance, owner=None):
            raise RuntimeError("boom")

    @dataclasses.dataclass
    class Model:
        a: int

    Model.a = Broken()
    with as_module_of("broken", Model=Model):
        value = object.__new__(Model)
        path, reason = refusal([value], Codec(modules=["broken"]))
    assert (path, reason) == ("[0].a", "cannot be read: RuntimeError: boom")


# ---------------------------------------------------------------- circles and depth


def nested(depth, wrap=lambda inner: [inner]):
    value = 0
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda inner: [1, inner], "[1]"),
        (lambda inner: {"a": inner}, "['a']"),
        (lambda inner: {1: inner}, "[1]"),
        (lambda inner: ((inner,),), "[0][0]"),
        (lambda inner: Order(1, inner), ".rows"),
        (lambda inner: Point(1, inner), ".y"),
        (lambda inner: collections.deque([inner]), "[0]"),
    ],
)
def test_a_value_that_contains_itself_is_refused(make, path):
    value = [None]
    value[0] = make(value)
    assert refusal(value) == (f"[0]{path}", "the list that it stands in: what contains itself cannot be stored")


def test_a_circle_is_found_before_much_is_written_again():
    """Every turn around it would write the long list once more."""
    value = {"rows": [(n,) for n in range(20_000)]}
    value["self"] = value
    began = time.perf_counter()
    assert refusal(value)[0] == "['self']"
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda inner: [inner], lambda outer: outer[0]),
        (lambda inner: (inner,), lambda outer: outer[0]),
        (lambda inner: {1: inner}, lambda outer: outer[1]),
        (lambda inner: frozenset({inner}), lambda outer: next(iter(outer))),
        (Outer.Inner, lambda outer: outer.value),
        (Point, lambda outer: outer.x),
        (lambda inner: collections.deque([inner]), lambda outer: outer[0]),
    ],
)
def test_as_deep_as_is_allowed_comes_back(wrap, unwrap):
    codec = Codec()
    back = codec.decode(codec.encode(nested(200, wrap)))
    for _ in range(200):
        assert type(back) is type(wrap(0))
        back = unwrap(back)
    assert back == 0


@pytest.mark.parametrize("depth", [203, 1_000, 100_000])
def test_deeper_is_refused_with_a_short_path(depth):
    path, reason = refusal(nested(depth))
    assert reason == "nested deeper than 200 levels; make it flatter"
    assert path == "[0][0][0][0][0][0]...[0][0][0][0][0][0]"


def test_depth_is_judged_alike_wherever_it_is_called_from():
    """The stack of the caller counts for Python, and must not for what can be stored."""

    def deep(frames):
        if frames:
            return deep(frames - 1)
        codec = Codec()
        return codec.decode(codec.encode(nested(150, lambda inner: (inner,))))

    assert deep(200) == nested(150, lambda inner: (inner,))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.8])
def test_a_caller_with_little_stack_left_gets_the_value_or_a_refusal(share):
    value, codec = nested(190, lambda inner: (inner,)), Codec()
    text = codec.encode(value)

    def deep(frames):
        if frames:
            return deep(frames - 1)
        for call in (lambda: codec.decode(codec.encode(value)), lambda: codec.decode(text)):
            with contextlib.suppress(StateSerializationError):
                assert call() == value
        return True

    assert deep(int(share * sys.getrecursionlimit()))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"$tuple":[' * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000]
)
def test_text_of_any_depth_is_refused_or_read(text):
    with contextlib.suppress(StateSerializationError):
        Codec().decode(text)


# ---------------------------------------------------------------- damaged text


@pytest.mark.parametrize(
    "text",
    [
        "", "nul", "[1,]", "NaN", "[Infinity]", '{"a":-Infinity}', '{"a":1', "'a'", '"a\nb"', "1 2", "\ufeff1",
        "9" * 5_000, '{"$new":1}', '{"$":1}', '{"$tuple":[],"b":1}', '{"a":1,"$b":2}', '{"\\u0024new":1}',
        '{"$tuple":1}', '{"$tuple":{"$tuple":[]}}', '{"$tuple":"ab"}', '{"$set":[[]]}', '{"$set":[1,1]}',
        '{"$set":[1,true]}', '{"$dict":[[1]]}', '{"$dict":[[1,2,3]]}', '{"$dict":{"a":1}}', '{"$dict":["ab"]}',
        '{"$dict":[[1,2],[1,3]]}', '{"$dict":[[[],1]]}', '{"$bytes":"a"}', '{"$bytes":"a b="}', '{"$bytes":1}',
        '{"$bytes":"ä"}', '{"$bytearray":[1]}', '{"$int":"x"}', '{"$int":1}', '{"$float":"1.5"}',
        '{"$float":"nan:00"}', '{"$float":"nan:x"}', '{"$float":null}', '{"$str":1}', '{"$datetime":"today"}',
        '{"$datetime":["2024-01-01T00:00:00"]}', '{"$datetime":["2024-01-01",1,0]}',
        '{"$datetime":["2024-01-01T00:00:00","UTC",0]}', '{"$datetime":["2024-01-01T00:00:00+01:00",null,0]}',
        '{"$datetime":["2024-01-01T00:00:00",null,2]}', '{"$time":5}', '{"$date":null}', '{"$timedelta":[1,2,1.5]}',
        '{"$timedelta":[1e9]}', '{"$timedelta":[99999999999999999999]}', '{"$timezone":[]}', '{"$timezone":["x"]}',
        '{"$timezone":[2,0,0]}', '{"$ZoneInfo":"Nowhere/None"}', '{"$ZoneInfo":"../../etc/passwd"}',
        '{"$ZoneInfo":"Europe"}', '{"$ZoneInfo":1}', '{"$Decimal":"one"}', '{"$Decimal":1.5}', '{"$UUID":"1"}',
        '{"$UUID":["1",0]}', '{"$UUID":[]}', '{"$PosixPath":1}', '{"$PurePosixPath":[1]}', '{"$complex":[1,2]}',
        '{"$complex":["1",2]}', '{"$complex":[1.5]}', '{"$Fraction":[1,0]}', '{"$Fraction":["1/2"]}',
        '{"$range":[0,1,0]}', '{"$range":[0.5,1]}', '{"$range":[true,5,1]}', '{"$deque":[[1,2],1]}',
        '{"$deque":[[],-1]}', '{"$deque":[1,null]}', '{"$deque":[]}', '{"$Counter":[1]}',
        '{"$defaultdict":["eval",[]]}', '{"$defaultdict":[[],[]]}', '{"$defaultdict":["list"]}',
        '{"$OrderedDict":{}}', '{"$enum":["test_codec:Color","BLUE"]}', '{"$enum":["test_codec:Color",[]]}',
        '{"$enum":"test_codec:Color"}', '{"$enum":["test_codec:Order","a"]}', '{"$flag":["test_codec:Color",1]}',
        '{"$flag":["test_codec:Access","1"]}', '{"$flag":["test_codec:Access",99]}',
        '{"$object":["test_codec:Order",[1,2]]}', '{"$object":["test_codec:Order",{}]}', '{"$object":[1,{}]}',
        '{"$object":[null,null]}', '{"$object":[["a"],{}]}', '{"$named":["test_codec:Point",{"x":1}]}',
        '{"$named":["test_codec:Point",[1,2]]}', '{"$pickle":1}', '{"$type":"builtins.eval"}', '{"$memoryview":"a"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_inside", [False, True])
def test_text_that_encode_does_not_write_is_refused(text, is_inside):
    reading_is_refused(f'[{text},{{"$tuple":[]}}]' if is_inside else text)


def test_windows_paths_are_refused_elsewhere():
    name = "PosixPath" if os.name == "nt" else "WindowsPath"
    text = f'{{"${name}":"a"}}'
    assert f"a {name} of pathlib" in reading_is_refused(text)
    assert "which there is none of on this system" in reading_is_refused(text)


def test_plain_json_of_a_person_is_read():
    assert Codec().decode(' { "a" : [ 1 , 2.0 ] , "b" : "\\u00e4$" }\n') == {"a": [1, 2.0], "b": "ä$"}


TAGS = sorted(flowkit.state.codec._readers)
PIECES = [
    *(f'"{tag}"' for tag in TAGS),
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "1",
    '"a"',
    "1e999",
    "NaN",
    "-",
    '"\\ud800"',
    "\\",
]
damaged = settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))


@damaged
@given(values, st.randoms(use_true_random=False))
def test_damaged_text_is_refused_or_read(value, rng):
    codec = Codec(modules=["test_codec"])
    text = codec.encode(value)
    for _ in range(8):
        damage(codec, text, rng)


def damage(codec, text, rng):
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice([0, 1, 1, 5, 40]))
        new = rng.choice(
            [rng.choice(PIECES), "", chr(rng.randint(1, 0x2FF)), text[start:end] * 2, text[: rng.randint(0, 20)]]
        )
        text = text[:start] + new + text[end:]
    with contextlib.suppress(StateSerializationError):
        codec.decode(text)


CLASSES = [
    "Order",
    "Frozen",
    "Color",
    "Access",
    "Point",
    "Outer.Inner",
    "Rows",
    "Plain",
    "missing",
    "dataclasses.dataclass",
]
json_trees = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-9, 10**20), st.floats(), st.text(max_size=4),
        st.sampled_from([f"test_codec:{name}" for name in CLASSES]),
        st.sampled_from(["2024-01-01", "12:00", "nan", "ff", "YWJj", "UTC", "list", "RED", "../x", "1e5", "a:b"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*TAGS, "a", "number", "rows", "x", "y"]), inner, max_size=2),
        st.builds(lambda tag, payload: {tag: payload}, st.sampled_from(TAGS), inner),
        st.builds(lambda tag, payload: {tag: payload}, st.sampled_from(TAGS), st.lists(inner, max_size=3)),
    ),
    max_leaves=8,
)  # fmt: skip


@damaged
@given(json_trees)
def test_any_payload_is_refused_or_read(tree):
    with contextlib.suppress(StateSerializationError):
        Codec(modules=["test_codec"]).decode(json.dumps(tree))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))
def test_10_000_damaged_texts_and_payloads_are_refused_or_read(part):
    @settings(damaged, database=None)
    @given(values, json_trees, st.randoms(use_true_random=False))
    def check(value, tree, rng):
        codec = Codec(modules=["test_codec"])
        damage(codec, codec.encode(value), rng)
        with contextlib.suppress(StateSerializationError):
            codec.decode(json.dumps(tree))

    check()


@pytest.mark.parametrize("text", [b"[1]", 1, None, ["a"]])
def test_what_is_no_text_is_refused(text):
    reading_is_refused(text)


# ---------------------------------------------------------------- threads, imports


def test_one_codec_serves_many_threads():
    codec = Codec()
    value = {"rows": [Order(n, (n, {n: b"x"})) for n in range(50)], "nan": [math.inf, "\ud800"]}
    expected, wrong = codec.encode(value), []

    def work():
        for _ in range(30):
            text = codec.encode(value)
            if text != expected or shape(codec.decode(text)) != shape(value):
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["codec", "digest"])
def test_modules_of_rare_types_are_not_imported(name):
    path = Path(flowkit.state.codec.__file__).with_name(f"{name}.py")
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    rare = {
        "datetime",
        "decimal",
        "uuid",
        "fractions",
        "zoneinfo",
        "pathlib",
        "pickle",
        "dataclasses",
        "numpy",
        "typing",
    }
    assert found & rare == set()


def test_the_module_of_a_type_is_imported_when_it_is_read(monkeypatch):
    monkeypatch.delitem(sys.modules, "fractions")
    try:
        assert Codec().decode('{"$Fraction":[1,2]}') * 2 == 1
    finally:
        sys.modules["fractions"] = fractions
        importlib.import_module("fractions")
    assert isinstance(random.random(), float)
