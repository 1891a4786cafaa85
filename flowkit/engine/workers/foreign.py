"""Run attempts on somebody else's executor: anything with the interface of ``concurrent.futures.Executor``.

Knows submitting and futures. Does not know where the executor's workers are: a first call finds out whether they share
this process. If they do, attempts are made as on a thread of our own. If not, they travel like those of a process of
our own, and answers come back as bytes, so that no object of a user can break the executor.

One thread of ours submits, and hears of every end, because an executor calls back from threads in which it must not be
kept waiting. The executor is never shut down here, and what it runs cannot be killed: an attempt that timed out is left
to end by itself.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from queue import SimpleQueue

from ...context import TaskContext, holder
from ...exceptions import FlowkitError, describe, shown
from ...task import is_main_elsewhere
from ..loops import PrivateLoop
from . import NotStartedError, Worker, remote
from .remote import read_answer
from .shipping import Spec, decode, encode_arguments, encode_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future
    from typing import Any, Protocol

    from ...task import Task
    from . import Attempts
    from .wire import Part

    class ForeignAttempts(Attempts, Protocol):
        """What a pool whose workers are elsewhere asks of its run beside the end of an attempt."""

        run_id: str

        def task_of(self, i: int) -> Task[..., Any]:
            """Return the task of *i*."""

        def arguments_for(
            self, worker: Worker, i: int, *, is_condition_known: bool = False
        ) -> tuple[tuple[Any, ...], bool]:
            """Return what an attempt of *i* takes, and whether its condition is to be asked first.

            Without a condition the attempt counts as started.
            """

        def is_needed_elsewhere_only(self, i: int) -> bool:
            """Return whether the result of *i* is used, and only by attempts on a foreign executor."""

        def failed(
            self, worker: Worker, i: int, error: BaseException, *, may_retry: bool | None = None
        ) -> list[int] | None:
            """Take what came out of *i* instead of a value."""


_MOST_IN_FLIGHT = 1_024
"""How many attempts an executor gets at once that does not tell how many workers it has."""


class _Here:
    """Is lost when it is pickled, which tells whether a call has left the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, ()


def _look_around(token: object) -> tuple[bool, str]:
    """Return whether this is still the process of the run, and the file of the ``__main__`` module here."""
    return isinstance(token, _Here), getattr(sys.modules["__main__"], "__file__", "")


class _Foreign(Worker):
    """One attempt on the executor.

    Attributes:
        future: The executor's promise.
        keeps: Whether the result stays where the attempt is made.
    """

    __slots__ = ("future", "keeps")

    def __init__(self, run: Attempts, pool: object, name: str, i: int) -> None:
        super().__init__(run, pool, name)
        self.current = i
        self.keeps = False
        self.future: Future[Any] | None = None


