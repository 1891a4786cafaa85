"""Runs that keep their results, and are killed, interrupted or refused a write: what was acknowledged is never lost.

A task is *acknowledged* once an observer was told that it succeeded. Each test of a kill looks from outside: what was
acknowledged is in the store, is restored and not run again, and the results are those of a run that nothing disturbs.
"""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import state_tasks
from state_tasks import (
    GATE,
    INTERRUPTED,
    LOCKED,
    REFUSED,
    STARTS,
    is_kept,
    make_dag,
    open_store,
    read_lines,
    text_of,
)

import flowkit
from flowkit import (
    DAG,
    AttemptStarted,
    RunCancelledError,
    RunTimeoutError,
    StateWriteError,
    Task,
    TaskExecutionError,
    TaskFailed,
    TaskSucceeded,
    TaskTimeoutError,
    chain,
)
from flowkit.state import StateManager
from flowkit.state.disk import Disk

pytestmark = pytest.mark.skipif(not hasattr(os, "waitid"), reason="processes are killed as on POSIX")

STORES = ["json", "sqlite"]
EXECUTORS = ["sequential", "thread", "process", "async"]
FOLDERS = [str(Path(flowkit.__file__).parent.parent), str(Path(__file__).parent)]
PROMPTLY = 2.0
"""Seconds from a kill to the next run's first task, or from a Ctrl-C to the end: the promises are at once and 0.5."""


