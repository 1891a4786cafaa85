"""Row: items of a mapped task that do nothing, beside as many tasks of their own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

from flowkit import DAG, Task

from . import subject
from .functions import echo, noops
from .measure import Sample, interleave, median_ratio
from .process import BATCHED, WORKERS, processes, seconds_of
from .report import Table, figure, judged
from .shapes import independent

ITEMS, PROCESS_ITEMS = 100_000, 20_000
BUDGET = 4.0


def run(quick: bool) -> list[Table]:
    """Map over numbers sequentially, on threads and on processes."""
    items, process_items, rounds = (10_000, 2_000, 3) if quick else (ITEMS, PROCESS_ITEMS, 7)
    return [_in_this_process(items, rounds), _in_processes(process_items, rounds)]


def _in_this_process(items: int, rounds: int) -> Table:
    """Return microseconds per item, by executor."""
    lines = []
    for name, options, engine in (
        ("sequential", {"executor": "sequential"}, subject.sequential),
        (f"thread {WORKERS}", {"executor": "thread", "max_workers": WORKERS}, subject.thread(WORKERS)),
    ):
        graph = independent(items)
        samples = interleave(
            {
                "by hand": partial(_sample_by_hand, items, is_threaded=engine.name != subject.sequential.name),
                "items": partial(_sample_mapped, items, options),
                "tasks": partial(engine.sample, graph, noops(graph)),
            },
            rounds,
            BUDGET,
        )
        cells = [figure(statistics.median(s.run for s in each) / items * 1e6) for each in samples.values()]
        for seconds in (lambda sample: sample.run, lambda sample: sample.build_and_run):
            cells.append(figure(median_ratio(*[list(map(seconds, samples[each])) for each in ("items", "tasks")])))
        lines.append([name, *cells])
    columns = ["", "by hand", "items", "independent tasks", "items / tasks", "build + run: items / tasks"]
    note = f"By hand: a list comprehension, and ThreadPoolExecutor({WORKERS}).map. Items are made during the run."
    return Table(f"Mapped: µs for each of {items:,} items that do nothing, run only", columns, lines, note)


def _sample_by_hand(items: int, *, is_threaded: bool) -> Sample:
    started = perf_counter()
    if is_threaded:
        with ThreadPoolExecutor(WORKERS) as pool:
            results = list(pool.map(echo, range(items)))
    else:
        results = [echo(item) for item in range(items)]
    seconds = perf_counter() - started
    if len(results) != items:
        raise RuntimeError(f"{len(results)} results for {items} items")
    return Sample(0.0, seconds, seconds)


def _sample_mapped(items: int, options: Any) -> Sample:
    started = perf_counter()
    dag = _build_mapped(items)
    built = perf_counter()
    first = _time_run(dag, items, options)
    return Sample(built - started, first, _time_run(dag, items, options))


def _build_mapped(items: int) -> DAG:
    """Return numbers >> echo.map(), validated."""
    numbers: Any = Task("numbers", partial(list, range(items)))
    mapped = Task("echo", echo).map()
    _ = numbers >> mapped
    dag = DAG("benchmark", tasks=[mapped])
    dag.validate()
    return dag


def _time_run(dag: DAG, items: int, options: Any) -> float:
    started = perf_counter()
    result = dag.run(**options)
    seconds = perf_counter() - started
    if result["echo"] != list(range(items)):
        raise RuntimeError(f"other results than the {items} items")
    return seconds


def _in_processes(items: int, rounds: int) -> Table:
    """Return microseconds per item on processes, from the start of the first to the end of the last one."""
    graph = independent(items)
    engine = processes(WORKERS)

    def time_items() -> float:
        result = _build_mapped(items).run(executor="process", max_workers=WORKERS)
        return seconds_of(result.tasks["echo"].items)

    def time_tasks() -> float:
        result: Any = engine.run(engine.build(graph, noops(graph)))
        return seconds_of(result.tasks.values())

    samples = interleave({"items": time_items, "tasks": time_tasks}, rounds)
    each: list[Sequence[float]] = [samples["items"], samples["tasks"]]
    mapped, single = (statistics.median(seconds) / items * 1e6 for seconds in each)
    line = [f"process {WORKERS}", judged(mapped, at_most=BATCHED), figure(single), figure(median_ratio(*each))]
    columns = ["", "items", "independent tasks", "items / tasks"]
    note = "From the start of the first to the end of the last one, without starting processes."
    return Table(f"Mapped: µs for each of {items:,} items that do nothing, on processes", columns, [line], note)
