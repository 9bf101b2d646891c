"""The examples beside the package: a tree run from C, and in a browser, without us."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import headless  # noqa: E402
import random_trees  # noqa: E402

import trunk_jax  # noqa: E402
from data.run import runfolder  # noqa: E402
from trunk_jax import export  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder with tree.onnx in it, and what it was made of."""
    folder = tmp_path_factory.mktemp("tree")
    run = random_trees.write_run(folder / "run", "vgg")
    export.main([str(run), "--format", "onnx", "--out", str(folder / "tree.onnx")])
    return folder, runfolder.read_tree(run)


def answer_of(folder, pixels, file="tree.onnx"):
    """What onnxruntime in Python says of an image: label, probability, path."""
    session = onnxruntime.InferenceSession(folder / file)
    found = session.run(["label", "probability", "path"], {"image": pixels[None]})
    return int(found[0][0]), float(found[1][0]), [int(step) for step in found[2][0] if step >= 0]


# --- C


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """The C example, built with the library that Python's onnxruntime holds."""
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("no make and C compiler are installed")
    if LIBRARY is None:
        pytest.skip("Python's onnxruntime holds no libonnxruntime.so here")
    out = tmp_path_factory.mktemp("built")
    words = ["make", "-C", str(EXAMPLES / "c"), f"OUT={out}", f"PYTHON={sys.executable}"]
    subprocess.run(words, check=True, capture_output=True)

    def run(*arguments):
        return subprocess.run(
            [out / "classify", *map(str, arguments)], capture_output=True, text=True
        )

    return run


def pnm(file, pixels, header="{kind}\n{width} {height}\n255\n"):
    """Write an image as binary PPM or PGM."""
    height, width, channels = pixels.shape
    kind = "P6" if channels == 3 else "P5"
    head = header.format(kind=kind, width=width, height=height)
    file.write_bytes(head.encode() + pixels.tobytes())
    return file


@pytest.mark.slow
def test_c_says_what_python_says(tree, classify, tmp_path):
    folder, of = tree
    seen = set()
    for pixels in random_trees.test_images().images[:8]:
        label, probability, path = answer_of(folder, pixels)
        done = classify(folder / "tree.onnx", pnm(tmp_path / "x.pgm", pixels))
        assert done.stdout == f"{label} {probability:.4f} path {path}\n"
        assert (done.returncode, done.stderr) == (0, "")
        seen.add(len(of.paths[label]))
    assert seen == {1, 2}
    commented = "{kind} # of a scanner, 12 dpi\n# 3\n{width}\t{height} 255\n"
    assert classify(folder / "tree.onnx", pnm(tmp_path / "y.pgm", pixels, commented)).stdout == (
        done.stdout
    )


