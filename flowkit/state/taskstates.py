"""What is kept of tasks, by name: the public face of stores for workflows.

Knows statuses, results and errors as people write and read them. Does not know runs, or where records are.
"""

from __future__ import annotations

import time

from ..exceptions import OptionError, describe, shown
from .store import ITEMS, Record, iso

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any, Protocol

    from .codec import Codec
    from .store import View

    class Keeper(Protocol):
        """A store that also takes and gives single records of tasks."""

        def codec(self, modules: Collection[str]) -> Codec: ...
        def find_record(self, workflow: str, task: str) -> Record | None: ...
        def save_record(self, workflow: str, task: str, record: Record) -> None: ...
        def forget_record(self, workflow: str, task: str) -> None: ...
        def clear_runs(self, name: str | None = None) -> None: ...
        def read_scope(self, name: str) -> View: ...
        def scopes(self) -> list[str]: ...
        def list_records(self, workflow: str) -> list[str]: ...


class BaseStateStore:
    """What a store for workflows can be asked; subclass it, or write the same methods, for a store of your own.

    A store of your own is resumed from by the names of tasks alone, so a task whose code has changed does not run
    again. Mapped tasks always do.
    """

    def save_task_state(
        self,
        task_name: str,
        status: str,
        result: Any = None,
        error: BaseException | str | None = None,
        timestamp: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep how the task stands, in the place of what was kept of it.

        Args:
            task_name: The task.
            status: A ``TaskStatus``, or its name. Only what is COMPLETED is not run again.
            result: What it returned.
            error: What it failed with.
            timestamp: When that was; None for now.
            metadata: What else there is to know.
        """
        raise NotImplementedError

    def load_task_state(self, task_name: str) -> dict[str, Any] | None:
        """Return ``status``, ``result``, ``error``, ``timestamp`` and ``metadata`` of the task; None if it has none."""
        raise NotImplementedError

    def delete_task_state(self, task_name: str) -> None:
        """Forget the task; nothing happens if nothing is kept of it."""
        raise NotImplementedError

    def clear_task_state(self, task_name: str) -> None:
        """Do what :meth:`delete_task_state` does."""
        self.delete_task_state(task_name)

    def clear_all_states(self) -> None:
        """Forget all tasks, so that the next execution runs everything."""
        raise NotImplementedError

    def list_all_tasks(self) -> list[str]:
        """Return the names of the tasks of which something is kept."""
        raise NotImplementedError

    def list_task_states(self) -> dict[str, dict[str, Any]]:
        """Return what :meth:`load_task_state` gives, by the name of each task of which something is kept."""
        states = {name: self.load_task_state(name) for name in self.list_all_tasks()}
        return {name: state for name, state in states.items() if state is not None}

    def for_workflow(self, name: str) -> BaseStateStore:
        """Return what is kept of the tasks of the workflow *name* alone; without such a notion, the whole store."""
        return self


class TaskStates(BaseStateStore):
    """These methods for a store that keeps records.

    The store itself sees the tasks of all workflows; where two have one of the same name, the newest state counts.
    What is saved here belongs to no workflow: each takes it for its task of that name, until it runs that itself.
    """

    def for_workflow(self, name: str) -> WorkflowStates:
        """Return what is kept of the tasks of the workflow *name* alone."""
        return WorkflowStates(self, name)  # type: ignore[arg-type]

    def save_task_state(
        self,
        task_name: str,
        status: str,
        result: Any = None,
        error: BaseException | str | None = None,
        timestamp: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep how the task stands, with the arguments of :meth:`BaseStateStore.save_task_state`.

        Raises:
            OptionError: A name, the status, the error or the metadata is of a kind that there is not.
            StateSerializationError: The store cannot keep *result*, *timestamp* or *metadata* as it is.
            StateWriteError: The disk refused it.
        """
        self.for_workflow("").save_task_state(task_name, status, result, error, timestamp, metadata)

    def load_task_state(self, task_name: str) -> dict[str, Any] | None:
        """Return what is kept of the task; None if nothing is.

        Returns:
            ``status`` (the name of a ``TaskStatus``), ``result``, ``error`` (in words, or None), ``timestamp`` (ISO
            8601 in UTC, or what was saved), and ``metadata``: what was saved; of a task that was run, its
            ``fingerprint``, ``run_id``, ``duration`` in seconds, and ``attempts``.

        Raises:
            StateError: It cannot be read here.
        """
        keeper: Keeper = self  # type: ignore[assignment]
        found = {workflow: keeper.find_record(workflow, task_name) for workflow in keeper.scopes()}
        known = {workflow: record for workflow, record in found.items() if record is not None}
        if not known:
            return None
        newest = max(known, key=lambda workflow: known[workflow].ended_at)
        return _state_of(keeper, newest, task_name, known[newest])

    def delete_task_state(self, task_name: str) -> None:
        """Forget the task, in every workflow.

        Raises:
            StateLockedError: A workflow that has it is being executed.
            StateWriteError: The disk refused it.
        """
        for workflow in self.scopes():  # type: ignore[attr-defined]
            self.for_workflow(workflow).delete_task_state(task_name)

    def clear_all_states(self) -> None:
        """Forget all tasks of all workflows, so that the next execution runs everything.

        Raises:
            StateLockedError: A workflow is being executed.
            StateWriteError: The disk refused it.
        """
        self.clear_runs()  # type: ignore[attr-defined]

    def list_all_tasks(self) -> list[str]:
        """Return the names of the tasks of which something is kept, in whatever workflow."""
        names: dict[str, None] = {}
        for workflow in self.scopes():  # type: ignore[attr-defined]
            names.update(dict.fromkeys(self.for_workflow(workflow).list_all_tasks()))
        return list(names)


class WorkflowStates(BaseStateStore):
    """What *keeper* keeps of the tasks of *workflow*."""

    def __init__(self, keeper: Keeper, workflow: str) -> None:
        if not isinstance(workflow, str) or not workflow.isprintable():
            raise OptionError(f"for_workflow(): {shown(workflow)} must be the name of a workflow.")
        self._keeper = keeper
        self._workflow = workflow

    @property
    def keeper(self) -> Keeper:
        """The store whose view this is."""
        return self._keeper

    def save_task_state(
        self,
        task_name: str,
        status: str,
        result: Any = None,
        error: BaseException | str | None = None,
        timestamp: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep how the task stands; see :meth:`TaskStates.save_task_state`."""
        where = "save_task_state()"
        for name, text in (("task_name", task_name), ("status", status)):
            if not isinstance(text, str) or not text:
                raise OptionError(f"{where}: {name}={shown(text)} must be text.")
        if error is not None and not isinstance(error, (str, BaseException)):
            raise OptionError(f"{where}: error={shown(error)} must be an exception or text.")
        if metadata is not None and not hasattr(metadata, "keys"):
            raise OptionError(f"{where}: metadata={shown(metadata)} must be a mapping.")
        codec = self._keeper.codec(())
        known = {} if metadata is None else {"metadata": dict(metadata)}
        if timestamp is not None:
            known["timestamp"] = timestamp
        told = describe(error) if isinstance(error, BaseException) else error or ""
        now = time.time_ns()
        # Its number is unlike that of any record of a run, and of any other that is saved by hand.
        record = Record(
            -now, str(status), "", [], "", now / 1e9, 0.0, 0, codec.encode(result), told, codec.encode(known)
        )  # fmt: skip
        self._keeper.save_record(self._workflow, task_name, record)

    def load_task_state(self, task_name: str) -> dict[str, Any] | None:
        """Return what is kept of the task; see :meth:`TaskStates.load_task_state`."""
        record = self._keeper.find_record(self._workflow, task_name)
        return None if record is None else _state_of(self._keeper, self._workflow, task_name, record)

    def delete_task_state(self, task_name: str) -> None:
        """Forget the task; nothing happens if nothing is kept of it."""
        self._keeper.forget_record(self._workflow, task_name)

    def clear_all_states(self) -> None:
        """Forget all tasks of the workflow."""
        self._keeper.clear_runs(self._workflow)

    def list_all_tasks(self) -> list[str]:
        """Return the names of the tasks of which something is kept."""
        return self._keeper.list_records(self._workflow)

    def for_workflow(self, name: str) -> WorkflowStates:
        """Return what is kept of the tasks of the workflow *name*."""
        return WorkflowStates(self._keeper, name)


def _state_of(keeper: Keeper, workflow: str, task: str, record: Record) -> dict[str, Any]:
    codec = keeper.codec(())
    by_hand = codec.decode(record.metadata) if record.metadata else None
    run = {
        "fingerprint": record.code,
        "run_id": record.run_id,
        "duration": record.duration,
        "attempts": record.attempts,
    }
    return {
        "status": record.state,
        "result": _result_of(keeper, workflow, task, record, codec),
        "error": record.error or None,
        "timestamp": iso(record.ended_at) if by_hand is None else by_hand.get("timestamp", iso(record.ended_at)),
        "metadata": run if by_hand is None else by_hand.get("metadata", {}),
    }


def _result_of(keeper: Keeper, workflow: str, task: str, record: Record, codec: Codec) -> Any:
    if not record.value.startswith(ITEMS):
        return codec.decode(record.value) if record.value else None
    items = sorted(keeper.read_scope(workflow).items.get(task, {}).items())
    return [codec.decode(item.value) if item.value else None for _, item in items]
