"""The table of a run, as text and as HTML."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.render import report

COLUMNS = ("task", "state", "reason")


@pytest.mark.parametrize(("duration", "said"), [
    (0.0, "0 µs"), (2.5e-5, "25 µs"), (0.0015, "1.5 ms"), (0.25, "250.0 ms"), (1, "1.00 s"), (4.2, "4.20 s"),
    (119.99, "119.99 s"), (120, "2 min 0 s"), (192, "3 min 12 s"), (7199, "119 min 59 s"),
    (7200, "2 h 0 min"), (90_061, "25 h 1 min"),
])  # fmt: skip
def test_durations_are_said_as_a_person_says_them(duration, said):
    assert report.seconds(duration) == said


def test_the_text_lines_up_its_columns():
    rows = [("load", "failed", "OSError: full"), ("a", "skipped", "")]
    table = report.as_text("etl: failed", COLUMNS, rows)
    assert table == (
        "etl: failed\n"
        "\n"
        "task  state    reason\n"
        "----  -------  ------\n"
        "load  failed   OSError: full\n"
        "a     skipped"
    )


def test_without_rows_there_is_only_the_headline():
    assert report.as_text("etl: succeeded", COLUMNS, []) == "etl: succeeded"


def test_long_cells_are_cut_but_for_the_reason():
    table = report.as_text("etl", COLUMNS, [("n" * 100, "failed", "r" * 300)])
    assert "n" * 59 + "…" in table
    assert "n" * 60 not in table
    assert "r" * 300 in table


def test_more_than_200_rows_are_cut_and_the_cut_is_said():
    rows = [(f"t{i}", "succeeded", "") for i in range(1_500)]
    text, page = report.as_text("etl", COLUMNS, rows), report.as_html("etl", COLUMNS, rows)
    assert text.endswith("\n... 1,300 more")
    assert len(text.splitlines()) == 4 + 200 + 1
    assert "<p>... 1,300 more</p>" in page
    assert page.count("<tr>") == 201
    assert "more" not in report.as_html("etl", COLUMNS, rows[:200])


class Texts(HTMLParser):
    """Collects the text of each cell and the tags."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_no_text_becomes_markup(text):
    read = Texts(report.as_html(text, COLUMNS, [(text, "failed", text)]))
    assert read.cells == [*COLUMNS, text, "failed", text]
    assert read.tags == {"div", "p", "b", "table", "thead", "tr", "th", "tbody", "td"}
