"""Draw a graph as text for a terminal. Knows boxes, lines and columns; not where the graph comes from.

The drawing has a row of boxes for each topological generation, and lines in the gaps between them::

     extract           a box: a task, a frame around tasks that are wired alike, or a line passing by
    ┌───┴───┐          a net: each box above it leads to each box below it; nets only cross (─│─)
    ▼       ▼
  clean   count
    └───┬───┘
        ▼
      load

An edge that skips generations takes a place in their rows, as a line passing by. Where single tasks
do not fit, tasks with the same upstream, downstream and state share a frame; where that does not fit
either, the generations are listed.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise

from ._labels import LOOKS, caption, printable
from ._layout import DOWN, MAX_WIDTH, MIN_BOX, SPACE, UP, Box, Net, fix_ports, levels, place, sort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_ROWS = 50  # generations of a drawing
_MAX_FRAMED = 12  # names in a frame
_MAX_NAMES = 10  # names in a list
_MAX_LISTED = 1000  # tasks

# Tried until one fits: how many tasks wired alike are still drawn apart, and the columns for a name.
_TRIES = ((MAX_WIDTH, 40), (MAX_WIDTH, 24), (MAX_WIDTH, 16), (3, 24), (3, 16), (1, 24), (1, 12))

_LINES = " ╵╷│╴┘┐┤╶└┌├─┴┬┼"  # by where a line goes: 1 up + 2 down + 4 left + 8 right


def render(
    title: str,
    names: Sequence[str],
    upstream: Sequence[Sequence[int]],
    generations: Sequence[Sequence[int]],
    states: Mapping[int, str] | None = None,
    details: Mapping[int, str] | None = None,
) -> str:
    """Return a drawing of the graph and the list of its tasks, without a newline at the end.

    The drawing is at most 100 columns wide and shortens names (``…``). The list never does, but ends
    after 1,000 tasks. The time is linear in tasks and edges.

    Args:
        title: The name of the DAG.
        names: The tasks' names; a task's id is its index.
        upstream: For each id, the ids that it depends on.
        generations: The topological generations, as lists of ids in definition order.
        states: State by id, where known.
        details: A short text by id, such as a duration.

    >>> states, details = {0: "succeeded", 1: "running"}, {0: "1.20s"}
    >>> print(render("etl", ["extract", "load"], [[], [0]], [[0], [1]], states, details))
    DAG: etl (2 tasks, 2 generations)
    1 succeeded, 1 running
    <BLANKLINE>
      ✓ extract
          │
          ▼
       ● load
    <BLANKLINE>
    ✓ extract (succeeded, 1.20s)
        Upstream: (none)
        Downstream: load
    ● load (running)
        Upstream: extract
        Downstream: (none)
    """
    if not names:
        return f"DAG: {printable(title)} (0 tasks)\n\nEmpty DAG"
    states, details = states or {}, details or {}
    names = [printable(name) for name in names]
    labels = [_quoted(name) for name in names]
    for task, state in states.items():
        labels[task] = f"{LOOKS.get(state, '?')[0]} {labels[task]}"
    ordered = [task for generation in generations for task in generation]
    downstream: list[list[int]] = [[] for _ in names]
    for task in ordered:
        for above in upstream[task]:
            downstream[above].append(task)

    size = f"{_count(len(names), 'task')}, {_count(len(generations), 'generation')}"
    lines = [f"DAG: {printable(title)} ({size})"]
    if states:
        all_states = list(states.values())
        lines.append(", ".join(f"{all_states.count(s):,} {printable(s)}" for s in dict.fromkeys(all_states)))
    lines += ["", *_drawing(labels, upstream, downstream, generations, states), ""]
    for task in ordered[:_MAX_LISTED]:
        below = caption(states.get(task), details.get(task))
        lines += [
            labels[task] + (f" ({below})" if below else ""),
            f"    Upstream: {_joined(names, upstream[task])}",
            f"    Downstream: {_joined(names, downstream[task])}",
        ]
    if len(ordered) > _MAX_LISTED:
        lines.append(f"... {len(ordered) - _MAX_LISTED:,} more tasks")
    return "\n".join(line.rstrip() for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name or name.strip(' "') != name else name


def _joined(names: Sequence[str], tasks: Sequence[int]) -> str:
    shown = [_quoted(names[task]) for task in tasks[:_MAX_NAMES]]
    if len(tasks) > _MAX_NAMES:
        shown.append(f"... {len(tasks) - _MAX_NAMES:,} more")
    return ", ".join(shown) or "(none)"


def _cells(text: str, limit: int) -> list[str]:
    """Return *text* by columns of a terminal; the second column of a wide character is empty."""
    cells: list[str] = []
    for char in text:
        if unicodedata.category(char) in ("Mn", "Me"):  # stands on the character before it
            cells = cells or [" "]
            cells[-1 if cells[-1] else -2] += char
            continue
        cells.append(char)
        if unicodedata.east_asian_width(char) in ("W", "F"):
            cells.append("")
    if len(cells) <= limit:
        return cells
    start, stop = limit // 2, len(cells) - (limit - 1 - limit // 2)
    head, tail = cells[:start], cells[stop:]
    if not cells[start]:
        head[-1] = " "  # half of a wide character was cut off
    if not tail[0]:
        tail[0] = " "
    return [*head, "…", *tail]


def _drawing(
    labels: Sequence[str],
    upstream: Sequence[Sequence[int]],
    downstream: Sequence[Sequence[int]],
    generations: Sequence[Sequence[int]],
    states: Mapping[int, str],
) -> list[str]:
    if len(generations) > _MAX_ROWS:
        return _outline(labels, generations)
    by_wiring: dict[object, list[int]] = {}
    for task in range(len(labels)):
        wiring = frozenset(upstream[task]), frozenset(downstream[task]), states.get(task)
        by_wiring.setdefault(wiring, []).append(task)
    alike = {task: tasks for tasks in by_wiring.values() for task in tasks}
    for apart, limit in _TRIES:
        groups = []  # of tasks, each to be drawn as one box
        for generation in generations:
            firsts = [task for task in generation if len(alike[task]) <= apart or task == alike[task][0]]
            groups.append([alike[task] if len(alike[task]) > apart else [task] for task in firsts])
        rows = _rows(groups, labels, downstream, limit)
        if rows:
            sort(rows)
            place(rows)
            return _paint(rows)
    return _outline(labels, generations)


def _outline(labels: Sequence[str], generations: Sequence[Sequence[int]]) -> list[str]:
    lines: list[str] = []
    for number, generation in enumerate(generations[:_MAX_ROWS], 1):
        row = list(f"{number:>7}  ")
        for shown, task in enumerate(generation):
            cells = _cells(labels[task], 24)
            if shown == _MAX_NAMES or len(row) + len(cells) > MAX_WIDTH - 20:
                row += f"... {len(generation) - shown:,} more"
                break
            row += [*cells, " ", " "]
        lines += ["      ▼", "".join(row)] if number > 1 else ["".join(row)]
    if len(generations) > _MAX_ROWS:
        lines += ["      ▼", f"         ... {len(generations) - _MAX_ROWS:,} more generations"]
    return lines


def _frame(labels: Sequence[str], group: Sequence[int], limit: int) -> list[list[str]]:
    """Return the lines of a box, as lists of columns."""
    shown = [_cells(labels[task], limit) for task in group[: _MAX_FRAMED - (len(group) > _MAX_FRAMED)]]
    if len(group) == 1:
        return shown
    if len(shown) < len(group):
        shown.append(list(f"... {len(group) - len(shown):,} more"))
    across = -(-len(shown) // -(-len(shown) // 4))  # at most four, in rows of about the same length
    heading = f" {_count(len(group), 'task')} "
    width = max(2 + max(map(len, shown)), -(-len(heading) // across))
    lines = [list(f"╭{heading.center(width * across, '─')}╮")]
    for start in range(0, len(shown), across):
        row = [cell for name in shown[start : start + across] for cell in _padded([" ", *name], width)]
        lines.append(["│", *_padded(row, width * across), "│"])
    return [*lines, list(f"╰{'─' * width * across}╯")]


def _padded(cells: list[str], width: int) -> list[str]:
    return cells + [" "] * (width - len(cells))


def _rows(
    groups: Sequence[Sequence[Sequence[int]]],
    labels: Sequence[str],
    downstream: Sequence[Sequence[int]],
    limit: int,
) -> list[list[Box]]:
    """Return the boxes of each generation, joined by nets, or nothing where they are too wide."""
    if max(map(len, groups)) * (MIN_BOX + SPACE) > MAX_WIDTH + SPACE:
        return []
    firsts = frozenset(group[0] for generation in groups for group in generation)
    rows: list[list[Box]] = []
    boxes = {
        group[0]: Box(_frame(labels, group, limit), firsts.intersection(downstream[group[0]]))
        for generation in groups
        for group in generation
    }
    passing: list[Box] = []
    for generation, following in pairwise([*groups, []]):
        row = [boxes[group[0]] for group in generation] + passing
        rows.append(row)
        passing = []
        for tops, ahead in _split(row):
            bottoms = [boxes[group[0]] for group in following if group[0] in ahead]
            further = ahead.difference(group[0] for group in following)
            if further:
                passing.append(Box([], further))
            Net(tops, bottoms + passing[-1:] if further else bottoms)
        for box in row:
            box.width = max([MIN_BOX, *(4 * len(nets) - 1 for nets in box.nets), *map(len, box.lines)])
        if sum(box.width + SPACE for box in row) > MAX_WIDTH + SPACE:
            return []
    return rows


def _split(row: Sequence[Box]) -> list[tuple[list[Box], frozenset[int]]]:
    """Split the edges below *row* into sets of boxes that lead to the same ones: by upper or lower end."""
    by_ahead: dict[frozenset[int], list[Box]] = {}
    feeders: dict[int, list[Box]] = {}
    for box in row:
        if box.ahead:
            by_ahead.setdefault(box.ahead, []).append(box)
        for lower in box.ahead:
            feeders.setdefault(lower, []).append(box)
    by_feeders: dict[tuple[Box, ...], list[int]] = {}
    for lower, tops in feeders.items():
        by_feeders.setdefault(tuple(tops), []).append(lower)
    nets = [(tops, ahead) for ahead, tops in by_ahead.items()]
    other = [(list(tops), frozenset(lowers)) for tops, lowers in by_feeders.items()]
    # A net takes room at its boxes, and a track as well if they are more than two.
    return min(nets, other, key=lambda found: sum(1 if len(a) == len(b) == 1 else 2 for a, b in found))


def _paint(rows: list[list[Box]]) -> list[str]:
    """Return the lines of the drawing."""
    width = max(row[-1].left + row[-1].width for row in rows)
    canvas: list[list[str]] = []
    for row in rows:
        nets = list(dict.fromkeys(net for box in row for net in box.nets[DOWN]))
        fix_ports(row, nets)
        band = [[" "] * width for _ in range(max(len(box.lines) or 1 for box in row))]
        for box in row:
            _paint_box(band, box)
        canvas += band
        if nets:
            level_of = levels([net for net in nets if net.span[0] < net.span[1]])
            height = max(level_of.values(), default=0) + 1
            band = [[" "] * width for _ in range(height + 1)]
            for net, level in level_of.items():
                _paint_line(band[level], *net.ports)
            for net in nets:  # after all tracks: a line that crosses one is drawn through
                for column in net.ports[UP]:
                    _paint_down(band[: level_of.get(net, height)], column)
                for column in net.ports[DOWN]:
                    _paint_down(band[level_of.get(net, 0) + 1 :], column)
            for box in (box for net in nets for box in net.boxes[DOWN] if box.lines):
                for column in box.ports[UP]:
                    band[-1][column] = "▼"
            canvas += band
    return ["  " + "".join(line) for line in canvas]


def _paint_box(band: list[list[str]], box: Box) -> None:
    if not box.lines:
        _paint_line(band[0], *box.ports)
    for line, cells in zip(band, box.lines, strict=False):
        start = int(box.center) - len(cells) // 2
        if len(cells) <= box.width - 4:  # its ports reach further than its name
            line[box.left : box.left + box.width] = "╌" * box.width
            line[start - 1] = line[start + len(cells)] = " "
        line[start : start + len(cells)] = cells
    for column in box.ports[DOWN]:
        _paint_down(band[len(box.lines) or 1 :], column)


def _paint_line(line: list[str], above: list[int], below: list[int]) -> None:
    low, high = min(above + below), max(above + below)
    for x in range(low, high + 1):
        line[x] = _LINES[(x in above) + 2 * (x in below) + 4 * (x > low) + 8 * (x < high)]


def _paint_down(lines: list[list[str]], column: int) -> None:
    for line in lines:
        line[column] = "│"
