"""Say what a function really runs, in a few hashes, so that a stored result is told from a stale one.

Knows bytecode, closures and the names that code looks up. Does not know graphs, inputs or where results are kept.

What counts, and what it is called among the parts of a fingerprint:

============================  ====================================================================================
``code``                      bytecode and constants of the function, and by name what it uses of other packages
``default 'limit'``           the default of a parameter
``closure 'factor'``          what the function closes over
``global 'LIMIT'``            a value of its module that the code names
``helper 'clean'``            a function of the same package that the code names; what that one names, likewise
``class 'Loader'``            a class of the same package: its methods, plain attributes and bases
``instance``, ``attribute``   what a method or a callable object is bound to
``argument``                  what a partial passes on
``condition ...``             the same of the condition
``python``                    the minor version; with ``version`` there is that alone, and nothing of the code
============================  ====================================================================================

Bytecode is read as a graph of instructions (:class:`_Flow`), and written down in the order in which a walk from its
start meets them. That leaves out what does not change what runs: line numbers, the layout of blocks, the names of
locals, docstrings, and what the compiler does differently when a statement stands on one line or on two.

A function that is imported inside of another is not known before that one runs: its name alone counts.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from enum import EnumMeta
from types import BuiltinFunctionType, CodeType, FunctionType, GenericAlias, MethodType, ModuleType, UnionType

from ..exceptions import StateSerializationError
from ..task import Task
from .digest import a_value_of, attributes_of, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import Any

    Handler = tuple[int, int] | None
    Key = tuple[str, str, str]
    Piece = Any
    """What one thing counts as: text, a helper, or a list of these."""

_MOST_BYTES = 1_000_000
"""Values larger than this count by their type alone."""
_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Fingerprint:
    """What a task's code is now. Immutable by convention.

    Attributes:
        digest: 32 hexadecimal digits, equal if and only if the parts are.
        parts: What it is made of: words for people, and a short hash of each.
        unwatched: What could change without being noticed, in sentences, sorted.
    """

    __slots__ = ("digest", "parts", "unwatched")

    def __init__(self, parts: dict[str, str], unwatched: tuple[str, ...] = ()) -> None:
        self.digest = digest(parts)
        self.parts = parts
        self.unwatched = unwatched

    def __repr__(self) -> str:
        return f"<Fingerprint {self.digest}: {', '.join(self.parts)}>"


class Fingerprinter:
    """Takes fingerprints for one run. What tasks share is read once, and so is every value."""

    def __init__(self) -> None:
        self._fingerprints: dict[tuple[int, int, str | None], Fingerprint] = {}
        self._founds: dict[int, tuple[dict[str, str], list[str]]] = {}
        self._readers: dict[frozenset[str], _Reader] = {}
        self._cache = _Cache()

    def of(
        self, func: Callable[..., Any], when: Callable[..., Any] | None = None, version: str | None = None
    ) -> Fingerprint:
        """Return the fingerprint of *func* under the condition *when*; *version* stands for both.

        >>> def load(rows, limit=10):
        ...     return rows[:limit]
        >>> sorted(Fingerprinter().of(load).parts)
        ['code', "default 'limit'", 'python']
        >>> Fingerprinter().of(load, version="2").parts
        {'version': '2'}
        """
        key = (id(func), id(when), version)
        found = self._fingerprints.get(key)
        if found is None:
            self._cache.keep(func)
            self._cache.keep(when)
            found = self._fingerprints[key] = self._take(func, when, version)
        return found

    def _take(self, func: Any, when: Any, version: str | None) -> Fingerprint:
        if version is not None:
            return Fingerprint({"version": version})
        found, unwatched = self._read(func)
        parts = {"python": _PYTHON, **found}
        if when is not None:
            found, of_condition = self._read(when)
            parts |= {_of_condition(word): short for word, short in found.items()}
            unwatched = unwatched + [f"condition {sentence}" for sentence in of_condition]
        return Fingerprint(parts, tuple(sorted(unwatched)))

    def _read(self, func: Any) -> tuple[dict[str, str], list[str]]:
        found = self._founds.get(id(func))
        if found is None:
            home = _home_of(func)
            reader = self._readers.get(home)
            if reader is None:
                reader = self._readers[home] = _Reader(home, self._cache)
            found = self._founds[id(func)] = _written(reader.reach(func))
        return found


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return what differs between the parts of two fingerprints, as people read it.

    >>> changes({"code": "1a", "helper 'clean'": "2b"}, {"code": "1a", "helper 'clean'": "3c"})
    ['code of helper clean() changed']
    >>> changes({"version": "1"}, {"version": "2"})
    ["version changed from '1' to '2'"]
    """
    said = []
    left_out: tuple[str, ...] = ("python", "version")
    if "version" in old or "version" in new:
        was, now = old.get("version"), new.get("version")
        if was is None:
            said.append(f"version {now!r} instead of its code")
            left_out += _WORDS
        elif now is None:
            said.append(f"its code instead of version {was!r}")
            left_out += _WORDS
        elif was != now:
            said.append(f"version changed from {was!r} to {now!r}")
    elif old.get("python") != new.get("python"):
        said.append(f"Python {new.get('python')} instead of {old.get('python')}")
        left_out += _WORDS_OF_CODE  # bytecode is another in each version
    if ("condition" in old) != ("condition" in new):
        left_out += ("condition ",)
    for word in {**new, **old}:
        if old.get(word) == new.get(word) or word.startswith(left_out):
            continue
        place = ""
        what = word
        if word.startswith("condition "):
            what, place = word.removeprefix("condition "), " of its condition"
        end = "changed" if word in old and word in new else "is new" if word in new else "is gone"
        if what in ("code", "condition"):
            what = f"its {what}"
        elif what.startswith("helper "):
            what = ("code of " if end == "changed" else "") + f"helper {what[8:-1]}()"
        elif what.startswith("class "):
            what = f"class {what[7:-1]}"
        said.append(f"{what}{place} {end}")
    return said


_WORDS_OF_CODE = ("code", "helper ", "class ", "condition", "condition helper ", "condition class ")
_WORDS = (*_WORDS_OF_CODE, "default ", "closure ", "global ", "instance ", "attribute ", "argument ", "condition ")


def _of_condition(word: str) -> str:
    return "condition" if word == "code" else f"condition {word}"


