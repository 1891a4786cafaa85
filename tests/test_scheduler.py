"""The pure core: the frozen graph, and which task may start when. No function, thread or clock is involved."""

import time
from collections import deque
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import BAD, GOOD, RULES, SKIP, predict
from strategies import graphs

from flowkit.engine.graph import CycleError, freeze
from flowkit.engine.scheduler import START, Scheduler
from flowkit.states import NAMES, TRIGGERS

CODES = {name: code for code, name in enumerate(NAMES)}
FINAL = ["succeeded", "failed", "skipped", "upstream_failed", "cancelled"]
ACCEPT_FAILURE = {"all_done", "one_failed", "all_failed"}


class Graph:
    """A scheduler over names: ``Graph("a", "b <- a", "c <- a b")``; rules by name, ``none_failed`` if not given."""

    def __init__(self, *lines, **rules):
        split = [line.partition("<-")[::2] for line in lines]
        names = [name.strip() for name, _ in split]
        graph, order = freeze([[names.index(before) for before in befores.split()] for _, befores in split])
        self.names = [names[position] for position in order]
        self.graph = graph
        codes = bytes(TRIGGERS[rules.get(name, "none_failed")] for name in self.names)
        self.scheduler = Scheduler(graph, codes if any(codes) else None)

    def start(self):
        return self._named(self.scheduler.start())

    def finish(self, name, state):
        return self._named(self.scheduler.finish(self.names.index(name), CODES[state]))

    def stop(self, *waiting, takes_none=False):
        return self._named(self.scheduler.stop(map(self.names.index, waiting), takes_none=takes_none))

    def decided(self):
        """Return what became final without running since the last call, with the states."""
        named = {self.names[i]: NAMES[self.scheduler.state[i]] for i in self.scheduler.decided}
        assert len(named) == len(self.scheduler.decided)
        self.scheduler.decided.clear()
        return named

    def state(self, name):
        return NAMES[self.scheduler.state[self.names.index(name)]]

    def _named(self, ids):
        assert len(set(ids)) == len(ids)
        return {self.names[i] for i in ids}


# ---------------------------------------------------------------- freezing


@st.composite
def shuffled_graphs(draw):
    """The upstream positions of each position; edges go any way that leaves no cycle."""
    count = draw(st.integers(0, 15))
    place = draw(st.permutations(range(count)))
    upstream = [[] for _ in range(count)]
    if count > 1:
        pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] != pair[1])
        for low, high in map(sorted, draw(st.lists(pairs, max_size=40))):
            if place[low] not in upstream[place[high]]:
                upstream[place[high]].append(place[low])
    return upstream


def depths(upstream):
    """Return the longest way to each position from one without upstream, by relaxing every edge often enough."""
    depth = [0] * len(upstream)
    for _ in upstream:
        for i, before in enumerate(upstream):
            depth[i] = max([depth[u] + 1 for u in before], default=0)
    return depth


@given(shuffled_graphs())
def test_ids_are_given_out_generation_by_generation(upstream):
    graph, order = freeze(upstream)
    depth = depths(upstream)
    assert order == sorted(range(len(upstream)), key=lambda position: (depth[position], position))
    found = [[depth[order[i]] for i in ids] for ids in graph.generations()]
    assert found == [[level] * depth.count(level) for level in range(max(depth, default=-1) + 1)]
    assert [i for ids in graph.generations() for i in ids] == list(range(len(graph)))


@given(shuffled_graphs())
def test_a_frozen_graph_has_the_same_edges_on_both_sides(upstream):
    graph, order = freeze(upstream)
    assert [[order[u] for u in before] for before in graph.upstream] == [upstream[position] for position in order]
    for i, after in enumerate(graph.downstream):
        assert list(after) == [d for d in range(len(graph)) if i in graph.upstream[d]]
        assert all(d > i for d in after)


