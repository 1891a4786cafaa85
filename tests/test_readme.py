"""The README's examples run, and its summary table is what flowkit prints."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def readme(monkeypatch):
    """A module that the examples run in, one after the other, as a reader would paste them."""
    from flowkit import events

    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    observers = list(events.default_observers)
    yield module
    events.default_observers[:] = observers


def test_every_example_runs_as_written(readme, capsys):
    sources = blocks("python")
    assert len(sources) >= 6
    for source in sources:
        exec(compile(source, str(README), "exec"), readme.__dict__)
    assert "2 rows, 200 in all" in capsys.readouterr().out


def test_the_two_commands_start_with_a_fresh_environment():
    commands = [line for block in blocks("bash") for line in block.splitlines() if not line.startswith("#")]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
