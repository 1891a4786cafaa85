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
from bisect import bisect_right, insort
from itertools import pairwise

from ._labels import LOOKS, caption, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_WIDTH = 98  # columns of a drawing, without its margin
_MAX_ROWS = 50  # generations of a drawing
_MAX_FRAMED = 12  # names in a frame
_MAX_NAMES = 10  # names in a list
_MAX_LISTED = 1000  # tasks
_MIN_BOX = 3  # columns, so that a port can step aside
_SPACE = 2  # columns between boxes

# Tried until one fits: how many tasks wired alike are still drawn apart, and the columns for a name.
_TRIES = ((_MAX_WIDTH, 40), (_MAX_WIDTH, 24), (_MAX_WIDTH, 16), (3, 24), (3, 16), (1, 24), (1, 12))

_UP, _DOWN = 0, 1  # sides of a box or a net
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
            _sort(rows)
            _place(rows)
            return _paint(rows)
    return _outline(labels, generations)


def _outline(labels: Sequence[str], generations: Sequence[Sequence[int]]) -> list[str]:
    lines: list[str] = []
    for number, generation in enumerate(generations[:_MAX_ROWS], 1):
        row = list(f"{number:>7}  ")
        for shown, task in enumerate(generation):
            cells = _cells(labels[task], 24)
            if shown == _MAX_NAMES or len(row) + len(cells) > _MAX_WIDTH - 20:
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


class _Box:
    """What takes a place in a row."""

    __slots__ = ("ahead", "center", "lines", "nets", "ports", "width")

    def __init__(self, lines: list[list[str]], ahead: frozenset[int]) -> None:
        self.lines = lines  # lists of columns; none for a line passing by
        self.ahead = ahead  # the first tasks of all boxes further down that it leads to
        self.width = _MIN_BOX  # columns, set when all its nets are known
        self.center = 0.0  # a place from 0 to 1 until _place makes it a column
        self.nets: tuple[list[_Net], list[_Net]] = ([], [])  # above and below
        self.ports: tuple[list[int], list[int]] = ([], [])  # columns where these nets end and start

    @property
    def left(self) -> int:
        return int(self.center) - self.width // 2

    def offset(self, side: int, net: _Net) -> int:
        """Return how far from the center *net* should be."""
        return 4 * self.nets[side].index(net) - 2 * (len(self.nets[side]) - 1)


class _Net:
    """Lines from every box of one list, in one row, to every box of another, in the next row."""

    __slots__ = ("boxes", "ports")

    def __init__(self, tops: list[_Box], bottoms: list[_Box]) -> None:
        self.boxes = (tops, bottoms)
        self.ports: tuple[list[int], list[int]] = ([], [])  # columns where it leaves and reaches them
        for box in tops:
            box.nets[_DOWN].append(self)
        for box in bottoms:
            box.nets[_UP].append(self)

    @property
    def span(self) -> tuple[int, int]:
        return min(map(min, self.ports)), max(map(max, self.ports))

    def crossings_over(self, other: _Net) -> int:
        """Return how many lines cross when the track of this net is above the other's."""
        (low, high), (left, right) = self.span, other.span
        through = [low < x < high for x in other.ports[_UP]] + [left < x < right for x in self.ports[_DOWN]]
        return sum(through)


def _rows(
    groups: Sequence[Sequence[Sequence[int]]],
    labels: Sequence[str],
    downstream: Sequence[Sequence[int]],
    limit: int,
) -> list[list[_Box]]:
    """Return the boxes of each generation, joined by nets, or nothing where they are too wide."""
    if max(map(len, groups)) * (_MIN_BOX + _SPACE) > _MAX_WIDTH + _SPACE:
        return []
    firsts = frozenset(group[0] for generation in groups for group in generation)
    rows: list[list[_Box]] = []
    boxes = {
        group[0]: _Box(_frame(labels, group, limit), firsts.intersection(downstream[group[0]]))
        for generation in groups
        for group in generation
    }
    passing: list[_Box] = []
    for generation, following in pairwise([*groups, []]):
        row = [boxes[group[0]] for group in generation] + passing
        rows.append(row)
        passing = []
        for tops, ahead in _split(row):
            bottoms = [boxes[group[0]] for group in following if group[0] in ahead]
            further = ahead.difference(group[0] for group in following)
            if further:
                passing.append(_Box([], further))
            _Net(tops, bottoms + passing[-1:] if further else bottoms)
        for box in row:
            box.width = max([_MIN_BOX, *(4 * len(nets) - 1 for nets in box.nets), *map(len, box.lines)])
        if sum(box.width + _SPACE for box in row) > _MAX_WIDTH + _SPACE:
            return []
    return rows


