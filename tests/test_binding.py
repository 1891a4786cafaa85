"""Which argument gets which result."""

import functools

import pytest

import flowkit
from flowkit import DAG, BindingError, DefinitionError, OptionError, Skip, Task, TaskContext, TaskExecutionError, task
from flowkit.engine.binding import CONTEXT, INPUT, ITEM, OWN, RESULT, Upstream, bind


@pytest.fixture(params=["thread", "sequential"])
def executor(request):
    return request.param


def gives(*names):
    """Return one task for each of *names*; its result is its name in capitals."""
    return [Task(name, name.upper) for name in names]


def called(func, upstream=(), inputs=None, **options):
    """Return what *func* gives, wired behind tasks named *upstream* and named "t" itself."""
    last = Task("t", func, **options)
    gives(*upstream) >> last
    return DAG("etl", tasks=[last]).run(inputs)["t"]


def refused(func, upstream=(), inputs=None, **options):
    """Return the text of the BindingError that *func* gets behind *upstream*, before anything runs."""
    ran = []
    last = Task("t", func, **options)
    [Task(name, lambda name=name: ran.append(name)) for name in upstream] >> last
    dag = DAG("etl", tasks=[last])
    with pytest.raises(BindingError) as validated:
        dag.validate(inputs)
    with pytest.raises(BindingError) as caught:
        dag.run(inputs)
    assert ran == []
    assert str(caught.value) == str(validated.value)
    return str(caught.value)


# ---------------------------------------------------------------- the first ten minutes


def test_results_left_over_arrive_by_position_in_wiring_order(executor):
    """[fetch, a, b] >> aggregate calls aggregate(data, a, b)."""

    @task
    def fetch():
        return [1, 2]

    @task
    def a(fetch):
        return sum(fetch)

    @task
    def b(fetch):
        return len(fetch)

    @task
    def aggregate(data, total, count):
        return data, total, count

    fetch >> [a, b]
    [fetch, a, b] >> aggregate
    assert DAG("etl", tasks=[aggregate]).run(executor=executor)["aggregate"] == ([1, 2], 3, 2)


def test_names_that_agree_decide_over_the_wiring_order():
    """[fetch, a, b] >> aggregate(data, a, b) and [b, a, fetch] >> aggregate(data, a, b) call the same."""
    for order in (("fetch", "a", "b"), ("b", "a", "fetch"), ("a", "fetch", "b")):
        assert called(lambda data, a, b: (data, a, b), order) == ("FETCH", "A", "B")


def test_star_args_take_all_that_is_left():
    """aggregate(fetch, *others) under [fetch, a, b] gets all three."""

    def aggregate(fetch, *others):
        return fetch, others

    assert called(aggregate, ["fetch", "a", "b"]) == ("FETCH", ("A", "B"))


def test_parameters_with_default_none_are_filled_by_position():
    """load(rows, manual=None, auto=None) under [transform, manual_approval, auto_approval] gets three."""

    def load(rows, manual=None, auto=None):
        return rows, manual, auto

    upstream = ["transform", "manual_approval", "auto_approval"]
    assert called(load, upstream) == ("TRANSFORM", "MANUAL_APPROVAL", "AUTO_APPROVAL")
    assert called(load, upstream[:2]) == ("TRANSFORM", "MANUAL_APPROVAL", None)
    assert called(load, upstream[:1]) == ("TRANSFORM", None, None)


def test_a_setting_is_not_filled_by_position():
    """load(rows, limit=10) under [extract, audit] is refused."""

    def load(rows, limit=10): ...

    text = refused(load, ["extract", "audit"])
    assert "task 't(rows, limit=10)' is wired to 2 tasks ('extract', 'audit')" in text
    assert "no parameter takes the result of 'audit'" in text


def test_a_chain_hands_each_result_on(executor):
    """a ─► b ─► c"""

    @task
    def a():
        return 1

    @task
    def b(x):
        return x + 1

    @task
    def c(x):
        return x * 10

    a >> b >> c
    assert DAG("chain", tasks=[c]).run(executor=executor) == {"a": 1, "b": 2, "c": 20}


