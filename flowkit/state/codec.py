"""Turn values into JSON on one line, and back, with the types that they had.

Knows how each type is written, and which classes may be. Does not know files.

What JSON has stands as itself, so that a person can read it; everything else is an object of one key:

=====================================  ===================================================================
``{"$tuple": [1, 2]}``                 and ``$set``, ``$frozenset``, ``$OrderedDict``, ``$deque`` ...: the type's name
``{"$dict": [[1, "a"], ...]}``         a dict whose keys are not all strings, or one begins with ``$``
``{"$float": "nan"}``                  inf, -inf, nan; the 16 digits of the bits after ``nan:`` if it is another NaN
``{"$int": "ffff..."}``                hexadecimal, from 600 decimal digits on
``{"$str": "\\ud800"}``                a string with lone surrogates; they and backslashes are ``\\u`` and four digits
``{"$object": ["shop:Order", {...}]}``  a dataclass, ``$named`` a named tuple; ``$enum`` and ``$flag`` name a member
``{"$pickle": "gASV..."}``             the whole value, if pickles are allowed
=====================================  ===================================================================

Only exact types are written: a subclass adds what nobody knows. A class is found again only if it was registered, or is
of the modules that the codec was given; no other is ever imported or made, whatever the text says. Instances are made
without their ``__init__``.
"""

from __future__ import annotations

import binascii
import functools
import json
import math
import re
import struct
import sys
from enum import Enum, Flag
from importlib import import_module
from types import MemberDescriptorType