def _split(row: Sequence[_Box]) -> list[tuple[list[_Box], frozenset[int]]]:
    """Split the edges below *row* into sets of boxes that lead to the same ones: by upper or lower end."""
    by_ahead: dict[frozenset[int], list[_Box]] = {}
    feeders: dict[int, list[_Box]] = {}
    for box in row:
        if box.ahead:
            by_ahead.setdefault(box.ahead, []).append(box)
        for lower in box.ahead:
            feeders.setdefault(lower, []).append(box)
    by_feeders: dict[tuple[_Box, ...], list[int]] = {}
    for lower, tops in feeders.items():
        by_feeders.setdefault(tuple(tops), []).append(lower)
    nets = [(tops, ahead) for ahead, tops in by_ahead.items()]
    other = [(list(tops), frozenset(lowers)) for tops, lowers in by_feeders.items()]
    # A net takes room at its boxes, and a track as well if they are more than two.
    return min(nets, other, key=lambda found: sum(1 if len(a) == len(b) == 1 else 2 for a, b in found))


def _near(box: _Box, side: int) -> list[float]:
    return [end.center for net in box.nets[side] for end in net.boxes[side]]


def _mean(values: Sequence[float], default: float = 0.0) -> float:
    return sum(values) / len(values) if values else default


def _sort(rows: list[list[_Box]]) -> None:
    """Order the boxes of each row so that few lines cross; definition order stays where it is as good."""
    orders = [[list(row) for row in rows]]
    _number(rows)
    for side in (_UP, _DOWN) * 4:
        for row in rows[::-1] if side == _DOWN else rows:
            for box in row:
                box.center = _mean(_near(box, side), box.center)
            row.sort(key=lambda box: box.center)
            _number([row])
        orders.append([list(row) for row in rows])
    best = min(orders, key=_crossings)
    rows[:] = best
    rows[0].sort(key=lambda box: not any(box.nets))  # tasks wired to nothing stand at the end
    _number(rows)
    for box in (box for row in rows for box in row):
        for side in (_UP, _DOWN):
            box.nets[side].sort(key=lambda net: _mean([end.center for end in net.boxes[side]]))


def _number(rows: list[list[_Box]]) -> None:
    for row in rows:
        for index, box in enumerate(row):
            box.center = (index + 0.5) / len(row)


def _crossings(rows: list[list[_Box]]) -> int:
    _number(rows)
    total = 0
    for row in rows:
        seen: list[float] = []
        for _, end in sorted((box.center, end) for box in row for end in _near(box, _DOWN)):
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return total


def _place(rows: list[list[_Box]]) -> None:
    """Give each box its column, near the middle of what it is joined to."""
    for row in rows:
        _spread(row, [_MAX_WIDTH / 2] * len(row))
    for turn, sides in enumerate([(_UP,), (_DOWN,)] * 6 + [(_UP, _DOWN)] * 12):
        for row in rows[::-1] if turn % 2 else rows:
            _spread(row, [_wish(box, sides) for box in row])
    for row in rows:
        end = -_SPACE
        for box in row:
            box.center = int(box.center + 0.5) if any(box.nets) else end + _SPACE + box.width // 2
            end = box.left + box.width
    leftmost = min(row[0].left for row in rows)
    for box in (box for row in rows for box in row):
        box.center -= leftmost


def _wish(box: _Box, sides: Sequence[int]) -> float:
    total = weights = 0.0
    for side in sides:
        for net in box.nets[side]:
            # A line that joins two boxes only should be straight, whatever the others do.
            weight = (len(net.boxes[_UP]) * len(net.boxes[_DOWN])) ** -2.0
            for end in net.boxes[side]:
                total += weight * (end.center + end.offset(1 - side, net) - box.offset(side, net))
                weights += weight
    return total / weights if weights else box.center