def test_a_fan_out_gives_every_task_the_same_result():
    @task
    def extract():
        return [1, 2, 3]

    @task
    def total(rows):
        return sum(rows)

    @task
    def count(rows):
        return len(rows)

    extract >> [total, count]
    assert DAG("fan", tasks=[total, count]).run() == {"extract": [1, 2, 3], "total": 6, "count": 3}


def test_none_is_a_result_like_any_other(executor):
    @task
    def nothing():
        return None

    @task
    def see(value, other="default"):
        return value, other

    nothing >> see
    assert DAG("etl", tasks=[see]).run(executor=executor)["see"] == (None, "default")


def test_wiring_the_same_edge_twice_passes_one_argument():
    a, last = *gives("a"), Task("t", lambda *args: args)
    a >> last
    a >> last
    [a, a] >> last
    assert DAG("etl", tasks=[last]).run()["t"] == ("A",)


# ---------------------------------------------------------------- rule 1: names


def test_a_parameter_named_like_an_upstream_task_gets_its_result():
    def f(x, audit):
        return x, audit

    assert called(f, ["audit", "extract"]) == ("EXTRACT", "AUDIT")


def test_a_setting_named_like_an_upstream_task_gets_its_result():
    def f(rows, limit=10):
        return rows, limit

    assert called(f, ["limit", "rows"]) == ("ROWS", "LIMIT")


def test_a_keyword_only_parameter_is_filled_by_name():
    def f(rows, *, audit, note="none"):
        return rows, audit, note

    assert called(f, ["audit", "extract"]) == ("EXTRACT", "AUDIT", "none")


def test_a_keyword_only_parameter_is_never_filled_by_position():
    def f(rows, *, audit=None): ...

    assert "no parameter takes the result of 'b'" in refused(f, ["a", "b"])


def test_a_positional_only_parameter_is_filled_by_name_too():
    def f(first, audit, /, last):
        return first, audit, last

    assert called(f, ["audit", "a", "b"]) == ("A", "AUDIT", "B")


def test_a_parameter_named_like_an_input_gets_it():
    def f(date, rows):
        return date, rows

    assert called(f, ["rows"], {"date": "today"}) == ("today", "ROWS")


def test_a_task_counts_before_an_input_of_the_same_name():
    """An upstream result wins, and the input that nobody takes is an error."""
    with pytest.raises(DefinitionError, match="input 'rows' is not used: a task has that name"):
        called(lambda rows: rows, ["rows"], {"rows": "mine"})


def test_an_input_leaves_the_other_parameters_to_the_results():
    def f(a, date, b):
        return a, date, b

    assert called(f, ["x", "y"], {"date": "today"}) == ("X", "today", "Y")


def test_a_setting_is_filled_by_an_input_of_its_name():
    def f(rows, limit=10):
        return rows, limit

    assert called(f, ["x"], {"limit": 3}) == ("X", 3)
    assert called(f, ["x"]) == ("X", 10)


@pytest.mark.parametrize(
    "func",
    [
        lambda context, rows: (context, rows),
        lambda rows, context: (context, rows),
        lambda rows, *, context: (context, rows),
        lambda rows, context=None: (context, rows),
    ],
    ids=["first", "last", "keyword-only", "with a default"],
)
def test_a_parameter_named_context_gets_the_context_and_no_result(func, executor):
    last = Task("t", func)
    gives("extract") >> last
    context, rows = DAG("etl", tasks=[last]).run(executor=executor)["t"]
    assert (type(context), rows) == (TaskContext, "EXTRACT")
    assert (context.task_name, context.attempt) == ("t", 1)
    assert context.upstream["extract"].value == "EXTRACT"


def by_class(rows, ctx: TaskContext):
    return ctx, rows


def by_text(rows, ctx: "TaskContext"):
    return ctx, rows


def by_dotted_text(rows, ctx: "flowkit.TaskContext"):
    return ctx, rows


def keyword_only_by_class(rows, *, ctx: TaskContext):
    return ctx, rows


@pytest.mark.parametrize("func", [by_class, by_text, by_dotted_text, keyword_only_by_class])
def test_a_parameter_annotated_taskcontext_gets_the_context(func):
    context, rows = called(func, ["extract"])
    assert (type(context), rows) == (TaskContext, "EXTRACT")