class ForeignPool:
    """At most *size* attempts on *executor* at once.

    Args:
        run: Who says what an id means.
        executor: Where they run.
        size: The most attempts at once; None for as many as the executor has workers.
        on_idle: Called when nothing is left to do; None if nobody wants to know.
    """

    def __init__(
        self,
        run: ForeignAttempts,
        executor: Executor,
        size: int | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        workers = getattr(executor, "_max_workers", None)
        self._free = size or (workers if isinstance(workers, int) else _MOST_IN_FLIGHT)
        self._on_idle = on_idle
        self._name = type(executor).__name__
        self._ready: deque[int] = deque()
        self._working: dict[_Foreign, None] = {}
        """Changed by our thread only."""
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """What our thread is to do next; None to end."""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._submit_kept = getattr(executor, "submit_kept", None)
        """Submits a call whose result stays away; None if the executor has no such thing."""
        self._is_here: bool | None = None
        """Whether the executor's workers share this process; None until it was found out."""
        self._has_main = True
        """Whether their ``__main__`` module is ours."""
        self._specs: dict[Any, list[bytes]] = {}

    # ------------------------------------------------------------ from any thread

    def add(self, ids: Sequence[int]) -> None:
        """Have the attempts of *ids* made soon."""
        if not ids:
            return
        self._ready.extend(ids)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="flowkit-submit", daemon=True)
                self._thread.start()
        self._calls.put(self._submit_ready)

    def withdraw(self) -> list[int]:
        """Take back what was added and has not been submitted."""
        taken = []
        while self._ready:
            try:
                taken.append(self._ready.popleft())
            except IndexError:  # our thread was faster
                break
        return taken

    def is_starting(self) -> bool:
        """Return whether an id waits and may be submitted."""
        return bool(self._ready and self._free)

    def working(self) -> list[Worker]:
        """Return the attempts that have not ended."""
        return list(self._working.copy())

    def abandon(self, worker: Worker) -> int:
        """Let another attempt take the place of *worker*, which ends by itself; return 0."""
        self._calls.put(lambda: self._give_up(worker))
        return 0

    def stop(self, is_unwanted: Callable[[int], bool], *, kills: bool) -> None:
        """Take back what the executor has not started."""
        for worker in self._working.copy():
            if worker.future is not None and worker.current >= 0 and is_unwanted(worker.current):
                worker.future.cancel()

    def close(self) -> int:
        """End our thread; the executor goes on. Return 0."""
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join()
        return 0

    # ------------------------------------------------------------ in our thread

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _submit_ready(self) -> None:
        ready, run = self._ready, self._run
        while ready and self._free:
            try:
                i = ready.popleft()
            except IndexError:  # taken back
                break
            self._free -= 1
            worker = _Foreign(run, self, self._name, i)
            self._working[worker] = None
            run.record.workers[i] = worker.name
            run.record.started[i] = run.now()
            try:
                if run.is_stopped and not run.admits(i):
                    raise NotStartedError
                self._submit(worker, i)
            except BaseException as error:  # noqa: BLE001 - whatever is wrong with a task is its outcome
                self._end(worker, run.failed(worker, i, error))
        if not self._working and self._on_idle is not None:
            self._on_idle()

    def _submit(self, worker: _Foreign, i: int, *, is_condition_known: bool = False) -> None:
        run = self._run
        if self._is_here is None:
            self._is_here, main = self._ask(i, _look_around, _Here()).result()
            self._has_main = main == getattr(sys.modules["__main__"], "__file__", "")
        if self._is_here:
            future = self._ask(i, _attempt_here, run.call_of(worker), i)
        else:
            arguments: Any
            arguments, asks = run.arguments_for(worker, i, is_condition_known=is_condition_known)
            if self._submit_kept is None:
                func = run.task_of(i).func
                arguments = self._pack(lambda name, values: encode_arguments(name, values, func), i, arguments)
            name, attempt = str(run.record.names[i]), run.record.attempts_of(i) or 1
            call = _ask_away if asks else _attempt_away
            worker.keeps = not asks and self._submit_kept is not None and run.is_needed_elsewhere_only(i)
            submit = self._submit_kept if worker.keeps else None
            future = self._ask(i, call, self._spec_of(i), name, run.run_id, attempt, arguments, submit=submit)
        worker.future = future
        future.add_done_callback(lambda future: self._calls.put(lambda: self._take(worker, i, future)))

    def _spec_of(self, i: int) -> list[bytes]:
        """Return what a worker needs to know of *i*, as bytes."""
        spec = Spec.of(self._run.task_of(i))
        known = self._specs.get(spec.key)
        if known is None:
            known = self._specs[spec.key] = self._pack(encode_spec, i, spec)
        return known

    def _pack(self, encode: Callable[[str, Any], Sequence[Part]], i: int, value: Any) -> list[bytes]:
        """Return *value*, which belongs to *i*, as bytes: no object of a user's is pickled by the executor."""
        token = is_main_elsewhere.set(not self._has_main)
        try:
            return [bytes(part) for part in encode(self._run.record.names[i], value)]
        finally:
            is_main_elsewhere.reset(token)

    def _ask(self, i: int, call: Callable[..., Any], *args: Any, submit: Any = None) -> Future[Any]:
        try:
            return (submit or self._executor.submit)(call, *args)
        except Exception as error:
            raise FlowkitError(
                f"the executor {shown(self._executor)} did not take task {self._run.record.names[i]!r}; pass one that "
                f"is neither broken nor shut down: {describe(error)}"
            ) from error

    def _take(self, worker: _Foreign, i: int, future: Future[Any]) -> None:
        run, name = self._run, self._run.record.names[i]
        may_retry: bool | None = None
        error: BaseException | None = None
        value = None
        try:
            answer, content = future.result()
        except BaseException as broken:  # noqa: BLE001 - nothing of the task's own gets here: the executor failed
            error, may_retry = self._failure(worker, i, broken), False
        else:
            if worker.keeps and answer == "kept":
                self._end(worker, run.succeeded(worker, i, content))
                return
            if answer == "holds":
                try:
                    self._submit(worker, i, is_condition_known=True)
                except BaseException as refused:  # noqa: BLE001 - whatever is wrong with a task is its outcome
                    self._end(worker, run.failed(worker, i, refused))
                return
            if answer == "value":
                value = content
            elif answer == "raised":
                error = content
            else:
                value, error, may_retry = read_answer(name, answer, content)
        if error is None:
            self._end(worker, run.succeeded(worker, i, value))
        else:
            self._end(worker, run.failed(worker, i, error, may_retry=may_retry))

    def _failure(self, worker: _Foreign, i: int, error: BaseException) -> BaseException:
        """Return what to say of an attempt that the executor did not make, or whose answer it lost."""
        name, executor = self._run.record.names[i], shown(self._executor)
        if worker.future is not None and worker.future.cancelled():
            return NotStartedError() if self._run.is_stopped and not self._run.admits(i) else FlowkitError(
                f"task {name!r} was cancelled in the executor {executor}, and not by this run."
            )
        failure = FlowkitError(f"the executor {executor} failed at task {name!r}: {describe(error)}")
        failure.__cause__ = error
        return failure

    def _end(self, worker: _Foreign, ready: list[int] | None) -> None:
        worker.current = -1
        self._discard(worker)
        self._ready.extend(ready or ())
        self._submit_ready()

    def _give_up(self, worker: Any) -> None:
        if worker.future is not None:
            worker.future.cancel()
        self._discard(worker)
        self._submit_ready()

    def _discard(self, worker: _Foreign) -> None:
        if worker in self._working:
            del self._working[worker]
            self._free += 1


