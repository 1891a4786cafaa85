"""Arrange boxes in rows so that few lines cross: the columns of boxes, of ports and of the lines between them.

Knows boxes and nets. Does not know what is drawn in a box, or how a line looks.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_WIDTH = 98  # columns of a drawing, without its margin
MIN_BOX = 3  # columns, so that a port can step aside
SPACE = 2  # columns between boxes

UP, DOWN = 0, 1  # sides of a box or a net


class Box:
    """What takes a place in a row."""

    __slots__ = ("ahead", "center", "lines", "nets", "ports", "width")

    def __init__(self, lines: list[list[str]], ahead: frozenset[int]) -> None:
        self.lines = lines  # lists of columns; none for a line passing by
        self.ahead = ahead  # the first tasks of all boxes further down that it leads to
        self.width = MIN_BOX  # columns, set when all its nets are known
        self.center = 0.0  # a place from 0 to 1 until place makes it a column
        self.nets: tuple[list[Net], list[Net]] = ([], [])  # above and below
        self.ports: tuple[list[int], list[int]] = ([], [])  # columns where these nets end and start

    @property
    def left(self) -> int:
        return int(self.center) - self.width // 2

    def offset(self, side: int, net: Net) -> int:
        """Return how far from the center *net* should be."""
        return 4 * self.nets[side].index(net) - 2 * (len(self.nets[side]) - 1)


class Net:
    """Lines from every box of one list, in one row, to every box of another, in the next row."""

    __slots__ = ("boxes", "ports")

    def __init__(self, tops: list[Box], bottoms: list[Box]) -> None:
        self.boxes = (tops, bottoms)
        self.ports: tuple[list[int], list[int]] = ([], [])  # columns where it leaves and reaches them
        for box in tops:
            box.nets[DOWN].append(self)
        for box in bottoms:
            box.nets[UP].append(self)

    @property
    def span(self) -> tuple[int, int]:
        return min(map(min, self.ports)), max(map(max, self.ports))

    def crossings_over(self, other: Net) -> int:
        """Return how many lines cross when the track of this net is above the other's."""
        (low, high), (left, right) = self.span, other.span
        through = [low < x < high for x in other.ports[UP]] + [left < x < right for x in self.ports[DOWN]]
        return sum(through)


def _near(box: Box, side: int) -> list[float]:
    return [end.center for net in box.nets[side] for end in net.boxes[side]]


def _mean(values: Sequence[float], default: float = 0.0) -> float:
    return sum(values) / len(values) if values else default


def sort(rows: list[list[Box]]) -> None:
    """Order the boxes of each row so that few lines cross; definition order stays where it is as good."""
    orders = [[list(row) for row in rows]]
    _number(rows)
    for side in (UP, DOWN) * 4:
        for row in rows[::-1] if side == DOWN else rows:
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
        for side in (UP, DOWN):
            box.nets[side].sort(key=lambda net: _mean([end.center for end in net.boxes[side]]))


def _number(rows: list[list[Box]]) -> None:
    for row in rows:
        for index, box in enumerate(row):
            box.center = (index + 0.5) / len(row)


def _crossings(rows: list[list[Box]]) -> int:
    _number(rows)
    total = 0
    for row in rows:
        seen: list[float] = []
        for _, end in sorted((box.center, end) for box in row for end in _near(box, DOWN)):
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return total


def place(rows: list[list[Box]]) -> None:
    """Give each box its column, near the middle of what it is joined to."""
    for row in rows:
        _spread(row, [MAX_WIDTH / 2] * len(row))
    for turn, sides in enumerate([(UP,), (DOWN,)] * 6 + [(UP, DOWN)] * 12):
        for row in rows[::-1] if turn % 2 else rows:
            _spread(row, [_wish(box, sides) for box in row])
    for row in rows:
        end = -SPACE
        for box in row:
            box.center = int(box.center + 0.5) if any(box.nets) else end + SPACE + box.width // 2
            end = box.left + box.width
    leftmost = min(row[0].left for row in rows)
    for box in (box for row in rows for box in row):
        box.center -= leftmost


def _wish(box: Box, sides: Sequence[int]) -> float:
    total = weights = 0.0
    for side in sides:
        for net in box.nets[side]:
            # A line that joins two boxes only should be straight, whatever the others do.
            weight = (len(net.boxes[UP]) * len(net.boxes[DOWN])) ** -2.0
            for end in net.boxes[side]:
                total += weight * (end.center + end.offset(1 - side, net) - box.offset(side, net))
                weights += weight
    return total / weights if weights else box.center


def _spread(row: list[Box], wishes: list[float]) -> None:
    """Set the centers of *row* as near to *wishes* (least squares) as order, widths and the edges allow."""
    offsets = [row[0].width // 2]  # the centers where all boxes are packed to the left
    for box, right in pairwise(row):
        offsets.append(offsets[-1] + box.width - box.width // 2 + SPACE + right.width // 2)
    slack = MAX_WIDTH - offsets[-1] - row[-1].width + row[-1].width // 2
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


def fix_ports(row: list[Box], nets: list[Net]) -> None:
    """Give each net columns that no other net of the gap has: then their tracks may lie in any order."""
    taken: dict[int, Net] = {}
    for box in row:
        for net in box.nets[DOWN]:
            column = int(box.center) + box.offset(DOWN, net)
            if not box.lines and len(box.nets[DOWN]) == 1:
                column = box.ports[UP][0]
            taken[column] = net
            box.ports[DOWN].append(column)
            net.ports[UP].append(column)
    for box in dict.fromkeys(box for net in nets for box in net.boxes[DOWN]):
        for net in box.nets[UP]:
            wish = int(box.center) + box.offset(UP, net)
            straight = MAX_WIDTH if max(map(len, net.boxes)) == 1 else 1.5  # worth that many columns
            # Ports above are three columns apart or more, so the wish or a column beside it is free.
            free = [x for x in range(box.left, box.left + box.width) if taken.get(x, net) is net]
            column = min(free, key=lambda x: abs(x - wish) - straight * (x in net.ports[UP]))
            box.ports[UP].append(column)
            net.ports[DOWN].append(column)


def levels(nets: list[Net]) -> dict[Net, int]:
    """Return the track of each net, counted from above: few crossings first, then few tracks."""
    levels: dict[Net, int] = {}
    for net in sorted(nets, key=lambda n: sum(n.crossings_over(o) - o.crossings_over(n) for o in nets)):
        low, high = net.span
        meeting = [level for o, level in levels.items() if low <= o.span[1] + 1 and o.span[0] <= high + 1]
        levels[net] = max(meeting, default=-1) + 1
    return levels
