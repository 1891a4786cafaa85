"""Functions, tasks and values as bytes for another process, and the messages of those that cannot become bytes."""

import functools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import process_tasks as tasks
import pytest

import flowkit
from flowkit import DAG, DefinitionError, NotPicklableError, Task, WorkerDiedError
from flowkit.engine.workers import shipping
from flowkit.engine.workers.shipping import Spec, decode, encode, encode_arguments, encode_spec

SOON = 5.0
"""Seconds within which a script must be told what is wrong with it."""


@pytest.fixture
def no_cloudpickle(monkeypatch):
    """Let cloudpickle look as if it was not installed."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    shipping._cloudpickle.cache_clear()
    shipping._cloud_pickler.cache_clear()
    yield
    monkeypatch.undo()
    shipping._cloudpickle.cache_clear()
    shipping._cloud_pickler.cache_clear()


@pytest.fixture
def cloudpickle():
    return pytest.importorskip("cloudpickle")


def again(value):
    return decode(encode(value))


def size_of(value):
    return sum(map(len, encode(value)))


def send(task):
    """Return what the other side has of *task*."""
    return decode(encode_spec(task.name, Spec.of(task)))


# ---------------------------------------------------------------- functions by reference


def test_the_function_under_a_task_is_refused_by_pickle_and_travels_by_reference(no_cloudpickle):
    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(tasks.decorated.func)
    assert again(tasks.decorated.func) is tasks.decorated.func
    assert size_of(tasks.decorated.func) < 200


@pytest.mark.parametrize(
    "func",
    [
        tasks.one, tasks.decorated.func, tasks.Space.inside.func, tasks.double_soon, len, str.upper, "".join, dict.get,
        tasks.Counter, tasks.Counter.at_ten, tasks.Counter.at_five, os.getpid, int, functools.reduce,
    ],
)  # fmt: skip
def test_functions_travel_by_reference(no_cloudpickle, func):
    arrived = send(Task("t", func)).func
    assert arrived == func
    assert arrived is func or getattr(func, "__self__", None) is not None


def test_a_partial_of_a_function_under_a_task_travels(no_cloudpickle):
    arrived = send(Task("t", functools.partial(tasks.takes_rows.func, [1, 2]))).func
    assert arrived.func is tasks.takes_rows.func
    assert arrived() == 2


def test_a_partial_of_a_task_calls_the_task(no_cloudpickle):
    assert send(Task("t", functools.partial(tasks.takes_rows, [1, 2]))).func.func is tasks.takes_rows


def test_a_bound_method_travels_with_its_object(no_cloudpickle):
    arrived = send(Task("t", tasks.Counter(3).up)).func
    assert arrived.__self__ == tasks.Counter(3)
    assert arrived() == 4


def test_an_object_that_can_be_called_travels_as_it_is(no_cloudpickle):
    assert send(Task("t", tasks.Counter(3))).func() == 3


@pytest.mark.parametrize(
    ("func", "inputs", "value"),
    [
        (tasks.decorated.func, {}, "decorated"), (tasks.Space.inside.func, {}, "inside"), (len, {"obj": [1]}, None),
        (functools.partial(tasks.takes_rows.func, [1, 2]), {}, 2), (tasks.Counter(3).up, {}, 4),
        (tasks.Counter.at_ten, {}, 10), (functools.partial(tasks.Counter, 3), {}, None),
        (functools.partial(sum, [1, 2]), {}, 3), (functools.partial(tasks.double_soon, 2), {}, 4),
    ],
)  # fmt: skip
def test_whatever_can_be_called_runs_in_a_process(no_cloudpickle, func, inputs, value):
    task = Task("t", func)
    if func is len:
        Task("rows", tasks.one_row, executor="thread") >> task
        inputs, value = {}, 1
    result = DAG("etl", tasks=[task]).start(inputs, executor="process").result(SOON)
    assert result["t"] == (tasks.Counter(3) if value is None else value)


def test_a_callable_that_cannot_be_hashed_runs_in_a_process(no_cloudpickle):
    """As objects of data classes that can be called are."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(tasks.Counter(3))
    assert DAG("etl", tasks=[Task("t", tasks.Counter(3))]).start(executor="process").result(SOON) == {"t": 3}


