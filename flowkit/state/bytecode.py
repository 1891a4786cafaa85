"""Say what code objects do, without what does not change that.

Knows bytecode. Does not know functions, modules, or what a name stands for.

Bytecode is read as a graph of instructions (:class:`_Flow`), and written down in the order in which a walk from its
start meets them. That leaves out what does not change what runs: line numbers, the layout of blocks, the names of
locals, docstrings, and what the compiler does differently when a statement stands on one line or on two.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from types import CodeType

from .digest import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    Handler = tuple[int, int] | None

VARARGS, VARKEYWORDS = 0x04, 0x08
_KINDS = VARARGS | VARKEYWORDS | 0x20 | 0x80 | 0x100 | 0x200
"""The flags that say how a function is called and what it gives: a value, a generator, a coroutine."""
_OPTIMIZED = 0x01
"""CO_OPTIMIZED: set for the code of functions, not for that of class bodies."""

_OF_CLASSES = frozenset({"__doc__", "__firstlineno__", "__module__", "__qualname__", "__static_attributes__"})
"""Names in class bodies that the compiler stores."""

_LEFT_OUT = frozenset({"CACHE", "COPY_FREE_VARS", "MAKE_CELL", "NOP", "NOT_TAKEN", "RESUME"})
_TWO = {
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW": ("LOAD_FAST", "LOAD_FAST"),
    "LOAD_FAST_LOAD_FAST": ("LOAD_FAST", "LOAD_FAST"),
    "STORE_FAST_LOAD_FAST": ("STORE_FAST", "LOAD_FAST"),
    "STORE_FAST_STORE_FAST": ("STORE_FAST", "STORE_FAST"),
}
"""Instructions that stand for two, if those are on one line."""
_SAME = {"LOAD_FAST_BORROW": "LOAD_FAST", "LOAD_FAST_CHECK": "LOAD_FAST"}
_BACKWARD = frozenset({"END_ASYNC_FOR", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
_JUMPS = frozenset({"JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_FORWARD"})
_FOREVER = "FOREVER"
"""Stands behind the last instruction, for a jump that leads to itself."""
_ENDS = frozenset({"RAISE_VARARGS", "RERAISE", "RETURN_VALUE", _FOREVER})
_SHUFFLES = frozenset({"POP_TOP", "STORE_FAST", "SWAP"})
_LOADS_GLOBAL = frozenset({"LOAD_FROM_DICT_OR_GLOBALS", "LOAD_GLOBAL", "LOAD_NAME"})
_LOADS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_SCALARS = frozenset({bool, bytes, complex, float, int, str, type(None), type(...)})
_CHANGES = frozenset({
    "[]=", "append", "appendleft", "extend", "extendleft", "insert", "add", "update", "setdefault", "pop", "popitem",
    "popleft", "remove", "discard", "clear", "sort", "reverse", "subtract", "difference_update", "intersection_update",
    "symmetric_difference_update", "rotate",
})  # fmt: skip
"""What code does with a container to change it."""
_SAVED = "saved"
"""Stands for a local that a comprehension which runs in its function's frame puts aside, and puts back."""


class _Opcodes:
    """What this Python's instructions mean.

    Attributes:
        names: The name of each.
        cache: The one that leaves room for the interpreter behind another.
        jumps: Those that jump.
        of_consts: Names of those whose argument is the number of a constant.
        of_names: The same for names.
        of_slots: The same for locals, cells and free variables, which are counted together.
        flags: How many bits of the argument are no part of the number.
    """

    __slots__ = ("cache", "flags", "jumps", "names", "of_consts", "of_names", "of_slots")

    def __init__(self) -> None:
        import dis  # noqa: PLC0415 - costs 5 ms, and a run without state does not need it

        self.names = dis.opname
        self.cache = bytes([dis.opmap["CACHE"]])
        self.jumps = frozenset(dis.hasjrel)
        self.of_consts = frozenset(dis.opname[code] for code in dis.hasconst)
        self.of_names = frozenset(dis.opname[code] for code in dis.hasname)
        slots = (dis.opname[code] for code in (*dis.haslocal, *dis.hasfree))
        self.of_slots = frozenset(name for name in slots if name.count("FAST") < 2)
        self.flags = {"LOAD_GLOBAL": 1, "LOAD_SUPER_ATTR": 2}
        if sys.version_info >= (3, 12):
            self.flags["LOAD_ATTR"] = 1