def test_an_empty_graph_has_no_generation():
    graph, order = freeze([])
    assert (len(graph), order, graph.generations()) == (0, [], [])


# ---------------------------------------------------------------- cycles


def cycle_of(upstream):
    with pytest.raises(CycleError) as caught:
        freeze(upstream)
    return caught.value.args[0]


def shortest_cycle_length(upstream):
    """Return the number of edges of a shortest cycle, None without one, by a search from every position."""
    lengths = []
    for start in range(len(upstream)):
        distance, queue = {start: 0}, deque([start])
        while queue:
            i = queue.popleft()
            if start in upstream[i]:
                lengths.append(distance[i] + 1)
                break
            for u in upstream[i]:
                if u not in distance:
                    distance[u] = distance[i] + 1
                    queue.append(u)
    return min(lengths, default=None)


@st.composite
def sparse_graphs(draw):
    """Upstream positions with few edges, so that cycles of three edges and more are the shortest ones often enough."""
    count = draw(st.integers(1, 12))
    before = st.integers(0, count - 1)
    return [sorted(draw(st.sets(before, max_size=2)) - {i}) for i in range(count)]


@given(sparse_graphs())
@settings(max_examples=500)
def test_a_cycle_that_is_told_is_a_shortest_one(upstream):
    length = shortest_cycle_length(upstream)
    if length is None:
        freeze(upstream)
        return
    cycle = cycle_of(upstream)
    assert cycle[0] == cycle[-1]
    assert len(set(cycle)) == len(cycle) - 1 == length
    assert all(a in upstream[b] for a, b in pairwise(cycle))


def test_a_task_that_depends_on_itself_is_a_cycle_of_one_edge():
    assert cycle_of([[], [0, 1]]) == [1, 1]


def test_a_cycle_is_told_in_the_direction_of_its_edges():
    """0 ─► 1 ─► 2 ─► 3 ─► 0"""
    assert cycle_of([[3], [0], [1], [2]]) in [[0, 1, 2, 3, 0], [1, 2, 3, 0, 1], [2, 3, 0, 1, 2], [3, 0, 1, 2, 3]]


def test_what_hangs_on_a_cycle_is_not_part_of_it():
    """0 ─► 1 ─► 2 ─► 3 ─► 1, 3 ─► 4"""
    assert sorted(set(cycle_of([[], [0, 3], [1], [2], [3]]))) == [1, 2, 3]


def test_a_cycle_of_a_hundred_thousand_tasks_is_told():
    count = 100_000
    cycle = cycle_of([[(i - 1) % count] for i in range(count)])
    assert len(cycle) == count + 1


def test_a_short_cycle_is_found_among_very_many():
    """Every task depends on every other."""
    count = 400
    assert len(cycle_of([[u for u in range(count) if u != i] for i in range(count)])) == 3


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("states", [c for size in range(1, 6) for c in combinations(FINAL, size)])
def test_a_rule_is_judged_by_all_upstream_states(rule, states):
    """u0, u1, ... ─► t: each set of upstream states, against the reference model."""
    ups = [f"u{n}" for n in range(len(states))]
    graph = Graph(*ups, f"t <- {' '.join(ups)}", t=rule)
    for name, state in zip(ups, states, strict=True):
        assert graph.state("t") == "pending"
        ready = graph.finish(name, state)
    if RULES[rule](states):
        assert ready == {"t"}
        assert graph.decided() == {}
    else:
        assert ready == set()
        assert graph.decided() == {"t": "upstream_failed" if BAD & set(states) else SKIP}


def test_a_branch_that_is_skipped_does_not_skip_the_join():
    """choose ─► left ─► join, choose ─► right ─► join"""
    graph = Graph("choose", "left <- choose", "right <- choose", "join <- left right")
    graph.finish("choose", "succeeded")
    assert graph.finish("left", "skipped") == set()
    assert graph.finish("right", "succeeded") == {"join"}


