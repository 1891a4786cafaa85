"""Read what parameters a function has.

Knows code objects and ``inspect``. Does not know tasks: :mod:`.binding` decides what each parameter gets.

A plain function is read from its ``__code__``, which costs 0.15 µs where ``inspect.signature`` costs 7; ``inspect``
is imported only for what has no code of its own (classes, partials, builtins) or carries a ``__wrapped__``.
"""

from __future__ import annotations

from types import FunctionType, MethodType

from ..exceptions import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_VARARGS, _VARKEYWORDS = 0x04, 0x08
_COROUTINE = 0x80 | 0x100
"""CO_COROUTINE and CO_ITERABLE_COROUTINE."""


class Signature:
    """The parameters of a callable.

    Attributes:
        positional: Names of the parameters that can be passed by position, in order.
        defaults: Default of each parameter that has one, by name.
        keyword_only: Names of the parameters that can be passed by name alone.
        has_varargs: Whether there is a ``*args``.
        has_varkw: Whether there is a ``**kwargs``.
        positional_only: How many of the first ones cannot be passed by name.
        contexts: Names of the parameters that take the TaskContext.
    """

    __slots__ = ("contexts", "defaults", "has_varargs", "has_varkw", "keyword_only", "positional", "positional_only")

    def __init__(
        self,
        positional: tuple[str, ...],
        defaults: Mapping[str, object],
        keyword_only: tuple[str, ...],
        annotations: Mapping[str, object],
        *,
        has_varargs: bool,
        has_varkw: bool,
        positional_only: int,
    ) -> None:
        self.positional = positional
        self.positional_only = positional_only
        self.defaults = defaults
        self.keyword_only = keyword_only
        self.has_varargs = has_varargs
        self.has_varkw = has_varkw
        self.contexts = _context_parameters(positional + keyword_only, annotations)

    @property
    def takes_nothing(self) -> bool:
        """Whether no value can be passed (the context does not count)."""
        names = self.positional + self.keyword_only
        return not (self.has_varargs or self.has_varkw) and all(name in self.contexts for name in names)


def read_signature(func: Callable[..., Any]) -> Signature | None:
    """Return the parameters of *func*, or None if it does not tell them (some builtins)."""
    plain: Any = func
    skip = 0
    if type(plain) is MethodType:
        plain, skip = plain.__func__, 1
    if type(plain) is not FunctionType or (plain.__dict__ and _has_other_signature(plain)):
        return _inspect(func)
    code = plain.__code__
    count = code.co_argcount
    positional = code.co_varnames[skip:count]
    keyword_only = code.co_varnames[count : count + code.co_kwonlyargcount]
    defaults: dict[str, object] = {}
    if plain.__defaults__:
        defaults.update(zip(reversed(positional), reversed(plain.__defaults__), strict=False))
    if plain.__kwdefaults__:
        defaults.update(plain.__kwdefaults__)
    return Signature(
        positional,
        defaults,
        keyword_only,
        plain.__annotations__,
        has_varargs=bool(code.co_flags & _VARARGS),
        has_varkw=bool(code.co_flags & _VARKEYWORDS),
        positional_only=max(0, code.co_posonlyargcount - skip),
    )


def takes(func: Callable[..., Any], count: int) -> bool:
    """Return whether *func* can be called with *count* arguments by position; True if it does not tell."""
    signature = read_signature(func)
    if signature is None:
        return True
    if any(name not in signature.defaults for name in signature.keyword_only):
        return False
    required = sum(name not in signature.defaults for name in signature.positional)
    return required <= count and (signature.has_varargs or count <= len(signature.positional))


def is_coroutine_function(func: Callable[..., Any]) -> bool:
    """Return whether calling *func* gives a coroutine to await: ``async def``, also partials and ``__call__``."""
    while True:
        code = getattr(func, "__code__", None)
        if code is not None:
            return bool(code.co_flags & _COROUTINE)
        inner = getattr(func, "func", None)  # functools.partial
        if inner is None or inner is func:
            break
        func = inner
    call = getattr(type(func), "__call__", None)  # noqa: B004 - the code behind it is wanted, not whether it is there
    code = getattr(call, "__code__", None)
    return code is not None and bool(code.co_flags & _COROUTINE)


def describe_signature(func: Callable[..., Any], name: str) -> str:
    """Return ``name(a, b=1, *args)`` for messages, cut to 200 characters."""
    signature = read_signature(func)
    if signature is None:
        return f"{name}(...)"

    def with_default(parameter: str) -> str:
        if parameter not in signature.defaults:
            return parameter
        default = shown(signature.defaults[parameter])
        return f"{parameter}={default if len(default) <= 30 else '...'}"

    parts = [with_default(parameter) for parameter in signature.positional]
    if signature.has_varargs:
        parts.append("*args")
    elif signature.keyword_only:
        parts.append("*")
    parts += [with_default(parameter) for parameter in signature.keyword_only]
    if signature.has_varkw:
        parts.append("**kwargs")
    text = ", ".join(parts)
    return f"{name}({text if len(text) <= 200 else text[:200] + '...'})"


def _has_other_signature(func: Any) -> bool:
    return hasattr(func, "__wrapped__") or hasattr(func, "__signature__")


def _inspect(func: Callable[..., Any]) -> Signature | None:
    import inspect  # noqa: PLC0415 - costs 8 ms, and plain functions do without it

    try:
        parameters = inspect.signature(func).parameters.values()
    except (ValueError, TypeError):
        return None
    kinds = inspect.Parameter
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    keyword_only = [p for p in parameters if p.kind is kinds.KEYWORD_ONLY]
    named = positional + keyword_only
    return Signature(
        tuple(p.name for p in positional),
        {p.name: p.default for p in named if p.default is not p.empty},
        tuple(p.name for p in keyword_only),
        {p.name: p.annotation for p in named if p.annotation is not p.empty},
        has_varargs=any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
        has_varkw=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        positional_only=sum(p.kind is kinds.POSITIONAL_ONLY for p in positional),
    )


def _context_parameters(names: tuple[str, ...], annotations: Mapping[str, object]) -> tuple[str, ...]:
    if not annotations:
        return ("context",) if "context" in names else ()
    return tuple([name for name in names if name == "context" or _is_context(annotations.get(name))])


def _is_context(annotation: object) -> bool:
    # As text: the module may not import TaskContext at run time.
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return isinstance(text, str) and text.strip("'\"").rpartition(".")[2] == "TaskContext"
