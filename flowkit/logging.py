"""Tell people what a run does, one line at a time.

Knows events, levels, and how a line looks as text and as JSON. Does not know who runs tasks: a logger is an observer
like any other.

Opt-in: nothing is printed before :func:`configure_logging`. Then two streams meet on the standard output::

    run ──event──► FlowkitLogger ──record──╮
                                           ├─► logger "flowkit" of the standard library ──► one line on sys.stdout
    context.log, broken hooks ────record───╯      (does not propagate)

A logger that is not the configured one prints its own lines and touches no logger of the standard library.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from .events import (
    AttemptFailed,
    AttemptStarted,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskRestored,
    TaskSkipped,
    TaskSucceeded,
    TaskUpstreamFailed,
    default_observers,
)
from .exceptions import OptionError, describe, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .events import Event

__all__ = ["FlowkitLogger", "LogLevel", "configure_logging", "get_logger"]


class LogLevel(Enum):
    """How much a line matters. SUCCESS and SYSTEM rank with INFO.

    >>> LogLevel("WARN")
    <LogLevel.WARNING: 'WARN'>
    """

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARN"
    ERROR = "ERROR"
    SUCCESS = "SUCCESS"
    SYSTEM = "SYSTEM"


_RANKS = {level: getattr(logging, level.name, logging.INFO) for level in LogLevel}
"""The standard library's number for each level; it does not know SUCCESS and SYSTEM."""
_ENDS = {
    "succeeded": (LogLevel.INFO, "completed"),
    "failed": (LogLevel.ERROR, "failed"),
    "cancelled": (LogLevel.WARNING, "cancelled"),
}
"""How the end of a run is told, by its state."""
_BY_TEXT = {text: level for level in LogLevel for text in (level.name, level.value)}
_COLORS = {"DEBUG": 90, "INFO": 36, "WARN": 33, "ERROR": 31, "CRITICAL": 31, "SUCCESS": 32, "SYSTEM": 35}
"""ANSI colours by what stands in the brackets."""
_BAR_CELLS = 20
_ASCII_BAR = str.maketrans("█░", "#-")
_LONGEST = 10_000
"""The most characters of a line of text, and of a repr or an error's text in JSON."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""What every record of the standard library has; anything else somebody added on purpose."""


