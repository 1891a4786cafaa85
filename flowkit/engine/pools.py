"""The pools of one run, and which of them an id belongs to.

Knows every kind of worker, and imports what a kind needs when a run has one. Does not know why an id is ready.
"""

from __future__ import annotations

from .settings import default_workers
from .workers.inline import InlinePool
from .workers.threads import ThreadPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Protocol

    from .calls import Calls
    from .program import Program
    from .settings import Settings
    from .workers import Pool, Worker
    from .workers.coroutines import AsyncAttempts
    from .workers.foreign import ForeignAttempts
    from .workers.inline import InlineAttempts
    from .workers.processes import ProcessAttempts

    class AnyAttempts(AsyncAttempts, ForeignAttempts, InlineAttempts, ProcessAttempts, Protocol):
        """What all kinds of pools ask of a run."""

        program: Program
        calls: Calls
        task_of_item: Callable[[int], int] | None


class Pools:
    """One pool for each kind of worker that a run needs.

    Args:
        run: Whose attempts are made.
        kinds: The kind of worker of all ids, or of each; the items of mapped tasks are added to it.
        settings: How many workers there are of each kind.
        on_idle: Called when a pool runs out of work; None if nobody wants to know.

    Attributes:
        inline: The pool of a sequential run, None in others.
        is_mixed: Whether there are several kinds.
    """

    __slots__ = ("_by_kind", "_kinds", "inline", "is_mixed")

    def __init__(
        self, run: AnyAttempts, kinds: str | list[str], settings: Settings, on_idle: Callable[[], None] | None
    ) -> None:
        self._kinds = None if isinstance(kinds, str) else kinds
        self.is_mixed = self._kinds is not None
        self.inline: InlinePool | None = None
        self._by_kind: dict[str, Pool] = {}
        for kind in [kinds] if isinstance(kinds, str) else sorted(set(kinds)):
            if kind == "sequential":
                self.inline = self._by_kind[kind] = InlinePool(
                    run, run.program.timed, run.calls.loop, settings.pick, run.task_of_item
                )
            else:
                self._by_kind[kind] = _make_pool(run, kind, settings, on_idle)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_kind.values())

    def of(self, i: int) -> Pool:
        """Return the pool that *i* belongs to."""
        return self._by_kind[self.kind_of(i)]

    def kind_of(self, i: int) -> str:
        """Return the kind of worker that *i* belongs to."""
        return self._kinds[i] if self._kinds is not None else next(iter(self._by_kind))

    def add_items(self, i: int, count: int) -> None:
        """Let the *count* next ids belong where the mapped task *i* does."""
        if self._kinds is not None:
            self._kinds += [self._kinds[i]] * count

    def add(self, ids: Sequence[int]) -> None:
        """Give *ids* to the pools that they belong to. Not under the run's lock."""
        kinds = self._kinds
        for kind, pool in self._by_kind.items():
            pool.add(ids if kinds is None else [i for i in ids if kinds[i] == kind])

    def keep(self, worker: Worker, ready: list[int]) -> list[int]:
        """Return those of *ready* that belong to the pool of *worker*; hand on the others. Not under the run's lock."""
        if self._kinds is None or not ready:
            return ready
        own = [i for i in ready if self.of(i) is worker.pool]
        if len(own) < len(ready):
            self.add([i for i in ready if self.of(i) is not worker.pool])
        return own

    def withdraw(self) -> list[int]:
        """Take back what was added and has not started."""
        return [i for pool in self for i in pool.withdraw()]

    def working(self) -> list[Worker]:
        """Return the workers that are in an attempt."""
        return [worker for pool in self for worker in pool.working()]

    def is_quiet(self, asleep: Collection[object]) -> bool:
        """Return whether nothing goes on but workers that are in *asleep*.

        In this order, because an id may be on its way: a worker of one pool hands it on to another pool and is idle
        then (the first look), it waits in that pool (the second), or a worker there has taken it (the third).
        """

        def is_anybody_awake() -> bool:
            return any(worker not in asleep for worker in self.working())

        return not (is_anybody_awake() or any(pool.is_starting() for pool in self) or is_anybody_awake())

    def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
        """Ask the attempts of the ids that *is_unwanted* names to stop. Under the run's lock."""
        for pool in self:
            pool.stop(is_unwanted, kills=kills)

    def close(self) -> int:
        """End every worker; return how many threads had to be left behind."""
        return sum([pool.close() for pool in self])


def _make_pool(run: AnyAttempts, kind: str, settings: Settings, on_idle: Callable[[], None] | None) -> Pool:
    size = settings.workers_of(kind)
    if kind == "async":
        from .workers.coroutines import CoroutinePool  # noqa: PLC0415 - imports asyncio, which costs 29 ms

        return CoroutinePool(run, size, settings.loop, on_idle)
    if kind == "foreign":
        from .workers.foreign import ForeignPool  # noqa: PLC0415 - few runs have one

        return ForeignPool(run, settings.executor, size, on_idle)
    if kind == "process":
        from .workers.processes import ProcessPool, default_processes  # noqa: PLC0415 - imports multiprocessing

        return ProcessPool(run, size or default_processes(), on_idle, settings.start_method)
    return ThreadPool(run, size or default_workers(), on_idle)
