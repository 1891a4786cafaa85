"""The registry: which tasks a bare DAG() finds, and for how long it remembers them.

Modules are played by synthetic ones: their source is run like an import or a notebook cell would run it.
"""

import gc
import itertools
import re
import sys
import textwrap
import threading
import types
import weakref

import pytest

from flowkit import DAG, Task, registry

_numbers = itertools.count()


def module(source=""):
    """Make a module of a new name and run *source* as its body."""
    made = types.ModuleType(f"synthetic_{next(_numbers)}")
    made.__dict__.update(DAG=DAG, Task=Task, threading=threading)
    exec("from flowkit import task, chain", made.__dict__)
    cell(made, source)
    return made


def cell(where, source):
    """Run *source* in the module *where*, as a notebook runs a cell."""
    exec(compile(textwrap.dedent(source), f"<{where.__name__}>", "exec"), where.__dict__)


ETL = """
    @task
    def extract(): return [3, 1, 2]

    @task
    def clean(rows): return sorted(rows)

    extract >> clean
    dag = DAG("etl")
"""


# ---------------------------------------------------------------- per module


def test_a_bare_dag_runs_the_tasks_of_its_module():
    """extract ─► clean"""
    assert dict(module(ETL).dag.run()) == {"extract": [3, 1, 2], "clean": [1, 2, 3]}


def test_two_modules_never_run_each_others_tasks():
    """Each: extract ─► clean"""
    one, two = module(ETL), module(ETL.replace("[3, 1, 2]", "[9]"))
    assert one.dag.run()["clean"] == [1, 2, 3]
    assert two.dag.run()["clean"] == [9]


def test_a_task_wired_to_a_tasks_of_the_module_comes_along():
    """library: rows, other ─ application: rows ─► count"""
    library = module("""
        @task
        def rows(): return [1, 2]

        @task
        def other(): raise AssertionError("never wired")
    """)
    application = module()
    application.rows = library.rows
    cell(application, """
        @task
        def count(rows): return len(rows)

        rows >> count
        dag = DAG()
    """)
    assert dict(application.dag.run()) == {"rows": [1, 2], "count": 2}


def test_what_hangs_below_a_task_of_the_module_comes_along():
    """application: rows ─► library: count"""
    library = module("""
        @task
        def count(rows): return len(rows)
    """)
    application = module()
    application.count = library.count
    cell(application, """
        @task
        def rows(): return [1, 2]

        rows >> count
        dag = DAG()
    """)
    assert dict(application.dag.run()) == {"rows": [1, 2], "count": 2}


def test_a_task_belongs_to_the_module_whose_code_made_it():
    """The function comes from a library, the task is made by the application."""
    library = module("def rows(): return [1, 2]")
    application = module()
    application.rows = library.rows
    cell(application, "made = Task(rows); dag = DAG()")
    cell(library, "dag = DAG()")
    assert dict(application.dag.run()) == {"rows": [1, 2]}
    with pytest.warns(UserWarning, match="finds no task"):
        assert library.dag.run() == {}


def test_tasks_made_after_the_dag_count_too():
    made = module("dag = DAG()\n@task\ndef late(): return 1")
    assert dict(made.dag.run()) == {"late": 1}


def test_tasks_made_by_any_spelling_at_module_level_are_found():
    made = module("""
        def one(): return 1
        direct = Task(one)
        named = Task("two", lambda: 2)
        configured = task(name="three")(lambda: 3)
        copied = direct.with_options(name="four")
        dag = DAG()
    """)
    cell(made, "direct >> Task('five', lambda x: x + 4)")
    assert dict(made.dag.run()) == {"one": 1, "two": 2, "three": 3, "four": 1, "five": 5}


