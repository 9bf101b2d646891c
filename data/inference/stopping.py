"""Where images stop on their way through a tree: a rule as a value, and its file in a run folder.

In a tree with exits (`Tree.exits`) a node scores the classes below it. An image stops there if
the largest probability is at least the node's threshold; else it goes on to the child of the most
probable branch. In any tree the second branch may be visited too where it is probable enough.
"""

import math
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
            f"{what} knows no second branch; take {FILE} out of the run folder, or make it anew "
            "with evaluate --beam 1"
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
    value = reading.json_file(file)
    try:
        form = {"temperatures": {str: float}, "thresholds": {str: float}, "second": (float, None)}
        reading.need(value, form)
        rule = Stopping(value["temperatures"], value["thresholds"], value["second"])
        strange = {*rule.temperatures, *rule.thresholds} - {tree.names[n] for n in tree.nodes}
        if strange:
            raise ValueError(f"the tree has no node {min(strange)!r:.80}")
        if not all(t > 0 and math.isfinite(t) for t in rule.temperatures.values()):
            raise ValueError("a temperature must be above 0")
        shares = [*rule.thresholds.values(), *([] if rule.second is None else [rule.second])]
        if not all(0 <= share <= NEVER for share in shares):
            raise ValueError("a probability must be 0 to 1")
        if rule.thresholds and not tree.exits:
            raise ValueError("this tree's nodes score groups; an image cannot stop before a leaf")
    except ValueError as error:
        raise UserError(
            f"{file} says not where images stop ({error}); remove it, or make it "
            "anew with evaluate --stop-at"
        ) from None
    return rule