@pytest.fixture
def rng():
    """A source of chance whose seed is shown when the test fails."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(params=STORES)
def store(request):
    return request.param


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


@pytest.fixture
def opens(store, tmp_path):
    """Return a function that opens the store of the test, as a new process would; all are closed in the end."""
    with ExitStack() as stack:

        def opens():
            state = open_store({"store": store, "path": str(tmp_path / "state")})
            if store == "sqlite":
                stack.enter_context(state)
            return state

        yield opens


# ---------------------------------------------------------------- processes


class Server:
    """Runs one job at a time, each in a process of its own that may be killed; see ``state_tasks.serve``."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import state_tasks; state_tasks.serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS)},
        )  # fmt: skip
        self._pid = 0
        self._has_ended = True

    def start(self, job):
        """Start *job* once nothing is left of the one before; return its process, to which signals can be sent."""
        if self._pid and not self._has_ended:  # a test has failed
            os.kill(self._pid, signal.SIGKILL)
            self.read_until("ended")
        self._write(json.dumps(job))
        self._has_ended = False
        self._pid = int(self.read_until("pid").split()[1])
        return self._pid

    def read_until(self, *words):
        """Return the next line that starts with one of *words*, or says how the job ended."""
        while True:
            line = self._process.stdout.readline()
            assert line, "the server has died"
            self._has_ended = line.startswith("ended")
            if self._has_ended or line.startswith(words):
                return line.strip()

    def close(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _write(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def rival():
    """A server for a second process at the same time."""
    running = Server()
    yield running
    running.close()


class History:
    """The runs of one DAG on one store, each of which is a process, and most of which are killed.

    Args:
        server: Runs them.
        folder: For the store, and what the processes write down.
        job: What they do: "store", "shape", "executor", and what the shape needs.

    Attributes:
        acked: The names of the tasks that were acknowledged, whichever run it was, and are to be kept.
        started: The names of the tasks that the latest run called.
        errors: What the latest run wrote to its stderr.
        runs: How many runs there were.
        has_ended: Whether a run came to its end, with the results of an undisturbed run.
        seconds: How long the latest run took, from its start, and from its first acknowledgement or the signal.
    """

    def __init__(self, server, folder, **job):
        folder.mkdir(parents=True)
        self._server = server
        self._folder = folder
        self.path = str(folder / "state")
        self.gate = folder / "gate"
        self.job = {"path": self.path, "gate": str(self.gate), **job}
        self.dag = make_dag(self.job)
        self.acked = set()
        self.runs = 0
        self.has_ended = False

    def next_job(self):
        """Return the job of the next run, with files of its own to write to."""
        self.runs += 1
        files = {name: str(self._folder / f"{name}.{self.runs}") for name in ("acks", "starts", "results", "errors")}
        return {**self.job, **files}

    def run(self, word="ended", delay=0.0, number=signal.SIGKILL):
        """Start a run, send it the signal *number* *delay* seconds after it said *word*, and check what it did.

        Returns:
            How it ended: its exit code, or minus the number of a signal.
        """
        job = self.next_job()
        pid = self._server.start(job)
        line = self._server.read_until("ready")
        ready = since = time.monotonic()
        if word != "ready" and not line.startswith("ended"):
            line = self._server.read_until("first" if word == "ended" else word)
            since = time.monotonic()
        if word != "ended" and not line.startswith("ended"):
            time.sleep(delay)  # the instant is what is tried; nothing is waited for
            os.kill(pid, number)
            since = time.monotonic()
        if not line.startswith("ended"):
            line = self._server.read_until("ended")
        self.seconds = time.monotonic() - ready, time.monotonic() - since
        return self.check_run(job, int(line.split()[1]))

    def check_run(self, job, status):
        """Check what the run of *job* has written down, which ended with *status*; return that."""
        self.errors = Path(job["errors"]).read_text() if os.path.exists(job["errors"]) else ""
        assert status in (0, -signal.SIGKILL, INTERRUPTED, REFUSED, *job.get("statuses", [])), self.errors
        self.started = read_lines(job["starts"])
        assert len(set(self.started)) == len(self.started), "a task was called twice in one run"
        again = self.acked.intersection(self.started)
        assert not again, f"{len(again)} acknowledged tasks were called again: {sorted(again)[:5]}"
        before = frozenset(self.acked)
        acks = [name for name in read_lines(job["acks"]) if is_kept(job, name)]
        self.acked.update(acks)
        assert len(self.acked) == len(before) + len(acks), "a task was acknowledged twice"
        if status == 0:
            results = json.loads(Path(job["results"]).read_text())
            assert results["values"] == undisturbed(self.dag, self.gate)
            lost = before.difference(results["restored"])
            assert not lost, f"{len(lost)} acknowledged results were not restored: {sorted(lost)[:5]}"
            assert self.acked.union(results["restored"]) >= {name for name in results["values"] if is_kept(job, name)}
            self.has_ended = True
        return status

    def check_store(self):
        """Check what the store has, from here."""
        if self.job["shape"] == "patchy":  # a plan takes it that what runs succeeds, and here it may be skipped
            return
        plan = self.dag.plan(state=open_store(self.job), resume=True)
        lost = self.acked.intersection(plan).difference(plan.named("restore"))
        assert not lost, f"{len(lost)} acknowledged results are not stored: {sorted(lost)[:5]}"

    def check_folder(self):
        """Check that nothing was found to be damaged, and no journal is left by the run that ended."""
        names = {path.name for path in self._folder.iterdir() if path.name.startswith("state")}
        harmless = (".tmp", ".lock")  # for the first there is a test; the second is empty and says nothing
        names = {name for name in names if not any(part in name for part in harmless)}
        assert names == {"state"}


def undisturbed(dag, gate):
    """Return the results of *dag* as text, in this process and without a store."""
    had_gate = gate.exists()
    gate.touch()
    before = {name: os.environ.get(name) for name in (STARTS, GATE)}
    os.environ[STARTS], os.environ[GATE] = os.devnull, str(gate)
    try:
        return {name: text_of(value) for name, value in dag.run(executor="sequential").items()}
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if not had_gate:
            gate.unlink()


# ---------------------------------------------------------------- signals at random instants

LENGTHS = {}
"""How long an undisturbed run takes, see History, and how many tasks it has, by what it is, as far as it is known."""


def signal_often(server, folder, rng, times, number=signal.SIGKILL, **job):
    """Send at least *times* runs the signal *number*, and resume each until it is done."""
    kind = tuple(job.values())
    if kind not in LENGTHS:
        calm = History(server, folder / "calm", seed=rng.getrandbits(32), **job)
        calm.run()
        assert calm.has_ended
        calm.check_store()
        LENGTHS[kind] = *calm.seconds, len(calm.acked)
    whole, since_first, total = LENGTHS[kind]
    hits = histories = runs = 0
    while hits < times:
        histories += 1
        history = History(server, folder / str(histories), seed=rng.getrandbits(32), **job)
        hits += history.run("first", rng.uniform(0, since_first), number) != 0
        for _ in range(rng.randint(0, 3)):
            if rng.random() < 0.5:  # not always, because a look at a store may mend it
                history.check_store()
            if not history.has_ended:
                left = 1 - len(history.acked) / total
                hits += history.run("ready", rng.uniform(0, whole * max(0.2, left)), number) != 0
        if not history.has_ended:
            history.run()
        assert history.has_ended
        history.check_store()
        history.check_folder()
        runs += history.runs
    print(f"{' '.join(map(str, kind))}: {hits} runs hit, {histories} graphs, {runs} runs")


def test_kill_9_at_any_instant_loses_nothing_acknowledged(store, executor, server, tmp_path, rng):
    """A random graph of 500 tasks, killed, and resumed until it is done; 200 kills in all."""
    times = 10 if executor == "process" else 30
    signal_often(server, tmp_path, rng, times, store=store, shape="layered", executor=executor, size=500)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(5))
def test_kill_9_a_thousand_times_loses_nothing_acknowledged(store, executor, part, server, tmp_path, rng):
    signal_often(server, tmp_path, rng, 25, store=store, shape="layered", executor=executor, size=500)


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_kill_9_loses_no_acknowledged_item_of_a_mapped_task(store, executor, times, server, tmp_path, rng):
    """numbers ─► square, 200 items ─► total"""
    signal_often(server, tmp_path, rng, times, store=store, shape="mapped", executor=executor)


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_kill_9_loses_nothing_where_tasks_are_skipped_or_not_kept(store, executor, times, server, tmp_path, rng):
    """A random graph of 200 tasks: one in five is skipped, one in ten is not kept, and some run after skipped ones."""
    signal_often(server, tmp_path, rng, times, store=store, shape="patchy", executor=executor, size=200)


@pytest.mark.parametrize("times", [2, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(200)])])
def test_kill_9_loses_nothing_of_two_dags_on_one_store(store, times, server, rival, tmp_path, rng):
    """Two processes run two DAGs on one store at once, and are killed one after the other."""
    for number in range(times):
        folder = tmp_path / str(number)
        histories = [
            History(server, folder / "one", store=store, shape="layered", executor="thread", size=300, seed=number),
            History(rival, folder / "two", store=store, shape="mapped", executor="sequential"),
        ]
        while not all(history.has_ended for history in histories):
            running = []
            for history, side in zip(histories, (server, rival), strict=True):
                if not history.has_ended:
                    history.job["path"] = str(folder / "state")
                    job = history.next_job()
                    running.append((history, side, job, side.start(job)))
            is_last = histories[0].runs > 3
            for _, _, _, pid in running if not is_last else ():
                time.sleep(rng.uniform(0, 0.06))  # the instant is what is tried; nothing is waited for
                os.kill(pid, signal.SIGKILL)
            for history, side, job, _ in running:
                history.check_run(job, int(side.read_until("ended").split()[1]))
        for history in histories:
            history.check_store()
        assert not [path for path in folder.glob("state*") if "corrupt" in path.name or "journal" in path.name]


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_ctrl_c_at_any_instant_loses_nothing_acknowledged(store, executor, times, server, tmp_path, rng):
    signal_often(
        server, tmp_path, rng, times, signal.SIGINT, store=store, shape="layered", executor=executor, size=500
    )  # fmt: skip


