"""Tasks, callables and programs of the tests of the explicit door, where other processes can import them.

The programs, :data:`STORIES`, give facts as plain data, so that what they give in one interpreter can be compared with
what they give in another.
"""

import asyncio
import inspect
import json
import os
import tempfile
import threading
from pathlib import Path

import model_tasks
from resume_tasks import world

from flowkit import (
    AsyncExecutor,
    JSONStateStore,
    ProcessExecutor,
    SequentialExecutor,
    Skip,
    SQLiteStateStore,
    Task,
    TaskContext,
    TaskSucceeded,
    ThreadedExecutor,
    Workflow,
    WorkflowExecutionError,
    current_context,
    task,
)
from flowkit.testing import VirtualClock

EXECUTORS = {
    "sequential": SequentialExecutor,
    "thread": ThreadedExecutor,
    "async": AsyncExecutor,
    "process": ProcessExecutor,
}
A_MINUTE = 60.0

# ---------------------------------------------------------------- for the models


def act_by_name(name, script, upstream, context, **given):
    """Do what *script* says of this attempt, with the results of *upstream* that came by name."""
    return model_tasks.act(name, script, context, *[given.get(before) for before in upstream])


def say_by_name(context, **given):
    """Do what the world says, and say what this was made from."""
    world.act(context.task_name)
    return described(context.task_name, {}, (), given)


def described(name, arguments, args, rest):
    """Return the call of *name* as text."""
    parts = [f"{each}={'...' if isinstance(value, TaskContext) else repr(value)}" for each, value in arguments.items()]
    parts += [*map(repr, args), *(f"**{each}={value!r}" for each, value in sorted(rest.items()))]
    return f"{name}({', '.join(parts)})"


def answer(name, gives, arguments, args, rest):
    """Return what a task gives that was called so: its call, None or 0; or skip it."""
    if gives == "skip":
        raise Skip("nothing to do")
    return described(name, arguments, args, rest) if gives == "call" else {"none": None, "zero": 0}[gives]



class NOTHING:
    """Stands for no default."""


KINDS = {
    "/": inspect.Parameter.POSITIONAL_ONLY,
    "": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "*": inspect.Parameter.KEYWORD_ONLY,
}


class Echo:
    """A callable object with the parameters that it is told to have; it gives what :func:`answer` does.

    Args:
        parameters: Tuples of a name, a kind of :data:`KINDS`, and a default or NOTHING.
    """

    def __init__(self, name, gives, parameters, has_varargs, has_varkw):
        self._name, self._gives, self._parameters = name, gives, parameters
        self._has_varargs, self._has_varkw = has_varargs, has_varkw

    @property
    def __signature__(self):
        made = [
            inspect.Parameter(name, KINDS[kind], default=inspect.Parameter.empty if default is NOTHING else default)
            for name, kind, default in self._parameters
        ]
        if self._has_varargs:
            at = sum(parameter.kind is not inspect.Parameter.KEYWORD_ONLY for parameter in made)
            made.insert(at, inspect.Parameter("others", inspect.Parameter.VAR_POSITIONAL))
        if self._has_varkw:
            made.append(inspect.Parameter("rest", inspect.Parameter.VAR_KEYWORD))
        return inspect.Signature(made)

    def __call__(self, *args, **kwargs):
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        return answer(self._name, self._gives, arguments, arguments.pop("others", ()), arguments.pop("rest", {}))


# ---------------------------------------------------------------- an order


def statuses(workflow):
    """Return how each task of *workflow* stands, as text."""
    return {each.name: str(each.status) for each in workflow.tasks}


