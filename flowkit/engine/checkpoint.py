"""Keep the results of one run as they come, and give back those of earlier runs that still fit.

Knows a store, and what the run tells it. Does not know when a task may start. See :mod:`.history` for what fits.

What is kept is kept before anybody is told: :meth:`Checkpoint.keep` returns when the record is durable, and only then
does the run announce the success. A record of an attempt that was given up meanwhile (timed out, say) may have been
written; the record of what became of the task then comes after it.
"""

from __future__ import annotations

import itertools
import threading
import warnings

from ..exceptions import StateSerializationError
from ..state import store as kept
from ..state.digest import digest
from ..state.store import Record
from ..states import FAILED, SKIPPED, SUCCEEDED
from .history import Codes, History, blend, blend_items

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..results import RunRecord
    from ..state.store import Scope, Store
    from .history import Token
    from .program import Program


class Checkpoint:
    """What a store keeps of one run.

    Args:
        store: Where.
        program: The tasks; for a run with mapped tasks the run's own copy.
        inputs: The run's inputs.
        record: The run's columns.
        now: The run's clock.
        resumes: Whether results of earlier runs are used.

    Raises:
        StateLockedError: Another run has what is kept of this DAG.
        StateError: The store cannot be used.
    """

    def __init__(
        self,
        store: Store,
        program: Program,
        inputs: Mapping[str, Any],
        record: RunRecord,
        now: Callable[[], float],
        *,
        resumes: bool,
    ) -> None:
        self._program = program
        self._record = record
        self._now = now
        self._is_strict = store.is_strict
        self._codes = Codes(program, inputs)
        self._codec = store.codec({module_of(task.func) for task in program.tasks})
        self._lock = threading.Lock()
        """Held from the look at whether an attempt is still the current one to the end of writing its record down."""
        self._tokens: list[Token] = [None] * len(program)
        self._item_tokens: dict[int, Token] = {}
        self._item_digests: dict[int, str] = {}
        self._has_warned: set[str] = set()
        self._to_note: list[int] = []
        """Ids that ended without a result, and are not written down yet."""
        self._scope: Scope = store.open_scope(program.name, record.run_id)
        try:
            self._numbers = itertools.count(self._scope.last_number + 1)
            self._history = History(program, self._codes, self._scope) if resumes else None
            for code, parts in self._codes.parts.items():
                self._scope.add_code(code, parts)
        except BaseException:
            self._scope.close("failed", 0.0, 0.0)
            raise

    # ------------------------------------------------------------ giving back

    def find(self, i: int) -> Record | None:
        """Return the record of *i*, which could start now, if its result can be used again. Under the run's lock."""
        if self._history is None:
            return None
        task, number = self._place(i)
        if not self._program.tasks[task].options.persist:
            return None
        tokens = self._tokens_of(i)
        judge = self._history.judge(i, tokens) if number < 0 else self._history.judge_item(task, number, tokens)
        found, _ = judge
        if found is None or found.state != kept.SUCCEEDED or not found.value:
            return None
        return found

    def decode(self, record: Record) -> Any:
        """Return the result in *record*.

        Raises:
            StateError: It cannot be read here; then the task runs.
        """
        return self._codec.decode(record.value)

    def take(self, i: int, record: Record) -> None:
        """Note that the result of *i* is the one in *record*."""
        if i < self._record.count:
            self._tokens[i] = record.number
        else:
            self._item_tokens[i] = record.number

    # ------------------------------------------------------------ keeping

    def keep(self, i: int, value: Any, is_late: Callable[[], bool]) -> None:
        """Keep *value*, the result of *i*; on return it is durable. Not under the run's lock.

        Args:
            is_late: Says whether the attempt that gave it was given up; then nothing is kept.

        Raises:
            StateWriteError: The disk refused it.
            StateSerializationError: The store cannot keep it, and is strict.
        """
        task, number = self._place(i)
        name, text = self._program.names[task], ""
        persists = self._program.tasks[task].options.persist
        if persists:
            try:
                text = self._codec.encode(value)
            except StateSerializationError as error:
                self._report(task, error)
        with self._lock:
            if is_late():
                return
            token = next(self._numbers) if persists else blend(name, self._codes.of[task], self._tokens_of(i))
            if text:
                self._scope.append(name, self._new_record(i, token, kept.SUCCEEDED, text), number)
            if number < 0:
                self._tokens[i] = token
            else:
                self._item_tokens[i] = token

    def keep_mapped(self, i: int) -> Record | None:
        """Note that the mapped task *i* has succeeded; all its items are kept. Under the run's lock.

        Returns:
            Its earlier record, if all is as it was then, and what is below it can be restored, too.

        Raises:
            StateWriteError: The disk refused it.
        """
        name, items = self._program.names[i], self._record.items[i]
        if not self._program.tasks[i].options.persist:
            self._tokens[i] = blend(name, self._codes.of[i], self._tokens_of(i))
            return None
        made_of = blend_items([self._token(k) for k in items])
        if self._history is not None:
            found, _ = self._history.judge(i, self._tokens_of(i))
            if found is not None and found.state == kept.SUCCEEDED and found.value == made_of:
                self._tokens[i] = found.number
                return found
        with self._lock:
            token = next(self._numbers)
            self._scope.append(name, self._new_record(i, token, kept.SUCCEEDED, made_of))
        self._tokens[i] = token
        return None

    def note_end(self, i: int, state: int) -> None:
        """Note that *i* ended in *state*, without a result. Under the run's lock; written by :meth:`write_notes`."""
        if i < self._record.count and state == SKIPPED:
            self._tokens[i] = kept.SKIPPED
        has_run = state == FAILED or (state == SKIPPED and i in self._record.reasons)
        if has_run and self._program.tasks[self._place(i)[0]].options.persist:
            self._to_note.append(i)

    def write_notes(self) -> None:
        """Write down what was noted. Not under the run's lock.

        Raises:
            StateWriteError: The disk refused it.
        """
        while self._to_note:
            try:
                i = self._to_note.pop(0)
            except IndexError:  # another thread was faster
                return
            task, number = self._place(i)
            state = kept.FAILED if self._record.state[i] == FAILED else kept.SKIPPED
            with self._lock:
                record = self._new_record(i, next(self._numbers), state, "", self._record.reason_of(i))
                self._scope.append(self._program.names[task], record, number)

    def close(self, state: str) -> None:
        """End the run, which ended in *state*, and let others have what is kept.

        Raises:
            StateWriteError: The disk refused it; what was kept is kept.
        """
        started_at = self._record.started_at
        self._scope.close(state, self._record.epoch + started_at, self._now() - started_at)

    # ------------------------------------------------------------ in between

    def _place(self, i: int) -> tuple[int, int]:
        """Return the task of *i*, and which item of it *i* is; -1 if none."""
        if i < self._record.count:
            return i, -1
        name = self._program.names[i]
        task = self._program.index[name.task_name]  # type: ignore[attr-defined]
        return task, i - self._record.items[task].start

    def _tokens_of(self, i: int) -> list[Token]:
        """Return the tokens of what is upstream of *i*, all final."""
        task, number = self._place(i)
        tokens = [self._token(u) for u in self._program.graph.upstream[task]]
        if number >= 0 and any(isinstance(token, str) and token.startswith("~") for token in tokens):
            tokens.append(self._item_digest(i))  # what made the items has run again, so they may be others
        return tokens

    def _token(self, u: int) -> Token:
        state = self._record.state[u]
        if state == SUCCEEDED:
            return self._tokens[u] if u < self._record.count else self._item_tokens[u]
        return kept.SKIPPED if state == SKIPPED else None

    def _item_digest(self, i: int) -> str | None:
        if i not in self._item_digests:
            try:
                self._item_digests[i] = digest(self._record.values[i])
            except StateSerializationError:
                return None
        return self._item_digests[i]

    def _new_record(self, i: int, number: Any, state: str, value: str = "", error: str = "") -> Record:
        record = self._record
        now = self._now()
        since = record.first_started.get(i, record.started[i])
        return Record(
            number, state, self._codes.of[self._place(i)[0]], self._tokens_of(i), record.run_id, record.epoch + now,
            max(0.0, now - since) if since else 0.0, record.attempts_of(i), value, error,
        )  # fmt: skip

    def _report(self, task: int, error: StateSerializationError) -> None:
        """Say once for each task that its result cannot be kept; raise *error* if that is not allowed."""
        name = self._program.names[task]
        refusal = StateSerializationError(error.path, error.reason, f"task {name!r}: result")
        if self._is_strict:
            raise refusal
        if name not in self._has_warned:
            self._has_warned.add(name)
            told = f"{refusal} So it is not kept, and {name!r} runs again on resume."
            warnings.warn(told, RuntimeWarning, stacklevel=2)


def module_of(func: Any) -> str:
    """Return the module of *func*, of what it is a partial of, or of its class."""
    while hasattr(func, "func") and not hasattr(func, "__code__"):
        func = func.func
    return str(getattr(func, "__module__", None) or type(func).__module__)