# ---------------------------------------------------------------- kill -9 at every system call

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "unlink")
STRACE = shutil.which("strace")


def strace(history, *options):
    """Run the next job of *history* under strace with *options*, in a fresh process; return how it ended."""
    job = history.next_job()
    code = "import json, sys, state_tasks; state_tasks.run_job(json.loads(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS), "PYTHONDONTWRITEBYTECODE": "1"}
    with open(job["errors"], "w") as errors:
        status = subprocess.call(
            [STRACE, "-f", "-qq", *options, sys.executable, "-c", code, json.dumps(job)],
            stdout=subprocess.DEVNULL, stderr=errors, env=environment, timeout=30,
        )  # fmt: skip
    return history.check_run(job, status)


@pytest.fixture(scope="module")
def needs_strace(tmp_path_factory):
    """Skip the test where there is no strace that may trace."""
    if STRACE is None:
        pytest.skip("strace is not installed")
    probe = [STRACE, "-f", "-o", os.devnull, "-e", "inject=unlink:signal=KILL:when=1", sys.executable, "-c"]
    found = subprocess.run([*probe, "import os; os.unlink('/nowhere')"], stderr=subprocess.DEVNULL)
    if found.returncode != -signal.SIGKILL:
        pytest.skip("strace cannot inject signals here")


