"""The README's examples run, and its summary table is what flowkit prints."""

import logging
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import flowkit.logging
from flowkit import events

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def readme(monkeypatch):
    """A module that the examples run in, one after the other, as a reader would paste them."""
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    monkeypatch.setattr(flowkit.logging, "_current", None)
    shared, observers = logging.getLogger("flowkit"), list(events.default_observers)
    before = shared.handlers[:], shared.level, shared.propagate
    yield module
    shared.handlers[:], level, shared.propagate = before
    shared.setLevel(level)
    events.default_observers[:] = observers


def test_every_example_runs_as_written(readme, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sources = blocks("python")
    assert len(sources) >= 6
    for source in sources:
        exec(compile(source, str(README), "exec"), readme.__dict__)
    assert "2 rows, 200 in all" in capsys.readouterr().out


def test_the_two_commands_start_with_a_fresh_environment():
    commands = [line for block in blocks("bash") for line in block.splitlines() if not line.startswith("#")]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