class Shop:
    """What the tasks of an order meet: a bank that refuses twice, a warehouse that hangs once, a courier.

    Args:
        clock: Where everybody waits.
        has_courier: Whether there is one.
    """

    def __init__(self, clock, *, has_courier):
        self._clock, self._has_courier = clock, has_courier
        self.metrics = []

    def read_order(self):
        return {"id": 7, "items": [("chair", 2, 40), ("lamp", 1, 25)]}

    def price(self, read_order):
        return sum(count * each for _, count, each in read_order["items"])

    def charge(self, price, context):
        if context.attempt < 3:
            raise ConnectionError("the bank is busy")
        return f"receipt over {price}"

    def reserve(self, read_order, context):
        if context.attempt == 1:
            self._clock.sleep(A_MINUTE)
        return [f"{count} x {name}" for name, count, _ in read_order["items"]]

    def deliver(self, charge, reserve):
        if not self._has_courier:
            raise LookupError("no courier")
        return f"{', '.join(reserve)} under way, {charge}"

    def thank(self, deliver):
        return f"thank you: {deliver}"

    def refund(self, charge, deliver=None, context=None):
        return f"{charge} is void, {deliver}: {context.upstream['deliver'].error}"

    def order(self):
        """Return the workflow of an order."""
        told = {"callbacks": [self._note_end, self._note_failure], "on_retry": self._note_retry}
        workflow = Workflow("order", description="From the basket to the door")
        workflow.add_task(Task("read_order", self.read_order, **told))
        workflow.add_task(Task("price", self.price, **told), depends_on=["read_order"])
        workflow.add_task(
            Task("charge", self.charge, retries=3, delay=10, jitter=0, retry_on=ConnectionError, **told),
            depends_on=["price"],
        )
        workflow.add_task(
            Task("reserve", self.reserve, timeout=5, retries=1, delay=0, **told), depends_on=["read_order"]
        )
        workflow.add_task(Task("deliver", self.deliver, **told), depends_on=["charge", "reserve"])
        workflow.add_task(Task("thank", self.thank, **told), depends_on=["deliver"])
        workflow.add_task(Task("refund", self.refund, trigger="one_failed", **told), depends_on=["charge", "deliver"])
        return workflow

    def _note_end(self, ended):
        self.metrics.append(f"{ended.name} {ended.status} after {ended.attempts}")

    def _note_failure(self, failed, error):
        self.metrics.append(f"{failed.name} {failed.status}: {error}")

    def _note_retry(self, name, attempt):
        self.metrics.append(f"{name} failed in attempt {attempt}")


def by_hand(kind, error):
    """Execute what is done after an order has failed; return what came of it."""

    workflow = Workflow("order by hand")
    workflow.add_task(Task("order", lambda: error.result["read_order"]))
    workflow.add_task(Task("call", lambda order: f"call the buyer of {order['id']}: {error.__cause__}"), ["order"])
    return EXECUTORS[kind]().execute(workflow)["call"]


def order(kind, has_courier):
    """Return the facts of an order that the executor *kind* sees to."""
    clock = VirtualClock()
    shop = Shop(clock, has_courier=has_courier)
    workflow, facts = shop.order(), {}
    try:
        EXECUTORS[kind](_clock=clock).execute(workflow)
    except WorkflowExecutionError as error:
        facts = {"failed_task": error.failed_task, "cause": repr(error.__cause__), "done": sorted(error.result)}
        facts["instead"] = by_hand(kind, error)
    stats = workflow.get_workflow_stats()
    waited = stats.pop("total_time_seconds")
    return facts | {
        "status": str(workflow.status),
        "statuses": statuses(workflow),
        "stats": stats,
        "has_waited": waited >= 30,
        "attempts": {each.name: each.attempts for each in workflow.tasks},
        "thanks": workflow.get_task_result("thank"),
        "refund": workflow.get_task_result("refund"),
        "metrics": sorted(shop.metrics),
    }


# ---------------------------------------------------------------- a table of ten thousand cells

PRIME = 1_000_003


def cells(size):
    """Return for each cell of a square table what it depends on: its neighbours above and to the left."""
    return {
        f"cell {row} {column}": [
            f"cell {r} {c}" for r, c in [(row - 1, column), (row, column - 1)] if r >= 0 and c >= 0
        ]
        for row in range(size)
        for column in range(size)
    }


def add_up(**neighbours):
    """Return the number of ways to a cell, modulo PRIME."""
    return sum(neighbours.values()) % PRIME if neighbours else 1


