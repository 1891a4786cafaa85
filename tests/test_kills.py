"""Processes that are killed: workers at any instant, and whoever started them. Nothing hangs, nothing is left alive."""

import multiprocessing.forkserver
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import kill_tasks
import pytest

from flowkit import DAG, Task, TaskExecutionError, WorkerDiedError
from flowkit.events import AttemptFailed, AttemptStarted, TaskEvent

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")

SOON = 2.0
"""Seconds within which a death must have been noticed, and every worker of a dead parent be gone: the promise."""
SLACK = 2.0
"""Seconds for a loaded machine on top."""
PROMPTLY = 1.5
"""Seconds from a Ctrl-C to the end of the process: the promise is 0.5."""


@pytest.fixture(scope="module", autouse=True)
def helpers():
    """What multiprocessing starts once and keeps for the life of this process."""
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(params=["forkserver", "spawn"])
def method(request):
    return request.param


@pytest.fixture
def rng():
    """A source of chance whose seed is shown when the test fails."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


# ---------------------------------------------------------------- processes, seen from outside


def processes():
    """Return pid to (parent, group) of every process that is alive."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    state, parent, group = stat.read().rpartition(")")[2].split()[:3]
            except OSError:  # gone since it was listed
                continue
            if state not in "ZX":
                found[int(name)] = int(parent), int(group)
    return found


def descendants():
    """Return the pids of the processes that this one has started, and of those that they have."""
    alive = processes()
    family, size = {os.getpid()}, 0
    while len(family) > size:
        size = len(family)
        family |= {pid for pid, (parent, _) in alive.items() if parent in family}
    return family - {os.getpid()}


def group_of(script):
    """Return the pids of everything that *script* has started and that is alive; it leads their process group."""
    leader = script._process.pid
    return {pid for pid, (_, group) in processes().items() if group == leader and pid != leader}


def seconds_until(is_true, limit):
    """Wait until *is_true*, or at least for *limit* seconds; return how long that took."""
    since = time.monotonic()
    while not is_true():
        if time.monotonic() - since > limit:
            break
        time.sleep(0.005)
    return time.monotonic() - since


def assert_nothing_left(script, but=()):
    """Assert that what *script* has started ends soon, its fork server and resource tracker included."""
    seconds = seconds_until(lambda: group_of(script) <= set(but), SOON + SLACK)
    left = group_of(script) - set(but)
    assert not left, {pid: command_of(pid) for pid in left}
    print(f"all gone after {seconds:.3f} s")


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return "gone"


