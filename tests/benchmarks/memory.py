"""Row: bytes per task, as growth of the resident set of a fresh process.

    python -m tests.benchmarks.memory ENGINE SHAPE TASKS

is that process. It prints the bytes per task held after the build, after the run with its result still held,
and the peak above the start.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from . import peers, subject
from .children import output_of
from .functions import noops
from .measure import Engine
from .report import Table, figure, judged
from .shapes import SHAPES

BYTES = 1200
TASKS = 1_000_000
"""Where memory is judged. With fewer, what a process has once counts."""
SUBJECT = subject.thread(2)
ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (peers.floor, peers.graphlib_sequential, *peers.dask_threaded(2), SUBJECT)
}
DASK_TASKS = 100_000


def run(quick: bool) -> list[Table]:
    """Measure at 1M tasks, each in a process of its own; the peers on a chain only, dask at 100,000."""
    tasks = 10_000 if quick else TASKS
    shapes = ("chain",) if quick else ("chain", "layered, 3 random")
    peer_lines = [
        _line(name, shapes[0], min(tasks, DASK_TASKS) if name.startswith("dask") else tasks)
        for name in ENGINES
        if name != SUBJECT.name
    ]
    lines = peer_lines + [_line(SUBJECT.name, shape, tasks) for shape in shapes]
    columns = ["", "built", "built and run, result held", "peak"]
    return [Table("Memory: bytes per task", columns, lines)]


def _line(name: str, shape: str, tasks: int) -> list[str]:
    built, ran, peak = map(float, output_of("-m", __name__, name, shape, str(tasks)).split())
    is_judged = name == SUBJECT.name and tasks == TASKS
    cell = judged(ran, at_most=BYTES) if is_judged else figure(ran)
    return [f"{shape}, {name}, {tasks:,}", figure(built), cell, figure(peak)]


def _measure(engine: Engine, shape: str, tasks: int) -> tuple[float, float, float]:
    """Return bytes per task: built, built and run, peak. The given graph is there before and not counted."""
    graph = SHAPES[shape](tasks)
    functions = noops(graph)
    engine.verify()  # what is imported or allocated once is there before, too
    before = _in_memory("VmRSS")
    built = engine.build(graph, functions)
    after_build = _in_memory("VmRSS")
    results = engine.run(built)
    after_run = _in_memory("VmRSS")
    peak = _in_memory("VmHWM")
    if len(results) != tasks:
        raise RuntimeError(f"{engine.name} returned {len(results)} results for {tasks} tasks")
    return (after_build - before) / tasks, (after_run - before) / tasks, (peak - before) / tasks


def _in_memory(field: str) -> int:
    """Return the bytes that Linux gives for this process under *field*, garbage collected first."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(*_measure(ENGINES[sys.argv[1]], sys.argv[2], int(sys.argv[3])))
