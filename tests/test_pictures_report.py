"""Pictures and the report: what is drawn is what was measured, and nothing covers anything."""

import itertools
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import headless
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch, Rectangle

from data.base import writing
from data.base.errors import UserError
from data.images import datasets, specs
from data.recipes import recipe
from data.recipes.recipe import to_json
from data.run import results, runfolder
from data.tree import grouping, hierarchy
from parity.checks import report as parity_report
from parity.checks.tolerance import equal
from trunk_jax import pictures, report
from trunk_jax.pictures import __main__ as command
from trunk_jax.pictures import style
from trunk_jax.pictures.confusion import confusion_matrix
from trunk_jax.pictures.curves import training_curves
from trunk_jax.pictures.likelihood import likelihoods
from trunk_jax.pictures.order import spans, tree_order
from trunk_jax.pictures.style import INK, LINE, ORANGE, inline, on_cell, over
from trunk_jax.pictures.tree import tree_picture

NAMES = specs.spec("emnist").class_names


def forest():
    """47 classes on four levels, as EMNIST's published tree has."""
    tree = hierarchy.regroup(
        hierarchy.bare(47), (), (tuple(range(30)), (30, 31), *((k,) for k in range(32, 47)))
    )
    tree = hierarchy.regroup(
        tree, (0,), (tuple(range(12)), (12, 13, 14), *((k,) for k in range(15, 30)))
    )
    return hierarchy.regroup(tree, (0, 0), ((0, 1, 2), (3, 4), *((k,) for k in range(5, 12))))


def answers(classes, wrong=0.3, count=2000):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count)])
    guess = np.where(rng.random(len(labels)) < wrong, rng.permutation(labels), labels)
    return labels, guess


def boxes(drawing):
    """Of every visible text: its words, and the box they take on paper."""
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    texts = [t for t in drawing.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip()]
    for axis in (axis for axes in drawing.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        unseen = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        texts = [t for t in texts if all(t is not tick.label1 for tick in unseen)]
    shown = [t for t in texts if t.get_visible() and t.get_window_extent().width > 0]
    return [(t.get_text(), t.get_window_extent()) for t in shown]


def assert_nothing_overlaps(drawing):
    found = boxes(drawing)
    page = drawing.bbox
    for text, box in found:
        assert box.x0 >= page.x0 - 1, text
        assert box.y0 >= page.y0 - 1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y1 <= page.y1 + 1, text
    for (a, one), (b, two) in itertools.combinations(found, 2):
        apart = (
            one.x1 <= two.x0 + 1
            or two.x1 <= one.x0 + 1
            or one.y1 <= two.y0 + 1.5
            or two.y1 <= one.y0 + 1.5
        )
        assert apart or a == b, (a, b)


@pytest.mark.parametrize("samples", [False, True])
def test_a_tree_of_47_classes_is_readable(samples):
    tree = forest()
    labels, guess = answers(47)
    images = dict.fromkeys(range(47), np.zeros((28, 28, 1), np.uint8)) if samples else None
    drawing = tree_picture(tree, NAMES, labels, guess, "EMNIST", images)
    assert_nothing_overlaps(drawing)
    words = [text for text, _ in boxes(drawing)]
    assert set(NAMES) <= set(words)
    right = {name: float((guess[labels == k] == k).mean()) for k, name in enumerate(NAMES)}
    assert f"{100 * right['q']:.1f} %" in words


def test_edges_are_as_wide_as_their_traffic():
    tree = hierarchy.regroup(hierarchy.bare(4), (), ((0, 1), (2,), (3,)))
    guess = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    drawing = tree_picture(tree, "abcd", guess, guess, "t")
    edges = [p for p in drawing.findobj(PathPatch) if not p.get_fill()]
    widths = sorted(edge.get_linewidth() for edge in edges)
    # leaves 3 (none), 1, 0, node 0, leaf 2
    assert widths == pytest.approx([0.4, 2.4, 7.2, 9.6, 14.4])


def test_a_tree_without_children_and_classes_without_images():
    guess = np.array([0, 1, 1])
    drawing = tree_picture(hierarchy.bare(3), "abc", guess, guess, "flat")
    assert [text for text, _ in boxes(drawing)].count("100.0 %") == 2
    assert_nothing_overlaps(drawing)


def test_confusions_are_shares_of_a_row_in_the_order_of_the_tree():
    tree = hierarchy.regroup(hierarchy.bare(4), (), ((0, 3), (1,), (2,)))
    assert tree_order(tree) == [0, 3, 1, 2]
    assert list(spans(tree)) == [(0, 2, 1)]
    counts = np.array([[8, 0, 0, 2], [0, 10, 0, 0], [0, 0, 0, 0], [1, 0, 0, 299]])
    drawing = confusion_matrix(counts, "abcd", tree, "t")
    axes = drawing.axes[0]
    at = {t.get_position(): t.get_text() for t in axes.texts}
    assert at == {(0, 0): "80", (1, 0): "20", (1, 1): "100", (2, 2): "100"}  # 1 of 300 is below ½ %
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "d", "b", "c"]
    assert "99.06 % right" in " ".join(text for text, _ in boxes(drawing))  # 317 of 320


