"""Programs as people write them with the explicit door, from the first screen of its specification to a night that is
killed in the middle.

What they run is in :mod:`story_tasks`, where other processes find it too. What a program gives is compared with what it
gives under ``python -O``.
"""

import ast
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import story_tasks
from story_tasks import (
    ACKS,
    CALLS,
    EXECUTORS,
    FIRST_BLOCKED,
    MIXED,
    PARTS,
    PIPE,
    PIPE_END,
    PRIME,
    STORES,
    STORIES,
    STUCK,
    cells,
    mixed_workflow,
    side_by_side,
    statuses,
    table,
)
from test_workflows import FILES, FOLDER, every_workflow, load  # noqa: F401 - a fixture

import flowkit
from flowkit import (
    AsyncExecutor,
    FlowkitError,
    SQLiteStateStore,
    StateLockedError,
    Task,
    TaskStatus,
    ThreadedExecutor,
    Workflow,
    WorkflowExecutionError,
    WorkflowStatus,
    current_context,
)

PACKAGE = Path(flowkit.__file__).parent
TESTS = Path(__file__).parent
every_executor = pytest.mark.parametrize("kind", EXECUTORS)
local_executor = pytest.mark.parametrize("kind", ["sequential", "thread", "async"])


def python(*arguments, folder, **environment):
    """Start Python in *folder*, where every warning is an error."""
    path = os.pathsep.join([str(PACKAGE.parent), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip


def finish(process):
    """Return what *process* printed; it must end well, and without a word on its stderr."""
    try:
        out, err = process.communicate(timeout=40)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, err) == (0, "")
    return out


# ---------------------------------------------------------------- the first screen


FIRST_SCREEN = '''\
from flowkit import Workflow, Task, task, TaskStatus, SequentialExecutor, ThreadedExecutor, AsyncExecutor, \
JSONStateStore, SQLiteStateStore

@task(retries=2, timeout=30)
def fetch_users():
    return [{"id": 1, "name": "Alice"}]

@task()
def fetch_orders():
    return [{"user_id": 1, "amount": 100}]

@task()
def join_data(fetch_users=None, fetch_orders=None):      # results arrive by task name
    names = {u["id"]: u["name"] for u in fetch_users}
    return [(names[o["user_id"]], o["amount"]) for o in fetch_orders]

workflow = Workflow(name="customer_data_etl", description="...")
workflow.add_task(fetch_users)
workflow.add_task(fetch_orders)
workflow.add_task(join_data, depends_on=["fetch_users", "fetch_orders"])

ThreadedExecutor(max_workers=8, state_store=SQLiteStateStore("state.db")).execute(workflow)
workflow.get_task("join_data").status is TaskStatus.COMPLETED
workflow.get_task("join_data").result
'''
LOOK = """
print(workflow.get_task("join_data").status is TaskStatus.COMPLETED)
print(workflow.get_task("join_data").result)
print([task.attempts for task in workflow.tasks])
"""


def test_the_first_screen_is_that_of_the_specification():
    specification = FOLDER.parent / "specs" / "workflow.md"
    if not specification.exists():
        pytest.skip("there is no specification beside the checkout")
    assert re.search(r"^```python\n(.*?)^```", specification.read_text("utf-8"), re.DOTALL | re.MULTILINE)[1] == (
        FIRST_SCREEN
    )


def test_the_first_screen_runs_as_it_stands_in_an_empty_directory(tmp_path):
    """The second time everything is there already. Nobody has closed the store, and nobody is warned."""
    script = tmp_path / "elsewhere" / "first.py"
    script.parent.mkdir()
    script.write_text(FIRST_SCREEN + LOOK)
    folder = tmp_path / "empty"
    folder.mkdir()
    for attempts in ([1, 1, 1], [0, 0, 0]):
        out = finish(python("-X", "dev", script, folder=folder))
        assert out.splitlines() == ["True", "[('Alice', 100)]", str(attempts)]
        assert "state.db" in os.listdir(folder)
        assert all(name.startswith("state.db") for name in os.listdir(folder))
    with SQLiteStateStore(folder / "state.db") as store:
        kept = store.for_workflow("customer_data_etl").load_task_state("join_data")
    assert (kept["status"], kept["result"]) == ("COMPLETED", [("Alice", 100)])


# ---------------------------------------------------------------- ten thousand tasks


@pytest.mark.parametrize("kind", ["sequential", "thread"])
def test_ten_thousand_tasks_that_a_loop_makes_of_data_give_what_the_loop_would(kind):
    """A square table of cells, each of which adds up its neighbours above and to the left."""
    workflow = table(kind, 100)
    expected = {}
    for name, neighbours in cells(100).items():
        expected[name] = sum(expected[each] for each in neighbours) % PRIME if neighbours else 1
    assert len(workflow) == 10_000
    assert workflow.status is WorkflowStatus.COMPLETED
    assert {each.name: each.result for each in workflow.tasks} == expected
    assert workflow.get_workflow_stats()["completed"] == 10_000
    assert [len(generation) for generation in workflow.get_execution_plan()] == [*range(1, 101), *range(99, 0, -1)]


# ---------------------------------------------------------------- an order


@local_executor
def test_an_order_arrives_although_the_bank_refuses_twice_and_the_warehouse_hangs(kind):
    """read_order ─► price ─► charge ─► deliver ─► thank; read_order ─► reserve ─► deliver; refund if one has failed"""
    facts = story_tasks.order(kind, has_courier=True)
    assert facts["status"] == "COMPLETED"
    assert facts["thanks"] == "thank you: 2 x chair, 1 x lamp under way, receipt over 105"
    assert facts["attempts"] == {
        "read_order": 1, "price": 1, "charge": 3, "reserve": 2, "deliver": 1, "thank": 1, "refund": 0,
    }  # fmt: skip
    assert facts["statuses"].pop("refund") == "SKIPPED"
    assert set(facts["statuses"].values()) == {"COMPLETED"}
    assert facts["has_waited"]
    assert facts["metrics"] == sorted(
        [
            "read_order COMPLETED after 1",
            "price COMPLETED after 1",
            "charge failed in attempt 1",
            "charge failed in attempt 2",
            "charge COMPLETED after 3",
            "reserve failed in attempt 1",
            "reserve COMPLETED after 2",
            "deliver COMPLETED after 1",
            "thank COMPLETED after 1",
        ]
    )


@local_executor
def test_an_order_that_cannot_be_delivered_is_refunded_and_the_program_goes_on(kind):
    """The same without a courier: deliver fails, refund runs, thank does not; then another workflow is executed."""
    facts = story_tasks.order(kind, has_courier=False)
    assert (facts["status"], facts["failed_task"]) == ("FAILED", "deliver")
    assert facts["cause"] == "LookupError('no courier')"
    assert facts["refund"] == "receipt over 105 is void, None: no courier"
    assert facts["done"] == ["charge", "price", "read_order", "refund", "reserve"]
    assert facts["statuses"]["thank"] == "PENDING"
    assert facts["stats"] == {
        "total_tasks": 7, "completed": 5, "failed": 1, "skipped": 0, "pending": 1, "running": 0,
    }  # fmt: skip
    assert "deliver FAILED: no courier" in facts["metrics"]
    assert "refund COMPLETED after 1" in facts["metrics"]
    assert not any(line.startswith("thank") for line in facts["metrics"])
    assert facts["instead"] == "call the buyer of 7: no courier"


# ---------------------------------------------------------------- a night that is killed


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed as on POSIX")
@every_executor
def test_a_night_that_is_killed_in_the_middle_of_a_layer_goes_on_where_it_was(kind, tmp_path):
    """extract ─► load 0 .. load 19 ─► publish

    1. Of the twenty those from 12 on do not end; each worker that has one says so.
    2. When all workers have, nothing moves any more, and the process is killed.
    3. In the next one what was announced as done is there, and is not called again.
    """
    path, acks, calls = tmp_path / "state.db", tmp_path / "acks", tmp_path / "calls"
    code = f"import story_tasks; story_tasks.run_nightly({kind!r}, {str(path)!r})"
    noted = {ACKS: str(acks), CALLS: str(calls)}
    process = python("-c", code, folder=tmp_path, **noted, **{STUCK: "1"})
    try:
        for _ in range(1 if kind == "sequential" else 4):
            line = process.stdout.readline()
            assert line == "stuck\n", process.communicate()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=20)  # ends when the workers have ended too, who have these pipes
    assert (process.returncode, out) == (-signal.SIGKILL, "")
    acked = acks.read_text().splitlines()
    assert "extract" in acked
    assert len(acked) == len(set(acked)) <= 1 + FIRST_BLOCKED
    assert "publish" not in calls.read_text().splitlines()
    calls.write_text("")
    told = json.loads(finish(python("-c", code, folder=tmp_path, **noted)))
    assert told["published"] == list(range(100))
    assert set(told["statuses"].values()) == {"COMPLETED"}
    names = {"extract", "publish", *(f"load {number}" for number in range(PARTS))}
    again, restored = calls.read_text().splitlines(), set(told["restored"])
    assert set(acked) <= restored <= names - {"publish", *(f"load {n}" for n in range(FIRST_BLOCKED, PARTS))}
    assert sorted(again) == sorted(names - restored)
    with SQLiteStateStore(path) as store:
        kept = store.for_workflow("nightly").list_task_states()
    assert {name: state["status"] for name, state in kept.items()} == dict.fromkeys(names, "COMPLETED")
    assert kept["load 3"]["result"] == {"part": 3, "rows": (3, 23, 43, 63, 83)}


