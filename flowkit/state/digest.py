"""Turn a value into a short text that is the same for the same value, in any process.

Knows the types whose values can be told apart by what is in them. Does not know where digests are kept.

What is hashed is a serialisation from which the value could be read again, types included, so two values that differ
anywhere differ in it: every piece is marshal's form of plain scalars, which ends by itself, or begins with a tag that
no other piece begins with and says how many pieces follow. What has no order of its own (dicts, sets) is sorted by the
serialisation of its members.

Containers are walked with a stack of our own, so no depth is too deep but that of sets and keys within each other.
"""

from __future__ import annotations

import functools
import marshal
import sys
from enum import Enum
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, ModuleType

from ..exceptions import StateSerializationError, describe, shown

try:
    from _blake2 import blake2b  # hashlib has no other, and loads OpenSSL besides, which costs 4 ms
except ImportError:
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Names = str | tuple[str, ...] | list[Any] | None
    Inside = tuple[Sequence[Any], Names] | None
    Writer = Callable[[Any, "_Walk"], Inside]

dumps: Callable[[Any, int], bytes] = marshal.dumps
_MARSHAL = 2
"""The last version of marshal's format that says the same whatever else refers to the value."""
_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
"""Types that marshal writes in full; those of subclasses it would not."""
_STR = frozenset({str})
_LONG = 1 << 20
"""Strings and bytes of more than this many characters are hashed piece by piece."""
_DEEPEST = 1_000_000
"""Containers in each other; only what is made while it is read has more."""
_DEEPEST_SORTED = 50
"""Sets and keys of dicts in each other; they are the ones that recurse."""
_STEPS = 12
"""Steps of a path that an error shows; the middle of a longer one is left out."""


def digest(value: object, most: int | None = None) -> str:
    """Return 32 hexadecimal digits that are the same for the same value, and no other.

    Types count: 1, 1.0, True and "1" differ, as do 0.0 and -0.0, and lists and tuples. The order in which dicts and
    sets were filled does not. Classes and functions count by their names, instances of dataclasses and enums by the
    name of their class and what is in them.

    Args:
        value: Plain data, dataclasses, named tuples, enums, dates, paths, numpy arrays; nested as deep as you like.
        most: How many bytes the value may have, as it is serialised for this; None for no limit.

    Raises:
        StateSerializationError: There is something in it that cannot be told from another by its content, it contains
            itself, or it is larger than *most*.

    >>> digest({"a": 1, "b": {2, 3}}) == digest({"b": {3, 2}, "a": 1})
    True
    >>> digest([1]) == digest([1.0])
    False
    """
    hashed = blake2b(digest_size=16)
    try:
        _Walk(hashed.update, most).write(value)
    except Refused as refused:
        raise refused.error() from None
    except MemoryError:
        raise
    except Exception as error:  # what values do when they are read, and dicts that others change meanwhile
        raise StateSerializationError("", f"cannot be digested: {describe(error)}") from error
    return hashed.hexdigest()


# ---------------------------------------------------------------- words for errors, and for classes


class Refused(Exception):  # noqa: N818 - an error only once it is known where
    """What was found cannot be kept; on its way out each container adds where in it that was.

    Attributes:
        reason: What is there.
        steps: Where, from the outermost container inwards; None if it is the whole.
    """

    def __init__(self, reason: str, step: str = "", *, whole: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] | None = None if whole else [step]

    def add_steps(self, steps: list[str]) -> None:
        """Say that all this was found behind *steps*."""
        if self.steps is not None:
            self.steps[:0] = steps

    def error(self) -> StateSerializationError:
        """Return the error to raise."""
        steps = [step for step in self.steps or () if step]
        if len(steps) > _STEPS:
            half = _STEPS // 2
            steps[half:-half] = ["..."]
        return StateSerializationError("".join(steps), self.reason)


def key_step(key: object) -> str:
    """Return the step of a path that leads to the value under *key*."""
    return f"[{shown(key, 40)}]"


def step_at(names: Names, position: int) -> str:
    """Return the step to the value at *position* of a container, whose members are called *names*.

    Args:
        names: Keys if it is a list, steps if it is a tuple, the step to each if it is a string; None for numbers.
        position: Where it is.
    """
    if names is None:
        return f"[{position}]"
    if isinstance(names, str):
        return names
    name = names[position]
    return key_step(name) if isinstance(names, list) else str(name)