def test_an_annotation_is_compared_as_text():
    """A module that imports TaskContext only for type checkers has no such name at run time."""

    def f(rows, ctx):
        return ctx

    f.__annotations__["ctx"] = "TaskContext"
    assert type(called(f, ["extract"])) is TaskContext


def test_both_spellings_of_the_context_get_it():
    def f(context, own: TaskContext):
        return type(context), type(own)

    assert called(f) == (TaskContext, TaskContext)


def test_a_task_named_context_does_not_reach_the_parameter_of_that_name():
    assert "no parameter takes the result of 'context'" in refused(lambda rows, context: rows, ["rows", "context"])


def test_an_input_named_context_does_not_reach_the_parameter_of_that_name():
    with pytest.raises(DefinitionError, match="input 'context' is not used"):
        called(lambda context: type(context), inputs={"context": 1})


# ---------------------------------------------------------------- rule 2: what is left over


def test_what_is_left_over_comes_in_wiring_order_not_in_definition_order():
    a, b, c = gives("a", "b", "c")
    last = Task("t", lambda x, y, z: (x, y, z))
    c >> last
    [b, a] >> last
    assert DAG("etl", tasks=[last]).run()["t"] == ("C", "B", "A")


def test_the_mirrored_arrows_wire_in_the_order_they_are_written():
    a, b, c = gives("a", "b", "c")
    last = Task("t", lambda x, y, z: (x, y, z))
    last << [c, a]
    last << b
    assert DAG("etl", tasks=[last]).run()["t"] == ("C", "A", "B")


def test_an_edge_made_by_hand_on_the_other_side_counts_too():
    (a,) = gives("a")
    last = Task("t", lambda x: x)
    a.downstream.append(last)
    assert DAG("etl", tasks=[last, a]).run()["t"] == "A"


def test_positional_parameters_come_before_star_args():
    def f(x, y=None, *rest):
        return x, y, rest

    assert called(f, ["a", "b", "c", "d"]) == ("A", "B", ("C", "D"))
    assert called(f, ["a"]) == ("A", None, ())


def test_star_args_pass_over_a_setting():
    def f(x, limit=10, *rest):
        return x, limit, rest

    assert called(f, ["a", "b", "c"]) == ("A", 10, ("B", "C"))


def test_a_setting_between_two_parameters_keeps_its_default():
    def f(x, limit=10, y=None):
        return x, limit, y

    assert called(f, ["a", "b"]) == ("A", 10, "B")


def test_star_args_alone_take_everything():
    assert called(lambda *args: args, ["a", "b", "c"]) == ("A", "B", "C")
    assert called(lambda *args: args) == ()


def test_star_kwargs_take_what_is_left_by_name():
    def f(x, **others):
        return x, others

    assert called(f, ["a", "b", "c"]) == ("A", {"b": "B", "c": "C"})
    assert called(f, ["b", "x", "c"]) == ("X", {"b": "B", "c": "C"})


def test_star_args_come_before_star_kwargs():
    def f(*args, **kwargs):
        return args, kwargs

    assert called(f, ["a", "b"]) == (("A", "B"), {})


def test_star_kwargs_take_names_that_are_no_identifiers():
    assert called(lambda **kwargs: kwargs, ["a/b", "<script>"]) == {"a/b": "A/B", "<script>": "<SCRIPT>"}


@pytest.mark.parametrize("default", [0, False, "", [], 10, "x"])
def test_every_default_but_none_makes_a_setting(default):
    def f(x, setting=default):
        return setting

    assert called(f, ["a"]) is default
    assert "no parameter takes the result of 'b'" in refused(f, ["a", "b"])


def test_a_default_without_a_truth_value_is_a_setting():
    """A numpy array as a default: comparing it gives no bool."""

    class Array:
        def __eq__(self, other):
            return Array()

        def __bool__(self):
            raise ValueError("ambiguous")

        __hash__ = None

    array = Array()
    assert called(lambda x, weights=array: weights, ["a"]) is array


@pytest.mark.parametrize("count", range(8))
def test_any_number_of_results_arrives(count, executor):
    names = [f"u{n}" for n in range(count)]
    parameters = ", ".join(f"p{n}" for n in range(count))
    func = eval(f"lambda {parameters}: ({parameters}{',' if count else ''})")
    last = Task("t", func)
    gives(*names) >> last
    assert DAG("etl", tasks=[last]).run(executor=executor)["t"] == tuple(name.upper() for name in names)


