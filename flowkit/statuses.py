"""The words that the explicit door and the state stores have for how tasks and workflows stand.

Knows the words. Does not know runs: they have states of their own (:mod:`.states`).
"""

from __future__ import annotations

from enum import StrEnum


class TaskStatus(StrEnum):
    """How a task of a workflow stands; equal to its name as text, which is what stores keep."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    CANCELLED = "CANCELLED"


class WorkflowStatus(StrEnum):
    """How the latest execution of a workflow stands; equal to its name as text."""

    IDLE = "IDLE"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
