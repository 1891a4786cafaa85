"""Wiring: every way to draw an edge, what the operators return, and what the neighbour lists promise."""

import copy
import pickle
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit import DAG, DAGCycleError, Task, chain


def tasks(names):
    """Return a task for each character of *names*; each gives its name and what it was given, as text."""
    return [Task(name, lambda *given, name=name: f"{name}({','.join(given)})") for name in names]


def edges(*made):
    return {f"{before.name}{after.name}" for before in made for after in before.downstream}


def mirrored(*made):
    return {f"{before.name}{after.name}" for after in made for before in after.upstream}


# ---------------------------------------------------------------- the operators


def test_one_to_one_returns_the_right_side():
    """a ─► b"""
    a, b = tasks("ab")
    assert (a >> b) is b
    assert (list(a.downstream), list(b.upstream)) == ([b], [a])


def test_one_to_many_returns_the_list():
    """a ─► b, c"""
    a, b, c = tasks("abc")
    both = [b, c]
    assert (a >> both) is both
    assert edges(a, b, c) == mirrored(a, b, c) == {"ab", "ac"}


def test_many_to_one_returns_the_task():
    """a, b ─► c"""
    a, b, c = tasks("abc")
    assert ([a, b] >> c) is c
    assert list(c.upstream) == [a, b]


def test_left_shift_mirrors_right_shift():
    """a ─► b; a ─► c, d; e, f ─► g"""
    a, b, c, d, e, f, g = made = tasks("abcdefg")
    assert (b << a) is a
    assert ([c, d] << a) is a
    sources = [e, f]
    assert (g << sources) is sources
    assert edges(*made) == mirrored(*made) == {"ab", "ac", "ad", "eg", "fg"}


def test_tuples_work_like_lists():
    """a ─► b, c ─► d; e ─► f, g"""
    a, b, c, d, e, f, g = made = tasks("abcdefg")
    both = (b, c)
    assert (a >> both) is both
    assert ((b, c) >> d) is d
    assert ((f, g) << e) is e
    assert edges(*made) == mirrored(*made) == {"ab", "ac", "bd", "cd", "ef", "eg"}


def test_a_line_reads_as_it_runs():
    """extract ─► clean, count ─► load"""
    extract, clean, count, load = (Task(name, len) for name in ("extract", "clean", "count", "load"))
    assert (extract >> [clean, count] >> load) is load
    assert list(load.upstream) == [clean, count]
    assert list(extract.downstream) == [clean, count]


def test_an_empty_list_wires_nothing():
    (a,) = tasks("a")
    assert a >> [] == []
    assert ([] >> a) is a
    assert repr(a) == "<Task 'a' upstream=0, downstream=0>"


def test_chain_wires_lists_to_lists():
    """a ─► b, c ═► d, e ─► f"""
    a, b, c, d, e, f = made = tasks("abcdef")
    assert chain(a, [b, c], (d, e), f) is None
    assert edges(*made) == mirrored(*made) == {"ab", "ac", "bd", "be", "cd", "ce", "df", "ef"}


def test_chain_of_one_link_or_none_wires_nothing():
    (a,) = tasks("a")
    chain()
    chain(a)
    assert edges(a) == set()


@pytest.mark.parametrize("link", [42, "ab", ["ab"], None])
@pytest.mark.parametrize("place", [0, 1])
def test_chain_refuses_what_is_no_task_and_says_so(link, place):
    (a,) = tasks("a")
    links = [a, a]
    links[place] = link
    with pytest.raises(TypeError, match="must be a task or a list of tasks"):
        chain(*links)


def test_after_orders_and_returns_the_task():
    """audit, backup ─► load"""
    audit, backup, load = tasks("abl")
    assert load.after(audit, backup) is load
    assert list(load.upstream) == [audit, backup]
    assert list(audit.downstream) == [load]


def test_after_takes_lists_too():
    """a, b, c ─► d"""
    a, b, c, d = tasks("abcd")
    assert d.after([a, b], c) is d
    assert list(d.upstream) == [a, b, c]


def test_an_edge_made_by_after_carries_no_result():
    """a ─► c, b ┄► c"""
    with DAG("after") as dag:
        a, b, c = tasks("abc")
        a >> c
        c.after(b)
    assert dag.run()["c"] == "c(a())"
    assert dag.waves() == [["a", "b"], ["c"]]


@pytest.mark.parametrize("first", ["after", "shift"])
def test_an_edge_made_by_after_and_by_shift_carries_its_result(first):
    """a ─► b, wired twice"""
    with DAG("both") as dag:
        a, b = tasks("ab")
        if first == "after":
            b.after(a)
            a >> b
        else:
            a >> b
            b.after(a)
    assert list(b.upstream) == [a]
    assert dag.run()["b"] == "b(a())"


def test_a_later_shift_on_an_after_edge_counts_for_the_next_run():
    """a ┄► b, then a ─► b"""
    with DAG("later") as dag:
        a, b = tasks("ab")
        b.after(a)
    assert dag.run()["b"] == "b()"
    a >> b
    assert dag.run()["b"] == "b(a())"


