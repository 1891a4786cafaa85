"""Row: many coroutines at once, and coroutines that do nothing, beside what asyncio takes for the same by hand.

``run`` has an event loop of its own, like ``asyncio.run``; ``arun`` is called inside of one, like ``asyncio.gather``.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter
from typing import Any

from flowkit import DAG

from . import subject
from .functions import soft_noops, soft_sleeper
from .measure import Functions, interleave, median_ratio
from .report import Table, figure, judged
from .shapes import Graph, chain, independent

CROWD, NAP = 10_000, 0.010
RATIO = 1.5
BY_HAND, BY_HAND_INSIDE = "asyncio.run(gather)", "await gather"
RUN, ARUN = "flowkit run", "flowkit arun"

Samples = dict[str, list[tuple[float, float]]]
"""By contestant: seconds of each build, and of each run."""


def run(quick: bool) -> list[Table]:
    """Run sleeping coroutines all at once, and chains and crowds of coroutines that do nothing."""
    tasks, rounds = (CROWD // 10, 3) if quick else (CROWD, 9)
    napping = _compare(independent(tasks), [soft_sleeper(NAP)] * tasks, rounds)
    idle = {
        name: _compare(make(tasks), soft_noops(make(tasks)), rounds)
        for name, make in (("chain", chain), ("independent", independent))
    }
    return [_against_gather(tasks, napping), _costs(tasks, idle)]


# ---------------------------------------------------------------- who is measured


def _compare(graph: Graph, functions: Functions, rounds: int) -> Samples:
    """Return the samples of flowkit and of asyncio by hand."""
    by_hand = partial(_call_in_turn if any(graph) else _gather, functions)
    return interleave(
        {
            BY_HAND: partial(_time_by_hand, by_hand),
            RUN: partial(_time_flowkit, graph, functions),
            BY_HAND_INSIDE: partial(_time_inside, by_hand),
            ARUN: partial(_time_flowkit_inside, graph, functions),
        },
        rounds,
    )


async def _gather(functions: Functions) -> list[Any]:
    return await asyncio.gather(*[function() for function in functions])


async def _call_in_turn(functions: Functions) -> list[Any]:
    """Call the first without anything, and every other one with the result of the one before."""
    first, *others = functions
    results = [await first()]
    for function in others:
        results.append(await function(results[-1]))
    return results


def _time_by_hand(work: Callable[[], Coroutine[Any, Any, object]]) -> tuple[float, float]:
    started = perf_counter()
    asyncio.run(work())
    return 0.0, perf_counter() - started


def _time_inside(work: Callable[[], Coroutine[Any, Any, object]]) -> tuple[float, float]:
    async def timed() -> float:
        started = perf_counter()
        await work()
        return perf_counter() - started

    return 0.0, asyncio.run(timed())


def _time_flowkit(graph: Graph, functions: Functions) -> tuple[float, float]:
    build, dag = _time_build(graph, functions)
    started = perf_counter()
    _check(dag.run(), graph)
    return build, perf_counter() - started


def _time_flowkit_inside(graph: Graph, functions: Functions) -> tuple[float, float]:
    build, dag = _time_build(graph, functions)

    async def work() -> None:
        _check(await dag.arun(), graph)

    return build, _time_inside(work)[1]


def _time_build(graph: Graph, functions: Functions) -> tuple[float, DAG]:
    started = perf_counter()
    dag = subject.sequential.build(graph, functions)  # the same for every executor
    return perf_counter() - started, dag


def _check(results: object, graph: Graph) -> None:
    if len(results) != len(graph):  # type: ignore[arg-type]  # a mapping
        raise RuntimeError(f"flowkit returned other than {len(graph)} results")


# ---------------------------------------------------------------- tables


def _against_gather(tasks: int, samples: Samples) -> Table:
    lines = []
    for name, below in ((BY_HAND, BY_HAND), (RUN, BY_HAND), (BY_HAND_INSIDE,) * 2, (ARUN, BY_HAND_INSIDE)):
        runs = [run for _, run in samples[name]]
        cells = [figure(statistics.median(runs) * 1e3)]
        if name != below:
            floor = [run for _, run in samples[below]]
            cells.append(judged(median_ratio(runs, floor), at_most=RATIO))
            cells.append(figure(median_ratio([build + run for build, run in samples[name]], floor)))
        lines.append([name, *cells, *[""] * (3 - len(cells))])
    title = f"Coroutines: {tasks:,} × sleep({NAP * 1e3:g} ms) at once"
    return Table(title, ["", "ms", "/ by hand", "build + run / by hand"], lines)


def _costs(tasks: int, by_shape: dict[str, Samples]) -> Table:
    names = (BY_HAND, RUN, BY_HAND_INSIDE, ARUN)
    lines = []
    for shape, samples in by_shape.items():
        seconds = [statistics.median(run for _, run in samples[name]) for name in names]
        lines.append([shape, *(figure(each / tasks * 1e6) for each in seconds)])
    title = f"Coroutines: µs per coroutine that does nothing, run only, {tasks:,} tasks"
    note = "By hand a chain awaits one after the other, without a task or anything else of asyncio's."
    return Table(title, ["", *names], lines, note)
