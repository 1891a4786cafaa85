"""Name the states of tasks and the rules that start them.

Knows the words. Does not know graphs: what a rule means for a given task is the scheduler's to say.

A task goes one way::

    pending ─► running ─► succeeded
       │          │  ╲──► failed
       │          ╰─────► skipped           the task raised Skip, or when() was false
       ├────────────────► skipped           its trigger rule was not met, and nothing upstream failed
       ├────────────────► upstream_failed   its trigger rule was not met, and something upstream failed
       ╰────────────────► cancelled         the run ended first (also from running)

A run keeps states as small integers in one ``bytearray``; users see the names.
"""

from __future__ import annotations

PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, UPSTREAM_FAILED, CANCELLED = range(7)

NAMES = ("pending", "running", "succeeded", "failed", "skipped", "upstream_failed", "cancelled")
"""The name of each state, indexed by its number; from ``succeeded`` on they are final."""

# Trigger rules, as small integers too.
NONE_FAILED, ALL_SUCCESS, ONE_SUCCESS, ALL_DONE, ONE_FAILED, ALL_FAILED = range(6)

TRIGGERS = {
    "none_failed": NONE_FAILED,
    "all_success": ALL_SUCCESS,
    "one_success": ONE_SUCCESS,
    "all_done": ALL_DONE,
    "one_failed": ONE_FAILED,
    "all_failed": ALL_FAILED,
}
"""Every trigger rule by its name. RULES in the scheduler says what each one asks."""

ACCEPT_FAILURE = frozenset({ALL_DONE, ONE_FAILED, ALL_FAILED})
"""The rules under which a task may still start after a failure of a fail-fast run."""

NEED_FAILURE = frozenset({ONE_FAILED, ALL_FAILED})
"""The rules that only a failed upstream task can meet: without upstream they never could."""
