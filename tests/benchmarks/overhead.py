"""Row: microseconds per task that does nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from . import peers, subject
from .functions import noops
from .measure import Engine, Sample, interleave_engines, median_ratio
from .report import Table, figure, judged
from .shapes import SHAPES

WORKERS = (2, 8)
DASK_WORKERS = 2
SEQUENTIAL_TO_FLOOR = 4
THREAD_TO_FLOOR = 8
POOL_TO_THREAD = {"chain": 25}
DASK_TO_THREAD = {"chain": 60}
POOL_TO_THREAD_ELSEWHERE = 5
DASK_TO_THREAD_ELSEWHERE = 25

Samples = dict[str, list[Sample]]


def run(quick: bool) -> list[Table]:
    """Measure every shape at 10,000 tasks beside everything, and at 100,000 beside what ends soon enough."""
    dask = peers.dask_threaded(DASK_WORKERS)
    pools = [peers.graphlib_pool(workers) for workers in WORKERS]
    if quick:
        return _measure(2_000, [*pools, *dask], rounds=3, budget=0.3)
    return [
        *_measure(10_000, [*pools, *dask], rounds=7, budget=3.0),
        *_measure(100_000, pools[:1], rounds=5, budget=4.0),
    ]


def _measure(tasks: int, threaded_peers: Sequence[Engine], *, rounds: int, budget: float) -> list[Table]:
    engines = [peers.floor, peers.graphlib_sequential, subject.sequential]
    engines += [subject.thread(workers) for workers in WORKERS]
    engines += threaded_peers
    for engine in engines:
        engine.verify()
    by_shape: dict[str, Samples] = {}
    for shape, make in SHAPES.items():
        graph = make(tasks)
        by_shape[shape] = interleave_engines(engines, graph, noops(graph), rounds, budget)
    size = f"{tasks:,} tasks"
    return [
        _costs(f"Overhead: µs per task, run only, {size}", tasks, engines, by_shape, "run"),
        _costs(f"Overhead: µs per task, build + run, {size}", tasks, engines, by_shape, "build_and_run"),
        _ratios(f"Overhead: ratios, run only, {size}", by_shape, "run", with_targets=True),
        _ratios(f"Overhead: ratios, build + run, {size}", by_shape, "build_and_run", with_targets=False),
    ]


def _costs(
    title: str, tasks: int, engines: Sequence[Engine], by_shape: dict[str, Samples], which: str
) -> Table:
    names = [engine.name for engine in engines]
    lines = [
        [shape, *[figure(statistics.median(_seconds(samples[name], which)) / tasks * 1e6) for name in names]]
        for shape, samples in by_shape.items()
    ]
    return Table(title, ["", *names], lines)


def _ratios(title: str, by_shape: dict[str, Samples], which: str, *, with_targets: bool) -> Table:
    """Return what flowkit costs in floors, and how many times dearer the others are than its threads."""
    pairs = [("flowkit sequential", "floor")]
    pairs += [(f"flowkit thread {workers}", "floor") for workers in WORKERS]
    pairs += [(f"graphlib + TPE {workers}", f"flowkit thread {workers}") for workers in WORKERS]
    pairs.append((f"dask threaded {DASK_WORKERS}", f"flowkit thread {DASK_WORKERS}"))
    measured = next(iter(by_shape.values()))
    pairs = [pair for pair in pairs if pair[0] in measured]
    lines = []
    for shape, samples in by_shape.items():
        line = [shape]
        for above, below in pairs:
            ratio = median_ratio(_seconds(samples[above], which), _seconds(samples[below], which))
            line.append(_judge(shape, above, ratio) if with_targets else figure(ratio))
        lines.append(line)
    return Table(title, ["", *[f"{above} / {below}" for above, below in pairs]], lines)


def _judge(shape: str, above: str, ratio: float) -> str:
    if above.startswith("graphlib"):
        return judged(ratio, at_least=POOL_TO_THREAD.get(shape, POOL_TO_THREAD_ELSEWHERE))
    if above.startswith("dask"):
        return judged(ratio, at_least=DASK_TO_THREAD.get(shape, DASK_TO_THREAD_ELSEWHERE))
    return judged(ratio, at_most=SEQUENTIAL_TO_FLOOR if "sequential" in above else THREAD_TO_FLOOR)


def _seconds(samples: Sequence[Sample], which: str) -> list[float]:
    return [getattr(sample, which) for sample in samples]
