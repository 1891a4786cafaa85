"""``TaskCache``: keep what a plain function returns.

Knows functions, what tells their calls apart, and which of them go on. Does not know where values are kept, or tasks.

A call whose value is not there takes a turn, so that the calls of a moment make it once::

    is another call making it? ── no ──► lead: look again, call the function, keep the value, wake who waits
        │ yes
        ▼
    does that one wait for us? ── yes ─► call the function beside it, or both would wait for ever
        │ no
        ▼
    wait for its end, and look again: it is there
        ├─ it is not, because the other one raised ─► take a turn anew
        └─ it is not, because it cannot be kept ────► call the function: each has to make its own

One waits for another if it was made from inside of it, as recursion does; or from inside of one that waits for it, as
when one thread computes f and needs g while another one computes g and needs f.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import warnings
from contextvars import ContextVar
from types import CodeType, FunctionType, MethodType, ModuleType

from ..context import TaskContext
from ..engine import forks
from ..engine.condition import close_awaitable
from ..engine.signature import describe_signature, is_coroutine_function, read_signature
from ..exceptions import StateSerializationError, shown
from .digest import a_value_of, digest
from .face import Cache, _check_ttl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator
    from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload

    from .face import Entry

    P = ParamSpec("P")
    Q = ParamSpec("Q")
    R_co = TypeVar("R_co", covariant=True)

    class Cached(Protocol[P, R_co]):
        """A function whose values are kept."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str:
            """Return the key under which the value of this call is kept."""

        def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
            """Forget the value of this call; return whether there was one."""

        @overload
        def __get__(self, instance: None, owner: object = None) -> Self: ...
        @overload
        def __get__(
            self: Cached[Concatenate[Any, Q], R_co], instance: object, owner: object = None
        ) -> Callable[Q, R_co]: ...


_HINTS = {
    "Task": " Put @task above @TaskCache(...).",
    "classmethod": " Put @classmethod above @TaskCache(...).",
    "staticmethod": " Put @staticmethod above @TaskCache(...).",
    "partial": " Write a function that calls it.",
    "type": " Write a function that calls it.",
}


class TaskCache:
    """A decorator that keeps what a function returns, and returns that when it is called so again.

    It goes under ``@task`` (``@task`` above ``@TaskCache(state)``), and does as well without: ``TaskCache(state)(f)``.
    The key is the function's name, with a digest of its arguments in parentheses if it takes any; how they are passed
    does not matter, and defaults count as if they were passed. A ``TaskContext`` does not count, ``self`` does. An
    argument that has no digest, such as a connection, needs a *cache_key_func*.

    None is kept, exceptions are not. A generator, and what the store refuses, is returned without being kept, with one
    warning for each function; it is an error if the store is strict. From memory comes the value itself, from a file a
    copy. Dataclasses, named tuples and enums of the function's own module can be kept without ``register``.

    Calls at the same time that want the same value make it once: the others wait, be they threads or coroutines of one
    event loop. Other processes and other loops make their own. A store in a file is read and written by the calling
    thread, which for ``async def`` functions is that of the loop.

    Functions of one name never get each other's values, even if they use one key: the entry knows the function's module
    and qualified name, its code, and what it closed over when it was first called. A function that was edited starts
    anew; what it calls, and globals, are not watched. A function that has closed over something without a digest uses
    only what was kept by itself, so that another process does not; define it at module level, or give a
    *cache_key_func*.

    The function that it returns has ``cache_key(...)``, which tells the key of a call, and ``invalidate(...)``, which
    forgets its value and returns whether there was one. Of a method, both take ``self``:
    ``Shop.price.invalidate(shop, "tea")``. A call that goes on keeps its value after that.

    Args:
        state_manager: Where values are kept.
        ttl: For how many seconds; None for the default of *state_manager*.
        cache_key_func: Returns the key for ``(func, *args, **kwargs)``.

    Raises:
        TypeError: *state_manager* is no state, *cache_key_func* cannot be called, or what is decorated is no function.
        OptionError: *ttl* is no number.

    >>> from flowkit.state import StateManager
    >>> state = StateManager()
    >>> @TaskCache(state)
    ... def area(width: int, height: int = 1) -> int:
    ...     print("computing")
    ...     return width * height
    >>> area(2, 3), area(height=3, width=2)
    computing
    (6, 6)
    >>> area.invalidate(2, 3), state.has(area.cache_key(2, 3))
    (True, False)
    """

    def __init__(
        self,
        state_manager: Cache,
        ttl: float | None = None,
        cache_key_func: Callable[..., str] | None = None,
    ) -> None:
        if not isinstance(state_manager, Cache):
            raise TypeError(
                f"TaskCache needs a state to keep values in, not {shown(state_manager)} of type "
                f"{type(state_manager).__name__}. Write @TaskCache(StateManager())."
            )
        if cache_key_func is not None and not callable(cache_key_func):
            raise TypeError(f"TaskCache: cache_key_func={shown(cache_key_func)} must be a function, or None.")
        _check_ttl("ttl", ttl)
        self.state_manager = state_manager
        self.ttl = ttl
        self.cache_key_func = cache_key_func

    def __call__(self, func: Callable[P, R_co]) -> Cached[P, R_co]:
        """Return a function that does the same as *func*, and keeps what it returns."""
        function = _Function(func, self)
        wrapper: Any = _wrap_async(function) if is_coroutine_function(func) else _wrap(function)
        functools.update_wrapper(wrapper, func)
        function.wrapper = wrapper
        wrapper.cache_key = function.cache_key
        wrapper.invalidate = function.invalidate
        return wrapper  # type: ignore[no-any-return]


