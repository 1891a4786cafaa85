"""The contract between runs and stores, which every store is held to by one test suite.

Knows what is kept of a task. Does not know tasks, runs or files.

A store keeps *scopes*, one for each DAG name. A run opens its scope, which nobody else has meanwhile, reads what
earlier runs have left, appends a record for each task that ends, and closes it. On return from ``append`` the record
survives whatever ends the process.

Numbers tell records of a scope apart. A record names the numbers of what was upstream of it, so that a result which was
made from another one than that which is there now is not taken for good; numbers grow, and are not used again as long
as a record names them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache

from ..exceptions import OptionError, shown
from ..retry import check_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any, Protocol

    from .codec import Codec

    class Scope(Protocol):
        """What is kept of one DAG, while one run has it.

        Attributes:
            tasks: The latest record of each task.
            items: The latest record of each item of a mapped task, by task and number.
            codes: What each fingerprint is made of.
            last_number: The largest number of a record there is or was.
        """

        @property
        def tasks(self) -> Mapping[str, Record]: ...
        @property
        def items(self) -> Mapping[str, Mapping[int, Record]]: ...
        @property
        def codes(self) -> Mapping[str, Mapping[str, str]]: ...
        @property
        def last_number(self) -> int: ...

        def append(self, task: str, record: Record, item: int = -1) -> None:
            """Keep *record* of *task*, or of one of its items. From any thread.

            Raises:
                StateWriteError: The disk refused it.
            """

        def add_code(self, code: str, parts: Mapping[str, str]) -> None:
            """Keep what the fingerprint *code* is made of, before a record names it."""

        def close(self, state: str, started_at: float, duration: float) -> None:
            """End the run, which ended in *state*, and let others have the scope. Also if the disk refuses it.

            Raises:
                StateWriteError: The disk refused it; what was appended is kept.
            """

    class View(Protocol):
        """What is kept of one DAG, as it was at some moment."""

        @property
        def tasks(self) -> Mapping[str, Record]: ...
        @property
        def items(self) -> Mapping[str, Mapping[int, Record]]: ...
        @property
        def codes(self) -> Mapping[str, Mapping[str, str]]: ...

    class Store(Protocol):
        """Where runs keep their results.

        Attributes:
            is_strict: Whether a result that cannot be kept is an error.
            lock_timeout: How many seconds a run waits for another one that has the same scope.
        """

        is_strict: bool
        lock_timeout: float

        def codec(self, modules: Collection[str]) -> Codec:
            """Return what turns values into text, for tasks of *modules*."""

        def open_scope(self, name: str, run_id: str) -> Scope:
            """Return what is kept of the DAG *name*, for the run *run_id* alone; without waiting for another run.

            Raises:
                StateLockedError: Another run has it.
                StateWriteError: The disk refused it.
            """

        def read_scope(self, name: str) -> View:
            """Return what is kept of the DAG *name* without having it."""


SUCCEEDED, FAILED, SKIPPED = "COMPLETED", "FAILED", "SKIPPED"
"""What stands in records. Others can be written by hand, and mean that the task has not finished."""
ITEMS = '{"$items":'
"""How the value of a mapped task begins, whose results are those of its items; no encoded value does."""
_KNOWN = frozenset({SUCCEEDED, FAILED, SKIPPED})
_read_json = json.JSONDecoder().raw_decode


class Record:
    """How one task ended in one run.

    Attributes:
        number: Tells it from the other records of its scope; later ones have larger numbers.
        state: "COMPLETED", "FAILED" or "SKIPPED"; any word in one that was written by hand.
        code: The fingerprint of what ran; empty if it is not known, so that the name alone decides.
        upstream: For each task upstream, in wiring order, the number of its record, or a word.
        run_id: The run.
        ended_at: Seconds since the epoch.
        duration: Seconds, over all attempts.
        attempts: How many there were.
        value: The encoded result; for a mapped task how many items, and a hash of which; empty without a result.
        error: What it failed with, in words; or why it was skipped.
        metadata: What somebody has written by hand with it, encoded; empty if nobody has.
    """

    __slots__ = (
        "attempts", "code", "duration", "ended_at", "error", "metadata", "number", "run_id", "state", "upstream",
        "value",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        state: str,
        code: str,
        upstream: list[Any],
        run_id: str,
        ended_at: float,
        duration: float,
        attempts: int,
        value: str = "",
        error: str = "",
        metadata: str = "",
    ) -> None:
        self.number = number
        self.state = state
        self.code = code
        self.upstream = upstream
        self.run_id = run_id
        self.ended_at = ended_at
        self.duration = duration
        self.attempts = attempts
        self.value = value
        self.error = error
        self.metadata = metadata

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Record {self.number}: {self.state} in run {self.run_id}>"

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"run {self.run_id}" if self.run_id else "what was saved by its name"

    def to_json(self) -> str:
        """Return the record as one line of JSON, in which the result stands last."""
        upstream = ",".join([str(token) if type(token) is int else json.dumps(token) for token in self.upstream])
        error = json.dumps(self.error) if self.error else "null"
        state = f'"{self.state}"' if self.state in _KNOWN else json.dumps(self.state)
        text = (
            f'{{"id":{self.number},"status":{state},"error":{error},"timestamp":"{iso(self.ended_at)}",'
            f'"duration":{self.duration:.6f},"attempts":{self.attempts},"run":"{self.run_id}","code":"{self.code}",'
            f'"upstream":[{upstream}]'
        )
        if self.metadata:
            text += f',"metadata":{self.metadata}'
        return f'{text},"result":{self.value or "null"}}}'

    @classmethod
    def from_json(cls, text: str) -> Record | None:
        """Return the record that *text* from :meth:`to_json` stands for; None if it is no such text."""
        try:
            return cls._read(text)
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def _read(cls, text: str) -> Record:
        # In a string the quotes would have backslashes, so the first of these is the member and nothing else.
        end = text.index(',"result":')
        start = text.find(',"metadata":', 0, end)
        metadata = ""
        if start >= 0:  # it may hold anything
            first = start + len(',"metadata":')
            end = _read_json(text, first)[1]
            metadata = text[first:end]
        read = json.loads(text[: end if start < 0 else start] + "}")
        value = text[end + len(',"result":') : -1]
        if value == "null" and read["status"] != SUCCEEDED:
            value = ""
        return cls(
            read["id"], read["status"], read["code"], read["upstream"], read["run"],
            datetime.fromisoformat(read["timestamp"]).timestamp(), read["duration"], read["attempts"], value,
            read["error"] or "", metadata,
        )  # fmt: skip


def iso(seconds: float) -> str:
    """Return *seconds* since the epoch as ISO 8601, in UTC."""
    whole, micros = divmod(round(max(0.0, seconds) * 1e6), 1_000_000)
    return f"{_iso_second(whole)}.{micros:06d}+00:00"


@lru_cache(8)
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


def check_options(where: str, durability: str, serializer: str, *, strict: bool, lock_timeout: float) -> None:
    """Raise OptionError if one of the options that all stores have is out of range."""
    for name, value, known in (
        ("durability", durability, ("process", "power")),
        ("serializer", serializer, ("json", "pickle")),
    ):
        if value not in known:
            raise OptionError(f"{where}: {name}={shown(value)} must be one of {', '.join(map(repr, known))}.")
    if not isinstance(strict, bool):
        raise OptionError(f"{where}: strict={shown(strict)} must be True or False.")
    check_seconds(where, "lock_timeout", lock_timeout)
