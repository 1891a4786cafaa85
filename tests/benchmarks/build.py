"""Row: what it costs to make the tasks, wire them, freeze and validate, and whether that stays linear."""

from __future__ import annotations

import statistics
from itertools import pairwise

from . import peers, subject
from .functions import noops
from .measure import interleave, median_ratio
from .report import Table, figure, judged
from .shapes import SHAPES, Graph

MICROSECONDS = 8
GROWTH = 12
SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = SIZES[:2]
UP_TO_LARGEST = ("chain", "layered, 3 random")
"""The shapes that go up to the last size: the deepest, and the one with most edges."""
NOTE = "CPU time. Judged: time / (tasks + edges)."
ROUNDS = 5
BUDGET = 2.0


def run(quick: bool) -> list[Table]:
    """Build every shape at its sizes, flowkit beside graphlib's sorter."""
    sizes = QUICK_SIZES if quick else SIZES
    costs: list[list[str]] = []
    growth: list[list[str]] = []
    for shape, make in SHAPES.items():
        of_flowkit: list[float] = []
        of_graphlib: list[float] = []
        for tasks in sizes if shape in UP_TO_LARGEST else sizes[:3]:
            graph = make(tasks)
            flowkit, graphlib = _time_builds(graph)
            of_flowkit.append(statistics.median(flowkit))
            of_graphlib.append(statistics.median(graphlib))
            ratio = figure(median_ratio(flowkit, graphlib))
            costs.append([f"{shape}, {tasks:,}", *_costs(of_flowkit[-1], graph), ratio])
        missing = [""] * (len(sizes) - len(of_flowkit))
        growth.append([f"{shape}, flowkit", *_growth(of_flowkit), *missing])
        growth.append([f"{shape}, graphlib", *map(figure, _steps(of_graphlib)), *missing])
    columns = ["", "ms", "µs per task", "µs per edge", "µs per task and edge", "÷ graphlib's prepare"]
    steps = [f"time({above:,}) / time({below:,})" for below, above in pairwise(sizes)]
    return [
        Table("Build: tasks, wiring, freeze, validate", columns, costs, NOTE),
        Table("Build: growth from one size to the next", ["", *steps], growth),
    ]


def _time_builds(graph: Graph) -> tuple[list[float], list[float]]:
    """Return the seconds of CPU of builds by flowkit and by graphlib."""
    functions = noops(graph)
    contestants = {
        "flowkit": lambda: subject.sequential.time_build(graph, functions),
        "graphlib": lambda: peers.graphlib_sequential.time_build(graph, functions),
    }
    samples = interleave(contestants, ROUNDS, BUDGET)
    return samples["flowkit"], samples["graphlib"]


def _costs(seconds: float, graph: Graph) -> list[str]:
    tasks, edges = len(graph), sum(map(len, graph))
    return [
        figure(seconds * 1e3),
        figure(seconds / tasks * 1e6),
        figure(seconds / edges * 1e6) if edges else "",
        judged(seconds / (tasks + edges) * 1e6, at_most=MICROSECONDS),
    ]


def _growth(seconds: list[float]) -> list[str]:
    """Return the steps as text. Only the one to 1M has a target; small sizes are noise."""
    steps = _steps(seconds)
    if len(seconds) < len(SIZES):
        return [figure(step) for step in steps]
    return [*map(figure, steps[:-1]), judged(steps[-1], at_most=GROWTH)]


def _steps(seconds: list[float]) -> list[float]:
    return [above / below for below, above in pairwise(seconds)]
