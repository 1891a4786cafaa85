"""The life of worker processes: how many there are, what they are given, how they are ended and replaced."""

import contextlib
import gc
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import kill_tasks
import pytest

from flowkit import DAG, RunCancelledError, RunTimeoutError, Task, TaskExecutionError, TaskTimeoutError, WorkerDiedError
from flowkit.engine.workers import processes
from flowkit.events import AttemptFailed, AttemptStarted, RunFinished, RunStarted, TaskEvent, TaskFailed, TaskSucceeded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tasks talk through named pipes")

SOON = 5.0
"""Seconds within which what takes a moment is over, on a machine that is busy."""


@pytest.fixture(scope="module", autouse=True)
def helpers():
    """What multiprocessing starts once and keeps for the life of this process."""
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(params=["forkserver", "spawn"])
def method(request):
    return request.param


class Gate:
    """A named pipe at which tasks wait, in whatever process."""

    def __init__(self, path):
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)  # both ends, so that nobody waits for the other one

    def open(self, count=1):
        """Let *count* tasks go on."""
        os.write(self._fd, b"." * count)

    def close(self):
        with contextlib.suppress(OSError):
            os.set_blocking(self._fd, False)
            os.write(self._fd, b"." * 1000)
        os.close(self._fd)


@pytest.fixture
def gate(tmp_path):
    """A gate; it is open when the test is over."""
    made = Gate(tmp_path / "gate")
    yield made
    made.close()


@pytest.fixture
def second(tmp_path):
    """One more gate."""
    made = Gate(tmp_path / "second")
    yield made
    made.close()


def run(*tasks, inputs=None, **options):
    return DAG("processes", tasks=tasks).run(inputs, **{"executor": "process", **options})


def lines(path):
    """Return the words of each line that tasks have noted."""
    return [line.split() for line in Path(path).read_text().splitlines()] if os.path.exists(path) else []


def wait_for_lines(path, count):
    """Return the first *count* lines that tasks note; they are other processes, which set no event of ours."""
    deadline = time.monotonic() + 2 * SOON
    while len(found := lines(path)) < count:
        assert time.monotonic() < deadline, f"{found} instead of {count} lines"
        time.sleep(0.001)
    return found


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def live_workers():
    """Return the pids of the processes that this one, its fork server included, has started and that are alive."""
    servers = {os.getpid()}
    found = set()
    for _ in range(2):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as stat:
                    state, parent = stat.read().rpartition(")")[2].split()[:2]
                    if int(parent) in servers and state not in "ZX":
                        found.add(int(name))
        servers |= found
    return found


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")


# ---------------------------------------------------------------- how many, and which


def most_at_once(spans):
    """Return how many of *spans*, start and end, overlap at most."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = count = 0
    for _, change in changes:
        count += change
        most = max(most, count)
    return most


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_more_tasks_run_at_once_than_there_may_be_workers(size, tmp_path):
    path = str(tmp_path / "spans")
    run(*[Task(f"t{n}", kill_tasks.span) for n in range(12)], inputs={"path": path}, max_workers=size)
    found = lines(path)
    assert len(found) == 12
    by_pid = defaultdict(list)
    for _, pid, start, end in found:
        by_pid[pid].append((float(start), float(end)))
    assert 1 <= len(by_pid) <= size
    assert all(most_at_once(spans) == 1 for spans in by_pid.values())
    assert most_at_once([span for spans in by_pid.values() for span in spans]) <= size


def test_as_many_run_at_once_as_there_are_workers(tmp_path, gate):
    """Three tasks that wait until all three are there."""
    path = str(tmp_path / "spans")
    tasks = [Task(f"t{n}", kill_tasks.meet) for n in range(3)]
    handle = DAG("processes", tasks=tasks).start({"path": path, "gate": gate.path}, executor="process", max_workers=3)
    found = wait_for_lines(path, 3)
    assert len({pid for _, pid in found}) == 3
    gate.open(3)
    assert set(handle.result(2 * SOON).values()) == {int(pid) for _, pid in found}


def test_a_limit_holds_over_all_workers(tmp_path):
    """Twelve tasks on three workers, six of them with a limit of one."""
    path = str(tmp_path / "spans")
    few = [Task(f"few_{n}", kill_tasks.span, uses="licence") for n in range(6)]
    many = [Task(f"many_{n}", kill_tasks.span) for n in range(6)]
    run(*few, *many, inputs={"path": path}, max_workers=3, limits={"licence": 1})
    spans = [(float(start), float(end)) for name, _, start, end in lines(path) if name.startswith("few")]
    assert len(spans) == 6
    assert most_at_once(spans) == 1


def test_workers_persist_over_many_tasks(method):
    result = run(*[Task(f"t{n}", kill_tasks.pid) for n in range(200)], max_workers=2, _start_method=method)
    assert len(set(result.values())) <= 2
    assert os.getpid() not in result.values()


def test_a_chain_stays_in_one_process():
    """source ─► two chains of 20, on three workers"""
    source, ends = Task("source", kill_tasks.pid), []
    for name in "ab":
        task = source
        for n in range(20):
            task = task >> Task(f"{name}{n}", kill_tasks.pid)
        ends.append(task)
    result = run(*ends, max_workers=3)
    for name in "ab":
        assert len({result[f"{name}{n}"] for n in range(20)}) == 1


def test_a_single_chain_starts_a_single_process():
    first = task = Task("t0", kill_tasks.pid)
    for n in range(1, 30):
        task = task >> Task(f"t{n}", kill_tasks.pid)
    result = run(task, max_workers=4)
    assert len(result) == 30
    assert set(result.values()) == {result[first.name]}


@needs_proc
def test_workers_end_with_their_run(method):
    before = live_workers()
    result = run(*[Task(f"t{n}", kill_tasks.pid) for n in range(8)], max_workers=3, _start_method=method)
    left = live_workers() - before
    assert not left & set(result.values())
    assert not any(is_alive(pid) for pid in set(result.values()))


@needs_proc
def test_workers_end_with_a_run_that_fails(method):
    before = live_workers()
    good = [Task(f"t{n}", kill_tasks.pid) for n in range(4)]
    result = run(*good, Task("bad", kill_tasks.fail), max_workers=2, raise_on_failure=False, _start_method=method)
    assert result.state == "failed"
    assert not {pid for pid in live_workers() - before if pid in set(result.values())}


def test_a_worker_ends_although_its_task_has_left_a_thread_behind(method):
    started = time.monotonic()
    pid = run(Task("t", kill_tasks.leave_a_thread_behind), _start_method=method)["t"]
    assert time.monotonic() - started < SOON
    assert not is_alive(pid)


def test_what_a_task_prints_is_not_lost_with_its_process(script, method):
    """The standard output is a pipe, so Python holds it back until the end of the process."""
    head = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    running = script(
        head
        + f"""