@pytest.mark.parametrize("comprehension", [
    "made = [Task(f't{i}', lambda i=i: i) for i in range(3)]",
    "made = {i: Task(f't{i}', lambda i=i: i) for i in range(3)}",
    "made = {Task(f't{i}', lambda i=i: i) for i in range(3)}",
    "made = list(Task(f't{i}', lambda i=i: i) for i in range(3))",
    "made = [[Task(f't{i}', lambda i=i: i) for i in row] for row in [[0, 1], [2]]]",
    "for i in range(3): Task(f't{i}', lambda i=i: i)",
])  # fmt: skip
def test_a_comprehension_at_module_level_is_the_modules_body(comprehension):
    """t0, t1, t2"""
    made = module(f"{comprehension}\nmade = None\ndag = DAG()")  # nobody but the registry holds the tasks
    gc.collect()
    assert dict(made.dag.run()) == {"t0": 0, "t1": 1, "t2": 2}


def test_a_class_body_at_module_level_is_the_modules_body():
    made = module("""
        class Steps:
            @task
            def load(): return 1
        del Steps
        dag = DAG()
    """)
    assert dict(made.dag.run()) == {"load": 1}


# ---------------------------------------------------------------- tasks of functions


FACTORY = """
    def make(value=1):
        @task
        def inner(): return value
        return inner

    dag = DAG()
"""


def test_tasks_made_in_a_function_are_found_as_long_as_somebody_holds_them():
    made = module(FACTORY)
    inner = made.make()
    assert dict(made.dag.run()) == {"inner": 1}
    del inner
    with pytest.warns(UserWarning, match="finds no task"):
        assert made.dag.run() == {}


def test_wired_tasks_made_in_a_function_are_forgotten_together():
    """a ─► b: they hold each other"""
    made = module("""
        def make():
            a, b = Task("a", lambda: 1), Task("b", lambda a: a)
            a >> b
            return a
        dag = DAG()
    """)
    held = made.make()
    assert dict(made.dag.run()) == {"a": 1, "b": 1}
    del held
    with pytest.warns(UserWarning, match="finds no task"):
        assert made.dag.run() == {}


def test_a_function_that_makes_runs_and_returns_is_as_good_as_a_script():
    """extract ─► clean, made twice"""
    body = textwrap.indent(textwrap.dedent(ETL), "    ")
    made = module(f"def main():\n{body}\n    return dict(dag.run())")
    assert [made.main() for _ in range(2)] == [{"extract": [3, 1, 2], "clean": [1, 2, 3]}] * 2


def test_tasks_made_in_a_function_are_not_found_from_another_module():
    maker, other = module(FACTORY), module("dag = DAG()")
    held = maker.make()
    with pytest.warns(UserWarning, match="finds no task"):
        assert other.dag.run() == {}
    assert dict(maker.dag.run()) == {held.name: 1}


def in_thread(call):
    """Return what *call* gives in a thread of its own, and that thread's ident."""
    found = []
    thread = threading.Thread(target=lambda: found.extend([call(), threading.get_ident()]))
    thread.start()
    thread.join()
    return found


def test_threads_of_one_module_do_not_see_each_others_tasks():
    """Two threads make a task of one name at the same time and run a bare DAG each."""
    made = module("""
        both = threading.Barrier(2)

        def serve(value):
            @task
            def answer(): return value
            both.wait()
            found = dict(DAG("request").run())
            both.wait()
            return found
    """)
    found = []
    threads = [threading.Thread(target=lambda v=v: found.append(made.serve(v))) for v in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each["answer"] for each in found) == [1, 2]
    assert all(len(each) == 1 for each in found)


def test_threads_that_share_a_bare_dag_run_their_own_tasks():
    """Two threads make a task of one name each, and run the DAG of their module one after the other."""
    made = module("""
        def answer(value):
            return Task("answer", lambda: value)
        dag = DAG()
    """)
    mine = made.answer("mine")
    held = []
    made_there, told = threading.Event(), threading.Event()

    def serve():
        held.append(made.answer("yours"))
        made_there.set()
        told.wait()
        return dict(made.dag.run())

    found = []
    thread = threading.Thread(target=lambda: found.append(serve()))
    thread.start()
    made_there.wait()
    try:
        assert dict(made.dag.run()) == {mine.name: "mine"}
    finally:
        told.set()
        thread.join()
    assert found == [{"answer": "yours"}]