from ..exceptions import StateSerializationError, describe, listing, shown
from .digest import (
    Refused,
    a_value_of,
    attributes_of,
    field_names,
    in_words,
    key_step,
    read_field,
    reference,
    step_at,
    zone_key,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any, TypeVar

    from .digest import Names

    C = TypeVar("C", bound=type)
    Write = Callable[[Any, "_Walk"], Any]
    Read = Callable[[Any, Any], Any]

_DEEPEST = 200
"""Containers in each other. Each takes up to three levels of JSON, and json recurses: 3.11 and 3.12 go to 1,000."""
_LARGE = 10**600
"""Integers from here on are written in hexadecimal. Python may be told to read no more than 640 decimal digits."""
_PLAIN = frozenset({type(None), bool, int, float, str})
_PLAIN_AS_THEY_ARE = frozenset({type(None), bool})
_STR = frozenset({str})
_ORDERED_TYPES: tuple[set[type], ...] = ({str}, {int}, {bytes})
_NAN = struct.pack(">d", math.nan)
_PICKLE_PROTOCOL = 5

_registered: dict[str, type] = {}


def register(cls: C) -> C:
    """Allow values of *cls*, a dataclass, NamedTuple or Enum, to be stored; return it, so that it is a decorator.

    It is stored by its name and what is in it, so it must be found by that name when it is read. Classes of the modules
    in which the tasks of a DAG are defined, and of their package, need not be registered.

    Raises:
        TypeError: It is none of these, or is defined in a function.

    >>> import enum
    >>> @register
    ... class Color(enum.Enum):
    ...     RED = 1
    """
    if not isinstance(cls, type) or not (_is_named(cls) or issubclass(cls, Enum) or _is_dataclass(cls)):
        hint = " Put @register above @dataclass." if isinstance(cls, type) else ""
        raise TypeError(f"register() takes a dataclass, a NamedTuple or an Enum, not {shown(cls)}.{hint}")
    module, name = reference(cls)
    if "<" in name:
        raise TypeError(f"cannot register {name} of {module}: it is defined in a function. Move it to module level.")
    _registered[f"{module}:{name}"] = cls
    return cls


class Codec:
    """Turns values into text and back.

    Args:
        modules: Names of modules whose own dataclasses, named tuples and enums may be stored without being registered;
            and those of the other modules of its package, if a module is in one.
        pickles: Whether what JSON cannot keep is pickled, and pickles are read.
    """

    def __init__(self, *, modules: Collection[str] = (), pickles: bool = False) -> None:
        self._modules = {"__main__" if name == "__mp_main__" else name for name in modules}
        self._packages = tuple({f"{name.partition('.')[0]}." for name in modules if "." in name})
        self._modules.update(package[:-1] for package in self._packages)
        self._pickles = pickles
        self._read_tagged = json.JSONDecoder(object_hook=self._revive, parse_constant=_refuse_constant).decode

    def encode(self, value: object) -> str:
        """Return *value* as JSON, on one line.

        Raises:
            StateSerializationError: Something in it would not come back as it is.

        >>> Codec().encode({"rows": [1, 2.5, None], "day": (2024, b"x")})
        '{"rows":[1,2.5,null],"day":{"$tuple":[2024,{"$bytes":"eA=="}]}}'
        """
        try:
            try:
                return _text(value, _Walk(self, _PLAIN))
            except ValueError:  # a NaN, an infinity or a lone surrogate: look at each number and string
                return _text(value, _Walk(self, _PLAIN_AS_THEY_ARE))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - values run code when they are read; others change dicts meanwhile
            refused = error if isinstance(error, Refused) else Refused(f"cannot be stored: {describe(error)}")
            if not self._pickles:
                raise refused.error() from (None if refused is error else error)
        return _pickled(value, refused)

    def decode(self, text: str) -> Any:
        """Return the value that *text* was made of.

        Raises:
            StateSerializationError: It is not what encode() returns, or names a class that is not allowed here.

        >>> Codec().decode('{"day":{"$tuple":[2024,{"$bytes":"eA=="}]}}')
        {'day': (2024, b'x')}
        """
        try:
            return (self._read_tagged if '"$' in text or "\\u0024" in text else _read_plain)(text)
        except Refused as refused:
            raise refused.error() from None
        except MemoryError:
            raise
        except Exception as error:  # whatever a text that is damaged makes the types do
            raise StateSerializationError("", f"the stored text cannot be read: {describe(error)}") from error

    def name_of(self, cls: type) -> str:
        """Return the name by which :meth:`find` finds *cls*."""
        module, name = reference(cls)
        whole = f"{module}:{name}"
        if whole not in _registered and not self._is_allowed(module):
            raise Refused(
                f"{name} of {module} is not registered: put @register above it (from flowkit.state import register)"
            )
        if _registered.get(whole, cls) is not cls or _look_up(whole) is not cls:
            raise Refused(f"{name} of {module} is not what this name stands for in its module; move it to module level")
        return whole

    def find(self, whole: object) -> Any:
        """Return the class that :meth:`name_of` named so."""
        if type(whole) is not str:
            raise Refused(f"the stored text names no class: {shown(whole)}")
        found = _registered.get(whole)
        if found is not None:
            return found
        module, _, name = whole.partition(":")
        if not self._is_allowed(module):
            raise Refused(
                f"the stored text holds {in_words(module, name)}, which is not registered here: put @register above it "
                f"(from flowkit.state import register), and import {module} before"
            )
        if module not in sys.modules and not module.endswith(".__main__"):
            import_module(module)
        found = _look_up(whole)
        # A name that the module has imported would get around what is allowed.
        if not isinstance(found, type) or ":".join(reference(found)) != whole:
            raise Refused(f"the stored text holds {in_words(module, name)}, which has no such class")
        return found

    def _is_allowed(self, module: str) -> bool:
        return module in self._modules or module.startswith(self._packages)

    def _revive(self, found: dict[str, Any]) -> Any:
        """Return what the object *found* stands for; json calls it for each, the innermost first."""
        if len(found) == 1:
            (tag,) = found
            if tag[:1] != "$":
                return found
            read = _readers.get(tag)
            if read is not None:
                return read(found[tag], self)
        elif "$" not in "".join(found) or not any(key[:1] == "$" for key in found):
            return found
        raise Refused(f"the stored text has an object that this flowkit does not know, with the keys {listing(found)}")

    def _unpickled(self, payload: Any) -> Any:
        if not self._pickles:
            raise Refused("the stored text holds a pickle, which is read only by a state with serializer='pickle'")
        import pickle  # noqa: PLC0415 - only where it was asked for

        return pickle.loads(_bytes_of(payload))  # noqa: S301 - the user has said so


# ---------------------------------------------------------------- the walk


class _Walk:
    """One value on its way into text.

    Attributes:
        codec: Says which classes are allowed.
        plain: Types whose values stand as themselves in a container without being looked at.
        around: Ids of the containers that are being walked.
        names: Names of the classes that were found to be allowed.
    """

    __slots__ = ("around", "codec", "names", "plain")

    def __init__(self, codec: Codec, plain: frozenset[type]) -> None:
        self.codec = codec
        self.plain = plain
        self.around: set[int] = set()
        self.names: dict[type, str] = {}

    def name_of(self, cls: type) -> str:
        """Return the name under which *cls* is stored."""
        name = self.names.get(cls)
        if name is None:
            name = self.names[cls] = self.codec.name_of(cls)
        return name

    def one(self, value: Any, step: str = "") -> Any:
        """Return *value*, at *step* of what is being walked, as it is written."""
        kind: Any = type(value)
        try:
            return _writer_of(kind)(value, self)
        except Refused as refused:
            refused.add_steps([step])
            raise

    def items(self, values: Collection[Any], container: object, names: Names = None) -> list[Any]:
        """Return *values* of *container*, which are called *names*, as they are written."""
        if self._are_plain(values):
            return values if type(values) is list else list(values)
        self._enter(container)
        written: list[Any] = []
        try:
            for value in values:
                kind: Any = type(value)
                written.append(_writer_of(kind)(value, self))
        except Refused as refused:
            refused.add_steps([step_at(names, len(written))])
            raise
        self.around.discard(id(container))
        return written

    def fields(self, values: dict[str, Any], container: object, *, dotted: bool = False) -> dict[str, Any]:
        """Return *values* of *container* as they are written; in a path their names stand after a dot if *dotted*."""
        if self._are_plain(values.values()):
            return values
        self._enter(container)
        written = {}
        name = ""
        try:
            for name, value in values.items():
                kind: Any = type(value)
                written[name] = _writer_of(kind)(value, self)
        except Refused as refused:
            refused.add_steps([f".{name}" if dotted else key_step(name)])
            raise
        self.around.discard(id(container))
        return written

    def pairs(self, value: Mapping[Any, Any], keys: list[Any]) -> list[list[Any]]:
        """Return the *keys* of *value*, in this order, and what is under them, as they are written."""
        left = self.items(keys, value, ".keys()")
        right = self.items(list(map(value.__getitem__, keys)), value, keys)
        return list(map(list, zip(left, right, strict=True)))

    def has_plain_keys(self, value: dict[Any, Any]) -> bool:
        """Return whether the keys of *value* can be those of an object."""
        if not _STR.issuperset(map(type, value)):
            return False
        whole = "".join(value)
        if "$" in whole and any(key[:1] == "$" for key in value):
            return False
        return self.plain is _PLAIN or not _SURROGATES.search(whole)

    def _are_plain(self, values: Collection[Any]) -> bool:
        types = set(map(type, values))
        if not types <= self.plain:
            return False
        if int not in types:
            return True
        if len(types) == 1:
            return bool(min(values) > -_LARGE and max(values) < _LARGE)
        return not any(type(value) is int and not -_LARGE < value < _LARGE for value in values)

    def _enter(self, container: object) -> None:
        me = id(container)
        if me in self.around:
            kind = type(container).__name__
            raise Refused(f"the {kind} that it stands in: what contains itself cannot be stored")
        if len(self.around) >= _DEEPEST:
            raise Refused(f"nested deeper than {_DEEPEST} levels; make it flatter")
        self.around.add(me)


_ENDS_OF_LINES = ("\x85", "\u2028", "\u2029")
"""What str.splitlines() takes for the end of a line and json does not escape."""
_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode


def _text(value: object, walk: _Walk) -> str:
    kind: Any = type(value)
    text: str = _to_json(_writer_of(kind)(value, walk))
    if not text.isascii():
        text.encode()  # refuses a lone surrogate
        for end in _ENDS_OF_LINES:
            text = text.replace(end, f"\\u{ord(end):04x}")
    return text


def _pickled(value: object, refused: Refused) -> str:
    import pickle  # noqa: PLC0415 - only where it was asked for

    try:
        packed = pickle.dumps(value, _PICKLE_PROTOCOL)
    except MemoryError:
        raise
    except Exception as error:  # pickle and objects raise anything
        refused.reason = f"{refused.reason}; nor can the whole be pickled: {describe(error)}"
        raise refused.error() from error
    return f'{{"$pickle":"{_base64(packed)}"}}'


def _refuse_constant(name: str) -> Any:
    raise Refused(f"the stored text has {name}, which is no JSON")


_read_plain = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _expect(kind: type, payload: Any) -> Any:
    """Return *payload* if it is a *kind*; the text is damaged if not."""
    if type(payload) is not kind:
        raise Refused(f"the stored text has {a_value_of(type(payload))} where {a_value_of(kind)} must be")
    return payload


# ---------------------------------------------------------------- scalars

_SURROGATES = re.compile("[\ud800-\udfff]")
_TO_ESCAPE = re.compile("[\\\\\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")


def _write_none(value: None, walk: _Walk) -> Any:
    return value


def _write_str(value: str, walk: _Walk) -> Any:
    if walk.plain is _PLAIN or not _SURROGATES.search(value):
        return value
    return {"$str": _TO_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)}