import os
del os.environ["PYTHONUNBUFFERED"]
import kill_tasks
from flowkit import DAG, Task
for n in range(10):
    tasks = [Task(f"t{{m}}", kill_tasks.print_much) for m in range(3)]
    DAG("printing", tasks=tasks).run({{"n": n}}, executor="process", max_workers=2, _start_method={method!r})
"""
    ).finish()
    assert running.returncode == 0, running.err
    assert Counter(running.out.splitlines()) == {f"line {n} from a task": 3 for n in range(10)}


# ---------------------------------------------------------------- several kinds in one run


def test_kinds_of_workers_mix_in_one_graph():
    """thread ─► process ─► coroutine ─► process ─► thread"""
    import asyncio

    async def coroutine(value):
        await asyncio.sleep(0)
        return value + 1

    first = Task("a_thread", lambda: 1)
    last = Task("e_thread", lambda value: value)
    (
        first
        >> Task("b_process", kill_tasks.plus_one, executor="process")
        >> Task("c_async", coroutine)
        >> Task("d_process", kill_tasks.plus_one, executor="process")
        >> last
    )
    result = DAG("mixed", tasks=[last]).run(max_workers={"thread": 2, "process": 1})
    assert result["e_thread"] == 4
    workers = {name: run.worker for name, run in result.tasks.items()}
    assert workers["b_process"] == workers["d_process"] == "process-1"
    assert workers["c_async"] == "loop"
    assert workers["a_thread"].startswith("thread-")


def test_max_workers_by_kind_bounds_each_kind(tmp_path):
    """Six tasks on threads, two at once, and six in one process."""
    path = str(tmp_path / "spans")
    tasks = [Task(f"thread_{n}", kill_tasks.span) for n in range(6)]
    tasks += [Task(f"process_{n}", kill_tasks.span, executor="process") for n in range(6)]
    result = run(*tasks, inputs={"path": path}, executor="thread", max_workers={"thread": 2, "process": 1})
    spans = defaultdict(list)
    pids = defaultdict(set)
    for name, pid, start, end in lines(path):
        kind = name.split("_")[0]
        spans[kind].append((float(start), float(end)))
        pids[kind].add(int(pid))
    assert (most_at_once(spans["process"]), len(pids["process"])) == (1, 1)
    assert most_at_once(spans["thread"]) <= 2
    assert pids["thread"] == {os.getpid()}
    assert {run.worker for name, run in result.tasks.items() if name.startswith("process")} == {"process-1"}


def test_the_worker_of_a_task_run_is_the_process_that_ran_it():
    result = run(*[Task(f"t{n}", kill_tasks.pid) for n in range(20)], max_workers=2)
    pids = defaultdict(set)
    for name, task_run in result.tasks.items():
        pids[task_run.worker].add(result[name])
    assert pids.keys() <= {"process-1", "process-2"}
    assert all(len(of_one) == 1 for of_one in pids.values())


def test_observers_see_one_sequence_with_the_start_of_each_attempt_before_its_end(method):
    """first ─► 300 quick ones, in batches ─► join, which is retried; two observers see the same"""
    first, join = Task("first", kill_tasks.pid), Task("join", kill_tasks.wide)
    first >> [Task(f"wide_{n}", kill_tasks.pid) for n in range(300)] >> join
    seen, same = [], []
    DAG("watched", tasks=[join]).run(
        executor="process", max_workers=2, observers=[seen.append, same.append], _start_method=method
    )
    assert seen == same
    assert (type(seen[0]), type(seen[-1])) == (RunStarted, RunFinished)
    begun, ended = {}, {}
    for n, event in enumerate(seen):
        if isinstance(event, AttemptStarted):
            assert begun.setdefault(event.task_name, n) == n
        elif isinstance(event, TaskEvent):
            assert ended.setdefault(event.task_name, n) == n
    assert begun.keys() == ended.keys() == {"first", "join", *[f"wide_{n}" for n in range(300)]}
    assert all(begun[name] < ended[name] for name in begun)
    assert all(ended["first"] < begun[f"wide_{n}"] and ended[f"wide_{n}"] < begun["join"] for n in range(300))
    assert [event.time for event in seen] == sorted(event.time for event in seen)


# ---------------------------------------------------------------- timeouts and retries


def test_a_timeout_kills_the_process_and_the_next_task_gets_another_one(method, tmp_path):
    """One worker: slow is killed, beside runs all the same, in another process."""
    path = str(tmp_path / "pids")
    slow = Task("slow", kill_tasks.note_and_hold, timeout=0.2)
    started = time.monotonic()
    result = run(
        slow, Task("beside", kill_tasks.pid),
        inputs={"path": path}, max_workers=1, fail_fast=False, raise_on_failure=False, _start_method=method,
    )  # fmt: skip
    assert time.monotonic() - started < 0.2 + SOON
    task_run = result.tasks["slow"]
    assert (task_run.state, type(task_run.error), task_run.attempts) == ("failed", TaskTimeoutError, 1)
    assert 0.2 <= task_run.duration < 1.2
    ((pid,),) = lines(path)
    assert result["beside"] != int(pid)
    assert not is_alive(int(pid))
    assert result.abandoned_threads == 0


def test_a_task_that_ignores_signals_is_killed_at_its_timeout_all_the_same():
    result = run(Task("deaf", kill_tasks.be_deaf, timeout=0.2), raise_on_failure=False)
    assert type(result.tasks["deaf"].error) is TaskTimeoutError
    assert result.tasks["deaf"].duration < 1.2


def test_a_task_that_never_lets_go_of_the_interpreter_is_killed_at_its_timeout():
    result = run(Task("busy", kill_tasks.be_busy, timeout=0.2), raise_on_failure=False)
    assert type(result.tasks["busy"].error) is TaskTimeoutError
    assert result.tasks["busy"].duration < 1.2


def test_many_timeouts_are_no_reason_to_give_up(tmp_path):
    """A thread is abandoned at each, of which eight are too many; a process is not."""
    slow = Task("slow", kill_tasks.note_and_hold, timeout=0.02, retries=11, delay=0)
    result = run(slow, inputs={"path": str(tmp_path / "pids")}, max_workers=1, raise_on_failure=False)
    assert (result.tasks["slow"].attempts, result.abandoned_threads) == (12, 0)
    assert "took longer" in str(result.tasks["slow"].error)
    pids = [int(pid) for (pid,) in lines(tmp_path / "pids")]
    assert len(set(pids)) == len(pids) <= 12
    assert not any(is_alive(pid) for pid in pids)


def test_the_attempt_after_a_timeout_has_a_whole_one_of_its_own():
    """The first attempt takes a minute, the second none."""
    slow = Task("slow", kill_tasks.hold_at_first, timeout=0.2, retries=1, delay=0)
    seen = []
    result = run(slow, observers=[seen.append])
    assert result == {"slow": 2}
    assert [(type(event), event.attempt) for event in seen if isinstance(event, (AttemptStarted, AttemptFailed))] == [
        (AttemptStarted, 1), (AttemptFailed, 1), (AttemptStarted, 2),
    ]  # fmt: skip


def module_that_in_a_worker(does, tmp_path, monkeypatch):
    """Return the task of a module that *does* something when a worker imports it."""
    code = f"""
