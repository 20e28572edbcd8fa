"""Predict, then measure: a guess meets its measurement in one unit, and leaving it out stops nothing."""

import math
import re

import pytest
import torch

from llmsys.course.predictions import convert, figure, measured, predict
from llmsys.course.workspace import progress


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSYS_WORKSPACE", str(tmp_path))
    return tmp_path


def test_a_guess_is_drawn_beside_the_measurement():
    assert repr(predict("01.time", 12.5, "ms")) == "01.time: you say 12.5 ms."
    shown = measured("01.time", 0.0201, "s")
    assert repr(shown) == "01.time: you said 0.0125 s; measured 0.0201 s: 1.61× more."
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", shown._repr_html_())]
    assert widths == pytest.approx([100 * 12.5 / 20.1, 100], abs=0.1)
    assert 'aria-label="you said 0.0125 s; measured 0.0201 s"' in shown._repr_html_()
    assert progress.load().predictions["01.time"].measured == pytest.approx(20.1)


@pytest.mark.parametrize("guess", [None, ...])
def test_a_missing_guess_raises_nothing(guess):
    shown = predict("a", guess, "ms")
    assert "no guess yet" in repr(shown) and "No guess yet" in shown._repr_html_()
    assert repr(measured("a", 3, "ms")) == "a: measured 3 ms. You wrote down no guess for this one."
    assert "measured" in measured("never asked", 2.0, "tok/s")._repr_html_()


def test_a_later_guess_replaces_an_earlier_one_and_none_keeps_it():
    predict("a", 1, "ms"), predict("a", 2, "ms")
    assert predict("a", None, "ms").guess == 2
    assert measured("a", 2, "ms").gap == "you said 2 ms; measured 2 ms: exactly."


@pytest.mark.parametrize(
    "guess, value, words",
    [
        (100, 100.2, "within 0.5%"),
        (100, 110, "10% more"),
        (110, 100, "10% less"),
        (1, 5000, "5,000× more"),
        (0, 3, "3 more"),
        (-1, 1, "2 more"),
        (math.inf, 1, r"measured 1\."),
    ],
)
def test_the_gap_in_words(guess, value, words):
    predict("a", guess)
    assert re.search(words, measured("a", value).gap)
    measured("a", value)._repr_html_()


def test_a_number_may_be_a_tensor_of_one_element():
    assert predict("a", torch.tensor(3.5)).guess == 3.5 and measured("a", torch.tensor([3])).value == 3


@pytest.mark.parametrize("wrong", ["12 ms", True, math.nan, [1], torch.zeros(2), 1j])
def test_a_guess_that_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=r"the guess for 'a' must be a number \(or None"):
        predict("a", wrong, "ms")


def test_units_of_another_kind_are_refused():
    predict("a", 12, "ms")
    with pytest.raises(ValueError, match="the prediction 'a' is in 'ms', which cannot be turned into 'MB'"):
        measured("a", 3, "MB")
    with pytest.raises(ValueError, match="'ms', which cannot be turned into 'no unit'"):
        measured("a", 3)


def test_units_of_one_kind_are_converted():
    assert convert(1, "GiB", "MiB") == 1024 and convert(2, "h", "min") == 120 and convert(3, "tok/s", "tok/s") == 3
    assert convert(1, "TB/s", "GB/s") == 1000 and convert(1.5, "TFLOP/s", "GFLOP/s") == 1500
    assert convert(1, "µs", "us") == pytest.approx(1) and convert(1, "GFLOPs", "MFLOP") == 1000


@pytest.mark.parametrize(
    "value, text",
    [
        (12.5, "12.5"),
        (0.5, "0.5"),
        (1048576, "1,048,576"),
        (3.2e-9, "3.2e-09"),
        (1234.5, "1,234"),
        (0, "0"),
        (2.0, "2"),
        (1e18, "1e+18"),
    ],
)
def test_figures_are_written_as_short_as_they_may_be(value, text):
    assert figure(value) == text and figure(value, "B") == f"{text} B"
