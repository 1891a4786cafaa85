"""Every error that flowkit raises.

Knows the errors and their texts. Does not know tasks, graphs or runs: an error holds plain values.

::

    FlowkitError
      DefinitionError(ValueError)          wrong before anything runs; .problems lists all of them
        DAGCycleError                      the tasks depend on each other in a circle
        DuplicateTaskError                 two tasks of one DAG have the same name
        BindingError(TypeError)            results and parameters of a task do not fit together
        TaskNotFoundError(LookupError)     a name that no task has
        OptionError                        an option or argument outside of its range
      TaskExecutionError                   a task failed; __cause__ says why: the task's own exception, or
        TaskTimeoutError(TimeoutError)       an attempt took longer than its timeout
        WorkerDiedError                      the process that ran it died
        ConditionError                       when() raised, or its answer has no truth value
        TaskResultError                      the task returned what cannot be handed on
        NotPicklableError                    its function or an argument cannot be sent to a process
        RemoteError                          stands for an exception that cannot be sent back from one
        WorkflowExecutionError(RuntimeError) a task of a workflow failed; its exception is the cause
      DAGExecutionError(ExceptionGroup)    fail_fast=False: every failure of the run
      RunCancelledError                    somebody cancelled the run
        RunTimeoutError(TimeoutError)        the run took longer than its timeout
      StateError                           a state store cannot do what it is asked
        StateWriteError(OSError)             the disk refused a write; what was stored before is still there
        StateCorruptError                    what is stored is damaged
        StateLockedError                     another run of the same name goes on, in this process or another
        StateVersionError                    the file is another program's, or a newer version's
        StateSerializationError(TypeError)   a value cannot be stored as it is

Every one of them survives pickling. :class:`Skip`, :class:`RetryAfter` and :class:`GiveUp` are not errors of
flowkit: a task raises them to say how its attempt ended.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = [
    "BindingError",
    "ConditionError",
    "DAGCycleError",
    "DAGExecutionError",
    "DefinitionError",
    "DuplicateTaskError",
    "FlowkitError",
    "GiveUp",
    "NotPicklableError",
    "OptionError",
    "RemoteError",
    "RetryAfter",
    "RunCancelledError",
    "RunTimeoutError",
    "Skip",
    "StateCorruptError",
    "StateError",
    "StateLockedError",
    "StateSerializationError",
    "StateVersionError",
    "StateWriteError",
    "TaskExecutionError",
    "TaskNotFoundError",
    "TaskResultError",
    "TaskTimeoutError",
    "WorkerDiedError",
    "WorkflowExecutionError",
]

_LISTED = 10


def listing(items: Iterable[object], separator: str = ", ") -> str:
    """Join the reprs of *items*, cut to ten and "... N more"."""
    items = list(items)
    text = separator.join(repr(item) for item in items[:_LISTED])
    rest = len(items) - _LISTED
    return f"{text}{separator}... {rest} more" if rest > 0 else text


def shown(value: object, most: int = 80) -> str:
    """Return the repr of *value* for a message, cut to *most* characters, whatever its ``__repr__`` does."""
    try:
        text = repr(value)
    except BaseException as broken:  # noqa: BLE001 - a broken __repr__ must not hide what is to be said
        text = f"<{type(value).__name__} whose __repr__ raised {type(broken).__name__}>"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def text_of(error: BaseException) -> str:
    """Return the text of *error* on one line, cut to 500 characters, whatever its ``__str__`` does."""
    try:
        whole = str(error)
        text = " ".join(whole[:4_000].split())
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ must not hide the error it belongs to
        return f"(its __str__ raised {type(broken).__name__})"
    return text if len(whole) <= 4_000 and len(text) <= 500 else f"{text[:500]}... ({len(whole)} characters)"


def close_matches(name: object, known: Iterable[str]) -> str:
    """Return `` (did you mean 'load'?)`` with up to three of *known*, or nothing if none is like *name*."""
    from difflib import get_close_matches  # noqa: PLC0415 - only to help after a mistake

    close = get_close_matches(str(name), list(known)[:10_000], 3)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def describe(error: BaseException) -> str:
    """Return *error* as ``Type: text`` on one line."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plural(count: int, noun: str) -> str:
    """Return ``1 task`` or ``2 tasks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class FlowkitError(Exception):
    """Base of every error that flowkit raises."""


# ---------------------------------------------------------------- before a run


class DefinitionError(FlowkitError, ValueError):
    """Tasks, wiring or arguments are wrong; nothing has run.

    Attributes:
        problems: Every problem found, as separate errors; empty if this error is the only one.
    """

    def __init__(self, message: str, problems: Sequence[DefinitionError] = ()) -> None:
        super().__init__(message, tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [str(self.args[0])]
        lines += [f"  {n}. {problem}" for n, problem in enumerate(self.problems[:_LISTED], 1)]
        if len(self.problems) > _LISTED:
            lines.append(f"  ... {len(self.problems) - _LISTED} more")
        return "\n".join(lines)


class DAGCycleError(DefinitionError):
    """Tasks depend on each other in a circle.

    Attributes:
        cycle: The task names along a shortest cycle; the first one stands at the end again.
    """

    def __init__(self, cycle: Sequence[str]) -> None:
        super().__init__("cycle")
        self.args = (tuple(cycle),)
        self.cycle = tuple(cycle)

    def __str__(self) -> str:
        path = listing(self.cycle, " >> ")
        if len(self.cycle) > _LISTED:
            path += f" (back to {self.cycle[0]!r})"
        edges = "this edge" if len(self.cycle) == 2 else "one of these edges"
        return f"tasks form a cycle: {path}. Remove {edges}; nothing has run."


class DuplicateTaskError(DefinitionError):
    """Two tasks of one DAG have the same name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__("duplicate")
        self.args = (name, first, second)
        self.task_name = name

    def __str__(self) -> str:
        name, first, second = self.args
        return (
            f"a task named {name!r} already exists: one is made at {first}, one at {second}. "
            f"Give one of them another name: @task(name=...) or .with_options(name=...)."
        )


