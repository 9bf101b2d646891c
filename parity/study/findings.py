"""What follows from a study, in sentences, and how far it reaches."""

from typing import Any

from data.base.words import plural
from parity.study import overview, stepped
from parity.study.overview import size, told
from parity.study.verdict import WORDS

NAMES = {"jax": "JAX", "torch": "PyTorch"}


def headline(value: dict[str, Any]) -> str:
    """The answer in a line. The frameworks "differ" only where float64 says so."""
    if value["stepwise"]:
        return stepped.headline(value["stepwise"])
    if found := [c for c in value["coupled"] if c["finding"]]:
        first = min(found, key=lambda c: (_lossy(c), c["dtype"] != "float64", c["finding"]["step"]))
        return f"{_what(first)}: {place(first)}."
    parts = []
    if value["coupled"]:
        kinds = " and ".join(sorted({c["dtype"] for c in value["coupled"]}, reverse=True))
        parts.append(f"coupled, no difference beyond rounding was found in {kinds}")
    if both := value["independent"]:
        c = both["comparison"]
        size = (
            f"JAX {c['difference']:+.2f} points ({c['interval'][0]:+.2f} to "
            f"{c['interval'][1]:+.2f})"
        )
        if c["equivalent"]:
            within = plural(c["margin"], "point", "g")
            parts.append(f"mean accuracies are equivalent within {within}: {size}")
        elif c["different"]:
            parts.append(f"mean accuracies differ: {size}")
        else:
            parts.append(f"whether mean accuracies differ is undecided: {size}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _lossy(coupled: dict[str, Any]) -> str:
    """The framework whose float32 alone is at fault, or nothing."""
    return coupled["finding"].get("framework", "")


def _what(coupled: dict[str, Any]) -> str:
    if name := _lossy(coupled):
        return (
            f"In float64 the frameworks agree, but {NAMES[name]}'s float32 is further from it than "
            "rounding allows"
        )
    return "The frameworks differ"


def place(coupled: dict[str, Any]) -> str:
    """Where a finding is: stage, step, what."""
    f = coupled["finding"]
    size = f"{f['difference']:.1e}" if f["difference"] is not None else "not finite"
    seen = (
        ""
        if f["cause"] != "forward"
        else (
            f" for the same weights and batch (seen in the {WORDS[f['kind']]}, {size}, allowed "
            f"{f['allowed']:.1e})"
        )
    )
    if not seen and _lossy(coupled):
        seen = f", {size} from the float64 truth where rounding allows {f['allowed']:.1e}"
    elif not seen:
        seen = f", {size} apart where the control allows {f['allowed']:.1e}"
    where = f"in {f['layer']}" if f["layer"] else ""
    return f"{f['stage']}, step {f['step']}, {where}: {f['first']}{seen}".replace(", :", ":")


CAUSES = {
    "forward": "The layer itself gives another output.",
    "statistics": "All layers give the same outputs; what is stored of the batch's statistics "
    "differs.",
    "loss": "All layers give the same outputs; the loss made of them differs.",
    "backward": "Outputs, statistics and loss agree; the gradients do not.",
    "update": "Outputs, statistics, loss and gradients agree; the optimiser's update does not.",
}


def of_coupled(coupled: dict[str, Any]) -> list[str]:
    """A coupled pair of runs: what its rows in the tables say, and what they do not show."""
    lines = []
    stages, runs = coupled["stages"], len(coupled["runs"]) - 2
    steps = sum(stage["steps"] for stage in stages)
    what = f"{coupled['dtype']}, seed {coupled['seed']}: "
    what += f"{plural(steps, 'step')} in {plural(len(stages), 'stage')}"
    if coupled["finding"]:
        lines.append(
            f"{what}. **Beyond the control**: {place(coupled)}. "
            f"{CAUSES[coupled['finding']['cause']]}"
        )
    else:
        lines.append(f"{what}, {plural(runs, 'control run')}: **nothing beyond the control**.")
    if lost := [stage["stage"] for stage in stages if not told(stage)]:
        lines.append(
            f"{coupled['dtype']}, {', '.join(lost)}: at the end the controls have come so far "
            "apart that a difference of any size would pass for rounding. By then this type can "
            "show nothing."
        )
    for stage in stages:
        lines += _looked_at(stage)
    return lines


def _looked_at(stage: dict[str, Any]) -> list[str]:
    """The first step that another from the same state cleared, the first that float64 cleared."""
    alone = [jump for jump in stage["jumps"] if "truth" not in jump]
    cleared = [jump for jump in stage["jumps"] if "truth" in jump]
    lines = [_jump(stage["stage"], alone[0])] if alone else []
    return lines + ([_cleared(stage["stage"], cleared)] if cleared else [])


def _jump(stage: str, jump: dict[str, Any]) -> str:
    return (
        f"{stage}, step {jump['step']}: {_named(jump)} came {size(jump['difference'])} apart "
        f"where the control allows {size(jump['allowed'])}. It is rounding that grew by a jump: "
        f"from the same state the two frameworks take this step {size(jump['same_state'])} apart, "
        "no further than lowest bits of the weights explain."
    )


def _cleared(stage: str, jumps: list[dict[str, Any]]) -> str:
    jump = jumps[0]
    truth = jump["truth"]
    errors = " and ".join(
        f"{NAMES[name]}'s is {size(error)} (rounding may take it {size(truth['allowed'][name])})"
        for name, error in truth["errors"].items()
    )
    taken = " and ".join(f"{NAMES[name]}'s {n}" for name, n in truth["sides"].items() if n)
    sides = (
        f"; {_are(truth['undecided'])} so near an edge of a ReLU or a max pool that "
        f"rounding decides their side, which was another than float64's in {taken} of them"
    )
    end = (
        f" More units than are tried ({truth['undecided']}) lie within rounding of an edge: "
        "whether float32 is right cannot be told at this step."
        if truth["open"]
        else f" From it {errors}, on the sides that each took{sides if taken else ''}."
    )
    others = f" {len(jumps)} steps of this stage were cleared like that." if len(jumps) > 1 else ""
    return (
        f"{stage}, step {jump['step']}: {_named(jump)} came {size(jump['difference'])} apart in "
        f"float32 from the same state too. In float64 the frameworks take that very step "
        f"{size(truth['apart'])} apart.{end}{others}"
    )


def _named(jump: dict[str, Any]) -> str:
    return f"{WORDS[jump['kind']]} {jump['tensor']}".strip(" *")


def _are(units: int) -> str:
    return f"{plural(units, 'unit')} {'is' if units == 1 else 'are'}"


def columns() -> list[str]:
    """What the columns of the coupled design's tables mean."""
    return [
        "Apart: the two frameworks' weights, as a share of their length; likewise a control and "
        "the run that it repeats. Would be seen from: the smallest difference of any tensor's "
        "weights that the rule would have found. Right and equal: answers on test images.",
        "Groups: made of each framework's own likelihoods; the last column is how far the nearest "
        "pair of classes is from the threshold.",
    ]


def of_independent(value: dict[str, Any]) -> list[str]:
    """The independent design: what the tables do not show."""
    c = value["comparison"]
    lines = [
        f"With these spreads {_seeds(c['seeds_equivalence'])} a framework would show equivalence "
        f"with power {c['power']:g} if the means are equal, and {_seeds(c['seeds_difference'])} "
        f"would show a true difference of {plural(c['margin'], 'point', 'g')}."
    ]
    lone = [overview.PAIRS[name] for name, row in value["trees"].items() if not row["split"]]
    if lone:
        lines.append(
            f"Groups of {', '.join(lone)}: one group of all classes, so there is nothing to "
            "compare."
        )
    return lines


def of_devices(value: dict[str, Any]) -> list[str]:
    """The precisions: how the table is to be read."""
    lines = ["The error of scores is a share of the largest, against float64 on the CPU."]
    return lines + ([f"{value['note'][0].upper()}{value['note'][1:]}."] if value["note"] else [])


def limits(value: dict[str, Any]) -> list[str]:
    """What this does not show."""
    recipe = value["recipe"]
    *others, last = sorted(
        {
            recipe[row][f"{kind}_phase"]["epochs"]
            for row in ("root", "others")
            for kind in ("class", "group")
        }
    )
    before = "".join(f"{count} or " for count in others)
    lines = [
        f"One dataset ({value['dataset']}), one backbone ({value['backbone']}), recipe "
        f"{recipe['name']} with {before}{plural(last, 'epoch')} a phase, batches of "
        f"{recipe['batch_size']}"
        + (f", at most {recipe['limit']:,} images of each split" if recipe["limit"] else "")
        + f", {'the root alone' if value['nodes'] == 'root' else 'the whole tree'}."
    ]
    if value["coupled"]:
        lines += [
            "A difference smaller than the stated resolution, or one that needs more steps to "
            "show, is not excluded; nor is a fault that both frameworks' code share.",
            "Where the runs start from PyTorch's initial weights and draw its dropout masks, "
            "differences of initialisation and of random generators are left out on purpose.",
        ]
    if value["stepwise"]:
        lines += stepped.limits()
    if value["independent"]:
        c = value["independent"]["comparison"]
        margin = plural(c["margin"], "point", "g")
        lines.append(
            f"The margin of {margin} is a choice; an interval speaks for these settings and "
            "this split of the data, over which the seeds do not vary."
        )
    lines.append("Measured on one machine, one thread a run; GPUs were not part of it.")
    return lines


def _seeds(count: int | None) -> str:
    return "more than 100,000 runs" if count is None else plural(count, "run")
