"""Limits: at most so many tasks with one name at once, alone and in a run."""

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit import DAG, DefinitionError, OptionError, Task
from flowkit.engine.limits import Limits
from flowkit.testing import VirtualClock, run_fuzzed

# ---------------------------------------------------------------- the bookkeeping


def test_what_uses_no_limit_is_admitted():
    assert Limits({}, {"api": 1}).admit([3, 1, 2]) == [3, 1, 2]


def test_only_as_many_as_the_limit_are_admitted_and_the_others_follow_in_order():
    limits = Limits(dict.fromkeys(range(5), "api"), {"api": 2})
    assert limits.admit([0, 1, 2, 3, 4]) == [0, 1]
    assert limits.release(1) == [2]
    assert limits.release(0) == [3]
    assert limits.release(3) == [4]
    assert limits.release(2) == []
    assert limits.release(4) == []
    assert limits.admit([0, 1, 2]) == [0, 1]


def test_limits_do_not_disturb_each_other():
    limits = Limits({0: "api", 1: "api", 2: "disk", 3: "disk"}, {"api": 1, "disk": 1})
    assert limits.admit([0, 1, 2, 3, 4]) == [0, 2, 4]
    assert limits.release(2) == [3]
    assert limits.release(0) == [1]


def test_giving_back_twice_or_what_was_never_taken_gives_nobody_a_place():
    limits = Limits({0: "api", 1: "api", 2: "api"}, {"api": 1})
    limits.admit([0, 1, 2])
    assert limits.release(7) == []
    assert limits.release(1) == []  # it waits and holds nothing
    assert limits.release(0) == [1]
    assert limits.release(0) == []


def test_what_waits_can_be_taken_back():
    limits = Limits({0: "api", 1: "api", 2: "disk", 3: "disk", 4: "api"}, {"api": 1, "disk": 1})
    limits.admit([0, 1, 2, 3, 4])
    assert sorted(limits.withdraw()) == [1, 3, 4]
    assert limits.withdraw() == []
    assert limits.release(0) == []
    assert limits.admit([1]) == [1]


@settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 12))
def test_never_more_than_the_limit_hold_it_and_nobody_is_forgotten(data, most, count):
    limits = Limits(dict.fromkeys(range(count), "api"), {"api": most})
    holding, unstarted, done = set(), list(range(count)), []
    while len(done) < count:
        if unstarted and (not holding or data.draw(st.booleans())):
            holding.update(limits.admit([unstarted.pop(0)]))
        else:
            i = data.draw(st.sampled_from(sorted(holding)))
            holding.discard(i)
            done.append(i)
            holding.update(limits.release(i))
        assert len(holding) <= most
    assert sorted(done) == list(range(count))


# ---------------------------------------------------------------- in a run


class Meter:
    """Counts how many tasks are inside at once, by name; they leave together when nobody more can come."""

    def __init__(self, clock):
        self.clock = clock
        self.lock = threading.Lock()
        self.inside, self.most = Counter(), Counter()

    def task(self, name, uses=None, **options):
        def work(*_):
            with self.lock:
                self.inside[uses] += 1
                self.most[uses] = max(self.most[uses], self.inside[uses])
            self.clock.sleep(1)  # in virtual time: it passes when no other task can start
            with self.lock:
                self.inside[uses] -= 1

        return Task(name, work, uses=uses, **options)


def test_a_run_holds_its_limits_and_uses_them_up():
    """src ─► 12 api tasks, 4 disk tasks, 3 others"""
    clock = VirtualClock()
    meter = Meter(clock)
    with DAG("etl") as dag:
        src = Task("src", lambda: 1)
        src >> [meter.task(f"a{i}", "api") for i in range(12)]
        src >> [meter.task(f"d{i}", "disk") for i in range(4)]
        src >> [meter.task(f"o{i}") for i in range(3)]
    result = clock.run(dag, max_workers=32, limits={"api": 3, "disk": 2})
    assert len(result) == 20
    assert meter.most == {"api": 3, "disk": 2, None: 3}
    assert result.duration == 4.0  # 12 tasks of 1 s, three at a time


def test_limits_of_the_dag_and_the_run_are_merged():
    clock = VirtualClock()
    meter = Meter(clock)
    with DAG("etl", limits={"api": 1, "disk": 4}) as dag:
        for i in range(4):
            meter.task(f"a{i}", "api")
            meter.task(f"d{i}", "disk")
    clock.run(dag, max_workers=8, limits={"api": 2})
    assert meter.most == {"api": 2, "disk": 4}


def test_changing_the_mapping_afterwards_does_not_change_the_limits(may_abandon):
    limits = {"api": 1}
    dag = DAG("etl", tasks=[Task("a", lambda: 1, uses="api")], limits=limits)
    limits["api"] = 0
    assert dag.start().result(2) == {"a": 1}


def test_a_limit_above_the_workers_is_no_problem():
    clock = VirtualClock()
    meter = Meter(clock)
    dag = DAG("etl", tasks=[meter.task(f"a{i}", "api") for i in range(6)])
    clock.run(dag, max_workers=2, limits={"api": 100})
    assert meter.most == {"api": 2}


