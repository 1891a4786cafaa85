"""Ask a condition (``when``), and decide what it is asked with.

Knows the condition's own parameters. Does not know what the values are: sources at freeze time, arguments in a call.

Parameters named like the task's get the same value; the others get the rest in order; a surplus is left out.
"""

from __future__ import annotations

from ..exceptions import ConditionError, Skip, describe
from .signature import read_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeVar

    V = TypeVar("V")


class WhenFalse(Skip):
    """The condition said no."""


def choose(
    when: Callable[..., object], by_name: Mapping[str, V], in_order: Sequence[V]
) -> tuple[list[V], dict[str, V]]:
    """Return the positional and keyword arguments for *when*.

    Args:
        when: The condition.
        by_name: What names stand for; every value a different object.
        in_order: What is given by position, of the same objects.
    """
    signature = read_signature(when)
    if signature is None:  # a builtin that does not tell, such as bool
        return list(in_order[:1]), {}
    named = {p: by_name[p] for p in signature.positional + signature.keyword_only if p in by_name}
    taken = {id(value) for value in named.values()}
    free = iter([value for value in in_order if id(value) not in taken])
    args: list[V] = []
    for parameter in signature.positional:
        if parameter in named:
            args.append(named.pop(parameter))
            continue
        rest = next(free, None)
        if rest is None:  # what follows can only be passed by name
            break
        args.append(rest)
    else:
        if signature.has_varargs:
            args += free
    if signature.has_varkw:
        named = {**{k: v for k, v in by_name.items() if k not in signature.positional}, **named}
    return args, named


def condition_arguments(
    when: Callable[..., object], func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return what *when* gets in a direct call ``func(*args, **kwargs)``."""
    signature = read_signature(func)
    boxed = [(value,) for value in args]  # so that equal values are different objects
    boxed_by_name = {name: (value,) for name, value in kwargs.items()}
    by_name = {}
    if signature:
        by_name = {name: (value,) for name, value in signature.defaults.items()}
        by_name.update(zip(signature.positional, boxed, strict=False))
    chosen, named = choose(when, by_name | boxed_by_name, [*boxed, *boxed_by_name.values()])
    return [value for (value,) in chosen], {name: value for name, (value,) in named.items()}


def ask_condition(name: str, when: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise unless the condition of task *name* holds: Skip if not, ConditionError if it cannot be told."""
    answer: Any = None
    try:
        answer = when(*args, **kwargs)
        holds = not hasattr(answer, "__await__") and bool(answer)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConditionError(name, f"the condition (when) of task {name!r} raised {describe(error)}") from error
    if hasattr(answer, "__await__"):
        close_awaitable(answer)
        raise ConditionError(
            name,
            f"the condition (when) of task {name!r} returned a {type(answer).__name__}, which is always true: "
            f"write it as a plain function.",
        )
    if not holds:
        raise WhenFalse("when() was false")


def close_awaitable(awaitable: object) -> None:
    """Keep Python from warning that a coroutine was never awaited: the error says so already."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
