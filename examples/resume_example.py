"""Survey the standard library package by package; interrupt it, start it again, and it goes on where it stopped.

Shows ``StateManager``, ``resume=True``, ``dag.plan()`` and an observer that prints what is done and what was restored.
Reading a package token by token is slow, pure Python work on real files; each package is a task, and its result is kept
as soon as it is there.

Run it with ``python examples/resume_example.py [DIRECTORY]``, press Ctrl-C in the middle or ``kill -9`` it, and run it
again. Change ``count_tokens`` and run it again: every package is read again, and the plan says why. Change
``write_table``, and only the table is made again. What is kept is ``state.json`` in the directory, a folder for
temporary files unless you name one; ``--fresh`` forgets it.
"""

from __future__ import annotations

import argparse
import keyword
import sys
import sysconfig
import tempfile
import time
import tokenize
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flowkit import DAG, Event, StateManager, Task, TaskRestored, TaskSucceeded, task

STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
LEFT_OUT = {"site-packages", "test", "idlelib", "turtledemo", "lib2to3", "__pycache__", "pydoc_data"}
PACKAGES = 32
MOST_FILES = 40
"""Files that are read of each package."""


class Survey(NamedTuple):
    """What one package is made of.

    Attributes:
        package: Its name.
        files: How many files were read.
        lines: How many lines they have.
        keywords: How often each keyword occurs.
        longest: The longest name in it.
    """

    package: str
    files: int
    lines: int
    keywords: Counter[str]
    longest: str


def list_packages() -> dict[str, list[Path]]:
    """Return the files of the packages with the most of them."""
    folders = sorted(path.parent for path in STDLIB.glob("*/__init__.py"))
    files = {path.name: sorted(path.rglob("*.py"))[:MOST_FILES] for path in folders if path.name not in LEFT_OUT}
    largest = sorted(files, key=lambda name: (-len(files[name]), name))[:PACKAGES]
    return {name: files[name] for name in largest}


def count_tokens(path: Path) -> tuple[int, Counter[str], str]:
    """Return the lines of a file, its keywords, and its longest name."""
    keywords: Counter[str] = Counter()
    longest, line = "", 0
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            line = token.end[0]
            if token.type == tokenize.NAME:
                if keyword.iskeyword(token.string):
                    keywords[token.string] += 1
                else:
                    longest = max(longest, token.string, key=len)
    return line, keywords, longest


def survey(package: str, files: list[Path]) -> Survey:
    """Read *files*, those of *package*."""
    keywords: Counter[str] = Counter()
    longest, lines = "", 0
    for path in files:
        count, found, name = count_tokens(path)
        lines += count
        keywords += found
        longest = max(longest, name, key=len)
    return Survey(package, len(files), lines, keywords, longest)


@task
def write_table(output: Path, *surveys: Survey) -> Path:
    """Write a line for each package, and return the file."""
    common = [word for word, _ in sum((each.keywords for each in surveys), Counter()).most_common(6)]
    rows = [["package", "files", "lines", *common, "longest name"]]
    for each in sorted(surveys, key=lambda each: -each.lines):
        per_thousand = [f"{1000 * each.keywords[word] / each.lines:.1f}" for word in common]
        rows.append([each.package, str(each.files), str(each.lines), *per_thousand, each.longest])
    table = output / "packages.tsv"
    table.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return table


# ---------------------------------------------------------------- the run


def print_progress(event: Event) -> None:
    """Print a line for each package that is done."""
    if isinstance(event, TaskRestored):
        print(f"  restored  {event.task_name}", flush=True)
    elif isinstance(event, TaskSucceeded):
        print(f"  done      {event.task_name} in {event.duration:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Survey the standard library; interrupt it and start it again.")
    parser.add_argument("directory", nargs="?", type=Path, help="where the state and the table go")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    arguments = parser.parse_args()
    output: Path = arguments.directory or Path(tempfile.gettempdir()) / "resume_example"
    output.mkdir(parents=True, exist_ok=True)

    surveys = [Task(f"survey {name}", partial(survey, name, files)) for name, files in list_packages().items()]
    surveys >> write_table
    dag = DAG("survey", tasks=[write_table], inputs={"output": output})
    state = StateManager(output / "state.json")
    if arguments.fresh:
        state.clear_runs("survey")

    plan = dag.plan(state=state, resume=True)
    print(f"{len(plan.named('restore'))} of {len(plan)} results are kept; {len(plan.named('run'))} tasks have to run.")
    for name in plan.named("run")[:3]:
        print(f"  {name}: {plan[name].reason}")
    started = time.perf_counter()
    try:
        result = dag.run(state=state, resume=True, max_workers=2, observers=[print_progress])
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted. Start it again, and it goes on. Kept in {output}")

    table: Path = result["write_table"]
    print(f"\n{time.perf_counter() - started:.1f} s. The largest packages, with keywords in a thousand lines:\n")
    print("".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:9]).expandtabs(13))
    print(f"Written to {table}")


if __name__ == "__main__":
    main()
