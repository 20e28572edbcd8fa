"""The three tiers, and which of them a machine is."""

import pytest

from llmsys.viz.course import tiers
from llmsys.viz.course.tiers import TIERS


@pytest.mark.parametrize("tier", TIERS, ids="tier {}".format)
def test_the_tier_of_the_machine_is_marked_and_those_above_it_are_not_there(tier, words):
    picture = tiers(tier)
    name, where, _ = TIERS[tier]
    assert picture.alt.endswith(f"The best on this machine: {name} {where}.")
    assert words(picture).count("not on this machine") == len(TIERS) - 1 - list(TIERS).index(tier)


def test_an_unknown_tier_is_refused():
    with pytest.raises(ValueError, match="'interpreter'.*got 'tpu'"):
        tiers("tpu")
