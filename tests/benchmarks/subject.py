"""flowkit as an engine to measure, used as its users use it.

Knows: flowkit's public names. Does not know: peers, what is measured.
"""

from __future__ import annotations

from typing import Any

from flowkit import DAG, Task

from .measure import Engine, Functions
from .shapes import Graph


def _build(graph: Graph, functions: Functions) -> DAG:
    """Make the tasks, wire them, freeze and validate."""
    tasks: list[Any] = [Task(f"t{index}", function) for index, function in enumerate(functions)]
    for task, upstream in zip(tasks, graph, strict=True):
        if len(upstream) == 1:
            _ = tasks[upstream[0]] >> task
        elif upstream:
            _ = [tasks[i] for i in upstream] >> task
    dag = DAG("benchmark", tasks=tasks)
    dag.validate()
    return dag


sequential = Engine("flowkit sequential", _build, lambda dag: dag.run(executor="sequential"))


def thread(workers: int) -> Engine:
    """Return flowkit on that many worker threads."""
    return Engine(
        f"flowkit thread {workers}", _build, lambda dag: dag.run(executor="thread", max_workers=workers)
    )
