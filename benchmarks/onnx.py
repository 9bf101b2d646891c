"""`python -m benchmarks.onnx RUN`: a tree in our one-image program against its ONNX file.

Interleaved: each repeat times every way once, one after the other, so that what else the machine
does falls on all. Medians. The first answer, and what is resident, are those of processes of their
own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data.base import machine, tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.writing import save_json

BATCHES = (1, 16, 256)
NODE_BY_NODE = "onnx a file a node"

# A process that gives one answer: what it loads, how long it takes from its start, how much is
# resident. A run's files are found by the paths in its arguments.
_FIRST = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
image = np.load(sys.argv[2])[None]
model = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
model.run(None, {"image": image})
"""
_ON_DEMAND = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
folder, x = Path(sys.argv[1]), np.load(sys.argv[2])[None]
tree = json.loads((folder / "tree.json").read_text())
end = {"node": tree["root"]}
while "node" in end:
    node = tree["nodes"][end["node"]]
    model = onnxruntime.InferenceSession(
        folder / node["file"], options, providers=["CPUExecutionProvider"])
    x, scores = model.run(None, {node["input"]: x})
    end = node["outputs"][int(scores.argmax())]
"""
_MEMORY = """
status = open("/proc/self/status").read()
print(int(status.split("VmRSS:")[1].split()[0]))
"""


def ways(run: Path, folder: Path, data_dir: str | None, threads: int) -> dict[str, Callable]:
    """Functions of a batch of images, by name: ours in JAX (one image), ours in PyTorch, ONNX."""
    import onnx
    import torch

    import trunk_torch_ref.inference.load
    import trunk_torch_ref.inference.route
    from trunk_jax.inference.single import compile_single
    from trunk_jax.interchange import runtime
    from trunk_jax.interchange.trained import of_run

    trained = of_run(run)
    single = compile_single(trained.model)
    theirs = trunk_torch_ref.inference.load.load(run)
    torch.set_num_threads(threads)

    def jax(images: np.ndarray) -> None:
        for image in images:
            single(image)[0].block_until_ready()

    def pytorch(images: np.ndarray) -> None:
        trunk_torch_ref.inference.route.predict(theirs, images)

    found: dict[str, Callable] = {"jax": jax, "pytorch": pytorch}
    for name in ("float32", "int8"):
        if (folder / f"{name}.onnx").exists():
            running = runtime.session(onnx.load(folder / f"{name}.onnx"), threads)
            found[f"onnx {name}"] = lambda images, running=running: running.run(
                ["label", "probability", "path"], {"image": images}
            )
    return found


def timed(of: dict[str, Callable], images: np.ndarray, batch: int, repeats: int) -> dict[str, Any]:
    """Microseconds an image, median over the repeats, of each way on batches of one size."""
    taken: dict[str, list[float]] = {name: [] for name in of}
    for repeat in range(-1, repeats):  # the first one warms up
        places = (repeat * batch + np.arange(batch)) % len(images)
        for name, function in of.items():
            began = time.perf_counter()
            function(images[places])
            if repeat >= 0:
                taken[name].append(1e6 * (time.perf_counter() - began) / batch)
    return {name: median(values) for name, values in taken.items()}


def first_answers(folder: Path, image: np.ndarray, repeats: int) -> dict[str, Any]:
    """Seconds from a process's start to its end with one answer, and resident bytes, medians."""
    np.save(folder / "image.npy", image)
    cases = {
        "onnx float32": (_FIRST, "float32.onnx"),
        "onnx int8": (_FIRST, "int8.onnx"),
        NODE_BY_NODE: (_ON_DEMAND, "nodes"),
    }
    cases = {name: case for name, case in cases.items() if (folder / case[1]).exists()}
    rows: dict[str, dict[str, list[float]]] = {n: {"seconds": [], "bytes": []} for n in cases}
    for _ in range(repeats):
        for name, (code, file) in cases.items():
            words = [str(folder / file), str(folder / "image.npy")]
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, *words], check=True)
            rows[name]["seconds"].append(time.perf_counter() - began)
            done = subprocess.run(
                [sys.executable, "-c", code + _MEMORY, *words],
                check=True,
                capture_output=True,
                text=True,
            )
            rows[name]["bytes"].append(1024 * int(done.stdout))
    return {name: {key: median(v) for key, v in row.items()} for name, row in rows.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured of a run: the content of `--json`."""
    from trunk_jax.interchange import onnx_export
    from trunk_jax.interchange.extra import need
    from trunk_jax.interchange.trained import of_run
    from trunk_jax.machine import backend

    need("onnx", "onnxruntime")
    backend.start()
    run = Path(options.run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        how = {"data_dir": options.data_dir}
        found = onnx_export.export(run, folder / "float32.onnx", **how)
        onnx_export.export(run, folder / "nodes", per_node=True, **how)
        if found.get("right") is not None:  # int8 needs the data
            found = onnx_export.export(run, folder / "int8.onnx", int8=True, **how)
        images = onnx_export.trial(run, of_run(run), options.data_dir).images
        rows = []
        for threads in options.threads:
            of = ways(run, folder, options.data_dir, threads)
            for batch in options.batches:
                mine = of if batch == 1 else {n: f for n, f in of.items() if n != "jax"}
                repeats = max(min(options.repeats, 5), options.repeats // batch)
                times = timed(mine, images, batch, repeats)
                rows.append({"threads": threads, "batch": batch, "us": times})
        first = first_answers(folder, images[0], options.starts)
    return {
        "run": str(run),
        "export": found,
        "times": rows,
        "first": first,
        "cores": machine.cores(),
    }


def show(value: dict[str, Any]) -> None:
    """Two tables on standard output."""
    names = list(value["times"][0]["us"])
    rows = [
        [
            str(row["threads"]),
            str(row["batch"]),
            *(f"{row['us'][name]:,.0f}" if name in row["us"] else "" for name in names),
        ]
        for row in value["times"]
    ]
    title = "microseconds an image, median; ours in JAX takes one image at a time, on all cores"
    tables.print_table(title, ["threads", "batch", *names], rows)
    rows = [
        [name, f"{row['seconds']:.2f}", tables.mb(row["bytes"])]
        for name, row in value["first"].items()
    ]
    columns = ["one answer by a process", "seconds", "resident MB"]
    tables.print_table("MB are 1e6 bytes", columns, rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure as the flags say. UserError for anything a user can put right."""
    parser = Parser(
        prog="python -m benchmarks.onnx",
        description="Time a tree's ONNX file against our own programs; run it on an idle machine.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--batches", type=int, nargs="+", default=BATCHES, help="(default: %(default)s)")
    add("--threads", type=int, nargs="+", default=(1, 2), help="(default: %(default)s)")
    add(
        "--repeats",
        type=int,
        default=500,
        help="of one image; a batch of 16 has a 16th, and at least 5 (default: %(default)s)",
    )
    add("--starts", type=int, default=11, help="processes (default: %(default)s)")
    add("--data-dir", help="folder of prepared TFDS datasets (default: the run's own)")
    add("--json", type=target, metavar="FILE", help="also write the result to FILE (default: none)")
    options = parser.parse_args(arguments)
    counts = (*options.batches, *options.threads, options.repeats, options.starts)
    if min(counts) < 1:
        raise UserError("--batches, --threads, --repeats and --starts must be 1 or more")
    value = measure(options)
    show(value)
    if options.json:
        save_json(options.json, value)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
