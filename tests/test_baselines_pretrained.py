"""Public weights: downloads that go on, files that are not what they should be, new heads."""

import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
import torch

from data.base.errors import UserError
from data.base.weights import read_safetensors
from data.recipes.baselines import architectures, download, pretrained
from data.recipes.baselines.architectures import ConvNext, Deit, Dinov2, MobileNetV2, Vit
from data.recipes.baselines.download import Source
from parity import pretrained as command
from parity.checks.pretrained import complete, read
from trunk_jax import baselines
from trunk_jax.network import exchange
from trunk_jax.network.network import split
from trunk_torch_ref import baselines as torch_baselines

TINY = MobileNetV2(rows=((1, 8, 1, 1),), stem=8, last=16)


@pytest.fixture
def server():
    """Serves `content`, ranges too, and notes what was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        content = b""

        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            wanted = self.headers.get("Range")
            asked.append(wanted)
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(self.content) - begin))
            self.end_headers()
            self.wfile.write(self.content[begin:])

        def log_message(self, *arguments):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield Handler, f"http://127.0.0.1:{web.server_port}/", asked
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A small model under a public one's name, and the bytes of its published file."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "mobilenet_v2", TINY)
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    torch.manual_seed(0)
    weights = torch_baselines.build(TINY).state_dict()
    old = {key: value for key, value in weights.items() if not key.endswith("tracked")}
    buffer = io.BytesIO()
    torch.save(old, buffer)
    return weights, buffer.getvalue()


def publish(monkeypatch, server, content, digest=None):
    handler, address, asked = server
    handler.content = content
    digest = hashlib.sha256(content).hexdigest()[:8] if digest is None else digest
    source = Source(f"{address}mobilenet_v2-{digest}.pth", digest)
    monkeypatch.setitem(download.SOURCES, "mobilenet_v2", source)
    return asked


def test_a_download_goes_on_is_checked_and_converted(monkeypatch, tmp_path, server, tiny):
    weights, content = tiny
    asked = publish(monkeypatch, server, content)
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    file = downloads / download.SOURCES["mobilenet_v2"].url.rsplit("/", 1)[1]
    file.with_name(file.name + ".part").write_bytes(content[:1000])
    assert command.main(["mobilenet_v2", "--json", str(tmp_path / "result.json")]) == 0
    assert asked == ["bytes=1000-"]
    assert file.read_bytes() == content
    written = read_safetensors(pretrained.file_of("mobilenet_v2"))
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[key], weights[key].numpy()) for key in weights)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["passed"]
    assert result["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert [row["what"] for row in result["checks"]] == ["weights", *["scores at 224x224"] * 2]
    # what is there already is not fetched again
    assert command.main(["mobilenet_v2"]) == 0
    assert len(asked) == 1


def test_a_file_with_another_digest_is_refused(monkeypatch, server, tiny, tmp_path):
    publish(monkeypatch, server, tiny[1], digest="0676ba61")
    with pytest.raises(UserError, match="is not the published file: its SHA-256 begins"):
        command.main(["mobilenet_v2"])
    assert not pretrained.file_of("mobilenet_v2").exists()
    given = tmp_path / "given.pth"
    given.write_bytes(tiny[1])
    with pytest.raises(UserError, match="not 0676ba61"):
        command.main(["mobilenet_v2", "--file", str(given)])


def test_a_file_without_a_published_digest_needs_one(monkeypatch, server, tiny, tmp_path):
    publish(monkeypatch, server, tiny[1], digest="")
    digest = hashlib.sha256(tiny[1]).hexdigest()
    with pytest.raises(UserError, match=f"no SHA-256 is published .* --sha256 {digest}"):
        command.main(["mobilenet_v2"])
    with pytest.raises(UserError, match="not that of --sha256"):
        command.main(["mobilenet_v2", "--sha256", "0" * 64])
    assert not pretrained.file_of("mobilenet_v2").exists()
    assert command.main(["mobilenet_v2", "--sha256", digest]) == 0


def test_without_a_connection_the_message_says_how_to_do_without(monkeypatch, tiny):
    # nothing listens on port 9
    source = Source("http://127.0.0.1:9/mobilenet_v2-00000000.pth", "00000000")
    monkeypatch.setitem(download.SOURCES, "mobilenet_v2", source)
    with pytest.raises(UserError, match=r"refused.*mobilenet_v2 --file FILE"):
        command.main(["mobilenet_v2"])


def test_hashes_are_those_in_the_published_names():
    for name, source in download.SOURCES.items():
        assert source.url.startswith("https://")
        if source.sha256:
            assert source.url.endswith(f"-{source.sha256}.pth"), name
    assert [name for name, source in download.SOURCES.items() if not source.sha256] == [
        "dinov2_vitb14_reg"
    ]


def test_code_in_a_file_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    file = tmp_path / "harm.pth"
    torch.save({"conv": Harm()}, file)
    with pytest.raises(UserError, match="holds objects other than tensors"):
        read("mobilenet_v2", file)
    torch.save([1, 2], file)
    with pytest.raises(UserError, match="holds no state_dict"):
        read("mobilenet_v2", file)


def test_old_names_of_transformers_layers():
    weights = {"encoder.layers.encoder_layer_3.mlp.linear_2.bias": np.zeros(2)}
    assert list(complete(weights, "vit_b_16")) == ["encoder.layers.encoder_layer_3.mlp.3.bias"]


# --- another number of classes or channels


def shapes(spec, channels, outputs):
    return exchange.shapes(jax.eval_shape(lambda: split(baselines.build(spec, channels, outputs))))


def random_state(spec, seed=0):
    rng = np.random.default_rng(seed)
    return {
        key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes(spec, 3, 9).items()
    }


def changed(before, after):
    return {
        key for key in after if key not in before or not np.array_equal(before[key], after[key])
    }


SMALL = {"patch": 4, "width": 12, "depth": 1, "heads": 3, "hidden": 16, "image": 16}
NARROW = {"depths": (1, 1), "widths": (4, 8)}


@pytest.mark.parametrize(
    ("spec", "head", "first"),
    [
        (TINY, {"classifier.1.weight", "classifier.1.bias"}, {"features.0.0.weight"}),
        (
            Vit(**SMALL),
            {"heads.head.weight", "heads.head.bias"},
            {"conv_proj.weight", "conv_proj.bias"},
        ),
        (Deit(**SMALL), {"head.weight", "head.bias"}, {"patch_embed.proj.weight"}),
        (
            ConvNext(**NARROW),
            {"classifier.2.weight", "classifier.2.bias"},
            {"features.0.0.weight", "features.0.0.bias"},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_the_head_and_the_first_convolution_are_new(spec, head, first):
    before = random_state(spec)
    for channels, new in ((3, head), (1, head | first)):
        rng = np.random.default_rng(0)
        after = pretrained.adapt(before, shapes(spec, channels, 5), spec, rng)
        assert {key: value.shape for key, value in after.items()} == shapes(spec, channels, 5)
        assert changed(before, after) == new


def test_how_the_new_layers_start():
    rng = np.random.default_rng(0)
    before = random_state(Deit(**SMALL))
    after = pretrained.adapt(before, shapes(Deit(**SMALL), 1, 5), Deit(**SMALL), rng)
    old, new = before["patch_embed.proj.weight"], after["patch_embed.proj.weight"]
    np.testing.assert_allclose(new[:, 0], old.sum(1), rtol=0, atol=1e-6)
    bound = 1 / np.sqrt(12)
    assert 0.5 * bound < np.abs(after["head.weight"]).max() <= bound
    after = pretrained.adapt(
        random_state(Vit(**SMALL)), shapes(Vit(**SMALL), 1, 5), Vit(**SMALL), rng
    )
    assert not after["conv_proj.bias"].any()
    bound = np.sqrt(6 / (16 * 1 + 16 * 12))
    assert 0.9 * bound < np.abs(after["conv_proj.weight"]).max() <= bound


def test_the_releases_convnext_loses_its_stems_norm():
    spec = ConvNext(**NARROW, stem_norm=False)
    before = random_state(ConvNext(**NARROW))
    after = pretrained.adapt(before, shapes(spec, 1, 9), spec, np.random.default_rng(0))
    assert "features.0.weight" in after
    assert not any(key.startswith("features.0.1") for key in after)


def test_dinov2_gets_the_head_that_it_does_not_have():
    bare, whole = Dinov2(**SMALL, head=False), Dinov2(**SMALL)
    before = random_state(bare)
    after = pretrained.adapt(before, shapes(whole, 3, 5), whole, np.random.default_rng(0))
    assert changed(before, after) == {"head.weight", "head.bias"}
    same = pretrained.adapt(before, shapes(bare, 3, 5), bare, np.random.default_rng(0))
    assert changed(before, same) == set()


def test_anything_else_is_refused():
    before = random_state(TINY)
    wide = MobileNetV2(rows=((1, 8, 1, 1),), stem=12, last=16)
    with pytest.raises(UserError, match=r"features.0.0.weight is 8x3x3x3, not 12x3x3x3"):
        pretrained.adapt(before, shapes(wide, 3, 9), wide, np.random.default_rng(0))


def test_missing_weights_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m parity.pretrained vgg16"):
        pretrained.read("vgg16")