def test_tasks_of_the_modules_body_are_found_from_any_thread():
    made = module(ETL)
    results, _ = in_thread(lambda: dict(made.dag.run()))
    assert results["clean"] == [1, 2, 3]


def test_a_new_thread_does_not_inherit_the_tasks_of_a_finished_one():
    """Thread idents are given out again; the tasks of the thread that had one before are not its own."""
    made = module(FACTORY)
    held, ident = in_thread(made.make)

    def look():
        return list(registry.made_by(made.__name__))

    for _ in range(50):
        found, next_ident = in_thread(look)
        if next_ident == ident:
            break
    else:
        pytest.skip("this platform did not give out the ident again")
    assert held not in found


def test_making_tasks_in_a_loop_leaks_nothing():
    """a ─► b, 100 times"""
    made = module("""
        def make():
            a, b = Task("a", lambda: 1), Task("b", lambda a: a)
            a >> b
            return a
    """)
    seen = [weakref.ref(made.make()) for _ in range(100)]
    gc.collect()
    assert not any(ref() for ref in seen)


def test_tasks_of_a_class_body_inside_a_function_are_not_kept_forever():
    made = module("""
        def make():
            class Steps:
                @task
                def load(): return 1
            return Steps.load
    """)
    seen = weakref.ref(made.make())
    gc.collect()
    assert seen() is None


# ---------------------------------------------------------------- cells that run again


def test_a_cell_that_runs_twice_does_not_double_the_graph():
    """extract ─► clean"""
    made = module()
    for rows in ("[3, 1, 2]", "[2, 1]"):
        cell(made, ETL.replace("[3, 1, 2]", rows))
    assert made.dag.waves() == [["extract"], ["clean"]]
    assert dict(made.dag.run()) == {"extract": [2, 1], "clean": [1, 2]}


def test_a_redefined_function_takes_over_the_wiring_of_the_task_that_it_replaces():
    """extract ─► clean ─► load, ▲ audit ┄► clean; only clean's cell runs again"""
    made = module("""
        @task
        def extract(): return 1
        @task
        def audit(): return "audited"
        @task
        def clean(rows): return rows + 1
        @task
        def load(rows): return rows * 10
        extract >> clean >> load
        clean.after(audit)
        load.after(extract)
        dag = DAG()
    """)
    assert made.dag.run()["load"] == 20
    cell(made, "@task(retries=1)\ndef clean(rows): return rows + 2")
    assert made.dag.run()["load"] == 30
    assert list(made.clean.upstream) == [made.extract, made.audit]
    assert list(made.load.upstream) == [made.clean, made.extract]
    assert list(made.extract.downstream) == [made.clean, made.load]
    cell(made, "@task\ndef audit(): return 'again'")  # the edge goes on carrying nothing
    assert made.dag.run() == {"extract": 1, "audit": "again", "clean": 3, "load": 30}


def test_a_redefined_task_still_counts_where_the_old_one_was_named():
    """extract"""
    made = module("@task\ndef extract(): return 1\ndag = DAG('etl', tasks=[extract])\nold = extract")
    cell(made, "@task\ndef extract(): return 2")
    cell(made, "@task\ndef extract(): return 3")
    assert made.old is not made.extract
    assert dict(made.dag.run()) == {"extract": 3}


def test_a_redefined_template_stays_a_template():
    """extract ─► load_eu, which was made from load"""
    made = module("""
        @task
        def extract(): return 1
        @task
        def load(rows): return rows + 1
        load_eu = load.with_options(name="load_eu")
        extract >> load_eu
        dag = DAG()
    """)
    assert dict(made.dag.run()) == {"extract": 1, "load_eu": 2}
    cell(made, "@task\ndef load(rows): return rows + 1")
    assert dict(made.dag.run()) == {"extract": 1, "load_eu": 2}