def test_wiring_the_same_edge_again_is_the_same_edge():
    """a ─► b"""
    with DAG("again") as dag:
        a, b = tasks("ab")
        a >> b
        b << a
        [a, a] >> b
        a >> [b, b]
        chain(a, b)
    assert (list(a.downstream), list(b.upstream)) == ([b], [a])
    assert dag.run()["b"] == "b(a())"


def test_results_arrive_in_wiring_order():
    """c, a, b ─► d"""
    with DAG("order") as dag:
        a, b, c, d = tasks("abcd")
        c >> d
        [a, b] >> d
    assert dag.run()["d"] == "d(c(),a(),b())"


# ---------------------------------------------------------------- what cannot be wired


def test_wiring_the_result_of_a_call_is_a_type_error_that_shows_the_right_spelling():
    extract, load = Task("extract", lambda: 42), Task("load", lambda x=1: x)
    with pytest.raises(TypeError) as caught:
        extract >> load()
    assert str(caught.value) == (
        "cannot wire 'extract' >> 1: the right side must be a task or a list of tasks, not int. "
        "Did you call the task? Write extract >> load, not extract >> load()."
    )
    with pytest.raises(TypeError, match=r"Write load >> load, not load\(\) >> load") as caught:
        [extract()] >> load
    assert "cannot wire 42 >> 'load': the left side" in str(caught.value)


def test_wiring_a_plain_function_says_how_to_make_it_a_task():
    def clean(rows): ...

    with pytest.raises(TypeError, match=r"put @task above def clean, or write Task\(clean\)"):
        Task("extract", len) >> clean


def test_wiring_a_list_in_a_list_says_that_lists_do_not_nest():
    a, b, c = tasks("abc")
    with pytest.raises(TypeError, match="Lists do not nest"):
        a >> [b, [c]]
    assert edges(a, b, c) == set()  # nothing of the list was wired


@pytest.mark.parametrize("operator", ["<<", ".after"])
def test_the_other_ways_to_wire_refuse_it_too(operator):
    (a,) = tasks("a")
    with pytest.raises(TypeError, match=f"'a'.*{operator}"):
        a << 42 if operator == "<<" else a.after(42)
    with pytest.raises(TypeError):
        [42] << a


def test_a_value_whose_repr_is_long_or_broken_does_not_spoil_the_message():
    class Broken:
        def __repr__(self):
            raise RuntimeError("no")

    (a,) = tasks("a")
    with pytest.raises(TypeError, match="<Broken"):
        a >> Broken()
    with pytest.raises(TypeError) as caught:
        a >> "x" * 10_000
    assert len(str(caught.value)) < 400


# ---------------------------------------------------------------- neighbour lists


def test_neighbours_are_read_like_a_list():
    """a, b, c ─► d"""
    a, b, c, d = tasks("abcd")
    [a, b, c] >> d
    assert len(d.upstream) == 3
    assert d.upstream == [a, b, c]
    assert (d.upstream[0], d.upstream[-1]) == (a, c)
    assert b in d.upstream
    assert d not in d.upstream
    assert [task.name for task in d.upstream] == ["a", "b", "c"]
    assert d.upstream.index(b) == 1


def test_a_task_without_neighbours_has_empty_lists_that_can_be_appended_to():
    """a ─► b, by hand"""
    a, b = tasks("ab")
    assert a.upstream == a.downstream == []
    assert b not in a.downstream
    a.downstream.append(b)
    assert a.downstream == [b]


def test_looking_for_a_neighbour_takes_the_same_time_at_any_length():
    """hub ─► 20,000 tasks"""
    hub, stranger = Task("hub", len), Task("stranger", len)
    many = [Task("t", len) for _ in range(20_000)]
    hub >> many
    assert all(task in hub.downstream for task in many[:100])  # the set is made here
    started = time.perf_counter()
    assert not any(stranger in hub.downstream for _ in range(20_000))
    assert time.perf_counter() - started < 1  # 20,000 scans of the list take several seconds


CHANGES = {
    "append": lambda known, task: known.append(task),
    "extend": lambda known, task: known.extend([task, task]),
    "insert": lambda known, task: known.insert(0, task),
    "remove": lambda known, task: known.remove(known[0]) if known else None,
    "pop": lambda known, task: known.pop() if known else None,
    "clear": lambda known, task: known.clear(),
    "replace": lambda known, task: known.__setitem__(0, task) if known else None,
    "replace slice": lambda known, task: known.__setitem__(slice(0, 2), [task]),
    "delete": lambda known, task: known.__delitem__(slice(0, 1)),
    "add": lambda known, task: known.__iadd__([task]),
    "multiply": lambda known, task: known.__imul__(1),
    "reverse": lambda known, task: known.reverse(),
    "sort": lambda known, task: known.sort(key=lambda each: each.serial),
}
SOME = [Task("t", len) for _ in range(40)]


changes = st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(SOME))