def make_history(server, folder, store, rng):
    """Return a history of graphs of 20 tasks on a store that syncs."""
    return History(
        server, folder, store=store, shape="layered", executor="sequential", size=20, seed=rng.getrandbits(32),
        options={"durability": "power"},
    )  # fmt: skip


def count_calls(server, folder, store, rng):
    """Return how often an undisturbed run of 20 tasks makes each of CALLS, the first ``write`` being its first line."""
    log = folder / "log"
    history = make_history(server, folder / "calm", store, rng)
    assert strace(history, "-o", str(log), "-e", f"trace={','.join(CALLS)}") == 0
    made = [line.split("(")[0].split()[-1] for line in read_lines(log)]
    return {call: made.count(call) for call in CALLS if call in made}


def kill_at(server, folder, store, rng, call, nth):
    """Kill a run as it makes the *nth* system call *call*, and resume it."""
    history = make_history(server, folder / f"{call}-{nth}", store, rng)
    status = strace(history, "-o", os.devnull, "-e", f"inject={call}:signal=KILL:when={nth}")
    if history.has_ended:  # another graph makes fewer calls
        return 0
    assert status == -signal.SIGKILL
    history.check_store()
    history.run()
    assert history.has_ended
    history.check_folder()
    return 1


@pytest.mark.usefixtures("needs_strace")
def test_kill_9_at_a_system_call_loses_nothing_acknowledged(store, server, tmp_path, rng):
    """At a write of a result, and at each of those that replace the file."""
    calls = count_calls(server, tmp_path, store, rng)
    print(store, calls)
    points = [(call, rng.randint(1, calls[call])) for call in calls]
    killed = [kill_at(server, tmp_path, store, rng, call, nth) for call, nth in points]
    assert sum(killed) >= len(killed) / 2


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(8))
@pytest.mark.usefixtures("needs_strace")
def test_kill_9_at_every_system_call_loses_nothing_acknowledged(store, part, server, tmp_path, rng):
    calls = count_calls(server, tmp_path, store, rng)
    points = [(call, nth) for call, count in calls.items() for nth in range(1, count + 1)][part::8]
    killed = sum(kill_at(server, tmp_path, store, rng, call, nth) for call, nth in points)
    print(f"{store}: killed at {killed} of {len(points)} system calls; {calls}")


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_run_clears_away_what_a_killed_one_was_writing(call, script, tmp_path):
    """A process killed between making the new file and renaming it, and one before it removes its journal."""
    code = f"""
import os, signal
from flowkit import DAG, Task
from flowkit.state import StateManager
from flowkit.state.disk import Disk
class Deadly(Disk):
    def {call}(self, *paths):
        os.kill(os.getpid(), signal.SIGKILL)
DAG("dies", tasks=[Task("one", int)]).run(state=StateManager({str(tmp_path / "state")!r}, _disk=Deadly()))
"""
    assert script(code).finish().returncode == -signal.SIGKILL
    dag = DAG("dies", tasks=[Task("one", int)])
    assert dag.run(state=StateManager(tmp_path / "state"), resume=True).tasks["one"].restored
    assert os.listdir(tmp_path) == ["state"]


# ---------------------------------------------------------------- two processes at once