class FlowkitLogger:
    """Prints one line per fact to whatever ``sys.stdout`` is at that moment; usable from any thread.

    Called with an event it logs it, so it can be given to a run: ``dag.run(observers=[FlowkitLogger()])``.

    Args:
        name: Stands in JSON lines as ``logger``.
        level: Lines that rank below it are left out; a LogLevel, or its name or value.
        json_output: Whether a line is a JSON object, or text for people.
        use_colors: Whether text is coloured on a terminal; under ``NO_COLOR`` it never is.

    Raises:
        OptionError: There is no such level.

    Every method takes more keywords as context. Text shows them behind the message. In JSON they are keys; one that is
    taken gets ``ctx_`` in front, and a value that JSON cannot hold is written as its repr.
    """

    def __init__(
        self,
        name: str = "flowkit",
        level: LogLevel | str = LogLevel.INFO,
        json_output: bool = False,
        use_colors: bool = True,
    ) -> None:
        self.name = name
        self.level = _check_level(level)
        self.json_output = json_output
        self.use_colors = use_colors
        self._handler = _StdoutHandler(json_output=json_output, use_colors=use_colors)
        self._sink: logging.Handler | logging.Logger = self._handler
        """Who takes its records: its own handler, or the logger "flowkit" that the handler was added to."""
        self._runs: dict[str, tuple[RunStarted, int]] = {}
        """Run id to its start and how many of its tasks are final, of the runs that go on."""

    # ------------------------------------------------------------ tasks

    def log_task_start(self, name: str, **context: object) -> None:
        """Say that a task starts."""
        self._log(LogLevel.INFO, "task_start", f"Task started: {name}", {"task_name": name}, context)

    def log_task_success(self, name: str, duration: float | None = None, **context: object) -> None:
        """Say that a task succeeded, after *duration* seconds."""
        fields: dict[str, object] = {"task_name": name}
        message = f"Task succeeded: {name}"
        if duration is not None:
            fields["duration"] = duration
            message += f" ({duration:.2f}s)"
        self._log(LogLevel.SUCCESS, "task_success", message, fields, context)

    def log_task_failure(self, name: str, error: BaseException, **context: object) -> None:
        """Say that a task failed for good."""
        fields = {"task_name": name, "error_type": type(error).__name__, "error_message": _safely(str, error)}
        self._log(LogLevel.ERROR, "task_failure", f"Task failed: {name} - {describe(error)}", fields, context)

    def log_task_retry(self, name: str, attempt: int, max_retries: int, delay: float, **context: object) -> None:
        """Say that *attempt* out of *max_retries* starts in *delay* seconds. The numbers are printed as given."""
        message = f"Task retry: {name} (attempt {attempt}/{max_retries}, delay: {delay:.2f}s)"
        fields = {"task_name": name, "attempt": attempt, "max_retries": max_retries, "delay": delay}
        self._log(LogLevel.WARNING, "task_retry", message, fields, context)

    def log_task_skip(self, name: str, reason: str = "condition not met", **context: object) -> None:
        """Say that a task was skipped, and why."""
        fields = {"task_name": name, "reason": reason}
        self._log(LogLevel.SYSTEM, "task_skip", f"Task skipped: {name} ({reason})", fields, context)

    # ------------------------------------------------------------ runs

    def log_dag_start(self, name: str, total_tasks: int, **context: object) -> None:
        """Say that a run starts."""
        fields = {"dag_name": name, "total_tasks": total_tasks}
        message = f"DAG started: {name} ({plural(total_tasks, 'task')})"
        self._log(LogLevel.INFO, "dag_start", message, fields, context)

    def log_dag_progress(self, name: str, completed: int, total: int, **context: object) -> None:
        """Say how many of a run's tasks are final."""
        percentage = 100 * completed / total if total else 0.0
        fields = {"dag_name": name, "completed": completed, "total": total, "percentage": percentage}
        message = f"DAG progress: {name} ({completed}/{total} - {percentage:.1f}%)"
        self._log(LogLevel.INFO, "dag_progress", message, fields, context)

    def log_dag_complete(self, name: str, total_tasks: int, duration: float | None = None, **context: object) -> None:
        """Say that a run completed, after *duration* seconds."""
        self._log_dag_end("succeeded", name, total_tasks, duration, context)

    def _log_dag_end(
        self, state: str, name: str, total_tasks: int, duration: float | None, context: Mapping[str, object]
    ) -> None:
        level, verb = _ENDS[state]
        fields: dict[str, object] = {"dag_name": name, "total_tasks": total_tasks, "state": state}
        message = f"DAG {verb}: {name} ({plural(total_tasks, 'task')})"
        if duration is not None:
            fields["duration"] = duration
            message += f" (duration: {duration:.2f}s)"
        self._log(level, "dag_complete", message, fields, context)

    # ------------------------------------------------------------ anything

    def log_progress(self, message: str, percentage: float | None = None) -> None:
        """Print *message*, with a bar if there is a *percentage*, from 0 to 100."""
        fields = {} if percentage is None else {"percentage": percentage}
        if percentage is not None and not self.json_output:
            filled = int(min(100.0, max(0.0, percentage)) * _BAR_CELLS / 100)  # max() in this order takes NaN as 0
            message += f" [{'█' * filled}{'░' * (_BAR_CELLS - filled)}] {percentage:.1f}%"
        self._log(LogLevel.INFO, "progress", message, fields, {})

    def log_system(self, message: str) -> None:
        """Print *message*."""
        self._log(LogLevel.SYSTEM, "system", message, {}, {})

    # ------------------------------------------------------------ observing

    def __call__(self, event: Event) -> None:
        """Log *event*. JSON lines get its ``run_id``, since several runs may go on at once."""
        run_id = event.run_id
        context: dict[str, Any] = {"run_id": run_id} if self.json_output else {}
        match event:
            case RunStarted():
                self._runs[run_id] = (event, 0)
                self.log_dag_start(event.dag_name, event.total_tasks, **context)
            case AttemptStarted(attempt=1):
                self.log_task_start(event.task_name, **context)
            case AttemptFailed() if event.retry_in is not None:
                attempt, delay = event.attempt + 1, event.retry_in
                self.log_task_retry(event.task_name, attempt, event.max_attempts, delay, **context)
            case TaskEvent():
                self._log_task_end(event, context)
                if run_id in self._runs:
                    started, completed = self._runs[run_id]
                    self._runs[run_id] = (started, completed + 1)
                    self.log_dag_progress(started.dag_name, completed + 1, started.total_tasks, **context)
            case RunFinished():
                self._runs.pop(run_id, None)
                name, total, duration = event.dag_name, event.total_tasks, event.duration
                if event.state == "succeeded":
                    self.log_dag_complete(name, total, duration, **context)
                else:
                    self._log_dag_end(event.state, name, total, duration, context)

    def _log_task_end(self, event: TaskEvent, context: dict[str, Any]) -> None:
        name, reason = event.task_name, event.reason
        match event:
            case TaskSucceeded():
                self.log_task_success(name, event.duration, **context)
            case TaskRestored():
                self.log_task_success(name, **context, reason=reason)
            case TaskFailed():
                self.log_task_failure(name, event.error, **context)
            case TaskSkipped():
                self.log_task_skip(name, reason, **context)
            case TaskUpstreamFailed():
                self._log_not_run("task_upstream_failed", f"Task not run: {name} ({reason})", event, context)
            case TaskCancelled():
                self._log_not_run("task_cancelled", f"Task cancelled: {name} ({reason})", event, context)

    def _log_not_run(self, name: str, message: str, event: TaskEvent, context: Mapping[str, object]) -> None:
        fields = {"task_name": event.task_name, "reason": event.reason}
        self._log(LogLevel.WARNING, name, message, fields, context)

    # ------------------------------------------------------------ records

    def _log(
        self, level: LogLevel, event: str, message: str, fields: Mapping[str, object], context: Mapping[str, object]
    ) -> None:
        """Make a record and hand it on.

        Args:
            level: How much it matters.
            event: What happened, for machines.
            message: What happened, for people.
            fields: What *message* says, as values; JSON only.
            context: What the caller knows beyond it.
        """
        rank = _RANKS[level]
        # The sink's level is the logger's "flowkit", which the application may have raised since.
        if rank < max(_RANKS[self.level], self._sink.level) or rank <= logging.root.manager.disable:
            return
        record = logging.getLogRecordFactory()(self.name, rank, "", 0, message, (), None)
        record.levelname = level.value
        record.flowkit = (event, fields, context)
        self._sink.handle(record)

    def __repr__(self) -> str:
        return f"<FlowkitLogger {self.name!r} level={self.level.name} json_output={self.json_output}>"


