"""Row: what ``import flowkit`` costs and what it loads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

from .children import ROOT, output_of
from .measure import interleave
from .report import MISSED, Table, figure, judged

MILLISECONDS = 20
FORBIDDEN = ("asyncio", "multiprocessing", "sqlite3", "concurrent.futures", "inspect", "dataclasses", "json")
_FROM_CHECKOUT = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
BARE = "pass"
SUBJECT = "import flowkit"
STATEMENTS = {
    BARE: BARE,
    SUBJECT: f"{_FROM_CHECKOUT}import flowkit",
    "import flowkit, run one task on a thread": (
        f"{_FROM_CHECKOUT}from flowkit import DAG, Task; DAG('x', tasks=[Task('a', lambda: 1)]).run()"
    ),
    "import asyncio": "import asyncio",
    "import concurrent.futures, graphlib": "import concurrent.futures, graphlib",
}


def run(quick: bool) -> list[Table]:
    """Time child processes, in turns with one that imports nothing."""
    contestants = {name: _timer(text) for name, text in STATEMENTS.items()}
    if find_spec("dask") is not None and not quick:
        contestants["import dask.threaded"] = _timer("import dask.threaded")
    interleave(contestants, 1)  # writes the byte code, warms the file cache
    samples = interleave(contestants, 15 if quick else 31)
    bare = statistics.median(samples[BARE])
    lines = []
    for name, seconds in samples.items():
        extra = (statistics.median(seconds) - bare) * 1e3
        cell = judged(extra, at_most=MILLISECONDS) if name == SUBJECT else figure(extra)
        lines.append([name, figure(statistics.median(seconds) * 1e3), cell])
    times = Table("Import: ms of a process, and over `python -I -c pass`", ["", "ms", "over bare"], lines)
    return [times, _loaded()]


def _timer(statements: str) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        output_of("-I", "-c", statements, timeout=60)
        return time.perf_counter() - started

    return seconds


def _loaded() -> Table:
    """Return how many modules ``import flowkit`` adds, the forbidden ones, and which are not its own."""
    bare = _modules_after("import sys")
    added = _modules_after(STATEMENTS[SUBJECT]) - bare
    forbidden = sorted(name for name in FORBIDDEN if name in added)
    lines = [
        ["modules added", str(len(added))],
        ["of those forbidden", f"**{', '.join(forbidden)}** ({MISSED})" if forbidden else "none"],
        ["not flowkit's own", ", ".join(sorted(name for name in added if not name.startswith("flowkit")))],
    ]
    return Table("Import: modules loaded by `import flowkit`", ["", ""], lines)


def _modules_after(statements: str) -> set[str]:
    return set(output_of("-I", "-c", f"{statements}; import sys; print(*sys.modules)", timeout=60).split())
