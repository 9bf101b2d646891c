"""`python -m benchmarks.onnx RUN`: a tree in our one-image program against its ONNX file.

Interleaved: every way has its turn of a few calls, one after the other, again and again, so that
what else the machine does falls on all. Medians of calls. A number of threads has a process of its
own that is kept to as many cores, for JAX's program takes all that it finds. The first answer, and
what is resident, are those of processes of their own too.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data.base import machine, tables
from data.base.errors import UserError, run_command
from data.base.parser import Parser, target
from data.base.words import plural
from data.base.writing import save_bytes, save_json
from data.images.on_disk import Images
from data.inference.shipped import run_of
from data.run import results

BATCHES = (1, 16, 256)
NODE_BY_NODE = "onnx a file a node"
FROM_C = "onnx float32 from C"

# What is aimed at: ratios of times (int8's where the processor has VNNI), and a process's seconds.
RATIOS = (
    ("onnx float32", "jax", 0.8),
    ("onnx float32", "pytorch", 0.35),
    ("onnx int8", "onnx float32", 0.7),
)
FIRST_S = {"onnx float32": 0.4, FROM_C: 0.15}

# Threads of a pool turn for some milliseconds after its work, in wait for more; on two cores they
# would be in the way of what is timed next. After the rest a call that is not timed brings back
# what the others pushed out of the caches; then come a few that are.
REST_S, TURN = 0.02, 5

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
# The example that follows a tree from file to file, on one thread.
_ON_DEMAND = """
import functools, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession = functools.partial(
    onnxruntime.InferenceSession, sess_options=options)
""" + (Path(__file__).parents[1] / "examples" / "on_demand.py").read_text()
# A program run from a small process: the most that a child had counts what its parent had when it
# was started, and ours has hundreds of MB.
_RUN = """
import json, os, subprocess, sys, time
began = time.perf_counter()
running = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(running.pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, used.ru_maxrss]))
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


def timed(of: dict[str, Callable], images: Images, batch: int, repeats: int) -> dict[str, Any]:
    """Microseconds an image, median over the repeats, of each way on batches of one size."""
    taken: dict[str, list[float]] = {name: [] for name in of}
    for first in range(0, repeats, TURN):
        turn = range(first - 1, min(first + TURN, repeats))
        batches = [images[(repeat * batch + np.arange(batch)) % len(images)] for repeat in turn]
        for name, function in of.items():
            time.sleep(REST_S)
            function(batches[0])
            for now in batches[1:]:
                began = time.perf_counter()
                function(now)
                taken[name].append(1e6 * (time.perf_counter() - began) / batch)
    return {name: median(values) for name, values in taken.items()}


def first_answers(folder: Path, image: np.ndarray, repeats: int) -> dict[str, Any]:
    """Seconds from a process's start to its end with one answer, and resident bytes, medians.

    Of the program in C, where it can be built, the bytes are the most that it had.
    """
    np.save(folder / "image.npy", image)
    program = c_program(folder / "c")
    head = f"P{6 if image.shape[-1] == 3 else 5} {image.shape[1]} {image.shape[0]} 255\n"
    (folder / "image.pnm").write_bytes(head.encode() + np.ascontiguousarray(image).tobytes())
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
            subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
            rows[name]["seconds"].append(time.perf_counter() - began)
            done = subprocess.run(
                [sys.executable, "-c", code + _MEMORY, *words],
                check=True,
                capture_output=True,
                text=True,
            )
            rows[name]["bytes"].append(1024 * int(done.stdout.split()[-1]))
        if program is not None:
            seconds, most = _timed_program(program, folder / "float32.onnx", folder / "image.pnm")
            rows.setdefault(FROM_C, {"seconds": [], "bytes": []})
            rows[FROM_C]["seconds"].append(seconds)
            rows[FROM_C]["bytes"].append(most)
    return {name: {key: median(v) for key, v in row.items()} for name, row in rows.items()}


def c_program(out: Path) -> Path | None:
    """examples/c/classify, built into `out`; None where there is no compiler or library."""
    if not (shutil.which("make") and shutil.which("cc")):
        return None
    source = Path(__file__).parents[1] / "examples" / "c"
    words = ["make", "-C", str(source), f"OUT={out}", f"PYTHON={sys.executable}"]
    done = subprocess.run(words, capture_output=True, check=False)
    return out / "classify" if done.returncode == 0 else None


