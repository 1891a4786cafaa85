"""Runs on a Dask cluster: the results are those of any run, and what only the cluster needs stays there.

A value of class ``StaysAway`` cannot be unpickled in this process: where it is handed on, it never came by here.
The functions are in ``foreign_tasks.py``, where workers find them.
"""

import asyncio
import functools
import gc
import multiprocessing
import os
import random
import threading
import time

import foreign_tasks as tasks
import pytest

from flowkit import (
    DAG,
    AttemptFailed,
    AttemptStarted,
    ConditionError,
    FlowkitError,
    GiveUp,
    OptionError,
    RemoteError,
    RunCancelledError,
    RunTimeoutError,
    Task,
    TaskExecutionError,
    TaskResultError,
    TaskTimeoutError,
)
from flowkit.events import TaskEvent

SOON = 5.0
"""Seconds within which whatever is stopped must be over; on an idle machine it takes a few hundredths."""
PATIENCE = 20.0
"""Seconds after which a wait inside of a test gives up."""
HOME = os.getpid()


@pytest.fixture(scope="module")
def cluster_client():
    """The client of a cluster of two processes; a task may bring down one of them, and is tried again then."""
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    allowed = dask.config.set({"distributed.scheduler.allowed-failures": 1})
    with (
        allowed,
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Fail a test that leaves threads or processes of flowkit behind; forget the tasks that it made.

    In the place of the fixture of that name, which every test has: connections and workers of the cluster, which is
    that of the whole module, come and go when Dask likes.
    """
    yield
    Task.clear_registry()
    until = time.monotonic() + SOON
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("flowkit-")]:
        assert time.monotonic() < until, f"threads left behind: {left}"
        time.sleep(0.002)
    children = [child for child in multiprocessing.active_children() if not child.name.startswith("Dask Worker")]
    assert not children, f"processes left behind: {children}"


@pytest.fixture
def client(cluster_client):
    """A client that works before and after the test."""
    yield cluster_client
    assert cluster_client.status == "running"
    assert cluster_client.submit(tasks.double, 21, pure=False).result(PATIENCE) == 42


@pytest.fixture
def pool(client):
    from flowkit.integrations.dask import DaskExecutor

    return DaskExecutor(client)


@pytest.fixture
def future_type(client):
    return pytest.importorskip("distributed").Future


@pytest.fixture
def release(tmp_path):
    """The path of a file that lets tasks end which nobody can tell to stop; it is made with the test's end at last."""
    path = tmp_path / "release"
    yield str(path)
    path.touch()


def run_on(executor, *wanted, inputs=None, **options):
    options = {"fail_fast": False, "raise_on_failure": False} | options
    return DAG("etl", tasks=wanted).run(inputs, executor=executor, **options)


def states(result):
    return {name: run.state for name, run in result.tasks.items()}


def stays(name, text):
    """Return a task whose value must not come to this process."""
    return Task(name, functools.partial(tasks.StaysAway, HOME, text))


# ---------------------------------------------------------------- results


def diamond():
    """one ─► [double, add ◄─ two] ─► collect"""
    one, added, collected = Task("one", tasks.one), Task("add", tasks.add), Task("collect", tasks.collect)
    [one, Task("two", tasks.two)] >> added
    [one >> Task("double", tasks.double), added] >> collected
    return collected


def fetched(result):
    """Return the values of *result*, those on the cluster included."""
    return {name: value.result(PATIENCE) if hasattr(value, "key") else value for name, value in result.items()}


def test_the_results_are_those_of_a_run_on_threads(pool, client):
    threads = run_on("thread", diamond())
    assert fetched(run_on(pool, diamond())) == threads
    assert run_on(client.get_executor(pure=False), diamond()) == threads


def test_tasks_run_in_the_processes_of_the_cluster(pool):
    result = run_on(pool, Task("pid", tasks.pid), Task("own", tasks.pid, executor="thread"))
    assert result["own"] == HOME != result["pid"]
    assert result.tasks["pid"].worker == "DaskExecutor"


VALUES = [
    None, 0, -(2**70), 1.5, "text", b"bytes", (1, (2,)), [1, [2]], {1: {"a": 2}}, {1, 2}, frozenset({3}), range(3), 1j,
    int, len, ..., (sum, [1, 2]), [(len, "abc")], {"a": (len, "abc")}, ("kept", 1), (tasks.one,), {"value": "holds"},
]  # fmt: skip


def test_values_arrive_with_the_types_they_had(pool):
    """make ─► echo ─► again; the input ─► given_back; own (thread) ─► from_here"""
    make = Task("make", functools.partial(tasks.echo, VALUES))
    again = make >> Task("echo", tasks.echo) >> Task("again", tasks.echo)
    own = Task("own", functools.partial(tasks.echo, VALUES), executor="thread")
    result = run_on(
        pool, again, Task("given_back", tasks.give), own >> Task("from_here", tasks.echo), inputs={"given": VALUES}
    )
    for name in ("again", "given_back", "from_here"):
        assert result[name] == VALUES
        assert [type(value) for value in result[name]] == [type(value) for value in VALUES]


def test_a_text_that_looks_like_the_name_of_a_result_stays_a_text(pool):
    """make ─► [key_like (thread) ─► echo], make ─► below"""
    make = Task("make", tasks.one)
    text = Task("text", tasks.key_like, executor="thread").after(make)
    result = run_on(pool, make >> Task("below", tasks.echo), text >> Task("echo", tasks.echo))
    assert result["echo"] == f"make-{result.run_id}-1"


# ---------------------------------------------------------------- what stays


def test_what_only_the_cluster_needs_stays_there(pool, client, future_type):
    """make ─► append ─► join ◄─ make"""
    make = stays("make", "a")
    join = Task("join", tasks.join)
    [make >> Task("append", functools.partial(tasks.append, text="b")), make] >> join
    result = run_on(pool, join)
    assert result["join"] == "a b + a"
    for name in ("make", "append"):
        assert isinstance(result[name], future_type)
        assert client.who_has([result[name]])[result[name].key]
    assert client.submit(tasks.where, result["append"], pure=False).result(PATIENCE) == ("a b", False)


def test_the_events_of_what_stays_there_do_not_fetch_it(pool, future_type):
    """make ─► join"""
    seen = []
    result = run_on(pool, stays("make", "a") >> Task("join", tasks.join), observers=[seen.append])
    assert result["join"] == "a"
    assert [event.task_name for event in seen if isinstance(event, TaskEvent)] == ["make", "join"]
    result.summary()
    assert result.to_dict()["tasks"]["make"]["state"] == "succeeded"


def test_a_result_that_nobody_takes_is_fetched(pool):
    """make, whose value cannot come here; one"""
    result = run_on(pool, stays("make", "a"), Task("one", tasks.one))
    assert result["one"] == 1
    assert type(result.errors["make"]) is TaskResultError
    assert "task 'make' returned a value that cannot be unpickled here" in str(result.errors["make"])


def test_a_task_elsewhere_gets_the_value_itself(pool):
    """one ─► thread, process, loop, double; each on another kind of worker"""
    one = Task("one", tasks.one)
    one >> [
        Task("thread", tasks.double, executor="thread"), Task("process", tasks.double, executor="process"),
        loop := Task("loop", tasks.double_soon), here := Task("double", tasks.double),
    ]  # fmt: skip
    result = run_on(pool, *one.downstream)
    assert result == {"one": 1, "thread": 2, "process": 2, loop.name: 2, here.name: 2}


def test_what_stays_lives_as_long_as_the_result(pool, client):
    result = run_on(pool, stays("make", "a") >> Task("join", tasks.join))
    key = result["make"].key
    assert key in client.futures
    del result
    gc.collect()
    until = time.monotonic() + PATIENCE
    while key in client.futures:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_after_a_run_nothing_else_is_kept_on_the_cluster(pool, client):
    """one ─► double ─► thread, which takes the value here"""
    before = set(client.futures)
    result = run_on(pool, Task("one", tasks.one) >> Task("double", tasks.double) >> Task("last", tasks.echo))
    kept = {value.key for value in result.values() if hasattr(value, "key")}
    gc.collect()
    until = time.monotonic() + PATIENCE
    while set(client.futures) - before != kept:
        assert time.monotonic() < until, set(client.futures) - before
        time.sleep(0.01)


def test_the_context_has_the_values_upstream_and_not_what_stands_for_them(pool):
    """make ─► look, by its context"""
    result = run_on(pool, Task("look", tasks.text_upstream).after(stays("make", "a")))
    assert result["look"] == {"make": "a"}, result.summary()


def test_the_context_of_a_task_here_has_the_values_upstream(pool):
    """one ─► look (thread), by its context"""
    look = Task("look", tasks.look_upstream, executor="thread").after(Task("one", tasks.one))
    assert run_on(pool, look)["look"] == {"one": ("succeeded", 1, "")}


def test_two_runs_of_the_same_name_and_id_do_not_take_each_others_results(pool):
    """make ─► echo: two runs whose ids come from the same seed, as when one is resumed"""
    results = []
    for value in (1, 2):
        make = Task("make", functools.partial(tasks.echo, value))
        results.append(run_on(pool, make >> Task("echo", tasks.echo), _rng=random.Random(1)))
    assert [result["echo"] for result in results] == [1, 2]


# ---------------------------------------------------------------- errors, skips, conditions, retries


def test_an_error_arrives_with_its_type_arguments_and_cause(pool):
    """refuse ─► below: a task whose result would have stayed; pay, whose result would have come here"""
    refuse = Task("refuse", tasks.refuse_with_cause)
    result = run_on(pool, refuse >> Task("below", tasks.echo), Task("pay", tasks.give_up, retries=3))
    assert states(result) == {"refuse": "failed", "below": "upstream_failed", "pay": "failed"}
    error = result.errors["refuse"]
    assert type(error) is tasks.Refused
    assert (error.args, error.code, repr(error.__cause__)) == ((402, "card declined"), 402, "KeyError('missing')")
    assert type(result.errors["pay"]) is GiveUp
    assert result.tasks["pay"].attempts == 1


@pytest.mark.parametrize(("kind", "args"), tasks.HOSTILE, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("is_kept", [False, True], ids=["fetched", "kept"])
def test_no_exception_of_a_task_breaks_the_cluster(pool, kind, args, is_kept):
    raises = Task("raises", functools.partial(tasks.raise_error, kind, *args))
    after = Task("after", tasks.one, trigger="all_done").after(raises)
    error = run_on(pool, after if is_kept else raises).errors["raises"]
    assert type(error) is kind or (type(error) is RemoteError and error.type_name == kind.__name__)


def test_retries_and_events_are_those_of_any_run(pool):
    """third ─► echo: a task whose result stays there"""
    events = []
    third = Task("third", tasks.succeed_at_third, retries=2, delay=0)
    result = run_on(pool, third >> Task("echo", tasks.echo), observers=[events.append])
    assert result["echo"] == 3
    assert result.tasks["third"].attempts == 3
    failed = [(event.attempt, str(event.error)) for event in events if isinstance(event, AttemptFailed)]
    assert failed == [(1, "refused 1"), (2, "refused 2")]
    begun = [(event.task_name, event.attempt) for event in events if isinstance(event, AttemptStarted)]
    assert begun == [("third", 1), ("third", 2), ("third", 3), ("echo", 1)]


@pytest.mark.parametrize(("retry_on", "attempts"), [(OSError, 3), (ValueError, 1), (tasks.is_refusal, 3)])
def test_retry_on_decides_what_is_tried_again(pool, retry_on, attempts):
    third = Task("third", tasks.succeed_at_third, retries=5, delay=0, retry_on=retry_on)
    after = Task("after", tasks.one, trigger="all_done").after(third)
    assert run_on(pool, after).tasks["third"].attempts == attempts


def test_skips_and_what_hangs_under_them(pool):
    """skip ─► below; [skip, one] ─► join"""
    skip, join = Task("skip", tasks.skip), Task("join", tasks.collect)
    [skip, Task("one", tasks.one)] >> join
    result = run_on(pool, skip >> Task("below", tasks.echo), join)
    assert states(result) == {"skip": "skipped", "one": "succeeded", "below": "skipped", "join": "succeeded"}
    assert result["join"] == [None, 1]


def test_a_condition_is_asked_where_the_data_is(pool):
    """make ─► yes; other ─► no; other ─► broken"""
    yes = stays("make", "long") >> Task("yes", tasks.join, when=tasks.is_long, retries=1)
    other = stays("other", "x")
    no = other >> Task("no", tasks.join, when=tasks.is_long)
    broken = other >> Task("broken", tasks.join, when=tasks.broken_condition)
    result = run_on(pool, yes, no, broken)
    assert result["yes"] == "long"
    assert (result.tasks["no"].state, result.tasks["no"].attempts) == ("skipped", 0)
    assert type(result.errors["broken"]) is ConditionError


def test_mapped_tasks_leave_their_items_there(pool, future_type):
    """numbers ─► stay_apart (mapped) ─► join"""
    mapped = Task("apart", functools.partial(tasks.stay_apart, HOME)).map()
    result = run_on(pool, Task("numbers", tasks.numbers) >> mapped >> Task("join", lambda values: tasks.join(*values)))
    assert result["join"] == " + ".join(f"item {n}" for n in range(6)), result.summary()
    assert all(isinstance(value, future_type) for value in result["apart"])


def test_mapped_tasks_have_the_results_of_any_run(pool):
    """numbers ─► skip_odd (mapped) ─► double (mapped) of what is left; fails (mapped)"""
    source = Task("numbers", tasks.numbers)
    skips, fails = Task("skips", tasks.skip_odd).map(), Task("fails", tasks.refuse_odd).map()
    source >> [skips, fails]
    result = run_on(pool, skips >> Task("echo", tasks.echo), fails, source >> Task("double", tasks.double).map())
    assert result["echo"] == [0, None, 2, None, 4, None]
    assert result["double"] == [0, 2, 4, 6, 8, 10]
    assert [str(error.__cause__) for error in result.errors["fails"].exceptions] == [
        "1 is odd", "3 is odd", "5 is odd"
    ]  # fmt: skip


def test_a_run_in_a_task_runs_on_the_worker(pool):
    assert run_on(pool, Task("two", tasks.two) >> Task("inside", tasks.run_inside))["inside"] == 4


def test_a_function_that_cannot_travel_is_named(pool):
    error = run_on(pool, Task("work", tasks.LockHolder().work)).errors["work"]
    assert "task 'work': its function" in str(error)


# ---------------------------------------------------------------- stopping


def test_an_attempt_that_takes_too_long_has_timed_out(pool, release):
    slow = Task("slow", functools.partial(tasks.wait_for, release), timeout=0.3)
    after = Task("after", tasks.one, trigger="all_done").after(slow)
    result = run_on(pool, after)
    assert type(result.errors["slow"]) is TaskTimeoutError
    assert result["after"] == 1


def test_cancelling_ends_the_run_and_takes_back_what_waits(pool, client, release):
    """wait x 8, on four threads"""
    is_inside = threading.Event()
    waiting = [Task(f"t{n}", functools.partial(tasks.wait_for, release)) for n in range(8)]
    handle = DAG("etl", tasks=waiting).start(
        executor=pool, observers=[lambda event: is_inside.set() if isinstance(event, AttemptStarted) else None]
    )
    assert is_inside.wait(PATIENCE)
    handle.cancel("enough")
    with pytest.raises(RunCancelledError):
        handle.result(SOON)


def test_the_timeout_of_the_run_cancels_it(pool, release):
    with pytest.raises(RunTimeoutError):
        run_on(pool, Task("wait", functools.partial(tasks.wait_for, release)), timeout=0.3)


def test_fail_fast_raises_the_failure(pool):
    with pytest.raises(TaskExecutionError, match="task 'refuse' failed") as caught:
        run_on(pool, Task("refuse", tasks.refuse) >> Task("below", tasks.echo), fail_fast=True, raise_on_failure=True)
    assert repr(caught.value.__cause__) == "ValueError('no')"


def test_many_runs_share_one_client_at_once(pool):
    dag = DAG("shared", tasks=[diamond(), Task("refuse", tasks.refuse)])
    results = []

    def run():
        results.append(dag.run(executor=pool, fail_fast=False, raise_on_failure=False))

    runners = [threading.Thread(target=run) for _ in range(10)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(PATIENCE)
    assert [result["collect"] for result in results] == [[2, 3]] * 10
    assert all(result.failed == ["refuse"] for result in results)


# ---------------------------------------------------------------- workers that die


def test_a_task_whose_worker_dies_is_tried_again_by_dask(pool, tmp_path):
    """make ─► dies once ◄─ make"""
    dies = Task("dies", functools.partial(tasks.kill_worker_once, str(tmp_path / "died")))
    result = run_on(pool, Task("one", tasks.one) >> dies, Task("two", tasks.two), timeout=PATIENCE)
    assert result["dies"] == "survived"
    assert result["two"] == 2


def test_a_task_that_brings_its_workers_down_is_a_clear_error(pool):
    """kill ─► below; after ◄─ kill"""
    kill = Task("kill", tasks.kill_worker)
    after = Task("after", tasks.two, trigger="all_done").after(kill)
    result = run_on(pool, kill >> Task("below", tasks.echo), after, timeout=PATIENCE)
    assert states(result) == {"kill": "failed", "below": "upstream_failed", "after": "succeeded"}
    error = result.errors["kill"]
    assert type(error) is FlowkitError
    assert "DaskExecutor" in str(error)
    assert "task 'kill'" in str(error)
    assert "KilledWorker" in str(error)


# ---------------------------------------------------------------- the executor


@pytest.mark.parametrize("wrong", [None, "tcp://127.0.0.1:8786", 3, object(), threading.Thread()])
def test_something_else_than_a_client_is_refused(client, wrong):
    from flowkit.integrations.dask import DaskExecutor

    with pytest.raises(OptionError, match=r"DaskExecutor\(.*takes a distributed\.Client"):
        DaskExecutor(wrong)


def test_the_class_of_a_client_and_an_asynchronous_client_are_refused(client):
    from distributed import Client

    from flowkit.integrations.dask import DaskExecutor

    async def main():
        async with Client(client.scheduler.address, asynchronous=True) as other:
            with pytest.raises(OptionError, match="not asynchronous"):
                DaskExecutor(other)

    asyncio.run(main())
    with pytest.raises(OptionError):
        DaskExecutor(Client)


def test_the_executor_serves_others_too(pool):
    assert pool.submit(tasks.add, 1, right=2).result(PATIENCE) == 3
    assert list(pool.map(tasks.double, range(3))) == [0, 2, 4]
    with pytest.raises(ValueError, match="no"):
        pool.submit(tasks.refuse).result(PATIENCE)


def test_leaving_the_executor_does_not_close_the_client(pool, client):
    with pool:
        assert run_on(pool, Task("one", tasks.one))["one"] == 1
    assert client.status == "running"


def test_a_client_that_was_closed_is_a_clear_error(client):
    from distributed import Client

    from flowkit.integrations.dask import DaskExecutor

    with Client(client.scheduler.address, set_as_default=False) as other:
        pool = DaskExecutor(other)
    error = run_on(pool, Task("one", tasks.one), timeout=PATIENCE).errors["one"]
    assert type(error) is FlowkitError
    assert "DaskExecutor" in str(error)
    assert "task 'one'" in str(error)


def test_the_functions_of_a_script_run_on_a_cluster(client, tmp_path, script):
    """A program whose functions are under @task, in a file of its own; its cluster is not that of its __main__."""
    path = tmp_path / "program.py"
    path.write_text(
        "import os, sys\n"
        "from distributed import Client\n"
        "from flowkit import DAG, task\n"
        "from flowkit.integrations.dask import DaskExecutor\n"
        "class Rows(list):\n    pass\n"
        "@task\n"
        "def fetch():\n    return Rows([os.getpid()])\n"
        "@task(when=bool, retries=1)\n"
        "def check(fetch):\n    return fetch\n"
        "fetch >> check\n"
        "if __name__ == '__main__':\n"
        "    with Client(sys.argv[1]) as client:\n"
        "        result = DAG('etl').run(executor=DaskExecutor(client))\n"
        "        print(type(result['fetch']).__name__, result['check'] != [os.getpid()], type(result['check']))\n"
    )
    address = client.scheduler.address
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, {str(path)!r}, {address!r}]).returncode)"
    running = script(code, limit=20).finish()
    assert (running.out, running.returncode) == ("Future True <class '__main__.Rows'>\n", 0), running.err


def test_without_dask_the_import_names_the_extra(script):
    running = script(
        """
        import sys
        sys.modules["distributed"] = None
        try:
            import flowkit.integrations.dask
        except ImportError as error:
            print(error)
        """
    ).finish()
    assert running.out == "flowkit.integrations.dask needs Dask: pip install 'flowkit[dask]'\n", running.err
