"""How a run is to go.

Knows the arguments of ``run()`` and their ranges. Does not know the graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ..events import default_observers
from ..exceptions import OptionError, shown
from ..retry import check_count, check_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from typing import Any, TypedDict

    from ..events import Observer
    from ..state.store import Store
    from .clock import Clock

    class RunKeywords(TypedDict, total=False):
        """The arguments of ``run()`` by keyword, for ``Unpack``."""

        executor: str | Executor
        max_workers: int | Mapping[str, int] | None
        targets: Iterable[Any] | None
        limits: Mapping[str, int] | None
        fail_fast: bool
        raise_on_failure: bool
        timeout: float | None
        state: Store | None
        resume: bool
        progress: None
        observers: Iterable[Observer]
        _clock: Clock
        _rng: random.Random
        _pick: Callable[[Sequence[int]], int]
        _start_method: str


EXECUTORS = ("thread", "process", "async", "sequential")
KINDS = ("thread", "process", "async", "foreign")
"""The kinds of worker that ``max_workers`` can give a number for."""
_KNOWN = frozenset({
    "executor", "max_workers", "targets", "limits", "fail_fast", "raise_on_failure", "timeout", "state", "resume",
    "progress", "observers", "_clock", "_rng", "_pick", "_start_method",
})  # fmt: skip
_NOT_YET = {"progress": None}
MOST_WORKERS = 10_000
"""How many workers of a kind a run may have."""


class Settings:
    """How a run is to go; every value is checked by the door that makes it.

    Attributes:
        inputs: Values by name, for parameters that no task fills.
        executor: "thread", "process", "async", "sequential", or somebody else's.
        kind: What that is as a kind of worker; "foreign" for somebody else's.
        max_workers: The most workers of each kind that has a number.
        limits: How many tasks may use each named limit at once.
        fail_fast: Whether the first failure stops the run.
        timeout: Seconds until the run is cancelled, None for never.
        observers: Who is told of events.
        clock: The clock, None for the machine's.
        rng: Source of jitter, None for a new one.
        pick: With "sequential", chooses the next of the ready ids; None for generation order.
        state: Where results are kept, None for nowhere.
        resume: Whether results that are kept are used again.
        loop: The event loop for coroutines, which runs in another thread; None for one of the run's own.
        start_method: How processes are started, "forkserver" or "spawn"; None for what fits the platform.
    """

    __slots__ = (
        "clock", "executor", "fail_fast", "inputs", "kind", "limits", "loop", "max_workers", "observers", "pick",
        "resume", "rng", "start_method", "state", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        *,
        inputs: Mapping[str, Any],
        executor: Any,
        max_workers: Mapping[str, int],
        limits: Mapping[str, int],
        fail_fast: bool,
        timeout: float | None,
        observers: Sequence[Observer],
        clock: Clock | None = None,
        rng: random.Random | None = None,
        pick: Callable[[Sequence[int]], int] | None = None,
        loop: AbstractEventLoop | None = None,
        start_method: str | None = None,
        state: Store | None = None,
        resume: bool = False,
    ) -> None:
        self.inputs = inputs
        self.executor = executor
        self.kind = kind_of(executor)
        self.max_workers = max_workers
        self.limits = limits
        self.fail_fast = fail_fast
        self.timeout = timeout
        self.observers = observers
        self.clock = clock
        self.rng = rng
        self.pick = pick
        self.loop = loop
        self.start_method = start_method
        self.state = state
        self.resume = resume

    def workers_of(self, kind: str) -> int | None:
        """Return the most workers of *kind* at once, None if nobody said."""
        return self.max_workers.get(kind)


def kind_of(executor: Any) -> str:
    """Return what *executor*, as ``run()`` takes it, is as a kind of worker."""
    return executor if isinstance(executor, str) else "foreign"


def default_workers() -> int:
    """Return how many threads a run has if nobody said."""
    return min(32, (os.cpu_count() or 1) + 4)


def check_keywords(where: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return *keywords* with lists in place of iterables, if ``run()`` has these arguments and they are in range.

    Raises:
        TypeError: There is no such argument.
        OptionError: A value is outside of its range, or its machinery is not part of this version.
    """
    for name, value in keywords.items():
        if name not in _KNOWN:
            known = ", ".join(sorted(known for known in _KNOWN if not known.startswith("_")))
            raise TypeError(f"{where}: there is no argument {name!r}; there are inputs, {known}.")
        if name in _NOT_YET and value is not _NOT_YET[name]:
            raise OptionError(f"{where}: {name}={shown(value)} is not part of this version; leave it out.")
    _check_executor(where, keywords.get("executor", "thread"))
    if keywords.get("max_workers") is not None:
        _check_max_workers(where, keywords["max_workers"])
    if keywords.get("timeout") is not None:
        check_seconds(where, "timeout", keywords["timeout"], above_zero=True)
    if keywords.get("state") is not None:
        _check_state(where, keywords["state"])
    if not isinstance(keywords.get("resume", False), bool):
        raise OptionError(f"{where}: resume={shown(keywords['resume'])} must be True or False.")
    for name in ("fail_fast", "raise_on_failure"):
        if not isinstance(keywords.get(name, True), bool):
            raise OptionError(f"{where}: {name}={shown(keywords[name])} must be True or False.")
    checked = dict(keywords)
    if isinstance(keywords.get("max_workers"), Mapping):
        checked["max_workers"] = dict(keywords["max_workers"])
    limits = keywords.get("limits")
    if limits is not None and not isinstance(limits, Mapping):
        raise OptionError(f"{where}: limits={shown(limits)} must be a mapping of names to numbers, as {{'api': 4}}.")
    for name, most in (limits or {}).items():
        check_count(where, f"limits[{name!r}]", most, 1, 1_000_000_000)
    if limits is not None:
        checked["limits"] = dict(limits)
    for name, of_what in (("observers", "callables"), ("targets", "task names")):
        if name in keywords and (keywords[name] is not None or name == "observers"):
            checked[name] = _as_list(where, name, keywords[name], of_what)
    for observer in checked.get("observers", ()):
        if not callable(observer):
            raise OptionError(f"{where}: observer {shown(observer)} must be callable with one event.")
    return checked


