"""The fingerprint changes when what a function runs changes, and with nothing else."""

import ast
import dis
import functools
import importlib
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType

import pytest

import flowkit
from flowkit import Task
from flowkit.state import reach
from flowkit.state.fingerprint import Fingerprinter, changes


def of(func, when=None, version=None):
    return Fingerprinter().of(func, when, version)


def run(source, name="flow", **names):
    """Return what the module *source* defines."""
    scope = {"__name__": name, **names}
    exec(compile(textwrap.dedent(source), f"<{name}>", "exec", dont_inherit=True), scope)
    return scope


def parts(source, **names):
    """Return the parts of ``f`` in the module *source*, under its condition ``when`` if it has one."""
    scope = run(source, **names)
    return of(scope["f"], scope.get("when")).parts


def said(before, after, **names):
    """Return what changed from one source of ``f`` to the other."""
    old, new = parts(before, **names), parts(after, **names)
    found = changes(old, new)
    assert bool(found) == (old != new)
    return found


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that writes the modules of a project and imports the first of them anew."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    imported = set()

    def load(files):
        for path, source in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(source), "utf-8")
        tops = {path.removeprefix("site-packages/").split("/")[0].removesuffix(".py") for path in files}
        for name in list(sys.modules):
            if name.partition(".")[0] in tops:
                imported.add(name.partition(".")[0])
                del sys.modules[name]
        imported.update(tops)
        importlib.invalidate_caches()
        return importlib.import_module(next(iter(files)).removesuffix(".py").replace("/", "."))

    yield load
    for name in list(sys.modules):
        if name.partition(".")[0] in imported:
            del sys.modules[name]


PACKAGE = {
    "shop/flow.py": """
        import json
        from json import dumps
        from . import helpers, config
        from .helpers import clean
        from . import other

        def f(rows):
            return clean(rows), helpers.tidy(rows), config.LIMIT, dumps(rows), json.loads("1"), other.tidy(rows)
    """,
    "shop/helpers.py": """
        from .deep import strip

        def clean(rows, n=3):
            return strip(rows)[:n]

        def tidy(rows):
            return rows
    """,
    "shop/deep.py": "def strip(rows):\n    return rows",
    "shop/other.py": "def tidy(rows):\n    return rows or []",
    "shop/config.py": "LIMIT = 10\nUNUSED = 1",
    "shop/__init__.py": "",
}


# ---------------------------------------------------------------- what does not count


