"""A report over the Python standard library that is installed here: what is large, who imports whom, what is slow.

Shows a graph made in a loop (a share of the files for each parser, a module for each measurement), a limit on how many
processes run at once, retries, timeouts, ``raise Skip``, and results gathered in ``*args``. Parsing is pure Python, so
its shares take turns; the measurements are processes of their own and run meanwhile.

Run it with ``python examples/stdlib_report.py [DIRECTORY]``. It prints the report and writes a longer one, as
``report.html``, into the directory or into a temporary one. ``--source PATH`` reports on your own code instead, which
is only read, never imported.
"""

from __future__ import annotations

import argparse
import ast
import html
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowkit import DAG, Skip, Task, TaskContext, task

STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "turtledemo"}
SHARES = 8
MEASURED = [
    "argparse", "asyncio", "dataclasses", "email.message", "json", "logging", "multiprocessing", "sqlite3", "tkinter",
    "typing", "unittest", "urllib.request",
]  # fmt: skip
SHOWN, KEPT = 8, 50
"""Rows of each table in the terminal and in the file."""


class Source(NamedTuple):
    name: str
    path: Path


class Module(NamedTuple):
    """What one file says.

    Attributes:
        name: Its dotted name.
        lines: How many it has.
        functions: Name and lines of every function, methods and inner ones too.
        imports: What importing it imports, as ``module`` or ``module.name``.
        deferred: The same for imports that run later, or never: in functions, or under ``if TYPE_CHECKING``.
    """

    name: str
    lines: int
    functions: list[tuple[str, int]]
    imports: set[str]
    deferred: set[str]


Graph = dict[str, list[str]]
"""Each module to the modules that it imports when it is imported."""

Row = tuple[str | int | float, ...]