# ---------------------------------------------------------------- rule 3: what only orders


def test_a_function_without_parameters_gets_nothing():
    assert called(lambda: "ran", ["a", "b"]) == "ran"


def test_a_function_that_takes_the_context_alone_is_only_ordered():
    def alert(context):
        return sorted(context.upstream)

    assert called(alert, ["a", "b"]) == ["a", "b"]


def test_after_orders_without_passing_a_result(executor):
    """audit ┄► load ◄─ extract"""
    ran = []
    extract, audit = Task("extract", lambda: 1), Task("audit", lambda: ran.append("audit"))
    load = Task("load", lambda rows: ran.append("load") or rows)
    extract >> load
    assert load.after(audit) is load
    assert DAG("etl", tasks=[load]).run(executor=executor)["load"] == 1
    assert ran == ["audit", "load"]


def test_after_carries_nothing_even_to_a_parameter_of_that_name():
    load, audit = Task("load", lambda audit=None: audit), *gives("audit")
    load.after(audit)
    assert DAG("etl", tasks=[load]).run()["load"] is None


def test_after_does_not_take_back_an_edge_that_carries():
    (a,) = gives("a")
    last = Task("t", lambda x: x)
    a >> last
    last.after(a)
    assert DAG("etl", tasks=[last]).run()["t"] == "A"


def test_an_arrow_makes_an_edge_of_after_carry():
    (a,) = gives("a")
    last = Task("t", lambda x: x)
    last.after(a)
    a >> last
    assert DAG("etl", tasks=[last]).run()["t"] == "A"


def test_the_context_sees_what_only_orders():
    (audit,) = gives("audit")
    load = Task("load", lambda context: context.upstream["audit"].value)
    load.after(audit)
    assert DAG("etl", tasks=[load]).run()["load"] == "AUDIT"


# ---------------------------------------------------------------- rule 4: refused before anything runs


def test_a_missing_value_names_the_task_its_signature_and_what_is_wired():
    def score(rows, model): ...

    text = refused(score, ["rows"])
    assert "task 't(rows, model)' is wired to 1 task ('rows') but needs 2 values: nothing gives 'model'." in text
    assert "Wire a task, pass inputs={'model': ...}, or give the parameter a default." in text


def test_a_result_without_a_place_says_both_ways_out():
    def load(rows): ...

    text = refused(load, ["extract", "audit"])
    assert "task 't(rows)' is wired to 2 tasks ('extract', 'audit')" in text
    assert "no parameter takes the result of 'audit'" in text
    assert "Add a parameter for it, or order without the result: t.after(audit)" in text


def test_a_missing_keyword_only_parameter_is_named():
    def f(rows, *, model): ...

    text = refused(f, ["rows"])
    assert "'t(rows, *, model)'" in text
    assert "nothing gives 'model'" in text


def test_a_binding_error_is_a_type_error():
    with pytest.raises(TypeError):
        called(lambda x: x)


def test_many_missing_values_are_cut_to_ten():
    func = eval(f"lambda {', '.join(f'p{n}' for n in range(25))}: None")
    text = refused(func)
    assert "nothing gives 'p0', 'p1'" in text
    assert "... 15 more" in text


def test_many_results_without_a_place_are_cut_to_ten():
    text = refused(lambda x: x, [f"u{n}" for n in range(31)])
    assert text.count("... 21 more") + text.count("... 20 more") == 2
    assert len(text) < 800


@pytest.mark.parametrize("func", [int.bit_length, "text".upper, functools.partial(pow, 2), str], ids=repr)
def test_what_has_no_code_of_its_own_is_bound_too(func):
    """Methods, partials and classes: whatever ``inspect`` can read."""
    value = 2 if func is int.bit_length else 5
    needs_one = func != "text".upper
    upstream = Task("u", lambda: value)
    last = Task("t", func)
    upstream >> last
    expected = func(value) if needs_one else func()
    assert DAG("etl", tasks=[last]).run()["t"] == expected


def test_self_is_no_parameter_of_a_bound_method():
    class Loader:
        def load(self, rows):
            return self, rows

    loader = Loader()
    assert called(loader.load, ["a"]) == (loader, "A")


