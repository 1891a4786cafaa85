"""What the pictures share: text that is safe to show, the line under a name, and the look of a state.

Knows states by name only; does not know the syntax of any picture.
"""

from __future__ import annotations

LOOKS = {  # by state: a mark, and colours for the fill and the line; a text on the fill is black
    "succeeded": ("✓", "#d3f0d9", "#2e7d32"),
    "restored": ("◆", "#d5ecf5", "#0b6e8f"),
    "failed": ("✗", "#f9d2d0", "#c62828"),
    "upstream_failed": ("⊗", "#fbe1cf", "#d1640a"),
    "skipped": ("○", "#ececec", "#757575"),
    "cancelled": ("⊘", "#e3dcec", "#6a4c93"),
    "running": ("●", "#d6e4fb", "#1a5fd0"),
    "retrying": ("↻", "#fdf0c4", "#a67c00"),
    "pending": ("·", "#ffffff", "#9e9e9e"),
}


def printable(text: str) -> str:
    r"""Return *text* with every unprintable character written as its Python escape.

    >>> print(printable("two\nlines"))
    two\nlines
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def caption(state: str | None, detail: str | None) -> str:
    """Return what to write under a task's name, empty when there is nothing to say.

    >>> caption("failed", "3 attempts")
    'failed, 3 attempts'
    """
    return ", ".join(printable(part) for part in (state, detail) if part)
