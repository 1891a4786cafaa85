"""Two things that happen at the same time: an attempt ends and is timed out, cancelled, or not wanted any more.

Whoever is first wins, and wins all: one outcome, one final event, and nothing that comes later changes a thing.
"""

import asyncio
import multiprocessing.forkserver
import random
import threading
import time
from collections import defaultdict
from functools import partial

import kill_tasks
import pytest

from flowkit import DAG, RunCancelledError, Task, TaskTimeoutError
from flowkit.events import AttemptFailed, AttemptStarted, RunFinished, RunStarted, TaskEvent

SOON = 5.0
"""Seconds within which whatever was raced for is over."""
TIMEOUT = 0.04
EDGE = 0.005
"""Seconds around the deadline in which attempts end."""

FINAL = {"succeeded": "TaskSucceeded", "failed": "TaskFailed", "cancelled": "TaskCancelled", "skipped": "TaskSkipped",
         "upstream_failed": "TaskUpstreamFailed"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def helpers():
    """What multiprocessing starts once and keeps for the life of this process."""
    multiprocessing.forkserver.ensure_running()


@pytest.fixture
def rng():
    """A source of chance whose seed is shown when the test fails."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def kinds(thread, coroutine, process):
    """Parametrise by the kind of worker and the number of races: in the suite, and a thousand each in the soak."""
    soak = [pytest.mark.soak, pytest.mark.timeout(300)]
    counts = {"thread": thread, "async": coroutine, "process": process}
    many = [pytest.param(kind, 1000, marks=soak) for kind in ("thread", "async")]
    many += [pytest.param("process", 125, marks=soak, id=f"process-125-{n}") for n in range(8)]  # each takes long
    return pytest.mark.parametrize(("kind", "races"), [*counts.items(), *many])


class Story:
    """An observer that keeps what it is told, task by task, and checks it against the result."""

    def __init__(self):
        self.events = defaultdict(list)
        self.frame = []
        self.is_over = False
        self.late = []

    def __call__(self, event):
        if self.is_over:
            self.late.append(event)
        if isinstance(event, (RunStarted, RunFinished)):
            self.frame.append(type(event))
        else:
            self.events[event.task_name].append(event)

    def check(self, result):
        """Assert that each task was told of in order: attempts that start and fail in turn, then one final event."""
        assert self.frame == [RunStarted, RunFinished]
        assert self.events.keys() == result.tasks.keys()
        for name, run in result.tasks.items():
            *before, final = self.events[name]
            assert type(final).__name__ == FINAL[run.state], (name, self.events[name])
            assert not [event for event in before if isinstance(event, TaskEvent)], (name, before)
            started = [event.attempt for event in before if isinstance(event, AttemptStarted)]
            failed = [event.attempt for event in before if isinstance(event, AttemptFailed)]
            assert started == list(range(1, run.attempts + 1)), (name, before)
            assert failed in (started, started[:-1]), (name, before)
            assert [type(event) for event in before] == [AttemptStarted, AttemptFailed] * len(failed) + [
                AttemptStarted
            ] * (len(started) - len(failed)), (name, before)
            if run.state == "succeeded":
                assert (run.error, result[name], final.value) == (None, run.value, run.value)
                assert len(failed) == len(started) - 1
            else:
                assert name not in result
                assert run.value is None
                if run.state == "failed":
                    assert run.error is final.error
                    assert run.error is not None
                    assert failed == started


def told(result):
    """Return all that *result* says, to see whether it changes."""
    return repr([
        (run.name, run.state, run.value, run.error, run.attempts, run.started_at, run.ended_at, run.reason)
        for run in result.tasks.values()
    ])  # fmt: skip


def ending(kind, **arguments):
    """Return a function that ends after a while, on *kind* of worker."""
    return partial(kill_tasks.end_after_async if kind == "async" else kill_tasks.end_after, **arguments)


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("flowkit-")}


def wait_for_end_of(started):
    """Wait for threads that were abandoned: they end a moment after their deadline."""
    deadline = time.monotonic() + SOON
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive()


def count_at_once(kind, races):
    """Return how many races may go on side by side: each one lost costs a thread, and eight of these are too many."""
    return min(races, {"thread": 7, "async": 200, "process": 4}[kind])


# ---------------------------------------------------------------- timeout against finish


@kinds(thread=203, coroutine=200, process=52)
def test_an_attempt_that_ends_at_its_deadline_has_one_outcome(kind, races, rng):
    """It ends 5 ms before to 5 ms after it, half of the time with an error."""
    at_once, outcomes, before = count_at_once(kind, races), defaultdict(int), threads()
    for _ in range(-(-races // at_once)):
        ends = [TIMEOUT + rng.uniform(-EDGE, EDGE) for _ in range(at_once)]
        tasks = [
            Task(f"t{n}", ending(kind, seconds=end, value=n, fails=bool(n % 2)), timeout=TIMEOUT)
            for n, end in enumerate(ends)
        ]
        story = Story()
        result = DAG("race", tasks=tasks).run(
            executor=kind, max_workers=at_once, fail_fast=False, raise_on_failure=False, observers=[story]
        )
        story.is_over, as_told = True, told(result)
        lost = 0
        for n, run in enumerate(result.tasks.values()):
            assert run.attempts == 1
            if run.state == "succeeded":
                assert run.value == (n, 1)
            else:
                assert type(run.error) in (TaskTimeoutError, ConnectionError)
                assert n % 2 or type(run.error) is TaskTimeoutError
            lost += type(run.error) is TaskTimeoutError
            outcomes[type(run.error).__name__] += 1
        assert result.abandoned_threads == (lost if kind == "thread" else 0)
        wait_for_end_of(threads() - before)
        story.check(result)
        assert not story.late
        assert told(result) == as_told
    print(dict(outcomes))


@kinds(thread=203, coroutine=200, process=20)
def test_a_late_first_attempt_does_not_speak_for_the_second(kind, races, rng):
    """The first attempt ends around its deadline; the second, if it comes to that, at once, with a value of its own."""
    at_once, outcomes, before = count_at_once(kind, races), defaultdict(int), threads()
    for _ in range(-(-races // at_once)):
        ends = [TIMEOUT + rng.uniform(-EDGE, EDGE) for _ in range(at_once)]
        tasks = [
            Task(f"t{n}", ending(kind, seconds=end, value=n, fails=False), timeout=TIMEOUT, retries=1, delay=0)
            for n, end in enumerate(ends)
        ]
        story = Story()
        result = DAG("race", tasks=tasks).run(
            executor=kind, max_workers=at_once, fail_fast=False, raise_on_failure=False, observers=[story]
        )
        story.is_over, as_told = True, told(result)
        for n, run in enumerate(result.tasks.values()):
            outcomes[run.state, run.attempts] += 1
            failures = [event.error for event in story.events[run.name] if isinstance(event, AttemptFailed)]
            assert {type(error) for error in failures} <= {TaskTimeoutError}
            if run.state == "succeeded":
                assert run.value == (n, run.attempts)
            else:  # a second attempt had no worker in time, on a machine that is busy
                assert (run.attempts, type(run.error)) == (2, TaskTimeoutError)
        wait_for_end_of(threads() - before)
        story.check(result)
        assert not story.late
        assert told(result) == as_told
    print(dict(outcomes))


@pytest.mark.parametrize("kind", ["thread", "async", "process"])
def test_an_attempt_is_not_judged_by_the_deadline_of_the_one_before(kind):
    """The first attempt fails before its deadline, which passes while the second one goes on."""
    func = ending(kind, seconds=0.25, value=1, fails=False, refused=1, again=0.25)
    story = Story()
    result = DAG("race", tasks=[Task("t", func, timeout=0.4, retries=1, delay=0)]).run(
        executor=kind, observers=[story], raise_on_failure=False
    )
    story.check(result)
    assert result == {"t": (1, 2)}


@kinds(thread=40, coroutine=40, process=10)
def test_what_is_downstream_of_a_race_agrees_with_its_outcome(kind, races, rng):
    """racing ─► below, and alert, which wants a failure"""
    before = threads()
    for _ in range(races):
        end = TIMEOUT / 2 + rng.uniform(-EDGE, EDGE)
        racing = Task("racing", ending(kind, seconds=end, value=1, fails=False), timeout=TIMEOUT / 2)
        racing >> [Task("below", kill_tasks.value_of), Task("alert", kill_tasks.pid, trigger="one_failed")]
        story = Story()
        result = DAG("race", tasks=racing.downstream).run(
            executor=kind, max_workers=2, fail_fast=bool(rng.getrandbits(1)), raise_on_failure=False, observers=[story]
        )
        states = {name: run.state for name, run in result.tasks.items()}
        if states["racing"] == "succeeded":
            assert states == {"racing": "succeeded", "below": "succeeded", "alert": "skipped"}
            assert result["below"] == (1, 1)
        else:
            assert states == {"racing": "failed", "below": "upstream_failed", "alert": "succeeded"}
        wait_for_end_of(threads() - before)
        story.check(result)


# ---------------------------------------------------------------- cancel against finish


@kinds(thread=200, coroutine=200, process=25)
def test_a_cancel_at_the_end_of_an_attempt_gives_one_answer(kind, races, rng):
    """first ─► second, both around the instant of the cancel"""
    outcomes, before = defaultdict(int), threads()
    for _ in range(races):
        first = Task("first", ending(kind, seconds=0.005, value=1, fails=False))
        second = Task("second", ending(kind, seconds=0.001, value=2, fails=False)).after(first)
        story, reached = Story(), threading.Event()
        handle = DAG("race", tasks=[second]).start(
            executor=kind,
            max_workers=1,
            observers=[story, lambda event, reached=reached: isinstance(event, AttemptStarted) and reached.set()],
        )
        assert reached.wait(SOON)
        time.sleep(rng.uniform(0.002, 0.009))  # the instant is what is tried
        handle.cancel("race")
        since = time.monotonic()
        try:
            result = handle.result(timeout=SOON)
        except RunCancelledError as error:
            result = error.result
        assert time.monotonic() - since < SOON
        states = [run.state for run in result.tasks.values()]
        ended = states.count("succeeded")  # also what ends within the grace
        assert states == ["succeeded"] * ended + ["cancelled"] * (2 - ended)
        assert dict(result) == dict([("first", (1, 1)), ("second", (2, 1))][:ended])
        assert result.state == "cancelled" or ended == 2
        story.is_over, as_told = True, told(result)
        outcomes[result.state, len(result)] += 1
        wait_for_end_of(threads() - before)
        story.check(result)
        assert not story.late
        assert told(result) == as_told
    print(dict(outcomes))


@pytest.mark.parametrize("kind", ["thread", "async", "process"])
def test_a_cancel_while_a_result_is_handed_on_starts_nothing_for_what_gets_it(kind):
    """first, on a thread ─► second, elsewhere: the run is over when first comes to hand on its result."""
    before, started, handles = threads(), threading.Event(), []

    def cancel(event):
        if isinstance(event, TaskEvent) and event.task_name == "first":
            assert started.wait(SOON)
            handles[0].cancel("race")
            time.sleep(0.1)  # the run ends meanwhile, but for the thread that is in here

    second = Task("second", ending(kind, seconds=60, value=2, fails=False), executor=kind)
    second.after(Task("first", kill_tasks.pid))
    handles.append(DAG("race", tasks=[second]).start(observers=[cancel]))
    started.set()
    with pytest.raises(RunCancelledError) as caught:
        handles[0].result(timeout=SOON)
    assert {name: run.state for name, run in caught.value.result.tasks.items()} == {
        "first": "succeeded", "second": "cancelled",
    }  # fmt: skip
    wait_for_end_of(threads() - before)


def test_a_cancel_while_the_event_loop_starts_ends_the_loop_as_well(monkeypatch):
    """first, on a thread ─► second, a coroutine, the first of the run: the run is over when its loop is there."""
    before, started, handles, real = threads(), threading.Event(), [], asyncio.new_event_loop

    def cancel_first():
        assert started.wait(SOON)
        handles[0].cancel("race")
        time.sleep(0.1)  # the run ends meanwhile
        return real()

    monkeypatch.setattr(asyncio, "new_event_loop", cancel_first)
    second = Task("second", kill_tasks.hold_async_quietly).after(Task("first", kill_tasks.pid))
    handles.append(DAG("race", tasks=[second]).start())
    started.set()
    with pytest.raises(RunCancelledError):
        handles[0].result(timeout=SOON)
    wait_for_end_of(threads() - before)


# ---------------------------------------------------------------- fail-fast against finish


@kinds(thread=200, coroutine=200, process=25)
def test_a_failure_at_the_end_of_another_attempt_gives_one_answer(kind, races, rng):
    """bad ─► lost, and good ─► below ─► last: good and below end around the instant at which bad fails"""
    outcomes, before = defaultdict(int), threads()
    for _ in range(races):
        bad = Task("bad", ending(kind, seconds=0.005, value=1, fails=True))
        good = Task("good", ending(kind, seconds=rng.uniform(0.002, 0.006), value=2, fails=False))
        below = Task("below", ending(kind, seconds=rng.uniform(0, 0.004), value=3, fails=False)).after(good)
        lost, last = Task("lost", kill_tasks.pid).after(bad), Task("last", kill_tasks.pid).after(below)
        story = Story()
        result = DAG("race", tasks=[lost, last]).run(
            executor=kind, max_workers=2, raise_on_failure=False, observers=[story]
        )
        states = {name: run.state for name, run in result.tasks.items()}
        assert (states["bad"], states["lost"]) == ("failed", "upstream_failed")
        chain = [states[name] for name in ("good", "below", "last")]
        ended = chain.count("succeeded")
        assert chain == ["succeeded"] * ended + ["cancelled"] * (3 - ended)
        outcomes[ended] += 1
        wait_for_end_of(threads() - before)
        story.check(result)
    print(dict(outcomes))


@pytest.mark.parametrize("races", [30, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_nothing_starts_after_the_first_failure_on_any_kind_of_worker(races, rng):
    """Threads, a coroutine and a process take one thing after the other; one task fails at a random instant."""
    before = threads()
    for _ in range(races):
        rows = []
        for kind in ("thread", "async", "process"):
            for n in range(4):
                rows.append(
                    Task(
                        f"{kind}_{n}", ending(kind, seconds=rng.uniform(0, 0.003), value=n, fails=False), executor=kind
                    )
                )
        bad = Task("bad", ending("thread", seconds=rng.uniform(0, 0.04), value=0, fails=True))
        story, order = Story(), []
        result = DAG("race", tasks=[*rows, bad]).run(
            max_workers={"thread": 2, "async": 1, "process": 1},
            raise_on_failure=False,
            observers=[story, order.append],
        )
        at = next(n for n, event in enumerate(order) if type(event).__name__ == "TaskFailed")
        assert not [event for event in order[at:] if isinstance(event, AttemptStarted)]
        assert {run.state for run in result.tasks.values()} <= {"succeeded", "failed", "cancelled"}
        wait_for_end_of(threads() - before)
        story.check(result)
