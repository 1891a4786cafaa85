"""Random graphs for the tests: what each task is, and the tasks that behave so on a virtual clock.

A :class:`TaskPlan` is plain data, so that the reference model and the engine can be given the same one.
"""

from dataclasses import dataclass
from itertools import count, permutations, product

from hypothesis import strategies as st
from model import RULES, value_of

from flowkit import DAG, AttemptFailed, AttemptStarted, GiveUp, RetryAfter, Skip, Task, current_context
from flowkit.events import TaskEvent

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


# Each of these is one draw, simplest first: hypothesis draws slowly, and a graph takes few draws this way.
WIRINGS = [
    st.sampled_from([*(some for size in range(4) for some in permutations(range(n), size)), tuple(range(n))])
    for n in range(12)
]
SCRIPTS = st.sampled_from(
    [("ok",), ("fail", "ok"), ("fail", "fail", "ok"), ("timeout", "ok")] * 25
    + [script for size in (1, 2, 3) for script in product(OUTCOMES, repeat=size)]
)
CONDITIONS = [None, None, None, True, True, False, "raises"]
LENGTHS = [0.0, 0.5, 3.0]
WAITS = [(1.0, 2.0, 0.0, 60.0), (0.0, 1.0, 0.5, 60.0), (2.0, 3.0, 0.5, 4.0)]
ROOT_OPTIONS, OPTIONS = (
    st.sampled_from(list(product(rules, CONDITIONS, range(4), LENGTHS, WAITS))) for rules in (ROOT_RULES, RULES)
)


@st.composite
def graphs(draw):
    """Plans of 1 to 12 tasks in topological order."""
    plans = []
    timeouts_left = MOST_TIMEOUTS
    for n in range(draw(st.integers(1, 12))):
        upstream = draw(WIRINGS[n])
        rule, when, retries, length, waits = draw(OPTIONS if upstream else ROOT_OPTIONS)
        script = draw(SCRIPTS)
        if "timeout" in script:
            if retries >= timeouts_left:
                script = tuple("fail" if outcome == "timeout" else outcome for outcome in script)
            else:
                timeouts_left -= retries + 1
        names = tuple(f"t{before}" for before in upstream)
        plans.append(TaskPlan(f"t{n}", names, rule, when, retries, script, length, *waits))
    return plans


def build(plans, clock, calls, order=None, **options):
    """Return a DAG of tasks that behave as *plans* say, defined in *order*.

    Args:
        plans: In topological order.
        clock: Where the tasks sleep.
        calls: A list that gets ``(name, attempt)`` at each call, and ``(name, "when")`` at each condition.
        order: The positions of *plans* in the order in which the tasks are to be defined.
        **options: More options of every task.
    """
    tasks = {}
    for position in range(len(plans)) if order is None else order:
        tasks[plans[position].name] = _make_task(plans[position], clock, calls, options)
    for plan in plans:
        for name in plan.upstream:
            tasks[name] >> tasks[plan.name]
    return DAG("random", tasks=list(tasks.values()))


def _make_task(plan, clock, calls, options):
    numbers = count(1)

    def body(*given):
        attempt = next(numbers)
        assert current_context().attempt == attempt
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
        **options,
    )


_RAISED = {
    "fail": lambda: ConnectionError("refused"),
    "skip": lambda: Skip("nothing to do"),
    "give_up": lambda: GiveUp("no use"),
    "exit": lambda: SystemExit(3),
    "retry_after": lambda: RetryAfter(RETRY_AFTER),
}


def most_at_once(events):
    """Return how many attempts went on at once, at most."""
    going_on, most = set(), 0
    for event in events:
        if isinstance(event, AttemptStarted):
            going_on.add(event.task_name)
            most = max(most, len(going_on))
        elif isinstance(event, AttemptFailed | TaskEvent):
            going_on.discard(event.task_name)
    return most