import logging, multiprocessing, os, time
from flowkit import task
if multiprocessing.parent_process() is not None:
    {does}
@task(timeout=0.3)
def quick():
    return 1
"""
    (tmp_path / "imported_late.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_late", raising=False)
    return importlib.import_module("imported_late").quick


def test_an_import_is_no_part_of_the_attempt(tmp_path, monkeypatch):
    quick = module_that_in_a_worker("time.sleep(0.6)", tmp_path, monkeypatch)
    assert run(quick) == {"quick": 1}


def test_what_a_module_logs_while_it_is_imported_is_not_lost(tmp_path, monkeypatch, caplog):
    quick = module_that_in_a_worker("logging.getLogger('flowkit').warning('imported')", tmp_path, monkeypatch)
    assert run(quick) == {"quick": 1}
    assert caplog.messages == ["imported"]


def test_a_module_that_cannot_be_imported_fails_the_task_that_needs_it(tmp_path, monkeypatch):
    quick = module_that_in_a_worker("1 / 0", tmp_path, monkeypatch)
    result = run(quick, Task("pid", kill_tasks.pid), max_workers=1, fail_fast=False, raise_on_failure=False)
    assert (result.tasks["quick"].state, result.tasks["pid"].state) == ("failed", "succeeded")
    assert "ZeroDivisionError" in str(result.tasks["quick"].error)


@pytest.mark.parametrize("does", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_module_that_kills_its_process_fails_the_task_that_needs_it(does, tmp_path, monkeypatch):
    quick = module_that_in_a_worker(does, tmp_path, monkeypatch)
    result = run(quick, Task("pid", kill_tasks.pid), max_workers=1, fail_fast=False, raise_on_failure=False)
    assert (result.tasks["quick"].state, result.tasks["pid"].state) == ("failed", "succeeded")
    assert isinstance(result.tasks["quick"].error, WorkerDiedError)


def test_a_run_can_be_cancelled_while_a_module_is_imported(tmp_path, monkeypatch):
    mark = tmp_path / "importing"
    quick = module_that_in_a_worker(f"open({str(mark)!r}, 'w').close(); time.sleep(60)", tmp_path, monkeypatch)
    handle = DAG("slow", tasks=[quick]).start(executor="process")
    while not mark.exists():
        time.sleep(0.001)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        handle.result(timeout=SOON)
    assert handle.snapshot().tasks["quick"].state == "cancelled"


def test_a_timeout_counts_from_the_start_of_the_attempt_not_of_the_process(monkeypatch):
    """The process takes longer to start than the timeout of the task is."""
    real = processes.ProcessPool._start_process

    def slowly(*args):
        real(*args)
        time.sleep(0.3)

    monkeypatch.setattr(processes.ProcessPool, "_start_process", slowly)
    assert run(Task("quick", kill_tasks.pid, timeout=0.2)).ok


def test_a_condition_does_not_count_for_the_timeout(tmp_path, gate):
    """The condition takes longer than the timeout of the task."""
    patient = Task("patient", kill_tasks.about_context, when=kill_tasks.takes_its_time, timeout=0.1)
    result = run(patient)
    assert result["patient"]["attempt"] == 1


def test_the_timeout_of_the_run_kills_the_processes(method, tmp_path):
    path = str(tmp_path / "pids")
    started = time.monotonic()
    with pytest.raises(RunTimeoutError) as caught:
        run(
            *[Task(f"t{n}", kill_tasks.note_and_hold) for n in range(4)],
            inputs={"path": path}, max_workers=2, timeout=0.5, _start_method=method,
        )  # fmt: skip
    assert time.monotonic() - started < 0.5 + SOON
    assert {task_run.state for task_run in caught.value.result.tasks.values()} == {"cancelled"}
    assert not any(is_alive(int(pid)) for (pid,) in lines(path))


def test_a_retry_after_an_error_has_the_same_process():
    """An error is no reason to start another one."""
    result = run(Task("flaky", kill_tasks.pid_at_the_third, retries=2, delay=0), max_workers=1)
    pids = result["flaky"]
    assert len(pids) == 3
    assert len(set(pids)) == 1


# ---------------------------------------------------------------- cancel and fail-fast


def test_cancel_kills_what_runs_and_keeps_what_has_run(method, tmp_path):
    """quick ─► hold, twice ─► below"""
    path = str(tmp_path / "pids")
    quick, below = Task("quick", kill_tasks.pid), Task("below", kill_tasks.pid)
    quick >> [Task(f"hold_{n}", kill_tasks.note_and_hold_after) for n in (1, 2)] >> below
    handle = DAG("etl", tasks=[below]).start({"path": path}, executor="process", max_workers=2, _start_method=method)
    pids = {int(pid) for (pid,) in wait_for_lines(path, 2)}
    started = time.monotonic()
    handle.cancel("deployment")
    with pytest.raises(RunCancelledError, match="deployment") as caught:
        handle.result(timeout=SOON)
    assert time.monotonic() - started < 1.5
    result = caught.value.result
    assert {name: task_run.state for name, task_run in result.tasks.items()} == {
        "quick": "succeeded", "hold_1": "cancelled", "hold_2": "cancelled", "below": "cancelled",
    }  # fmt: skip
    assert result.abandoned_threads == 0
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("pause", [0, 0.005, 0.02, 0.04, 0.06])
def test_cancel_while_workers_start_ends_the_run(pause, method):
    handle = DAG("etl", tasks=[Task(f"t{n}", kill_tasks.hold_quietly) for n in range(4)]).start(
        executor="process", max_workers=2, _start_method=method
    )
    time.sleep(pause)  # the instant is what is tried
    handle.cancel("enough")
    with pytest.raises(RunCancelledError) as caught:
        handle.result(timeout=SOON)
    assert {task_run.state for task_run in caught.value.result.tasks.values()} == {"cancelled"}


def test_a_failure_asks_running_processes_to_stop_and_waits_for_them(method, tmp_path, gate):
    """bad fails when asked and asked_too run; neither would end by itself."""
    path = str(tmp_path / "names")
    asked = [Task(f"asked_{n}", kill_tasks.is_asked) for n in range(2)]
    bad = Task("bad", kill_tasks.fail_at, executor="thread")
    handle = DAG("etl", tasks=[*asked, bad]).start(
        {"path": path, "gate": gate.path},
        executor="process", max_workers=2, raise_on_failure=False, _start_method=method,
    )  # fmt: skip
    wait_for_lines(path, 2)
    gate.open()
    result = handle.result(timeout=3 * SOON)
    assert result.state == "failed"
    assert result["asked_0"] is result["asked_1"] is True


def test_a_task_in_a_process_that_heeds_the_question_is_cancelled(tmp_path, gate):
    path = str(tmp_path / "names")
    handle = DAG("etl", tasks=[Task("heeding", kill_tasks.check_forever), Task("bad", kill_tasks.fail_at)]).start(
        {"path": path, "gate": gate.path}, executor="process", max_workers=2, raise_on_failure=False
    )
    wait_for_lines(path, 1)
    gate.open()
    result = handle.result(timeout=3 * SOON)
    assert {name: task_run.state for name, task_run in result.tasks.items()} == {
        "heeding": "cancelled",
        "bad": "failed",
    }


def test_a_task_that_a_failure_may_start_is_not_asked_to_stop(method, tmp_path, gate, second):
    """before ─► teardown, which a failure does not stop; plain, which it does; both run when bad fails."""
    path = str(tmp_path / "names")
    before = Task("before", kill_tasks.pid)
    teardown = Task("teardown", kill_tasks.is_asked_until, trigger="all_done").after(before)
    plain = Task("plain", kill_tasks.is_asked)
    bad = Task("bad", kill_tasks.fail_at, executor="thread")
    asked = threading.Event()
    handle = DAG("etl", tasks=[teardown, plain, bad]).start(
        {"path": path, "gate": gate.path, "second": second.path},
        executor="process", max_workers=2, raise_on_failure=False, _start_method=method,
        observers=[lambda event: isinstance(event, TaskEvent) and event.task_name == "plain" and asked.set()],
    )  # fmt: skip
    wait_for_lines(path, 2)
    gate.open()
    assert asked.wait(3 * SOON)
    second.open()
    result = handle.result(timeout=3 * SOON)
    assert (result["plain"], result["teardown"]) == (True, False)


@pytest.mark.parametrize("is_watched", [False, True], ids=["alone", "watched"])
def test_a_task_whose_process_still_starts_when_another_fails_does_not_start(is_watched, method, tmp_path):
    """bad fails on a thread while the process for late starts; late has not begun."""
    path = str(tmp_path / "late")
    late = Task("late", partial(kill_tasks.note_late, path))
    started = threading.Event()
    real = processes.ProcessPool._start_process

    class Slow(processes.ProcessPool):
        def _start_process(self, worker, i):
            started.set()
            assert failed.wait(SOON)
            return real(self, worker, i)

    failed = threading.Event()

    def fail():
        assert started.wait(SOON)
        raise ValueError("no")

    below = Task("below", failed.set, trigger="one_failed", executor="thread")
    bad = Task("bad", fail, executor="thread")
    bad >> below
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "ProcessPool", Slow)
        result = run(
            late, below, executor="process", raise_on_failure=False, _start_method=method,
            observers=[lambda event: None] if is_watched else [],
        )  # fmt: skip
    assert result.tasks["late"].state == "cancelled"
    assert not os.path.exists(path)


def test_a_task_whose_condition_is_judged_when_another_fails_does_not_start(method, tmp_path, gate):
    """The condition of late says yes after bad has failed."""
    reached, path = str(tmp_path / "reached"), str(tmp_path / "late")
    late = Task("late", kill_tasks.note_late, when=kill_tasks.wait_and_agree)
    failed, order = threading.Event(), []

    def fail(gate):
        wait_for_lines(reached, 1)
        raise ValueError("no")

    def watch(event):
        order.append(event)
        if isinstance(event, TaskFailed):
            failed.set()

    handle = DAG("etl", tasks=[late, Task("bad", fail, executor="thread")]).start(
        {"path": path, "reached": reached, "gate": gate.path},
        executor="process", raise_on_failure=False, observers=[watch], _start_method=method,
    )  # fmt: skip
    assert failed.wait(SOON)
    time.sleep(0.1)  # what a failure has to say to a process is there by now
    gate.open()
    result = handle.result(timeout=3 * SOON)
    assert not os.path.exists(path)
    assert result.tasks["late"].state == "cancelled"
    assert not [event for event in order if isinstance(event, AttemptStarted) and event.task_name == "late"]


# ---------------------------------------------------------------- batches


class Frames:
    """Counts the frames that go to processes, and the calls in them."""

    def __init__(self, monkeypatch):
        self.sizes = []
        real = processes.ProcessPool._attempt

        def counting(pool, worker, ids):
            self.sizes.append((worker.name, list(ids)))
            return real(pool, worker, ids)

        monkeypatch.setattr(processes.ProcessPool, "_attempt", counting)


def wide(func, count, **options):
    """first ─► *count* tasks of *func*"""
    first = Task("first", kill_tasks.path_of)
    first >> [Task(f"t{n}", func, **options) for n in range(count)]
    return first.downstream


def test_small_tasks_travel_together(monkeypatch, tmp_path):
    frames = Frames(monkeypatch)
    tasks = wide(kill_tasks.dot, 1000)
    run(*tasks, inputs={"file": str(tmp_path / "dots")}, max_workers=2)
    assert sum(len(ids) for _, ids in frames.sizes) == 1001
    print(len(frames.sizes), "frames for 1001 tasks")
    assert len(frames.sizes) < 500
    assert max(len(ids) for _, ids in frames.sizes) <= 64
    assert Counter(name for name, _ in lines(tmp_path / "dots")) == {task.name: 1 for task in tasks}


def test_the_last_tasks_are_spread_over_all_workers(monkeypatch, tmp_path):
    """No worker takes more than its share of what is left."""
    frames = Frames(monkeypatch)
    result = run(*wide(kill_tasks.dot, 1000), inputs={"file": str(tmp_path / "dots")}, max_workers=3)
    assert {task_run.worker for task_run in result.tasks.values()} == {"process-1", "process-2", "process-3"}
    assert all(len(ids) < 20 for _, ids in frames.sizes[-3:])


@pytest.mark.parametrize(
    "options", [{"retries": 1}, {"timeout": 60}, {"when": kill_tasks.always}, {"uses": "few"}], ids=repr
)
def test_tasks_with_a_condition_a_timeout_retries_or_a_limit_travel_alone(options, monkeypatch, tmp_path):
    frames = Frames(monkeypatch)
    tasks = wide(kill_tasks.dot, 60, **options)
    run(*tasks, inputs={"file": str(tmp_path / "dots")}, max_workers=1, limits={"few": 50})
    assert {len(ids) for _, ids in frames.sizes} == {1}


def test_slow_tasks_travel_alone_as_soon_as_they_are_known_to_be_slow(monkeypatch, tmp_path):
    frames = Frames(monkeypatch)
    run(*wide(kill_tasks.nap, 60), inputs={"file": str(tmp_path / "naps")}, max_workers=2)
    assert {len(ids) for _, ids in frames.sizes} == {1}


def test_results_of_a_batch_arrive_while_the_batch_goes_on(tmp_path):
    """60 tasks on one worker; the 40th call takes until what came before it has been told."""
    path, told, slow = str(tmp_path / "slow"), set(), []

    def watch(event):
        if isinstance(event, TaskSucceeded):
            told.add(event.task_name)

    tasks = wide(kill_tasks.nth, 60)
    handle = DAG("batches", tasks=tasks).start({"file": path}, executor="process", max_workers=1, observers=[watch])
    ((_, name),) = wait_for_lines(path, 1)
    order = [task.name for task in tasks]
    deadline = time.monotonic() + SOON
    while not {"first", *order[: order.index(name)]} <= told and time.monotonic() < deadline:
        time.sleep(0.001)
    slow = set(order[: order.index(name)]) - told
    Path(f"{path}.go").touch()
    assert handle.result(timeout=3 * SOON).ok
    assert not slow, f"{len(slow)} results were held back while the next task took its time"


def test_a_slow_task_holds_up_no_more_than_its_own_batch(tmp_path):
    """60 tasks on two workers; in one of them the 40th call takes its time, and the other is idle."""
    path, told = str(tmp_path / "slow"), set()

    def watch(event):
        if isinstance(event, TaskSucceeded):
            told.add(event.task_name)

    tasks = wide(kill_tasks.nth, 79)
    handle = DAG("batches", tasks=tasks).start({"file": path}, executor="process", max_workers=2, observers=[watch])
    deadline = time.monotonic() + 2 * SOON
    while not lines(path) and not handle.done() and time.monotonic() < deadline:
        time.sleep(0.001)
    slow = {name for word, *name in lines(path) for name in name if word == "slow"}
    deadline = time.monotonic() + 1
    while len(told) < 80 - len(slow) and time.monotonic() < deadline:
        time.sleep(0.001)
    stuck = {"first", *[task.name for task in tasks]} - told - slow
    Path(f"{path}.go").touch()
    assert handle.result(timeout=3 * SOON).ok
    print(f"{len(stuck)} of 79 stood behind the slow one")
    assert len(stuck) <= 64


def test_the_slow_task_of_a_batch_is_asked_to_stop_like_any_other(tmp_path):
    """60 tasks on one worker; the 40th call takes until it is asked to stop, because bad has failed."""
    path = str(tmp_path / "slow")

    def fail():
        wait_for_lines(path, 1)
        raise ValueError("no")

    tasks = wide(kill_tasks.nth, 60)
    result = run(
        *tasks, Task("bad", fail, executor="thread"),
        inputs={"file": path}, max_workers={"process": 1, "thread": 1}, raise_on_failure=False,
    )  # fmt: skip
    assert result.tasks["bad"].state == "failed"
    assert lines(path)[1] == ["asked"]


def test_the_rest_of_a_batch_does_not_hold_up_a_run_that_has_failed(tmp_path):
    """60 tasks on one worker; the 40th call fails, and the 41st waits to be asked to stop, if it starts at all."""
    path = str(tmp_path / "asked")
    result = run(*wide(kill_tasks.nth_fails, 60), inputs={"file": path}, max_workers=1, raise_on_failure=False)
    assert Counter(task_run.state for task_run in result.tasks.values())["failed"] == 1
    assert ["not", "asked"] not in lines(path)


def test_a_failure_in_a_batch_is_that_of_its_task_alone(tmp_path):
    result = run(
        *wide(kill_tasks.nth_fails_quickly, 60), inputs={"file": ""}, max_workers=1, raise_on_failure=False,
        fail_fast=False,
    )  # fmt: skip
    assert Counter(task_run.state for task_run in result.tasks.values()) == {"succeeded": 60, "failed": 1}


@pytest.mark.parametrize("call", [50, 51, 52, 60])
def test_a_process_that_is_killed_while_a_batch_is_put_together_is_replaced_for_all_of_it(call, monkeypatch, tmp_path):
    """What the new process has not been told yet must be told to it, also for calls that were ready for the old one."""
    calls, real = [], processes.encode_arguments

    def kill_at_call(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            for process in list(processes._live):
                process.kill()
                multiprocessing.connection.wait([process.sentinel], SOON)
        return real(*arguments)

    monkeypatch.setattr(processes, "encode_arguments", kill_at_call)
    path = str(tmp_path / "dots")
    tasks = wide(kill_tasks.dot, 200)
    result = run(*tasks, inputs={"file": path}, max_workers=1, fail_fast=False, raise_on_failure=False)
    assert result.ok, {str(error) for error in result.errors.values()}
    assert Counter(name for name, _ in lines(path)) == {task.name: 1 for task in tasks}


# ---------------------------------------------------------------- tasks that damage their own process


def test_a_task_that_closes_its_standard_files_returns(method):
    assert run(Task("t", kill_tasks.close_standard_files), _start_method=method) == {"t": "closed"}


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_task_that_closes_all_files_is_a_death_of_its_worker(seconds, method):
    """Those to its parent as well. beside, on the same worker, gets another process."""
    started = time.monotonic()
    result = run(
        Task("closing", kill_tasks.close_everything), Task("beside", kill_tasks.pid),
        inputs={"seconds": seconds}, max_workers=1, fail_fast=False, raise_on_failure=False, _start_method=method,
    )  # fmt: skip
    assert time.monotonic() - started < SOON
    assert type(result.tasks["closing"].error) is WorkerDiedError
    assert result.tasks["beside"].state == "succeeded"


def test_a_task_that_closes_all_files_does_not_hold_up_other_workers(method, tmp_path):
    """closing takes a minute more; beside and its two followers start processes of their own meanwhile."""
    tasks = [Task(f"beside_{n}", kill_tasks.exit_with, retries=0) for n in range(2)]
    started = time.monotonic()
    result = run(
        Task("closing", kill_tasks.close_everything), *tasks, Task("last", kill_tasks.pid),
        inputs={"seconds": 60, "code": 3}, max_workers=2, fail_fast=False, raise_on_failure=False,
        _start_method=method,
    )  # fmt: skip
    assert time.monotonic() - started < SOON
    assert result.tasks["last"].state == "succeeded"


def test_a_task_that_opens_other_files_where_ours_were_is_a_death_of_its_worker(method, tmp_path):
    started = time.monotonic()
    result = run(
        Task("reusing", kill_tasks.reuse_everything),
        inputs={"path": str(tmp_path / "other")}, raise_on_failure=False, _start_method=method,
    )  # fmt: skip
    assert time.monotonic() - started < SOON
    assert type(result.tasks["reusing"].error) is WorkerDiedError


def test_a_task_that_dies_and_leaves_a_child_with_all_its_files_is_noticed_at_once(method, tmp_path):
    """The child holds the pipes open for 20 s."""
    path = str(tmp_path / "child")
    started = time.monotonic()
    result = run(
        Task("forking", kill_tasks.fork_and_die), Task("beside", kill_tasks.pid),
        inputs={"path": path}, max_workers=1, fail_fast=False, raise_on_failure=False, _start_method=method,
    )  # fmt: skip
    seconds = time.monotonic() - started
    for (child,) in lines(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    assert seconds < SOON
    error = result.tasks["forking"].error
    assert (type(error), error.exitcode) == (WorkerDiedError, 3)
    assert result.tasks["beside"].state == "succeeded"


def test_a_task_that_returns_twice_by_a_fork_does_not_hang_the_run(method, tmp_path):
    """Both copies would answer, and both would take the next call."""
    path = str(tmp_path / "child")
    tasks = [Task(f"fork_{n}", kill_tasks.fork_and_both_return) for n in range(5)]
    tasks += [Task(f"t{n}", kill_tasks.pid) for n in range(20)]
    handle = DAG("forks", tasks=tasks).start(
        {"path": path}, executor="process", max_workers=1, fail_fast=False, raise_on_failure=False,
        _start_method=method,
    )  # fmt: skip
    try:
        result = handle.result(timeout=SOON)
    finally:
        for (child,) in lines(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        handle.cancel("the test is over")
    assert {result[f"fork_{n}"] for n in range(5)} == {"parent"}
    assert len({result[f"t{n}"] for n in range(20)}) == 1


# ---------------------------------------------------------------- what tasks can do in there


def test_the_context_is_found_in_a_process(method):
    result = run(Task("asking", kill_tasks.about_context), _start_method=method)
    found = result["asking"]
    assert (found["name"], found["run"], found["attempt"]) == ("asking", result.run_id, 1)
    assert found["pid"] != os.getpid()


def test_log_records_of_a_process_reach_the_handlers_here(method, caplog):
    with caplog.at_level(logging.INFO, "flowkit"):
        result = run(Task("logging", kill_tasks.log), _start_method=method)
    records = {record.getMessage(): record for record in caplog.records if record.name == "flowkit.task"}
    assert records.keys() == {"from a process", "plainly"}
    record = records["from a process"]
    assert (record.task_name, record.run_id, record.attempt) == ("logging", result.run_id, 1)
    assert (record.process, record.levelname) == (result["logging"], "WARNING")


def test_cleanup_handlers_of_a_process_run_here_last_added_first(method, tmp_path):
    path = str(tmp_path / "cleaned")
    result = run(
        Task("t", kill_tasks.add_cleanup_and_fail), inputs={"path": path}, raise_on_failure=False, _start_method=method
    )
    assert result.state == "failed"
    assert lines(path) == [["last", str(os.getpid())], ["first", str(os.getpid())]]


def test_a_cleanup_handler_counts_although_its_process_is_killed_afterwards(method, tmp_path):
    path = str(tmp_path / "cleaned")
    result = run(
        Task("t", kill_tasks.add_cleanup_and_die), inputs={"path": path}, raise_on_failure=False, _start_method=method
    )
    assert type(result.tasks["t"].error) is WorkerDiedError
    assert lines(path) == [["cleaned", str(os.getpid())]]


def test_a_run_inside_of_a_process_has_processes_of_its_own(method):
    worker, inner = run(Task("outer", kill_tasks.inner_pids), _start_method=method)["outer"]
    assert len({os.getpid(), worker, *inner}) == 2 + len(inner)
    assert not any(is_alive(pid) for pid in (worker, *inner))


def test_runs_nest_five_deep_with_one_worker_each(method):
    pids = run(Task("outer", kill_tasks.dive), inputs={"depth": 5, "method": method}, _start_method=method)["outer"]
    assert len(set(pids)) == 6


def test_a_run_in_a_daemon_process_works_or_says_why_not(method):
    """multiprocessing gives a daemon no processes of its own."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    daemon = context.Process(target=kill_tasks.run_in_a_daemon, args=(theirs,), daemon=True)
    daemon.start()
    theirs.close()
    try:
        assert ours.poll(2 * SOON), "it hangs"
        word, text = ours.recv()
    finally:
        daemon.kill()
        daemon.join()
        daemon.close()
        ours.close()
    print(word, text)
    assert word == "value" or "daemon" in text


