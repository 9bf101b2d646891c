"""`python -m trunk_jax.report RUN`: one page about a finished run, which needs nothing else.

Pictures are part of the page, in its colours, light or dark; nothing is fetched and no script
runs. What `trunk_jax.metrics` and `parity.check --checkpoint` found is shown if it is there.
"""

import json
import sys
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data.base import pages, reading
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.progress import working
from data.base.writing import save_bytes, write_bytes
from data.run import derived, results, runfolder
from data.tree import metrics
from trunk_jax.pictures.run import drawings
from trunk_jax.pictures.style import inline

# What the page shows of the files that trunk_jax.metrics and parity.check write.
_COST = {
    "parameters": float,
    "weight_bytes": float,
    "peak_activation_bytes": float,
    "multiply_adds": float,
    "flops": float,
}
_TIMES = {"latency_ms": float, "latency_ms_p10": float, "latency_ms_p90": float}
_TIMED = (_COST | _TIMES | {"images_per_second?": float}, _COST | {"latency_ms?": ()})
_PATH = {"nodes": [str], "classes": [str], "images": int}
_MEASURED: reading.Form = {
    "device": {"kind": str},
    "paths": [tuple(_PATH | each for each in _TIMED)],
    "depths": [{"depth": int, "decided": int, "accuracy": (float, None), "on_path": float}],
    "shortest": _TIMED,
    "longest": _TIMED,
    "mean": _TIMED,
    "images_per_second?": float,
    "energy?": ({"joules_per_image": {str: float}}, {"reason": str}),
}
_PARITY: reading.Form = {
    "passed": bool,
    "about": {"made": str},
    "checks": [
        {"name": str, "what": str, "passed": bool, "max_abs": (float, None), "tolerance": str}
    ],
}
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
    recipe, manifest = config["recipe"], (folder / "manifest.json").exists()
    about = runfolder.read_recipe(folder).spec
    labels, predicted = results.read_predictions(folder, "test", len(about.class_names))
    summary = results.read_summary(folder)
    return {
        "name": folder.resolve().name,
        "summary": summary,
        "standing": results.standing(folder, summary),
        "measured": _measured(derived.find(folder, "measurements.json")),
        "manifest": runfolder.read_manifest(folder) if manifest else None,
        "config": json.dumps(config, indent=1),
        "recipe": recipe,
        "licence": about.licence,
        "recall": metrics.recall(labels, predicted, about.class_names),
        "balanced": metrics.accuracy(labels, predicted, balanced=True),
        "titles": runfolder.read_tree(folder).titles(about.class_names),
        "pictures": pictures,
        "others": [name for name in pictures if name.startswith("asl-") and name != "asl-root"],
        "parity": _parity(
            parity / "report.json" if parity else derived.find(folder, "parity/report.json"),
            asked=parity is not None,
        ),
    }


def _measured(file: Path) -> Any:
    if not file.exists():
        return None
    value = reading.json_of_form(file, _MEASURED, "what trunk_jax.metrics writes")
    return value | {"energy": value.get("energy", {"reason": "not known"})}


def _parity(file: Path, asked: bool) -> dict[str, Any] | None:
    """The outcome of a parity check, its failed checks first; None if there is none."""
    if not asked and not file.exists():
        return None
    value = reading.json_of_form(file, _PARITY, "the report of a parity check")
    checks = sorted(value["checks"], key=lambda check: check["passed"])
    return {
        "passed": value["passed"],
        "right": sum(check["passed"] for check in checks),
        "total": len(checks),
        "checks": checks[:_SHOWN],
        "about": value["about"],
    }


def page(value: dict[str, Any]) -> str:
    """The page as HTML; everything in it is escaped but the pictures."""
    return pages.render(Path(__file__).with_name("report.html"), value)


def main(arguments: list[str] | None = None) -> None:
    """Write the page as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.report",
        description="Write one self-contained HTML page about a finished run of either framework.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add(
        "--parity",
        metavar="DIR",
        help="a folder that parity.check --checkpoint wrote into "
        "(default: runs/<the run's name>/parity or RUN/parity, if it is there)",
    )
    add(
        "--data-dir",
        help="folder of prepared TFDS datasets, for the images in the tree (default: "
        "the run's own)",
    )
    add(
        "--out",
        type=target,
        metavar="FILE",
        help="the page (default: runs/<the run's name>/report.html)",
    )
    options = parser.parse_args(arguments)
    folder = Path(options.run)
    parity = Path(options.parity) if options.parity else None
    with working(f"drawing the page of {folder}"):
        text = page(content(folder, parity, options.data_dir)).encode()
    out = options.out or derived.place(folder) / "report.html"
    if options.out:
        save_bytes(out, text)
    else:
        derived.claim(folder)
        write_bytes(out, text)
    print(out)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
