"""A tree compiled ahead of time: the same answers, and started from the cache."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.base.errors import UserError
from data.images import specs
from data.images.cache import cache_root
from data.inference import stopping
from data.inference.stopping import Stopping
from data.run import runfolder
from data.tree import hierarchy
from trunk_jax.framework import predict
from trunk_jax.inference import aot as ahead
from trunk_jax.inference.load import load

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "svhn-efficient"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUNK_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copytree(SHIPPED, tmp_path / "run"))


def entries():
    return [path for path in (cache_root() / "programs").iterdir() if path.name != "xla"]


def test_it_answers_as_a_batch_and_starts_without_building_anything(run, monkeypatch):
    recipe, tree = runfolder.read_recipe(run), runfolder.read_tree(run)
    shape = specs.spec(recipe.dataset).image_shape
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    expected = predict(load(run), images)

    def check():
        answers = list(map(ahead.load(run), images))
        assert [int(label) for label, *_ in answers] == expected.labels.tolist()
        # float32 through a dozen layers, in programs of other shapes
        np.testing.assert_allclose([p for _, p, _ in answers], expected.confidence, rtol=1e-4)
        for label, _, path in answers:
            assert tuple(int(step) for step in path if step >= 0) == tree.paths[int(label)]

    check()
    made, make = [], ahead._make
    monkeypatch.setattr(ahead, "_make", lambda run: made.append(run) or make(run))
    check()
    assert made == []
    (entry,) = entries()
    content = (entry / "program").read_bytes()
    (entry / "program").write_bytes(content[:-1])  # damaged: made again
    check()
    assert made == [run]
    assert (entry / "program").read_bytes()[:8] == content[:8]
    # other weights are another program's
    name = tree.names[hierarchy.ROOT]
    weights = runfolder.read_weights(run, name)
    bias = max(key for key in weights if key.startswith("classifier"))
    runfolder.write_weights(run, name, weights | {bias: weights[bias] * 0})
    ahead.load(run)
    assert len(made) == 2
    assert len(entries()) == 2


def test_another_rule_of_stopping_is_another_program(run):
    keys = {ahead._key(run)}
    for second in (0.25, 0.5):
        stopping.write(run, Stopping(second=second), {})
        keys.add(ahead._key(run))
    assert len(keys) == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        ahead.load(tmp_path)