@contextmanager
def opened(gate):
    """Let tasks pass the gate for the time of the block."""
    gate.touch()
    try:
        yield
    finally:
        gate.unlink()


def race_for(history, server, rival):
    """Start the next job of *history* in two processes at once; return who runs it, who does not, and what that said.

    Returns:
        The server and the job of the one that runs, its process, the other server, and what it was told.
    """
    sides = []
    for side in (server, rival):
        job = history.next_job()
        sides.append((side, job, side.start(job)))
    said = [side.read_until("holding", "locked") for side, _, _ in sides]
    assert sorted(line.split()[0] for line in said) == ["holding", "locked"], said
    winner = 0 if said[0] == "holding" else 1
    loser, _, _ = sides[1 - winner]
    assert loser.read_until("ended") == f"ended {LOCKED}"
    return *sides[winner], loser, said[1 - winner]


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.soak)])
def test_one_of_two_processes_runs_and_the_other_is_told_which(store, rounds, server, rival, tmp_path):
    """t0 .. t9 ─► hold ─► after, on a state that a killed run has left behind."""
    for number in range(rounds):
        history = History(server, tmp_path / str(number), store=store, shape="held", executor="thread")
        for _ in range(2):
            holder, job, pid, _, told = race_for(history, server, rival)
            os.kill(pid, signal.SIGKILL)
            assert holder.read_until("ended") == "ended -9"
            assert told == f"locked {pid} {socket.gethostname()}"
            history.check_run(job, -signal.SIGKILL)
        with opened(history.gate):
            assert history.run() == 0
        assert history.acked == set(history.dag.plan())
        assert history.started == ["hold", "after"]


def test_a_run_goes_on_at_once_when_another_process_was_killed(store, executor, server, rival, tmp_path):
    history = History(server, tmp_path / "history", store=store, shape="held", executor=executor)
    holder, job, pid, other, _ = race_for(history, server, rival)
    os.kill(pid, signal.SIGKILL)
    since = time.monotonic()
    next_job = history.next_job()
    other.start(next_job)
    assert other.read_until("holding", "locked") == "holding"
    seconds = time.monotonic() - since
    assert holder.read_until("ended") == "ended -9"
    history.gate.touch()
    assert other.read_until("ended") == "ended 0"
    history.check_run(job, -signal.SIGKILL)
    history.check_run(next_job, 0)
    assert history.started == ["hold", "after"]
    print(f"{store}, {executor}: goes on {seconds:.3f} s after the kill")
    assert seconds < PROMPTLY


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_killed_run_does_not_keep_the_state_locked(store, server, rival, tmp_path):
    """t0 .. t9 ─► fork ─► hold ─► after: what was forked off lives on."""
    history = History(server, tmp_path / "history", store=store, shape="forked", executor="sequential")
    assert history.run("holding") == -signal.SIGKILL
    for _ in range(2):
        assert history.run("holding") == -signal.SIGKILL
        assert history.started == ["hold"]


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C on Windows")
def test_ctrl_c_ends_a_run_as_without_a_state_and_it_goes_on_later(store, executor, script, server, tmp_path):
    """t0 .. t9 ─► hold ─► after, interrupted in hold."""
    history = History(server, tmp_path / "history", store=store, shape="held", executor=executor)
    job = history.next_job()
    running = script(
        f"import sys; sys.path.insert(0, {FOLDERS[1]!r}); import state_tasks; state_tasks.run_job({job!r})"
    )
    running.wait_for("ready")
    running.wait_for("first")
    running.wait_for("holding")
    running.interrupt()
    running.finish()
    print(f"Ctrl-C to exit, {store}, {executor}: {running.seconds:.3f} s")
    assert running.seconds < PROMPTLY
    assert running.returncode in (-signal.SIGINT, INTERRUPTED), running.err
    lines = running.err.splitlines()
    summary = "\n".join(lines[lines.index("KeyboardInterrupt") :])
    assert "held: cancelled in" in summary
    assert "10 succeeded, 2 cancelled" in summary
    assert "interrupted by Ctrl-C" in summary
    history.check_run(job, INTERRUPTED)
    assert len(history.acked) == 10
    history.check_store()
    history.check_folder()
    with opened(history.gate):
        assert history.run() == 0
    assert history.started == ["hold", "after"]