SAME = {
    "a docstring": (
        'def f(x):\n    "Old."\n    return x',
        'def f(x):\n    return x',
    ),
    "a docstring that is all there is": (
        'def f(x):\n    "Old."',
        'def f(x):\n    pass',
    ),
    "the docstring of a nested function and class": (
        '''
        def f(x):
            class A:
                "Old."
                y = x
                def m(self):
                    "Old."
                    return 1
            def g():
                "Old."
            return g, A
        ''',
        '''
        def f(x):
            class A:
                y = x
                def m(self):
                    "New."
                    return 1
            def g(): pass
            return g, A
        ''',
    ),
    "comments and blank lines": (
        "def f(x):\n    return x + 1",
        "# one\n\ndef f(x):\n\n    # two\n    return (x  # three\n\n            + 1)",
    ),
    "where it stands in its file": (
        "def f(x):\n    class A: pass\n    return A",
        "A = 1\n\n\n\ndef f(x):\n    class A: pass\n    return A",
    ),
    "its own name": (
        "def f(x):\n    class A:\n        def m(self): pass\n    return A, lambda: x",
        "def g(x):\n    class A:\n        def m(self): pass\n    return A, lambda: x\nf = g",
    ),
    "the name of a local": (
        "def f(x):\n    total = x + 1\n    other = 2\n    return total * other",
        "def f(x):\n    b = x + 1\n    a = 2\n    return b * a",
    ),
    "the annotation of a local": (
        "def f(x):\n    total = x + 1\n    return total",
        "def f(x):\n    total: int = x + 1\n    return total",
    ),
    "the annotation of a local without a value": (
        "def f(x):\n    total = x + 1\n    return total",
        "def f(x):\n    total: int\n    total = x + 1\n    return total",
    ),
    "the annotations of parameters": (
        "def f(x, y=1, *a, k=2, **kw):\n    return x",
        "def f(x: int, y: list[str] = 1, *a: int, k: str = 2, **kw: int) -> 'list[int]':\n    return x",
    ),
    "the names of two captured variables, the other way round": (
        '''
        def f(x):
            a = x
            b = 2 * x
            def g():
                return a - b
            return g
        ''',
        '''
        def f(x):
            z = x
            y = 2 * x
            def g():
                return z - y
            return g
        ''',
    ),
    "the names of captured variables that are first used inside": (
        "def f(x):\n    def g():\n        return a(b)\n    b = x\n    a = str\n    return g()",
        "def f(x):\n    def g():\n        return y(z)\n    z = x\n    y = str\n    return g()",
    ),
    "the names of captured variables, two functions deep": (
        "def f(x):\n    a = 1\n    b = 2\n    return lambda: [lambda: (a, b, x, c) for c in (a, b)]",
        "def f(x):\n    z = 1\n    y = 2\n    return lambda: [lambda: (z, y, x, w) for w in (z, y)]",
    ),
    "the name of a nested function": (
        "def f(x):\n    def g(y):\n        return g(x)\n    return g",
        "def f(x):\n    def h(y):\n        return h(x)\n    return h",
    ),
    "a nonlocal's name": (
        "def f(x):\n    n = 0\n    m = 1\n    def g():\n        nonlocal n, m\n"
        "        n += 1\n        m += n\n    g()\n    return n",
        "def f(x):\n    b = 0\n    a = 1\n    def g():\n        nonlocal b, a\n"
        "        b += 1\n        a += b\n    g()\n    return b",
    ),
    "the variable of a comprehension": (
        "def f(x):\n    return [a for a in x if a]",
        "def f(x):\n    return [b for b in x if b]",
    ),
    "the variable of one of two comprehensions": (
        "def f(x):\n    y = [a for a in x]\n    return [a + 1 for a in y]",
        "def f(x):\n    y = [a for a in x]\n    return [b + 1 for b in y]",
    ),
    "the variable of a comprehension that hides another": (
        "def f(x):\n    a = 1\n    y = [a for a in x]\n    return a, y",
        "def f(x):\n    a = 1\n    y = [b for b in x]\n    return a, y",
    ),
    "the variable of a comprehension that hides what it is assigned to": (
        "def f(x):\n    a = [a for a in x]\n    return a",
        "def f(x):\n    a = [b for b in x]\n    return a",
    ),
    "the variable of a comprehension that hides a parameter": (
        "def f(x):\n    return [x for x in x], x",
        "def f(x):\n    return [y for y in x], x",
    ),
    "the variables of comprehensions in each other": (
        "def f(x):\n    p = [[c for c in s if c] for s in x]\n    return [[c for c in s if c] for s in p]",
        "def f(x):\n    p = [[d for d in c if d] for c in x]\n    return [[y for y in z if y] for z in p]",
    ),
    "a captured variable of a comprehension": (
        "def f(x):\n    y = [lambda: a for a in x]\n    return y, [a for a in x]",
        "def f(x):\n    y = [lambda: b for b in x]\n    return y, [a for a in x]",
    ),
    "the variables of a comprehension of pairs": (
        "def f(x):\n    return {k: v for k, v in x.items() if (n := k)}",
        "def f(x):\n    return {b: a for b, a in x.items() if (m := b)}",
    ),
    "the variables of a comprehension in a try": (
        "def f(x):\n    try:\n        a = [b for b in x]\n"
        "    except KeyError:\n        a = [b for b in g]\n    return a",
        "def f(x):\n    try:\n        b = [a for a in x]\n"
        "    except KeyError:\n        b = [c for c in g]\n    return b",
    ),
    "the variables of a generator expression": (
        "def f(x):\n    return sum(a * b for a in x for b in a)",
        "def f(x):\n    return sum(b * a for b in x for a in b)",
    ),
    "the variables of an asynchronous comprehension": (
        "async def f(x):\n    return [b async for a in x for b in a if await b]",
        "async def f(x):\n    return [a async for b in x for a in b if await a]",
    ),
    "the name of an exception": (
        "def f(x):\n    try:\n        return x()\n    except OSError as error:\n        raise KeyError from error",
        "def f(x):\n    try:\n        return x()\n    except OSError as e:\n        raise KeyError from e",
    ),
    "the names that match binds": (
        "def f(x):\n    match x:\n        case [a, b, *rest]:\n"
        "            return a, b, rest\n        case {'k': v}:\n            return v",
        "def f(x):\n    match x:\n        case [d, c, *more]:\n"
        "            return d, c, more\n        case {'k': w}:\n            return w",
    ),
    "the name that with and for bind": (
        "def f(x):\n    with x as y:\n        for z in y:\n            print(z)",
        "def f(x):\n    with x as b:\n        for a in b:\n            print(a)",
    ),
    "while True on one line": (
        "def f(x):\n    while True: x()",
        "def f(x):\n    while True:\n        x()",
    ),
    "if and else on one line": (
        "def f(x):\n    if x: return 1\n    else: return 2",
        "def f(x):\n    if x:\n        return 1\n    else:\n        return 2",
    ),
    "a comprehension on many lines": (
        "def f(x):\n    y = [a + 1 for a in x if a if not a > 3]\n    return y",
        "def f(x):\n    y = [\n        a + 1\n        for a in x\n"
        "        if a\n        if not a > 3\n    ]\n    return y",
    ),
    "and and or on many lines": (
        "def f(x, y, z):\n    return x and y or z and (x or y) or not z",
        "def f(x, y, z):\n    return (\n        x\n        and y\n        or z\n"
        "        and (\n            x\n            or y\n        )\n        or not z\n    )",
    ),
    "a condition on many lines": (
        "def f(x, y, z):\n    if x and y or z:\n        return 1\n    return 2",
        "def f(x, y, z):\n    if (\n        x\n        and y\n        or z\n    ):\n        return 1\n    return 2",
    ),
    "an exchange on many lines": (
        "def f(x, y, z):\n    x, y, z = z, y, x\n    return x, y, z",
        "def f(x, y, z):\n    (\n        x,\n        y,\n        z,\n    ) = (\n"
        "        z,\n        y,\n        x,\n    )\n    return x, y, z",
    ),
    "an exchange on two lines": (
        "def f(x, y):\n    x, y = y, x\n    return x",
        "def f(x, y):\n    (x,\n     y) = y, x\n    return x",
    ),
    "a call on many lines": (
        "def f(x, y):\n    a = g(x, y, k=x)\n    return a, x",
        "def f(x, y):\n    a = g(\n        x,\n        y,\n"
        "        k=x,\n    )\n    return (\n        a,\n        x,\n    )",
    ),
    "a return in a with": (
        "def f(x):\n    with x: return x.a\n    return 1",
        "def f(x):\n    with x:\n        return (\n            x.a\n        )\n    return 1",
    ),
    "constants that are folded": ("def f(x):\n    return x * 86400", "def f(x):\n    return x * (24 * 60 * 60)"),
    "the order of a constant set": ("def f(x):\n    return x in {1, 2, 'a'}", "def f(x):\n    return x in {'a', 2, 1}"),
    "names that the code does not name": ("A = 1\ndef f(x):\n    return x", "A = 2\nB = 3\ndef f(x):\n    return x"),
    "the docstring of a helper": (
        'def g():\n    "Old."\n    return 1\ndef f(x):\n    return g()',
        "def g():\n    return 1\ndef f(x):\n    return g()",
    ),
    "the locals of a helper": (
        "def g():\n    a = 1\n    return a\ndef f(x):\n    return g()",
        "def g():\n    b = 1\n    return b\ndef f(x):\n    return g()",
    ),
    "the order of methods": (
        "class A:\n    def a(self): return 1\n    def b(self): return 2\ndef f(x):\n    return A()",
        "class A:\n    def b(self): return 2\n    def a(self): return 1\ndef f(x):\n    return A()",
    ),
    "the docstring of a class": (
        'class A:\n    "Old."\n    a = 1\ndef f(x):\n    return A()',
        "class A:\n    a = 1\ndef f(x):\n    return A()",
    ),
    "the docstring of the module": ('"Old."\ndef f(x):\n    return __doc__', '"New."\ndef f(x):\n    return __doc__'),
    "the order in which a dict was filled": (
        "A = {'a': 1, 'b': 2}\ndef f(x):\n    return A",
        "A = {'b': 2, 'a': 1}\ndef f(x):\n    return A",
    ),
    "what an unused helper does": (
        "def g():\n    return 1\ndef f(x):\n    return x",
        "def g():\n    return 2\ndef f(x):\n    return x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_it_does_not_count(case):
    before, after = map(parts, SAME[case])
    assert before == after


def on_other_lines(source, first=lambda number: number):
    """Compile *source* as if every piece of it stood on a line of its own."""
    tree = ast.parse(source)
    for number, piece in enumerate(ast.walk(tree), 1):
        if hasattr(piece, "lineno"):
            piece.lineno = piece.end_lineno = first(number)
            piece.col_offset, piece.end_col_offset = 0, 1
    return compile(tree, "<lines>", "exec", dont_inherit=True)


def functions_of(code):
    """Return a function for each code object in the module *code* that is one's."""
    found = []
    for each in code.co_consts:
        if isinstance(each, CodeType):
            if each.co_flags & 0x1:
                cells = tuple(CellType() for _ in each.co_freevars)
                found.append(FunctionType(each, {"__name__": "flow"}, "f", None, cells))
            else:
                found += functions_of(each)
    return found


@pytest.mark.parametrize("name", ["argparse", "asyncio.base_events", "contextlib", "tarfile", "textwrap", "typing"])
def test_no_layout_of_a_large_module_counts(name):
    source = Path(importlib.util.find_spec(name).origin).read_text("utf-8")
    plain = functions_of(compile(source, "<plain>", "exec", dont_inherit=True))
    spread = functions_of(on_other_lines(source))
    formatted = functions_of(compile(ast.unparse(ast.parse(source)), "<formatted>", "exec", dont_inherit=True))
    assert len(plain) == len(spread) == len(formatted) > 5
    printer = Fingerprinter()
    for one, two, three in zip(plain, spread, formatted, strict=True):
        assert printer.of(one).digest == printer.of(two).digest == printer.of(three).digest, one.__code__


# ---------------------------------------------------------------- what counts


BODIES = {
    "a constant": ("return 1", "return 2"),
    "an int that becomes a float": ("return 1", "return 1.0"),
    "an int that becomes a bool": ("return 1", "return True"),
    "the sign of zero": ("return 0.0", "return -0.0"),
    "a str that becomes bytes": ("return 'a'", "return b'a'"),
    "a type within a tuple": ("return (1, (2, 3))", "return (1, (2, 3.0))"),
    "a type within a set": ("return x in {1, 2}", "return x in {1, 2.0}"),
    "a tuple that becomes a set": ("return x in (1, 2)", "return x in {1, 2}"),
    "None that becomes Ellipsis": ("return None", "return ..."),
    "a large number": (f"return {10**5000:#x}", f"return {10**5000 + 1:#x}"),
    "a surrogate": (r"return '\ud800'", r"return '\ud801'"),
    "an operator": ("return x + y", "return x - y"),
    "an operator in place": ("x += y\n    return x", "x = x + y\n    return x"),
    "a comparison": ("return x < y", "return x <= y"),
    "is and is not": ("return x is None", "return x is not None"),
    "the order of operands": ("return x - y", "return y - x"),
    "the order of arguments": ("return x(x, y)", "return x(y, x)"),
    "the name of a keyword argument": ("return x(a=y)", "return x(b=y)"),
    "an attribute": ("return x.a", "return x.b"),
    "a method": ("return x.a()", "return x.b()"),
    "a name that nothing defines": ("return one(x)", "return two(x)"),
    "a builtin": ("return min(x)", "return max(x)"),
    "a name that is deleted": ("del x.a", "del x.b"),
    "and and or": ("return x and y", "return x or y"),
    "and and or in a condition": ("if x and y: x()", "if x or y: x()"),
    "a condition that is turned round": ("if x:\n        y()", "if not x:\n        y()"),
    "what else there is": ("if x:\n        y()\n    else:\n        x()", "if x:\n        y()\n    x()"),
    "a loop that becomes a condition": ("while x:\n        y()", "if x:\n        y()"),
    "break and continue": (
        "for a in x:\n        if a: break\n        y(a)",
        "for a in x:\n        if a: continue\n        y(a)",
    ),
    "which local is used": ("a = x()\n    b = y()\n    return a", "a = x()\n    b = y()\n    return b"),
    "which of two targets is first": ("a, b = x\n    return a", "b, a = x\n    return a"),
    "which way values are exchanged": ("x, y = y, x\n    return x, y", "x, y = x, y\n    return x, y"),
    "two targets that are one": ("a = b = x\n    return a, b", "a = x\n    b = y\n    return a, b"),
    "which variable is captured": ("a = x\n    b = y\n    return lambda: a", "a = x\n    b = y\n    return lambda: b"),
    "which of two captured variables is first": (
        "a = x\n    b = y\n    return lambda: a - b",
        "a = x\n    b = y\n    return lambda: b - a",
    ),
    "which captured variable is written": (
        "a = b = 0\n    def g():\n        nonlocal a\n        a = b\n    g()\n    return a, b",
        "a = b = 0\n    def g():\n        nonlocal b\n        b = a\n    g()\n    return a, b",
    ),
    "nonlocal": (
        "a = 0\n    def g():\n        nonlocal a\n        a = 1\n    g()\n    return a",
        "a = 0\n    def g():\n        a = 1\n    g()\n    return a",
    ),
    "global": ("global a\n    a = x\n    return y", "a = x\n    return y"),
    "what a nested function does": (
        "def g():\n        return x + 1\n    return g",
        "def g():\n        return x + 2\n    return g",
    ),
    "the default of a nested function": ("def g(a=1): pass\n    return g", "def g(a=2): pass\n    return g"),
    "the parameter of a nested function": ("return lambda a: a", "return lambda b: b"),
    "the annotation of a nested function": ("def g(a: x): pass\n    return g", "def g(a: y): pass\n    return g"),
    "what a class has": ("class A:\n        a = x\n    return A", "class A:\n        a = y\n    return A"),
    "the name of an attribute of a class": (
        "class A:\n        a = x\n    return A",
        "class A:\n        b = x\n    return A",
    ),
    "the name of a nested class": ("class A: pass\n    return A", "class B: pass\n    return B"),
    "what a comprehension gives": ("return [a for a in x]", "return [a + 1 for a in x]"),
    "what a comprehension leaves out": ("return [a for a in x if a]", "return [a for a in x if not a]"),
    "which variable a comprehension uses": (
        "return [(a, b) for a in x for b in y]",
        "return [(b, a) for a in x for b in y]",
    ),
    "whether a comprehension hides a name": ("a = y\n    return [a for a in x]", "a = y\n    return [a for b in x]"),
    "a list that becomes a set": ("return [a for a in x]", "return {a for a in x}"),
    "a list that becomes a generator": ("return [a for a in x]", "return (a for a in x)"),
    "a walrus": ("if a := x: y(a)", "if x: y(x)"),
    "what is matched": ("match x:\n        case [1, a]: return a", "match x:\n        case [2, a]: return a"),
    "which name match binds": (
        "match x:\n        case [a, b]: return a, b",
        "match x:\n        case [b, a]: return a, b",
    ),
    "a guard": ("match x:\n        case [a] if a: return a", "match x:\n        case [a] if not a: return a"),
    "the class that is matched": ("match x:\n        case int(): return 1", "match x:\n        case str(): return 1"),
    "a statement that moves out of a try": (
        "try:\n        x()\n        y()\n    except KeyError:\n        pass",
        "try:\n        x()\n    except KeyError:\n        pass\n    else:\n        y()",
    ),
    "a statement that moves in front of a try": (
        "try:\n        x()\n        y()\n    except KeyError:\n        pass",
        "x()\n    try:\n        y()\n    except KeyError:\n        pass",
    ),
    "a try that goes": ("try:\n        x()\n    except KeyError:\n        raise", "x()"),
    "what is caught": (
        "try:\n        x()\n    except KeyError:\n        pass",
        "try:\n        x()\n    except OSError:\n        pass",
    ),
    "what is done with what is caught": (
        "try:\n        x()\n    except KeyError:\n        pass",
        "try:\n        x()\n    except KeyError:\n        raise",
    ),
    "a finally that becomes an else": (
        "try:\n        x()\n    finally:\n        y()",
        "x()\n    y()",
    ),
    "which try a finally belongs to": (
        "try:\n        try:\n            x()\n        finally:\n            y()\n    except KeyError: pass",
        "try:\n        try:\n            x()\n        except KeyError: pass\n    finally:\n        y()",
    ),
    "a group of exceptions": (
        "try:\n        x()\n    except KeyError:\n        y()",
        "try:\n        x()\n    except* KeyError:\n        y()",
    ),
    "a statement that moves out of a with": ("with x:\n        x.a()\n        y()", "with x:\n        x.a()\n    y()"),
    "a yield": ("yield x", "return x"),
    "yield from": ("yield x", "yield from x"),
    "the conversion of an f-string": ("return f'{x}'", "return f'{x!r}'"),
    "the format of an f-string": ("return f'{x:>3}'", "return f'{x:>4}'"),
    "the text of an f-string": ("return f'{x} a'", "return f'{x} b'"),
    "a slice": ("return x[1:2]", "return x[1:3]"),
    "a starred argument": ("return x(*y)", "return x(y)"),
    "a doubly starred argument": ("return x(**y)", "return x(*y)"),
    "an import": ("import json\n    return json", "import os\n    return os"),
    "what is imported": ("from os import path\n    return path", "from os import sep\n    return sep"),
    "an assertion": ("assert x\n    return y", "return y"),
    "an endless loop": ("while True: pass", "while True: x()"),
    "a long jump": (
        "for a in x:\n" + "        y(a)\n" * 300 + "    return 1",
        "for a in x:\n" + "        y(a)\n" * 300 + "        return 1",
    ),
    "super": (
        "class A:\n        def m(self): return super().m()\n    return A",
        "class A:\n        def m(self): return super().n()\n    return A",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_the_body_counts(case):
    before, after = (f"def f(x, y):\n    {body}" for body in BODIES[case])
    assert parts(before) == parts(before)
    assert said(before, after) == ["its code changed"]


@pytest.mark.parametrize("case", BODIES)
def test_the_body_of_a_helper_counts(case):
    before, after = (f"def g(x, y):\n    {body}\ndef f():\n    return g" for body in BODIES[case])
    assert said(before, after) == ["code of helper g() changed"]


ASYNC_BODIES = {
    "await": ("return await x", "return x"),
    "a loop": ("async for a in x: y(a)", "for a in x: y(a)"),
    "a with": ("async with x: y()", "with x: y()"),
    "what moves out of a with": (
        "async with x:\n        await y\n        y()",
        "async with x:\n        await y\n    y()",
    ),
    "a comprehension": ("return [a async for a in x]", "return [a for a in x]"),
    "a yield": ("yield x", "return"),
    "what a comprehension awaits": ("return [await a async for a in x]", "return [a async for a in x]"),
}


@pytest.mark.parametrize("case", ASYNC_BODIES)
def test_the_body_of_a_coroutine_counts(case):
    before, after = (f"async def f(x, y):\n    {body}" for body in ASYNC_BODIES[case])
    assert said(before, after) == ["its code changed"]


PARAMETERS = {
    "a name": ("x, y", "x, z"),
    "an order": ("x, y", "y, x"),
    "one more": ("x", "x, y"),
    "a star": ("x, y", "x, *y"),
    "two stars": ("x, *y", "x, **y"),
    "by name alone": ("x, y", "x, *, y"),
    "by position alone": ("x, y", "x, /, y"),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_count(case):
    before, after = (f"def f({parameters}): pass" for parameters in PARAMETERS[case])
    assert said(before, after) == ["its code changed"]


def test_async_def_counts():
    assert said("def f(x): return x", "async def f(x): return x") == ["its code changed"]


PIECES = {
    "a default": ("def f(x, limit=1): pass", "def f(x, limit=2): pass", ["default 'limit' changed"]),
    "the type of a default": ("def f(x, limit=1): pass", "def f(x, limit=1.0): pass", ["default 'limit' changed"]),
    "a default by name": ("def f(*, limit=1): pass", "def f(*, limit=2): pass", ["default 'limit' changed"]),
    "a default that goes": ("def f(x, limit=1): pass", "def f(x, limit): pass", ["default 'limit' is gone"]),
    "a default that comes": ("def f(x, limit): pass", "def f(x, limit=1): pass", ["default 'limit' is new"]),
    "which parameter has a default": (
        "def f(x, *, a=1, b): pass", "def f(x, *, a, b=1): pass", ["default 'b' is new", "default 'a' is gone"],
    ),
    "a default of a helper": (
        "def g(n=1): pass\ndef f(): g()", "def g(n=2): pass\ndef f(): g()", ["default 'n' of g() changed"],
    ),
    "a default that is a helper": (
        "def g(): return 1\ndef f(x=g): pass", "def g(): return 2\ndef f(x=g): pass", ["code of helper g() changed"],
    ),
    "what is closed over": (
        "def make(factor):\n    def f(x): return x * factor\n    return f\nf = make(2)",
        "def make(factor):\n    def f(x): return x * factor\n    return f\nf = make(3)",
        ["closure 'factor' changed"],
    ),
    "which of two variables is closed over first": (
        "def make(a, b):\n    def f(x): return a - b\n    return f\nf = make(2, 3)",
        "def make(a, b):\n    def f(x): return b - a\n    return f\nf = make(2, 3)",
        ["its code changed"],
    ),
    "a cell that is empty": (
        "def make():\n    def f(x): return y\n    if 0: y = 1\n    return f\nf = make()",
        "def make():\n    def f(x): return y\n    if 1: y = 1\n    return f\nf = make()",
        ["closure 'y' is new", "its code changed"],
    ),
    "a function that is closed over": (
        "def make():\n    def g(): return 1\n    def f(x): return g()\n    return f\nf = make()",
        "def make():\n    def g(): return 2\n    def f(x): return g()\n    return f\nf = make()",
        ["code of helper make.<locals>.g() changed"],
    ),
    "what a helper closes over": (
        "def make(n):\n    def g(): return n\n    return g\ng = make(1)\ndef f(x): return g()",
        "def make(n):\n    def g(): return n\n    return g\ng = make(2)\ndef f(x): return g()",
        ["closure 'n' of make.<locals>.g() changed"],
    ),
    "a global": ("LIMIT = 1\ndef f(x): return LIMIT", "LIMIT = 2\ndef f(x): return LIMIT", ["global 'LIMIT' changed"]),
    "the type of a global": (
        "LIMIT = 1\ndef f(x): return LIMIT", "LIMIT = True\ndef f(x): return LIMIT", ["global 'LIMIT' changed"],
    ),
    "what is in a global": (
        "A = {'a': [1]}\ndef f(x): return A", "A = {'a': [2]}\ndef f(x): return A", ["global 'A' changed"],
    ),
    "a global that a nested function names": (
        "A = 1\ndef f(x): return lambda: [A for _ in x]",
        "A = 2\ndef f(x): return lambda: [A for _ in x]",
        ["global 'A' changed"],
    ),
    "a global that the body of a nested class names": (
        "A = 1\ndef f(x):\n    class B:\n        a = A\n    return B",
        "A = 2\ndef f(x):\n    class B:\n        a = A\n    return B",
        ["global 'A' changed"],
    ),
    "a global of the name that a nested class gives it": (
        "A = 1\ndef f(x):\n    class B:\n        A = A\n    return B",
        "A = 2\ndef f(x):\n    class B:\n        A = A\n    return B",
        ["global 'A' changed"],
    ),
    "a global that is deleted": ("A = 1\ndef f(x): return A", "def f(x): return A", ["global 'A' is gone"]),
    "a global that hides a builtin": (
        "def f(x): return len(x)", "len = 3\ndef f(x): return len(x)", ["global 'len' is new"],
    ),
    "a global that is written": (
        "A = 1\ndef f(x):\n    global A\n    A += x",
        "A = 2\ndef f(x):\n    global A\n    A += x",
        ["global 'A' changed"],
    ),
    "a global that a helper names": (
        "A = 1\ndef g(): return A\ndef f(x): return g()",
        "A = 2\ndef g(): return A\ndef f(x): return g()",
        ["global 'A' changed"],
    ),
    "a helper": (
        "def g(): return 1\ndef f(x): return g()", "def g(): return 2\ndef f(x): return g()",
        ["code of helper g() changed"],
    ),
    "a helper of a helper": (
        "def h(): return 1\ndef g(): return h()\ndef f(x): return g()",
        "def h(): return 2\ndef g(): return h()\ndef f(x): return g()",
        ["code of helper h() changed"],
    ),
    "a helper that is new": (
        "def g(): return 1\ndef f(x): return h()",
        "def g(): return 1\ndef h(): return 1\ndef f(x): return h()",
        ["its code changed", "helper h() is new"],
    ),
    "a helper that goes": (
        "def g(): return 1\ndef f(x): return g()", "def f(x): return 1", ["its code changed", "helper g() is gone"],
    ),
    "which helper a name stands for": (
        "def g(): return 1\ndef h(): return 2\na = g\nb = h\ndef f(x): return a(), b()",
        "def g(): return 1\ndef h(): return 2\na = h\nb = g\ndef f(x): return a(), b()",
        ["its code changed"],
    ),
    "a lambda": (
        "g = lambda: 1\ndef f(x): return g()", "g = lambda: 2\ndef f(x): return g()",
        ["code of helper <lambda>() changed"],
    ),
    "one of two lambdas": (
        "g = lambda: 1\nh = lambda: 2\ndef f(x): return g(), h()",
        "g = lambda: 1\nh = lambda: 3\ndef f(x): return g(), h()",
        ["code of helper <lambda> (2)() changed"],
    ),
    "two lambdas that are exchanged": (
        "g = lambda: 1\nh = lambda: 2\ndef f(x): return g(), h()",
        "g = lambda: 2\nh = lambda: 1\ndef f(x): return g(), h()",
        ["code of helper <lambda>() changed", "code of helper <lambda> (2)() changed"],
    ),
    "mutual recursion": (
        "def g(x): return h(x)\ndef h(x): return f(x)\ndef f(x): return g(x)",
        "def g(x): return h(x)\ndef h(x): return f(x) + 1\ndef f(x): return g(x)",
        ["code of helper h() changed"],
    ),
    "what a name of another package stands for": (
        "from os.path import join\ndef f(x): return join(x)",
        "from posixpath import basename as join\ndef f(x): return join(x)",
        ["its code changed"],
    ),
    "which module a name stands for": (
        "import json as m\ndef f(x): return m.dumps(x)",
        "import pickle as m\ndef f(x): return m.dumps(x)",
        ["its code changed"],
    ),
    "which class of another package a name stands for": (
        "from collections import OrderedDict as D\ndef f(x): return D()",
        "from collections import Counter as D\ndef f(x): return D()",
        ["its code changed"],
    ),
    "the condition": (
        "def f(x): pass\ndef when(x): return x > 1", "def f(x): pass\ndef when(x): return x > 2",
        ["its condition changed"],
    ),
    "a condition that is new": (
        "def f(x): pass", "def g(): pass\ndef f(x): pass\ndef when(x, n=1): return g()", ["its condition is new"],
    ),
    "a condition that goes": ("def f(x): pass\nwhen = lambda x: x", "def f(x): pass", ["its condition is gone"]),
    "a default of the condition": (
        "def f(x): pass\nwhen = lambda x, n=1: x", "def f(x): pass\nwhen = lambda x, n=2: x",
        ["default 'n' of its condition changed"],
    ),
    "a helper of the condition": (
        "def g(): return 1\ndef f(x): pass\ndef when(x): return g()",
        "def g(): return 2\ndef f(x): pass\ndef when(x): return g()",
        ["code of helper g() of its condition changed"],
    ),
    "a helper of both": (
        "def g(): return 1\ndef f(x): return g()\ndef when(x): return g()",
        "def g(): return 2\ndef f(x): return g()\ndef when(x): return g()",
        ["code of helper g() changed", "code of helper g() of its condition changed"],
    ),
    "a function and a condition that are exchanged": (
        "def a(x): return 1\ndef b(x): return 2\nf, when = a, b",
        "def a(x): return 1\ndef b(x): return 2\nf, when = b, a",
        ["its code changed", "its condition changed"],
    ),
    "functions in a table": (
        "def g(): return 1\nA = {'a': [g]}\ndef f(x): return A[x]",
        "def g(): return 2\nA = {'a': [g]}\ndef f(x): return A[x]",
        ["code of helper g() changed"],
    ),
    "which function is where in a table": (
        "def g(): return 1\ndef h(): return 2\nA = {'a': g, 'b': h}\ndef f(x): return A[x]",
        "def g(): return 1\ndef h(): return 2\nA = {'a': h, 'b': g}\ndef f(x): return A[x]",
        ["global 'A' changed"],
    ),
    "a lambda in a table": (
        "A = [lambda: 1]\ndef f(x): return A[x]", "A = [lambda: 2]\ndef f(x): return A[x]",
        ["code of helper <lambda>() changed"],
    ),
    "a function in a partial": (
        "import functools\ndef g(a): return 1\nh = functools.partial(g, 1)\ndef f(x): return h()",
        "import functools\ndef g(a): return 2\nh = functools.partial(g, 1)\ndef f(x): return h()",
        ["code of helper g() changed"],
    ),
    "an argument in a partial": (
        "import functools\ndef g(a): return 1\nh = functools.partial(g, 1)\ndef f(x): return h()",
        "import functools\ndef g(a): return 1\nh = functools.partial(g, 2)\ndef f(x): return h()",
        ["global 'h' changed"],
    ),
    "a cached helper": (
        "import functools\n@functools.cache\ndef g(): return 1\ndef f(x): return g()",
        "import functools\n@functools.cache\ndef g(): return 2\ndef f(x): return g()",
        ["code of helper g() changed"],
    ),
    "a context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef g(): yield 1\ndef f(x): return g()",
        "import contextlib\n@contextlib.contextmanager\ndef g(): yield 2\ndef f(x): return g()",
        ["code of helper g() changed"],
    ),
    "a single dispatch": (
        "import functools\n@functools.singledispatch\ndef g(x): return 1\n@g.register\ndef _(x: int): return 1\n"
        "def f(x): return g(x)",
        "import functools\n@functools.singledispatch\ndef g(x): return 1\n@g.register\ndef _(x: int): return 2\n"
        "def f(x): return g(x)",
        ["code of helper _() changed"],
    ),
    "a task that is called": (
        "from flowkit import Task\ng = Task(lambda x: 1)\ndef f(x): return g(x)",
        "from flowkit import Task\ng = Task(lambda x: 2)\ndef f(x): return g(x)",
        ["code of helper <lambda>() changed"],
    ),
    "a bound method": (
        "class A:\n    def m(self): return 1\ng = A().m\ndef f(x): return g()",
        "class A:\n    def m(self): return 2\ng = A().m\ndef f(x): return g()",
        ["class A changed", "code of helper A.m() changed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PIECES)
def test_it_counts_under_its_name(case):
    before, after, reasons = PIECES[case]
    assert parts(before) == parts(before)
    assert sorted(said(before, after)) == sorted(reasons)


CLASSES = {
    "a method": ("def m(self): return 1", "def m(self): return 2"),
    "the name of a method": ("def m(self): return 1", "def n(self): return 1"),
    "the default of a method": ("def m(self, a=1): pass", "def m(self, a=2): pass"),
    "what a nested function of a method does": ("def m(self): return lambda: 1", "def m(self): return lambda: 2"),
    "a property": ("@property\n    def m(self): return 1", "@property\n    def m(self): return 2"),
    "a property that becomes a method": ("@property\n    def m(self): return 1", "def m(self): return 1"),
    "a getter that becomes a setter": ("m = property(g)", "m = property(None, g)"),
    "a class method": ("@classmethod\n    def m(cls): return 1", "@classmethod\n    def m(cls): return 2"),
    "a class method that becomes static": ("@classmethod\n    def m(cls): pass", "@staticmethod\n    def m(cls): pass"),
    "a static method": ("@staticmethod\n    def m(): return 1", "@staticmethod\n    def m(): return 2"),
    "a cached property": (
        "@functools.cached_property\n    def m(self): return 1",
        "@functools.cached_property\n    def m(self): return 2",
    ),
    "an argument of a partial method": ("m = functools.partialmethod(g, 1)", "m = functools.partialmethod(g, 2)"),
    "a cached method": ("@functools.cache\n    def m(self): return 1", "@functools.cache\n    def m(self): return 2"),
    "a plain attribute": ("a = 1", "a = 2"),
    "the name of a plain attribute": ("a = 1", "b = 1"),
    "a special method": ("def __call__(self): return 1", "def __call__(self): return 2"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_what_is_in_a_class_counts(case):
    before, after = (
        f"import functools\ndef g(self, *a): pass\nclass A:\n    {body}\ndef f(x): return A().m()"
        for body in CLASSES[case]
    )
    assert parts(before) == parts(before)
    assert said(before, after) == ["class A changed"]


def test_the_base_of_a_class_counts():
    source = "class A:\n    def m(self): return 1\nclass B(A): pass\ndef f(x): return B()"
    assert said(source, source.replace("return 1", "return 2")) == ["class A changed"]
    assert said(source, source.replace("B(A)", "B")) == ["class B changed", "class A is gone"]
    assert said(source, source.replace("B(A)", "B(A, dict)")) == ["class B changed"]


def test_what_a_method_names_counts():
    source = "A = 1\ndef g(): return 1\nclass B:\n    def m(self): return g(), A\ndef f(x): return B()"
    assert said(source, source.replace("A = 1", "A = 2")) == ["global 'A' changed"]
    assert said(source, source.replace("return 1", "return 2")) == ["code of helper g() changed"]


def test_the_class_of_a_value_counts():
    """An own class decides what its values do."""
    source = """
        import dataclasses, enum
        class Color(enum.Enum):
            RED = 1
            def m(self): return 1
        @dataclasses.dataclass
        class Point:
            x: int = 1
            y: list = dataclasses.field(default_factory=list)
            def m(self): return 1.5
        P = Point()
        def f(x, color=Color.RED): return P
    """
    assert said(source, source.replace("return 1\n", "return 2\n")) == ["class Color changed"]
    assert said(source, source.replace("return 1.5", "return 2.5")) == ["class Point changed"]
    assert said(source, source.replace("P = Point()", "P = Point(y=[1])")) == ["global 'P' changed"]
    assert set(said(source, source.replace("RED = 1", "RED = 2"))) == {"class Color changed", "default 'color' changed"}
    assert set(said(source, source.replace("x: int = 1", "x: int = 2"))) == {
        "class Point changed",
        "global 'P' changed",
    }


def test_dataclasses_named_tuples_and_abstract_classes_have_no_noise(load):
    module = load(
        {
            "flow.py": """
        import abc, collections, dataclasses, enum, typing
        @dataclasses.dataclass
        class Point:
            x: int
            y: list = dataclasses.field(default_factory=list)
            z: "int" = 3
        @dataclasses.dataclass(frozen=True, slots=True, order=True)
        class Fixed:
            x: int = 1
        class Color(enum.Flag):
            RED = 1
        class Shape(abc.ABC):
            @abc.abstractmethod
            def m(self): ...
        class Row(typing.NamedTuple):
            x: int = 1
        Old = collections.namedtuple("Old", "x y")
        class Slots:
            __slots__ = ("a",)
        class Typed(typing.Generic[typing.TypeVar("T")]): ...
        def f(x): return Point, Fixed, Color, Shape, Row, Old, Slots, Typed
    """
        }
    )
    found = of(module.f)
    assert found.unwatched == ()
    classes = {word.split("'")[1].removesuffix(" (2)") for word in found.parts if word.startswith("class ")}
    assert classes == {"Point", "Fixed", "Color", "Shape", "Row", "Old", "Slots", "Typed"}


# ---------------------------------------------------------------- callables of every kind


CALLABLES = """
    import functools
    LIMIT = 1
    def g(a, b=1): return a
    class Loader:
        def __init__(self, n): self.n = n
        def run(self, x): return self.n + LIMIT
        def __call__(self, x): return self.run(x)
        @classmethod
        def make(cls, x): return cls
        @staticmethod
        def plain(x): return 1
    class Slotted:
        __slots__ = ("n",)
        def __init__(self, n): self.n = n
        def run(self, x): return self.n
    f = {}
"""


def kind(expression, *replace):
    source = CALLABLES.format(expression)
    return source.replace(*replace) if replace else source


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        (kind("Loader(1).run"), kind("Loader(2).run"), ["attribute 'n' changed"]),
        (kind("Loader(1).run"), kind("Loader(1).run", "+ LIMIT", "- LIMIT"),
         ["its code changed", "class Loader changed"]),
        (kind("Loader(1).run"), kind("Loader(1).run", "LIMIT = 1", "LIMIT = 2"), ["global 'LIMIT' changed"]),
        (kind("Loader(1)"), kind("Loader(2)"), ["attribute 'n' changed"]),
        (kind("Loader(1)"), kind("Loader(1)", "+ LIMIT", "- LIMIT"), ["class Loader changed"]),
        (kind("Slotted(1).run"), kind("Slotted(2).run"), ["attribute 'n' changed"]),
        (kind("Loader.make"), kind("Loader.make", "return cls", "return 1"),
         ["its code changed", "class Loader changed"]),
        (kind("Loader.plain"), kind("Loader.plain", "return 1", "return 2"), ["its code changed"]),
        (kind("Loader"), kind("Loader", "self.n = n", "self.n = 1"), ["its code changed"]),
        (kind("functools.partial(g, 1)"), kind("functools.partial(g, 2)"), ["argument '1' changed"]),
        (kind("functools.partial(g, 1)"), kind("functools.partial(g, 1, b=2)"), ["argument 'b' is new"]),
        (kind("functools.partial(g, 1)"), kind("functools.partial(g, 1)", "return a", "return b"),
         ["its code changed"]),
        (kind("functools.partial(g, g)"), kind("functools.partial(g, g)", "return a", "return b"),
         ["its code changed", "code of helper g() changed"]),
        (kind("functools.cache(g)"), kind("functools.cache(g)", "return a", "return b"), ["its code changed"]),
        (kind("functools.cache(g)"), kind("functools.cache(g)", "b=1", "b=2"), ["default 'b' changed"]),
        (kind("lambda x: g(x)"), kind("lambda x: g(x)", "return a", "return b"), ["code of helper g() changed"]),
        (kind("[1].append"), kind("[2].append"), ["instance 'list' changed"]),
        (kind("len"), kind("sum"), ["its code changed"]),
        (kind("str.upper"), kind("str.lower"), ["its code changed"]),
        (kind("dict"), kind("list"), ["its code changed"]),
    ],
)  # fmt: skip
def test_callables_that_are_no_functions(before, after, reasons):
    assert parts(before) == parts(before)
    assert sorted(said(before, after)) == sorted(reasons)


def test_a_method_of_a_value_that_has_a_digest_counts_it_as_a_whole():
    source = """
        import dataclasses
        @dataclasses.dataclass
        class Loader:
            n: int
            def run(self, x): return self.n
        f = Loader(1).run
    """
    assert said(source, source.replace("Loader(1)", "Loader(2)")) == ["instance 'Loader' changed"]


def test_a_task_counts_as_its_function():
    def f(x):
        return x

    assert of(Task(f)).digest == of(f).digest


def test_a_task_that_is_called_and_has_a_version_counts_by_it():
    source = """
        from flowkit import task
        @task(version="1")
        def g(x): return 1
        def f(x): return g(x)
    """
    assert said(source, source.replace("return 1", "return 2")) == []
    assert said(source, source.replace('"1"', '"2"')) == ["its code changed"]


# ---------------------------------------------------------------- decorators


WRAPPED = """
    {header}
    @deco
    def f(x, limit=10):
        return x + {number}
"""
WITH_WRAPS = """
    import functools
    def deco(func):
        @functools.wraps(func)
        def inner(*args, **kwargs):
            return func(*args, **kwargs)
        return inner
"""
WITHOUT_WRAPS = WITH_WRAPS.replace("@functools.wraps(func)", "")
WITHOUT_STARS = WITHOUT_WRAPS.replace("*args, **kwargs", "x")


@pytest.mark.parametrize("where", ["deco.py", "site-packages/deco.py"])
@pytest.mark.parametrize(
    ("decorator", "reason"),
    [
        (WITH_WRAPS, "its code changed"),
        (WITHOUT_WRAPS, "code of helper f() changed"),
        (WITHOUT_STARS, "code of helper f() changed"),
    ],
    ids=["wraps", "plain", "fixed"],
)
def test_what_a_decorator_of_another_package_wraps_counts(load, where, decorator, reason):
    def read(number, decorator=decorator):
        source = WRAPPED.format(header="from deco import deco", number=number)
        return of(load({"flow.py": source, where: decorator}).f).parts

    first = read(1)
    assert read(1) == first
    assert changes(first, read(2)) == [reason]


def in_shop(flow, deco):
    return {"shop/flow.py": flow, "shop/__init__.py": "", "deco.py": deco}


def test_the_code_of_a_decorator_counts_by_name_if_it_is_of_another_package(load):
    source = WRAPPED.format(header="from deco import deco", number=1)
    first = of(load(in_shop(source, WITH_WRAPS)).f).parts
    changed = WITH_WRAPS.replace("return func(*args", "return 1 + func(*args")
    assert of(load(in_shop(source, changed)).f).parts == first
    renamed = WITH_WRAPS.replace("inner", "other")
    assert changes(first, of(load(in_shop(source, renamed)).f).parts) == ["its code changed"]


def test_the_code_of_an_own_decorator_counts():
    source = textwrap.dedent(WITH_WRAPS) + textwrap.dedent(WRAPPED.format(header="", number=1))
    assert said(source, source.replace("return func(", "return 1 + func(")) == ["its code changed"]
    assert said(source, source.replace("x + 1", "x + 2")) == ["its code changed"]
    assert said(source, source.replace("limit=10", "limit=11")) == ["default 'limit' changed"]


def test_what_a_decorator_was_told_counts(load):
    deco = """
        import functools
        def retry(times):
            def deco(func):
                @functools.wraps(func)
                def inner(*args, **kwargs):
                    return times, func(*args, **kwargs)
                return inner
            return deco
    """
    source = "from deco import retry\n@retry({})\ndef f(x): return x"
    first = of(load({"flow.py": source.format(3), "site-packages/deco.py": deco}).f).parts
    second = of(load({"flow.py": source.format(4), "site-packages/deco.py": deco}).f).parts
    assert changes(first, second) == ["closure 'times' changed"]


@pytest.mark.parametrize("decorator", [WITH_WRAPS, WITHOUT_WRAPS], ids=["wraps", "plain"])
def test_a_helper_that_another_package_has_wrapped_counts(load, decorator):
    source = "from deco import deco\n@deco\ndef g(): return {}\ndef f(x): return g()"
    first = of(load({"flow.py": source.format(1), "site-packages/deco.py": decorator}).f).parts
    second = of(load({"flow.py": source.format(2), "site-packages/deco.py": decorator}).f).parts
    assert changes(first, second) == ["code of helper g() changed"]


def test_wrappers_of_an_own_class_count():
    source = """
        class Memo:
            def __init__(self, func, n): self.func, self.n = func, n
            def __call__(self, x): return self.func(x)
        def g(x): return 1
        f = Memo(g, 3)
    """
    assert said(source, source.replace("return 1", "return 2")) == ["code of helper g() changed"]
    assert said(source, source.replace("g, 3", "g, 4")) == ["attribute 'n' changed"]
    assert said(source, source.replace("self.func(x)", "self.func(x) + 1")) == ["class Memo changed"]


def test_what_wraps_itself_ends():
    def f(x):
        return x

    f.__wrapped__ = f
    assert of(f).digest == of(f).digest


# ---------------------------------------------------------------- packages


def test_the_functions_of_the_same_package_count(load):
    first = of(load(PACKAGE).f).parts
    assert of(load(PACKAGE).f).parts == first

    def after(path, old, new):
        assert old in PACKAGE[path]
        return changes(first, of(load({**PACKAGE, path: PACKAGE[path].replace(old, new)}).f).parts)

    assert after("shop/helpers.py", "[:n]", "[n:]") == ["code of helper clean() changed"]
    assert after("shop/helpers.py", "n=3", "n=4") == ["default 'n' of clean() changed"]
    assert after("shop/deep.py", "return rows", "return rows[1:]") == ["code of helper strip() changed"]
    assert after("shop/config.py", "LIMIT = 10", "LIMIT = 11") == ["global 'LIMIT' changed"]
    assert after("shop/config.py", "UNUSED = 1", "UNUSED = 2") == []


def test_helpers_of_one_name_in_two_modules_both_count(load):
    """f names helpers.tidy and other.tidy."""
    first = of(load(PACKAGE).f).parts
    assert {"helper 'shop.helpers.tidy'", "helper 'shop.other.tidy'", "helper 'clean'"} <= first.keys()
    for module in ("helpers", "other"):
        path = f"shop/{module}.py"
        source = textwrap.dedent(PACKAGE[path]).replace("def tidy(rows):\n", "def tidy(rows):\n    rows += 1\n")
        assert changes(first, of(load({**PACKAGE, path: source}).f).parts) == [
            f"code of helper shop.{module}.tidy() changed"
        ]


def test_two_helpers_of_one_name_cannot_take_each_others_place(load):
    changed = PACKAGE["shop/flow.py"].replace("helpers.tidy(rows)", "other.tidy(rows)")
    changed = changed.replace('"1"), other.tidy', '"1"), helpers.tidy')
    assert of(load(PACKAGE).f).digest != of(load({**PACKAGE, "shop/flow.py": changed}).f).digest


def test_globals_of_one_name_in_two_modules_both_count(load):
    files = {
        "shop/flow.py": "from .helpers import g\nLIMIT = 1\ndef f(x): return LIMIT, g()",
        "shop/helpers.py": "LIMIT = 2\ndef g(): return LIMIT",
        "shop/__init__.py": "",
    }
    first = of(load(files).f).parts
    assert {"global 'LIMIT'", "global 'shop.helpers.LIMIT'"} <= first.keys()
    files["shop/helpers.py"] = files["shop/helpers.py"].replace("2", "3")
    assert changes(first, of(load(files).f).parts) == ["global 'shop.helpers.LIMIT' changed"]


@pytest.mark.parametrize("place", ["", "site-packages/"])
def test_the_functions_of_another_package_count_by_name(load, place):
    files = {
        "shop/flow.py": "import lib\nfrom lib import g, A, VERSION\n"
        "def f(x): return lib.g(), g(), A(), lib.VERSION, VERSION",
        f"{place}lib.py": "VERSION = 1\ndef g(): return 1\nclass A:\n    a = 1",
        "shop/__init__.py": "",
    }
    first = of(load(files).f)
    assert sorted(first.parts) == ["code", "global 'VERSION'", "python"]
    files[f"{place}lib.py"] = "VERSION = 1\ndef g(): return 2\nclass A:\n    a = 2"
    assert of(load(files).f).parts == first.parts
    files[f"{place}lib.py"] = "VERSION = 2\ndef h(): return 2\ng = h\nclass A:\n    a = 2"
    assert changes(first.parts, of(load(files).f).parts) == ["its code changed", "global 'VERSION' changed"]


def test_a_module_in_the_folder_of_a_module_without_a_package_counts_by_its_code(load):
    """A script and what lies beside it."""
    files = {
        "flow.py": "from lib import g\ndef f(x): return g()",
        "lib.py": "import more.deep\ndef g(): return more.deep.h()",
        "more/__init__.py": "",
        "more/deep.py": "def h(): return 1",
    }
    first = of(load(files).f)
    assert changes(first.parts, of(load(files | {"lib.py": files["lib.py"] + " + 1"}).f).parts) == [
        "code of helper g() changed"
    ]
    assert changes(first.parts, of(load(files | {"more/deep.py": "def h(): return 2"}).f).parts) == [
        "code of helper h() changed"
    ]


def test_an_own_function_that_another_package_hands_out_counts(load):
    files = {
        "shop/flow.py": "import lib\nlib.g = None\nfrom .helpers import g\nlib.g = g\ndef f(x): return lib.g()",
        "shop/helpers.py": "def g(): return 1",
        "shop/__init__.py": "",
        "lib.py": "",
    }
    first = of(load(files).f).parts
    files["shop/helpers.py"] = "def g(): return 2"
    assert changes(first, of(load(files).f).parts) == ["code of helper g() changed"]


def test_a_package_that_is_installed_is_as_much_a_functions_own(load):
    files = {f"site-packages/{path}": source for path, source in PACKAGE.items()}
    load(files | {"flow.py": ""})
    first = of(importlib.import_module("shop.flow").f).parts
    assert {"helper 'clean'", "helper 'strip'", "global 'LIMIT'"} <= first.keys()


def test_a_function_of_the_standard_library_counts_by_name():
    assert list(of(textwrap.dedent).parts) == ["python", "code"]
    assert list(of(functools.partial(textwrap.dedent)).parts) == ["python", "code"]
    assert list(of(Path).parts) == ["python", "code"]
    assert of(textwrap.dedent).digest != of(textwrap.indent).digest


@pytest.mark.parametrize("as_module", [False, True], ids=["script", "python -m"])
def test_a_script_and_a_module_have_the_same_fingerprint(load, tmp_path, as_module):
    """What names the module that f stands in, does not count."""
    load({**PACKAGE, "shop/main.py": "from .flow import f as g\ndef f(x): return g(x), __name__, __file__"})
    module = importlib.import_module("shop.main")
    scope = {"__name__": "__main__", "__package__": "shop" if as_module else None, "__file__": "elsewhere.py"}
    scope["g"] = module.g
    exec((tmp_path / "shop/main.py").read_text("utf-8").partition("\n")[2], scope)
    found = of(scope["f"]).parts
    assert (found == of(module.f).parts) is as_module  # a script has no package: g counts by its name
    assert ("helper 'clean'" in found) is as_module


def test_helpers_in_a_script_are_its_own():
    source = "def g(): return 1\ndef f(x): return g()"
    first = of(run(source, "__main__")["f"]).parts
    assert changes(first, of(run(source.replace("1", "2"), "__main__")["f"]).parts) == ["code of helper g() changed"]
    assert first == parts(source)


def test_a_module_without_a_name_works():
    scope = {}
    exec("def g(): return 1\ndef f(x): return g()", scope)
    assert "code" in of(scope["f"]).parts


def test_an_attribute_of_a_module_that_is_not_there_yet_is_not_fetched():
    lazy = ModuleType("lazy")
    lazy.__getattr__ = lambda name: pytest.fail(f"asked for {name}")
    scope = run("def f(x): return lazy.table, lazy.sub.g(x)", lazy=lazy)
    assert list(of(scope["f"]).parts) == ["python", "code"]


# ---------------------------------------------------------------- versions


def test_a_version_stands_for_the_code_and_the_condition():
    found = of(lambda x: x, lambda x: x, "2")
    assert found.parts == {"version": "2"}
    assert found.unwatched == ()
    assert found.digest == of(len, None, "2").digest != of(len, None, "3").digest


def test_the_minor_version_of_python_is_part_of_it():
    assert of(len).parts["python"] == ".".join(map(str, sys.version_info[:2]))


# ---------------------------------------------------------------- what is not watched


def test_what_has_no_digest_counts_by_its_type():
    scope = run("def f(x): return lock", lock=threading.Lock())
    found = of(scope["f"])
    assert found.unwatched == ("global 'lock' (a lock of _thread): only its type counts",)
    assert found.parts == of(run("def f(x): return lock", lock=threading.Lock())["f"]).parts
    assert changes(found.parts, of(run("def f(x): return lock", lock=object())["f"]).parts) == ["global 'lock' changed"]


def test_what_is_too_large_counts_by_its_type():
    for size, is_watched in ((900_000, True), (1_100_000, False)):
        found = of(run("def f(x): return TABLE", TABLE=b"a" * size)["f"])
        other = of(run("def f(x): return TABLE", TABLE=b"b" * size)["f"])
        assert (found.digest != other.digest) is is_watched
        assert found.unwatched == (() if is_watched else ("global 'TABLE' (a bytes): only its type counts",))


def test_sentences_say_where_it_is():
    scope = run("""
        import threading
        lock = threading.Lock()
        class A:
            held = lock
            def m(self, x=lock): return x
        def g(n=lock): return n
        def make(c):
            def f(x, y=lock): return c, g(), A()
            return f
        f = make(lock)
        def when(x, z=lock): return z
    """)
    lock = "(a lock of _thread): only its type counts"
    assert list(of(scope["f"], scope["when"]).unwatched) == sorted([
        f"closure 'c' {lock}",
        f"default 'y' {lock}",
        f"default 'n' of g() {lock}",
        f"attribute 'held' of class 'A' {lock}",
        f"default 'x' of class 'A' {lock}",
        f"condition default 'z' {lock}",
    ])  # fmt: skip


def test_an_import_inside_of_a_function_is_not_watched(load):
    files = {
        "shop/flow.py": """
            def f(x):
                import json
                import shop.helpers
                from . import helpers as h
                from .helpers import clean, tidy
                from shop.helpers import clean
        """,
        "shop/helpers.py": "",
        "shop/__init__.py": "",
    }
    end = "inside of f(): only its name counts"
    assert of(load(files).f).unwatched == (
        f"'from . import helpers' {end}",
        f"'from .helpers import clean, tidy' {end}",
        f"'from shop.helpers import clean' {end}",
        f"'import shop.helpers' {end}",
    )


def test_an_own_module_that_is_no_more_than_a_value_is_not_watched(load):
    files = {
        "shop/flow.py": "from . import helpers\nimport json\ndef f(x): return [helpers, json]",
        "shop/helpers.py": "",
        "shop/__init__.py": "",
    }
    assert of(load(files).f).unwatched == ("module 'shop.helpers' as a value: only its name counts",)


def test_what_a_name_says_it_all_of_is_watched():
    scope = run("""
        import json, logging, typing
        from types import MappingProxyType
        log = logging.getLogger("shop")
        Rows = list[int]
        Maybe = int | None
        T = typing.TypeVar("T")
        Table = typing.Dict[str, int]
        def f(x): return log, Rows, Maybe, T, Table, json, len, str.upper, typing.Any
    """)
    assert of(scope["f"]).unwatched == ()
    other = "import logging\nlog = logging.getLogger({!r})\ndef f(x): return log"
    assert said(other.format("a"), other.format("b")) == ["its code changed"]


class Hostile:
    """Raises whatever is asked of it, as a proxy does outside of its request."""

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None


def test_proxies_are_not_asked():
    found = of(run("def f(x): return proxy", proxy=Hostile())["f"])
    assert found.unwatched == ("global 'proxy' (a Hostile of test_fingerprint): only its type counts",)


def test_what_contains_itself_ends():
    loop = [len]
    loop.append(loop)
    table = {"f": lambda: 1}
    table["self"] = table
    found = of(run("def f(x): return loop, table", loop=loop, table=table)["f"])
    assert {"global 'loop'", "global 'table'"} <= found.parts.keys()


# ---------------------------------------------------------------- one run


def test_tasks_that_share_a_function_share_a_fingerprint():
    def f(x):
        return x

    printer = Fingerprinter()
    first = printer.of(f)
    assert printer.of(f) is first
    assert printer.of(f, len) is printer.of(f, len) is not first
    assert printer.of(f, None, "1") is printer.of(f, None, "1") is not first


def test_ten_thousand_tasks_that_share_a_function_cost_next_to_nothing():
    def f(x):
        return x

    printer = Fingerprinter()
    printer.of(f)
    start = time.perf_counter()
    for _ in range(10_000):
        printer.of(f)
    assert time.perf_counter() - start < 1


def test_functions_that_come_and_go_are_not_taken_for_each_other():
    printer = Fingerprinter()
    found = {printer.of(run(f"def f(x): return {number}")["f"]).digest for number in range(200)}
    assert len(found) == 200


def test_a_value_is_read_once_for_all_tasks(monkeypatch):
    table = {"a": [1, 2]}
    read = []
    digest = reach.digest
    monkeypatch.setattr(reach, "digest", lambda value, *most: read.append(value) or digest(value, *most))
    scope = run("\n".join(f"def f{n}(x): return TABLE, {n}" for n in range(20)), TABLE=table)
    printer = Fingerprinter()
    assert len({printer.of(scope[f"f{n}"]).digest for n in range(20)}) == 20
    assert len([value for value in read if value is table]) == 1


def test_what_another_task_reaches_does_not_change_a_fingerprint():
    """Every function of a module, in any order, gets what it gets alone."""
    source = """
        lock = object()
        def a(x, n=lock): return b(x), C()
        def b(x): return c(x), LIMIT
        def c(x): return a(x)
        class C:
            def m(self): return b(1), self
        LIMIT = 3
    """
    scope = run(source)
    names = ["a", "b", "c", "C"]
    alone = {name: of(scope[name]) for name in names}
    for order in (names, names[::-1], ["c", "C", "a", "b"]):
        printer = Fingerprinter()
        for name in order:
            found = printer.of(scope[name])
            assert (found.parts, found.unwatched) == (alone[name].parts, alone[name].unwatched)


def test_a_long_chain_of_helpers_ends():
    lines = [f"def f{n}(x): return f{n + 1}(x)" for n in range(3_000)]
    scope = run("\n".join([*lines, "def f3000(x): return x", "f = f0"]))
    assert len(of(scope["f"]).parts) == 3_002


def test_deeply_nested_functions_end():
    source = "x"
    for _ in range(60):
        source = f"(lambda x: {source})"
    assert "code" in of(run(f"f = {source}")["f"]).parts


def test_a_new_function_costs_less_than_a_handful_of_milliseconds():
    body = "\n".join(f"    a{n} = rows[{n}] if rows else limit + {n}" for n in range(12))
    sources = [f"def f(rows, limit=3):\n{body}\n    return {n}" for n in range(20)]
    functions = [run(source)["f"] for source in sources]
    assert len(list(dis.get_instructions(functions[0]))) > 100
    printer = Fingerprinter()
    printer.of(len)
    start = time.perf_counter()
    for func in functions:
        printer.of(func)
    assert (time.perf_counter() - start) / len(functions) < 0.02


def test_the_parts_and_the_digest_agree():
    sources = [pair[0] for pair in SAME.values()] + [source for piece in PIECES.values() for source in piece[:2]]
    found = [of(run(source)["f"], run(source).get("when")) for source in sources]
    by_parts = {tuple(sorted(each.parts.items())): each.digest for each in found}
    assert len(set(by_parts.values())) == len(by_parts)
    assert all(by_parts[tuple(sorted(each.parts.items()))] == each.digest for each in found)
    assert all(re.fullmatch("[0-9a-f]{32}", each.digest) for each in found)


SEEDED = """
    import dataclasses, enum, functools
    from flowkit.state.fingerprint import Fingerprinter
    NAMES = {"a", "b", "c", "d", "e"}
    TABLE = {str: len, int: lambda x: x in {"x", "y", "z"}}
    FUNCTIONS = {len, sum, min, max, str.upper}
    class Color(enum.Enum):
        RED = frozenset("abcdef")
    @dataclasses.dataclass
    class Point:
        x: int = 1
        def m(self): return self.a, self.b, self.c, self.d
    def g(x):
        class A:
            def __init__(self): self.p = self.q = self.r = self.s = 1
        return x in {"a", "b", "c", "d", ("e", 1.5), None, b"f"}, A
    def f(x, color=Color.RED, names=frozenset("ghijkl")):
        a, b, c, d = x
        return lambda: (g(x), NAMES, TABLE, FUNCTIONS, Point(), a, b, c, d, {1: {"p", "q"}})
    print(Fingerprinter().of(f, lambda x: x in {"m", "n", "o"}).parts)
"""


def test_it_is_the_same_in_every_process(tmp_path):
    script = tmp_path / "seeded.py"
    script.write_text(textwrap.dedent(SEEDED), "utf-8")
    root = str(Path(flowkit.__file__).parent.parent)
    printed = {
        subprocess.run(
            [sys.executable, str(script)], check=True, capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(printed) == 1
    assert "condition" in printed.pop()


def test_flowkit_does_without_dis_until_a_fingerprint_is_taken():
    code = "import sys, flowkit.state.fingerprint; print({'dis', 'inspect'} & sys.modules.keys())"
    root = str(Path(flowkit.__file__).parent.parent)
    printed = subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root},
    ).stdout  # fmt: skip
    assert "dis" not in printed


def test_code_that_was_run_and_traced_is_the_same():
    """The interpreter rewrites bytecode that runs often, or is watched."""
    scope = run(
        "def f(x):\n    total = 0\n    for a in range(x):\n"
        "        total += a * 2 if a else len(str(a))\n    return total"
    )
    before = of(scope["f"]).parts
    for _ in range(100):
        scope["f"](50)
    assert of(scope["f"]).parts == before
    trace = sys.gettrace()
    sys.settrace(lambda *args: None)
    try:
        scope["f"](5)
        during = of(scope["f"]).parts
    finally:
        sys.settrace(trace)
    assert during == before


# ---------------------------------------------------------------- what to say


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, []),
        ({"code": "1"}, {"code": "1"}, []),
        ({"code": "1"}, {"code": "2"}, ["its code changed"]),
        ({"helper 'clean'": "1"}, {"helper 'clean'": "2"}, ["code of helper clean() changed"]),
        ({"helper 'clean'": "1"}, {}, ["helper clean() is gone"]),
        ({}, {"helper 'clean'": "1"}, ["helper clean() is new"]),
        ({"class 'Loader'": "1"}, {"class 'Loader'": "2"}, ["class Loader changed"]),
        ({"global 'LIMIT'": "1"}, {"global 'LIMIT'": "2"}, ["global 'LIMIT' changed"]),
        ({"default 'a' of g()": "1"}, {"default 'a' of g()": "2"}, ["default 'a' of g() changed"]),
        ({"condition": "1"}, {"condition": "2"}, ["its condition changed"]),
        ({"condition": "1"}, {}, ["its condition is gone"]),
        ({}, {"condition": "1", "condition helper 'g'": "1"}, ["its condition is new"]),
        (
            {"condition": "1", "condition helper 'g'": "1"},
            {"condition": "1", "condition helper 'g'": "2"},
            ["code of helper g() of its condition changed"],
        ),
        (
            {"condition": "1", "condition closure 'n'": "1"},
            {"condition": "1", "condition closure 'n'": "2"},
            ["closure 'n' of its condition changed"],
        ),
        ({"version": "1"}, {"version": "2"}, ["version changed from '1' to '2'"]),
        ({"python": "3.11", "code": "1", "helper 'g'": "1"}, {"version": "2"}, ["version '2' instead of its code"]),
        ({"version": "2"}, {"python": "3.11", "code": "1", "global 'A'": "1"}, ["its code instead of version '2'"]),
        ({"version": "1", "input 'x'": "1"}, {"version": "1", "input 'x'": "2"}, ["input 'x' changed"]),
        (
            {"python": "3.11", "code": "1", "helper 'g'": "1", "global 'A'": "1", "condition": "1"},
            {"python": "3.12", "code": "2", "helper 'g'": "2", "global 'A'": "2", "condition": "2"},
            ["Python 3.12 instead of 3.11", "global 'A' changed"],
        ),
        (
            {"code": "1", "helper 'a'": "1", "input 'x'": "1"},
            {"code": "2", "helper 'b'": "1", "input 'x'": "2"},
            ["its code changed", "helper b() is new", "input 'x' changed", "helper a() is gone"],
        ),
    ],
)
def test_changes_are_said_as_people_read_them(old, new, expected):
    assert changes(old, new) == expected
