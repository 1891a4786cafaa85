"""What a run promises wherever its tasks run: one suite, asked of every executor.

The functions are in ``process_tasks.py``, where other processes find them. What only some executors can promise, and
what only other processes can get wrong, stands at the end.
"""

import concurrent.futures
import contextvars
import functools
import logging
import multiprocessing
import threading
import time

import process_tasks as tasks
import pytest

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    ConditionError,
    DAGExecutionError,
    FlowkitError,
    NotPicklableError,
    RemoteError,
    RunCancelledError,
    RunFinished,
    RunStarted,
    RunTimeoutError,
    Task,
    TaskExecutionError,
    TaskResultError,
    TaskSucceeded,
    TaskTimeoutError,
    current_context,
)
from flowkit.events import TaskEvent
from flowkit.testing import VirtualClock

SOON = 5.0
"""Seconds within which whatever is stopped must be over; on an idle machine it takes a few hundredths."""
PATIENCE = 20.0
"""Seconds after which a wait inside of a test gives up."""
request_id = contextvars.ContextVar("request_id", default="none")


class Place:
    """Where the tasks of a test run.

    Attributes:
        name: The parameter of the test.
        executor: What ``run()`` gets.
        is_away: Whether tasks run in other processes, so that everything travels.
        is_foreign: Whether the workers are somebody else's, who can neither be told to stop nor killed.
        is_inline: Whether tasks run one at a time in the thread that called.
    """

    def __init__(self, name, executor, *, is_away=False, is_foreign=False):
        self.name = name
        self.executor = executor
        self.is_away = is_away
        self.is_foreign = is_foreign
        self.is_inline = name == "sequential"

    def run(self, *wanted, inputs=None, **options):
        """Run *wanted*, and all they depend on, and return the result whatever came of it."""
        options = {"fail_fast": False, "raise_on_failure": False, "max_workers": 2} | options
        return DAG("etl", tasks=wanted).run(inputs, executor=self.executor, **options)

    def start(self, *wanted, inputs=None, **options):
        return DAG("etl", tasks=wanted).start(inputs, executor=self.executor, **options)


@pytest.fixture
def foreign_pool():
    """Somebody else's executor, with processes of its own."""
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        yield pool


PLACES = ["sequential", "thread", "process", "async", "foreign"]


@pytest.fixture(params=PLACES)
def place(request):
    name = request.param
    if name == "foreign":
        return Place(name, request.getfixturevalue("foreign_pool"), is_away=True, is_foreign=True)
    return Place(name, name, is_away=name == "process")