def read_line(script):
    """Return its next line; all of it is killed if there is none for a long time."""
    watchdog = threading.Timer(15, lambda: os.killpg(script._process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        return script._process.stdout.readline().rstrip("\n")
    finally:
        watchdog.cancel()
        watchdog.join()


def read_pids(script, count):
    """Return the pids of *count* tasks that say that they hold."""
    lines = [read_line(script) for _ in range(count)]
    assert all(line.startswith("holding ") for line in lines), lines
    return {int(line.split()[1]) for line in lines}


HEAD = f"""
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")   # of a fork beside threads
sys.path.insert(0, {str(Path(__file__).parent)!r})
import kill_tasks
import flowkit.engine.launch, flowkit.engine.workers.processes   # now, so that a signal meets a run
from flowkit import DAG, Task
say = kill_tasks.say
"""


# ---------------------------------------------------------------- workers that are killed


class Watch:
    """An observer that checks what it sees of each task: attempts that start, fail and end in turn, and one end."""

    def __init__(self):
        self.last = defaultdict(lambda: ("nothing", 0))
        self.ended = Counter()
        self.problems = []

    def __call__(self, event):
        name = getattr(event, "task_name", None)
        kind, attempt = self.last[name]
        if isinstance(event, AttemptStarted):
            if kind not in ("nothing", "failed") or event.attempt != attempt + 1 or self.ended[name]:
                self.problems.append((name, kind, attempt, event))
            self.last[name] = "started", event.attempt
        elif isinstance(event, AttemptFailed):
            if kind != "started" or event.attempt != attempt:
                self.problems.append((name, kind, attempt, event))
            self.last[name] = "failed", attempt
        elif isinstance(event, TaskEvent):
            self.ended[name] += 1

    def check(self, result):
        assert not self.problems, self.problems[:5]
        assert self.ended == dict.fromkeys(result.tasks, 1)


class Killer:
    """Starts a run, kills some of its workers at one instant, and says what came out.

    Attributes:
        killed: The pids of those that were killed.
        result: What the run gave.
        seconds: From the kill to the end of the run.
    """

    def __init__(self, rng, workers, longest):
        self._rng = rng
        self._workers = workers
        self._longest = longest

    def run(self, dag, inputs, **options):
        before = descendants()
        handle = dag.start(inputs, executor="process", max_workers=self._workers, raise_on_failure=False, **options)
        time.sleep(self._rng.uniform(0, self._longest))  # the instant is what is tried; nothing is waited for
        victims = sorted(descendants() - before)
        victims = self._rng.sample(victims, min(len(victims), self._rng.randint(1, self._workers)))
        self.killed = set()
        for victim in victims:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:  # the run was over
                continue
            self.killed.add(victim)
        since = time.monotonic()
        self.result = handle.result(timeout=20)
        self.seconds = time.monotonic() - since
        seconds_until(lambda: descendants() <= before, SOON + SLACK)
        assert descendants() <= before, "processes were leaked"
        return self.result


def runs_of(path):
    """Return for each task the pids in which it ran, in order."""
    ran = defaultdict(list)
    for line in Path(path).read_text().splitlines() if os.path.exists(path) else []:
        name, pid = line.split()
        ran[name].append(int(pid))
    return ran


def assert_only_killed_work_was_done_again(path, killed):
    for name, pids in runs_of(path).items():
        assert set(pids[:-1]) <= killed, f"{name} ran in {pids}, killed were {killed}"


def assert_died_of_the_kill(result, killed):
    """Assert that the failures of *result* are deaths of those *killed*, at most one for each of them."""
    died = [run for run in result.tasks.values() if run.state == "failed"]
    for run in died:
        assert type(run.error) is WorkerDiedError, run.error
        assert run.error.task_name == run.name
        assert run.error.exitcode == -signal.SIGKILL
        assert run.error.pid in killed
        assert "was killed by SIGKILL" in str(run.error)
    assert len({run.error.pid for run in died}) == len(died)


def rounds(in_suite, in_soak):
    soak = [pytest.mark.soak, pytest.mark.timeout(300)]
    return pytest.mark.parametrize("rounds", [in_suite, pytest.param(in_soak, marks=soak)])


@rounds(9, 40)
def test_tasks_with_retries_survive_the_death_of_their_workers(rounds, method, rng, tmp_path):
    """first ─► 40 tasks of 3 ms ─► join, on three processes, of which one to three are killed at a random instant."""
    first = Task("first", kill_tasks.path_of, retries=2, delay=0)
    join = Task("join", kill_tasks.wide, retries=2, delay=0)
    first >> [Task(f"nap_{n}", kill_tasks.nap, retries=2, delay=0) for n in range(40)] >> join
    dag = DAG("survivor", tasks=[join])
    killer, slowest = Killer(rng, 3, 0.2), 0.0
    for n in range(rounds):
        path, watch = str(tmp_path / f"{n}"), Watch()
        result = killer.run(dag, {"file": path}, _start_method=method, observers=[watch] if n % 2 else [])
        assert result.ok, result.summary()
        assert dict(result) == {"first": path, **{f"nap_{n}": f"nap_{n}" for n in range(40)}, "join": 40}
        assert_only_killed_work_was_done_again(path, killer.killed)
        ran = runs_of(path)
        for name, pids in ran.items():
            assert len(pids) <= result.tasks[name].attempts <= len(pids) + 1
        assert sum(run.attempts - 1 for run in result.tasks.values()) <= len(killer.killed)
        assert killer.seconds < SOON + SLACK
        if n % 2:
            watch.check(result)
        slowest = max(slowest, killer.seconds)
    print(f"slowest from kill to end: {slowest:.3f} s")


@rounds(9, 40)
def test_tasks_without_retries_fail_with_the_death_of_their_own_worker_only(rounds, method, rng, tmp_path):
    """40 tasks of 3 ms, on three processes; what runs on the others, or comes later, keeps its result."""
    dag = DAG("victim", tasks=[Task(f"nap_{n}", kill_tasks.nap) for n in range(40)])
    killer = Killer(rng, 3, 0.15)
    for n in range(rounds):
        path, watch = str(tmp_path / f"{n}"), Watch()
        result = killer.run(
            dag, {"path": path}, _start_method=method, fail_fast=False, observers=[watch] if n % 2 else []
        )
        assert_died_of_the_kill(result, killer.killed)
        assert dict(result) == {run.name: run.name for run in result.tasks.values() if run.state != "failed"}
        assert all(len(pids) == 1 for pids in runs_of(path).values())
        assert all(run.attempts == 1 for run in result.tasks.values())
        assert killer.seconds < SOON + SLACK
        if n % 2:
            watch.check(result)


@rounds(4, 10)
def test_a_run_that_fails_fast_ends_soon_after_the_kill(rounds, method, rng, tmp_path):
    """40 tasks of 3 ms, on three processes"""
    dag = DAG("victim", tasks=[Task(f"nap_{n}", kill_tasks.nap) for n in range(40)])
    killer = Killer(rng, 3, 0.15)
    for n in range(rounds):
        watch = Watch()
        result = killer.run(dag, {"path": str(tmp_path / f"{n}")}, _start_method=method, observers=[watch])
        assert_died_of_the_kill(result, killer.killed)
        assert {run.state for run in result.tasks.values()} <= {"succeeded", "failed", "cancelled"}
        assert killer.seconds < SOON
        watch.check(result)


@rounds(4, 20)
@pytest.mark.parametrize("is_watched", [False, True], ids=["alone", "watched"])
def test_of_a_batch_only_the_task_at_work_is_lost(rounds, is_watched, method, rng, tmp_path):
    """first ─► 3,000 tasks of microseconds, in batches on three processes; those that did not begin run elsewhere."""
    first = Task("first", kill_tasks.path_of)
    first >> [Task(f"dot_{n}", kill_tasks.dot) for n in range(3000)]
    dag = DAG("batches", tasks=first.downstream)
    killer = Killer(rng, 3, 0.2)
    for n in range(rounds):
        path, watch = str(tmp_path / f"{n}"), Watch()
        result = killer.run(
            dag, {"file": path}, _start_method=method, fail_fast=False, observers=[watch] if is_watched else []
        )
        assert_died_of_the_kill(result, killer.killed)
        if "first" in result:
            ran = runs_of(path)
            died = {run.name for run in result.tasks.values() if run.state == "failed"}
            assert {*ran, *died} == set(result.tasks) - {"first"}
            assert all(result[name] == name for name in ran.keys() - died)
            assert_only_killed_work_was_done_again(path, killer.killed)
        assert all(run.attempts <= 1 for run in result.tasks.values())
        assert killer.seconds < SOON + SLACK
        if is_watched:
            watch.check(result)


MAIN_THAT_WAITS = """
import os, time
if not os.path.exists({path!r}):   # the first worker waits while it starts, the others do not
    open({path!r}, "w").close()   # before it is told, which gets it killed
    os.write(1, f"starting {{os.getpid()}}\\n".encode())
    open({path!r} + ".told", "w").close()
    time.sleep({seconds})
"""


def main_that_waits(tmp_path, seconds=60):
    """Return code that makes a file the script of the process: workers import it, and the first of them waits in it."""
    main = tmp_path / "main.py"
    main.write_text(MAIN_THAT_WAITS.format(path=str(tmp_path / "started"), seconds=seconds))
    return f"__file__ = {str(main)!r}\n"


@pytest.mark.parametrize("retries", [0, 2])
def test_a_worker_that_is_killed_while_it_starts_does_not_stand_for_the_others(retries, method, script, tmp_path):
    """four tasks on one worker; the first process is killed before it can take a call. At most one task is lost."""
    running = script(
        HEAD
        + main_that_waits(tmp_path)
        + f"""
tasks = [Task(f"t_{{n}}", kill_tasks.pid, retries={retries}, delay=0) for n in range(4)]
result = DAG("starting", tasks=tasks).run(
    executor="process", max_workers=1, fail_fast=False, raise_on_failure=False, _start_method={method!r}
)
for name, run in result.tasks.items():
    say(f"{{run.state}} {{type(run.error).__name__}}: {{run.error}}")
"""
    )
    word, pid = read_line(running).split()
    assert word == "starting"
    os.kill(int(pid), signal.SIGKILL)
    running.finish()
    states = Counter(line.split()[0] for line in running.out.splitlines())
    print(running.out)
    assert states["succeeded"] >= (4 if retries else 3)
    assert all("WorkerDiedError" in line for line in running.out.splitlines() if line.startswith("failed"))


def test_the_events_of_a_task_whose_condition_kills_its_worker_are_in_order(method):
    """doomed, whose condition kills the process before any attempt was announced ─► below"""
    watch = Watch()
    doomed = Task("doomed", kill_tasks.pid, when=kill_tasks.is_killer, retries=1, delay=0)
    doomed >> Task("below", kill_tasks.pid)
    result = DAG("conditions", tasks=doomed.downstream).run(
        executor="process", raise_on_failure=False, observers=[watch], _start_method=method
    )
    assert result.tasks["doomed"].state == "failed"
    assert type(result.tasks["doomed"].error) is WorkerDiedError
    watch.check(result)


def test_a_task_that_kills_three_workers_is_given_up(method):
    doomed = Task("doomed", kill_tasks.die, retries=10, delay=0)
    result = DAG("poison", tasks=[doomed, Task("beside", kill_tasks.pid)]).run(
        executor="process", max_workers=1, raise_on_failure=False, fail_fast=False, _start_method=method
    )
    assert (result.tasks["doomed"].state, result.tasks["doomed"].attempts) == ("failed", 3)
    assert result.tasks["beside"].state == "succeeded"


def test_a_death_names_the_task_the_process_and_the_signal(method):
    with pytest.raises(TaskExecutionError, match="was killed by SIGKILL") as caught:
        DAG("poison", tasks=[Task("doomed", kill_tasks.die)]).run(executor="process", _start_method=method)
    error = caught.value.__cause__
    assert type(error) is WorkerDiedError
    assert (error.task_name, error.exitcode) == ("doomed", -signal.SIGKILL)
    assert error.pid > 0


def test_the_death_of_the_fork_server_does_not_hang_the_run(script, tmp_path):
    """It is the parent of the workers, and tells of their ends. Six tasks on three workers, with retries."""
    gate, path = str(tmp_path / "gate"), str(tmp_path / "names")
    os.mkfifo(gate)
    running = script(
        HEAD
        + f"""
from multiprocessing.forkserver import _forkserver
both = os.open({gate!r}, os.O_RDWR)   # so that nobody waits for the other end
tasks = [Task(f"t_{{n}}", kill_tasks.meet, retries=3, delay=0) for n in range(6)]
handle = DAG("orphans", tasks=tasks).start(
    {{"gate": {gate!r}, "path": {path!r}}}, executor="process", max_workers=3, _start_method="forkserver"
)
while not os.path.exists({path!r}) or len(open({path!r}).readlines()) < 3:
    time.sleep(0.001)
os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
os.write(both, b"." * 64)
result = handle.result(timeout=8)
say(sorted({{run.state for run in result.tasks.values()}}))
"""
    )
    running.wait_for("['succeeded']")
    assert_nothing_left(running)
    running.finish()
    assert running.returncode == 0, running.err


# ---------------------------------------------------------------- whoever started the workers is killed

WORK = """
# path ─► 60 quick ones ─► join ─► three that take a minute
first, join = Task("first", kill_tasks.pid), Task("join", kill_tasks.wide)
first >> [Task(f"wide_{n}", kill_tasks.pid) for n in range(60)] >> join
join >> [Task(f"hold_{n}", kill_tasks.hold) for n in range(3)]
dag = DAG("host", tasks=join.downstream)
"""


@pytest.mark.parametrize("hosts", [5, pytest.param(34, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
def test_no_worker_outlives_its_parent(hosts, sent, method, script, rng):
    """Killed at random instants, from the start of the first worker to tasks that hold."""
    for first in range(0, hosts, 5):
        running = [
            script(HEAD + WORK + f'say("go")\ndag.run(executor="process", max_workers=3, _start_method={method!r})\n')
            for _ in range(first, min(hosts, first + 5))
        ]
        for host in running:
            host.wait_for("go")
            time.sleep(rng.uniform(0, 0.25))  # the instant is what is tried
            host._process.send_signal(sent)
        for host in running:
            assert_nothing_left(host)
            host.finish()
            assert host.returncode == -sent or (sent == signal.SIGINT and host.returncode == 130), host.err


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda sent: sent.name)
def test_no_worker_outlives_a_parent_whose_tasks_all_hold(sent, method, script):
    """Not even one that ignores every signal it can, and waits in a system call."""
    host = script(
        HEAD
        + f"""
tasks = [Task("hold", kill_tasks.hold), Task("deaf", kill_tasks.hold_deaf)]
DAG("host", tasks=tasks).run(executor="process", max_workers=2, _start_method={method!r})
"""
    )
    pids = read_pids(host, 2)
    assert pids <= group_of(host)
    host._process.send_signal(sent)
    assert_nothing_left(host)


def test_a_worker_that_never_lets_go_of_the_interpreter_does_not_outlive_its_parent(method, script):
    """No thread of it can notice that the parent is gone: it runs in C."""
    host = script(
        HEAD
        + f"""
tasks = [Task("busy", kill_tasks.hold_the_interpreter)]
DAG("host", tasks=tasks).run(executor="process", max_workers=1, _start_method={method!r})
"""
    )
    read_pids(host, 1)
    time.sleep(0.5)  # it measures itself before it begins
    host._process.kill()
    assert_nothing_left(host)


def test_workers_of_a_run_inside_of_a_task_do_not_outlive_the_outermost_parent(method, script):
    """host ─ worker ─ two workers of its own, and a fork server and a resource tracker for each"""
    host = script(
        HEAD
        + f"""
tasks = [Task("nested", kill_tasks.nested)]
DAG("outer", tasks=tasks).run({{"method": {method!r}}}, executor="process", _start_method={method!r})
"""
    )
    pids = read_pids(host, 2)
    assert pids <= group_of(host)
    host._process.kill()
    assert_nothing_left(host)


def test_workers_of_a_run_inside_of_a_task_do_not_outlive_their_own_parent(method, script):
    """The worker in the middle is killed; the run above hears of it."""
    host = script(
        HEAD
        + f"""
tasks = [Task("nested", kill_tasks.nested)]
dag = DAG("outer", tasks=tasks)
handle = dag.start({{"method": {method!r}}}, executor="process", max_workers=1, _start_method={method!r})
try:
    handle.result()
except Exception as error:
    say(type(error.__cause__).__name__)
time.sleep(20)
"""
    )
    inner = read_pids(host, 2)
    alive = processes()
    parents = {alive[pid][0] for pid in inner}
    middle = parents if method == "spawn" else {alive[pid][0] for pid in parents}
    assert len(middle) == 1
    os.kill(*middle, signal.SIGKILL)
    host.wait_for("WorkerDiedError")
    seconds_until(lambda: not inner & processes().keys(), SOON + SLACK)
    assert not inner & processes().keys()


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("hosts", [8, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_a_script_that_just_ends_takes_its_run_in_the_background_with_it(hosts, fail_fast, method, script, rng):
    """20 tasks of a minute on two workers; the end of the script comes at a random instant, and is quiet."""
    for first in range(0, hosts, 4):
        running = [
            script(
                HEAD
                + f"""
tasks = [Task(f"hold_{{n}}", kill_tasks.hold) for n in range(20)]
DAG("host", tasks=tasks).start(
    executor="process", max_workers=2, fail_fast={fail_fast}, _start_method={method!r}
)
time.sleep({rng.uniform(0, 0.3)})
say("over")
"""
            )
            for _ in range(first, min(hosts, first + 4))
        ]
        for host in running:
            line = read_line(host)
            while line.startswith("holding"):
                line = read_line(host)
            assert line == "over", host.finish().err
            since = time.monotonic()
            assert_nothing_left(host)
            host.finish()
            assert time.monotonic() - since < SOON + SLACK
            assert (host.returncode, host.err) == (0, "")


def test_a_script_that_ends_while_its_workers_start_takes_them_with_it(method, script, tmp_path):
    host = script(
        HEAD
        + main_that_waits(tmp_path)
        + f"""
tasks = [Task(f"hold_{{n}}", kill_tasks.hold) for n in range(3)]
DAG("host", tasks=tasks).start(executor="process", max_workers=2, fail_fast=False, _start_method={method!r})
while not os.path.exists({str(tmp_path / "started.told")!r}):
    time.sleep(0.001)
"""
    )
    assert read_line(host).startswith("starting")
    assert_nothing_left(host)
    host.finish()
    assert (host.returncode, host.err) == (0, "")


@pytest.mark.parametrize("is_early", [False, True], ids=["while they hold", "while they start"])
def test_no_worker_outlives_a_parent_that_has_forked(is_early, method, script, tmp_path):
    """A fork has what its parent had open, pipes to workers included, and lives on. It holds the fork server, too."""
    go = tmp_path / "go"
    host = script(
        HEAD
        + f"""
tasks = [Task(f"hold_{{n}}", kill_tasks.hold) for n in range(3)]
handle = DAG("host", tasks=tasks).start(executor="process", max_workers=3, _start_method={method!r})
while not os.path.exists({str(go)!r}):
    time.sleep(0.001)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
say(f"forked {{child}}")
time.sleep(60)
"""
    )
    holding = set() if is_early else read_pids(host, 3)
    if is_early:
        seconds_until(lambda: group_of(host), SOON)
    go.touch()
    line = read_line(host)
    while line.startswith("holding"):
        holding.add(int(line.split()[1]))
        line = read_line(host)
    word, child = line.split()
    assert word == "forked"
    host._process.kill()
    seconds_until(lambda: not holding & group_of(host), SOON + SLACK)
    assert not holding & group_of(host)
    os.kill(int(child), signal.SIGKILL)
    assert_nothing_left(host)


def test_a_process_that_was_forked_off_has_workers_of_its_own(method, script):
    """A server that forks after it has run something: what its fork server is not the child's to wait for."""
    host = script(
        HEAD
        + f"""
dag = DAG("host", tasks=[Task("pid", kill_tasks.pid), Task("value", kill_tasks.pid)])
dag.run(executor="process", _start_method={method!r})
child = os.fork()
if child == 0:
    signal.alarm(4)
    try:
        result = dag.run(executor="process", _start_method={method!r})
        say("ran" if os.getpid() not in result.values() else "ran in itself")
    except BaseException as error:
        say(f"{{type(error).__name__}}: {{error}}")
    os._exit(0)
_, status = os.waitpid(child, 0)
say(status)
""",
        limit=5,
    )
    line = read_line(host)
    assert line == "ran" or "FlowkitError" in line or "TaskExecutionError" in line, host.finish().err
    host.wait_for("0")
    assert_nothing_left(host)
    print(line)
    assert line == "ran"


# ---------------------------------------------------------------- Ctrl-C

HOLDS = {
    "process": ("kill_tasks.hold", "process"),
    "async": ("kill_tasks.hold_async", "async"),
    "async in a process": ("kill_tasks.hold_async", "process"),
    "blocked loop": ("kill_tasks.block_loop", "async"),
    "deaf coroutine": ("kill_tasks.swallow_cancel", "async"),
    "deaf process": ("kill_tasks.hold_deaf", "process"),
}


def is_interrupted(script):
    return script.returncode in (-signal.SIGINT, 130)


def interrupt_group(script):
    """Press Ctrl-C as a terminal does: everything in the foreground gets the signal."""
    script._since = time.monotonic()
    os.killpg(script._process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("what", "to_all"),
    [*[(what, True) for what in HOLDS], ("process", False), ("async", False)],
    ids=lambda value: {True: "to the group", False: "to the parent"}.get(value, value),
)
def test_ctrl_c_ends_tasks_of_a_minute(what, to_all, script):
    """started ─► hold_1, hold_2, each a minute long"""
    hold, executor = HOLDS[what]
    own = 'executor="process", ' if what == "async in a process" else ""
    running = script(
        HEAD
        + f"""
started = Task("started", kill_tasks.pid)
started >> [Task(f"hold_{{n}}", {hold}, {own}) for n in (1, 2)]
DAG("slow", tasks=started.downstream).run(executor={executor!r}, max_workers=2)
"""
    )
    read_pids(running, 1 if what == "blocked loop" else 2)
    (interrupt_group if to_all else type(running).interrupt)(running)
    assert_nothing_left(running)
    running.finish()
    print(f"Ctrl-C to exit, {what}: {running.seconds:.3f} s")
    assert running.seconds < PROMPTLY
    assert is_interrupted(running), running.err
    lines = running.err.splitlines()
    assert running.err.count("Traceback (most recent call last)") == 1, running.err
    summary = "\n".join(lines[lines.index("KeyboardInterrupt") :])
    assert "slow: cancelled in" in summary
    assert "1 succeeded, 2 cancelled" in summary
    assert "interrupted by Ctrl-C" in summary
    if what == "blocked loop":
        assert "1 thread abandoned" in summary
    elif "process" in what:
        assert "abandoned" not in summary


@pytest.mark.parametrize("executor", ["process", "async"])
def test_a_second_ctrl_c_does_not_wait_for_cleanup(executor, script):
    running = script(
        HEAD
        + f"""
DAG("slow", tasks=[Task("hold", kill_tasks.hold_cleanup)]).run(executor={executor!r})
"""
    )
    running.wait_for("holding")
    running.interrupt()
    running.wait_for("cleaning")
    interrupt_group(running)
    running._process.wait(10)
    seconds = time.monotonic() - running._since
    assert_nothing_left(running)
    running.finish()
    assert seconds < PROMPTLY
    assert is_interrupted(running), running.err


@pytest.mark.parametrize("pause", [0, 0.1])
@pytest.mark.parametrize("what", ["process", "async", "blocked loop", "deaf coroutine"])
def test_two_ctrl_c_in_a_row_end_the_process(what, pause, script):
    hold, executor = HOLDS[what]
    own = 'executor="process", ' if what == "async in a process" else ""
    running = script(HEAD + f'DAG("slow", tasks=[Task("hold", {hold}, {own})]).run(executor={executor!r})\n')
    read_pids(running, 1)
    interrupt_group(running)
    time.sleep(pause)
    if running._process.poll() is None:
        interrupt_group(running)
    assert_nothing_left(running)
    running.finish()
    assert running.seconds < PROMPTLY
    assert is_interrupted(running), running.err


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_does_not_wait_for_workers_that_start(presses, method, script, tmp_path):
    """They import a script that takes a minute to import."""
    running = script(
        HEAD
        + main_that_waits(tmp_path)
        + f"""
tasks = [Task(f"hold_{{n}}", kill_tasks.hold) for n in range(2)]
DAG("slow", tasks=tasks).run(executor="process", max_workers=1, _start_method={method!r})
"""
    )
    assert read_line(running).startswith("starting")
    running.interrupt()
    if presses == 2:
        time.sleep(0.1)
        if running._process.poll() is None:
            running._process.send_signal(signal.SIGINT)
    assert_nothing_left(running)
    running.finish()
    print(f"Ctrl-C to exit: {running.seconds:.3f} s")
    assert running.seconds < PROMPTLY
    assert is_interrupted(running), running.err


@pytest.mark.parametrize("hosts", [10, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_ctrl_c_at_any_instant_ends_the_processes_without_a_word_of_theirs(hosts, method, script, rng):
    """To the whole group, from the start of the run to tasks that hold; also while the workers start.

    The fork server of multiprocessing runs by then: what interrupts Python while that starts is not ours to keep quiet.
    """
    ready = (
        'DAG("first", tasks=[Task("pid", kill_tasks.pid)]).run(executor="process")\n' if method == "forkserver" else ""
    )
    for first in range(0, hosts, 5):
        running = [
            script(
                HEAD
                + ready
                + WORK
                + f'say("go")\ndag.run(executor="process", max_workers=3, _start_method={method!r})\n'
            )
            for _ in range(first, min(hosts, first + 5))
        ]
        for host in running:
            host.wait_for("go")
            time.sleep(rng.uniform(0, 0.3))  # the instant is what is tried
            interrupt_group(host)
            assert seconds_until(lambda host=host: host._process.poll() is not None, 5) < PROMPTLY
        for host in running:
            assert_nothing_left(host)
            host.finish()
            assert is_interrupted(host), host.err
            assert host.err.count("Traceback (most recent call last)") == 1, host.err


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("executor", ["process", "async"])
def test_ctrl_c_at_any_instant_ends_the_run_and_the_next_one_is_none_the_worse(rounds, executor, script, rng):
    """One process that runs again and again; the signal goes to it alone."""
    hold = "kill_tasks.hold_quietly" if executor == "process" else "kill_tasks.hold_async_quietly"
    running = script(
        HEAD
        + f"""
first, join = Task("first", kill_tasks.pid), Task("join", kill_tasks.wide)
first >> [Task(f"wide_{{n}}", kill_tasks.pid) for n in range(30)] >> join >> Task("hold", {hold})
dag = DAG("rounds", tasks=join.downstream)
dag.validate()
for n in range({rounds}):
    try:
        say("go")
        dag.run(executor={executor!r}, max_workers=2, observers=[lambda event: None] if n % 2 else [])
        say("the run was over without a word")
    except KeyboardInterrupt:
        say("interrupted")
    except BaseException as error:
        say(f"{{type(error).__name__}}: {{error}}")
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        say("a handler was left behind")
for thread in threading.enumerate():
    if thread.name.startswith("flowkit-"):
        thread.join(5)
        if thread.is_alive():
            say(f"left behind: {{thread.name}}")
""",
        limit=10 + rounds,
    )
    slowest = 0.0
    for _ in range(rounds):
        running.wait_for("go")
        time.sleep(rng.uniform(0, 0.12))
        running.interrupt()
        running.wait_for("interrupted")
        slowest = max(slowest, time.monotonic() - running._since)
    running.finish()
    print(f"slowest of {rounds}, {executor}: {slowest:.3f} s")
    assert (running.returncode, running.out, running.err) == (0, "", "")
    assert slowest < PROMPTLY


@pytest.mark.parametrize("executor", ["process", "async"])
def test_ctrl_c_runs_the_cleanup_handlers_that_tasks_have_added(executor, script):
    running = script(
        HEAD + f'DAG("slow", tasks=[Task("hold", kill_tasks.hold_with_cleanup)]).run(executor={executor!r})\n'
    )
    running.wait_for("holding")
    interrupt_group(running)
    running.finish()
    assert running.out.splitlines() == ["cleaned"]
    assert is_interrupted(running), running.err


@pytest.mark.parametrize("hold", ["hold", "hold_async"])
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_a_run_in_the_callers_own_event_loop(presses, hold, script):
    """asyncio turns the first one into a cancel of the main task."""
    executor = "process" if hold == "hold" else "async"
    running = script(
        HEAD
        + f"""
import asyncio
asyncio.run(DAG("slow", tasks=[Task("hold", kill_tasks.{hold})]).arun(executor={executor!r}))
"""
    )
    read_pids(running, 1)
    interrupt_group(running)
    if presses == 2:
        time.sleep(0.05)
        if running._process.poll() is None:
            running._process.send_signal(signal.SIGINT)
    assert_nothing_left(running)
    running.finish()
    assert running.seconds < PROMPTLY
    assert is_interrupted(running), running.err


def test_ctrl_c_ends_a_run_in_the_background_whose_result_is_waited_for(method, script):
    running = script(
        HEAD
        + f"""
handle = DAG("slow", tasks=[Task(f"hold_{{n}}", kill_tasks.hold) for n in range(6)]).start(
    executor="process", max_workers=2, fail_fast=False, _start_method={method!r}
)
handle.result()
"""
    )
    read_pids(running, 2)
    interrupt_group(running)
    assert_nothing_left(running)
    running.finish()
    assert running.seconds < PROMPTLY
    assert is_interrupted(running), running.err
    assert running.err.count("Traceback (most recent call last)") == 1, running.err


def test_a_program_that_a_task_starts_hears_ctrl_c_as_usual(method, script):
    """The worker ignores it; what it executes must not inherit that."""
    running = script(
        HEAD
        + f"""
code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
dag = DAG("programs", tasks=[Task("call", kill_tasks.call_program)])
say(dag.run({{"code": code}}, executor="process", _start_method={method!r})["call"])
"""
    )
    running.wait_for("0")
    running.finish()
