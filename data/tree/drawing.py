"""A tree drawn in text, a line a node, with the classes' names."""

import textwrap
from collections.abc import Iterator, Sequence

from data.tree.hierarchy import ROOT, Node, Tree


def draw(tree: Tree, class_names: Sequence[str], width: int = 100) -> str:
    """Each node with what it tells apart: classes, and groups of them in braces.

    `width`: columns; longer lines are folded.

    Example:
      >>> from data.tree import hierarchy
      >>> tree = hierarchy.regroup(hierarchy.bare(4), (), ((0,), (1, 3), (2,)))
      >>> print(draw(tree, ("ship", "cat", "car", "dog")))
      root ─ ship │ {cat dog} │ car
      └─ sg2 ─ cat │ dog

    """
    return "\n".join(_lines(tree, class_names, ROOT, "", "", width))


def _lines(
    tree: Tree, names: Sequence[str], node: Node, first: str, rest: str, width: int
) -> Iterator[str]:
    """The lines of a node and those below it. `first`, `rest`: what its lines begin with."""
    children = tree.children(node)
    outputs = [_output(tree, names, (*node, output)) for output in range(len(tree.branches(node)))]
    inner = f"{rest}│  " if children else f"{rest}   "
    yield from textwrap.wrap(
        f"{tree.names[node]} ─ {' │ '.join(outputs)}",
        width=width,
        initial_indent=first,
        subsequent_indent=f"{inner}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    for child in children:
        last = child == children[-1]
        mine, under = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _lines(tree, names, child, rest + mine, rest + under, width)


def _output(tree: Tree, names: Sequence[str], child: Node) -> str:
    """A class, or a group of them."""
    members = " ".join(names[label] for label in tree.members(child))
    return members if child in tree.paths else f"{{{members}}}"
