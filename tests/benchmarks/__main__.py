"""Run the named rows, or all of them, and print their tables as they come."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module

from .report import describe_machine, load_average

ROWS = {
    "overhead": "overhead",
    "build": "build",
    "memory": "memory",
    "import": "imports",
    "metg": "metg",
    "sleep": "sleep",
    "process": "process",
    "coroutines": "coroutines",
    "mapped": "mapped",
    "workflows": "workflows",
    "names": "names",
    "state": "state",
    "interrupt": "interrupt",
}
"""What is typed → the module with ``run(quick)``."""


def main() -> None:
    """Parse the command line, print every table, and say at the end which targets were missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("rows", metavar="ROW", nargs="*", help=f"any of {', '.join(ROWS)}; all without one")
    parser.add_argument("--quick", action="store_true", help="at most 10,000 tasks, under a minute in all")
    arguments = parser.parse_args()
    unknown = [row for row in arguments.rows if row not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}: choose from {', '.join(ROWS)}")
    print(describe_machine(), end="\n\n")
    missed: list[str] = []
    for row in arguments.rows or ROWS:
        started = time.perf_counter()
        for table in import_module(f".{ROWS[row]}", __package__).run(arguments.quick):
            print(table, flush=True)
            missed += table.missed()
        print(f"{row}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(f"Load average {load_average()} at the end. {len(missed)} targets missed.", *missed, sep="\n- ")


if __name__ == "__main__":
    main()