def test_a_callable_object_is_bound_by_its_call():
    class Loader:
        def __call__(self, audit, rows):
            return audit, rows

    assert called(Loader(), ["rows", "audit"]) == ("AUDIT", "ROWS")


def test_an_unhashable_callable_is_bound_too():
    class Loader:
        __hash__ = None

        def __call__(self, rows):
            return rows

    assert called(Loader(), ["a"]) == "A"


def test_a_wrapped_function_is_bound_by_what_it_wraps():
    def logged(func):
        @functools.wraps(func)
        def inner(*args, **kwargs):
            return func(*args, **kwargs)

        return inner

    @logged
    def load(audit, rows):
        return audit, rows

    assert called(load, ["rows", "audit"]) == ("AUDIT", "ROWS")


def test_a_parameter_bound_by_a_partial_is_a_setting():
    def load(rows, limit, factor):
        return rows, limit, factor

    assert called(functools.partial(load, factor=2, limit=10), ["a"]) == ("A", 10, 2)


def test_a_builtin_without_a_signature_gets_the_results_in_wiring_order():
    assert called(max, ["a", "b"]) == "B"


def test_a_builtin_without_a_signature_is_checked_at_the_call():
    with pytest.raises(TaskExecutionError) as caught:
        called(max)
    assert isinstance(caught.value.__cause__, BindingError)


# ---------------------------------------------------------------- rule 5: inputs


def test_an_input_that_nobody_takes_is_an_error_with_the_close_matches():
    with pytest.raises(DefinitionError, match=r"input 'daet' is not used.*did you mean 'date'") as caught:
        called(lambda date="today": date, inputs={"daet": 1})
    assert "DAG('etl')" in str(caught.value)


def test_an_input_named_like_a_task_is_an_error():
    """Even where a parameter that is not below that task could take it: which one was meant is anybody's guess."""
    rows, other = Task("rows", lambda: 1), Task("other", lambda rows: rows)
    with pytest.raises(DefinitionError, match="input 'rows'"):
        DAG("etl", tasks=[rows, other]).run({"rows": 2})


def test_every_unused_input_is_listed():
    with pytest.raises(DefinitionError) as caught:
        called(lambda: None, inputs={"a": 1, "b": 2, "c": 3})
    assert len(caught.value.problems) == 3


def test_an_unused_input_beside_an_unhashable_callable_is_still_explained():
    class Loader:
        __hash__ = None

        def __call__(self, date="today"):
            return date

    with pytest.raises(DefinitionError, match="input 'daet' is not used"):
        called(Loader(), inputs={"daet": 1})


def test_an_input_may_be_for_a_task_that_is_no_target():
    dag = DAG("etl", tasks=[Task("a", lambda date: date), Task("b", lambda: "b")])
    assert dag.run({"date": "today"}, targets=["b"]) == {"b": "b"}


def test_inputs_of_the_dag_and_of_the_run_are_merged():
    dag = DAG("etl", tasks=[Task("t", lambda date, region: (date, region))], inputs={"date": "d", "region": "r"})
    assert dag.run()["t"] == ("d", "r")
    assert dag.run({"region": "eu"})["t"] == ("d", "eu")
    assert dag.run()["t"] == ("d", "r")


@pytest.mark.parametrize("value", [None, 0, False, "", [], float("nan")])
def test_an_input_of_any_value_is_passed(value):
    assert called(lambda x: x, inputs={"x": value}) is value


def test_an_input_of_none_is_passed_over_a_default():
    assert called(lambda x=5: x, inputs={"x": None}) is None


def test_many_tasks_take_the_same_input():
    with DAG("etl") as dag:
        Task("a", lambda date: date)
        Task("b", lambda date: date)
    assert dag.run({"date": 1}) == {"a": 1, "b": 1}


def test_the_same_dag_runs_with_and_without_an_input():
    """The binding depends on which names are given, not on the run before."""
    dag = DAG("etl", tasks=[Task("t", lambda date="default": date)])
    assert [dag.run()["t"], dag.run({"date": 1})["t"], dag.run()["t"]] == ["default", 1, "default"]