def test_the_options_of_a_decorated_task_travel_with_its_name(no_cloudpickle):
    """Its condition and its predicate are lambdas, which pickle refuses."""
    arrived = send(tasks.decorated_with_lambdas)
    options = tasks.decorated_with_lambdas.options
    assert arrived.func is tasks.decorated_with_lambdas.func
    assert arrived.when is options.when
    assert arrived.retry_on is options.retry.retry_on
    result = DAG("etl", tasks=[tasks.decorated_with_lambdas]).run(executor="process")
    assert result == {"decorated_with_lambdas": "decorated"}


def test_a_copy_sends_only_what_differs_from_the_task_that_it_was_made_from(no_cloudpickle):
    copy = tasks.decorated_with_lambdas.with_options(name="copy", when=tasks.yes)
    arrived = send(copy)
    assert arrived.func is copy.func
    assert arrived.when is tasks.yes
    assert arrived.retry_on is tasks.decorated_with_lambdas.options.retry.retry_on


def test_a_copy_with_another_name_needs_nothing_that_can_be_pickled(no_cloudpickle):
    copy = tasks.decorated_with_lambdas.with_options(name="copy", timeout=60)
    assert DAG("etl", tasks=[copy]).run(executor="process") == {"copy": "decorated"}


def test_a_copy_with_a_lambda_names_it(no_cloudpickle):
    copy = tasks.takes_rows.with_options(name="copy", when=lambda rows: rows)
    with pytest.raises(NotPicklableError, match=r"task 'copy': its condition \(when\) <function .*<lambda>") as caught:
        encode_spec(copy.name, Spec.of(copy))
    assert_ways_out(caught.value)


def test_a_copy_with_a_lambda_travels_with_cloudpickle(cloudpickle):
    """rows ─► full (when there are any), empty (when there are none)"""
    rows = Task("rows", tasks.one_row)
    full = tasks.takes_rows.with_options(name="full", when=lambda rows: rows)
    empty = tasks.takes_rows.with_options(name="empty", when=lambda rows: not rows)
    rows >> [full, empty]
    result = DAG("etl", tasks=[full, empty]).run(executor="process")
    assert result == {"rows": [1], "full": 1}
    assert result.tasks["empty"].state == "skipped"


def test_an_unpicklable_predicate_is_named(no_cloudpickle):
    task = Task("load", tasks.one, retries=1, retry_on=lambda error: True)
    with pytest.raises(NotPicklableError, match="task 'load': its retry_on <function") as caught:
        encode_spec(task.name, Spec.of(task))
    assert_ways_out(caught.value)


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("task", [tasks.decorated, tasks.decorated_with_lambdas, tasks.Space.inside])
def test_a_task_at_module_level_comes_back_as_the_same_object(task):
    assert pickle.loads(pickle.dumps(task)) is task
    assert again(task) is task
    assert again({"task": [task]}) == {"task": [task]}


def test_a_task_at_module_level_is_the_one_of_the_module_in_another_process(no_cloudpickle):
    """of_itself returns its task as it is known there"""
    assert DAG("etl", tasks=[tasks.of_itself]).run(executor="process")["of_itself"] is tasks.of_itself


def test_a_copy_comes_back_as_an_unwired_copy():
    """one ─► copy"""
    copy = tasks.takes_rows.with_options(name="copy", retries=7, when=tasks.yes, executor="thread")
    Task("one", tasks.one) >> copy
    arrived = again(copy)
    assert arrived is not copy
    assert arrived.func is tasks.takes_rows.func
    assert (arrived.name, arrived.retries, arrived.when) == ("copy", 7, tasks.yes)
    assert arrived.options.executor == "thread"
    assert list(arrived.upstream) == []


def test_a_task_whose_name_is_not_that_of_its_function_comes_back_as_a_copy():
    """replaced = Task("replaced", original): the function's name leads to the function, not to the task"""
    arrived = again(tasks.replaced)
    assert arrived is not tasks.replaced
    assert (arrived.name, arrived.func) == ("replaced", tasks.original)


