"""How the attempts of one run are called.

Knows where arguments come from and what belongs to one attempt: its condition, its context, its copy of the context
variables. Does not know what becomes of an attempt, or what waits for it.
"""

from __future__ import annotations

from ..context import TaskContext
from ..exceptions import TaskTimeoutError
from ..results import TaskRuns
from .attempt import Arguments, check_value, make_call
from .condition import ask_condition
from .loops import LateError, PrivateLoop
from .program import SPECIAL
from .workers import CONTEXT_PLACE, context_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextvars import Context
    from typing import Any, Protocol

    from ..results import RunRecord
    from ..task import Task
    from .program import Program
    from .workers import Worker

    class Starts(Protocol):
        """What is asked of the run before and in an attempt."""

        program: Program
        record: RunRecord
        run_id: str

        def check_may_start(self, i: int) -> None:
            """Raise NotStartedError if *i* may not start any more."""

        def start_attempt(self, worker: Worker, i: int) -> None:
            """Note that an attempt of *i*, which is SPECIAL, starts."""

        def is_unwanted(self, worker: Worker, i: int) -> bool:
            """Return whether nobody waits for the attempt of *i* on *worker* any more."""

        def add_cleanup(self, handler: Callable[[], object]) -> None:
            """Have *handler* run if the run does not end well."""


class Calls:
    """How the attempts of *run* are called.

    Args:
        run: Told of each SPECIAL attempt before it starts.
        inputs: The run's inputs.
        context: The context variables that every attempt gets a copy of.
        is_watched: Whether somebody is to be told of every attempt.
        is_sequential: Whether coroutines are run to their end where they are called.
        is_real_time: Whether the run's clock goes as the event loop's does, which then ends those that take too long.

    Attributes:
        loop: Where coroutines run in a sequential run.
    """

    def __init__(
        self,
        run: Starts,
        inputs: Mapping[str, Any],
        context: Context,
        *,
        is_watched: bool,
        is_sequential: bool,
        is_real_time: bool,
    ) -> None:
        program = run.program
        self._run = run
        self._program = program
        self._record = run.record
        self._context = context
        self._is_watched = is_watched
        self._is_real_time = is_real_time
        self._arity = bytearray([SPECIAL]) * len(program) if is_watched else bytearray(program.arity)
        if is_sequential:
            for i in program.coroutines:
                self._arity[i] = SPECIAL
        self._arguments = Arguments(program, run.record.values, run.record.state, inputs)
        self.loop = PrivateLoop()

    def add_items(self, i: int, count: int) -> None:
        """Let the *count* next ids be called like the mapped task *i* says."""
        self._arity += bytes([SPECIAL if self._is_watched else self._arity[i]]) * count

    def everything(self, i: int) -> Any:
        """Return what the mapped task *i* is mapped over."""
        return self._arguments.everything(self._program.mapped[i])

    # ------------------------------------------------------------ in this process

    def call_of(self, worker: Worker) -> Callable[[int], Any]:
        """Return the function that makes an attempt on *worker*."""
        program = self._program
        context = context_for(worker, self._context)

        def special(i: int) -> Any:
            own = context.copy()
            args, kwargs = self._prepare(worker, i, own.run)
            if i in program.coroutines:
                coroutine = program.funcs[i](*args, **kwargs)
                timeout = program.timed.get(i) if self._is_real_time else None
                try:
                    return self.loop.run(coroutine, own, lambda: self._run.is_unwanted(worker, i), timeout)
                except LateError:
                    attempt = self._record.attempts_of(i)
                    raise TaskTimeoutError(self._record.names[i], attempt, timeout or 0.0) from None
            return own.run(program.funcs[i], *args, **kwargs)

        return make_call(program, self._arity, self._record.values, self._record.state, context, special)

    def start_coroutine(self, worker: Worker, i: int, enter: Callable[..., Any]) -> Awaitable[Any]:
        """Call the coroutine function of *i*, as one attempt on *worker*; nothing of it runs before it is awaited.

        Args:
            enter: Calls the condition.
        """
        if self._arity[i] == SPECIAL:
            args, kwargs = self._prepare(worker, i, enter)
        else:
            args, kwargs = self._arguments.of_function(i, _no_context)
        return self._program.funcs[i](*args, **kwargs)  # type: ignore[no-any-return]

    def _prepare(self, worker: Worker, i: int, enter: Callable[..., Any]) -> tuple[list[Any], dict[str, Any]]:
        """Ask the condition of *i* by *enter*, if it has one, start an attempt, and return its arguments."""

        def task_context() -> TaskContext:
            return self.task_context(worker, i)

        binding = self._program.bindings.get(i)
        if binding is not None and binding.when is not None and i not in self._record.attempts:
            self._run.check_may_start(i)
            args, kwargs = self._arguments.of_condition(i, task_context)
            enter(ask_condition, self._record.names[i], binding.when, args, kwargs)
        self._run.start_attempt(worker, i)
        return self._arguments.of_function(i, task_context)

    def task_context(self, worker: Worker, i: int) -> TaskContext:
        """Make the context of the attempt of *i* on *worker*."""
        record = self._record
        return TaskContext(
            record.names[i],
            self._run.run_id,
            record.attempts_of(i),
            TaskRuns(record, record.upstream[i]),
            lambda: self._run.is_unwanted(worker, i),
            self._run.add_cleanup,
        )

    def check_value(self, i: int, value: Any) -> None:
        """Raise TaskResultError if *value*, returned by *i*, cannot be handed on."""
        check_value(self._record.names[i], value)

    # ------------------------------------------------------------ in another process

    def arguments_for(
        self, worker: Worker, i: int, *, is_condition_known: bool = False
    ) -> tuple[tuple[Any, ...], bool]:
        """Return what an attempt of *i* in a process takes, and whether its condition is to be asked first.

        That is the arguments of the function and of the condition, and the upstream runs if it takes the context.
        Without a condition the attempt counts as started.

        Args:
            is_condition_known: Whether the condition was asked, and holds.
        """
        arguments = self._arguments
        if self._arity[i] != SPECIAL:
            return (*arguments.of_function(i, _no_context), (), {}, None), False
        upstream: list[TaskRuns] = []

        def place_context() -> Any:
            upstream[:] = [self._record.excerpt(self._record.upstream[i])]
            return CONTEXT_PLACE

        binding = self._program.bindings.get(i)
        has_condition = binding is not None and binding.when is not None
        asks = has_condition and not is_condition_known and i not in self._record.attempts
        condition: tuple[Any, Any] = (), {}
        if asks:
            self._run.check_may_start(i)
            condition = arguments.of_condition(i, place_context)
        else:
            self._run.start_attempt(worker, i)
        return (*arguments.of_function(i, place_context), *condition, upstream[0] if upstream else None), asks

    def task_of(self, i: int) -> Task[..., Any]:
        """Return the task of *i*."""
        return self._program.tasks[i]

    def is_batchable(self, i: int) -> bool:
        """Return whether an attempt of *i* takes nothing but results, and nothing watches its time."""
        return self._program.arity[i] != SPECIAL and i not in self._program.uses


def _no_context() -> TaskContext:
    raise AssertionError("a call with a context parameter is SPECIAL")
