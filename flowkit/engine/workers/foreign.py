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
from ...hooks import log_broken_hook
from ...task import is_main_elsewhere
from ..loops import GRACE, PrivateLoop
from . import NotStartedError, Worker, remote, take_all
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
            self,
            worker: Worker,
            i: int,
            error: BaseException,
            *,
            may_retry: bool | None = None,
            has_started: bool = True,
        ) -> list[int] | None:
            """Take what came out of *i* instead of a value."""


_ARGUMENTS = 5
"""Arguments of the function and the condition, by position and by name, and the upstream runs."""
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
    """

    __slots__ = ("future",)

    def __init__(self, run: Attempts, pool: object, name: str) -> None:
        super().__init__(run, pool, name)
        self.future: Future[Any] | None = None


class ForeignPool:
    """At most *size* attempts on *executor* at once.

    Args:
        run: Who says what an id means.
        executor: Where they run.
        size: The most attempts at once; None for as many as the executor has workers.
        on_idle: Called when an attempt has ended; None if nobody wants to know.
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
        self._free = size or (workers if isinstance(workers, int) and workers > 0 else _MOST_IN_FLIGHT)
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
        self._look: Future[Any] | None = None
        """The call that finds that out."""
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
                thread = threading.Thread(target=self._serve, name="flowkit-submit", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise FlowkitError(f"cannot start a thread to submit tasks: {error}") from error
                self._thread = thread
        self._calls.put(self._submit_ready)

    def withdraw(self) -> list[int]:
        """Take back what was added and has not been submitted."""
        return take_all(self._ready)

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
        self._calls.put(lambda: self._cancel_unwanted(is_unwanted))

    def close(self) -> int:
        """End our thread; the executor goes on. Return 1 if our thread is kept waiting by it."""
        self._calls.put(None)
        if self._thread is None:
            return 0
        self._thread.join(GRACE)
        return int(self._thread.is_alive())

    # ------------------------------------------------------------ in our thread

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _submit_ready(self) -> None:
        ready, run = self._ready, self._run
        if ready and self._is_here is None:
            self._look_around()
        while ready and self._free and self._is_here is not None:
            worker = _Foreign(run, self, self._name)
            self._working[worker] = None  # first, or the id would be out of sight for a moment
            self._free -= 1
            try:
                i = worker.current = ready.popleft()
            except IndexError:  # taken back
                self._discard(worker)
                break
            run.record.workers[i] = worker.name
            run.record.started[i] = run.now()
            try:
                if run.is_stopped and not run.admits(i):
                    raise NotStartedError
                self._submit(worker, i)
            except BaseException as error:  # noqa: BLE001 - whatever is wrong with a task is its outcome
                self._end(worker, run.failed(worker, i, error, may_retry=False))

    def _look_around(self) -> None:
        """Find out where the executor's workers are, if that is not under way."""
        if self._look is not None:
            return
        try:
            self._look = self._ask(self._ready[0], _look_around, _Here())
        except IndexError:  # taken back
            return
        except FlowkitError as error:
            self._refuse_all(error)
        else:
            self._look.add_done_callback(lambda future: self._calls.put(lambda: self._learn(future)))

    def _learn(self, future: Future[Any]) -> None:
        try:
            self._is_here, main = future.result()
        except BaseException as error:  # noqa: BLE001 - nothing of the task's own gets here: the executor failed
            self._look = None
            self._refuse_all(error)
            return
        self._has_main = main == getattr(sys.modules["__main__"], "__file__", "")
        self._submit_ready()

    def _refuse_all(self, error: BaseException) -> None:
        """Fail what waits: the executor does not work."""
        for i in self.withdraw():
            worker = _Foreign(self._run, self, self._name)
            worker.current = i
            refusal = error if isinstance(error, FlowkitError) else self._failure(worker, i, error)
            self._ready.extend(self._run.failed(worker, i, refusal, may_retry=False) or ())
        if self._ready:
            self._submit_ready()

    def _submit(self, worker: _Foreign, i: int, *, is_condition_known: bool = False) -> None:
        run = self._run
        if self._is_here:
            future = self._ask(i, _attempt_here, run.call_of(worker), i)
        else:
            arguments: Any
            arguments, asks = run.arguments_for(worker, i, is_condition_known=is_condition_known)
            if self._submit_kept is not None:  # Dask finds its futures in plain collections only
                upstream = arguments[-1]
                arguments = (*arguments, upstream and upstream.take_values())
            else:
                func = run.task_of(i).func
                arguments = self._pack(lambda name, values: encode_arguments(name, values, func), i, arguments)
            name, attempt = str(run.record.names[i]), run.record.attempts_of(i) or 1
            call = _ask_away if asks else _attempt_away
            submit = self._submit_kept if not asks and run.is_needed_elsewhere_only(i) else None
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
            future = (submit or self._executor.submit)(call, *args)
            if not hasattr(future, "add_done_callback"):
                raise TypeError(f"submit() gave {shown(future)}, which is no future")
        except BaseException as error:
            raise FlowkitError(
                f"the executor {shown(self._executor)} did not take task {self._run.record.names[i]!r}; pass one that "
                f"is neither broken nor shut down: {describe(error)}"
            ) from error
        return future

    def _take(self, worker: _Foreign, i: int, future: Future[Any]) -> None:
        run = self._run
        try:
            answer, content = future.result()
            if answer == "holds":
                self._submit(worker, i, is_condition_known=True)
                return
            value, error, may_retry = self._read(run.record.names[i], answer, content)
        except NotStartedError as stopped:
            value, error, may_retry = None, stopped, None
        except BaseException as broken:  # noqa: BLE001 - nothing of the task's own gets here: the executor failed
            value, error, may_retry = None, self._failure(worker, i, broken), False
        if error is None:
            self._end(worker, run.succeeded(worker, i, value))
        else:
            self._end(worker, run.failed(worker, i, error, may_retry=may_retry))

    def _read(self, name: str, answer: Any, content: Any) -> tuple[Any, BaseException | None, bool | None]:
        if answer in ("value", "kept"):
            return content, None, None
        if answer == "raised":
            return None, content, None
        return read_answer(name, answer, content)

    def _failure(self, worker: _Foreign, i: int, error: BaseException) -> BaseException:
        """Return what to say of an attempt that the executor did not make, or whose answer it lost."""
        if isinstance(error, FlowkitError):
            return error
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
        self._ready.extend(ready or ())  # first, or they would be out of sight for a moment
        self._discard(worker)
        self._submit_ready()
        if self._on_idle is not None:
            self._on_idle()

    def _cancel_unwanted(self, is_unwanted: Callable[[int], bool]) -> None:
        if self._look is not None and self._is_here is None:
            self._cancel(self._look)
        for worker in self._working.copy():
            if worker.future is not None and worker.current >= 0 and is_unwanted(worker.current):
                self._cancel(worker.future)

    def _cancel(self, future: Future[Any]) -> None:
        try:
            future.cancel()
        except Exception:  # noqa: BLE001 - it is somebody else's, and may raise anything
            log_broken_hook(f"cancel() of a future of {shown(self._executor)}", "It is left to end by itself.")

    def _give_up(self, worker: Any) -> None:
        if worker.future is not None:
            self._cancel(worker.future)
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
    values = arguments[-1] if len(arguments) > _ARGUMENTS else None
    *arguments, upstream = arguments[:_ARGUMENTS]
    if upstream is not None and values is not None:
        upstream.put_values(values)
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