def test_a_confusion_matrix_of_47_classes_is_readable():
    labels, guess = answers(47, wrong=0.5, count=4000)
    counts = np.zeros((47, 47), int)
    np.add.at(counts, (labels, guess), 1)
    assert_nothing_overlaps(confusion_matrix(counts, NAMES, forest(), "EMNIST"))


def test_orange_are_the_pairs_that_make_the_groups():
    """Above the diagonal by label, wherever the groups' order puts them."""
    asl = np.array([[0.6, 0.1, 0.3], [0.3, 0.7, 0.0], [0.0, 0.3, 0.7]])
    groups = grouping.group(asl, 0.6)  # threshold 0.2: 0 with 2; (1, 0) and (2, 1) do not count
    assert groups == ((0, 2), (1,))
    drawing = likelihoods({"before": asl, "after": asl}, "abc", groups, 0.2, "t")
    orange = [
        [p.get_xy() for p in axes.findobj(Rectangle) if p.get_facecolor()[:3] == to_rgb(ORANGE)]
        for axes in drawing.axes
    ]
    assert orange[0] == []
    assert orange[1] == [(1 - 0.47, 0 - 0.47)]  # row a, column c, which is shown second
    assert_nothing_overlaps(drawing)


def rows_of(node, phase, accuracies):
    return [
        {
            "node": node,
            "phase": phase,
            "epoch": k + 1,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "validation_loss": None,
            "validation_accuracy": value,
        }
        for k, value in enumerate(accuracies)
    ]


@pytest.mark.parametrize(("ties", "kept"), [("first", 2), ("last", 4), ("final", 4)])
def test_the_ring_is_at_the_epoch_that_was_kept(ties, kept):
    rows = rows_of("root", "class", [0.1, 0.8, 0.2, 0.8]) + rows_of("root", "group", [0.9, 0.5])
    drawing = training_curves(rows, ties, "t")
    axes = drawing.axes[0]
    rings = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert rings == [kept, 4 + (2 if ties == "final" else 1)]
    assert_nothing_overlaps(drawing)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_epochs_are_whole_numbers(epochs):
    drawing = training_curves(rows_of("root", "class", [0.5] * epochs), "first", "t")
    for axes in drawing.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == int(tick) for tick in ticks)


def test_numbers_are_readable_on_every_colour():
    assert (over("#ffffff"), over("#2b8a57"), over("#e8b04b"), over("#b42318")) == (
        "#000000",
        "#ffffff",
        "#000000",
        "#ffffff",
    )
    assert (on_cell(0.1), on_cell(0.9)) == (INK, "#ffffff")


def test_an_inline_picture_takes_the_pages_colours_and_keeps_to_its_ids():
    drawing = confusion_matrix(np.eye(3, dtype=int), "abc", hierarchy.bare(3), "<t>")
    text = inline(drawing, "p7", '"<b>')
    element = ElementTree.fromstring(text)
    assert element.get("aria-label") == '"<b>'
    assert INK not in text
    assert LINE not in text
    assert "currentColor" in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(identifiers)) == len(identifiers)
    assert all(i.startswith("p7-") for i in identifiers)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used <= set(identifiers)


