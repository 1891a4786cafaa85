"""Row: what it costs to keep results: checkpoints by number of tasks, a resume, a cached hit, a fingerprint."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from flowkit import DAG, Task
from flowkit.state import SQLiteStateStore, StateManager, TaskCache
from flowkit.state.fingerprint import Fingerprinter

from . import measure
from .functions import echo, noops
from .measure import interleave
from .report import Table, figure, judged
from .shapes import independent

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000), (1_000, 10_000)
BUDGET = 12.0
JSON_CHECKPOINT, SQLITE_CHECKPOINT = 25.0, 60.0
EXECUTORS: dict[str, dict[str, Any]] = {
    "sequential": {"executor": "sequential"}, "thread 2": {"executor": "thread", "max_workers": 2},
}  # fmt: skip


def run(quick: bool) -> list[Table]:
    """Run tasks that do nothing with each store, and call what is cached."""
    sizes, rounds = (QUICK_SIZES, 3) if quick else (SIZES, 5)
    return [
        *(_checkpoints(name, options, sizes, rounds) for name, options in EXECUTORS.items()),
        _hits(rounds),
        _fingerprints(rounds),
    ]


def _checkpoints(name: str, options: dict[str, Any], sizes: tuple[int, ...], rounds: int) -> Table:
    """Return microseconds per task that a store adds to a run, and that a resume takes."""
    lines = []
    for tasks in sizes:
        graph = independent(tasks)
        functions = noops(graph)
        dag = DAG("benchmark", tasks=[Task(f"t{i}", functions[i]) for i in range(tasks)])
        dag.validate()
        contestants: dict[str, Callable[[], tuple[float, float]]] = {
            "none": partial(_time_runs, dag, None, options),
            "JSON": partial(_time_runs, dag, lambda folder: StateManager(folder / "state.json"), options),
            "SQLite": partial(_time_runs, dag, lambda folder: SQLiteStateStore(folder / "state.db"), options),
        }
        samples = interleave(contestants, rounds, BUDGET)
        plain = [run for run, _ in samples["none"]]

        def added(store: str, tasks: int = tasks, samples: Any = samples, plain: Any = plain) -> float:
            kept = [run for run, _ in samples[store]]
            return statistics.median(b - a for a, b in zip(plain, kept, strict=False)) / tasks * 1e6

        resumed = {s: statistics.median(again for _, again in samples[s]) / tasks * 1e6 for s in ("JSON", "SQLite")}
        lines.append(
            [
                f"{tasks:,}",
                figure(statistics.median(plain) / tasks * 1e6),
                judged(added("JSON"), at_most=JSON_CHECKPOINT),
                judged(added("SQLite"), at_most=SQLITE_CHECKPOINT),
                figure(resumed["JSON"]),
                figure(resumed["SQLite"]),
            ]
        )
    columns = ["tasks", "no state", "JSON adds", "SQLite adds", "JSON: resume of all", "SQLite: resume of all"]
    note = "Each result is on the disk's side of a kill -9 before its success is told; no power cut is."
    return Table(f"State: µs per task that does nothing, {name}", columns, lines, note)


def _time_runs(dag: DAG, make: Callable[[Path], Any] | None, options: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of a run with a new store, and of its resume."""
    with tempfile.TemporaryDirectory() as folder:
        store = None if make is None else make(Path(folder))
        started = perf_counter()
        dag.run(state=store, **options)
        first = perf_counter() - started
        if store is None:
            return first, first
        started = perf_counter()
        result = dag.run(state=store, resume=True, **options)
        again = perf_counter() - started
        if not all(run.restored for run in result.tasks.values()):
            raise RuntimeError("a task ran again")
        if isinstance(store, SQLiteStateStore):
            store.close()
        return first, again


def _hits(rounds: int) -> Table:
    """Return microseconds per call of a cached function whose result is there."""
    calls = 2_000
    with tempfile.TemporaryDirectory() as folder, SQLiteStateStore(Path(folder) / "cache.db") as database:
        stores = {"memory": StateManager(), "JSON": StateManager(Path(folder) / "cache.json"), "SQLite": database}
        cached = {name: TaskCache(store)(echo) for name, store in stores.items()}
        contestants = {name: partial(_time_calls, func, calls) for name, func in cached.items()}
        samples = interleave({"no cache": partial(_time_calls, echo, calls), **contestants}, rounds)
    line = [figure(statistics.median(seconds) / calls * 1e6) for seconds in samples.values()]
    return Table("State: µs per call of a cached function, a hit", ["", *samples], [["echo(7)", *line]])


def _time_calls(func: Callable[[int], int], calls: int) -> float:
    func(7)
    started = perf_counter()
    for _ in range(calls):
        func(7)
    return perf_counter() - started


def _fingerprints(rounds: int) -> Table:
    """Return microseconds for the fingerprint of a function, by what it calls."""
    functions = {"a line": echo, "a module of functions": measure.interleave_engines}

    def time_new(func: Callable[..., Any]) -> float:
        started = perf_counter()
        Fingerprinter().of(func)
        return perf_counter() - started

    def time_known() -> float:
        printer = Fingerprinter()
        printer.of(echo)
        started = perf_counter()
        for _ in range(1_000):
            printer.of(echo)
        return (perf_counter() - started) / 1_000

    contestants = {name: partial(time_new, func) for name, func in functions.items()}
    samples = interleave({**contestants, "the same again": time_known}, rounds * 3)
    line = [figure(statistics.median(seconds) * 1e6) for seconds in samples.values()]
    return Table("State: µs for the fingerprint of a function", ["", *samples], [["", *line]])