def _read_str(payload: Any) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), _expect(str, payload))


def _write_int(value: int, walk: _Walk) -> Any:
    return value if -_LARGE < value < _LARGE else {"$int": f"{value:x}"}


def _write_float(value: float, walk: _Walk) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)
    return {"$float": repr(value) if math.isinf(value) or bits == _NAN else f"nan:{bits.hex()}"}


def _read_float(payload: Any) -> float:
    word, _, bits = _expect(str, payload).partition(":")
    if word not in {"nan", "inf", "-inf"}:
        raise Refused(f"the stored text has no float but {shown(payload)}")
    found: float = struct.unpack(">d", bytes.fromhex(bits))[0] if bits else float(word)
    return found


def _base64(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _bytes_of(payload: Any) -> bytes:
    return binascii.a2b_base64(_expect(str, payload), strict_mode=True)


# ---------------------------------------------------------------- containers


def _write_list(value: list[Any], walk: _Walk) -> Any:
    return walk.items(value, value)


def _write_items(value: Any, walk: _Walk) -> Any:
    return walk.items(value, value)


def _write_set(value: set[Any] | frozenset[Any], walk: _Walk) -> Any:
    # In an order that does not depend on hashes, so that the same set is the same text.
    if set(map(type, value)) in _ORDERED_TYPES:
        return walk.items(sorted(value), value, "{...}")
    return sorted(walk.items(list(value), value, "{...}"), key=_to_json)


def _read_set(cls: Any, payload: Any) -> Any:
    found = cls(_expect(list, payload))
    if len(found) != len(payload):
        raise Refused(f"the stored text has members of {a_value_of(cls)} that are equal")
    return found


def _write_dict(value: dict[Any, Any], walk: _Walk) -> Any:
    if walk.has_plain_keys(value):
        return walk.fields(value, value)
    return {"$dict": walk.pairs(value, list(value))}


def _read_pairs(payload: Any) -> Any:
    if any(type(pair) is not list or len(pair) != 2 for pair in _expect(list, payload)):
        raise Refused("the stored text has a dict that is not made of pairs")
    found = dict(payload)
    if len(found) != len(payload):
        raise Refused("the stored text has keys of a dict that are equal")
    return found


def _write_mapping(value: Any, walk: _Walk) -> Any:
    _refuse_attributes(value)
    return walk.pairs(value, list(value))


def _read_ordered_dict(cls: Any, payload: Any) -> Any:
    return cls(_read_pairs(payload))


def _read_counter(cls: Any, payload: Any) -> Any:
    found = cls()
    dict.update(found, _read_pairs(payload))  # its own update adds up
    return found


_FACTORIES = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple, bool, bytes, frozenset)}


