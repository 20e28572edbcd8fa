"""One rule says what must be done before an action."""

from hypothesis import given
from hypothesis import strategies as st

from llmsys.parallel.pipeline import Action, B, F, I, Kind, W, dependencies, pair, where_done, zb_h1
from tests.parallel.pipeline import by_hand


def test_each_kind_needs_what_the_equations_say():
    assert dependencies(F(0, 5), 4) == ()
    assert dependencies(F(2, 5), 4) == (F(1, 5),)
    assert dependencies(I(3, 5), 4) == (F(3, 5),)
    assert dependencies(I(2, 5), 4) == (F(2, 5), I(3, 5))
    assert dependencies(W(2, 5), 4) == (I(2, 5),)
    assert dependencies(B(2, 5), 4) == dependencies(I(2, 5), 4)
    assert dependencies(pair(F(1, 6), B(2, 5)), 4) == (F(0, 6), F(2, 5), I(3, 5))


def test_dependencies_stay_in_their_replica():
    assert dependencies(B(1, 5, 1), 4) == (F(1, 5, 1), I(2, 5, 1))


def test_a_pair_whose_halves_need_each_other_needs_itself():
    assert F(3, 5) in dependencies(pair(F(3, 5), B(3, 5)), 4)


@given(st.sampled_from("FIWB"), st.integers(0, 4), st.integers(0, 9), st.integers(5, 7))
def test_dependencies_are_those_of_the_parts_but_for_what_is_inside(kind, stage, microbatch, num_stages):
    action = Action(Kind(kind), stage, microbatch)
    inside = by_hand.elements(action)
    expected = {
        (other, at, microbatch)
        for part, s, _ in inside
        for other, at in by_hand.needed(part, s, num_stages - 1)
        if (other, at, microbatch) not in inside
    }
    found = dependencies(action, num_stages)
    assert {(str(each.kind), each.stage, each.microbatch) for each in found} == expected
    assert len(found) == len(expected)


def test_where_a_part_is_done_is_where_the_action_is_that_has_it():
    schedule = zb_h1(2, 2)
    where = where_done(schedule)
    assert len(where) == 3 * 2 * 2
    assert all(schedule.orders[rank][place] == action for action, (rank, place) in where.items())
