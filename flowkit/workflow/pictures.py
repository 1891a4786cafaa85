"""Draw a workflow as a Mermaid flowchart, coloured by how it stands.

Knows a workflow and a file. Does not know Mermaid: :mod:`flowkit.render.mermaid` does.
"""

from __future__ import annotations

from pathlib import Path

from ..exceptions import OptionError, shown
from ..render import mermaid, report
from ..statuses import TaskStatus
from .definition import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

_STATES = {
    TaskStatus.RUNNING: "running",
    TaskStatus.RETRYING: "running",
    TaskStatus.COMPLETED: "succeeded",
    TaskStatus.FAILED: "failed",
    TaskStatus.SKIPPED: "skipped",
    TaskStatus.UPSTREAM_FAILED: "upstream_failed",
    TaskStatus.CANCELLED: "cancelled",
}


def export_mermaid(workflow: Workflow, orientation: str = "TD") -> str:
    """Return *workflow* as a Mermaid flowchart, which GitHub and many editors draw inside Markdown.

    Args:
        workflow: What to draw; tasks that have run in its latest execution are coloured by their status.
        orientation: The way the arrows point: "TD" or "TB" (down), "LR" (right), "RL" (left) or "BT" (up).

    Raises:
        OptionError: There is no such orientation.
        DefinitionError: A dependency is missing, or there is a cycle.
    """
    if not isinstance(workflow, Workflow):
        raise TypeError(f"export_mermaid() takes a Workflow, not {shown(workflow)}. A DAG has visualize('mermaid').")
    if orientation not in mermaid.ORIENTATIONS:
        known = ", ".join(map(repr, mermaid.ORIENTATIONS))
        raise OptionError(f"export_mermaid(): orientation={shown(orientation)} must be one of {known}.")
    graph, order = workflow.frozen_shape()
    added = workflow.tasks
    tasks = [added[position] for position in order]
    states = {i: _STATES[status] for i, task in enumerate(tasks) if (status := task.status) in _STATES}
    details = {i: report.seconds(tasks[i].duration) for i in states if tasks[i].attempts}
    names = [task.name for task in tasks]
    return mermaid.render(
        workflow.name, names, graph.upstream, graph.generations(), states, details, orientation=orientation
    )


def save_mermaid(workflow: Workflow, path: str | PathLike[str]) -> None:
    """Write :func:`export_mermaid` of *workflow* into the file *path*, which is replaced.

    Raises:
        DefinitionError: As :func:`export_mermaid`.
        OSError: The file cannot be written.
    """
    Path(path).write_text(export_mermaid(workflow) + "\n", "utf-8")