def _write_defaultdict(value: Any, walk: _Walk) -> Any:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise Refused(f"its default_factory {shown(factory)} cannot be stored; convert it: dict(...)")
    _refuse_attributes(value)
    return [name, walk.pairs(value, list(value))]


def _read_defaultdict(cls: Any, payload: Any) -> Any:
    name, pairs = _expect(list, payload)
    return cls(None if name is None else _FACTORIES[name], _read_pairs(pairs))


def _write_deque(value: Any, walk: _Walk) -> Any:
    return [walk.items(value, value), value.maxlen]


def _read_deque(cls: Any, payload: Any) -> Any:
    items, most = _expect(list, payload)
    if most is not None and len(items) > _expect(int, most):
        raise Refused("the stored text has a deque of more than its maxlen")
    return cls(_expect(list, items), most)


def _refuse_attributes(value: Any) -> None:
    for name in getattr(value, "__dict__", ()):
        raise Refused(f"{a_value_of(type(value))} with an attribute of its own, {name!r}, cannot be stored")


# ---------------------------------------------------------------- numbers, dates, paths


def _write_complex(value: complex, walk: _Walk) -> Any:
    return [_write_float(value.real, walk), _write_float(value.imag, walk)]


def _read_complex(cls: Any, payload: Any) -> Any:
    real, imag = _expect(list, payload)
    return complex(_expect(float, real), _expect(float, imag))