@pytest.mark.slow
def test_what_c_cannot_use_is_one_line(tree, classify, tmp_path):
    folder, _ = tree
    model, good = folder / "tree.onnx", np.zeros((8, 8, 1), np.uint8)
    short = pnm(tmp_path / "short.pgm", good)
    short.write_bytes(short.read_bytes()[:-1])
    for words, told in (
        ((), "usage: classify TREE.onnx IMAGE.ppm"),
        ((model, tmp_path / "none"), "none: cannot be opened"),
        ((model, model), "tree.onnx: is no binary PPM or PGM with 8 bits"),
        ((model, pnm(tmp_path / "x", np.zeros((8, 8, 3), np.uint8))), "takes 8 x 8 pixels, grey"),
        ((model, pnm(tmp_path / "x", np.zeros((9, 8, 1), np.uint8))), "takes 8 x 8 pixels, grey"),
        ((model, short), "short.pgm: ends too early"),
        ((short, short), "classify: onnxruntime: "),
    ):
        done = classify(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


# --- a browser


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The browser example with the packages of its package.json beside it."""
    if shutil.which("npm") is None:
        pytest.skip("no npm is installed")
    folder = tmp_path_factory.mktemp("browser") / "page"
    shutil.copytree(EXAMPLES / "browser", folder, ignore=shutil.ignore_patterns("node_modules"))
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm gives no onnxruntime-web: {done.stderr.strip()[-200:]}")
    return folder


def in_the_browser(folder, tmp_path):
    """What the driver page in `folder` sends, and the paths that the browser asked for."""
    asked, results, sent = [], {}, threading.Event()

    class Server(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def do_POST(self):
            results.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            sent.set()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # a page that is left breaks off what it was fetching
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = [
        *headless.FLAGS,
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    browser = subprocess.Popen(
        [headless.BROWSER, *flags, f"http://127.0.0.1:{server.server_port}/driver.html"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    try:
        assert sent.wait(240), "the browser sent nothing"
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
        server.server_close()
    return results, asked


@pytest.mark.slow
@headless.needed
def test_the_page_says_what_python_says_and_lights_the_path(tree, installed, tmp_path):
    folder, of = tree
    images = random_trees.test_images().images
    pixels = next(x for x in images if len(of.paths[answer_of(folder, x)[0]]) == 2)
    Image.fromarray(pixels[..., 0]).save(installed / "x.png")
    shutil.copy(folder / "tree.onnx", installed)
    model = onnx.load(folder / "tree.onnx")
    next(entry for entry in model.metadata_props if entry.key == "turned").value = "yes"
    onnx.save(model, installed / "turned.onnx")
    run = random_trees.write_run(tmp_path / "exits", "resnet", exits=True)
    export.main([str(run), "--format", "onnx", "--out", str(installed / "exits.onnx")])
    early = trunk_jax.load(run).predict(images)
    lengths = np.array([len(path) for path in early.paths])
    places = {name: int(np.flatnonzero(lengths == k)[0]) for name, k in (("stops", 1), ("goes", 2))}
    for name, place in places.items():
        Image.fromarray(images[place, ..., 0]).save(installed / f"{name}.png")
    shutil.copy(Path(__file__).parent / "browser_driver.html", installed / "driver.html")
    results, asked = in_the_browser(installed, tmp_path)
    assert "error" not in results, results["error"]

    def check(result, expected):
        label, probability, path = answer_of(folder, expected)
        names = [of.names[tuple(path[:depth])] for depth in range(len(path))]
        shares = [f"{100 * p:.1f} %" for p in (probability - 5e-5, probability + 5e-5)]
        assert result["answer"] in {f"{label} {s} ({' > '.join(names)})" for s in shares}
        assert sorted(result["lit"]) == sorted(
            ",".join(map(str, path[:depth])) for depth in range(len(path) + 1)
        )

    check(results["file"], pixels)
    assert results["file"]["pixels"] == pixels.ravel().tolist()
    assert results["file"]["about"].startswith("digits (scikit-learn), corrected vgg: 10 classes")
    assert results["file"]["circles"] == len(of.names)
    drawn = np.array(results["drawing"]["pixels"], np.uint8).reshape(8, 8, 1)
    check(results["drawing"], drawn)
    assert drawn.max() > 100  # a stroke of 20 pixels in a cell of 24: light on a dark ground
    assert drawn[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 10  # with a margin around
    turned = pixels.transpose(1, 0, 2)
    assert results["turned"]["pixels"] == turned.ravel().tolist()
    check(results["turned"], turned)
    for name, place in places.items():  # its nodes are lit, and its class
        share = f"{100 * early.confidence[place]:.1f} %"
        way = " > ".join(early.paths[place])
        assert results[name]["answer"] == f"{early.names[place]} {share} ({way})"
        leaf = ",".join(map(str, of.paths[early.labels[place]]))
        nodes = {"", leaf.split(",")[0]} if name == "goes" else {""}
        assert set(results[name]["lit"]) == nodes | {leaf}
    assert results["text"]["answer"] == "x.txt is no image that this browser can read"
    assert results["model"]["answer"] == "this file is no exported tree"
    told = "there is no none.onnx beside this page; choose a tree below"
    assert results["none"]["answer"] == told
    pages = {"driver.html", "index.html", "favicon.ico", "node_modules"}
    pages |= {"x.png", "stops.png", "goes.png"}
    modules = {file.name for file in EXAMPLES.glob("browser/*.mjs")}
    models = {"tree.onnx", "turned.onnx", "exits.onnx", "none.onnx"}
    asked_for = {path.split("?")[0].split("/")[1] for path in asked}
    assert asked_for <= pages | modules | models
    assert modules <= asked_for
