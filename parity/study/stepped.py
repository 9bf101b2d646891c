"""What follows from a stepwise study, in sentences."""

from typing import Any

from data.base.words import plural
from parity.study import bounds

NAMES = {"jax": "JAX", "torch": "PyTorch"}
CAUSES = {
    "evaluation": "In eval mode the network gives other scores.",
    "rate": "The learning rate itself differs.",
    "input": "What the network is given differs: the batch, its augmentation, or an ancestor.",
    "count": "A counter differs.",
    "forward": "The layer itself gives another output.",
    "statistics": "All layers give the same outputs; what is stored of the batch's statistics "
    "differs.",
    "scores": "All layers alone give the same outputs; the scores differ.",
    "loss": "All layers give the same outputs; the loss made of them differs.",
    "backward": "Outputs, statistics and loss agree; the gradients do not.",
    "update": "Outputs, statistics, loss and gradients agree; the optimiser's update does not.",
}


def all_of(values: list[dict[str, Any]]) -> dict[str, int]:
    """Of all seeds: steps trained, judged, in agreement in every type, and open in some."""
    return {
        "steps": sum(value["steps"] for value in values),
        "judged": sum(value["judged"] for value in values),
        "agree": sum(value["agree"] for value in values),
        "open": sum(value["open"] for value in values),
        "beyond": sum(value["beyond"] for value in values),
    }


def first_beyond(values: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first step that is beyond rounding; one that float64 shows before one of float32."""
    found = [
        one["first"] | {"dtype": dtype, "seed": value["seed"]}
        for value in values
        for dtype, one in value["types"].items()
        if one["first"]
    ]
    return min(
        found, key=lambda one: (one["dtype"] != "float64", one["seed"], one["total"]), default=None
    )


def headline(values: list[dict[str, Any]]) -> str:
    """The answer in a sentence."""
    count = all_of(values)
    first = first_beyond(values)
    if first:
        who = NAMES.get(first["framework"], "")
        what = (
            f"{who}'s float32 is further from float64 than rounding allows"
            if who
            else ("The frameworks differ")
        )
        return (
            f"{what}: {place(first)}. {count['beyond']:,} of {count['judged']:,} steps are beyond "
            "rounding."
        )
    kinds = " and ".join(sorted(values[0]["types"], reverse=False))
    whole = count["judged"] == count["steps"]
    of = "this training" if len(values) == 1 else f"these {len(values)} trainings"
    if whole and not count["open"]:
        return f"All {count['steps']:,} steps of {of} agree to rounding, in {kinds}."
    judged = (
        f"all {count['steps']:,} steps"
        if whole
        else f"{count['judged']:,} steps judged of the {count['steps']:,}"
    )
    if not count["open"]:
        return f"All {judged} of {of} agree to rounding, in {kinds}."
    return (
        f"Of {judged} of {of} {count['agree']:,} agree to rounding, in {kinds}, and "
        f"{count['open']:,} cannot be told; none is beyond it."
    )


def place(first: dict[str, Any]) -> str:
    """Where something is beyond rounding: stage, step, what, by how much."""
    error = "not finite" if first["error"] is None else f"{first['error']:.1e}"
    where = first.get("first") or f"{bounds.WORDS[first['kind']]} {first['tensor']}".strip(" *")
    seen = f"{bounds.WORDS[first['kind']]} {first['tensor']}".strip(" *")
    named = "" if where == seen else f", seen in the {seen}"
    return (
        f"{first['stage']}, step {first['step']}: {where}{named} ({error} off, where rounding "
        f"allows {first['allowed']:.1e})"
    )


def lines_of(value: dict[str, Any]) -> list[str]:
    """A seed's training."""
    lines = [
        f"Seed {value['seed']}: PyTorch trained {plural(value['steps'], 'step')} in "
        f"{plural(len(value['stages']), 'stage')}; "
        + (
            "each was repeated."
            if value["every"] == 1
            else f"one in {value['every']} of each was repeated, {value['judged']:,} in all."
        )
    ]
    for dtype, one in value["types"].items():
        lines += _of_type(dtype, one, value["judged"])
    linked = value["links"]
    if linked["checked"]:
        lines.append(
            f"Where a piece of the training ended the next began, bit for bit, in "
            f"{linked['equal']:,} of {linked['checked']:,} places: what was judged is the training "
            "itself."
        )
    return lines


def _of_type(dtype: str, one: dict[str, Any], judged: int) -> list[str]:
    lines = []
    if one["first"]:
        cause = CAUSES.get(one["first"].get("cause", ""), "")
        lines.append(
            f"{dtype}: **{one['beyond']:,} of {judged:,} steps beyond rounding**, the first "
            f"{place(one['first'])}. {cause}".rstrip()
        )
    else:
        told = f", {one['open']:,} cannot be told" if one["open"] else ""
        lines.append(f"{dtype}: **{one['agree']:,} of {judged:,} steps agree to rounding**{told}.")
    beyond = one["by_model"]
    was = "was" if beyond == 1 else "were"
    lines.append(
        f"{dtype}: {plural(beyond, 'step')} {was} beyond the floor and {was} held against the "
        "whole rounding model."
    )
    return lines


def rule() -> list[str]:
    """How the stepwise design judges."""
    return [
        "PyTorch trains, in float32. JAX repeats each step from PyTorch's state before it: "
        "weights, statistics, the optimiser's moments, the batch with its augmentation, the "
        "dropout masks. So nothing grows from step to step, and each is judged alone.",
        "float32: each framework against PyTorch's float64 step from the same state. float64: the "
        "two against each other, with twice what one may be off by. Judged are learning rate, "
        "input, counters, statistics, scores, loss, gradients, moments and new weights; at the "
        "first step of each piece of at most 20 also the scores in eval mode.",
        "Allowed is 4 times what the rounding model makes of a tensor: a random error of u sqrt(k) "
        "in every sum of k terms. First a floor, the errors of the last sum alone (of scores: of "
        "all layers, unamplified; of a loss: of the scores too); what is beyond it is held against "
        "the whole model, with random errors in every layer, and may take the other side of a "
        "ReLU's or a max pool's edge where float64 lies within rounding of it.",
        "Nearest to its bound: 100 % is the bound (the floor, where that was enough). Other side "
        "of an edge: the steps with activations that are not on float64's side. Moments and "
        "weights are held against what PyTorch's float64 optimiser makes of the step's gradients.",
    ]


def limits() -> list[str]:
    """What it does not show."""
    return [
        "What both frameworks' code share is not tested: the batches, the augmentation's draws, "
        "the recipe. Nor is what only a training of its own draws: initial weights, dropout masks.",
        "A fault smaller than rounding is not seen in float32, and in float64 only beyond its "
        "bound.",
        "Validation, likelihoods and grouping are PyTorch's here; the coupled design compares "
        "them.",
    ]
