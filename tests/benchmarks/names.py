"""Row: the door that wires by names beside the one that wires with ``>>``: building, validating, running."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter, process_time
from typing import Any

from flowkit import DAG, SequentialExecutor, Task, ThreadedExecutor, Workflow

from .functions import nothing
from .measure import interleave, median_ratio
from .report import Table, figure, judged
from .shapes import SHAPES, Graph, tree

SIZE, QUICK_SIZE = 100_000, 10_000
ROUNDS = 5
BUDGET = 12.0
BUILD = 10.0
RATIO = 1.5
ENGINES: Mapping[str, tuple[dict[str, Any], Any]] = {
    "sequential": ({"executor": "sequential"}, SequentialExecutor()),
    "thread 2": ({"executor": "thread", "max_workers": 2}, ThreadedExecutor(2)),
}


def run(quick: bool) -> list[Table]:
    """Build and run the shapes through both doors."""
    tasks = QUICK_SIZE if quick else SIZE
    return [_builds(tree(tasks)), *(_runs(name, tasks) for name in ENGINES)]


def _builds(graph: Graph) -> Table:
    """Return microseconds of CPU per task to describe and check a graph."""
    doors = {"names": partial(_time_build, _by_names, graph), ">>": partial(_time_build, _wired, graph)}
    samples = interleave(doors, ROUNDS)
    per_task = {door: statistics.median(seconds) / len(graph) * 1e6 for door, seconds in samples.items()}
    line = [f"binary reduction, {len(graph):,}", judged(per_task["names"], at_most=BUILD), figure(per_task[">>"])]
    return Table(
        "By name: µs of CPU per task to build and validate", ["", "Workflow", ">>"], [line],
        "From functions and names (or indices) to something that can run; the tasks themselves included.",
    )  # fmt: skip


def _runs(engine: str, tasks: int) -> Table:
    """Return microseconds per task of runs, and their ratios."""
    lines = []
    for shape, make in SHAPES.items():
        graph = make(tasks)
        for told, func in (("order only", nothing), ("results", _take_named)):
            if told == "results" and shape == "independent":
                continue
            dag, workflow = _wired(graph, func), _by_names(graph, func)
            options, executor = ENGINES[engine]
            contestants: dict[str, Callable[[], float]] = {
                "names": partial(_time, partial(executor.execute, workflow)),
                ">>": partial(_time, partial(dag.run, **options)),
            }
            samples = interleave(contestants, ROUNDS, BUDGET)
            ratio = median_ratio(samples["names"], samples[">>"])
            per_task = [figure(statistics.median(samples[door]) / tasks * 1e6) for door in contestants]
            lines.append([f"{shape}, {told}", *per_task, judged(ratio, at_most=RATIO)])
    note = "Results: by name into **results, through both doors."
    return Table(f"By name: µs per task that does nothing, {engine}", ["", "Workflow", ">>", "ratio"], lines, note)


def _take_named(**results: int) -> int:
    return 0


def _by_names(graph: Graph, func: Callable[..., int] = nothing) -> Workflow:
    workflow = Workflow("benchmark")
    for i, upstream in enumerate(graph):
        workflow.add_task(Task(f"t{i}", func), depends_on=[f"t{u}" for u in upstream])
    workflow.validate()
    return workflow


def _wired(graph: Graph, func: Callable[..., int] = nothing) -> DAG:
    tasks: list[Task[..., int]] = []
    for i, upstream in enumerate(graph):
        task: Task[..., int] = Task(f"t{i}", func)
        for u in upstream:
            tasks[u] >> task
        tasks.append(task)
    dag = DAG("benchmark", tasks=tasks)
    dag.validate()
    return dag


def _time_build(build: Callable[[Graph], object], graph: Graph) -> float:
    started = process_time()
    built = build(graph)
    seconds = process_time() - started
    del built
    gc.collect()
    return seconds


def _time(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started
