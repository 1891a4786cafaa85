"""Nothing that a task's code or objects do wedges a run on processes: every way to end, at every place.

Each test is asked of both ways to start a process. What dies is always a worker; where code of an object runs in the
parent, it may raise and call ``sys.exit``, which must not end the parent either.
"""

import functools
import multiprocessing
import os
import sys
import threading
import time

import process_tasks as tasks
import pytest

from flowkit import (
    DAG,
    ConditionError,
    FlowkitError,
    NotPicklableError,
    RemoteError,
    Task,
    TaskExecutionError,
    TaskFailed,
    TaskResultError,
    TaskSucceeded,
    TaskTimeoutError,
    WorkerDiedError,
)
from flowkit.engine.workers import processes, wire

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals end no process there as they do here")

SOON = 5.0
"""Seconds within which each failure must be told."""
RAISED = {"error": "ZeroDivisionError: on purpose", "exit": "SystemExit: 3", "interrupt": "KeyboardInterrupt"}
"""The ways that end a call and not the process, and what a message says of each."""
EVERYTHING = [*RAISED, *tasks.DEATHS]
A_FEW = [*RAISED, "os._exit", "SIGKILL"]
"""Ways for places that are much like others."""


@pytest.fixture(params=["forkserver", "spawn"])
def run(request):
    """Return a function that runs tasks on one process at a time, whatever becomes of them."""

    def run(*wanted, inputs=None, limit=SOON, **options):
        options = {"max_workers": 1, "fail_fast": False, "raise_on_failure": False} | options
        dag = DAG("etl", tasks=wanted)
        since = time.monotonic()
        result = dag.run(inputs, executor="process", _start_method=request.param, **options)
        assert time.monotonic() - since < limit
        return result

    return run


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


def errors_of(run, ways, make):
    """Return the error of each victim, which *make* makes, by the way in which it ends.

    For each way victim ─► next, one after the other in one pool of one process. Every next must succeed, and every
    failure must be told soon.
    """
    wanted, before = [], []
    for how in ways:
        victim = make(f"victim {how}", how)
        before = [Task(f"next {how}", tasks.one, trigger="all_done").after(victim, *before)]
        wanted += [victim, *before]
    result = run(*wanted, limit=SOON * len(ways))
    assert result.failed == [f"victim {how}" for how in ways]
    assert {result[f"next {how}"] for how in ways} == {1}
    for how in ways:
        victim = result.tasks[f"victim {how}"]
        assert victim.duration < SOON
        assert victim.attempts <= 1
    return {how: result.errors[f"victim {how}"] for how in ways}


def assert_died(errors):
    """Each of *errors* that a death is to blame for says how the worker of its task ended; return the others."""
    for how in errors.keys() & tasks.DEATHS.keys():
        error = errors.pop(how)
        exitcode, text = tasks.DEATHS[how]
        assert type(error) is WorkerDiedError, how
        assert error.task_name.startswith("victim")
        assert error.exitcode == exitcode
        assert str(error) == f"the worker process of task {error.task_name!r} (pid {error.pid}) {text}"
        assert not tasks.is_alive(error.pid)
    return errors


def does(function):
    """Return what makes a victim that calls ``function(how)``."""
    return lambda name, how: Task(name, functools.partial(function, how))


def is_handed(hostile):
    """Return what makes a victim that is handed ``hostile(how)`` by a task in a thread of the parent."""

    def make(name, how):
        maker = Task(f"make for {name}", functools.partial(hostile, how), executor="thread")
        return maker >> Task(name, tasks.echo)

    return make


# ---------------------------------------------------------------- the matrix


def test_pickling_an_argument_raises_in_the_parent(run):
    for how, error in errors_of(run, RAISED, is_handed(tasks.PickleEnds)).items():
        assert type(error) is NotPicklableError
        assert str(error).startswith(f"task 'victim {how}': its argument 'value', <process_tasks.PickleEnds object")
        assert f"of type PickleEnds, cannot be sent to a process: {RAISED[how]}. " in str(error)
        assert str(error).endswith("Pass plain data, or use executor='thread'.")


