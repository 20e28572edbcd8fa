"""Loss curves: every loss is drawn, and runs that agree can be told from runs that nearly do."""

import math
from xml.etree import ElementTree

import pytest

from llmsys.viz.charts import loss_curves
from llmsys.viz.charts.loss_curves import SMALLEST, differences, running_mean

FALLING = [1 + 2 * math.exp(-i / 30) + 0.1 * (-1) ** i for i in range(100)]


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_one_run_is_drawn_step_by_step_with_its_running_mean():
    picture = loss_curves({"flash": FALLING}, held_out={"flash": {0: 3.0, 100: 1.25}})
    (axes,) = picture.figure.axes
    every, mean, apart = axes.lines
    assert list(every.get_xdata()) == list(range(1, 101)) and list(every.get_ydata()) == FALLING
    assert list(mean.get_ydata()) == running_mean(FALLING)
    assert list(apart.get_xdata()) == [0, 100] and labels(axes) == ["flash", "flash, held out"]
    assert "flash from 3.1 to" in picture.alt and "in 100 steps" in picture.alt
    assert "held-out text: 3 at first, 1.25 at the end" in picture.alt
    assert ElementTree.fromstring(picture.svg).get("role") == "img"


def test_the_running_mean_is_over_a_twentieth_of_all_steps():
    mean = running_mean(FALLING)
    assert mean[0] == FALLING[0] and mean[1] == pytest.approx(sum(FALLING[:2]) / 2)
    assert mean[-1] == pytest.approx(sum(FALLING[-5:]) / 5)
    assert running_mean([3.0, 2.0, 4.0]) == [3.0, 2.0, 4.0]  # too few for a mean


def test_several_runs_show_how_far_they_are_apart():
    runs = {"sdpa": FALLING, "mine": [loss + 1e-5 for loss in FALLING], "same": list(FALLING), "short": FALLING[:10]}
    losses, apart = loss_curves(runs).figure.axes
    assert labels(losses) == list(runs)
    mine, same, short = apart.lines
    assert list(mine.get_ydata()) == pytest.approx([1e-5] * 100, rel=1e-6)
    assert list(same.get_ydata()) == [SMALLEST] * 100 and len(short.get_ydata()) == 10
    assert differences(runs)["same"] == [0.0] * 100
    shown = losses.lines[1::2]  # the means: lines that hide each other differ in width or in dashes, and in colour
    looks = {(line.get_color(), line.get_lw(), line._unscaled_dash_pattern) for line in shown}
    assert len({look[0] for look in looks}) == len(looks) == 4
    assert loss_curves(runs).alt.endswith("From sdpa, mine is never further than 10⁻⁵; same is never further than 0; "
                                          "short is never further than 0.")  # fmt: skip


def test_a_single_step_is_a_point():
    losses, apart = loss_curves({"a": [2.0], "b": [2.5]}).figure.axes
    assert all(line.get_marker() == "o" for line in (*losses.lines, *apart.lines))


@pytest.mark.parametrize("runs, says", [({}, "got no run"), ({"a": [1.0], "b": []}, "got 'b' without any")])
def test_no_runs_and_runs_without_a_loss_are_refused(runs, says):
    with pytest.raises(ValueError, match=says):
        loss_curves(runs)