@settings(deadline=None)
@given(st.lists(changes, max_size=12), st.integers(0, 30))
def test_membership_stays_right_after_any_change_by_hand(changes, length):
    known = Task("owner", len).upstream
    known.extend(SOME[:length])
    plain = SOME[:length]
    for change, task in changes:
        _ = SOME[-1] in known  # lets a long list make its set
        CHANGES[change](known, task)
        CHANGES[change](plain, task)
        assert list(known) == plain
        assert all((task in known) == (task in plain) for task in SOME)


def test_neighbour_lists_copy_as_plain_lists():
    """a ─► b"""
    a, b = tasks("ab")
    a >> b
    assert copy.copy(a.downstream) == [b]
    assert type(copy.copy(a.downstream)) is list
    assert pickle.loads(pickle.dumps(Task("alone", len).downstream)) == []


def test_a_change_by_hand_counts_for_the_next_run():
    """a ─► b, then a ─► b, c ─► b, then none"""
    with DAG("hand") as dag:
        a, b, c = tasks("abc")
        a >> b
    assert dag.run()["b"] == "b(a())"
    b.upstream.insert(0, c)
    assert dag.run()["b"] == "b(c(),a())"
    b.upstream.clear()
    a.downstream.clear()
    assert dag.run()["b"] == "b()"


# ---------------------------------------------------------------- both sides count


def test_an_edge_written_into_either_list_is_an_edge():
    """a ─► b by b's list, a ─► c by a's list"""
    with DAG("hand") as dag:
        a, b, c = tasks("abc")
    b.upstream.append(a)
    a.downstream.append(c)
    assert dag.waves() == [["a"], ["b", "c"]]
    assert dict(dag.run()) == {"a": "a()", "b": "b(a())", "c": "c(a())"}


def test_an_edge_written_into_both_lists_by_hand_is_one_edge():
    """a ─► b"""
    with DAG("hand") as dag:
        a, b = tasks("ab")
    b.upstream.extend([a, a])
    a.downstream.extend([b, b])
    assert dag.run()["b"] == "b(a())"
    a >> b
    assert dag.run()["b"] == "b(a())"


def test_targets_bring_along_what_only_the_other_side_knows():
    """a ─► b by a's list"""
    with DAG("hand") as dag:
        a, b, _c = tasks("abc")
    a.downstream.append(b)
    assert dict(dag.run(targets=["b"])) == {"a": "a()", "b": "b(a())"}


@pytest.mark.parametrize("hand", ["upstream", "downstream", "both", "mixed"])
def test_a_cycle_is_found_whichever_list_was_written_by_hand(hand):
    """a ─► b ─► c ─► a"""
    with DAG("cycle") as dag:
        made = tasks("abc")
    for i, (before, after) in enumerate(zip(made, made[1:] + made[:1], strict=True)):
        if hand in ("upstream", "both") or (hand == "mixed" and i == 0):
            after.upstream.append(before)
        if hand in ("downstream", "both") or (hand == "mixed" and i == 1):
            before.downstream.append(after)
        if hand == "mixed" and i == 2:
            before >> after
    with pytest.raises(DAGCycleError) as caught:
        dag.run()
    assert caught.value.cycle == ("a", "b", "c", "a")


def test_a_task_cannot_be_wired_to_itself():
    (a,) = tasks("a")
    for wire in (lambda: a >> a, lambda: a << a, lambda: [a] >> a, lambda: a.after(a), lambda: chain(a, a)):
        with pytest.raises(DAGCycleError) as caught:
            wire()
        assert str(caught.value) == "tasks form a cycle: 'a' >> 'a'. Remove this edge; nothing has run."
    assert edges(a) == set()


def test_an_edge_to_oneself_made_by_hand_is_found():
    (a,) = tasks("a")
    a.upstream.append(a)
    with pytest.raises(DAGCycleError, match="'a' >> 'a'"):
        DAG("hand", tasks=[a]).run()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.randoms(use_true_random=False))
def test_any_mix_of_spellings_makes_the_same_graph(count, rng):
    """A random graph, each edge in a random spelling, some edges twice."""
    made = [Task(f"t{i}", lambda *_: None) for i in range(count)]
    wanted = set()
    for _ in range(2 * count):
        low, high = sorted(rng.sample(range(count), 2))
        spell(made[low], made[high], rng)
        wanted.add((f"t{low}", f"t{high}"))
    dag = DAG("mix", tasks=made)
    assert {(u.name, d.name) for u in made for d in u.downstream} == wanted
    assert {(u.name, d.name) for d in made for u in d.upstream} == wanted
    generation = {name: n for n, wave in enumerate(dag.waves()) for name in wave}
    assert all(generation[before] < generation[after] for before, after in wanted)


def spell(before, after, rng: random.Random):
    way = rng.randrange(6)
    if way == 0:
        before >> after
    elif way == 1:
        after << before
    elif way == 2:
        [before] >> after
    elif way == 3:
        (after,) << before
    elif way == 4:
        after.after(before)
    else:
        chain([before], [after])
