"""Turn functions and values into bytes for another process, and back.

Knows pickle, and how a task is found again in a process that imports its module. Does not know processes.

Functions travel by reference. The global name of a function under ``@task`` stands for the task, so pickle, which looks
the function up by name, would refuse it; here the name of the task is sent, and the other side takes its function. What
has no global name (lambdas, functions in functions) needs cloudpickle, which is used if it is installed.
"""

from __future__ import annotations

import functools
import pickle
import sys
from importlib import import_module
from io import BytesIO
from types import FunctionType

from ...exceptions import NotPicklableError, describe, shown
from ...task import find_task, is_main_importable
from ..signature import is_coroutine_function, read_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from ...task import Task
    from ..program import Program
    from .wire import Part

_PROTOCOL = 5
_SMALL_BUFFER = 4_096
"""Buffers below this many bytes are copied into the pickle rather than sent as a part of their own."""
_WAYS_OUT = "Move it to module level, install flowkit[process], or use executor='thread'."


class Spec:
    """What a process needs to know of a task once: its function, its condition, and what it retries on.

    Attributes:
        func: The function.
        is_coroutine: Whether it is one to await.
        when: Its condition, None if there is none.
        retry_on: Which errors may be followed by another attempt.
    """

    __slots__ = ("func", "is_coroutine", "retry_on", "when")

    @classmethod
    def of(cls, task: Task[..., Any]) -> Spec:
        """Return what a process needs to know of *task*."""
        return cls(task.func, task.options.when, task.options.retry.retry_on)

    @property
    def key(self) -> tuple[int, int, int]:
        """The same for tasks that need only be sent once, as long as they are alive."""
        return id(self.func), id(self.when), id(self.retry_on)

    def __init__(self, func: Callable[..., Any], when: Callable[..., object] | None, retry_on: Any) -> None:
        self.func = func
        self.is_coroutine = is_coroutine_function(func)
        self.when = when
        self.retry_on = retry_on

    def __reduce__(self) -> tuple[Any, ...]:
        # What the options of the task that stands for the function say need not be picklable itself.
        base = find_task(self.func)
        if base is None:
            return Spec, (self.func, self.when, self.retry_on)
        like = Spec.of(base)
        own = {"when": self.when, "retry_on": self.retry_on}
        return _spec_like, (base, {name: value for name, value in own.items() if value is not getattr(like, name)})


def _spec_like(base: Task[..., Any], changed: Mapping[str, Any]) -> Spec:
    spec = Spec.of(base)
    for name, value in changed.items():
        setattr(spec, name, value)
    return spec


def encode(value: object) -> list[Part]:
    """Return *value* as a pickle and the buffers that stand outside of it.

    Raises:
        Exception: Whatever pickle or the value raises if it cannot be pickled.
    """
    try:
        buffers: list[Part] = []
        packed = pickle.dumps(value, _PROTOCOL, buffer_callback=_taker(buffers))
        if is_main_importable() or b"__main__" not in packed or _cloudpickle() is None:
            return [packed, *buffers]
        return _dump(value, _cloud_pickler())
    except Exception as refused:  # noqa: BLE001 - pickle and objects raise anything
        first = refused
    for pickler in (_ByReference, _cloud_pickler()):
        try:
            if pickler is not None:
                return _dump(value, pickler)
        except Exception as refused:  # noqa: BLE001 - the first refusal is the one that says what is wrong
            del refused
    raise first


def decode(parts: Sequence[Part]) -> Any:
    """Return what :func:`encode` was given."""
    if len(parts) == 1:
        return pickle.loads(parts[0])  # noqa: S301 - from our own process
    # What could be written to there must be so here; pickle itself protects what could not.
    buffers = [bytearray(part) if memoryview(part).readonly else part for part in parts[1:]]
    return pickle.loads(parts[0], buffers=buffers)  # noqa: S301


