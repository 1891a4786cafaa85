"""Say what a function really runs, in a few hashes, so that a stored result is told from a stale one.

Knows what was found behind a function (:mod:`.reach`). Does not know graphs, inputs or where results are kept.

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
"""

from __future__ import annotations

import sys

from .digest import digest
from .reach import Cache, Helper, Reader, home_of, module_of, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Key = tuple[str, str, str]
    Piece = Any
    """What one thing counts as: text, a helper, or a list of these."""

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
        self._readers: dict[frozenset[str], Reader] = {}
        self._cache = Cache()

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
            home = home_of(func)
            reader = self._readers.get(home)
            if reader is None:
                reader = self._readers[home] = Reader(home, self._cache)
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


# ---------------------------------------------------------------- the words


def _written(helpers: list[Helper]) -> tuple[dict[str, str], list[str]]:
    """Return the parts that *helpers* are, the first of which is what runs, and what is not watched."""
    first = helpers[0]
    own_module = module_of(first.value)
    labels = {first: "", **_labels(helpers[1:], own_module)}
    globals_: dict[str, set[str]] = {}
    for helper in helpers:
        for kind, module, name in helper.values:
            if kind == "global":
                globals_.setdefault(name, set()).add(module)

    def words(key: Key, helper: Helper) -> str:
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


def _labels(helpers: list[Helper], own_module: str) -> dict[Helper, str]:
    """Return what each of *helpers* is called: its name, with the module if others have it too and that is another."""
    named: dict[str, list[Helper]] = {}
    for helper in helpers:
        named.setdefault(helper.name, []).append(helper)
    labels: dict[Helper, str] = {}
    taken: set[str] = set()
    for name, same in named.items():
        for helper in same:
            module = module_of(helper.value)
            label = full = name if module == own_module or len(same) == 1 else f"{module}.{name}"
            number = 1
            while label in taken:
                number += 1
                label = f"{full} ({number})"
            taken.add(label)
            labels[helper] = label
    return labels


def _short(piece: Piece, labels: dict[Helper, str]) -> str:
    return digest(plain(piece, labels))[:16]
