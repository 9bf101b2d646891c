"""A study's Markdown summary and its self-contained page."""

import json
import platform
import re
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from data.base import pages
from data.run.manifest import PACKAGES
from parity.pages import dots
from parity.study import findings, overview, stepped, verdict
from trunk_jax.pictures.style import inline

_PICTURES = {
    "divergence": "how far apart, step by step, with the control as a band",
    "layers": "weights by layer",
    "accuracy": "accuracy by seed",
    "steps": "how near each step came to what rounding allows",
}


def title(value: dict[str, Any]) -> str:
    """What was studied."""
    fault = f" (planted: {value['fault']})" if value["fault"] else ""
    return f"JAX and PyTorch on {value['dataset']}, {value['backbone']} {value['nodes']}{fault}"


def sections(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Titles, tables, pictures and sentences, in order: what was found, then how to read it."""
    found, rules = [], []
    if value["stepwise"]:
        lines = [line for one in value["stepwise"] for line in stepped.lines_of(one)]
        tables = overview.of_stepwise(value["stepwise"])
        found.append(_section("Stepwise", lines, tables, ["steps"]))
        rules += stepped.rule()
    if value["coupled"]:
        lines = [line for coupled in value["coupled"] for line in findings.of_coupled(coupled)]
        tables = overview.of_coupled(value["coupled"])
        found.append(_section("Coupled", lines, tables, ["divergence", "layers"]))
        rules += rule() + findings.columns()
    if value["independent"]:
        lines = findings.of_independent(value["independent"])
        tables = overview.of_independent(value["independent"])
        found.append(_section("Independent", lines, tables, ["accuracy"]))
    if value["devices"]:
        lines = findings.of_devices(value["devices"])
        found.append(_section("Precisions", lines, overview.of_devices(value["devices"])))
    if rules:
        found.append(_section("The rule", rules))
    return [*found, _section("Limits", findings.limits(value))]


def _section(
    title: str,
    lines: Sequence[str],
    tables: Sequence[overview.Table] = (),
    pictures: Sequence[str] = (),
) -> dict[str, Any]:
    return {"title": title, "lines": lines, "tables": tables, "pictures": pictures}


def charts(value: dict[str, Any]) -> list[tuple[str, Markup]]:
    """(title, chart) of a stepwise study: each tensor where it came nearest to what is allowed."""
    made = []
    for one in value["stepwise"][:1]:
        for dtype, names in one["tensors"].items():
            for way, kinds in _WAYS.items():
                rows = _rows(names, kinds)
                if rows:
                    made.append((f"{dtype}, {way}", dots.chart(rows)))
    return made


_WAYS = {
    "forward": ("input", "mean", "variance", "scores", "loss", "evaluation"),
    "backward": ("gradient",),
    "update": ("moment", "weight"),
}


def _rows(names: dict[str, Any], kinds: Sequence[str]) -> list[dots.Row]:
    rows = []
    for kind in kinds:
        tables = [names.get(name, {}).get(kind, {}) for name in ("jax", "torch")]
        for key in tables[0]:
            found = [table.get(key) for table in tables]
            ours, theirs = (None if one is None else _far(one[0]) for one in found)
            most = [None if one is None else _far(one[1]) for one in found]
            beyond = any(one is not None and one[2] > 1 for one in found)
            label = f"{stepped.bounds.WORDS[kind]} {key}".strip(" *")
            rows.append(dots.Row(label, (ours, theirs), (most[0], most[1]), beyond))
    return rows


def _far(value: float | None) -> float:
    return float("inf") if value is None else value


def rule() -> list[str]:
    """How the coupled design judges, stated before anything is computed."""
    floors = verdict.FLOORS
    return [
        f"A tensor differs beyond the control where it is further apart than {verdict.K:g} times "
        "the largest difference that any control showed in it up to that step, and than "
        f"{floors['weight']:g} (gradients, weights) or {floors['mean']:g} (statistics, loss) in "
        "float64, 2^29 times that in float32.",
        "A control is a framework against itself with the lowest bit of one weight, or of half of "
        "all weights, flipped at the start of each stage. Differences are shares of a tensor's "
        "length.",
        "It is a difference of the frameworks only if that step, taken by both from one state, is "
        f"also further apart than {verdict.K:g} times what flipped bits make of it, and than "
        f"{verdict.floor_of_a_step('weight', 'float64'):g}. Else rounding has grown by a jump.",
        "In float32 that is not enough: where an activation lies within rounding of a ReLU's or a "
        "max pool's edge, each framework may rightly take another side. So the step is also taken "
        "in float64 from the same state. If the frameworks differ there too, they differ. Else one "
        "is at fault only if its float32 step is further from the float64 one, on sides that "
        "rounding leaves open, than random errors of the rounding model's size take it.",
    ]


def command(arguments: Sequence[str]) -> str:
    """As it was typed, without the places of data and results."""
    kept, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word in ("--out", "--json", "--jobs"):
            skip = True
        elif word == "--data-dir":
            kept += ["--data-dir", "DIR"]
            skip = True
        elif not re.match(r"--(out|json|jobs|data-dir)=", word):
            kept.append(word)
    return " ".join(["python -m parity.study", *map(shlex.quote, kept)])


def versions() -> str:
    """What computed it."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {', '.join(found)}"


def markdown(value: dict[str, Any], pictures: Sequence[str]) -> str:
    """The summary: answer, tables and pictures, what they do not show, limits, command."""
    lines = [f"# {title(value)}", "", f"**{findings.headline(value)}**", ""]
    for section in sections(value):
        lines += [f"## {section['title']}", ""]
        for table in section["tables"]:
            lines += [table.markdown(), ""]
        for name in section["pictures"]:
            if name in pictures:
                lines += [f"![{_PICTURES[name]}]({name}.svg)", ""]
        lines += [f"- {line}" for line in section["lines"]] + [""]
    lines += ["## Made by", "", "```sh", value["command"], "```", "", value["versions"] + ".", ""]
    return "\n".join(lines)


def page(value: dict[str, Any], drawings: dict[str, Figure]) -> str:
    """One HTML page that needs nothing else."""
    settings = {key: value[key] for key in ("nodes", "fault", "recipe", "dataset_sha256", "rule")}
    content = {
        "title": title(value),
        "headline": findings.headline(value),
        "found": any(c["finding"] for c in value["coupled"])
        or any(one["beyond"] for one in value["stepwise"]),
        "sections": [
            section | {"lines": [_bold(line) for line in section["lines"]]}
            for section in sections(value)
        ],
        "pictures": {
            name: Markup(inline(drawing, f"p{place}", _PICTURES[name]))
            for place, (name, drawing) in enumerate(drawings.items())
        },
        "charts": charts(value),
        "style": dots.style(),
        "key": dots.key(),
        "command": value["command"],
        "versions": value["versions"],
        "settings": json.dumps(settings, indent=1),
    }
    return pages.render(Path(__file__).with_name("report.html"), content)


def _bold(line: str) -> Markup:
    """Markdown's bold as HTML; all else escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(line))))
