"""What type checkers accept and refuse: the lines of tests/typing, and the examples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import typing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flowkit import Task, task

ROOT = Path(__file__).resolve().parent.parent
GOOD = ROOT / "tests" / "typing" / "good.py"
BAD = ROOT / "tests" / "typing" / "bad.py"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHECKED = [str(path) for path in (GOOD, BAD, *EXAMPLES)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}


def run_checker(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: there are errors in the checked files
    return done.stdout


def check_with_mypy(cache: Path) -> dict[Path, dict[int, str]]:
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    printed = run_checker(
        sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", "--output=json",
        *CHECKED,
    )  # fmt: skip
    found = [json.loads(line) for line in printed.splitlines()]
    return by_line((Path(e["file"]), e["line"], e["message"]) for e in found if e["severity"] == "error")


def check_with_pyright() -> dict[Path, dict[int, str]]:
    beside_python = Path(sys.executable).parent / "pyright"
    pyright = str(beside_python) if beside_python.exists() else shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    printed = run_checker(pyright, "--outputjson", f"--pythonpath={sys.executable}", *CHECKED)
    if "{" not in printed:
        pytest.skip("pyright does not start here: its package could not load the program itself")
    found = json.loads(printed[printed.index("{") :])["generalDiagnostics"]
    return by_line(
        (Path(e["file"]), e["range"]["start"]["line"] + 1, e["message"]) for e in found if e["severity"] == "error"
    )


def by_line(errors: Any) -> dict[Path, dict[int, str]]:
    lines: dict[Path, dict[int, str]] = {}
    for path, line, message in errors:
        lines.setdefault((ROOT / path).resolve(), {})[line] = message
    return lines


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[int, str]]:
    """The message of each line that the checker refuses, by file."""
    if request.param == "pyright":
        return check_with_pyright()
    return check_with_mypy(tmp_path_factory.mktemp("mypy_cache"))


def test_every_wiring_that_fits_is_accepted(errors: dict[Path, dict[int, str]]) -> None:
    assert errors.get(GOOD) is None


def test_every_example_is_accepted(errors: dict[Path, dict[int, str]]) -> None:
    assert len(EXAMPLES) >= 4
    assert {path: errors[path] for path in EXAMPLES if path in errors} == {}


def test_exactly_the_marked_mistakes_are_refused(errors: dict[Path, dict[int, str]]) -> None:
    marked = [n for n, line in enumerate(BAD.read_text().splitlines(), 1) if line.endswith("  # error")]
    assert len(marked) > 50
    assert sorted(errors[BAD]) == marked


def test_what_is_accepted_also_works_at_run_time(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(GOOD)],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_task_stands_in_annotations_that_are_read_at_run_time() -> None:
    def wire(load: Task[[int], str], rest: list[Task[..., Any]], last: Task[[], None] | None) -> None: ...

    hints = typing.get_type_hints(wire, {"Task": Task, "Any": Any})
    assert typing.get_origin(hints["load"]) is Task
    assert typing.get_args(hints["load"]) == ([int], str)
    assert typing.get_args(hints["rest"]) == (Task[..., Any],)
    assert type(None) in typing.get_args(hints["last"])


def test_a_subscripted_task_makes_tasks() -> None:
    made = Task[[int], str](str, name="text")
    assert isinstance(made, Task)
    assert made(3) == "3"


def test_a_task_of_a_subclass_is_wired_like_any_other() -> None:
    class Loud(Task[[int], str]):
        __slots__ = ()

    @task
    def number() -> int:
        return 3

    loud = Loud(str, name="loud")
    assert number >> loud is loud
    assert list(loud.upstream) == [number]
