"""The chart of plans: what it shows, in words, too."""

import pytest

from llmsys.serving.goodput import Limits
from llmsys.serving.planning import Candidate, Planned
from llmsys.serving.simulator import Placement
from llmsys.viz.charts.plans import MOST, plans

BEST = Planned(Candidate(Placement(prefill=3, decode=1)), 62.0, 61.2, False, 0.48, 0.006)
OTHER = Planned(Candidate(Placement(colocated=2), 2, budget=512), 40.0, None, True)
LIMITS = Limits(0.5, 0.01)


def test_it_says_what_each_plan_takes(words):
    shown = plans([BEST, OTHER], LIMITS)
    assert "3 prefill, 1 decode: 15.3 a second and GPU" in shown.alt
    assert "2 × 2 GPUs colocated, steps of 512: at most 10 a second and GPU" in shown.alt
    assert "modelled, not measured" in words(shown) and "modelled" not in words(plans([BEST], LIMITS))


def test_the_first_ones_are_shown_and_none_is_refused():
    shown = plans([BEST] + [OTHER] * 40, LIMITS)
    assert shown.alt.count("at most 10") == MOST - 1
    with pytest.raises(ValueError, match="at least one plan"):
        plans([], LIMITS)