@pytest.mark.parametrize("how", RAISED)
def test_pickling_an_input_raises_before_anything_runs(run, how, tmp_path):
    write = Task("write", functools.partial(tasks.write_line, tmp_path / "log", "ran"))
    with pytest.raises(NotPicklableError, match=r"task 'victim': its argument 'value', <process_tasks\.P") as caught:
        run(write, Task("victim", tasks.echo), inputs={"value": tasks.PickleEnds(how)})
    assert RAISED[how] in str(caught.value)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("how", RAISED)
def test_pickling_a_function_raises_before_anything_runs(run, how, tmp_path):
    write = Task("write", functools.partial(tasks.write_line, tmp_path / "log", "ran"))
    with pytest.raises(NotPicklableError, match=r"task 'victim': its function <process_tasks\.PickleE") as caught:
        run(write, Task("victim", tasks.PickleEnds(how)))
    assert RAISED[how] in str(caught.value)
    assert not (tmp_path / "log").exists()


def test_unpickling_an_argument_ends_the_worker_or_raises_there(run):
    for how, error in assert_died(errors_of(run, EVERYTHING, is_handed(tasks.UnpickleEnds))).items():
        assert type(error) is NotPicklableError
        assert str(error).startswith(f"task 'victim {how}': its function or arguments cannot be used in a process: ")
        assert f": {RAISED[how]}. " in str(error)
        assert str(error).endswith("or use executor='thread'.")


def test_unpickling_a_function_ends_the_worker_or_raises_there(run):
    def make(name, how):
        return Task(name, tasks.UnpickleEnds(how))

    for how, error in assert_died(errors_of(run, A_FEW, make)).items():
        assert type(error) is NotPicklableError
        assert RAISED[how] in str(error)


def test_every_task_of_a_function_that_cannot_be_unpickled_is_told_why(run):
    """first, second: a function is sent once only, if it arrives"""
    func = tasks.UnpickleEnds("error")
    result = run(Task("first", func), Task("second", func))
    assert len(result.errors) == 2
    assert all(RAISED["error"] in str(error) for error in result.errors.values())


def test_the_task_itself_ends_the_worker_or_raises(run):
    for how, error in assert_died(errors_of(run, EVERYTHING, does(tasks.end))).items():
        assert f"{type(error).__name__}: {error}".rstrip(": ") == RAISED[how]
        assert "process_tasks.py" in error.__notes__[-1]


def test_pickling_a_result_ends_the_worker_or_raises_there(run):
    for how, error in assert_died(errors_of(run, EVERYTHING, does(tasks.PickleEnds))).items():
        assert type(error) is TaskResultError
        assert str(error).startswith(f"task 'victim {how}' returned what cannot be sent back from a process: <process_")
        assert str(error).endswith(f"of type PickleEnds: {RAISED[how]}. Return plain data.")


def test_unpickling_a_result_raises_in_the_parent(run):
    for how, error in errors_of(run, RAISED, does(tasks.UnpickleEnds)).items():
        assert type(error) is TaskResultError
        assert f"task 'victim {how}' returned a value that cannot be unpickled here: {RAISED[how]}." in str(error)
        assert "Return plain data" in str(error)


@pytest.mark.parametrize("kind", [tasks.Ends, tasks.EndsWhenUnpickled], ids=["pickled", "unpickled"])
def test_an_error_ends_the_worker_on_its_way_or_is_named(run, kind):
    """An exception is pickled and unpickled in the worker before it is sent."""
    for how, error in assert_died(errors_of(run, A_FEW, does(functools.partial(tasks.raise_error, kind)))).items():
        assert type(error) is RemoteError
        assert (error.task_name, error.type_name, error.text) == (f"victim {how}", kind.__name__, how)
        assert "in raise_error" in error.traceback


def test_the_text_of_an_error_ends_the_worker_or_is_left_out(run):
    left = assert_died(errors_of(run, A_FEW, does(functools.partial(tasks.raise_error, tasks.EndsInStr))))
    assert {type(error) for error in left.values()} == {tasks.EndsInStr}