# ---------------------------------------------------------------- when processes cannot be started


@pytest.mark.parametrize("retries", [0, 2])
def test_a_process_that_cannot_be_started_fails_its_task_and_does_not_hang(retries, monkeypatch):
    """As if there were no file descriptors left."""

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing.get_context("forkserver").Process, "start", refuse)
    handle = DAG("etl", tasks=[Task("t", kill_tasks.pid, retries=retries, delay=0)]).start(
        executor="process", raise_on_failure=False
    )
    try:
        result = handle.result(timeout=SOON)
    finally:
        monkeypatch.undo()
        handle.cancel("the test is over")
    assert result.tasks["t"].state == "failed"
    assert "Too many open files" in str(result.tasks["t"].error)


# ---------------------------------------------------------------- many runs


def test_a_run_from_another_thread_than_the_main_one(method):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run(Task("t", kill_tasks.pid), _start_method=method)), name="flowkit-test"
    )
    thread.start()
    thread.join(2 * SOON)
    assert results[0]["t"] != os.getpid()


def test_twenty_threads_run_one_dag_at_once(tmp_path):
    """first ─► 10 ─► join, twice in each thread"""
    first, join = Task("first", kill_tasks.path_of), Task("join", kill_tasks.wide)
    first >> [Task(f"t{n}", kill_tasks.dot) for n in range(10)] >> join
    dag = DAG("shared", tasks=[join])
    results, errors = [], []

    def work(number):
        try:
            for n in range(2):
                path = str(tmp_path / f"{number}-{n}")
                results.append((path, dag.run({"file": path}, executor="process", max_workers=2)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,), name=f"flowkit-test-{n}") for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert not errors
    assert len(results) == 40
    assert len({result.run_id for _, result in results}) == 40
    for path, result in results:
        assert dict(result) == {"first": path, **{f"t{n}": f"t{n}" for n in range(10)}, "join": 10}
        assert Counter(name for name, _ in lines(path)) == {f"t{n}": 1 for n in range(10)}


