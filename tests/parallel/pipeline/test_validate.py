"""Every generator's schedule is valid, and what is dropped, doubled, moved or put out of order is found and named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.parallel.pipeline import (
    SCHEDULES,
    Action,
    B,
    F,
    I,
    InvalidSchedule,
    Kind,
    Schedule,
    W,
    linear,
    one_f_one_b,
    pair,
    validate,
    zb_h1,
)
from tests.parallel.pipeline import by_hand


def kinds(schedule: Schedule) -> set[str]:
    return {problem.kind for problem in validate(schedule).problems}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_what_the_generators_make_is_valid_in_all_small_sizes(name):
    tried = 0
    for p in range(1, 7):
        for m in range(1, 2 * p + 5):
            if by_hand.takes(name, p, m):
                schedule = SCHEDULES[name](p, m)
                assert (schedule.name, schedule.num_ranks, schedule.num_microbatches) == (name, p, m)
                validate(schedule).check()
                assert by_hand.runs(schedule)
                tried += 1
    assert tried > 5


@given(st.data())
@settings(max_examples=60)
def test_a_dropped_action_is_missed(data):
    schedule = data.draw(by_hand.schedules(4, 8))
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    order = list(schedule.orders[rank])
    gone = order.pop(data.draw(st.integers(0, len(order) - 1)))
    problems = validate(schedule.with_order(rank, order)).problems
    assert {part for each in problems for part in each.actions} == set(gone.parts)
    assert {each.kind for each in problems} == {"missing"}
    assert all(f"{part} is missing on rank {rank}" in str(problems) for part in gone.parts)


@given(st.data())
@settings(max_examples=60)
def test_an_action_that_is_done_twice_is_found(data):
    schedule = data.draw(by_hand.schedules(4, 8))
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    order = list(schedule.orders[rank])
    again = data.draw(st.sampled_from(order))
    order.insert(data.draw(st.integers(0, len(order))), again)
    problems = validate(schedule.with_order(rank, order)).problems
    assert {part for each in problems for part in each.actions} == set(again.parts)
    assert {each.kind for each in problems} == {"twice"}


@given(st.data())
@settings(max_examples=200)
def test_swapped_actions_are_found_exactly_where_the_swap_closes_a_circle(data):
    schedule = data.draw(by_hand.schedules(4, 8))
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    order = list(schedule.orders[rank])
    one, other = (data.draw(st.integers(0, len(order) - 1)) for _ in range(2))
    order[one], order[other] = order[other], order[one]
    swapped = schedule.with_order(rank, order)
    report = validate(swapped)
    assert report.valid == by_hand.runs(swapped)
    if not report.valid:
        (problem,) = report.problems
        assert problem.kind == "circle"
        for action in problem.actions:  # each is one that some rank stands before
            assert f"stands before {action}" in problem.text


@given(st.data())
@settings(max_examples=60)
def test_an_action_before_its_own_forward_is_always_found(data):
    schedule = data.draw(by_hand.schedules(4, 8))
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    order = list(schedule.orders[rank])
    late = data.draw(st.sampled_from([n for n, action in enumerate(order) if action.kind is not Kind.F]))
    backward = order[late].halves[-1]
    early = next(n for n, action in enumerate(order) if backward._as(Kind.F) in action.parts)
    order.insert(early, order.pop(late))
    assert kinds(schedule.with_order(rank, order)) == {"circle"}


@given(st.data())
@settings(max_examples=60)
def test_actions_on_another_rank_than_their_stages_are_found(data):
    schedule = data.draw(by_hand.schedules(4, 8).filter(lambda schedule: schedule.num_ranks > 1))
    here, there = data.draw(st.permutations(range(schedule.num_ranks)))[:2]
    moved = schedule.with_order(here, schedule.orders[there]).with_order(there, schedule.orders[here])
    problems = validate(moved).problems
    assert {problem.kind for problem in problems} == {"rank"}
    count = sum(len(action.halves) for rank in (here, there) for action in schedule.orders[rank])
    assert len(problems) == count


def test_a_circle_is_named_rank_by_rank():
    schedule = Schedule(
        "crossed", linear(2), 2, [[F(0, 0), B(0, 0), F(0, 1), B(0, 1)], [F(1, 0), F(1, 1), B(1, 0), B(1, 1)]]
    )
    report = validate(schedule)
    assert not report.valid
    assert str(report) == (
        "crossed cannot be run:\n  - the ranks wait in a circle: rank 0 stands before 0B0, which needs 1I0 (in 1B0) of "
        "rank 1; rank 1 stands before 1F1, which needs 0F1 of rank 0"
    )
    assert report.problems[0].actions == (B(0, 0), F(1, 1))
    with pytest.raises(InvalidSchedule, match="rank 1 stands before 1F1") as raised:
        report.check()
    assert isinstance(raised.value, ValueError) and raised.value.problems == report.problems


def test_a_circle_names_only_the_ranks_that_are_in_it():
    # Ranks 1 and 2 wait for each other, and rank 0 for rank 1.
    first, second, third = zb_h1(3, 2).orders
    crossed = [I(1, 0), *[each for each in second if each != I(1, 0)]]
    text = str(validate(Schedule("zb", linear(3), 2, [first, crossed, third])))
    assert (
        "rank 1 stands before 1I0, which needs 1F0, which it does only after that" in text
        and "rank 0 stands" not in text
    )


def test_actions_of_no_stage_microbatch_or_replica_are_found():
    orders = one_f_one_b(2, 2).orders
    for strange, words in [
        (F(2, 0), "2F0 on rank 0: there are stages 0 to 1, and microbatches 0 to 1"),
        (F(0, 2), "0F2 on rank 0: there are stages 0 to 1, and microbatches 0 to 1"),
        (F(-1, 0), "-1F0 on rank 0: there are stages"),
        (F(0, 0, 1), "0F0r1 on rank 0: microbatch 0 is of replica 0"),
    ]:
        report = validate(Schedule("strange", linear(2), 2, [[*orders[0], strange], orders[1]]))
        assert [(each.kind, each.actions) for each in report.problems][:1] == [("unknown", (strange,))]
        assert words in str(report)


def test_the_halves_of_a_pair_cannot_need_each_other():
    order = [pair(F(0, 0), B(0, 0))]
    report = validate(Schedule("at once", linear(1), 1, [order]))
    assert [each.kind for each in report.problems] == ["circle"]
    assert "which needs 0F0 (in (0F0;0B0)OVERLAP_F_B), which it does in the same action" in str(report)


def test_neighbouring_stages_may_split_their_backward_or_not():
    orders = [[F(0, 0), I(0, 0), W(0, 0)], [F(1, 0), B(1, 0)], [F(2, 0), I(2, 0), W(2, 0)]]
    assert validate(Schedule("mixed", linear(3), 1, orders)).valid
    assert kinds(Schedule("both", linear(3), 1, [[*orders[0], B(0, 0)], *orders[1:]])) == {"twice"}
    assert kinds(Schedule("half", linear(3), 1, [orders[0][:2], *orders[1:]])) == {"missing"}


def test_a_rule_of_ones_own_decides():
    def without_gradients(action: Action, num_stages: int) -> list[Action]:
        return [F(action.stage - 1, action.microbatch)] if action.kind is Kind.F and action.stage else []

    backwards_first = Schedule("odd", linear(1), 1, [[B(0, 0), F(0, 0)]])
    assert not validate(backwards_first).valid
    assert validate(backwards_first, dependencies=without_gradients).valid


def test_a_valid_report_says_what_was_looked_at():
    assert str(validate(one_f_one_b(2, 3))) == (
        "1f1b is valid: 12 actions on 2 ranks, each once and on its rank, without a circle, "
        "and no send hangs if receives are posted early"
    )
    assert str(validate(one_f_one_b(2, 3), transfers="together")).endswith("if the transfers of a pause begin together")
    assert not validate(one_f_one_b(2, 3), transfers="apart").valid
    assert str(validate(one_f_one_b(2, 1), transfers="apart")).endswith("even if transfers are done one by one")
