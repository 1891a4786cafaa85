"""Decide which parameter gets which value: signature × upstream → how to call.

Knows parameters, and the names of results and inputs. Does not know values: they come when a task starts.

A binding is compiled once, when the graph is frozen:

1. A parameter named like an upstream task gets that result, else one named like an input gets that input. The
   context parameter gets the TaskContext and never a result.
2. The results left over fill, in wiring order, the positional parameters left over whose default is missing or None;
   then ``*args``; then ``**kwargs`` by task name. Any other default is a setting, filled by name only.
3. A function without parameters takes nothing. Its upstream tasks only order the run.
4. What is then missing or left over is a BindingError.

With ``names_only`` step 2 is left out but for ``**kwargs``, and results left over only order.
"""

from __future__ import annotations

from ..exceptions import BindingError, close_matches, listing, shown
from .condition import choose
from .mapping import item_parameter
from .signature import Signature, describe_signature, read_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

RESULT, INPUT, CONTEXT, CONSTANT, ITEM = range(5)
OWN = -1
"""Among the ids whose values are passed by position: the item of the mapped task itself."""
ABSENT: Any = object()
"""As the default of a source: leave the argument out."""


class Source:
    """Where one argument comes from.

    Attributes:
        kind: RESULT, INPUT, CONTEXT or CONSTANT; ITEM for one item of what a task is mapped over.
        key: Id of the task, name of the input, or the constant itself.
        default: Stands for the result of a task that did not succeed; ABSENT drops the argument.
    """

    __slots__ = ("default", "key", "kind")

    def __init__(self, kind: int, key: Any, default: Any = None) -> None:
        self.kind = kind
        self.key = key
        self.default = default