@needs_proc
@pytest.mark.parametrize("rounds", [30, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_runs_leak_nothing(rounds, method, tmp_path):
    """Runs that succeed, fail, time out, are cancelled, and whose worker dies."""
    path = str(tmp_path / "dots")
    good = DAG("good", tasks=wide(kill_tasks.dot, 20))
    bad = DAG("bad", tasks=[Task("bad", kill_tasks.fail), Task("t", kill_tasks.pid)])
    late = DAG("late", tasks=[Task("late", kill_tasks.hold_quietly, timeout=0.01)])
    dead = DAG("dead", tasks=[Task("dead", kill_tasks.die)])
    options = {"executor": "process", "max_workers": 2, "raise_on_failure": False, "_start_method": method}

    def play(n):
        dag = (good, bad, late, dead)[n % 4]
        handle = dag.start({"file": path} if dag is good else None, **options)
        if n % 5 == 4:
            handle.cancel("round")
        with contextlib.suppress(RunCancelledError):
            handle.result(timeout=2 * SOON)

    for n in range(10):
        play(n)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), live_workers(), memory()
    for n in range(rounds):
        play(n)
    gc.collect()
    deadline = time.monotonic() + SOON
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert threading.active_count() == before[1]
    assert live_workers() <= before[2]
    assert not processes._live
    grown = memory() - before[3]
    print(f"{grown / 1e6:.1f} MB more after {rounds} runs")
    assert grown < 5e6


def memory():
    """Return the resident set of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_task_execution_error_from_a_process_has_its_cause(method):
    with pytest.raises(TaskExecutionError) as caught:
        run(Task("bad", kill_tasks.fail), _start_method=method)
    assert type(caught.value.__cause__) is ValueError