class Section(NamedTuple):
    """A table of the report; the second column is a number."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[Row]
    has_bars: bool = True


# ---------------------------------------------------------------- read


@task
def find_modules(source: Path) -> list[Source]:
    root = source.parent if (source / "__init__.py").exists() else source
    found = []
    for path in sorted(source.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if LEFT_OUT.isdisjoint(path.relative_to(source).parts) and name.replace(".", "_").isidentifier():
            found.append(Source(name, path))
    if not found:
        raise Skip(f"no Python file in {source}")
    return found


def make_parser(share: int) -> Task[[list[Source]], list[Module]]:
    """Return a task that parses a share of the files."""

    @task(name=f"parse_{share}", timeout=60)
    def parse(sources: list[Source]) -> list[Module]:
        return [read_module(source) for source in sources[share::SHARES]]

    return parse


def read_module(source: Source) -> Module:
    content = source.path.read_bytes()
    module = Module(source.name, content.count(b"\n"), [], set(), set())
    package = source.name if source.path.stem == "__init__" else source.name.rpartition(".")[0]
    try:
        body = ast.parse(content, source.path).body
    except (SyntaxError, ValueError):
        return module  # written for another version of Python
    for node, name, is_deferred in statements(body, source.name):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            (module.deferred if is_deferred else module.imports).update(imported_names(node, package))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            module.functions.append((f"{name}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1))
    return module


def statements(body: list[ast.stmt], name: str, is_deferred: bool = False) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Yield every statement below *body*, what it is in, and whether it runs later than the import."""
    for node in body:
        yield node, name, is_deferred
        inner, runs_later = name, is_deferred
        match node:
            case ast.ClassDef():
                inner = f"{name}.{node.name}"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                inner, runs_later = f"{name}.{node.name}", True
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                runs_later = True
            case ast.If(test=ast.Compare(left=ast.Name("__name__"))):
                runs_later = True
        for part in [node, *getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            for field in ("body", "orelse", "finalbody"):
                yield from statements(getattr(part, field, []), inner, runs_later)


def imported_names(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """Return what *node* imports; relative names count from *package*."""
    base = ""
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1] if node.level else []
        base = "".join(f"{part}." for part in [*above, node.module] if part)
    return [base + alias.name for alias in node.names]


@task
def merge(*shares: list[Module]) -> list[Module]:
    return sorted((module for share in shares for module in share), key=lambda module: module.name)


@task
def link(modules: list[Module]) -> Graph:
    """Find the module in each imported name: ``os.path.join`` is in ``os`` if ``os.path`` is none."""
    known = {module.name for module in modules} | sys.stdlib_module_names

    def module_in(name: str) -> str:
        while name not in known and "." in name:
            name = name.rpartition(".")[0]
        return name

    return {module.name: sorted({module_in(name) for name in module.imports} - {module.name}) for module in modules}


# ---------------------------------------------------------------- analyse


@task
def overview(modules: list[Module], graph: Graph, source: Path) -> Section:
    functions = [lines for module in modules for _, lines in module.functions]
    facts: list[Row] = [
        ("modules", len(modules)),
        ("lines", sum(module.lines for module in modules)),
        ("functions", len(functions)),
        ("lines of the median function", sorted(functions)[len(functions) // 2] if functions else 0),
        ("imports of other modules", sum(len(imports) for imports in graph.values())),
        ("imported names that are deferred", sum(len(module.deferred) for module in modules)),
    ]
    if source == STDLIB:
        facts.append(("top-level modules in C, or for other systems", len(sys.stdlib_module_names - graph.keys())))
    return Section("Overview", str(source), ("", "count"), facts, has_bars=False)


@task
def largest_modules(modules: list[Module]) -> Section:
    largest = sorted(modules, key=lambda module: -module.lines)[:KEPT]
    rows: list[Row] = [(m.name, m.lines, len(m.functions)) for m in largest]
    return Section("Largest modules", "", ("module", "lines", "functions"), rows)


@task
def largest_functions(modules: list[Module]) -> Section:
    functions = [function for module in modules for function in module.functions]
    rows: list[Row] = [*sorted(functions, key=lambda function: -function[1])[:KEPT]]
    return Section("Largest functions", "", ("function", "lines"), rows)


@task
def most_imported(graph: Graph) -> Section:
    importers = Counter(name for imports in graph.values() for name in imports)
    return Section("Most imported", "", ("module", "importers"), [*importers.most_common(KEPT)])


def reach(graph: Graph, start: str) -> dict[str, str]:
    """Return all that importing *start* imports, each with the module that it is first imported from."""
    imported_from: dict[str, str] = {}
    waiting = deque([start])
    while waiting:
        module = waiting.popleft()
        for name in graph.get(module, ()):
            if name not in imported_from:
                imported_from[name] = module
                waiting.append(name)
    return imported_from


@task
def widest_reach(graph: Graph) -> Section:
    reached = Counter({module: len(reach(graph, module).keys() - {module}) for module in graph})
    note = "Modules that come along with an import, as far as the source says."
    return Section("Widest reach", note, ("module", "modules"), [*reached.most_common(KEPT)])


@task
def import_cycles(graph: Graph) -> Section:
    """Find the shortest cycle through each module that is in one."""
    cycles = set()
    for module in graph:
        imported_from = reach(graph, module)
        if module in imported_from:
            cycle = [module]
            while imported_from[cycle[-1]] != module:
                cycle.append(imported_from[cycle[-1]])
            first = cycle.index(min(cycle))
            cycles.add((*cycle[first:], *cycle[:first]))
    shortest = sorted(cycles, key=lambda cycle: (len(cycle), cycle))[:KEPT]
    rows: list[Row] = [(" → ".join([cycle[0], *reversed(cycle)]), len(cycle)) for cycle in shortest]
    note = f"{len(cycles)} in all: modules that import each other while they are being imported."
    return Section("Import cycles", note, ("cycle", "modules"), rows, has_bars=False)


# ---------------------------------------------------------------- measure


class ImportTime(NamedTuple):
    module: str
    milliseconds: float
    modules: int
    slowest: str


def make_measurement(module: str) -> Task[[Path], ImportTime]:
    """Return a task that imports *module* in a fresh interpreter three times, and keeps the fastest."""

    @task(name=f"import_{module}", uses="processes", retries=1, timeout=30)
    def measure(source: Path) -> ImportTime:
        if source != STDLIB:
            raise Skip("only the standard library is imported")
        return min((time_import(module) for _ in range(3)), key=lambda time: time.milliseconds)

    return measure


def time_import(module: str) -> ImportTime:
    command = [sys.executable, "-I", "-X", "importtime", "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = done.stderr.splitlines()
    if done.returncode:
        raise Skip(lines[-1] if lines else f"exit code {done.returncode}")
    wanted = {module, *(module[:end] for end, letter in enumerate(module) if letter == ".")}
    loaded: list[tuple[int, str]] = []
    group: list[tuple[int, str]] = []
    table = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    for microseconds, _, name in table[1:]:  # a module stands below what it imports, which is indented
        group.append((int(microseconds), name.strip()))
        if not name.startswith("  "):
            loaded += group if name.strip() in wanted else []
            group = []
    if not loaded:
        raise Skip("part of every start")
    longest, slowest = max(loaded)
    total = sum(microseconds for microseconds, _ in loaded)
    return ImportTime(module, total / 1000, len(loaded), f"{slowest} ({longest / 1000:.1f} ms)")


@task
def slowest_imports(context: TaskContext, *times: ImportTime | None) -> Section:
    skipped = [f"{name} ({run.reason})" for name, run in context.upstream.items() if run.state == "skipped"]
    note = f"Python {platform.python_version()}, fresh interpreter, best of three."
    if skipped:
        note += f" Left out: {', '.join(skipped)}."
    slowest = sorted((time for time in times if time), key=lambda time: -time.milliseconds)
    rows: list[Row] = [(time.module, round(time.milliseconds, 1), time.modules, time.slowest) for time in slowest]
    return Section("Slowest imports", note, ("import", "ms", "modules loaded", "slowest of them"), rows)


# ---------------------------------------------------------------- write


def bar_length(section: Section, row: Row) -> float:
    """Return how long the bar of *row* is, from 0 to 1."""
    return float(row[1]) / (float(section.rows[0][1]) or 1) if section.has_bars else 0


def as_cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def as_text(section: Section) -> str:
    lines = [f"=== {section.title}", *filter(None, [section.note])]
    if not section.rows:
        return "\n".join(lines)
    table = [section.columns, *(tuple(map(as_cell, row)) for row in section.rows[:SHOWN])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    bars = ["", *("█" * round(20 * bar_length(section, row)) for row in section.rows)]
    for cells, bar in zip(table, bars, strict=False):
        aligned = [f"{cells[0]:<{widths[0]}}", f"{cells[1]:>{widths[1]}}"]
        for cell, width in zip(cells[2:], widths[2:], strict=True):
            aligned.append(cell.rjust(width) if cell.isdigit() else cell.ljust(width))
        lines.append("  ".join(["", *aligned, bar]).rstrip())
    if len(section.rows) > SHOWN:
        lines.append(f"  ... {len(section.rows) - SHOWN} more in the file")
    return "\n".join(lines)


def as_html(section: Section) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in section.columns)
    rows = []
    for row in section.rows:
        name, number, *rest = (html.escape(as_cell(cell)) for cell in row)
        bar = f"<i style='width:{15 * bar_length(section, row):.2f}em'></i>"
        others = "".join(f"<td>{cell}</td>" for cell in rest)
        rows.append(f"<tr><td>{name}</td><td>{number}</td>{others}<td>{bar}</td></tr>")
    title, note = html.escape(section.title), html.escape(section.note)
    return f"<h2>{title}</h2><p>{note}</p><table><tr>{head}</tr>{''.join(rows)}</table>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse } th { text-align: left }
td, th { padding: 0 1.5em 0 0; vertical-align: top }
td:nth-child(2) { font-variant-numeric: tabular-nums; text-align: right }
i { background: #3b7dd8; display: inline-block; height: .7em }
"""


@task
def write_html(source: Path, output: Path, *sections: Section | None) -> Path:
    title = "Python standard library" if source == STDLIB else f"Modules of {source.name}"
    body = "\n".join(as_html(section) for section in sections if section)
    page = (
        f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>\n{body}</html>\n"
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@task
def write_text(*sections: Section | None) -> str:
    return "\n\n".join(as_text(section) for section in sections if section)


# ---------------------------------------------------------------- the graph

find_modules >> [make_parser(share) for share in range(SHARES)] >> merge >> link
[merge, link] >> overview
merge >> [largest_modules, largest_functions]
link >> [most_imported, widest_reach, import_cycles]
[make_measurement(module) for module in MEASURED] >> slowest_imports

sections = [overview, largest_modules, largest_functions, most_imported, widest_reach, import_cycles, slowest_imports]
sections >> write_text
sections >> write_html


def main() -> None:
    parser = argparse.ArgumentParser(description="Report on the Python standard library, or on your own code.")
    parser.add_argument("output", nargs="?", type=Path, help="directory for report.html (default: a temporary one)")
    parser.add_argument("--source", type=Path, default=STDLIB, help="directory of the code (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        parser.error(f"there is no directory {arguments.source}")
    output = arguments.output or Path(tempfile.mkdtemp(prefix="report_"))
    output.mkdir(parents=True, exist_ok=True)

    dag = DAG("stdlib report", limits={"processes": 2})
    result = dag.run({"source": arguments.source.resolve(), "output": output})
    if "write_text" not in result:
        sys.exit(result.tasks["find_modules"].reason)
    print(result["write_text"])
    print(f"\n{len(result.tasks)} tasks in {result.duration:.1f} s; the longer report is {result['write_html']}")


if __name__ == "__main__":
    main()