def _write_range(value: range, walk: _Walk) -> Any:
    return [_write_int(part, walk) for part in (value.start, value.stop, value.step)]


def _write_fraction(value: Any, walk: _Walk) -> Any:
    return [_write_int(value.numerator, walk), _write_int(value.denominator, walk)]


def _read_ints(cls: Any, payload: Any) -> Any:
    return cls(*[_expect(int, part) for part in _expect(list, payload)])


def _write_as_str(value: Any, walk: _Walk) -> Any:
    return _write_str(str(value), walk)


def _read_as_str(cls: Any, payload: Any) -> Any:
    return cls(_expect(str, payload))


def _write_path(value: Any, walk: _Walk) -> Any:
    text = str(value)
    if type(value)(text).parts != value.parts:  # such as "./c:x" of Windows, which reads as another
        raise Refused(f"{shown(value)} cannot be stored: its text stands for another path")
    return _write_str(text, walk)


def _read_path(cls: Any, payload: Any) -> Any:
    try:
        return cls(_expect(str, payload))
    except NotImplementedError:
        raise Refused(f"the stored text has {a_value_of(cls)}, which there is none of on this system") from None


def _write_uuid(value: Any, walk: _Walk) -> Any:
    safe = value.is_safe.value
    return str(value) if safe is None else [str(value), safe]


def _read_uuid(cls: Any, payload: Any) -> Any:
    if type(payload) is not list:
        return cls(_expect(str, payload))
    text, safe = payload
    return cls(_expect(str, text), is_safe=import_module("uuid").SafeUUID(safe))