# ---------------------------------------------------------------- whose function it is


def _home_of(root: Any) -> frozenset[str]:
    """Return the packages whose functions count by their code when *root* is what runs.

    It is that of *root*, and those of what *root* wraps and closes over, because not every decorator says what it
    wraps. Where some of that is the user's own and some was installed, the first alone is home: else a decorator out
    of a library would make that library count. Nothing of Python itself is home.
    """
    packages: dict[str, set[str]] = {"own": set(), "installed": set(), "python": set()}
    seen: dict[int, Any] = {}
    todo = deque([root])
    takes_anything = False
    while todo:
        value = todo.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if _is(value, Task):
            todo.append(value.func)
        elif _is(value, functools.partial):
            todo += [value.func, *(each for each in value.args if _is(each, FunctionType))]
        elif _is(value, MethodType):
            todo.append(value.__func__)
        else:
            module = _module_of(value if _is(value, _NAMED) else type(value))
            place = _place_of(module)
            wrapped = _wrapped_by(value)
            if place != "installed" or takes_anything or not packages["installed"]:
                packages[place] |= _packages(module, value)
            if wrapped is None and _is(value, FunctionType):
                takes_anything |= bool(value.__code__.co_flags & (_VARARGS | _VARKEYWORDS))
            todo += [each for each in (wrapped, *_cells(value).values()) if _is(each, (FunctionType, MethodType))]
    return frozenset(packages["own"] or packages["installed"])


def _packages(module: str, value: Any) -> set[str]:
    found = {module.partition(".")[0]}
    if module == "__main__":  # python -m package.module
        package = getattr(value, "__globals__", {}).get("__package__")
        if isinstance(package, str) and package:
            found.add(package.partition(".")[0])
    return found


def _place_of(module: str) -> str:
    """Return whose *module* is: "python", "installed" by somebody, or "own"."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    if module in sys.builtin_module_names:
        return "python"
    if "site-packages" in file or "dist-packages" in file:
        return "installed"
    return "python" if _LIBRARY and file.startswith(_LIBRARY) else "own"


_LIBRARY = os.path.join(os.path.dirname(os.__file__), "") if hasattr(os, "__file__") else ""


def _is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether *value* itself is of *kinds*; isinstance would ask a proxy for what it stands for."""
    return issubclass(type(value), kinds)


def _module_of(value: Any) -> str:
    module = getattr(value, "__module__", None)
    return module if isinstance(module, str) and module else "?"


def _wrapped_by(value: Any) -> Any:
    """Return what *value*, which is no class, says that it wraps; None if it says nothing."""
    if _is(value, type):
        return None
    try:
        # What answers to every name, as proxies do, is not asked.
        found = vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None
        if found is None and hasattr(type(value), "__wrapped__"):
            found = value.__wrapped__
    except Exception:  # noqa: BLE001 - somebody's own __dict__; what does not say what it wraps wraps nothing
        return None
    return found if callable(found) and found is not value else None