# ---------------------------------------------------------------- a task that takes the process away


@pytest.mark.parametrize(("how", "status"), [("exit", 7), ("segfault", -signal.SIGSEGV)])
@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_a_task_that_takes_the_process_loses_no_result(store, executor, how, status, server, tmp_path):
    """t0 .. t9 ─► die ─► after"""
    history = History(
        server, tmp_path / "history", store=store, shape="dying", executor=executor, how=how, statuses=[status]
    )  # fmt: skip
    for _ in range(2):
        assert history.run() == status
        assert len(history.acked) == 10
    history.check_store()
    with opened(history.gate):
        assert history.run() == 0
    assert history.started == ["die", "after"]
    history.check_folder()


# ---------------------------------------------------------------- runs that end otherwise


class Stopped:
    """A DAG that cannot get past one task as long as a gate is closed, and the store of its runs.

    ::

        good ─► better ─► stop ─► below
                  └─────► beside
    """

    def __init__(self, folder, opens, executor, stop, **options):
        better = Task("better", state_tasks.step)
        below, beside = Task("below", state_tasks.step), Task("beside", state_tasks.step)
        Task("good", state_tasks.begin) >> better >> Task("stop", stop, **options) >> below
        better >> beside
        self.dag = DAG("stopped", tasks=[below, beside])
        self.gate = folder / "gate"
        self._calls = folder / "calls"
        self._opens = opens
        self._executor = executor

    def start(self, **options):
        """Start a run; return its handle."""
        inputs = {"calls": str(self._calls), "gate": str(self.gate)}
        return self.dag.start(inputs, executor=self._executor, max_workers=2, state=self._opens(), **options)

    def check_resume(self, first):
        """Check that what had succeeded in the run with the result *first* is restored, and all else runs."""
        done = {name for name, task in first.tasks.items() if task.state == "succeeded"}
        assert done <= {"good", "better", "beside"}  # and rarely less, if the machine is so slow that time ran out
        self._calls.unlink()
        self.gate.touch()
        second = self.start(resume=True).result(20)
        assert {name for name, task in second.tasks.items() if task.restored} == done
        assert sorted(read_lines(self._calls)) == sorted(set(second) - done)
        assert second["below"] == ["good", "better", "stop", "below"]
        third = self.start(resume=True).result(20)
        assert third == second
        assert all(task.restored for task in third.tasks.values())


@pytest.mark.parametrize("fail_fast", [True, False])
def test_what_had_succeeded_before_a_failure_is_restored(opens, executor, fail_fast, tmp_path):
    stopped = Stopped(tmp_path, opens, executor, state_tasks.fail_at_gate)
    first = stopped.start(fail_fast=fail_fast, raise_on_failure=False).result(20)
    assert first.tasks["stop"].state == "failed"
    stopped.check_resume(first)


def test_a_task_that_ran_when_its_run_was_cancelled_is_not_done(opens, executor, tmp_path):
    stopped = Stopped(tmp_path, opens, executor, state_tasks.wait_at_gate)
    runs = threading.Event()

    def watch(event):
        if isinstance(event, AttemptStarted) and event.task_name == "stop":
            runs.set()

    handle = stopped.start(observers=[watch])
    assert runs.wait(10)
    handle.cancel()
    with pytest.raises(RunCancelledError) as caught:
        handle.result(20)
    assert caught.value.result.tasks["stop"].state == "cancelled"
    stopped.check_resume(caught.value.result)


@pytest.mark.parametrize("executor", ["thread", "process", "async"])
def test_a_task_that_ran_when_its_run_timed_out_is_not_done(opens, executor, tmp_path):
    stopped = Stopped(tmp_path, opens, executor, state_tasks.wait_at_gate)
    with pytest.raises(RunTimeoutError) as caught:
        stopped.start(timeout=0.6).result(20)
    assert caught.value.result.tasks["stop"].state == "cancelled"
    stopped.check_resume(caught.value.result)


