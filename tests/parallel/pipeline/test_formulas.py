"""Every schedule's bubble and memory are those that its authors published, in exact numbers.

A bubble is counted within the makespan, or, for the zero-bubble family, from a rank's own start to its own end.
"""

from fractions import Fraction
from itertools import product

import pytest

from llmsys.parallel.pipeline import (
    Costs,
    chimera,
    dualpipe,
    dualpipe_v,
    gpipe,
    interleaved,
    one_f_one_b,
    simulate,
    v_half,
    v_min,
    zb_h1,
    zb_h2,
    zb_v,
)

SIZES = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 7), (3, 5), (4, 3), (4, 8), (5, 13), (8, 20)]
TIMES = [(1, 1, 1), (2, 3, 1), (2, 2, 3), (3, 1, 2), (5, 4, 3)]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_waits_for_p_minus_1_forwards_and_backwards_and_keeps_all_microbatches(p, m, times):
    F, I, W = times
    run = simulate(gpipe(p, m), Costs(F, I, W))
    assert run.bubbles == ((p - 1) * (F + I + W),) * p
    assert run.peaks == (m,) * p
    assert run.bubble_share == pytest.approx((p - 1) / (m + p - 1))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b_waits_as_long_as_gpipe_and_keeps_as_many_microbatches_as_stages_follow(p, m, times):
    F, I, W = times
    run = simulate(one_f_one_b(p, m), Costs(F, I, W))
    assert run.bubbles == ((p - 1) * (F + I + W),) * p
    assert run.peaks == tuple(min(p - rank, m) for rank in range(p))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(
    ("p", "v", "rounds"), [(2, 1, 2), (2, 2, 1), (2, 3, 4), (3, 2, 3), (4, 2, 2), (4, 4, 3), (8, 3, 2)]
)
def test_interleaving_divides_the_bubble_by_the_chunks_and_keeps_more(p, v, rounds, times):
    F, I, W = (Fraction(time, v) for time in times)  # of a chunk, where the rank's share takes F, I, W
    run = simulate(interleaved(p, p * rounds, v), Costs(F, I, W, activation=Fraction(1, v)))
    assert run.bubbles == (Fraction((p - 1) * sum(times), v),) * p
    if rounds > 1:
        assert run.peak(0) == p * (1 + Fraction(p - 1, p * v)) == run.peak()


@pytest.mark.parametrize(("F", "I", "W"), [times for times in product((1, 2, 3, 5), repeat=3) if times[2] <= times[0]])
def test_the_zero_bubble_schedules_fill_the_gaps_with_w(F, I, W):
    for p, m in [(1, 1), (2, 4), (3, 7), (4, 9), (6, 14)]:
        one, two = simulate(zb_h1(p, m), Costs(F, I, W)), simulate(zb_h2(p, m), Costs(F, I, W))
        assert max(one.own_bubbles) == (p - 1) * (F + I - W)
        assert max(two.own_bubbles) == max(0, (p - 1) * (F + I - 2 * W))
        assert one.peaks == (p,) * p
        assert two.peaks == (2 * p - 1,) * p


@pytest.mark.parametrize(("F", "I", "W"), [(1, 1, 2), (1, 3, 2), (2, 2, 3), (1, 4, 5)])
def test_a_w_that_is_longer_than_an_f_fills_no_more_than_the_f_would(F, I, W):
    for p, m in [(2, 4), (4, 9), (6, 14)]:
        assert max(simulate(zb_h1(p, m), Costs(F, I, W)).own_bubbles) == (p - 1) * I
        assert max(simulate(zb_h2(p, m), Costs(F, I, W)).own_bubbles) == max(0, (p - 1) * (I - F))


def test_what_w_needs_is_kept_until_w_and_the_rest_until_i():
    # The zero-bubble paper's M_B = 5 and M_W = 2: rank r keeps (P − r) M_B + r M_W
    for p in (2, 4, 5):
        run = simulate(zb_h1(p, 3 * p), Costs(activation=5, activation_for_w=2))
        assert run.peaks == tuple((p - rank) * 5 + rank * 2 for rank in range(p))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("extra", [0, 1, 6])