@pytest.fixture(autouse=True)
def no_process_is_left_behind():
    """Fail a test after which more processes are alive than before, be they children or below those."""
    before = tasks.descendants()
    yield
    deadline = time.monotonic() + SOON
    while (left := tasks.descendants(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"processes left behind: {left}"


def states(result):
    return {name: run.state for name, run in result.tasks.items()}


def chain_of(first, *rest):
    """Wire *first* to the next, that one to the one after it and so on; return the last."""
    for after in rest:
        first >> after
        first = after
    return first


def error_of(name, place, *wanted, inputs=None):
    """Return what ``run()`` raises before anything runs, else the error of the task *name*.

    Whether a foreign executor has other processes is only known once it runs something.
    """
    try:
        return place.run(*wanted, inputs=inputs).errors.get(name)
    except NotPicklableError as refused:
        return refused


# ---------------------------------------------------------------- results


def test_results_reach_the_parameters_they_belong_to(place):
    """one ─► double ─► add ◄─ two"""
    first, second, doubled, added = (
        Task("one", tasks.one), Task("two", tasks.two), Task("double", tasks.double), Task("add", tasks.add),
    )  # fmt: skip
    first >> doubled
    [doubled, second] >> added
    result = place.run(added)
    assert result == {"one": 1, "two": 2, "double": 2, "add": 4}
    assert result.ok
    assert {run.attempts for run in result.tasks.values()} == {1}
    assert all(run.worker for run in result.tasks.values())


VALUES = [
    None, 0, -(2**70), 1.5, float("inf"), "text", "\ud800", b"bytes", bytearray(b"b"), (1, (2,)), [1, [2]],
    {1: {"a": 2}}, {1, 2}, frozenset({3}), range(3), slice(1, 2), 1j, int, tasks.double, len, ..., NotImplemented,
]  # fmt: skip


def test_values_arrive_with_the_types_they_had(place):
    """make ─► echo"""
    result = place.run(chain_of(Task("make", functools.partial(tasks.echo, VALUES)), Task("echo", tasks.echo)))
    arrived = result["echo"]
    assert arrived == VALUES
    assert [type(value) for value in arrived] == [type(value) for value in VALUES]


def test_many_results_are_collected_in_wiring_order(place):
    """t0 ... t39 ─► collect"""
    many = [Task(f"t{i}", functools.partial(tasks.echo, i)) for i in range(40)]
    collected = Task("collect", tasks.collect)
    many >> collected
    assert place.run(collected)["collect"] == list(range(40))


def test_an_input_reaches_the_parameter_of_its_name(place):
    assert place.run(Task("double", tasks.double), inputs={"value": 21})["double"] == 42


def test_an_upstream_that_was_skipped_gives_the_default(place):
    """skip ─► collect ◄─ one"""
    collected = Task("collect", tasks.collect)
    [Task("skip", tasks.skip), Task("one", tasks.one)] >> collected
    assert place.run(collected)["collect"] == [None, 1]


def test_async_functions_run_under_every_executor(place):
    """one ─► double_soon ─► double"""
    result = place.run(
        chain_of(Task("one", tasks.one), Task("double_soon", tasks.double_soon), Task("double", tasks.double))
    )
    assert result == {"one": 1, "double_soon": 2, "double": 4}


def test_an_async_function_that_raises_fails_like_any_other(place):
    result = place.run(Task("refuse", tasks.refuse_soon))
    assert repr(result.errors["refuse"]) == "ValueError('no')"


def test_an_async_function_may_ask_for_a_process(place):
    """pid of a plain function ─► double_soon in a process of its own"""
    result = place.run(chain_of(Task("one", tasks.one), Task("soon", tasks.double_soon, executor="process")))
    assert result["soon"] == 2


def test_every_executor_can_be_mixed_with_the_others(place):
    """one (run's own) ─► double (thread) ─► double_soon (loop) ─► double (process) ─► double (run's own)"""
    last = chain_of(
        Task("own", tasks.one),
        Task("thread", tasks.double, executor="thread"),
        Task("loop", tasks.double_soon),
        Task("process", tasks.double, executor="process"),
        Task("last", tasks.double),
    )
    assert place.run(last)["last"] == 16


# ---------------------------------------------------------------- errors


def test_an_error_arrives_with_its_type_arguments_cause_and_notes(place):
    error = place.run(Task("refuse", tasks.refuse_with_cause)).errors["refuse"]
    assert type(error) is tasks.Refused
    assert error.args == (402, "card declined")
    assert error.code == 402
    assert repr(error.__cause__) == "KeyError('missing')"
    assert error.__notes__[:2] == ["first note", "second note"]


def test_an_error_leads_back_to_the_line_that_raised_it(place):
    error = place.run(Task("refuse", tasks.refuse)).errors["refuse"]
    if place.is_away:
        assert "process_tasks.py" in error.__notes__[-1]
        assert "in refuse" in error.__notes__[-1]
        assert "flowkit" not in error.__notes__[-1].replace(tasks.__file__, "")
    else:
        assert error.__traceback__.tb_frame.f_code.co_name == "refuse"


def test_all_causes_are_told(place):
    """A ValueError because of a KeyError because of an OSError."""
    error = place.run(Task("raises", tasks.raise_from_each_other)).errors["raises"]
    assert type(error.__cause__) is KeyError
    if place.is_away:
        assert "OSError: root" in error.__notes__[-1]
    else:
        assert type(error.__cause__.__cause__) is OSError


def test_an_exception_group_arrives_with_its_parts(place):
    error = place.run(Task("raises", tasks.raise_group)).errors["raises"]
    assert type(error) is ExceptionGroup
    assert [type(part) for part in error.exceptions] == [ValueError, tasks.Refused]


UNSENDABLE = {
    tasks.TwoArguments: (1, "x"), tasks.Unpicklable: ("x",), tasks.Hollow: (), tasks.BrokenInit: (),
    tasks.BecomesAnother: ("x",), tasks.BecomesAnotherError: ("x",), tasks.OnlyHere: ("x",),
}  # fmt: skip


def raisers(kinds, **options):
    """Return a task for each of *kinds*, which is named after it and raises it."""
    return [
        Task(kind.__name__, functools.partial(tasks.raise_error, kind, *args), **options)
        for kind, args in kinds.items()
    ]


def test_errors_that_cannot_travel_are_kept_or_named(place):
    tasks.BrokenInit.made = 0
    errors = place.run(*raisers(UNSENDABLE)).errors
    if not place.is_away:
        assert {type(error) for error in errors.values()} == UNSENDABLE.keys()
        return
    assert {name: type(error) for name, error in errors.items()} == {kind.__name__: RemoteError for kind in UNSENDABLE}
    for name, error in errors.items():
        assert error.task_name == error.type_name == name
        assert str(error).startswith(name)
        assert "in raise_error" in error.traceback


UNRULY = dict.fromkeys([tasks.BrokenStr, tasks.BrokenRepr, tasks.StrIsNoText, tasks.NoAttributes], ("x",))


def test_errors_that_cannot_be_shown_or_changed_fail_their_tasks_all_the_same(place):
    result = place.run(*raisers(UNRULY))
    assert {name: type(error).__name__ for name, error in result.errors.items()} == {
        kind.__name__: kind.__name__ for kind in UNRULY
    }
    assert all(kind.__name__ in result.summary() for kind in UNRULY)


STOPPERS = dict.fromkeys([SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, tasks.NotAnException], (3,))


def test_what_would_end_a_program_fails_its_task_and_nothing_else(place):
    """All of them on one worker, each ─► after"""
    raising = raisers(STOPPERS, retries=2, delay=0)
    after = Task("after", tasks.one, trigger="all_failed").after(*raising)
    result = place.run(after, Task("one", tasks.one), max_workers=1)
    assert {name: (type(error), error.args) for name, error in result.errors.items()} == {
        kind.__name__: (kind, args) for kind, args in STOPPERS.items()
    }
    assert result == {"one": 1, "after": 1}


def test_what_would_end_a_program_is_not_tried_again_unless_asked(place):
    asked = raisers(STOPPERS, retries=1, delay=0, retry_on=BaseException)
    left = [task.with_options(name=f"{task.name} left", retry_on=Exception) for task in asked]
    result = place.run(*asked, *left)
    attempts = {name: run.attempts for name, run in result.tasks.items()}
    assert attempts == {task.name: 2 for task in asked} | {
        task.name: 2 if task.name == "StopIteration left" else 1 for task in left
    }


def test_a_cancellation_that_nobody_asked_for_is_a_failure(place):
    from asyncio import CancelledError

    result = place.run(Task("raises", functools.partial(tasks.raise_error, CancelledError)))
    assert result.tasks["raises"].state == "failed"
    assert result.tasks["raises"].reason == "raised CancelledError but was not cancelled"


@pytest.mark.parametrize("how", ["exit", "interrupt"])
@pytest.mark.parametrize("executor", ["sequential", "thread", "process", "async"])
def test_an_error_whose_text_ends_the_program_fails_its_task_and_nothing_else(script, executor, how):
    """raises ─► after; an observer listens, who is told the reason. In a program of its own, which it may end."""
    running = script(
        f"""
        import sys
        sys.path.insert(0, {str(tasks.HERE)!r})
        import functools
        import process_tasks as tasks
        from flowkit import DAG, Task
        from flowkit.events import TaskEvent

        raises = Task("raises", functools.partial(tasks.raise_error, tasks.EndsInStr, {how!r}))
        after = Task("after", tasks.one, trigger="all_done").after(raises)
        seen = []
        result = DAG("etl", tasks=[after]).run(
            executor={executor!r}, fail_fast=False, raise_on_failure=False, observers=[seen.append]
        )
        print([run.state for run in result.tasks.values()], sum(isinstance(event, TaskEvent) for event in seen))
        print("EndsInStr" in result.summary())
        """,
        limit=5,
    ).finish()
    assert running.out == "['failed', 'succeeded'] 2\nTrue\n", running.err


# ---------------------------------------------------------------- what cannot be handed on


LAZY = {
    "a generator": (tasks.generate, "return a list"),
    "a generator ": (tasks.return_generator, "return a list"),
    "a map": (tasks.return_iterator, "return a list"),
    "a coroutine": (tasks.return_coroutine, "make it async def"),
    "an async_generator": (tasks.return_async_generator, "return a list"),
    "an async_generator ": (tasks.generate_soon, "return a list"),
}


def test_results_that_only_one_reader_can_use_are_refused(place):
    result = place.run(*(Task(what, func, retries=3, delay=0) for what, (func, _) in LAZY.items()))
    for what, (_, advice) in LAZY.items():
        error = result.errors[what]
        assert type(error) is TaskResultError
        assert str(error).startswith(f"task {what!r} returned {what.rstrip()}")
        assert advice in str(error)
        assert result.tasks[what].attempts == 1


def test_a_lock_passes_between_threads_and_is_refused_between_processes(place):
    """make ─► use"""
    result = place.run(chain_of(Task("make", tasks.make_lock), Task("use", tasks.use_lock)))
    if place.is_away:
        error = result.errors["make"]
        assert type(error) is TaskResultError
        assert "task 'make'" in str(error)
        assert "of type lock" in str(error)
        assert "Return plain data" in str(error)
        assert result.tasks["use"].state == "upstream_failed"
    else:
        assert result["use"] == "locked"


def test_an_argument_that_cannot_travel_is_named(place):
    """make (thread) ─► use"""
    result = place.run(
        chain_of(Task("make", tasks.make_lock, executor="thread"), Task("use", tasks.use_lock, retries=3, delay=0))
    )
    if place.is_away:
        error = result.errors["use"]
        assert type(error) is NotPicklableError
        assert error.task_name == "use"
        assert "task 'use': its argument" in str(error)
        assert "of type lock" in str(error)
        assert "executor='thread'" in str(error)
        assert result.tasks["use"].attempts <= 1
    else:
        assert result["use"] == "locked"


def test_an_input_that_cannot_travel_is_named_before_anything_runs(place, tmp_path):
    """write; use, which takes the input"""
    log = tmp_path / "log"
    wanted = [Task("write", functools.partial(tasks.write_line, log, "ran")), Task("use", tasks.use_lock)]
    if not place.is_away:
        assert place.run(*wanted, inputs={"lock": threading.Lock()})["use"] == "locked"
        return
    error = error_of("use", place, *wanted, inputs={"lock": threading.Lock()})
    assert type(error) is NotPicklableError
    assert "task 'use': its argument 'lock'" in str(error)
    assert "executor='thread'" in str(error)
    assert place.is_foreign or not log.exists()


def test_a_function_that_cannot_travel_is_named_before_anything_runs(place, tmp_path):
    """write; work, a method of an object that holds a lock"""
    log = tmp_path / "log"
    wanted = [Task("write", functools.partial(tasks.write_line, log, "ran")), Task("work", tasks.LockHolder().work)]
    if not place.is_away:
        assert place.run(*wanted)["work"] == "worked"
        return
    error = error_of("work", place, *wanted)
    assert type(error) is NotPicklableError
    assert "task 'work': its function <bound method LockHolder.work" in str(error)
    for way_out in ("module level", "flowkit[process]", "executor='thread'"):
        assert way_out in str(error)
    assert place.is_foreign or not log.exists()


def test_a_function_in_a_function_runs_everywhere_if_cloudpickle_is_there(place):
    pytest.importorskip("cloudpickle")
    added = 40

    def local():
        return added + 2

    assert place.run(Task("local", local), Task("lambda", lambda: added + 1)) == {"local": 42, "lambda": 41}


def test_50_megabytes_come_back_as_they_went(place):
    """make ─► echo, and a block that is handed over without a copy ─► echo"""
    size = 50 << 20
    echoed = chain_of(Task("data", functools.partial(b"".ljust, size, b"x")), Task("echo", tasks.echo))
    written = chain_of(Task("block", functools.partial(tasks.make_block, size)), Task("write", tasks.write_into))
    result = place.run(echoed, written, max_workers=1)
    assert result["echo"] == b"x" * size
    assert result["write"] == tasks.Block(b"\x07" + bytes(size - 1))


SIZES = [1, 100, 4_096, 10_000, 40_000, 1_000_000]


def test_what_could_be_written_to_can_be_written_to_wherever_it_arrives(place):
    """For each size make ─► write: a buffer that pickle leaves outside of the pickle"""
    written = []
    for size in SIZES:
        made = Task(f"make {size}", functools.partial(tasks.make_block, size))
        written.append(made >> Task(f"write {size}", tasks.write_into))
    result = place.run(*written)
    assert states(result) == dict.fromkeys(result.tasks, "succeeded"), result.summary()
    for size in SIZES:
        assert result[f"write {size}"] == tasks.Block(b"\x07" + bytes(size - 1))
        assert tasks.is_writable(result[f"write {size}"])


def test_what_could_not_be_written_to_still_cannot(place):
    made = Task("make", functools.partial(tasks.Block, bytes(10_000)))
    assert place.run(chain_of(made, Task("is_writable", tasks.is_writable)))["is_writable"] is False


# ---------------------------------------------------------------- skips, conditions, trigger rules


def test_skip_ends_the_task_with_its_reason(place):
    run = place.run(Task("skip", tasks.skip, retries=3)).tasks["skip"]
    assert (run.state, run.reason, run.attempts, run.error) == ("skipped", "no rows", 1, None)


def test_a_condition_is_asked_where_the_task_runs_with_its_arguments(place):
    """two ─► [big (when above ten), even (when even)]"""
    source = Task("two", tasks.two)
    big = Task("big", tasks.double, when=tasks.is_above_ten)
    even = Task("even", tasks.double, when=tasks.is_even)
    source >> [big, even]
    result = place.run(big, even)
    assert states(result) == {"two": "succeeded", "big": "skipped", "even": "succeeded"}
    assert result.tasks["big"].reason == "when() was false"
    assert result.tasks["big"].attempts == 0
    assert result["even"] == 4


def test_a_condition_is_asked_once_however_often_the_task_is_tried(place, tmp_path):
    log = tmp_path / "log"
    condition = functools.partial(tasks.note_and_agree, log)
    result = place.run(Task("third", tasks.succeed_at_third, when=condition, retries=2, delay=0))
    assert result["third"] == 3
    assert log.read_text() == "asked\n"


def test_a_condition_that_raises_fails_the_task_with_the_cause(place):
    """broken ─► below"""
    result = place.run(
        chain_of(Task("broken", tasks.one, when=tasks.broken_condition, retries=3), Task("below", tasks.echo))
    )
    error = result.errors["broken"]
    assert type(error) is ConditionError
    assert str(error) == "the condition (when) of task 'broken' raised LookupError: the condition itself"
    assert type(error.__cause__) is LookupError
    assert result.tasks["broken"].attempts == 0
    assert result.tasks["below"].state == "upstream_failed"


RULES = {
    "none_failed": ["succeeded", "upstream_failed", "upstream_failed"],
    "all_success": ["skipped", "upstream_failed", "upstream_failed"],
    "one_success": ["succeeded", "succeeded", "upstream_failed"],
    "all_done": ["succeeded", "succeeded", "succeeded"],
    "one_failed": ["skipped", "succeeded", "succeeded"],
    "all_failed": ["skipped", "upstream_failed", "succeeded"],
}


def test_trigger_rules_count_what_happened_elsewhere(place):
    """skip, good ─► first; bad, good ─► second; bad ─► third: for each rule"""
    skipped, good, bad = Task("skip", tasks.skip), Task("good", tasks.one), Task("bad", tasks.refuse)
    joins = {}
    for rule in RULES:
        joins[rule] = [Task(f"{rule} {n}", tasks.collect, trigger=rule) for n in range(3)]
        [skipped, good] >> joins[rule][0]
        [bad, good] >> joins[rule][1]
        bad >> joins[rule][2]
    result = place.run(*(join for three in joins.values() for join in three))
    assert {rule: [result.tasks[join.name].state for join in three] for rule, three in joins.items()} == RULES


# ---------------------------------------------------------------- retries


def test_a_retry_makes_up_for_a_failure_and_is_counted(place):
    events = []
    result = place.run(Task("third", tasks.succeed_at_third, retries=2, delay=0), observers=[events.append])
    assert result["third"] == 3
    assert result.tasks["third"].attempts == 3
    failed = [(event.attempt, str(event.error)) for event in events if isinstance(event, AttemptFailed)]
    assert failed == [(1, "refused 1"), (2, "refused 2")]
    assert [event.attempt for event in events if isinstance(event, AttemptStarted)] == [1, 2, 3]


def test_the_last_error_stays_when_retries_run_out(place):
    result = place.run(Task("third", tasks.succeed_at_third, retries=1, delay=0))
    assert str(result.errors["third"]) == "refused 2"
    assert result.tasks["third"].attempts == 2


RETRY_ON = {
    "a class": (ConnectionError, 3), "its base": (OSError, 3), "another": (ValueError, 1),
    "one of them": ((ValueError, ConnectionError), 3), "none": ((), 1), "a predicate": (tasks.is_refusal, 3),
    "a predicate that says no": (tasks.say_no, 1), "a predicate that raises": (tasks.broken_predicate, 1),
}  # fmt: skip


def test_retry_on_decides_what_is_tried_again(place):
    wanted = [
        Task(what, tasks.succeed_at_third, retries=5, delay=0, retry_on=retry_on)
        for what, (retry_on, _) in RETRY_ON.items()
    ]
    result = place.run(*wanted)
    assert {what: run.attempts for what, run in result.tasks.items()} == {
        what: attempts for what, (_, attempts) in RETRY_ON.items()
    }


def test_retry_on_is_asked_about_an_error_that_cannot_travel(place):
    raises = functools.partial(tasks.raise_error, tasks.Unpicklable, "refused")
    result = place.run(Task("raises", raises, retries=2, delay=0, retry_on=tasks.Unpicklable))
    assert result.tasks["raises"].attempts == 3


def test_give_up_fails_at_once_with_its_cause(place):
    result = place.run(Task("pay", tasks.give_up, retries=5))
    error = result.errors["pay"]
    assert repr(error) == "GiveUp('card declined')"
    assert repr(error.__cause__) == "ValueError('no money')"
    assert result.tasks["pay"].attempts == 1


@pytest.mark.parametrize("func", [tasks.retry_after_an_hour, tasks.raise_needs_two])
def test_retry_after_says_how_long_to_wait(place, func):
    """By an error that can travel, and by one that cannot."""
    clock, waits = VirtualClock(), []

    def observe(event):
        if isinstance(event, AttemptFailed):
            waits.append(event.retry_in)

    result = place.run(Task("later", func, retries=1, delay=1, jitter=0), observers=[observe], _clock=clock)
    assert result["later"] == 2
    assert waits == [3600]
    assert clock.now() > 3600


# ---------------------------------------------------------------- timeouts


def test_an_attempt_that_takes_too_long_has_timed_out(place, may_abandon):
    """slow (0.05 s allowed) ─► below; after"""
    slow = Task("slow", functools.partial(tasks.work_for, seconds=0.5), timeout=0.05)
    after = Task("after", tasks.one, trigger="all_done").after(slow)
    result = place.run(slow, slow >> Task("below", tasks.echo), after, max_workers=1)
    error = result.errors["slow"]
    assert type(error) is TaskTimeoutError
    assert str(error) == "attempt 1 of task 'slow' took longer than its timeout of 0.05 s"
    assert states(result) == {"slow": "failed", "below": "upstream_failed", "after": "succeeded"}


def test_an_attempt_that_timed_out_is_tried_again(place, may_abandon):
    slow = Task("slow", tasks.be_slow_at_first, timeout=0.2, retries=1, delay=0)
    result = place.run(slow)
    assert result["slow"] == "attempt 2"
    assert result.tasks["slow"].attempts == 2


def test_a_timeout_that_is_kept_changes_nothing(place):
    """one ─► double, each with a minute"""
    last = chain_of(Task("one", tasks.one, timeout=60), Task("double", tasks.double, timeout=60, when=tasks.echo))
    assert place.run(last)["double"] == 2


# ---------------------------------------------------------------- stopping


@pytest.fixture
def release(tmp_path):
    """The path of a file that lets tasks end which nobody can tell to stop; it is made with the test's end at last."""
    path = tmp_path / "release"
    yield path
    path.touch()


def started(*names):
    """Return an event that is set when the attempts of *names* have started, and the observer that sets it."""
    waiting, event = set(names), threading.Event()

    def observe(fact):
        if isinstance(fact, AttemptStarted):
            waiting.discard(fact.task_name)
            if not waiting:
                event.set()

    return event, observe


def test_cancelling_from_another_thread_ends_the_run(place, release):
    """work ─► below"""
    work = Task("work", functools.partial(tasks.work_until, release=release))
    is_inside, observe = started("work")
    handle = place.start(work >> Task("below", tasks.echo), observers=[observe])
    assert is_inside.wait(PATIENCE)
    since = time.monotonic()
    handle.cancel("enough")
    with pytest.raises(RunCancelledError, match="run of 'etl' was cancelled: enough") as caught:
        handle.result(PATIENCE)
    assert time.monotonic() - since < SOON
    assert caught.value.result.tasks["below"].state == "cancelled"
    assert caught.value.result.tasks["below"].attempts == 0


def test_cancelling_before_anything_has_started_starts_nothing(place, tmp_path):
    log = tmp_path / "log"

    def cancel(event):
        if isinstance(event, RunStarted):
            is_ready.wait(PATIENCE)
            handle.cancel("at once")

    is_ready = threading.Event()
    handle = place.start(Task("write", functools.partial(tasks.write_line, log, "ran")), observers=[cancel])
    is_ready.set()
    with pytest.raises(RunCancelledError):
        handle.result(PATIENCE)
    assert handle.snapshot().tasks["write"].state == "cancelled"
    assert not log.exists()


def test_the_timeout_of_the_run_cancels_it(place):
    """work (0.5 s) ─► below"""
    work = Task("work", functools.partial(tasks.work_for, seconds=0.5))
    with pytest.raises(RunTimeoutError, match=r"it took longer than its timeout of 0\.2 s") as caught:
        place.run(work >> Task("below", tasks.echo), timeout=0.2)
    assert caught.value.result.tasks["below"].state == "cancelled"


def test_fail_fast_starts_nothing_more_and_raises_the_failure(place):
    """refuse ─► below; one; alert ◄─ refuse, which accepts a failure: one worker, so that one waits behind refuse"""
    bad = Task("refuse", tasks.refuse)
    alert = Task("alert", tasks.one, trigger="one_failed").after(bad)
    with pytest.raises(TaskExecutionError) as caught:
        place.run(
            bad, bad >> Task("below", tasks.echo), Task("one", tasks.one), alert,
            max_workers=1, fail_fast=True, raise_on_failure=True,
        )  # fmt: skip
    error = caught.value
    assert error.task_name == "refuse"
    assert repr(error.__cause__) == "ValueError('no')"
    assert states(error.result) == {
        "refuse": "failed", "below": "upstream_failed", "one": "cancelled", "alert": "succeeded",
    }  # fmt: skip


def test_without_fail_fast_all_failures_are_raised_together(place):
    """refuse; pay; one"""
    with pytest.raises(DAGExecutionError) as caught:
        place.run(
            Task("refuse", tasks.refuse), Task("pay", tasks.give_up), Task("one", tasks.one), raise_on_failure=True
        )
    assert {error.task_name for error in caught.value.exceptions} == {"refuse", "pay"}
    assert caught.value.result["one"] == 1


# ---------------------------------------------------------------- the context


def test_the_context_is_the_same_by_every_way(place):
    """fetch, which succeeds at its third attempt ─► look"""
    look = Task("look", tasks.look_around)
    result = place.run(Task("fetch", tasks.succeed_at_third, retries=2, delay=0) >> look)
    assert result["look"] == {
        "task_name": "look", "run_id": result.run_id, "attempt": 1, "is_cancelled": False, "fetch": 3,
        "upstream": {"fetch": ("succeeded", 3, 3)},
    }  # fmt: skip


def test_the_context_tells_how_everything_upstream_ended(place):
    """one, skip, refuse, raises (in a thread, what cannot travel) ─► look"""
    look = Task("look", tasks.look_upstream, trigger="all_done")
    raises = Task("raises", functools.partial(tasks.raise_error, tasks.Unpicklable, "x"), executor="thread")
    look.after(Task("one", tasks.one), Task("skip", tasks.skip), Task("refuse", tasks.refuse), raises)
    seen = place.run(look)["look"]
    assert seen["one"] == ("succeeded", 1, "", "None")
    assert seen["skip"] == ("skipped", None, "no rows", "None")
    assert seen["refuse"] == ("failed", None, "ValueError: no", "ValueError('no')")
    assert seen["raises"][:3] == ("failed", None, "Unpicklable: x")
    assert seen["raises"][3].startswith("RemoteError('raises', 'Unpicklable'" if place.is_away else "Unpicklable('x')")


def test_a_condition_may_ask_for_the_context(place):
    result = place.run(Task("one", tasks.one, when=tasks.is_named_one))
    assert result.tasks["one"].state == "succeeded"


def test_a_coroutine_finds_its_context(place):
    assert place.run(Task("look", tasks.look_around_soon))["look"] == "look"


def test_a_thread_of_the_task_finds_its_context(place):
    assert place.run(Task("look", tasks.look_around_in_a_thread))["look"] == "look"


def test_what_a_task_leaves_to_be_done_is_done_last_added_first_when_the_run_fails(place, tmp_path):
    if place.is_foreign:
        pytest.skip("a worker of somebody else's cannot reach the run; the last part of this file")
    log = tmp_path / "log"
    place.run(Task("refuse", functools.partial(tasks.with_cleanup, log=log)))
    assert log.read_text().split("\n") == ["last added", "first added", ""]


def test_log_records_reach_the_handlers_of_the_caller(place, records):
    if place.is_foreign:
        pytest.skip("a worker of somebody else's logs where its owner says")
    result = place.run(Task("log", tasks.log_a_line))
    said, other = records
    assert said.getMessage() == "read 3 rows"
    assert (said.name, said.levelname) == ("flowkit.task", "WARNING")
    assert (said.task_name, said.run_id, said.attempt) == ("log", result.run_id, 1)
    assert other.name == "flowkit.mine"


def test_a_logged_error_keeps_its_traceback(place, records):
    if place.is_foreign:
        pytest.skip("a worker of somebody else's logs where its owner says")
    place.run(Task("log", tasks.log_an_error))
    (record,) = records
    assert "ValueError: inner" in logging.Formatter().format(record)


@pytest.fixture
def records():
    """The log records that reach the logger ``flowkit`` here."""
    found = []

    class Keeper(logging.Handler):
        def emit(self, record):
            found.append(record)

    logger, keeper = logging.getLogger("flowkit"), Keeper()
    logger.addHandler(keeper)
    yield found
    logger.removeHandler(keeper)


# ---------------------------------------------------------------- runs in runs, and at the same time


@pytest.mark.parametrize("inner", ["process", "thread", "sequential"])
def test_a_task_may_run_a_graph_of_its_own_three_deep(place, inner):
    pids = place.run(Task("descend", tasks.descend), inputs={"depth": 3, "executor": inner}, max_workers=1)["descend"]
    assert len(pids) == 4
    if inner == "process":
        assert len(set(pids)) == 4
        assert not any(map(tasks.is_alive, pids[1:]))


def test_one_graph_may_be_run_by_many_threads_at_once(place):
    """one ─► double, double ─► add; five threads, twice each"""
    first, left, right, added = (
        Task("one", tasks.one), Task("left", tasks.double), Task("right", tasks.double), Task("add", tasks.add),
    )  # fmt: skip
    first >> [left, right] >> added
    dag = DAG("etl", tasks=[added])
    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        futures = [threads.submit(dag.run, executor=place.executor, max_workers=2) for _ in range(10)]
        results = [future.result(PATIENCE) for future in futures]
    assert [result["add"] for result in results] == [4] * 10
    assert len({result.run_id for result in results}) == 10


# ---------------------------------------------------------------- events


def layered():
    """Return the last tasks of a graph, and its edges: six layers of five, each task below two of the layer above."""
    layers = [[Task(f"t0{j}", tasks.one) for j in range(5)]]
    edges = []
    for i in range(1, 6):
        layer = []
        for j in range(5):
            ups = [layers[-1][j], layers[-1][(j + 1) % 5]]
            made = Task(f"t{i}{j}", tasks.add)
            ups >> made
            edges += [(up.name, made.name) for up in ups]
            layer.append(made)
        layers.append(layer)
    return layers[-1], edges


def test_events_tell_of_a_task_only_after_all_that_it_needs(place):
    last, edges = layered()
    events = []
    result = place.run(*last, observers=[events.append])
    assert result.ok
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    place_of = {
        (type(event), event.task_name): n
        for n, event in enumerate(events)
        if isinstance(event, (AttemptStarted, TaskSucceeded))
    }
    assert len(place_of) == len(events) - 2 == 60
    assert all(place_of[TaskSucceeded, up] < place_of[AttemptStarted, down] for up, down in edges)
    assert all(place_of[AttemptStarted, name] < place_of[TaskSucceeded, name] for name in result)


def test_every_task_has_one_final_event_whatever_became_of_it(place):
    """refuse ─► below; skip; third (retried); one; cond (condition false)"""
    bad = Task("refuse", tasks.refuse)
    events = []
    place.run(
        bad >> Task("below", tasks.echo), Task("skip", tasks.skip), Task("one", tasks.one),
        Task("third", tasks.succeed_at_third, retries=2, delay=0), Task("cond", tasks.two, when=tasks.say_no),
        observers=[events.append],
    )  # fmt: skip
    final = sorted(event.task_name for event in events if isinstance(event, TaskEvent))
    assert final == ["below", "cond", "one", "refuse", "skip", "third"]


# ---------------------------------------------------------------- what only some can promise


@pytest.mark.parametrize("executor", ["sequential", "thread", "async"])
def test_context_variables_of_the_caller_are_seen_in_its_own_process(executor):
    token = request_id.set("r-17")
    try:
        result = DAG("etl", tasks=[Task("look", lambda: request_id.get())]).run(executor=executor)
    finally:
        request_id.reset(token)
    assert result["look"] == "r-17"


@pytest.mark.parametrize("executor", ["thread", "process", "async"])
def test_fail_fast_tells_what_runs_to_stop(executor, release, tmp_path):
    """work; refuse, as soon as work is inside"""
    inside = tmp_path / "inside"
    work = Task("work", functools.partial(tasks.work_until, release=release, inside=inside))
    refuse = Task("refuse", functools.partial(tasks.refuse_after, inside), executor="thread")
    result = DAG("etl", tasks=[work, refuse]).run(executor=executor, raise_on_failure=False)
    assert states(result) == {"work": "succeeded", "refuse": "failed"}
    assert result["work"] == "told to stop"


def test_a_process_that_does_not_listen_is_killed_when_the_run_is_cancelled():
    work = Task("work", functools.partial(time.sleep, 600))
    is_inside, observe = started("work")
    handle = DAG("etl", tasks=[work]).start(executor="process", observers=[observe])
    assert is_inside.wait(PATIENCE)
    since = time.monotonic()
    handle.cancel()
    with pytest.raises(RunCancelledError):
        handle.result(PATIENCE)
    assert time.monotonic() - since < SOON
    assert handle.snapshot().tasks["work"].state == "cancelled"
    assert handle.snapshot().abandoned_threads == 0


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_can_be_cancelled_while_its_processes_start(start_method, count):
    is_ready, observed = threading.Event(), []

    def cancel(event):
        observed.append(event)
        if isinstance(event, RunStarted):
            is_ready.wait(PATIENCE)
            threading.Thread(target=handle.cancel, daemon=True).start()

    dag = DAG("etl", tasks=[Task(f"t{i}", functools.partial(time.sleep, 600)) for i in range(count)])
    handle = dag.start(executor="process", max_workers=count, _start_method=start_method, observers=[cancel])
    is_ready.set()
    with pytest.raises(RunCancelledError):
        handle.result(PATIENCE)
    assert sum(isinstance(event, TaskEvent) for event in observed) == count


def test_runs_below_a_process_that_is_killed_end_with_it(tmp_path):
    """outer, in a process ─► hang, in a process of a process; outer times out"""
    path = tmp_path / "pid"
    outer = Task("outer", functools.partial(tasks.hang_below, path), timeout=1.0)
    result = DAG("etl", tasks=[outer]).run(executor="process", raise_on_failure=False)
    assert type(result.errors["outer"]) is TaskTimeoutError
    inner = int(path.read_text())
    deadline = time.monotonic() + SOON
    while tasks.is_alive(inner) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not tasks.is_alive(inner)


def test_a_process_is_used_again_and_each_worker_has_one():
    """pid0 ... pid9 on two workers"""
    wanted = [Task(f"pid{i}", tasks.pid) for i in range(10)]
    result = DAG("etl", tasks=wanted).run(executor="process", max_workers=2)
    assert 1 <= len(set(result.values())) <= 2
    assert {run.worker for run in result.tasks.values()} <= {"process-1", "process-2"}


def test_upstream_is_sent_only_to_who_takes_the_context():
    """fetch ─► look, which asks by current_context()"""
    result = DAG("etl", tasks=[Task("fetch", tasks.one) >> Task("look", tasks.look_upstream_unasked)]).run(
        executor="process", fail_fast=False, raise_on_failure=False
    )
    assert type(result.errors["look"]) is FlowkitError
    assert "def f(..., context)" in str(result.errors["look"])


def test_a_cleanup_handler_of_a_process_must_travel():
    task = Task("leave", tasks.with_local_cleanup)
    error = DAG("etl", tasks=[task]).run(executor="process", raise_on_failure=False).errors["leave"]
    assert type(error) is NotPicklableError
    assert "task 'leave': its cleanup handler <function" in str(error)
    assert "module level" in str(error)


def test_what_a_process_logs_and_cannot_send_is_sent_as_text(records):
    assert DAG("etl", tasks=[Task("log", tasks.log_what_cannot_travel)]).run(executor="process")["log"] == "logged"
    (record,) = records
    assert "a lock: <unlocked" in record.getMessage()


def test_a_process_leaves_it_to_its_parent_to_say_where_log_records_go(records, tmp_path):
    """The task gives the process a handler of its own, as a module that is imported there may."""
    log = tmp_path / "log"
    DAG("etl", tasks=[Task("log", functools.partial(tasks.log_beside_a_handler, log))]).run(executor="process")
    assert [record.getMessage() for record in records] == ["once"]
    assert log.read_text() == ""


def test_cleanup_handlers_of_a_process_that_was_killed_run(tmp_path):
    log = tmp_path / "log"
    task = Task("leave", functools.partial(tasks.add_cleanup_and_die, log))
    DAG("etl", tasks=[task]).run(executor="process", raise_on_failure=False)
    assert log.read_text() == "cleaned up\n"


def test_memory_for_large_values_stays_within_a_few_copies(script):
    """data, 50 MB ─► echo ─► peak: in a program of its own, with one process, which says how much it ever had"""
    running = script(
        f"""
        import sys
        sys.path.insert(0, {str(tasks.HERE)!r})
        import functools
        import process_tasks as tasks
        from flowkit import DAG, Task

        size = 50 << 20
        before = tasks.peak_memory()
        data = Task("data", functools.partial(bytes, size))
        echo, peak = Task("echo", tasks.echo), Task("peak", tasks.peak_memory)
        data >> echo >> peak
        result = DAG("etl", tasks=[peak]).run(executor="process", max_workers=1)
        assert len(result["echo"]) == size
        here = tasks.peak_memory() - before
        print(here < 7 * size, result["peak"] - before < 5 * size, here >> 20, result["peak"] >> 20)
        """,
        limit=40,
    ).finish()
    assert running.out.startswith("True True"), running.out + running.err


# ---------------------------------------------------------------- executors of somebody else


def test_a_foreign_executor_is_never_shut_down(foreign_pool):
    result = DAG("etl", tasks=[Task("refuse", tasks.refuse)]).run(executor=foreign_pool, raise_on_failure=False)
    assert not result.ok
    assert foreign_pool.submit(tasks.double, 2).result(PATIENCE) == 4


@pytest.mark.parametrize("how", ["error", "exit"])
@pytest.mark.parametrize("hostile", ["PickleEnds", "UnpickleEnds"])
@pytest.mark.parametrize(("where", "kind"), [("argument", "NotPicklableError"), ("result", "TaskResultError")])
def test_no_object_of_a_task_breaks_a_foreign_executor(script, where, kind, hostile, how):
    """make (thread) ─► victim; next ◄─ victim. In a program of its own: an executor that is broken may hang."""
    running = script(
        f"""
        import sys
        sys.path.insert(0, {str(tasks.HERE)!r})
        import functools
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        import process_tasks as tasks
        from flowkit import DAG, Task

        hostile = functools.partial(tasks.{hostile}, {how!r})
        if {where!r} == "argument":
            victim = Task("make", hostile, executor="thread") >> Task("victim", tasks.echo)
        else:
            victim = Task("victim", hostile)
        after = Task("next", tasks.one, trigger="all_done").after(victim)
        with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
            result = DAG("etl", tasks=[after]).run(executor=pool, fail_fast=False, raise_on_failure=False)
            print(type(result.errors["victim"]).__name__, result.get("next"), pool.submit(tasks.double, 2).result())
            print(result.errors["victim"], file=sys.stderr)
        """,
        limit=5,
    ).finish()
    assert running.out == f"{kind} 1 4\n", running.err
    assert "task 'victim'" in running.err


def test_a_foreign_executor_that_is_shut_down_is_named():
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    result = DAG("etl", tasks=[Task("one", tasks.one)]).run(executor=pool, raise_on_failure=False)
    error = result.errors["one"]
    assert type(error) is FlowkitError
    assert "ThreadPoolExecutor" in str(error)
    assert "neither broken nor shut down" in str(error)


def test_a_worker_of_a_foreign_executor_cannot_leave_cleanup_and_says_so(foreign_pool, tmp_path):
    task = Task("leave", functools.partial(tasks.with_cleanup, log=tmp_path / "log"))
    error = DAG("etl", tasks=[task]).run(executor=foreign_pool, raise_on_failure=False).errors["leave"]
    assert type(error) is FlowkitError
    assert "trigger='all_done'" in str(error)


def test_context_variables_are_seen_on_foreign_threads():
    token = request_id.set("r-17")
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            dag = DAG("etl", tasks=[Task("look", lambda: (request_id.get(), current_context().task_name))])
            result = dag.run(executor=pool)
    finally:
        request_id.reset(token)
    assert result["look"] == ("r-17", "look")
