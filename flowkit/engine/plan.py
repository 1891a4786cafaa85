"""Say what a run would do, and why, without running anything.

Knows records, fingerprints and trigger rules. Does not know workers: it walks the graph as a run would, and takes it
that what runs succeeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from ..exceptions import OptionError, StateError, close_matches
from ..render import report
from ..state import store as kept
from ..states import SKIPPED, SUCCEEDED
from .checkpoint import module_of
from .history import Codes, History, blend, blend_items
from .scheduler import Scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..state.store import Store
    from .history import Token
    from .program import Program

RUN, RESTORE, SKIP = "run", "restore", "skip"


class PlanStep:
    """What a run would do with one task.

    Attributes:
        name: The task.
        action: "run", "restore" or "skip".
        reason: Why.
    """

    __slots__ = ("action", "name", "reason")

    def __init__(self, name: str, action: str, reason: str) -> None:
        self.name = name
        self.action = action
        self.reason = reason

    def __repr__(self) -> str:
        return f"<PlanStep {self.name!r}: {self.action} ({self.reason})>"


class Plan(Mapping[str, PlanStep]):
    """What a run would do: a mapping of task names to :class:`PlanStep`, in generation order. Printed, it is a table.

    Attributes:
        dag_name: The DAG.
        unwatched: What could change without being noticed, in sentences.
    """

    __slots__ = ("_steps", "dag_name", "unwatched")

    def __init__(self, dag_name: str, steps: Sequence[PlanStep], unwatched: Sequence[str]) -> None:
        self.dag_name = dag_name
        self._steps = {step.name: step for step in steps}
        self.unwatched = list(unwatched)

    def __getitem__(self, name: str) -> PlanStep:
        try:
            return self._steps[name]
        except KeyError:
            raise KeyError(f"no task is named {name!r}{close_matches(name, self._steps)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def named(self, action: str) -> list[str]:
        """Return the names of the tasks of which *action* is "run", "restore" or "skip".

        Raises:
            OptionError: There is no such action.
        """
        if action not in (RUN, RESTORE, SKIP):
            raise OptionError(f"Plan.named(): {action!r} must be one of {RUN!r}, {RESTORE!r}, {SKIP!r}.")
        return [step.name for step in self._steps.values() if step.action == action]

    def __str__(self) -> str:
        rows = [(step.name, step.action, step.reason) for step in self._steps.values()]
        lines = [report.as_text(self._headline(), ("task", "plan", "reason"), rows)]
        if self.unwatched:
            lines += ["", "Not watched:", *(f"- {what}" for what in self.unwatched)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Plan {self._headline()}>"

    def _headline(self) -> str:
        counts = [f"{len(self.named(action))} to {action}" for action in (RUN, RESTORE, SKIP) if self.named(action)]
        return f"{self.dag_name}: {', '.join(counts) or 'no tasks'}"


def make_plan(program: Program, inputs: Mapping[str, Any], store: Store | None, *, resumes: bool) -> Plan:
    """Return what a run of *program* with *inputs* would do.

    Args:
        store: Where results are kept, None for nowhere.
        resumes: Whether results that are kept are used.
    """
    codes = Codes(program, inputs)
    if store is None or not resumes:
        why = "there is no state" if store is None else "resume=False"
        return Plan(program.name, [PlanStep(name, RUN, why) for name in program.names], list(codes.unwatched))
    history = History(program, codes, store.read_scope(program.name))
    codec = store.codec({module_of(task.func) for task in program.tasks})
    scheduler = Scheduler(program.graph, program.rules)
    tokens: list[Token] = [None] * len(program)
    steps = [PlanStep(name, SKIP, "its trigger rule is not met") for name in program.names]

    def end(i: int) -> list[int]:
        step, upstream = steps[i], [tokens[u] for u in program.graph.upstream[i]]
        step.action = RUN
        record, step.reason = history.judge(i, upstream)
        if record is not None and record.value and i not in program.mapped:
            try:
                codec.decode(record.value)
            except StateError as error:
                record, step.reason = None, f"its result cannot be read here: {error}"
        items = history.item_tokens(i, upstream) if i in program.mapped else []
        if not program.tasks[i].options.persist:
            step.reason = "persist=False"
            tokens[i] = blend(program.names[i], codes.of[i], upstream)
        elif record is not None and record.state == kept.SKIPPED:
            step.action, tokens[i] = SKIP, kept.SKIPPED
            step.reason = f"skipped before, and asked again: {record.error}"
            return scheduler.finish(i, SKIPPED)
        elif record is not None and i in program.mapped and record.value != blend_items(items):
            step.reason = "an item of it was not kept, or changed since"
        elif record is not None:
            step.action, tokens[i] = RESTORE, record.number
            step.reason = step.reason.removeprefix("restored ")
        if items and step.action == RUN:
            step.reason += f"; items restored: {len(items)}"
        return scheduler.finish(i, SUCCEEDED)

    waiting = deque(scheduler.start())
    while waiting:
        waiting += end(waiting.popleft())
        for skipped in scheduler.decided:
            tokens[skipped] = kept.SKIPPED
            if all(steps[u].action == SKIP for u in program.graph.upstream[skipped]):
                steps[skipped].reason = "everything upstream is skipped"
        scheduler.decided.clear()
    return Plan(program.name, steps, list(codes.unwatched))