class Binding:
    """How to call one task, and how to ask its condition.

    Attributes:
        args: A source for each positional argument.
        kwargs: A source for each keyword argument, by name.
        when: The condition, None if there is none.
        when_args: As args, for the condition.
        when_kwargs: As kwargs, for the condition.
        inputs: Names of the inputs that are used.
    """

    __slots__ = ("args", "inputs", "kwargs", "when", "when_args", "when_kwargs")

    def __init__(self, args: list[Source], kwargs: dict[str, Source]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.when: Callable[..., object] | None = None
        self.when_args: list[Source] = []
        self.when_kwargs: dict[str, Source] = {}
        self.inputs = {s.key for s in [*args, *kwargs.values()] if s.kind == INPUT}

    def plain_ids(self) -> tuple[int, ...] | None:
        """Return the ids whose values are all there is to pass, by position; None if the call needs more."""
        if self.kwargs or self.when is not None:
            return None
        if any(s.kind not in (RESULT, ITEM) or s.default is not None for s in self.args):
            return None
        return tuple([OWN if s.kind == ITEM else s.key for s in self.args])

    def named_ids(self) -> tuple[tuple[int, ...], tuple[tuple[str, int], ...]] | None:
        """Return the ids whose values are all there is to pass, by position and by name; None if the call needs more.

        What is passed by name is left out if its task did not succeed.
        """
        if self.when is not None or any(s.kind != RESULT or s.default is not ABSENT for s in self.kwargs.values()):
            return None
        if any(s.kind != RESULT or s.default is not None for s in self.args):
            return None
        return tuple([s.key for s in self.args]), tuple([(name, s.key) for name, s in self.kwargs.items()])

    def map_over(self, name: str, func: Callable[..., Any], over: str) -> Source:
        """Have task *name* get one item where it would get all; return where they all come from.

        Args:
            name: The task.
            func: Its function.
            over: The parameter that gets the item; empty for the first.

        Raises:
            BindingError: Neither a result nor an input is given to that parameter.
        """
        signature = read_signature(func)
        parameter = item_parameter(signature, over)
        named = dict(zip(signature.positional if signature else (), self.args, strict=False)) | self.kwargs
        source = named.get(parameter) if parameter else next((s for s in self.args if s.kind != CONTEXT), None)
        if source is None or source.kind not in (RESULT, INPUT):
            what = f"parameter {over!r}" if over else "its first parameter"
            raise BindingError(
                f"task '{describe_signature(func, name)}' is mapped, and nothing gives {what} the items. Wire the task "
                f"whose result has them, or name another parameter: map(over=...)."
            )
        everything = Source(source.kind, source.key, source.default)
        # Changed in place: the condition has the same source, and is asked about the item too.
        source.kind, source.key, source.default = ITEM, None, None
        return everything


class Upstream:
    """What arrives at one task.

    Args:
        ids: The tasks directly upstream that carry a result, in wiring order.
        names: The name of every id.
        inputs: Names of the run's inputs.
    """

    __slots__ = ("by_name", "ids", "inputs", "names")

    def __init__(self, ids: Sequence[int], names: Sequence[str], inputs: Collection[str]) -> None:
        self.ids = ids
        self.names = names
        self.by_name = {names[i]: i for i in ids}
        self.inputs = inputs


def bind(
    name: str,
    func: Callable[..., Any],
    when: Callable[..., object] | None,
    upstream: Upstream,
    *,
    names_only: bool = False,
) -> Binding:
    """Compile the call of task *name*.

    Raises:
        BindingError: A required parameter gets nothing, or a result has no place.
    """
    signature = read_signature(func)
    if signature is None and names_only and upstream.ids:
        raise BindingError(
            f"task {name!r} calls {shown(func)}, which does not tell its parameters, so no result has a place. Wrap it "
            f"in a function that takes {listing(upstream.by_name)}."
        )
    if signature is None:  # a builtin that does not tell: passed on by position, checked by the call itself
        binding = Binding([Source(RESULT, i) for i in upstream.ids], {})
        parameters: tuple[str, ...] = ()
    else:
        binding = _bind(name, func, signature, upstream, names_only=names_only)
        parameters = signature.positional
    if when is not None:
        _bind_condition(name, binding, when, parameters, signature.defaults if signature else {}, upstream)
    return binding


def _bind(
    name: str, func: Callable[..., Any], signature: Signature, upstream: Upstream, *, names_only: bool
) -> Binding:
    by_name, defaults = upstream.by_name, signature.defaults
    taken: dict[str, Source] = {}
    for parameter in signature.positional + signature.keyword_only:
        if parameter in signature.contexts:
            taken[parameter] = Source(CONTEXT, None)
        elif parameter in by_name:
            taken[parameter] = Source(RESULT, by_name[parameter], defaults.get(parameter))
        elif parameter in upstream.inputs:
            taken[parameter] = Source(INPUT, parameter)
    used = {source.key for source in taken.values() if source.kind == RESULT}
    left = [i for i in upstream.ids if i not in used]
    extra: list[Source] = []
    kwargs: dict[str, Source] = {}
    if signature.takes_nothing:
        left = []
    if not names_only:
        free = iter(left)
        for parameter in signature.positional:
            if parameter not in taken and defaults.get(parameter) is None:
                i = next(free, None)
                if i is None:
                    break
                taken[parameter] = Source(RESULT, i)
        left = list(free)
        if signature.has_varargs:
            extra = [Source(RESULT, i) for i in left]
            left = []
    if signature.has_varkw:
        # Such as that of the context, which cannot be given twice.
        own = {*signature.positional[signature.positional_only :], *signature.keyword_only}
        kwargs = {upstream.names[i]: Source(RESULT, i, ABSENT) for i in left if upstream.names[i] not in own}
        left = [i for i in left if upstream.names[i] in own]
    _check(name, func, signature, taken, None if names_only else left, upstream)
    kwargs.update({p: taken[p] for p in signature.keyword_only if p in taken})
    return Binding(_positional(signature, taken, extra) + extra, kwargs)


def _positional(signature: Signature, taken: Mapping[str, Source], extra: list[Source]) -> list[Source]:
    """Return a source for each positional parameter up to the last that needs one; gaps get their default."""
    names = signature.positional
    count = len(names) if extra else 1 + max((k for k, p in enumerate(names) if p in taken), default=-1)
    return [taken[p] if p in taken else Source(CONSTANT, signature.defaults[p]) for p in names[:count]]


def _check(
    name: str,
    func: Callable[..., Any],
    signature: Signature,
    taken: Mapping[str, Source],
    left: Sequence[int] | None,
    upstream: Upstream,
) -> None:
    """Raise if a parameter has no value, or a result no place; if *left* is None results need none."""
    wanted = signature.positional + signature.keyword_only
    missing = [p for p in wanted if p not in taken and p not in signature.defaults]
    if not missing and not left:
        return
    shown = describe_signature(func, name)
    count = len(upstream.ids)
    wired = f"{count} task{'s' if count != 1 else ''}" if count else "no task"
    if count:
        wired += f" ({listing(upstream.names[i] for i in upstream.ids)})"
    if missing:
        needed = sum(p not in signature.contexts and p not in signature.defaults for p in wanted)
        values = f"{needed} value{'s' if needed != 1 else ''}"
        if left is None:
            first, others = missing[0], [other for other in upstream.names if other != name]
            hint = "" if first in others else close_matches(first, others)
            way = f"Add {first!r}" if first in others else "Add the task whose result it is"
            raise BindingError(
                f"task '{shown}' depends on {wired} but needs {values}: nothing gives {listing(missing)}{hint}. "
                f"{way} to depends_on=[...], or give the parameter a default."
            )
        raise BindingError(
            f"task '{shown}' is wired to {wired} but needs {values}: nothing gives {listing(missing)}. "
            f"Wire a task, pass inputs={{{missing[0]!r}: ...}}, or give the parameter a default."
        )
    left = left or ()
    results = listing(upstream.names[i] for i in left)
    first = upstream.names[left[0]]
    raise BindingError(
        f"task '{shown}' is wired to {wired}, but no parameter takes the result of {results}. "
        f"Add a parameter for it, or order without the result: {name}.after({first})."
    )


def _bind_condition(
    name: str,
    binding: Binding,
    when: Callable[..., object],
    parameters: Sequence[str],
    defaults: Mapping[str, object],
    upstream: Upstream,
) -> None:
    """Give the parameters of *when* the task's arguments: by name where names agree, else in order."""
    by_name = {p: Source(CONSTANT, default) for p, default in defaults.items()}
    by_name |= dict(zip(parameters, binding.args, strict=False)) | binding.kwargs
    for other, i in upstream.by_name.items():
        by_name.setdefault(other, Source(RESULT, i))
    in_order = [s for s in binding.args if s.kind != CONTEXT] or [Source(RESULT, i) for i in upstream.ids]
    signature = read_signature(when)
    for parameter in signature.contexts if signature else ():
        by_name[parameter] = Source(CONTEXT, None)
    binding.when = when
    binding.when_args, binding.when_kwargs = choose(when, by_name, in_order)
    if signature is None:
        return
    given = set(signature.positional[: len(binding.when_args)]) | set(binding.when_kwargs)
    missing = [
        p
        for p in signature.positional + signature.keyword_only
        if p not in given and p not in signature.defaults
    ]
    if missing:
        raise BindingError(
            f"task {name!r}: its condition '{describe_signature(when, 'when')}' gets nothing for {listing(missing)}. "
            f"A condition takes the task's own arguments, by name or in order."
        )