# ---------------------------------------------------------------- the process's logger

_current: FlowkitLogger | None = None
"""The configured logger, or the default one that somebody asked for before."""
_current_lock = threading.Lock()


def configure_logging(
    level: LogLevel | str = LogLevel.INFO, json_output: bool = False, use_colors: bool = True
) -> FlowkitLogger:
    """Have every run that starts from now on logged, in this process, and return the logger that does it.

    It takes the place of the one configured before. Beside the runs it prints what tasks write to ``context.log`` and
    the reports of broken hooks: everything that reaches the logger ``flowkit`` of the standard library. That one stops
    propagating, since a handler of the application's root logger would print each line again. To have the records
    elsewhere too, add a handler to ``logging.getLogger("flowkit")``. No other logger is touched.

    Args:
        level: Lines that rank below it are left out; a LogLevel, or its name or value.
        json_output: Whether a line is a JSON object, or text for people.
        use_colors: Whether text is coloured on a terminal; under ``NO_COLOR`` it never is.

    Raises:
        OptionError: There is no such level; the logger configured before stays.
    """
    global _current  # noqa: PLW0603 - there is one process, and one logger for it
    logger = FlowkitLogger(level=level, json_output=json_output, use_colors=use_colors)
    shared = logging.getLogger("flowkit")
    with _current_lock:
        previous = _current
        _current = logger
        if previous is not None:
            shared.removeHandler(previous._handler)
            previous._sink = previous._handler
        shared.addHandler(logger._handler)
        shared.setLevel(_RANKS[logger.level])
        shared.propagate = False
        shared.disabled = False  # dictConfig() disables the loggers it does not name
        logger._sink = shared
        default_observers[:] = [*(known for known in default_observers if known is not previous), logger]
    return logger


