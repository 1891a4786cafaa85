"""Processes against the reference model.

Starting processes is what takes the time, so many random graphs are one DAG: with ``fail_fast=False`` they have nothing
to do with each other. The tasks take no time; what times out elsewhere is killed here.
"""

import functools
import signal
from dataclasses import replace

import model_tasks
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model import predict
from strategies import graphs

from flowkit import DAG, Task

GRAPHS = 30
MOST_DEATHS = 6
"""Of all graphs of a DAG: each costs the start of a process."""


def union(several):
    """Return the plans of *several* graphs as those of one, with few attempts that die."""
    plans, deaths = [], MOST_DEATHS
    for number, graph in enumerate(several):
        for plan in graph:
            script = plan.script
            if "timeout" in script:
                if plan.retries < deaths and plan.retries < 3:  # a task that has killed three workers is given up
                    deaths -= plan.retries + 1
                else:
                    script = tuple("fail" if outcome == "timeout" else outcome for outcome in script)
            upstream = tuple(f"g{number}_{name}" for name in plan.upstream)
            plans.append(replace(plan, name=f"g{number}_{plan.name}", upstream=upstream, script=script))
    return plans


def build(plans):
    tasks = {}
    for plan in plans:
        when = None if plan.when is None else functools.partial(model_tasks.answer, plan.name, plan.when)
        body = functools.partial(model_tasks.act, plan.name, plan.script)
        task = Task(plan.name, body, trigger=plan.rule, when=when, retries=plan.retries, delay=0)
        tasks[plan.name] = task
        for name in plan.upstream:
            tasks[name] >> task
    return DAG("random", tasks=list(tasks.values()))


def check(several):
    plans = union(several)
    result = build(plans).run(executor="process", max_workers=2, fail_fast=False, raise_on_failure=False)
    state, attempts, value = predict(plans)
    runs = result.tasks
    assert {name: run.state for name, run in runs.items()} == state
    assert {name: run.attempts for name, run in runs.items()} == attempts
    assert {name: run.value for name, run in runs.items()} == value


QUICKLY = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}
"""Without shrinking: an example takes half a second."""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="its tasks kill themselves as POSIX does")
@given(st.lists(graphs(), min_size=GRAPHS, max_size=GRAPHS))
@settings(max_examples=7, **QUICKLY)
def test_processes_give_what_the_model_says(several):
    check(several)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(7))
@given(several=st.lists(graphs(), min_size=GRAPHS, max_size=GRAPHS))
@settings(max_examples=25, **QUICKLY)
def test_processes_give_what_the_model_says_five_thousand_times(several, part):
    check(several)
