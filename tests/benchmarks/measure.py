"""How things are timed: an engine builds and runs, contestants take turns, ratios pair what ran in one turn.

Knows: clocks, turns, medians. Does not know: any engine, any table.

The garbage collector stays as Python sets it. What earlier samples left is collected between samples, outside
the timed part, so that nobody pays for the garbage of another.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any, NamedTuple, TypeVar

from .shapes import Graph, layered

T = TypeVar("T")
Functions = Sequence[Callable[..., Any]]


class Sample(NamedTuple):
    """Seconds of one build and run of an engine."""

    build: float
    """From functions and indices to something that is ready to run."""
    first: float
    """The first run, with whatever was left to do lazily."""
    run: float
    """Another run of the same thing where it can run twice, else the first."""

    @property
    def build_and_run(self) -> float:
        """Return what a first use costs."""
        return self.build + self.first


def _count_paths(*values: int) -> int:
    return 1 + sum(values)


@dataclass(frozen=True)
class Engine:
    """One way to run a graph of functions.

    ``build(graph, functions)`` returns what ``run`` takes; ``run`` returns a mapping with all results.
    """

    name: str
    build: Callable[[Graph, Functions], Any]
    run: Callable[[Any], Mapping[Any, Any]]
    reruns: bool = True

    def once(self) -> Engine:
        """Return this engine without the second run, for tasks that take their time."""
        return replace(self, reruns=False)

    def sample(self, graph: Graph, functions: Functions) -> Sample:
        """Build once, run once or twice, and return the seconds of each.

        Raises:
            RuntimeError: A run returned another number of results than the graph has tasks.
        """
        started = perf_counter()
        built = self.build(graph, functions)
        build = perf_counter() - started
        first = self._time_run(built, len(graph))
        if not self.reruns:
            return Sample(build, first, first)
        gc.collect()
        return Sample(build, first, self._time_run(built, len(graph)))

    def verify(self) -> None:
        """Check on a small graph that every task gets the values of its upstream tasks.

        Raises:
            RuntimeError: The results are not those of a loop in topological order.
        """
        graph = layered(200)
        expected: list[int] = []
        for upstream in graph:
            expected.append(_count_paths(*[expected[i] for i in upstream]))
        results = self.run(self.build(graph, [_count_paths] * len(graph)))
        if sorted(results.values()) != sorted(expected):
            raise RuntimeError(f"{self.name} returned other results than a plain loop")

    def time_build(self, graph: Graph, functions: Functions) -> float:
        """Return the seconds of CPU of one build, which does not wait, so that other load hardly counts.

        The thing built is thrown away after the clock has stopped.
        """
        started = process_time()
        built = self.build(graph, functions)
        seconds = process_time() - started
        del built
        return seconds

    def _time_run(self, built: Any, tasks: int) -> float:
        started = perf_counter()
        results = self.run(built)
        seconds = perf_counter() - started
        if len(results) != tasks:
            raise RuntimeError(f"{self.name} returned {len(results)} results for {tasks} tasks")
        return seconds


def interleave(
    contestants: Mapping[str, Callable[[], T]], rounds: int, budget: float = math.inf
) -> dict[str, list[T]]:
    """Call every contestant once a round, in alternating order, and return what each call returned.

    Args:
        contestants: What to call, by name.
        rounds: How many calls each gets at most.
        budget: Seconds after which a contestant gets no further call and keeps the samples it has.
    """
    samples: dict[str, list[T]] = {name: [] for name in contestants}
    spent = dict.fromkeys(contestants, 0.0)
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            if spent[name] <= budget:
                gc.collect()
                started = perf_counter()
                samples[name].append(contestants[name]())
                spent[name] += perf_counter() - started
        order.reverse()
    return samples


def interleave_engines(
    engines: Sequence[Engine], graph: Graph, functions: Functions, rounds: int, budget: float = math.inf
) -> dict[str, list[Sample]]:
    """Return the samples of every engine on one graph, taken in turns."""
    contestants = {engine.name: _sampler(engine, graph, functions) for engine in engines}
    return interleave(contestants, rounds, budget)


def _sampler(engine: Engine, graph: Graph, functions: Functions) -> Callable[[], Sample]:
    return lambda: engine.sample(graph, functions)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of above / below over the rounds in which both took part."""
    return statistics.median(a / b for a, b in zip(above, below, strict=False))