def _write_time(value: Any, walk: _Walk) -> Any:
    zone = value.tzinfo
    if zone is None:
        is_said = True
    elif _is_own("datetime", zone):
        offset, *name = zone.__getinitargs__()
        is_said = not name and not offset.microseconds  # fromisoformat() takes +00:00:00.000001 for UTC
    elif _is_own("zoneinfo", zone):
        is_said = False
    else:
        raise Refused(
            f"{a_value_of(type(zone))} cannot be stored; use datetime.timezone or zoneinfo.ZoneInfo", ".tzinfo"
        )
    if is_said and not value.fold:
        return value.isoformat()
    return [value.replace(tzinfo=None).isoformat(), walk.one(zone, ".tzinfo"), value.fold]


def _read_time(cls: Any, payload: Any) -> Any:
    if type(payload) is not list:
        return cls.fromisoformat(_expect(str, payload))
    text, zone, fold = payload
    naive = cls.fromisoformat(_expect(str, text))
    if naive.tzinfo is not None:
        raise Refused("the stored text has a time with two offsets")
    return naive.replace(tzinfo=zone, fold=fold)


def _is_own(module: str, zone: Any) -> bool:
    """Return whether *zone* is one of *module*: of datetime with a fixed offset, of zoneinfo with a name."""
    name = "timezone" if module == "datetime" else "ZoneInfo"
    return getattr(sys.modules.get(module), name, None) is type(zone)


def _write_date(value: Any, walk: _Walk) -> Any:
    return value.isoformat()


def _read_date(cls: Any, payload: Any) -> Any:
    return cls.fromisoformat(_expect(str, payload))


def _write_delta(value: Any, walk: _Walk) -> Any:
    return [value.days, value.seconds, value.microseconds]


def _write_offset(value: Any, walk: _Walk) -> Any:
    delta, *name = value.__getinitargs__()
    return [delta.days, delta.seconds, delta.microseconds, *(_write_str(part, walk) for part in name)]


def _read_offset(cls: Any, payload: Any) -> Any:
    days, seconds, micros, *name = _expect(list, payload)
    delta = _read_ints(import_module("datetime").timedelta, [days, seconds, micros])
    return cls(delta, *[_expect(str, part) for part in name])


def _write_zone(value: Any, walk: _Walk) -> Any:
    return zone_key(value)


# ---------------------------------------------------------------- classes of users


def _is_named(cls: Any) -> bool:
    names = getattr(cls, "_fields", None)
    return issubclass(cls, tuple) and type(names) is tuple and all(type(name) is str for name in names)


def _is_dataclass(cls: Any) -> bool:
    return hasattr(cls, "__dataclass_fields__")


def _look_up(whole: str) -> Any:
    """Return what stands under this name in its module, as far as that is loaded, running no code of anyone's."""
    module, _, name = whole.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        try:
            found = vars(found).get(part)
        except TypeError:  # what is there has no names in it
            return None
    return found


def _write_enum(value: Any, walk: _Walk) -> Any:
    cls = type(value)
    where = walk.name_of(cls)
    if cls._member_map_.get(value._name_) is value:
        return {"$enum": [where, _write_str(value._name_, walk)]}
    if isinstance(value, Flag) and cls(value._value_) is value:
        return {"$flag": [where, walk.one(value._value_)]}
    raise Refused(f"{shown(value)} cannot be stored: it is no member of {cls.__name__}")


def _read_enum(payload: Any, codec: Codec) -> Any:
    where, name = _expect(list, payload)
    cls = codec.find(where)
    if not issubclass(cls, Enum) or name not in cls._member_map_:
        raise Refused(f"the stored text has the member {shown(name)} of {where}, which there is none of")
    return cls._member_map_[name]


def _read_flag(payload: Any, codec: Codec) -> Any:
    where, number = _expect(list, payload)
    cls = codec.find(where)
    if not issubclass(cls, Flag):
        raise Refused(f"the stored text has a flag of {where}, which is none")
    return cls(_expect(int, number))


def _write_named(value: Any, walk: _Walk) -> Any:
    cls = type(value)
    where = walk.name_of(cls)
    _refuse_attributes(value)
    if len(value) != len(cls._fields):
        raise Refused(f"{a_value_of(cls)} of {len(value)} items cannot be stored: it has {len(cls._fields)} fields")
    fields = dict(zip(cls._fields, tuple.__iter__(value), strict=True))
    return {"$named": [where, walk.fields(fields, value, dotted=True)]}


