"""Charts of errors as dots, and the pages that have them."""

import re

import headless
import numpy as np
import pytest

from parity.checks import report, tolerance
from parity.pages import dots
from parity.pages.dots import Row


def test_an_axis_holds_every_value():
    rows = [Row("a", (0.5, None), (20.0, None)), Row("b", (0.0, 3.0), (4.0, 4.0))]
    on = dots.axis(rows)
    assert (on.low, on.high) == (-1, 2)
    assert [on.place(v) for v in (0.1, 1.0, 10.0, 100.0)] == [0.0, 33.33, 66.67, 100.0]
    assert (on.place(0.0), on.place(float("inf")), on.place(None)) == (0.0, 100.0, None)
    assert [label for _, label in on.ticks] == ["0.1", "1", "10", "100"]
    empty = dots.axis([])
    assert empty.low < empty.high


def test_a_row_is_drawn_with_its_dots_bounds_and_mark():
    text = str(
        dots.chart(
            [
                Row("conv <1>", (1.0, 10.0), (100.0, 100.0)),
                Row("b", (None, 1000.0), (None, 10.0), marked=True),
            ]
        )
    )
    assert "conv &lt;1&gt;" in text
    first, second = re.findall(
        r'<div class="dot-row(?! dot-axis)[^"]*" title.*?</div>', text, re.DOTALL
    )
    assert re.findall(r'class="dot (\w+)" style="left:([\d.]+)%', first) == [
        ("jax", "0.0"),
        ("torch", "25.0"),
    ]
    assert re.findall(r'class="bound" style="left:([\d.]+)%', first) == ["50.0"]
    assert re.findall(r'class="dot (\w+)"', second) == ["torch"]
    assert 'class="dot-row first over"' in second
    assert "PyTorch 1e+03 of 10 allowed" in second


def test_who_is_further_is_counted():
    none = (None, None)
    rows = [Row("", (1, 2), none), Row("", (2, 1), none), Row("", (3, 1), none)]
    assert dots.further([*rows, Row("", (1, 1), none), Row("", (None, 9.0), none)]) == (4, 2, 1)


@pytest.fixture(scope="module")
def checks():
    """Two tensors of a network, of which the second is beyond its bound in PyTorch."""
    truth = np.linspace(1.0, 2.0, 200)
    near = (truth * (1 + tolerance.UNIT)).astype(np.float32)
    far = (truth * (1 + 100 * tolerance.UNIT)).astype(np.float32)
    return [
        tolerance.fair("net", "a: output", near, near, truth, 4.0),
        tolerance.fair("net", "a: gradient of weight", near, far, truth, 4.0),
    ]


def test_a_check_knows_both_errors_in_units(checks):
    good, bad = checks
    assert good.passed
    assert good.limits == (16.0, 16.0)
    assert all(0.5 < error < 3 for error in good.errors)  # one unit, and float32's own rounding
    assert not bad.passed
    assert bad.errors[0] < 3
    assert bad.errors[1] == pytest.approx(100, abs=2)


def test_the_page_says_it_in_words_and_marks_the_first(checks):
    text = report.as_html(checks, 0)
    assert "1 of 2 checks failed, the first: net, a: gradient of weight (float32)." in text
    said = re.search(r"2 tensors of 1 networks .*? PyTorch on (\d)", text, re.DOTALL)
    assert said[1] == "1"
    assert text.count('class="dot-row first over"') == 2  # in the overview, and in the network's
    again = report.as_json(checks, 0)["checks"]
    assert again[1]["errors"][1] > 98


@headless.needed
@headless.schemes
def test_the_page_fits_a_phone_and_the_night(checks, tmp_path, scheme, back):
    page = tmp_path / "report.html"
    page.write_text(report.as_html(checks, 0))
    headless.assert_fits(page, tmp_path, scheme, back)