# ---------------------------------------------------------------- coroutines beside plain functions


SCRIPT = """
    import asyncio
    from flowkit import {executor}, Workflow, task

    @task
    async def fetch():
        await asyncio.sleep(0)
        return [3, 1, 2]

    @task
    def clean(fetch):
        return sorted(fetch)

    @task
    async def total(clean):
        return sum(clean)

    @task(retries=1, delay=0)
    async def audit(fetch, context):
        if context.attempt == 1:
            raise ConnectionError("refused")
        return len(fetch)

    @task
    def report(total, audit):
        return f"{{audit}} rows, {{total}} in all"

    def build():
        workflow = Workflow("mixed")
        workflow.add_task(fetch)
        workflow.add_task(clean, depends_on=["fetch"])
        workflow.add_task(total, depends_on=["clean"])
        workflow.add_task(audit, depends_on=["fetch"])
        workflow.add_task(report, depends_on=["total", "audit"])
        return workflow

    def main():
        workflow = build()
        print({executor}().execute(workflow)["report"])
        print(workflow.status, workflow.get_task("audit").attempts)

    async def main_async():
        print((await {executor}().execute(build()))["report"])

    if __name__ == "__main__":
        main()
        if "{executor}" == "AsyncExecutor":
            asyncio.run(main_async())
"""


