"""Row: replay of recorded workflows with sleeping tasks, beside a simulated scheduler that costs nothing.

The graphs lie in ``shared/workflows`` beside the checkout, with the simulator; without them the row is empty.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from time import perf_counter
from types import ModuleType
from typing import NamedTuple

from . import peers, subject
from .children import ROOT
from .functions import sleeper
from .measure import Engine, Functions
from .report import Table, figure, judged
from .shapes import Graph

DIRECTORY = ROOT.parent / "shared" / "workflows"
WORKERS = (2, 8)
RATIO = 1.05
SECONDS = 2.0
"""What the simulated first-ready-first schedule of a replay takes."""
QUICK_TASKS, QUICK_SECONDS = 420, 0.5


class Workflow(NamedTuple):
    """One recorded workflow."""

    name: str
    runtimes: list[float]
    graph: Graph


def run(quick: bool) -> list[Table]:
    """Replay every graph on 2 and 8 threads; with *quick* the small ones, too fast to be judged."""
    if not DIRECTORY.is_dir():
        return [Table("Workflows: skipped, no graphs beside the checkout", [""], [])]
    simulator = _load_simulator()
    wanted = QUICK_SECONDS if quick else SECONDS
    lines = [
        _replay(workflow, simulator, workers, wanted, rounds=1 if quick else 2)
        for workflow in _iter_workflows(simulator)
        if not quick or len(workflow.graph) <= QUICK_TASKS
        for workers in WORKERS
    ]
    columns = ["workflow, workers", "median task, ms", "ms", "/ lower bound", "/ prio", "/ fifo"]
    columns += ["/ fifo of real naps", "graphlib + TPE / fifo"]
    note = (
        f"Scaled so that the simulated fifo schedule takes {wanted:g} s; the target is on the ratio to it. "
        "Real naps: the same simulation with what time.sleep takes alone beyond each length, "
        "which tells the timer's share from the engine's."
    )
    return [Table("Workflows: replay with sleeping tasks, wall time", columns, lines, note)]


def _load_simulator() -> ModuleType:
    spec = spec_from_file_location("validate_wf", DIRECTORY / "validate_wf.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load validate_wf.py from {DIRECTORY}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _iter_workflows(simulator: ModuleType) -> Iterator[Workflow]:
    for path in sorted(DIRECTORY.glob("*.json*")):
        content = simulator.load(path)
        runtimes, upstream = simulator.check(content)
        yield Workflow(content["name"], runtimes, [tuple(indices) for indices in upstream])


def _replay(
    workflow: Workflow, simulator: ModuleType, workers: int, wanted: float, *, rounds: int
) -> list[str]:
    """Return the line of one workflow on *workers* threads."""
    graph = workflow.graph
    scale = wanted / simulator.simulate(workflow.runtimes, graph, workers)
    naps = [seconds * scale for seconds in workflow.runtimes]
    levels = simulator.bottom_levels(naps, graph)
    bound = max(*levels, sum(naps) / workers)
    prio = simulator.simulate(naps, graph, workers, levels)
    real = simulator.simulate(_really_slept(naps), graph, workers)
    functions = [sleeper(seconds) for seconds in naps]
    # Both are compared with a simulation, not with each other, so they need not take turns.
    flowkit = _median_run(subject.thread(workers), graph, functions, rounds)
    pool = _median_run(peers.graphlib_pool(workers), graph, functions, 1)
    return [
        f"{workflow.name}, {workers}",
        figure(statistics.median(naps) * 1e3),
        figure(flowkit * 1e3),
        figure(flowkit / bound),
        figure(flowkit / prio),
        judged(flowkit / wanted, at_most=RATIO) if wanted == SECONDS else figure(flowkit / wanted),
        figure(flowkit / real),
        figure(pool / wanted),
    ]


def _median_run(engine: Engine, graph: Graph, functions: Functions, rounds: int) -> float:
    return statistics.median(engine.once().sample(graph, functions).run for _ in range(rounds))


def _really_slept(naps: Sequence[float]) -> list[float]:
    """Return each nap with what a lone time.sleep of the median length now takes beyond it."""
    usual = statistics.median(naps)
    overshoot = statistics.median(_time_nap(usual) - usual for _ in range(51))
    return [seconds + overshoot if seconds else 0.0 for seconds in naps]


def _time_nap(seconds: float) -> float:
    nap = sleeper(seconds)
    started = perf_counter()
    nap()
    return perf_counter() - started
