"""A run as a folder for the Hugging Face Hub: the run, its model card with front matter, ONNX."""

from pathlib import Path
from typing import Any

import yaml

from data.base import writing
from data.inference import hub
from data.run import derived, results
from trunk_jax.interchange import folder, onnx_export
from trunk_jax.interchange.trained import CODE_LICENCE

ONNX = "model.onnx"


def export(
    run: Path, out: Path, data_dir: str | None, push: str | None, *, orbax: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Write the folder `out` and send it to `push` (ORG/NAME) if given; (result, lines).

    UserError as of `folder.export` and `onnx_export.export`, if `push` is no name, and if the hub
    refuses it (the folder is then written).
    """
    name = None if push is None else hub.name_of(push)
    writing.need_new(out)
    with writing.new_folder(out) as aside:
        inside = aside / "run"
        folder.export(run, inside, data_dir, called=out, orbax=orbax)
        found = onnx_export.export(run, inside / ONNX, data_dir=data_dir)
        card = (inside / derived.CARD).read_text()
        text = front_matter(inside) + card + _use(name or out.name)
        writing.write_bytes(inside / derived.CARD, text.encode())
        for entry in sorted(inside.iterdir()):
            entry.rename(aside / entry.name)
        inside.rmdir()
    lines = [f"wrote {out}", *onnx_export.lines(found | {"out": ONNX})]
    result: dict[str, Any] = {"out": str(out), "onnx": found | {"out": ONNX}}
    if name is not None:
        result["pushed"] = hub.push(out, name)
        lines.append(f"sent to {result['pushed']}")
    return result, lines


def front_matter(run: Path) -> str:
    """The YAML that the hub reads at the start of a card: licence, data, metrics, our numbers."""
    summary = results.read_summary(run)
    found = results.standing(run, summary)  # by the rule of early stopping, if it has one
    dataset = {"name": summary["dataset_title"], "type": summary["dataset"], "split": "test"}
    value = {
        "license": CODE_LICENCE.lower(),
        "library_name": "trunk-jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "jax", "onnx", "trunk", "tree"],
        "datasets": [summary["dataset"]],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": f"TRUNK {summary['dataset']} {summary['recipe']} {summary['backbone']}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": dataset,
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": round(found["correct"] / found["total"], 6),
                                "name": f"{found['correct']} of {found['total']} test images",
                            }
                        ],
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(value, sort_keys=False)}---\n\n"


def _use(name: str) -> str:
    where = f"hub:{name}" if "/" in name else name
    return (
        "\n## Without this package\n\n"
        f"`{ONNX}` is the whole tree for any runtime of ONNX: `image`, uint8 [batch, height, "
        "width, channels], to `label`, `probability`, `probabilities` and `path`.\n\n"
        "```python\n"
        f'import onnxruntime\n\nmodel = onnxruntime.InferenceSession("{ONNX}")\n'
        'label, probability = model.run(["label", "probability"], {"image": images})\n'
        "```\n\n"
        f"In JAX: `trunk_jax.load({where!r})`.\n"
    )
