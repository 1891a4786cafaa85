"""Graphs to measure on: for each task the tuple of its upstream indices, in topological order.

Knows: shapes. Does not know: functions, engines.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, isqrt, log2

Graph = Sequence[tuple[int, ...]]


def chain(tasks: int) -> Graph:
    """Return 0 >> 1 >> 2 >> ..."""
    return [(), *((index,) for index in range(tasks - 1))]


def fan(tasks: int) -> Graph:
    """Return one source, everything else under it, and one sink under all of those."""
    return [(), *[(0,)] * (tasks - 2), tuple(range(1, tasks - 1))]


def layered(tasks: int) -> Graph:
    """Return layers of sqrt(tasks); each task has 3 random upstream tasks in the layer before its own."""
    width = isqrt(tasks)
    rng = random.Random(tasks)  # the same graph every time
    graph: list[tuple[int, ...]] = [()] * width
    while len(graph) < tasks:
        start = (len(graph) // width - 1) * width
        graph.append(tuple(rng.sample(range(start, start + width), 3)))
    return graph


def tree(tasks: int) -> Graph:
    """Return a binary reduction: leaves first, every other task takes two, the root is last."""
    last = tasks - 1
    return [
        tuple(last - below for below in (2 * node + 1, 2 * node + 2) if below < tasks)
        for node in range(last, -1, -1)
    ]


def independent(tasks: int) -> Graph:
    """Return tasks without edges."""
    return [()] * tasks


SHAPES: dict[str, Callable[[int], Graph]] = {
    "chain": chain,
    "fan 1→N→1": fan,
    "layered, 3 random": layered,
    "binary reduction": tree,
    "independent": independent,
}


def stencil_1d(width: int, steps: int) -> Graph:
    """Return Task Bench's stencil: (t, i) needs (t-1, i-1), (t-1, i) and (t-1, i+1)."""
    return _stepwise(width, [[(i - 1, i, i + 1) for i in range(width)]] * steps)


def fft(width: int, steps: int) -> Graph:
    """Return Task Bench's fft: (t, i) needs i and i ± 2^((t+L-1) mod L) of step t-1, L = ceil(log2 width)."""
    length = ceil(log2(width))
    reaches = [2 ** ((step + length - 1) % length) for step in range(steps)]
    return _stepwise(width, [[(i - reach, i, i + reach) for i in range(width)] for reach in reaches])


def _stepwise(width: int, needs: Sequence[Sequence[tuple[int, ...]]]) -> Graph:
    """Return the graph whose task (t, i) takes the columns ``needs[t][i]`` of step t-1, where they exist."""
    graph: list[tuple[int, ...]] = [()] * width
    for before, (_, columns) in enumerate(pairwise(needs)):
        graph += [tuple(before * width + i for i in needed if 0 <= i < width) for needed in columns]
    return graph
