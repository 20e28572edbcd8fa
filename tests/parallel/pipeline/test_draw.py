"""The text picture has a row a rank, to one scale, with what is idle and what is kept."""

import pytest

from llmsys.parallel.pipeline import Costs, Timeline, draw, dualpipe, gpipe, one_f_one_b, simulate, zb_v


def test_gpipe_looks_as_in_its_papers_figure():
    assert draw(simulate(gpipe(2, 2), Costs(1, B=1))).splitlines() == [
        "rank 0  F0 F1 .  .  B0 B1   idle 2, keeps 2",
        "rank 1  .  F0 F1 B0 B1 .    idle 2, keeps 2",
    ]


def test_an_action_is_as_wide_as_it_takes_long():
    assert draw(one_f_one_b(2, 2)).splitlines() == [
        "rank 0  F0 F1 .  .  B0    .  B1      idle 3, keeps 2",
        "rank 1  .  F0 B0    F1 B1    .  .    idle 3, keeps 1",
    ]


def test_a_rank_with_several_stages_names_them():
    assert draw(zb_v(1, 1)) == "rank 0  0F0 1F0 1I0 1W0 0I0 0W0   idle 0, keeps 2"
    assert "0F3&3B5" in draw(dualpipe(4, 8))


def test_all_rows_are_equally_long_at_any_tick():
    for schedule in (one_f_one_b(4, 6), dualpipe(4, 8), zb_v(3, 7)):
        for tick in (None, 0.5, 1, 2):
            rows = draw(simulate(schedule, Costs(1, 1.5, 0.75)), tick=tick).splitlines()
            assert len({row.index("idle") for row in rows}) == 1 and len(rows) == schedule.num_ranks


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="at least one action that takes time"):
        draw(Timeline("none", ((), ())))
    with pytest.raises(ValueError, match="tick must be above 0"):
        draw(gpipe(1, 1), tick=0)
    with pytest.raises(ValueError, match="tick must be above 0 and finite"):
        draw(gpipe(1, 1), tick=float("inf"))
    fast = simulate(gpipe(2, 2), Costs(1e-9))
    with pytest.raises(ValueError, match="tick must be at least 0.0006, .*; it is 1e-09, the shortest action's time"):
        draw(fast)
    assert "B1" in draw(fast, tick=0.5)