def test_a_condition_ends_the_worker_or_raises(run):
    def make(name, how):
        return Task(name, tasks.one, when=functools.partial(tasks.end, how))

    for how, error in assert_died(errors_of(run, A_FEW, make)).items():
        assert type(error) is (KeyboardInterrupt if how == "interrupt" else ConditionError)
        assert RAISED[how] in str(error) or how == "interrupt"


def test_a_predicate_that_raises_means_no(run):
    """retry_on is asked in the worker"""

    def make(name, how):
        return Task(name, tasks.refuse, retries=1, delay=0, retry_on=functools.partial(tasks.end_for, how))

    assert set(map(repr, errors_of(run, RAISED, make).values())) == {"ValueError('no')"}


def test_a_worker_that_closes_all_its_files_is_replaced(run):
    errors = errors_of(run, ["closed"], lambda name, how: Task(name, tasks.close_all_files))
    assert type(errors["closed"]) is WorkerDiedError


def test_a_process_that_the_task_has_forked_does_not_hide_its_death(run, tmp_path):
    """victim forks, and dies; what it has forked lives on with all of its files"""
    release = tmp_path / "release"
    timer = threading.Timer(SOON + 1, release.touch)  # so that a run that waits for it fails, and does not hang
    timer.start()
    try:
        result = run(Task("victim", functools.partial(tasks.leave_process_behind, release)))
    finally:
        timer.cancel()
        timer.join()
        release.touch()
    assert str(result.errors["victim"]).endswith("ended with exit code 9")


def test_an_error_with_a_huge_text_is_told_soon(run):
    """Its text is 50 MB: it may travel, but what is said of it is cut."""
    error = errors_of(run, ["huge"], does(tasks.raise_huge))["huge"]
    assert type(error) is ValueError
    assert len(error.args[0]) == 50 << 20
    assert len(error.__notes__[-1]) < 1 << 20


# ---------------------------------------------------------------- when no worker can be had


def test_a_process_that_may_have_no_children_is_told_so(monkeypatch):
    """As a worker of multiprocessing.Pool may not: its processes are daemons. retried ─► next"""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    retried = Task("retried", tasks.one, retries=2, delay=0)
    handle = DAG("etl", tasks=[retried, Task("one", tasks.one)]).start(
        executor="process", fail_fast=False, raise_on_failure=False
    )
    try:
        result = handle.result(SOON)
    finally:
        handle.cancel()
    assert states(result) == {"retried": "failed", "one": "failed"}
    for error in result.errors.values():
        assert type(error) is FlowkitError
        assert str(error).startswith("cannot start a worker process: ")
        assert "daemonic processes are not allowed to have children" in str(error)


def test_a_program_without_files_left_is_told_so(script):
    """In a program of its own, which for one run may open no file more."""
    running = script(
        f"""
        import os, resource, sys
        sys.path.insert(0, {str(tasks.HERE)!r})
        import process_tasks as tasks
        from flowkit import DAG, Task

        dag = DAG("etl", tasks=[Task(f"t{{i}}", tasks.one) for i in range(5)])
        dag.run(executor="process")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))
        result = dag.run(executor="process", fail_fast=False, raise_on_failure=False)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        print(len(result.errors), *{{str(error) for error in result.errors.values()}})
        print(len(dag.run(executor="process")))
        """,
        limit=5,
    ).finish()
    assert running.out == "5 cannot start a worker process: OSError: [Errno 24] Too many open files\n5\n", running.err


# ---------------------------------------------------------------- what a death leads to


def test_a_death_is_the_cause_of_what_the_run_raises(run):
    with pytest.raises(TaskExecutionError, match=r"task .victim. failed after 1 attempt in .*: WorkerDied") as caught:
        run(Task("victim", functools.partial(tasks.end, "SIGKILL")), fail_fast=True, raise_on_failure=True)
    assert_died({"SIGKILL": caught.value.__cause__})


