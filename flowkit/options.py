"""The options of a task, checked once, where the task is defined.

Knows every option's range. Does not know tasks: an options value is shared by all tasks made with the same call.
"""

from __future__ import annotations

from .exceptions import OptionError, close_matches, shown
from .retry import RetryPolicy, check_seconds
from .states import TRIGGERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypedDict

    from .events import AttemptFailed, TaskFailed, TaskSucceeded
    from .retry import RetryOn

    class TaskKeywords(TypedDict, total=False):
        """The options by keyword, for ``Unpack``."""

        retries: int
        delay: float
        backoff: float
        jitter: float
        max_delay: float
        retry_on: RetryOn
        timeout: float | None
        when: Callable[..., object] | None
        trigger: str
        executor: str | None
        uses: str | None
        persist: bool
        version: str | None
        on_success: Callable[[TaskSucceeded], object] | None
        on_failure: Callable[[TaskFailed], object] | None
        on_retry: Callable[[AttemptFailed], object] | Callable[[str, int], object] | None
        callbacks: Iterable[Callable[..., object]]
        on_status_change: Callable[[str, Any], object] | None


EXECUTORS = ("thread", "process", "async")
"""Where a task may ask to run."""


class TaskOptions:
    """Every option of a task. Immutable by convention: tasks share it.

    Raises:
        OptionError: A value is outside of its range.
    """

    __slots__ = (
        "callbacks", "executor", "on_failure", "on_retry", "on_status_change", "on_success", "persist", "retry",
        "timeout", "trigger", "uses", "version", "when",
    )  # fmt: skip

    def __init__(
        self,
        where: str,
        *,
        timeout: float | None = None,
        when: Callable[..., object] | None = None,
        trigger: str = "none_failed",
        executor: str | None = None,
        uses: str | None = None,
        persist: bool = True,
        version: str | None = None,
        on_success: Callable[[Any], object] | None = None,
        on_failure: Callable[[Any], object] | None = None,
        on_retry: Callable[[Any], object] | None = None,
        callbacks: Iterable[Callable[..., object]] = (),
        on_status_change: Callable[[str, Any], object] | None = None,
        **retry: Any,
    ) -> None:
        unknown = retry.keys() - set(RetryPolicy.__slots__)
        if unknown:
            raise TypeError(_no_option(where, min(unknown)))
        self.retry = RetryPolicy(**retry, where=where)
        self.timeout = None if timeout is None else check_seconds(where, "timeout", timeout, above_zero=True)
        self.when = _check_callable(where, "when", when)
        if not isinstance(trigger, str) or trigger not in TRIGGERS:
            raise OptionError(f"{where}: trigger={shown(trigger)} must be one of {', '.join(map(repr, TRIGGERS))}.")
        self.trigger = trigger
        if executor is not None and executor not in EXECUTORS:
            known = ", ".join(map(repr, EXECUTORS))
            raise OptionError(f"{where}: executor={shown(executor)} must be one of {known}.")
        self.executor = executor
        if uses is not None and (not isinstance(uses, str) or not uses):
            raise OptionError(f"{where}: uses={shown(uses)} must name a limit, as in run(limits={{'api': 4}}).")
        self.uses = uses
        if not isinstance(persist, bool):
            raise OptionError(f"{where}: persist={shown(persist)} must be True or False.")
        self.persist = persist
        if version is not None and (not isinstance(version, str) or not version):
            raise OptionError(f"{where}: version={shown(version)} must be a string, such as '2'.")
        self.version = version
        self.on_success = _check_callable(where, "on_success", on_success)
        self.on_failure = _check_callable(where, "on_failure", on_failure)
        self.on_retry = _check_callable(where, "on_retry", on_retry)
        self.callbacks = _check_callables(where, callbacks)
        self.on_status_change = _check_callable(where, "on_status_change", on_status_change)

    def as_keywords(self) -> dict[str, Any]:
        """Return the options as keywords that make an equal value."""
        retry = {name: getattr(self.retry, name) for name in RetryPolicy.__slots__}
        return retry | {name: getattr(self, name) for name in TaskOptions.__slots__ if name != "retry"}

    @property
    def has_callbacks(self) -> bool:
        """Whether somebody wants to hear of this task."""
        is_told = not (self.on_success is None and self.on_failure is None and self.on_retry is None)
        return is_told or self.is_for_workflows

    @property
    def is_for_workflows(self) -> bool:
        """Whether somebody wants to hear of this task in the way that only workflows have."""
        return bool(self.callbacks) or self.on_status_change is not None


def _no_option(where: str, name: str) -> str:
    known = sorted({*RetryPolicy.__slots__, *TaskOptions.__slots__, "name"} - {"retry"})
    return f"{where}: there is no option {name!r}{close_matches(name, known)}; there are {', '.join(known)}."


def _check_callables(where: str, callbacks: Any) -> tuple[Callable[..., object], ...]:
    if callable(callbacks) or not hasattr(callbacks, "__iter__"):
        raise OptionError(f"{where}: callbacks={shown(callbacks)} must be a list. Write callbacks=[...].")
    found = tuple(callbacks)
    for callback in found:
        _check_callable(where, "callbacks", callback)
        if callback is None:
            raise OptionError(f"{where}: callbacks={shown(callbacks)} must hold callables.")
    return found


def _check_callable(where: str, option: str, value: Callable[..., object] | None) -> Callable[..., object] | None:
    if value is not None and not callable(value):
        raise OptionError(f"{where}: {option}={shown(value)} must be callable, not {type(value).__name__}.")
    return value
