"""The Mermaid picture: whatever a task is called, its label says that, and Mermaid finds no syntax in it."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowkit.render import mermaid

printable_names = st.text(min_size=1, max_size=40).map(
    lambda name: "".join(c for c in name if c.isprintable()) or "name"
)
NODE = re.compile(r'    (t\d+)\["([^"]*)"\]')


def picture(names, upstream=None, **kwargs):
    """The picture of a graph in which each task depends on earlier ones only."""
    order = [[task] for task in range(len(names))]
    return mermaid.render("etl", names, upstream or [[] for _ in names], order, **kwargs)


def labels(shown):
    """The text of each label as Mermaid draws it, by id, without the word joiners that nobody sees."""
    found = {}
    for line in shown.split("\n"):
        if node := NODE.fullmatch(line):
            text = node[2].replace("#8288;", "").replace("<br/>", "\n")
            found[node[1]] = re.sub(r"#(\d+);", lambda entity: chr(int(entity[1])), text)
    return found


def edges(shown):
    return [(int(a), int(b)) for a, b in re.findall(r"^    t(\d+) --> t(\d+)$", shown, re.MULTILINE)]


def test_a_diamond_is_a_flowchart_of_four_tasks_and_four_edges():
    """extract >> [clean, count] >> load"""
    assert picture(["extract", "clean", "count", "load"], [[], [0], [0], [1, 2]]).split("\n") == [
        "---",
        'title: "etl"',
        "---",
        "flowchart TD",
        '    t0["extract"]',
        '    t1["clean"]',
        '    t2["count"]',
        '    t3["load"]',
        "    t0 --> t1",
        "    t0 --> t2",
        "    t1 --> t3",
        "    t2 --> t3",
    ]


def test_no_task_is_an_empty_dag():
    assert mermaid.render("etl", [], [], []).endswith('flowchart TD\n    empty["Empty DAG"]')


@pytest.mark.parametrize("orientation", ["TD", "TB", "LR", "RL", "BT"])
def test_every_orientation_of_mermaid_is_allowed(orientation):
    assert f"\nflowchart {orientation}\n" in picture(["a"], orientation=orientation)


def test_an_unknown_orientation_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="orientation must be one of TD, TB, LR, RL, BT, not 'down'"):
        picture(["a"], orientation="down")


def test_a_state_colours_its_tasks_and_is_the_second_line():
    shown = picture(["a", "b", "c"], states={0: "failed", 2: "failed"}, details={0: "3 attempts"})
    assert labels(shown) == {"t0": "a\nfailed, 3 attempts", "t1": "b", "t2": "c\nfailed"}
    assert shown.split("\n")[-2:] == [
        "    classDef failed fill:#f9d2d0,stroke:#c62828,color:#000000",
        "    class t0,t2 failed",
    ]


def test_an_unknown_state_is_written_without_a_colour():
    shown = picture(["a"], states={0: "exploded; class t0 x"})
    assert labels(shown) == {"t0": "a\nexploded; class t0 x"}
    assert "\n    class" not in shown


def test_the_tasks_of_one_state_are_not_one_endless_line():
    shown = picture([f"t{task}" for task in range(1000)], states=dict.fromkeys(range(1000), "succeeded"))
    assert max(map(len, shown.split("\n"))) < 300
    coloured = re.findall(r"t\d+", "".join(re.findall(r"^    class (\S+) succeeded$", shown, re.MULTILINE)))
    assert len(set(coloured)) == 1000


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("end", "end"),
        ("a-b", "a-b"),
        ("a b", "a b"),
        ("load_users.v2", "load_users.v2"),
        ('say "hi"', "say #34;hi#34;"),
        ("f(x)[0]{y}", "f#40;x#41;#91;0#93;#123;y#125;"),
        ("<script>", "#60;script#62;"),
        ("#35;", "#35;35#59;"),
        ("&lt;", "#38;lt#59;"),
        ("`bold`", "#96;bold#96;"),  # no Markdown
        ("1. first", "1#46; first"),  # no list
        ("- first", "#45; first"),
        ("    code", "#32;#32;#32;#32;code"),
        ("_it_", "#95;it#95;"),
        ("%%{init: {}}%%", "#37;#37;#123;init#58; #123;#125;#125;#37;#37;"),  # no directive
        ("a\\b", "a#92;b"),
        ("a\\nb", "a#92;#8288;nb"),  # no line break
        ("fa:fa-car", "fa#58;#8288;fa-car"),  # no icon
        ("$$x$$", "#36;#8288;#36;x#36;#8288;#36;"),  # no formula
        ("ﬂ°°60¶ß", "#64258;#8288;°°60#182;#8288;ß"),  # what Mermaid itself writes for #60;
        ("日本 🚀", "日本 🚀"),
    ],
)
def test_nothing_in_a_name_is_syntax(name, label):
    shown = picture([name])
    assert f'    t0["{label}"]' in shown.split("\n")
    assert labels(shown) == {"t0": name}


@settings(deadline=None)
@given(st.lists(printable_names, min_size=1, max_size=8, unique=True), st.data())
def test_any_names_give_unique_ids_their_labels_and_each_edge_once(names, data):
    ids = range(len(names))
    earlier = [st.lists(st.sampled_from(range(task)), unique=True) if task else st.just([]) for task in ids]
    upstream = [data.draw(some) for some in earlier]
    shown = picture(names, upstream)
    assert labels(shown) == {f"t{task}": name for task, name in enumerate(names)}
    assert sorted(edges(shown)) == sorted((above, task) for task, ups in enumerate(upstream) for above in ups)
    assert shown.count("\n") == 3 + len(names) + len(edges(shown))


@settings(deadline=None)
@given(printable_names)
def test_a_label_has_no_punctuation_but_entities_and_single_separators(name):
    label = NODE.fullmatch(picture([name]).split("\n")[-1])[2]
    rest = re.sub(r"#\d+;", "", label)
    assert not re.search(r"[!-+/:-@\[-^`{-~]", rest)
    assert not re.search(r"(?<![0-9A-Za-z])[-._]|[-._](?![0-9A-Za-z])", re.sub(r"#\d+;", " ", label))


@settings(deadline=None)
@given(st.text())
@example("---\ntitle: x\n---")
@example('quote " backslash \\ <a b="c">')
def test_any_title_is_one_quoted_line_of_the_front_matter(title):
    front, line, end, flowchart, *_ = mermaid.render(title, ["a"], [[]], [[0]]).split("\n")
    assert [front, end, flowchart] == ["---", "---", "flowchart TD"]
    quoted = line.removeprefix("title: ")
    assert "<" not in quoted
    expected = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in title)
    assert json.loads(quoted.replace("\\\\", "\\u005c").replace("\\x3c", "<")) == expected


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_no_line_has_a_control_character(title, state, detail):
    shown = mermaid.render(title, ["a"], [[]], [[0]], {0: state}, {0: detail})
    assert all(line.isprintable() for line in shown.split("\n"))