@pytest.mark.parametrize("executor", ["thread", "process", "async"])
def test_a_task_that_timed_out_is_not_done(opens, executor, tmp_path):
    stopped = Stopped(tmp_path, opens, executor, state_tasks.wait_at_gate, timeout=0.3)
    with pytest.raises(TaskExecutionError) as caught:
        stopped.start().result(20)
    assert isinstance(caught.value.__cause__, TaskTimeoutError)
    stopped.check_resume(caught.value.result)


class Late:
    """A store that takes its time to encode the value "late", and the thread that is held up by it.

    Attributes:
        reached: Set when the thread begins to encode.
        gate: Set it to let the thread go on.
    """

    def __init__(self, store):
        self._store = store
        self.reached = threading.Event()
        self.gate = threading.Event()
        self._thread = None

    def __getattr__(self, name):
        return getattr(self._store, name)

    def codec(self, modules):
        codec = self._store.codec(modules)
        self._encode, codec.encode = codec.encode, self.encode
        return codec

    def encode(self, value):
        if value == "late":
            self._thread = threading.current_thread()
            self.reached.set()
            assert self.gate.wait(20)
        return self._encode(value)

    def let_go(self):
        """Let the thread go on, and wait for its end."""
        assert self.reached.wait(10)
        self.gate.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_result_that_is_stored_after_its_timeout_does_not_replace_a_later_one(opens):
    """slow ─► below: the first attempt is given up while its result is encoded, and stored while below runs."""
    late = Late(opens())

    def slow(context):
        return "late" if context.attempt == 1 else "good"

    def below(value):
        if not late.gate.is_set():
            late.let_go()
        return f"made of {value}"

    slow = Task("slow", slow, timeout=0.1, retries=1, delay=0)
    dag = DAG("late", tasks=[slow >> Task("below", below)])
    first = dag.run(state=late)
    assert first == {"slow": "good", "below": "made of good"}
    second = dag.run(state=opens(), resume=True)
    assert second == first
    assert all(task.restored for task in second.tasks.values())


def test_a_result_that_is_stored_after_its_timeout_does_not_make_the_task_done(opens):
    """slow fails by its timeout, and beside lets its result be stored then."""
    late = Late(opens())
    has_failed = threading.Event()

    def slow():
        return "good" if late.gate.is_set() else "late"

    def beside():
        assert has_failed.wait(10)
        late.let_go()

    def watch(event):
        if isinstance(event, TaskFailed):
            has_failed.set()

    dag = DAG("late", tasks=[Task("slow", slow, timeout=0.1), Task("beside", beside)])
    first = dag.run(state=late, fail_fast=False, raise_on_failure=False, observers=[watch])
    assert first.tasks["slow"].state == "failed"
    second = dag.run(state=opens(), resume=True)
    assert second["slow"] == "good"


@pytest.mark.parametrize("when", ["between the runs", "in the next run", "after the next run"])
def test_a_thread_that_a_cancelled_run_left_behind_stores_nothing(opens, when, may_abandon):
    """slow ─► below, cancelled while the result of slow is encoded."""
    late = Late(opens())
    values = iter(["late", "good"])

    def slow():
        return next(values)

    def below(value):
        if when == "in the next run":
            late.let_go()
        return f"made of {value}"

    dag = DAG("late", tasks=[Task("slow", slow) >> Task("below", below)])
    handle = dag.start(state=late)
    assert late.reached.wait(10)
    handle.cancel()
    with pytest.raises(RunCancelledError):
        handle.result(20)
    if when == "between the runs":
        late.let_go()
    first = dag.run(state=opens(), resume=True)
    assert first == {"slow": "good", "below": "made of good"}
    if when == "after the next run":
        late.let_go()
    second = dag.run(state=opens(), resume=True)
    assert second == first
    assert all(task.restored for task in second.tasks.values())


# ---------------------------------------------------------------- no space left


