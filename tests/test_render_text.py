"""The terminal picture: what it says of every task, and that its lines lead exactly where the edges do."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowkit.render import text

# Where each character of a line leads to.
LINES = {"│": "UD", "┘": "UL", "┐": "DL", "┤": "UDL", "└": "UR", "┌": "DR", "├": "UDR", "─": "LR"}
LINES |= {"┴": "ULR", "┬": "DLR", "┼": "UDLR"}
STEPS = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
OPPOSITE = {"U": "D", "D": "U", "L": "R", "R": "L"}

printable_names = st.text(min_size=1, max_size=30).map(
    lambda name: "".join(c for c in name if c.isprintable()) or "name"
)


def generations_of(upstream):
    found, placed = [], set()
    while len(placed) < len(upstream):
        ready = [task for task, ups in enumerate(upstream) if task not in placed and placed.issuperset(ups)]
        found.append(ready)
        placed.update(ready)
    return found


def picture(names, upstream, **kwargs):
    return text.render("etl", names, upstream, generations_of(upstream), **kwargs)


def drawing(names, upstream, **kwargs):
    """Only the drawing: between the first and the second empty line."""
    return picture(names, upstream, **kwargs).split("\n\n")[1].split("\n")


def columns(line):
    """*line* by columns of a terminal; the second column of a wide character is empty."""
    cells = []
    for char in line:
        if unicodedata.category(char) in ("Mn", "Me"):
            cells[-1 if cells[-1] else -2] += char
        else:
            cells += [char, ""] if unicodedata.east_asian_width(char) in "WF" else [char]
    return cells


class Reader:
    """Reads the edges back from a drawing of tasks named t0, t1, ... by following its lines."""

    def __init__(self, lines):
        width = max(len(columns(line)) for line in lines)
        self.grid = [columns(line) + [" "] * (width - len(columns(line))) for line in lines]
        self.boxes = []  # (top row, bottom row, first column, last column, tasks)
        self.framed = set()
        for row, cells in enumerate(self.grid):
            for left in (x for x, cell in enumerate(cells) if cell == "╭"):
                right = next(x for x in range(left, width) if cells[x] == "╮")
                bottom = next(y for y in range(row, len(self.grid)) if self.grid[y][left] == "╰")
                inside = " ".join("".join(line[left:right]) for line in self.grid[row + 1 : bottom])
                self.boxes.append((row, bottom, left, right, [int(n) for n in re.findall(r"t(\d+)", inside)]))
                self.framed |= {(y, x) for y in range(row, bottom + 1) for x in range(left, right + 1)}
        for row, cells in enumerate(self.grid):
            marked = "".join((cell or " ")[0] for cell in cells)
            for found in re.finditer(r"(?:╌+ )?t(\d+)(?: ╌+)?", marked):
                if (row, found.start(1)) not in self.framed:
                    self.boxes.append((row, row, found.start(), found.end() - 1, [int(found[1])]))

    def box_at(self, row, column, side):
        """The box whose top (side 0) or bottom (side 1) is in *row*, next to *column*."""
        near = [(max(box[2] - column, column - box[3], 0), box) for box in self.boxes if box[side] == row]
        distance, box = min(near, key=lambda found: found[0], default=(9, None))
        return box if distance <= 3 else None

    def edges(self):
        for box in self.boxes:
            below = box[1] + 1
            for column in range(len(self.grid[0]) if below < len(self.grid) else 0):
                leaves = "U" in LINES.get(self.grid[below][column], "") and (below, column) not in self.framed
                passing = "D" in LINES.get(self.grid[box[1]][column], "")
                if leaves and not passing and self.box_at(box[1], column, 1) is box:
                    for lower in self.follow(below, column, "D", set()):
                        yield from ((a, b) for a in box[4] for b in lower[4])

    def follow(self, row, column, heading, seen):
        if (row, column, heading) in seen:
            return
        seen.add((row, column, heading))
        char = self.grid[row][column]
        if char == "▼":
            assert heading == "D"
            yield self.box_at(row + 1, column, 0)
            return
        if char == "│" and heading in "LR":
            onwards = heading  # crosses a line of another net
        else:
            assert OPPOSITE[heading] in LINES[char], f"{heading} into {char!r} at {row}, {column}"
            onwards = set(LINES[char]) - {OPPOSITE[heading], "U"}
            assert onwards or heading in "LR"  # sideways it may end, where another task's line joins
        for way in onwards:
            down, right = STEPS[way]
            yield from self.follow(row + down, column + right, way, seen)


def edges_of(upstream):
    return sorted((above, task) for task, ups in enumerate(upstream) for above in ups)


@st.composite
def graphs(draw, most=12):
    """For each task the ids that it depends on, in an order of definition unlike that of the graph."""
    count = draw(st.integers(1, most))
    order = draw(st.permutations(range(count)))
    upstream = [[] for _ in range(count)]
    for place, task in enumerate(order[1:], 1):
        upstream[task] = draw(st.lists(st.sampled_from(order[:place]), unique=True, max_size=4))
    return upstream


def test_no_task_is_an_empty_dag():
    assert text.render("etl", [], [], []) == "DAG: etl (0 tasks)\n\nEmpty DAG"


def test_the_picture_has_a_headline_a_drawing_and_a_list():
    """extract >> [clean, count] >> load"""
    assert picture(["extract", "clean", "count", "load"], [[], [0], [0], [1, 2]]).split("\n") == [
        "DAG: etl (4 tasks, 3 generations)",
        "",
        "    extract",
        "    ┌──┴───┐",
        "    ▼      ▼",
        "  clean  count",
        "    └──┬───┘",
        "       ▼",
        "     load",
        "",
        "extract",
        "    Upstream: (none)",
        "    Downstream: clean, count",
        "clean",
        "    Upstream: extract",
        "    Downstream: load",
        "count",
        "    Upstream: extract",
        "    Downstream: load",
        "load",
        "    Upstream: clean, count",
        "    Downstream: (none)",
    ]


def test_one_task_is_not_counted_in_the_plural():
    assert picture(["a"], [[]]).startswith("DAG: etl (1 task, 1 generation)\n")


def test_a_chain_is_one_straight_line():
    """extract >> transform >> load"""
    assert drawing(["extract", "transform", "load"], [[], [0], [1]]) == [
        "   extract",
        "      │",
        "      ▼",
        "  transform",
        "      │",
        "      ▼",
        "    load",
    ]


def test_an_edge_that_skips_generations_passes_beside_the_tasks_between():
    """extract >> clean >> train >> report,  extract >> report"""
    assert drawing(["extract", "clean", "train", "report"], [[], [0], [1], [2, 0]]) == [
        "    extract",
        "    ┌──┴──┐",
        "    ▼     │",
        "  clean   │",
        "    │     │",
        "    ▼     │",
        "  train   │",
        "    └──┬──┘",
        "       ▼",
        "    report",
    ]


def test_lines_go_straight_down_where_they_can():
    """extract >> clean >> train >> report,  extract >> report,  clean >> report"""
    assert drawing(["extract", "clean", "train", "report"], [[], [0], [1], [2, 0, 1]]) == [
        "        extract",
        "        ┌──┴──┐",
        "        ▼     │",
        "      clean   │",
        "    ┌───┴─┐   │",
        "    ▼     │   │",
        "  train   │   │",
        "    └─────┼───┘",
        "          ▼",
        "       report",
    ]


def test_a_join_does_not_pull_its_branches_together():
    """fetch_eu >> eu,  fetch_us >> us,  fetch_asia >> asia,  [eu, us, asia] >> merge"""
    names = ["fetch_eu", "fetch_us", "fetch_asia", "eu", "us", "asia", "merge"]
    assert drawing(names, [[], [], [], [0], [1], [2], [3, 4, 5]]) == [
        "  fetch_eu  fetch_us  fetch_asia",
        "      │         │          │",
        "      ▼         ▼          ▼",
        "      eu       us       asia",
        "       └────────┼─────────┘",
        "                ▼",
        "              merge",
    ]


def test_tasks_change_places_where_their_lines_would_cross():
    """a >> of_a,  b >> of_b,  c >> of_c, defined in the order of_c, of_b, of_a"""
    assert drawing(["a", "b", "c", "of_c", "of_b", "of_a"], [[], [], [], [2], [1], [0]]) == [
        "    a     b     c",
        "    │     │     │",
        "    ▼     ▼     ▼",
        "  of_a  of_b  of_c",
    ]


def test_independent_parts_stand_side_by_side():
    """a >> b      fetch >> [parse, check] >> store"""
    assert drawing(["a", "fetch", "b", "parse", "check", "store"], [[], [], [0], [1], [1], [3, 4]]) == [
        "   a      fetch",
        "   │     ┌──┴───┐",
        "   ▼     ▼      ▼",
        "   b   parse  check",
        "         └──┬───┘",
        "            ▼",
        "          store",
    ]


def test_tasks_wired_to_nothing_stand_beside_the_others():
    """lonely      a >> [b, c]"""
    assert drawing(["lonely", "a", "b", "c"], [[], [], [1], [1]]) == [
        "      a   lonely",
        "   ┌──┴─┐",
        "   ▼    ▼",
        "   b    c",
    ]


def test_lines_that_cross_do_not_touch():
    """t0 >> [t3, t4]    t1 >> [t4, t5]    t2 >> [t3, t5]"""
    lines = drawing(["t0", "t1", "t2", "t3", "t4", "t5"], [[], [], [], [0, 2], [0, 1], [1, 2]])
    assert any("─│─" in line for line in lines)
    assert sorted(Reader(lines).edges()) == [(0, 3), (0, 4), (1, 4), (1, 5), (2, 3), (2, 5)]


def test_many_tasks_to_many_share_one_line():
    """chain([aaa, bbb, ccc], [ddd, eee])"""
    assert drawing(["aaa", "bbb", "ccc", "ddd", "eee"], [[], [], [], [0, 1, 2], [0, 1, 2]]) == [
        "  aaa  bbb  ccc",
        "   └──┬─┴──┬─┘",
        "      ▼    ▼",
        "     ddd  eee",
    ]


def test_tasks_wired_alike_share_a_frame_where_they_do_not_fit_beside_each_other():
    """split >> [shard_00 ... shard_11] >> merge"""
    names = ["split", *(f"shard_{i:02}" for i in range(12)), "merge"]
    assert drawing(names, [[], *[[0]] * 12, list(range(1, 13))]) == [
        "                     split",
        "                       │",
        "                       ▼",
        "  ╭─────────────── 12 tasks ───────────────╮",
        "  │ shard_00  shard_01  shard_02  shard_03 │",
        "  │ shard_04  shard_05  shard_06  shard_07 │",
        "  │ shard_08  shard_09  shard_10  shard_11 │",
        "  ╰────────────────────────────────────────╯",
        "                       │",
        "                       ▼",
        "                     merge",
    ]


def test_the_line_of_a_task_beside_a_frame_starts_at_the_task():
    """split >> [shard_00 ... shard_11] >> merge,  split >> audit >> report"""
    names = ["split", "audit", *(f"shard_{i:02}" for i in range(12)), "merge", "report"]
    assert drawing(names, [[], [0], *[[0]] * 12, list(range(2, 14)), [1]]) == [
        "                split",
        "     ┌────────────┴────────────┐",
        "     ▼                         ▼",
        "   audit  ╭─────────────── 12 tasks ───────────────╮",
        "     │    │ shard_00  shard_01  shard_02  shard_03 │",
        "     │    │ shard_04  shard_05  shard_06  shard_07 │",
        "     │    │ shard_08  shard_09  shard_10  shard_11 │",
        "     │    ╰────────────────────────────────────────╯",
        "     │                         │",
        "     ▼                         ▼",
        "  report                     merge",
    ]


def test_a_frame_names_at_most_twelve_tasks():
    """start >> [t1 ... t40]"""
    lines = drawing([f"t{i}" for i in range(41)], [[], *[[0]] * 40])
    assert "─ 40 tasks ─" in lines[3]
    assert lines[6].split() == ["│", "t9", "t10", "t11", "...", "29", "more", "│"]


def test_a_frame_holds_tasks_of_one_state_only():
    """start >> [t1 ... t40], of which t7 failed"""
    states = dict.fromkeys(range(41), "succeeded") | {7: "failed"}
    drawn = "\n".join(drawing([f"t{i}" for i in range(41)], [[], *[[0]] * 40], states=states))
    assert "─ 39 tasks ─" in drawn
    assert drawn.count("✗") == 1
    assert "✗ t7" in drawn


def test_a_graph_too_wide_to_draw_is_told_by_generations():
    """t0 >> t20, t1 >> t21, ... t19 >> t39, each pair for itself"""
    names = [f"{'first' if i < 20 else 'second'}_{i}" for i in range(40)]
    assert drawing(names, [*[[]] * 20, *([i] for i in range(20))]) == [
        "      1  first_0  first_1  first_2  first_3  first_4  first_5  first_6  ... 13 more",
        "      ▼",
        "      2  second_20  second_21  second_22  second_23  second_24  second_25  ... 14 more",
    ]


def test_a_graph_too_deep_to_draw_is_cut():
    """t0 >> t1 >> ... t199"""
    lines = drawing([f"t{i}" for i in range(200)], [[], *([i] for i in range(199))])
    assert lines[0].split() == ["1", "t0"]
    assert lines[-3].split() == ["50", "t49"]
    assert lines[-1].strip() == "... 150 more generations"


def test_states_are_marked_counted_and_named():
    """a >> [b, c] >> d"""
    states = {0: "restored", 1: "succeeded", 2: "failed", 3: "upstream_failed"}
    shown = picture(["a", "b", "c", "d"], [[], [0], [0], [1, 2]], states=states, details={2: "3 attempts"})
    head, drawn, tasks = shown.split("\n\n")
    assert head.endswith("\n1 restored, 1 succeeded, 1 failed, 1 upstream_failed")
    assert [mark for mark in "◆✓✗⊗" if mark in drawn] == ["◆", "✓", "✗", "⊗"]
    assert "✗ c (failed, 3 attempts)" in tasks.split("\n")


def test_every_state_has_a_mark_of_its_own():
    words = "succeeded restored failed upstream_failed skipped cancelled running retrying pending unheard-of"
    shown = picture(list(words.split()), [[]] * 10, states=dict(enumerate(words.split())))
    marks = {mark for mark, word in re.findall(r"(\S) ([\w-]+) \(", shown) if word in words}
    assert len(marks) == 10


def test_an_unknown_state_is_drawn_with_a_question_mark():
    assert "? a (exploded)" in picture(["a"], [[]], states={0: "exploded"})


def test_a_task_without_a_state_has_no_mark_beside_tasks_that_have_one():
    assert "b\n    Upstream: a" in picture(["a", "b"], [[], [0]], states={0: "succeeded"})


def test_a_detail_is_shown_without_a_state_too():
    assert "a (1.20s)" in picture(["a"], [[]], details={0: "1.20s"})


def test_a_long_name_is_shortened_in_the_drawing_only():
    name = "load_" + "very_" * 30 + "long_eu"
    shown = picture([name, "b"], [[], [0]])
    assert "load_very_very_very_…y_very_very_long_eu" in shown.split("\n\n")[1]
    assert f"\n{name}\n" in shown
    assert f"Upstream: {name}" in shown


def test_wide_characters_take_two_columns():
    """抽出 >> [変換, ab] >> ロード"""
    lines = drawing(["抽出", "変換", "ab", "ロード"], [[], [0], [0], [1, 2]])
    assert lines == [
        "    抽出",
        "    ┌─┴──┐",
        "    ▼    ▼",
        "  変換  ab",
        "    └─┬──┘",
        "      ▼",
        "   ロード",
    ]


def test_half_of_a_wide_character_is_not_shown_when_a_name_is_shortened():
    for names in (["漢" * 100], ["x" + "漢" * 99], ["漢" * 50 + "x" + "漢" * 49], ["漢\u0301" * 100]):
        (line,) = drawing(names, [[]])
        assert len(columns(line)) == 2 + 40


def test_combining_characters_take_no_column():
    name = "e\u0301te\u0301"
    lines = drawing(["\u0301", name, "b"], [[], [0], [1]])
    assert f"  {name}" in lines
    assert lines[-1] == "   b"
    assert drawing(["漢\u0301a"], [[]]) == ["  漢\u0301a"]


def test_lists_are_cut_to_ten_names():
    """[t0 ... t11] >> t12"""
    shown = picture([f"t{i}" for i in range(13)], [*[[]] * 12, list(range(12))])
    assert "    Upstream: t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, ... 2 more" in shown.split("\n")


def test_upstream_is_listed_in_wiring_order():
    assert "Upstream: b, a" in picture(["a", "b", "c"], [[], [], [1, 0]])


def test_a_name_that_would_blur_a_list_is_quoted():
    shown = picture(["a, b", " c", "d"], [[], [], [0, 1]])
    assert 'Upstream: "a, b", " c"' in shown


def test_unprintable_characters_of_titles_and_details_are_escaped():
    shown = text.render("two\nlines", ["a"], [[]], [[0]], {0: "failed"}, {0: "bad\x1b[0m"})
    assert shown.startswith("DAG: two\\nlines (1 task")
    assert "a (failed, bad\\x1b[0m)" in shown


@pytest.mark.parametrize("shape", ["chain", "fan out", "fan in", "apart"])
def test_a_hundred_thousand_tasks_make_a_short_picture(shape):
    count = 100_000
    upstream = {
        "chain": [[], *([task] for task in range(count - 1))],
        "fan out": [[], *[[0]] * (count - 1)],
        "fan in": [*[[]] * (count - 1), list(range(count - 1))],
        "apart": [[]] * count,
    }[shape]
    names = [f"task_{task}" for task in range(count)]
    inner = list(range(1, count - 1))
    generations = {
        "chain": [[task] for task in range(count)],
        "fan out": [[0], [*inner, count - 1]],
        "fan in": [[0, *inner], [count - 1]],
        "apart": [list(range(count))],
    }[shape]
    lines = text.render("big", names, upstream, generations).split("\n")
    assert lines[0].startswith("DAG: big (100,000 tasks, ")
    assert lines[-1] == "... 99,000 more tasks"
    assert len(lines) < 3_200
    assert max(map(len, lines)) <= 160


@settings(deadline=None)
@given(graphs())
@example([[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]])  # passing lines join a task's own
@example([[], [], [], [0, 1], [1, 2], [0, 2]])  # only crossings
@example([[], [0], [0], [0], [0], [1], [2, 3, 4, 5]])
def test_following_the_lines_gives_every_edge_once_and_no_other(upstream):
    lines = drawing([f"t{task}" for task in range(len(upstream))], upstream)
    assert sorted(Reader(lines).edges()) == edges_of(upstream)


@settings(deadline=None, max_examples=40)
@given(graphs(most=30))
def test_a_drawing_is_never_wider_than_a_hundred_columns(upstream):
    names = [f"task number {task:02}" for task in range(len(upstream))]
    assert max(len(line) for line in drawing(names, upstream)) <= 100


@settings(deadline=None)
@given(graphs(), st.data())
def test_any_names_keep_their_columns(upstream, data):
    names = [f"t{data.draw(printable_names)}t".replace(",", ".") for _ in upstream]
    plain = ["t" * len(columns(name)) for name in names]
    for line, expected in zip(drawing(names, upstream), drawing(plain, upstream), strict=True):
        assert len(columns(line)) == len(expected)


@settings(deadline=None)
@given(graphs(), st.data())
def test_the_list_has_every_task_and_every_edge(upstream, data):
    names = data.draw(st.lists(printable_names, min_size=len(upstream), max_size=len(upstream), unique=True))
    lines = picture(names, upstream).split("\n\n")[-1].split("\n")
    shown = [name if name.strip(' "') == name and "," not in name else f'"{name}"' for name in names]
    order = [task for generation in generations_of(upstream) for task in generation]
    assert lines[::3] == [shown[task] for task in order]
    for task, line in zip(order, lines[1::3], strict=True):
        assert line == f"    Upstream: {', '.join(shown[up] for up in upstream[task]) or '(none)'}"


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_no_line_has_a_control_character(title, state, detail):
    shown = text.render(title, ["a"], [[]], [[0]], {0: state}, {0: detail})
    assert all(line.isprintable() for line in shown.split("\n"))