def _cells(value: Any) -> dict[str, Any]:
    """Return what the function *value* closes over, by name; _EMPTY where nothing is yet."""
    found = {}
    if _is(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                found[name] = cell.cell_contents
            except ValueError:
                found[name] = _EMPTY
    return found


_EMPTY = object()
_NAMED = (FunctionType, type)


# ---------------------------------------------------------------- what it reaches


class _Helper:
    """A function or class that counts by what it is made of: what runs, and what that reaches.

    Attributes:
        value: The function, the class, or the callable that runs.
        name: Its qualified name.
        is_read: Whether the rest is known.
        pieces: What counts with itself.
        values: What counts beside it, by kind, module and name; the module is "" for what is its own.
        helpers: Those that it names.
        types: What counts by its type alone: words to put before, the key of the value (None for what counts with
            itself), and the type.
        sentences: What else does not count.
    """

    __slots__ = ("helpers", "is_read", "name", "pieces", "sentences", "types", "value", "values")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.name: str = getattr(value, "__qualname__", "")
        self.is_read = False
        self.pieces: list[Piece] = []
        self.values: dict[Key, Piece] = {}
        self.helpers: dict[_Helper, None] = {}
        self.types: list[tuple[str, Key | None, str]] = []
        self.sentences: list[str] = []


class _Cache:
    """What is the same whoever asks. Whatever is known by its id is kept alive, so that no other has it."""

    __slots__ = ("_codes", "_kept", "_values")

    def __init__(self) -> None:
        self._kept: dict[int, object] = {}
        self._codes: dict[int, _Code] = {}
        self._values: dict[int, str | None] = {}

    def keep(self, value: object) -> int:
        """Return the id of *value*, which is its own from now on."""
        self._kept[id(value)] = value
        return id(value)

    def code(self, code: CodeType) -> _Code:
        """Return what *code* does."""
        found = self._codes.get(id(code))
        if found is None:
            found = self._codes[self.keep(code)] = _Code(code)
        return found

    def digest(self, value: object) -> str | None:
        """Return the digest of *value*, None if it has none."""
        if id(value) not in self._values:
            try:
                found: str | None = digest(value, _MOST_BYTES)
            except StateSerializationError:
                found = None
            self._values[self.keep(value)] = found
        return self._values[id(value)]


class _Reader:
    """Reads functions, classes and values, as those of the packages *home* see them."""

    __slots__ = ("_cache", "_helper", "_helpers", "_home", "_inside")

    def __init__(self, home: frozenset[str], cache: _Cache) -> None:
        self._home = home
        self._cache = cache
        self._helpers: dict[int, _Helper] = {}
        self._helper = _Helper(None)
        """The one that is being read."""
        self._inside: set[int] = set()
        """Ids of what is being looked into, for it may contain itself."""

    def reach(self, func: Any) -> list[_Helper]:
        """Return *func* and all that it reaches, the nearest first."""
        while _is(func, Task):
            func = func.func
        first = self._find(func) if _is(func, _NAMED) else _Helper(func)
        reached = {first: None}
        waiting = deque(reached)
        while waiting:
            helper = waiting.popleft()
            if not helper.is_read:
                helper.is_read = True
                self._helper = helper
                self._read(helper.value)
            new = [each for each in helper.helpers if each not in reached]
            reached |= dict.fromkeys(new)
            waiting += new
        return list(reached)

    def _find(self, value: Any) -> _Helper:
        found = self._helpers.get(id(value))
        if found is None:
            found = self._helpers[self._cache.keep(value)] = _Helper(value)
        return found

    # ------------------------------------------------------------ one of them

    def _read(self, value: Any) -> None:
        helper = self._helper
        if _is(value, FunctionType):
            self._read_function(value)
        elif _is(value, type) and value is helper.value and self._is_home(_module_of(value)):
            self._read_class(value)
        elif _is(value, Task):
            self._read(value.func)
        elif _is(value, functools.partial):
            for name, each in [*enumerate(value.args, 1), *sorted(value.keywords.items())]:
                self._add("argument", str(name), each)
            self._read(value.func)
        elif _is(value, MethodType):
            self._read_receiver(value.__self__)
            self._read(value.__func__)
        elif self._is_home(_module_of(type(value))):
            self._read_receiver(value)
        elif wrapped := _wrapped_by(value):
            helper.pieces.append(_full_name(type(value)))
            self._read(wrapped)
        elif _is_known(value):
            helper.pieces.append(_full_name(value))
            if _is_bound(value):
                self._read_receiver(value.__self__)
        else:
            self._add("instance", type(value).__qualname__, value)

    def _read_receiver(self, value: Any) -> None:
        """Read what a method is bound to: as a whole if it has a digest, else one attribute after the other."""
        kind = type(value)
        if _is(value, type) or not self._is_home(_module_of(kind)) or self._cache.digest(value) is not None:
            self._add("instance", kind.__qualname__, value)
            return
        self._helper.pieces.append(self._helper_of(kind))
        for name, each in sorted(attributes_of(value).items()):
            self._add("attribute", name, each)

    def _read_function(self, func: FunctionType, owner: str = "") -> None:
        """Read *func*, which is the method *owner* of the class that is being read, if it is one."""
        pieces, scope, code = self._helper.pieces, func.__globals__, func.__code__
        defaults: dict[str, Any] = {}
        changed: Collection[tuple[str, ...]] = ()
        if self._is_home(scope.get("__name__", "?")):
            found = self._cache.code(code)
            changed = found.changed
            pieces.append([owner, found.digest])
            for chain in found.chains:
                self._read_global(scope, chain, changed)
            for level, module, names in found.imports:
                if level or self._is_home(module):
                    path = "." * level + module
                    text = f"from {path} import {', '.join(names)}" if names else f"import {path}"
                    self._helper.sentences.append(f"{text!r} inside of {code.co_qualname}(): only its name counts")
            parameters = code.co_varnames[: code.co_argcount]
            defaults.update(zip(reversed(parameters), reversed(func.__defaults__ or ()), strict=False))
            defaults.update(func.__kwdefaults__ or {})
        else:  # what another package has put around one of ours
            pieces.append([owner, f"{scope.get('__name__')}.{code.co_qualname}"])
        for name, value in defaults.items():
            self._add("default", name, value, owner)
        wrapped = _wrapped_by(func)
        for name, value in _cells(func).items():
            if value is wrapped:
                pieces.append(["closure", name, owner, "what it wraps"])
            elif (f"free {name}",) in changed and type(value) in _CHANGEABLE:
                self._note_changed(f"closure {name!r}", value)
            else:
                self._add("closure", name, value, owner)
        if _is(wrapped, FunctionType) and self._is_home(_module_of(wrapped)) and id(wrapped) not in self._inside:
            self._inside.add(id(func))
            self._read_function(wrapped, owner)  # the two of them have one name
            self._inside.discard(id(func))
        elif wrapped is not None:
            pieces.append(["wraps", owner, self._piece(wrapped, None)])

    def _read_class(self, cls: type) -> None:
        pieces = self._helper.pieces
        pieces.append([self._piece(each, None) for each in (type(cls), *cls.__bases__)])
        members = getattr(cls, "__members__", None) if isinstance(cls, EnumMeta) else None
        for name, member in (members or {}).items():
            self._add("member", name, member._value_, cls.__qualname__)
        for name, value in sorted(vars(cls).items()):
            functions = _functions_of(value)
            for role, function in functions:
                if _is(function, FunctionType) and self._is_home(_module_of(function)):
                    self._read_function(function, f"{role} {name}")
                else:
                    pieces.append([f"{role} {name}", self._piece(function, None)])
            if _is(value, functools.partialmethod):
                self._add("arguments", name, (value.args, value.keywords), cls.__qualname__)
            is_special = name.startswith("__") and name.endswith("__")
            if not (functions or is_special or members is not None or _is_of_class(name, value)):
                self._add("attribute", name, value, cls.__qualname__)

    def _note_changed(self, words: str, value: Any) -> None:
        """Leave out the content of *value*, a list, say: the code changes it, so it is no input of the code."""
        self._helper.pieces.append([words, "changes"])
        kind = a_value_of(type(value))
        self._helper.sentences.append(f"{words} ({kind}): the code changes it, so only its type counts")

    def _read_global(self, scope: dict[str, Any], chain: tuple[str, ...], changed: Collection[tuple[str, ...]]) -> None:
        """Read what *chain*, a global name and the attributes that are taken of it, stands for.

        Args:
            scope: The globals.
            chain: The names.
            changed: The chains whose end the code changes, if that is a container.
        """
        path = name = chain[0]
        length = 1
        if name not in scope or name in _OF_MODULES:
            return  # a builtin or nothing; or where the module is, not what it does. The bytecode has the name
        value, module = scope[name], scope.get("__name__", "?")
        attributes = iter(chain[1:])
        while _is(value, ModuleType):
            attribute = next(attributes, "")
            if attribute not in vars(value):
                self._helper.pieces.append([path, _full_name(value)])
                if self._is_home(value.__name__):
                    self._helper.sentences.append(f"module {value.__name__!r} as a value: only its name counts")
                return
            module, name, value = value.__name__, attribute, vars(value)[attribute]
            path = f"{path}.{name}"
            length += 1
        if not self._is_home(module) and not self._leads_home(value):
            self._helper.pieces.append([path, f"{module}.{name}"])
            return
        if type(value) in _CHANGEABLE and chain[:length] in changed:
            self._note_changed(f"global {path!r}", value)
            return
        key = ("global", str(module), name)
        piece = self._piece(value, key)
        if _is_value(piece):
            self._helper.values[key] = piece
        else:
            self._helper.pieces.append([path, piece])

    def _add(self, kind: str, name: str, value: Any, owner: str = "") -> None:
        """Let *value* count beside the helper; with it, if it is said by a name, or of a class (the *owner*)."""
        key = None if owner else (kind, "", name)
        piece = self._piece(value, key, f"{kind} {name!r} of " if owner else "")
        if key is not None and _is_value(piece):
            others = self._helper.values.get(key)  # of a wrapper that has the name, too
            self._helper.values[key] = piece if others is None else [others, piece]
        else:
            self._helper.pieces.append([kind, name, owner, piece])

    # ------------------------------------------------------------ pieces

    def _piece(self, value: Any, key: Key | None, before: str = "") -> Piece:
        """Return what *value* counts as: a helper, a name, ``["value", ...]``, or a list of these.

        Args:
            value: Anything.
            key: What it counts beside the helper as, if it is a value.
            before: What to say before the words for the helper, if its type alone counts.
        """
        if _is(value, Task):
            version = value.options.version
            return self._piece(value.func, key, before) if version is None else f"task of version {version!r}"
        if _is(value, _NAMED):
            return self._helper_of(value) if self._is_home(_module_of(value)) else self._foreign_piece(value)
        if value is _EMPTY:
            return "empty"
        if id(value) in self._inside:
            return "itself"
        self._inside.add(id(value))
        try:
            return self._piece_of_object(value, key, before)
        except Exception:  # noqa: BLE001 - what values do when they are read, and dicts that others change meanwhile
            return self._type_piece(type(value), key, before)
        finally:
            self._inside.discard(id(value))

    def _piece_of_object(self, value: Any, key: Key | None, before: str) -> Piece:
        kind = type(value)
        is_home = self._is_home(_module_of(kind))
        inside: tuple[Any, ...] = ()
        if _is(value, MethodType):
            inside = (value.__func__, value.__self__)
        elif _is(value, functools.partial):
            inside = (value.func, value.args, value.keywords)
        elif not is_home and (wrapped := _wrapped_by(value)):
            inside = (kind, wrapped)
        elif _is_bound(value):
            inside = (value.__name__, value.__self__)
        elif kind in _CONTAINERS and _has_callables(value):
            inside = tuple(each for pair in value.items() for each in pair) if kind is dict else tuple(value)
        if inside:
            pieces = [self._piece(each, key, before) for each in inside]
            return [kind.__name__, *(sorted(pieces, key=_as_text) if kind in (set, frozenset) else pieces)]
        if not is_home and _is_known(value):
            return _full_name(value)
        found = self._cache.digest(value)
        piece = self._type_piece(kind, key, before) if found is None else ["value", found]
        if is_home:
            piece += [self._helper_of(kind), self._piece(_wrapped_by(value), key, before)]
        return piece

    def _type_piece(self, kind: type, key: Key | None, before: str) -> list[Piece]:
        if kind.__module__ != "dataclasses":  # whose objects stand for a default that is missing
            self._helper.types.append((before, key, a_value_of(kind)))
        return ["value", f"type {_full_name(kind)}"]

    def _foreign_piece(self, value: Any) -> Piece:
        """Return what *value*, of another package, counts as: its name, and what of ours it wraps."""
        if _is(value, type) or id(value) in self._inside:
            return _full_name(value)
        self._inside.add(id(value))
        try:
            inside = [self._piece(each, None) for each in _functions_in(value) if self._leads_home(each)]
        finally:
            self._inside.discard(id(value))
        return [_full_name(value), *inside] if inside else _full_name(value)

    def _helper_of(self, value: Any) -> _Helper:
        found = self._find(value)
        self._helper.helpers[found] = None
        return found

    def _is_home(self, module: Any) -> bool:
        return isinstance(module, str) and module.partition(".")[0] in self._home

    def _leads_home(self, value: Any) -> bool:
        """Return whether *value*, found in another package, is a function or class of ours, or wraps one."""
        seen: set[int] = set()
        todo = [value]
        while todo:
            value = todo.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if _is(value, (Task, functools.partial)):
                todo.append(value.func)
            elif _is(value, _NAMED):
                if self._is_home(_module_of(value)):
                    return True
                todo += _functions_in(value)
        return False


# ---------------------------------------------------------------- values and their names

_CHANGEABLE = (list, dict, set, bytearray, deque, Counter, OrderedDict, defaultdict)
_CHANGES = frozenset({
    "[]=", "append", "appendleft", "extend", "extendleft", "insert", "add", "update", "setdefault", "pop", "popitem",
    "popleft", "remove", "discard", "clear", "sort", "reverse", "subtract", "difference_update", "intersection_update",
    "symmetric_difference_update", "rotate",
})  # fmt: skip
"""What code does with a container to change it."""
_CONTAINERS = (dict, list, tuple, set, frozenset)
_MOST_ITEMS = 1_000
"""Containers of more items are not searched for functions."""
_CALLABLES = (FunctionType, MethodType, functools.partial, Task)
_WITH_DESCRIPTORS = ("builtins", "collections", "_collections")
_ROLES = ("__func__", "fget", "fset", "fdel", "func", "dispatcher", "__wrapped__")
"""Where properties, class methods and the like have their functions."""


def _is_value(piece: Piece) -> bool:
    return isinstance(piece, list) and (piece[0] == "value" or any(map(_is_value, piece)))


def _has_callables(value: Any, depth: int = 3) -> bool:
    """Return whether functions stand in the container *value*, as in a table of handlers."""
    if len(value) > _MOST_ITEMS:
        return False
    for each in value.values() if type(value) is dict else value:
        if _is(each, _CALLABLES):
            return True
        if depth > 1 and type(each) in _CONTAINERS and _has_callables(each, depth - 1):
            return True
    return False


def _functions_in(func: Any) -> list[Any]:
    """Return the functions that *func* wraps, those in the tables that it closes over among them."""
    inside = [_wrapped_by(func)]
    for value in _cells(func).values():
        is_table = type(value) in (dict, list, tuple) and len(value) <= _MOST_ITEMS
        inside += (value.values() if type(value) is dict else value) if is_table else [value]
    return [each for each in inside if _is(each, (FunctionType, functools.partial, Task))]


def _functions_of(value: Any) -> list[tuple[str, Any]]:
    """Return the functions that the attribute *value* of a class is made of, and the role of each."""
    if _is(value, FunctionType):
        return [("method", value)]
    if _is(value, (type, Task)) or not hasattr(type(value), "__get__"):
        return []
    found = [(role, getattr(value, role)) for role in _ROLES if hasattr(value, role)]
    return [(f"{type(value).__name__} {role}", each) for role, each in found if callable(each)]


def _is_of_class(name: str, value: Any) -> bool:
    """Return whether *value* is how Python keeps a class, and nothing that was written in it."""
    return name == "_abc_impl" or (type(value).__module__ in _WITH_DESCRIPTORS and hasattr(value, "__get__"))


def _is_known(value: Any) -> bool:
    """Return whether a name says what *value*, which is nobody's own, is."""
    kind = type(value)
    if _is(value, (ModuleType, GenericAlias, UnionType)) or kind.__module__ == "typing":
        return True
    logging = sys.modules.get("logging")
    if logging is not None and _is(value, logging.Logger):
        return True
    return callable(value) and isinstance(_name_of(value), str)


def _is_bound(value: Any) -> bool:
    """Return whether *value* is a method of a builtin type that is bound to something."""
    return _is(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | None)


def _name_of(value: Any) -> Any:
    try:
        return getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    except Exception:  # noqa: BLE001 - somebody's __getattr__; what it cannot say is no name
        return None


def _full_name(value: Any) -> str:
    """Return what a name says of *value*."""
    if _is(value, _NAMED):
        return f"{_module_of(value)}.{value.__qualname__}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if _is(value, (GenericAlias, UnionType)) or type(value).__module__ == "typing":
        return f"{kind} {value!r}"
    if _is(value, ModuleType):
        return f"module {value.__name__}"
    return f"{kind} {getattr(value, '__module__', None)}.{_name_of(value) or value.name}"


def _as_text(piece: Piece) -> str:
    return str(_plain(piece, {}))


# ---------------------------------------------------------------- the words


def _written(helpers: list[_Helper]) -> tuple[dict[str, str], list[str]]:
    """Return the parts that *helpers* are, the first of which is what runs, and what is not watched."""
    first = helpers[0]
    own_module = _module_of(first.value)
    labels = {first: "", **_labels(helpers[1:], own_module)}
    globals_: dict[str, set[str]] = {}
    for helper in helpers:
        for kind, module, name in helper.values:
            if kind == "global":
                globals_.setdefault(name, set()).add(module)

    def words(key: Key, helper: _Helper) -> str:
        kind, module, name = key
        if kind == "global":
            return f"global {name if module == own_module or len(globals_[name]) == 1 else f'{module}.{name}'!r}"
        end = "" if isinstance(helper.value, type) else "()"
        return f"{kind} {name!r}" if helper is first else f"{kind} {name!r} of {labels[helper]}{end}"

    found, sentences = {}, set()
    for helper in helpers:
        kind = "class" if isinstance(helper.value, type) else "helper"
        own = "code" if helper is first else f"{kind} {labels[helper]!r}"
        found[own] = _short(helper.pieces, labels)
        for key, piece in helper.values.items():
            found[words(key, helper)] = _short(piece, labels)
        itself = "itself" if helper is first else own
        for before, at, what in helper.types:
            sentences.add(f"{before}{words(at, helper) if at else itself} ({what}): only its type counts")
        sentences.update(helper.sentences)
    return {"code": found.pop("code"), **dict(sorted(found.items()))}, sorted(sentences)


def _labels(helpers: list[_Helper], own_module: str) -> dict[_Helper, str]:
    """Return what each of *helpers* is called: its name, with the module if others have it too and that is another."""
    named: dict[str, list[_Helper]] = {}
    for helper in helpers:
        named.setdefault(helper.name, []).append(helper)
    labels: dict[_Helper, str] = {}
    taken: set[str] = set()
    for name, same in named.items():
        for helper in same:
            module = _module_of(helper.value)
            label = full = name if module == own_module or len(same) == 1 else f"{module}.{name}"
            number = 1
            while label in taken:
                number += 1
                label = f"{full} ({number})"
            taken.add(label)
            labels[helper] = label
    return labels


def _plain(piece: Piece, labels: dict[_Helper, str]) -> Any:
    """Return *piece* with a name for each helper in it."""
    if isinstance(piece, list):
        return [_plain(each, labels) for each in piece]
    if isinstance(piece, _Helper):
        return ["helper", labels.get(piece, f"{_module_of(piece.value)}.{piece.name}")]
    return piece


def _short(piece: Piece, labels: dict[_Helper, str]) -> str:
    return digest(_plain(piece, labels))[:16]


# ---------------------------------------------------------------- bytecode

_VARARGS, _VARKEYWORDS = 0x04, 0x08
_KINDS = _VARARGS | _VARKEYWORDS | 0x20 | 0x80 | 0x100 | 0x200
"""The flags that say how a function is called and what it gives: a value, a generator, a coroutine."""
_OPTIMIZED = 0x01
"""CO_OPTIMIZED: set for the code of functions, not for that of class bodies."""

_OF_MODULES = frozenset(
    {"__cached__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"}
)
"""Globals that say where a module is."""
_OF_CLASSES = frozenset({"__doc__", "__firstlineno__", "__module__", "__qualname__", "__static_attributes__"})
"""Names in class bodies that the compiler stores."""

_LEFT_OUT = frozenset({"CACHE", "COPY_FREE_VARS", "MAKE_CELL", "NOP", "NOT_TAKEN", "RESUME"})
_TWO = {
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW": ("LOAD_FAST", "LOAD_FAST"),
    "LOAD_FAST_LOAD_FAST": ("LOAD_FAST", "LOAD_FAST"),
    "STORE_FAST_LOAD_FAST": ("STORE_FAST", "LOAD_FAST"),
    "STORE_FAST_STORE_FAST": ("STORE_FAST", "STORE_FAST"),
}
"""Instructions that stand for two, if those are on one line."""
_SAME = {"LOAD_FAST_BORROW": "LOAD_FAST", "LOAD_FAST_CHECK": "LOAD_FAST"}
_BACKWARD = frozenset({"END_ASYNC_FOR", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
_JUMPS = frozenset({"JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_FORWARD"})
_FOREVER = "FOREVER"
"""Stands behind the last instruction, for a jump that leads to itself."""
_ENDS = frozenset({"RAISE_VARARGS", "RERAISE", "RETURN_VALUE", _FOREVER})
_SHUFFLES = frozenset({"POP_TOP", "STORE_FAST", "SWAP"})
_LOADS_GLOBAL = frozenset({"LOAD_FROM_DICT_OR_GLOBALS", "LOAD_GLOBAL", "LOAD_NAME"})
_LOADS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_SCALARS = frozenset({bool, bytes, complex, float, int, str, type(None), type(...)})
_SAVED = "saved"
"""Stands for a local that a comprehension which runs in its function's frame puts aside, and puts back."""


class _Opcodes:
    """What this Python's instructions mean.

    Attributes:
        names: The name of each.
        cache: The one that leaves room for the interpreter behind another.
        jumps: Those that jump.
        of_consts: Names of those whose argument is the number of a constant.
        of_names: The same for names.
        of_slots: The same for locals, cells and free variables, which are counted together.
        flags: How many bits of the argument are no part of the number.
    """

    __slots__ = ("cache", "flags", "jumps", "names", "of_consts", "of_names", "of_slots")

    def __init__(self) -> None:
        import dis  # noqa: PLC0415 - costs 5 ms, and a run without state does not need it

        self.names = dis.opname
        self.cache = bytes([dis.opmap["CACHE"]])
        self.jumps = frozenset(dis.hasjrel)
        self.of_consts = frozenset(dis.opname[code] for code in dis.hasconst)
        self.of_names = frozenset(dis.opname[code] for code in dis.hasname)
        slots = (dis.opname[code] for code in (*dis.haslocal, *dis.hasfree))
        self.of_slots = frozenset(name for name in slots if name.count("FAST") < 2)
        self.flags = {"LOAD_GLOBAL": 1, "LOAD_SUPER_ATTR": 2}
        if sys.version_info >= (3, 12):
            self.flags["LOAD_ATTR"] = 1


_opcodes = functools.cache(_Opcodes)


class _Flow:
    """The instructions of one code object, as a graph.

    An instruction that was dropped has None for a name, and whoever leads there goes on with the next one.

    Attributes:
        names: The name of each instruction.
        keys: The argument of each; for a local it tells variables of the same slot apart.
        next: Where each goes on: nowhere, to one, or to two if it is a condition (when it holds, when not) or a loop.
        handlers: Where an exception goes, with what the interpreter does before.
        same: For each instruction the one that stands for all that do the same from there on.
        closures: For each code object that is loaded, the keys of the variables that it captures.
    """

    __slots__ = ("_args", "_jumps", "_tries", "closures", "code", "handlers", "keys", "names", "next", "same")

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self.names: list[str | None] = []
        self.keys: list[Any] = []
        self.closures: dict[int, tuple[Any, ...]] = {}
        self._args: list[int] = []
        self._jumps: list[int | None] = []
        self._tries: list[tuple[int, int, int, int]] = []
        self._decode()
        self.handlers: list[Handler] = [None] * len(self.names)
        for start, end, target, flags in self._tries:
            self.handlers[start:end] = [(target, flags)] * (end - start)
        self._name_saved()
        self._drop_closures()
        if not code.co_flags & _OPTIMIZED:
            self._drop_names_of_class()
        self._thread()
        self._settle_stores()
        self.next: list[tuple[int, ...]] = [()] * len(self.names)
        self._link()
        self.same = self._merge()

    def follow(self, i: int) -> int:
        """Return the instruction that runs when *i* is led to."""
        names = self.names
        for _ in names:
            name = names[i]
            while name is None:
                i += 1
                name = names[i]
            if name not in _JUMPS:
                return i
            i = self._jumps[i]  # type: ignore[assignment]  # every jump has a target
        return len(names) - 1

    def _decode(self) -> None:
        opcodes = _opcodes()
        raw = self.code.co_code
        places: list[int] = []  # of each unit of two bytes: which instruction it belongs to, or comes next
        wide = 0
        for at in range(0, len(raw), 2):
            places.append(len(self.names))
            name = opcodes.names[raw[at]]
            arg = wide | raw[at + 1]
            if name == "EXTENDED_ARG":
                wide = arg << 8
                continue
            wide = 0
            if name in _LEFT_OUT:
                continue
            target = None
            if raw[at] in opcodes.jumps:
                target = at // 2 + 1
                while raw[2 * target : 2 * target + 1] == opcodes.cache:
                    target += 1
                target += -arg if name in _BACKWARD or "_BACKWARD_" in name else arg
                arg = 0
            if name in _TWO:
                self.names += _TWO[name]
                self._args += (arg >> 4, arg & 15)
                self._jumps += (None, None)
                continue
            if name == "RETURN_CONST":
                self.names.append("LOAD_CONST")
                self._args.append(arg)
                self._jumps.append(None)
                name, arg = "RETURN_VALUE", 0
            self.names.append(_SAME.get(name, name))
            self._args.append(arg)
            self._jumps.append(target)
        places.append(len(self.names))
        self.names.append(_FOREVER)
        self._args.append(0)
        self._jumps = [None if target is None else places[target] for target in (*self._jumps, None)]
        self._tries = [(places[s], places[e], places[t], flags) for s, e, t, flags in _read_tries(self.code)]
        self.keys = list(self._args)

    def _name_saved(self) -> None:
        """Tell the variables of comprehensions from those of the same name around them, as scopes of their own do.

        From Python 3.12 on a comprehension runs in the frame of its function: what is in the slots that it uses is
        put aside, and put back afterwards or by a handler. In between, a slot is another variable.
        """
        for i, name in enumerate(self.names):
            if name == "LOAD_FAST_AND_CLEAR":
                slot = self._args[i]
                self.keys[i] = (_SAVED, slot)
                handler = next((target for start, _, target, _ in self._tries if start > i), None)
                if handler is not None:
                    self._name_inside(slot, i, handler)

    def _name_inside(self, slot: int, saved: int, handler: int) -> None:
        """Name what is in *slot* while *handler* is there to put back what *saved* has put aside."""
        protected: set[int] = set()
        new = {handler}
        while new:  # also by what is itself protected so
            protected |= new
            new = {t for _, _, t, _ in self._tries if (self.handlers[t] or (-1,))[0] in protected} - protected
        inside = {k for k, found in enumerate(self.handlers) if found is not None and found[0] in protected} - {handler}
        ends = {handler}
        for k in inside:
            if self._args[k] == slot and self.names[k] in _opcodes().of_slots:
                self.keys[k] = (saved, slot)
            if self.names[k] not in _ENDS:
                ends |= {self.follow(to) for to in (k + 1, self._jumps[k] or k + 1)} - inside
        for end in ends:
            k = end
            while self.names[k] in _SHUFFLES and not (self.names[k] == "STORE_FAST" and self._args[k] == slot):
                k = self.follow(k + 1)
            if self.names[k] == "STORE_FAST":
                self.keys[k] = (_SAVED, slot)

    def _drop_closures(self) -> None:
        """Drop how variables are handed to the functions that capture them: in the order of their names."""
        names, args = self.names, self._args
        for i, name in enumerate(names):
            if name not in _opcodes().of_consts or not isinstance(self.code.co_consts[args[i]], CodeType):
                continue
            count = len(self.code.co_consts[args[i]].co_freevars)
            first = i - 1 - count
            if count and first >= 0 and names[i - 1] == "BUILD_TUPLE" and args[i - 1] == count:
                self.closures[i] = tuple(self.keys[first : i - 1])
                names[first:i] = [None] * (count + 1)

    def _drop_names_of_class(self) -> None:
        names = self.names
        for i, name in enumerate(names):
            is_of_class = name == "STORE_NAME" and self.code.co_names[self._args[i]] in _OF_CLASSES
            if is_of_class and names[i - 1] in ("LOAD_CONST", "LOAD_NAME", "LOAD_SMALL_INT"):
                names[i - 1] = names[i] = None

    def _thread(self) -> None:
        """Lead ``a and b or c`` of Python 3.11 past tests whose answer is known; its compiler does it on one line."""
        names, jumps = self.names, self._jumps
        for i in range(len(names)):
            while (name := names[i]) in ("JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP"):
                target = self.follow(jumps[i] or 0)
                there = names[target] or ""
                if not there.startswith(("JUMP_IF_", "POP_JUMP_")) or "NONE" in there:
                    break
                is_same = ("TRUE" in there) == (name == "JUMP_IF_TRUE_OR_POP")
                jumps[i] = jumps[target] if is_same else target + 1
                if there.startswith("POP_JUMP_") or not is_same:
                    names[i] = "POP_JUMP_IF_TRUE" if name == "JUMP_IF_TRUE_OR_POP" else "POP_JUMP_IF_FALSE"

    def _settle_stores(self) -> None:
        """Write down in one way what a run of stores does: the compiler swaps values or stores, by the line."""
        names = self.names
        begins = {self.follow(target) for target in self._jumps if target is not None}
        begins |= {self.follow(target) for _, _, target, _ in self._tries}
        run: list[int] = []
        for i, name in enumerate(names):
            if name is None:
                continue
            if run and (name not in _SHUFFLES or i in begins or self.handlers[i] != self.handlers[run[0]]):
                self._settle(run)
                run = []
            if name in _SHUFFLES:
                run.append(i)

    def _settle(self, run: list[int]) -> None:
        if len(run) == 1 and self.names[run[0]] != "SWAP":
            return
        stack: list[int] = []  # where each value was before, counted from the top; the top is the last
        deepest = 0
        goes: dict[int, Any] = {}  # the variable that each value is stored in, None if it is dropped
        last: dict[Any, int] = {}
        for i in run:
            name = self.names[i]
            need = self._args[i] if name == "SWAP" else 1
            while len(stack) < need:
                stack.insert(0, deepest)
                deepest += 1
            if name == "SWAP":
                stack[-1], stack[-need] = stack[-need], stack[-1]
                continue
            value = stack.pop()
            goes[value] = None
            if name == "STORE_FAST":
                variable = self.keys[i]
                if variable in last:
                    goes[last[variable]] = None
                goes[value] = variable
                last[variable] = value
        for i in run:
            self.names[i] = None
        if sorted(goes) == list(range(len(goes))) and stack == list(range(deepest - 1, len(goes) - 1, -1)):
            for i, value in zip(run, range(len(goes)), strict=False):
                self.names[i] = "POP_TOP" if goes[value] is None else "STORE_FAST"
                self.keys[i] = 0 if goes[value] is None else goes[value]
        else:
            left = {value: place for place, value in enumerate(reversed(stack))}
            self.names[run[0]] = "SHUFFLE"
            self.keys[run[0]] = tuple((left.get(value), goes.get(value)) for value in range(deepest))

    def _link(self) -> None:
        names, jumps = self.names, self._jumps
        for i, name in enumerate(names):
            if name is None or name in _JUMPS:
                continue
            handler = self.handlers[i]
            if handler is not None:
                self.handlers[i] = (self.follow(handler[0]), handler[1])
            target = jumps[i]
            if name in _ENDS:
                continue
            if target is None:
                self.next[i] = (self.follow(i + 1),)
                continue
            pair = (self.follow(i + 1), self.follow(target))
            if name.startswith("POP_JUMP_"):  # forwards, backwards, if true, if false: as the layout of blocks wants it
                names[i] = "IF NONE" if name.endswith("NONE") else "IF TRUE"
                if not name.endswith(("NOT_NONE", "FALSE")):
                    pair = pair[::-1]
            self.next[i] = pair

    def _merge(self) -> list[int]:
        """Find the instructions that do the same from there on: the compiler copies short ends, by the line."""
        names, keys, handlers = self.names, self.keys, self.handlers
        alike = [_merged_key(key) for key in keys]
        self.keys = alike
        real = [i for i in range(len(names) - 1, -1, -1) if names[i] is not None and names[i] not in _JUMPS]
        same = list(range(len(names)))
        is_new = True
        while is_new:
            is_new = False
            seen: dict[Any, int] = {}
            for i in real:
                handler = handlers[i]
                does = (
                    names[i], alike[i], handler and (same[handler[0]], handler[1]), *[same[k] for k in self.next[i]],
                )  # fmt: skip
                found = seen.setdefault(does, i)
                if same[i] != found:
                    same[i] = found
                    is_new = True
        return same


def _merged_key(key: Any) -> Any:
    """Return *key* with one word for everything that was put aside, whatever slot it was in."""
    if type(key) is not tuple:
        return key
    if key[0] == _SAVED:
        return _SAVED
    if type(key[0]) is tuple:
        return tuple([(left, _merged_key(variable)) for left, variable in key])
    return key


def _read_tries(code: CodeType) -> Iterator[tuple[int, int, int, int]]:
    """Yield what the exception table says: start, end and handler, in units of two bytes, and flags."""
    data = iter(code.co_exceptiontable)

    def read(byte: int) -> int:
        value = byte & 63
        while byte & 64:
            byte = next(data)
            value = value << 6 | byte & 63
        return value

    for byte in data:
        start = read(byte)
        yield start, start + read(next(data)), read(next(data)), read(next(data))


class _Code:
    """What one code object does, with those nested in it.

    Attributes:
        digest: Equal for code that does the same.
        chains: The global names that it looks up, each with the attributes that it takes of it at once.
        changed: The chains, of global names and of ``free ...`` names, whose end it changes if that is a container.
        imports: The modules that it imports: how many dots, the name, and the names that are taken of it, or None.
    """

    __slots__ = ("_count", "_numbers", "_out", "chains", "changed", "digest", "imports")

    def __init__(self, code: CodeType) -> None:
        self.changed: set[tuple[str, ...]] = set()
        self._out: list[Any] = []
        self._numbers: dict[Any, int] = {}
        """A number for each variable, by first appearance."""
        self._count = 0
        self.chains: dict[tuple[str, ...], None] = {}
        self.imports: dict[tuple[int, str, tuple[str, ...] | None], None] = {}
        # What is captured from outside is known by its name: that is how it counts.
        self._write(code, [f"free {name}" for name in code.co_freevars])
        self.digest = digest(self._out)

    def _write(self, code: CodeType, free: Sequence[Any]) -> None:
        """Write down *code*, whose free variables are the variables *free*."""
        flow = _Flow(code)
        out = self._out
        self._count += 1
        serial = self._count
        parameters = code.co_argcount + code.co_kwonlyargcount + (code.co_flags & (_VARARGS | _VARKEYWORDS)).bit_count()
        out += (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _KINDS)
        out += code.co_varnames[:parameters]
        cells = [name for name in code.co_cellvars if name not in code.co_varnames]
        first_free = len(code.co_varnames) + len(cells)

        def variable(key: Any) -> Any:
            is_free = type(key) is int and first_free <= key < first_free + len(free)
            return free[key - first_free] if is_free else (serial, key)

        def number(key: Any) -> Any:
            key = key if key == _SAVED else variable(key)
            return key if type(key) is str else self._numbers.setdefault(key, len(self._numbers))

        for slot in range(parameters):
            number(slot)
        stored: set[str] = set()
        places: dict[int, int] = {}
        handlers: dict[int, int] = {}
        now: Handler = None
        waiting = [flow.follow(0)]
        waiting_handlers: deque[int] = deque()
        while waiting or waiting_handlers:
            if waiting:
                i = flow.same[waiting.pop()]
            else:
                out.append("except")
                i = flow.same[waiting_handlers.popleft()]
            while i not in places:
                places[i] = len(places)
                handler = flow.handlers[i]
                if handler is not None:
                    handler = flow.same[handler[0]], handler[1]
                if handler != now:
                    now = handler
                    if handler is None:
                        out.append("no try")
                    else:
                        if handler[0] not in handlers:
                            handlers[handler[0]] = len(handlers)
                            waiting_handlers.append(handler[0])
                        out += ("try", handlers[handler[0]], handler[1])
                self._write_instruction(flow, i, number, variable, stored)
                following = flow.next[i]
                if not following:
                    break
                waiting += following[1:]
                i = flow.same[following[0]]
            else:
                out += ("go to", places[i])
        out.append("end")

    def _write_instruction(
        self, flow: _Flow, i: int, number: Callable[[Any], Any], variable: Callable[[Any], Any], stored: set[str]
    ) -> None:
        opcodes, code, out = _opcodes(), flow.code, self._out
        name, key = flow.names[i] or "", flow.keys[i]
        out.append(name)
        if name in opcodes.of_consts:
            value = code.co_consts[key]
            if isinstance(value, CodeType):
                self._write(value, [variable(each) for each in flow.closures.get(i, ())])
            elif type(value) in _SCALARS:
                out.append(value)
            else:
                what = [value.start, value.stop, value.step] if type(value) is slice else value
                out += ("a value", digest(what))
        elif name in opcodes.of_names:
            text = code.co_names[key >> opcodes.flags.get(name, 0)]
            out.append(text)
            if name == "STORE_NAME":
                stored.add(text)
            elif name in _LOADS_GLOBAL and text not in stored:
                self._note_chain(self.chains, (text, *self._attributes(flow, i)))
            elif name == "IMPORT_NAME":
                dots, names = flow.keys[i - 2], flow.keys[i - 1]
                level = code.co_consts[dots] if flow.names[i - 2] in opcodes.of_consts else dots
                self.imports[level, text, code.co_consts[names]] = None
        elif name in opcodes.of_slots:
            out.append(number(key))
            if name == "LOAD_DEREF" and type(free := variable(key)) is str:
                self._note_chain({}, (free, *self._attributes(flow, i)))
        elif name == "SHUFFLE":
            for left, stores in key:
                out += (left, None if stores is None else number(stores))
        else:
            out.append(key)

    def _note_chain(self, chains: dict[tuple[str, ...], None], chain: tuple[str, ...]) -> None:
        if chain[-1] in _CHANGES and len(chain) > 1:
            self.changed.add(chain[:-1])
        chains[chain[:-1] if chain[-1] == "[]=" else chain] = None

    def _attributes(self, flow: _Flow, i: int) -> list[str]:
        """Return the attributes that are taken, one of the other, of what *i* loads; "[]=" if an item of it is set."""
        opcodes = _opcodes()
        found = []
        while flow.next[i]:
            i = flow.next[i][0]
            name = flow.names[i] or ""
            if name not in _LOADS_ATTRIBUTE:
                break
            found.append(flow.code.co_names[flow.keys[i] >> opcodes.flags.get(name, 0)])
        after = flow.next[i][0] if flow.next[i] else i
        name, key = flow.names[after] or "", flow.keys[after]
        sets = name in ("STORE_SUBSCR", "DELETE_SUBSCR") or (name == "COPY" and key == 2)  # x[k] = v, del, x[k] += v
        return [*found, "[]="] if sets else found