def _spread(row: list[_Box], wishes: list[float]) -> None:
    """Set the centers of *row* as near to *wishes* (least squares) as order, widths and the edges allow."""
    offsets = [row[0].width // 2]  # the centers where all boxes are packed to the left
    for box, right in pairwise(row):
        offsets.append(offsets[-1] + box.width - box.width // 2 + _SPACE + right.width // 2)
    slack = _MAX_WIDTH - offsets[-1] - row[-1].width + row[-1].width // 2
    pools: list[tuple[float, int]] = []  # boxes that push each other: the sum of their wishes, and how many
    for wish, offset in zip(wishes, offsets, strict=True):
        total, count = wish - offset, 1
        while pools and pools[-1][0] * count > total * pools[-1][1]:
            more, boxes = pools.pop()
            total, count = total + more, count + boxes
        pools.append((total, count))
    moves = [min(max(total / count, 0), slack) for total, count in pools for _ in range(count)]
    for box, offset, move in zip(row, offsets, moves, strict=True):
        box.center = offset + move


def _paint(rows: list[list[_Box]]) -> list[str]:
    """Return the lines of the drawing."""
    width = max(row[-1].left + row[-1].width for row in rows)
    canvas: list[list[str]] = []
    for row in rows:
        nets = list(dict.fromkeys(net for box in row for net in box.nets[_DOWN]))
        _fix_ports(row, nets)
        band = [[" "] * width for _ in range(max(len(box.lines) or 1 for box in row))]
        for box in row:
            _paint_box(band, box)
        canvas += band
        if nets:
            levels = _levels([net for net in nets if net.span[0] < net.span[1]])
            height = max(levels.values(), default=0) + 1
            band = [[" "] * width for _ in range(height + 1)]
            for net, level in levels.items():
                _paint_line(band[level], *net.ports)
            for net in nets:  # after all tracks: a line that crosses one is drawn through
                for column in net.ports[_UP]:
                    _paint_down(band[: levels.get(net, height)], column)
                for column in net.ports[_DOWN]:
                    _paint_down(band[levels.get(net, 0) + 1 :], column)
            for box in (box for net in nets for box in net.boxes[_DOWN] if box.lines):
                for column in box.ports[_UP]:
                    band[-1][column] = "▼"
            canvas += band
    return ["  " + "".join(line) for line in canvas]


def _fix_ports(row: list[_Box], nets: list[_Net]) -> None:
    """Give each net columns that no other net of the gap has: then their tracks may lie in any order."""
    taken: dict[int, _Net] = {}
    for box in row:
        for net in box.nets[_DOWN]:
            column = int(box.center) + box.offset(_DOWN, net)
            if not box.lines and len(box.nets[_DOWN]) == 1:
                column = box.ports[_UP][0]
            taken[column] = net
            box.ports[_DOWN].append(column)
            net.ports[_UP].append(column)
    for box in dict.fromkeys(box for net in nets for box in net.boxes[_DOWN]):
        for net in box.nets[_UP]:
            wish = int(box.center) + box.offset(_UP, net)
            straight = _MAX_WIDTH if max(map(len, net.boxes)) == 1 else 1.5  # worth that many columns
            # Ports above are three columns apart or more, so the wish or a column beside it is free.
            free = [x for x in range(box.left, box.left + box.width) if taken.get(x, net) is net]
            column = min(free, key=lambda x: abs(x - wish) - straight * (x in net.ports[_UP]))
            box.ports[_UP].append(column)
            net.ports[_DOWN].append(column)


def _levels(nets: list[_Net]) -> dict[_Net, int]:
    """Return the track of each net, counted from above: few crossings first, then few tracks."""
    levels: dict[_Net, int] = {}
    for net in sorted(nets, key=lambda n: sum(n.crossings_over(o) - o.crossings_over(n) for o in nets)):
        low, high = net.span
        meeting = [level for o, level in levels.items() if low <= o.span[1] + 1 and o.span[0] <= high + 1]
        levels[net] = max(meeting, default=-1) + 1
    return levels


def _paint_box(band: list[list[str]], box: _Box) -> None:
    if not box.lines:
        _paint_line(band[0], *box.ports)
    for line, cells in zip(band, box.lines, strict=False):
        start = int(box.center) - len(cells) // 2
        if len(cells) <= box.width - 4:  # its ports reach further than its name
            line[box.left : box.left + box.width] = "╌" * box.width
            line[start - 1] = line[start + len(cells)] = " "
        line[start : start + len(cells)] = cells
    for column in box.ports[_DOWN]:
        _paint_down(band[len(box.lines) or 1 :], column)


def _paint_line(line: list[str], above: list[int], below: list[int]) -> None:
    low, high = min(above + below), max(above + below)
    for x in range(low, high + 1):
        line[x] = _LINES[(x in above) + 2 * (x in below) + 4 * (x > low) + 8 * (x < high)]


def _paint_down(lines: list[list[str]], column: int) -> None:
    for line in lines:
        line[column] = "│"