# --- a run folder and its page


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run on digits with made-up predictions."""
    monkeypatch.chdir(tmp_path)
    dataset = datasets.load("digits")
    chosen = recipe.load("corrected", "digits", "vgg")
    tree = hierarchy.regroup(hierarchy.bare(10), (), ((0, 8), (1, 9), *((k,) for k in range(2, 8))))
    test = dataset.test
    guess = np.where(np.arange(len(test.labels)) % 9 == 0, (test.labels + 1) % 10, test.labels)
    costs = {
        tree.names[node]: {"parameters": 1000, "multiply_adds": 2_500_000} for node in tree.nodes
    }
    folder = tmp_path / "runs" / "run <b>"
    config = {"format": 1, "framework": "torch", "flags": {}, "recipe": to_json(chosen)}
    writing.write_json(folder / "config.json", config)
    runfolder.write_tree(folder, tree)
    runfolder.write_asl(
        folder, "root", np.full((10, 10), 0.1), 0.12, ((0, 8), (1, 9), *((k,) for k in range(2, 8)))
    )
    for row in rows_of("root", "class", [0.5, 0.75]):
        runfolder.append_metrics(folder, row)
    results.write_predictions(folder, "test", dataset, test, guess, np.ones(len(guess)))
    value = results.summary("torch", chosen, dataset, tree, costs, {"test": (test, guess)})
    writing.write_json(folder / "summary.json", value)
    return folder


class Links(HTMLParser):
    """Everything that a page would fetch or run."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            if key in ("src", "href", "xlink:href", "srcset", "data") or key.startswith("on"):
                self.fetched.append(value)


def test_the_page_needs_nothing_else(finished):
    report.main([str(finished)])
    text = (finished / "report.html").read_text()
    links = Links()
    links.feed(text)
    assert links.fetched
    assert all(link.startswith(("#", "data:")) for link in links.fetched)
    assert "script" not in links.tags
    assert not re.search(r"url\((?!#)|@import", text)
    assert links.tags.count("svg") == 4
    assert "run <b>" not in text
    assert "run &lt;b&gt;" in text
    assert "88.86 %" in text  # 319 of 359
    assert "319 of 359" in text
    assert "5.000" in text  # two nodes of 2.5 M multiply-adds
    assert "python -m trunk_jax.metrics" in text  # nothing was measured


def test_the_page_says_what_selected_epochs(finished):
    file = finished / "summary.json"
    for own, words in ((False, "held-out training images"), (True, "own validation images")):
        writing.write_json(
            file, json.loads(file.read_text()) | {"protocol": "holdout", "own_validation": own}
        )
        text = " ".join(report.page(report.content(finished, None, None)).split())
        assert f"{words}; the test split was used once" in text


def test_the_page_shows_parity_failures_first(finished):
    checks = [equal("a", f"same {k}", 1, 1) for k in range(50)] + [equal("b", "worse", 1, 2)]
    parity_report.write(finished / "parity", checks, 0)
    text = " ".join(report.page(report.content(finished, None, None)).split())
    assert "50 of 51 checks passed" in text
    assert text.index("b: worse") < text.index("a: same 0")
    writing.write_json(finished / "parity" / "report.json", {})
    with pytest.raises(UserError, match="not the report of a parity check"):
        report.content(finished, None, None)


def test_the_pictures_command(finished, capsys):
    command.main([str(finished), "--leaves", "names"])
    made = sorted(path.name for path in (finished / "figures").iterdir())
    stems = ("asl-root", "confusion-test", "curves", "tree")
    assert made == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))
    first = (finished / "figures" / "tree.svg").read_bytes()
    command.main([str(finished), "--leaves", "names"])
    assert (finished / "figures" / "tree.svg").read_bytes() == first
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(made)