def get_logger() -> FlowkitLogger:
    """Return the configured logger; without one a default logger, the same each time, which logs no run by itself."""
    global _current  # noqa: PLW0603 - there is one process, and one logger for it
    with _current_lock:
        if _current is None:
            _current = FlowkitLogger()
        return _current


# ---------------------------------------------------------------- lines


class _StdoutHandler(logging.Handler):
    """Prints each record as one line to what is sys.stdout at that moment."""

    def __init__(self, *, json_output: bool, use_colors: bool) -> None:
        super().__init__()
        self._json_output = json_output
        self._use_colors = use_colors

    def handle(self, record: logging.LogRecord) -> bool:
        """Print *record*, unless a filter is against it.

        The line is made before the lock is taken: a repr is code of the user and may wait for a thread that logs.
        """
        if not self.filter(record):
            return False
        try:
            _print_line(self.format(record))
        except Exception:  # noqa: BLE001 - a line that cannot be written must not stop the program
            self.handleError(record)
        return True

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of *record*, without its end."""
        event, fields, context = _content_of(record)
        level = LogLevel.WARNING.value if record.levelname == "WARNING" else record.levelname
        if self._json_output:
            return _json_line(record, level, event, fields, context)
        text = record.getMessage() + "".join(f" {key}={_safely(repr, value)}" for key, value in context.items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{clock}  {self._paint(level)} {_on_one_line(_cut(text))}"

    def _paint(self, level: str) -> str:
        text = f"[{level}]"
        # Asked each time: the program may have put another stream in its place. None has no isatty, nor need others.
        if self._use_colors and "NO_COLOR" not in os.environ and getattr(sys.stdout, "isatty", bool)():
            return f"\x1b[{_COLORS.get(level, 0)}m{text}\x1b[0m"
        return text


_turn = logging.Handler()
"""Only its lock is used. All loggers share it, so that their lines stay whole; logging renews it after a fork."""


def _print_line(line: str) -> None:
    _turn.acquire()
    try:
        stdout = sys.stdout
        if stdout is None:  # a program without a console
            return
        try:
            stdout.write(f"{line}\n")
        except UnicodeEncodeError:
            line = line.translate(_ASCII_BAR).encode("ascii", "backslashreplace").decode("ascii")
            stdout.write(f"{line}\n")
        if hasattr(stdout, "flush"):
            stdout.flush()
    finally:
        _turn.release()


def _content_of(record: logging.LogRecord) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Return the event, fields and context of *record*, whoever made it."""
    own: tuple[str, Mapping[str, Any], Mapping[str, Any]] | None = getattr(record, "flowkit", None)
    if own is not None:
        return own
    context = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        context["exception"] = logging.Formatter().formatException(record.exc_info)
    return "log", {}, context


def _json_line(
    record: logging.LogRecord, level: str, event: str, fields: Mapping[str, Any], context: Mapping[str, Any]
) -> str:
    data = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
        "level": level,
        "logger": record.name,
        "message": record.getMessage(),
        "event": event,
        **fields,
    }
    for key, value in context.items():
        free = key
        while free in data:
            free = f"ctx_{free}"
        data[free] = value
    return "{" + ", ".join(f"{json.dumps(key)}: {_to_json(value)}" for key, value in data.items()) + "}"


def _to_json(value: object) -> str:
    """Return *value* as JSON, and what JSON cannot hold as a string with its repr."""
    try:
        return json.dumps(value, allow_nan=False, default=lambda part: _safely(repr, part))
    except Exception:  # noqa: BLE001 - NaN, cycles, keys, depth, or a container of the user's own that raises
        return json.dumps(_safely(repr, value))


def _safely(show: Callable[[object], str], value: object) -> str:
    """Return ``show(value)``, cut; *show* is repr or str, and may raise."""
    try:
        return _cut(show(value))
    except Exception as broken:  # noqa: BLE001 - a broken repr must not cost the line that mentions it
        return f"<{type(value).__name__}: its {show.__name__} raised {type(broken).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _on_one_line(text: str) -> str:
    """Return *text* with everything escaped that could end the line or steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _check_level(level: object) -> LogLevel:
    if isinstance(level, LogLevel):
        return level
    if isinstance(level, str) and level in _BY_TEXT:
        return _BY_TEXT[level]
    allowed = ", ".join(map(repr, _BY_TEXT))
    raise OptionError(f"level={_safely(repr, level)} must be a LogLevel or one of {allowed}.")