def test_the_error_tells_the_process_that_died(run):
    """pid, whose process is used again ─► victim"""
    first = Task("pid", tasks.pid)
    victim = Task("victim", functools.partial(tasks.end, "SIGKILL")).after(first)
    result = run(victim)
    assert result.errors["victim"].pid == result["pid"]


def test_a_death_is_tried_again_by_the_policy_in_a_new_process(run, tmp_path):
    first_time = functools.partial(tasks.end_first_time, tmp_path / "mark")
    survivor = Task("victim", functools.partial(first_time, "SIGKILL"), retries=1, delay=0)
    result = run(survivor)
    assert result["victim"] == "survived"
    assert result.tasks["victim"].attempts == 2


@pytest.mark.parametrize(("retry_on", "attempts"), [(WorkerDiedError, 2), (ValueError, 1)])
def test_retry_on_is_asked_about_a_death(run, retry_on, attempts):
    victim = Task("victim", functools.partial(tasks.end, "os._exit"), retries=1, delay=0, retry_on=retry_on)
    assert run(victim).tasks["victim"].attempts == attempts


def test_a_task_that_kills_worker_after_worker_is_given_up_after_three(run):
    victim = Task("victim", functools.partial(tasks.end, "os._exit"), retries=10, delay=0)
    result = run(victim, Task("next", tasks.one, trigger="all_done").after(victim))
    assert result.tasks["victim"].attempts == processes.MOST_DEATHS == 3
    assert result.errors["victim"].__notes__ == ["It has killed 3 workers and is not tried again."]
    assert result["next"] == 1


def test_tasks_on_other_workers_keep_their_results(run, tmp_path):
    """victim; work, which is inside until victim has failed"""
    release = tmp_path / "release"

    def observe(event):
        if isinstance(event, TaskFailed):
            release.touch()

    work = Task("work", functools.partial(tasks.work_until, release=release))
    victim = Task("victim", functools.partial(tasks.end, "SIGKILL"))
    result = run(work, victim, max_workers=2, observers=[observe])
    assert type(result.errors["victim"]) is WorkerDiedError
    assert result["work"] == "released"


def test_a_worker_that_dies_between_two_tasks_fails_neither(run):
    """pid ─► kill it, in a thread of the parent ─► next, on the same worker"""
    pid = Task("pid", tasks.pid)
    killed = pid >> Task("kill", tasks.kill, executor="thread")
    result = run(Task("next", tasks.one).after(killed), max_workers={"process": 1})
    assert result.ok, result.summary()


def test_a_dead_worker_is_told_within_moments_even_if_it_runs_for_long(run, tmp_path):
    """work, for ten minutes; kill, as soon as work has noted its process"""
    path = tmp_path / "pid"
    work = Task("work", functools.partial(tasks.note_and_hang, path))
    kill = Task("kill", functools.partial(tasks.kill_noted, path), executor="thread")
    result = run(work, kill)
    assert result.errors["work"].exitcode == -9
    assert result.errors["work"].pid == int(path.read_text())


# ---------------------------------------------------------------- batches


def crowd(how, count):
    """*count* tasks of one function, the victim, which ends in the way *how*, and *count* more; all ready at once.

    gate ─► all; calm ─► all but the victim; how ─► victim
    """
    calm = Task("calm", lambda: "nothing", executor="thread")
    fate = Task("how", lambda: how, executor="thread")
    gate = Task("gate", tasks.nothing, executor="thread").after(calm, fate)
    made = []
    for name in [*(f"before{i}" for i in range(count)), "victim", *(f"after{i}" for i in range(count))]:
        task = Task(name, tasks.take_part)
        [gate, fate if name == "victim" else calm] >> task
        made.append(task)
    return made


@pytest.fixture
def batches(monkeypatch):
    """The names of the tasks that travelled together, for every message with calls; batches may be long here."""
    sent = []
    send = wire.Channel.send

    def spy(channel, calls, parts=()):
        if isinstance(calls, list):  # not the number of an attempt that is to stop
            sent.append([name for _, name, *_ in calls])
        send(channel, calls, parts)

    monkeypatch.setattr(wire.Channel, "send", spy)
    monkeypatch.setattr(processes, "_BATCH_SECONDS", 0.2)  # of a loaded machine too
    return sent


