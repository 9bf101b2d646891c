"""`python -m trunk_jax.report RUN`: one page about a finished run, which needs nothing else.

Pictures are part of the page, in its colours, light or dark; nothing is fetched and no script
runs. What `trunk_jax.metrics` and `parity.check --checkpoint` found is shown if it is there.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data import datasets, runfolder, tables
from data.errors import UserError, run_command
from data.options import Parser
from trunk_jax.pictures.run import drawings
from trunk_jax.pictures.style import inline

TEMPLATE = "report.html"
_SHOWN = 40  # parity checks in the page; failed ones come first


def content(folder: Path, parity: Path | None, data_dir: str | None) -> dict[str, Any]:
    """All that the page shows. UserError if the run is not finished."""
    config = runfolder.read_config(folder)
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} is not finished (go on with train --resume)")
    pictures = {
        name: Markup(inline(drawing, f"p{place}", name))
        for place, (name, drawing) in enumerate(drawings(folder, data_dir=data_dir).items())
    }
    recipe = config["recipe"]
    return {
        "name": folder.resolve().name,
        "summary": _optional(folder / "summary.json"),
        "measured": _optional(folder / "measurements.json"),
        "manifest": _optional(folder / "manifest.json"),
        "config": json.dumps(config, indent=1),
        "recipe": recipe,
        "licence": datasets.spec(recipe["dataset"]).licence,
        "pictures": pictures,
        "others": [name for name in pictures if name.startswith("asl-") and name != "asl-root"],
        "parity": _parity(parity or folder / "parity", asked=parity is not None),
    }


def _optional(file: Path) -> Any:
    return runfolder.read_json(file) if file.exists() else None


def _parity(folder: Path, asked: bool) -> dict[str, Any] | None:
    """The outcome of a parity check, its failed checks first; None if there is none."""
    file = folder / "report.json"
    if not asked and not file.exists():
        return None
    value = runfolder.read_json(file)
    try:
        checks = sorted(value["checks"], key=lambda check: check["passed"])
        passed = sum(bool(check["passed"]) for check in checks)
        return {
            "passed": bool(value["passed"]),
            "right": passed,
            "total": len(checks),
            "checks": checks[:_SHOWN],
            "about": value["about"],
        }
    except (KeyError, TypeError):
        raise UserError(f"{file} is not the report of a parity check") from None


def page(value: dict[str, Any]) -> str:
    """The page as HTML; everything in it is escaped but the pictures."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": tables.percent,
        "mb": tables.mb,
        "millions": tables.millions,
        "count": lambda number: f"{number:,.0f}",
    }
    return environment.get_template(TEMPLATE).render(value)


def main(arguments: list[str] | None = None) -> None:
    """Write the page as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.report",
        description="Write one self-contained HTML page about a finished run of either framework.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--parity", metavar="DIR", help="a folder that parity.check --checkpoint wrote into "
        "(default: RUN/parity if it is there)")  # fmt: skip
    add("--data-dir", help="folder of prepared TFDS datasets, for the images in the tree (default: "
        "the run's own)")  # fmt: skip
    add("--out", metavar="FILE", help="the page (default: RUN/report.html)")
    options = parser.parse_args(arguments)
    folder = Path(options.run)
    out = Path(options.out) if options.out else folder / "report.html"
    parity = Path(options.parity) if options.parity else None
    runfolder.write_bytes(out, page(content(folder, parity, options.data_dir)).encode())
    print(out)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