def _check_state(where: str, state: Any) -> None:
    if isinstance(state, type) or not callable(getattr(state, "open_scope", None)):
        is_path = isinstance(state, (str, os.PathLike))
        hint = f" Write state=StateManager({str(state)!r})." if is_path else ""
        raise OptionError(f"{where}: state={shown(state)} must be a StateManager or an SQLiteStateStore.{hint}")


def _check_executor(where: str, executor: Any) -> None:
    if isinstance(executor, str) and executor in EXECUTORS:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        known = ", ".join(map(repr, EXECUTORS))
        raise OptionError(
            f"{where}: executor={shown(executor)} must be one of {known}, or a concurrent.futures.Executor."
        )


def _check_max_workers(where: str, most: Any) -> None:
    if not isinstance(most, Mapping):
        check_count(where, "max_workers", most, 1, MOST_WORKERS)
        return
    for kind, count in most.items():
        if kind not in KINDS:
            known = ", ".join(map(repr, KINDS))
            raise OptionError(f"{where}: max_workers={shown(most)}: {shown(kind)} must be one of {known}.")
        check_count(where, f"max_workers[{kind!r}]", count, 1, MOST_WORKERS)


def _as_list(where: str, name: str, value: Any, of_what: str) -> list[Any]:
    if isinstance(value, str):
        raise OptionError(f"{where}: {name}={shown(value)} must be a list. Write {name}=[{shown(value)}].")
    if not isinstance(value, Iterable):
        raise OptionError(f"{where}: {name}={shown(value)} must be a list of {of_what}. Write {name}=[...].")
    return list(value)


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return *given* over *defaults*: limits are merged, observers of both count, all else is replaced."""
    merged = {**defaults, **given}
    merged["limits"] = {**(defaults.get("limits") or {}), **(given.get("limits") or {})}
    merged["observers"] = [*defaults.get("observers", ()), *given.get("observers", ())]
    return merged


def make_settings(
    where: str, keywords: Mapping[str, Any], inputs: Mapping[str, Any], loop: AbstractEventLoop | None = None
) -> Settings:
    """Return the settings that *keywords*, checked and merged, ask for.

    Raises:
        OptionError: One of them needs another one.
    """
    if keywords.get("resume") and keywords.get("state") is None:
        raise OptionError(f"{where}: resume=True needs a state that results were kept in: state=StateManager('...').")
    most = keywords.get("max_workers") or {}
    return Settings(
        inputs=inputs,
        executor=keywords.get("executor", "thread"),
        max_workers=most if isinstance(most, Mapping) else dict.fromkeys(KINDS, most),
        limits=keywords["limits"],
        fail_fast=keywords.get("fail_fast", True),
        timeout=keywords.get("timeout"),
        observers=[*default_observers, *keywords["observers"]],
        clock=keywords.get("_clock"),
        rng=keywords.get("_rng"),
        pick=keywords.get("_pick"),
        loop=loop,
        start_method=keywords.get("_start_method"),
        state=keywords.get("state"),
        resume=keywords.get("resume", False),
    )
