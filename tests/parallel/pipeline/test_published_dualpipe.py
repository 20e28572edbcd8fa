"""DualPipe is the published one: the picture in its README (8 ranks, 20 microbatches), and its eight steps.

The picture has a cell for each unit of time, F and I and W one each, B two, and numbers for one direction. Where the
numbered cells begin was read off it for three ranks. Near its end it draws what could begin earlier in one column, as
late as it may: there only the order must be the same, and nothing may begin later.
"""

import pytest

from llmsys.parallel.pipeline import Costs, F, I, Kind, W, dualpipe, dualpipe_v, fold, one_f_one_b, pair, simulate

PICTURE = {
    0: {
        "F": {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 17, 8: 26, 9: 32},
        "B": {0: 24, 1: 30, 2: 36, 3: 42, 4: 48, 5: 54},
        "I": {6: 58, 7: 60, 8: 62, 9: 64},
        "W": {6: 59, 7: 61, 8: 63, 9: 65},
    },
    3: {
        "F": {0: 3, 1: 5, 2: 7, 3: 9, 4: 11, 5: 17, 6: 23, 7: 29, 8: 35, 9: 41},
        "B": {0: 15, 1: 21, 2: 27, 3: 33, 4: 39, 5: 45, 6: 51, 7: 56},
        "I": {8: 59, 9: 61},
        "W": {8: 63, 9: 65},
    },
    5: {
        "F": {0: 5, 1: 7, 2: 9, 3: 12, 4: 17, 5: 23, 6: 29, 7: 35, 8: 41, 9: 47},
        "B": {1: 14, 2: 21, 3: 27, 4: 33, 5: 39, 6: 45, 7: 51, 8: 56},
        "I": {0: 10, 9: 59},
        "W": {0: 11, 9: 63},
    },
}


@pytest.mark.parametrize("rank", sorted(PICTURE))
def test_every_numbered_cell_of_the_published_picture_is_where_it_stands_there(rank):
    drawn = sorted((slot, kind, m) for kind, cells in PICTURE[rank].items() for m, slot in cells.items())
    found = []
    for event in simulate(dualpipe(8, 20)).events[rank]:
        for half in event.action.halves:
            if half.replica == 0:
                late = event.action.kind is Kind.FB and half.kind is Kind.B  # a pair's B is drawn after its F
                found.append((event.start + late, str(half.kind), half.microbatch))
    assert [cell[1:] for cell in found] == [cell[1:] for cell in drawn]
    assert [slot for slot, *_ in found if slot < 44] == [slot for slot, *_ in drawn][: sum(c[0] < 44 for c in found)]
    assert all(ours[0] <= theirs[0] for ours, theirs in zip(found, drawn, strict=True))
    assert found[-1] == drawn[-1] == (65, "W", 9) or rank == 5


def steps(rank: int, ranks: int, microbatches: int) -> list[str]:
    """The eight steps of a rank in words: f is a forward, b a backward, i and w its halves, of direction 0 or 1."""
    half = min(rank, ranks - 1 - rank)
    from_middle = ranks // 2 - half - 1
    words = ["f0"] * (2 * from_middle)
    words += ["f0", "f1"] * (half + 1)
    words += ["i1", "w", "f1"] * from_middle
    main = ["f0&b1", "f1&b0"] * (microbatches // 2 - ranks + half + 1)
    words += ["f0", "b1", *main[1:]] if from_middle == 0 else main
    words += ["b1", "f1&b0"] * from_middle
    split = False
    for n in range(half + 1):
        if n == (half + 1) // 2 and half % 2 == 1:
            split = True
        words.append("i1" if split else "b1")
        if n == (half + 1) // 2 and half % 2 == 0:
            split = True
        words.append("i0" if split else "b0")
    words += ["w", "i0"] * from_middle
    return words + ["w"] * (half + 1)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (2, 10), (4, 8), (6, 14), (8, 20), (12, 30), (16, 32)])
def test_each_rank_does_the_eight_steps_in_order(p, m):
    for rank, order in enumerate(dualpipe(p, m).orders):
        near = 0 if rank < p // 2 else 1  # the replica that reaches this rank first is its direction 0

        def word(action, near=near):
            name = str(action.kind).lower()
            return name if name == "w" else f"{name}{action.replica ^ near}"

        assert ["&".join(map(word, action.halves)) for action in order] == steps(rank, p, m)
        waiting = []  # W in the order of their I
        for action in order:
            if action.kind is Kind.I:
                waiting.append(W(action.stage, action.microbatch, action.replica))
            if action.kind is Kind.W:
                assert action == waiting.pop(0)


def test_in_the_centre_the_first_pair_is_not_overlapped_so_that_its_forward_need_not_wait():
    schedule = dualpipe(8, 20)
    overlapped = schedule
    for rank in (3, 4):
        order = list(schedule.orders[rank])
        place = next(n for n, action in enumerate(order) if action.kind is Kind.B)
        order[place - 1 : place + 1] = [pair(*order[place - 1 : place + 1])]
        overlapped = overlapped.with_order(rank, order)
    late_gradients = Costs(2, 3, 1)
    assert (simulate(schedule, late_gradients).bubble(), simulate(overlapped, late_gradients).bubble()) == (19, 21)
    assert simulate(schedule).bubble() == simulate(overlapped).bubble() == 6


def test_each_direction_takes_its_microbatches_in_order():
    for order in dualpipe(6, 16).orders:
        for replica in (0, 1):
            for kinds in ({Kind.F}, {Kind.B, Kind.I}):
                halves = [half for action in order for half in action.halves]
                seen = [half.microbatch for half in halves if half.kind in kinds and half.replica == replica]
                assert seen == list(range(8 * replica, 8 * replica + 8))


@pytest.mark.parametrize(("p", "m"), [(4, 8), (8, 20), (12, 26)])
def test_folding_keeps_what_each_rank_does_and_when(p, m):
    whole, half = dualpipe(p, m), dualpipe_v(p // 2, m // 2)
    assert half == fold(whole)
    before, after = simulate(whole).events, simulate(half).events
    for rank in range(p // 2):
        assert [(event.start, event.end) for event in before[rank]] == [(e.start, e.end) for e in after[rank]]
    assert half.orders[0][2 * (p // 2 - 1) :][:3] == (F(0, p - 2), F(p - 1, 0), I(p - 1, 0))


def test_only_a_schedule_of_two_directions_on_an_even_number_of_ranks_can_be_folded():
    with pytest.raises(ValueError, match="schedule must be bidirectional"):
        fold(one_f_one_b(4, 8))
