"""What follows from a study, in sentences, and how far it reaches."""

from typing import Any

from parity.study import stepped
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
            parts.append(f"mean accuracies are equivalent within {c['margin']:g} points: {size}")
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
    """A coupled pair of runs."""
    lines = []
    stages, runs = coupled["stages"], len(coupled["runs"]) - 2
    steps = sum(stage["steps"] for stage in stages)
    what = f"{coupled['dtype']}, seed {coupled['seed']}: {steps} steps in {_count(stages, 'stage')}"
    if coupled["finding"]:
        lines.append(
            f"{what}. **Beyond the control**: {place(coupled)}. "
            f"{CAUSES[coupled['finding']['cause']]}"
        )
    else:
        lines.append(f"{what}, {runs} control runs: **nothing beyond the control**.")
    for stage in stages:
        series, last = stage["series"], -1
        low, high = series["control"]["weight"][last]
        loss = _size(series["distance"]["loss"][last])
        most = _size(series["control"]["loss"][last][1])
        lines.append(
            f"{stage['stage']}, {stage['steps']} steps: weights end "
            f"{_size(series['distance']['weight'][last])} apart (share of their length), the "
            f"controls {_size(low)} to {_size(high)}; loss {loss} apart, controls up to {most}. "
            + _reach(stage, coupled["dtype"])
            + " "
            + _agreement(stage["epochs"][-1]["test"])
        )
        lines += _looked_at(stage)
    for name, row in coupled["groups"].items():
        lines.append(_grouping(name, row))
    if coupled["predictions"]:
        lines.append(f"Whole tree: {_agreement(coupled['predictions'])}")
    return lines


def _reach(stage: dict[str, Any], dtype: str) -> str:
    reach = stage["resolution"]["weight"]
    if reach is None or reach >= 1:
        return (
            "At the end the controls have come so far apart that a difference of any size would "
            f"pass for rounding: by then {dtype} can show nothing."
        )
    return f"A difference of more than {_size(reach)} in any tensor's weights would have been seen."


def _looked_at(stage: dict[str, Any]) -> list[str]:
    """The first step that another from the same state cleared, the first that float64 cleared."""
    alone = [jump for jump in stage["jumps"] if "truth" not in jump]
    cleared = [jump for jump in stage["jumps"] if "truth" in jump]
    lines = [_jump(stage["stage"], alone[0])] if alone else []
    return lines + ([_cleared(stage["stage"], cleared)] if cleared else [])


def _jump(stage: str, jump: dict[str, Any]) -> str:
    return (
        f"{stage}, step {jump['step']}: {_named(jump)} came {_size(jump['difference'])} apart "
        f"where the control allows {_size(jump['allowed'])}. It is rounding that grew by a jump: "
        f"from the same state the two frameworks take this step {_size(jump['same_state'])} apart, "
        "no further than lowest bits of the weights explain."
    )


def _cleared(stage: str, jumps: list[dict[str, Any]]) -> str:
    jump = jumps[0]
    truth = jump["truth"]
    errors = " and ".join(
        f"{NAMES[name]}'s is {_size(error)} (rounding may take it {_size(truth['allowed'][name])})"
        for name, error in truth["errors"].items()
    )
    taken = " and ".join(f"{NAMES[name]}'s {n}" for name, n in truth["sides"].items() if n)
    sides = (
        f"; {_count_of(truth['undecided'])} are so near an edge of a ReLU or a max pool that "
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
        f"{stage}, step {jump['step']}: {_named(jump)} came {_size(jump['difference'])} apart in "
        f"float32 from the same state too. In float64 the frameworks take that very step "
        f"{_size(truth['apart'])} apart.{end}{others}"
    )


def _named(jump: dict[str, Any]) -> str:
    return f"{WORDS[jump['kind']]} {jump['tensor']}".strip(" *")


def _count_of(units: int) -> str:
    return f"{units} unit{'' if units == 1 else 's'}"


def _agreement(row: dict[str, Any]) -> str:
    pairs = dict(row["pairs"])
    cross = pairs.pop("jax, torch")
    right = row["right"]
    gap = 100 * (right["jax"] - right["torch"]) / row["images"]
    kappa = "" if cross["kappa"] is None else f", kappa {cross['kappa']:.3f}"
    text = (
        f"Test: JAX {right['jax']:,}, PyTorch {right['torch']:,} of {row['images']:,} right "
        f"({gap:+.2f} points); {cross['agree']:,} predictions equal{kappa}"
    )
    if pairs:
        agree = [pair["agree"] for pair in pairs.values()]
        text += f"; controls {min(agree):,} to {max(agree):,} equal"
    return text + "."


