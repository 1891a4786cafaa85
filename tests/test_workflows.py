"""Task graphs that other people's work gave: every one of them runs right, whoever runs it.

The graphs are data beside the checkout; without it these tests are skipped.
"""

import importlib.util
import random
from pathlib import Path

import pytest

from flowkit import DAG, Task
from flowkit.testing import VirtualClock

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "workflows"
FILES = sorted([*FOLDER.glob("*.json"), *FOLDER.glob("*.json.gz")])

pytestmark = pytest.mark.skipif(not FILES, reason="there is no shared/workflows beside the checkout")
every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.partition(".")[0])
WORKERS = [*({"max_workers": n} for n in (1, 2, 8)), {"executor": "sequential"}]


@pytest.fixture(scope="module")
def load():
    """Return a function that reads a file and gives its ids, runtimes and upstream positions."""
    spec = importlib.util.spec_from_file_location("validate_wf", FOLDER / "validate_wf.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)

    def read(path):
        workflow = loader.load(path)
        runtimes, upstream = loader.check(workflow)
        return [task["id"] for task in workflow["tasks"]], runtimes, upstream

    return read


class Workflow:
    """A graph whose tasks note their starts, and give a number that depends on every way that leads to them.

    Args:
        seed: Shuffles the order in which tasks are defined and wired.
        failing: The position of a task that fails.
        sleep: Called by each task with its runtime.
    """

    def __init__(self, names, runtimes, upstream, seed, *, failing=None, sleep=None):
        self.names, self.upstream = names, upstream
        self._failing, self._sleep, self._runtimes = failing, sleep, runtimes
        rng = random.Random(seed)
        order = rng.sample(range(len(names)), len(names))
        tasks = {i: Task(names[i], self._body(i)) for i in order}
        for i in rng.sample(order, len(order)):
            for u in upstream[i]:
                tasks[u] >> tasks[i]
        self.dag = DAG("workflow", tasks=[tasks[i] for i in order])

    def run(self, **options):
        """Run it; ``began`` tells the tasks that started, ``early`` those that did so too early."""
        self.began, self.ended, self.early = [], bytearray(len(self.names)), []
        return self.dag.run(**options)

    def _body(self, i):
        def body(*given):
            self.began.append(i)
            if not all(self.ended[u] for u in self.upstream[i]):
                self.early.append(i)
            if self._sleep:
                self._sleep(self._runtimes[i])
            if i == self._failing:
                raise ConnectionError("refused")
            self.ended[i] = 1
            return (sum(given) * 31 + i) % 1_000_003

        return body

    def values(self):
        """Return what each task gives if none fails."""
        value = []
        for i, before in enumerate(self.upstream):
            value.append((sum(value[u] for u in before) * 31 + i) % 1_000_003)
        return value


@every_workflow
def test_each_task_runs_once_and_after_all_its_upstream(load, path):
    workflow = Workflow(*load(path), seed=path.name)
    expected = dict(zip(workflow.names, workflow.values(), strict=True))
    for options in WORKERS:
        result = workflow.run(**options)
        assert sorted(workflow.began) == list(range(len(workflow.names)))
        assert workflow.early == []
        assert result == expected


@every_workflow
def test_a_failed_task_keeps_exactly_its_descendants_from_running(load, path):
    names, runtimes, upstream = load(path)
    for seed in range(3 if len(names) < 3000 else 1):
        failing = random.Random(f"{path.name} {seed}").randrange(len(names))
        below = {failing}
        for i, before in enumerate(upstream):
            if not below.isdisjoint(before):
                below.add(i)
        below.discard(failing)
        workflow = Workflow(names, runtimes, upstream, seed, failing=failing)
        others = sorted(set(range(len(names))) - below)
        value = workflow.values()
        expected = {names[i]: value[i] for i in others if i != failing}
        for options in WORKERS:
            result = workflow.run(fail_fast=False, raise_on_failure=False, **options)
            assert sorted(workflow.began) == others
            assert workflow.early == []
            assert result == expected
            assert result.failed == [names[failing]]
            not_run = {name for name, task in result.tasks.items() if task.state == "upstream_failed"}
            assert not_run == {names[i] for i in below}


@every_workflow
@pytest.mark.parametrize("max_workers", [2, 8])
def test_no_worker_is_idle_while_a_task_is_ready(load, path, max_workers):
    """Each task sleeps for its recorded runtime, in virtual time: the makespan is within the bounds of any order.

    Source: R. L. Graham, "Bounds for certain multiprocessing anomalies", Bell System Technical Journal 45 (1966).
    """
    names, runtimes, upstream = load(path)
    if len(names) > 3000:
        names, runtimes, upstream = names[:3000], runtimes[:3000], upstream[:3000]  # in topological order
    clock = VirtualClock()
    workflow = Workflow(names, runtimes, upstream, seed=1, sleep=clock.sleep)
    makespan = workflow.run(_clock=clock, max_workers=max_workers).duration
    bottom = list(runtimes)
    for i in reversed(range(len(names))):
        for u in upstream[i]:
            bottom[u] = max(bottom[u], runtimes[u] + bottom[i])
    work, longest = sum(runtimes), max(bottom)
    assert workflow.early == []
    assert makespan >= max(longest, work / max_workers) * (1 - 1e-9)
    assert makespan <= (work / max_workers + longest * (1 - 1 / max_workers)) * (1 + 1e-9)