def test_a_required_parameter_is_filled_by_an_input_or_refused():
    dag = DAG("etl", tasks=[Task("t", lambda date: date)])
    with pytest.raises(BindingError, match=r"nothing gives 'date'.*inputs=\{'date': \.\.\.\}"):
        dag.run()
    assert dag.run({"date": 1})["t"] == 1


def test_wiring_that_changes_is_bound_anew():
    a, b = gives("a", "b")
    last = Task("t", lambda *args: args)
    dag = DAG("etl", tasks=[last])
    assert dag.run()["t"] == ()
    a >> last
    assert dag.run()["t"] == ("A",)
    b >> last
    assert dag.run()["t"] == ("A", "B")
    last.upstream.remove(a)
    a.downstream.remove(last)
    assert dag.run()["t"] == ("B",)


# ---------------------------------------------------------------- an upstream that did not succeed


def with_skipped(func, executor="thread", *, ok=("ok",), **options):
    """Return what *func* gives behind the tasks *ok* and one named "gone", wired last, that is skipped."""

    def skip():
        raise Skip("nothing to do")

    last = Task("t", func, trigger="all_done", **options)
    [*gives(*ok), Task("gone", skip)] >> last
    return DAG("etl", tasks=[last]).run(executor=executor)["t"]


def test_a_skipped_upstream_gives_none_by_position(executor):
    assert with_skipped(lambda x, y: (x, y), executor) == ("OK", None)


def test_a_skipped_upstream_gives_the_parameters_default(executor):
    assert with_skipped(lambda x, gone="default": (x, gone), executor) == ("OK", "default")


def test_a_skipped_upstream_gives_the_default_of_a_keyword_only_parameter(executor):
    assert with_skipped(lambda x, *, gone="default": (x, gone), executor) == ("OK", "default")


def test_a_skipped_upstream_without_a_default_gives_none_by_name(executor):
    assert with_skipped(lambda x, gone: (x, gone), executor) == ("OK", None)


def test_a_skipped_upstream_is_none_in_star_args(executor):
    assert with_skipped(lambda *args: args, executor) == ("OK", None)


def test_a_skipped_upstream_is_absent_from_star_kwargs(executor):
    assert with_skipped(lambda **kwargs: kwargs, executor) == {"ok": "OK"}


@pytest.mark.parametrize("name", ["bad", "unlucky"])
def test_a_failed_upstream_gives_none_and_its_error_in_the_context(executor, name):
    def fail():
        raise ConnectionError("refused")

    def below(x): ...

    def report(value, context):
        return value, context.upstream[name].state, str(context.upstream[name].reason)

    bad, unlucky = Task("bad", fail), Task("unlucky", below)
    bad >> unlucky
    last = Task("t", report, trigger="all_done")
    {"bad": bad, "unlucky": unlucky}[name] >> last
    result = DAG("etl", tasks=[last]).run(executor=executor, fail_fast=False, raise_on_failure=False)
    state = {"bad": "failed", "unlucky": "upstream_failed"}[name]
    assert result["t"][:2] == (None, state)
    assert "ConnectionError: refused" in result["t"][2]


# ---------------------------------------------------------------- conditions


def asked(when, func, upstream=(), inputs=None, **options):
    """Return with what arguments *when* is asked, in a run."""
    seen = []

    @functools.wraps(when)
    def noting(*args, **kwargs):
        seen.append(when(*args, **kwargs))
        return False

    called_task = Task("t", func, when=noting, **options)
    gives(*upstream) >> called_task
    result = DAG("etl", tasks=[called_task]).run(inputs)
    assert result.tasks["t"].state == "skipped"
    assert result.tasks["t"].reason == "when() was false"
    (arguments,) = seen
    return arguments


def test_a_condition_of_one_parameter_gets_the_first_argument():
    """when=lambda x: x > 1000 works on a task with three upstreams."""
    assert asked(lambda x: x, lambda a, b, c: None, ["u", "v", "w"]) == "U"


def test_a_condition_gets_parameters_of_the_tasks_name_by_name():
    assert asked(lambda b, a: (b, a), lambda a, b, c: None, ["u", "v", "w"]) == ("V", "U")


def test_a_condition_gets_upstream_tasks_by_name():
    assert asked(lambda w: w, lambda a, b, c: None, ["u", "v", "w"]) == "W"


