"""``JSONStateStore``: the states of tasks in one JSON file, by name.

Knows where in the file they are. Does not know runs.
"""

from __future__ import annotations

import os

from ..exceptions import OptionError
from .jsonfile import parts_of
from .manager import StateManager
from .records import SAVED, seal, unseal
from .scopes import newest, saved_record
from .store import Record
from .taskstates import TaskStates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class JSONStateStore(TaskStates, StateManager):
    """The states of the tasks of workflows in one JSON file that a person can read, for development.

    It is a ``StateManager`` that has a file, and takes its arguments.

    Args:
        path: The file; it and its folder are made with the first write.
        **options: Those of :class:`flowkit.StateManager`.

    Raises:
        OptionError: An argument is out of range.
        StateVersionError: The file is another program's, or a newer flowkit's.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        if path is None:
            raise OptionError("JSONStateStore: path=None must be the name of a file.")
        super().__init__(path, **options)
        assert self._file is not None  # noqa: S101 - for the type checker
        self._json = self._file

    # What TaskStates asks of a store.

    def scopes(self) -> list[str]:
        """Return the names of the workflows of which something is kept."""
        return self._json.scopes()

    def find_record(self, workflow: str, task: str) -> Record | None:
        """Return the latest record of *task* of *workflow*; None if there is none."""
        found: dict[str, Record] = {}
        entry = self._json.entry_of(workflow, task)
        own = None if entry is None else unseal(parts_of(workflow)[0], entry)
        newest(found, task, None if own is None else Record.from_json(own[1]))
        saved = self._json.refresh().get(SAVED, {}).get(_key(workflow, task))
        newest(found, task, None if saved is None else saved_record(saved))
        return found.get(task)

    def list_records(self, workflow: str) -> list[str]:
        """Return the names of the tasks of *workflow* that have a record."""
        of_runs = self._json.scope(workflow).get(parts_of(workflow)[0], {})
        return list(dict.fromkeys((*of_runs, *self._json.saved(workflow))))

    def save_record(self, workflow: str, task: str, record: Record) -> None:
        """Keep *record*, which somebody has made by hand."""
        key = _key(workflow, task)
        before = self.find_record(workflow, task)
        if before is not None:  # the clock may have been set back since, and what is written last counts
            record.ended_at = max(record.ended_at, before.ended_at + 1e-6)
        with self._json.locked():
            self._json.put(SAVED, key, seal(SAVED, key, record.to_json()))

    def forget_record(self, workflow: str, task: str) -> None:
        """Forget everything of *task* of *workflow*."""
        if not (self._json.exists or os.path.exists(self._json.journal_of(workflow))):
            return
        lock, journal, known = self._json.open_scope(workflow)
        try:
            journal.close()
            tasks, items, _ = parts_of(workflow)
            known.get(tasks, {}).pop(task, None)
            for key in [key for key in known.get(items, {}) if key.rpartition("[")[0] == task]:
                del known[items][key]
            self._json.fold(workflow, known)
            with self._json.locked():
                if _key(workflow, task) in self._json.sections.get(SAVED, {}):
                    self._json.put(SAVED, _key(workflow, task), None)
        finally:
            lock.release()


def _key(workflow: str, task: str) -> str:
    return f"{workflow}\n{task}"
