"""Random graphs of deterministic tasks, and random changes of them, for properties of plans and resumed runs.

A :class:`Sketch` is plain data. Values depend on the name, the salt, the input and everything upstream, in order; so a
result that is used although it is stale shows.
"""

import zlib
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from flowkit import DAG, Task, TaskContext

INPUT = "row"
ALL_RULES = ["none_failed"] * 6 + ["all_success", "one_success", "all_done", "one_failed", "all_failed"]
NEED_FAILURE = ("one_failed", "all_failed")
FIRST_RULES = [rule for rule in ALL_RULES if rule not in NEED_FAILURE]


@dataclass(frozen=True)
class Sketch:
    """What a task is made of.

    Attributes:
        size: How many numbers it returns, unless it is mapped.
        salt: A closure value that its numbers depend on.
        takes_input: Whether it has a parameter of the name of the run's input.
        when: What its condition answers; None for no condition.
        picks: Whether its condition lets only odd items through, in the place of *when*.
    """

    name: str
    upstream: tuple = ()
    rule: str = "none_failed"
    persists: bool = True
    is_mapped: bool = False
    size: int = 1
    salt: int = 0
    takes_input: bool = False
    when: bool | None = None
    picks: bool = False


def _number(context, salt, given):
    return zlib.crc32(repr((context.task_name, salt, given)).encode())


def _body(sketch):
    salt, size = sketch.salt, sketch.size

    def give(*given, context: TaskContext):
        number = _number(context, salt, given)
        return number if "[" in context.task_name else [number + k for k in range(size)]

    def give_with_input(*given, row=None, context: TaskContext):
        number = _number(context, salt, (given, row))
        return number if "[" in context.task_name else [number + k for k in range(size)]

    def give_of_items(row, context: TaskContext):
        return _number(context, salt, row)

    if sketch.is_mapped and not sketch.upstream:
        return give_of_items
    return give_with_input if sketch.takes_input else give


def _condition(sketch):
    answer = sketch.when

    def when():
        return answer

    if sketch.picks and sketch.is_mapped:
        return _is_odd
    return None if answer is None else when


def _is_odd(item):
    return item is not None and item % 2 == 1


def needs_input(sketches):
    return any(each.takes_input or (each.is_mapped and not each.upstream) for each in sketches)


def build(sketches):
    """Return the DAG of *sketches*, which are in topological order."""
    tasks = {}
    for each in sketches:
        made = Task(each.name, _body(each), trigger=each.rule, persist=each.persists, when=_condition(each))
        tasks[each.name] = made.map() if each.is_mapped else made
        for before in each.upstream:
            tasks[before] >> tasks[each.name]
    return DAG("sketched", tasks=tasks.values())


# ---------------------------------------------------------------- strategies

MOST = 8


def _upstream(draw, names):
    """Draw up to three of *names*, in any order."""
    return tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=3))) if names else ()


@st.composite
def one_sketch(draw, name, before, may_skip):
    """A task *name* below some of *before*."""
    upstream = _upstream(draw, before)
    kind = draw(st.sampled_from(["plain"] * 4 + ["input", "unkept", "unkept", "mapped", "mapped", "unkept mapped"]))
    return Sketch(
        name,
        upstream,
        draw(st.sampled_from(ALL_RULES if upstream else FIRST_RULES)),
        persists="unkept" not in kind,
        is_mapped="mapped" in kind,
        size=draw(st.sampled_from([1, 0, 2, 3])),
        takes_input=kind == "input",
        when=draw(st.sampled_from([None, None, None, True, False])) if may_skip else None,
        picks=may_skip and "mapped" in kind and draw(st.booleans()),
    )


@st.composite
def graphs(draw, *, may_skip):
    """Sketches of 1 to 8 tasks in topological order, of which none fails."""
    sketches = []
    for n in range(draw(st.integers(1, MOST))):
        sketches.append(draw(one_sketch(f"t{n}", [each.name for each in sketches], may_skip)))
    return mend(sketches)