_opcodes = functools.cache(_Opcodes)


class _Flow:
    """The instructions of one code object, as a graph.

    An instruction that was dropped has None for a name, and whoever leads there goes on with the next one.

    Attributes:
        names: The name of each instruction.
        keys: The argument of each; for a local it tells variables of the same slot apart.
        next: Where each goes on: nowhere, to one, or to two if it is a condition (when it holds, when not) or a loop.
        handlers: Where an exception goes, with what the interpreter does before.
        same: For each instruction the one that stands for all that do the same from there on.
        closures: For each code object that is loaded, the keys of the variables that it captures.
    """

    __slots__ = ("_args", "_jumps", "_tries", "closures", "code", "handlers", "keys", "names", "next", "same")

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self.names: list[str | None] = []
        self.keys: list[Any] = []
        self.closures: dict[int, tuple[Any, ...]] = {}
        self._args: list[int] = []
        self._jumps: list[int | None] = []
        self._tries: list[tuple[int, int, int, int]] = []
        self._decode()
        self.handlers: list[Handler] = [None] * len(self.names)
        for start, end, target, flags in self._tries:
            self.handlers[start:end] = [(target, flags)] * (end - start)
        self._name_saved()
        self._drop_closures()
        if not code.co_flags & _OPTIMIZED:
            self._drop_names_of_class()
        self._thread()
        self._settle_stores()
        self.next: list[tuple[int, ...]] = [()] * len(self.names)
        self._link()
        self.same = self._merge()

    def follow(self, i: int) -> int:
        """Return the instruction that runs when *i* is led to."""
        names = self.names
        for _ in names:
            name = names[i]
            while name is None:
                i += 1
                name = names[i]
            if name not in _JUMPS:
                return i
            i = self._jumps[i]  # type: ignore[assignment]  # every jump has a target
        return len(names) - 1

    def _decode(self) -> None:
        opcodes = _opcodes()
        raw = self.code.co_code
        places: list[int] = []  # of each unit of two bytes: which instruction it belongs to, or comes next
        wide = 0
        for at in range(0, len(raw), 2):
            places.append(len(self.names))
            name = opcodes.names[raw[at]]
            arg = wide | raw[at + 1]
            if name == "EXTENDED_ARG":
                wide = arg << 8
                continue
            wide = 0
            if name in _LEFT_OUT:
                continue
            target = None
            if raw[at] in opcodes.jumps:
                target = at // 2 + 1
                while raw[2 * target : 2 * target + 1] == opcodes.cache:
                    target += 1
                target += -arg if name in _BACKWARD or "_BACKWARD_" in name else arg
                arg = 0
            if name in _TWO:
                self.names += _TWO[name]
                self._args += (arg >> 4, arg & 15)
                self._jumps += (None, None)
                continue
            if name == "RETURN_CONST":
                self.names.append("LOAD_CONST")
                self._args.append(arg)
                self._jumps.append(None)
                name, arg = "RETURN_VALUE", 0
            self.names.append(_SAME.get(name, name))
            self._args.append(arg)
            self._jumps.append(target)
        places.append(len(self.names))
        self.names.append(_FOREVER)
        self._args.append(0)
        self._jumps = [None if target is None else places[target] for target in (*self._jumps, None)]
        self._tries = [(places[s], places[e], places[t], flags) for s, e, t, flags in _read_tries(self.code)]
        self.keys = list(self._args)

    def _name_saved(self) -> None:
        """Tell the variables of comprehensions from those of the same name around them, as scopes of their own do.

        From Python 3.12 on a comprehension runs in the frame of its function: what is in the slots that it uses is
        put aside, and put back afterwards or by a handler. In between, a slot is another variable.
        """
        for i, name in enumerate(self.names):
            if name == "LOAD_FAST_AND_CLEAR":
                slot = self._args[i]
                self.keys[i] = (_SAVED, slot)
                handler = next((target for start, _, target, _ in self._tries if start > i), None)
                if handler is not None:
                    self._name_inside(slot, i, handler)

    def _name_inside(self, slot: int, saved: int, handler: int) -> None:
        """Name what is in *slot* while *handler* is there to put back what *saved* has put aside."""
        protected: set[int] = set()
        new = {handler}
        while new:  # also by what is itself protected so
            protected |= new
            new = {t for _, _, t, _ in self._tries if (self.handlers[t] or (-1,))[0] in protected} - protected
        inside = {k for k, found in enumerate(self.handlers) if found is not None and found[0] in protected} - {handler}
        ends = {handler}
        for k in inside:
            if self._args[k] == slot and self.names[k] in _opcodes().of_slots:
                self.keys[k] = (saved, slot)
            if self.names[k] not in _ENDS:
                ends |= {self.follow(to) for to in (k + 1, self._jumps[k] or k + 1)} - inside
        for end in ends:
            k = end
            while self.names[k] in _SHUFFLES and not (self.names[k] == "STORE_FAST" and self._args[k] == slot):
                k = self.follow(k + 1)
            if self.names[k] == "STORE_FAST":
                self.keys[k] = (_SAVED, slot)

    def _drop_closures(self) -> None:
        """Drop how variables are handed to the functions that capture them: in the order of their names."""
        names, args = self.names, self._args
        for i, name in enumerate(names):
            if name not in _opcodes().of_consts or not isinstance(self.code.co_consts[args[i]], CodeType):
                continue
            count = len(self.code.co_consts[args[i]].co_freevars)
            first = i - 1 - count
            if count and first >= 0 and names[i - 1] == "BUILD_TUPLE" and args[i - 1] == count:
                self.closures[i] = tuple(self.keys[first : i - 1])
                names[first:i] = [None] * (count + 1)

    def _drop_names_of_class(self) -> None:
        names = self.names
        for i, name in enumerate(names):
            is_of_class = name == "STORE_NAME" and self.code.co_names[self._args[i]] in _OF_CLASSES
            if is_of_class and names[i - 1] in ("LOAD_CONST", "LOAD_NAME", "LOAD_SMALL_INT"):
                names[i - 1] = names[i] = None

    def _thread(self) -> None:
        """Lead ``a and b or c`` of Python 3.11 past tests whose answer is known; its compiler does it on one line."""
        names, jumps = self.names, self._jumps
        for i in range(len(names)):
            while (name := names[i]) in ("JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP"):
                target = self.follow(jumps[i] or 0)
                there = names[target] or ""
                if not there.startswith(("JUMP_IF_", "POP_JUMP_")) or "NONE" in there:
                    break
                is_same = ("TRUE" in there) == (name == "JUMP_IF_TRUE_OR_POP")
                jumps[i] = jumps[target] if is_same else target + 1
                if there.startswith("POP_JUMP_") or not is_same:
                    names[i] = "POP_JUMP_IF_TRUE" if name == "JUMP_IF_TRUE_OR_POP" else "POP_JUMP_IF_FALSE"

    def _settle_stores(self) -> None:
        """Write down in one way what a run of stores does: the compiler swaps values or stores, by the line."""
        names = self.names
        begins = {self.follow(target) for target in self._jumps if target is not None}
        begins |= {self.follow(target) for _, _, target, _ in self._tries}
        run: list[int] = []
        for i, name in enumerate(names):
            if name is None:
                continue
            if run and (name not in _SHUFFLES or i in begins or self.handlers[i] != self.handlers[run[0]]):
                self._settle(run)
                run = []
            if name in _SHUFFLES:
                run.append(i)

    def _settle(self, run: list[int]) -> None:
        if len(run) == 1 and self.names[run[0]] != "SWAP":
            return
        stack: list[int] = []  # where each value was before, counted from the top; the top is the last
        deepest = 0
        goes: dict[int, Any] = {}  # the variable that each value is stored in, None if it is dropped
        last: dict[Any, int] = {}
        for i in run:
            name = self.names[i]
            need = self._args[i] if name == "SWAP" else 1
            while len(stack) < need:
                stack.insert(0, deepest)
                deepest += 1
            if name == "SWAP":
                stack[-1], stack[-need] = stack[-need], stack[-1]
                continue
            value = stack.pop()
            goes[value] = None
            if name == "STORE_FAST":
                variable = self.keys[i]
                if variable in last:
                    goes[last[variable]] = None
                goes[value] = variable
                last[variable] = value
        for i in run:
            self.names[i] = None
        if sorted(goes) == list(range(len(goes))) and stack == list(range(deepest - 1, len(goes) - 1, -1)):
            for i, value in zip(run, range(len(goes)), strict=False):
                self.names[i] = "POP_TOP" if goes[value] is None else "STORE_FAST"
                self.keys[i] = 0 if goes[value] is None else goes[value]
        else:
            left = {value: place for place, value in enumerate(reversed(stack))}
            self.names[run[0]] = "SHUFFLE"
            self.keys[run[0]] = tuple((left.get(value), goes.get(value)) for value in range(deepest))

    def _link(self) -> None:
        names, jumps = self.names, self._jumps
        for i, name in enumerate(names):
            if name is None or name in _JUMPS:
                continue
            handler = self.handlers[i]
            if handler is not None:
                self.handlers[i] = (self.follow(handler[0]), handler[1])
            target = jumps[i]
            if name in _ENDS:
                continue
            if target is None:
                self.next[i] = (self.follow(i + 1),)
                continue
            pair = (self.follow(i + 1), self.follow(target))
            if name.startswith("POP_JUMP_"):  # forwards, backwards, if true, if false: as the layout of blocks wants it
                names[i] = "IF NONE" if name.endswith("NONE") else "IF TRUE"
                if not name.endswith(("NOT_NONE", "FALSE")):
                    pair = pair[::-1]
            self.next[i] = pair

    def _merge(self) -> list[int]:
        """Find the instructions that do the same from there on: the compiler copies short ends, by the line."""
        names, keys, handlers = self.names, self.keys, self.handlers
        alike = [_merged_key(key) for key in keys]
        self.keys = alike
        real = [i for i in range(len(names) - 1, -1, -1) if names[i] is not None and names[i] not in _JUMPS]
        same = list(range(len(names)))
        is_new = True
        while is_new:
            is_new = False
            seen: dict[Any, int] = {}
            for i in real:
                handler = handlers[i]
                does = (
                    names[i], alike[i], handler and (same[handler[0]], handler[1]), *[same[k] for k in self.next[i]],
                )  # fmt: skip
                found = seen.setdefault(does, i)
                if same[i] != found:
                    same[i] = found
                    is_new = True
        return same