def test_copies_that_come_back_are_found_by_no_dag():
    kept = again(tasks.takes_rows.with_options(name="copy"))
    assert kept.name == "copy"
    with pytest.warns(UserWarning, match="finds no task"):
        assert DAG("bare").waves() == []


# ---------------------------------------------------------------- what cannot be sent


def assert_ways_out(error):
    for way_out in ("Move it to module level", "flowkit[process]", "executor='thread'"):
        assert way_out in str(error)


def local_function():
    def local():
        return 1

    return local


class Local:
    pass


UNPICKLABLE = {
    "lambda": (lambda: 1, "its function <function <lambda>"),
    "local": (local_function(), "its function <function local_function.<locals>.local"),
    "method of a lock": (threading.Lock().acquire, "its function <built-in method acquire of _thread.lock"),
    "method of a holder": (tasks.LockHolder().work, "its function <bound method LockHolder.work of"),
    "partial of a lambda": (functools.partial(lambda value: value, 1), "its function functools.partial(<function <la"),
    "partial with a lock": (functools.partial(tasks.echo, threading.Lock()), "its function functools.partial(<functi"),
}


@pytest.mark.parametrize("what", UNPICKLABLE)
def test_a_function_without_a_global_name_is_refused_with_three_ways_out(no_cloudpickle, what):
    func, text = UNPICKLABLE[what]
    task = Task("load", func)
    with pytest.raises(NotPicklableError) as caught:
        encode_spec(task.name, Spec.of(task))
    error = caught.value
    assert error.task_name == "load"
    assert str(error).startswith(f"task 'load': {text}")
    assert "cannot be sent to a process: " in str(error)
    assert error.__cause__ is not None
    assert type(error.__cause__).__name__ in str(error)
    assert_ways_out(error)


@pytest.mark.parametrize("what", ["lambda", "local", "partial of a lambda"])
def test_cloudpickle_sends_functions_without_a_global_name(cloudpickle, what):
    task = Task("load", UNPICKLABLE[what][0])
    assert send(task).func() == 1
    assert DAG("etl", tasks=[task]).run(executor="process") == {"load": 1}


@pytest.mark.parametrize("what", ["method of a lock", "method of a holder", "partial with a lock"])
def test_cloudpickle_cannot_send_a_lock_either(cloudpickle, what):
    with pytest.raises(NotPicklableError, match="lock"):
        encode_spec("load", Spec.of(Task("load", UNPICKLABLE[what][0])))


def test_cloudpickle_sends_tasks_by_reference(cloudpickle):
    """A lambda that closes over a decorated task finds the one of the module, there too."""
    task = Task("load", lambda: (tasks.decorated, tasks.decorated_with_lambdas))
    assert DAG("etl", tasks=[task]).run(executor="process")["load"] == (tasks.decorated, tasks.decorated_with_lambdas)


def test_a_class_of_a_function_comes_back_as_itself_with_cloudpickle(cloudpickle):
    """Results and errors are of classes that only the caller's function knows."""

    class Value:
        pass

    class LocalError(Exception):
        pass

    def refuse():
        raise LocalError("no")

    dag = DAG("etl", tasks=[Task("make", lambda: Value()), Task("refuse", refuse)])
    result = dag.run(executor="process", fail_fast=False, raise_on_failure=False)
    assert type(result["make"]) is Value
    assert type(result.errors["refuse"]) is LocalError


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([1, threading.Lock()],), "its argument 2, <unlocked _thread.lock object"),
        (({"rows": 1, "lock": threading.Lock()},), "its argument 'lock', <unlocked _thread.lock object"),
        (([1], {"rows": [{"deep": threading.Lock()}]}, None), "its argument 'rows', [{'deep': <unlocked"),
        (([], {}, (threading.Lock(),), {}, None), "its argument 1, <unlocked"),
    ],
)
def test_the_argument_that_cannot_be_sent_is_named(no_cloudpickle, arguments, named):
    with pytest.raises(NotPicklableError) as caught:
        encode_arguments("load", arguments)
    assert str(caught.value).startswith(f"task 'load': {named}")
    assert "cannot pickle '_thread.lock' object" in str(caught.value)
    assert str(caught.value).endswith("Pass plain data, or use executor='thread'.")