def test_what_hangs_under_skipped_tasks_alone_is_skipped_at_once():
    """a ─► b ─► c ─► d"""
    graph = Graph("a", "b <- a", "c <- b", "d <- c")
    assert graph.finish("a", "skipped") == set()
    assert graph.decided() == {"b": "skipped", "c": "skipped", "d": "skipped"}
    assert graph.scheduler.remaining == 0


def test_an_alert_starts_after_a_failure_reaches_it():
    """a ─► b ─► alert (one_failed)"""
    graph = Graph("a", "b <- a", "alert <- b", alert="one_failed")
    assert graph.finish("a", "failed") == {"alert"}
    assert graph.decided() == {"b": "upstream_failed"}


# ---------------------------------------------------------------- any order


def outcome_of(plan):
    """Return the state in which a task ends that starts, as the reference model has it."""
    return CODES[predict([replace(plan, upstream=(), rule="none_failed")])[0][plan.name]]


def frozen(plans):
    """Return the graph of *plans*, the plan of each id and the code of its rule."""
    position = {plan.name: n for n, plan in enumerate(plans)}
    graph, order = freeze([[position[before] for before in plan.upstream] for plan in plans])
    by_id = [plans[n] for n in order]
    return graph, by_id, bytes(TRIGGERS[plan.rule] for plan in by_id)


def states_of(scheduler, by_id):
    return {plan.name: NAMES[scheduler.state[i]] for i, plan in enumerate(by_id)}


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_the_order_in_which_tasks_end_does_not_change_the_states(plans, rng):
    graph, by_id, rules = frozen(plans)
    scheduler = Scheduler(graph, rules)
    ready, started = scheduler.start(), []
    while ready:
        i = ready.pop(rng.randrange(len(ready)))
        started.append(i)
        assert all(scheduler.state[u] >= CODES[GOOD] for u in graph.upstream[i])
        ready += scheduler.finish(i, outcome_of(by_id[i]))
        assert scheduler.remaining == scheduler.state.count(CODES["pending"])
    assert scheduler.remaining == 0
    assert sorted(started + scheduler.decided) == list(range(len(plans)))
    assert states_of(scheduler, by_id) == predict(plans)[0]


@given(graphs())
@settings(max_examples=300)
def test_walking_the_ids_in_order_gives_the_same_states(plans):
    """What ``retire`` is for: the caller asks for each id in turn, and nobody keeps a list of what is ready."""
    graph, by_id, rules = frozen(plans)
    scheduler = Scheduler(graph, rules)
    for i, plan in enumerate(by_id):
        verdict = scheduler.decide(i)
        scheduler.retire(i, outcome_of(plan) if verdict == START else verdict)
    assert scheduler.remaining == 0
    assert states_of(scheduler, by_id) == predict(plans)[0]


def test_many_tasks_become_ready_in_ascending_order():
    graph = freeze([[], *([0] for _ in range(50))])[0]
    assert Scheduler(graph, None).finish(0, CODES[GOOD]) == list(range(1, 51))


def test_a_skip_runs_down_a_chain_of_a_hundred_thousand_without_recursion():
    count = 100_000
    scheduler = Scheduler(freeze([[], *([i] for i in range(count - 1))])[0], None)
    assert scheduler.finish(0, CODES[SKIP]) == []
    assert scheduler.decided == list(range(1, count))
    assert scheduler.remaining == 0


def test_a_failure_taints_a_chain_of_a_hundred_thousand_without_recursion():
    count = 100_000
    scheduler = Scheduler(freeze([[], *([i] for i in range(count - 1))])[0], None)
    scheduler.finish(0, CODES["failed"])
    scheduler.stop([], takes_none=False)
    assert set(scheduler.state[1:]) == {CODES["upstream_failed"]}


# ---------------------------------------------------------------- stopping


