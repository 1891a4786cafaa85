"""What does an import cost? The modules of a package and what they import, as a workflow built from data.

Shows the explicit door: a graph whose names and dependencies are read from files, results that arrive by name in
``**below``, a step that fails now and then and is retried, callbacks that collect metrics, hooks, and a store from
which the second execution takes everything that has not changed.

Run it with ``python examples/workflow_example.py [DIRECTORY]``. The modules are those of the standard library that is
installed here; they are read, never imported. It writes ``imports.mmd``, a picture for any Markdown page, and
``imports.db`` into the directory or into a temporary one; with a directory of its own, start it twice.
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from flowkit import (
    RunResult,
    SQLiteStateStore,
    Task,
    TaskStatus,
    ThreadedExecutor,
    Workflow,
    WorkflowTask,
    save_mermaid,
)

STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
PACKAGES = ("asyncio", "concurrent", "email", "importlib", "json", "logging", "multiprocessing", "unittest")
SHOWN = 8
rng = random.Random(7)


def find_modules() -> dict[str, Path]:
    """Return the files of PACKAGES by the names of their modules."""
    found = {}
    for package in PACKAGES:
        for path in sorted((STDLIB / package).rglob("*.py")):
            parts = path.relative_to(STDLIB).with_suffix("").parts
            if not {"test", "tests"}.isdisjoint(parts):
                continue
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return which of *known* the module *name* imports when it is imported."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return (found & known.keys()) - {name}


def without_cycles(imports: dict[str, set[str]]) -> dict[str, list[str]]:
    """Return *imports* without those of a module that is being imported already, as Python skips them."""
    kept: dict[str, list[str]] = {}
    open_modules: list[str] = []

    def visit(name: str) -> None:
        open_modules.append(name)
        kept[name] = []
        for other in sorted(imports[name]):
            if other in open_modules:
                continue
            if other not in kept:
                visit(other)
            kept[name].append(other)
        open_modules.pop()

    for name in imports:
        if name not in kept:
            visit(name)
    return kept


def counter_of(name: str, path: Path) -> Callable[..., dict[str, int]]:
    """Return a task's function: the lines of the module *name*, and of everything that it brings along."""

    def count(**below: dict[str, int]) -> dict[str, int]:
        whole = {name: len(path.read_bytes().splitlines())}
        for lines in below.values():
            whole |= lines
        return whole

    return count


def rate() -> float:
    """Stand for a service that is not always there: how many lines a second somebody reads."""
    if rng.random() < 0.5:
        raise ConnectionError("the service is busy")
    return 2.5


def report(rate: float, **modules: dict[str, int]) -> list[tuple[str, int, int, float]]:
    """Return the modules that bring the most lines along: name, own lines, all lines, hours to read them."""
    rows = [(name, lines[name], sum(lines.values())) for name, lines in modules.items()]
    largest = sorted(rows, key=lambda row: -row[2])[:SHOWN]
    return [(name, own, all_in_all, all_in_all / rate / 3600) for name, own, all_in_all in largest]


def build(metrics: dict[str, float]) -> Workflow:
    """Return the workflow; its tasks note their seconds in *metrics*."""
    modules = find_modules()
    imports = without_cycles({name: imports_of(name, path, modules) for name, path in modules.items()})

    def measure(task: WorkflowTask) -> None:
        metrics[task.name] = task.duration

    workflow = Workflow("imports", description="What importing a module brings along")
    # In the order of their names: what a task depends on may be added after it.
    for name in sorted(modules):
        workflow.add_task(Task(name, counter_of(name, modules[name]), callbacks=[measure]), depends_on=imports[name])
    retried = Task("rate", rate, retries=9, delay=0.01, timeout=5, on_retry=say_retry)
    workflow.add_task(retried)
    workflow.add_task(Task("report", report, timeout=30), depends_on=["rate", *modules])
    return workflow


def say_retry(name: str, attempt: int) -> None:
    print(f"  attempt {attempt} of {name!r} failed, once more")


def execute(workflow: Workflow, store: SQLiteStateStore) -> RunResult:
    """Execute *workflow*, and say how it went."""
    executor = ThreadedExecutor(
        max_workers=8,
        state_store=store,
        on_workflow_start=lambda name: print(f"{name}: started"),
        on_workflow_success=lambda name, stats: print(f"{name}: {stats['completed']} tasks completed"),
    )
    result = executor.execute(workflow)
    restored = sum(run.restored for run in result.tasks.values())
    print(f"  {len(result) - restored} were run, {restored} taken from the store")
    return result


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="imports_"))
    metrics: dict[str, float] = {}
    workflow = build(metrics)
    print(f"{len(workflow)} tasks in {len(workflow.get_execution_plan())} generations")
    with SQLiteStateStore(folder / "imports.db") as store:
        execute(workflow, store)
        execute(build({}), store)
        kept = store.for_workflow("imports").load_task_state("json.decoder")
    assert workflow.get_task_status("report") is TaskStatus.COMPLETED
    print(f"{'lines':<28}{'own':>8}{'with imports':>14}{'hours':>8}")
    for name, own, whole, hours in workflow.get_task_result("report"):
        print(f"{name:<28}{own:>8,}{whole:>14,}{hours:>8.1f}")
    if metrics:
        slowest = max(metrics, key=lambda name: metrics[name])
        print(f"slowest to count: {slowest}, {metrics[slowest] * 1000:.1f} ms")
    print(f"kept of json.decoder: {kept and kept['status']}, {kept and kept['result']}")
    save_mermaid(workflow, folder / "imports.mmd")
    print(f"picture and store are in {folder}")


if __name__ == "__main__":
    main()