@pytest.mark.parametrize("run", [
    lambda dag, **options: dag.run(executor="sequential", **options),
    lambda dag, **options: run_fuzzed(dag, 3, **options),
])  # fmt: skip
def test_one_at_a_time_is_within_any_limit(run):
    """a ─► b, c, all with the same limit of 1"""
    with DAG("etl") as dag:
        Task("a", lambda: 1, uses="api") >> [Task(n, lambda x: x, uses="api") for n in "bc"]
    assert run(dag, limits={"api": 1}) == {"a": 1, "b": 1, "c": 1}


def test_a_task_that_waits_for_its_retry_holds_no_limit():
    """flaky and 3 others, all with a limit of 1: the others run while flaky waits"""
    clock, order = VirtualClock(), []

    def flaky(context):
        order.append(f"flaky {context.attempt}")
        if context.attempt == 1:
            raise ValueError("not yet")

    with DAG("etl") as dag:
        Task("flaky", flaky, retries=1, delay=100, max_delay=100, jitter=0, uses="api")
        for i in range(3):
            Task(f"t{i}", lambda i=i: order.append(f"t{i}"), uses="api")
    result = clock.run(dag, max_workers=4, limits={"api": 1})
    assert order == ["flaky 1", "t0", "t1", "t2", "flaky 2"]
    assert result.duration == 100.0


def test_a_failed_a_skipped_and_a_timed_out_task_give_their_limit_back():
    """bad, off, slow, then last: all with a limit of 1"""
    clock = VirtualClock()

    def bad():
        raise ValueError("no")

    with DAG("etl") as dag:
        Task("bad", bad, uses="api")
        Task("off", lambda: 1, when=lambda: False, uses="api")
        Task("slow", lambda: clock.sleep(100), timeout=5, uses="api")
        Task("last", lambda: "ran", uses="api")
    result = clock.run(dag, max_workers=4, limits={"api": 1}, fail_fast=False, raise_on_failure=False)
    assert result["last"] == "ran"
    assert {name: run.state for name, run in result.tasks.items()} == {
        "bad": "failed", "off": "skipped", "slow": "failed", "last": "succeeded",
    }  # fmt: skip


def test_a_failure_stops_what_waits_for_a_limit_but_not_an_alert_with_the_same_limit():
    """bad, other, third: limit 1; bad ─► alert (one_failed) with the same limit"""
    with DAG("etl") as dag:
        bad = Task("bad", lambda: 1 / 0, uses="api")
        Task("other", lambda: 1, uses="api")
        Task("third", lambda: 1, uses="api")
        bad >> Task("alert", lambda bad: "sent", trigger="one_failed", uses="api")
    result = dag.run(max_workers=4, limits={"api": 1}, raise_on_failure=False)
    assert dict(result) == {"alert": "sent"}
    assert (result.tasks["other"].state, result.tasks["third"].state) == ("cancelled", "cancelled")


def test_a_failure_takes_back_the_limit_of_what_was_admitted_and_has_not_started():
    """bad, waiting: limit 2, one worker; bad ─► alert (one_failed) and alert_2, with the same limit"""
    with DAG("etl") as dag:
        bad = Task("bad", lambda: 1 / 0, uses="api")
        Task("waiting", lambda: 1, uses="api")
        for name in ("alert", "alert_2"):
            bad >> Task(name, lambda bad: "sent", trigger="one_failed", uses="api")
    result = dag.run(max_workers=1, limits={"api": 2}, raise_on_failure=False)
    assert dict(result) == {"alert": "sent", "alert_2": "sent"}
    assert result.tasks["waiting"].state == "cancelled"


@pytest.mark.parametrize("limits", [4, ["api"], "api"])
def test_limits_must_be_a_mapping(limits):
    with pytest.raises(OptionError, match=r"limits=.* must be a mapping of names to numbers"):
        DAG("etl", tasks=[]).run(limits=limits)


def test_a_name_without_a_limit_is_an_error_with_the_close_matches():
    dag = DAG("etl", tasks=[Task("load", lambda: 1, uses="api")])
    with pytest.raises(OptionError, match=r"task 'load' has uses='api'.*\(did you mean 'apis'\?\).*limits="):
        dag.run(limits={"apis": 3})
    with pytest.raises(OptionError, match="there is no such limit"):
        dag.run()
    with pytest.raises(OptionError, match="uses='api'"):
        dag.validate(limits={"disk": 1})


def test_every_name_without_a_limit_is_listed():
    tasks = [Task(name, lambda: 1, uses=uses) for name, uses in (("a", "api"), ("b", "api"), ("c", "disk"))]
    with pytest.raises(DefinitionError) as caught:
        DAG("etl", tasks=tasks).run()
    assert len(caught.value.problems) == 2
    assert "'a' has uses='api'" in str(caught.value)
    assert "'c' has uses='disk'" in str(caught.value)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "4", None])
def test_a_limit_must_be_a_count(most):
    with pytest.raises(OptionError, match=r"limits\['api'\]=.* must be an integer from 1"):
        DAG("etl", tasks=[]).run(limits={"api": most})