class BindingError(DefinitionError, TypeError):
    """The results that arrive at a task do not fit its parameters."""


class TaskNotFoundError(DefinitionError, LookupError):
    """A name was given that no task has."""


class OptionError(DefinitionError):
    """An option or argument is outside of its range."""


# ---------------------------------------------------------------- a task failed


class TaskExecutionError(FlowkitError):
    """A task failed. ``__cause__`` is the exception that its last attempt raised.

    Attributes:
        task_name: The task.
        attempts: How many attempts were made.
        result: What the run has so far, a ``RunResult``; None inside of the run and after unpickling.
    """

    result: Any = None

    def __init__(self, task_name: str, attempts: int, seconds: float, reason: str) -> None:
        super().__init__(task_name, attempts, seconds, reason)
        self.task_name = task_name
        self.attempts = attempts

    def __str__(self) -> str:
        name, attempts, seconds, reason = self.args
        if not attempts:
            return f"task {name!r} failed before its first attempt: {reason}"
        return f"task {name!r} failed after {plural(attempts, 'attempt')} in {seconds:.3g} s: {reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        # A result holds every value of the run; an error that travels must not depend on them.
        return type(self), self.args


class WorkflowExecutionError(TaskExecutionError, RuntimeError):
    """A task of a workflow failed, and with it the execution. ``__cause__`` is the exception of its last attempt.

    Attributes:
        workflow_name: The workflow.
        failed_task: The task, ``task_name`` too.
    """

    def __init__(self, workflow_name: str, task_name: str, attempts: int, seconds: float, reason: str) -> None:
        super().__init__(task_name, attempts, seconds, reason)
        self.args = (workflow_name, task_name, attempts, seconds, reason)
        self.workflow_name = workflow_name
        self.failed_task = task_name

    def __str__(self) -> str:
        workflow_name, *of_task = self.args
        return f"workflow {workflow_name!r}: {TaskExecutionError(*of_task)}"


