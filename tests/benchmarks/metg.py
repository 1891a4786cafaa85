"""Row: METG(50 %), the smallest average task with which a run still does useful work half of the time.

Task Bench (Slaughter et al., SC'20): 2 columns a worker, 250 steps, efficiency = kernel time × tasks /
(workers × wall). The kernel releases the GIL and is timed alone beside every run. Where efficiency crosses
50 % is read off between the two nearest measured task lengths, both on logarithmic scales.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, inf, log
from time import perf_counter
from typing import NamedTuple

from . import peers, subject
from .functions import kernel
from .measure import Engine, Functions, interleave
from .report import Table, figure, judged
from .shapes import Graph, fft, stencil_1d

MICROSECONDS = 15
WORKERS = 2
WIDTH, STEPS, QUICK_STEPS = 2 * WORKERS, 250, 50
HALF = 0.5
LENGTHS = tuple(512e-6 / 2**halvings for halvings in range(8))
"""Seconds a task should take, 512 to 4 µs."""


class Point(NamedTuple):
    """One measured task length: what the kernel took alone beside the run, and the efficiency."""

    seconds: float
    efficiency: float


def run(quick: bool) -> list[Table]:
    """Sweep task lengths over both patterns on 2 threads, flowkit beside graphlib and dask."""
    engines = [subject.thread(WORKERS), peers.bare_threads(WORKERS), peers.graphlib_pool(WORKERS)]
    engines += peers.dask_threaded(WORKERS)
    lengths = LENGTHS[::3] if quick else LENGTHS
    rounds = 2 if quick else 5
    steps = QUICK_STEPS if quick else STEPS
    found: list[list[str]] = []
    curves: list[list[str]] = []
    for pattern, graph in (("stencil_1d", stencil_1d(WIDTH, steps)), ("fft", fft(WIDTH, steps))):
        points = _sweep(engines, graph, lengths, rounds)
        metgs = [_crossing(points[engine.name]) for engine in engines]
        found.append([pattern, judged(metgs[0], at_most=MICROSECONDS, unit=" µs"), *map(_text_of, metgs[1:])])
        curves += _curves(pattern, points)
    names = [engine.name for engine in engines]
    wanted = [figure(seconds * 1e6) for seconds in lengths]
    note = "Bare threads ignore the graph: what this machine had to give beside its other load."
    size = f"{WIDTH} columns × {steps} steps, {WORKERS} threads"
    return [
        Table(f"METG(50 %): {size}", ["", *names], found),
        Table(f"METG: efficiency by µs of kernel, {size}", ["", *wanted], curves, note),
    ]


def _sweep(
    engines: Sequence[Engine], graph: Graph, lengths: Sequence[float], rounds: int
) -> dict[str, list[Point]]:
    """Return for each engine its median points, longest tasks first."""
    points: dict[str, list[Point]] = {engine.name: [] for engine in engines}
    for seconds in lengths:
        functions = [kernel(_iterations_for(seconds))] * len(graph)
        contestants = {engine.name: _pointer(engine, graph, functions) for engine in engines}
        for name, samples in interleave(contestants, rounds).items():
            points[name].append(Point(*map(statistics.median, zip(*samples, strict=True))))
    return points


def _pointer(engine: Engine, graph: Graph, functions: Functions) -> Callable[[], Point]:
    def point() -> Point:
        before = _time_alone(functions[0])
        wall = engine.sample(graph, functions).run
        seconds = (before + _time_alone(functions[0])) / 2
        return Point(seconds, seconds * len(graph) / (WORKERS * wall))

    return point


def _time_alone(function: Callable[..., object], calls: int = 20) -> float:
    """Return the median seconds of one call, with nothing else going on in this process."""
    times = []
    for _ in range(calls):
        started = perf_counter()
        function()
        times.append(perf_counter() - started)
    return statistics.median(times)


def _iterations_for(seconds: float) -> int:
    """Return the iterations with which the kernel takes about *seconds*, at least 1."""
    shortest, longer = _time_alone(kernel(1)), _time_alone(kernel(1001))
    return max(1, round(1 + (seconds - shortest) / ((longer - shortest) / 1000)))


def _crossing(points: Sequence[Point]) -> float:
    """Return the smallest task, in microseconds, at which efficiency is 50 %: infinity where it never is.

    Where the shortest measured tasks still reach it, their length.
    """
    if points[-1].efficiency >= HALF:
        return 1e6 * points[-1].seconds
    for shorter, longer in pairwise(reversed(points)):
        if longer.efficiency >= HALF:
            share = log(longer.efficiency / HALF) / log(longer.efficiency / shorter.efficiency)
            return 1e6 * exp(log(longer.seconds) + share * log(shorter.seconds / longer.seconds))
    return inf


def _text_of(microseconds: float) -> str:
    return "never" if microseconds == inf else f"{figure(microseconds)} µs"


def _curves(pattern: str, points: dict[str, list[Point]]) -> list[list[str]]:
    return [
        [f"{pattern}, {name}", *[f"{each.efficiency:.0%} of {figure(each.seconds * 1e6)}" for each in curve]]
        for name, curve in points.items()
    ]
