"""Random graphs for the tests: what each task is, and the tasks that behave so on a virtual clock.

A :class:`TaskPlan` is plain data, so that the reference model and the engine can be given the same one.
"""

from dataclasses import dataclass, replace

from hypothesis import strategies as st
from model import RULES, value_of

from flowkit import DAG, GiveUp, RetryAfter, Skip, Task

TIMEOUT = 5.0
RETRY_AFTER = 7.0
MOST_TIMEOUTS = 7
"""A run fails at 8 abandoned threads, so no plan has more attempts that time out."""

OUTCOMES = ["ok", "fail", "skip", "give_up", "exit", "retry_after", "timeout"]
ROOT_RULES = [rule for rule in RULES if rule not in ("one_failed", "all_failed")]


@dataclass(frozen=True)
class TaskPlan:
    """What a task is wired to and how it behaves.

    Attributes:
        when: What the condition answers; None for no condition, "raises" for one that raises.
        script: What each attempt does, see OUTCOMES; the last one repeats.
        length: Seconds that an attempt takes, unless it times out.
    """

    name: str
    upstream: tuple = ()
    rule: str = "none_failed"
    when: object = None
    retries: int = 0
    script: tuple = ("ok",)
    length: float = 0.0
    delay: float = 1.0
    backoff: float = 2.0
    jitter: float = 0.0
    max_delay: float = 60.0

    def wait_bounds(self, attempt):
        """Return the least and the most seconds between the end of *attempt* and the start of the next."""
        if self.script[min(attempt, len(self.script)) - 1] == "retry_after":
            return RETRY_AFTER, RETRY_AFTER
        least = min(self.max_delay, self.delay * self.backoff ** (attempt - 1))
        return least, least * (1 + self.jitter)


SCRIPTS = st.one_of(
    st.sampled_from([("ok",), ("fail", "ok"), ("fail", "fail", "ok"), ("timeout", "ok"), ("fail",)]),
    st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4).map(tuple),
)


@st.composite
def task_plans(draw, name, before):
    upstream = tuple(draw(st.lists(st.sampled_from(before), unique=True, max_size=4))) if before else ()
    plan = TaskPlan(
        name,
        upstream,
        rule=draw(st.sampled_from(list(RULES) if upstream else ROOT_RULES)),
        when=draw(st.sampled_from([None, None, None, True, True, False, "raises"])),
        retries=draw(st.integers(0, 3)),
        script=draw(SCRIPTS),
        length=draw(st.sampled_from([0.0, 0.5, 3.0])),
    )
    if plan.retries:
        waits = st.sampled_from([(1.0, 2.0, 0.0, 60.0), (0.0, 1.0, 0.5, 60.0), (2.0, 3.0, 0.5, 4.0)])
        delay, backoff, jitter, max_delay = draw(waits)
        plan = replace(plan, delay=delay, backoff=backoff, jitter=jitter, max_delay=max_delay)
    return plan


@st.composite
def graphs(draw):
    """Plans of 1 to 12 tasks in topological order."""
    plans = []
    timeouts_left = MOST_TIMEOUTS
    for n in range(draw(st.integers(1, 12))):
        plan = draw(task_plans(f"t{n}", [p.name for p in plans]))
        if "timeout" in plan.script:
            if plan.retries + 1 > timeouts_left:
                plan = replace(plan, script=tuple("fail" if o == "timeout" else o for o in plan.script))
            else:
                timeouts_left -= plan.retries + 1
        plans.append(plan)
    return plans


def build(plans, clock, calls, order=None):
    """Return a DAG of tasks that behave as *plans* say, defined in *order*.

    Args:
        plans: In topological order.
        clock: Where the tasks sleep.
        calls: A list that gets ``(name, attempt)`` at each call, and ``(name, "when")`` at each condition.
        order: The positions of *plans* in the order in which the tasks are to be defined.
    """
    tasks = {}
    for position in range(len(plans)) if order is None else order:
        tasks[plans[position].name] = _make_task(plans[position], clock, calls)
    for plan in plans:
        for name in plan.upstream:
            tasks[name] >> tasks[plan.name]
    return DAG("random", tasks=list(tasks.values()))


def _make_task(plan, clock, calls):
    def body(*given, context):
        attempt = context.attempt
        calls.append((plan.name, attempt))
        outcome = plan.script[min(attempt, len(plan.script)) - 1]
        clock.sleep(2 * TIMEOUT if outcome == "timeout" else plan.length)
        if outcome in _RAISED:
            raise _RAISED[outcome]()
        return value_of(plan.name, attempt, given)

    def condition():
        calls.append((plan.name, "when"))
        if plan.when == "raises":
            raise LookupError(plan.name)
        return plan.when

    return Task(
        plan.name,
        body,
        trigger=plan.rule,
        when=None if plan.when is None else condition,
        retries=plan.retries,
        delay=plan.delay,
        backoff=plan.backoff,
        jitter=plan.jitter,
        max_delay=plan.max_delay,
        timeout=TIMEOUT if "timeout" in plan.script else None,
    )


_RAISED = {
    "fail": lambda: ConnectionError("refused"),
    "skip": lambda: Skip("nothing to do"),
    "give_up": lambda: GiveUp("no use"),
    "exit": lambda: SystemExit(3),
    "retry_after": lambda: RetryAfter(RETRY_AFTER),
}