@pytest.mark.parametrize("how", ["exit", "os._exit", "SIGKILL"])
@pytest.mark.parametrize("workers", [1, 2])
def test_batch_mates_of_a_task_that_dies_keep_their_results(run, batches, how, workers):
    result = run(*crowd(how, 300), max_workers=workers)
    (mates,) = [names for names in batches if "victim" in names]
    assert len(mates) > 2
    assert result.failed == ["victim"]
    assert_died({how: result.errors["victim"]})
    done = set(result) - {"calm", "how", "gate"}
    assert len(done) == 600
    assert {result[name] for name in done} == {"done"}
    assert {run.attempts for run in result.tasks.values()} == {1}


def test_each_mate_of_a_task_that_dies_has_one_final_event(run, batches):
    """Events make no task too special to travel in a batch."""
    events = []
    run(*crowd("SIGKILL", 200), observers=[events.append])
    ends = [event.task_name for event in events if isinstance(event, (TaskSucceeded, TaskFailed))]
    assert len(ends) == len(set(ends)) == 404


def test_tasks_with_a_condition_a_timeout_retries_or_a_limit_travel_alone(run, batches):
    """one, many times, so that its duration is known; then one of each special kind among many more"""
    special = {
        "when": Task("when", tasks.one, when=tasks.yes),
        "timeout": Task("timeout", tasks.one, timeout=60),
        "retries": Task("retries", tasks.one, retries=1),
        "limit": Task("limit", tasks.one, uses="api"),
    }
    plain = [Task(f"t{i}", tasks.one) for i in range(300)]
    result = run(*plain[:150], *special.values(), *plain[150:], limits={"api": 1})
    assert result.ok
    assert max(map(len, batches)) > 1
    for name in special:
        assert [name] in batches


def test_slow_tasks_travel_alone(run, batches, monkeypatch):
    """A function that has taken longer than a batch may take"""
    monkeypatch.setattr(processes, "_BATCH_SECONDS", 0.001)
    result = run(*(Task(f"t{i}", functools.partial(time.sleep, 0.005)) for i in range(20)))
    assert result.ok
    assert max(map(len, batches)) == 1


# ---------------------------------------------------------------- timeouts


def test_a_process_that_takes_too_long_is_killed_and_replaced(run):
    """In its function, deaf to signals, pickling its result, unpickling its argument: each ─► next"""
    make = {
        "works": lambda name: Task(name, functools.partial(time.sleep, 600), timeout=0.2),
        "is deaf": lambda name: Task(name, tasks.ignore_signals_and_hang, timeout=0.2),
        "pickles": lambda name: Task(name, tasks.HangsWhenPickled, timeout=0.2),
        "unpickles": lambda name: (
            Task("make", tasks.HangsWhenUnpickled, executor="thread") >> Task(name, tasks.echo, timeout=0.2)
        ),
    }
    errors = errors_of(run, make, lambda name, how: make[how](name))
    assert {how: type(error) for how, error in errors.items()} == dict.fromkeys(make, TaskTimeoutError)
    assert str(errors["works"]) == "attempt 1 of task 'victim works' took longer than its timeout of 0.2 s"


def test_a_timeout_is_no_death_that_counts(run):
    victim = Task("victim", functools.partial(time.sleep, 600), timeout=0.05, retries=4, delay=0)
    result = run(victim)
    assert result.tasks["victim"].attempts == 5
    assert type(result.errors["victim"]) is TaskTimeoutError


# ---------------------------------------------------------------- what stays behind


def test_a_thread_that_the_task_has_left_does_not_keep_the_run(run):
    """The thread sleeps for ten minutes and is no daemon"""
    assert run(Task("victim", tasks.leave_thread_behind)).ok


def test_deaths_leave_no_file_open(run):
    run(Task("warm", tasks.one))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    victims = [Task(f"victim{i}", functools.partial(tasks.end, "SIGKILL")) for i in range(10)]
    assert len(run(*victims, max_workers=3).failed) == 10
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