# In both, the function is called from here and nowhere else, so that recursion is as deep as it may be.


def _wrap(function: _Function) -> Callable[..., Any]:
    func = function.func

    def call(*args: Any, **kwargs: Any) -> Any:
        key = function.key(args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        entry = function.find(key)
        if entry is not None:
            return entry.value
        with function.turn(key) as entry:
            return function.keep(key, func(*args, **kwargs)) if entry is None else entry.value

    return call


def _wrap_async(function: _Function) -> Callable[..., Any]:
    func = function.func

    async def call(*args: Any, **kwargs: Any) -> Any:
        key = function.key(args, kwargs)
        if key is None:
            return await func(*args, **kwargs)
        entry = function.find(key)
        if entry is not None:
            return entry.value
        loop = _running_loop()
        if loop is None:  # of another library than asyncio, whose coroutines cannot wait for each other in our way
            return function.keep(key, await func(*args, **kwargs))
        async with function.turn(key, loop) as entry:
            return function.keep(key, await func(*args, **kwargs)) if entry is None else entry.value

    return call


def _running_loop() -> AbstractEventLoop | None:
    asyncio: Any = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.get_running_loop()
    except RuntimeError:
        return None


# ---------------------------------------------------------------- one function


class _Function:
    """What is known of a function whose values are kept.

    Attributes:
        func: The function.
        state: Where its values are.
        wrapper: What stands for it.
    """

    def __init__(self, func: Any, options: TaskCache) -> None:
        name, qualname = getattr(func, "__name__", None), getattr(func, "__qualname__", None)
        if not callable(func) or isinstance(func, (type, staticmethod)) or not (name and qualname):
            kind = "type" if isinstance(func, type) else type(func).__name__
            raise TypeError(f"TaskCache needs a function, not {shown(func)} of type {kind}.{_HINTS.get(kind, '')}")
        self.func = func
        self.state = options.state_manager
        self.wrapper: Any = None
        self._name: str = name
        self._title: str = qualname
        module = getattr(func, "__module__", None)  # some builtins have none
        # The program itself has another name in a process that was started for it.
        self._module: str = "__main__" if module == "__mp_main__" else str(module)
        self._token = os.urandom(16).hex()
        self._ttl = options.ttl
        self._key_func = options.cache_key_func
        self._has_warned = False
        self._positional: tuple[str, ...] = ()
        self._named: set[str] = set()
        """Parameters that can be passed by name."""
        self._defaults: dict[str, Any] = {}
        self._rest: str | None = "args"
        self._rest_named: str | None = "kwargs"
        self._count = 0
        """How many parameters there are, ``*args`` and ``**kwargs`` left out."""
        self._read_parameters()
        signature = read_signature(func)
        self._contexts = () if signature is None else signature.contexts
        owner = getattr(func, "__self__", None)
        self._owner = {} if owner is None or isinstance(owner, ModuleType) else {"self": owner}
        self.state.trust(self._module)

    def _read_parameters(self) -> None:
        try:
            parameters = inspect.signature(self.func).parameters
        except (ValueError, TypeError):  # a builtin that does not tell them
            return
        kinds = inspect.Parameter

        def names(kind: object) -> list[str]:
            return [p.name for p in parameters.values() if p.kind is kind]

        by_both, by_name = names(kinds.POSITIONAL_OR_KEYWORD), names(kinds.KEYWORD_ONLY)
        self._positional = (*names(kinds.POSITIONAL_ONLY), *by_both)
        self._named = {*by_both, *by_name}
        self._count = len(self._positional) + len(by_name)
        self._rest = next(iter(names(kinds.VAR_POSITIONAL)), None)
        self._rest_named = next(iter(names(kinds.VAR_KEYWORD)), None)
        self._defaults = {p.name: p.default for p in parameters.values() if p.default is not p.empty}

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """What its entries have and those of others have not.

        Closed over is what is there at the first call: when the function is decorated, a variable that is assigned
        further down is still empty.
        """
        code = _code_of(self.func, is_lenient=self._key_func is not None)
        return {"function": f"{self._module}.{self._title}", "code": self._token if code is None else code}

    # ------------------------------------------------------------ keys

    def cache_key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key under which the value of this call is kept.

        Raises:
            TypeError: The function cannot be called so.
            StateSerializationError: An argument has no digest.
        """
        key = self.key(args, kwargs)
        if key is None:
            raise TypeError(f"cache_key: {describe_signature(self.func, self._title)} cannot be called like this.")
        return key

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the value of this call; return whether there was one."""
        key = self.cache_key(*args, **kwargs)
        return self.find(key) is not None and self.state.delete(key)

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Return the key of a call; None if the function cannot be called so, which it says best itself."""
        if self._key_func is not None:
            key = self._key_func(self.func, *args, **kwargs)
            if not isinstance(key, str):
                raise TypeError(
                    f"TaskCache: cache_key_func={shown(self._key_func)} returned {shown(key)} of type "
                    f"{type(key).__name__} for {self._title}(); it must return a string."
                )
            return key
        bound = self._bind(args, kwargs)
        if not bound:
            return None if bound is None else self._name
        try:
            return f"{self._name}({digest(bound)})"
        except StateSerializationError:
            for name, value in bound.items():
                self._check_argument(name, value)
            raise

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the value of each parameter that has one; None if they do not fit."""
        given = dict(zip(self._positional, args, strict=False))
        rest = args[len(given) :]
        rest_named = {}
        for name, value in kwargs.items():
            if name not in self._named:
                rest_named[name] = value
            elif name in given:
                return None
            else:
                given[name] = value
        bound = {**self._defaults, **given}
        if len(bound) != self._count or (rest and not self._rest) or (rest_named and not self._rest_named):
            return None
        for name in self._contexts:
            if bound[name] is None or isinstance(bound[name], TaskContext):
                del bound[name]
        if rest:
            bound[f"*{self._rest}"] = rest
        if rest_named:
            bound[f"**{self._rest_named}"] = rest_named
        return {**bound, **self._owner} if self._owner else bound

    def _check_argument(self, name: str, value: object) -> None:
        try:
            digest(value)
        except StateSerializationError as error:
            reason = f"{error.reason}. Or give TaskCache a cache_key_func, which says what tells calls apart"
            raise StateSerializationError(error.path, reason, f"{self._title}(): argument {name}") from error.__cause__

    # ------------------------------------------------------------ values

    def find(self, key: str) -> Entry | None:
        """Return what is kept of this function under *key*, if it can be read."""
        try:
            entry = self.state._valid(key)
        except StateSerializationError:  # its class has other fields now, or is gone
            return None
        return entry if entry is not None and entry.metadata == self.metadata else None

    def turn(self, key: str, loop: AbstractEventLoop | None = None) -> _Turn:
        """Return the turn of a call that has found nothing under *key*."""
        place = (id(self.state), *self.metadata.values(), key, loop)
        return _Turn(place, functools.partial(self.find, key), loop)

    def keep(self, key: str, value: Any) -> Any:
        """Keep *value* if that can be done, and return it.

        Raises:
            StateSerializationError: It cannot be done, and the state is strict.
            StateWriteError: The disk refused it.
        """
        try:
            reason = _why_not(value)
            if reason:
                raise StateSerializationError("", reason)
            self.state.set(key, value, self._ttl, self.metadata)
        except StateSerializationError as refused:
            error = StateSerializationError(refused.path, refused.reason, f"{self._title}(): result")
            if getattr(self.state, "is_strict", False):
                if hasattr(value, "__await__"):
                    close_awaitable(value)
                raise error from refused.__cause__
            if not self._has_warned:
                self._has_warned = True
                # 1 is this line, 2 the function that stands for theirs, 3 who called it.
                warnings.warn(f"{error} It is returned, but not kept.", RuntimeWarning, stacklevel=3)
        return value


def _why_not(value: object) -> str:
    """Return why *value* cannot be given to more than one caller, or nothing. Files are iterators with more to give."""
    kind = type(value)
    if hasattr(kind, "__await__"):
        return f"{a_value_of(kind)} can be awaited once; make the function async def, or await it inside"
    if (hasattr(kind, "__next__") and not hasattr(kind, "readline")) or hasattr(kind, "__anext__"):
        return f"{a_value_of(kind)} is empty after its first reader; return a list"
    return ""


# ---------------------------------------------------------------- which function it is


def _code_of(func: Any, *, is_lenient: bool) -> str | None:
    """Return a digest that tells *func* from others of its name, "" if it has no code of its own.

    Args:
        func: A function, or what stands for one.
        is_lenient: Whether what is closed over and has no digest counts by its type. If not, there is None for *func*.
    """
    while not isinstance(func, FunctionType) or _is_cached(func):
        func = func.__func__ if isinstance(func, MethodType) else getattr(func, "__wrapped__", None)
        if func is None:
            return ""
    try:
        return digest(_read(func, [], is_lenient=is_lenient))
    except StateSerializationError:
        return None


def _is_cached(func: FunctionType) -> bool:
    """Return whether *func* stands for another one; what another decorator makes of it, has its attributes too."""
    owner = getattr(vars(func).get("cache_key"), "__self__", None)
    return isinstance(owner, _Function) and owner.wrapper is func


def _read(func: FunctionType, seen: list[FunctionType], *, is_lenient: bool) -> list[Any]:
    """Return what makes *func* what it is, as plain data; functions that are *seen* already count by their place."""
    seen.append(func)
    inside: list[Any] = []
    for cell in func.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            inside.append("empty")
            continue
        while isinstance(value, FunctionType) and _is_cached(value):
            value = value.__wrapped__  # type: ignore[attr-defined]
        if not isinstance(value, FunctionType):
            inside.append(["value", _digest_of(value, is_lenient=is_lenient)])
        elif value in seen:
            inside.append(["again", seen.index(value)])
        else:
            inside.append([value.__defaults__, value.__kwdefaults__, _read(value, seen, is_lenient=is_lenient)])
    return [_read_code(func.__code__, func.__doc__), inside]


def _digest_of(value: object, *, is_lenient: bool) -> str:
    try:
        return digest(value)
    except StateSerializationError:
        if is_lenient:
            return a_value_of(type(value))
        raise


def _read_code(code: CodeType, docstring: str | None = None) -> list[Any]:
    constants = code.co_consts
    if docstring is not None and constants[:1] == (docstring,):
        constants = (None, *constants[1:])
    within = [_read_code(each) if isinstance(each, CodeType) else [each] for each in constants]
    return [code.co_code, code.co_exceptiontable, code.co_names, within]


# ---------------------------------------------------------------- one call among others


class _Turns:
    """Which calls lead.

    Attributes:
        lock: Held while the attributes of any turn change. A coroutine that is thrown away may end its turn whenever
            there is garbage, also in a thread that has the lock already; so it can be taken again, and nothing is
            looped over that this may change.
        leading: The turn of the call that makes each value.
    """

    def __init__(self) -> None:
        self.close_in_child()

    def close_in_child(self) -> None:
        """Forget all calls, in a process that was forked off: the threads that made them are not there."""
        self.lock = threading.RLock()
        self.leading: dict[tuple[Any, ...], _Turn] = {}


_turns = _Turns()
_current: ContextVar[_Turn | None] = ContextVar("flowkit_cache_turn", default=None)
"""The turn of the innermost call that the current code belongs to."""


class _Turn:
    """One call whose value was not there; as a context manager it gives the value if another call has made it.

    Args:
        place: The same for all calls that want the same value.
        find: Returns the value, None if it is not there.
        loop: The event loop of a coroutine; None for a plain function.

    Attributes:
        around: The turn from whose inside this call was made.
        waits_for: The turns that this one waits for, or a call from its inside.
        over: Set at its end, if it leads.
        has_returned: Whether the function has returned; written before that.
    """

    __slots__ = (
        "_find", "_is_leading", "_loop", "_place", "_thread", "around", "has_returned", "over", "waits_for",
    )  # fmt: skip

    def __init__(
        self, place: tuple[Any, ...], find: Callable[[], Entry | None], loop: AbstractEventLoop | None
    ) -> None:
        self._place = place
        self._find = find
        self._loop = loop
        self._thread = threading.get_ident() if loop is None else None
        self._is_leading = False
        around = _current.get()
        while around is not None and around.over.is_set():  # a coroutine can outlive the call that has started it
            around = around.around
        self.around: _Turn | None = around
        self.waits_for: list[_Turn] = []
        self.over: Any = None
        self.has_returned = False

    def __enter__(self) -> Entry | None:
        try:
            while (other := self._start()) is not None:
                try:
                    other.over.wait()
                finally:
                    self._stop_waiting(other)
                if (entry := self._find()) or other.has_returned:
                    return entry
            return self._find()
        except BaseException:
            self._end()
            raise

    async def __aenter__(self) -> Entry | None:
        try:
            while (other := self._start()) is not None:
                try:
                    await other.over.wait()
                finally:
                    self._stop_waiting(other)
                if (entry := self._find()) or other.has_returned:
                    return entry
            return self._find()
        except BaseException:
            self._end()
            raise

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.has_returned = kind is None
        self._end()

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        self.has_returned = kind is None
        self._end()

    def _start(self) -> _Turn | None:
        """Return the turn to wait for; None if this one leads, or has to go on beside the one that does."""
        with _turns.lock:
            other = _turns.leading.get(self._place)
            if other is None:
                forks.watch(_turns)
                self.over = threading.Event() if self._loop is None else sys.modules["asyncio"].Event()
                self._is_leading = True
                _turns.leading[self._place] = self
                _current.set(self)
            elif self._is_waited_for_by(other):
                return None
            else:
                for turn in self._outer():
                    turn.waits_for.append(other)
        return other

    def _stop_waiting(self, other: _Turn) -> None:
        with _turns.lock:
            for turn in self._outer():
                turn.waits_for.remove(other)

    def _is_waited_for_by(self, other: _Turn) -> bool:
        """Return whether *other* cannot end before this call does."""
        thread = threading.get_ident()
        outer = set(self._outer())
        seen: set[_Turn] = set()
        to_do = [other]
        while to_do:
            turn = to_do.pop()
            if turn in outer or turn._thread == thread:  # a plain function has its thread until it ends
                return True
            if turn not in seen:
                seen.add(turn)
                to_do += turn.waits_for
        return False

    def _outer(self) -> Iterator[_Turn]:
        turn = self.around
        while turn is not None:
            yield turn
            turn = turn.around

    def _end(self) -> None:
        if not self._is_leading:
            return
        self._is_leading = False
        with _turns.lock:
            if _turns.leading.get(self._place) is self:
                del _turns.leading[self._place]
        if _current.get() is self:  # or the coroutine was thrown away, and this is anybody's context
            _current.set(self.around)
        if self._loop is None or not self._loop.is_closed():
            self.over.set()
