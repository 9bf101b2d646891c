"""Where images stop on their way through a tree: a rule as a value, and its file in a run folder.

In a tree with exits (`Tree.exits`) a node scores the classes below it. An image stops there if
the largest probability is at least the node's threshold; else it goes on to the child of the most
probable branch. In any tree the second branch may be visited too where it is probable enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.base import reading, writing
from data.base.errors import UserError
from data.tree.hierarchy import Tree

FILE = "stopping.json"
NEVER = 2.0  # a threshold that no probability reaches
_COLDEST, _HOTTEST = 1e-3, 1e3  # scores divided by less, or by more, may leave float32's range


@dataclass(frozen=True)
class Stopping:
    """When images stop.

    Attributes:
      temperatures: by node name, what its scores are divided by; 1 for nodes that it leaves out.
      thresholds: by node name, the probability from which an image stops there; `NEVER` for nodes
        that it leaves out.
      second: the probability from which an image visits its second branch too; None: it never does.

    """

    temperatures: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    second: float | None = None

    def __post_init__(self):
        for name in ("temperatures", "thresholds"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def temperature(self, node: str) -> float:
        """That of the node called `node`."""
        return self.temperatures.get(node, 1.0)

    def threshold(self, node: str) -> float:
        """That of the node called `node`."""
        return self.thresholds.get(node, NEVER)


def need_one_branch(rule: Stopping, what: str) -> None:
    """UserError if by the rule images may visit two branches, which `what` does not know."""
    if rule.second is not None:
        raise UserError(
            f"{what} knows no second branch; take {FILE} out of the run folder and run evaluate, "
            "or make it anew with evaluate --beam 1"
        )


def write(folder: Path, stopping: Stopping, about: dict[str, Any]) -> None:
    """Store a rule in a run folder. `about`: what it was made for, and what was seen then."""
    value = {
        "temperatures": dict(stopping.temperatures),
        "thresholds": dict(stopping.thresholds),
        "second": stopping.second,
        "about": about,
    }
    writing.write_json(folder / FILE, value)


def read(folder: Path, tree: Tree) -> Stopping:
    """The rule of a run folder; one by which images go on to the end if it has none.

    UserError if its file is damaged or of another tree.
    """
    file = folder / FILE
    if not file.exists():
        return Stopping()
    text = reading.content(file, reading.MOST_JSON)
    try:
        return _of_json(reading.json_text(text), tree)
    except (ValueError, RecursionError) as error:
        again = "evaluate --stop-at" if tree.exits else "evaluate --beam 2"
        raise UserError(
            f"{file} does not say where images stop ({error}); remove it, and make it anew with "
            f"{again} if it is still wanted"
        ) from None


def _of_json(value: Any, tree: Tree) -> Stopping:
    """The rule that a file holds. ValueError if it is none of this tree's."""
    form = {"temperatures": {str: float}, "thresholds": {str: float}, "second": (float, None)}
    reading.need(value, form)
    rule = Stopping(value["temperatures"], value["thresholds"], value["second"])
    strange = {*rule.temperatures, *rule.thresholds} - {tree.names[n] for n in tree.nodes}
    if strange:
        raise ValueError(f"the tree has no node {min(strange)!r:.80}")
    for name, heat in rule.temperatures.items():
        if not _COLDEST <= heat <= _HOTTEST:
            raise ValueError(
                f"the temperature of {name} is {heat:g}; it must be {_COLDEST:g} to {_HOTTEST:g}"
            )
    for name, share in rule.thresholds.items():
        if not 0 <= share <= 1 and share != NEVER:
            raise ValueError(
                f"the threshold of {name} is {share:g}; it must be 0 to 1, or {NEVER:g} for never"
            )
    if rule.second is not None and not 0 <= rule.second <= 1:
        raise ValueError(f"second is {rule.second:g}; it must be 0 to 1, or null")
    if (rule.thresholds or rule.temperatures) and not tree.exits:
        raise ValueError("this tree's nodes score groups; an image cannot stop before a leaf")
    return rule
