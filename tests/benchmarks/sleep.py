"""Row: tasks that only wait: a crowd on 32 threads, and a straggler that nobody should wait for."""

from __future__ import annotations

import statistics

from . import peers, subject
from .functions import sleeper
from .measure import Functions, interleave_engines
from .report import Table, figure, judged
from .shapes import Graph, independent

CROWD, CROWD_WORKERS, NAP = 1000, 32, 0.010
CROWD_RATIO = 1.15
STRAGGLER: Graph = [(), (), (1,)]
"""A alone; B >> C. A barrier after A and B would make C wait for A."""
STRAGGLER_SECONDS = (0.30, 0.10, 0.15)
STRAGGLER_RATIO = 1.05
BARRIER = (max(STRAGGLER_SECONDS[:2]) + STRAGGLER_SECONDS[2]) / max(STRAGGLER_SECONDS)


def run(quick: bool) -> list[Table]:
    """Run both graphs on flowkit, graphlib and dask."""
    rounds = 2 if quick else 7
    crowd = _compare([sleeper(NAP)] * CROWD, independent(CROWD), CROWD_WORKERS, rounds)
    straggler = _compare([sleeper(seconds) for seconds in STRAGGLER_SECONDS], STRAGGLER, 2, rounds)
    return [
        _against(
            f"Sleep: {CROWD:,} × sleep({NAP * 1e3:.0f} ms) on {CROWD_WORKERS} threads",
            crowd,
            CROWD * NAP / CROWD_WORKERS,
            CROWD_RATIO,
        ),
        _against(
            f"Sleep: slow A; B >> C; 2 threads (a wave barrier would give {figure(BARRIER)})",
            straggler,
            max(STRAGGLER_SECONDS[0], sum(STRAGGLER_SECONDS[1:])),
            STRAGGLER_RATIO,
        ),
    ]


def _compare(functions: Functions, graph: Graph, workers: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a run of every engine."""
    engines = [subject.thread(workers).once(), peers.graphlib_pool(workers), *peers.dask_threaded(workers)]
    samples = interleave_engines(engines, graph, functions, rounds)
    return {name: statistics.median(sample.run for sample in each) for name, each in samples.items()}


def _against(title: str, seconds: dict[str, float], ideal: float, target: float) -> Table:
    """Return the table of wall times over the ideal one."""
    lines = []
    for name, wall in seconds.items():
        cell = judged(wall / ideal, at_most=target) if name.startswith("flowkit") else figure(wall / ideal)
        lines.append([name, figure(wall * 1e3), cell])
    return Table(title, ["", "ms", f"/ {figure(ideal * 1e3)} ms"], lines)