def test_a_condition_may_name_an_upstream_of_a_task_that_takes_nothing():
    assert asked(lambda v: v, lambda: None, ["u", "v"]) == "V"


def test_a_condition_fills_the_rest_in_order():
    assert asked(lambda b, x, y: (b, x, y), lambda a, b, c: None, ["u", "v", "w"]) == ("V", "U", "W")


def test_a_condition_without_parameters_is_asked_without_arguments():
    assert asked(lambda: "asked", lambda a, b: None, ["u", "v"]) == "asked"


def test_a_condition_may_take_everything():
    assert asked(lambda *args: args, lambda a, b: None, ["u", "v"]) == ("U", "V")


def test_a_condition_gets_keyword_only_parameters_by_name():
    assert asked(lambda *, b: b, lambda a, *, b: None, ["b", "u"]) == "B"


def test_a_condition_gets_an_input_that_the_task_takes():
    assert asked(lambda date: date, lambda rows, date: None, ["rows"], {"date": "today"}) == "today"


def test_a_condition_gets_the_default_that_the_task_gets():
    """A skipped upstream gives the parameter's default, to the condition too."""
    seen = []
    with_skipped(lambda ok, gone="default": None, when=lambda gone: seen.append(gone) or True)
    assert seen == ["default"]


def test_a_condition_that_needs_more_than_there_is_is_refused():
    text = refused(lambda a: None, ["u"], when=lambda x, y: True)
    assert "task 't'" in text
    assert "'when(x, y)' gets nothing for 'y'" in text
    assert "by name or in order" in text


def test_a_condition_may_be_a_builtin():
    empty, last = Task("u", list), Task("t", lambda rows: rows, when=bool)
    empty >> last
    assert DAG("etl", tasks=[last]).run().skipped == ["t"]


def test_a_condition_is_asked_once_before_the_first_attempt(executor):
    asked_for, tries = [], []

    def flaky(x):
        tries.append(x)
        if len(tries) < 3:
            raise ConnectionError
        return x

    last = Task("t", flaky, when=lambda x: asked_for.append(x) or True, retries=5, delay=0)
    gives("u") >> last
    assert DAG("etl", tasks=[last]).run(executor=executor)["t"] == "U"
    assert (asked_for, len(tries)) == (["U"], 3)


@pytest.mark.parametrize("answer", [0, "", [], None, 0.0, {}])
def test_a_condition_is_judged_by_truth(answer, executor):
    dag = DAG("etl", tasks=[Task("t", lambda: 1, when=lambda: answer)])
    assert dag.run(executor=executor).skipped == ["t"]


@pytest.mark.parametrize("answer", [1, "no", [0], object()])
def test_a_condition_is_judged_by_truth_not_by_being_true(answer, executor):
    assert DAG("etl", tasks=[Task("t", lambda: 1, when=lambda: answer)]).run(executor=executor)["t"] == 1


@pytest.mark.parametrize("rows", [[], [1]])
def test_a_condition_is_bound_the_same_way_in_a_direct_call(rows):
    load = Task("load", lambda date, rows: len(rows), when=lambda rows: rows)
    assert load("today", rows) == (1 if rows else None)
    assert load("today", rows=rows) == (1 if rows else None)
    assert load(rows=rows, date="today") == (1 if rows else None)


def test_a_condition_gets_the_first_argument_in_a_direct_call():
    load = Task("load", lambda a, b: a + b, when=lambda x: x > 1000)
    assert load(1, 1) is None
    assert load(1001, 1) == 1002


# ---------------------------------------------------------------- one problem does not hide another


def test_validate_lists_every_binding_problem():
    """a ─► score, a ─► full: one lacks a value, the other has no place for one."""
    (a,) = gives("a")
    score, full = Task("score", lambda rows, model: None), Task("full", lambda x, limit=3: None)
    a >> [score, full]
    gives("b") >> full
    with pytest.raises(DefinitionError, match="2 problems") as caught:
        DAG("etl", tasks=[score, full]).validate()
    assert [type(problem) for problem in caught.value.problems] == [BindingError, BindingError]
    assert "'model'" in str(caught.value)
    assert "'b'" in str(caught.value)


