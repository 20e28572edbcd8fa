"""Lesson 06's chart of eight bits: it measures what it is given, and the error is where the format says it is."""

import math

import pytest
import torch

from llmsys.precision.fp8 import quantize_blocks
from llmsys.viz.flash_hopper import fp8_error
from llmsys.viz.flash_hopper.fp8_error import LARGEST, NORMAL, SIZES, number_errors, outlier_errors


def test_a_number_loses_a_sixteenth_and_small_ones_everything():
    x, error = number_errors()
    clear = x > 1.1 * NORMAL / LARGEST
    assert 0.055 < error[clear].max() <= 1 / 16  # reached, and not passed
    assert (error[x < 2.0**-10 / LARGEST / 1.1] == 1).all()
    assert (error[~clear] >= error[clear].min()).all()


@pytest.mark.parametrize("rows, share", [(1024, 1.0), (128, 1 / 8)])
def test_a_huge_outlier_costs_the_numbers_that_share_its_scale_and_no_others(rows, share):
    found = outlier_errors(quantize_blocks, 1024, 32, rows)
    assert found[SIZES[-1]] == pytest.approx(math.sqrt(share), rel=0.1)
    assert found[1.0] == pytest.approx(0.0265, rel=0.05)  # of normal numbers in e4m3


def test_it_measures_the_function_that_it_is_given():
    def half(x, rows):
        return x / 2, torch.ones(-(-len(x) // rows))

    picture = fp8_error(half, T=256, D=16)
    assert "it is 50 % as long" in picture.alt and picture.alt.endswith("128 rows, 50 %.")
    picture = fp8_error(T=256, D=16, rows=64)
    left, right = picture.figure.axes
    assert [line.get_label() for line in right.lines] == ["one scale a tensor", "one scale for 64 rows"]
    assert list(right.lines[0].get_ydata()) == list(outlier_errors(quantize_blocks, 256, 16, 256).values())
    assert list(right.lines[1].get_ydata()) == list(outlier_errors(quantize_blocks, 256, 16, 64).values())


def test_its_texts_do_not_lie_on_each_other():
    figure = fp8_error(T=512, D=32).figure
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_xticklabels(), axes.title)]
        legend = axes.get_legend()
        boxes += [legend.get_window_extent()] if legend else []
        assert not [1 for n, one in enumerate(boxes) for other in boxes[:n] if one.overlaps(other) and one.width]
