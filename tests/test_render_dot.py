"""The Graphviz picture: whatever a task is called, its label says that, and nothing else is drawn."""

import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.render import dot

NAMES = [
    *["end", "a-b", "a b", "node", "digraph", 'say "hi"', "trailing \\", "\\N and \\G", "two\\nlines", "\\"],
    *["&amp;", "&lt;b&gt;", "<b>bold</b>", "a -> b", "x; y", "# no comment", "/* none */", "{a|b}"],
    *["日本 🚀", "x" * 200],
]
printable_names = st.text(min_size=1, max_size=40).map(
    lambda name: "".join(c for c in name if c.isprintable()) or "name"
)
NODE = re.compile(r'    (t\d+) \[label="((?:[^"\\]|\\.)*)"(.*)\];')


def picture(names, upstream=None, **kwargs):
    """The picture of a graph in which each task depends on earlier ones only."""
    order = [[task] for task in range(len(names))]
    return dot.render("etl", names, upstream or [[] for _ in names], order, **kwargs)


def labels(shown):
    """The text of each label as Graphviz draws it, by id."""
    found = {}
    for line in shown.split("\n"):
        if node := NODE.fullmatch(line):
            text = re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], node[2])
            found[node[1]] = text.replace("&amp;", "&")
    return found


def edges(shown):
    return [(int(a), int(b)) for a, b in re.findall(r"^    t(\d+) -> t(\d+);$", shown, re.MULTILINE)]


def test_a_diamond_has_four_tasks_and_four_edges():
    """extract >> [clean, count] >> load"""
    shown = picture(["extract", "clean", "count", "load"], [[], [0], [0], [1, 2]])
    assert shown.startswith("digraph dag {\n    rankdir=LR;\n")
    assert shown.endswith("\n}")
    assert labels(shown) == {"t0": "extract", "t1": "clean", "t2": "count", "t3": "load"}
    assert edges(shown) == [(0, 1), (0, 2), (1, 3), (2, 3)]


def test_no_task_is_an_empty_dag():
    assert 'label="Empty DAG"' in dot.render("etl", [], [], [])


@pytest.mark.parametrize("orientation", ["TB", "LR", "BT", "RL"])
def test_every_orientation_of_graphviz_is_allowed(orientation):
    assert f"    rankdir={orientation};\n" in picture(["a"], orientation=orientation)


def test_an_unknown_orientation_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="orientation must be one of TB, LR, BT, RL, not 'TD'"):
        picture(["a"], orientation="TD")


def test_a_state_colours_its_task_and_is_the_second_line():
    shown = picture(["a", "b"], states={0: "failed"}, details={0: "3 attempts"})
    assert labels(shown) == {"t0": "a\nfailed, 3 attempts", "t1": "b"}
    assert 't0 [label="a\\nfailed, 3 attempts", fillcolor="#f9d2d0", color="#c62828"];' in shown


def test_an_unknown_state_is_written_without_a_colour():
    assert '    t0 [label="a\\nexploded"];' in picture(["a"], states={0: "exploded"}).split("\n")


@pytest.mark.parametrize("name", NAMES)
def test_the_label_gives_the_name_back(name):
    assert labels(picture([name])) == {"t0": name}


@settings(deadline=None)
@given(st.lists(printable_names, min_size=1, max_size=8, unique=True), st.data())
def test_any_names_give_unique_ids_their_labels_and_each_edge_once(names, data):
    ids = range(len(names))
    earlier = [st.lists(st.sampled_from(range(task)), unique=True) if task else st.just([]) for task in ids]
    upstream = [data.draw(some) for some in earlier]
    shown = picture(names, upstream)
    assert labels(shown) == {f"t{task}": name for task, name in enumerate(names)}
    assert sorted(edges(shown)) == sorted((above, task) for task, ups in enumerate(upstream) for above in ups)
    assert shown.count("\n") == 5 + len(names) + len(edges(shown)) - 1


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_no_line_has_a_control_character_and_no_quote_is_open(title, state, detail):
    shown = dot.render(title, ["a"], [[]], [[0]], {0: state}, {0: detail})
    assert all(line.isprintable() for line in shown.split("\n"))
    assert all(re.fullmatch(r'(?:[^"]|"(?:[^"\\]|\\.)*")*', line) for line in shown.split("\n"))


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_shows_the_names_and_the_title_as_they_are():
    upstream = [[task - 1] if task else [] for task in range(len(NAMES))]
    order = [[task] for task in range(len(NAMES))]
    shown = dot.render('a "title" \\G &lt;', NAMES, upstream, order, {0: "failed"}, {0: "3 attempts"})
    drawn = subprocess.check_output(["dot", "-Tsvg"], input=shown.encode(), timeout=50)
    svg = "{http://www.w3.org/2000/svg}"
    texts, arrows, title = {}, [], None
    for group in ElementTree.fromstring(drawn).iter(f"{svg}g"):
        lines = [(line.text or "").replace("\xa0", " ") for line in group.findall(f"{svg}text")]
        key = group.findtext(f"{svg}title")
        if group.get("class") == "node":
            texts[key] = lines
        elif group.get("class") == "edge":
            arrows.append(key)
        else:
            title = lines
    assert title == ['a "title" \\G &lt;']
    expected = {f"t{task}": [name] for task, name in enumerate(NAMES)}
    assert texts == expected | {"t0": ["end", "failed, 3 attempts"]}
    assert sorted(arrows) == sorted(f"t{task - 1}->t{task}" for task in range(1, len(NAMES)))
