"""What is printed: Markdown tables whose cells say whether a target was met.

Knows: text. Does not know: what was measured.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

MISSED = "missed"


def judged(value: float, *, at_most: float = 0, at_least: float = 0, unit: str = "") -> str:
    """Return the value beside its target, in bold where it misses it."""
    bound = f"≤ {at_most:g}" if at_most else f"≥ {at_least:g}"
    if value <= at_most if at_most else value >= at_least:
        return f"{figure(value)}{unit} ({bound})"
    return f"**{figure(value, digits=4)}**{unit} ({bound}, {MISSED})"


def figure(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, or all those before the point, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Table:
    """One Markdown table: the first column names the line."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        """Return the table as Markdown, with its title above and its note below."""
        align = ["---", *["--:"] * (len(self.columns) - 1)]
        body = [f"| {' | '.join(cells)} |" for cells in (self.columns, *self.lines)]
        body.insert(1, f"|{'|'.join(align)}|")
        return "\n".join([f"### {self.title}", "", *body, *(["", self.note] if self.note else []), ""])

    def missed(self) -> list[str]:
        """Return a line of text for each cell that misses its target."""
        return [
            f"{self.title}: {line[0]}, {column}: {cell}"
            for line in self.lines
            for column, cell in zip(self.columns, line, strict=True)
            if MISSED in cell
        ]


def describe_machine() -> str:
    """Return the date, the Python version, the number of cores and what else the figures depend on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {usable} cores, dask {_version_of('dask')}. "
        "Medians of interleaved samples; the garbage collector is as Python sets it. "
        f"Load average {load_average()} at the start."
    )


def load_average() -> str:
    """Return how many processes wanted a core in the last minute: more than a few make figures worthless."""
    return f"{os.getloadavg()[0]:.1f}"


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