class TaskTimeoutError(TaskExecutionError, TimeoutError):
    """An attempt took longer than the task's timeout (seconds)."""

    def __init__(self, task_name: str, attempts: int, timeout: float) -> None:
        super().__init__(task_name, attempts, timeout, "timeout")
        self.args = (task_name, attempts, timeout)
        self.timeout = timeout

    def __str__(self) -> str:
        name, attempt, timeout = self.args
        return f"attempt {attempt} of task {name!r} took longer than its timeout of {timeout:g} s"


class _CauseError(TaskExecutionError):
    """A failure whose text says all."""

    def __init__(self, task_name: str, text: str) -> None:
        super().__init__(task_name, 1, 0.0, text)
        self.args = (task_name, text)

    def __str__(self) -> str:
        return str(self.args[1])


class ConditionError(_CauseError):
    """``when()`` raised, or what it returned has no truth value."""


class TaskResultError(_CauseError):
    """A task returned what cannot be handed on, such as a generator or a coroutine."""


class NotPicklableError(_CauseError):
    """A task's function, condition or argument cannot be sent to a process."""


class WorkerDiedError(TaskExecutionError):
    """The process that ran the task died: killed, crashed, or left by ``os._exit``.

    Attributes:
        pid: Its process id.
        exitcode: What it ended with; minus the number of the signal if it was killed by one.
    """

    def __init__(self, task_name: str, pid: int, exitcode: int) -> None:
        super().__init__(task_name, 1, 0.0, "died")
        self.args = (task_name, pid, exitcode)
        self.pid = pid
        self.exitcode = exitcode

    def __str__(self) -> str:
        name, pid, exitcode = self.args
        return f"the worker process of task {name!r} (pid {pid}) {_how_it_ended(exitcode)}"


def _how_it_ended(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    import signal  # noqa: PLC0415 - costs 2 ms, and is no part of defining tasks

    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


class RemoteError(TaskExecutionError):
    """Stands for an exception that a task raised in a process, and that cannot be sent back.

    Attributes:
        type_name: Name of its class.
        text: Its text.
        traceback: Its traceback, as text.
    """

    def __init__(self, task_name: str, type_name: str, text: str, traceback: str) -> None:
        super().__init__(task_name, 1, 0.0, text)
        self.args = (task_name, type_name, text, traceback)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class DAGExecutionError(FlowkitError, ExceptionGroup[TaskExecutionError]):
    """One or more tasks failed in a run with ``fail_fast=False``.

    Attributes:
        result: What the run has, a ``RunResult``; None after unpickling.
    """

    result: Any = None

    def derive(self, excs: Sequence[TaskExecutionError]) -> DAGExecutionError:  # type: ignore[override]
        """Return a group of the same kind (``split`` and ``except*`` use it)."""
        part = DAGExecutionError(self.message, excs)
        part.result = self.result
        return part

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, list(self.exceptions))


# ---------------------------------------------------------------- a run ended early


class RunCancelledError(FlowkitError):
    """The run was cancelled before all of its tasks had run.

    Attributes:
        reason: What ``cancel(reason)`` was given.
        result: What the run has so far, a ``RunResult``; None after unpickling.
    """

    result: Any = None

    def __init__(self, dag_name: str, reason: str) -> None:
        super().__init__(dag_name, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"run of {self.args[0]!r} was cancelled: {self.args[1]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class RunTimeoutError(RunCancelledError, TimeoutError):
    """The run took longer than its timeout and was cancelled."""


# ---------------------------------------------------------------- stores


class StateError(FlowkitError):
    """A state store cannot do what it is asked."""


class StateWriteError(StateError, OSError):
    """The disk refused a write. What was stored before is still there.

    Attributes:
        path: The file, absolute.
        errno: Why, as the operating system says it.
        during: What was being done, such as "write" or "fsync".
    """

    def __init__(self, path: str, errno: int | None, during: str, reason: str) -> None:
        super().__init__(errno, reason)
        self.path = path
        self.errno = errno
        self.during = during
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot {self.during} {self.path}: {self.reason} (errno {self.errno}). What was stored before is kept."

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.errno, self.during, self.reason)