@pytest.mark.parametrize("executor", [each.__name__ for each in EXECUTORS.values()])
def test_a_plain_script_mixes_coroutines_and_functions(executor, tmp_path):
    """fetch ─► clean ─► total ─► report, fetch ─► audit ─► report"""
    script = tmp_path / "pipeline.py"
    script.write_text(textwrap.dedent(SCRIPT.format(executor=executor)))
    expected = ["3 rows, 6 in all", "COMPLETED 2", *["3 rows, 6 in all"] * (executor == "AsyncExecutor")]
    assert finish(python("-X", "dev", script, folder=tmp_path)).splitlines() == expected


@every_executor
def test_a_mixed_graph_runs_outside_of_a_loop(kind):
    workflow = mixed_workflow()
    assert EXECUTORS[kind]().execute(workflow) == MIXED
    assert statuses(workflow) == dict.fromkeys(MIXED, "COMPLETED")


@every_executor
def test_a_mixed_graph_runs_inside_of_a_running_loop(kind):
    """The synchronous executors block the loop, and give the result; the asynchronous one is awaited."""

    async def main():
        workflow = mixed_workflow()
        result = EXECUTORS[kind]().execute(workflow)
        if kind == "async":
            result = await result
        return result, statuses(workflow)

    assert asyncio.run(main()) == (MIXED, dict.fromkeys(MIXED, "COMPLETED"))


