"""Run a mapped task as one attempt for each item of what it is mapped over.

Knows the columns of one run, to which it adds ids: an item is an id like any other, with its own attempts, timeout,
limit and record, below a task that ends when all of its items have. Does not know workers.
"""

from __future__ import annotations

from ..exceptions import TaskExecutionError, plural
from ..states import CANCELLED, FAILED, NONE_FAILED, PENDING, SKIPPED, SUCCEEDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..results import RunRecord
    from .program import Program
    from .scheduler import Scheduler


class Items:
    """The items of the mapped tasks of one run. Called under the run's lock.

    Args:
        program: Its columns get the items' calls; the run's own copy.
        record: Its columns get the items' record; its names are the program's.
        scheduler: Counts the items as tasks without upstream.
    """

    __slots__ = ("_left", "_parents", "_program", "_record", "_scheduler")

    def __init__(self, program: Program, record: RunRecord, scheduler: Scheduler) -> None:
        self._program = program
        self._record = record
        self._scheduler = scheduler
        self._parents: list[int] = []
        """The mapped task of each item, in order of ids."""
        self._left: dict[int, int] = {}
        """How many items of a mapped task have not ended."""

    def add(self, i: int, values: list[Any]) -> range:
        """Make an id for each of *values*, which the mapped task *i* is called with; return the ids."""
        record, count = self._record, len(values)
        ids = range(len(record.state), len(record.state) + count)
        self._parents += [i] * count
        self._left[i] = count
        self._scheduler.extend(count, self._program.rules[i] if self._program.rules else NONE_FAILED)
        self._program.add_items(i, ids)
        record.add_items(i, ids, values)
        return ids

    def task_of(self, i: int) -> int:
        """Return the task that *i* belongs to: itself, unless it is an item."""
        return i if i < self._record.count else self._parents[i - self._record.count]

    def note_end(self, i: int) -> int:
        """Note that *i* is final; return the mapped task whose last item that was, -1 if there is none."""
        if i < self._record.count:
            return -1
        parent = self._parents[i - self._record.count]
        self._left[parent] -= 1
        return -1 if self._left[parent] else parent

    def unfinished(self) -> list[int]:
        """Return the items that are not final."""
        state = self._record.state
        return [i for i in range(self._record.count, len(state)) if state[i] == PENDING]

    def outcome(self, i: int) -> tuple[int, list[Any] | None, BaseException | None]:
        """Return the state in which the mapped task *i* ends, its result, and its error."""
        record = self._record
        ids = record.items[i]
        states = record.state[ids.start : ids.stop]
        failed = [k for k in ids if record.state[k] == FAILED] if FAILED in states else []
        if failed:
            failures = [_failure(record, k) for k in failed]
            first = f"{record.names[failed[0]]!r}: {record.text_of_error(failed[0])}"
            rest = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            text = f"{len(failed)} of {plural(len(ids), 'item')} failed: {first}{rest}"
            record.texts[i] = text
            return FAILED, None, ExceptionGroup(text, failures)
        if states.count(SUCCEEDED) + states.count(SKIPPED) < len(states):
            return CANCELLED, None, None
        values = record.values[ids.start : ids.stop]
        if SKIPPED in states:
            values = [value if state == SUCCEEDED else None for value, state in zip(values, states, strict=True)]
        return SUCCEEDED, values, None


def _failure(record: RunRecord, i: int) -> TaskExecutionError:
    failure = TaskExecutionError(record.names[i], record.attempts_of(i), record.duration_of(i), record.reason_of(i))
    failure.__cause__ = record.errors[i]
    return failure