def _merged_key(key: Any) -> Any:
    """Return *key* with one word for everything that was put aside, whatever slot it was in."""
    if type(key) is not tuple:
        return key
    if key[0] == _SAVED:
        return _SAVED
    if type(key[0]) is tuple:
        return tuple([(left, _merged_key(variable)) for left, variable in key])
    return key


def _read_tries(code: CodeType) -> Iterator[tuple[int, int, int, int]]:
    """Yield what the exception table says: start, end and handler, in units of two bytes, and flags."""
    data = iter(code.co_exceptiontable)

    def read(byte: int) -> int:
        value = byte & 63
        while byte & 64:
            byte = next(data)
            value = value << 6 | byte & 63
        return value

    for byte in data:
        start = read(byte)
        yield start, start + read(next(data)), read(next(data)), read(next(data))


class Code:
    """What one code object does, with those nested in it.

    Attributes:
        digest: Equal for code that does the same.
        chains: The global names that it looks up, each with the attributes that it takes of it at once.
        changed: The chains, of global names and of ``free ...`` names, whose end it changes if that is a container.
        imports: The modules that it imports: how many dots, the name, and the names that are taken of it, or None.
    """

    __slots__ = ("_count", "_numbers", "_out", "chains", "changed", "digest", "imports")

    def __init__(self, code: CodeType) -> None:
        self.changed: set[tuple[str, ...]] = set()
        self._out: list[Any] = []
        self._numbers: dict[Any, int] = {}
        """A number for each variable, by first appearance."""
        self._count = 0
        self.chains: dict[tuple[str, ...], None] = {}
        self.imports: dict[tuple[int, str, tuple[str, ...] | None], None] = {}
        # What is captured from outside is known by its name: that is how it counts.
        self._write(code, [f"free {name}" for name in code.co_freevars])
        self.digest = digest(self._out)

    def _write(self, code: CodeType, free: Sequence[Any]) -> None:
        """Write down *code*, whose free variables are the variables *free*."""
        flow = _Flow(code)
        out = self._out
        self._count += 1
        serial = self._count
        parameters = code.co_argcount + code.co_kwonlyargcount + (code.co_flags & (VARARGS | VARKEYWORDS)).bit_count()
        out += (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _KINDS)
        out += code.co_varnames[:parameters]
        cells = [name for name in code.co_cellvars if name not in code.co_varnames]
        first_free = len(code.co_varnames) + len(cells)

        def variable(key: Any) -> Any:
            is_free = type(key) is int and first_free <= key < first_free + len(free)
            return free[key - first_free] if is_free else (serial, key)

        def number(key: Any) -> Any:
            key = key if key == _SAVED else variable(key)
            return key if type(key) is str else self._numbers.setdefault(key, len(self._numbers))

        for slot in range(parameters):
            number(slot)
        stored: set[str] = set()
        places: dict[int, int] = {}
        handlers: dict[int, int] = {}
        now: Handler = None
        waiting = [flow.follow(0)]
        waiting_handlers: deque[int] = deque()
        while waiting or waiting_handlers:
            if waiting:
                i = flow.same[waiting.pop()]
            else:
                out.append("except")
                i = flow.same[waiting_handlers.popleft()]
            while i not in places:
                places[i] = len(places)
                handler = flow.handlers[i]
                if handler is not None:
                    handler = flow.same[handler[0]], handler[1]
                if handler != now:
                    now = handler
                    if handler is None:
                        out.append("no try")
                    else:
                        if handler[0] not in handlers:
                            handlers[handler[0]] = len(handlers)
                            waiting_handlers.append(handler[0])
                        out += ("try", handlers[handler[0]], handler[1])
                self._write_instruction(flow, i, number, variable, stored)
                following = flow.next[i]
                if not following:
                    break
                waiting += following[1:]
                i = flow.same[following[0]]
            else:
                out += ("go to", places[i])
        out.append("end")

    def _write_instruction(
        self, flow: _Flow, i: int, number: Callable[[Any], Any], variable: Callable[[Any], Any], stored: set[str]
    ) -> None:
        opcodes, code, out = _opcodes(), flow.code, self._out
        name, key = flow.names[i] or "", flow.keys[i]
        out.append(name)
        if name in opcodes.of_consts:
            value = code.co_consts[key]
            if isinstance(value, CodeType):
                self._write(value, [variable(each) for each in flow.closures.get(i, ())])
            elif type(value) in _SCALARS:
                out.append(value)
            else:
                what = [value.start, value.stop, value.step] if type(value) is slice else value
                out += ("a value", digest(what))
        elif name in opcodes.of_names:
            text = code.co_names[key >> opcodes.flags.get(name, 0)]
            out.append(text)
            if name == "STORE_NAME":
                stored.add(text)
            elif name in _LOADS_GLOBAL and text not in stored:
                self._note_chain(self.chains, (text, *self._attributes(flow, i)))
            elif name == "IMPORT_NAME":
                dots, names = flow.keys[i - 2], flow.keys[i - 1]
                level = code.co_consts[dots] if flow.names[i - 2] in opcodes.of_consts else dots
                self.imports[level, text, code.co_consts[names]] = None
        elif name in opcodes.of_slots:
            out.append(number(key))
            if name == "LOAD_DEREF" and type(free := variable(key)) is str:
                self._note_chain({}, (free, *self._attributes(flow, i)))
        elif name == "SHUFFLE":
            for left, stores in key:
                out += (left, None if stores is None else number(stores))
        else:
            out.append(key)

    def _note_chain(self, chains: dict[tuple[str, ...], None], chain: tuple[str, ...]) -> None:
        if chain[-1] in _CHANGES and len(chain) > 1:
            self.changed.add(chain[:-1])
        chains[chain[:-1] if chain[-1] == "[]=" else chain] = None

    def _attributes(self, flow: _Flow, i: int) -> list[str]:
        """Return the attributes that are taken, one of the other, of what *i* loads; "[]=" if an item of it is set."""
        opcodes = _opcodes()
        found = []
        while flow.next[i]:
            i = flow.next[i][0]
            name = flow.names[i] or ""
            if name not in _LOADS_ATTRIBUTE:
                break
            found.append(flow.code.co_names[flow.keys[i] >> opcodes.flags.get(name, 0)])
        after = flow.next[i][0] if flow.next[i] else i
        name, key = flow.names[after] or "", flow.keys[after]
        sets = name in ("STORE_SUBSCR", "DELETE_SUBSCR") or (name == "COPY" and key == 2)  # x[k] = v, del, x[k] += v
        return [*found, "[]="] if sets else found