def test_an_awaited_graph_lives_on_the_loop_of_whoever_awaits_it():
    """ask waits for an event of asyncio that the caller sets, which another loop or a blocked one would never see."""

    async def main():
        question, answer = asyncio.Event(), asyncio.Event()

        async def ask():
            question.set()
            await answer.wait()
            return asyncio.get_running_loop()

        def plain(ask):
            return threading.current_thread()

        workflow = Workflow("talk")
        workflow.add_task(Task("ask", ask))
        workflow.add_task(Task("plain", plain), depends_on=["ask"])
        handle = AsyncExecutor().execute(workflow)
        await asyncio.wait_for(question.wait(), 20)
        assert workflow.get_task_status("ask") is TaskStatus.RUNNING
        answer.set()
        result = await handle
        assert result["ask"] is asyncio.get_running_loop()
        assert result["plain"] is not threading.current_thread()

    asyncio.run(main())


def test_many_workflows_are_awaited_together():
    async def main():
        executor = AsyncExecutor()
        workflows = [mixed_workflow(f"mixed {n}") for n in range(5)]
        results = await asyncio.gather(*(executor.execute(workflow) for workflow in workflows))
        assert results == [MIXED] * 5
        assert {workflow.status for workflow in workflows} == {WorkflowStatus.COMPLETED}

    asyncio.run(main())