def test_a_redefined_template_that_is_wired_itself_stays_in_the_dag_that_names_it():
    """extract ─► load"""
    made = module("""
        @task
        def extract(): return 1
        @task
        def load(rows): return rows + 1
        load_eu = load.with_options(name="load_eu")
        extract >> load
        dag = DAG("etl", tasks=[load])
    """)
    cell(made, "@task\ndef load(rows): return rows + 2")
    assert dict(made.dag.run()) == {"extract": 1, "load": 3}


def test_only_a_task_of_the_same_name_is_replaced():
    made = module()
    for name in ("one", "two"):
        cell(made, f"@task(name={name!r})\ndef load(): return {name!r}")
    cell(made, "dag = DAG()")
    assert dict(made.dag.run()) == {"one": "one", "two": "two"}


def test_an_imported_task_is_not_replaced_by_a_function_of_the_same_name():
    library = module("@task\ndef load(): return 'library'\ndag = DAG()")
    application = module()
    application.load = library.load
    cell(application, "@task\ndef load(): return 'application'\ndag = DAG()")
    assert dict(library.dag.run()) == {"load": "library"}
    assert dict(application.dag.run()) == {"load": "application"}


def test_a_function_inside_a_function_replaces_nothing():
    made = module("""
        @task
        def load(): return 1
        def make():
            @task
            def load(): return 2
            return load
        inner = make()
        dag = DAG("outer", tasks=[load])
    """)
    assert dict(made.dag.run()) == {"load": 1}
    assert made.inner.func() == 2


def test_two_with_blocks_of_one_module_may_have_functions_of_the_same_name():
    """Each: extract ─► load"""
    made = module("""
        with DAG("eu") as eu:
            @task
            def extract(): return "eu"
            @task
            def load(rows): return rows
            extract >> load
        with DAG("us") as us:
            @task
            def extract(): return "us"
            @task
            def load(rows): return rows
            extract >> load
    """)
    assert made.us.run()["load"] == "us"
    assert made.eu.run()["load"] == "eu"


def test_a_with_block_that_runs_again_does_not_double_its_graph():
    """rows ─► count, where rows is made outside of the block"""
    made = module("@task\ndef rows(): return [1]")
    for _ in range(2):
        cell(made, """
            with DAG("block") as dag:
                @task
                def count(rows): return len(rows)
                rows >> count
        """)
        assert dict(made.dag.run()) == {"rows": [1], "count": 1}


# ---------------------------------------------------------------- clearing


def test_clear_registry_forgets_everything():
    made, other = module(ETL), module(FACTORY)
    held = other.make()
    assert made.dag.run()["clean"] == [1, 2, 3]
    Task.clear_registry()
    for dag in (made.dag, other.dag):
        with pytest.warns(UserWarning, match="finds no task"):
            assert dag.run() == {}
    assert dict(DAG("named", tasks=[held]).run()) == {"inner": 1}


def test_tasks_made_after_clearing_are_found():
    made = module(ETL)
    Task.clear_registry()
    cell(made, "@task\ndef again(): return 1")
    assert dict(made.dag.run()) == {"again": 1}


# ---------------------------------------------------------------- where a task was made


def test_a_site_names_the_file_and_the_line():
    made = Task("load", lambda: 1)
    line = sys._getframe().f_lineno - 1
    assert str(made.site) == f"{__file__}:{line}"
    assert made.site.module == __name__
    assert not made.site.is_body


def test_tasks_made_on_different_lines_have_different_sites():
    one = Task("a", lambda: 1)
    two = Task("a", lambda: 1)
    lines = [int(re.search(r":(\d+)$", str(made.site))[1]) for made in (one, two)]
    assert lines[1] == lines[0] + 1


def test_code_without_a_module_name_has_a_site_too():
    space = {"Task": Task}
    exec("made = Task('load', len)", space)
    del space["__builtins__"]
    anonymous = {key: value for key, value in space.items() if key != "__name__"}
    exec("made = Task('load', len)", anonymous)
    assert anonymous["made"].site.is_body
