"""What `compare` found: as text, JSON and a page."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.base import pages, tables, writing
from data.base.words import plural
from parity.comparing.diagnosis import Finding
from parity.pages import dots

FLOAT32 = "forward, float32"  # the section of where either framework rounds more than it must


@dataclass(frozen=True)
class Section:
    """One question: what was compared, its largest difference, and the verdict."""

    title: str
    compared: str
    difference: float
    passed: bool

    @property
    def verdict(self) -> str:
        """In a word or two. A float32 that is off is no difference of what is computed."""
        if self.passed:
            return "same"
        return "DIFFERENT" if self.title != FLOAT32 else "LESS EXACT"


@dataclass(frozen=True)
class Layer:
    """A layer of PyTorch's and the largest difference of its output from JAX's; None: no match.

    `errors`: JAX's and PyTorch's float32 result against float64's, in units in the last place of
    the largest value; `allowed`: what rounding may make of them. None where it was not asked.
    """

    path: str
    operation: str
    shape: tuple[int, ...]
    difference: float | None
    errors: tuple[float | None, float] | None = None
    allowed: float | None = None


@dataclass
class Report:
    """The answer of `compare`.

    Attributes:
      models: what was compared, in words.
      sections: question by question.
      findings: the differences, in the order in which they were found.
      weights: what is said of weights, a line each.
      notes: what else a reader must know.
      layers: PyTorch's calls and how far JAX's values are from theirs.

    """

    models: str
    sections: list[Section] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing differs beyond rounding, in float64 and in float32."""
        return not self.findings and all(section.passed for section in self.sections)

    @property
    def first_difference(self) -> Finding | None:
        """Where the models first differ, None if they do not."""
        return self.findings[0] if self.findings else None

    def __str__(self) -> str:
        lines = [self.models, ""]
        rows = [[s.title, s.compared, f"{s.difference:.1e}", s.verdict] for s in self.sections]
        lines += [
            tables.text(
                ["question", "compared", "largest difference", "verdict"], rows, left=(0, 1)
            ),
            "",
        ]
        for number, found in enumerate(self.findings, 1):
            lines += [
                f"{number}. {text}" if not place else f"   {text}"
                for place, text in enumerate(told(found))
            ]
        lines += [""] if self.findings else []
        lines += [f"- {line}" for line in (*self.weights, *self.notes)]
        lines.append(self.verdict)
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        """In a line."""
        if self.passed:
            return "Same: nothing differs beyond rounding."
        named = sum(bool(found.cause) for found in self.findings)
        count = len(self.findings)
        if self.findings and all(found.stage == "float32" for found in self.findings):
            return (
                f"Same in float64; float32 is less exact than rounding explains at "
                f"{plural(count, 'place')}, {named} with a verified cause."
            )
        return f"Different: {plural(count, 'difference')}, {named} with a verified cause."

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "models": self.models,
            "passed": self.passed,
            "sections": [asdict(s) for s in self.sections],
            "findings": [asdict(f) for f in self.findings],
            "weights": self.weights,
            "notes": self.notes,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def as_html(self) -> str:
        """A page that needs nothing else."""
        rows = [
            dots.Row(
                f"{layer.path or 'model'} ({layer.operation})",
                layer.errors,
                (layer.allowed, layer.allowed),
                bool(self.findings)
                and self.findings[0].stage == "float32"
                and (layer.path, layer.operation)
                == (self.findings[0].path, self.findings[0].operation),
            )
            for layer in self.layers
            if layer.errors is not None
        ]
        content: dict[str, Any] = {
            "report": self,
            "words": self.words(rows),
            "chart": dots.chart(rows) if rows else "",
            "style": dots.style(),
            "key": dots.key(),
            "told": [told(found) for found in self.findings],
            "first": self.findings[0].path if self.findings else None,
        }
        return pages.render(Path(__file__).with_name("report.html"), content)

    def words(self, rows: list[dots.Row]) -> list[str]:
        """What a reader should know, in sentences."""
        lines = [self.verdict]
        if self.findings:
            lines.append(told(self.findings[0])[0])
        both, ours, theirs = dots.further(rows)
        if both:
            most = max(max(e for e in row.errors if e is not None) for row in rows)
            lines.append(
                f"{both} values were computed in float32 by both and held against float64. The "
                f"furthest is {most:.2g} units in the last place off. JAX is further from it on "
                f"{ours}, PyTorch on {theirs}."
            )
        return lines

    def save(self, file: str | Path) -> None:
        """Write a page (`.html`) or JSON (`.json`), by the file's name; its folder must be there.

        UserError if it cannot be written.
        """
        file = Path(file)
        writing.check_target(file)
        if file.suffix == ".json":
            writing.save_json(file, self.as_json())
        else:
            writing.save_bytes(file, self.as_html().encode())


def told(found: Finding) -> list[str]:
    """A finding in lines: where, how much, why."""
    jax = ", ".join(x for x in (found.jax_path, found.jax_line) if x)
    where = f"{found.path or 'the model'}"
    call = f" ({', '.join(x for x in (found.operation, found.line) if x)})"
    lines = [
        f"{found.stage}: {where}{call if call != ' ()' else ''}" + (f"; JAX: {jax}" if jax else ""),
        f"difference {found.difference:.1e} of the largest value",
    ]
    if found.cause:
        more = f", at {found.places} places" if found.places > 1 else ""
        lines.append(f"cause: {found.cause}{more}. {found.words[:1].upper()}{found.words[1:]}.")
        if found.stage == "float32":
            lines.append(f"verified: without it JAX has {found.after:.0%} of what is allowed")
        else:
            lines.append(f"verified: with that in PyTorch too they agree to {found.after:.0e}")
    elif found.words:
        lines.append(f"{found.words}; no cause found among those known")
    else:
        lines.append("no cause found among those known")
    return lines