def test_a_right_definition_validates_in_silence():
    last = Task("t", lambda x, y: None)
    gives("a", "b") >> last
    assert DAG("etl", tasks=[last]).validate() is None


@pytest.mark.parametrize("inputs", [3, ["date"], "date", {("a",): 1}, {1: 2}], ids=repr)
def test_inputs_that_are_no_mapping_of_names_are_refused(inputs):
    with pytest.raises(OptionError, match=r"DAG\('etl'\).*(must be a mapping of names|must be a string)"):
        called(lambda: None, inputs=inputs)


# ---------------------------------------------------------------- one item at a time


ROWS = 0
"""The id of the task named "rows", the first upstream in these tests; "other" is 1."""


def mapped(func, over="", when=None, names=("rows", "other"), inputs=()):
    """Return the binding of *func* behind *names*, mapped, and where everything comes from."""
    binding = bind("t", func, when, Upstream(range(len(names)), names, inputs))
    return binding, binding.map_over("t", func, over)


def kinds(sources):
    return [source.kind for source in sources]


def test_the_first_parameter_gets_the_item_and_the_others_what_they_got():
    binding, everything = mapped(lambda x, y: None)
    assert kinds(binding.args) == [ITEM, RESULT]
    assert (everything.kind, everything.key) == (RESULT, ROWS)
    assert binding.plain_ids() == (OWN, 1)


def test_over_chooses_the_parameter_by_name_wherever_it_stands():
    binding, everything = mapped(lambda other, *, rows: None, over="rows")
    assert kinds(binding.args) == [RESULT]
    assert kinds(binding.kwargs.values()) == [ITEM]
    assert (everything.kind, everything.key) == (RESULT, ROWS)
    assert binding.plain_ids() is None


def test_an_input_can_be_mapped_over():
    binding, everything = mapped(lambda date, rows: None, names=("rows",), inputs=("date",))
    assert kinds(binding.args) == [ITEM, RESULT]
    assert (everything.kind, everything.key) == (INPUT, "date")
    assert binding.inputs == {"date"}


def test_the_context_is_passed_over_when_the_first_parameter_is_looked_for():
    binding, everything = mapped(lambda context, rows, other: None)
    assert kinds(binding.args) == [CONTEXT, ITEM, RESULT]
    assert everything.key == ROWS


def test_what_is_mapped_over_keeps_the_default_of_its_parameter():
    binding, everything = mapped(lambda rows=(), other=3: None)
    assert everything.default == ()
    assert (binding.args[0].kind, binding.args[0].default) == (ITEM, None)


def test_the_condition_of_a_mapped_task_is_asked_about_the_item():
    binding, _ = mapped(lambda x, y: None, when=lambda y, x, other: True)
    by_name = dict(zip(("y", "x", "other"), binding.when_args, strict=False)) | binding.when_kwargs
    assert by_name["x"].kind == ITEM
    assert by_name["y"].kind == by_name["other"].kind == RESULT


def test_star_args_may_hold_the_item():
    binding, everything = mapped(lambda *given: None)
    assert (binding.plain_ids(), everything.key) == ((OWN, 1), ROWS)


@pytest.mark.parametrize(
    ("func", "over"),
    [
        (lambda: None, ""),
        (lambda context: None, ""),
        (lambda *, rows, other: None, ""),
        (lambda **named: None, ""),
        (lambda limit=10, rows=None, other=None: None, ""),
        (lambda rows, other, limit=10: None, "limit"),
        (lambda rows, other, *, limit=10: None, "limit"),
        (lambda rows, other, context: None, "context"),
        (lambda rows, other: None, "nothing"),
        (lambda *given: None, "given"),
    ],
)
def test_a_parameter_that_gets_no_result_cannot_get_items(func, over):
    with pytest.raises(BindingError, match="is mapped, and nothing gives") as caught:
        mapped(func, over)
    assert (f"parameter {over!r}" if over else "its first parameter") in str(caught.value)
    assert "task 't(" in str(caught.value)


def test_a_builtin_without_a_signature_gets_the_item_first():
    binding, everything = mapped(min)
    assert (binding.plain_ids(), everything.key) == ((OWN, 1), ROWS)
    with pytest.raises(BindingError):
        mapped(min, over="rows")
