"""Who may import whom: only downwards, or within one folder on the same layer, and never in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import flowkit

ROOT = Path(flowkit.__file__).parent

LAYERS = (
    # the vocabulary: nothing of flowkit below it
    "exceptions states statuses hooks",
    # values that know only words; pictures; how a function looks from outside
    "retry events context registry engine.signature engine.condition engine.mapping engine.forks "
    "render render._labels render._layout render.text render.mermaid render.dot render.report",
    # options are made of a retry policy and the words for triggers and events
    "options",
    # tasks and their edges (one unit, see UNITS); what is frozen, bound and given back
    "wiring task results engine engine.graph engine.binding engine.clock",
    # what is kept between runs
    "state state.disk state.locks state.codec state.digest state.bytecode state.reach state.fingerprint state.records "
    "state.store state.journal state.jsonfile state.scopes state.face state.manager state.taskstates state.jsonstore "
    "state.rows state.database state.sqlite state.cache state.foreign",
    # one run's decisions, without a clock or a thread
    "engine.program engine.scheduler engine.attempt engine.loops engine.daemons",
    # where and how attempts run; watching for people
    "engine.workers engine.workers.inline engine.workers.threads engine.workers.coroutines "
    "engine.workers.processes engine.workers.child engine.workers.shipping engine.workers.wire engine.workers.remote "
    "engine.workers.foreign "
    "engine.limits engine.items engine.calls engine.pools engine.settings engine.history engine.checkpoint engine.plan "
    "engine.interrupt engine.announcer engine.cleanup logging progress",
    # one run, put together
    "engine.runner engine.callbacks engine.handle engine.launch",
    # the doors
    "dag "
    "workflow workflow.definition workflow.tasks workflow.callbacks workflow.execution workflow.executors "
    "workflow.pictures",
    # on top
    "testing cli __main__ __init__ integrations integrations.dask",
)
"""Every module by its layer, the lowest first. A module that is not in here has no place yet: give it one."""

UNITS = {"wiring": "task"}
"""Modules that describe one thing with another and may name it: an edge is part of a task."""

LAYER_OF = {module: number for number, modules in enumerate(LAYERS) for module in modules.split()}


def modules():
    """Return the path of every module, by its dotted name below flowkit."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports_of(module, source=None):
    """Yield the modules of flowkit that *module* imports anywhere in its text, with the line."""
    path = MODULES[module]
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8") if source is None else source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "flowkit":
                    yield alias.name.partition(".")[2] or "__init__", node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - (node.level - 1)] + tuple((node.module or "").split("."))
            elif (node.module or "").partition(".")[0] == "flowkit":
                base = tuple(node.module.split(".")[1:])
            else:
                continue
            base = [part for part in base if part]
            for alias in node.names:
                name = ".".join([*base, alias.name])
                yield (name if name in MODULES else ".".join(base) or "__init__"), node.lineno


def unit(module):
    return UNITS.get(module, module)


def folder(module):
    """Return the folder that a module is in; the modules beside each other at the top are in none."""
    path = MODULES[module].relative_to(ROOT)
    return path.parts[0] if len(path.parts) > 1 else None


def is_allowed(importer, imported):
    if unit(importer) == unit(imported):
        return True
    above, below = LAYER_OF[importer], LAYER_OF[imported]
    return above > below or (above == below and folder(importer) is not None and folder(importer) == folder(imported))


def test_every_module_has_a_layer():
    assert sorted(set(MODULES) - set(LAYER_OF)) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module):
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}"
        for imported, line in imports_of(module)
        if not is_allowed(module, imported)
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    """TYPE_CHECKING and in-function imports count; a unit counts as one module."""
    graph = {}
    for module in MODULES:
        needs = graph.setdefault(unit(module), set())
        needs |= {unit(imported) for imported, _ in imports_of(module)} - {unit(module)}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_relative_and_named(module):
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(alias.name.partition(".")[0] != "flowkit" for alias in node.names), node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "flowkit" or node.level, node.lineno
            assert all(alias.name != "*" for alias in node.names), node.lineno


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from .graph import Graph", "engine.graph"),
        ("from . import graph", "engine.graph"),
        ("from ..states import FAILED", "states"),
        ("from .. import states", "states"),
        ("def f():\n    from ..dag import DAG", "dag"),
        ("if TYPE_CHECKING:\n    from ..dag import DAG", "dag"),
        ("import flowkit.dag", "dag"),
        ("from flowkit.dag import DAG", "dag"),
        ("from flowkit import DAG", "__init__"),
    ],
)
def test_the_reader_of_imports_sees_every_spelling(source, found):
    assert [imported for imported, _ in imports_of("engine.runner", source)] == [found]


def test_an_import_upwards_would_be_seen():
    assert not is_allowed("engine.graph", "engine.runner")
    assert not is_allowed("task", "engine.binding")
    assert not is_allowed("retry", "events")
    assert is_allowed("wiring", "task")
    assert is_allowed("engine.runner", "engine.handle")