def test_a_long_value_is_cut_in_the_message(no_cloudpickle):
    with pytest.raises(NotPicklableError) as caught:
        encode_arguments("load", [[[threading.Lock()] * 10_000]])
    assert len(str(caught.value)) < 500


def test_a_value_whose_repr_raises_is_named_by_its_type(no_cloudpickle):
    class Silent:
        def __repr__(self):
            raise LookupError

    with pytest.raises(NotPicklableError, match="its argument 1, <Silent whose __repr__ raised LookupError> of type S"):
        encode_arguments("load", [[Silent()]])


@pytest.mark.parametrize("depth", [100_000])
def test_a_value_that_is_too_deep_is_refused_by_name(no_cloudpickle, depth):
    deep = []
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(NotPicklableError, match=r"its argument 1, .* of type list, cannot be sent .*RecursionE"):
        encode_arguments("load", [[deep]])


def test_a_result_that_is_too_deep_fails_its_task():
    error = DAG("etl", tasks=[Task("deep", tasks.make_deep)]).run(executor="process", raise_on_failure=False).errors
    assert type(error["deep"]) in (flowkit.TaskResultError, WorkerDiedError)


# ---------------------------------------------------------------- before anything runs


def dag_with(*wanted, log):
    """write, and *wanted*"""
    write = Task("write", functools.partial(tasks.write_line, log, "ran"))
    return DAG("etl", tasks=[write, *wanted])


def test_validate_and_run_refuse_an_unpicklable_function(no_cloudpickle, tmp_path):
    dag = dag_with(Task("load", lambda: 1), log=tmp_path / "log")
    with pytest.raises(NotPicklableError, match="task 'load': its function <function"):
        dag.run(executor="process")
    with pytest.raises(NotPicklableError, match="task 'load': its function <function"):
        DAG("etl", tasks=[Task("load", lambda: 1)], executor="process").validate()
    dag.validate()
    assert not (tmp_path / "log").exists()
    assert dag.run(executor="thread")["load"] == 1


def test_only_tasks_that_run_in_processes_are_looked_at(no_cloudpickle):
    """local (thread); one, in a process"""
    dag = DAG("etl", tasks=[Task("local", lambda: 1, executor="thread"), Task("one", tasks.one)])
    assert dag.run(executor="process") == {"local": 1, "one": 1}
    with pytest.raises(NotPicklableError, match="task 'mine'"):
        DAG("etl", tasks=[Task("mine", lambda: 1, executor="process")]).run()


def test_validate_and_run_refuse_an_unpicklable_input(no_cloudpickle, tmp_path):
    dag = dag_with(Task("load", tasks.use_lock), log=tmp_path / "log")
    for call in (functools.partial(dag.run, executor="process"), functools.partial(dag.start, executor="process")):
        with pytest.raises(NotPicklableError, match=r"task 'load': its argument 'lock', <unlocked _thread\.lock"):
            call({"lock": threading.Lock()})
    assert not (tmp_path / "log").exists()


def test_an_input_that_only_a_thread_takes_need_not_travel(no_cloudpickle):
    dag = DAG("etl", tasks=[Task("load", tasks.use_lock, executor="thread"), Task("one", tasks.one)])
    assert dag.run({"lock": threading.Lock()}, executor="process") == {"load": "locked", "one": 1}


def test_refusals_are_no_definition_errors():
    """Nothing is wrong with the graph: it runs on threads."""
    assert not issubclass(NotPicklableError, DefinitionError)


# ---------------------------------------------------------------- buffers


@pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 40_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_buffers_come_back_as_they_were(kind, size):
    block = tasks.Block(kind(b"x" * size))
    arrived = again([block, block])
    assert arrived == [block, block]
    assert tasks.is_writable(arrived[0]) == (kind is bytearray)


def test_large_buffers_are_not_copied():
    data = bytearray(1_000_000)
    parts = encode(tasks.Block(data))
    assert len(parts) == 2
    data[0] = 9
    assert parts[1][0] == 9