def test_zb_v_is_never_idle_in_the_memory_of_1f1b(p, extra):
    run = simulate(zb_v(p, 2 * p - 1 + extra), Costs(activation=Fraction(1, 2)))
    assert run.own_bubbles == (0,) * p
    assert run.peak() == p


@pytest.mark.parametrize("p", [2, 4, 6, 8])
@pytest.mark.parametrize("units", [1, 2, 3])
def test_chimera_waits_for_p_minus_2_and_again_where_backwards_take_longer(p, units):
    for F, B in [(1, 1), (1, 2), (2, 3)]:
        run = simulate(chimera(p, units * p), Costs(F, B=B))
        assert run.bubbles == ((p - 2) * (B + (units - 1) * (B - F)),) * p
    # Chimera's table: (D − 2) / (2N + D − 2) where both take as long, (D − 2) / (3N / 2 + D − 2) for N = D and B = 2F
    even = simulate(chimera(p, units * p), Costs(1, B=1))
    assert even.bubble_share == pytest.approx((p - 2) / (2 * units * p + p - 2))
    assert simulate(chimera(p, p), Costs(1, B=2)).bubble_share == pytest.approx((p - 2) / (1.5 * p + p - 2))
    middle = [min(rank, p - 1 - rank) for rank in range(p)]
    assert even.peaks == tuple(p // 2 + 1 + near for near in middle)


@pytest.mark.parametrize("p", range(1, 13))
def test_v_half_and_v_min_keep_half_and_a_third_of_the_activations(p):
    for m in (p, 2 * p, 3 * p + 1):
        half, third = simulate(v_half(p, m)), simulate(v_min(p, m))
        # In the paper's units, a rank's whole share, of which a stage is half
        assert (half.peak() / 2, third.peak() / 2) == ((p + 2) // 2, (p + 4) // 3)
        assert max(half.own_bubbles) == 3 * (p - 1) - (p % 2 if p > 1 else 0)
        assert max(third.own_bubbles) == (4 * (p - 1) - 1 + (0 if p % 3 else 2) if p > 1 else 0)


@pytest.mark.parametrize(("F", "W"), [(1, 1), (2, 1), (3, 2), (5, 5), (1, 0)])
@pytest.mark.parametrize("p", [2, 4, 8])
def test_dualpipe_has_the_bubble_and_memory_of_its_table_where_f_is_i_and_not_less_than_w(p, F, W):
    bubble = (p // 2 - 1) * ((F + F + W) + (F + W) - 3 * W)
    for m in (2 * p, 2 * p + 2, 3 * p):
        run = simulate(dualpipe(p, m), Costs(F, F, W))
        assert run.bubble() == bubble
        assert run.peaks == (p + 1,) * p
        assert dualpipe(p, m).placement.num_replicas == 2  # twice the parameters
    folded = simulate(dualpipe_v(p // 2, p), Costs(F, F, W))
    assert (folded.bubble(), folded.peaks) == (bubble, (p + 1,) * (p // 2))


def test_dualpipe_of_8_ranks_and_20_microbatches_has_the_figures_that_its_published_order_gives():
    unit = simulate(dualpipe(8, 20))
    assert (unit.bubble(), unit.peaks, unit.makespan) == (6, (9,) * 8, 66)
    # where the formula says 21 and 9
    assert simulate(dualpipe(8, 20), Costs(2, 3, 1)).bubble() == 19
    assert simulate(dualpipe(8, 20), Costs(2, 2, 3)).bubble() == 12


@pytest.mark.parametrize("p", [2, 4, 8])
def test_a_pair_that_overlaps_well_shortens_dualpipe(p):
    slow, fast = (simulate(dualpipe(p, 2 * p), Costs(FB=FB)) for FB in (3, 2))
    assert fast.makespan < slow.makespan
