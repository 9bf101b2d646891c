"""What is handed on runs without us: examples, StableHLO with JAX alone, a folder for the hub."""

import dataclasses
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("huggingface_hub")

import jax
import jax.export
import numpy as np
import random_trees
import yaml

import trunk_jax
from data.base.errors import UserError
from data.inference import hub
from data.run import results, runfolder
from trunk_jax import export
from trunk_jax.inference import route
from trunk_jax.inference.load import load

HOUSE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return random_trees.write_run(tmp_path_factory.mktemp("run") / "run", "vgg")


@pytest.fixture(scope="module")
def with_exits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exits") / "run"
    return random_trees.write_run(folder, "resnet", exits=True)


@pytest.fixture(scope="module")
def expected(run):
    """Images of every depth, and for each what a program should print."""
    images = random_trees.test_images().images[:3]
    tree, found = runfolder.read_tree(run), route.predict(load(run), images)
    return images, [
        (str(label), confidence, list(tree.paths[label]))
        for label, confidence in zip(found.labels, found.confidence, strict=True)
    ]


def printed(script, *arguments):
    """Standard output of a script, run where our packages cannot be found."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='x');"
    code += "assert not {'trunk_jax', 'data', 'torch'} & set(sys.modules), 'ours was loaded'"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_examples_run_with_numpy_and_onnxruntime_alone(run, expected, tmp_path):
    export.main([str(run), "--format", "onnx", "--out", str(tmp_path / "tree.onnx")])
    export.main([str(run), "--format", "onnx", "--per-node", "--out", str(tmp_path / "tree")])
    images, rows = expected
    np.save(tmp_path / "x.npy", images[0])
    label, probability, path = rows[0]
    words = printed(HOUSE / "examples" / "classify.py", tmp_path / "tree.onnx", tmp_path / "x.npy")
    assert words.split(" ", 2)[0] == label
    assert float(words.split(" ", 2)[1]) == pytest.approx(probability, abs=1e-4)
    assert words.split(" ", 2)[2] == f"path {path}\n"
    words = printed(HOUSE / "examples" / "on_demand.py", tmp_path / "tree", tmp_path / "x.npy")
    names = runfolder.read_tree(run).names
    loaded = [f"{names[tuple(path[:depth])]}.onnx" for depth in range(len(path))]
    assert words == f"{label} loaded {' '.join(loaded)}\n"


def test_a_tree_with_exits_is_followed_from_file_to_file(with_exits, tmp_path):
    """Of images that stop at the root, and such as go on, what is loaded and said."""
    export.main([str(with_exits), "--format", "onnx", "--per-node", "--out", str(tmp_path / "t")])
    assert json.loads((tmp_path / "t" / "tree.json").read_text())["format"] == 2
    images, found = random_trees.test_images().images, trunk_jax.load(with_exits)
    told = found.predict(images)
    lengths = np.array([len(path) for path in told.paths])
    for place in (int(np.flatnonzero(lengths == length)[0]) for length in (1, 2)):
        np.save(tmp_path / "x.npy", images[place])
        words = printed(HOUSE / "examples" / "on_demand.py", tmp_path / "t", tmp_path / "x.npy")
        files = " ".join(f"{name}.onnx" for name in told.paths[place])
        assert words == f"{told.names[place]} loaded {files}\n"


def test_a_folder_of_a_tree_with_exits_predicts_as_it_stops(with_exits, tmp_path):
    export.main([str(with_exits), "--format", "folder", "--out", str(tmp_path / "f")])
    told = trunk_jax.load(tmp_path / "f").predict(random_trees.test_images().images)
    labels, predicted = results.read_predictions(tmp_path / "f", "test", 10)
    assert (predicted == told.labels).all()
    found = runfolder.read_json(tmp_path / "f" / "stopped-test.json")
    assert found["correct"] == (labels == predicted).sum()
    assert found["last"]["root"] == np.mean([len(path) == 1 for path in told.paths])


def test_stablehlo_of_a_tree_with_exits(with_exits, tmp_path):
    export.main([str(with_exits), "--format", "stablehlo", "--out", str(tmp_path / "p")])
    images = random_trees.test_images().images[:40]
    told = trunk_jax.load(with_exits).predict(images)
    exported = jax.export.deserialize(
        bytearray((tmp_path / "p" / "program.stablehlo").read_bytes())
    )
    for image, label, share, nodes in zip(
        images, told.labels, told.confidence, told.paths, strict=True
    ):
        mine = exported.call(image)
        assert (int(mine[0]), len(nodes)) == (label, 1 + int((np.asarray(mine[2]) >= 0).sum()))
        assert float(mine[1]) == pytest.approx(share, abs=1e-5)


def test_stablehlo_runs_with_jax_alone(run, expected, tmp_path):
    out = tmp_path / "program"
    export.main([str(run), "--format", "stablehlo", "--out", str(out)])
    assert len((out / "run.py").read_text().splitlines()) <= 16
    about = json.loads((out / "about.json").read_text())
    assert about["calling_convention_version"] >= 9
    assert about["image"] == {"type": "uint8", "shape": [8, 8, 1]}
    images, rows = expected
    np.save(tmp_path / "x.npy", images[1])
    label, probability, path = rows[1]
    words = printed(out / "run.py", tmp_path / "x.npy")
    assert words.split(" ")[0] == label
    assert float(words.split(" ")[1]) == pytest.approx(probability, abs=1e-4)
    assert words.split("path ")[1] == f"{path + [-1] * (2 - len(path))}\n"
    with pytest.raises(UserError, match="exists; remove it"):
        export.main([str(run), "--format", "stablehlo", "--out", str(out)])


# --- from Python


def test_a_model_is_exported_as_the_command_does(run, tmp_path, capsys):
    model = trunk_jax.load(run)
    found = model.export(format="onnx", out=tmp_path / "a.onnx")
    assert capsys.readouterr().out == ""
    words = [str(run), "--format", "onnx", "--out", str(tmp_path / "b.onnx")]
    export.main([*words, "--json", str(tmp_path / "j")])
    assert found | {"out": str(tmp_path / "b.onnx")} == runfolder.read_json(tmp_path / "j")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"format 'tflite'; it must be one of folder, onnx"):
        model.export(format="tflite", out=tmp_path / "x")
    with pytest.raises(ValueError, match="is in no run folder"):
        dataclasses.replace(model, folder=None).export(format="onnx", out=tmp_path / "x")
    with pytest.raises(UserError, match=r"there is no run folder none; the trees"):
        export.main(["none", *words[1:]])


@pytest.mark.parametrize("kind", export.FORMATS)
def test_what_exists_is_not_written_over(run, tmp_path, kind):
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.write_text("mine")
    gone.symlink_to(tmp_path / "nowhere")
    for out in (there, gone):
        with pytest.raises(UserError, match=f"{out.name} exists; remove it, or choose another"):
            export.main([str(run), "--format", kind, "--out", str(out)])
    assert there.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone", "there"]


# --- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as sending and fetching a model need."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (of the class, for the one server of a test)
    refuse = False
    commit = "1234567890" * 4

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value, code=200):
        self.answer(code, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuse:
            self.json({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            assert self.headers["Authorization"] == "Bearer hf_test"
            self.json({"url": "https://huggingface.co/someone/tree"})
        elif self.path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self.json({"warnings": [], "errors": [] if front["license"] else [{"message": "no"}]})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.json(
                {
                    "files": [
                        {"path": name, "uploadMode": "regular", "shouldIgnore": False}
                        for name in names
                    ]
                }
            )
        elif "/commit/" in self.path:
            import base64

            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    content = base64.b64decode(row["value"]["content"])
                    self.files[row["value"]["path"]] = content
            self.json(
                {
                    "commitUrl": "https://huggingface.co/someone/tree/commit/1",
                    "commitOid": self.commit,
                    "hookOutput": "",
                }
            )
        else:
            self.json({"error": self.path}, 404)

    def do_GET(self):
        where = self.path.split("?")[0]
        if where.startswith("/api/models/someone/tree/tree/"):
            self.json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": str(i)}
                    for i, (name, content) in enumerate(self.files.items())
                ]
            )
        elif where.startswith("/api/models/someone/tree"):
            self.json(
                {
                    "id": "someone/tree",
                    "sha": self.commit,
                    "private": False,
                    "siblings": [{"rfilename": name} for name in self.files],
                }
            )
        elif where.startswith("/someone/tree/resolve/"):
            content = self.files[where.split("/", 5)[5]]
            self.answer(200, content, ETag=f'"{hash(content)}"', X_Repo_Commit=self.commit)
        else:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in of the hub, and huggingface_hub made to speak to it."""
    import huggingface_hub
    from huggingface_hub import constants

    Hub.files, Hub.refuse = {}, False
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Hub
    huggingface_hub.close_session()
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_folder_for_the_hub_goes_there_and_comes_back(run, server, tmp_path, capsys):
    out = tmp_path / "tree"
    export.main([str(run), "--format", "hub", "--out", str(out), "--push", "someone/tree"])
    assert "sent to http://127.0.0.1" in capsys.readouterr().out
    mine = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert server.files == mine
    assert {"model.onnx", "config.json", "weights/root.safetensors"} <= set(mine)
    _, head, card = mine["README.md"].decode().split("---\n", 2)
    front, test = (
        yaml.safe_load(head),
        runfolder.read_json(run / "summary.json")["accuracy"]["test"],
    )
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(test["accuracy"], abs=1e-6)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "trunk-jax")
    assert front["datasets"] == ["digits"]
    assert "trunk_jax.predict tree IMAGE" in card
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    assert model_index_to_eval_results(front["model-index"])[1][0].metric_type == "accuracy"
    assert ModelCardData(**{k: v for k, v in front.items() if k != "model-index"}).license

    folder = hub.fetch("hub:someone/tree")
    assert set(load(folder).networks) == set(runfolder.read_tree(run).nodes)
    assert not (folder / "model.onnx").exists()  # a run is all that is needed here


