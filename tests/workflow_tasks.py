"""What the tests of :mod:`test_workflow` are made of: tasks that processes can import, gates, and who is told.

No test in here. The functions stand at module level because processes find them by name; each process imports this
module, so what is slow to import is imported where it is used.
"""

import contextlib
import os
import re
import select
import threading
import time

from flowkit import SequentialExecutor, Task, Workflow, WorkflowExecutionError

PATIENCE = 10.0
"""Seconds after which whoever waits in a test gives up."""
HOOKS = ["on_workflow_start", "on_workflow_success", "on_workflow_failure"]
NAMES = ["end", "a-b", "a b", "a_b", 'say "hi"', "x[0]", "%%{init: {}}%%", "#35;", "<b>"]
FIRST_SCREEN = '''
from flowkit import Workflow, Task, task, TaskStatus, SequentialExecutor, ThreadedExecutor, AsyncExecutor, JSONStateStore, SQLiteStateStore

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
'''  # noqa: E501 - as it stands where people read it

# ---------------------------------------------------------------- workflows, in the process of the test


def build(*steps, name="etl"):
    """Return a workflow of *steps*: a task, or a task and the names that it depends on."""
    workflow = Workflow(name)
    for step in steps:
        workflow.add_task(*(step if isinstance(step, tuple) else (step,)))
    return workflow


def broken(make=SequentialExecutor, **options):
    """Return good ─► bad ─► below, after it has been executed."""
    workflow = build(Task("good", one), (Task("bad", refuse), ["good"]), (Task("below", one), ["bad"]))
    execute_in_vain(make(**options), workflow)
    return workflow


def execute_in_vain(executor, workflow):
    """Execute *workflow*, which must fail, and return the error."""
    try:
        result = executor.execute(workflow)
    except WorkflowExecutionError as error:
        return error
    raise AssertionError(f"it did not fail: {result}")


def execute_both(make, *callbacks, **options):
    """Execute a task that succeeds and one that fails, each alone, with *callbacks*; return the two workflows."""
    good, bad = (build(Task(func, callbacks=callbacks, **options)) for func in (one, refuse))
    make().execute(good)
    execute_in_vain(make(), bad)
    return good, bad


def execute_while_another_goes_on(executor, **options):
    """Execute one task with *options* whose execution starts a second one, which is the latest then and ends last."""
    others, has_begun, may_end = [], threading.Event(), threading.Event()

    def begin():
        if others:
            has_begun.set()
            return may_end.wait(PATIENCE)
        others.append(threading.Thread(target=SequentialExecutor().execute, args=(workflow,)))
        others[0].start()
        return has_begun.wait(PATIENCE)

    workflow = build(Task(begin, **options))
    executor.execute(workflow)
    may_end.set()
    others[0].join(PATIENCE)


def statuses(workflow):
    return {each.name: each.status for each in workflow.tasks}


def drawn(shown):
    """Return the labels of a picture by id, as they are drawn, its edges, and the classes of ids."""
    nodes = re.findall(r'^    (\w+)\["([^"]*)"\]$', shown, re.MULTILINE)
    labels = {
        node: re.sub(r"#(\d+);", lambda entity: chr(int(entity[1])), text.replace("#8288;", "").split("<br/>")[0])
        for node, text in nodes
    }
    assert len(labels) == len(nodes)
    edges = [(labels[a], labels[b]) for a, b in re.findall(r"^    (\w+) --> (\w+)$", shown, re.MULTILINE)]
    classes = {labels[node]: kind for node, kind in re.findall(r"^    class (\w+) (\w+)$", shown, re.MULTILINE)}
    return labels, edges, classes


@contextlib.contextmanager
def in_threads(work, *arguments):
    """Call *work* with each of *arguments*, each in a thread of its own; wait for them in the end."""
    threads = [threading.Thread(target=work, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(PATIENCE)


def run_soon(main):
    """Run the coroutine function *main*, for a while at most."""
    import asyncio

    async def guarded():
        async with asyncio.timeout(PATIENCE):
            return await main()

    return asyncio.run(guarded())


class Held:
    """A coroutine task that waits on the loop of the test until it is released.

    Attributes:
        started: Set when it runs.
        release: Lets it end.
        was_cancelled: Whether it was cancelled instead.
    """

    def __init__(self):
        import asyncio

        self.started, self.release, self.was_cancelled = asyncio.Event(), asyncio.Event(), False

    async def __call__(self):
        self.started.set()
        try:
            await self.release.wait()
        except BaseException:
            self.was_cancelled = True
            raise
        return "released"


class Hooks:
    """Notes what hooks are told."""

    def __init__(self):
        self.told = []

    def on_workflow_start(self, *args):
        self.told.append(("start", *args))

    def on_workflow_success(self, *args):
        self.told.append(("success", *args))

    def on_workflow_failure(self, *args):
        self.told.append(("failure", *args))


def by_arguments(make, hooks):
    return make(**{name: getattr(hooks, name) for name in HOOKS})


def by_attributes(make, hooks):
    executor = make()
    for name in HOOKS:
        setattr(executor, name, getattr(hooks, name))
    return executor


def by_subclass(make, hooks):
    def method(name):
        return lambda self, *args: getattr(hooks, name)(*args)

    return type("Told", (make,), {name: method(name) for name in HOOKS})()


class Gate:
    """Holds back whoever waits at it, in whatever process, until it is opened.

    Args:
        path: Where to make it; it is a pipe, out of which nobody reads, so that it stays open for all who come.
    """

    def __init__(self, path):
        os.mkfifo(path)
        self.path = str(path)
        self._end = os.open(path, os.O_RDWR)

    def open(self):
        os.write(self._end, b"\n")

    def close(self):
        os.close(self._end)


# ---------------------------------------------------------------- tasks


def wait_at(path):
    """Wait until the gate at *path* is open."""
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not select.select([end], [], [], PATIENCE)[0]:
            raise TimeoutError(f"nobody has opened {path}")
    finally:
        os.close(end)
    return "passed"


def open_gate(path):
    end = os.open(path, os.O_WRONLY)
    os.write(end, b"\n")
    os.close(end)


def refuse_after(path):
    wait_at(path)
    refuse()


def one():
    return 1


def give(value):
    return value


def refuse():
    raise ValueError("no")


class Special(Exception):
    """Cannot be made from its text alone."""

    def __init__(self, left, right):
        super().__init__(f"{left} {right}")


def refuse_in_a_special_way():
    raise Special("no", "way")


async def one_soon():
    await pause()
    return 1


async def double_soon(one_soon):
    await pause()
    return 2 * one_soon


async def pause():
    import asyncio

    await asyncio.sleep(0)


def add(one, double_soon):
    return one + double_soon


def take(a="default"):
    return "got", a


def take_keyword_only(*, a):
    return "got", a


def take_positional_only(a, /):
    return "got", a


def take_required(a):
    return "got", a


def take_falsy(none="default", zero="default", false="default", text="default", rows="default"):
    return none, zero, false, text, rows


def take_rest(a, **rest):
    return a, rest


def take_any(*args):
    return args


def never():
    return False


def succeed_at_third(context):
    if context.attempt < 3:
        raise ConnectionError(f"attempt {context.attempt}")
    return context.attempt


def be_late():
    time.sleep(0.2)


def tell_run(context):
    return context.run_id


def compare_run(tell_run, context):
    return tell_run == context.run_id


def tell_process():
    return os.getpid()
