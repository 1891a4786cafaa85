"""Find what a function would run: the helpers, classes and values that its code names, all the way down.

Knows functions, closures and modules. Does not know bytecode but by what :class:`Code` says of it, nor the words that
what is found is told in.

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
from .bytecode import VARARGS, VARKEYWORDS, Code
from .digest import a_value_of, attributes_of, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    Key = tuple[str, str, str]
    Piece = Any
    """What one thing counts as: text, a helper, or a list of these."""

_MOST_BYTES = 1_000_000
"""Values larger than this count by their type alone."""
_OF_MODULES = frozenset(
    {"__cached__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"}
)
"""Globals that say where a module is."""


# ---------------------------------------------------------------- whose function it is


def home_of(root: Any) -> frozenset[str]:
    """Return the packages whose functions count by their code when *root* is what runs.

    It is that of *root*, and those of what *root* wraps and closes over, because not every decorator says what it
    wraps. Where some of that is the user's own and some was installed, the first alone is home: else a decorator out
    of a library would make that library count. Nothing of Python itself is home. A module that is in no package, such
    as a script, is at home in its folder.

    Returns:
        Names of packages, and folders, which end with a separator.
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
            module = module_of(value if _is(value, _NAMED) else type(value))
            place = _place_of(module)
            wrapped = _wrapped_by(value)
            if place != "installed" or takes_anything or not packages["installed"]:
                packages[place] |= _packages(module, value)
            if wrapped is None and _is(value, FunctionType):
                takes_anything |= bool(value.__code__.co_flags & (VARARGS | VARKEYWORDS))
            todo += [each for each in (wrapped, *_cells(value).values()) if _is(each, (FunctionType, MethodType))]
    return frozenset(packages["own"] or packages["installed"])


def _packages(module: str, value: Any) -> set[str]:
    found = {module.partition(".")[0]}
    package = getattr(value, "__globals__", {}).get("__package__") if module == "__main__" else ""
    if isinstance(package, str) and package:  # python -m package.module
        found.add(package.partition(".")[0])
    elif "." not in module and not hasattr(sys.modules.get(module), "__path__"):
        file = _file_of(module) if _place_of(module) == "own" else ""
        if file:
            found.add(os.path.join(os.path.dirname(file), ""))
    return found


def _file_of(module: str) -> str:
    """Return the file of *module*, absolute; empty if it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return os.path.abspath(file) if isinstance(file, str) else ""


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


def module_of(value: Any) -> str:
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


class Helper:
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
        self.helpers: dict[Helper, None] = {}
        self.types: list[tuple[str, Key | None, str]] = []
        self.sentences: list[str] = []


class Cache:
    """What is the same whoever asks. Whatever is known by its id is kept alive, so that no other has it."""

    __slots__ = ("_codes", "_kept", "_values")

    def __init__(self) -> None:
        self._kept: dict[int, object] = {}
        self._codes: dict[int, Code] = {}
        self._values: dict[int, str | None] = {}

    def keep(self, value: object) -> int:
        """Return the id of *value*, which is its own from now on."""
        self._kept[id(value)] = value
        return id(value)

    def code(self, code: CodeType) -> Code:
        """Return what *code* does."""
        found = self._codes.get(id(code))
        if found is None:
            found = self._codes[self.keep(code)] = Code(code)
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


class Reader:
    """Reads functions, classes and values, as those of the packages *home* see them."""

    __slots__ = ("_cache", "_helper", "_helpers", "_home", "_inside", "_known")

    def __init__(self, home: frozenset[str], cache: Cache) -> None:
        self._home = home
        self._known: dict[str, bool] = {}
        """Whether a module is at home."""
        self._cache = cache
        self._helpers: dict[int, Helper] = {}
        self._helper = Helper(None)
        """The one that is being read."""
        self._inside: set[int] = set()
        """Ids of what is being looked into, for it may contain itself."""

    def reach(self, func: Any) -> list[Helper]:
        """Return *func* and all that it reaches, the nearest first."""
        while _is(func, Task):
            func = func.func
        first = self._find(func) if _is(func, _NAMED) else Helper(func)
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

    def _find(self, value: Any) -> Helper:
        found = self._helpers.get(id(value))
        if found is None:
            found = self._helpers[self._cache.keep(value)] = Helper(value)
        return found

    # ------------------------------------------------------------ one of them

    def _read(self, value: Any) -> None:
        helper = self._helper
        if _is(value, FunctionType):
            self._read_function(value)
        elif _is(value, type) and value is helper.value and self._is_home(module_of(value)):
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
        elif self._is_home(module_of(type(value))):
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
        if _is(value, type) or not self._is_home(module_of(kind)) or self._cache.digest(value) is not None:
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
        if _is(wrapped, FunctionType) and self._is_home(module_of(wrapped)) and id(wrapped) not in self._inside:
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
                if _is(function, FunctionType) and self._is_home(module_of(function)):
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
            return self._helper_of(value) if self._is_home(module_of(value)) else self._foreign_piece(value)
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
        is_home = self._is_home(module_of(kind))
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

    def _helper_of(self, value: Any) -> Helper:
        found = self._find(value)
        self._helper.helpers[found] = None
        return found

    def _is_home(self, module: Any) -> bool:
        if not isinstance(module, str):
            return False
        known = self._known.get(module)
        if known is None:
            file = _file_of(module) if _place_of(module) == "own" else ""
            in_folder = any(file.startswith(place) for place in self._home if place.endswith(os.sep))
            known = self._known[module] = module.partition(".")[0] in self._home or in_folder
        return known

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
                if self._is_home(module_of(value)):
                    return True
                todo += _functions_in(value)
        return False


# ---------------------------------------------------------------- values and their names

_CHANGEABLE = (list, dict, set, bytearray, deque, Counter, OrderedDict, defaultdict)
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
        return f"{module_of(value)}.{value.__qualname__}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if _is(value, (GenericAlias, UnionType)) or type(value).__module__ == "typing":
        return f"{kind} {value!r}"
    if _is(value, ModuleType):
        return f"module {value.__name__}"
    return f"{kind} {getattr(value, '__module__', None)}.{_name_of(value) or value.name}"


def _as_text(piece: Piece) -> str:
    return str(plain(piece, {}))


def plain(piece: Piece, labels: dict[Helper, str]) -> Any:
    """Return *piece* with a name for each helper in it."""
    if isinstance(piece, list):
        return [plain(each, labels) for each in piece]
    if isinstance(piece, Helper):
        return ["helper", labels.get(piece, f"{module_of(piece.value)}.{piece.name}")]
    return piece
