"""What ``import flowkit`` costs, and what it gives."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import flowkit

CHECKOUT = Path(flowkit.__file__).parent.parent

HEAVY = (
    "asyncio", "multiprocessing", "sqlite3", "concurrent.futures", "inspect", "dataclasses", "json", "typing",
    "logging", "random",
)  # fmt: skip


def fresh(code):
    """Return what *code* prints in an interpreter that has loaded nothing yet but itself."""
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    loaded = set(fresh("import flowkit; print(*sys.modules)").split())
    assert sorted(loaded.intersection(HEAVY)) == []


def test_defining_and_wiring_tasks_loads_nothing_heavy():
    loaded = set(
        fresh(
            "from flowkit import DAG, task\n"
            "@task(retries=2, timeout=30, when=lambda: True)\n"
            "def a(): return 1\n"
            "@task\n"
            "def b(a): return a\n"
            "a >> b\n"
            "DAG('etl', tasks=[b]).validate()\n"
            "print(*sys.modules)"
        ).split()
    )
    assert sorted(loaded.intersection(HEAVY)) == []


def test_import_starts_no_thread_and_installs_no_handler():
    code = (
        "import signal, threading, gc\n"
        "before = [signal.getsignal(s) for s in signal.valid_signals()]\n"
        "import flowkit\n"
        "after = [signal.getsignal(s) for s in signal.valid_signals()]\n"
        "print(threading.active_count(), before == after, gc.isenabled(), sys.excepthook is sys.__excepthook__)"
    )
    assert fresh(code) == "1 True True True"


def visible():
    """Return the public names that are not modules; flowkit's own two lines of machinery do not count."""
    names = {name for name in dir(flowkit) if not name.startswith("_")} - {"annotations", "TYPE_CHECKING"}
    return {name for name in names if not isinstance(getattr(flowkit, name), types.ModuleType)}


def test_all_is_what_is_visible():
    assert sorted(visible()) == sorted(flowkit.__all__)


def test_all_has_no_name_twice():
    assert len(set(flowkit.__all__)) == len(flowkit.__all__)


@pytest.mark.parametrize("name", flowkit.__all__)
def test_every_name_resolves(name):
    assert getattr(flowkit, name) is not None
    assert name in dir(flowkit)


@pytest.mark.parametrize("name", ["FlowkitLogger", "LogLevel", "configure_logging", "get_logger"])
def test_lazy_names_are_loaded_when_asked_for(name):
    assert fresh(f"import flowkit; print('flowkit.logging' in sys.modules); flowkit.{name}") == "False"
    assert fresh(f"from flowkit import {name}; print({name}.__module__)") == "flowkit.logging"


def test_star_import_gives_all():
    assert fresh("from flowkit import *\nimport flowkit\nprint(set(flowkit.__all__) <= set(globals()))") == "True"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'flowkit' has no attribute 'Dag'"):
        _ = flowkit.Dag


def test_task_is_both_the_decorator_and_the_module():
    code = (
        "from flowkit.task import Task, task as from_module\n"
        "from flowkit import task\n"
        "import flowkit.task\n"
        "print(task is from_module, callable(task), isinstance(task(len), Task))"
    )
    assert fresh(code) == "True True True"
    reverse = "from flowkit import task\nfrom flowkit.task import Task\nprint(isinstance(task(len), Task))"
    assert fresh(reverse) == "True"


def test_the_version_is_there():
    assert flowkit.__version__.count(".") == 2
