"""Write a graph as a Mermaid flowchart. Knows Mermaid's quoting; does not know where the graph comes from."""

from __future__ import annotations

from ._labels import LOOKS, caption, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ORIENTATIONS = ("TD", "TB", "LR", "RL", "BT")

_IDS_A_LINE = 50

# Mermaid reads a label several times: for directives (%%{), entities (#35;), Markdown ("1. x", `x`, _x_)
# and HTML. So ASCII punctuation becomes an entity, except the comma, and what means nothing between two
# letters or digits. Inside Mermaid "ﬂ°°35¶ß" stands for "#35;", hence ﬂ and ¶.
_PUNCTUATION = frozenset("!\"#$%&'()*+-./:;<=>?@[\\]^_`{|}~ﬂ¶")
_JOINERS = frozenset("-._")

# When the entities are decoded, it still looks for line breaks (\n), icons (fa:fa-car), formulas ($$x$$) and
# its own entities. A word joiner, invisible and in no printable name, keeps these pairs apart.
_PAIRS = frozenset(["\\n", "\\N", ":f", "$$", "ﬂ°", "¶ß"])
_WORD_JOINER = "#8288;"


def render(
    title: str,
    names: Sequence[str],
    upstream: Sequence[Sequence[int]],
    generations: Sequence[Sequence[int]],
    states: Mapping[int, str] | None = None,
    details: Mapping[int, str] | None = None,
    *,
    orientation: str = "TD",
) -> str:
    """Return a Mermaid ``flowchart``, which GitHub, GitLab and many editors draw inside Markdown.

    Task *i* is the Mermaid node ``t<i>`` whatever its name is; the name is only its label, and its state
    and detail are the label's second line. Mermaid itself refuses to draw more than 500 edges or 50,000
    characters unless the page that shows it raises ``maxEdges`` and ``maxTextSize``.

    Args:
        title: What is written above the picture.
        names: The tasks' names; a task's id is its index.
        upstream: For each id, the ids that it depends on.
        generations: The topological generations, as lists of ids; the tasks are written in this order.
        states: State by id, where known. It colours the task.
        details: A short text by id, such as a duration.
        orientation: The way the arrows point: TD or TB (down), LR (right), RL (left) or BT (up).

    Raises:
        ValueError: *orientation* is none of these.

    >>> print(render("etl", ["extract", "load"], [[], [0]], [[0], [1]], {0: "succeeded"}, {0: "1.20s"}))
    ---
    title: "etl"
    ---
    flowchart TD
        t0["extract<br/>succeeded, 1.20s"]
        t1["load"]
        t0 --> t1
        classDef succeeded fill:#d3f0d9,stroke:#2e7d32,color:#000000
        class t0 succeeded
    """
    if orientation not in ORIENTATIONS:
        raise ValueError(f"orientation must be one of {', '.join(ORIENTATIONS)}, not {orientation!r}")
    lines = ["---", f'title: "{_yaml_escaped(title)}"', "---", f"flowchart {orientation}"]
    if not names:
        lines.append('    empty["Empty DAG"]')
    coloured: dict[str, list[str]] = {}
    for task in (task for generation in generations for task in generation):
        state = None if states is None else states.get(task)
        below = caption(state, None if details is None else details.get(task))
        label = _escaped(names[task]) + (f"<br/>{_escaped(below)}" if below else "")
        lines.append(f'    t{task}["{label}"]')
        if state in LOOKS:
            coloured.setdefault(state, []).append(f"t{task}")
    lines += [
        f"    t{above} --> t{task}"
        for generation in generations
        for task in generation
        for above in upstream[task]
    ]
    for state, ids in coloured.items():
        _, fill, line = LOOKS[state]
        lines.append(f"    classDef {state} fill:{fill},stroke:{line},color:#000000")
        for start in range(0, len(ids), _IDS_A_LINE):
            lines.append(f"    class {','.join(ids[start : start + _IDS_A_LINE])} {state}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    text = printable(text)
    parts = []
    for before, char, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if char == " ":
            plain = before != " " and after != " "
        elif char in _JOINERS:
            plain = (before + after).isalnum() and (before + after).isascii()
        else:
            plain = char not in _PUNCTUATION
        parts.append(char if plain else f"#{ord(char)};")
        if char + after in _PAIRS:
            parts.append(_WORD_JOINER)
    return "".join(parts)


def _yaml_escaped(text: str) -> str:
    # Mermaid rewrites the attributes of what looks like an HTML tag, in the front matter too: hence "<".
    return printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("<", "\\x3c")