def test_after_a_stop_only_tasks_that_accept_a_failure_start():
    """bad ─► alert (one_failed), bad ─► next; other ─► more, other ─► teardown (all_done)"""
    graph = Graph(
        "bad", "other", "alert <- bad", "next <- bad", "more <- other", "teardown <- other",
        alert="one_failed", teardown="all_done",
    )  # fmt: skip
    assert graph.start() == {"bad", "other"}
    assert graph.finish("bad", "failed") == {"alert"}
    assert graph.stop("alert") == {"alert"}
    assert graph.finish("other", "succeeded") == {"teardown"}
    assert graph.decided() == {"next": "upstream_failed", "more": "cancelled"}


def test_waiting_tasks_are_cancelled_by_a_stop_unless_they_accept_a_failure():
    """bad; waiting ─► below; standby (all_done)"""
    graph = Graph("bad", "waiting", "below <- waiting", "standby", standby="all_done")
    graph.finish("bad", "failed")
    assert graph.stop("waiting", "standby") == {"standby"}
    assert graph.decided() == {"waiting": "cancelled", "below": "cancelled"}


def test_a_teardown_starts_when_a_stop_cancels_all_that_it_waits_for():
    """bad; waiting ─► teardown (all_done)"""
    graph = Graph("bad", "waiting", "teardown <- waiting", teardown="all_done")
    graph.finish("bad", "failed")
    assert graph.stop("waiting") == {"teardown"}


def test_a_cancelled_upstream_is_no_failure():
    """bad; waiting ─► alert (one_failed), waiting ─► worse (all_failed)"""
    graph = Graph("bad", "waiting", "alert <- waiting", "worse <- waiting", alert="one_failed", worse="all_failed")
    graph.finish("bad", "failed")
    assert graph.stop("waiting") == set()
    assert graph.decided() == {"waiting": "cancelled", "alert": "cancelled", "worse": "cancelled"}


def test_after_a_stop_everything_below_a_failed_task_is_upstream_failed():
    """bad ─► teardown (all_done) ─► report; running ─► report2

    The teardown succeeds, and its own downstream is below the failed task all the same.
    """
    graph = Graph("bad", "running", "teardown <- bad", "report <- teardown", "report2 <- running", teardown="all_done")
    graph.finish("bad", "failed")
    assert graph.stop("teardown") == {"teardown"}
    assert graph.finish("teardown", "succeeded") == set()
    assert graph.finish("running", "succeeded") == set()
    assert graph.decided() == {"report": "upstream_failed", "report2": "cancelled"}


def test_a_task_that_fails_after_the_stop_taints_what_is_below_it_too():
    """bad; running ─► next"""
    graph = Graph("bad", "running", "next <- running")
    graph.finish("bad", "failed")
    graph.stop()
    graph.finish("running", "failed")
    assert graph.decided() == {"next": "upstream_failed"}


def test_what_hangs_under_skipped_tasks_alone_is_skipped_after_a_stop_too():
    """bad; running ─► next"""
    graph = Graph("bad", "running", "next <- running")
    graph.finish("bad", "failed")
    graph.stop()
    graph.finish("running", "skipped")
    assert graph.decided() == {"next": "skipped"}


def test_a_cancel_stops_tasks_that_accept_a_failure_too():
    """bad ─► alert (one_failed); standby (all_done); running ─► teardown (all_done)"""
    graph = Graph(
        "bad", "alert <- bad", "standby", "running", "teardown <- running",
        alert="one_failed", standby="all_done", teardown="all_done",
    )  # fmt: skip
    graph.finish("bad", "failed")
    assert graph.stop("alert", "standby", takes_none=True) == set()
    assert graph.finish("running", "succeeded") == set()
    assert graph.decided() == {"alert": "upstream_failed", "standby": "cancelled", "teardown": "cancelled"}
    assert graph.scheduler.remaining == 0


def test_a_cancel_after_a_failure_takes_back_what_the_failure_had_left():
    """bad ─► alert (one_failed)"""
    graph = Graph("bad", "alert <- bad", alert="one_failed")
    graph.finish("bad", "failed")
    assert graph.stop("alert") == {"alert"}
    assert graph.stop("alert", takes_none=True) == set()
    assert graph.decided() == {"alert": "upstream_failed"}