def table(kind, size):
    """Execute a square table of cells, which are added from the last to the first; return the workflow."""
    workflow = Workflow("table")
    for name, neighbours in reversed(cells(size).items()):
        workflow.add_task(Task(name, add_up), depends_on=neighbours)
    EXECUTORS[kind]().execute(workflow)
    return workflow


def table_facts(kind):
    workflow = table(kind, 30)
    return {"corner": workflow.get_task_result("cell 29 29"), "completed": workflow.get_workflow_stats()["completed"]}


# ---------------------------------------------------------------- coroutines and functions


@task
async def fetch():
    await asyncio.sleep(0)
    return [3, 1, 2]


@task
def clean(fetch):
    return sorted(fetch)


@task
async def enrich(clean):
    await asyncio.gather(*(asyncio.sleep(0) for _ in clean))
    return {number: number * number for number in clean}


@task(retries=1, delay=0)
async def audit(fetch, context):
    if context.attempt == 1:
        raise ConnectionError("refused")
    return len(fetch)


@task
def report(enrich, audit):
    return f"{audit} rows, {sum(enrich.values())} in all"


def mixed_workflow(name="mixed"):
    """fetch ─► clean ─► enrich ─► report, fetch ─► audit ─► report"""
    workflow = Workflow(name)
    workflow.add_task(report, depends_on=["enrich", "audit"])
    workflow.add_task(enrich, depends_on=["clean"])
    workflow.add_task(audit, depends_on=["fetch"])
    workflow.add_task(clean, depends_on=["fetch"])
    workflow.add_task(fetch)
    return workflow


MIXED = {
    "fetch": [3, 1, 2],
    "clean": [1, 2, 3],
    "enrich": {1: 1, 2: 4, 3: 9},
    "audit": 3,
    "report": "3 rows, 14 in all",
}


def mixed_facts(kind):
    workflow = mixed_workflow()
    result = EXECUTORS[kind]().execute(workflow)
    attempts = workflow.get_task("audit").attempts
    return {"is_right": result == MIXED, "statuses": statuses(workflow), "attempts": attempts}


# ---------------------------------------------------------------- a nightly load

PARTS = 20
FIRST_BLOCKED = 12
STUCK = "FLOWKIT_TEST_STUCK"
"""The variable that is set if parts from FIRST_BLOCKED on do not end."""
ACKS = "FLOWKIT_TEST_ACKS"
"""The variable with the file to which the names of tasks are added that were announced as done."""
CALLS = "FLOWKIT_TEST_CALLS"
"""The variable with the file to which a task adds its name when it is called."""