def _timed_program(program: Path, model: Path, image: Path) -> tuple[float, int]:
    """(seconds that the program in C takes for an answer, its most resident bytes)."""
    words = [sys.executable, "-S", "-c", _RUN, str(program), str(model), str(image)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    code, seconds, kilobytes = json.loads(done.stdout)
    if code:
        raise UserError(f"{program} ended with {code}")
    return seconds, 1024 * kilobytes


@dataclass(frozen=True)
class Bar:
    """What was aimed at: `measured` at most `most`; `what` in words."""

    what: str
    measured: float
    most: float

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured <= self.most


def bars(value: dict[str, Any]) -> list[Bar]:
    """What was measured against what was aimed at, where both parts were measured."""
    found = []
    for row in value["times"]:
        if row["batch"] != 1:
            continue
        us = row["us"]
        threads = f"one image, {row['threads']} thread{'s' if row['threads'] > 1 else ''}: "
        for name, other, most in RATIOS:
            if name in us and other in us:
                found.append(Bar(f"{threads}{name} / {other}", us[name] / us[other], most))
    for name, most in FIRST_S.items():
        if name in value["first"]:
            found.append(Bar(f"first answer, {name}, s", value["first"][name]["seconds"], most))
    return found


def keep_to(cores: int) -> None:
    """Keep this process to so many cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def rows_of(
    run: Path, folder: Path, options: argparse.Namespace, threads: int
) -> list[dict[str, Any]]:
    """Of each size of batch: microseconds an image of each way, and shares of these cores' peak."""
    from benchmarks.ours import peak
    from trunk_jax.interchange import onnx_export
    from trunk_jax.interchange.trained import of_run
    from trunk_jax.machine import backend

    backend.start()
    work, most = results.read_summary(run)["paths"]["mean"]["multiply_adds"], peak()
    images = onnx_export.trial(run, of_run(run), options.data_dir).images
    of = ways(run, folder, options.data_dir, threads)
    rows = []
    for batch in options.batches:
        mine = of if batch == 1 else {n: f for n, f in of.items() if n != "jax"}
        repeats = max(min(options.repeats, 5), options.repeats // batch)
        times = timed(mine, images, batch, repeats)
        shares = {name: 1e6 * work / us / most for name, us in times.items()}
        rows.append({"threads": threads, "batch": batch, "us": times, "share_of_peak": shares})
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is measured of a run: the content of `--json`."""
    from trunk_jax.interchange import onnx_export
    from trunk_jax.interchange.extra import need
    from trunk_jax.interchange.trained import of_run
    from trunk_jax.machine import backend

    need("onnx", "onnxruntime")
    backend.start()
    run = run_of(options.run)
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
            # Lines, and no live display: that would take time from what is measured.
            print(f"measuring with {plural(threads, 'thread')} ...", file=sys.stderr)
            with multiprocessing.get_context("spawn").Pool(1, keep_to, [threads]) as process:
                rows += process.apply(rows_of, [run, folder, options, threads])
        print(f"measuring {options.starts} first answers of each ...", file=sys.stderr)
        first = first_answers(folder, images[0], options.starts)
    value = {
        "run": options.run,
        "machine": {
            "cores": machine.cores(),
            "processor": machine.processor(),
            "packages": {name: metadata.version(name) for name in ("jax", "torch", "onnxruntime")},
        },
        "export": found,
        "times": rows,
        "first": first,
        "vnni": has_vnni(),
    }
    return value | {"bars": [asdict(bar) | {"met": bar.met} for bar in bars(value)]}


def has_vnni() -> bool | None:
    """Whether the processor multiplies int8 in one instruction; None where it does not say."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return None


def _cell(row: dict[str, Any], name: str) -> str:
    return f"{row['us'][name]:,.0f} ({row['share_of_peak'][name]:.0%})"


def three(value: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The tables of what was measured: (title, columns, rows) of each."""
    names = list(value["times"][0]["us"])
    rows = [
        [
            str(row["threads"]),
            str(row["batch"]),
            *(_cell(row, name) if name in row["us"] else "" for name in names),
        ]
        for row in value["times"]
    ]
    title = (
        "microseconds an image, median, and the share of the cores' measured float32 peak; as many "
        "cores as threads; ours in JAX takes one image at a time"
    )
    yield title, ["threads", "batch", *names], rows
    rows = [
        [name, f"{row['seconds']:.2f}", tables.mb(row["bytes"])]
        for name, row in value["first"].items()
    ]
    columns = ["one answer by a process", "seconds", "resident MB"]
    yield "MB are 1e6 bytes; of C the most that it had", columns, rows
    rows = [
        [bar["what"], f"{bar['measured']:.2f}", f"{bar['most']:.2f}", "yes" if bar["met"] else "no"]
        for bar in value["bars"]
    ]
    vnni = {True: "with VNNI", False: "without VNNI", None: "which does not tell of VNNI"}
    title = f"what was aimed at; a processor {vnni[value['vnni']]}"
    yield title, ["", "measured", "at most", "met"], rows


def markdown(value: dict[str, Any]) -> str:
    """The tables as a page."""
    about = value["machine"]
    parts = [
        f"# {value['export']['nodes']} nodes in ONNX and in our own programs, measured",
        f"`python -m benchmarks.onnx {value['run']}` on {about['cores']} cores of "
        f"{about['processor']}; "
        + ", ".join(f"{name} {version}" for name, version in about["packages"].items()),
    ]
    for title, columns, rows in three(value):
        parts += [f"{title[0].upper()}{title[1:]}:", tables.markdown(columns, rows)]
    return "\n\n".join(parts) + "\n"


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
    add("--table", type=target, metavar="FILE", help="and its tables as Markdown (default: none)")
    options = parser.parse_args(arguments)
    counts = (*options.batches, *options.threads, options.repeats, options.starts)
    if min(counts) < 1:
        raise UserError("--batches, --threads, --repeats and --starts must be 1 or more")
    value = measure(options)
    for title, columns, rows in three(value):
        tables.print_table(title, columns, rows)
    if options.json:
        save_json(options.json, value)
    if options.table:
        save_bytes(options.table, markdown(value).encode())


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
