"""Write a graph in Graphviz's DOT language. Knows DOT's quoting; does not know where the graph comes from."""

from __future__ import annotations

from ._labels import LOOKS, caption, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ORIENTATIONS = ("TB", "LR", "BT", "RL")


def render(
    title: str,
    names: Sequence[str],
    upstream: Sequence[Sequence[int]],
    generations: Sequence[Sequence[int]],
    states: Mapping[int, str] | None = None,
    details: Mapping[int, str] | None = None,
    *,
    orientation: str = "LR",
) -> str:
    """Return a ``digraph`` in DOT, for ``dot -Tsvg`` and its like.

    Task *i* is the DOT node ``t<i>`` whatever its name is; the name is only its label, and its state and
    detail are the label's second line.

    Args:
        title: What is written above the picture.
        names: The tasks' names; a task's id is its index.
        upstream: For each id, the ids that it depends on.
        generations: The topological generations, as lists of ids; the tasks are written in this order.
        states: State by id, where known. It colours the task.
        details: A short text by id, such as a duration.
        orientation: The way the arrows point: TB (down), LR (right), BT (up) or RL (left).

    Raises:
        ValueError: *orientation* is none of these.

    >>> print(render("etl", ["extract", "load"], [[], [0]], [[0], [1]], {0: "succeeded"}, {0: "1.20s"}))
    digraph dag {
        rankdir=LR;
        label="etl"; labelloc=t; fontname="Helvetica";
        node [shape=box, style="rounded,filled", fillcolor="#ffffff", fontname="Helvetica"];
        t0 [label="extract\\nsucceeded, 1.20s", fillcolor="#d3f0d9", color="#2e7d32"];
        t1 [label="load"];
        t0 -> t1;
    }
    """
    if orientation not in ORIENTATIONS:
        raise ValueError(f"orientation must be one of {', '.join(ORIENTATIONS)}, not {orientation!r}")
    lines = [
        "digraph dag {",
        f"    rankdir={orientation};",
        f'    label="{_escaped(title)}"; labelloc=t; fontname="Helvetica";',
        '    node [shape=box, style="rounded,filled", fillcolor="#ffffff", fontname="Helvetica"];',
    ]
    if not names:
        lines.append('    empty [label="Empty DAG", shape=plaintext, style=""];')
    for task in (task for generation in generations for task in generation):
        state = None if states is None else states.get(task)
        below = caption(state, None if details is None else details.get(task))
        label = _escaped(names[task]) + (f"\\n{_escaped(below)}" if below else "")
        colours = ""
        if state in LOOKS:
            _, fill, line = LOOKS[state]
            colours = f', fillcolor="{fill}", color="{line}"'
        lines.append(f'    t{task} [label="{label}"{colours}];')
    lines += [
        f"    t{above} -> t{task};"
        for generation in generations
        for task in generation
        for above in upstream[task]
    ]
    return "\n".join([*lines, "}"])


def _escaped(text: str) -> str:
    # In a label, Graphviz reads \N, \G, \l ... as its own escapes and &lt; as an HTML entity.
    return printable(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