def test_parts_can_be_let_go_in_any_order():
    """What pickle has written must not hold on to what it was written into: collecting both at once must not raise."""
    import gc

    loop = []
    for value in (tasks.decorated.func, Spec.of(tasks.decorated), [1]):
        parts = encode(value)
        loop.append([loop, parts])
        assert all(isinstance(part, bytes) or part.obj is not None for part in parts)
    assert not any(type(getattr(part, "obj", None)).__name__ == "BytesIO" for _, parts in loop for part in parts)
    del loop, parts
    gc.collect()


# ---------------------------------------------------------------- programs


class Program:
    """What came of a program: its output, its messages and how long it took."""

    def __init__(self, arguments, *, stdin="", cwd):
        checkout = str(Path(flowkit.__file__).parent.parent)
        since = time.monotonic()
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=30, cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([checkout, str(tasks.HERE)])}, check=False,
        )  # fmt: skip
        self.seconds = time.monotonic() - since
        self.out, self.err = done.stdout, done.stderr

    @property
    def message(self):
        """The last line that it wrote to stderr: what a person reads first."""
        return self.err.strip().rpartition("\n")[2]


HIDE = "import sys; sys.modules['cloudpickle'] = None\n"
"""The first line of a program that has no cloudpickle."""
WORK = """
from flowkit import DAG, Task, task

@task
def work():
    return 41

@task(when=lambda work: work, retry_on=lambda error: False)
def more(work):
    return work + 1

work >> more
"""
GUARDED = WORK + """
if __name__ == "__main__":
    print(DAG("etl").run(executor="process")["more"])
"""
UNGUARDED = WORK + """
print(DAG("etl").run(executor="process", max_workers=4)["more"])
"""


@pytest.fixture
def python(tmp_path):
    """Return a function that runs Python in an empty directory; files can be made there first."""

    def run(*arguments, files=None, stdin=""):
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))
        program = Program(arguments, stdin=stdin, cwd=tmp_path)
        assert program.seconds < SOON
        return program

    return run


def test_a_script_with_a_guard_runs(python):
    assert python("flow.py", files={"flow.py": HIDE + GUARDED}).out == "42\n"


def test_a_module_that_is_run_as_a_script_runs(python):
    assert python("-m", "flow", files={"flow.py": HIDE + GUARDED}).out == "42\n"


def test_classes_of_the_script_come_back_as_they_are(python):
    script = """
    from flowkit import DAG, Task

    class Value: ...
    class Refused(Exception): ...

    def make():
        return Value()

    def refuse():
        raise Refused("no")

    if __name__ == "__main__":
        dag = DAG("etl", tasks=[Task("make", make), Task("refuse", refuse)])
        result = dag.run(executor="process", fail_fast=False, raise_on_failure=False)
        print(type(result["make"]) is Value, type(result.errors["refuse"]) is Refused)
    """
    assert python("flow.py", files={"flow.py": HIDE + textwrap.dedent(script)}).out == "True True\n"


@pytest.mark.parametrize("start", [
    'print(DAG("etl").run(executor="process", max_workers=4))',
    'print(DAG("etl").start(executor="process", max_workers=4).result(10))',
    'import asyncio; print(asyncio.run(DAG("etl", tasks=[more]).arun(executor="process")))',
    'print(DAG("etl", tasks=[work.with_options(name=f"t{i}") for i in range(20)]).run(executor="process"))',
])  # fmt: skip
def test_a_script_without_a_guard_is_told_so_and_starts_no_more(python, start):
    program = python("flow.py", files={"flow.py": WORK + start})
    assert program.out == ""
    assert "NotPicklableError: task '" in program.message
    assert "flow.py to find its functions, and it starts the run again." in program.message
    assert "Put what starts it below `if __name__ == '__main__':`" in program.message
    assert program.err.count("Traceback") <= 2  # the error and its cause, and nothing of any worker


def test_each_task_of_a_script_without_a_guard_is_told_by_its_own_name(python):
    """Eight tasks on four workers, and each fails because of what it says itself."""
    start = """
tasks = [work.with_options(name=f"t{i}") for i in range(8)]
result = DAG("etl", tasks=tasks).run(executor="process", max_workers=4, fail_fast=False, raise_on_failure=False)
print([name for name, error in result.errors.items() if error.task_name != name])
print(len({id(error) for error in result.errors.values()}))
"""
    assert python("flow.py", files={"flow.py": WORK + start}).out == "[]\n8\n"


