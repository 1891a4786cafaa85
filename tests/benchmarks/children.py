"""Child processes: what can only be measured in a fresh interpreter.

Knows: subprocess. Does not know: what the child does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The root of the checkout."""


def output_of(*arguments: str, timeout: float = 300) -> str:
    """Run Python with these arguments from the root of the checkout and return what it printed.

    Raises:
        RuntimeError: It failed; the text is what it wrote to stderr.
        subprocess.TimeoutExpired: It took longer than *timeout* seconds and was killed.
    """
    child = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    if child.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{child.stderr}")
    return child.stdout


def start_module(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start ``python -m tests.benchmarks.<module>`` with pipes on stdout and stderr."""
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.{module}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