def test_a_failure_after_a_cancel_does_not_let_tasks_start_again():
    """running ─► teardown (all_done)"""
    graph = Graph("running", "teardown <- running", teardown="all_done")
    assert graph.stop(takes_none=True) == set()
    assert graph.stop(takes_none=False) == set()
    assert graph.finish("running", "failed") == set()
    assert graph.decided() == {"teardown": "upstream_failed"}


def test_cancelling_the_rest_makes_everything_final():
    """done; running ─► next; bad ─► alert (one_failed), bad ─► teardown (all_done) ─► report

    running and teardown are running: what ran is cancelled, whatever it is below.
    """
    graph = Graph(
        "done", "running", "next <- running", "bad", "alert <- bad", "teardown <- bad", "report <- teardown",
        alert="one_failed", teardown="all_done",
    )  # fmt: skip
    graph.finish("done", "succeeded")
    assert graph.finish("bad", "failed") == {"alert", "teardown"}
    graph.stop("alert", takes_none=True)
    assert graph.decided() == {"alert": "upstream_failed"}
    graph.scheduler.cancel_rest()
    assert graph.decided() == {
        "running": "cancelled", "next": "cancelled", "teardown": "cancelled", "report": "upstream_failed",
    }  # fmt: skip
    assert graph.scheduler.remaining == 0
    assert (graph.state("done"), graph.state("bad")) == ("succeeded", "failed")


@given(graphs(), st.randoms(use_true_random=False), st.integers(0, 12), st.booleans())
@settings(max_examples=300)
def test_every_task_is_final_once_when_the_run_stops_at_any_moment(plans, rng, at, takes_none):
    graph, by_id, rules = frozen(plans)
    scheduler = Scheduler(graph, rules)
    ready, running, started = scheduler.start(), [], []
    step = 0
    while ready or running:
        if step == at:
            ready = scheduler.stop(ready, takes_none=takes_none)
            assert not (takes_none and ready)
        step += 1
        if ready and (not running or rng.random() < 0.5):
            running.append(ready.pop(rng.randrange(len(ready))))
            started.append(running[-1])
            assert step <= at or by_id[started[-1]].rule in ACCEPT_FAILURE
        elif running:
            i = running.pop(rng.randrange(len(running)))
            ready += scheduler.finish(i, outcome_of(by_id[i]))
    assert scheduler.remaining == 0
    assert sorted(started + scheduler.decided) == list(range(len(plans)))
    state = states_of(scheduler, by_id)
    failed = {name for name in state if state[name] == "failed"}
    for i in scheduler.decided:
        if state[by_id[i].name] == "upstream_failed":
            assert failed & above(plans, by_id[i].name)
        elif step > at:
            assert not failed & above(plans, by_id[i].name) or state[by_id[i].name] == "skipped"


@given(graphs(), st.integers(0, 12), st.booleans())
@settings(max_examples=300)
def test_walking_on_after_a_stop_starts_only_what_accepts_a_failure(plans, at, takes_none):
    graph, by_id, rules = frozen(plans)
    scheduler = Scheduler(graph, rules)
    not_run = {}
    for i, plan in enumerate(by_id):
        if i == at:
            scheduler.stop([], takes_none=takes_none)
        verdict = scheduler.decide(i)
        if verdict != START:
            not_run[plan.name] = NAMES[verdict]
        elif i >= at:
            assert plan.rule in ACCEPT_FAILURE
            assert not takes_none
        scheduler.retire(i, outcome_of(plan) if verdict == START else verdict)
    assert scheduler.remaining == 0
    failed = {name for name, state in states_of(scheduler, by_id).items() if state == "failed"}
    for plan in by_id[at:]:
        if plan.name in not_run:
            assert (not_run[plan.name] == "upstream_failed") == bool(failed & above(plans, plan.name))


