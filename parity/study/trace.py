"""The record of one stage, step by step: how far everything is apart, and how far the control."""

from dataclasses import asdict, dataclass, field

from parity.study import distances
from parity.study.distances import Distance
from parity.study.step import STATISTICS, Step, statistics, weights

KINDS = ("mean", "variance", "loss", "gradient", "weight")
ALL = "*"  # the loss, which has no tensors


def compare(a: Step, b: Step) -> tuple[dict[str, dict[str, float]], dict[str, Distance]]:
    """(relative distance of each tensor by kind, distance of all gradients and all weights)."""
    sets = {
        "mean": (statistics(a.state, STATISTICS[0]), statistics(b.state, STATISTICS[0])),
        "variance": (statistics(a.state, STATISTICS[1]), statistics(b.state, STATISTICS[1])),
        "gradient": (a.gradients, b.gradients),
        "weight": (weights(a.state), weights(b.state)),
    }
    each = {kind: distances.each(*two) for kind, two in sets.items()}
    each["loss"] = {ALL: distances.gap(a.loss, b.loss)}
    return each, {kind: distances.whole(*two) for kind, two in sets.items()}


def largest(tables: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The largest of the distances that `compare` gave, by kind and tensor."""
    return {
        kind: {key: max(table[kind][key] for table in tables) for key in row}
        for kind, row in tables[0].items()
    }


@dataclass
class Trace:
    """All steps of a stage.

    `tensors`: by kind and tensor, a value a step; `bands`: the same of the controls, the largest
    of all so far. `whole`: by kind, a Distance a step; `controls`: by kind, the smallest and the
    largest relative distance of any control at each step.
    """

    losses: list[tuple[float, float]] = field(default_factory=list)
    tensors: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bands: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    whole: dict[str, list[Distance]] = field(default_factory=dict)
    controls: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, ours: Step, theirs: Step, pairs: list[tuple[Step, Step]]) -> None:
        """One more step: JAX's, PyTorch's, and each control beside the run that it controls."""
        self.losses.append((ours.loss, theirs.loss))
        cross, whole = compare(ours, theirs)
        compared = [compare(*pair) for pair in pairs]
        for kind in KINDS:
            for key, value in cross[kind].items():
                self.tensors.setdefault(kind, {}).setdefault(key, []).append(value)
                band = self.bands.setdefault(kind, {}).setdefault(key, [])
                most = max((each[kind][key] for each, _ in compared), default=0.0)
                band.append(max(most, band[-1] if band else 0.0))
            if kind in whole:
                self.whole.setdefault(kind, []).append(whole[kind])
                sizes = [all_[kind].relative for _, all_ in compared] or [0.0]
            else:
                sizes = [each[kind][ALL] for each, _ in compared] or [0.0]
            self.controls.setdefault(kind, []).append((min(sizes), max(sizes)))

    def last(self) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        """(differences, bands) of the newest step, by kind and tensor."""
        differences, bands = (
            {kind: {key: values[-1] for key, values in table.items()} for kind, table in of.items()}
            for of in (self.tensors, self.bands)
        )
        return differences, bands

    def to_json(self) -> dict:
        """Plain lists, six digits."""
        return {
            "loss": {
                "jax": [digits(a) for a, _ in self.losses],
                "torch": [digits(b) for _, b in self.losses],
            },
            "whole": {
                kind: {
                    name: [digits(asdict(distance)[name]) for distance in series]
                    for name in ("absolute", "relative", "cosine")
                }
                for kind, series in self.whole.items()
            },
            "controls": {
                kind: [[digits(value) for value in pair] for pair in series]
                for kind, series in self.controls.items()
            },
            "tensors": _plain(self.tensors),
            "bands": _plain(self.bands),
        }


def digits(value: float) -> float | None:
    """Six digits, which are more than mean anything; None if it is not finite."""
    text = f"{value:.6g}"
    return None if text in ("inf", "-inf", "nan") else float(text)


def _plain(table: dict[str, dict[str, list[float]]]) -> dict:
    return {
        kind: {key: [digits(value) for value in values] for key, values in tensors.items()}
        for kind, tensors in table.items()
    }
