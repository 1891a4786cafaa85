"""Programs: a graph frozen and its calls compiled, looked at without running anything."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit import (
    DAG,
    BindingError,
    DAGCycleError,
    DefinitionError,
    DuplicateTaskError,
    OptionError,
    Task,
    wiring,
)
from flowkit.engine.graph import CycleError, freeze
from flowkit.engine.program import MANY, NAMED, SPECIAL, compile_program, freeze_tasks, raise_problems


def program(*tasks, inputs=(), **options):
    compiled, problems = compile_program("etl", tasks, wiring.edges(tasks), inputs, **options)
    raise_problems("DAG 'etl'", problems)
    return compiled


def arity_of(func, ups=0, **options):
    """Return how the task *func* under *ups* tasks is called: its arity and where its results come from."""
    last = Task("last", func, **options)
    made = [Task(f"u{i}", lambda: 0) for i in range(ups)]
    made >> last
    compiled = program(*made, last)
    i = compiled.index["last"]
    return compiled.arity[i], compiled.sources[i]


# ---------------------------------------------------------------- columns


def test_every_column_is_indexed_by_the_ids_in_generation_order():
    """b, a ─► c, all defined in another order"""
    c, b, a = Task("c", lambda b, a: 0), Task("b", lambda: 0), Task("a", lambda: 0)
    [b, a] >> c
    compiled = program(c, b, a)
    assert compiled.names == ["b", "a", "c"]
    assert compiled.index == {"b": 0, "a": 1, "c": 2}
    assert compiled.tasks == [b, a, c]
    assert compiled.funcs == [b.func, a.func, c.func]
    assert compiled.graph.upstream == [(), (), (0, 1)]
    assert compiled.graph.downstream == [(2,), (2,), ()]
    assert (len(compiled), compiled.name) == (3, "etl")


def test_without_special_options_there_is_nothing_to_look_up():
    compiled = program(Task("a", lambda: 0))
    assert (compiled.rules, compiled.uses, compiled.timed, compiled.bindings) == (None, {}, {}, {})
    assert not compiled.has_callbacks
    assert compiled.inputs == set()


def test_options_become_columns():
    """a ─► b"""
    a = Task("a", lambda: 0, uses="api", timeout=3, on_success=print)
    b = Task("b", lambda a: 0, trigger="all_done")
    a >> b
    compiled = program(a, b)
    assert (compiled.uses, compiled.timed, compiled.has_callbacks) == ({0: "api"}, {0: 3.0}, True)
    assert list(compiled.rules) == [0, 3]


# ---------------------------------------------------------------- how calls are compiled


@pytest.mark.parametrize(("func", "ups", "expected"), [
    (lambda: 0, 0, (0, None)),
    (lambda: 0, 3, (0, None)),
    (lambda a: 0, 1, (1, 0)),
    (lambda a, b: 0, 2, (2, (0, 1))),
    (lambda a, b, c: 0, 3, (3, (0, 1, 2))),
    (lambda a, b, c, d: 0, 4, (MANY, (0, 1, 2, 3))),
    (lambda *all: 0, 6, (MANY, tuple(range(6)))),
    (lambda *all: 0, 0, (0, None)),
    (lambda a, *all: 0, 2, (2, (0, 1))),
    (lambda a, b=None: 0, 1, (1, 0)),
    (lambda a, b=None: 0, 2, (2, (0, 1))),
    (max, 3, (3, (0, 1, 2))),
])  # fmt: skip
def test_results_by_position_are_the_quick_calls(func, ups, expected):
    """ups ─► last"""
    assert arity_of(func, ups) == expected


@pytest.mark.parametrize(("func", "ups", "expected"), [
    (lambda **all: 0, 2, ((), (("u0", 0), ("u1", 1)))),
    (lambda a, **all: 0, 3, ((0,), (("u1", 1), ("u2", 2)))),
])  # fmt: skip
def test_results_by_name_are_nearly_as_quick(func, ups, expected):
    """ups ─► last"""
    assert arity_of(func, ups) == (NAMED, expected)


@pytest.mark.parametrize(("func", "ups", "options"), [
    (lambda a, *, u1: 0, 2, {}),
    (lambda context: 0, 0, {}),
    (lambda a, context: 0, 1, {}),
    (lambda a: 0, 1, {"when": bool}),
    (lambda a: 0, 1, {"timeout": 3}),
    (lambda u0=3: 0, 1, {}),
    (lambda limit=3, *all: 0, 1, {}),
])  # fmt: skip
def test_everything_else_is_special(func, ups, options):
    assert arity_of(func, ups, **options)[0] == SPECIAL


def test_a_parameter_named_like_an_upstream_task_is_bound_by_name():
    """u0, u1 ─► last(u1, u0)"""
    assert arity_of(lambda u1, u0: 0, 2) == (2, (1, 0))


def test_the_same_function_may_stand_behind_many_tasks():
    """a ─► b, c, d of one function; b also under c"""

    def add(x=None, y=None): ...

    a, b, c, d = (Task(name, add) for name in "abcd")
    a >> [b, c, d]
    c >> b
    compiled = program(a, b, c, d)
    assert {name: compiled.arity[i] for name, i in compiled.index.items()} == {"a": 0, "b": 2, "c": 1, "d": 1}


def test_a_callable_that_cannot_be_hashed_is_compiled_too():
    class Unhashable:
        __hash__ = None

        def __call__(self, rows):
            return len(rows)

    with DAG("etl") as dag:
        Task("rows", lambda: [1, 2]) >> Task("count", Unhashable())
    assert dag.run()["count"] == 2


def test_an_order_only_edge_is_in_the_graph_and_not_in_the_call():
    """a ─► c, b ┄► c"""
    a, b, c = Task("a", lambda: 0), Task("b", lambda: 0), Task("c", lambda x: 0)
    a >> c
    c.after(b)
    compiled = program(a, b, c)
    assert compiled.graph.upstream[2] == (0, 1)
    assert (compiled.arity[2], compiled.sources[2]) == (1, 0)


def test_inputs_are_known_if_a_task_takes_them():
    compiled = program(Task("a", lambda date, limit=3: 0), inputs={"date", "limit", "other"})
    assert compiled.inputs == {"date", "limit"}
    assert compiled.arity[0] == SPECIAL


def test_by_names_alone_leftover_results_only_order():
    """extract, audit ─► load(extract); extract ─► all(**rest)"""
    extract, audit = Task("extract", lambda: 0), Task("audit", lambda: 0)
    load, everything = Task("load", lambda extract: 0), Task("all", lambda **rest: 0)
    [extract, audit] >> load
    [extract, audit] >> everything
    compiled = program(extract, audit, load, everything, names_only=True)
    assert compiled.sources[compiled.index["load"]] == 0
    assert set(compiled.bindings[compiled.index["all"]].kwargs) == {"extract", "audit"}
    wrong = Task("wrong", lambda rows: 0)
    extract >> wrong
    with pytest.raises(BindingError, match="nothing gives 'rows'"):
        program(extract, audit, wrong, names_only=True)


# ---------------------------------------------------------------- where each id runs


async def coroutine(): ...


def kinds_of(executor, own=None):
    """Return the kind of worker of the tasks plain and coroutine, which ask for *own*, in a run with *executor*."""
    compiled = program(Task("plain", lambda: 0, executor=own), Task("coroutine", coroutine, executor=own))
    kinds = compiled.kinds(executor)
    return [kinds] * 2 if isinstance(kinds, str) else kinds


@pytest.mark.parametrize("executor", ["thread", "process", "async"])
def test_coroutines_run_on_the_loop_whatever_the_executor_of_the_run(executor):
    plain = "thread" if executor == "async" else executor
    assert kinds_of(executor) == [plain, "async"]


@pytest.mark.parametrize("executor", ["thread", "process", "async"])
@pytest.mark.parametrize(("own", "kinds"), [
    ("thread", ["thread", "async"]), ("async", ["thread", "async"]), ("process", ["process", "process"]),
])  # fmt: skip
def test_what_a_task_asks_for_counts_more_than_what_the_run_says(executor, own, kinds):
    """On a thread there is no loop, and on a loop no place for what would block it."""
    assert kinds_of(executor, own) == kinds


@pytest.mark.parametrize("own", [None, "thread", "process", "async"])
def test_a_sequential_run_has_one_kind_of_worker(own):
    assert kinds_of("sequential", own) == ["sequential", "sequential"]


def test_one_kind_is_said_once():
    """The usual run is of one kind, and looks nowhere which."""
    plain, other = Task("plain", lambda: 0), Task("other", lambda: 0, executor="thread")
    assert program(plain).kinds("process") == "process"
    assert program(plain).kinds("async") == "thread"
    assert program(plain, other).kinds("thread") == "thread"
    assert program(plain, other).kinds("process") == ["process", "thread"]
    assert program(Task("coroutine", coroutine)).kinds("thread") == "async"
    assert program().kinds("thread") == "thread"


# ---------------------------------------------------------------- problems


@pytest.mark.parametrize("rule", ["one_failed", "all_failed"])
def test_a_rule_that_could_never_be_met_is_a_definition_error(rule):
    with pytest.raises(OptionError, match=f"trigger='{rule}' and nothing upstream, so it could never start"):
        program(Task("alert", lambda: 0, trigger=rule))


def test_two_tasks_of_one_name_are_an_error_with_both_places():
    one = Task("load", lambda: 0)
    two = Task("load", lambda: 0)
    with pytest.raises(DuplicateTaskError) as caught:
        program(one, two)
    assert caught.value.task_name == "load"
    assert str(one.site) in str(caught.value)
    assert str(two.site) in str(caught.value)


def test_one_problem_is_raised_as_itself_and_many_as_one_error_that_lists_them():
    a, b = Task("a", lambda x: 0), Task("b", lambda: 0, trigger="all_failed")
    with pytest.raises(BindingError):
        program(a)
    with pytest.raises(DefinitionError) as caught:
        program(a, b, Task("c", lambda: 0, trigger="one_failed"), Task("b", lambda: 0))
    kinds = [type(problem) for problem in caught.value.problems]
    assert kinds.count(BindingError) == 1
    assert kinds.count(DuplicateTaskError) == 1
    assert kinds.count(OptionError) == 2
    assert str(caught.value).startswith("DAG 'etl' has 4 problems; nothing has run:\n  1. ")


def test_a_cycle_does_not_hide_the_other_problems():
    """a ─► b ─► a, another a, and c that takes what nothing gives"""
    a, b, other = Task("a", lambda b: 0), Task("b", lambda a: 0), Task("a", lambda: 0)
    a >> b >> a
    with pytest.raises(DefinitionError) as caught:
        program(a, b, other, Task("c", lambda x: 0))
    kinds = {type(problem) for problem in caught.value.problems}
    assert kinds == {DuplicateTaskError, DAGCycleError, BindingError}


def test_without_problems_nothing_is_raised():
    raise_problems("DAG 'etl'", [])


# ---------------------------------------------------------------- the graph


def test_a_cycle_is_told_by_the_names_of_a_shortest_one():
    """a ─► b ─► c ─► d ─► a, and c ─► b"""
    a, b, c, d = (Task(name, lambda *x: 0) for name in "abcd")
    a >> b >> c >> d >> a
    c >> b
    with pytest.raises(DAGCycleError) as caught:
        freeze_tasks([a, b, c, d], wiring.edges([a, b, c, d]))
    assert caught.value.cycle == ("b", "c", "b")
    assert str(caught.value) == (
        "tasks form a cycle: 'b' >> 'c' >> 'b'. Remove one of these edges; nothing has run."
    )


def test_what_hangs_above_and_below_a_cycle_is_not_part_of_it():
    """a ─► b ─► c ─► b, c ─► d"""
    a, b, c, d = (Task(name, lambda *x: 0) for name in "abcd")
    a >> b >> c >> [b, d]
    with pytest.raises(DAGCycleError) as caught:
        program(a, b, c, d)
    assert set(caught.value.cycle) == {"b", "c"}


def test_the_shortest_of_several_cycles_is_told():
    """0 ─► 1 ─► 2 ─► 3 ─► 0 and 4 ─► 5 ─► 6 ─► 4"""
    with pytest.raises(CycleError) as caught:
        freeze([[3], [0], [1], [2], [6], [4], [5]])
    assert caught.value.args[0] == [4, 5, 6, 4]


def test_the_search_for_a_shortest_cycle_ends_when_its_budget_is_spent(monkeypatch):
    """A ring of 400 on which every task also leads five tasks on: many cycles, none of two."""
    monkeypatch.setattr("flowkit.engine.graph._CYCLE_BUDGET", 100)
    count = 400
    upstream = [sorted({(i - 1) % count, (i - 5) % count}) for i in range(count)]
    with pytest.raises(CycleError) as caught:
        freeze(upstream)
    cycle = caught.value.args[0]
    assert cycle[0] == cycle[-1]
    assert all(before in upstream[after] for before, after in pairwise(cycle))


@settings(deadline=None)
@given(st.data(), st.integers(1, 8))
def test_freezing_any_edges_gives_a_topological_order_or_a_real_cycle(data, count):
    """Any edges at all, cycles included."""
    ids = st.integers(0, count - 1)
    upstream = [data.draw(st.lists(ids, unique=True, max_size=3)) for _ in range(count)]
    try:
        graph, order = freeze(upstream)
    except CycleError as error:
        cycle = error.args[0]
        assert cycle[0] == cycle[-1]
        assert all(before in upstream[after] for before, after in pairwise(cycle))
        return
    assert sorted(order) == list(range(count))
    assert [[order[u] for u in before] for before in graph.upstream] == [upstream[p] for p in order]
    generation = {i: n for n, ids in enumerate(graph.generations()) for i in ids}
    for i, before in enumerate(graph.upstream):
        assert generation[i] == 1 + max((generation[u] for u in before), default=-1)
        assert all(i in graph.downstream[u] for u in before)
    assert [list(after) for after in graph.downstream] == [sorted(after) for after in graph.downstream]
    assert all(order[a] < order[b] for ids in graph.generations() for a, b in pairwise(ids))


def test_no_tasks_make_an_empty_graph():
    graph, order = freeze([])
    assert (len(graph), order, graph.generations()) == (0, [], [])


def test_a_long_chain_freezes_without_recursion():
    """50,000 tasks one after the other"""
    started = time.perf_counter()
    graph, _ = freeze([[i - 1] if i else [] for i in range(50_000)])
    assert len(graph.generations()) == 50_000
    assert time.perf_counter() - started < 5
