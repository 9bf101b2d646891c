"""`python -m trunk_jax.export RUN --format FORMAT --out PLACE`: a run for other programs."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data.base.errors import UserError, run_command
from data.base.parser import Parser, out_place, target
from data.base.progress import working
from data.base.writing import STDOUT, check_target, need_local, need_new, save_json
from data.inference.shipped import run_of

FORMATS = ("folder", "onnx", "stablehlo", "hub")


def export(
    run: Path,
    out: Path,
    *,
    kind: str,
    per_node: bool = False,
    int8: bool = False,
    push: str | None = None,
    data_dir: str | None = None,
    orbax: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Write a run as one of `FORMATS`: what was found, for JSON, and the lines for people.

    UserError for anything a user can put right; nothing is written then.
    """
    if kind not in FORMATS:
        raise UserError(f"format {kind!r:.80}; it must be one of {', '.join(FORMATS)}")
    if (per_node or int8) and kind != "onnx":
        raise UserError("--per-node and --int8 are for --format onnx")
    if push and kind != "hub":
        raise UserError("--push is for --format hub")
    if not orbax and kind not in ("folder", "hub"):
        raise UserError("--no-orbax is for --format folder and hub")
    need_new(out)
    if str(out) == STDOUT:  # what is written is read again, and tried
        raise UserError("--out - would be standard output; name a file or folder to make")
    if kind == "onnx" and not per_node:
        check_target(out)
    need_local(out)
    from trunk_jax.interchange.extra import need

    if kind in ("onnx", "hub"):
        need("onnx", "onnxruntime")
    if kind == "hub":
        need("huggingface_hub")
    # a hub's own bars would be in the way of what is live
    with nullcontext() if push else working(f"exporting {run} as {kind}"):
        return _written(run, out, kind, per_node, int8, push, data_dir, orbax)


def _written(
    run: Path,
    out: Path,
    kind: str,
    per_node: bool,
    int8: bool,
    push: str | None,
    data_dir: str | None,
    orbax: bool,
) -> tuple[dict[str, Any], list[str]]:
    """What `export` returns, once its arguments are known to be good."""
    from trunk_jax.machine import backend

    backend.start()
    if kind == "onnx":
        from trunk_jax.interchange import onnx_export

        result = onnx_export.export(run, out, data_dir=data_dir, per_node=per_node, int8=int8)
        return result, onnx_export.lines(result)
    if kind == "stablehlo":
        from trunk_jax.interchange import stablehlo

        return stablehlo.export(run, out)
    if kind == "hub":
        from trunk_jax.interchange import hub

        return hub.export(run, out, data_dir, push, orbax=orbax)
    from trunk_jax.interchange import folder

    folder.export(run, out, data_dir, orbax=orbax)
    return {"out": str(out)}, [f"wrote {out}"]


def main(arguments: list[str] | None = None) -> None:
    """Export as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m trunk_jax.export",
        description="Write a finished run in a form for other programs: onnx is one file with the "
        "whole tree, stablehlo the program as JAX has it, hub a folder for the Hugging Face Hub, "
        "folder the run to hand on, with its weights as Orbax has them as well.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder, of either framework, or a shipped tree by name")
    add("--format", required=True, choices=FORMATS, help="what to write")
    add(
        "--out",
        type=out_place,
        required=True,
        metavar="PLACE",
        help="the file (onnx) or folder to make",
    )
    add(
        "--per-node",
        action="store_true",
        help="onnx: a folder with a file a node and tree.json (default: one file)",
    )
    add(
        "--int8",
        action="store_true",
        help="onnx: int8 convolutions, calibrated on training "
        "images; prints the accuracy of both (default: float32)",
    )
    add(
        "--no-orbax",
        action="store_true",
        help="folder and hub: leave out the second copy of the weights, in Orbax's form "
        "(default: both)",
    )
    add(
        "--push",
        metavar="ORG/NAME",
        help="hub: send the folder there as well; the token is "
        "huggingface_hub's own (default: none)",
    )
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add(
        "--json",
        type=target,
        metavar="FILE",
        help="also write what is printed to FILE (default: none)",
    )
    options = parser.parse_args(arguments)
    result, lines = export(
        run_of(options.run),
        Path(options.out),
        kind=options.format,
        per_node=options.per_node,
        int8=options.int8,
        push=options.push,
        data_dir=options.data_dir,
        orbax=not options.no_orbax,
    )
    print(*lines, sep="\n")
    if options.json:
        save_json(options.json, result)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