# ---------------------------------------------------------------- on the executor's workers


def _attempt_here(call: Callable[[int], Any], i: int) -> tuple[str, Any]:
    try:
        return "value", call(i)
    except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
        return "raised", error


def _attempt_away(spec: list[bytes], name: str, run_id: str, attempt: int, arguments: Sequence[Any]) -> Any:
    """Make an attempt; return its answer and, as bytes, what belongs to it."""
    return _answer(spec, name, run_id, attempt, arguments, None)


def _ask_away(spec: list[bytes], name: str, run_id: str, attempt: int, arguments: Sequence[Any]) -> Any:
    """Ask the condition; return "holds", or the answer of a task that is not to run."""

    def end_here() -> None:
        raise _HoldsError

    try:
        return _answer(spec, name, run_id, attempt, arguments, end_here)
    except _HoldsError:
        return "holds", ()


class _HoldsError(BaseException):
    """The condition holds."""


class _Away:
    """Whoever is asked for the context of an attempt on a foreign worker."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context

    def task_context(self) -> TaskContext:
        return self._context


def attempt_kept(spec: list[bytes], name: str, run_id: str, attempt: int, arguments: Sequence[Any]) -> Any:
    """Make an attempt and return the task's value itself.

    Raises:
        Ended: There is none.
    """
    answer, content = _attempt(spec, name, run_id, attempt, arguments, None)
    if answer is None:
        return content[0]
    raise remote.Ended(answer, content)


def _answer(
    spec: list[bytes],
    name: str,
    run_id: str,
    attempt: int,
    arguments: Sequence[Any],
    on_condition: Callable[[], None] | None,
) -> Any:
    answer, content = _attempt(spec, name, run_id, attempt, arguments, on_condition)
    if answer is None:
        answer, content = remote.answer_value(*content)
    return answer, [bytes(part) for part in content]


def _attempt(
    spec_parts: list[bytes],
    name: str,
    run_id: str,
    attempt: int,
    arguments: Sequence[Any],
    on_condition: Callable[[], None] | None,
) -> tuple[Any, Any]:
    """Return None and the value and seconds of an attempt, or its answer and blocks if it gave no value.

    Args:
        spec_parts: What it needs to know of the task.
        name: The task.
        run_id: The run.
        attempt: Which attempt this is.
        arguments: As bytes in a list, or themselves in a tuple.
        on_condition: Called when the condition holds; None if it is not asked.
    """
    try:
        spec = decode(spec_parts)
        if isinstance(arguments, list):
            arguments = decode(arguments)
    except BaseException as error:  # noqa: BLE001 - what is imported for it is the user's
        return remote.answer_refused(error)
    *arguments, upstream = arguments
    context = TaskContext(
        name, run_id, attempt, remote.Unsent() if upstream is None else upstream, lambda: False, _no_cleanup
    )
    token = holder.set(_Away(context))
    loop = PrivateLoop()
    try:
        return None, remote.attempt(name, spec, arguments, context, loop, on_condition)
    except _HoldsError:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
        return remote.answer_error(spec, error)
    finally:
        holder.reset(token)
        loop.close()


def _no_cleanup(handler: Callable[[], object]) -> None:
    raise FlowkitError(
        f"add_cleanup_handler({shown(handler)}): a worker of a foreign executor cannot reach the run. "
        f"Clean up in the task itself, or in a task with trigger='all_done'."
    )
