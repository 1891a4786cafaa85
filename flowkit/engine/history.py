"""Say whether what an earlier run has stored of a task still fits.

Knows records, fingerprints and the graph. Does not know the run that asks, or where records are kept.

A stored result is used again if what would run is what ran (the fingerprint, inputs included), and if it was made from
what is upstream now. The second is told by tokens, one for each task upstream:

======================== ==========================================================================
number                   it succeeded, and this is the number of its record
``"skipped"``            it was skipped
``"~..."``               it succeeded and is ``persist=False``: a hash of its fingerprint and its own tokens
None                     anything else, which fits nothing
======================== ==========================================================================

A task that runs again gets a new number, so everything below it runs again, too; what failed fits nothing, so a
teardown runs again. It also does below a task that is not kept, which has made anew what is to be torn down.
"""

from __future__ import annotations

from ..exceptions import StateSerializationError
from ..state.digest import digest
from ..state.fingerprint import Fingerprinter, changes
from ..state.store import FAILED, ITEMS, SKIPPED, SUCCEEDED
from ..states import ACCEPT_FAILURE
from .binding import INPUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ..state.store import Record, View
    from .program import Program

    Token = int | str | None

_MOST_BYTES = 1_000_000
"""Inputs larger than this count by their type alone."""


class Codes:
    """The fingerprints of a program's tasks, as they are now.

    Args:
        program: The tasks.
        inputs: The inputs of the run.

    Attributes:
        of: The fingerprint of each id.
        parts: What each of them is made of.
        unwatched: What does not count, in words.
    """

    __slots__ = ("of", "parts", "unwatched")

    def __init__(self, program: Program, inputs: Mapping[str, Any]) -> None:
        printer = Fingerprinter()
        self.of: list[str] = []
        self.parts: dict[str, Mapping[str, str]] = {}
        self.unwatched: dict[str, None] = {}
        digests: dict[str, str] = {}
        for i in range(len(program)):
            task = program.tasks[i]
            found = printer.of(task.func, task.options.when, task.options.version)
            code = found.digest
            self.unwatched.update(dict.fromkeys(f"task {task.name!r}: {what}" for what in found.unwatched))
            own: dict[str, str] = {}
            binding, items = program.bindings.get(i), program.mapped.get(i)
            names = set(binding.inputs) if binding is not None else set()
            if items is not None and items.kind == INPUT:
                names.add(items.key)
            for name in sorted(names):
                if name not in digests:
                    digests[name] = self._digest(name, inputs[name])
                own[f"input {name!r}"] = digests[name]
            if task.mapped_over is not None:
                own["mapped over"] = task.mapped_over
            if task.order_only:
                own["order only"] = digest(sorted(before.name for before in task.order_only))
            if own:
                code = digest([code, own])
            self.of.append(code)
            if code not in self.parts:
                self.parts[code] = {**found.parts, **own}

    def _digest(self, name: str, value: Any) -> str:
        try:
            return digest(value, _MOST_BYTES)
        except StateSerializationError as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            self.unwatched[f"input {name!r}: only its type {kind} counts: {error}"] = None
            return f"type {kind}"


class History:
    """What earlier runs have stored of a program's tasks.

    Args:
        program: The tasks.
        codes: Their fingerprints.
        view: The records.
    """

    __slots__ = ("_codes", "_program", "_view")

    def __init__(self, program: Program, codes: Codes, view: View) -> None:
        self._program = program
        self._codes = codes
        self._view = view

    def judge(self, i: int, tokens: Sequence[Token]) -> tuple[Record | None, str]:
        """Return the record of task *i* that fits *tokens*, and why; without one, None and why *i* runs.

        Also a record of a skip fits.
        """
        record = self._view.tasks.get(self._program.names[i])
        return self._fit(i, record, tokens)

    def judge_item(self, i: int, number: int, tokens: Sequence[Token]) -> tuple[Record | None, str]:
        """The same for the item *number* of the mapped task *i*."""
        record = self._view.items.get(self._program.names[i], {}).get(number)
        return self._fit(i, record, tokens)

    def item_tokens(self, i: int, tokens: Sequence[Token]) -> list[Token]:
        """Return the tokens of those items of the mapped task *i* that have a record that fits, in their order.

        What the items are is not known here: where that counts, it is taken to be what it was.
        """
        found: list[Token] = []
        for _, record in sorted(self._view.items.get(self._program.names[i], {}).items()):
            if self._fit(i, record, [*tokens, *record.upstream[len(tokens) :]])[0] is not None:
                found.append(SKIPPED if record.state == SKIPPED else record.number)
        return found

    def _fit(self, i: int, record: Record | None, tokens: Sequence[Token]) -> tuple[Record | None, str]:
        if record is None:
            return None, "never finished"
        if not record.code:  # somebody else has written it
            is_done = record.state == SUCCEEDED
            return (record, f"restored from {record.origin}") if is_done else (None, f"stands as {record.state}")
        code = self._codes.of[i]
        if record.code != code:
            before = self._view.codes.get(record.code)
            what = [] if before is None else changes(before, self._codes.parts[code])
            return None, ", ".join(what) or "its code changed"
        if record.upstream != tokens or None in tokens:
            return None, self._why_not(i, record.upstream, tokens)
        if self._program.rules and self._program.rules[i] in ACCEPT_FAILURE:  # a teardown, of what is there again
            again = next((u for u, token in enumerate(tokens) if str(token).startswith("~")), -1)
            if again >= 0:
                return None, f"upstream {self._program.names[self._program.graph.upstream[i][again]]!r} runs again"
        if record.state == FAILED:
            return None, f"failed before: {record.error}"
        if record.state == SKIPPED:
            return record, "skipped before"
        return record, f"restored from {record.origin}"

    def _why_not(self, i: int, before: Sequence[Token], now: Sequence[Token]) -> str:
        upstream = self._program.graph.upstream[i]
        if len(before) != len(now):
            return "its upstream tasks changed"
        for u, old, new in zip(upstream, before, now, strict=False):
            if new is None:
                return f"upstream {self._program.names[u]!r} runs again"
            if old != new and SKIPPED in (old, new):
                became = "is skipped, and was not before" if new == SKIPPED else "is not skipped, as it was before"
                return f"upstream {self._program.names[u]!r} {became}"
        if sorted(map(str, before)) == sorted(map(str, now)):
            return "the order of its upstream tasks changed"
        for u, old, new in zip(upstream, before, now, strict=False):
            if old != new:
                return f"upstream {self._program.names[u]!r} has another result than the one that it was made from"
        return "its items changed"


def blend(name: str, code: str, tokens: Sequence[Token]) -> Token:
    """Return the token of task *name*, which is not kept, with fingerprint *code* and *tokens* upstream."""
    return None if None in tokens else f"~{digest([name, code, list(tokens)])[:16]}"


def blend_items(tokens: list[Token]) -> str:
    """Return what is kept as the value of a mapped task whose items have *tokens*: how many, and what tells them apart.

    >>> blend_items([1, 2]) == blend_items([1, 3])
    False
    """
    return f'{ITEMS}[{len(tokens)},"{digest(tokens)[:16]}"]}}'