def reference(cls: Any) -> tuple[str, str]:
    """Return the module and the qualified name of a class or function."""
    module = cls.__module__
    # The program itself has the other name in a process that was started for it.
    return "__main__" if module == "__mp_main__" else str(module), str(cls.__qualname__)


def a_value_of(cls: type) -> str:
    """Return ``a Client of httpx``, for messages."""
    return in_words(*reference(cls))


def in_words(module: str, name: str) -> str:
    """Return what a value of the class *name* of *module* is called in messages."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{article} {name}" if module == "builtins" else f"{article} {name} of {module}"


def attributes_of(value: object) -> dict[str, Any]:
    """Return what stands in the attributes of *value*: in its ``__dict__`` and in the slots of its classes."""
    found = dict(getattr(value, "__dict__", ()))
    for cls in type(value).__mro__:
        members = vars(cls)
        if "__slots__" in members:
            for name, member in members.items():
                if type(member) is MemberDescriptorType and hasattr(value, name):
                    found[name] = member.__get__(value)
    return found


def field_names(cls: Any) -> list[str]:
    """Return the names of the fields of a dataclass."""
    from dataclasses import fields  # noqa: PLC0415 - loaded already, or there was no dataclass

    return [field.name for field in fields(cls)]


def read_field(value: object, name: str) -> Any:
    """Return the field *name* of a dataclass instance."""
    try:
        return getattr(value, name)
    except AttributeError:
        raise Refused("has no value", f".{name}") from None
    except Exception as error:  # a descriptor raises anything
        raise Refused(f"cannot be read: {describe(error)}", f".{name}") from error


def zone_key(zone: Any) -> str:
    """Return the key under which a ZoneInfo is found again."""
    try:
        zone.__reduce__()  # refuses one that was read from a file of its own, whatever name it goes by
    except Exception as error:  # a PicklingError, if that is loaded
        raise Refused("a ZoneInfo of a file of its own has no name to be found by; use ZoneInfo(key)") from error
    return str(zone.key)


# ---------------------------------------------------------------- the walk


class _Walk:
    """One value on its way into the hash.

    Attributes:
        left: How many bytes there is room for.
        around: Ids of the containers that are being walked. They stay alive as long, so no other has the same id.
    """

    __slots__ = ("_depth", "_most", "_update", "around", "left")

    def __init__(self, update: Callable[[bytes], object], most: int | None) -> None:
        self._update = update
        self._most = most
        self._depth = 0
        self.left: float = float("inf") if most is None else most
        self.around: set[int] = set()

    def put(self, data: bytes) -> None:
        """Hash *data*."""
        self.left -= len(data)
        if self.left < 0:
            raise self._too_large()
        self._update(data)

    def put_again(self, data: bytes) -> None:
        """Hash *data* that was counted when it was made."""
        self._update(data)

    def need(self, size: int) -> None:
        """Refuse the value at once if there is no room for *size* more bytes."""
        if size > self.left:
            raise self._too_large()

    def put_scalar(self, value: Any) -> None:
        """Hash *value*, of one of the types in _SCALARS."""
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) > _LONG:
                self._put_long(value)
                return
        elif kind is int:
            self.need(value.bit_length() >> 3)
        self.put(dumps(value, _MARSHAL))

    def put_scalars(self, tag: bytes, values: Sequence[Any]) -> bool:
        """Hash *tag* and *values* at once; return False if they are not only scalars."""
        if not _SCALARS.issuperset(map(type, values)):
            return False
        if self._most is not None:
            self.need(len(values))
            self.need(sum(map(_least, values)))
        try:
            data = dumps(values, _MARSHAL)
        except ValueError:  # one of them has more than 2 GB
            return False
        self.put(tag)
        self.put(data)
        return True

    def part(self, value: object) -> bytes:
        """Return what would be hashed for *value*."""
        if type(value) in _SCALARS:
            pieces = [dumps(value, _MARSHAL)]
            self.need(len(pieces[0]))
            self.left -= len(pieces[0])
            return pieces[0]
        if self._depth >= _DEEPEST_SORTED:
            raise Refused(f"sets or keys are nested deeper than {_DEEPEST_SORTED} levels here; make it flatter")
        pieces = []
        update, self._update = self._update, pieces.append
        self._depth += 1
        try:
            self.write(value)
        finally:
            self._depth -= 1
            self._update = update
        return b"".join(pieces)

    def parts(self, values: Iterable[object], container: object, step: str) -> list[bytes]:
        """Return what would be hashed for each of *values*, which *container* has at *step*."""
        me = id(container)
        if me in self.around:
            raise _circular(container)
        self.around.add(me)
        try:
            return [self.part(value) for value in values]
        except Refused as refused:
            refused.add_steps([step])
            raise
        finally:
            self.around.discard(me)

    def write(self, value: object) -> None:
        """Hash *value* and all that is in it."""
        around = self.around
        outer: list[tuple[Any, ...]] = []
        values: Sequence[Any] = (value,)
        names: Names = ""
        rest = iter(values)
        me = 0
        try:
            while True:
                for item in rest:
                    kind: Any = type(item)
                    if kind in _SCALARS:
                        self.put_scalar(item)
                        continue
                    inside = _writer_of(kind)(item, self)
                    if inside is None:
                        continue
                    if id(item) in around:
                        raise _circular(item)
                    if len(outer) >= _DEEPEST:
                        raise Refused(f"nested deeper than {_DEEPEST:,} levels")
                    outer.append((values, names, rest, me))
                    values, names = inside
                    rest = iter(values)
                    me = id(item)
                    around.add(me)
                    break
                else:
                    around.discard(me)
                    if not outer:
                        return
                    values, names, rest, me = outer.pop()
        except Refused as refused:
            outer.append((values, names, rest, me))
            refused.add_steps([step_at(level[1], len(level[0]) - level[2].__length_hint__() - 1) for level in outer])
            raise

    def _put_long(self, value: str | bytes) -> None:
        self.need(len(value))
        self.put(b"!long" + dumps([type(value) is str, len(value)], _MARSHAL))
        for start in range(0, len(value), _LONG):
            piece = value[start : start + _LONG]
            self.put(piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece)

    def _too_large(self) -> Refused:
        return Refused(f"larger than {self._most:,} bytes in the form that is digested", whole=True)


def _least(value: Any) -> int:
    """Return how many bytes *value* has at least when it is serialised."""
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value)
    return value.bit_length() >> 3 if kind is int else 1


def _circular(value: object) -> Refused:
    return Refused(f"the {type(value).__name__} that it stands in: what contains itself cannot be digested")


# ---------------------------------------------------------------- containers


def _list(value: list[Any], walk: _Walk) -> Inside:
    if walk.put_scalars(b"", value):
        return None
    walk.put(b"!list" + dumps(len(value), _MARSHAL))
    return value, None


def _tuple(value: tuple[Any, ...], walk: _Walk) -> Inside:
    if walk.put_scalars(b"", value):
        return None
    walk.put(b"!tuple" + dumps(len(value), _MARSHAL))
    return value, None


def _dict(value: dict[Any, Any], walk: _Walk) -> Inside:
    if _STR.issuperset(map(type, value)):
        keys = sorted(value)
        values = list(map(value.__getitem__, keys))
        if walk.put_scalars(b"!dict", keys):
            if walk.put_scalars(b"!of", values):
                return None
            return values, keys
    walk.need(len(value))
    pieces = walk.parts(value, value, ".keys()")
    rows = sorted(zip(pieces, value, value.values(), strict=True), key=itemgetter(0))
    if len(set(pieces)) < len(pieces):  # NaNs, which are keys beside each other: only their values have an order
        walk.put(b"!same" + dumps(len(value), _MARSHAL))
        under = walk.parts(value.values(), value, ".values()")
        walk.put_again(b"".join(map(b"".join, sorted(zip(pieces, under, strict=True)))))
        return None
    walk.put(b"!keys" + dumps(len(value), _MARSHAL))
    walk.put_again(b"".join(sorted(pieces)))
    return [row[2] for row in rows], [row[1] for row in rows]


def _set(value: set[Any] | frozenset[Any], walk: _Walk) -> Inside:
    walk.need(len(value))
    walk.put((b"!set" if type(value) is set else b"!frozenset") + dumps(len(value), _MARSHAL))
    walk.put_again(b"".join(sorted(walk.parts(value, value, "{...}"))))
    return None


def _ordered_dict(value: dict[Any, Any], walk: _Walk) -> Inside:
    keys = list(value)
    walk.put(b"!ordered" + dumps(len(keys), _MARSHAL))
    steps = [step for key in keys for step in (".keys()", key_step(key))]
    return [each for pair in value.items() for each in pair], tuple(steps)


def _deque(value: Any, walk: _Walk) -> Inside:
    walk.put(b"!deque" + dumps([len(value), value.maxlen], _MARSHAL))
    return list(value), None


def _dataclass_of(kind: type) -> Writer:
    """Return the writer of instances of *kind*, a dataclass."""
    names = field_names(kind)
    steps = tuple(f".{name}" for name in names)
    head = b"!dataclass" + dumps([*reference(kind), *names], _MARSHAL)

    def write(value: Any, walk: _Walk) -> Inside:
        values = [read_field(value, name) for name in names]
        walk.put(head)
        return None if walk.put_scalars(b"!fields", values) else (values, steps)

    return write


def _plain_ordered(value: Any) -> Any:
    from collections import OrderedDict  # noqa: PLC0415 - loaded already, or there was none

    return OrderedDict(OrderedDict.items(value))  # those of dict have another order after move_to_end


def _subclass_of(base: type, plain: Callable[[Any], object]) -> Writer:
    """Return the writer of classes that inherit from *base*; *plain* gives the value as one of *base*."""

    def write(value: Any, walk: _Walk) -> Inside:
        names = getattr(type(value), "_fields", ())
        items = plain(value)
        inside, steps = [items], [""]
        if type(items) is tuple and type(names) is tuple and len(names) == len(items):
            inside, steps = list(items), [f".{name}" for name in names]
        if attributes := attributes_of(value):
            inside.append(attributes)
            steps.append(".__dict__")
        if hasattr(value, "default_factory"):
            inside.append(value.default_factory)
            steps.append(".default_factory")
        walk.put(b"!like" + dumps([base.__name__, *reference(type(value)), *steps], _MARSHAL))
        return inside, tuple(steps)

    return write


# ---------------------------------------------------------------- what stands in one piece


def _leaf(tag: bytes, read: Callable[[Any], Any]) -> Writer:
    """Return the writer of a type whose values are said by the scalars that *read* gives."""

    def write(value: Any, walk: _Walk) -> Inside:
        data = dumps(read(value), _MARSHAL)
        walk.put(tag)
        walk.put(data)
        return None

    return write


def _node(tag: bytes, read: Callable[[Any], tuple[Any, ...]], *names: str) -> Writer:
    """Return the writer of a type whose values are said by the values that *read* gives, one for each of *names*."""

    def write(value: Any, walk: _Walk) -> Inside:
        walk.put(tag)
        return read(value), names

    return write


def _moment(value: Any) -> tuple[Any, ...]:
    return (
        (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, value.fold),
        value.tzinfo,
    )


def _time(value: Any) -> tuple[Any, ...]:
    return (value.hour, value.minute, value.second, value.microsecond, value.fold), value.tzinfo


def _memory(value: memoryview, walk: _Walk) -> Inside:
    walk.need(value.nbytes)
    walk.put(b"!memory" + dumps([value.format, value.shape], _MARSHAL))
    walk.put(value.tobytes())
    return None


def _bytearray(value: bytearray, walk: _Walk) -> Inside:
    walk.need(len(value))
    walk.put(b"!bytearray" + dumps(len(value), _MARSHAL))
    walk.put(bytes(value))
    return None


def _enum(value: Any, walk: _Walk) -> Inside:
    inner = value._value_
    # The value counts where it can: a member that means something else now is not the same.
    said = inner if type(inner) in _SCALARS else None
    walk.put(b"!enum" + dumps([*reference(type(value)), value._name_, said], _MARSHAL))
    return None


def _class(value: type, walk: _Walk) -> Inside:
    return _named(b"!class", value, walk)


def _function(value: Any, walk: _Walk) -> Inside:
    if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | None):
        raise Refused(f"the method {value.__name__} of {a_value_of(type(value.__self__))} cannot be digested")
    return _named(b"!function", value, walk)


def _named(tag: bytes, value: Any, walk: _Walk) -> Inside:
    module, name = reference(value)
    if "<" in name:
        raise Refused(f"{name} of {module} cannot be digested: others have that name too. Define it at module level")
    walk.put(tag + dumps([module, name], _MARSHAL))
    return None


def _array(value: Any, walk: _Walk) -> Inside:
    dtype = value.dtype
    if dtype.hasobject:
        raise Refused(f"a numpy array of Python objects ({dtype}) cannot be digested; use a list, or another dtype")
    walk.need(value.nbytes)
    walk.put(b"!array" + dumps([type(value).__name__, repr(_layout(dtype)), value.shape], _MARSHAL))
    flat = value.reshape(-1)
    step = max(1, _LONG // max(1, dtype.itemsize))
    for start in range(0, flat.size, step):
        walk.put(flat[start : start + step].tobytes())
    return None


def _layout(dtype: Any) -> Any:
    """Return how the bytes of one element are to be read."""
    if dtype.subdtype is not None:
        return [_layout(dtype.subdtype[0]), dtype.subdtype[1]]
    if dtype.names is None:
        return dtype.str, dtype.name
    return dtype.itemsize, [(name, dtype.fields[name][1], _layout(dtype.fields[name][0])) for name in dtype.names]


def _refuse(value: object, walk: _Walk) -> Inside:
    raise Refused(
        f"{a_value_of(type(value))} cannot be digested: two of them cannot be told apart by what is in them. "
        f"Use plain data, a dataclass, an enum or a numpy array"
    )


# ---------------------------------------------------------------- which writer

_OWN: dict[type, Writer] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _set,
    bytearray: _bytearray,
    memoryview: _memory,
    range: _leaf(b"!range", lambda value: [value.start, value.stop, value.step]),
    type: _class,
    FunctionType: _function,
    BuiltinFunctionType: _function,
}

_FOREIGN: dict[str, Writer] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.deque": _deque,
    "datetime.datetime": _node(b"!datetime", _moment, "", ".tzinfo"),
    "datetime.time": _node(b"!time", _time, "", ".tzinfo"),
    "datetime.date": _leaf(b"!day", lambda value: value.toordinal()),
    "datetime.timedelta": _leaf(b"!delta", lambda value: [value.days, value.seconds, value.microseconds]),
    "datetime.timezone": _node(b"!zone", lambda value: (value.__getinitargs__(),), ""),
    "zoneinfo.ZoneInfo": _leaf(b"!region", zone_key),
    "decimal.Decimal": _leaf(b"!decimal", lambda value: list(value.as_tuple())),
    "fractions.Fraction": _leaf(b"!fraction", lambda value: [value.numerator, value.denominator]),
    "uuid.UUID": _leaf(b"!uuid", lambda value: value.int),
    "re.Pattern": _leaf(b"!pattern", lambda value: [value.pattern, value.flags]),
    **{
        f"pathlib.{name}": _leaf(f"!{name}:".encode(), lambda value: list(value.parts))
        for name in ("PurePath", "PurePosixPath", "PureWindowsPath", "Path", "PosixPath", "WindowsPath")
    },
}
"""Types whose modules are loaded by whoever has a value of them."""

_BASES: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    ("builtins", "int", int.__int__),
    ("builtins", "float", float.__float__),
    ("builtins", "complex", complex.__pos__),
    ("builtins", "str", str.__str__),
    ("builtins", "bytes", lambda value: bytes.__getitem__(value, slice(None))),
    ("builtins", "bytearray", lambda value: bytearray(bytearray.__getitem__(value, slice(None)))),
    ("builtins", "list", list.copy),
    ("builtins", "tuple", lambda value: tuple.__getitem__(value, slice(None))),
    ("collections", "OrderedDict", _plain_ordered),
    ("builtins", "dict", dict.copy),
    ("builtins", "set", set().union),
    ("builtins", "frozenset", lambda value: frozenset().union(value)),
)
"""What a class may inherit from, the most special first, and how to see its values without what the class adds."""


@functools.lru_cache(1_000)
def _writer_of(kind: type) -> Writer:
    """Return what hashes values of *kind*."""
    if (own := _OWN.get(kind)) is not None:
        return own
    if issubclass(kind, type):
        return _class
    if issubclass(kind, Enum):
        return _enum
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind.__module__ == "numpy" and (kind is numpy.ndarray or issubclass(kind, numpy.generic)):
        return _array
    for name, writer in _FOREIGN.items():
        module, _, attribute = name.partition(".")
        if kind.__name__ == attribute and getattr(sys.modules.get(module), attribute, None) is kind:
            return writer
    for module, name, plain in _BASES:
        base = getattr(sys.modules.get(module), name, None)
        if base is not None and issubclass(kind, base):
            return _subclass_of(base, plain)
    return _dataclass_of(kind) if hasattr(kind, "__dataclass_fields__") else _refuse