def _grouping(name: str, row: dict[str, Any]) -> str:
    same = "the same groups" if row["same"] else "OTHER groups"
    count = len(row["groups"]["torch"])
    return (
        f"Groups at {name}, from each framework's own likelihoods: {same} ({count}, adjusted Rand "
        f"index {row['adjusted_rand']:g}); {row['controls_same']} of {row['controls']} controls "
        f"have those of the run they control. Likelihoods differ by {_size(row['asl_difference'])} "
        f"at most, and the nearest pair of classes is {_size(row['margin'])} from the threshold."
    )


def of_independent(value: dict[str, Any]) -> list[str]:
    """The independent design."""
    c, accuracies = value["comparison"], value["accuracies"]
    count = len(accuracies["jax"])
    lines = [
        f"{count} runs a framework: JAX {c['means'][0]:.2f} % (standard deviation "
        f"{c['spreads'][0]:.2f}), PyTorch {c['means'][1]:.2f} % ({c['spreads'][1]:.2f}). "
        f"Difference {c['difference']:+.2f} points, 95 % interval {c['interval'][0]:+.2f} to "
        f"{c['interval'][1]:+.2f} (Welch, p = {c['p_difference']:.2g}).",
        f"Equivalence within {c['margin']:g} points (two one-sided tests): p = "
        f"{c['p_equivalence']:.2g}, " + _equivalence(c),
    ]
    if c["p_variance"] is not None:
        lines.append(f"Equal variances (Brown-Forsythe): p = {c['p_variance']:.2g}.")
    lines.append(
        f"With these spreads {_seeds(c['seeds_equivalence'])} a framework would show equivalence "
        f"with power {c['power']:g} if the means are equal, and {_seeds(c['seeds_difference'])} "
        f"would show a true difference of {c['margin']:g} points."
    )
    agree = value["agreement"]
    lines.append(
        "Predictions of two runs are equal for "
        + ", ".join(
            f"{100 * row['agree']:.1f} % ({name}{_kappa(row)})" for name, row in agree.items()
        )
        + " of the images, on average."
    )
    for name, row in value["trees"].items():
        lines.append(
            f"Root's groups, {name}: equal in {row['same_groups']} of {row['pairs']} pairs, "
            f"adjusted Rand index {row['adjusted_rand']:.2f} on average, {row['lowest']:.2f} at "
            "the least"
            + ("" if row["split"] else " (one group of all classes: there is nothing to compare)")
            + ("" if row["same_trees"] is None else f"; whole trees equal in {row['same_trees']}")
            + "."
        )
    return lines


def _equivalence(c: dict[str, Any]) -> str:
    if c["equivalent"]:
        return "**equivalent**."
    if c["different"]:
        return "**not shown, and the means differ**."
    return "**not shown**."


def of_devices(value: dict[str, Any]) -> list[str]:
    """The precisions."""
    lines = [
        f"The trained root in float64 on the CPU has {value['truth']:,} of {value['images']:,} "
        "right."
    ]
    lines += [
        f"{NAMES[row['framework']]} in {row['mode']} on {value['device'][row['framework']]}: "
        f"{row['right']:,} right, {row['changed']} decisions changed, error of scores "
        f"{_size(row['error'])} of the largest."
        for row in value["rows"]
    ]
    return lines + ([f"{value['note'][0].upper()}{value['note'][1:]}."] if value["note"] else [])


def limits(value: dict[str, Any]) -> list[str]:
    """What this does not show."""
    recipe = value["recipe"]
    epochs = sorted(
        {
            recipe[row][f"{kind}_phase"]["epochs"]
            for row in ("root", "others")
            for kind in ("class", "group")
        }
    )
    lines = [
        f"One dataset ({value['dataset']}), one backbone ({value['backbone']}), recipe "
        f"{recipe['name']} with {' or '.join(map(str, epochs))} epochs a phase, batches of "
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
        lines.append(
            f"The margin of {c['margin']:g} points is a choice; an interval speaks for these "
            "settings and this split of the data, over which the seeds do not vary."
        )
    lines.append("Measured on one machine, one thread a run; GPUs were not part of it.")
    return lines


def _count(items: list, word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _seeds(count: int | None) -> str:
    return "more than 100,000 runs" if count is None else f"{count} runs"


def _kappa(row: dict[str, Any]) -> str:
    return "" if row["kappa"] is None else f", kappa {row['kappa']:.3f}"


def _size(number: float | None) -> str:
    return "infinitely far" if number is None else f"{number:.1e}"
