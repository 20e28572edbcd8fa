"""A simulated timeline is the longest path through the schedule's graph, whatever things cost."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.parallel.pipeline import (
    SCHEDULES,
    Action,
    B,
    Costs,
    Event,
    F,
    I,
    InvalidSchedule,
    Kind,
    Schedule,
    Timeline,
    W,
    linear,
    one_f_one_b,
    pair,
    simulate,
    zb_h1,
)
from tests.parallel.pipeline import by_hand
from tests.support.least import least_reference_seconds

TIME = st.integers(0, 5)


@st.composite
def costs_of(draw, schedule: Schedule) -> Costs:
    def per_stage(least=0):
        one = st.integers(least, 5)
        return draw(st.one_of(one, st.tuples(*[one] * schedule.num_stages)))

    table = st.tuples(*[st.tuples(*[TIME] * schedule.num_ranks)] * schedule.num_ranks)
    return Costs(
        per_stage(1),
        per_stage(),
        per_stage(),
        B=draw(st.booleans()) and per_stage() or None,
        FB=draw(st.booleans()) and per_stage() or None,
        transfer=draw(st.one_of(TIME, table)),
        activation=per_stage(),
    )


@given(st.data())
def test_every_action_ends_at_the_end_of_the_longest_path_to_it(data):
    schedule = data.draw(by_hand.schedules())
    costs = data.draw(costs_of(schedule))
    expected = by_hand.ends(schedule, costs)
    run = simulate(schedule, costs)
    for rank, order in enumerate(schedule.orders):
        assert [event.action for event in run.events[rank]] == list(order)
        assert [event.end for event in run.events[rank]] == [expected[rank, n] for n in range(len(order))]
        assert [event.duration for event in run.events[rank]] == [by_hand.length(action, costs) for action in order]
    assert run.makespan == run.end - run.start
    assert all(run.bubble(rank) >= run.own_bubble(rank) >= 0 for rank in range(run.num_ranks))


@given(st.data())
@settings(max_examples=40)
def test_what_a_rank_keeps_is_what_was_forwarded_and_not_yet_backwarded(data):
    schedule = data.draw(by_hand.schedules())
    size = tuple(data.draw(st.integers(0, 4)) for _ in range(schedule.num_stages))
    left = tuple(data.draw(st.integers(0, each)) for each in size)
    run = simulate(schedule, Costs(activation=size, activation_for_w=left))
    for rank, row in enumerate(run.events):
        events = [(half, event) for event in row for half in event.action.halves]
        for now, _ in run.memory(rank):
            expected = 0
            for half, event in events:
                if half.kind is Kind.F:
                    expected += size[half.stage] * (event.start <= now)
                else:
                    gone = {"B": size, "W": left, "I": tuple(a - b for a, b in zip(size, left, strict=True))}
                    expected -= gone[str(half.kind)][half.stage] * (event.end <= now)
            later = [k for t, k in run.memory(rank) if t == now]
            assert expected == later[-1]  # the last one counts, where several things happen at a time
        assert run.memory(rank)[-1][1] == 0
        assert run.peak(rank) == max(kept for _, kept in run.memory(rank))
    assert run.peak() == max(run.peaks)


def test_a_pair_takes_its_own_time_and_keeps_its_forward_until_its_backward_is_done():
    both = pair(F(0, 1), B(0, 0))
    schedule = Schedule("two", linear(1), 2, [[F(0, 0), both, B(0, 1)]])
    run = simulate(schedule, Costs(F=2, I=2, W=1, FB=4))
    assert [(event.start, event.end) for event in run.events[0]] == [(0, 2), (2, 6), (6, 9)]
    assert run.memory(0) == ((0, 0), (0, 1), (2, 2), (6, 1), (9, 0))
    assert simulate(schedule, Costs(F=2, I=2, W=1)).makespan == 10


def test_transfers_count_between_ranks_only_and_may_differ_by_direction():
    schedule = Schedule("one", linear(2), 1, [[F(0, 0), B(0, 0)], [F(1, 0), B(1, 0)]])
    run = simulate(schedule, Costs(1, B=2, transfer=((0, 3), (5, 0))))
    assert [event.start for event in run.events[1]] == [4, 5]
    assert [event.start for event in run.events[0]] == [0, 12]
    assert run.bubbles == (11, 11) and run.own_bubbles == (11, 0)


def test_an_order_that_never_ends_is_refused_with_who_waits_for_whom():
    schedule = one_f_one_b(2, 2)
    first = list(schedule.orders[0])
    with pytest.raises(
        InvalidSchedule, match="rank 0 stands before 0B0, which needs 0F0, which it does only after that"
    ):
        simulate(schedule.with_order(0, [first[2], *first[:2], *first[3:]]))
    with pytest.raises(InvalidSchedule, match="rank 1 stands before 1F1, which needs 0F1, which no rank does"):
        simulate(schedule.with_order(0, [first[0], first[2]]))


def test_another_rule_of_dependencies_gives_another_timeline():
    def in_a_chain(action: Action, num_stages: int) -> list[Action]:
        return [F(action.stage - 1, action.microbatch)] if action.kind is Kind.F and action.stage else []

    schedule = one_f_one_b(4, 8)
    assert simulate(schedule, dependencies=in_a_chain).makespan < simulate(schedule).makespan


def test_measured_events_make_the_same_timeline_in_any_order():
    run = simulate(zb_h1(3, 5), Costs(1, 2, 1))
    events = [event for row in run.events for event in row]
    again = Timeline.of("zb-h1", events[::-1], 3)
    assert (again.events, again.bubbles, again.peaks) == (run.events, run.bubbles, run.peaks)
    moved = Timeline.of("later", [Event(e.rank, e.action, e.start + 7, e.end + 7) for e in events], 3)
    assert (moved.start, moved.makespan, moved.bubbles) == (7, run.makespan, run.bubbles)


def test_a_rank_that_did_nothing_is_idle_all_the_time():
    run = Timeline("half", ((Event(0, F(0, 0), 0, 2), Event(0, W(0, 0), 2, 3)), ()))
    assert run.bubbles == (0, 3) and run.own_bubbles == (0, 0) and run.bubble_share == 0.5
    assert Timeline("none", ((), ())).bubble_share == 0


@pytest.mark.parametrize("name", ["1f1b", "v-min", "dualpipe"])
def test_16_ranks_with_128_microbatches_are_simulated_in_well_under_a_second(name):
    schedule = SCHEDULES[name](16, 128)

    def seen():
        run = simulate(schedule)
        return run.bubbles, run.peaks  # what a caller asks for counts, too

    assert least_reference_seconds(seen) < 0.9


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"F": -1}, "F must be finite and not negative, got -1"),
        ({"I": float("nan")}, "I must be finite"),
        ({"W": (1, "2")}, "W must be finite and not negative, got '2'"),
        ({"transfer": ((0, 1), (float("inf"), 0))}, "transfer must be finite"),
        ({"transfer": (0, 1)}, r"transfer must be one number, or a table: for each rank a row; got \(0, 1\)"),
        ({"F": None}, "F must be finite and not negative, got None"),
        ({"activation": None}, "activation must be finite and not negative, got None"),
    ],
)
def test_costs_that_are_no_times_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Costs(**wrong)


def test_costs_must_have_as_many_numbers_as_there_are_stages_or_ranks():
    with pytest.raises(ValueError, match="F must be one number, or one for each of the 4 stages; got 3"):
        simulate(one_f_one_b(4, 4), Costs(F=(1, 1, 1)))
    with pytest.raises(ValueError, match="transfer must be one number, or a table of 4 × 4 ranks; got rows of"):
        simulate(one_f_one_b(4, 4), Costs(transfer=((0, 1), (1, 0))))


def test_a_cost_may_be_any_kind_of_number():
    for one in (np.float32(1), np.array(1.0), Fraction(1)):
        assert simulate(one_f_one_b(2, 3), Costs(F=one)).makespan == 12


def test_a_half_backward_costs_what_it_says_also_where_the_whole_has_its_own_cost():
    costs = Costs(1, 2, 3, B=4)
    assert [costs.time(each) for each in (F(0, 0), I(0, 0), W(0, 0), B(0, 0), pair(F(0, 1), B(0, 0)))] == [
        1,
        2,
        3,
        4,
        5,
    ]