def add_line(variable, text):
    """Add a line to the file that the environment names; it outlives this process."""
    fd = os.open(os.environ[variable], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def extract():
    add_line(CALLS, "extract")
    return list(range(100))


def load_part(extract):
    name = current_context().task_name
    add_line(CALLS, name)
    number = int(name.split()[1])
    if number >= FIRST_BLOCKED and STUCK in os.environ:
        os.write(1, b"stuck\n")
        threading.Event().wait()
    return {"part": number, "rows": tuple(extract[number::PARTS])}


def publish(**parts):
    add_line(CALLS, "publish")
    return sorted(row for part in parts.values() for row in part["rows"])


def nightly():
    """extract ─► load 0 .. load 19 ─► publish"""
    workflow = Workflow("nightly")
    workflow.add_task(Task(extract))
    names = [f"load {number}" for number in range(PARTS)]
    for name in names:
        workflow.add_task(Task(name, load_part), depends_on=["extract"])
    workflow.add_task(Task(publish), depends_on=names)
    return workflow


def note_ack(event):
    """Note in a file what was announced as done."""
    if isinstance(event, TaskSucceeded):
        add_line(ACKS, event.task_name)


def run_nightly(kind, path):
    """Execute the nightly load on at most four workers, and print how it went."""
    most = {"thread": {"max_workers": 4}, "process": {"max_workers": 4}, "async": {"max_concurrent": 4}}
    workflow = nightly()
    with SQLiteStateStore(path) as store:
        result = EXECUTORS[kind](state_store=store, observers=[note_ack], **most.get(kind, {})).execute(workflow)
    restored = [name for name, run in result.tasks.items() if run.restored]
    print(json.dumps({"published": result["publish"], "statuses": statuses(workflow), "restored": restored}))


# ---------------------------------------------------------------- two workflows on one store


PIPE, PIPE_END = "FLOWKIT_TEST_PIPE", "FLOWKIT_TEST_PIPE_END"
"""The variables with a named pipe, and with how this process opens it: "r" or "w"."""


def one_of_two(name, meet):
    """begin ─► meet ─► end 0 .. end 9, in which *meet* waits until the other workflow is there too"""

    def begin():
        return name

    def end(**before):
        return [name, *before.values()]

    workflow = Workflow(name)
    workflow.add_task(Task("begin", begin))
    workflow.add_task(Task("meet", meet), depends_on=["begin"])
    for number in range(10):
        workflow.add_task(Task(f"end {number}", end), depends_on=["meet"])
    return workflow


def side_by_side(make_store):
    """Execute two workflows at the same time with one store, each in a thread; return both."""
    barrier = threading.Barrier(2)

    def meet(begin):
        barrier.wait(20)
        return f"{begin} has met the other"

    with make_store() as store:
        both = [one_of_two(name, meet) for name in ("east", "west")]
        executor, errors = ThreadedExecutor(state_store=store), []

        def execute(workflow):
            try:
                executor.execute(workflow)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=execute, args=[workflow]) for workflow in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        if errors:
            raise errors[0]
        return both


def run_beside(name, kind, folder):
    """Execute one of the two workflows, as one of two processes."""

    def meet(begin):
        with open(os.environ[PIPE], os.environ[PIPE_END]):  # waits until somebody opens the other end
            return f"{begin} has met the other"

    workflow = one_of_two(name, meet)
    with STORES[kind](folder) as store:
        ThreadedExecutor(state_store=store).execute(workflow)
    print(workflow.get_workflow_stats()["completed"], "completed")


class Closing:
    """A context of a store that needs no closing."""

    def __init__(self, store):
        self._store = store

    def __enter__(self):
        return self._store

    def __exit__(self, *_):
        pass


STORES = {
    "json": lambda folder: Closing(JSONStateStore(Path(folder) / "state.json")),
    "sqlite": lambda folder: SQLiteStateStore(Path(folder) / "state.db"),
}


def shared_store_facts(kind):
    with tempfile.TemporaryDirectory() as folder:
        both = side_by_side(lambda: STORES[kind](folder))
        with STORES[kind](folder) as store:
            kept = {name: store.for_workflow(name).load_task_state("end 3")["result"] for name in ("east", "west")}
    return {"statuses": [statuses(workflow) for workflow in both], "kept": kept}


# ---------------------------------------------------------------- what must be refused


class Named:
    """A callable whose repr has no address."""

    def __repr__(self):
        return "Named()"

    def __call__(self, *_):
        return 0


def _with(*depends_on, name="a"):
    return lambda: Workflow("bad").add_task(Task(name, Named()), *depends_on)


def _valid(*tasks):
    """Return a function that validates a workflow of *tasks*, each a name, a function and what it depends on."""

    def validate():
        workflow = Workflow("bad")
        for name, function, depends_on in tasks:
            workflow.add_task(Task(name, function), depends_on=depends_on)
        workflow.validate()

    return validate


def _twice():
    workflow = Workflow("bad")
    workflow.add_task(Task("a", Named()))
    workflow.add_task(Task("a", Named()))


def _wired():
    first, second = Task("a", Named()), Task("b", Named())
    first >> second
    Workflow("bad").add_task(first)


def _asked(method):
    workflow = Workflow("bad")
    workflow.add_task(Task("clean", Named()))
    return lambda: getattr(workflow, method)("claen")