def test_a_request_that_gives_up_takes_its_workflow_with_it():
    """A time limit of asyncio around a workflow whose task never ends"""

    async def main():
        workflow, ends = Workflow("request"), []

        async def forever():
            try:
                await asyncio.Event().wait()
            finally:
                ends.append("forever")

        workflow.add_task(Task("forever", forever))
        workflow.add_task(Task("after", lambda: ends.append("after")), depends_on=["forever"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AsyncExecutor().execute(workflow), 0.05)
        return workflow, ends

    workflow, ends = asyncio.run(main())
    assert ends == ["forever"]
    assert workflow.status is WorkflowStatus.CANCELLED
    assert statuses(workflow) == {"forever": "CANCELLED", "after": "CANCELLED"}


def test_an_execution_that_gets_no_thread_does_not_go_on_for_ever(mocker):
    async def main():
        workflow = mixed_workflow()
        mocker.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread"))
        with pytest.raises(FlowkitError, match="can't start new thread"):
            await AsyncExecutor().execute(workflow)
        mocker.stopall()
        assert workflow.status is not WorkflowStatus.RUNNING
        assert await AsyncExecutor().execute(workflow) == MIXED
        assert workflow.status is WorkflowStatus.COMPLETED

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sequential", "thread", "process"])
def test_a_synchronous_executor_in_a_coroutine_leaves_the_loop_as_it_was(kind):
    async def main():
        loop, later = asyncio.get_running_loop(), []
        loop.call_soon(later.append, "called")
        EXECUTORS[kind]().execute(mixed_workflow())
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        return later

    assert asyncio.run(main()) == ["called"]


# ---------------------------------------------------------------- one store for two


@pytest.mark.parametrize("kind", STORES)
def test_two_workflows_share_a_store_at_the_same_time_and_do_not_meet(kind, tmp_path):
    """begin ─► meet ─► end 0 .. end 9, twice with the same names; "meet" waits for that of the other workflow."""
    both = side_by_side(lambda: STORES[kind](tmp_path))
    for workflow in both:
        assert set(statuses(workflow).values()) == {"COMPLETED"}
        assert workflow.get_task_result("end 3") == [workflow.name, f"{workflow.name} has met the other"]
    with STORES[kind](tmp_path) as store:
        for workflow in both:
            kept = store.for_workflow(workflow.name).list_task_states()
            assert {name: state["result"] for name, state in kept.items()} == {
                each.name: each.result for each in workflow.tasks
            }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the processes meet at a named pipe")
@pytest.mark.parametrize("kind", STORES)
def test_two_processes_share_a_store_at_the_same_time(kind, tmp_path):
    """The same in two processes, whose tasks "meet" open the two ends of one pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    processes = [
        python(
            "-c", f"import story_tasks; story_tasks.run_beside({name!r}, {kind!r}, {str(tmp_path)!r})",
            folder=tmp_path, **{PIPE: str(pipe), PIPE_END: end},
        )
        for name, end in [("east", "r"), ("west", "w")]
    ]  # fmt: skip
    try:
        assert [finish(process) for process in processes] == ["12 completed\n"] * 2
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
    with STORES[kind](tmp_path) as store:
        for name in ("east", "west"):
            kept = store.for_workflow(name).list_task_states()
            assert len(kept) == 12
            assert kept["end 7"]["result"] == [name, f"{name} has met the other"]


# ---------------------------------------------------------------- one workflow for four


@local_executor
def test_four_threads_execute_one_workflow_at_once_and_each_gets_its_own(kind):
    """who ─► meet ─► tell; "meet" of all four executions wait for each other."""
    barrier, workflow = threading.Barrier(4), Workflow("shared")

    def who():
        return current_context().run_id

    def meet(who):
        barrier.wait(20)
        return who

    def tell(meet):
        return meet, workflow.get_task_result("who"), workflow.get_task("tell").status.value

    workflow.add_task(Task("tell", tell), depends_on=["meet"])
    workflow.add_task(Task("meet", meet), depends_on=["who"])
    workflow.add_task(Task("who", who))
    results = in_threads(4, lambda: EXECUTORS[kind]().execute(workflow))
    assert all(not isinstance(result, Exception) for result in results), results
    assert [result["tell"] for result in results] == [(r.run_id, r.run_id, "RUNNING") for r in results]
    assert len({result.run_id for result in results}) == 4
    assert workflow.status is WorkflowStatus.COMPLETED
    assert workflow.get_task_result("who") in {result.run_id for result in results}
    assert workflow.get_workflow_stats()["completed"] == 3


def in_threads(count, call):
    """Return what *call* gave in each of *count* threads at once; what it raised stands for its result."""
    results = []

    def note():
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=note) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.mark.parametrize("kind", STORES)
def test_of_four_threads_with_one_store_one_executes_and_the_others_are_told(kind, tmp_path):
    """The task waits until three were refused; then a fourth execution takes its result from the store."""
    refused, workflow, calls = threading.Semaphore(0), Workflow("shared"), []

    def work():
        calls.append("work")
        return sum(refused.acquire(timeout=20) for _ in range(3))

    workflow.add_task(Task(work))
    with STORES[kind](tmp_path) as store:

        def execute():
            try:
                return ThreadedExecutor(state_store=store).execute(workflow)
            except StateLockedError:
                refused.release()
                raise

        results = in_threads(4, execute)
        assert sorted(type(result).__name__ for result in results) == ["RunResult", *["StateLockedError"] * 3]
        assert {"work": 3} in results
        assert execute() == {"work": 3}
    assert calls == ["work"]
    assert workflow.get_task_status("work") is TaskStatus.COMPLETED


# ---------------------------------------------------------------- python -O


def test_every_story_is_the_same_under_python_o(tmp_path):
    """All that is told here, and what every bad input gets: nothing hangs on a statement that -O leaves out."""
    process = python("-O", TESTS / "story_tasks.py", folder=tmp_path)
    here = json.loads(story_tasks.tell_all())
    there = json.loads(finish(process))
    assert there.keys() == STORIES.keys()
    for name in STORIES:
        assert there[name] == here[name], name


def test_every_bad_input_is_refused():
    refusals = story_tasks.refusals()
    assert [what for what, told in refusals.items() if told == ["taken"]] == []
    for what, (*kinds, text) in refusals.items():
        assert {"ValueError", "TypeError", "LookupError"} & set(kinds), what
        assert text.strip(), what


def test_no_assert_of_the_package_looks_at_what_users_give():
    """Each is for the type checker, and says so."""
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Assert):
                found += 1
                assert "# noqa: S101 - for the type checker" in lines[node.lineno - 1], f"{path.name}:{node.lineno}"
    assert found  # or this test looks in the wrong place


# ---------------------------------------------------------------- graphs of other people


class Graph:
    """A workflow of a real graph; each task gives a number that depends on every way that leads to it.

    Attributes:
        began: The tasks that have begun, by their positions.
        early: Those that did so before all that they depend on had ended.
    """

    def __init__(self, names, upstream, failing=None):
        self._names, self._upstream, self._failing = names, upstream, failing
        self.began, self.early, self._ended = [], [], bytearray(len(names))
        self.workflow = Workflow("real")
        for i in random.Random(len(names)).sample(range(len(names)), len(names)):
            self.workflow.add_task(Task(names[i], self._body(i)), depends_on=[names[u] for u in upstream[i]])

    def _body(self, i):
        def body(**given):
            self.began.append(i)
            if not all(self._ended[u] for u in self._upstream[i]):
                self.early.append(i)
            if i == self._failing:
                raise ConnectionError("refused")
            self._ended[i] = 1
            return (sum(given.values()) * 31 + i) % PRIME

        return body

    def values(self):
        """Return what each task gives if none fails, by its name."""
        value = []
        for i, before in enumerate(self._upstream):
            value.append((sum(value[u] for u in before) * 31 + i) % PRIME)
        return dict(zip(self._names, value, strict=True))


@pytest.mark.skipif(not FILES, reason="there is no shared/workflows beside the checkout")
@every_workflow
@pytest.mark.parametrize("kind", ["sequential", "thread"])
def test_a_real_graph_runs_each_task_once_and_after_what_it_depends_on(load, path, kind):  # noqa: F811
    names, _, upstream = load(path)
    graph = Graph(names, upstream)
    result = EXECUTORS[kind]().execute(graph.workflow)
    assert sorted(graph.began) == list(range(len(names)))
    assert graph.early == []
    assert result == graph.values()
    assert graph.workflow.get_workflow_stats()["completed"] == len(names)


@pytest.mark.skipif(not FILES, reason="there is no shared/workflows beside the checkout")
@every_workflow
def test_a_failure_in_a_real_graph_leaves_what_finished_and_what_never_started(load, path):  # noqa: F811
    names, _, upstream = load(path)
    failing = next(i for i in range(len(names) // 2, len(names)) if upstream[i])
    graph = Graph(names, upstream, failing)
    with pytest.raises(WorkflowExecutionError, match=re.escape(repr(names[failing]))) as caught:
        ThreadedExecutor().execute(graph.workflow)
    assert caught.value.failed_task == names[failing]
    status = statuses(graph.workflow)
    began = {names[i] for i in graph.began}
    assert {name for name in status if status[name] == "PENDING"} == set(names) - began
    assert {name for name in status if status[name] == "FAILED"} == {names[failing]}
    assert {name for name in status if status[name] == "COMPLETED"} == began - {names[failing]}
    assert graph.early == []
    values = graph.values()
    assert caught.value.result == {name: values[name] for name in status if status[name] == "COMPLETED"}
    under = {failing}
    for i, before in enumerate(upstream):
        if not under.isdisjoint(before):
            under.add(i)
            assert status[names[i]] == "PENDING"
    above = list(upstream[failing])
    for u in above:
        assert status[names[u]] == "COMPLETED"
        above += [each for each in upstream[u] if each not in above]
