"""Where what is derived from a run goes, and that nothing of another run is shown for it."""

import os
from pathlib import Path

import numpy as np
import pytest

from data.base import writing
from data.base.errors import UserError
from data.images import specs
from data.run import card, derived, results, runfolder
from data.tree import hierarchy
from parity.checks import report as parity_report
from parity.checks.tolerance import equal
from trunk_jax import metrics, report
from trunk_jax.pictures import __main__ as pictures

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_at(folder, number=1.0):
    writing.write_json(folder / "config.json", {"format": 1})
    runfolder.write_weights(folder, "root", {"w": np.full(2, number, np.float32)})
    return folder


def test_the_names(tmp_path):
    shipped, own = tmp_path / "checkpoints" / "svhn", tmp_path / "runs" / "deep" / "x"
    assert str(derived.named(shipped)) == "runs/svhn"
    assert str(derived.named(shipped, "-int8")) == "runs/svhn-int8"
    assert derived.named(own) == own
    assert derived.named(own, "-torch") == own.with_name("x-torch")


def test_a_run_below_runs_keeps_its_own_and_nothing_is_marked(tmp_path):
    run = run_at(tmp_path / "runs" / "x")
    assert derived.claim(run) == run
    assert not (run / derived.MARK).exists()


def test_what_is_of_another_run_of_that_name_is_left_out(tmp_path, capsys):
    a, b = run_at(tmp_path / "a" / "tree"), run_at(tmp_path / "b" / "tree", 2.0)
    folder = derived.claim(a)
    (folder / "measurements.json").write_text("{}")
    assert derived.find(a, "measurements.json") == folder / "measurements.json"
    assert derived.find(b, "measurements.json") == b / "measurements.json"
    assert "is of another run than" in capsys.readouterr().err
    with pytest.raises(UserError, match="derived from another run of that name"):
        derived.place(b)
    run_at(tmp_path / "runs" / "c")
    with pytest.raises(UserError, match="runs/c is another run"):
        derived.place(run_at(tmp_path / "elsewhere" / "c", 3.0))


def test_the_newer_of_two_is_shown(tmp_path):
    run = run_at(tmp_path / "a" / "tree")
    other = derived.claim(run) / "measurements.json"
    own = run / "measurements.json"
    for file, time in ((own, 100), (other, 200)):
        file.write_text("{}")
        os.utime(file, (time, time))
    assert derived.find(run, "measurements.json") == other
    os.utime(own, (300, 300))
    assert derived.find(run, "measurements.json") == own


SHIPPED = "checkpoints/svhn-efficient"


@pytest.fixture
def shipped(request):
    """A shipped tree, by a link, so that nothing could be left in it unseen."""
    return request.config.rootpath / SHIPPED


def test_report_finds_the_parity_that_check_leaves_and_touches_no_checkpoint(
    shipped, monkeypatch, tmp_path
):
    from parity import check

    before = sorted(path for path in shipped.rglob("*"))
    monkeypatch.setattr(check, "check_checkpoint", lambda *_, **__: [equal("a", "same", 1, 1)])
    monkeypatch.setattr(check.processes, "prepare_process", lambda: None)
    monkeypatch.setattr(check.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("trunk_jax.pictures.run.load_of_run", _no_images)
    assert check.main(["--checkpoint", str(shipped)]) == 0
    assert (tmp_path / "runs" / "svhn-efficient" / "parity" / "report.json").exists()
    report.main([str(shipped)])
    page = (tmp_path / "runs" / "svhn-efficient" / "report.html").read_text()
    assert "1 of 1 checks passed" in " ".join(page.split())
    pictures.main([str(shipped), "--leaves", "names"])
    assert (tmp_path / "runs" / "svhn-efficient" / "figures" / "tree.png").exists()
    assert sorted(path for path in shipped.rglob("*")) == before


def test_measurements_of_a_shipped_tree_go_elsewhere(shipped, monkeypatch, tmp_path):
    before = sorted(path for path in shipped.rglob("*"))
    for name in ("load_of_run", "split", "show"):
        monkeypatch.setattr(metrics, name, lambda *_, **__: None)
    monkeypatch.setattr(metrics, "measure", lambda *_: {"root": {"untrained": None}})
    monkeypatch.setattr(metrics, "asl_pictures", lambda *_: {"asl-root": None})
    monkeypatch.setattr(metrics.style, "write", lambda *_: None)
    metrics.main([str(shipped)])
    assert (tmp_path / "runs" / "svhn-efficient" / "measurements.json").exists()
    assert sorted(path for path in shipped.rglob("*")) == before


def _no_images(*_):
    """In place of a dataset that a test cannot count on."""
    from data.images import datasets

    digits = datasets.load("digits")
    images = np.zeros((len(digits.test.labels), 32, 32, 3), np.uint8)
    test = datasets.Examples(images, digits.test.labels)
    return type("Data", (), {"test": test})


def test_predictions_that_a_shipped_run_lacks_are_found_where_evaluate_puts_them(shipped):
    labels = np.arange(10)
    from data.images import datasets

    data = type("Data", (), {"spec": specs.spec("svhn")})
    examples = datasets.Examples(np.zeros((10, 1, 1, 1), np.uint8), labels)
    place = derived.claim(shipped)
    results.write_predictions(place, "validation", data, examples, labels, labels / 10)
    found, _ = results.read_predictions(shipped, "validation", 10)
    assert found.tolist() == labels.tolist()


def test_the_parity_page_is_whole(tmp_path):
    """By a template: names escaped, a block a name in the order of the checks."""
    checks = [equal("z <first>", "w", 1, 1), equal("a", "v", 1, 2), equal("z <first>", "u", 1, 1)]
    page = parity_report.as_html(checks, 0)
    assert page.count("z &lt;first&gt;") == 1
    assert page.index("z &lt;first&gt;") < page.index(">a<")
    assert page.count("FAILED") == 1
    assert "2 of 3 checks passed" in page
    assert page.count("<html") == page.count("</html>") == 1


# --- cards


def test_a_card_and_what_is_handed_on_with_it_name_no_folder_of_the_machine(shipped, tmp_path):
    text = card.card(shipped, tmp_path / "out" / "tree")
    assert str(tmp_path) not in text
    assert "trunk_jax.predict tree IMAGE" in text
    assert "trunk_jax.evaluate tree\n" in text  # its dataset is known by name
    assert "IMAGES" not in text
    value = {"command": ["python", "/a/b/train.py", "--out=/a/b/x", "--epochs=3"], "n": 1}
    assert card.without_places(value) == {
        "command": ["python", "train.py", "--out=x", "--epochs=3"],
        "n": 1,
    }


@pytest.mark.parametrize("place", sorted((ROOT / "checkpoints").glob("*/summary.json")), ids=str)
def test_the_card_of_a_shipped_folder_is_what_export_writes(place):
    folder = place.parent
    name = folder.relative_to(ROOT)
    assert (folder / "README.md").read_text() == card.card(folder, name)


def test_titles():
    tree = hierarchy.regroup(hierarchy.bare(4), (), ((0, 1, 2), (3,)))
    names = ("cat", "dog", "cow", "car")
    assert tree.titles(names) == {"root": "root", "sg1": "sg1 {cat dog cow}"}
    assert tree.titles(names, most=2)["sg1"] == "sg1 {cat dog +1}"