BAD_INPUTS = {
    "a name that is no text": lambda: Workflow(3),
    "an empty name": lambda: Workflow(""),
    "a name that cannot be printed": lambda: Workflow("a\nb"),
    "a function that is no task": lambda: Workflow("bad").add_task(len),
    "a task's name": lambda: Workflow("bad").add_task("a"),
    "nothing": lambda: Workflow("bad").add_task(None),
    "a task of another workflow": lambda: Workflow("bad").add_task(_with()()),
    "a bare string of dependencies": _with("clean"),
    "a task as dependencies": _with(Task("b", Named())),
    "dependencies that are a number": _with(3),
    "a dependency that is a task": _with([Task("b", Named())]),
    "a dependency that is a number": _with([3]),
    "the same name twice": _twice,
    "a task that is wired": _wired,
    "a dependency that does not exist": _valid(("a", Named(), ["b"]), ("bb", Named(), [])),
    "a task that depends on itself": _valid(("a", Named(), ["a"])),
    "a circle": _valid(("a", Named(), ["c"]), ("b", Named(), ["a"]), ("c", Named(), ["b"])),
    "a parameter without a value": _valid(("a", Named(), []), ("b", lambda c: c, ["a"])),
    "two parameters without a value": _valid(("a", lambda b: b, []), ("b", lambda c: c, ["a"])),
    "a status of nobody": _asked("get_task_status"),
    "a result of nobody": _asked("get_task_result"),
    "dependencies of nobody": _asked("get_dependencies"),
    "no worker": lambda: ThreadedExecutor(max_workers=0),
    "a truth as a number of workers": lambda: ThreadedExecutor(max_workers=True),
    "half a worker": lambda: ProcessExecutor(max_workers=1.5),
    "no coroutine at once": lambda: AsyncExecutor(max_concurrent=0),
    "a store that is a path": lambda: SequentialExecutor("state.db"),
    "a store that is a class": lambda: SequentialExecutor(SQLiteStateStore),
    "two stores": lambda: SequentialExecutor(JSONStateStore("a.json"), storage=JSONStateStore("b.json")),
    "a hook that cannot be called": lambda: SequentialExecutor(on_workflow_start=3),
    "an option that there is not": lambda: SequentialExecutor(workers=3),
    "a timeout of nothing": lambda: SequentialExecutor(timeout=0),
    "a timeout that is text": lambda: SequentialExecutor(timeout="3"),
    "an observer that cannot be called": lambda: SequentialExecutor(observers=[3]),
    "no workflow to execute": lambda: SequentialExecutor().execute("bad"),
    "callbacks that are no list": lambda: Task("a", Named(), callbacks=print),
    "a callback that cannot be called": lambda: Task("a", Named(), callbacks=[3]),
    "retries below none": lambda: Task("a", Named(), retries=-1),
    "a rule that there is not": lambda: Task("a", Named(), trigger="sometimes"),
    "a task's timeout of nothing": lambda: Task("a", Named(), timeout=0),
}


def refusals():
    """Return what each bad input gets: the kinds of error that it is, and its text."""
    found = {}
    for what, give in BAD_INPUTS.items():
        try:
            give()
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__ if kind is not object]
            found[what] = [*kinds, str(error)]
        else:
            found[what] = ["taken"]
    return found


# ---------------------------------------------------------------- all of them

STORIES = {
    **{f"order by {kind}": (lambda kind=kind: order(kind, True)) for kind in ("sequential", "thread", "async")},
    **{f"refund by {kind}": (lambda kind=kind: order(kind, False)) for kind in ("sequential", "thread", "async")},
    **{f"table by {kind}": (lambda kind=kind: table_facts(kind)) for kind in ("sequential", "thread", "async")},
    **{f"mixed by {kind}": (lambda kind=kind: mixed_facts(kind)) for kind in EXECUTORS},
    **{f"two on {kind}": (lambda kind=kind: shared_store_facts(kind)) for kind in STORES},
    "bad inputs": refusals,
}


def tell_all():
    """Return what all stories give, as JSON."""
    return json.dumps({name: tell() for name, tell in STORIES.items()}, sort_keys=True)


if __name__ == "__main__":
    print(tell_all())