def above(plans, name):
    """Return the names of all tasks that *name* depends on, over any number of edges."""
    upstream = {plan.name: plan.upstream for plan in plans}
    found, waiting = set(), [name]
    while waiting:
        new = set(upstream[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


# ---------------------------------------------------------------- more ids, for items


def extended(graph, count, rule="none_failed"):
    """Add *count* items to *graph*, named item0, item1 ..."""
    first = len(graph.names)
    graph.scheduler.extend(count, TRIGGERS[rule])
    graph.names += [f"item{n}" for n in range(first, first + count)]
    return graph.names[first:]


def test_items_are_counted_like_tasks():
    """a ─► b"""
    graph = Graph("a", "b <- a")
    items = extended(graph, 3)
    assert graph.scheduler.remaining == 5
    assert graph.state(items[0]) == "pending"
    for item in items:
        assert graph.finish(item, "succeeded") == set()
    assert graph.scheduler.remaining == 2
    assert graph.finish("a", "succeeded") == {"b"}
    assert graph.scheduler.is_calm


def test_no_items_change_nothing():
    graph = Graph("a", "b <- a")
    extended(graph, 0)
    assert graph.scheduler.remaining == 2
    assert graph.finish("a", "succeeded") == {"b"}


@pytest.mark.parametrize("rules", [{}, {"b": "all_done"}])
def test_the_frozen_graph_does_not_get_items(rules):
    graph = Graph("a", "b <- a", **rules)
    before = [*graph.graph.upstream], [*graph.graph.downstream]
    for _ in range(3):
        extended(graph, 2)
    assert ([*graph.graph.upstream], [*graph.graph.downstream]) == before
    assert len(graph.scheduler.state) == 8


def test_a_failed_item_does_not_reach_any_task_by_itself():
    graph = Graph("a", "b <- a")
    (item,) = extended(graph, 1)
    assert graph.finish(item, "failed") == set()
    assert graph.decided() == {}
    assert graph.finish("a", "succeeded") == {"b"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("is_extended_before", [False, True])
def test_after_a_stop_items_start_if_their_rule_accepts_a_failure(rule, is_extended_before):
    graph = Graph("bad", "task <- bad", task="all_done")
    if is_extended_before:
        items = extended(graph, 2, rule)
    graph.finish("bad", "failed")
    graph.stop()
    if not is_extended_before:
        items = extended(graph, 2, rule)
    for item in items:
        verdict = graph.scheduler.decide(graph.names.index(item))
        assert NAMES[verdict] == ("pending" if rule in ACCEPT_FAILURE else "cancelled")


def test_waiting_items_are_cancelled_by_a_stop():
    graph = Graph("bad", "other")
    items = extended(graph, 2)
    graph.finish("bad", "failed")
    assert graph.stop("other", *items) == set()
    assert graph.decided() == dict.fromkeys(["other", *items], "cancelled")


def test_items_that_come_after_a_stop_are_stopped_by_the_next_one():
    graph = Graph("bad", "teardown <- bad", "below <- teardown", teardown="all_done")
    graph.finish("bad", "failed")
    graph.stop()
    items = extended(graph, 2, "all_done")
    graph.finish(items[0], "failed")  # taints nothing
    assert graph.stop(items[1], takes_none=True) == set()
    assert graph.decided() == {items[1]: "cancelled"}
    assert graph.finish("teardown", "failed") == set()
    assert graph.decided() == {"below": "upstream_failed"}


def test_extending_many_times_takes_no_time_that_grows_with_what_is_there():
    graph = Graph("a", "b <- a", b="all_done")
    began = time.perf_counter()
    for _ in range(2_000):
        graph.scheduler.extend(50, TRIGGERS["none_failed"])
    assert len(graph.scheduler.state) == 100_002
    assert time.perf_counter() - began < 5