class FullDisk(Disk):
    """A disk that takes *most* writes, and then no more; or refuses one alone, *once*."""

    def __init__(self, most, *, once=False):
        self.left = most
        self.once = once

    def write(self, fd, data):
        self.left -= 1
        if self.left == -1 or (self.left < 0 and not self.once):
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
def test_a_refused_write_ends_the_run_and_no_task_below_is_announced(once, executor, tmp_path, monkeypatch):
    """t0 ─► t1 ─► .. ─► t11, for every write there is."""
    monkeypatch.setenv(STARTS, os.devnull)
    tasks = [Task(f"t{n}", state_tasks.bulk) for n in range(12)]
    chain(*tasks)
    dag = DAG("full", tasks=tasks)
    for most in itertools.count():
        path = tmp_path / f"{most}"
        acked = []
        disk = FullDisk(most, once=once)
        try:
            dag.run(state=StateManager(path, _disk=disk), executor=executor, observers=[acked.append])
        except StateWriteError as caught:
            error = caught
        else:
            break
        assert (error.errno, str(path) in error.path) == (28, True)
        acked = [event.task_name for event in acked if isinstance(event, TaskSucceeded)]
        assert acked == [f"t{n}" for n in range(len(acked))]
        restored = dag.plan(state=StateManager(path), resume=True).named("restore")
        assert set(acked) <= set(restored)
        assert dag.run(state=StateManager(path), resume=True, executor=executor).ok
        assert os.listdir(tmp_path) == [path.name]
        path.unlink()
    assert most > 12


@pytest.fixture
def small_disk(store, tmp_path):
    """A folder on a file system of its own, on which about half of the results find room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = {"json": "100k", "sqlite": "250k"}[store]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def check_goes_on(history):
    """Check that the latest run was refused a write in its middle, and that the next one goes on from there."""
    assert "StateWriteError" in history.errors
    assert 0 < len(history.acked) < 60
    assert history.acked == {f"t{n}" for n in range(len(history.acked))}
    history.check_store()


def test_a_full_disk_ends_the_run_and_it_goes_on_once_there_is_space(store, executor, server, small_disk, tmp_path):
    """t0 ─► t1 ─► .. ─► t59, two kilobytes each."""
    history = History(server, tmp_path / "history", store=store, shape="bulky", executor=executor)
    history.job["path"] = str(small_disk / "state")
    assert history.run() == REFUSED
    check_goes_on(history)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert history.run() == 0
    assert os.listdir(small_disk) == ["state"]


def test_a_file_that_may_not_grow_ends_the_run_and_it_goes_on_later(store, executor, server, tmp_path):
    history = History(server, tmp_path / "history", store=store, shape="bulky", executor=executor)
    history.job["most_bytes"] = 80_000
    assert history.run() == REFUSED
    check_goes_on(history)
    del history.job["most_bytes"]
    assert history.run() == 0
    history.check_folder()


# ---------------------------------------------------------------- many tasks


@pytest.mark.soak
@pytest.mark.parametrize("executor", ["sequential", "thread"])
@pytest.mark.parametrize("size", [1_000, 10_000, 100_000])
def test_a_result_costs_as_much_however_many_there_are(store, opens, executor, size):
    """Ten chains side by side. What it costs is printed, and not judged."""
    upstream = [[]] * 10 + [[n - 10] for n in range(10, size)]
    tasks = [Task(f"t{n}", state_tasks.one_more if above else state_tasks.zero) for n, above in enumerate(upstream)]
    for task, above in zip(tasks, upstream, strict=True):
        if above:
            tasks[above[0]] >> task
    dag = DAG("large", tasks=tasks)
    seconds = {}
    for what in ("bare", "stored", "restored"):
        options = {} if what == "bare" else {"state": opens(), "resume": True}
        since = time.perf_counter()
        result = dag.run(executor=executor, **options)
        seconds[what] = time.perf_counter() - since
        assert [result[f"t{n}"] for n in range(size)] == [n // 10 for n in range(size)]
    assert len([task for task in result.tasks.values() if task.restored]) == size
    figures = ", ".join(f"{what} {1e6 * taken / size:.1f}" for what, taken in seconds.items())
    print(f"{store}, {executor}, {size} tasks: us per task: {figures}")