def _read_named(payload: Any, codec: Codec) -> Any:
    where, fields = _expect(list, payload)
    cls = codec.find(where)
    if not _is_named(cls) or issubclass(cls, Enum):
        raise Refused(f"the stored text has a named tuple {where}, which is none")
    _check_fields(where, _expect(dict, fields), cls._fields)
    return tuple.__new__(cls, [fields[name] for name in cls._fields])


class _Shape:
    """How the instances of a dataclass are taken apart and put together.

    Attributes:
        cls: The class.
        names: Its fields.
    """

    __slots__ = ("_in_slots", "cls", "names")

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.names = dict.fromkeys(field_names(cls))
        slots = {
            name for base in cls.__mro__ for name, member in vars(base).items() if type(member) is MemberDescriptorType
        }
        self._in_slots = bool(slots) or not cls.__dictoffset__
        for name in self.names:
            found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
            if not name.isidentifier() or (hasattr(type(found), "__set__") and name not in slots):
                raise Refused(
                    f"{a_value_of(cls)} cannot be stored: its field {name!r} is more than a value", f".{name}"
                )
        try:
            object.__new__(cls)
        except TypeError:
            raise Refused(
                f"{a_value_of(cls)} cannot be stored: it inherits from a type with a value of its own"
            ) from None

    def fields_of(self, value: Any) -> dict[str, Any]:
        """Return the fields of *value*, which has nothing else."""
        if not self._in_slots and value.__dict__.keys() == self.names.keys():
            return value.__dict__  # type: ignore[no-any-return]
        extra = [name for name in attributes_of(value) if name not in self.names]
        if extra:
            raise Refused(
                f"{a_value_of(self.cls)} has the attribute {extra[0]!r}, which is no field of it and would be lost: "
                f"make it a field"
            )
        return {name: read_field(value, name) for name in self.names}

    def make(self, fields: dict[str, Any]) -> Any:
        """Return an instance with these *fields*."""
        made: Any = object.__new__(self.cls)
        put = object.__setattr__  # frozen ones refuse to be set in any other way
        for name, value in fields.items():
            put(made, name, value)
        return made


_shape_of = functools.lru_cache(1_000)(_Shape)


def _write_object(value: Any, walk: _Walk) -> Any:
    cls: Any = type(value)
    where = walk.name_of(cls)
    return {"$object": [where, walk.fields(_shape_of(cls).fields_of(value), value, dotted=True)]}


def _read_object(payload: Any, codec: Codec) -> Any:
    where, fields = _expect(list, payload)
    cls = codec.find(where)
    if not _is_dataclass(cls) or issubclass(cls, Enum):
        raise Refused(f"the stored text has a dataclass {where}, which is none")
    shape = _shape_of(cls)
    if type(fields) is not dict or fields.keys() != shape.names.keys():
        _check_fields(where, _expect(dict, fields), shape.names)
    return shape.make(fields)


def _check_fields(where: str, fields: dict[str, Any], names: Iterable[str]) -> None:
    """Refuse *fields* of another version of the class."""
    known = dict.fromkeys(names)
    if fields.keys() != known.keys():
        gone, new = [name for name in fields if name not in known], [name for name in known if name not in fields]
        what = [f"{listing(found)} {word}" for found, word in ((new, "new"), (gone, "gone")) if found]
        raise Refused(f"the stored text has {where} with other fields than it has now: {', '.join(what)}")


# ---------------------------------------------------------------- which type is written how