class StateCorruptError(StateError):
    """What is stored is damaged.

    Attributes:
        path: The file, absolute.
        what: What is wrong with it.
        recovered: How many records could be read all the same.
    """

    def __init__(self, path: str, what: str, recovered: int) -> None:
        super().__init__(path, what, recovered)
        self.path = path
        self.what = what
        self.recovered = recovered

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.what}; {plural(self.recovered, 'record')} could be read."


class StateLockedError(StateError):
    """Another run of the same name goes on, in this process or another.

    Attributes:
        scope: Name of the DAG.
        path: The file that is locked, or "memory".
        pid: The process that has the lock; 0 if it is not known.
        host: Its machine.
        since: Since when, ISO 8601.
    """

    def __init__(self, scope: str, path: str, pid: int, host: str, since: str) -> None:
        super().__init__(scope, path, pid, host, since)
        self.scope = scope
        self.path = path
        self.pid = pid
        self.host = host
        self.since = since

    def __str__(self) -> str:
        owner = f"process {self.pid} on {self.host} since {self.since}" if self.pid else "another process"
        return (
            f"a run of {self.scope!r} with state {self.path} goes on in {owner}. Wait for it, give the state "
            f"lock_timeout=..., or use another state for runs side by side."
        )


class StateVersionError(StateError):
    """The file is another program's, or was written by a newer version of flowkit. It was not touched.

    Attributes:
        path: The file, absolute.
        found: The version that it has, as text.
        supported: The versions that can be read.
    """

    def __init__(self, path: str, found: str, supported: str) -> None:
        super().__init__(path, found, supported)
        self.path = path
        self.found = found
        self.supported = supported

    def __str__(self) -> str:
        if self.found == "none":
            return f"{self.path} is no state that this store can read. It was not touched: use another path."
        return (
            f"{self.path} has state version {self.found}, and this flowkit reads {self.supported}. It was not touched: "
            f"use a newer flowkit, or another path."
        )


class StateSerializationError(StateError, TypeError):
    """A value cannot be stored as it is.

    Attributes:
        path: Where in the value, such as ``['x'][3]``; empty for the value itself.
        reason: What is there, and what to do.
        what: What the value is, such as "task 'fetch': result".
    """

    def __init__(self, path: str, reason: str, what: str = "value") -> None:
        super().__init__(path, reason, what)
        self.path = path
        self.reason = reason
        self.what = what

    def __str__(self) -> str:
        stop = "" if self.reason.endswith(".") else "."
        return f"{self.what}{self.path}: {self.reason}{stop}"


# ---------------------------------------------------------------- what a task may raise


class Skip(Exception):  # noqa: N818 - not an error: how a task says that there is nothing to do
    """Raise it in a task to end it as skipped: ``raise Skip("no rows")``."""


class GiveUp(Exception):  # noqa: N818 - an order to the runner, not an error of its own
    """Raise it in a task to fail without further attempts: ``raise GiveUp("card declined") from error``."""


class RetryAfter(Exception):  # noqa: N818 - an order to the runner, not an error of its own
    """Raise it in a task to be tried again after *seconds*, if attempts are left.

    Attributes:
        seconds: The wait, instead of the one that backoff gives; at least 0 and at most 1e9.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= 1e9:
            raise OptionError(f"RetryAfter({seconds!r}): the wait must be a number of seconds from 0 to 1e9.")
        super().__init__(seconds, message)
        self.seconds = float(seconds)

    def __str__(self) -> str:
        return str(self.args[1]) or f"retry after {self.seconds:g} s"