def encode_spec(name: str, spec: Spec) -> list[Part]:
    """Return *spec*, of task *name*, as bytes.

    Raises:
        NotPicklableError: It cannot be sent.
    """
    if not is_main_importable() and _cloudpickle() is None:
        for what, value in (("function", spec.func), ("condition (when)", spec.when)):
            if getattr(value, "__module__", None) == "__main__":
                raise NotPicklableError(
                    name,
                    f"task {name!r}: its {what} {shown(value)} is defined where no other process can import it (an "
                    f"interactive session, a notebook, -c, or the __main__.py of a package). Move it to a module, "
                    f"install flowkit[process], or use executor='thread'.",
                )
    try:
        return encode(spec)
    except BaseException as error:
        for what, value in (("function", spec.func), ("condition (when)", spec.when), ("retry_on", spec.retry_on)):
            try:
                encode(value)
            except BaseException as refused:
                raise NotPicklableError(
                    name,
                    f"task {name!r}: its {what} {shown(value)} cannot be sent to a process: {describe(refused)}. "
                    f"{_WAYS_OUT}",
                ) from refused
        raise NotPicklableError(
            name, f"task {name!r} cannot be sent to a process: {describe(error)}. {_WAYS_OUT}"
        ) from error


def check_can_be_sent(program: Program, ids: Iterable[int], inputs: Mapping[str, Any]) -> None:
    """Raise NotPicklableError if the function of one of *ids*, or an input that it takes, cannot be sent."""
    if getattr(sys.modules["__main__"], "__file__", "").startswith("<"):
        name = program.names[next(iter(ids))]
        raise NotPicklableError(
            name,
            f"task {name!r} cannot run in a process: a program that is read from stdin starts none, because each would "
            f"import it from a file. Save it as one, or use executor='thread'.",
        )
    checked: set[Any] = set()
    for i in ids:
        task = program.tasks[i]
        spec = Spec.of(task)
        if spec.key not in checked:
            checked.add(spec.key)
            encode_spec(task.name, spec)
        binding = program.bindings.get(i)
        taken = binding.inputs - checked if binding is not None else ()
        for name in taken:
            checked.add(name)
            if name in inputs:
                encode_arguments(task.name, [{name: inputs[name]}])


def encode_arguments(name: str, arguments: Sequence[Any], func: Callable[..., Any] | None = None) -> list[Part]:
    """Return *arguments* of task *name*, some sequences and mappings of values, as bytes.

    Args:
        name: The task.
        arguments: What is sent; the first group is for the parameters of *func*, by position.
        func: Gives the positions a name in the error.

    Raises:
        NotPicklableError: One of them cannot be sent.
    """
    try:
        return encode(arguments)
    except BaseException as error:
        signature = read_signature(func) if func is not None else None
        parameters = dict(enumerate(signature.positional, 1)) if signature else {}
        for group in arguments:
            named = group.items() if isinstance(group, dict) else enumerate(group or (), 1)
            for position, value in named:
                key = parameters.get(position, position)
                try:
                    encode(value)
                except BaseException as refused:
                    raise NotPicklableError(
                        name,
                        f"task {name!r}: its argument {key!r}, {shown(value)} of type {type(value).__name__}, cannot "
                        f"be sent to a process: {describe(refused)}. Pass plain data, or use executor='thread'.",
                    ) from refused
        raise NotPicklableError(
            name, f"task {name!r}: its arguments cannot be sent to a process: {describe(error)}."
        ) from error


def _dump(value: object, pickler: Any) -> list[Part]:
    stream = BytesIO()
    buffers: list[Part] = []
    pickler(stream, _PROTOCOL, buffer_callback=_taker(buffers)).dump(value)
    return [stream.getvalue(), *buffers]


def _taker(buffers: list[Part]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return what pickle asks of each buffer; large ones go to *buffers*."""

    def take_out(buffer: pickle.PickleBuffer) -> bool:
        """Keep *buffer* out of the pickle; return True to have it copied in."""
        block = buffer.raw()
        if len(block) < _SMALL_BUFFER:
            return True
        buffers.append(block)
        return False

    return take_out


def _reference(value: object) -> Any:
    """Return how to find the function *value* again, NotImplemented if it is none that a task stands for."""
    if type(value) is not FunctionType:
        return NotImplemented
    task = find_task(value)
    return NotImplemented if task is None else (_func_of, (task,))


def _func_of(task: Task[..., Any]) -> Any:
    return task.func


class _ByReference(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        return _reference(value)


@functools.cache
def _cloudpickle() -> Any:
    try:
        cloudpickle = import_module("cloudpickle")  # an extra
    except ImportError:
        return None
    return cloudpickle


@functools.cache
def _cloud_pickler() -> Any:
    """Return cloudpickle's pickler, with tasks by reference; None if it is not installed."""
    cloudpickle = _cloudpickle()
    if cloudpickle is None:
        return None

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined]
        def reducer_override(self, value: object) -> Any:
            reference = _reference(value)
            return super().reducer_override(value) if reference is NotImplemented else reference

    return CloudPickler