def test_what_the_hub_refuses_is_one_line(run, server, tmp_path):
    with pytest.raises(UserError, match="'hub:x' is no name on the hub; it looks like"):
        hub.fetch("hub:x")
    with pytest.raises(UserError, match="cannot fetch no/one from the hub") as error:
        hub.fetch("no/one")
    assert "\n" not in str(error.value)
    server.refuse = True
    with pytest.raises(UserError, match=r"cannot send .* to someone/tree on the hub"):
        hub.push(run, "someone/tree")
    with pytest.raises(UserError, match="--push is for --format hub"):
        export.main([str(run), "--format", "onnx", "--out", str(tmp_path / "x"), "--push", "a/b"])


@pytest.mark.slow  # six processes, and PyTorch
def test_the_benchmark_in_its_smallest_form(run, tmp_path, capsys):
    from benchmarks import onnx as benchmark

    words = ["--batches", "1", "2", "--threads", "1", "--repeats", "1", "--starts", "1"]
    written = ["--json", str(tmp_path / "j"), "--table", str(tmp_path / "t")]
    benchmark.main([str(run), *words, *written])
    value = runfolder.read_json(tmp_path / "j")
    names = ["jax", "pytorch", "onnx float32", "onnx int8"]
    assert [(row["batch"], list(row["us"])) for row in value["times"]] == [
        (1, names),
        (2, names[1:]),
    ]
    assert all(time > 0 for row in value["times"] for time in row["us"].values())
    built = {benchmark.FROM_C} if benchmark.c_program(tmp_path / "c") else set()
    expected = {"onnx float32", "onnx int8", "onnx a file a node"}
    assert set(value["first"]) == expected | built
    us, found = value["times"][0]["us"], {bar["what"]: bar for bar in value["bars"]}
    assert len(found) == 4 + len(built)
    bar = found["one image, 1 thread: onnx float32 / pytorch"]
    assert bar["measured"] == us["onnx float32"] / us["pytorch"]
    assert (bar["most"], bar["met"]) == (0.35, bar["measured"] <= 0.35)
    # Ours has more than 500 MB, which no part of what is started counts.
    assert all(1e7 < row["bytes"] < 2e8 for row in value["first"].values())
    assert all(row["seconds"] > 0 for row in value["first"].values())
    assert "onnx a file a node" in capsys.readouterr().out
    page = (tmp_path / "t").read_text()
    assert page.startswith("# 4 nodes in ONNX and in our own programs, measured\n")
    assert f"| 1 | 1 | {us['jax']:,.0f} (" in page
    with pytest.raises(UserError, match="must be 1 or more"):
        benchmark.main([str(run), "--starts", "0"])