def test_a_script_that_a_worker_cannot_import_is_told_so_with_the_traceback(python):
    script = """
    import multiprocessing
    if multiprocessing.current_process().name != "MainProcess":
        raise RuntimeError("not here")
    """
    program = python("flow.py", files={"flow.py": textwrap.dedent(script) + GUARDED})
    assert "RuntimeError: not here" in program.err
    assert "NotPicklableError: task 'work' cannot run in a process: a worker process ended with" in program.message
    assert "exit code 1" in program.message
    assert "flow.py; its own traceback stands above." in program.message


def test_what_is_typed_with_c_is_refused_without_cloudpickle(python):
    program = python("-c", HIDE + UNGUARDED)
    assert program.message.startswith("flowkit.exceptions.NotPicklableError: task 'work': its function <function work")
    assert "defined where no other process can import it" in program.message
    for way_out in ("Move it to a module", "flowkit[process]", "executor='thread'"):
        assert way_out in program.message


def test_what_is_typed_with_c_runs_with_cloudpickle(cloudpickle, python):
    assert python("-c", UNGUARDED).out == "42\n"


def test_functions_of_modules_run_from_c_without_cloudpickle(python):
    code = "import process_tasks as tasks; from flowkit import DAG; "
    code += "print(DAG('etl', tasks=[tasks.decorated]).run(executor='process')['decorated'])"
    assert python("-c", HIDE + code).out == "decorated\n"


def test_a_class_that_was_typed_with_c_is_named_when_it_does_not_arrive(python):
    code = """
    import process_tasks as tasks
    from flowkit import DAG, Task

    class Value: ...

    DAG("etl", tasks=[Task("load", tasks.echo)]).run({"value": Value()}, executor="process")
    """
    program = python("-c", HIDE + textwrap.dedent(code))
    assert "NotPicklableError: task 'load'" in program.message
    assert "Value" in program.message
    assert "executor='thread'" in program.message


@pytest.mark.parametrize("first_line", ["", HIDE], ids=["cloudpickle", "no cloudpickle"])
@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_a_script_that_is_read_from_stdin_is_told_that_no_process_can_import_it(python, arguments, first_line):
    """No worker can start at all: multiprocessing would import a file of the name <stdin>."""
    program = python(*arguments, stdin=first_line + GUARDED)
    assert "NotPicklableError: task 'work'" in program.message
    assert "stdin" in program.message
    assert "executor='thread'" in program.message
    assert "FileNotFoundError" not in program.err
    assert program.err.count("Traceback") <= 2


@pytest.mark.parametrize("arguments", [("-m", "package"), ("package",)])
def test_the_main_module_of_a_package_is_told_that_no_process_imports_it(python, arguments):
    """python -m package, and python directory: multiprocessing leaves their __main__.py alone."""
    files = {"package/__init__.py": "", "package/__main__.py": HIDE + GUARDED}
    program = python(*arguments, files=files)
    assert "NotPicklableError: task 'work'" in program.message
    assert "Move it to a module" in program.message


@pytest.mark.parametrize("arguments", [("-m", "package"), ("package",)])
def test_the_main_module_of_a_package_runs_with_cloudpickle(cloudpickle, python, arguments):
    files = {"package/__init__.py": "", "package/__main__.py": GUARDED}
    assert python(*arguments, files=files).out == "42\n"


def test_collecting_a_run_that_has_sent_a_function_by_value_says_nothing(cloudpickle, python):
    """What is kept of it lies in a reference cycle, and must not be a view of a buffer that goes first."""
    code = """
    import gc
    from flowkit import DAG, Task
    if __name__ == "__main__":
        DAG("etl", tasks=[Task("one", lambda: 1, executor="process")]).run()
        gc.collect()
        print("collected")
    """
    program = python("-X", "dev", "script.py", files={"script.py": textwrap.dedent(code)})
    assert (program.out, program.err) == ("collected\n", "")
