"""What `evaluate` does for early stopping: `--stop-at`, `--beam` and `--curve`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.base import tables
from data.base.errors import UserError
from data.images.datasets import Examples
from data.inference import curve, stopping
from data.inference.curve import Asked, Point
from data.run import results
from data.run.options import EvaluateOptions
from data.run.results import Costs
from data.training.framework import Framework, M
from data.tree.hierarchy import Tree

_ROWS = 16  # of a printed curve


@dataclass(frozen=True)
class Known:
    """What validation images say: the points of all rules that were tried, and nodes' costs."""

    points: tuple[Point, ...]
    costs: Costs


def need_use(folder: Path, tree: Tree, options: EvaluateOptions) -> None:
    """UserError for flags that this tree has no use for."""
    if options.stop_at is not None and not tree.exits:
        raise UserError(
            f"--stop-at is for trees with exits; the nodes of {folder} score groups, so no image "
            "can stop before a leaf (--beam 2 is for them too)"
        )
    if len(tree.nodes) == 1 and (options.stop_at, options.beam, options.curve) != (
        None,
        None,
        False,
    ):
        raise UserError(f"{folder} is one network: no image can stop early or go two ways")


def known(
    framework: Framework[M], model: M, validation: Examples, options: EvaluateOptions
) -> Known | None:
    """What validation images say of all rules, if anything is to be set or drawn."""
    if options.stop_at is None and options.beam is None and not options.curve:
        return None
    costs = framework.costs(model)
    asked = Asked(model.tree, framework.scores(model, validation.images), validation.labels)
    tried = curve.rules(asked, both_ways=options.beam == 2)
    return Known(tuple(curve.point(asked, rule, costs) for rule in tried), costs)


def with_rule(
    folder: Path, model: M, found: Known | None, options: EvaluateOptions, *, store: bool
) -> M:
    """The model with the rule that the flags ask for, which is stored in its run folder."""
    if found is None or (options.stop_at is None and options.beam is None):
        return model
    best = curve.frontier(found.points)
    wanted = best[-1] if options.stop_at is None else curve.chosen(found.points, options.stop_at)
    about = {"stop_at": options.stop_at, "beam": options.beam, "validation": curve.to_json(wanted)}
    if store:
        if wanted.rule != model.stopping:  # predictions by the rule before are none of this one
            results.forget_predictions(folder)
        stopping.write(folder, wanted.rule, about)
    return replace(model, stopping=wanted.rule)


def drawn(
    framework: Framework[M],
    model: M,
    found: Known | None,
    examples: Examples,
    options: EvaluateOptions,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The curve: what the best rules give on validation images, and on those of `--split`."""
    if found is None or not options.curve:
        return []
    asked = Asked(model.tree, framework.scores(model, examples.images), examples.labels)
    best = curve.frontier(found.points)
    here = (curve.point(asked, each.rule, found.costs) for each in best)
    return [(curve.to_json(a), curve.to_json(b)) for a, b in zip(best, here, strict=True)]


def in_words(mean: dict[str, Any]) -> str:
    """What the mean image cost, and where images ended."""
    ends = ", ".join(f"{name} {tables.percent(share)}" for name, share in mean["last"].items())
    return (
        f"mean image {mean['multiply_adds'] / 1e6:.2f} M multiply-adds, "
        f"{mean['parameters'] / 1e6:.3f} M parameters; ended at {ends}"
    )


def table(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], part: str) -> list[str]:
    """The curve for people; of many points some, the first and the last among them."""
    step = max(1, -(-len(pairs) // _ROWS))
    shown = [*pairs[:-1:step], pairs[-1]]
    rows = []
    for validation, here in shown:
        shares = [share for share in validation["thresholds"].values() if share != stopping.NEVER]
        rows.append(
            (
                f"{shares[0]:.3f}" if shares else "never",
                "" if validation["second"] is None else f"{validation['second']:.2f}",
                f"{here['multiply_adds'] / 1e6:.2f}",
                tables.percent(validation["accuracy"]),
                tables.percent(here["accuracy"]),
            )
        )
    head = ("stops from", "both ways from", "M mult-adds", "validation", part)
    return [f"  {line}" for line in tables.text(head, rows, width=98).splitlines()]
