"""Make a run of a program, as every door does last.

Knows what a program needs of a run. Does not know how the program was described.
"""

from __future__ import annotations

from contextvars import copy_context

from ..exceptions import OptionError, close_matches
from .program import raise_problems
from .runner import Run
from .settings import make_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Mapping
    from typing import Any

    from .program import Program


def make_run(
    where: str,
    program: Program,
    keywords: Mapping[str, Any],
    inputs: Mapping[str, Any],
    loop: AbstractEventLoop | None = None,
) -> Run:
    """Return a run of *program* that has not begun.

    Args:
        where: Who asks, for errors.
        program: What to run.
        keywords: The arguments of ``run()``, checked and merged.
        inputs: Values by name.
        loop: The event loop for coroutines, which runs in this thread; None for one of the run's own.

    Raises:
        DefinitionError: An argument does not fit the program.
        NotPicklableError: A task is to run in a process, and its function or an input cannot be sent there.
    """
    settings = make_settings(where, keywords, inputs, loop)
    check_limits(where, program, settings.limits)
    check_processes(program, settings.kind, inputs)
    return Run(program, settings, copy_context())


def check_limits(where: str, program: Program, limits: Mapping[str, int]) -> None:
    """Raise OptionError if a task counts for a limit that is not among *limits*."""
    missing = {name: i for i, name in reversed(program.uses.items()) if name not in limits}
    raise_problems(
        where,
        [
            OptionError(
                f"{where}: task {program.names[i]!r} has uses={name!r}, and there is no such limit"
                f"{close_matches(name, limits)}. Write limits={{{name!r}: 4}}."
            )
            for name, i in reversed(missing.items())
        ],
    )


def check_processes(program: Program, executor: str, inputs: Mapping[str, Any]) -> None:
    """Raise NotPicklableError if a task cannot be sent to the process that a run with *executor* gives it."""
    ids = program.ids_on("process", executor)
    if ids:
        from .workers.shipping import check_can_be_sent  # noqa: PLC0415 - imports pickle

        check_can_be_sent(program, ids, inputs)