def mend(sketches):
    """Return *sketches* without what would fail: a task mapped over the result of one that may be skipped."""
    mended, never_skipped = [], {}
    for each in sketches:
        is_refused = each.is_mapped and each.upstream and not never_skipped[each.upstream[0]]
        mended.append(replace(each, is_mapped=False) if is_refused else each)
        is_free = each.when is None and each.rule not in NEED_FAILURE
        never_skipped[each.name] = is_free and all(never_skipped[before] for before in each.upstream)
    return mended


CHANGES = ["salt", "size", "upstream", "order", "persists", "mapped", "rule", "input", "rename", "drop", "add", "when"]


@st.composite
def changed(draw, sketches, *, may_skip):
    """*sketches* after one change."""
    sketches = list(sketches)
    kind = draw(st.sampled_from(CHANGES))
    at = draw(st.integers(0, len(sketches) - 1))
    own = sketches[at]
    before = [each.name for each in sketches[:at]]
    if kind == "salt":
        sketches[at] = replace(own, salt=own.salt + 1)
    elif kind == "size":
        sketches[at] = replace(own, size=(own.size + 1) % 4)
    elif kind == "upstream":
        sketches[at] = _with_good_rule(replace(own, upstream=_upstream(draw, before)))
    elif kind == "order":
        sketches[at] = replace(own, upstream=own.upstream[::-1])
    elif kind == "persists":
        sketches[at] = replace(own, persists=not own.persists)
    elif kind == "mapped":
        sketches[at] = replace(own, is_mapped=not own.is_mapped, takes_input=False)
    elif kind == "rule":
        rule = draw(st.sampled_from(ALL_RULES if own.upstream else FIRST_RULES))
        sketches[at] = replace(own, rule=rule)
    elif kind == "input":
        sketches[at] = replace(own, takes_input=not own.takes_input and not own.is_mapped)
    elif kind == "when" and may_skip:
        sketches[at] = replace(own, when=draw(st.sampled_from([None, True, False])))
    elif kind == "rename":
        sketches = _renamed(sketches, own.name, f"{own.name}x")
    elif kind == "drop" and len(sketches) > 1:
        del sketches[at]
        sketches = [_without(each, own.name) for each in sketches]
    elif kind == "add":
        new = draw(one_sketch(f"n{sum(map(len, (each.name for each in sketches)))}", before, may_skip))
        if new.name not in [each.name for each in sketches]:
            sketches.insert(at, new)
            if draw(st.booleans()):
                below = sketches[at + 1]
                sketches[at + 1] = replace(below, upstream=(*below.upstream, new.name))
    return mend(sketches)


def _with_good_rule(sketch):
    lacks_upstream = sketch.rule in NEED_FAILURE and not sketch.upstream
    return replace(sketch, rule="none_failed") if lacks_upstream else sketch


def _renamed(sketches, old, new):
    return [
        replace(
            each,
            name=new if each.name == old else each.name,
            upstream=tuple(new if before == old else before for before in each.upstream),
        )
        for each in sketches
    ]


def _without(sketch, gone):
    return _with_good_rule(replace(sketch, upstream=tuple(name for name in sketch.upstream if name != gone)))


@st.composite
def histories(draw, *, may_skip=True, most=5):
    """One to *most* graphs, each made of the one before by a few changes, and the input that each is run with."""
    found = [draw(graphs(may_skip=may_skip))]
    for _ in range(draw(st.integers(0, most - 1))):
        sketches = found[-1]
        for _ in range(draw(st.sampled_from([1, 1, 2, 3, 0]))):
            sketches = draw(changed(sketches, may_skip=may_skip))
        found.append(sketches)
    rows = st.sampled_from([(1, 2), (1, 2), (1, 3), ()])
    return [(sketches, {INPUT: draw(rows)} if needs_input(sketches) else None) for sketches in found]
