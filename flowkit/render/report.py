"""Draw the table of a run, as text and as HTML.

Knows rows of text. Does not know where they come from.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_ROWS = 200
_WIDEST = 60


def seconds(duration: float) -> str:
    """Return *duration*, in seconds, as a person says it: ``1.5 ms``, ``4.20 s``, ``3 min 12 s``."""
    if duration < 1e-3:
        return f"{duration * 1e6:.0f} µs"
    if duration < 1:
        return f"{duration * 1e3:.1f} ms"
    if duration < 120:
        return f"{duration:.2f} s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def as_text(headline: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return *headline* and a table with a header; more than 200 rows are cut, and the cut is said."""
    if not rows:
        return headline
    table: list[Sequence[str]] = [columns, *([*map(_cut, row[:-1]), row[-1]] for row in rows[:_MOST_ROWS])]
    widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
    widths[-1] = 0  # the last column is as long as it is
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * (width or len(columns[-1])) for width in widths))
    if len(rows) > _MOST_ROWS:
        lines.append(f"... {len(rows) - _MOST_ROWS:,} more")
    return "\n".join([headline, "", *lines])


def as_html(headline: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same as an HTML fragment, every text escaped."""
    import html  # noqa: PLC0415 - loads re, 6 ms

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:_MOST_ROWS])
    more = f"<p>... {len(rows) - _MOST_ROWS:,} more</p>" if len(rows) > _MOST_ROWS else ""
    return (
        f"<div><p><b>{html.escape(headline)}</b></p>"
        f"<table><thead><tr>{cells('th', columns)}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