def test_what_is_missing_is_named(finished, tmp_path):
    with pytest.raises(UserError, match="evaluate --split train"):
        command.main([str(finished), "--split", "train"])
    (finished / "predictions-test.csv").write_text("index,label,predicted\n0,1,99\n")
    with pytest.raises(UserError, match="does not hold predictions of 10 classes"):
        command.main([str(finished)])
    (finished / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        report.main([str(finished)])
    with pytest.raises(UserError, match="no run folder"):
        report.main([str(tmp_path / "none")])
    assert pictures.__doc__


# --- the page in a real browser


@headless.needed
@headless.schemes
def test_the_page_fits_and_is_silent(finished, tmp_path, scheme, back):
    page = tmp_path / "report.html"
    report.main([str(finished), "--out", str(page)])
    headless.assert_fits(page, tmp_path, scheme, back)


# --- accuracy against cost, with what others have published


def test_runs_and_published_points_stand_where_they_were_measured(tmp_path):
    from data import table
    from trunk_jax.pictures.accuracy_cost import SINGLE, TREE, accuracy_cost, point

    root = Path(__file__).parents[1]
    runs = [root / "checkpoints" / f"cifar10-efficient{more}" for more in ("", "-monolith")]
    known = results.read_published(root / "docs" / "published.json")
    tree, single = map(point, runs)
    assert (tree.kind, tree.correct, single.kind, single.correct) == (TREE, 9077, SINGLE, 9085)
    drawing = accuracy_cost([tree, single], "title")
    marks = [line for line in drawing.axes[0].lines if line.get_marker() in "oD"]
    at = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marks]
    assert at == [
        pytest.approx((40.4158, 90.77), abs=1e-3),
        pytest.approx((40.416, 90.85), abs=1e-3),
    ]
    rows = table.table(runs, root / "docs" / "published.json").splitlines()[2:]
    assert [row.split("|")[2].split("(")[0].strip() for row in rows] == [
        "published tree",
        "our tree, 3 nodes",
        "one network",
    ]
    assert "81.53 (80.76 to 82.28)" in rows[0]
    words = [*map(str, runs), "--published", str(root / "docs" / "published.json")]
    command.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "accuracy-cost.svg").is_file()
    with pytest.raises(UserError, match="name two or more RUNs"):
        command.main([str(runs[0]), *words[2:]])
    with pytest.raises(UserError, match="no RUN is named"):
        command.main([])
    for wrong in (
        [known[0] | {"correct": 10**6}],
        [known[0] | {"kind": "tree"}],
        [{"data": "x"}],
        {},
    ):
        writing.write_json(tmp_path / "wrong.json", wrong)
        with pytest.raises(UserError, match="another form"):
            results.read_published(tmp_path / "wrong.json")


def test_a_curve_has_a_point_for_each_rule_and_the_band_of_its_intervals(tmp_path):
    from trunk_jax.pictures.accuracy_cost import accuracy_cost, curve

    rules = [(900, 30e6), (880, 10e6)]  # as evaluate writes them; by cost in the picture
    value = {
        "dataset_title": "CIFAR-10",
        "curve": [
            {
                "validation": {"correct": 1, "total": 2, "multiply_adds": 1.0},
                "test": {"correct": correct, "total": 1000, "multiply_adds": cost},
            }
            for correct, cost in rules
        ],
    }
    writing.write_json(tmp_path / "a.json", value)
    line = curve(f"a tree={tmp_path / 'a.json'}")
    axes = accuracy_cost([], "title", [line]).axes[0]
    (drawn,) = axes.lines
    assert (list(drawn.get_xdata()), list(drawn.get_ydata())) == ([10, 30], [88, 90])
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(85.84, abs=0.01)  # Wilson, 880 of 1,000
    assert corners[:, 1].max() == pytest.approx(91.71, abs=0.01)  # 900 of 1,000
    command.main(["--curve", f"a tree={tmp_path / 'a.json'}", "--out", str(tmp_path)])
    assert (tmp_path / "accuracy-cost.svg").is_file()
    for wrong, message in (
        ({"curve": []}, "is not what"),
        (value | {"curve": []}, "without points"),
        (value | {"curve": [{"test": {"correct": 2, "total": 1, "multiply_adds": 1}}]}, "cannot"),
        ([], "is not what"),
    ):
        writing.write_json(tmp_path / "wrong.json", wrong)
        with pytest.raises(UserError, match=message):
            curve(f"a tree={tmp_path / 'wrong.json'}")
    with pytest.raises(UserError, match="LABEL=FILE"):
        curve(str(tmp_path / "a.json"))


def test_letters_without_a_font_are_told_of_once(tmp_path, capsys):
    def drawn():
        drawing = style.figure(2, 1)
        drawing.text(0.1, 0.5, "a\U000f1234\U000f1235")  # in no font: for private use
        style.write(drawing, tmp_path, "x")

    drawn()
    said = capsys.readouterr().err
    assert said.startswith("note: no font here has \U000f1234\U000f1235: pictures show boxes")
    assert said.count("\n") == 1
    drawn()
    assert capsys.readouterr().err == ""


def test_other_warnings_of_a_drawing_are_not_lost():
    @style.styled
    def drawn():
        warnings.warn("something else", stacklevel=2)
        return style.figure(1, 1)

    with pytest.warns(UserWarning, match="something else"):
        drawn()