_TYPES: dict[str, tuple[str, Write, Read]] = {
    "tuple": ("builtins", _write_items, lambda cls, payload: tuple(_expect(list, payload))),
    "set": ("builtins", _write_set, _read_set),
    "frozenset": ("builtins", _write_set, _read_set),
    "bytes": ("builtins", lambda value, walk: _base64(value), lambda cls, payload: _bytes_of(payload)),
    "bytearray": ("builtins", lambda value, walk: _base64(value), lambda cls, payload: bytearray(_bytes_of(payload))),
    "complex": ("builtins", _write_complex, _read_complex),
    "range": ("builtins", _write_range, _read_ints),
    "OrderedDict": ("collections", _write_mapping, _read_ordered_dict),
    "Counter": ("collections", _write_mapping, _read_counter),
    "defaultdict": ("collections", _write_defaultdict, _read_defaultdict),
    "deque": ("collections", _write_deque, _read_deque),
    "datetime": ("datetime", _write_time, _read_time),
    "time": ("datetime", _write_time, _read_time),
    "date": ("datetime", _write_date, _read_date),
    "timedelta": ("datetime", _write_delta, _read_ints),
    "timezone": ("datetime", _write_offset, _read_offset),
    "ZoneInfo": ("zoneinfo", _write_zone, _read_as_str),
    "Decimal": ("decimal", _write_as_str, _read_as_str),
    "Fraction": ("fractions", _write_fraction, _read_ints),
    "UUID": ("uuid", _write_uuid, _read_uuid),
    "PurePosixPath": ("pathlib", _write_path, _read_path),
    "PureWindowsPath": ("pathlib", _write_path, _read_path),
    "PosixPath": ("pathlib", _write_path, _read_path),
    "WindowsPath": ("pathlib", _write_path, _read_path),
}
"""Module, writer and reader of each type that is written as ``{"$name": ...}``."""

_OWN: dict[type, Write] = {
    type(None): _write_none,
    bool: _write_none,
    int: _write_int,
    float: _write_float,
    str: _write_str,
    list: _write_list,
    dict: _write_dict,
}


@functools.lru_cache(1_000)
def _writer_of(kind: type) -> Write:
    """Return what writes values of *kind*."""
    if (own := _OWN.get(kind)) is not None:
        return own
    if issubclass(kind, Enum):
        return _write_enum
    module, write, _ = _TYPES.get(kind.__name__, ("", None, None))
    if write is not None and getattr(sys.modules.get(module), kind.__name__, None) is kind:
        return _tagged(f"${kind.__name__}", write)
    if _is_dataclass(kind):
        return _write_object
    return _write_named if _is_named(kind) else _refuse


def _tagged(tag: str, write: Write) -> Write:
    return lambda value, walk: {tag: write(value, walk)}


_BASES = (str, int, float, complex, list, dict, tuple, set, frozenset, bytes, bytearray)


def _refuse(value: Any, walk: _Walk) -> Any:
    kind = type(value)
    base = next((base for base in _BASES if issubclass(kind, base)), None)
    if base is not None:
        raise Refused(f"{a_value_of(kind)} cannot be stored as what it is; convert it: {base.__name__}(...)")
    raise Refused(f"{a_value_of(kind)} cannot be stored; keep plain data or a dataclass instead")


def _reader_of(name: str) -> Callable[[Any, Codec], Any]:
    """Return what reads ``{"$name": ...}``; the module of the type is imported when there is one."""
    module, _, read = _TYPES[name]

    def read_one(payload: Any, codec: Codec) -> Any:
        return read(getattr(sys.modules.get(module) or import_module(module), name), payload)

    return read_one


_readers: dict[str, Callable[[Any, Codec], Any]] = {
    **{f"${name}": _reader_of(name) for name in _TYPES},
    "$str": lambda payload, codec: _read_str(payload),
    "$int": lambda payload, codec: int(_expect(str, payload), 16),
    "$float": lambda payload, codec: _read_float(payload),
    "$dict": lambda payload, codec: _read_pairs(payload),
    "$enum": _read_enum,
    "$flag": _read_flag,
    "$named": _read_named,
    "$object": _read_object,
    "$pickle": lambda payload, codec: codec._unpickled(payload),
}
